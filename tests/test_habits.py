"""
Lines whose smaller results are read as they are run at once; what a reduction has
computed, and is computed again, is stored.

Each test is a program: the tests themselves say what is deferred, and habits are not
kept then.
"""

import pytest

from helpers.process import output_of

START = """
    import numpy as np
    np.setdeferred(True)
    a, b, c = (np.linspace(i, i + 1, 10_000) for i in (1, 3, 5))
    """


def deferred_in_turn(body):
    """Whether `x` of `body`, which is run 200 times, is deferred: 1 or 0 for each."""
    code = f"""{START}
    marks = ""
    for i in range(200):
        {body}
    print(marks)
    """
    return output_of(code, NUMPY_DEFERRED_MIN_BYTES=None)


def test_read_alone():
    marks = deferred_in_turn("x = a + b; marks += '01'[x.flags.deferred]; x[0]")
    assert marks.startswith("1" * 8 + "0")
    assert 2 <= marks[8:].count("1") <= 4, "one now and then"


@pytest.mark.parametrize(
    "body",
    [
        "x = a + b; marks += '01'[x.flags.deferred]; (x * 2)[0]",
        "x = a + b; marks += '01'[x.flags.deferred]; x.sum()",
        "x = a + b; marks += '01'[x.flags.deferred]; c[:] = x",
        "x = a + b; marks += '01'[x.flags.deferred]",
        "x = a * b + a; marks += '01'[x.flags.deferred]; x[0]",
        "x = np.tile(a, 4) + 1; marks += '01'[x.flags.deferred]; x[0]",
        "x = a.reshape(100, 100) + b[:100]; marks += '01'[x.flags.deferred]; x[0]",
    ],
    ids=["used", "reduced", "assigned", "dropped", "expression", "large", "broadcast"],
)
def test_other_uses(body):
    assert deferred_in_turn(body) == "1" * 200


@pytest.mark.parametrize(
    ("min_bytes", "habits", "are_kept"),
    [("0", None, False), ("100", "1", True), (None, "0", False), (None, "1", True)],
)
def test_environment(min_bytes, habits, are_kept):
    code = f"""{START}
    for i in range(30):
        x = a + b
        deferred = x.flags.deferred
        x[0]
    print(deferred)
    """
    printed = output_of(
        code, NUMPY_DEFERRED_MIN_BYTES=min_bytes, NUMPY_DEFERRED_HABITS=habits
    )
    assert printed == str(not are_kept)


def test_other_use_of_the_same_line():
    """Once the one in so many is not read alone, all are deferred again."""
    code = f"""{START}
    def add():
        return a + b

    for i in range(20):
        add()[0]
    assert not add().flags.deferred
    for i in range(70):
        (add() * 2)[0]
    assert add().flags.deferred
    """
    output_of(code, NUMPY_DEFERRED_MIN_BYTES=None)


def test_bits_are_the_same():
    code = f"""{START}
    def work():
        e = np.exp(a - a.max())
        s = e / e.sum()
        return s.tobytes(), (a + b)[0], np.sqrt(a).tobytes()

    with np.deferredstate(False):
        expected = work()
    for i in range(100):
        assert work() == expected
    """
    output_of(code, NUMPY_DEFERRED_MIN_BYTES=None)


def test_reduced_and_read_again():
    """A function is computed twice the first time, and one time in so many."""
    code = f"""{START}
    reduced = []
    for i in range(40):
        e = np.exp(a - b)
        before = np.deferred.stats()["reduced"]
        e.sum()
        reduced.append(np.deferred.stats()["reduced"] - before)
        assert e.flags.deferred == reduced[-1]
        (e / 2)[0]
    print(reduced.count(1), reduced[:3])
    """
    assert output_of(code, NUMPY_DEFERRED_MIN_BYTES=None) == "3 [1, 0, 0]"


@pytest.mark.parametrize("read", ["(x + 1)[0]", "x[0]", "x.max()"])
def test_arithmetic_that_is_reduced_and_read_again(read):
    """Reductions compute it with all threads."""
    code = f"""{START}
    for i in range(40):
        x = a * b + a
        x.sum()
        assert x.flags.deferred
        {read}
    """
    output_of(code, NUMPY_DEFERRED_MIN_BYTES=None)


@pytest.mark.parametrize("state", ["ignore", "warn"])
def test_named_part_that_is_read_again(state):
    """What an expression began with, and is stored later, is stored first from then."""
    code = f"""{START}
    first = []
    with np.errstate(all="{state}"):
        for i in range(40):
            x = a * b + a
            (x > 1)[0]
            first.append("10"[x.flags.deferred])
            x[::2].copy()
    print("".join(first))
    """
    printed = output_of(code, NUMPY_DEFERRED_MIN_BYTES=None)
    assert printed == "0" + "1" * 16 + "0" + "1" * 16 + "0" + "1" * 5


def test_named_part_that_is_not_read_again():
    code = f"""{START}
    for i in range(40):
        x = a * b
        (x > 1)[0]
        assert x.flags.deferred
    """
    output_of(code, NUMPY_DEFERRED_MIN_BYTES=None)


def test_named_part_of_functions():
    """A chain of arithmetic behind functions is stored too, if computed again."""
    code = f"""{START}
    stored = 0
    z = a
    with np.errstate(all="ignore"):
        for i in range(40):
            np.exp(z)[0]
            stored += not z.flags.deferred
            z = z * b - z
    print(stored > 20)
    """
    assert output_of(code, NUMPY_DEFERRED_MIN_BYTES=None) == "True"


def test_lines_without_python():
    """A ufunc that C code calls has the line of its caller."""
    code = f"""{START}
    for i in range(30):
        for x in map(np.add, [a], [b]):
            x[0]
    """
    output_of(code, NUMPY_DEFERRED_MIN_BYTES=None)
