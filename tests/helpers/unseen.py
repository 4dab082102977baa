"""What compiled code does with the array structure, and NumPy does not see."""

import ctypes

import numpy as np

# PyArrayObject_fields, after the reference count and the type.
DATA = 2 * ctypes.sizeof(ctypes.c_void_p)
FLAGS = DATA + 2 * ctypes.sizeof(ctypes.c_int) + 5 * ctypes.sizeof(ctypes.c_void_p)
# Up to them there is what f2py exchanges.
EXCHANGED = FLAGS + ctypes.sizeof(ctypes.c_int) - DATA


def address(array):
    """`data`, as it is."""
    return ctypes.c_void_p.from_address(id(array) + DATA).value


def flags(array):
    """`flags`, as they are."""
    return ctypes.c_int.from_address(id(array) + FLAGS).value


def write(where, i, value):
    """Write a double into an array, or at an address."""
    start = where if isinstance(where, int) else address(where)
    ctypes.c_double.from_address(start + 8 * int(i)).value = value


def exchange(a, b):
    """What f2py's intent(inplace) does with its argument and the copy it has made."""
    fields = ctypes.c_char * EXCHANGED
    one, other = (fields.from_address(id(array) + DATA) for array in (a, b))
    one.raw, other.raw = other.raw, one.raw


def api(slot, result, *arguments):
    """A function of NumPy's table, for a call as an extension makes it."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype = ctypes.c_void_p
    get.argtypes = [ctypes.py_object, ctypes.c_char_p]
    table = get(np._core._multiarray_umath._ARRAY_API, None)
    function = (ctypes.c_void_p * (slot + 1)).from_address(table)[slot]
    return ctypes.PYFUNCTYPE(result, *arguments)(function)
