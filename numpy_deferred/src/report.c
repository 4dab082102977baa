/*
 * Floating-point errors of deferred operations: warn, raise, call, print, log.
 *
 * Each node has the error state of the moment its operation was written.  An
 * evaluation collects what was raised per operation in `npy_deferred_errors`,
 * which owns references to all it needs, so that reporting can run arbitrary
 * code (warning filters, handlers of seterrcall) after the plan is gone.
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
#include "ufunc_object.h"

NPY_NO_EXPORT PyObject *
npy_deferred_current_errfunc(int *errmask)
{
    npy_extobj extobj;
    if (fetch_curr_extobj_state(&extobj) < 0) {
        return NULL;
    }
    if (errmask != NULL) {
        *errmask = extobj.errmask;
    }
    return extobj.pyfunc;
}

NPY_NO_EXPORT int
npy_deferred_mask_may_raise(int errmask)
{
    /* Three bits a category: see the UFUNC_ERR_ constants of extobj.c. */
    for (; errmask != 0; errmask >>= 3) {
        int mode = errmask & 7;
        if (mode == 2 || mode == 3) {
            return 1;
        }
    }
    return 0;
}

static int reporting = 1;

NPY_NO_EXPORT int
npy_deferred_set_reporting(int report)
{
    int previous = reporting;
    reporting = report;
    return previous;
}

NPY_NO_EXPORT int
npy_deferred_report(npy_deferred_errors *errors)
{
    int result = 0;
    for (int i = 0; reporting && i < errors->n; i++) {
        npy_deferred_error *error = &errors->items[i];
        const char *name =
                error->ufunc == NULL ? "cast" : ufunc_get_name_cstr(error->ufunc);
        if (result == 0) {
            result = PyUFunc_handlefperr(name, error->errmask, error->errfunc,
                                         error->status);
        }
    }
    npy_deferred_errors_clear(errors);
    return result;
}

NPY_NO_EXPORT void
npy_deferred_errors_clear(npy_deferred_errors *errors)
{
    for (int i = 0; i < errors->n; i++) {
        Py_XDECREF(errors->items[i].ufunc);
        Py_XDECREF(errors->items[i].errfunc);
    }
    errors->n = 0;
}
