"""
Ours next to eager NumPy, numexpr, Numba, JAX and loops written in C by hand.

Each number of threads has a process, in which all take turns; peers that are not
installed are left out.  `spin bench peers` installs them.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

from peers import contenders, expressions, measure, report

DIRECTORY = Path(__file__).resolve().parents[1] / "build-bench"
SIZES = [1000, 10_000, 100_000, 1_000_000]
NAMES = [kind.name for kind in contenders.CONTENDERS]


def number(text):
    return int(float(text))


def several(kind, choices=None):
    """An option's list, with commas."""

    def convert(text):
        values = [kind(part) for part in text.split(",")]
        for value in values:
            if choices and value not in choices:
                raise argparse.ArgumentTypeError(
                    f"{value!r} is none of {', '.join(choices)}"
                )
        return values

    return convert


def parse(arguments=None):
    tables = expressions.EXPRESSIONS + expressions.CLAIMS
    names = [expression.name for expression in tables]
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n\n")[0])
    add = parser.add_argument
    add("--sizes", type=several(number), help="numbers of elements")
    add("--threads", type=several(int), default=[1, 2])
    add("--dtypes", type=several(str, ["f8", "f4", "i8"]), help="all by default")
    regimes = measure.REGIMES
    add("--regimes", type=several(str, regimes), default=regimes, help="of malloc")
    add("--contenders", type=several(str, NAMES), default=NAMES)
    add("--only", type=several(str, names), help="expressions: " + ", ".join(names))
    add("--claims", action="store_true", help="what others published, instead")
    add("--repeats", type=int, default=5)
    add("--directory", type=Path, default=DIRECTORY, help="for what is compiled")
    add("--output", type=Path, help="for results.json and plots; as --directory")
    add("--show", type=Path, nargs="+", help="show results.json again, or several")
    add("--rst", action="store_true", help="claims, or means, as reStructuredText")
    add("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.sizes is None:
        # A claim has a size of its own.
        options.sizes = [0] if options.claims else SIZES
    return options


def measure_here(options):
    """In the process of one number of threads: rows as lines of JSON."""
    (threads,) = options.threads
    measure.measure(
        vars(options) | {"threads": threads},
        lambda cell, rows: print(json.dumps(cell | {"rows": rows}), flush=True),
    )


def measure_in_process(threads):
    """All cells of one number of threads, as they come."""
    arguments = [*sys.argv[1:], "--measure", "--threads", str(threads)]
    # -P and PYTHONPATH are what this process was started with.
    command = [sys.executable, *(["-P"] if sys.flags.safe_path else [])]
    process = subprocess.Popen(
        [*command, __file__, *arguments],
        env=os.environ | contenders.environment(threads),
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        raise SystemExit(f"the process of {threads} threads failed")


def versions():
    found = {"python": platform.python_version()}
    for name in ("numexpr", "numba", "jax"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(": ")[1] for x in lines if x.startswith("model name")), "")


def measure_all(options, path):
    """All cells; what has been measured is kept, whatever happens next."""
    results = {
        "when": time.strftime("%Y-%m-%d %H:%M:%S"),
        "processor": processor(),
        "processors": os.cpu_count(),
        "load_before": os.getloadavg(),
        "versions": versions(),
        "repeats": options.repeats,
        "cells": [],
    }
    for threads in options.threads:
        for cell in measure_in_process(threads):
            results["cells"].append(cell)
            if sys.stderr.isatty():
                print(f"\r{report.title(cell):<78}", end="", file=sys.stderr)
        results["load_after"] = os.getloadavg()
        path.write_text(json.dumps(results, indent=1))
    return results


def together(runs):
    """The cells of several runs, with the circumstances of the first."""
    return runs[0] | {"cells": [cell for run in runs for cell in run["cells"]]}


def main():
    options = parse()
    options.directory.mkdir(parents=True, exist_ok=True)
    if options.measure:
        return measure_here(options)
    output = options.output or options.directory
    output.mkdir(parents=True, exist_ok=True)
    if options.show:
        results = together([json.loads(path.read_text()) for path in options.show])
    else:
        name = "claims.json" if options.claims else "results.json"
        results = measure_all(options, output / name)
    if any(cell["claimed"] for cell in results["cells"]):
        report.print_claims(results, options.rst)
    else:
        if options.rst:
            report.print_means(results)
        else:
            report.print_tables(results)
            report.print_summary(results)
        report.plot(results, output)
    return any(not row["ok"] for row in report.rows_of(results, "ours"))


if __name__ == "__main__":
    sys.exit(main())
