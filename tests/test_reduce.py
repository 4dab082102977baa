"""Reductions of deferred arrays: eager NumPy's bits, and nothing is stored."""

import itertools
import math
import tracemalloc
import warnings

import numpy as np
import pytest

from helpers.compare import assert_same, comparison
from helpers.counting import counted
from helpers.layouts import LAYOUTS, contiguous, operand

ARITHMETIC = [np.add, np.multiply, np.maximum, np.minimum, np.fmax, np.fmin]
LOGICAL = [np.logical_and, np.logical_or, np.logical_xor]
BITWISE = [np.bitwise_and, np.bitwise_or, np.bitwise_xor]
UFUNCS = [*ARITHMETIC, *LOGICAL, *BITWISE]
DTYPES = "?bBhHiIlLqQefdgFDG"
FLOATS = "efdgFDG"
#: Around what pairwise sums, pieces, and the buffers of iterators divide by.
SIZES = [1, 2, 7, 8, 9, 63, 64, 65, 127, 128, 129, 130, 1000]
LONG_SIZES = [1023, 1024, 1025, 2048, 2049, 4097, 8191, 8192, 8193, 20000]
SHAPES = [
    (3, 5),
    (5, 3),
    (1, 130),
    (130, 1),
    (40, 33),
    (2, 9000),
    (9000, 2),
    (3, 4, 5),
    (7, 1, 9),
    (2, 3000, 3),
    (2, 3, 4, 5),
]


def ordinary(char, n, seed=1):
    """Values that are nothing special, so that results can be fused."""
    rng = np.random.default_rng(seed)
    if char == "?":
        return rng.random(n) < 0.5
    if char in "efdg":
        return (rng.standard_normal(n) * 3 + 0.25).astype(char)
    if char in "FDG":
        return (rng.standard_normal(n) + 1j * rng.standard_normal(n)).astype(char)
    return rng.integers(0, 100, n).astype(char)


def fill(char, shape, position=0, layout=contiguous):
    return layout(ordinary(char, math.prod(shape), position), shape)


def doubled(x, y):
    """Two operations for every dtype, one of them with a slot."""
    return np.add(np.maximum(x, y), y)


def reduced(ufunc, x, y, keywords):
    return ufunc.reduce(doubled(x, y), **keywords)


def reduced_alone(ufunc, x, axis):
    """One operation, which has no slot."""
    return ufunc.reduce(np.positive(x), axis=axis)


def axes(ndim):
    yield None
    yield ()
    for n in range(1, ndim + 1):
        yield from itertools.combinations(range(ndim), n)


LOOPS = [
    pytest.param(ufunc, char, id=f"{ufunc.__name__}-{char}")
    for ufunc in UFUNCS
    for char in DTYPES
    if ufunc not in BITWISE or char not in FLOATS
]


@pytest.mark.parametrize(("ufunc", "char"), LOOPS)
class TestBits:
    def test_sizes(self, ufunc, char):
        with (
            comparison() as compared,
            np.errstate(all="ignore"),
            counted() as counters,
        ):
            for n in [*SIZES, *LONG_SIZES]:
                x, y = fill(char, (n,), 1), fill(char, (n,), 2)
                compared.same(f"{n}", reduced, ufunc, x, y, {})
        # Long sums of halves, and products that overflow, are for eager NumPy.
        short = ufunc is np.multiply or (char == "e" and ufunc is np.add)
        assert counters.reduced >= len(SIZES if short else SIZES + LONG_SIZES) - 2

    def test_special_values(self, ufunc, char):
        with comparison() as compared, np.errstate(all="ignore"):
            for n in [*SIZES, 1025, 8193]:
                x, y = operand(char, (n,), 0), operand(char, (n,), 1)
                compared.same(f"{n}", reduced, ufunc, x, y, {})
                name = f"{n}, alone"
                if char != "?":
                    compared.same(name, reduced_alone, ufunc, x, None)

    def test_shapes_and_axes(self, ufunc, char):
        with comparison() as compared, np.errstate(all="ignore"):
            for shape in SHAPES:
                x, y = fill(char, shape, 1), fill(char, shape, 2)
                for axis in axes(len(shape)):
                    for keepdims in (False, True):
                        keywords = {"axis": axis, "keepdims": keepdims}
                        name = f"{shape}, {keywords}"
                        compared.same(name, reduced, ufunc, x, y, keywords)

    def test_layouts(self, ufunc, char):
        with comparison() as compared, np.errstate(all="ignore"):
            for layout in LAYOUTS:
                for shape in [(40, 33), (3, 70, 5)]:
                    x, y = fill(char, shape, 1, layout), fill(char, shape, 2)
                    alike = fill(char, shape, 3, layout)
                    for axis in (None, *range(len(shape))):
                        name = f"{layout.__name__}, {shape}, {axis}"
                        keywords = {"axis": axis}
                        compared.same(name, reduced, ufunc, x, y, keywords)
                        compared.same(name, reduced, ufunc, x, alike, keywords)

    def test_broadcast_operands(self, ufunc, char):
        with comparison() as compared, np.errstate(all="ignore"):
            shape = (60, 1, 150)
            x = fill(char, shape, 1)
            for other in [(150,), (60, 1, 1), (1,), (7, 1), (60, 7, 150)]:
                y = fill(char, other, 2)
                for axis in axes(3):
                    name = f"{other}, {axis}"
                    compared.same(name, reduced, ufunc, x, y, {"axis": axis})

    @pytest.mark.parametrize("initial", [None, 0, 1, 3, True, 2.5, -0.0, "same"])
    def test_initial(self, ufunc, char, initial):
        if initial == "same":
            initial = np.dtype(char).type(3)
        with comparison() as compared, np.errstate(all="ignore"):
            for shape in [(7,), (3000,), (40, 33), (9000, 2), (2, 9000), (3, 70, 5)]:
                x, y = fill(char, shape, 1), fill(char, shape, 2)
                for axis in (None, 0, -1):
                    keywords = {"axis": axis, "initial": initial}
                    compared.same(f"{shape}, {axis}", reduced, ufunc, x, y, keywords)


CASTS = [
    (given, to)
    for given in DTYPES
    for to in "?ldfgDF"
    if np.dtype(given) != np.dtype(to)
]


@pytest.mark.parametrize("char", "fd")
@pytest.mark.parametrize(
    "length", [3, 7, 8, 9, 64, 65, 100, 127, 128, 129, 200, 316, 513]
)
def test_sums_of_short_rows(char, length, num_threads):
    """Some of which are added up at the same time; a NaN is of one row alone."""
    with comparison() as compare:
        for rows in (1, 3, 4, 5, 63, 64, 67, 1000):
            a, b = (fill(char, (rows, length), i) for i in range(2))
            special = a.copy()
            special[rows // 2, -1] = np.nan
            for threads in (1, 2):
                num_threads(threads)
                for name, x in (("ordinary", a), ("special", special)):
                    key = f"{rows} {name} {threads}"
                    compare.same(key, lambda x=x, b=b: (x * b - x).sum(axis=1))
                    compare.same(key, lambda x=x, b=b: (x * b).mean(1, keepdims=True))
                    cube = x.reshape(rows, 1, length), b.reshape(1, rows, length)[:, :2]
                    compare.same(key, lambda cube=cube: (cube[0] + cube[1]).sum(-1))


@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
@pytest.mark.parametrize(("given", "to"), CASTS)
def test_casts(given, to):
    """Eager NumPy casts into a buffer, whose size divides pairwise sums."""
    with comparison() as compared, np.errstate(all="ignore"):
        for shape in [(100,), (8192,), (8193,), (20000,), (3, 9000), (9000, 3)]:
            x, y = fill(given, shape, 1), fill(given, shape, 2)
            for ufunc in (np.add, np.multiply, np.maximum, np.logical_or):
                for axis in (None, 0, -1):
                    for more in ({}, {"initial": None}):
                        keywords = {"axis": axis, "dtype": to, **more}
                        name = f"{ufunc.__name__}, {shape}, {axis}, {more}"
                        compared.same(name, reduced, ufunc, x, y, keywords)


@pytest.mark.parametrize("size", [16, 1000 * 16, 100_000 * 16])
def test_buffer_size(size, rng):
    x = rng.integers(0, 1000, 50_000)
    previous = np.setbufsize(size)
    try:
        with counted() as counters:
            assert_same(lambda: (x * 3).mean())
            assert_same(lambda: (x.astype("f4") * 3).sum(dtype="f8"))
        assert counters.reduced == 2
    finally:
        np.setbufsize(previous)


METHODS = {
    "sum": lambda x: x.sum(),
    "sum axis": lambda x: np.sum(x, axis=0),
    "prod": lambda x: x.prod(axis=-1),
    "mean": lambda x: x.mean(),
    "mean axis": lambda x: np.mean(x, axis=1, keepdims=True),
    "max": lambda x: x.max(),
    "min": lambda x: np.min(x, axis=(0, 1)),
    "any": lambda x: np.any(x),
    "all": lambda x: x.all(axis=0),
    "count": lambda x: np.sum(x > 1),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("char", DTYPES)
def test_methods(name, char):
    x, y = fill(char, (60, 50), 1), fill(char, (60, 50), 2)
    with counted() as counters, np.errstate(all="ignore"):
        assert_same(lambda: METHODS[name](doubled(x, y)))
    # A long sum of halves keeps more than a half; products overflow.
    assert counters.reduced == 1 or name == "prod" or (name, char) == ("sum", "e")


@pytest.mark.parametrize("char", "lefdFD")
@pytest.mark.parametrize("name", ["var", "std", "ptp", "argmax", "cumsum"])
def test_what_goes_through_reductions(name, char):
    x, y = fill(char, (60, 50), 1), fill(char, (60, 50), 2)
    with np.errstate(all="ignore"):
        assert_same(lambda: getattr(np, name)(doubled(x, y), axis=0))
        assert_same(lambda: getattr(np, name)(doubled(x, y)))


SPECIAL = {
    "nan": [np.nan],
    "nans": [np.nan, -np.nan],
    "zeros": [0.0, -0.0],
    "minus zero": [-0.0],
    "infinities": [np.inf, -np.inf],
    "subnormal": [5e-324, -5e-324],
    "huge": [1.7e308, 1.7e308],
}


@pytest.mark.parametrize("at", ["start", "middle", "end", "everywhere"])
@pytest.mark.parametrize("special", SPECIAL)
def test_special_elements(special, at):
    """One or two of them among others that do not decide."""
    some = np.array(SPECIAL[special])
    with comparison() as compared, np.errstate(all="ignore"):
        for n in (20, 1000, 5000):
            for sign in (1, -1, 0):
                x = np.linspace(1, 2, n) * sign
                start = {"start": 0, "middle": n // 2, "end": n - 2}.get(at)
                if start is None:
                    x[:] = np.resize(some, n)
                else:
                    x[start : start + len(some)] = some
                for ufunc in ARITHMETIC:
                    for char in "fdg":
                        y = x.astype(char)
                        name = f"{ufunc.__name__}, {char}, {n}, {sign}"
                        compared.same(name, reduced_alone, ufunc, y, None)
                        square = y.reshape(-1, 10)
                        for axis in (0, 1):
                            axis_name = f"{name}, {axis}"
                            compared.same(axis_name, reduced_alone, ufunc, square, axis)


@pytest.mark.parametrize("char", "efdg")
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_of_one_sign(char, zero):
    """A maximum that is zero is known then, of however many."""
    for size in (9, 5000, 100_000):
        x = np.linspace(0.5, 3, size).astype(char)
        x[::7] = zero
        for sign, ufunc in [(1, np.minimum), (1, np.fmin), (-1, np.maximum)]:
            y = np.where(x == 0, x, np.copysign(x, sign))
            with counted() as counters:
                assert_same(reduced_alone, ufunc, y, None)
                assert_same(reduced_alone, ufunc, y.reshape(1, -1), 0)
                assert_same(reduced_alone, ufunc, y.reshape(1, -1), 1)
            assert counters.reduced == 3
            y[size // 2] = -zero
            y[size // 2 + 1] = zero
            with counted() as counters:
                assert_same(reduced_alone, ufunc, y, None)
            assert counters.reduced == 0


class TestStorage:
    def test_nothing_is_stored(self, deferred):
        n = 1_000_000
        a, b = np.ones(n), np.full(n, 3.0)
        before = np.deferred.stats()["cached"]
        tracemalloc.start()
        try:
            with counted() as counters:
                assert np.sum((a - b) ** 2) == 4.0 * n
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()
        assert np.deferred.stats()["cached"] == before
        assert (counters.reduced, counters.calculated) == (1, 0)
        assert (counters.captured, counters.released) == (2, 2)

    def test_evaluated_twice_makes_it_regular(self, deferred):
        x = np.exp(np.arange(100.0))
        with counted() as counters:
            first = x.sum()
            assert x.flags.deferred
            assert x.max() == np.exp(99.0)
            assert not x.flags.deferred
            assert x.sum() == first
        assert (counters.reduced, counters.calculated) == (1, 1)

    def test_arithmetic_becomes_regular_the_third_time(self, deferred):
        x = np.arange(1000.0) * 2
        with counted() as counters:
            assert np.ptp(x) == 1998
            assert x.flags.deferred
            first = x.sum()
            assert not x.flags.deferred
            assert x.sum() == first
        assert (counters.reduced, counters.calculated) == (2, 1)

    def test_a_part_that_others_need_is_evaluated_once_more(self, deferred):
        x = np.arange(1000.0) * 2
        assert x.sum() == 999000
        y = x + 1
        with counted() as counters:
            assert y.sum() == 1000000
        assert not x.flags.deferred
        assert y.flags.deferred
        assert (counters.reduced, counters.calculated) == (1, 1)

    def test_smaller_parts_are_calculated(self, deferred):
        row = np.arange(50.0) * 2
        x = np.ones((40, 50)) - row
        with counted() as counters:
            assert x.sum() == 40 * (50 - 2450)
        assert not row.flags.deferred
        assert (counters.reduced, counters.calculated) == (1, 1)

    def test_operands_are_let_go_with_the_array(self, deferred):
        a = np.ones(1000)
        x = a + 1
        assert x.sum() == 2000
        assert np.deferred.usage_count(a) == 1
        del x
        assert np.deferred.usage_count(a) == 0
        assert a.flags.writeable

    def test_a_write_in_between(self, deferred):
        a = np.ones(1000)
        x = a + 1
        assert x.sum() == 2000
        a[:] = 5
        assert x.sum() == 2000


class TestDeclined:
    """The array is calculated, and eager NumPy reduces it."""

    @pytest.fixture(autouse=True)
    def not_fused(self):
        with counted() as counters:
            yield
        assert counters.reduced == 0

    def test_out(self):
        assert_same(lambda: np.add.reduce(np.ones(100) * 2, out=np.zeros(())))

    def test_out_that_is_an_operand(self):
        def call():
            a = np.ones((10, 10))
            return np.add.reduce(a * 2, axis=0, out=a[0]), a

        assert_same(call)

    def test_where(self):
        a = np.arange(100.0)
        assert_same(lambda: np.add.reduce(a * 2, where=a > 50))

    def test_other_ufuncs(self):
        a = np.arange(1.0, 100)
        for ufunc in (np.subtract, np.divide, np.hypot, np.arctan2, np.logaddexp):
            assert_same(lambda ufunc=ufunc: ufunc.reduce(a * 2))

    def test_own_ufunc(self):
        add = np.frompyfunc(lambda x, y: x + y, 2, 1)
        a = np.arange(20.0)
        assert_same(lambda: add.reduce(a * 2))

    def test_subclass(self):
        class Sub(np.ndarray):
            pass

        a = np.arange(20.0).view(Sub)
        assert_same(lambda: np.add.reduce(a * 2))

    def test_initial_that_runs_code(self):
        class Number:
            def __float__(self):
                return 3.0

        a = np.arange(20.0)
        assert_same(lambda: np.add.reduce(a * 2, initial=Number()))

    def test_initial_that_does_not_fit(self):
        a = np.arange(20, dtype=np.int8)
        assert_same(lambda: np.add.reduce(a + a, initial=300, dtype=np.int8))
        assert_same(lambda: np.add.reduce(a + a, initial="x"))
        assert_same(lambda: np.add.reduce(a.astype("f4") + 1, initial=1e300))

    def test_nan(self):
        a = np.array([1.0, np.nan])
        for ufunc in (np.add, np.multiply, np.maximum, np.minimum):
            assert_same(lambda ufunc=ufunc: ufunc.reduce(a * 2))


class TestInvalid:
    def test_axis(self):
        a = np.arange(20.0)
        assert_same(lambda: np.add.reduce(a * 2, axis=1))
        assert_same(lambda: np.add.reduce(a * 2, axis=(0, 0)))
        assert_same(lambda: np.add.reduce(a * 2, axis="x"))

    def test_shape_of_out(self):
        a = np.ones((3, 4))
        assert_same(lambda: np.add.reduce(a * 2, axis=0, out=np.zeros(3)))


def divide_then_overflow(x, y):
    return np.add.reduce(x / y)


@pytest.mark.parametrize("mode", ["ignore", "warn", "raise", "call", "print", "log"])
class TestErrors:
    """The operand's errors first, then those of the reduction."""

    @pytest.fixture
    def told(self, mode):
        told = []

        class Log:
            def write(self, text):
                told.append(text)

        call = Log() if mode == "log" else lambda *args: told.append(args)
        with np.errstate(all=mode, call=call):
            yield told

    @pytest.mark.parametrize(
        ("x", "y"),
        [
            pytest.param([1e308, 1e308, 1e308], [1, 1, 1], id="reduction"),
            pytest.param([1, 2, 3], [0, 1, 2], id="operand"),
            pytest.param([1e308, 1e308, 1e308], [1, 1e-10, 1], id="both"),
            pytest.param([np.inf, -np.inf, 1], [1, 1, 1], id="nan"),
            pytest.param([0, 1, 1e-300], [0, 1, 1e300], id="invalid and underflow"),
        ],
    )
    def test_order(self, told, mode, x, y, capsys):
        x, y = np.array(x * 700), np.array(y * 700, float)
        seen = []
        for state in (False, True):
            with np.deferredstate(state), warnings.catch_warnings(record=True) as w:
                warnings.simplefilter("always")
                try:
                    result = repr(divide_then_overflow(x, y))
                except FloatingPointError as error:
                    result = str(error)
            texts = [(str(one.message), one.lineno) for one in w]
            seen.append((result, texts, list(told), capsys.readouterr()))
            told.clear()
        assert seen[0] == seen[1]

    def test_axis_and_maximum(self, told, mode):
        x = np.array([[1.0, 0, -1]] * 50)

        def roots(ufunc, axis, scale):
            return ufunc.reduce(np.sqrt(x + scale) * 1e300**scale, axis=axis)

        for ufunc in (np.maximum, np.multiply, np.fmin):
            for axis in (0, 1, None):
                assert_same(roots, ufunc, axis, 0)
                assert_same(roots, ufunc, axis, 1)


class TestAfterAnError:
    def test_the_operand_stays_as_it_was(self, deferred, raising):
        a = np.zeros(1000)
        x = 1 / a
        for _ in range(3):
            with pytest.raises(FloatingPointError, match="divide"):
                x.sum()
            assert x.flags.deferred
            assert np.deferred.usage_count(a) == 1
        del x
        assert np.deferred.usage_count(a) == 0

    def test_in_the_reduction(self, deferred, raising):
        a = np.full(1000, 1e308)
        x = a * 1
        with pytest.raises(FloatingPointError, match="overflow encountered in reduce"):
            x.sum()
        assert x.max() == 1e308

    def test_warned_once(self, deferred):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            x = np.ones(10) / np.zeros(10)
            assert x.max() == np.inf
            assert x.max() == np.inf
        assert [str(w.message) for w in caught] == [
            "divide by zero encountered in divide"
        ]

    def test_handler_that_reads_the_array(self):
        read, arrays = [], []

        def call(*_):
            read.append(arrays[0][0])

        with np.deferredstate(True), np.errstate(all="call", call=call):
            arrays.append(1 / np.zeros(1000))
            assert arrays[0].max() == np.inf
        assert read == [np.inf]
        assert not arrays[0].flags.deferred


def test_results_are_of_the_same_type():
    a = np.ones((3, 4))
    assert_same(lambda: np.add.reduce(a * 2, axis=None))
    assert_same(lambda: np.add.reduce(a * 2, axis=(), keepdims=True))
    assert_same(lambda: np.add.reduce(np.asfortranarray(a) * 2, axis=1, keepdims=True))
    assert_same(lambda: np.add.reduce(a * 2, axis=None, out=...))


@pytest.fixture
def num_threads():
    previous = np.deferred.get_num_threads()
    yield np.deferred.set_num_threads
    np.deferred.set_num_threads(previous)


@pytest.mark.parametrize("ufunc", UFUNCS, ids=lambda ufunc: ufunc.__name__)
@pytest.mark.parametrize(
    "shape", [(300_007,), (15, 20_011), (5003, 60), (3, 40_000, 3)]
)
def test_bits_do_not_depend_on_threads(ufunc, shape, num_threads):
    """What is shared is put together in one order."""
    chars = "lefdgFD" if ufunc not in BITWISE else "?bl"
    with comparison() as compared, np.errstate(all="ignore"), counted() as counters:
        for char in chars:
            x, y = fill(char, shape, 1), fill(char, shape, 2)
            for axis in (None, *range(len(shape))):
                for more in ({}, {"initial": 2 if char in "?bl" else None}):
                    for n in (1, 2, 5):
                        num_threads(n)
                        keywords = {"axis": axis, **more}
                        name = f"{char}, {keywords}, {n} threads"
                        compared.same(name, reduced, ufunc, x, y, keywords)
    assert counters.reduced > 0


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize(("given", "to"), ["ld", "?l", "fd", "ef", "d?", "bD"])
def test_casts_in_threads(given, to, n, num_threads):
    num_threads(n)
    with comparison() as compared, np.errstate(all="ignore"), counted() as counters:
        for shape in [(300_007,), (60, 5003), (5003, 60)]:
            x, y = fill(given, shape, 1), fill(given, shape, 2)
            for axis in (None, 0, -1):
                keywords = {"axis": axis, "dtype": to}
                compared.same(f"{shape}, {axis}", reduced, np.add, x, y, keywords)
    assert counters.reduced > 0


@pytest.mark.parametrize("n", [1, 3])
def test_errors_in_threads(n, num_threads):
    num_threads(n)
    x = np.full(300_007, 1e300)
    x[200_000] = 0

    def call():
        return np.add.reduce(1 / x), np.add.reduce(x * 1e8), np.maximum.reduce(x / 0)

    assert_same(call)
    with np.errstate(all="raise"):
        assert_same(call)
