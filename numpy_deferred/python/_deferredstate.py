"""
The switch for deferred evaluation: `setdeferred` and its kin (NEP 11).

The state itself is a context variable of the C core (numpy_deferred/src/state.c).
"""

import functools

from numpy._core import _multiarray_umath as _umath
from numpy._utils import set_module

__all__ = ["deferredstate", "getdeferred", "setdeferred"]


@set_module("numpy")
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
    Results of less than 32 KiB are computed at once, as deferring them does not
    pay; the environment variable ``NUMPY_DEFERRED_MIN_BYTES`` gives another limit.

    Like the error state, the deferred state belongs to the context
    (:mod:`contextvars`): threads and asyncio tasks have their own.

    Examples
    --------
    >>> import numpy as np
    >>> previous = np.setdeferred(True)
    >>> a = np.arange(10_000.)
    >>> x = a*a + 1
    >>> x.flags.deferred
    True
    >>> x[:3]
    array([1., 2., 5.])
    >>> x.flags.deferred
    False
    >>> np.setdeferred(previous)
    True
    """
    return _umath._deferred_set_state(state)


@set_module("numpy")
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
    return _umath._deferred_get_state()


@set_module("numpy")
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
    >>> a, b, c, d = np.ones((4, 10_000))
    >>> with np.deferredstate(True):
    ...     x = a*b + c*d
    >>> x.flags.deferred
    True
    >>> x.sum()
    np.float64(20000.0)

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
                f"the deferred state must be True, False or None, not {state!r}"
            )
        self._state = state
        self._entered = False
        self._previous = None

    def __enter__(self):
        if self._entered:
            raise RuntimeError("cannot enter the same deferredstate twice")
        self._entered = True
        self._previous = _umath._deferred_set_state(self._state)

    def __exit__(self, exc_type, exc_value, traceback):
        _umath._deferred_set_state(self._previous)

    def __call__(self, func):
        state = self._state

        @functools.wraps(func)
        def inner(*args, **kwargs):
            with deferredstate(state):
                return func(*args, **kwargs)

        return inner
