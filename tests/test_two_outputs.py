"""Ufuncs with two outputs: the loop of a call runs once, whatever is read of it."""

import gc
import itertools
import threading
import warnings

import numpy as np
import pytest

from helpers.compare import assert_same, comparison
from helpers.counting import counted
from helpers.layouts import LAYOUTS, operand
from helpers.process import output_of

N = 10_000


@pytest.fixture
def quiet():
    with np.errstate(all="ignore"), np.deferredstate(True):
        yield


def operands(size=N):
    with np.deferredstate(False):
        return [np.random.default_rng(i).random(size) * 9 + 1 for i in range(2)]


def calculations(call):
    """The operations of each calculation of `call()`, and how many arrays it gave."""
    with np.deferred.profile() as p:
        result = call()
    del result
    return [
        ([op.ufunc for op in event.explanation.operations], event.arrays)
        for event in p.events
    ]


def runs(events, name="divmod"):
    """How many loops of a ufunc ran; of two outputs of one call, one does."""
    return sum(ufuncs.count(name) / max(ufuncs.count(name), 1) for ufuncs, _ in events)


def read(*arrays):
    return [x.tobytes() for x in arrays]


# ---- that it is one run ----


@pytest.mark.parametrize("first", [0, 1])
def test_reading_one_calculates_both(first, quiet):
    a, b = operands()
    results = np.divmod(a + 1, b)
    assert all(x.flags.deferred for x in results)
    events = calculations(lambda: results[first][0])
    assert events == [(["add", "divmod", "divmod"], 2)]
    assert not any(x.flags.deferred for x in results)
    assert_same(lambda: np.divmod(a + 1, b))


def test_an_output_that_nobody_has_is_not_stored(quiet):
    a, b = operands()
    for which in (0, 1):
        x = np.divmod(a + 1, b)[which]
        assert np.deferred.stats()["pending"] == 2  # with a + 1
        with counted() as counters:
            assert calculations(lambda x=x: x[0]) == [(["add", "divmod"], 1)]
        assert counters.calculated == 1
        assert_same(lambda which=which: np.divmod(a + 1, b)[which])


def test_both_in_one_expression(quiet):
    a, b = operands()

    def call():
        q, r = np.divmod(a, b)
        return q * b + r

    x = call()
    plan = np.deferred.explain(x).plan
    assert plan.steps == 3
    assert calculations(lambda: x[0])[0][0] == ["divmod", "divmod", "multiply", "add"]
    assert_same(call)


def test_one_is_in_an_expression_and_the_other_pending(quiet):
    """Both are calculated first."""
    a, b = operands()
    q, r = np.divmod(a, b)
    x, y = q * 2 + 1, r - 1
    assert np.deferred.explain(x).plan is None
    events = calculations(lambda: read(x, y))
    assert (["divmod", "divmod"], 2) in events
    assert runs(events) == 1
    assert not any(x.flags.deferred for x in (q, r))


def test_one_is_in_an_expression_and_the_other_gone(quiet):
    a, b = operands()
    x = np.divmod(a, b)[1] * 2 + 1
    assert np.deferred.explain(x).plan.steps == 3
    assert calculations(lambda: x[0]) == [(["divmod", "multiply", "add"], 1)]


@pytest.mark.parametrize(
    "use",
    [
        lambda q, r: (q.sum(), r.sum()),
        lambda q, r: (np.add(q, 1, out=np.empty(N)), r),
        lambda q, r: (q.astype("f4"), r.astype("i8")),
        lambda q, r: (np.copyto(np.empty(N), r), q[0]),
        lambda q, r: (q.reshape(100, 100).T, r[::2]),
        lambda q, r: (q + 1).sum() + (r + 1).sum(),
        lambda q, r: (np.sqrt(q, out=np.empty(N)), np.sqrt(r, out=np.empty(N))),
        lambda q, r: (np.deferred.calculate(r, q), q),
        lambda q, r: (np.deferred.calculate_all(), q),
        lambda q, r: [bytes(memoryview(x)) for x in (q, r)],
    ],
)
def test_its_loop_runs_once(use, quiet):
    a, b = operands()
    events = calculations(lambda: use(*np.divmod(a, b)))
    assert runs(events) == 1
    assert_same(lambda: use(*np.divmod(a, b)))


def test_in_place_updates_of_both(quiet):
    a, b = operands()

    def call():
        q, r = np.divmod(a, b)
        q *= 2
        r += q
        return q, r

    assert all(x.flags.deferred for x in call())
    assert runs(calculations(lambda: read(*call()))) == 1
    assert_same(call)


def test_reductions_store_nothing(quiet):
    a, b = operands()

    def both():
        return np.add(*np.divmod(a, b)).sum()

    for call in (both, lambda: np.modf(a)[0].sum(), lambda: np.frexp(a)[1].max()):
        with counted() as counters:
            call()
        assert (counters.reduced, counters.calculated) == (1, 0)
        assert_same(call)


def test_outputs_with_names_are_stored(quiet):
    """As somebody else may read them, who would have the loop run again."""
    a, b = operands()

    def call():
        q, r = np.divmod(a, b)
        return (q * b + r).sum()

    with counted() as counters:
        call()
    assert (counters.reduced, counters.calculated) == (1, 2)
    assert_same(call)


def test_straight_to_a_destination(quiet):
    a, b = operands()
    destination = np.zeros(N)

    def call():
        destination[...] = np.divmod(a, b)[1]
        np.subtract(np.modf(b)[0], 1, out=destination[::-1])
        return destination

    with counted() as counters:
        call()
    assert (counters.fused, counters.calculated) == (2, 0)
    assert_same(call)


def test_sweeps(quiet):
    """Others that read the same come along, and so do their other outputs."""
    a, b = operands()

    def call():
        return *np.divmod(a, b), a + b, *np.modf(a)

    results = call()
    events = calculations(lambda: np.deferred.calculate(results[0], results[4]))
    assert [arrays for _, arrays in events] == [4]
    assert [x.flags.deferred for x in results] == [False, False, True, False, False]
    assert_same(call)


def test_operands_that_are_calculated_first(quiet):
    """A part of another size, and parts that are there already."""
    a, b = operands(100)

    def broadcast():
        return np.divmod((a + 1)[:, None], b * 2)

    def column():
        c = a[:, None] + 1
        return np.divmod(c, b * 2)

    def again():
        c = a * 2
        d = c + 1
        d.tobytes()
        return *np.divmod(c, b), c

    for call in (broadcast, column, again):
        assert runs(calculations(lambda call=call: read(*call()))) == 1
        assert_same(call)


def test_the_end_of_a_scope():
    a, b = operands()

    def call():
        with np.deferral():
            results.append(np.divmod(a, b))

    results = []
    with np.errstate(all="ignore"):
        assert runs(calculations(call)) == 1
    assert not any(x.flags.deferred for x in results[0])


def test_deep_chains_of_outputs(quiet):
    """Each of which has to be there before the next: no recursion."""
    a, b = operands(100)

    def chain():
        x, rest = a * 1e9, []
        for _ in range(60):
            x, r = np.divmod(x, b)
            rest.append(r)
        return x, *rest

    results = chain()
    events = calculations(lambda: results[0].tobytes())
    assert runs(events) == 60
    assert not any(x.flags.deferred for x in results)
    assert_same(chain)


# ---- who is told of errors ----


ZERO = np.zeros(N)


def divided(which):
    def call(a):
        results = np.divmod(a, ZERO)
        return [results[i] for i in which]

    return call


@pytest.mark.parametrize("how", ["warn", "print", "raise", "call", "log"])
@pytest.mark.parametrize("which", [[0], [1], [0, 1], [1, 0]])
def test_told_once(which, how, capfd):
    a, told = operands()[0], []

    class Log:
        def write(self, text):
            told.append(text)

    seen = {"call": lambda *args: told.append(args), "log": Log()}.get(how)

    def call():
        told.clear()
        try:
            with np.errstate(divide=how, invalid=how, call=seen):
                return *read(*divided(which)(a)), tuple(told)
        finally:
            told.append(capfd.readouterr().out)

    eager = assert_same(call)
    assert (eager.error is not None) == (how == "raise")


def test_told_of_the_call(quiet):
    """Once, where it was written, whoever reads what is behind it."""
    a = operands()[0]

    def call():
        q, r = np.divmod(a, ZERO)
        x, y = q + 1, np.sqrt(r)
        del q, r
        return *read(y), *read(x)

    with np.errstate(all="warn"):
        outcome = assert_same(call)
    assert {line for *_, line in outcome.warnings} == {call.__code__.co_firstlineno + 1}


def warnings_of(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in caught]


def test_each_error_is_one_warning(quiet):
    a = operands()[0]

    def call():
        q, r = np.divmod(a + 1, ZERO)
        del r
        x = q * 2
        x.tobytes()
        q.tobytes()

    def both():
        q, r = np.divmod(a + 1, ZERO)
        np.deferred.calculate(r)
        np.deferred.calculate(q)

    with np.errstate(all="warn"):
        told = [
            "divide by zero encountered in divmod",
            "invalid value encountered in divmod",
        ]
        assert warnings_of(call) == told
        assert warnings_of(both) == told


def test_both_wait_after_an_exception(raising):
    a = operands()[0]
    with np.deferredstate(True):
        q, r = np.divmod(a, ZERO)
        for x in (r, q, r):
            with pytest.raises(FloatingPointError, match="divmod"):
                x.tobytes()
            assert all(x.flags.deferred for x in (q, r))
            assert np.deferred.usage_count(a) == 2
        # Who was told need not be told again.
        with np.errstate(all="ignore"):
            pass
        assert all(x.flags.deferred for x in (q, r))
        del q, r, x
    assert np.deferred.usage_count(a) == 0


def test_one_that_is_left_raises_by_itself(raising):
    a = operands()[0]
    with np.deferredstate(True):
        q, r = np.divmod(a, ZERO)
        del q
        with pytest.raises(FloatingPointError):
            r.tobytes()
        assert r.flags.deferred


def test_an_exception_of_many_is_told_once(quiet):
    told = []

    def handler(*args):
        told.append(args)
        raise KeyError

    a = operands()[0]
    for everything in (np.deferred.calculate_all, lambda: a.__setitem__(0, a[0])):
        told.clear()
        with pytest.raises(KeyError), np.errstate(divide="call", call=handler):
            results = np.divmod(a, ZERO)
        assert len(told) == 1  # at the end of the block
        told.clear()
        with pytest.raises(KeyError):
            everything()
        assert len(told) == 1
        assert all(x.flags.deferred for x in results)
        del results


@pytest.mark.parametrize("reader", [0, 1])
@pytest.mark.parametrize("other", [0, 1])
def test_handlers_that_read(reader, other, quiet):
    a, told = operands()[0], []

    def handler(*args):
        told.append(args)
        told.append(str(results[other]))

    with np.errstate(divide="call", call=handler):
        results = np.divmod(a, ZERO)
        results[reader].tobytes()
    assert told[0] == ("divide by zero", told[0][1])
    assert len(told) == 2
    with np.deferredstate(False):
        expected = np.divmod(a, ZERO)
    assert told[1] == str(expected[other])
    assert read(*results) == read(*expected)


def test_errors_of_casts_are_of_the_call():
    a = np.full(N, 1e300)

    def call():
        q, r = np.divmod(a, 3, dtype="f4", casting="unsafe")
        return read(r), read(q)

    with np.errstate(all="warn"):
        assert assert_same(call).warnings


# ---- what is pending ----


def test_usage_counts(quiet):
    a, b = operands()
    q, r = np.divmod(a, b)
    assert (np.deferred.usage_count(a), np.deferred.usage_count(b)) == (2, 2)
    del q
    gc.collect()
    assert np.deferred.usage_count(a) == 1
    r.tobytes()
    assert np.deferred.usage_count(a) == 0
    assert a.flags.writeable


def test_writes_to_operands(quiet):
    a, b = operands()

    def call(a):
        a = a.copy()
        q, r = np.divmod(a, b)
        x = r * 2
        a[...] = 7
        return q, r, x

    assert_same(call, a)
    q, r = np.divmod(a, b)
    assert runs(calculations(lambda: a.fill(3))) == 1
    assert not any(x.flags.deferred for x in (q, r))


@pytest.mark.parametrize("order", "KACF")
@pytest.mark.parametrize("shape", [(7,), (4, 5), (2, 3, 4), (1, 5), (3, 1, 2), (1,)])
def test_layouts(shape, order):
    def call(*operands):
        return *np.divmod(*operands, order=order), *np.frexp(operands[0], order=order)

    with comparison() as compare, np.errstate(all="ignore"):
        for layout, other in itertools.product(LAYOUTS, LAYOUTS):
            a = operand("d", shape, 1, layout)
            b = operand("f", shape[1:] or shape, 2, other)
            compare.same(f"{layout.__name__} {other.__name__}", call, a, b)


@pytest.mark.parametrize("char", "efdg")
def test_outputs_of_different_types(char, quiet):
    a = operand(char, (N,), 1)

    def call():
        mantissa, exponent = np.frexp(a * 3)
        return np.ldexp(mantissa, exponent), exponent

    assert [x.dtype.char for x in np.frexp(a)] == [char, "i"]
    assert assert_same(call).error is None


@pytest.mark.parametrize(
    "call",
    [
        lambda a: np.divmod(a, 2, out=(np.empty(N), np.empty(N))),
        lambda a: np.divmod(a, 2, out=(None, np.empty(N))),
        lambda a: np.modf(a, np.empty(N)),
        lambda a: np.modf(a, where=np.ones(N, bool), out=(np.zeros(N), np.zeros(N))),
        lambda a: np.modf(a.view(np.recarray)),
        lambda a: np.divmod(a.astype("m8[s]"), np.timedelta64(3, "s")),
        lambda a: np.frompyfunc(divmod, 2, 2)(a[:9], 2),
        lambda a: np.modf(a[:0]),
        lambda a: np.modf(a[:1].reshape(())),
    ],
)
def test_at_once(call, quiet):
    a = operands()[0]
    with counted() as counters:
        assert not any(x.flags.deferred for x in call(a))
    assert counters.captured == 0
    assert_same(call, a)
    assert_same(lambda: call(a * 2))


def test_small_results():
    """Each output is to be twice as large as a result must be that is the only one."""
    code = """
    import numpy as np
    a = np.ones(8192)
    with np.deferredstate(True):
        print(*(x.flags.deferred for x in (*np.modf(a), *np.modf(a[1:]), a[1:] + 1)))
    """
    deferred = "True True False False True"
    assert output_of(code, NUMPY_DEFERRED_MIN_BYTES="") == deferred


def test_out_of_what_is_pending(quiet):
    """Given outputs are written at once, after what reads them is calculated."""
    a, b = operands()

    def call():
        q, r = np.divmod(a, b)
        x = q + r
        np.divmod(r + 1, b, out=(q, r))
        return q, r, x

    assert_same(call)


def test_off_with_a_pending_operand():
    a, b = operands()

    def call():
        with np.deferredstate(np.getdeferred()):
            c = a + 1
        with np.deferredstate(False):
            results = np.divmod(c, b)
            assert not results[0].flags.deferred
            return results

    assert_same(call)


def test_chains_beyond_the_bounds(quiet):
    a, b = operands(100)

    def call():
        x, rest = a * 1000, []
        for _ in range(100):
            x, r = np.divmod(x * 1.5 + 3, b)
            rest.append(r)
        return x, *rest

    assert_same(call)

    def other():
        x = a * 1000
        for _ in range(100):
            q, x = np.divmod(x * 1.5 + 3, b)
            x = x + q
        return x

    assert_same(other)


def test_errors_of_what_is_calculated_for_memory(quiet):
    """They wait for a reader, and are not told for each output."""
    told, results, n = [], [], 8
    previous = np.deferred.set_memory_limit(1 << 16)

    def handler(*args):
        told.append(args)
        raise KeyError

    def divide():
        with np.errstate(divide="call", call=handler):
            results.extend(np.divmod(np.ones(5000) * i, ZERO[:5000]) for i in range(n))
            results.append(len(told))

    try:
        with pytest.raises(KeyError):
            divide()
        assert 0 < results.pop() <= n
        told.clear()
        for x in results[-1]:
            with pytest.raises(KeyError):
                x.tobytes()
        assert len(told) == 2
    finally:
        np.deferred.set_memory_limit(previous)


def test_memory_that_only_it_keeps(quiet):
    previous = np.deferred.set_memory_limit(1 << 16)
    try:

        def call():
            return [np.divmod(np.arange(5000.0) * i, 3) for i in range(1, 9)][-1]

        assert_same(call)
    finally:
        np.deferred.set_memory_limit(previous)


# ---- plans ----


def test_twins_and_others_have_plans_of_their_own(quiet):
    a, b = operands()

    def twins():
        q, r = np.divmod(a, b)
        return q - r * 3

    def apart():
        return np.divmod(a, b)[0] - np.divmod(a, b)[1] * 3

    def first():
        return np.divmod(a, b)[0] - np.divmod(a, b)[0] * 3

    def exchanged():
        r, q = np.divmod(a, b)
        return q - r * 3

    with comparison() as compare:
        for _ in range(3):
            for call in (twins, apart, first, exchanged):
                compare.same(call.__name__, call)
    assert np.deferred.explain(twins()).plan.steps == 3
    assert np.deferred.explain(apart()).plan.steps == 4


@pytest.mark.parametrize("threads", [1, 3])
def test_in_threads(threads, num_threads):
    num_threads(threads)
    a, b = operands(300_007)

    def call():
        q, r = np.divmod(a * 2, b)
        return q, r, q * b + r, np.frexp(np.modf(a)[0])

    with np.errstate(all="ignore"):
        assert_same(lambda: (*call()[:3], *call()[3]))


def test_two_threads_read(quiet):
    a, b = operands(1_000_000)
    with np.deferredstate(False):
        expected = read(*np.divmod(a * 2, b))
    for _ in range(5):
        results = np.divmod(a * 2, b)
        found = {}
        barrier = threading.Barrier(2)

        def work(i, results=results, found=found, barrier=barrier):
            barrier.wait()
            found[i] = results[i].tobytes()

        workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [found[0], found[1]] == expected


# ---- what is shown ----


def test_explain_shows_both(quiet):
    a, b = operands()
    q, r = np.divmod(a + 1, b)
    for x in (q, r):
        e = np.deferred.explain(x)
        assert e.results == ("t1", "t2")
        assert [op.output for op in e.operations] == [None, 0, 1]
        assert (e.plan.steps, e.bytes_written) == (2, 16 * N)
        assert "divmod(t0, a1)[0]" in str(e) or "divmod(t0, a0)[0]" in str(e)
        assert "divmod[1]" in e.dot()
    del q, x
    e = np.deferred.explain(r)
    assert e.results == ("t1",)
    assert [op.output for op in e.operations] == [None, 1]
    assert (e.plan.steps, e.bytes_written) == (2, 8 * N)


def test_explain_has_the_type_of_the_array(quiet):
    mantissa, exponent = np.frexp(operands()[0])
    assert np.deferred.explain(mantissa).dtype == np.float64
    assert np.deferred.explain(exponent).dtype == np.int32
    assert np.deferred.explain(exponent).bytes_written == 12 * N


def test_profiles_show_both(quiet):
    a, b = operands()
    results = np.divmod(a, b)
    with np.deferred.profile() as p:
        results[1].tobytes()
    (event,) = p.events
    assert event.arrays == 2
    assert event.expression == "divmod(a0, a1)[1]; divmod(a0, a1)[0]"
