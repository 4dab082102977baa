"""
Every way to write into an array's memory that NumPy offers.

WRITERS write at once, through the array they are given.  HANDLES give a
function that writes later, when it is called: the handle may be taken before
or after the memory becomes an operand.  All of them are given (a view of) a
one-dimensional, contiguous array of doubles with at least eight elements.
"""

import ctypes
import io
import pickle
import struct

import numpy as np


def _rng():
    return np.random.default_rng(7)


def _set(a, index, value):
    a[index] = value


def _resize(a):
    a.resize(a.size + 3, refcheck=False)


def _nditer(a):
    with np.nditer(a, op_flags=["readwrite"]) as it:
        for item in it:
            item[...] = -item


def _buffered_nditer(a):
    with np.nditer(
        a,
        ["buffered", "external_loop"],
        ["readwrite"],
        op_dtypes=["f4"],
        casting="same_kind",
    ) as it:
        for item in it:
            item *= 2


def _vectorized_out(a):
    np.frompyfunc(lambda x: x + 1, 1, 1)(a, out=a, casting="unsafe")


WRITERS = {
    "item": lambda a: _set(a, 3, 7.0),
    "negative item": lambda a: _set(a, -1, 7.0),
    "slice": lambda a: _set(a, slice(2, 6), 7.0),
    "ellipsis": lambda a: _set(a, ..., 7.0),
    "all from list": lambda a: _set(a, slice(None), list(range(len(a)))),
    "from itself reversed": lambda a: _set(a, slice(None), a[::-1]),
    "newaxis": lambda a: _set(a, (None, slice(3)), 7.0),
    "mask": lambda a: _set(a, a > 2, 7.0),
    "mask array": lambda a: _set(a, a > 2, a[a > 2] * 3),
    "fancy": lambda a: _set(a, [1, 2, 5], 7.0),
    "fancy array": lambda a: _set(a, np.array([[0, 1], [2, 3]]), 7.0),
    "iadd": lambda a: a.__iadd__(1),
    "imul array": lambda a: a.__imul__(np.arange(a.size)),
    "ipow": lambda a: a.__ipow__(2),
    "out": lambda a: np.sin(a, out=a),
    "out tuple": lambda a: np.add(a, 1, out=(a,)),
    "out where": lambda a: np.add(a, 1, out=a, where=a > 2),
    "two outs": lambda a: np.modf(a * 1.5, a, np.empty_like(a)),
    "ufunc.at": lambda a: np.add.at(a, [0, 0, 1], 1),
    "unary ufunc.at": lambda a: np.negative.at(a, [0, 1]),
    "reduce out": lambda a: np.add.reduce([[1.0, 2]], out=a[:2]),
    "accumulate out": lambda a: np.add.accumulate(a, out=a),
    "object ufunc out": _vectorized_out,
    "fill": lambda a: a.fill(7.0),
    "put": lambda a: a.put([0, 2], [8, 9]),
    "np.put": lambda a: np.put(a, [0, 2], [8, 9]),
    "np.place": lambda a: np.place(a, a > 2, [8, 9]),
    "np.putmask": lambda a: np.putmask(a, a > 2, [8, 9]),
    "np.put_along_axis": lambda a: np.put_along_axis(a, np.array([0, 2]), 8, 0),
    "np.copyto": lambda a: np.copyto(a, 7.0),
    "np.copyto where": lambda a: np.copyto(a, 7.0, where=a > 2),
    "np.fill_diagonal": lambda a: np.fill_diagonal(a[:4].reshape(2, 2), 7.0),
    "np.nan_to_num": lambda a: np.nan_to_num(a, copy=False, posinf=3),
    "np.clip out": lambda a: np.clip(a, 1, 3, out=a),
    "np.round out": lambda a: np.round(a / 3, 1, out=a),
    "np.take out": lambda a: np.take(a.copy(), [3] * a.size, out=a, mode="clip"),
    "np.choose out": lambda a: np.choose([1] * a.size, [a, a + 1], out=a),
    "np.compress out": lambda a: np.compress([1] * a.size, a + 1, out=a),
    "np.dot out": lambda a: np.dot(np.eye(a.size), a + 1, out=a),
    "np.matmul out": lambda a: np.matmul(np.eye(a.size), a + 1, out=a),
    "np.einsum out": lambda a: np.einsum("i->i", a + 1, out=a),
    "np.concatenate out": lambda a: np.concatenate([a[1:] + 1, a[:1]], out=a),
    "np.stack out": lambda a: np.stack([a[:4] + 1, a[:4]], out=a[:8].reshape(2, 4)),
    "cumsum out": lambda a: a.cumsum(out=a),
    "sum out": lambda a: np.sum(a, keepdims=True, out=a[:1]),
    "mean out": lambda a: np.mean(a, keepdims=True, out=a[:1]),
    "max out": lambda a: np.max(a, keepdims=True, out=a[:1]),
    "median overwrite": lambda a: np.median(a, overwrite_input=True),
    "sort": lambda a: _set(a, slice(None), -a[::1]) or a.sort(),
    "partition": lambda a: _set(a, slice(None), -a[::1]) or a.partition(3),
    "byteswap": lambda a: a.byteswap(inplace=True),
    "setfield": lambda a: a.setfield(7, "i4", 4),
    "real": lambda a: setattr(a, "real", 7.0),
    "complex view imag": lambda a: setattr(a[:8].view(complex), "imag", 7.0),
    "flat": lambda a: setattr(a, "flat", [1, 2, 3]),
    "flat item": lambda a: _set(a.flat, 2, 7.0),
    "flat slice": lambda a: _set(a.flat, slice(2, 5), 7.0),
    "flat fancy": lambda a: _set(a.flat, [1, 3], 7.0),
    "nditer": _nditer,
    "buffered nditer": _buffered_nditer,
    "shuffle": lambda a: _rng().shuffle(a),
    "legacy shuffle": lambda a: np.random.RandomState(3).shuffle(a),
    "permuted out": lambda a: _rng().permuted(a, out=a),
    "random out": lambda a: _rng().random(out=a),
    "normal out": lambda a: _rng().standard_normal(out=a),
    "exponential out": lambda a: _rng().standard_exponential(out=a),
    "memoryview": lambda a: _set(memoryview(a), 2, 7.0),
    "data": lambda a: _set(a.data, 2, 7.0),
    "data attribute": lambda a: a.data.cast("B").__setitem__(3, 9),
    "readinto": lambda a: io.BytesIO(b"\1" * 40).readinto(a),
    "pack_into": lambda a: struct.pack_into("d", a, 8, 7.0),
    "recarray": lambda a: _set(a.view([("x", "f8")])["x"], 2, 7.0),
    "bytes view": lambda a: _set(a.view("u1"), 3, 9),
    "reshape": lambda a: _set(a[:8].reshape(2, 4), (1, 1), 7.0),
    "transpose": lambda a: _set(a[:8].reshape(2, 4).T, (1, 1), 7.0),
    "diagonal": lambda a: _set(np.einsum("ii->i", a[:4].reshape(2, 2)), 1, 7.0),
    "matrix": lambda a: _set(a.view(np.matrix), (0, 1), 7.0),
    "masked array": lambda a: _set(np.ma.array(a, copy=False), 1, 7.0),
    "as_strided": lambda a: _set(
        np.lib.stride_tricks.as_strided(a, (min(a.size, 3),)), 1, 7.0
    ),
    "windows": lambda a: _set(
        np.lib.stride_tricks.sliding_window_view(a, 2, writeable=True), (1, 1), 7.0
    ),
    "from_dlpack": lambda a: _set(np.from_dlpack(a), 1, 7.0),
    "asarray": lambda a: _set(np.asarray(a), 1, 7.0),
    "require": lambda a: _set(np.require(a, "f8", "CW"), 1, 7.0),
    "tuple of views": lambda a: _set(np.split(a[:8], 2)[1], 1, 7.0),
    "swapaxes": lambda a: _set(np.swapaxes(a[:8].reshape(2, 4), 0, 1), (1, 1), 7.0),
    "setflags and write": lambda a: a.setflags(write=True) or _set(a, 1, 7.0),
    "flags.writeable": lambda a: setattr(a.flags, "writeable", True) or _set(a, 1, 7),
}

#: These change the array object too.
OWNERS_ONLY = {
    "resize": _resize,
    "setstate": lambda a: a.__setstate__((1, (8,), np.dtype("f8"), False, b"1" * 64)),
    "shape": lambda a: setattr(a, "shape", (4, -1)) or _set(a, (1, 1), 7.0),
}


def _pickle_buffer(a):
    view = pickle.PickleBuffer(a).raw()
    return lambda: _set(view, slice(8, 16), struct.pack("d", 7.0))


def _ctypes_array(a):
    pointer = a.ctypes.data_as(ctypes.POINTER(ctypes.c_double))
    return lambda: _set(pointer, 1, 7.0)


def _address(a, address):
    memory = (ctypes.c_double * 2).from_address(address)
    return lambda: _set(memory, 1, 7.0)


def _interface(a):
    class Holder:
        __array_interface__ = a.__array_interface__
        owner = a

    return _later(np.asarray(Holder()))


def _struct(a):
    class Holder:
        __array_struct__ = a.__array_struct__
        owner = a

    return _later(np.asarray(Holder()))


def _open_nditer(a):
    it = np.nditer(a, op_flags=["readwrite"])
    item = next(it)
    return lambda: _set(item, ..., 7.0)


def _open_external_nditer(a):
    it = np.nditer(a, ["external_loop"], ["readwrite"])
    chunk = next(it)
    return lambda: _set(chunk, 1, 7.0)


def _nditer_operand(a):
    it = np.nditer(a, op_flags=["readwrite"])
    return lambda: _set(it.operands[0], 1, 7.0)


def _nditer_view(a):
    it = np.nditer(a, op_flags=["readwrite"])
    return lambda: _set(it.itviews[0], 1, 7.0)


def _nested_iters(a):
    outer, inner = np.nested_iters(
        a[:8].reshape(2, 4), [[0], [1]], op_flags=["readwrite"]
    )
    next(outer)
    item = next(inner)
    return lambda: _set(item, ..., 7.0)


def _later(view, index=1):
    return lambda: _set(view, index, 7.0)


def _flat(a):
    flat = a.flat
    return lambda: _set(flat, 1, 7.0)


def _bound_method(a):
    fill = a.fill
    return lambda: fill(7.0)


HANDLES = {
    "the array": _later,
    "slice": lambda a: _later(a[1:]),
    "reversed": lambda a: _later(a[::-1]),
    "strided": lambda a: _later(a[::2]),
    "one item": lambda a: _later(a[1:2], ...),
    "0-d view": lambda a: _later(a[1, ...], ...),
    "view of view": lambda a: _later(a[1:][1:][::-1]),
    "other dtype": lambda a: _later(a.view("i8")),
    "reshaped": lambda a: _later(a[:8].reshape(2, 4), (0, 1)),
    "ravel": lambda a: _later(np.ravel(a)),
    "real": lambda a: _later(a.real),
    "matrix": lambda a: _later(a.view(np.matrix), (0, 1)),
    "masked array": lambda a: _later(np.ma.array(a, copy=False)),
    "field": lambda a: _later(a.view([("x", "f8")])["x"]),
    "record": lambda a: (lambda rec: lambda: _set(rec, "x", 7.0))(
        a.view([("x", "f8")])[1]
    ),
    "as_strided": lambda a: _later(
        np.lib.stride_tricks.as_strided(a, (min(a.size, 3),))
    ),
    "ndarray over array": lambda a: _later(np.ndarray((2,), "f8", a)),
    "ndarray over buffer": lambda a: _later(np.ndarray((2,), "f8", a.data)),
    "frombuffer": lambda a: _later(np.frombuffer(a)),
    "from_dlpack": lambda a: _later(np.from_dlpack(a)),
    "memoryview": lambda a: _later(memoryview(a)),
    "memoryview of slice": lambda a: _later(memoryview(a[1:])),
    "array of memoryview": lambda a: _later(np.asarray(memoryview(a))),
    "pickle buffer": _pickle_buffer,
    "ctypes pointer": _ctypes_array,
    "ctypes.data": lambda a: _address(a, a.ctypes.data),
    "ctypes._as_parameter_": lambda a: _address(a, a.ctypes._as_parameter_.value),
    "ctypes from_buffer": lambda a: _later((ctypes.c_double * 8).from_buffer(a)),
    "ctypeslib.as_ctypes": lambda a: _later(np.ctypeslib.as_ctypes(a)),
    "array interface": _interface,
    "array struct": _struct,
    "interface address": lambda a: _address(a, a.__array_interface__["data"][0]),
    "flat": _flat,
    "open nditer": _open_nditer,
    "open external nditer": _open_external_nditer,
    "operand of nditer": _nditer_operand,
    "view of nditer": _nditer_view,
    "nested iters": _nested_iters,
    "bound method": _bound_method,
}
