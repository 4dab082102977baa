"""`tools/spin`: each Python has an environment and builds of its own."""

import hashlib
import os
import shutil
import subprocess
import sys

import pytest

THIS = f"{sys.version_info.major}.{sys.version_info.minor}"
NAMES = ["build", "dev", "test", "lint"]


@pytest.fixture
def clone(real, tmp_path):
    """A clone that pins nothing, where an environment need not be made."""
    (tmp_path / "tools").mkdir()
    shutil.copy(real.root / "tools" / "spin", tmp_path / "tools")
    (tmp_path / "requirements").mkdir()
    for name in NAMES:
        (tmp_path / "requirements" / f"{name}.txt").touch()
    return tmp_path


def environment(clone, name, version):
    """An environment whose spin shows what it is given."""
    directory = clone / name
    (directory / "bin").mkdir(parents=True)
    (directory / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {version}\n")
    stamp = hashlib.sha256(sys.version.encode()).hexdigest()
    (directory / "installed-build").write_text(stamp)
    spin = directory / "bin" / "spin"
    spin.write_text('#!/bin/sh\necho "$VIRTUAL_ENV $SPIN_BUILD_DIR $*"\n')
    spin.chmod(0o755)
    return directory


def run(clone, **variables):
    inherited = {k: v for k, v in os.environ.items() if k != "SPIN_BUILD_DIR"}
    command = [sys.executable, clone / "tools" / "spin", "test", "-x"]
    return subprocess.check_output(
        command, text=True, env=inherited | variables
    ).split()


def test_the_first_python_has_the_short_names(clone):
    first = environment(clone, ".venv", f"{THIS}.99")
    assert run(clone) == [str(first), "build", "test", "-x"]


def test_another_one_has_its_own(clone):
    environment(clone, ".venv", "3.1.4")
    second = environment(clone, f".venv-{THIS}", f"{THIS}.0")
    assert run(clone) == [str(second), f"build-{THIS}", "test", "-x"]


def test_build_directory_can_be_chosen(clone):
    environment(clone, ".venv", "3.1.4")
    environment(clone, f".venv-{THIS}", f"{THIS}.0")
    assert run(clone, SPIN_BUILD_DIR="build-clang")[1] == "build-clang"
