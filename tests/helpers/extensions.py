"""Build extensions, those of tests/capi or others, against a NumPy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent.parent / "capi"


def build_extensions(site_packages, directory, sources=SOURCES):
    """Meson finds NumPy in `site_packages` by its pkg-config file."""
    numpy = Path(site_packages, "numpy")
    env = dict(os.environ)
    # Where the environment that runs the tests has meson, ninja and cython.
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    env["PKG_CONFIG_PATH"] = str(numpy / "_core" / "lib" / "pkgconfig")
    # Cython looks for NumPy's declarations where Python looks for modules.
    env["PYTHONPATH"] = str(site_packages)
    for arguments in (["setup", directory, sources], ["compile", "-C", directory]):
        done = subprocess.run(
            [sys.executable, "-m", "mesonbuild.mesonmain", *map(str, arguments)],
            env=env,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            pytest.fail(done.stdout + done.stderr, pytrace=False)
    return Path(directory)
