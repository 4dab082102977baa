"""Build extensions, those of tests/capi or others, against a NumPy; load them."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent.parent / "capi"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


def build_extensions(site_packages, directory, sources=SOURCES):
    """Meson finds NumPy in `site_packages` by its pkg-config file."""
    numpy = Path(site_packages, "numpy")
    env = dict(os.environ)
    # A sanitizer's library: compilers are slow with it, and Cython may crash.
    env.pop("LD_PRELOAD", None)
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


def load(directory, name):
    spec = importlib.util.spec_from_file_location(name, directory / f"{name}{SUFFIX}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
