"""Fixtures of all tests."""

import os

# Small arrays show bugs that large ones hide.  Read when NumPy is imported.
os.environ["NUMPY_DEFERRED_MIN_BYTES"] = "0"

import numpy as np
import pytest

from helpers import leftovers

#: What no program is worth to be compiled for.
NEVER = 2**63 - 1


def pytest_sessionstart():
    with np.deferredstate(True):
        assert (np.zeros(1) + 1).flags.deferred, "NumPy was imported before this"
    # Small work is compiled at once, too.
    np._core._multiarray_umath._deferred_set_code_worth(0)


@pytest.fixture(autouse=True)
def nothing_left():
    with leftovers.nothing_left():
        yield


@pytest.fixture
def deferred():
    """The test runs with deferral on."""
    with np.deferredstate(True):
        yield


@pytest.fixture(params=["compiled", "interpreted"])
def machine(request):
    """How tile programs run; a test that has it runs both ways."""
    worth = 0 if request.param == "compiled" else NEVER
    previous = np._core._multiarray_umath._deferred_set_code_worth(worth)
    yield request.param
    np._core._multiarray_umath._deferred_set_code_worth(previous)


@pytest.fixture
def raising():
    """Floating-point errors raise exceptions, whenever they come."""
    with np.errstate(all="raise"):
        yield


@pytest.fixture
def num_threads():
    """Sets how many threads share a calculation, for the test."""
    previous = np.deferred.get_num_threads()
    yield np.deferred.set_num_threads
    np.deferred.set_num_threads(previous)


@pytest.fixture
def rng():
    return np.random.default_rng(2010)
