/*
 * NumPy's own C API, function by function, on an array that may be deferred:
 * `calls` maps a name to what C code gets.  This file has no import_array() of
 * its own, and uses what the other one imported.
 */
#define NO_IMPORT_ARRAY
#include "_capi.h"

#define DOUBLE PyArray_DescrFromType(NPY_DOUBLE)

/* A new array like `a`, which `fill` puts values into. */
static PyObject *
into_new(PyArrayObject *a, int (*fill)(PyArrayObject *, PyArrayObject *))
{
    PyArrayObject *new_ =
            (PyArrayObject *)PyArray_NewLikeArray(a, NPY_KEEPORDER, NULL, 1);
    if (new_ != NULL && fill(new_, a) < 0) {
        Py_CLEAR(new_);
    }
    return (PyObject *)new_;
}

/* `a` itself, after it was changed in place. */
static PyObject *
changed(PyArrayObject *a, int result)
{
    return result < 0 ? NULL : Py_NewRef((PyObject *)a);
}

/* `result` is a new reference that nobody wants. */
static PyObject *
changed_by(PyArrayObject *a, PyObject *result)
{
    Py_XDECREF(result);
    return changed(a, result == NULL ? -1 : 0);
}

static PyObject *
dispose(PyObject *argument, PyObject *result)
{
    Py_XDECREF(argument);
    return result;
}

static PyObject *
indices(void)
{
    return Py_BuildValue("[ii]", 2, 1);
}

static PyObject *
put(PyArrayObject *a)
{
    PyObject *where = indices();
    PyObject *values = Py_BuildValue("[dd]", 7.0, 8.0);
    PyObject *none = PyArray_PutTo(a, values, where, NPY_RAISE);
    Py_XDECREF(where);
    Py_XDECREF(values);
    return changed_by(a, none);
}

static PyObject *
take(PyArrayObject *a)
{
    PyObject *where = indices();
    return where == NULL
                   ? NULL
                   : dispose(where, PyArray_TakeFrom(a, where, 0, NULL, NPY_RAISE));
}

static PyObject *
repeat(PyArrayObject *a)
{
    PyObject *times = PyLong_FromLong(2);
    return times == NULL ? NULL : dispose(times, PyArray_Repeat(a, times, 0));
}

static PyObject *
clip(PyArrayObject *a)
{
    PyObject *bound = PyFloat_FromDouble(2);
    return bound == NULL ? NULL : dispose(bound, PyArray_Clip(a, bound, bound, NULL));
}

static PyObject *
search(PyArrayObject *a)
{
    PyObject *sorted = PyArray_Ravel(a, NPY_CORDER);
    return sorted == NULL
                   ? NULL
                   : dispose(sorted,
                             PyArray_SearchSorted((PyArrayObject *)sorted,
                                                  (PyObject *)a, NPY_SEARCHLEFT, NULL));
}

static PyObject *
partition(PyArrayObject *a)
{
    PyArrayObject *kth = (PyArrayObject *)PyArray_ZEROS(0, NULL, NPY_INTP, 0);
    if (kth == NULL) {
        return NULL;
    }
    int result = PyArray_Partition(a, kth, 0, NPY_INTROSELECT);
    Py_DECREF(kth);
    return changed(a, result);
}

static PyObject *
fill(PyArrayObject *a)
{
    PyObject *seven = PyFloat_FromDouble(7);
    int result = PyArray_FillWithScalar(a, seven);
    Py_DECREF(seven);
    return changed(a, result);
}

static PyObject *
copy_object(PyArrayObject *a)
{
    PyObject *seven = PyFloat_FromDouble(7);
    int result = PyArray_CopyObject(a, seven);
    Py_DECREF(seven);
    return changed(a, result);
}

static PyObject *
newshape(PyArrayObject *a)
{
    npy_intp dims[2] = {1, -1};
    PyArray_Dims shape = {dims, 2};
    return PyArray_Newshape(a, &shape, NPY_CORDER);
}

static PyObject *
permute(PyArrayObject *a)
{
    npy_intp axes[NPY_MAXDIMS];
    for (int i = 0; i < PyArray_NDIM(a); i++) {
        axes[i] = PyArray_NDIM(a) - 1 - i;
    }
    PyArray_Dims order = {axes, PyArray_NDIM(a)};
    return PyArray_Transpose(a, &order);
}

/* Both operands are the array. */
static PyObject *
concatenate(PyArrayObject *a)
{
    PyObject *both = PyTuple_Pack(2, a, a);
    return both == NULL ? NULL : dispose(both, PyArray_Concatenate(both, 0));
}

static PyObject *
where(PyArrayObject *a)
{
    PyObject *mask = PyObject_RichCompare((PyObject *)a, (PyObject *)a, Py_EQ);
    return mask == NULL
                   ? NULL
                   : dispose(mask, PyArray_Where(mask, (PyObject *)a, (PyObject *)a));
}

static PyObject *
einsum(PyArrayObject *a)
{
    char subscripts[] = "...->...";
    PyArrayObject *operands[1] = {a};
    return (PyObject *)PyArray_EinsteinSum(subscripts, 1, operands, NULL, NPY_KEEPORDER,
                                           NPY_SAFE_CASTING, NULL);
}

static PyObject *
array_iterator(PyArrayObject *a)
{
    PyArrayIterObject *it = (PyArrayIterObject *)PyArray_IterNew((PyObject *)a);
    if (it == NULL) {
        return NULL;
    }
    PyObject *list = PyList_New(0);
    while (list != NULL && PyArray_ITER_NOTDONE(it)) {
        PyObject *item = PyArray_ToScalar(PyArray_ITER_DATA(it), a);
        if (item == NULL || PyList_Append(list, item) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(item);
        PyArray_ITER_NEXT(it);
    }
    Py_DECREF(it);
    return list;
}

static PyObject *
iter_all_but_axis(PyArrayObject *a)
{
    int axis = 0;
    PyArrayIterObject *it =
            (PyArrayIterObject *)PyArray_IterAllButAxis((PyObject *)a, &axis);
    PyObject *item = it == NULL ? NULL : PyArray_ToScalar(PyArray_ITER_DATA(it), a);
    Py_XDECREF(it);
    return item;
}

static PyObject *
multi_iterator(PyArrayObject *a)
{
    PyObject *it = PyArray_MultiIterNew(2, a, a);
    PyObject *item =
            it == NULL ? NULL : PyArray_ToScalar(PyArray_MultiIter_DATA(it, 1), a);
    Py_XDECREF(it);
    return item;
}

static PyObject *
neighborhood_iterator(PyArrayObject *a)
{
    PyArrayIterObject *it = (PyArrayIterObject *)PyArray_IterNew((PyObject *)a);
    if (it == NULL) {
        return NULL;
    }
    npy_intp bounds[2 * NPY_MAXDIMS] = {0};
    PyArrayNeighborhoodIterObject *neighbors =
            (PyArrayNeighborhoodIterObject *)PyArray_NeighborhoodIterNew(
                    it, bounds, NPY_NEIGHBORHOOD_ITER_ZERO_PADDING, NULL);
    PyObject *item = neighbors == NULL ? NULL : PyArray_ToScalar(neighbors->dataptr, a);
    Py_XDECREF(neighbors);
    Py_DECREF(it);
    return item;
}

static PyObject *
nditer(PyArrayObject *a)
{
    NpyIter *iter = NpyIter_New(a, NPY_ITER_READONLY, NPY_CORDER, NPY_NO_CASTING, NULL);
    if (iter == NULL) {
        return NULL;
    }
    PyObject *list = PyList_New(0);
    NpyIter_IterNextFunc *next = NpyIter_GetIterNext(iter, NULL);
    char **data = NpyIter_GetDataPtrArray(iter);
    do {
        PyObject *item = PyArray_ToScalar(*data, a);
        if (item == NULL || PyList_Append(list, item) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(item);
    } while (list != NULL && next(iter));
    NpyIter_Deallocate(iter);
    return list;
}

/* Adds 1 to each element. */
static PyObject *
nditer_write(PyArrayObject *a)
{
    NpyIter *iter =
            NpyIter_New(a, NPY_ITER_READWRITE, NPY_KEEPORDER, NPY_NO_CASTING, NULL);
    if (iter == NULL) {
        return NULL;
    }
    NpyIter_IterNextFunc *next = NpyIter_GetIterNext(iter, NULL);
    char **data = NpyIter_GetDataPtrArray(iter);
    do {
        *(double *)*data += 1;
    } while (next(iter));
    return changed(a, NpyIter_Deallocate(iter) == NPY_SUCCEED ? 0 : -1);
}

/* A function, other than PyArray_GETPTR1. */
static PyObject *
get_ptr(PyArrayObject *a)
{
    npy_intp index[NPY_MAXDIMS] = {0};
    void *item = PyArray_GetPtr(a, index);
    return PyErr_Occurred() ? NULL : PyArray_ToScalar(item, a);
}

static PyObject *
as_c_array(PyArrayObject *a)
{
    PyObject *op = (PyObject *)a;
    npy_intp dims[NPY_MAXDIMS];
    double *data;
    Py_INCREF(op);
    if (PyArray_NDIM(a) != 1) {
        return op;
    }
    if (PyArray_AsCArray(&op, &data, dims, 1, DOUBLE) < 0) {
        Py_DECREF(op);
        return NULL;
    }
    PyObject *item = PyFloat_FromDouble(data[0]);
    PyArray_Free(op, data);
    return item;
}

static PyObject *
buffer(PyArrayObject *a)
{
    Py_buffer view;
    if (PyObject_GetBuffer((PyObject *)a, &view, PyBUF_STRIDED_RO) < 0) {
        return NULL;
    }
    PyObject *item = PyArray_ToScalar(view.buf, a);
    PyBuffer_Release(&view);
    return item;
}

/* A view made in two steps, as C code does; the address has to be the last one. */
static PyObject *
base_object(PyArrayObject *a)
{
    if (PyArray_CalculateDeferred(a) == NPY_FAIL) {
        return NULL;
    }
    npy_intp one = 1;
    PyObject *view = PyArray_SimpleNewFromData(1, &one, NPY_DOUBLE, PyArray_DATA(a));
    Py_INCREF(a);
    if (view != NULL &&
        PyArray_SetBaseObject((PyArrayObject *)view, (PyObject *)a) < 0) {
        Py_CLEAR(view);
    }
    return view;
}

static PyObject *
writeback(PyArrayObject *a)
{
    PyArrayObject *copy = (PyArrayObject *)PyArray_FROM_OTF(
            (PyObject *)a, NPY_FLOAT, NPY_ARRAY_INOUT_ARRAY2 | NPY_ARRAY_FORCECAST);
    if (copy == NULL) {
        return NULL;
    }
    ((float *)PyArray_DATA(copy))[0] = 9;
    int result = PyArray_ResolveWritebackIfCopy(copy);
    Py_DECREF(copy);
    return changed(a, result);
}

static PyObject *
getitem(PyArrayObject *a)
{
    if (PyArray_CalculateDeferred(a) == NPY_FAIL) {
        return NULL;
    }
    return PyArray_GETITEM(a, PyArray_BYTES(a));
}

static PyObject *
setitem(PyArrayObject *a)
{
    PyObject *seven = PyFloat_FromDouble(7);
    int result = PyArray_CalculateDeferred(a) == NPY_FAIL ||
                                 PyArray_FailUnlessWriteable(a, "array") < 0 ||
                                 PyArray_SETITEM(a, PyArray_BYTES(a), seven) < 0
                         ? -1
                         : 0;
    Py_DECREF(seven);
    return changed(a, result);
}

static PyObject *
fail_unless_writeable(PyArrayObject *a)
{
    int result = PyArray_FailUnlessWriteable(a, "array");
    return changed(a, result);
}

static PyObject *
can_cast(PyArrayObject *a)
{
    /* PyArray_DescrFromType would have things calculated. */
    PyArray_Descr *descr = PyArray_DescrNew(PyArray_DESCR(a));
    int result = PyArray_CanCastArrayTo(a, descr, NPY_SAFE_CASTING);
    Py_DECREF(descr);
    return PyBool_FromLong(result);
}

static PyObject *
result_type(PyArrayObject *a)
{
    PyArrayObject *arrays[2] = {a, a};
    return (PyObject *)PyArray_ResultType(2, arrays, 0, NULL);
}

static PyObject *
count_nonzero(PyArrayObject *a)
{
    npy_intp count = PyArray_CountNonzero(a);
    return count < 0 ? NULL : PyLong_FromSsize_t(count);
}

#define OBJECT (PyObject *)a

/* Those that read, or give a new array or a view. */
#define CALLS(X)                                                                   \
    X(NewCopy, PyArray_NewCopy(a, NPY_KEEPORDER))                                  \
    X(CopyInto, into_new(a, PyArray_CopyInto))                                     \
    X(CopyAnyInto, into_new(a, PyArray_CopyAnyInto))                               \
    X(CopyObject, copy_object(a))                                                  \
    X(View, PyArray_View(a, NULL, NULL))                                           \
    X(FromAny, PyArray_FromAny(OBJECT, NULL, 0, 0, NPY_ARRAY_CARRAY, NULL))        \
    X(FromArray, PyArray_FromArray(a, DOUBLE, NPY_ARRAY_ENSURECOPY))               \
    X(CheckFromAny,                                                                \
      PyArray_CheckFromAny(OBJECT, NULL, 0, 0,                                     \
                           NPY_ARRAY_NOTSWAPPED | NPY_ARRAY_ELEMENTSTRIDES, NULL)) \
    X(FROM_OTF, PyArray_FROM_OTF(OBJECT, NPY_DOUBLE, NPY_ARRAY_IN_FARRAY))         \
    X(FROMANY_cast, PyArray_FROMANY(OBJECT, NPY_CDOUBLE, 0, 0, NPY_ARRAY_DEFAULT)) \
    X(ContiguousFromAny, PyArray_ContiguousFromAny(OBJECT, NPY_DOUBLE, 0, 0))      \
    X(EnsureArray, PyArray_EnsureArray(Py_NewRef(OBJECT)))                         \
    X(EnsureAnyArray, PyArray_EnsureAnyArray(Py_NewRef(OBJECT)))                   \
    X(Return, PyArray_Return((PyArrayObject *)Py_NewRef(OBJECT)))                  \
    X(GETITEM, getitem(a))                                                         \
    X(SETITEM, setitem(a))                                                         \
    X(SetBaseObject, base_object(a))                                               \
    X(Sort, changed(a, PyArray_Sort(a, 0, NPY_QUICKSORT)))                         \
    X(ArgSort, PyArray_ArgSort(a, 0, NPY_STABLESORT))                              \
    X(ArgMax, PyArray_ArgMax(a, 0, NULL))                                          \
    X(ArgMin, PyArray_ArgMin(a, 0, NULL))                                          \
    X(SearchSorted, search(a))                                                     \
    X(Newshape, newshape(a))                                                       \
    X(Ravel, PyArray_Ravel(a, NPY_CORDER))                                         \
    X(Flatten, PyArray_Flatten(a, NPY_CORDER))                                     \
    X(Squeeze, PyArray_Squeeze(a))                                                 \
    X(Transpose, permute(a))                                                       \
    X(SwapAxes, PyArray_SwapAxes(a, 0, PyArray_NDIM(a) - 1))                       \
    X(Sum, PyArray_Sum(a, 0, NPY_NOTYPE, NULL))                                    \
    X(Prod, PyArray_Prod(a, 0, NPY_NOTYPE, NULL))                                  \
    X(CumSum, PyArray_CumSum(a, 0, NPY_NOTYPE, NULL))                              \
    X(Mean, PyArray_Mean(a, 0, NPY_NOTYPE, NULL))                                  \
    X(Std, PyArray_Std(a, 0, NPY_NOTYPE, NULL, 0))                                 \
    X(Max, PyArray_Max(a, 0, NULL))                                                \
    X(Min, PyArray_Min(a, 0, NULL))                                                \
    X(Ptp, PyArray_Ptp(a, 0, NULL))                                                \
    X(Any, PyArray_Any(a, 0, NULL))                                                \
    X(All, PyArray_All(a, 0, NULL))                                                \
    X(Round, PyArray_Round(a, 1, NULL))                                            \
    X(Conjugate, PyArray_Conjugate(a, NULL))                                       \
    X(Clip, clip(a))                                                               \
    X(Nonzero, PyArray_Nonzero(a))                                                 \
    X(CountNonzero, count_nonzero(a))                                              \
    X(Repeat, repeat(a))                                                           \
    X(TakeFrom, take(a))                                                           \
    X(PutTo, put(a))                                                               \
    X(CastToType, PyArray_CastToType(a, PyArray_DescrFromType(NPY_FLOAT), 1))      \
    X(Cast, PyArray_Cast(a, NPY_LONG))                                             \
    X(ToList, PyArray_ToList(a))                                                   \
    X(ToString, PyArray_ToString(a, NPY_CORDER))                                   \
    X(Dumps, PyArray_Dumps(OBJECT, 5))                                             \
    X(Byteswap, PyArray_Byteswap(a, 1))                                            \
    X(FillWithScalar, fill(a))                                                     \
    X(GetField, PyArray_GetField(a, PyArray_DescrFromType(NPY_INT), 4))            \
    X(Partition, partition(a))                                                     \
    X(Concatenate, concatenate(a))                                                 \
    X(Where, where(a))                                                             \
    X(EinsteinSum, einsum(a))                                                      \
    X(InnerProduct, PyArray_InnerProduct(OBJECT, OBJECT))                          \
    X(MatrixProduct, PyArray_MatrixProduct(OBJECT, OBJECT))                        \
    X(IterNew, array_iterator(a))                                                  \
    X(IterAllButAxis, iter_all_but_axis(a))                                        \
    X(MultiIterNew, multi_iterator(a))                                             \
    X(NeighborhoodIterNew, neighborhood_iterator(a))                               \
    X(NpyIter_New, nditer(a))                                                      \
    X(NpyIter_New_write, nditer_write(a))                                          \
    X(GetPtr, get_ptr(a))                                                          \
    X(AsCArray, as_c_array(a))                                                     \
    X(GetBuffer, buffer(a))                                                        \
    X(FromStructInterface, PyArray_FromStructInterface(OBJECT))                    \
    X(FROM_OTF_writeback, writeback(a))                                            \
    X(FailUnlessWriteable, fail_unless_writeable(a))                               \
    X(PyObject_Str, PyObject_Str(OBJECT))                                          \
    X(PySequence_GetItem, PySequence_GetItem(OBJECT, 0))

/* Those that need no values: a deferred array stays so. */
#define PEEKS(X)                                                                    \
    X(NewLikeArray, changed_by(a, PyArray_NewLikeArray(a, NPY_KEEPORDER, NULL, 0))) \
    X(Size, PyLong_FromSsize_t(PyArray_Size(OBJECT)))                               \
    X(NBYTES, PyLong_FromSsize_t(PyArray_NBYTES(a)))                                \
    X(GetPriority, PyFloat_FromDouble(PyArray_GetPriority(OBJECT, 0)))              \
    X(ElementStrides, PyBool_FromLong(PyArray_ElementStrides(OBJECT)))              \
    X(EquivArrTypes, PyBool_FromLong(PyArray_EquivArrTypes(a, a)))                  \
    X(CanCastArrayTo, can_cast(a))                                                  \
    X(ResultType, result_type(a))                                                   \
    X(DescrFromObject, (PyObject *)PyArray_DescrFromObject(OBJECT, NULL))           \
    X(MinScalarType, (PyObject *)PyArray_MinScalarType(a))

#define DEFINE(name, expression)                                             \
    static PyObject *call_##name(PyObject *Py_UNUSED(module), PyObject *arg) \
    {                                                                        \
        PyArrayObject *a = (PyArrayObject *)arg;                             \
        return (PyObject *)(expression);                                     \
    }
CALLS(DEFINE)
PEEKS(DEFINE)

#define ENTRY(name, expression) {#name, call_##name, METH_O, NULL},
static PyMethodDef calls[] = {CALLS(ENTRY){NULL, NULL, 0, NULL}};
static PyMethodDef peeks[] = {PEEKS(ENTRY){NULL, NULL, 0, NULL}};

static int
add(PyObject *module, const char *name, PyMethodDef *methods)
{
    PyObject *dict = PyDict_New();
    for (PyMethodDef *method = methods; dict != NULL && method->ml_name; method++) {
        PyObject *function = PyCFunction_New(method, NULL);
        if (function == NULL ||
            PyDict_SetItemString(dict, method->ml_name, function) < 0) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(function);
    }
    if (dict == NULL) {
        return -1;
    }
    int result = PyModule_AddObjectRef(module, name, dict);
    Py_DECREF(dict);
    return result;
}

int
add_calls(PyObject *module)
{
    return add(module, "calls", calls) < 0 ? -1 : add(module, "peeks", peeks);
}
