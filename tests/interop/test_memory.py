"""Addresses and shared memory: ctypes, cffi, mmap, multiprocessing."""

import ctypes
import mmap
import multiprocessing
import pickle
from multiprocessing import shared_memory

import numpy as np
import pytest

from helpers.compare import assert_same
from helpers.handover import (
    dtypes,
    handed,
    in_threads,
    lengths,
    operand_of,
    pending,
    positive,
    regular,
    squares,
)

LIBC = ctypes.CDLL(None)
LIBC.memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
LIBC.memcpy.restype = ctypes.c_void_p
DOUBLES = np.ctypeslib.ndpointer(np.float64, flags="C_CONTIGUOUS")
COMPARE = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_double), ctypes.POINTER(ctypes.c_double)
)


class TestCtypes:
    @lengths
    def test_memcpy(self, n):
        """From pending memory into an operand; ctypes lets go of the GIL."""

        def work():
            source = pending(n)
            target, x = operand_of(lambda a: a * 2, n, seed=1)
            LIBC.memcpy(target.ctypes.data, source.ctypes.data, n * 8)
            return source, target, x

        assert_same(work)

    @lengths
    def test_ndpointer(self, n):
        """Its from_param asks for the flags and the address."""
        memmove = ctypes.CFUNCTYPE(ctypes.c_void_p, DOUBLES, DOUBLES, ctypes.c_size_t)(
            ("memmove", LIBC)
        )

        def work():
            source = pending(n)
            target, x = operand_of(lambda a: a * 2, n, seed=1)
            memmove(target, source, n * 8)
            return source, target, x

        assert_same(work)

    @squares
    @dtypes("f8", "c16", "i4")
    def test_interface(self, shape, dtype):
        def work():
            x = pending(shape, dtype, order="F")
            address = x.__array_interface__["data"][0]
            copied = ctypes.string_at(address, x.nbytes)
            return np.frombuffer(copied, dtype), x

        assert_same(work)

    def test_qsort(self):
        """C sorts the memory of an operand, and calls Python meanwhile."""

        def work():
            a, x = operand_of(lambda a: a * 2, 5000)

            def compare(p, q):
                return (p[0] > q[0]) - (p[0] < q[0])

            LIBC.qsort(a.ctypes.data_as(ctypes.c_void_p), 5000, 8, COMPARE(compare))
            return a, x

        assert_same(work)

    @lengths
    def test_held_pointer(self, n):
        """Later writes through an address that was handed out."""

        def work():
            a = regular(n)
            pointer = a.ctypes.data_as(ctypes.POINTER(ctypes.c_double))
            x = a * 2
            pointer[1] = 100.0
            y = a + x
            pointer[1] = 200.0
            return x, y, a

        assert_same(work)

    @lengths
    def test_from_buffer(self, n):
        def work():
            x = pending(n)
            values = (ctypes.c_double * n).from_buffer(x)
            y = x + 1
            values[1] = 100.0
            return x, y, np.ctypeslib.as_array(values) * 2

        assert_same(work)


class TestCffi:
    @pytest.fixture
    def ffi(self):
        ffi = pytest.importorskip("cffi").FFI()
        ffi.cdef("void *memcpy(void *, const void *, size_t);")
        return ffi

    @lengths
    def test_from_buffer(self, ffi, n):
        libc = ffi.dlopen(None)

        def work():
            source = pending(n)
            target, x = operand_of(lambda a: a * 2, n, seed=1)
            libc.memcpy(
                ffi.from_buffer("double[]", target, require_writable=True),
                ffi.from_buffer("double[]", source),
                n * 8,
            )
            return source, target, x

        assert_same(work)

    @lengths
    def test_cast(self, ffi, n):
        def work():
            x = pending(n)
            p = ffi.cast("double *", x.ctypes.data)
            y = x + 1
            p[1] = 100.0
            return p[2], x, y, np.frombuffer(ffi.buffer(p, n * 8)) * 2

        assert_same(work)


class TestShared:
    @lengths
    def test_shared_memory(self, n):
        """Arrays on memory that another process writes."""

        def work():
            memory = shared_memory.SharedMemory(create=True, size=n * 8)
            try:
                a = np.ndarray(n, buffer=memory.buf)
                a[:] = positive(n)
                x = a * 2 + 1
                other = shared_memory.SharedMemory(memory.name)
                b = np.ndarray(n, buffer=other.buf)
                b[1] = 100.0
                y = np.array(a + x)
                del b
                other.close()
                a = None
                return x, y
            finally:
                memory.close()
                memory.unlink()

        assert_same(work)

    @lengths
    def test_processes(self, n):
        def work():
            x = pending(n)
            with multiprocessing.get_context("fork").Pool(2) as pool:
                y = pool.map(doubled, [x, handed(x + 1)])
            return x, *y

        assert_same(work)

    def test_shared_ctypes(self):
        def work():
            shared = multiprocessing.RawArray("d", 9000)
            a = np.frombuffer(shared)
            a[:] = pending(9000)
            x = a * 2
            shared[1] = 100.0
            return x, a

        assert_same(work)

    def test_mmap(self, tmp_path):
        def work():
            path = tmp_path / "file"
            path.write_bytes(bytes(8 * 9000))
            with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
                a = np.frombuffer(memory)
                a[:] = pending(9000)
                x = a * 2
                file.seek(8)
                file.write(b"\1" * 8)
                file.flush()
                result = x + 1, a + 0
                np.deferred.calculate(x, *result)
                del a
                x = None
                return result

        assert_same(work)

    def test_memmap(self, tmp_path):
        def work():
            m = np.memmap(tmp_path / "map", mode="w+", shape=9000)
            m[:] = pending(9000, "i8") & 127
            x = np.asarray(m) * 2
            m[1] = 100
            m.flush()
            return np.array(x), np.fromfile(tmp_path / "map", np.uint8)

        assert_same(work)

    @pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
    def test_pickle(self, protocol):
        def work():
            x = pending((90, 91), order="F")
            buffers = []
            call = buffers.append if protocol >= 5 else None
            text = pickle.dumps(x, protocol, buffer_callback=call)
            return pickle.loads(text, buffers=buffers), x

        assert_same(work)


def doubled(x):
    return x * 2


def test_many_threads():
    def work():
        arrays = [pending(9000, seed=i) for i in range(8)]

        def job():
            return [bytes(ctypes.string_at(a.ctypes.data, 800)) for a in arrays]

        return in_threads(job)

    assert_same(work)
