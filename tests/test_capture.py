"""Which calls are deferred, and which run at once; errors that come at the call."""

import operator

import numpy as np
import pytest

from helpers.compare import assert_same, observe
from helpers.counting import counted
from helpers.loops import UFUNCS

pytestmark = pytest.mark.usefixtures("deferred")

A = np.arange(1.0, 7.0)


def is_deferred(function, *args):
    result = function(*args)
    return isinstance(result, np.ndarray) and result.flags.deferred


DEFERRED = {
    "unary": lambda: np.sin(A),
    "binary": lambda: A + A,
    "operator with list": lambda: A + [1] * 6,
    "Python scalar": lambda: 2 * A,
    "numpy scalar": lambda: A * np.float32(2),
    "0-d array": lambda: A * np.array(2.0),
    "comparison": lambda: A > 2,
    "logical": lambda: np.logical_and(A, A),
    "bool": lambda: (A > 2) | (A < 1),
    "integer power": lambda: np.arange(4) ** 2,
    "square operator": lambda: A**2,
    "abs": lambda: abs(A),
    "negative": lambda: -A,
    "invert": lambda: ~np.arange(3),
    "shift": lambda: np.arange(3) << 1,
    "floor division": lambda: A // 2,
    "remainder": lambda: A % 2,
    "list only": lambda: np.add([1.0, 2.0], [3.0, 4.0]),
    "broadcast": lambda: A[:, None] * A,
    "view of an array": lambda: A[::2] + 1,
    "dtype=": lambda: np.add(A, 1, dtype="f4"),
    "signature=": lambda: np.add(A, 1, signature="dd->d"),
    "order=": lambda: np.add(A.reshape(2, 3), 1, order="F"),
    "casting=": lambda: np.add(A, 1, dtype="f4", casting="same_kind"),
    "subok=": lambda: np.add(A, 1, subok=False),
    "out=None": lambda: np.add(A, 1, out=None),
    "out=(None,)": lambda: np.add(A, 1, out=(None,)),
    "where=True": lambda: np.add(A, 1, where=True),
    "where= of one true element": lambda: np.add(A, 1, out=None, where=np.True_),
    "where=np._NoValue": lambda: np.subtract(A + 1, 1, out=None, where=np._NoValue),
    "many axes": lambda: np.ones((1,) * 60 + (2, 2)) + 1,
    "byte-swapped": lambda: A.astype(">f8") + 1,
    "unaligned": lambda: np.zeros(17, "u1")[1:].view("f8") + 1,
    "float16": lambda: A.astype("e") * 2,
    "long double": lambda: A.astype("g") * 2,
    "complex": lambda: A * 1j,
    "of a deferred array": lambda: (A + 1) * 2,
    "ufunc attribute": lambda: A.__add__(1),
    "reflected": lambda: A.__rsub__(1),
    "np.positive": lambda: +A,
    "np.clip ufunc": lambda: np.clip(A, 2, 3),
    "method": lambda: A.clip(2, 3),
    "clip between arrays": lambda: np.clip(A, A - 1, np.full(6, 3)),
    "clip between columns": lambda: np.clip(A, A[:, None] - 2, A[:, None]),
    "clip at a list": lambda: np.clip(A, 2, [3] * 6),
    "two outputs": lambda: np.divmod(A, 2)[0],
    "two outputs, one operand": lambda: np.frexp(A)[1],
    "divmod()": lambda: divmod(A, 2)[1],
    "divmod() reflected": lambda: divmod(7, A)[0],
    "clip from below": lambda: np.clip(A, 2, None),
    "clip from above": lambda: A.clip(None, A[::-1]),
    "clip without bounds": lambda: np.clip(A, None, None),
    "clip of min=": lambda: np.clip(A, min=2),
    "clip integers": lambda: np.clip(np.arange(6), -300, 3),
    "clip to floats": lambda: np.clip(np.arange(6), 1.5, np.float64(3)),
    "where": lambda: np.where(A > 2, A, 0),
    "conj": lambda: (A * 1j).conj(),
    "reduction of one axis, then op": lambda: A.reshape(2, 3).sum(0) + 1,
}

AT_ONCE = {
    "out=": lambda: np.add(A, 1, out=np.zeros(6)),
    "where=": lambda: np.add(A, 1, out=np.zeros(6), where=A > 2),
    "where= of one false element": lambda: np.add(A, 1, np.zeros(6), where=np.False_),
    "where= of a function": lambda: np.exp(A, out=None, where=np.True_),
    "power of integers": lambda: np.arange(4) ** np.arange(4),
    "where of lists": lambda: np.where([True, False], 1, 2),
    "out= of two outputs": lambda: np.divmod(A, 2, out=(np.zeros(6), None))[1],
    "clip at out=": lambda: np.clip(A, 2, 3, out=np.zeros(6)),
    "core dimensions": lambda: np.matmul(A, A),
    "matrix product": lambda: np.ones((2, 3)) @ np.ones((3, 2)),
    "reduction": lambda: np.add.reduce(A.reshape(2, 3)),
    "accumulate": lambda: np.add.accumulate(A),
    "outer at a subclass": lambda: np.add.outer(A.view(Subclass), A),
    "subclass": lambda: A.view(Subclass) + 1,
    "memory map": lambda: A.view(np.memmap) + 1,
    "masked array": lambda: np.ma.array(A) + 1,
    "recarray": lambda: A.view(np.recarray) + 1,
    "objects": lambda: A.astype(object) + 1,
    "datetime": lambda: np.arange("2000", "2003", dtype="M8[Y]") + 1,
    "timedelta": lambda: np.arange(3).astype("m8[s]") * 2,
    "strings": lambda: np.strings.add(np.array(["a", "b"]), "c"),
    "str comparison": lambda: np.array(["a", "b"]) == "b",
    "StringDType": lambda: np.array(["a"], np.dtypes.StringDType()) + "b",
    "empty": lambda: np.zeros(0) + 1,
    "empty axis": lambda: np.zeros((3, 0)) + 1,
    "scalars": lambda: np.add(1, 2),
    "0-d": lambda: np.array(1.0) + np.array(2.0),
    "frompyfunc": lambda: np.frompyfunc(lambda x: x, 1, 1)(A),
    "bytes-like": lambda: np.frombuffer(bytearray(16)) + 1,
    "another ufunc protocol": lambda: A + Other(),
}


class Subclass(np.ndarray):
    pass


class Other:
    def __array_ufunc__(self, *args, **kwargs):
        return np.zeros(3)


@pytest.mark.parametrize("name", DEFERRED)
def test_deferred(name):
    assert is_deferred(DEFERRED[name])
    assert_same(DEFERRED[name])


@pytest.mark.parametrize("name", AT_ONCE)
def test_at_once(name):
    with counted() as counters:
        assert not is_deferred(AT_ONCE[name])
    assert counters.pending == 0
    assert_same(AT_ONCE[name])


def one_deferred(name):
    """AT_ONCE, but the operand `A` is deferred."""
    original = AT_ONCE[name].__globals__["A"]
    AT_ONCE[name].__globals__["A"] = A * 2
    try:
        return AT_ONCE[name]()
    finally:
        AT_ONCE[name].__globals__["A"] = original


@pytest.mark.parametrize("name", AT_ONCE)
def test_at_once_with_deferred_operands(name):
    assert_same(one_deferred, name)


def test_scalar_operands_are_captured_by_value():
    scalar = np.array(2.0)
    x = A * scalar
    scalar[...] = 100
    assert x.tolist() == [2, 4, 6, 8, 10, 12]


def test_lists_are_captured_by_value():
    values = [1.0] * 6
    x = A + values
    values[0] = 100
    assert x[0] == 2.0


def test_a_call_with_a_deferred_operand_while_off():
    """Deferral is off: the operation runs, with its operands fused in."""
    x = A * 2
    with np.deferredstate(False):
        y = x + 1
    assert not y.flags.deferred
    assert y.tolist() == [3, 5, 7, 9, 11, 13]


# Errors of types and shapes come at the call, and leave nothing behind.

ERRORS = {
    "shapes": lambda: A + np.ones(5),
    "shapes of three": lambda: np.clip(A, np.ones(6), np.ones(5)),
    "no loop": lambda: np.bitwise_and(A, A),
    "no loop for bool": lambda: np.subtract(A > 2, A > 2),
    "casting": lambda: np.add(A, 1j, dtype="f8"),
    "casting=no": lambda: np.add(A, A.astype("f4"), casting="no"),
    "bad dtype": lambda: np.add(A, 1, dtype="U3"),
    "bad signature": lambda: np.add(A, 1, signature="xx->x"),
    "bad order": lambda: np.add(A, 1, order="Q"),
    "bad keyword": lambda: np.add(A, 1, nonsense=1),
    "too few": lambda: np.add(A),
    "too many": lambda: np.add(A, A, A, A),
    "None": lambda: A + None,
    "string": lambda: A + "x",
    "int too large": lambda: np.arange(3, dtype="u1") + 300,
    "int negative": lambda: np.arange(3, dtype="u1") + -1,
    "negative power": lambda: np.arange(4) ** -1,
    "negative powers": lambda: np.arange(4) ** np.array([1, -1, 2, 3]),
    "negative 0-d power": lambda: np.arange(4) ** np.array(-1),
    "out shape": lambda: np.add(A, 1, out=np.zeros(5)),
    "out cast": lambda: np.add(A, 1.5, out=np.zeros(6, int)),
    "out readonly": lambda: np.add(A, 1, out=np.broadcast_to(0.0, 6)),
    "out type": lambda: np.add(A, 1, out=[0] * 6),
    "where shape": lambda: np.add(A, 1, np.ones(6), where=np.ones(5, bool)),
    "where type": lambda: np.add(A, 1, np.ones(6), where=np.ones(6)),
    "matmul shapes": lambda: np.matmul(A, A[:5]),
    "in-place cast": lambda: operator.iadd(np.arange(3), 1.5),
    "in-place shape": lambda: operator.iadd(np.ones(3), np.ones((2, 3))),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_at_the_call(name):
    with np.deferredstate(False):
        eager = observe(ERRORS[name])
    assert eager.error is not None
    with counted() as counters:
        with pytest.raises(eager.error[0]) as caught:
            ERRORS[name]()
        assert str(caught.value) == eager.error[1]
        del caught
    assert counters.pending == 0
    assert np.deferred.usage_count(A) == 0


@pytest.mark.parametrize("name", ERRORS)
def test_errors_at_the_call_with_deferred_operands(name):
    def call():
        original = ERRORS[name].__globals__["A"]
        ERRORS[name].__globals__["A"] = original * 2
        try:
            return ERRORS[name]()
        finally:
            ERRORS[name].__globals__["A"] = original

    assert assert_same(call).error is not None


@pytest.mark.parametrize("ufunc", UFUNCS, ids=lambda ufunc: ufunc.__name__)
def test_wrong_number_of_arguments(ufunc):
    def call():
        return ufunc(*[A] * (ufunc.nargs + 1))

    assert assert_same(call).error is not None


def test_methods_of_the_same_name_keep_their_meaning():
    x = A + 1
    assert np.ndarray.sum(x) == 27.0
    assert x.__class__ is np.ndarray
    assert isinstance(x, np.ndarray)


def test_default_handler_only():
    """Another memory handler (NEP 49) wants to see every allocation."""
    handler = np._core.multiarray.get_handler_name()
    assert handler == "default_allocator"
    assert np._core.multiarray.get_handler_name(A.copy()) == "default_allocator"
    x = A + 1
    np.deferred.calculate(x)
    assert np._core.multiarray.get_handler_name(x) == "default_allocator"
