/*
 * What calculations and ufunc calls tell np.deferred.profile, see profile.c:
 * a test of one global each, while nobody profiles.
 */
#ifndef NPY_DEFERRED_IMPLEMENTATION
#    error "profile.h is private to numpy_deferred"
#endif

#ifndef NUMPY_DEFERRED_SRC_PROFILE_H_
#    define NUMPY_DEFERRED_SRC_PROFILE_H_

#    include "deferred.h"

/* Why an array is calculated, and how Python says so. */
#    define NPY_DEFERRED_WHYS(X)                                                    \
        X(READ, "read")                                                             \
        X(CALL, "np.deferred.calculate")                                            \
        X(ALL, "everything pending is calculated")                                  \
        X(SCOPE, "the end of np.deferral")                                          \
        X(ERRSTATE, "the error state changes")                                      \
        X(CHANGE, "written, or changed")                                            \
        X(WRITE, "an operand is written, or changed")                               \
        X(EXPOSE, "its address is handed out")                                      \
        X(ASSIGN, "assigned")                                                       \
        X(OUT, "the operation has out=")                                            \
        X(AT_ONCE, "an operation that runs at once reads it")                       \
        X(PART, "a part that is not of one pass with the rest")                     \
        X(BOUNDS, "an expression with more operations or operands is too large")    \
        X(HELD, "an expression with more operations would keep much memory alive")  \
        X(LIMIT, "pending operations keep more memory alive than the memory limit") \
        X(API, "an extension, by the C API")                                        \
        X(UNSEEN, "compiled code asks for arrays, and may write to operands")       \
        X(TOUCH, "compiled code touches its memory, or writes to an operand's")     \
        X(LATE, "PyArray_DATA, where NumPy has no hook")

/* Why an operation runs at once although deferral is on. */
#    define NPY_DEFERRED_AT_ONCES(X)                                           \
        X(NOT, "")                                                             \
        X(OFF, "deferral is off, and its inputs are deferred")                 \
        X(OUT, "out= is given")                                                \
        X(WHERE, "where= is given")                                            \
        X(UFUNC, "not an elementwise ufunc of one or two results")             \
        X(SUBCLASS, "an input is of a subclass of ndarray")                    \
        X(TYPES, "its types or casts")                                         \
        X(EMPTY, "the result is empty")                                        \
        X(SMALL, "the result is small (NUMPY_DEFERRED_MIN_BYTES)")             \
        X(ALONE, "smaller results of this line are read as they are")          \
        X(PROTECTED,                                                           \
          "a library that writes without asking is there (set_protect_limit)") \
        X(FOREIGN, "the memory of an input is not NumPy's")                    \
        X(EXPOSED, "the memory of an input is exposed")                        \
        X(WRITEBACK, "an input is the target of a writeback")                  \
        X(VIEW, "an input is a small view of much memory")                     \
        X(HANDLER, "the memory handler is not NumPy's")                        \
        X(ADDRESSES, "there are no addresses for the result")

#    define NPY_DEFERRED_WHY(name, text) NPY_DEFERRED_WHY_##name,
typedef enum {
    NPY_DEFERRED_WHYS(NPY_DEFERRED_WHY)
} npy_deferred_why;
#    undef NPY_DEFERRED_WHY

#    define NPY_DEFERRED_AT_ONCE(name, text) NPY_DEFERRED_AT_ONCE_##name,
typedef enum {
    NPY_DEFERRED_AT_ONCES(NPY_DEFERRED_AT_ONCE)
} npy_deferred_at_once;
#    undef NPY_DEFERRED_AT_ONCE

/* How many profiles are being made.  Guarded by the GIL. */
extern NPY_NO_EXPORT int npy_deferred_profiling;

/*
 * Why the next evaluation comes about, which takes it.  Set right before it, READ at
 * any other time.  Guarded by the GIL.
 */
extern NPY_NO_EXPORT npy_deferred_why npy_deferred_because;

static inline int
npy_deferred_calculate_because(npy_deferred_why why, PyArrayObject *arr)
{
    npy_deferred_because = why;
    int result = npy_deferred_calculate(arr);
    npy_deferred_because = NPY_DEFERRED_WHY_READ;
    return result;
}

/* An evaluation under way, on the stack of who evaluates. */
typedef struct npy_deferred_profiled npy_deferred_profiled;
struct npy_deferred_profiled {
    npy_deferred_profiled *outer; /* in this thread */
    int active;
    npy_deferred_why why;
    PyObject *start, *frames, *described, *plan; /* owned, or NULL */
    npy_intp written; /* bytes, set by who has not stored all values; -1: all */
};

NPY_NO_EXPORT void
npy_deferred_profile_enter(npy_deferred_profiled *profiled, npy_deferred_target target);
NPY_NO_EXPORT void
npy_deferred_profile_leave(npy_deferred_profiled *profiled, int result);
NPY_NO_EXPORT void
npy_deferred_profile_describe(const npy_deferred_expression *expression,
                              PyArrayObject *out);
NPY_NO_EXPORT void
npy_deferred_profile_describe_plan(const npy_deferred_plan *plan,
                                   const npy_deferred_walk *walk);
NPY_NO_EXPORT void
npy_deferred_profile_count(npy_deferred_at_once reason, PyUFuncObject *ufunc);

/* Around an evaluation and the report of its errors; no Python code runs in them. */
static inline void
npy_deferred_profile_begin(npy_deferred_profiled *profiled, npy_deferred_target target)
{
    profiled->active = 0;
    if (NPY_UNLIKELY(npy_deferred_profiling)) {
        npy_deferred_profile_enter(profiled, target);
    }
}

static inline void
npy_deferred_profile_end(npy_deferred_profiled *profiled, int result)
{
    if (NPY_UNLIKELY(profiled->active)) {
        npy_deferred_profile_leave(profiled, result);
    }
}

/* It came to nothing, and is done in another way, for the same reason. */
static inline void
npy_deferred_profile_cancel(npy_deferred_profiled *profiled)
{
    if (NPY_UNLIKELY(profiled->active)) {
        Py_CLEAR(profiled->described);
        npy_deferred_because = profiled->why;
    }
}

/* What is about to be evaluated together, into `out`. */
static inline void
npy_deferred_profile_expression(const npy_deferred_expression *expression,
                                PyArrayObject *out)
{
    if (NPY_UNLIKELY(npy_deferred_profiling)) {
        npy_deferred_profile_describe(expression, out);
    }
}

/* How. */
static inline void
npy_deferred_profile_plan(const npy_deferred_plan *plan, const npy_deferred_walk *walk)
{
    if (NPY_UNLIKELY(npy_deferred_profiling)) {
        npy_deferred_profile_describe_plan(plan, walk);
    }
}

/* A ufunc call ran at once. */
static inline void
npy_deferred_profile_at_once(npy_deferred_at_once reason, PyUFuncObject *ufunc)
{
    if (NPY_UNLIKELY(npy_deferred_profiling) && reason != NPY_DEFERRED_AT_ONCE_NOT) {
        npy_deferred_profile_count(reason, ufunc);
    }
}

/* Make a profile (a list of calculations, a dict of counts): 0 or -1. */
NPY_NO_EXPORT int
npy_deferred_profile_start(PyObject *events, PyObject *counts, PyObject *own_files);
/* Borrowed from the start, and complete from here on. */
NPY_NO_EXPORT void
npy_deferred_profile_stop(PyObject *events);

#endif /* NUMPY_DEFERRED_SRC_PROFILE_H_ */
