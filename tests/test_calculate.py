"""Calculation: into fresh memory, straight into a destination, all at once."""

import gc
import operator

import numpy as np
import pytest

from helpers.compare import assert_same, observe
from helpers.counting import counted

pytestmark = pytest.mark.usefixtures("deferred")


def vector(n=10, start=0):
    with np.deferredstate(False):
        return np.arange(start, start + n, dtype=float) + 0.5


class TestCalculate:
    def test_some(self):
        a = vector()
        x, y, z = a + 1, a + 2, a + 3
        assert np.deferred.calculate(x, z) is None
        assert [r.flags.deferred for r in (x, y, z)] == [False, True, False]
        np.deferred.calculate(a, x)
        np.deferred.calculate()
        del y

    def test_calculated_once(self):
        x = vector() + 1
        with counted() as counters:
            np.deferred.calculate(x, x)
            np.deferred.calculate(x)
        assert counters.calculated == 1

    @pytest.mark.parametrize("value", [None, 1, [1.0], np.float64(1)])
    def test_only_arrays(self, value):
        x = vector() + 1
        with pytest.raises(TypeError, match="argument 2 must be an ndarray"):
            np.deferred.calculate(x, value)
        assert x.flags.deferred
        del x

    def test_inner_array_of_an_expression(self):
        a = vector()
        x = a * 2
        y = x + 1
        np.deferred.calculate(x)
        assert y.flags.deferred
        assert np.deferred.usage_count(x) == 1
        assert y.tolist() == (a.copy() * 2 + 1).tolist()


class TestCalculateAll:
    def test_all(self):
        a = vector()
        arrays = [a * i for i in range(20)]
        np.deferred.calculate_all()
        assert np.deferred.stats()["pending"] == 0
        assert not any(array.flags.deferred for array in arrays)

    def test_newest_first_spares_inner_arrays(self):
        """The newest calculation releases inner arrays that nobody keeps."""
        a = vector()
        x = a * 2
        y = x + 1
        del x
        with counted() as counters:
            np.deferred.calculate_all()
        assert counters.calculated == 1
        assert counters.released == 1
        assert y[0] == 2.0

    def test_order(self):
        seen = []
        a = vector(3)

        def handler(error, flags):
            seen.append(error)

        with np.errstate(all="call", call=handler):
            x = a / 0
            y = np.log(-a)
            np.deferred.calculate_all()
        assert seen == ["invalid value", "divide by zero"]
        del x, y

    @pytest.mark.usefixtures("raising")
    def test_failing_array_does_not_stop_others(self):
        a = vector()
        first = a / 0
        good = a + 1
        second = np.log(-a)
        with pytest.raises(FloatingPointError, match=r"invalid value .* log"):
            np.deferred.calculate_all()
        assert first.flags.deferred
        assert second.flags.deferred
        assert not good.flags.deferred
        del second
        with pytest.raises(FloatingPointError, match="divide by zero"):
            np.deferred.calculate_all()
        del first
        np.deferred.calculate_all()

    def test_nothing_pending(self):
        assert np.deferred.calculate_all() is None

    @pytest.mark.parametrize(
        "change", [lambda: np.seterr(all="ignore"), lambda: np.seterrcall(None)]
    )
    def test_error_state_changes_flush(self, change):
        before = np.geterr()
        x = vector() + 1
        try:
            change()
        finally:
            np.seterr(**before)
        assert not x.flags.deferred

    def test_errstate_raises_once(self):
        """An error that nobody reads does not come at every change of the state."""
        with np.errstate(divide="raise"):
            x = vector() / 0
            with pytest.raises(FloatingPointError), np.errstate(all="ignore"):
                pass
            with np.errstate(all="ignore"):
                assert x.flags.deferred
            with pytest.raises(FloatingPointError):
                x.sum()

    def test_errstate_flushes(self):
        x = vector() + 1
        with np.errstate(all="ignore"):
            assert not x.flags.deferred
            y = vector() + 1
        assert not y.flags.deferred


@pytest.mark.usefixtures("raising")
class TestRaise:
    def test_repeatable(self):
        a = vector()
        x = a / 0
        for _ in range(3):
            with pytest.raises(FloatingPointError, match="divide by zero"):
                np.deferred.calculate(x)
            assert x.flags.deferred
            assert np.deferred.usage_count(a) == 1
        del x
        assert np.deferred.usage_count(a) == 0

    def test_first_error_is_not_replaced(self):
        """By that of an operation that eager NumPy would not have come to."""

        def work():
            a = np.zeros(9)
            with np.errstate(all="raise"):
                x, y = 1 / a, np.log(a - 1)
                return y, x.sum()

        assert_same(work)

        def fail():
            with np.errstate(all="raise"):
                arrays.append(np.log(np.zeros(9) - 1))
                raise KeyError  # eager NumPy would not have come here

        arrays = []
        with np.deferredstate(True), pytest.raises(FloatingPointError):
            fail()
        with pytest.raises(FloatingPointError):
            arrays[0].sum()

    def test_what_is_computed_from_it_raises_too(self):
        x = vector() / 0
        y = x * 2 + 1
        for array in (y, x, y):
            with pytest.raises(FloatingPointError, match=r"divide by zero .* divide"):
                array.tolist()

    def test_the_first_error_of_an_expression(self):
        x = np.log(-vector()) / 0
        with pytest.raises(FloatingPointError, match=r"invalid value .* log"):
            x.tolist()

    def test_destination_is_untouched(self):
        y = vector()
        before = y.tolist()
        x = vector() / 0
        with pytest.raises(FloatingPointError):
            y[...] = x
        assert y.tolist() == before
        with pytest.raises(FloatingPointError):
            np.add(x, 1, out=y)
        assert y.tolist() == before


def assigned(n, size=10):
    a = vector(size)
    destinations = [np.zeros(size) for _ in range(n)]
    d = a * 2 + 1
    for destination in destinations:
        destination[:] = d
    return d, destinations


@pytest.mark.filterwarnings("default")  # with "error", nothing is fused into out
class TestAssignment:
    def test_straight_into_the_destination(self):
        with counted() as counters:
            d, (e,) = assigned(1)
        assert counters.fused == 1
        assert counters.calculated == 0
        assert d.flags.deferred
        assert e.tolist() == d.tolist()

    def test_evaluated_twice_makes_it_regular(self):
        """The NEP: "converted to a regular ndarray the second time"."""
        with counted() as counters:
            d, destinations = assigned(3)
        assert counters.fused == 1
        assert counters.calculated == 1
        assert not d.flags.deferred
        for destination in destinations:
            assert destination.tolist() == d.tolist()

    def test_out(self):
        a, y = vector(), np.zeros(10)
        with counted() as counters:
            result = np.add(a * 2, 1, out=y)
        assert result is y
        assert counters.fused == 1
        assert counters.pending == 0
        assert y.tolist() == [2 * v + 1 for v in a]

    def test_in_place(self):
        a, y = vector(), np.ones(10)
        same = y
        with counted() as counters:
            y += a * 2
        assert y is same
        assert not y.flags.deferred
        assert counters.fused == 1
        assert y.tolist() == [1 + 2 * v for v in a]

    def test_in_place_on_a_deferred_array(self):
        y = vector() * 2
        y += vector()
        y *= y
        assert y[0] == 2.25

    @pytest.mark.parametrize("shape", [(3, 10), (2, 1, 10)])
    def test_broadcast(self, shape):
        def assign():
            y = np.zeros(shape)
            y[...] = vector() * 2
            return y

        assert_same(assign)

    @pytest.mark.parametrize(
        "dtype", ["f4", "f2", "i4", "u1", "?", "G", ">f8", "U8", object, "M8[s]"]
    )
    def test_cast(self, dtype):
        def assign():
            y = np.zeros(10, dtype)
            y[...] = vector() * 2
            return y

        with np.errstate(all="ignore"):
            assert_same(assign)

    def test_complex_to_real_warns_as_eager(self):
        def assign():
            y = np.zeros(10)
            y[...] = vector() * 1j
            return y

        assert np.exceptions.ComplexWarning in {
            category for category, *_ in assert_same(assign).warnings
        }

    def test_cast_with_invalid_values_warns_as_eager(self):
        def assign():
            y = np.zeros(2, "i4")
            y[...] = np.array([np.nan, 1]) * 2
            return y

        assert assert_same(assign).warnings

    def test_subclass_destination(self):
        def assign():
            y = np.ma.zeros(10)
            y[...] = vector() * 2
            return np.asarray(y)

        assert_same(assign)

    def test_readonly(self):
        y = np.broadcast_to(0.0, 10)
        x = vector() * 2
        with pytest.raises(ValueError, match="read-only"):
            y[...] = x
        del x

    def test_shapes(self):
        x = vector() * 2
        with pytest.raises(ValueError, match="could not broadcast"):
            np.zeros(9)[...] = x


# The destination overlaps the operands.  Each function gets a fresh vector `m`
# of 5000 elements, more than a block, and 70 x 70 elements as `g`.


def _each(m, *statements):
    for statement in statements:
        statement()
    return m


def pairs(array):
    """Neighbours, from the last on."""
    view = np.lib.stride_tricks.sliding_window_view(array, 2, 0, writeable=True)
    return view[::-1]


OVERLAPS = {
    "forwards": lambda m, g: m[1:].__setitem__(..., m[:-1] + 1),
    "backwards": lambda m, g: m[:-1].__setitem__(..., m[1:] + 1),
    "far": lambda m, g: m[300:].__setitem__(..., m[:-300] * 2 + m[300:]),
    "reversed": lambda m, g: m.__setitem__(..., m[::-1] * 2),
    "reversed in place": lambda m, g: operator.iadd(m, m[::-1] * 2),
    "reversed destination": lambda m, g: m[::-1].__setitem__(..., m * 2),
    "both": lambda m, g: m.__setitem__(..., m + m[::-1]),
    "neighbours": lambda m, g: m[1:-1].__setitem__(..., (m[:-2] + m[2:]) / 2 - m[1:-1]),
    "even to odd": lambda m, g: m[1::2].__setitem__(..., m[::2] * 3),
    "every second": lambda m, g: m[:2500].__setitem__(..., m[::2] * 3),
    "spread": lambda m, g: m[::2].__setitem__(..., m[:2500] * 3),
    "itself": lambda m, g: m.__setitem__(..., m * 2 + m),
    "in place": lambda m, g: operator.iadd(m, m * m),
    "in place, shifted": lambda m, g: operator.iadd(m[1:], m[:-1] * 2),
    "in place, twice": lambda m, g: operator.imul(operator.iadd(m, m * 2), m),
    "out shifted": lambda m, g: np.add(m[:-1] * 2, m[:-1], out=m[1:]),
    "out is operand": lambda m, g: np.add(m * 2, m, out=m),
    "copyto": lambda m, g: np.copyto(m[1:], m[:-1] * 2),
    "transposed": lambda m, g: g.__setitem__(..., g.T * 2),
    "transposed in place": lambda m, g: operator.iadd(g, g.T * 2),
    "row into all": lambda m, g: g.__setitem__(..., g[3] * 2),
    "column into all": lambda m, g: g.__setitem__(..., g[:, 3:4] * 2),
    "row in place": lambda m, g: operator.isub(g, g[0] * 2),
    "corner": lambda m, g: g[1:, 1:].__setitem__(..., g[:-1, :-1] + g[1:, :-1]),
    "flipped": lambda m, g: g[::-1, ::-1].__setitem__(..., g * 2),
    "other dtype": lambda m, g: m.view("i8").__setitem__(..., m * 2),
    "narrower": lambda m, g: m.view("f4")[:5000].__setitem__(..., m * 2),
    "unaligned": lambda m, g: (
        m.view("u1")[4:-4].view("f8").__setitem__(..., m[:-1] * 2)
    ),
    "mask": lambda m, g: m.__setitem__(m > 50, (m * 2)[m > 50]),
    "fancy": lambda m, g: m.__setitem__(np.arange(5000)[::-1], m * 2),
    "destination itself": lambda m, g: pairs(g.T).__setitem__(
        ..., np.arange(9660.0).reshape(69, 70, 2) * 2
    ),
    "destination itself, vector": lambda m, g: pairs(m).__setitem__(
        ..., np.arange(9998.0).reshape(2, 4999).T * 2
    ),
    "destination itself, in place": lambda m, g: operator.iadd(
        pairs(g.T), np.arange(9660.0).reshape(69, 70, 2) * 2
    ),
    "deferred and written": lambda m, g: _each(
        m,
        lambda: m[:10].__setitem__(..., m[10:20] * 2),
        lambda: m[5:15].__setitem__(..., m[:10] + m[10:20]),
    ),
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_overlap(name):
    def run():
        m = vector(5000) % 97
        g = (vector(4900) % 89).reshape(70, 70)
        OVERLAPS[name](m, g)
        return m, g

    with np.errstate(all="ignore"):
        assert assert_same(run).error is None


@pytest.mark.parametrize("name", OVERLAPS)
def test_overlap_with_pending_readers(name):
    """Expressions written before the assignment see the memory as it was."""

    def run():
        m = vector(5000) % 97
        g = (vector(4900) % 89).reshape(70, 70)
        before = m * 3, m[::-1] + 1, g.T * 2
        OVERLAPS[name](m, g)
        return *before, m, g

    with np.errstate(all="ignore"):
        assert assert_same(run).error is None


def test_in_place_on_one_element():
    """Which NaN a product is depends on the loop, and that on the strides."""

    def run():
        a = np.array([complex(0, -np.inf)])
        y = np.power(a, a).copy()
        y *= np.divide(a, a)
        z = np.power(a, a).copy()
        z[...] *= np.divide(a, a)
        return y, z

    with np.errstate(all="ignore"):
        assert_same(run)


NANS, LARGE = np.full(12, np.nan), np.full((4, 4), 1e300)
#: Calls whose casts raise; which eager NumPy makes, and reports, on their own.
CASTS = {
    "one": lambda call: call(np.bitwise_xor, NANS, 1.0, dtype="Q"),
    "two": lambda call: call(np.bitwise_xor, NANS, NANS[::-1], dtype="Q"),
    "three": lambda call: call(np.clip, NANS, NANS[::-1], NANS * 2, dtype="Q"),
    "and the operation": lambda call: call(
        np.multiply, np.full(9, 3e38), np.full(9, 1e300), signature="ff->f"
    ),
    "mixed": lambda call: call(np.add, LARGE[0], LARGE, signature="ff->f"),
    "not any more": lambda call: call(np.add, LARGE, LARGE[0], signature="ff->f"),
    "in buffers": lambda call: call(np.add, LARGE, 2.0, signature="ff->f"),
    "long": lambda call: call(np.add, np.full(9000, 1e300), 2.0, signature="ff->f"),
    "not reported": lambda call: call(np.less, LARGE, 2.0, signature="ff->?"),
    "reported": lambda call: call(np.less, LARGE[0], 2.0, signature="ff->?"),
    "inner": lambda call: call(np.add, NANS, 1.0, dtype="i2") * 2 + np.int16(1),
}


class TestCasts:
    @pytest.mark.parametrize("name", CASTS)
    def test_each_is_reported_as_eager(self, name):
        def run():
            calls = []
            with np.errstate(all="call", call=lambda *args: calls.append(args)):
                result = CASTS[name](lambda f, *x, **y: f(*x, **y, casting="unsafe"))
                np.deferred.calculate(result)
                result.tolist()
            return result, calls

        assert_same(run)

    def test_from_a_copy_of_the_output(self):
        """Made because of an overlap, it is cast back, and that reported apart."""

        def run():
            out = np.arange(6).reshape(2, 3) - 2
            zeros = np.zeros((2, 3))
            with np.errstate(all="warn", divide="ignore"):
                np.divide(out[::-1], abs(zeros), out=out, casting="unsafe")
            return out

        assert len(assert_same(run).warnings) == 2

    @pytest.mark.parametrize("how", ["warn", "raise"])
    @pytest.mark.parametrize("name", CASTS)
    def test_text(self, name, how):
        def run():
            with np.errstate(all=how):
                result = CASTS[name](lambda f, *x, **y: f(*x, **y, casting="unsafe"))
                try:
                    np.deferred.calculate(result)
                except FloatingPointError as error:
                    del result
                    raise FloatingPointError(*error.args) from None
                return result

        outcome = assert_same(run)
        reported = outcome.error is not None or bool(outcome.warnings)
        assert reported == (name != "not reported")

    def test_once_for_two_readers(self):
        """Each cast is, however often and with whatever it is calculated."""
        calls, counts = [], []
        with np.errstate(all="call", call=lambda *args: calls.append(args)):
            x = np.bitwise_xor(NANS, NANS[::-1], dtype="Q", casting="unsafe")
            for read in [(x + 1).tolist, (x + 1).tolist, x.tolist]:
                read()
                counts.append(len(calls))
        assert counts == [2, 2, 2]


class TestHandlers:
    """Handlers of floating-point errors are code that may do anything."""

    def test_handler_reads_the_array(self):
        seen = []
        with np.errstate(all="call", call=lambda *args: seen.append(x.tolist())):
            x = np.array([1.0]) / 0
            assert x.tolist() == [np.inf]
        assert seen == [[np.inf]]

    def test_handler_reads_inner_and_other_arrays(self):
        seen = []
        arrays = []

        def handler(*args):
            seen.append([array[0] for array in arrays])

        with np.errstate(all="call", call=handler):
            arrays.append(np.array([1.0, 2.0]) * 2)
            arrays.append(arrays[0] / 0)
            arrays.append(arrays[1] + 1)
            assert arrays[2].tolist() == [np.inf, np.inf]
        assert seen[-1] == [2.0, np.inf, np.inf]

    def test_handler_writes_operands(self):
        a = np.array([1.0, 2.0])

        def handler(*args):
            a[...] = 5

        with np.errstate(all="call", call=handler):
            x = a / 0
            assert x.tolist() == [np.inf, np.inf]
        assert a.tolist() == [5, 5]

    def test_handler_drops_everything(self):
        names = {}
        with np.errstate(all="call", call=lambda *args: names.clear() or gc.collect()):
            names["a"] = np.array([1.0, 2.0])
            names["x"] = names["a"] / 0
            assert names.pop("x").tolist() == [np.inf, np.inf]

    def test_handler_raises(self):
        def handler(*args):
            raise KeyError("mine")

        with np.errstate(all="call", call=handler):
            x = np.array([1.0]) / 0
            for _ in range(2):
                with pytest.raises(KeyError, match="mine"):
                    x.tolist()
                assert x.flags.deferred
            del x

    def test_handler_defers_more(self):
        made = []
        with np.errstate(
            all="call", call=lambda *args: made.append(np.array([1.0, 2.0]) * 2)
        ):
            x = np.array([1.0]) / 0
            x.tolist()
        assert made[0].tolist() == [2.0, 4.0]

    def test_handler_calculates_all(self):
        with np.errstate(all="call", call=lambda *args: np.deferred.calculate_all()):
            x = np.array([1.0]) / 0
            y = np.array([3.0]) / 0
            z = x + y
            assert z.tolist() == [np.inf]

    def test_warning_filter_that_raises(self):
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            x = np.array([1.0]) / 0
            for _ in range(2):
                with pytest.raises(RuntimeWarning, match="divide by zero"):
                    x.tolist()
                assert x.flags.deferred
            warnings.simplefilter("ignore")
            assert x.tolist() == [np.inf]

    def test_log(self):
        lines = []

        class Log:
            def write(self, text):
                lines.append(text)

        with np.errstate(all="log", call=Log()):
            x = np.array([1.0]) / 0
            x.tolist()
        assert lines == ["Warning: divide by zero encountered in divide\n"]

    def test_state_of_the_writing_counts(self):
        with np.errstate(all="ignore"):
            x = np.array([1.0]) / 0
        with np.errstate(all="raise"):
            assert x.tolist() == [np.inf]

    def test_each_operation_warns_for_itself(self):
        def run():
            x = np.array([1.0, -1.0])
            return np.log(x) + x / 0 - np.sqrt(x)

        assert len(assert_same(run).warnings) == 3

    def test_warned_once(self):
        x = []

        def write_and_read():
            x.append(np.array([1.0]) / 0)
            return x[0].tolist()

        assert len(observe(write_and_read).warnings) == 1
        assert len(observe(x[0].tolist).warnings) == 0
