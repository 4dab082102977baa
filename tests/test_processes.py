"""Processes: forks, workers, arrays sent between them, and the end of one."""

import copy
import io
import os
import pickle
import shelve
import signal
import textwrap

import numpy as np
import pytest

from helpers.compare import bits
from helpers.process import output_of, run_python

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


def ends_well(code, returncode=0, output=None):
    """Run a program with all warnings and checks of Python's on."""
    done = run_python(
        code,
        NUMPY_DEFERRED="1",
        PYTHONDEVMODE="1",
        PYTHONWARNINGS="error",
    )
    assert done.stderr == ""
    assert done.returncode == returncode
    if output is not None:
        assert done.stdout.split() == output.split()


@needs_fork
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
class TestFork:
    PROGRAM = """
        import os, sys, threading, gc, warnings
        import numpy as np
        warnings.filterwarnings("ignore", "This process .* is multi-threaded")

        a = np.arange(5.0)
        b = np.ones(5)
        x = a * 2
        y = x + b
        assert x.flags.deferred and y.flags.deferred

        def check(arrays):
            assert arrays[0].tolist() == [0, 2, 4, 6, 8]
            assert arrays[1].tolist() == [1, 3, 5, 7, 9]

        def child():
            {child}

        sys.stdout.flush()
        process = os.fork()
        if process == 0:
            child()
            {leave}
        status = os.waitpid(process, 0)[1]
        assert status == 0, status
        assert x.flags.deferred and y.flags.deferred
        assert np.deferred.stats()["pending"] == 2
        assert np.deferred.usage_count(a) == 1
        check([x, y])
        assert np.deferred.stats()["pending"] == 0
        assert np.deferred.usage_count(a) == 0
        a[0] = 1
        print("done")
        """

    @pytest.mark.parametrize("leave", ["os._exit(0)", "sys.exit(0)"])
    @pytest.mark.parametrize(
        "child",
        [
            "check([x, y])",
            "a[...] = 100; b[...] = 50; check([x, y])",
            "np.deferred.calculate_all(); check([x, y])",
            "y[...] = 5; check([x, x + 1])",
            "del globals()['x'], globals()['y']; gc.collect()",
            "memoryview(a)[0] = 7.0; check([x, y])",
            "assert np.deferred.stats()['pending'] == 2",
        ],
    )
    def test_pending_in_both(self, child, leave):
        program = textwrap.dedent(self.PROGRAM).format(child=child, leave=leave)
        ends_well(program, output="done")

    def test_while_another_thread_calculates(self):
        """The child has the pending arrays, and nobody who calculates them."""
        program = """
            import os, threading, warnings
            import numpy as np
            warnings.filterwarnings("ignore", "This process .* is multi-threaded")
            inside, go_on = threading.Event(), threading.Event()
            first = threading.Lock()

            def handler(*args):
                if first.acquire(blocking=False):
                    inside.set()
                    go_on.wait(20)

            np.seterr(divide="call")
            np.seterrcall(handler)
            column, row = np.zeros((4, 1)), np.arange(5.0)
            inner = np.minimum(1 / column, 3)
            x = inner + row
            z = np.minimum((row + 1) / 0, 3) + row + column
            expected = (np.full((4, 5), 3) + row).tolist()

            for array in (x, z):
                thread = threading.Thread(target=np.deferred.calculate, args=(array,))
                thread.start()
                assert inside.wait(20)
                process = os.fork()
                if process == 0:
                    ok = x.tolist() == expected
                    row[...] = 100
                    ok = ok and x.tolist() == expected and array is not None
                    ok = ok and np.deferred.stats()["pending"] == 0
                    os._exit(0 if ok else 1)
                assert os.waitpid(process, 0)[1] == 0
                go_on.set()
                thread.join()
                inside.clear(), go_on.clear()
                first = threading.Lock()
            del array
            assert x.tolist() == expected
            print("done")
            """
        ends_well(program, output="done")

    def test_from_a_thread(self):
        program = """
            import os, threading, warnings
            import numpy as np
            warnings.filterwarnings("ignore", "This process .* is multi-threaded")
            x = np.arange(5.0) * 2

            def work():
                process = os.fork()
                if process == 0:
                    np.setdeferred(True)
                    os._exit(0 if (x + x).tolist() == [0, 4, 8, 12, 16] else 1)
                results.append(os.waitpid(process, 0)[1])

            results = []
            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            assert results == [0] * 4, results
            assert x.flags.deferred
            print("done")
            """
        ends_well(program, output="done")

    def test_many_generations(self):
        program = """
            import os
            import numpy as np
            x = np.zeros(5)
            for generation in range(10):
                x = x + 1
                process = os.fork()
                if process != 0:
                    status = os.waitpid(process, 0)[1]
                    assert x[0] == generation + 1
                    os._exit(0 if status == 0 else 1)
            assert x.tolist() == [10] * 5
            """
        ends_well(program)


WORKER = """
    import numpy as np

    np.setdeferred(True)
    pending = np.arange(5.0) * 3

    def work(x, number):
        assert isinstance(x, np.ndarray) and not x.flags.deferred
        assert pending.tolist() == [0, 3, 6, 9, 12]
        np.setdeferred(True)
        result = x * number + 1
        assert result.flags.deferred
        return result, pending + number
    """

POOLS = {
    "pool": """
        with multiprocessing.get_context(method).Pool(2) as pool:
            results = pool.starmap(worker.work, [(x + i, i) for i in range(6)])
        """,
    "executor": """
        context = multiprocessing.get_context(method)
        with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
            results = list(pool.map(worker.work, [x + i for i in range(6)], range(6)))
        """,
    "queue": """
        context = multiprocessing.get_context(method)
        queue = context.SimpleQueue()
        process = context.Process(target=put, args=(queue, x))
        process.start()
        results = [queue.get() for i in range(6)]
        process.join()
        assert process.exitcode == 0
        """,
    "pipe": """
        context = multiprocessing.get_context(method)
        ours, theirs = context.Pipe()
        process = context.Process(target=answer, args=(theirs,))
        process.start()
        results = []
        for i in range(6):
            ours.send((x + i, i))
            results.append(ours.recv())
        process.join()
        assert process.exitcode == 0
        """,
}

METHODS = ["spawn", "fork", "forkserver"] if hasattr(os, "fork") else ["spawn"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pool", POOLS)
def test_workers(tmp_path, pool, method):
    """Deferred arrays as arguments, results and globals of worker processes."""
    (tmp_path / "worker.py").write_text(textwrap.dedent(WORKER))
    body = textwrap.indent(textwrap.dedent(POOLS[pool]), " " * 4)
    program = textwrap.dedent("""
        import concurrent.futures, multiprocessing, sys, warnings
        import numpy as np
        import worker
        warnings.filterwarnings("ignore", "This process .* is multi-threaded")

        def put(queue, x):
            for i in range(6):
                queue.put(worker.work(np.array(x + i), i))

        def answer(connection):
            for i in range(6):
                connection.send(worker.work(*connection.recv()))

        if __name__ == "__main__":
            method = sys.argv[1]
            x = np.arange(5.0) * 2
            assert x.flags.deferred and worker.pending.flags.deferred
        BODY
            for i, (first, second) in enumerate(results):
                assert first.tolist() == [(2 * j + i) * i + 1 for j in range(5)]
                assert second.tolist() == [3 * j + i for j in range(5)]
            assert x.tolist() == [0, 2, 4, 6, 8]
            print("done")
        """).replace("BODY", body)
    script = tmp_path / "main.py"
    script.write_text(program)
    done = run_python(
        f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, "
        f"{str(script)!r}, {method!r}]).returncode)",
        NUMPY_DEFERRED="1",
        PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        PYTHONDEVMODE="1",
    )
    assert done.stderr == ""
    assert (done.returncode, done.stdout.strip()) == (0, "done")


def samples():
    """Fresh arrays, deferred while deferral is on, and their operands."""
    a = np.arange(60.0).reshape(5, 12) / 7
    readonly = a.copy()
    readonly.flags.writeable = False
    views = a.T, a[::2, ::-3], a[1]
    results = [a + 1, a.T * 2, a[:, ::2] - 1, a > 3, a * 1j, a.astype(">f4") + a[0]]
    return [*results, a.astype("f2") * 2, readonly + 1, a, readonly, *views]


def out_of_band(array):
    buffers = []
    data = pickle.dumps(array, 5, buffer_callback=buffers.append)
    return data, [bytes(buffer.raw()) for buffer in buffers]


def saved(array, save=np.save):
    file = io.BytesIO()
    save(file, array)
    return file.getvalue()


WAYS = {
    **{
        f"pickle {protocol}": lambda array, protocol=protocol: pickle.dumps(
            array, protocol
        )
        for protocol in range(6)
    },
    "out of band": out_of_band,
    "dumps": lambda array: array.dumps(),
    "np.save": saved,
    "reduce": lambda array: repr(array.__reduce__()),
    "reduce 5": lambda array: repr([*array.__reduce_ex__(5)][2:]),
    "tobytes": lambda array: array.tobytes(),
}


@pytest.mark.parametrize("way", WAYS)
def test_serialised_bytes(way):
    """They are those of eager NumPy, and what is read back is the same."""
    with np.deferredstate(False):
        expected = [WAYS[way](array) for array in samples()]
    with np.deferredstate(True):
        arrays = samples()
        assert sum(array.flags.deferred for array in arrays) == 8
        got = [WAYS[way](array) for array in arrays]
        fused = [WAYS[way](array) for array in samples()[::-1]][::-1]
    assert got == expected
    assert fused == expected


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "deepcopy in a list": lambda array: copy.deepcopy([array, {"a": array}])[0],
    # Python 3.14 has made protocol 5 the default, which exports a buffer.
    "pickle in a tuple": lambda array: pickle.loads(pickle.dumps((array, array), 4))[1],
    "save and load": lambda array: np.load(io.BytesIO(saved(array))),
    "savez": lambda array: np.load(io.BytesIO(saved(array, np.savez)))["arr_0"],
    "savez_compressed": lambda array: np.load(
        io.BytesIO(saved(array, np.savez_compressed))
    )["arr_0"],
    "method": lambda array: array.copy(),
    "__copy__": lambda array: array.__copy__(),
}


@pytest.mark.parametrize("way", COPIES)
def test_copies(way):
    with np.deferredstate(False):
        expected = [COPIES[way](array) for array in samples()]
    with np.deferredstate(True):
        arrays = samples()
        got = [COPIES[way](array) for array in arrays]
        for array, copied, other in zip(arrays, got, expected, strict=True):
            assert type(copied) is np.ndarray
            assert not copied.flags.deferred
            assert not np.shares_memory(array, copied)
            assert copied.flags.writeable
            assert (copied.dtype, copied.strides) == (other.dtype, other.strides)
            assert bits(copied) == bits(other)


def test_copied_operand_leaves_its_readers_pending():
    with np.deferredstate(True):
        a = np.arange(5.0)
        x = a * 2
        for way in COPIES.values():
            copied = way(a)
            copied[...] = 7
            assert not copied.flags.deferred_waswriteable
        assert x.flags.deferred
        assert np.deferred.usage_count(a) == 1
        assert x.tolist() == [0, 2, 4, 6, 8]


def test_shelve(tmp_path):
    with np.deferredstate(True), shelve.open(str(tmp_path / "shelf")) as shelf:
        a = np.arange(5.0)
        shelf["x"] = a * 2
        shelf["both"] = {"a": a, "y": a + 1}
        assert shelf["x"].tolist() == [0, 2, 4, 6, 8]
        assert shelf["both"]["y"].tolist() == [1, 2, 3, 4, 5]


def test_pickle_does_not_show_the_guard():
    """A buffer of an array that was pending holds its values."""
    with np.deferredstate(True):
        x = np.arange(1000.0) * 2
        buffer = pickle.PickleBuffer(x)
        assert not x.flags.deferred
        assert bytes(buffer.raw()) == (np.arange(1000.0) * 2).tobytes()


class TestExit:
    """A process ends as it would without deferral, whatever is pending."""

    START = """
        import atexit, gc, os, signal, sys, threading, time, warnings, weakref
        import numpy as np
        a = np.arange(5.0)
        x = a * 2
        y = x + a
        assert y.flags.deferred
        """

    @pytest.mark.parametrize(
        "body",
        {
            "nothing": "",
            "globals": "many = [x * i for i in range(100)]; print('ok')",
            "cycle": """
                class Node: pass
                node = Node()
                node.me, node.y, node.x = node, y * 2, x
                cycle = [y * 3]; cycle.append(cycle)
                print('ok')
                """,
            "modules": """
                import types
                sys.modules["other"] = types.ModuleType("other")
                sys.modules["other"].y = y * 2
                sys.keeps = y * 3
                np.keeps = y * 4
                print('ok')
                """,
            "atexit": """
                atexit.register(lambda: print('ok' if y.sum() == 30 else y))
                """,
            "atexit defers": """
                late = []
                atexit.register(lambda: late.append(y * 2) or print('ok'))
                """,
            "atexit calculates all": """
                atexit.register(np.deferred.calculate_all)
                print('ok')
                """,
            "__del__ reads": """
                class Reader:
                    def __init__(self, y): self.y = y
                    def __del__(self, write=os.write):
                        write(1, b'ok' if self.y.tolist()[1] == 3.0 else b'bad')
                reader = Reader(y)
                """,
            "__del__ at the very end": """
                class Reader:
                    def __init__(self, y): self.y = y
                    def __del__(self, write=os.write):
                        z = self.y + 1
                        write(1, b'ok' if z[1] == 4.0 else b'bad')
                sys.reader = Reader(y)
                """,
            "finalizer of an operand": "weakref.finalize(a, print, 'ok')",
            "finalize reads": """
                weakref.finalize(threading, lambda: print('ok' if y[1] == 3 else y))
                """,
            "sys.exit": "z = y * 2; print('ok'); sys.exit()",
            "sys.exit in a handler": """
                np.seterr(divide="call")
                np.seterrcall(lambda *args: (print('ok'), sys.exit(0)))
                z = a / 0
                z.sum()
                print('not reached')
                """,
            "_exit": "z = y * 2; print('ok', flush=True); os._exit(0)",
            "_exit in a handler": """
                np.seterr(divide="call")
                np.seterrcall(lambda *args: (print('ok', flush=True), os._exit(0)))
                (a / 0).sum()
                """,
            "unread error": """
                np.seterr(all="raise")
                z = a / 0
                print('ok')
                """,
            "unread warning": "z = a / 0; print('ok')",
            "daemon": """
                def work():
                    np.setdeferred(True)
                    z = np.ones(50)
                    while True:
                        z = np.sqrt(z * 2 + y[0])
                        if z[0] < 0: print(z)
                for i in range(3):
                    threading.Thread(target=work, daemon=True).start()
                time.sleep(0.2)
                print('ok')
                """,
            "daemon in a handler": """
                inside = threading.Event()
                def handler(*args):
                    inside.set()
                    time.sleep(60)
                def work():
                    np.setdeferred(True)
                    with np.errstate(all="call", call=handler):
                        z = np.minimum(1 / np.zeros((4, 1)), 3) + a
                        z.sum()
                threading.Thread(target=work, daemon=True).start()
                inside.wait(20)
                print('ok')
                """,
            "thread": """
                def work():
                    time.sleep(0.2)
                    print('ok' if y.sum() == 30 else y)
                threading.Thread(target=work).start()
                """,
            "thread local": """
                local = threading.local()
                local.y = y * 2
                print('ok')
                """,
            "context variable": """
                import contextvars
                variable = contextvars.ContextVar('y')
                variable.set(y * 2)
                print('ok')
                """,
            "generator": """
                def generate():
                    z = y * 2
                    try:
                        yield z
                    finally:
                        os.write(1, b'ok' if z[1] == 6 else b'bad')
                generator = generate()
                next(generator)
                """,
            "asyncio": """
                import asyncio
                async def main():
                    z = y * 2
                    await asyncio.sleep(0)
                    print('ok')
                    return z
                kept = asyncio.run(main())
                """,
        }.items(),
        ids=lambda item: item[0],
    )
    def test_exit(self, body):
        name, code = body
        program = textwrap.dedent(self.START) + textwrap.dedent(code)
        ends_well(program, output="" if name == "nothing" else "ok")

    @pytest.mark.parametrize("status", [0, 3])
    def test_status(self, status):
        program = f"""
            import sys
            import numpy as np
            x = np.ones(5) + 1
            sys.exit({status})
            """
        ends_well(program, returncode=status)

    def test_exception(self):
        program = textwrap.dedent(self.START) + "raise KeyError(y)"
        done = run_python(program, NUMPY_DEFERRED="1", PYTHONDEVMODE="1")
        assert done.returncode == 1
        assert done.stderr.strip().endswith(
            "KeyError: array([ 0.,  3.,  6.,  9., 12.])"
        )
        # From 3.13 on, Python shows the line that raised, also of a command.
        shown = done.stderr.replace("raise KeyError(y)", "")
        assert shown.count("Error") == 1

    @pytest.mark.skipif(not hasattr(signal, "SIGINT"), reason="there is no SIGINT")
    @pytest.mark.parametrize("shape", ["(5,)", "(4, 1)"])
    def test_interrupted_calculation(self, shape):
        """Ctrl-C comes in a handler; afterwards everything is as before."""
        program = f"""
            import os, signal, time
            import numpy as np
            # A process that a shell starts in the background ignores it.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            interrupt = [True]
            def handler(*args):
                if interrupt.pop():
                    os.kill(os.getpid(), signal.SIGINT)
                    # Another thread may be the one that gets the signal.
                    for i in range(6000): time.sleep(0.01)
            np.seterr(divide="call")
            np.seterrcall(handler)
            zero, a = np.zeros({shape}), np.arange(5.0)
            x = np.minimum(1 / zero, 3) + a
            for again in range(2):
                interrupt.append(True)
                try:
                    x.sum()
                except KeyboardInterrupt:
                    print("interrupted")
                assert np.deferred.usage_count(a) == 1
                assert x.flags.deferred
            interrupt.append(False)
            assert x.ravel()[:5].tolist() == [3, 4, 5, 6, 7]
            interrupt.append(False)
            np.deferred.calculate_all()
            assert np.deferred.usage_count(a) == 0
            assert np.deferred.usage_count(zero) == 0
            """
        ends_well(program, output="interrupted interrupted")

    def test_interrupted_process(self):
        program = """
            import os, signal
            import numpy as np
            signal.signal(signal.SIGINT, signal.default_int_handler)
            x = np.arange(5.0) * 2
            try:
                os.kill(os.getpid(), signal.SIGINT)
                while True:
                    x = x * 0.5 + 1
            except KeyboardInterrupt:
                print("done", x.shape[0])
            """
        ends_well(program, output="done 5")


def test_import_order_of_exit():
    """The interpreter's end finds NumPy's modules gone, in any order."""
    for keep in ("np", "sys.modules"):
        program = f"""
            import sys
            import numpy as np
            y = np.arange(5.0) * 2 + 1
            z = [y * i for i in range(5)]
            if {keep!r} == "np":
                del np
            else:
                for name in [n for n in sys.modules if n.startswith("numpy")]:
                    del sys.modules[name]
            del z[2]
            print(y[1])
            """
        assert output_of(program, NUMPY_DEFERRED="1") == "3.0"
