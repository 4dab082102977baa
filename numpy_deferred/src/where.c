/*
 * np.where(condition, x, y), as an operation of an expression.
 *
 * NumPy has no ufunc for it, so here is one, which no program can see: (bool, T, T)
 * -> T for every T that can be captured.  Its one method has a loop for each size of
 * T, as all that it does is copy.  PyArray_Where offers the call before it looks at
 * its arguments; from there on it goes the way of a ufunc call (capture.c).
 *
 * What is not NumPy's way with ufuncs: the result lies where the iterator has it, and
 * neither the operation nor a cast for it reports floating-point errors, but the cast
 * of a scalar.  Scalars are cast here, and where that raises something, the call is
 * left to eager NumPy.  So it is where an argument is neither an array nor a scalar of
 * Python's or NumPy's own, as to convert it twice could be seen.
 *
 * Assignments where a mask is set, x[mask] = value and np.copyto(x, value, where=mask),
 * make of a deferred x what np.where(mask, value, x) is, in place.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"
#include "numpy/npy_math.h"

#include "abstractdtypes.h"
#include "array_assign.h"
#include "deferred.h"
#include "dtypemeta.h"
#include "extobj.h"
#include "lowlevel_strided_loops.h"
#include "profile.h"
#include "scalartypes.h"

#define NIN 3

/* Immortal. */
static PyUFuncObject *where_ufunc = NULL;
static PyArrayMethodObject *where_method = NULL;

/* ---- loops ---- */

typedef struct {
    npy_uint64 parts[2];
} bytes16;
typedef struct {
    npy_uint64 parts[4];
} bytes32;

/*
 * The condition is any byte but 0.  Elements are read as they lie, which may be less
 * aligned than an integer of their size.
 */
static inline const char *
either(char condition, const char *x, const char *y)
{
    /* Without a branch: conditions may be such that no processor foresees them. */
    npy_uintp mask = (npy_uintp)0 - (condition != 0);
    return (const char *)(((npy_uintp)x & mask) | ((npy_uintp)y & ~mask));
}

#define DEFINE_WHERE(type)                                                             \
    /* For strides that the compiler knows: it makes vectors. */                       \
    static inline void beside_##type(npy_intp n, const char *condition, const char *x, \
                                     npy_intp x_stride, const char *y,                 \
                                     npy_intp y_stride, char *out)                     \
    {                                                                                  \
        for (npy_intp i = 0; i < n; i++) {                                             \
            type a, b;                                                                 \
            memcpy(&a, x + i * x_stride, sizeof(type));                                \
            memcpy(&b, y + i * y_stride, sizeof(type));                                \
            a = condition[i] ? a : b;                                                  \
            memcpy(out + i * sizeof(type), &a, sizeof(type));                          \
        }                                                                              \
    }                                                                                  \
    static int where_##type(PyArrayMethod_Context *NPY_UNUSED(context),                \
                            char *const args[], const npy_intp dimensions[],           \
                            const npy_intp strides[], NpyAuxData *NPY_UNUSED(data))    \
    {                                                                                  \
        const char *condition = args[0], *x = args[1], *y = args[2];                   \
        char *out = args[3];                                                           \
        npy_intp n = dimensions[0], size = sizeof(type);                               \
        int known = size <= 8 && strides[0] == 1 && strides[3] == size;                \
        if (known && strides[1] == size && strides[2] == size) {                       \
            beside_##type(n, condition, x, size, y, size, out);                        \
            return 0;                                                                  \
        }                                                                              \
        if (known && strides[1] == size && strides[2] == 0) {                          \
            beside_##type(n, condition, x, size, y, 0, out);                           \
            return 0;                                                                  \
        }                                                                              \
        if (known && strides[1] == 0 && strides[2] == size) {                          \
            beside_##type(n, condition, x, 0, y, size, out);                           \
            return 0;                                                                  \
        }                                                                              \
        if (known && strides[1] == 0 && strides[2] == 0) {                             \
            beside_##type(n, condition, x, 0, y, 0, out);                              \
            return 0;                                                                  \
        }                                                                              \
        for (npy_intp i = 0; i < n; i++) {                                             \
            type element;                                                              \
            memcpy(&element, either(*condition, x, y), sizeof(type));                  \
            memcpy(out, &element, sizeof(type));                                       \
            condition += strides[0];                                                   \
            x += strides[1];                                                           \
            y += strides[2];                                                           \
            out += strides[3];                                                         \
        }                                                                              \
        return 0;                                                                      \
    }
DEFINE_WHERE(npy_uint8)
DEFINE_WHERE(npy_uint16)
DEFINE_WHERE(npy_uint32)
DEFINE_WHERE(npy_uint64)
DEFINE_WHERE(bytes16)
DEFINE_WHERE(bytes32)

static int
get_loop(PyArrayMethod_Context *context, int NPY_UNUSED(aligned),
         int NPY_UNUSED(move_references), const npy_intp *NPY_UNUSED(strides),
         PyArrayMethod_StridedLoop **loop, NpyAuxData **data,
         NPY_ARRAYMETHOD_FLAGS *flags)
{
    *data = NULL;
    *flags = NPY_METH_NO_FLOATINGPOINT_ERRORS;
    switch (context->descriptors[NIN]->elsize) {
        case 1:
            *loop = where_npy_uint8;
            return 0;
        case 2:
            *loop = where_npy_uint16;
            return 0;
        case 4:
            *loop = where_npy_uint32;
            return 0;
        case 8:
            *loop = where_npy_uint64;
            return 0;
        case 16:
            *loop = where_bytes16;
            return 0;
        case 32:
            *loop = where_bytes32;
            return 0;
        default:
            PyErr_SetString(PyExc_SystemError, "no loop of np.where for this size");
            return -1;
    }
}

NPY_NO_EXPORT int
npy_deferred_where_init(void)
{
    /* Nothing looks for it by types, so any will do. */
    PyArray_DTypeMeta *dtypes[NIN + 1] = {&PyArray_BoolDType, &PyArray_BoolDType,
                                          &PyArray_BoolDType, &PyArray_BoolDType};
    PyType_Slot slots[] = {{NPY_METH_get_loop, get_loop}, {0, NULL}};
    PyArrayMethod_Spec spec = {
            .name = "where",
            .nin = NIN,
            .nout = 1,
            .casting = NPY_NO_CASTING,
            .flags = NPY_METH_NO_FLOATINGPOINT_ERRORS,
            .dtypes = dtypes,
            .slots = slots,
    };
    PyBoundArrayMethodObject *bound = PyArrayMethod_FromSpec_int(&spec, 1);
    if (bound == NULL) {
        return -1;
    }
    where_method = (PyArrayMethodObject *)Py_NewRef(bound->method);
    Py_DECREF(bound);
    where_ufunc = (PyUFuncObject *)PyUFunc_FromFuncAndData(
            NULL, NULL, NULL, 0, NIN, 1, PyUFunc_None, "where", NULL, 0);
    return where_ufunc == NULL ? -1 : 0;
}

NPY_NO_EXPORT int
npy_deferred_is_where(const PyUFuncObject *ufunc)
{
    return ufunc == where_ufunc;
}

/* ---- calls ---- */

typedef struct {
    PyArrayObject *op[NIN + 1];     /* owned */
    PyArray_Descr *descrs[NIN + 1]; /* owned */
} where_call;

static void
clear(where_call *call)
{
    for (int i = 0; i <= NIN; i++) {
        Py_XDECREF(call->op[i]);
        Py_XDECREF(call->descrs[i]);
    }
}

static int
is_deferred(PyObject *obj)
{
    return PyArray_Check(obj) && npy_deferred_is((PyArrayObject *)obj);
}

/* What calls are run at once for; npy_deferred_where and its parts return 0 then. */
static int
leave(npy_deferred_at_once reason)
{
    npy_deferred_profile_at_once(reason, where_ufunc);
    return 0;
}

static int
is_scalar(PyObject *obj)
{
    return PyFloat_CheckExact(obj) || PyLong_CheckExact(obj) || PyBool_Check(obj) ||
           PyComplex_CheckExact(obj) || is_anyscalar_exact(obj);
}

/* Returns 1; 0 when eager NumPy is to have the call; -1 with an exception set. */
static int
convert(PyObject *obj, PyArrayObject **array)
{
    if (PyArray_CheckExact(obj)) {
        *array = (PyArrayObject *)Py_NewRef(obj);
    }
    else if (PyArray_Check(obj)) {
        return leave(NPY_DEFERRED_AT_ONCE_SUBCLASS);
    }
    else if (is_scalar(obj)) {
        *array = (PyArrayObject *)PyArray_FROM_O(obj);
        if (*array == NULL) {
            return -1;
        }
    }
    else {
        return leave(NPY_DEFERRED_AT_ONCE_TYPES);
    }
    return PyTypeNum_ISNUMBER(PyArray_TYPE(*array)) ? 1
                                                    : leave(NPY_DEFERRED_AT_ONCE_TYPES);
}

/* Cast a 0-d array.  Returns as convert() does: 0 where something was raised. */
static int
cast_scalar(PyArrayObject **scalar, PyArray_Descr *descr)
{
    PyArrayObject *from = *scalar;
    NPY_cast_info cast;
    NPY_ARRAYMETHOD_FLAGS flags;
    if (PyArray_NDIM(from) != 0 || PyArray_DESCR(from) == descr) {
        return 1;
    }
    if (PyArray_GetDTypeTransferFunction(IsUintAligned(from), 0, 0, PyArray_DESCR(from),
                                         descr, 0, &cast, &flags) != NPY_SUCCEED) {
        return -1;
    }
    Py_INCREF(descr);
    PyArrayObject *to = (PyArrayObject *)PyArray_NewFromDescr(
            &PyArray_Type, descr, 0, NULL, NULL, NULL, 0, NULL);
    int result = -1;
    if (to != NULL) {
        char *data[2] = {PyArray_BYTES(from), PyArray_BYTES(to)};
        npy_intp one = 1, strides[2] = {0, 0};
        npy_clear_floatstatus_barrier((char *)data);
        result = cast.func(&cast.context, data, &one, strides, cast.auxdata);
        if (result == 0) {
            result = npy_get_floatstatus_barrier((char *)data) == 0;
        }
        Py_SETREF(*scalar, to);
    }
    NPY_cast_info_xfree(&cast);
    return result;
}

/* Fill `call`.  Returns as convert() does. */
static int
prepare(where_call *call, PyObject *const given[])
{
    for (int i = 0; i < NIN; i++) {
        int converted = convert(given[i], &call->op[i]);
        if (converted <= 0) {
            return converted;
        }
    }
    npy_mark_tmp_array_if_pyscalar(given[1], call->op[1], NULL);
    npy_mark_tmp_array_if_pyscalar(given[2], call->op[2], NULL);
    call->descrs[0] = PyArray_DescrFromType(NPY_BOOL);
    PyArray_Descr *common = PyArray_ResultType(2, &call->op[1], 0, NULL);
    if (common == NULL) {
        return -1;
    }
    for (int i = 1; i <= NIN; i++) {
        call->descrs[i] = (PyArray_Descr *)Py_NewRef(common);
    }
    Py_DECREF(common);
    if (!npy_deferred_is_builtin(common)) {
        return leave(NPY_DEFERRED_AT_ONCE_TYPES); /* metadata, for instance */
    }
    for (int i = 0; i < NIN; i++) {
        int cast = cast_scalar(&call->op[i], call->descrs[i]);
        if (cast <= 0) {
            return cast < 0 ? -1 : leave(NPY_DEFERRED_AT_ONCE_TYPES);
        }
    }
    return 1;
}

/* Whether the call may have to do with deferral, or -1 with an exception set. */
static int
is_wanted(PyObject *const given[], int errmask)
{
    if (!npy_deferred_may_capture(errmask)) {
        return 0;
    }
    for (int i = 0; i < NIN; i++) {
        if (is_deferred(given[i])) {
            return 1;
        }
    }
    return npy_deferred_enabled(errmask);
}

NPY_NO_EXPORT int
npy_deferred_where(PyObject *condition, PyObject *x, PyObject *y, PyObject **result)
{
    PyObject *const given[NIN] = {condition, x, y};
    where_call call = {{NULL}, {NULL}};
    int buffersize, errmask;
    if (_get_bufsize_errmask(&buffersize, &errmask) < 0) {
        return -1;
    }
    int captured = is_wanted(given, errmask);
    if (captured > 0) {
        captured = prepare(&call, given);
    }
    if (captured > 0) {
        captured =
                npy_deferred_capture(where_ufunc, where_method, call.descrs, call.op,
                                     NPY_UNSAFE_CASTING, NPY_KEEPORDER, NULL, &errmask);
    }
    if (captured > 0) {
        *result = Py_NewRef(call.op[NIN]);
    }
    clear(&call);
    return captured;
}

/* ---- assignments where a mask is set ---- */

/* Whether it is a plain array of the type. */
static int
is_plain(PyArrayObject *array, PyArray_Descr *descr)
{
    return PyArray_CheckExact(array) && PyArray_DESCR(array) == descr;
}

/* Whether a mask may say what of a deferred array is replaced. */
static int
can_assign_where(PyArrayObject *dst, PyArrayObject *mask)
{
    return npy_deferred_is(dst) && PyTypeNum_ISNUMBER(PyArray_TYPE(dst)) &&
           npy_deferred_is_builtin(PyArray_DESCR(dst)) && PyArray_CheckExact(mask) &&
           PyArray_TYPE(mask) == NPY_BOOL &&
           npy_deferred_is_builtin(PyArray_DESCR(mask)) &&
           (PyArray_FLAGS(dst) &
            (NPY_ARRAY_WRITEABLE | NPY_ARRAY_DEFERRED_WASWRITEABLE)) != 0;
}

NPY_NO_EXPORT int
npy_deferred_assign_where(PyArrayObject *dst, PyArrayObject *mask, PyArrayObject *src)
{
    PyArray_Descr *descr = PyArray_DESCR(dst);
    int buffersize, errmask;
    if (!can_assign_where(dst, mask) || !is_plain(src, descr)) {
        return 0;
    }
    if (_get_bufsize_errmask(&buffersize, &errmask) < 0) {
        return -1;
    }
    where_call call = {{mask, src, dst, dst},
                       {PyArray_DESCR(mask), descr, descr, descr}};
    for (int i = 0; i <= NIN; i++) {
        Py_INCREF(call.op[i]);
        Py_INCREF(call.descrs[i]);
    }
    int captured =
            npy_deferred_capture(where_ufunc, where_method, call.descrs, call.op,
                                 NPY_UNSAFE_CASTING, NPY_KEEPORDER, NULL, &errmask);
    clear(&call);
    return captured;
}

/* Whether it is one value, which NumPy converts before it looks at the mask. */
static int
is_value_for(PyArrayObject *array, PyObject *value)
{
    PyArrayObject *other = (PyArrayObject *)value;
    return is_scalar(value) ||
           (is_plain(other, PyArray_DESCR(array)) && PyArray_NDIM(other) == 0);
}

NPY_NO_EXPORT int
npy_deferred_set_where(PyArrayObject *array, PyObject *index, PyObject *value)
{
    PyArrayObject *mask = (PyArrayObject *)index;
    if (!PyArray_CheckExact(index) || !can_assign_where(array, mask) ||
        PyArray_NDIM(mask) == 0 || !PyArray_SAMESHAPE(mask, array) ||
        !is_value_for(array, value)) {
        return 0;
    }
    /* As NumPy converts it: errors are its own. */
    PyArray_Descr *descr = PyArray_DESCR(array);
    Py_INCREF(descr);
    PyArrayObject *scalar = (PyArrayObject *)PyArray_FromAny(value, descr, 0, 0,
                                                             NPY_ARRAY_FORCECAST, NULL);
    if (scalar == NULL) {
        return -1;
    }
    int result = npy_deferred_assign_where(array, mask, scalar);
    if (result == 0) {
        /* To go on would convert it once more, and warn once more. */
        result = npy_deferred_calculate(array) < 0 ||
                                 PyObject_SetItem((PyObject *)array, index,
                                                  (PyObject *)scalar) < 0
                         ? -1
                         : 1;
    }
    Py_DECREF(scalar);
    return result;
}
