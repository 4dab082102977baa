/*
 * Instructions of x86-64 with AVX2, as bytes: for x86_code.c, which has the functions
 * that machine_code.c makes of tile programs, and x86_tiles.c, which has what each
 * instruction of these is.
 *
 * Registers: rdi has the addresses of the arguments, rax the number of the element, rdx
 * where to end, rbx the constants; rcx is for what is looked up in between.  ymm0 to
 * ymm11 are the banks, NANS collects what was stored that is one, the others are for an
 * instruction at a time.
 */
#ifndef NUMPY_DEFERRED_X86_H_
#define NUMPY_DEFERRED_X86_H_

#ifndef NPY_DEFERRED_IMPLEMENTATION
#    error "this header is private to numpy_deferred"
#endif

#include "tiles.h"

#if NPY_DEFERRED_HAVE_TILES && defined(__x86_64__) && !defined(__ILP32__) && \
        (defined(__linux__) || defined(__APPLE__))
#    define NPY_DEFERRED_HAVE_X86 1
#else
#    define NPY_DEFERRED_HAVE_X86 0
#endif

#if NPY_DEFERRED_HAVE_X86

#    define VECTOR_BYTES 32
#    define VECTORS 4 /* of a bank */
#    if VECTORS * VECTOR_BYTES != NPY_DEFERRED_TILE_CODE_BYTES
#        error "what runs machine code counts on whole tiles of it"
#    endif
/* Of tiles of eight: two of the first bank that are not used for anything else. */
#    define EIGHTHS 2

enum {
    RAX,
    RCX,
    RDX,
    RBX,
    RSP,
    RBP,
    RSI,
    RDI,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15
};
#    define SCRATCH RCX
#    define CONSTANTS RBX
/* Of code over rows that adds them: where, from RSP on, is how many elements of the
 * last vector of a row are new. */
#    define NEW_ELEMENTS -8
enum {
    FIRST = 12,
    SECOND,
    THIRD,
    NANS
}; /* vectors for an instruction, and see above */

/* A program that becomes code. */
typedef struct {
    npy_uint8 *start, *at; /* of the code; where the next byte goes */
    npy_deferred_tile_type type;
    int parts; /* of an element: see tiles.h */
    const npy_deferred_tile_arg *args;
    const npy_intp *strides;
    npy_deferred_tile_streams streams;
    const npy_uint8 *in_rows; /* how arguments lie; NULL: it does not go over rows */
    int sums_leaves;          /* it ends with SUM_EIGHTHS, */
    int adds_rows;            /* or with JOIN_SUM */
    int vectors; /* of a bank that are used now: VECTORS, what eight elements take, or 1
                  */
    int unknown; /* there was something that is not known */
    /* What has the address, of elements that do not lie side by side that of the next
     * one; -1: none. */
    int keeper[NPY_DEFERRED_TILE_MAX_ARGS];
    int waiting[NPY_DEFERRED_TILE_MAX_ARGS]; /* the vector of a scalar; -1: none */
} assembly;

static inline int
is_wide(const assembly *a)
{
    return a->type == NPY_DEFERRED_TILE_DOUBLE || a->type == NPY_DEFERRED_TILE_INT64;
}

static inline int
is_float(const assembly *a)
{
    return a->type == NPY_DEFERRED_TILE_DOUBLE || a->type == NPY_DEFERRED_TILE_FLOAT;
}

/* Whether an argument is one element, which serves a whole row at least. */
static inline int
is_repeated(const assembly *a, int arg)
{
    return a->args[arg].access == NPY_DEFERRED_TILE_READ_SCALAR ||
           (a->in_rows != NULL && a->args[arg].access == NPY_DEFERRED_TILE_READ &&
            a->in_rows[arg] != NPY_DEFERRED_TILE_FOLLOWS);
}

static inline int
lanes(const assembly *a)
{
    return is_wide(a) ? 4 : 8;
}

static inline void
byte(assembly *a, int value)
{
    *a->at++ = (npy_uint8)value;
}

static inline void
number(assembly *a, npy_uint64 value, int nbytes)
{
    for (int i = 0; i < nbytes; i++) {
        byte(a, (int)(value >> 8 * i & 0xFF));
    }
}

/* The prefix that an opcode stands with, the table that it is from, and itself. */
#    define OPCODE(prefix, table, code) ((prefix) << 16 | (table) << 8 | (code))
enum {
    P_NONE,
    P_66,
    P_F3,
    P_F2
};
enum {
    T_0F = 1,
    T_0F38,
    T_0F3A
};

#    define MOVE OPCODE(P_NONE, T_0F, 0x28)
#    define LOAD OPCODE(P_NONE, T_0F, 0x10)
#    define STORE OPCODE(P_NONE, T_0F, 0x11)
#    define STORE_PAST_CACHE OPCODE(P_NONE, T_0F, 0x2B)
#    define UPPER_HALF OPCODE(P_66, T_0F3A, 0x19)
#    define SIGNS_TO_GENERAL OPCODE(P_NONE, T_0F, 0x50)
#    define OR_BITS OPCODE(P_66, T_0F, 0xEB)
#    define XOR_BITS OPCODE(P_66, T_0F, 0xEF)
#    define AND_BITS OPCODE(P_66, T_0F, 0xDB)
#    define EQUAL_32 OPCODE(P_66, T_0F, 0x76)

/* What an instruction reads last: a vector, or memory. */
typedef struct {
    int vector; /* -1: memory */
    int base;
    int scale; /* times the number of the element; 0: always there */
    int offset;
} operand;

static inline operand
in_vector(int vector)
{
    return (operand){.vector = vector};
}

static inline operand
at_constant(int offset)
{
    return (operand){-1, CONSTANTS, 0, offset};
}

/* Half of the vectors only, 16 bytes; another form of some instructions. */
#    define HALF 0x1000000
#    define WIDE 0x2000000

/* An instruction of the VEX encoding, with two vectors and an operand. */
static inline void
emit(assembly *a, int opcode, int to, int from, operand last)
{
    int base = last.vector >= 0 ? last.vector : last.base;
    byte(a, 0xC4);
    /* The index is rax, or none. */
    byte(a, (to < 8) << 7 | 1 << 6 | (base < 8) << 5 | (opcode >> 8 & 0xFF));
    byte(a, ((opcode & WIDE) != 0) << 7 | (~from & 15) << 3 | !(opcode & HALF) << 2 |
                    (opcode >> 16 & 3));
    byte(a, opcode & 0xFF);
    if (last.vector >= 0) {
        byte(a, 0xC0 | (to & 7) << 3 | (base & 7));
        return;
    }
    int is_short = last.offset >= -128 && last.offset < 128;
    byte(a, (is_short ? 0x40 : 0x80) | (to & 7) << 3 | 4);
    byte(a, (last.scale == 8 ? 3 : last.scale / 2) << 6 |
                    (last.scale == 0 ? RSP : RAX) << 3 | (base & 7));
    number(a, (npy_uint64)last.offset, is_short ? 1 : 4);
}

static inline void
emit_number(assembly *a, int opcode, int to, int from, operand last, int value)
{
    emit(a, opcode, to, from, last);
    byte(a, value);
}

static inline void
move(assembly *a, int to, int from)
{
    if (to != from) {
        emit(a, MOVE, to, 0, in_vector(from));
    }
}

/* Where it is, or else is put, to be read first. */
static inline int
as_vector(assembly *a, operand from)
{
    if (from.vector >= 0) {
        return from.vector;
    }
    emit(a, LOAD, FIRST, 0, from);
    return FIRST;
}

static inline void
load_address(assembly *a, int to, int arg)
{
    byte(a, 0x48 | (to >= 8) << 2);
    byte(a, 0x8B);
    byte(a, 0x80 | (to & 7) << 3 | RDI);
    number(a, arg * sizeof(char *), 4);
}

/* The register that has the address of an argument now, or of its next element. */
static inline int
address_of(assembly *a, int arg)
{
    if (a->keeper[arg] >= 0) {
        return a->keeper[arg];
    }
    load_address(a, SCRATCH, arg);
    return SCRATCH;
}

/* The i-th vector of a tile that lies there, in elements of that size. */
static inline operand
element(const assembly *a, int base, int size, int i)
{
    return (operand){-1, base, size, i * lanes(a) * size};
}

/* One element, or both parts of one, in all places of a vector. */
static inline void
emit_spread(assembly *a, int to, operand from)
{
    emit(a, OPCODE(P_66, T_0F38, 0x17 + a->parts + is_wide(a)), to, 0, from);
}

/* ---- x86_tiles.c ---- */

/* What the instructions of programs need in memory: at CONSTANTS. */
extern NPY_NO_EXPORT const void *const npy_deferred_x86_constants;
NPY_NO_EXPORT operand
npy_deferred_x86_minus_zero(const assembly *a);
/* The code for an instruction, which does as tiles.h says. */
NPY_NO_EXPORT void
npy_deferred_x86_put(assembly *a, const npy_deferred_tile_instruction *instruction);

/* ---- x86_code.c ---- */

/* A function that runs a program, at `a->at`; it takes no more than so many bytes, of
 * so many instructions. */
NPY_NO_EXPORT void
npy_deferred_x86_put_program(assembly *a, const npy_deferred_tile_instruction *code,
                             int nargs);
NPY_NO_EXPORT size_t
npy_deferred_x86_code_bytes(size_t ncode);

#endif /* NPY_DEFERRED_HAVE_X86 */

#endif /* NUMPY_DEFERRED_X86_H_ */
