"""
The switch for deferred evaluation: `setdeferred` and its kin (NEP 11), and
`begin_defer` and its kin (the proposal of 2006).

The state and the innermost scope are context variables of the C core
(numpy_deferred/src/state.c and scope.c).
"""

import functools
import warnings

from numpy._core import _multiarray_umath as _umath
from numpy._utils import set_module

__all__ = [
    "begin_defer",
    "deferral",
    "deferredstate",
    "end_defer",
    "getdeferred",
    "setdeferred",
]


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
    getdeferred
    deferredstate : set the state for a block of code
    deferral : defer in a block of code, and calculate at its end

    Notes
    -----
    Results of less than 32 KiB, or 64 KiB each of a ufunc with two outputs, are
    computed at once, as deferring them does not pay; the environment variable
    ``NUMPY_DEFERRED_MIN_BYTES`` gives another limit. Unless that is set, or
    ``NUMPY_DEFERRED_HABITS`` is 0, results of less than 256 KiB are, too, of a line of
    code whose results are read as they are.

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

    See Also
    --------
    setdeferred, deferredstate

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
    TypeError
        If an instance is entered a second time.

    See Also
    --------
    setdeferred, getdeferred
    deferral : calculates at the end of the block

    Notes
    -----
    As with `errstate`, the state before is put back at the end whatever was set
    inside, and a decorated generator or async function has the state only while
    the call makes its generator or coroutine.

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

    __slots__ = ("_state", "_token")

    def __init__(self, state):
        if not (state is None or state is True or state is False):
            raise ValueError(
                f"the deferred state must be True, False or None, not {state!r}"
            )
        self._state = state
        self._token = None

    def __enter__(self):
        if self._token is not None:
            raise TypeError("Cannot enter `np.deferredstate` twice.")
        self._token = _umath._deferred_enter_state(self._state)

    def __exit__(self, exc_type, exc_value, traceback):
        _umath._deferred_state.reset(self._token)

    def __call__(self, func):
        state = self._state

        @functools.wraps(func)
        def inner(*args, **kwargs):
            with deferredstate(state):
                return func(*args, **kwargs)

        return inner


@set_module("numpy")
def begin_defer():
    """
    Begin to defer ufunc calls; `end_defer` calculates what was deferred.

    Sets the deferred state to True in the current context. Pairs of `begin_defer`
    and `end_defer` can be nested. `deferral` is the safer way to write a pair.

    See Also
    --------
    end_defer, deferral
    setdeferred : does not calculate anything at the end

    Examples
    --------
    >>> import numpy as np
    >>> b, c, d, e = np.ones((4, 10_000))
    >>> np.begin_defer()
    >>> a = b*c + d*e
    >>> a.flags.deferred
    True
    >>> np.end_defer()
    >>> a.flags.deferred
    False
    """
    scope = _umath._deferred_begin_scope()
    _umath._deferred_scope.set(scope)
    try:
        _umath._deferred_set_state(True)
    except BaseException:
        outer, _, _ = scope
        _umath._deferred_scope.set(outer)
        raise


@set_module("numpy")
def end_defer():
    """
    Calculate what was deferred since `begin_defer`, and put the state back.

    Of the arrays deferred in this context since the matching `begin_defer`, those
    that are still alive and deferred are calculated, the newest first.

    Raises
    ------
    RuntimeError
        If there is no matching `begin_defer` in this context.
    FloatingPointError
        Or another exception that a calculation raises: the first one, after all
        arrays were tried and the state was put back.  The array that it comes
        from stays deferred, and raises again when it is read.

    See Also
    --------
    begin_defer, deferral
    deferred.calculate_all : calculate what is deferred anywhere

    Notes
    -----
    A context is a thread, or an asyncio task (:mod:`contextvars`).  A task begins
    with a copy of the context that made it, and so inside the pairs that were
    begun there; what it defers belongs to them.

    Examples
    --------
    >>> import numpy as np
    >>> np.end_defer()
    Traceback (most recent call last):
        ...
    RuntimeError: np.end_defer() without np.begin_defer() in this context
    """
    scope = _umath._deferred_scope.get()
    if scope is None:
        raise RuntimeError("np.end_defer() without np.begin_defer() in this context")
    outer, state, _ = scope
    # In this order: after a MemoryError it can be called again.
    _umath._deferred_set_state(state)
    _umath._deferred_scope.set(outer)
    _umath._deferred_calculate_scope(scope)


@set_module("numpy")
class deferral:
    """
    Context manager and decorator that defers ufunc calls and calculates at the end.

    At the end of the block the deferred state is what it was before, and all
    arrays that were deferred inside, and that are still alive, are calculated.

    Raises
    ------
    TypeError
        If an instance is entered a second time.
    FloatingPointError
        At the end of the block, or another exception that a calculation raises:
        the first one, after all arrays were tried.  If the block itself raised,
        the arrays are calculated too, but its exception is the one that goes on;
        an array that could not be calculated stays deferred, and raises when it
        is read.

    See Also
    --------
    begin_defer, end_defer
    deferredstate : leaves arrays deferred at the end

    Notes
    -----
    As with `errstate`, the state before is put back at the end whatever was set
    inside, `begin_defer` included, and a decorated generator or async function
    defers only while the call makes its generator or coroutine.

    Examples
    --------
    >>> import numpy as np
    >>> b, c, d, e = np.ones((4, 10_000))
    >>> with np.deferral():
    ...     a = b*c + d*e
    ...     a.flags.deferred
    True
    >>> a.flags.deferred
    False

    >>> @np.deferral()
    ... def f(x):
    ...     return x**2 - 3*x + 4
    >>> f(np.arange(10_000.)).flags.deferred
    False
    """

    __slots__ = ("_scope", "_scope_token", "_state_token")

    def __init__(self):
        self._scope = None
        self._scope_token = None
        self._state_token = None

    def __enter__(self):
        if self._scope is not None:
            raise TypeError("Cannot enter `np.deferral` twice.")
        self._scope = _umath._deferred_begin_scope()
        self._scope_token = _umath._deferred_scope.set(self._scope)
        try:
            self._state_token = _umath._deferred_enter_state(True)
        except BaseException:
            _umath._deferred_scope.reset(self._scope_token)
            raise

    def __exit__(self, exc_type, exc_value, traceback):
        try:
            try:
                _umath._deferred_scope.reset(self._scope_token)
            finally:
                _umath._deferred_state.reset(self._state_token)
        finally:
            try:
                _umath._deferred_calculate_scope(self._scope)
            except Exception:
                # The block's own exception says more; the array raises again.
                if exc_type is None:
                    raise

    def __call__(self, func):
        @functools.wraps(func)
        def inner(*args, **kwargs):
            with deferral():
                return func(*args, **kwargs)

        return inner


def _warn(filters, show, show_message, text, filename, line, module, registry):
    """
    Warn as it was done where filters and functions of `warnings` were these:
    in a block of `warnings.catch_warnings`, which may have ended since.
    """
    with warnings.catch_warnings():
        warnings.filters = filters
        warnings.showwarning = show
        warnings._showwarnmsg_impl = show_message
        warnings.warn_explicit(text, RuntimeWarning, filename, line, module, registry)
