"""The strides of a result are those that eager NumPy would give it."""

import itertools
import operator

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from helpers.compare import assert_same
from helpers.sanitizers import under

ORDERS = "KACF"


@st.composite
def arrays_over(draw, shape):
    """An array of (about) this shape, with any order, step and alignment of axes."""
    kept = [n if draw(st.integers(0, 4)) else 1 for n in shape]
    kept = kept[draw(st.integers(0, min(1, len(kept)))) :]
    axes = draw(st.permutations(range(len(kept))))
    steps = [draw(st.sampled_from([1, 1, 1, 2, -1, -2])) for _ in kept]
    char = draw(st.sampled_from(["d", "d", "d", "f", "i", "?", ">d", "D", "e"]))
    room = np.ones([kept[axis] * abs(steps[axis]) for axis in axes], char)
    ordered = room.transpose(np.argsort(axes))
    view = ordered[tuple(slice(None, None, step) for step in steps)]
    if draw(st.booleans()) and view.ndim:
        axis = draw(st.integers(0, view.ndim - 1))
        repeated = list(view.shape)
        repeated[axis] = shape[len(shape) - view.ndim + axis]
        if view.shape[axis] == 1:
            view = np.broadcast_to(view, repeated)
    return view


@st.composite
def operand_lists(draw):
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    return [draw(arrays_over(shape)) for _ in range(draw(st.integers(1, 3)))]


UFUNCS = {1: np.negative, 2: np.add, 3: np.clip}


def call(operands, order, chain):
    operands = [
        np.negative(op.astype(op.dtype)) if chain and op.dtype.kind == "f" else op
        for op in operands
    ]
    ufunc = UFUNCS[len(operands)]
    if ufunc is np.negative and operands[0].dtype.kind == "b":
        ufunc = np.logical_not
    return ufunc(*operands, order=order)


@settings(max_examples=1500, deadline=None)
@given(operands=operand_lists(), order=st.sampled_from(ORDERS), chain=st.booleans())
def test_random_operands(operands, order, chain):
    note([op.strides for op in operands])
    assert_same(call, operands, order, chain)
    with np.deferredstate(True):
        result = call(operands, order, chain)
    assert result.flags.deferred or result.ndim == 0


@settings(max_examples=500, deadline=None)
@given(operands=operand_lists())
def test_of_deferred_operands(operands):
    """A deferred operand has the strides by which the next result goes."""
    note([op.strides for op in operands])

    def twice():
        first = call(operands, "K", False)
        return first, np.logical_not(first), np.add(operands[0], first, order="A")

    assert_same(twice)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("axes", list(itertools.permutations(range(4))))
def test_permutations(axes, order):
    a = np.ones((2, 3, 4, 5)).transpose(axes)
    assert_same(np.add, a, 1)
    assert_same(lambda: np.add(a, a, order=order))
    assert_same(lambda: np.add(a, a[:1], order=order))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 5), (5, 1), (3, 1, 4), (1, 3, 1)])
def test_axes_of_length_one(shape, order):
    for a in (
        np.ones(shape),
        np.ones(shape, order="F"),
        np.ones(shape)[::-1],
        np.ones((2, *shape))[1],
        np.ones(tuple(2 * n for n in shape))[
            tuple(slice(None, None, 2) for _ in shape)
        ],
    ):
        assert_same(lambda a=a: np.add(a, a, order=order))
        assert_same(lambda a=a: np.negative(a, order=order))


@pytest.mark.parametrize("ndim", [1, 2, 31, 32, 33, 63, 64])
def test_many_axes(ndim):
    a = np.ones((1,) * (ndim - 1) + (3,))
    assert_same(lambda: (a + a) * a.T)


@pytest.mark.parametrize("shape", [(1 << 45,), (1 << 31, 1 << 31)])
def test_too_large_for_memory(shape):
    assert assert_same(lambda: np.broadcast_to(1.0, shape) + 1).error is not None


def make_tables(dtype="d"):
    """Named arrays, in either order, large enough for eager NumPy's shortcut."""
    c = (np.arange(400.0 * 420) % 97).reshape(400, 420).astype(dtype)
    return c, np.asfortranarray(c[::-1])


#: Eager NumPy writes the result of an operator into a temporary of its operands.
TEMPORARIES = {
    "left": lambda c, f: np.sqrt(f) * c,
    "right": lambda c, f: c * np.sqrt(f),
    "not commutative": lambda c, f: c - np.sqrt(f),
    "left of two": lambda c, f: np.sqrt(f) + np.sqrt(c),
    "first of two": lambda c, f: np.sqrt(c) + np.sqrt(f),
    "divided": lambda c, f: np.sqrt(f) / (c + 1),
    "other type": lambda c, f: c.astype("f4") * np.sqrt(f),
    "to another type": lambda c, f: np.sqrt(f.astype("f4")) * c,
    "scalar": lambda c, f: 2 * np.sqrt(f) + c,
    "row": lambda c, f: np.sqrt(f) * c[0],
    "masks": lambda c, f: (c > 3) & (f > 3),
    "named": lambda c, f: (lambda t: t * c)(np.sqrt(f)),
    "named left": lambda c, f: (lambda t: t * np.sqrt(c))(np.sqrt(f)),
    "minus": lambda c, f: -np.sqrt(f) * c,
    "length of a complex number": lambda c, f: abs(np.sqrt(f + 0j)) + c,
    "squared": lambda c, f: (f + 0.5) ** 2 * c,
    "axes of length one": lambda c, f: -(c.reshape(1, -1) + c.reshape(-1, 1)[:1]),
    "chain": lambda c, f: ((c * c + f) * c - f) * f + c,
    "a ufunc": lambda c, f: np.multiply(np.sqrt(f), c),
}


@pytest.mark.parametrize("name", TEMPORARIES)
def test_of_temporaries(name):
    tables = make_tables()
    assert_same(TEMPORARIES[name], *tables)
    with np.deferredstate(True):
        assert TEMPORARIES[name](*tables).flags.deferred


@pytest.mark.skipif(under("asan"), reason="NumPy reuses no temporaries there")
@pytest.mark.parametrize("other", [np.True_, np.ones(50_000, bool), 1])
def test_type_of_temporaries(other):
    """Of two types with one meaning, it is that of the temporary."""
    a = np.ones(50_000, np.longlong)
    chars = []
    for state in [False, True]:
        with np.deferredstate(state):
            chars.append((np.abs(a) | other).dtype.char)
    assert chars == ["q", "q"]


@pytest.mark.parametrize("operation", [operator.add, operator.mul])
def test_which_nan_of_temporaries(operation):
    """The first operand's, which a temporary on the right becomes."""
    other = np.full(50_000, -np.nan)
    mine = np.full(50_000, np.nan)
    mine.view("u8")[::3] += 5
    for left, right in [(other, mine), (mine, other)]:
        assert_same(lambda a, b: operation(a, abs(b)), left, right)
        assert_same(lambda a, b: operation(abs(a), b), left, right)


def test_of_temporaries_that_run_at_once():
    """What is not deferred for another reason has the same layout."""
    c, f = make_tables()

    def switched():
        t = [np.sqrt(f)]
        with np.deferredstate(False):
            return t.pop() * c

    assert_same(switched)
    memoryview(c)
    assert_same(lambda: np.sqrt(f) * c)
