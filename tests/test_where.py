"""np.where(condition, x, y) as an operation of an expression."""

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from helpers.compare import assert_same, comparison
from helpers.counting import counted
from helpers.layouts import LAYOUTS, LENGTHS, arrangements, operand
from helpers.process import output_of
from helpers.values import NUMERIC, values
from test_layout import arrays_over

N = 10_000
each_type = pytest.mark.parametrize("char", NUMERIC)


def captured_by(call, *args):
    with counted() as counters, np.deferredstate(True):
        call(*args)
    return counters.captured


def where(operands):
    return np.where(*operands)


def amid(operands):
    """Between operations that feed it and one that reads it."""
    condition, x, y = (np.maximum(op, op) if np.ndim(op) else op for op in operands)
    return np.maximum(np.where(condition, x, y), x)


def with_condition(char, condition="?", lengths=LENGTHS):
    return arrangements(condition + 2 * char, lengths)


@each_type
def test_every_type_and_layout(char):
    with comparison() as compared, np.errstate(all="ignore"):
        for name, operands in with_condition(char):
            compared.same(name, where, operands)
            compared.same(f"{name} amid", amid, operands)
            captured = captured_by(where, operands)
            compared.check(f"{name}: captured {captured}", captured == 1)


@each_type
def test_every_type_of_condition(char):
    """What is true is a matter of the type: NaN is."""
    with comparison() as compared:
        for name, operands in with_condition("d", char, (1, 65, 1025)):
            compared.same(name, where, operands)
            captured = captured_by(where, operands)
            compared.check(f"{name}: captured {captured}", captured == 1)


@pytest.mark.parametrize("first", NUMERIC)
def test_every_pair_of_types(first):
    mask = values("?", 130)
    with comparison() as compared:
        for second, layout in itertools.product(NUMERIC, LAYOUTS):
            x, y = operand(first, (130,), 1, layout), operand(second, (130,), 2)
            compared.same(f"{second} {layout.__name__}", np.where, mask, x, y)
            compared.same(f"{second} {layout.__name__} amid", amid, (mask, y, x))
            assert captured_by(np.where, mask, x, y) == 1


def test_bytes_that_are_neither_zero_nor_one():
    """Whatever is not zero is true, also where an element is true by its bytes."""
    mask = np.arange(256, dtype=np.uint8).view(bool)
    x, y = values("d", 256, 1), values("d", 256, 2)
    assert_same(np.where, mask, x, y)
    assert_same(lambda: np.where(mask[::2], x[::-2], y[:128]) + 1)


@st.composite
def operand_lists(draw):
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    return [draw(arrays_over(shape)) for _ in range(3)]


@settings(max_examples=1500, deadline=None)
@given(operands=operand_lists())
def test_layout_of_the_result(operands):
    """It is the iterator's, which may not be that of a ufunc."""
    note([op.strides for op in operands])
    assert_same(np.where, *operands)
    assert captured_by(np.where, *operands) == any(np.ndim(op) for op in operands)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 5), (5, 1), (3, 1, 4), (1, 3, 1)])
def test_axes_of_length_one(shape):
    for a in (np.ones(shape), np.ones(shape, order="F"), np.ones((2, *shape))[1]):
        for b in (a, a[::-1], np.asfortranarray(a)):
            assert_same(np.where, a > 0, a, b)
            assert_same(np.where, b, a, 2)


# ---- scalars ----

SCALARS = (
    *(0, 3, True, 0.5, -1.0, 2j, np.nan, -0.0, 300, -1, 2**40),
    *(np.float32(1e-3), np.int8(-1), np.array(2.5), np.array(7, "i2"), np.float64(3)),
    *(np.longdouble(1) / 3, np.complex64(1j), np.bool(True), np.datetime64("NaT"), "x"),
)


@each_type
@pytest.mark.parametrize("error", ["ignore", "warn", "raise"])
def test_scalars(char, error):
    """Python's are of the array's type where they can be, unchecked."""
    mask, a = values("?", 70), values(char, 70, 1)
    with comparison() as compared, np.errstate(all=error):
        for scalar in (*SCALARS, 1e300, -(10**30), float(2**63), 1e30j):
            compared.same(f"{scalar!r} first", np.where, mask, scalar, a)
            compared.same(f"{scalar!r} last", np.where, mask, a, scalar)
            compared.same(f"{scalar!r} if", np.where, scalar, a, a[::-1])
            compared.same(f"{scalar!r} both", np.where, mask, scalar, 2.5)


def test_scalars_only():
    for condition in (True, 0.0, np.float32(1), np.array(2)):
        assert_same(np.where, condition, 1, np.float32(2))
        assert captured_by(np.where, condition, 1, np.float32(2)) == 0


def test_what_casting_a_scalar_raises_comes_with_the_call():
    mask, a = values("?", 70), np.ones(70, "f")
    with np.deferredstate(True):
        with pytest.warns(RuntimeWarning, match="overflow encountered in cast"):
            np.where(mask, a * 2, 1e300)
        with np.errstate(over="raise"), pytest.raises(FloatingPointError):
            np.where(mask, a * 2, 1e300)


# ---- errors ----


@pytest.mark.parametrize("error", ["warn", "raise"])
def test_casts_report_nothing(error):
    """But the operations beside do, and only what is theirs."""
    # Signalling: NumPy's own casts of them are invalid operations.
    signalling = np.full(N, 0x7FA00000, np.uint32).view("f")
    mask, y = values("?", N), values("d", N, 1)
    with comparison() as compared, np.errstate(all=error):
        compared.same("cast", lambda: np.where(mask, signalling, y))
        compared.same("mask", lambda: np.where(signalling, mask, y))
        compared.same("beside", lambda: np.where(mask, y, np.arange(N)) / (y * 0))
        compared.same("inside", lambda: np.where(y / 0 > 1, signalling, 1 / (y - y)))


def test_shapes_that_do_not_match():
    def call():
        return np.where(np.ones(3) + 1, np.ones(4) + 1, 0)

    assert assert_same(call).error[0] is ValueError


def test_one_of_two():
    for call in (
        lambda: np.where(np.ones(3) > 0, np.ones(3)),
        lambda: np.where(np.ones(3) > 0, np.ones(3), None),
        lambda: np.where(np.ones(3) - 1 > 0),
    ):
        assert_same(call)


# ---- what runs at once ----


class Sub(np.ndarray):
    pass


class Convertible:
    """Counts how often it was asked for its values."""

    count = 0

    def __array__(self, dtype=None, copy=None):
        self.count += 1
        return np.arange(5.0)


class Number(float):
    pass


def odd(name):
    a = np.arange(5.0)
    return {
        "subclass": a.view(Sub),
        "masked": np.ma.masked_less(a, 2),
        "object": a.astype(object),
        "string": a.astype(str),
        "date": np.arange(5).astype("M8[s]"),
        "list": a.tolist(),
        "structured": np.zeros(5, "i,i"),
        "buffer": memoryview(a),
        "number": Number(3),
        "none": None,
    }[name]


ODD = (
    *("subclass", "masked", "object", "string", "date", "list", "structured"),
    *("buffer", "number", "none"),
)


@pytest.mark.parametrize("name", ODD)
def test_odd_arguments_run_at_once(name):
    a = np.arange(5.0)
    for place in range(3):
        operands = [a > 2, a, a[::-1]]
        operands[place] = odd(name)
        assert_same(where, operands)

        def with_deferred(operands=operands, place=place):
            others = [
                op
                if i == place
                else op.astype(op.dtype) | op.astype(bool)
                if op.dtype == bool
                else op + 1
                for i, op in enumerate(operands)
            ]
            return np.where(*others)

        assert_same(with_deferred)
        try:
            assert captured_by(where, operands) == 0
        except TypeError:
            assert name == "date" or name == "structured"


def test_arguments_are_converted_once():
    mask = np.ones(5, bool)
    for state in (False, True):
        x = Convertible()
        with np.deferredstate(state):
            np.where(mask, x, np.ones(5) * 2)
        assert x.count == 1


@pytest.mark.parametrize("dtype", [">f8", np.dtype("d", metadata={"a": 1}), ">i2"])
def test_types_that_are_not_native(dtype):
    x = values("h", N).astype(dtype)
    with comparison() as compared:
        for y in (x, x[::-1], values("d", N), 3):
            compared.same(f"{y!r}", np.where, x, x, y)
            outcome = np.where(x, x, y)
            with np.deferredstate(True):
                assert np.where(x, x, y).dtype.metadata == outcome.dtype.metadata


def test_empty():
    for shape in [(0,), (3, 0)]:
        a = np.ones(shape)
        assert captured_by(lambda a=a: np.where(a, a, 1)) == 0
        assert_same(lambda a=a: np.where(a + 1, a * 2, 1))


def test_off_and_none():
    a, mask = np.arange(5.0), values("?", 5)
    with counted() as counters:
        for state in (False, None):
            with np.deferredstate(state):
                assert not np.where(mask, a, 1).flags.deferred
    assert counters.captured == 0
    with np.errstate(all="ignore"):
        assert np.where(mask, a, 1).flags.deferred


def test_off_with_deferred_operands():
    """It runs at once, in one pass with what they stand for."""
    a = values("d", N, 1)
    with np.deferredstate(True):
        x = a - 2
    with counted() as counters, np.deferredstate(False):
        y = np.where(x > 0, x + 1, x)
        assert not y.flags.deferred
    assert counters.fused > 0
    with np.deferredstate(False):
        x = a - 2
        assert y.tobytes() == np.where(x > 0, x + 1, x).tobytes()


def test_small_ones():
    code = """
    import numpy as np
    with np.deferredstate(True), np.deferred.profile() as p:
        for n in (4095, 4096):
            a = np.ones(n)
            print(np.where(a, a, 0).flags.deferred)
    print([(at.ufunc, at.reason) for at in p.at_once])
    """
    small, large, why = output_of(code, NUMPY_DEFERRED_MIN_BYTES="32768").splitlines()
    assert (small, large) == ("False", "True")
    assert "where" in why
    assert "small" in why


# ---- together with others ----


def test_one_pass():
    a, b, c = (values("d", N, i) for i in range(3))
    with np.errstate(all="ignore"), counted() as counters, np.deferredstate(True):
        x = np.where(a > 0, a * b, c) + 1
        explanation = np.deferred.explain(x)
        np.deferred.calculate(x)
    assert [op.ufunc for op in explanation.operations] == [
        "greater",
        "multiply",
        "where",
        "add",
    ]
    assert explanation.operations[2].inputs == ("t0", "t1", "a0")
    assert explanation.plan.direct
    assert (counters.captured, counters.calculated) == (4, 1)


@pytest.mark.parametrize("threads", [1, 2, 3])
@each_type
def test_in_threads(char, threads, num_threads):
    num_threads(threads)
    n = 300_001
    mask, x, y = values("?", n), values(char, n, 1), values(char, n, 2)
    table = [a[:300_000].reshape(500, 600).T for a in (mask, x, y)]
    with np.errstate(all="ignore"):
        assert_same(lambda: np.maximum(np.where(mask, x, y), np.where(x, y, x)))
        assert_same(lambda: np.where(*table) * np.where(table[1], 2, table[2]))


def test_plans_are_kept():
    """With the types of each, though the operation is the same for all."""
    with comparison() as compared:
        for _ in range(3):
            for char in "dfle":
                for scalar in (1, 2.5, 0):
                    mask, x = values("?", N), values(char, N, 1)
                    compared.same(
                        f"{char} {scalar}",
                        lambda mask=mask, x=x, s=scalar: np.where(mask, x, s) * 1,
                    )


def test_into_what_is_there():
    mask, x, y = values("?", N), values("d", N, 1), values("d", N, 2)
    with np.errstate(all="ignore"):
        for change in (
            lambda out: np.copyto(out, np.where(mask, x * 2, y)),
            lambda out: out.__setitem__(..., np.where(mask, out, y)),
            lambda out: out.__setitem__(..., np.where(mask, y, out[::-1])),
            lambda out: out.__setitem__(
                slice(None, -1), np.where(mask[1:], out[1:], out[:-1])
            ),
            lambda out: out.__setitem__(
                slice(1, None), np.where(mask[1:], out[1:], out[:-1])
            ),
            lambda out: np.add(np.where(mask, out, y), out, out=out),
            lambda out: out.__iadd__(np.where(mask, x, 0)),
        ):

            def changed(change=change):
                out = x.copy()
                change(out)
                return out

            assert_same(changed)


def test_reduced():
    mask, x = values("?", N), values("i", N, 1)
    for name in ("sum", "max", "any", "prod"):
        assert_same(lambda name=name: getattr(np.where(mask, x, 7), name)())
    with counted() as counters, np.deferredstate(True):
        np.where(mask, x, 7).sum()
    assert (counters.reduced, counters.calculated) == (1, 0)


@pytest.mark.parametrize("place", range(3))
def test_operands_are_written_before_it_is_calculated(place):
    def written():
        operands = [values("?", N).copy(), values("d", N, 1).copy(), np.ones(N)]
        x = np.where(*operands)
        operands[place][: N // 2] = 0
        return x, operands[place]

    assert_same(written)


def test_operands_are_marked():
    mask, x, y = values("?", N).copy(), values("d", N, 1).copy(), np.ones(N)
    with np.deferredstate(True):
        z = np.where(mask, x, y)
        for operand in (mask, x, y):
            assert np.deferred.usage_count(operand) == 1
            assert operand.flags.deferred_waswriteable
        z += 1
        np.deferred.calculate(z)
    for operand in (mask, x, y):
        assert np.deferred.usage_count(operand) == 0
        assert operand.flags.writeable


def test_the_same_array_thrice():
    a = values("d", N)
    assert_same(lambda: np.where(a, a, a) + a)


def test_many_operations(num_threads):
    """More than one expression may have."""
    a, mask = np.arange(N) / N, values("?", N)

    def many():
        x = a
        for i in range(70):
            x = np.where(mask, x * 0.5, x + i)
        return x

    assert_same(many)


def test_conditions_of_another_size():
    """They are calculated first, once for each of their elements."""
    row, table = np.arange(300.0), np.ones((200, 300))
    assert_same(lambda: np.where(row * 2 > 100, table + 1, row))
    assert_same(lambda: np.where(table > 0, row - 1, row[:200, None] * 2))


def test_where_it_was_written():
    a = np.zeros(N)
    with np.deferredstate(True), np.deferred.profile() as p:
        x = np.where(a, a, 1)
        np.deferred.calculate(x)
    (event,) = p.events
    assert event.expression == "where(a0, a0, 1.0)"
    assert event.written[0].endswith(f"line {line()}")


def line():
    return test_where_it_was_written.__code__.co_firstlineno + 3


def test_in_several_threads_at_once():
    mask, x = values("?", N), np.arange(float(N))
    expected, results = np.where(mask, x * 2, 1).tobytes(), []

    def run():
        with np.deferredstate(True):
            results.extend(np.where(mask, x * 2, 1).tobytes() for _ in range(50))

    workers = [threading.Thread(target=run) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [expected] * 200


def test_it_is_no_public_ufunc():
    assert not isinstance(np.where, np.ufunc)
    assert not isinstance(np._core._multiarray_umath.where, np.ufunc)


@pytest.mark.parametrize("char", "bBhHiIlLfd")
def test_conditions_that_are_numbers(char):
    """True unless they are 0, whatever the bytes of them are."""
    a, b = values("d", 1000, 1), values("d", 1000, 2)
    condition = (np.arange(1000) % 3 * 256).astype(char)
    with np.errstate(all="ignore"):
        assert_same(lambda: np.where(condition, a * b, b))
        assert_same(lambda: np.where(condition, a + b, a - b))
