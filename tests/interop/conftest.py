"""
Fixtures of the tests with other projects' wheels; `spin interop` runs them.

It keeps tests/conftest.py out, which sets NUMPY_DEFERRED_MIN_BYTES.
"""

import gc
import os

# What the tests hand over is to be deferred, however often a line has made it.
os.environ["NUMPY_DEFERRED_HABITS"] = "0"

import numpy as np
import pytest

from helpers import leftovers
from helpers.handover import MIN_BYTES

UNSEEN_WRITE = (
    "compiled code writes into an operand without asking, or asks the flag in the "
    "structure, which says no"
)

ALL_PROTECTED = os.environ.get("NUMPY_DEFERRED_PROTECT_BYTES") == "0"
# Without a library for which everything is protected.
DEFAULT_LIMIT = 2**28


def pytest_configure(config):
    config.addinivalue_line("markers", f"unseen_write: {UNSEEN_WRITE}")
    assert "deferred" in dir(np), f"{np.__file__} is not ours"


def pytest_collection_modifyitems(items):
    """Expect these to fail, but where all is protected, or too small to be deferred."""
    if ALL_PROTECTED:
        return
    for item in items:
        at_once = MIN_BYTES > 0 and "small" in item.name
        if item.get_closest_marker("unseen_write") and not at_once:
            item.add_marker(pytest.mark.xfail(reason=UNSEEN_WRITE, strict=True))


@pytest.fixture(autouse=True)
def protection(request):
    """
    Protect what is protected without PyTorch, whichever libraries have come: all of
    them are imported before the first test.  PyTorch's own tests have what it brings.
    """
    if ALL_PROTECTED or request.path.name == "test_torch.py":
        yield
        return
    previous = np.deferred.set_protect_limit(DEFAULT_LIMIT)
    yield
    np.deferred.set_protect_limit(previous)


@pytest.fixture(autouse=True)
def nothing_left():
    # Other projects leave cycles behind that hold arrays.
    gc.collect()
    with leftovers.nothing_left():
        yield
