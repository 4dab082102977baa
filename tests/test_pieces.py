"""
Reductions of what one tile program calculates, piece by piece in the cache.

The oracle is eager NumPy.  Lengths are around what sums, tiles, pieces and buffers
divide by.
"""

import os
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest

from helpers.compare import assert_same, comparison
from helpers.counting import counted

LENGTHS = [1, 5, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 129, 136, 255, 257]
LENGTHS += [511, 512, 513, 519, 520, 1000, 1023, 1024, 1025, 1031, 2047, 2049]
LENGTHS += [4097, 8191, 8193, 20_003, 70_001]
SHAPES = [(3, 5), (7, 100), (100, 7), (65, 130), (2, 1025), (1025, 2), (33, 7, 70)]
SHAPES += [(5, 700), (3, 2500)]
FLOAT_UFUNCS = [np.add, np.multiply, np.maximum, np.minimum, np.fmax, np.fmin]
INTEGER_UFUNCS = [np.add, np.multiply, np.maximum, np.minimum, np.bitwise_xor]


def square(x, y):
    return np.square(x - y)


def distance(x, y):
    return np.absolute(x - y)


def product(x, y):
    """A single operation."""
    return x * y


def less(x, y):
    """Booleans, which are cast to be added up."""
    return (x + y) < 1


def nothing_but_constants(x, y):
    return 3 - x * 2


FLOAT_FUNCTIONS = [square, distance, product, less, nothing_but_constants]
INTEGER_FUNCTIONS = [square, product, less, nothing_but_constants]
LOOPS = [
    pytest.param(
        ufunc, function, char, id=f"{ufunc.__name__}-{function.__name__}-{char}"
    )
    for char in "dfliLI"
    for ufunc in (FLOAT_UFUNCS if char in "df" else INTEGER_UFUNCS)
    for function in (FLOAT_FUNCTIONS if char in "df" else INTEGER_FUNCTIONS)
]


def ordinary(char, shape, seed, offset=0):
    """Values that are nothing special, `offset` elements from where memory begins."""
    rng = np.random.default_rng(seed)
    n = int(np.prod(shape))
    x = rng.standard_normal(n + offset) * 3 if char in "df" else rng.integers(1, 9, n)
    x = np.concatenate([np.zeros(offset), x[:n]]).astype(char)
    return x[offset:].reshape(shape)


def reduced(ufunc, function, x, y, axis=None):
    return ufunc.reduce(function(x, y), axis=axis)


@pytest.mark.parametrize(("ufunc", "function", "char"), LOOPS)
class TestBits:
    def test_lengths(self, ufunc, function, char):
        fused = 0
        with comparison() as compared, np.errstate(all="ignore"):
            for n in LENGTHS:
                for offset in (0, 1, 3):
                    x, y = ordinary(char, (n,), 1, offset), ordinary(char, (n,), 2)
                    with counted() as counters:
                        compared.same(f"{n}, {offset}", reduced, ufunc, function, x, y)
                    fused += counters.reduced
        # What is not, a product of many, is for eager NumPy.
        assert fused > 30

    def test_axes(self, ufunc, function, char):
        with comparison() as compared, np.errstate(all="ignore"):
            for shape in SHAPES:
                x, y = ordinary(char, shape, 1), ordinary(char, shape, 2)
                for axis in (None, *range(len(shape))):
                    for other in (y, y[..., :1], y[0], y[:1]):
                        name = f"{shape}, {axis}, {other.shape}"
                        compared.same(name, reduced, ufunc, function, x, other, axis)

    def test_casts(self, ufunc, function, char):
        """Sums of what is cast are divided by buffers."""
        if ufunc is np.bitwise_xor:
            ufunc = np.logical_xor

        def cast(x, y, to):
            return ufunc.reduce(function(x, y), dtype=to, initial=1)

        with comparison() as compared, np.errstate(all="ignore"):
            for n in (100, 1025, 8191, 8193, 20_003):
                x, y = ordinary(char, (n,), 1), ordinary(char, (n,), 2)
                for to in "?dg":
                    compared.same(f"{n}, {to}", cast, x, y, to)


@pytest.mark.parametrize("function", FLOAT_FUNCTIONS)
@pytest.mark.parametrize("ufunc", FLOAT_UFUNCS)
@pytest.mark.parametrize("value", [np.nan, -np.nan, 0.0, -0.0, np.inf, -np.inf, 5e-324])
def test_special_elements(ufunc, function, value):
    """At the start, in the middle, at the end; together with others of their kind."""
    with comparison() as compared, np.errstate(all="ignore"):
        for char in "df":
            for n in (3, 65, 1000, 4096, 9001, 40_003):
                for scale in (1, 0, -1):
                    usual = np.abs(ordinary(char, (n,), 1)) * scale
                    y = np.zeros(n, char)
                    y[n // 3] = -value
                    for at in ([0], [n - 1], [n // 2], [0, n - 1], range(n)):
                        x = usual.copy()
                        x[at] = value
                        name = f"{char}, {n}, {scale}, {at}"
                        compared.same(name, reduced, ufunc, function, x, y)
                        grid = x[: n // 3 * 3].reshape(-1, 3)
                        for axis in (0, 1):
                            args = grid, grid[0], axis
                            compared.same(
                                f"{name}, {axis}", reduced, ufunc, function, *args
                            )


def test_nans_are_left_out(rng):
    """They are for NumPy's own loops, which go on."""
    x = rng.standard_normal(50_000)
    x[::7] = np.nan
    with counted() as counters:
        assert_same(lambda: np.fmax.reduce(np.abs(x - 1)))
        assert_same(lambda: np.fmin.reduce(np.abs(x - 1)))
    assert counters.reduced == 2


@pytest.mark.parametrize("char", "df")
@pytest.mark.parametrize("ufunc", [np.maximum, np.minimum, np.fmax, np.fmin])
@pytest.mark.parametrize("threads", [1, 3])
def test_one_special_element_amid(ufunc, char, threads, num_threads):
    """Zeros of both signs or a NaN, in whole tiles only, and not where these begin."""
    num_threads(threads)
    sign = -1 if ufunc in (np.maximum, np.fmax) else 1
    with comparison() as compared, np.errstate(all="ignore"):
        for n in (4096, 16384, 131_072, 200_000):
            usual = sign * (1 + np.abs(ordinary(char, (n,), 1)))
            for first, second in ((0.0, -0.0), (-0.0, 0.0), (0.0, 0.0), (np.nan, 0.0)):
                for i, j in ((5, 70), (70, 5), (n // 2, n - 9), (n - 9, n // 2)):
                    x = usual.copy()
                    x[i], x[j] = first, second
                    name = f"{n}, {first} at {i}, {second} at {j}"
                    compared.same(name, lambda x=x: ufunc.reduce(x * 2))
                    compared.same(f"{name} -", lambda x=x: ufunc.reduce(-x))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("state", ["warn", "raise", "ignore", "call"])
@pytest.mark.parametrize("at", [0, 40_000, 199_999])
class TestErrors:
    """Whose they are is found by doing it again."""

    @pytest.fixture(autouse=True)
    def in_threads(self, threads, num_threads):
        num_threads(threads)

    def check(self, state, call):
        seen = []
        for deferred in (False, True):
            told = []

            def tell(*what, told=told):
                told.append(what)

            with (
                np.deferredstate(deferred),
                np.errstate(all=state, call=tell),
                warnings.catch_warnings(record=True) as raised,
            ):
                warnings.simplefilter("always")
                try:
                    result = np.asarray(call()).tobytes()
                except FloatingPointError as error:
                    result = str(error)
            seen.append((result, told, [str(one.message) for one in raised]))
        assert seen[0] == seen[1]
        return seen[0]

    def test_of_the_expression(self, state, at):
        x = np.ones(200_000)
        x[at] = 1e200
        self.check(state, lambda: np.add.reduce(np.square(x - 0.5)))
        self.check(state, lambda: np.maximum.reduce(np.square(x - 0.5)))

    def test_of_the_reduction(self, state, at):
        x = np.ones(200_000)
        x[at] = x[at // 2] = x[at - 1] = 1.5e308
        self.check(state, lambda: np.add.reduce(np.absolute(x * 1)))

    def test_of_both(self, state, at):
        x = np.ones((200, 1000))
        x.ravel()[at] = 1e200
        x[:2, 3] = 1.2e154
        _, told, raised = self.check(
            state, lambda: np.add.reduce(np.square(x - 0.5), axis=0)
        )
        assert (len(told) + len(raised) > 0) == (state in ("warn", "call"))

    def test_that_nobody_wants_to_know_of(self, state, at):
        x = np.full((200, 1000), 1e-200)
        x.ravel()[at] = 1
        with np.errstate(under="ignore"), counted() as counters:
            assert_same(lambda: np.add.reduce(np.square(x - 1e-201), axis=1))
        assert counters.reduced == 1


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("char", "dfl")
def test_threads(threads, char, num_threads):
    num_threads(threads)
    with comparison() as compared, np.errstate(all="ignore"), counted() as counters:
        for shape in [(300_007,), (15, 20_011), (5003, 60), (3, 40_000, 3)]:
            x, y = ordinary(char, shape, 1), ordinary(char, shape, 2)
            for axis in (None, *range(len(shape))):
                for ufunc in (np.add, np.maximum):
                    for other in (y, y[..., :1]):
                        name = f"{shape}, {axis}, {ufunc.__name__}, {other.shape}"
                        args = ufunc, square, x, other, axis
                        compared.same(name, reduced, *args)
    assert counters.reduced > 0


@pytest.mark.parametrize("disabled", ["X86_V4", "X86_V4 X86_V3"])
def test_other_instruction_sets(disabled):
    """The same tests, on what older processors have."""
    code = """
    import sys
    import numpy as np
    import pytest
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
    """
    chosen = "(lengths or axes or special or left_out) and not other_instruction_sets"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), __file__, "-k", chosen, "-n0"],
        env={**os.environ, "NPY_DISABLE_CPU_FEATURES": disabled},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "passed" in done.stdout
