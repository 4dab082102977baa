"""
Kernels of two suites of benchmarks, unmodified, deferred and eager.

Deferral must not make them slower: those that are behind are listed.  Fails when
bits differ.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import kernels
import measuring
import numpy as np
from measuring import milliseconds
from peers import measure, report


def copied(arguments):
    """Of their own, as some kernels change them."""
    return {
        name: value.copy() if isinstance(value, np.ndarray) else value
        for name, value in arguments.items()
    }


def call(kernel, arguments, state):
    """Results, and the seconds that they took."""
    arguments = copied(arguments)
    start = time.perf_counter()
    results = measuring.run(kernel.function, arguments, state)
    return results, time.perf_counter() - start


def measure_kernel(kernel, preset, repeats, seconds):
    arguments = kernel.make(*kernel.presets[preset])
    # In these, too, a line of code shows whether it is worth deferring.
    eager, first = call(kernel, arguments, False)
    deferred, second = call(kernel, arguments, True)
    same = measuring.same_bits(deferred, eager)
    del eager, deferred
    repeats = max(repeats, int(seconds / (first + second)))
    samples = {False: [], True: []}
    order = [False, True]
    for _ in range(repeats):
        for state in order:
            samples[state].append(call(kernel, arguments, state)[1])
        order.reverse()
    eager, deferred = (measuring.Times(samples[state]) for state in (False, True))
    return {
        "kernel": kernel.name,
        "preset": preset,
        "same": same,
        "eager_min": eager.min,
        "eager_median": eager.median,
        "deferred_min": deferred.min,
        "deferred_median": deferred.median,
        "speedup": eager.min / deferred.min,
        "median_speedup": eager.median / deferred.median,
    }


HEADER = [
    "kernel",
    "preset",
    "bits",
    "eager ms: min",
    "median",
    "deferred ms: min",
    "median",
    "speed-up: min",
    "median",
]


def shown(row):
    names = ("eager_min", "eager_median", "deferred_min", "deferred_median")
    return [
        row["kernel"],
        row["preset"],
        "same" if row["same"] else "DIFFER",
        *(milliseconds(row[name]) for name in names),
        report.figure(row["speedup"]),
        report.figure(row["median_speedup"]),
    ]


def show(rows, rst):
    measuring.print_table(HEADER, map(shown, rows), rst)
    for name, text in (("speedup", "minima"), ("median_speedup", "medians")):
        mean = report.geometric_mean(row[name] for row in rows)
        print(f"\nGeometric mean of {len(rows)} speed-ups, {text}: {mean:.2f}")
    behind = sorted((x for x in rows if x["speedup"] < 1), key=lambda x: x["speedup"])
    print(f"\nBehind eager NumPy in {len(behind)} of {len(rows)}:\n")
    for row in behind:
        print(f"- {row['speedup']:.2f}  {row['kernel']}, {row['preset']}")


def main():
    names = [kernel.name for kernel in kernels.KERNELS]
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n\n")[0])
    add = parser.add_argument
    add("--only", nargs="+", choices=names, metavar="KERNEL", default=names)
    presets = kernels.PRESETS
    add("--presets", nargs="+", choices=presets, default=presets)
    add("--threads", type=int, default=np.deferred.get_num_threads())
    add("--heap", choices=measure.REGIMES, default="default", help="malloc's way")
    add("--repeats", type=int, default=5, help="at least")
    add("--seconds", type=float, default=1, help="for each, or longer")
    add("--json", type=Path, help="write the figures there too")
    add("--rst", action="store_true", help="print reStructuredText")
    options = parser.parse_args()
    np.deferred.set_num_threads(options.threads)
    measure.set_heap(options.heap)
    rows = []
    for kernel in kernels.KERNELS:
        for preset in kernel.presets:
            if kernel.name in options.only and preset in options.presets:
                print(f"measuring {kernel.name}, {preset}", file=sys.stderr)
                arguments = options.repeats, options.seconds
                rows.append(measure_kernel(kernel, preset, *arguments))
    print(f"{options.threads} thread(s), {options.heap} heap\n")
    show(rows, options.rst)
    same = all(row["same"] for row in rows)
    print("\nEvery bit is the same." if same else "\nBITS DIFFER.")
    if options.json:
        figures = {"threads": options.threads, "heap": options.heap, "rows": rows}
        options.json.write_text(json.dumps(figures, indent=1))
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
