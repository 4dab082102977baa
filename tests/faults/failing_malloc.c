/*
 * An allocator that fails on demand: preloaded, it stands before malloc and its
 * kin.  With PYTHONMALLOC=malloc all memory of Python and NumPy comes from them.
 *
 * The variables below are its whole interface; inject.py sets them through
 * ctypes, which allocates nothing when it stores an integer.  Only the thread
 * under test may allocate while `faults_at` is set.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

/* Which allocation fails, counted by `faults_seen`; 0: none. */
long faults_at = 0;
long faults_seen = 0;
/* How many in a row fail.  Not all: CPython 3.11 never ends without memory. */
long faults_row = 1;
/* How many have failed. */
long faults_failed = 0;
/* Blocks alive, less those from before this library was ready. */
long faults_live = 0;
/* The file that is told where the first failure is; 0: none. */
int faults_trace = 0;

static void *(*real_malloc)(size_t);
static void *(*real_calloc)(size_t, size_t);
static void *(*real_realloc)(void *, size_t);
static void *(*real_aligned_alloc)(size_t, size_t);
static int (*real_posix_memalign)(void **, size_t, size_t);
static void *(*real_mmap)(void *, size_t, int, int, int, off_t);
static void (*real_free)(void *);

/* What the loader itself asks for while these are looked up. */
static char early[16384];
static size_t early_used = 0;

static void *
early_calloc(size_t size)
{
    size = (size + 15) & ~(size_t)15;
    if (size > sizeof(early) - early_used) {
        abort();
    }
    early_used += size;
    return early + early_used - size;
}

static int
is_early(void *block)
{
    return (uintptr_t)block - (uintptr_t)early < sizeof(early);
}

static int
ready(void)
{
    static enum { UNKNOWN, BUSY, KNOWN } state = UNKNOWN;
    if (state == UNKNOWN) {
        state = BUSY;
        real_calloc = dlsym(RTLD_NEXT, "calloc");
        real_realloc = dlsym(RTLD_NEXT, "realloc");
        real_aligned_alloc = dlsym(RTLD_NEXT, "aligned_alloc");
        real_posix_memalign = dlsym(RTLD_NEXT, "posix_memalign");
        real_mmap = dlsym(RTLD_NEXT, "mmap");
        real_free = dlsym(RTLD_NEXT, "free");
        real_malloc = dlsym(RTLD_NEXT, "malloc");
        state = KNOWN;
    }
    return state == KNOWN;
}

static void
trace(void)
{
    void *frames[24];
    long at = faults_at;
    faults_at = 0;
    backtrace_symbols_fd(frames, backtrace(frames, 24), faults_trace);
    faults_at = at;
}

static int
fails(void)
{
    if (faults_at == 0 || ++faults_seen < faults_at ||
        faults_seen >= faults_at + faults_row) {
        return 0;
    }
    if (faults_failed++ == 0 && faults_trace != 0) {
        trace();
    }
    errno = ENOMEM;
    return 1;
}

static void *
counted(void *block)
{
    faults_live += block != NULL;
    return block;
}

void *
malloc(size_t size)
{
    if (!ready()) {
        return early_calloc(size);
    }
    return fails() ? NULL : counted(real_malloc(size));
}

void *
calloc(size_t n, size_t size)
{
    if (!ready()) {
        return early_calloc(n * size);
    }
    return fails() ? NULL : counted(real_calloc(n, size));
}

void *
realloc(void *block, size_t size)
{
    if (!ready() || is_early(block)) {
        abort();
    }
    if (fails()) {
        return NULL;
    }
    void *moved = real_realloc(block, size);
    faults_live += (moved != NULL) - (block != NULL && (moved != NULL || size == 0));
    return moved;
}

void *
aligned_alloc(size_t alignment, size_t size)
{
    return !ready() || fails() ? NULL : counted(real_aligned_alloc(alignment, size));
}

int
posix_memalign(void **block, size_t alignment, size_t size)
{
    if (!ready() || fails()) {
        return ENOMEM;
    }
    int error = real_posix_memalign(block, alignment, size);
    faults_live += error == 0;
    return error;
}

/* Not counted as alive: a mapping may be unmapped in parts. */
void *
mmap(void *start, size_t size, int protection, int flags, int file, off_t offset)
{
    if (!ready() || fails()) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return real_mmap(start, size, protection, flags, file, offset);
}

void *
mmap64(void *, size_t, int, int, int, off_t) __attribute__((alias("mmap")));

void
free(void *block)
{
    if (block == NULL || is_early(block)) {
        return;
    }
    faults_live--;
    if (ready()) {
        real_free(block);
    }
}

/* The first backtrace() loads a library, which allocates. */
__attribute__((constructor)) static void
prepare_trace(void)
{
    void *frame;
    backtrace(&frame, 1);
}
