/*
 * What Python sees: the functions behind numpy.deferred, flags, and start-up.
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
#include "profile.h"
#include "progress.h"

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
enter_state(PyObject *NPY_UNUSED(module), PyObject *state)
{
    return npy_deferred_enter_state(state);
}

static PyObject *
begin_scope(PyObject *NPY_UNUSED(module), PyObject *NPY_UNUSED(noarg))
{
    return npy_deferred_begin_scope();
}

static PyObject *
calculate_scope(PyObject *NPY_UNUSED(module), PyObject *scope)
{
    if (!PyTuple_CheckExact(scope) || PyTuple_GET_SIZE(scope) != 3) {
        PyErr_SetString(PyExc_TypeError, "not a scope");
        return NULL;
    }
    if (npy_deferred_calculate_scope(scope) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
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
        PyArrayObject *const *arrays = (PyArrayObject *const *)args;
        Py_ssize_t others = PyArray_MIN(nargs - i - 1, NPY_DEFERRED_SWEEP_LOOKS);
        npy_deferred_because = NPY_DEFERRED_WHY_CALL;
        int result =
                npy_deferred_calculate_with(arrays[i], &arrays[i + 1], (int)others);
        npy_deferred_because = NPY_DEFERRED_WHY_READ;
        if (result < 0) {
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

/*
 * The argument is None, or the class of the exception that ends the block.  Eager
 * NumPy stops at the first FloatingPointError: another does not take its place.
 */
static PyObject *
before_errstate(PyObject *NPY_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (npy_deferred_before_errstate() == 0) {
        Py_RETURN_NONE;
    }
    if (nargs == 0 || args[0] == Py_None ||
        !PyErr_GivenExceptionMatches(args[0], PyExc_FloatingPointError) ||
        !PyErr_ExceptionMatches(PyExc_FloatingPointError)) {
        return NULL;
    }
    PyErr_Clear();
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
explain(PyObject *NPY_UNUSED(module), PyObject *arg)
{
    if (!PyArray_Check(arg)) {
        PyErr_Format(PyExc_TypeError, "expected an ndarray, not %.100s",
                     Py_TYPE(arg)->tp_name);
        return NULL;
    }
    return npy_deferred_explain((PyArrayObject *)arg);
}

/* (list of calculations, dict of counts, how names of NumPy's files begin) */
static PyObject *
start_profile(PyObject *NPY_UNUSED(module), PyObject *args)
{
    PyObject *events, *counts, *own_files;
    if (!PyArg_ParseTuple(args, "O!O!U", &PyList_Type, &events, &PyDict_Type, &counts,
                          &own_files) ||
        npy_deferred_profile_start(events, counts, own_files) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
stop_profile(PyObject *NPY_UNUSED(module), PyObject *events)
{
    npy_deferred_profile_stop(events);
    Py_RETURN_NONE;
}

/* (file descriptor, nanoseconds, the helper's argv or None): returns what it was. */
static PyObject *
set_progress(PyObject *NPY_UNUSED(module), PyObject *args)
{
    npy_deferred_progress_settings before = npy_deferred_show_progress;
    int file;
    long long delay;
    PyObject *helper = Py_None;
    if (!PyArg_ParseTuple(args, "iL|O", &file, &delay, &helper)) {
        return NULL;
    }
    if (helper != Py_None && !PyTuple_CheckExact(helper)) {
        PyErr_SetString(PyExc_TypeError, "a helper must be a tuple of bytes");
        return NULL;
    }
    npy_deferred_show_progress.file = file;
    npy_deferred_show_progress.delay = delay;
    npy_deferred_show_progress.helper = helper == Py_None ? NULL : Py_NewRef(helper);
    return Py_BuildValue("(iLN)", before.file, (long long)before.delay,
                         before.helper == NULL ? Py_NewRef(Py_None) : before.helper);
}

static PyObject *
get_memory_limit(PyObject *NPY_UNUSED(module), PyObject *NPY_UNUSED(noarg))
{
    return PyLong_FromSsize_t(npy_deferred_memory_limit);
}

static PyObject *
get_cache_limit(PyObject *NPY_UNUSED(module), PyObject *NPY_UNUSED(noarg))
{
    return PyLong_FromSsize_t(npy_deferred_cache_limit);
}

static PyObject *
get_protect_limit(PyObject *NPY_UNUSED(module), PyObject *NPY_UNUSED(noarg))
{
    if (npy_deferred_look_at_neighbours() < 0) {
        return NULL;
    }
    return PyLong_FromSsize_t(npy_deferred_protect_limit);
}

/* Returns what the limit was, as a Python integer; or NULL with an exception set. */
static PyObject *
change_limit(npy_intp *limit, PyObject *arg, const char *name)
{
    npy_intp nbytes = PyNumber_AsSsize_t(arg, PyExc_OverflowError);
    if (nbytes == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (nbytes < 0) {
        return PyErr_Format(PyExc_ValueError,
                            "the %s limit must be a number of bytes, not %zd", name,
                            nbytes);
    }
    PyObject *previous = PyLong_FromSsize_t(*limit);
    if (previous != NULL) {
        *limit = nbytes;
    }
    return previous;
}

static PyObject *
set_memory_limit(PyObject *NPY_UNUSED(module), PyObject *arg)
{
    PyObject *previous = change_limit(&npy_deferred_memory_limit, arg, "memory");
    if (previous != NULL && npy_deferred_limit_total_memory() < 0) {
        Py_CLEAR(previous);
    }
    return previous;
}

static PyObject *
set_cache_limit(PyObject *NPY_UNUSED(module), PyObject *arg)
{
    PyObject *previous = change_limit(&npy_deferred_cache_limit, arg, "cache");
    if (previous != NULL) {
        npy_deferred_limit_cache();
    }
    return previous;
}

static PyObject *
set_protect_limit(PyObject *NPY_UNUSED(module), PyObject *arg)
{
    if (npy_deferred_look_at_neighbours() < 0) {
        return NULL;
    }
    PyObject *previous = change_limit(&npy_deferred_protect_limit, arg, "protect");
    if (previous != NULL) {
        npy_deferred_choose_protection();
    }
    return previous;
}

/* For tests: from how much work on the GIL is given up; returns what it was. */
static PyObject *
set_gil_worth(PyObject *NPY_UNUSED(module), PyObject *arg)
{
    return change_limit(&npy_deferred_gil_worth, arg, "GIL");
}

static PyObject *
set_code_worth(PyObject *NPY_UNUSED(module), PyObject *arg)
{
    return change_limit(&npy_deferred_code_worth, arg, "machine code");
}

static PyObject *
get_num_threads(PyObject *NPY_UNUSED(module), PyObject *NPY_UNUSED(noarg))
{
    return PyLong_FromLong(npy_deferred_get_num_threads());
}

static PyObject *
set_num_threads(PyObject *NPY_UNUSED(module), PyObject *arg)
{
    npy_intp n = PyNumber_AsSsize_t(arg, PyExc_OverflowError);
    if (n == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (n < 1) {
        PyErr_Format(PyExc_ValueError,
                     "the number of threads must be at least 1, not %zd", n);
        return NULL;
    }
    int previous = npy_deferred_get_num_threads();
    npy_deferred_set_num_threads(n);
    return PyLong_FromLong(previous);
}

static PyObject *
stats(PyObject *NPY_UNUSED(module), PyObject *NPY_UNUSED(noarg))
{
    const npy_deferred_counters *counters = &npy_deferred_stats;
    return Py_BuildValue("{sn sn sn sn sn sn sn sn sn sn sn sn sn}", "pending",
                         npy_deferred_npending, "held", npy_deferred_total_held_bytes(),
                         "cached", npy_deferred_cached_bytes(), "captured",
                         counters->captured, "exposed", counters->exposed, "calculated",
                         counters->calculated, "fused", counters->fused, "reduced",
                         counters->reduced, "together", counters->together, "released",
                         counters->released, "flushed", counters->flushed, "late",
                         counters->late, "compiled", counters->compiled);
}

/* The marks that ndarray.flags shows; a flags object of no array has none. */
static const struct {
    const char *name;
    int flag;
} marks[] = {
        {"DEFERRED", NPY_ARRAY_DEFERRED},
        {"DEFERRED_WASWRITEABLE", NPY_ARRAY_DEFERRED_WASWRITEABLE},
};
enum {
    NMARKS = sizeof(marks) / sizeof(marks[0])
};

static int
has_mark(PyObject *arr, int flag)
{
    return arr != NULL && PyArray_CHKFLAGS((PyArrayObject *)arr, flag);
}

static int
is_name(PyObject *key, const char *name)
{
    if (PyUnicode_Check(key)) {
        return PyUnicode_CompareWithASCIIString(key, name) == 0;
    }
    return PyBytes_Check(key) && strcmp(PyBytes_AS_STRING(key), name) == 0;
}

NPY_NO_EXPORT PyObject *
npy_deferred_flags_item(PyObject *arr, PyObject *key)
{
    for (int i = 0; i < NMARKS; i++) {
        if (is_name(key, marks[i].name)) {
            return PyBool_FromLong(has_mark(arr, marks[i].flag));
        }
    }
    PyErr_SetString(PyExc_KeyError, "Unknown flag");
    return NULL;
}

NPY_NO_EXPORT PyObject *
npy_deferred_flags_text(PyObject *arr, PyObject *text)
{
    if (!has_mark(arr, NPY_ARRAY_DEFERRED) &&
        !has_mark(arr, NPY_ARRAY_DEFERRED_WASWRITEABLE)) {
        return text;
    }
    for (int i = 0; i < NMARKS && text != NULL; i++) {
        PyObject *longer =
                PyUnicode_FromFormat("%U  %s : %s\n", text, marks[i].name,
                                     has_mark(arr, marks[i].flag) ? "True" : "False");
        Py_SETREF(text, longer);
    }
    return text;
}

static PyMethodDef methods[] = {
        {"_deferred_set_state", set_state, METH_O, NULL},
        {"_deferred_get_state", get_state, METH_NOARGS, NULL},
        {"_deferred_enter_state", enter_state, METH_O, NULL},
        {"_deferred_begin_scope", begin_scope, METH_NOARGS, NULL},
        {"_deferred_calculate_scope", calculate_scope, METH_O, NULL},
        {"_deferred_calculate", (PyCFunction)(void (*)(void))calculate, METH_FASTCALL,
         NULL},
        {"_deferred_calculate_all", calculate_all, METH_NOARGS, NULL},
        {"_deferred_before_errstate", (PyCFunction)(void (*)(void))before_errstate,
         METH_FASTCALL, NULL},
        {"_deferred_usage_count", usage_count, METH_O, NULL},
        {"_deferred_explain", explain, METH_O, NULL},
        {"_deferred_start_profile", start_profile, METH_VARARGS, NULL},
        {"_deferred_stop_profile", stop_profile, METH_O, NULL},
        {"_deferred_set_progress", set_progress, METH_VARARGS, NULL},
        {"_deferred_get_memory_limit", get_memory_limit, METH_NOARGS, NULL},
        {"_deferred_set_memory_limit", set_memory_limit, METH_O, NULL},
        {"_deferred_get_cache_limit", get_cache_limit, METH_NOARGS, NULL},
        {"_deferred_set_cache_limit", set_cache_limit, METH_O, NULL},
        {"_deferred_get_protect_limit", get_protect_limit, METH_NOARGS, NULL},
        {"_deferred_set_code_worth", set_code_worth, METH_O, NULL},
        {"_deferred_set_gil_worth", set_gil_worth, METH_O, NULL},
        {"_deferred_set_protect_limit", set_protect_limit, METH_O, NULL},
        {"_deferred_get_num_threads", get_num_threads, METH_NOARGS, NULL},
        {"_deferred_set_num_threads", set_num_threads, METH_O, NULL},
        {"_deferred_stats", stats, METH_NOARGS, NULL},
        {NULL, NULL, 0, NULL},
};

NPY_NO_EXPORT int
npy_deferred_init(PyObject *module)
{
    if (npy_deferred_state_init(module) < 0 || npy_deferred_scope_init(module) < 0 ||
        npy_deferred_origin_init() < 0 || npy_deferred_memory_init() < 0 ||
        npy_deferred_where_init() < 0 ||
        npy_deferred_tile_operations_init(module) < 0 || npy_deferred_gil_init() < 0 ||
        npy_deferred_capi_init(module) < 0) {
        return -1;
    }
    npy_deferred_threads_init(module);
    return PyModule_AddFunctions(module, methods);
}
