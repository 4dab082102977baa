/*
 * Values piece by piece, for who consumes them and stores nothing: see pieces.c.
 *
 * An evaluator is a run for one thread; the first of several has the plan itself, the
 * others copies of it, whose status is the plan's in the end.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "execute.h"

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
    *first = npy_deferred_run_new(plan, walk);
    first->reducing = reducing;
    npy_deferred_compile(plan, walk, 0, reducing);
    int result = 0;
    for (int i = 1; i < n && result == 0; i++) {
        result = npy_deferred_run_copy(&evaluators[i].state, first);
    }
    if (result < 0 || npy_deferred_run_prepare(first) < 0) {
        npy_deferred_evaluators_free(evaluators, n);
        return NULL;
    }
    npy_deferred_bring_operands(walk);
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
    return npy_deferred_run_range(&evaluator->state, start, count);
}

NPY_NO_EXPORT int
npy_deferred_evaluator_reduces_rows(const npy_deferred_evaluator *evaluator,
                                    npy_intp row)
{
    const run_state *state = &evaluator->state;
    const npy_deferred_walk *walk = state->walk;
    const npy_deferred_unit *unit = &state->plan->units[0];
    const npy_deferred_reducing *reducing =
            npy_deferred_find_reducing(unit, state->reducing);
    return state->plan->nunits == 1 && unit->machine != NULL && reducing != NULL &&
           reducing->rows_code != NULL && row >= 8 && row <= NPY_DEFERRED_MAX_ROW &&
           (walk->iter == NULL || row == npy_deferred_row_length(walk));
}

NPY_NO_EXPORT int
npy_deferred_evaluator_reduce_rows(npy_deferred_evaluator *evaluator, npy_intp start,
                                   npy_intp row, npy_intp length, npy_intp nrows,
                                   char *into, const npy_deferred_tile_leaf leaves[],
                                   npy_intp nsums)
{
    run_state *state = &evaluator->state;
    const npy_deferred_walk *walk = state->walk;
    const npy_deferred_plan *plan = state->plan;
    const npy_deferred_unit *unit = &plan->units[0];
    npy_deferred_rows rows;
    npy_intp strides[NPY_DEFERRED_ALL_OPERANDS + 1], skipped = start % row;
    if (walk->iter != NULL) {
        npy_deferred_rows_begin(&rows, walk, start / row);
    }
    else {
        npy_deferred_rows_divide(&rows, walk, row, start / row, strides);
    }
    for (int i = 0; i < rows.nop && skipped > 0; i++) {
        rows.data[i] += skipped * npy_deferred_row_stride(walk, i);
    }
    return npy_deferred_run_rows_code(
            state, npy_deferred_find_reducing(unit, state->reducing)->rows_code, &rows,
            nrows, into, nsums * plan->values[plan->out].descr->elsize,
            leaves != NULL ? (npy_intp)leaves : length * unit->parts);
}

NPY_NO_EXPORT int
npy_deferred_evaluator_program(const npy_deferred_evaluator *evaluator,
                               npy_deferred_lone_program *lone)
{
    const run_state *state = &evaluator->state;
    const npy_deferred_plan *plan = state->plan;
    const npy_deferred_unit *unit = &plan->units[0];
    lone->wanted = state->wanted;
    if (plan->nunits != 1 || unit->machine == NULL || state->iter != NULL ||
        state->walk->packed) {
        return 0;
    }
    lone->walk = state->walk;
    lone->machine = unit->machine;
    lone->type = unit->type;
    const npy_deferred_reducing *reducing =
            npy_deferred_find_reducing(unit, state->reducing);
    lone->reducing_code = reducing == NULL ? NULL : reducing->code;
    lone->row = state->walk->rows ? -2 : 0; /* nowhere, or the only one */
    lone->program = (npy_deferred_tile_program){
            .nargs = unit->nargs,
            .parts = unit->parts,
            .code = &plan->tile_code[unit->code],
            .args = &plan->tile_args[unit->args],
            .strides = lone->strides,
            .machine_code = unit->machine_code,
    };
    for (int i = 0; i < unit->nargs; i++) {
        const npy_deferred_value *value = &plan->values[lone->program.args[i].value];
        lone->strides[i] = value->stride / unit->parts;
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
            lone->data[i] =
                    lone->begins[i] + skipped * lone->program.parts * lone->strides[i];
        }
    }
    return length - skipped;
}

NPY_NO_EXPORT int
npy_deferred_evaluator_look(npy_deferred_evaluator *evaluator, npy_intp count)
{
    run_state *state = &evaluator->state;
    state->look_in -= count * state->plan->nsteps;
    return state->look_in < 0 && npy_deferred_run_interrupted(state)
                   ? NPY_DEFERRED_INTERRUPTED
                   : 0;
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
        npy_deferred_run_release(state);
    }
    npy_deferred_run_release_scratch(first);
    PyMem_Free(evaluators);
}
