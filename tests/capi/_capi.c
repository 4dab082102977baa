/*
 * The C API of deferred evaluation, as C code uses it, and the meeting of
 * deferral with WRITEBACKIFCOPY.
 *
 * The functions take any objects, and NULL for `_capi.NULL`, as C would.  They
 * check that the result and the exception agree.
 */
#include "_capi.h"

static PyObject *null;

static PyArrayObject *
array(PyObject *obj)
{
    return obj == null ? NULL : (PyArrayObject *)obj;
}

static PyObject *
outcome(const char *function, int result)
{
    int raised = PyErr_Occurred() != NULL;
    if (result == NPY_FAIL && raised) {
        return NULL;
    }
    if (result == NPY_SUCCEED && !raised) {
        Py_RETURN_NONE;
    }
    PyErr_Format(PyExc_SystemError, "%s returned %d with%s exception", function, result,
                 raised ? " an" : "out");
    return NULL;
}

static PyObject *
calculate_all(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(noarg))
{
    return outcome("PyArray_CalculateAllDeferred", PyArray_CalculateAllDeferred());
}

static PyObject *
calculate(PyObject *Py_UNUSED(module), PyObject *arg)
{
    return outcome("PyArray_CalculateDeferred", PyArray_CalculateDeferred(array(arg)));
}

static PyObject *
assign(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *arr, *out;
    if (!PyArg_ParseTuple(args, "OO", &arr, &out)) {
        return NULL;
    }
    return outcome("PyArray_CalculateDeferredAssignment",
                   PyArray_CalculateDeferredAssignment(array(arr), array(out)));
}

static PyObject *
usage_count(PyObject *Py_UNUSED(module), PyObject *arg)
{
    int count = PyArray_GetDeferredUsageCount(array(arg));
    if ((count < 0) != (PyErr_Occurred() != NULL)) {
        return outcome("PyArray_GetDeferredUsageCount", count);
    }
    return count < 0 ? NULL : PyLong_FromLong(count);
}

/* With an exception set, which has to be there afterwards. */
static PyObject *
version(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(noarg))
{
    PyErr_SetString(PyExc_KeyError, "set before");
    int number = PyArray_GetDeferredAPIVersion();
    if (!PyErr_ExceptionMatches(PyExc_KeyError)) {
        return NULL;
    }
    PyErr_Clear();
    return PyLong_FromLong(number);
}

/* The addresses in the API table, 0 where it has a hole. */
static PyObject *
slots(PyObject *Py_UNUSED(module), PyObject *args)
{
    int first, last;
    if (!PyArg_ParseTuple(args, "ii", &first, &last)) {
        return NULL;
    }
    PyObject *list = PyList_New(0);
    for (int i = first; list != NULL && i < last; i++) {
        PyObject *address = PyLong_FromVoidPtr(PyArray_API[i]);
        if (address == NULL || PyList_Append(list, address) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(address);
    }
    return list;
}

/* All flags, which `ndarray.flags` does not show. */
static PyObject *
flags(PyObject *Py_UNUSED(module), PyObject *arg)
{
    return PyLong_FromLong(PyArray_FLAGS((PyArrayObject *)arg));
}

static PyObject *
clear_target_flag(PyObject *Py_UNUSED(module), PyObject *arg)
{
    PyArray_CLEARFLAGS((PyArrayObject *)arg, NPY_ARRAY_UPDATEIFCOPY_TARGET);
    Py_RETURN_NONE;
}

/* What C code may do with an array that says it is writeable. */
static PyObject *
poke(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyArrayObject *arr;
    double number;
    if (!PyArg_ParseTuple(args, "O!d", &PyArray_Type, &arr, &number)) {
        return NULL;
    }
    if (!PyArray_ISWRITEABLE(arr)) {
        PyErr_SetString(PyExc_ValueError, "not writeable");
        return NULL;
    }
    ((double *)PyArray_DATA(arr))[0] = number;
    Py_RETURN_NONE;
}

/* A contiguous copy that will be written back; the array must need one. */
static PyObject *
writeback_copy(PyObject *Py_UNUSED(module), PyObject *arg)
{
    return PyArray_FROM_OTF(arg, NPY_DOUBLE, NPY_ARRAY_INOUT_ARRAY2);
}

static PyObject *
set_writeback_base(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyArrayObject *copy;
    PyObject *base;
    if (!PyArg_ParseTuple(args, "O!O", &PyArray_Type, &copy, &base)) {
        return NULL;
    }
    Py_XINCREF(array(base));
    if (PyArray_SetWritebackIfCopyBase(copy, array(base)) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/*
 * The same without a look at what else changed the flags: what SetWritebackIf-
 * CopyBase would be if deferral and it did not know of each other.
 */
static PyObject *
set_writeback_base_unaware(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyArrayObject *copy, *base;
    if (!PyArg_ParseTuple(args, "O!O!", &PyArray_Type, &copy, &PyArray_Type, &base)) {
        return NULL;
    }
    ((PyArrayObject_fields *)copy)->base = Py_NewRef((PyObject *)base);
    PyArray_ENABLEFLAGS(copy, NPY_ARRAY_WRITEBACKIFCOPY);
    PyArray_CLEARFLAGS(base, NPY_ARRAY_WRITEABLE);
    Py_RETURN_NONE;
}

static PyObject *
resolve(PyObject *Py_UNUSED(module), PyObject *arg)
{
    int result = PyArray_ResolveWritebackIfCopy((PyArrayObject *)arg);
    return result < 0 ? NULL : PyLong_FromLong(result);
}

static PyObject *
discard(PyObject *Py_UNUSED(module), PyObject *arg)
{
    PyArray_DiscardWritebackIfCopy((PyArrayObject *)arg);
    Py_RETURN_NONE;
}

/*
 * The accident of NEP 11, in its four steps:
 *
 * 1. make a temporary copy of `arr` with UPDATEIFCOPY: `arr` is read only;
 * 2. use `arr` in a deferred expression;
 * 3. destroy the copy: `arr` is writeable;
 * 4. write to `arr`.
 *
 * Returns arr + arr, and whether that was still deferred after step 2.
 */
static PyObject *
four_steps(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyArrayObject *arr;
    int interlock;
    if (!PyArg_ParseTuple(args, "O!p", &PyArray_Type, &arr, &interlock)) {
        return NULL;
    }
    PyArrayObject *copy = (PyArrayObject *)PyArray_FROM_OTF((PyObject *)arr, NPY_DOUBLE,
                                                            NPY_ARRAY_INOUT_ARRAY2);
    if (copy == NULL) {
        return NULL;
    }
    if (copy == arr || PyArray_ISWRITEABLE(arr)) {
        PyErr_SetString(PyExc_AssertionError, "nothing to write back");
        return NULL;
    }
    if (!interlock) {
        PyArray_CLEARFLAGS(arr, NPY_ARRAY_UPDATEIFCOPY_TARGET);
    }
    PyObject *sum = PyNumber_Add((PyObject *)arr, (PyObject *)arr);
    PyArray_DiscardWritebackIfCopy(copy);
    Py_DECREF(copy);
    if (sum == NULL) {
        return NULL;
    }
    int deferred = PyArray_CHKFLAGS((PyArrayObject *)sum, NPY_ARRAY_DEFERRED);
    if (!PyArray_ISWRITEABLE(arr)) {
        PyErr_SetString(PyExc_AssertionError, "not writeable again");
        Py_DECREF(sum);
        return NULL;
    }
    *(double *)PyArray_DATA(arr) = 99;
    return Py_BuildValue("NN", sum, PyBool_FromLong(deferred));
}

static PyMethodDef methods[] = {
        {"calculate_all", calculate_all, METH_NOARGS, NULL},
        {"calculate", calculate, METH_O, NULL},
        {"assign", assign, METH_VARARGS, NULL},
        {"usage_count", usage_count, METH_O, NULL},
        {"version", version, METH_NOARGS, NULL},
        {"slots", slots, METH_VARARGS, NULL},
        {"flags", flags, METH_O, NULL},
        {"clear_target_flag", clear_target_flag, METH_O, NULL},
        {"poke", poke, METH_VARARGS, NULL},
        {"writeback_copy", writeback_copy, METH_O, NULL},
        {"set_writeback_base", set_writeback_base, METH_VARARGS, NULL},
        {"set_writeback_base_unaware", set_writeback_base_unaware, METH_VARARGS, NULL},
        {"resolve", resolve, METH_O, NULL},
        {"discard", discard, METH_O, NULL},
        {"four_steps", four_steps, METH_VARARGS, NULL},
        {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_capi",
                                        .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC
PyInit__capi(void)
{
    import_array();
    PyObject *module = PyModule_Create(&definition);
    null = PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type);
    if (module == NULL || null == NULL ||
        PyModule_AddObjectRef(module, "NULL", null) < 0 ||
        PyModule_AddIntMacro(module, NPY_ARRAY_DEFERRED) < 0 ||
        PyModule_AddIntMacro(module, NPY_ARRAY_DEFERRED_WASWRITEABLE) < 0 ||
        PyModule_AddIntMacro(module, NPY_ARRAY_UPDATEIFCOPY_TARGET) < 0 ||
        PyModule_AddIntMacro(module, NPY_DEFERRED) < 0 ||
        PyModule_AddIntMacro(module, NPY_DEFERRED_WASWRITEABLE) < 0 ||
        PyModule_AddIntMacro(module, NPY_UPDATEIFCOPY_TARGET) < 0 ||
        PyModule_AddIntMacro(module, NPY_ARRAY_WRITEABLE) < 0 ||
        PyModule_AddIntMacro(module, NPY_DEFERRED_API_VERSION) < 0 ||
        add_calls(module) < 0) {
        return NULL;
    }
    return module;
}
