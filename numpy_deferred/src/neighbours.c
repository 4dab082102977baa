/*
 * Neighbours: libraries in this process that write into arrays which they were handed,
 * through addresses that they take out of the array structure, and ask nobody.
 *
 * protect.c sees such writes, but it costs much for small operands, so that it is not
 * done for all of them.  Where one of these libraries has been imported:
 *
 * - What calls compiled functions by a type of its own (Numba) has the slot of that
 *   type replaced: its arguments, whose addresses it may keep, and what is pending are
 *   calculated first.
 * - What keeps arrays, or is called by functions like any other (PyTorch, OpenCV), has
 *   all operands protected, and what is too small to be worth that is not deferred,
 *   unless somebody has chosen what to protect (npy_deferred_choose_protection), or
 *   what is small (NUMPY_DEFERRED_MIN_BYTES).
 *
 * Any of them calls import_array, which capi.c notes here; the next capture looks who
 * it was.  All of it is guarded by the GIL.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "deferred.h"

/* Modules of libraries that keep arrays or write to their arguments. */
static const char *const writers[] = {"torch", "cv2"};

/* A type whose instances call compiled functions, by its module and name. */
static const char *const caller[] = {"numba._dispatcher", "Dispatcher"};

/* From here on NumPy asks for huge pages, which cost little to protect. */
#define MIN_PROTECTED_BYTES ((npy_intp)4 << 20)

NPY_NO_EXPORT int npy_deferred_neighbours_came = 1;
NPY_NO_EXPORT npy_intp npy_deferred_min_protected_bytes = 0;

static int protection_is_chosen = 0;

NPY_NO_EXPORT void
npy_deferred_choose_protection(void)
{
    protection_is_chosen = 1;
    npy_deferred_min_protected_bytes = 0;
}

static void
protect_all(void)
{
    if (!protection_is_chosen) {
        npy_deferred_protect_limit = 0;
        npy_deferred_min_protected_bytes =
                npy_deferred_min_bytes_chosen ? 0 : MIN_PROTECTED_BYTES;
    }
}

/* ---- calls ---- */

/* What the slot was; NULL until it has been replaced. */
static ternaryfunc call_compiled = NULL;

static PyObject *
calculate_and_call(PyObject *self, PyObject *args, PyObject *kwargs)
{
    /* Their addresses are not to change afterwards; errors have somebody to go to. */
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args); i++) {
        if (npy_deferred_calculate_object(PyTuple_GET_ITEM(args, i)) < 0) {
            return NULL;
        }
    }
    npy_deferred_before_unseen_writes();
    return call_compiled(self, args, kwargs);
}

/* In the type and in those derived from it that have not another.  0, or -1: error. */
static int
replace_slot(PyTypeObject *type)
{
    if (type->tp_call == call_compiled) {
        type->tp_call = calculate_and_call;
    }
    PyObject *derived = PyObject_CallMethod((PyObject *)type, "__subclasses__", NULL);
    if (derived == NULL) {
        return -1;
    }
    int result = 0;
    for (Py_ssize_t i = 0; result == 0 && i < PyList_GET_SIZE(derived); i++) {
        result = replace_slot((PyTypeObject *)PyList_GET_ITEM(derived, i));
    }
    Py_DECREF(derived);
    return result;
}

/* Returns 1; 0 when the type is not as expected; or -1 with an exception set. */
static int
see_calls(PyObject *object)
{
    if (!PyType_Check(object)) {
        return 0;
    }
    PyTypeObject *type = (PyTypeObject *)object;
    PyObject *slot = PyObject_GetAttrString(object, "__call__");
    if (slot == NULL) {
        return -1;
    }
    /* Types to be derived from it, and who calls it by name, take it from there. */
    PyWrapperDescrObject *wrapper = (PyWrapperDescrObject *)slot;
    int known = type->tp_call != NULL &&
                !PyType_HasFeature(type, Py_TPFLAGS_HAVE_VECTORCALL) &&
                Py_IS_TYPE(slot, &PyWrapperDescr_Type) &&
                wrapper->d_wrapped == (void *)type->tp_call;
    if (known) {
        call_compiled = type->tp_call;
        wrapper->d_wrapped = (void *)calculate_and_call;
        if (replace_slot(type) < 0) {
            known = -1;
            protect_all(); /* for those that have not been reached */
        }
    }
    Py_DECREF(slot);
    return known;
}

/* ---- who is there ---- */

/* `*module` is a module that has been imported (borrowed), or NULL.  0, or -1: error.
 */
static int
imported(const char *name, PyObject **module)
{
    PyObject *key = PyUnicode_FromString(name);
    if (key == NULL) {
        return -1;
    }
    *module = PyDict_GetItemWithError(PyImport_GetModuleDict(), key);
    Py_DECREF(key);
    return *module == NULL && PyErr_Occurred() ? -1 : 0;
}

/* Returns 0 or -1. */
static int
look_for_caller(void)
{
    PyObject *module;
    if (imported(caller[0], &module) < 0) {
        return -1;
    }
    if (call_compiled != NULL || module == NULL) {
        return 0;
    }
    PyObject *type = PyObject_GetAttrString(module, caller[1]);
    int seen = type == NULL ? -1 : see_calls(type);
    Py_XDECREF(type);
    if (seen < 0 && PyErr_ExceptionMatches(PyExc_MemoryError)) {
        return -1;
    }
    if (seen != 1) {
        PyErr_Clear();
        protect_all();
    }
    return 0;
}

NPY_NO_EXPORT int
npy_deferred_look_at_neighbours(void)
{
    for (size_t i = 0; i < sizeof(writers) / sizeof(writers[0]); i++) {
        PyObject *module;
        if (imported(writers[i], &module) < 0) {
            return -1;
        }
        if (module != NULL) {
            protect_all();
        }
    }
    if (look_for_caller() < 0) {
        return -1;
    }
    npy_deferred_neighbours_came = 0;
    return 0;
}
