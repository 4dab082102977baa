/*
 * A run: a plan that goes along a walk, or a part of it, in one thread.
 *
 * run_state.c sets it up, execute.c has the block loop, execute_threads.c shares a
 * calculation among several of them, evaluator.c has one give its values piece by
 * piece.
 */
#ifndef NUMPY_DEFERRED_EXECUTE_H_
#define NUMPY_DEFERRED_EXECUTE_H_

#include "deferred.h"
#include "progress.h"

#include <stdint.h>

typedef struct {
    npy_deferred_plan *plan;
    const npy_deferred_walk *walk;
    NpyIter *iter; /* that buffers: the walk's, or owned: a copy of it; or NULL */
    npy_intp step_block, block; /* elements at a time, by steps and by units */
    npy_intp look_in;  /* elements, times steps, until the next look for an interrupt */
    int wanted;        /* NPY_FPE_* that some error state wants to know of */
    int by_units;      /* else by steps */
    int nrepeated;     /* blocks that units could not do */
    char *scratch;     /* owned */
    npy_intp nscratch; /* its bytes */
    char *saved;       /* in it: what a block of the result was before */
    char *packs;       /* in it: the operands of a panel that are packed */
    npy_intp packed_start;           /* where packed rows that repeat are from */
    npy_intp npacked;                /* elements of them that are there */
    npy_deferred_progress *progress; /* NULL: not shown */
    int streams;  /* whether large results are written past the cache */
    char *into;   /* borrowed: instead of walk->out, from the start on; or NULL */
    int reducing; /* of an evaluator: the instruction by which a program reduces */
} run_state;

/* The most elements of a block. */
#define NPY_DEFERRED_MAX_BLOCK 4096
/* Elements, times steps, between two looks for an interrupt. */
#define NPY_DEFERRED_LOOK_EVERY 262144
#define NPY_DEFERRED_SLOT_ALIGNMENT 64

static inline char *
npy_deferred_run_align(char *position)
{
    return (char *)(((uintptr_t)position + NPY_DEFERRED_SLOT_ALIGNMENT - 1) &
                    ~(uintptr_t)(NPY_DEFERRED_SLOT_ALIGNMENT - 1));
}

/* How much it is, for who decides whether to give up the GIL. */
static inline npy_intp
npy_deferred_run_work(const run_state *state)
{
    return PyArray_SIZE(state->walk->out) * state->plan->nsteps;
}

/* ---- run_state.c ---- */

/* One that owns nothing yet. */
NPY_NO_EXPORT run_state
npy_deferred_run_new(npy_deferred_plan *plan, const npy_deferred_walk *walk);
/* Choose the loops, and have scratch memory, which is to be released.  Returns 0 or -1.
 */
NPY_NO_EXPORT int
npy_deferred_run_prepare(run_state *state);
/* What another thread needs, prepared.  Returns 0, or -1; npy_deferred_run_release
 * takes what there is in any case.  The other's scratch memory is not to be there yet.
 */
NPY_NO_EXPORT int
npy_deferred_run_copy(run_state *state, const run_state *from);
/* Of a copy, all that it owns.  Returns 0 or -1. */
NPY_NO_EXPORT int
npy_deferred_run_release(run_state *state);
NPY_NO_EXPORT void
npy_deferred_run_release_scratch(run_state *state);
/* Give the scratch memory to units, or to steps. */
NPY_NO_EXPORT void
npy_deferred_run_use_scratch(run_state *state, int by_units);
/* Bytes for a pack of an operand, or 0. */
NPY_NO_EXPORT npy_intp
npy_deferred_run_pack_bytes(const npy_deferred_walk *walk, int operand);

/* ---- execute.c ---- */

/* Run `count` elements from the `start`th on.  Returns as npy_deferred_execute.  Needs
 * no GIL. */
NPY_NO_EXPORT int
npy_deferred_run_range(run_state *state, npy_intp start, npy_intp count);
/*
 * The only program as code over rows, which lie where `rows` says, but for the result
 * where there is `into`, that has `distance` bytes for each; `last`: what that code
 * takes last.  Returns whether a NaN was stored.  Needs no GIL.
 */
NPY_NO_EXPORT int
npy_deferred_run_rows_code(run_state *state, npy_deferred_tile_code *code,
                           npy_deferred_rows *rows, npy_intp nrows, char *into,
                           npy_intp distance, npy_intp last);
/*
 * Whether Ctrl-C was pressed.  Its handler is Python code, which must not run as
 * long as there is a plan; the interpreter is told again.
 */
NPY_NO_EXPORT int
npy_deferred_run_interrupted(run_state *state);

/* ---- execute_threads.c ---- */

/* Run a walk in several threads.  Returns as npy_deferred_execute. */
NPY_NO_EXPORT int
npy_deferred_run_divided(const run_state *whole, int nthreads);
/* A late use of another address may have moved pages; nobody can wait for them. */
NPY_NO_EXPORT void
npy_deferred_bring_operands(const npy_deferred_walk *walk);

#endif /* NUMPY_DEFERRED_EXECUTE_H_ */
