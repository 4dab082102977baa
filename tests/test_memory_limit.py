"""Memory that only pending operations keep alive is bounded."""

import tracemalloc

import numpy as np
import pytest

from helpers.counting import counted
from helpers.process import run_python

N = 200_000
NBYTES = 8 * N


@pytest.fixture(autouse=True)
def deferred():
    with np.errstate(all="ignore"), np.deferredstate(True):
        yield


@pytest.fixture
def limit():
    previous = np.deferred.get_memory_limit()
    yield np.deferred.set_memory_limit
    np.deferred.set_memory_limit(previous)


def held():
    return np.deferred.stats()["held"]


def test_fresh_operands_are_let_go():
    """The sum of 60 arrays that nobody else needs holds a few, not 60."""
    tracemalloc.start()
    try:
        total = np.zeros(N)
        for i in range(60):
            fresh = np.full(N, float(i))
            total = total + fresh
            del fresh
            assert held() <= 5 * NBYTES
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total.flags.deferred
    assert peak <= 8 * NBYTES
    assert total[0] == sum(range(60))


def test_named_operands_do_not_count():
    arrays = [np.full(N, float(i)) for i in range(30)]
    with counted() as counters:
        total = sum(arrays[1:], arrays[0])
        assert held() == 0
    assert counters.calculated == 0
    assert total[-1] == sum(range(30))


def test_four_fresh_operands_are_fused():
    with counted() as counters:
        a, b, c, d = (np.full(N, float(i)) for i in range(4))
        x = a * b + c * d
        del a, b, c, d
        assert held() == 4 * NBYTES
        assert x[0] == 6
    assert counters.calculated == 1
    assert held() == 0


def test_views_are_followed_to_their_memory():
    a = np.full(2 * N, 3.0)
    x = a[::2] + a[1::2]
    assert held() == 0
    del a
    assert held() == 2 * NBYTES
    view = x + 1
    del x
    assert held() == 2 * NBYTES
    assert view[0] == 7
    assert held() == 0


def test_view_that_someone_has():
    a = np.full(N, 3.0)
    b = a[:]
    x = a + b
    del a
    assert held() == 0
    del b
    assert held() == NBYTES
    assert x[0] == 6


def test_small_part_of_large_memory_is_not_kept():
    x = np.full(20 * N, 2.0)[:N] + 1
    assert not x.flags.deferred
    large = np.full(20 * N, 2.0)
    y = large[:N] + 1
    assert y.flags.deferred
    assert x[0] == y[0] == 3


def test_total(limit):
    limit(10 * NBYTES)
    results = []
    for i in range(40):
        results.append(np.add(np.full(N, float(i)), 1))
        # Of the newest operand, the call itself still had a reference; and the sum is
        # taken once for an eighth of what is pending.
        pending = np.deferred.stats()["pending"]
        assert held() <= (10 + 1 + pending // 8) * NBYTES
    states = [x.flags.deferred for x in results]
    assert states == sorted(states)
    assert 1 <= states.count(True) <= 13
    assert [x[0] for x in results] == list(range(1, 41))


def test_total_when_the_limit_is_lowered(limit):
    results = [np.add(np.full(N, float(i)), 1) for i in range(8)]
    assert held() == 8 * NBYTES
    limit(0)
    assert held() == 0
    assert not any(x.flags.deferred for x in results)


def test_many_small(limit):
    """Counting does not take time that grows with the square of what is pending."""
    limit(40_000_000)
    results = [np.add(np.full(100, 1.0), 1) for _ in range(100_000)]
    assert held() <= 1.25 * 40_000_000
    assert any(x.flags.deferred for x in results)
    assert all(x[0] == 2 for x in results)


def test_array_that_raises_stays_deferred(limit):
    with np.errstate(all="raise"):
        x = np.divide(1, np.zeros(N))
        y = np.add(np.ones(N), 1)
        limit(0)
        assert x.flags.deferred
        assert not y.flags.deferred
        z = np.add(np.ones(N), 1)
        np.add(z, 1)
        assert not z.flags.deferred
        assert x.flags.deferred
        with pytest.raises(FloatingPointError):
            x[0]
        del x


def test_unread_error_still_comes_at_the_end(limit):
    state = np.errstate(all="raise")
    state.__enter__()
    x = np.divide(1, np.zeros(N))
    limit(0)
    with pytest.raises(FloatingPointError):
        state.__exit__()
    assert x.flags.deferred


def test_interrupt_is_not_swallowed(limit):
    def interrupt(*_):
        raise KeyboardInterrupt

    with np.errstate(all="call", call=interrupt):
        x = np.divide(1, np.zeros(N))
        with pytest.raises(KeyboardInterrupt):
            limit(0)
        assert x.flags.deferred
        del x


@pytest.mark.parametrize(
    ("value", "error"),
    [(-1, ValueError), (1.5, TypeError), ("1", TypeError), (2**70, OverflowError)],
)
def test_wrong_limits(limit, value, error):
    before = np.deferred.get_memory_limit()
    with pytest.raises(error):
        limit(value)
    assert np.deferred.get_memory_limit() == before


def test_environment():
    code = "import numpy as np; print(np.deferred.get_memory_limit())"
    assert run_python(code, NUMPY_DEFERRED_MEMORY_BYTES="12345").stdout == "12345\n"
    result = run_python(code, NUMPY_DEFERRED_MEMORY_BYTES="much")
    assert result.returncode != 0
    assert "NUMPY_DEFERRED_MEMORY_BYTES must be a number of bytes" in result.stderr
