/*
 * Touches: somebody needs the values of a deferred array now, no hook has seen
 * it coming, and there is nobody to whom a failure could be returned.
 *
 * PyArray_DATA comes here, inside NumPy (npy_deferred_data_needed) and in extensions
 * compiled with our headers (npy_deferred_data_for_extension), and the fault handler
 * in guard.c, when compiled code reads or writes the guard of an array.
 *
 * A thread that holds the GIL calculates right there.  One that does not must
 * not simply wait for the GIL: its holder may be waiting for this thread (an
 * extension that keeps the GIL while it joins its workers).  It puts a request
 * on a list instead, and waits for that to be served by whoever can:
 *
 * 1. the server, a thread that takes the GIL and serves the list.  It is started
 *    when needed and ends when it has had nothing to do for a while, so that a
 *    process has no thread more than it wants, which fork() warns of;
 * 2. when the server does not get the GIL for ASK_AFTER, the holder of the GIL
 *    itself: guard.c interrupts it, and if it holds the GIL, and stands in code
 *    that can be interrupted (guard.c says which: nothing that a calculation
 *    uses), it serves the list as it would serve its own touch.  Else it goes on
 *    and is asked again.  A holder that waits for a worker does nothing else,
 *    so at some question it is found waiting; a holder that computes comes to
 *    release the GIL, or to a point where it can serve.
 *
 * A request leaves the list when it has been served, not when somebody begins to
 * serve it: the server may lose the GIL while it calculates (loops release it,
 * warnings run Python code) to a holder that then waits for this very request.
 * Serving twice is harmless: the second finds the values there.  Requests lie on
 * the stacks of those who wait, so they are only looked at with the mutex held.
 *
 * Errors: values are computed whatever the error state; a FloatingPointError is
 * raised at the main thread's next bytecode (Py_AddPendingCall), warnings come at
 * once.  Where there is no memory for values, the process ends with a message.
 * While Python finalizes, a thread without the GIL waits for ever, as it does
 * whenever it asks for the GIL then; afterwards, nothing can be calculated, and
 * a touch ends with a message.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "npy_pycompat.h"

#include "deferred.h"
#include "profile.h"
#include "ufunc_object.h"

#include <stdio.h>
#include <stdlib.h>
#ifdef __GLIBC__
#    include <execinfo.h>
#endif
#ifdef __linux__
#    include <pthread.h>
#    include <signal.h>
#    include <time.h>
#endif

/* Milliseconds: until the holder of the GIL is asked, and between questions. */
#define ASK_AFTER 15
/* Until the server ends for want of requests. */
#define SERVER_WAITS 100

/* ---- reports and errors ---- */

NPY_NO_EXPORT void
npy_deferred_prepare_report(void)
{
#ifdef __GLIBC__
    /* The first call loads a library, which a fault handler should not. */
    void *frame;
    backtrace(&frame, 1);
#endif
}

NPY_NO_EXPORT void
npy_deferred_report_stack(void)
{
#ifdef __GLIBC__
    void *frames[32];
    backtrace_symbols_fd(frames, backtrace(frames, 32), 2);
#endif
}

/* "ndarray of shape (3,) and dtype('float64')", for messages: new reference. */
static PyObject *
describe(PyArrayObject *arr)
{
    npy_deferred_node *node = npy_deferred_node_of(arr);
    PyObject *shape = PyArray_IntTupleFromIntp(PyArray_NDIM(arr), PyArray_DIMS(arr));
    PyObject *origin = npy_deferred_origin_text(&node->origin);
    PyObject *text = NULL;
    if (shape != NULL && origin != NULL) {
        text = PyUnicode_FromFormat(
                "the deferred array of shape %R and %R that is the result of %s, "
                "written in %U",
                shape, (PyObject *)PyArray_DESCR(arr), ufunc_get_name_cstr(node->ufunc),
                origin);
    }
    Py_XDECREF(shape);
    Py_XDECREF(origin);
    return text;
}

static const char *
describe_or_not(PyArrayObject *arr, PyObject **text)
{
    *text = describe(arr);
    const char *utf8 = *text == NULL ? NULL : PyUnicode_AsUTF8(*text);
    PyErr_Clear();
    return utf8 != NULL ? utf8 : "a deferred array";
}

/* Say whose data are touched, and where in Python. */
static void
report(PyArrayObject *arr, const char *how, const char *what)
{
    PyObject *text;
    fprintf(stderr, "numpy_deferred: %s %s %s\n", how, what,
            describe_or_not(arr, &text));
    fflush(stderr);
    Py_XDECREF(text);
    if (PyEval_GetFrame() != NULL) {
        PyRun_SimpleString("import traceback; traceback.print_stack(limit=-4)");
    }
    else {
        fprintf(stderr, "  in a thread that runs no Python code\n");
    }
    if (npy_deferred_guard_mode == NPY_DEFERRED_GUARD_TRAP) {
        abort();
    }
}

static void
die(PyArrayObject *arr, const char *why)
{
    PyObject *text;
    fprintf(stderr, "numpy: %s: %s\n", describe_or_not(arr, &text), why);
    Py_FatalError("a deferred array cannot be calculated where its data is touched");
}

/* Called by the interpreter: raise what a touch could not. */
static int
raise_now(void *exception)
{
    PyObject *parts = exception;
    PyErr_Restore(Py_XNewRef(PyTuple_GET_ITEM(parts, 0)),
                  Py_XNewRef(PyTuple_GET_ITEM(parts, 1)),
                  Py_XNewRef(PyTuple_GET_ITEM(parts, 2)));
    Py_DECREF(parts);
    return -1;
}

/* The current exception is raised at the next bytecode of the main thread. */
static void
raise_later(void)
{
    PyObject *parts[3] = {NULL, NULL, NULL};
    PyErr_Fetch(&parts[0], &parts[1], &parts[2]);
    PyErr_NormalizeException(&parts[0], &parts[1], &parts[2]);
    PyObject *exception = PyTuple_New(3);
    for (int i = 0; exception != NULL && i < 3; i++) {
        PyTuple_SET_ITEM(exception, i, parts[i]);
    }
    if (exception == NULL || Py_AddPendingCall(raise_now, exception) < 0) {
        PyErr_Clear();
        PyErr_Restore(Py_XNewRef(parts[0]), Py_XNewRef(parts[1]), Py_XNewRef(parts[2]));
        PyErr_WriteUnraisable(NULL);
        Py_XDECREF(exception);
    }
}

/* As npy_deferred_calculate, where no other thread may run meanwhile. */
static int
calculate_keeping_gil(PyArrayObject *arr)
{
    npy_deferred_gil_kept++;
    int result = npy_deferred_calculate(arr);
    npy_deferred_gil_kept--;
    return result;
}

/* Calculate whatever the error state.  Returns 0, or -1 with an exception set. */
static int
calculate_silently(PyArrayObject *arr)
{
    int reporting = npy_deferred_set_reporting(0);
    int result = calculate_keeping_gil(arr); /* others report */
    npy_deferred_set_reporting(reporting);
    return result;
}

/* ---- with the GIL ---- */

NPY_NO_EXPORT int
npy_deferred_holds_gil(void)
{
    PyThreadState *current = PyThreadState_GetUnchecked();
#if PY_VERSION_HEX < 0x030C0000
    /* Of whoever is the holder, who may free it meanwhile: not to be looked into. */
    return current != NULL && current == PyGILState_GetThisThreadState();
#else
    return current != NULL;
#endif
}

/*
 * Calculate, leaving errors for later.  Returns 0, or -1 with an exception set
 * when there is no memory.
 */
static int
calculate_now(PyArrayObject *arr)
{
    int result = calculate_keeping_gil(arr);
    if (result == 0) {
        return 0;
    }
    PyObject *error[3];
    PyErr_Fetch(&error[0], &error[1], &error[2]);
    result = calculate_silently(arr);
    if (result == 0) {
        PyErr_Restore(error[0], error[1], error[2]);
        raise_later();
        return 0;
    }
    for (int i = 0; i < 3; i++) {
        Py_XDECREF(error[i]);
    }
    return -1;
}

static int
calculate_or_die(PyArrayObject *arr)
{
    npy_deferred_because = NPY_DEFERRED_WHY_TOUCH;
    int result = calculate_now(arr);
    npy_deferred_because = NPY_DEFERRED_WHY_READ;
    if (result < 0) {
        PyErr_Print();
        die(arr, "no memory for its values");
    }
    return 0;
}

/* Who touches a deferred array; the text is NULL when that is not to be reported. */
static void
note_touch(PyArrayObject *arr, const char *how, const char *what)
{
    if (how != NULL) {
        npy_deferred_stats.late++;
    }
    if (how != NULL && npy_deferred_guard_mode >= NPY_DEFERRED_GUARD_REPORT) {
        report(arr, how, what);
    }
}

/* Somebody writes to memory that pending nodes read. */
static void
serve_write(const void *address, const char *how)
{
    PyArrayObject *owner = npy_deferred_protected_owner(address);
    npy_deferred_operand *reader = npy_deferred_find_usage(owner)->readers;
    Py_INCREF(owner);
    if (reader->node->array != NULL) {
        note_touch(reader->node->array, how, "writes to an operand of");
    }
    while (npy_deferred_protected_owner(address) == owner) {
        if (npy_deferred_flush_dependents(owner, calculate_or_die) < 0) {
            PyErr_Print();
            Py_FatalError("no memory to calculate what reads an array that is written");
        }
    }
    Py_DECREF(owner);
}

/*
 * See to it that values are at the address; as npy_deferred_bring.  `how` is who
 * has touched it, for reports; NULL: nothing to report.
 */
static int
serve(const void *address, const char *how)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    npy_deferred_wait();
    npy_deferred_gil_kept++;
    if (npy_deferred_protected_owner(address) != NULL) {
        serve_write(address, how);
        npy_deferred_gil_kept--;
        PyErr_Restore(type, value, traceback);
        return 0;
    }
    /* Pages that are to be moved here must not be protected. */
    const void *other = npy_deferred_other_address(address);
    if (npy_deferred_protected_owner(other) != NULL) {
        serve_write(other, how);
    }
    PyArrayObject *arr = npy_deferred_want(address);
    if (arr != NULL) {
        Py_INCREF(arr);
        note_touch(arr, how, "touches the data of");
        calculate_or_die(arr);
    }
    int found = npy_deferred_bring(address);
    if (found < 0) {
        fprintf(stderr,
                "numpy: the address %p belonged to a deferred array whose values "
                "have been put elsewhere, and cannot be moved there\n",
                address);
        Py_FatalError("an address of an array was used after it had changed");
    }
    Py_XDECREF(arr);
    npy_deferred_gil_kept--;
    PyErr_Restore(type, value, traceback);
    return found;
}

/* ---- requests of threads without the GIL ---- */

#ifdef __linux__

/* On the stack of who waits. */
typedef struct request request;
struct request {
    const void *address;
    const char *how;
    int done, found;
    request *next;
};

/* All of it is guarded by the mutex. */
static struct {
    pthread_mutex_t mutex;
    pthread_cond_t arrived, served;
    request *first;
    int has_server; /* which takes requests */
    int has_thread; /* that is, or was, the server, and is to be joined */
    int ends;       /* the server is to end */
    pthread_t thread;
    struct timespec asked; /* when the holder of the GIL was, last */
} requests = {.mutex = PTHREAD_MUTEX_INITIALIZER,
              .arrived = PTHREAD_COND_INITIALIZER,
              .served = PTHREAD_COND_INITIALIZER};

/* Nobody waits in a forked child, and the server stayed behind. */
static void
reset_requests(void)
{
    pthread_mutex_init(&requests.mutex, NULL);
    pthread_cond_init(&requests.arrived, NULL);
    pthread_cond_init(&requests.served, NULL);
    requests.first = NULL;
    requests.has_server = requests.has_thread = requests.ends = 0;
}

static struct timespec
now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    return time;
}

static struct timespec
later(struct timespec time, long milliseconds)
{
    time.tv_nsec += milliseconds * 1000000;
    time.tv_sec += time.tv_nsec / 1000000000;
    time.tv_nsec %= 1000000000;
    return time;
}

static int
is_before(struct timespec a, struct timespec b)
{
    return a.tv_sec != b.tv_sec ? a.tv_sec < b.tv_sec : a.tv_nsec < b.tv_nsec;
}

/* Take all requests for an address off the list; the mutex is held. */
static void
finish(const void *address, int found)
{
    request **link = &requests.first;
    while (*link != NULL) {
        request *r = *link;
        if (r->address == address) {
            *link = r->next;
            r->found = found;
            r->done = 1;
        }
        else {
            link = &r->next;
        }
    }
    pthread_cond_broadcast(&requests.served);
}

NPY_NO_EXPORT void
npy_deferred_serve_requests(void)
{
    pthread_mutex_lock(&requests.mutex);
    while (requests.first != NULL) {
        const void *address = requests.first->address;
        const char *how = requests.first->how;
        pthread_mutex_unlock(&requests.mutex);
        int found = serve(address, how);
        pthread_mutex_lock(&requests.mutex);
        finish(address, found);
    }
    pthread_mutex_unlock(&requests.mutex);
}

static void *
run_server(void *unused)
{
    pthread_mutex_lock(&requests.mutex);
    for (;;) {
        struct timespec end = later(now(), SERVER_WAITS);
        int waited = 0;
        while (requests.first == NULL && waited == 0 && !requests.ends) {
            waited = pthread_cond_timedwait(&requests.arrived, &requests.mutex, &end);
        }
        if (requests.first == NULL) {
            break;
        }
        pthread_mutex_unlock(&requests.mutex);
        PyGILState_STATE gil = PyGILState_Ensure();
        npy_deferred_serve_requests();
        PyGILState_Release(gil);
        pthread_mutex_lock(&requests.mutex);
    }
    requests.has_server = 0;
    pthread_mutex_unlock(&requests.mutex);
    return unused;
}

/* The mutex is held.  Without a server, the holder of the GIL is asked. */
static void
start_server(void)
{
    static int registered = 0;
    sigset_t all, before;
    if (requests.has_thread) {
        pthread_join(requests.thread, NULL); /* it has let go the mutex for good */
    }
    if (!registered) {
        registered = pthread_atfork(NULL, NULL, reset_requests) == 0;
    }
    sigfillset(&all);
    sigdelset(&all, SIGSEGV);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    requests.ends = 0;
    requests.has_thread = pthread_create(&requests.thread, NULL, run_server, NULL) == 0;
    requests.has_server = requests.has_thread;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

NPY_NO_EXPORT void
npy_deferred_end_server(void)
{
    pthread_mutex_lock(&requests.mutex);
    int had_thread = requests.has_thread;
    pthread_t thread = requests.thread;
    requests.ends = 1;
    requests.has_thread = 0;
    pthread_cond_signal(&requests.arrived);
    pthread_mutex_unlock(&requests.mutex);
    if (had_thread) {
        /* Whom it still serves needs the GIL. */
        Py_BEGIN_ALLOW_THREADS;
        pthread_join(thread, NULL);
        Py_END_ALLOW_THREADS;
    }
}

/* Wait for the values at an address; as npy_deferred_bring. */
static int
request_values(const void *address, const char *how)
{
    int cancelable;
    request r = {.address = address, .how = how};
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancelable);
    pthread_mutex_lock(&requests.mutex);
    r.next = requests.first;
    requests.first = &r;
    if (!requests.has_server) {
        start_server();
    }
    pthread_cond_signal(&requests.arrived);
    while (!r.done) {
        struct timespec end = later(now(), ASK_AFTER);
        pthread_cond_timedwait(&requests.served, &requests.mutex, &end);
        struct timespec due = later(requests.asked, ASK_AFTER);
        if (!r.done && !is_before(now(), end) && is_before(due, now())) {
            requests.asked = now();
            pthread_mutex_unlock(&requests.mutex);
            npy_deferred_ask_gil_holder();
            pthread_mutex_lock(&requests.mutex);
        }
    }
    pthread_mutex_unlock(&requests.mutex);
    pthread_setcancelstate(cancelable, &cancelable);
    return r.found;
}

#else

NPY_NO_EXPORT void
npy_deferred_end_server(void)
{
}

static int
request_values(const void *address, const char *how)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    int found = serve(address, how);
    PyGILState_Release(gil);
    return found;
}

#endif

NPY_NO_EXPORT int
npy_deferred_touched(const void *address)
{
    if (!Py_IsInitialized() && npy_deferred_is_protected(address)) {
        npy_deferred_open_range(address);
        return 0;
    }
    if (!Py_IsInitialized()) {
        fprintf(stderr, "numpy: a deferred array is read after Python has ended\n");
        abort();
    }
    return npy_deferred_holds_gil()
                   ? serve(address, "compiled code")
                   : request_values(address, "compiled code without the GIL");
}

NPY_NO_EXPORT void *
npy_deferred_data_for_extension(PyArrayObject *arr)
{
    void *data = ((PyArrayObject_fields *)arr)->data;
    if (!npy_deferred_holds_gil()) {
        request_values(data, NULL);
        return data;
    }
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    npy_deferred_because = NPY_DEFERRED_WHY_API;
    int result = npy_deferred_is(arr) ? calculate_now(arr) : 0;
    npy_deferred_because = NPY_DEFERRED_WHY_READ;
    if (result < 0) {
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(traceback);
        return NULL;
    }
    PyErr_Restore(type, value, traceback);
    return ((PyArrayObject_fields *)arr)->data;
}

/* ---- writes that nobody is going to see ---- */

/* What raises an error stays deferred, as its reader is to be told. */
static int
calculate_for_write(PyArrayObject *arr)
{
    npy_deferred_node *node = npy_deferred_node_of(arr);
    if (node->failed) {
        return 0;
    }
    npy_deferred_node_incref(node);
    int result = calculate_keeping_gil(arr);
    if (result < 0 && PyErr_ExceptionMatches(PyExc_FloatingPointError)) {
        PyErr_Clear();
        npy_deferred_set_failed(node, 0);
        result = 0;
    }
    npy_deferred_node_decref(node);
    return result;
}

NPY_NO_EXPORT void
npy_deferred_before_unseen_writes(void)
{
    PyObject *type, *value, *traceback;
    if (!Py_IsInitialized() || !npy_deferred_holds_gil()) {
        return;
    }
    PyErr_Fetch(&type, &value, &traceback);
    if (npy_deferred_calculate_readers(calculate_for_write) < 0) {
        raise_later();
    }
    PyErr_Restore(type, value, traceback);
}

/* ---- PyArray_DATA ---- */

/* Give an array memory without its values, as an exception tells that. */
static void
give_up(PyArrayObject *arr)
{
    void *values = npy_deferred_memory_new(arr);
    if (values == NULL) {
        die(arr, "no memory for its values");
    }
    memset(values, 0, PyArray_NBYTES(arr));
    npy_deferred_commit(arr, values);
}

/*
 * The last resort of PyArray_DATA, which cannot fail.  When an error is to be
 * raised, the array gets its values all the same, and the exception is left
 * for the interpreter's next check.
 */
NPY_NO_EXPORT void
npy_deferred_data_needed(PyArrayObject *arr)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (npy_deferred_guard_mode >= NPY_DEFERRED_GUARD_REPORT) {
        npy_deferred_report_stack();
        report(arr, "PyArray_DATA, where NumPy has no hook,", "touches the data of");
    }
    npy_deferred_stats.late++;
    npy_deferred_gil_kept++;
    int result = npy_deferred_calculate_because(NPY_DEFERRED_WHY_LATE, arr);
    npy_deferred_gil_kept--;
    if (result < 0) {
        if (type == NULL) {
            PyErr_Fetch(&type, &value, &traceback);
        }
        PyErr_Clear();
        if (calculate_silently(arr) < 0) {
            PyErr_Clear();
            give_up(arr);
        }
    }
    PyErr_Restore(type, value, traceback);
    PyGILState_Release(gil);
}
