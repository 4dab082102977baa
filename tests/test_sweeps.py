"""Several arrays out of one sweep over memory: sweep.c."""

import gc
import itertools
import sys
import threading
import warnings
import weakref

import numpy as np
import numpy._core._multiarray_umath as core
import pytest

from helpers import layouts
from helpers.compare import differences, observe_both
from helpers.layouts import operand
from helpers.process import output_of

N = 10_000


def swept(call):
    """How many arrays were calculated together with others in `call()`."""
    before = np.deferred.stats()["together"]
    call()
    return np.deferred.stats()["together"] - before


def sweeps(call):
    """How many arrays each calculation of `call()` had, and what it is."""
    with np.deferred.profile() as p:
        call()
    return [event.arrays for event in p.events]


@pytest.fixture
def quiet():
    with np.errstate(all="ignore"), np.deferredstate(True):
        yield


def operands(n=3, size=N):
    with np.deferredstate(False):
        return [np.random.default_rng(i).random(size) + 1 for i in range(n)]


# ---- that it is one sweep ----


def three(a, b, c):
    return a + b + c, a * b * c, a - b


def named(a, b, c):
    """An intermediate that has a name, and is an array therefore."""
    t = a * b
    return t + c, t * a, t


def chain(a, b, c):
    t = a - b
    u = t * c
    return u - a, u, t


def compared(a, b, c):
    """Booleans, which are stored and read as masks."""
    m = a < b
    n = m & (b < c)
    return m, n, n * a


def roots(a, b, c):
    s = np.sqrt(np.abs(a))
    return s, np.sin(s) * b, np.maximum(s, c), s > b


PROGRAMS = (three, named, chain, compared, roots)


@pytest.mark.parametrize("program", PROGRAMS)
def test_one_sweep(program, quiet):
    results = program(*operands())
    n = len(results)
    with np.deferred.profile() as p:
        np.deferred.calculate(*results)
    (event,) = p.events
    assert event.arrays == n
    assert event.bytes_read <= 3 * 8 * N
    assert event.bytes_written == sum(x.nbytes for x in results)
    assert event.why == "np.deferred.calculate: a call"
    assert f"{n} arrays in one sweep, of shape ({N},)" in str(p)
    assert f"{n} x " in p._repr_html_()
    assert not any(x.flags.deferred for x in results)


def test_what_profiles_say(quiet):
    a, b, c = operands()
    t = a * b
    u, v = t + c, t - c
    with np.deferred.profile() as p:
        np.deferred.calculate(u, v, t)
    (event,) = p.events
    assert event.expression == "subtract(t0, a0); add(t0, a0); t0 = multiply(a1, a2)"
    assert event.explanation.results == ("t0", "t1", "t2")
    assert event.explanation.bytes_avoided == 0
    assert (event.bytes_read, event.bytes_written) == (3 * 8 * N, 3 * 8 * N)


def test_what_explains_say(quiet):
    """Of an array alone, as it would be calculated if it were read."""
    d, e, f = three(*operands())
    explanation = np.deferred.explain(e)
    assert explanation.results == ("t1",)
    assert explanation.bytes_written == 8 * N
    assert len(explanation.operands) == 3
    np.deferred.calculate(d, e, f)
    assert np.deferred.explain(e).results == ()


def test_everything(quiet):
    results = three(*operands())
    assert swept(np.deferred.calculate_all) == len(results)


def test_end_of_a_scope():
    a, b, c = operands()

    def work():
        with np.errstate(all="ignore"), np.deferral():
            results.extend(named(a, b, c))

    results = []
    assert swept(work) == 3
    assert not any(x.flags.deferred for x in results)


def test_only_what_is_of_the_scope(quiet):
    a, b, c = operands()
    outer = a + b
    with np.deferral():
        inner = a * b, b * c
    assert outer.flags.deferred
    assert not any(x.flags.deferred for x in inner)


def test_write_into_an_operand(quiet):
    a, b, c = operands()
    expected = [x.copy() for x in three(a, b, c)]
    results = three(a, b, c)

    def write():
        a[0] = 7

    assert swept(write) == 3
    for x, y in zip(results, expected, strict=True):
        assert x.tobytes() == y.tobytes()


def test_what_nobody_has_is_not_stored(quiet):
    a, b, c = operands()
    x, y = (a * b) + c, (a * c) - b
    captured = np.deferred.stats()["calculated"]
    assert sweeps(np.deferred.calculate_all) == [2]
    assert np.deferred.stats()["calculated"] - captured == 2
    del x, y


def test_the_same_array_twice(quiet):
    a, b, _c = operands()
    x, y = a + b, a - b
    assert swept(lambda: np.deferred.calculate(x, x, y, x, a, y)) == 2


def test_many_are_split(quiet):
    (a,) = operands(1)
    results = [a * i + 1 for i in range(50)]
    with np.deferred.profile() as p:
        np.deferred.calculate(*results)
    assert sum(event.arrays for event in p.events) == len(results)
    assert all(event.arrays > 1 for event in p.events)
    assert len(p.events) <= 10
    with np.deferredstate(False):
        for i, x in enumerate(results):
            assert x.tobytes() == (a * i + 1).tobytes()


def test_among_many_that_have_nothing_in_common(quiet):
    """They are looked for now and then."""
    a, *others = operands(401, 100)
    apart = [x + 1 for x in others[:200]]
    together = [a * i for i in range(200)]
    assert swept(np.deferred.calculate_all) == 200
    apart = [x + 1 for x in others[:200]]
    together = [a * i for i in range(200)]
    apart += [x + 1 for x in others[200:]]
    assert 100 < swept(np.deferred.calculate_all) <= 200
    assert not any(x.flags.deferred for x in apart + together)


def test_operands_and_operations_have_bounds(quiet):
    """What is read and what is written, all together."""
    arrays = operands(30, 100)

    def program():
        sums = [sum(arrays[i:], start=arrays[0]) for i in (1, 2, 3, 4)]
        longer = [arrays[0] + i for i in range(4)]
        for i in range(20):
            longer = [x * arrays[1 + i % 5] for x in longer]
        return [*sums, *longer]

    results = program()
    assert swept(np.deferred.calculate_all) > 0
    with np.deferredstate(False):
        for x, y in zip(results, program(), strict=True):
            assert x.tobytes() == y.tobytes()


# ---- that it is not ----


def test_nothing_in_common(quiet):
    a, b, _c = operands()
    x, y = a + 1, b + 1
    assert swept(lambda: np.deferred.calculate(x, y)) == 0


def test_views_share_memory(quiet):
    (a,) = operands(1)
    x, y = a[1:] - a[:-1], a[1:] + a[:-1]
    assert swept(lambda: np.deferred.calculate(x, y)) == 2


@pytest.mark.parametrize("other", [(2, N // 2), (N // 2, 2), (N - 1,), (1, N)])
def test_another_shape(other, quiet):
    (a,) = operands(1)
    x, y = a + 1, a[: np.prod(other)].reshape(other) * 2
    assert swept(lambda: np.deferred.calculate(x, y)) == 0


def test_another_order(quiet):
    a = operands(1)[0].reshape(100, 100)
    x, y = a + 1, a.T * 2
    assert x.flags.c_contiguous
    assert y.flags.f_contiguous
    assert swept(lambda: np.deferred.calculate(x, y)) == 0


def test_a_part_of_another_size(quiet):
    a, b = operands(2)
    a, b = a.reshape(100, 100), b[:100]
    s = b * 2
    x, y = a + s, a - s
    np.deferred.calculate(x, y)
    with np.deferredstate(False):
        assert x.tobytes() == (a + b * 2).tobytes()
        assert y.tobytes() == (a - b * 2).tobytes()


# ---- bits ----

CHARS = "?bBhHiIlLqQefdgFDG"


def both_ways(program, arrays, how):
    """Results, eagerly and out of sweeps; twice, as plans are kept."""

    def call():
        results = program(*arrays)
        how(results)
        return results

    for _ in range(2):
        eager, deferred = observe_both(call)
        assert not differences(eager, deferred)


def given(results):
    np.deferred.calculate(*results)


def backwards(results):
    np.deferred.calculate(*results[::-1])


def everything(results):
    np.deferred.calculate_all()


HOWS = (given, backwards, everything)


def sums(a, b, c):
    t = a + b
    return t, t * c, a * c, t + t * b


def mixed(a, b, c):
    t = np.add(a, b)
    u = np.less(t, c)
    return t, u, np.multiply(u, a), np.add(t, 1.5), np.multiply(c, t)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("char", CHARS)
@pytest.mark.parametrize("program", [sums, mixed])
def test_bits_of_types(program, char, threads, num_threads):
    num_threads(threads)
    with np.errstate(all="ignore"):
        for n in (1, 2, 63, 65, 1025, 4097, 150_000):
            arrays = [operand(char, (n,), i) for i in range(3)]
            for how in HOWS[:: 1 if n < 5000 else 3]:
                both_ways(program, arrays, how)


@pytest.mark.parametrize(
    "chars", [*list(itertools.permutations("fdi", 3)), "?dF", "leg"]
)
@pytest.mark.parametrize("program", [sums, mixed])
def test_bits_of_mixed_types(program, chars):
    with np.errstate(all="ignore"):
        for n in (1, 7, 65, 1025, 10_000):
            arrays = [operand(char, (n,), i) for i, char in enumerate(chars)]
            both_ways(program, arrays, given)


SHAPES = ((1,), (1, 1), (130,), (3000,), (60, 70), (400, 3), (2, 300), (5, 6, 70))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("char", "dfiF?")
def test_bits_of_layouts(char, layout, threads, num_threads):
    num_threads(threads)
    with np.errstate(all="ignore"):
        for shape in SHAPES:
            for which in itertools.product((layouts.contiguous, layout), repeat=3):
                arrays = [operand(char, shape, i, each) for i, each in enumerate(which)]
                both_ways(sums, arrays, given)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(300, 400), (200_000, 3), (3, 100_000)])
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_bits_of_large_layouts(layout, shape, threads, num_threads):
    num_threads(threads)
    with np.errstate(all="ignore"):
        arrays = [
            operand("d", shape, 0),
            operand("d", shape, 1, layout),
            operand("d", shape, 2),
        ]
        both_ways(sums, arrays, given)
        both_ways(named, arrays, everything)


@pytest.mark.parametrize("program", PROGRAMS)
def test_bits_of_broadcasting(program):
    with np.errstate(all="ignore"):
        for char in "dfi":
            for shapes in (
                ((50, 60), (60,), (50, 1)),
                ((50, 1), (60,), (50, 60)),
                ((40, 3), (3,), (40, 1)),
            ):
                arrays = [operand(char, shape, i) for i, shape in enumerate(shapes)]
                both_ways(program, arrays, given)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("threads", [1, 2])
def test_streamed_results(program, threads, num_threads):
    """Larger than what the cache is for."""
    num_threads(threads)
    with np.errstate(all="ignore"):
        arrays = operands(3, (9 << 20) // 8 + 5)
        both_ways(program, arrays, given)
        both_ways(program, [x.astype("f") for x in arrays], given)


def test_nans_and_their_payloads():
    """Which of two NaNs it is."""
    nans = np.array([0x7FF8000000000001, 0xFFF8000000000002, 0x7FF0000000000003], "u8")
    with np.errstate(all="ignore"):
        for n in (5, 64, 1000, 5000):
            a, b, c = operands(3, n)
            for x, shift in ((a, 0), (b, 1), (c, 2)):
                x[::7] = np.roll(nans, shift).view("d")[np.arange(len(x[::7])) % 3]
            for program in (*PROGRAMS, sums):
                both_ways(program, (a, b, c), given)
                both_ways(program, (a[::-1], b, c[::-1]), given)


@pytest.mark.parametrize("seed", range(40))
def test_bits_of_random_programs(seed, num_threads):
    """Any arrays of a DAG have names, and are calculated in any order."""
    rng = np.random.default_rng(seed)
    num_threads(1 + seed % 2)
    binary = (np.add, np.subtract, np.multiply, np.divide, np.maximum, np.less)
    unary = (np.negative, np.sqrt, np.square, np.exp, np.logical_not)
    n = int(rng.choice([3, 130, 2000, 70_000]))
    arrays = [operand(rng.choice(list("dfdid?")), (n,), i) for i in range(4)]
    steps = [
        (bool(rng.integers(4)), int(rng.integers(6)), *rng.integers(0, 4 + i, 2))
        for i in range(int(rng.integers(4, 25)))
    ]
    kept = [bool(rng.integers(2)) for _ in steps]
    order = rng.permutation(sum(kept))

    def program(*values):
        values = list(values)
        for is_binary, which, i, j in steps:
            i, j = i % len(values), j % len(values)
            x, y = values[i], values[j]
            try:
                value = binary[which](x, y) if is_binary else unary[which % 5](x)
            except TypeError:  # not for booleans
                value = np.logical_or(x, y)
            values.append(value)
        results = [x for x, keep in zip(values[4:], kept, strict=True) if keep]
        return [results[i] for i in order]

    with np.errstate(all="ignore"):
        for how in HOWS:
            both_ways(program, arrays, how)


def test_single_elements(quiet):
    """Whose strides are anything, and mean nothing."""
    for shape in ((1,), (1, 1)):
        x, y = (np.broadcast_to(np.array(k), shape) + 0.0 for k in (3.0, 4.0))
        t = x * y
        u, v = t + x, np.signbit(t).sum(0) * x
        x[...] = 7
        np.deferred.calculate(t, u, v)
        assert (t.item(), u.item(), v.item()) == (12, 15, 0)


# ---- errors ----


def test_what_may_raise_is_calculated_apart():
    a, b, _c = operands()
    with np.errstate(all="raise"), np.deferredstate(True):
        x, y = a + b, a * b
        assert swept(lambda: np.deferred.calculate(x, y)) == 0


def test_who_raises_stays_deferred_alone():
    a, zero = operands(2)
    zero[...] = 0
    with np.errstate(all="raise"), np.deferredstate(True):
        x, y, z = a + zero, a / zero, a * zero
        with pytest.raises(FloatingPointError, match=r"divide by zero .* in divide"):
            np.deferred.calculate(x, y, z)
        assert [each.flags.deferred for each in (x, y, z)] == [False, True, True]
        np.deferred.calculate(z)
        with pytest.raises(FloatingPointError):
            y[0]
        del y


@pytest.mark.parametrize("how", HOWS)
def test_warnings(how):
    """As many as before, each of its line."""
    a, b = operands(2)
    a[5], b[7] = -1, 0

    def program(a, b):
        t = np.sqrt(a)
        u = t / b
        return a + b, u, t, np.log(b), t * b

    def call():
        results = program(a, b)
        how(results)
        return results

    with np.errstate(all="warn"):
        eager, deferred = observe_both(call)
        assert not differences(eager, deferred)
        assert len(eager.warnings) == 3
    with warnings.catch_warnings(record=True) as caught, np.deferredstate(True):
        warnings.simplefilter("always")
        results = program(a, b)
        how(results)
        assert len(caught) == 3
        assert {w.lineno for w in caught} == {
            program.__code__.co_firstlineno + i for i in (1, 2, 3)
        }


def test_warnings_that_are_exceptions():
    a, b = operands(2)
    b[7] = 0
    with warnings.catch_warnings(), np.errstate(all="warn"), np.deferredstate(True):
        warnings.simplefilter("error")
        x, y = a + b, a / b
        with pytest.raises(RuntimeWarning, match="divide by zero"):
            np.deferred.calculate(x, y)
        assert not x.flags.deferred
        assert y.flags.deferred
        del y


def test_a_function_that_shows_warnings_and_raises(monkeypatch):
    """Nobody can know before."""
    a, b = operands(2)
    b[7] = 0
    shown = []

    def show(message, *args, **kwargs):
        shown.append(str(message))
        raise ValueError(str(message))

    for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
        with np.errstate(all="warn"), warnings.catch_warnings():
            warnings.simplefilter("always")
            monkeypatch.setattr(warnings, "showwarning", show)
            monkeypatch.setattr(warnings, "_showwarnmsg_impl", show, raising=False)
            with np.deferredstate(True):
                results = [a + b, a / b, a * b]
                shown.clear()
                with pytest.raises(ValueError, match="divide by zero"):
                    np.deferred.calculate(*(results[i] for i in order))
                assert len(shown) == 1
                assert results[1].flags.deferred
                with pytest.raises(ValueError, match="divide by zero"):
                    np.deferred.calculate_all()
                assert [x.flags.deferred for x in results] == [False, True, False]
            monkeypatch.undo()
            del results
            gc.collect()


def test_handlers_that_read_the_others():
    """While one warns, all that is in the sweep can be read, and written to."""
    a, b = operands(2)
    b[7] = 0
    results = []

    def show(message, *args, **kwargs):
        results[0][0], results[2][0]
        a[3] = 1e9

    with np.deferredstate(False):
        expected = [a + b, a * 2, a - b]
    with warnings.catch_warnings(), np.errstate(all="warn"):
        warnings.simplefilter("always")
        warnings.showwarning = show
        with np.deferredstate(True):
            results += [a + b, a * 2, a - b, a / b]
            np.deferred.calculate(*results[::-1])
    assert a[3] == 1e9
    for x, y in zip(results, expected, strict=False):
        assert x.tobytes() == y.tobytes()


def test_callbacks_of_operands_that_go(quiet):
    """They may read what has not been published yet."""
    a, b, _c = operands()
    temporary = a * 2
    np.deferred.calculate(temporary)
    x, y, z = temporary + b, a * b, a - b
    expected = (a * b).copy()
    seen = []
    weakref.finalize(temporary, lambda: seen.append(y.tobytes()))
    del temporary
    np.deferred.calculate(x, y, z)
    assert seen == [expected.tobytes()]


# ---- threads ----


@pytest.mark.parametrize("mask", ["ignore", "warn"])
def test_threads(mask, num_threads):
    """Of Python, which run while others calculate what they have in common."""
    a, b, c = operands(3, 100_000)
    b[5] = 0
    failures = []

    def work(i):
        with np.errstate(all=mask), np.deferredstate(True):
            for j in range(8):
                x, y, z = shared[j]
                mine = x + i, y * i, x + z, np.divide(a, b)
                if j % 2:
                    np.deferred.calculate(x, *mine, y)
                else:
                    np.deferred.calculate(*mine)
                    np.deferred.calculate(z, x, y)
                with np.deferredstate(False):
                    t = a * b
                    expected = t + i, (t + c) * i, t + (t - c), np.divide(a, b)
                failures.extend(
                    (i, j)
                    for one, other in zip(mine, expected, strict=True)
                    if one.tobytes() != other.tobytes()
                )

    num_threads(2)
    worth = core._deferred_set_gil_worth(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with np.errstate(all=mask), np.deferredstate(True):
                shared = []
                for _ in range(8):
                    t = a * b
                    shared.append((t, t + c, t - c))
            threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        core._deferred_set_gil_worth(worth)
    assert not failures
    assert not any(x.flags.deferred for three in shared for x in three)


# ---- memory ----


def test_nothing_leaks(quiet):
    a, b, c = operands()
    counts = [sys.getrefcount(x) for x in (a, b, c)]
    for program in PROGRAMS:
        for _ in range(5):
            results = program(a, b, c)
            np.deferred.calculate(*results)
            del results
    assert [sys.getrefcount(x) for x in (a, b, c)] == counts


def test_operands_are_let_go(quiet):
    a, b, c = operands()
    results = named(a, b, c)
    np.deferred.calculate(*results)
    assert np.deferred.usage_count(a) == 0
    assert a.flags.writeable
    assert results[2].flags.writeable
    results[2][0] = 3
    a[0] = 4


@pytest.mark.parametrize(("dropped", "expected"), [(False, 4), (True, 0)])
def test_memory_is_let_go_before_more_is_taken(dropped, expected, quiet):
    """Of operands that nobody else has, each array's own."""
    a, *others = operands(5, 1 << 18)
    results = [a * x for x in others]
    if dropped:
        del others
    assert swept(lambda: np.deferred.calculate(*results)) == expected


def test_addresses_that_were_handed_out(quiet):
    """Those of guards, which compiled code may have."""
    a, b, c = operands(3, 100_000)
    results = three(a, b, c)
    guards = [np.deferred.explain(x) and x.__array_interface__ for x in results]
    for x, guard in zip(results, guards, strict=True):
        assert x.__array_interface__["data"] == guard["data"]


def test_interrupt():
    """Of the other process, as nothing else runs while something is calculated."""
    code = """
    import os, signal, subprocess
    import numpy as np
    signal.signal(signal.SIGINT, signal.default_int_handler)
    a = np.ones(10_000_000)
    np.seterr(all="ignore")
    np.deferred.set_num_threads(1)
    with np.deferredstate(True):
        x = np.arctan2(np.sin(a) + np.cos(a) * np.tan(a), a)
        y = np.arctan2(np.sin(a + 1) + np.cos(a) * np.tan(a), a)
        killer = f"sleep 0.3; kill -INT {os.getpid()}"
        killer = subprocess.Popen(killer, shell=True, start_new_session=True)
        try:
            np.deferred.calculate(x, y)
            print("not interrupted")
        except KeyboardInterrupt:
            print(x.flags.deferred, y.flags.deferred, np.deferred.usage_count(a) > 0)
        killer.wait()
        np.deferred.calculate(x, y)
        with np.deferredstate(False):
            b = a[:1000]
            t = np.cos(b) * np.tan(b)
            assert (x[:1000] == np.arctan2(np.sin(b) + t, b)).all()
            assert (y[:1000] == np.arctan2(np.sin(b + 1) + t, b)).all()
    """
    assert output_of(code) == "True True True"
