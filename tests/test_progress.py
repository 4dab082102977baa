"""np.deferred.progress: a line that a long calculation writes."""

import io
import os
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np
import numpy._core._multiarray_umath as core
import pytest

from helpers.process import run_python

N = 2_000_000
LINE = re.compile(
    r"calculating +(\d+)% \|(#*)(\.*)\| (\S+) of (\S+) elements, (\d+\.\d) s, (\S+)/s"
)


@pytest.fixture(autouse=True)
def without_tqdm(monkeypatch):
    """Whether or not it is installed."""
    monkeypatch.setitem(sys.modules, "tqdm", None)


@pytest.fixture
def log(tmp_path):
    with (tmp_path / "log").open("w+") as file:
        yield file


@pytest.fixture(scope="module")
def a():
    return np.linspace(0.1, 1, N)


def long(a, steps=8):
    x = a
    for _ in range(steps):
        x = np.exp(np.sin(x))
    return x


def assigned(a):
    out = np.empty(N)
    out[...] = long(a)
    return out


def transposed(a):
    return long(a.reshape(2, -1).T * a.reshape(-1, 2))


def single(a):
    return np.sin(a)


def lines(log):
    log.seek(0)
    found = [LINE.fullmatch(line) for line in log.read().splitlines()]
    assert all(found)
    for each in found:
        percent, filled, empty, done, total, _, rate = each.groups()
        assert len(filled) + len(empty) == 24
        part = float(done) / float(total)  # of rounded numbers
        assert abs(len(filled) - int(part * 24)) <= 1
        assert abs(int(percent) - int(part * 100)) <= 1
        assert (float(rate) > 0) == (part > 0)
    return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("function", [long, assigned, transposed, single])
def test_shown(function, threads, a, log, num_threads):
    """Two lines at least: the first on the way, the last when all is done."""
    num_threads(threads)
    with np.deferredstate(False):
        expected = function(a)
    with np.deferredstate(True), np.deferred.progress(0, log):
        x = function(a)
        np.deferred.calculate(x)
    assert x.tobytes() == expected.tobytes()
    first, last = lines(log)
    assert 0 <= int(first[1]) < 100
    assert float(first[4]) > 0 or threads > 1
    assert (last[1], last[4]) == ("100", last[5])
    assert float(last[5]) == N


def test_not_before_the_delay(a, log):
    with np.deferredstate(True), np.deferred.progress(600, log):
        np.deferred.calculate(long(a))
    assert lines(log) == []


def test_off_afterwards(a, log, num_threads):
    num_threads(1)
    with np.deferredstate(True):
        with np.deferred.progress(0, log):
            with np.deferred.progress(600):
                np.deferred.calculate(long(a))
            assert lines(log) == []
            np.deferred.calculate(long(a))
        np.deferred.calculate(long(a))
    assert len(lines(log)) == 2
    assert core._deferred_set_progress(-1, 0) == (-1, 0, None)


def test_terminal(a, num_threads):
    """While it is under way the line is rewritten, and it stays at the end."""
    num_threads(1)
    master, slave = os.openpty()
    seen, times = bytearray(), []

    def read():
        while not seen.endswith(b"\n"):
            seen.extend(os.read(master, 1000))

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w") as terminal, np.deferredstate(True):
        with np.deferred.progress(0, terminal):
            start = time.monotonic()
            np.deferred.calculate(long(a, 16))
            times.append(time.monotonic() - start)
        reader.join()
    os.close(master)
    updates = seen.decode().rstrip().split("\r")
    assert updates[0] == ""
    assert all(update.count("\033[K") == 1 for update in updates[1:])
    percents = [int(LINE.match(update)[1]) for update in updates[1:]]
    assert percents == sorted(percents)
    assert percents[-1] == 100
    assert 2 <= len(percents) <= 3 + 10 * times[0]


def test_output_comes_meanwhile():
    """A reader of the pipe sees the line before the calculation has ended."""
    code = """
    import os
    import numpy as np
    np.deferred.set_num_threads(1)
    read, write = os.pipe()
    with open(write, "w") as file, np.deferredstate(True):
        x = np.linspace(0.1, 1, 4_000_000)
        for _ in range(10):
            x = np.exp(np.sin(x))
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0 if os.read(read, 100) else 1)
        with np.deferred.progress(0, file):
            np.deferred.calculate(x)
            # The child ends with the first line, which is long before this.
            print(os.waitpid(child, os.WNOHANG) == (child, 0))
    """
    done = run_python(code)
    assert (done.stdout.strip(), done.stderr) == ("True", "")


def test_standard_error(a):
    code = """
    import numpy as np
    np.deferred.set_num_threads(1)
    with np.deferredstate(True), np.deferred.progress(delay=0):
        x = np.sin(np.ones(2_000_000))
        np.deferred.calculate(x)
    """
    done = run_python(code)
    assert done.returncode == 0
    assert [LINE.fullmatch(line)[1] for line in done.stderr.splitlines()][-1] == "100"


def test_standard_error_that_is_no_file(monkeypatch):
    for stderr in (None, io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stderr)
        assert np.deferred.progress()._settings == (2, 2_000_000_000, None)


def test_write_fails(a):
    """That is no error of the calculation."""
    read, write = os.pipe()
    os.close(read)
    with (
        os.fdopen(write, "w") as file,
        np.deferredstate(True),
        np.deferred.progress(0, file),
    ):
        x = long(a)
        np.deferred.calculate(x)
    with np.deferredstate(False):
        assert x.tobytes() == long(a).tobytes()


def test_interrupted(log):
    """The line ends where the calculation did, and the array stays deferred."""
    code = """
    import os, signal, sys, time
    import numpy as np
    np.deferred.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with np.deferredstate(True), np.deferred.progress(0, sys.stdout):
        x = np.linspace(0.1, 1, 4_000_000)
        for _ in range(10):
            x = np.exp(np.sin(x))
        if (child := os.fork()) == 0:
            time.sleep(0.1)
            os.kill(os.getppid(), signal.SIGINT)
            os._exit(0)
        try:
            np.deferred.calculate(x)
        except KeyboardInterrupt:
            assert x.flags.deferred
        os.waitpid(child, 0)
    """
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "")
    last = LINE.fullmatch(done.stdout.splitlines()[-1])
    assert int(last[1]) < 100


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), "soon"])
def test_wrong_delay(delay):
    with pytest.raises(ValueError, match=r"delay|convert"):
        np.deferred.progress(delay)


def test_wrong_file(log):
    with pytest.raises(AttributeError):
        np.deferred.progress(file="log")
    log.close()
    with pytest.raises(ValueError, match="closed"):
        np.deferred.progress(file=log)


def test_entered_twice(log):
    p = np.deferred.progress(0, log)
    with p, pytest.raises(TypeError, match="twice"):
        p.__enter__()


# ---- with tqdm ----

#: It tells what is done to it, and draws nothing.
FAKE = """
import sys, time

print("imported", file=sys.stderr)

class tqdm:
    def __init__(self, **kwargs):
        self.n = 0
        self.start_t = time.time()
        print("made", sorted(kwargs), kwargs["total"], kwargs["desc"], file=sys.stderr)

    def update(self, n):
        self.n += n
        seconds = time.time() - self.start_t
        print("update", self.n, round(seconds, 3), file=sys.stderr, flush=True)

    def refresh(self):
        print("shown", self.n, file=sys.stderr)

    def close(self):
        print("closed", self.n, file=sys.stderr)
"""


@pytest.fixture
def with_tqdm(without_tqdm, monkeypatch, tmp_path):
    """Returns a function that installs a module of that name."""

    def install(source=FAKE):
        monkeypatch.delitem(sys.modules, "tqdm")
        (tmp_path / "modules").mkdir()
        (tmp_path / "modules" / "tqdm.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path / "modules")

    return install


on_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="there is no helper elsewhere"
)


def nfiles():
    return len(list(Path("/proc/self/fd").iterdir()))


def children():
    return Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()


@on_linux
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("function", [long, assigned])
def test_tqdm_draws(function, threads, a, log, num_threads, with_tqdm):
    with_tqdm()
    num_threads(threads)
    before = nfiles()
    start = time.time()
    with np.deferredstate(True), np.deferred.progress(0, log):
        x = function(a)
        np.deferred.calculate(x)
    elapsed = time.time() - start
    log.seek(0)
    first, made, update, shown, *updates, closed = log.read().splitlines()
    updates.insert(0, update)
    assert first == "imported"
    assert made == (
        f"made ['delay', 'desc', 'mininterval', 'total', 'unit_scale'] {N} calculating"
    )
    assert shown == f"shown {update.split()[1]}"
    counts = [int(line.split()[1]) for line in updates]
    seconds = [float(line.split()[2]) for line in updates]
    assert len(counts) >= 2
    assert counts == sorted(counts)
    assert counts[-1] == N
    assert 0 < seconds[-1] < elapsed + 1
    assert closed == f"closed {N}"
    assert (nfiles(), children()) == (before, "")
    with np.deferredstate(False):
        assert x.tobytes() == function(a).tobytes()


@on_linux
def test_tqdm_is_not_needed_for_what_is_short(a, log, with_tqdm):
    with_tqdm()
    with np.deferredstate(True), np.deferred.progress(600, log):
        np.deferred.calculate(long(a))
        assert children() == ""
    log.seek(0)
    assert log.read() == ""


@on_linux
def test_tqdm_is_broken(a, tmp_path, with_tqdm, num_threads):
    """The line takes its place, once it is known."""
    num_threads(1)
    with_tqdm("import os; os.close(0); os.close(2); os._exit(1)")
    big = np.linspace(0.1, 1, 8 * N)
    with (
        (tmp_path / "log").open("w+") as log,
        np.deferredstate(True),
        np.deferred.progress(0, log),
    ):
        x = long(big, 10)
        np.deferred.calculate(x)
        assert lines(log)[-1][1] == "100"
    assert children() == ""


@on_linux
def test_tqdm_cannot_be_started(a, log, with_tqdm, monkeypatch):
    with_tqdm()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with np.deferredstate(True), np.deferred.progress(0, log):
        np.deferred.calculate(long(a))
    assert lines(log)[-1][1] == "100"


@on_linux
def test_tqdm_does_not_end(a, log, with_tqdm):
    """It is not waited for longer than a while."""
    with_tqdm(
        FAKE.replace("def close(self):", "def close(self):\n        time.sleep(60)")
    )
    start = time.monotonic()
    with np.deferredstate(True), np.deferred.progress(0, log):
        np.deferred.calculate(long(a))
    assert time.monotonic() - start < 30
    assert children() == ""


@pytest.mark.parametrize("executable", [None, ""])
def test_no_python_to_start(executable, with_tqdm, monkeypatch):
    with_tqdm()
    monkeypatch.setattr(sys, "executable", executable)
    assert np.deferred.progress()._settings[2] is None


@on_linux
def test_the_helper_is_dropped(with_tqdm):
    with_tqdm()
    progress = np.deferred.progress(600)
    helper = progress._settings[2]
    count = sys.getrefcount(helper)
    with progress:
        assert sys.getrefcount(helper) == count + 1
    assert sys.getrefcount(helper) == count
    with pytest.raises(TypeError):
        core._deferred_set_progress(-1, 0, "python")
