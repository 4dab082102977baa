"""What a test leaves behind."""

import contextlib
import gc

import numpy as np


@contextlib.contextmanager
def nothing_left():
    """What runs inside leaves no array pending, and the states as they were."""
    pending = np.deferred.stats()["pending"]
    state, errors = np.getdeferred(), np.geterr()
    yield
    if np.deferred.stats()["pending"] != pending:
        gc.collect()
    assert np.deferred.stats()["pending"] == pending
    assert np.getdeferred() is state
    assert np.geterr() == errors
