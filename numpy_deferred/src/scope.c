/*
 * Scopes: np.begin_defer, np.end_defer and np.deferral, which calculate at the
 * end what was deferred since the beginning.
 *
 * The innermost scope lies in a context variable, as the deferred state does, so
 * threads and asyncio tasks have their own.  A node refers to the scope that it
 * was deferred in; others that are pending, of other threads above all, are
 * none of the scope's business.
 *
 * A scope is a tuple that nobody changes: the scope around it or None, the
 * deferred state before it, and the last serial before it.  Python's part
 * (../python/_deferredstate.py) enters and leaves scopes.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "deferred.h"

static PyObject *scope_variable = NULL; /* owned, immortal */
/* Whether there was ever a scope, so that the variable need be looked at. */
static int scopes_used = 0;

NPY_NO_EXPORT int
npy_deferred_scope_init(PyObject *module)
{
    scope_variable = PyContextVar_New("numpy.deferral", Py_None);
    if (scope_variable == NULL) {
        return -1;
    }
    return PyModule_AddObjectRef(module, "_deferred_scope", scope_variable);
}

NPY_NO_EXPORT PyObject *
npy_deferred_current_scope(void)
{
    PyObject *scope;
    if (!scopes_used) {
        Py_RETURN_NONE;
    }
    if (PyContextVar_Get(scope_variable, NULL, &scope) < 0) {
        return NULL;
    }
    return scope;
}

NPY_NO_EXPORT PyObject *
npy_deferred_new_scope(npy_uint64 last_serial)
{
    PyObject *outer = npy_deferred_current_scope();
    if (outer == NULL) {
        return NULL;
    }
    PyObject *state = npy_deferred_get_state();
    if (state == NULL) {
        Py_DECREF(outer);
        return NULL;
    }
    scopes_used = 1;
    return Py_BuildValue("NNK", outer, state, (unsigned long long)last_serial);
}

NPY_NO_EXPORT npy_uint64
npy_deferred_scope_start(PyObject *scope)
{
    return PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(scope, 2));
}

NPY_NO_EXPORT int
npy_deferred_in_scope(npy_deferred_node *node, PyObject *scope)
{
    PyObject *around = node->scope;
    while (around != scope && around != Py_None) {
        around = PyTuple_GET_ITEM(around, 0);
    }
    return around == scope;
}
