/*
 * Tile programs as machine code, for x86-64 with AVX2: see tiles.h, x86.h.
 *
 * The machine of tiles.dispatch.c.src jumps from instruction to instruction, which
 * takes longer than what most of them do.  Here a program becomes a loop of straight
 * code over tiles of four vectors: the same operations in the same order, so the same
 * bits and the same floating-point status.  Banks are registers, what is in memory for
 * the whole tile waits in registers that no bank needs, and addresses are looked up
 * once.
 *
 * A program has pages of its own, owned by its plan, which are written first and then
 * made executable, never both.  Where that is not allowed, or on other processors, the
 * machine goes on as it did.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "deferred.h"
#include "x86.h"

/*
 * Measured: pages for code cost 15 to 25 us, which are three system calls; what
 * straight code gains of an element and step is 0.05 to 0.2 ns.
 */
NPY_NO_EXPORT npy_intp npy_deferred_code_worth = 1 << 18;

#if NPY_DEFERRED_HAVE_X86

#    include "npy_cpu_features.h"

#    include <errno.h>
#    include <sys/mman.h>
#    include <unistd.h>

/* What keeps addresses of arguments; from the sixth on they are the caller's. */
static const int keepers[] = {RSI, R8, R9, R10, R11, RBP, R12, R13, R14, R15};
#    define NKEEPERS ((int)(sizeof(keepers) / sizeof(*keepers)))
#    define CALLERS_KEEPER 5

static int
sums_eighths(const assembly *a)
{
    return a->vectors != VECTORS;
}

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
        int is_sum = sums_eighths(a) && i >= EIGHTHS && i < VECTORS;
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

static void
advance_strided(assembly *a, int arg)
{
    byte(a, 0x48 | (a->keeper[arg] >= 8)); /* add keeper, a tile */
    byte(a, 0x81);
    byte(a, 0xC0 | (a->keeper[arg] & 7));
    number(a, (npy_uint64)(a->strides[arg] * a->vectors * lanes(a)), 4);
}

/* Keep what the loop needs of its arguments in registers, as long as there are some. */
static void
keep_arguments(assembly *a, const npy_deferred_tile_instruction *code, int nargs)
{
    int vectors[NPY_DEFERRED_TILE_BANKS * VECTORS];
    int nvectors = find_free_vectors(a, code, vectors), nkept = 0;
    for (int i = 0; i < nargs; i++) {
        a->keeper[i] = a->waiting[i] = -1;
        if (a->args[i].access != NPY_DEFERRED_TILE_READ_SCALAR) {
            if (nkept < NKEEPERS) {
                a->keeper[i] = keepers[nkept++];
                load_address(a, a->keeper[i], i);
            }
            if (is_strided(a, i)) {
                begin_strided(a, i);
            }
        }
        else if (nvectors > 0) {
            operand from = {-1, SCRATCH, 0, 0};
            load_address(a, SCRATCH, i);
            a->waiting[i] = vectors[--nvectors];
            emit_spread(a, a->waiting[i], from);
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

static void
jump_if_less(assembly *a, const npy_uint8 *to)
{
    number(a, 0x8C0F, 2);
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
    for (int i = 0; i < nargs; i++) {
        if (is_strided(a, i)) {
            advance_strided(a, i);
        }
    }
    number(a, 0x0548, 2); /* add rax, length */
    number(a, a->vectors * lanes(a), 4);
    number(a, sums_eighths(a) ? 0x023B48 : 0xD03948, 3); /* cmp rax, [rdx]; rdx */
    jump_if_less(a, loop);
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
    for (int i = 0; i < nargs; i++) {
        if (is_strided(a, i)) {
            advance_strided(a, i);
        }
    }
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
    jump_if_less(a, loop);
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
    number(a, 0x8D0F, 2);     /* jge, over the rest */
    npy_uint8 *jump = a->at;
    number(a, 0, 4);
    put_rest(a, code, nargs);
    npy_uint8 *end = a->at;
    a->at = jump;
    number(a, (npy_uint64)(end - (jump + 4)), 4);
    a->at = end;
    put_sum(a, last->arg);
    number(a, 0x10C28348, 4); /* add rdx, 16 */
    number(a, 0x023B48, 3);   /* cmp rax, [rdx] */
    jump_if_less(a, loop);
}

static void
put_program(assembly *a, const npy_deferred_tile_instruction *code, int nargs)
{
    number(a, 0xFA1E0FF3, 4); /* endbr64 */
    save_registers(a, 0);
    number(a, 0xF08948, 3); /* mov rax, rsi */
    number(a, 0xBB48, 2);   /* mov rbx, ... */
    number(a, (npy_uint64)(npy_uintp)npy_deferred_x86_constants, 8);
    emit(a, XOR_BITS, NANS, NANS, in_vector(NANS));
    keep_arguments(a, code, nargs);
    if (sums_eighths(a)) {
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

/* What comes before the code in its pages. */
typedef struct {
    size_t nbytes;
} header;
#    define HEADER_BYTES 64
/* Of an instruction, four times the most that one of its vectors takes; of the rest. */
#    define INSTRUCTION_BYTES 384
#    define REST_BYTES (512 + 64 * NPY_DEFERRED_TILE_MAX_ARGS)

/* Where the code, which may lie anywhere, can be run; NULL, and errno: nowhere. */
static npy_uint8 *
publish(const npy_uint8 *code, size_t ncoded)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t nbytes = (HEADER_BYTES + ncoded + page - 1) & ~(page - 1);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#    ifdef MAP_POPULATE
    flags |= MAP_POPULATE; /* they are about to be written */
#    endif
    npy_uint8 *pages = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (pages == MAP_FAILED) {
        return NULL;
    }
    ((header *)pages)->nbytes = nbytes;
    memcpy(pages + HEADER_BYTES, code, ncoded);
    if (mprotect(pages, nbytes, PROT_READ | PROT_EXEC) == 0) {
        return pages + HEADER_BYTES;
    }
    int error = errno;
    munmap(pages, nbytes);
    errno = error;
    return NULL;
}

NPY_NO_EXPORT npy_deferred_tile_code *
npy_deferred_code_new(npy_deferred_tile_type type, int parts,
                      const npy_deferred_tile_instruction *code,
                      const npy_deferred_tile_arg *args, int nargs,
                      const npy_intp strides[], npy_deferred_tile_streams streams)
{
    static int is_allowed = 1;
    assembly a = {.type = type,
                  .parts = parts,
                  .args = args,
                  .strides = strides,
                  .streams = streams};
    size_t ncode = 0;
    if (!is_allowed || !NPY_CPU_HAVE(X86_V3) ||
        !(npy_deferred_tile_machine_traits() & NPY_DEFERRED_TILES_FIT_CODE)) {
        return NULL;
    }
    while (code[ncode].code != NPY_DEFERRED_TILE_END) {
        ncode++;
    }
    a.vectors = code[ncode - 1].code == NPY_DEFERRED_TILE_SUM_EIGHTHS ? 8 / lanes(&a)
                                                                      : VECTORS;
    a.start = a.at = PyMem_RawMalloc(REST_BYTES + ncode * INSTRUCTION_BYTES);
    if (a.start == NULL) {
        return NULL;
    }
    put_program(&a, code, nargs);
    size_t ncoded = (size_t)(a.at - a.start);
    assert(ncoded <= REST_BYTES + ncode * INSTRUCTION_BYTES);
    npy_uint8 *pages = NULL;
    if (!a.unknown) {
        pages = publish(a.start, ncoded);
        /* Some systems never let what was written be run. */
        is_allowed = pages != NULL || (errno != EACCES && errno != EPERM);
    }
    PyMem_RawFree(a.start);
    return (npy_deferred_tile_code *)pages;
}

NPY_NO_EXPORT void
npy_deferred_code_free(npy_deferred_tile_code *code)
{
    if (code != NULL) {
        npy_uint8 *pages = (npy_uint8 *)code - HEADER_BYTES;
        munmap(pages, ((header *)pages)->nbytes);
    }
}

#else

NPY_NO_EXPORT npy_deferred_tile_code *
npy_deferred_code_new(npy_deferred_tile_type type, int parts,
                      const npy_deferred_tile_instruction *code,
                      const npy_deferred_tile_arg *args, int nargs,
                      const npy_intp strides[], npy_deferred_tile_streams streams)
{
    return NULL;
}

NPY_NO_EXPORT void
npy_deferred_code_free(npy_deferred_tile_code *code)
{
}

#endif

/*
 * Have the only program of a plan end with another instruction than that which stores
 * its values.
 */
static void
compile_reducing(npy_deferred_plan *plan, npy_deferred_unit *unit,
                 const npy_intp strides[], int reducing)
{
    npy_deferred_tile_instruction *code = &plan->tile_code[unit->code], *last = code;
    while (last[1].code != NPY_DEFERRED_TILE_END) {
        last++;
    }
    unit->reducing = reducing;
    if (!npy_deferred_can_end_by(last->code, reducing)) {
        return;
    }
    npy_deferred_tile_instruction store = *last;
    last->code = (npy_uint16)reducing;
    npy_deferred_code_free(unit->reducing_code);
    unit->reducing_code = npy_deferred_code_new(
            unit->type, unit->parts, code, &plan->tile_args[unit->args], unit->nargs,
            strides, NPY_DEFERRED_TILE_NO_STREAM);
    npy_deferred_stats.compiled += unit->reducing_code != NULL;
    *last = store;
}

static void
find_strides(const npy_deferred_plan *plan, const npy_deferred_unit *unit,
             npy_intp strides[])
{
    for (int i = 0; i < unit->nargs; i++) {
        strides[i] = plan->values[plan->tile_args[unit->args + i].value].stride /
                     unit->parts;
    }
}

NPY_NO_EXPORT void
npy_deferred_compile(npy_deferred_plan *plan, const npy_deferred_walk *walk,
                     int streams, int reducing)
{
    npy_intp strides[NPY_DEFERRED_TILE_MAX_ARGS];
    const char *out = PyArray_BYTES(walk->out);
    npy_deferred_tile_streams how =
            !streams ? NPY_DEFERRED_TILE_NO_STREAM
            : npy_deferred_is_aligned_for(out, NPY_DEFERRED_TILE_STREAM_VECTORS)
                    ? NPY_DEFERRED_TILE_STREAM_VECTORS
            : npy_deferred_is_aligned_for(out, NPY_DEFERRED_TILE_STREAM_HALVES)
                    ? NPY_DEFERRED_TILE_STREAM_HALVES
                    : NPY_DEFERRED_TILE_NO_STREAM;
    plan->work += PyArray_SIZE(walk->out) * plan->nsteps;
    if (plan->work < npy_deferred_code_worth) {
        return;
    }
    for (int i = 0; i < plan->nunits; i++) {
        npy_deferred_unit *unit = &plan->units[i];
        if (unit->type == NPY_DEFERRED_TILE_NONE ||
            (unit->was_compiled && unit->streams == how)) {
            continue;
        }
        find_strides(plan, unit, strides);
        npy_deferred_code_free(unit->machine_code);
        unit->machine_code = npy_deferred_code_new(
                unit->type, unit->parts, &plan->tile_code[unit->code],
                &plan->tile_args[unit->args], unit->nargs, strides, how);
        npy_deferred_stats.compiled += unit->machine_code != NULL;
        unit->streams = how;
        unit->was_compiled = 1;
    }
    npy_deferred_unit *only = &plan->units[0];
    if (reducing >= 0 && plan->nunits == 1 && only->machine_code != NULL &&
        only->reducing != reducing) {
        find_strides(plan, only, strides);
        compile_reducing(plan, only, strides, reducing);
    }
}
