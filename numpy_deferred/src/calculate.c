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
#include "mem_overlap.h"
#include "profile.h"

/* Fills `memory`, then reports; see above for `computed`. */
static int
fill_then_report(PyArrayObject *arr, npy_deferred_node *node, void **memory)
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

static int
fill_and_report(PyArrayObject *arr, npy_deferred_node *node, void **memory)
{
    npy_deferred_profiled profiled;
    npy_deferred_profile_begin(&profiled, NPY_DEFERRED_FRESH);
    int result = fill_then_report(arr, node, memory);
    npy_deferred_profile_end(&profiled, result);
    return result;
}

/* Whether errors were told; an interrupt leaves them for the next time. */
static int
has_raised(int result)
{
    return result < 0 && PyErr_ExceptionMatches(PyExc_Exception);
}

NPY_NO_EXPORT int
npy_deferred_calculate_alone(PyArrayObject *arr)
{
    npy_deferred_wait();
    if (!npy_deferred_is(arr)) {
        return 0;
    }
    npy_deferred_node *node = npy_deferred_node_of(arr);
    if (node->computed != NULL) {
        void *memory = node->computed;
        node->computed = NULL;
        npy_deferred_commit(arr, memory);
        return 0;
    }
    void *memory = npy_deferred_memory_new(arr);
    if (memory == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    Py_INCREF(arr);
    npy_deferred_node_incref(node);
    int result = fill_and_report(arr, node, &memory);
    npy_deferred_set_failed(node, has_raised(result));
    if (result == 0 && npy_deferred_is(arr)) {
        npy_deferred_commit(arr, memory);
    }
    else if (memory != NULL) {
        npy_deferred_memory_free(memory);
    }
    npy_deferred_node_decref(node);
    Py_DECREF(arr);
    return result;
}

NPY_NO_EXPORT int
npy_deferred_calculate_node(PyArrayObject *arr)
{
    return npy_deferred_pending_twin(npy_deferred_node_of(arr)) != NULL
                   ? npy_deferred_calculate_with(arr, NULL, 0)
                   : npy_deferred_calculate_alone(arr);
}

NPY_NO_EXPORT int
npy_deferred_evaluate_into(npy_deferred_node *node, PyArrayObject *out,
                           npy_deferred_target target)
{
    npy_deferred_errors errors;
    npy_deferred_profiled profiled;
    errors.n = 0;
    npy_deferred_profile_begin(&profiled, target);
    npy_deferred_node_incref(node);
    int result = npy_deferred_evaluate(node, out, target, &errors);
    npy_deferred_node_decref(node);
    if (result == 0) {
        npy_deferred_stats.fused++;
        result = npy_deferred_report(&errors);
    }
    npy_deferred_profile_end(&profiled, result);
    return result;
}

/*
 * Values go straight into `dst` unless eager NumPy's copy would do something
 * else with them: broadcast, mask, check each value, write some places more
 * than once, or not run at all because an error was raised before.  An
 * expression evaluated a second time becomes regular, so that a third costs a
 * copy only; and so does an output of a call that would be run again for the other.
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
           solve_may_have_internal_overlap(dst, 1) == 0 &&
           !npy_deferred_drops_imaginary(PyArray_DESCR(src), PyArray_DESCR(dst)) &&
           node->nevaluated == 0 && node->computed == NULL &&
           npy_deferred_pending_twin(node) == NULL &&
           !(casting & NPY_SAME_VALUE_CASTING_FLAG) &&
           PyArray_CanCastTypeTo(PyArray_DESCR(src), PyArray_DESCR(dst), casting) &&
           npy_deferred_can_fuse_out(node);
}

NPY_NO_EXPORT int
npy_deferred_assign(PyArrayObject *dst, PyArrayObject *src, PyArrayObject *wheremask,
                    NPY_CASTING casting)
{
    npy_deferred_wait();
    if (wheremask != NULL) {
        int replaced = npy_deferred_assign_where(dst, wheremask, src);
        if (replaced != 0) {
            return replaced;
        }
        if (npy_deferred_calculate(wheremask) < 0) {
            return -1;
        }
    }
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
        return npy_deferred_calculate_because(NPY_DEFERRED_WHY_ASSIGN, src);
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
    void *memory = npy_deferred_memory_new(src);
    if (memory == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    npy_deferred_node_incref(node);
    npy_deferred_because = NPY_DEFERRED_WHY_ASSIGN;
    int result = fill_and_report(src, node, &memory);
    npy_deferred_set_failed(node, has_raised(result));
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
        npy_deferred_memory_free(memory);
    }
    return result;
}

NPY_NO_EXPORT int
npy_deferred_assign_keeping(PyArrayObject *dst, PyArrayObject *src)
{
    npy_deferred_wait();
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
