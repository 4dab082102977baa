/*
 * Calculate: a deferred array becomes regular, or its values go straight into
 * another array.
 *
 * Commit last: values are computed into private memory, errors are reported,
 * then the memory is published and the operands are let go.  When anything
 * fails the array is deferred as before, and a later try fails the same way.
 *
 * While errors are reported, handlers may read the very array: `computed`
 * lets them have the values instead of computing them again, without end.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "deferred.h"

#include "alloc.h"
#include "convert_datatype.h"
#include "ctors.h"

#include <stdio.h>
#include <stdlib.h>
#ifdef __GLIBC__
#include <execinfo.h>
#endif

extern PyObject *PyDataMem_DefaultHandler;

/* An array of the same layout over `memory`, which it does not own. */
static PyArrayObject *
array_over(PyArrayObject *arr, void *memory)
{
    Py_INCREF(PyArray_DESCR(arr));
    return (PyArrayObject *)PyArray_NewFromDescr_int(
            &PyArray_Type, PyArray_DESCR(arr), PyArray_NDIM(arr),
            PyArray_DIMS(arr), PyArray_STRIDES(arr), memory,
            NPY_ARRAY_WRITEABLE, NULL, NULL, _NPY_ARRAY_ENSURE_DTYPE_IDENTITY);
}

static int
fill(PyArrayObject *arr, npy_deferred_node *node, void *memory,
     npy_deferred_errors *errors)
{
    errors->n = 0;
    PyArrayObject *out = array_over(arr, memory);
    if (out == NULL) {
        return -1;
    }
    int result = npy_deferred_evaluate(node, out, NPY_DEFERRED_FRESH, errors);
    Py_DECREF(out);
    return result;
}

/* Fills `memory`, then reports; see above for `computed`. */
static int
fill_and_report(PyArrayObject *arr, npy_deferred_node *node, void **memory)
{
    npy_deferred_errors errors;
    int result = fill(arr, node, *memory, &errors);
    if (result < 0 || errors.n == 0) {
        return result;
    }
    node->computed = *memory;
    result = npy_deferred_report(&errors);
    if (node->computed == NULL) {
        *memory = NULL; /* a handler has committed it */
    }
    node->computed = NULL;
    return result;
}

NPY_NO_EXPORT int
npy_deferred_calculate_node(PyArrayObject *arr)
{
    npy_deferred_node *node = npy_deferred_node_of(arr);
    if (node->computed != NULL) {
        void *memory = node->computed;
        node->computed = NULL;
        npy_deferred_commit(arr, memory);
        return 0;
    }
    npy_intp nbytes = PyArray_NBYTES(arr);
    void *memory = PyDataMem_UserNEW(nbytes, PyDataMem_DefaultHandler);
    if (memory == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    Py_INCREF(arr);
    npy_deferred_node_incref(node);
    int result = fill_and_report(arr, node, &memory);
    if (result == 0 && npy_deferred_is(arr)) {
        npy_deferred_commit(arr, memory);
    }
    else if (memory != NULL) {
        PyDataMem_UserFREE(memory, nbytes, PyDataMem_DefaultHandler);
    }
    npy_deferred_node_decref(node);
    Py_DECREF(arr);
    return result;
}

NPY_NO_EXPORT int
npy_deferred_evaluate_into(npy_deferred_node *node, PyArrayObject *out,
                           npy_deferred_target target)
{
    npy_deferred_errors errors;
    errors.n = 0;
    npy_deferred_node_incref(node);
    int result = npy_deferred_evaluate(node, out, target, &errors);
    npy_deferred_node_decref(node);
    if (result == 0) {
        npy_deferred_stats.fused++;
        result = npy_deferred_report(&errors);
    }
    return result;
}

/*
 * Values go straight into `dst` unless eager NumPy's copy would do something
 * else with them: broadcast, mask, check each value, or not run at all because
 * an error was raised before.  An expression evaluated a second time becomes
 * regular, so that a third costs a copy only.
 */
static int
can_assign(PyArrayObject *dst, PyArrayObject *src, PyArrayObject *wheremask,
           NPY_CASTING casting)
{
    npy_deferred_node *node = npy_deferred_node_of(src);
    return wheremask == NULL && PyArray_NDIM(dst) == PyArray_NDIM(src) &&
           PyArray_CompareLists(PyArray_DIMS(dst), PyArray_DIMS(src),
                                PyArray_NDIM(src)) &&
           PyTypeNum_ISNUMBER(PyArray_TYPE(dst)) &&
           node->nevaluated == 0 && node->computed == NULL &&
           !(casting & NPY_SAME_VALUE_CASTING_FLAG) &&
           PyArray_CanCastTypeTo(PyArray_DESCR(src), PyArray_DESCR(dst),
                                 casting) &&
           npy_deferred_can_fuse_assignment(node, dst);
}

NPY_NO_EXPORT int
npy_deferred_assign(PyArrayObject *dst, PyArrayObject *src,
                    PyArrayObject *wheremask, NPY_CASTING casting)
{
    /* This flushes what depends on `dst`, which may be `src`. */
    if (PyArray_FailUnlessWriteable(dst, "assignment destination") < 0) {
        return -1;
    }
    if (!npy_deferred_is(src)) {
        return 0;
    }
    if (!can_assign(dst, src, wheremask, casting)) {
        return npy_deferred_calculate(src);
    }
    int result = npy_deferred_evaluate_into(npy_deferred_node_of(src), dst,
                                            NPY_DEFERRED_ASSIGN);
    return result < 0 ? -1 : 1;
}

/* Say where in Python and in C an array was touched, and abort. */
static void
trap(PyArrayObject *arr)
{
    fprintf(stderr,
            "numpy_deferred: the data of the deferred array at %p were touched "
            "where no hook had calculated it\n",
            (void *)arr);
    PyRun_SimpleString("import traceback; traceback.print_stack()");
#ifdef __GLIBC__
    void *frames[32];
    backtrace_symbols_fd(frames, backtrace(frames, 32), 2);
#endif
    abort();
}

/* As npy_deferred_calculate_node, but floating-point errors are dropped. */
static int
calculate_quietly(PyArrayObject *arr)
{
    npy_deferred_errors errors;
    npy_intp nbytes = PyArray_NBYTES(arr);
    void *memory = PyDataMem_UserNEW(nbytes, PyDataMem_DefaultHandler);
    if (memory == NULL) {
        return -1;
    }
    if (fill(arr, npy_deferred_node_of(arr), memory, &errors) < 0) {
        PyDataMem_UserFREE(memory, nbytes, PyDataMem_DefaultHandler);
        return -1;
    }
    npy_deferred_errors_clear(&errors);
    npy_deferred_commit(arr, memory);
    return 0;
}

/*
 * The last resort of PyArray_DATA, which cannot fail.  When an error is to be
 * raised, the array gets its values all the same, and the exception is left
 * for the interpreter's next check.
 */
NPY_NO_EXPORT void
npy_deferred_data_needed(PyArrayObject *arr)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    if (npy_deferred_trap) {
        trap(arr);
    }
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    npy_deferred_stats.late++;
    if (npy_deferred_calculate(arr) < 0) {
        if (type == NULL) {
            PyErr_Fetch(&type, &value, &traceback);
        }
        PyErr_Clear();
        if (npy_deferred_is(arr) && calculate_quietly(arr) < 0) {
            Py_FatalError("numpy: no memory to calculate a deferred array "
                          "where NumPy has no way to raise an error");
        }
    }
    PyErr_Restore(type, value, traceback);
    PyGILState_Release(gil);
}
