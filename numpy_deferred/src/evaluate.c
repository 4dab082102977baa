/*
 * Evaluation: an expression gets its values, in one walk over memory or in parts.
 *
 * Before, some inner nodes are calculated on their own, so that they are leaves: those
 * of another size than the result (broadcasting would compute them once per element of
 * it), those that were evaluated before and that somebody else needs too, those of a
 * call whose other output is pending and not in the expression, and all of them where
 * the fused walk over memory would show some loop other strides than eager NumPy does
 * (walk.c), or has met NaNs that only the latter can tell what becomes of (execute.c).
 * An operation that is left alone then is run by eager NumPy's own machinery.
 *
 * Values go where the caller says; errors are collected for whoever reports them.
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
#include "convert_datatype.h"
#include "ctors.h"
#include "deferred.h"
#include "lowlevel_strided_loops.h"
#include "profile.h"

/* What became of a try to feed a consumer, beside what others return. */
#define TRY_AGAIN 3

/*
 * Whether somebody else than an expression with that root has the array of a node.  A
 * root without an array is a call that runs now: of what it is given the node has a
 * reference, the ufunc two, and who calls it one.
 */
static int
is_held(const npy_deferred_node *node, const npy_deferred_node *root)
{
    npy_deferred_usage *usage = npy_deferred_find_usage(node->array);
    npy_intp count = usage == NULL ? 0 : usage->count, nothers = Py_REFCNT(node->array);
    for (int i = 0; i < root->nin && root->array == NULL; i++) {
        nothers -= root->operands[i].array == node->array ? 4 : 0;
    }
    return count > node->nuses || nothers > count;
}

static int
is_kept(const npy_deferred_expression *expression, const npy_deferred_node *node)
{
    for (int i = 0; i < expression->nkept; i++) {
        if (expression->kept[i] == node) {
            return 1;
        }
    }
    return 0;
}

/*
 * Which inner nodes are better stored, as they have been computed before, or will be
 * again: that is cheap for arithmetic, the first time, but not for functions.  What
 * was asked for, as a name that a loop then gives to something else, is held by nobody
 * and still the beginning of what comes next: in a chain of these each would be
 * computed as often as there are others behind it.
 */
static void
find_stored(const npy_deferred_expression *expression, char is_stored[])
{
    char is_costly[NPY_DEFERRED_MAX_NODES];
    const npy_deferred_node *root = expression->nodes[expression->nnodes - 1];
    for (int i = 0; i < expression->nnodes; i++) {
        const npy_deferred_node *node = expression->nodes[i];
        is_costly[i] = npy_deferred_is_function(node);
        for (int j = 0; j < node->nin && !is_costly[i]; j++) {
            PyArrayObject *array = node->operands[j].array;
            int inner = array != NULL && npy_deferred_is(array)
                                ? npy_deferred_node_of(array)->position
                                : -1;
            is_costly[i] = inner >= 0 && is_costly[inner] && !is_stored[inner];
        }
        is_stored[i] =
                node != root &&
                ((node->is_lasting && node->nevaluated > !is_costly[i]) ||
                 (is_held(node, root) && (node->nevaluated > 0 || is_costly[i] ||
                                          npy_deferred_is_to_be_stored(node, 1))));
    }
}

/*
 * Calculate the inner nodes that must be regular first, the oldest first; `all` takes
 * every one.  Returns 1 when something was calculated, so that the expression must be
 * collected again, else 0; -1 with an exception set.
 */
static int
calculate_inner(npy_deferred_node *root, PyArrayObject *out,
                const npy_deferred_expression *expression, int all)
{
    PyArrayObject *inner[NPY_DEFERRED_MAX_NODES];
    char is_stored[NPY_DEFERRED_MAX_NODES];
    int ninner = 0, result = 0;
    npy_intp size = PyArray_SIZE(out);
    find_stored(expression, is_stored);
    for (int i = 0; i < expression->nnodes; i++) {
        npy_deferred_node *node = expression->nodes[i];
        if (node != root && !is_kept(expression, node) &&
            (all || PyArray_SIZE(node->array) != size ||
             npy_deferred_leaves_twin(expression, node) || is_stored[i])) {
            inner[ninner++] = node->array;
        }
    }
    for (int i = 0; i < ninner; i++) {
        Py_INCREF(inner[i]);
    }
    for (int i = 0; i < ninner; i++) {
        if (result == 0 &&
            npy_deferred_calculate_because(NPY_DEFERRED_WHY_PART, inner[i]) < 0) {
            result = -1;
        }
        Py_DECREF(inner[i]);
    }
    return result < 0 ? -1 : ninner > 0;
}

static int
may_raise(const npy_deferred_expression *expression)
{
    /* A copy, as looking at the filters of warnings may run Python code. */
    int errmasks[NPY_DEFERRED_MAX_NODES], n = 0, result = 0;
    PyObject *filters[NPY_DEFERRED_MAX_NODES];
    for (int i = 0; i < expression->nnodes; i++) {
        const npy_deferred_node *node = expression->nodes[i];
        PyObject *its = node->origin.warnings[NPY_DEFERRED_FILTERS];
        if (node->errmask != 0 &&
            (n == 0 || node->errmask != errmasks[n - 1] || its != filters[n - 1])) {
            errmasks[n] = node->errmask;
            filters[n++] = Py_XNewRef(its);
        }
    }
    for (int i = 0; i < n; i++) {
        result = result || npy_deferred_mask_may_raise(errmasks[i], filters[i]);
        Py_XDECREF(filters[i]);
    }
    return result;
}

NPY_NO_EXPORT int
npy_deferred_can_fuse_out(npy_deferred_node *root)
{
    npy_deferred_expression expression;
    return npy_deferred_collect(root, &expression) == 0 && !may_raise(&expression);
}

static int
may_report(const npy_deferred_expression *expression)
{
    int errmask = 0;
    for (int i = 0; i < expression->nnodes; i++) {
        errmask |= expression->nodes[i]->errmask;
    }
    return errmask != 0;
}

/* As may_raise, of nodes that stay what they are; else, or when in doubt, 1. */
static int
together_may_raise(npy_deferred_node *const roots[], int n,
                   const npy_deferred_expression *expression)
{
    PyArrayObject *arrays[NPY_DEFERRED_MAX_SWEEP];
    for (int i = 0; i < n; i++) {
        arrays[i] = roots[i]->array;
    }
    int result = may_raise(expression);
    npy_deferred_wait(); /* for what other threads have begun meanwhile */
    for (int i = 0; i < n; i++) {
        result = result || roots[i]->array != arrays[i];
    }
    return result;
}

static int
add_error(npy_deferred_errors *errors, npy_deferred_node *node, int copied, int status)
{
    if (node != NULL && node->errmask == 0) {
        return 0;
    }
    npy_deferred_error *last = errors->n == 0 ? NULL : &errors->items[errors->n - 1];
    if (last != NULL && ((last->node == node && last->copied == copied) ||
                         errors->n == NPY_DEFERRED_MAX_ERRORS)) {
        last->status |= status;
        return 0;
    }
    npy_deferred_error error = {.status = status, .node = node, .copied = copied};
    PyObject *errstate =
            node == NULL ? npy_deferred_errstate() : Py_NewRef(node->errstate);
    if (errstate == NULL) {
        return -1;
    }
    error.errfunc = npy_deferred_errfunc(errstate, &error.errmask);
    Py_DECREF(errstate);
    if (error.errfunc == NULL) {
        return -1;
    }
    if (node != NULL) {
        npy_deferred_node_incref(node);
        error.errmask = node->errmask;
    }
    errors->items[errors->n++] = error;
    return 0;
}

/* Returns as npy_deferred_execute, or as the consumer does. */
static int
run_plan(npy_deferred_plan *plan, npy_deferred_walk *walk,
         npy_deferred_consumer *consumer, npy_deferred_errors *errors)
{
    int result = consumer == NULL ? npy_deferred_execute(plan, walk)
                                  : consumer->consume(consumer, plan, walk);
    if (result != 0) {
        return result;
    }
    int raised = 0;
    for (int i = 0; i < plan->nsteps; i++) {
        npy_deferred_step *step = &plan->steps[i];
        raised |= step->status;
        if (step->status != 0 &&
            add_error(errors, step->node, step->copied, step->status) < 0) {
            return -1;
        }
    }
    const npy_deferred_expression *expression = walk->expression;
    const npy_deferred_node *root = expression->nodes[expression->nnodes - 1];
    for (int i = 0; i < expression->nnodes; i++) {
        npy_deferred_node *node = expression->nodes[i];
        node->nevaluated++;
        node->raised_nothing = raised == 0;
        node->is_lasting |=
                node == root || (node->array != NULL && is_held(node, root));
    }
    return 0;
}

/* Results of their lines were calculated: by themselves, or with others. */
static void
note_lines(const npy_deferred_expression *expression, int alone)
{
    for (int i = 0; i < expression->nnodes; i++) {
        if (expression->nodes[i]->line != 0) {
            npy_deferred_line_note(expression->nodes[i]->line, alone);
        }
    }
}

/*
 * If all or some of it has been computed before, and is more than arithmetic, or a
 * mask, which takes little memory, or is stored now: it could have been then.
 */
static void
note_repeated(const npy_deferred_expression *expression, const npy_deferred_plan *plan,
              int is_stored)
{
    int last = expression->nnodes - 1, i = last;
    while (i >= 0 && expression->nodes[i]->nevaluated == 0) {
        i--;
    }
    if (i < 0) {
        return;
    }
    const npy_deferred_node *node = expression->nodes[i];
    int is_cheap = npy_deferred_is_arithmetic(plan) &&
                   node->descrs[node->nin + node->output]->type_num != NPY_BOOL;
    if (!is_cheap || (is_stored && i == last)) {
        npy_deferred_note_repeated(node, is_cheap);
    }
}

/* Returns 0; 1 when the expression cannot run in one walk; or as execute does. */
static int
evaluate_fused(const npy_deferred_expression *expression, PyArrayObject *out,
               npy_deferred_target target, npy_deferred_consumer *consumer,
               npy_deferred_errors *errors)
{
    npy_deferred_walk walk;
    npy_deferred_plan *plan = NULL;
    int result = npy_deferred_plan_get(&walk, expression, out, target, &plan);
    if (result != 0) {
        return result;
    }
    npy_deferred_profile_plan(plan, &walk);
    note_repeated(expression, plan, consumer == NULL && target == NPY_DEFERRED_FRESH);
    result = run_plan(plan, &walk, consumer, errors);
    if (result == 0) {
        note_lines(expression, expression->nnodes == 1 && consumer == NULL &&
                                       target == NPY_DEFERRED_FRESH);
        expression->nodes[expression->nnodes - 1]->is_arithmetic =
                npy_deferred_is_arithmetic(plan);
    }
    npy_deferred_plan_release(plan);
    if (npy_deferred_walk_close(&walk, result == 0) < 0) {
        result = -1;
    }
    return result;
}

/* Whether somebody has calculated the root's array since the evaluation began. */
static int
is_done(PyArrayObject *array)
{
    return array != NULL && !npy_deferred_is(array);
}

/* Cast a one-dimensional array, which gets new memory, and leave errors to others. */
static int
cast_silently(PyArrayObject **array, PyArray_Descr *descr, int *status)
{
    PyArrayObject *from = *array;
    npy_intp n = PyArray_DIM(from, 0);
    npy_intp strides[2] = {PyArray_STRIDE(from, 0), descr->elsize};
    NPY_cast_info cast;
    NPY_ARRAYMETHOD_FLAGS flags;
    Py_INCREF(descr);
    PyArrayObject *to = (PyArrayObject *)PyArray_NewFromDescr_int(
            &PyArray_Type, descr, 1, &n, NULL, NULL, 0, NULL, NULL,
            _NPY_ARRAY_ENSURE_DTYPE_IDENTITY);
    if (to == NULL) {
        return -1;
    }
    NPY_cast_info_init(&cast);
    if (PyArray_GetDTypeTransferFunction(IsUintAligned(from), strides[0], strides[1],
                                         PyArray_DESCR(from), descr, 0, &cast,
                                         &flags) != NPY_SUCCEED) {
        Py_DECREF(to);
        return -1;
    }
    char *data[2] = {PyArray_BYTES(from), PyArray_BYTES(to)};
    npy_clear_floatstatus_barrier((char *)data);
    int result = cast.func(&cast.context, data, &n, strides, cast.auxdata);
    *status = flags & NPY_METH_NO_FLOATINGPOINT_ERRORS
                      ? 0
                      : npy_get_floatstatus_barrier((char *)data);
    NPY_cast_info_xfree(&cast);
    *array = to;
    Py_DECREF(from);
    return result;
}

/*
 * Cast what eager NumPy casts before it runs the node, reporting by itself where
 * it stands and as its state is now.
 */
static int
cast_inputs(npy_deferred_node *node, PyArrayObject *op[], npy_deferred_errors *errors)
{
    int trivial = 1;
    npy_intp buffersize = npy_deferred_buffer_size();
    for (int i = 0; i < node->nin; i++) {
        int status;
        if (!npy_deferred_copied_by_eager(op[i], node->descrs[i], buffersize,
                                          &trivial)) {
            continue;
        }
        if (cast_silently(&op[i], node->descrs[i], &status) < 0 ||
            (status != 0 && add_error(errors, node, 1 + i, status) < 0)) {
            return -1;
        }
    }
    return 0;
}

/*
 * Where eager NumPy writes over an input: loops may do something else then than with
 * memory of the result's own.  `*result` is where it goes, or NULL.
 */
static int
rewrite_inputs(npy_deferred_node *node, PyArrayObject *op[], PyArrayObject **result)
{
    for (int i = 0; i < node->nin; i++) {
        if (!(node->rewrites & 1 << i)) {
            continue;
        }
        if (*result == NULL) {
            PyArray_Descr *descr = PyArray_DESCR(op[i]);
            Py_INCREF(descr);
            *result = (PyArrayObject *)PyArray_NewFromDescr_int(
                    &PyArray_Type, descr, PyArray_NDIM(op[i]), PyArray_DIMS(op[i]),
                    PyArray_STRIDES(op[i]), NULL, 0, NULL, NULL,
                    _NPY_ARRAY_ENSURE_DTYPE_IDENTITY);
        }
        if (*result == NULL || PyArray_CopyInto(*result, op[i]) < 0) {
            return -1;
        }
        Py_INCREF(*result);
        Py_SETREF(op[i], *result);
    }
    return 0;
}

/*
 * Run a node whose operands are all regular as eager NumPy does.  Returns 0;
 * 1 when the node was calculated meanwhile, as loops of eager NumPy release
 * the GIL, and then its operands may have been written to; -1: exception.
 */
static int
evaluate_alone(npy_deferred_node *node, PyArrayObject *array, PyArrayObject *out,
               npy_deferred_target target, npy_deferred_errors *errors)
{
    PyArrayObject *op[NPY_DEFERRED_MAX_NARGS + 1] = {NULL};
    PyArrayObject **own = &op[node->nin + node->output];
    int status = 0, result = -1;
    for (int i = 0; i < node->nin; i++) {
        op[i] = node->operands[i].array;
        Py_XINCREF(op[i]);
        if (op[i] == NULL) {
            op[i] = npy_deferred_constant_array(node, i);
            if (op[i] == NULL) {
                goto finish;
            }
        }
    }
    if (target != NPY_DEFERRED_ASSIGN) {
        Py_INCREF(out);
        *own = out;
    }
    if (rewrite_inputs(node, op, own) < 0 || cast_inputs(node, op, errors) < 0) {
        goto finish;
    }
    result = npy_deferred_call_eagerly(node, op, &status);
    if (result == 0 && is_done(array)) {
        npy_deferred_errors_clear(errors); /* whoever was faster reports them */
        result = 1;
    }
    if (result == 0 && status != 0) {
        result = add_error(errors, node, 0, status);
    }
    if (result == 0) {
        node->nevaluated++;
    }
    if (result == 0 && target == NPY_DEFERRED_ASSIGN) {
        result = PyArray_AssignArray(out, *own, NULL, NPY_UNSAFE_CASTING);
    }
finish:
    for (int i = 0; i < node->ufunc->nargs; i++) {
        Py_XDECREF(op[i]);
    }
    return result;
}

/* Returns 1 when operands were replaced, else 0; -1 with an exception set. */
static int
check_operands(const npy_deferred_expression *expression)
{
    int result = 0;
    for (int i = 0; i < expression->nnodes; i++) {
        npy_deferred_node *node = expression->nodes[i];
        for (int j = 0; j < node->nin && result == 0; j++) {
            result = npy_deferred_check_operand(&node->operands[j]);
        }
    }
    return result;
}

/* One try.  Returns 0; 1 to try again; INTERRUPTED; -1 with an exception set. */
static int
try_to_evaluate(npy_deferred_node *root, PyArrayObject *array, PyArrayObject *out,
                npy_deferred_target target, npy_deferred_errors *errors, int *all)
{
    npy_deferred_expression expression;
    if (npy_deferred_collect(root, &expression) < 0) {
        PyErr_SetString(PyExc_SystemError, "a deferred expression exceeds its bounds");
        return -1;
    }
    npy_deferred_profile_expression(&expression, out);
    int result = check_operands(&expression);
    if (result == 0) {
        result = calculate_inner(root, out, &expression, *all);
    }
    if (result != 0) {
        return result;
    }
    result = evaluate_fused(&expression, out, target, NULL, errors);
    if (result == NPY_DEFERRED_INTERRUPTED) {
        return result;
    }
    if (result > 0 && expression.nnodes == 1) {
        note_lines(&expression, target == NPY_DEFERRED_FRESH);
        return evaluate_alone(root, array, out, target, errors);
    }
    *all = 1;
    return result;
}

/*
 * Calculate what must be regular first, and try, until it is done.  Whenever
 * an array was calculated, handlers of floating-point errors and other threads
 * may have run: the root's array may be regular by now, which leaves its node
 * without operands, and there may be new readers of `out`.
 */
static int
evaluate(npy_deferred_node *root, PyArrayObject *array, PyArrayObject *out,
         npy_deferred_target target, npy_deferred_errors *errors)
{
    int all = 0, result = 1;
    while (result > 0) {
        if (target != NPY_DEFERRED_FRESH && npy_deferred_before_write(out) < 0) {
            return -1;
        }
        if (is_done(array)) {
            return target != NPY_DEFERRED_ASSIGN
                           ? 0
                           : PyArray_AssignArray(out, array, NULL, NPY_UNSAFE_CASTING);
        }
        result = try_to_evaluate(root, array, out, target, errors, &all);
        if (result == NPY_DEFERRED_INTERRUPTED && PyErr_CheckSignals() < 0) {
            result = -1;
        }
    }
    return result;
}

/* The end of an evaluation, which has nothing to report unless it was done. */
static int
settle(int result, npy_deferred_errors *errors)
{
    if (result != 0) {
        npy_deferred_errors_clear(errors);
    }
    /* NumPy's iterators fail without an exception when memory is short. */
    if (result < 0 && !PyErr_Occurred()) {
        PyErr_NoMemory();
    }
    return result;
}

NPY_NO_EXPORT int
npy_deferred_evaluate(npy_deferred_node *root, PyArrayObject *out,
                      npy_deferred_target target, npy_deferred_errors *errors)
{
    PyArrayObject *array = root->array; /* NULL: nobody else has the root */
    Py_XINCREF(array);
    int result = evaluate(root, array, out, target, errors);
    Py_XDECREF(array);
    return settle(result, errors);
}

/* Whether some node must be calculated by itself before those of a sweep. */
static int
has_inner(const npy_deferred_expression *expression, PyArrayObject *out)
{
    char is_stored[NPY_DEFERRED_MAX_NODES];
    find_stored(expression, is_stored);
    for (int i = 0; i < expression->nnodes - 1; i++) {
        const npy_deferred_node *node = expression->nodes[i];
        if (!is_kept(expression, node) &&
            (is_stored[i] || npy_deferred_leaves_twin(expression, node))) {
            return 1;
        }
    }
    return npy_deferred_has_other_size(expression, 0, PyArray_SIZE(out));
}

/* As try_to_evaluate, of the two nodes of a call; TRY_AGAIN to do so. */
static int
try_to_evaluate_twins(npy_deferred_node *const roots[], PyArrayObject *const outs[],
                      npy_deferred_errors *errors, int *all)
{
    npy_deferred_expression expression;
    int last = roots[1]->serial > roots[0]->serial;
    int fits = npy_deferred_collect_together(roots, outs, 2, &expression) == 0;
    if (!fits) {
        /* There is room for one of them. */
        *all = 1;
        npy_deferred_collect(roots[last], &expression);
    }
    npy_deferred_profile_expression(&expression, outs[last]);
    int result = check_operands(&expression);
    if (result == 0) {
        result = calculate_inner(roots[last], outs[last], &expression, *all);
    }
    if (result != 0 || !fits) {
        return result < 0 ? -1 : result > 0 ? TRY_AGAIN : 1;
    }
    result = evaluate_fused(&expression, outs[last], NPY_DEFERRED_FRESH, NULL, errors);
    if (result != 1 || expression.nnodes == 2) {
        return result;
    }
    *all = 1;
    return TRY_AGAIN;
}

/* As npy_deferred_evaluate_together, of the two nodes of a call: parts of them may be
 * calculated before, and what one raises the other would. */
static int
evaluate_twins(npy_deferred_node *const roots[], PyArrayObject *const outs[],
               npy_deferred_errors *errors)
{
    int all = 0, result = TRY_AGAIN;
    while (result == TRY_AGAIN || result == NPY_DEFERRED_INTERRUPTED) {
        if (roots[0]->array == NULL || roots[1]->array == NULL) {
            return 1; /* one has been calculated meanwhile */
        }
        result = try_to_evaluate_twins(roots, outs, errors, &all);
        if (result == NPY_DEFERRED_INTERRUPTED && PyErr_CheckSignals() < 0) {
            result = -1;
        }
    }
    return settle(result, errors);
}

NPY_NO_EXPORT int
npy_deferred_evaluate_together(npy_deferred_node *const roots[],
                               PyArrayObject *const outs[], int n,
                               npy_deferred_errors *errors)
{
    npy_deferred_expression expression;
    if (npy_deferred_are_twins(roots, n)) {
        return evaluate_twins(roots, outs, errors);
    }
    if (npy_deferred_collect_together(roots, outs, n, &expression) < 0) {
        return 1;
    }
    /* To ask may run code. */
    if (may_report(&expression) &&
        (together_may_raise(roots, n, &expression) ||
         npy_deferred_collect_together(roots, outs, n, &expression) < 0)) {
        return 1;
    }
    PyArrayObject *out = outs[0];
    for (int i = 1; i < n; i++) {
        if (roots[i] == expression.nodes[expression.nnodes - 1]) {
            out = outs[i];
        }
    }
    npy_deferred_profile_expression(&expression, out);
    int result = check_operands(&expression);
    if (result == 0) {
        result = has_inner(&expression, out);
    }
    if (result == 0) {
        result = evaluate_fused(&expression, out, NPY_DEFERRED_FRESH, NULL, errors);
    }
    if (result == NPY_DEFERRED_INTERRUPTED) {
        result = PyErr_CheckSignals() < 0 ? -1 : 1;
    }
    return settle(result, errors);
}

/* One try.  Returns 0; 1: not in one walk; 2 to try again; INTERRUPTED; -1: exception.
 */
static int
try_to_feed(npy_deferred_node *root, PyArrayObject *out,
            npy_deferred_consumer *consumer, npy_deferred_errors *errors)
{
    npy_deferred_expression expression;
    if (npy_deferred_collect(root, &expression) < 0) {
        return 1;
    }
    int result = check_operands(&expression);
    if (result == 0) {
        result = calculate_inner(root, out, &expression, 0);
    }
    if (result != 0) {
        return result < 0 ? -1 : TRY_AGAIN;
    }
    npy_deferred_profile_expression(&expression, out);
    return evaluate_fused(&expression, out, NPY_DEFERRED_FRESH, consumer, errors);
}

NPY_NO_EXPORT int
npy_deferred_feed(PyArrayObject *array, npy_deferred_consumer *consumer,
                  npy_deferred_errors *errors)
{
    npy_deferred_node *root = npy_deferred_node_of(array);
    /* Where nothing else lies, so that no iterator sees an overlap. */
    void *guard = ((PyArrayObject_fields *)array)->data;
    PyArrayObject *out = npy_deferred_array_over(array, guard);
    int result = out == NULL ? -1 : TRY_AGAIN;
    while (result == TRY_AGAIN || result == NPY_DEFERRED_INTERRUPTED) {
        result = is_done(array) ? 1 : try_to_feed(root, out, consumer, errors);
        if (result == NPY_DEFERRED_INTERRUPTED && PyErr_CheckSignals() < 0) {
            result = -1;
        }
    }
    Py_XDECREF(out);
    return settle(result, errors);
}
