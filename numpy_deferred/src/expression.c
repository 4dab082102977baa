/*
 * Expressions: which nodes are evaluated together, within which bounds.
 *
 * The expression behind a node is a DAG of pending nodes; operands that are
 * regular arrays are its leaves.  It is collected without recursion, and put
 * in order by serial, as every node is younger than its operands.  Several roots make
 * one expression where they share operands or nodes.  It owns nothing.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "deferred.h"
#include "profile.h"

static int
add_operand(npy_deferred_expression *expression, PyArrayObject *array, int limit)
{
    for (int i = 0; i < expression->noperands; i++) {
        if (expression->operands[i] == array) {
            return 0;
        }
    }
    if (expression->noperands == limit) {
        return -1;
    }
    expression->operands[expression->noperands++] = array;
    return 0;
}

static int
add_node(npy_deferred_expression *expression, npy_deferred_node *node, npy_uint64 visit)
{
    if (node->visited == visit) {
        node->nuses++;
        return 0;
    }
    if (expression->nnodes == NPY_DEFERRED_MAX_NODES) {
        return -1;
    }
    node->visited = visit;
    node->nuses = 1;
    expression->nodes[expression->nnodes++] = node;
    return 0;
}

/* Add what nodes read, from the `first` on. */
static int
add_inputs(npy_deferred_expression *expression, int first, npy_uint64 visit,
           int max_operands)
{
    for (int i = first; i < expression->nnodes; i++) {
        npy_deferred_node *node = expression->nodes[i];
        for (int j = 0; j < node->nin; j++) {
            PyArrayObject *array = node->operands[j].array;
            if (array == NULL) {
                continue;
            }
            int added =
                    npy_deferred_is(array)
                            ? add_node(expression, npy_deferred_node_of(array), visit)
                            : add_operand(expression, array, max_operands);
            if (added < 0) {
                return -1;
            }
        }
    }
    return 0;
}

static void
put_in_order(npy_deferred_expression *expression)
{
    for (int i = 1; i < expression->nnodes; i++) {
        npy_deferred_node *node = expression->nodes[i];
        int j = i;
        for (; j > 0 && expression->nodes[j - 1]->serial > node->serial; j--) {
            expression->nodes[j] = expression->nodes[j - 1];
        }
        expression->nodes[j] = node;
    }
    for (int i = 0; i < expression->nnodes; i++) {
        expression->nodes[i]->position = i;
    }
}

static void
begin(npy_deferred_expression *expression)
{
    expression->nnodes = expression->noperands = expression->nkept = 0;
}

static int
collect(npy_deferred_node *root, npy_deferred_expression *expression, int max_operands)
{
    npy_uint64 visit = npy_deferred_new_visit();
    begin(expression);
    add_node(expression, root, visit);
    if (add_inputs(expression, 0, visit, max_operands) < 0) {
        return -1;
    }
    put_in_order(expression);
    return 0;
}

NPY_NO_EXPORT int
npy_deferred_operand_index(const npy_deferred_expression *expression,
                           PyArrayObject *array)
{
    int i = 0;
    while (expression->operands[i] != array) {
        i++;
    }
    return i;
}

NPY_NO_EXPORT int
npy_deferred_collect(npy_deferred_node *root, npy_deferred_expression *expression)
{
    return collect(root, expression, NPY_DEFERRED_ALL_OPERANDS);
}

NPY_NO_EXPORT npy_deferred_node *
npy_deferred_twin_in(const npy_deferred_expression *expression,
                     const npy_deferred_node *node)
{
    npy_deferred_node *twin = node->twin;
    return twin != NULL && twin->position >= 0 && twin->position < expression->nnodes &&
                           expression->nodes[twin->position] == twin
                   ? twin
                   : NULL;
}

NPY_NO_EXPORT int
npy_deferred_leaves_twin(const npy_deferred_expression *expression,
                         const npy_deferred_node *node)
{
    return npy_deferred_pending_twin(node) != NULL &&
           npy_deferred_twin_in(expression, node) == NULL;
}

/* ---- of several arrays ---- */

/* Positions of nodes of which it is not known yet whether they belong to a sweep. */
#define NO_POSITION (-1)

/* Whether nodes from the `first` on read something that those before them do. */
static int
shares(const npy_deferred_expression *expression, int first, npy_uint64 visit)
{
    for (int i = first; i < expression->nnodes; i++) {
        const npy_deferred_node *node = expression->nodes[i];
        for (int j = 0; j < node->nin; j++) {
            const npy_deferred_operand *operand = &node->operands[j];
            if (operand->array == NULL) {
                continue;
            }
            if (npy_deferred_is(operand->array)
                        ? npy_deferred_node_of(operand->array)->position != NO_POSITION
                        : operand->memory->visited == visit) {
                return 1;
            }
        }
    }
    return 0;
}

/*
 * Whether nodes from the `first` on keep much memory alive that those before them do
 * not: calculated before, they would let it go for the results of these.
 */
static int
holds_more(const npy_deferred_expression *expression, int first, npy_uint64 visit)
{
    npy_uint64 visit_held = npy_deferred_new_visit();
    npy_intp held = 0;
    for (int i = first; i < expression->nnodes; i++) {
        const npy_deferred_node *node = expression->nodes[i];
        for (int j = 0; j < node->nin; j++) {
            const npy_deferred_operand *operand = &node->operands[j];
            if (operand->array != NULL && operand->memory->visited != visit) {
                held += npy_deferred_held_bytes(operand->array, visit_held);
            }
        }
    }
    return held > NPY_DEFERRED_MIN_HELD_BYTES;
}

NPY_NO_EXPORT int
npy_deferred_has_other_size(const npy_deferred_expression *expression, int first,
                            npy_intp size)
{
    for (int i = first; i < expression->nnodes; i++) {
        if (PyArray_SIZE(expression->nodes[i]->array) != size) {
            return 1;
        }
    }
    return 0;
}

NPY_NO_EXPORT int
npy_deferred_join(npy_deferred_expression *expression, npy_deferred_node *root,
                  npy_uint64 visit)
{
    int first = expression->nnodes, noperands = expression->noperands;
    if (root->visited == visit) { /* others read it */
        int fits = noperands + expression->nkept < NPY_DEFERRED_MAX_OPERANDS;
        expression->nkept += fits;
        return fits;
    }
    int max_operands = NPY_DEFERRED_MAX_OPERANDS - expression->nkept - (first > 0);
    int fits =
            add_node(expression, root, visit) == 0 &&
            add_inputs(expression, first, visit, max_operands) == 0 &&
            !npy_deferred_has_other_size(expression, first, PyArray_SIZE(root->array));
    for (int i = first; i < expression->nnodes; i++) {
        expression->nodes[i]->position = NO_POSITION;
    }
    if (!fits || (first > 0 && (!shares(expression, first, visit) ||
                                holds_more(expression, first, visit)))) {
        for (int i = first; i < expression->nnodes; i++) {
            expression->nodes[i]->visited = 0;
        }
        expression->nnodes = first;
        expression->noperands = noperands;
        return 0;
    }
    expression->nkept += first > 0;
    for (int i = first; i < expression->nnodes; i++) {
        npy_deferred_node *node = expression->nodes[i];
        node->position = i;
        for (int j = 0; j < node->nin; j++) {
            if (node->operands[j].array != NULL) {
                node->operands[j].memory->visited = visit;
            }
        }
    }
    return 1;
}

NPY_NO_EXPORT int
npy_deferred_collect_together(npy_deferred_node *const roots[],
                              PyArrayObject *const outs[], int n,
                              npy_deferred_expression *expression)
{
    npy_uint64 visit = npy_deferred_new_visit();
    begin(expression);
    for (int i = 0; i < n; i++) {
        if (add_node(expression, roots[i], visit) < 0) {
            return -1;
        }
    }
    if (add_inputs(expression, 0, visit, NPY_DEFERRED_MAX_OPERANDS - (n - 1)) < 0) {
        return -1;
    }
    put_in_order(expression);
    for (int i = 0; i < n; i++) {
        if (roots[i] != expression->nodes[expression->nnodes - 1]) {
            expression->kept[expression->nkept++] = roots[i];
            expression->operands[expression->noperands++] = outs[i];
        }
    }
    return 0;
}

/* The deferred operand with the largest expression, or NULL. */
static PyArrayObject *
largest_operand(npy_deferred_node *node)
{
    PyArrayObject *largest = NULL;
    for (int i = 0; i < node->nin; i++) {
        PyArrayObject *array = node->operands[i].array;
        if (array != NULL && npy_deferred_is(array) &&
            (largest == NULL || npy_deferred_node_of(array)->nnodes >
                                        npy_deferred_node_of(largest)->nnodes)) {
            largest = array;
        }
    }
    return largest;
}

NPY_NO_EXPORT int
npy_deferred_limit_expression(npy_deferred_node *node)
{
    npy_deferred_expression expression;
    if (node->nnodes <= NPY_DEFERRED_MAX_NODES &&
        node->noperands <= NPY_DEFERRED_MAX_OPERANDS) {
        return 0;
    }
    /* The sums count shared parts repeatedly: look before giving up. */
    if (collect(node, &expression, NPY_DEFERRED_MAX_OPERANDS) == 0) {
        node->nnodes = expression.nnodes;
        node->noperands = expression.noperands;
        return 0;
    }
    PyArrayObject *array = largest_operand(node);
    if (array == NULL) {
        return 0;
    }
    return npy_deferred_calculate_because(NPY_DEFERRED_WHY_BOUNDS, array) < 0 ? -1 : 1;
}

NPY_NO_EXPORT int
npy_deferred_limit_memory(npy_deferred_node *node, npy_intp nbytes)
{
    npy_deferred_expression expression;
    npy_intp bound = nbytes > NPY_MAX_INTP / NPY_DEFERRED_MAX_HELD_RESULTS
                             ? NPY_MAX_INTP
                             : nbytes * NPY_DEFERRED_MAX_HELD_RESULTS;
    bound = PyArray_MAX(bound, NPY_DEFERRED_MIN_HELD_BYTES);
    /* The sum counts shared memory repeatedly: look before giving up. */
    if (node->operand_bytes <= bound ||
        collect(node, &expression, NPY_DEFERRED_MAX_OPERANDS) < 0) {
        return 0;
    }
    npy_uint64 visit = npy_deferred_new_visit();
    npy_intp held = 0;
    for (int i = 0; i < expression.noperands; i++) {
        held += npy_deferred_held_bytes(expression.operands[i], visit);
    }
    PyArrayObject *array = largest_operand(node);
    if (held <= bound || array == NULL) {
        return 0;
    }
    return npy_deferred_calculate_because(NPY_DEFERRED_WHY_HELD, array) < 0 ? -1 : 1;
}
