"""Fixtures of all tests."""

import os

# Small arrays show bugs that large ones hide.  Read when NumPy is imported.
os.environ["NUMPY_DEFERRED_MIN_BYTES"] = "0"

import numpy as np
import pytest

from helpers import leftovers


def pytest_sessionstart():
    with np.deferredstate(True):
        assert (np.zeros(1) + 1).flags.deferred, "NumPy was imported before this"


@pytest.fixture(autouse=True)
def nothing_left():
    with leftovers.nothing_left():
        yield


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
def num_threads():
    """Sets how many threads share a calculation, for the test."""
    previous = np.deferred.get_num_threads()
    yield np.deferred.set_num_threads
    np.deferred.set_num_threads(previous)


@pytest.fixture
def rng():
    return np.random.default_rng(2010)
