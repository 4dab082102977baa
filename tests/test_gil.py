"""Large calculations give up the GIL: who goes on meanwhile, and who waits."""

import os
import signal
import sys
import threading
import time

import numpy as np
import pytest

from helpers.compare import bits
from helpers.process import run_python

_core = np._core._multiarray_umath

WAIT = 60.0


@pytest.fixture(autouse=True)
def worth():
    """Sets from how much work on the GIL is given up; 0 is always."""
    previous = _core._deferred_set_gil_worth(0)
    yield _core._deferred_set_gil_worth
    _core._deferred_set_gil_worth(previous)


def long_expression(a):
    for _ in range(4):
        a = np.sin(a) * np.cos(a) + np.arctan(a)
    return a


@pytest.fixture(scope="module")
def large():
    """An operand whose long_expression takes a third of a second, and its values."""
    n = 100_000
    while True:
        with np.deferredstate(False):
            a = np.linspace(0, 1, n)
            start = time.perf_counter()
            expected = long_expression(a)
        if time.perf_counter() - start > 0.3:
            return a, expected
        n *= 2


class Background:
    """Calculates in a thread; leaves the block when that is done."""

    def __init__(self, function):
        self.result = self.error = None
        self.started = threading.Event()
        self.done = False

        def run():
            self.started.set()
            try:
                self.result = function()
            except BaseException as error:
                self.error = error
            self.done = True

        self.thread = threading.Thread(target=run)

    def __enter__(self):
        self.thread.start()
        self.started.wait()
        time.sleep(0.02)  # it is within the calculation now
        return self

    def __exit__(self, *exception):
        self.thread.join(WAIT)
        assert not self.thread.is_alive(), "the calculation hangs"
        if self.error is not None:
            raise self.error


def same(x, expected):
    with np.deferredstate(False):
        return bits(x) == bits(expected)


READERS = {
    "calculate": lambda x: np.deferred.calculate(x),
    "sum": lambda x: x.sum(),
    "mean over an axis": lambda x: x.mean(axis=0),
    "out": lambda x: np.add(x, 1, out=np.empty_like(x)),
    "assign": lambda x: np.empty(x.shape).__setitem__(..., x),
}


class TestOthersGoOn:
    @pytest.mark.parametrize("reader", READERS)
    @pytest.mark.parametrize("nthreads", [1, 2])
    def test_count(self, deferred, large, reader, nthreads, num_threads, worth):
        """With the bound that users have."""
        worth(1 << 18)
        num_threads(nthreads)
        x = long_expression(large[0])
        counted = 0
        with Background(lambda: READERS[reader](x)) as background:
            while not background.done:
                counted += 1
                time.sleep(0.001)
        assert counted >= 10

    def test_arrays_of_their_own(self, deferred, large):
        """Neither reading nor writing what is not deferred waits for anybody."""
        x = long_expression(large[0])
        v = np.arange(1000.0)
        np.deferred.calculate(v)
        with Background(lambda: np.deferred.calculate(x)) as background:
            with np.deferredstate(False):
                v[3] = 7.0
                w = v + 1
                total = w.sum()
            went_on = not background.done
        assert went_on
        assert total == 500_504
        assert same(x, large[1])

    def test_small_calculations_keep_it(self, deferred, worth):
        worth(1 << 18)
        a = np.arange(1000.0)
        assert np.deferred.calculate(np.sin(a)) is None


class TestOthersWait:
    def test_same_array(self, deferred, large):
        """It is calculated once."""
        before = np.deferred.stats()["calculated"]
        x = long_expression(large[0])
        with Background(lambda: np.deferred.calculate(x)) as background:
            first = float(x[5])
            assert background.done or not x.flags.deferred
        assert first == large[1][5]
        assert same(x, large[1])
        assert np.deferred.stats()["calculated"] == before + 1

    @pytest.mark.parametrize(
        "write",
        [
            lambda a: a.__setitem__(slice(None), 7.0),
            lambda a: a.fill(7.0),
            lambda a: a.sort(),
            lambda a: np.add(a, 1, out=a),
            lambda a: a.resize(10, refcheck=False),
            lambda a: memoryview(a).__setitem__(0, 7.0),
            lambda a: a[::-1].__setitem__(slice(5), 7.0),
            lambda a: setattr(a, "shape", (2, -1)),
            lambda a: np.copyto(a, 7.0),
            lambda a: np.random.default_rng(1).standard_normal(out=a),
        ],
    )
    def test_write_to_an_operand(self, deferred, large, write):
        a = large[0][::-1].copy()
        x = long_expression(a)
        with Background(lambda: np.deferred.calculate(x)):
            write(a)
            assert not x.flags.deferred
        assert same(x, large[1][::-1])

    def test_change_of_the_result(self, deferred, large):
        x = long_expression(large[0])
        with Background(lambda: np.deferred.calculate(x)):
            x[0] = 7.0
        assert x[0] == 7.0
        assert same(x[1:], large[1][1:])

    def test_operations_on_it(self, deferred, large):
        x = long_expression(large[0])
        with Background(lambda: np.deferred.calculate(x)):
            y, z = x * 2, x[::-1] + x
            x += 1
        assert same(y, large[1] * 2)
        assert same(x, large[1] + 1)
        assert same(z, large[1][::-1] + large[1])

    def test_dropped(self, deferred, large):
        """By the thread that had it; its calculation has it, too."""
        x = [long_expression(large[0].copy())]
        with Background(lambda: x[0].sum()) as background:
            x.clear()
        assert background.result == large[1].sum()

    def test_error_state(self, deferred, large):
        x = long_expression(large[0])
        with (
            Background(lambda: np.deferred.calculate(x)),
            np.errstate(divide="raise"),
        ):
            pass
        assert same(x, large[1])

    @pytest.mark.parametrize("way", ["explain", "calculate_all", "set_num_threads"])
    def test_others(self, deferred, large, way, num_threads):
        x = long_expression(large[0])
        y = x + 1
        with Background(lambda: np.deferred.calculate(x)):
            if way == "explain":
                assert "add" in str(np.deferred.explain(y))
            elif way == "calculate_all":
                np.deferred.calculate_all()
            else:
                num_threads(3)
                np.deferred.calculate(y)
        assert same(y, large[1] + 1)


class TestErrors:
    def test_are_the_threads_own(self, deferred, large):
        a = large[0].copy()
        a[5] = 0.0
        with np.errstate(divide="raise"):
            x = 1 / a
            with (
                pytest.raises(FloatingPointError, match="divide by zero"),
                Background(x.sum),
            ):
                pass
            assert x.flags.deferred
            del x


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
class TestFork:
    @pytest.mark.parametrize("nthreads", [1, 2])
    def test_while_another_thread_calculates(self, nthreads):
        """The child has all of it, or none; its own calculations run."""
        code = f"""
import os, threading, time, warnings
import numpy as np
warnings.simplefilter("ignore")
np.setdeferred(True)
np.deferred.set_num_threads({nthreads})
n = 4_000_000
a = np.linspace(0, 1, n)
np.deferred.calculate(a)
def expression():
    return np.sin(a) * np.cos(a) + np.arctan(a)
with np.deferredstate(False):
    expected = expression()
for repeat in range(8):
    x, y = expression(), expression()
    t = threading.Thread(target=np.deferred.calculate, args=(x,))
    t.start()
    time.sleep(0.003 * repeat)
    pid = os.fork()
    if pid == 0:
        with np.deferredstate(False):
            right = (x == expected).all() and (y == expected).all()
        os._exit(0 if right else 1)
    assert os.waitpid(pid, 0)[1] == 0
    t.join()
    with np.deferredstate(False):
        assert (x == expected).all()
        assert (y == expected).all()
"""
        done = run_python(code)
        assert done.returncode == 0, done.stderr

    def test_calculations_begin_while_python_prepares(self):
        """What others do before a fork, after us, lets other threads run."""
        code = """
import os, threading, time
os.register_at_fork(before=lambda: time.sleep(0.05))
import numpy as np
np.deferred.set_num_threads(1)
a = np.linspace(0, 1, 1_000_000)
np.deferred.calculate(a)
def calculate():
    np.deferred.calculate(np.sin(a) * np.cos(a) + np.arctan(a))
def work():
    while not stop:  # a thread that ends needs locks, too
        t = threading.Thread(target=calculate)
        t.start()
        t.join()
stop = False
t = threading.Thread(target=work)
t.start()
for repeat in range(8):
    pid = os.fork()
    if pid == 0:
        x = a * 2 + 1
        os._exit(0 if x[-1] == 3 else 1)
    assert os.waitpid(pid, 0)[1] == 0
stop = True
t.join()
"""
        done = run_python(code, NUMPY_DEFERRED="1")
        assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
class TestInterrupts:
    @pytest.mark.parametrize("busy", [False, True])
    def test_while_others_have_the_gil(self, deferred, large, busy, worth):
        """The array stays deferred, and nothing is lost."""
        worth(1 << 18)
        # A shell may have started all this with the signal ignored.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        xs = [long_expression(large[0]) for _ in range(8)]
        x = sum(xs[1:], xs[0])
        del xs
        stop = False

        def spin():
            while not stop:
                pass

        threads = [threading.Thread(target=spin)] if busy else []
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        for thread in [*threads, timer]:
            thread.start()
        try:
            start = time.perf_counter()
            with pytest.raises(KeyboardInterrupt):
                np.deferred.calculate(x)
            taken = time.perf_counter() - start
        finally:
            stop = True
            for thread in [*threads, timer]:
                thread.join()
            signal.signal(signal.SIGINT, before)
        assert x.flags.deferred
        assert taken < 2
        assert same(x, sum([large[1]] * 7, large[1]))


class TestEnd:
    def test_daemon_still_calculates(self):
        """Whoever calculates while Python ends does not wait for it."""
        code = """
import threading, time
import numpy as np
np.setdeferred(True)
a = np.linspace(0, 1, 30_000_000)
np.deferred.calculate(a)
b = np.ones(1000)
class Last:
    def __init__(self):
        self.x = b * 2
        self.calculate = np.deferred.calculate
        self.print = print
    def __del__(self):
        self.calculate(self.x)
        self.print("done")
last = Last()
x = np.sin(a) * np.cos(a) + np.arctan(a)
threading.Thread(target=np.deferred.calculate, args=(x,), daemon=True).start()
time.sleep(0.05)
"""
        done = run_python(code)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "done\n"


class TestManyThreads:
    def test_all_together(self, deferred):
        """All threads read, write and drop them; what is read once stays the same."""
        # So few that eager NumPy writes all of them before it gives up the GIL.
        shared = [np.sin(np.arange(400.0) + k) for k in range(4)]
        sizes = [abs(a) for a in shared]
        np.deferred.calculate(*shared, *sizes)
        errors = []
        end = time.monotonic() + 3.0

        def work(seed):
            choose = np.random.default_rng(seed)
            np.setdeferred(True)
            try:
                while time.monotonic() < end:
                    i, j = choose.integers(0, 4, 2)
                    a, b = shared[i], shared[j]
                    x = abs(a) + abs(b)
                    y = x - sizes[i] - sizes[j]
                    kind = choose.integers(0, 5)
                    if kind == 0:
                        np.deferred.calculate(x)
                    elif kind == 1:
                        del x
                    elif kind == 2:
                        float(y.sum())
                    elif kind == 3:
                        a *= -1
                    else:
                        y += 1
                        y -= 1
                    assert float(abs(y).max()) < 1e-12
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
            assert not thread.is_alive(), "a thread hangs"
        if errors:
            raise errors[0]
