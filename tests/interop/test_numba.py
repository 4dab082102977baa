"""Numba: compiled functions that get `data` out of the struct."""

import numpy as np
import pytest

from helpers.compare import assert_same
from helpers.handover import (
    dtypes,
    handed,
    in_threads,
    larger_lengths,
    lengths,
    operand_of,
    pending,
    positive,
    regular,
    squares,
    view,
)

numba = pytest.importorskip("numba")


@numba.njit
def total(a):
    s = a.flat[0] * 0
    for x in a.flat:
        s += x
    return s


@numba.njit(nogil=True)
def total_nogil(a):
    s = 0.0
    for i in range(a.shape[0]):
        s += a[i]
    return s


@numba.njit(parallel=True)
def doubled_parallel(a):
    out = np.empty_like(a)
    for i in numba.prange(a.shape[0]):
        out[i] = a[i] * 2
    return out


@numba.njit
def scale(a, factor):
    for i in range(a.shape[0]):
        a[i] *= factor


@numba.njit("void(float64[::1], float64)")
def scale_declared(a, factor):
    """Its types are told: nobody looks at the flags of what comes in."""
    for i in range(a.shape[0]):
        a[i] *= factor


@numba.njit("float64(float64[:, :])")
def total_declared(a):
    return a.sum()


@numba.njit
def same(a):
    return a


@numba.njit
def part(a):
    return a[1::2]


@numba.njit
def pair(a, b):
    return a, b, a * b + 1


@numba.vectorize
def formula(x, y):
    return x * y + 1


@numba.vectorize(["float64(float64, float64)"], target="parallel")
def formula_parallel(x, y):
    return x - 2 * y


@numba.vectorize(["float64(float64)", "float32(float32)"], nopython=True)
def cubed(x):
    return x * x * x


@numba.guvectorize(["(float64[:], float64[:])"], "(n)->(n)")
def running(a, out):
    s = 0.0
    for i in range(a.shape[0]):
        s += a[i]
        out[i] = s


@numba.stencil
def smoothed(a):
    return (a[-1] + a[0] + a[1]) / 3


@lengths
@dtypes("f8", "f4", "c16", "i8", "u1", "?")
def test_read(n, dtype):
    def work():
        x = pending(n, dtype)
        return total(x) if dtype != "?" else same(x).sum(), x

    assert_same(work)


@squares
@pytest.mark.parametrize("order", ["C", "F"])
def test_layouts(shape, order):
    def work():
        x = pending(shape, order=order)
        y = handed(x + 1)
        return total(y), total(x.T), total(view(shape)), total_declared(y + 1), x, y

    assert_same(work)


@pytest.mark.parametrize("function", [scale, scale_declared])
@lengths
def test_write_into_a_pending_array(function, n):
    def work():
        x = pending(n)
        function(x, 3.0)
        return x

    assert_same(work)


@pytest.mark.parametrize("function", [scale, scale_declared])
@lengths
def test_write_into_what_was_pending(function, n):
    def work():
        x = pending(n)
        function(x, 3.0)
        y = handed(x + 1)
        function(x, 2.0)
        z = handed(x + 1)
        function(x, 2.0)
        return x, y, z

    assert_same(work)


@pytest.mark.parametrize("function", [scale, scale_declared])
@lengths
def test_write_into_an_operand(function, n):
    def work():
        a, x = operand_of(lambda a: a * 2, n)
        function(a, 3.0)
        y = handed(a + x)
        function(a, 5.0)
        return a, x, y

    assert_same(work)


@pytest.mark.parametrize("function", [scale, scale_declared])
@lengths
def test_write_into_views(function, n):
    def work():
        a = regular(2 * n)
        whole, half = handed(a * 2), handed(a[n:] * 3)
        function(a[:n], 3.0)
        b, x = operand_of(lambda b: b[n:] * 2, 2 * n)
        function(b, 3.0)
        return a, whole, half, b, x

    assert_same(work)


def test_read_only():
    """What Numba learns from an operand it does not hold of read-only arrays."""
    with np.deferredstate(True):
        a, x = operand_of(lambda a: a * 2, 9000)
        total(a)
        del x
    read_only = regular(9000)
    read_only.flags.writeable = False
    with pytest.raises(numba.TypingError, match="readonly"):
        scale(read_only, 3.0)
    with pytest.raises(TypeError, match="No matching definition"):
        scale_declared(read_only, 3.0)


@larger_lengths
def test_returned(n):
    """Arrays that come back share the memory of those that went in."""

    def work():
        x = pending(n)
        y, z = same(x), part(x)
        w = handed(y * 2)
        y[1] = 100.0
        u = z + 1
        z[0] = -1.0
        return x, y, z, w, u

    assert_same(work)


@lengths
def test_returned_shares_memory(n):
    """What overlaps must be known to, or assignments go in the wrong order."""

    def work():
        x = pending(n)
        z = part(x)
        np.deferred.calculate(x)
        return np.shares_memory(x, z)

    assert_same(work)


@larger_lengths
def test_several(n):
    assert_same(lambda: pair(pending(n), pending(n, seed=1)))


@lengths
def test_parallel(n):
    """The first touch comes from threads that are no Python threads."""
    assert_same(lambda: doubled_parallel(pending(n)))


@lengths
def test_threads(n):
    assert_same(lambda: in_threads(total_nogil, pending(n)))


@lengths
def test_vectorize(n):
    """These are ufuncs: they may be deferred themselves."""

    def work():
        x, y = pending(n), pending(n, seed=1)
        z = formula(x, y)
        w = formula_parallel(x, z + 1)
        return x, y, z, w, cubed(w), cubed(pending(n, "f4")), formula(z, 2)

    assert_same(work)


@lengths
def test_vectorize_into_an_operand(n):
    def work():
        out, x = operand_of(lambda out: out - 1, n)
        cubed(pending(n), out=out)
        return out, x

    assert_same(work)


@squares
def test_guvectorize(shape):
    def work():
        out, x = operand_of(lambda out: out - 1, shape)
        running(pending(shape), out)
        return out, x, running(handed(x * 2))

    assert_same(work)


@lengths
def test_stencil(n):
    assert_same(lambda: smoothed(pending(n)))


@lengths
def test_numpy_inside(n):
    """NumPy's functions as Numba has written them anew."""

    @numba.njit
    def several(a):
        return np.sort(a), np.cumsum(a), np.sqrt(a), a.mean(), np.argmax(a), a[a > 1]

    assert_same(lambda: several(positive(n)))


@squares
def test_linear_algebra_inside(shape):
    """BLAS and LAPACK, which Numba takes from SciPy."""
    pytest.importorskip("scipy")

    @numba.njit
    def several(a):
        return np.dot(a, a.T), np.linalg.norm(a)

    assert_same(lambda: several(pending(shape)))


def test_typed_containers():
    def work():
        x = pending(9000)
        arrays = numba.typed.List()
        arrays.append(x)
        y = handed(x + 1)
        arrays[0][0] = 5.0
        return x, y, total(arrays[0])

    assert_same(work)


def test_jitclass():
    @numba.experimental.jitclass([("values", numba.float64[::1])])
    class Holder:
        def __init__(self, values):
            self.values = values

        def set(self, i, value):
            self.values[i] = value

        def get(self, i):
            return self.values[i]

    def work():
        x = pending(9000)
        holder = Holder(x)
        first = holder.get(3)
        holder.set(1, 100.0)
        return first, x, x + 1

    assert_same(work)


@lengths
def test_jitclass_that_holds_an_operand(n):
    """The holder writes after the array became an operand; no call hands it over."""

    @numba.experimental.jitclass([("values", numba.float64[::1])])
    class Holder:
        def __init__(self, values):
            self.values = values

        def set(self, i, value):
            self.values[i] = value

    def work():
        a = regular(n)
        holder = Holder(a)
        x = a * 2
        holder.set(1, 100.0)
        return x, a

    assert_same(work)


def test_objmode():
    """A deferred array is made in the middle of compiled code."""

    @numba.njit
    def mixed(a):
        with numba.objmode(b="float64[::1]"):
            b = handed(a * 2 + 1)
        return b.sum(), b

    assert_same(lambda: mixed(pending(9000)))


def test_cfunc_and_carray():
    @numba.cfunc("float64(CPointer(float64), intp)")
    def callback(p, n):
        return numba.carray(p, n).sum()

    def work():
        x = pending(9000)
        return callback.ctypes(x.ctypes.data_as(callback.ctypes.argtypes[0]), 9000)

    assert_same(work)
