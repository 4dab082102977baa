/*
 * Tile programs as machine code, for x86-64 with AVX2: see tiles.h, x86.h.
 *
 * The machine of tiles.dispatch.c.src jumps from instruction to instruction, which
 * takes longer than what most of them do.  Here a program becomes a loop of straight
 * code (x86_code.c): the same operations in the same order, so the same bits and the
 * same floating-point status.  The only program of a plan also becomes code that goes
 * over rows, so that short ones need neither be packed nor begun one by one, and code
 * that reduces.
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

/* What comes before the code in its pages. */
typedef struct {
    size_t nbytes;
} header;
#    define HEADER_BYTES 64

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
                      const npy_intp strides[], npy_deferred_tile_streams streams,
                      const npy_uint8 in_rows[])
{
    static int is_allowed = 1;
    assembly a = {.type = type,
                  .parts = parts,
                  .args = args,
                  .strides = strides,
                  .streams = streams,
                  .in_rows = in_rows,
                  .vectors = VECTORS};
    size_t ncode = 0;
    if (!is_allowed || !NPY_CPU_HAVE(X86_V3) ||
        !(npy_deferred_tile_machine_traits() & NPY_DEFERRED_TILES_FIT_CODE)) {
        return NULL;
    }
    while (code[ncode].code != NPY_DEFERRED_TILE_END) {
        ncode++;
    }
    a.adds_rows = code[ncode - 1].code == NPY_DEFERRED_TILE_JOIN_SUM;
    if (code[ncode - 1].code == NPY_DEFERRED_TILE_SUM_EIGHTHS) {
        a.sums_leaves = 1;
        a.vectors = 8 / lanes(&a);
    }
    size_t nbytes = npy_deferred_x86_code_bytes(ncode);
    a.start = a.at = PyMem_RawMalloc(nbytes);
    if (a.start == NULL) {
        return NULL;
    }
    npy_deferred_x86_put_program(&a, code, nargs);
    size_t ncoded = (size_t)(a.at - a.start);
    assert(ncoded <= nbytes);
    npy_uint8 *pages = NULL;
    if (!a.unknown) {
        pages = publish(a.start, ncoded);
        /* Some systems never let what was written be run. */
        is_allowed = pages != NULL || (errno != EACCES && errno != EPERM);
    }
    PyMem_RawFree(a.start);
    return (npy_deferred_tile_code *)pages;
}

static void
free_code(npy_deferred_tile_code *code)
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
                      const npy_intp strides[], npy_deferred_tile_streams streams,
                      const npy_uint8 in_rows[])
{
    return NULL;
}

static void
free_code(npy_deferred_tile_code *code)
{
}

#endif

NPY_NO_EXPORT int
npy_deferred_unit_forget_code(npy_deferred_unit *unit)
{
    int found = unit->machine_code != NULL;
    free_code(unit->machine_code);
    free_code(unit->rows_code);
    unit->machine_code = unit->rows_code = NULL;
    unit->was_compiled = unit->rows_were_compiled = 0;
    for (int i = 0; i < NPY_DEFERRED_REDUCINGS; i++) {
        free_code(unit->reducing[i].code);
        free_code(unit->reducing[i].rows_code);
    }
    memset(unit->reducing, 0, sizeof(unit->reducing));
    return found;
}

NPY_NO_EXPORT const npy_deferred_reducing *
npy_deferred_find_reducing(const npy_deferred_unit *unit, int instruction)
{
    for (int i = 0; i < NPY_DEFERRED_REDUCINGS; i++) {
        if (unit->reducing[i].instruction == instruction) {
            return &unit->reducing[i];
        }
    }
    return NULL;
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

/* How an argument lies in rows of a walk; or -1: as no code can have it. */
static int
place_in_rows(const npy_deferred_plan *plan, const npy_deferred_walk *walk, int value)
{
    const npy_deferred_value *its = &plan->values[value];
    if (its->kind == NPY_DEFERRED_VALUE_CONSTANT) {
        return NPY_DEFERRED_TILE_STAYS;
    }
    if (its->kind == NPY_DEFERRED_VALUE_SLOT) {
        return -1;
    }
    int operand = its->kind == NPY_DEFERRED_VALUE_OUT ? walk->expression->noperands
                                                      : its->operand;
    npy_intp stride = npy_deferred_row_stride(walk, operand);
    return stride == its->descr->elsize ? NPY_DEFERRED_TILE_FOLLOWS
           : stride == 0                ? NPY_DEFERRED_TILE_REPEATS
                                        : -1;
}

/* A program that goes over rows, where that is of use and can be; or NULL. */
static npy_deferred_tile_code *
new_rows_code(npy_deferred_plan *plan, const npy_deferred_walk *walk,
              const npy_deferred_unit *unit, int reducing)
{
    npy_uint8 in_rows[NPY_DEFERRED_TILE_MAX_ARGS];
    npy_intp strides[NPY_DEFERRED_TILE_MAX_ARGS];
    npy_intp length = npy_deferred_row_length(walk);
    int is_wide = unit->type == NPY_DEFERRED_TILE_DOUBLE ||
                  unit->type == NPY_DEFERRED_TILE_INT64;
    int one_row = length == PyArray_SIZE(walk->out);
    if (walk->overlaps || (walk->iter != NULL && !walk->rows && !walk->packed) ||
        (one_row ? !npy_deferred_tile_joins(reducing)
                 : length * unit->parts < (is_wide ? 4 : 8) ||
                           length > NPY_DEFERRED_MAX_ROW)) {
        return NULL;
    }
    for (int i = 0; i < unit->nargs; i++) {
        const npy_deferred_tile_arg *arg = &plan->tile_args[unit->args + i];
        int place = place_in_rows(plan, walk, arg->value);
        if (place < 0 || (place != NPY_DEFERRED_TILE_FOLLOWS &&
                          arg->access == NPY_DEFERRED_TILE_WRITTEN)) {
            return NULL;
        }
        in_rows[i] = reducing == NPY_DEFERRED_TILE_SUM_EIGHTHS &&
                                     arg->access == NPY_DEFERRED_TILE_WRITTEN
                             ? NPY_DEFERRED_TILE_STAYS
                             : (npy_uint8)place;
        strides[i] = arg->elsize;
    }
    npy_deferred_tile_code *rows_code =
            npy_deferred_code_new(unit->type, unit->parts, &plan->tile_code[unit->code],
                                  &plan->tile_args[unit->args], unit->nargs, strides,
                                  NPY_DEFERRED_TILE_NO_STREAM, in_rows);
    npy_deferred_stats.compiled += rows_code != NULL;
    return rows_code;
}

/*
 * Have the only program of a plan end with another instruction than that which stores
 * its values.
 */
static void
compile_reducing(npy_deferred_plan *plan, const npy_deferred_walk *walk,
                 npy_deferred_unit *unit, int instruction)
{
    npy_deferred_tile_instruction *code = &plan->tile_code[unit->code], *last = code;
    npy_intp strides[NPY_DEFERRED_TILE_MAX_ARGS];
    npy_deferred_reducing *reducing = unit->reducing;
    while (reducing->instruction != 0) {
        reducing++;
    }
    assert(reducing < unit->reducing + NPY_DEFERRED_REDUCINGS);
    while (last[1].code != NPY_DEFERRED_TILE_END) {
        last++;
    }
    reducing->instruction = instruction;
    if (!npy_deferred_can_end_by(last->code, instruction)) {
        return;
    }
    npy_deferred_tile_instruction store = *last;
    last->code = (npy_uint16)instruction;
    find_strides(plan, unit, strides);
    reducing->code = npy_deferred_code_new(unit->type, unit->parts, code,
                                           &plan->tile_args[unit->args], unit->nargs,
                                           strides, NPY_DEFERRED_TILE_NO_STREAM, NULL);
    npy_deferred_stats.compiled += reducing->code != NULL;
    if (npy_deferred_tile_joins(instruction) ||
        instruction == NPY_DEFERRED_TILE_SUM_EIGHTHS) {
        reducing->rows_code = new_rows_code(plan, walk, unit, instruction);
    }
    *last = store;
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
        free_code(unit->machine_code);
        unit->machine_code = npy_deferred_code_new(
                unit->type, unit->parts, &plan->tile_code[unit->code],
                &plan->tile_args[unit->args], unit->nargs, strides, how, NULL);
        npy_deferred_stats.compiled += unit->machine_code != NULL;
        unit->streams = how;
        unit->was_compiled = 1;
    }
    npy_deferred_unit *only = &plan->units[0];
    if (plan->nunits != 1 || only->machine_code == NULL) {
        return;
    }
    if (!streams && !only->rows_were_compiled) {
        only->rows_code = new_rows_code(plan, walk, only, -1);
        only->rows_were_compiled = 1;
    }
    if (reducing >= 0 && npy_deferred_find_reducing(only, reducing) == NULL) {
        compile_reducing(plan, walk, only, reducing);
    }
}
