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
 * What a run of such blocks owns is in run_state.c; large work is shared with other
 * threads (execute_threads.c), or given away piece by piece (evaluator.c).
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

#include "execute.h"

#ifdef __linux__
#    include <unistd.h>
#endif

/* As much of the last cache is counted on at most; all of it, where none is known. */
#define MAX_SHARED_CACHE ((npy_intp)32 << 20)

/* A calculation in which so many blocks had to be run again goes on by steps; one in
 * which functions raise something at once. */
#define MAX_REPEATED 8

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

NPY_NO_EXPORT int
npy_deferred_run_interrupted(run_state *state)
{
    npy_deferred_progress *progress = state->progress;
    if (progress != NULL) {
        if (!progress->divided) {
            progress->done +=
                    (NPY_DEFERRED_LOOK_EVERY - state->look_in) / state->plan->nsteps;
        }
        npy_deferred_progress_look(progress);
    }
    state->look_in = NPY_DEFERRED_LOOK_EVERY;
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
        if (state->look_in < 0 && npy_deferred_run_interrupted(state)) {
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
            .parts = unit->parts,
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
        strides[i] = value->stride / unit->parts;
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
    int raised = state->wanted & npy_get_floatstatus_barrier((char *)state);
    if (state->saved != NULL) {
        const npy_deferred_value *out = &state->plan->values[state->plan->out];
        memcpy(out->data, state->saved, n * out->descr->elsize);
    }
    npy_clear_floatstatus_barrier((char *)state);
    npy_deferred_run_use_scratch(state, 0);
    int result = run_steps(state, n);
    /* Steps take about as long as units, where some of these are NumPy's loops. */
    int goes_on = raised && !npy_deferred_is_arithmetic(state->plan);
    state->nrepeated += goes_on ? MAX_REPEATED : 1;
    if (state->nrepeated < MAX_REPEATED) {
        npy_deferred_run_use_scratch(state, 1);
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
        if (state->look_in < 0 && npy_deferred_run_interrupted(state)) {
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

NPY_NO_EXPORT int
npy_deferred_run_rows_code(run_state *state, npy_deferred_tile_code *code,
                           npy_deferred_rows *rows, npy_intp nrows, char *into,
                           npy_intp distance, npy_intp last)
{
    npy_deferred_plan *plan = state->plan;
    const npy_deferred_unit *unit = &plan->units[0];
    const npy_deferred_tile_arg *args = &plan->tile_args[unit->args];
    int nans = 0;
    while (nrows > 0) {
        union {
            char *address;
            npy_intp distance;
        } data[2 * NPY_DEFERRED_TILE_MAX_ARGS];
        npy_intp some = PyArray_MIN(nrows, rows->shape[0] - rows->at[0]);
        for (int i = 0; i < unit->nargs; i++) {
            int value = args[i].value;
            npy_intp *next = &data[NPY_DEFERRED_TILE_MAX_ARGS + i].distance;
            if (value > plan->out) {
                data[i].address = plan->values[value].data; /* a constant */
                *next = 0;
            }
            else if (value == plan->out && into != NULL) {
                data[i].address = into;
                *next = distance;
            }
            else {
                data[i].address = rows->data[value];
                *next = rows->strides[0][value];
            }
        }
        nans |= ((npy_deferred_tile_rows *)code)(&data[0].address, some, last);
        into += into != NULL ? some * distance : 0;
        npy_deferred_rows_skip(rows, some);
        nrows -= some;
    }
    return nans;
}

/* Whether rows are for that code. */
static int
has_rows_code(const run_state *state)
{
    return state->by_units && state->plan->nunits == 1 && !state->streams &&
           state->plan->units[0].rows_code != NULL;
}

/*
 * Run whole rows, each a block for the only program, and read the status after the
 * last; REPEAT as run_units, for all of them.
 */
static int
run_short_rows(run_state *state, npy_deferred_rows *rows, npy_intp nrows, char *into)
{
    npy_deferred_plan *plan = state->plan;
    npy_intp length = npy_deferred_row_length(state->walk);
    int nans = 0;
    if (has_rows_code(state)) {
        const npy_deferred_unit *unit = &plan->units[0];
        nans = npy_deferred_run_rows_code(
                state, unit->rows_code, rows, nrows, into,
                length * plan->values[plan->out].descr->elsize, length * unit->parts);
    }
    else {
        for (npy_intp i = 0; i < nrows; i++) {
            use_row(state, rows, 0);
            nans |= run_program(state, &plan->units[0], length);
            npy_deferred_rows_next(rows);
        }
    }
    if (nans || (state->wanted &&
                 (npy_get_floatstatus_barrier((char *)plan) & state->wanted))) {
        return REPEAT;
    }
    state->look_in -= nrows * length * plan->nsteps;
    return state->look_in < 0 && npy_deferred_run_interrupted(state)
                   ? NPY_DEFERRED_INTERRUPTED
                   : 0;
}

/* How many of the rows that are left, each `length`, run together; 0: none. */
static npy_intp
rows_together(const run_state *state, npy_intp skipped, npy_intp left)
{
    npy_intp length = state->walk->runs.length;
    if (!state->by_units || state->plan->nunits != 1 ||
        state->plan->units[0].machine == NULL || state->saved != NULL ||
        (state->into != NULL && !has_rows_code(state)) || skipped != 0 ||
        length > state->block) {
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
            result = run_short_rows(state, &rows, nrows, into);
            if (result == REPEAT) {
                npy_clear_floatstatus_barrier((char *)state);
                rows = first;
                together = nrows;
                result = 0;
                continue;
            }
            if (into != NULL) {
                into += nrows * length * plan->values[plan->out].stride;
            }
            count -= nrows * length;
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
    char *const *first = NpyIter_GetInitialDataPtrArray(walk->iter);
    int repeats = n <= state->npacked && (start - state->packed_start) % walk->row == 0;
    if (!repeats) {
        state->packed_start = start;
        state->npacked = n;
    }
    for (int i = 0; i <= plan->out; i++) {
        npy_deferred_value *value = &plan->values[i];
        if (i < plan->out && walk->packs[i]) {
            value->data = npy_deferred_run_align(packs);
            if (!repeats || !walk->repeats[i]) {
                npy_deferred_pack(walk, i, start, n, value->data);
            }
            packs += npy_deferred_run_pack_bytes(walk, i);
        }
        else {
            /* Not where the array begins: the iterator turns reversed axes round. */
            value->data = first[i] + start * value->stride;
        }
    }
}

/* A panel of whole rows where these lie, without packing.  Returns as run_short_rows;
 * REPEAT also where it cannot be. */
static int
run_panel_by_rows(run_state *state, npy_intp start, npy_intp n, char *into)
{
    npy_intp length = state->walk->row;
    npy_deferred_rows rows;
    if (!has_rows_code(state) || start % length != 0 || n % length != 0) {
        return REPEAT;
    }
    npy_deferred_rows_begin(&rows, state->walk, start / length);
    int result = run_short_rows(state, &rows, n / length, into);
    if (result == REPEAT) {
        npy_clear_floatstatus_barrier((char *)state);
    }
    return result;
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
        result = run_panel_by_rows(state, start, n, into);
        if (result == REPEAT) {
            use_panel(state, start, n);
            if (into != NULL) {
                out->data = into;
            }
            result = run_blocks(state, n);
        }
        if (into != NULL) {
            into += n * out->stride;
        }
        start += n;
        count -= n;
    }
    return result;
}

NPY_NO_EXPORT int
npy_deferred_run_range(run_state *state, npy_intp start, npy_intp count)
{
    return state->iter != NULL   ? run_iterator(state, start, count)
           : state->walk->rows   ? run_rows(state, start, count)
           : state->walk->packed ? run_panels(state, start, count)
                                 : run_direct(state, start, count);
}

static int
run_here(run_state *state)
{
    if (npy_deferred_run_prepare(state) < 0) {
        return -1;
    }
    int released = npy_deferred_gil_release(npy_deferred_run_work(state));
    npy_clear_floatstatus_barrier((char *)state);
    int result = npy_deferred_run_range(state, 0, PyArray_SIZE(state->walk->out));
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
    run_state state = npy_deferred_run_new(plan, walk);
    npy_deferred_progress progress;
    state.progress = npy_deferred_progress_begin(&progress, PyArray_SIZE(walk->out));
    if (state.progress != NULL) {
        state.look_in = NPY_DEFERRED_LOOK_EVERY;
    }
    int nthreads = npy_deferred_threads_for(plan, walk);
    state.streams = is_streaming(walk, nthreads);
    npy_deferred_compile(plan, walk, state.streams, -1);
    int result = nthreads > 1 ? npy_deferred_run_divided(&state, nthreads)
                              : run_here(&state);
    npy_deferred_run_release_scratch(&state);
    npy_deferred_progress_end(state.progress, result);
    /* Some loops set an exception and return success all the same. */
    if (result >= 0 && PyErr_Occurred()) {
        result = -1;
    }
    return result;
}
