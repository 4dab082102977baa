/*
 * What Python sees: the functions behind numpy.deferred, and start-up.
 *
 * They are private attributes of `_multiarray_umath`; their public faces, with
 * documentation, are in ../python/deferred.py.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "deferred.h"

static PyObject *
set_state(PyObject *NPY_UNUSED(module), PyObject *state)
{
    return npy_deferred_set_state(state);
}

static PyObject *
get_state(PyObject *NPY_UNUSED(module), PyObject *NPY_UNUSED(noarg))
{
    return npy_deferred_get_state();
}

static PyObject *
calculate(PyObject *NPY_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    for (Py_ssize_t i = 0; i < nargs; i++) {
        if (!PyArray_Check(args[i])) {
            PyErr_Format(PyExc_TypeError, "argument %zd must be an ndarray, not %.100s",
                         i + 1, Py_TYPE(args[i])->tp_name);
            return NULL;
        }
    }
    for (Py_ssize_t i = 0; i < nargs; i++) {
        if (npy_deferred_calculate((PyArrayObject *)args[i]) < 0) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

static PyObject *
calculate_all(PyObject *NPY_UNUSED(module), PyObject *NPY_UNUSED(noarg))
{
    if (npy_deferred_calculate_all() < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
before_errstate(PyObject *NPY_UNUSED(module), PyObject *NPY_UNUSED(noarg))
{
    if (npy_deferred_before_errstate() < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
usage_count(PyObject *NPY_UNUSED(module), PyObject *arg)
{
    if (!PyArray_Check(arg)) {
        PyErr_Format(PyExc_TypeError, "expected an ndarray, not %.100s",
                     Py_TYPE(arg)->tp_name);
        return NULL;
    }
    npy_deferred_usage *usage = npy_deferred_find_usage((PyArrayObject *)arg);
    return PyLong_FromSsize_t(usage == NULL ? 0 : usage->count);
}

static PyObject *
stats(PyObject *NPY_UNUSED(module), PyObject *NPY_UNUSED(noarg))
{
    const npy_deferred_counters *counters = &npy_deferred_stats;
    return Py_BuildValue("{sn sn sn sn sn sn sn}", "pending", npy_deferred_npending,
                         "captured", counters->captured, "calculated",
                         counters->calculated, "fused", counters->fused, "released",
                         counters->released, "flushed", counters->flushed, "late",
                         counters->late);
}

static PyMethodDef methods[] = {
        {"_deferred_set_state", set_state, METH_O, NULL},
        {"_deferred_get_state", get_state, METH_NOARGS, NULL},
        {"_deferred_calculate", (PyCFunction)(void (*)(void))calculate, METH_FASTCALL,
         NULL},
        {"_deferred_calculate_all", calculate_all, METH_NOARGS, NULL},
        {"_deferred_before_errstate", before_errstate, METH_NOARGS, NULL},
        {"_deferred_usage_count", usage_count, METH_O, NULL},
        {"_deferred_stats", stats, METH_NOARGS, NULL},
        {NULL, NULL, 0, NULL},
};

NPY_NO_EXPORT int
npy_deferred_init(PyObject *module)
{
    if (npy_deferred_state_init() < 0 || npy_deferred_capi_init(module) < 0) {
        return -1;
    }
    return PyModule_AddFunctions(module, methods);
}
