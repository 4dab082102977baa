/*
 * Deferred evaluation in the array C-API (doc/c-api.rst).  Included by
 * __multiarray_api.h, so import_array() is all that an extension needs.
 *
 * The functions lie in slots of the API table that NumPy's own functions will
 * not reach; the table of a NumPy without deferred evaluation ends before
 * them.  Extensions are compiled once and meet either, so every function asks
 * for the version first, and where there is none does what it means there: no
 * array is deferred, so each is calculated already.
 */
#ifndef NUMPY_DEFERRED_INCLUDE_NUMPY__DEFERRED_API_H_
#define NUMPY_DEFERRED_INCLUDE_NUMPY__DEFERRED_API_H_

#include "numpy/arrayobject.h"

/* Grows with the functions; what is there stays. */
#define NPY_DEFERRED_API_VERSION 1

/* NumPy's table has a few hundred slots, and gets a few a year. */
#define _NPY_DEFERRED_API_SLOT 1000

/* What the functions do with something else; also where they are missing. */
static inline int
_npy_deferred_check_array(PyArrayObject *arr)
{
    if (arr == NULL) {
        PyErr_SetString(PyExc_ValueError, "expected an ndarray, not NULL");
        return -1;
    }
    if (!PyObject_TypeCheck((PyObject *)arr, &PyArray_Type)) {
        /* %R, as the limited API has no tp_name. */
        PyErr_Format(PyExc_TypeError, "expected an ndarray, not %R",
                     (PyObject *)Py_TYPE((PyObject *)arr));
        return -1;
    }
    return 0;
}

#if !(defined(NPY_INTERNAL_BUILD) && NPY_INTERNAL_BUILD)

/*
 * The version of these functions in the NumPy that is running; 0 when it has
 * none of them, -1 with an exception set when that cannot be told.
 */
static inline int
PyArray_GetDeferredAPIVersion(void)
{
    static int version = -1;
    PyObject *type, *value, *traceback, *core, *number = NULL;

    if (version >= 0) {
        return version;
    }
    /* Nobody has to clear an exception to ask. */
    PyErr_Fetch(&type, &value, &traceback);
    core = PyImport_ImportModule("numpy._core._multiarray_umath");
    if (core != NULL) {
        number = PyObject_GetAttrString(core, "_deferred_api_version");
        Py_DECREF(core);
    }
    if (number != NULL) {
        version = (int)PyLong_AsLong(number);
        Py_DECREF(number);
    }
    else if (PyErr_ExceptionMatches(PyExc_AttributeError) ||
             PyErr_ExceptionMatches(PyExc_ModuleNotFoundError)) {
        PyErr_Clear();
        version = 0;
    }
    if (version >= 0) {
        PyErr_Restore(type, value, traceback);
        return version;
    }
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return -1;
}

#    define _NPY_DEFERRED_FUNCTION(i, arguments) \
        (*(int(*) arguments)PyArray_API[_NPY_DEFERRED_API_SLOT + (i)])

static inline int
PyArray_CalculateAllDeferred(void)
{
    int version = PyArray_GetDeferredAPIVersion();
    if (version < 1) {
        return version < 0 ? NPY_FAIL : NPY_SUCCEED;
    }
    return _NPY_DEFERRED_FUNCTION(0, (void))();
}

static inline int
PyArray_CalculateDeferred(PyArrayObject *arr)
{
    int version = PyArray_GetDeferredAPIVersion();
    if (version < 1) {
        if (version < 0 || _npy_deferred_check_array(arr) < 0) {
            return NPY_FAIL;
        }
        return NPY_SUCCEED;
    }
    return _NPY_DEFERRED_FUNCTION(1, (PyArrayObject *))(arr);
}

static inline int
PyArray_CalculateDeferredAssignment(PyArrayObject *arr, PyArrayObject *out)
{
    int version = PyArray_GetDeferredAPIVersion();
    if (version < 1) {
        if (version < 0 || _npy_deferred_check_array(arr) < 0 ||
            _npy_deferred_check_array(out) < 0 || PyArray_CopyInto(out, arr) < 0) {
            return NPY_FAIL;
        }
        return NPY_SUCCEED;
    }
    return _NPY_DEFERRED_FUNCTION(2, (PyArrayObject *, PyArrayObject *))(arr, out);
}

static inline int
PyArray_GetDeferredUsageCount(PyArrayObject *arr)
{
    int version = PyArray_GetDeferredAPIVersion();
    if (version < 1) {
        return version < 0 ? -1 : _npy_deferred_check_array(arr);
    }
    return _NPY_DEFERRED_FUNCTION(3, (PyArrayObject *))(arr);
}

/*
 * In extensions, PyArray_DATA and PyArray_BYTES, and so PyArray_GETPTR1 and all
 * macros that use them, calculate a deferred array; with the GIL or without.  They
 * are NULL, with an exception set, when there is no memory for the values.
 */
#    ifdef __GNUC__
/*
 * "pure", so that a loop over PyArray_GETPTR1 need not look at the array afresh for
 * each element: what the caller sees of a calculation is the pointer it returns.
 */
#        define _NPY_DEFERRED_SELDOM __attribute__((pure, noinline, cold, unused))
#    else
#        define _NPY_DEFERRED_SELDOM
#    endif

_NPY_DEFERRED_SELDOM static void *
_npy_deferred_calculated_data(const PyArrayObject *arr)
{
    if (PyArray_API == NULL) {
        return ((PyArrayObject_fields *)arr)->data;
    }
    return (*(void *(*)(PyArrayObject *))PyArray_API[_NPY_DEFERRED_API_SLOT + 4])(
            (PyArrayObject *)arr);
}

static inline void *
_npy_deferred_data(const PyArrayObject *arr)
{
    /* No array has the flag where the table ends before the slot. */
    if (NPY_UNLIKELY(((PyArrayObject_fields *)arr)->flags & NPY_ARRAY_DEFERRED)) {
        return _npy_deferred_calculated_data(arr);
    }
    return ((PyArrayObject_fields *)arr)->data;
}

static inline char *
_npy_deferred_bytes(const PyArrayObject *arr)
{
    return (char *)_npy_deferred_data(arr);
}

#    define PyArray_DATA _npy_deferred_data
#    define PyArray_BYTES _npy_deferred_bytes

#endif /* !NPY_INTERNAL_BUILD */

#endif /* NUMPY_DEFERRED_INCLUDE_NUMPY__DEFERRED_API_H_ */
