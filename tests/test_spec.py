"""The examples of the documents that this project implements, line by line."""

import numpy as np
import pytest

from helpers.compare import assert_same, bits
from helpers.counting import counted


def operands(n, count):
    with np.deferredstate(False):
        return [np.arange(n, dtype=float) + i for i in range(count)]


@pytest.mark.filterwarnings("default")  # with "error", nothing is fused into out
class TestNEP:
    """NEP 11, "Example Python Code"."""

    def test_first_example(self):
        a, b, c = operands(1000, 3)
        with np.deferredstate(True):
            d = a + b + c
            assert d.flags.deferred
            assert all(x.flags.deferred_waswriteable for x in (a, b, c))

            text = str(d)
            assert not d.flags.deferred
            assert text == str(a.copy() + b.copy() + c.copy())
            assert not any(x.flags.deferred_waswriteable for x in (a, b, c))

            with counted() as counters:
                d[:] = a * b * c
            assert counters.fused == 1
            assert counters.calculated == 0
            assert d.tolist() == [x * (x + 1) * (x + 2) for x in a.tolist()]

            e = a + b + c * d
            assert e.flags.deferred
            assert all(x.flags.deferred_waswriteable for x in (a, b, c, d))

            before = d.tolist()
            with counted() as counters:
                d[:] = a
            assert counters.flushed == 1
            assert not e.flags.deferred
            assert bits(d) == bits(a)
        assert e.tolist() == [
            x + (x + 1) + (x + 2) * y for x, y in zip(a.tolist(), before, strict=True)
        ]

    def test_surprising_behaviour(self):
        a, b, c, e, f, g = operands(1000, 6)
        with np.deferredstate(True):
            d = a + b + c
            e[:] = d
            assert d.flags.deferred
            f[:] = d
            g[:] = d
            assert not d.flags.deferred
        assert bits(e) == bits(f) == bits(g) == bits(d)

    def test_recommended_use(self):
        a, b = operands(1000, 2)
        with np.deferredstate(True):
            x = np.sqrt(a * a + b * b) / (a + b)
        assert (a + b).flags.deferred is False
        assert x.flags.deferred
        x.sum()
        assert not x.flags.deferred

    def test_returns_the_previous_state(self):
        assert np.setdeferred(True) is None
        assert np.setdeferred(None) is True


class TestProposal:
    """The proposal of 2006."""

    def test_two_products(self):
        def products():
            b = c = d = e = np.arange(100000.0)
            return b * c + d * e

        assert_same(products)


class TestTheNumPyArray:
    """The NumPy array: a structure for efficient numerical computation, 2011."""

    def test_functions(self):
        def f(x):
            return x**2 - 3 * x + 4

        def g(x):
            fx = x**2
            fx -= 3 * x
            fx += 4
            return fx

        x = np.arange(1e5)
        assert_same(lambda: (f(x), g(x)))
        with np.deferredstate(True):
            assert bits(f(x)) == bits(g(x))

    def test_finite_differences(self):
        def differences():
            x = np.arange(0, 10, 2)
            y = x**2
            return (
                (y[1:] - y[:-1]) / (x[1:] - x[:-1]),
                (y[2:] - y[:-2]) / (x[2:] - x[:-2]),
            )

        outcome = assert_same(differences)
        assert np.frombuffer(outcome.results[0].bits).tolist() == [2, 6, 10, 14]

    @pytest.mark.parametrize("axes", [np.mgrid, np.ogrid], ids=["mgrid", "ogrid"])
    def test_grid(self, axes):
        def grid():
            i, j, k = axes[-20:20, -20:20, -20:20]
            return np.sqrt(i**2 + j**2 + k**2)

        assert_same(grid)

    def test_projection(self):
        def project():
            points = np.random.default_rng(3).random((1000, 3))
            camera = np.array(
                [[500.0, 0.0, 320.0], [0.0, 500.0, 240.0], [0.0, 0.0, 1.0]]
            )
            vecs = camera.dot(points.T).T
            return vecs / vecs[:, 2, np.newaxis]

        assert_same(project)

    def test_memory_map(self, tmp_path):
        def write_and_read():
            a = np.memmap(tmp_path / "array", int, "w+", shape=(30, 30))
            a.flat = np.arange(30 * 30)
            a.flush()
            b = np.memmap(tmp_path / "array", int, "r+", shape=(30, 30))
            b[10, :] *= 2
            b.flush()
            return np.array(a)

        assert_same(write_and_read)

    def test_mutable_string(self):
        """Foreign memory that is changed behind NumPy's back."""
        import ctypes

        class MutableString:
            def __init__(self, s):
                self._s = ctypes.create_string_buffer(s)
                self.__array_interface__ = {
                    "shape": (len(s),),
                    "typestr": "|u1",
                    "data": (ctypes.addressof(self._s), False),
                }

        with np.deferredstate(True):
            m = MutableString(b"abcde")
            am = np.array(m, copy=False)
            x = am + 1
            am += 2
            assert m._s.value == b"cdefg"
            assert bytes(x) == b"bcdef"

    def test_structured_array(self):
        def select():
            dt = np.dtype([("time", np.uint64), ("pos", [("x", float), ("y", float)])])
            x = np.array([(1, (0, 0.5)), (2, (0, 10.3)), (3, (5.5, 1.1))], dtype=dt)
            times = x["time"] >= 2
            y = x["pos"]["x"] * 2 + x["pos"]["y"]
            x["pos"]["x"] += 1
            return x[times]["pos"]["x"], y

        assert_same(select)


@pytest.mark.filterwarnings("default")  # with "error", nothing is fused into out
class TestTemporaries:
    """A question on temporaries in `a += b * i`."""

    def test_loop(self):
        def loop():
            a = np.zeros((3, 3))
            b = np.ones((3, 3))
            for i in range(1000):
                a += b * i
            return a

        assert_same(loop)
        with np.deferredstate(True), counted() as counters:
            loop()
        assert counters.fused == 1000
        assert counters.calculated == 0
