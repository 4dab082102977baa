"""The graph of pending operations: chains, sharing, many arrays, any order."""

import gc
import random
import sys

import numpy as np
import pytest

from helpers.compare import bits
from helpers.counting import counted
from helpers.process import output_of

pytestmark = pytest.mark.usefixtures("deferred")


def vector(n=50):
    with np.deferredstate(False):
        return np.arange(n, dtype=float) / n


def eager(function, *args):
    with np.deferredstate(False):
        return function(*args)


def chain(x, length):
    for i in range(length):
        x = x * 0.5 + i
    return x


def doubled(x, times):
    for _ in range(times):
        x = (x + x) * 0.5
    return x


class TestChains:
    @pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 65, 1000, 10_000])
    def test_long(self, length):
        a = vector()
        assert bits(chain(a, length)) == bits(eager(chain, a, length))
        assert np.deferred.usage_count(a) == 0

    def test_dropped(self):
        x = chain(vector(), 10_000)
        del x
        assert np.deferred.stats()["pending"] == 0

    def test_every_step_kept(self):
        a = vector()
        steps = [a]
        for i in range(2_000):
            steps.append(steps[-1] * 0.5 + i)
        expected = eager(chain, a, 2_000)
        assert bits(steps[-1]) == bits(expected)
        assert bits(steps[7]) == bits(eager(chain, a, 7))
        del steps

    @pytest.mark.parametrize("reverse", [False, True])
    def test_every_step_kept_and_dropped(self, reverse):
        steps = [vector()]
        for i in range(5_000):
            steps.append(steps[-1] + i)
        if reverse:
            steps.reverse()
        while steps:
            steps.pop()
        assert np.deferred.stats()["pending"] == 0

    def test_constant_memory(self):
        """A loop may run for ever: at a bound, operands are calculated."""
        a = vector(10)
        x = a
        pending = set()
        for i in range(3_000):
            x = x * a + i
            pending.add(np.deferred.stats()["pending"])
        assert max(pending) < 200
        del x

    def test_many_operands(self):
        arrays = [vector() + i for i in range(500)]
        np.deferred.calculate(*arrays)
        total = arrays[0]
        for array in arrays[1:]:
            total = total + array
        assert bits(total) == bits(eager(sum, arrays[1:], arrays[0]))

    def test_small_stack(self):
        """No recursion in building, calculating or releasing."""
        code = """
            import threading
            import numpy as np
            threading.stack_size(128 * 1024)
            np.setdeferred(True)
            def work():
                np.setdeferred(True)
                x = a = np.ones(10)
                kept = []
                for i in range(20000):
                    x = x * a + i
                    kept.append(x)
                print(x[0])
                del x, kept
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            """
        assert output_of(code) == "199990001.0"


class TestSharing:
    def test_doubling(self):
        a = vector()
        assert bits(doubled(a, 200)) == bits(eager(doubled, a, 200))

    def test_doubling_dropped(self):
        x = doubled(vector(), 200)
        del x
        assert np.deferred.stats()["pending"] == 0

    def test_calculated_once(self):
        """Warnings count evaluations: the shared part may warn only once."""
        warned = []
        with np.errstate(all="call", call=lambda *args: warned.append(args)):
            a = np.array([0.0, 1.0])
            shared = 1 / a
            x = (shared + 1) * (shared + 2) - shared
            assert x[1] == 5.0
            assert [what for what, _ in warned] == ["divide by zero", "invalid value"]

    def test_time_is_linear(self):
        """40 doublings would be 2**40 evaluations without sharing."""
        x = doubled(vector(2_000), 40)
        assert bits(x) == bits(vector(2_000))

    def test_broadcast_part_is_calculated_once(self):
        """An inner operation of 200 elements is not done 200 * 5000 times."""
        warned = []
        column = np.zeros((200, 1))
        row = np.ones(5000)
        with np.errstate(all="call", call=lambda *args: warned.append(args)):
            x = 1 / column + row
            with counted() as counters:
                np.deferred.calculate(x)
        assert len(warned) == 1
        assert counters.calculated == 2

    def test_grid(self):
        def grid(n):
            i, j, k = np.ogrid[-n:n, -n:n, -n:n]
            return np.sqrt(i**2 + j**2 + k**2)

        assert bits(grid(20)) == bits(eager(grid, 20))

    def test_random_graphs(self):
        for seed in range(30):
            expected = eager(random_graph, seed)
            got = random_graph(seed)
            for array, other in zip(got, expected, strict=True):
                assert bits(array) == bits(other)


def random_graph(seed):
    """Operations on random earlier results; some are dropped, in any order."""
    choice = random.Random(seed)
    arrays = [vector(37) + i for i in range(3)]
    functions = [np.add, np.multiply, np.maximum, np.hypot, np.subtract]
    for _ in range(150):
        operands = choice.choices(arrays, k=2)
        arrays.append(choice.choice(functions)(*operands) * 0.5)
        if choice.random() < 0.3:
            del arrays[choice.randrange(len(arrays))]
        if choice.random() < 0.05:
            choice.choice(arrays).sum()
    choice.shuffle(arrays)
    return arrays


class TestPending:
    def test_many(self):
        a = vector(5)
        with counted() as counters:
            arrays = [a + i for i in range(100_000)]
        assert counters.pending == 100_000
        random.Random(3).shuffle(arrays)
        del arrays[::3]
        np.deferred.calculate_all()
        assert np.deferred.stats()["pending"] == 0
        assert np.deferred.usage_count(a) == 0
        assert a.flags.writeable
        assert not any(array.flags.deferred for array in arrays)

    def test_unrelated_writes_stay_cheap(self):
        """A write flushes what reads that memory, and looks at nothing else."""
        arrays = [vector(5) for _ in range(10_000)]
        results = [array * 2 for array in arrays]
        other = vector(5)
        with counted() as counters:
            for i in range(1_000):
                other[0] = i
        assert counters.calculated == 0
        assert counters.pending == 0
        del results

    def test_list_is_weak(self):
        x = vector() + 1
        count = sys.getrefcount(x)  # the argument counts up to Python 3.13
        y = x * 2
        assert sys.getrefcount(x) == count + 1  # the operand
        del y
        assert sys.getrefcount(x) == count
        del x
        gc.collect()
        assert np.deferred.stats()["pending"] == 0

    def test_counters(self):
        a = vector()
        with counted() as counters:
            x = a + 1
            y = x * 2
            z = a - 1
            del z
            np.deferred.calculate(x)
            del y
        assert vars(counters) == {
            "pending": 0,
            "held": 0,
            "cached": counters.cached,
            "captured": 3,
            "calculated": 1,
            "fused": 0,
            "reduced": 0,
            "together": 0,
            "released": 2,
            "flushed": 0,
            "late": 0,
            "exposed": 0,
            "compiled": counters.compiled,
        }

    def test_stats_calculate_nothing(self):
        x = vector() + 1
        np.deferred.stats()
        assert x.flags.deferred
        del x


class TestMemory:
    def test_nothing_is_kept(self):
        """Repeating everything allocates nothing that stays."""
        import tracemalloc

        def work():
            a = vector(1000)
            x = a * 2 + 1
            y = (x[::2] - 1) * a[::2]
            a[3] = 7
            x += y.sum()
            z = chain(a, 100)
            np.deferred.calculate_all()
            w = z + 1
            del w

        for _ in range(50):
            work()
        gc.collect()
        tracemalloc.start()
        try:
            work()
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(200):
                work()
            gc.collect()
            after = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert after - before < 4_000

    def test_no_full_size_temporaries(self):
        import tracemalloc

        a = vector(1_000_000)
        x = np.sqrt(a * 2 + 1) * a - a / 3
        tracemalloc.start()
        try:
            np.deferred.calculate(x)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert a.nbytes <= peak < 1.1 * a.nbytes

    @pytest.mark.filterwarnings("default")
    def test_in_place_needs_nothing(self):
        import tracemalloc

        a, b = vector(1_000_000), vector(1_000_000)
        tracemalloc.start()
        try:
            for i in range(5):
                a += b * i
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 0.1 * a.nbytes

    def test_exit_with_pending_arrays(self):
        code = """
            import numpy as np
            np.setdeferred(True)
            a = np.ones(10)
            x = a + 1
            y = [x * i for i in range(100)]
            cycle = [y]
            cycle.append(cycle)
            print("done")
            """
        assert output_of(code) == "done"

    def test_fork(self):
        code = """
            import os
            import numpy as np
            np.setdeferred(True)
            x = np.arange(5.) * 2
            child = os.fork()
            if child == 0:
                os._exit(0 if x.sum() == 20 else 1)
            assert os.waitpid(child, 0)[1] == 0
            print(x.sum())
            """
        assert output_of(code) == "20.0"


def test_memory_of_nodes_is_used_again():
    """Whatever the inputs of the ones before were, and however many."""
    a, b = vector(), vector() + 1
    calls = [
        lambda: a + b,
        lambda: a * 2.5,
        lambda: 3 - a,
        lambda: np.sqrt(b),
        lambda: np.clip(a, 0.25, b),
        lambda: np.where(a > b, 1.0, a),
        lambda: (a + b) * (a - 1) / (b + a * a),
    ]
    expected = [bits(eager(call)) for call in calls]
    rng = random.Random(1)
    for _ in range(30):
        order = [rng.randrange(len(calls)) for _ in range(rng.randint(1, 100))]
        results = [calls[i]() for i in order]
        dropped = rng.sample(range(len(order)), len(order) // 2)
        for i in dropped:
            results[i] = None
        for i, result in zip(order, results, strict=True):
            assert result is None or bits(result) == expected[i]
        del results, result
        assert np.deferred.usage_count(a) == np.deferred.usage_count(b) == 0
