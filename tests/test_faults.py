"""
Memory that runs out: the n-th allocation of a program fails, for every n.

Each program of faults/programs.py must then raise MemoryError, with operands,
expressions and the list of pending arrays as they were, leak nothing, and give
eager NumPy's bits when it is run again.  See faults/inject.py.
"""

import bisect
import functools
import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest
from numpy import deferred
from numpy._core import _deferredstate, _multiarray_umath

from faults.programs import CONTEXTUAL, PROGRAMS

FAULTS = Path(__file__).parent / "faults"
#: How many allocations fail in a row.
ROWS = [1, 20]
#: Functions that do without what they could not get, as their callers may.
DO_WITHOUT = {
    "npy_deferred_origin_set": "a warning then names the line of the reader",
    "npy_deferred_origin_note": "the exception itself is what matters",
    "npy_deferred_mask_may_raise": "what may raise is not fused but calculated first",
    "npy_deferred_limit_total_memory": "an array stays pending, which keeps memory",
    "npy_deferred_run_sweep": "arrays are calculated one by one",
    "npy_deferred_memory_new": "machine code gives up its own, and it is tried again",
    "npy_deferred_code_new": "a program is gone through step by step",
    "npy_deferred_make_key": "a plan is not kept for the next time",
    "npy_deferred_profile": "it is not in the profile",
    "npy_deferred_is_own_ufunc": "it counts as foreign: one thread, and not reduced",
    "npy_deferred_look_at_neighbours": "an operation runs at once, and they are next",
    "npy_deferred_protect": "a copy takes the place of protection, or the flag",
    "solve_may_have_internal_overlap": "what may overlap is calculated first",
    "array_reduce_ex": "NumPy pickles an array that exports no buffer otherwise",
}

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="preloads a library, as Linux can"
)


class Finding(NamedTuple):
    n: int
    kind: str
    text: str
    stack: tuple  # functions of NumPy's core, innermost first

    def reached(self, function):
        # A compiler may have made it function.isra.0.
        return any(name.split(".")[0].startswith(function) for name in self.stack)

    def whose(self):
        """Who has to mend it: "us", "numpy", "python" or "nobody"."""
        if self.kind == "values":
            return "us"
        # What sets a context variable is CPython's.
        setters = "npy_deferred_set_state", "npy_deferred_enter_state"
        if not self.stack or self.stack[0] in setters:
            return "python"
        # Python code, where errstate sets one: whether CPython then leaks a token
        # depends on its caches.
        if self.kind == "leak" and self.stack[0] == "dispatcher_vectorcall":
            return "python"
        if self.reached("PyUFunc_handlefperr"):
            return "numpy"
        if self.kind == "completed" and any(map(self.reached, DO_WITHOUT)):
            return "nobody"
        return "us" if self.reached("npy_deferred") else "numpy"


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The failing malloc, compiled."""
    target = tmp_path_factory.mktemp("faults") / "failing_malloc.so"
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    source = FAULTS / "failing_malloc.c"
    subprocess.run([compiler, *flags, source, "-o", target, "-ldl"], check=True)
    return target


@functools.cache
def functions():
    """Where the functions of NumPy's core start, in order, and their names."""
    listing = subprocess.run(
        ["nm", _multiarray_umath.__file__], capture_output=True, text=True, check=True
    ).stdout
    rows = re.findall(r"^([0-9a-f]+) [tTwW] (\S+)$", listing, re.MULTILINE)
    table = sorted((int(address, 16), name) for address, name in rows)
    assert any(name.startswith("npy_deferred") for _, name in table)
    return [address for address, _ in table], [name for _, name in table]


def parse(output):
    """Returns the findings, the last n, and whether it came to its end."""
    addresses, names = functions()
    frame = re.compile(
        re.escape(Path(_multiarray_umath.__file__).name) + r"\(\+0x(\w+)"
    )
    findings, stack, n, done = [], [], 0, False
    for line in output.splitlines():
        if line.startswith("n="):
            n, stack = int(line[2:]), []
        elif line.startswith("{"):
            found = json.loads(line)
            done = "done" in found
            if not done:
                findings.append(Finding(n, stack=tuple(stack), **found))
        elif match := frame.search(line):
            stack.append(names[bisect.bisect(addresses, int(match[1], 16)) - 1])
    if not done:
        findings.append(Finding(n, "crash", "", tuple(stack)))
    return findings, n, done


def inject(library, program, *options):
    """The findings, and for how many n something failed."""
    environment = {
        **os.environ,
        "LD_PRELOAD": f"{library}:{os.environ.get('LD_PRELOAD', '')}".rstrip(":"),
        "PYTHONMALLOC": "malloc",
        "NUMPY_DEFERRED_MIN_BYTES": "0",
        "OPENBLAS_NUM_THREADS": "1",
    }
    findings, n, done = [], 0, False
    while not done:
        command = [sys.executable, "-P", FAULTS / "inject.py", program, *options]
        process = subprocess.run(
            [*command, f"--start={n + 1}"],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert process.returncode <= 0, process.stderr
        found, n, done = parse(process.stdout)
        findings += found
    return findings, n - 1


def test_every_public_function_is_reached():
    source = (FAULTS / "programs.py").read_text()
    names = [f"np.deferred.{name}" for name in deferred.__all__]
    names += [f"np.{name}" for name in _deferredstate.__all__]
    assert not [name for name in names if not re.search(rf"{name}\b", source)]


def kinds_of_numpy(findings):
    return {finding.kind for finding in findings if finding.whose() == "numpy"}


def programs():
    for program in PROGRAMS:
        for row in ROWS:
            if row == 1 or program not in CONTEXTUAL:
                yield pytest.param(program, row, id=f"{program}-{row}")


@pytest.mark.parametrize(("program", "row"), programs())
def test_allocation_fails(library, program, row):
    findings, injected = inject(library, program, f"--row={row}")
    assert injected > 0
    ours = [finding for finding in findings if finding.whose() == "us"]
    assert not ours, "\n".join(map(str, dict.fromkeys(ours)))
    if kinds := kinds_of_numpy(findings):
        # The proof: it happens without deferral too.
        eager, _ = inject(library, program, f"--row={row}", "--eager")
        more = kinds - {finding.kind for finding in eager}
        # What CPython's caches decide does not happen each time.
        assert not more or not more & kinds_of_numpy(
            inject(library, program, f"--row={row}")[0]
        )
