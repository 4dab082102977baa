"""The examples of the documents that this project implements, line by line."""

import ctypes
import tracemalloc

import numpy as np
import pytest

from helpers.compare import assert_same, bits
from helpers.counting import counted
from helpers.process import output_of


def same(call):
    """Assert that a call succeeds, with the same outcome without and with deferral."""
    outcome = assert_same(call)
    assert outcome.error is None, outcome.error
    return outcome


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
        """Evaluated straight into e; the second time d becomes regular."""
        a, b, c, e, f, g = operands(1000, 6)
        with np.deferredstate(True):
            d = a + b + c
            with counted() as counters:
                e[:] = d
            assert d.flags.deferred
            assert (counters.fused, counters.calculated) == (1, 0)
            with counted() as counters:
                f[:] = d
            assert not d.flags.deferred
            assert (counters.fused, counters.calculated) == (0, 1)
            with counted() as counters:
                g[:] = d
            assert (counters.fused, counters.calculated) == (0, 0)
        assert bits(e) == bits(f) == bits(g) == bits(d)

    def test_recommended_use(self):
        a, b = operands(1000, 2)
        with np.deferredstate(True):
            x = np.sqrt(a * a + b * b) / (a + b)
        assert (a + b).flags.deferred is False
        assert x.flags.deferred
        x[0]
        assert not x.flags.deferred

    def test_returns_the_previous_state(self):
        assert np.setdeferred(True) is None
        assert np.setdeferred(None) is True

    def test_initial_state(self):
        """ "At NumPy initialization, the deferred state is None." """
        assert output_of("import numpy; print(numpy.getdeferred())") == "None"

    def test_an_ndarray_without_its_buffer(self):
        a, b, c = operands(1_000_000, 3)
        tracemalloc.start()
        try:
            with np.deferredstate(True):
                d = a + b + c
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert type(d) is np.ndarray
        assert d.nbytes == 8_000_000
        assert peak < 100_000

    def test_assignment_needs_no_temporary(self):
        """ "No temporary arrays are needed whatsoever", whatever the length."""
        a, b, c, d = operands(1_000_000, 4)
        with np.deferredstate(True):
            d[:] = a * b * c
            tracemalloc.start()
            try:
                d[:] = a * b * c
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        assert peak < 1_000_000

    def test_waswriteable(self):
        """Set while it is an operand; calculating everything gives WRITEABLE back."""
        a, b = operands(10, 2)
        b.flags.writeable = False
        with np.deferredstate(True):
            assert not a.flags.deferred_waswriteable
            d = a + b
            assert np.deferred.usage_count(a) == 1
            assert a.flags.deferred_waswriteable
            assert not b.flags.deferred_waswriteable
        np.deferred.calculate_all()
        assert not d.flags.deferred
        for array, writeable in (a, True), (b, False):
            assert np.deferred.usage_count(array) == 0
            assert not array.flags.deferred_waswriteable
            assert array.flags.writeable is writeable
        a[0] = 7.0
        assert d[0] == 1.0

    def test_only_the_first_use_sees_what_was_writeable(self):
        a, b = operands(10, 2)
        with np.deferredstate(True):
            d, e = a + b, a * b
            assert np.deferred.usage_count(a) == 2
            np.deferred.calculate(d)
            assert np.deferred.usage_count(a) == 1
            assert a.flags.deferred_waswriteable
            del e
        assert not a.flags.deferred_waswriteable
        assert a.flags.writeable

    def test_usage_count_falls_when_destroyed(self):
        a, b = operands(10, 2)
        with np.deferredstate(True):
            d = a + b
            e = d * a
        assert [np.deferred.usage_count(x) for x in (a, b, d)] == [2, 1, 1]
        with counted() as counters:
            del e
        assert [np.deferred.usage_count(x) for x in (a, b, d)] == [1, 1, 0]
        del d
        assert [np.deferred.usage_count(x) for x in (a, b)] == [0, 0]
        assert (counters.calculated, counters.released) == (0, 1)

    def test_newest_first(self):
        """Inner arrays that only the newest needs "never have to be calculated"."""
        a, b = operands(10, 2)
        with np.deferredstate(True):
            d = a + b
            e = d * a
            f = e - b
            del d, e
        with counted() as counters:
            np.deferred.calculate_all()
        assert (counters.calculated, counters.released) == (1, 2)
        assert f.tolist() == [(x + x + 1) * x - (x + 1) for x in range(10)]

    def test_changing_the_error_state_calculates_first(self):
        """Errors are those of the state in which the operation was written."""
        a, b = operands(10, 2)
        before = np.seterr(all="ignore")
        try:
            d = b / a
            assert d.flags.deferred
            np.seterr(all="raise")
            assert not d.flags.deferred
            with pytest.raises(FloatingPointError):
                b / a
        finally:
            np.seterr(**before)
        assert d[0] == np.inf

    def test_none_is_safe(self):
        """Deferred "only when the error state is set to ignore all"."""
        a, b = operands(10, 2)
        with np.deferredstate(None):
            with np.errstate(all="ignore"):
                d = a * b
            with np.errstate(all="raise"):
                e = a * b
        assert not e.flags.deferred
        with np.deferredstate(False), np.errstate(all="ignore"):
            assert not (a * b).flags.deferred
        with np.deferredstate(True), np.errstate(all="raise"):
            f = a * b
            assert f.flags.deferred
            del f
        assert bits(d) == bits(e)


class TestProposal:
    """The proposal of 2006."""

    def test_begin_and_end(self):
        b, c, d, e = operands(1000, 4)
        expected = (b * c + d * e).tolist()
        np.begin_defer()
        with counted() as counters:
            a = b * c + d * e
        assert counters.captured == 3
        assert a.flags.deferred
        assert [np.deferred.usage_count(x) for x in (b, c, d, e)] == [1, 1, 1, 1]
        np.end_defer()
        assert not a.flags.deferred
        assert np.getdeferred() is None
        assert a.tolist() == expected

    def test_deferral(self):
        b, c, d, e = operands(1000, 4)
        with np.deferral():
            a = b * c + d * e
            assert a.flags.deferred
        with counted() as counters:
            assert a.tolist() == (b * c + d * e).tolist()
        assert counters.calculated == 0

    def test_both_timed_programs(self):
        """The second is the first with one temporary array less, by hand."""

        def expression():
            b = c = d = e = np.arange(100000.0)
            return b * c + d * e

        def by_hand():
            b = c = d = e = np.arange(100000.0)
            temp = np.zeros([100000], dtype=float)
            a = b * c
            np.multiply(d, e, temp)
            a += temp
            return a

        assert same(expression) == same(by_hand)


class TestTheNumPyArray:
    """
    The NumPy array: a structure for efficient numerical computation, 2011.

    What the article prints is asserted; it has three misprints.
    """

    def test_view_on_memory(self):
        def views():
            x = np.arange(9).reshape((3, 3))
            assert x.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
            assert x.strides == (24, 8)
            doubled = x * 2
            y = x[::2, ::2]
            assert y.tolist() == [[0, 2], [6, 8]]
            assert y.strides == (48, 16)
            y[0, 0] = 100
            assert x.tolist() == [[100, 1, 2], [3, 4, 5], [6, 7, 8]]
            tripled = x * 3
            xT = x.T
            assert xT.tolist() == [[100, 3, 6], [1, 4, 7], [2, 5, 8]]
            assert xT.strides == (8, 24)
            z = x.reshape((1, 9))
            assert z.tolist() == [[100, 1, 2, 3, 4, 5, 6, 7, 8]]
            assert z.strides == (72, 8)
            z.dtype = np.dtype("uint8")
            assert z.shape == (1, 72)
            assert z.strides == (72, 1)
            assert z[0, :3].tolist() == [100, 0, 0]
            return doubled, tripled, xT + 1, z + np.uint8(1)

        same(views)

    def test_numerical_operations(self):
        def operations():
            a = np.array([1, 3, 5])
            b = 3 * a
            m = np.arange(6).reshape((2, 3))
            results = b - a, b + m, b
            texts = [repr(result) for result in results]
            assert texts[0] == "array([ 2,  6, 10])"
            assert texts[1] == "array([[ 3, 10, 17],\n       [ 6, 13, 20]])"
            assert texts[2] == "array([ 3,  9, 15])"
            return results

        same(operations)

    def test_broadcasting_rules(self):
        def broadcast():
            x, y = np.ones((2, 4, 3)), np.arange(4.0).reshape(4, 1)
            z = x + y
            assert z.shape == (2, 4, 3)
            with pytest.raises(ValueError, match="could not be broadcast"):
                x + np.ones((4, 2))
            return z

        same(broadcast)

    def test_functions(self):
        def f(x):
            return x**2 - 3 * x + 4

        def translated(x):
            a = x**2
            b = 3 * x
            c = a - b
            fx = c + 4
            return fx  # noqa: RET504

        def g(x):
            fx = x**2
            fx -= 3 * x
            fx += 4
            return fx

        x = np.arange(1e5)
        outcome = same(lambda: (f(x), translated(x), g(x)))
        assert len({result.bits for result in outcome.results}) == 1
        with np.deferredstate(True):
            y = f(x)
            assert y.flags.deferred
            assert bits(y) == bits(translated(x)) == bits(g(x))
            with np.printoptions(precision=4, formatter={"float": "{:.4e}".format}):
                text = repr(f(x))
        assert " ".join(text.replace("e+0", "e+").split()) == (
            "array([4.0000e+0, 2.0000e+0, 2.0000e+0, ..., "
            "9.9991e+9, 9.9993e+9, 9.9995e+9], shape=(100000,))"
        )
        assert x[:6].tolist() == list(range(6))
        assert y[:6].tolist() == [f(i) for i in range(6)]

    def test_finite_differences(self):
        def differences():
            x = np.arange(0, 10, 2)
            y = x**2
            return (
                y,
                (y[1:] - y[:-1]) / (x[1:] - x[:-1]),
                (y[2:] - y[:-2]) / (x[2:] - x[:-2]),
            )

        outcome = same(differences)
        y, forward, central = (r.bits for r in outcome.results)
        assert np.frombuffer(y, int).tolist() == [0, 4, 16, 36, 64]
        assert np.frombuffer(forward).tolist() == [2, 6, 10, 14]
        assert np.frombuffer(central).tolist() == [4, 8, 12]

    def test_grid(self):
        def dense():
            i, j, k = np.mgrid[-20:20, -20:20, -20:20]
            assert i.shape == j.shape == k.shape == (40, 40, 40)
            return np.sqrt(i**2 + j**2 + k**2)

        def broadcast():
            i, j, k = np.ogrid[-20:20, -20:20, -20:20]
            assert (i.shape, j.shape, k.shape) == ((40, 1, 1), (1, 40, 1), (1, 1, 40))
            return np.sqrt(i**2 + j**2 + k**2)

        def reshaped():
            i = np.arange(-20, 20).reshape(40, 1, 1)
            j = np.reshape(i, (1, 40, 1))
            k = np.reshape(i, (1, 1, 40))
            return np.sqrt(i**2 + j**2 + k**2)

        outcomes = [same(grid) for grid in (dense, broadcast, reshaped)]
        assert outcomes[0].results == outcomes[1].results == outcomes[2].results
        R = np.frombuffer(outcomes[0].results[0].bits).reshape(40, 40, 40)
        loop = [
            [[np.sqrt(float(i * i + j * j + k * k)) for k in range(-20, 20)]
             for j in range(-20, 20)]
            for i in range(-20, 20)
        ]  # fmt: skip
        assert R.tolist() == loop

    def test_grid_allocates_the_result_alone(self):
        with np.deferredstate(True):
            i, j, k = np.ogrid[-100:100, -100:100, -100:100]
            R = np.sqrt(i**2 + j**2 + k**2)
            assert R.shape == (200, 200, 200)
            tracemalloc.start()
            try:
                np.deferred.calculate(R)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        assert R[100, 100, 100] == 0
        assert R[0, 0, 0] == np.sqrt(30000.0)
        assert peak < 1.05 * R.nbytes

    def test_projection(self):
        def project():
            points = np.random.default_rng(3).random((1000, 3))
            camera = np.array(
                [[500.0, 0.0, 320.0], [0.0, 500.0, 240.0], [0.0, 0.0, 1.0]]
            )
            vecs = camera.dot(points.T).T
            pixel_coords = vecs / vecs[:, 2, np.newaxis]
            assert bool((pixel_coords[:, 2] == 1).all())
            return pixel_coords

        same(project)

    def test_memory_map(self, tmp_path):
        def write_and_read():
            a = np.memmap(tmp_path / "array", int, "w+", shape=(30, 30))
            a.flat = np.arange(30 * 30)
            a.flush()
            b = np.memmap(tmp_path / "array", int, "r+", shape=(30, 30))
            before, after = b[10] * 3, None
            b[10, :] *= 2
            b.flush()
            after = np.fromfile(tmp_path / "array", int).reshape(30, 30)
            assert after[9:12, 0].tolist() == [270, 600, 330]
            return np.array(a), np.array(before), after + a

        same(write_and_read)

    def test_mutable_string(self):
        """Foreign memory that is changed behind NumPy's back."""

        class MutableString:
            def __init__(self, s):
                self._s = ctypes.create_string_buffer(s)
                self.__array_interface__ = {
                    "shape": (len(s),),
                    "data": (ctypes.addressof(self._s), False),
                    "typestr": "|u1",
                }

            def __str__(self):
                return self._s.value.decode()

        def modify():
            m = MutableString(b"abcde")
            am = np.asarray(m)
            assert repr(am) == "array([ 97,  98,  99, 100, 101], dtype=uint8)"
            x = am + 1
            am += 2
            assert repr(am) == "array([ 99, 100, 101, 102, 103], dtype=uint8)"
            assert str(m) == "cdefg"
            assert bytes(x) == b"bcdef"
            y = am + 1
            m._s[0] = b"x"
            assert bytes(y) == b"defgh"
            return am, x, y

        same(modify)

    def test_structured_array(self, tmp_path):
        def select():
            dt = np.dtype([("time", np.uint64), ("pos", [("x", float), ("y", float)])])
            x = np.array([(1, (0, 0.5)), (2, (0, 10.3)), (3, (5.5, 1.1))], dtype=dt)
            assert repr(x["time"]) == "array([1, 2, 3], dtype=uint64)"
            times = x["time"] >= 2
            assert str(times) == "[False  True  True]"
            selected = x[times]["pos"]["x"]
            assert selected.tolist() == [0.0, 5.5]
            x.tofile(tmp_path / "foo.dat")
            data = np.fromfile(tmp_path / "foo.dat", dtype=dt)
            assert bits(data) == bits(x)
            y = x["pos"]["x"] * 2 + x["pos"]["y"]
            x["pos"]["x"] += 1
            return selected, y, x["pos"]["x"] - data["pos"]["x"]

        same(select)


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

        same(loop)
        with np.deferredstate(True), counted() as counters:
            loop()
        assert counters.fused == 1000
        assert counters.calculated == 0
