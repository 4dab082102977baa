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
#include "numpy/halffloat.h"
#include "numpy/npy_math.h"

#include "array_assign.h"
#include "array_coercion.h"
#include "convert_datatype.h"
#include "deferred.h"
#include "extobj.h"
#include "nditer_impl.h"
#include "pieces.h"
#include "profile.h"

/* Room for an element: a complex long double. */
#define ELEMENT_SIZE NPY_DEFERRED_CONSTANT_SIZE

/* What the elements of a run that go into one result may be cut into. */
typedef enum {
    NOT_FUSED,
    ANYWHERE, /* the loop goes from left to right, or order does not matter */
    PAIRWISE,
    NOWHERE, /* the loop keeps more than the type of the result can hold */
} cuts;

typedef struct {
    npy_deferred_consumer consumer; /* first: see consume() */
    PyArrayMethod_Context *context;
    PyArrayObject *operand;     /* borrowed: the deferred array */
    const npy_bool *axis_flags; /* borrowed */
    int keepdims;
    npy_intp buffersize;
    cuts cut;
    int is_associative; /* but for NaNs and zeros */
    int zeros_differ; /* the loop may keep either of two zeros; it clears the status */
    npy_deferred_tile_reduction what;
    int is_cast; /* the loop has another type than the operand */
    int wanted;  /* NPY_FPE_* that its error state wants to know of */
    int has_initial;
    _Alignas(16) char initial[ELEMENT_SIZE];
    /* From here on set for each try. */
    PyArrayObject *result; /* owned */
    /* Of the result, as the iterator has joined them, innermost first. */
    int naxes;
    npy_intp shape[NPY_MAXDIMS], strides[NPY_MAXDIMS];
    npy_intp steps[NPY_MAXDIMS]; /* of the operand, in elements */
    PyArrayMethod_StridedLoop *loop;
    NpyAuxData *auxdata; /* owned */
    npy_deferred_tile_reducer reducer;
    int checked; /* whether eager NumPy looks at the status of the loop */
    int status;  /* NPY_FPE_* that it raised */
} reduction;

/* One that reduces, and what it has of the operand. */
typedef struct {
    reduction *r;
    npy_deferred_pieces pieces;
} worker;

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

static int
can_reduce(reduction *r, PyObject *initial)
{
    PyArray_Descr *const *descrs = r->context->descriptors;
    PyArray_Descr *given = PyArray_DESCR(r->operand);
    npy_deferred_node *node = npy_deferred_node_of(r->operand);
    if (node->nevaluated != 0 || node->computed != NULL ||
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
    return r->cut != NOT_FUSED && find_initial(r, initial);
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

/* ---- values that depend on more than the operands ---- */

#define DEFINE_HAS_NAN(name, type)                \
    static int name(const char *data, npy_intp n) \
    {                                             \
        const type *values = (const type *)data;  \
        int found = 0;                            \
        for (npy_intp i = 0; i < n; i++) {        \
            found |= values[i] != values[i];      \
        }                                         \
        return found;                             \
    }
DEFINE_HAS_NAN(floats_have_nan, npy_float)
DEFINE_HAS_NAN(doubles_have_nan, npy_double)
DEFINE_HAS_NAN(longdoubles_have_nan, npy_longdouble)

static int
halves_have_nan(const char *data, npy_intp n)
{
    int found = 0;
    for (npy_intp i = 0; i < n; i++) {
        found |= npy_half_isnan(((const npy_half *)data)[i]);
    }
    return found;
}

/* Whether some of `n` results is a NaN, of which there are many. */
static int
has_nan(const reduction *r, const char *data, npy_intp n)
{
    switch (r->context->descriptors[0]->type_num) {
        case NPY_HALF:
            return halves_have_nan(data, n);
        case NPY_FLOAT:
            return floats_have_nan(data, n);
        case NPY_DOUBLE:
            return doubles_have_nan(data, n);
        case NPY_LONGDOUBLE:
            return longdoubles_have_nan(data, n);
        case NPY_CFLOAT:
            return floats_have_nan(data, 2 * n);
        case NPY_CDOUBLE:
            return doubles_have_nan(data, 2 * n);
        case NPY_CLONGDOUBLE:
            return longdoubles_have_nan(data, 2 * n);
        default:
            return 0;
    }
}

/* Of the one: is it a zero?  Of both: are they zeros of different sign? */
#define DEFINE_ZEROS_MEET(name, bits)                                            \
    static inline int name(const char *one, npy_intp stride, const char *others, \
                           npy_intp n)                                           \
    {                                                                            \
        const bits sign = (bits)1 << (8 * sizeof(bits) - 1);                     \
        int found = 0;                                                           \
        for (npy_intp i = 0; i < n; i++) {                                       \
            bits a = *(const bits *)(one + i * stride);                          \
            bits b = ((const bits *)others)[i];                                  \
            found |= ((bits)(a ^ b) == sign) & ((bits)(a & ~sign) == 0);         \
        }                                                                        \
        return found;                                                            \
    }
DEFINE_ZEROS_MEET(zero_halves_meet, npy_uint16)
DEFINE_ZEROS_MEET(zero_floats_meet, npy_uint32)
DEFINE_ZEROS_MEET(zero_doubles_meet, npy_uint64)

static inline int
zero_longdoubles_meet(const char *one, npy_intp stride, const char *others, npy_intp n)
{
    int found = 0;
    for (npy_intp i = 0; i < n; i++) {
        npy_longdouble a = *(const npy_longdouble *)(one + i * stride);
        npy_longdouble b = ((const npy_longdouble *)others)[i];
        found |= a == 0 && b == 0 && npy_signbit(a) != npy_signbit(b);
    }
    return found;
}

/* The compiler makes vectors of what it knows to lie side by side. */
#define ZEROS_MEET(name, size) \
    (stride == (size) ? name(results, (size), data, n) : name(results, stride, data, n))

/* Whether a maximum or minimum of these would be a zero of either sign. */
static int
zeros_meet(const reduction *r, const char *results, npy_intp stride, const char *data,
           npy_intp n)
{
    switch (r->zeros_differ ? r->context->descriptors[0]->type_num : NPY_NOTYPE) {
        case NPY_HALF:
            return ZEROS_MEET(zero_halves_meet, sizeof(npy_half));
        case NPY_FLOAT:
            return ZEROS_MEET(zero_floats_meet, sizeof(npy_float));
        case NPY_DOUBLE:
            return ZEROS_MEET(zero_doubles_meet, sizeof(npy_double));
        case NPY_LONGDOUBLE:
            return zero_longdoubles_meet(results, stride, data, n);
        default:
            return 0;
    }
}

/* ---- runs ---- */

static npy_intp
element_size(const worker *w)
{
    return w->pieces.elsize;
}

static int
run_loop(worker *w, char *result, npy_intp stride, char *data, npy_intp n)
{
    const reduction *r = w->r;
    char *args[3] = {result, data, result};
    npy_intp strides[3] = {stride, element_size(w), stride};
    /* It clears the status then. */
    int settled = r->zeros_differ && w->pieces.unsettled > 0
                          ? npy_deferred_pieces_settle(&w->pieces)
                          : 0;
    return settled != 0 ? settled : r->loop(r->context, args, &n, strides, r->auxdata);
}

/* As run_loop, into one element. */
static int
run_quickly(worker *w, char *result, char *data, npy_intp n)
{
    const npy_deferred_tile_reducer *reducer = &w->r->reducer;
    return reducer->extreme != NULL && !reducer->extreme(data, n, result)
                   ? 0
                   : run_loop(w, result, 0, data, n);
}

static int
is_zero(const reduction *r, const char *value)
{
    switch (r->context->descriptors[0]->type_num) {
        case NPY_HALF:
            return npy_half_iszero(*(const npy_half *)value);
        case NPY_FLOAT:
            return *(const npy_float *)value == 0;
        case NPY_DOUBLE:
            return *(const npy_double *)value == 0;
        default:
            return 1;
    }
}

/*
 * Into one element.  Returns 1 when what that is depends on more than the operands:
 * it is a NaN now, or a zero, and there were zeros of the other sign.
 */
static int
run_into_one(worker *w, char *result, char *data, npy_intp n)
{
    _Alignas(16) char before[ELEMENT_SIZE];
    memcpy(before, result, element_size(w));
    int status = run_quickly(w, result, data, n);
    if (status != 0) {
        return status;
    }
    return has_nan(w->r, result, 1) || (w->r->zeros_differ && is_zero(w->r, result) &&
                                        (zeros_meet(w->r, result, 0, before, 1) ||
                                         zeros_meet(w->r, result, 0, data, n)));
}

/* What adding to it does not change. */
static void
set_minus_zero(const reduction *r, char *value)
{
    int n = PyTypeNum_ISCOMPLEX(r->context->descriptors[0]->type_num) ? 2 : 1;
    for (int i = 0; i < n; i++) {
        switch (r->context->descriptors[0]->elsize / n) {
            case sizeof(npy_float):
                ((npy_float *)value)[i] = -0.0F;
                break;
            case sizeof(npy_double):
                ((npy_double *)value)[i] = -0.0;
                break;
            default:
                ((npy_longdouble *)value)[i] = -0.0L;
        }
    }
}

/* The sum of elements that are a part of a run. */
static int
add_up(worker *w, char *sum, char *data, npy_intp n)
{
    if (w->r->reducer.add_up != NULL) {
        w->r->reducer.add_up(data, n, sum);
        return element_size(w) == sizeof(npy_double) ? npy_isnan(*(npy_double *)sum)
                                                     : npy_isnan(*(npy_float *)sum);
    }
    set_minus_zero(w->r, sum);
    return run_into_one(w, sum, data, n);
}

/* The sum of two. */
static int
add(worker *w, char *sum, char *other)
{
    if (w->r->reducer.add_up == NULL) {
        return run_loop(w, sum, 0, other, 1);
    }
    if (w->r->context->descriptors[0]->type_num == NPY_DOUBLE) {
        *(npy_double *)sum += *(npy_double *)other;
    }
    else {
        *(npy_float *)sum += *(npy_float *)other;
    }
    return 0;
}

/* How many elements loops_utils.h.src has in the first half of a pairwise sum. */
static npy_intp
first_half(const reduction *r, npy_intp n)
{
    if (PyTypeNum_ISCOMPLEX(r->context->descriptors[0]->type_num)) {
        return (n - n % 8) / 2;
    }
    return n / 2 - n / 2 % 8;
}

static int
sum_pairwise(worker *w, npy_intp position, npy_intp n, char *sum)
{
    _Alignas(16) char second[ELEMENT_SIZE];
    if (n <= w->pieces.part) {
        char *data;
        int result = npy_deferred_provide(&w->pieces, position, n, &data);
        return result != 0 ? result : add_up(w, sum, data, n);
    }
    npy_intp half = first_half(w->r, n);
    int result = sum_pairwise(w, position, half, sum);
    if (result == 0) {
        result = sum_pairwise(w, position + half, n - half, second);
    }
    return result != 0 ? result : add(w, sum, second);
}

/* Elements that are folded at least, and at most. */
#define LEAST_FOLDED 2048
#define MOST_FOLDED 16384

static int
folds(const worker *w, npy_intp n)
{
    return w->pieces.folding != NULL && n >= LEAST_FOLDED;
}

/* What folding starts with: nothing, or what is no matter if it comes again. */
static void
begin_fold(const worker *w, const char *into)
{
    char *folded = w->pieces.folded;
    if (w->r->what == NPY_DEFERRED_TILE_SUM) {
        memset(folded, 0, NPY_DEFERRED_TILE_BYTES);
        return;
    }
    npy_intp filled = element_size(w);
    memcpy(folded, into, filled);
    for (; filled < NPY_DEFERRED_TILE_BYTES; filled *= 2) {
        memcpy(folded + filled, folded, filled);
    }
}

/*
 * The program reduces as many elements of a run as it can, and moves `*position`.
 * NaNs are left to others, and so is all from where the result is a zero: it may be
 * of either sign.
 */
static int
fold(worker *w, npy_intp *position, npy_intp end, char *into)
{
    _Alignas(16) char found[ELEMENT_SIZE];
    npy_intp size = element_size(w);
    while (folds(w, end - *position) && !has_nan(w->r, into, 1) &&
           !(w->r->zeros_differ && is_zero(w->r, into))) {
        npy_intp n = PyArray_MIN(end - *position, MOST_FOLDED);
        n -= n % NPY_DEFERRED_TILE_LENGTH;
        begin_fold(w, into);
        int result = npy_deferred_fold(&w->pieces, *position, n, w->pieces.folded);
        if (result != 0) {
            return result == NPY_DEFERRED_NANS ? 0 : result;
        }
        memcpy(found, into, size);
        result =
                run_quickly(w, found, w->pieces.folded, NPY_DEFERRED_TILE_BYTES / size);
        if (result != 0) {
            return result;
        }
        if (w->r->zeros_differ && is_zero(w->r, found)) {
            return 0;
        }
        memcpy(into, found, size);
        *position += n;
    }
    return 0;
}

/* A run, or as much of it as eager NumPy has in its buffer, goes into one element. */
static int
reduce_stretch(worker *w, npy_intp position, npy_intp n, char *into)
{
    char *data;
    int result = 0;
    if (w->r->cut == PAIRWISE && (w->r->reducer.add_up != NULL || n > w->pieces.part)) {
        _Alignas(16) char sum[ELEMENT_SIZE];
        result = sum_pairwise(w, position, n, sum);
        return result != 0 ? result : add(w, into, sum);
    }
    if (w->r->cut != ANYWHERE) {
        result = n <= w->pieces.part
                         ? npy_deferred_provide(&w->pieces, position, n, &data)
                         : 1;
        return result != 0 ? result : run_loop(w, into, 0, data, n);
    }
    npy_intp end = position + n;
    result = fold(w, &position, end, into);
    while (position < end && result == 0) {
        npy_intp some = end - position;
        result = npy_deferred_provide_some(&w->pieces, position, &some, &data);
        if (result == 0) {
            result = run_into_one(w, into, data, some);
        }
        position += some;
    }
    return result;
}

/*
 * The first element, of which others go into the same.  Where what follows is folded,
 * it may come again, so that this begins where memory is aligned.
 */
static int
begin_run(worker *w, npy_intp *position, npy_intp n, char *into)
{
    char *data;
    npy_intp until = w->pieces.until;
    int again = folds(w, n);
    if (again && w->r->what == NPY_DEFERRED_TILE_SUM) {
        memset(into, 0, element_size(w));
        return 0;
    }
    w->pieces.until = again ? *position + 1 : until;
    int result = npy_deferred_provide(&w->pieces, *position, 1, &data);
    if (result == 0) {
        memcpy(into, data, element_size(w));
    }
    w->pieces.until = until;
    *position += !again || has_nan(w->r, into, 1);
    return result;
}

static int
reduce_run(worker *w, npy_intp position, npy_intp n, char *into, int first)
{
    npy_intp end = position + n;
    npy_intp stretch = w->r->is_cast ? PyArray_MIN(n, w->r->buffersize) : n;
    npy_intp next = position + stretch;
    int result = 0;
    if (first) {
        result = begin_run(w, &position, n, into);
    }
    while (position < end && result == 0) {
        if (position < next) {
            result = reduce_stretch(w, position, next - position, into);
        }
        position = next;
        next = PyArray_MIN(end, next + stretch);
    }
    return result;
}

/* Elements go into as many others. */
static int
combine(worker *w, char *into, npy_intp stride, char *data, npy_intp n)
{
    const reduction *r = w->r;
    npy_intp size = element_size(w);
    npy_intp done = r->reducer.join != NULL && stride == size
                            ? r->reducer.join(into, data, n)
                            : 0;
    into += done * stride;
    data += done * size;
    n -= done;
    if (n == 0) {
        return 0;
    }
    return zeros_meet(r, into, stride, data, n) ? 1
                                                : run_loop(w, into, stride, data, n);
}

/* Elements of a run that the program adds itself at least. */
#define LEAST_JOINED 512

/* A run goes into as many elements. */
static int
combine_run(worker *w, npy_intp position, npy_intp n, char *into, int first)
{
    npy_intp stride = w->r->strides[0], until = w->pieces.until;
    int result = 0;
    if (!first && w->pieces.folding != NULL && n >= LEAST_JOINED) {
        npy_intp joined = n - n % NPY_DEFERRED_TILE_LENGTH;
        result = npy_deferred_fold(&w->pieces, position, joined, into);
        into += joined * stride;
        position += joined;
        n -= joined;
        w->pieces.until = position + n; /* what is after it is not for pieces */
    }
    while (n > 0 && result == 0) {
        char *data;
        npy_intp some = n;
        result = npy_deferred_provide_some(&w->pieces, position, &some, &data);
        if (result == 0 && !first) {
            result = combine(w, into, stride, data, some);
        }
        else if (result == 0) {
            for (npy_intp i = 0; i < some; i++) {
                memcpy(into + i * stride, data + i * element_size(w), element_size(w));
            }
        }
        into += some * stride;
        position += some;
        n -= some;
    }
    w->pieces.until = until;
    return result;
}

/*
 * All runs that have these indices on one axis, in the order of memory.  Returns as
 * npy_deferred_execute.
 */
static int
reduce_range(worker *w, int ranged, npy_intp from, npy_intp to)
{
    const reduction *r = w->r;
    npy_intp index[NPY_MAXDIMS] = {0}, shape[NPY_MAXDIMS];
    npy_intp position = from * r->steps[ranged], section = 0;
    char *into = PyArray_BYTES(r->result) + from * r->strides[ranged];
    int axis = 0, result = 0;
    memcpy(shape, r->shape, sizeof(shape));
    shape[ranged] = to - from;
    while (axis < r->naxes && result == 0) {
        int first = !r->has_initial;
        for (int i = 1; i < r->naxes && first; i++) {
            first = r->strides[i] != 0 || index[i] == 0;
        }
        if (section == 0) {
            section = to - from < r->shape[ranged] ? shape[ranged] * r->steps[ranged]
                                                   : PyArray_SIZE(r->operand);
            w->pieces.until = position + section;
        }
        section -= shape[0];
        result = r->strides[0] == 0 ? reduce_run(w, position, shape[0], into, first)
                                    : combine_run(w, position, shape[0], into, first);
        for (axis = 1; axis < r->naxes; axis++) {
            into += r->strides[axis];
            position += r->steps[axis];
            if (++index[axis] < shape[axis]) {
                break;
            }
            into -= index[axis] * r->strides[axis];
            position -= index[axis] * r->steps[axis];
            index[axis] = 0;
        }
    }
    return result;
}

/* ---- in several threads ---- */

/*
 * What is given to a thread at a time: about so many elements, of which it does not
 * skip others before it has gone through so many.  Measured: where it skips others
 * after 500, two threads take half as long again as one.
 */
#define SHARE 32768
#define MIN_SECTION 4096

/* What all threads take their tasks from; all but the atomic ones is set before. */
typedef struct job {
    reduction *r;
    worker *workers; /* owned: one for each thread */
    int nthreads;
    int as_program; /* see pieces.h */
    int (*run)(struct job *j, worker *w, npy_intp task);
    npy_intp ntasks;
    npy_intp next; /* atomic */
    int result;    /* atomic: of the first that was not 0 */
    /* Either indices of an axis, `per_task` each... */
    int axis;
    npy_intp per_task;
    /* ...or parts of the only run, and what comes of each. */
    npy_intp *starts; /* owned: ntasks + 1 */
    char *partial;    /* owned */
} job;

static int
run_range(job *j, worker *w, npy_intp task)
{
    npy_intp from = task * j->per_task;
    npy_intp to = task == j->ntasks - 1 ? j->r->shape[j->axis] : from + j->per_task;
    return reduce_range(w, j->axis, from, to);
}

static int
run_part(job *j, worker *w, npy_intp task)
{
    npy_intp position = j->starts[task], n = j->starts[task + 1] - position;
    char *partial = j->partial + task * ELEMENT_SIZE;
    w->pieces.until = position + n;
    return j->r->cut == PAIRWISE ? sum_pairwise(w, position, n, partial)
                                 : reduce_run(w, position, n, partial, 1);
}

/* Take one task after the other.  Needs no GIL. */
static void
run_tasks(void *argument, int thread)
{
    job *j = argument;
    worker *w = &j->workers[thread];
    npy_clear_floatstatus_barrier((char *)w);
    while (__atomic_load_n(&j->result, __ATOMIC_RELAXED) == 0) {
        npy_intp task = __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED);
        if (task >= j->ntasks) {
            break;
        }
        int result = j->run(j, w, task);
        if (result == 0) {
            result = npy_deferred_pieces_settle(&w->pieces);
        }
        if (result != 0) {
            __atomic_store_n(&j->result, result, __ATOMIC_RELAXED);
        }
    }
}

/* Where the parts of a pairwise sum start, when they are so long at most. */
static void
divide_sum(job *j, npy_intp position, npy_intp n, npy_intp longest)
{
    if (n <= longest) {
        j->starts[j->ntasks++] = position;
        return;
    }
    npy_intp half = first_half(j->r, n);
    divide_sum(j, position, half, longest);
    divide_sum(j, position + half, n - half, longest);
}

/* Add up the parts of a sum, as it was divided. */
static int
add_parts(job *j, npy_intp n, char *sum)
{
    _Alignas(16) char second[ELEMENT_SIZE];
    if (n <= SHARE) {
        memcpy(sum, j->partial + j->next++ * ELEMENT_SIZE, ELEMENT_SIZE);
        return 0;
    }
    npy_intp half = first_half(j->r, n);
    int result = add_parts(j, half, sum);
    if (result == 0) {
        result = add_parts(j, n - half, second);
    }
    return result != 0 ? result : add(&j->workers[0], sum, second);
}

/* Whether eager NumPy sums up the only run as a whole. */
static int
is_one_sum(const reduction *r)
{
    return r->cut == PAIRWISE && !(r->is_cast && r->shape[0] > r->buffersize);
}

/* From the parts to the result. */
static int
join_parts(job *j)
{
    const reduction *r = j->r;
    worker *w = &j->workers[0];
    char *into = PyArray_BYTES(r->result);
    int result = 0;
    if (is_one_sum(r)) {
        j->next = 0;
        result = add_parts(j, r->shape[0], j->partial);
        return result != 0 ? result : add(w, into, j->partial);
    }
    for (npy_intp i = 0; i < j->ntasks && result == 0; i++) {
        char *partial = j->partial + i * ELEMENT_SIZE;
        if (i == 0 && !r->has_initial) {
            memcpy(into, partial, element_size(w));
        }
        else {
            result = run_into_one(w, into, partial, 1);
        }
    }
    return result;
}

/*
 * Divide the only run.  A product of floats goes from left to right; a sum must start
 * with an addition.  Returns whether there is something to divide, or -1: exception.
 */
static int
divide_run(job *j)
{
    const reduction *r = j->r;
    npy_intp n = r->shape[0];
    if (r->cut == NOWHERE || n <= SHARE ||
        (r->cut == PAIRWISE ? !r->has_initial : !r->is_associative)) {
        return 0;
    }
    npy_intp share = is_one_sum(r) ? SHARE : r->cut == PAIRWISE ? r->buffersize : SHARE;
    /* A part has more than a third of what may be in it. */
    j->starts = PyMem_Malloc((n / share * 3 + 2) * sizeof(npy_intp));
    if (j->starts == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    if (is_one_sum(r)) {
        divide_sum(j, 0, n, share);
    }
    for (npy_intp start = j->ntasks == 0 ? 0 : n; start < n; start += share) {
        j->starts[j->ntasks++] = start;
    }
    j->starts[j->ntasks] = n;
    j->partial = PyMem_Malloc(j->ntasks * ELEMENT_SIZE);
    if (j->partial == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    j->run = run_part;
    return 1;
}

/* Divide an axis that the result has too: each element has one thread only. */
static void
divide_axis(job *j)
{
    const reduction *r = j->r;
    int axis = r->naxes - 1;
    while (axis > 0 && r->strides[axis] == 0) {
        axis--;
    }
    j->run = run_range;
    j->axis = axis;
    j->ntasks = 1;
    j->per_task = r->shape[axis];
    if (r->strides[axis] == 0) {
        return;
    }
    npy_intp least = MIN_SECTION / r->steps[axis] + 1;
    /* Where others are skipped, as few as there are threads. */
    npy_intp most =
            axis == r->naxes - 1 ? PyArray_SIZE(r->operand) / SHARE : j->nthreads;
    j->ntasks = PyArray_MAX(1, PyArray_MIN(most, r->shape[axis] / least));
    j->per_task = r->shape[axis] / j->ntasks;
}

static int
divide(job *j)
{
    if (j->nthreads > 1 && j->r->naxes == 1 && j->r->strides[0] == 0) {
        int divided = divide_run(j);
        if (divided != 0) {
            return divided < 0 ? -1 : 0;
        }
        j->nthreads = 1;
    }
    divide_axis(j);
    j->nthreads = (int)PyArray_MIN(j->nthreads, j->ntasks);
    return 0;
}

/* By which programs reduce themselves, or -1. */
static int
fold_instruction(const reduction *r)
{
    return r->strides[0] == 0                                    ? r->reducer.fold
           : r->strides[0] == r->context->descriptors[0]->elsize ? r->reducer.joining
                                                                 : -1;
}

/* Returns as npy_deferred_execute. */
static int
run_job(job *j, const npy_deferred_walk *walk, npy_deferred_evaluator *evaluators)
{
    int ready = 0;
    j->workers = PyMem_Malloc(j->nthreads * sizeof(worker));
    if (j->workers == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    int result = 0;
    while (ready < j->nthreads && result == 0) {
        worker *w = &j->workers[ready];
        w->r = j->r;
        result = npy_deferred_pieces_init(
                &w->pieces, walk, npy_deferred_evaluator_of(evaluators, ready),
                PyArray_DESCR(j->r->operand), j->r->context->descriptors[1],
                j->r->is_cast, j->as_program);
        w->pieces.wanted = j->r->wanted;
        ready++;
        int instruction = fold_instruction(j->r);
        if (result == 0 && instruction >= 0) {
            result = npy_deferred_fold_init(&w->pieces, instruction);
        }
    }
    if (result == 0) {
        int released = npy_deferred_gil_release(PyArray_SIZE(walk->out));
        npy_deferred_share(run_tasks, j, j->nthreads);
        npy_deferred_gil_take(released);
        result = j->result;
    }
    if (result == 0 && j->run == run_part) {
        result = join_parts(j);
        npy_deferred_pieces_settle(&j->workers[0].pieces);
    }
    for (int i = 0; i < ready; i++) {
        j->r->status |= j->workers[i].pieces.status;
        npy_deferred_pieces_clear(&j->workers[i].pieces);
    }
    PyMem_Free(j->workers);
    return result;
}

/* Give the result its first values, and go. */
static int
start_and_run(job *j, const npy_deferred_walk *walk, npy_deferred_evaluator *evaluators)
{
    reduction *r = j->r;
    int result = 0;
    j->next = j->result = r->status = 0;
    if (r->has_initial) {
        result = raw_array_assign_scalar(
                PyArray_NDIM(r->result), PyArray_DIMS(r->result),
                PyArray_DESCR(r->result), PyArray_BYTES(r->result),
                PyArray_STRIDES(r->result), r->context->descriptors[0], r->initial,
                NPY_UNSAFE_CASTING);
    }
    return result != 0 ? result : run_job(j, walk, evaluators);
}

/* ---- all together ---- */

static int
reduce_with(reduction *r, npy_deferred_plan *plan, npy_deferred_walk *walk)
{
    job j = {.r = r, .nthreads = npy_deferred_threads_for(plan, walk), .as_program = 1};
    int result = divide(&j);
    npy_deferred_evaluator *evaluators =
            result == 0 ? npy_deferred_evaluators_new(plan, walk, j.nthreads) : NULL;
    if (result == 0) {
        result = evaluators == NULL ? -1 : start_and_run(&j, walk, evaluators);
    }
    if (result == NPY_DEFERRED_RAISED) {
        j.as_program = 0;
        result = start_and_run(&j, walk, evaluators);
    }
    if (evaluators != NULL) {
        npy_deferred_evaluators_free(evaluators, j.nthreads);
    }
    PyMem_Free(j.starts);
    PyMem_Free(j.partial);
    return result;
}

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
        result = reduce_with(r, plan, walk);
    }
    if (result >= 0 && PyErr_Occurred()) {
        return -1;
    }
    return result == 0 && has_nan(r, PyArray_BYTES(r->result), PyArray_SIZE(r->result))
                   ? 1
                   : result;
}

/* The operand's errors, then those of the reduction: as if they came one by one. */
static int
report(reduction *r, npy_deferred_node *node, npy_deferred_errors *errors,
       int errormask)
{
    if (errors->n > 0 && npy_deferred_report(errors) < 0) {
        node->failed = PyErr_ExceptionMatches(PyExc_Exception) != 0;
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
    if (out == NULL && wheremask == NULL && can_reduce(&r, initial)) {
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
