"""
The main job: the expressions of the documents this project implements, run
eagerly and deferred on arrays of real sizes.

For each it shows that the bits are the same, the extra peak memory of both, and
the time of both.  It fails when any bit differs.
"""

import argparse
import sys
from typing import NamedTuple

import measuring
import numpy as np
from measuring import megabytes, milliseconds


class Case(NamedTuple):
    source: str  # which document
    text: str  # as it is written there
    make: callable  # () -> the arrays, by name
    function: callable  # (**arrays) -> result or results


def vectors(names, n):
    def make():
        rng = np.random.default_rng(11)
        return {name: rng.random(n) for name in names}

    return make


# The NEP's example (spec 001), a line a function.


def nep_sum(a, b, c, d):
    return a + b + c


def nep_assign(a, b, c, d):
    d[:] = a * b * c
    return d


def nep_mixed(a, b, c, d):
    return a + b + c * d


def nep_overwrite(a, b, c, d):
    e = a + b + c * d
    d[:] = a
    return e, d


def nep_three_assignments(a, b, c, e, f, g):
    d = a + b + c
    e[:] = d
    f[:] = d
    g[:] = d
    return e, f, g


# The proposal of 2006 (spec 000).


def two_products(b, c, d, e):
    return b * c + d * e


# The NumPy array, 2011 (spec 002).


def f(x):
    return x**2 - 3 * x + 4


def g(x):
    fx = x**2
    fx -= 3 * x
    fx += 4
    return fx


def grid(i, j, k):
    return np.sqrt(i**2 + j**2 + k**2)


def open_axes(n):
    def make():
        half = n // 2
        i, j, k = np.ogrid[-half:half, -half:half, -half:half]
        return {"i": i, "j": j, "k": k}

    return make


def dense_axes(n):
    def make():
        half = n // 2
        i, j, k = np.mgrid[-half:half, -half:half, -half:half]
        return {"i": i, "j": j, "k": k}

    return make


# A question on temporaries (spec 003).


def accumulate(a, b):
    for i in range(10):
        a += b * i
    return a


def cases(n, side):
    dots = f"{side}x{side}x{side}"
    return [
        Case("001", "d = a + b + c", vectors("abcd", n), nep_sum),
        Case("001", "d[:] = a*b*c", vectors("abcd", n), nep_assign),
        Case("001", "e = a+b+c*d", vectors("abcd", n), nep_mixed),
        Case("001", "e = a+b+c*d; d[:] = a", vectors("abcd", n), nep_overwrite),
        Case(
            "001",
            "e[:] = d; f[:] = d; g[:] = d",
            vectors("abcefg", n),
            nep_three_assignments,
        ),
        Case("000", "a = b*c + d*e", vectors("bcde", n), two_products),
        Case("002", "f(x) = x**2 - 3*x + 4", vectors("x", n), f),
        Case("002", "g(x), in place by hand", vectors("x", n), g),
        Case("002", f"R, ogrid {dots}", open_axes(side), grid),
        Case("002", f"R, mgrid {dots}", dense_axes(side), grid),
        Case("003", "10 times a += b*i", vectors("ab", n), accumulate),
    ]


class Measured(NamedTuple):
    same: bool
    result_bytes: int
    peaks: tuple  # eager, deferred
    times: tuple  # eager, deferred


def measure(case, repeats):
    eager, deferred = (
        measuring.run(case.function, case.make(), state) for state in (False, True)
    )
    same = measuring.same_bits(deferred, eager)
    nbytes = sum(array.nbytes for array in eager)
    del eager, deferred
    arrays = case.make()
    calls = [
        lambda state=state: measuring.run(case.function, arrays, state)
        for state in (False, True)
    ]
    peaks = tuple(map(measuring.extra_peak, calls))
    times = tuple(measuring.interleaved_times(calls, repeats))
    return Measured(same, nbytes, peaks, times)


HEADER = [
    "expression",
    "spec",
    "bits",
    "result MB",
    "extra peak MB",
    "deferred",
    "eager ms: min",
    "median",
    "deferred ms: min",
    "median",
    "speed-up",
]


def row(case, measured):
    eager, deferred = measured.times
    return [
        case.text,
        case.source,
        "same" if measured.same else "DIFFER",
        megabytes(measured.result_bytes),
        *(megabytes(peak.bytes) for peak in measured.peaks),
        milliseconds(eager.min),
        milliseconds(eager.median),
        milliseconds(deferred.min),
        milliseconds(deferred.median),
        f"{eager.median / deferred.median:.2f}",
    ]


TRANSCRIPT = """\
d = a + b + c
print(d[:3])
d[:] = a*b*c
e = a+b+c*d
d[:] = a
print(e[:3])
"""


def show_transcript(n):
    """Run the NEP's example line by line, and show what is deferred when."""
    names = vectors("abcd", n)()
    lines = TRANSCRIPT.splitlines()
    width = max(map(len, lines)) + 6
    print("with np.deferredstate(True):")
    with np.deferredstate(True):
        for line in lines:
            exec(line, {}, names)
            notes = [
                f"{name} is {describe(array)}"
                for name, array in names.items()
                if describe(array)
            ]
            print(f"    {line}".ljust(width), "#", "; ".join(notes) or "all regular")


def describe(array):
    if array.flags.deferred:
        return "deferred"
    count = np.deferred.usage_count(array)
    return f"an operand ({count})" if count else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n\n")[0])
    parser.add_argument("-n", type=int, default=5_000_000, help="elements of vectors")
    parser.add_argument("--side", type=int, default=200, help="side of the grid R")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    show_transcript(options.n)
    print(
        f"\nVectors of {options.n:,} doubles; both ways take turns, "
        f"{options.repeats} times.\n"
        "Extra peak: the highest resident size during the call, less that "
        "before it.\n"
    )
    rows, same = [], True
    for case in cases(options.n, options.side):
        print(f"measuring {case.text}", file=sys.stderr)
        measured = measure(case, options.repeats)
        rows.append(row(case, measured))
        same = same and measured.same
    measuring.print_table(HEADER, rows)
    print("\nEvery bit is the same." if same else "\nBITS DIFFER.")
    return not same


if __name__ == "__main__":
    sys.exit(main())
