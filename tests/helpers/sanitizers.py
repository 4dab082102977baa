"""What cannot be tested under a sanitizer, which `spin test` preloads."""

import os

import pytest


def under(*names):
    """Whether it is one of "asan" and "tsan"."""
    return any(f"lib{name}" in os.environ.get("LD_PRELOAD", "") for name in names)


#: A sanitizer maps memory itself, dies where it cannot, and keeps what was freed.
has_the_memory_alone = pytest.mark.skipif(
    under("asan", "tsan"), reason="a sanitizer has memory of its own"
)
