/*
 * What a run needs: loops for the strides at hand, blocks of a length, scratch memory.
 *
 * A plan that was kept has its loops.  Scratch memory, for slots, for what a block of
 * the result was, and for packed operands, is owned by the run; that of the last
 * calculation is kept, as it is warm.  All of this needs the GIL, but giving scratch
 * memory to units or to steps.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "array_assign.h" /* IsUintAligned */
#include "common.h"
#include "execute.h"
#include "lowlevel_strided_loops.h"

/*
 * What a block touches, slots, operands and result: the usual L1 cache.  Measured:
 * with larger ones steps read from the L2 what the one before has written (a sum of
 * complex numbers takes a quarter longer if operands do not count), smaller ones pay
 * for the calls of the loops.
 */
#define BLOCK_BYTES 32768
/*
 * The same where more than MEMORY_BYTES is read and written: in short blocks one loop
 * still waits for memory while the next one begins.  a*b + c of 1e6 complex64 takes
 * 0.6 of the time, exp(a)*b + c of 1e6 float64 0.8; of what is in the cache, 1.05.
 */
#define FAR_BLOCK_BYTES 12288
#define MEMORY_BYTES ((npy_intp)4 << 20)
#define MIN_BLOCK 128
/* Where programs go over rows: for longer ones the loop of a single operation takes as
 * long. */
#define MAX_SHORT_ROW NPY_DEFERRED_MAX_ROW

static int
bind_cast(npy_deferred_plan *plan, npy_deferred_step *step,
          const npy_deferred_walk *walk)
{
    npy_deferred_value *from = &plan->values[step->args[0]];
    npy_deferred_value *to = &plan->values[step->args[1]];
    int aligned = from->aligned && to->aligned;
    if (from->kind == NPY_DEFERRED_VALUE_OPERAND ||
        from->kind == NPY_DEFERRED_VALUE_KEPT) {
        aligned = aligned && IsUintAligned(walk->expression->operands[from->operand]);
    }
    if (to->kind == NPY_DEFERRED_VALUE_OUT) {
        aligned = aligned && IsUintAligned(walk->out);
    }
    NPY_ARRAYMETHOD_FLAGS flags;
    if (PyArray_GetDTypeTransferFunction(aligned, step->strides[0], step->strides[1],
                                         from->descr, to->descr, 0, &step->cast,
                                         &flags) != NPY_SUCCEED) {
        return -1;
    }
    step->loop = step->cast.func;
    step->context = &step->cast.context;
    step->auxdata = step->cast.auxdata;
    step->checked = !(flags & NPY_METH_NO_FLOATINGPOINT_ERRORS);
    return 0;
}

static int
bind_operation(npy_deferred_step *step)
{
    npy_deferred_node *node = step->node;
    NPY_ARRAYMETHOD_FLAGS flags = 0;
    NPY_context_init(&step->own_context, node->descrs);
    step->own_context.caller = (PyObject *)node->ufunc;
    step->own_context.method = node->method;
    step->context = &step->own_context;
    if (node->method->get_strided_loop(step->context, 1, 0, step->strides, &step->loop,
                                       &step->auxdata, &flags) < 0) {
        return -1;
    }
    step->checked = !(flags & NPY_METH_NO_FLOATINGPOINT_ERRORS);
    return 0;
}

/* Choose the loops, which a plan that was kept has. */
static int
bind(run_state *state)
{
    npy_deferred_plan *plan = state->plan;
    int casts_checked = 0;
    for (int i = 0; i < plan->nsteps; i++) {
        npy_deferred_step *step = &plan->steps[i];
        for (int j = 0; j < step->nargs && !step->bound; j++) {
            step->strides[j] = plan->values[step->args[j]].stride;
        }
        if (!step->bound && (step->is_cast ? bind_cast(plan, step, state->walk)
                                           : bind_operation(step)) < 0) {
            return -1;
        }
        step->bound = 1;
        if (step->leads) {
            casts_checked |= step->checked;
        }
        else if (!step->is_cast) {
            step->checked |= casts_checked;
            casts_checked = 0;
        }
        state->wanted |= npy_deferred_wanted_status(
                step->node == NULL ? ~0 : step->node->errmask);
    }
    for (int i = 0; i < plan->nunits; i++) {
        npy_deferred_unit *unit = &plan->units[i];
        unit->machine = npy_deferred_tile_machine_for(unit->type);
    }
    return 0;
}

/*
 * Whether units are of use: an operation alone is its only step, but where rows are
 * short, as programs take less time to begin; and a result that is written where
 * operands lie must be put back before a block is run again.
 */
static int
has_units(const npy_deferred_plan *plan, const npy_deferred_walk *walk)
{
    const npy_deferred_value *out = &plan->values[plan->out];
    int is_alone =
            plan->nsteps == 1 && !((walk->rows || walk->packed) &&
                                   npy_deferred_row_length(walk) <= MAX_SHORT_ROW &&
                                   plan->units[0].type != NPY_DEFERRED_TILE_NONE);
    return !is_alone && (!walk->overlaps || out->stride == out->descr->elsize);
}

/* Bytes of the slots that units or steps use, for one element. */
static npy_intp
slot_bytes(const npy_deferred_plan *plan, int by_units)
{
    npy_intp nbytes = 0;
    for (int i = 0; i < plan->nslots; i++) {
        nbytes += by_units && !plan->slots[i].in_units ? 0 : plan->slots[i].elsize;
    }
    return nbytes;
}

static npy_intp
block_length(const npy_deferred_plan *plan, const npy_deferred_walk *walk, int by_units)
{
    npy_intp nbytes = slot_bytes(plan, by_units);
    npy_intp unit = by_units ? NPY_DEFERRED_TILE_LENGTH : NPY_DEFERRED_BLOCK_UNIT;
    if (nbytes == 0 && (by_units ? plan->nunits : plan->nsteps) == 1) {
        return by_units ? NPY_DEFERRED_MAX_BLOCK : NPY_MAX_INTP;
    }
    for (int i = 0; i <= plan->out; i++) { /* operands and result */
        nbytes += plan->values[i].stride == 0 ? 0 : plan->values[i].descr->elsize;
    }
    npy_intp bytes = walk->nbytes > MEMORY_BYTES ? FAR_BLOCK_BYTES : BLOCK_BYTES;
    npy_intp block = (bytes / PyArray_MAX(nbytes, 1)) & -unit;
    return block < MIN_BLOCK                ? MIN_BLOCK
           : block > NPY_DEFERRED_MAX_BLOCK ? NPY_DEFERRED_MAX_BLOCK
                                            : block;
}

NPY_NO_EXPORT npy_intp
npy_deferred_block_length(const npy_deferred_plan *plan, const npy_deferred_walk *walk)
{
    return block_length(plan, walk, has_units(plan, walk));
}

NPY_NO_EXPORT int
npy_deferred_nloops(const npy_deferred_plan *plan, const npy_deferred_walk *walk)
{
    return has_units(plan, walk) ? plan->nunits : plan->nsteps;
}

/* Bytes for the slots that units or steps use. */
static npy_intp
scratch_bytes(const run_state *state, int by_units)
{
    return slot_bytes(state->plan, by_units) *
                   (by_units ? state->block : state->step_block) +
           (state->plan->nslots + 1) * NPY_DEFERRED_SLOT_ALIGNMENT;
}

NPY_NO_EXPORT void
npy_deferred_run_use_scratch(run_state *state, int by_units)
{
    npy_deferred_plan *plan = state->plan;
    char *position = state->scratch;
    npy_intp block = by_units ? state->block : state->step_block;
    state->by_units = by_units;
    for (int i = 0; i < plan->nslots; i++) {
        if (by_units && !plan->slots[i].in_units) {
            continue;
        }
        position = npy_deferred_run_align(position);
        plan->slots[i].data = position;
        position += plan->slots[i].elsize * block;
    }
    for (int i = 0; i < plan->nvalues; i++) {
        if (plan->values[i].kind == NPY_DEFERRED_VALUE_SLOT) {
            plan->values[i].data = plan->slots[plan->values[i].slot].data;
        }
    }
}

/*
 * Scratch memory of the last calculation, which is warm and takes no call.  Guarded by
 * the GIL.
 */
static struct {
    char *memory; /* owned; NULL: in use, or none yet */
    npy_intp nbytes;
} spare;
#define MAX_SPARE (NPY_DEFERRED_MAX_KEPT > 0 ? 131072 : 0)

/* Returns 0 or -1: no exception is set. */
static int
take_scratch(run_state *state, npy_intp nbytes)
{
    if (spare.memory != NULL && spare.nbytes >= nbytes) {
        state->scratch = spare.memory;
        state->nscratch = spare.nbytes;
        spare.memory = NULL;
        return 0;
    }
    state->scratch = PyMem_RawMalloc(nbytes);
    state->nscratch = nbytes;
    return state->scratch == NULL ? -1 : 0;
}

NPY_NO_EXPORT void
npy_deferred_run_release_scratch(run_state *state)
{
    char *memory = state->scratch;
    if (memory != NULL && state->nscratch <= MAX_SPARE &&
        (spare.memory == NULL || spare.nbytes < state->nscratch)) {
        state->scratch = spare.memory;
        spare.memory = memory;
        spare.nbytes = state->nscratch;
    }
    PyMem_RawFree(state->scratch);
    state->scratch = NULL;
}

NPY_NO_EXPORT npy_intp
npy_deferred_run_pack_bytes(const npy_deferred_walk *walk, int operand)
{
    if (!walk->packed || !walk->packs[operand]) {
        return 0;
    }
    return walk->panel * PyArray_ITEMSIZE(walk->expression->operands[operand]) +
           NPY_DEFERRED_SLOT_ALIGNMENT;
}

static int
allocate_scratch(run_state *state)
{
    npy_deferred_plan *plan = state->plan;
    int by_units = has_units(plan, state->walk);
    npy_intp slots = 0, saved = 0, packs = 0;
    state->step_block =
            PyArray_MIN(block_length(plan, state->walk, 0), NPY_DEFERRED_LOOK_EVERY);
    state->block = by_units ? block_length(plan, state->walk, 1) : state->step_block;
    if (plan->nslots > 0) {
        slots = PyArray_MAX(scratch_bytes(state, 0), scratch_bytes(state, by_units));
    }
    if (by_units && state->walk->overlaps) {
        saved = plan->values[plan->out].descr->elsize * state->block;
    }
    for (int i = 0; i < plan->out; i++) {
        packs += npy_deferred_run_pack_bytes(state->walk, i);
    }
    if (slots + saved + packs > 0) {
        if (take_scratch(state, slots + saved + packs) < 0) {
            PyErr_NoMemory();
            return -1;
        }
        state->saved = saved > 0 ? state->scratch + slots : NULL;
        state->packs = state->scratch + slots + saved;
        state->npacked = 0;
    }
    npy_deferred_run_use_scratch(state, by_units);
    return 0;
}

NPY_NO_EXPORT run_state
npy_deferred_run_new(npy_deferred_plan *plan, const npy_deferred_walk *walk)
{
    run_state state = {.plan = plan, .walk = walk};
    state.iter = walk->rows || walk->packed ? NULL : walk->iter;
    state.look_in = walk->fresh ? NPY_DEFERRED_LOOK_EVERY : NPY_MAX_INTP;
    return state;
}

NPY_NO_EXPORT int
npy_deferred_run_prepare(run_state *state)
{
    return bind(state) < 0 || allocate_scratch(state) < 0 ? -1 : 0;
}

NPY_NO_EXPORT int
npy_deferred_run_copy(run_state *state, const run_state *from)
{
    *state = *from;
    state->iter = NULL;
    state->look_in = NPY_MAX_INTP;
    state->plan = npy_deferred_plan_copy(from->plan, from->walk);
    if (state->plan == NULL || npy_deferred_run_prepare(state) < 0) {
        return -1;
    }
    if (from->iter != NULL) {
        state->iter = NpyIter_Copy(from->iter);
        /* This allocates the buffers, which needs the GIL, and fills none. */
        if (state->iter == NULL ||
            NpyIter_ResetToIterIndexRange(state->iter, 0, 0, NULL) != NPY_SUCCEED) {
            return -1;
        }
    }
    return 0;
}

NPY_NO_EXPORT int
npy_deferred_run_release(run_state *state)
{
    int result = 0;
    if (state->plan != NULL) {
        npy_deferred_plan_free(state->plan);
    }
    if (state->iter != NULL && NpyIter_Deallocate(state->iter) != NPY_SUCCEED) {
        result = -1;
    }
    npy_deferred_run_release_scratch(state);
    return result;
}
