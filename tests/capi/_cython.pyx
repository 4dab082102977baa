# cython: language_level=3
"""The C API of deferred evaluation, as Cython code sees it."""

cimport numpy as np

np.import_array()

DEFERRED = np.NPY_ARRAY_DEFERRED
DEFERRED_WASWRITEABLE = np.NPY_ARRAY_DEFERRED_WASWRITEABLE
UPDATEIFCOPY_TARGET = np.NPY_ARRAY_UPDATEIFCOPY_TARGET


def version():
    return np.PyArray_GetDeferredAPIVersion()


def flags(np.ndarray arr):
    return np.PyArray_FLAGS(arr)


def calculate_all():
    return np.PyArray_CalculateAllDeferred()


def calculate(np.ndarray arr):
    return np.PyArray_CalculateDeferred(arr)


def assign(np.ndarray arr, np.ndarray out):
    return np.PyArray_CalculateDeferredAssignment(arr, out)


def usage_count(np.ndarray arr):
    return np.PyArray_GetDeferredUsageCount(arr)


def sum_memoryview(double[:] values):
    cdef double total = 0
    for value in values:
        total += value
    return total


def sum_buffer(np.ndarray[double, ndim=1] values):
    cdef double total = 0
    cdef Py_ssize_t i
    for i in range(values.shape[0]):
        total += values[i]
    return total


def add_in_place(double[:] values, double number):
    cdef Py_ssize_t i
    for i in range(values.shape[0]):
        values[i] += number
