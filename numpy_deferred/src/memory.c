/*
 * The guard: the addresses that deferred arrays point to.
 *
 * One range of address space, reserved and inaccessible, is shared by all
 * deferred arrays; they start where it starts.  It costs no memory, and a
 * read or write that no hook foresaw ends in a segmentation fault instead of
 * wrong values.  Arrays larger than the range are not deferred.
 *
 * The range is made at the first deferral, for good.  Owned by this file.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "deferred.h"

#ifdef __unix__
#    include <sys/mman.h>
#endif

/* From 256 GiB down to 1 GiB, as far as limits on address space allow. */
#define LARGEST_GUARD ((size_t)1 << 38)
#define SMALLEST_GUARD ((size_t)1 << 30)

static char *guard_start = NULL;
static size_t guard_size = 0;

static void
reserve_guard(void)
{
#if defined(__unix__) && NPY_SIZEOF_INTP == 8
    for (size_t size = LARGEST_GUARD; size >= SMALLEST_GUARD; size /= 2) {
        void *start = mmap(NULL, size, PROT_NONE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (start != MAP_FAILED) {
            guard_start = start;
            guard_size = size;
            return;
        }
    }
#endif
}

NPY_NO_EXPORT void *
npy_deferred_guard(npy_intp nbytes)
{
    static int tried = 0;
    if (!tried) {
        tried = 1;
        reserve_guard();
    }
    return (size_t)nbytes <= guard_size ? guard_start : NULL;
}
