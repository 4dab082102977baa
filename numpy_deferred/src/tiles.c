/*
 * Tile programs for the steps of a plan: see tiles.h.
 *
 * A step joins the only step that reads its result, if both are operations that
 * the machine has, so that trees of steps become programs.  What a program reads
 * from memory are operands, scalars, and slots that other steps have filled; it
 * writes the result of the last of its steps.  The others' slots are only used
 * where the plan is run by its steps.  The plan owns all of it.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "deferred.h"
#include "npy_cpu_dispatch.h"
#include "number.h"

#if NPY_DEFERRED_HAVE_TILES

#    include "tiles.dispatch.h"
NPY_CPU_DISPATCH_DECLARE(npy_deferred_tile_machine npy_deferred_run_tiles_f64)
NPY_CPU_DISPATCH_DECLARE(npy_deferred_tile_machine npy_deferred_run_tiles_f32)
NPY_CPU_DISPATCH_DECLARE(npy_deferred_tile_machine npy_deferred_run_tiles_i64)
NPY_CPU_DISPATCH_DECLARE(npy_deferred_tile_machine npy_deferred_run_tiles_i32)
NPY_CPU_DISPATCH_DECLARE(npy_deferred_tile_traits npy_deferred_traits_of_tiles)

NPY_NO_EXPORT int
npy_deferred_tile_machine_traits(void)
{
    int traits = 0;
    NPY_CPU_DISPATCH_CALL(traits = npy_deferred_traits_of_tiles, ());
    return traits;
}

NPY_NO_EXPORT npy_deferred_tile_machine *
npy_deferred_tile_machine_for(npy_deferred_tile_type type)
{
    npy_deferred_tile_machine *machine = NULL;
    switch (type) {
        case NPY_DEFERRED_TILE_DOUBLE:
            NPY_CPU_DISPATCH_CALL(machine = npy_deferred_run_tiles_f64);
            break;
        case NPY_DEFERRED_TILE_FLOAT:
            NPY_CPU_DISPATCH_CALL(machine = npy_deferred_run_tiles_f32);
            break;
        case NPY_DEFERRED_TILE_INT64:
            NPY_CPU_DISPATCH_CALL(machine = npy_deferred_run_tiles_i64);
            break;
        case NPY_DEFERRED_TILE_INT32:
            NPY_CPU_DISPATCH_CALL(machine = npy_deferred_run_tiles_i32);
            break;
        case NPY_DEFERRED_TILE_NONE:
            break;
    }
    return machine;
}

NPY_CPU_DISPATCH_DECLARE(npy_deferred_tile_sum npy_deferred_add_up_f64)
NPY_CPU_DISPATCH_DECLARE(npy_deferred_tile_sum npy_deferred_add_up_f32)
NPY_CPU_DISPATCH_DECLARE(npy_deferred_tile_sums npy_deferred_add_up_each_f64)
NPY_CPU_DISPATCH_DECLARE(npy_deferred_tile_sums npy_deferred_add_up_each_f32)
NPY_CPU_DISPATCH_DECLARE(npy_deferred_tile_extreme npy_deferred_largest_f64)
NPY_CPU_DISPATCH_DECLARE(npy_deferred_tile_extreme npy_deferred_largest_f32)
NPY_CPU_DISPATCH_DECLARE(npy_deferred_tile_extreme npy_deferred_smallest_f64)
NPY_CPU_DISPATCH_DECLARE(npy_deferred_tile_extreme npy_deferred_smallest_f32)
NPY_CPU_DISPATCH_DECLARE(npy_deferred_tile_join npy_deferred_join_sums_f64)
NPY_CPU_DISPATCH_DECLARE(npy_deferred_tile_join npy_deferred_join_sums_f32)
NPY_CPU_DISPATCH_DECLARE(npy_deferred_tile_join npy_deferred_join_largest_f64)
NPY_CPU_DISPATCH_DECLARE(npy_deferred_tile_join npy_deferred_join_largest_f32)
NPY_CPU_DISPATCH_DECLARE(npy_deferred_tile_join npy_deferred_join_smallest_f64)
NPY_CPU_DISPATCH_DECLARE(npy_deferred_tile_join npy_deferred_join_smallest_f32)

/* The instruction by which a program reduces, or -1. */
static int
fold_for(const PyArray_Descr *descr, npy_deferred_tile_reduction what)
{
    int is_integer = PyTypeNum_ISINTEGER(descr->type_num) && descr->elsize >= 4;
    if (what == NPY_DEFERRED_TILE_SUM && is_integer) {
        return NPY_DEFERRED_TILE_FOLD_SUM;
    }
    if (descr->type_num != NPY_DOUBLE && descr->type_num != NPY_FLOAT &&
        !(is_integer && PyTypeNum_ISSIGNED(descr->type_num))) {
        return -1;
    }
    return what == NPY_DEFERRED_TILE_LARGEST    ? NPY_DEFERRED_TILE_FOLD_LARGEST
           : what == NPY_DEFERRED_TILE_SMALLEST ? NPY_DEFERRED_TILE_FOLD_SMALLEST
                                                : -1;
}

NPY_NO_EXPORT npy_deferred_tile_reducer
npy_deferred_tile_reducer_for(const PyArray_Descr *descr,
                              npy_deferred_tile_reduction what)
{
    npy_deferred_tile_reducer reducer = {.fold = fold_for(descr, what), .joining = -1};
    if (what == NPY_DEFERRED_TILE_SUM &&
        npy_deferred_tile_type_of(descr) != NPY_DEFERRED_TILE_NONE) {
        reducer.joining = NPY_DEFERRED_TILE_JOIN_SUM;
    }
    else if (what != NPY_DEFERRED_TILE_SUM && reducer.fold >= 0) {
        reducer.joining = what == NPY_DEFERRED_TILE_LARGEST
                                  ? NPY_DEFERRED_TILE_JOIN_LARGEST
                                  : NPY_DEFERRED_TILE_JOIN_SMALLEST;
    }
    int wide = descr->type_num == NPY_DOUBLE;
    if (!wide && descr->type_num != NPY_FLOAT) {
        return reducer;
    }
    if (what == NPY_DEFERRED_TILE_SUM && wide) {
        NPY_CPU_DISPATCH_CALL(reducer.add_up = npy_deferred_add_up_f64);
        NPY_CPU_DISPATCH_CALL(reducer.add_up_each = npy_deferred_add_up_each_f64);
        NPY_CPU_DISPATCH_CALL(reducer.join = npy_deferred_join_sums_f64);
    }
    else if (what == NPY_DEFERRED_TILE_SUM) {
        NPY_CPU_DISPATCH_CALL(reducer.add_up = npy_deferred_add_up_f32);
        NPY_CPU_DISPATCH_CALL(reducer.add_up_each = npy_deferred_add_up_each_f32);
        NPY_CPU_DISPATCH_CALL(reducer.join = npy_deferred_join_sums_f32);
    }
    else if (what == NPY_DEFERRED_TILE_LARGEST && wide) {
        NPY_CPU_DISPATCH_CALL(reducer.extreme = npy_deferred_largest_f64);
        NPY_CPU_DISPATCH_CALL(reducer.join = npy_deferred_join_largest_f64);
    }
    else if (what == NPY_DEFERRED_TILE_LARGEST) {
        NPY_CPU_DISPATCH_CALL(reducer.extreme = npy_deferred_largest_f32);
        NPY_CPU_DISPATCH_CALL(reducer.join = npy_deferred_join_largest_f32);
    }
    else if (what == NPY_DEFERRED_TILE_SMALLEST && wide) {
        NPY_CPU_DISPATCH_CALL(reducer.extreme = npy_deferred_smallest_f64);
        NPY_CPU_DISPATCH_CALL(reducer.join = npy_deferred_join_smallest_f64);
    }
    else if (what == NPY_DEFERRED_TILE_SMALLEST) {
        NPY_CPU_DISPATCH_CALL(reducer.extreme = npy_deferred_smallest_f32);
        NPY_CPU_DISPATCH_CALL(reducer.join = npy_deferred_join_smallest_f32);
    }
    return reducer;
}

#else

NPY_NO_EXPORT int
npy_deferred_tile_machine_traits(void)
{
    return 0;
}

NPY_NO_EXPORT npy_deferred_tile_reducer
npy_deferred_tile_reducer_for(const PyArray_Descr *descr,
                              npy_deferred_tile_reduction what)
{
    return (npy_deferred_tile_reducer){.fold = -1, .joining = -1};
}

NPY_NO_EXPORT npy_deferred_tile_machine *
npy_deferred_tile_machine_for(npy_deferred_tile_type type)
{
    return NULL;
}

#endif

static int
is_binary(int operation)
{
    return operation < NPY_DEFERRED_TILE_NEGATIVE;
}

/* For operands in the other order. */
static int
reversed(int operation)
{
    switch (operation) {
        case NPY_DEFERRED_TILE_SELECT:
            return NPY_DEFERRED_TILE_REVERSED_SELECT;
        case NPY_DEFERRED_TILE_LARGER:
            return NPY_DEFERRED_TILE_REVERSED_LARGER;
        case NPY_DEFERRED_TILE_SMALLER:
            return NPY_DEFERRED_TILE_REVERSED_SMALLER;
        case NPY_DEFERRED_TILE_SUBTRACT:
            return NPY_DEFERRED_TILE_REVERSED_SUBTRACT;
        case NPY_DEFERRED_TILE_DIVIDE:
            return NPY_DEFERRED_TILE_REVERSED_DIVIDE;
        case NPY_DEFERRED_TILE_COMPLEX_MULTIPLY:
            return NPY_DEFERRED_TILE_REVERSED_COMPLEX_MULTIPLY;
        case NPY_DEFERRED_TILE_SHIFT_LEFT:
            return NPY_DEFERRED_TILE_REVERSED_SHIFT_LEFT;
        case NPY_DEFERRED_TILE_SHIFT_RIGHT:
            return NPY_DEFERRED_TILE_REVERSED_SHIFT_RIGHT;
        case NPY_DEFERRED_TILE_SHIFT_BITS_RIGHT:
            return NPY_DEFERRED_TILE_REVERSED_SHIFT_BITS_RIGHT;
        case NPY_DEFERRED_TILE_LESS:
            return NPY_DEFERRED_TILE_GREATER;
        case NPY_DEFERRED_TILE_LESS_EQUAL:
            return NPY_DEFERRED_TILE_GREATER_EQUAL;
        case NPY_DEFERRED_TILE_GREATER:
            return NPY_DEFERRED_TILE_LESS;
        case NPY_DEFERRED_TILE_GREATER_EQUAL:
            return NPY_DEFERRED_TILE_LESS_EQUAL;
        default:
            return operation;
    }
}

/*
 * The instruction that converts what lies side by side to the type of a program,
 * or -1.  All of these casts are safe.
 */
static int
converting_load(npy_deferred_tile_type type, const PyArray_Descr *from)
{
    const int to_double = type == NPY_DEFERRED_TILE_DOUBLE;
    const int to_long = to_double || type == NPY_DEFERRED_TILE_INT64;
    if (type == NPY_DEFERRED_TILE_NONE) {
        return -1; /* truth values, of which the machine knows no others */
    }
    if (from->type_num == NPY_FLOAT) {
        return to_double ? NPY_DEFERRED_TILE_LOAD_FLOAT : -1;
    }
    /* Not booleans, whose bytes need not be 0 and 1. */
    if (!PyTypeNum_ISINTEGER(from->type_num)) {
        return -1;
    }
    int has_sign = PyTypeNum_ISSIGNED(from->type_num);
    switch (from->elsize) {
        case 1:
            return has_sign ? NPY_DEFERRED_TILE_LOAD_INT8
                            : NPY_DEFERRED_TILE_LOAD_UINT8;
        case 2:
            return has_sign ? NPY_DEFERRED_TILE_LOAD_INT16
                            : NPY_DEFERRED_TILE_LOAD_UINT16;
        case 4:
            return !to_long   ? -1
                   : has_sign ? NPY_DEFERRED_TILE_LOAD_INT32
                              : NPY_DEFERRED_TILE_LOAD_UINT32;
        case 8:
            return to_double && has_sign ? NPY_DEFERRED_TILE_LOAD_INT64 : -1;
        default:
            return -1;
    }
}

static int
is_truth(const npy_deferred_value *value)
{
    return value->descr->type_num == NPY_BOOL;
}

static int
is_complex(const npy_deferred_value *value)
{
    return PyTypeNum_ISCOMPLEX(value->descr->type_num);
}

/* Whether the machine reads one as it reads the other. */
static int
is_same_type(const npy_deferred_value *value, const npy_deferred_value *other)
{
    return value->descr->elsize == other->descr->elsize &&
           PyTypeNum_ISFLOAT(value->descr->type_num) ==
                   PyTypeNum_ISFLOAT(other->descr->type_num) &&
           is_complex(value) == is_complex(other) && is_truth(value) == is_truth(other);
}

/*
 * What a program reads for a value: where that is a copy, or a cast, of an operand
 * that the machine can read as it is, the operand.
 */
static int
without_copy(const npy_deferred_plan *plan, int value)
{
    const npy_deferred_value *copy = &plan->values[value];
    if (copy->kind != NPY_DEFERRED_VALUE_SLOT || copy->source < 0) {
        return value;
    }
    const npy_deferred_value *source = &plan->values[copy->source];
    if ((source->kind != NPY_DEFERRED_VALUE_OPERAND &&
         source->kind != NPY_DEFERRED_VALUE_KEPT) ||
        !source->aligned || source->stride == NPY_MAX_INTP ||
        !PyArray_ISNBO(source->descr->byteorder)) {
        return value;
    }
    if (is_same_type(source, copy)) {
        int any_stride = !is_truth(source) && !is_complex(source);
        return any_stride || source->stride == source->descr->elsize ? copy->source
                                                                     : value;
    }
    return source->stride == source->descr->elsize &&
                           converting_load(npy_deferred_tile_type_of(copy->descr),
                                           source->descr) >= 0
                   ? copy->source
                   : value;
}

/* The machine whose mask a value is, if only one step reads it. */
static npy_deferred_tile_type
type_of_mask(const npy_deferred_plan *plan, const npy_deferred_value *value)
{
    return is_truth(value) && value->writer >= 0 && value->nreaders == 1
                   ? plan->steps[value->writer].tile_type
                   : NPY_DEFERRED_TILE_NONE;
}

/* Whether the machine can have an operand of a step as a mask. */
static int
can_be_mask(const npy_deferred_value *value)
{
    return is_truth(value) && value->aligned && value->stride == 1;
}

/*
 * Operations on booleans are done where those come from comparisons, by the machine
 * of what was compared; and where they become numbers, by the machine of these.
 */
static npy_deferred_tile_type
type_for_masks(const npy_deferred_plan *plan, const npy_deferred_step *step)
{
    const npy_deferred_value *first = &plan->values[step->args[0]];
    const npy_deferred_value *result = &plan->values[step->args[step->nargs - 1]];
    npy_deferred_tile_type type = type_of_mask(plan, first);
    if (!result->aligned || result->stride != result->descr->elsize ||
        !PyArray_ISNBO(result->descr->byteorder)) {
        return NPY_DEFERRED_TILE_NONE;
    }
    for (int i = 0; i < step->nargs - 1; i++) {
        const npy_deferred_value *value = &plan->values[step->args[i]];
        if (!can_be_mask(value)) {
            return NPY_DEFERRED_TILE_NONE;
        }
        if (type == NPY_DEFERRED_TILE_NONE) {
            type = type_of_mask(plan, value);
        }
    }
    return step->is_cast      ? npy_deferred_tile_type_of(result->descr)
           : is_truth(result) ? type
                              : NPY_DEFERRED_TILE_NONE;
}

/* Whether the values from the `first` one on are what the machine works on. */
static int
takes(const npy_deferred_plan *plan, const npy_deferred_step *step, int first,
      const PyArray_Descr *descr, npy_deferred_tile_type type)
{
    for (int i = first; i < step->nargs; i++) {
        const npy_deferred_value *value = &plan->values[step->args[i]];
        int is_result = i == step->nargs - 1;
        /* Comparisons may have one operand with a sign, and one without. */
        int fits = npy_deferred_tile_type_of(value->descr) == type &&
                   PyTypeNum_ISUNSIGNED(value->descr->type_num) ==
                           PyTypeNum_ISUNSIGNED(descr->type_num);
        if (!(fits || (is_result && is_truth(value))) || !value->aligned ||
            value->stride == NPY_MAX_INTP ||
            (is_result && value->stride != value->descr->elsize)) {
            return 0;
        }
    }
    return 1;
}

/* Whether all that a step has are complex numbers of its type, side by side or one. */
static int
takes_complex(const npy_deferred_plan *plan, const npy_deferred_step *step,
              int type_num)
{
    for (int i = 0; i < step->nargs; i++) {
        const npy_deferred_value *value = &plan->values[step->args[i]];
        int is_result = i == step->nargs - 1;
        if (value->descr->type_num != type_num || !value->aligned ||
            !(value->stride == value->descr->elsize ||
              (value->stride == 0 && !is_result))) {
            return 0;
        }
    }
    return 1;
}

static void
classify_complex(const npy_deferred_plan *plan, npy_deferred_step *step)
{
    int type_num = step->node->descrs[0]->type_num;
    if (type_num != NPY_CLONGDOUBLE && takes_complex(plan, step, type_num)) {
        step->tile_type = type_num == NPY_CDOUBLE ? NPY_DEFERRED_TILE_DOUBLE
                                                  : NPY_DEFERRED_TILE_FLOAT;
    }
}

static int
is_select(const npy_deferred_step *step)
{
    return !step->is_cast && npy_deferred_is_where(step->node->ufunc);
}

/* With two scalars: others keep another one of two zeros, and NumPy looks as well. */
static int
is_clip(const npy_deferred_plan *plan, const npy_deferred_step *step)
{
    return step->nargs == 4 && plan->values[step->args[1]].stride == 0 &&
           plan->values[step->args[2]].stride == 0;
}

/* A product of something with itself is written as a square, which reads it once. */
static int
as_square(const npy_deferred_step *step, int operation)
{
    if (step->nargs != 3 || step->args[0] != step->args[1]) {
        return operation;
    }
    return operation == NPY_DEFERRED_TILE_MULTIPLY ? NPY_DEFERRED_TILE_SQUARE
           : operation == NPY_DEFERRED_TILE_COMPLEX_MULTIPLY
                   ? NPY_DEFERRED_TILE_COMPLEX_SQUARE
                   : operation;
}

/* How many of a step's operands its program reads. */
static int
operands_of(const npy_deferred_step *step)
{
    return step->tile_operation == NPY_DEFERRED_TILE_SQUARE ||
                           step->tile_operation == NPY_DEFERRED_TILE_COMPLEX_SQUARE
                   ? 1
                   : step->nargs - 1;
}

/* Whether the machine has it: a known operation, with elements side by side as result.
 */
static void
classify(npy_deferred_plan *plan, npy_deferred_step *step)
{
    step->tile_type = NPY_DEFERRED_TILE_NONE;
    step->joins = -1;
    step->banks = step->njoined = 1;
    step->takes_masks = 0;
    if (!NPY_DEFERRED_HAVE_TILES) {
        return;
    }
    if (is_select(step)) {
        PyArray_Descr *descr = step->node->descrs[1];
        npy_deferred_tile_type type = npy_deferred_tile_type_of(descr);
        step->tile_operation = NPY_DEFERRED_TILE_SELECT;
        if (type != NPY_DEFERRED_TILE_NONE && takes(plan, step, 1, descr, type) &&
            can_be_mask(&plan->values[step->args[0]])) {
            step->tile_type = type;
        }
        return;
    }
    step->takes_masks = is_truth(&plan->values[step->args[0]]);
    step->tile_operation = !step->is_cast ? npy_deferred_tile_operation_of(step->node)
                           : step->takes_masks ? NPY_DEFERRED_TILE_ONE
                                               : -1;
    if (step->tile_operation < 0) {
        return;
    }
    step->tile_operation = as_square(step, step->tile_operation);
    if (step->takes_masks) {
        step->tile_type = type_for_masks(plan, step);
        return;
    }
    const PyArray_Descr *descr = step->node->descrs[0];
    if (PyTypeNum_ISCOMPLEX(descr->type_num)) {
        classify_complex(plan, step);
        return;
    }
    npy_deferred_tile_type type = npy_deferred_tile_type_of(descr);
    if (type != NPY_DEFERRED_TILE_NONE && takes(plan, step, 0, descr, type) &&
        (step->tile_operation != NPY_DEFERRED_TILE_RAISE || is_clip(plan, step))) {
        step->tile_type = type;
    }
}

/* The step that has joined `step` as its i-th operand, or -1. */
static int
joined(const npy_deferred_plan *plan, int step, int i)
{
    int writer = plan->values[plan->steps[step].args[i]].writer;
    return writer >= 0 && plan->steps[writer].joins == step ? writer : -1;
}

/* ---- writing a program, from its end ---- */

typedef struct {
    npy_deferred_plan *plan;
    npy_deferred_unit *unit;
    int position; /* of the instruction written last */
    int resident; /* the value that the last bank has throughout, or -1 */
} writing;

/* Results from so many bytes on may be written past the cache (execute.c). */
#define STREAM_BYTES (2 << 20)

/*
 * Not where operands are, which are in the cache when they are overwritten; nor by
 * rows, which share cache lines.
 */
static int
is_streamed(const npy_deferred_plan *plan, const npy_deferred_walk *walk, int value)
{
    const npy_deferred_value *result = &plan->values[value];
    if (result->kind != NPY_DEFERRED_VALUE_OUT &&
        result->kind != NPY_DEFERRED_VALUE_KEPT) {
        return 0;
    }
    /* Nor what is read again at once, but by a step that has it in a register. */
    int is_read = result->nreaders > (plan->steps[result->writer].joins >= 0);
    return !is_read && !walk->overlaps && !walk->rows &&
           PyArray_SIZE(walk->out) >= STREAM_BYTES / result->descr->elsize;
}

static int
argument(writing *w, int value, npy_deferred_tile_access access)
{
    npy_deferred_plan *plan = w->plan;
    npy_deferred_unit *unit = w->unit;
    for (int i = 0; i < unit->nargs; i++) {
        if (plan->tile_args[unit->args + i].value == value &&
            plan->tile_args[unit->args + i].access == access) {
            return i;
        }
    }
    plan->tile_args[unit->args + unit->nargs] = (npy_deferred_tile_arg){
            value, access,
            (npy_uint8)(plan->values[value].descr->elsize / unit->parts)};
    return unit->nargs++;
}

static void
put(writing *w, int operation, int bank, int arg)
{
    npy_deferred_tile_instruction *instruction = &w->plan->tile_code[--w->position];
    instruction->code = operation + bank * NPY_DEFERRED_TILE_OPERATIONS;
    instruction->arg = arg;
}

/* What comes before the rest of a program: a step, or else a value that is loaded. */
typedef struct {
    int step, bank;
    int value; /* as the step wants it */
} pending_part;

/* Whether an operand is read for each element, and is not a truth value. */
static int
varies(const npy_deferred_plan *plan, int value)
{
    return !is_truth(&plan->values[value]) &&
           plan->values[without_copy(plan, value)].stride != 0;
}

/* Whether something must be in a bank to be operated with. */
static int
needs_bank(const npy_deferred_plan *plan, int step, int i)
{
    const npy_deferred_value *as = &plan->values[plan->steps[step].args[i]];
    const npy_deferred_value *value =
            &plan->values[without_copy(plan, plan->steps[step].args[i])];
    return joined(plan, step, i) >= 0 || is_truth(as) || !is_same_type(value, as) ||
           (is_complex(value) && value->stride == 0) ||
           (value->stride != 0 && value->stride != value->descr->elsize);
}

/* How many banks it takes to have an operand in one. */
static int
banks_for(const npy_deferred_plan *plan, int step, int i)
{
    int writer = joined(plan, step, i);
    return writer >= 0 ? plan->steps[writer].banks : needs_bank(plan, step, i);
}

static pending_part
part(const npy_deferred_plan *plan, int step, int i, int bank)
{
    return (pending_part){joined(plan, step, i), bank, plan->steps[step].args[i]};
}

/* How many banks two operands need; none for what is read from memory. */
static int
banks_together(int first, int second)
{
    return first == second && first > 0 ? first + 1 : PyArray_MAX(first, second);
}

/*
 * Which operand of a selection is first in its bank: the one that needs more of them,
 * as the mask comes to the next one then, and what is left is for the other.
 */
static int
selected_first(const npy_deferred_plan *plan, int step)
{
    return banks_for(plan, step, 1) < banks_for(plan, step, 2) ? 2 : 1;
}

/* How many banks a step needs, with those that have joined it. */
static int
banks_of(const npy_deferred_plan *plan, int index)
{
    const npy_deferred_step *step = &plan->steps[index];
    int banks = PyArray_MAX(banks_for(plan, index, 0), 1);
    if (is_select(step)) {
        int first = selected_first(plan, index);
        int other = banks_for(plan, index, 3 - first);
        banks = PyArray_MAX(banks + 1, banks_for(plan, index, first));
        return PyArray_MAX(banks, other > 0 ? other + 2 : 0);
    }
    if (operands_of(step) > 1) {
        int together =
                banks_together(banks_for(plan, index, 0), banks_for(plan, index, 1));
        banks = PyArray_MAX(banks, together);
    }
    return banks;
}

/* How many values a step reads from memory, and others keep there, with those that
 * have joined it, at most. */
static int
reads_of(const npy_deferred_plan *plan, int index)
{
    int reads = 0;
    for (int i = 0; i < operands_of(&plan->steps[index]); i++) {
        int writer = joined(plan, index, i);
        int is_kept = plan->values[plan->steps[index].args[i]].kind ==
                      NPY_DEFERRED_VALUE_KEPT;
        reads += writer >= 0 ? plan->steps[writer].nreads + is_kept : 1;
    }
    return reads;
}

/*
 * Have the steps whose results only this one reads join it, as far as that goes,
 * and find how many banks that takes.
 */
static void
join(npy_deferred_plan *plan, int index)
{
    npy_deferred_step *step = &plan->steps[index];
    /* A clip reads its scalars. */
    int nin = step->tile_operation == NPY_DEFERRED_TILE_RAISE ? 1 : operands_of(step);
    int is_read_twice = operands_of(step) < step->nargs - 1;
    for (int i = 0; i < nin; i++) {
        npy_deferred_value *value = &plan->values[step->args[i]];
        int wants_mask = is_select(step) ? i == 0 : step->takes_masks;
        npy_deferred_step *writer = &plan->steps[value->writer < 0 ? 0 : value->writer];
        if (value->writer < 0 || value->nreaders != 1 + is_read_twice ||
            writer->tile_type != step->tile_type || is_truth(value) != wants_mask) {
            continue;
        }
        writer->joins = index;
        if (banks_of(plan, index) > NPY_DEFERRED_TILE_BANKS ||
            reads_of(plan, index) > NPY_DEFERRED_TILE_MAX_ARGS - 1) {
            writer->joins = -1;
            continue;
        }
        step->njoined += writer->njoined;
    }
    step->banks = banks_of(plan, index);
    step->nreads = reads_of(plan, index);
}

/* A binary operation with a value in memory, with one for the whole tile, or with the
 * one that is in the last bank. */
static void
put_reading(writing *w, int operation, int step, int i, int bank)
{
    if (w->plan->steps[step].args[i] == w->resident) {
        put(w, operation + NPY_DEFERRED_TILE_FROM_LAST, bank, 0);
        return;
    }
    int value = without_copy(w->plan, w->plan->steps[step].args[i]);
    int scalar = w->plan->values[value].stride == 0;
    put(w, operation + (scalar ? NPY_DEFERRED_TILE_FROM_SCALAR : 0), bank,
        argument(w, value,
                 scalar ? NPY_DEFERRED_TILE_READ_SCALAR : NPY_DEFERRED_TILE_READ));
}

static void
put_load(writing *w, pending_part at)
{
    const npy_deferred_value *values = w->plan->values;
    if (at.value == w->resident && at.bank != NPY_DEFERRED_TILE_BANKS - 1) {
        put(w, NPY_DEFERRED_TILE_LOAD_LAST, at.bank, 0);
        return;
    }
    int from = without_copy(w->plan, at.value);
    int same = is_same_type(&values[from], &values[at.value]);
    npy_intp stride = values[from].stride;
    int operation =
            is_truth(&values[at.value]) ? NPY_DEFERRED_TILE_LOAD_TRUTH
            : !same ? converting_load(w->unit->type, values[from].descr)
            : stride == 0
                    ? (is_complex(&values[from]) ? NPY_DEFERRED_TILE_LOAD_COMPLEX_SCALAR
                                                 : NPY_DEFERRED_TILE_LOAD_SCALAR)
            : stride == values[from].descr->elsize ? NPY_DEFERRED_TILE_LOAD
                                                   : NPY_DEFERRED_TILE_LOAD_STRIDED;
    put(w, operation, at.bank,
        argument(w, from,
                 stride == 0 ? NPY_DEFERRED_TILE_READ_SCALAR : NPY_DEFERRED_TILE_READ));
}

static void
put_limit(writing *w, int operation, int step, int i, int bank)
{
    int value = without_copy(w->plan, w->plan->steps[step].args[i]);
    put(w, operation, bank, argument(w, value, NPY_DEFERRED_TILE_READ_SCALAR));
}

/* Whether an operation can have its operand from where that is. */
static int
is_at_hand(const writing *w, int step, int i)
{
    return w->plan->steps[step].args[i] == w->resident || !needs_bank(w->plan, step, i);
}

/* As put_step. */
static int
put_select(writing *w, pending_part at, pending_part before[3])
{
    const npy_deferred_plan *plan = w->plan;
    int first = selected_first(plan, at.step), other = 3 - first;
    int operation =
            first == 1 ? NPY_DEFERRED_TILE_SELECT : reversed(NPY_DEFERRED_TILE_SELECT);
    before[0] = part(plan, at.step, first, at.bank);
    before[1] = part(plan, at.step, 0, at.bank + 1);
    if (is_at_hand(w, at.step, other)) {
        put_reading(w, operation, at.step, other, at.bank);
        return 2;
    }
    put(w, operation + NPY_DEFERRED_TILE_FROM_BANK, at.bank, 0);
    before[2] = part(plan, at.step, other, at.bank + 2);
    return 3;
}

/*
 * Put the operation of a step.  Returns how many parts are to be put before it,
 * the one that runs later last.
 */
static int
put_step(writing *w, pending_part at, pending_part before[3])
{
    const npy_deferred_plan *plan = w->plan;
    int operation = plan->steps[at.step].tile_operation;
    if (is_select(&plan->steps[at.step])) {
        return put_select(w, at, before);
    }
    if (operation == NPY_DEFERRED_TILE_RAISE) {
        put_limit(w, NPY_DEFERRED_TILE_LOWER, at.step, 2, at.bank);
        put_limit(w, NPY_DEFERRED_TILE_RAISE, at.step, 1, at.bank);
        before[0] = part(plan, at.step, 0, at.bank);
        return 1;
    }
    if (!is_binary(operation)) {
        if (operation != NPY_DEFERRED_TILE_POSITIVE) {
            put(w, operation, at.bank, 0);
        }
        before[0] = part(plan, at.step, 0, at.bank);
        return 1;
    }
    if (is_at_hand(w, at.step, 1)) {
        put_reading(w, operation, at.step, 1, at.bank);
        before[0] = part(plan, at.step, 0, at.bank);
        return 1;
    }
    if (is_at_hand(w, at.step, 0)) {
        put_reading(w, reversed(operation), at.step, 0, at.bank);
        before[0] = part(plan, at.step, 1, at.bank);
        return 1;
    }
    /* The one that needs more banks has all of them. */
    int swap = banks_for(plan, at.step, 0) < banks_for(plan, at.step, 1);
    put(w, (swap ? reversed(operation) : operation) + NPY_DEFERRED_TILE_FROM_BANK,
        at.bank, 0);
    before[0] = part(plan, at.step, swap ? 1 : 0, at.bank);
    before[1] = part(plan, at.step, swap ? 0 : 1, at.bank + 1);
    return 2;
}

static void
put_store(writing *w, const npy_deferred_walk *walk, int value, int bank)
{
    int operation = is_truth(&w->plan->values[value])   ? NPY_DEFERRED_TILE_STORE_TRUTH
                    : is_streamed(w->plan, walk, value) ? NPY_DEFERRED_TILE_STREAM
                                                        : NPY_DEFERRED_TILE_STORE;
    put(w, operation, bank, argument(w, value, NPY_DEFERRED_TILE_WRITTEN));
}

/*
 * What a program reads most often, if that is more than once and the last bank is
 * free, or -1.  Vectors that lie across two lines of the cache take twice as long
 * to read, and others than those side by side more than that.
 */
static int
find_resident(const npy_deferred_plan *plan, int root)
{
    struct {
        int value, nreads;
    } found[NPY_DEFERRED_TILE_MAX_ARGS];
    int nfound = 0, best = -1, most = 1;
    if (plan->steps[root].banks == NPY_DEFERRED_TILE_BANKS) {
        return -1;
    }
    for (int i = 0; i <= root; i++) {
        int top = i;
        while (plan->steps[top].joins >= 0) {
            top = plan->steps[top].joins;
        }
        for (int j = 0; top == root && j < operands_of(&plan->steps[i]); j++) {
            int value = plan->steps[i].args[j], at = 0;
            if (joined(plan, i, j) >= 0 || !varies(plan, value)) {
                continue;
            }
            while (at < nfound && found[at].value != value) {
                at++;
            }
            if (at == nfound) {
                found[nfound].value = value;
                found[nfound++].nreads = 0;
            }
            if (++found[at].nreads > most) {
                most = found[at].nreads;
                best = value;
            }
        }
    }
    return best;
}

/* The program of a step and those that joined it. */
static void
write_program(npy_deferred_plan *plan, npy_deferred_unit *unit, int root,
              const npy_deferred_walk *walk, int *ncode, int *nargs)
{
    const npy_deferred_step *step = &plan->steps[root];
    pending_part pending[2 * NPY_DEFERRED_TILE_MAX_ARGS];
    int npending = 1;
    /* The resident, operations, loads of what these do not read themselves, the store,
     * the end. */
    int end = *ncode + step->njoined + step->nreads + 3;
    writing w = {plan, unit, end, find_resident(plan, root)};
    unit->args = *nargs;
    unit->type = step->tile_type;
    unit->parts = 1 + is_complex(&plan->values[step->args[step->nargs - 1]]);
    put(&w, NPY_DEFERRED_TILE_END, 0, 0);
    pending[0] = (pending_part){root, 0, 0};
    while (npending > 0) {
        pending_part at = pending[--npending];
        if (at.step < 0) {
            put_load(&w, at);
            continue;
        }
        const npy_deferred_step *its = &plan->steps[at.step];
        int result = its->args[its->nargs - 1];
        if (at.step == root || plan->values[result].kind == NPY_DEFERRED_VALUE_KEPT) {
            put_store(&w, walk, result, at.bank);
        }
        npending += put_step(&w, at, &pending[npending]);
    }
    if (w.resident >= 0) {
        put_load(&w, (pending_part){-1, NPY_DEFERRED_TILE_BANKS - 1, w.resident});
    }
    unit->code = w.position;
    *ncode = end;
    *nargs += unit->nargs;
}

/* ---- units ---- */

/* Whether it leaves the floating-point status alone but for what it raises. */
static int
keeps_status(const npy_deferred_step *step)
{
    PyObject *ufunc = step->is_cast ? NULL : (PyObject *)step->node->ufunc;
    return step->is_cast || ufunc == n_ops.add || ufunc == n_ops.subtract ||
           ufunc == n_ops.multiply || ufunc == n_ops.true_divide ||
           ufunc == n_ops.power || ufunc == n_ops.bitwise_and ||
           ufunc == n_ops.bitwise_or || ufunc == n_ops.bitwise_xor || is_select(step);
}

/*
 * Whether a step that has joined no other is a program, with those that joined it.  One
 * alone is where that saves a copy of an operand, or its values are not stored, or are
 * not the only ones.
 */
static int
is_program(const npy_deferred_plan *plan, const npy_deferred_walk *walk,
           const npy_deferred_step *step)
{
    if (step->njoined > 1) {
        return 1;
    }
    if (step->tile_type == NPY_DEFERRED_TILE_NONE || step->takes_masks) {
        return 0;
    }
    for (int i = 0; i < step->nargs - 1; i++) {
        if (without_copy(plan, step->args[i]) != step->args[i]) {
            return 1;
        }
    }
    return plan->nsteps == 1 || (walk->expression->nkept > 0 &&
                                 is_streamed(plan, walk, step->args[step->nargs - 1]));
}

/* Whether only programs read the result of a step, and can do without. */
static int
is_idle(const npy_deferred_plan *plan, const npy_deferred_walk *walk, int index)
{
    const npy_deferred_step *step = &plan->steps[index];
    int value = step->args[step->nargs - 1];
    if (without_copy(plan, value) == value) {
        return 0;
    }
    for (int i = index + 1; i < plan->nsteps; i++) {
        const npy_deferred_step *reader = &plan->steps[i];
        for (int j = 0; j < reader->nargs - 1; j++) {
            if (reader->args[j] == value && reader->joins < 0 &&
                !is_program(plan, walk, reader)) {
                return 0;
            }
        }
    }
    return 1;
}

NPY_NO_EXPORT void
npy_deferred_make_units(npy_deferred_plan *plan, const npy_deferred_walk *walk)
{
    int ncode = 0, nargs = 0;
    for (int i = 0; i < plan->nsteps; i++) {
        classify(plan, &plan->steps[i]);
        if (plan->steps[i].tile_type != NPY_DEFERRED_TILE_NONE) {
            join(plan, i);
        }
    }
    for (int i = 0; i < plan->nsteps; i++) {
        npy_deferred_step *step = &plan->steps[i];
        step->is_idle = is_idle(plan, walk, i);
        if (step->joins >= 0 || step->is_idle) {
            continue;
        }
        npy_deferred_unit *unit = &plan->units[plan->nunits++];
        memset(unit, 0, sizeof(*unit));
        unit->type = NPY_DEFERRED_TILE_NONE;
        unit->step = i;
        if (is_program(plan, walk, step)) {
            write_program(plan, unit, i, walk, &ncode, &nargs);
        }
        else {
            unit->reads_status = !keeps_status(step);
        }
    }
}
