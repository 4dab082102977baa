"""Memory of results: whose it is, what is kept warm, and what it costs."""

import gc
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tracemalloc

import numpy as np
import pytest
from numpy._core.multiarray import get_handler_name, get_handler_version

from helpers.process import output_of, path_with_helpers
from helpers.sanitizers import has_the_memory_alone

# Tiny, where malloc has them; smaller than what is moved; moved; huge pages.
SIZES = [1, 100, 512, 5_000, 65_536, 262_144, 262_145, 400_000, 1_000_000]


@pytest.fixture
def cache():
    """Sets the limit for a test, which starts with nothing kept."""
    previous = np.deferred.get_cache_limit()
    np.deferred.set_cache_limit(0)
    assert np.deferred.stats()["cached"] == 0
    yield np.deferred.set_cache_limit
    np.deferred.set_cache_limit(previous)


def calculated(n):
    """A result that was deferred."""
    a = np.arange(n) + 0.0
    with np.deferredstate(True):
        x = a + 1
    assert x.flags.deferred
    np.deferred.calculate(x)
    return x


def eager(n):
    with np.deferredstate(False):
        return np.arange(n) + 0.0 + 1


@pytest.mark.parametrize("n", SIZES)
class TestOwnership:
    def test_flags_and_handler(self, n):
        x, expected = calculated(n), eager(n)
        assert x.flags == expected.flags
        assert x.flags.owndata
        assert x.base is None
        assert get_handler_name(x) == get_handler_name(expected)
        assert get_handler_version(x) == get_handler_version(expected)

    def test_pending(self, n):
        a = np.arange(n) + 0.0
        with np.deferredstate(True):
            x = a + 1
        flags = x.flags
        assert flags.owndata
        assert flags.writeable
        del x

    @pytest.mark.parametrize("factor", [0, 0.5, 1, 1.01, 3])
    def test_resize(self, n, factor):
        x, expected = calculated(n), eager(n)
        for array in (x, expected):
            array.resize(int(n * factor), refcheck=False)
        assert x.tobytes() == expected.tobytes()
        x.resize(n, refcheck=False)
        expected.resize(n, refcheck=False)
        assert x.tobytes() == expected.tobytes()

    def test_setstate(self, n):
        x, other = calculated(n), calculated(n + 1)
        x.__setstate__(other.__reduce__()[2])
        assert x.tobytes() == other.tobytes()

    def test_views_keep_it(self, n):
        x = calculated(n)
        view = x[::2]
        expected = eager(n)[::2].tobytes()
        del x
        others = [calculated(n) for _ in range(5)]
        for array in others:
            array[...] = -1
        assert view.tobytes() == expected

    def test_tracemalloc(self, n):
        """Traced from the calculation to the end, with eager NumPy's size."""
        nbytes = 8 * n
        domain = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)

        def traced():
            gc.collect()
            snapshot = tracemalloc.take_snapshot().filter_traces([domain])
            return sum(trace.size for trace in snapshot.traces)

        a = np.arange(n) + 0.0
        tracemalloc.start()
        try:
            with np.deferredstate(True):
                x = a + 1
            assert traced() == 0
            np.deferred.calculate(x)
            assert traced() == nbytes
            x.resize(n + 7, refcheck=False)
            assert traced() == nbytes + 56
            del x
            assert traced() == 0
        finally:
            tracemalloc.stop()


def test_other_handler():
    """While another handler is set (NEP 49), operations run at once."""
    assert (
        output_of("""
        import ctypes
        import numpy as np
        from numpy._core.multiarray import get_handler_name

        malloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
        calloc = ctypes.CFUNCTYPE(ctypes.c_void_p, *[ctypes.c_void_p] * 3)
        libc = ctypes.CDLL(None)
        for name in ("malloc", "calloc", "realloc"):
            getattr(libc, name).restype = ctypes.c_void_p
        size, pointer = ctypes.c_size_t, ctypes.c_void_p
        sizes = []

        def allocate(_, n):
            sizes.append(n)
            return libc.malloc(size(n))

        functions = [
            ctypes.CFUNCTYPE(pointer, pointer, size)(allocate),
            ctypes.CFUNCTYPE(pointer, pointer, size, size)(
                lambda _, n, m: libc.calloc(size(n), size(m))
            ),
            ctypes.CFUNCTYPE(pointer, pointer, pointer, size)(
                lambda _, p, n: libc.realloc(pointer(p), size(n))
            ),
            ctypes.CFUNCTYPE(None, pointer, pointer, size)(
                lambda _, p, n: libc.free(pointer(p))
            ),
        ]

        class Handler(ctypes.Structure):
            _fields_ = [("name", ctypes.c_char * 127), ("version", ctypes.c_uint8),
                        ("ctx", pointer), *((c, type(f)) for c, f in
                                            zip("abcd", functions, strict=True))]

        handler = Handler(b"mine", 1, None, *functions)
        new, name = ctypes.pythonapi.PyCapsule_New, ctypes.c_char_p
        new.restype, new.argtypes = ctypes.py_object, [pointer, name, pointer]
        capsule = new(ctypes.addressof(handler), b"mem_handler", None)
        # PyDataMem_SetHandler, number 304 of the table.
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = pointer, [ctypes.py_object, ctypes.c_char_p]
        table = get(np._core.multiarray._ARRAY_API, None)
        slot = ctypes.cast(table, ctypes.POINTER(pointer))[304]
        set_handler = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(slot)

        np.setdeferred(True)
        a = np.ones(1000)
        pending = a + 2
        default = set_handler(capsule)
        x = a + 1
        print(x.flags.deferred, get_handler_name(x), 8000 in sizes)
        y = pending + 1
        print(y.flags.deferred, get_handler_name(y), y[0])
        np.deferred.calculate(pending)
        print(get_handler_name(pending))
        set_handler(default)
        print((x + y).flags.deferred)
        del x, y  # while there are functions to free them
        """)
        == "False mine True\nFalse mine 4.0\ndefault_allocator\nTrue"
    )


class TestCache:
    def test_memory_is_used_again(self, cache):
        cache(2**26)
        x = calculated(1_000_000)
        nbytes = x.nbytes
        address = x.ctypes.data
        del x
        assert np.deferred.stats()["cached"] >= nbytes
        x = calculated(1_000_000)
        assert np.deferred.stats()["cached"] < nbytes
        assert x.ctypes.data != address, "an address is not used again at once"

    @pytest.mark.parametrize("n", [512, 5_000, 65_536, 400_000, 1_000_000])
    @pytest.mark.parametrize("limit", [0, 2**20, 2**24, 2**26])
    def test_limit(self, cache, n, limit):
        cache(limit)
        arrays = [calculated(n) for _ in range(8)]
        assert np.deferred.stats()["cached"] <= limit
        while arrays:
            arrays.pop()
            assert np.deferred.stats()["cached"] <= limit
        kept = np.deferred.stats()["cached"]
        assert kept >= min(8 * 8 * n, limit // 2 if limit >= 16 * n else 0)

    def test_lower_limit_gives_back(self, cache):
        cache(2**26)
        arrays = [calculated(n) for n in (600, 5_000, 200_000, 1_000_000)]
        del arrays
        assert np.deferred.set_cache_limit(2**20) == 2**26
        assert 0 < np.deferred.stats()["cached"] <= 2**20
        cache(0)
        assert np.deferred.stats()["cached"] == 0

    def test_the_oldest_go_first(self, cache):
        cache(2**24)
        small = calculated(5_000)
        del small
        before = np.deferred.stats()["cached"]
        large = calculated(2_000_000)
        del large
        assert before > 0
        assert np.deferred.stats()["cached"] >= 16_000_000
        assert np.deferred.stats()["cached"] <= 2**24

    def test_sizes_that_grow(self, cache):
        """Old blocks do not fit, and go."""
        cache(2**25)
        for n in range(100_000, 1_000_000, 50_000):
            x = calculated(n)
            assert x[-1] == n
        del x
        assert np.deferred.stats()["cached"] <= 2**25

    @has_the_memory_alone
    def test_resident_memory(self):
        """What is over the limit goes back to the system."""
        assert (
            output_of("""
            import numpy as np
            def resident():
                return int(open("/proc/self/statm").read().split()[1]) * 4096
            np.setdeferred(True)
            np.deferred.set_cache_limit(2**20)
            a = np.ones(1_000_000)
            small = np.ones(5000)
            before = resident()
            for _ in range(20):
                arrays = [a + i for i in range(5)] + [small + i for i in range(500)]
                np.deferred.calculate(*arrays)
                del arrays
            print(resident() - before < 16e6)
            """)
            == "True"
        )

    @pytest.mark.parametrize("value", [-1, -(2**70)])
    def test_negative(self, value):
        with pytest.raises((ValueError, OverflowError)):
            np.deferred.set_cache_limit(value)

    @pytest.mark.parametrize("value", [1.5, None, "1"])
    def test_not_an_integer(self, value):
        with pytest.raises(TypeError):
            np.deferred.set_cache_limit(value)

    def test_environment(self):
        code = "import numpy as np; print(np.deferred.get_cache_limit())"
        assert output_of(code) == str(2**28)
        assert output_of(code, NUMPY_DEFERRED_CACHE_BYTES="4096") == "4096"


@has_the_memory_alone
class TestLimits:
    """Large results are as far apart as a GiB, unless what is accessible counts."""

    CODE = """
    import resource
    import numpy as np
    from helpers.unseen import address
    np.setdeferred(True)
    a = np.arange(2**20) + 0.5
    np.deferred.calculate(a)

    def limit():
        with open("/proc/self/status") as status:
            used = {k: v for k, v in (line.split(":", 1) for line in status)}
        size = int(used["VmData"].split()[0]) * 1024 + 2**28
        resource.setrlimit(resource.RLIMIT_DATA, (size, resource.RLIM_INFINITY))

    def work(i):
        x, y = a * i, a[: 2**18 + 9] - i
        before = address(x), address(y)
        z = x + a
        np.deferred.calculate(z)
        del z
        with np.deferredstate(False):
            assert x[7] == 7.5 * i and x[-1] == (2**20 - 0.5) * i
            assert y[-1] == 2**18 + 8.5 - i and y.sum() == (y + 0).sum()
        return address(x) == before[0], address(y) == before[1]
    """

    @has_the_memory_alone
    @pytest.mark.parametrize("limited", ["", "before", "between"])
    def test_data(self, limited):
        """What cannot be moved any more is elsewhere, and right."""
        code = textwrap.dedent(self.CODE) + textwrap.dedent(f"""
            if {limited == "before"}:
                limit()
            kept = [work(i) for i in range(1, 9)]
            if {limited == "between"}:
                limit()
            kept += [work(i) for i in range(1, 50)]
            print(all(map(all, kept)))
            """)
        moved = output_of(code, PYTHONPATH=path_with_helpers())
        assert moved == "True" or limited == "between"

    @pytest.mark.parametrize("n", [2**18 + 9, 400_000, 2**20])
    def test_no_pages_beyond(self, n):
        """A huge page at the end only where it is nearly full."""
        code = f"""
            import numpy as np
            def resident():
                with open("/proc/self/statm") as statm:
                    return int(statm.read().split()[1]) * 4096
            np.setdeferred(True)
            a = np.arange({n}) + 0.5
            np.deferred.calculate(a)
            before = resident()
            kept = [a + i for i in range(20)]
            for x in kept:
                np.deferred.calculate(x)
            print((resident() - before) / 20)
            """
        assert float(output_of(code)) < 1.3 * 8 * n + 20_000


class TestSystemCalls:
    """Counted in a process, between two markers; what is first needed is done."""

    CODE = """
    import os
    import numpy as np
    np.setdeferred(True)
    a = np.arange({n}) + 0.5
    np.deferred.calculate(a)
    def work():
        {work}
    for _ in range({warm}):
        work()
    os.path.exists("/marker-begin")
    for _ in range(400):
        work()
    os.path.exists("/marker-end")
    """

    def count(self, tmp_path, n, work):
        strace = shutil.which("strace")
        if strace is None:
            pytest.skip("no strace")
        log = tmp_path / "log"
        code = textwrap.dedent(self.CODE).format(n=n, work=work, warm=200)
        done = subprocess.run(
            [strace, "-f", "-o", log, sys.executable, "-c", code],
            capture_output=True,
            text=True,
            # Threads are woken by calls of their own.
            env={**os.environ, "NUMPY_DEFERRED_NUM_THREADS": "1"},
        )
        if "PTRACE" in done.stderr or "ptrace" in done.stderr:
            pytest.skip("strace may not trace")
        assert done.returncode == 0, done.stderr
        lines = log.read_text().splitlines()
        begin = next(i for i, s in enumerate(lines) if "/marker-begin" in s)
        end = next(i for i, s in enumerate(lines) if "/marker-end" in s)
        process = lines[begin].split()[0]
        calls = [
            re.match(rf"{process} +(\w+)", line) for line in lines[begin + 1 : end]
        ]
        return [m[1] for m in calls if m and m[1] != "rt_sigaction"]

    @pytest.mark.parametrize("n", [1, 5_000, 1_000_000, 100_000_000])
    def test_never_calculated(self, tmp_path, n):
        """None at all, but to look now and then whether the handler is there."""
        work = "x = a + 1; y = x * 2"
        if n > 10**7:
            work = f"x = np.broadcast_to(a[:1], {n}) + 1"
        assert self.count(tmp_path, min(n, 10**6), work) == []

    @pytest.mark.parametrize("n", [1, 100, 5_000, 65_536, 262_144])
    def test_smaller(self, tmp_path, n):
        assert self.count(tmp_path, n, "x = a + 1; np.deferred.calculate(x)") == []

    @pytest.mark.parametrize("n", [262_145, 1_000_000])
    def test_large(self, tmp_path, n):
        """
        One to move the pages, which asks for two limits before, and one for several
        slots that are left.
        """
        calls = self.count(tmp_path, n, "x = a + 1; np.deferred.calculate(x)")
        assert set(calls) <= {"mremap", "mmap", "prlimit64"}
        assert calls.count("mremap") == 400
        assert calls.count("prlimit64") == 2 * 400
        assert calls.count("mmap") <= 150
