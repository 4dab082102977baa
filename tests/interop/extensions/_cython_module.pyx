# cython: language_level=3, boundscheck=False, wraparound=False
"""The ways by which Cython modules reach the values of arrays."""

cimport numpy as cnp
from cython cimport floating
from cython.parallel cimport prange
from libc.math cimport sqrt

cnp.import_array()


def sum_data(cnp.ndarray a):
    """By PyArray_DATA, out of the struct; asks NumPy nothing."""
    cdef double *p = <double *>cnp.PyArray_DATA(a)
    cdef double total = 0
    for i in range(cnp.PyArray_SIZE(a)):
        total += p[i]
    return total


def sum_data_nogil(cnp.ndarray a):
    cdef double *p = <double *>a.data
    cdef double total = 0
    cdef Py_ssize_t i, n = cnp.PyArray_SIZE(a)
    with nogil:
        for i in range(n):
            total += p[i]
    return total


def sum_data_prange(cnp.ndarray a):
    """The largest element, by several threads, none of which holds the GIL."""
    cdef double *p = <double *>cnp.PyArray_DATA(a)
    cdef double total = 0
    cdef Py_ssize_t i, n = cnp.PyArray_SIZE(a)
    for i in prange(n, nogil=True, num_threads=4, schedule="static"):
        total += p[i] > 0
    return total


def fill_data(cnp.ndarray a, double value):
    """Write through PyArray_DATA, after the question that NumPy asks for."""
    if not cnp.PyArray_ISWRITEABLE(a):
        raise ValueError("read-only")
    cdef double *p = <double *>cnp.PyArray_DATA(a)
    for i in range(cnp.PyArray_SIZE(a)):
        p[i] = value


def fill_data_unasked(cnp.ndarray a, double value):
    """Write through PyArray_DATA, and ask nothing."""
    cdef double *p = <double *>cnp.PyArray_DATA(a)
    for i in range(cnp.PyArray_SIZE(a)):
        p[i] = value


def sum_buffer(cnp.ndarray[double, ndim=2] a):
    """By the buffer syntax of old, which takes a writable buffer."""
    cdef double total = 0
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            total += a[i, j]
    return total


def scale_buffer(cnp.ndarray[double, ndim=2] a, double factor):
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            a[i, j] *= factor


def sum_view(const floating[:, :] a):
    """By a typed memoryview that only reads."""
    cdef double total = 0
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            total += a[i, j]
    return total


def scale_view(floating[:, :] a, floating factor):
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            a[i, j] *= factor


def sum_complex(const double complex[::1] a):
    cdef double complex total = 0
    for i in range(a.shape[0]):
        total += a[i]
    return total


def sqrt_into(const double[::1] a, double[::1] out):
    cdef Py_ssize_t i
    with nogil:
        for i in range(a.shape[0]):
            out[i] = sqrt(a[i])


cdef class Holder:
    """Keeps a view of an array, and reads and writes it later."""

    cdef double[::1] values

    def __init__(self, double[::1] values):
        self.values = values

    def get(self, Py_ssize_t i):
        return self.values[i]

    def set(self, Py_ssize_t i, double value):
        self.values[i] = value


cdef class Keeper:
    """Keeps the address of an array's values, as libraries in C do."""

    cdef cnp.ndarray array
    cdef double *values

    def __init__(self, cnp.ndarray array):
        self.array = array
        self.values = <double *>cnp.PyArray_DATA(array)

    def get(self, Py_ssize_t i):
        return self.values[i]

    def set(self, Py_ssize_t i, double value):
        self.values[i] = value


def elements(cnp.ndarray a):
    """By an array iterator, and by GETPTR."""
    cdef cnp.flatiter it = cnp.PyArray_IterNew(a)
    cdef double total = 0
    while cnp.PyArray_ITER_NOTDONE(it):
        total += (<double *>cnp.PyArray_ITER_DATA(it))[0]
        cnp.PyArray_ITER_NEXT(it)
    return total, (<double *>cnp.PyArray_GETPTR2(a, 1, 2))[0]


def wrapped(cnp.ndarray a):
    """A new array on the memory of another, made by hand."""
    cdef cnp.npy_intp n = cnp.PyArray_SIZE(a)
    cdef object view = cnp.PyArray_SimpleNewFromData(
        1, &n, cnp.NPY_DOUBLE, cnp.PyArray_DATA(a)
    )
    cnp.set_array_base(view, a)
    return view
