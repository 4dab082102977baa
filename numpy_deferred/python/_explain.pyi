from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

class Operation(NamedTuple):
    name: str
    ufunc: str
    inputs: tuple[str, ...]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    where: str | None
    output: int | None

class Operand(NamedTuple):
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    nbytes: int

class Plan(NamedTuple):
    steps: int
    casts: int
    loops: int
    block: int | None
    threads: int
    direct: bool

class Explanation:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    operations: list[Operation]
    operands: list[Operand]
    results: tuple[str, ...]
    plan: Plan | None
    def __init__(self, array: NDArray[Any]) -> None: ...
    @property
    def bytes_read(self) -> int: ...
    @property
    def bytes_written(self) -> int: ...
    @property
    def bytes_avoided(self) -> int: ...
    def dot(self) -> str: ...
    def svg(self) -> str: ...
    def _repr_html_(self) -> str: ...
