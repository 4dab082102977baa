"""Threads and tasks have states of their own, and so has each operation."""

import asyncio
import contextvars
import threading

import numpy as np
import pytest


def in_thread(function, *args):
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*args)))
    thread.start()
    thread.join(30)
    return results[0]


def states():
    return np.getdeferred(), np.geterr()["divide"]


class TestInheritance:
    """The deferred state goes where the error state goes."""

    def test_thread_starts_anew(self):
        start = in_thread(states)
        with np.deferredstate(True), np.errstate(divide="raise"):
            assert in_thread(states) == start
        assert start == (None, "warn")

    def test_thread_changes_its_own(self):
        def change():
            np.setdeferred(True)
            np.seterr(divide="ignore")
            return states()

        with np.deferredstate(False), np.errstate(divide="raise"):
            assert in_thread(change) == (True, "ignore")
            assert states() == (False, "raise")

    def test_copied_context(self):
        with np.deferredstate(True), np.errstate(divide="raise"):
            context = contextvars.copy_context()
        with np.deferredstate(False), np.errstate(divide="print"):
            assert context.run(states) == (True, "raise")
            assert in_thread(context.run, states) == (True, "raise")
            context.run(np.setdeferred, None)
            assert context.run(states) == (None, "raise")
            assert states() == (False, "print")

    def test_empty_context(self):
        with np.deferredstate(True), np.errstate(divide="raise"):
            assert contextvars.Context().run(states) == (None, "warn")

    def test_to_thread(self):
        async def main():
            with np.deferredstate(True), np.errstate(divide="raise"):
                return await asyncio.to_thread(states)

        assert asyncio.run(main()) == (True, "raise")


class TestTasks:
    def test_interleaved(self):
        """Each operation has the states of its task, whoever comes between."""

        async def work(number, state, mode):
            seen = []
            call = {"call": lambda *args: seen.append(number)}
            with np.deferredstate(state):
                for i in range(5):
                    await asyncio.sleep(0)
                    with np.errstate(divide=mode, **call if mode == "call" else {}):
                        await asyncio.sleep(0)
                        assert states() == (state, mode)
                        x = np.ones(4) / 0
                        assert x.flags.deferred is (state is True)
                        await asyncio.sleep(0)
                        assert x.tolist() == [np.inf] * 4
                    assert np.getdeferred() is state
                    assert len(seen) == (i + 1 if mode == "call" else 0)
            return seen

        async def main():
            return await asyncio.gather(
                *(
                    work(i, state, mode)
                    for i in range(4)
                    for state in (True, False)
                    for mode in ("call", "ignore")
                )
            )

        for number, seen in enumerate(asyncio.run(main())):
            assert set(seen) <= {number // 4}

    def test_another_task_reads(self):
        """The handler is the one of the task that wrote the operation."""
        seen = []

        async def writer(queue):
            with (
                np.deferredstate(True),
                np.errstate(divide="call", call=lambda *args: seen.append("writer")),
            ):
                x = np.ones(4) / 0
                await queue.put(x)
                del x
                await queue.join()

        async def reader(queue):
            with np.errstate(divide="call", call=lambda *args: seen.append("reader")):
                x = await queue.get()
                assert x.tolist() == [np.inf] * 4
                (np.ones(4) / 0).tolist()
                del x
            queue.task_done()

        async def main():
            queue = asyncio.Queue()
            await asyncio.gather(writer(queue), reader(queue))

        asyncio.run(main())
        assert seen == ["writer", "reader"]

    def test_another_thread_reads(self):
        seen = []
        with (
            np.deferredstate(True),
            np.errstate(divide="call", call=lambda *args: seen.append("writer")),
        ):
            x = np.ones(4) / 0

            def read():
                with np.errstate(
                    divide="call", call=lambda *args: seen.append("reader")
                ):
                    return x.tolist()

            assert in_thread(read) == [np.inf] * 4
        assert seen == ["writer"]


class TestErrorsOfOthers:
    """A change of the error state does not raise what others have written."""

    @staticmethod
    def change():
        with np.errstate(all="ignore"):
            pass
        np.seterr(**np.geterr())
        return "unharmed"

    def test_thread(self):
        with np.deferredstate(True), np.errstate(divide="raise"):
            x = np.ones(4) / 0
            assert in_thread(self.change) == "unharmed"
            with pytest.raises(FloatingPointError, match="divide by zero"):
                self.change()
            del x

    def test_task(self):
        async def writer(written, changed):
            with np.deferredstate(True), np.errstate(divide="raise"):
                x = np.ones(4) / 0
                written.set()
                await changed.wait()
                with pytest.raises(FloatingPointError, match="divide by zero"):
                    self.change()
                del x

        async def other(written, changed):
            await written.wait()
            assert self.change() == "unharmed"
            changed.set()

        async def main():
            events = asyncio.Event(), asyncio.Event()
            await asyncio.gather(writer(*events), other(*events))

        asyncio.run(main())

    def test_dropped_context(self):
        """Who cannot change its error state any more need not be told."""
        with np.deferredstate(True):
            context = contextvars.copy_context()

            def write():
                np.seterr(divide="raise")
                return np.ones(4) / 0

            x = context.run(write)
            del context
            assert self.change() == "unharmed"
            with pytest.raises(FloatingPointError, match="divide by zero"):
                x.tolist()
            del x
