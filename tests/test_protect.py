"""Writes to operands that ask nobody: compiled code has the address already."""

import numpy as np
import pytest

from helpers.process import output_of, printed, run_with_helpers

# `write` and `address` look at the array structure, as compiled code does.
PREAMBLE = """
import ctypes, faulthandler, itertools, os, signal, sys, threading, time, warnings
import numpy as np
from helpers.unseen import address, flags, write
np.setdeferred(True)

def regular(values):
    a = np.array(values)
    np.deferred.calculate(a)
    return a

def vector(n):
    a = np.arange(n) + 0.5
    np.deferred.calculate(a)
    return a

def eager(function):
    with np.deferredstate(False):
        return function()
"""


def run(code, **environment):
    """Run code after PREAMBLE in a process of its own, which protects everything."""
    environment.setdefault("NUMPY_DEFERRED_PROTECT_BYTES", "0")
    return run_with_helpers(PREAMBLE, code, **environment)


@pytest.fixture
def passes():
    return lambda code, **environment: printed(run(code, **environment))


# Within a page, around whole pages, and in what was madvised to be huge.
SIZES = [1, 7, 511, 512, 513, 1024, 1500, 5_000, 131_072, 1_000_003]


class TestValues:
    def test_all_places(self, passes):
        """First and last bytes share their pages with other memory."""
        passes(f"""
        for n in {SIZES}:
            for i in sorted({{0, 1, n // 3, n // 2, n - 1}} & set(range(n))):
                a = vector(n)
                expected = eager(lambda: (a * 2, a[::-2] + 1, a * 2 - a))
                x, y = a * 2, a[::-2] + 1
                z = x - a
                write(a, i, 1e9)
                assert a[i] == 1e9
                for f, e in zip((x, y, z), expected):
                    assert eager(lambda: (f == e).all())
        """)

    def test_result_as_operand(self, passes):
        """Memory of ours: in a block with another address, or moved to the guard."""
        passes(f"""
        for n in {SIZES}:
            for calculated in (True, False):
                v = vector(n)
                r = v * 2
                if calculated:
                    np.deferred.calculate(r)
                x, y = r + 1, r[::2] * 3
                np.deferred.calculate(r)
                expected = eager(lambda: (r + 1, r[::2] * 3))
                write(r, n - 1, 1e9)
                assert r[n - 1] == 1e9
                for f, e in zip((x, y), expected):
                    assert eager(lambda: (f == e).all())
        """)

    def test_old_address_of_an_operand(self, passes):
        """Its pages are moved by a late use, while expressions read them."""
        passes("""
        for n in (512, 1500, 5000, 65_536):
            v = vector(n)
            r = v * 2
            old = address(r)
            np.deferred.calculate(r)
            assert address(r) != old
            x = r + 1
            expected = eager(lambda: r + 1)
            write(old, 0, 1e9)
            assert eager(lambda: (x == expected).all()) and r[0] == 1e9
            write(old, 1, 2e9)  # the pages are at the old address now
            y = r + 2
            expected = eager(lambda: r + 2)
            write(r, 0, 5.0)
            write(old, n - 1, 7.0)
            assert eager(lambda: (y == expected).all())
            assert r[0] == 5 and r[1] == 2e9 and r[n - 1] == 7
        """)

    def test_many_writes(self, passes):
        """In any order, with views of views, rows and columns, and several readers."""
        passes("""
        rng = np.random.default_rng(1)
        for trial in range(150):
            shape = tuple(rng.integers(1, 90, 2))
            a = regular(rng.standard_normal(shape))
            readers = [
                lambda: a + a.T.T, lambda: a[::-1] * 2, lambda: a[:, ::3] - 1,
                lambda: a.ravel() * a.ravel(), lambda: a[:1] + a,
                lambda: np.sin(a).T, lambda: a[1:, 1:] * 2 if a.size > 1 else a * 2,
            ]
            chosen = [readers[k] for k in rng.integers(0, len(readers), 4)]
            expected = eager(lambda: [c() for c in chosen])
            found = [c() for c in chosen]
            places = rng.integers(0, a.size, 5)
            for i in places:
                write(a, i, 1e9)
            if trial % 2:
                found.reverse(), expected.reverse()
            for f, e in zip(found, expected):
                np.deferred.calculate(f)
                assert eager(lambda: f.tobytes() == e.tobytes())
            assert eager(lambda: (a.ravel()[places] == 1e9).all())
            assert np.deferred.usage_count(a) == 0
        """)

    def test_unaligned(self, passes):
        passes("""
        for n in (3, 600, 5000):
            memory = np.zeros(8 * n + 1, np.uint8)
            a = memory[1:].view("f8")
            with np.deferredstate(False):
                a[:] = np.arange(n)
            x = a * 2
            write(address(a), 0, 1e9)
            assert eager(lambda: (x == np.arange(n) * 2.0).all()) and a[0] == 1e9
        """)

    def test_only_what_depends_on_it(self, passes):
        passes("""
        a, b = vector(5000), vector(5000)
        x, y = a + 1, b + 1
        write(a, 2500, 1.0)
        assert not x.flags.deferred and y.flags.deferred
        assert np.deferred.stats()["late"] == 1
        """)

    def test_written_again(self, passes):
        """Protected anew for each expression, and let go after the last."""
        passes("""
        a = vector(5000)
        for k in range(20):
            x = a * 1.0
            write(a, k, -1.0)
            y = a * 1.0
            z = a * 1.0
            del z
            write(a, 2500 + k, -2.0)
            assert x[k] != -1 and y[k] == -1 and y[2500 + k] != -2
        late = np.deferred.stats()["late"]
        for k in range(5000):
            write(a, k, 3.0)
        assert np.deferred.stats()["late"] == late
        """)

    def test_readers_before_and_after(self, passes):
        """Those after the write read the new values, in the same expression too."""
        passes(f"""
        for n in {SIZES}:
            for i in (0, n // 2, n - 1):
                a, before = vector(n), vector(n)
                x = a + 1
                write(a, i, 1e9)
                y = a + 2
                z = x + a
                write(a, i, 2e9)
                after = before.copy()
                after[i] = 1e9
                np.deferred.calculate(after)
                assert eager(lambda: (z == before + 1 + after).all())
                assert eager(lambda: (x == before + 1).all() and (y == after + 2).all())
                assert a[i] == 2e9
        """)

    def test_dropped_readers(self, passes):
        passes("""
        a = vector(100_000)
        x = a + 1
        del x
        write(a, 50_000, 3.0)
        assert np.deferred.stats()["late"] == 0
        """)

    def test_evaluated_into_another(self, passes):
        """The reader has no array of its own: `out=` and assignment."""
        passes("""
        for n in (100, 5000):
            for i in (0, n - 1):
                a, out = vector(n), vector(n)
                expected = eager(lambda: a * 2 + 1)
                x = a * 2
                write(a, i, 1e9)
                np.add(x, 1, out=out)
                assert eager(lambda: (out == expected).all())
                a = vector(n)
                x = a * 2 + 1
                write(a, i, 1e9)
                out[...] = x
                assert eager(lambda: (out == expected).all())
        """)


class TestWhoIsSeen:
    def test_flags(self, passes):
        """In the structure; Python sees the same for both."""
        passes("""
        WRITEABLE, WASWRITEABLE = 0x400, 0x200000
        for limit, kept in [(0, True), (2**40, False)]:
            np.deferred.set_protect_limit(limit)
            a = vector(5000)
            view = a[::2]
            r = vector(5000) * 2
            x, y = view + a[:2500], r + 1
            z = a + 1
            for operand in (a, view):
                assert flags(operand) & WASWRITEABLE
                assert bool(flags(operand) & WRITEABLE) is kept
                assert operand.flags.deferred_waswriteable
            np.deferred.calculate(r)
            assert bool(flags(r) & WRITEABLE) is kept and flags(r) & WASWRITEABLE
            assert "DEFERRED_WASWRITEABLE : True" in str(a.flags)
            assert a.flags.writeable and not x.flags.deferred
            assert flags(a) & WRITEABLE and not flags(a) & WASWRITEABLE
        """)

    def test_read_only_stays(self, passes):
        passes("""
        a = vector(5000)
        a.flags.writeable = False
        x = a + 1
        assert not flags(a) & 0x400
        del x
        assert not flags(a) & 0x400 and not a.flags.writeable
        """)

    def test_limit(self, passes):
        passes("""
        np.deferred.set_protect_limit(40_000)
        large, small = vector(5000), vector(4999)
        x, y = large + 1, small[:10] + 1
        write(large, 2500, 9.0)
        write(small, 5, 9.0)
        assert not x.flags.deferred and y.flags.deferred
        assert y[5] == 10  # as the limit says
        """)

    def test_numpy_writes(self, passes):
        """These are seen before: nothing is late, and no page faults."""
        passes("""
        for write_some in (
            lambda a: a.__setitem__(3, 1), lambda a: a.fill(1), lambda a: a.sort(),
            lambda a: np.copyto(a, 1), lambda a: np.add(a, 1, out=a),
            lambda a: a.__iadd__(1), lambda a: memoryview(a).__setitem__(0, 1.0),
            lambda a: np.random.default_rng(1).random(out=a),
            lambda a: a.resize(7, refcheck=False),
            lambda a: ctypes.memset(a.ctypes.data, 0, 80), lambda a: a.partition(7),
            lambda a: np.add.at(a, [1], 1), lambda a: np.put(a, [1], 1),
            lambda a: np.from_dlpack(a).__setitem__(0, 1),
        ):
            a = vector(5000)
            before = eager(a.copy)
            x = a + 1
            write_some(a)
            assert eager(lambda: (x == before + 1).all())
        assert np.deferred.stats()["late"] == 0
        """)

    def test_read_into_buffer(self, passes, tmp_path):
        """A system call must not find protected pages."""
        path = tmp_path / "values"
        path.write_bytes(bytes(40_000))
        passes(f"""
        a = vector(5000)
        x = a + 1
        with open({str(path)!r}, "rb", buffering=0) as file:
            assert file.readinto(a) == 40_000
        assert x[0] == 1.5 and a[0] == 0
        """)

    def test_death_of_an_operand(self, passes):
        """malloc writes into memory that it gets back."""
        passes("""
        for n in (100, 1500, 5000, 1_000_003):
            for _ in range(5):
                a = vector(n)
                x = a + 1
                del a
                x.sum()
                b = vector(n)
                y = b + 1
                del y, b
                c = np.zeros(n)
                c[:] = 1
        assert np.deferred.stats()["late"] == 0
        """)

    def test_immutable_memory(self, passes):
        passes("""
        a = np.frombuffer(bytes(range(256)) * 400, np.uint8)
        x = a + np.uint8(1)
        assert x.flags.deferred and x[3] == 4
        """)

    def test_guard_off(self, passes):
        passes(
            """
            a = vector(5000)
            x = a + 1
            write(a, 2500, 9.0)
            assert x.flags.deferred and not flags(a) & 0x400
            """,
            NUMPY_DEFERRED_GUARD="off",
        )

    @pytest.mark.parametrize("n", [5, 5000])
    def test_trap(self, n):
        code = f"""
        a = vector({n})
        x = a + 1
        write(a, {n // 2}, 9.0)
        """
        done = run(code, NUMPY_DEFERRED_GUARD="trap")
        if n == 5:  # no page of its own: compared later
            assert done.returncode == 0
            return
        assert done.returncode == -6
        assert "compiled code writes to an operand of the deferred array" in done.stderr
        assert "result of add" in done.stderr


class TestErrors:
    def test_raised_later(self, passes):
        """The code that writes cannot be told; the main thread is."""
        passes("""
        a = vector(5000)
        a[3] = 0
        with np.errstate(divide="raise"):
            x = 1 / a
            try:
                write(a, 2500, 9.0)
                for _ in range(100):
                    pass
            except FloatingPointError as error:
                assert "divide by zero" in str(error)
            else:
                raise AssertionError("nothing was raised")
        assert a[2500] == 9 and x[2500] == 1 / 2500.5 and np.isinf(x[3])
        """)

    def test_real_faults_stay(self):
        """Memory that is read-only for another reason: the same signal."""
        for before in ("pass", "write(a, 2500, 1.0)"):
            done = run(f"""
            a = vector(5000)
            x = a + 1
            {before}
            x.sum()
            library = ctypes.CDLL(None)
            library.mmap.restype = ctypes.c_void_p
            pages = library.mmap(None, ctypes.c_size_t(4096), 1, 0x22, -1, 0)
            y = a + 1
            ctypes.memset(pages, 1, 1)
            """)
            assert done.returncode == -11, done.stderr

    def test_more_operands_than_ranges(self, passes):
        """Beyond what may be mapped, operands are copied as a whole."""
        passes("""
        arrays = [vector(1024) for _ in range(6000)]
        results = [a + 1 for a in arrays]
        for a in arrays:
            write(a, 600, -5.0)
        expected = eager(lambda: vector(1024) + 1)
        assert all(eager(lambda: (r == expected).all()) for r in results)
        assert all(a[600] == -5 for a in arrays)
        """)


class TestThreads:
    @pytest.mark.parametrize("release", [True, False])
    def test_writes_of_threads(self, passes, release):
        """Without the GIL, while the holder goes on or waits for them."""
        passes(f"""
        library = (ctypes.CDLL if {release} else ctypes.PyDLL)(None)
        for trial in range(60):
            n = 20_000
            a = vector(n)
            where, before = address(a), eager(a.copy)
            xs = [a * k for k in range(1, 5)]
            def work(k):
                library.memset(ctypes.c_void_p(where + 8 * k * 5000), 0, 8 * 5000)
            threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
            for t in threads: t.start()
            for t in threads: t.join()
            assert eager(lambda: not a.any())
            for k, x in enumerate(xs, 1):
                assert eager(lambda: (x == before * k).all())
        """)

    def test_race_with_the_end_of_protection(self, passes):
        """A fault that is handled when its reason has gone is no fault."""
        passes("""
        n = 100_000
        a = vector(n)
        where = address(a)
        library = ctypes.CDLL(None)
        done = False
        def write_always():
            while not done:
                library.memset(ctypes.c_void_p(where), 0, 8 * n)
        threads = [threading.Thread(target=write_always) for _ in range(2)]
        for t in threads: t.start()
        end = time.monotonic() + 3
        while time.monotonic() < end:
            x = a + 1
            np.deferred.calculate(x)
            x = a + 1
            del x
        done = True
        for t in threads: t.join()
        """)

    def test_fork(self, passes):
        passes("""
        a = vector(5000)
        x = a + 1
        if (pid := os.fork()) == 0:
            write(a, 2500, 9.0)
            os._exit(0 if x[2500] == 2501.5 else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert x.flags.deferred
        write(a, 2500, 9.0)
        assert x[2500] == 2501.5
        """)

    def test_end_of_python(self, passes):
        """What still reads then is never calculated; writes go on."""
        passes("""
        library = ctypes.CDLL(None)
        a = vector(5000)
        x = a + 1
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(x))
        # Runs after Python has ended, and writes where its second argument says.
        library.on_exit(library.gettimeofday, ctypes.c_void_p(address(a) + 20_000))
        """)


class TestLimit:
    @pytest.mark.parametrize("value", [-1, -(2**70)])
    def test_negative(self, value):
        with pytest.raises((ValueError, OverflowError)):
            np.deferred.set_protect_limit(value)

    @pytest.mark.parametrize("value", [1.5, None, "1"])
    def test_not_an_integer(self, value):
        with pytest.raises(TypeError):
            np.deferred.set_protect_limit(value)

    def test_environment(self):
        code = "import numpy as np; print(np.deferred.get_protect_limit())"
        assert output_of(code) == str(2**28)
        assert output_of(code, NUMPY_DEFERRED_PROTECT_BYTES="4096") == "4096"
