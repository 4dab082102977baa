/*
 * Usage: which arrays are operands of pending nodes, how often, and which
 * nodes read the memory that an array owns.
 *
 * Views alias, so counting operands is not enough to protect them: a write
 * may come through any view of the memory.  Every operand is therefore listed
 * at the array that owns its memory too, and a write looks there.  The records
 * are kept beside the arrays, in a hash table keyed by address, so that the
 * array structure stays as extensions know it; the flag TRACKED on an array
 * says that it has a record.
 *
 * An operand is marked: DEFERRED_WASWRITEABLE says that it was writeable.  Its
 * WRITEABLE flag is cleared for those who look at it before they write, unless
 * protect.c sees all writes to its memory, so that nobody need be kept from them.
 *
 * A record exists while an operand refers to it; operands own references to
 * their arrays, and these keep their owners alive.  Guarded by the GIL.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "ctors.h"
#include "deferred.h"

NPY_NO_EXPORT npy_intp npy_deferred_read_bytes = 0;

/* Chained buckets; the number of buckets is a power of two, or 0 at first. */
static struct {
    npy_deferred_usage **buckets;
    npy_uintp nbuckets, nrecords;
} table;

/* Records for the next operands, linked by `chain`. */
static struct {
    npy_deferred_usage *first;
    int n;
} kept;

static inline npy_uintp
bucket_of(PyArrayObject *array, npy_uintp nbuckets)
{
    npy_uintp bits = (npy_uintp)array;
    return ((bits >> 4) ^ (bits >> 12)) & (nbuckets - 1);
}

static int
grow_table(void)
{
    npy_uintp nbuckets = table.nbuckets == 0 ? 64 : 2 * table.nbuckets;
    npy_deferred_usage **buckets = PyMem_Calloc(nbuckets, sizeof(*buckets));
    if (buckets == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (npy_uintp i = 0; i < table.nbuckets; i++) {
        npy_deferred_usage *record = table.buckets[i];
        while (record != NULL) {
            npy_deferred_usage *following = record->chain;
            npy_uintp bucket = bucket_of(record->array, nbuckets);
            record->chain = buckets[bucket];
            buckets[bucket] = record;
            record = following;
        }
    }
    PyMem_Free(table.buckets);
    table.buckets = buckets;
    table.nbuckets = nbuckets;
    return 0;
}

NPY_NO_EXPORT npy_deferred_usage *
npy_deferred_find_usage(PyArrayObject *arr)
{
    if (!PyArray_CHKFLAGS(arr, NPY_ARRAY_DEFERRED_TRACKED)) {
        return NULL;
    }
    npy_deferred_usage *record = table.buckets[bucket_of(arr, table.nbuckets)];
    while (record->array != arr) {
        record = record->chain;
    }
    return record;
}

static void
put_into_bucket(npy_deferred_usage *record, PyArrayObject *arr)
{
    npy_uintp bucket = bucket_of(arr, table.nbuckets);
    record->array = arr;
    record->chain = table.buckets[bucket];
    table.buckets[bucket] = record;
    PyArray_ENABLEFLAGS(arr, NPY_ARRAY_DEFERRED_TRACKED);
}

static npy_deferred_usage *
new_record(void)
{
    npy_deferred_usage *record = kept.first;
    if (record == NULL) {
        return PyMem_Calloc(1, sizeof(*record));
    }
    kept.first = record->chain;
    kept.n--;
    *record = (npy_deferred_usage){NULL};
    return record;
}

static void
free_record(npy_deferred_usage *record)
{
    if (kept.n >= NPY_DEFERRED_MAX_KEPT) {
        PyMem_Free(record);
        return;
    }
    record->chain = kept.first;
    kept.first = record;
    kept.n++;
}

static npy_deferred_usage *
find_or_add_usage(PyArrayObject *arr)
{
    npy_deferred_usage *record = npy_deferred_find_usage(arr);
    if (record != NULL) {
        return record;
    }
    if (table.nrecords >= table.nbuckets && grow_table() < 0) {
        return NULL;
    }
    record = new_record();
    if (record == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    put_into_bucket(record, arr);
    table.nrecords++;
    return record;
}

static void
take_from_bucket(npy_deferred_usage *record)
{
    npy_deferred_usage **link =
            &table.buckets[bucket_of(record->array, table.nbuckets)];
    while (*link != record) {
        link = &(*link)->chain;
    }
    *link = record->chain;
}

static void
remove_usage_if_unused(npy_deferred_usage *record)
{
    if (record->count != 0 || record->readers != NULL) {
        return;
    }
    take_from_bucket(record);
    table.nrecords--;
    PyArray_CLEARFLAGS(record->array, NPY_ARRAY_DEFERRED_TRACKED);
    assert(record->protection == NULL);
    free_record(record);
}

NPY_NO_EXPORT PyArrayObject *
npy_deferred_owner_of_view(PyArrayObject *arr)
{
    while (!PyArray_CHKFLAGS(arr, NPY_ARRAY_OWNDATA)) {
        PyObject *base = PyArray_BASE(arr);
        if (base == NULL) {
            return NULL;
        }
        if (!PyArray_Check(base)) {
            return PyBytes_CheckExact(base) ? arr : NULL;
        }
        arr = (PyArrayObject *)base;
    }
    return arr;
}

static void
mark(PyArrayObject *array, const npy_deferred_usage *memory)
{
    if (PyArray_CHKFLAGS(array, NPY_ARRAY_WRITEABLE)) {
        PyArray_ENABLEFLAGS(array, NPY_ARRAY_DEFERRED_WASWRITEABLE);
        if (memory->protection == NULL) {
            PyArray_CLEARFLAGS(array, NPY_ARRAY_WRITEABLE);
        }
    }
}

static void
unmark(PyArrayObject *array)
{
    if (PyArray_CHKFLAGS(array, NPY_ARRAY_DEFERRED_WASWRITEABLE)) {
        PyArray_CLEARFLAGS(array, NPY_ARRAY_DEFERRED_WASWRITEABLE);
        PyArray_ENABLEFLAGS(array, NPY_ARRAY_WRITEABLE);
    }
}

static void
link_operand(npy_deferred_operand *operand, npy_deferred_usage *usage,
             npy_deferred_usage *memory)
{
    if (memory->readers == NULL) {
        npy_deferred_read_bytes += memory->nbytes;
    }
    else {
        memory->readers->previous = operand;
    }
    usage->count++;
    mark(operand->array, memory);
    operand->usage = usage;
    operand->memory = memory;
    operand->previous = NULL;
    operand->next = memory->readers;
    memory->readers = operand;
}

NPY_NO_EXPORT int
npy_deferred_use(npy_deferred_operand *operand)
{
    PyArrayObject *array = operand->array;
    PyArrayObject *owner = npy_deferred_memory_owner(array);
    assert(owner != NULL);
    /* If it was written to unseen, those before must not read what this one does. */
    npy_deferred_usage *memory = npy_deferred_find_usage(owner);
    if (memory != NULL && memory->protection != NULL &&
        npy_deferred_check_operand(memory->readers) < 0) {
        return -1;
    }
    npy_deferred_usage *usage = find_or_add_usage(array);
    if (usage == NULL) {
        return -1;
    }
    memory = owner == array ? usage : find_or_add_usage(owner);
    if (memory == NULL) {
        remove_usage_if_unused(usage);
        return -1;
    }
    if (memory->readers == NULL) {
        memory->nbytes = PyArray_NBYTES(owner);
        if (memory->nbytes >= npy_deferred_protect_limit && !npy_deferred_is(owner) &&
            npy_deferred_protect(owner, &memory->protection) < 0) {
            remove_usage_if_unused(usage);
            if (memory != usage) {
                remove_usage_if_unused(memory);
            }
            return -1;
        }
    }
    link_operand(operand, usage, memory);
    return 0;
}

NPY_NO_EXPORT void
npy_deferred_unuse(npy_deferred_operand *operand)
{
    npy_deferred_usage *usage = operand->usage, *memory = operand->memory;
    if (usage == NULL) {
        return;
    }
    if (operand->previous != NULL) {
        operand->previous->next = operand->next;
    }
    else {
        memory->readers = operand->next;
    }
    if (operand->next != NULL) {
        operand->next->previous = operand->previous;
    }
    if (memory->readers == NULL) {
        npy_deferred_read_bytes -= memory->nbytes;
        if (memory->protection != NULL) {
            npy_deferred_unprotect(memory->protection);
            memory->protection = NULL;
        }
    }
    usage->count--;
    if (usage->count == 0) {
        unmark(usage->array);
    }
    operand->usage = NULL;
    operand->memory = NULL;
    remove_usage_if_unused(usage);
    if (memory != usage) {
        remove_usage_if_unused(memory);
    }
}

NPY_NO_EXPORT void
npy_deferred_move_readers(PyArrayObject *from, PyArrayObject *to)
{
    npy_deferred_usage *record = npy_deferred_find_usage(from);
    /* The record goes along, so that nothing need be allocated. */
    take_from_bucket(record);
    unmark(from);
    PyArray_CLEARFLAGS(from, NPY_ARRAY_DEFERRED_TRACKED);
    put_into_bucket(record, to);
    mark(to, record);
    for (npy_deferred_operand *operand = record->readers; operand != NULL;
         operand = operand->next) {
        assert(operand->array == from); /* there are no views of what is deferred */
        Py_INCREF(to);
        operand->array = to;
        Py_DECREF(from); /* the caller has one, too */
    }
}

NPY_NO_EXPORT void
npy_deferred_protect_values(PyArrayObject *arr)
{
    npy_deferred_usage *memory = npy_deferred_find_usage(arr);
    if (memory == NULL || memory->readers == NULL) {
        return;
    }
    if (npy_deferred_protect(arr, &memory->protection) < 0) {
        PyErr_Clear(); /* then WRITEABLE stays cleared */
    }
    if (memory->protection == NULL) {
        return;
    }
    for (npy_deferred_operand *operand = memory->readers; operand != NULL;
         operand = operand->next) {
        if (PyArray_CHKFLAGS(operand->array, NPY_ARRAY_DEFERRED_WASWRITEABLE)) {
            PyArray_ENABLEFLAGS(operand->array, NPY_ARRAY_WRITEABLE);
        }
    }
}

/* New reference to what `array` was when its memory held what `data` holds. */
static PyArrayObject *
view_of_copy(PyArrayObject *array, npy_deferred_usage *memory, PyArrayObject *copy,
             char *data)
{
    npy_intp offset = PyArray_BYTES(array) - PyArray_BYTES(memory->array);
    Py_INCREF(PyArray_DESCR(array));
    return (PyArrayObject *)PyArray_NewFromDescr_int(
            &PyArray_Type, PyArray_DESCR(array), PyArray_NDIM(array),
            PyArray_DIMS(array), PyArray_STRIDES(array), data + offset, 0, NULL,
            (PyObject *)copy, _NPY_ARRAY_ENSURE_DTYPE_IDENTITY);
}

/*
 * The array that takes an operand's place, with records to be counted in: new
 * reference, the same for each operand that is the same array.
 */
static PyArrayObject *
stand_in(npy_deferred_operand *operand, npy_deferred_operand *replaced,
         PyArrayObject **stand_ins, PyArrayObject *copy, char *data)
{
    for (npy_deferred_operand *other = replaced; other != operand;
         other = other->next, stand_ins++) {
        if (other->array == operand->array) {
            return (PyArrayObject *)Py_NewRef(*stand_ins);
        }
    }
    PyArrayObject *view = view_of_copy(operand->array, operand->memory, copy, data);
    if (view != NULL && find_or_add_usage(view) == NULL) {
        Py_CLEAR(view);
    }
    return view;
}

/* Drop references to arrays, and the records of those that nothing uses. */
static void
release_arrays(PyArrayObject **arrays, npy_intp n)
{
    npy_deferred_calling_out++;
    for (npy_intp i = 0; i < n; i++) {
        npy_deferred_usage *usage =
                arrays[i] == NULL ? NULL : npy_deferred_find_usage(arrays[i]);
        if (usage != NULL) {
            remove_usage_if_unused(usage);
        }
        Py_XDECREF(arrays[i]);
    }
    npy_deferred_calling_out--;
}

/* Have all that reads some memory read a copy, which is at `data`. */
static int
read_copy_instead(npy_deferred_usage *memory, PyArrayObject *copy, char *data)
{
    npy_intp n = 0;
    npy_deferred_operand *operand = memory->readers;
    for (; operand != NULL; operand = operand->next) {
        n++;
    }
    PyArrayObject **arrays = PyMem_Calloc(n, sizeof(*arrays));
    if (arrays == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    operand = memory->readers;
    for (npy_intp i = 0; i < n; i++, operand = operand->next) {
        arrays[i] = stand_in(operand, memory->readers, arrays, copy, data);
        if (arrays[i] == NULL) {
            release_arrays(arrays, n);
            PyMem_Free(arrays);
            return -1;
        }
    }
    /* Nothing can fail from here on.  The last to go takes `memory` with it. */
    npy_deferred_find_usage(copy)->nbytes = PyArray_NBYTES(copy);
    operand = memory->readers;
    for (npy_intp i = 0; i < n; i++) {
        npy_deferred_operand *following = operand->next;
        PyArrayObject *array = operand->array;
        npy_deferred_unuse(operand);
        operand->array = arrays[i];
        link_operand(operand, npy_deferred_find_usage(arrays[i]),
                     npy_deferred_find_usage(copy));
        arrays[i] = array;
        operand = following;
    }
    release_arrays(arrays, n);
    PyMem_Free(arrays);
    return 0;
}

NPY_NO_EXPORT int
npy_deferred_check_protected(npy_deferred_operand *operand)
{
    npy_deferred_usage *memory = operand->memory;
    if (npy_deferred_is_intact(memory->protection)) {
        return 0;
    }
    char *data;
    PyArrayObject *copy = npy_deferred_protected_copy(memory->protection, &data);
    if (copy == NULL) {
        return -1;
    }
    int result = find_or_add_usage(copy) == NULL
                         ? -1
                         : read_copy_instead(memory, copy, data);
    release_arrays(&copy, 1);
    return result < 0 ? -1 : 1;
}

NPY_NO_EXPORT int
npy_deferred_reads_unprotected(void)
{
    for (npy_uintp i = 0; i < table.nbuckets; i++) {
        for (npy_deferred_usage *record = table.buckets[i]; record != NULL;
             record = record->chain) {
            if (record->readers != NULL && record->protection == NULL &&
                !npy_deferred_is(record->array)) {
                return 1;
            }
        }
    }
    return 0;
}

/*
 * Whether all references to an owner of memory are those of operands: operands
 * that are the owner itself, and views that nobody but operands refers to.
 */
static int
only_operands_refer(npy_deferred_usage *memory, npy_uint64 visit)
{
    npy_intp references = memory->count;
    for (npy_deferred_operand *operand = memory->readers; operand != NULL;
         operand = operand->next) {
        PyArrayObject *view = operand->array;
        npy_deferred_usage *usage = operand->usage;
        if (view == memory->array || usage->visited == visit) {
            continue;
        }
        usage->visited = visit;
        if (Py_REFCNT(view) != usage->count ||
            PyArray_BASE(view) != (PyObject *)memory->array) {
            return 0;
        }
        references++;
    }
    return Py_REFCNT(memory->array) == references;
}

static npy_intp
held_bytes(npy_deferred_usage *memory, npy_uint64 visit)
{
    /* The record of a view has no readers, and is marked where they are gone through.
     */
    if (memory->readers == NULL || memory->visited == visit ||
        npy_deferred_is(memory->array)) {
        return 0;
    }
    memory->visited = visit;
    return only_operands_refer(memory, visit) ? memory->nbytes : 0;
}

NPY_NO_EXPORT npy_intp
npy_deferred_held_bytes(PyArrayObject *operand, npy_uint64 visit)
{
    PyArrayObject *owner = npy_deferred_memory_owner(operand);
    npy_deferred_usage *memory = owner == NULL ? NULL : npy_deferred_find_usage(owner);
    return memory == NULL ? 0 : held_bytes(memory, visit);
}

NPY_NO_EXPORT npy_intp
npy_deferred_total_held_bytes(void)
{
    npy_uint64 visit = npy_deferred_new_visit();
    npy_intp total = 0;
    for (npy_uintp i = 0; i < table.nbuckets; i++) {
        for (npy_deferred_usage *record = table.buckets[i]; record != NULL;
             record = record->chain) {
            total += held_bytes(record, visit);
        }
    }
    return total;
}
