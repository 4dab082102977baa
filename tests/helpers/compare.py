"""Run something eagerly and deferred, and compare all that can be seen."""

import contextlib
import warnings
from typing import NamedTuple

import numpy as np
import pytest

_FLAGS = (
    "c_contiguous",
    "f_contiguous",
    "owndata",
    "writeable",
    "aligned",
    "writebackifcopy",
)
#: Bytes of a long double that count; the rest is padding.
_LONGDOUBLE_BYTES = 10 if np.finfo(np.longdouble).nmant == 63 else None


class Seen(NamedTuple):
    """An array (or another object, by type and repr) without its identity."""

    kind: type
    dtype: np.dtype = None
    shape: tuple = None
    strides: tuple = None
    flags: tuple = None
    bits: bytes = None
    text: str = None


class Outcome(NamedTuple):
    results: tuple
    error: tuple
    warnings: frozenset


def bits(array):
    """The bytes of the values in C order, without padding."""
    if array.dtype.char not in "gG" or _LONGDOUBLE_BYTES is None:
        return array.tobytes()
    native = np.array(array, array.dtype.newbyteorder("="), order="C")
    size = np.dtype(np.longdouble).itemsize
    return native.view(np.uint8).reshape(-1, size)[:, :_LONGDOUBLE_BYTES].tobytes()


def see(obj):
    """Describe an object; a deferred array is calculated half way."""
    if not isinstance(obj, np.ndarray | np.generic):
        return Seen(type(obj), text=repr(obj))
    if isinstance(obj, np.generic):
        return Seen(type(obj), obj.dtype, bits=bits(np.asarray(obj)))
    dtype, shape, strides = obj.dtype, obj.shape, obj.strides
    np.deferred.calculate(obj)
    assert (obj.dtype, obj.shape, obj.strides) == (dtype, shape, strides)
    if obj.dtype.hasobject or obj.dtype.kind not in "?biufcV":
        return Seen(type(obj), dtype, shape, strides, text=repr(obj.tolist()))
    flags = tuple(obj.flags[name.upper()] for name in _FLAGS)
    return Seen(type(obj), dtype, shape, strides, flags, bits(obj))


def observe(call, *args):
    """The outcome of a call: results, or the error, and the warnings."""
    results = error = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = call(*args)
            results = tuple(
                map(see, result if isinstance(result, tuple) else (result,))
            )
        except Exception as exc:
            error = (type(exc), str(exc))
        finally:
            result = None
    return Outcome(
        results,
        error,
        frozenset((w.category, str(w.message), w.filename, w.lineno) for w in caught),
    )


def observe_both(call, *args):
    """The outcomes without and with deferral."""
    with np.deferredstate(False):
        eager = observe(call, *args)
    with np.deferredstate(True):
        deferred = observe(call, *args)
    return eager, deferred


def differences(eager, deferred):
    """What differs between two outcomes, as text."""
    lines = []
    for field in ("error", "warnings"):
        expected, got = getattr(eager, field), getattr(deferred, field)
        if expected != got:
            lines.append(f"{field}: eager {_plain(expected)}, deferred {_plain(got)}")
    if eager.results is None or deferred.results is None:
        return lines
    if len(eager.results) != len(deferred.results):
        return [*lines, "number of results"]
    for expected, got in zip(eager.results, deferred.results, strict=True):
        lines += [
            f"{field}: eager {_short(one, expected)}, deferred {_short(other, got)}"
            for field, one, other in zip(Seen._fields, expected, got, strict=True)
            if one != other
        ]
    return lines


def _plain(value):
    return sorted(map(str, value)) if isinstance(value, frozenset) else value


def _short(value, seen):
    if not isinstance(value, bytes):
        return value
    if seen.dtype.char in "gG":
        return value[:80].hex()
    array = np.frombuffer(value, seen.dtype)
    return f"{value[:32].hex()} {np.array2string(array, threshold=8)}"


def assert_same(call, *args):
    """Assert that a call has the same outcome without and with deferral."""
    __tracebackhide__ = True
    eager, deferred = observe_both(call, *args)
    found = differences(eager, deferred)
    if found:
        pytest.fail("\n".join(found))
    return eager


class Comparison:
    """Many comparisons in one test: all differences are reported at its end."""

    def __init__(self):
        self.ncompared = 0
        self.failures = []

    def same(self, name, call, *args):
        outcomes = observe_both(call, *args)
        self.ncompared += 1
        self.failures += [f"{name}: {line}" for line in differences(*outcomes)]
        return outcomes[0]

    def check(self, name, condition):
        self.ncompared += 1
        if not condition:
            self.failures.append(name)


@contextlib.contextmanager
def comparison():
    """Fail at the end of the block with all that differed."""
    __tracebackhide__ = True
    compared = Comparison()
    yield compared
    assert compared.ncompared > 0, "nothing was compared"
    if compared.failures:
        shown = "\n".join(compared.failures[:20])
        pytest.fail(
            f"{len(compared.failures)} differences in "
            f"{compared.ncompared} comparisons:\n{shown}"
        )
