// The header in C++, with the GIL and without a word of C.
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

static PyObject *
calculate(PyObject *, PyObject *arg)
{
    if (PyArray_CalculateDeferred(reinterpret_cast<PyArrayObject *>(arg)) == NPY_FAIL) {
        return nullptr;
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
        {"calculate", calculate, METH_O, nullptr},
        {nullptr, nullptr, 0, nullptr},
};

static struct PyModuleDef definition = {
        PyModuleDef_HEAD_INIT,
        "_cpp",
        nullptr,
        -1,
        methods,
        nullptr,
        nullptr,
        nullptr,
        nullptr,
};

PyMODINIT_FUNC
PyInit__cpp(void)
{
    import_array();
    return PyModule_Create(&definition);
}
