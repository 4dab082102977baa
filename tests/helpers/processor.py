"""What the processor has, where NumPy was built for it too."""

from numpy._core._multiarray_umath import (
    __cpu_baseline__,
    __cpu_dispatch__,
    __cpu_features__,
)

#: AVX2 and FMA: machine code, and products of complex numbers in registers.
HAS_AVX2 = bool(__cpu_features__.get("X86_V3")) and "X86_V3" in {
    *__cpu_baseline__,
    *__cpu_dispatch__,
}
