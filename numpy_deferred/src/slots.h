/*
 * Slots: ranges of addresses that are reserved for good, and what lies in them.
 * Private to slots.c, which makes them, and memory.c, which says what for.
 *
 *   state   accessible  pages  lies in
 *   READY   no          no     ready[], the guards to be had
 *   TAKEN   whichever          no list: it belongs to an array
 *   WARM    yes         yes    warm[], kept for the next result, up to the limit
 *   EMPTY   yes         no     empty[]: its pages were moved elsewhere or let go
 */
#ifndef NUMPY_DEFERRED_SRC_SLOTS_H_
#define NUMPY_DEFERRED_SRC_SLOTS_H_

#include "deferred.h"

#include <stdint.h>

/*
 * From this size of a slot on, pages are moved into the guard: these are mostly huge
 * ones.  Small ones take 25 us for 1 MiB, with what goes cold by it: as long as the
 * sum of two such arrays.
 */
#define LARGE_SLOT ((size_t)4 << 20)
#define HUGE_PAGE ((size_t)2 << 20)
/*
 * The kernel moves huge pages one by one, and tells all processors that run a thread of
 * the process of each: 12 us on a virtual machine.  A whole GiB is one entry of its
 * tables, whatever is in it; so large slots lie that far apart, if addresses are free.
 */
#define SPREAD ((size_t)1 << 30)
/* Sizes of slots: a page, twice, four times... */
#define NCLASSES 36

typedef struct npy_deferred_slot slot;
typedef struct npy_deferred_arena arena;

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
    size_t extent;        /* bytes that have pages, from the start */
    size_t reach;         /* accessible bytes, no fewer: all of a large slot, or that */
    npy_uint64 stamp;     /* when it became WARM */
    slot_state state;
    int wanted; /* somebody has touched the guard: values must come here */
};

/* Slots of one class, beside each other. */
struct npy_deferred_arena {
    char *start;
    int class;
    size_t nslots, pitch; /* bytes from slot to slot: their size, or SPREAD */
    slot slots[];
};

typedef struct {
    slot *newest, *oldest;
} slot_list;

/* The slots of each class, by their state. */
typedef struct {
    size_t page; /* of the machine; 0 until something is deferred */
    slot_list ready[NCLASSES], empty[NCLASSES], warm[NCLASSES];
} slot_registry;

extern NPY_NO_EXPORT slot_registry npy_deferred_slots;

static inline size_t
slot_size(int class)
{
    return npy_deferred_slots.page << class;
}

static inline int
is_large(const slot *s)
{
    return slot_size(s->home->class) >= LARGE_SLOT;
}

static inline char *
address_of(const slot *s)
{
    return s->home->start + (s - s->home->slots) * s->home->pitch;
}

static inline size_t
whole_pages(size_t nbytes)
{
    return (nbytes + npy_deferred_slots.page - 1) & ~(npy_deferred_slots.page - 1);
}

/* The slot at an address, or NULL.  Needs no GIL. */
NPY_NO_EXPORT slot *
npy_deferred_slot_at(const void *address);
/* The smallest class for this many bytes; NCLASSES or more: none. */
NPY_NO_EXPORT int
npy_deferred_slot_class(size_t nbytes);

/* Put a slot on the list of its new state; take it off, which makes it TAKEN. */
NPY_NO_EXPORT void
npy_deferred_slot_push(slot_list *list, slot *s, slot_state state);
NPY_NO_EXPORT slot *
npy_deferred_slot_take(slot_list *list, slot *s);

/* A slot that is inaccessible, or NULL. */
NPY_NO_EXPORT slot *
npy_deferred_slot_ready(int class);
/* A slot of a small class that is accessible as a whole, or NULL. */
NPY_NO_EXPORT slot *
npy_deferred_slot_empty(int class);

/* Make the first bytes of a slot accessible, or more.  Returns 0 or -1. */
NPY_NO_EXPORT int
npy_deferred_slot_open(slot *s, size_t nbytes);
/* Make `n` slots side by side inaccessible, without pages.  Returns 0 or -1. */
NPY_NO_EXPORT int
npy_deferred_slot_close(slot *first, size_t n);
/* Give its pages back. */
NPY_NO_EXPORT void
npy_deferred_slot_drop_pages(slot *s);
/*
 * Move the pages of `from` into `to`, at once for who reads there; `from` stays
 * accessible, without pages.  Returns 0, or -1 and nothing has changed.
 */
NPY_NO_EXPORT int
npy_deferred_slot_move_pages(slot *from, slot *to);
/* The same, and `from` is inaccessible: at no time are values at both. */
NPY_NO_EXPORT int
npy_deferred_slot_fetch_pages(slot *from, slot *to);

#endif /* NUMPY_DEFERRED_SRC_SLOTS_H_ */
