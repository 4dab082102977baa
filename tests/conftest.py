"""Fixtures of all tests."""
import gc

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def nothing_left():
    """Every test starts and ends without pending arrays, state and error state."""
    assert np.deferred.stats()["pending"] == 0
    state, errors = np.getdeferred(), np.geterr()
    yield
    if np.deferred.stats()["pending"] != 0:
        gc.collect()
    assert np.deferred.stats()["pending"] == 0
    assert np.getdeferred() is state
    assert np.geterr() == errors


@pytest.fixture
def deferred():
    """The test runs with deferral on."""
    with np.deferredstate(True):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(2010)
