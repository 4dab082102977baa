/*
 * Sweeps: several arrays that share operands, calculated together.
 *
 * Where several arrays are to be calculated anyway (np.deferred.calculate, the end of
 * np.deferral, a write into what they read), those that read the same memory, or each
 * other, come out of one walk over it, which has several results: what they share is
 * read once, and worked out once.  What a named intermediate is, is stored on the way.
 *
 * One of them *leads*: all is as if it were calculated, and the others with it, where
 * nothing can come of that but values.  So no operation may raise; and of the others
 * none is published that has something to report: its values are dropped, and it is
 * calculated when its turn comes, as are all where the walk cannot be had.
 *
 * The two outputs of a call are a sweep whenever one of them is calculated, so that
 * its loop runs once.  They have the same operations, and report and raise the same.
 *
 * Code may run while errors are reported, and as operands go, and other threads may
 * while the walk is gone through; then arrays of the sweep may have been calculated by
 * others, and are left alone.
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

/* The first one leads. */
typedef struct {
    int n;
    PyArrayObject *arrays[NPY_DEFERRED_MAX_SWEEP];    /* owned */
    npy_deferred_node *nodes[NPY_DEFERRED_MAX_SWEEP]; /* owned */
    void *memory[NPY_DEFERRED_MAX_SWEEP];             /* owned; NULL: none any more */
    PyArrayObject *outs[NPY_DEFERRED_MAX_SWEEP];      /* owned: over that memory */
} sweep;

/* Of results: their elements follow each other in the same way. */
static int
lie_alike(PyArrayObject *array, PyArrayObject *other)
{
    int ndim = PyArray_NDIM(array);
    if (ndim != PyArray_NDIM(other)) {
        return 0;
    }
    for (int i = 0; i < ndim; i++) {
        if (PyArray_DIM(array, i) != PyArray_DIM(other, i) ||
            PyArray_STRIDE(array, i) * PyArray_ITEMSIZE(other) !=
                    PyArray_STRIDE(other, i) * PyArray_ITEMSIZE(array)) {
            return 0;
        }
    }
    return 1;
}

NPY_NO_EXPORT int
npy_deferred_may_sweep(PyArrayObject *array, PyArrayObject *other)
{
    /* Single elements have strides of their own. */
    if (!npy_deferred_is(other) || npy_deferred_node_of(other)->computed != NULL ||
        array == other || !lie_alike(array, other) || PyArray_SIZE(array) == 1) {
        return 0;
    }
    npy_deferred_usage *usage = npy_deferred_find_usage(other);
    return usage == NULL || Py_REFCNT(other) > usage->count;
}

/* The other output of an array's call, if that waits too, or NULL. */
static PyArrayObject *
other_output(PyArrayObject *array)
{
    npy_deferred_node *twin = npy_deferred_pending_twin(npy_deferred_node_of(array));
    return twin == NULL || twin->computed != NULL ? NULL : twin->array;
}

static void
add(sweep *s, PyArrayObject *array)
{
    npy_deferred_node *node = npy_deferred_node_of(array);
    npy_deferred_node_incref(node);
    Py_INCREF(array);
    s->arrays[s->n] = array;
    s->nodes[s->n] = node;
    s->memory[s->n] = NULL;
    s->outs[s->n] = NULL;
    s->n++;
}

static int
has(const sweep *s, PyArrayObject *array)
{
    for (int i = 0; i < s->n; i++) {
        if (s->arrays[i] == array) {
            return 1;
        }
    }
    return 0;
}

/* Add another, where it fits, and the other output of its call. */
static void
join(sweep *s, npy_deferred_expression *expression, npy_uint64 visit,
     PyArrayObject *array)
{
    while (array != NULL && s->n < NPY_DEFERRED_MAX_SWEEP && !has(s, array) &&
           npy_deferred_join(expression, npy_deferred_node_of(array), visit)) {
        add(s, array);
        array = other_output(array);
    }
}

/* Memory for what is not new any more goes back. */
static void
release(sweep *s)
{
    for (int i = 0; i < s->n; i++) {
        if (s->memory[i] != NULL) {
            npy_deferred_memory_free(s->memory[i]);
        }
        Py_XDECREF(s->outs[i]);
        npy_deferred_node_decref(s->nodes[i]);
        Py_DECREF(s->arrays[i]);
    }
    s->n = 0;
}

/* Who is in it, of those that are to be calculated: nobody for less than two. */
static void
choose(sweep *s, PyArrayObject *array, PyArrayObject *const others[], int n)
{
    npy_deferred_expression expression;
    PyArrayObject *twin = other_output(array);
    int i = 0;
    s->n = 0;
    if (twin == NULL) {
        while (i < n && !npy_deferred_may_sweep(array, others[i])) {
            i++;
        }
        if (i == n) {
            return;
        }
    }
    npy_uint64 visit = npy_deferred_new_visit();
    expression.nnodes = expression.noperands = expression.nkept = 0;
    join(s, &expression, visit, array);
    for (; i < n && s->n > 0; i++) {
        if (npy_deferred_may_sweep(array, others[i])) {
            join(s, &expression, visit, others[i]);
        }
    }
    if (s->n == 1) {
        release(s);
    }
    if (s->n == 0 && twin != NULL) {
        add(s, array); /* what they do not fit with is calculated before */
        add(s, twin);
    }
}

/* Returns 0 or -1, perhaps with an exception set. */
static int
allocate(sweep *s)
{
    for (int i = 0; i < s->n; i++) {
        s->memory[i] = npy_deferred_memory_new(s->arrays[i]);
        if (s->memory[i] == NULL) {
            return -1;
        }
        s->outs[i] = npy_deferred_array_over(s->arrays[i], s->memory[i]);
        if (s->outs[i] == NULL) {
            return -1;
        }
    }
    return 0;
}

/* ---- what was raised ---- */

/* Whether the error state of its operation wants to know. */
static int
is_wanted(const npy_deferred_error *error)
{
    return (error->status & npy_deferred_wanted_status(error->errmask)) != 0;
}

/* Whether it is of a call in the expression that was collected last, of this root. */
static int
is_error_of(const npy_deferred_error *error, const npy_deferred_node *root)
{
    const npy_deferred_node *node = error->node;
    return node->visited == root->visited ||
           (node->twin != NULL && node->twin->visited == root->visited);
}

/* Leave those to report that are the leader's, and drop the values of whoever has
 * others. */
static void
drop_unreported(sweep *s, npy_deferred_errors *errors)
{
    npy_deferred_expression expression;
    npy_deferred_errors foreign;
    int n = 0;
    foreign.n = 0;
    npy_deferred_collect(s->nodes[0], &expression);
    for (int i = 0; i < errors->n; i++) {
        npy_deferred_error *error = &errors->items[i];
        int is_own = is_error_of(error, s->nodes[0]);
        *(is_own ? &errors->items[n++] : &foreign.items[foreign.n++]) = *error;
    }
    errors->n = n;
    for (int i = 1; i < s->n && foreign.n > 0; i++) {
        npy_deferred_collect(s->nodes[i], &expression);
        for (int j = 0; j < foreign.n && s->memory[i] != NULL; j++) {
            if (is_error_of(&foreign.items[j], s->nodes[i]) &&
                is_wanted(&foreign.items[j])) {
                npy_deferred_memory_free(s->memory[i]);
                s->memory[i] = NULL;
            }
        }
    }
    npy_deferred_errors_clear(&foreign);
}

/* Report what the leader has; see calculate.c for `computed`. */
static int
report(sweep *s, npy_deferred_errors *errors)
{
    npy_deferred_node *leader = s->nodes[0];
    leader->computed = s->memory[0];
    int result = npy_deferred_report(errors);
    if (leader->computed == NULL) {
        s->memory[0] = NULL; /* a handler or another thread has committed it */
    }
    leader->computed = NULL;
    npy_deferred_set_failed(leader,
                            result < 0 && PyErr_ExceptionMatches(PyExc_Exception));
    return result;
}

/* ---- what was calculated ---- */

/* Which has values and is the newest, or -1. */
static int
newest(const sweep *s)
{
    int found = -1;
    for (int i = 0; i < s->n; i++) {
        if (s->memory[i] != NULL &&
            (found < 0 || s->nodes[i]->serial > s->nodes[found]->serial)) {
            found = i;
        }
    }
    return found;
}

/* The newest first, so that what one reads of another need not be protected. */
static void
commit(sweep *s)
{
    for (;;) {
        npy_deferred_wait(); /* for another that reads it as a part of something */
        int i = newest(s);
        if (i < 0) {
            break;
        }
        PyArrayObject *array = s->arrays[i];
        void *memory = s->memory[i];
        s->memory[i] = NULL;
        if (npy_deferred_is(array) && npy_deferred_node_of(array) == s->nodes[i]) {
            npy_deferred_stats.together++;
            npy_deferred_commit(array, memory);
        }
        else {
            npy_deferred_memory_free(memory);
        }
    }
}

/*
 * Returns 0; 1 when it came to nothing; -1 with an exception set.  By its name tests
 * know that it may do without memory.
 */
NPY_NOINLINE int
npy_deferred_run_sweep(sweep *s)
{
    npy_deferred_errors errors;
    errors.n = 0;
    int result = allocate(s);
    if (result == 0) {
        result = npy_deferred_evaluate_together(s->nodes, s->outs, s->n, &errors);
        if (result < 0 && npy_deferred_are_twins(s->nodes, s->n)) {
            npy_deferred_set_failed(s->nodes[0],
                                    PyErr_ExceptionMatches(PyExc_Exception));
            return -1;
        }
    }
    if (result < 0 && PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_Exception)) {
        return -1;
    }
    if (result != 0) {
        PyErr_Clear(); /* whose it is will be found when each is calculated alone */
        return 1;
    }
    if (errors.n > 0) {
        drop_unreported(s, &errors);
        if (report(s, &errors) < 0) {
            return -1;
        }
    }
    commit(s);
    return 0;
}

/* Calculate in a sweep, if there is one.  Returns as npy_deferred_run_sweep. */
static int
try_sweep(PyArrayObject *array, PyArrayObject *const others[], int n)
{
    sweep s;
    s.n = 0;
    npy_deferred_wait();
    if (npy_deferred_is(array) && npy_deferred_node_of(array)->computed == NULL) {
        choose(&s, array, others, n);
    }
    if (s.n == 0) {
        return 1;
    }
    npy_deferred_profiled profiled;
    npy_deferred_profile_begin(&profiled, NPY_DEFERRED_FRESH);
    int result = npy_deferred_run_sweep(&s);
    if (result > 0) {
        npy_deferred_profile_cancel(&profiled);
    }
    npy_deferred_profile_end(&profiled, result);
    release(&s);
    return result;
}

NPY_NO_EXPORT int
npy_deferred_calculate_with(PyArrayObject *array, PyArrayObject *const others[], int n)
{
    int result = try_sweep(array, others, n);
    /* Without the others, if it came to nothing. */
    if (result > 0 && n > 0 && npy_deferred_is(array) && other_output(array) != NULL) {
        result = try_sweep(array, NULL, 0);
    }
    return result < 0 ? -1 : npy_deferred_calculate_alone(array);
}
