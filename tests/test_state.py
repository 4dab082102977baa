"""The deferred state: values, contexts, and the environment."""

import asyncio
import contextvars
import threading

import numpy as np
import pytest

from helpers.process import output_of, run_python

STATES = [True, False, None]
IGNORE = {"all": "ignore"}
WARN = {"all": "warn"}


def defers():
    """Whether an addition is deferred right now."""
    a = np.ones(3)
    return (a + a).flags.deferred


class TestSetDeferred:
    @pytest.mark.parametrize("state", STATES)
    def test_round_trip(self, state):
        previous = np.setdeferred(state)
        assert np.getdeferred() is state
        assert np.setdeferred(previous) is state
        assert np.getdeferred() is previous

    @pytest.mark.parametrize("state", [0, 1, "on", 1.0, [], np.True_, np.bool_(0)])
    def test_other_values_are_refused(self, state):
        before = np.getdeferred()
        with pytest.raises(ValueError, match="must be True, False or None"):
            np.setdeferred(state)
        assert np.getdeferred() is before

    def test_arguments(self):
        with pytest.raises(TypeError):
            np.setdeferred()
        with pytest.raises(TypeError):
            np.setdeferred(True, False)
        with pytest.raises(TypeError):
            np.getdeferred(True)

    def test_value_whose_repr_raises(self):
        class Bad:
            def __repr__(self):
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            np.setdeferred(Bad())


class TestMeaning:
    @pytest.mark.parametrize(
        ("state", "errors", "expected"),
        [
            (True, IGNORE, True),
            (True, WARN, True),
            (False, IGNORE, False),
            (False, WARN, False),
            (None, IGNORE, True),
            (None, WARN, False),
            (None, {"all": "ignore", "under": "warn"}, False),
            (None, {"all": "ignore", "divide": "raise"}, False),
            (None, {"all": "ignore", "over": "call"}, False),
        ],
    )
    def test_state_and_error_state(self, state, errors, expected):
        call = {"call": lambda *args: None} if "call" in errors.values() else {}
        with np.deferredstate(state), np.errstate(**errors, **call):
            assert defers() is expected

    def test_errstate_inside(self):
        with np.deferredstate(None):
            with np.errstate(all="ignore"):
                assert defers()
                with np.errstate(invalid="warn"):
                    assert not defers()
                assert defers()
            assert not defers()

    def test_state_changes_nothing_pending(self):
        a = np.ones(3)
        with np.deferredstate(True):
            x = a + a
            with np.deferredstate(False):
                assert x.flags.deferred
        assert x.flags.deferred
        assert x.tolist() == [2.0, 2.0, 2.0]
        assert not x.flags.deferred


class TestDeferredState:
    @pytest.mark.parametrize("inner", STATES)
    @pytest.mark.parametrize("outer", STATES)
    def test_nesting(self, outer, inner):
        before = np.getdeferred()
        with np.deferredstate(outer):
            with np.deferredstate(inner):
                assert np.getdeferred() is inner
            assert np.getdeferred() is outer
        assert np.getdeferred() is before

    def test_restores_after_exception(self):
        before = np.getdeferred()
        with pytest.raises(KeyError), np.deferredstate(True):
            raise KeyError
        assert np.getdeferred() is before

    def test_restores_what_was_there_not_what_was_set_inside(self):
        with np.deferredstate(False):
            with np.deferredstate(True):
                np.setdeferred(None)
            assert np.getdeferred() is False

    def test_enter_gives_nothing(self):
        with np.deferredstate(True) as entered:
            assert entered is None

    @pytest.mark.parametrize("state", [0, "on", np.True_])
    def test_other_values_are_refused(self, state):
        with pytest.raises(ValueError, match="True, False or None"):
            np.deferredstate(state)

    def test_decorator(self):
        @np.deferredstate(True)
        def f(n):
            """Doc."""
            state = np.getdeferred()
            return (state, f(n - 1)) if n else state

        assert f(2) == (True, (True, True))
        assert f(0) is True
        assert f.__doc__ == "Doc."
        assert np.getdeferred() is not True

    def test_decorator_restores_after_exception(self):
        @np.deferredstate(True)
        def f():
            raise KeyError

        before = np.getdeferred()
        with pytest.raises(KeyError):
            f()
        assert np.getdeferred() is before


class TestContexts:
    def test_new_thread_starts_with_the_default(self):
        seen = []
        with np.deferredstate(True):
            thread = threading.Thread(target=lambda: seen.append(np.getdeferred()))
            thread.start()
            thread.join()
        assert seen == [None]

    def test_thread_keeps_its_state_to_itself(self):
        before = np.getdeferred()
        thread = threading.Thread(target=np.setdeferred, args=(True,))
        thread.start()
        thread.join()
        assert np.getdeferred() is before

    def test_copied_context(self):
        with np.deferredstate(True):
            context = contextvars.copy_context()
        assert context.run(np.getdeferred) is True
        context.run(np.setdeferred, False)
        assert context.run(np.getdeferred) is False
        assert np.getdeferred() is None

    def test_tasks(self):
        async def task(state):
            with np.deferredstate(state):
                for _ in range(3):
                    await asyncio.sleep(0)
                    assert np.getdeferred() is state

        async def main():
            await asyncio.gather(*map(task, STATES * 3))

        asyncio.run(main())

    def test_generator_shares_the_context_of_its_caller(self):
        def generator():
            yield np.getdeferred()

        values = generator()
        with np.deferredstate(True):
            assert next(values) is True

    def test_array_goes_to_another_thread(self):
        a = np.arange(1000.0)
        with np.deferredstate(True):
            x = a * 2 + 1
        sums = []
        threads = [
            threading.Thread(target=lambda: sums.append(x.sum())) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sums == [1000000.0] * 4


SHOW_STATE = "import numpy as np; print(np.getdeferred())"


class TestEnvironment:
    @pytest.mark.parametrize(
        ("value", "state"),
        [("1", "True"), ("0", "False"), ("none", "None"), ("", "None")],
    )
    def test_start_up(self, value, state):
        assert output_of(SHOW_STATE, NUMPY_DEFERRED=value) == state

    def test_not_set(self):
        assert output_of(SHOW_STATE) == "None"

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("NUMPY_DEFERRED", "yes"),
            ("NUMPY_DEFERRED", "True"),
            ("NUMPY_DEFERRED_MIN_BYTES", "many"),
            ("NUMPY_DEFERRED_MIN_BYTES", "-1"),
            ("NUMPY_DEFERRED_MIN_BYTES", "1e3"),
            ("NUMPY_DEFERRED_GUARD", "yes"),
            ("NUMPY_DEFERRED_CACHE_BYTES", "much"),
            ("NUMPY_DEFERRED_PROTECT_BYTES", "all"),
            ("NUMPY_DEFERRED_NUM_THREADS", "0"),
            ("NUMPY_DEFERRED_NUM_THREADS", "two"),
        ],
    )
    def test_bad_values_are_named(self, name, value):
        done = run_python("import numpy", **{name: value})
        assert done.returncode == 1
        assert name in done.stderr
        assert value in done.stderr

    def test_threads_start_with_it(self):
        code = """
            import threading
            import numpy as np
            np.setdeferred(False)
            thread = threading.Thread(target=lambda: print(np.getdeferred()))
            thread.start()
            thread.join()
            """
        assert output_of(code, NUMPY_DEFERRED="1") == "True"

    @pytest.mark.parametrize(
        ("nbytes", "expected"),
        [
            ("0", "True True"),
            ("80", "True True"),
            ("81", "False True"),
            ("8001", "False False"),
        ],
    )
    def test_min_bytes(self, nbytes, expected):
        code = """
            import numpy as np
            np.setdeferred(True)
            small, large = np.ones(10), np.ones(1000)
            print((small + 1).flags.deferred, (large + 1).flags.deferred)
            """
        assert output_of(code, NUMPY_DEFERRED_MIN_BYTES=nbytes) == expected

    def test_small_results_are_not_deferred_by_default(self):
        code = """
            import numpy as np
            np.setdeferred(True)
            for n in (4095, 4096):
                print((np.ones(n) + 1).flags.deferred)
            """
        assert output_of(code, NUMPY_DEFERRED_MIN_BYTES="").split() == ["False", "True"]


@pytest.mark.parametrize("name", ["setdeferred", "getdeferred", "deferredstate"])
def test_public_names(name):
    assert name in np.__all__
    assert name in dir(np)
    assert getattr(np, name).__doc__
