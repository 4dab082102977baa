"""
The tests of NumPy's own suite that want an error, or a warning, of a result that
they drop unread, or read too late for them: it comes once the result is read.
"""

import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy._core import _umath_tests

LIST = Path(__file__).parent / "upstream" / "expected-failures.toml"


def array(value, dtype=float, n=1):
    return np.full(n, value, dtype)


def int_min(dtype):
    return array(np.iinfo(dtype).min, dtype, 10003)


#: For each test the error it wants and the operations that it wants it from.
OPERATIONS = {
    "TestSeterr::test_divide_err": (
        FloatingPointError,
        [lambda: array(1.0) / array(0.0)],
    ),
    "TestErrstate::test_invalid": (
        FloatingPointError,
        [lambda: np.sqrt(-np.arange(3))],
    ),
    "TestErrstate::test_divide": (
        FloatingPointError,
        [lambda: np.arange(3) // 0, lambda: np.arange(3) // np.arange(3)],
    ),
    "TestHalf::test_half_fpe": (
        FloatingPointError,
        [
            lambda: array(1e-4, "e") * np.float16(1e-4),
            lambda: array(1e-4, "e") / array(1e4, "e"),
            lambda: array(1e4, "e") * array(1e4, "e"),
            lambda: array(1e4, "e") + np.float16(65000),
            lambda: array(1, "e") / np.float16(0),
            lambda: np.spacing(array(65504, "e")),
            lambda: np.nextafter(array(65504, "e"), np.float16(np.inf)),
        ],
    ),
    "test_ufunc_input_floatingpoint_error": (
        FloatingPointError,
        [
            lambda: np.add(array(np.nan, n=30000), 1, dtype=np.intp, casting="unsafe"),
        ],
    ),
    "TestDivision::test_division_int_boundary": (
        FloatingPointError,
        [
            *(
                lambda dtype=dtype: array(3, dtype, 519) // array(0, dtype, 519)
                for dtype in np.typecodes["AllInteger"]
            ),
            *(
                lambda dtype=dtype: int_min(dtype) // -1
                for dtype in np.typecodes["Integer"]
            ),
        ],
    ),
    "TestSpecialFloats::test_sincos_errors": (
        FloatingPointError,
        [
            lambda ufunc=ufunc, dtype=dtype, sign=sign: ufunc(
                array(sign * np.inf, dtype)
            )
            for ufunc in (np.sin, np.cos)
            for dtype in "efd"
            for sign in (1, -1)
        ],
    ),
    "TestClog::test_special_values": (
        FloatingPointError,
        [lambda: np.log(array(-0.0, complex)), lambda: np.log(array(0, complex))],
    ),
    "TestDivisionIntegerOverflowsAndDivideByZero::test_signed_division_overflow": (
        RuntimeWarning,
        [
            lambda dtype=dtype: int_min(dtype) // array(-1, dtype, 10003)
            for dtype in np.typecodes["Integer"]
        ],
    ),
    "TestDivisionIntegerOverflowsAndDivideByZero::test_divide_by_zero": (
        RuntimeWarning,
        [
            lambda dtype=dtype: array(1, dtype, 10003) // array(0, dtype, 10003)
            for dtype in np.typecodes["AllInteger"]
        ],
    ),
    "test_bad_legacy_ufunc_silent_errors": (
        RuntimeError,
        [lambda: _umath_tests.always_error(np.arange(3.0), np.arange(3.0))],
    ),
    "test_bad_legacy_unary_ufunc_silent_errors": (
        RuntimeError,
        [lambda: _umath_tests.always_error_unary(np.arange(3.0))],
    ),
}


def test_table_is_complete():
    entries = tomllib.loads(LIST.read_text())["test"]
    listed = {entry["id"].partition("::")[2] for entry in entries}
    assert listed == OPERATIONS.keys()


@pytest.mark.parametrize("name", OPERATIONS)
def test_error_comes_when_read(name):
    error, operations = OPERATIONS[name]
    errors = "warn" if error is RuntimeWarning else "raise"
    with np.errstate(all=errors), warnings.catch_warnings():
        warnings.simplefilter("error")
        for operation in operations:
            with np.deferredstate(False), pytest.raises(error) as eager:
                operation()
            with np.deferredstate(True):
                x = operation()
                assert x.flags.deferred
                with pytest.raises(error) as late:
                    x.tolist()
            assert str(late.value) == str(eager.value)
            del x, late
