/* Shared by the two sources of _capi, as extensions of several files do it. */
#ifndef DEFERRED_TESTS_CAPI_H_
#define DEFERRED_TESTS_CAPI_H_

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL deferred_capi_tests_ARRAY_API
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

/* Adds what _capi_calls.c defines.  Returns 0 or -1. */
int
add_calls(PyObject *module);

#endif
