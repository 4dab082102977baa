"""
Work with deferred arrays (NEP 11).

While deferral is on (see `numpy.setdeferred`), an elementwise ufunc call
returns an ordinary `ndarray` whose values are not calculated yet.  Whatever
reads the values calculates them: the whole expression behind the array in one
pass over its operands, in blocks that fit the cache, without temporary arrays,
and with exactly the bits that NumPy gives otherwise.  Nothing in this module
is needed for that; it is for those who want to say when, or to see what.

========================  ==================================================
`calculate`               calculate given arrays now
`calculate_all`           calculate all arrays that are still deferred
`explain`                 what is pending behind an array, and how it will run
`profile`                 what was calculated in a block, and why
`progress`                show how far long calculations are
`usage_count`             how many pending operations read an array
`set_memory_limit`        bound the memory that pending operations keep alive
`get_memory_limit`        the bound
`set_cache_limit`         bound the memory that is kept for new results
`get_cache_limit`         the bound
`set_protect_limit`       size from which operands are protected against writes
                          by compiled code
`get_protect_limit`       the size
`set_num_threads`         how many threads calculate together
`get_num_threads`         their number
`register_threadpoolctl`  have threadpoolctl know of these threads
`stats`                   counters, for tests and for the curious
========================  ==================================================
"""

from numpy._core import _multiarray_umath as _core
from numpy._core._explain import Explanation
from numpy._core._profile import Calculation, profile
from numpy._core._progress import progress

__all__ = [
    "Calculation",
    "Explanation",
    "calculate",
    "calculate_all",
    "explain",
    "get_cache_limit",
    "get_memory_limit",
    "get_num_threads",
    "get_protect_limit",
    "profile",
    "progress",
    "register_threadpoolctl",
    "set_cache_limit",
    "set_memory_limit",
    "set_num_threads",
    "set_protect_limit",
    "stats",
    "usage_count",
]

#: The version of the patch series; `numpy.__version__` is upstream's.
__version__ = "1"


def calculate(*arrays):
    """
    Calculate arrays that are deferred; others are left as they are.

    Those of one shape that read the same memory, or each other, come out of one sweep
    over it, as far as their operations cannot raise.

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
    ...     x = np.ones(10_000) + 1
    >>> np.deferred.calculate(x)
    >>> x.flags.deferred
    False

    Both read ``a``, which is gone through once:

    >>> a = np.arange(10_000.0)
    >>> with np.errstate(all="ignore"), np.deferredstate(True):
    ...     total, product = a + 1, a * 2
    ...     with np.deferred.profile() as p:
    ...         np.deferred.calculate(total, product)
    >>> [(event.arrays, event.expression) for event in p.events]
    [(2, 'multiply(a0, 2.0); add(a0, 1.0)')]
    """
    _core._deferred_calculate(*arrays)


def calculate_all():
    """
    Calculate all arrays that are deferred, the newest first; and in one sweep what
    `calculate` would so calculate.

    An array whose calculation raises does not stop the others; the first
    exception is raised at the end.

    Examples
    --------
    >>> import numpy as np
    >>> with np.deferredstate(True):
    ...     x = np.ones(10_000) + 1
    ...     y = x * 2
    >>> np.deferred.calculate_all()
    >>> x.flags.deferred, y.flags.deferred
    (False, False)
    """
    _core._deferred_calculate_all()


def explain(a):
    """
    Explain what is pending behind an array, and how it will be calculated.

    Parameters
    ----------
    a : ndarray
        An array of any shape and dtype; it is not calculated.

    Returns
    -------
    explanation : Explanation
        To be printed, shown in a notebook, drawn (``explanation.svg()``), or looked
        into, see `Explanation`.

    Raises
    ------
    TypeError
        If `a` is not an ndarray.

    Examples
    --------
    >>> import numpy as np
    >>> a, b = np.ones(10_000), np.ones(10_000)
    >>> with np.errstate(all="ignore"), np.deferredstate(True):
    ...     x = 2 * a - b
    ...     print(np.deferred.explain(x))
    float64 array of shape (10000,): 2 operations pending on 2 operands
      a0  operand            float64  (10000,)  strides (8,)
      a1  operand            float64  (10000,)  strides (8,)
      t0  multiply(2.0, a1)  float64  (10000,)
      t1  subtract(t0, a0)   float64  (10000,)
    2 steps in 1 loop in blocks of 4,096 elements, along memory, 1 thread
    160,000 bytes read, 80,000 written, 80,000 of temporary arrays avoided
    """
    return Explanation(a)


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
    >>> a = np.ones(10_000)
    >>> with np.deferredstate(True):
    ...     x = a + 1
    >>> np.deferred.usage_count(a)
    1
    >>> del x
    >>> np.deferred.usage_count(a)
    0
    """
    return _core._deferred_usage_count(a)


def set_memory_limit(nbytes):
    """
    Bound the memory that only pending operations keep alive.

    An array that is dropped stays alive while a pending operation reads it.
    When all such memory together exceeds the bound, the oldest deferred arrays
    are calculated, which lets it go.  This is looked at when an operation is
    deferred; its own operands count from the next one on.  Whatever the bound,
    one expression never keeps much more than four times the memory of its
    result alive.

    Parameters
    ----------
    nbytes : int
        The bound in bytes.  At start-up it is 1 GiB, or what the environment
        variable ``NUMPY_DEFERRED_MEMORY_BYTES`` says.

    Returns
    -------
    previous : int
        The bound before, in bytes.

    Raises
    ------
    ValueError
        If `nbytes` is negative.
    TypeError
        If it is not an integer.

    See Also
    --------
    stats : ``held`` is the memory in question

    Examples
    --------
    >>> import numpy as np
    >>> previous = np.deferred.set_memory_limit(2**20)
    >>> with np.deferredstate(True):
    ...     results = [np.ones(100_000) + i for i in range(10)]
    >>> np.deferred.stats()["held"] <= 2 * results[0].nbytes
    True
    >>> np.deferred.set_memory_limit(previous)
    1048576
    """
    return _core._deferred_set_memory_limit(nbytes)


def get_memory_limit():
    """
    Get the bound on memory that only pending operations keep alive.

    Returns
    -------
    nbytes : int
        As last given to `set_memory_limit`.

    Examples
    --------
    >>> import numpy as np
    >>> np.deferred.get_memory_limit() == np.deferred.set_memory_limit(2**30)
    True
    """
    return _core._deferred_get_memory_limit()


def set_cache_limit(nbytes):
    """
    Bound the memory that is kept for new results.

    Memory fresh from the operating system costs more than arithmetic: it comes
    in pages that are cleared one by one.  When an array that was deferred dies,
    its memory is therefore kept for the next result of about its size, and given
    back when more than the bound is kept, the oldest first.  Memory of results
    of less than a page (4 KiB) is not kept here.

    Parameters
    ----------
    nbytes : int
        The bound in bytes; 0 keeps nothing.  At start-up it is 256 MiB, or what
        the environment variable ``NUMPY_DEFERRED_CACHE_BYTES`` says.

    Returns
    -------
    previous : int
        The bound before, in bytes.

    Raises
    ------
    ValueError
        If `nbytes` is negative.
    TypeError
        If it is not an integer.

    See Also
    --------
    stats : ``cached`` is what is kept now

    Examples
    --------
    >>> import numpy as np
    >>> previous = np.deferred.set_cache_limit(0)
    >>> np.deferred.stats()["cached"]
    0
    >>> np.deferred.set_cache_limit(previous)
    0
    """
    return _core._deferred_set_cache_limit(nbytes)


def get_cache_limit():
    """
    Get the bound on memory that is kept for new results.

    Returns
    -------
    nbytes : int
        As last given to `set_cache_limit`.

    Examples
    --------
    >>> import numpy as np
    >>> np.deferred.get_cache_limit() == np.deferred.set_cache_limit(2**28)
    True
    """
    return _core._deferred_get_cache_limit()


def set_protect_limit(nbytes):
    """
    Set the size from which operands are protected against unseen writes.

    What NumPy writes it sees: the arrays that depend on the memory are calculated
    first.  Compiled code that takes the address out of an array and writes there
    tells nobody.  While pending operations read memory of this many bytes or more,
    its pages are therefore write-protected; the first write has what depends on
    it calculated, and goes on.

    That costs about as much as a simple operation where memory comes in pages of
    4 KiB, and little in huge pages, which large arrays have where the system grants
    them.  The memory of operands below the limit is not protected; they are marked as
    not writeable, for code that looks at the flag in the array structure.  Calls of
    f2py's wrappers, pybind11's ``array_t`` and Numba's functions have what reads such
    memory calculated first.  Set the limit to 0 for a program in which other
    compiled code, Cython's ``arr.data`` for instance, writes into arrays of any size.

    Parameters
    ----------
    nbytes : int
        The size in bytes of the memory, for operands of operations written from
        now on.  At start-up it is what the environment variable
        ``NUMPY_DEFERRED_PROTECT_BYTES`` says, or 256 MiB; without the variable, it
        becomes 0 when PyTorch or OpenCV is imported, whose writes are not foreseen,
        and results below 4 MiB are not deferred then.  A call ends that.

    Returns
    -------
    previous : int
        The size before, in bytes.

    Raises
    ------
    ValueError
        If `nbytes` is negative.
    TypeError
        If it is not an integer.

    Notes
    -----
    A system call that writes into protected memory fails with ``EFAULT``: that of
    an extension which reads a file into an operand without asking for a buffer.
    Nothing is protected where the fault handler is off or cannot be had, see
    ``NUMPY_DEFERRED_GUARD``.

    Examples
    --------
    >>> import numpy as np
    >>> previous = np.deferred.set_protect_limit(0)
    >>> a = np.ones(10_000)
    >>> with np.deferredstate(True):
    ...     x = a + 1
    >>> # compiled code may write to a here
    >>> np.deferred.set_protect_limit(previous)
    0
    """
    return _core._deferred_set_protect_limit(nbytes)


def get_protect_limit():
    """
    Get the size from which operands are protected against unseen writes.

    Returns
    -------
    nbytes : int
        As last given to `set_protect_limit`; what that says of the start else.

    Examples
    --------
    >>> import numpy as np
    >>> np.deferred.get_protect_limit() == np.deferred.set_protect_limit(2**28)
    True
    """
    return _core._deferred_get_protect_limit()


def set_num_threads(n):
    """
    Set how many threads may work on one calculation.

    Large expressions are calculated by several threads at once, each a part of
    the elements.  The bits of the result do not depend on how many there are.

    Parameters
    ----------
    n : int
        At least 1, which uses the calling thread alone; more than 256 count as
        256.  At start-up it is what the environment variable
        ``NUMPY_DEFERRED_NUM_THREADS`` says, else ``OMP_NUM_THREADS``, else the
        number of processors that the process may use.

    Returns
    -------
    previous : int
        The number before.

    Raises
    ------
    ValueError
        If `n` is less than 1.
    TypeError
        If it is not an integer.

    Examples
    --------
    >>> import numpy as np
    >>> previous = np.deferred.set_num_threads(1)
    >>> np.deferred.get_num_threads()
    1
    >>> np.deferred.set_num_threads(previous)
    1
    """
    return _core._deferred_set_num_threads(n)


def get_num_threads():
    """
    Get how many threads may work on one calculation.

    Returns
    -------
    n : int
        As last given to `set_num_threads`, but at most 256.

    Examples
    --------
    >>> import numpy as np
    >>> np.deferred.get_num_threads() >= 1
    True
    """
    return _core._deferred_get_num_threads()


def register_threadpoolctl():
    """
    Have the package threadpoolctl list and limit the threads of calculations.

    From here on `threadpoolctl.threadpool_info` has an entry with the ``user_api``
    ``"numpy_deferred"``, and `threadpoolctl.threadpool_limits` sets the number of
    threads as `set_num_threads` does, for the whole process, and puts it back.
    Further calls do nothing.

    Raises
    ------
    ImportError
        If threadpoolctl is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> import threadpoolctl
    >>> np.deferred.register_threadpoolctl()
    >>> with threadpoolctl.threadpool_limits(1, user_api="numpy_deferred"):
    ...     np.deferred.get_num_threads()
    1
    """
    from numpy._core import _threadpool  # which imports threadpoolctl

    _threadpool.register()


def stats():
    """
    Counters of this process.

    Returns
    -------
    counters : dict of str to int
        ``pending``, the deferred arrays alive; ``held``, the bytes that nothing
        but pending operations keeps alive; ``cached``, the bytes kept for new
        results; and since the start:
        ``captured``, operations deferred; ``exposed``, operations that ran at once
        because code that NumPy cannot see may write to the memory of an input (it
        has the address, or the memory is not NumPy's); ``calculated``, arrays
        calculated;
        ``fused``, expressions evaluated straight into an existing array;
        ``reduced``, expressions evaluated by a reduction, and stored nowhere;
        ``together``, of the arrays calculated, those in one sweep with others;
        ``released``, arrays dropped without being calculated; ``flushed``,
        writes that made the readers of the memory be calculated first;
        ``late``, reads and writes that no hook announced and that made arrays be
        calculated, as of compiled code that was built without this NumPy's headers;
        ``compiled``, parts of expressions that were made machine code.

    Examples
    --------
    >>> import numpy as np
    >>> before = np.deferred.stats()["captured"]
    >>> with np.deferredstate(True):
    ...     x = np.ones(10_000) + 1
    >>> np.deferred.stats()["captured"] - before
    1
    """
    return _core._deferred_stats()
