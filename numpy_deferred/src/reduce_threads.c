/*
 * Reductions in several threads.
 *
 * Either an axis that the result has, too, is divided, so that an element of the result
 * has one thread only; or the only run is: a sum where NumPy's pairwise order divides
 * it, so that bits do not depend on the number of threads.  Who takes which part is
 * chance; parts are put together in their order.  The job is on the stack of whoever
 * reduces, and owns the workers.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "array_assign.h"
#include "reduce.h"

/*
 * What is given to a thread at a time: about so many elements, of which it does not
 * skip others before it has gone through so many bytes.  Measured: where it skips
 * others after 1,000, two threads take up to 1.4 times as long as one, and after 4,000
 * they take 0.6 to 0.9 of the time.
 */
#define SHARE 32768
#define MIN_SECTION_BYTES 2048

/* What all threads take their tasks from; all but the atomic ones is set before. */
typedef struct job {
    reduction *r;
    worker *workers; /* owned: one for each thread */
    int nthreads;
    int as_program; /* see pieces.h */
    int (*run)(struct job *j, worker *w, npy_intp task);
    npy_intp ntasks;
    npy_intp next; /* atomic */
    int result;    /* atomic: of the first that was not 0 */
    /* Either indices of an axis, `per_task` each... */
    int axis;
    npy_intp per_task;
    /* ...or parts of the only run, and what comes of each. */
    npy_intp *starts; /* owned: ntasks + 1 */
    char *partial;    /* owned */
} job;

static int
run_range(job *j, worker *w, npy_intp task)
{
    npy_intp from = task * j->per_task;
    npy_intp to = task == j->ntasks - 1 ? j->r->shape[j->axis] : from + j->per_task;
    return npy_deferred_reduce_range(w, j->axis, from, to);
}

static int
run_part(job *j, worker *w, npy_intp task)
{
    npy_intp position = j->starts[task], n = j->starts[task + 1] - position;
    char *partial = j->partial + task * NPY_DEFERRED_ELEMENT_SIZE;
    w->pieces.until = position + n;
    return j->r->cut == PAIRWISE ? npy_deferred_sum_pairwise(w, position, n, partial)
                                 : npy_deferred_reduce_run(w, position, n, partial, 1);
}

/* Take one task after the other.  Needs no GIL. */
static void
run_tasks(void *argument, int thread)
{
    job *j = argument;
    worker *w = &j->workers[thread];
    npy_clear_floatstatus_barrier((char *)w);
    while (__atomic_load_n(&j->result, __ATOMIC_RELAXED) == 0) {
        npy_intp task = __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED);
        if (task >= j->ntasks) {
            break;
        }
        int result = j->run(j, w, task);
        if (result == 0) {
            result = npy_deferred_pieces_settle(&w->pieces);
        }
        if (result != 0) {
            __atomic_store_n(&j->result, result, __ATOMIC_RELAXED);
        }
    }
}

/* Where the parts of a pairwise sum start, when they are so long at most. */
static void
divide_sum(job *j, npy_intp position, npy_intp n, npy_intp longest)
{
    if (n <= longest) {
        j->starts[j->ntasks++] = position;
        return;
    }
    npy_intp half = npy_deferred_first_half(j->r, n);
    divide_sum(j, position, half, longest);
    divide_sum(j, position + half, n - half, longest);
}

/* Add up the parts of a sum, as it was divided. */
static int
add_parts(job *j, npy_intp n, char *sum)
{
    _Alignas(16) char second[NPY_DEFERRED_ELEMENT_SIZE];
    if (n <= SHARE) {
        memcpy(sum, j->partial + j->next++ * NPY_DEFERRED_ELEMENT_SIZE,
               NPY_DEFERRED_ELEMENT_SIZE);
        return 0;
    }
    npy_intp half = npy_deferred_first_half(j->r, n);
    int result = add_parts(j, half, sum);
    if (result == 0) {
        result = add_parts(j, n - half, second);
    }
    return result != 0 ? result : npy_deferred_add_sum(&j->workers[0], sum, second);
}

/* Whether eager NumPy sums up the only run as a whole. */
static int
is_one_sum(const reduction *r)
{
    return r->cut == PAIRWISE && !(r->is_cast && r->shape[0] > r->buffersize);
}

/* From the parts to the result. */
static int
join_parts(job *j)
{
    const reduction *r = j->r;
    worker *w = &j->workers[0];
    char *into = PyArray_BYTES(r->result);
    int result = 0;
    if (is_one_sum(r)) {
        j->next = 0;
        result = add_parts(j, r->shape[0], j->partial);
        return result != 0 ? result : npy_deferred_add_sum(w, into, j->partial);
    }
    for (npy_intp i = 0; i < j->ntasks && result == 0; i++) {
        char *partial = j->partial + i * NPY_DEFERRED_ELEMENT_SIZE;
        if (i == 0 && !r->has_initial) {
            memcpy(into, partial, npy_deferred_element_size(w));
        }
        else {
            result = npy_deferred_reduce_into_one(w, into, partial, 1);
        }
    }
    return result;
}

/*
 * Divide the only run.  A product of floats goes from left to right; a sum must start
 * with an addition.  Returns whether there is something to divide, or -1: exception.
 */
static int
divide_run(job *j)
{
    const reduction *r = j->r;
    npy_intp n = r->shape[0];
    if (r->cut == NOWHERE || n <= SHARE ||
        (r->cut == PAIRWISE ? !r->has_initial : !r->is_associative)) {
        return 0;
    }
    npy_intp share = is_one_sum(r) ? SHARE : r->cut == PAIRWISE ? r->buffersize : SHARE;
    /* A part has more than a third of what may be in it. */
    j->starts = PyMem_Malloc((n / share * 3 + 2) * sizeof(npy_intp));
    if (j->starts == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    if (is_one_sum(r)) {
        divide_sum(j, 0, n, share);
    }
    for (npy_intp start = j->ntasks == 0 ? 0 : n; start < n; start += share) {
        j->starts[j->ntasks++] = start;
    }
    j->starts[j->ntasks] = n;
    j->partial = PyMem_Malloc(j->ntasks * NPY_DEFERRED_ELEMENT_SIZE);
    if (j->partial == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    j->run = run_part;
    return 1;
}

/* Divide an axis that the result has too: each element has one thread only. */
static void
divide_axis(job *j)
{
    const reduction *r = j->r;
    int axis = r->naxes - 1;
    while (axis > 0 && r->strides[axis] == 0) {
        axis--;
    }
    j->run = run_range;
    j->axis = axis;
    j->ntasks = 1;
    j->per_task = r->shape[axis];
    if (r->strides[axis] == 0) {
        return;
    }
    npy_intp section = MIN_SECTION_BYTES / PyArray_ITEMSIZE(r->operand);
    npy_intp least = section / r->steps[axis] + 1;
    /* Where others are skipped, as few as there are threads. */
    npy_intp most =
            axis == r->naxes - 1 ? PyArray_SIZE(r->operand) / SHARE : j->nthreads;
    j->ntasks = PyArray_MAX(1, PyArray_MIN(most, r->shape[axis] / least));
    j->per_task = r->shape[axis] / j->ntasks;
}

static int
divide(job *j)
{
    if (j->nthreads > 1 && j->r->naxes == 1 && j->r->strides[0] == 0) {
        int divided = divide_run(j);
        if (divided != 0) {
            return divided < 0 ? -1 : 0;
        }
        j->nthreads = 1;
    }
    divide_axis(j);
    j->nthreads = (int)PyArray_MIN(j->nthreads, j->ntasks);
    return 0;
}

/* By which programs reduce themselves, or -1. */
static int
fold_instruction(const reduction *r)
{
    if (r->counts) {
        return r->strides[0] == 0 ? NPY_DEFERRED_TILE_FOLD_COUNT : -1;
    }
    if (r->is_cast) {
        return -1;
    }
    if (r->strides[0] == 0 && r->cut == PAIRWISE && r->reducer.add_up != NULL) {
        return NPY_DEFERRED_TILE_SUM_EIGHTHS;
    }
    return r->strides[0] == 0                                    ? r->reducer.fold
           : r->strides[0] == r->context->descriptors[0]->elsize ? r->reducer.joining
                                                                 : -1;
}

/* Returns as npy_deferred_execute. */
static int
run_job(job *j, const npy_deferred_walk *walk, npy_deferred_evaluator *evaluators)
{
    int ready = 0;
    j->workers = PyMem_Malloc(j->nthreads * sizeof(worker));
    if (j->workers == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    int result = 0;
    while (ready < j->nthreads && result == 0) {
        worker *w = &j->workers[ready];
        w->r = j->r;
        w->leaves.of = 0;
        result = npy_deferred_pieces_init(
                &w->pieces, walk, npy_deferred_evaluator_of(evaluators, ready),
                PyArray_DESCR(j->r->operand), j->r->context->descriptors[1],
                j->r->is_cast, j->as_program, j->r->shape[0]);
        w->pieces.wanted = j->r->wanted;
        ready++;
        int instruction = fold_instruction(j->r);
        if (result == 0 && instruction >= 0 &&
            instruction != NPY_DEFERRED_TILE_SUM_EIGHTHS) {
            result = npy_deferred_fold_init(&w->pieces, instruction);
        }
    }
    if (result == 0) {
        int released = npy_deferred_gil_release(PyArray_SIZE(walk->out));
        npy_deferred_share(run_tasks, j, j->nthreads);
        npy_deferred_gil_take(released);
        result = j->result;
    }
    if (result == 0 && j->run == run_part) {
        result = join_parts(j);
        npy_deferred_pieces_settle(&j->workers[0].pieces);
    }
    for (int i = 0; i < ready; i++) {
        j->r->status |= j->workers[i].pieces.status;
        npy_deferred_pieces_clear(&j->workers[i].pieces);
    }
    PyMem_Free(j->workers);
    return result;
}

/* Give the result its first values, and go. */
static int
start_and_run(job *j, const npy_deferred_walk *walk, npy_deferred_evaluator *evaluators)
{
    reduction *r = j->r;
    int result = 0;
    j->next = j->result = r->status = 0;
    if (r->has_initial) {
        result = raw_array_assign_scalar(
                PyArray_NDIM(r->result), PyArray_DIMS(r->result),
                PyArray_DESCR(r->result), PyArray_BYTES(r->result),
                PyArray_STRIDES(r->result), r->context->descriptors[0], r->initial,
                NPY_UNSAFE_CASTING);
    }
    return result != 0 ? result : run_job(j, walk, evaluators);
}

NPY_NO_EXPORT int
npy_deferred_reduce_shared(reduction *r, npy_deferred_plan *plan,
                           npy_deferred_walk *walk)
{
    job j = {.r = r, .nthreads = npy_deferred_threads_for(plan, walk), .as_program = 1};
    int result = divide(&j);
    npy_deferred_evaluator *evaluators =
            result == 0 ? npy_deferred_evaluators_new(plan, walk, j.nthreads,
                                                      fold_instruction(r))
                        : NULL;
    if (result == 0) {
        result = evaluators == NULL ? -1 : start_and_run(&j, walk, evaluators);
    }
    if (result == NPY_DEFERRED_RAISED) {
        j.as_program = 0;
        result = start_and_run(&j, walk, evaluators);
    }
    if (evaluators != NULL) {
        npy_deferred_evaluators_free(evaluators, j.nthreads);
    }
    PyMem_Free(j.starts);
    PyMem_Free(j.partial);
    return result;
}
