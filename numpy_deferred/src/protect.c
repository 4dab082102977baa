/*
 * Protection: code that writes into the memory of an operand without asking NumPy.
 *
 * NumPy's own writes flush what reads the memory first.  Compiled code may write
 * through an address that it took out of the array structure, and asks nobody.  So
 * while pending nodes read some memory, its whole pages are write-protected: such
 * a write faults, guard.c asks here, the dependents are calculated, and the write
 * goes on.  What is not in whole pages (before the first, after the last) is
 * copied, and compared before it is read: if it has been written to, the operands
 * get a copy of what was there.
 *
 * To protect and to unprotect costs a page table entry each per page, as much as
 * a simple operation needs for a page of 4 KiB, and next to nothing in huge pages.
 * So only memory of npy_deferred_protect_limit bytes and more is protected, which
 * NumPy and memory.c ask to have in huge pages.  Smaller operands lose WRITEABLE
 * instead, which only code that looks at the flag sees.
 *
 * Pages are protected no longer than somebody reads them, as a system call that
 * writes to them fails instead of faulting.
 *
 * A protection is owned by the usage record of the array that owns the memory.
 * All of it is guarded by the GIL, but the list of protected ranges, which the fault
 * handler looks at without, is guarded by a lock that is held for no more than a look.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "alloc.h"
#include "ctors.h"
#include "deferred.h"

#include <stdint.h>
#include <string.h>

#ifdef __linux__
#    include <pthread.h>
#    include <sched.h>
#    include <sys/mman.h>
#    include <unistd.h>
#endif

/*
 * From this size on, protecting four operands takes less than 5 % of `a*b + c*d`:
 * what lies before the first and after the last huge page is in small ones, which
 * takes about 70 us an operand at each end.  Measured: 8 to 11 % at 80 MB, 20 % at 32.
 */
NPY_NO_EXPORT npy_intp npy_deferred_protect_limit = (npy_intp)256 << 20;

struct npy_deferred_protection {
    PyArrayObject *owner; /* borrowed: the record's */
    char *data;           /* the owner's memory */
    size_t nbytes;
    char *start, *end; /* its protected pages; both `data` when there are none */
    int entry;         /* in the list of ranges; -1: none */
    char copies[];     /* of what is before `start`, then of what is from `end` on */
};

static size_t
copied_before(const npy_deferred_protection *p)
{
    return p->start - p->data;
}

static size_t
copied_after(const npy_deferred_protection *p)
{
    return p->data + p->nbytes - p->end;
}

#ifdef __linux__

/* Each may cost two mappings, of which a process has 65,530 by default. */
#    define MAX_RANGES 4096

/* Changed with the GIL and the lock held. */
static struct {
    int lock;
    int n;
    npy_deferred_protection *protections[MAX_RANGES];
    npy_uint64 nremoved;
} ranges;

/* Who held it stayed behind. */
static void
reset_lock(void)
{
    ranges.lock = 0;
}

static void
lock_ranges(void)
{
    while (__atomic_exchange_n(&ranges.lock, 1, __ATOMIC_ACQUIRE)) {
        sched_yield();
    }
}

static void
unlock_ranges(void)
{
    __atomic_store_n(&ranges.lock, 0, __ATOMIC_RELEASE);
}

/* The lock is held. */
static npy_deferred_protection *
find_range(const void *address)
{
    for (int i = 0; i < ranges.n; i++) {
        npy_deferred_protection *p = ranges.protections[i];
        if ((const char *)address >= p->start && (const char *)address < p->end) {
            return p;
        }
    }
    return NULL;
}

/* Returns 0, or -1 when the pages cannot be protected. */
static int
protect_pages(npy_deferred_protection *p)
{
    static int registered = 0;
    if (!registered) {
        registered = pthread_atfork(NULL, NULL, reset_lock) == 0;
    }
    if (!registered || ranges.n == MAX_RANGES) {
        return -1;
    }
    lock_ranges();
    p->entry = ranges.n++;
    ranges.protections[p->entry] = p;
    unlock_ranges();
    if (mprotect(p->start, p->end - p->start, PROT_READ) == 0) {
        return 0;
    }
    lock_ranges();
    ranges.n--;
    p->entry = -1;
    unlock_ranges();
    return -1;
}

static void
unprotect_pages(npy_deferred_protection *p)
{
    if (p->entry < 0) {
        return;
    }
    /* It merges mappings as a rule; a failure shows at the next write. */
    mprotect(p->start, p->end - p->start, PROT_READ | PROT_WRITE);
    lock_ranges();
    npy_deferred_protection *last = ranges.protections[--ranges.n];
    ranges.protections[p->entry] = last;
    last->entry = p->entry;
    __atomic_add_fetch(&ranges.nremoved, 1, __ATOMIC_RELEASE);
    unlock_ranges();
    p->entry = -1;
}

/* The whole pages of an array's memory; NULL: none, or values are not there. */
static char *
whole_pages_of(PyArrayObject *owner, size_t *nbytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t data = (uintptr_t)PyArray_BYTES(owner);
    uintptr_t start = (data + page - 1) & ~(page - 1);
    uintptr_t end = (data + (uintptr_t)PyArray_NBYTES(owner)) & ~(page - 1);
    PyObject *handler = PyArray_HANDLER(owner);
    if (end <= start ||
        (handler != PyDataMem_DefaultHandler && handler != npy_deferred_handler)) {
        return NULL;
    }
    /* A late use of another address may have moved the pages away. */
    if (npy_deferred_is_guard((void *)data) && npy_deferred_bring((void *)data) != 0) {
        return NULL;
    }
    *nbytes = end - start;
    return (char *)start;
}

NPY_NO_EXPORT int
npy_deferred_is_protected(const void *address)
{
    lock_ranges();
    int found = find_range(address) != NULL;
    unlock_ranges();
    return found;
}

NPY_NO_EXPORT int
npy_deferred_was_protected(const void *address)
{
    static NPY_TLS const void *last_address;
    static NPY_TLS npy_uint64 last_nremoved;
    npy_uint64 nremoved = __atomic_load_n(&ranges.nremoved, __ATOMIC_ACQUIRE);
    if (address == last_address && nremoved == last_nremoved) {
        return 0;
    }
    last_address = address;
    last_nremoved = nremoved;
    return nremoved != 0;
}

NPY_NO_EXPORT PyArrayObject *
npy_deferred_protected_owner(const void *address)
{
    lock_ranges();
    npy_deferred_protection *p = find_range(address);
    unlock_ranges();
    return p == NULL ? NULL : p->owner;
}

NPY_NO_EXPORT void
npy_deferred_open_range(const void *address)
{
    lock_ranges();
    npy_deferred_protection *p = find_range(address);
    if (p != NULL) {
        mprotect(p->start, p->end - p->start, PROT_READ | PROT_WRITE);
    }
    unlock_ranges();
}

#else

static int
protect_pages(npy_deferred_protection *NPY_UNUSED(p))
{
    return -1;
}

static void
unprotect_pages(npy_deferred_protection *NPY_UNUSED(p))
{
}

static char *
whole_pages_of(PyArrayObject *NPY_UNUSED(owner), size_t *NPY_UNUSED(nbytes))
{
    return NULL;
}

NPY_NO_EXPORT int
npy_deferred_is_protected(const void *NPY_UNUSED(address))
{
    return 0;
}

NPY_NO_EXPORT PyArrayObject *
npy_deferred_protected_owner(const void *NPY_UNUSED(address))
{
    return NULL;
}

NPY_NO_EXPORT void
npy_deferred_open_range(const void *NPY_UNUSED(address))
{
}

#endif

static npy_deferred_protection *
new_protection(PyArrayObject *owner, char *start, size_t nprotected)
{
    size_t nbytes = (size_t)PyArray_NBYTES(owner);
    npy_deferred_protection *p = PyMem_Malloc(sizeof(*p) + nbytes - nprotected);
    if (p != NULL) {
        p->owner = owner;
        p->data = PyArray_BYTES(owner);
        p->nbytes = nbytes;
        p->start = start;
        p->end = start + nprotected;
        p->entry = -1;
    }
    return p;
}

/* Whether the memory is from malloc or ours; that of others may be anything. */
static int
is_ordinary(PyArrayObject *owner)
{
    PyObject *handler = PyArray_HANDLER(owner);
    return PyArray_CHKFLAGS(owner, NPY_ARRAY_OWNDATA) &&
           (handler == PyDataMem_DefaultHandler || handler == npy_deferred_handler);
}

NPY_NO_EXPORT int
npy_deferred_protect(PyArrayObject *owner, npy_deferred_protection **protection)
{
    *protection = NULL;
    if (PyArray_NBYTES(owner) < npy_deferred_protect_limit ||
        npy_deferred_guard_mode == NPY_DEFERRED_GUARD_OFF || !is_ordinary(owner)) {
        return 0;
    }
    size_t nprotected = 0;
    char *start = whole_pages_of(owner, &nprotected);
    npy_deferred_protection *p = NULL;
    if (start != NULL) {
        p = new_protection(owner, start, nprotected);
        if (p != NULL && protect_pages(p) < 0) {
            PyMem_Free(p);
            p = NULL;
        }
    }
    if (p == NULL) {
        p = new_protection(owner, PyArray_BYTES(owner), 0);
    }
    if (p == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(p->copies, p->data, copied_before(p));
    memcpy(p->copies + copied_before(p), p->end, copied_after(p));
    *protection = p;
    return 0;
}

NPY_NO_EXPORT void
npy_deferred_unprotect(npy_deferred_protection *p)
{
    if (p != NULL) {
        unprotect_pages(p);
        PyMem_Free(p);
    }
}

NPY_NO_EXPORT int
npy_deferred_is_intact(const npy_deferred_protection *p)
{
    return memcmp(p->copies, p->data, copied_before(p)) == 0 &&
           memcmp(p->copies + copied_before(p), p->end, copied_after(p)) == 0;
}

/* A multiple of what loops of ufuncs look at to choose their way. */
#define ALIGNMENT 4096

NPY_NO_EXPORT PyArrayObject *
npy_deferred_protected_copy(const npy_deferred_protection *p, char **data)
{
    npy_intp nbytes = (npy_intp)p->nbytes + ALIGNMENT;
    PyArrayObject *copy = (PyArrayObject *)PyArray_SimpleNew(1, &nbytes, NPY_UINT8);
    if (copy == NULL) {
        return NULL;
    }
    uintptr_t offset = (uintptr_t)p->data - (uintptr_t)PyArray_BYTES(copy);
    *data = PyArray_BYTES(copy) + offset % ALIGNMENT;
    memcpy(*data, p->data, p->nbytes);
    memcpy(*data, p->copies, copied_before(p));
    memcpy(*data + (p->end - p->data), p->copies + copied_before(p), copied_after(p));
    return copy;
}
