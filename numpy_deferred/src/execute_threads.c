/*
 * A calculation in several threads, which take one part of the walk after the other.
 *
 * Each has a run of its own, with a copy of the plan, for the data of its part, its
 * slots, and what was raised.  They are made before the GIL is given up, and released
 * after.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"
#include "numpy/npy_math.h"

#include "execute.h"

/*
 * What is given to a thread at a time touches about as much memory, and consists of
 * whole blocks, or whole runs of the iterator: no loop sees another length than in
 * one thread, but where there are no blocks.
 */
#define PART_BYTES (256 * 1024)
#define PART_UNIT NPY_DEFERRED_MAX_BLOCK
/* Elements, times loops, that are worth waking another thread. */
#define WORTH_A_THREAD 65536

typedef struct {
    run_state *states; /* one for each thread */
    npy_intp count, part, nparts;
    npy_intp next; /* atomic */
    int result;    /* atomic: of the first that was not 0 */
} division;

/* Take one part after the other.  Needs no GIL. */
static void
run_parts(void *argument, int thread)
{
    division *d = argument;
    run_state *state = &d->states[thread];
    npy_clear_floatstatus_barrier((char *)state);
    while (__atomic_load_n(&d->result, __ATOMIC_RELAXED) == 0) {
        npy_intp i = __atomic_fetch_add(&d->next, 1, __ATOMIC_RELAXED);
        if (i >= d->nparts) {
            break;
        }
        npy_intp start = i * d->part;
        npy_intp count = i == d->nparts - 1 ? d->count - start : d->part;
        int result = npy_deferred_run_range(state, start, count);
        npy_deferred_progress_add(state->progress, count);
        if (result != 0) {
            __atomic_store_n(&d->result, result, __ATOMIC_RELAXED);
        }
    }
    npy_deferred_end_streams();
}

/* Whether the iterator has a copy of an operand, which it writes back once. */
static int
writes_back(const npy_deferred_walk *walk)
{
    int noperands = walk->expression->noperands;
    return walk->iter != NULL &&
           NpyIter_GetOperandArray(walk->iter)[noperands] != walk->out;
}

NPY_NO_EXPORT int
npy_deferred_threads_for(const npy_deferred_plan *plan, const npy_deferred_walk *walk)
{
    npy_intp count = PyArray_SIZE(walk->out);
    /* Steps that run in registers take a third of the time of a loop, and so does
     * what is read and written for them. */
    int nloops = npy_deferred_nloops(plan, walk);
    if (nloops < plan->nsteps) {
        nloops += (plan->nsteps - nloops + plan->out + 1) / 3;
    }
    npy_intp shares = count / WORTH_A_THREAD * nloops +
                      count % WORTH_A_THREAD * nloops / WORTH_A_THREAD;
    if (shares < 2 || npy_deferred_get_num_threads() < 2 || writes_back(walk)) {
        return 1;
    }
    for (int i = 0; i < plan->nsteps; i++) {
        const npy_deferred_step *step = &plan->steps[i];
        if (!step->is_cast && !npy_deferred_is_own_ufunc(step->node->ufunc)) {
            return 1; /* it may want the GIL */
        }
    }
    return (int)PyArray_MIN(shares, npy_deferred_get_num_threads());
}

/* What parts may consist of: see PART_BYTES. */
static npy_intp
unit_of(const run_state *state)
{
    const npy_deferred_walk *walk = state->walk;
    if (walk->packed) {
        return walk->panel;
    }
    if (walk->iter != NULL) {
        return walk->runs.total < PyArray_SIZE(walk->out) ? walk->runs.total
                                                          : walk->runs.length;
    }
    return PyArray_MIN(state->block, PART_UNIT);
}

static void
divide(division *d, const npy_deferred_plan *plan, npy_intp count)
{
    npy_intp nbytes = 0, unit = unit_of(&d->states[0]);
    for (int i = 0; i <= plan->out; i++) {
        nbytes += plan->values[i].descr->elsize;
    }
    npy_intp part = (PART_BYTES / nbytes + unit - 1) / unit * unit;
    d->count = count;
    d->part = part;
    /* The last is not short, so that its blocks are as long as elsewhere. */
    d->nparts = PyArray_MAX(count / part, 1);
}

NPY_NO_EXPORT void
npy_deferred_bring_operands(const npy_deferred_walk *walk)
{
    int n = npy_deferred_nread(walk->expression);
    for (int i = 0; i < n + !walk->fresh; i++) {
        PyArrayObject *array = i < n ? walk->expression->operands[i] : walk->out;
        if (npy_deferred_is_guard(PyArray_BYTES(array))) {
            npy_deferred_bring(PyArray_BYTES(array));
        }
    }
}

NPY_NO_EXPORT int
npy_deferred_run_divided(const run_state *whole, int nthreads)
{
    npy_deferred_plan *plan = whole->plan;
    run_state *states = PyMem_Calloc(nthreads, sizeof(*states));
    int result = -1, prepared = 0;
    if (states == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    while (prepared < nthreads &&
           npy_deferred_run_copy(&states[prepared], whole) == 0) {
        prepared++;
    }
    if (prepared == nthreads) {
        states[0].look_in = whole->look_in; /* the one that holds the GIL */
        npy_deferred_bring_operands(whole->walk);
        division d = {.states = states};
        divide(&d, plan, PyArray_SIZE(whole->walk->out));
        if (whole->progress != NULL) {
            whole->progress->divided = 1;
        }
        int released = npy_deferred_gil_release(npy_deferred_run_work(whole));
        npy_deferred_share(run_parts, &d, (int)PyArray_MIN(nthreads, d.nparts));
        npy_deferred_gil_take(released);
        result = d.result;
    }
    for (int i = 0; i < nthreads; i++) {
        for (int j = 0; i < prepared && j < plan->nsteps; j++) {
            plan->steps[j].status |= states[i].plan->steps[j].status;
        }
        if (npy_deferred_run_release(&states[i]) < 0) {
            result = -1;
        }
    }
    PyMem_Free(states);
    return result;
}
