/*
 * Whether calls are deferred: np.setdeferred, np.getdeferred and the
 * environment.
 *
 * The state lives in a context variable, as the error state does, so threads
 * and asyncio tasks have their own.  Values are True, False and None; None
 * defers while the error state ignores everything.  The environment is read
 * once, at import: NUMPY_DEFERRED gives the state contexts start with, and
 * NUMPY_DEFERRED_MIN_BYTES the size from which results are worth deferring.
 * NUMPY_DEFERRED_MEMORY_BYTES limits what pending expressions keep alive, and
 * NUMPY_DEFERRED_CACHE_BYTES the memory that is kept for results (memory.c);
 * NUMPY_DEFERRED_PROTECT_BYTES is the size from which operands are protected
 * against compiled code (protect.c); NUMPY_DEFERRED_NUM_THREADS how many threads
 * calculate together (threads.c).
 *
 * npy_deferred_state_used keeps the price of a ufunc call down where nobody
 * ever asked for deferral: the context variable is not looked at then.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "deferred.h"

#include <stdlib.h>
#include <string.h>

NPY_NO_EXPORT int npy_deferred_state_used = 0;
NPY_NO_EXPORT NPY_TLS int npy_deferred_calling_out = 0;
/* Where two to four operations break even with eager NumPy, measured. */
NPY_NO_EXPORT npy_intp npy_deferred_min_bytes = 32768;
NPY_NO_EXPORT int npy_deferred_min_bytes_chosen = 0;
NPY_NO_EXPORT npy_intp npy_deferred_memory_limit = (npy_intp)1 << 30;
NPY_NO_EXPORT npy_deferred_guard_modes npy_deferred_guard_mode = NPY_DEFERRED_GUARD_ON;

static PyObject *state_variable = NULL; /* owned, immortal */

/* Reads NUMPY_DEFERRED: new reference, or NULL with an exception. */
static PyObject *
initial_state(void)
{
    const char *value = getenv("NUMPY_DEFERRED");
    if (value == NULL || value[0] == '\0' || strcmp(value, "none") == 0) {
        Py_RETURN_NONE;
    }
    if (strcmp(value, "1") == 0) {
        Py_RETURN_TRUE;
    }
    if (strcmp(value, "0") == 0) {
        Py_RETURN_FALSE;
    }
    PyErr_Format(PyExc_ValueError,
                 "the environment variable NUMPY_DEFERRED must be 1, 0 or "
                 "none, not %.100s",
                 value);
    return NULL;
}

static int
is_set(const char *variable)
{
    const char *value = getenv(variable);
    return value != NULL && value[0] != '\0';
}

/* Reads a number of `what` into `*result`, if the variable is set. */
static int
read_number(const char *variable, const char *what, npy_intp least, npy_intp *result)
{
    if (!is_set(variable)) {
        return 0;
    }
    const char *value = getenv(variable);
    char *end;
    long long number = strtoll(value, &end, 10);
    if (*end != '\0' || number < least || number > NPY_MAX_INTP) {
        PyErr_Format(PyExc_ValueError,
                     "the environment variable %s must be a number of %s, not %.100s",
                     variable, what, value);
        return -1;
    }
    *result = (npy_intp)number;
    return 0;
}

static int
read_bytes(const char *variable, npy_intp *result)
{
    return read_number(variable, "bytes", 0, result);
}

static int
read_num_threads(void)
{
    npy_intp n = 0;
    if (read_number("NUMPY_DEFERRED_NUM_THREADS", "threads, at least 1,", 1, &n) < 0) {
        return -1;
    }
    if (n > 0) {
        npy_deferred_set_num_threads(n);
    }
    return 0;
}

static int
read_guard_mode(void)
{
    const char *value = getenv("NUMPY_DEFERRED_GUARD");
    const char *names[] = {"off", "on", "report", "trap"};
    if (value == NULL || value[0] == '\0') {
        return 0;
    }
    for (int mode = NPY_DEFERRED_GUARD_OFF; mode <= NPY_DEFERRED_GUARD_TRAP; mode++) {
        if (strcmp(value, names[mode]) == 0) {
            npy_deferred_guard_mode = mode;
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError,
                 "the environment variable NUMPY_DEFERRED_GUARD must be off, on, "
                 "report, trap or not set, not %.100s",
                 value);
    return -1;
}

static int
read_machine_code(void)
{
    npy_intp is_made = 1;
    if (read_number("NUMPY_DEFERRED_MACHINE_CODE", "0, for never, or more", 0,
                    &is_made) < 0) {
        return -1;
    }
    if (!is_made) {
        npy_deferred_code_worth = NPY_MAX_INTP;
    }
    return 0;
}

/* Who says what is deferred need not be learned from. */
static int
read_habits(void)
{
    npy_intp are_kept = !is_set("NUMPY_DEFERRED_MIN_BYTES");
    if (read_number("NUMPY_DEFERRED_HABITS", "0, for none, or more", 0, &are_kept) <
        0) {
        return -1;
    }
    npy_deferred_habits_are_kept = are_kept != 0;
    return 0;
}

NPY_NO_EXPORT int
npy_deferred_state_init(PyObject *module)
{
    if (read_bytes("NUMPY_DEFERRED_MIN_BYTES", &npy_deferred_min_bytes) < 0 ||
        read_bytes("NUMPY_DEFERRED_MEMORY_BYTES", &npy_deferred_memory_limit) < 0 ||
        read_bytes("NUMPY_DEFERRED_CACHE_BYTES", &npy_deferred_cache_limit) < 0 ||
        read_bytes("NUMPY_DEFERRED_PROTECT_BYTES", &npy_deferred_protect_limit) < 0 ||
        read_num_threads() < 0 || read_guard_mode() < 0 || read_machine_code() < 0 ||
        read_habits() < 0) {
        return -1;
    }
    if (is_set("NUMPY_DEFERRED_PROTECT_BYTES")) {
        npy_deferred_choose_protection();
    }
    npy_deferred_min_bytes_chosen = is_set("NUMPY_DEFERRED_MIN_BYTES");
    PyObject *initial = initial_state();
    if (initial == NULL) {
        return -1;
    }
    npy_deferred_state_used = (initial == Py_True);
    state_variable = PyContextVar_New("numpy.deferred_state", initial);
    Py_DECREF(initial);
    if (state_variable == NULL) {
        return -1;
    }
    return PyModule_AddObjectRef(module, "_deferred_state", state_variable);
}

NPY_NO_EXPORT int
npy_deferred_enabled(int errmask)
{
    if (npy_deferred_calling_out > 0) {
        return 0;
    }
    PyObject *state = npy_deferred_get_state();
    if (state == NULL) {
        return -1;
    }
    int enabled = (state == Py_True) || (state == Py_None && errmask == 0);
    Py_DECREF(state);
    return enabled;
}

NPY_NO_EXPORT PyObject *
npy_deferred_get_state(void)
{
    PyObject *state;
    if (PyContextVar_Get(state_variable, NULL, &state) < 0) {
        return NULL;
    }
    return state;
}

NPY_NO_EXPORT PyObject *
npy_deferred_enter_state(PyObject *state)
{
    if (state != Py_True && state != Py_False && state != Py_None) {
        PyErr_Format(PyExc_ValueError,
                     "the deferred state must be True, False or None, not "
                     "%.100R",
                     state);
        return NULL;
    }
    PyObject *token = PyContextVar_Set(state_variable, state);
    if (token != NULL) {
        npy_deferred_state_used = 1;
    }
    return token;
}

NPY_NO_EXPORT PyObject *
npy_deferred_set_state(PyObject *state)
{
    PyObject *previous = npy_deferred_get_state();
    if (previous == NULL) {
        return NULL;
    }
    PyObject *token = npy_deferred_enter_state(state);
    if (token == NULL) {
        Py_DECREF(previous);
        return NULL;
    }
    Py_DECREF(token);
    return previous;
}
