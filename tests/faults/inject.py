"""
Run a program with its n-th allocation failing, for n = 1, 2, 3, ... until none
does.  Preloaded: failing_malloc.c.

    inject.py PROGRAM [--row N] [--eager] [--start N]

With --row so many fail, beginning with the n-th; --eager turns deferral off, to
see what NumPy does by itself.  Stdout gets, for each run, the line `n=N`, the C
stack of the failure, and a line of JSON a finding; a last line has "done".
"""

import argparse
import ctypes
import gc
import itertools
import json
import os
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from faults.programs import PROGRAMS, WRITES
from faults.world import World
from helpers.compare import see

#: A leak is what grows in each of so many: more than NumPy's caches hold blocks.
REPETITIONS = 20

#: The cache of attributes keeps names alive, in slots that chance decides.
_clear_attributes = getattr(sys, "_clear_internal_caches", sys._clear_type_cache)


def clear_caches():
    _clear_attributes()
    gc.collect()


def variable(name, kind=ctypes.c_long):
    return kind.in_dll(ctypes.CDLL(None), f"faults_{name}")


AT, ROW, SEEN, FAILED, LIVE = map(variable, ("at", "row", "seen", "failed", "live"))
TRACE = variable("trace", ctypes.c_int)


def describe(result):
    return [see(x) for x in (result if isinstance(result, tuple) else (result,))]


class Injection:
    def __init__(self, name):
        self.program = PROGRAMS[name]
        self.writes = WRITES[name]
        self.states = np.getdeferred(), np.geterr()
        with np.deferredstate(False):
            world = World()
            self.expected = describe(self.program(world))
            self.after = world.seen()

    def find(self, kind, text=""):
        print(json.dumps({"kind": kind, "text": text}), flush=True)

    def check_results(self, world, results):
        """After a run that no failure has stopped."""
        if describe(results) != self.expected:
            self.find("values", "wrong results")
        for name, x in world.arrays():
            np.deferred.calculate(x)
            if world.seen()[name] != self.after[name]:
                self.find("values", f"{name} is wrong")
        if np.deferred.stats()["pending"]:
            self.find("values", "still pending")

    def run(self, n):
        """Returns whether an allocation failed."""
        clear_caches()
        os.write(1, b"n=%d\n" % n)
        world = World()
        results = error = None
        SEEN.value = FAILED.value = 0
        AT.value = n
        try:
            results = self.program(world)
            AT.value = 0
        except Exception as exception:
            AT.value = 0
            error = exception
        failed = FAILED.value > 0
        self.restore_states()
        if error is None:
            self.check_results(world, results)
            if failed:
                self.find("completed")
            return failed
        if not isinstance(error, MemoryError):
            self.find("exception", f"{type(error).__name__}: {error}")
        # Drops what the frames of the traceback hold.
        error = None
        for text in world.problems(self.writes, self.after):
            self.find("values", text)
        if self.writes:
            world = World()
        self.check_results(world, self.program(world))
        return failed

    def grows(self, n, repetitions):
        """How many blocks each repetition leaves behind; 0 when not all do."""
        # Into ready memory: a list of numbers would be new blocks itself.
        live = (ctypes.c_long * repetitions)()
        for i in range(repetitions):
            self.run(n)
            clear_caches()
            live[i] = LIVE.value
        return min(b - a for a, b in itertools.pairwise(live))

    def look_for_leaks(self, n):
        if self.grows(n, 2) > 0 and (growth := self.grows(n, REPETITIONS)) > 0:
            self.find("leak", f"{growth} blocks")

    def run_all(self, start):
        n = start
        while self.run(n):
            if ROW.value == 1:
                self.look_for_leaks(n)
            n += 1
        return n - 1

    def restore_states(self):
        """
        The end of a `with` block has to allocate to restore a context variable,
        so neither np.errstate nor np.deferredstate can promise that.
        """
        state, errors = self.states
        if np.getdeferred() is not state:
            np.setdeferred(state)
        if np.geterr() != errors:
            np.seterr(**errors)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("--row", type=int, default=1)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--start", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("error")
    np.setdeferred(not options.eager)
    injection = Injection(options.program)
    for _ in range(3):
        injection.run(0)
    ROW.value = options.row
    TRACE.value = 1
    gc.freeze()
    gc.disable()
    print(json.dumps({"done": injection.run_all(options.start)}))


if __name__ == "__main__":
    main()
