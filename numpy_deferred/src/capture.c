/*
 * Capture: decide what becomes of a ufunc call, at the point where its types
 * are resolved and its loop is about to run.
 *
 * A call is captured (the result is a deferred array), or fused (it runs at
 * once, together with what its deferred inputs stand for), or declined (its
 * deferred inputs are calculated, and eager NumPy goes on).  Errors of shape,
 * type and casting are left to eager NumPy, so they come at the call.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"
#include "numpy/npy_math.h"

#include "convert_datatype.h"
#include "ctors.h"
#include "deferred.h"
#include "dtypemeta.h"
#include "legacy_array_method.h"
#include "mem_overlap.h"
#include "number.h"
#include "profile.h"
#include "templ_common.h"
#include "ufunc_object.h"

extern PyObject *PyDataMem_DefaultHandler;

typedef struct {
    PyUFuncObject *ufunc;
    PyArrayMethodObject *method;
    PyArray_Descr *const *descrs;
    PyArrayObject **op;
    NPY_ORDER order;
    int errmask;
    /* What eager NumPy writes to, which gives the result its type and layout. */
    PyArrayObject *elided;
    npy_deferred_at_once *at_once; /* why it is not captured, for profiles */
    npy_uint32 *line;   /* where it is written, once that has been asked for; else 0 */
    PyObject *errstate; /* borrowed; NULL, to be looked up, when code may have run */
    int is_masked;      /* it has a `where=` that leaves nothing out */
} ufunc_call;

/* Returns 0. */
static int
because(const ufunc_call *call, npy_deferred_at_once reason)
{
    *call->at_once = reason;
    return 0;
}

/* What became of a call, beside 1, 0 and -1: look at it afresh. */
#define AGAIN 2

/* The node that npy_deferred_call_eagerly runs, for the hook; else NULL. */
static npy_deferred_node *eager_node = NULL;

/* Of the temporary that eager NumPy would write to next; no other node has it. */
static NPY_TLS npy_uint64 elided_serial = 0;

NPY_NO_EXPORT int
npy_deferred_elides(PyArrayObject *temporary)
{
    if (!npy_deferred_is(temporary)) {
        return 0;
    }
    elided_serial = npy_deferred_node_of(temporary)->serial;
    return 1;
}

NPY_NO_EXPORT int
npy_deferred_elision_is_idle(PyObject *left, PyObject *right)
{
    if (!PyArray_Check(left) || !npy_deferred_is((PyArrayObject *)left)) {
        return 0;
    }
    if (!PyArray_Check(right)) {
        /* With others an integer may become another type of the same meaning. */
        return PyFloat_CheckExact(right) ||
               (PyLong_CheckExact(right) && !PyArray_ISINTEGER((PyArrayObject *)left));
    }
    PyArrayObject *a = (PyArrayObject *)left, *b = (PyArrayObject *)right;
    return PyArray_TYPE(a) == PyArray_TYPE(b) && PyArray_NDIM(a) == PyArray_NDIM(b) &&
           PyArray_CompareLists(PyArray_DIMS(a), PyArray_DIMS(b), PyArray_NDIM(a)) &&
           PyArray_CompareLists(PyArray_STRIDES(a), PyArray_STRIDES(b),
                                PyArray_NDIM(a));
}

/* Leave the call to eager NumPy.  Returns 0, or -1 with an exception set. */
static int
decline(const ufunc_call *call)
{
    for (int i = 0; i < call->ufunc->nin; i++) {
        if (npy_deferred_calculate_because(NPY_DEFERRED_WHY_AT_ONCE, call->op[i]) < 0) {
            return -1;
        }
    }
    /* Other threads may have made new readers meanwhile. */
    for (int i = call->ufunc->nin; i < call->ufunc->nargs; i++) {
        if (call->op[i] != NULL && npy_deferred_before_write(call->op[i]) < 0) {
            return -1;
        }
    }
    return 0;
}

/* Whether eager NumPy would accept the casts of the inputs. */
static int
casts_are_valid(const ufunc_call *call, NPY_CASTING casting)
{
    if (call->method->resolve_descriptors == &wrapped_legacy_resolve_descriptors ||
        (call->method->flags & _NPY_METH_FORCE_CAST_INPUTS)) {
        return 1;
    }
    for (int i = 0; i < call->ufunc->nin; i++) {
        PyArray_Descr *given = PyArray_DESCR(call->op[i]);
        if (given != call->descrs[i] &&
            !PyArray_CanCastTypeTo(given, call->descrs[i], casting)) {
            return 0;
        }
    }
    return 1;
}

/*
 * Whether the loop raises an exception that depends on values: the power of
 * signed integers does for negative exponents.  It is run at once, so that the
 * exception comes where it did, but for an exponent that is known.
 */
static int
raises_by_value(const ufunc_call *call)
{
    if ((PyObject *)call->ufunc != n_ops.power ||
        !PyTypeNum_ISSIGNED(call->descrs[0]->type_num) ||
        !PyTypeNum_ISINTEGER(call->descrs[0]->type_num)) {
        return 0;
    }
    PyArrayObject *exponent = call->op[1];
    if (PyArray_NDIM(exponent) != 0 || !PyArray_ISINTEGER(exponent)) {
        return 1;
    }
    PyObject *value = PyArray_GETITEM(exponent, PyArray_BYTES(exponent));
    npy_longlong number = value == NULL ? -1 : PyLong_AsLongLong(value);
    Py_XDECREF(value);
    PyErr_Clear();
    return number < 0;
}

/* Whether the operation is one that plans can run. */
static int
is_plannable(const ufunc_call *call, NPY_CASTING casting)
{
    PyUFuncObject *ufunc = call->ufunc;
    if (ufunc->nout < 1 || ufunc->nout > 2 || ufunc->nin > NPY_DEFERRED_MAX_NIN ||
        ufunc->nin < 1 || ufunc->iter_flags != 0) {
        return because(call, NPY_DEFERRED_AT_ONCE_UFUNC);
    }
    because(call, NPY_DEFERRED_AT_ONCE_TYPES);
    if (call->method->flags & NPY_METH_REQUIRES_PYAPI) {
        return 0;
    }
    for (int i = 0; i < ufunc->nargs; i++) {
        if (ufunc->op_flags[i] != 0 || !PyTypeNum_ISNUMBER(call->descrs[i]->type_num)) {
            return 0;
        }
    }
    for (int i = 0; i < ufunc->nin; i++) {
        PyArray_Descr *given = PyArray_DESCR(call->op[i]);
        if (!PyArray_CheckExact(call->op[i])) {
            return because(call, NPY_DEFERRED_AT_ONCE_SUBCLASS);
        }
        if (!PyTypeNum_ISNUMBER(given->type_num) ||
            npy_deferred_drops_imaginary(given, call->descrs[i])) {
            return 0;
        }
    }
    return casts_are_valid(call, casting) && !raises_by_value(call);
}

/* Whether nobody can change the input before it is read. */
static int
can_wait(const ufunc_call *call, PyArrayObject *array)
{
    PyArrayObject *owner = npy_deferred_memory_owner(array);
    if (owner == NULL || PyArray_CHKFLAGS(owner, NPY_ARRAY_DEFERRED_EXPOSED)) {
        npy_deferred_stats.exposed++;
        return because(call, owner == NULL ? NPY_DEFERRED_AT_ONCE_FOREIGN
                                           : NPY_DEFERRED_AT_ONCE_EXPOSED);
    }
    because(call, NPY_DEFERRED_AT_ONCE_WRITEBACK);
    return !PyArray_CHKFLAGS(array, NPY_ARRAY_UPDATEIFCOPY_TARGET) &&
           !PyArray_CHKFLAGS(owner, NPY_ARRAY_UPDATEIFCOPY_TARGET);
}

/*
 * Whether deferral would keep alive, for a small part of it, large memory that
 * may be given back at once: only the view that is the input refers to it.
 */
static int
holds_too_much(PyArrayObject *array, npy_intp nbytes)
{
    PyArrayObject *owner = npy_deferred_memory_owner(array);
    return owner != array && Py_REFCNT(owner) == 1 &&
           PyArray_NBYTES(owner) > NPY_DEFERRED_MIN_HELD_BYTES &&
           PyArray_NBYTES(owner) / NPY_DEFERRED_MAX_HELD_RESULTS > nbytes;
}

static int
handler_is_default(void)
{
    if (!npy_deferred_other_handlers) {
        return 1;
    }
    PyObject *handler = PyDataMem_GetHandler();
    if (handler == NULL) {
        PyErr_Clear();
        return 0;
    }
    Py_DECREF(handler);
    return handler == PyDataMem_DefaultHandler;
}

static int
result_layout(const ufunc_call *call, npy_deferred_layout *layout)
{
    int may_be_trivial = call->ufunc->nout == 1 && !call->is_masked &&
                         !npy_deferred_is_where(call->ufunc);
    return npy_deferred_result_layout(call->ufunc->nin, call->op, call->descrs,
                                      call->order, may_be_trivial, layout);
}

/* Give the result the strides of a deferred array of the same shape. */
static void
lay_out_as(npy_deferred_layout *layout, PyArrayObject *array)
{
    memcpy(layout->strides, PyArray_STRIDES(array), layout->ndim * sizeof(npy_intp));
    layout->contiguity =
            PyArray_FLAGS(array) & (NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_F_CONTIGUOUS);
}

/*
 * The bytes of an element, to judge by.  What is smaller than the deferred array that
 * it reads, as a mask, waits with that and may hold as much.
 */
static npy_intp
judged_elsize(const ufunc_call *call)
{
    npy_intp elsize = call->descrs[call->ufunc->nin]->elsize;
    for (int i = 0; i < call->ufunc->nin; i++) {
        if (npy_deferred_is(call->op[i])) {
            elsize = PyArray_MAX(elsize, PyArray_ITEMSIZE(call->op[i]));
        }
    }
    return elsize;
}

/* Whether that many elements are too few to be deferred, or too many to count. */
static int
is_too_small(const ufunc_call *call, npy_intp size)
{
    npy_intp nbytes;
    /* What two outputs take longer to defer pays for results of twice the size. */
    return npy_mul_sizes_with_overflow(&nbytes, size, judged_elsize(call)) ||
           nbytes >> (call->ufunc->nout - 1) < npy_deferred_min_bytes;
}

/*
 * Whether smaller results of this line are read as they are, which gains nothing where
 * all inputs have their shape; eager NumPy buffers others, and takes longer.
 */
static int
is_read_alone(const ufunc_call *call, npy_intp size)
{
    if (!npy_deferred_habits_are_kept || call->ufunc->nout != 1 ||
        size > NPY_DEFERRED_HABIT_BYTES / call->descrs[call->ufunc->nin]->elsize) {
        return 0;
    }
    *call->line = npy_deferred_line_here();
    return npy_deferred_line_is_read_alone(*call->line);
}

/*
 * Of a new result, whose inputs have values, how many elements it has: -1 where that is
 * not seen before its layout is known.  That and what else is asked of a call cost
 * more.
 */
static npy_intp
soon_known_size(const ufunc_call *call)
{
    const PyUFuncObject *ufunc = call->ufunc;
    PyArrayObject *first = NULL;
    for (int i = ufunc->nin; i < ufunc->nargs; i++) {
        if (call->op[i] != NULL) {
            return -1;
        }
    }
    for (int i = 0; i < ufunc->nin; i++) {
        PyArrayObject *array = call->op[i];
        if (PyArray_NDIM(array) == 0) {
            continue;
        }
        if (first == NULL) {
            first = array;
        }
        else if (!PyArray_SAMESHAPE(first, array)) {
            return -1; /* broadcast, to more than either has */
        }
    }
    return ufunc->nout > 0 ? PyArray_SIZE(first) : -1;
}

/* The guard for the result when it may be deferred, else NULL. */
static void *
result_guard(const ufunc_call *call, const npy_deferred_layout *layout)
{
    if (is_too_small(call, layout->size)) {
        because(call, NPY_DEFERRED_AT_ONCE_SMALL);
        return NULL;
    }
    npy_intp nbytes = layout->size * call->descrs[call->ufunc->nin]->elsize;
    if (npy_deferred_neighbours_came && npy_deferred_look_at_neighbours() < 0) {
        PyErr_Clear();
        because(call, NPY_DEFERRED_AT_ONCE_PROTECTED);
        return NULL;
    }
    if (nbytes < npy_deferred_min_protected_bytes) {
        because(call, NPY_DEFERRED_AT_ONCE_PROTECTED);
        return NULL;
    }
    for (int i = 0; i < call->ufunc->nin; i++) {
        if (PyArray_NDIM(call->op[i]) == 0) {
            continue;
        }
        if (!can_wait(call, call->op[i])) {
            return NULL;
        }
        if (holds_too_much(call->op[i], nbytes)) {
            because(call, NPY_DEFERRED_AT_ONCE_VIEW);
            return NULL;
        }
    }
    if (!handler_is_default()) {
        because(call, NPY_DEFERRED_AT_ONCE_HANDLER);
        return NULL;
    }
    because(call, NPY_DEFERRED_AT_ONCE_ADDRESSES);
    return npy_deferred_guard_new(nbytes);
}

static PyArrayObject *
new_array(const ufunc_call *call, const npy_deferred_layout *layout, int output,
          void *data)
{
    /* The type that an elided array has may be another of the same meaning. */
    PyArray_Descr *descr = call->elided != NULL
                                   ? PyArray_DESCR(call->elided)
                                   : call->descrs[call->ufunc->nin + output];
    if (data != NULL) { /* a guard, of whole pages */
        return npy_deferred_array_new(
                descr, layout->ndim, layout->dims, layout->strides, data,
                NPY_ARRAY_WRITEABLE | NPY_ARRAY_ALIGNED, layout->contiguity);
    }
    Py_INCREF(descr);
    return (PyArrayObject *)PyArray_NewFromDescr_int(
            &PyArray_Type, descr, layout->ndim, layout->dims, layout->strides, NULL, 0,
            NULL, NULL, _NPY_ARRAY_ENSURE_DTYPE_IDENTITY);
}

/*
 * The call's node, within the bounds of an expression, and of the memory that
 * a pending result of `nbytes` may hold.  Returns 0; 1 when that took a
 * calculation, after which nothing known about the operands need hold any
 * more, as handlers and other threads may have run; -1: exception set.
 */
static int
new_node(const ufunc_call *call, npy_intp nbytes, npy_deferred_node **node)
{
    /* Neither np.where nor its casts report anything. */
    int errmask = npy_deferred_is_where(call->ufunc) ? 0 : call->errmask;
    *node = npy_deferred_node_new(call->ufunc, call->method, call->descrs, call->op,
                                  call->order, errmask, call->errstate);
    if (*node == NULL) {
        return -1;
    }
    (*node)->line = *call->line != 0 ? *call->line : npy_deferred_line_here();
    int result = npy_deferred_limit_expression(*node);
    if (result == 0) {
        result = npy_deferred_limit_memory(*node, nbytes);
    }
    if (result != 0) {
        npy_deferred_node_decref(*node);
    }
    return result;
}

/* The array that is pending from here on.  Steals node and guard.  NULL: exception. */
static PyArrayObject *
pending_array(const ufunc_call *call, const npy_deferred_layout *layout, int output,
              npy_deferred_node *node, void *guard)
{
    PyArrayObject *array = new_array(call, layout, output, guard);
    if (array == NULL || npy_deferred_node_attach(node, array) < 0) {
        Py_XDECREF(array);
        npy_deferred_guard_drop(guard);
        npy_deferred_node_decref(node);
        return NULL;
    }
    return array;
}

/* op[nin] becomes a deferred array.  Steals the guard.  Returns 1, -1, or AGAIN. */
static int
capture(const ufunc_call *call, const npy_deferred_layout *layout, void *guard)
{
    npy_deferred_node *node;
    int limited = new_node(call, layout->size * judged_elsize(call), &node);
    if (limited != 0) {
        npy_deferred_guard_drop(guard);
        return limited < 0 ? -1 : AGAIN;
    }
    for (int i = 0; call->elided != NULL && i < node->nin; i++) {
        node->rewrites |= (call->op[i] == call->elided) << i;
    }
    PyArrayObject *array = pending_array(call, layout, 0, node, guard);
    if (array == NULL) {
        return -1;
    }
    npy_deferred_guard_watch();
    if (npy_deferred_watch_total_memory() < 0) {
        Py_DECREF(array);
        return -1;
    }
    call->op[call->ufunc->nin] = array;
    return 1;
}

/* As the layout of the first output, of the second one. */
static npy_deferred_layout
second_layout(const ufunc_call *call, const npy_deferred_layout *first)
{
    PyArray_Descr *const *descrs = &call->descrs[call->ufunc->nin];
    npy_deferred_layout second = *first;
    for (int i = 0; i < first->ndim; i++) {
        second.strides[i] = first->strides[i] / descrs[0]->elsize * descrs[1]->elsize;
    }
    return second;
}

/* The nodes of a call with two outputs; as new_node. */
static int
new_twins(const ufunc_call *call, npy_intp nbytes, npy_deferred_node *nodes[2])
{
    int limited = new_node(call, nbytes, &nodes[0]);
    if (limited != 0) {
        return limited;
    }
    limited = new_node(call, nbytes, &nodes[1]);
    if (limited != 0) {
        npy_deferred_node_decref(nodes[0]);
        return limited;
    }
    nodes[1]->output = 1;
    nodes[0]->twin = nodes[1];
    nodes[1]->twin = nodes[0];
    return 0;
}

/*
 * Both outputs of a call become deferred arrays.  Steals the guard of the first one.
 * Returns 1, -1, or AGAIN; 0 where there is none for the second.
 */
static int
capture_twins(const ufunc_call *call, const npy_deferred_layout *layout, void *guard)
{
    int nin = call->ufunc->nin;
    npy_deferred_layout second = second_layout(call, layout);
    npy_deferred_node *nodes[2];
    void *second_guard =
            npy_deferred_guard_new(layout->size * call->descrs[nin + 1]->elsize);
    if (second_guard == NULL) {
        npy_deferred_guard_drop(guard);
        return because(call, NPY_DEFERRED_AT_ONCE_ADDRESSES);
    }
    int limited = new_twins(call, layout->size * call->descrs[nin]->elsize, nodes);
    if (limited != 0) {
        npy_deferred_guard_drop(guard);
        npy_deferred_guard_drop(second_guard);
        return limited < 0 ? -1 : AGAIN;
    }
    PyArrayObject *array = pending_array(call, layout, 0, nodes[0], guard);
    if (array == NULL) {
        npy_deferred_node_decref(nodes[1]);
        npy_deferred_guard_drop(second_guard);
        return -1;
    }
    PyArrayObject *twin = pending_array(call, &second, 1, nodes[1], second_guard);
    if (twin == NULL) {
        Py_DECREF(array);
        return -1;
    }
    npy_deferred_guard_watch();
    if (npy_deferred_watch_total_memory() < 0) {
        Py_DECREF(array);
        Py_DECREF(twin);
        return -1;
    }
    call->op[nin] = array;
    call->op[nin + 1] = twin;
    return 1;
}

/* Run the call now, with its deferred inputs.  Returns 1, -1, or AGAIN. */
static int
fuse(const ufunc_call *call, PyArrayObject *out, npy_deferred_target target)
{
    npy_deferred_node *node;
    ufunc_call now = *call;
    now.errstate = NULL; /* to ask whether it may be fused may have run code */
    int limited = new_node(&now, NPY_MAX_INTP, &node);
    if (limited != 0) {
        return limited < 0 ? -1 : AGAIN;
    }
    npy_deferred_because = target == NPY_DEFERRED_OUT ? NPY_DEFERRED_WHY_OUT
                                                      : NPY_DEFERRED_WHY_AT_ONCE;
    int result = npy_deferred_evaluate_into(node, out, target);
    npy_deferred_because = NPY_DEFERRED_WHY_READ;
    npy_deferred_node_decref(node);
    return result < 0 ? -1 : 1;
}

/*
 * Whether eager NumPy has the result in a copy of `out`, because of how an input
 * overlaps it, and reports errors of the cast back apart.
 */
static int
casts_copy_back(PyArrayObject *input, PyArray_Descr *result, PyArrayObject *out)
{
    int ndim = PyArray_NDIM(out);
    return result->type_num != PyArray_TYPE(out) &&
           solve_may_share_memory(input, out, 1) != 0 &&
           !(PyArray_BYTES(input) == PyArray_BYTES(out) &&
             PyArray_DESCR(input) == PyArray_DESCR(out) &&
             PyArray_NDIM(input) == ndim &&
             PyArray_CompareLists(PyArray_DIMS(input), PyArray_DIMS(out), ndim) &&
             PyArray_CompareLists(PyArray_STRIDES(input), PyArray_STRIDES(out), ndim));
}

/* As `fuse`, into the call's `out=`; 0 when that would not be the same. */
static int
fuse_into_out(const ufunc_call *call, const npy_deferred_layout *layout,
              NPY_CASTING casting)
{
    PyArrayObject *out = call->op[call->ufunc->nin];
    PyArray_Descr *result = call->descrs[call->ufunc->nin];
    if (PyArray_NDIM(out) != layout->ndim ||
        !PyArray_CompareLists(PyArray_DIMS(out), layout->dims, layout->ndim) ||
        !PyTypeNum_ISNUMBER(PyArray_TYPE(out)) ||
        npy_deferred_drops_imaginary(result, PyArray_DESCR(out)) ||
        !PyArray_CanCastTypeTo(result, PyArray_DESCR(out), casting)) {
        return 0;
    }
    for (int i = 0; i < call->ufunc->nin; i++) {
        if (npy_deferred_is(call->op[i])
                    ? !npy_deferred_can_fuse_out(npy_deferred_node_of(call->op[i]))
                    : casts_copy_back(call->op[i], result, out)) {
            return 0;
        }
    }
    return fuse(call, out, NPY_DEFERRED_OUT);
}

/* Run the call now into a new array.  Returns 1, -1, or AGAIN. */
static int
fuse_into_new(const ufunc_call *call, const npy_deferred_layout *layout)
{
    PyArrayObject *result = new_array(call, layout, 0, NULL);
    if (result == NULL) {
        return -1;
    }
    int fused = fuse(call, result, NPY_DEFERRED_FRESH);
    if (fused != 1) {
        Py_DECREF(result);
        return fused;
    }
    call->op[call->ufunc->nin] = result;
    return 1;
}

/* Leave a call with `out=` and nothing to fuse to eager NumPy.  Returns 0 or -1. */
static int
leave_out(const ufunc_call *call, PyArrayObject *wheremask)
{
    int enabled = npy_deferred_profiling ? npy_deferred_enabled(call->errmask) : 0;
    if (enabled > 0) {
        because(call, wheremask != NULL ? NPY_DEFERRED_AT_ONCE_WHERE
                                        : NPY_DEFERRED_AT_ONCE_OUT);
    }
    /* It may have been deferred when it was taken (npy_deferred_take_out). */
    return enabled < 0 ? -1 : npy_deferred_before_write(call->op[call->ufunc->nin]);
}

/* Whether neither the call nor what it is given can raise.  May run Python code. */
static int
cannot_raise(const ufunc_call *call)
{
    int raises = 0;
    if (call->errmask != 0) {
        npy_deferred_origin here = {NULL};
        npy_deferred_origin_set(&here);
        raises = npy_deferred_mask_may_raise(call->errmask,
                                             here.warnings[NPY_DEFERRED_FILTERS]);
        npy_deferred_origin_clear(&here);
    }
    for (int i = 0; i <= call->ufunc->nin && !raises; i++) {
        raises = npy_deferred_is(call->op[i]) &&
                 !npy_deferred_can_fuse_out(npy_deferred_node_of(call->op[i]));
    }
    return !raises;
}

/*
 * Whether `out=` is deferred, of the result's form, and read by the call or by pending
 * nodes: else its errors would not be told.
 */
static int
rewrites_operand(const ufunc_call *call, const npy_deferred_layout *layout)
{
    int nin = call->ufunc->nin;
    PyArrayObject *out = call->op[nin];
    int is_read = npy_deferred_find_usage(out) != NULL;
    for (int i = 0; i < nin; i++) {
        is_read |= call->op[i] == out;
    }
    return is_read && npy_deferred_is(out) &&
           npy_deferred_node_of(out)->computed == NULL &&
           PyArray_NDIM(out) == layout->ndim &&
           PyArray_CompareLists(PyArray_DIMS(out), layout->dims, layout->ndim) &&
           PyArray_EquivTypes(PyArray_DESCR(out), call->descrs[nin]);
}

/*
 * Capture a call whose `out=` is deferred.  The result is captured as any other, into
 * a new array; then the two exchange what they stand for, which cannot fail, and what
 * reads the `out=` reads the new array, which stands for what the `out=` was.  Returns
 * 1, -1, or AGAIN; 0 when the `out=` must be calculated first.
 */
static int
capture_in_place(const ufunc_call *call, NPY_CASTING casting, PyArrayObject *wheremask)
{
    int nin = call->ufunc->nin;
    PyArrayObject *out = call->op[nin];
    npy_deferred_layout layout;
    int enabled = wheremask == NULL ? npy_deferred_enabled(call->errmask) : 0;
    if (enabled <= 0) {
        return enabled;
    }
    if (!cannot_raise(call) || !is_plannable(call, casting) ||
        result_layout(call, &layout) < 0 || !rewrites_operand(call, &layout)) {
        return 0;
    }
    lay_out_as(&layout, out);
    void *guard = result_guard(call, &layout);
    if (guard == NULL) {
        return 0;
    }
    ufunc_call alike = *call;
    alike.elided = out;
    alike.errstate = NULL; /* cannot_raise() may have run code */
    int captured = capture(&alike, &layout, guard);
    if (captured != 1) {
        return captured;
    }
    PyArrayObject *result = call->op[nin];
    call->op[nin] = out;
    /* Where the memory limit has calculated one of them, calculating is the way on. */
    captured = npy_deferred_exchange(out, result);
    Py_DECREF(result);
    return captured;
}

/* Have the deferred `out=` captured, or calculated.  Returns 1, -1, or AGAIN. */
static int
settle_out(const ufunc_call *call, NPY_CASTING casting, PyArrayObject *wheremask)
{
    int result = capture_in_place(call, casting, wheremask);
    because(call, NPY_DEFERRED_AT_ONCE_NOT);
    if (result == 0) {
        result = PyArray_FailUnlessWriteable(call->op[call->ufunc->nin],
                                             "output array") < 0
                         ? -1
                         : AGAIN;
    }
    return result;
}

/* Whether a call with two outputs is given one of them, or both. */
static int
is_given_outputs(const ufunc_call *call)
{
    int nin = call->ufunc->nin;
    return call->ufunc->nout == 2 &&
           (call->op[nin] != NULL || call->op[nin + 1] != NULL);
}

/*
 * Whether a call with `where=` does as one without: that is a single true element, as
 * np._NoValue becomes one where NumPy's own functions pass it on.  Eager NumPy goes
 * another way then, with other strides, on which it casts what has not the loop's
 * types, results too, and reports what casts raise as the ufunc's.
 */
static int
is_everywhere(const ufunc_call *call, PyArrayObject *wheremask)
{
    const PyUFuncObject *ufunc = call->ufunc;
    for (int i = 0; i < ufunc->nargs; i++) {
        if (call->op[i] != NULL &&
            !PyArray_EquivTypes(PyArray_DESCR(call->op[i]), call->descrs[i])) {
            return 0;
        }
    }
    return PyArray_NDIM(wheremask) == 0 && !npy_deferred_is(wheremask) &&
           *(npy_bool *)PyArray_DATA(wheremask) &&
           npy_deferred_is_exact(ufunc, call->descrs[0]);
}

/* Returns as npy_deferred_capture, or AGAIN. */
static int
decide(const ufunc_call *call, NPY_CASTING casting, PyArrayObject *wheremask)
{
    PyUFuncObject *ufunc = call->ufunc;
    int any_deferred = 0, any_array = 0;
    int has_out = ufunc->nout == 1 && call->op[ufunc->nin] != NULL;
    if (has_out && npy_deferred_is(call->op[ufunc->nin])) {
        if (npy_deferred_wait()) {
            return AGAIN;
        }
        return settle_out(call, casting, wheremask);
    }
    for (int i = 0; i < ufunc->nin; i++) {
        any_deferred |= npy_deferred_is(call->op[i]);
        any_array |= PyArray_NDIM(call->op[i]) != 0;
    }
    if (!any_array) {
        return has_out ? leave_out(call, wheremask) : 0;
    }
    int enabled = has_out ? 0 : npy_deferred_enabled(call->errmask);
    if (enabled < 0) {
        return -1;
    }
    if (!enabled && !any_deferred) {
        return has_out ? leave_out(call, wheremask) : 0;
    }
    npy_intp size = any_deferred ? -1 : soon_known_size(call);
    if (size >= 0 && is_too_small(call, size)) {
        return because(call, NPY_DEFERRED_AT_ONCE_SMALL);
    }
    if (size >= 0 && is_read_alone(call, size)) {
        return because(call, NPY_DEFERRED_AT_ONCE_ALONE);
    }
    if (npy_deferred_wait()) {
        return AGAIN;
    }
    npy_deferred_layout layout;
    if (wheremask != NULL || is_given_outputs(call)) {
        because(call, wheremask != NULL ? NPY_DEFERRED_AT_ONCE_WHERE
                                        : NPY_DEFERRED_AT_ONCE_OUT);
        return decline(call);
    }
    if (!is_plannable(call, casting)) {
        return decline(call);
    }
    because(call, NPY_DEFERRED_AT_ONCE_NOT);
    if (result_layout(call, &layout) < 0) {
        return decline(call);
    }
    if (layout.size == 0) {
        because(call, NPY_DEFERRED_AT_ONCE_EMPTY);
        return decline(call);
    }
    if (call->elided != NULL) {
        lay_out_as(&layout, call->elided);
    }
    if (has_out) {
        because(call, NPY_DEFERRED_AT_ONCE_OUT);
        int result = fuse_into_out(call, &layout, casting);
        return result != 0 ? result : decline(call);
    }
    because(call, NPY_DEFERRED_AT_ONCE_OFF);
    void *guard = enabled ? result_guard(call, &layout) : NULL;
    if (guard != NULL) {
        because(call, NPY_DEFERRED_AT_ONCE_NOT);
        int captured = ufunc->nout == 1 ? capture(call, &layout, guard)
                                        : capture_twins(call, &layout, guard);
        if (captured != 0) {
            return captured;
        }
    }
    return !any_deferred      ? 0
           : ufunc->nout == 1 ? fuse_into_new(call, &layout)
                              : decline(call);
}

/*
 * Find the input that eager NumPy would write to.  It comes first then: the
 * operation is commutative when it does not already, and both types the same.
 */
static void
find_elided(ufunc_call *call)
{
    int is_operator = call->ufunc->nin <= 2 && call->ufunc->nout == 1;
    int nin = is_operator ? call->ufunc->nin : 0;
    for (int i = 0; i < nin && elided_serial != 0; i++) {
        PyArrayObject *array = call->op[i];
        if (npy_deferred_is(array) &&
            npy_deferred_node_of(array)->serial == elided_serial &&
            PyArray_EquivTypes(PyArray_DESCR(array), call->descrs[call->ufunc->nin])) {
            call->op[i] = call->op[0];
            call->op[0] = call->elided = array;
            break;
        }
    }
    elided_serial = 0;
}

NPY_NO_EXPORT int
npy_deferred_capture(PyUFuncObject *ufunc, PyArrayMethodObject *method,
                     PyArray_Descr *const descrs[], PyArrayObject *op[],
                     NPY_CASTING casting, NPY_ORDER order, PyArrayObject *wheremask,
                     int *errmask)
{
    if (eager_node != NULL) {
        eager_node = NULL;
        *errmask = 0;
        return 0;
    }
    npy_deferred_at_once at_once = NPY_DEFERRED_AT_ONCE_NOT;
    npy_uint32 line = 0;
    ufunc_call call = {.ufunc = ufunc,
                       .method = method,
                       .descrs = descrs,
                       .op = op,
                       .order = order,
                       .errmask = *errmask,
                       .at_once = &at_once,
                       .line = &line,
                       .errstate = npy_deferred_errstate_read};
    find_elided(&call);
    if (wheremask != NULL && is_everywhere(&call, wheremask)) {
        call.is_masked = 1;
        wheremask = NULL;
    }
    int result = AGAIN;
    while (result == AGAIN) {
        result = decide(&call, casting, wheremask);
        call.errstate = NULL;
    }
    if (result >= 0) {
        npy_deferred_profile_at_once(at_once, ufunc);
    }
    return result;
}

/* Whether eager NumPy looks at the floating-point status after the loop. */
static int
status_is_checked(npy_deferred_node *node, PyArrayObject *out)
{
    npy_intp strides[NPY_DEFERRED_MAX_NARGS];
    npy_deferred_runs runs;
    PyArrayMethod_Context context;
    PyArrayMethod_StridedLoop *loop;
    NpyAuxData *auxdata = NULL;
    NPY_ARRAYMETHOD_FLAGS flags = 0;
    NPY_context_init(&context, node->descrs);
    context.caller = (PyObject *)node->ufunc;
    context.method = node->method;
    if (npy_deferred_eager_strides(node, out, strides, &runs) < 0 ||
        node->method->get_strided_loop(&context, 1, 0, strides, &loop, &auxdata,
                                       &flags) < 0) {
        return -1;
    }
    NPY_AUXDATA_FREE(auxdata);
    return !(flags & NPY_METH_NO_FLOATINGPOINT_ERRORS);
}

NPY_NO_EXPORT int
npy_deferred_call_eagerly(npy_deferred_node *node, PyArrayObject *op[], int *status)
{
    /* The hook is only reached while something may be captured. */
    npy_deferred_npending++;
    eager_node = node;
    npy_clear_floatstatus_barrier((char *)&op);
    int result =
            PyUFunc_GenericFunctionInternal(node->ufunc, node->method, node->descrs, op,
                                            NPY_UNSAFE_CASTING, node->order, NULL);
    *status = npy_get_floatstatus_barrier((char *)&op);
    eager_node = NULL;
    npy_deferred_npending--;
    if (result == 0 && *status != 0) {
        PyArrayObject *out = node->ufunc->nout == 1 ? op[node->nin] : NULL;
        int checked = status_is_checked(node, out);
        if (checked < 0) {
            return -1;
        }
        *status = checked ? *status : 0;
    }
    return result;
}
