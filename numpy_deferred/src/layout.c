/*
 * The layout of a result: shape and strides, as eager NumPy would choose them.
 *
 * Eager NumPy has two ways to allocate the output of an elementwise ufunc, and
 * both are followed here: `try_trivial_single_output_loop` (ufunc_object.c)
 * for operands that all are contiguous in the same order, and the iterator's
 * `npyiter_find_best_axis_ordering` and `npyiter_new_temp_array`
 * (nditer_constr.c) for the rest.  They differ in the strides of axes of
 * length one, so the first is tried first, under the same conditions.
 *
 * Nothing here reads values, and but for npy_deferred_array_new nothing allocates or
 * raises.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "alloc.h"
#include "convert_datatype.h"
#include "deferred.h"
#include "templ_common.h"

#include <stdlib.h>

/* What operands must be, and must not be, to be read in C order. */
#define ALL_FLAGS (NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_F_CONTIGUOUS | NPY_ARRAY_ALIGNED)

static int
broadcast(int nin, PyArrayObject *const op[], npy_deferred_layout *result)
{
    int ndim = 0;
    for (int i = 0; i < nin; i++) {
        ndim = PyArray_NDIM(op[i]) > ndim ? PyArray_NDIM(op[i]) : ndim;
    }
    result->ndim = ndim;
    result->size = 1;
    for (int d = 0; d < ndim; d++) {
        npy_intp length = 1;
        for (int i = 0; i < nin; i++) {
            int own = d - (ndim - PyArray_NDIM(op[i]));
            if (own < 0 || PyArray_DIM(op[i], own) == 1) {
                continue;
            }
            if (length != 1 && length != PyArray_DIM(op[i], own)) {
                return -1;
            }
            length = PyArray_DIM(op[i], own);
        }
        result->dims[d] = length;
        if (npy_mul_sizes_with_overflow(&result->size, result->size, length)) {
            return -1;
        }
    }
    return 0;
}

NPY_NO_EXPORT PyArrayObject *
npy_deferred_array_new(PyArray_Descr *descr, int ndim, const npy_intp *dims,
                       const npy_intp *strides, void *data, int flags, int contiguity)
{
    PyArrayObject_fields *array = PyObject_New(PyArrayObject_fields, &PyArray_Type);
    if (array == NULL) {
        return NULL;
    }
    Py_INCREF(descr);
    array->descr = descr;
    array->data = data;
    array->nd = ndim;
    array->flags = flags | contiguity;
    array->base = NULL;
    array->weakreflist = NULL;
    array->_buffer_info = NULL;
    array->mem_handler = NULL;
    array->dimensions = NULL;
    array->strides = NULL;
    if (ndim > 0) {
        array->dimensions = npy_alloc_cache_dim(2 * ndim);
        if (array->dimensions == NULL) {
            Py_DECREF(array);
            PyErr_NoMemory();
            return NULL;
        }
        array->strides = array->dimensions + ndim;
        memcpy(array->dimensions, dims, ndim * sizeof(npy_intp));
        memcpy(array->strides, strides, ndim * sizeof(npy_intp));
    }
    int unknown =
            (contiguity == 0 ? NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_F_CONTIGUOUS : 0) |
            (flags & NPY_ARRAY_ALIGNED ? 0 : NPY_ARRAY_ALIGNED);
    if (unknown != 0) {
        PyArray_UpdateFlags((PyArrayObject *)array, unknown);
    }
    return (PyArrayObject *)array;
}

NPY_NO_EXPORT int
npy_deferred_readable_in_place(PyArrayObject *op, PyArray_Descr *descr)
{
    if (!PyArray_ISALIGNED(op)) {
        return 0;
    }
    if (PyArray_DESCR(op) == descr) {
        return 1;
    }
    npy_intp view_offset;
    npy_intp is_safe =
            PyArray_SafeCast(PyArray_DESCR(op), descr, &view_offset, NPY_NO_CASTING, 0);
    if (is_safe < 0) {
        PyErr_Clear();
        return 0;
    }
    return view_offset == 0;
}

/*
 * Returns the contiguity flag of the result when eager NumPy would run one
 * plain loop over all operands, else 0.
 */
static int
trivial_order(int nin, PyArrayObject *const op[], PyArray_Descr *const descrs[],
              NPY_ORDER order, const npy_deferred_layout *result)
{
    int wanted = order == NPY_CORDER         ? NPY_ARRAY_C_CONTIGUOUS
                 : order == NPY_FORTRANORDER ? NPY_ARRAY_F_CONTIGUOUS
                                             : 0;
    for (int i = 0; i < nin; i++) {
        if (PyArray_NDIM(op[i]) == 0) {
            continue;
        }
        if (PyArray_NDIM(op[i]) != result->ndim ||
            !PyArray_CompareLists(PyArray_DIMS(op[i]), result->dims, result->ndim)) {
            return 0;
        }
        if (result->ndim == 1) {
            continue;
        }
        int own = PyArray_FLAGS(op[i]) &
                  (NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_F_CONTIGUOUS);
        if (own == 0 || (wanted != 0 && wanted != own) ||
            !npy_deferred_readable_in_place(op[i], descrs[i])) {
            return 0;
        }
        wanted = own;
    }
    return wanted == NPY_ARRAY_F_CONTIGUOUS ? wanted : NPY_ARRAY_C_CONTIGUOUS;
}

/* Whether axis `inner` must come before axis `outer`: 1, 0, or -1: no matter. */
static int
compare_axes(int nin, npy_intp strides[][NPY_DEFERRED_MAX_NIN], int inner, int outer)
{
    int before = -1;
    for (int i = 0; i < nin; i++) {
        npy_intp a = strides[inner][i], b = strides[outer][i];
        if (a == 0 || b == 0) {
            continue;
        }
        if (llabs(b) <= llabs(a)) {
            before = 0;
        }
        else if (before == -1) {
            before = 1;
        }
    }
    return before;
}

/* Axes from the fastest to the slowest, as the iterator sorts them. */
static void
sort_axes(int nin, PyArrayObject *const op[], const npy_deferred_layout *result,
          int axes[])
{
    npy_intp strides[NPY_MAXDIMS][NPY_DEFERRED_MAX_NIN];
    int ndim = result->ndim;
    for (int d = 0; d < ndim; d++) {
        axes[d] = ndim - 1 - d;
        for (int i = 0; i < nin; i++) {
            int own = d - (ndim - PyArray_NDIM(op[i]));
            strides[d][i] = (own < 0 || PyArray_DIM(op[i], own) == 1)
                                    ? 0
                                    : PyArray_STRIDE(op[i], own);
        }
    }
    for (int i = 1; i < ndim; i++) {
        int axis = axes[i], position = i;
        for (int j = i - 1; j >= 0; j--) {
            int before = compare_axes(nin, strides, axis, axes[j]);
            if (before == 0) {
                break;
            }
            if (before == 1) {
                position = j;
            }
        }
        for (int j = i; j > position; j--) {
            axes[j] = axes[j - 1];
        }
        axes[position] = axis;
    }
}

/*
 * Whether order='A' means Fortran order.  Eager NumPy asks that after it has
 * replaced what it can by contiguous copies (`check_for_trivial_loop`).
 */
static int
all_fortran(int nin, PyArrayObject *const op[], PyArray_Descr *const descrs[])
{
    int copying = 1;
    npy_intp buffersize = npy_deferred_buffer_size();
    for (int i = 0; i < nin; i++) {
        int copied = 0;
        if (copying && !npy_deferred_readable_in_place(op[i], descrs[i])) {
            copied = PyArray_NDIM(op[i]) <= 1 && PyArray_SIZE(op[i]) <= buffersize;
            copying = copied;
        }
        if (!copied && !PyArray_CHKFLAGS(op[i], NPY_ARRAY_F_CONTIGUOUS)) {
            return 0;
        }
    }
    return 1;
}

/*
 * The usual case, in less time: all arrays are of one shape, and one-dimensional or
 * what a trivial loop reads in C order.  Returns whether it is.
 */
static int
plain_layout(int nin, PyArrayObject *const op[], PyArray_Descr *const descrs[],
             NPY_ORDER order, int may_be_trivial, npy_deferred_layout *result)
{
    PyArrayObject *array = NULL;
    for (int i = 0; i < nin; i++) {
        int ndim = PyArray_NDIM(op[i]);
        if (ndim == 0) {
            continue;
        }
        if (array == NULL) {
            array = op[i];
        }
        else if (ndim != PyArray_NDIM(array) ||
                 !PyArray_CompareLists(PyArray_DIMS(op[i]), PyArray_DIMS(array),
                                       ndim)) {
            return 0;
        }
        if (ndim > 1 && ((PyArray_FLAGS(op[i]) & ALL_FLAGS) !=
                                 (NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED) ||
                         PyArray_DESCR(op[i]) != descrs[i])) {
            return 0;
        }
    }
    if (array == NULL ||
        (PyArray_NDIM(array) > 1 && (order == NPY_FORTRANORDER || !may_be_trivial))) {
        return 0;
    }
    npy_intp stride = descrs[nin]->elsize;
    result->ndim = PyArray_NDIM(array);
    result->contiguity = result->ndim == 1
                                 ? NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_F_CONTIGUOUS
                                 : NPY_ARRAY_C_CONTIGUOUS;
    result->size = 1;
    for (int d = result->ndim - 1; d >= 0; d--) {
        npy_intp length = PyArray_DIM(array, d);
        if (length == 0 ||
            npy_mul_sizes_with_overflow(&result->size, result->size, length)) {
            return 0;
        }
        result->dims[d] = length;
        result->strides[d] = stride;
        stride *= length;
    }
    return 1;
}

NPY_NO_EXPORT int
npy_deferred_result_layout(int nin, PyArrayObject *const op[],
                           PyArray_Descr *const descrs[], NPY_ORDER order,
                           int may_be_trivial, npy_deferred_layout *result)
{
    if (plain_layout(nin, op, descrs, order, may_be_trivial, result)) {
        return 0;
    }
    result->contiguity = 0;
    if (broadcast(nin, op, result) < 0) {
        return -1;
    }
    int ndim = result->ndim;
    int axes[NPY_MAXDIMS];
    int trivial = may_be_trivial ? trivial_order(nin, op, descrs, order, result) : 0;
    int fortran = trivial != 0
                          ? trivial == NPY_ARRAY_F_CONTIGUOUS
                          : order == NPY_FORTRANORDER || (order == NPY_ANYORDER &&
                                                          all_fortran(nin, op, descrs));
    if (trivial == 0 && order == NPY_KEEPORDER) {
        sort_axes(nin, op, result, axes);
    }
    else {
        for (int d = 0; d < ndim; d++) {
            axes[d] = fortran ? d : ndim - 1 - d;
        }
    }
    npy_intp stride = descrs[nin]->elsize;
    for (int d = 0; d < ndim; d++) {
        result->strides[axes[d]] = stride;
        /* Without overflow: no operand is empty where this matters. */
        stride *= result->dims[axes[d]];
    }
    return 0;
}
