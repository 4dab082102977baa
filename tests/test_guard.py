"""Compiled code that reads `data` from the structure finds values there.

Most tests run in processes of their own: they end with signals, limit the
address space, or install handlers.  `_touch` is compiled against stock NumPy's
headers where there is one, else against ours; it reads the structure itself.
"""

import os
import platform
import signal
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from helpers.extensions import SUFFIX, build_extensions
from helpers.process import printed, run_python
from helpers.sanitizers import has_the_memory_alone, under

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the fault handler is there on Linux only"
)

SITE_PACKAGES = Path(np.__file__).parent.parent
PAGE = os.sysconf("SC_PAGESIZE")

# What every process begins with.
PREAMBLE = """
import faulthandler, gc, importlib.util, os, signal, sys, threading
import numpy as np
spec = importlib.util.spec_from_file_location("_touch", os.environ["TOUCH"])
touch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(touch)
np.setdeferred(True)

def vector(n):
    a = np.arange(n) + 0.5
    np.deferred.calculate(a)
    return a

def deferred(n):
    a = vector(n)  # a temporary would be written to in place, at once
    x = a * 2 + 1
    assert x.flags.deferred or not np.getdeferred()
    return x

def expected(i):
    return (i + 0.5) * 2 + 1
"""


@pytest.fixture(scope="session")
def extensions(tmp_path_factory):
    """The extension, compiled against our headers and against stock NumPy's."""
    found = {"ours": SITE_PACKAGES, "stock": os.environ.get("NUMPY_STOCK") or None}
    for name, site_packages in found.items():
        if site_packages is not None:
            directory = tmp_path_factory.mktemp("touch") / name
            built = build_extensions(site_packages, directory)
            found[name] = built / f"_touch{SUFFIX}"
    return found


@pytest.fixture(scope="session")
def touch_path(extensions):
    return extensions["stock"] or extensions["ours"]


@pytest.fixture
def python(touch_path):
    """Run code after PREAMBLE in a process of its own."""

    def run(code, **environment):
        code = PREAMBLE + textwrap.dedent(code)
        environment.setdefault("TOUCH", str(touch_path))
        environment.setdefault("PYTHONFAULTHANDLER", "")
        return run_python(code, **environment)

    return run


@pytest.fixture
def passes(python):
    return lambda code, **environment: printed(python(code, **environment))


SIZES = [1, 7, 511, 512, 513, 5_000, 65_536, 262_144, 262_145, 1_000_003]


class TestTouch:
    def test_read(self, passes):
        """At the address that was fetched before, which is `data` ever after."""
        passes(f"""
        for n in {SIZES}:
            for i in {{0, n // 2, n - 1}}:
                x = deferred(n)
                address = touch.address(x)
                assert touch.read(address, i) == expected(i), (n, i)
                assert not x.flags.deferred
                assert touch.address(x) == x.ctypes.data == address
                assert x.flags.owndata and x.flags.writeable
                assert (x == vector(n) * 2 + 1).all()
        assert np.deferred.stats()["late"] > 0
        """)

    def test_write(self, passes):
        passes(f"""
        for n in {SIZES}:
            x = deferred(n)
            touch.write(x, n - 1, 7.0)
            assert x[n - 1] == 7 and (x[:-1] == (vector(n) * 2 + 1)[:-1]).all()
        """)

    def test_address_of_a_large_array_stays(self, passes):
        passes("""
        for n in (262_145, 1_000_003, 10_000_000):
            x = deferred(n)
            address = touch.address(x)
            np.deferred.calculate(x)
            assert touch.address(x) == address
            assert touch.read(address, n - 1) == expected(n - 1)
        assert np.deferred.stats()["late"] == 0
        """)

    @pytest.mark.parametrize("n", [512, 5_000, 262_144])
    def test_late_use_of_a_smaller_array(self, passes, n):
        """The old address and the new show one copy of the values."""
        passes(f"""
        n = {n}
        x = deferred(n)
        old = touch.address(x)
        np.deferred.calculate(x)
        new = touch.address(x)
        assert new != old
        view = x[1:]
        for k in range(5):
            touch.write(old, 1, k)
            assert x[1] == view[0] == touch.read(new, 1) == k
            touch.write(new, 1, -k)
            assert touch.read(old, 1) == x[1] == -k
        assert touch.read(old, n - 1) == expected(n - 1)
        del x
        assert view[-1] == expected(n - 1)
        del view
        # What they lay in is used again.
        for _ in range(50):
            x = deferred(n)
            np.deferred.calculate(x)
            assert touch.read(x, n - 1) == expected(n - 1)
        """)

    def test_late_use_of_a_tiny_array(self, python):
        """Its values lie where malloc put them: a message, never wrong values."""
        done = python("""
        x = deferred(3)
        old = touch.address(x)
        np.deferred.calculate(x)
        print(touch.read(old, 0))
        """)
        assert done.returncode == -signal.SIGABRT
        assert done.stdout == ""
        assert "used after it had changed" in done.stderr

    @pytest.mark.skipif(platform.machine() != "x86_64", reason="no such instruction")
    def test_both_addresses_in_one_instruction(self, python):
        """The pages cannot be at both: a message, not a loop for ever."""
        done = python("""
        x = deferred(8192)
        old = touch.address(x)
        np.deferred.calculate(x)
        touch.copy(old, touch.address(x), x.nbytes)
        """)
        assert done.returncode == -signal.SIGSEGV
        assert "uses two addresses of a deferred array at once" in done.stderr

    def test_operands_and_results(self, passes):
        """A touch in the middle of an expression."""
        passes("""
        a = vector(5000)
        x = a * 2
        y = x + a
        assert touch.read(x, 3) == 7
        assert y.flags.deferred
        assert touch.read(y, 3) == 10.5
        assert np.deferred.usage_count(a) == 0
        """)

    @pytest.mark.skipif(under("tsan"), reason="it blocks signals in handlers")
    @pytest.mark.parametrize("threads", [1, 3])
    @pytest.mark.parametrize("n", [512, 5_000, 262_144])
    def test_touch_while_a_touch_is_answered(self, passes, n, threads):
        """The operand's pages are at its old address, which a late use has read."""
        passes(f"""
        np.deferred.set_num_threads({threads})
        n = {n}
        a = vector(n)
        r = a * 2
        old = touch.address(r)
        np.deferred.calculate(r)
        assert touch.address(r) != old
        x = r + 1
        assert touch.read(old, 1) == 3
        assert x.flags.deferred
        assert touch.read(x, 1) == 4
        assert touch.read(x, n - 1) == expected(n - 1)
        assert touch.read(old, n - 1) == touch.read(r, n - 1) == 2 * n - 1
        """)

    def test_exception_is_kept(self, passes):
        passes("""
        x = deferred(10)
        try:
            raise KeyError(1)
        except KeyError:
            assert touch.read(x, 1) == expected(1)
            assert sys.exc_info()[0] is KeyError
        """)

    @pytest.mark.skipif(under("tsan"), reason="needs five times the memory")
    def test_gigabytes(self, passes):
        """Address space for more than there is memory; none of it is touched."""
        passes("""
        one = np.broadcast_to(np.ones(1), 2**35)
        x = one + one
        assert x.flags.deferred and x.nbytes == 2**38
        del x
        a = np.ones(2**27)
        x = a + 1
        assert touch.read(x, 2**27 - 1) == 2
        """)

    def test_many_alive(self, passes):
        """More than a process may have mappings."""
        passes("""
        a = vector(4)
        arrays = [a + i for i in range(100_000)]
        assert len(set(map(touch.address, arrays))) == 100_000
        for i in range(0, 100_000, 5):
            assert touch.read(arrays[i], 1) == 1.5 + i
        for i, x in enumerate(arrays):
            assert x[1] == 1.5 + i
            if i % 5:
                x[1] = 0
        assert arrays[5][1] == 6.5
        del arrays, x
        assert touch.read(a + 1, 0) == 1.5
        """)

    def test_touched_one_by_one(self, passes):
        """Every touch takes mappings, and there are less than arrays."""
        passes("""
        a = vector(512)
        arrays = [a + i for i in range(30_000)]
        for i, x in enumerate(arrays):
            assert touch.read(x, 1) == 1.5 + i
        """)


@has_the_memory_alone
class TestMappings:
    """A process may have so many mappings (vm.max_map_count) and no more."""

    USE_UP = """
        import mmap
        maps = []
        def use_up(leave):
            try:
                while True: # neighbours that are not alike
                    prot = mmap.PROT_READ if len(maps) % 2 else mmap.PROT_WRITE
                    maps.append(mmap.mmap(-1, 4096, prot=prot))
            except OSError:
                pass
            del maps[-leave:]
        """

    @pytest.mark.parametrize("leave", [1, 2, 3, 4, 6, 10])
    def test_values_lie_elsewhere(self, python, leave):
        """Then `data` changes; a late use finds them, or ends with a message."""
        code = f"""{self.USE_UP}
        arrays = [deferred(n) for n in (3, 700, 200_000, 1_000_000)]
        old = [touch.address(x) for x in arrays]
        use_up({leave})
        np.deferred.calculate(*arrays)
        for x in arrays:
            assert x[0] == 2 and x[-1] == expected(x.size - 1)
        del maps[:]
        for address, x in zip(old, arrays, strict=True):
            pid = os.fork()
            if pid == 0:
                touch.write(address, 1, 7.0)
                os._exit(int(x[1] != 7))
            status = os.waitpid(pid, 0)[1]
            assert status == 0 or os.WTERMSIG(status) == signal.SIGABRT
            print(x.size, status == 0)
        del arrays, x
        for _ in range(20):
            x = deferred(200_000)
            assert touch.read(x, 9) == expected(9)
        """
        # Python's own memory may need the mapping that is left.
        done = python(code, PYTHONMALLOC="malloc")
        assert done.returncode == 0, done.stderr
        answered = dict(line.split() for line in done.stdout.splitlines())
        assert answered["3"] == "False"
        if leave == 10:
            assert answered["200000"] == answered["1000000"] == "True"
        deaths = done.stderr.count("used after it had changed")
        assert deaths == list(answered.values()).count("False")

    def test_touched_without_room(self, python):
        """Values cannot be had there: a message."""
        done = python(f"""{self.USE_UP}
        x = deferred(1_000_000)
        use_up(1)
        print(touch.read(x, 0))
        """)
        assert done.returncode == -signal.SIGABRT
        assert "cannot be moved there" in done.stderr or "no memory" in done.stderr


class TestThreads:
    @pytest.mark.parametrize("how", ["join", "spin", "yield", "release", "here"])
    @pytest.mark.parametrize("n", [1, 700, 20_000, 300_000])
    def test_all_see_values(self, passes, how, n):
        """Also when the GIL is held by who waits for the readers."""
        passes(f"""
        for _ in range(5):
            x = deferred({n})
            with np.deferredstate(False):
                total = deferred({n}).tolist()
            assert touch.sums(x, {how!r}, 8 if {how!r} != "here" else 1) \\
                == [sum(total)] * (8 if {how!r} != "here" else 1)
            assert not x.flags.deferred
        """)

    def test_busy_interpreter(self, passes):
        """Another thread runs Python code meanwhile."""
        passes("""
        stop = False
        def spin():
            while not stop:
                sum(range(100))
        thread = threading.Thread(target=spin)
        thread.start()
        for how in ("release", "here", "join"):
            x = deferred(5000)
            assert touch.sums(x, how, 1) == [sum(x.tolist())]
        stop = True
        thread.join()
        """)

    def test_readers_in_many_python_threads(self, passes):
        passes("""
        arrays = [deferred(700 + 1000 * i) for i in range(20)]
        wrong = []
        def read():
            for x in arrays:
                for how in ("release", "here"):
                    for total in touch.sums(x, how, 1):
                        if total != sum(x.tolist()):
                            wrong.append(x)
        threads = [threading.Thread(target=read) for _ in range(6)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert not wrong
        """)

    def test_no_thread_is_left(self, passes):
        """fork() warns of threads."""
        passes("""
        import time
        before = os.listdir("/proc/self/task") # BLAS has some
        x = deferred(700)
        touch.sums(x, "release", 2)
        for _ in range(100):
            if os.listdir("/proc/self/task") == before:
                break
            time.sleep(0.05)
        else:
            raise AssertionError
        touch.sums(deferred(700), "release", 2)
        """)

    @pytest.mark.parametrize("how", ["join", "release"])
    def test_small_alternate_stack(self, passes, how):
        """A calculation needs more than that."""
        passes(f"""
        x = deferred(50_000)
        assert touch.sums(x, {how!r}, 3, 1) == [sum(x.tolist())] * 3
        """)

    def test_fork(self, passes):
        passes("""
        arrays = [deferred(n) for n in (3, 700, 300_000)]
        touch.sums(deferred(700), "release", 1)
        import warnings
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            pid = os.fork()
        # From Python 3.12 on: that there are other threads.
        assert not seen, seen[0].message
        ok = all(touch.read(x, 2) == expected(2) for x in arrays)
        x = deferred(5000)
        ok = ok and touch.sums(x, "release", 2) == [sum(x.tolist())] * 2
        for x in arrays:
            touch.write(x, 2, os.getpid())
        if pid == 0:
            os._exit(0 if ok else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert ok and all(x[2] == os.getpid() for x in arrays)
        """)


ENABLE = {
    "never": ("", ""),
    "before": ("faulthandler.enable()", ""),
    "after": ("", "faulthandler.enable()"),
    "both": ("faulthandler.enable()", "faulthandler.enable()"),
    "disabled": ("faulthandler.enable()", "faulthandler.disable()"),
    "on and off": ("", "faulthandler.enable(); faulthandler.disable()"),
}


class TestOtherHandlers:
    @pytest.mark.parametrize("when", ENABLE)
    def test_faulthandler(self, python, when):
        """A touch shows nothing, a real fault what it always does."""
        before, after = ENABLE[when]
        done = python(f"""
        {before}
        x, y = deferred(10), deferred(10_000)
        {after}
        assert touch.read(x, 1) == touch.read(y, 1) == expected(1)
        print("read", file=sys.stderr, flush=True)
        touch.read(0, 0)
        """)
        assert done.returncode == -signal.SIGSEGV
        shown = when in ("before", "after", "both")
        assert done.stderr.startswith("read\n")
        assert done.stderr.count("Fatal Python error: Segmentation fault") == shown
        assert done.stderr.count("Current thread") == shown

    @pytest.mark.parametrize("when", ENABLE)
    @pytest.mark.parametrize(
        "fault",
        [
            "touch.read(8, 0)",
            "os.kill(os.getpid(), signal.SIGSEGV)",
            "signal.raise_signal(signal.SIGSEGV)",
            "touch.read(0x8000_0000_0000_0000, 0)",
            # Beyond the array, within its slot.
            "touch.read(x, 1_000_000)",
            # After it was dropped.
            "address = touch.address(x); del x; touch.read(address, 0)",
            "touch.overflow()",
        ],
        ids=["null", "kill", "raise", "non-canonical", "beyond", "dropped", "overflow"],
    )
    def test_as_without_us(self, python, when, fault):
        if under("tsan") and when == "after" and "signal" in fault:
            pytest.skip("it blocks all signals in a handler, so raise() comes later")
        before, after = ENABLE[when]
        code = """
        {before}
        {state}
        a = vector(600_000)
        x = a + 1
        {after}
        {fault}
        """
        ours = python(code.format(before=before, after=after, fault=fault, state=""))
        assert ours.returncode == -signal.SIGSEGV
        if "x" in fault:
            return
        off = "np.setdeferred(False)"
        other = python(code.format(before=before, after=after, fault=fault, state=off))
        assert ours.returncode == other.returncode

        def text(done):
            return [
                line for line in done.stderr.splitlines() if "thread 0x" not in line
            ]

        assert text(ours) == text(other)

    @pytest.mark.parametrize("first", [True, False])
    def test_others_are_called(self, python, first):
        """Theirs is called for a real fault only, wherever it stands."""
        steps = ['touch.handle("pass on")', "x = deferred(1000)"]
        install, defer = steps if first else reversed(steps)
        done = python(f"""
        {install}
        {defer}
        a = vector(5)
        for _ in range(200):
            a + 1
        assert touch.read(x, 1) == expected(1)
        assert touch.handled() == 0
        touch.read(0, 0)
        """)
        assert done.returncode == -signal.SIGSEGV, done.stderr

    def test_handlers_that_escape(self, passes):
        """They jump out of the handler, again and again."""
        passes("""
        touch.handle("escape")
        x = deferred(1000)
        for k in range(1, 30):
            assert touch.try_to_read(8) is None
            assert touch.handled() == k
        assert touch.try_to_read(touch.address(x)) == 2
        assert touch.handled() == k
        """)

    def test_python_handler(self, passes):
        """What signal.signal installs is seen and called as before."""
        passes("""
        got = []
        signal.signal(signal.SIGSEGV, lambda *_: got.append(1))
        x = deferred(1000)
        assert touch.read(x, 1) == expected(1)
        os.kill(os.getpid(), signal.SIGSEGV)
        assert got == [1]
        """)

    def test_ignored(self, passes):
        passes("""
        signal.signal(signal.SIGSEGV, signal.SIG_IGN)
        x = deferred(1000)
        assert touch.read(x, 1) == expected(1)
        os.kill(os.getpid(), signal.SIGSEGV)
        """)


class TestModes:
    def test_off(self, python):
        done = python("touch.read(deferred(10), 0)", NUMPY_DEFERRED_GUARD="off")
        assert done.returncode == -signal.SIGSEGV
        assert done.stderr == ""

    def test_wrong(self, python):
        done = python("", NUMPY_DEFERRED_GUARD="perhaps")
        assert "NUMPY_DEFERRED_GUARD must be off, on, report, trap" in done.stderr

    @pytest.mark.parametrize("mode", ["report", "trap"])
    @pytest.mark.parametrize("how", ["touch.read(x, 0)", 'touch.sums(x, "release", 1)'])
    def test_report(self, python, mode, how):
        done = python(
            f"""
            a = vector(12).reshape(3, 4)
            x = np.hypot(a, 1) # here
            {how} # touched
            print("done")
            """,
            NUMPY_DEFERRED_GUARD=mode,
        )
        trap = mode == "trap"
        assert done.returncode == (-signal.SIGABRT if trap else 0)
        assert (done.stdout == "done\n") != trap
        assert "_touch" in done.stderr, "the C stack"
        assert "array of shape (3, 4) and dtype('float64')" in done.stderr
        line = PREAMBLE.count("\n") + 3
        assert f"the result of hypot, written in <string>, line {line}" in done.stderr
        if "read" in how:
            assert f'File "<string>", line {line + 1}, in <module>' in done.stderr


class TestHeaders:
    """PyArray_DATA and PyArray_GETPTR1, as the headers have them."""

    @pytest.mark.parametrize("guard", ["on", "off", "trap"])
    def test_ours_calculate(self, extensions, guard):
        done = run_python(
            PREAMBLE
            + textwrap.dedent("""
            for read in (touch.sum_data, touch.sum_items):
                for n in (3, 5000, 200_000):
                    x = deferred(n)
                    with np.deferredstate(False):
                        expected = deferred(n)
                    assert read(x) == read(expected)
                    assert not x.flags.deferred
            assert np.deferred.stats()["late"] == 0
            with np.errstate(divide="raise"):
                x = 1 / np.zeros(10)
                try:
                    touch.sum_data(x)
                    for _ in range(10): pass
                    raise AssertionError
                except FloatingPointError:
                    pass
            assert not x.flags.deferred
            """),
            TOUCH=str(extensions["ours"]),
            NUMPY_DEFERRED_GUARD=guard,
        )
        assert done.returncode == 0, done.stderr

    def test_descriptor_asked_for_while_raising(self, passes):
        """It has everything calculated, see test_neighbours.py."""
        passes("""
        x = deferred(5000)
        try:
            touch.ask_while_raising("mine")
        except KeyError as error:
            assert error.args == ("mine",)
        else:
            raise AssertionError
        assert not x.flags.deferred and x[7] == expected(7)
        """)

    def test_stock_headers_meet_the_guard(self, extensions):
        if extensions["stock"] is None:
            pytest.skip("no stock NumPy: `spin stock` builds it")
        code = PREAMBLE + "x = deferred(9)\ntouch.sum_data(x)\n"
        code += 'print(np.deferred.stats()["late"])\n'
        done = run_python(code, TOUCH=str(extensions["stock"]))
        assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr

    def test_ours_on_stock(self, extensions):
        stock = os.environ.get("NUMPY_STOCK")
        if not stock:
            pytest.skip("no stock NumPy: `spin stock` builds it")
        code = PREAMBLE.replace("np.setdeferred(True)", "")
        code += "print(touch.sum_data(np.ones(9)), touch.sum_items(np.ones(9)))"
        done = run_python(code, TOUCH=str(extensions["ours"]), PYTHONPATH=stock)
        assert (done.returncode, done.stdout) == (0, "9.0 9.0\n"), done.stderr


class TestErrors:
    def test_raise(self, passes):
        """The values are there, and the exception comes at the next bytecode."""
        passes("""
        zero = np.zeros(10)
        with np.errstate(divide="raise"):
            x = 1 / zero
            try:
                touch.read(x, 0)
                for _ in range(10): pass
                raise AssertionError
            except FloatingPointError as error:
                assert "divide by zero" in str(error)
        assert not x.flags.deferred and x[0] == np.inf
        """)

    @pytest.mark.parametrize("how", ["join", "release"])
    def test_warn(self, passes, how):
        passes(f"""
        import warnings
        zero = np.zeros(10)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            x = 1 / zero
            assert touch.sums(x, {how!r}, 2) == [np.inf, np.inf]
            for _ in range(10): pass
        assert ["divide by zero" in str(w.message) for w in caught] == [True]
        """)

    def test_no_memory(self, python):
        done = python("""
        import resource
        y = np.broadcast_to(np.ones(1), 2**27) + 1
        for line in open("/proc/self/status"):
            if line.startswith("VmData"):
                size = int(line.split()[1]) * 1024 + 2**28
        resource.setrlimit(resource.RLIMIT_DATA, (size, resource.RLIM_INFINITY))
        touch.read(y, 0)
        """)
        assert done.returncode == -signal.SIGABRT
        assert "array of shape (134217728,)" in done.stderr
        assert "no memory for its values" in done.stderr

    @has_the_memory_alone
    @pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
    def test_limits_below_what_there_is(self, passes, limit):
        """Pages that cannot be moved stay where they are, and so do addresses."""
        passes(f"""
        import resource
        def mapped(address, nbytes):
            found = 0
            for line in open("/proc/self/maps"):
                start, end = (int(x, 16) for x in line.split()[0].split("-"))
                found += max(0, min(end, address + nbytes) - max(start, address))
            return found == nbytes
        a = vector(1_000_000)
        for slack in range(0, 40, 8):
            x, y, z = a + 1, a * 2, a - 3
            addresses = [touch.address(array) for array in (x, y, z)]
            field = 0 if resource.{limit} == resource.RLIMIT_AS else 5
            size = int(open("/proc/self/statm").read().split()[field]) * 4096
            limit = size + (slack - 16) * 2**20
            resource.setrlimit(resource.{limit}, (limit, resource.RLIM_INFINITY))
            for array in (x, y, z):
                try:
                    array[0]
                except MemoryError:
                    pass
            resource.setrlimit(resource.{limit}, (resource.RLIM_INFINITY,) * 2)
            assert all(mapped(address, a.nbytes) for address in addresses)
            assert [touch.read(address, 7) for address in addresses] == [8.5, 15, 4.5]
        """)

    @has_the_memory_alone
    def test_limited_address_space(self, passes):
        """Little is reserved; what finds no room is not deferred."""
        passes("""
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (2**31, resource.RLIM_INFINITY))
        def size():
            return int(open("/proc/self/statm").read().split()[0]) * 4096
        before = size()
        a = vector(50_000)
        arrays = [a + i for i in range(600)]
        assert size() - before < 2**31 // 8 + 2**26
        assert any(x.flags.deferred for x in arrays)
        for i, x in enumerate(arrays):
            assert touch.read(x, 7) == 7.5 + i
        try:
            np.broadcast_to(a[:1], 2**28) + 1
            raise AssertionError
        except MemoryError:
            pass
        del arrays, x
        x = a + 1
        assert x.flags.deferred and touch.read(x, 1) == 2.5
        """)
