"""np.deferred.profile: what is calculated in a block, why, and what runs at once."""

import gc
import json
import os
import threading
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import numpy._core._multiarray_umath as core
import pytest

from helpers.markup import text_of
from helpers.process import output_of, path_with_helpers

N = 10_000


@pytest.fixture
def profiled():
    with np.deferredstate(True), np.deferred.profile() as p:
        yield p


def memory(*shape, dtype=float):
    with np.deferredstate(False):
        return np.arange(np.prod(shape), dtype=dtype).reshape(shape) + dtype(1)


def line_of(function, offset):
    return f"{__file__}, line {function.__code__.co_firstlineno + offset}"


def test_calculation(num_threads):
    num_threads(1)
    a, b = memory(N), memory(N, dtype=np.float32)
    with np.deferredstate(True), np.deferred.profile() as p:
        x = a * b
        y = x - 2
        float(y[3])
    (event,) = p.events
    e = event.explanation
    assert [op.ufunc for op in e.operations] == ["multiply", "subtract"]
    assert event.expression == "subtract(multiply(a0, a1), 2.0)"
    assert (e.shape, e.dtype) == ((N,), np.float64)
    assert (e.plan.steps, e.plan.casts, e.plan.threads, e.plan.direct) == (
        3,
        1,
        1,
        True,
    )
    assert e.plan.block % 64 == 0
    assert (event.bytes_read, event.bytes_written) == (12 * N, 8 * N)
    assert event.where == line_of(test_calculation, 6)
    assert event.written == tuple(line_of(test_calculation, i) for i in (4, 5))
    assert (event.why, event.source) == ("read: indexing", "y[3]")
    assert event.through == ()
    assert event.error is None
    assert event.thread == threading.get_ident()
    assert 0 < event.own_seconds == event.seconds < 10
    assert event.bandwidth == 20 * N / event.seconds
    assert p.at_once == []


def test_a_reduction_writes_its_result_only(deferred):
    a = np.ones((N // 10, 10))
    with np.deferred.profile() as p:
        assert np.sum(a - 0.5) == N / 2
        assert np.sum(a - 0.5, axis=1)[0] == 5
        x = a * 2
        assert x.sum() == 2 * N
        assert x.max() == 2
        assert x.min() == 2
    read = a.nbytes
    seen = [(event.bytes_read, event.bytes_written) for event in p.events]
    # Arithmetic that is evaluated a third time is stored.
    assert seen == [(read, 8), (read, read // 10), (read, 8), (read, 8), (read, read)]


def test_same_values(num_threads):
    """Profiling changes nothing."""
    a, b = memory(100, 100), memory(100)

    def work():
        with np.errstate(all="ignore"):
            x = np.log(a - b) * b[:, np.newaxis]
            return x.sum(axis=0).tobytes(), (x / x).tobytes(), np.var(x).tobytes()

    with np.deferredstate(False):
        expected = work()
    for n in (1, 2):
        num_threads(n)
        with np.deferredstate(True), np.deferred.profile() as p:
            assert work() == expected
        assert p.totals()["calculations"] > 2


@pytest.mark.parametrize("mask", ["warn", "ignore"])
def test_lines_whatever_the_error_state(mask):
    a = memory(N)
    with np.errstate(all=mask), np.deferredstate(True), np.deferred.profile() as p:
        np.deferred.calculate(a + 1)
    (event,) = p.events
    assert event.written == (line_of(test_lines_whatever_the_error_state, 4),)


# ---- why ----


def indexing(a, x):
    x[0]


def formatting(a, x):
    return f"{x}"


def truth(a, x):
    if x[:1]:
        pass


def iteration(a, x):
    for _ in x:
        break


def comparison(a, x):
    assert x[:1] == [2.0]


def calculating(a, x):
    np.deferred.calculate(x)


def calculating_all(a, x):
    np.deferred.calculate_all()


def scope(a, x):
    with np.deferral():
        kept.append(a + 2)


def error_state(a, x):
    np.seterr(**np.geterr())


def writing_operand(a, x):
    a[0] = 1


def writing_view(a, x):
    a[1:][...] = 1


def writing(a, x):
    x[0] = 1


def exposing(a, x):
    memoryview(x)


def assigning(a, x):
    a.copy()[...] = x


def assigning_again(a, x):
    out = np.empty(N), np.empty(N)
    out[0][...] = x
    out[1][...] = x


def out(a, x):
    np.add(x, 1, out=np.empty(N))


def at_once(a, x):
    np.add(x, 1, out=np.empty(N), where=a > 0)


def at_once_off(a, x):
    with np.deferredstate(False):
        x + 1


def part(a, x):
    (np.ones((2, N)) * x)[0]


def bounds(a, x):
    for _ in range(70):
        x = x + 1


def held(a, x):
    for _ in range(20):
        x = x + np.copy(a)


def array_function(a, x):
    np.sum(x)


def touching(a, x):
    a.__array_interface__  # noqa: B018


kept = []


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (indexing, "read: indexing"),
        (formatting, "read: formatting"),
        (truth, "read: indexing"),
        (iteration, "read: iteration"),
        (comparison, "read: indexing"),
        (calculating, "np.deferred.calculate: a call"),
        (calculating_all, "everything pending is calculated: a call"),
        (scope, "the end of np.deferral"),
        (error_state, "the error state changes: a call"),
        (writing_operand, "an operand is written, or changed: an item assignment"),
        (writing_view, "an operand is written, or changed: an item assignment"),
        (writing, "written, or changed: an item assignment"),
        (exposing, "its address is handed out: a call"),
        (assigning, "assigned: an item assignment"),
        (assigning_again, "assigned: an item assignment"),
        (out, "the operation has out=: a call"),
        (at_once, "an operation that runs at once reads it: a call"),
        (at_once_off, "an operation that runs at once reads it: an operator"),
        (part, "a part that is not of one pass with the rest: indexing"),
        (bounds, "an expression with more operations or operands is too large"),
        (held, "an expression with more operations would keep much memory alive"),
        (array_function, "read: a call"),
        (touching, "an operand is written, or changed: an attribute"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_why(function, why):
    """One calculation at least says it, and names the line in `function`."""
    a = memory(N)
    try:
        with (
            np.errstate(all="ignore"),
            np.deferredstate(True),
            np.deferred.profile() as p,
        ):
            x = a + 1
            function(a, x)
            del x
    finally:
        kept.clear()
    found = [event for event in p.events if event.why.startswith(why)]
    assert found, [event.why for event in p.events]
    code, text = function.__code__, Path(__file__).read_text(encoding="utf-8")
    first, last = code.co_firstlineno, max(line or 0 for *_, line in code.co_lines())
    for event in found:
        file, _, line = event.where.rpartition(", line ")
        assert file == __file__
        assert first < int(line) <= last
        assert event.source.removesuffix(" ...") in text
    assert all(event.error is None for event in p.events)


def test_through_numpy(profiled):
    """Frames inside NumPy are named, and the line is the user's."""
    x = memory(N) + 1
    np.var(x)
    event = profiled.events[0]
    assert event.through == ("var", "_var")
    assert event.where == line_of(test_through_numpy, 3)


def test_compiled_code():
    """In a thread that holds no GIL, where no Python code runs."""
    code = """
    import ctypes
    import numpy as np
    from helpers.unseen import address
    a = np.ones(100_000)
    with np.deferredstate(True), np.deferred.profile() as p:
        x, y = a + 1, a + 2
        copy = ctypes.create_string_buffer(8)
        ctypes.PyDLL(None).memcpy(copy, ctypes.c_void_p(address(x)), 8)
        ctypes.CDLL(None).memcpy(copy, ctypes.c_void_p(address(y)), 8)
    for event in p.events:
        print(event.why, "|", event.where, "|", event._forced[-36:])
    """
    lines = output_of(code, PYTHONPATH=path_with_helpers()).splitlines()
    what = "compiled code touches its memory, or writes to an operand's"
    assert lines[0].startswith(f"{what}: a call | <string>, line 9 | ")
    assert lines[1] == f"{what} |  | in a thread that runs no Python code"


# ---- what runs at once ----


def exposed(a):
    memoryview(a)
    return a + 1


def three_results(a):
    def three(x):
        return x, x, x

    return np.frompyfunc(three, 1, 3)(a)


def subclass(a):
    return a.view(np.recarray) + 1


REASONS = {
    "out= is given": lambda a: np.add(a, 1, out=np.empty(N)),
    "where= is given": lambda a: np.add(a, 1, out=np.empty(N), where=a > 0),
    "not an elementwise ufunc of one or two results": three_results,
    "an input is of a subclass of ndarray": subclass,
    "its types or casts": lambda a: np.add(a.astype(object), 1),
    "the result is empty": lambda a: a[:0] + 1,
    "the memory of an input is not NumPy's": (
        lambda a: np.frombuffer(bytearray(a)) + 1
    ),
    "the memory of an input is exposed": exposed,
    "an input is a small view of much memory": lambda a: np.ones(10**6)[:9] + 1,
}


@pytest.mark.parametrize("reason", REASONS)
def test_at_once(reason, profiled):
    a = memory(N)
    REASONS[reason](a)
    REASONS[reason](a)
    found = [each for each in profiled.at_once if each.reason == reason]
    assert [each.times for each in found] == [2] * len(found)
    assert found
    for each in found:
        assert each.ufunc in ("add", "three (vectorized)")
        assert each.where.startswith(f"{__file__}, line ")
    assert profiled.totals()["at_once"] == sum(each.times for each in profiled.at_once)


def test_small_results():
    code = """
    import numpy as np
    with np.deferredstate(True), np.deferred.profile() as p:
        np.ones(10) + 1
        with np.deferredstate(False):
            np.ones(10_000) + 1
    print(*p.at_once[0], len(p.at_once))
    """
    assert output_of(code, NUMPY_DEFERRED_MIN_BYTES="") == (
        "1 add the result is small (NUMPY_DEFERRED_MIN_BYTES) <string>, line 4 1"
    )


def test_errors_of_a_call_are_not_counted(profiled):
    with pytest.raises(ValueError, match="broadcast"):
        memory(3) + memory(4)
    assert profiled.at_once == []


# ---- failures ----


def test_failed_calculation():
    a = memory(N)
    with np.errstate(divide="raise"), np.deferredstate(True):
        x = a / 0
        with np.deferred.profile() as p:
            for _ in range(2):
                with pytest.raises(FloatingPointError):
                    x[0]
        assert x.flags.deferred
    assert [event.error for event in p.events] == ["FloatingPointError"] * 2
    assert p.totals()["failed"] == 2
    assert "2 failed" in str(p)
    assert "failed: FloatingPointError" in str(p)
    assert "FloatingPointError" in p._repr_html_()


def test_exception_in_the_block():
    a = memory(N)
    p = np.deferred.profile()

    def work():
        with np.deferredstate(True), p:
            np.deferred.calculate(a + 1)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    np.deferred.calculate(deferred_sum(a))
    assert len(p.events) == 1


def deferred_sum(a):
    with np.deferredstate(True):
        return a + a


def test_handler_that_calculates():
    """What a handler calculates is inside the calculation whose error it handles."""
    a = memory(N)

    def call(*args):
        return other[0]

    with np.deferredstate(True), np.errstate(divide="call", call=call):
        x, other = a / 0, a * 2
        with np.deferred.profile() as p:
            x[0]
    outer, inner = p.events
    assert (outer.expression, inner.expression) == (
        "divide(a0, 0.0)",
        "multiply(a0, 2.0)",
    )
    assert outer.start <= inner.start
    assert outer.own_seconds == pytest.approx(outer.seconds - inner.seconds)
    assert inner.why == "read: indexing"


# ---- profiles ----


def test_nested():
    a = memory(N)
    with np.deferredstate(True), np.deferred.profile() as outer:
        np.deferred.calculate(a + 1)
        with np.deferred.profile() as inner:
            np.deferred.calculate(a + 2)
        np.deferred.calculate(a + 3)
    assert [e.expression[-4:-1] for e in outer.events] == ["1.0", "2.0", "3.0"]
    assert [e.expression[-4:-1] for e in inner.events] == ["2.0"]


def test_overlapping():
    """Those that end first need not have begun last."""
    a = memory(N)
    first, second = np.deferred.profile(), np.deferred.profile()
    with np.deferredstate(True):
        first.__enter__()
        second.__enter__()
        np.deferred.calculate(a + 1)
        first.__exit__(None, None, None)
        np.deferred.calculate(a + 2)
        second.__exit__(None, None, None)
        np.deferred.calculate(a + 3)
    assert (len(first.events), len(second.events)) == (1, 2)
    with pytest.raises(TypeError, match="twice"):
        first.__enter__()


def test_nothing_afterwards():
    with np.deferred.profile() as p:
        pass
    np.deferred.calculate(deferred_sum(memory(N)))
    assert p.events == p.at_once == []
    assert str(p) == (
        "0 calculations of 0 operations in 0.000 ms; 0 bytes read, 0 written"
    )
    assert "<table>" not in p._repr_html_()


def test_all_threads():
    a = memory(N)
    barrier = threading.Barrier(3)
    idents = set()

    def work():
        barrier.wait()
        idents.add(threading.get_ident())
        with np.deferredstate(True):
            for i in range(20):
                np.deferred.calculate(a + i)
        barrier.wait()

    with np.deferred.profile() as p:
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(p.events) == 60
    assert {event.thread for event in p.events} == idents
    starts = [event.start for event in p.events]
    assert starts == sorted(starts)


def test_loops_that_let_the_gil_go():
    """Evaluations of two threads overlap where NumPy itself runs the operation."""
    a, b = np.full(300_000, np.nan), np.full(300_000, -np.nan)
    done = []

    def work():
        with np.deferredstate(True):
            for _ in range(30):
                x = (a + b) * (b + a)[::-1]
                np.deferred.calculate(x)
                done.append(x)

    with np.deferred.profile() as p:
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(done) == 90
    assert p.totals()["operations"] >= 270
    assert all(0 <= event.own_seconds <= event.seconds for event in p.events)


def test_keeps_no_array_alive():
    class Base(np.ndarray):
        pass

    with np.deferredstate(True), np.deferred.profile() as p:
        owner = Base(N)
        owner[...] = 1
        dead = weakref.ref(owner)
        x = np.asarray(owner) + 1
        x[0]
        np.add(x, 1, out=np.empty(N))
        del x, owner
    assert dead() is None
    assert len(p.events) == 1
    gone = weakref.ref(p)
    del p
    assert gone() is None, "a reference cycle"


def test_leaks_nothing():
    a = memory(100)

    def work():
        with np.deferredstate(True), np.deferred.profile() as p:
            for _ in range(50):
                np.deferred.calculate(a + 1)
                np.add(a, 1, out=np.empty(100))
        return p.totals()

    work()
    gc.collect()
    tracemalloc.start()
    try:
        work()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(5):
            work()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 20_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("arguments", [(), ([], {}), ((), {}, ""), ([], {}, None)])
def test_private_interface(arguments):
    with pytest.raises(TypeError):
        core._deferred_start_profile(*arguments)
    core._deferred_stop_profile([])  # none of its business


# ---- shown ----


def test_table_groups_what_is_alike(profiled):
    a = memory(N)
    for _ in range(5):
        x = (a + 1) * (a + 1)
        x[0]
    y = a + 1
    np.deferred.calculate(y * y)
    lines = str(profiled).splitlines()
    assert lines[0].startswith("6 calculations of 17 operations in ")
    assert sum(" in 5 calculations, " in line for line in lines) == 1
    assert "    multiply(add(a0, 1.0), add(a0, 1.0))" in lines
    assert "    multiply(t0, t0); t0 = add(a0, 1.0)" in lines
    here = line_of(test_table_groups_what_is_alike, 4)
    assert f"    read: indexing, in {here}: x[0]" in lines
    assert repr(profiled).startswith("<numpy.deferred.profile: 6 calculations of 17 ")
    np.var(a + 2)
    assert str(Path("numpy/_core/_methods.py")) in str(profiled)
    assert str(Path(np.__file__).parent) not in str(profiled)


def test_html(profiled):
    source = compile("x = a * 2 + 1\nx[0]", "<b>.py", "exec")
    namespace = {"a": memory(N)}
    exec(source, namespace)
    np.add(namespace["a"], 1, out=np.empty(N))
    seen = text_of(profiled._repr_html_())
    assert "read: indexing, in <b>.py, line 2" in seen
    assert "out= is given" in seen


def test_chrome_trace(profiled, tmp_path):
    a = memory(N)
    x = np.sin(a) * memory(3, N)  # the part of another size is inside
    x[0]
    np.add(a, 1, out=np.empty(N))
    path = tmp_path / "trace.json"
    profiled.write_chrome_trace(path)
    trace = json.loads(path.read_text(encoding="utf-8"))
    names, whole, part = trace["traceEvents"]
    assert names["ph"] == "M"
    assert names["args"] == {"name": threading.current_thread().name}
    assert (whole["name"], part["name"]) == ("multiply", "sin")
    for each in (whole, part):
        assert each["ph"] == "X"
        assert each["pid"] == os.getpid()
        assert each["tid"] == names["tid"] == threading.get_ident()
        assert each["dur"] > 0
    assert whole["ts"] <= part["ts"]
    assert part["ts"] + part["dur"] <= whole["ts"] + whole["dur"]
    assert whole["args"]["expression"] == "multiply(a0, a1)"
    assert trace["otherData"]["at_once"] == [
        {
            "times": 1,
            "ufunc": "add",
            "reason": "out= is given",
            "where": line_of(test_chrome_trace, 4),
        }
    ]
