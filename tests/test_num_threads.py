"""Several threads share a calculation: the same bits, errors and states."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from helpers.compare import assert_same, comparison
from helpers.layouts import contiguous, operand, strided, swapped
from helpers.loops import ELEMENTWISE
from helpers.process import output_of, path_with_helpers, run_python
from helpers.sanitizers import under

#: Enough for several threads, and a multiple of nothing.
N = 200_003


def single(ufunc, operands):
    return ufunc(*operands)


def consumed(ufunc, operands):
    result = ufunc(*operands)
    first, last = result if isinstance(result, tuple) else (result, result)
    return np.add(np.maximum(first, operands[0]), last)


@pytest.mark.parametrize("loop", ELEMENTWISE, ids=str)
def test_bits_do_not_depend_on_them(loop, num_threads):
    with comparison() as compared, np.errstate(all="ignore"):
        for layout in (contiguous, strided, swapped):
            operands = [
                operand(char, (N,), i, layout) for i, char in enumerate(loop.inputs)
            ]
            for n in (2, 5):
                num_threads(n)
                name = f"{layout.__name__}, {n} threads"
                compared.same(name, single, loop.ufunc, operands)
                if layout is not strided:
                    compared.same(f"{name}, consumed", consumed, loop.ufunc, operands)


@pytest.mark.parametrize("size", [65_536, 131_072, 131_073, 200_000, 1_048_577])
@pytest.mark.parametrize("dtype", ["f4", "f8", "c16", "i2"])
def test_sizes(size, dtype, num_threads):
    """The last part is as long as it takes."""
    a = np.arange(size).astype(dtype)
    b = a[::-1].copy()

    def work():
        x = a * b + a
        y = np.empty(size, "f8")
        with np.errstate(all="ignore"):
            y[...] = (x - b).real
        return x, y, np.add(a, b * 2, out=np.empty(size, np.result_type(dtype, "f4")))

    for n in (1, 2, 3, 16):
        num_threads(n)
        assert_same(work)


def walks():
    """Expressions that are gone through by an iterator: in rows, runs, and buffers."""
    rng = np.random.default_rng(0)
    a, b = rng.random((700, 800)), rng.random((800, 700))
    row, column = rng.random(800), rng.random((700, 1))
    whole = rng.random((60, 50, 40, 30))
    third, last = rng.random((60, 50, 1, 30)), rng.random((60, 50, 40, 1))
    narrow, three = rng.random((200_000, 3)), rng.random(3)
    single = narrow.astype("f4")
    return {
        "transposed": lambda: a * b.T + row,
        "strided": lambda: a[::2] * row + column[::2],
        "broadcast": lambda: a * row + column,
        "4d": lambda: 3 * whole + third - whole / last,
        "narrow": lambda: narrow * three + 1,
        "fortran": lambda: a.T * b - b,
        "columns": lambda: a[:, ::2] + a[:, 1::2] * 2,
        "reversed": lambda: a[::-1] * b.T,
        "buffered": lambda: np.sin(a.T) + b * column[:, 0],
        "mixed": lambda: whole[..., ::2].transpose(3, 1, 0, 2) * 2 + 1,
        "cast": lambda: single * three,
        "two of three": lambda: narrow[:, :2] * narrow[:, 1:] + three[:2],
    }


@pytest.mark.parametrize("name", walks())
def test_iterators(name, num_threads):
    function = walks()[name]

    def assigned():
        x = function()
        out = np.zeros(x.shape, "f4")
        transposed = np.zeros(x.shape[::-1])
        out[...] = function()
        transposed.T[...] = x
        np.add(x, 1, out=transposed.T)
        return x, out, transposed

    for n in (1, 2, 5):
        num_threads(n)
        assert_same(assigned)


def test_overlap_with_the_result(num_threads):
    """A copy that the iterator makes is written back once."""

    def work():
        q = np.random.default_rng(0).random((700, 800))
        p = q.copy()
        inner = q[2:, 1:-1] + q[:-2, 1:-1] + q[1:-1, 2:] + q[1:-1, :-2]
        q[1:-1, 1:-1] = inner / 4
        p[:, ::-1][...] = p * 2 + 1
        p[1:] += p[:-1] * 2
        return q, p

    for n in (1, 2, 5):
        num_threads(n)
        assert_same(work)


@pytest.mark.parametrize("where", [0, 70_000, N - 1])
@pytest.mark.parametrize("how", ["warn", "raise", "call", "log", "print"])
def test_errors_of_any_part(how, where, num_threads, capsys):
    """Once each, wherever the elements are that raise them."""
    num_threads(4)
    a, b = np.ones(N), np.ones(N)
    a[where], b[-1 - where] = 0, 1e308

    def work():
        seen = []

        class Log:
            write = staticmethod(seen.append)

        call = Log() if how == "log" else lambda *args: seen.append(args)
        with np.errstate(all=how, call=call):
            result = np.add(b / a, b * 10 - a)
            np.deferred.calculate(result)
        return result, [str(each).partition("\n")[0] for each in seen]

    assert_same(work)
    capsys.readouterr()


def test_rounding_is_the_callers(num_threads):
    """Workers run in the floating-point environment of the thread that asks."""
    code = """
    import ctypes, ctypes.util
    import numpy as np
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    a = np.linspace(1, 2, 1_000_003)
    np.deferred.set_num_threads(4)
    for mode in (0x400, 0x800, 0xC00, 0):  # down, up, to zero, nearest on x86
        libm.fesetround(mode)
        with np.deferredstate(False):
            expected = a / 3 + a * 1.1
        with np.deferredstate(True):
            x = a / 3 + a * 1.1
            np.deferred.calculate(x)
        assert x.tobytes() == expected.tobytes(), mode
    """
    if os.uname().machine != "x86_64":
        pytest.skip("the modes have other numbers")
    done = run_python(code)
    assert done.returncode == 0, done.stderr


class TestProcesses:
    def test_fork(self, num_threads):
        """A child starts threads of its own; the parent goes on with its."""
        alone = 1 + under("tsan")  # which has a thread of its own
        code = f"""
        import os, threading
        import numpy as np
        np.deferred.set_num_threads(3)
        np.setdeferred(True)
        a = np.arange(1_000_000) + 0.5
        np.deferred.calculate(a)
        def tasks():
            return len(os.listdir("/proc/self/task"))
        for _ in range(20):
            assert float((a * 2 + a)[999_999]) == 3 * 999_999.5
            pid = os.fork()
            if pid == 0:
                alone = tasks() == {alone}
                right = float((a * 2 + a)[999_999]) == 3 * 999_999.5
                os._exit(0 if alone and right and tasks() == {alone} + 2 else 1)
            assert os.waitpid(pid, 0)[1] == 0
        """
        done = run_python(code)
        assert done.returncode == 0, done.stderr

    def test_no_threads_before_they_are_needed(self):
        code = """
        import os
        import numpy as np
        np.deferred.set_num_threads(3)
        before = len(os.listdir("/proc/self/task"))
        with np.deferredstate(True):
            a = np.arange(10_000.0) + 1
            a.sum()
        print(len(os.listdir("/proc/self/task")) - before)
        """
        assert output_of(code) == "0"

    def test_idle_workers_sleep(self):
        code = """
        import os, time
        import numpy as np
        np.deferred.set_num_threads(4)
        with np.deferredstate(True):
            a = np.arange(1_000_000.0)
            (a + 1).sum()
        time.sleep(0.1)
        before = time.process_time()
        time.sleep(1)
        print(time.process_time() - before < 0.05)
        """
        assert output_of(code) == "True"

    def test_exit_with_workers(self):
        code = """
        import numpy as np
        np.deferred.set_num_threads(4)
        with np.deferredstate(True):
            a = np.arange(1_000_000.0)
            x = a + 1
            x.sum()
            kept = a * 2
        """
        done = run_python(code)
        assert (done.returncode, done.stderr) == (0, "")

    def test_signals_go_to_the_main_thread(self):
        code = """
        import os, signal
        import numpy as np
        np.deferred.set_num_threads(4)
        caught = []
        signal.signal(signal.SIGUSR1, lambda *args: caught.append(args))
        a = np.arange(1_000_000.0)
        for k in range(200):
            with np.deferredstate(True):
                x = a + k
                np.deferred.calculate(x)
            os.kill(os.getpid(), signal.SIGUSR1)
        print(len(caught) > 0)
        """
        assert output_of(code) == "True"


class TestInterrupt:
    """Ctrl-C during a long calculation, which is not waited for."""

    CODE = """
    import signal, sys, threading, time
    import numpy as np
    np.deferred.set_num_threads({threads})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    a = np.linspace(0.1, 1, {n})

    def make():
        x = a
        for _ in range({operations}):
            x = np.power(x, 1.0001)
        return x

    with np.deferredstate(True):
        y = make()
        start = time.monotonic()
        np.deferred.calculate(y)
        whole = time.monotonic() - start
        x = make()
    print(whole, flush=True)
    """

    def interrupt(self, code, threads, n=1_000_000, operations=30):
        """
        What the code prints, True when it was stopped in time; once of three times is
        enough, as the machine may be busy with other things.
        """
        for _ in range(3):
            printed = self.interrupt_once(code, threads, n, operations)
            if printed.strip() == "True":
                break
        return printed

    def interrupt_once(self, code, threads, n, operations):
        """Send SIGINT after a fifth of the time that a whole calculation takes."""
        code = textwrap.dedent(self.CODE) + textwrap.dedent(code)
        env = {**os.environ, "NUMPY_DEFERRED_MIN_BYTES": "0"}
        code = code.format(threads=threads, n=n, operations=operations)
        with subprocess.Popen(
            [sys.executable, "-c", code],
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            whole = float(process.stdout.readline())
            time.sleep(whole / 5)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=100)
        assert (process.returncode, err) == (0, "")
        return out

    @pytest.mark.parametrize("threads", [1, 3])
    @pytest.mark.parametrize("operations", [1, 30])
    def test_stays_deferred(self, threads, operations):
        n = 30_000_000 if operations == 1 else 1_000_000
        out = self.interrupt(
            """
            start = time.monotonic()
            try:
                np.deferred.calculate(x)
            except KeyboardInterrupt:
                took = time.monotonic() - start
                assert x.flags.deferred
                print(took < 0.75 * whole or (took, whole))
            assert (x == y).all()
            """,
            threads,
            n,
            operations,
        )
        assert out.strip() == "True"

    @pytest.mark.parametrize("threads", [1, 3])
    def test_reduction(self, threads):
        out = self.interrupt(
            """
            start = time.monotonic()
            try:
                x.sum()
            except KeyboardInterrupt:
                took = time.monotonic() - start
                assert x.flags.deferred
                assert np.deferred.stats()["reduced"] == 0
                print(took < 0.75 * whole or (took, whole))
            assert x.sum() == y.sum()
            assert np.deferred.stats()["reduced"] == 1
            """,
            threads,
        )
        assert out.strip() == "True"

    def test_handler_that_goes_on(self):
        """It runs during the calculation, and may calculate the same array."""
        self.interrupt(
            """
            seen = []

            def handler(*args):
                seen.append(x.flags.deferred)
                if len(seen) == 1:
                    np.deferred.calculate(x)

            signal.signal(signal.SIGINT, handler)
            np.deferred.calculate(x)
            assert seen == [True], seen
            assert (x == y).all()
            """,
            2,
        )

    def test_nothing_half_written(self):
        """An array that others see is written to the end."""
        self.interrupt(
            """
            b = a.copy()
            try:
                with np.deferredstate(True):
                    b += x
            except KeyboardInterrupt:
                pass
            assert (b == a).all() or (b == a + y).all()
            """,
            2,
        )


def test_threads_of_python(num_threads):
    """Each calculates its own, one after the other."""
    num_threads(3)
    a = np.arange(300_000.0)
    expected = a * 3 + 1
    wrong = []

    def work():
        with np.deferredstate(True):
            for _ in range(30):
                x = a * 3 + 1
                if not (x == expected).all():
                    wrong.append(x)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_touches_meanwhile():
    """
    Threads without the GIL want other arrays, and write to operands; the holder,
    which they ask when it does not answer, must end its own calculation first.
    """
    code = """
    import ctypes, threading
    import numpy as np
    from helpers.unseen import address
    np.deferred.set_num_threads(4)
    np.deferred.set_protect_limit(0)
    np.setdeferred(True)
    library = ctypes.CDLL(None)
    for n in (6_000, 40_000, 300_000):
        a = np.arange(n) + 0.5
        big = np.arange(2_000_000) + 0.5
        np.deferred.calculate(a, big)
        for k in range(40):
            x, b = a * 2 + k, a * 1
            np.deferred.calculate(b)
            y = b * 3
            copies = [ctypes.create_string_buffer(8 * n) for _ in range(2)]
            where = ctypes.c_void_p(address(x))
            targets = [
                lambda: library.memcpy(copies[0], where, 8 * n),
                lambda: library.memcpy(copies[1], where, 8 * n),
                lambda: library.memset(ctypes.c_void_p(address(b)), 0, 8 * n),
            ]
            threads = [threading.Thread(target=target) for target in targets]
            for thread in threads:
                thread.start()
            for j in range(3):
                z = big * 3 + j
                assert float(z[-1]) == 3 * 1_999_999.5 + j
            for thread in threads:
                thread.join()
            with np.deferredstate(False):
                expected = (a * 2 + k).tobytes()
                assert copies[0].raw == copies[1].raw == expected
                assert x.tobytes() == expected
                assert (y == a * 3).all() and not b.any()
    """
    done = run_python(code, PYTHONPATH=path_with_helpers())
    assert done.returncode == 0, done.stderr


def test_loops_of_others_run_here():
    """A loop that wants the GIL, which the caller holds, would wait for ever."""
    code = """
    import ctypes, threading
    import numpy as np
    np.deferred.set_num_threads(4)
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype = ctypes.c_void_p
    get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    api = get_pointer(np._core._multiarray_umath._UFUNC_API, None)
    new_ufunc = ctypes.PYFUNCTYPE(
        ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p,
        *[ctypes.c_int] * 4, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int,
    )(ctypes.cast(api, ctypes.POINTER(ctypes.c_void_p))[1])
    threads = set()

    @ctypes.CFUNCTYPE(
        None, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_ssize_t),
        ctypes.c_void_p, ctypes.c_void_p,
    )
    def copy(data, n, strides, unused):
        threads.add(threading.get_ident())
        ctypes.memmove(data[1], data[0], 8 * n[0])

    functions = (ctypes.c_void_p * 1)(ctypes.cast(copy, ctypes.c_void_p))
    data = (ctypes.c_void_p * 1)(None)
    types = bytes([np.dtype("d").num] * 2)
    add = new_ufunc(functions, data, types, 1, 1, 1, -1, b"add", b"", 0)
    a = np.arange(1_000_000) + 0.5
    with np.deferredstate(True):
        x = add(a) * 2
        assert x.flags.deferred
        np.deferred.calculate(x)
    assert (x == a * 2).all() and threads == {threading.get_ident()}
    """
    done = run_python(code, timeout=60)
    assert done.returncode == 0, done.stderr


class TestNumber:
    def test_environment(self):
        code = "import numpy as np; print(np.deferred.get_num_threads())"
        few = {"OMP_NUM_THREADS": "3"}
        assert output_of(code, **few) == "3"
        assert output_of(code, OMP_NUM_THREADS="2,4") == "2"
        assert output_of(code, NUMPY_DEFERRED_NUM_THREADS="5", **few) == "5"
        assert output_of(code, NUMPY_DEFERRED_NUM_THREADS="9999") == "256"
        ours = len(os.sched_getaffinity(0))
        for meaningless in ("", "0", "many", "-1"):
            assert 1 <= int(output_of(code, OMP_NUM_THREADS=meaningless)) <= ours

    def test_affinity(self):
        code = """
        import os
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        import numpy as np
        print(np.deferred.get_num_threads())
        """
        assert output_of(code, OMP_NUM_THREADS="") == "1"

    def test_set(self, num_threads):
        previous = np.deferred.get_num_threads()
        assert num_threads(4) == previous
        assert num_threads(np.int64(1)) == 4
        assert num_threads(10**6) == 1
        assert np.deferred.get_num_threads() == 256

    @pytest.mark.parametrize("value", [0, -1, -(2**70)])
    def test_too_few(self, value):
        with pytest.raises((ValueError, OverflowError)):
            np.deferred.set_num_threads(value)

    @pytest.mark.parametrize("value", [1.5, None, "1"])
    def test_not_an_integer(self, value):
        with pytest.raises(TypeError):
            np.deferred.set_num_threads(value)
