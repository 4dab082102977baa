"""Input values for every numeric dtype: all that is special, and some noise."""

import functools

import numpy as np

#: Type codes of the dtypes that can be deferred.
NUMERIC = "?bBhHiIlLqQefdgFDG"

_FLOATS = (0.0, -0.0, 1, -1, 0.5, -0.5, 2, -2, 3, 7.25, -1.5, 10, 100, -1e4)
_INTEGERS = (0, 1, 2, 3, 5, 7, 8, 31, 32, 33, 63, 64, 65, 100)
_COMPLEX_PARTS = (0.0, -0.0, 1.0, -2.5, np.inf, -np.inf, np.nan, 1e-3)


def _nans(dtype):
    """Quiet NaNs of both signs with a payload, where the format is known."""
    patterns = {
        "e": (0x7E01, 0xFE55),
        "f": (0x7FC00001, 0xFFC12345),
        "d": (0x7FF8000000000001, 0xFFF8123456789ABC),
    }
    if dtype.char not in patterns:
        return np.array([np.nan, -np.nan], dtype)
    return np.array(patterns[dtype.char], f"u{dtype.itemsize}").view(dtype)


def _special_floats(dtype):
    info = np.finfo(dtype)
    limits = [
        info.max,
        -info.max,
        info.tiny,
        -info.tiny,
        info.eps,
        info.smallest_subnormal,
        -info.smallest_subnormal,
        info.smallest_subnormal * 5,
        np.inf,
        -np.inf,
    ]
    return np.concatenate(
        [np.array(_FLOATS, dtype), np.array(limits, dtype), _nans(dtype)]
    )


def _special_integers(dtype):
    info = np.iinfo(dtype)
    values = [*_INTEGERS, info.max, info.max - 1, info.max // 2 + 1]
    if info.min < 0:
        values += [info.min, info.min + 1, -1, -2, -3, -7, -32, -64]
    return np.array(values, dtype)


def _noise(dtype, rng, n):
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, n, dtype, endpoint=True)
    scale = 10.0 ** rng.uniform(-2, 2, n)
    return (rng.standard_normal(n) * scale).astype(dtype)


@functools.cache
def pool(char):
    """The values that arrays of the dtype are filled with."""
    dtype = np.dtype(char)
    rng = np.random.default_rng(11)
    if dtype.kind == "b":
        return np.array([True, False, False, True, True])
    if dtype.kind == "c":
        parts = np.array(_COMPLEX_PARTS, dtype.char.lower())
        values = np.empty((len(parts), len(parts)), dtype)
        values.real, values.imag = parts[:, None], parts
        noise = np.empty(16, dtype)
        noise.real, noise.imag = rng.standard_normal((2, 16))
        return np.concatenate([values.ravel(), noise])
    special = _special_integers if dtype.kind in "iu" else _special_floats
    return np.concatenate([special(dtype), _noise(dtype, rng, 23)])


@functools.cache
def values(char, n, position=0):
    """
    `n` values for the operand at `position`.

    Operands walk through their pools in different ways, so that in about
    2,500 elements every value of one meets every value of another.
    """
    with np.deferredstate(False):  # they are kept for others
        source = pool(char)
        i = np.arange(n)
        if position == 0:
            # Start where small arrays see something else than zeros.
            index = i + 3
        else:
            index = i * (2 * position + 1) + i // len(source) + 5 * position
        result = source[index % len(source)]
    result.flags.writeable = False
    return result
