/*
 * Explain: what is pending behind an array, and how it would be calculated.
 *
 * Everything is found out as for a calculation, and nothing is calculated: the
 * plan is made for a result that is nowhere.  ../python/_explain.py makes it
 * readable.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "deferred.h"
#include "ufunc_object.h"

static PyObject *
shape_of(PyArrayObject *array)
{
    return PyArray_IntTupleFromIntp(PyArray_NDIM(array), PyArray_DIMS(array));
}

/* ("scalar", value), ("operation", index) or ("operand", index). */
static PyObject *
describe_input(const npy_deferred_expression *expression, npy_deferred_node *node,
               int i)
{
    PyArrayObject *array = node->operands[i].array;
    if (array == NULL) {
        PyArrayObject *scalar = npy_deferred_constant_array(node, i);
        return scalar == NULL ? NULL
                              : Py_BuildValue("(sN)", "scalar", PyArray_Return(scalar));
    }
    if (npy_deferred_is(array)) {
        return Py_BuildValue("(si)", "operation",
                             npy_deferred_node_of(array)->position);
    }
    return Py_BuildValue("(si)", "operand",
                         npy_deferred_operand_index(expression, array));
}

/* The root of an expression has no array where its result goes into another. */
static PyArrayObject *
array_of(npy_deferred_node *node, PyArrayObject *result)
{
    return node->array != NULL ? node->array : result;
}

static PyObject *
describe_operation(const npy_deferred_expression *expression, npy_deferred_node *node,
                   PyArrayObject *result)
{
    PyObject *inputs = PyTuple_New(node->nin);
    for (int i = 0; inputs != NULL && i < node->nin; i++) {
        PyObject *input = describe_input(expression, node, i);
        if (input == NULL) {
            Py_CLEAR(inputs);
            break;
        }
        PyTuple_SET_ITEM(inputs, i, input);
    }
    PyObject *where = node->origin.code == NULL
                              ? Py_NewRef(Py_None)
                              : npy_deferred_origin_text(&node->origin);
    PyObject *output =
            node->ufunc->nout == 1 ? Py_NewRef(Py_None) : PyLong_FromLong(node->output);
    if (inputs == NULL || where == NULL || output == NULL) {
        Py_XDECREF(inputs);
        Py_XDECREF(where);
        Py_XDECREF(output);
        return NULL;
    }
    return Py_BuildValue("(sNONNN)", ufunc_get_name_cstr(node->ufunc), inputs,
                         npy_deferred_result_descr(node),
                         shape_of(array_of(node, result)), where, output);
}

static PyObject *
describe_operand(PyArrayObject *array)
{
    return Py_BuildValue(
            "(ONNn)", PyArray_DESCR(array), shape_of(array),
            PyArray_IntTupleFromIntp(PyArray_NDIM(array), PyArray_STRIDES(array)),
            (Py_ssize_t)PyArray_NBYTES(array));
}

/* Whether some part is calculated before the rest: see evaluate.c. */
static int
has_parts(const npy_deferred_expression *expression, PyArrayObject *array)
{
    for (int i = 0; i < expression->nnodes; i++) {
        const npy_deferred_node *node = expression->nodes[i];
        if (PyArray_SIZE(node->array) != PyArray_SIZE(array) ||
            npy_deferred_leaves_twin(expression, node)) {
            return 1;
        }
    }
    return 0;
}

NPY_NO_EXPORT PyObject *
npy_deferred_describe_plan(const npy_deferred_plan *plan, const npy_deferred_walk *walk)
{
    int casts = 0;
    npy_intp block = npy_deferred_block_length(plan, walk);
    for (int i = 0; i < plan->nsteps; i++) {
        casts += plan->steps[i].is_cast;
    }
    return Py_BuildValue("(iiiniO)", plan->nsteps, casts,
                         npy_deferred_nloops(plan, walk),
                         (Py_ssize_t)(block == NPY_MAX_INTP ? 0 : block),
                         npy_deferred_threads_for(plan, walk),
                         walk->iter == NULL ? Py_True : Py_False);
}

/* What the plan would be, or None. */
static PyObject *
describe_future(const npy_deferred_expression *expression, PyArrayObject *out)
{
    npy_deferred_walk walk;
    npy_deferred_plan *plan = NULL;
    PyObject *described = NULL;
    if (has_parts(expression, out)) {
        Py_RETURN_NONE;
    }
    int result =
            npy_deferred_plan_get(&walk, expression, out, NPY_DEFERRED_FRESH, &plan);
    if (result == 0) {
        described = npy_deferred_describe_plan(plan, &walk);
        npy_deferred_plan_release(plan);
        if (npy_deferred_walk_close(&walk, 0) < 0) {
            Py_CLEAR(described);
        }
    }
    else if (result > 0) {
        described = Py_NewRef(Py_None);
    }
    return described;
}

/* The operations whose values are kept beside those of the last one. */
static PyObject *
describe_kept(const npy_deferred_expression *expression)
{
    PyObject *kept = PyList_New(expression->nkept);
    for (int i = 0; kept != NULL && i < expression->nkept; i++) {
        PyObject *position = PyLong_FromLong(expression->kept[i]->position);
        if (position == NULL) {
            Py_CLEAR(kept);
            break;
        }
        PyList_SET_ITEM(kept, i, position);
    }
    return kept;
}

NPY_NO_EXPORT PyObject *
npy_deferred_describe(const npy_deferred_expression *expression, PyArrayObject *result,
                      PyArrayObject *about)
{
    PyObject *operations = PyList_New(expression->nnodes);
    PyObject *operands = PyList_New(npy_deferred_nread(expression));
    PyObject *kept = describe_kept(expression);
    PyObject *item = operations == NULL || kept == NULL ? NULL : operands;
    npy_intp nbytes = PyArray_NBYTES(result);
    for (int i = 0; item != NULL && i < expression->nnodes; i++) {
        item = describe_operation(expression, expression->nodes[i], result);
        PyList_SET_ITEM(operations, i, item);
    }
    for (int i = 0; item != NULL && i < npy_deferred_nread(expression); i++) {
        item = describe_operand(expression->operands[i]);
        PyList_SET_ITEM(operands, i, item);
    }
    if (item == NULL) {
        Py_XDECREF(operations);
        Py_XDECREF(operands);
        Py_XDECREF(kept);
        return NULL;
    }
    for (int i = npy_deferred_nread(expression); i < expression->noperands; i++) {
        nbytes += PyArray_NBYTES(expression->operands[i]);
    }
    return Py_BuildValue("(NNNONn)", operations, operands, kept, PyArray_DESCR(about),
                         shape_of(about), (Py_ssize_t)nbytes);
}

/* What is calculated for an array: it, and the other output of its call. */
typedef struct {
    int n;
    npy_deferred_node *roots[2]; /* borrowed; the one that is evaluated last is last */
    PyArrayObject *outs[2];      /* owned: arrays like theirs, nowhere */
} future;

static void
release(future *f)
{
    for (int i = 0; i < f->n; i++) {
        Py_DECREF(f->outs[i]);
    }
}

/* Returns 0, or -1 with an exception set. */
static int
find_future(future *f, PyArrayObject *array)
{
    npy_deferred_node *node = npy_deferred_node_of(array);
    npy_deferred_node *twin = npy_deferred_pending_twin(node);
    npy_deferred_node *both[2] = {twin, node};
    if (twin != NULL && twin->serial > node->serial) {
        both[0] = node;
        both[1] = twin;
    }
    f->n = 0;
    for (int i = twin == NULL; i < 2; i++) {
        PyArrayObject *out =
                npy_deferred_array_over(both[i]->array, npy_deferred_nowhere());
        if (out == NULL) {
            release(f);
            return -1;
        }
        f->roots[f->n] = both[i];
        f->outs[f->n++] = out;
    }
    return 0;
}

NPY_NO_EXPORT PyObject *
npy_deferred_explain(PyArrayObject *array)
{
    npy_deferred_expression expression;
    npy_deferred_wait();
    if (!npy_deferred_is(array)) {
        return Py_BuildValue("((NNNONn)O)", PyList_New(0), PyList_New(0), PyList_New(0),
                             PyArray_DESCR(array), shape_of(array),
                             (Py_ssize_t)PyArray_NBYTES(array), Py_None);
    }
    future f;
    if (find_future(&f, array) < 0) {
        return NULL;
    }
    npy_deferred_node *node = npy_deferred_node_of(array);
    PyArrayObject *out = f.outs[f.n - 1];
    if (f.n == 1 ||
        npy_deferred_collect_together(f.roots, f.outs, f.n, &expression) < 0) {
        out = f.roots[0] == node ? f.outs[0] : out;
        if (npy_deferred_collect(node, &expression) < 0) {
            PyErr_SetString(PyExc_SystemError,
                            "a deferred expression exceeds its bounds");
            release(&f);
            return NULL;
        }
    }
    PyObject *described = npy_deferred_describe(&expression, out, array);
    PyObject *plan = described == NULL ? NULL : describe_future(&expression, out);
    release(&f);
    if (plan == NULL) {
        Py_XDECREF(described);
        /* NumPy's iterators fail without an exception when memory is short. */
        if (!PyErr_Occurred()) {
            PyErr_NoMemory();
        }
        return NULL;
    }
    return Py_BuildValue("(NN)", described, plan);
}
