/*
 * Pieces of a walk: see pieces.h.
 *
 * A plan that is one tile program is run right here, on as much as leaves the L1
 * cache to whoever reads next; that is so little that memory is read all the time,
 * and not by turns with what is done to the values.  Nobody looks at the NaNs that
 * it may have chosen otherwise than eager NumPy, so they must not show in what is
 * made of the values; the status is read much later, and tells no more than that
 * it must all be done again without the program.
 *
 * Other plans are evaluated (evaluator.c) in larger pieces, as each takes some time
 * to begin with.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"
#include "numpy/npy_math.h"

#include "pieces.h"

#include "lowlevel_strided_loops.h"

#include <stddef.h>
#include <stdint.h>

/* Bytes that are evaluated at a time, in the type that is wanted. */
#define PIECE_BYTES 16384
/*
 * Measured: with twice as many, 80 MB are read for a sum in a fifth more time, as
 * memory is not read all the time; what is in the cache anyway takes a tenth less.
 */
#define PROGRAM_BYTES 4096
#define CACHED_BYTES (512 << 10)
#define ALIGNMENT 64
/* Elements after which the status is looked at. */
#define SETTLE_EVERY 65536

static char *
align(char *position)
{
    return (char *)(((uintptr_t)position + ALIGNMENT - 1) &
                    ~(uintptr_t)(ALIGNMENT - 1));
}

NPY_NO_EXPORT int
npy_deferred_pieces_init(npy_deferred_pieces *pieces, const npy_deferred_walk *walk,
                         npy_deferred_evaluator *evaluator, PyArray_Descr *from,
                         PyArray_Descr *to, int is_cast, int as_program, npy_intp run)
{
    memset(pieces, 0, offsetof(npy_deferred_pieces, lone)); /* that is the last */
    NPY_cast_info_init(&pieces->cast);
    pieces->walk = walk;
    pieces->evaluator = evaluator;
    pieces->elsize = to->elsize;
    pieces->uncast_elsize = from->elsize;
    pieces->run = run;
    pieces->has_whole_runs = !walk->rows || walk->runs.length % run == 0;
    pieces->is_lone =
            as_program && npy_deferred_evaluator_program(evaluator, &pieces->lone);
    pieces->reduces_rows = as_program && !is_cast &&
                           npy_deferred_evaluator_reduces_rows(evaluator, run);
    npy_intp nbytes = !pieces->is_lone                            ? PIECE_BYTES
                      : PyArray_NBYTES(walk->out) <= CACHED_BYTES ? 2 * PROGRAM_BYTES
                                                                  : PROGRAM_BYTES;
    pieces->piece = PyArray_MIN(nbytes / to->elsize, NPY_DEFERRED_MAX_PIECE);
    pieces->part = pieces->is_lone ? pieces->piece : pieces->piece / 2;
    nbytes = (pieces->piece + pieces->part) * to->elsize;
    pieces->memory = PyMem_RawMalloc(ALIGNMENT + nbytes +
                                     pieces->piece * from->elsize * is_cast);
    if (pieces->memory == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    pieces->values = align(pieces->memory);
    if (!is_cast) {
        return 0;
    }
    pieces->uncast = pieces->values + nbytes;
    NPY_ARRAYMETHOD_FLAGS flags;
    return PyArray_GetDTypeTransferFunction(1, from->elsize, to->elsize, from, to, 0,
                                            &pieces->cast, &flags) == NPY_SUCCEED
                   ? 0
                   : -1;
}

NPY_NO_EXPORT void
npy_deferred_pieces_clear(npy_deferred_pieces *pieces)
{
    PyMem_RawFree(pieces->memory);
    PyMem_RawFree(pieces->folding);
    NPY_cast_info_xfree(&pieces->cast);
}

/* The NPY_FPE_* that are set, which are not any more.  To clear them takes longer. */
static int
take_status(npy_deferred_pieces *pieces)
{
    int status = npy_get_floatstatus_barrier((char *)pieces);
    if (status != 0) {
        npy_clear_floatstatus_barrier((char *)pieces);
    }
    return status;
}

NPY_NO_EXPORT int
npy_deferred_pieces_settle(npy_deferred_pieces *pieces)
{
    int status = take_status(pieces), of_program = pieces->unsettled > 0;
    pieces->unsettled = 0;
    pieces->status |= status;
    return of_program && (status & (pieces->wanted | pieces->lone.wanted))
                   ? NPY_DEFERRED_RAISED
                   : 0;
}

static int
cast(npy_deferred_pieces *pieces, char *to, npy_intp n)
{
    char *data[2] = {pieces->uncast, to};
    npy_intp strides[2] = {pieces->uncast_elsize, pieces->elsize};
    return pieces->uncast == NULL ? 0
                                  : pieces->cast.func(&pieces->cast.context, data, &n,
                                                      strides, pieces->cast.auxdata);
}

static int
after_program(npy_deferred_pieces *pieces, npy_intp n)
{
    int result = 0;
    pieces->unsettled += n;
    if (pieces->unsettled > SETTLE_EVERY) {
        result = npy_deferred_pieces_settle(pieces);
    }
    return result != 0 ? result : npy_deferred_evaluator_look(pieces->evaluator, n);
}

/* `n` elements by the program. */
static int
run_program(npy_deferred_pieces *pieces, npy_intp position, npy_intp n)
{
    npy_deferred_lone_program *lone = &pieces->lone;
    char *into = pieces->uncast != NULL ? pieces->uncast : pieces->values;
    pieces->start = position;
    pieces->count = n;
    for (npy_intp done = 0; done < n;) {
        npy_intp some = npy_deferred_program_seek(lone, position + done);
        some = PyArray_MIN(some, n - done);
        lone->data[lone->out] = into + done * pieces->uncast_elsize;
        lone->machine(&lone->program, lone->data, some);
        done += some;
    }
    int result = cast(pieces, pieces->values, n);
    return result != 0 ? result : after_program(pieces, n);
}

NPY_NO_EXPORT int
npy_deferred_fold_init(npy_deferred_pieces *pieces, int instruction)
{
    const npy_deferred_tile_instruction *code = pieces->lone.program.code;
    size_t length = 1;
    /* Counts are not what would be cast. */
    int is_cast = pieces->uncast != NULL && instruction != NPY_DEFERRED_TILE_FOLD_COUNT;
    if (!pieces->is_lone || !pieces->has_whole_runs || is_cast) {
        return 0;
    }
    while (code[length].code != NPY_DEFERRED_TILE_END) {
        length++;
    }
    if (!npy_deferred_can_end_by(code[length - 1].code, instruction)) {
        return 0;
    }
    size_t nbytes = (length + 1) * sizeof(*code);
    pieces->folding = PyMem_RawMalloc(nbytes + ALIGNMENT - 1 + NPY_DEFERRED_TILE_BYTES);
    if (pieces->folding == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(pieces->folding, code, nbytes);
    pieces->folding[length - 1].code = (npy_uint16)instruction;
    pieces->folded = align((char *)pieces->folding + nbytes);
    return 0;
}

NPY_NO_EXPORT int
npy_deferred_fold(npy_deferred_pieces *pieces, npy_intp position, npy_intp n,
                  char *into)
{
    npy_deferred_lone_program *lone = &pieces->lone;
    npy_deferred_tile_program program = lone->program;
    program.code = pieces->folding;
    program.machine_code = lone->reducing_code;
    npy_deferred_program_seek(lone, position);
    lone->data[lone->out] = into;
    int nans = lone->machine(&program, lone->data, n);
    int result = after_program(pieces, n);
    return result != 0 ? result : nans ? NPY_DEFERRED_NANS : 0;
}

NPY_NO_EXPORT int
npy_deferred_sum_leaves(npy_deferred_pieces *pieces, npy_intp position,
                        const npy_deferred_tile_leaf leaves[], int n, char *sums)
{
    npy_deferred_lone_program *lone = &pieces->lone;
    npy_deferred_program_seek(lone, position);
    lone->data[lone->out] = sums;
    ((npy_deferred_tile_leaves *)lone->reducing_code)(lone->data, 0, leaves);
    return after_program(pieces, leaves[n - 1].end);
}

NPY_NO_EXPORT int
npy_deferred_join_rows(npy_deferred_pieces *pieces, npy_intp position, npy_intp length,
                       npy_intp nrows, char *into)
{
    int nans = npy_deferred_evaluator_reduce_rows(
            pieces->evaluator, position, pieces->run, length, nrows, into, NULL, 0);
    int result = after_program(pieces, nrows * length);
    return result != 0 ? result : nans ? NPY_DEFERRED_NANS : 0;
}

NPY_NO_EXPORT int
npy_deferred_sum_rows(npy_deferred_pieces *pieces, npy_intp position, npy_intp nrows,
                      const npy_deferred_tile_leaf leaves[], npy_intp nleaves,
                      char *sums)
{
    npy_deferred_evaluator_reduce_rows(pieces->evaluator, position, pieces->run,
                                       pieces->run, nrows, sums, leaves, nleaves);
    return after_program(pieces, nrows * pieces->run);
}

/* Evaluate the next elements. */
static int
evaluate_more(npy_deferred_pieces *pieces)
{
    npy_intp start = pieces->start + pieces->count;
    npy_intp wanted = pieces->until - start + 2 * NPY_DEFERRED_BLOCK_UNIT - 1;
    wanted = PyArray_MIN(PyArray_MAX(wanted, NPY_DEFERRED_MIN_PIECE), pieces->piece);
    npy_intp n = npy_deferred_piece_length(pieces->walk, start, wanted);
    char *to = pieces->values + pieces->count * pieces->elsize;
    int result = npy_deferred_pieces_settle(pieces);
    if (result != 0) {
        return result;
    }
    result = npy_deferred_evaluate_piece(pieces->evaluator, start, n,
                                         pieces->uncast != NULL ? pieces->uncast : to);
    take_status(pieces); /* what nobody wants to know of the expression */
    if (result == 0) {
        result = cast(pieces, to, n);
    }
    pieces->count += n;
    return result;
}

/* Have them by evaluating what comes after what is there. */
static int
evaluate(npy_deferred_pieces *pieces, npy_intp position, npy_intp n)
{
    const npy_deferred_walk *walk = pieces->walk;
    if (position < pieces->start || position > pieces->start + pieces->count) {
        pieces->start = npy_deferred_piece_start(walk, position);
        pieces->count = 0;
    }
    while (pieces->start + pieces->count < position + n) {
        npy_intp next = pieces->start + pieces->count;
        if (npy_deferred_piece_start(walk, next) != next) {
            /* Too near to the end: see there. */
            pieces->start = npy_deferred_piece_start(walk, position);
            pieces->start -= pieces->start % NPY_DEFERRED_BLOCK_UNIT;
            pieces->count = 0;
        }
        npy_intp used = PyArray_MIN(position - pieces->start, pieces->count);
        pieces->start += used;
        pieces->count -= used;
        memmove(pieces->values, pieces->values + used * pieces->elsize,
                pieces->count * pieces->elsize);
        int result = evaluate_more(pieces);
        if (result != 0) {
            return result;
        }
    }
    return 0;
}

NPY_NO_EXPORT int
npy_deferred_provide(npy_deferred_pieces *pieces, npy_intp position, npy_intp n,
                     char **data)
{
    int result = 0;
    if (position < pieces->start || position + n > pieces->start + pieces->count) {
        /* As many times `n` as there is room for: runs that are alike follow. */
        npy_intp most = PyArray_MIN(pieces->until - position, pieces->piece);
        result = pieces->is_lone
                         ? run_program(pieces, position, n > most ? n : most - most % n)
                         : evaluate(pieces, position, n);
    }
    *data = pieces->values + (position - pieces->start) * pieces->elsize;
    return result;
}

NPY_NO_EXPORT int
npy_deferred_provide_some(npy_deferred_pieces *pieces, npy_intp position, npy_intp *n,
                          char **data)
{
    int result = npy_deferred_provide(pieces, position, 1, data);
    *n = PyArray_MIN(*n, pieces->start + pieces->count - position);
    return result;
}
