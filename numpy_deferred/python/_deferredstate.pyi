from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

__all__ = [
    "begin_defer",
    "deferral",
    "deferredstate",
    "end_defer",
    "getdeferred",
    "setdeferred",
]

_CallableT = TypeVar("_CallableT", bound=Callable[..., Any])

def setdeferred(state: bool | None) -> bool | None: ...
def getdeferred() -> bool | None: ...
def begin_defer() -> None: ...
def end_defer() -> None: ...

class deferredstate:
    __slots__ = "_state", "_token"

    def __init__(self, state: bool | None) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    def __call__(self, func: _CallableT) -> _CallableT: ...

class deferral:
    __slots__ = "_scope", "_scope_token", "_state_token"

    def __init__(self) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    def __call__(self, func: _CallableT) -> _CallableT: ...
