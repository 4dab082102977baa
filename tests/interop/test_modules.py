"""Extension modules compiled against stock NumPy: Cython, pybind11, f2py."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.compare import assert_same
from helpers.extensions import SUFFIX, build_extensions, load
from helpers.handover import (
    handed,
    in_threads,
    larger_lengths,
    lengths,
    operand_of,
    pending,
    regular,
    squares,
    view,
)

pytest.importorskip("Cython")
SOURCES = Path(__file__).parent / "extensions"


@pytest.fixture(scope="session")
def extensions(tmp_path_factory):
    site_packages = os.environ.get("NUMPY_STOCK")
    if not site_packages:
        pytest.skip("no stock NumPy; `spin interop` has one")
    directory = tmp_path_factory.mktemp("interop") / "extensions"
    return build_extensions(site_packages, directory, SOURCES)


def load_built(directory, name):
    """What pybind11 or a compiler is missing for was not built."""
    if not (directory / f"{name}{SUFFIX}").exists():
        pytest.skip(f"{name} was not built")
    return load(directory, name)


@pytest.fixture(scope="session")
def cython(extensions):
    return load_built(extensions, "_cython_module")


@pytest.fixture(scope="session")
def pybind(extensions):
    return load_built(extensions, "_pybind_module")


def test_compiled_against_stock(extensions):
    """What is compiled in reads the struct: there is no call to calculate."""
    module = (extensions / f"_cython_module{SUFFIX}").read_bytes()
    assert b"DEFERRED" not in module.upper()


class TestCython:
    @pytest.mark.parametrize("name", ["sum_data", "sum_data_nogil", "sum_data_prange"])
    @lengths
    def test_data(self, cython, name, n):
        def work():
            x = pending(n)
            return getattr(cython, name)(x), x

        assert_same(work)

    @pytest.mark.parametrize("name", ["sum_data", "sum_data_nogil", "sum_data_prange"])
    @lengths
    def test_data_in_threads(self, cython, name, n):
        def work():
            x = pending(n)
            return (*in_threads(getattr(cython, name), x), x)

        assert_same(work)

    @lengths
    def test_fill_a_pending_array(self, cython, n):
        def work():
            x, y = pending(n), pending(n, seed=1)
            cython.fill_data(x, 7.0)
            cython.fill_data_unasked(y, 8.0)
            return x, y

        assert_same(work)

    @lengths
    @pytest.mark.unseen_write
    def test_fill_an_operand(self, cython, n):
        """PyArray_ISWRITEABLE is no, and NumPy is not asked for another answer."""

        def work():
            a, x = operand_of(lambda a: a * 2, n)
            cython.fill_data(a, 7.0)
            return a, x

        assert_same(work)

    @lengths
    @pytest.mark.unseen_write
    def test_fill_an_operand_unasked(self, cython, n):
        def work():
            a, x = operand_of(lambda a: a * 2, n)
            cython.fill_data_unasked(a, 7.0)
            return a, x

        assert_same(work)

    @pytest.mark.parametrize("name", ["sum_buffer", "sum_view"])
    @pytest.mark.parametrize("order", ["C", "F"])
    @squares
    def test_read_buffers(self, cython, name, order, shape):
        def work():
            x = pending(shape, order=order)
            y = handed(x + 1)
            return getattr(cython, name)(y), getattr(cython, name)(x), x, y

        assert_same(work)

    def test_view_of_floats(self, cython):
        assert_same(lambda: cython.sum_view(pending((90, 91), "f4")))
        assert_same(lambda: cython.sum_view(view((90, 91))))
        assert_same(lambda: cython.sum_view(pending((90, 91)).T))
        assert_same(lambda: cython.sum_complex(pending(8192, "c16")))
        # The wrong dtype is refused before it is calculated.
        assert_same(lambda: cython.sum_view(pending((90, 91), "i8")))

    @pytest.mark.parametrize("name", ["scale_buffer", "scale_view"])
    @squares
    def test_write_buffers(self, cython, name, shape):
        def work():
            a, x = operand_of(lambda a: a * 2, shape)
            getattr(cython, name)(a, 3.0)
            y = handed(x + 1)
            getattr(cython, name)(x, 0.5)
            return a, x, y

        assert_same(work)

    @squares
    def test_write_a_view_of_an_operand(self, cython, shape):
        def work():
            a, x = operand_of(lambda a: a * 2, shape)
            cython.scale_view(a[::2, 1:], 3.0)
            b, y = operand_of(lambda b: b[1:] * 2, shape)
            cython.scale_buffer(b, 3.0)
            return a, x, b, y

        assert_same(work)

    @lengths
    def test_output(self, cython, n):
        def work():
            out, x = operand_of(lambda out: out - 1, n)
            a = regular(n, seed=3)
            cython.sqrt_into(handed(np.abs(a)), out)
            return out, x

        assert_same(work)

    @lengths
    def test_holder(self, cython, n):
        """A view taken before the array becomes an operand writes behind it."""

        def work():
            a = regular(n)
            holder = cython.Holder(a)
            x = a * 2
            holder.set(1, 100.0)
            y = a + x
            holder.set(1, -5.0)
            return x, y, a, holder.get(1)

        assert_same(work)

    @lengths
    def test_keeper_of_a_pending_array(self, cython, n):
        """The address is taken while the array is pending, and used later."""

        def work():
            x = pending(n)
            keeper = cython.Keeper(x)
            first = keeper.get(2)
            keeper.set(1, 100.0)
            return first, x, keeper.get(1)

        assert_same(work)

    @larger_lengths
    def test_keeper_of_an_array_calculated_since(self, cython, n):
        def work():
            x = pending(n)
            keeper = cython.Keeper(x)
            total = x.sum()
            x[3] = 4.5
            first = keeper.get(2), keeper.get(3)
            keeper.set(1, 100.0)
            return total, *first, x

        assert_same(work)

    @lengths
    @pytest.mark.unseen_write
    def test_keeper_of_an_operand(self, cython, n):
        """The address is taken first; then the array becomes an operand."""

        def work():
            a = regular(n)
            keeper = cython.Keeper(a)
            x = a * 2
            keeper.set(1, 100.0)
            return x, a

        assert_same(work)

    @squares
    def test_iterator(self, cython, shape):
        def work():
            x = pending(shape)
            y = handed(x - 1)
            return *cython.elements(y), *cython.elements(x[::2]), x, y

        assert_same(work)

    @larger_lengths
    def test_wrapped(self, cython, n):
        """A second array on the memory of a pending one."""

        def work():
            x = pending(n)
            w = cython.wrapped(x)
            y = w + 1
            return y, w.sum(), x

        assert_same(work)

    @squares
    def test_touched_first(self, cython, shape):
        """Once compiled code has touched it, its address stays."""

        def work():
            x = pending(shape[0] * shape[1])
            w = cython.wrapped(x)
            total = cython.sum_data(w)
            w[1:] = x[:-1]
            return np.shares_memory(w, x), total, x, w * 2

        assert_same(work)


class TestPybind11:
    @lengths
    def test_read(self, pybind, n):
        def work():
            return (
                pybind.sum_data(pending(n)),
                pybind.sum_nogil(pending(n)),
                pybind.sum_buffer(pending(n)),
                # Converted on the way in.
                pybind.sum_data(pending(n, "f4")),
                pybind.sum_nogil(pending((2, n))[:, ::2]),
            )

        assert_same(work)

    @squares
    def test_unchecked(self, pybind, shape):
        def work():
            x = pending(shape, order="F")
            return pybind.sum_unchecked(x), pybind.sum_unchecked(view(shape)), x

        assert_same(work)

    @pytest.mark.parametrize("name", ["scale_mutable", "scale_data"])
    @squares
    def test_write(self, pybind, name, shape):
        def work():
            x = pending(shape)
            getattr(pybind, name)(x, 3.0)
            return x

        assert_same(work)

    @pytest.mark.parametrize("name", ["scale_mutable", "scale_data"])
    @squares
    def test_write_into_an_operand(self, pybind, name, shape):
        """pybind11 asks the flags, and raises where the array is read-only."""

        def work():
            a, x = operand_of(lambda a: a * 2, shape)
            getattr(pybind, name)(a, 3.0)
            return a, x

        assert_same(work)

    @lengths
    def test_vectorize(self, pybind, n):
        def work():
            x, y = pending(n), pending(n, seed=1)
            z = handed(x - y)
            return (
                pybind.hypot(x, 2.0),
                pybind.hypot(z, y),
                pybind.conjugate(pending(n, "c16")),
            )

        assert_same(work)

    @lengths
    def test_threads(self, pybind, n):
        assert_same(lambda: in_threads(pybind.sum_nogil, pending(n)))


FORTRAN = """
subroutine scale(a, n, factor)
  integer, intent(in) :: n
  double precision, intent(inout) :: a(n)
  double precision, intent(in) :: factor
  a = a * factor
end subroutine
function total(a, m, n)
  integer, intent(in) :: m, n
  double precision, intent(in) :: a(m, n)
  double precision :: total
  total = sum(a)
end function
subroutine halve(a, n)
  integer, intent(in) :: n
  real, intent(inout) :: a(n)
  !f2py intent(inplace) :: a
  a = a / 2
end subroutine
function called(f, a, n)
  external :: f
  integer, intent(in) :: n
  double precision, intent(in) :: a(n)
  double precision :: f, called
  called = f(a, n)
end function
module kept
  double precision :: fixed(6)
  double precision, allocatable :: many(:)
contains
  subroutine increase
    fixed = fixed + 1
    many = many + 1
  end subroutine
end module
"""


@pytest.fixture(scope="session")
def fortran(tmp_path_factory):
    if not any(map(shutil.which, ["gfortran", "flang", "ifx"])):
        pytest.skip("no Fortran compiler")
    directory = tmp_path_factory.mktemp("f2py")
    (directory / "source.f90").write_text(FORTRAN)
    env = dict(os.environ, PYTHONPATH=os.environ["NUMPY_STOCK"])
    # The default is distutils where Python has that.
    options = ["-c", "--backend", "meson", "-m", "_fortran", "source.f90"]
    command = [sys.executable, "-P", "-m", "numpy.f2py", *options]
    subprocess.run(command, cwd=directory, env=env, check=True)
    return load_built(directory, "_fortran")


class TestF2py:
    """test_scipy.py runs modules of f2py where there is no Fortran compiler."""

    @lengths
    def test_scale(self, fortran, n):
        def work():
            a, x = operand_of(lambda a: a * 2, n)
            fortran.scale(a, 3.0)
            y = handed(x + 1)
            fortran.scale(y, 3.0)
            return a, x, y

        assert_same(work)

    @squares
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_total(self, fortran, shape, order):
        assert_same(lambda: fortran.total(pending(shape, order=order)))

    @lengths
    def test_inplace(self, fortran, n):
        """The wrapper exchanges the array's memory for that of a copy."""

        def work():
            x = pending(n)
            y = handed(x + 1)
            a, z = operand_of(lambda a: a * 2, n)
            fortran.halve(x)
            fortran.halve(a)
            return x, y, a, z, x * a

        assert_same(work)

    @lengths
    def test_callback(self, fortran, n):
        """The array that it is called with lies in the caller's memory."""

        def work():
            results = []

            def function(a):
                results.append(np.sin(a) * 2)
                return results[0][1]

            x = pending(n)
            first = fortran.called(function, x)
            x += 1
            return first, x, results[0]

        assert_same(work)

    @lengths
    def test_variables(self, fortran, n):
        """Arrays of a Fortran module are assigned and read, and it writes to them."""

        def work():
            kept = fortran.kept
            kept.fixed = pending(6)
            kept.many = pending(n)
            x, y = kept.fixed * 2, kept.many * 2
            kept.increase()
            z = pending(n) + kept.many
            kept.many[1:3] = pending(2)
            kept.increase()
            return x, y, z, kept.fixed.copy(), kept.many + 1

        assert_same(work)
