/*
 * Pieces: the values of a walk, some at a time, in the L1 cache.
 *
 * Who reduces them (reduce.c) asks for elements in whatever order; one thread has
 * one such structure.  None of this needs the GIL but init and clear.
 */
#ifndef NUMPY_DEFERRED_PIECES_H_
#define NUMPY_DEFERRED_PIECES_H_

#ifndef NPY_DEFERRED_IMPLEMENTATION
#    error "this header is private to numpy_deferred"
#endif

#include "deferred.h"
#include "dtype_transfer.h"

/* What a longest piece may have of elements, whatever their type. */
#define NPY_DEFERRED_MAX_PIECE 4096

/*
 * Beside what npy_deferred_execute returns: something was raised that an error state
 * wants to know of, and it is not known by what.  Without a program it is.
 */
#define NPY_DEFERRED_RAISED 4

typedef struct {
    const npy_deferred_walk *walk;     /* borrowed */
    npy_deferred_evaluator *evaluator; /* borrowed */
    npy_intp elsize, uncast_elsize;
    npy_intp run;          /* elements */
    npy_intp piece, part;  /* elements: evaluated at a time, wanted at most */
    npy_intp start, count; /* which elements are in `values` */
    npy_intp until; /* where those end that are wanted for now: set by the user */
    char *memory;   /* owned */
    char *values;   /* in it: piece + part, aligned */
    char *uncast;   /* in it: a piece of the operand's type; NULL: no cast */
    NPY_cast_info cast;
    int status; /* NPY_FPE_* that the user and casts have raised */
    int wanted; /* of these: what an error state wants to know of */
    int is_lone;
    int has_whole_runs; /* no row of the walk ends within a run */
    int reduces_rows;   /* whether join_rows, or sum_rows, can be used */
    npy_intp unsettled; /* elements, from the program, since the status was read */
    /* For npy_deferred_fold; NULL: it cannot be used. */
    npy_deferred_tile_instruction *folding; /* owned: the program */
    char *folded; /* in it, aligned: TILE_BYTES, set and read by the user */
    npy_deferred_lone_program lone;
} npy_deferred_pieces;

/*
 * Values of type `from` become `to`, another one if `is_cast`.  A plan that is a
 * program is run as such if `as_program`.  They are asked for by runs of `run`
 * elements, and nothing of two runs at a time but by provide.  Returns 0 or -1 with an
 * exception set; clear it in either case.
 */
NPY_NO_EXPORT int
npy_deferred_pieces_init(npy_deferred_pieces *pieces, const npy_deferred_walk *walk,
                         npy_deferred_evaluator *evaluator, PyArray_Descr *from,
                         PyArray_Descr *to, int is_cast, int as_program, npy_intp run);
NPY_NO_EXPORT void
npy_deferred_pieces_clear(npy_deferred_pieces *pieces);
/*
 * Have `n` elements, of a part at most, from `position` on.  What is before is not
 * wanted any more.  Returns as npy_deferred_execute, or RAISED.
 */
NPY_NO_EXPORT int
npy_deferred_provide(npy_deferred_pieces *pieces, npy_intp position, npy_intp n,
                     char **data);
/* As that, as many as there are: `*n` at most, one at least. */
NPY_NO_EXPORT int
npy_deferred_provide_some(npy_deferred_pieces *pieces, npy_intp position, npy_intp *n,
                          char **data);
/*
 * Have folds ready, by this instruction, where the program can.  Returns 0 or -1 with
 * an exception set.
 */
NPY_NO_EXPORT int
npy_deferred_fold_init(npy_deferred_pieces *pieces, int instruction);
/*
 * Fold `n` elements into `folded`, from `position` on, or join them with others; `n` is
 * a multiple of TILE_LENGTH.  Returns as provide, or NANS: there are some.
 */
#define NPY_DEFERRED_NANS 5
NPY_NO_EXPORT int
npy_deferred_fold(npy_deferred_pieces *pieces, npy_intp position, npy_intp n,
                  char *into);
/* Whether the following can be used, where a program was compiled to do that. */
static inline int
npy_deferred_sums_leaves(const npy_deferred_pieces *pieces)
{
    return pieces->is_lone && pieces->has_whole_runs && pieces->uncast == NULL &&
           pieces->lone.reducing_code != NULL;
}
/*
 * The sums of `n` leaves, that lie in one row, from `position` on, which is 0 to them;
 * see tiles.h.  Returns as provide; nobody looks for NaNs.
 */
NPY_NO_EXPORT int
npy_deferred_sum_leaves(npy_deferred_pieces *pieces, npy_intp position,
                        const npy_deferred_tile_leaf leaves[], int n, char *sums);
/*
 * Where runs are rows, and code goes over these (npy_deferred_evaluator_reduce_rows):
 * `length` elements, eight at least, of each of `nrows` runs join as many; or the sums
 * of the leaves of whole ones are stored.  Both return as provide, the former as fold;
 * nobody looks for NaNs that are sums.
 */
NPY_NO_EXPORT int
npy_deferred_join_rows(npy_deferred_pieces *pieces, npy_intp position, npy_intp length,
                       npy_intp nrows, char *into);
NPY_NO_EXPORT int
npy_deferred_sum_rows(npy_deferred_pieces *pieces, npy_intp position, npy_intp nrows,
                      const npy_deferred_tile_leaf leaves[], npy_intp nleaves,
                      char *sums);
/* Read the status, and clear it: at the end, and whenever there is time. */
NPY_NO_EXPORT int
npy_deferred_pieces_settle(npy_deferred_pieces *pieces);

#endif /* NUMPY_DEFERRED_PIECES_H_ */
