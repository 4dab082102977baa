/*
 * Plans: an expression as a straight list of steps over blocks of elements.
 *
 * Every node is one step, or two nodes are that have the outputs of one call; a cast is
 * a step of its own, in front of the operation that needs it, so that floating-point
 * errors of a cast are found where eager NumPy would report them.  Operands that lie
 * unaligned or in foreign byte order are "cast" too.  Values between steps live in
 * slots, scratch memory for one block, which are given to another value once the last
 * step that reads them has run.  A step never writes to a slot that it reads.
 *
 * A plan is made for one walk over memory.  Where eager NumPy would have shown
 * a loop a contiguous buffer and the walk does not, a copy into a slot makes up
 * for it; where that is not enough, the expression cannot be planned.  Where it
 * shows as many elements at a time as eager NumPy would, or many, all is well;
 * else steps may be doubtful, and the plan is one that may be given up as long
 * as nobody else sees what is written.
 *
 * It borrows everything from the expression, and owns what run_state.c makes when
 * it binds the steps to loops.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "common.h"
#include "convert_datatype.h"
#include "deferred.h"
#include "number.h"

static int
add_value(npy_deferred_plan *plan, npy_deferred_value_kind kind, PyArray_Descr *descr,
          npy_intp stride)
{
    npy_deferred_value *value = &plan->values[plan->nvalues];
    memset(value, 0, sizeof(*value));
    value->kind = kind;
    value->descr = descr;
    value->stride = stride;
    value->aligned = 1;
    value->source = -1;
    value->last_use = -1;
    value->writer = -1;
    return plan->nvalues++;
}

static int
add_slot(npy_deferred_plan *plan, PyArray_Descr *descr)
{
    return add_value(plan, NPY_DEFERRED_VALUE_SLOT, descr, descr->elsize);
}

static npy_deferred_step *
add_step(npy_deferred_plan *plan, npy_deferred_node *node, int nin, int nargs)
{
    npy_deferred_step *step = &plan->steps[plan->nsteps++];
    memset(step, 0, sizeof(*step));
    step->node = node;
    step->position = node == NULL ? -1 : node->position;
    step->nin = nin;
    step->nargs = nargs;
    return step;
}

static void
add_cast_step(npy_deferred_plan *plan, npy_deferred_node *node, int from, int to)
{
    npy_deferred_step *step = add_step(plan, node, 1, 2);
    step->is_cast = 1;
    step->args[0] = from;
    step->args[1] = to;
}

static int
has_type(npy_deferred_value *value, PyArray_Descr *descr)
{
    return value->aligned &&
           (value->descr == descr || PyArray_EquivTypes(value->descr, descr));
}

/*
 * The value as a loop wants it: with the loop's type, and with the stride that
 * the loop would see in eager NumPy.  That is the value itself, or a slot with
 * a cast or copy of it.  Returns -1 when it cannot be had; where `any_stride`
 * will do, it is what can be had, and `any_stride` becomes -1.
 */
static int
value_as(npy_deferred_plan *plan, int value, PyArray_Descr *descr, npy_intp stride,
         npy_deferred_node *node, int *any_stride)
{
    npy_deferred_value *given = &plan->values[value];
    if (has_type(given, descr) && given->stride == stride) {
        return value;
    }
    int constant = stride == 0;
    if (constant ? given->stride != 0 : stride != descr->elsize) {
        if (!*any_stride) {
            return -1;
        }
        *any_stride = -1;
        if (has_type(given, descr)) {
            return value;
        }
        constant = given->stride == 0;
    }
    /*
     * Consumers share a cast, unless it can raise floating-point errors:
     * these are reported for each of them.
     */
    if (PyArray_CanCastTypeTo(given->descr, descr, NPY_SAFE_CASTING)) {
        for (int i = 0; i < plan->nvalues; i++) {
            if (plan->values[i].source == value &&
                plan->values[i].constant == constant &&
                PyArray_EquivTypes(plan->values[i].descr, descr)) {
                return i;
            }
        }
    }
    int slot = add_slot(plan, descr);
    plan->values[slot].source = value;
    plan->values[slot].constant = constant;
    if (constant) {
        plan->values[slot].stride = 0;
    }
    add_cast_step(plan, node, value, slot);
    return slot;
}

/*
 * Where an output goes: into `target`, the result or what is kept, -1: neither of
 * them, if that is what the loop would write to in eager NumPy.  Returns -1
 * when neither that nor a slot will do; any stride as in value_as.
 */
static int
result_value(npy_deferred_plan *plan, PyArray_Descr *descr, int target, npy_intp stride,
             int *any_stride)
{
    int fits = target >= 0 && has_type(&plan->values[target], descr);
    if (fits && plan->values[target].stride == stride) {
        return target;
    }
    if (stride == descr->elsize) {
        return add_slot(plan, descr);
    }
    if (!*any_stride) {
        return -1;
    }
    *any_stride = -1;
    return fits ? target : add_slot(plan, descr);
}

/* The value that a node is to have: the result or what is kept, or -1. */
static int
target_value(const npy_deferred_plan *plan, const npy_deferred_expression *expression,
             int position)
{
    if (position == expression->nnodes - 1) {
        return plan->out;
    }
    for (int i = 0; i < expression->nkept; i++) {
        if (expression->kept[i]->position == position) {
            return npy_deferred_nread(expression) + i;
        }
    }
    return -1;
}

/*
 * The strides eager NumPy's loop would see, and how many elements.  On a direct
 * walk these follow from what is known, casts are done by buffers; else the
 * iterator is asked, which may have none for the only element.
 */
static int
wanted_strides(npy_deferred_plan *plan, const npy_deferred_walk *walk,
               npy_deferred_node *node, int is_root, npy_deferred_target target,
               const int args[], npy_intp strides[], npy_deferred_runs *runs)
{
    int nout = node->ufunc->nout;
    int has_out = is_root && nout == 1 && target != NPY_DEFERRED_ASSIGN;
    PyArrayObject *out = has_out ? walk->out : NULL;
    if (walk->iter != NULL || PyArray_SIZE(walk->out) == 1) {
        return npy_deferred_eager_strides(node, out, strides, runs);
    }
    int buffered = 0;
    for (int i = 0; i < node->nin; i++) {
        npy_deferred_value *value = &plan->values[args[i]];
        strides[i] = value->kind == NPY_DEFERRED_VALUE_CONSTANT ? 0
                     : has_type(value, node->descrs[i]) ? value->stride
                                                        : node->descrs[i]->elsize;
        buffered |= !has_type(value, node->descrs[i]);
    }
    npy_deferred_value *result = &plan->values[plan->out];
    for (int i = node->nin; i < node->nin + nout; i++) {
        PyArray_Descr *descr = node->descrs[i];
        int fits = out != NULL && has_type(result, descr);
        strides[i] = fits ? result->stride : descr->elsize;
        buffered |= out != NULL && !fits;
    }
    *runs = walk->runs;
    if (buffered) {
        runs->length = PyArray_MIN(runs->total, npy_deferred_buffer_size());
    }
    return 0;
}

/*
 * Whether the sign of a NaN, or what a number becomes that an integer cannot
 * hold, depends on which elements lie beside it.
 */
static int
depends_on_neighbours(const npy_deferred_plan *plan, const npy_deferred_step *step)
{
    int from = plan->values[step->args[0]].descr->type_num;
    int to = plan->values[step->args[step->nargs - 1]].descr->type_num;
    if (step->is_cast) {
        return PyTypeNum_ISINTEGER(to) && !PyTypeNum_ISINTEGER(from);
    }
    PyObject *ufunc = (PyObject *)step->node->ufunc;
    return PyTypeNum_ISCOMPLEX(to) &&
           (ufunc == n_ops.add || ufunc == n_ops.multiply || ufunc == n_ops.square);
}

/*
 * Whether an operation, which eager NumPy writes over an input, gives the same bits
 * only so.  Of loops that are not vectorised the compiler makes two, and rounds
 * intermediate results of complex numbers in one alone.  A single element has other
 * strides.
 */
static int
must_rewrite(const npy_deferred_plan *plan, const npy_deferred_step *step,
             const npy_intp strides[])
{
    const npy_deferred_node *node = step->node;
    int vectorised = strides[node->nin] == npy_deferred_result_descr(node)->elsize;
    for (int i = 0; i < node->nin; i++) {
        vectorised &= strides[i] == 0 || strides[i] == node->descrs[i]->elsize;
    }
    return PyArray_SIZE(node->array) == 1 ||
           (!vectorised && depends_on_neighbours(plan, step));
}

static int
has_short_run(const npy_deferred_runs *runs)
{
    npy_intp rest = runs->total % runs->length;
    return runs->length <= NPY_DEFERRED_BLOCK_UNIT ||
           (rest != 0 && rest <= NPY_DEFERRED_BLOCK_UNIT);
}

/*
 * Of blocks of how many elements the operation may keep another of two NaNs than
 * in eager NumPy.  A loop may swap what it adds or multiplies, and does one
 * thing with vectors, and another with the few elements that it leaves to the
 * compiler.  Which elements are the rest of a run is known to be the same only
 * where it is the very same walk.
 */
static npy_intp
doubtful_length(const npy_deferred_node *node, const npy_deferred_walk *walk,
                npy_deferred_target target, const npy_deferred_runs *eager,
                int has_other_strides)
{
    const npy_deferred_runs *runs = &walk->runs;
    int same_walk = walk->expression->nnodes == 1 && target == NPY_DEFERRED_FRESH &&
                    node->order == NPY_KEEPORDER;
    PyObject *ufunc = (PyObject *)node->ufunc;
    int type = npy_deferred_result_descr(node)->type_num;
    if ((ufunc != n_ops.add && ufunc != n_ops.multiply) ||
        (type != NPY_FLOAT && type != NPY_DOUBLE)) {
        return 0;
    }
    if (has_other_strides) {
        return NPY_MAX_INTP;
    }
    /* What eager NumPy writes over an input it may do otherwise. */
    if (!node->rewrites && runs->length == eager->length &&
        ((same_walk && runs->total == eager->total) ||
         (runs->total % runs->length == 0 && eager->total % runs->length == 0))) {
        return 0;
    }
    return has_short_run(eager)  ? NPY_MAX_INTP
           : has_short_run(runs) ? NPY_DEFERRED_BLOCK_UNIT
                                 : 0;
}

/* What a node's operands are, before casts and copies. */
static void
find_arguments(npy_deferred_plan *plan, const npy_deferred_walk *walk,
               npy_deferred_node *node, const int results[], int args[])
{
    for (int i = 0; i < node->nin; i++) {
        npy_deferred_operand *operand = &node->operands[i];
        if (operand->array == NULL) {
            args[i] = add_value(plan, NPY_DEFERRED_VALUE_CONSTANT, node->descrs[i], 0);
            plan->values[args[i]].data = operand->constant;
            plan->values[args[i]].operand = i;
            plan->values[args[i]].position = node->position;
        }
        else if (npy_deferred_is(operand->array)) {
            args[i] = results[npy_deferred_node_of(operand->array)->position];
        }
        else {
            /* Operands are the first values. */
            args[i] = npy_deferred_operand_index(walk->expression, operand->array);
        }
    }
}

/*
 * Results from so many bytes on lie a GiB apart (slots.c), which processors that guess
 * from an address where in the cache it is take for the same place: a loop that writes
 * an element here, then one there, waits for each.  Measured (Zen 3): np.modf of 1e6
 * float64 takes 3 times as long.  So it writes one of them to a slot, to be copied.
 */
#define APART_BYTES (2 << 20)

/*
 * Have the values that a node's loop writes: its own, and that of a call with two
 * outputs for whoever has it, or for nobody.  Returns 0, or -1 when they cannot be had.
 */
static int
add_results(npy_deferred_plan *plan, const npy_deferred_walk *walk,
            npy_deferred_node *node, const npy_intp strides[], int *any_stride,
            int args[], int results[])
{
    const npy_deferred_expression *expression = walk->expression;
    for (int i = 0; i < node->ufunc->nout; i++) {
        int arg = node->nin + i;
        npy_deferred_node *of =
                i == node->output ? node : npy_deferred_twin_in(expression, node);
        int goes_to = of == NULL ? -1 : target_value(plan, expression, of->position);
        int by_slot = i > 0 && PyArray_NBYTES(walk->out) >= APART_BYTES &&
                      node->descrs[arg]->elsize == node->descrs[arg - 1]->elsize &&
                      plan->values[args[arg - 1]].kind != NPY_DEFERRED_VALUE_SLOT;
        args[arg] = result_value(plan, node->descrs[arg], by_slot ? -1 : goes_to,
                                 strides[arg], any_stride);
        /* The result may be cast to where it goes; what is kept is there at once. */
        if (args[arg] < 0 || (goes_to >= 0 && goes_to != plan->out && !by_slot &&
                              args[arg] != goes_to)) {
            return -1;
        }
        if (of != NULL) {
            results[of->position] = args[arg];
        }
    }
    return 0;
}

/* Returns 0; 1 when it cannot be planned; -1 with an exception set. */
static int
add_steps(npy_deferred_plan *plan, const npy_deferred_walk *walk,
          npy_deferred_target target)
{
    int results[NPY_DEFERRED_MAX_NODES];
    int nnodes = walk->expression->nnodes;
    npy_intp buffersize = npy_deferred_buffer_size();
    for (int i = 0; i < nnodes; i++) {
        npy_deferred_node *node = walk->expression->nodes[i];
        int args[NPY_DEFERRED_MAX_NARGS];
        npy_intp strides[NPY_DEFERRED_MAX_NARGS];
        npy_deferred_runs runs;
        int is_root = i == nnodes - 1;
        npy_deferred_node *twin = npy_deferred_twin_in(walk->expression, node);
        if (twin != NULL && twin->position < i) {
            continue; /* its loop writes both */
        }
        find_arguments(plan, walk, node, results, args);
        if (wanted_strides(plan, walk, node, is_root, target, args, strides, &runs) <
            0) {
            return -1;
        }
        /* An operation that rounds correctly gives the same for all strides but for
         * NaNs, for which a result may be written once more. */
        int any_stride =
                !walk->overlaps && npy_deferred_is_exact(node->ufunc, node->descrs[0]);
        int trivial = 1;
        for (int j = 0; j < node->nin; j++) {
            PyArrayObject *input = node->operands[j].array;
            int step = plan->nsteps;
            args[j] = value_as(plan, args[j], node->descrs[j], strides[j], node,
                               &any_stride);
            if (args[j] < 0) {
                return 1;
            }
            int copied = input != NULL &&
                         npy_deferred_copied_by_eager(input, node->descrs[j],
                                                      buffersize, &trivial);
            if (plan->nsteps > step) {
                plan->steps[step].copied = copied ? 1 + j : 0;
                plan->steps[step].leads = !copied;
            }
        }
        if (add_results(plan, walk, node, strides, &any_stride, args, results) < 0) {
            return 1;
        }
        npy_deferred_step *step =
                add_step(plan, node, node->nin, node->nin + node->ufunc->nout);
        memcpy(step->args, args, sizeof(args));
        step->doubtful = doubtful_length(node, walk, target, &runs, any_stride < 0);
        if (step->doubtful > 0 && walk->overlaps) {
            return 1;
        }
        if (node->rewrites && must_rewrite(plan, step, strides)) {
            return 1;
        }
    }
    for (int i = 0; i < walk->expression->nkept; i++) {
        npy_deferred_node *node = walk->expression->kept[i];
        int goes_to = npy_deferred_nread(walk->expression) + i;
        if (results[node->position] != goes_to) {
            add_cast_step(plan, node, results[node->position], goes_to);
        }
    }
    if (results[nnodes - 1] != plan->out) {
        /* Eager NumPy casts to an `out=` as part of the operation. */
        npy_deferred_node *root = walk->expression->nodes[nnodes - 1];
        add_cast_step(plan, target == NPY_DEFERRED_ASSIGN ? NULL : root,
                      results[nnodes - 1], plan->out);
    }
    /* The iterator's way is not always that of eager NumPy. */
    for (int i = 0; walk->iter != NULL && i < plan->nsteps; i++) {
        if (depends_on_neighbours(plan, &plan->steps[i])) {
            return 1;
        }
    }
    return 0;
}

static void
note_uses(npy_deferred_plan *plan)
{
    for (int i = 0; i < plan->nsteps; i++) {
        npy_deferred_step *step = &plan->steps[i];
        for (int j = 0; j < step->nin; j++) {
            plan->values[step->args[j]].nreaders++;
        }
        for (int j = step->nin; j < step->nargs; j++) {
            plan->values[step->args[j]].writer = i;
        }
    }
}

/* Give a slot to a value that the i-th step writes. */
static void
assign_slot(npy_deferred_plan *plan, int i, npy_deferred_value *written)
{
    const npy_deferred_step *step = &plan->steps[i];
    int slot = 0;
    while (slot < plan->nslots &&
           (plan->slots[slot].last_use >= i ||
            plan->slots[slot].elsize != written->descr->elsize)) {
        slot++;
    }
    if (slot == plan->nslots) {
        plan->nslots++;
        plan->slots[slot].elsize = written->descr->elsize;
        plan->slots[slot].in_units = 0;
    }
    /* Nobody need read it, but the step writes there. */
    plan->slots[slot].last_use = PyArray_MAX(written->last_use, i);
    plan->slots[slot].in_units |= step->joins < 0 && !step->is_idle;
    written->slot = slot;
}

/*
 * Give slots to values, from the first step to the last.  A slot is free for
 * the result of a step when its last reader ran before that step: in a unit, that
 * is when the last step of the unit runs.
 */
static void
assign_slots(npy_deferred_plan *plan)
{
    int last[NPY_DEFERRED_MAX_STEPS];
    for (int i = plan->nsteps - 1; i >= 0; i--) {
        npy_deferred_step *step = &plan->steps[i];
        last[i] = step->joins < 0 ? i : last[step->joins];
        for (int j = 0; j < step->nin; j++) {
            npy_deferred_value *value = &plan->values[step->args[j]];
            value->last_use = PyArray_MAX(value->last_use, last[i]);
        }
    }
    for (int i = 0; i < plan->nsteps; i++) {
        npy_deferred_step *step = &plan->steps[i];
        for (int j = step->nin; j < step->nargs; j++) {
            npy_deferred_value *written = &plan->values[step->args[j]];
            if (written->kind == NPY_DEFERRED_VALUE_SLOT) {
                assign_slot(plan, i, written);
            }
        }
    }
}

/*
 * Of a program: it has an instruction and perhaps a load for each of its steps' inputs,
 * and one more for each step that keeps its result, and as many arguments.  There are
 * steps for the casts of all inputs, which programs are seldom made of.
 */
#define CODE_PER_STEP 5
#define ARGS_PER_STEP 3

static npy_deferred_plan *
allocate_plan(const npy_deferred_expression *expression)
{
    /* Every input of every node may need a cast, and so may the result; and there are
     * as many slots as steps, but for those that have two. */
    size_t nsteps = 1, nvalues = 1 + expression->noperands;
    for (int i = 0; i < expression->nnodes; i++) {
        const npy_deferred_node *node = expression->nodes[i];
        nsteps += node->ufunc->nout + node->nin;
        nvalues += node->ufunc->nout + 2 * node->nin;
    }
    npy_deferred_plan *plan = PyMem_Malloc(
            sizeof(*plan) + nvalues * sizeof(npy_deferred_value) +
            nsteps * (sizeof(npy_deferred_step) + sizeof(npy_deferred_slot) +
                      sizeof(npy_deferred_unit) +
                      CODE_PER_STEP * sizeof(npy_deferred_tile_instruction) +
                      ARGS_PER_STEP * sizeof(npy_deferred_tile_arg)));
    if (plan == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    memset(plan, 0, sizeof(*plan));
    plan->steps = (npy_deferred_step *)(plan + 1);
    plan->values = (npy_deferred_value *)(plan->steps + nsteps);
    plan->slots = (npy_deferred_slot *)(plan->values + nvalues);
    plan->units = (npy_deferred_unit *)(plan->slots + nsteps);
    plan->tile_code = (npy_deferred_tile_instruction *)(plan->units + nsteps);
    plan->tile_args =
            (npy_deferred_tile_arg *)(plan->tile_code + CODE_PER_STEP * nsteps);
    plan->nallocated = (int)nsteps;
    return plan;
}

NPY_NO_EXPORT int
npy_deferred_plan_new(const npy_deferred_walk *walk, npy_deferred_target target,
                      npy_deferred_plan **result)
{
    const npy_deferred_expression *expression = walk->expression;
    npy_deferred_plan *plan = allocate_plan(expression);
    if (plan == NULL) {
        return -1;
    }
    for (int i = 0; i < expression->noperands; i++) {
        PyArrayObject *array = expression->operands[i];
        npy_deferred_value_kind kind = i < npy_deferred_nread(expression)
                                               ? NPY_DEFERRED_VALUE_OPERAND
                                               : NPY_DEFERRED_VALUE_KEPT;
        int value = add_value(plan, kind, PyArray_DESCR(array), walk->strides[i]);
        plan->values[value].operand = i;
        plan->values[value].aligned = PyArray_ISALIGNED(array) != 0;
    }
    plan->out = add_value(plan, NPY_DEFERRED_VALUE_OUT, PyArray_DESCR(walk->out),
                          walk->strides[expression->noperands]);
    plan->values[plan->out].aligned = PyArray_ISALIGNED(walk->out) != 0;
    int status = add_steps(plan, walk, target);
    if (status != 0) {
        npy_deferred_plan_free(plan);
        return status;
    }
    note_uses(plan);
    npy_deferred_make_units(plan, walk);
    assign_slots(plan);
    *result = plan;
    return 0;
}

NPY_NO_EXPORT npy_deferred_plan *
npy_deferred_plan_copy(const npy_deferred_plan *plan, const npy_deferred_walk *walk)
{
    npy_deferred_plan *copy = allocate_plan(walk->expression);
    if (copy != NULL) {
        copy->nvalues = plan->nvalues;
        copy->nsteps = plan->nsteps;
        copy->nslots = plan->nslots;
        copy->nunits = plan->nunits;
        copy->out = plan->out;
        copy->is_copy = 1;
        memcpy(copy->values, plan->values, plan->nvalues * sizeof(*plan->values));
        memcpy(copy->steps, plan->steps, plan->nsteps * sizeof(*plan->steps));
        for (int i = 0; i < copy->nsteps; i++) {
            copy->steps[i].bound = 0;
        }
        memcpy(copy->slots, plan->slots, plan->nslots * sizeof(*plan->slots));
        memcpy(copy->units, plan->units, plan->nunits * sizeof(*plan->units));
        memcpy(copy->tile_code, plan->tile_code,
               CODE_PER_STEP * plan->nallocated * sizeof(*plan->tile_code));
        memcpy(copy->tile_args, plan->tile_args,
               ARGS_PER_STEP * plan->nallocated * sizeof(*plan->tile_args));
    }
    return copy;
}

NPY_NO_EXPORT void
npy_deferred_step_unbind(npy_deferred_step *step)
{
    if (step->bound && step->is_cast) {
        NPY_cast_info_xfree(&step->cast);
    }
    else if (step->bound) {
        NPY_AUXDATA_FREE(step->auxdata);
    }
    step->bound = 0;
}

NPY_NO_EXPORT void
npy_deferred_plan_free(npy_deferred_plan *plan)
{
    for (int i = 0; i < plan->nsteps; i++) {
        npy_deferred_step_unbind(&plan->steps[i]);
    }
    for (int i = 0; i < plan->nunits && !plan->is_copy; i++) {
        npy_deferred_unit_forget_code(&plan->units[i]);
    }
    PyMem_Free(plan->key);
    PyMem_Free(plan);
}
