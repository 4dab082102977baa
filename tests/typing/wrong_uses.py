"""
What a type checker must refuse: one thing on each line marked with `# error`.

test_typing.py has mypy and pyright check this file; it is never run.
"""

# ruff: noqa: B018
from typing import assert_type

import numpy as np

a = np.arange(5.0)

np.setdeferred(2)  # error
np.setdeferred("yes")  # error
np.setdeferred()  # error
np.setdeferred(True, False)  # error
np.getdeferred(True)  # error
np.begin_defer(True)  # error
np.end_defer(a)  # error
np.deferral(True)  # error
np.deferredstate()  # error
np.deferredstate("yes")  # error
np.deferredstate(state=1)  # error
np.deferredstate(True)(1)  # error
np.deferral()(a)  # error
state: bool = np.getdeferred()  # error
assert_type(np.setdeferred(None), bool)  # error
with np.deferredstate:  # error
    pass
with np.deferral() as scope:
    scope.end()  # error


@np.deferredstate(True)
def square(x: float) -> float:
    return x * x


@np.deferral()
def cube(x: float) -> float:
    return x * x * x


square("1")  # error
cube("1")  # error
text: str = cube(1)  # error

a.flags.deferred = True  # error
a.flags.deferred_waswriteable = True  # error
a.flags["DEFERRED"] = True  # error
a.flags["DEFERRED_WASWRITEABLE"] = False  # error
a.flags["DEFERED"]  # error
a.flags.defered  # error

np.deferred.calculate([1.0])  # error
np.deferred.calculate(a, None)  # error
np.deferred.calculate_all(a)  # error
np.deferred.explain("x")  # error
np.deferred.explain(a).plan.block  # error
np.deferred.profile(1)  # error
np.deferred.profile().events[0].seconds = 1  # error
np.deferred.progress("2")  # error
np.deferred.progress(file="log")  # error
np.deferred.usage_count()  # error
np.deferred.usage_count(1.0)  # error
np.deferred.set_memory_limit(1e9)  # error
np.deferred.set_memory_limit()  # error
np.deferred.get_memory_limit(1)  # error
np.deferred.set_cache_limit(None)  # error
np.deferred.get_cache_limit(1)  # error
np.deferred.set_protect_limit("all")  # error
np.deferred.get_protect_limit(1)  # error
np.deferred.set_num_threads(1.5)  # error
np.deferred.get_num_threads(1)  # error
np.deferred.register_threadpoolctl(1)  # error
np.deferred.stats("pending")  # error
np.deferred.stats().pending  # error
np.deferred.calculate_some(a)  # error
