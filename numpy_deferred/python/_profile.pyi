from dataclasses import dataclass
from os import PathLike
from types import TracebackType
from typing import Any, NamedTuple, Self

from numpy._core._explain import Explanation

class AtOnce(NamedTuple):
    times: int
    ufunc: str
    reason: str
    where: str

@dataclass(frozen=True, slots=True)
class Calculation:
    explanation: Explanation
    why: str
    where: str
    source: str
    through: tuple[str, ...]
    start: float
    seconds: float
    own_seconds: float
    thread: int
    error: str | None
    @property
    def expression(self) -> str: ...
    @property
    def written(self) -> tuple[str, ...]: ...
    @property
    def arrays(self) -> int: ...
    @property
    def bytes_read(self) -> int: ...
    @property
    def bytes_written(self) -> int: ...
    @property
    def bandwidth(self) -> float: ...

class profile:
    def __init__(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
    @property
    def events(self) -> list[Calculation]: ...
    @property
    def at_once(self) -> list[AtOnce]: ...
    def totals(self) -> dict[str, Any]: ...
    def write_chrome_trace(self, path: str | PathLike[str]) -> None: ...
    def _repr_html_(self) -> str: ...
