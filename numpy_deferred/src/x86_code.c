/*
 * Tile programs as functions of x86-64 with AVX2: what is around their instructions.
 *
 * Banks are registers; what is in memory for a whole tile, or a whole row, waits in
 * registers that no bank needs, and addresses of arguments are looked up once.  There
 * are three kinds of loops: over tiles of four vectors, over the leaves of pairwise
 * sums, by eight elements, and over rows, each by tiles, vectors and a last vector, or
 * by leaves.  See tiles.h for what these functions take, and x86.h for registers.
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

/* Of an instruction, four times the most that one of its vectors takes; of the rest. */
#    define INSTRUCTION_BYTES 384
#    define REST_BYTES (512 + 64 * NPY_DEFERRED_TILE_MAX_ARGS)

NPY_NO_EXPORT size_t
npy_deferred_x86_code_bytes(size_t ncode)
{
    return REST_BYTES + 2 * ncode * INSTRUCTION_BYTES; /* some of it is there twice */
}

/* What keeps addresses of arguments; from the sixth on they are the caller's. */
static const int keepers[] = {RSI, R8, R9, R10, R11, RBP, R12, R13, R14, R15};
#    define NKEEPERS ((int)(sizeof(keepers) / sizeof(*keepers)))
#    define CALLERS_KEEPER 5

/* Which vectors no bank is in, some of them at most. */
static int
find_free_vectors(const assembly *a, const npy_deferred_tile_instruction *code,
                  int vectors[])
{
    int used[NPY_DEFERRED_TILE_BANKS] = {0}, n = 0;
    for (; code->code != NPY_DEFERRED_TILE_END; code++) {
        int bank = code->code / NPY_DEFERRED_TILE_OPERATIONS;
        int operation = code->code % NPY_DEFERRED_TILE_OPERATIONS;
        used[bank] = 1;
        if (operation % NPY_DEFERRED_TILE_FORMS == NPY_DEFERRED_TILE_FROM_LAST &&
            operation < NPY_DEFERRED_TILE_NEGATIVE) {
            used[NPY_DEFERRED_TILE_BANKS - 1] = 1;
        }
    }
    for (int i = 0; i < NPY_DEFERRED_TILE_BANKS * VECTORS; i++) {
        int is_sum = a->sums_leaves && i >= EIGHTHS && i < VECTORS;
        if ((!used[i / VECTORS] || i % VECTORS >= a->vectors) && !is_sum) {
            vectors[n++] = i;
        }
    }
    return n;
}

/* Whether the elements of an argument are gone through by its address. */
static int
is_strided(const assembly *a, int arg)
{
    return a->args[arg].access == NPY_DEFERRED_TILE_READ &&
           a->strides[arg] != a->args[arg].elsize;
}

/* The address of the element to begin with. */
static void
begin_strided(assembly *a, int arg)
{
    npy_intp most = a->strides[arg] * a->vectors * lanes(a);
    a->unknown |= a->keeper[arg] < 0 || most != (int)most;
    number(a, 0xC86948, 3); /* imul rcx, rax, stride */
    number(a, (npy_uint64)a->strides[arg], 4);
    byte(a, 0x48 | (a->keeper[arg] >= 8)); /* add keeper, rcx */
    byte(a, 0x01);
    byte(a, 0xC0 | RCX << 3 | (a->keeper[arg] & 7));
}

/* Go on to the next tile with all whose elements are. */
static void
advance_strided(assembly *a, int nargs)
{
    for (int i = 0; i < nargs; i++) {
        if (is_strided(a, i)) {
            byte(a, 0x48 | (a->keeper[i] >= 8)); /* add keeper, a tile */
            byte(a, 0x81);
            byte(a, 0xC0 | (a->keeper[i] & 7));
            number(a, (npy_uint64)(a->strides[i] * a->vectors * lanes(a)), 4);
        }
    }
}

/* Have an element where it waits in all places of a vector. */
static void
spread_argument(assembly *a, int arg)
{
    operand from = {-1, address_of(a, arg), 0, 0};
    emit_spread(a, a->waiting[arg], from);
}

/* Keep what the loop needs of its arguments in registers, as long as there are some. */
static void
keep_arguments(assembly *a, const npy_deferred_tile_instruction *code, int nargs)
{
    int vectors[NPY_DEFERRED_TILE_BANKS * VECTORS];
    int nvectors = find_free_vectors(a, code, vectors), nkept = 0;
    for (int i = 0; i < nargs; i++) {
        int stays = is_repeated(a, i) &&
                    (a->in_rows == NULL || a->in_rows[i] == NPY_DEFERRED_TILE_STAYS);
        a->keeper[i] = a->waiting[i] = -1;
        if (!stays && nkept < NKEEPERS) {
            a->keeper[i] = keepers[nkept++];
            load_address(a, a->keeper[i], i);
        }
        if (is_strided(a, i)) {
            begin_strided(a, i);
        }
        if (is_repeated(a, i) && nvectors > 0) {
            a->waiting[i] = vectors[--nvectors];
        }
        if (stays && a->waiting[i] >= 0) {
            spread_argument(a, i);
        }
    }
}

/* Of the registers that are the caller's, onto the stack or back from there. */
static void
save_registers(assembly *a, int restore)
{
    int n = NKEEPERS - CALLERS_KEEPER + 1;
    for (int i = 0; i < n; i++) {
        int at = restore ? n - 1 - i : i;
        int saved = at == 0 ? CONSTANTS : keepers[CALLERS_KEEPER + at - 1];
        if (saved >= 8) {
            byte(a, 0x41);
        }
        byte(a, (restore ? 0x58 : 0x50) + (saved & 7));
    }
}

/* Of eight sums all, in the order that NumPy's loops have: in the first element. */
static void
add_eighths(assembly *a)
{
    const int add_pairs = OPCODE(is_wide(a) ? P_66 : P_F2, T_0F, 0x7C);
    const int add_halves = OPCODE(is_wide(a) ? P_66 : P_NONE, T_0F, 0x58) | HALF;
    emit(a, add_pairs, EIGHTHS, EIGHTHS, in_vector(EIGHTHS + a->vectors - 1));
    if (!is_wide(a)) {
        emit(a, add_pairs, EIGHTHS, EIGHTHS, in_vector(EIGHTHS));
    }
    emit_number(a, UPPER_HALF, EIGHTHS, 0, in_vector(FIRST), 1);
    emit(a, add_halves, EIGHTHS, EIGHTHS, in_vector(FIRST));
    if (is_wide(a)) {
        emit(a, add_pairs | HALF, EIGHTHS, EIGHTHS, in_vector(EIGHTHS));
    }
}

/* Put it into memory, and the next one behind it. */
static void
put_sum(assembly *a, int arg)
{
    const int store_one = OPCODE(is_wide(a) ? P_F2 : P_F3, T_0F, 0x11) | HALF;
    operand to = {-1, address_of(a, arg), 0, 0};
    emit(a, store_one, EIGHTHS, 0, to);
    if (a->keeper[arg] >= 0) {
        byte(a, 0x48 | (a->keeper[arg] >= 8)); /* add keeper, elsize */
        byte(a, 0x83);
        byte(a, 0xC0 | (a->keeper[arg] & 7));
    }
    else {
        number(a, 0x878348, 3); /* add [rdi + ...], elsize */
        number(a, arg * sizeof(char *), 4);
    }
    byte(a, a->args[arg].elsize);
}

/* Conditions of jumps, after a comparison. */
enum {
    IF_LESS = 0x8C,
    IF_NOT_LESS,
    IF_NOT_GREATER,
    IF_GREATER,
    IF_NOT_ZERO = 0x85
};

/* A jump forward, to where jump_here then is put. */
static npy_uint8 *
jump_if(assembly *a, int condition)
{
    number(a, 0x0F | condition << 8, 2);
    number(a, 0, 4);
    return a->at;
}

static void
jump_here(assembly *a, npy_uint8 *from)
{
    npy_uint8 *here = a->at;
    a->at = from - 4;
    number(a, (npy_uint64)(here - from), 4);
    a->at = here;
}

static void
jump_back(assembly *a, int condition, const npy_uint8 *to)
{
    number(a, 0x0F | condition << 8, 2);
    number(a, (npy_uint64)(to - (a->at + 4)), 4);
}

/* The loop over tiles, to where the other register says, or memory that it has. */
static void
put_tiles(assembly *a, const npy_deferred_tile_instruction *code, int nargs)
{
    while ((a->at - a->start) % VECTOR_BYTES != 0) {
        byte(a, 0x90);
    }
    const npy_uint8 *loop = a->at;
    for (; code->code != NPY_DEFERRED_TILE_END; code++) {
        npy_deferred_x86_put(a, code);
    }
    advance_strided(a, nargs);
    number(a, 0x0548, 2); /* add rax, length */
    number(a, a->vectors * lanes(a), 4);
    number(a, a->sums_leaves ? 0x023B48 : 0xD03948, 3); /* cmp rax, [rdx]; rdx */
    jump_back(a, IF_LESS, loop);
}

/*
 * What a leaf has after its last eight elements: the values of eight that end with it,
 * onto the stack, from where those are added one after the other that are new.
 */
static void
put_rest(assembly *a, const npy_deferred_tile_instruction *code, int nargs)
{
    const int size = is_wide(a) ? sizeof(npy_double) : sizeof(npy_float);
    const int below = -8 * (int)sizeof(npy_double); /* the stack, that nobody uses */
    int any_strided = 0;
    for (int i = 0; i < nargs; i++) {
        any_strided |= is_strided(a, i);
    }
    if (any_strided) {
        number(a, 0x08428B48, 4); /* mov rax, [rdx + 8] */
        number(a, 0x022B48, 3);   /* sub rax, [rdx] */
        number(a, 0x08E88348, 4); /* sub rax, 8 */
    }
    for (int i = 0; i < nargs; i++) {
        if (is_strided(a, i)) {
            begin_strided(a, i);
        }
    }
    number(a, 0x08428B48, 4); /* mov rax, [rdx + 8] */
    number(a, 0x08E88348, 4); /* sub rax, 8 */
    for (; code[1].code != NPY_DEFERRED_TILE_END; code++) {
        npy_deferred_x86_put(a, code);
    }
    advance_strided(a, nargs);
    for (int i = 0; i < a->vectors; i++) {
        operand to = {-1, RSP, 0, below + i * VECTOR_BYTES};
        emit(a, STORE, i, 0, to);
    }
    number(a, 0x08C08348, 4); /* add rax, 8 */
    number(a, 0x0A8B48, 3);   /* mov rcx, [rdx] */
    number(a, 0x084A2B48, 4); /* sub rcx, [rdx + 8] */
    const npy_uint8 *loop = a->at;
    /* add the first of EIGHTHS, [rsp + rcx * size + 8 * size + below] */
    byte(a, 0xC5);
    byte(a, 0x80 | (~EIGHTHS & 15) << 3 | (is_wide(a) ? P_F2 : P_F3));
    byte(a, 0x58);
    byte(a, 0x44 | EIGHTHS << 3);
    byte(a, (is_wide(a) ? 3 : 2) << 6 | RCX << 3 | RSP);
    byte(a, below + 8 * size);
    number(a, 0xC1FF48, 3); /* inc rcx */
    jump_back(a, IF_LESS, loop);
}

/* The loop over leaves: at rdx is where the whole eighths of one end, and where it
 * does. */
static void
put_leaves(assembly *a, const npy_deferred_tile_instruction *code, int nargs)
{
    const npy_deferred_tile_instruction *last = code;
    const npy_uint8 *loop = a->at;
    while (last[1].code != NPY_DEFERRED_TILE_END) {
        last++;
    }
    for (int i = 0; i < a->vectors; i++) {
        emit(a, LOAD, EIGHTHS + i, 0, npy_deferred_x86_minus_zero(a));
    }
    put_tiles(a, code, nargs);
    add_eighths(a);
    number(a, 0x08423B48, 4); /* cmp rax, [rdx + 8] */
    npy_uint8 *jump = jump_if(a, IF_NOT_LESS);
    put_rest(a, code, nargs);
    jump_here(a, jump);
    put_sum(a, last->arg);
    number(a, 0x10C28348, 4); /* add rdx, 16 */
    number(a, 0x023B48, 3);   /* cmp rax, [rdx] */
    jump_back(a, IF_LESS, loop);
}

/* Go on to the next row with all that is not the same in each. */
static void
advance_rows(assembly *a, int nargs)
{
    for (int i = 0; i < nargs; i++) {
        int keeper = a->keeper[i];
        npy_uint64 distance = (NPY_DEFERRED_TILE_MAX_ARGS + i) * sizeof(char *);
        if (a->in_rows[i] == NPY_DEFERRED_TILE_STAYS) {
            continue;
        }
        if (keeper >= 0) {
            byte(a, 0x48 | (keeper >= 8) << 2); /* add keeper, [rdi + ...] */
            byte(a, 0x03);
            byte(a, 0x80 | (keeper & 7) << 3 | RDI);
            number(a, distance, 4);
        }
        else {
            number(a, 0x8F8B48, 3); /* mov rcx, [rdi + ...] */
            number(a, distance, 4);
            number(a, 0x8F0148, 3); /* add [rdi + ...], rcx */
            number(a, i * sizeof(char *), 4);
        }
    }
}

/* As long as a row has as many elements left; the last time it need not have any. */
static void
put_tiles_of_row(assembly *a, const npy_deferred_tile_instruction *code, int vectors)
{
    const int length = vectors * lanes(a);
    a->vectors = vectors;
    number(a, 0x488D48, 3); /* lea rcx, [rax + length] */
    byte(a, length);
    number(a, 0xD13948, 3); /* cmp rcx, rdx */
    npy_uint8 *jump = jump_if(a, IF_GREATER);
    const npy_uint8 *loop = a->at;
    for (; code->code != NPY_DEFERRED_TILE_END; code++) {
        npy_deferred_x86_put(a, code);
    }
    number(a, 0xC08348, 3); /* add rax, length */
    byte(a, length);
    number(a, 0x488D48, 3); /* lea rcx, [rax + length] */
    byte(a, length);
    number(a, 0xD13948, 3); /* cmp rcx, rdx */
    jump_back(a, IF_NOT_GREATER, loop);
    jump_here(a, jump);
}

/* How many elements of a vector are to be joined. */
static void
note_new_elements(assembly *a, int all)
{
    if (!a->adds_rows) {
        return;
    }
    if (all) {
        number(a, 0x2444C748, 4); /* mov qword [rsp + ...], length */
        byte(a, NEW_ELEMENTS);
        number(a, lanes(a), 4);
        return;
    }
    number(a, 0xD18948, 3);   /* mov rcx, rdx */
    number(a, 0xC12948, 3);   /* sub rcx, rax */
    number(a, 0x244C8948, 4); /* mov [rsp + ...], rcx */
    byte(a, NEW_ELEMENTS);
}

/*
 * A row of `rdx` elements.  What tiles leave of it is done by vectors, the last of
 * which ends with it: some elements are done twice, which is as good, as nothing that
 * is written is read; but where they are joined.
 */
static void
put_row(assembly *a, const npy_deferred_tile_instruction *code)
{
    put_tiles_of_row(a, code, VECTORS);
    note_new_elements(a, 1);
    const npy_uint8 *vectors = a->at;
    put_tiles_of_row(a, code, 1);
    number(a, 0xD03948, 3); /* cmp rax, rdx */
    npy_uint8 *done = jump_if(a, IF_NOT_LESS);
    note_new_elements(a, 0);
    number(a, 0x428D48, 3); /* lea rax, [rdx - length] */
    byte(a, -lanes(a));
    byte(a, 0xE9); /* jmp vectors */
    number(a, (npy_uint64)(vectors - (a->at + 4)), 4);
    jump_here(a, done);
}

/* The loop over rows: on the stack is their number, and what is at rdx. */
static void
put_rows(assembly *a, const npy_deferred_tile_instruction *code, int nargs)
{
    const npy_uint8 *row = a->at;
    for (int i = 0; i < nargs; i++) {
        if (a->waiting[i] >= 0 && a->in_rows[i] == NPY_DEFERRED_TILE_REPEATS) {
            spread_argument(a, i);
        }
    }
    number(a, 0xC031, 2); /* xor eax, eax */
    if (a->sums_leaves) {
        number(a, 0x24548B48, 4); /* mov rdx, [rsp + 8] */
        byte(a, 8);
        put_leaves(a, code, nargs);
    }
    else {
        put_row(a, code);
    }
    advance_rows(a, nargs);
    number(a, 0x240CFF48, 4); /* dec qword [rsp] */
    jump_back(a, IF_NOT_ZERO, row);
}

NPY_NO_EXPORT void
npy_deferred_x86_put_program(assembly *a, const npy_deferred_tile_instruction *code,
                             int nargs)
{
    number(a, 0xFA1E0FF3, 4); /* endbr64 */
    save_registers(a, 0);
    if (a->in_rows != NULL) {
        byte(a, 0x50 + RDX); /* push rdx */
        byte(a, 0x50 + RSI); /* push rsi */
    }
    number(a, 0xF08948, 3); /* mov rax, rsi */
    number(a, 0xBB48, 2);   /* mov rbx, ... */
    number(a, (npy_uint64)(npy_uintp)npy_deferred_x86_constants, 8);
    emit(a, XOR_BITS, NANS, NANS, in_vector(NANS));
    keep_arguments(a, code, nargs);
    if (a->in_rows != NULL) {
        put_rows(a, code, nargs);
        byte(a, 0x58 + RSI); /* pop rsi */
        byte(a, 0x58 + RDX); /* pop rdx */
    }
    else if (a->sums_leaves) {
        put_leaves(a, code, nargs);
    }
    else {
        put_tiles(a, code, nargs);
    }
    emit(a, SIGNS_TO_GENERAL, RAX, 0, in_vector(NANS));
    number(a, 0x77F8C5, 3); /* vzeroupper */
    save_registers(a, 1);
    byte(a, 0xC3); /* ret */
}

#endif /* NPY_DEFERRED_HAVE_X86 */
