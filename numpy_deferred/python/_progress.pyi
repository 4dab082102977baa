from types import TracebackType
from typing import Protocol, Self

class _File(Protocol):
    def fileno(self) -> int: ...

class progress:
    def __init__(self, delay: float = 2.0, file: _File | None = None) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
