"""The build: what it asks for, what it links to, what goes into the sdist."""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from numpy._core import _multiarray_umath
from packaging.requirements import Requirement

from deferred_tools import backend


def pins(path):
    lines = path.read_text().splitlines()
    return [Requirement(line) for line in lines if line and line[0] != "#"]


@pytest.mark.parametrize("kind", ["sdist", "wheel", "editable"])
def test_pip_is_asked_for_the_pins(real, kind):
    hook = getattr(backend, f"get_requires_for_build_{kind}")
    path = real.root / "requirements" / "build.txt"
    assert [Requirement(line) for line in hook()] == pins(path)


def test_every_requirement_is_pinned(real):
    requirements = [
        requirement
        for path in (real.root / "requirements").glob("*.txt")
        for requirement in pins(path)
    ]
    assert requirements
    for requirement in requirements:
        assert [s.operator for s in requirement.specifier] == ["=="], requirement


def test_our_sources_are_compiled_in():
    assert b"npy_deferred_" in Path(_multiarray_umath.__file__).read_bytes()


def test_upstream_does_not_call_project(real):
    text = (real.upstream / "meson.build").read_text()
    assert "project(" not in text.replace("meson.project", "")


def test_blas_is_64_bit_openblas():
    config = numpy.show_config(mode="dicts")["Build Dependencies"]
    for library in ("blas", "lapack"):
        assert config[library]["name"] == "scipy-openblas"
        assert "USE64BITINT" in config[library]["openblas configuration"]
    assert numpy.linalg._umath_linalg._ilp64


def test_sdist_gets_the_patched_upstream_without_git(real, tmp_path):
    subprocess.run(
        [sys.executable, real.root / "tools" / "dist_upstream.py"],
        check=True,
        env=os.environ | {"MESON_DIST_ROOT": str(tmp_path)},
    )
    copy = tmp_path / "upstream"
    for name in ("meson.build", "numpy/version.py", "PKG-INFO"):
        assert (copy / name).read_bytes() == (real.upstream / name).read_bytes()
    assert not (copy / ".git").exists()


def test_wheel_gets_the_libraries_it_links_to(tmp_path, monkeypatch):
    """auditwheel is called with what it needs, and its wheel is the result."""
    wheel = tmp_path / "numpy-1.0-py3-none-linux_x86_64.whl"

    def repair(command, check, env):
        assert command[1:4] == ["-m", "auditwheel", "repair"]
        assert command[-1] == str(wheel)
        assert str(Path(sys.executable).parent) in env["PATH"].split(os.pathsep)
        directory = Path(command[command.index("--wheel-dir") + 1])
        (directory / "numpy-1.0-repaired.whl").touch()

    monkeypatch.setattr(subprocess, "run", repair)
    assert backend.graft_libraries(wheel, tmp_path) == "numpy-1.0-repaired.whl"
    assert [path.name for path in tmp_path.iterdir()] == ["numpy-1.0-repaired.whl"]
