/*
 * What each instruction of tile programs is on x86-64 with AVX2: see tiles.h, x86.h.
 *
 * They do as the machine of tiles.dispatch.c.src does, in the same order, and report
 * the same floating-point errors, but that limits and folds may report what a NaN is,
 * after which a block is run again by its steps in any case.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "x86.h"

#if NPY_DEFERRED_HAVE_X86

#    include <stddef.h>

static const struct {
    npy_uint64 sign_double[4], others_double[4], one_double[4];
    npy_uint64 sign_float[4], others_float[4], one_float[4];
    npy_uint64 infinity_double[4], infinity_float[4];
    npy_uint64 second_double[4], second_float[4]; /* the signs of imaginary parts */
    npy_uint64 one_int64[4], one_int32[4], one_byte[4];
    npy_uint64 two_to_52[4], high_half[4], high_offset[4]; /* see load_int64 */
    npy_uint32 by_halves[8]; /* of four vectors, where packing has left their halves */
    npy_uint32 by_parity[8], backwards[8]; /* see load_strided */
    npy_uint64 ones[4], zeros[4];          /* see leave_out_done */
} constants __attribute__((aligned(VECTOR_BYTES))) = {
#    define FOUR(x) {x, x, x, x}
#    define PAIR(x) FOUR((npy_uint64)(x) << 32 | (x))
        FOUR(0x8000000000000000u),
        FOUR(0x7FFFFFFFFFFFFFFFu),
        FOUR(0x3FF0000000000000u),
        PAIR(0x80000000u),
        PAIR(0x7FFFFFFFu),
        PAIR(0x3F800000u),
        FOUR(0x7FF0000000000000u),
        PAIR(0x7F800000u),
        {0, 0x8000000000000000u, 0, 0x8000000000000000u},
        FOUR(0x8000000000000000u),
        FOUR(1),
        PAIR(1),
        FOUR(0x0101010101010101u),
        FOUR(0x4330000000000000u),
        FOUR(0x4530000080000000u),
        FOUR(0x4530000080100000u),
        {0, 4, 1, 5, 2, 6, 3, 7},
        {0, 2, 4, 6, 1, 3, 5, 7},
        {7, 6, 5, 4, 3, 2, 1, 0},
        FOUR(0xFFFFFFFFFFFFFFFFu),
        FOUR(0),
};
#    define CONSTANT(name) ((int)offsetof(__typeof__(constants), name))

NPY_NO_EXPORT const void *const npy_deferred_x86_constants = &constants;

NPY_NO_EXPORT operand
npy_deferred_x86_minus_zero(const assembly *a)
{
    return at_constant(is_wide(a) ? CONSTANT(sign_double) : CONSTANT(sign_float));
}

/* Of double, float, int64, int32; 0: there is none. */
#    define OF_TYPES(d, f, l, i) {OPCODE(P_66, T_0F, d), OPCODE(P_NONE, T_0F, f), l, i}
#    define INTEGERS(code) OPCODE(P_66, T_0F, code)
static const int add_codes[] = OF_TYPES(0x58, 0x58, INTEGERS(0xD4), INTEGERS(0xFE));
static const int subtract_codes[] =
        OF_TYPES(0x5C, 0x5C, INTEGERS(0xFB), INTEGERS(0xFA));
static const int multiply_codes[] = OF_TYPES(0x59, 0x59, 0, OPCODE(P_66, T_0F38, 0x40));
static const int divide_codes[] = OF_TYPES(0x5E, 0x5E, 0, 0);
static const int and_codes[] = OF_TYPES(0x54, 0x54, AND_BITS, AND_BITS);
static const int or_codes[] = OF_TYPES(0x56, 0x56, OR_BITS, OR_BITS);
static const int xor_codes[] = OF_TYPES(0x57, 0x57, XOR_BITS, XOR_BITS);
static const int larger_codes[] = OF_TYPES(0x5F, 0x5F, 0, OPCODE(P_66, T_0F38, 0x3D));
static const int smaller_codes[] = OF_TYPES(0x5D, 0x5D, 0, OPCODE(P_66, T_0F38, 0x39));
static const int sqrt_codes[] = OF_TYPES(0x51, 0x51, 0, 0);
/* With a number behind them: how. */
static const int round_codes[] = {OPCODE(P_66, T_0F3A, 0x09),
                                  OPCODE(P_66, T_0F3A, 0x08), 0, 0};
enum {
    TO_NEAREST = 8, /* and raise nothing */
    TO_NEGATIVE,
    TO_POSITIVE,
    TO_ZERO
};
#    define SHIFTS(code) \
        {0, 0, OPCODE(P_66, T_0F38, code) | WIDE, OPCODE(P_66, T_0F38, code)}
static const int shift_left_codes[] = SHIFTS(0x47);
static const int shift_bits_right_codes[] = SHIFTS(0x45);
#    define SHIFT_RIGHT_32 OPCODE(P_66, T_0F38, 0x46)
/* With a number behind them: which comparison. */
static const int compare_codes[] = OF_TYPES(0xC2, 0xC2, 0, 0);
static const int greater_codes[] = {0, 0, OPCODE(P_66, T_0F38, 0x37), INTEGERS(0x66)};
static const int equal_codes[] = {0, 0, OPCODE(P_66, T_0F38, 0x29), EQUAL_32};
/* With a number behind them: the vector of the mask. */
#    define BY_MASK(code) OPCODE(P_66, T_0F3A, code)
static const int choose_codes[] = {BY_MASK(0x4B), BY_MASK(0x4A), BY_MASK(0x4B),
                                   BY_MASK(0x4A)};
/* Comparisons, as the compiler has them: those of order report NaNs. */
enum {
    IS_EQUAL = 0,
    IS_LESS = 1,
    IS_LESS_EQUAL = 2,
    IS_UNORDERED = 3,
    IS_NOT_EQUAL = 4,
    IS_LESS_QUIETLY = 17,
    IS_GREATER_EQUAL = 13,
    IS_GREATER = 14
};

static void
emit_not(assembly *a, int vector)
{
    emit(a, EQUAL_32, THIRD, THIRD, in_vector(THIRD));
    emit(a, XOR_BITS, vector, vector, in_vector(THIRD));
}

/* The i-th vector of a bank. */
static int
register_of(int bank, int i)
{
    return bank * VECTORS + i;
}

/* Of 64 bits, as the processor has no such product: of halves, what is left of it. */
static void
multiply_wide(assembly *a, int x, operand last)
{
    const int product = OPCODE(P_66, T_0F, 0xF4), shift = OPCODE(P_66, T_0F, 0x73);
    const int right = 2, left = 6; /* what the opcode of a shift has for a register */
    int y = as_vector(a, last);
    emit_number(a, shift, right, SECOND, in_vector(x), 32);
    emit(a, product, SECOND, SECOND, in_vector(y));
    emit_number(a, shift, right, THIRD, in_vector(y), 32);
    emit(a, product, THIRD, THIRD, in_vector(x));
    emit(a, add_codes[NPY_DEFERRED_TILE_INT64], SECOND, SECOND, in_vector(THIRD));
    emit_number(a, shift, left, SECOND, in_vector(SECOND), 32);
    emit(a, product, x, x, in_vector(y));
    emit(a, add_codes[NPY_DEFERRED_TILE_INT64], x, x, in_vector(SECOND));
}

static void
compare(assembly *a, int kind, int x, operand last)
{
    const struct {
        int kind, of_floats, is_equality, is_reversed, is_negated;
    } all[] = {
            {NPY_DEFERRED_TILE_LESS, IS_LESS, 0, 1, 0},
            {NPY_DEFERRED_TILE_LESS_EQUAL, IS_LESS_EQUAL, 0, 0, 1},
            {NPY_DEFERRED_TILE_GREATER, IS_GREATER, 0, 0, 0},
            {NPY_DEFERRED_TILE_GREATER_EQUAL, IS_GREATER_EQUAL, 0, 1, 1},
            {NPY_DEFERRED_TILE_EQUAL, IS_EQUAL, 1, 0, 0},
            {NPY_DEFERRED_TILE_NOT_EQUAL, IS_NOT_EQUAL, 1, 0, 1},
    };
    int i = (kind - NPY_DEFERRED_TILE_LESS) / NPY_DEFERRED_TILE_FORMS;
    assert(all[i].kind == kind);
    if (is_float(a)) {
        emit_number(a, compare_codes[a->type], x, x, last, all[i].of_floats);
        return;
    }
    int opcode = all[i].is_equality ? equal_codes[a->type] : greater_codes[a->type];
    if (all[i].is_reversed) {
        emit(a, opcode, x, as_vector(a, last), in_vector(x));
    }
    else {
        emit(a, opcode, x, x, last);
    }
    if (all[i].is_negated) {
        emit_not(a, x);
    }
}

/* The larger or smaller of two; of floats the first where that is a NaN. */
static void
choose_extreme(assembly *a, int kind, int x, operand last)
{
    int larger = kind == NPY_DEFERRED_TILE_LARGER ||
                 kind == NPY_DEFERRED_TILE_REVERSED_LARGER;
    int is_reversed = kind == NPY_DEFERRED_TILE_REVERSED_LARGER ||
                      kind == NPY_DEFERRED_TILE_REVERSED_SMALLER;
    int opcode = larger ? larger_codes[a->type] : smaller_codes[a->type];
    if (a->type == NPY_DEFERRED_TILE_INT32) {
        emit(a, opcode, x, x, last);
        return;
    }
    int y = as_vector(a, last);
    if (a->type == NPY_DEFERRED_TILE_INT64) {
        emit(a, greater_codes[a->type], SECOND, larger ? x : y,
             in_vector(larger ? y : x));
        emit_number(a, choose_codes[a->type], x, y, in_vector(x), SECOND << 4);
        return;
    }
    int first = is_reversed ? y : x, second = is_reversed ? x : y;
    emit_number(a, compare_codes[a->type], SECOND, first, in_vector(first), IS_EQUAL);
    emit(a, opcode, THIRD, first, in_vector(second));
    emit_number(a, choose_codes[a->type], x, first, in_vector(THIRD), SECOND << 4);
}

/*
 * Of complex numbers, as simd_cmul_f64 of NumPy's loops: the real part of the first
 * times the second, less and plus the imaginary part of the first times the second
 * turned.
 */
static void
multiply_complex(assembly *a, int x, operand last, int is_reversed)
{
    const int order = OPCODE(P_66, T_0F3A, is_wide(a) ? 0x05 : 0x04);
    const int fuse = OPCODE(P_66, T_0F38, 0xA6) | (is_wide(a) ? WIDE : 0);
    const int turned = is_wide(a) ? 0x05 : 0xB1;
    const int real = is_wide(a) ? 0x00 : 0xA0, imaginary = is_wide(a) ? 0x0F : 0xF5;
    int y = as_vector(a, last);
    int first = is_reversed ? y : x, second = is_reversed ? x : y;
    emit_number(a, order, SECOND, 0, in_vector(second), turned);
    emit_number(a, order, THIRD, 0, in_vector(first), imaginary);
    emit(a, multiply_codes[a->type], SECOND, SECOND, in_vector(THIRD));
    emit_number(a, order, THIRD, 0, in_vector(first), real);
    if (is_reversed) {
        emit(a, fuse, x, THIRD, in_vector(SECOND));
        return;
    }
    emit(a, fuse, THIRD, second, in_vector(SECOND));
    move(a, x, THIRD);
}

/* The mask of what is negative. */
static void
find_negative(assembly *a, int mask, int of)
{
    emit(a, XOR_BITS, mask, mask, in_vector(mask));
    emit(a, greater_codes[a->type], mask, mask, in_vector(of));
}

/*
 * With the sign, for which the processor has no such operation of 64 bits: of negative
 * numbers the bits that are not set move.
 */
static void
shift_right(assembly *a, int x, operand last, int is_reversed)
{
    int y = as_vector(a, last);
    int from = is_reversed ? y : x, steps = is_reversed ? x : y;
    if (!is_wide(a)) {
        emit(a, SHIFT_RIGHT_32, x, from, in_vector(steps));
        return;
    }
    find_negative(a, SECOND, from);
    emit(a, XOR_BITS, THIRD, from, in_vector(SECOND));
    emit(a, shift_bits_right_codes[a->type], x, THIRD, in_vector(steps));
    emit(a, XOR_BITS, x, x, in_vector(SECOND));
}

/* A binary operation on one vector of a bank. */
static void
calculate(assembly *a, int kind, int x, operand last)
{
    switch (kind) {
        case NPY_DEFERRED_TILE_ADD:
            emit(a, add_codes[a->type], x, x, last);
            break;
        case NPY_DEFERRED_TILE_SUBTRACT:
            emit(a, subtract_codes[a->type], x, x, last);
            break;
        case NPY_DEFERRED_TILE_REVERSED_SUBTRACT:
            emit(a, subtract_codes[a->type], x, as_vector(a, last), in_vector(x));
            break;
        case NPY_DEFERRED_TILE_MULTIPLY:
            if (a->type == NPY_DEFERRED_TILE_INT64) {
                multiply_wide(a, x, last);
                break;
            }
            emit(a, multiply_codes[a->type], x, x, last);
            break;
        case NPY_DEFERRED_TILE_COMPLEX_MULTIPLY:
        case NPY_DEFERRED_TILE_REVERSED_COMPLEX_MULTIPLY:
            multiply_complex(a, x, last,
                             kind == NPY_DEFERRED_TILE_REVERSED_COMPLEX_MULTIPLY);
            break;
        case NPY_DEFERRED_TILE_DIVIDE:
            emit(a, divide_codes[a->type], x, x, last);
            break;
        case NPY_DEFERRED_TILE_REVERSED_DIVIDE:
            emit(a, divide_codes[a->type], x, as_vector(a, last), in_vector(x));
            break;
        case NPY_DEFERRED_TILE_AND:
            emit(a, and_codes[a->type], x, x, last);
            break;
        case NPY_DEFERRED_TILE_OR:
            emit(a, or_codes[a->type], x, x, last);
            break;
        case NPY_DEFERRED_TILE_XOR:
            emit(a, xor_codes[a->type], x, x, last);
            break;
        case NPY_DEFERRED_TILE_LARGER:
        case NPY_DEFERRED_TILE_REVERSED_LARGER:
        case NPY_DEFERRED_TILE_SMALLER:
        case NPY_DEFERRED_TILE_REVERSED_SMALLER:
            choose_extreme(a, kind, x, last);
            break;
        case NPY_DEFERRED_TILE_SHIFT_LEFT:
            emit(a, shift_left_codes[a->type], x, x, last);
            break;
        case NPY_DEFERRED_TILE_REVERSED_SHIFT_LEFT:
            emit(a, shift_left_codes[a->type], x, as_vector(a, last), in_vector(x));
            break;
        case NPY_DEFERRED_TILE_SHIFT_BITS_RIGHT:
            emit(a, shift_bits_right_codes[a->type], x, x, last);
            break;
        case NPY_DEFERRED_TILE_REVERSED_SHIFT_BITS_RIGHT:
            emit(a, shift_bits_right_codes[a->type], x, as_vector(a, last),
                 in_vector(x));
            break;
        case NPY_DEFERRED_TILE_SHIFT_RIGHT:
        case NPY_DEFERRED_TILE_REVERSED_SHIFT_RIGHT:
            shift_right(a, x, last, kind == NPY_DEFERRED_TILE_REVERSED_SHIFT_RIGHT);
            break;
        default:
            compare(a, kind, x, last);
    }
}

/* The vector that has a scalar now. */
static int
scalar(assembly *a, int arg)
{
    if (a->waiting[arg] >= 0) {
        return a->waiting[arg];
    }
    operand from = {-1, address_of(a, arg), 0, 0};
    emit_spread(a, FIRST, from);
    return FIRST;
}

static void
put_binary(assembly *a, int operation, int bank, int arg)
{
    int form = operation % NPY_DEFERRED_TILE_FORMS, kind = operation - form;
    int is_select = kind == NPY_DEFERRED_TILE_SELECT ||
                    kind == NPY_DEFERRED_TILE_REVERSED_SELECT;
    int next = (bank + 1) % NPY_DEFERRED_TILE_BANKS;
    int other = form == NPY_DEFERRED_TILE_FROM_LAST ? NPY_DEFERRED_TILE_BANKS - 1
                : is_select ? (bank + 2) % NPY_DEFERRED_TILE_BANKS
                            : next;
    if (form == 0 && is_repeated(a, arg)) {
        form = NPY_DEFERRED_TILE_FROM_SCALAR;
    }
    int base = form == 0 ? address_of(a, arg) : 0;
    int spread = form == NPY_DEFERRED_TILE_FROM_SCALAR ? scalar(a, arg) : 0;
    for (int i = 0; i < a->vectors; i++) {
        int x = register_of(bank, i);
        operand last = form == 0 ? element(a, base, a->args[arg].elsize, i)
                       : form == NPY_DEFERRED_TILE_FROM_SCALAR
                               ? in_vector(spread)
                               : in_vector(register_of(other, i));
        if (!is_select) {
            calculate(a, kind, x, last);
            continue;
        }
        int mask = register_of(next, i) << 4;
        if (kind == NPY_DEFERRED_TILE_SELECT) {
            emit_number(a, choose_codes[a->type], x, as_vector(a, last), in_vector(x),
                        mask);
        }
        else {
            emit_number(a, choose_codes[a->type], x, x, last, mask);
        }
    }
}

static void
round_to(assembly *a, int x, int how)
{
    emit_number(a, round_codes[a->type], x, 0, in_vector(x), how);
}

static void
keep_absolute(assembly *a, int x)
{
    if (is_float(a)) {
        emit(a, AND_BITS, x, x,
             at_constant(is_wide(a) ? CONSTANT(others_double)
                                    : CONSTANT(others_float)));
        return;
    }
    find_negative(a, SECOND, x);
    emit(a, XOR_BITS, x, x, in_vector(SECOND));
    emit(a, subtract_codes[a->type], x, x, in_vector(SECOND));
}

/* How the size of floats compares with infinity, which raises nothing. */
static void
compare_with_infinity(assembly *a, int x, int how)
{
    keep_absolute(a, x);
    emit_number(a, compare_codes[a->type], x, x,
                at_constant(is_wide(a) ? CONSTANT(infinity_double)
                                       : CONSTANT(infinity_float)),
                how);
}

static void
put_unary(assembly *a, int operation, int bank)
{
    const int wide = is_wide(a), real = is_float(a);
    for (int i = 0; i < a->vectors; i++) {
        int x = register_of(bank, i);
        switch (operation) {
            case NPY_DEFERRED_TILE_NEGATIVE:
                if (real) {
                    emit(a, XOR_BITS, x, x,
                         at_constant(wide ? CONSTANT(sign_double)
                                          : CONSTANT(sign_float)));
                    break;
                }
                emit(a, XOR_BITS, FIRST, FIRST, in_vector(FIRST));
                emit(a, subtract_codes[a->type], x, FIRST, in_vector(x));
                break;
            case NPY_DEFERRED_TILE_ABSOLUTE:
                keep_absolute(a, x);
                break;
            case NPY_DEFERRED_TILE_RECIPROCAL:
                emit(a, LOAD, FIRST, 0,
                     at_constant(wide ? CONSTANT(one_double) : CONSTANT(one_float)));
                emit(a, divide_codes[a->type], x, FIRST, in_vector(x));
                break;
            case NPY_DEFERRED_TILE_FLOOR:
                round_to(a, x, TO_NEGATIVE);
                break;
            case NPY_DEFERRED_TILE_CEIL:
                round_to(a, x, TO_POSITIVE);
                break;
            case NPY_DEFERRED_TILE_TRUNC:
                round_to(a, x, TO_ZERO);
                break;
            case NPY_DEFERRED_TILE_RINT:
                round_to(a, x, TO_NEAREST);
                break;
            case NPY_DEFERRED_TILE_IS_NAN:
                emit_number(a, compare_codes[a->type], x, x, in_vector(x),
                            IS_UNORDERED);
                break;
            case NPY_DEFERRED_TILE_IS_INF:
                compare_with_infinity(a, x, IS_EQUAL);
                break;
            case NPY_DEFERRED_TILE_IS_FINITE:
                compare_with_infinity(a, x, IS_LESS_QUIETLY);
                break;
            case NPY_DEFERRED_TILE_SQUARE:
                calculate(a, NPY_DEFERRED_TILE_MULTIPLY, x, in_vector(x));
                break;
            case NPY_DEFERRED_TILE_COMPLEX_SQUARE:
                multiply_complex(a, x, in_vector(x), 0);
                break;
            case NPY_DEFERRED_TILE_CONJUGATE:
                emit(a, XOR_BITS, x, x,
                     at_constant(wide ? CONSTANT(second_double)
                                      : CONSTANT(second_float)));
                break;
            case NPY_DEFERRED_TILE_SQRT:
                emit(a, sqrt_codes[a->type], x, 0, in_vector(x));
                break;
            case NPY_DEFERRED_TILE_INVERT:
                emit_not(a, x);
                break;
            default: /* ONE */
                emit(a, AND_BITS, x, x,
                     at_constant(
                             real ? (wide ? CONSTANT(one_double) : CONSTANT(one_float))
                                  : (wide ? CONSTANT(one_int64)
                                          : CONSTANT(one_int32))));
        }
    }
}

/* The larger or smaller of two vectors, none of them a NaN; of zeros the first. */
static void
keep_extreme(assembly *a, int larger, int x, int y)
{
    if (is_float(a)) {
        emit(a, larger ? larger_codes[a->type] : smaller_codes[a->type], x, y,
             in_vector(x));
        return;
    }
    choose_extreme(a, larger ? NPY_DEFERRED_TILE_LARGER : NPY_DEFERRED_TILE_SMALLER, x,
                   in_vector(y));
}

/* np.clip's limits: of floats their own zeros, and a NaN for all. */
static void
put_limit(assembly *a, int operation, int bank, int arg)
{
    int raise = operation == NPY_DEFERRED_TILE_RAISE;
    int limit = scalar(a, arg);
    if (is_float(a)) {
        emit_number(a, compare_codes[a->type], SECOND, limit, in_vector(limit),
                    IS_UNORDERED);
    }
    for (int i = 0; i < a->vectors; i++) {
        int x = register_of(bank, i);
        keep_extreme(a, raise, x, limit);
        if (is_float(a)) {
            emit_number(a, choose_codes[a->type], x, x, in_vector(limit), SECOND << 4);
        }
    }
}

/* ---- loads and stores ---- */

/* How integers of so many bytes become those of 8 or 4. */
static int
widening(int size, int has_sign, int wide)
{
    int code = size == 1 ? (wide ? 2 : 1) : size == 2 ? (wide ? 4 : 3) : 5;
    return OPCODE(P_66, T_0F38, (has_sign ? 0x20 : 0x30) + code);
}

/*
 * As a double, of which the processor has no conversion: 2^52 plus the lower half, and
 * 2^84 + 2^63 plus the upper one, have these as their last bits.  What the second has
 * too much is taken from it without rounding; the sum of both rounds once.
 */
static void
load_int64(assembly *a, int to, operand from)
{
    const int shift = OPCODE(P_66, T_0F, 0x73), right = 2;
    const int mix_halves = OPCODE(P_66, T_0F3A, 0x02);
    emit(a, LOAD, to, 0, from);
    emit_number(a, shift, right, SECOND, in_vector(to), 32);
    emit(a, XOR_BITS, SECOND, SECOND, at_constant(CONSTANT(high_half)));
    emit(a, subtract_codes[a->type], SECOND, SECOND,
         at_constant(CONSTANT(high_offset)));
    emit_number(a, mix_halves, to, to, at_constant(CONSTANT(two_to_52)), 0xAA);
    emit(a, add_codes[a->type], to, SECOND, in_vector(to));
}

/* An element, and those that follow it, one by one: into the lower half of `to`. */
static void
load_one_by_one(assembly *a, int to, operand from, npy_intp stride)
{
    const int first_double = OPCODE(P_F2, T_0F, 0x10) | HALF;
    const int second_double = OPCODE(P_66, T_0F, 0x16) | HALF;
    const int first_float = OPCODE(P_F3, T_0F, 0x10) | HALF;
    const int next_float = OPCODE(P_66, T_0F3A, 0x21) | HALF;
    emit(a, is_wide(a) ? first_double : first_float, to, 0, from);
    for (int i = 1; i < lanes(a) / 2; i++) {
        from.offset += (int)stride;
        if (is_wide(a)) {
            emit(a, second_double, to, to, from);
        }
        else {
            emit_number(a, next_float, to, to, from, i << 4);
        }
    }
}

/*
 * Elements that do not lie side by side.  Each second one is in one of two vectors, the
 * last of which ends where the last element does, as nothing beyond it may be read.
 */
static void
load_strided(assembly *a, int to, operand from, npy_intp stride)
{
    const int order_double = OPCODE(P_66, T_0F3A, 0x01) | WIDE;
    const int order_float = OPCODE(P_66, T_0F38, 0x36);
    const int mix = OPCODE(P_66, T_0F3A, is_wide(a) ? 0x0D : 0x0C);
    const int insert_half = OPCODE(P_66, T_0F3A, 0x18);
    const int size = is_wide(a) ? 8 : 4;
    if (stride != 2 * size && stride != -size) {
        load_one_by_one(a, to, from, stride);
        from.offset += (int)stride * lanes(a) / 2;
        load_one_by_one(a, SECOND, from, stride);
        emit_number(a, insert_half, to, to, in_vector(SECOND), 1);
        return;
    }
    if (stride < 0) {
        from.offset -= VECTOR_BYTES - size;
    }
    emit(a, LOAD, to, 0, from);
    if (stride > 0) {
        from.offset += VECTOR_BYTES - size;
        emit_number(a, mix, to, to, from, is_wide(a) ? 0x0A : 0xAA);
    }
    if (is_wide(a)) {
        emit_number(a, order_double, to, 0, in_vector(to), stride > 0 ? 0xD8 : 0x1B);
        return;
    }
    emit(a, LOAD, SECOND, 0,
         at_constant(stride > 0 ? CONSTANT(by_parity) : CONSTANT(backwards)));
    emit(a, order_float, to, SECOND, in_vector(to));
}

static void
load_converted(assembly *a, int to, int operation, operand from)
{
    const int double_from_int32 = OPCODE(P_F3, T_0F, 0xE6);
    const int float_from_int32 = OPCODE(P_NONE, T_0F, 0x5B);
    const int subtract = subtract_codes[NPY_DEFERRED_TILE_DOUBLE];
    int size = from.scale;
    int has_sign = operation == NPY_DEFERRED_TILE_LOAD_INT32 ||
                   operation == NPY_DEFERRED_TILE_LOAD_INT16 ||
                   operation == NPY_DEFERRED_TILE_LOAD_INT8;
    if (operation == NPY_DEFERRED_TILE_LOAD_FLOAT) {
        emit(a, OPCODE(P_NONE, T_0F, 0x5A), to, 0, from);
    }
    else if (a->type == NPY_DEFERRED_TILE_DOUBLE) {
        if (operation == NPY_DEFERRED_TILE_LOAD_INT32) {
            emit(a, double_from_int32, to, 0, from);
            return;
        }
        if (operation == NPY_DEFERRED_TILE_LOAD_INT64) {
            load_int64(a, to, from);
            return;
        }
        if (operation == NPY_DEFERRED_TILE_LOAD_UINT32) {
            emit(a, widening(size, 0, 1), to, 0, from);
            emit(a, OR_BITS, to, to, at_constant(CONSTANT(two_to_52)));
            emit(a, subtract, to, to, at_constant(CONSTANT(two_to_52)));
            return;
        }
        emit(a, widening(size, has_sign, 0) | HALF, to, 0, from);
        emit(a, double_from_int32, to, 0, in_vector(to));
    }
    else {
        emit(a, widening(size, has_sign, is_wide(a)), to, 0, from);
        if (is_float(a)) {
            emit(a, float_from_int32, to, 0, in_vector(to));
        }
    }
}

/* Booleans, which are true unless they are 0, as a mask. */
static void
load_truth(assembly *a, int to, operand from)
{
    emit(a, widening(1, 0, is_wide(a)), to, 0, from);
    emit(a, XOR_BITS, SECOND, SECOND, in_vector(SECOND));
    emit(a,
         is_wide(a) ? greater_codes[NPY_DEFERRED_TILE_INT64]
                    : greater_codes[NPY_DEFERRED_TILE_INT32],
         to, to, in_vector(SECOND));
}

static void
put_load(assembly *a, int operation, int bank, int arg)
{
    if (operation == NPY_DEFERRED_TILE_LOAD_SCALAR ||
        operation == NPY_DEFERRED_TILE_LOAD_COMPLEX_SCALAR ||
        (operation == NPY_DEFERRED_TILE_LOAD && is_repeated(a, arg))) {
        int from = scalar(a, arg);
        for (int i = 0; i < a->vectors; i++) {
            move(a, register_of(bank, i), from);
        }
        return;
    }
    int base = operation == NPY_DEFERRED_TILE_LOAD_LAST ? 0 : address_of(a, arg);
    /* No conversion of one element is known. */
    a->unknown |= operation != NPY_DEFERRED_TILE_LOAD_LAST && is_repeated(a, arg);
    for (int i = 0; i < a->vectors; i++) {
        int to = register_of(bank, i);
        operand from = element(a, base, a->args[arg].elsize, i);
        switch (operation) {
            case NPY_DEFERRED_TILE_LOAD:
                emit(a, LOAD, to, 0, from);
                break;
            case NPY_DEFERRED_TILE_LOAD_LAST:
                move(a, to, register_of(NPY_DEFERRED_TILE_BANKS - 1, i));
                break;
            case NPY_DEFERRED_TILE_LOAD_TRUTH:
                load_truth(a, to, from);
                break;
            case NPY_DEFERRED_TILE_LOAD_STRIDED:
                from.scale = 0;
                from.offset = (int)a->strides[arg] * i * lanes(a);
                load_strided(a, to, from, a->strides[arg]);
                break;
            default:
                load_converted(a, to, operation, from);
        }
    }
}

/* Remember whether there is a NaN in a bank. */
static void
look_for_nans(assembly *a, int bank)
{
    for (int i = 0; i < a->vectors && is_float(a); i += 2) {
        int next = register_of(bank, i + (i + 1 < a->vectors));
        emit_number(a, compare_codes[a->type], SECOND, register_of(bank, i),
                    in_vector(next), IS_UNORDERED);
        emit(a, OR_BITS, NANS, NANS, in_vector(SECOND));
    }
}

static void
put_store(assembly *a, int operation, int bank, int arg)
{
    int base = address_of(a, arg);
    int streams = operation == NPY_DEFERRED_TILE_STREAM ? a->streams
                                                        : NPY_DEFERRED_TILE_NO_STREAM;
    for (int i = 0; i < a->vectors; i++) {
        int from = register_of(bank, i);
        operand to = element(a, base, a->args[arg].elsize, i);
        if (streams == NPY_DEFERRED_TILE_STREAM_HALVES) {
            operand upper = to;
            upper.offset += VECTOR_BYTES / 2;
            emit_number(a, UPPER_HALF, from, 0, in_vector(SECOND), 1);
            emit(a, STORE_PAST_CACHE | HALF, from, 0, to);
            emit(a, STORE_PAST_CACHE | HALF, SECOND, 0, upper);
        }
        else {
            emit(a, streams ? STORE_PAST_CACHE : STORE, from, 0, to);
        }
    }
    look_for_nans(a, bank);
}

#    define PACK_32 OPCODE(P_66, T_0F, 0x6B)
#    define PACK_16 OPCODE(P_66, T_0F, 0x63)
/* Of pairs of floats the first ones, with 0x88 behind it. */
#    define EVERY_SECOND OPCODE(P_NONE, T_0F, 0xC6)

/* One vector of masks as booleans: its bytes in FIRST. */
static void
pack_vector(assembly *a, int mask)
{
    emit_number(a, UPPER_HALF, mask, 0, in_vector(SECOND), 1);
    if (is_wide(a)) {
        emit_number(a, EVERY_SECOND | HALF, FIRST, mask, in_vector(SECOND), 0x88);
        emit(a, PACK_32 | HALF, FIRST, FIRST, in_vector(FIRST));
    }
    else {
        emit(a, PACK_32 | HALF, FIRST, mask, in_vector(SECOND));
    }
    emit(a, PACK_16 | HALF, FIRST, FIRST, in_vector(FIRST));
    emit(a, AND_BITS | HALF, FIRST, FIRST, at_constant(CONSTANT(one_byte)));
}

/* A bank of masks as booleans: what is of no use of each element is left out. */
static void
put_store_truth(assembly *a, int bank, int arg)
{
    const int order = OPCODE(P_66, T_0F38, 0x36);
    const int store_8 = OPCODE(P_66, T_0F, 0xD6) | HALF;
    const int store_4 = OPCODE(P_66, T_0F, 0x7E) | HALF;
    const int masks[VECTORS] = {register_of(bank, 0), register_of(bank, 1),
                                register_of(bank, 2), register_of(bank, 3)};
    operand to = element(a, address_of(a, arg), 1, 0);
    if (a->vectors == 1) {
        pack_vector(a, masks[0]);
        emit(a, is_wide(a) ? store_4 : store_8, FIRST, 0, to);
        return;
    }
    if (!is_wide(a)) {
        emit(a, PACK_32, FIRST, masks[0], in_vector(masks[1]));
        emit(a, PACK_32, SECOND, masks[2], in_vector(masks[3]));
        emit(a, PACK_16, FIRST, FIRST, in_vector(SECOND));
        emit(a, LOAD, SECOND, 0, at_constant(CONSTANT(by_halves)));
        emit(a, order, FIRST, SECOND, in_vector(FIRST));
        emit(a, AND_BITS, FIRST, FIRST, at_constant(CONSTANT(one_byte)));
        emit(a, STORE, FIRST, 0, to);
        return;
    }
    const int parts[VECTORS] = {FIRST, SECOND, SECOND, THIRD};
    for (int i = 0; i < VECTORS; i++) {
        emit_number(a, UPPER_HALF, masks[i], 0, in_vector(parts[i]), 1);
        emit_number(a, EVERY_SECOND | HALF, parts[i], masks[i], in_vector(parts[i]),
                    0x88);
        if (i == 1) {
            emit(a, PACK_32 | HALF, FIRST, FIRST, in_vector(SECOND));
        }
    }
    emit(a, PACK_32 | HALF, SECOND, SECOND, in_vector(THIRD));
    emit(a, PACK_16 | HALF, FIRST, FIRST, in_vector(SECOND));
    emit(a, AND_BITS | HALF, FIRST, FIRST, at_constant(CONSTANT(one_byte)));
    emit(a, STORE | HALF, FIRST, 0, to);
}

/* Of the last vector of a row, have what is joined already be what adds nothing. */
static void
leave_out_done(assembly *a, int x)
{
    operand nothing =
            is_float(a) ? npy_deferred_x86_minus_zero(a) : at_constant(CONSTANT(zeros));
    number(a, 0x244C8B48, 4); /* mov rcx, [rsp + ...] */
    byte(a, NEW_ELEMENTS);
    /* vmovups SECOND, [rbx + rcx * size + ones] */
    byte(a, 0xC5);
    byte(a, 0x7C);
    byte(a, 0x10);
    byte(a, 0x84 | (SECOND & 7) << 3);
    byte(a, (is_wide(a) ? 3 : 2) << 6 | RCX << 3 | CONSTANTS);
    number(a, CONSTANT(ones), 4);
    emit_number(a, choose_codes[a->type], x, x, nothing, SECOND << 4);
}

/* Tell, as of NaNs, where zeros meet of which one is negative. */
static void
look_for_zeros(assembly *a, int x, int y)
{
    int opcode = is_wide(a) ? equal_codes[NPY_DEFERRED_TILE_INT64] : EQUAL_32;
    emit(a, OR_BITS, SECOND, x, in_vector(y));
    emit(a, opcode, SECOND, SECOND, npy_deferred_x86_minus_zero(a));
    emit(a, OR_BITS, NANS, NANS, in_vector(SECOND));
}

/*
 * What reduces a bank, the first one, into memory.  Of NaNs, which comparing would
 * report, no more is done than to tell of them.
 */
static void
put_fold(assembly *a, int operation, int arg)
{
    npy_uint8 *jump = NULL;
    int joins = npy_deferred_tile_joins(operation);
    int is_largest = operation == NPY_DEFERRED_TILE_FOLD_LARGEST ||
                     operation == NPY_DEFERRED_TILE_JOIN_LARGEST;
    int compares = is_largest || operation == NPY_DEFERRED_TILE_FOLD_SMALLEST ||
                   operation == NPY_DEFERRED_TILE_JOIN_SMALLEST;
    if (is_float(a) && compares) {
        emit(a, XOR_BITS, FIRST, FIRST, in_vector(FIRST));
        for (int i = 0; i < a->vectors; i += 2) {
            emit_number(a, compare_codes[a->type], SECOND, i, in_vector(i + 1),
                        IS_UNORDERED);
            emit(a, OR_BITS, FIRST, FIRST, in_vector(SECOND));
        }
        emit(a, OR_BITS, NANS, NANS, in_vector(FIRST));
        emit(a, SIGNS_TO_GENERAL, SCRATCH, 0, in_vector(FIRST));
        /* test ecx, ecx; jnz */
        number(a, 0x850FC985, 4);
        jump = a->at;
        number(a, 0, 4);
    }
    if (a->in_rows != NULL && a->vectors == 1 && !compares) {
        leave_out_done(a, 0);
    }
    int base = address_of(a, arg);
    for (int i = 0; i < a->vectors; i++) {
        operand folded = {-1, base, 0, i * VECTOR_BYTES};
        if (joins) {
            folded = element(a, base, a->args[arg].elsize, i);
        }
        emit(a, LOAD, FIRST, 0, folded);
        if (operation == NPY_DEFERRED_TILE_FOLD_COUNT) {
            emit(a,
                 subtract_codes[is_wide(a) ? NPY_DEFERRED_TILE_INT64
                                           : NPY_DEFERRED_TILE_INT32],
                 FIRST, FIRST, in_vector(i));
        }
        else if (operation == NPY_DEFERRED_TILE_JOIN_SUM ||
                 operation == NPY_DEFERRED_TILE_FOLD_SUM) {
            emit(a, add_codes[a->type], FIRST, FIRST, in_vector(i));
        }
        else {
            if (joins && is_float(a)) {
                look_for_zeros(a, FIRST, i);
            }
            keep_extreme(a, is_largest, FIRST, i);
        }
        emit(a, STORE, FIRST, 0, folded);
    }
    if (jump != NULL) {
        npy_uint8 *end = a->at;
        a->at = jump;
        number(a, (npy_uint64)(end - (jump + 4)), 4);
        a->at = end;
    }
}

NPY_NO_EXPORT void
npy_deferred_x86_put(assembly *a, const npy_deferred_tile_instruction *instruction)
{
    int bank = instruction->code / NPY_DEFERRED_TILE_OPERATIONS;
    int operation = instruction->code % NPY_DEFERRED_TILE_OPERATIONS;
    if (operation < NPY_DEFERRED_TILE_NEGATIVE) {
        put_binary(a, operation, bank, instruction->arg);
        return;
    }
    if (operation <= NPY_DEFERRED_TILE_ONE) {
        put_unary(a, operation, bank);
        return;
    }
    switch (operation) {
        case NPY_DEFERRED_TILE_RAISE:
        case NPY_DEFERRED_TILE_LOWER:
            put_limit(a, operation, bank, instruction->arg);
            break;
        case NPY_DEFERRED_TILE_SUM_EIGHTHS:
            for (int i = 0; i < a->vectors; i++) {
                emit(a, add_codes[a->type], EIGHTHS + i, EIGHTHS + i, in_vector(i));
            }
            break;
        case NPY_DEFERRED_TILE_STORE:
        case NPY_DEFERRED_TILE_STREAM:
            put_store(a, operation, bank, instruction->arg);
            break;
        case NPY_DEFERRED_TILE_STORE_TRUTH:
            put_store_truth(a, bank, instruction->arg);
            break;
        case NPY_DEFERRED_TILE_FOLD_SUM:
        case NPY_DEFERRED_TILE_FOLD_LARGEST:
        case NPY_DEFERRED_TILE_FOLD_SMALLEST:
        case NPY_DEFERRED_TILE_FOLD_COUNT:
        case NPY_DEFERRED_TILE_JOIN_SUM:
        case NPY_DEFERRED_TILE_JOIN_LARGEST:
        case NPY_DEFERRED_TILE_JOIN_SMALLEST:
            put_fold(a, operation, instruction->arg);
            break;
        default:
            put_load(a, operation, bank, instruction->arg);
    }
}

#endif /* NPY_DEFERRED_HAVE_X86 */
