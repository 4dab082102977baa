"""Every ufunc of the namespace and every loop that can be deferred."""

from typing import NamedTuple

import numpy as np

from helpers.values import NUMERIC


class Loop(NamedTuple):
    ufunc: np.ufunc
    types: str  # as in ufunc.types, for example "dd->d"

    @property
    def inputs(self):
        return self.types.split("->")[0]

    @property
    def output(self):
        return self.types.split("->")[1]

    @property
    def elementwise(self):
        return self.ufunc.signature is None and self.ufunc.nout <= 2

    def __str__(self):
        return f"{self.ufunc.__name__}-{self.types}"


def _find_ufuncs():
    found = {id(obj): obj for obj in vars(np).values() if isinstance(obj, np.ufunc)}
    return sorted(found.values(), key=lambda ufunc: ufunc.__name__)


def _is_numeric(types):
    return set(types) <= set(NUMERIC) | set("->")


UFUNCS = [*_find_ufuncs(), np._core.umath.clip]
LOOPS = [
    Loop(ufunc, types)
    for ufunc in UFUNCS
    for types in dict.fromkeys(ufunc.types)
    if _is_numeric(types)
]
ELEMENTWISE = [loop for loop in LOOPS if loop.elementwise]
WITH_ONE_OUTPUT = [loop for loop in ELEMENTWISE if loop.ufunc.nout == 1]
WITH_TWO_OUTPUTS = [loop for loop in ELEMENTWISE if loop.ufunc.nout == 2]
OTHERS = [loop for loop in LOOPS if not loop.elementwise]
ELEMENTWISE_UFUNCS = list(dict.fromkeys(loop.ufunc for loop in ELEMENTWISE))
