"""
Operands that are copied on the way: short rows, and what lies across.

The oracle is eager NumPy. Shapes are around the lengths of rows, panels and
squares; each size of element is copied in its own way.
"""

import itertools
import math
import random

import numpy as np
import pytest

from helpers.compare import comparison
from helpers.layouts import LAYOUTS
from helpers.values import values

SHAPES = (
    (2, 3),
    (9, 2),
    (1000, 3),
    (500, 4),
    (700, 5),
    (70, 63),
    (65, 64),
    (63, 65),
    (40, 130),
    (300, 301),
    (8, 1000),
    (5, 6, 7),
    (30, 40, 2),
    (3, 50, 60),
    (12, 1, 13),
    (4, 3, 5, 10),
    (2, 2, 2, 2, 3),
)


def usual(char, shape, seed):
    rng = np.random.default_rng(seed)
    return rng.uniform(1, 100, shape).astype(char)


def permuted(rng, char, shape, seed, make):
    """An array of this shape whose axes lie in memory in any order, or repeat."""
    axes = rng.sample(range(len(shape)), len(shape))
    lying = [shape[i] for i in axes]
    array = make(char, tuple(lying), seed).transpose(np.argsort(axes))
    for i in range(len(shape)):
        if rng.random() < 0.25:
            array = array[(slice(None),) * i + (slice(0, 1),)]
        elif rng.random() < 0.2:
            array = array[(slice(None),) * i + (slice(None, None, -1),)]
    return array


def special(char, shape, seed):
    return values(char, math.prod(shape), seed).reshape(shape).copy()


def operands(rng, char, shape, make):
    arrays = [permuted(rng, char, shape, i, make) for i in range(3)]
    room = make(char, tuple(n + 2 for n in shape), 3)
    arrays.append(room[(slice(1, -1),) * len(shape)])
    return arrays


def expressions(a, b, c, d):
    return (
        lambda: a * b + c,
        lambda: (a - d) * (b + c) - d,
        lambda: a + d,
        lambda: (a > b) & (c != d),
        lambda: 3 * a + b - c * d,
        lambda: (c * a) + (b * d) * (a + 1),
    )


@pytest.mark.parametrize("char", "dfilbHF?")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("make", [usual, special])
def test_any_order_of_axes(char, shape, make):
    rng = random.Random(f"{char}{shape}{make}")
    if char == "?":
        make = special
    with comparison() as compare, np.errstate(all="ignore"):
        for i in range(6):
            arrays = operands(rng, char, shape, make)
            if char == "?":
                arrays = [array | ~array for array in arrays]
            for j, expression in enumerate(expressions(*arrays)):
                if char == "?" and j in (1, 4):  # booleans have no difference
                    continue
                compare.same(f"{i}: {j}", expression)


def destinations(char, shape):
    """Existing memory, and a function that takes a part of it for a result."""
    room = tuple(n + 2 for n in shape)
    inner = (slice(1, -1),) * len(shape)
    backward = (slice(None, None, -1),) * len(shape)
    other = {"d": "f", "f": "d", "F": "D"}.get(char, "d")
    return (
        (np.zeros(shape, char), lambda memory: memory),
        (np.zeros(shape, other), lambda memory: memory),
        (np.zeros(shape[::-1], char), lambda memory: memory.T),
        (np.zeros(room, char), lambda memory: memory[inner]),
        (np.zeros(shape, char), lambda memory: memory[backward]),
        (np.zeros(math.prod(shape) + 1, char), lambda m: m[1:].reshape(shape)),
    )


def written(memory, part, write):
    memory[...] = 7
    write(part(memory))
    return memory.copy()


@pytest.mark.parametrize("char", "dfiF")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("make", [usual, special])
def test_into_existing_memory(char, shape, make):
    """NaNs that only eager NumPy tells from another are written a second time."""
    rng = random.Random(f"{char}{shape}{make}")
    with comparison() as compare, np.errstate(all="ignore"):
        for i in range(4):
            a, b, c, d = operands(rng, char, shape, make)
            whole = np.broadcast_shapes(a.shape, b.shape, c.shape, d.shape)
            for j, (memory, part) in enumerate(destinations(char, whole)):

                def assign(out, a=a, b=b, c=c, d=d):
                    out[...] = (a - d) * (b + c) - d

                def call(out, a=a, b=b, c=c, d=d):
                    np.add(a * b, c + d, out=out, casting="unsafe")

                def rewrite(out, a=a, b=b, d=d):
                    out[...] = a + d
                    out += a * b + out

                for write in (assign, call, rewrite):
                    if write is rewrite and j == 1:  # casts by same_kind alone
                        continue
                    compare.same(
                        f"{i}: {write.__name__} to {j}", written, memory, part, write
                    )


@pytest.mark.parametrize("char", "df")
@pytest.mark.parametrize(
    "layouts",
    itertools.product(LAYOUTS, repeat=2),
    ids=lambda pair: "-".join(layout.__name__ for layout in pair),
)
def test_layouts(char, layouts):
    shape = (37, 3)
    a, b = (
        layout(values(char, math.prod(shape), i), shape)
        for i, layout in enumerate(layouts)
    )
    column, row = usual(char, (37, 1), 3), usual(char, (3,), 4)
    with comparison() as compare, np.errstate(all="ignore"):
        compare.same("arithmetic", lambda: (a * column - b) / row)
        compare.same("mixed", lambda: np.exp(a) * column + b.astype("f4"))


@pytest.mark.parametrize("char", "df")
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    "shape", [(40_000, 3), (300, 400), (50, 50, 50, 2), (8192, 17)]
)
def test_threads_and_errors(char, threads, shape, num_threads):
    """Panels are divided among threads; an error is told of one operation."""
    num_threads(threads)
    a, column = usual(char, shape, 1), usual(char, (*shape[:-1], 1), 2)
    crossing = usual(char, shape[::-1], 3).T
    with comparison() as compare, np.errstate(all="warn"):
        for at in (None, 0, -1, column.size // 2):
            if at is not None:
                column.flat[at] = 0
            compare.same(f"zero at {at}", lambda: (a / column + crossing) * a)
            column[...] = 1
            if at is not None:
                crossing[(at,) if at < 1 else (shape[0] // 2,)] = np.nan
            compare.same(f"nan at {at}", lambda: (a * column + crossing) * a)
            crossing[...] = 2


@pytest.mark.parametrize("char", "dfi")
def test_reduced(char):
    """What is packed is reduced without being stored, too."""
    with comparison() as compare, np.errstate(all="ignore"):
        for shape in SHAPES:
            a, b = usual(char, shape, 1), usual(char, shape[::-1], 2).T
            for axis in (None, 0, -1):
                compare.same(f"{shape}, {axis}", lambda x=axis: (a * b - a).sum(x))  # noqa: B023
                compare.same(f"{shape}, {axis}", lambda x=axis: (a * b - a).max(x))  # noqa: B023


class TestPlan:
    """What is one loop now."""

    @pytest.mark.parametrize(
        ("a", "b"),
        [((10_000, 3), (10_000, 1)), ((20, 20, 20, 10), (20, 20, 1, 10))],
    )
    def test_short_rows(self, a, b):
        a, b = usual("d", a, 1), usual("d", b, 2)
        with np.deferredstate(True):
            plan = np.deferred.explain(a * b + a / b).plan
        assert (plan.steps, plan.loops) == (3, 1)

    def test_crossing(self):
        a = usual("d", (200, 300), 1)
        b = usual("d", (300, 200), 1)
        with np.deferredstate(True):
            plan = np.deferred.explain(a * b.T + a).plan
        assert (plan.steps, plan.loops) == (2, 1)

    def test_into_existing_memory(self):
        a, b = usual("d", (10_000, 3), 1), usual("d", (10_000, 1), 2)
        out = np.zeros((10_000, 3))
        with (
            np.errstate(all="ignore"),
            np.deferredstate(True),
            np.deferred.profile() as profiled,
        ):
            out[...] = a * b + a / b
            np.add(a * b, a / b, out=out)
        plans = [event.explanation.plan for event in profiled.events]
        assert [(plan.steps, plan.loops) for plan in plans] == [(3, 1), (3, 1)]

    def test_two_orders_meet(self):
        """The sum is written in another order than the product eager NumPy makes."""
        a, b, c = (usual("d", (200, 200), i) for i in range(3))
        with np.deferredstate(True):
            plan = np.deferred.explain((a.T * b.T) + c).plan
        assert (plan.steps, plan.loops) == (2, 1)

    def test_what_rounds_by_layout_is_not_packed(self):
        """exp() of what does not lie side by side is another loop of NumPy's."""
        a, b = usual("d", (200, 300), 1) / 100, usual("d", (300, 200), 2) / 100
        with comparison() as compare:
            compare.same("exp", lambda: np.exp(b.T) * a + np.sin(b.T))
