"""Plans that are kept: the same line again, and lines that only look the same."""

import gc
import sys

import numpy as np
import pytest

from helpers.compare import comparison
from helpers.values import values

N = 10_000


def lines(a, b, k):
    return a * b + k, np.sqrt(a * a) - b * k, (a > b) | (a * k < b)


def test_constants_are_those_of_the_line():
    """They are in the node, of which a plan that is kept knows nothing."""
    a, b = values("d", N, 1), values("d", N, 2)
    with comparison() as compare, np.errstate(all="ignore"):
        for k in (2.0, 3.0, -1.0, np.inf, 2.0):
            compare.same(f"{k}", lines, a, b, k)


def test_types_strides_sizes_and_alignment_tell_plans_apart():
    room = np.zeros(8 * N + 1, np.uint8)[1:].view("d")
    with comparison() as compare, np.errstate(all="ignore"):
        for _ in range(3):
            for char in "dfilD"[:4]:
                for n in (N, N - 1, 2, 1):
                    a, b = values(char, 2 * n, 1), values(char, 2 * n, 2)
                    compare.same(f"{char} {n}", lines, a[:n], b[:n], 3)
                    compare.same(f"{char} {n} strided", lines, a[::2], b[::2], 3)
                    compare.same(f"{char} {n} mixed", lines, a[::2], b[:n], 3)
                    compare.same(f"{char} {n} back", lines, a[::-2], b[:n], 3)
                    if char == "d":
                        room[:n] = b[:n]
                        compare.same(f"{n} unaligned", lines, a[:n], room[:n], 3)


def test_shapes_of_one_size():
    with comparison() as compare:
        for shape in ((N,), (N, 1), (1, N), (100, 100), (N,)):
            a, b = (values("f", N, i).reshape(shape) for i in (1, 2))
            compare.same(str(shape), lambda a, b: (a + b) * a.astype("i"), a, b)


def test_error_states_tell_who_is_told():
    """Not part of what is kept: the state is that of each line."""
    a, zero = values("i", N, 1), np.zeros(N)
    with comparison() as compare:
        for error in ("ignore", "warn", "raise", "warn", "ignore"):
            with np.errstate(all=error):
                compare.same(error, lambda: (a + 1) / zero * 2)


def test_the_same_operand_and_others():
    a, b = values("d", N, 1), values("d", N, 2)
    with comparison() as compare, np.errstate(all="ignore"):
        for x, y in ((a, b), (a, a), (b, a), (a, b.copy()), (a, a.copy())):
            compare.same("operands", lambda x=x, y=y: x * y + x)


@pytest.mark.parametrize("threads", [1, 3])
def test_in_threads(threads, num_threads):
    """A plan that is bound to loops is not shared, but copied without them."""
    num_threads(threads)
    a, b = values("d", 400_000, 1), values("f", 400_000, 2)
    with comparison() as compare, np.errstate(all="ignore"):
        for i in range(4):
            compare.same(f"{i}", lambda: np.exp(a) * b + a * 2)


def test_while_handlers_calculate():
    """Errors are told while another expression of the same form is calculated."""
    a, zero = values("d", N, 1), np.zeros(N)

    def function():
        seen = []

        def handler(*_):
            if len(seen) < 3:
                seen.append(None)
                seen[-1] = np.array(a / zero + 1)

        with np.errstate(divide="call", invalid="ignore", call=handler):
            return np.array(a / zero + 1), *seen

    with comparison() as compare:
        compare.same("nested", function)
        compare.same("again", function)


@pytest.mark.parametrize("char", "dfi")
def test_references_to_types_are_not_kept(char):
    """Programs can count them."""
    a, b = values(char, N, 1), values("h", N, 2)
    before = sys.getrefcount(a.dtype)
    for n in range(2, 300):
        with np.deferredstate(True), np.errstate(all="ignore"):
            np.deferred.calculate((a[:n] + b[:n]) * a[:n] * 2)
    after = sys.getrefcount(a.dtype)
    assert after == before


def test_types_of_the_moment():
    """They may be freed, and others have their addresses."""
    with comparison() as compare:
        for i in range(300):
            order = "<>"[i % 3 == 0]
            dtype = np.dtype(f"{order}f8", metadata={"i": i})
            swapped = np.arange(N, dtype="d").astype(dtype)
            compare.same(f"{i}", lambda x=swapped: (x + 1) * x)
            del swapped, dtype
            gc.collect(0)


def assigned(out, x, y):
    out[...] = x * 2 + y


def added(out, x, y):
    np.add(x * 2, y, out=out, casting="unsafe")


def masked(out, x, y):
    np.negative(x * y, out=out, where=x > y, casting="unsafe")


def in_place(out, x, y):
    out -= x * y


@pytest.mark.parametrize("write", [assigned, added, masked, in_place])
@pytest.mark.parametrize("char", "dfiFD")
def test_where_operands_lie_over_what_is_written(write, char):
    """The same line, with the same strides, sees what it has written, or does not."""
    shifts = (0, 1, -1, 8, -8, 700, -700, 999, 1000, -1000)

    def written(x_shift, y_shift, step):
        room = values(char, 8000, 1)
        out, x, y = (
            room[3000 + k : 3000 + k + 1000 * step : step]
            for k in (0, x_shift, y_shift)
        )
        write(out, x, y)
        return room

    with comparison() as compare, np.errstate(all="ignore"):
        for step in (1, 2, -1):
            for x in shifts:
                for y in (x, 0, 2, -1000):
                    compare.same(f"{step} {x} {y}", written, x, y, step)


@pytest.mark.parametrize("write", [assigned, added, masked, in_place])
@pytest.mark.parametrize("char", "dfiFD")
def test_where_rows_lie_over_what_is_written(write, char):
    def written(x, y):
        room = values(char, 20_000, 1).reshape(100, 200)
        write(*(room[i : i + 30, j : j + 100] for i, j in ((35, 50), x, y)))
        return room

    places = ((35, 50), (35, 51), (34, 50), (36, 49), (0, 0), (70, 100))
    with comparison() as compare, np.errstate(all="ignore"):
        for _ in range(2):
            for x in places:
                for y in places:
                    compare.same(f"{x} {y}", written, x, y)


@pytest.mark.parametrize("write", [assigned, added, masked])
def test_types_and_layouts_of_what_is_written(write):
    x, y = values("d", 6000, 1), values("f", 6000, 2)

    def written(char, shape, order):
        out = np.zeros(shape, char, order)
        write(out, x.reshape(shape), y.reshape(shape))
        return out

    with comparison() as compare, np.errstate(all="ignore"):
        for _ in range(2):
            for char in ("d", "f", "i", "D", ">d", "?"):
                for shape in ((6000,), (60, 100), (100, 60), (20, 3, 100)):
                    for order in "CF":
                        compare.same(f"{char} {shape}", written, char, shape, order)
