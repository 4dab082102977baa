"""Operands: marks, counts, and writes to their memory through any view."""

import gc
import itertools
import weakref

import numpy as np
import pytest

from helpers.compare import bits, comparison
from helpers.counting import counted
from helpers.writing import HANDLES, OWNERS_ONLY, WRITERS

N = 24


def memory():
    return np.arange(-3, N - 3, dtype=float)


class Views:
    """How the expression sees the memory, and through what is written."""

    @staticmethod
    def same(a):
        return a

    @staticmethod
    def tail(a):
        return a[4:]

    @staticmethod
    def backwards(a):
        return a[::-1]

    @staticmethod
    def folded(a):
        return a.reshape(4, -1).T

    @staticmethod
    def alias(a):
        return a.view()

    @staticmethod
    def alias_of_alias(a):
        return a.view()[:].reshape(-1)


READ_THROUGH = [Views.same, Views.tail, Views.backwards, Views.folded]
WRITE_THROUGH = [Views.same, Views.alias, Views.alias_of_alias]


def write_while_pending(writer, read, write):
    """A program whose result depends on the order of reading and writing."""
    a = memory()
    operand = read(a)
    x = operand * 2 + 1
    y = np.sqrt(np.abs(operand))
    writer(write(a))
    z = operand - 1
    return x, y, z, a


def compare_writes(writer, ways):
    with comparison() as compared:
        for read, write in ways:
            name = f"read {read.__name__}, write {write.__name__}"
            outcome = compared.same(name, write_while_pending, writer, read, write)
            compared.check(f"{name}: {outcome.error}", outcome.error is None)


@pytest.mark.parametrize("name", WRITERS)
def test_writers(name):
    compare_writes(WRITERS[name], itertools.product(READ_THROUGH, WRITE_THROUGH))


@pytest.mark.parametrize("name", OWNERS_ONLY)
def test_writers_of_owners(name):
    compare_writes(OWNERS_ONLY[name], [(Views.same, Views.same)])


#: They enter np.errstate, to make a generator and to mask: all is calculated.
CHANGE_THE_ERROR_STATE = {
    "shuffle",
    "legacy shuffle",
    "permuted out",
    "random out",
    "normal out",
    "exponential out",
    "masked array",
}


@pytest.mark.parametrize("name", sorted(WRITERS.keys() - CHANGE_THE_ERROR_STATE))
def test_writers_flush_nothing_else(name):
    with np.deferredstate(True):
        a, b = memory(), memory()
        x, bystander = a * 2, b * 2
        WRITERS[name](a)
        assert not x.flags.deferred
        assert bystander.flags.deferred


def use_handle(make_handle, read, early):
    a = memory()
    operand = read(a)
    if early:
        write = make_handle(a)
    x = operand * 2 + 1
    if not early:
        write = make_handle(a)
    y = x * 2
    write()
    z = operand - 1
    return x, y, z, a


@pytest.mark.parametrize("early", [True, False], ids=["before", "while-pending"])
@pytest.mark.parametrize("name", HANDLES)
def test_handles(name, early):
    with comparison() as compared:
        for read in READ_THROUGH:
            outcome = compared.same(
                f"read {read.__name__}", use_handle, HANDLES[name], read, early
            )
            compared.check(outcome.error, outcome.error is None)


@pytest.mark.usefixtures("deferred")
class TestMarks:
    def test_writeable_operand(self):
        a = memory()
        x = a + 1
        assert a.flags.deferred_waswriteable
        assert not a.flags.deferred
        assert x.flags.deferred
        assert not x.flags.deferred_waswriteable
        np.deferred.calculate(x)
        assert not a.flags.deferred_waswriteable
        assert a.flags.writeable

    def test_readonly_operand(self):
        a = memory()
        a.flags.writeable = False
        x = a + 1
        assert not a.flags.deferred_waswriteable
        np.deferred.calculate(x)
        assert not a.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            a[0] = 1

    def test_given_back_when_dropped(self):
        a = memory()
        x = a + 1
        del x
        assert not a.flags.deferred_waswriteable
        assert np.deferred.usage_count(a) == 0
        assert a.flags.writeable

    def test_writeable_is_answered_as_without_deferral(self):
        a = memory()
        x = a + 1
        assert a.flags.writeable
        assert a.flags["WRITEABLE"]
        assert x.flags.writeable

    @pytest.mark.parametrize("name", ["deferred", "deferred_waswriteable", "owndata"])
    def test_marks_cannot_be_set(self, name):
        """As OWNDATA, which is here to compare."""
        flags = memory().flags
        with pytest.raises(AttributeError):
            setattr(flags, name, True)
        with pytest.raises(KeyError, match="Unknown flag"):
            flags[name.upper()] = True
        with pytest.raises(TypeError):
            memory().setflags(**{name: True})

    def test_by_key(self):
        a = memory()
        x = a + 1
        assert (x.flags["DEFERRED"], x.flags["DEFERRED_WASWRITEABLE"]) == (True, False)
        assert (a.flags["DEFERRED"], a.flags["DEFERRED_WASWRITEABLE"]) == (False, True)
        assert x.flags[b"DEFERRED"] is True
        assert x.flags.deferred
        scalar = np.float64(1).flags
        assert (scalar["DEFERRED"], scalar["DEFERRED_WASWRITEABLE"]) == (False, False)

    @pytest.mark.parametrize("key", ["deferred", "DEFERRED ", "DEFERRE", b"", "", 1])
    def test_unknown_keys(self, key):
        with pytest.raises(KeyError, match="Unknown flag"):
            memory().flags[key]

    def test_printed(self):
        """Both are listed when one is set; else the text is that of eager NumPy."""
        a = memory()
        with np.deferredstate(False):
            text = repr(a.flags)
        x = a + 1
        for array, values in (x, (True, False)), (a, (False, True)):
            marks = "  DEFERRED : {}\n  DEFERRED_WASWRITEABLE : {}\n".format(*values)
            assert str(array.flags) == repr(array.flags) == text + marks
        assert x.flags.deferred
        np.deferred.calculate(x)
        assert repr(x.flags) == repr(a.flags) == text

    def test_a_flags_object_shows_the_marks_of_now(self):
        a = memory()
        x = a + 1
        flags, operand = x.flags, a.flags
        np.deferred.calculate(x)
        assert not flags.deferred
        assert not operand["DEFERRED_WASWRITEABLE"]
        assert "DEFERRED" not in repr(flags)

    def test_not_part_of_the_value(self):
        """Comparisons and `num` are as without deferral."""
        a = memory()
        flags, num = a.flags, a.flags.num
        x = a + 1
        assert a.flags == flags
        assert a.flags.num == num == x.flags.num
        del x

    def test_marks_are_in_no_view(self):
        a = memory()
        x = a + 1
        assert not a[1:].flags.deferred_waswriteable
        assert not a[1:].flags.deferred
        assert a[1:].flags.writeable
        del x

    def test_view_that_was_made_readonly_stays_so(self):
        a = memory()
        view = a[2:]
        view.flags.writeable = False
        x = view + a[2:]
        del x
        assert not view.flags.writeable
        assert a.flags.writeable

    def test_set_readonly_while_pending(self):
        a = memory()
        x = a + 1
        a.flags.writeable = False
        assert not a.flags.writeable
        assert x[0] == a[0] + 1
        assert not a.flags.writeable

    def test_writeable_again_while_pending(self):
        a = memory()
        a.flags.writeable = False
        x = a + 1
        a.flags.writeable = True
        a[...] = 0
        assert x[0] == -2.0
        assert a.flags.writeable


@pytest.mark.usefixtures("deferred")
class TestCounts:
    def test_repeated_operand(self):
        a = memory()
        x = a + a
        assert np.deferred.usage_count(a) == 2
        y = x * a
        assert np.deferred.usage_count(a) == 3
        assert np.deferred.usage_count(x) == 1
        np.deferred.calculate(y)
        assert np.deferred.usage_count(a) == 2
        del x, y
        assert np.deferred.usage_count(a) == 0

    def test_scalars_are_not_counted(self):
        a, scalar = memory(), np.array(2.0)
        x = a * scalar
        assert np.deferred.usage_count(scalar) == 0
        scalar[...] = 100.0
        assert x[0] == -6.0

    def test_views_have_their_own_count(self):
        a = memory()
        view = a[:]
        x = view + 1
        assert np.deferred.usage_count(view) == 1
        assert np.deferred.usage_count(a) == 0
        assert a.flags.writeable
        del x
        assert np.deferred.usage_count(view) == 0

    def test_many(self):
        a = memory()
        results = [a + i for i in range(1000)]
        assert np.deferred.usage_count(a) == 1000
        del results[::2]
        assert np.deferred.usage_count(a) == 500
        a[0] = 50
        assert np.deferred.usage_count(a) == 0
        assert not any(result.flags.deferred for result in results)
        assert [result[0] for result in results] == [i - 3.0 for i in range(1, 1000, 2)]

    def test_counting_calculates_nothing(self):
        a = memory()
        x = a + 1
        assert np.deferred.usage_count(x) == 0
        assert x.flags.deferred
        del x

    @pytest.mark.parametrize("value", [1, None, [1.0], np.float64(1)])
    def test_only_arrays(self, value):
        with pytest.raises(TypeError, match="ndarray"):
            np.deferred.usage_count(value)

    def test_a_failed_call_counts_nothing(self):
        a = memory()
        with pytest.raises(ValueError, match="broadcast"):
            a + np.ones(N + 1)
        with pytest.raises(TypeError, match="not supported"):
            np.bitwise_and(a, a)
        with pytest.raises(TypeError, match="Cannot cast"):
            np.add(a, 1j, dtype=float, casting="safe")
        assert np.deferred.usage_count(a) == 0
        assert not a.flags.deferred_waswriteable


@pytest.mark.usefixtures("deferred")
class TestFlush:
    def test_only_what_reads_the_memory(self):
        a, b = memory(), memory()
        x, y = a + 1, b + 1
        with counted() as counters:
            a[0] = 5
        assert not x.flags.deferred
        assert y.flags.deferred
        assert counters.calculated == 1
        assert counters.flushed == 1

    def test_indirect_dependents(self):
        a, b = memory(), memory()
        x = a + 1
        y = x * b
        a[0] = 5
        assert x[0] == -2.0
        assert y[0] == 6.0

    def test_dependents_of_a_dependent_may_wait(self):
        """`y` keeps the values it needs in `x`, so writing to `b` flushes it."""
        a, b = memory(), memory()
        x = a + 1
        y = x * b
        b[0] = 5
        assert not y.flags.deferred
        assert y[0] == 6.0
        del x

    def test_writing_to_a_calculated_operand(self):
        a = memory()
        x = a + 1
        y = x * 2
        x[0] = 100
        assert y[0] == -4.0
        assert x[0] == 100

    def test_writing_into_a_deferred_array(self):
        a = memory()
        x = a + 1
        x[2:4] = 0
        assert x.tolist()[:5] == [-2.0, -1.0, 0.0, 0.0, 2.0]

    def test_a_read_flushes_nothing(self):
        a = memory()
        x = a + 1
        a.sum()
        a[0]
        a.tolist()
        np.asarray(a)
        a.copy()
        assert x.flags.deferred
        del x

    @pytest.mark.usefixtures("raising")
    def test_failing_dependents_stop_the_write(self):
        a = np.zeros(4)
        x = a / 0
        for _ in range(2):
            with pytest.raises(FloatingPointError, match="invalid"):
                a[0] = 1
            assert a[0] == 0
            assert x.flags.deferred
        del x
        a[0] = 1
        assert a.tolist() == [1, 0, 0, 0]


@pytest.mark.usefixtures("deferred")
class TestLifetime:
    def test_operands_live_as_long_as_needed(self):
        a = memory()
        gone = weakref.ref(a)
        x = a + 1
        del a
        assert gone() is not None
        np.deferred.calculate(x)
        assert gone() is None
        assert x[0] == -2.0

    def test_dropped_result_drops_operands(self):
        a = memory()
        gone = weakref.ref(a)
        x = a + 1
        y = x * 2
        del a, x
        assert gone() is not None
        del y
        assert gone() is None

    def test_owner_of_a_dropped_view(self):
        a = memory()
        gone = weakref.ref(a)
        x = a[3:][::2] + 1
        del a
        assert gone() is not None
        assert x[0] == 1.0
        assert gone() is None

    def test_weakref_callback_that_computes(self):
        seen = []
        a = memory()
        x = a + 1
        b = memory()
        finalizer = weakref.finalize(a, lambda: seen.append(float((b * 2 + 1)[0])))
        del a
        np.deferred.calculate(x)
        assert seen == [-5.0]
        assert not finalizer.alive

    def test_cycle(self):
        """The collector does not see nodes, but it must not be misled either."""

        class Holder:
            pass

        holder = Holder()
        holder.me = holder
        holder.a = memory()
        holder.x = holder.a + 1
        gone = weakref.ref(holder)
        del holder
        gc.collect()
        assert gone() is None
        assert np.deferred.stats()["pending"] == 0

    def test_in_place_names(self):
        a = memory()
        a = a + 1
        a = a * a
        a = a[1:] + a[:-1]
        assert a[0] == 5.0

    def test_released_is_counted(self):
        a = memory()
        with counted() as counters:
            x = a + 1
            del x
        assert (counters.captured, counters.released, counters.calculated) == (1, 1, 0)


@pytest.mark.usefixtures("deferred")
class TestForeignMemory:
    """What others may change at any time is read at once."""

    def test_buffer_of_something_else(self):
        raw = bytearray(64)
        a = np.frombuffer(raw)
        x = a + 1
        raw[:8] = b"\1" * 8
        assert x[0] == 1.0

    def test_memory_map(self, tmp_path):
        a = np.memmap(tmp_path / "a", float, "w+", shape=8)
        other = np.memmap(tmp_path / "a", float, "r+", shape=8)
        x = a + 1
        y = np.asarray(a) + 1
        other[0] = 5
        assert x[0] == 1.0
        assert y[0] == 1.0

    def test_bytes_may_wait(self):
        a = np.frombuffer(bytes(64))
        x = a + 1
        assert x.flags.deferred
        assert x[0] == 1.0

    def test_exposed_memory(self):
        a = memory()
        a.ctypes.data  # noqa: B018
        before = np.deferred.stats()["exposed"]
        assert not (a + 1).flags.deferred
        assert not (a[3:] + 1).flags.deferred
        assert np.deferred.stats()["exposed"] == before + 2
        assert (a.copy() + 1).flags.deferred
        assert np.deferred.stats()["exposed"] == before + 2

    def test_writeback_target(self):
        a = np.arange(8, dtype=float)
        with np.nditer(
            a,
            ["buffered"],
            [["readwrite", "updateifcopy"]],
            op_dtypes=["f4"],
            casting="same_kind",
        ) as it:
            for item in it:
                item[...] = item * 2
        assert a.tolist() == list(range(0, 16, 2))


def test_bits_of_untouched_operands():
    a = memory()
    before = bits(a)
    with np.deferredstate(True):
        x = np.sin(a) * a + a
    np.deferred.calculate(x)
    assert bits(a) == before
