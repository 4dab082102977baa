"""The C API: from C, C++ and Cython, and where deferral meets WRITEBACKIFCOPY."""

import os
from pathlib import Path

import numpy as np
import pytest

from helpers.compare import assert_same, bits, observe
from helpers.counting import counted
from helpers.extensions import build_extensions, load
from helpers.process import output_of

SITE_PACKAGES = Path(np.__file__).parent.parent
SLOT = 1000


@pytest.fixture(scope="session")
def extensions(tmp_path_factory):
    """The folder with the extensions, built against this NumPy."""
    return build_extensions(SITE_PACKAGES, tmp_path_factory.mktemp("capi") / "ours")


@pytest.fixture(scope="session")
def stock(tmp_path_factory):
    """Stock NumPy: its folder, and that of extensions built against it."""
    site_packages = os.environ.get("NUMPY_STOCK")
    if not site_packages:
        pytest.skip("no stock NumPy: `spin stock` builds it")
    directory = tmp_path_factory.mktemp("capi") / "stock"
    return site_packages, build_extensions(site_packages, directory)


@pytest.fixture(scope="session")
def capi(extensions):
    return load(extensions, "_capi")


@pytest.fixture(scope="session")
def cython(extensions):
    return load(extensions, "_cython")


@pytest.fixture(params=["_capi", "_cpp", "_cython", "_portable", "_portable_old"])
def calculate(request, extensions):
    """PyArray_CalculateDeferred, in every language and for older NumPy."""
    return load(extensions, request.param).calculate


@pytest.fixture(params=["_capi", "_cython", "_portable", "_portable_old"])
def api(request, extensions):
    """A module with all four functions."""
    return load(extensions, request.param)


def vector(n=12, dtype=float):
    return np.arange(n).astype(dtype)


class TestNames:
    def test_flags(self, capi, cython):
        assert capi.NPY_ARRAY_DEFERRED == capi.NPY_DEFERRED == cython.DEFERRED
        assert (
            capi.NPY_ARRAY_DEFERRED_WASWRITEABLE
            == capi.NPY_DEFERRED_WASWRITEABLE
            == cython.DEFERRED_WASWRITEABLE
        )
        assert (
            capi.NPY_ARRAY_UPDATEIFCOPY_TARGET
            == capi.NPY_UPDATEIFCOPY_TARGET
            == cython.UPDATEIFCOPY_TARGET
        )

    def test_version(self, api):
        assert api.version() == 1

    def test_table(self, capi):
        """Our slots are filled, and NumPy's own may grow up to there."""
        assert capi.NPY_DEFERRED_API_VERSION == 1
        assert all(capi.slots(SLOT, SLOT + 4))
        assert not any(capi.slots(369, SLOT))

    def test_flags_of_arrays(self, capi, deferred):
        a = vector()
        x = a + 1
        assert capi.flags(x) & capi.NPY_ARRAY_DEFERRED
        marks = capi.NPY_ARRAY_DEFERRED_WASWRITEABLE | capi.NPY_ARRAY_WRITEABLE
        assert capi.flags(a) & marks == capi.NPY_ARRAY_DEFERRED_WASWRITEABLE
        assert x.flags.deferred
        capi.calculate(x)
        assert not capi.flags(x) & capi.NPY_ARRAY_DEFERRED
        assert capi.flags(a) & marks == capi.NPY_ARRAY_WRITEABLE


class TestCalculateDeferred:
    def test_deferred(self, calculate, deferred):
        a = vector()
        x = a * 2 + 1
        calculate(x)
        assert not x.flags.deferred
        assert x.tolist() == [2.0 * i + 1 for i in range(12)]

    @pytest.mark.parametrize(
        "array",
        [
            np.array(1.0),
            np.zeros(0),
            np.ma.array([1.0, 2.0], mask=[0, 1]),
            np.arange(4.0).view(np.recarray),
            np.array([None, "a"]),
        ],
        ids=["0-d", "empty", "masked", "recarray", "object"],
    )
    def test_regular(self, calculate, array):
        before = array.tolist()
        calculate(array)
        assert array.tolist() == before

    @pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
    def test_matrix(self, calculate, deferred):
        m = np.matrix([[1.0, 2.0]])
        calculate(m)
        calculate(m + 1)
        x = vector()[:2] + m
        calculate(x)
        assert x.tolist() == [[1.0, 3.0]]

    @pytest.mark.parametrize("value", [None, 1.0, [1.0], np.float64(1), np.ndarray])
    def test_not_an_array(self, calculate, value):
        with pytest.raises(TypeError, match="ndarray"):
            calculate(value)

    def test_null(self, capi):
        with pytest.raises(ValueError, match="not NULL"):
            capi.calculate(capi.NULL)

    def test_error_state(self, calculate, deferred):
        zero = np.zeros(3)
        with np.errstate(divide="raise"):
            x = 1 / zero
            for _ in range(2):
                with pytest.raises(FloatingPointError, match="divide by zero"):
                    calculate(x)
                assert x.flags.deferred
            assert np.deferred.usage_count(zero) == 1
            del x
        assert np.deferred.usage_count(zero) == 0

    def test_only_that_one(self, calculate, deferred):
        x, y = vector() + 1, vector() + 2
        calculate(y)
        assert x.flags.deferred
        assert not y.flags.deferred
        calculate(x)


class TestCalculateAllDeferred:
    def test_all(self, api, deferred):
        arrays = [vector() + i for i in range(10)]
        api.calculate_all()
        assert not any(x.flags.deferred for x in arrays)
        assert [x[1] for x in arrays] == list(range(1, 11))

    def test_nothing_deferred(self, api):
        assert np.deferred.stats()["pending"] == 0
        api.calculate_all()

    def test_goes_on_after_an_error(self, api, deferred):
        """The newest comes first, and its error is the one reported."""
        with np.errstate(divide="raise", over="raise"):
            first = vector() + 1
            second = np.exp(np.full(3, 1e6))
            third = 1 / np.zeros(3)
            fourth = vector() + 2
            with pytest.raises(FloatingPointError, match="divide by zero"):
                api.calculate_all()
            found = [x.flags.deferred for x in (first, second, third, fourth)]
            assert found == [False, True, True, False]
            del second, third


class TestUsageCount:
    def test_count(self, api, deferred):
        a, b = vector(), vector()
        assert api.usage_count(a) == 0
        x = a + b
        y = a * a
        assert [api.usage_count(array) for array in (a, b, x)] == [3, 1, 0]
        z = x + y
        assert api.usage_count(x) == 1
        assert x.flags.deferred, "counting calculates nothing"
        np.deferred.calculate(z)
        del x, y
        assert [api.usage_count(array) for array in (a, b)] == [0, 0]

    @pytest.mark.parametrize("array", [np.array(1.0), np.ma.zeros(3), np.zeros(0)])
    def test_unused(self, api, array):
        assert api.usage_count(array) == 0

    @pytest.mark.parametrize("value", [None, 3, [1.0]])
    def test_not_an_array(self, api, value):
        with pytest.raises(TypeError, match="ndarray"):
            api.usage_count(value)

    def test_null(self, capi):
        with pytest.raises(ValueError, match="not NULL"):
            capi.usage_count(capi.NULL)


def unaligned(n):
    return np.zeros(8 * n + 1, np.uint8)[1:].view(np.float64)


OUTS = {
    "same": lambda: np.zeros((3, 4)),
    "fortran": lambda: np.zeros((4, 3)).T,
    "reversed": lambda: np.zeros((3, 4))[::-1, ::-1],
    "strided": lambda: np.zeros((6, 8))[::2, ::2],
    "unaligned": lambda: unaligned(12).reshape(3, 4),
    "byteswapped": lambda: np.zeros((3, 4), ">f8"),
    "float32": lambda: np.zeros((3, 4), np.float32),
    "int8": lambda: np.zeros((3, 4), np.int8),
    "bool": lambda: np.zeros((3, 4), bool),
    "complex": lambda: np.zeros((3, 4), complex),
    "object": lambda: np.zeros((3, 4), object),
    "string": lambda: np.zeros((3, 4), "U8"),
    "datetime": lambda: np.zeros((3, 4), "m8[s]"),
    "broadcast": lambda: np.zeros((2, 3, 4)),
    "leading ones": lambda: np.zeros((1, 1, 3, 4)),
    "masked": lambda: np.ma.zeros((3, 4)),
    "wrong shape": lambda: np.zeros((4, 3)),
    "0-d": lambda: np.zeros(()),
    "empty": lambda: np.zeros(0),
}


def expression():
    a = np.linspace(-3, 120, 12).reshape(3, 4)
    return a * 2 - 1


class TestAssignment:
    @pytest.mark.parametrize("name", OUTS)
    def test_as_eager(self, api, name):
        """The oracle is CopyInto's counterpart in Python, without deferral."""

        def copyto(x, out):
            np.copyto(out, x, casting="unsafe")
            return out

        def assign(x, out):
            api.assign(x, out)
            assert state is False or x.flags.deferred
            return out

        outs = {}
        for state, call in ((False, copyto), (False, assign), (True, assign)):
            with np.deferredstate(state):
                x = expression()
                outs[call, state] = observe(call, x, OUTS[name]())
                assert x.tolist() == [
                    [2 * v - 1 for v in row]
                    for row in np.linspace(-3, 120, 12).reshape(3, 4).tolist()
                ]
        assert outs[assign, False] == outs[copyto, False]
        assert outs[assign, True] == outs[copyto, False]

    def test_second_time(self, api, deferred):
        """The NEP's remark: evaluated a second time it becomes regular."""
        x = expression()
        first, second, third = (np.zeros((3, 4)) for _ in range(3))
        api.assign(x, first)
        assert x.flags.deferred
        api.assign(x, second)
        assert not x.flags.deferred
        api.assign(x, third)
        assert bits(first) == bits(second) == bits(third) == bits(x)

    @pytest.mark.parametrize("which", [0, 1])
    def test_one_of_two_outputs(self, api, deferred, which):
        """It stays deferred, and so does the other one."""
        outputs, out = np.divmod(vector() + 1, 5), np.zeros(12)
        api.assign(outputs[which], out)
        assert all(x.flags.deferred for x in outputs)
        assert bits(out) == bits(outputs[which])
        assert not any(x.flags.deferred for x in outputs)

    def test_second_time_by_way_of_a_copy(self, api, deferred):
        x = expression()
        first, second = np.zeros((2, 3, 4)), np.zeros((2, 3, 4))
        api.assign(x, first)
        assert x.flags.deferred
        api.assign(x, second)
        assert not x.flags.deferred
        assert bits(first) == bits(second)

    @pytest.mark.filterwarnings("default")
    def test_straight_into_out(self, api, deferred):
        a, out = vector(), np.zeros(12)
        x = a + 1
        with counted() as counters:
            api.assign(x, out)
        assert (counters.fused, counters.calculated) == (1, 0)
        del x

    @pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
    def test_matrix(self, api, deferred):
        x, out = expression(), np.asmatrix(np.zeros((3, 4)))
        api.assign(x, out)
        assert type(out) is np.matrix
        assert out.tolist() == x.tolist()

    def test_complex_to_real(self, api):
        def call():
            z = (vector() + 1j) * 2
            out = np.zeros(12)
            api.assign(z, out)
            return out

        assert len(assert_same(call).warnings) == 1

    @pytest.mark.parametrize("shift", [-3, 0, 3])
    def test_out_is_an_operand(self, api, shift):
        """Then the array is calculated first, as for any write."""

        def call():
            memory = vector(24)
            x = memory[6:18] * 2 + memory[5:17]
            out = memory[6 + shift : 18 + shift]
            api.assign(x, out)
            assert not x.flags.deferred
            return memory, x

        assert_same(call)

    def test_out_is_an_operand_of_another(self, api):
        def call():
            a, out = vector(), vector()
            other = out * 3
            x = a + 1
            api.assign(x, out)
            return other, x, out

        assert_same(call)

    def test_out_is_deferred(self, api):
        def call():
            x, out = vector() + 1, vector() + 2
            view = out
            api.assign(x, out)
            return x, out, view

        assert_same(call)

    def test_out_is_itself(self, api, deferred):
        x = vector() + 1
        api.assign(x, x)
        assert not x.flags.deferred
        assert x[0] == 1

    def test_regular(self, api):
        a, out = vector(dtype=int), np.zeros((2, 12))
        api.assign(a, out)
        assert out.tolist() == [list(range(12))] * 2

    def test_read_only(self, api, deferred):
        x, out = vector() + 1, np.zeros(12)
        out.flags.writeable = False
        with pytest.raises(ValueError, match="read-only"):
            api.assign(x, out)
        assert x.flags.deferred
        assert not out.any()
        del x

    def test_wrong_shape(self, api, deferred):
        x, out = vector() + 1, np.zeros(5)
        with pytest.raises(ValueError, match="could not broadcast"):
            api.assign(x, out)
        assert not out.any()
        assert x.flags.deferred
        del x

    @pytest.mark.parametrize("shape", [(3,), (2, 3)])
    def test_error_state(self, api, deferred, shape):
        """Nothing is written when the values cannot be had."""
        with np.errstate(divide="raise"):
            x, out = 1 / np.zeros(3), np.full(shape, 7.0)
            for _ in range(3):
                with pytest.raises(FloatingPointError, match="divide by zero"):
                    api.assign(x, out)
                assert x.flags.deferred
                assert (out == 7).all()
            del x

    def test_error_comes_once(self, api, deferred):
        """The error state may change after it was raised, as after a read."""
        with np.errstate(divide="raise"):
            x = 1 / np.zeros(3)
            with pytest.raises(FloatingPointError, match="divide by zero"):
                api.assign(x, np.zeros(3))
        assert x.flags.deferred
        del x

    @pytest.mark.parametrize("shape", [(3,), (2, 3)])
    def test_handler_reads_the_array(self, api, deferred, shape):
        seen = []
        with np.errstate(divide="call", call=lambda *_: seen.append(x.tolist())):
            x, out = 1 / np.zeros(3), np.zeros(shape)
            api.assign(x, out)
            assert np.isinf(out).all()
        assert seen == [[np.inf] * 3]

    @pytest.mark.parametrize("value", [None, 3, [1.0]])
    def test_not_an_array(self, api, value):
        for arguments in ((value, np.zeros(3)), (np.zeros(3), value)):
            with pytest.raises(TypeError, match="ndarray"):
                api.assign(*arguments)

    def test_null(self, capi):
        for arguments in ((capi.NULL, np.zeros(3)), (np.zeros(3), capi.NULL)):
            with pytest.raises(ValueError, match="not NULL"):
                capi.assign(*arguments)


CALLS = [
    "NewCopy",
    "CopyInto",
    "CopyAnyInto",
    "CopyObject",
    "View",
    "FromAny",
    "FromArray",
    "CheckFromAny",
    "FROM_OTF",
    "FROMANY_cast",
    "ContiguousFromAny",
    "EnsureArray",
    "EnsureAnyArray",
    "Return",
    "GETITEM",
    "SETITEM",
    "SetBaseObject",
    "Sort",
    "ArgSort",
    "ArgMax",
    "ArgMin",
    "SearchSorted",
    "Newshape",
    "Ravel",
    "Flatten",
    "Squeeze",
    "Transpose",
    "SwapAxes",
    "Sum",
    "Prod",
    "CumSum",
    "Mean",
    "Std",
    "Max",
    "Min",
    "Ptp",
    "Any",
    "All",
    "Round",
    "Conjugate",
    "Clip",
    "Nonzero",
    "CountNonzero",
    "Repeat",
    "TakeFrom",
    "PutTo",
    "CastToType",
    "Cast",
    "ToList",
    "ToString",
    "Dumps",
    "Byteswap",
    "FillWithScalar",
    "GetField",
    "Partition",
    "Concatenate",
    "Where",
    "EinsteinSum",
    "InnerProduct",
    "MatrixProduct",
    "IterNew",
    "IterAllButAxis",
    "MultiIterNew",
    "NeighborhoodIterNew",
    "NpyIter_New",
    "NpyIter_New_write",
    "GetPtr",
    "AsCArray",
    "GetBuffer",
    "FromStructInterface",
    "FROM_OTF_writeback",
    "FailUnlessWriteable",
    "PyObject_Str",
    "PySequence_GetItem",
]
PEEKS = [
    "NewLikeArray",
    "Size",
    "NBYTES",
    "GetPriority",
    "ElementStrides",
    "EquivArrTypes",
    "CanCastArrayTo",
    "ResultType",
    "DescrFromObject",
    "MinScalarType",
]
#: These need no values yet: they return the array, or another deferred one.
LAZY = {
    *("EnsureArray", "EnsureAnyArray", "Return", "Squeeze"),
    *("Conjugate", "Clip", "Where"),
}
#: It has no way to fail; the exception is left for the interpreter.
CANNOT_FAIL = {"GetPtr"}


class TestNumPysOwn:
    """C code that has a deferred array and calls what NumPy always had."""

    def test_all_are_listed(self, capi):
        assert list(capi.calls) == CALLS
        assert list(capi.peeks) == PEEKS

    @pytest.mark.parametrize("shape", [(12,), (4, 4), (1, 5), (1,)], ids=str)
    @pytest.mark.parametrize("name", CALLS)
    def test_call(self, capi, name, shape):
        def call():
            a = np.linspace(4, -3, np.prod(shape)).reshape(shape)
            x = a * 2 + 1
            assert x.flags.deferred == np.getdeferred()
            result = capi.calls[name](x)
            return result, x, a

        assert_same(call)

    @pytest.mark.parametrize("name", CALLS)
    def test_call_on_an_operand(self, capi, name):
        """What depends on it has the values of before."""

        def call():
            a = np.linspace(4, -3, 12)
            x = a * 2 + 1
            result = capi.calls[name](a)
            return x, result, a

        assert_same(call)

    @pytest.mark.parametrize("name", CALLS)
    def test_hooked(self, capi, name, deferred):
        """Each calculates where it can still fail, not under PyArray_DATA."""
        x = vector() * 2
        with counted() as counters:
            capi.calls[name](x)
        assert counters.late == (name in CANNOT_FAIL)

    @pytest.mark.parametrize("name", sorted(set(CALLS) - LAZY))
    def test_error(self, capi, name, deferred):
        """Under 'raise' the call fails; nothing else happens to the array."""
        with np.errstate(divide="raise"):
            x = 1 / np.zeros(3)
            with pytest.raises(FloatingPointError, match="divide by zero"):
                capi.calls[name](x)
            assert x.flags.deferred == (name not in CANNOT_FAIL)
            del x

    @pytest.mark.parametrize("name", PEEKS)
    def test_peek(self, capi, name, deferred):
        x = vector() * 2
        result = capi.peeks[name](x)
        assert x.flags.deferred
        assert bits(x) == bits(vector() * 2)
        with np.deferredstate(False):
            expected = capi.peeks[name](vector() * 2)
        assert repr(result) == repr(expected) or result is x


class TestCython:
    def test_flags(self, cython, deferred):
        a = vector()
        x = a + 1
        assert cython.flags(x) & cython.DEFERRED
        assert cython.flags(a) & cython.DEFERRED_WASWRITEABLE
        del x

    @pytest.mark.parametrize("function", ["sum_memoryview", "sum_buffer"])
    def test_read(self, cython, function, deferred):
        x = vector() * 2
        assert getattr(cython, function)(x) == 132
        assert not x.flags.deferred

    def test_write_to_an_operand(self, cython):
        def call():
            a = vector()
            x = a * 2
            cython.add_in_place(a, 10.0)
            return x, a

        assert_same(call)

    def test_results(self, cython, deferred):
        """NPY_SUCCEED, and no exception is swallowed."""
        x = vector() * 2
        assert cython.assign(x, np.zeros(12)) == 1
        assert cython.calculate(x) == 1
        assert cython.calculate_all() == 1


def fortran():
    return np.asfortranarray(np.arange(12.0).reshape(3, 4))


#: Arrays that PyArray_FROM_OTF cannot use as they are.
TARGETS = {
    "owner": fortran,
    "view": lambda: np.arange(24.0)[::2],
    "view of a view": lambda: np.arange(48.0)[::2][::2],
    "transposed": lambda: np.arange(12.0).reshape(3, 4).T,
}


@pytest.fixture(params=TARGETS)
def target(request):
    return TARGETS[request.param]()


class TestUpdateIfCopy:
    """NEP 11, Interaction With UPDATEIFCOPY: two states that exclude each other."""

    def test_four_steps(self, capi, target, deferred):
        """The accident does not happen, as the expression runs at once."""
        expected = (target.copy() * 2).tolist()
        total, was_deferred = capi.four_steps(target, True)
        assert not was_deferred
        assert total.tolist() == expected
        assert target.flat[0] == 99

    def test_four_steps_without_the_interlock(self, capi, target, deferred):
        """Nothing but the flag prevents the accident."""
        expected = (target.copy() * 2).tolist()
        total, was_deferred = capi.four_steps(target, False)
        assert was_deferred
        assert total.tolist() != expected
        assert total.flat[0] == 198

    def test_four_steps_one_by_one(self, capi, target, deferred):
        """The writes that copies make are seen with and without the flag."""
        writeable, marks = capi.NPY_ARRAY_WRITEABLE, capi.NPY_ARRAY_UPDATEIFCOPY_TARGET
        marks |= writeable | capi.NPY_ARRAY_DEFERRED_WASWRITEABLE
        for clear in (False, True):
            expected = (target.copy() * 2).tolist()
            copy = capi.writeback_copy(target)
            assert copy is not target
            assert capi.flags(target) & marks == capi.NPY_ARRAY_UPDATEIFCOPY_TARGET
            if clear:
                capi.clear_target_flag(target)
            x = target + target
            assert x.flags.deferred == clear
            assert capi.usage_count(target) == 2 * clear
            copy[...] = 5
            assert capi.resolve(copy) == 1
            assert x.tolist() == expected
            assert (target == 5).all()
            assert capi.flags(target) & marks == writeable
            y = target + target
            assert y.flags.deferred, "the target is an array like any other again"
            del y

    def test_deferral_first(self, capi, target, deferred):
        """The copy flushes what reads the array, before it is made."""
        expected = (target.copy() * 2).tolist()
        x = target + target
        assert capi.flags(target) & capi.NPY_ARRAY_DEFERRED_WASWRITEABLE
        copy = capi.writeback_copy(target)
        assert not x.flags.deferred
        assert capi.usage_count(target) == 0
        assert not capi.flags(target) & capi.NPY_ARRAY_DEFERRED_WASWRITEABLE
        with pytest.raises(ValueError, match="not writeable"):
            capi.poke(target, 7.0)
        copy[...] = 5
        capi.resolve(copy)
        assert x.tolist() == expected
        assert (target == 5).all()
        capi.poke(target, 7.0)

    def test_deferral_first_without_the_interlock(self, capi, deferred):
        """The array becomes writeable while a copy is pending, and loses a write."""
        target = np.arange(12.0)
        x = target + target
        copy = np.zeros(12)
        capi.set_writeback_base_unaware(copy, target)
        capi.calculate(x)
        capi.poke(target, 7.0)
        capi.resolve(copy)
        assert target[0] == 0, "the accident: 7 was written to a writeable array"

    def test_deferral_first_with_set_writeback_base(self, capi, deferred):
        target = np.arange(12.0)
        x = target + target
        copy = np.zeros(12)
        capi.set_writeback_base(copy, target)
        assert not x.flags.deferred
        with pytest.raises(ValueError, match="not writeable"):
            capi.poke(target, 7.0)
        capi.resolve(copy)
        assert not target.any()

    def test_target_of_a_view(self, capi, deferred):
        """The memory counts, not the array."""
        memory = np.arange(24.0)
        view = memory[::2]
        x = memory + 1
        copy = capi.writeback_copy(view)
        assert not x.flags.deferred
        y = view + 1
        assert not y.flags.deferred
        capi.discard(copy)
        assert capi.flags(view) & capi.NPY_ARRAY_WRITEABLE

    def test_discard(self, capi, target, deferred):
        before = target.copy().tolist()
        copy = capi.writeback_copy(target)
        copy[...] = 5
        capi.discard(copy)
        assert target.tolist() == before
        marks = capi.NPY_ARRAY_UPDATEIFCOPY_TARGET | capi.NPY_ARRAY_WRITEABLE
        assert capi.flags(target) & marks == capi.NPY_ARRAY_WRITEABLE
        x = target + 1
        assert x.flags.deferred
        del x

    def test_dropped(self, capi, target, deferred):
        """NumPy resolves a copy that nobody did, with a warning."""
        expected = (target.copy() * 2).tolist()
        copy = capi.writeback_copy(target)
        copy[...] = 5
        x = target + target
        with pytest.warns(RuntimeWarning, match="WRITEBACKIFCOPY"):
            del copy
        assert x.tolist() == expected
        assert (target == 5).all()
        assert not capi.flags(target) & capi.NPY_ARRAY_UPDATEIFCOPY_TARGET

    def test_the_copy_is_an_operand(self, capi, target, deferred):
        copy = capi.writeback_copy(target)
        copy[...] = 5
        x = copy + 1
        assert x.flags.deferred
        capi.resolve(copy)
        assert (target == 5).all()
        copy[...] = 6
        assert (x == 6).all()

    def test_deferred_values_are_written_back(self, capi, deferred):
        base, a = np.zeros(12), vector()
        copy = a + 1
        capi.set_writeback_base(copy, base)
        assert capi.resolve(copy) == 1
        assert bits(base) == bits(vector() + 1)
        del copy

    def test_deferred_target(self, capi, deferred):
        x = fortran() + 1
        assert x.flags.f_contiguous
        copy = capi.writeback_copy(x)
        assert not x.flags.deferred
        copy[...] = 5
        capi.resolve(copy)
        assert (x == 5).all()

    def test_null(self, capi):
        with pytest.raises(ValueError, match="NULL"):
            capi.set_writeback_base(np.zeros(3), capi.NULL)

    @pytest.mark.parametrize("uic", [False, True])
    def test_setflags(self, uic, deferred):
        """An operand whose flags are set, or are not after all."""
        a = vector()
        x = a + 1
        if uic:
            with pytest.raises(ValueError, match="cannot set WRITEBACKIFCOPY"):
                a.setflags(uic=True)
        else:
            a.setflags(uic=False)
        assert np.deferred.usage_count(a) == 0
        assert not a.flags.deferred_waswriteable
        a[0] = 3
        y = a + 1
        assert (x[0], y[0]) == (1, 4)

    def test_setflags_ends_it(self, capi, deferred):
        """NumPy leaves the array read only then; the mark goes."""
        target = fortran()
        copy = capi.writeback_copy(target)
        copy.setflags(uic=False)
        marks = capi.NPY_ARRAY_UPDATEIFCOPY_TARGET | capi.NPY_ARRAY_WRITEABLE
        assert not capi.flags(target) & marks
        x = target + 1
        assert x.flags.deferred
        target.flags.writeable = True
        target[0, 0] = 100
        assert x[0, 0] == 1


PORTABLE = """
import sys
import numpy as np
sys.path.insert(0, {directory!r})
import {module} as portable
"""

WITHOUT_DEFERRAL = """
assert not hasattr(np, "deferred"), "this is not stock NumPy"
a, out = np.arange(3.0), np.zeros((2, 3), np.float32)
assert portable.version() == 0
assert portable.calculate_all() is portable.calculate(a) is None
assert portable.assign(a, out) is None
assert out.tolist() == [[0, 1, 2]] * 2
assert portable.usage_count(a) == 0
for call in portable.calculate, portable.usage_count, lambda x: portable.assign(x, a):
    try:
        call(None)
    except TypeError as error:
        assert "ndarray" in str(error)
    else:
        raise AssertionError(call)
a.flags.writeable = False
try:
    portable.assign(out[0], a)
except ValueError as error:
    assert "read-only" in str(error)
else:
    raise AssertionError("read-only")
print(portable.sum(a), portable.increment(out[:, ::2]), out.tolist())
"""

WITHOUT_OUR_HEADERS = """
assert not hasattr(portable, "calculate"), "these are not stock NumPy's headers"
with np.deferredstate(True):
    a = np.arange(12.0).reshape(3, 4).T
    x = a * 2
    assert x.flags.deferred
    assert portable.sum(x) == 132.0
    y = a * 2
    assert portable.increment(a) == 1
    assert not y.flags.deferred
    assert y.tolist() == x.tolist()
    assert (a * 2).tolist() == (x + 2).tolist()
    z = a * 3
    portable.discard(a)
    assert not z.flags.deferred
    a[0, 0] = 100
    assert z[0, 0] == 3 and (a * 3)[0, 0] == 300
print("fine")
"""


class TestPortable:
    """An extension is compiled once."""

    @pytest.mark.parametrize("module", ["_portable", "_portable_old"])
    def test_our_headers_on_stock(self, stock, extensions, module):
        """No array is deferred there, so all of them are calculated."""
        code = PORTABLE.format(directory=str(extensions), module=module)
        output = output_of(code + WITHOUT_DEFERRAL, PYTHONPATH=stock[0])
        assert output == "3.0 1 [[1.0, 1.0, 3.0], [1.0, 1.0, 3.0]]"

    def test_stock_headers_on_ours(self, stock):
        code = PORTABLE.format(directory=str(stock[1]), module="_portable")
        assert output_of(code + WITHOUT_OUR_HEADERS) == "fine"

    def test_version_cannot_be_told(self, extensions):
        """Not silently 0: then a deferred array would pass for calculated."""
        code = PORTABLE.format(directory=str(extensions), module="_portable")
        code += """
with np.deferredstate(True):
    x = np.ones(3) + 1
np._core._multiarray_umath._deferred_api_version = "?"
for call in portable.version, portable.calculate_all, lambda: portable.calculate(x):
    try:
        call()
    except TypeError:
        assert x.flags.deferred
    else:
        raise AssertionError(call)
np._core._multiarray_umath._deferred_api_version = 1
portable.calculate(x)
print(x.flags.deferred)
"""
        assert output_of(code) == "False"
