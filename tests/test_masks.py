"""
What is done where a mask is set: assignments, counts, functions that leave out NaNs.

The oracle is eager NumPy, which writes to memory at once.
"""

import itertools
import warnings

import numpy as np
import pytest

from helpers.compare import assert_same, comparison
from helpers.counting import counted
from helpers.layouts import LAYOUTS, operand
from helpers.values import NUMERIC, values

N = 3001
SHAPES = ((N,), (7, 301), (5, 6, 70))
each_type = pytest.mark.parametrize("char", NUMERIC)


def filled(char, shape, seed):
    return values(char, int(np.prod(shape)), seed).reshape(shape).copy()


def captured_by(call, *args):
    with counted() as counters, np.deferredstate(True):
        result = call(*args)
    return counters.captured, result


# Assignments.


def masked(x, mask, value):
    y = np.maximum(x, x)
    y[mask(y)] = value
    return y


def masked_twice(x, mask, value):
    y = np.maximum(x, x)
    before = np.minimum(y, x)
    y[mask(y)] = value
    after = np.minimum(y, x)
    y[before == after] = y.dtype.type(1)
    return y, before, after


def copied(x, mask, value):
    y = np.maximum(x, x)
    np.copyto(y, value, where=mask(y), casting="unsafe")
    return y


MASKS = {
    "of itself": lambda y: y == y[::-1],
    "regular": lambda y: values("?", y.size, 9).reshape(y.shape),
    "all": lambda y: np.ones(y.shape, bool),
    "none": lambda y: y != y.copy(),
}


@each_type
@pytest.mark.parametrize("assign", [masked, masked_twice, copied])
@pytest.mark.parametrize("mask", MASKS)
def test_every_type_and_layout(char, assign, mask):
    with comparison() as compare, np.errstate(all="ignore"):
        for shape, layout in itertools.product(SHAPES, LAYOUTS):
            x = operand(char, shape, 1, layout)
            for value in (0, True, x.flat[3], np.array(x.flat[4])):
                compare.same(
                    f"{shape} {layout.__name__} {value!r}",
                    assign,
                    x,
                    MASKS[mask],
                    value,
                )


@pytest.mark.parametrize(
    "value", [-7, 2.5, 1e300, 3j, np.float64(2.7), np.int8(3), "4"]
)
@pytest.mark.parametrize("char", "bldfF?")
def test_values_are_converted_as_ever(char, value):
    """With NumPy's errors and warnings, once."""
    x = filled(char, (N,), 1)
    with comparison() as compare:
        compare.same(f"{value!r}", masked, x, MASKS["of itself"], value)
        compare.same(f"{value!r}, copied", copied, x, MASKS["of itself"], value)


@each_type
def test_it_is_left_pending(char):
    x = filled(char, (N,), 1)
    with np.errstate(all="ignore"):
        for assign in (masked, copied):
            captured, y = captured_by(assign, x, MASKS["regular"], x[3])
            assert captured == 2
            assert y.flags.deferred


def test_one_pass():
    """The mask is not stored, and nothing is copied."""
    a, b = filled("d", (50_000,), 1), filled("d", (50_000,), 2)

    def relu():
        x = a * b
        x[x < 0] = 0
        np.copyto(x, a, where=x > b)
        return x + 1

    with np.errstate(all="ignore"):
        assert_same(relu)
        with counted() as counters, np.deferredstate(True):
            np.deferred.calculate(relu())
    assert (counters.calculated, counters.late) == (1, 0)


def test_who_reads_it_has_what_it_was():
    def run():
        x = np.linspace(-1, 1, N) * 3
        view_of_old = x + 0
        alias = x
        x[x > 1] = 9
        return x, view_of_old, alias is x, alias * 2

    assert_same(run)


def test_views_are_calculated_before():
    """A view has the memory of what it is one of."""

    def run():
        x = np.linspace(-1, 1, N) * 3
        view = x[::2]
        x[x > 1] = 9
        view[view < 0] = 4
        return x, view

    assert_same(run)


@pytest.mark.parametrize(
    ("mask", "value"),
    [
        (lambda y: y[:-1] > 0, 0),  # of another length
        (lambda y: y > 0, [1.0, 2.0]),  # not as many
        (lambda y: y > 0, np.arange(5.0)),
        (lambda y: (y > 0, None), 1),
        (lambda y: (y > 0).tolist(), 1),
        (lambda y: y > 0, "x"),
        (lambda y: y > 9, np.array(3j)),
        (lambda y: y > 0, np.array(3)),
        (lambda y: y > 0, np.array([3.0])),
        (lambda y: y > 0, None),
        (lambda y: y > 0, object()),
        (lambda y: [1, 5], 1),
        (lambda y: slice(3, 9), 1),
        (lambda y: True, 1),
        (lambda y: np.bool_(False), 1),
    ],
)
def test_other_indices_and_values(mask, value):
    def run():
        y = np.linspace(-1, 1, 2000) * 3
        y[mask(y)] = value
        return y

    with comparison() as compare:
        compare.same("set", run)


def test_values_for_each_element():
    def run():
        y = np.linspace(-1, 1, 2000) * 3
        chosen = y > 0
        y[chosen] = np.arange(np.count_nonzero(chosen))
        return y

    assert_same(run)


def test_copyto_of_other_shapes():
    x, row, mask = filled("d", (30, 40), 1), filled("d", (40,), 2), values("?", 30)

    def run(value, where):
        y = x * 2
        np.copyto(y, value, where=where)
        return y

    with comparison() as compare, np.errstate(all="ignore"):
        compare.same("row", run, row, x > 0)
        compare.same("column", run, row, mask[:, None])
        compare.same("scalar where", run, row, True)
        compare.same("too large", run, x[None, None], x > 0)
        compare.same("not a mask", run, row, x)
        compare.same("numbers", run, row, np.ones(40, "i8"))
        compare.same("deferred", lambda: run(row * 3, (x > 1) | (x < row)))
        compare.same("no mask", lambda: run(x * 3, True))


def test_copyto_into_regular_memory():
    """There is nothing to be deferred, and the mask has values in time."""
    x = filled("d", (N,), 1)

    def run():
        y = x.copy()
        np.copyto(y, x * 2, where=x > 1)
        np.copyto(y, y * y, where=y * 3 > y)
        np.copyto(y[1:], y[:-1] + 1)
        return y

    with np.errstate(all="ignore"):
        assert_same(run)


@pytest.mark.parametrize("error", ["warn", "raise"])
def test_errors(error):
    """Of what is replaced, too: it was written."""
    x = np.linspace(-1, 1, N)

    def run():
        y = np.sqrt(x) * 2
        y[y != y] = 0
        return y

    with comparison() as compare, np.errstate(all=error):
        compare.same(error, run)


def test_read_only():
    def run():
        y = np.linspace(-1, 1, N) * 2
        y.setflags(write=False)
        y[y > 0] = 1

    assert_same(run)


# Counts.

COUNTED = {
    "d": lambda x, y: x > y,
    "f": lambda x, y: (x > y) | (x != x),
    "i": lambda x, y: ~(x == y),
    "l": lambda x, y: (x < 3) ^ (y > x),
    "?": lambda x, y: x & ~y,
    "e": lambda x, y: x <= y,
}


@pytest.mark.parametrize("char", COUNTED)
@pytest.mark.parametrize("to", ["?", "b", "H", "i", "l", "Q", "e", "f", "d", "g", "D"])
def test_counts(char, to):
    with comparison() as compare, np.errstate(all="ignore"):
        for shape in ((1,), (N,), (70_001,), (3, 9000), (9000, 3), (20, 30, 40)):
            x, y = filled(char, shape, 1), filled(char, shape, 2)
            for axis in (None, 0, -1):
                for more in ({}, {"initial": 3}, {"initial": 0.1}, {"keepdims": True}):
                    compare.same(
                        f"{shape} {axis} {more}",
                        lambda x=x, y=y, axis=axis, more=more: np.add.reduce(
                            COUNTED[char](x, y), axis=axis, dtype=to, **more
                        ),
                    )
            compare.same(f"{shape} mean", lambda x=x, y=y: COUNTED[char](x, y).mean())


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("char", "dfil")
def test_counts_in_threads(char, threads, num_threads):
    num_threads(threads)
    x, y = filled(char, (500_003,), 1), filled(char, (500_003,), 2)
    with comparison() as compare:
        for to in "blfd":
            compare.same(to, lambda to=to: COUNTED[char](x, y).sum(dtype=to))
            compare.same(f"{to} all", lambda to=to: ((x == x) | (x != x)).sum(dtype=to))


def test_counts_are_not_stored():
    x, y = filled("d", (N,), 1), filled("d", (N,), 2)
    with counted() as counters, np.deferredstate(True):
        np.sum(x > y)
        np.mean((x > y) & (x < 1))
    assert (counters.reduced, counters.calculated) == (2, 0)


# Functions that leave out NaNs.

NAN_FUNCTIONS = (
    np.nansum,
    np.nanprod,
    np.nanmean,
    np.nanvar,
    np.nanstd,
    np.nancumsum,
    np.nancumprod,
    np.nanmax,
    np.nanmin,
    np.nanargmax,
    np.nanargmin,
    np.nanmedian,
    np.nan_to_num,
)


def with_nans(char, shape, layout, share):
    rng = np.random.default_rng(3)
    size = int(np.prod(shape))
    numbers = rng.normal(size=size) + 0.5
    numbers = numbers.astype(char) if char in "efdgFD" else (numbers * 9).astype(char)
    if char in "efdgFD":
        numbers[rng.random(size) < share] = np.nan
    return layout(numbers, shape)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("function", NAN_FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("char", "efdgFDil?")
def test_nan_functions(function, char):
    with comparison() as compare, np.errstate(all="ignore"):
        for shape, layout in itertools.product(SHAPES, LAYOUTS):
            for share in (0, 0.2, 1):
                a = with_nans(char, shape, layout, share)
                before = a.copy()
                name = f"{shape} {layout.__name__} {share}"
                compare.same(name, function, a)
                if function is not np.nan_to_num:
                    compare.same(f"{name} axis", lambda a=a: function(a, axis=-1))
                assert a.tobytes() == before.tobytes()


@pytest.mark.parametrize("char", "fd")
@pytest.mark.parametrize("order", "CF")
def test_nan_functions_are_fused(char, order):
    a = np.asarray(with_nans(char, (60, 70), np.reshape, 0.2), order=order)
    with np.errstate(all="ignore"), np.deferredstate(True):
        with counted() as counters:
            np.nansum(a)
            np.nanprod(a, axis=0)
        assert (counters.reduced, counters.calculated) == (2, 0)
        with counted() as counters:
            np.nanmean(a)
        assert counters.reduced == 2
        assert counters.calculated == 1  # the mask, which is asked for twice


@pytest.mark.parametrize("char", "fd")
def test_nan_variance_is_fused(char):
    a = with_nans(char, (60, 70), np.reshape, 0.2)
    with np.errstate(all="ignore"), np.deferredstate(True):
        with counted() as counters:
            np.nanvar(a)
        # The counts of NaNs, the sum, and the squares.
        assert counters.reduced == 3
        assert counters.calculated == 1  # the mask, which is asked for twice


# A `where=` that leaves nothing out, as np._NoValue becomes one.

EVERYWHERE = (np.add, np.subtract, np.multiply, np.divide, np.maximum, np.less)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ufunc", EVERYWHERE, ids=lambda ufunc: ufunc.__name__)
@each_type
def test_where_of_one_true_element(ufunc, char):
    if (ufunc, char) == (np.subtract, "?"):
        pytest.skip("booleans have no difference")
    with comparison() as compare, np.errstate(all="ignore"):
        for shape, first, second in itertools.product(
            ((1,), (1, 1), (7, 3), *SHAPES), LAYOUTS, LAYOUTS
        ):
            size = int(np.prod(shape))
            a, b = (
                layout(values(char, size, seed), shape)
                for layout, seed in ((first, 1), (second, 2))
            )

            def both(a=a, b=b):
                fresh = ufunc(a, b, where=np._NoValue)
                into = ufunc(a, b, out=a * 1, where=np.True_, casting="unsafe")
                return fresh, into

            compare.same(f"{shape} {first.__name__} {second.__name__}", both)


@pytest.mark.parametrize("out", ["D", "F", ">f8", "f"])
@pytest.mark.parametrize("where", [np.True_, np.float32(2)], ids=["bool", "float"])
def test_where_of_one_true_element_into_another_type(out, where):
    """Eager NumPy reads the result before it is written, and casts what is there."""
    a = np.linspace(1, 2, N)

    def call():
        into = np.full(N, 1e30, out)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            np.subtract(a * 2, a, out=into, where=where, casting="unsafe")
        return into.tobytes(), [str(warning.message) for warning in told]

    with np.deferredstate(False):
        expected = call()
    assert (out in "DF") == (len(expected[1]) == 1)
    with np.deferredstate(True):
        assert call() == expected


@pytest.mark.parametrize("state", ["warn", "raise"])
@pytest.mark.parametrize(
    "call",
    [
        lambda a, b, where: np.add(a, b, dtype="f", where=where, out=None),
        lambda a, b, where: np.less(
            a, b, signature="ff->?", casting="same_kind", where=where, out=None
        ),
        lambda a, b, where: np.add(a.astype("f") * 1, b, where=where, out=None),
    ],
    ids=["to float", "comparison", "mixed"],
)
@pytest.mark.parametrize("n", [1, 31, 5000, 10_000])
def test_where_of_one_true_element_with_casts(call, state, n):
    """What they raise is the ufunc's, as they are part of its iteration."""
    a, b = np.full(n, 1e300), np.ones(n)

    def told():
        with warnings.catch_warnings(record=True) as messages:
            warnings.simplefilter("always")
            with np.errstate(all=state):
                try:
                    call(a, b, np.True_)[0]
                except FloatingPointError as error:
                    return str(error).splitlines()[0]
        return [str(warning.message) for warning in messages]

    with np.deferredstate(False):
        expected = told()
    with np.deferredstate(True):
        assert told() == expected


# What can raise nothing waits on when the error state changes.


@pytest.mark.parametrize(
    "operation",
    [lambda x: x ^ x, lambda x: np.where(x > 0, x, x & x), lambda x: (x | x) + x],
    ids=["xor", "where", "sum"],
)
def test_asking_takes_time_once(operation):
    """Each step reads the one before repeatedly; 2**60 is more than a test takes."""
    x = np.arange(N)
    with np.errstate(all="warn"), np.deferredstate(True):
        for _ in range(60):
            x = operation(x)
            with np.errstate(divide="ignore"):
                pass
        assert x.flags.deferred


@pytest.mark.parametrize("read", [lambda x: x[0], lambda x: (x > 1)[0], np.sum])
def test_errors_are_told_once(read):
    """Whatever was read; the end of the block does not tell of them again."""
    a = np.linspace(-2, 1, N)
    with np.errstate(all="raise"), np.deferredstate(True):
        x = np.sqrt(a)
        for _ in range(2):
            with pytest.raises(FloatingPointError):
                read(x)


def test_quiet_operations_wait_on():
    x, mask, i = np.linspace(1, 2, N), values("?", N), np.arange(N)
    with np.errstate(all="warn"), np.deferredstate(True):
        quiet = [
            -x,
            +x,
            np.abs(x),
            np.isnan(x),
            x > 1,
            ~mask,
            mask & (x < 2),
            np.where(mask, x, -x),
            i + i * 3,
            i << 2,
        ]
        z = x + 0j
        np.deferred.calculate(z)
        loud = [x + 1, np.sqrt(x), x // 2, -(x * x), i / 3, np.where(mask, x * x, x)]
        loud += [z > 1, np.abs(z), np.isnan(x * x), x > np.float32(2) * x]
        with np.errstate(divide="ignore"):
            pass
        assert [a.flags.deferred for a in quiet] == [True] * len(quiet)
        assert [a.flags.deferred for a in loud] == [False] * len(loud)


@pytest.mark.parametrize("function", [np.square, np.exp])
def test_what_a_reduction_has_read_waits_on(function):
    """It is known then that nothing is raised; else it is told once."""
    x = np.linspace(1, 2, N)
    with np.errstate(all="warn"), np.deferredstate(True):
        inner = x - 1
        quiet = function(inner)
        total = quiet.sum()
        with np.errstate(divide="ignore"):
            pass
        assert quiet.flags.deferred
        assert inner.flags.deferred
        assert total == np.sum(function(x - 1))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            loud = function(x * 1e200)
            loud.sum()
            with np.errstate(divide="ignore"):
                pass
        assert ["overflow" in str(warning.message) for warning in told] == [True]
        assert not loud.flags.deferred


@pytest.mark.parametrize("char", "fd")
def test_nan_to_num_is_one_pass(char):
    a = with_nans(char, (60, 70), np.reshape, 0.2)
    a[3], a[4] = np.inf, -np.inf
    keywords = {"nan": 7, "posinf": 8, "neginf": -8}
    with np.errstate(all="ignore"):
        assert_same(lambda: np.nan_to_num(a))
        assert_same(lambda: np.nan_to_num(a * 2, **keywords) + 1)
        with counted() as counters, np.deferredstate(True):
            np.deferred.calculate(np.nan_to_num(a) + 1)
    assert (counters.calculated, counters.fused) == (1, 0)
