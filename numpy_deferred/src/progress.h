/*
 * How far a calculation is, for np.deferred.progress: see progress.c.
 */
#ifndef NPY_DEFERRED_IMPLEMENTATION
#    error "progress.h is private to numpy_deferred"
#endif

#ifndef NUMPY_DEFERRED_SRC_PROGRESS_H_
#    define NUMPY_DEFERRED_SRC_PROGRESS_H_

#    include "deferred.h"

/* A calculation under way, on the stack of who runs it. */
typedef struct {
    npy_intp total, done; /* elements; done: atomic */
    int divided;          /* what is done is counted in parts, by all threads */
    int helper, socket;   /* the process that draws, and what it reads; or 0 */
    int shown;            /* how many lines */
    npy_int64 start, due; /* nanoseconds */
} npy_deferred_progress;

/* Where lines go and after how many nanoseconds; -1: nowhere.  Guarded by the GIL. */
typedef struct {
    int file;
    npy_int64 delay;
    PyObject *helper; /* owned: its argv, a tuple of bytes; or NULL */
} npy_deferred_progress_settings;
extern NPY_NO_EXPORT npy_deferred_progress_settings npy_deferred_show_progress;

/* Returns `progress`, or NULL when nothing is to be shown; this and that go below. */
NPY_NO_EXPORT npy_deferred_progress *
npy_deferred_progress_begin(npy_deferred_progress *progress, npy_intp total);
/* Call now and then in the thread that holds the GIL. */
NPY_NO_EXPORT void
npy_deferred_progress_look(npy_deferred_progress *progress);
NPY_NO_EXPORT void
npy_deferred_progress_end(npy_deferred_progress *progress, int result);

/* Elements are done.  Needs no GIL. */
static inline void
npy_deferred_progress_add(npy_deferred_progress *progress, npy_intp n)
{
    if (NPY_UNLIKELY(progress != NULL)) {
        __atomic_fetch_add(&progress->done, n, __ATOMIC_RELAXED);
    }
}

#endif /* NUMPY_DEFERRED_SRC_PROGRESS_H_ */
