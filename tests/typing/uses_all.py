"""
Every name of the Python API, used as it is meant to be.

test_typing.py has mypy and pyright check this file, and runs it.
"""

import asyncio
import math
import os
from collections.abc import Iterator
from typing import Any, assert_type

import numpy as np
import numpy.deferred
from numpy.deferred import (
    Calculation,
    Explanation,
    calculate,
    calculate_all,
    explain,
    get_cache_limit,
    get_memory_limit,
    get_num_threads,
    get_protect_limit,
    profile,
    progress,
    register_threadpoolctl,
    set_cache_limit,
    set_memory_limit,
    set_num_threads,
    set_protect_limit,
    stats,
    usage_count,
)
from numpy.typing import NDArray

Vector = NDArray[np.float64]


class Log:
    def fileno(self) -> int:
        return 2


def state() -> bool | None:
    previous = np.setdeferred(True)
    assert_type(previous, bool | None)
    assert_type(np.getdeferred(), bool | None)
    assert_type(np.setdeferred(None), bool | None)
    assert_type(np.setdeferred(state=False), bool | None)
    return np.setdeferred(previous)


def blocks(a: Vector) -> Vector:
    choice: bool | None = np.getdeferred()
    with np.deferredstate(True) as entered:
        assert_type(entered, None)
        x = a * a + 1
    with np.deferredstate(state=None), np.deferredstate(choice):
        pass
    with np.deferral() as begun:
        assert_type(begun, None)
        y = x - 1
    assert_type(np.begin_defer(), None)
    z = y * 2
    assert_type(np.end_defer(), None)
    manager: np.deferral | np.deferredstate = np.deferral()
    with manager:
        return x + y + z


@np.deferredstate(True)
def parabola(x: Vector, /, *, offset: float = 4) -> Vector:
    return x**2 - 3 * x + offset


@np.deferral()
def norm(*vectors: Vector) -> float:
    return math.sqrt(sum(float((vector * vector).sum()) for vector in vectors))


class Model:
    @np.deferral()
    def predict(self, x: Vector) -> Vector:
        return x * 2

    @np.deferredstate(False)
    async def wait(self) -> int:
        await asyncio.sleep(0)
        return 1

    @np.deferral()
    def parts(self, x: Vector) -> Iterator[Vector]:
        yield x


def decorators(x: Vector) -> None:
    assert_type(parabola(x), Vector)
    assert_type(parabola(x, offset=1.5), Vector)
    assert_type(norm(x, x), float)
    assert_type(Model().predict(x), Vector)
    assert_type(asyncio.run(Model().wait()), int)
    assert_type(next(Model().parts(x)), Vector)


def flags(a: NDArray[Any]) -> None:
    assert_type(a.flags.deferred, bool)
    assert_type(a.flags.deferred_waswriteable, bool)
    assert_type(a.flags["DEFERRED"], bool)
    assert_type(a.flags["DEFERRED_WASWRITEABLE"], bool)
    assert_type(a.flags["WRITEABLE"], bool)


def module(a: Vector, b: NDArray[np.complex64]) -> None:
    assert_type(np.deferred.calculate(), None)
    assert_type(np.deferred.calculate(a, b), None)
    assert_type(np.deferred.calculate_all(), None)
    assert_type(np.deferred.usage_count(a), int)
    with np.deferredstate(True):
        pending = np.arange(10_000.0) * 2 + 1
    explanation = np.deferred.explain(pending)
    assert_type(explanation, np.deferred.Explanation)
    assert_type(explanation.operations[0].where, str | None)
    assert_type(explanation.operands[0].nbytes, int)
    assert explanation.plan is not None
    assert_type(explanation.plan.block, int | None)
    assert_type(explanation.bytes_read + explanation.bytes_avoided, int)
    assert_type(explanation.dot(), str)
    with np.deferred.profile() as p:
        assert_type(p, np.deferred.profile)
        np.deferred.calculate(a + 1)
    assert_type(p.events, list[np.deferred.Calculation])
    for event in p.events:
        assert_type(event.explanation, np.deferred.Explanation)
        assert_type(event.expression + event.why + event.where + event.source, str)
        assert_type(event.written + event.through, tuple[str, ...])
        assert_type(event.start + event.seconds + event.own_seconds, float)
        assert_type(event.bandwidth, float)
        assert_type(event.bytes_read + event.bytes_written + event.thread, int)
        assert_type(event.error, str | None)
    for each in p.at_once:
        assert_type(each.times, int)
        assert_type(each.ufunc + each.reason + each.where, str)
    assert_type(p.totals(), dict[str, Any])
    p.write_chrome_trace(os.devnull)
    with np.deferred.progress() as shown, np.deferred.progress(1.5, file=Log()):
        assert_type(shown, np.deferred.progress)
    limit = np.deferred.get_memory_limit()
    assert_type(limit, int)
    assert_type(np.deferred.set_memory_limit(np.int64(2**30)), int)
    assert_type(np.deferred.set_memory_limit(limit), int)
    cache = np.deferred.get_cache_limit()
    assert_type(cache, int)
    assert_type(np.deferred.set_cache_limit(np.int64(2**20)), int)
    assert_type(np.deferred.set_cache_limit(cache), int)
    protect = np.deferred.get_protect_limit()
    assert_type(protect, int)
    assert_type(np.deferred.set_protect_limit(np.int64(2**20)), int)
    assert_type(np.deferred.set_protect_limit(protect), int)
    assert_type(np.deferred.get_num_threads(), int)
    assert_type(np.deferred.set_num_threads(np.int64(1)), int)
    assert_type(np.deferred.set_num_threads(2), int)
    assert_type(np.deferred.stats(), dict[str, int])
    assert_type(np.deferred.__version__, str)
    assert numpy.deferred.calculate is calculate
    assert numpy.deferred.calculate_all is calculate_all
    assert numpy.deferred.get_cache_limit is get_cache_limit
    assert numpy.deferred.set_cache_limit is set_cache_limit
    assert numpy.deferred.get_memory_limit is get_memory_limit
    assert numpy.deferred.set_memory_limit is set_memory_limit
    assert numpy.deferred.get_protect_limit is get_protect_limit
    assert numpy.deferred.set_protect_limit is set_protect_limit
    assert numpy.deferred.get_num_threads is get_num_threads
    assert numpy.deferred.set_num_threads is set_num_threads
    assert numpy.deferred.profile is profile
    assert numpy.deferred.progress is progress
    assert np.deferred.register_threadpoolctl is register_threadpoolctl
    assert numpy.deferred.Calculation is Calculation
    assert numpy.deferred.stats is stats
    assert numpy.deferred.Explanation is Explanation
    assert numpy.deferred.explain is explain
    assert numpy.deferred.usage_count is usage_count


def main() -> None:
    vector = np.arange(5.0)
    state()
    assert blocks(vector).tolist() == [1.0, 5.0, 17.0, 37.0, 65.0]
    decorators(vector)
    flags(vector)
    module(vector, np.ones(2, np.complex64))


if __name__ == "__main__":
    main()
