/*
 * What the files of reductions share: reduce.c, reduce_runs.c, reduce_threads.c.
 */
#ifndef NUMPY_DEFERRED_REDUCE_H_
#define NUMPY_DEFERRED_REDUCE_H_

#ifndef NPY_DEFERRED_IMPLEMENTATION
#    error "this header is private to numpy_deferred"
#endif

#include "deferred.h"
#include "pieces.h"

/* Room for an element: a complex long double. */
#define NPY_DEFERRED_ELEMENT_SIZE NPY_DEFERRED_CONSTANT_SIZE

/* What the elements of a run that go into one result may be cut into. */
typedef enum {
    NOT_FUSED,
    ANYWHERE, /* the loop goes from left to right, or order does not matter */
    PAIRWISE,
    NOWHERE, /* the loop keeps more than the type of the result can hold */
} cuts;

typedef struct {
    npy_deferred_consumer consumer; /* first: see consume() */
    PyArrayMethod_Context *context;
    PyArrayObject *operand;     /* borrowed: the deferred array */
    const npy_bool *axis_flags; /* borrowed */
    int keepdims;
    npy_intp buffersize;
    cuts cut;
    int is_associative; /* but for NaNs and zeros */
    int counts;         /* a sum of truth values, whose order does not matter either */
    int zeros_differ; /* the loop may keep either of two zeros; it clears the status */
    npy_deferred_tile_reduction what;
    int is_cast; /* the loop has another type than the operand */
    int wanted;  /* NPY_FPE_* that its error state wants to know of */
    int has_initial;
    _Alignas(16) char initial[NPY_DEFERRED_ELEMENT_SIZE];
    /* From here on set for each try. */
    PyArrayObject *result; /* owned */
    /* Of the result, as the iterator has joined them, innermost first. */
    int naxes;
    npy_intp shape[NPY_MAXDIMS], strides[NPY_MAXDIMS];
    npy_intp steps[NPY_MAXDIMS]; /* of the operand, in elements */
    PyArrayMethod_StridedLoop *loop;
    NpyAuxData *auxdata; /* owned */
    npy_deferred_tile_reducer reducer;
    int checked; /* whether eager NumPy looks at the status of the loop */
    int status;  /* NPY_FPE_* that it raised */
} reduction;

#define NPY_DEFERRED_MAX_LEAVES 128

/* How a pairwise sum of some length goes: into what is added up without a division. */
typedef struct {
    npy_intp of; /* elements; 0: nothing is known yet */
    int count;   /* of its leaves, after which come those of the same run again */
    int nruns;   /* how often */
    npy_deferred_tile_leaf leaves[NPY_DEFERRED_MAX_LEAVES + 1];
    npy_uint8 completed[NPY_DEFERRED_MAX_LEAVES]; /* sums of two, by each leaf */
} npy_deferred_leaves;

/* One that reduces, and what it has of the operand. */
typedef struct {
    reduction *r;
    npy_deferred_pieces pieces;
    npy_deferred_leaves leaves;
} worker;

static inline npy_intp
npy_deferred_element_size(const worker *w)
{
    return w->pieces.elsize;
}

/* ---- reduce_runs.c ---- */

/* These return as npy_deferred_execute; 1 also when what comes out depends on more than
 * the operands.  None of them needs the GIL. */

/* Elements into one; no more of them than there are in scratch memory. */
NPY_NO_EXPORT int
npy_deferred_reduce_into_one(worker *w, char *result, char *data, npy_intp n);
/* `n` elements from `position` on into one, which the `first` of them begins. */
NPY_NO_EXPORT int
npy_deferred_reduce_run(worker *w, npy_intp position, npy_intp n, char *into,
                        int first);
/* The sum of so many, in the order that NumPy's loops have. */
NPY_NO_EXPORT int
npy_deferred_sum_pairwise(worker *w, npy_intp position, npy_intp n, char *sum);
NPY_NO_EXPORT int
npy_deferred_add_sum(worker *w, char *sum, char *other);
/* How many elements loops_utils.h.src has in the first half of a pairwise sum. */
NPY_NO_EXPORT npy_intp
npy_deferred_first_half(const reduction *r, npy_intp n);
/* All runs that have these indices on one axis, in the order of memory. */
NPY_NO_EXPORT int
npy_deferred_reduce_range(worker *w, int ranged, npy_intp from, npy_intp to);
/* Whether some of `n` results is a NaN, of which there are many. */
NPY_NO_EXPORT int
npy_deferred_has_nan(const reduction *r, const char *data, npy_intp n);

/* ---- reduce_threads.c ---- */

/* All of it, by as many threads as it is worth.  Returns as npy_deferred_execute. */
NPY_NO_EXPORT int
npy_deferred_reduce_shared(reduction *r, npy_deferred_plan *plan,
                           npy_deferred_walk *walk);

#endif /* NUMPY_DEFERRED_REDUCE_H_ */
