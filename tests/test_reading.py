"""Whatever reads a deferred array calculates it first, and sees its values."""

import contextlib

import numpy as np
import pytest

from helpers.compare import assert_same, differences, observe
from helpers.reading import NOT_READERS, ONE, VECTOR


def vector():
    """Some values of both signs, deferred if deferral is on."""
    start = np.array([4.0, 1, -2, 7, 3, 0.5, 9, 2, -1, 6, 5, 8])
    return np.add(start, 0.25) * 2 - start


def one():
    return np.array([2.0]) * 1.5 + 1


def check_is_deferred(make):
    with np.deferredstate(True):
        assert make().flags.deferred


@contextlib.contextmanager
def hooked():
    """What is read inside comes by a hook, not by touching the guard."""
    late = np.deferred.stats()["late"]
    yield
    assert np.deferred.stats()["late"] == late, "NumPy has no hook for this"


@pytest.mark.parametrize("name", VECTOR)
def test_vector(name):
    check_is_deferred(vector)
    with hooked():
        assert assert_same(lambda: VECTOR[name](vector())).error is None


@pytest.mark.parametrize("name", ONE)
def test_one(name):
    check_is_deferred(one)
    with hooked():
        assert assert_same(lambda: ONE[name](one())).error is None


@pytest.mark.parametrize("name", VECTOR)
def test_values_stay_when_the_reader_is_done(name):
    """A reader must not take the values with it, nor leave them half done."""

    def read_twice():
        a = vector()
        VECTOR[name](a)
        return a

    assert_same(read_twice)


@pytest.mark.parametrize("name", VECTOR)
def test_reading_an_operand(name):
    """An operand is read without a calculation of what depends on it."""

    def read():
        a = np.array([4.0, 1, -2, 7, 3, 0.5, 9, 2, -1, 6, 5, 8])
        x = a * 2
        return VECTOR[name](a), x

    assert_same(lambda: read()[1])


@pytest.mark.parametrize("name", NOT_READERS)
@pytest.mark.usefixtures("deferred")
def test_not_readers(name):
    a = vector()
    NOT_READERS[name](a)
    assert a.flags.deferred


# Reading that raises: the error state of the operation says 'raise'.


def failing():
    """A deferred array that cannot be calculated."""
    return np.array([4.0, 1, -2, 7, 3, 0.5, 9, 2, -1, 6, 5, 8]) / np.zeros(12)


#: These look at no value of their argument.
BLIND = {
    "__dlpack_device__",
    "ones_like",
    "zeros_like",
    "can_cast",
    "result_type",
    "common_type",
    "isscalar",
    "iscomplexobj",
    "ravel_multi_index",
    "__array_wrap__",
    "imag",
    "isreal",
    "sizeof",
    "ctypes shape",
}
#: CPython replaces the error of the buffer protocol by one of its own here.
REPLACED = {"bytes.join"}


@pytest.mark.parametrize("name", [n for n in VECTOR if n not in BLIND | REPLACED])
@pytest.mark.usefixtures("deferred", "raising")
def test_error_surfaces(name):
    a = failing()
    for _ in range(2):
        outcome = observe(VECTOR[name], a)
        assert outcome.error == (
            FloatingPointError,
            "divide by zero encountered in divide",
        )
        assert a.flags.deferred


@pytest.mark.parametrize("name", sorted(BLIND & set(VECTOR)))
@pytest.mark.usefixtures("deferred", "raising")
def test_error_does_not_surface(name):
    a = failing()
    observe(VECTOR[name], a)
    assert a.flags.deferred


@pytest.mark.parametrize("name", ONE)
@pytest.mark.usefixtures("deferred", "raising")
def test_error_surfaces_of_one(name):
    a = np.array([2.0]) / np.array([0.0])
    outcome = observe(ONE[name], a)
    assert outcome.error == (FloatingPointError, "divide by zero encountered in divide")
    assert a.flags.deferred


@pytest.mark.parametrize("name", VECTOR)
def test_warnings_surface(name):
    """The warnings are those of eager NumPy, and each comes once."""

    def read():
        a = np.array([4.0, 1, -2, 7, 3, 0.5, 9, 2, -1, 6, 5, 8])
        with np.errstate(all="warn"):
            x = a / np.array([1.0] * 11 + [0.0])
        with np.errstate(all="ignore"):
            return np.minimum(x, 10)

    with np.errstate(all="ignore"):
        with np.deferredstate(False):
            eager = observe(lambda: VECTOR[name](read()))
        with np.deferredstate(True):
            kept = []
            deferred = observe(lambda: VECTOR[name](kept.append(read()) or kept[0]))
            late = observe(kept.pop().tolist)
        found = differences(
            eager, deferred._replace(warnings=deferred.warnings | late.warnings)
        )
    assert not found
