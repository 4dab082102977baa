/*
 * Packs: operands of a walk that are copied side by side as it comes to them.
 *
 * Where rows have a few elements, as (1000000, 3), a loop for each costs more than
 * what it does; where an operand lies across the others, as a transposed one, each
 * element of a row is in another cache line.  So what does not lie in memory as the
 * result does is copied, a panel of some rows at a time, into scratch memory: short
 * rows one after the other, crossing ones by squares.  Then all is one long row.  An
 * operand that has the same row throughout is packed for the first panel alone.
 *
 * Where the only program of a plan has become code that goes over rows
 * (machine_code.c), whole rows are not packed (execute.c).
 *
 * Loops see other strides than in eager NumPy, which plan.c must bear with, and the
 * result must be one that may be written again: no operand overlaps it.  The walk owns
 * its iterator, which tells shapes and strides; the scratch memory is run_state.c's.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE
#define NPY_ITERATOR_IMPLEMENTATION_CODE /* for how it has joined the axes */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "deferred.h"
#include "nditer_impl.h"
#include "npy_cpu_features.h"

#include <string.h>

/*
 * Bytes of all packs together: of short rows such that they stay in the L1 cache; of
 * what crosses, in the L2 cache, as a panel has whole rows, and for each of its
 * columns a whole cache line.
 */
#define ROWS_BYTES 32768
#define CROSSING_BYTES 524288
#define MAX_ROWS_PANEL 4096
#define CACHE_LINE 64
/* Crossing rows that are worth it. */
#define MIN_CROSSING 4

/* ---- copying ---- */

typedef struct {
    npy_intp length, stride;  /* of a row */
    npy_intp count, distance; /* of the rows */
} rows;

/* Into the L2 cache, for the rows after these. */
#ifdef __GNUC__
#    define PREFETCH(address) __builtin_prefetch(address, 0, 2)
#else
#    define PREFETCH(address) ((void)0)
#endif

/* What is copied at a time where rows have as much: a register, and the largest one. */
#define CHUNK 16
#define MAX_CHUNK 32

/* Chunks, the last of which may overlap the one before. */
NPY_FINLINE void
copy_chunks(char *to, const char *from, npy_intp nbytes, npy_intp chunk)
{
    for (npy_intp i = 0; i < nbytes - chunk; i += chunk) {
        memcpy(to + i, from + i, chunk);
    }
    memcpy(to + nbytes - chunk, from + nbytes - chunk, chunk);
}

/* The compiler makes one of these for each size and chunk, and for some lengths. */

NPY_FINLINE void
copy_contiguous(char *to, const char *from, const rows *r, npy_intp size,
                npy_intp chunk)
{
    const npy_intp nbytes = r->length * size;
    for (npy_intp row = 0; row < r->count; row++) {
        if (nbytes >= chunk) {
            copy_chunks(to, from, nbytes, chunk);
        }
        else if (nbytes >= CHUNK) {
            copy_chunks(to, from, nbytes, CHUNK);
        }
        else {
            for (npy_intp i = 0; i < nbytes; i += size) {
                memcpy(to + i, from + i, size);
            }
        }
        to += nbytes;
        from += r->distance;
    }
}

NPY_FINLINE void
repeat_in_chunks(char *to, const char *from, const rows *r, npy_intp size,
                 npy_intp chunk)
{
    const npy_intp nbytes = r->length * size;
    for (npy_intp row = 0; row < r->count; row++) {
        char elements[MAX_CHUNK];
        for (npy_intp i = 0; i < chunk; i += size) {
            memcpy(elements + i, from, size);
        }
        for (npy_intp i = 0; i < nbytes - chunk; i += chunk) {
            memcpy(to + i, elements, chunk);
        }
        to += nbytes;
        memcpy(to - chunk, elements, chunk);
        from += r->distance;
    }
}

NPY_FINLINE void
repeat_elements(char *to, const char *from, const rows *r, npy_intp size,
                npy_intp length)
{
    for (npy_intp row = 0; row < r->count; row++) {
        for (npy_intp i = 0; i < length; i++, to += size) {
            memcpy(to, from, size);
        }
        from += r->distance;
    }
}

/*
 * Of rows of two or three elements as many at a time as fill a register, shuffled from
 * there: to store each element takes longer.
 */
#if defined(__has_builtin)
#    if __has_builtin(__builtin_shufflevector)
#        define HAVE_SHUFFLES 1
#    endif
#endif
#ifdef HAVE_SHUFFLES
typedef npy_uint32 four __attribute__((vector_size(CHUNK)));
typedef npy_uint64 two __attribute__((vector_size(CHUNK)));
#    define SHUFFLE __builtin_shufflevector

NPY_FINLINE void
repeat_four(char *to, const char *from, npy_intp distance, npy_intp length)
{
    npy_uint32 x[4];
    for (int i = 0; i < 4; i++) {
        memcpy(&x[i], from + i * distance, sizeof(x[i]));
    }
    const four v = {x[0], x[1], x[2], x[3]};
    four parts[3] = {SHUFFLE(v, v, 0, 0, 0, 1), SHUFFLE(v, v, 1, 1, 2, 2),
                     SHUFFLE(v, v, 2, 3, 3, 3)};
    if (length == 2) {
        parts[0] = SHUFFLE(v, v, 0, 0, 1, 1);
        parts[1] = SHUFFLE(v, v, 2, 2, 3, 3);
    }
    for (npy_intp i = 0; i < length; i++) {
        memcpy(to + i * CHUNK, &parts[i], CHUNK);
    }
}

NPY_FINLINE void
repeat_two(char *to, const char *from, npy_intp distance, npy_intp length)
{
    npy_uint64 x[2];
    for (int i = 0; i < 2; i++) {
        memcpy(&x[i], from + i * distance, sizeof(x[i]));
    }
    const two v = {x[0], x[1]};
    two parts[3] = {SHUFFLE(v, v, 0, 0), SHUFFLE(v, v, 0, 1), SHUFFLE(v, v, 1, 1)};
    if (length == 2) {
        parts[1] = parts[2];
    }
    for (npy_intp i = 0; i < length; i++) {
        memcpy(to + i * CHUNK, &parts[i], CHUNK);
    }
}
#endif

/* How many rows are done, of `length` elements, two or three. */
NPY_FINLINE npy_intp
repeat_by_shuffles(char *to, const char *from, const rows *r, npy_intp size,
                   npy_intp length)
{
    npy_intp row = 0;
#ifdef HAVE_SHUFFLES
    const npy_intp together = size == 4 ? 4 : 2;
    if (size != 4 && size != 8) {
        return 0;
    }
    for (; row + together <= r->count; row += together) {
        if (size == 4) {
            repeat_four(to, from, r->distance, length);
        }
        else {
            repeat_two(to, from, r->distance, length);
        }
        to += together * length * size;
        from += together * r->distance;
    }
#endif
    return row;
}

NPY_FINLINE void
repeat_few(char *to, const char *from, const rows *r, npy_intp size, npy_intp length)
{
    npy_intp done = repeat_by_shuffles(to, from, r, size, length);
    const rows rest = {r->length, r->stride, r->count - done, r->distance};
    repeat_elements(to + done * length * size, from + done * r->distance, &rest, size,
                    length);
}

NPY_FINLINE void
copy_row_by_row(char *to, const char *from, const rows *r, npy_intp size,
                npy_intp stride)
{
    for (npy_intp row = 0; row < r->count; row++) {
        for (npy_intp i = 0; i < r->length; i++) {
            memcpy(to + i * size, from + i * stride, size);
        }
        to += r->length * size;
        from += r->distance;
    }
}

/*
 * Squares of as many rows and columns as a register has elements: a column is read at
 * a time, a row is written.
 */
#ifdef HAVE_SHUFFLES
NPY_FINLINE void
turn_2_by_2(char *to, npy_intp pitch, const char *from, npy_intp stride)
{
    two a, b;
    memcpy(&a, from, CHUNK);
    memcpy(&b, from + stride, CHUNK);
    const two rows[] = {SHUFFLE(a, b, 0, 2), SHUFFLE(a, b, 1, 3)};
    memcpy(to, &rows[0], CHUNK);
    memcpy(to + pitch, &rows[1], CHUNK);
}

NPY_FINLINE void
turn_4_by_4(char *to, npy_intp pitch, const char *from, npy_intp stride)
{
    four a, b, c, d;
    memcpy(&a, from, CHUNK);
    memcpy(&b, from + stride, CHUNK);
    memcpy(&c, from + 2 * stride, CHUNK);
    memcpy(&d, from + 3 * stride, CHUNK);
    const two ab = (two)SHUFFLE(a, b, 0, 4, 1, 5), cd = (two)SHUFFLE(c, d, 0, 4, 1, 5);
    const two ef = (two)SHUFFLE(a, b, 2, 6, 3, 7), gh = (two)SHUFFLE(c, d, 2, 6, 3, 7);
    const two rows[] = {SHUFFLE(ab, cd, 0, 2), SHUFFLE(ab, cd, 1, 3),
                        SHUFFLE(ef, gh, 0, 2), SHUFFLE(ef, gh, 1, 3)};
    for (int i = 0; i < 4; i++) {
        memcpy(to + i * pitch, &rows[i], CHUNK);
    }
}
#endif

/* How many columns are done of so many rows. */
NPY_FINLINE npy_intp
copy_squares(char *to, const char *from, const rows *r, npy_intp size,
             npy_intp together)
{
    npy_intp i = 0;
#ifdef HAVE_SHUFFLES
    const npy_intp side = CHUNK / size, pitch = r->length * size;
    if (r->distance != size || (size != 4 && size != 8)) {
        return 0;
    }
    for (; i + side <= r->length; i += side) {
        for (npy_intp k = 0; k < side; k++) {
            PREFETCH(from + (i + k) * r->stride + (2 * together - 1) * size);
        }
        for (npy_intp k = 0; k < together; k += side) {
            char *square = to + k * pitch + i * size;
            if (size == 8) {
                turn_2_by_2(square, pitch, from + i * r->stride + k * size, r->stride);
            }
            else {
                turn_4_by_4(square, pitch, from + i * r->stride + k * size, r->stride);
            }
        }
    }
#endif
    return i;
}

/* As many rows together as have elements in the same cache lines. */
NPY_FINLINE void
copy_crossing(char *to, const char *from, const rows *r, npy_intp size)
{
    const npy_intp together = CACHE_LINE / size, pitch = r->length * size;
    npy_intp row = 0;
    for (; row + together <= r->count; row += together) {
        npy_intp i = copy_squares(to, from, r, size, together);
        for (; i < r->length; i++) {
            PREFETCH(from + i * r->stride + (2 * together - 1) * r->distance);
            for (npy_intp k = 0; k < together; k++) {
                memcpy(to + k * pitch + i * size,
                       from + k * r->distance + i * r->stride, size);
            }
        }
        to += together * pitch;
        from += together * r->distance;
    }
    const rows rest = {r->length, r->stride, r->count - row, r->distance};
    copy_row_by_row(to, from, &rest, size, r->stride);
}

static int
is_crossing(npy_intp stride, npy_intp distance)
{
    return distance != 0 && Py_ABS(distance) < Py_ABS(stride);
}

NPY_FINLINE void
copy_rows(char *to, const char *from, const rows *r, npy_intp size, npy_intp chunk)
{
    if (is_crossing(r->stride, r->distance) && r->count >= MIN_CROSSING) {
        copy_crossing(to, from, r, size);
    }
    else if (r->stride == size) {
        copy_contiguous(to, from, r, size, chunk);
    }
    else if (r->stride != 0) {
        copy_row_by_row(to, from, r, size, r->stride);
    }
    else if (r->length == 2) {
        repeat_few(to, from, r, size, 2);
    }
    else if (r->length == 3) {
        repeat_few(to, from, r, size, 3);
    }
    else if (r->length == 4) {
        repeat_elements(to, from, r, size, 4);
    }
    else if (CHUNK % size == 0 && r->length * size >= chunk) {
        repeat_in_chunks(to, from, r, size, chunk);
    }
    else if (CHUNK % size == 0 && r->length * size >= CHUNK) {
        repeat_in_chunks(to, from, r, size, CHUNK);
    }
    else {
        repeat_elements(to, from, r, size, r->length);
    }
}

NPY_FINLINE void
copy_rows_of_size(npy_intp size, char *to, const char *from, const rows *r,
                  npy_intp chunk)
{
    switch (size) {
        case 1:
            copy_rows(to, from, r, 1, chunk);
            break;
        case 2:
            copy_rows(to, from, r, 2, chunk);
            break;
        case 4:
            copy_rows(to, from, r, 4, chunk);
            break;
        case 8:
            copy_rows(to, from, r, 8, chunk);
            break;
        case 16:
            copy_rows(to, from, r, 16, chunk);
            break;
        default:
            copy_rows(to, from, r, size, chunk);
    }
}

static void
copy_rows_by_16(npy_intp size, char *to, const char *from, const rows *r)
{
    copy_rows_of_size(size, to, from, r, CHUNK);
}

#if defined(__GNUC__) && defined(__x86_64__)
__attribute__((target("avx2"))) static void
copy_rows_by_32(npy_intp size, char *to, const char *from, const rows *r)
{
    copy_rows_of_size(size, to, from, r, MAX_CHUNK);
}
#endif

static void
copy_rows_of(npy_intp size, char *to, const char *from, const rows *r)
{
#if defined(__GNUC__) && defined(__x86_64__)
    if (NPY_CPU_HAVE(X86_V3)) {
        copy_rows_by_32(size, to, from, r);
        return;
    }
#endif
    copy_rows_by_16(size, to, from, r);
}

NPY_NO_EXPORT void
npy_deferred_pack(const npy_deferred_walk *walk, int operand, npy_intp start,
                  npy_intp count, char *to)
{
    npy_uint32 itflags = NIT_ITFLAGS(walk->iter);
    int ndim = NIT_NDIM(walk->iter), nop = NIT_NOP(walk->iter);
    npy_intp sizeof_axisdata = NIT_AXISDATA_SIZEOF(itflags, ndim, nop);
    NpyIter_AxisData *axes = NIT_AXISDATA(walk->iter), *axis = axes;
    npy_intp size = PyArray_ITEMSIZE(walk->expression->operands[operand]);
    const char *from = NIT_RESETDATAPTR(walk->iter)[operand];
    npy_intp at[NPY_MAXDIMS];
    for (int i = 0; i < ndim; i++, NIT_ADVANCE_AXISDATA(axis, 1)) {
        at[i] = start % NAD_SHAPE(axis);
        start /= NAD_SHAPE(axis);
        from += at[i] * NAD_STRIDES(axis)[operand];
    }
    npy_intp length = NAD_SHAPE(axes), stride = NAD_STRIDES(axes)[operand];
    axis = NIT_INDEX_AXISDATA(axes, 1);
    npy_intp nrows = ndim > 1 ? NAD_SHAPE(axis) : 1;
    npy_intp distance = ndim > 1 ? NAD_STRIDES(axis)[operand] : 0;
    npy_intp row = ndim > 1 ? at[1] : 0;
    while (count > 0) {
        rows r = {length - at[0], stride, 1, distance};
        if (at[0] > 0 || count < length) {
            r.length = PyArray_MIN(r.length, count);
        }
        else {
            r.count = PyArray_MIN(nrows - row, count / length);
        }
        copy_rows_of(size, to, from, &r);
        to += r.length * r.count * size;
        count -= r.length * r.count;
        /* A row that was not finished is the last one. */
        from += r.count * distance - at[0] * stride;
        at[0] = 0;
        row += r.count;
        if (row < nrows) {
            continue;
        }
        from -= nrows * distance;
        row = 0;
        for (int i = 2; i < ndim; i++) {
            axis = NIT_INDEX_AXISDATA(axes, i);
            from += NAD_STRIDES(axis)[operand];
            if (++at[i] < NAD_SHAPE(axis)) {
                break;
            }
            from -= at[i] * NAD_STRIDES(axis)[operand];
            at[i] = 0;
        }
    }
}

/* ---- whether to ---- */

/* Whether an operand lies as the result does; or one element serves all. */
static int
is_in_order(NpyIter *iter, int operand, npy_intp unit)
{
    npy_uint32 itflags = NIT_ITFLAGS(iter);
    int ndim = NIT_NDIM(iter), nop = NIT_NOP(iter);
    npy_intp sizeof_axisdata = NIT_AXISDATA_SIZEOF(itflags, ndim, nop);
    NpyIter_AxisData *axis = NIT_AXISDATA(iter);
    npy_intp stride = unit;
    for (int i = 0; i < ndim; i++, NIT_ADVANCE_AXISDATA(axis, 1)) {
        if (NAD_SHAPE(axis) != 1 && NAD_STRIDES(axis)[operand] != stride) {
            return 0;
        }
        stride *= NAD_SHAPE(axis);
    }
    return 1;
}

/* Whether all rows of an operand are the same one. */
static int
has_one_row(NpyIter *iter, int operand)
{
    npy_uint32 itflags = NIT_ITFLAGS(iter);
    int ndim = NIT_NDIM(iter), nop = NIT_NOP(iter);
    npy_intp sizeof_axisdata = NIT_AXISDATA_SIZEOF(itflags, ndim, nop);
    NpyIter_AxisData *axis = NIT_AXISDATA(iter);
    for (int i = 1; i < ndim; i++) {
        NIT_ADVANCE_AXISDATA(axis, 1);
        if (NAD_SHAPE(axis) != 1 && NAD_STRIDES(axis)[operand] != 0) {
            return 0;
        }
    }
    return 1;
}

/* How many rows a panel has of what crosses; 0: nothing does, or too much. */
static npy_intp
crossing_rows(const npy_deferred_walk *walk, npy_intp nbytes)
{
    npy_uint32 itflags = NIT_ITFLAGS(walk->iter);
    int ndim = NIT_NDIM(walk->iter), nop = NIT_NOP(walk->iter);
    npy_intp sizeof_axisdata = NIT_AXISDATA_SIZEOF(itflags, ndim, nop);
    NpyIter_AxisData *axis = NIT_AXISDATA(walk->iter);
    NpyIter_AxisData *next = NIT_INDEX_AXISDATA(axis, 1);
    npy_intp count = 0;
    for (int i = 0; ndim > 1 && i < nop - 1; i++) {
        if (walk->packs[i] && is_crossing(NAD_STRIDES(axis)[i], NAD_STRIDES(next)[i])) {
            npy_intp size = PyArray_ITEMSIZE(walk->expression->operands[i]);
            count = PyArray_MAX(count, CACHE_LINE / size);
        }
    }
    if (count == 0) {
        return 0;
    }
    npy_intp most = CROSSING_BYTES / (nbytes * NAD_SHAPE(axis));
    count = PyArray_MIN(count, NAD_SHAPE(next));
    return most < MIN_CROSSING ? 0 : PyArray_MIN(count, most);
}

NPY_NO_EXPORT int
npy_deferred_walk_pack(npy_deferred_walk *walk, int rows_are_short)
{
    NpyIter *iter = walk->iter;
    npy_uint32 itflags = NIT_ITFLAGS(iter);
    int nop = NIT_NOP(iter), ndim = NIT_NDIM(iter);
    npy_intp sizeof_axisdata = NIT_AXISDATA_SIZEOF(itflags, ndim, nop);
    npy_intp length = NAD_SHAPE(NIT_AXISDATA(iter)), nbytes = 0;
    (void)sizeof_axisdata;
    if (ndim < 2 || !is_in_order(iter, nop - 1, PyArray_ITEMSIZE(walk->out))) {
        return 0;
    }
    for (int i = 0; i < nop - 1; i++) {
        npy_intp size = PyArray_ITEMSIZE(walk->expression->operands[i]);
        int is_constant = is_in_order(iter, i, 0);
        walk->packs[i] = !is_constant && !is_in_order(iter, i, size);
        walk->repeats[i] = walk->packs[i] && has_one_row(iter, i);
        walk->strides[i] = is_constant ? 0 : size;
        nbytes += walk->packs[i] ? size : 0;
    }
    walk->strides[nop - 1] = PyArray_ITEMSIZE(walk->out);
    if (nbytes == 0) {
        return 0;
    }
    npy_intp crossing = crossing_rows(walk, nbytes), count = crossing;
    if (rows_are_short) {
        npy_intp most = PyArray_MIN(ROWS_BYTES / nbytes, MAX_ROWS_PANEL);
        count = PyArray_MAX(most / length, 1);
        if (crossing > 0) {
            count = PyArray_MAX(count - count % crossing, crossing);
        }
    }
    walk->row = length;
    walk->panel = PyArray_MIN(count * length, PyArray_SIZE(walk->out));
    walk->runs.length = walk->panel;
    walk->runs.total = PyArray_SIZE(walk->out);
    return walk->panel > 0;
}
