"""
Arrays to hand to compiled code: pending ones, and operands of pending ones.

Everything is made anew at every call, from seeds: a test runs its function
without and with deferral, and each time the arrays must hold the same values.
"""

import os
import threading

import numpy as np
import pytest

#: Below this, results run at once; np.deferred has no name for it.
MIN_BYTES = int(os.environ.get("NUMPY_DEFERRED_MIN_BYTES", 32768))

#: Elements of a vector: a few, 64 KiB, and 4 MiB of doubles. The memory of each
#: is another kind: within a page, copied to its place, moved to its place.
LENGTHS = {"small": 60, "64KiB": 8192, "4MiB": 2**19}
#: And of a matrix.
SQUARES = {"small": (8, 8), "64KiB": (90, 91), "4MiB": (720, 730)}

lengths = pytest.mark.parametrize("n", LENGTHS.values(), ids=LENGTHS)
#: For code that keeps the address of a pending array till after its calculation:
#: that ends the process when the array is smaller than a page (doc/extensions.rst).
larger_lengths = pytest.mark.parametrize(
    "n", [*LENGTHS.values()][1:], ids=[*LENGTHS][1:]
)
squares = pytest.mark.parametrize("shape", SQUARES.values(), ids=SQUARES)


def dtypes(*names):
    return pytest.mark.parametrize("dtype", names or ["f8", "f4", "c16", "i8"])


def regular(shape, dtype="f8", order="C", seed=0):
    """An ordinary array of noise."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        values = rng.integers(0 if dtype.kind == "u" else -50, 50, shape)
    elif dtype.kind == "b":
        values = rng.integers(0, 2, shape)
    elif dtype.kind == "c":
        values = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    else:
        values = rng.standard_normal(shape)
    result = np.array(values, dtype, order=order)
    np.deferred.calculate(result)
    return result


def handed(x):
    """`x`, which must be pending if deferral is on, to be handed over now."""
    pending = np.getdeferred() is True and x.nbytes >= MIN_BYTES
    # By default, where a library has all protected, what is smaller may run at once.
    may_run_at_once = (
        MIN_BYTES > 0 and x.nbytes < 2**22 and np.deferred.get_protect_limit() == 0
    )
    if x.flags.deferred != pending and not (pending and may_run_at_once):
        raise AssertionError(
            f"an array of {x.nbytes} bytes is deferred: {x.flags.deferred}"
        )
    return x


def pending(shape, dtype="f8", order="C", seed=0):
    """A pending array, of an expression of two operations."""
    a = regular(shape, dtype, order, seed)
    b = regular(shape, dtype, order, seed + 1000)
    if np.dtype(dtype).kind == "b":
        return handed((a ^ b) | b)
    return handed(a * b + a)


def positive(shape, dtype="f8", order="C", seed=0):
    """A pending array of values between 1 and a few."""
    return made(lambda a: np.abs(a) + 1, shape, dtype, order, seed)


def view(shape, dtype="f8", seed=0):
    """Every second row of a larger array that was pending."""
    whole = pending((2 * shape[0], *shape[1:]), dtype, seed=seed)
    return whole[::2]


def operand_of(expression, shape, dtype="f8", order="C", seed=0):
    """A regular array, and a pending one that reads it."""
    a = regular(shape, dtype, order, seed)
    return a, handed(expression(a))


def made(expression, shape, dtype="f8", order="C", seed=0):
    """
    A pending array that `expression` makes of a regular one.

    The regular one has a name here: eager NumPy writes the result of an operation
    into an operand that nobody has, and that is not deferred.
    """
    return operand_of(expression, shape, dtype, order, seed)[1]


def in_threads(call, *args, nthreads=4):
    """What `call` returned in each of several threads that started together."""
    results = [None] * nthreads
    errors = []
    start = threading.Barrier(nthreads)
    state = np.getdeferred()

    def run(i):
        with np.deferredstate(state):
            start.wait()
            try:
                results[i] = call(*args)
            except BaseException as exc:
                errors.append(exc)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(nthreads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return tuple(results)
