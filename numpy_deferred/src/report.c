/*
 * Floating-point errors of deferred operations: warn, raise, call, print, log.
 *
 * Each node has the error state of the moment its operation was written.  An
 * evaluation collects what was raised per operation in `npy_deferred_errors`,
 * which owns references to all it needs, so that reporting can run arbitrary
 * code (warning filters, handlers of seterrcall) after the plan is gone.  What a
 * node has reported without an exception is not reported again when it is
 * evaluated for another array too.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "deferred.h"
#include "extobj.h"
#include "npy_static_data.h"
#include "ufunc_object.h"

/* An error mask has three bits a category: the UFUNC_ERR_ constants of extobj.c. */
#define ERR_MODE 7
#define ERR_WARN 1
#define ERR_RAISE 2
#define ERR_CALL 3
#define ERR_LOG 5

NPY_NO_EXPORT PyObject *npy_deferred_errstate_read = NULL;

NPY_NO_EXPORT PyObject *
npy_deferred_errstate(void)
{
    PyObject *errstate;
    if (PyContextVar_Get(npy_static_pydata.npy_extobj_contextvar,
                         npy_static_pydata.default_extobj_capsule, &errstate) < 0) {
        return NULL;
    }
    return errstate;
}

NPY_NO_EXPORT PyObject *
npy_deferred_errfunc(PyObject *errstate, int *errmask)
{
    npy_extobj *extobj = PyCapsule_GetPointer(errstate, "numpy.ufunc.extobj");
    if (extobj == NULL) {
        return NULL;
    }
    *errmask = extobj->errmask;
    return Py_NewRef(extobj->pyfunc);
}

/*
 * What a filter does to a RuntimeWarning: 1, makes some an exception; 0, nothing
 * of the kind; -1, decides about all of them, so that no later filter counts.
 */
static int
judge_filter(PyObject *filter)
{
    if (!PyTuple_Check(filter) || PyTuple_GET_SIZE(filter) != 5) {
        return 1;
    }
    PyObject *action = PyTuple_GET_ITEM(filter, 0);
    PyObject *message = PyTuple_GET_ITEM(filter, 1);
    PyObject *category = PyTuple_GET_ITEM(filter, 2);
    PyObject *module = PyTuple_GET_ITEM(filter, 3);
    PyObject *lineno = PyTuple_GET_ITEM(filter, 4);
    if (!PyUnicode_Check(action) || !PyLong_CheckExact(lineno)) {
        return 1;
    }
    int applies = Py_IS_TYPE(category, &PyType_Type)
                          ? PyType_IsSubtype((PyTypeObject *)PyExc_RuntimeWarning,
                                             (PyTypeObject *)category)
                          : PyObject_IsSubclass(PyExc_RuntimeWarning, category);
    if (applies <= 0) {
        return applies < 0;
    }
    if (PyUnicode_CompareWithASCIIString(action, "error") == 0) {
        return 1;
    }
    int of_all = message == Py_None && module == Py_None;
    return of_all && PyLong_AsLong(lineno) == 0 ? -1 : 0;
}

/* The filters that were judged last, and how: they are seldom others.  Guarded by the
 * GIL. */
static struct {
    PyObject *filters; /* owned: a tuple, or NULL */
    int may_raise;
} judged;

static int
are_judged(PyObject *filters)
{
    Py_ssize_t n = PyList_GET_SIZE(filters);
    if (judged.filters == NULL || PyTuple_GET_SIZE(judged.filters) != n) {
        return 0;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        if (PyTuple_GET_ITEM(judged.filters, i) != PyList_GET_ITEM(filters, i)) {
            return 0;
        }
    }
    return 1;
}

/* Whether some filter makes our warnings exceptions; when in doubt it does. */
static int
warnings_may_raise(PyObject *filters)
{
    if (filters == NULL || !PyList_CheckExact(filters)) {
        return 1;
    }
    if (are_judged(filters)) {
        return judged.may_raise;
    }
    /* Another class of classes may answer otherwise the next time. */
    int judgement = 0, lasts = 1;
    PyObject *seen = PyList_AsTuple(filters);
    for (Py_ssize_t i = 0; seen != NULL && i < PyTuple_GET_SIZE(seen); i++) {
        PyObject *filter = PyTuple_GET_ITEM(seen, i);
        judgement = judgement != 0 ? judgement : judge_filter(filter);
        lasts &= PyTuple_Check(filter) && PyTuple_GET_SIZE(filter) == 5 &&
                 Py_IS_TYPE(PyTuple_GET_ITEM(filter, 2), &PyType_Type);
    }
    PyErr_Clear();
    int may_raise = seen == NULL || judgement > 0;
    if (seen != NULL && lasts) {
        Py_XSETREF(judged.filters, seen);
        judged.may_raise = may_raise;
    }
    else {
        Py_XDECREF(seen);
    }
    return may_raise;
}

NPY_NO_EXPORT int
npy_deferred_mask_may_raise(int errmask, PyObject *filters)
{
    int warns = 0;
    for (; errmask != 0; errmask >>= 3) {
        int mode = errmask & ERR_MODE;
        if (mode == ERR_RAISE || mode == ERR_CALL || mode == ERR_LOG) {
            return 1;
        }
        warns |= mode == ERR_WARN;
    }
    return warns && warnings_may_raise(filters);
}

static int reporting = 1;

NPY_NO_EXPORT int
npy_deferred_set_reporting(int report)
{
    int previous = reporting;
    reporting = report;
    return previous;
}

static const char *
operation_name(const npy_deferred_error *error)
{
    return error->node == NULL || error->copied
                   ? "cast"
                   : ufunc_get_name_cstr(error->node->ufunc);
}

/* In NumPy's order. */
static const struct {
    int status, shift;
    const char *text;
} categories[] = {
        {NPY_FPE_DIVIDEBYZERO, 0, "divide by zero"},
        {NPY_FPE_OVERFLOW, 3, "overflow"},
        {NPY_FPE_UNDERFLOW, 6, "underflow"},
        {NPY_FPE_INVALID, 9, "invalid value"},
};

/* What a call has reported it has for both of its outputs. */
static void
set_reported(npy_deferred_node *node, npy_uint64 reported, int is_reported)
{
    npy_deferred_node *nodes[2] = {node, node->twin};
    for (int i = 0; i < 2 && nodes[i] != NULL; i++) {
        nodes[i]->reported = is_reported ? nodes[i]->reported | reported
                                         : nodes[i]->reported & ~reported;
    }
}

/* Only warnings are ours: NumPy's own would point to the line of the reader. */
static int
report_error(const npy_deferred_error *error)
{
    static const npy_deferred_origin here = {NULL};
    const char *name = operation_name(error);
    const npy_deferred_origin *origin =
            error->node == NULL ? &here : &error->node->origin;
    for (size_t i = 0; i < sizeof(categories) / sizeof(*categories); i++) {
        int mask = error->errmask & (ERR_MODE << categories[i].shift);
        npy_uint64 reported = (npy_uint64)categories[i].status
                              << NPY_DEFERRED_FPE_BITS * error->copied;
        int result = 0;
        if (!(error->status & categories[i].status) ||
            (error->node != NULL && (error->node->reported & reported))) {
            continue;
        }
        /* Before, as a handler may read what has this operation in it too. */
        if (error->node != NULL) {
            set_reported(error->node, reported, 1);
        }
        if (mask == ERR_WARN << categories[i].shift) {
            char text[100];
            PyOS_snprintf(text, sizeof(text), "%s encountered in %s",
                          categories[i].text, name);
            result = npy_deferred_origin_warn(origin, text);
        }
        else {
            result = PyUFunc_handlefperr(name, mask, error->errfunc, error->status);
        }
        if (result < 0) {
            if (error->node != NULL) {
                set_reported(error->node, reported, 0);
            }
            npy_deferred_origin_note(origin, name);
            return -1;
        }
    }
    return 0;
}

NPY_NO_EXPORT int
npy_deferred_wanted_status(int errmask)
{
    int wanted = 0;
    for (size_t i = 0; i < sizeof(categories) / sizeof(*categories); i++) {
        if (errmask & (ERR_MODE << categories[i].shift)) {
            wanted |= categories[i].status;
        }
    }
    return wanted;
}

NPY_NO_EXPORT int
npy_deferred_report(npy_deferred_errors *errors)
{
    int result = 0;
    npy_deferred_calling_out++;
    for (int i = 0; reporting && i < errors->n && result == 0; i++) {
        result = report_error(&errors->items[i]);
        if (result < 0 && errors->items[i].node != NULL &&
            PyErr_ExceptionMatches(PyExc_Exception)) {
            /* Its own array need not tell of it again when the error state changes. */
            npy_deferred_set_failed(errors->items[i].node, 1);
        }
    }
    npy_deferred_calling_out--;
    npy_deferred_errors_clear(errors);
    return result;
}

NPY_NO_EXPORT void
npy_deferred_errors_clear(npy_deferred_errors *errors)
{
    for (int i = 0; i < errors->n; i++) {
        if (errors->items[i].node != NULL) {
            npy_deferred_node_decref(errors->items[i].node);
        }
        Py_DECREF(errors->items[i].errfunc);
    }
    errors->n = 0;
}
