"""
Every ufunc, every loop, every layout: the bits of eager NumPy.

The cases come from `ufunc.types` of all ufuncs in the namespace, so that a loop
added upstream is tested the day the source is updated.
"""

import math
import random

import numpy as np
import pytest

from helpers.compare import assert_same, comparison
from helpers.counting import counted
from helpers.layouts import (
    LAYOUTS,
    LENGTHS,
    arrangements,
    contiguous,
    operand,
    strided,
)
from helpers.loops import (
    ELEMENTWISE,
    ELEMENTWISE_UFUNCS,
    LOOPS,
    OTHERS,
    WITH_ONE_OUTPUT,
    WITH_TWO_OUTPUTS,
)
from helpers.values import NUMERIC

FEW_LENGTHS = (1, 65, 1025, 4097)
each_loop = pytest.mark.parametrize("loop", ELEMENTWISE, ids=str)
each_with_one_output = pytest.mark.parametrize("loop", WITH_ONE_OUTPUT, ids=str)
each_with_two_outputs = pytest.mark.parametrize("loop", WITH_TWO_OUTPUTS, ids=str)


def produce(array):
    """The same values from a deferred array, if it can be one."""
    return np.maximum(array, array) if np.ndim(array) else array


def consume(result, operands):
    """Two operations that share `result`, with a cast where types differ."""
    first, last = result if isinstance(result, tuple) else (result, result)
    return np.add(np.maximum(first, operands[0]), last)


def single(ufunc, operands):
    return ufunc(*operands)


def consumed(ufunc, operands):
    return consume(ufunc(*operands), operands)


def fed(ufunc, operands):
    return ufunc(*map(produce, operands))


def amid(ufunc, operands):
    return consume(fed(ufunc, operands), operands)


def count_pending(function, ufunc, operands):
    """How many arrays were captured by a call, whether or not it raised."""
    with counted() as counters, np.deferredstate(True):
        try:
            function(ufunc, operands)
        except (TypeError, OverflowError, FloatingPointError, ValueError):
            return None
    return counters.captured


def may_wait(loop, operands):
    """
    Whether the operation itself is deferred: exceptions for negative exponents
    of integer powers stay at the call, so these run at once where it may be so.
    """
    if loop.ufunc is not np.power or np.result_type(*operands).kind != "i":
        return True
    exponent = operands[1]
    return (
        np.ndim(exponent) == 0
        and np.result_type(exponent).kind in "iu"
        and exponent >= 0
    )


def compare(loop, function, nothers, lengths, **errors):
    """
    All arrangements; the operation and as many others as `nothers` says of the
    operands must have been deferred.
    """
    with comparison() as compared, np.errstate(**errors):
        for name, operands in arrangements(loop.inputs, lengths):
            outcome = compared.same(name, function, loop.ufunc, operands)
            if outcome.error is None and outcome.results[0].kind is np.ndarray:
                captured = count_pending(function, loop.ufunc, operands)
                nown = may_wait(loop, operands) * loop.ufunc.nout
                expected = nothers(operands) + nown
                compared.check(
                    f"{name}: captured {captured}, not {expected}", captured == expected
                )


def count_arrays(operands):
    return sum(np.ndim(op) != 0 for op in operands)


@each_loop
def test_single(loop):
    compare(loop, single, lambda ops: 0, LENGTHS, all="ignore")


@each_loop
def test_consumed(loop):
    compare(loop, consumed, lambda ops: 2, FEW_LENGTHS, all="ignore")


@each_loop
def test_fed(loop):
    compare(loop, fed, count_arrays, FEW_LENGTHS, all="ignore")


@each_loop
def test_amid(loop):
    compare(loop, amid, lambda ops: 2 + count_arrays(ops), FEW_LENGTHS, all="ignore")


@pytest.mark.parametrize("error", ["warn", "raise"])
@each_loop
def test_errors(loop, error):
    with comparison() as compared, np.errstate(all=error):
        for n in (7, 4097):
            operands = [operand(char, (n,), i) for i, char in enumerate(loop.inputs)]
            views = [
                operand(char, (n,), i, strided) for i, char in enumerate(loop.inputs)
            ]
            for function in (single, consumed, fed, amid):
                name = f"{function.__name__}-{n}"
                compared.same(name, function, loop.ufunc, operands)
                compared.same(f"{name}-strided", function, loop.ufunc, views)


@each_loop
def test_exact_loop(loop):
    """`signature=` selects loops that plain calls never reach."""

    def call(ufunc, operands):
        return ufunc(*operands, signature=loop.types)

    with comparison() as compared, np.errstate(all="ignore"):
        for name, operands in arrangements(loop.inputs, lengths=(1, 4097)):
            compared.same(name, call, loop.ufunc, operands)


def outputs(shape, char):
    """Destinations: alike, strided, reversed, Fortran order, and wider types."""
    wider = {"c": "G", "b": "d"}.get(np.dtype(char).kind, "g")
    room = np.zeros(tuple(2 * n for n in shape), char)
    every_second = (slice(None, None, 2),) * len(shape)
    yield "alike", np.zeros(shape, char)
    yield "strided", room[every_second]
    yield "reversed", np.zeros(shape, char)[(slice(None, None, -1),) * len(shape)]
    yield "fortran", np.zeros(shape, char, order="F")
    yield "swapped", np.zeros(shape, np.dtype(char).newbyteorder())
    yield "wider", np.zeros(shape, wider)
    yield "narrower", np.zeros(shape, "e" if char in "fdg" else char)


def out_argument(ufunc, operands, destination):
    return ufunc(*map(produce, operands), out=destination)


def assignment(ufunc, operands, destination):
    destination[...] = fed(ufunc, operands)
    return destination


def copyto(ufunc, operands, destination):
    np.copyto(destination, fed(ufunc, operands), casting="unsafe")
    return destination


def astype(ufunc, operands, destination):
    return fed(ufunc, operands).astype(destination.dtype)


@pytest.mark.parametrize(
    "way", [out_argument, assignment, copyto, astype], ids=lambda way: way.__name__
)
@each_with_one_output
def test_destination(loop, way):
    def call(operands, destination):
        destination[...] = 0
        return way(loop.ufunc, operands, destination)

    with comparison() as compared, np.errstate(all="ignore"):
        for shape in [(1300,), (13, 12)]:
            operands = [operand(char, shape, i) for i, char in enumerate(loop.inputs)]
            for name, destination in outputs(shape, loop.output):
                compared.same(f"{name}-{shape}", call, operands, destination)


@each_with_one_output
def test_in_place(loop):
    """The first operand is the destination too."""

    def call(operands, step):
        first = operands[0].copy()[::step]
        rest = [produce(op)[::step] for op in operands[1:]]
        return loop.ufunc(first, *rest, out=first)

    def shifted(operands):
        memory = operands[0].copy()
        rest = [produce(op[:-1]) for op in operands[1:]]
        return loop.ufunc(produce(memory[:-1]), *rest, out=memory[1:]), memory

    with comparison() as compared, np.errstate(all="ignore"):
        operands = [operand(char, (1300,), i) for i, char in enumerate(loop.inputs)]
        for step in (1, 2, -1):
            compared.same(f"step {step}", call, operands, step)
        compared.same("shifted", shifted, operands)


def first(ufunc, operands):
    return ufunc(*operands)[0]


def second(ufunc, operands):
    return fed(ufunc, operands)[1]


def second_first(ufunc, operands):
    """The second output is read first."""
    return fed(ufunc, operands)[::-1]


def reduced(ufunc, operands):
    """Each is used by itself."""
    first, last = ufunc(*operands)
    return np.maximum(last, 1), np.add(first, 1), np.maximum.reduce(last, axis=-1)


@pytest.mark.parametrize(
    "function", [first, second, second_first, reduced], ids=lambda f: f.__name__
)
@each_with_two_outputs
def test_one_of_two(loop, function):
    with comparison() as compared, np.errstate(all="ignore"):
        for name, operands in arrangements(loop.inputs, FEW_LENGTHS):
            compared.same(name, function, loop.ufunc, operands)


@pytest.mark.parametrize("which", [0, 1])
@each_with_two_outputs
def test_destination_of_one_of_two(loop, which):
    def assigned(operands, destination):
        destination[...] = 0
        destination[...] = fed(loop.ufunc, operands)[which]
        return destination

    def assigned_with_other(operands, destination):
        destination[...] = 0
        results = loop.ufunc(*operands)
        destination[...] = results[which]
        return destination, results

    def as_output(operands, destination):
        destination[...] = 0
        out = (destination, None) if which == 0 else (None, destination)
        return loop.ufunc(*map(produce, operands), out=out)

    with comparison() as compared, np.errstate(all="ignore"):
        for shape in [(1300,), (13, 12)]:
            operands = [operand(char, shape, i) for i, char in enumerate(loop.inputs)]
            for name, destination in outputs(shape, loop.output[which]):
                for call in (assigned, assigned_with_other, as_output):
                    where = f"{call.__name__} {name}-{shape}"
                    compared.same(where, call, operands, destination)


@each_with_two_outputs
def test_two_in_place(loop):
    """The first operand is a destination, or both are."""

    def call(operands, step):
        memory = operands[0].copy()
        first, *rest = [memory[::step], *(produce(op)[::step] for op in operands[1:])]
        results = loop.ufunc(first, *rest, out=(first, None), casting="unsafe")
        return results, memory

    def both(operands):
        first, last = produce(operands[0]), operands[-1].copy()
        kept = first + 1
        return loop.ufunc(*operands, out=(first, last), casting="unsafe"), kept

    def updated(operands):
        """As in `q *= 2`, of what is pending."""
        first, last = loop.ufunc(*operands)
        first += first
        last += 1
        return last, first

    with comparison() as compared, np.errstate(all="ignore"):
        operands = [operand(char, (1300,), i) for i, char in enumerate(loop.inputs)]
        for step in (1, 2, -1):
            compared.same(f"step {step}", call, operands, step)
        compared.same("both", both, operands)
        compared.same("updated", updated, operands)


@pytest.mark.parametrize("ufunc", ELEMENTWISE_UFUNCS, ids=lambda u: u.__name__)
def test_mixed_dtypes(ufunc):
    """All combinations of input dtypes, so with all the casts there are."""
    chars = [NUMERIC] if ufunc.nin == 1 else [NUMERIC, NUMERIC]
    with comparison() as compared, np.errstate(all="ignore"):
        for types in np.array(np.meshgrid(*map(list, chars))).reshape(ufunc.nin, -1).T:
            operands = [operand(char, (70,), i) for i, char in enumerate(types)]
            for function in (single, amid):
                compared.same("".join(types), function, ufunc, operands)


@pytest.mark.parametrize("loop", OTHERS, ids=str)
def test_not_elementwise(loop):
    """Core dimensions: run at once, on calculated inputs."""
    with comparison() as compared, np.errstate(all="ignore"):
        operands = [operand(char, (5, 5), i) for i, char in enumerate(loop.inputs)]
        compared.same("single", single, loop.ufunc, operands)
        compared.same("fed", fed, loop.ufunc, operands)


def distinct_nans(char, shape, position):
    """NaNs, each with a payload of its own; some numbers and infinities."""
    bits = np.arange(math.prod(shape)) * 8 + position + 1
    unsigned = np.dtype(f"u{np.dtype(char).itemsize}")
    quiet = np.array([np.nan, -np.nan], char).view(unsigned)
    array = (quiet[bits % 3 % 2] | bits.astype(unsigned)).view(char)
    array[position + 1 :: 7] = position + 0.5
    array[position + 2 :: 11] = [np.inf, -np.inf][position % 2]
    return array.reshape(shape)


class ShortRows:
    """Random chains of sums and products over operands with rows of `length`."""

    def __init__(self, char, length, seed):
        self.choice = random.Random(f"{char} {length} {seed}")
        self.char = char
        rows = self.choice.choice([(2,), (3,), (5,), (9,), (70,), (3, 2), (2, 1, 4)])
        self.shape = (*rows, length)
        noperands = self.choice.choice([2, 3, 4, 9])
        self.operands = [self.operand(i) for i in range(noperands)]
        steps = range(self.choice.randrange(1, noperands + 3))
        self.steps = [self.step(noperands + i) for i in steps]

    def operand(self, position):
        choice, shape = self.choice, list(self.shape)
        if choice.random() < 0.5:
            for axis in range(choice.choice([1, len(shape)])):
                shape[axis] = 1 if choice.random() < 0.7 else shape[axis]
            if choice.random() < 0.2:
                shape[-1] = 1
        layouts = [contiguous] * 4 + list(LAYOUTS)
        char = choice.choice([self.char] * 6 + ["f", "d", "i"])
        if char == "i":
            return operand(char, shape, position, choice.choice(layouts))
        data = distinct_nans(char, shape, position).ravel()
        return choice.choice(layouts)(data, tuple(shape))

    def step(self, nvalues):
        ufunc = self.choice.choice([np.add, np.multiply] * 4 + [np.subtract, np.fmax])
        first, second = self.choice.choices(range(nvalues - 1), k=2)
        scalar = distinct_nans(self.char, (1,), nvalues)[0]
        return ufunc, nvalues - 1 if nvalues % 3 else first, second, scalar

    def run(self, target):
        """The last result, made by itself, in place, as `out=` or assigned; all."""
        values = list(self.operands)
        for ufunc, first, second, scalar in self.steps[:-1]:
            second = scalar if second % 5 == 4 else values[second]
            values.append(ufunc(values[first], second))
        ufunc, first, second, _ = self.steps[-1]
        args = values[first], values[second]
        shape = np.broadcast_shapes(*map(np.shape, args))
        destination = np.zeros(shape, self.char)
        if target == "alone":
            destination = ufunc(*args)
        elif target == "in place":
            destination[...] = distinct_nans(self.char, shape, 7)
            ufunc(destination, args[1], out=destination, casting="unsafe")
        elif target == "out":
            ufunc(*args, out=destination, casting="unsafe")
        else:
            destination[...] = ufunc(*args)
        return destination, *values[len(self.operands) :]


@pytest.mark.parametrize("length", range(1, 41))
@pytest.mark.parametrize("char", "fd")
def test_which_nan_in_short_rows(char, length):
    """
    Which of two NaNs a sum or product is depends on how many elements the loop
    gets at a time: what eager NumPy joins and cuts is not what one walk over
    all operands does.
    """
    with comparison() as compared:
        for seed in range(40):
            rows = ShortRows(char, length, seed)
            for target in ("alone", "in place", "out", "assigned"):
                with np.errstate(all=("ignore", "warn")[seed % 2]):
                    compared.same(f"{seed} {target}", rows.run, target)


@pytest.mark.parametrize("rest", [0, 1, 3, 8, 9, 16, 17, 64, 65])
@pytest.mark.parametrize("char", "fd")
def test_which_nan_at_the_end_of_buffers(char, rest):
    """Eager NumPy casts by buffers, the last of which may be short."""

    def chain(a, b, c, row):
        return a * b + c, (a + row) * c, (a + b) * row

    n, buffer = 8192 + rest, 8192
    with comparison() as compared, np.errstate(all="ignore"):
        for other in ("f", "d", "i", ">" + char):
            for shape in [(n,), (n // 2, 2), (buffer // 3 + 1 + rest, 3)]:
                a, b, c = (distinct_nans(char, shape, i) for i in range(3))
                row = distinct_nans(char, shape[-1:], 3)
                compared.same(f"{other} {shape}", chain, a, b.astype(other), c, row)
                compared.same(f"{other} {shape}", chain, a.astype(other), b, c, row)
                compared.same(f"{other} {shape}", chain, a, b, c, row.astype(other))


@pytest.mark.parametrize("char", "fd")
def test_which_nan_in_another_order(char):
    """The same runs of as many elements, but not of the same ones."""

    def into(destination, array, row):
        destination[...] = array + row
        return destination

    def chain(array, row, other):
        return (array + row) * other, other + array * row

    usual = np.setbufsize(32)
    try:
        with comparison() as compared, np.errstate(all="ignore"):
            for n in range(2, 21):
                array = np.asfortranarray(distinct_nans(char, (n, n), 0))
                row, other = distinct_nans(char, (n,), 1), np.full((n, n), 3, char)
                for operands in [(array, row), (array.T, row[:, None])]:
                    compared.same(f"{n} chain", chain, *operands, other)
                    compared.same(f"{n} assigned", into, other.copy(), *operands)
                    compared.same(f"{n} turned", into, other.copy().T, *operands)
    finally:
        np.setbufsize(usual)


@pytest.mark.parametrize("way", ["in place", "into an operand", "of itself", "fresh"])
@pytest.mark.parametrize("char", "fd")
def test_nans_meet_late(char, way):
    """When the first elements are there already, which nobody must have seen."""

    def call(a, b, row):
        a = a.copy()
        if way == "in place":
            a += b * row
        elif way == "into an operand":
            np.multiply(b + row, a, out=a)
        elif way == "of itself":
            a[...] = (a + row) * b + a
        else:
            return (a + row) * b + a
        return a

    a, b = (np.arange(i, 8193 + i, dtype=char).reshape(-1, 3) for i in range(2))
    a[-1] = distinct_nans(char, (3,), 0)
    b[-1] = distinct_nans(char, (3,), 1)
    assert_same(call, a, b, np.arange(3, dtype=char))


def test_the_cases_are_there():
    """The table is made, not written: it must not come out empty by mistake."""
    assert len(ELEMENTWISE_UFUNCS) >= 80
    assert len(ELEMENTWISE) >= 900
    assert {loop.ufunc for loop in WITH_TWO_OUTPUTS} >= {np.divmod, np.modf, np.frexp}
    assert set("".join(loop.types for loop in LOOPS)) == set(NUMERIC) | set("->")
