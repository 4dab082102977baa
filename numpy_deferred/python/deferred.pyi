from typing import Any, Final, SupportsIndex

from numpy.typing import NDArray

__all__ = [
    "calculate",
    "calculate_all",
    "get_memory_limit",
    "set_memory_limit",
    "stats",
    "usage_count",
]

__version__: Final[str]

def calculate(*arrays: NDArray[Any]) -> None: ...
def calculate_all() -> None: ...
def usage_count(a: NDArray[Any]) -> int: ...
def set_memory_limit(nbytes: SupportsIndex) -> int: ...
def get_memory_limit() -> int: ...
def stats() -> dict[str, int]: ...
