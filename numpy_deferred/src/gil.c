/*
 * The GIL: it is given up while a large calculation runs its loops, so that other
 * threads of Python go on.
 *
 * A calculation that runs without the GIL has all that it needs in its plan, its walk
 * and its memory; but what it reads must not be written, freed, or moved meanwhile, and
 * what it calculates must not change either.  So other threads may do anything but what
 * changes that: every way into deferral that captures, calculates or flushes begins
 * with npy_deferred_wait, which lets the calculation end first.  Dropping an array that
 * nobody reads is not such a way.  Hence one calculation runs at a time.
 *
 * The thread that runs owns `lock`, from before it gives up the GIL until it has it
 * again.  Who waits takes the lock without holding the GIL, and gives it back at once.
 *
 * Who forks lets a calculation end, too.  Python holds locks of its own while it calls
 * fork(), one of which a thread needs to end, so that the GIL must not be given up any
 * more by then: os.fork() lets it end before that (os.register_at_fork), and no other
 * begins without the GIL until it has returned.  What calls fork() itself, perhaps
 * without the GIL, holds no such lock; pthread_atfork() sees to it.
 *
 * Code that reads an address (touch.c) may rely on holding the GIL, so calculations
 * that it causes keep it (npy_deferred_gil_kept).
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "deferred.h"
#include "profile.h"

#include <time.h>
#ifndef _WIN32
#    include <pthread.h>
#endif

/*
 * Milliseconds between two looks for an interrupt while another thread may have the
 * GIL: it gives it up after 5.
 */
#define LOOK_AFTER 20

NPY_NO_EXPORT npy_intp npy_deferred_gil_worth = 1 << 18;
NPY_NO_EXPORT int npy_deferred_gil_kept = 0;
NPY_NO_EXPORT int npy_deferred_running = 0;

static PyThread_type_lock lock = NULL;
/* The thread that runs. */
static unsigned long owner = 0;
static PyThreadState *runner = NULL;
static npy_int64 look_at = 0;

static npy_int64
milliseconds(void)
{
#ifndef _WIN32
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (npy_int64)time.tv_sec * 1000 + time.tv_nsec / 1000000;
#else
    return (npy_int64)clock() * 1000 / CLOCKS_PER_SEC;
#endif
}

#ifndef _WIN32
static PyObject *
before_os_fork(PyObject *NPY_UNUSED(self), PyObject *NPY_UNUSED(noarg))
{
    npy_deferred_end_server();
    npy_deferred_wait();
    npy_deferred_gil_kept++;
    Py_RETURN_NONE;
}

static PyObject *
after_os_fork(PyObject *NPY_UNUSED(self), PyObject *NPY_UNUSED(noarg))
{
    npy_deferred_gil_kept--;
    Py_RETURN_NONE;
}

/* Returns 0, or -1 with an exception set. */
static int
watch_os_fork(void)
{
    static PyMethodDef before = {"before_fork", before_os_fork, METH_NOARGS, NULL};
    static PyMethodDef after = {"after_fork", after_os_fork, METH_NOARGS, NULL};
    PyObject *os = PyImport_ImportModule("os");
    PyObject *call = os == NULL ? NULL : PyObject_GetAttrString(os, "register_at_fork");
    PyObject *none = PyTuple_New(0);
    PyObject *first = PyCFunction_New(&before, NULL);
    PyObject *then = PyCFunction_New(&after, NULL);
    PyObject *functions = NULL, *done = NULL;
    if (call != NULL && none != NULL && first != NULL && then != NULL) {
        functions = Py_BuildValue("{sOsOsO}", "before", first, "after_in_parent", then,
                                  "after_in_child", then);
    }
    if (functions != NULL) {
        done = PyObject_Call(call, none, functions);
    }
    int result = done == NULL ? -1 : 0;
    Py_XDECREF(os);
    Py_XDECREF(call);
    Py_XDECREF(none);
    Py_XDECREF(first);
    Py_XDECREF(then);
    Py_XDECREF(functions);
    Py_XDECREF(done);
    return result;
}

/* No child is to have half a calculation, or lack threads that it believes to have. */
static void
before_fork(void)
{
    if (Py_IsInitialized() && npy_deferred_holds_gil()) {
        npy_deferred_wait();
    }
    PyThread_acquire_lock(lock, WAIT_LOCK);
    npy_deferred_end_workers();
}

static void
after_fork(void)
{
    PyThread_release_lock(lock);
}
#endif

NPY_NO_EXPORT int
npy_deferred_gil_init(void)
{
    lock = PyThread_allocate_lock();
    if (lock == NULL) {
        PyErr_NoMemory();
        return -1;
    }
#ifndef _WIN32
    if (pthread_atfork(before_fork, after_fork, after_fork) != 0) {
        PyErr_SetString(PyExc_RuntimeError, "pthread_atfork failed");
        return -1;
    }
    return watch_os_fork();
#else
    return 0;
#endif
}

NPY_NO_EXPORT int
npy_deferred_gil_release(npy_intp work)
{
    if (work < npy_deferred_gil_worth || npy_deferred_gil_kept > 0 ||
        npy_deferred_running) {
        return 0;
    }
    PyThread_acquire_lock(lock, WAIT_LOCK);
    npy_deferred_running = 1;
    look_at = milliseconds() + LOOK_AFTER;
    owner = PyThread_get_thread_ident();
    runner = PyEval_SaveThread();
    return 1;
}

NPY_NO_EXPORT void
npy_deferred_gil_take(int released)
{
    if (released) {
        PyEval_RestoreThread(runner);
        npy_deferred_running = 0;
        PyThread_release_lock(lock);
    }
}

NPY_NO_EXPORT int
npy_deferred_gil_interrupted(void)
{
    int released = npy_deferred_running && owner == PyThread_get_thread_ident();
    if (released) {
        if (milliseconds() < look_at) {
            return 0;
        }
        PyEval_RestoreThread(runner);
        look_at = milliseconds() + LOOK_AFTER;
    }
    int interrupted = PyOS_InterruptOccurred();
    if (interrupted) {
        PyErr_SetInterrupt();
    }
    if (released) {
        runner = PyEval_SaveThread();
    }
    return interrupted;
}

/* Whether Python ends: threads that ask for the GIL, other than this, get it no more.
 */
static int
is_finalizing(void)
{
#if PY_VERSION_HEX >= 0x030D0000
    return Py_IsFinalizing();
#else
    return _Py_IsFinalizing();
#endif
}

NPY_NO_EXPORT void
npy_deferred_wait_until_done(void)
{
    npy_deferred_why why = npy_deferred_because;
    while (npy_deferred_running && !is_finalizing()) {
        Py_BEGIN_ALLOW_THREADS;
        PyThread_acquire_lock(lock, WAIT_LOCK);
        PyThread_release_lock(lock);
        Py_END_ALLOW_THREADS;
    }
    npy_deferred_because = why;
}
