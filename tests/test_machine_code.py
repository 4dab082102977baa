"""
Tile programs as machine code: what is compiled, when, and where that cannot be.

That it gives the same bits is what test_tiles.py tests, both ways.
"""

import itertools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from numpy._core._multiarray_umath import _deferred_set_code_worth

from helpers.compare import assert_same, comparison
from helpers.counting import counted
from helpers.processor import HAS_AVX2
from helpers.values import values

pytestmark = pytest.mark.skipif(
    not HAS_AVX2 or sys.platform == "win32",
    reason="there is machine code for x86-64 with AVX2 only",
)

N = 1000


def compiled_by(function, *operands):
    """How many programs were compiled for the expression, which is right."""
    with counted() as counters:
        assert_same(lambda: function(*operands))
    return counters.compiled


@pytest.mark.parametrize("char", "dfilIL")
@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a * b + a,
        lambda a, b: (a - b) * (b - a) - a * 3,
        lambda a, b: 7 - np.square(a) * -b,
        lambda a, b: (a > b) & (a <= 3) | (b != 2),
        lambda a, b: np.where(a == b, a * 2, b - 1),
        lambda a, b: (a == b) * a + b,
        lambda a, b: np.ones(N, "?") & (a == b),
        lambda a, b: a.astype(np.int8) * b + a,
        lambda a, b: a.astype(np.uint8) * b + a,
        lambda a, b: a.astype(np.uint16) * b + a,
    ],
)
def test_what_is_compiled(char, function):
    a, b = (np.arange(i, i + N).astype(char) % 100 for i in (1, 3))
    unsigned = char in "IL"
    with np.errstate(all="ignore"):
        compiled = compiled_by(function, a, b)
    # Order among unsigned integers, and what is not a safe cast, is for NumPy's loops.
    assert compiled == 1 or unsigned


@pytest.mark.parametrize("char", "df")
@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: np.sqrt(a) / b - np.absolute(a),
        lambda a, b: 2 / (a / b),
        lambda a, b: np.maximum(a * 2, b) - np.minimum(3, a - b),
        lambda a, b: np.clip(a * b, 2, 50) + np.clip(a - b, 3, 1),
        lambda a, b: a.astype("i2") * b,
        lambda a, b: np.fabs(a + b) - np.absolute(a - b),
        lambda a, b: np.floor(a / 3) + np.ceil(b / 3) - np.trunc(a) * np.rint(a / b),
        lambda a, b: np.reciprocal(a * b),
        lambda a, b: np.where(np.isnan(a) | np.isinf(b) | ~np.isfinite(a), b, a),
    ],
)
def test_what_is_compiled_of_floats(char, function):
    a, b = (np.arange(i, i + N).astype(char) for i in (1, 3))
    assert compiled_by(lambda a, b: function(a, b) + a, a, b) == 1


@pytest.mark.parametrize("char", "ilIL")
@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: (a << 3) - (b >> 1) + (5 << a) * (50 >> b),
        lambda a, b: (~a & b) ^ (a | 5),
        lambda a, b: (a * b << (b >> a)) + 1,
    ],
)
def test_what_is_compiled_of_integers(char, function):
    a, b = (np.arange(i, i + N).astype(char) for i in (1, 3))
    assert compiled_by(function, a, b) == 1


@pytest.mark.parametrize("char", "il")
def test_absolute_integers(char):
    a, b = (np.arange(i, i + N).astype(char) for i in (1, 3))
    assert compiled_by(lambda a, b: np.absolute(a - b) + a, a, b) == 1


@pytest.mark.parametrize("char", "DF")
@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a * b + a,
        lambda a, b: (a - b) * (b * a) - a * (3 - 2j),
        lambda a, b: 7j - np.square(a) * -np.conjugate(b),
        lambda a, b: (a + b) * (a - b) * ((a * b) + (b * a)),
        lambda a, b: a * (a * (a * b - 1) + 2j) - 3,
    ],
)
def test_complex_numbers(char, function):
    rng = np.random.default_rng(5)
    a, b = (rng.normal(size=(2, N, 2)) @ (1, 1j)).astype(char)
    assert compiled_by(function, a, b) == 1


def test_conversions_to_double():
    a = values("d", N)
    with np.errstate(all="ignore"):
        for char in "fbBhHiIlq":
            assert compiled_by(lambda x: x * a + x, values(char, N, 2)) == 1, char


@pytest.mark.parametrize("every", [-7, -2, -1, 2, 3, 4])
@pytest.mark.parametrize("char", "dfil")
def test_strides(char, every):
    a, b = values(char, abs(every) * N, 1)[::every], values(char, N, 2)
    with np.errstate(all="ignore"):
        assert compiled_by(lambda: a * b - (b + a) * a) == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_strides_far_from_the_start(threads, num_threads):
    num_threads(threads)
    a = np.arange(3 * (500_000.0 + threads))[::-3]
    assert compiled_by(lambda: a * 2 + a) == 1


def test_more_arguments_than_registers():
    arrays = [np.arange(N) % (i + 3) + 0.5 for i in range(30)]

    def chain():
        result = arrays[0] * 1.5
        for i, x in enumerate(arrays[1:]):
            result = result * x if i % 2 else x - result
        return result

    with np.errstate(all="ignore"):
        assert compiled_by(chain) == 1


def test_once_it_is_worth_it():
    """A plan that is kept is compiled when it has run for so many elements."""
    previous = _deferred_set_code_worth(3 * 2 * N)
    a, counts = np.arange(N) / 7, []
    try:
        with np.deferredstate(True):
            for _ in range(5):
                with counted() as counters:
                    np.deferred.calculate(a * 1.25 - a)
                counts.append(counters.compiled)
            with counted() as counters:
                np.deferred.calculate((np.arange(3 * N) * 1.25) - np.arange(3 * N))
            counts.append(counters.compiled)
    finally:
        _deferred_set_code_worth(previous)
    assert counts == [0, 0, 1, 0, 0, 1]


@pytest.mark.parametrize("offset", [0, 8, 16, 32])
@pytest.mark.parametrize("threads", [1, 2])
def test_streaming(offset, threads, num_threads):
    """Results that do not fit the cache, at all alignments; lengths leave a rest."""
    num_threads(threads)
    n = 3_000_001
    memory = np.empty(8 * n + 128, "u1")
    start = -memory.ctypes.data % 64 + offset
    # Another array: the address of this one has been handed out.
    memory = np.frombuffer(bytearray(8 * n + 128), "u1")
    start = -memory.__array_interface__["data"][0] % 64 + offset
    out = memory[start : start + 8 * n].view("d")
    a, b = np.arange(n) / 3, np.arange(n) % 11 + 0.5
    with np.deferredstate(True):
        for last in (n, n - 1, n - 130):
            out[...] = -1
            np.add(a[:last] * b[:last], 1, out=out[:last])
            expected = np.empty(last)
            with np.deferredstate(False):
                np.add(a[:last] * b[:last], 1, out=expected)
                assert out[:last].tobytes() == expected.tobytes()
                assert (out[last:] == -1).all()


def test_nans_and_errors_are_seen():
    """In every vector of a tile, and in the one that comes twice."""
    a, b = np.ones(200), np.ones(200)
    with comparison() as compare, np.errstate(all="warn"):
        for i in range(200):
            a[i] = np.nan
            compare.same(f"NaN at {i}", lambda: (a * b - 3) * -a)
            compare.same(f"float NaN at {i}", lambda: a.astype("f") * 2 - 1)
            a[i], b[i] = 1, 0
            compare.same(f"0 at {i}", lambda: (a - 3) / b + a)
            b[i] = 1


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "NUMPY_DEFERRED_MIN_BYTES": "0", **environment},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


COUNT = """
    import numpy as np
    a = np.arange(200_000.0)
    with np.deferredstate(True):
        x = a * 2 + a
        assert x[3] == 9
    print(np.deferred.stats()["compiled"])
    """


def test_environment():
    assert run(COUNT)[:2] == (0, "1\n")
    assert run(COUNT, NUMPY_DEFERRED_MACHINE_CODE="1")[:2] == (0, "1\n")
    assert run(COUNT, NUMPY_DEFERRED_MACHINE_CODE="0")[:2] == (0, "0\n")
    status, _, stderr = run(COUNT, NUMPY_DEFERRED_MACHINE_CODE="no")
    assert status == 1
    assert "NUMPY_DEFERRED_MACHINE_CODE" in stderr


def test_processors_without_avx2():
    disabled = {"NPY_DISABLE_CPU_FEATURES": "X86_V4 X86_V3"}
    assert run(COUNT, **disabled)[:2] == (0, "0\n")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_systems_that_do_not_let_it_run():
    """What was written is never run there; the program is interpreted."""
    forbid = """
    import ctypes
    # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN
    if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0:
        print("unknown")
    """
    status, stdout, stderr = run(textwrap.dedent(forbid) + textwrap.dedent(COUNT))
    if stdout.startswith("unknown"):
        pytest.skip("Linux before 6.3 cannot forbid it")
    assert (status, stdout) == (0, "0\n"), stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_plans_give_their_pages_back():
    """Of 128 plans that are kept, each has one; others have been freed."""
    maps = Path("/proc/self/maps")
    before = maps.read_text().count("r-xp")
    with np.deferredstate(True):
        for n in range(1, 2000):
            np.deferred.calculate(np.ones(n) * 2 + 1)
    assert maps.read_text().count("r-xp") - before <= 128


LENGTHS = (1, 63, 64, 72, 100, 128, 136, 255, 256, 257, 1000, 1024, 4100, 20_000)


@pytest.mark.parametrize("char", "dfil")
@pytest.mark.parametrize("name", ["sum", "max", "min", "mean"])
@pytest.mark.parametrize("threads", [1, 2])
def test_reductions(char, name, threads, num_threads):
    """Programs that reduce what they do not store, along all axes."""
    num_threads(threads)
    with comparison() as compare, np.errstate(all="ignore"):
        for n in LENGTHS:
            a, b = (np.arange(i, i + 3 * n).astype(char) % 101 for i in (1, 7))
            for shape in ((3 * n,), (3, n), (n, 3)):
                x, y = a.reshape(shape) * 3, b.reshape(shape)
                for axis in range(len(shape)):
                    compare.same(
                        f"{shape} {axis}",
                        lambda x=x, y=y, k=axis: getattr((x - y) * x, name)(axis=k),
                    )
            s = a[::2]
            compare.same(f"strided {n}", lambda s=s: getattr(s * s - 3, name)())


#: Sums of one leaf, of some, and of more than one call of the code takes.
SUMMED = [*range(1, 290), 500, 511, 1003, 4100, 8191, 8192, 8200, 16_411, 70_003]


def inexact(shape, char, seed):
    """Numbers whose sum tells in which order they were added."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * 10.0 ** rng.integers(-3, 4, shape)).astype(char)


@pytest.mark.parametrize("char", "df")
@pytest.mark.parametrize("threads", [1, 2])
def test_sums_of_any_length(char, threads, num_threads):
    num_threads(threads)
    with comparison() as compare:
        for n in SUMMED:
            a, b = inexact((2, n), char, n)
            x, y = inexact((2, 5, n), char, n)
            column, scalar = x[:, :1].copy(), np.array([0.3], char)
            mixed = b.astype("f4")
            compare.same(f"{n}", lambda a=a, b=b: ((a - b) * a).sum())
            compare.same(f"{n} mixed", lambda a=a, b=mixed: (b - a).mean())
            compare.same(f"{n} reversed", lambda a=a, b=b: (a[::-1] * b).sum())
            compare.same(f"{n} less one", lambda a=a, s=scalar: ((a - s) * a).sum())
            compare.same(f"{n} rows", lambda x=x, y=y: (x * y).sum(axis=1))
            compare.same(
                f"{n} rows less one", lambda x=x, c=column: ((x - c) * x).sum(axis=1)
            )
            compare.same(
                f"{n} rows less a row",
                lambda x=x, a=a: ((x - a) * x).sum(axis=-1, keepdims=True),
            )
            z = np.stack([x, y])
            compare.same(
                f"{n} rows of more",
                lambda x=x, z=z: ((z - x) * z).sum(axis=(0, 2)),
            )
            compare.same(f"{n} variance", lambda x=x: x.var(axis=1))


def chain(arrays, every):
    """One expression of all, in which there is a product every so often."""
    result = arrays[0]
    for i, x in enumerate(arrays[1:]):
        result = result * x if i % every == 0 else x - result
    return result


ROWS = [*range(1, 72), 100, 127, 128, 129, 255, 260, 1000, 4100]


def rowed(char, n, seed):
    """Operands of 13 rows: whole, one column, one row, one element, with gaps."""
    a, b = (values(char, 13 * n, seed + i).reshape(13, n) for i in range(2))
    column, row = values(char, 13, seed + 2)[:, None], values(char, n, seed + 3)
    gaps = values(char, 13 * (n + 3), seed + 4).reshape(13, n + 3)[:, 1:-2]
    return a, b, column, row, values(char, 1, seed + 5), gaps


@pytest.mark.parametrize("char", "dfilIFD")
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_of_any_length(char, threads, num_threads):
    num_threads(threads)
    with comparison() as compare, np.errstate(all="ignore"):
        for n in ROWS:
            a, b, column, row, one, gaps = rowed(char, n, n)
            narrow = column.real.astype("i2")
            for name, function in {
                "column": lambda a=a, b=b, c=column: a * c - b,
                "row": lambda a=a, r=row: (a - r) * r + a,
                "outer": lambda c=column, r=row: c * r - (r + c) * 3,
                "one": lambda a=a, o=one, g=gaps: (a - o) * g + g,
                "gaps": lambda b=b, c=column, g=gaps: c * g + (b - g),
                "narrow": lambda a=a, i=narrow: a * i + i,
                "equal": lambda a=a, c=column, r=row: (a == c) | (a != r),
                "where": lambda a=a, c=column, r=row: np.where(a == r, c, a - c),
                "three": lambda a=a, b=b, c=column, r=row: (
                    np.stack([a, b]) * c + np.stack([b, a]) * r
                ),
            }.items():
                compare.same(f"{n} {name}", function)


@pytest.mark.parametrize("char", "dfi")
def test_rows_in_existing_memory(char):
    def written(write, n, part):
        memory = np.zeros((13, n + 5), char)
        write(memory[part])
        return memory

    with comparison() as compare, np.errstate(all="ignore"):
        for n in ROWS:
            a, b, column, row, _, gaps = rowed(char, n, n)
            for part in (np.s_[:, 2:-3], np.s_[:, 5:], np.s_[::-1, :-5]):

                def assign(out, a=a, b=b, column=column):
                    out[...] = a * column - b

                def call(out, row=row, gaps=gaps):
                    np.add(gaps * row, row, out=out)

                for write in (assign, call):
                    compare.same(
                        f"{n} {part} {write.__name__}", written, write, n, part
                    )


@pytest.mark.parametrize("char", "df")
def test_rows_with_more_arguments_than_registers(char):
    """Of elements that are repeated, too."""
    arrays = [
        inexact((7, 33) if i % 3 == 0 else (7, 1) if i % 3 == 1 else 33, char, i)
        for i in range(29)
    ]

    with comparison() as compare:
        for n in (5, 14, 29):
            compare.same(f"{n}", lambda n=n: chain(arrays[:n], 4))
            compare.same(f"{n} sum", lambda n=n: chain(arrays[:n], 4).sum(axis=1))
            compare.same(f"{n} joined", lambda n=n: chain(arrays[:n], 4).sum(axis=0))
            compare.same(f"{n} largest", lambda n=n: chain(arrays[:n], 4).max(axis=0))


@pytest.mark.parametrize("char", "df")
@pytest.mark.parametrize("n", [4, 9, 31, 64, 200])
@pytest.mark.parametrize("state", ["ignore", "warn", "raise"])
def test_nans_and_errors_amid_rows(char, n, state):
    a, b, column, row, _, _ = rowed(char, n, n)
    with comparison() as compare, np.errstate(all=state):
        compare.same("stored", lambda: a * column - row / b)
        compare.same("sums", lambda: (a * row).sum(axis=1))
        compare.same("joined", lambda: (a * column).sum(axis=0))
        compare.same("largest", lambda: (a * column).max(axis=0))
        compare.same("smallest", lambda: (a * row).min(axis=0))


@pytest.mark.parametrize("char", "df")
@pytest.mark.parametrize("special", [0.0, -0.0, np.nan, -np.nan, np.inf])
def test_extremes_of_special_values(char, special):
    """In any row, beside any others: zeros of two signs, and NaNs, are left alone."""
    with comparison() as compare, np.errstate(all="ignore"):
        for n, row, other in itertools.product(
            (8, 33, 600), (0, 1, 5), (1.0, 0.0, -0.0)
        ):
            a = np.full((6, n), other, char)
            a[row, n // 2 :: 3] = special
            for sign, name in itertools.product((1, -1), ("max", "min")):
                compare.same(
                    f"{n} {row} {other} {sign} {name}",
                    lambda a=a, s=sign, name=name: getattr(a * a[:, :1] * s, name)(
                        axis=0
                    ),
                )


@pytest.mark.parametrize("char", "dfilI")
def test_one_plan_reduced_in_all_ways(char):
    a, b = (inexact((40, 70), char, i) for i in range(2))
    ways = ["sum", "max", "min", "prod", "mean", "var", "ptp", "any", "argmax"]
    with comparison() as compare, np.errstate(all="ignore"):
        for axis, name in itertools.product([None, 0, 1, (0, 1)], ways):
            if name != "argmax" or not isinstance(axis, tuple):
                compare.same(
                    f"{axis} {name}",
                    lambda k=axis, name=name: getattr(np, name)((a - b) * a, axis=k),
                )


@pytest.mark.parametrize("char", "dfilI")
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_that_are_joined(char, threads, num_threads):
    num_threads(threads)
    with comparison() as compare, np.errstate(all="ignore"):
        for n in ROWS:
            x, y = (inexact((11, n), char, n + i) for i in range(2))
            z = inexact((3, 11, n), char, n)
            column, row = y[:, :1].copy(), y[0].copy()
            compare.same(f"{n}", lambda x=x, y=y: (x * y).sum(axis=0))
            compare.same(f"{n} column", lambda x=x, c=column: (x - c).mean(axis=0))
            compare.same(f"{n} row", lambda x=x, r=row: ((x - r) * x).sum(axis=0))
            compare.same(
                f"{n} first axes", lambda z=z, x=x: (z * x).sum(axis=(0, 1), initial=1)
            )
            compare.same(
                f"{n} second axis",
                lambda z=z, r=row: (z - r).sum(axis=1, keepdims=True),
            )
            compare.same(f"{n} variance", lambda x=x: x.var(axis=0))
            compare.same(f"{n} largest", lambda x=x, y=y: (x * y).max(axis=0))
            compare.same(f"{n} smallest", lambda x=x, c=column: (x - c).min(axis=0))
            compare.same(
                f"{n} range", lambda z=z, r=row: np.ptp(z - r, axis=1, keepdims=True)
            )


@pytest.mark.parametrize("char", "df")
def test_joined_rows_are_shared(char, num_threads):
    """Each thread has some of the columns."""
    num_threads(2)
    x, column, row = (
        inexact(shape, char, 1) for shape in ((60, 3001), (60, 1), (3001,))
    )
    with comparison() as compare:
        compare.same("direct", lambda: (x * x).sum(axis=0))
        compare.same("column", lambda: (x * column).sum(axis=0))
        compare.same("row", lambda: ((x - row) * x).sum(axis=0))
        compare.same("range", lambda: np.ptp(x * column, axis=0))
        compare.same("sums", lambda: ((x - row) * column).sum(axis=1))


@pytest.mark.parametrize("char", "df")
def test_sums_with_more_arguments_than_registers(char):
    arrays = [inexact((3, 333), char, i) for i in range(14)]

    with comparison() as compare:
        compare.same("all", lambda: chain(arrays, 3).sum())
        compare.same("rows", lambda: chain(arrays, 3).sum(axis=1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.0])
@pytest.mark.parametrize("char", "df")
def test_special_values_amid_rows_that_are_summed(char, value):
    with comparison() as compare, np.errstate(all="warn"):
        for n in (8, 13, 100, 130, 257):
            x = inexact((6, n), char, n)
            for i in (0, 1, n // 2, n - 1):
                x[3, i] = value
                compare.same(f"{n} {i}", lambda x=x: (x * x - x).sum(axis=1))
                compare.same(f"{n} {i} all", lambda x=x: (x * x - x).sum())
            x[:] = value
            compare.same(f"{n} only", lambda x=x: (x * 1).sum(axis=1, initial=-0.0))


def test_reductions_are_compiled():
    a = np.arange(5001.0)
    assert compiled_by(lambda: (a * a - 3).sum()) == 2
    assert compiled_by(lambda: (a * a - 3).sum()) == 0
    assert compiled_by(lambda: (a * a - 3).max()) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.0])
@pytest.mark.parametrize("char", "df")
def test_special_values_amid_reductions(char, value):
    a = np.ones(2000, char)
    with comparison() as compare, np.errstate(all="warn"):
        for i in (0, 7, 8, 100, 1023, 1999):
            a[i] = value
            compare.same(f"sum {i}", lambda: ((a - 3) * a).sum())
            compare.same(f"max {i}", lambda: np.abs(a * 1).max())
            compare.same(f"zeros {i}", lambda: (a * value - a * value).sum())
            a[i] = 1
        zeros = np.zeros(2000, char)
        compare.same("zeros", lambda: (-zeros * 1).sum(initial=-0.0))


def test_one_expression_reduced_in_turns():
    """The plan is the same, what its program ends with is not."""
    a = np.arange(5000.0)
    for name in ("sum", "max", "prod", "min", "sum", "any", "max"):
        with np.errstate(all="ignore"):
            assert_same(lambda name=name: getattr(a * 0.5 - 1, name)())
    for worth in (2**63 - 1, 0):
        previous = _deferred_set_code_worth(worth)
        try:
            for name in ("max", "sum", "min"):
                assert_same(lambda name=name: getattr(a * 0.5 - 1, name)())
        finally:
            _deferred_set_code_worth(previous)
