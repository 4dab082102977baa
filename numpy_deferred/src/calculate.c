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

#include "numpy/arrayobject.h"

#include "alloc.h"
#include "convert_datatype.h"
#include "ctors.h"
#include "deferred.h"

#include <stdio.h>
#include <stdlib.h>
#ifdef __GLIBC__
#    include <execinfo.h>
#endif

extern PyObject *PyDataMem_DefaultHandler;

/* Fills `memory`, then reports; see above for `computed`. */
static int
fill_and_report(PyArrayObject *arr, npy_deferred_node *node, void **memory)
{
    npy_deferred_errors errors;
    errors.n = 0;
    PyArrayObject *out = npy_deferred_array_over(arr, *memory);
    if (out == NULL) {
        return -1;
    }
    int result = npy_deferred_evaluate(node, out, NPY_DEFERRED_FRESH, &errors);
    Py_DECREF(out);
    if (result == 0 && (!npy_deferred_is(arr) || node->computed != NULL)) {
        /* Another thread was faster, and reports the errors. */
        npy_deferred_errors_clear(&errors);
        return npy_deferred_calculate(arr);
    }
    if (result < 0 || errors.n == 0) {
        return result;
    }
    node->computed = *memory;
    result = npy_deferred_report(&errors);
    if (node->computed == NULL) {
        *memory = NULL; /* a handler or another thread has committed it */
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
    node->failed = result < 0;
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
           !npy_deferred_drops_imaginary(PyArray_DESCR(src), PyArray_DESCR(dst)) &&
           node->nevaluated == 0 && node->computed == NULL &&
           !(casting & NPY_SAME_VALUE_CASTING_FLAG) &&
           PyArray_CanCastTypeTo(PyArray_DESCR(src), PyArray_DESCR(dst), casting) &&
           npy_deferred_can_fuse_out(node);
}

NPY_NO_EXPORT int
npy_deferred_assign(PyArrayObject *dst, PyArrayObject *src, PyArrayObject *wheremask,
                    NPY_CASTING casting)
{
    /* This flushes what depends on `dst`, which may be `src`. */
    if (PyArray_FailUnlessWriteable(dst, "assignment destination") < 0) {
        return -1;
    }
    if (!npy_deferred_is(src)) {
        return 0;
    }
    int assignable = can_assign(dst, src, wheremask, casting);
    if (!npy_deferred_is(src)) {
        return 0; /* the warning filters that were asked may have run code */
    }
    if (!assignable) {
        return npy_deferred_calculate(src);
    }
    int result = npy_deferred_evaluate_into(npy_deferred_node_of(src), dst,
                                            NPY_DEFERRED_ASSIGN);
    return result < 0 ? -1 : 1;
}

/* The values of `src` go to `dst` by way of private memory. */
static int
assign_copy(PyArrayObject *dst, PyArrayObject *src)
{
    npy_deferred_node *node = npy_deferred_node_of(src);
    npy_intp nbytes = PyArray_NBYTES(src);
    void *memory = PyDataMem_UserNEW(nbytes, PyDataMem_DefaultHandler);
    if (memory == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    npy_deferred_node_incref(node);
    int result = fill_and_report(src, node, &memory);
    node->failed = result < 0;
    npy_deferred_node_decref(node);
    if (result == 0 && !npy_deferred_is(src)) {
        /* A handler or another thread has calculated it. */
        result = PyArray_CopyInto(dst, src);
    }
    else if (result == 0) {
        PyArrayObject *values = npy_deferred_array_over(src, memory);
        result = values == NULL ? -1 : PyArray_CopyInto(dst, values);
        Py_XDECREF(values);
    }
    if (memory != NULL) {
        PyDataMem_UserFREE(memory, nbytes, PyDataMem_DefaultHandler);
    }
    return result;
}

NPY_NO_EXPORT int
npy_deferred_assign_keeping(PyArrayObject *dst, PyArrayObject *src)
{
    /* This flushes what depends on `dst`, which may be `src`. */
    if (PyArray_FailUnlessWriteable(dst, "assignment destination") < 0) {
        return -1;
    }
    if (!npy_deferred_is(src) || npy_deferred_node_of(src)->nevaluated != 0 ||
        npy_deferred_node_of(src)->computed != NULL ||
        can_assign(dst, src, NULL, NPY_UNSAFE_CASTING)) {
        return PyArray_CopyInto(dst, src);
    }
    return assign_copy(dst, src);
}

/* Say which hook is missing: where in Python and in C the data are touched. */
static void
report_touch(PyArrayObject *arr)
{
    fprintf(stderr,
            "numpy_deferred: no hook has calculated the deferred array at %p "
            "before this touch of its data\n",
            (void *)arr);
    PyRun_SimpleString("import traceback; traceback.print_stack(limit=-4)");
#ifdef __GLIBC__
    void *frames[16];
    backtrace_symbols_fd(frames, backtrace(frames, 16), 2);
#endif
}

/* Give an array memory without its values, as an exception tells that. */
static void
give_up(PyArrayObject *arr)
{
    void *memory =
            PyDataMem_UserNEW_ZEROED(PyArray_NBYTES(arr), 1, PyDataMem_DefaultHandler);
    if (memory == NULL) {
        Py_FatalError(
                "numpy: no memory to calculate a deferred array where "
                "NumPy has no way to raise an error");
    }
    npy_deferred_commit(arr, memory);
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
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (npy_deferred_guard_mode != NPY_DEFERRED_GUARD_QUIET) {
        report_touch(arr);
    }
    if (npy_deferred_guard_mode == NPY_DEFERRED_GUARD_TRAP) {
        abort();
    }
    npy_deferred_stats.late++;
    if (npy_deferred_calculate(arr) < 0) {
        if (type == NULL) {
            PyErr_Fetch(&type, &value, &traceback);
        }
        PyErr_Clear();
        int reporting = npy_deferred_set_reporting(0);
        if (npy_deferred_calculate(arr) < 0) {
            PyErr_Clear();
            give_up(arr);
        }
        npy_deferred_set_reporting(reporting);
    }
    PyErr_Restore(type, value, traceback);
    PyGILState_Release(gil);
}
