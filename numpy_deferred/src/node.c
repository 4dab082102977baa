/*
 * Nodes: what a deferred array knows of its operation, and the pending list.
 *
 * A node owns references to its operands, to the ufunc and loop, and to the
 * captured error state.  The deferred array owns its node; the node refers to
 * the array weakly, so the pending list keeps nothing alive.  The list is
 * doubly linked in order of creation.  Everything here is guarded by the GIL.
 *
 * Dropping an operand can run arbitrary code (it may be the last reference to
 * an array with a weakref callback), so a node is taken off all lists before
 * its operands go.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "alloc.h"
#include "convert_datatype.h"
#include "deferred.h"
#include "profile.h"

#include <stddef.h>

NPY_NO_EXPORT npy_intp npy_deferred_npending = 0;
NPY_NO_EXPORT npy_deferred_counters npy_deferred_stats;

/* The newest pending node; the list goes on through `older`. */
static npy_deferred_node *newest = NULL;

static npy_uint64 last_serial = 0;
static npy_uint64 last_visit = 0;

/* Nodes of so many inputs for the next calls, linked by `older`. */
#define MAX_KEPT_NIN 3
static struct {
    npy_deferred_node *first;
    int n;
} kept[MAX_KEPT_NIN + 1];

NPY_NO_EXPORT npy_uint64
npy_deferred_new_visit(void)
{
    return ++last_visit;
}

/* Copy a 0-d array's value, cast for the loop.  Returns 0 or -1. */
static int
capture_constant(npy_deferred_operand *operand, PyArrayObject *scalar,
                 PyArray_Descr *descr)
{
    PyArrayObject *value = scalar;
    assert(descr->elsize <= NPY_DEFERRED_CONSTANT_SIZE);
    Py_INCREF(value);
    if (PyArray_DESCR(scalar) != descr) {
        Py_INCREF(descr);
        Py_SETREF(value, (PyArrayObject *)PyArray_CastToType(scalar, descr, 0));
        if (value == NULL) {
            return -1;
        }
    }
    memcpy(operand->constant, PyArray_DATA(value), descr->elsize);
    Py_DECREF(value);
    return 0;
}

/* Shared parts count repeatedly, so that the sum can grow beyond all bounds. */
static void
add_bytes(npy_intp *sum, npy_intp nbytes)
{
    *sum = *sum > NPY_MAX_INTP - nbytes ? NPY_MAX_INTP : *sum + nbytes;
}

/* An empty node: with nothing but its inputs' constants undefined; or NULL. */
static npy_deferred_node *
empty_node(int nin)
{
    npy_deferred_node *node = nin <= MAX_KEPT_NIN ? kept[nin].first : NULL;
    if (node != NULL) {
        kept[nin].first = node->older;
        kept[nin].n--;
    }
    else {
        node = PyMem_Malloc(sizeof(*node) + nin * sizeof(npy_deferred_operand));
        if (node == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
    }
    memset(node, 0, sizeof(*node));
    for (int i = 0; i < nin; i++) {
        memset(&node->operands[i], 0, offsetof(npy_deferred_operand, constant));
        node->operands[i].node = node;
    }
    node->nin = nin;
    return node;
}

static void
free_node(npy_deferred_node *node)
{
    int nin = node->nin;
    if (nin > MAX_KEPT_NIN || kept[nin].n >= NPY_DEFERRED_MAX_KEPT) {
        PyMem_Free(node);
        return;
    }
    node->older = kept[nin].first;
    kept[nin].first = node;
    kept[nin].n++;
}

/* Returns 0 or -1: exception set. */
static int
set_input(npy_deferred_node *node, int i, PyArrayObject *array)
{
    npy_deferred_operand *operand = &node->operands[i];
    if (PyArray_NDIM(array) == 0) {
        return capture_constant(operand, array, node->descrs[i]);
    }
    Py_INCREF(array);
    operand->array = array;
    if (npy_deferred_is(array)) {
        npy_deferred_node *inner = npy_deferred_node_of(array);
        node->nnodes += inner->nnodes;
        node->noperands += inner->noperands;
        add_bytes(&node->operand_bytes, inner->operand_bytes);
    }
    else {
        PyArrayObject *owner = npy_deferred_memory_owner(array);
        node->noperands += 1;
        add_bytes(&node->operand_bytes, PyArray_NBYTES(owner != NULL ? owner : array));
    }
    return 0;
}

NPY_NO_EXPORT npy_deferred_node *
npy_deferred_node_new(PyUFuncObject *ufunc, PyArrayMethodObject *method,
                      PyArray_Descr *const descrs[], PyArrayObject *const op[],
                      NPY_ORDER order, int errmask, PyObject *errstate)
{
    int nin = ufunc->nin;
    npy_deferred_node *node = empty_node(nin);
    if (node == NULL) {
        return NULL;
    }
    node->refcount = 1;
    node->serial = ++last_serial;
    node->nnodes = 1;
    Py_INCREF(ufunc);
    node->ufunc = ufunc;
    Py_INCREF(method);
    node->method = method;
    for (int i = 0; i < ufunc->nargs; i++) {
        Py_INCREF(descrs[i]);
        node->descrs[i] = descrs[i];
    }
    node->order = order;
    node->errmask = errmask;
    if (errmask != 0) {
        node->errstate =
                errstate != NULL ? Py_NewRef(errstate) : npy_deferred_errstate();
        if (node->errstate == NULL) {
            goto fail;
        }
        node->thread = PyThread_get_thread_ident();
    }
    if (errmask != 0 || npy_deferred_profiling ||
        npy_deferred_guard_mode >= NPY_DEFERRED_GUARD_REPORT) {
        npy_deferred_origin_set(&node->origin);
    }
    for (int i = 0; i < nin; i++) {
        if (set_input(node, i, op[i]) < 0) {
            goto fail;
        }
    }
    return node;

fail:
    npy_deferred_node_decref(node);
    return NULL;
}

static void
append_pending(npy_deferred_node *node)
{
    node->older = newest;
    if (newest != NULL) {
        newest->newer = node;
    }
    newest = node;
    npy_deferred_npending++;
}

static void
remove_pending(npy_deferred_node *node)
{
    if (node->newer != NULL) {
        node->newer->older = node->older;
    }
    else {
        newest = node->older;
    }
    if (node->older != NULL) {
        node->older->newer = node->newer;
    }
    node->older = node->newer = NULL;
    npy_deferred_npending--;
}

NPY_NO_EXPORT int
npy_deferred_node_attach(npy_deferred_node *node, PyArrayObject *array)
{
    node->scope = npy_deferred_current_scope();
    if (node->scope == NULL) {
        return -1;
    }
    for (int i = 0; i < node->nin; i++) {
        if (node->operands[i].array == NULL) {
            continue;
        }
        if (npy_deferred_use(&node->operands[i]) < 0) {
            while (--i >= 0) {
                npy_deferred_unuse(&node->operands[i]);
            }
            return -1;
        }
    }
    /* Its operation may have been captured before an operand's was. */
    node->serial = ++last_serial;
    node->array = array;
    ((PyArrayObject_fields *)array)->mem_handler = (PyObject *)node;
    npy_deferred_guard_bind(array);
    PyArray_ENABLEFLAGS(array, NPY_ARRAY_DEFERRED | NPY_ARRAY_OWNDATA);
    append_pending(node);
    npy_deferred_stats.captured++;
    return 0;
}

static void
set_array(npy_deferred_node *node, PyArrayObject *array)
{
    node->array = array;
    ((PyArrayObject_fields *)array)->mem_handler = (PyObject *)node;
}

NPY_NO_EXPORT int
npy_deferred_exchange(PyArrayObject *array, PyArrayObject *result)
{
    if (!npy_deferred_is(array) || !npy_deferred_is(result)) {
        return 0;
    }
    npy_deferred_node *before = npy_deferred_node_of(array);
    npy_deferred_node *after = npy_deferred_node_of(result);
    if (before->computed != NULL || after->computed != NULL ||
        npy_deferred_find_usage(array) == NULL ||
        npy_deferred_find_usage(result) != NULL) {
        return 0;
    }
    npy_deferred_move_readers(array, result);
    set_array(before, result);
    set_array(after, array);
    return 1;
}

static void
release_operands(npy_deferred_node *node)
{
    for (int i = 0; i < node->nin; i++) {
        npy_deferred_unuse(&node->operands[i]);
    }
    for (int i = 0; i < node->nin; i++) {
        PyArrayObject *array = node->operands[i].array;
        node->operands[i].array = NULL;
        if (array == NULL || Py_REFCNT(array) > 1) { /* then no code runs */
            Py_XDECREF(array);
            continue;
        }
        npy_deferred_calling_out++;
        Py_DECREF(array);
        npy_deferred_calling_out--;
    }
}

NPY_NO_EXPORT void
npy_deferred_node_incref(npy_deferred_node *node)
{
    node->refcount++;
}

NPY_NO_EXPORT void
npy_deferred_node_decref(npy_deferred_node *node)
{
    if (--node->refcount > 0) {
        return;
    }
    release_operands(node);
    for (int i = 0; i < node->ufunc->nargs; i++) {
        Py_XDECREF(node->descrs[i]);
    }
    if (node->twin != NULL) {
        node->twin->twin = NULL;
    }
    Py_DECREF(node->ufunc);
    Py_DECREF(node->method);
    Py_XDECREF(node->errstate);
    npy_deferred_origin_clear(&node->origin);
    Py_XDECREF(node->scope);
    free_node(node);
}

/* The array gives up its node: it died, or it has its values. */
static void
detach(npy_deferred_node *node, PyObject *handler, void *data)
{
    PyArrayObject_fields *fields = (PyArrayObject_fields *)node->array;
    node->array = NULL;
    remove_pending(node);
    fields->mem_handler = handler;
    fields->data = data;
    fields->flags &= ~NPY_ARRAY_DEFERRED;
    release_operands(node);
    npy_deferred_node_decref(node);
}

NPY_NO_EXPORT void
npy_deferred_commit(PyArrayObject *array, void *values)
{
    npy_deferred_stats.calculated++;
    void *data = npy_deferred_publish(array, values);
    detach(npy_deferred_node_of(array), Py_NewRef(npy_deferred_handler), data);
    npy_deferred_protect_values(array);
}

NPY_NO_EXPORT void
npy_deferred_dealloc(PyArrayObject *arr)
{
    npy_deferred_stats.released++;
    npy_deferred_guard_drop(((PyArrayObject_fields *)arr)->data);
    detach(npy_deferred_node_of(arr), NULL, NULL);
}

/*
 * The arrays that are next, and may be calculated with one; borrowed.  Where nothing
 * comes of looking for them, the next so many are not looked for: looking takes as long
 * as to calculate a few elements, and there may be thousands that have nothing to do
 * with each other.
 */
typedef struct {
    int n, nlooks;
    PyArrayObject *arrays[NPY_DEFERRED_SWEEP_LOOKS];
    int waits, left;
    npy_intp together;
    npy_uint64 failed; /* serial of the last that has raised an error; 0: none yet */
} companions;
#define MAX_WAITS 31

/* Pending ones that are looked at, as many are not worth more. */
#define MAX_LOOKS (4 * NPY_DEFERRED_SWEEP_LOOKS)

/* Returns whether to look for companions of the next node. */
static int
begin_companions(companions *with)
{
    int found = with->together != npy_deferred_stats.together;
    int looked = with->nlooks > 0;
    with->together = npy_deferred_stats.together;
    with->n = with->nlooks = 0;
    if (found) {
        with->waits = with->left = 0;
    }
    else if (looked) {
        with->left = with->waits = PyArray_MIN(2 * with->waits + 1, MAX_WAITS);
    }
    return with->left == 0 || with->left-- == 0;
}

/* Returns whether to go on. */
static int
add_companion(companions *with, npy_deferred_node *node, npy_deferred_node *other)
{
    if (other->array != NULL && npy_deferred_may_sweep(node->array, other->array)) {
        with->arrays[with->n++] = other->array;
    }
    return with->n < NPY_DEFERRED_SWEEP_LOOKS && ++with->nlooks < MAX_LOOKS;
}

/*
 * Calculate the node's array if it still has one, and others with it; keep the first
 * error.
 */
static void
calculate_if_pending(npy_deferred_node *node, companions *with, npy_deferred_why why,
                     int (*calculate)(PyArrayObject *), PyObject *error[3])
{
    PyArrayObject *array = node->array;
    /* What a call has raised is not to be told again for its other output. */
    if (array == NULL || (node->twin != NULL && node->twin->serial == with->failed)) {
        return;
    }
    Py_INCREF(array);
    npy_deferred_because = why;
    int result = with->n > 0 ? npy_deferred_calculate_with(array, with->arrays, with->n)
                             : calculate(array);
    npy_deferred_because = NPY_DEFERRED_WHY_READ;
    if (result < 0) {
        with->failed = node->serial;
        if (error[0] == NULL) {
            PyErr_Fetch(&error[0], &error[1], &error[2]);
        }
        else {
            PyErr_Clear();
        }
    }
    Py_DECREF(array);
}

static int
raise_first(PyObject *error[3])
{
    if (error[0] == NULL) {
        return 0;
    }
    PyErr_Restore(error[0], error[1], error[2]);
    return -1;
}

/* What calculate_pending is to calculate; all of it where nothing is set. */
typedef struct {
    PyObject *scope;
    PyObject *errstate; /* what can raise is left out when written elsewhere */
    npy_deferred_why why;
    int (*calculate)(PyArrayObject *); /* NULL: npy_deferred_calculate */
} selection;

static int
is_selected(npy_deferred_node *node, const selection *wanted)
{
    if (wanted->errstate != NULL &&
        (node->failed || npy_deferred_is_quiet(node) ||
         (node->errmask != 0 && (node->errstate != wanted->errstate ||
                                 node->thread != PyThread_get_thread_ident())))) {
        return 0;
    }
    return wanted->scope == NULL || npy_deferred_in_scope(node, wanted->scope);
}

static int
calculate_pending(const selection *wanted)
{
    PyObject *scope = wanted->scope;
    PyObject *error[3] = {NULL, NULL, NULL};
    npy_uint64 start = scope == NULL ? 0 : npy_deferred_scope_start(scope);
    /* Nodes that fail stay in the list; go on with those before them. */
    npy_uint64 limit = last_serial;
    int (*calculate)(PyArrayObject *) =
            wanted->calculate != NULL ? wanted->calculate : npy_deferred_calculate;
    companions with = {.together = npy_deferred_stats.together};
    for (;;) {
        npy_deferred_wait();
        npy_deferred_node *node = newest;
        while (node != NULL && node->serial > start &&
               (node->serial > limit || !is_selected(node, wanted))) {
            node = node->older;
        }
        if (node == NULL || node->serial <= start) {
            return raise_first(error);
        }
        limit = node->serial - 1;
        int looks = begin_companions(&with) && calculate == npy_deferred_calculate;
        npy_deferred_node *other = looks ? node->older : NULL;
        for (; other != NULL && other->serial > start; other = other->older) {
            if (is_selected(other, wanted) && !add_companion(&with, node, other)) {
                break;
            }
        }
        npy_deferred_node_incref(node);
        calculate_if_pending(node, &with, wanted->why, calculate, error);
        npy_deferred_node_decref(node);
    }
}

NPY_NO_EXPORT int
npy_deferred_calculate_all(void)
{
    return calculate_pending(&(selection){.why = NPY_DEFERRED_WHY_ALL});
}

NPY_NO_EXPORT int
npy_deferred_calculate_readers(int (*calculate)(PyArrayObject *))
{
    if (newest == NULL || !npy_deferred_reads_unprotected()) {
        return 0;
    }
    /* The compiled code that is about to write may have the address of any, so the
     * values are to be there, as after a touch. */
    for (npy_deferred_node *node = newest; node != NULL; node = node->older) {
        if (node->array != NULL) {
            npy_deferred_want(((PyArrayObject_fields *)node->array)->data);
        }
    }
    return calculate_pending(
            &(selection){.calculate = calculate, .why = NPY_DEFERRED_WHY_UNSEEN});
}

/*
 * Nobody is told of errors twice, nor of those that other threads and tasks,
 * which have states of their own, are to be told of; and what can raise none waits on.
 */
NPY_NO_EXPORT int
npy_deferred_before_errstate(void)
{
    PyObject *errstate = npy_deferred_errstate();
    if (errstate == NULL) {
        return -1;
    }
    int result = calculate_pending(
            &(selection){.errstate = errstate, .why = NPY_DEFERRED_WHY_ERRSTATE});
    Py_DECREF(errstate);
    return result;
}

NPY_NO_EXPORT PyObject *
npy_deferred_begin_scope(void)
{
    return npy_deferred_new_scope(last_serial);
}

NPY_NO_EXPORT int
npy_deferred_calculate_scope(PyObject *scope)
{
    return calculate_pending(
            &(selection){.scope = scope, .why = NPY_DEFERRED_WHY_SCOPE});
}

/* Bytes that calculating the node alone would let go. */
static npy_intp
node_held_bytes(npy_deferred_node *node, npy_uint64 visit)
{
    npy_intp held = 0;
    for (int i = 0; i < node->nin; i++) {
        if (node->operands[i].memory != NULL) {
            held += npy_deferred_held_bytes(node->operands[i].array, visit);
        }
    }
    return held;
}

static npy_deferred_node *
oldest_pending_since(npy_uint64 serial)
{
    npy_deferred_node *found = NULL;
    for (npy_deferred_node *node = newest; node != NULL && node->serial >= serial;
         node = node->older) {
        found = node;
    }
    return found;
}

/*
 * Calculate the node's array to free memory; its own errors wait for a reader.
 * `*newer` stays the next in the list, which handlers of errors may change.
 */
static int
calculate_for_budget(npy_deferred_node *node, npy_deferred_node **newer)
{
    PyArrayObject *array = node->array;
    npy_deferred_node *following = *newer;
    npy_uint64 serial = node->serial;
    int result = 0;
    if (following != NULL) {
        npy_deferred_node_incref(following);
    }
    Py_INCREF(array);
    npy_deferred_node_incref(node);
    if (npy_deferred_calculate_because(NPY_DEFERRED_WHY_LIMIT, array) < 0) {
        node->budget_failed = 1;
        if (node->twin != NULL) {
            node->twin->budget_failed = 1;
        }
        npy_deferred_set_failed(node, 0);
        if (PyErr_ExceptionMatches(PyExc_Exception)) {
            PyErr_Clear();
        }
        else {
            result = -1;
        }
    }
    npy_deferred_node_decref(node);
    Py_DECREF(array);
    if (following != NULL) {
        if (following->array == NULL) {
            *newer = oldest_pending_since(serial + 1);
        }
        npy_deferred_node_decref(following);
    }
    return result;
}

NPY_NO_EXPORT int
npy_deferred_limit_total_memory(void)
{
    npy_intp held = npy_deferred_total_held_bytes();
    if (held <= npy_deferred_memory_limit) {
        return 0;
    }
    /* The oldest are least likely to become part of a larger expression. */
    npy_uint64 visit = npy_deferred_new_visit();
    npy_deferred_node *node = oldest_pending_since(0);
    while (node != NULL && held > npy_deferred_memory_limit / 2) {
        npy_deferred_node *newer = node->newer;
        npy_intp freed = node->budget_failed ? 0 : node_held_bytes(node, visit);
        if (freed != 0) {
            if (calculate_for_budget(node, &newer) < 0) {
                return -1;
            }
            held -= freed;
        }
        node = newer;
    }
    return 0;
}

typedef struct {
    npy_deferred_node **nodes; /* owned references */
    npy_intp n, allocated;
} node_list;

/* Add the nodes that read memory which `array` owns, each once. */
static int
add_readers(node_list *list, PyArrayObject *array, npy_uint64 visit)
{
    npy_deferred_usage *usage = npy_deferred_find_usage(array);
    if (usage == NULL) {
        return 0;
    }
    for (npy_deferred_operand *operand = usage->readers; operand != NULL;
         operand = operand->next) {
        if (operand->node->visited == visit) {
            continue;
        }
        if (list->n == list->allocated) {
            npy_intp allocated = list->allocated == 0 ? 16 : 2 * list->allocated;
            npy_deferred_node **nodes =
                    PyMem_Realloc(list->nodes, allocated * sizeof(*nodes));
            if (nodes == NULL) {
                PyErr_NoMemory();
                return -1;
            }
            list->nodes = nodes;
            list->allocated = allocated;
        }
        operand->node->visited = visit;
        npy_deferred_node_incref(operand->node);
        list->nodes[list->n++] = operand->node;
    }
    return 0;
}

static int
newest_first(const void *a, const void *b)
{
    npy_uint64 first = (*(npy_deferred_node *const *)a)->serial;
    npy_uint64 second = (*(npy_deferred_node *const *)b)->serial;
    return first < second ? 1 : first > second ? -1 : 0;
}

NPY_NO_EXPORT int
npy_deferred_flush_dependents(PyArrayObject *owner, int (*calculate)(PyArrayObject *))
{
    int result = -1;
    PyObject *error[3] = {NULL, NULL, NULL};
    node_list dependents = {NULL, 0, 0};
    npy_deferred_wait();
    npy_uint64 visit = npy_deferred_new_visit();
    if (add_readers(&dependents, owner, visit) < 0) {
        goto finish;
    }
    for (npy_intp i = 0; i < dependents.n; i++) {
        if (dependents.nodes[i]->array != NULL &&
            add_readers(&dependents, dependents.nodes[i]->array, visit) < 0) {
            goto finish;
        }
    }
    if (dependents.n > 0) { /* none may be left after waiting */
        qsort(dependents.nodes, dependents.n, sizeof(*dependents.nodes), newest_first);
    }
    companions with = {.together = npy_deferred_stats.together};
    for (npy_intp i = 0; i < dependents.n; i++) {
        npy_deferred_node *node = dependents.nodes[i];
        npy_deferred_wait();
        /* Others want one after the other. */
        int looks = begin_companions(&with) && calculate == npy_deferred_calculate;
        npy_intp j = looks ? i + 1 : dependents.n;
        while (node->array != NULL && j < dependents.n &&
               add_companion(&with, node, dependents.nodes[j])) {
            j++;
        }
        calculate_if_pending(node, &with, NPY_DEFERRED_WHY_WRITE, calculate, error);
    }
    result = raise_first(error);

finish:
    for (npy_intp i = 0; i < dependents.n; i++) {
        npy_deferred_node_decref(dependents.nodes[i]);
    }
    PyMem_Free(dependents.nodes);
    return result;
}

NPY_NO_EXPORT int
npy_deferred_flush_memory(PyArrayObject *arr)
{
    if (npy_deferred_calculate_because(NPY_DEFERRED_WHY_CHANGE, arr) < 0) {
        return -1;
    }
    PyArrayObject *owner = npy_deferred_memory_owner(arr);
    if (owner == NULL || !PyArray_CHKFLAGS(owner, NPY_ARRAY_DEFERRED_TRACKED)) {
        return 0;
    }
    npy_deferred_stats.flushed++;
    /* While some are calculated, other threads may make new ones. */
    do {
        if (npy_deferred_flush_dependents(owner, npy_deferred_calculate) < 0) {
            return -1;
        }
        owner = npy_deferred_memory_owner(arr);
    } while (owner != NULL && PyArray_CHKFLAGS(owner, NPY_ARRAY_DEFERRED_TRACKED));
    return 0;
}

NPY_NO_EXPORT int
npy_deferred_expose(PyArrayObject *arr, int writeable)
{
    if (npy_deferred_calculate_because(NPY_DEFERRED_WHY_EXPOSE, arr) < 0) {
        return -1;
    }
    if (!writeable) {
        return 0;
    }
    if (npy_deferred_before_write(arr) < 0) {
        return -1;
    }
    PyArrayObject *owner = npy_deferred_memory_owner(arr);
    if (owner != NULL) {
        PyArray_ENABLEFLAGS(owner, NPY_ARRAY_DEFERRED_EXPOSED);
    }
    return 0;
}
