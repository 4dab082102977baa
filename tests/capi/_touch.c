/*
 * Compiled code that has never heard of deferral: it takes the address out of the
 * array structure and reads and writes there, in this thread and in others, with
 * the GIL and without.  What it does is the same with whichever headers.
 */
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static double *
data_of(PyObject *arr)
{
    return (double *)((PyArrayObject_fields *)arr)->data;
}

static PyObject *
address(PyObject *Py_UNUSED(module), PyObject *arr)
{
    return PyLong_FromVoidPtr(data_of(arr));
}

/* read(array or address, index) */
static PyObject *
read_item(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *where;
    Py_ssize_t i;
    if (!PyArg_ParseTuple(args, "On", &where, &i)) {
        return NULL;
    }
    volatile double *data =
            PyLong_Check(where) ? (double *)PyLong_AsVoidPtr(where) : data_of(where);
    errno = 1234;
    double value = data[i];
    if (errno != 1234) {
        PyErr_SetString(PyExc_AssertionError, "errno has changed");
        return NULL;
    }
    return PyFloat_FromDouble(value);
}

static PyObject *
write_item(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *where;
    Py_ssize_t i;
    double value;
    if (!PyArg_ParseTuple(args, "Ond", &where, &i, &value)) {
        return NULL;
    }
    volatile double *data =
            PyLong_Check(where) ? (double *)PyLong_AsVoidPtr(where) : data_of(where);
    data[i] = value;
    Py_RETURN_NONE;
}

#ifdef __x86_64__
/* copy(to, from, nbytes), with addresses and one instruction. */
static PyObject *
copy(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_ssize_t to, from, nbytes;
    if (!PyArg_ParseTuple(args, "nnn", &to, &from, &nbytes)) {
        return NULL;
    }
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(nbytes) : : "memory");
    Py_RETURN_NONE;
}
#endif

/* The sum through PyArray_DATA, whatever that does with these headers. */
static PyObject *
sum_data(PyObject *Py_UNUSED(module), PyObject *arg)
{
    PyArrayObject *arr = (PyArrayObject *)arg;
    const double *data = PyArray_DATA(arr);
    double total = 0;
    for (npy_intp i = 0; i < PyArray_SIZE(arr); i++) {
        total += data[i];
    }
    return PyErr_Occurred() ? NULL : PyFloat_FromDouble(total);
}

/* The same through PyArray_GETPTR1, element by element. */
static PyObject *
sum_items(PyObject *Py_UNUSED(module), PyObject *arg)
{
    PyArrayObject *arr = (PyArrayObject *)arg;
    double total = 0;
    for (npy_intp i = 0; i < PyArray_DIM(arr, 0); i++) {
        total += *(double *)PyArray_GETPTR1(arr, i);
    }
    return PyErr_Occurred() ? NULL : PyFloat_FromDouble(total);
}

typedef struct {
    const volatile double *data;
    npy_intp n;
    double total;
    int small_stack; /* SIGSEGV on an alternate stack with little room */
} work;

static atomic_int running;

static void *
worker(void *argument)
{
    work *w = argument;
    char *stack = NULL;
    if (w->small_stack) {
        stack = malloc(MINSIGSTKSZ + 6144);
        stack_t alternate = {.ss_sp = stack, .ss_size = MINSIGSTKSZ + 6144};
        sigaltstack(&alternate, NULL);
    }
    w->total = 0;
    for (npy_intp i = 0; i < w->n; i++) {
        w->total += w->data[i];
    }
    if (w->small_stack) {
        stack_t none = {.ss_flags = SS_DISABLE};
        sigaltstack(&none, NULL);
        free(stack);
    }
    atomic_fetch_sub(&running, 1);
    return NULL;
}

#define MAX_THREADS 64

/*
 * sums(array, how, nthreads): what each of the threads gets when all sum up the
 * array at once.  `how` is "join", "spin" or "yield", with the GIL held all the
 * time, "release", or "here" for this thread alone, after releasing the GIL.
 */
static PyObject *
sums(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *arr;
    const char *how;
    int n, small_stack = 0;
    if (!PyArg_ParseTuple(args, "Osi|i", &arr, &how, &n, &small_stack)) {
        return NULL;
    }
    work works[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    int here = strcmp(how, "here") == 0, release = strcmp(how, "release") == 0;
    npy_intp size = PyArray_SIZE((PyArrayObject *)arr);
    PyThreadState *state = here || release ? PyEval_SaveThread() : NULL;
    atomic_store(&running, n);
    for (int i = 0; i < n; i++) {
        works[i].data = data_of(arr);
        works[i].n = size;
        works[i].small_stack = small_stack;
        if (here) {
            worker(&works[i]);
        }
        else {
            pthread_create(&threads[i], NULL, worker, &works[i]);
        }
    }
    while (strcmp(how, "spin") == 0 && atomic_load(&running) > 0) {
    }
    while (strcmp(how, "yield") == 0 && atomic_load(&running) > 0) {
        sched_yield();
    }
    for (int i = 0; i < n && !here; i++) {
        pthread_join(threads[i], NULL);
    }
    if (state != NULL) {
        PyEval_RestoreThread(state);
    }
    PyObject *totals = PyList_New(0);
    for (int i = 0; i < n && totals != NULL; i++) {
        PyObject *total = PyFloat_FromDouble(works[i].total);
        if (total == NULL || PyList_Append(totals, total) < 0) {
            Py_CLEAR(totals);
        }
        Py_XDECREF(total);
    }
    return totals;
}

/* Other handlers of SIGSEGV. */

static struct sigaction before;
static sigjmp_buf escape;
static volatile sig_atomic_t seen;

static void
count_and_pass_on(int signal, siginfo_t *info, void *context)
{
    seen++;
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(signal, info, context);
    }
    else {
        sigaction(SIGSEGV, &before, NULL);
    }
}

static void
count_and_escape(int signal)
{
    (void)signal;
    seen++;
    siglongjmp(escape, 1);
}

/* handle("pass on" or "escape"): install a handler. */
static PyObject *
handle(PyObject *Py_UNUSED(module), PyObject *arg)
{
    struct sigaction action = {.sa_flags = 0};
    if (strcmp(PyUnicode_AsUTF8(arg), "escape") == 0) {
        action.sa_handler = count_and_escape;
    }
    else {
        action.sa_sigaction = count_and_pass_on;
        action.sa_flags = SA_SIGINFO;
    }
    sigaction(SIGSEGV, &action, &before);
    Py_RETURN_NONE;
}

static PyObject *
handled(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(noarg))
{
    return PyLong_FromLong(seen);
}

/* read(address) under a handler that escapes; None when there was a fault. */
static PyObject *
try_to_read(PyObject *Py_UNUSED(module), PyObject *arg)
{
    volatile double *data = PyLong_AsVoidPtr(arg);
    if (sigsetjmp(escape, 1)) {
        Py_RETURN_NONE;
    }
    return PyFloat_FromDouble(*data);
}

/* A descriptor, asked for while an exception is set, as f2py does on its way out. */
static PyObject *
ask_while_raising(PyObject *Py_UNUSED(module), PyObject *arg)
{
    PyErr_SetObject(PyExc_KeyError, arg);
    Py_XDECREF(PyArray_DescrFromType(NPY_DOUBLE));
    return NULL;
}

/* For faulthandler: needs more stack than there is. */
static PyObject *
overflow(PyObject *module, PyObject *depth)
{
    volatile char page[4096];
    page[0] = 1;
    PyObject *result = overflow(module, depth);
    page[1] = page[0];
    return page[1] ? result : NULL;
}

static PyMethodDef methods[] = {
        {"address", address, METH_O, NULL},
        {"read", read_item, METH_VARARGS, NULL},
        {"write", write_item, METH_VARARGS, NULL},
#ifdef __x86_64__
        {"copy", copy, METH_VARARGS, NULL},
#endif
        {"sum_data", sum_data, METH_O, NULL},
        {"sum_items", sum_items, METH_O, NULL},
        {"sums", sums, METH_VARARGS, NULL},
        {"handle", handle, METH_O, NULL},
        {"handled", handled, METH_NOARGS, NULL},
        {"try_to_read", try_to_read, METH_O, NULL},
        {"ask_while_raising", ask_while_raising, METH_O, NULL},
        {"overflow", overflow, METH_NOARGS, NULL},
        {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
        PyModuleDef_HEAD_INIT, "_touch", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit__touch(void);

PyMODINIT_FUNC
PyInit__touch(void)
{
    import_array();
    return PyModule_Create(&module);
}
