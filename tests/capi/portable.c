/*
 * One source for any NumPy: with our headers it calls the C API of deferred
 * evaluation, with stock NumPy's it cannot.  Compiled either way it runs on
 * either.
 */
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#ifndef MODULE
#    define MODULE _portable
#endif

/* Reads the values as extensions have always done. */
static PyObject *
sum(PyObject *Py_UNUSED(module), PyObject *arg)
{
    PyArrayObject *arr =
            (PyArrayObject *)PyArray_FROM_OTF(arg, NPY_DOUBLE, NPY_ARRAY_IN_ARRAY);
    if (arr == NULL) {
        return NULL;
    }
    double total = 0;
    const double *data = (const double *)PyArray_DATA(arr);
    for (npy_intp i = 0; i < PyArray_SIZE(arr); i++) {
        total += data[i];
    }
    Py_DECREF(arr);
    return PyFloat_FromDouble(total);
}

/* Adds 1 in place, by way of a copy where one is needed. */
static PyObject *
increment(PyObject *Py_UNUSED(module), PyObject *arg)
{
    PyArrayObject *arr =
            (PyArrayObject *)PyArray_FROM_OTF(arg, NPY_DOUBLE, NPY_ARRAY_INOUT_ARRAY2);
    if (arr == NULL) {
        return NULL;
    }
    double *data = (double *)PyArray_DATA(arr);
    for (npy_intp i = 0; i < PyArray_SIZE(arr); i++) {
        data[i] += 1;
    }
    int resolved = PyArray_ResolveWritebackIfCopy(arr);
    Py_DECREF(arr);
    return resolved < 0 ? NULL : PyLong_FromLong(resolved);
}

/* As above, but changes its mind: this one is inlined into the extension. */
static PyObject *
discard(PyObject *Py_UNUSED(module), PyObject *arg)
{
    PyArrayObject *arr =
            (PyArrayObject *)PyArray_FROM_OTF(arg, NPY_DOUBLE, NPY_ARRAY_INOUT_ARRAY2);
    if (arr == NULL) {
        return NULL;
    }
    PyArray_DiscardWritebackIfCopy(arr);
    Py_DECREF(arr);
    Py_RETURN_NONE;
}

#ifdef NPY_DEFERRED_API_VERSION
static PyObject *
none_unless(int failed)
{
    if (failed) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
version(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(noarg))
{
    int number = PyArray_GetDeferredAPIVersion();
    return number < 0 ? NULL : PyLong_FromLong(number);
}

static PyObject *
calculate_all(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(noarg))
{
    return none_unless(PyArray_CalculateAllDeferred() == NPY_FAIL);
}

static PyObject *
calculate(PyObject *Py_UNUSED(module), PyObject *arg)
{
    return none_unless(PyArray_CalculateDeferred((PyArrayObject *)arg) == NPY_FAIL);
}

static PyObject *
assign(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *arr, *out;
    if (!PyArg_ParseTuple(args, "OO", &arr, &out)) {
        return NULL;
    }
    return none_unless(PyArray_CalculateDeferredAssignment(
                               (PyArrayObject *)arr, (PyArrayObject *)out) == NPY_FAIL);
}

static PyObject *
usage_count(PyObject *Py_UNUSED(module), PyObject *arg)
{
    int count = PyArray_GetDeferredUsageCount((PyArrayObject *)arg);
    return count < 0 ? NULL : PyLong_FromLong(count);
}
#endif

static PyMethodDef methods[] = {
        {"sum", sum, METH_O, NULL},
        {"increment", increment, METH_O, NULL},
        {"discard", discard, METH_O, NULL},
#ifdef NPY_DEFERRED_API_VERSION
        {"version", version, METH_NOARGS, NULL},
        {"calculate_all", calculate_all, METH_NOARGS, NULL},
        {"calculate", calculate, METH_O, NULL},
        {"assign", assign, METH_VARARGS, NULL},
        {"usage_count", usage_count, METH_O, NULL},
#endif
        {NULL, NULL, 0, NULL},
};

#define STRING(x) #x
#define NAME(module) STRING(module)
#define JOIN(x, y) x##y
#define INIT(module) JOIN(PyInit_, module)

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = NAME(MODULE),
                                        .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC
INIT(MODULE)(void)
{
    import_array();
    return PyModule_Create(&definition);
}
