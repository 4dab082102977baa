/*
 * Runs of a reduction: elements that go into one of the result, or each into its own,
 * as they come from pieces.c.  See reduce.c for the order in which, and why.
 *
 * One thread has one worker; what the reduction has is not changed here.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"
#include "numpy/halffloat.h"
#include "numpy/npy_math.h"

#include "reduce.h"

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
NPY_NO_EXPORT int
npy_deferred_has_nan(const reduction *r, const char *data, npy_intp n)
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

static int
run_loop(worker *w, char *result, npy_intp stride, char *data, npy_intp n)
{
    const reduction *r = w->r;
    char *args[3] = {result, data, result};
    npy_intp strides[3] = {stride, npy_deferred_element_size(w), stride};
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
NPY_NO_EXPORT int
npy_deferred_reduce_into_one(worker *w, char *result, char *data, npy_intp n)
{
    _Alignas(16) char before[NPY_DEFERRED_ELEMENT_SIZE];
    memcpy(before, result, npy_deferred_element_size(w));
    int status = run_quickly(w, result, data, n);
    if (status != 0) {
        return status;
    }
    return npy_deferred_has_nan(w->r, result, 1) ||
           (w->r->zeros_differ && is_zero(w->r, result) &&
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
        return npy_deferred_element_size(w) == sizeof(npy_double)
                       ? npy_isnan(*(npy_double *)sum)
                       : npy_isnan(*(npy_float *)sum);
    }
    set_minus_zero(w->r, sum);
    return npy_deferred_reduce_into_one(w, sum, data, n);
}

/* The sum of two. */
NPY_NO_EXPORT int
npy_deferred_add_sum(worker *w, char *sum, char *other)
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
NPY_NO_EXPORT npy_intp
npy_deferred_first_half(const reduction *r, npy_intp n)
{
    if (PyTypeNum_ISCOMPLEX(r->context->descriptors[0]->type_num)) {
        return (n - n % 8) / 2;
    }
    return n / 2 - n / 2 % 8;
}

/* What loops_utils.h.src adds up with eight accumulators, and how much is added up at a
 * time: of what is divided, no leaf is shorter. */
#define MAX_LEAF 128
#define MIN_LEAF 64
#define MOST_SUMMED (NPY_DEFERRED_MAX_LEAVES * MIN_LEAF)

/* Where the leaves of a run end, and how many sums each of them completes. */
static void
divide_into_leaves(npy_deferred_leaves *leaves, const reduction *r, npy_intp start,
                   npy_intp n)
{
    if (n <= MAX_LEAF) {
        leaves->completed[leaves->count] = 0;
        leaves->leaves[leaves->count++] =
                (npy_deferred_tile_leaf){start + n - n % 8, start + n};
        return;
    }
    npy_intp half = npy_deferred_first_half(r, n);
    divide_into_leaves(leaves, r, start, half);
    divide_into_leaves(leaves, r, start + half, n - half);
    leaves->completed[leaves->count - 1]++;
}

/* Those of a run of `n` elements, and of as many after it as there is room for. */
static void
use_leaves(npy_deferred_leaves *leaves, const reduction *r, npy_intp n)
{
    if (leaves->of == n) {
        return;
    }
    leaves->of = n;
    leaves->count = 0;
    divide_into_leaves(leaves, r, 0, n);
    leaves->nruns = NPY_DEFERRED_MAX_LEAVES / leaves->count;
    for (int i = leaves->count; i < leaves->nruns * leaves->count; i++) {
        leaves->leaves[i] = leaves->leaves[i - leaves->count];
        leaves->leaves[i].whole += n;
        leaves->leaves[i].end += n;
    }
}

#define DEFINE_ADD_LEAVES(name, type)                                      \
    static type name(const npy_deferred_leaves *leaves, const type sums[]) \
    {                                                                      \
        type waiting[NPY_DEFERRED_MAX_LEAVES];                             \
        int n = 0;                                                         \
        for (int i = 0; i < leaves->count; i++) {                          \
            waiting[n] = sums[i];                                          \
            for (int j = 0; j < leaves->completed[i]; j++, n--) {          \
                waiting[n - 1] += waiting[n];                              \
            }                                                              \
            n++;                                                           \
        }                                                                  \
        return waiting[0];                                                 \
    }
DEFINE_ADD_LEAVES(add_leaves_of_floats, npy_float)
DEFINE_ADD_LEAVES(add_leaves_of_doubles, npy_double)

/* What the program adds up to leaves: of some runs of `n` elements the sums. */
static int
sum_runs_by_leaves(worker *w, npy_intp position, npy_intp n, npy_intp nruns, char *sums)
{
    union {
        npy_double doubles[NPY_DEFERRED_MAX_LEAVES];
        npy_float floats[NPY_DEFERRED_MAX_LEAVES];
    } parts;
    npy_deferred_leaves *leaves = &w->leaves;
    int nleaves = (int)nruns * leaves->count;
    /* Code over rows begins with the leaves of one again. */
    int last = (w->pieces.reduces_rows ? leaves->count : nleaves) - 1, result;
    npy_deferred_tile_leaf next = leaves->leaves[last + 1];
    leaves->leaves[last + 1].whole = leaves->leaves[last].end;
    if (w->pieces.reduces_rows) {
        result = npy_deferred_sum_rows(&w->pieces, position, nruns, leaves->leaves,
                                       leaves->count, (char *)&parts);
    }
    else {
        result = npy_deferred_sum_leaves(&w->pieces, position, leaves->leaves, nleaves,
                                         (char *)&parts);
    }
    leaves->leaves[last + 1] = next;
    for (npy_intp i = 0; i < nruns; i++) {
        if (npy_deferred_element_size(w) == sizeof(npy_double)) {
            ((npy_double *)sums)[i] =
                    add_leaves_of_doubles(leaves, parts.doubles + i * leaves->count);
        }
        else {
            ((npy_float *)sums)[i] =
                    add_leaves_of_floats(leaves, parts.floats + i * leaves->count);
        }
    }
    return result;
}

/* As the following, where the program adds up what comes to leaves. */
static int
sum_by_leaves(worker *w, npy_intp position, npy_intp n, char *sum)
{
    if (n <= MOST_SUMMED) {
        use_leaves(&w->leaves, w->r, n);
        int result = sum_runs_by_leaves(w, position, n, 1, sum);
        return result != 0 ? result : npy_deferred_has_nan(w->r, sum, 1);
    }
    _Alignas(16) char second[NPY_DEFERRED_ELEMENT_SIZE];
    npy_intp half = npy_deferred_first_half(w->r, n);
    int result = sum_by_leaves(w, position, half, sum);
    if (result == 0) {
        result = sum_by_leaves(w, position + half, n - half, second);
    }
    return result != 0 ? result : npy_deferred_add_sum(w, sum, second);
}

static int
is_summed_by_leaves(const worker *w, npy_intp n)
{
    return n >= 8 && w->r->reducer.add_up != NULL &&
           (npy_deferred_sums_leaves(&w->pieces) ||
            (w->pieces.reduces_rows && n == w->pieces.run && n <= MOST_SUMMED));
}

NPY_NO_EXPORT int
npy_deferred_sum_pairwise(worker *w, npy_intp position, npy_intp n, char *sum)
{
    _Alignas(16) char second[NPY_DEFERRED_ELEMENT_SIZE];
    if (is_summed_by_leaves(w, n)) {
        return sum_by_leaves(w, position, n, sum);
    }
    if (n <= w->pieces.part) {
        char *data;
        int result = npy_deferred_provide(&w->pieces, position, n, &data);
        return result != 0 ? result : add_up(w, sum, data, n);
    }
    npy_intp half = npy_deferred_first_half(w->r, n);
    int result = npy_deferred_sum_pairwise(w, position, half, sum);
    if (result == 0) {
        result = npy_deferred_sum_pairwise(w, position + half, n - half, second);
    }
    return result != 0 ? result : npy_deferred_add_sum(w, sum, second);
}

/* Elements that are folded at least, and at most. */
#define LEAST_FOLDED 2048
#define LEAST_COUNTED 768
#define MOST_FOLDED 16384

static int
folds(const worker *w, npy_intp n)
{
    return w->pieces.folding != NULL &&
           n >= (w->r->counts ? LEAST_COUNTED : LEAST_FOLDED);
}

/* Add how often elements of masks were set. */
static void
add_count(const worker *w, char *into)
{
    const char *folded = w->pieces.folded;
    npy_uint64 count = 0;
    int size = w->pieces.lone.type == NPY_DEFERRED_TILE_DOUBLE ||
                               w->pieces.lone.type == NPY_DEFERRED_TILE_INT64
                       ? 8
                       : 4;
    for (int i = 0; i < NPY_DEFERRED_TILE_BYTES; i += size) {
        count += size == 8 ? *(const npy_uint64 *)(folded + i)
                           : *(const npy_uint32 *)(folded + i);
    }
    int type_num = w->r->context->descriptors[0]->type_num;
    if (type_num == NPY_DOUBLE) {
        *(npy_double *)into += (npy_double)count;
        return;
    }
    if (type_num == NPY_FLOAT) {
        *(npy_float *)into += (npy_float)count;
        return;
    }
    switch (npy_deferred_element_size(w)) {
        case 1:
            *(npy_uint8 *)into += (npy_uint8)count;
            break;
        case 2:
            *(npy_uint16 *)into += (npy_uint16)count;
            break;
        case 4:
            *(npy_uint32 *)into += (npy_uint32)count;
            break;
        default:
            *(npy_uint64 *)into += count;
    }
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
    npy_intp filled = npy_deferred_element_size(w);
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
    _Alignas(16) char found[NPY_DEFERRED_ELEMENT_SIZE];
    npy_intp size = npy_deferred_element_size(w);
    while (folds(w, end - *position) && !npy_deferred_has_nan(w->r, into, 1) &&
           !(w->r->zeros_differ && is_zero(w->r, into))) {
        npy_intp n = PyArray_MIN(end - *position, MOST_FOLDED);
        n -= n % NPY_DEFERRED_TILE_LENGTH;
        begin_fold(w, into);
        int result = npy_deferred_fold(&w->pieces, *position, n, w->pieces.folded);
        if (result != 0) {
            return result == NPY_DEFERRED_NANS ? 0 : result;
        }
        if (w->r->counts) {
            add_count(w, into);
            *position += n;
            continue;
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
        _Alignas(16) char sum[NPY_DEFERRED_ELEMENT_SIZE];
        result = npy_deferred_sum_pairwise(w, position, n, sum);
        return result != 0 ? result : npy_deferred_add_sum(w, into, sum);
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
            result = npy_deferred_reduce_into_one(w, into, data, some);
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
        memset(into, 0, npy_deferred_element_size(w));
        return 0;
    }
    w->pieces.until = again ? *position + 1 : until;
    int result = npy_deferred_provide(&w->pieces, *position, 1, &data);
    if (result == 0) {
        memcpy(into, data, npy_deferred_element_size(w));
    }
    w->pieces.until = until;
    *position += !again || npy_deferred_has_nan(w->r, into, 1);
    return result;
}

NPY_NO_EXPORT int
npy_deferred_reduce_run(worker *w, npy_intp position, npy_intp n, char *into, int first)
{
    npy_intp end = position + n;
    npy_intp stretch =
            w->r->is_cast && !w->r->counts ? PyArray_MIN(n, w->r->buffersize) : n;
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
    npy_intp size = npy_deferred_element_size(w);
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

/* Elements of a run that the program joins with others itself at least. */
#define LEAST_JOINED 512

/* Of extremes, NaNs, or zeros of two signs, depend on more than the operands. */
static int
after_joining(int result)
{
    return result == NPY_DEFERRED_NANS ? 1 : result;
}

/* A run goes into as many elements. */
static int
combine_run(worker *w, npy_intp position, npy_intp n, char *into, int first)
{
    npy_intp stride = w->r->strides[0], until = w->pieces.until;
    int result = 0;
    if (!first && w->pieces.folding != NULL && n >= LEAST_JOINED) {
        npy_intp joined = n - n % NPY_DEFERRED_TILE_LENGTH;
        result = after_joining(npy_deferred_fold(&w->pieces, position, joined, into));
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
                memcpy(into + i * stride, data + i * npy_deferred_element_size(w),
                       npy_deferred_element_size(w));
            }
        }
        into += some * stride;
        position += some;
        n -= some;
    }
    w->pieces.until = until;
    return result;
}

/* Elements that are joined at a time. */
#define MAX_JOINED 32768

/* Whether `n` elements of runs, each a row, go into the same ones one after the other.
 */
static int
joins_rows(const worker *w, npy_intp n, int first)
{
    const reduction *r = w->r;
    return !first && n >= 8 && w->pieces.reduces_rows && r->naxes > 1 &&
           r->strides[0] == npy_deferred_element_size(w) && r->strides[1] == 0 &&
           r->steps[1] == r->shape[0];
}

/*
 * Short runs, each into a result of its own, one after the other: as soon as there are
 * values of many of them, these are reduced, as what else is asked of a run takes
 * longer.
 */

static int
are_short(const worker *w, npy_intp n)
{
    const reduction *r = w->r;
    return r->naxes > 1 && r->strides[0] == 0 && r->strides[1] != 0 &&
           r->steps[1] == n && n <= w->pieces.part &&
           (!r->is_cast || n <= r->buffersize);
}

static int
are_short_sums(const worker *w, npy_intp n, int first)
{
    return !first && w->r->cut == PAIRWISE && w->r->reducer.add_up_each != NULL &&
           are_short(w, n);
}

/* Of numbers that are neither NaNs nor zeros of two signs. */
static int
are_short_loops(const worker *w, npy_intp n)
{
    int type_num = w->r->context->descriptors[0]->type_num;
    return (PyTypeNum_ISINTEGER(type_num) || PyTypeNum_ISBOOL(type_num)) &&
           w->r->cut == ANYWHERE && !folds(w, n) && are_short(w, n);
}

/* Runs that are added up at a time. */
#define RUNS_AT_A_TIME NPY_DEFERRED_MAX_LEAVES

/* The values of the first of them, `*nruns` at most, which becomes their number. */
static int
provide_runs(worker *w, npy_intp position, npy_intp n, npy_intp *nruns, char **data)
{
    int result = npy_deferred_provide(&w->pieces, position, n, data);
    npy_intp end = w->pieces.start + w->pieces.count;
    *nruns = PyArray_MIN(*nruns, (end - position) / n);
    return result;
}

/* The sums of the first `*nruns` at most, which becomes how many it were. */
static int
sum_each(worker *w, npy_intp position, npy_intp n, npy_intp *nruns, char *sums)
{
    char *data;
    if (is_summed_by_leaves(w, n)) {
        use_leaves(&w->leaves, w->r, n);
        const npy_deferred_walk *walk = w->pieces.walk;
        npy_intp row = walk->runs.length;
        npy_intp together = walk->rows && !w->pieces.reduces_rows
                                    ? (row - position % row) / n
                                    : *nruns;
        *nruns = PyArray_MIN(*nruns, PyArray_MIN(together, w->leaves.nruns));
        return sum_runs_by_leaves(w, position, n, *nruns, sums);
    }
    int result = provide_runs(w, position, n, nruns, &data);
    if (result == 0) {
        w->r->reducer.add_up_each(data, n, *nruns, sums);
    }
    return result;
}

/* As that, added to the results. */
static int
sum_short_runs(worker *w, npy_intp position, npy_intp n, npy_intp *nruns, char *into)
{
    union {
        npy_double wide[RUNS_AT_A_TIME];
        npy_float narrow[RUNS_AT_A_TIME];
    } sums;
    npy_intp stride = w->r->strides[1];
    int is_double = npy_deferred_element_size(w) == sizeof(npy_double), nans = 0;
    *nruns = PyArray_MIN(*nruns, RUNS_AT_A_TIME);
    int result = sum_each(w, position, n, nruns, (char *)&sums);
    if (result != 0) {
        return result;
    }
    for (npy_intp i = 0; i < *nruns; i++) {
        if (is_double) {
            nans |= npy_isnan(sums.wide[i]);
            *(npy_double *)(into + i * stride) += sums.wide[i];
        }
        else {
            nans |= npy_isnan(sums.narrow[i]);
            *(npy_float *)(into + i * stride) += sums.narrow[i];
        }
    }
    return nans;
}

/* As that, by NumPy's loop. */
static int
loop_over_short_runs(worker *w, npy_intp position, npy_intp n, npy_intp *nruns,
                     char *into, int first)
{
    npy_intp size = npy_deferred_element_size(w);
    char *data;
    int result = provide_runs(w, position, n, nruns, &data);
    for (npy_intp i = 0; i < *nruns && result == 0; i++) {
        if (first) {
            memcpy(into, data, size);
        }
        if (n > first) {
            result = run_loop(w, into, 0, data + first * size, n - first);
        }
        into += w->r->strides[1];
        data += n * size;
    }
    return result;
}

/*
 * All runs that have these indices on one axis, in the order of memory.  Returns as
 * npy_deferred_execute.
 */
NPY_NO_EXPORT int
npy_deferred_reduce_range(worker *w, int ranged, npy_intp from, npy_intp to)
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
        npy_intp nruns = 1;
        if (are_short_sums(w, shape[0], first)) {
            nruns = shape[1] - index[1];
            result = sum_short_runs(w, position, shape[0], &nruns, into);
        }
        else if (are_short_loops(w, shape[0])) {
            nruns = shape[1] - index[1];
            result = loop_over_short_runs(w, position, shape[0], &nruns, into, first);
        }
        else if (joins_rows(w, shape[0], first)) {
            nruns = PyArray_MIN(shape[1] - index[1], MAX_JOINED / shape[0] + 1);
            result = after_joining(npy_deferred_join_rows(&w->pieces, position,
                                                          shape[0], nruns, into));
        }
        else {
            result = r->strides[0] == 0
                             ? npy_deferred_reduce_run(w, position, shape[0], into,
                                                       first)
                             : combine_run(w, position, shape[0], into, first);
        }
        section -= nruns * shape[0];
        for (axis = 1; axis < r->naxes; axis++) {
            into += nruns * r->strides[axis];
            position += nruns * r->steps[axis];
            index[axis] += nruns;
            if (index[axis] < shape[axis]) {
                break;
            }
            into -= index[axis] * r->strides[axis];
            position -= index[axis] * r->steps[axis];
            index[axis] = 0;
            nruns = 1;
        }
    }
    return result;
}
