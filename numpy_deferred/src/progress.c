/*
 * Progress: a line that says how far a long calculation is, for np.deferred.progress.
 *
 * A calculation holds the GIL, and no Python code may run while there is a plan: it
 * could write to the operands, or calculate the very array.  So neither a bar that is
 * written in Python can be moved nor sys.stderr be used.  The thread that holds the
 * GIL, which looks for interrupts now and then (execute.c), writes the line itself,
 * to a file descriptor.
 *
 * Where tqdm is installed it draws the bar, for the same reason in another process, a
 * helper, which is told the numbers.  It is started when there is something to show,
 * and ends with the calculation; where it cannot be had, our own line takes its place.
 *
 * A terminal gets one line that changes; anything else, a log for instance, gets a
 * new line now and then.  A write that fails is no error of the calculation's.
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

#include "progress.h"

#include "deferred.h"

#include <stdio.h>
#include <string.h>

NPY_NO_EXPORT npy_deferred_progress_settings npy_deferred_show_progress = {.file = -1};

#ifndef _WIN32

#    include <errno.h>
#    include <time.h>
#    include <unistd.h>

#    define SECOND 1000000000
/* Nanoseconds between two lines. */
#    define TERMINAL_EVERY (SECOND / 10)
#    define LOG_EVERY (5 * (npy_int64)SECOND)
/* Characters of the bar. */
#    define BAR 24

static npy_int64
nanoseconds(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (npy_int64)time.tv_sec * SECOND + time.tv_nsec;
}

NPY_NO_EXPORT npy_deferred_progress *
npy_deferred_progress_begin(npy_deferred_progress *progress, npy_intp total)
{
    if (NPY_LIKELY(npy_deferred_show_progress.file < 0)) {
        return NULL;
    }
    memset(progress, 0, sizeof(*progress));
    progress->total = total;
    progress->start = nanoseconds();
    progress->due = progress->start + npy_deferred_show_progress.delay;
    return progress;
}

#    ifdef __linux__

#        include <fcntl.h>
#        include <signal.h>
#        include <spawn.h>
#        include <sys/socket.h>
#        include <sys/wait.h>

/* Arguments of a helper, and how long it may take to end: 2 s. */
#        define MAX_ARGS 8
#        define PATIENCE 400
#        define PAUSE (SECOND / 200)

extern char **environ;

/* With `input` as its standard input.  Returns its number, or 0. */
static pid_t
spawn(PyObject *helper, int input)
{
    posix_spawn_file_actions_t actions;
    pid_t child = 0;
    char *argv[MAX_ARGS + 1] = {NULL};
    Py_ssize_t n = PyTuple_GET_SIZE(helper);
    if (n > MAX_ARGS || posix_spawn_file_actions_init(&actions) != 0) {
        return 0;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        argv[i] = PyBytes_AS_STRING(PyTuple_GET_ITEM(helper, i));
    }
    if (posix_spawn_file_actions_adddup2(&actions, npy_deferred_show_progress.file,
                                         2) != 0 ||
        posix_spawn_file_actions_adddup2(&actions, input, 0) != 0 ||
        posix_spawn(&child, argv[0], &actions, NULL, argv, environ) != 0) {
        child = 0;
    }
    posix_spawn_file_actions_destroy(&actions);
    return child;
}

static void
start_helper(npy_deferred_progress *progress)
{
    int ends[2];
    if (npy_deferred_show_progress.helper == NULL ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0) {
        return;
    }
    if (ends[0] > 2 && ends[1] > 2) {
        progress->helper = (int)spawn(npy_deferred_show_progress.helper, ends[1]);
    }
    close(ends[1]);
    if (progress->helper == 0) {
        close(ends[0]);
        return;
    }
    progress->socket = ends[0];
}

/* Wait for it, as what it draws comes before what the program prints next. */
static void
end_helper(npy_deferred_progress *progress)
{
    const struct timespec pause = {.tv_nsec = PAUSE};
    if (progress->helper == 0) {
        return;
    }
    close(progress->socket);
    pid_t ended = 0;
    for (int i = 0; i < PATIENCE && ended == 0; i++) {
        ended = waitpid(progress->helper, NULL, WNOHANG);
        if (ended == 0) {
            nanosleep(&pause, NULL);
        }
    }
    if (ended == 0) {
        kill(progress->helper, SIGKILL);
        waitpid(progress->helper, NULL, 0);
    }
    progress->helper = 0;
}

/* Returns whether somebody reads it. */
static int
tell_helper(npy_deferred_progress *progress, npy_intp done, double seconds)
{
    char line[100];
    if (progress->shown == 0) {
        start_helper(progress);
    }
    if (progress->helper == 0) {
        return 0;
    }
    int length = snprintf(line, sizeof(line), "%lld %lld %.3f\n", (long long)done,
                          (long long)progress->total, seconds);
    if (send(progress->socket, line, length, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 &&
        errno != EAGAIN && errno != EWOULDBLOCK) {
        end_helper(progress);
        return 0;
    }
    return 1;
}

#    else

static void
end_helper(npy_deferred_progress *NPY_UNUSED(progress))
{
}

static int
tell_helper(npy_deferred_progress *NPY_UNUSED(progress), npy_intp NPY_UNUSED(done),
            double NPY_UNUSED(seconds))
{
    return 0;
}

#    endif

static void
show_line(npy_deferred_progress *progress, npy_intp done, double seconds, int last)
{
    char line[160], bar[BAR + 1];
    int file = npy_deferred_show_progress.file, terminal = isatty(file);
    double part = (double)done / (double)progress->total;
    double rate = seconds > 0 ? (double)done / seconds : 0;
    int filled = (int)(part * BAR);
    memset(bar, '#', filled);
    memset(bar + filled, '.', BAR - filled);
    bar[BAR] = 0;
    int length = snprintf(line, sizeof(line),
                          "%scalculating %3d%% |%s| %.4g of %.4g elements, %.1f s, "
                          "%.3g/s%s%s",
                          terminal ? "\r" : "", (int)(part * 100), bar, (double)done,
                          (double)progress->total, seconds, rate,
                          terminal ? "\033[K" : "", terminal && !last ? "" : "\n");
    if (write(file, line, length) < 0) {
        progress->due = NPY_MAX_INT64; /* not again */
    }
}

static void
show(npy_deferred_progress *progress, npy_int64 time, int last)
{
    int before = errno; /* loops of other packages may look at it */
    npy_intp done = __atomic_load_n(&progress->done, __ATOMIC_RELAXED);
    done = PyArray_MIN(done, progress->total);
    double seconds = (double)(time - progress->start) / SECOND;
    if (!tell_helper(progress, done, seconds)) {
        show_line(progress, done, seconds, last);
    }
    if (last) {
        end_helper(progress);
    }
    progress->shown++;
    errno = before;
}

NPY_NO_EXPORT void
npy_deferred_progress_look(npy_deferred_progress *progress)
{
    npy_int64 time = nanoseconds();
    if (time < progress->due) {
        return;
    }
    progress->due = NPY_MIN_INT64;
    show(progress, time, 0);
    if (progress->due == NPY_MIN_INT64) {
        int often = progress->helper != 0 || isatty(npy_deferred_show_progress.file);
        progress->due = time + (often ? TERMINAL_EVERY : LOG_EVERY);
    }
}

NPY_NO_EXPORT void
npy_deferred_progress_end(npy_deferred_progress *progress, int result)
{
    if (progress != NULL && progress->shown > 0) {
        if (result == 0) {
            progress->done = progress->total;
        }
        show(progress, nanoseconds(), 1);
    }
}

#else

NPY_NO_EXPORT npy_deferred_progress *
npy_deferred_progress_begin(npy_deferred_progress *NPY_UNUSED(progress),
                            npy_intp NPY_UNUSED(total))
{
    return NULL;
}

NPY_NO_EXPORT void
npy_deferred_progress_look(npy_deferred_progress *NPY_UNUSED(progress))
{
}

NPY_NO_EXPORT void
npy_deferred_progress_end(npy_deferred_progress *NPY_UNUSED(progress),
                          int NPY_UNUSED(result))
{
}

#endif
