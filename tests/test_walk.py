"""Operands whose orders in memory differ, so that one walk may not do for all."""

import itertools
import math
import random

import numpy as np
import pytest

from helpers.compare import assert_same, comparison
from helpers.values import values


def turned(array, choice):
    """A view with its axes in any order and direction."""
    view = array.transpose(choice.sample(range(array.ndim), array.ndim))
    return view[tuple(slice(None, None, choice.choice([1, -1])) for _ in view.shape)]


def square(choice, n, ndim, dtype):
    steps = [choice.choice([1, 2, 3]) for _ in range(ndim)]
    room = np.arange(np.prod([n * step for step in steps])) % 97
    room = room.astype(dtype).reshape([n * step for step in steps])
    return turned(room[tuple(slice(None, None, step) for step in steps)], choice)


FORMS = [
    lambda a, b, c: np.sqrt(a) + b,
    lambda a, b, c: c * (a + b),
    lambda a, b, c: (a + b) * (c - a),
    lambda a, b, c: a + b,
]


def operands(choice):
    n, ndim = choice.choice([5, 9]), choice.choice([2, 3])
    dtype = choice.choice(["f8", "f4", "f2"])
    return [square(choice, n, ndim, dtype) for _ in range(4)]


def into_overlapping_out(seed):
    """`out` shares its memory with an operand of the call, in another order."""
    choice = random.Random(seed)
    *arrays, memory = operands(choice)
    x = choice.choice(FORMS)(*arrays)
    out, other = turned(memory, choice), turned(memory, choice)
    if choice.random() < 0.2:
        other = other[:1]
    np.add(other, x, out=out)
    return memory, *arrays


def assigned(seed):
    choice = random.Random(seed)
    *arrays, destination = operands(choice)
    x = choice.choice(FORMS)(*arrays)
    destination[...] = x
    return destination, x, *arrays


def fresh(seed):
    choice = random.Random(seed)
    *arrays, _ = operands(choice)
    return choice.choice(FORMS)(*arrays), *arrays


@pytest.mark.parametrize("program", [into_overlapping_out, assigned, fresh])
def test_orders(program):
    with comparison() as compared, np.errstate(all="ignore"):
        for seed in range(400):
            outcome = compared.same(f"seed {seed}", program, seed)
            compared.check(f"seed {seed}: {outcome.error}", outcome.error is None)


def test_overlapping_out_of_a_loop_that_sees_strides():
    """Eager NumPy gives the loop a contiguous copy of `out`, not `out`."""

    def run():
        memory = np.linspace(-2, 3, 4, dtype="f4").reshape(2, 2).copy()
        out, other = memory.T[:, ::-1], memory.T[::-1]
        x = memory.copy().T[:, ::-1] / 3
        return np.arctan2(other, x, out=out), memory

    assert_same(run)


def nans(dtype, n, seed):
    """NaNs that differ in sign and payload."""
    part = np.finfo(dtype).dtype
    unsigned = np.dtype(f"u{part.itemsize}")
    count = n * np.dtype(dtype).itemsize // part.itemsize
    marks = np.random.default_rng(seed).integers(0, 300, count).astype(unsigned)
    sign = (marks & 1) << unsigned.type(8 * part.itemsize - 1)
    return (np.array(np.nan, part).view(unsigned) | sign | marks).view(dtype)


SUMS = [
    lambda a, b, c: (a + b) * c,
    lambda a, b, c: a * b + c,
    lambda a, b, c: np.square(a) * b,
    lambda a, b, c: (a - b) * c + a,
]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c8", "c16"])
def test_which_nan_at_the_end_of_blocks(dtype):
    """Short loops, and the ends of loops, keep another NaN than the rest."""
    with comparison() as compared:
        for n in [*range(1, 35), *range(4090, 4120), *range(500, 1100, 7)]:
            operands = [nans(dtype, n, seed) for seed in range(3)]
            for i, form in enumerate(SUMS):
                compared.same(f"{n} {i}", form, *operands)


@pytest.mark.parametrize("dtype", ["c8", "c16"])
@pytest.mark.parametrize("n", [2, 3, 9])
def test_which_nan_in_complex_sums_and_products(dtype, n):
    """It depends on the neighbours, so on the way through memory."""
    with comparison() as compared:
        for seed in range(100):
            choice = random.Random(seed)
            operands = [
                turned(nans(dtype, n * n, 3 * seed + i).reshape(n, n).copy(), choice)
                for i in range(3)
            ]
            compared.same(f"seed {seed}", choice.choice(SUMS), *operands)


@pytest.mark.parametrize("to", ["i4", "u4", "i8", "u8"])
@pytest.mark.parametrize("char", ["e", "f", "d", "g"])
def test_numbers_that_integers_cannot_hold(char, to):
    """What these become depends on their place in a run, too."""

    def run(*shape):
        a = values(char, shape[0] * shape[1], 1).reshape(shape)
        total = np.zeros(shape, to)
        total[...] = a + a[::-1]
        return total, (a + a[::-1]).astype(to), (np.fabs(a) - a[::-1]).astype(to)

    with comparison() as compared, np.errstate(all="ignore"):
        for shape in [(7, 7), (20, 21), (200, 210), (300, 70)]:
            compared.same(str(shape), run, *shape)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 1), (1, 1, 1)])
def test_one_element(shape):
    """A loop is told to stay where it is, not to go on."""
    with comparison() as compared, np.errstate(all="ignore"):
        for char, order in itertools.product("efdD", "<>"):
            size = math.prod(shape)
            a = values(char, size, 3).reshape(shape).astype(f"{order}{char}")
            for ufunc in [np.arccos, np.log, np.square, np.exp]:
                compared.same(f"{a.dtype} {ufunc}", ufunc, a)
                compared.same(f"{a.dtype} {ufunc}", lambda f, a: f(f(a)), ufunc, a)
