"""
Which parts of an expression are stored, and how often each is computed.

Arithmetic costs less than memory, so that it may run again; functions may not, and no
chain of operations may be gone through again for each of its steps.
"""

import itertools

import numpy as np
import pytest

from helpers.compare import assert_same
from helpers.counting import counted
from helpers.process import output_of

N = 5000


@pytest.fixture(autouse=True)
def quiet():
    with np.errstate(all="ignore"):
        yield


def operand():
    return np.linspace(0.5, 1.5, N)


def computed(call, *args):
    """How often each operation was, by name, until all results are calculated."""
    times = {}
    with np.deferredstate(True), np.deferred.profile() as p:
        results = call(*args)
        results = results if isinstance(results, tuple) else (results,)
        np.deferred.calculate(*(x for x in results if isinstance(x, np.ndarray)))
    for event in p.events:
        for operation in event.explanation.operations:
            times[operation.ufunc] = times.get(operation.ufunc, 0) + 1
    return times


# Functions: once, where somebody has the result.


def mask(a):
    x = np.exp(a * a)
    chosen = x > 2
    chosen[0]
    return x * chosen


def indexed(a):
    x = np.exp(a * a)
    return x[x > 2]


def twice(a):
    x = np.exp(a * a)
    y = x * 2
    y[0]
    return y, x + 1


def inner(a):
    """The function is inside what has the name."""
    x = np.exp(a * a) + 1
    y = x * 2
    y[0]
    return y, x + 1


def of_each_other(a):
    x = np.exp(a * a)
    y = x - 1
    z = np.log(y)
    z[0]
    return x, y, z


def reduced(a):
    x = np.exp(a * a)
    total = (x * 2).sum()
    return x, total


def assigned(a):
    x, out = np.exp(a * a), np.zeros(N)
    out[...] = x * 2
    return x, out


def into_out(a):
    x, out = np.exp(a * a), np.zeros(N)
    np.multiply(x, 2, out=out)
    return x, out


def joined(a):
    """Of parts, each of which has a name."""
    x, y = np.exp(a * a), np.sqrt(a) + 1
    r = x * x + y * y
    r[0]
    return x / r, y / r


def two_outputs(a):
    q, r = np.divmod(a, 0.3)
    total = (q * 2 + r).sum()
    return q, r, total


NAMED = (
    mask,
    indexed,
    twice,
    inner,
    of_each_other,
    reduced,
    assigned,
    into_out,
    joined,
    two_outputs,
)
FUNCTIONS = {"exp", "log", "divmod"}


@pytest.mark.parametrize("call", NAMED, ids=lambda call: call.__name__)
def test_functions_with_names_run_once(call):
    a = operand()
    times = computed(call, a)
    runs = 2 if call is two_outputs else 1  # an operation for each output
    assert {times[name] for name in FUNCTIONS & set(times)} == {runs}
    assert_same(lambda: call(a))


UNNAMED = (
    lambda a, out: (np.exp(a * a) * 2)[0],
    lambda a, out: (np.exp(a * a) * np.sin(a)).sum(),
    lambda a, out: np.multiply(np.exp(a), 2, out=out),
    lambda a, out: np.multiply(np.exp(a), np.sin(a), out=out),
    lambda a, out: out.__setitem__(..., np.exp(a) * 2),
)


@pytest.mark.parametrize("call", UNNAMED)
def test_functions_without_names_are_not_stored(call):
    a, out = operand(), np.zeros(N)
    with np.deferredstate(True), np.deferred.profile() as p:
        call(a, out)
    assert len(p.events) == 1


def test_arithmetic_with_a_name_is_stored_the_second_time():
    a = operand()
    with np.deferredstate(True):
        x = a * a + 1
        (x * 2)[0]
        assert x.flags.deferred
        (x - 2)[0]
        assert not x.flags.deferred


@pytest.mark.parametrize("char", ["e", "b", "g", "d", "D"])
def test_arithmetic_of_other_types_is_no_function(char):
    """No program has some of these, but their loops take little time."""
    a = np.arange(N).astype(char)
    with np.deferredstate(True):
        x = a * a
        y = np.maximum(x, a) - (x == a)
        (y * a)[0]
        assert x.flags.deferred
        assert y.flags.deferred
        del x, y


# Chains: no step is computed for each of those behind it.

STEPS = 40
READERS = {
    "nothing": lambda x, count: None,
    "max": lambda x, count: x.max(),
    "any": lambda x, count: (x > 2).any(),
    "element": lambda x, count: x[0],
    "element of more": lambda x, count: (x + 1)[0],
    "counts": lambda x, count: np.add(count, x > 2, out=count),
    "assignment": lambda x, count: count.__setitem__(..., x),
    "function": lambda x, count: np.exp(x).sum(),
}
MAKERS = {
    "arithmetic": lambda x, a: x * x * 0.001 + a,
    "function": lambda x, a: np.sqrt(x) + a,
    "in place": lambda x, a: np.multiply(x, 0.5, out=x) + a,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("maker", MAKERS)
def test_chains(maker, reader):
    a = operand()

    def run():
        x, count = a * 1, np.zeros(N)
        for _ in range(STEPS):
            READERS[reader](x, count)
            x = MAKERS[maker](x, a)
        return x, count

    operations = sum(computed(run).values())
    # Arithmetic runs up to three times, and what reads it runs, too.
    assert operations <= 16 * STEPS
    assert_same(run)


def test_loops_over_named_parts():
    """Each step of a loop begins with what another one of it has made."""
    a = operand()

    def run():
        x, y = a * 1, a * 2
        seen = []
        for _ in range(STEPS):
            x, y = x * 0.5 + y, y * 0.5 - x
            seen.append((x * y).max())
        return x, y, np.array(seen)

    assert sum(computed(run).values()) <= 40 * STEPS
    assert_same(run)


# Results that are smaller than what they are made of.


def test_masks_wait_with_what_they_read():
    code = """
    import numpy as np
    a = np.linspace(0.5, 1.5, 10_000)
    with np.deferredstate(True):
        x = a * a
        chosen = x > 1
        small = np.zeros(10_000, np.uint8) > 1
        print(x.flags.deferred, chosen.flags.deferred, small.flags.deferred)
    """
    assert output_of(code, NUMPY_DEFERRED_MIN_BYTES=None) == "True True False"


@pytest.mark.parametrize("function", [np.any, np.all, np.sum, np.mean])
def test_masks_that_are_used_again_are_stored_first(function):
    """From the second time that a line makes one."""
    code = f"""
    import numpy as np
    a = np.linspace(0.5, 1.5, 100_000)
    np.setdeferred(True)
    for i in range(3):
        chosen = (a > 0.7) & (a < 1.2)
        before = np.deferred.stats()["reduced"]
        np.{function.__name__}(chosen)
        print(np.deferred.stats()["reduced"] - before, chosen.flags.deferred)
        a[chosen]
    """
    expected = ["1 True", *["0 False"] * 2]
    assert output_of(code, NUMPY_DEFERRED_MIN_BYTES=None).splitlines() == expected


def test_counters():
    """What is found out about a chain does not depend on who asks first."""
    a = operand()
    with np.deferredstate(True), counted() as counters:
        for call in itertools.repeat(mask, 3):
            np.deferred.calculate(call(a))
    assert counters.calculated == 9
