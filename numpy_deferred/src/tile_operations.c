/*
 * What of NumPy's operations tile programs have: see tiles.h.
 *
 * An operation is known by its ufunc and by the type of the loop that it runs, which
 * also say what it can raise, and whether it rounds correctly.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "deferred.h"
#include "number.h"

NPY_NO_EXPORT npy_deferred_tile_type
npy_deferred_tile_type_of(const PyArray_Descr *descr)
{
    if (descr->type_num == NPY_DOUBLE) {
        return NPY_DEFERRED_TILE_DOUBLE;
    }
    if (descr->type_num == NPY_FLOAT) {
        return NPY_DEFERRED_TILE_FLOAT;
    }
    if (!PyTypeNum_ISINTEGER(descr->type_num)) {
        return NPY_DEFERRED_TILE_NONE;
    }
    return descr->elsize == 8   ? NPY_DEFERRED_TILE_INT64
           : descr->elsize == 4 ? NPY_DEFERRED_TILE_INT32
                                : NPY_DEFERRED_TILE_NONE;
}

/* What an operation takes. */
typedef enum {
    FLOATS = 1,
    SIGNED = 2,
    UNSIGNED = 4,
} operation_traits;
#define INTEGERS (SIGNED | UNSIGNED)

/* Whether eager NumPy's extremes of floats are the machine's, in all of its loops. */
#if defined(NPY_HAVE_SSE2) && !defined(NPY_DISABLE_OPTIMIZATION)
#    define EXTREMES (FLOATS | SIGNED)
#else
#    define EXTREMES SIGNED
#endif

typedef struct {
    PyObject *ufunc;
    int operation, traits;
} known_operation;

/* The one of these that is a ufunc, or NULL. */
static const known_operation *
find_operation(const known_operation known[], size_t n, const PyUFuncObject *ufunc)
{
    for (size_t i = 0; i < n; i++) {
        if (known[i].ufunc == (PyObject *)ufunc) {
            return &known[i];
        }
    }
    return NULL;
}
#define FIND(known, ufunc) \
    find_operation(known, sizeof(known) / sizeof(*(known)), ufunc)

/*
 * Ufuncs that NumPy's C code has no other name for; borrowed, immortal.  signbit is
 * none of them: it would tell which sign the NaNs have that a program has made.
 */
static struct {
    PyObject *fabs, *trunc, *isnan, *isinf, *isfinite, *logical_not;
    PyObject *signbit, *copysign, *sign, *fmax, *fmin, *logical_xor; /* in no program */
} others;

NPY_NO_EXPORT int
npy_deferred_tile_operations_init(PyObject *module)
{
    const struct {
        PyObject **ufunc;
        const char *name;
    } all[] = {
            {&others.fabs, "fabs"},         {&others.trunc, "trunc"},
            {&others.isnan, "isnan"},       {&others.isinf, "isinf"},
            {&others.isfinite, "isfinite"}, {&others.logical_not, "logical_not"},
            {&others.signbit, "signbit"},   {&others.copysign, "copysign"},
            {&others.sign, "sign"},         {&others.fmax, "fmax"},
            {&others.fmin, "fmin"},         {&others.logical_xor, "logical_xor"},
    };
    PyObject *names = PyModule_GetDict(module);
    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
        *all[i].ufunc = PyDict_GetItemString(names, all[i].name);
        if (*all[i].ufunc == NULL) {
            PyErr_Format(PyExc_ImportError, "NumPy has no ufunc %s", all[i].name);
            return -1;
        }
    }
    return 0;
}

/* Which operation a ufunc on numbers of this type is, or -1. */
static int
operation_of(const PyUFuncObject *ufunc, const PyArray_Descr *descr)
{
    const known_operation known[] = {
            {n_ops.add, NPY_DEFERRED_TILE_ADD, FLOATS | INTEGERS},
            {n_ops.subtract, NPY_DEFERRED_TILE_SUBTRACT, FLOATS | INTEGERS},
            {n_ops.multiply, NPY_DEFERRED_TILE_MULTIPLY, FLOATS | INTEGERS},
            {n_ops.true_divide, NPY_DEFERRED_TILE_DIVIDE, FLOATS},
            {n_ops.square, NPY_DEFERRED_TILE_SQUARE, FLOATS | INTEGERS},
            {n_ops.sqrt, NPY_DEFERRED_TILE_SQRT, FLOATS},
            {n_ops.positive, NPY_DEFERRED_TILE_POSITIVE, FLOATS | INTEGERS},
            {n_ops.negative, NPY_DEFERRED_TILE_NEGATIVE, FLOATS | INTEGERS},
            {n_ops.reciprocal, NPY_DEFERRED_TILE_RECIPROCAL, FLOATS},
            {n_ops.absolute, NPY_DEFERRED_TILE_ABSOLUTE, FLOATS | SIGNED},
            {others.fabs, NPY_DEFERRED_TILE_ABSOLUTE, FLOATS},
            {n_ops.floor, NPY_DEFERRED_TILE_FLOOR, FLOATS},
            {n_ops.ceil, NPY_DEFERRED_TILE_CEIL, FLOATS},
            {others.trunc, NPY_DEFERRED_TILE_TRUNC, FLOATS},
            {n_ops.rint, NPY_DEFERRED_TILE_RINT, FLOATS},
            {others.isnan, NPY_DEFERRED_TILE_IS_NAN, FLOATS},
            {others.isinf, NPY_DEFERRED_TILE_IS_INF, FLOATS},
            {others.isfinite, NPY_DEFERRED_TILE_IS_FINITE, FLOATS},
            {n_ops.bitwise_and, NPY_DEFERRED_TILE_AND, INTEGERS},
            {n_ops.bitwise_or, NPY_DEFERRED_TILE_OR, INTEGERS},
            {n_ops.bitwise_xor, NPY_DEFERRED_TILE_XOR, INTEGERS},
            {n_ops.invert, NPY_DEFERRED_TILE_INVERT, INTEGERS},
            {n_ops.left_shift, NPY_DEFERRED_TILE_SHIFT_LEFT, INTEGERS},
            {n_ops.right_shift, NPY_DEFERRED_TILE_SHIFT_RIGHT, INTEGERS},
            {n_ops.less, NPY_DEFERRED_TILE_LESS, FLOATS | SIGNED},
            {n_ops.less_equal, NPY_DEFERRED_TILE_LESS_EQUAL, FLOATS | SIGNED},
            {n_ops.greater, NPY_DEFERRED_TILE_GREATER, FLOATS | SIGNED},
            {n_ops.greater_equal, NPY_DEFERRED_TILE_GREATER_EQUAL, FLOATS | SIGNED},
            {n_ops.equal, NPY_DEFERRED_TILE_EQUAL, FLOATS | INTEGERS},
            {n_ops.not_equal, NPY_DEFERRED_TILE_NOT_EQUAL, FLOATS | INTEGERS},
            {n_ops.maximum, NPY_DEFERRED_TILE_LARGER, EXTREMES},
            {n_ops.minimum, NPY_DEFERRED_TILE_SMALLER, EXTREMES},
            {n_ops.clip, NPY_DEFERRED_TILE_RAISE, FLOATS | SIGNED},
    };
    const known_operation *found = FIND(known, ufunc);
    int has_sign = !PyTypeNum_ISUNSIGNED(descr->type_num);
    int needed = PyTypeNum_ISFLOAT(descr->type_num) ? FLOATS
                 : has_sign                         ? SIGNED
                                                    : UNSIGNED;
    if (found == NULL || !(found->traits & needed)) {
        return -1;
    }
    return found->operation == NPY_DEFERRED_TILE_SHIFT_RIGHT && !has_sign
                   ? NPY_DEFERRED_TILE_SHIFT_BITS_RIGHT
                   : found->operation;
}

/* Which operation a ufunc on complex numbers is, or -1. */
static int
complex_operation_of(const PyUFuncObject *ufunc)
{
    const known_operation known[] = {
            {n_ops.add, NPY_DEFERRED_TILE_ADD},
            {n_ops.subtract, NPY_DEFERRED_TILE_SUBTRACT},
            {n_ops.multiply, NPY_DEFERRED_TILE_COMPLEX_MULTIPLY},
            {n_ops.square, NPY_DEFERRED_TILE_COMPLEX_SQUARE},
            {n_ops.positive, NPY_DEFERRED_TILE_POSITIVE},
            {n_ops.negative, NPY_DEFERRED_TILE_NEGATIVE},
            {n_ops.conjugate, NPY_DEFERRED_TILE_CONJUGATE},
    };
    if (!(npy_deferred_tile_machine_traits() & NPY_DEFERRED_TILES_FUSE)) {
        return -1;
    }
    const known_operation *found = FIND(known, ufunc);
    return found == NULL ? -1 : found->operation;
}

/* Which operation a ufunc on booleans is, on masks, or -1. */
static int
truth_operation_of(const PyUFuncObject *ufunc)
{
    const known_operation known[] = {
            {n_ops.bitwise_and, NPY_DEFERRED_TILE_AND},
            {n_ops.bitwise_or, NPY_DEFERRED_TILE_OR},
            {n_ops.bitwise_xor, NPY_DEFERRED_TILE_XOR},
            {n_ops.invert, NPY_DEFERRED_TILE_INVERT},
            {n_ops.logical_and, NPY_DEFERRED_TILE_AND},
            {n_ops.logical_or, NPY_DEFERRED_TILE_OR},
            {n_ops.multiply, NPY_DEFERRED_TILE_AND},
            {n_ops.add, NPY_DEFERRED_TILE_OR},
            {n_ops.not_equal, NPY_DEFERRED_TILE_XOR},
            {others.logical_not, NPY_DEFERRED_TILE_INVERT},
    };
    const known_operation *found = FIND(known, ufunc);
    return found == NULL ? -1 : found->operation;
}

/* Of a call whose first operand has that type. */
static int
operation_for(const PyUFuncObject *ufunc, const PyArray_Descr *descr)
{
    return descr->type_num == NPY_BOOL            ? truth_operation_of(ufunc)
           : PyTypeNum_ISCOMPLEX(descr->type_num) ? complex_operation_of(ufunc)
           : PyTypeNum_ISNUMBER(descr->type_num)  ? operation_of(ufunc, descr)
                                                  : -1;
}

NPY_NO_EXPORT int
npy_deferred_tile_operation_of(const npy_deferred_node *node)
{
    return operation_for(node->ufunc, node->descrs[0]);
}

NPY_NO_EXPORT int
npy_deferred_is_exact(const PyUFuncObject *ufunc, const PyArray_Descr *descr)
{
    int operation = operation_for(ufunc, descr);
    return operation >= 0 && operation < NPY_DEFERRED_TILE_NEGATIVE &&
           npy_deferred_tile_type_of(descr) != NPY_DEFERRED_TILE_NONE;
}

NPY_NO_EXPORT int
npy_deferred_is_function(const npy_deferred_node *node)
{
    /* What no program has, or not of all types, though loops take little time. */
    const known_operation quick[] = {
            {others.signbit},     {others.copysign},    {others.sign},
            {others.fmax},        {others.fmin},        {n_ops.maximum},
            {n_ops.minimum},      {n_ops.logical_and},  {n_ops.logical_or},
            {others.logical_xor}, {others.logical_not}, {n_ops.less},
            {n_ops.less_equal},   {n_ops.greater},      {n_ops.greater_equal},
            {n_ops.equal},        {n_ops.not_equal},    {n_ops.clip},
            {n_ops.multiply},     {n_ops.square},       {n_ops.reciprocal},
    };
    return npy_deferred_tile_operation_of(node) < 0 &&
           !npy_deferred_is_where(node->ufunc) && FIND(quick, node->ufunc) == NULL;
}

/* Whether an operation on floats, or complex ones, only looks at them or moves them. */
static int
calculates_nothing(int operation)
{
    switch (operation) {
        case NPY_DEFERRED_TILE_LESS:
        case NPY_DEFERRED_TILE_LESS_EQUAL:
        case NPY_DEFERRED_TILE_GREATER:
        case NPY_DEFERRED_TILE_GREATER_EQUAL:
        case NPY_DEFERRED_TILE_EQUAL:
        case NPY_DEFERRED_TILE_NOT_EQUAL:
        case NPY_DEFERRED_TILE_POSITIVE:
        case NPY_DEFERRED_TILE_NEGATIVE:
        case NPY_DEFERRED_TILE_ABSOLUTE:
        case NPY_DEFERRED_TILE_CONJUGATE:
        case NPY_DEFERRED_TILE_IS_NAN:
        case NPY_DEFERRED_TILE_IS_INF:
        case NPY_DEFERRED_TILE_IS_FINITE:
            return 1;
        default:
            return 0;
    }
}

static int
raises_nothing(const npy_deferred_node *node)
{
    int operation = npy_deferred_tile_operation_of(node);
    int type_num = node->descrs[0]->type_num;
    return npy_deferred_is_where(node->ufunc) ||
           (operation >= 0 &&
            (PyTypeNum_ISBOOL(type_num) || PyTypeNum_ISINTEGER(type_num) ||
             calculates_nothing(operation)));
}

/* Whether the node raises nothing, whatever becomes of its deferred operands. */
static int
is_quiet_alone(const npy_deferred_node *node)
{
    if (node->raised_nothing) {
        return 1;
    }
    int is_quiet = raises_nothing(node);
    for (int i = 0; i < node->nin && is_quiet; i++) {
        PyArrayObject *array = node->operands[i].array;
        is_quiet = array == NULL || PyArray_TYPE(array) == node->descrs[i]->type_num;
    }
    return is_quiet;
}

NPY_NO_EXPORT int
npy_deferred_is_quiet(npy_deferred_node *node)
{
    npy_deferred_expression expression;
    if (node->is_quiet || node->raised_nothing) {
        return 1;
    }
    if (!is_quiet_alone(node) || npy_deferred_collect(node, &expression) < 0) {
        return 0;
    }
    for (int i = 0; i < expression.nnodes; i++) {
        if (!is_quiet_alone(expression.nodes[i])) {
            return 0;
        }
    }
    /* It stays so, as do its operands, and this is asked of all of them. */
    for (int i = 0; i < expression.nnodes; i++) {
        expression.nodes[i]->is_quiet = 1;
    }
    return 1;
}
