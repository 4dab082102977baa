"""
A short run of the fuzzer, and the fuzzer itself: `spin fuzz` is the long run.

Hypothesis draws programs, the same ones each time, as chance belongs into long runs;
tests/fuzz shrinks those that fail, statement by statement, to a script that stands
alone.  FUZZ_PROGRAMS in the environment says how many are tried.
"""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fuzz import runtime, shrink
from fuzz.grammar import NAMES, Block, Statement, generate, render
from helpers.process import run_python
from helpers.sanitizers import under

PROGRAMS = int(os.environ.get("FUZZ_PROGRAMS", "400"))
TESTS = Path(__file__).parent


def fail(parts, state, about):
    """Fail with a script."""
    shrinker = shrink.Shrinker(parts, state, seconds=60)
    pytest.fail(shrink.script(shrinker.shrink(), state, about), pytrace=False)


@pytest.fixture(autouse=True, scope="module")
def no_reads_of_nothing():
    """Under ASan, as NumPy reads an element of an array that it copies by a mask."""
    copyto = np.copyto

    def copy(target, source, *args, where=True, **kwargs):
        where = where if np.size(source) else True
        copyto(target, source, *args, where=where, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        if under("asan"):
            patch.setattr(np, "copyto", copy)
        yield


@settings(
    max_examples=PROGRAMS,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_programs(seed):
    parts, state = generate(random.Random(seed))
    found = shrink.in_child(runtime.compare, render(parts), NAMES, state)
    if found:
        fail(parts, state, f"Program of seed {seed}.")


@pytest.mark.parametrize(
    ("variables", "large"),
    [
        ({}, "0.9"),
        ({"NUMPY_DEFERRED_MIN_BYTES": "0", "NUMPY_DEFERRED_HABITS": "1"}, "0"),
    ],
    ids=["as it is used", "with habits"],
)
def test_other_ways_to_defer(variables, large):
    """That is a matter of how NumPy is imported."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("NUMPY_DEFERRED")
    }
    environment["PYTHONPATH"] = os.pathsep.join([*sys.path, str(TESTS)])
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "fuzz"),
            *("--large", large, "--seed", "1", "--minutes", "0.2"),
            *("--output", os.devnull),
        ],
        env=environment | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    counts = dict(re.findall(r" ([\d,]+) (\w+)", done.stdout)[::-1])
    counts = {name: int(n.replace(",", "")) for n, name in counts.items()}
    assert counts["captured"] > 0 or counts["programs"] < 10


#: Kinds of failure, and programs that see whether they are run deferred.
DIFFERENT = {
    "value": "v1 + (np.getdeferred() is True)",
    "variable": "v2 = v1 + (np.getdeferred() is True)",
    "error": "v1 + np.zeros(2 if np.getdeferred() else 6)",
    "report": "with np.errstate(all='warn'): v2 = v1 / (not np.getdeferred())",
    "SIGKILL": "np.getdeferred() and os.kill(os.getpid(), 9)",
}


def failing(kind):
    """A program that fails, with statements around that do not matter."""
    others = [Statement([f"v{i} = np.arange({i})"]) for i in range(10, 20)]
    body = [*others[:5], Statement([DIFFERENT[kind]]), *others[5:]]
    first = [Statement(["import os"]), Statement(["v1 = np.ones(6)"])]
    return [*first, Block(["for i in range(2):"], body)]


@pytest.mark.parametrize("kind", DIFFERENT)
def test_differences_are_found(kind):
    assert kind in shrink.fails(failing(kind), True)


def test_failures_become_scripts():
    shrinker = shrink.Shrinker(failing("variable"), True, seconds=60)
    parts = shrinker.shrink()
    assert render(parts) == "v2 = np.getdeferred()\n"
    done = run_python(shrink.script(parts, True, "About."), PYTHONPATH=numpy_path())
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("variable v2\n    eager: ")


def numpy_path():
    """Where NumPy is, and nothing of the tests."""
    return str(Path(np.__file__).parents[1])


def test_programs_are_long_and_varied():
    sources = [render(generate(random.Random(seed))[0]) for seed in range(60)]
    assert min(source.count("\n") for source in sources) >= 10
    assert max(source.count("\n") for source in sources) >= 150
    for word in [
        "errstate",
        "except",
        "del ",
        "deferredstate",
        "[::-1]",
        "setdeferred",
    ]:
        assert sum(word in source for source in sources) >= 3, word
