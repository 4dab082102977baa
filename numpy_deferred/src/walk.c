/*
 * Walks: how operands and result are gone through, and how eager NumPy would
 * have gone through those of a single operation.
 *
 * The loops of NumPy give the same bits only as long as they see the same kind
 * of strides: a contiguous float16 loop works in single precision, which of
 * two NaNs an addition keeps depends on the loop being vectorised, and so on.
 * So a plan may run an operation only where each of its operands is as
 * contiguous as eager NumPy would have made it.  `npy_deferred_eager_strides`
 * finds out by asking the iterator itself, on stand-ins for the arrays that
 * have no values yet; it follows `check_for_trivial_loop`,
 * `try_trivial_single_output_loop` and `execute_ufunc_loop` in ufunc_object.c.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE
#define NPY_ITERATOR_IMPLEMENTATION_CODE /* for what the iterator does not tell */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "convert_datatype.h"
#include "ctors.h"
#include "deferred.h"
#include "extobj.h"
#include "lowlevel_strided_loops.h"
#include "mem_overlap.h"
#include "nditer_impl.h"

/* ufunc_object.c's NPY_UFUNC_DEFAULT_INPUT_FLAGS and _OUTPUT_FLAGS. */
#define EAGER_INPUT_FLAGS \
    (NPY_ITER_READONLY | NPY_ITER_ALIGNED | NPY_ITER_OVERLAP_ASSUME_ELEMENTWISE)
#define EAGER_OUTPUT_FLAGS                                       \
    (NPY_ITER_WRITEONLY | NPY_ITER_ALIGNED | NPY_ITER_ALLOCATE | \
     NPY_ITER_NO_BROADCAST | NPY_ITER_NO_SUBTYPE |               \
     NPY_ITER_OVERLAP_ASSUME_ELEMENTWISE)

NPY_NO_EXPORT PyArrayObject *
npy_deferred_array_over(PyArrayObject *like, void *memory)
{
    return npy_deferred_array_new(
            PyArray_DESCR(like), PyArray_NDIM(like), PyArray_DIMS(like),
            PyArray_STRIDES(like), memory, NPY_ARRAY_WRITEABLE,
            PyArray_FLAGS(like) & (NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_F_CONTIGUOUS));
}

NPY_NO_EXPORT PyArrayObject *
npy_deferred_constant_array(npy_deferred_node *node, int i)
{
    Py_INCREF(node->descrs[i]);
    return (PyArrayObject *)PyArray_NewFromDescr_int(
            &PyArray_Type, node->descrs[i], 0, NULL, NULL, node->operands[i].constant,
            0, NULL, NULL, _NPY_ARRAY_ENSURE_DTYPE_IDENTITY);
}

NPY_NO_EXPORT npy_intp
npy_deferred_buffer_size(void)
{
    int size, errmask;
    if (_get_bufsize_errmask(&size, &errmask) < 0) {
        PyErr_Clear();
        return NPY_BUFSIZE;
    }
    return size;
}

/* A contiguous array of the loop's type, for what eager NumPy copies first. */
static PyArrayObject *
contiguous_stand_in(PyArrayObject *array, PyArray_Descr *descr, void *memory)
{
    Py_INCREF(descr);
    return (PyArrayObject *)PyArray_NewFromDescr_int(
            &PyArray_Type, descr, PyArray_NDIM(array), PyArray_DIMS(array), NULL,
            memory, 0, NULL, NULL, _NPY_ARRAY_ENSURE_DTYPE_IDENTITY);
}

NPY_NO_EXPORT int
npy_deferred_copied_by_eager(PyArrayObject *input, PyArray_Descr *descr,
                             npy_intp buffersize, int *trivial)
{
    if (!*trivial || npy_deferred_readable_in_place(input, descr)) {
        return 0;
    }
    *trivial = PyArray_NDIM(input) == 1 && PyArray_DIM(input, 0) <= buffersize;
    return *trivial;
}

/* The output of the node's call that another has: of the same layout, nowhere. */
static PyArrayObject *
twin_stand_in(npy_deferred_node *node, PyArrayObject *own)
{
    npy_intp strides[NPY_MAXDIMS];
    PyArray_Descr *descr = node->descrs[node->nin + 1 - node->output];
    for (int i = 0; i < PyArray_NDIM(own); i++) {
        strides[i] = PyArray_STRIDE(own, i) / PyArray_ITEMSIZE(own) * descr->elsize;
    }
    Py_INCREF(descr);
    return (PyArrayObject *)PyArray_NewFromDescr_int(
            &PyArray_Type, descr, PyArray_NDIM(own), PyArray_DIMS(own), strides,
            npy_deferred_nowhere(), NPY_ARRAY_WRITEABLE, NULL, NULL,
            _NPY_ARRAY_ENSURE_DTYPE_IDENTITY);
}

/*
 * Put arrays without values, and those that check_for_trivial_loop would
 * replace, by stand-ins.  Returns whether a trivial loop is still possible,
 * or -1 with an exception set; `op` holds new references either way.
 */
static int
stand_ins(npy_deferred_node *node, PyArrayObject *out, npy_intp buffersize,
          PyArrayObject *op[])
{
    int trivial = 1;
    void *nowhere = npy_deferred_nowhere();
    for (int i = 0; i < node->nin; i++) {
        PyArrayObject *array = node->operands[i].array;
        if (array == NULL) {
            op[i] = npy_deferred_constant_array(node, i);
        }
        else if (npy_deferred_is(array)) {
            op[i] = npy_deferred_array_over(array, nowhere);
        }
        else {
            Py_INCREF(array);
            op[i] = array;
        }
        if (op[i] == NULL) {
            return -1;
        }
        if (npy_deferred_copied_by_eager(op[i], node->descrs[i], buffersize,
                                         &trivial)) {
            Py_SETREF(op[i], contiguous_stand_in(op[i], node->descrs[i], nowhere));
            if (op[i] == NULL) {
                return -1;
            }
        }
    }
    Py_INCREF(out);
    op[node->nin + node->output] = out;
    if (node->ufunc->nout > 1) {
        PyArrayObject **other = &op[node->nin + 1 - node->output];
        *other = twin_stand_in(node, out);
        return *other == NULL ? -1 : 0;
    }
    return trivial && npy_deferred_readable_in_place(out, node->descrs[node->nin]);
}

/* Whether try_trivial_single_output_loop takes an `out=`, for the overlaps it has. */
static int
trivial_overlaps(npy_deferred_node *node, PyArrayObject *op[])
{
    PyArrayObject *out = op[node->nin];
    for (int i = 0; i < node->nin; i++) {
        if (!PyArray_EQUIVALENTLY_ITERABLE_OVERLAP_OK(
                    op[i], out, PyArray_TRIVIALLY_ITERABLE_OP_READ,
                    PyArray_TRIVIALLY_ITERABLE_OP_NOREAD)) {
            return 0;
        }
    }
    return PyArray_NDIM(out) != 1 || PyArray_STRIDE(out, 0) >= PyArray_ITEMSIZE(out) ||
           PyArray_STRIDE(out, 0) == 0;
}

/* The strides of try_trivial_single_output_loop; 0 when it would decline. */
static int
trivial_strides(npy_deferred_node *node, PyArrayObject *op[], npy_intp strides[])
{
    PyArrayObject *out = op[node->nin];
    int order = 0;
    for (int i = 0; i <= node->nin; i++) {
        int ndim = PyArray_NDIM(op[i]);
        if (ndim == 0) {
            strides[i] = 0;
            continue;
        }
        if (ndim != PyArray_NDIM(out) ||
            !PyArray_CompareLists(PyArray_DIMS(op[i]), PyArray_DIMS(out), ndim)) {
            return 0;
        }
        if (ndim == 1) {
            strides[i] = PyArray_STRIDE(op[i], 0);
            continue;
        }
        strides[i] = PyArray_ITEMSIZE(op[i]);
        int own = PyArray_FLAGS(op[i]) &
                  (NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_F_CONTIGUOUS);
        if (own == 0 || (order != 0 && own != order)) {
            return 0;
        }
        order = own;
    }
    return 1;
}

/* Those of a buffered iterator: it cuts and joins rows as it buffers operands. */
static npy_deferred_runs
iterator_runs(NpyIter *iter)
{
    npy_uint32 itflags = NIT_ITFLAGS(iter);
    int nop = NIT_NOP(iter);
    npy_intp sizeof_axisdata = NIT_AXISDATA_SIZEOF(itflags, NIT_NDIM(iter), nop);
    NpyIter_BufferData *buffer = NIT_BUFFERDATA(iter);
    NpyIter_AxisData *outer = NIT_INDEX_AXISDATA(NIT_AXISDATA(iter), buffer->outerdim);
    npy_intp total = NBF_CORESIZE(buffer) * NAD_SHAPE(outer);
    npy_deferred_runs runs = {PyArray_MIN(NBF_BUFFERSIZE(buffer), total), total};
    return runs;
}

/* An overlap with an `out=` makes the iterator copy, so that strides change. */
static int
iterator_strides(npy_deferred_node *node, PyArrayObject *op[], int has_out,
                 npy_intp buffersize, npy_intp strides[], npy_deferred_runs *runs)
{
    npy_uint32 flags = NPY_ITER_EXTERNAL_LOOP | NPY_ITER_REFS_OK |
                       NPY_ITER_ZEROSIZE_OK | NPY_ITER_BUFFERED | NPY_ITER_GROWINNER |
                       NPY_ITER_DELAY_BUFALLOC |
                       (has_out ? NPY_ITER_COPY_IF_OVERLAP : 0);
    npy_uint32 op_flags[NPY_DEFERRED_MAX_NARGS];
    int nargs = node->ufunc->nargs;
    for (int i = 0; i < nargs; i++) {
        op_flags[i] = i < node->nin ? EAGER_INPUT_FLAGS : EAGER_OUTPUT_FLAGS;
    }
    NpyIter *iter =
            NpyIter_AdvancedNew(nargs, op, flags, node->order, NPY_UNSAFE_CASTING,
                                op_flags, node->descrs, -1, NULL, NULL, buffersize);
    if (iter == NULL) {
        return -1;
    }
    NpyIter_GetInnerFixedStrideArray(iter, strides);
    *runs = iterator_runs(iter);
    PyArray_DiscardWritebackIfCopy(NpyIter_GetOperandArray(iter)[node->nin]);
    return NpyIter_Deallocate(iter) == NPY_SUCCEED ? 0 : -1;
}

NPY_NO_EXPORT int
npy_deferred_eager_strides(npy_deferred_node *node, PyArrayObject *out,
                           npy_intp strides[], npy_deferred_runs *runs)
{
    PyArrayObject *op[NPY_DEFERRED_MAX_NARGS] = {NULL};
    /* Not `out` itself: another iterator may be about to write to it. */
    PyArrayObject *result =
            out != NULL ? npy_deferred_array_over(out, PyArray_BYTES(out))
                        : npy_deferred_array_over(node->array, npy_deferred_nowhere());
    if (result == NULL) {
        return -1;
    }
    npy_intp buffersize = npy_deferred_buffer_size();
    int trivial = stand_ins(node, result, buffersize, op);
    int status = trivial < 0 ? -1 : 0;
    runs->length = runs->total = PyArray_SIZE(result);
    if (status == 0 && !(trivial && trivial_strides(node, op, strides) &&
                         (out == NULL || trivial_overlaps(node, op)))) {
        status = iterator_strides(node, op, out != NULL, buffersize, strides, runs);
    }
    for (int i = 0; i < node->ufunc->nargs; i++) {
        Py_XDECREF(op[i]);
    }
    Py_DECREF(result);
    return status;
}

static int
same_order(PyArrayObject *array, PyArrayObject *out, int order)
{
    return PyArray_NDIM(array) == PyArray_NDIM(out) &&
           PyArray_CompareLists(PyArray_DIMS(array), PyArray_DIMS(out),
                                PyArray_NDIM(out)) &&
           (PyArray_NDIM(out) == 1 ? PyArray_STRIDE(array, 0) != 0
                                   : PyArray_CHKFLAGS(array, order));
}

/*
 * Whether operands and result lie in memory in the same order, one element
 * after another: one run of loops does it, and eager NumPy does the same.
 */
static int
is_direct(const npy_deferred_expression *expression, PyArrayObject *out,
          npy_deferred_target target)
{
    int order = PyArray_FLAGS(out) & (NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_F_CONTIGUOUS);
    if (order == 0 && PyArray_NDIM(out) != 1) {
        return 0;
    }
    for (int i = 0; i < expression->noperands; i++) {
        PyArrayObject *array = expression->operands[i];
        if (!same_order(array, out, order)) {
            return 0;
        }
        if (target != NPY_DEFERRED_FRESH &&
            !PyArray_EQUIVALENTLY_ITERABLE_OVERLAP_OK(
                    array, out, PyArray_TRIVIALLY_ITERABLE_OP_READ,
                    PyArray_TRIVIALLY_ITERABLE_OP_NOREAD)) {
            return 0;
        }
    }
    /* A result that overlaps itself is the iterator's. */
    return PyArray_NDIM(out) != 1 || PyArray_DIM(out, 0) == 1 ||
           PyArray_STRIDE(out, 0) >= PyArray_ITEMSIZE(out);
}

/* How many elements lie beside each other, or nearly so. */
static npy_intp
shortest_stride_length(PyArrayObject *array)
{
    npy_intp length = 1, shortest = NPY_MAX_INTP;
    for (int i = 0; i < PyArray_NDIM(array); i++) {
        npy_intp stride = Py_ABS(PyArray_STRIDE(array, i));
        if (PyArray_DIM(array, i) > 1 && stride < shortest) {
            shortest = stride;
            length = PyArray_DIM(array, i);
        }
    }
    return length;
}

/* Whether a row is longer than what loops may do otherwise at its end. */
static int
is_worth_a_row(npy_intp length)
{
    return length > NPY_DEFERRED_BLOCK_UNIT;
}

/* A result that no operand overlaps is written from its start to its end. */
static NPY_ORDER
order_of(const npy_deferred_walk *walk)
{
    return walk->overlaps                       ? NPY_KEEPORDER
           : PyArray_IS_C_CONTIGUOUS(walk->out) ? NPY_CORDER
           : PyArray_IS_F_CONTIGUOUS(walk->out) ? NPY_FORTRANORDER
                                                : NPY_KEEPORDER;
}

/* Over all operands and the result, which keep their types. */
static NpyIter *
new_iterator(const npy_deferred_walk *walk, npy_deferred_target target,
             npy_uint32 flags)
{
    const npy_deferred_expression *expression = walk->expression;
    int noperands = expression->noperands;
    PyArrayObject *op[NPY_DEFERRED_MAX_OPERANDS + 1];
    npy_uint32 op_flags[NPY_DEFERRED_MAX_OPERANDS + 1];
    PyArray_Descr *dtypes[NPY_DEFERRED_MAX_OPERANDS + 1];
    if (target != NPY_DEFERRED_FRESH) {
        flags |= NPY_ITER_COPY_IF_OVERLAP;
    }
    for (int i = 0; i <= noperands; i++) {
        op[i] = i < noperands ? expression->operands[i] : walk->out;
        op_flags[i] = NPY_ITER_OVERLAP_ASSUME_ELEMENTWISE |
                      (i < npy_deferred_nread(expression)
                               ? NPY_ITER_READONLY
                               : NPY_ITER_WRITEONLY | NPY_ITER_NO_BROADCAST);
        dtypes[i] = PyArray_DESCR(op[i]);
    }
    return NpyIter_AdvancedNew(noperands + 1, op, flags | NPY_ITER_EXTERNAL_LOOP,
                               order_of(walk), NPY_NO_CASTING, op_flags, dtypes, -1,
                               NULL, NULL, npy_deferred_buffer_size());
}

/*
 * Measured: operands of shorter rows are packed in less time than each row takes to
 * begin.  Arithmetic on 1,000 rows of 100 float64 takes 0.8 to 0.9 of the time, on rows
 * of 200 a quarter more.
 */
#define SHORT_ROW_BYTES 1024

/*
 * Go through rows where they lie, without buffers, which nothing needs that keeps
 * its type; or pack what lies otherwise than the result.  The iterator orders and
 * joins the axes, and has copies of what overlaps.  Returns as
 * npy_deferred_walk_open, 0 where rows are too short.
 */
static int
open_unbuffered(npy_deferred_walk *walk, npy_deferred_target target, int may_pack)
{
    walk->iter = new_iterator(walk, target, 0);
    if (walk->iter == NULL) {
        return -1;
    }
    npy_uint32 itflags = NIT_ITFLAGS(walk->iter);
    int nop = NIT_NOP(walk->iter);
    npy_intp length = NAD_SHAPE(NIT_AXISDATA(walk->iter));
    int is_worth = is_worth_a_row(length);
    int is_short = length * PyArray_ITEMSIZE(walk->out) < SHORT_ROW_BYTES;
    if (may_pack && npy_deferred_walk_pack(walk, !is_worth || is_short)) {
        walk->packed = 1;
        return 1;
    }
    if (!is_worth) {
        int closed = npy_deferred_walk_close(walk, 0);
        walk->iter = NULL;
        return closed;
    }
    walk->rows = 1;
    walk->runs.length = length;
    walk->runs.total = PyArray_SIZE(walk->out);
    NpyIter_GetInnerFixedStrideArray(walk->iter, walk->strides);
    return 1;
}

NPY_NO_EXPORT int
npy_deferred_walk_open(npy_deferred_walk *walk,
                       const npy_deferred_expression *expression, PyArrayObject *out,
                       npy_deferred_target target, int may_pack)
{
    int noperands = expression->noperands;
    walk->expression = expression;
    walk->out = out;
    walk->iter = NULL;
    walk->rows = walk->packed = 0;
    walk->fresh = target == NPY_DEFERRED_FRESH;
    walk->overlaps = 0;
    walk->nbytes = PyArray_NBYTES(out);
    for (int i = 0; i < noperands; i++) {
        PyArrayObject *operand = expression->operands[i];
        walk->nbytes += PyArray_NBYTES(operand);
        walk->overlaps |= !walk->fresh && solve_may_share_memory(operand, out, 1) != 0;
    }
    if (is_direct(expression, out, target)) {
        for (int i = 0; i <= noperands; i++) {
            PyArrayObject *array = i < noperands ? expression->operands[i] : out;
            walk->strides[i] = PyArray_NDIM(array) == 1 ? PyArray_STRIDE(array, 0)
                                                        : PyArray_ITEMSIZE(array);
        }
        walk->runs.length = walk->runs.total = PyArray_SIZE(out);
        return 1;
    }
    if (noperands > NPY_DEFERRED_MAX_OPERANDS) {
        return 0;
    }
    may_pack = may_pack && !walk->overlaps;
    if (may_pack || is_worth_a_row(shortest_stride_length(out))) {
        int opened = open_unbuffered(walk, target, may_pack);
        if (opened != 0) {
            return opened;
        }
    }
    walk->iter = new_iterator(walk, target,
                              NPY_ITER_BUFFERED | NPY_ITER_GROWINNER |
                                      NPY_ITER_DELAY_BUFALLOC | NPY_ITER_RANGED);
    if (walk->iter == NULL) {
        return -1;
    }
    NpyIter_GetInnerFixedStrideArray(walk->iter, walk->strides);
    walk->runs = iterator_runs(walk->iter);
    return 1;
}

NPY_NO_EXPORT void
npy_deferred_rows_begin(npy_deferred_rows *rows, const npy_deferred_walk *walk,
                        npy_intp row)
{
    NpyIter *iter = walk->iter;
    npy_uint32 itflags = NIT_ITFLAGS(iter);
    int ndim = NIT_NDIM(iter), nop = NIT_NOP(iter);
    npy_intp sizeof_axisdata = NIT_AXISDATA_SIZEOF(itflags, ndim, nop);
    NpyIter_AxisData *axis = NIT_AXISDATA(iter);
    rows->nop = nop;
    rows->naxes = ndim - 1;
    memcpy(rows->data, NIT_RESETDATAPTR(iter), nop * sizeof(char *));
    for (int i = 0; i < ndim - 1; i++) {
        NIT_ADVANCE_AXISDATA(axis, 1);
        rows->shape[i] = NAD_SHAPE(axis);
        rows->strides[i] = NAD_STRIDES(axis);
        rows->at[i] = row % NAD_SHAPE(axis);
        row /= NAD_SHAPE(axis);
        for (int j = 0; j < nop; j++) {
            rows->data[j] += rows->at[i] * rows->strides[i][j];
        }
    }
}

NPY_NO_EXPORT void
npy_deferred_rows_next(npy_deferred_rows *rows)
{
    for (int i = 0; i < rows->naxes; i++) {
        npy_intp step = 1;
        rows->at[i]++;
        if (rows->at[i] == rows->shape[i]) {
            rows->at[i] = 0;
            step = 1 - rows->shape[i];
        }
        for (int j = 0; j < rows->nop; j++) {
            rows->data[j] += step * rows->strides[i][j];
        }
        if (step == 1) {
            break;
        }
    }
}

NPY_NO_EXPORT void
npy_deferred_rows_skip(npy_deferred_rows *rows, npy_intp n)
{
    rows->at[0] += n - 1;
    for (int j = 0; j < rows->nop; j++) {
        rows->data[j] += (n - 1) * rows->strides[0][j];
    }
    npy_deferred_rows_next(rows);
}

NPY_NO_EXPORT void
npy_deferred_rows_divide(npy_deferred_rows *rows, const npy_deferred_walk *walk,
                         npy_intp length, npy_intp row, npy_intp strides[])
{
    const npy_deferred_expression *expression = walk->expression;
    rows->nop = expression->noperands + 1;
    rows->naxes = 1;
    rows->at[0] = row;
    rows->shape[0] = PyArray_SIZE(walk->out) / length;
    rows->strides[0] = strides;
    for (int i = 0; i < rows->nop; i++) {
        PyArrayObject *array =
                i < expression->noperands ? expression->operands[i] : walk->out;
        strides[i] = length * walk->strides[i];
        rows->data[i] = PyArray_BYTES(array) + row * strides[i];
    }
}

NPY_NO_EXPORT npy_intp
npy_deferred_row_length(const npy_deferred_walk *walk)
{
    return walk->packed ? walk->row : walk->runs.length;
}

NPY_NO_EXPORT npy_intp
npy_deferred_row_stride(const npy_deferred_walk *walk, int operand)
{
    if (walk->iter == NULL) {
        return walk->strides[operand];
    }
    npy_uint32 itflags = NIT_ITFLAGS(walk->iter);
    int ndim = NIT_NDIM(walk->iter), nop = NIT_NOP(walk->iter);
    (void)itflags, (void)ndim;
    return NAD_STRIDES(NIT_AXISDATA(walk->iter))[operand];
}

NPY_NO_EXPORT int
npy_deferred_walk_in_order(const npy_deferred_walk *walk)
{
    int last = walk->expression->noperands;
    npy_intp stride = PyArray_ITEMSIZE(walk->out);
    if (walk->iter == NULL) {
        return walk->strides[last] == stride || PyArray_SIZE(walk->out) == 1;
    }
    npy_uint32 itflags = NIT_ITFLAGS(walk->iter);
    int ndim = NIT_NDIM(walk->iter), nop = NIT_NOP(walk->iter);
    npy_intp sizeof_axisdata = NIT_AXISDATA_SIZEOF(itflags, ndim, nop);
    NpyIter_AxisData *axis = NIT_AXISDATA(walk->iter);
    for (int i = 0; i < ndim; i++, NIT_ADVANCE_AXISDATA(axis, 1)) {
        if (NAD_SHAPE(axis) != 1 && NAD_STRIDES(axis)[last] != stride) {
            return 0;
        }
        stride *= NAD_SHAPE(axis);
    }
    return walk->rows || walk->packed ||
           (NIT_OPITFLAGS(walk->iter)[last] & NPY_OP_ITFLAG_BUFNEVER);
}

NPY_NO_EXPORT int
npy_deferred_walk_close(npy_deferred_walk *walk, int written)
{
    if (walk->iter == NULL) {
        return 0;
    }
    if (!written) {
        /* It may be a copy of `out`, still empty, that closing would copy back. */
        int noperands = walk->expression->noperands;
        PyArray_DiscardWritebackIfCopy(NpyIter_GetOperandArray(walk->iter)[noperands]);
    }
    return NpyIter_Deallocate(walk->iter) == NPY_SUCCEED ? 0 : -1;
}
