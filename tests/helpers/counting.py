"""What np.deferred.stats() counted during a block."""

import contextlib
from types import SimpleNamespace

import numpy as np


@contextlib.contextmanager
def counted():
    """Yields an object that has the differences as attributes after the block."""
    counters = SimpleNamespace()
    before = np.deferred.stats()
    yield counters
    after = np.deferred.stats()
    for name, value in after.items():
        setattr(counters, name, value - before[name])
