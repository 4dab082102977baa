"""Fixtures of all tests."""

import gc
import os

# Small arrays show bugs that large ones hide.  Read when NumPy is imported.
os.environ["NUMPY_DEFERRED_MIN_BYTES"] = "0"

import numpy as np
import pytest


def pytest_sessionstart():
    with np.deferredstate(True):
        assert (np.zeros(1) + 1).flags.deferred, "NumPy was imported before this"


@pytest.fixture(autouse=True)
def nothing_left():
    """A test leaves no array pending, and the states as they were."""
    pending = np.deferred.stats()["pending"]
    state, errors = np.getdeferred(), np.geterr()
    yield
    if np.deferred.stats()["pending"] != pending:
        gc.collect()
    assert np.deferred.stats()["pending"] == pending
    assert np.getdeferred() is state
    assert np.geterr() == errors


@pytest.fixture
def deferred():
    """The test runs with deferral on."""
    with np.deferredstate(True):
        yield


@pytest.fixture
def raising():
    """Floating-point errors raise exceptions, whenever they come."""
    with np.errstate(all="raise"):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(2010)
