/*
 * Threads: a pool of workers that share one job with the thread that has it.
 *
 * A job is a function that takes parts of some work until nothing is left of it,
 * so it does not matter who comes, and who comes late: workers that have not
 * joined when the caller has found nothing left to do are not waited for.  The
 * caller works too, with or without the GIL; workers know nothing of Python, so a job
 * must not either.
 *
 * Workers look out for the next job for a moment after the last (MIN_SPIN), then they
 * sleep.  Before a fork they are ended, and started again by the next job, so that
 * no child lacks threads that it believes to have, and nobody is warned of them.
 *
 * The pool has one job at a time.  A job that finds it taken runs in its own thread.
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

#include "deferred.h"

#include <stdint.h>
#include <stdlib.h>

/* 0: not asked yet. */
static int num_threads = 0;

#ifdef __linux__

#    include <fenv.h>
#    include <pthread.h>
#    include <sched.h>
#    include <signal.h>
#    include <stdio.h>
#    include <string.h>
#    include <time.h>
#    include <unistd.h>

/* More than this does not help an operation on memory. */
#    define MAX_THREADS 256
/*
 * Nanoseconds that a worker looks out for the next job before it sleeps, at least and
 * at most; between these as long as the last one took.  Large results are moved to
 * where they belong after it, which takes some 50 us while another thread runs.
 */
#    define MIN_SPIN 30000
#    define MAX_SPIN 300000

static struct {
    /* The job; changed while no worker can join. */
    void (*run)(void *argument, int thread);
    void *argument;
    fenv_t environment;
    /* How many workers may still join, beside those that have: atomic. */
    int places;
    int finished;      /* of those that have joined: atomic */
    int generation;    /* of jobs: atomic */
    volatile int busy; /* a job is under way; guarded as gil.c says */
    /* Guarded by the mutex. */
    int sleeping, ending;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    /* The workers; guarded as gil.c says, and ended by fork. */
    int nworkers;
    pthread_t workers[MAX_THREADS];
} pool = {.mutex = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static inline void
pause_briefly(void)
{
#    if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#    elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#    endif
}

static npy_int64
nanoseconds(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (npy_int64)time.tv_sec * 1000000000 + time.tv_nsec;
}

static int
generation_now(void)
{
    return __atomic_load_n(&pool.generation, __ATOMIC_ACQUIRE);
}

/*
 * Wait for a job after `seen`, which began at the given time.  Returns 0, or -1 when
 * the worker is to end.
 */
static int
wait_for_job(int seen, npy_int64 begin)
{
    npy_int64 now = nanoseconds();
    npy_int64 end = now + PyArray_MIN(PyArray_MAX(now - begin, MIN_SPIN), MAX_SPIN);
    do {
        for (int i = 0; i < 64; i++) {
            if (generation_now() != seen) {
                return 0;
            }
            pause_briefly();
        }
    } while (nanoseconds() < end);
    pthread_mutex_lock(&pool.mutex);
    pool.sleeping++;
    while (generation_now() == seen && !pool.ending) {
        pthread_cond_wait(&pool.wake, &pool.mutex);
    }
    pool.sleeping--;
    int result = generation_now() == seen ? -1 : 0;
    pthread_mutex_unlock(&pool.mutex);
    return result;
}

static void *
work(void *unused)
{
    int seen = 0;
    npy_int64 begin = nanoseconds();
    while (wait_for_job(seen, begin) == 0) {
        seen = generation_now();
        begin = nanoseconds();
        int place = __atomic_fetch_sub(&pool.places, 1, __ATOMIC_ACQUIRE);
        if (place > 0) {
            /* Rounding and the like are the caller's. */
            fesetenv(&pool.environment);
            pool.run(pool.argument, place);
            __atomic_fetch_add(&pool.finished, 1, __ATOMIC_RELEASE);
        }
    }
    return unused;
}

NPY_NO_EXPORT void
npy_deferred_end_workers(void)
{
    pthread_mutex_lock(&pool.mutex);
    pool.ending = 1;
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.mutex);
    for (int i = 0; i < pool.nworkers; i++) {
        pthread_join(pool.workers[i], NULL);
    }
    pool.nworkers = 0;
    pool.ending = 0;
}

/* Have `wanted` workers, or fewer when the system refuses. */
static void
start_workers(int wanted)
{
    sigset_t blocked, before;
    sigfillset(&blocked);
    sigdelset(&blocked, SIGSEGV);
    sigdelset(&blocked, SIGBUS);
    sigdelset(&blocked, SIGFPE);
    sigdelset(&blocked, SIGILL);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    while (pool.nworkers < wanted &&
           pthread_create(&pool.workers[pool.nworkers], NULL, work, NULL) == 0) {
        pool.nworkers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

NPY_NO_EXPORT void
npy_deferred_share(void (*run)(void *argument, int thread), void *argument,
                   int nthreads)
{
    if (nthreads > 1 && !pool.busy && pool.nworkers < nthreads - 1) {
        start_workers(nthreads - 1);
    }
    if (nthreads <= 1 || pool.busy || pool.nworkers == 0) {
        run(argument, 0);
        return;
    }
    int places = PyArray_MIN(nthreads - 1, pool.nworkers);
    pool.busy = 1;
    pool.run = run;
    pool.argument = argument;
    fegetenv(&pool.environment);
    __atomic_store_n(&pool.finished, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&pool.places, places, __ATOMIC_RELEASE);
    __atomic_fetch_add(&pool.generation, 1, __ATOMIC_RELEASE);
    pthread_mutex_lock(&pool.mutex);
    if (pool.sleeping > 0) {
        pthread_cond_broadcast(&pool.wake);
    }
    pthread_mutex_unlock(&pool.mutex);
    run(argument, 0);
    /* Nobody joins from here on. */
    int left = __atomic_exchange_n(&pool.places, 0, __ATOMIC_ACQ_REL);
    int joined = places - PyArray_MAX(left, 0);
    for (int spins = 0; __atomic_load_n(&pool.finished, __ATOMIC_ACQUIRE) < joined;
         spins++) {
        if (spins < 4096) {
            pause_briefly();
        }
        else {
            sched_yield();
        }
    }
    pool.busy = 0;
}

NPY_NO_EXPORT int
npy_deferred_is_sharing(void)
{
    return pool.busy;
}

/* The processors that a control group grants, rounded up; 0: no limit. */
static int
granted_processors(void)
{
    long long quota, period;
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (file == NULL) {
        return 0;
    }
    int n = fscanf(file, "%lld %lld", &quota, &period);
    fclose(file);
    return n == 2 && quota > 0 && period > 0
                   ? (int)PyArray_MIN((quota + period - 1) / period, MAX_THREADS)
                   : 0;
}

static int
processors(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof(set), &set) == 0
                    ? CPU_COUNT(&set)
                    : (int)sysconf(_SC_NPROCESSORS_ONLN);
    int granted = granted_processors();
    n = granted > 0 ? PyArray_MIN(n, granted) : n;
    return PyArray_MAX(n, 1);
}

#else

#    define MAX_THREADS 1

NPY_NO_EXPORT void
npy_deferred_share(void (*run)(void *argument, int thread), void *argument,
                   int NPY_UNUSED(nthreads))
{
    run(argument, 0);
}

NPY_NO_EXPORT int
npy_deferred_is_sharing(void)
{
    return 0;
}

NPY_NO_EXPORT void
npy_deferred_end_workers(void)
{
}

static int
processors(void)
{
    return 1;
}

#endif

/* Borrowed, immortal: where NumPy's ufuncs are, by their names. */
static PyObject *own_names = NULL;

NPY_NO_EXPORT void
npy_deferred_threads_init(PyObject *module)
{
    own_names = PyModule_GetDict(module);
}

/* Ufuncs that were found there, each at its place: they live as long as NumPy. */
#define NKNOWN 64
static const PyUFuncObject *known_own[NKNOWN];

NPY_NO_EXPORT int
npy_deferred_is_own_ufunc(const PyUFuncObject *ufunc)
{
    const PyUFuncObject **known = &known_own[(uintptr_t)ufunc / 64 % NKNOWN];
    if (*known == ufunc || npy_deferred_is_where(ufunc)) {
        return 1;
    }
    if (ufunc->name == NULL ||
        PyDict_GetItemString(own_names, ufunc->name) != (PyObject *)ufunc) {
        return 0;
    }
    *known = ufunc;
    return 1;
}

/* The number that a variable of OpenMP starts with; 0 when it is none. */
static int
openmp_threads(void)
{
    const char *value = getenv("OMP_NUM_THREADS");
    long number = value == NULL ? 0 : strtol(value, NULL, 10);
    return number > 0 && number <= MAX_THREADS ? (int)number : 0;
}

NPY_NO_EXPORT int
npy_deferred_get_num_threads(void)
{
    if (num_threads == 0) {
        int wanted = openmp_threads();
        num_threads = wanted != 0 ? wanted : processors();
    }
    return PyArray_MIN(num_threads, MAX_THREADS);
}

NPY_NO_EXPORT void
npy_deferred_set_num_threads(npy_intp n)
{
    num_threads = (int)PyArray_MIN(n, MAX_THREADS);
}
