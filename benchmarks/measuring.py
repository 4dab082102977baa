"""
Measuring time and memory, eager and deferred, and showing both as a table.

Memory is the extra peak of a call, measured in two ways that must agree:
`traced` is what NumPy asked for, as tracemalloc saw it; `resident` is what the
kernel gave: the highest resident size during the call (VmHWM, reset through
/proc/self/clear_refs) less the resident size before it.  Memory that was
reserved but never touched does not count in the second.
"""

import ctypes
import gc
import statistics
import time
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import numpy as np

MB = 1e6


class Times(NamedTuple):
    """Seconds, over all repeats."""

    samples: list

    @property
    def min(self):
        return min(self.samples)

    @property
    def median(self):
        return statistics.median(self.samples)


class Peak(NamedTuple):
    """Extra peak memory of a call in bytes; `resident` is None off Linux."""

    traced: int
    resident: int | None

    @property
    def bytes(self):
        return self.traced if self.resident is None else self.resident


def run(function, arrays, state):
    """Call with this deferred state; results that are arrays are calculated."""
    with np.deferredstate(state):
        results = function(**arrays)
    results = as_tuple(results)
    np.deferred.calculate(*(x for x in results if isinstance(x, np.ndarray)))
    return results


def as_tuple(results):
    return results if isinstance(results, tuple) else (results,)


def interleaved_times(calls, repeats):
    """Times of each call; they take turns, and who begins changes."""
    samples = [[] for _ in calls]
    order = list(range(len(calls)))
    for call in calls:
        call()
    for _ in range(repeats):
        for i in order:
            start = time.perf_counter()
            call_result = calls[i]()
            samples[i].append(time.perf_counter() - start)
            del call_result
        order.reverse()
    return [Times(values) for values in samples]


def extra_peak(call):
    """What a call needed beyond what was there before it."""
    return Peak(_traced_peak(call), _resident_peak(call))


def _traced_peak(call):
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        results = call()
        peak = tracemalloc.get_traced_memory()[1]
        del results
    finally:
        tracemalloc.stop()
    return peak - before


def _resident_peak(call):
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    call()
    gc.collect()
    # What was freed but kept by malloc would hide new needs.
    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5")
    before = _status("VmRSS")
    results = call()
    peak = _status("VmHWM")
    del results
    return max(peak - before, 0)


def _status(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        key, value = line.split(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise KeyError(name)


def same_bits(results, expected):
    """Whether arrays agree in dtype, shape, strides and every bit."""
    return len(results) == len(expected) and all(
        (a.dtype, a.shape, a.strides) == (b.dtype, b.shape, b.strides)
        and a.tobytes() == b.tobytes()
        for a, b in zip(results, expected, strict=True)
    )


def print_table(header, rows, rst=False):
    """Columns as wide as needed; the first to the left, the rest to the right.

    With `rst`, one of reStructuredText's simple tables.
    """
    table = [header, *[[str(cell) for cell in row] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rule = [("=" if rst else "-") * width for width in widths]
    table.insert(1, rule)
    if rst:
        table = [rule, *table, rule]
    for row in table:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())


def megabytes(nbytes):
    return f"{nbytes / MB:.1f}"


def milliseconds(seconds):
    return f"{seconds * 1e3:.2f}"
