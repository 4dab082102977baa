"""Libraries that write into arrays without asking: what shows that they are there."""

import textwrap

import pytest

from helpers.process import printed, run_with_helpers

# The functions of NumPy's table as extensions call them, and modules of no library.
PREAMBLE = """
import ctypes, sys, threading, types, warnings
import numpy as np
from helpers.unseen import address, exchange, flags, write
from helpers.unseen import api
np.setdeferred(True)

WRITEABLE = 0x400
descr_from_type = api(45, ctypes.py_object, ctypes.c_int)
copy_into = api(50, ctypes.c_int, ctypes.py_object, ctypes.py_object)
import_array = api(0, ctypes.c_uint)

def vector(n):
    a = np.arange(n) + 0.5
    np.deferred.calculate(a)
    return a

def pending():
    return np.deferred.stats()["pending"]

def expect(x, values):
    with np.deferredstate(False):
        assert np.array_equal(x, values), (x, values)
"""


@pytest.fixture
def passes():
    def check(code, **environment):
        printed(run_with_helpers(PREAMBLE, code, **environment))

    return check


class TestTable:
    """f2py, pybind11 and PyArray_FROM_OTF ask for a descriptor first."""

    def test_calculates(self, passes):
        passes("""
        for n in (1, 100, 5000, 300_000):
            a, b = vector(n), vector(n)
            x = a * 2
            y = x + b[::-1]
            z = np.sin(y)
            del y
            assert flags(a) & WRITEABLE == 0 and x.flags.deferred and z.flags.deferred
            assert descr_from_type(12) is np.dtype("f8")
            assert pending() == 0 and flags(a) & WRITEABLE
            write(a, 0, 7.0)
            write(b, n - 1, 7.0)
            before = np.arange(n) + 0.5
            expect(x, before * 2)
            expect(z, np.sin(before * 2 + before[::-1]))
        """)

    def test_addresses_stay(self, passes):
        """Compiled code may have them already, as pandas' conversion of time zones."""
        passes("""
        for n in (1, 9, 100, 512, 5000, 300_000):
            a = vector(n)
            x, (q, r) = a * 2, np.divmod(a, 0.75)
            arrays = {"x": x, "q": q, "r": r, "y": x + r}
            before = {name: address(y) for name, y in arrays.items()}
            descr_from_type(12)
            assert pending() == 0
            for name, y in arrays.items():
                assert address(y) == before[name], (n, name)
                write(before[name], n - 1, 7.0)
                assert y[n - 1] == 7
            expect(x[:-1], (np.arange(n) + 0.5)[:-1] * 2)
            del x, q, r, y, arrays
        """)

    def test_same_answers(self, passes):
        passes("""
        for number, character in enumerate("?bBhHiIlLqQfdgFDGOSUVMm"):
            assert descr_from_type(number) is np.dtype(character) or number > 17
            assert descr_from_type(ord(character)).num == number
        try:
            descr_from_type(1000)
        except ValueError as error:
            assert "Invalid data-type" in str(error)
        else:
            raise AssertionError
        assert import_array() == 0x02000000
        """)

    def test_protected_operands_may_wait(self, passes):
        passes(
            """
            a = vector(5000)
            x = a * 2
            descr_from_type(12)
            assert pending() == 1
            write(a, 0, 7.0)
            assert x[0] == 1.0
            """,
            NUMPY_DEFERRED_PROTECT_BYTES="0",
        )

    def test_errors_stay(self, passes):
        """What raises one is calculated for its reader, who is told."""
        passes("""
        a = vector(50)
        a[7] = 0
        with np.errstate(divide="raise"):
            x = 1 / a
            y = a + 1
            for repeat in range(3):
                descr_from_type(12)
                assert x.flags.deferred and not y.flags.deferred
                try:
                    x.sum()
                except FloatingPointError as error:
                    assert "divide" in str(error)
                else:
                    raise AssertionError
            del x
            x = 1 / a
            descr_from_type(12)
            try:
                np.seterr(all="ignore")
            except FloatingPointError:
                pass
            else:
                raise AssertionError
        """)

    def test_without_the_gil(self, passes):
        """Not allowed, but it did no harm; nothing can be calculated there."""
        passes("""
        a = vector(50)
        x = a * 2
        pointer = ctypes.cast(descr_from_type, ctypes.c_void_p).value
        assert ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int)(pointer)(12)
        assert pending() == 1
        """)


INPLACE = """
def inplace(a, dtype="f4"):
    descr_from_type(np.dtype(dtype).num)
    with np.deferredstate(False):
        new = np.empty(a.shape, dtype)
    assert copy_into(new, a) == 0
    exchange(a, new)
    return new

def expect_both(a, new, values):
    assert a.dtype == np.float32 and new.dtype == np.float64
    expect(a, values.astype("f4"))
    expect(new, values)
"""


class TestExchange:
    """f2py's intent(inplace) gives an array another's memory, but not its handler."""

    @pytest.fixture
    def passes(self, passes):
        return lambda code, **env: passes(INPLACE + textwrap.dedent(code), **env)

    @pytest.mark.parametrize("n", [1, 100, 2000, 300_000])
    @pytest.mark.parametrize("first", ["pass", "np.deferred.calculate(a)"])
    def test_frees_what_it_has(self, passes, n, first):
        passes(f"""
        for _ in range(5):
            b = vector({n})
            a = b * 2
            {first}
            new = inplace(a)
            expect_both(a, new, (np.arange({n}) + 0.5) * 2)
            del a
            kept = [np.ones({n}, "f4") for _ in range(10)]
            expect(new, b * 2)
            del new
            kept += [np.ones({n}) for _ in range(10)] + [vector({n}) + 1]
            assert all(np.sum(x) == {n} for x in kept[:20])
        """)

    @pytest.mark.parametrize("n", [1, 100, 2000, 300_000])
    def test_resizes_what_it_has(self, passes, n):
        passes(f"""
        a = vector({n}) * 2
        new = inplace(a)
        np.setdeferred(False)
        values = np.append((np.arange({n}) + 0.5) * 2, np.zeros(5000))
        for x in (a, new):
            x.resize({n} + 5000, refcheck=False)
        expect_both(a, new, values)
        for x in (a, new):
            x.resize(1, refcheck=False)
        expect_both(a, new, values[:1])
        """)

    @pytest.mark.parametrize("protected", ["0", None])
    @pytest.mark.parametrize("made", ["vector(n)", "vector(n) + 0"])
    def test_readers_are_calculated(self, passes, made, protected):
        environment = {} if protected is None else {"NUMPY_DEFERRED_PROTECT_BYTES": "0"}
        passes(
            f"""
            for n in (1, 100, 2000, 300_000):
                a = {made}
                np.deferred.calculate(a)
                view = a[::2]
                x = a * 3
                y = np.sin(x) + view[0]
                new = inplace(a)
                write(new, n - 1, 7.0)
                before = np.arange(n) + 0.5
                expect(x, before * 3)
                expect(y, np.sin(before * 3) + 0.5)
                assert pending() == 0 and flags(a) & flags(new) & WRITEABLE
            """,
            **environment,
        )

    def test_of_a_view(self, passes):
        passes("""
        for n in (2, 100, 2000, 300_000):
            whole = vector(n) * 2
            a = whole[::2]
            x = a + 1
            new = inplace(a)
            before = (np.arange(n) + 0.5) * 2
            expect_both(a, new, before[::2])
            expect(x, before[::2] + 1)
            del a, new
            expect(whole, before)
        """)

    def test_errors_of_readers(self, passes):
        passes(
            """
            a = vector(50)
            a[7] = 0
            with np.errstate(divide="raise"):
                x = 1 / a
                try:
                    inplace(a)
                except FloatingPointError:
                    assert a.dtype == np.float64
                else:
                    raise AssertionError
            """,
            NUMPY_DEFERRED_PROTECT_BYTES="0",
        )


class TestKeepers:
    """For PyTorch and OpenCV everything is protected, what is small not deferred."""

    @pytest.mark.parametrize("name", ["torch", "cv2"])
    @pytest.mark.parametrize("when", ["before", "after"])
    def test_protected(self, passes, name, when):
        come = f"sys.modules[{name!r}] = types.ModuleType({name!r})\nimport_array()"
        passes(f"""
        if {when == "after"}:
            x = vector(50) + 1
            assert pending() == 1
            assert np.deferred.get_protect_limit() == 2**28
{textwrap.indent(come, " " * 8)}
        assert pending() == 0
        for n in (1, 50, 5000, 600_000):
            a = vector(n)
            x = a * 2
            assert pending() == 1 and flags(a) & WRITEABLE
            write(a, 0, 7.0)
            assert x[0] == 1.0
        assert np.deferred.get_protect_limit() == 0
        """)

    def test_small(self, passes):
        passes(
            """
            sys.modules["torch"] = types.ModuleType("torch")
            import_array()
            for n, deferred in ((10_000, False), (500_000, False), (530_000, True)):
                a = vector(n)
                with np.deferred.profile() as profile:
                    x = a * 2
                assert x.flags.deferred is deferred
                assert deferred or "set_protect_limit" in str(profile)
            np.deferred.set_protect_limit(2**28)
            a = vector(10_000)
            assert (a * 2).flags.deferred and (a + 1).flags.deferred
            """,
            NUMPY_DEFERRED_MIN_BYTES="",
        )

    @pytest.mark.parametrize("chosen", ["environment", "call"])
    def test_chosen(self, passes, chosen):
        """Who says what is to be protected gets that."""
        variables = {"NUMPY_DEFERRED_PROTECT_BYTES": "100000"}
        passes(
            f"""
            if {chosen == "call"}:
                np.deferred.set_protect_limit(100_000)
            sys.modules["torch"] = types.ModuleType("torch")
            import_array()
            a, b = vector(5_000), vector(20_000)
            x, y = a * 2, b * 2
            assert np.deferred.get_protect_limit() == 100_000
            assert pending() == 2
            assert not flags(a) & WRITEABLE and flags(b) & WRITEABLE
            """,
            **(variables if chosen == "environment" else {}),
        )


# Types with a slot in C, as Numba's has one: tests/interop has the real one.
CALLER = """
import functools
def come(type):
    module = types.ModuleType("numba._dispatcher")
    module.Dispatcher = type
    sys.modules["numba._dispatcher"] = module
    import_array()
def fill(a):
    write(a, 0, 100.0)
    return a
Base = ctypes._CFuncPtr
class Early(Base):
    _flags_ = ctypes.PYFUNCTYPE(None)._flags_
    _restype_ = ctypes.py_object
    _argtypes_ = (ctypes.py_object,)
copied = {name: getattr(Early, name) for name in ("_flags_", "_restype_", "_argtypes_")}
class Other(Early):
    locals().update(copied)
    def __call__(self, *args):
        return "other"
"""


class TestCallers:
    def test_calls_calculate(self, passes):
        """Whatever type is derived from it, before or afterwards, and by name."""
        passes(
            CALLER
            + """
come(Base)
vector(50) + 1
Late = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)
class Later(Early): locals().update(copied)
assert np.deferred.get_protect_limit() == 2**28
for type in (Early, Late, Later):
    for call in (lambda f, a: f(a), lambda f, a: f.__call__(a),
                 lambda f, a: type.__call__(f, a), lambda f, a: list(map(f, [a]))):
        a = vector(50)
        x = a * 2
        y = x + a
        function = type(fill)
        call(function, a)
        assert not y.flags.deferred and a[0] == 100
        expect(x, (np.arange(50) + 0.5) * 2)
        expect(y, (np.arange(50) + 0.5) * 3)
x = vector(50) * 2
assert Other(fill)(1) == "other"
assert x.flags.deferred
"""
        )

    def test_arguments(self, passes):
        """They have the address that they keep, and errors come before the call."""
        passes(
            CALLER
            + """
come(Base)
addresses = []
for n in (50, 9000, 600_000):
    a, x = vector(n), vector(n) * 2
    Early(lambda x: addresses.append(address(x)))(x)
    assert not x.flags.deferred and x[1] == 3.0
    assert addresses[-1] == x.ctypes.data
with np.errstate(divide="raise"):
    x = 1 / np.zeros(50)
    try:
        Early(addresses.append)(x)
    except FloatingPointError:
        pass
    assert len(addresses) == 3
"""
        )

    def test_errors_stay(self, passes):
        """They do not stop calls of functions that do not read the array."""
        passes(
            CALLER
            + """
come(Base)
a = vector(50)
a[3] = 0
called = []
function = Early(called.append)
with np.errstate(divide="raise"):
    for read in (False, True):
        x = 1 / a
        for i in range(2):
            function(i)
            assert x.flags.deferred
            if read:
                try:
                    float(x[0])
                except FloatingPointError:
                    pass
                else:
                    raise AssertionError
        del x
assert called == [0, 1, 0, 1]
"""
        )

    def test_another_kind_of_type(self, passes):
        """Everything is protected instead."""
        passes(
            CALLER
            + """
come(functools.partial)
for a in (vector(50), vector(50)):
    x = a * 2
    functools.partial(fill, a)()
    assert x[0] == 1.0
assert np.deferred.get_protect_limit() == 0
"""
        )
