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
 * Guards and blocks are *slots* of reserved addresses (slots.h, slots.c).  Making
 * and dropping an array that is never calculated takes a slot off a list and puts
 * it back, without a system call.  What is calculated and dropped leaves memory
 * that is warm, which the next result of about its size gets.
 *
 * An extension may exchange the memory of two arrays, and not what frees it, as f2py
 * does: our handler takes memory of the default one, too.
 *
 * All of it is guarded by the GIL, but npy_deferred_is_guard.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "alloc.h"
#include "slots.h"

#include <stdlib.h>
#include <string.h>

/* Before memory from malloc; as large as malloc aligns. */
typedef union {
    struct {
        slot *guard; /* NULL: none */
        uintptr_t mark;
    };
    char size[16];
} header;

static size_t warm_bytes = 0;
static npy_uint64 clock_ticks = 0;

NPY_NO_EXPORT npy_intp npy_deferred_cache_limit = (npy_intp)256 << 20;

NPY_NO_EXPORT PyObject *npy_deferred_handler = NULL;
NPY_NO_EXPORT int npy_deferred_other_handlers = 0;

NPY_NO_EXPORT int
npy_deferred_is_guard(const void *address)
{
    return npy_deferred_slot_at(address) != NULL;
}

/* ---- warm memory ---- */

/* Its pages go back to the system. */
static void
let_pages_go(slot *s)
{
    int class = s->home->class;
    if (is_large(s) && npy_deferred_slot_close(s, 1) == 0) {
        npy_deferred_slot_push(&npy_deferred_slots.ready[class], s, READY);
        return;
    }
    npy_deferred_slot_drop_pages(s);
    npy_deferred_slot_push(&npy_deferred_slots.empty[class], s, EMPTY);
}

NPY_NO_EXPORT void
npy_deferred_limit_cache(void)
{
    while (warm_bytes > (size_t)npy_deferred_cache_limit) {
        slot *oldest = NULL;
        for (int class = 0; class < NCLASSES; class ++) {
            slot *s = npy_deferred_slots.warm[class].oldest;
            if (s != NULL && (oldest == NULL || s->stamp < oldest->stamp)) {
                oldest = s;
            }
        }
        warm_bytes -= oldest->extent;
        let_pages_go(npy_deferred_slot_take(
                &npy_deferred_slots.warm[oldest->home->class], oldest));
    }
}

NPY_NO_EXPORT npy_intp
npy_deferred_cached_bytes(void)
{
    return (npy_intp)warm_bytes;
}

static void
keep_warm(slot *s)
{
    s->stamp = ++clock_ticks;
    s->twin = NULL;
    npy_deferred_slot_push(&npy_deferred_slots.warm[s->home->class], s, WARM);
    warm_bytes += s->extent;
    npy_deferred_limit_cache();
}

/* A warm slot for a result of this size, or NULL. */
static slot *
take_warm(int class, size_t nbytes)
{
    int tries = 8;
    for (slot *s = npy_deferred_slots.warm[class].newest; s != NULL && tries > 0;
         s = s->older, tries--) {
        if (s->extent >= nbytes && (!is_large(s) || s->extent / 5 * 4 <= nbytes)) {
            warm_bytes -= s->extent;
            return npy_deferred_slot_take(&npy_deferred_slots.warm[class], s);
        }
    }
    return NULL;
}

/* ---- guards ---- */

NPY_NO_EXPORT void *
npy_deferred_guard_new(npy_intp nbytes)
{
    int class = npy_deferred_slot_class((size_t)nbytes);
    slot *s = class < NCLASSES ? npy_deferred_slot_ready(class) : NULL;
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
    npy_deferred_slot_at(((PyArrayObject_fields *)array)->data)->array = array;
}

NPY_NO_EXPORT void
npy_deferred_guard_drop(void *guard)
{
    slot *s = npy_deferred_slot_at(guard);
    s->array = NULL;
    npy_deferred_slot_push(&npy_deferred_slots.ready[s->home->class], s, READY);
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
        npy_deferred_slot_push(&npy_deferred_slots.ready[class], s, READY);
    }
    else if (is_large(s)) {
        keep_warm(s);
    }
    else {
        /* It was touched: blocks of small classes are warm in arenas of their own. */
        slot *block = npy_deferred_slot_empty(class);
        if (block != NULL && npy_deferred_slot_move_pages(s, block) == 0) {
            keep_warm(block);
        }
        else if (block != NULL) {
            npy_deferred_slot_push(&npy_deferred_slots.empty[class], block, EMPTY);
        }
        if (npy_deferred_slot_close(s, 1) == 0) {
            npy_deferred_slot_push(&npy_deferred_slots.ready[class], s, READY);
        }
        else {
            let_pages_go(s); /* too many mappings: from now on it is a block */
        }
    }
}

/* ---- blocks ---- */

/* What a large block has: whole huge pages, unless that is much more. */
static size_t
extent_for(size_t nbytes)
{
    size_t huge = (nbytes + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
    return huge - nbytes <= nbytes / 4 ? huge : whole_pages(nbytes);
}

static slot *
take_block(size_t nbytes)
{
    int class = npy_deferred_slot_class(nbytes);
    if (class >= NCLASSES) {
        return NULL;
    }
    slot *s = take_warm(class, nbytes);
    if (s != NULL) {
        return s;
    }
    if (slot_size(class) < LARGE_SLOT) {
        return npy_deferred_slot_empty(class);
    }
    s = npy_deferred_slot_ready(class);
    if (s != NULL && npy_deferred_slot_open(s, extent_for(nbytes)) < 0) {
        npy_deferred_slot_push(&npy_deferred_slots.ready[class], s, READY);
        return NULL;
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
    else if (npy_deferred_slot_open(block, guard->extent) == 0) {
        /* A late use has moved its pages to the guard, where they go now. */
        npy_deferred_slot_push(&npy_deferred_slots.empty[block->home->class], block,
                               EMPTY);
    }
    if (guard != NULL) {
        release_guard(guard);
    }
}

/* ---- memory for values ---- */

static uintptr_t
mark_of(const header *head)
{
    return ~(uintptr_t)head;
}

/* The values after a header whose memory is new, or NULL. */
static void *
after(header *head)
{
    if (head == NULL) {
        return NULL;
    }
    head->guard = NULL;
    head->mark = mark_of(head);
    return head + 1;
}

static void *
allocate(size_t nbytes)
{
    return after(malloc(sizeof(header) + nbytes));
}

static void *
memory_for(PyArrayObject *array)
{
    size_t nbytes = (size_t)PyArray_NBYTES(array);
    slot *guard = npy_deferred_slot_at(((PyArrayObject_fields *)array)->data);
    slot *block = NULL;
    if (nbytes >= npy_deferred_slots.page || guard->wanted) {
        block = take_block(nbytes);
    }
    return block != NULL ? address_of(block) : allocate(nbytes);
}

NPY_NO_EXPORT void *
npy_deferred_memory_new(PyArrayObject *array)
{
    void *values = memory_for(array);
    /* Machine code may have the last mappings that a process may have. */
    return values != NULL || !npy_deferred_forget_code() ? values : memory_for(array);
}

NPY_NO_EXPORT void
npy_deferred_memory_free(void *values)
{
    slot *block = npy_deferred_slot_at(values);
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
    slot *guard = npy_deferred_slot_at(((PyArrayObject_fields *)array)->data);
    slot *block = npy_deferred_slot_at(values);
    guard->array = NULL;
    if (block == NULL && guard->wanted) {
        block = copy_to_block(values, nbytes);
    }
    if (block == NULL) {
        ((header *)values - 1)->guard = guard;
    }
    else if ((is_large(guard) || guard->wanted) &&
             npy_deferred_slot_move_pages(block, guard) == 0) {
        npy_deferred_slot_push(&npy_deferred_slots.empty[block->home->class], block,
                               EMPTY);
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

/*
 * NULL: it is memory of the default handler, see npy_deferred_before_exchange.  What
 * lies before that is malloc's own, which a sanitizer would not have us look at.
 */
#ifdef __GNUC__
__attribute__((no_sanitize_address))
#endif
static header *
header_of(void *values)
{
    header *head = (header *)values - 1;
    return head->mark == mark_of(head) ? head : NULL;
}

static void *
handler_malloc(void *NPY_UNUSED(context), size_t size)
{
    return allocate(size);
}

static void *
handler_calloc(void *NPY_UNUSED(context), size_t n, size_t size)
{
    return after(calloc(1, sizeof(header) + n * size));
}

static void
handler_free(void *NPY_UNUSED(context), void *values, size_t size)
{
    if (values == NULL) {
        return;
    }
    slot *s = npy_deferred_slot_at(values);
    header *head = s == NULL ? header_of(values) : NULL;
    if (head != NULL) {
        if (head->guard != NULL) {
            release_guard(head->guard);
        }
        free(head);
    }
    else if (s == NULL) {
        default_handler.allocator.free(default_handler.allocator.ctx, values, size);
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
    slot *s = values == NULL ? NULL : npy_deferred_slot_at(values);
    header *head = values == NULL || s != NULL ? NULL : header_of(values);
    if (head != NULL) {
        head = realloc(head, sizeof(header) + size);
        if (head == NULL) {
            return NULL;
        }
        head->mark = mark_of(head);
        return head + 1;
    }
    if (s == NULL && values != NULL) {
        return default_handler.allocator.realloc(default_handler.allocator.ctx, values,
                                                 size);
    }
    void *larger = allocate(size);
    if (larger != NULL && values != NULL) {
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

NPY_NO_EXPORT int
npy_deferred_before_exchange(PyArrayObject *new_, PyArrayObject *old)
{
    if (npy_deferred_before_write(old) < 0) {
        return -1;
    }
    PyArrayObject_fields *fields = (PyArrayObject_fields *)new_;
    if (PyArray_HANDLER(old) == npy_deferred_handler &&
        fields->mem_handler == PyDataMem_DefaultHandler) {
        Py_SETREF(fields->mem_handler, Py_NewRef(npy_deferred_handler));
    }
    return 0;
}

/* ---- what the fault handler asks ---- */

NPY_NO_EXPORT PyArrayObject *
npy_deferred_want(const void *address)
{
    slot *s = npy_deferred_slot_at(address);
    if (s == NULL) {
        return NULL;
    }
    size_t offset = (size_t)((const char *)address - address_of(s));
    if (s->array == NULL || offset >= s->nbytes) {
        return NULL;
    }
    s->wanted = 1;
    return s->array;
}

NPY_NO_EXPORT const void *
npy_deferred_other_address(const void *address)
{
    slot *s = npy_deferred_slot_at(address);
    if (s == NULL || s->state != TAKEN || s->array != NULL || s->twin == NULL) {
        return address;
    }
    return address_of(s->twin) + ((const char *)address - address_of(s));
}

NPY_NO_EXPORT int
npy_deferred_bring(const void *address)
{
    slot *s = npy_deferred_slot_at(address);
    if (s == NULL) {
        return 1;
    }
    size_t offset = (size_t)((const char *)address - address_of(s));
    if (s->state != TAKEN || offset >= s->nbytes) {
        return 1;
    }
    if (s->extent == 0 && s->twin != NULL &&
        npy_deferred_slot_fetch_pages(s->twin, s) < 0) {
        return -1;
    }
    return s->extent == 0 ? -1 : 0;
}
