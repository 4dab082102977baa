"""
Steps that run together in registers: random trees of what the machine has.

The oracle is eager NumPy. The trees are as deep and as wide as programs get, and
wider; operands lie in all ways; special values meet.
"""

import math
import os
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from numpy._core._multiarray_umath import __cpu_baseline__

from helpers.compare import assert_same, comparison
from helpers.counting import counted
from helpers.layouts import contiguous, negative, operand, strided, swapped, unaligned
from helpers.processor import HAS_AVX2
from helpers.values import values

pytestmark = pytest.mark.usefixtures("machine")

FLOATS = {
    2: (np.add, np.subtract, np.multiply, np.divide, np.maximum, np.minimum),
    1: (
        np.negative,
        np.absolute,
        np.fabs,
        np.square,
        np.sqrt,
        np.reciprocal,
        np.floor,
        np.ceil,
        np.trunc,
        np.rint,
    ),
}
INTEGERS = {
    2: (
        np.add,
        np.subtract,
        np.multiply,
        np.bitwise_and,
        np.bitwise_or,
        np.bitwise_xor,
        np.maximum,
        np.minimum,
        np.left_shift,
        np.right_shift,
    ),
    1: (np.negative, np.square, np.invert, np.absolute),
}
COMPLEX = {
    2: (np.add, np.subtract, np.multiply, np.multiply),
    1: (np.negative, np.square, np.conjugate),
}
COMPARISONS = (
    np.less,
    np.less_equal,
    np.greater,
    np.greater_equal,
    np.equal,
    np.not_equal,
)
PREDICATES = (np.isnan, np.isinf, np.isfinite)
#: What is cast on its way into a program.
NARROW = {
    "d": "fbBhHiIlq?",
    "f": "bBhH?",
    "l": "bBhHiI?",
    "i": "bBhH?",
    "D": "Fdi",
    "F": "fh",
}
LAYOUTS = (contiguous, contiguous, strided, negative, unaligned, swapped)
SHAPES = (
    (1,),
    (5,),
    (64,),
    (127,),
    (128,),
    (129,),
    (1000,),
    (9001,),
    (3, 66),
    (65, 130),
    (2, 3, 200),
    (40, 3),
    (100, 150),
)


def usual(char, n, seed):
    """Numbers of usual size, none of which raises an error."""
    rng = np.random.default_rng(seed)
    numbers = rng.uniform(1, 100, n)
    if char in "DF":
        numbers = numbers + 1j * rng.uniform(-100, 100, n)
    return numbers.astype(char)


class Tree:
    """A random expression, as the steps that build it; runs on any operands."""

    def __init__(self, rng, char, shape, size, special):
        self.steps = []
        table = INTEGERS if char in "iIlLqQ" else COMPLEX if char in "DF" else FLOATS
        self.operands = [
            self.operand(rng, char, shape, i, special) for i in range(rng.randint(1, 6))
        ]
        nvalues = len(self.operands)
        for i in range(size):
            nin = 1 if rng.random() < 0.25 else 2
            ufunc = rng.choice(table[nin])
            # The last values are taken most, so that trees grow, some of them twice.
            low = 0 if rng.random() < 0.5 else max(0, nvalues - 3)
            args = [rng.randrange(low, nvalues) for _ in range(nin)]
            if rng.random() < 0.7 or i == size - 1:
                args[0] = nvalues - 1
            if all(np.ndim(x) == 0 for x in map(self.operand_or_array, args)):
                args[0] = 0  # scalars alone run at once, and raise errors then
            self.steps.append((ufunc, rng.sample(args, nin)))
            nvalues += 1
        if rng.random() < 0.3:
            self.steps.append(
                (rng.choice(COMPARISONS), [nvalues - 1, rng.randrange(nvalues)])
            )
        elif table is FLOATS and rng.random() < 0.2:
            self.steps.append((rng.choice(PREDICATES), [nvalues - 1]))
        self.drop_unread()

    def operand_or_array(self, i):
        return self.operands[i if i < len(self.operands) else 0]

    def drop_unread(self):
        """What nobody reads would raise errors in eager NumPy only."""
        first = len(self.operands)
        read = {first + len(self.steps) - 1}
        for i, (_, args) in reversed(list(enumerate(self.steps, first))):
            if i in read:
                read.update(args)
        self.steps = [
            step if i in read else None for i, step in enumerate(self.steps, first)
        ]

    @staticmethod
    def operand(rng, char, shape, i, special):
        kind = rng.random()
        make = values if special else usual
        if i > 0 and kind < 0.2:
            return make(char, 40, i)[rng.randrange(40)]
        if i > 0 and len(shape) > 1 and kind < 0.4:
            axis = rng.randrange(len(shape))
            shape = (*shape[:axis], 1, *shape[axis + 1 :])
        layout = rng.choice(LAYOUTS)
        if i > 0 and rng.random() < 0.3:
            char = rng.choice(NARROW.get(char, char))
        if special:
            return operand(char, shape, i, layout)
        return layout(make(char, math.prod(shape), i), shape)

    def __call__(self):
        known = list(self.operands)
        for step in self.steps:
            if step is None:
                known.append(None)
                continue
            ufunc, args = step
            known.append(ufunc(*(known[i] for i in args)))
        return known[-1]


#: On booleans; each is what a machine does with masks.
CONNECTIVES = (
    np.bitwise_and,
    np.bitwise_or,
    np.bitwise_xor,
    np.logical_and,
    np.logical_or,
    np.multiply,
    np.add,
    np.not_equal,
)


class Question:
    """A random connection of comparisons and flags; it may be counted as numbers."""

    def __init__(self, rng, char, shape):
        numbers = [Tree.operand(rng, char, shape, i, special=True) for i in range(4)]
        numbers[0] = np.broadcast_to(numbers[0], shape)
        odd = np.resize(np.arange(256, dtype="u1"), math.prod(shape)) % 5
        flags = [rng.choice(LAYOUTS)(odd.view("?"), shape)]
        self.parts = [numbers, flags]
        self.choices = [rng.random() for _ in range(80)]
        self.size = rng.randint(1, 9)

    def __call__(self):
        choices = iter(self.choices)

        def choose(from_what):
            return from_what[int(next(choices) * len(from_what))]

        numbers, flags = self.parts
        is_float = numbers[0].dtype.kind == "f"

        def question():
            if is_float and next(choices) < 0.3:
                return choose(PREDICATES)(choose(numbers) + numbers[0])
            return choose(COMPARISONS)(choose(numbers), numbers[0])

        result = question()
        for _ in range(self.size):
            other = choose(flags)
            if next(choices) < 0.7:
                other = question()
            operands = [result, other] if next(choices) < 0.5 else [other, result]
            result = choose(CONNECTIVES)(*operands)
            if next(choices) < 0.2:
                result = choose((np.invert, np.logical_not))(result)
        return result if next(choices) < 0.6 else result * numbers[0] + numbers[0]


class Choice:
    """Selections among numbers, of which some are made of others, one in another."""

    def __init__(self, rng, char, shape, special):
        self.numbers = [Tree.operand(rng, char, shape, i, special) for i in range(5)]
        self.numbers[0] = np.broadcast_to(self.numbers[0], shape)
        odd = np.resize(np.arange(256, dtype="u1"), math.prod(shape)) % 5
        self.flags = rng.choice(LAYOUTS)(odd.view("?"), shape)
        self.operations = (INTEGERS if char in "iIlLqQ" else FLOATS)[2]
        self.choices = [rng.random() for _ in range(200)]

    def __call__(self):
        choices = iter(self.choices)

        def choose(from_what):
            return from_what[int(next(choices) * len(from_what))]

        def number(depth):
            kind = next(choices) + depth / 8
            if kind < 0.4:
                return selection(depth + 1)
            if kind < 0.9:
                return choose(self.operations)(number(depth + 2), self.numbers[0])
            return choose(self.numbers)

        def mask(depth):
            kind = next(choices)
            if kind < 0.2:
                return self.flags
            if kind < 0.4 and depth < 4:
                return choose(CONNECTIVES)(mask(depth + 2), mask(depth + 2))
            return choose(COMPARISONS)(number(depth + 3), self.numbers[0])

        def selection(depth):
            x, y = number(depth), number(depth)
            return np.where(mask(depth), x, y)

        result = selection(0)
        return result if next(choices) < 0.5 else result * self.numbers[0]


@pytest.mark.parametrize("char", "dfiIlL")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("special", [False, True], ids=["usual", "special"])
def test_random_choices(char, shape, special):
    rng = random.Random(f"choices {char}{shape}{special}")
    with comparison() as compare, np.errstate(all="ignore"):
        for i in range(40):
            compare.same(f"choice {i}", Choice(rng, char, shape, special))


@pytest.mark.parametrize(
    ("char", "signalling"), [("d", 0x7FF4000000000001), ("f", 0x7FA00001)]
)
def test_selections_move_bits(char, signalling):
    """Also those of NaNs that signal, which arithmetic would silence."""
    nan = np.array(signalling, f"u{np.dtype(char).itemsize}").view(char)
    with comparison() as compare, np.errstate(all="ignore"):
        for n in (1, 63, 64, 1000, N):
            x, y, mask = values(char, n, 1).copy(), values(char, n, 2), values("?", n)
            x[::7] = nan
            compare.same(f"{n}", lambda x=x, y=y: -np.where(x != y, x, y))
            compare.same(f"{n} mask", lambda x=x, m=mask: np.abs(np.where(m, x, nan)))
            compare.same(f"{n} scalar", lambda y=y: np.where(y * y > 2, y, nan[()]))
            compare.same(f"{n} hidden", lambda y=y: np.where(y == y, y * y, nan) > 2)


#: NaNs of a type: two that signal, two that do not.
NANS = {
    "d": [0x7FF4 << 48 | 1, 0xFFF4 << 48 | 1, 0x7FF8 << 48 | 2, 0xFFF8 << 48 | 2],
    "f": [0x7FA00001, 0xFFA00001, 0x7FC00002, 0xFFC00002],
}


def special_values(char, with_nans):
    if char in "df":
        nans = np.array(NANS[char], f"u{np.dtype(char).itemsize}").view(char)
        numbers = np.array([0.0, -0.0, 1, -1, np.inf, -np.inf, 1e-45], char)
        return np.concatenate([numbers, nans]) if with_nans else numbers
    info = np.iinfo(char)
    return np.array([info.min, info.max, 0, 1, info.max // 2], char)


@pytest.mark.parametrize("char", "dfiIlL")
@pytest.mark.parametrize("ufunc", [np.maximum, np.minimum])
@pytest.mark.parametrize("with_nans", [False, True])
def test_extremes_of_special_values(char, ufunc, with_nans):
    """At every place of a vector, and as scalars: which zero, and which NaN."""
    special = special_values(char, with_nans)
    a, b = np.repeat(special, len(special)), np.tile(special, len(special))
    with comparison() as compare, np.errstate(all="ignore"):
        for start in range(0, 33, 3):
            for step in (1, 2, -1):
                x, y = np.tile(a, 40)[start::step], np.tile(b, 40)[start::step]
                for n in (1, 7, 100, 1000):
                    p, q = x[:n], y[:n]
                    name = f"{start} {step} {n}"
                    compare.same(f"{name} first", lambda p=p, q=q: ufunc(-p, q))
                    compare.same(f"{name} last", lambda p=p, q=q: ufunc(p, -q))
                    compare.same(f"{name} both", lambda p=p, q=q: ufunc(-p, q * 1))
                    compare.same(f"{name} read", lambda p=p, q=q: ufunc(-p, q) < p)
        for scalar in special:
            compare.same(f"{scalar} last", lambda s=scalar: ufunc(-a, s))
            compare.same(f"{scalar} first", lambda s=scalar: ufunc(s, -a))
            compare.same(f"{scalar} read", lambda s=scalar: ufunc(-a, s) != a)


@pytest.mark.parametrize("char", "dfiIlL")
@pytest.mark.parametrize("with_nans", [False, True])
def test_clip_of_special_values(char, with_nans):
    """With limits that are NaNs, zeros of another sign, or in the wrong order."""
    limits, a = special_values(char, True), special_values(char, with_nans)
    a = np.tile(a, 30)
    low, high = np.resize(limits, a.shape), np.resize(limits[::-1], a.shape)
    with comparison() as compare, np.errstate(all="ignore"):
        for first in limits:
            for last in limits:
                name = f"{first} {last}"

                def clipped(first=first, last=last):
                    return np.clip(-a, first, last)

                compare.same(name, clipped)
                compare.same(f"{name} read", lambda f=clipped: f() != a)
                compare.same(f"{name} on", lambda f=clipped: f() + 1)
        compare.same("arrays", lambda: -np.clip(-a, low, high))
        compare.same("array", lambda: -np.clip(-a, low, limits[0]))


ROUNDED = (0.0, 0.3, 0.5, 1.5, 2.5, 2**23 - 0.5, 2**23 + 1, 2**52 - 0.5, 2**52 + 1)


@pytest.mark.parametrize("char", "df")
@pytest.mark.parametrize(
    "ufunc",
    [np.floor, np.ceil, np.trunc, np.rint, np.reciprocal, np.fabs, *PREDICATES],
)
def test_floats_one_by_one(char, ufunc):
    """Halves, what has no fraction, both zeros; each NaN at each place of a vector."""
    edges = np.array(ROUNDED, char)
    next_to = [np.nextafter(edges, edges.dtype.type(to)) for to in (np.inf, -np.inf)]
    numbers = np.concatenate([special_values(char, True), edges, *next_to])
    a = np.tile(np.concatenate([numbers, -numbers]), 40)
    with comparison() as compare:
        for error in ("ignore", "warn"):
            with np.errstate(all=error):
                for start in range(9):
                    for n in (1, 7, 100, len(a) - start):
                        x = a[start : start + n]
                        name = f"{error} {start} {n}"
                        compare.same(name, lambda x=x: ufunc(-x))
                        compare.same(f"{name} read", lambda x=x: ufunc(-x) == x)
                        compare.same(f"{name} every", lambda x=x: ufunc(x[::2] * 1))


@pytest.mark.parametrize("char", "iIlLqQ")
@pytest.mark.parametrize("ufunc", [np.left_shift, np.right_shift])
def test_shifts(char, ufunc):
    """By all numbers of steps, more than there are bits, and less than none."""
    bits = 8 * np.dtype(char).itemsize
    steps = [0, 1, 2, bits // 2, bits - 1, bits, bits + 1, 2 * bits, 200]
    if np.dtype(char).kind == "i":
        steps += [-1, -bits, np.iinfo(char).min]
    steps = np.array([*steps, np.iinfo(char).max], char)
    numbers = np.concatenate([special_values(char, True), values(char, 30, 1)])
    a, n = np.repeat(numbers, len(steps)), np.tile(steps, len(numbers))
    a, n = np.tile(a, 5), np.tile(n, 5)
    with comparison() as compare:
        for size in (1, 5, 127, len(a)):
            x, y = a[:size], n[:size]
            compare.same(f"{size} both", lambda x=x, y=y: ufunc(x ^ 1, y))
            compare.same(f"{size} last", lambda x=x, y=y: ufunc(x, y + 0))
            compare.same(f"{size} banks", lambda x=x, y=y: ufunc(x ^ 1, y + 0))
            compare.same(f"{size} turned", lambda x=x, y=y: ufunc(x ^ 1, (y ^ x) ^ x))
            compare.same(f"{size} itself", lambda x=x: ufunc(x ^ 1, x))
        for step in steps:
            compare.same(f"by {step}", lambda s=step: ufunc(a + 1, s) - 1)
            compare.same(f"of {step}", lambda s=step: ufunc(s, n + 0) - 1)


@pytest.mark.parametrize("char", "dfiIlL")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_questions(char, shape):
    rng = random.Random(f"questions {char}{shape}")
    with comparison() as compare, np.errstate(all="ignore"):
        for i in range(40):
            compare.same(f"question {i}", Question(rng, char, shape))


def count_loops(tree):
    """Loops and steps of the plan, or None when there is none."""
    with np.deferredstate(True):
        plan = np.deferred.explain(tree()).plan
    return plan and (plan.loops, plan.steps)


@pytest.mark.parametrize("char", "dfiIlLDF")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("special", [False, True], ids=["usual", "special"])
def test_random_trees(char, shape, special):
    rng = random.Random(f"{char}{shape}{special}")
    with comparison() as compare, np.errstate(all="ignore"):
        for i in range(40):
            tree = Tree(rng, char, shape, rng.choice((2, 3, 5, 9, 20, 45)), special)
            compare.same(f"tree {i}", tree)


@pytest.mark.parametrize("char", "dfDF")
@pytest.mark.parametrize("error", ["warn", "raise"])
def test_errors(char, error):
    """They are told of the operation that raised them, wherever that is."""
    rng = random.Random(f"{char}{error}")
    with comparison() as compare, np.errstate(all=error):
        for i in range(150):
            shape = rng.choice(SHAPES)
            tree = Tree(rng, char, shape, rng.choice((2, 3, 5, 9)), rng.random() < 0.5)
            compare.same(f"tree {i}", tree)


@pytest.mark.parametrize("char", "df")
@pytest.mark.parametrize("n", [300, 20_000])
def test_one_error_late(char, n):
    """One element of many, in whatever block it is."""
    a, b = usual(char, n, 1), usual(char, n, 2)
    with comparison() as compare, np.errstate(all="warn"):
        for at in (0, 1, n // 2, n - 1):
            for value in (0, -1, np.nan, np.inf):
                b[at] = value
                compare.same(f"{value} at {at}", lambda: a * a / b - a * np.sqrt(b))
                b[at] = 1


@pytest.mark.parametrize("char", "dfilDF")
@pytest.mark.parametrize("shift", [0, 1, 63, 64, 200])
@pytest.mark.parametrize("n", [100, 500, 9000])
def test_result_over_operands(char, shift, n):
    """In place, and where earlier and later elements are still to be read."""
    zero = 0 if char in "dfDF" else 1

    def run(target, source):
        room = values(char, n + shift, 3)
        room[n // 2] = zero
        a, out = room[source : source + n], room[target : target + n]
        b = values(char, n, 4)
        out[...] = a * b - (a + b) * a
        np.add(a * b, out - a, out=out)
        out *= a - b * 2
        return room

    with comparison() as compare:
        for error in ("ignore", "warn"):
            with np.errstate(all=error):
                compare.same(f"back, {error}", run, 0, shift)
                compare.same(f"forth, {error}", run, shift, 0)


@pytest.mark.parametrize("char", "dfiLDF")
@pytest.mark.parametrize("every", [-5, -4, -3, -2, -1, 2, 3, 4, 5, 16])
def test_every_nth_element(char, every):
    """Up to the end of the memory, beyond which AddressSanitizer sees what reads."""
    with comparison() as compare:
        for n in (1, 9, 64, 65, 128, 130, 1000, 20_000):
            a = values(char, (n - 1) * abs(every) + 1, 1).copy()[::every]
            b = values(char, n, 2)
            compare.same(f"{n}", lambda a=a, b=b: (a * b + a) * (b - a))
            compare.same(f"{n}, copied", lambda a=a, b=b: a.copy() * b + a * 2)


@pytest.mark.parametrize("char", "df")
def test_fields_that_are_no_multiple_apart(char):
    """As in a packed structure: strides are not whole elements."""
    records = np.zeros(1000, [("x", char), ("y", "u4"), ("z", "u2")])
    records["x"] = values(char, 1000, 1)
    with comparison() as compare, np.errstate(all="ignore"):
        compare.same("x", lambda: records["x"] * records["x"] + 3 * records["x"])


@pytest.mark.parametrize("ufunc", COMPARISONS)
def test_integers_with_and_without_a_sign(ufunc):
    """Their comparison is one of numbers, though they have the same size."""
    a, b = values("q", 1000, 1), values("Q", 1000, 2)
    with comparison() as compare:
        compare.same("qQ", lambda: ufunc(a + a, b + b))
        compare.same("Qq", lambda: ufunc(b + b, a + a) & (a > 1))
        compare.same("counted", lambda: ufunc(a, b) * a + a)
    x, y = np.array([-1, 5, 3] * 400), np.array([3, 2**63 + 5, 3] * 400, np.uint64)
    with comparison() as compare:
        compare.same("signed first", lambda: ufunc(x * 1, y))
        compare.same("unsigned first", lambda: ufunc(y * 1, x))


def test_booleans_that_are_neither_0_nor_1():
    """Any byte but 0 is true; a view can have written it."""
    flags = np.zeros(1000, bool)
    flags.view(np.uint8)[::3] = 3
    with comparison() as compare:
        for factor in (0.5, np.float32(0.5), 2):
            compare.same(f"{factor}", lambda k=factor: flags * k + k)
            compare.same(f"{factor} > 1", lambda k=factor: flags * k + k > 1)


@pytest.mark.parametrize("char", "df")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("special", ["nan", "zero"])
def test_short_rows_run_again(char, threads, special, num_threads):
    """Those that ran together with one that stores a NaN, or raises, and no others."""
    num_threads(threads)
    a = usual(char, 200 * 151, 1).reshape(200, 151)[:, 1:]
    b, row = usual(char, 200, 2)[:, None], usual(char, 150, 3)
    with comparison() as compare, np.errstate(all="warn"):
        for i in (0, 31, 32, 100, 199):
            view = np.empty((200, 151), char)[:, 1:]
            view[...] = a
            view[i, 7] = np.nan if special == "nan" else 0
            compare.same(f"{special} in {i}", lambda v=view: (row / v + b) * v)


def test_nans_everywhere():
    """Units are given up for steps, in the middle of a calculation."""
    a, b = values("d", 300_000, 1).copy(), values("d", 300_000, 2)
    a[:100_000] = 1
    with comparison() as compare, np.errstate(all="warn"):
        compare.same("mixed", lambda: (a * b + b) * (a - b) + a)


N = 10_000


class TestLoops:
    """What runs together, as `explain` tells."""

    @pytest.mark.parametrize(
        ("function", "expected"),
        [
            (lambda a, b: a * b + a * 2, (1, 3)),
            (lambda a, b: a + b, (1, 1)),
            (lambda a, b: np.exp(a * b + a) - b, (3, 4)),
            (lambda a, b: a[::2] * b[::-2] - a[::2], (1, 2)),
            (lambda a, b: a * b[0] + b.astype("f4"), (1, 3)),
            (lambda a, b: a * np.arange(N) + b, (1, 3)),
            (lambda a, b: a * b > b, (1, 2)),
            (lambda a, b: (a * b > b) & (a < b), (1, 4)),
            (lambda a, b: ~(a > b) | (a < 2) ^ np.zeros(N, "?"), (1, 5)),
            (lambda a, b: (a > b) * a + b, (1, 4)),
            (lambda a, b: np.clip(a * b, 3, 5) - b, (1, 3)),
            (lambda a, b: np.where(a > 0, a * b, b), (1, 3)),
            (lambda a, b: np.where(a > 0, 2, a - b * a), (1, 4)),
            (lambda a, b: np.where(a > b, a + b, a - b), (1, 4)),
            (lambda a, b: np.where(np.ones(N, "?"), a, b) + a, (1, 2)),
            (lambda a, b: np.where(a < 1, 0, np.where(b < 2, a, b)), (1, 4)),
            (lambda a, b: np.where(a > b, np.arange(N), a) * a, (1, 4)),
            (lambda a, b: (np.zeros(N, "?") | np.ones(N, "?")) & (a < b), (2, 3)),
        ],
    )
    def test_count(self, function, expected):
        a, b = usual("d", N, 1), usual("d", N, 2)
        assert count_loops(lambda: function(a, b)) == expected

    @pytest.mark.skipif(
        not HAS_AVX2,
        reason="NumPy's loops for complex products do not fuse here",
    )
    @pytest.mark.parametrize("char", "DF")
    @pytest.mark.parametrize(
        ("function", "expected"),
        [
            (lambda a, b: a * b + a, (1, 2)),
            (lambda a, b: 2j * a - b * (a + 1), (1, 4)),
            (lambda a, b: np.conjugate(a) * np.square(-b), (1, 4)),
            (lambda a, b: a[0] * b - a * b[1], (1, 3)),
            (lambda a, b: (a - b) * (b * a) + np.conjugate(a * 3), (1, 6)),
            (lambda a, b: np.abs(a * b - a), (2, 3)),
        ],
    )
    def test_complex(self, char, function, expected):
        a, b = usual(char, N, 1), usual(char, N, 2)
        assert count_loops(lambda: function(a, b)) == expected
        assert_same(lambda: function(a, b))

    @pytest.mark.skipif(
        not {"SSE2", "X86_V2"}.intersection(__cpu_baseline__),
        reason="NumPy's loops for extremes of floats are not those of an x86",
    )
    @pytest.mark.parametrize(
        ("function", "expected"),
        [
            (lambda a, b: np.clip(np.maximum(a * b, 2), 3, 5) - b, (1, 4)),
            (lambda a, b: np.minimum(a, b - a) + np.clip(a, a, b), (2, 4)),
        ],
    )
    def test_extremes(self, function, expected):
        self.test_count(function, expected)

    def test_shared_part_is_one_loop_of_its_own(self):
        a = usual("d", N, 1)

        def function():
            t = a * a + 1
            return t * 2 + (t - a)

        assert count_loops(function) == (2, 5)

    def test_rows_are_not_buffered(self):
        a, b = usual("d", N, 1).reshape(100, 100), usual("d", 100, 2)[:, None]
        assert count_loops(lambda: a[:, 1:] * b + a[:, :-1])[0] == 1

    def test_wide_trees_take_no_more_banks_than_there_are(self):
        arrays = [usual("d", 1000, i) for i in range(32)]

        def balanced(parts):
            while len(parts) > 1:
                parts = [x * y for x, y in zip(parts[::2], parts[1::2], strict=True)]
            return parts[0]

        with comparison() as compare:
            compare.same("balanced", lambda: balanced(arrays))
        loops, steps = count_loops(lambda: balanced(arrays))
        assert (loops < steps / 2, steps) == (True, 31)


@pytest.mark.parametrize("disabled", ["X86_V4", "X86_V4 X86_V3"])
def test_other_instruction_sets(disabled):
    """The same tests, on what older processors have."""
    code = """
    import sys
    import numpy as np
    import pytest
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
    """
    env = {**os.environ, "NPY_DISABLE_CPU_FEATURES": disabled}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(code),
            __file__,
            "-k",
            "not other_instruction_sets",
            "-n0",
        ],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "passed" in done.stdout


def polynomial(x, y):
    result = x * 3
    for coefficient in (5, 7, 9, 11, 13, 15, 17):
        result = result * x + coefficient
    return result


def quotients(x, y):
    return (x - y) / (x + y) * (x * x - y)


def chosen(x, y):
    return np.where(x > y, x - 1, np.maximum(-x, y)) * x


def unary(x, y):
    """Nothing but the operand itself is an operand."""
    return np.square(x) + np.negative(x)


def squared(x, y):
    """Of what other steps make, once and again."""
    difference, total = x - y, x + y
    return difference * difference + total * total


def squared_twice(x, y):
    square = (x + y) * (x + y)
    return square * square - y * y


def squared_and_read(x, y):
    difference = x - y
    return difference * difference - difference


@pytest.mark.parametrize(
    "program",
    [polynomial, quotients, chosen, unary, squared, squared_twice, squared_and_read],
)
@pytest.mark.parametrize("layout", dict.fromkeys(LAYOUTS))
@pytest.mark.parametrize("char", "dfil")
def test_operand_that_is_read_again(char, layout, program):
    """It stays in a bank where one is free."""
    for n in (1, 63, 128, 129, 1000, 9001):
        x, y = (layout(usual(char, n, seed), (n,)) for seed in (1, 2))
        with np.errstate(all="ignore"):
            assert_same(lambda x=x, y=y: program(x, y))
            assert_same(lambda x=x, y=y: program(y, x))
            for narrow in NARROW[char]:
                z = usual(narrow, n, 3)
                assert_same(lambda z=z, y=y: program(z.astype(char), y))
                assert_same(lambda z=z, y=y: program(z + y, z))


@pytest.mark.parametrize("char", "DF")
@pytest.mark.parametrize("program", [squared, squared_twice, squared_and_read])
def test_squares_of_complex_numbers(char, program):
    for n in (1, 63, 129, 9001):
        x, y = values(char, n, 1), values(char, n, 2)
        with np.errstate(all="ignore"):
            assert_same(lambda x=x, y=y: program(x, y))
            assert_same(lambda x=x, y=y: program(x, y).sum())


@pytest.mark.parametrize("char", "dfil")
def test_square_of_a_deferred_array_is_one_program(char):
    x, y = (usual(char, 9001, seed) for seed in (1, 2))
    with np.errstate(all="ignore"), np.deferredstate(True), counted() as counters:
        square = squared(x, y)
        # What is more than programs is stored when it is asked for again.
        square.sum(), square.sum()
    assert (counters.reduced, counters.calculated) == (2, 0)


@pytest.mark.parametrize("char", "dfilqLQ")
def test_truth_that_becomes_numbers_of_another_byte_order(char):
    a = np.arange(1000.0)

    def assigned():
        out = np.zeros(1000, np.dtype(char).newbyteorder())
        out[...] = (a * 2 < 700) & (a > 3)
        return out

    assert_same(assigned)
