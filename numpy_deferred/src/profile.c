/*
 * Profiles: what was calculated, why, and how long it took, for np.deferred.profile.
 *
 * An evaluation notes when it began, the Python frames that force it, what it
 * evaluates and by which plan; when it ends, all that becomes one tuple in the list
 * of every profile that is being made, whichever thread made it.
 * ../python/_profile.py makes it readable.  A tuple holds code objects, dtypes,
 * names and numbers, but neither frames nor arrays: a profile keeps no memory of the
 * user's alive.
 *
 * These functions are called where the nodes of an expression are borrowed, so they
 * run no Python code: the garbage collector, whose finalizers would, waits.  They
 * leave the exception that is set as it is.  What fails for want of memory is not in
 * the profile.
 *
 * A thread may evaluate while another does: loops of eager NumPy let the GIL go.
 * So each has its own innermost evaluation.  All else is guarded by the GIL.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "profile.h"

#include "deferred.h"
#include "ufunc_object.h"

NPY_NO_EXPORT int npy_deferred_profiling = 0;
NPY_NO_EXPORT npy_deferred_why npy_deferred_because = NPY_DEFERRED_WHY_READ;

#define TEXT(name, text) text,
static const char *const whys[] = {NPY_DEFERRED_WHYS(TEXT)};
static const char *const at_onces[] = {NPY_DEFERRED_AT_ONCES(TEXT)};
#undef TEXT

/* Owned, and NULL before the first profile. */
static PyObject *profiles = NULL;  /* list of (events, counts) */
static PyObject *clock_ns = NULL;  /* time.perf_counter_ns */
static PyObject *own_files = NULL; /* how names of NumPy's own files begin */

static NPY_TLS npy_deferred_profiled *innermost = NULL;

/* What must be as it was afterwards. */
typedef struct {
    PyObject *type, *value, *traceback;
    int collects;
} interpreter;

static interpreter
hold(void)
{
    interpreter held;
    PyErr_Fetch(&held.type, &held.value, &held.traceback);
    held.collects = PyGC_Disable();
    return held;
}

static void
let_go(interpreter held)
{
    if (held.collects) {
        PyGC_Enable();
    }
    PyErr_Restore(held.type, held.value, held.traceback);
}

NPY_NO_EXPORT int
npy_deferred_profile_start(PyObject *events, PyObject *counts, PyObject *files)
{
    if (profiles == NULL) {
        PyObject *module = PyImport_ImportModule("time");
        clock_ns = module == NULL ? NULL
                                  : PyObject_GetAttrString(module, "perf_counter_ns");
        Py_XDECREF(module);
        profiles = clock_ns == NULL ? NULL : PyList_New(0);
    }
    PyObject *pair = profiles == NULL ? NULL : PyTuple_Pack(2, events, counts);
    if (pair == NULL || PyList_Append(profiles, pair) < 0) {
        Py_XDECREF(pair);
        return -1;
    }
    Py_DECREF(pair);
    Py_XSETREF(own_files, Py_NewRef(files));
    npy_deferred_profiling++;
    return 0;
}

NPY_NO_EXPORT void
npy_deferred_profile_stop(PyObject *events)
{
    for (Py_ssize_t i = 0; i < npy_deferred_profiling; i++) {
        if (PyTuple_GET_ITEM(PyList_GET_ITEM(profiles, i), 0) == events) {
            npy_deferred_profiling--;
            PyList_SetSlice(profiles, i, i + 1, NULL);
            return;
        }
    }
}

/* ((code, instruction), ...), from the innermost to the first not of NumPy. */
static PyObject *
current_frames(void)
{
    PyObject *frames = PyList_New(0);
    PyFrameObject *frame = (PyFrameObject *)Py_XNewRef(PyEval_GetFrame());
    while (frame != NULL && frames != NULL) {
        PyCodeObject *code = PyFrame_GetCode(frame);
        PyObject *item = Py_BuildValue("(Oi)", code, PyFrame_GetLasti(frame));
        if (item == NULL || PyList_Append(frames, item) < 0) {
            Py_CLEAR(frames);
        }
        Py_XDECREF(item);
        int own = PyUnicode_Tailmatch(code->co_filename, own_files, 0, PY_SSIZE_T_MAX,
                                      -1) == 1;
        Py_DECREF(code);
        PyFrameObject *outer = own ? PyFrame_GetBack(frame) : NULL;
        Py_DECREF(frame);
        frame = outer;
    }
    Py_XDECREF(frame);
    return frames;
}

/* ---- evaluations ---- */

NPY_NO_EXPORT void
npy_deferred_profile_enter(npy_deferred_profiled *profiled, npy_deferred_target target)
{
    interpreter held = hold();
    profiled->why = npy_deferred_because;
    npy_deferred_because = NPY_DEFERRED_WHY_READ;
    if (profiled->why == NPY_DEFERRED_WHY_READ && target != NPY_DEFERRED_FRESH) {
        profiled->why = target == NPY_DEFERRED_OUT ? NPY_DEFERRED_WHY_OUT
                                                   : NPY_DEFERRED_WHY_ASSIGN;
    }
    profiled->described = profiled->plan = NULL;
    profiled->written = -1;
    profiled->frames = current_frames();
    profiled->outer = innermost;
    profiled->active = 1;
    innermost = profiled;
    profiled->start = PyObject_CallNoArgs(clock_ns);
    PyErr_Clear();
    let_go(held);
}

NPY_NO_EXPORT void
npy_deferred_profile_describe(const npy_deferred_expression *expression,
                              PyArrayObject *out)
{
    npy_deferred_profiled *profiled = innermost;
    if (profiled == NULL) {
        return; /* it began before the profile */
    }
    interpreter held = hold();
    Py_XSETREF(profiled->described, npy_deferred_describe(expression, out, out));
    Py_CLEAR(profiled->plan); /* it was given up */
    PyErr_Clear();
    let_go(held);
}

NPY_NO_EXPORT void
npy_deferred_profile_describe_plan(const npy_deferred_plan *plan,
                                   const npy_deferred_walk *walk)
{
    npy_deferred_profiled *profiled = innermost;
    if (profiled == NULL) {
        return;
    }
    interpreter held = hold();
    Py_XSETREF(profiled->plan, npy_deferred_describe_plan(plan, walk));
    PyErr_Clear();
    let_go(held);
}

/* New reference to what Python sees of it, or NULL. */
static PyObject *
record(const npy_deferred_profiled *profiled, const char *error)
{
    PyObject *end = PyObject_CallNoArgs(clock_ns);
    if (end == NULL || profiled->start == NULL || profiled->frames == NULL ||
        profiled->described == NULL) {
        Py_XDECREF(end);
        return NULL;
    }
    return Py_BuildValue("(ONksOOOz)", profiled->start, end,
                         PyThread_get_thread_ident(), whys[profiled->why],
                         profiled->frames, profiled->described,
                         profiled->plan == NULL ? Py_None : profiled->plan, error);
}

NPY_NO_EXPORT void
npy_deferred_profile_leave(npy_deferred_profiled *profiled, int result)
{
    interpreter held = hold();
    if (profiled->written >= 0 && profiled->described != NULL) {
        Py_ssize_t last = PyTuple_GET_SIZE(profiled->described) - 1;
        PyObject *written = PyLong_FromSsize_t(profiled->written);
        if (written != NULL) {
            PyTuple_SetItem(profiled->described, last, written);
        }
    }
    PyObject *event = record(profiled, result == 0 || held.type == NULL
                                               ? NULL
                                               : ((PyTypeObject *)held.type)->tp_name);
    for (Py_ssize_t i = 0; event != NULL && i < npy_deferred_profiling; i++) {
        PyList_Append(PyTuple_GET_ITEM(PyList_GET_ITEM(profiles, i), 0), event);
    }
    Py_XDECREF(event);
    Py_XDECREF(profiled->start);
    Py_XDECREF(profiled->frames);
    Py_XDECREF(profiled->described);
    Py_XDECREF(profiled->plan);
    innermost = profiled->outer;
    PyErr_Clear();
    let_go(held);
}

/* ---- operations that ran at once ---- */

/* Count one more (reason, ufunc, file, line). */
static void
count(PyObject *counts, PyObject *key)
{
    PyObject *before = PyDict_GetItemWithError(counts, key);
    PyObject *after =
            PyLong_FromSsize_t(1 + (before == NULL ? 0 : PyLong_AsSsize_t(before)));
    if (after != NULL) {
        PyDict_SetItem(counts, key, after);
        Py_DECREF(after);
    }
}

NPY_NO_EXPORT void
npy_deferred_profile_count(npy_deferred_at_once reason, PyUFuncObject *ufunc)
{
    interpreter held = hold();
    PyObject *frames = current_frames();
    Py_ssize_t n = frames == NULL ? 0 : PyList_GET_SIZE(frames);
    PyObject *file = Py_None, *frame = Py_None, *key = NULL;
    int line = 0;
    if (n > 0) {
        frame = PyList_GET_ITEM(frames, n - 1);
        PyCodeObject *code = (PyCodeObject *)PyTuple_GET_ITEM(frame, 0);
        file = code->co_filename;
        line = PyCode_Addr2Line(code, (int)PyLong_AsLong(PyTuple_GET_ITEM(frame, 1)));
    }
    if (frames != NULL) {
        key = Py_BuildValue("(ssOi)", at_onces[reason], ufunc_get_name_cstr(ufunc),
                            file, line);
    }
    for (Py_ssize_t i = 0; key != NULL && i < npy_deferred_profiling; i++) {
        count(PyTuple_GET_ITEM(PyList_GET_ITEM(profiles, i), 1), key);
    }
    Py_XDECREF(key);
    Py_XDECREF(frames);
    PyErr_Clear();
    let_go(held);
}
