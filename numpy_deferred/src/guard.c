/*
 * The fault handler: compiled code that has never heard of deferral touches the
 * guard of an array, and goes on with its values.
 *
 * The handler of SIGSEGV is put in place when something is first deferred.  A
 * fault at a guard of a pending array (memory.c knows), or at memory that pending
 * nodes read (protect.c), is answered by touch.c; the instruction then runs again.
 * Everything else is passed on as if we were not there: to the handler that was there
 * before, or to the default action, by restoring it and letting the fault happen again,
 * with the same signal, code and core.  A real fault inside an array's range (beyond
 * its last page, after it was freed, execution) is passed on too.
 *
 * Others install handlers too, and most pass nothing on.  We look now and then
 * when something is deferred whether ours is still the one, and put it on top
 * again; and we stand behind faulthandler.enable and .disable, the two that are
 * called most.  What was found each time is kept in a stack: faulthandler, when
 * it is passed a real fault, puts the handler back that it found (ours), and
 * raises the signal again; that one goes to the next in the stack, else the two
 * would call each other for ever.
 *
 * A calculation runs on the stack of the code that was interrupted, not on a small
 * alternate one (interrupted.c).  A stack overflow is not a touch of a guard and is
 * passed on while still on the alternate stack.
 *
 * The signal is not blocked while it is handled, as a calculation may touch
 * another guard.  Threads that block SIGSEGV cannot be helped: the kernel ends
 * the process.
 *
 * Questions: touch.c has the holder of the GIL asked, with the same signal and a
 * value of our own, to calculate what another thread waits for.  It may be
 * anywhere, and does so only where that is safe (interrupted.c).
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE
#ifndef _GNU_SOURCE
#    define _GNU_SOURCE
#endif

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "deferred.h"

#ifdef __linux__

#    include "interrupted.h"

#    include <errno.h>
#    include <pthread.h>
#    include <signal.h>
#    include <stdint.h>
#    include <stdlib.h>
#    include <string.h>
#    include <sys/syscall.h>
#    include <sys/uio.h>
#    include <unistd.h>

/* Handlers found in our place, one on top of the other. */
#    define MAX_FOUND 16
/* Every so many deferrals we look whether the handler is ours. */
#    define LOOK_EVERY 64
/* So many threads are asked at most whether they hold the GIL. */
#    define MAX_ASKED 4096
/* So often the same instruction may fault though values are there. */
#    define MAX_REPEATS 100000

/* The one registry of this file; changed with the GIL held. */
static struct {
    struct sigaction found[MAX_FOUND];
    int nfound;
    void (*faulthandler)(int); /* its handler, when that has been seen */
    int prepared;
    int look_in; /* deferrals, until we look again */
} guard;

/* How many found handlers this thread is in, and a frame below their frames. */
static NPY_TLS int passed = 0;
static NPY_TLS uintptr_t passed_frame;
/* Code between a handler that was passed a fault and its raise() needs less. */
#    define MOST_PASSED_STACK ((uintptr_t)1 << 20)

/* What sigqueue()s of others do not have as their value. */
static char question;

static void
on_segv(int signal, siginfo_t *info, void *context);

/* ---- handlers of others ---- */

static int
is_fault(const siginfo_t *info)
{
    return info->si_code == SEGV_MAPERR || info->si_code == SEGV_ACCERR;
}

static void
call_found(struct sigaction *found, int signal, siginfo_t *info, void *context)
{
    sigset_t blocked = found->sa_mask, before;
    if (!(found->sa_flags & SA_NODEFER)) {
        sigaddset(&blocked, signal);
    }
    void (*handler)(int) = found->sa_handler;
    void (*action)(int, siginfo_t *, void *) = found->sa_sigaction;
    if (found->sa_flags & SA_RESETHAND) {
        found->sa_handler = SIG_DFL;
    }
    pthread_sigmask(SIG_BLOCK, &blocked, &before);
    if (found->sa_flags & SA_SIGINFO) {
        action(signal, info, context);
    }
    else {
        handler(signal);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Not ours: do what would have been done without us. */
static void
pass_on(int signal, siginfo_t *info, void *context)
{
    uintptr_t stack = npy_deferred_stack_pointer(context);
    if (stack != 0 && passed_frame - stack > MOST_PASSED_STACK) {
        passed = 0; /* it was left by longjmp */
    }
    for (int level = guard.nfound - 1 - passed; level >= 0; level--) {
        struct sigaction *found = &guard.found[level];
        void (*handler)(int) = found->sa_handler;
        if (handler == SIG_IGN && info->si_code <= 0) {
            return;
        }
        if (handler == SIG_IGN || handler == SIG_DFL) {
            break;
        }
        passed = guard.nfound - level;
        passed_frame = (uintptr_t)&level;
        call_found(found, signal, info, context);
        passed = guard.nfound - level - 1;
        /* That of faulthandler returns at once when it has been disabled. */
        if (handler != guard.faulthandler || !is_fault(info)) {
            return;
        }
    }
    /* A fault happens again when we return, and meets the default action. */
    struct sigaction standard = {.sa_handler = SIG_DFL};
    sigaction(signal, &standard, NULL);
    if (info->si_code <= 0) {
        syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), signal, info);
    }
}

/* Put our handler on top, remembering what is there. */
static void
install(void)
{
    struct sigaction current;
    struct sigaction handler = {
            .sa_sigaction = on_segv,
            .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTART};
    if (sigaction(SIGSEGV, NULL, &current) < 0 || current.sa_sigaction == on_segv) {
        return;
    }
    for (int i = 0; i < guard.nfound; i++) {
        if (guard.found[i].sa_handler == current.sa_handler) {
            guard.nfound = i; /* whoever came on top of it has gone again */
        }
    }
    if (guard.nfound == MAX_FOUND) {
        memmove(guard.found, guard.found + 1,
                sizeof(guard.found) - sizeof(*guard.found));
        guard.nfound--;
    }
    guard.found[guard.nfound] = current;
    guard.nfound++;
    sigaction(SIGSEGV, &handler, NULL);
}

/* ---- faulthandler ---- */

static PyCFunctionWithKeywords faulthandler_enable = NULL;
static PyCFunction faulthandler_disable = NULL;

/* faulthandler is enabled: what is on top, unless that is ours, is its handler. */
static void
note_faulthandler(void)
{
    struct sigaction current;
    if (sigaction(SIGSEGV, NULL, &current) == 0 && current.sa_sigaction != on_segv) {
        guard.faulthandler = current.sa_handler;
    }
}

static PyObject *
enable(PyObject *self, PyObject *args, PyObject *kwargs)
{
    PyObject *result = faulthandler_enable(self, args, kwargs);
    note_faulthandler();
    install();
    return result;
}

static PyObject *
disable(PyObject *self, PyObject *noarg)
{
    PyObject *result = faulthandler_disable(self, noarg);
    install();
    for (int i = 0; i < guard.nfound; i++) {
        if (guard.found[i].sa_handler == guard.faulthandler) {
            guard.nfound--;
            memmove(&guard.found[i], &guard.found[i + 1],
                    (guard.nfound - i) * sizeof(*guard.found));
        }
    }
    return result;
}

/* The definition behind a built-in function of a module, or NULL. */
static PyMethodDef *
definition(PyObject *module, const char *name, int flags)
{
    PyObject *function = PyObject_GetAttrString(module, name);
    PyMethodDef *found = NULL;
    if (function != NULL && PyCFunction_CheckExact(function) &&
        PyCFunction_GET_FLAGS(function) == flags) {
        found = ((PyCFunctionObject *)function)->m_ml;
    }
    Py_XDECREF(function);
    return found;
}

/* Have ours on top again whenever faulthandler has changed handlers. */
static void
follow_faulthandler(void)
{
    PyObject *module = PyImport_ImportModule("faulthandler");
    if (module != NULL) {
        PyMethodDef *enabler =
                definition(module, "enable", METH_VARARGS | METH_KEYWORDS);
        PyMethodDef *disabler = definition(module, "disable", METH_NOARGS);
        if (enabler != NULL && disabler != NULL) {
            faulthandler_enable =
                    (PyCFunctionWithKeywords)(void (*)(void))enabler->ml_meth;
            faulthandler_disable = disabler->ml_meth;
            enabler->ml_meth = (PyCFunction)(void (*)(void))enable;
            disabler->ml_meth = disable;
        }
        PyObject *enabled = PyObject_CallMethod(module, "is_enabled", NULL);
        if (enabled == Py_True) {
            note_faulthandler();
        }
        Py_XDECREF(enabled);
        Py_DECREF(module);
    }
    PyErr_Clear();
}

/* ---- questions ---- */

static void
answer(void *NPY_UNUSED(unused))
{
    npy_deferred_serve_requests();
}

static void
ask(unsigned long thread)
{
    siginfo_t info;
    memset(&info, 0, sizeof(info));
    info.si_signo = SIGSEGV;
    info.si_code = SI_QUEUE;
    info.si_pid = getpid();
    info.si_uid = getuid();
    info.si_value.sival_ptr = &question;
    syscall(SYS_rt_tgsigqueueinfo, getpid(), (pid_t)thread, SIGSEGV, &info);
}

#    if PY_VERSION_HEX < 0x030C0000
static void
ask_holder(void)
{
    PyThreadState *holder = _PyThreadState_UncheckedGet();
    if (holder != NULL) {
        ask(holder->native_thread_id);
    }
}
#    else
/*
 * Read what its owner may be about to free: 0, or -1 where nothing is any more.  Where
 * the system forbids to read it that way, it is read as anything else.
 */
static int
peek(void *to, const void *from, size_t size)
{
    struct iovec local = {to, size}, remote = {(void *)from, size};
    ssize_t done = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
    if (done < 0 && errno != EFAULT) {
        memcpy(to, from, size);
        return 0;
    }
    return done == (ssize_t)size ? 0 : -1;
}

/*
 * Only a thread itself knows whether it holds the GIL, so all of Python's are asked.
 * Their list is read without its lock, which Python keeps to itself: it may end early,
 * and name threads that are gone, but another question follows.
 */
static void
ask_holder(void)
{
    unsigned long this = (unsigned long)syscall(SYS_gettid), thread;
    PyThreadState *state = PyInterpreterState_ThreadHead(PyInterpreterState_Main());
    for (int i = 0; state != NULL && i < MAX_ASKED; i++) {
        PyThreadState *next;
        if (peek(&thread, &state->native_thread_id, sizeof(thread)) < 0 ||
            peek(&next, &state->next, sizeof(next)) < 0) {
            return;
        }
        if (thread != this) {
            ask(thread);
        }
        state = next;
    }
}
#    endif

NPY_NO_EXPORT void
npy_deferred_ask_gil_holder(void)
{
    struct sigaction current;
    if (npy_deferred_guard_mode == NPY_DEFERRED_GUARD_OFF ||
        sigaction(SIGSEGV, NULL, &current) < 0 || current.sa_sigaction != on_segv) {
        return;
    }
    ask_holder();
}

/* ---- the handler ---- */

typedef struct {
    const void *address;
    int found;
} touch;

static void
handle_touch(void *argument)
{
    touch *t = argument;
    t->found = npy_deferred_touched(t->address);
}

/*
 * Whether an instruction faults again and again, though it should not: one that
 * copies between both addresses of a result has the pages moved to and fro.
 */
static int
is_stuck(const void *address, uintptr_t pc)
{
    static NPY_TLS const void *last_addresses[2];
    static NPY_TLS uintptr_t last_pc;
    static NPY_TLS int repeats;
    int again = address == last_addresses[0] || address == last_addresses[1];
    repeats = again && pc == last_pc ? repeats + 1 : 0;
    if (address != last_addresses[0]) {
        last_addresses[1] = last_addresses[0];
        last_addresses[0] = address;
    }
    last_pc = pc;
    if (repeats <= MAX_REPEATS) {
        return 0;
    }
    static const char text[] =
            "numpy: compiled code uses two addresses of a deferred array at once, the "
            "one it had before its calculation and the one after; call "
            "np.deferred.calculate() first\n";
    return write(2, text, sizeof(text) - 1) != 0;
}

/* A guard, or memory that pending nodes read; but nobody's instructions. */
static int
may_be_ours(const void *address, void *context)
{
    uintptr_t pc = npy_deferred_program_counter(context);
    if ((uintptr_t)address == pc) {
        return 0;
    }
    return npy_deferred_is_protected(address) ||
           (npy_deferred_is_guard(address) && !is_stuck(address, pc));
}

static void
on_segv(int signal, siginfo_t *info, void *context)
{
    int saved_errno = errno;
    if (info->si_code == SI_QUEUE && info->si_value.sival_ptr == &question) {
        if (npy_deferred_may_interrupt(context) && npy_deferred_holds_gil() &&
            !npy_deferred_is_sharing() && !npy_deferred_running) {
            npy_deferred_call_with_room(context, answer, NULL);
        }
        errno = saved_errno;
        return;
    }
    if (is_fault(info) && may_be_ours(info->si_addr, context)) {
        if (npy_deferred_guard_mode >= NPY_DEFERRED_GUARD_REPORT) {
            npy_deferred_report_stack();
        }
        touch t = {info->si_addr, 0};
        npy_deferred_call_with_room(context, handle_touch, &t);
        errno = saved_errno;
        if (t.found == 0) {
            return;
        }
    }
    if (info->si_code == SEGV_ACCERR && npy_deferred_was_protected(info->si_addr)) {
        errno = saved_errno;
        return;
    }
    pass_on(signal, info, context);
}

NPY_NO_EXPORT void
npy_deferred_guard_watch(void)
{
    if (--guard.look_in > 0 || npy_deferred_guard_mode == NPY_DEFERRED_GUARD_OFF) {
        return;
    }
    if (!guard.prepared) {
        guard.prepared = 1;
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        follow_faulthandler();
        PyErr_Restore(type, value, traceback);
        npy_deferred_find_our_code();
        if (npy_deferred_guard_mode >= NPY_DEFERRED_GUARD_REPORT) {
            npy_deferred_prepare_report();
        }
    }
    install();
    guard.look_in = LOOK_EVERY;
}

#else

NPY_NO_EXPORT void
npy_deferred_guard_watch(void)
{
}

#endif
