"""Let meson find the OpenBLAS (ILP64) that the scipy-openblas64 wheel brings."""

import os

from .project import HERE, SUFFIX


def set_environment():
    """Write scipy-openblas.pc into .openblas/ and put that on PKG_CONFIG_PATH."""
    import scipy_openblas64

    directory = HERE.root / f".openblas{SUFFIX}"
    directory.mkdir(exist_ok=True)
    text = scipy_openblas64.get_pkg_config()
    path = directory / "scipy-openblas.pc"
    # Meson configures again when the file is newer than its build directory.
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    others = os.environ.get("PKG_CONFIG_PATH")
    places = [str(directory)] + ([others] if others else [])
    os.environ["PKG_CONFIG_PATH"] = os.pathsep.join(places)
