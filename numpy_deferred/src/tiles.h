/*
 * Tiles: steps that run together in registers.
 *
 * A *tile program* is a list of instructions for a machine with three banks of
 * registers, each of which holds a tile, some tens of elements.  The machine
 * runs the whole program on one tile, then on the next, so that what is passed
 * from step to step never sees memory.  tiles.c writes programs for the steps of
 * a plan; tiles.dispatch.c.src has the machine, for each type, and is
 * compiled for each instruction set.
 *
 * Complex numbers are two elements of the machine side by side.  Their product is the
 * only operation that is not rounded correctly: it is done as NumPy's loops do it where
 * they have fused multiplication and addition, and is left to them elsewhere.
 *
 * A program gives the bits that NumPy's loops give, as all it does is exact or
 * correctly rounded, unless a NaN is stored: of two NaNs another one may have
 * been kept, or another sign.  The machine tells, and somebody else does it again.
 */
#ifndef NUMPY_DEFERRED_TILES_H_
#define NUMPY_DEFERRED_TILES_H_

#include "numpy/npy_common.h"

/* The machine is written in GNU C. */
#if defined(__GNUC__)
#    define NPY_DEFERRED_HAVE_TILES 1
#else
#    define NPY_DEFERRED_HAVE_TILES 0
#endif

/* What programs work on. */
typedef enum {
    NPY_DEFERRED_TILE_NONE = -1,
    NPY_DEFERRED_TILE_DOUBLE,
    NPY_DEFERRED_TILE_FLOAT,
    NPY_DEFERRED_TILE_INT64, /* with or without a sign */
    NPY_DEFERRED_TILE_INT32,
} npy_deferred_tile_type;

/* What the form of a binary operation adds to its number, and how many forms it has. */
#define NPY_DEFERRED_TILE_FROM_SCALAR 1
#define NPY_DEFERRED_TILE_FROM_BANK 2
#define NPY_DEFERRED_TILE_FROM_LAST 3
#define NPY_DEFERRED_TILE_FORMS 4

/*
 * Operations on a bank.  A binary one has its second operand in memory; in memory
 * for the whole tile, FROM_SCALAR; in the next bank, FROM_BANK; or in the last one,
 * FROM_LAST, where programs keep what they read more than once.  Of one that is
 * REVERSED that is the first operand.  Comparisons leave masks in a bank, all bits
 * of an element or none, which are stored as booleans, or become numbers by ONE.
 * SELECT keeps elements where the mask in the next bank is set, and has others from
 * a second operand, which FROM_BANK is in the one after that; it moves bits.
 * IS_NAN and its kin leave masks of one operand.
 * LARGER and SMALLER are np.maximum and np.minimum where the processor is an x86: of
 * two zeros and two NaNs they keep what vectors of those keep.  RAISE and LOWER keep
 * their own zeros, and have the other operand in memory for the whole tile.
 */
typedef enum {
    NPY_DEFERRED_TILE_ADD = 0,
    NPY_DEFERRED_TILE_SUBTRACT = 1 * NPY_DEFERRED_TILE_FORMS,
    NPY_DEFERRED_TILE_REVERSED_SUBTRACT = 2 * NPY_DEFERRED_TILE_FORMS,
    NPY_DEFERRED_TILE_MULTIPLY = 3 * NPY_DEFERRED_TILE_FORMS,
    NPY_DEFERRED_TILE_DIVIDE = 4 * NPY_DEFERRED_TILE_FORMS,
    NPY_DEFERRED_TILE_REVERSED_DIVIDE = 5 * NPY_DEFERRED_TILE_FORMS,
    NPY_DEFERRED_TILE_AND = 6 * NPY_DEFERRED_TILE_FORMS,
    NPY_DEFERRED_TILE_OR = 7 * NPY_DEFERRED_TILE_FORMS,
    NPY_DEFERRED_TILE_XOR = 8 * NPY_DEFERRED_TILE_FORMS,
    /* these of numbers with a sign */
    NPY_DEFERRED_TILE_LESS = 9 * NPY_DEFERRED_TILE_FORMS,
    NPY_DEFERRED_TILE_LESS_EQUAL = 10 * NPY_DEFERRED_TILE_FORMS,
    NPY_DEFERRED_TILE_GREATER = 11 * NPY_DEFERRED_TILE_FORMS,
    NPY_DEFERRED_TILE_GREATER_EQUAL = 12 * NPY_DEFERRED_TILE_FORMS,
    NPY_DEFERRED_TILE_EQUAL = 13 * NPY_DEFERRED_TILE_FORMS,
    NPY_DEFERRED_TILE_NOT_EQUAL = 14 * NPY_DEFERRED_TILE_FORMS,
    NPY_DEFERRED_TILE_SELECT = 15 * NPY_DEFERRED_TILE_FORMS,
    /* keeps them where it is not set */
    NPY_DEFERRED_TILE_REVERSED_SELECT = 16 * NPY_DEFERRED_TILE_FORMS,
    /* these of numbers with a sign, too */
    NPY_DEFERRED_TILE_LARGER = 17 * NPY_DEFERRED_TILE_FORMS,
    NPY_DEFERRED_TILE_REVERSED_LARGER = 18 * NPY_DEFERRED_TILE_FORMS,
    NPY_DEFERRED_TILE_SMALLER = 19 * NPY_DEFERRED_TILE_FORMS,
    NPY_DEFERRED_TILE_REVERSED_SMALLER = 20 * NPY_DEFERRED_TILE_FORMS,
    /* of complex numbers, neither FROM_SCALAR; where tiles FUSE */
    NPY_DEFERRED_TILE_COMPLEX_MULTIPLY = 21 * NPY_DEFERRED_TILE_FORMS,
    NPY_DEFERRED_TILE_REVERSED_COMPLEX_MULTIPLY = 22 * NPY_DEFERRED_TILE_FORMS,
    /* of integers; all bits go where there are as many steps, or less than none */
    NPY_DEFERRED_TILE_SHIFT_LEFT = 23 * NPY_DEFERRED_TILE_FORMS,
    NPY_DEFERRED_TILE_REVERSED_SHIFT_LEFT = 24 * NPY_DEFERRED_TILE_FORMS,
    NPY_DEFERRED_TILE_SHIFT_RIGHT = 25 * NPY_DEFERRED_TILE_FORMS, /* with a sign */
    NPY_DEFERRED_TILE_REVERSED_SHIFT_RIGHT = 26 * NPY_DEFERRED_TILE_FORMS,
    NPY_DEFERRED_TILE_SHIFT_BITS_RIGHT = 27 * NPY_DEFERRED_TILE_FORMS, /* without */
    NPY_DEFERRED_TILE_REVERSED_SHIFT_BITS_RIGHT = 28 * NPY_DEFERRED_TILE_FORMS,
    NPY_DEFERRED_TILE_NEGATIVE = 29 * NPY_DEFERRED_TILE_FORMS,
    NPY_DEFERRED_TILE_COMPLEX_SQUARE, /* as products */
    NPY_DEFERRED_TILE_CONJUGATE,      /* of complex numbers */
    NPY_DEFERRED_TILE_ABSOLUTE,       /* of numbers with a sign */
    NPY_DEFERRED_TILE_SQUARE,
    NPY_DEFERRED_TILE_SQRT,
    NPY_DEFERRED_TILE_RECIPROCAL,
    NPY_DEFERRED_TILE_FLOOR,
    NPY_DEFERRED_TILE_CEIL,
    NPY_DEFERRED_TILE_TRUNC,
    NPY_DEFERRED_TILE_RINT,
    NPY_DEFERRED_TILE_IS_NAN,
    NPY_DEFERRED_TILE_IS_INF,
    NPY_DEFERRED_TILE_IS_FINITE,
    NPY_DEFERRED_TILE_POSITIVE, /* in no program, as there is nothing to do */
    NPY_DEFERRED_TILE_INVERT,
    NPY_DEFERRED_TILE_ONE, /* of a mask: 1 where it is set, else 0; the last unary one
                            */
    NPY_DEFERRED_TILE_RAISE,
    NPY_DEFERRED_TILE_LOWER,
    NPY_DEFERRED_TILE_LOAD,
    NPY_DEFERRED_TILE_LOAD_LAST, /* what is in the last bank */
    NPY_DEFERRED_TILE_LOAD_SCALAR,
    NPY_DEFERRED_TILE_LOAD_COMPLEX_SCALAR,
    NPY_DEFERRED_TILE_LOAD_STRIDED,
    NPY_DEFERRED_TILE_LOAD_FLOAT,
    NPY_DEFERRED_TILE_LOAD_INT64,
    NPY_DEFERRED_TILE_LOAD_INT32,
    NPY_DEFERRED_TILE_LOAD_UINT32,
    NPY_DEFERRED_TILE_LOAD_INT16,
    NPY_DEFERRED_TILE_LOAD_UINT16,
    NPY_DEFERRED_TILE_LOAD_INT8,
    NPY_DEFERRED_TILE_LOAD_UINT8,
    NPY_DEFERRED_TILE_LOAD_TRUTH, /* booleans as a mask */
    NPY_DEFERRED_TILE_STORE,
    NPY_DEFERRED_TILE_STREAM,      /* past the cache, where vectors are aligned */
    NPY_DEFERRED_TILE_STORE_TRUTH, /* a mask as booleans */
    /* Instead of STORE, of the first bank: a tile into the same memory each time. */
    NPY_DEFERRED_TILE_FOLD_SUM, /* of integers */
    NPY_DEFERRED_TILE_FOLD_LARGEST,
    NPY_DEFERRED_TILE_FOLD_SMALLEST,
    /* instead of STORE_TRUTH: how often each element of the mask was set */
    NPY_DEFERRED_TILE_FOLD_COUNT,
    /* each into its own: added to what is in memory, or the larger or smaller of both
     */
    NPY_DEFERRED_TILE_JOIN_SUM,
    NPY_DEFERRED_TILE_JOIN_LARGEST,
    NPY_DEFERRED_TILE_JOIN_SMALLEST,
    /* Machine code only, with tiles of eight: sums of each eighth element, and at the
     * end of a leaf the sum of all. */
    NPY_DEFERRED_TILE_SUM_EIGHTHS,
    NPY_DEFERRED_TILE_OPERATIONS, /* how many there are */
} npy_deferred_tile_operation;

/* Whether one instruction may come instead of the other, which stores a result. */
static inline int
npy_deferred_can_end_by(int store, int instruction)
{
    int of_masks = instruction == NPY_DEFERRED_TILE_FOLD_COUNT;
    return of_masks ? store == NPY_DEFERRED_TILE_STORE_TRUTH
                    : store == NPY_DEFERRED_TILE_STORE ||
                              store == NPY_DEFERRED_TILE_STREAM;
}

static inline int
npy_deferred_tile_joins(int instruction)
{
    return instruction == NPY_DEFERRED_TILE_JOIN_SUM ||
           instruction == NPY_DEFERRED_TILE_JOIN_LARGEST ||
           instruction == NPY_DEFERRED_TILE_JOIN_SMALLEST;
}

#define NPY_DEFERRED_TILE_BANKS 3
/* The instruction after the last one of a program, in no bank. */
#define NPY_DEFERRED_TILE_END (NPY_DEFERRED_TILE_BANKS * NPY_DEFERRED_TILE_OPERATIONS)

typedef struct {
    npy_uint16 code; /* operation + bank * OPERATIONS, or END */
    npy_uint16 arg;  /* what is in memory, by its number */
} npy_deferred_tile_instruction;

typedef enum {
    NPY_DEFERRED_TILE_READ,
    NPY_DEFERRED_TILE_READ_SCALAR,
    NPY_DEFERRED_TILE_WRITTEN,
} npy_deferred_tile_access;

/* What an instruction finds in memory. */
typedef struct {
    npy_uint16 value; /* of the plan */
    npy_uint8 access;
    npy_uint8 elsize; /* of a part */
} npy_deferred_tile_arg;

/*
 * A program as machine code (machine_code.c): run it on elements from `start` to `end`,
 * whole tiles of CODE_BYTES, one at least.  Returns as a machine.
 */
#define NPY_DEFERRED_TILE_CODE_BYTES 128
typedef int(npy_deferred_tile_code)(char *const data[], npy_intp start, npy_intp end);
/* Where a leaf ends, and the last eight elements of it that are in accumulators. */
typedef struct {
    npy_intp whole, end;
} npy_deferred_tile_leaf;
/*
 * That of a program which ends with SUM_EIGHTHS: leaf after leaf, each of eight
 * elements or more, from `start` on, as they follow each other; their sums are stored
 * side by side.  The last end is that of one more leaf, which has nothing.  It changes
 * `data`.
 */
typedef int(npy_deferred_tile_leaves)(char *data[], npy_intp start,
                                      const npy_deferred_tile_leaf leaves[]);

/*
 * That of a program which goes over `nrows` rows of `length` elements, a vector at
 * least; at NPY_DEFERRED_TILE_MAX_ARGS more than the address of an argument is, as a
 * pointer, how far away its next row is.  It changes `data`.
 */
typedef int(npy_deferred_tile_rows)(char *data[], npy_intp nrows, npy_intp length);
/* How it finds what it reads. */
enum {
    NPY_DEFERRED_TILE_STAYS,   /* one element for all rows */
    NPY_DEFERRED_TILE_REPEATS, /* one for each row */
    NPY_DEFERRED_TILE_FOLLOWS, /* elements side by side */
};

/* How machine code stores what is to be streamed. */
typedef enum {
    NPY_DEFERRED_TILE_NO_STREAM,
    NPY_DEFERRED_TILE_STREAM_VECTORS, /* where it is aligned for 32 bytes */
    NPY_DEFERRED_TILE_STREAM_HALVES,  /* for 16, as malloc's memory is */
} npy_deferred_tile_streams;

typedef struct {
    int nargs;
    int parts; /* of an element: 2 of a complex one, which are elements to the rest */
    int overlaps; /* whether what is written may be read too */
    int streams;  /* whether STREAM goes past the cache, else it is STORE */
    const npy_deferred_tile_instruction *code;
    const npy_deferred_tile_arg *args;
    const npy_intp *strides;              /* bytes, for each argument, of parts */
    npy_deferred_tile_code *machine_code; /* the same; NULL: there is none */
} npy_deferred_tile_program;

#define NPY_DEFERRED_TILE_MAX_ARGS 33

/* What a tile has at most; lengths should be multiples of it. */
#define NPY_DEFERRED_TILE_BYTES 512
#define NPY_DEFERRED_TILE_LENGTH 128

/* After programs, and before other threads read what these have streamed. */
static inline void
npy_deferred_end_streams(void)
{
#if defined(__SSE2__)
    __builtin_ia32_sfence();
#endif
}

/*
 * Run a program on `n` elements, from `data` on for each argument.  Returns
 * whether a NaN was stored.
 */
typedef int(npy_deferred_tile_machine)(const npy_deferred_tile_program *program,
                                       char *const data[], npy_intp n);

/* What the machine that the processor has can do; some of these. */
typedef int(npy_deferred_tile_traits)(void);
enum {
    NPY_DEFERRED_TILES_FUSE = 1,     /* it multiplies complex numbers */
    NPY_DEFERRED_TILES_FIT_CODE = 2, /* tiles are made of those of machine code */
};

/* The sum of `n` elements side by side, one at least, in the order NumPy's loops have.
 */
typedef void(npy_deferred_tile_sum)(const char *from, npy_intp n, char *sum);
/* As that, of `count` times so many elements each. */
typedef void(npy_deferred_tile_sums)(const char *from, npy_intp n, npy_intp count,
                                     char *sums);
/*
 * `*result` becomes the largest, or smallest, of itself and `n` elements.  Returns
 * whether one of these is a NaN; it has done nothing then.
 */
typedef int(npy_deferred_tile_extreme)(const char *from, npy_intp n, char *result);
/*
 * `n` elements are added to others, or become the larger or smaller ones.  Returns how
 * many are done: next come a NaN, zeros of two signs, or the end.
 */
typedef npy_intp(npy_deferred_tile_join)(char *into, const char *from, npy_intp n);

typedef enum {
    NPY_DEFERRED_TILE_NO_REDUCTION,
    NPY_DEFERRED_TILE_SUM,
    NPY_DEFERRED_TILE_LARGEST,
    NPY_DEFERRED_TILE_SMALLEST,
} npy_deferred_tile_reduction;

/*
 * What there is of these; NULL: NumPy's loop is to do it.  By `fold`, where order does
 * not matter, a program reduces whole tiles itself, of the type that is reduced; it
 * leaves NaNs out, and keeps either of two zeros.
 */
typedef struct {
    npy_deferred_tile_sum *add_up;
    npy_deferred_tile_sums *add_up_each;
    npy_deferred_tile_extreme *extreme;
    npy_deferred_tile_join *join;
    int fold;    /* the instruction, or -1 */
    int joining; /* into as many others: the instruction, or -1 */
} npy_deferred_tile_reducer;

#endif /* NUMPY_DEFERRED_TILES_H_ */
