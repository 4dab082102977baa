/*
 * Execution: run a plan's steps block by block along a walk.
 *
 * A walk gives runs of elements with fixed strides.  They are cut into blocks
 * such that they stay in the L1 cache; a plan without slots, a single
 * operation, runs without blocks.
 *
 * A block is run by units: tile programs (tiles.h), and the steps that have none.
 * When a program has met a NaN, or something was raised that some node's error
 * state wants to know, the block is run again by its steps, one by one, which
 * tells whose errors these were, and leaves the NaNs that eager NumPy has.
 *
 * Then the floating-point status is read after each loop, and cleared only when
 * something was raised.  It is not read between the casts for an operation and the
 * operation itself: loops that clear it, comparisons, do so with what the casts
 * raised in eager NumPy too.
 *
 * Large work is shared with other threads (threads.c), which take parts of it; each
 * has a plan of its own, for the data of its part, its slots, and what was raised.
 *
 * Doubtful steps (plan.c) look at their operands first: where two NaNs meet
 * that are not the same, the plan is given up.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"
#include "numpy/npy_math.h"

#include "array_assign.h"
#include "common.h"
#include "deferred.h"
#include "lowlevel_strided_loops.h"
#include "progress.h"

#include <stdint.h>
#ifdef __linux__
#    include <unistd.h>
#endif

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
#define MAX_BLOCK 4096
#define SLOT_ALIGNMENT 64

/* As much of the last cache is counted on at most; all of it, where none is known. */
#define MAX_SHARED_CACHE ((npy_intp)32 << 20)

/* Elements, times steps, between two looks for an interrupt. */
#define LOOK_EVERY 262144

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
    npy_deferred_progress *progress; /* NULL: not shown */
    int streams;  /* whether large results are written past the cache */
    char *into;   /* borrowed: instead of walk->out, from the start on; or NULL */
    int reducing; /* of an evaluator: the instruction by which a program reduces */
} run_state;

/* A calculation in which so many blocks had to be run again goes on by steps. */
#define MAX_REPEATED 8

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
 * Whether units are of use: an operation alone is its only step, and a result
 * that is written where operands lie must be put back before a block is run again.
 */
static int
has_units(const npy_deferred_plan *plan, const npy_deferred_walk *walk)
{
    const npy_deferred_value *out = &plan->values[plan->out];
    return plan->nsteps > 1 && (!walk->overlaps || out->stride == out->descr->elsize);
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
        return by_units ? MAX_BLOCK : NPY_MAX_INTP;
    }
    for (int i = 0; i <= plan->out; i++) { /* operands and result */
        nbytes += plan->values[i].stride == 0 ? 0 : plan->values[i].descr->elsize;
    }
    npy_intp bytes = walk->nbytes > MEMORY_BYTES ? FAR_BLOCK_BYTES : BLOCK_BYTES;
    npy_intp block = (bytes / PyArray_MAX(nbytes, 1)) & -unit;
    return block < MIN_BLOCK ? MIN_BLOCK : block > MAX_BLOCK ? MAX_BLOCK : block;
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
           (state->plan->nslots + 1) * SLOT_ALIGNMENT;
}

static char *
align_slot(char *position)
{
    return (char *)(((uintptr_t)position + SLOT_ALIGNMENT - 1) &
                    ~(uintptr_t)(SLOT_ALIGNMENT - 1));
}

/* Give the scratch memory to units, or to steps. */
static void
use_scratch(run_state *state, int by_units)
{
    npy_deferred_plan *plan = state->plan;
    char *position = state->scratch;
    npy_intp block = by_units ? state->block : state->step_block;
    state->by_units = by_units;
    for (int i = 0; i < plan->nslots; i++) {
        if (by_units && !plan->slots[i].in_units) {
            continue;
        }
        position = align_slot(position);
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

static void
release_scratch(run_state *state)
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

/* Bytes for a pack of an operand, or 0. */
static npy_intp
pack_bytes(const npy_deferred_walk *walk, int operand)
{
    if (!walk->packed || !walk->packs[operand]) {
        return 0;
    }
    return walk->panel * PyArray_ITEMSIZE(walk->expression->operands[operand]) +
           SLOT_ALIGNMENT;
}

static int
allocate_scratch(run_state *state)
{
    npy_deferred_plan *plan = state->plan;
    int by_units = has_units(plan, state->walk);
    npy_intp slots = 0, saved = 0, packs = 0;
    state->step_block = PyArray_MIN(block_length(plan, state->walk, 0), LOOK_EVERY);
    state->block = by_units ? block_length(plan, state->walk, 1) : state->step_block;
    if (plan->nslots > 0) {
        slots = PyArray_MAX(scratch_bytes(state, 0), scratch_bytes(state, by_units));
    }
    if (by_units && state->walk->overlaps) {
        saved = plan->values[plan->out].descr->elsize * state->block;
    }
    for (int i = 0; i < plan->out; i++) {
        packs += pack_bytes(state->walk, i);
    }
    if (slots + saved + packs > 0) {
        if (take_scratch(state, slots + saved + packs) < 0) {
            PyErr_NoMemory();
            return -1;
        }
        state->saved = saved > 0 ? state->scratch + slots : NULL;
        state->packs = state->scratch + slots + saved;
    }
    use_scratch(state, by_units);
    return 0;
}

#define DEFINE_NANS_MEET(name, type, bits)                                      \
    static inline int name(char *const data[], npy_intp first, npy_intp second, \
                           npy_intp n)                                          \
    {                                                                           \
        int found = 0;                                                          \
        for (npy_intp i = 0; i < n; i++) {                                      \
            type a = *(type *)(data[0] + i * first);                            \
            type b = *(type *)(data[1] + i * second);                           \
            bits one = *(bits *)(data[0] + i * first);                          \
            bits other = *(bits *)(data[1] + i * second);                       \
            found |= (a != a) & (b != b) & (one != other);                      \
        }                                                                       \
        return found;                                                           \
    }
DEFINE_NANS_MEET(floats_meet, npy_float, npy_uint32)
DEFINE_NANS_MEET(doubles_meet, npy_double, npy_uint64)

/* Whether NaNs meet of which a step may keep the other one. */
static int
nans_meet(const npy_deferred_step *step, char *const data[], npy_intp n)
{
    npy_intp first = step->strides[0], second = step->strides[1];
    /* The compiler makes vectors of what it knows to lie side by side. */
    if (step->node->descrs[0]->type_num == NPY_FLOAT) {
        return first == sizeof(npy_float) && second == first
                       ? floats_meet(data, sizeof(npy_float), sizeof(npy_float), n)
                       : floats_meet(data, first, second, n);
    }
    return first == sizeof(npy_double) && second == first
                   ? doubles_meet(data, sizeof(npy_double), sizeof(npy_double), n)
                   : doubles_meet(data, first, second, n);
}

/*
 * Whether Ctrl-C was pressed.  Its handler is Python code, which must not run as
 * long as there is a plan; the interpreter is told again.
 */
static int
is_interrupted(run_state *state)
{
    npy_deferred_progress *progress = state->progress;
    if (progress != NULL) {
        if (!progress->divided) {
            progress->done += (LOOK_EVERY - state->look_in) / state->plan->nsteps;
        }
        npy_deferred_progress_look(progress);
    }
    state->look_in = LOOK_EVERY;
    return state->walk->fresh && npy_deferred_gil_interrupted();
}

/* How many of the elements that are left the next block has. */
static npy_intp
next_block(npy_intp left, npy_intp block)
{
    if (left <= block) {
        return left;
    }
    return left - block < NPY_DEFERRED_BLOCK_UNIT ? block - NPY_DEFERRED_BLOCK_UNIT
                                                  : block;
}

static void
advance(npy_deferred_plan *plan, npy_intp n)
{
    for (int i = 0; i <= plan->out; i++) { /* operands and result */
        plan->values[i].data += n * plan->values[i].stride;
    }
}

static inline int
run_loop(npy_deferred_plan *plan, npy_deferred_step *step, npy_intp n)
{
    char *data[NPY_DEFERRED_MAX_NARGS];
    npy_intp length = plan->values[step->args[step->nargs - 1]].constant ? 1 : n;
    for (int j = 0; j < step->nargs; j++) {
        data[j] = plan->values[step->args[j]].data;
    }
    if (n <= step->doubtful && nans_meet(step, data, n)) {
        return 1;
    }
    return step->loop(step->context, data, &length, step->strides, step->auxdata) < 0
                   ? -1
                   : 0;
}

/* One block after the other, one step after the other.  Returns as
 * npy_deferred_execute, as the functions that call it do. */
static int
run_steps(run_state *state, npy_intp count)
{
    npy_deferred_plan *plan = state->plan;
    while (count > 0) {
        npy_intp n = next_block(count, state->step_block);
        for (int i = 0; i < plan->nsteps; i++) {
            npy_deferred_step *step = &plan->steps[i];
            int result = run_loop(plan, step, n);
            if (result != 0) {
                return result;
            }
            if (state->wanted && !step->leads) {
                int status = npy_get_floatstatus_barrier((char *)step);
                if (status != 0) {
                    step->status |= step->checked ? status : 0;
                    npy_clear_floatstatus_barrier((char *)step);
                }
            }
        }
        advance(plan, n);
        count -= n;
        state->look_in -= n * plan->nsteps;
        if (state->look_in < 0 && is_interrupted(state)) {
            return NPY_DEFERRED_INTERRUPTED;
        }
    }
    return 0;
}

static int
run_program(const run_state *state, const npy_deferred_unit *unit, npy_intp n)
{
    const npy_deferred_plan *plan = state->plan;
    char *data[NPY_DEFERRED_TILE_MAX_ARGS];
    npy_intp strides[NPY_DEFERRED_TILE_MAX_ARGS];
    npy_deferred_tile_program program = {
            .nargs = unit->nargs,
            .code = &plan->tile_code[unit->code],
            .args = &plan->tile_args[unit->args],
            .strides = strides,
            .overlaps = state->walk->overlaps,
            .streams = state->streams,
            .machine_code = unit->machine_code,
    };
    for (int i = 0; i < unit->nargs; i++) {
        const npy_deferred_value *value = &plan->values[program.args[i].value];
        data[i] = value->data;
        strides[i] = value->stride;
        if (program.args[i].access == NPY_DEFERRED_TILE_WRITTEN &&
            !npy_deferred_is_aligned_for(data[i], unit->streams)) {
            program.machine_code = NULL;
        }
    }
    return unit->machine(&program, data, n);
}

/* To run a block again by its steps. */
#define REPEAT 3

/* One block, one unit after the other. */
static int
run_units(run_state *state, npy_intp n)
{
    npy_deferred_plan *plan = state->plan;
    for (int i = 0; i < plan->nunits; i++) {
        const npy_deferred_unit *unit = &plan->units[i];
        if (unit->machine != NULL) {
            if (run_program(state, unit, n)) {
                return REPEAT;
            }
            continue;
        }
        if (i > 0 && unit->reads_status && state->wanted &&
            (npy_get_floatstatus_barrier((char *)unit) & state->wanted)) {
            return REPEAT;
        }
        int result = run_loop(plan, &plan->steps[unit->step], n);
        if (result != 0) {
            return result;
        }
    }
    return state->wanted && (npy_get_floatstatus_barrier((char *)plan) & state->wanted)
                   ? REPEAT
                   : 0;
}

/* Run the block again that units could not do. */
static int
repeat(run_state *state, npy_intp n)
{
    if (state->saved != NULL) {
        const npy_deferred_value *out = &state->plan->values[state->plan->out];
        memcpy(out->data, state->saved, n * out->descr->elsize);
    }
    npy_clear_floatstatus_barrier((char *)state);
    use_scratch(state, 0);
    int result = run_steps(state, n);
    if (++state->nrepeated < MAX_REPEATED) {
        use_scratch(state, 1);
    }
    return result;
}

static int
run_blocks(run_state *state, npy_intp count)
{
    npy_deferred_plan *plan = state->plan;
    const npy_deferred_value *out = &plan->values[plan->out];
    while (state->by_units && count > 0) {
        npy_intp n = next_block(count, state->block);
        if (state->saved != NULL) {
            memcpy(state->saved, out->data, n * out->descr->elsize);
        }
        int result = run_units(state, n);
        if (result == REPEAT) {
            result = repeat(state, n);
        }
        else {
            advance(plan, n);
            state->look_in -= n * plan->nsteps;
        }
        if (result != 0) {
            return result;
        }
        count -= n;
        if (state->look_in < 0 && is_interrupted(state)) {
            return NPY_DEFERRED_INTERRUPTED;
        }
    }
    return run_steps(state, count);
}

static int
run_direct(run_state *state, npy_intp start, npy_intp count)
{
    const npy_deferred_walk *walk = state->walk;
    npy_deferred_plan *plan = state->plan;
    for (int i = 0; i <= plan->out; i++) {
        PyArrayObject *array =
                i < plan->out ? walk->expression->operands[i] : walk->out;
        plan->values[i].data = PyArray_BYTES(array) + start * plan->values[i].stride;
    }
    if (state->into != NULL) {
        plan->values[plan->out].data = state->into;
    }
    return run_blocks(state, count);
}

/* Short rows are looked after together, in turns of so many. */
#define ROWS_AT_A_TIME 32

static void
use_row(run_state *state, const npy_deferred_rows *rows, npy_intp skipped)
{
    npy_deferred_plan *plan = state->plan;
    for (int i = 0; i <= plan->out; i++) {
        plan->values[i].data = rows->data[i] + skipped * plan->values[i].stride;
    }
}

/*
 * Run whole rows, each a block for the only program, and read the status after the
 * last; REPEAT as run_units, for all of them.
 */
static int
run_short_rows(run_state *state, npy_deferred_rows *rows, npy_intp nrows)
{
    npy_deferred_plan *plan = state->plan;
    int nans = 0;
    for (npy_intp i = 0; i < nrows; i++) {
        use_row(state, rows, 0);
        nans |= run_program(state, &plan->units[0], state->walk->runs.length);
        npy_deferred_rows_next(rows);
    }
    if (nans || (state->wanted &&
                 (npy_get_floatstatus_barrier((char *)plan) & state->wanted))) {
        return REPEAT;
    }
    state->look_in -= nrows * state->walk->runs.length * plan->nsteps;
    return state->look_in < 0 && is_interrupted(state) ? NPY_DEFERRED_INTERRUPTED : 0;
}

/* How many of the rows that are left, each `length`, run together; 0: none. */
static npy_intp
rows_together(const run_state *state, npy_intp skipped, npy_intp left)
{
    npy_intp length = state->walk->runs.length;
    if (!state->by_units || state->plan->nunits != 1 ||
        state->plan->units[0].machine == NULL || state->saved != NULL ||
        state->into != NULL || skipped != 0 || length > state->block) {
        return 0;
    }
    return PyArray_MIN(left / length, ROWS_AT_A_TIME);
}

static int
run_rows(run_state *state, npy_intp start, npy_intp count)
{
    npy_deferred_plan *plan = state->plan;
    npy_intp length = state->walk->runs.length;
    npy_intp skipped = start % length;
    npy_intp together = 0; /* rows that are to be run again, one by one */
    char *into = state->into;
    npy_deferred_rows rows;
    int result = 0;
    npy_deferred_rows_begin(&rows, state->walk, start / length);
    while (count > 0 && result == 0) {
        npy_intp nrows = together > 0 ? 0 : rows_together(state, skipped, count);
        if (nrows > 0) {
            npy_deferred_rows first = rows;
            result = run_short_rows(state, &rows, nrows);
            if (result == REPEAT) {
                npy_clear_floatstatus_barrier((char *)state);
                rows = first;
                together = nrows;
                result = 0;
            }
            else {
                count -= nrows * length;
            }
            continue;
        }
        npy_intp n = PyArray_MIN(length - skipped, count);
        use_row(state, &rows, skipped);
        if (into != NULL) {
            plan->values[plan->out].data = into;
            into += n * plan->values[plan->out].stride;
        }
        result = run_blocks(state, n);
        npy_deferred_rows_next(&rows);
        skipped = 0;
        together -= together > 0;
        count -= n;
    }
    return result;
}

static int
run_iterator(run_state *state, npy_intp start, npy_intp count)
{
    NpyIter *iter = state->iter;
    npy_deferred_plan *plan = state->plan;
    char *message; /* set instead of an exception, for which there may be no GIL */
    if (NpyIter_ResetToIterIndexRange(iter, start, start + count, &message) !=
        NPY_SUCCEED) {
        return -1;
    }
    NpyIter_IterNextFunc *iternext = NpyIter_GetIterNext(iter, &message);
    char **pointers = NpyIter_GetDataPtrArray(iter);
    npy_intp *length = NpyIter_GetInnerLoopSizePtr(iter);
    PyArrayObject *out = state->walk->out;
    char *begin = PyArray_BYTES(out) + start * PyArray_ITEMSIZE(out);
    do {
        for (int i = 0; i <= plan->out; i++) {
            plan->values[i].data = pointers[i];
        }
        if (state->into != NULL) {
            plan->values[plan->out].data = state->into + (pointers[plan->out] - begin);
        }
        int result = run_blocks(state, *length);
        if (result != 0) {
            return result;
        }
    } while (iternext(iter));
    return 0;
}

/* The operands and the result from there on, packed or where they lie. */
static void
use_panel(run_state *state, npy_intp start, npy_intp n)
{
    const npy_deferred_walk *walk = state->walk;
    npy_deferred_plan *plan = state->plan;
    char *packs = state->packs;
    for (int i = 0; i <= plan->out; i++) {
        npy_deferred_value *value = &plan->values[i];
        PyArrayObject *array =
                i < plan->out ? walk->expression->operands[i] : walk->out;
        if (i < plan->out && walk->packs[i]) {
            value->data = align_slot(packs);
            npy_deferred_pack(walk, i, start, n, value->data);
            packs += pack_bytes(walk, i);
        }
        else {
            value->data = PyArray_BYTES(array) + start * value->stride;
        }
    }
}

static int
run_panels(run_state *state, npy_intp start, npy_intp count)
{
    const npy_deferred_walk *walk = state->walk;
    npy_deferred_value *out = &state->plan->values[state->plan->out];
    char *into = state->into;
    int result = 0;
    while (count > 0 && result == 0) {
        npy_intp n = PyArray_MIN(walk->panel - start % walk->panel, count);
        use_panel(state, start, n);
        if (into != NULL) {
            out->data = into;
            into += n * out->stride;
        }
        result = run_blocks(state, n);
        start += n;
        count -= n;
    }
    return result;
}

/* Run `count` elements from the `start`th on.  Needs no GIL. */
static int
run_range(run_state *state, npy_intp start, npy_intp count)
{
    return state->iter != NULL   ? run_iterator(state, start, count)
           : state->walk->rows   ? run_rows(state, start, count)
           : state->walk->packed ? run_panels(state, start, count)
                                 : run_direct(state, start, count);
}

/* ---- in several threads ---- */

/*
 * What is given to a thread at a time touches about as much memory, and consists of
 * whole blocks, or whole runs of the iterator: no loop sees another length than in
 * one thread, but where there are no blocks.
 */
#define PART_BYTES (256 * 1024)
#define PART_UNIT MAX_BLOCK
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
        int result = run_range(state, start, count);
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

static run_state
new_state(npy_deferred_plan *plan, const npy_deferred_walk *walk)
{
    run_state state = {.plan = plan, .walk = walk};
    state.iter = walk->rows || walk->packed ? NULL : walk->iter;
    state.look_in = walk->fresh ? LOOK_EVERY : NPY_MAX_INTP;
    return state;
}

static int
prepare(run_state *state)
{
    return bind(state) < 0 || allocate_scratch(state) < 0 ? -1 : 0;
}

/* What a thread needs, copied; release_state() takes what there is. */
static int
copy_state(run_state *state, const run_state *from)
{
    *state = *from;
    state->iter = NULL;
    state->look_in = NPY_MAX_INTP;
    state->plan = npy_deferred_plan_copy(from->plan, from->walk);
    if (state->plan == NULL || prepare(state) < 0) {
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

static int
release_state(run_state *state)
{
    int result = 0;
    if (state->plan != NULL) {
        npy_deferred_plan_free(state->plan);
    }
    if (state->iter != NULL && NpyIter_Deallocate(state->iter) != NPY_SUCCEED) {
        result = -1;
    }
    release_scratch(state);
    return result;
}

/* A late use of another address may have moved pages; nobody can wait for them. */
static void
bring_operands(const npy_deferred_walk *walk)
{
    int n = npy_deferred_nread(walk->expression);
    for (int i = 0; i < n + !walk->fresh; i++) {
        PyArrayObject *array = i < n ? walk->expression->operands[i] : walk->out;
        if (npy_deferred_is_guard(PyArray_BYTES(array))) {
            npy_deferred_bring(PyArray_BYTES(array));
        }
    }
}

static npy_intp
work_of(const run_state *state)
{
    return PyArray_SIZE(state->walk->out) * state->plan->nsteps;
}

/* Run a walk in several threads. */
static int
run_divided(const run_state *whole, int nthreads)
{
    npy_deferred_plan *plan = whole->plan;
    run_state *states = PyMem_Calloc(nthreads, sizeof(*states));
    int result = -1, prepared = 0;
    if (states == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    while (prepared < nthreads && copy_state(&states[prepared], whole) == 0) {
        prepared++;
    }
    if (prepared == nthreads) {
        states[0].look_in = whole->look_in; /* the one that holds the GIL */
        bring_operands(whole->walk);
        division d = {.states = states};
        divide(&d, plan, PyArray_SIZE(whole->walk->out));
        if (whole->progress != NULL) {
            whole->progress->divided = 1;
        }
        int released = npy_deferred_gil_release(work_of(whole));
        npy_deferred_share(run_parts, &d, (int)PyArray_MIN(nthreads, d.nparts));
        npy_deferred_gil_take(released);
        result = d.result;
    }
    for (int i = 0; i < nthreads; i++) {
        for (int j = 0; i < prepared && j < plan->nsteps; j++) {
            plan->steps[j].status |= states[i].plan->steps[j].status;
        }
        if (release_state(&states[i]) < 0) {
            result = -1;
        }
    }
    PyMem_Free(states);
    return result;
}

static int
run_here(run_state *state)
{
    if (prepare(state) < 0) {
        return -1;
    }
    int released = npy_deferred_gil_release(work_of(state));
    npy_clear_floatstatus_barrier((char *)state);
    int result = run_range(state, 0, PyArray_SIZE(state->walk->out));
    npy_deferred_end_streams();
    npy_deferred_gil_take(released);
    return result;
}

/* Bytes of the cache that all processors share, as far as it may be counted on. */
static npy_intp
shared_cache(void)
{
    static npy_intp nbytes = 0;
    if (nbytes == 0) {
        nbytes = MAX_SHARED_CACHE;
#ifdef _SC_LEVEL3_CACHE_SIZE
        npy_intp found = (npy_intp)sysconf(_SC_LEVEL3_CACHE_SIZE);
        if (found > 0 && found < nbytes) {
            nbytes = found;
        }
#endif
    }
    return nbytes;
}

/*
 * Whether results are to be written past the cache, as the processor would else read
 * from memory first what is then overwritten.  Measured with 32 MB of L3 cache: when
 * all that a plan reads and writes fits it, two threads take 1.6 times as long past
 * the cache; when it does not, expressions take 0.6 to 0.95 of the time, also with a
 * reader of the result.  One thread gains from half of it on.
 */
static int
is_streaming(const npy_deferred_walk *walk, int nthreads)
{
    return walk->nbytes > shared_cache() / (nthreads > 1 ? 1 : 2);
}

NPY_NO_EXPORT int
npy_deferred_execute(npy_deferred_plan *plan, npy_deferred_walk *walk)
{
    run_state state = new_state(plan, walk);
    npy_deferred_progress progress;
    state.progress = npy_deferred_progress_begin(&progress, PyArray_SIZE(walk->out));
    if (state.progress != NULL) {
        state.look_in = LOOK_EVERY;
    }
    int nthreads = npy_deferred_threads_for(plan, walk);
    state.streams = is_streaming(walk, nthreads);
    npy_deferred_compile(plan, walk, state.streams, -1);
    int result = nthreads > 1 ? run_divided(&state, nthreads) : run_here(&state);
    release_scratch(&state);
    npy_deferred_progress_end(state.progress, result);
    /* Some loops set an exception and return success all the same. */
    if (result >= 0 && PyErr_Occurred()) {
        result = -1;
    }
    return result;
}

/* ---- piece by piece, for who consumes the result ---- */

struct npy_deferred_evaluator {
    run_state state;
};

NPY_NO_EXPORT npy_deferred_evaluator *
npy_deferred_evaluators_new(npy_deferred_plan *plan, npy_deferred_walk *walk, int n,
                            int reducing)
{
    npy_deferred_evaluator *evaluators = PyMem_Calloc(n, sizeof(*evaluators));
    if (evaluators == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    /* The first one has the plan itself, which copies are made of before. */
    run_state *first = &evaluators[0].state;
    *first = new_state(plan, walk);
    first->reducing = reducing;
    npy_deferred_compile(plan, walk, 0, reducing);
    int result = 0;
    for (int i = 1; i < n && result == 0; i++) {
        result = copy_state(&evaluators[i].state, first);
    }
    if (result < 0 || prepare(first) < 0) {
        npy_deferred_evaluators_free(evaluators, n);
        return NULL;
    }
    bring_operands(walk);
    return evaluators;
}

NPY_NO_EXPORT npy_deferred_evaluator *
npy_deferred_evaluator_of(npy_deferred_evaluator *evaluators, int thread)
{
    return &evaluators[thread];
}

NPY_NO_EXPORT int
npy_deferred_evaluate_piece(npy_deferred_evaluator *evaluator, npy_intp start,
                            npy_intp count, char *into)
{
    evaluator->state.into = into;
    return run_range(&evaluator->state, start, count);
}

NPY_NO_EXPORT int
npy_deferred_evaluator_program(const npy_deferred_evaluator *evaluator,
                               npy_deferred_lone_program *lone)
{
    const run_state *state = &evaluator->state;
    const npy_deferred_plan *plan = state->plan;
    const npy_deferred_unit *unit = &plan->units[0];
    if (plan->nunits != 1 || unit->machine == NULL || state->iter != NULL ||
        state->walk->packed) {
        return 0;
    }
    lone->walk = state->walk;
    lone->machine = unit->machine;
    lone->reducing_code =
            unit->reducing == state->reducing ? unit->reducing_code : NULL;
    lone->wanted = state->wanted;
    lone->row = state->walk->rows ? -2 : 0; /* nowhere, or the only one */
    lone->program = (npy_deferred_tile_program){
            .nargs = unit->nargs,
            .code = &plan->tile_code[unit->code],
            .args = &plan->tile_args[unit->args],
            .strides = lone->strides,
            .machine_code = unit->machine_code,
    };
    for (int i = 0; i < unit->nargs; i++) {
        const npy_deferred_value *value = &plan->values[lone->program.args[i].value];
        lone->strides[i] = value->stride;
        lone->data[i] = value->data;
        lone->operands[i] =
                value->kind == NPY_DEFERRED_VALUE_OPERAND ? value->operand : -1;
        if (lone->operands[i] >= 0) {
            lone->begins[i] =
                    PyArray_BYTES(state->walk->expression->operands[value->operand]);
        }
        if (value->kind == NPY_DEFERRED_VALUE_OUT) {
            lone->out = i;
        }
        else if (value->kind == NPY_DEFERRED_VALUE_SLOT) {
            return 0;
        }
    }
    return 1;
}

static void
find_row(npy_deferred_lone_program *lone, npy_intp row)
{
    if (row == lone->row + 1) {
        npy_deferred_rows_next(&lone->rows);
    }
    else {
        npy_deferred_rows_begin(&lone->rows, lone->walk, row);
    }
    lone->row = row;
    for (int i = 0; i < lone->program.nargs; i++) {
        if (lone->operands[i] >= 0) {
            lone->begins[i] = lone->rows.data[lone->operands[i]];
        }
    }
}

NPY_NO_EXPORT npy_intp
npy_deferred_program_seek(npy_deferred_lone_program *lone, npy_intp start)
{
    const npy_deferred_walk *walk = lone->walk;
    npy_intp length = walk->runs.length, row = walk->rows ? start / length : 0;
    npy_intp skipped = start - row * length;
    if (row != lone->row) {
        find_row(lone, row);
    }
    for (int i = 0; i < lone->program.nargs; i++) {
        if (lone->operands[i] >= 0) {
            lone->data[i] = lone->begins[i] + skipped * lone->strides[i];
        }
    }
    return length - skipped;
}

NPY_NO_EXPORT int
npy_deferred_evaluator_look(npy_deferred_evaluator *evaluator, npy_intp count)
{
    run_state *state = &evaluator->state;
    state->look_in -= count * state->plan->nsteps;
    return state->look_in < 0 && is_interrupted(state) ? NPY_DEFERRED_INTERRUPTED : 0;
}

NPY_NO_EXPORT npy_intp
npy_deferred_piece_start(const npy_deferred_walk *walk, npy_intp position)
{
    const npy_deferred_runs *runs = &walk->runs;
    /* The last elements belong to the last whole unit of the walk, and no other. */
    if (walk->iter == NULL &&
        position < PyArray_SIZE(walk->out) - 2 * NPY_DEFERRED_MIN_PIECE) {
        return position;
    }
    npy_intp begin = position / runs->total * runs->total;
    npy_intp within = position - begin;
    begin += within / runs->length * runs->length;
    within %= runs->length;
    within -= within % NPY_DEFERRED_BLOCK_UNIT;
    /* The rest of a run is not short, unless it is all of it. */
    npy_intp run = PyArray_MIN(runs->length, runs->total - begin % runs->total);
    if (run - within < NPY_DEFERRED_BLOCK_UNIT) {
        within -= NPY_DEFERRED_BLOCK_UNIT;
    }
    return begin + (within > NPY_DEFERRED_BLOCK_UNIT ? within : 0);
}

NPY_NO_EXPORT npy_intp
npy_deferred_piece_length(const npy_deferred_walk *walk, npy_intp start,
                          npy_intp wanted)
{
    npy_intp rest = PyArray_SIZE(walk->out) - start;
    npy_intp unaligned = walk->iter == NULL ? start % NPY_DEFERRED_BLOCK_UNIT : 0;
    if (rest <= wanted && unaligned == 0) {
        return rest;
    }
    if (walk->iter == NULL) {
        /* Whole units, also of what comes after it. */
        npy_intp most = rest - NPY_DEFERRED_BLOCK_UNIT;
        wanted = PyArray_MIN(wanted, most);
        return wanted - wanted % NPY_DEFERRED_BLOCK_UNIT;
    }
    npy_intp end = npy_deferred_piece_start(walk, start + wanted);
    return end > start ? end - start : wanted;
}

NPY_NO_EXPORT void
npy_deferred_evaluators_free(npy_deferred_evaluator *evaluators, int n)
{
    run_state *first = &evaluators[0].state;
    for (int i = 1; i < n; i++) {
        run_state *state = &evaluators[i].state;
        for (int j = 0; state->plan != NULL && j < first->plan->nsteps; j++) {
            first->plan->steps[j].status |= state->plan->steps[j].status;
        }
        release_state(state);
    }
    release_scratch(first);
    PyMem_Free(evaluators);
}
