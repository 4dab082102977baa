"""
`a*b + c*d` into a new array: extra peak memory and time, deferred and eager.

Fails when deferral needs more than 1.1 times the result, or is not faster.
"""

import argparse
import json
import sys

import measuring
import numpy as np
from measuring import megabytes, milliseconds


def expression(a, b, c, d):
    return a * b + c * d


def measure(n, repeats):
    arrays = dict(zip("abcd", np.random.default_rng(11).random((4, n)), strict=True))
    calls = [
        lambda state=state: measuring.run(expression, arrays, state)
        for state in (False, True)
    ]
    if not measuring.same_bits(calls[1](), calls[0]()):
        raise SystemExit("the bits differ")
    peaks = map(measuring.extra_peak, calls)
    times = measuring.interleaved_times(calls, repeats)
    return dict(zip(("eager", "deferred"), zip(peaks, times, strict=True), strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n\n")[0])
    parser.add_argument("-n", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print JSON instead")
    options = parser.parse_args()
    nbytes = 8 * options.n
    measured = measure(options.n, options.repeats)
    figures = {
        name: {
            "peak_resident": peak.resident,
            "peak_traced": peak.traced,
            "peak_ratio": peak.bytes / nbytes,
            "min_s": times.min,
            "median_s": times.median,
        }
        for name, (peak, times) in measured.items()
    }
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        measuring.print_table(
            ["", "resident MB", "traced MB", "of result", "min ms", "median ms"],
            [
                [
                    name,
                    megabytes(peak.bytes),
                    megabytes(peak.traced),
                    f"{peak.bytes / nbytes:.2f}",
                    milliseconds(times.min),
                    milliseconds(times.median),
                ]
                for name, (peak, times) in measured.items()
            ],
        )
    deferred, eager = figures["deferred"], figures["eager"]
    return not (
        deferred["peak_ratio"] <= 1.1 and deferred["median_s"] < eager["median_s"]
    )


if __name__ == "__main__":
    sys.exit(main())
