"""Warnings and exceptions say where the operation was written."""

import contextlib
import inspect
import sys
import types
import warnings

import numpy as np
import pytest

from helpers.compare import assert_same


def divide(a, b):
    return a / b


LINE_OF_DIVIDE = inspect.getsourcelines(divide)[1] + 1


@pytest.fixture
def zeros():
    return np.zeros(1000)


@contextlib.contextmanager
def recorded():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def test_warning_points_to_the_operation(zeros):
    with recorded() as caught:
        with np.deferredstate(True):
            x = divide(1, zeros)
            y = x * 2
        y.sum()
    (warning,) = caught
    assert warning.filename == __file__
    assert warning.lineno == LINE_OF_DIVIDE
    assert warning.category is RuntimeWarning
    assert str(warning.message) == "divide by zero encountered in divide"


def test_each_operation_has_its_own_line():
    def calculate():
        a = np.zeros(1000)
        return (
            1 / a
            + np.sqrt(a - 1)
            + np.log(
                a,
            )
        )

    outcome = assert_same(calculate)
    assert len({lineno for _, _, _, lineno in outcome.warnings}) == 3


def test_in_the_middle_of_fused_assignment():
    def calculate():
        a = np.zeros(1000)
        b = np.ones(1000)
        b[:] = 1 / a
        b += np.log(a)
        return b

    outcome = assert_same(calculate)
    assert len(outcome.warnings) == 3


def combine(a, b):
    return np.bitwise_and(a, b, dtype="i", casting="unsafe")


LINE_OF_COMBINE = inspect.getsourcelines(combine)[1] + 1


def test_cast_of_an_operation_that_eager_numpy_runs():
    """It is cast before, which reports by itself, for the state it was written in."""
    a = np.array([[1], [np.nan]], "g")
    b = np.arange(6, dtype="f")
    seen = set()
    for c in (np.resize(a, (6, 1))[..., 1:2, [0]], a[..., 1, [0]], a[:, 0]):
        other = b[: c.size] if c.ndim == 1 else b
        with recorded() as caught:
            with np.deferredstate(False), np.errstate(all="warn"):
                expected = combine(c, other)
            count = len(caught)
            with np.deferredstate(True), np.errstate(all="warn"):
                x = combine(c, other)
                assert x.flags.deferred
                assert len(caught) == count
            assert x.tobytes() == expected.tobytes()
        told = [(str(w.message), w.filename, w.lineno) for w in caught]
        assert told[:count] == told[count:] != []
        assert {(name, line) for _, name, line in told} == {(__file__, LINE_OF_COMBINE)}
        seen.update(message for message, _, _ in told)
    assert "invalid value encountered in cast" in seen


def module_of(source, name):
    module = types.ModuleType(name)
    exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    return module


SOURCE = "def f(a):\n    return 1 / a\n"


@pytest.mark.parametrize("state", [True, False])
def test_shown_once_a_line(zeros, state, monkeypatch):
    """The registry that keeps from repeating is the writer's module's."""
    module = module_of(SOURCE, "written_there")
    monkeypatch.setitem(sys.modules, "written_there", module)
    with warnings.catch_warnings(record=True) as caught, np.deferredstate(state):
        warnings.simplefilter("default")
        for _ in range(3):
            np.deferred.calculate(module.f(zeros))
    (warning,) = caught
    assert (warning.filename, warning.lineno) == ("written_there.py", 2)
    assert "__warningregistry__" in vars(module)


@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("module", ["written_there", "elsewhere"])
def test_filters_see_the_module(zeros, state, module, monkeypatch):
    written = module_of(SOURCE, "written_there")
    monkeypatch.setitem(sys.modules, "written_there", written)
    with warnings.catch_warnings(record=True) as caught, np.deferredstate(state):
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", module=module)
        np.deferred.calculate(written.f(zeros))
    assert len(caught) == (module == "elsewhere")


def test_module_is_renamed(zeros, monkeypatch):
    """Each operation belongs to the module of the name it had then."""
    module = module_of(SOURCE, "written_there")
    with recorded() as caught, np.deferredstate(True):
        warnings.filterwarnings("ignore", module="renamed")
        named = module.f(zeros), module.f(zeros)
        module.__name__ = "renamed"
        renamed = module.f(zeros)
        module.__name__ = "written_there"
        named += (module.f(zeros),)
        np.deferred.calculate(renamed)
        assert not caught
        np.deferred.calculate(*named)
    assert len(caught) == 3


def test_warnings_go_where_they_went_then(zeros):
    """Though nothing but an attribute of the module warnings has changed."""
    shown = []

    def show(message, *args, **kwargs):
        shown.append(str(message))

    with recorded() as caught, np.deferredstate(True):
        before = divide(1, zeros)
        usual, warnings.showwarning = warnings.showwarning, show
        inside = divide(1, zeros)
        warnings.showwarning = usual
        after = divide(1, zeros)
        np.deferred.calculate(before, inside, after)
    assert len(shown) == 1
    assert len(caught) == 2


@pytest.mark.parametrize("namespace", [{}, {"__name__": 3}, {"__name__": "gone"}])
def test_namespace_that_is_no_module(zeros, namespace):
    exec(SOURCE, namespace)
    before = set(namespace)
    with recorded() as caught:
        with np.deferredstate(True):
            x = namespace["f"](zeros)
        x.sum()
    (warning,) = caught
    assert (warning.filename, warning.lineno) == ("<string>", 2)
    assert set(namespace) == before


def test_namespace_is_not_kept_alive(zeros):
    """A deferred array among the globals it was written with can be collected."""
    import gc
    import weakref

    class Sentinel:
        pass

    namespace = {"sentinel": Sentinel(), "a": zeros, "__name__": "gone"}
    gone = weakref.ref(namespace["sentinel"])
    with np.deferredstate(True):
        exec(SOURCE + "x = f(a)", namespace)
    del namespace
    gc.collect()
    assert gone() is None
    assert np.deferred.usage_count(zeros) == 0


class TestCatchWarnings:
    """Warnings belong to the block in which the operation was written."""

    def test_ignored(self, zeros):
        with np.deferredstate(True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                x = divide(1, zeros)
            with recorded() as caught:
                x.sum()
        assert not caught

    def test_recorded(self, zeros):
        with np.deferredstate(True):
            with recorded() as caught:
                x = divide(1, zeros)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                x.sum()
        (warning,) = caught
        assert (warning.filename, warning.lineno) == (__file__, LINE_OF_DIVIDE)

    def test_raises(self, zeros):
        with np.deferredstate(True):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                x = divide(1, zeros)
            with recorded() as caught, pytest.raises(RuntimeWarning):
                x.sum()
        assert not caught
        del x

    def test_shown(self, zeros):
        shown = []

        def show(message, category, filename, lineno, *where):
            shown.append((str(message), filename, lineno))

        with np.deferredstate(True):
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.showwarning = show
                x = divide(1, zeros)
            x.sum()
        message = "divide by zero encountered in divide"
        assert shown == [(message, __file__, LINE_OF_DIVIDE)]

    def test_nested_in_one_expression(self, zeros):
        with np.deferredstate(True):
            with recorded() as outer:
                x = divide(1, zeros)
                with recorded() as inner:
                    y = np.log(zeros) + x
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    z = np.sqrt(y - 1)
            z.sum()
        assert [str(w.message) for w in outer] == [
            "divide by zero encountered in divide"
        ]
        assert {str(w.message) for w in inner} == {
            "divide by zero encountered in log",
            "invalid value encountered in add",
        }

    def test_filters_are_as_before(self, zeros):
        before = warnings.filters, warnings.showwarning, list(warnings.filters)
        with np.deferredstate(True):
            with recorded():
                x = divide(1, zeros)
            x.sum()
        assert before == (warnings.filters, warnings.showwarning, warnings.filters)

    @pytest.mark.parametrize("inside", [True, False])
    def test_writes_into_arrays_where_nothing_raises(self, zeros, inside):
        """The filters of the operation decide about fusion, not the reader's."""
        actions = ["always", "error"] if inside else ["error", "always"]

        def run():
            out = np.ones(1000)
            with warnings.catch_warnings(record=True):
                warnings.simplefilter(actions[0])
                x = 1 / (zeros + 1) + 1 / zeros
                with warnings.catch_warnings():
                    warnings.simplefilter(actions[1])
                    with contextlib.suppress(RuntimeWarning):
                        out[:] = x
            return out

        with np.deferredstate(True):
            out = run()
        assert np.isinf(out).all() == inside


def test_exception_has_a_note(zeros):
    with np.errstate(all="raise"), np.deferredstate(True):
        x = divide(1, zeros)
        where = f"{__file__}, line {LINE_OF_DIVIDE}"
        for _ in range(2):
            with pytest.raises(
                FloatingPointError, match=r"divide by zero encountered in divide$"
            ) as caught:
                x.sum()
            (note,) = caught.value.__notes__
            assert note == f"the deferred operation, divide, was written in {where}"
        del x, caught


def test_warning_made_an_exception_has_a_note(zeros):
    with np.deferredstate(True), warnings.catch_warnings():
        warnings.simplefilter("error")
        x = divide(1, zeros)
        with pytest.raises(RuntimeWarning) as caught:
            x.sum()
        assert f"line {LINE_OF_DIVIDE}" in caught.value.__notes__[0]
        del x, caught


def test_no_note_on_the_line_itself(zeros):
    with np.errstate(all="raise"), np.deferredstate(True):
        with pytest.raises(FloatingPointError) as caught:
            np.add(np.log(zeros), 1, out=zeros)
        assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("action", ["error", "always"])
def test_nothing_is_written_where_a_warning_raises(action):
    """An operation that fails comes before the write that needs its values."""

    def overwrite():
        a, b = np.zeros(1000), np.ones(1000)
        with warnings.catch_warnings():
            warnings.simplefilter(action)
            with contextlib.suppress(RuntimeWarning):
                b[:] = 1 / a
            with contextlib.suppress(RuntimeWarning):
                np.add(np.log(a), 1, out=b)
        return b

    outcome = assert_same(overwrite)
    (result,) = outcome.results
    assert (result.bits == np.ones(1000).tobytes()) == (action == "error")


def test_nothing_is_written_where_a_log_raises():
    class Log:
        def write(self, message):
            raise RuntimeError(message)

    def overwrite():
        a, b = np.zeros(1000), np.ones(1000)
        with np.errstate(all="log", call=Log()), contextlib.suppress(RuntimeError):
            b[:] = 1 / a
        return b

    outcome = assert_same(overwrite)
    assert outcome.results[0].bits == np.ones(1000).tobytes()


def test_error_that_a_reader_saw_is_not_raised_again_at_the_end(zeros):
    with np.errstate(all="raise"), np.deferredstate(True):
        x = divide(1, zeros)
        with pytest.raises(FloatingPointError):
            x.sum()
    assert x.flags.deferred
    with pytest.raises(FloatingPointError):
        x.sum()
    del x


@pytest.mark.parametrize("mode", ["warn", "call"])
def test_reported_once_for_several_arrays(zeros, mode):
    """An operation that two arrays need has one message, as in eager NumPy."""
    called = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = np.errstate(all=mode, call=lambda *args: called.append(args))
        with state, np.deferredstate(True):
            x = 1 / zeros
            y = x * 2
            z = x + 3
            np.deferred.calculate(y)
            np.deferred.calculate(z)
            np.deferred.calculate(x)
    assert len(caught) + len(called) == 1
