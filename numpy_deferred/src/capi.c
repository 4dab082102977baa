/*
 * The C API of deferred evaluation, documented in doc/c-api.rst.
 *
 * The functions are put into slots of NumPy's array API table that its
 * generator leaves free; _deferred_api.h calls them there.  Unlike the rest of
 * numpy_deferred they return NPY_SUCCEED or NPY_FAIL, and look at what they are
 * given: a NULL is a ValueError and another object a TypeError, as for
 * PyArray_SetBaseObject and PyArray_OutputConverter, since Cython passes None
 * where an ndarray is declared.  They need the GIL.
 *
 * Four functions that have always been in the table get other entries, which tell that
 * an extension asks: see descr_from_type, copy_into, get_ndarray_c_version and
 * set_handler.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/_deferred_api.h"
#include "numpy/arrayobject.h"

#include "deferred.h"
#include "profile.h"

#include <limits.h>

extern void *PyArray_API[];

static inline int
success(int result)
{
    return result < 0 ? NPY_FAIL : NPY_SUCCEED;
}

static int
PyArray_CalculateAllDeferred(void)
{
    return success(npy_deferred_calculate_all());
}

static int
PyArray_CalculateDeferred(PyArrayObject *arr)
{
    if (_npy_deferred_check_array(arr) < 0) {
        return NPY_FAIL;
    }
    return success(npy_deferred_calculate_because(NPY_DEFERRED_WHY_API, arr));
}

static int
PyArray_CalculateDeferredAssignment(PyArrayObject *arr, PyArrayObject *out)
{
    if (_npy_deferred_check_array(arr) < 0 || _npy_deferred_check_array(out) < 0) {
        return NPY_FAIL;
    }
    return success(npy_deferred_assign_keeping(out, arr));
}

static int
PyArray_GetDeferredUsageCount(PyArrayObject *arr)
{
    if (_npy_deferred_check_array(arr) < 0) {
        return -1;
    }
    npy_deferred_usage *usage = npy_deferred_find_usage(arr);
    return usage == NULL ? 0 : (int)Py_MIN(usage->count, INT_MAX);
}

/*
 * What f2py's wrappers and pybind11's array_t<T> ask first, for each array that they
 * are given, and all who say PyArray_FROM_OTF: the one sign of code that may go on to
 * write into an operand, through PyArray_DATA, without asking anything else.
 */
static PyArray_Descr *
descr_from_type(int type)
{
    npy_deferred_before_unseen_writes();
    return PyArray_DescrFromType(type);
}

/*
 * The one sign of f2py's intent(inplace): it copies its argument to an array of another
 * dtype or layout, and then exchanges the fields of the two structures.
 */
static int
copy_into(PyArrayObject *dest, PyArrayObject *src)
{
    if (PyArray_CopyInto(dest, src) < 0) {
        return -1;
    }
    return npy_deferred_before_exchange(dest, src);
}

/* Called by import_array: there is one more who may have arrays. */
static unsigned int
get_ndarray_c_version(void)
{
    npy_deferred_before_unseen_writes();
    npy_deferred_neighbours_came = 1;
    return PyArray_GetNDArrayCVersion();
}

/* NumPy itself never calls it. */
static PyObject *
set_handler(PyObject *handler)
{
    npy_deferred_other_handlers = 1;
    return PyDataMem_SetHandler(handler);
}

static void
replace(void *function, void *by)
{
    for (int i = 0; i < _NPY_DEFERRED_API_SLOT; i++) {
        if (PyArray_API[i] == function) {
            PyArray_API[i] = by;
            return;
        }
    }
    Py_FatalError("numpy_deferred: a function is not in NumPy's table");
}

NPY_NO_EXPORT int
npy_deferred_capi_init(PyObject *module)
{
    replace((void *)PyArray_DescrFromType, (void *)descr_from_type);
    replace((void *)PyArray_CopyInto, (void *)copy_into);
    replace((void *)PyArray_GetNDArrayCVersion, (void *)get_ndarray_c_version);
    replace((void *)PyDataMem_SetHandler, (void *)set_handler);
    void **slots = PyArray_API + _NPY_DEFERRED_API_SLOT;
    slots[0] = (void *)PyArray_CalculateAllDeferred;
    slots[1] = (void *)PyArray_CalculateDeferred;
    slots[2] = (void *)PyArray_CalculateDeferredAssignment;
    slots[3] = (void *)PyArray_GetDeferredUsageCount;
    slots[4] = (void *)npy_deferred_data_for_extension;
    return PyModule_AddIntConstant(module, "_deferred_api_version",
                                   NPY_DEFERRED_API_VERSION);
}
