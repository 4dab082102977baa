/*
 * Slots: where the addresses of guards and blocks come from (see memory.c).
 *
 * Slots are powers of two of a page.  They lie in *arenas* of slots of one size,
 * which are carved from reservations that grow as needed and are kept for good:
 * addresses alone cost nothing.  A limit on address space (ulimit -v) is kept
 * clear of: then little is reserved, and what finds no room is not deferred.
 *
 * Small classes have arenas of guards and arenas of blocks, so that the mappings
 * of the process stay few however many arrays are alive.  Large slots change
 * roles: the pages in a guard whose array died are the block of the next result,
 * and what that leaves is made inaccessible again, several slots with one call.
 * They lie a GiB apart, and all of that is accessible and moves at once (SPREAD), so
 * that tools tell of a process that it has a GiB of addresses for each.  Where these
 * are limited, or what is accessible is, slots are beside each other.
 *
 * All of it is guarded by the GIL, but npy_deferred_slot_at: it reads a table
 * that only grows.
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

#include "slots.h"

#include "multiarraymodule.h"

#include <stdio.h>
#include <stdlib.h>
#if defined(__unix__) && NPY_SIZEOF_INTP == 8
#    define HAS_GUARDS 1
#    include <sys/mman.h>
#    include <sys/resource.h>
#    include <unistd.h>
#    define GUARD_MAPPING (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
#endif
/* Of Linux 5.7 and 4.17; the headers we are built with may be older. */
#ifdef __linux__
#    ifndef MREMAP_DONTUNMAP
#        define MREMAP_DONTUNMAP 4
#    endif
#    ifndef MAP_FIXED_NOREPLACE
#        define MAP_FIXED_NOREPLACE 0x100000
#    endif
#endif

/* A policy of overcommitting memory by which all accessible memory counts. */
#define NEVER '2'
/* An arena of smaller slots; of larger ones it has LARGE_SLOTS. */
#define ARENA_BYTES ((size_t)1 << 22)
#define LARGE_SLOTS 8
/* Arenas start and end at multiples of this, the size of a huge page. */
#define UNIT_SHIFT 21 /* of HUGE_PAGE */
#define UNIT ((size_t)1 << UNIT_SHIFT)
/* The first reservation, and the step by which they stop growing. */
#define FIRST_RESERVATION ((size_t)1 << 30)
#define LAST_RESERVATION ((size_t)1 << 40)
/* Of a limit on address space, reservations take this part. */
#define PART_OF_LIMIT 8
/* The map of arenas: a leaf for each GiB of the address space that has some. */
#define LEAF_SHIFT 30
#define LEAF_UNITS ((size_t)1 << (LEAF_SHIFT - UNIT_SHIFT))
#define NLEAVES ((size_t)1 << (48 - LEAF_SHIFT))

NPY_NO_EXPORT slot_registry npy_deferred_slots;

/* The one registry of this file, beside that of the lists. */
static struct {
    char *reserved, *reserved_end; /* what is not carved yet */
    size_t reservation, all_reserved;
    arena **leaves[NLEAVES];
} addresses;

/* ---- lists ---- */

NPY_NO_EXPORT void
npy_deferred_slot_push(slot_list *list, slot *s, slot_state state)
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

NPY_NO_EXPORT slot *
npy_deferred_slot_take(slot_list *list, slot *s)
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

/* The slot at an address, or NULL.  Needs no GIL. */
NPY_NO_EXPORT slot *
npy_deferred_slot_at(const void *address)
{
    uintptr_t position = (uintptr_t)address;
    if (position >> LEAF_SHIFT >= NLEAVES) {
        return NULL;
    }
    arena **leaf = addresses.leaves[position >> LEAF_SHIFT];
    arena *home = leaf == NULL ? NULL : leaf[(position >> UNIT_SHIFT) % LEAF_UNITS];
    if (home == NULL) {
        return NULL;
    }
    return &home->slots[(position - (uintptr_t)home->start) / home->pitch];
}

NPY_NO_EXPORT int
npy_deferred_slot_class(size_t nbytes)
{
    if (NPY_UNLIKELY(npy_deferred_slots.page == 0)) {
#ifdef HAS_GUARDS
        npy_deferred_slots.page = (size_t)sysconf(_SC_PAGESIZE);
#else
        npy_deferred_slots.page = 4096;
#endif
    }
    int class = 0;
#ifdef __GNUC__
    if (nbytes > npy_deferred_slots.page) { /* both bounds are powers of two */
        class = __builtin_clzll(npy_deferred_slots.page - 1) -
                __builtin_clzll(nbytes - 1);
    }
#else
    while (class < NCLASSES && slot_size(class) < nbytes) {
        class ++;
    }
#endif
    return class;
}

/* ---- the system calls; without them nothing is deferred ---- */

#ifdef HAS_GUARDS

static int
is_limited(int resource, struct rlimit *limit)
{
    return getrlimit(resource, limit) == 0 && limit->rlim_cur != RLIM_INFINITY;
}

/* The bytes that may be reserved yet: a limit on address space is not ours. */
static size_t
reservable(void)
{
    struct rlimit limit;
    if (!is_limited(RLIMIT_AS, &limit)) {
        return SIZE_MAX;
    }
    size_t part = limit.rlim_cur / PART_OF_LIMIT;
    return part > addresses.all_reserved ? part - addresses.all_reserved : 0;
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

/* Whether to make more memory accessible than is used costs nothing. */
static int
may_overcommit(void)
{
    static char policy = '\0';
    struct rlimit limit;
    if (policy == '\0') {
        FILE *file = fopen("/proc/sys/vm/overcommit_memory", "r");
        policy = NEVER;
        if (file != NULL && fread(&policy, 1, 1, file) != 1) {
            policy = NEVER;
        }
        if (file != NULL) {
            fclose(file);
        }
    }
    return policy != NEVER && !is_limited(RLIMIT_AS, &limit) &&
           !is_limited(RLIMIT_DATA, &limit);
}

static int
open_range(char *start, size_t nbytes)
{
    if (mprotect(start, nbytes, PROT_READ | PROT_WRITE) < 0) {
        return -1;
    }
#    ifdef MADV_HUGEPAGE
    if (nbytes >= HUGE_PAGE && npy_thread_unsafe_state.madvise_hugepage) {
        madvise(start, nbytes, MADV_HUGEPAGE);
    }
#    endif
    return 0;
}

/* Make `n` slots inaccessible, without pages.  Returns 0 or -1. */
NPY_NO_EXPORT int
npy_deferred_slot_close(slot *first, size_t n)
{
    void *start = mmap(address_of(first), n * first->home->pitch, PROT_NONE,
                       GUARD_MAPPING | MAP_FIXED, -1, 0);
    if (start == MAP_FAILED) {
        return -1;
    }
    for (slot *s = first; s < first + n; s++) {
        s->extent = s->reach = 0;
    }
    return 0;
}

NPY_NO_EXPORT void
npy_deferred_slot_drop_pages(slot *s)
{
    madvise(address_of(s), s->extent, MADV_DONTNEED);
}

#    ifdef MREMAP_DONTUNMAP
/*
 * Whether limits leave room for as much more that is accessible.  mremap asks after it
 * has unmapped the target, and so might fail to have it mapped again.
 */
static int
is_within_limits(size_t nbytes)
{
    struct rlimit of_addresses, of_data;
    int has_limit = is_limited(RLIMIT_AS, &of_addresses);
    int has_data_limit = is_limited(RLIMIT_DATA, &of_data);
    if (!has_limit && !has_data_limit) {
        return 1;
    }
    unsigned long all, data;
    size_t page = npy_deferred_slots.page;
    FILE *file = fopen("/proc/self/statm", "r");
    int nread = file == NULL ? 0 : fscanf(file, "%lu %*u %*u %*u %*u %lu", &all, &data);
    if (file != NULL) {
        fclose(file);
    }
    return nread == 2 && (!has_limit || all * page <= of_addresses.rlim_cur) &&
           (!has_data_limit || data * page + nbytes <= of_data.rlim_cur);
}

/* The target may be unmapped before a move fails; nobody else may get it. */
static void
map_again(void *target, size_t nbytes)
{
    if (msync(target, nbytes, MS_ASYNC) < 0 &&
        mmap(target, nbytes, PROT_NONE, GUARD_MAPPING | MAP_FIXED_NOREPLACE, -1, 0) !=
                target) {
        Py_FatalError("out of memory: the addresses of a deferred array are lost");
    }
}
#    endif

/*
 * Move the pages of `from` into `to`, at once; `from` stays as accessible as it
 * was, without pages.  Returns 0, or -1 and nothing has changed.
 */
NPY_NO_EXPORT int
npy_deferred_slot_move_pages(slot *from, slot *to)
{
#    ifdef MREMAP_DONTUNMAP
    void *target = address_of(to);
    size_t nbytes = from->reach <= to->home->pitch ? from->reach : from->extent;
    if (!is_within_limits(nbytes)) {
        return -1;
    }
    void *moved = mremap(address_of(from), nbytes, nbytes,
                         MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, target);
    if (moved == target) {
        to->extent = from->extent;
        to->reach = nbytes;
        return 0;
    }
    map_again(target, nbytes);
#    endif
    return -1;
}

/* The values are at the other address of the array: get them here. */
NPY_NO_EXPORT int
npy_deferred_slot_fetch_pages(slot *from, slot *to)
{
    /* At no time are they, or something else, seen at both. */
    if (mprotect(address_of(from), from->reach, PROT_NONE) < 0) {
        return -1;
    }
    if (npy_deferred_slot_move_pages(from, to) < 0) {
        open_range(address_of(from), from->reach);
        return -1;
    }
    from->extent = from->reach = 0;
    return open_range(address_of(to), to->reach);
}

#else

static char *
map_addresses(size_t NPY_UNUSED(size))
{
    return NULL;
}

static int
may_overcommit(void)
{
    return 0;
}

static int
open_range(char *NPY_UNUSED(start), size_t NPY_UNUSED(nbytes))
{
    return -1;
}

NPY_NO_EXPORT int
npy_deferred_slot_close(slot *NPY_UNUSED(first), size_t NPY_UNUSED(n))
{
    return -1;
}

NPY_NO_EXPORT void
npy_deferred_slot_drop_pages(slot *NPY_UNUSED(s))
{
}

NPY_NO_EXPORT int
npy_deferred_slot_move_pages(slot *NPY_UNUSED(from), slot *NPY_UNUSED(to))
{
    return -1;
}

NPY_NO_EXPORT int
npy_deferred_slot_fetch_pages(slot *NPY_UNUSED(from), slot *NPY_UNUSED(to))
{
    return -1;
}

#endif

NPY_NO_EXPORT int
npy_deferred_slot_open(slot *s, size_t nbytes)
{
    /* Else the last bytes would get a huge page. */
    int may_reach = s->home->pitch >= SPREAD && nbytes % HUGE_PAGE == 0;
    size_t reach = may_reach && may_overcommit() ? s->home->pitch : nbytes;
    if (open_range(address_of(s), reach) < 0) {
        return -1;
    }
    s->extent = nbytes;
    s->reach = reach;
    return 0;
}

/* ---- reservations and arenas ---- */

static char *
align(char *address, size_t alignment)
{
    return (char *)(((uintptr_t)address + alignment - 1) & ~(alignment - 1));
}

/* Make at least `size` bytes, whole units, ready to be carved.  0 or -1. */
static int
reserve(size_t size, size_t alignment)
{
    size_t wanted = addresses.reservation == 0 ? FIRST_RESERVATION
                    : addresses.reservation < LAST_RESERVATION
                            ? 2 * addresses.reservation
                            : LAST_RESERVATION;
    for (;; wanted /= 2) {
        wanted = wanted > size ? wanted : size;
        char *start = map_addresses(wanted + alignment);
        if (start != NULL) {
            addresses.reserved = align(start, alignment);
            addresses.reserved_end = addresses.reserved + wanted;
            addresses.reservation = wanted;
            addresses.all_reserved += wanted + alignment;
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
        if (addresses.leaves[i] == NULL) {
            addresses.leaves[i] = calloc(LEAF_UNITS, sizeof(arena *));
            if (addresses.leaves[i] == NULL) {
                return -1;
            }
        }
    }
    for (uintptr_t unit = first; unit <= last; unit++) {
        addresses.leaves[unit / LEAF_UNITS][unit % LEAF_UNITS] = home;
    }
    return 0;
}

/* Cut memory for an arena off the reservation, or NULL. */
static arena *
carve(int class, size_t nslots, size_t pitch, int accessible)
{
    size_t size = (nslots * pitch + UNIT - 1) & ~(UNIT - 1);
    size_t alignment = pitch >= SPREAD && may_overcommit() ? SPREAD : UNIT;
    char *start = align(addresses.reserved, alignment);
    if (start > addresses.reserved_end ||
        (size_t)(addresses.reserved_end - start) < size) {
        if (reserve(size, alignment) < 0) {
            return NULL;
        }
        start = addresses.reserved;
    }
    arena *home = calloc(1, sizeof(*home) + nslots * sizeof(slot));
    if (home == NULL) {
        return NULL;
    }
    home->start = start;
    home->class = class;
    home->nslots = nslots;
    home->pitch = pitch;
    if ((accessible && open_range(home->start, size) < 0) ||
        map_arena(home, size) < 0) {
        free(home);
        return NULL;
    }
    addresses.reserved = start + size;
    return home;
}

/* Put the slots of a new arena on a list, as guards or as blocks.  0 or -1. */
static int
new_arena(int class, slot_list *list, slot_state state)
{
    int accessible = state == EMPTY;
    size_t size = slot_size(class);
    size_t nslots = size < LARGE_SLOT ? ARENA_BYTES / size : LARGE_SLOTS;
    arena *home = NULL;
    if (size >= LARGE_SLOT && size < SPREAD && may_overcommit()) {
        home = carve(class, nslots, SPREAD, accessible);
    }
    if (home == NULL) {
        home = carve(class, nslots, size, accessible);
    }
    if (home == NULL && nslots > 1) {
        home = carve(class, 1, size, accessible);
    }
    if (home == NULL) {
        return -1;
    }
    for (size_t i = home->nslots; i-- > 0;) {
        slot *s = &home->slots[i];
        s->home = home;
        s->extent = s->reach = accessible ? size : 0;
        npy_deferred_slot_push(list, s, state);
    }
    return 0;
}

/* ---- slots to be had ---- */

/* Make the empty large slots of a class guards again, neighbours together. */
static void
close_empty_slots(int class)
{
    slot *s;
    while ((s = npy_deferred_slots.empty[class].newest) != NULL) {
        slot *first = s, *last = s;
        while (first > s->home->slots && first[-1].state == EMPTY) {
            first--;
        }
        while (last + 1 < s->home->slots + s->home->nslots && last[1].state == EMPTY) {
            last++;
        }
        if (npy_deferred_slot_close(first, last - first + 1) < 0) {
            return;
        }
        for (s = first; s <= last; s++) {
            npy_deferred_slot_push(
                    &npy_deferred_slots.ready[class],
                    npy_deferred_slot_take(&npy_deferred_slots.empty[class], s), READY);
        }
    }
}

NPY_NO_EXPORT slot *
npy_deferred_slot_ready(int class)
{
    slot_list *ready = &npy_deferred_slots.ready[class];
    if (NPY_UNLIKELY(ready->newest == NULL)) {
        if (slot_size(class) >= LARGE_SLOT) {
            close_empty_slots(class);
        }
        if (ready->newest == NULL && new_arena(class, ready, READY) < 0) {
            return NULL;
        }
    }
    return npy_deferred_slot_take(ready, ready->newest);
}

NPY_NO_EXPORT slot *
npy_deferred_slot_empty(int class)
{
    slot_list *empty = &npy_deferred_slots.empty[class];
    if (empty->newest == NULL && new_arena(class, empty, EMPTY) < 0) {
        return NULL;
    }
    return npy_deferred_slot_take(empty, empty->newest);
}
