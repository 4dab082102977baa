"""np.begin_defer, np.end_defer and np.deferral: calculate at the end."""

import asyncio
import contextvars
import gc
import sys
import threading
import time

import numpy as np
import pytest

from helpers.counting import counted


def vector(n=10):
    with np.deferredstate(False):
        return np.arange(n, dtype=float) + 0.5


def deferred(*arrays):
    return [array.flags.deferred for array in arrays]


@pytest.fixture(autouse=True)
def all_ended():
    """A test ends what it began."""
    yield
    with pytest.raises(RuntimeError):
        np.end_defer()


class Pair:
    """begin_defer and end_defer, written as a block."""

    def __enter__(self):
        np.begin_defer()

    def __exit__(self, *exc_info):
        np.end_defer()


@pytest.fixture(params=[np.deferral, Pair])
def scope(request):
    """What makes a block that calculates at its end."""
    return request.param


class TestScope:
    def test_calculates_at_the_end(self, scope):
        a = vector()
        with scope():
            x = a * 2 + 1
            assert deferred(x) == [True]
        assert deferred(x) == [False]
        assert x[0] == 2.0

    @pytest.mark.parametrize("state", [True, False, None])
    def test_state(self, scope, state):
        with np.deferredstate(state):
            with scope():
                assert np.getdeferred() is True
            assert np.getdeferred() is state

    def test_only_what_was_deferred_inside(self, scope):
        a = vector()
        with np.deferredstate(True):
            before = a + 1
            with scope():
                inside = a + 2
            after = a + 3
        assert deferred(before, inside, after) == [True, False, True]
        del before, after

    def test_what_is_dropped_or_read_inside_is_not_calculated_again(self, scope):
        a = vector()
        with counted() as counters, scope():
            x, y = a + 1, a + 2
            x.sum()
            del y
        assert counters.calculated == 1
        assert counters.released == 1

    def test_newest_first(self, scope):
        """An inner array that nobody keeps is released, not calculated."""
        a = vector()
        with counted() as counters, scope():
            x = a * 2
            y = x + 1
            del x
        assert counters.calculated == 1
        assert counters.released == 1
        assert y[0] == 2.0

    def test_at_once_inside(self, scope):
        with scope():
            with np.deferredstate(False):
                x = vector() + 1
            assert deferred(x) == [False]

    def test_nothing_inside(self, scope):
        with counted() as counters, scope():
            pass
        assert counters.calculated == 0

    def test_set_inside(self, scope):
        before = np.getdeferred()
        with scope():
            x = vector() + 1
            np.setdeferred(False)
        assert np.getdeferred() is before
        assert deferred(x) == [False]


class TestNesting:
    def test_inner_ends_first(self, scope):
        a = vector()
        with scope():
            x = a + 1
            with scope():
                y = a + 2
            assert deferred(x, y) == [True, False]
            assert np.getdeferred() is True
            z = a + 3
        assert deferred(x, y, z) == [False, False, False]

    def test_inner_uses_outer(self, scope):
        """An operand from outside waits for its own end."""
        with scope():
            x = vector() + 1
            with scope():
                y = x * 2
            assert deferred(x, y) == [True, False]
        assert y[0] == 3.0

    def test_inner_state_restored(self, scope):
        with np.deferredstate(None):
            with scope():
                with np.deferredstate(False):
                    with scope():
                        assert np.getdeferred() is True
                    assert np.getdeferred() is False
                assert np.getdeferred() is True
            assert np.getdeferred() is None

    def test_mixed_kinds(self):
        a = vector()
        np.begin_defer()
        with np.deferral():
            x = a + 1
            np.begin_defer()
            y = a + 2
            np.end_defer()
            assert deferred(x, y) == [True, False]
        z = a + 3
        assert deferred(x, z) == [False, True]
        np.end_defer()
        assert deferred(z) == [False]

    def test_forgotten_end(self):
        """The end of a deferral ends what was begun inside."""
        with np.deferral():
            np.begin_defer()
            x = vector() + 1
        assert deferred(x) == [False]

    def test_ended_inside(self):
        """end_defer ends the innermost scope, whoever began it."""
        before = np.getdeferred()
        with np.deferral():
            x = vector() + 1
            np.end_defer()
            assert deferred(x) == [False]
            assert np.getdeferred() is before
        assert np.getdeferred() is before

    def test_failed_inside_is_tried_again(self):
        with np.errstate(divide="raise"), np.deferral():
            np.begin_defer()
            x = vector() / 0
            with pytest.raises(FloatingPointError):
                np.end_defer()
            assert deferred(x) == [True]
            del x

    def test_deep(self):
        """Neither depth nor what is pending elsewhere costs recursion or time."""
        a = vector()
        with np.deferredstate(True):
            others = [a + i for i in range(2000)]
        begin = time.perf_counter()
        for _ in range(5000):
            np.begin_defer()
        x = a + 1
        for _ in range(5000):
            np.end_defer()
        assert time.perf_counter() - begin < 10
        assert deferred(x) == [False]
        assert all(deferred(*others))
        others.clear()


class TestErrors:
    def test_end_without_begin(self):
        with pytest.raises(RuntimeError, match=r"without np\.begin_defer"):
            np.end_defer()
        np.begin_defer()
        np.end_defer()
        with pytest.raises(RuntimeError, match=r"without np\.begin_defer"):
            np.end_defer()

    @pytest.mark.parametrize("call", [np.begin_defer, np.end_defer, np.deferral])
    def test_no_arguments(self, call):
        with pytest.raises(TypeError):
            call(True)

    def test_first_error_after_all_were_tried(self, scope):
        a, arrays = vector(), []

        def block():
            with scope():
                arrays.extend([a / 0, a + 1, np.log(-a)])

        before = np.getdeferred()
        with np.errstate(all="raise"):
            with pytest.raises(FloatingPointError, match=r"invalid value .* log"):
                block()
            assert deferred(*arrays) == [True, False, True]
            assert np.getdeferred() is before
            for i in 0, 2:
                with pytest.raises(FloatingPointError):
                    arrays[i].sum()
            arrays.clear()

    def test_exception_of_the_block_wins(self):
        a, arrays = vector(), []

        def block():
            with np.deferral():
                arrays.extend([a / 0, a + 1])
                raise KeyError("x")

        before = np.getdeferred()
        with np.errstate(all="raise"):
            with pytest.raises(KeyError) as caught:
                block()
            assert caught.value.__context__ is None
            assert deferred(*arrays) == [True, False]
            assert np.getdeferred() is before
            with pytest.raises(FloatingPointError):
                arrays[0].sum()
            arrays.clear()

    def test_interrupt_is_not_lost(self):
        """Not even when the block raised."""

        def interrupt(error, flags):
            raise KeyboardInterrupt

        def block():
            with np.deferral():
                arrays.append(vector() / 0)
                raise KeyError("x")

        arrays = []
        with np.errstate(all="call", call=interrupt):
            with pytest.raises(KeyboardInterrupt):
                block()
            arrays.clear()

    def test_warnings_come_at_the_end(self, scope):
        def run():
            with scope():
                x.append(vector() / 0)
                assert deferred(*x) == [True]

        x = []
        with np.errstate(all="warn"), pytest.warns(RuntimeWarning, match="divide"):
            run()
        assert deferred(*x) == [False]

    def test_handler_runs_with_the_state_before(self, scope):
        seen = []

        def handler(error, flags):
            seen.append((np.getdeferred(), deferred(vector() + 1)))

        errors = np.errstate(all="call", call=handler)
        with np.deferredstate(False), errors, scope():
            x = vector() / 0
        assert seen == [(False, [False])]
        assert deferred(x) == [False]


class TestManager:
    def test_enter_gives_nothing(self):
        with np.deferral() as entered:
            assert entered is None

    @pytest.mark.parametrize(
        "make", [np.deferral, lambda: np.deferredstate(True), np.errstate]
    )
    def test_twice(self, make):
        """As errstate, which is here to compare."""
        manager = make()
        with manager, pytest.raises(TypeError, match=r"Cannot enter .* twice"):
            manager.__enter__()
        with pytest.raises(TypeError, match=r"Cannot enter .* twice"):
            manager.__enter__()

    @pytest.mark.parametrize(
        "make", [np.deferral, lambda: np.deferredstate(True), np.errstate]
    )
    def test_exit_that_does_not_match(self, make):
        manager = make()
        before = np.getdeferred()
        with pytest.raises(TypeError):
            manager.__exit__(None, None, None)
        with manager:
            pass
        with pytest.raises(RuntimeError, match="already been used"):
            manager.__exit__(None, None, None)
        assert np.getdeferred() is before

    @pytest.mark.parametrize(
        "make", [np.deferral, lambda: np.deferredstate(True), np.errstate]
    )
    def test_exit_in_another_context(self, make):
        manager = make()
        with manager:
            context = contextvars.copy_context()
            with pytest.raises(ValueError, match="different Context"):
                context.run(manager.__exit__, None, None, None)

    def test_no_attributes(self):
        with pytest.raises(AttributeError):
            np.deferral().x = 1

    def test_generators_out_of_order(self):
        """Each ends its own; the state is left as errstate leaves it."""

        def generator():
            with np.deferral():
                x = vector() + 1
                yield x
            yield x

        def run():
            first, second = generator(), generator()
            x, y = next(first), next(second)
            assert deferred(x, y) == [True, True]
            next(first)
            assert deferred(x) == [False]
            next(second)
            assert deferred(x, y) == [False, False]
            return np.getdeferred()

        def state_after(manager):
            """What the out-of-order exits of errstate do to its state."""
            one, two = manager(), manager()
            one.__enter__()
            two.__enter__()
            one.__exit__(None, None, None)
            two.__exit__(None, None, None)
            return np.geterr()["divide"]

        context = contextvars.copy_context()
        left = context.run(state_after, lambda: np.errstate(divide="call"))
        assert left == "call"
        assert contextvars.copy_context().run(run) is True

    def test_no_references_left(self):
        a = vector()
        before = sys.getrefcount(a)
        for _ in range(10):
            with np.deferral():
                x = a + 1
            np.begin_defer()
            y = a + x
            np.end_defer()
        del x, y
        gc.collect()
        assert sys.getrefcount(a) == before


class TestDecorator:
    def test_calculated_on_return(self):
        @np.deferral()
        def f(x, *, power=2):
            """Doc."""
            y = x**power - 3 * x + 4
            assert deferred(y) == [True]
            return y

        assert f.__doc__ == "Doc."
        for _ in range(2):
            assert deferred(f(vector()), f(vector(), power=3)) == [False, False]

    def test_recursive(self):
        @np.deferral()
        def f(n):
            return f(n - 1) + 1 if n else vector() * 2

        assert f(5)[0] == 6.0

    def test_exception(self):
        @np.deferral()
        def f():
            kept.append(vector() + 1)
            raise KeyError

        kept = []
        before = np.getdeferred()
        with pytest.raises(KeyError):
            f()
        assert deferred(*kept) == [False]
        assert np.getdeferred() is before

    @pytest.mark.parametrize(
        "make", [np.deferral, lambda: np.deferredstate(True)], ids=["end", "state"]
    )
    def test_generator(self, make):
        """As with errstate, the body runs after the decorated call."""

        @make()
        def generator():
            yield np.getdeferred()

        before = np.getdeferred()
        assert list(generator()) == [before]

    @pytest.mark.parametrize(
        "make", [np.deferral, lambda: np.deferredstate(True)], ids=["end", "state"]
    )
    def test_coroutine(self, make):
        @make()
        async def coroutine():
            return np.getdeferred()

        assert asyncio.run(coroutine()) is np.getdeferred()


class TestContexts:
    def test_other_threads_are_left_alone(self):
        """Neither their arrays nor their errors are this scope's."""
        a = vector()
        ready, done = threading.Event(), threading.Event()
        found = []

        def other():
            with np.errstate(all="raise"), np.deferredstate(True):
                np.begin_defer()
                x, bad = a + 1, a / 0
                ready.set()
                done.wait(30)
                found.extend(deferred(x, bad))
                del bad
                np.end_defer()
                found.extend(deferred(x))

        thread = threading.Thread(target=other)
        with np.deferral():
            thread.start()
            assert ready.wait(30)
            x = a + 2
        assert deferred(x) == [False]
        done.set()
        thread.join()
        assert found == [True, True, False]

    def test_thread_begins_outside(self):
        caught = []

        def end():
            try:
                np.end_defer()
            except RuntimeError as error:
                caught.append(error)

        with np.deferral():
            thread = threading.Thread(target=end)
            thread.start()
            thread.join()
        assert len(caught) == 1

    def test_tasks(self):
        async def task(n):
            a = vector()
            with np.deferral():
                x = a + n
                for _ in range(n):
                    await asyncio.sleep(0)
                    assert deferred(x) == [True]
                    assert np.getdeferred() is True
            assert deferred(x) == [False]
            np.begin_defer()
            y = a * n
            await asyncio.sleep(0)
            assert deferred(y) == [True]
            np.end_defer()
            assert deferred(y) == [False]

        async def main():
            await asyncio.gather(*map(task, range(1, 8)))

        asyncio.run(main())

    def test_task_made_inside(self):
        """What it defers belongs to the scope it was made in."""

        async def task():
            return vector() + 1

        async def main():
            with np.deferral():
                x = await asyncio.create_task(task())
                assert deferred(x) == [True]
            assert deferred(x) == [False]

        asyncio.run(main())

    def test_array_goes_to_another_thread(self):
        with np.deferral():
            x = vector() + 1
            read = []
            thread = threading.Thread(target=lambda: read.append(x.tolist()))
            thread.start()
            thread.join()
            assert deferred(x) == [False]
        assert read == [x.tolist()]
