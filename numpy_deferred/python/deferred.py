"""
Deferred evaluation of ufuncs (NEP 11).

While deferral is on, an elementwise ufunc call returns an ordinary `ndarray`
whose values are not calculated yet.  Whatever reads the values calculates
them: the whole expression behind the array in one pass over its operands,
in blocks that fit the cache, without temporary arrays, and with exactly the
bits that NumPy gives otherwise.

=====================  ====================================================
`setdeferred`          switch deferral on, off, or to follow the error state
`getdeferred`          the current state
`deferredstate`        a context manager and decorator for the state
`calculate`            calculate given arrays now
`calculate_all`        calculate all arrays that are still deferred
`usage_count`          how many pending operations read an array
`stats`                counters, for tests and for the curious
=====================  ====================================================
"""
import functools

from numpy._core import _multiarray_umath as _core

__all__ = [
    "calculate",
    "calculate_all",
    "deferredstate",
    "getdeferred",
    "setdeferred",
    "stats",
    "usage_count",
]

#: The version of the patch series; `numpy.__version__` is upstream's.
__version__ = "1"


def setdeferred(state):
    """
    Set whether ufunc calls are deferred, in the current context.

    Parameters
    ----------
    state : bool or None
        True defers every eligible call, False none.  None defers eligible
        calls made while the floating-point error state ignores all errors
        (see `numpy.errstate`), so that no warning or exception can come later
        than without deferral.  Start-up sets None, or what the environment
        variable ``NUMPY_DEFERRED`` (1, 0 or none) says.

    Returns
    -------
    previous : bool or None
        The state before.

    Raises
    ------
    ValueError
        If `state` is something else.

    See Also
    --------
    deferredstate : set the state for a block of code

    Notes
    -----
    Like the error state, the deferred state belongs to the context
    (:mod:`contextvars`): threads and asyncio tasks have their own.

    Examples
    --------
    >>> import numpy as np
    >>> previous = np.setdeferred(True)
    >>> a = np.arange(3.)
    >>> x = a*a + 1
    >>> x.flags.deferred
    True
    >>> x
    array([1., 2., 5.])
    >>> x.flags.deferred
    False
    >>> np.setdeferred(previous)
    True
    """
    return _core._deferred_set_state(state)


def getdeferred():
    """
    Get the current deferred state.

    Returns
    -------
    state : bool or None
        As last given to `setdeferred` in this context.

    Examples
    --------
    >>> import numpy as np
    >>> with np.deferredstate(False):
    ...     np.getdeferred()
    False
    """
    return _core._deferred_get_state()


class deferredstate:
    """
    Context manager and decorator that sets the deferred state.

    Arrays that are still deferred at the end of the block stay so.

    Parameters
    ----------
    state : bool or None
        As for `setdeferred`.

    Raises
    ------
    ValueError
        If `state` is something else.  It is raised where the object is made.
    RuntimeError
        If an instance is entered a second time.

    Examples
    --------
    >>> import numpy as np
    >>> a, b, c, d = np.ones((4, 1000))
    >>> with np.deferredstate(True):
    ...     x = a*b + c*d
    >>> x.flags.deferred
    True
    >>> x.sum()
    np.float64(2000.0)

    >>> @np.deferredstate(True)
    ... def f(x):
    ...     return x**2 - 3*x + 4
    >>> f(np.arange(3.))
    array([4., 2., 2.])
    """

    __slots__ = ("_entered", "_previous", "_state")

    def __init__(self, state):
        if not (state is None or state is True or state is False):
            raise ValueError(
                f"the deferred state must be True, False or None, not {state!r}")
        self._state = state
        self._entered = False
        self._previous = None

    def __enter__(self):
        if self._entered:
            raise RuntimeError("cannot enter the same deferredstate twice")
        self._entered = True
        self._previous = _core._deferred_set_state(self._state)

    def __exit__(self, exc_type, exc_value, traceback):
        _core._deferred_set_state(self._previous)

    def __call__(self, func):
        state = self._state

        @functools.wraps(func)
        def inner(*args, **kwargs):
            with deferredstate(state):
                return func(*args, **kwargs)

        return inner


def calculate(*arrays):
    """
    Calculate arrays that are deferred; others are left as they are.

    Parameters
    ----------
    *arrays : ndarray
        Arrays of any shape and dtype.

    Raises
    ------
    TypeError
        If an argument is not an ndarray.
    FloatingPointError
        If the error state of an operation says so.  The array stays deferred.

    Examples
    --------
    >>> import numpy as np
    >>> with np.deferredstate(True):
    ...     x = np.ones(3) + 1
    >>> np.deferred.calculate(x)
    >>> x.flags.deferred
    False
    """
    _core._deferred_calculate(*arrays)


def calculate_all():
    """
    Calculate all arrays that are deferred, the newest first.

    An array whose calculation raises does not stop the others; the first
    exception is raised at the end.

    Examples
    --------
    >>> import numpy as np
    >>> with np.deferredstate(True):
    ...     x = np.ones(3) + 1
    ...     y = x * 2
    >>> np.deferred.calculate_all()
    >>> x.flags.deferred, y.flags.deferred
    (False, False)
    """
    _core._deferred_calculate_all()


def usage_count(a):
    """
    Count the uses of an array as an operand of pending operations.

    Parameters
    ----------
    a : ndarray
        An array of any shape and dtype; it is not calculated.

    Returns
    -------
    count : int
        ``b + b`` counts twice for ``b``.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.ones(3)
    >>> with np.deferredstate(True):
    ...     x = a + 1
    >>> np.deferred.usage_count(a)
    1
    >>> del x
    >>> np.deferred.usage_count(a)
    0
    """
    return _core._deferred_usage_count(a)


def stats():
    """
    Counters of this process.

    Returns
    -------
    counters : dict of str to int
        ``pending``, the deferred arrays alive, and since the start:
        ``captured``, operations deferred; ``calculated``, arrays calculated;
        ``fused``, expressions evaluated straight into an existing array;
        ``released``, arrays dropped without being calculated; ``flushed``,
        writes that made the readers of the memory be calculated first;
        ``late``, arrays calculated because of a read that no hook announced.

    Examples
    --------
    >>> import numpy as np
    >>> before = np.deferred.stats()["captured"]
    >>> with np.deferredstate(True):
    ...     x = np.ones(3) + 1
    >>> np.deferred.stats()["captured"] - before
    1
    """
    return _core._deferred_stats()
