"""
The pool of threads as threadpoolctl, which this module needs, sees it.

threadpoolctl finds libraries by the names of the files that the process has loaded;
ours is NumPy's core.  The number of threads is set by Python, as the core exports no
symbol but its initialisation.
"""

import functools

import threadpoolctl
from numpy._core import _multiarray_umath as _core


class DeferredController(threadpoolctl.LibController):
    """`numpy.deferred.set_num_threads` and `get_num_threads`."""

    user_api = "numpy_deferred"
    internal_api = "numpy_deferred"
    filename_prefixes = ("_multiarray_umath",)

    def get_num_threads(self):
        return _core._deferred_get_num_threads()

    def set_num_threads(self, num_threads):
        _core._deferred_set_num_threads(num_threads)

    def get_version(self):
        import numpy.deferred

        return numpy.deferred.__version__


@functools.cache
def register():
    """Make it known to threadpoolctl, once."""
    threadpoolctl.register(DeferredController)
