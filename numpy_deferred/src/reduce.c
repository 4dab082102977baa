/*
 * Reductions: ufunc.reduce of a deferred array without storing its values.
 *
 * The expression is evaluated piece by piece (pieces.c) into scratch memory, and
 * NumPy's own loop, or a quicker one that does the same, reduces what is there, so
 * that sum((a - b)**2) reads a and b and writes nothing.  The array stays deferred; one
 * that is evaluated a second time becomes regular, as elsewhere, and is reduced by
 * eager NumPy.
 *
 * The bits are eager NumPy's, as the order is.  PyUFunc_ReduceWrapper iterates over
 * a fresh array in the order of its memory, and gives the loop runs along the
 * innermost axes that it can join: into one element of the result (its stride is
 * 0), or each into its own.  A run of the latter kind may be cut anywhere.  One of
 * the former may be too where the loop goes from left to right, or where the order
 * does not matter; floating-point sums are pairwise, so such a run is divided as
 * NumPy divides it, until a part is short enough to be in scratch memory as a whole.
 * A loop adds such a part to -0.0, which adds nothing, and then the parts to each
 * other.
 *
 * Where order does not matter, and where a run goes into its own elements, the last
 * instruction of a tile program may reduce as well (tiles.h); no piece is stored then.
 *
 * When something was raised, and it may have been by the expression or by the
 * reduction, all is done again in a way that tells.
 *
 * What depends on how many elements a loop gets shows in the result: which NaN it
 * is, and of which sign a maximum of zeros of both.  Such a result is thrown away, and
 * so is all that cannot be had in one walk: the array is calculated then, and eager
 * NumPy goes on.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE
#define NPY_ITERATOR_IMPLEMENTATION_CODE /* for how it has joined the axes */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "reduce.h"

#include "array_coercion.h"
#include "convert_datatype.h"
#include "extobj.h"
#include "nditer_impl.h"
#include "profile.h"

/* ---- whether, and how ---- */

static const struct {
    const char *name;
    cuts of_real, of_complex, of_half;
    int zeros_differ;
    npy_deferred_tile_reduction what;
} ufuncs[] = {
        {"add", PAIRWISE, PAIRWISE, NOWHERE, 0, NPY_DEFERRED_TILE_SUM},
        {"multiply", ANYWHERE, ANYWHERE, NOWHERE, 0},
        {"maximum", ANYWHERE, ANYWHERE, ANYWHERE, 1, NPY_DEFERRED_TILE_LARGEST},
        {"minimum", ANYWHERE, ANYWHERE, ANYWHERE, 1, NPY_DEFERRED_TILE_SMALLEST},
        {"fmax", ANYWHERE, ANYWHERE, ANYWHERE, 1, NPY_DEFERRED_TILE_LARGEST},
        {"fmin", ANYWHERE, ANYWHERE, ANYWHERE, 1, NPY_DEFERRED_TILE_SMALLEST},
        {"logical_and", ANYWHERE, NOT_FUSED, NOT_FUSED, 0},
        {"logical_or", ANYWHERE, NOT_FUSED, NOT_FUSED, 0},
        {"logical_xor", ANYWHERE, NOT_FUSED, NOT_FUSED, 0},
        {"bitwise_and", ANYWHERE, NOT_FUSED, NOT_FUSED, 0},
        {"bitwise_or", ANYWHERE, NOT_FUSED, NOT_FUSED, 0},
        {"bitwise_xor", ANYWHERE, NOT_FUSED, NOT_FUSED, 0},
};

static void
choose_cuts(reduction *r)
{
    const PyUFuncObject *ufunc = (PyUFuncObject *)r->context->caller;
    int type = r->context->descriptors[0]->type_num;
    r->cut = NOT_FUSED;
    for (size_t i = 0; i < sizeof(ufuncs) / sizeof(*ufuncs); i++) {
        if (strcmp(ufunc->name, ufuncs[i].name) == 0) {
            r->cut = PyTypeNum_ISINTEGER(type) || type == NPY_BOOL ? ANYWHERE
                     : type == NPY_HALF                            ? ufuncs[i].of_half
                     : PyTypeNum_ISCOMPLEX(type) ? ufuncs[i].of_complex
                                                 : ufuncs[i].of_real;
            r->zeros_differ = ufuncs[i].zeros_differ && PyTypeNum_ISFLOAT(type);
            r->what = ufuncs[i].what;
            r->is_associative = r->cut == ANYWHERE &&
                                (ufuncs[i].zeros_differ || PyTypeNum_ISINTEGER(type) ||
                                 type == NPY_BOOL);
            return;
        }
    }
}

/* Whether `initial` becomes this type without a warning, and without Python code. */
static int
converts_silently(PyObject *initial, PyArray_Descr *descr)
{
    int type = descr->type_num;
    if (PyArray_IsScalar(initial, Generic)) {
        PyArray_Descr *its = PyArray_DescrFromTypeObject((PyObject *)Py_TYPE(initial));
        Py_XDECREF(its);
        return its == descr && PyArray_CheckAnyScalarExact(initial);
    }
    if (PyFloat_CheckExact(initial)) {
        return type == NPY_DOUBLE || type == NPY_CDOUBLE;
    }
    return PyBool_Check(initial) ||
           (PyLong_CheckExact(initial) &&
            (PyTypeNum_ISINTEGER(type) || type == NPY_DOUBLE || type == NPY_CDOUBLE));
}

/* Returns whether the reduction can be fused as to where it starts. */
static int
find_initial(reduction *r, PyObject *initial)
{
    PyArrayMethod_Context *context = r->context;
    memset(r->initial, 0, sizeof(r->initial));
    if (initial == Py_None) {
        return 1;
    }
    if (initial == NULL) {
        r->has_initial = context->method->get_reduction_initial == NULL
                                 ? 0
                                 : context->method->get_reduction_initial(context, 0,
                                                                          r->initial);
    }
    else {
        r->has_initial = converts_silently(initial, context->descriptors[0]) &&
                                         PyArray_Pack(context->descriptors[0],
                                                      r->initial, initial) == 0
                                 ? 1
                                 : -1;
    }
    PyErr_Clear();
    return r->has_initial >= 0;
}

/* Whole numbers below that are float32 numbers. */
#define MAX_FLOAT_COUNT (1 << 24)

/* Whether it adds up truth values, without rounding anything. */
static int
is_count(const reduction *r)
{
    int type = r->context->descriptors[0]->type_num;
    if (!r->is_cast || PyArray_TYPE(r->operand) != NPY_BOOL ||
        r->what != NPY_DEFERRED_TILE_SUM) {
        return 0;
    }
    return PyTypeNum_ISINTEGER(type) ||
           (type == NPY_DOUBLE && *(const npy_double *)r->initial == 0) ||
           (type == NPY_FLOAT && *(const npy_float *)r->initial == 0 &&
            PyArray_SIZE(r->operand) < MAX_FLOAT_COUNT);
}

static int
can_reduce(reduction *r, PyObject *initial)
{
    PyArray_Descr *const *descrs = r->context->descriptors;
    PyArray_Descr *given = PyArray_DESCR(r->operand);
    npy_deferred_node *node = npy_deferred_node_of(r->operand);
    if (node->nevaluated > (node->is_arithmetic ? 1 : 0) || node->computed != NULL ||
        npy_deferred_pending_twin(node) != NULL ||
        !npy_deferred_is_own_ufunc((PyUFuncObject *)r->context->caller) ||
        !PyTypeNum_ISNUMBER(descrs[0]->type_num) ||
        !PyArray_ISNBO(descrs[0]->byteorder) || !PyArray_ISNBO(given->byteorder) ||
        !PyArray_EquivTypes(descrs[0], descrs[1]) ||
        (r->context->method->flags & NPY_METH_REQUIRES_PYAPI)) {
        return 0;
    }
    r->is_cast = !PyArray_EquivTypes(given, descrs[1]);
    if (r->is_cast && descrs[1]->type_num != NPY_BOOL &&
        !PyArray_CanCastTypeTo(given, descrs[1], NPY_SAFE_CASTING)) {
        return 0;
    }
    choose_cuts(r);
    if (r->cut == NOT_FUSED || !find_initial(r, initial)) {
        return 0;
    }
    if (is_count(r)) {
        r->cut = ANYWHERE;
        r->is_associative = r->counts = 1;
    }
    return 1;
}

/* ---- the result, and how it is gone through ---- */

/* Where the iterator has the axes of the operand in the result. */
static void
map_axes(const reduction *r, int result_axes[])
{
    int axis = 0;
    for (int i = 0; i < PyArray_NDIM(r->operand); i++) {
        int kept = !r->axis_flags[i] || r->keepdims ? axis++ : -1;
        result_axes[i] = r->axis_flags[i] ? NPY_ITER_REDUCTION_AXIS(kept) : kept;
    }
}

/* Returns whether the operand is gone through as it lies in memory. */
static int
read_axes(reduction *r, NpyIter *iter)
{
    npy_uint32 itflags = NIT_ITFLAGS(iter);
    int ndim = NIT_NDIM(iter), nop = NIT_NOP(iter);
    npy_intp sizeof_axisdata = NIT_AXISDATA_SIZEOF(itflags, ndim, nop);
    NpyIter_AxisData *axis = NIT_AXISDATA(iter);
    npy_intp itemsize = PyArray_ITEMSIZE(r->operand), stride = itemsize;
    r->naxes = 0;
    for (int i = 0; i < ndim; i++, NIT_ADVANCE_AXISDATA(axis, 1)) {
        if (NAD_SHAPE(axis) == 1) {
            continue;
        }
        if (NAD_STRIDES(axis)[1] != stride) {
            return 0;
        }
        r->steps[r->naxes] = stride / itemsize;
        stride *= NAD_SHAPE(axis);
        r->shape[r->naxes] = NAD_SHAPE(axis);
        r->strides[r->naxes++] = NAD_STRIDES(axis)[0];
    }
    if (r->naxes == 0) {
        r->shape[0] = r->steps[0] = 1;
        r->strides[r->naxes++] = 0;
    }
    return stride == PyArray_NBYTES(r->operand);
}

/* The result of all elements of one axis.  Returns as new_result. */
static int
new_scalar(reduction *r)
{
    PyArray_Descr *descr = r->context->descriptors[0];
    r->naxes = 1;
    r->shape[0] = PyArray_SIZE(r->operand);
    r->steps[0] = 1;
    r->strides[0] = 0;
    Py_INCREF(descr);
    Py_XSETREF(r->result, (PyArrayObject *)PyArray_NewFromDescr(
                                  &PyArray_Type, descr, 0, NULL, NULL, NULL, 0, NULL));
    return r->result == NULL ? -1 : 0;
}

/*
 * Have the iterator make the result, as PyUFunc_ReduceWrapper has it.  Returns 0; 1
 * when its way is not the one described above; -1 with an exception set.
 */
static int
new_result(reduction *r, PyArrayObject *stand_in)
{
    if (PyArray_NDIM(stand_in) == 1 && r->axis_flags[0] && !r->keepdims &&
        PyArray_STRIDES(stand_in)[0] == PyArray_ITEMSIZE(stand_in)) {
        return new_scalar(r); /* the iterator takes as long as 2,000 elements */
    }
    int result_axes[NPY_MAXDIMS];
    int *op_axes[2] = {result_axes, NULL};
    PyArrayObject *op[2] = {NULL, stand_in};
    PyArray_Descr *dtypes[2] = {r->context->descriptors[0], PyArray_DESCR(stand_in)};
    npy_uint32 op_flags[2] = {
            NPY_ITER_READWRITE | NPY_ITER_ALIGNED | NPY_ITER_ALLOCATE |
                    NPY_ITER_NO_SUBTYPE,
            NPY_ITER_READONLY | NPY_ITER_ALIGNED | NPY_ITER_NO_BROADCAST};
    map_axes(r, result_axes);
    NpyIter *iter = NpyIter_AdvancedNew(
            2, op,
            NPY_ITER_BUFFERED | NPY_ITER_EXTERNAL_LOOP | NPY_ITER_GROWINNER |
                    NPY_ITER_DELAY_BUFALLOC | NPY_ITER_DONT_NEGATE_STRIDES,
            NPY_KEEPORDER, NPY_UNSAFE_CASTING, op_flags, dtypes, PyArray_NDIM(stand_in),
            op_axes, NULL, r->buffersize);
    if (iter == NULL) {
        return -1;
    }
    int in_order = read_axes(r, iter);
    Py_XSETREF(r->result, (PyArrayObject *)Py_NewRef(NpyIter_GetOperandArray(iter)[0]));
    if (NpyIter_Deallocate(iter) != NPY_SUCCEED) {
        return -1;
    }
    return in_order ? 0 : 1;
}

static int
choose_loop(reduction *r)
{
    PyArrayMethod_Context *context = r->context;
    npy_intp strides[3] = {r->strides[0], context->descriptors[1]->elsize,
                           r->strides[0]};
    NPY_ARRAYMETHOD_FLAGS flags = 0;
    NPY_AUXDATA_FREE(r->auxdata);
    r->auxdata = NULL;
    if (context->method->get_strided_loop(context, 1, 0, strides, &r->loop, &r->auxdata,
                                          &flags) < 0) {
        return -1;
    }
    r->checked = !(flags & NPY_METH_NO_FLOATINGPOINT_ERRORS);
    r->status = 0;
    r->reducer = npy_deferred_tile_reducer_for(context->descriptors[0], r->what);
    return 0;
}

/* ---- all together ---- */

/* The consumer of the operand's values. */
static int
consume(npy_deferred_consumer *consumer, npy_deferred_plan *plan,
        npy_deferred_walk *walk)
{
    reduction *r = (reduction *)consumer;
    if (!npy_deferred_walk_in_order(walk)) {
        return 1;
    }
    int result = new_result(r, walk->out);
    if (result == 0 && r->cut == NOWHERE && r->strides[0] == 0 &&
        r->shape[0] > NPY_DEFERRED_MAX_PIECE / 2) {
        result = 1;
    }
    if (result == 0) {
        result = choose_loop(r);
    }
    if (result == 0) {
        result = npy_deferred_reduce_shared(r, plan, walk);
    }
    if (result >= 0 && PyErr_Occurred()) {
        return -1;
    }
    return result == 0 && npy_deferred_has_nan(r, PyArray_BYTES(r->result),
                                               PyArray_SIZE(r->result))
                   ? 1
                   : result;
}

/* The operand's errors, then those of the reduction: as if they came one by one. */
static int
report(reduction *r, npy_deferred_node *node, npy_deferred_errors *errors,
       int errormask)
{
    if (errors->n > 0 && npy_deferred_report(errors) < 0) {
        npy_deferred_set_failed(node, PyErr_ExceptionMatches(PyExc_Exception) != 0);
        return -1;
    }
    if (!r->checked || r->status == 0 || errormask == 0) {
        return 0;
    }
    PyObject *errstate = npy_deferred_errstate();
    if (errstate == NULL) {
        return -1;
    }
    int unused;
    PyObject *errfunc = npy_deferred_errfunc(errstate, &unused);
    Py_DECREF(errstate);
    if (errfunc == NULL) {
        return -1;
    }
    int result = PyUFunc_handlefperr("reduce", errormask, errfunc, r->status);
    Py_DECREF(errfunc);
    return result;
}

/* Returns 1, 0 when the array is to be calculated instead, -1 with an exception. */
static int
reduce(reduction *r, int errormask)
{
    npy_deferred_errors errors;
    npy_deferred_node *node = npy_deferred_node_of(r->operand);
    errors.n = 0;
    npy_deferred_profiled profiled;
    npy_deferred_profile_begin(&profiled, NPY_DEFERRED_FRESH);
    npy_deferred_node_incref(node);
    int result = npy_deferred_feed(r->operand, &r->consumer, &errors);
    if (result == 0) {
        npy_deferred_stats.reduced++;
        profiled.written = PyArray_NBYTES(r->result);
        result = report(r, node, &errors, errormask) < 0 ? -1 : 1;
    }
    else if (result > 0) {
        result = 0;
    }
    npy_deferred_node_decref(node);
    npy_deferred_profile_end(&profiled, result > 0 ? 0 : -1);
    return result;
}

NPY_NO_EXPORT int
npy_deferred_reduce(PyArrayMethod_Context *context, PyArrayObject *operand,
                    PyArrayObject *out, PyArrayObject *wheremask,
                    const npy_bool *axis_flags, int keepdims, PyObject *initial,
                    npy_intp buffersize, int errormask, PyArrayObject **result)
{
    npy_deferred_wait();
    if (!npy_deferred_is(operand)) {
        return 0;
    }
    reduction r = {.consumer = {consume},
                   .context = context,
                   .operand = operand,
                   .axis_flags = axis_flags,
                   .keepdims = keepdims,
                   .buffersize = buffersize,
                   .wanted = npy_deferred_wanted_status(errormask)};
    int done = 0;
    if (out == NULL && wheremask == NULL && can_reduce(&r, initial) &&
        !npy_deferred_is_to_be_stored(npy_deferred_node_of(operand), 0)) {
        done = reduce(&r, errormask);
    }
    NPY_AUXDATA_FREE(r.auxdata);
    if (done > 0) {
        *result = r.result;
        return 1;
    }
    Py_XDECREF(r.result);
    return done < 0 || npy_deferred_calculate(operand) < 0 ? -1 : 0;
}
