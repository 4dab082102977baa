"""
Times of all contenders in one process, in which they take turns.

A sample is a number of calls that together take a millisecond.  Before it come a
pause, in which the threads of whoever was before go to sleep, and a call that
is not timed, which wakes one's own and brings the operands back to the cache.
"""

import ctypes
import gc
import math
import resource
import statistics
import sys
import time

import measuring
import numpy as np

from . import contenders
from .expressions import CLAIMS, EXPRESSIONS

SAMPLE_SECONDS = 1e-3
PAUSE = 5e-4
#: How far a peer may be from NumPy, relative to the largest element, by size.
TOLERANCE = {8: 1e-9, 4: 1e-3}
# In this order, as there is no way back.
REGIMES = ["default", "mapped", "warm"]
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4


class Task:
    """An expression with operands."""

    def __init__(self, expression, dtype, n):
        self.expression, self.dtype, self.n = expression, dtype, n
        self.operands = expression.make(dtype, n)
        self.arguments = list(self.operands.values())
        self.expected = expression.function(np)(*self.arguments)

    def new_out(self):
        """An array for the result; its memory has been used."""
        out = (self.expression.out or np.zeros_like)(np.asarray(self.expected))
        out[...] = 1
        return out


def set_heap(regime):
    """
    How malloc deals with large arrays.

    `default` is glibc's way, which learns: what a process that has had arrays of
    that size does, up to 32 MB without new memory.  `mapped` is how it begins: new
    pages for each.  `warm` is the opposite, memory is never given back.
    """
    libc = ctypes.CDLL(None)
    if regime == "mapped":
        libc.mallopt(M_MMAP_THRESHOLD, 128 * 1024)
        libc.mallopt(M_TRIM_THRESHOLD, 128 * 1024)
    elif regime == "warm":
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def start(names, directory):
    """The contenders that can be had, and messages about others."""
    found, messages = [], []
    for kind in contenders.CONTENDERS:
        if kind.name in names:
            try:
                found.append(kind(directory))
            except contenders.Missing as error:
                messages.append(f"{kind.name} is left out: {error}")
    return found, messages


def right(contender, result, expected):
    """Whether a result is what it must be."""
    results, expected = measuring.as_tuple(result), measuring.as_tuple(expected)
    if contender.exact:
        return measuring.same_bits(results, expected)
    return len(results) == len(expected) and all(map(close, results, expected))


def close(result, expected):
    got, wanted = np.asarray(result), np.asarray(expected)
    if got.shape != wanted.shape:
        return False
    if wanted.dtype.kind in "bi":
        return bool((got == wanted).all())
    error = np.max(np.abs(got - wanted), initial=0)
    tolerance = TOLERANCE[wanted.dtype.itemsize // (1 + (wanted.dtype.kind == "c"))]
    return bool(error <= tolerance * np.max(np.abs(wanted), initial=1))


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def sample(contender, call, calls):
    """Seconds and page faults of one call."""
    with np.deferredstate(contender.deferred):
        time.sleep(PAUSE)
        call(1)
        faults_before, start_time = faults(), time.perf_counter()
        call(calls)
        seconds = time.perf_counter() - start_time
    return seconds / calls, (faults() - faults_before) / calls


def calls_a_sample(contender, call):
    calls, seconds = 1, sample(contender, call, 1)[0]
    while calls * seconds < SAMPLE_SECONDS:
        calls = min(math.ceil(1.1 * SAMPLE_SECONDS / seconds), 10 * calls)
        seconds, _ = sample(contender, call, calls)
    return calls


def measure_task(found, task, into, repeats):
    """A row a contender; what cannot do it is left out."""
    calls, rows = {}, {}
    expected = task.expected
    if into:
        expected = task.new_out()
        expected[...] = task.expected
    for contender in found:
        try:
            call = contender.prepare(task, task.new_out() if into else None)
            if call is None:
                continue
            with np.deferredstate(contender.deferred):
                ok = right(contender, call(1), expected)
        except Exception as error:
            if contender.exact:
                raise
            print(
                f"{contender.name} cannot do {task.expression.name}: {error}",
                file=sys.stderr,
            )
            continue
        calls[contender] = call, calls_a_sample(contender, call)
        rows[contender] = {"ok": ok, "samples": []}
    order = list(calls)
    for _ in range(repeats):
        for contender in order:
            rows[contender]["samples"].append(sample(contender, *calls[contender]))
        order.reverse()
    for contender, row in rows.items():
        seconds, page_faults = zip(*row.pop("samples"), strict=True)
        row |= {
            "contender": contender.name,
            "min": min(seconds),
            "median": statistics.median(seconds),
            "faults": statistics.median(page_faults),
        }
    return list(rows.values())


def measure(options, report):
    """Everything that `options` ask for, in this process; rows go to `report`."""
    found, messages = start(options["contenders"], options["directory"])
    for message in messages:
        print(message, file=sys.stderr)
    np.deferred.set_num_threads(options["threads"])
    np.setdeferred(False)
    gc.disable()
    for regime in sorted(options["regimes"], key=REGIMES.index):
        set_heap(regime)
        for n, dtype, expression in chosen(options):
            task = Task(expression, dtype, n)
            for into in (False, True) if expression.out else (False,):
                cell = {
                    "expression": expression.name,
                    "text": "; ".join(expression.lines),
                    "claimed": expression.claimed,
                    "dtype": dtype,
                    "n": n,
                    "threads": options["threads"],
                    "regime": regime,
                    "into": into,
                }
                report(cell, measure_task(found, task, into, options["repeats"]))
            del task
            gc.collect()


def chosen(options):
    """Numbers of elements, dtypes and expressions."""
    table = CLAIMS if options["claims"] else EXPRESSIONS
    for size in options["sizes"]:
        for expression in table:
            if not options["only"] or expression.name in options["only"]:
                for dtype in expression.dtypes:
                    if not options["dtypes"] or dtype in options["dtypes"]:
                        yield size or expression.n, dtype, expression
