"""
What guards cost: the same work with NUMPY_DEFERRED_GUARD on and off.

`make and drop` is a deferred array that is never calculated; `read` is
a*b + c*d, from its writing to its values, and its end; `touch` is the same,
calculated because compiled code reads it at its guard.  Each state runs in a
process of its own; the processes take turns.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time

SIZES = [1, 4_096, 8_192, 16_384, 32_768, 65_536, 131_072, 1_000_000, 10_000_000]
DATA = 16  # where the array structure has its data pointer


def best(function, seconds):
    """The least time of a call, of many short series."""
    function()
    start = time.perf_counter()
    function()
    calls = max(1, int(0.002 / max(time.perf_counter() - start, 1e-7)))
    least, end = 1e9, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        least = min(least, (time.perf_counter() - start) / calls)
    return least


def measure(n, seconds):
    """What a process does, with guards or without; times in seconds."""
    import numpy as np

    arrays = [np.random.default_rng(i).random(n) for i in range(4)]
    a, b, c, d = arrays
    np.setdeferred(True)

    def make_and_drop():
        x = a * b
        assert x is not None

    def read():
        x = a * b + c * d
        np.deferred.calculate(x)

    def touch():
        x = a * b + c * d
        address = ctypes.c_void_p.from_address(id(x) + DATA).value
        assert ctypes.c_double.from_address(address).value >= 0

    times = {"make and drop": best(make_and_drop, seconds), "read": best(read, seconds)}
    if os.environ["NUMPY_DEFERRED_GUARD"] == "on" and sys.platform == "linux":
        times["touch"] = best(touch, seconds)
    return times


def run(state, n, seconds):
    env = dict(os.environ, NUMPY_DEFERRED_GUARD=state, NUMPY_DEFERRED_MIN_BYTES="0")
    command = [sys.executable, __file__, "--measure", str(n), "--seconds", str(seconds)]
    return json.loads(subprocess.check_output(command, env=env, text=True))


def least(results):
    return {name: min(r[name] for r in results) for name in results[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-n", type=int, nargs="*", default=SIZES)
    args = parser.parse_args()
    if args.measure is not None:
        print(json.dumps(measure(args.measure, args.seconds)))
        return
    from measuring import print_table

    rows = []
    for n in args.n:
        results = {"on": [], "off": []}
        for _ in range(args.repeats):
            for state, found in results.items():
                found.append(run(state, n, args.seconds))
        on, off = least(results["on"]), least(results["off"])
        rows.append(
            [
                f"{8 * n:,}",
                f"{on['make and drop'] * 1e9:.0f}",
                f"{off['make and drop'] * 1e9:.0f}",
                f"{on['read'] * 1e6:.2f}",
                f"{off['read'] * 1e6:.2f}",
                f"{on['read'] / off['read']:.3f}",
                f"{on['touch'] * 1e6:.2f}" if "touch" in on else "-",
            ]
        )
    header = ["bytes", "make on/ns", "off", "read on/us", "off", "on/off", "touch/us"]
    print_table(header, rows)


if __name__ == "__main__":
    main()
