/*
 * Memory: where the data of deferred arrays points, and where values go.
 *
 * Every deferred array has a *guard*, a range of addresses of its own that is
 * reserved and inaccessible and costs no memory; guard.c catches who touches it.
 * Values are computed into a *block*, memory that nobody else knows yet, and
 * published in one of three ways:
 *
 *   large result    the block's pages are moved into the guard (mremap), at once
 *                   for whoever reads there; `data` never changes
 *   smaller result  `data` changes to the block, which takes no system call; the
 *                   guard stays the array's.  Who has the old address and uses
 *                   it late gets the pages moved there, and back at the next use
 *                   of the block, so there is one copy of the values at any time
 *   tiny result,    `data` changes to memory from malloc, with a header that
 *   or no mapping   says which guard stays the array's; a late use is reported
 *   to be had
 *
 * A smaller result that was touched at its guard is published there like a large
 * one, or nobody could go on.
 *
 * Guards and blocks are *slots* of powers of two of a page, in *arenas* of slots
 * of one size, carved from reservations that grow as needed and are kept for
 * good.  Making and dropping an array that is never calculated takes a slot off
 * a list and puts it back.  What becomes of a slot:
 *
 *   state   accessible  pages  lies in
 *   READY   no          no     ready[], the guards to be had
 *   TAKEN   whichever          no list: it belongs to an array
 *   WARM    yes         yes    warm[], kept for the next result, up to the limit
 *   EMPTY   yes         no     empty[]: its pages were moved elsewhere or let go
 *
 * Small classes have arenas of guards and arenas of blocks, so that the mappings
 * of the process stay few however many arrays are alive.  Large slots change
 * roles: the pages in a guard whose array died are the block of the next result,
 * and what that leaves is made inaccessible again, several slots with one call.
 *
 * All of it is guarded by the GIL, but npy_deferred_is_guard, which reads tables
 * that only grow.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE
#ifndef _GNU_SOURCE
#    define _GNU_SOURCE
#endif

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "alloc.h"
#include "deferred.h"
#include "multiarraymodule.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__unix__) && NPY_SIZEOF_INTP == 8
#    define HAS_GUARDS 1
#    include <errno.h>
#    include <sys/mman.h>
#    include <sys/resource.h>
#    include <unistd.h>
#    define GUARD_MAPPING (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
#endif

/* From this size of a slot on, pages are moved into the guard; measured. */
#define LARGE_SLOT ((size_t)1 << 20)
/* An arena of smaller slots; of larger ones it has LARGE_SLOTS. */
#define ARENA_BYTES ((size_t)1 << 22)
#define LARGE_SLOTS 8
/* Arenas start and end at multiples of this, the size of a huge page. */
#define UNIT_SHIFT 21
#define UNIT ((size_t)1 << UNIT_SHIFT)
/* NumPy asks for huge pages from here on (alloc.c). */
#define HUGE_BYTES ((size_t)1 << 22)
#define NCLASSES 36
/* The first reservation, and the step by which they stop growing. */
#define FIRST_RESERVATION ((size_t)1 << 30)
#define LAST_RESERVATION ((size_t)1 << 40)
/* Of a limit on address space, reservations take this part. */
#define PART_OF_LIMIT 8
/* The map of arenas: a leaf for each GiB of the address space that has some. */
#define LEAF_SHIFT 30
#define LEAF_UNITS ((size_t)1 << (LEAF_SHIFT - UNIT_SHIFT))
#define NLEAVES ((size_t)1 << (48 - LEAF_SHIFT))

typedef struct npy_deferred_slot slot;
typedef struct arena arena;

typedef enum {
    READY,
    TAKEN,
    WARM,
    EMPTY,
} slot_state;

struct npy_deferred_slot {
    arena *home;
    slot *newer, *older;  /* in the list that its state says */
    slot *twin;           /* TAKEN: the guard of a block, the block of a guard */
    PyArrayObject *array; /* weak: the pending array whose guard it is */
    size_t nbytes;        /* TAKEN: of the array, in whole pages */
    size_t extent;        /* accessible bytes, from the start */
    npy_uint64 stamp;     /* when it became WARM */
    slot_state state;
    int wanted; /* somebody has touched the guard: values must come here */
};

struct arena {
    char *start;
    int class;
    size_t nslots;
    slot slots[];
};

typedef struct {
    slot *newest, *oldest;
} slot_list;

/* Before memory from malloc; as large as malloc aligns. */
typedef union {
    slot *guard; /* NULL: none */
    char size[16];
} header;

/* The one registry of this file. */
static struct {
    size_t page;
    char *reserved, *reserved_end; /* what is not carved yet */
    size_t reservation, all_reserved;
    slot_list ready[NCLASSES], empty[NCLASSES], warm[NCLASSES];
    size_t warm_bytes;
    npy_uint64 clock;
    arena **leaves[NLEAVES];
} memory;

NPY_NO_EXPORT npy_intp npy_deferred_cache_limit = (npy_intp)256 << 20;

NPY_NO_EXPORT PyObject *npy_deferred_handler = NULL;

/* ---- lists ---- */

static void
push(slot_list *list, slot *s, slot_state state)
{
    s->state = state;
    s->newer = NULL;
    s->older = list->newest;
    if (list->newest != NULL) {
        list->newest->newer = s;
    }
    else {
        list->oldest = s;
    }
    list->newest = s;
}

static slot *
take(slot_list *list, slot *s)
{
    if (s == NULL) {
        return NULL;
    }
    if (s->newer != NULL) {
        s->newer->older = s->older;
    }
    else {
        list->newest = s->older;
    }
    if (s->older != NULL) {
        s->older->newer = s->newer;
    }
    else {
        list->oldest = s->newer;
    }
    s->state = TAKEN;
    return s;
}

/* ---- slots and their addresses ---- */

static inline size_t
slot_size(int class)
{
    return memory.page << class;
}

static inline int
is_large(const slot *s)
{
    return slot_size(s->home->class) >= LARGE_SLOT;
}

static inline char *
address_of(const slot *s)
{
    return s->home->start + (s - s->home->slots) * slot_size(s->home->class);
}

static inline size_t
whole_pages(size_t nbytes)
{
    return (nbytes + memory.page - 1) & ~(memory.page - 1);
}

/* The slot at an address, or NULL.  Needs no GIL. */
static slot *
slot_at(const void *address)
{
    uintptr_t position = (uintptr_t)address;
    if (position >> LEAF_SHIFT >= NLEAVES) {
        return NULL;
    }
    arena **leaf = memory.leaves[position >> LEAF_SHIFT];
    arena *home = leaf == NULL ? NULL : leaf[(position >> UNIT_SHIFT) % LEAF_UNITS];
    if (home == NULL) {
        return NULL;
    }
    return &home->slots[(position - (uintptr_t)home->start) / slot_size(home->class)];
}

NPY_NO_EXPORT int
npy_deferred_is_guard(const void *address)
{
    return slot_at(address) != NULL;
}

static int
class_of(size_t nbytes)
{
    int class = 0;
    while (class < NCLASSES && slot_size(class) < nbytes) {
        class ++;
    }
    return class;
}

/* ---- the system calls; without them nothing is deferred ---- */

#ifdef HAS_GUARDS

/* The bytes that may be reserved yet: a limit on address space is not ours. */
static size_t
reservable(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY) {
        return SIZE_MAX;
    }
    size_t part = limit.rlim_cur / PART_OF_LIMIT;
    return part > memory.all_reserved ? part - memory.all_reserved : 0;
}

/* Inaccessible addresses, or NULL. */
static char *
map_addresses(size_t size)
{
    void *start = size > reservable()
                          ? MAP_FAILED
                          : mmap(NULL, size, PROT_NONE, GUARD_MAPPING, -1, 0);
    return start == MAP_FAILED ? NULL : start;
}

static int
make_accessible(char *start, size_t nbytes)
{
    if (mprotect(start, nbytes, PROT_READ | PROT_WRITE) < 0) {
        return -1;
    }
#    ifdef MADV_HUGEPAGE
    if (nbytes >= HUGE_BYTES && npy_thread_unsafe_state.madvise_hugepage) {
        madvise(start, nbytes, MADV_HUGEPAGE);
    }
#    endif
    return 0;
}

/* Make `n` slots inaccessible, without pages.  Returns 0 or -1. */
static int
close_slots(slot *first, size_t n)
{
    size_t size = n * slot_size(first->home->class);
    void *start =
            mmap(address_of(first), size, PROT_NONE, GUARD_MAPPING | MAP_FIXED, -1, 0);
    return start == MAP_FAILED ? -1 : 0;
}

static void
drop_pages(slot *s)
{
    madvise(address_of(s), s->extent, MADV_DONTNEED);
}

/*
 * Move the pages of `from` into `to`, at once; `from` stays as accessible as it
 * was, without pages.  Returns 0, or -1 and nothing has changed.
 */
static int
move_pages(slot *from, slot *to)
{
#    ifdef MREMAP_DONTUNMAP
    void *target = address_of(to);
    void *moved = mremap(address_of(from), from->extent, from->extent,
                         MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, target);
    if (moved == target) {
        to->extent = from->extent;
        return 0;
    }
    /* The target may be unmapped before the move fails; nobody may get it. */
    mmap(target, slot_size(to->home->class), PROT_NONE,
         GUARD_MAPPING | MAP_FIXED_NOREPLACE, -1, 0);
#    endif
    return -1;
}

/* The values are at the other address of the array: get them here. */
static int
fetch_pages(slot *from, slot *to)
{
    /* At no time are they, or something else, seen at both. */
    if (mprotect(address_of(from), from->extent, PROT_NONE) < 0) {
        return -1;
    }
    if (move_pages(from, to) < 0) {
        make_accessible(address_of(from), from->extent);
        return -1;
    }
    from->extent = 0;
    return make_accessible(address_of(to), to->extent);
}

#else

static char *
map_addresses(size_t NPY_UNUSED(size))
{
    return NULL;
}

static int
make_accessible(char *NPY_UNUSED(start), size_t NPY_UNUSED(nbytes))
{
    return -1;
}

static int
close_slots(slot *NPY_UNUSED(first), size_t NPY_UNUSED(n))
{
    return -1;
}

static void
drop_pages(slot *NPY_UNUSED(s))
{
}

static int
move_pages(slot *NPY_UNUSED(from), slot *NPY_UNUSED(to))
{
    return -1;
}

static int
fetch_pages(slot *NPY_UNUSED(from), slot *NPY_UNUSED(to))
{
    return -1;
}

#endif

/* ---- reservations and arenas ---- */

/* Make at least `size` bytes, whole units, ready to be carved.  0 or -1. */
static int
reserve(size_t size)
{
    size_t wanted = memory.reservation == 0                 ? FIRST_RESERVATION
                    : memory.reservation < LAST_RESERVATION ? 2 * memory.reservation
                                                            : LAST_RESERVATION;
    for (;; wanted /= 2) {
        wanted = wanted > size ? wanted : size;
        char *start = map_addresses(wanted + UNIT);
        if (start != NULL) {
            start = (char *)(((uintptr_t)start + UNIT - 1) & ~(UNIT - 1));
            memory.reserved = start;
            memory.reserved_end = start + wanted;
            memory.reservation = wanted;
            memory.all_reserved += wanted + UNIT;
            return 0;
        }
        if (wanted == size) {
            return -1;
        }
    }
}

/* Enter an arena into the map.  Returns 0 or -1. */
static int
map_arena(arena *home, size_t size)
{
    uintptr_t first = (uintptr_t)home->start >> UNIT_SHIFT;
    uintptr_t last = ((uintptr_t)home->start + size - 1) >> UNIT_SHIFT;
    if (last / LEAF_UNITS >= NLEAVES) {
        return -1;
    }
    for (uintptr_t i = first / LEAF_UNITS; i <= last / LEAF_UNITS; i++) {
        if (memory.leaves[i] == NULL) {
            memory.leaves[i] = calloc(LEAF_UNITS, sizeof(arena *));
            if (memory.leaves[i] == NULL) {
                return -1;
            }
        }
    }
    for (uintptr_t unit = first; unit <= last; unit++) {
        memory.leaves[unit / LEAF_UNITS][unit % LEAF_UNITS] = home;
    }
    return 0;
}

/* Cut memory for an arena off the reservation, or NULL. */
static arena *
carve(int class, size_t nslots, int accessible)
{
    size_t size = (nslots * slot_size(class) + UNIT - 1) & ~(UNIT - 1);
    if ((size_t)(memory.reserved_end - memory.reserved) < size && reserve(size) < 0) {
        return NULL;
    }
    arena *home = calloc(1, sizeof(*home) + nslots * sizeof(slot));
    if (home == NULL) {
        return NULL;
    }
    home->start = memory.reserved;
    home->class = class;
    home->nslots = nslots;
    if ((accessible && make_accessible(home->start, size) < 0) ||
        map_arena(home, size) < 0) {
        free(home);
        return NULL;
    }
    memory.reserved += size;
    return home;
}

/* Put the slots of a new arena on a list, as guards or as blocks.  0 or -1. */
static int
new_arena(int class, slot_list *list, slot_state state)
{
    int accessible = state == EMPTY;
    size_t size = slot_size(class);
    size_t nslots = size < LARGE_SLOT ? ARENA_BYTES / size : LARGE_SLOTS;
    arena *home = carve(class, nslots, accessible);
    if (home == NULL && nslots > 1) {
        home = carve(class, 1, accessible);
    }
    if (home == NULL) {
        return -1;
    }
    for (size_t i = home->nslots; i-- > 0;) {
        slot *s = &home->slots[i];
        s->home = home;
        s->extent = accessible ? size : 0;
        push(list, s, state);
    }
    return 0;
}

/* ---- warm memory ---- */

/* Its pages go back to the system. */
static void
let_pages_go(slot *s)
{
    int class = s->home->class;
    if (is_large(s) && close_slots(s, 1) == 0) {
        s->extent = 0;
        push(&memory.ready[class], s, READY);
        return;
    }
    drop_pages(s);
    push(&memory.empty[class], s, EMPTY);
}

NPY_NO_EXPORT void
npy_deferred_limit_cache(void)
{
    while (memory.warm_bytes > (size_t)npy_deferred_cache_limit) {
        slot *oldest = NULL;
        for (int class = 0; class < NCLASSES; class ++) {
            slot *s = memory.warm[class].oldest;
            if (s != NULL && (oldest == NULL || s->stamp < oldest->stamp)) {
                oldest = s;
            }
        }
        memory.warm_bytes -= oldest->extent;
        let_pages_go(take(&memory.warm[oldest->home->class], oldest));
    }
}

NPY_NO_EXPORT npy_intp
npy_deferred_cached_bytes(void)
{
    return (npy_intp)memory.warm_bytes;
}

static void
keep_warm(slot *s)
{
    s->stamp = ++memory.clock;
    s->twin = NULL;
    push(&memory.warm[s->home->class], s, WARM);
    memory.warm_bytes += s->extent;
    npy_deferred_limit_cache();
}

/* A warm slot for a result of this size, or NULL. */
static slot *
take_warm(int class, size_t nbytes)
{
    int tries = 8;
    for (slot *s = memory.warm[class].newest; s != NULL && tries > 0;
         s = s->older, tries--) {
        if (s->extent >= nbytes && (!is_large(s) || s->extent / 5 * 4 <= nbytes)) {
            memory.warm_bytes -= s->extent;
            return take(&memory.warm[class], s);
        }
    }
    return NULL;
}

/* ---- guards ---- */

/* Make the empty large slots of a class guards again, neighbours together. */
static void
close_empty_slots(int class)
{
    slot *s;
    while ((s = memory.empty[class].newest) != NULL) {
        slot *first = s, *last = s;
        while (first > s->home->slots && first[-1].state == EMPTY) {
            first--;
        }
        while (last + 1 < s->home->slots + s->home->nslots && last[1].state == EMPTY) {
            last++;
        }
        if (close_slots(first, last - first + 1) < 0) {
            return;
        }
        for (s = first; s <= last; s++) {
            s->extent = 0;
            push(&memory.ready[class], take(&memory.empty[class], s), READY);
        }
    }
}

static slot *
take_ready(int class)
{
    slot_list *ready = &memory.ready[class];
    if (NPY_UNLIKELY(ready->newest == NULL)) {
        if (slot_size(class) >= LARGE_SLOT) {
            close_empty_slots(class);
        }
        if (ready->newest == NULL && new_arena(class, ready, READY) < 0) {
            return NULL;
        }
    }
    return take(ready, ready->newest);
}

NPY_NO_EXPORT void *
npy_deferred_guard_new(npy_intp nbytes)
{
    if (memory.page == 0) {
#ifdef HAS_GUARDS
        memory.page = (size_t)sysconf(_SC_PAGESIZE);
#else
        memory.page = 4096;
#endif
    }
    int class = class_of((size_t)nbytes);
    slot *s = class < NCLASSES ? take_ready(class) : NULL;
    if (s == NULL) {
        return NULL;
    }
    s->nbytes = whole_pages((size_t)nbytes);
    s->wanted = 0;
    s->twin = NULL;
    return address_of(s);
}

NPY_NO_EXPORT void
npy_deferred_guard_bind(PyArrayObject *array)
{
    slot_at(((PyArrayObject_fields *)array)->data)->array = array;
}

NPY_NO_EXPORT void
npy_deferred_guard_drop(void *guard)
{
    slot *s = slot_at(guard);
    s->array = NULL;
    push(&memory.ready[s->home->class], s, READY);
}

NPY_NO_EXPORT void *
npy_deferred_nowhere(void)
{
    static void *nowhere = NULL;
    if (nowhere == NULL) {
        nowhere = npy_deferred_guard_new(1);
    }
    return nowhere;
}

/* Who has no array any more; its pages are kept, or cost a call to let go. */
static void
release_guard(slot *s)
{
    int class = s->home->class;
    if (s->extent == 0) {
        push(&memory.ready[class], s, READY);
    }
    else if (is_large(s)) {
        keep_warm(s);
    }
    else if (close_slots(s, 1) == 0) {
        s->extent = 0;
        push(&memory.ready[class], s, READY);
    }
    else {
        let_pages_go(s); /* too many mappings: from now on it is a block */
    }
}

/* ---- blocks ---- */

static slot *
take_block(size_t nbytes)
{
    int class = class_of(nbytes);
    if (class >= NCLASSES) {
        return NULL;
    }
    slot *s = take_warm(class, nbytes);
    if (s != NULL) {
        return s;
    }
    if (slot_size(class) < LARGE_SLOT) {
        slot_list *empty = &memory.empty[class];
        if (empty->newest == NULL && new_arena(class, empty, EMPTY) < 0) {
            return NULL;
        }
        return take(empty, empty->newest);
    }
    s = take_ready(class);
    if (s != NULL && make_accessible(address_of(s), whole_pages(nbytes)) < 0) {
        push(&memory.ready[class], s, READY);
        return NULL;
    }
    if (s != NULL) {
        s->extent = whole_pages(nbytes);
    }
    return s;
}

static void
release_block(slot *block)
{
    slot *guard = block->twin;
    if (block->extent != 0) {
        keep_warm(block);
    }
    else if (make_accessible(address_of(block), guard->extent) == 0) {
        /* A late use has moved its pages to the guard, where they go now. */
        block->extent = guard->extent;
        push(&memory.empty[block->home->class], block, EMPTY);
    }
    if (guard != NULL) {
        release_guard(guard);
    }
}

/* ---- memory for values ---- */

static void *
allocate(size_t nbytes)
{
    header *head = malloc(sizeof(header) + nbytes);
    if (head == NULL) {
        return NULL;
    }
    head->guard = NULL;
    return head + 1;
}

NPY_NO_EXPORT void *
npy_deferred_memory_new(PyArrayObject *array)
{
    size_t nbytes = (size_t)PyArray_NBYTES(array);
    slot *guard = slot_at(((PyArrayObject_fields *)array)->data);
    slot *block = NULL;
    if (nbytes >= memory.page || guard->wanted) {
        block = take_block(nbytes);
    }
    return block != NULL ? address_of(block) : allocate(nbytes);
}

NPY_NO_EXPORT void
npy_deferred_memory_free(void *values)
{
    slot *block = slot_at(values);
    if (block != NULL) {
        keep_warm(block);
    }
    else {
        free((header *)values - 1);
    }
}

/* The guard was touched after memory had been chosen: there must be pages. */
static slot *
copy_to_block(void *values, size_t nbytes)
{
    slot *block = take_block(nbytes);
    if (block != NULL) {
        memcpy(address_of(block), values, nbytes);
        npy_deferred_memory_free(values);
    }
    return block;
}

NPY_NO_EXPORT void *
npy_deferred_publish(PyArrayObject *array, void *values)
{
    size_t nbytes = (size_t)PyArray_NBYTES(array);
    slot *guard = slot_at(((PyArrayObject_fields *)array)->data);
    slot *block = slot_at(values);
    guard->array = NULL;
    if (block == NULL && guard->wanted) {
        block = copy_to_block(values, nbytes);
    }
    if (block == NULL) {
        ((header *)values - 1)->guard = guard;
    }
    else if ((is_large(guard) || guard->wanted) && move_pages(block, guard) == 0) {
        push(&memory.empty[block->home->class], block, EMPTY);
        values = address_of(guard);
    }
    else {
        block->nbytes = guard->nbytes;
        block->twin = guard;
        guard->twin = block;
        values = address_of(block);
    }
    PyTraceMalloc_Track(NPY_TRACE_DOMAIN, (uintptr_t)values, nbytes);
    return values;
}

/* ---- the handler of NEP 49 that arrays with such memory have ---- */

static void *
handler_malloc(void *NPY_UNUSED(context), size_t size)
{
    return allocate(size);
}

static void *
handler_calloc(void *NPY_UNUSED(context), size_t n, size_t size)
{
    header *head = calloc(1, sizeof(header) + n * size);
    return head == NULL ? NULL : head + 1;
}

static void
handler_free(void *NPY_UNUSED(context), void *values, size_t NPY_UNUSED(size))
{
    if (values == NULL) {
        return;
    }
    slot *s = slot_at(values);
    if (s == NULL) {
        header *head = (header *)values - 1;
        if (head->guard != NULL) {
            release_guard(head->guard);
        }
        free(head);
    }
    else if (s->twin != NULL) {
        release_block(s);
    }
    else {
        release_guard(s);
    }
}

static void *
handler_realloc(void *context, void *values, size_t size)
{
    slot *s = values == NULL ? NULL : slot_at(values);
    if (s == NULL) {
        header *head = realloc(values == NULL ? NULL : (header *)values - 1,
                               sizeof(header) + size);
        if (head != NULL && values == NULL) {
            head->guard = NULL;
        }
        return head == NULL ? NULL : head + 1;
    }
    void *larger = allocate(size);
    if (larger != NULL) {
        memcpy(larger, values, size < s->nbytes ? size : s->nbytes);
        handler_free(context, values, 0);
    }
    return larger;
}

/* Nobody can tell it from the default one. */
static PyDataMem_Handler handler = {
        "default_allocator",
        1,
        {NULL, handler_malloc, handler_calloc, handler_realloc, handler_free},
};

NPY_NO_EXPORT int
npy_deferred_memory_init(void)
{
    npy_deferred_handler = PyCapsule_New(&handler, MEM_HANDLER_CAPSULE_NAME, NULL);
    return npy_deferred_handler == NULL ? -1 : 0;
}

/* ---- what the fault handler asks ---- */

NPY_NO_EXPORT PyArrayObject *
npy_deferred_want(const void *address)
{
    slot *s = slot_at(address);
    size_t offset = (size_t)((const char *)address - address_of(s));
    if (s->array == NULL || offset >= s->nbytes) {
        return NULL;
    }
    s->wanted = 1;
    return s->array;
}

NPY_NO_EXPORT int
npy_deferred_bring(const void *address)
{
    slot *s = slot_at(address);
    size_t offset = (size_t)((const char *)address - address_of(s));
    if (s->state != TAKEN || offset >= s->nbytes) {
        return 1;
    }
    if (s->extent == 0 && s->twin != NULL && fetch_pages(s->twin, s) < 0) {
        return -1;
    }
    return s->extent == 0 ? -1 : 0;
}
