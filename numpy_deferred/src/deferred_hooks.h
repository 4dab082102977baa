/*
 * The hooks: all that the patches to NumPy's own files call.
 *
 * Everything here is cheap when nothing is deferred: a test of a flag of the
 * array at hand, or of one global.  What a hook does when the test succeeds is
 * in the .c files beside this one; deferred.h is their private interface.
 *
 * Vocabulary (see numpy_deferred/README.md): a *deferred* array has a pending
 * node instead of values; to *calculate* it gives it values for good; an
 * *operand* is an array that a pending node reads; to *flush* some memory
 * calculates all pending nodes that depend on it.
 */
#ifndef NUMPY_DEFERRED_SRC_DEFERRED_HOOKS_H_
#define NUMPY_DEFERRED_SRC_DEFERRED_HOOKS_H_

#include "numpy/ndarraytypes.h"
#include "numpy/ufuncobject.h"

#include "array_method.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Private flags of arrays, beside the public ones in ndarraytypes.h.
 * TRACKED: the array has a usage record, as an operand or as the owner of
 * memory that pending nodes read.  EXPOSED: the address of the memory that
 * this array owns is known to code that NumPy cannot see, for good.
 */
#define NPY_ARRAY_DEFERRED_TRACKED 0x00800000
#define NPY_ARRAY_DEFERRED_EXPOSED 0x01000000

/* Flags that a view must not take over from the array it views. */
#define NPY_DEFERRED_ALL_FLAGS                                    \
    (NPY_ARRAY_DEFERRED | NPY_ARRAY_DEFERRED_WASWRITEABLE |       \
     NPY_ARRAY_UPDATEIFCOPY_TARGET | NPY_ARRAY_DEFERRED_TRACKED | \
     NPY_ARRAY_DEFERRED_EXPOSED)

/* The number of pending nodes.  Written by node.c only, with the GIL held. */
extern NPY_NO_EXPORT npy_intp npy_deferred_npending;

/*
 * Nonzero when a ufunc call may have to be deferred whatever the error state:
 * some context has, or had, a state other than None.  Written by state.c.
 */
extern NPY_NO_EXPORT int npy_deferred_state_used;

/*
 * The error state that was read last, a capsule, borrowed from the context: that of
 * a ufunc call until other code runs.  Guarded by the GIL.
 */
extern NPY_NO_EXPORT PyObject *npy_deferred_errstate_read;

/* Adds what Python sees to `_multiarray_umath`.  Returns 0 or -1. */
NPY_NO_EXPORT int
npy_deferred_init(PyObject *module);

static inline int
npy_deferred_is(PyArrayObject *arr)
{
    return NPY_UNLIKELY((((PyArrayObject_fields *)arr)->flags & NPY_ARRAY_DEFERRED) !=
                        0);
}

/*
 * Give a deferred array its values.  Returns 0, or -1 with an exception set
 * and the array still deferred.  Needs the GIL.
 */
NPY_NO_EXPORT int
npy_deferred_calculate_node(PyArrayObject *arr);

static inline int
npy_deferred_calculate(PyArrayObject *arr)
{
    return npy_deferred_is(arr) ? npy_deferred_calculate_node(arr) : 0;
}

/* As npy_deferred_calculate, for an object that need not be an array. */
static inline int
npy_deferred_calculate_object(PyObject *obj)
{
    return (obj != NULL && PyArray_Check(obj))
                   ? npy_deferred_calculate((PyArrayObject *)obj)
                   : 0;
}

/* Calculate all pending arrays, newest first.  Returns 0 or -1. */
NPY_NO_EXPORT int
npy_deferred_calculate_all(void);

/*
 * Call before the error state changes: calculates all pending arrays, but those
 * that have raised before, here or at a reader, and those that other threads or
 * contexts wrote and that can raise.  These stay deferred and raise when they are
 * read.  Returns 0 or
 * -1.
 */
NPY_NO_EXPORT int
npy_deferred_before_errstate(void);

/*
 * Call before the memory, shape, strides, dtype or flags of an array change:
 * calculates the array itself and all that depends on its memory, and gives
 * the operand its WRITEABLE flag back.  Returns 0 or -1.  Needs the GIL.
 */
NPY_NO_EXPORT int
npy_deferred_flush_memory(PyArrayObject *arr);

static inline int
npy_deferred_before_write(PyArrayObject *arr)
{
    return NPY_UNLIKELY(npy_deferred_npending != 0) ? npy_deferred_flush_memory(arr)
                                                    : 0;
}

/*
 * Call before the address of an array's memory is handed to code that may
 * read or write it later without NumPy's knowledge: as before a write, and
 * expressions on that memory are not deferred any more.
 */
NPY_NO_EXPORT int
npy_deferred_expose(PyArrayObject *arr, int writeable);

/* For PyArray_FromArray: what `requirements` say the caller will do. */
static inline int
npy_deferred_from_array(PyArrayObject *arr, int requirements)
{
    if (requirements & (NPY_ARRAY_WRITEABLE | NPY_ARRAY_WRITEBACKIFCOPY)) {
        return npy_deferred_before_write(arr);
    }
    return npy_deferred_calculate(arr);
}

/*
 * The flags of a new view, from what its creator passed, which may be those
 * of an operand: the marks stay with the operand.
 */
static inline int
npy_deferred_view_flags(int flags)
{
    if (NPY_UNLIKELY(flags & NPY_DEFERRED_ALL_FLAGS)) {
        if (flags & NPY_ARRAY_DEFERRED_WASWRITEABLE) {
            flags |= NPY_ARRAY_WRITEABLE;
        }
        flags &= ~NPY_DEFERRED_ALL_FLAGS;
    }
    return flags;
}

/*
 * The value of `ndarray.flags`, as eager NumPy has it: an operand is as
 * writeable as it was, and of deferral nothing shows.
 */
static inline int
npy_deferred_visible_flags(PyArrayObject *arr)
{
    return npy_deferred_view_flags(((PyArrayObject_fields *)arr)->flags);
}

/*
 * For ndarray.flags, which shows the two marks as they are, and calculates
 * nothing: `flags[key]` where NumPy does not know the key, and the text of a
 * flags object, with the marks when the array has one.  Steals `text`, which
 * may be NULL.  `arr` is NULL for the flags of a scalar.  Both return a new
 * reference, or NULL with an exception set.
 */
NPY_NO_EXPORT PyObject *
npy_deferred_flags_item(PyObject *arr, PyObject *key);
NPY_NO_EXPORT PyObject *
npy_deferred_flags_text(PyObject *arr, PyObject *text);

/* Called by array_dealloc for a deferred array: drops its node. */
NPY_NO_EXPORT void
npy_deferred_dealloc(PyArrayObject *arr);

/*
 * The ufunc machinery is about to run a loop: all types are resolved, op[nin]
 * is NULL or the `out` array.
 *
 * Returns 1 when the call is dealt with: op[nin] is a deferred array, or holds
 * the result.  Returns 0 when the caller must go on; no input is deferred then.
 * Returns -1 with an exception set.  Where a deferred operation is run by the
 * ufunc machinery itself, the error mask is set to 0, as it reports later.
 */
NPY_NO_EXPORT int
npy_deferred_capture(PyUFuncObject *ufunc, PyArrayMethodObject *method,
                     PyArray_Descr *const descrs[], PyArrayObject *op[],
                     NPY_CASTING casting, NPY_ORDER order, PyArrayObject *wheremask,
                     int *errmask);

/* Whether npy_deferred_capture may have anything to do. */
static inline int
npy_deferred_may_capture(int errmask)
{
    return NPY_UNLIKELY(npy_deferred_npending != 0 || npy_deferred_state_used ||
                        errmask == 0);
}

/*
 * Take a deferred array as the `out=` of an elementwise call of one result, whose
 * capture gives it the values it must have, if any.  Returns whether it is one, and
 * `*store` is a new reference then; any other must be writeable.
 */
static inline int
npy_deferred_take_out(const PyUFuncObject *ufunc, PyObject *obj, PyArrayObject **store)
{
    if (ufunc->nout != 1 || ufunc->core_enabled || !PyArray_Check(obj) ||
        !npy_deferred_is((PyArrayObject *)obj)) {
        return 0;
    }
    Py_INCREF(obj);
    *store = (PyArrayObject *)obj;
    return 1;
}

/*
 * Eager NumPy would let the ufunc call that follows write into `temporary`, the
 * left-hand side then, which gives the result its layout.  Returns whether
 * deferral sees to that, so that nothing need be written.
 */
NPY_NO_EXPORT int
npy_deferred_elides(PyArrayObject *temporary);
/*
 * Whether it is all the same if `left` is such a temporary, a deferred one; to
 * find out whether it is takes longer than to defer the call.
 */
NPY_NO_EXPORT int
npy_deferred_elision_is_idle(PyObject *left, PyObject *right);

/*
 * For np.where of three arguments, before it looks at them.  Returns 1, and `*result`
 * is a new reference; 0 when the caller must go on; -1 with an exception set.
 */
NPY_NO_EXPORT int
npy_deferred_where(PyObject *condition, PyObject *x, PyObject *y, PyObject **result);
/*
 * For array[index] = value, before anything is asked of them, of a deferred array.
 * Returns 1 when done; 0 when the caller must go on; -1 with an exception set.
 */
NPY_NO_EXPORT int
npy_deferred_set_where(PyArrayObject *array, PyObject *index, PyObject *value);

/*
 * New reference to what ufunc.reduce and np.copyto are to have instead of the array
 * that PyArray_FromAny would calculate, when that is a deferred one; else NULL.
 */
static inline PyArrayObject *
npy_deferred_as_it_is(PyObject *obj)
{
    return PyArray_CheckExact(obj) && npy_deferred_is((PyArrayObject *)obj)
                   ? (PyArrayObject *)Py_NewRef(obj)
                   : NULL;
}

/* As that, of a mask that says where a deferred array is assigned to. */
static inline PyArrayObject *
npy_deferred_mask_as_it_is(PyObject *obj, PyArrayObject *dst)
{
    PyArrayObject *mask = npy_deferred_is(dst) ? npy_deferred_as_it_is(obj) : NULL;
    if (mask != NULL && PyArray_TYPE(mask) != NPY_BOOL) {
        Py_CLEAR(mask);
    }
    return mask;
}

/*
 * Reduce a deferred array without storing its values.  The arguments are those of
 * PyUFunc_ReduceWrapper, which also says what the result is.  Returns 1 when done;
 * 0 when the caller must go on (`operand` is not deferred any more), -1: exception.
 */
NPY_NO_EXPORT int
npy_deferred_reduce(PyArrayMethod_Context *context, PyArrayObject *operand,
                    PyArrayObject *out, PyArrayObject *wheremask,
                    const npy_bool *axis_flags, int keepdims, PyObject *initial,
                    npy_intp buffersize, int errormask, PyArrayObject **result);

/*
 * Assign a deferred `src` to `dst` without storing its values elsewhere.
 * Returns 1 when done, 0 when the caller must go on with the ordinary
 * assignment (`src` is not deferred any more), -1 with an exception set.
 */
NPY_NO_EXPORT int
npy_deferred_assign(PyArrayObject *dst, PyArrayObject *src, PyArrayObject *wheremask,
                    NPY_CASTING casting);

#ifdef __cplusplus
}
#endif

#endif /* NUMPY_DEFERRED_SRC_DEFERRED_HOOKS_H_ */
