/*
 * Progress: a line that says how far a long calculation is, for np.deferred.progress.
 *
 * A calculation holds the GIL, and no Python code may run while there is a plan: it
 * could write to the operands, or calculate the very array.  So neither a bar that is
 * written in Python can be moved nor sys.stderr be used.  The thread that holds the
 * GIL, which looks for interrupts now and then (execute.c), writes the line itself,
 * to a file descriptor.
 *
 * A terminal gets one line that changes; anything else, a log for instance, gets a
 * new line now and then.  A write that fails is no error of the calculation's.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

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

static void
show(npy_deferred_progress *progress, npy_int64 time, int last)
{
    char line[160], bar[BAR + 1];
    int file = npy_deferred_show_progress.file, terminal = isatty(file);
    npy_intp done = __atomic_load_n(&progress->done, __ATOMIC_RELAXED);
    done = PyArray_MIN(done, progress->total);
    double part = (double)done / (double)progress->total;
    double seconds = (double)(time - progress->start) / SECOND;
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
    int before = errno; /* loops of other packages may look at it */
    if (write(file, line, length) < 0) {
        progress->due = NPY_MAX_INT64; /* not again */
    }
    errno = before;
    progress->shown++;
}

NPY_NO_EXPORT void
npy_deferred_progress_look(npy_deferred_progress *progress)
{
    npy_int64 time = nanoseconds();
    if (time < progress->due) {
        return;
    }
    progress->due = time + (isatty(npy_deferred_show_progress.file) ? TERMINAL_EVERY
                                                                    : LOG_EVERY);
    show(progress, time, 0);
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
