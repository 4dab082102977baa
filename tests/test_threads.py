"""Threads, tasks and handlers: what may happen while arrays are pending."""

import contextlib
import copy
import gc
import pickle
import random
import sys
import threading
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.compare import bits

#: Below the size from which eager NumPy releases the GIL, so that each call is
#: as a whole before or after any other.
N = 200
SECONDS = 3.0
WAIT = 30.0


@pytest.fixture
def switching():
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture(params=["kept", "given up"])
def gil(request):
    """What small calculations do with the GIL; they keep it, for users."""
    worth = 0 if request.param == "given up" else 2**40
    previous = np._core._multiarray_umath._deferred_set_gil_worth(worth)
    yield
    np._core._multiarray_umath._deferred_set_gil_worth(previous)


def run_threads(*functions):
    """Run each function in a thread; the first exception of any is raised."""
    errors = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=guarded, args=(function,)) for function in functions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT + SECONDS)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


def uniform(value):
    with np.deferredstate(False):
        return np.full(N, float(value))


def check_uniform(array):
    """All elements are the same, so that each was read at the same moment."""
    data = array.tobytes()
    assert data == data[:8] * N, np.unique(np.frombuffer(data))


class Pool:
    """Arrays that all threads share; every one is uniform at every moment."""

    def __init__(self, size=12):
        self.arrays = [uniform(i + 1) for i in range(size)]
        self.calls = 0

    def handler(self, *args):
        self.calls += 1
        check_uniform(random.choice(self.arrays))


def combine(pool, choice):
    a, b, c = choice.choices(pool.arrays, k=3)
    x = np.minimum(a * 0.5 + b * 0.25 + np.abs(c), 1e6)
    pool.arrays[choice.randrange(len(pool.arrays))] = x


def divide(pool, choice):
    with np.errstate(divide="call", call=pool.handler):
        a, b = choice.choices(pool.arrays, k=2)
        x = np.minimum((np.abs(a) + 1) / (b - b), 7.0) + b
        pool.arrays[choice.randrange(len(pool.arrays))] = x
        if choice.random() < 0.5:
            check_uniform(x)


def broadcast(pool, choice):
    with np.errstate(divide="call", call=pool.handler):
        one = np.abs(choice.choice(pool.arrays)[:1]) + 1
        x = np.minimum(one / (one - one), 3.0) + choice.choice(pool.arrays)
        pool.arrays[choice.randrange(len(pool.arrays))] = x


def read(pool, choice):
    check_uniform(choice.choice(pool.arrays))


def write(pool, choice):
    array, value = choice.choice(pool.arrays), choice.randrange(100)
    way = choice.randrange(6)
    if way == 0:
        array[...] = value
    elif way == 1:
        array[::-1][...] = value
    elif way == 2:
        array.fill(value)
    elif way == 3:
        np.copyto(array, choice.choice(pool.arrays))
    elif way == 4:
        array += value
        np.minimum(array, 1e6, out=array)
    else:
        array[...] = np.minimum(choice.choice(pool.arrays) * 2 + 1, 1e6)


def drop(pool, choice):
    pool.arrays[choice.randrange(len(pool.arrays))] = uniform(choice.randrange(9))


def duplicate(pool, choice):
    array = choice.choice(pool.arrays)
    way = choice.choice(
        [
            copy.copy,
            copy.deepcopy,
            np.array,
            lambda a: pickle.loads(pickle.dumps(a, choice.randrange(6))),
        ]
    )
    pool.arrays[choice.randrange(len(pool.arrays))] = way(array)


def calculate(pool, choice):
    if choice.random() < 0.3:
        np.deferred.calculate_all()
    else:
        np.deferred.calculate(*choice.choices(pool.arrays, k=3))


def change_states(pool, choice):
    with (
        np.errstate(over=choice.choice(["ignore", "warn", "raise"])),
        np.deferredstate(choice.choice([True, False, None])),
    ):
        combine(pool, choice)


def inspect(pool, choice):
    array = choice.choice(pool.arrays)
    assert np.deferred.usage_count(array) >= 0
    assert array.flags.writeable
    assert len(array) == N
    np.deferred.stats()


ACTIONS = [
    combine,
    combine,
    divide,
    broadcast,
    read,
    read,
    write,
    write,
    drop,
    duplicate,
    calculate,
    change_states,
    inspect,
]


def private_work(choice):
    """A program on arrays of its own: the bits are those of eager NumPy."""
    a = np.arange(N) / 7
    x = [a * choice.random() for _ in range(3)]
    for _ in range(10):
        x.append(np.hypot(*choice.choices(x, k=2)) + 0.1)
        if choice.random() < 0.4:
            choice.choice(x)[choice.randrange(N) :] = choice.random()
        if choice.random() < 0.3:
            del x[choice.randrange(len(x))]
    return [bits(array) for array in x]


@pytest.mark.usefixtures("switching", "gil")
class TestSharing:
    @pytest.mark.parametrize("seed", range(2))
    def test_anything_at_any_time(self, seed):
        pool = Pool()
        before = np.deferred.stats()["pending"]
        stop = time.monotonic() + SECONDS

        def work(number):
            choice = random.Random(f"{seed}-{number}")
            np.setdeferred(True)
            while time.monotonic() < stop:
                for _ in range(20):
                    choice.choice(ACTIONS)(pool, choice)

        def work_privately():
            number = 0
            while time.monotonic() < stop:
                number += 1
                with np.deferredstate(False):
                    expected = private_work(random.Random(number))
                with np.deferredstate(True):
                    assert private_work(random.Random(number)) == expected

        def collect():
            while time.monotonic() < stop:
                gc.collect()
                time.sleep(0.01)

        run_threads(
            *(lambda number=number: work(number) for number in range(4)),
            work_privately,
            collect,
        )
        np.deferred.calculate_all()
        assert pool.calls > 0
        assert np.deferred.stats()["pending"] == before
        for array in pool.arrays:
            check_uniform(array)
            assert not array.flags.deferred
            assert np.deferred.usage_count(array) == 0
            assert not array.flags.deferred_waswriteable
            array[...] = 1

    @pytest.mark.parametrize("repeat", range(30))
    def test_one_array_read_by_all(self, repeat):
        """Each of many threads sees the values, and the error is told once."""
        calls = []
        start = threading.Barrier(4)

        def work():
            start.wait(WAIT)
            assert x.tobytes() == uniform(4).tobytes()

        with (
            np.deferredstate(True),
            np.errstate(divide="call", call=lambda *args: calls.append(args)),
        ):
            x = np.minimum(uniform(1) / 0, 3) + uniform(1)
            run_threads(*[work] * 4)
        assert len(calls) == 1

    def test_operand_is_dropped_by_another_thread(self):
        names = {}
        stop = time.monotonic() + SECONDS / 2

        def work(name):
            np.setdeferred(True)
            while time.monotonic() < stop:
                names[name] = uniform(1)
                x = names[name] + 1
                names["other"] = x
                y = x * names.get("other", x)
                del x
                names.pop(name, None)
                assert y[0] in (2.0, 4.0)

        run_threads(*(lambda name=name: work(name) for name in (0, 1, 2, 0)))

    @pytest.mark.parametrize("dtype", ["f2", "f8", "c16"])
    def test_large_arrays(self, dtype):
        """
        Loops of eager NumPy release the GIL, also those that deferral leaves to
        it.  One thread writes, others read what was pending before.
        """
        memory = np.zeros((300, 200), dtype)
        a = memory.T[::-1]
        stop = time.monotonic() + SECONDS
        pending = []

        def make():
            np.setdeferred(True)
            for i in range(1, 1_000_000):
                if time.monotonic() > stop:
                    return
                value = i % 50
                a[...] = value
                column = memory[:, :1] + 1
                pending[:] = [
                    (np.sqrt(a * a) + column.T, 2 * value + 1),
                    (np.abs(a), value),
                    (memory - 1, value - 1),
                ]
                time.sleep(0)

        def use(how):
            while time.monotonic() < stop:
                for x, value in list(pending):
                    got = how(x)
                    assert (got == value).all(), (got, value)

        def assigned(x):
            result = np.empty((*x.shape, 2), dtype)[..., 0]
            result[...] = x
            return result

        run_threads(make, lambda: use(np.array), lambda: use(assigned))


@contextlib.contextmanager
def telling(function, mode):
    """An error state in which a division by zero calls a function."""

    def show(*args, **kwargs):
        function()

    log = SimpleNamespace(write=show)
    state = {"call": show} if mode == "call" else {"call": log} if mode == "log" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        with np.errstate(divide=mode, **state):
            yield


#: Name: how the error is told, the shapes of the two operands.  In "inner", a
#: smaller array is calculated, and its error told, in the middle of it all; in
#: "direct" too, but what is left needs no iterator; in "last" the values are
#: there already.
KINDS = {
    "inner": ("warn", (4, 1), (5,)),
    "direct": ("warn", (4, 1), (4, 5)),
    "last": ("warn", (4, 5), (4, 5)),
    "logged": ("log", (4, 1), (5,)),
    "called": ("call", (4, 5), (4, 5)),
}


@contextlib.contextmanager
def scene(meddle, kind):
    """Pending arrays whose calculation calls `meddle`: `x` has `3 + row`."""
    s = SimpleNamespace(calls=0, found=[])

    def told():
        s.calls += 1
        if s.calls == 1:
            meddle(s)

    mode, column, row = KINDS[kind]
    s.row = np.arange(5.0) + np.zeros(row)
    s.column = np.zeros(column)
    s.dst = np.full((4, 5), 10.0)
    s.expected = (np.full((4, 5), 3) + s.row).tolist()
    try:
        with telling(told, mode), np.deferredstate(True):
            s.inner = np.minimum(1 / s.column, 3)
            s.x = s.inner + s.row
            s.double = s.x * 2
            assert s.calls == 0
            yield s
        assert s.calls > 0
        assert all(found == s.expected for found in s.found)
    finally:
        vars(s).clear()  # `s` has the arrays, these have `told`, which has `s`


def assign(s):
    s.dst[...] = s.x
    return s.dst


def add_out(s):
    return np.add(s.x, 0, out=s.dst)


def add_in_place(s):
    s.dst -= 10
    s.dst += s.x
    return s.dst


def assign_fancy(s):
    s.dst[[0, 1, 2, 3]] = s.x
    return s.dst


def copy_to(s):
    np.copyto(s.dst, s.x)
    return s.dst


def assign_masked(s):
    np.copyto(s.dst, s.x, where=np.ones(5, bool))
    return s.dst


def call_with_two_outputs(s):
    np.modf(s.x, np.empty((4, 5)), s.dst)
    return s.dst


def fuse_eagerly(s):
    with np.deferredstate(False):
        return s.x + 0


def calculate_one(s):
    x = s.x
    np.deferred.calculate(x)
    return x


def read_all(s):
    x = s.x
    np.deferred.calculate_all()
    return x


def write_operand(s):
    x = s.x
    s.row[...] = 50
    return x


def expose_operand(s):
    x = s.x
    memoryview(s.row).cast("B")[7] = 9
    return x


def resize_operand(s):
    x = s.x
    s.row.resize(1000, refcheck=False)
    return x


def change_errors(s):
    x = s.x
    with np.errstate(all="ignore"):
        pass
    return x


USES = {
    "tolist": lambda s: s.x,
    "calculate": calculate_one,
    "calculate_all": read_all,
    "assign": assign,
    "out": add_out,
    "in place": add_in_place,
    "fancy": assign_fancy,
    "copyto": copy_to,
    "masked": assign_masked,
    "two outputs": call_with_two_outputs,
    "eager operation": fuse_eagerly,
    "of another expression": lambda s: s.double / 2,
    "view": lambda s: s.x[:],
    "pickle": lambda s: pickle.loads(pickle.dumps(s.x)),
    "memoryview": lambda s: memoryview(s.x),
    "write operand": write_operand,
    "expose operand": expose_operand,
    "resize operand": resize_operand,
    "errstate": change_errors,
}


def meddle_read(s):
    s.found.append(s.x.tolist())


def meddle_read_inner(s):
    assert set(np.ravel(s.inner)) == {3.0}


def meddle_assign(s):
    other = np.zeros((4, 5))
    other[...] = s.x
    s.found.append(other.tolist())


def meddle_write_row(s):
    s.row[::-1][...] = 100


def meddle_write_column(s):
    s.column[...] = 1


def meddle_write_inner(s):
    s.inner[...] = 100


def meddle_resize(s):
    s.row.resize(50_000, refcheck=False)
    s.column.resize(3, refcheck=False)


def meddle_shape(s):
    s.row.shape = (-1, 1)
    s.column.shape = (-1,)


def meddle_expose(s):
    view = memoryview(s.row).cast("B")
    view[7] = 9


def meddle_drop(s):
    del s.x, s.inner, s.row, s.column, s.double
    gc.collect()


def meddle_calculate_all(s):
    np.deferred.calculate_all()


def meddle_states(s):
    before = np.seterr(all="ignore")
    np.seterr(**before)
    with np.deferredstate(False), np.errstate(all="raise"):
        s.found.append((s.x + 0).tolist())


def meddle_defer(s):
    with np.deferredstate(True):
        s.y = s.dst + 1
        s.before = s.dst.tolist()


def meddle_defer_and_flush(s):
    with np.deferredstate(True):
        more = [s.row + i for i in range(5)]
        s.row[...] = 100
        assert [x.flat[1] for x in more] == [1, 2, 3, 4, 5]


class Meddled(BaseException):
    pass


def meddle_raise(s):
    raise Meddled


MEDDLERS = [
    meddle_read,
    meddle_read_inner,
    meddle_assign,
    meddle_write_row,
    meddle_write_column,
    meddle_write_inner,
    meddle_resize,
    meddle_shape,
    meddle_expose,
    meddle_drop,
    meddle_calculate_all,
    meddle_states,
    meddle_defer,
    meddle_defer_and_flush,
    meddle_raise,
]


def in_this_thread(meddle):
    return meddle


def in_another_thread(meddle):
    """A second thread does it while the handler waits."""

    def meddle_there(s):
        run_threads(lambda: meddle(s))

    return meddle_there


@pytest.mark.parametrize("where", [in_this_thread, in_another_thread])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("meddle", MEDDLERS, ids=lambda meddle: meddle.__name__[7:])
def test_meddling(meddle, use, kind, where):
    """Something is done while a calculation is under way: values stay right."""
    with scene(where(meddle), kind) as s:
        try:
            got = np.asarray(USES[use](s)).tolist()
        except Meddled:
            got = s.x.tolist()
        assert got == s.expected
        np.deferred.calculate_all()
        assert s.calls == (2 if meddle is meddle_raise else 1)
        if meddle is meddle_defer:
            assert s.y.tolist() == (np.array(s.before) + 1).tolist()


class Meeting:
    """Two threads in one calculation, each stopped by its handler, in turn."""

    def __init__(self):
        self.reached = [threading.Event(), threading.Event()]
        self.go_on = [threading.Event(), threading.Event()]
        self.told = 0

    def tell(self, *args):
        number, self.told = self.told, self.told + 1
        if number < 2:
            self.reached[number].set()
            assert self.go_on[number].wait(WAIT)


def nested(meeting):
    """Errors at an inner array and at the last operation."""
    with np.deferredstate(True), telling(meeting.tell, "call"):
        inner = np.minimum(1 / np.zeros((4, 1)), 3)
        x = np.minimum(np.ones((4, 5)) / (inner - inner), 2) + inner
        yield x


@pytest.mark.parametrize("first_to_go_on", [0, 1])
@pytest.mark.parametrize("use", ["read", "assign"])
def test_two_threads_in_one_calculation(first_to_go_on, use):
    """
    The first waits at an inner array when the second comes, takes that array's
    values, and is stopped at the last operation's error: the array has two
    calculations under way.  Both finish in any order, with the same values.
    """
    meeting = Meeting()
    for x in nested(meeting):
        got = {}

        def work(number, x=x, got=got):
            if use == "assign" and number == 0:
                got[number] = np.zeros((4, 5))
                got[number][...] = x
            else:
                got[number] = np.array(x)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread, reached in zip(threads, meeting.reached, strict=True):
            thread.start()
            assert reached.wait(WAIT)
        for i in (first_to_go_on, 1 - first_to_go_on):
            meeting.go_on[i].set()
            threads[i].join(WAIT)
            assert not threads[i].is_alive()
        assert not x.flags.deferred
        assert (x == 5).all()
        assert (got[0] == 5).all()
        assert (got[1] == 5).all()
        assert meeting.told == 2


def test_operand_resized_while_the_expression_is_cut():
    """At the bound of an expression a part is calculated, and a handler runs."""

    def told():
        b.resize(3, refcheck=False)

    def run():
        b.resize(50, refcheck=False)
        x = np.minimum(1 / np.zeros(50), 3)
        for _ in range(100):
            x = x + b
        return x

    b = np.ones(50)
    with telling(told, "warn"):
        for state in (False, True):
            with (
                np.deferredstate(state),
                pytest.raises(ValueError, match="could not be broadcast"),
            ):
                run()
