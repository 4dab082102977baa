"""In-place operators and `out=` on arrays that are deferred themselves."""

import copy
import gc
import pickle
import sys
import threading
import warnings
import weakref

import numpy as np
import pytest

from helpers.compare import assert_same, comparison
from helpers.layouts import LAYOUTS, contiguous, operand
from helpers.loops import ELEMENTWISE
from helpers.unseen import address, flags

N = 1000
#: Loops whose result can take the place of their first input.
CLOSED = [loop for loop in ELEMENTWISE if loop.inputs[0] == loop.output]
#: Powers of signed integers raise for some values, so they run at once.
CLOSED = [
    loop for loop in CLOSED if loop.ufunc is not np.power or loop.output not in "bhilq"
]


@pytest.fixture
def quiet():
    with np.deferredstate(True), np.errstate(all="ignore"):
        yield


def memory(*shape, start=0.5, dtype=float):
    with np.deferredstate(False):
        return (np.arange(np.prod(shape)) + start).reshape(shape).astype(dtype)


# ---- bits ----


def rewritten(ufunc, operands):
    """The result is the first input of the next call, and its `out=`."""
    x = ufunc(*operands)
    ufunc(x, *operands[1:], out=x)
    if len({each.dtype for each in operands}) == 1:
        ufunc(*[x] * ufunc.nin, out=x)
    return x


@pytest.mark.parametrize("loop", CLOSED, ids=str)
def test_loops(loop, num_threads):
    with comparison() as compared, np.errstate(all="ignore"):
        for layout in LAYOUTS:
            operands = [
                operand(char, (5, 40), i, layout) for i, char in enumerate(loop.inputs)
            ]
            compared.same(layout.__name__, rewritten, loop.ufunc, operands)
        for n in (1, 2, 3, 9, 17, 33, 65, 100):
            operands = [
                operand(char, (n,), i, contiguous) for i, char in enumerate(loop.inputs)
            ]
            compared.same(f"{n} elements", rewritten, loop.ufunc, operands)
            operands[1:] = [each[::-1] for each in operands[1:]]
            compared.same(f"{n} reversed", rewritten, loop.ufunc, operands)
        num_threads(3)
        operands = [
            operand(char, (200_003,), i, contiguous)
            for i, char in enumerate(loop.inputs)
        ]
        compared.same("threads", rewritten, loop.ufunc, operands)
        with np.deferredstate(True):
            assert rewritten(loop.ufunc, operands).flags.deferred


@pytest.mark.parametrize("char", "FD")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_temporaries(char, layout, quiet):
    """Eager NumPy writes over large temporaries, too, and rounds otherwise then."""
    a, b = (operand(char, (500, 400), i, layout) for i in range(2))
    assert_same(lambda: ((a * b) * b, b * (a * b), (a * b) + b, np.square(a * b)))


def layouts():
    c, f = memory(40, 50), np.asfortranarray(memory(40, 50))
    row, column, cube = memory(50), memory(40, 1), memory(4, 5, 6)
    return {
        "c": lambda: (c * 2, c),
        "f": lambda: (f * 2, f),
        "f and c": lambda: (f * 2, c),
        "c and f": lambda: (c * 2, f),
        "row": lambda: (c * 2, row),
        "column": lambda: (f * 2, column),
        "both": lambda: (row * column, c),
        "scalar": lambda: (c.T * 2, 3),
        "permuted": lambda: (cube.transpose(2, 0, 1) * 2, cube.transpose(2, 0, 1)),
        "permuted and not": lambda: (cube.transpose(2, 0, 1) * 2, memory(6, 4, 5)),
        "strided": lambda: (c[::2] * 2, c[1::2]),
        "reversed": lambda: (row[::-1] * 2, row),
        "one": lambda: (row[:1] * 2, row[:1]),
        "cast": lambda: (c * 2, memory(40, 50, dtype=np.float32)),
        "unaligned": lambda: (row * 2, operand("d", (50,), 0, LAYOUTS[-1])),
    }


@pytest.mark.parametrize("name", layouts())
@pytest.mark.parametrize("order", ["K", "C", "F"])
def test_layouts(name, order, quiet):
    make = layouts()[name]

    def work():
        x, other = make()
        x += other
        np.subtract(other, x, out=x, order=order)
        x *= x
        np.sqrt(x, x)
        return x

    assert_same(work)
    x = work()
    assert x.flags.deferred
    assert len(np.deferred.explain(x).operations) == 5


def test_operators(quiet):
    a, b = memory(N), memory(N, start=7)
    i, j = a.astype(int), b.astype(int)

    def floats():
        x = a * b
        x += b
        x -= 2.5
        x *= a
        x /= b
        x //= 3
        x %= b
        x **= 2
        x **= 0.5
        return x

    def integers():
        x = i * j
        x += 3
        x &= j
        x |= i
        x ^= 5
        x <<= 2
        x >>= 1
        x //= j
        x %= 11
        return x

    def mixed():
        """Types that are cast on the way in, and those that are cast back."""
        x = i * j
        x += True
        x += np.int8(3)
        y = a.astype("f4") * 2
        y += 1.5
        y += i.astype("i2")
        y *= b  # in double precision, cast back
        return x, y

    for work in (floats, integers, mixed):
        assert_same(work)


# ---- one pass ----


def test_one_pass(quiet):
    a, b, c, d = (memory(N, start=i) for i in range(1, 5))
    before = np.deferred.stats()
    with np.deferred.profile() as p:
        x = a * b
        x += c
        x *= d
        float(x[5])
    (event,) = p.events
    assert event.expression == "multiply(add(multiply(a2, a3), a1), a0)"
    assert p.at_once == []
    after = np.deferred.stats()
    assert after["captured"] - before["captured"] == 3
    assert after["calculated"] - before["calculated"] == 1
    assert after["released"] - before["released"] == 2
    assert [each.where.rpartition(" ")[2] for each in event.explanation.operations] == [
        str(test_one_pass.__code__.co_firstlineno + i) for i in (4, 5, 6)
    ]


def test_variance(quiet):
    """`x = a - mean; x = multiply(x, x, out=x)` inside np.var is one pass."""
    a, b = memory(N), memory(N, start=7)
    with np.deferred.profile() as p:
        value = np.var(a * b)
    with np.deferredstate(False):
        assert value == np.var(a * b)
    assert "square(subtract(a0, a1))" in [event.expression for event in p.events]


# ---- the same object ----


def test_identity(quiet):
    a, b = memory(40, 50), memory(50)
    x = a.T.copy().T * 2
    references, where, seen = sys.getrefcount(x), address(x), flags(x)
    died = []
    weak = weakref.ref(x, died.append)
    layout = x.strides, x.shape, x.dtype, x.base
    y = x
    x += b
    x = np.subtract(x, a, out=x)
    assert x is y
    del y
    assert x.flags.deferred
    assert (sys.getrefcount(x), address(x), flags(x)) == (references, where, seen)
    assert (x.strides, x.shape, x.dtype, x.base) == layout
    assert np.deferred.usage_count(x) == 0
    assert x.flags.writeable
    x[0, 0] = 1
    assert weak() is x
    del x
    assert died == [weak]


def test_nothing_stays(quiet):
    a = memory(N)
    before = np.deferred.stats()["pending"]
    x = a * 2
    for _ in range(20):
        x += a
    assert np.deferred.stats()["pending"] == before + 21
    assert np.deferred.usage_count(a) == 21
    del x
    assert np.deferred.stats()["pending"] == before
    assert np.deferred.usage_count(a) == 0
    assert a.flags.writeable


@pytest.mark.parametrize(
    "consume",
    [
        copy.copy,
        copy.deepcopy,
        np.ndarray.copy,
        lambda x: pickle.loads(pickle.dumps(x)),
        lambda x: x[1:].base,
        lambda x: np.asarray(memoryview(x)),
        lambda x: x.astype("f4"),
        np.cumsum,
        repr,
        sorted,
    ],
)
def test_consumers(consume, quiet):
    a = memory(N)

    def work():
        x = a * 2
        x += a
        return consume(x), x

    assert_same(work)


def test_dies_while_read(quiet):
    """What it was stays as long as others read that."""
    a = memory(N)
    x = a * 2
    y = x - 1
    x += 5
    del x
    assert np.deferred.usage_count(a) == 1
    assert y[3] == a[3] * 2 - 1


# ---- readers ----


@pytest.mark.parametrize("first", ["x", "y", "z", "a"])
def test_readers_of_what_it_was(first, quiet):
    a, b = memory(N), memory(N, start=3)
    x = a * b
    y = x + 1
    x += a
    z = x * y
    x -= b
    assert x.flags.deferred
    assert y.flags.deferred
    assert z.flags.deferred
    if first == "a":
        a[:] = 1
        a = memory(N)
    else:
        np.deferred.calculate({"x": x, "y": y, "z": z}[first])
    with np.deferredstate(False):
        old = a * b
        assert (y == old + 1).all()
        assert (x == old + a - b).all()
        assert (z == (old + a) * (old + 1)).all()


def test_reads_what_reads_it(quiet):
    """`x += f(x)`: an input reads what the result replaces."""
    a = memory(N)

    def work():
        x = a * 2
        x += x * x
        np.multiply(x - 1, x + 1, out=x)
        np.sqrt(x * x, out=x)
        return x

    assert_same(work)
    assert work().flags.deferred


def test_evaluated_before(quiet):
    """Its values went elsewhere, which leaves it deferred."""
    a, out = memory(N), np.empty(N)
    x = a * 2
    out[...] = x
    assert x.flags.deferred
    x += a
    y = x * 2
    with np.deferredstate(False):
        assert (out == a * 2).all()
        assert (x == a * 2 + a).all()
        assert (y == (a * 2 + a) * 2).all()


def test_written_operand(quiet):
    a, b = memory(N), memory(N, start=3)
    x = a * 2
    x += b
    b[:] = 0
    assert not x.flags.deferred
    with np.deferredstate(False):
        assert (x == a * 2 + memory(N, start=3)).all()


# ---- calculated first, as ever ----


def casting(x, a):
    np.add(x, a.astype("f8"), out=x, casting="unsafe")


def masked(x, a):
    np.add(x, a, out=x, where=a > 3)


def compared(x, a):
    np.less(x, a, out=x, casting="unsafe")


def unread(x, a):
    np.add(a, 1, out=x)


def broader(x, a):
    np.add(x[:1], 1, out=x)


def with_exposed(x, a):
    memoryview(a)
    x += a


def off(x, a):
    with np.deferredstate(False):
        x += a


def two_results(x, a):
    np.frexp(x, x, np.empty(N, "i4"), casting="unsafe")


def reduced(x, a):
    np.add.accumulate(x, out=x)


def generalised(x, a):
    np.vecdot(np.ones((N, 3), "f4"), np.ones((N, 3), "f4"), out=x)


def by_view(x, a):
    x[1:] += x[:-1]


def at(x, a):
    np.add.at(x, [1, 1], 3)


def subclass(x, a):
    x += a.view(np.matrix).A1.view(type("Sub", (np.ndarray,), {}))


@pytest.mark.parametrize(
    "change",
    [
        casting,
        masked,
        compared,
        unread,
        broader,
        with_exposed,
        off,
        two_results,
        reduced,
        generalised,
        by_view,
        at,
        subclass,
    ],
)
def test_not_deferred(change, quiet):
    def work():
        a = memory(N, dtype="f4")
        x = a * np.float32(2)
        change(x, a)
        return x

    assert_same(work)
    x = work()
    assert not x.flags.deferred


def test_impossible(quiet):
    """Errors leave it as it was."""
    a = memory(N)
    i = a.astype(int) * 2
    x = a * 2
    with pytest.raises(TypeError, match="Cannot cast"):
        i += 0.5
    with pytest.raises(ValueError, match="broadcast"):
        x += memory(3)
    with pytest.raises(ValueError, match="non-broadcastable"):
        x += memory(2, N)
    with pytest.raises(TypeError):
        x += "1"
    assert (x == a * 2).all()
    assert (i == a.astype(int) * 2).all()


# ---- limits ----


@pytest.mark.parametrize("n", [62, 63, 64, 65, 200])
def test_many_operations(n, quiet):
    a, others = memory(100), [memory(100, start=i) for i in range(40)]

    def work():
        x = a * 2
        y = a * 3
        for i in range(n):
            x *= 0.5
            x += a
            y += others[i % 40]
        return x, y

    assert_same(work)


def test_memory_limit(quiet):
    previous = np.deferred.set_memory_limit(100_000)
    try:

        def work():
            kept = []
            for i in range(30):
                x = memory(N, start=i) * 2
                x += memory(N, start=i)
                x *= memory(N)
                kept.append(x)
            return tuple(kept)

        assert_same(work)
        kept = work()
        assert np.deferred.stats()["held"] <= 200_000
        del kept
    finally:
        np.deferred.set_memory_limit(previous)


# ---- errors ----


@pytest.mark.parametrize("how", ["warn", "call", "log", "print", "ignore", "raise"])
def test_error_states(how, capsys):
    a = memory(N)
    a[3] = 0

    def work():
        seen = []

        class Log:
            write = staticmethod(seen.append)

        call = Log() if how == "log" else lambda *args: seen.append(args)
        with np.errstate(all=how, call=call):
            x = 1 / a
            x *= 1e308
            x -= x
            np.deferred.calculate(x)
        return x, [str(each).partition("\n")[0] for each in seen]

    assert_same(work)
    capsys.readouterr()


@pytest.mark.parametrize("where", ["before", "then"])
def test_what_can_raise_is_not_left(where):
    """The exception comes at the latest with the operation that writes over it."""
    a = memory(N)
    a[3] = 0
    first, second = ("raise", "ignore") if where == "before" else ("ignore", "raise")
    with np.deferredstate(True):
        with np.errstate(all=first):
            x = (a if where == "then" else 1 / (a + 1)) * 2
        with np.errstate(all=second):
            y = x
            if where == "then":
                with pytest.raises(FloatingPointError):
                    np.divide(1, x, out=x)
            else:
                x += 1
    assert x is y
    assert not x.flags.deferred


def test_handler_that_writes(quiet):
    """A handler of the array's own errors writes over it: what it was is known."""
    a = memory(N)
    a[3] = 0

    def work():
        with np.errstate(divide="call", call=lambda *args: box[0].__iadd__(1)):
            x = 1 / a
            box = [x]
            np.deferred.calculate(x)
        return x

    with np.deferredstate(True):
        x = work()
    with np.deferredstate(False):
        assert (x == 1 / a + 1).all()


# ---- scopes, threads ----


def test_scope(quiet):
    a = memory(N)
    outside = a * 2
    other = a * 3
    with np.deferral():
        outside += a
        assert outside.flags.deferred
    assert not outside.flags.deferred
    assert other.flags.deferred
    with np.deferredstate(False):
        assert (outside == a * 2 + a).all()
    del other


def test_threads_share_an_array(quiet):
    """Each addition comes about once, whoever writes or reads."""
    a = memory(N)
    x = a * 0
    lock, wrong = threading.Lock(), []

    def work():
        with np.deferredstate(True), np.errstate(all="ignore"):
            for i in range(200):
                with lock:
                    np.add(x, 1, out=x)
                if i % 17 == 0:
                    wrong.extend(set(x[:1] % 1))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (x == 800).all()
    assert set(wrong) <= {0.0}


def test_collector_finds_nothing(quiet):
    gc.collect()
    a = memory(N)
    x = a * 2
    x += x
    weak = weakref.ref(x)
    del x
    assert weak() is None
    assert np.deferred.usage_count(a) == 0


def test_filters_that_change_in_place():
    """Whether a warning may raise is asked for once, and again of other filters."""
    x = np.ones(2000)
    with (
        np.errstate(all="warn"),
        np.deferredstate(True),
        warnings.catch_warnings(),
    ):
        for action, stays in [("ignore", True), ("error", False), ("ignore", True)] * 2:
            warnings.simplefilter(action, RuntimeWarning)
            y = x * 2
            y += x
            assert y.flags.deferred == stays
            warnings.filters.pop(0)
            warnings.filterwarnings(action, category=RuntimeWarning)
            y += x
            assert y.flags.deferred == stays
