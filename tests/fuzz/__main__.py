"""
The long run of the fuzzer: `spin fuzz`.

Batches of programs run in child processes, so that a crash is a failure like
any other.  A failure is shrunk and written to a script that stands alone.
"""

import argparse
import collections
import random
import time
from pathlib import Path

import numpy as np

from fuzz import runtime, shrink
from fuzz.grammar import NAMES, Generator, generate, render

BATCH = 50
COUNTERS = ("captured", "calculated", "together", "fused", "reduced", "flushed")


def program(seed, index, large):
    """The program of this number: (parts, state)."""
    return generate(random.Random(f"{seed}/{index}"), large)


def run_one(seed, index, large):
    """Its counts, and what differs."""
    parts, state = program(seed, index, large)
    before = np.deferred.stats()
    source = render(parts)
    found = runtime.compare(source, NAMES, state)
    after = np.deferred.stats()
    counts = {name: after[name] - before[name] for name in COUNTERS}
    counts.update(programs=1, statements=source.count("\n"))
    return counts, found


def run_batch(seed, first, large, end):
    """The counts of a batch, and the first program that fails, or None."""
    total = collections.Counter()
    for index in range(first, first + BATCH):
        shrink.limit_time()
        counts, found = run_one(seed, index, large)
        total.update(counts)
        if found:
            return total, index
        if time.monotonic() > end:
            break
    return total, None


def find_crash(seed, first, large):
    """Which program of a batch kills its process; the others are fine."""
    for index in range(first, first + BATCH):
        result = shrink.in_child(run_one, seed, index, large)
        if isinstance(result, str) or result[1]:
            return index
    return None


def write_script(arguments, index):
    """Shrink a program that fails; returns where the script is."""
    written = shrink.in_child(program, arguments.seed, index, arguments.large)
    if isinstance(written, str):
        print(f"program {index} cannot be written: {written}", flush=True)
        return None
    parts, state = written
    if shrink.is_slow(parts):
        print(f"program {index} is slow without deferral too", flush=True)
        return None
    shrinker = shrink.Shrinker(parts, state, arguments.shrink)
    if not shrinker.kinds:
        print(f"program {index} failed once, but not again", flush=True)
        return None
    kinds = ", ".join(sorted(shrinker.kinds))
    print(f"program {index} fails ({kinds}); shrinking it", flush=True)
    about = f"Seed {arguments.seed}, program {index}: {kinds}."
    path = Path(arguments.output or f"fuzz-failure-{arguments.seed}.py")
    if arguments.failures > 1:
        path = path.with_stem(f"{path.stem}-{index}")
    path.write_text(shrink.script(shrinker.shrink(), state, about))
    print(render(shrinker.parts))
    print(f"written to {path}", flush=True)
    return path


def report(total, started, nfailures):
    minutes = (time.monotonic() - started) / 60
    counts = ", ".join(f"{count:,} {name}" for name, count in total.items())
    print(f"{minutes:.1f} min: {counts}, {nfailures} failures", flush=True)


def fuzz(arguments):
    """Returns the number of failures."""
    started = told = time.monotonic()
    end = started + 60 * arguments.minutes
    total = collections.Counter()
    nfailures, first = 0, arguments.first
    while time.monotonic() < end:
        result = shrink.in_child(run_batch, arguments.seed, first, arguments.large, end)
        if result == "exit":
            raise SystemExit("the fuzzer itself is broken")
        if isinstance(result, str):
            failed = find_crash(arguments.seed, first, arguments.large)
            if failed is None:
                print(f"{result} in programs {first} to {first + BATCH - 1}, together")
                nfailures += 1
        else:
            counts, failed = result
            total.update(counts)
        first += BATCH
        if failed is not None:
            nfailures += write_script(arguments, failed) is not None
            first = failed + 1
        if nfailures >= arguments.failures:
            break
        if time.monotonic() > told + arguments.every:
            told = time.monotonic()
            report(total, started, nfailures)
    report(total, started, nfailures)
    return nfailures


def main():
    parser = argparse.ArgumentParser(prog="spin fuzz")
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--first", type=int, default=0, help="number of a program")
    parser.add_argument("--large", type=float, default=0.12)
    parser.add_argument("--failures", type=int, default=1, help="stop after so many")
    parser.add_argument("--shrink", type=float, default=120, help="seconds")
    parser.add_argument("--every", type=float, default=30, help="seconds")
    parser.add_argument("--output", help="the script; fuzz-failure-SEED.py")
    parser.add_argument("--without", action="append", default=[], help="statements")
    arguments = parser.parse_args()
    Generator.without = frozenset(arguments.without)
    if arguments.seed is None:
        arguments.seed = random.randrange(2**32)
    print(f"seed {arguments.seed}", flush=True)
    raise SystemExit(fuzz(arguments) > 0)


if __name__ == "__main__":
    main()
