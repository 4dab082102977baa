/*
 * Origins: where a deferred operation was written, so that a warning points
 * there, and not to the line that happens to need the values.
 *
 * An origin owns references to the code object of the calling frame and to the
 * name of its module.  It owns neither frame nor globals: these hold the
 * user's arrays, and as arrays are not tracked by the garbage collector, such
 * a cycle would live for ever.  The line is only looked up when it is needed.
 *
 * It also owns what decides whom a warning reaches: a warning belongs to the
 * `warnings.catch_warnings` block in which the operation was written, though
 * that has ended.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "deferred.h"

static struct {
    PyObject *name, *registry; /* "__name__", "__warningregistry__" */
    PyObject *module;          /* the dict of the module warnings */
    PyObject *warnings[NPY_DEFERRED_NWARNINGS];
} immortal;

/*
 * What was found in dictionaries that have not changed since, which keep it alive:
 * looking takes longer than all else that an origin does.
 */
static struct {
    npy_uint64 of_module, of_globals; /* the versions in which it was found */
    PyObject *warnings[NPY_DEFERRED_NWARNINGS], *module; /* borrowed */
} found;

/* A number that no other dictionary has, and this one only as it is; 0: unknown. */
static inline npy_uint64
version_of(PyObject *dict)
{
#if PY_VERSION_HEX < 0x030E0000
#    if defined(__GNUC__)
#        pragma GCC diagnostic push
#        pragma GCC diagnostic ignored "-Wdeprecated-declarations"
#    endif
    return ((PyDictObject *)dict)->ma_version_tag;
#    if defined(__GNUC__)
#        pragma GCC diagnostic pop
#    endif
#else
    return 0;
#endif
}

NPY_NO_EXPORT int
npy_deferred_origin_init(void)
{
    static const char *const names[] = {"filters", "showwarning", "_showwarnmsg_impl"};
    immortal.name = PyUnicode_InternFromString("__name__");
    immortal.registry = PyUnicode_InternFromString("__warningregistry__");
    for (int i = 0; i < NPY_DEFERRED_NWARNINGS; i++) {
        immortal.warnings[i] = PyUnicode_InternFromString(names[i]);
        if (immortal.warnings[i] == NULL) {
            return -1;
        }
    }
    PyObject *module = PyImport_ImportModule("warnings");
    if (module == NULL) {
        return -1;
    }
    immortal.module = Py_NewRef(PyModule_GetDict(module));
    Py_DECREF(module);
    return immortal.name == NULL || immortal.registry == NULL ? -1 : 0;
}

/* Borrowed; NULL where there is no such attribute. */
static PyObject *
current_warnings(int i)
{
    PyObject *value = PyDict_GetItemWithError(immortal.module, immortal.warnings[i]);
    if (value == NULL) {
        PyErr_Clear();
    }
    return value;
}

/* Borrowed; NULL where it has none. */
static PyObject *
module_of(PyObject *globals)
{
    npy_uint64 version = version_of(globals);
    if (version == 0 || version != found.of_globals) {
        found.module = PyDict_GetItemWithError(globals, immortal.name);
        found.of_globals = version;
        if (found.module == NULL) {
            PyErr_Clear();
            found.of_globals = 0;
        }
    }
    return found.module;
}

static void
find_warnings(void)
{
    npy_uint64 version = version_of(immortal.module);
    if (version == 0 || version != found.of_module) {
        for (int i = 0; i < NPY_DEFERRED_NWARNINGS; i++) {
            found.warnings[i] = current_warnings(i);
        }
        found.of_module = version;
    }
}

NPY_NO_EXPORT void
npy_deferred_origin_set(npy_deferred_origin *origin)
{
    PyFrameObject *frame = PyEval_GetFrame();
    if (frame == NULL) {
        return;
    }
    origin->code = PyFrame_GetCode(frame);
    origin->instruction = PyFrame_GetLasti(frame);
    PyObject *globals = PyEval_GetGlobals();
    origin->globals = globals;
    origin->module = Py_XNewRef(module_of(globals));
    find_warnings();
    for (int i = 0; i < NPY_DEFERRED_NWARNINGS; i++) {
        origin->warnings[i] = Py_XNewRef(found.warnings[i]);
    }
}

NPY_NO_EXPORT void
npy_deferred_origin_clear(npy_deferred_origin *origin)
{
    Py_CLEAR(origin->code);
    Py_CLEAR(origin->module);
    for (int i = 0; i < NPY_DEFERRED_NWARNINGS; i++) {
        Py_CLEAR(origin->warnings[i]);
    }
}

static int
line_of(const npy_deferred_origin *origin)
{
    return PyCode_Addr2Line(origin->code, origin->instruction);
}

NPY_NO_EXPORT PyObject *
npy_deferred_origin_text(const npy_deferred_origin *origin)
{
    if (origin->code == NULL) {
        return PyUnicode_FromString("a place that is not known");
    }
    return PyUnicode_FromFormat("%U, line %d", origin->code->co_filename,
                                line_of(origin));
}

/*
 * What keeps a warning from being shown twice for a line: new reference, or
 * NULL where the globals cannot be had.  Code that was run by exec() in a
 * namespace of its own is such a case: its warnings are shown each time.
 */
static PyObject *
warning_registry(const npy_deferred_origin *origin)
{
    PyObject *module = origin->module == NULL || !PyUnicode_Check(origin->module)
                               ? NULL
                               : PyImport_GetModule(origin->module);
    if (module == NULL || !PyModule_Check(module) ||
        PyModule_GetDict(module) != origin->globals) {
        Py_XDECREF(module);
        return NULL;
    }
    PyObject *globals = PyModule_GetDict(module);
    PyObject *registry =
            Py_XNewRef(PyDict_GetItemWithError(globals, immortal.registry));
    if (registry == NULL && !PyErr_Occurred()) {
        registry = PyDict_New();
        if (registry != NULL &&
            PyDict_SetItem(globals, immortal.registry, registry) < 0) {
            Py_CLEAR(registry);
        }
    }
    Py_DECREF(module);
    return registry;
}

/* Whether warnings go elsewhere now. */
static int
among_others(const npy_deferred_origin *origin)
{
    for (int i = 0; i < NPY_DEFERRED_NWARNINGS; i++) {
        if (origin->warnings[i] != current_warnings(i)) {
            return 1;
        }
    }
    return 0;
}

static PyObject *
or_none(PyObject *object)
{
    return object == NULL ? Py_None : object;
}

static int
warn_there(const npy_deferred_origin *origin, PyObject *message, PyObject *registry)
{
    PyObject *result = NULL;
    PyObject *module = PyImport_ImportModule("numpy._core._deferredstate");
    if (module != NULL) {
        result =
                PyObject_CallMethod(module, "_warn", "OOOOOiOO",
                                    or_none(origin->warnings[NPY_DEFERRED_FILTERS]),
                                    or_none(origin->warnings[NPY_DEFERRED_SHOWWARNING]),
                                    or_none(origin->warnings[NPY_DEFERRED_SHOWWARNMSG]),
                                    message, origin->code->co_filename, line_of(origin),
                                    or_none(origin->module), or_none(registry));
        Py_DECREF(module);
    }
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

NPY_NO_EXPORT int
npy_deferred_origin_warn(const npy_deferred_origin *origin, const char *text)
{
    if (origin->code == NULL) {
        return PyErr_WarnEx(PyExc_RuntimeWarning, text, 1);
    }
    PyObject *registry = warning_registry(origin);
    if (registry == NULL && PyErr_Occurred()) {
        return -1;
    }
    int result = -1;
    PyObject *message = PyUnicode_FromString(text);
    if (message != NULL && among_others(origin)) {
        result = warn_there(origin, message, registry);
    }
    else if (message != NULL) {
        result = PyErr_WarnExplicitObject(PyExc_RuntimeWarning, message,
                                          origin->code->co_filename, line_of(origin),
                                          origin->module, registry);
    }
    Py_XDECREF(message);
    Py_XDECREF(registry);
    return result;
}

static int
is_here(const npy_deferred_origin *origin)
{
    npy_deferred_origin here = {NULL};
    npy_deferred_origin_set(&here);
    int same = here.code == origin->code && line_of(&here) == line_of(origin);
    npy_deferred_origin_clear(&here);
    return same;
}

NPY_NO_EXPORT void
npy_deferred_origin_note(const npy_deferred_origin *origin, const char *operation)
{
    PyObject *type, *value, *traceback;
    if (origin->code == NULL) {
        return;
    }
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (!is_here(origin)) {
        PyObject *note = PyUnicode_FromFormat(
                "the deferred operation, %s, was written in %U, "
                "line %d",
                operation, origin->code->co_filename, line_of(origin));
        PyObject *done =
                note == NULL ? NULL : PyObject_CallMethod(value, "add_note", "O", note);
        Py_XDECREF(note);
        Py_XDECREF(done);
        /* The exception is what matters; it can do without. */
        PyErr_Clear();
    }
    PyErr_Restore(type, value, traceback);
}
