/*
 * Plans: an expression as a straight list of steps over blocks of elements.
 *
 * Every node is one step; a cast is a step of its own, in front of the
 * operation that needs it, so that floating-point errors of a cast are found
 * where eager NumPy would report them.  Operands that lie unaligned or in
 * foreign byte order are "cast" too.  Values between steps live in slots,
 * scratch memory for one block, which are given to another value once the last
 * step that reads them has run.  A step never writes to a slot that it reads.
 *
 * A plan knows types only; execute.c binds it to strides and runs it.  It
 * borrows everything from the expression, and owns what binding makes.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "deferred.h"

#include "common.h"
#include "convert_datatype.h"

static int
add_value(npy_deferred_plan *plan, npy_deferred_value_kind kind,
          PyArray_Descr *descr)
{
    npy_deferred_value *value = &plan->values[plan->nvalues];
    memset(value, 0, sizeof(*value));
    value->kind = kind;
    value->descr = descr;
    value->aligned = 1;
    value->source = -1;
    value->last_use = -1;
    return plan->nvalues++;
}

static npy_deferred_step *
add_step(npy_deferred_plan *plan, npy_deferred_node *node, int nargs)
{
    npy_deferred_step *step = &plan->steps[plan->nsteps++];
    memset(step, 0, sizeof(*step));
    step->node = node;
    step->nargs = nargs;
    return step;
}

static void
add_cast_step(npy_deferred_plan *plan, npy_deferred_node *node, int from, int to)
{
    npy_deferred_step *step = add_step(plan, node, 2);
    step->is_cast = 1;
    step->args[0] = from;
    step->args[1] = to;
}

/* The value with the type that a loop wants: itself, or a slot with a cast. */
static int
value_as(npy_deferred_plan *plan, int value, PyArray_Descr *descr,
         npy_deferred_node *node)
{
    PyArray_Descr *from = plan->values[value].descr;
    if (plan->values[value].aligned &&
        (from == descr || PyArray_EquivTypes(from, descr))) {
        return value;
    }
    /*
     * Consumers share a cast, unless it can raise floating-point errors:
     * these are reported for each of them.
     */
    if (PyArray_CanCastTypeTo(from, descr, NPY_SAFE_CASTING)) {
        for (int i = 0; i < plan->nvalues; i++) {
            if (plan->values[i].source == value &&
                PyArray_EquivTypes(plan->values[i].descr, descr)) {
                return i;
            }
        }
    }
    int slot = add_value(plan, NPY_DEFERRED_VALUE_SLOT, descr);
    plan->values[slot].source = value;
    add_cast_step(plan, node, value, slot);
    return slot;
}

static int
operand_index(const npy_deferred_expression *expression, PyArrayObject *array)
{
    int i = 0;
    while (expression->operands[i] != array) {
        i++;
    }
    return i;
}

/* The result of a node: in `out` where that is possible for the last one. */
static int
result_value(npy_deferred_plan *plan, npy_deferred_node *node, int is_root,
             int direct_out)
{
    PyArray_Descr *descr = node->descrs[node->nin];
    npy_deferred_value *out = &plan->values[plan->out];
    if (is_root && direct_out && out->aligned &&
        PyArray_EquivTypes(out->descr, descr)) {
        return plan->out;
    }
    return add_value(plan, NPY_DEFERRED_VALUE_SLOT, descr);
}

static void
add_steps(npy_deferred_plan *plan, const npy_deferred_expression *expression,
          int direct_out)
{
    int results[NPY_DEFERRED_MAX_NODES];
    for (int i = 0; i < expression->nnodes; i++) {
        npy_deferred_node *node = expression->nodes[i];
        int is_root = i == expression->nnodes - 1;
        int args[NPY_DEFERRED_MAX_NIN + 1];
        for (int j = 0; j < node->nin; j++) {
            npy_deferred_operand *operand = &node->operands[j];
            int value;
            if (operand->array == NULL) {
                value = add_value(plan, NPY_DEFERRED_VALUE_CONSTANT,
                                  node->descrs[j]);
                plan->values[value].data = operand->constant;
            }
            else if (npy_deferred_is(operand->array)) {
                npy_deferred_node *inner = npy_deferred_node_of(operand->array);
                value = results[inner->position];
            }
            else {
                /* Operands are the first values. */
                value = operand_index(expression, operand->array);
            }
            args[j] = value_as(plan, value, node->descrs[j], node);
        }
        args[node->nin] = result_value(plan, node, is_root, direct_out);
        results[i] = args[node->nin];
        npy_deferred_step *step = add_step(plan, node, node->nin + 1);
        memcpy(step->args, args, sizeof(args));
        if (is_root && results[i] != plan->out) {
            add_cast_step(plan, NULL, results[i], plan->out);
        }
    }
}

/*
 * Give slots to values, from the first step to the last.  A slot is free for
 * the result of a step when its last reader ran before that step.
 */
static void
assign_slots(npy_deferred_plan *plan)
{
    for (int i = 0; i < plan->nsteps; i++) {
        npy_deferred_step *step = &plan->steps[i];
        for (int j = 0; j < step->nargs - 1; j++) {
            plan->values[step->args[j]].last_use = i;
        }
    }
    for (int i = 0; i < plan->nsteps; i++) {
        npy_deferred_step *step = &plan->steps[i];
        npy_deferred_value *written = &plan->values[step->args[step->nargs - 1]];
        if (written->kind != NPY_DEFERRED_VALUE_SLOT) {
            continue;
        }
        int slot = 0;
        while (slot < plan->nslots &&
               (plan->slots[slot].last_use >= i ||
                plan->slots[slot].elsize != written->descr->elsize)) {
            slot++;
        }
        if (slot == plan->nslots) {
            plan->nslots++;
            plan->slots[slot].elsize = written->descr->elsize;
        }
        plan->slots[slot].last_use = written->last_use;
        written->slot = slot;
    }
}

NPY_NO_EXPORT npy_deferred_plan *
npy_deferred_plan_new(const npy_deferred_expression *expression,
                      PyArrayObject *out, int direct_out)
{
    /* Every input of every node may need a cast, and so may the result. */
    size_t nsteps = 1, nvalues = 1 + expression->noperands;
    for (int i = 0; i < expression->nnodes; i++) {
        nsteps += 1 + expression->nodes[i]->nin;
        nvalues += 1 + 2 * expression->nodes[i]->nin;
    }
    npy_deferred_plan *plan = PyMem_Malloc(
            sizeof(*plan) + nsteps * sizeof(npy_deferred_step) +
            nvalues * sizeof(npy_deferred_value) +
            nsteps * sizeof(npy_deferred_slot));
    if (plan == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    memset(plan, 0, sizeof(*plan));
    plan->steps = (npy_deferred_step *)(plan + 1);
    plan->values = (npy_deferred_value *)(plan->steps + nsteps);
    plan->slots = (npy_deferred_slot *)(plan->values + nvalues);

    for (int i = 0; i < expression->noperands; i++) {
        PyArrayObject *array = expression->operands[i];
        int value = add_value(plan, NPY_DEFERRED_VALUE_OPERAND,
                              PyArray_DESCR(array));
        plan->values[value].operand = i;
        plan->values[value].aligned = PyArray_ISALIGNED(array) != 0;
    }
    plan->out = add_value(plan, NPY_DEFERRED_VALUE_OUT, PyArray_DESCR(out));
    plan->values[plan->out].aligned = PyArray_ISALIGNED(out) != 0;
    add_steps(plan, expression, direct_out);
    assign_slots(plan);
    assert(plan->nsteps <= (int)nsteps && plan->nvalues <= (int)nvalues);
    return plan;
}

NPY_NO_EXPORT void
npy_deferred_plan_free(npy_deferred_plan *plan)
{
    for (int i = 0; i < plan->nsteps; i++) {
        npy_deferred_step *step = &plan->steps[i];
        if (!step->bound) {
            continue;
        }
        if (step->is_cast) {
            NPY_cast_info_xfree(&step->cast);
        }
        else {
            NPY_AUXDATA_FREE(step->auxdata);
        }
    }
    PyMem_Free(plan);
}
