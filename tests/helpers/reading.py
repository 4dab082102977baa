"""
Every way to read an array's values that NumPy offers.

READERS are given `a`, a vector of 12 doubles without NaN, or an array of what
the key in brackets says; they return something that can be compared.
"""

import copy
import ctypes
import io
import itertools
import json
import operator
import pickle
import struct

import numpy as np


def rng():
    return np.random.default_rng(5)


def _tofile(a, sep=""):
    file = io.BytesIO()
    np.save(file, a)
    return file.getvalue()


def _to_real_file(a):
    import tempfile

    with tempfile.TemporaryFile() as file:
        a.tofile(file)
        file.seek(0)
        return file.read()


def _savetxt(a):
    file = io.StringIO()
    np.savetxt(file, a)
    return file.getvalue()


def _savez(a):
    file = io.BytesIO()
    np.savez_compressed(file, a=a)
    file.seek(0)
    return np.load(file)["a"]


def _dump(a):
    return pickle.loads(a.dumps())


def _pickle5(a):
    buffers = []
    data = pickle.dumps(a, 5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytes(b.raw()) for b in buffers])


def _nditer(a, *args, **kwargs):
    with np.nditer(a, *args, **kwargs) as it:
        return [np.array(item) for item in it]


def _interface(a):
    class Holder:
        __array_interface__ = a.__array_interface__

    return np.array(Holder())


def _array_struct(a):
    class Holder:
        __array_struct__ = a.__array_struct__

    return np.array(Holder())


def _address(a):
    return bytes((ctypes.c_char * a.nbytes).from_address(a.ctypes.data))


def _ctypes_pointer(a):
    return a.ctypes.data_as(ctypes.POINTER(ctypes.c_double))[: a.size]


def _subclass(a):
    class Sub(np.ndarray):
        pass

    return np.asarray(a.view(Sub) * 2)


def _array_ufunc(a):
    class Mine:
        def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
            return [x.tolist() for x in inputs if isinstance(x, np.ndarray)]

    return np.add(a, Mine())


def _mutate_after_view(a):
    view = a[1:3]
    view[...] = 9
    return a, view


def _setattr(a, name, value):
    setattr(a, name, value)
    return a


def _bytes_of(view):
    return bytes(view)


def _assert_raises(function, *args):
    try:
        function(*args)
    except AssertionError as error:
        return str(error)
    raise RuntimeError("no AssertionError")


def square(a):
    return a[:9].reshape(3, 3) + 10 * np.eye(3)


VECTOR = {
    # conversions and text
    "tolist": lambda a: a.tolist(),
    "tobytes": lambda a: a.tobytes(),
    "item": lambda a: a.item(3),
    "repr": repr,
    "str": str,
    "format": lambda a: f"{a}",
    "array2string": lambda a: np.array2string(a, precision=3),
    "array_repr": np.array_repr,
    "bytes": bytes,
    "list": list,
    "tuple": tuple,
    "set": lambda a: sorted(set(a)),
    "iterate": lambda a: [x * 2 for x in a],
    "unpack": lambda a: (lambda *args: args)(*a),
    "in": lambda a: 3.0 in a,
    "zip": lambda a: list(zip(a, itertools.count(), strict=False)),
    "sum builtin": sum,
    "max builtin": max,
    "sorted": sorted,
    "reversed": lambda a: list(reversed(a)),
    "map": lambda a: list(map(float, a)),
    "json": lambda a: json.dumps(a.tolist()),
    "float of one": lambda a: float(a[2:3].reshape(())),
    "enumerate": lambda a: list(np.ndenumerate(a)),
    # protocols
    "memoryview": lambda a: memoryview(a).tolist(),
    "data": lambda a: _bytes_of(a.data),
    "bytearray": lambda a: bytes(bytearray(a)),
    "struct.unpack_from": lambda a: struct.unpack_from("2d", a),
    "bytes.join": lambda a: b"".join([a, a]),
    "io.write": lambda a: (lambda f: (f.write(a), f.getvalue())[1])(io.BytesIO()),
    "frombuffer": np.frombuffer,
    "__array_interface__": _interface,
    "__array_struct__": _array_struct,
    "__array__": lambda a: a.__array__(),
    "__array__ dtype": lambda a: a.__array__(np.float32),
    "address": _address,
    "ctypes pointer": _ctypes_pointer,
    "as_ctypes": lambda a: list(np.ctypeslib.as_ctypes(a)),
    "ctypes shape": lambda a: (list(a.ctypes.shape), list(a.ctypes.strides)),
    "from_dlpack": np.from_dlpack,
    "from_dlpack copy": lambda a: np.from_dlpack(a, copy=True),
    "__dlpack_device__": lambda a: a.__dlpack_device__(),
    "__array_ufunc__ of another": _array_ufunc,
    "__array_wrap__": lambda a: a.__array_wrap__(np.arange(3)),
    "__array_wrap__ of a subclass": lambda a: np.recarray(1, "f8").__array_wrap__(a),
    # persistence
    "pickle": lambda a: pickle.loads(pickle.dumps(a)),
    "pickle 2": lambda a: pickle.loads(pickle.dumps(a, 2)),
    "pickle 5": _pickle5,
    "dumps": _dump,
    "__reduce__": lambda a: a.__reduce__()[2][4],
    "__reduce_ex__": lambda a: repr(a.__reduce_ex__(4)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "a.copy": lambda a: a.copy(),
    "np.save": _tofile,
    "tofile": _to_real_file,
    "savetxt": _savetxt,
    "savez": _savez,
    # indexing
    "a[i]": lambda a: a[3],
    "a[-1]": lambda a: a[-1],
    "a[()]": lambda a: a[()],
    "a[...]": lambda a: a[...],
    "a[i, ...]": lambda a: a[3, ...],
    "slice": lambda a: a[2:9:3],
    "newaxis": lambda a: a[None, :, None],
    "fancy": lambda a: a[[3, 1, 1]],
    "fancy 2-d": lambda a: a[np.array([[0, 1], [2, 3]])],
    "mask": lambda a: a[np.arange(12) % 2 == 0],
    "as index": lambda a: np.arange(100)[abs(a).astype(int)],
    "as mask": lambda a: np.arange(12)[a > 3],
    "slice bound": lambda a: np.arange(50)[int(a[5]) :],
    "take": lambda a: a.take([1, 2]),
    "take as index": lambda a: np.take(np.arange(100), abs(a).astype(int)),
    "np.take out": lambda a: np.take(a, [1, 2], out=np.zeros(2)),
    "compress": lambda a: a.compress([1, 0, 1]),
    "np.compress condition": lambda a: np.compress(a > 3, np.arange(12)),
    "choose": lambda a: np.choose([0, 1] * 6, [a, -a]),
    "choose index": lambda a: np.choose((a > 3).astype(int), [a, -a]),
    "np.select": lambda a: np.select([a > 5, a > 2], [a, a * 2], -1),
    "take_along_axis": lambda a: np.take_along_axis(a, np.array([2, 0]), 0),
    "extract": lambda a: np.extract(a > 3, a),
    "flat": lambda a: list(a.flat),
    "flat index": lambda a: a.flat[3],
    "flat slice": lambda a: a.flat[2:5],
    "flat array": lambda a: np.asarray(a.flat),
    "flat compare": lambda a: a.flat == a,
    "getfield": lambda a: a.getfield("i4", 4),
    "diagonal": lambda a: a.reshape(3, 4).diagonal(),
    "view, then write": _mutate_after_view,
    # views and shapes
    "T": lambda a: a.T,
    "reshape": lambda a: a.reshape(3, 4),
    "reshape F": lambda a: a.reshape(3, 4, order="F"),
    "reshape copy": lambda a: a.reshape(3, 4, copy=True),
    "shape =": lambda a: _setattr(a, "shape", (3, 4)),
    "ravel": lambda a: a.ravel(),
    "flatten": lambda a: a.flatten(),
    "squeeze": lambda a: a.reshape(1, 12).squeeze(),
    "swapaxes": lambda a: a.reshape(3, 4).swapaxes(0, 1),
    "transpose": lambda a: a.reshape(3, 2, 2).transpose(1, 2, 0),
    "moveaxis": lambda a: np.moveaxis(a.reshape(3, 2, 2), 0, 2),
    "real": lambda a: a.real,
    "imag": lambda a: a.imag,
    "view": lambda a: a.view(),
    "view dtype": lambda a: a.view("i8"),
    "view complex": lambda a: a.view(complex),
    "view subclass": _subclass,
    "matrix": np.asmatrix,
    "recarray": lambda a: a.view([("x", "f8")])["x"],
    "broadcast_to": lambda a: np.broadcast_to(a, (2, 12)),
    "broadcast_arrays": lambda a: np.broadcast_arrays(a, np.ones((2, 1)))[0],
    "np.broadcast": lambda a: list(np.broadcast(a, [[1], [2]])),
    "as_strided": lambda a: np.lib.stride_tricks.as_strided(
        a, (a.size // 4, 3), (8, 16)
    ),
    "sliding_window": lambda a: np.lib.stride_tricks.sliding_window_view(a, 3),
    "split": lambda a: np.split(a, 3)[1],
    "flip": np.flip,
    "roll": lambda a: np.roll(a, 2),
    "rot90": lambda a: np.rot90(a.reshape(3, 4)),
    "expand_dims": lambda a: np.expand_dims(a, 0),
    "atleast_2d": np.atleast_2d,
    "byteswap": lambda a: a.byteswap(),
    "newbyteorder": lambda a: a.view(a.dtype.newbyteorder()),
    "resize function": lambda a: np.resize(a, 20),
    "resize method": lambda a: (a.resize(20, refcheck=False), a)[1],
    # new arrays
    "asarray": np.asarray,
    "array": np.array,
    "array of list": lambda a: np.array([a, a]),
    "array of tuple": lambda a: np.array((1.0, *a)),
    "array of nested": lambda a: np.array([[a], [a + 1]]),
    "asarray dtype": lambda a: np.asarray(a, "f4"),
    "ascontiguousarray": np.ascontiguousarray,
    "asfortranarray": np.asfortranarray,
    "require": lambda a: np.require(a, "f8", "CAWO"),
    "asarray_chkfinite": np.asarray_chkfinite,
    "astype": lambda a: a.astype("f4"),
    "astype same": lambda a: a.astype(float, copy=False),
    "astype int": lambda a: a.astype(int),
    "astype str": lambda a: a.astype("U8"),
    "astype object": lambda a: a.astype(object),
    "astype bool": lambda a: a.astype(bool),
    "astype complex": lambda a: a.astype(complex),
    "astype datetime": lambda a: a.astype("i8").astype("M8[s]"),
    "astype void": lambda a: a.astype("V8").tobytes(),
    "astype structured": lambda a: a.astype([("x", "f4"), ("y", "i2")]).tolist(),
    "object array": lambda a: np.array([a, None], dtype=object)[0],
    "full_like": lambda a: np.full_like(a, a[3]),
    "full": lambda a: np.full((2, 12), a),
    "ones_like": np.ones_like,
    "zeros_like": np.zeros_like,
    "linspace": lambda a: np.linspace(a, a + 1, 3),
    "arange": lambda a: np.arange(*np.sort(a[:2])),
    "fromiter": lambda a: np.fromiter(a, float),
    "tile": lambda a: np.tile(a, 2),
    "repeat": lambda a: a.repeat(2),
    "repeat counts": lambda a: np.repeat(np.arange(12), abs(a).astype(int)),
    "concatenate": lambda a: np.concatenate([a, np.ones(2), a]),
    "concatenate cast": lambda a: np.concatenate(
        [a, [1]], dtype="f4", casting="same_kind"
    ),
    "concatenate None": lambda a: np.concatenate([a, a], axis=None),
    "stack": lambda a: np.stack([a, a], 1),
    "hstack": lambda a: np.hstack([a, a]),
    "vstack": lambda a: np.vstack([a, a]),
    "block": lambda a: np.block([[a], [a]]),
    "append": lambda a: np.append(a, 5),
    "insert": lambda a: np.insert(a, 2, 5),
    "delete": lambda a: np.delete(a, 2),
    "pad": lambda a: np.pad(a, 2, mode="reflect"),
    "r_": lambda a: np.r_[a, 1:3],
    "c_": lambda a: np.c_[a, a],
    "meshgrid": lambda a: np.meshgrid(a, a)[1],
    "ix_": lambda a: np.arange(100)[np.ix_(abs(a[:2]).astype(int))],
    "outer": lambda a: np.outer(a, a),
    "kron": lambda a: np.kron(a[:3], a[:2]),
    "diag": lambda a: np.diag(a[:3]),
    "vander": lambda a: np.vander(a[:3]),
    "tri": lambda a: np.tril(a[:9].reshape(3, 3)),
    "copyto": lambda a: (lambda d: (np.copyto(d, a), d)[1])(np.zeros(12)),
    "assign": lambda a: (lambda d: (d.__setitem__(..., a), d)[1])(np.zeros(12)),
    "assign broadcast": lambda a: (lambda d: (d.__setitem__(..., a), d)[1])(
        np.zeros((2, 12))
    ),
    "assign object": lambda a: (lambda d: (d.__setitem__(..., a), d)[1])(
        np.zeros(12, object)
    ),
    "assign string": lambda a: (lambda d: (d.__setitem__(..., a), d)[1])(
        np.zeros(12, "U5")
    ),
    "assign field": lambda a: (lambda d: (d.__setitem__("x", a), d.tolist())[1])(
        np.zeros(12, "f4, f8").astype([("w", "f4"), ("x", "f8")])
    ),
    "assign fancy": lambda a: (lambda d: (d.__setitem__(np.arange(12)[::-1], a), d)[1])(
        np.zeros(12)
    ),
    "assign mask": lambda a: (lambda d: (d.__setitem__(d == 0, a), d)[1])(np.zeros(12)),
    "assign flat": lambda a: (lambda d: (setattr(d, "flat", a), d)[1])(np.zeros(12)),
    "assign real": lambda a: (lambda d: (setattr(d, "real", a), d)[1])(
        np.zeros(12, complex)
    ),
    "assign from row": lambda a: (lambda d: (d.__setitem__(1, a), d)[1])(
        np.zeros((2, 12))
    ),
    "fill": lambda a: (lambda d: (d.fill(a[2]), d)[1])(np.zeros(3)),
    "put values": lambda a: (lambda d: (d.put([1, 2], a), d)[1])(np.zeros(4)),
    "put index": lambda a: (lambda d: (d.put(abs(a).astype(int), 1), d)[1])(
        np.zeros(50)
    ),
    "place": lambda a: (lambda d: (np.place(d, d == 0, a), d)[1])(np.zeros(4)),
    "putmask": lambda a: (lambda d: (np.putmask(d, a > 3, a), d)[1])(np.zeros(12)),
    # sorting and searching
    "sort": lambda a: (a.sort(), a)[1],
    "np.sort": lambda a: np.sort(a, kind="stable"),
    "argsort": lambda a: a.argsort(),
    "lexsort": lambda a: np.lexsort([a, -a]),
    "partition": lambda a: np.partition(a, 3)[3],
    "argpartition": lambda a: np.argpartition(a, 3)[3],
    "searchsorted in": lambda a: np.sort(a).searchsorted([2.0, 3.0]),
    "searchsorted for": lambda a: np.searchsorted(np.arange(12.0), a),
    "searchsorted sorter": lambda a: np.searchsorted(a, 3, sorter=np.argsort(a)),
    "argmax": lambda a: a.argmax(),
    "argmin": lambda a: a.reshape(3, 4).argmin(axis=1),
    "nonzero": lambda a: a.nonzero(),
    "argwhere": lambda a: np.argwhere(a > 3),
    "flatnonzero": lambda a: np.flatnonzero(a > 3),
    "count_nonzero": np.count_nonzero,
    "count_nonzero bool": lambda a: np.count_nonzero(a > 3),
    "where": lambda a: np.where(a > 3, a, -a),
    "where one": lambda a: np.where(a > 3)[0],
    "unique": lambda a: np.unique(a, return_counts=True),
    "isin": lambda a: np.isin(a, a[:3]),
    "intersect1d": lambda a: np.intersect1d(a, a[:5]),
    "digitize": lambda a: np.digitize(a, np.arange(5.0)),
    "bincount": lambda a: np.bincount(abs(a).astype(int)),
    "bincount weights": lambda a: np.bincount(np.arange(12) % 3, a),
    "histogram": lambda a: np.histogram(a, 4),
    "interp": lambda a: np.interp(a, np.arange(12.0), a),
    # reductions
    "sum": lambda a: a.sum(),
    "sum axis": lambda a: a.reshape(3, 4).sum(axis=0),
    "sum where": lambda a: a.sum(where=np.arange(12) % 2 == 0),
    "sum initial": lambda a: np.sum(a, initial=5),
    "sum dtype": lambda a: np.sum(a, dtype="f4"),
    "prod": lambda a: a.prod(),
    "mean": lambda a: a.mean(),
    "std": lambda a: a.std(),
    "var": lambda a: np.var(a, ddof=1),
    "min": lambda a: a.min(),
    "max": lambda a: a.max(),
    "ptp": np.ptp,
    "any": lambda a: (a > 3).any(),
    "all": lambda a: (a > -100).all(),
    "cumsum": lambda a: a.cumsum(),
    "cumprod": lambda a: a.cumprod(),
    "cumulative_sum": np.cumulative_sum,
    "diff": np.diff,
    "gradient": np.gradient,
    "trapezoid": np.trapezoid,
    "median": np.median,
    "percentile": lambda a: np.percentile(a, 30),
    "average": lambda a: np.average(a, weights=abs(a)),
    "nansum": np.nansum,
    "cov": lambda a: np.cov(a, a[::-1]),
    "trace": lambda a: a.reshape(3, 4).trace(),
    "clip": lambda a: a.clip(1, 4),
    "round": lambda a: a.round(1),
    "np.round": lambda a: np.round(a / 3, 2),
    "conj": lambda a: a.conj(),
    "reduce": lambda a: np.maximum.reduce(a),
    "reduce object": lambda a: np.add.reduce(a, dtype=object),
    "accumulate": lambda a: np.multiply.accumulate(a),
    "reduceat": lambda a: np.add.reduceat(a, [0, 3, 5]),
    "reduceat index": lambda a: np.add.reduceat(np.arange(99), abs(a).astype(int)),
    "ufunc.outer": lambda a: np.add.outer(a, a),
    "ufunc.at values": lambda a: (lambda d: (np.add.at(d, [0, 1] * 6, a), d)[1])(
        np.zeros(2)
    ),
    "ufunc.at index": lambda a: (lambda d: (np.add.at(d, abs(a).astype(int), 1), d)[1])(
        np.zeros(50)
    ),
    "ufunc.at target": lambda a: (np.add.at(a, [0, 0], 1), a)[1],
    "ufunc where": lambda a: np.add(a, 1, out=np.zeros(12), where=a > 3),
    "divmod": lambda a: np.divmod(a, 2),
    "modf": np.modf,
    "frexp": np.frexp,
    "frompyfunc": lambda a: np.frompyfunc(lambda x: x + 1, 1, 1)(a).tolist(),
    "vectorize": lambda a: np.vectorize(lambda x: x + 1)(a),
    "apply_along_axis": lambda a: np.apply_along_axis(sum, 0, a.reshape(3, 4)),
    "piecewise": lambda a: np.piecewise(a, [a > 3], [1, lambda x: -x]),
    # products and transforms
    "dot": lambda a: a.dot(a),
    "dot matrix": lambda a: a.reshape(3, 4).dot(a[:4]),
    "dot out": lambda a: np.dot(a.reshape(3, 4), a.reshape(4, 3), out=np.zeros((3, 3))),
    "matmul": lambda a: a.reshape(3, 4) @ a.reshape(4, 3),
    "rmatmul list": lambda a: [1.0] * 12 @ a,
    "vdot": lambda a: np.vdot(a, a),
    "inner": lambda a: np.inner(a, a),
    "tensordot": lambda a: np.tensordot(a, a, 1),
    "vecdot": lambda a: np.vecdot(a, a),
    "einsum": lambda a: np.einsum("i,i->", a, a),
    "einsum view": lambda a: np.einsum("ii->i", a[:9].reshape(3, 3)),
    "einsum optimize": lambda a: np.einsum(
        "i,j,ij->", a[:3], a[:3], a[:9].reshape(3, 3), optimize=True
    ),
    "cross": lambda a: np.cross(a[:3], a[3:6]),
    "convolve": lambda a: np.convolve(a, a[:3]),
    "correlate": lambda a: np.correlate(a, a[:3]),
    "polyval": lambda a: np.polyval(a[:3], a),
    "polyfit": lambda a: np.polyfit(np.arange(12.0), a, 2),
    "polynomial": lambda a: np.polynomial.Polynomial(a)(0.5),
    "fft": np.fft.fft,
    "rfft": np.fft.rfft,
    "fft2": lambda a: np.fft.fft2(a.reshape(3, 4)),
    "inv": lambda a: np.linalg.inv(square(a)),
    "solve": lambda a: np.linalg.solve(square(a), a[:3]),
    "det": lambda a: np.linalg.det(square(a)),
    "svd": lambda a: tuple(np.linalg.svd(square(a))),
    "eigh": lambda a: np.linalg.eigvalsh(square(a) + square(a).T),
    "lstsq": lambda a: np.linalg.lstsq(a.reshape(4, 3), a[:4])[0],
    "norm": np.linalg.norm,
    "matrix_power": lambda a: np.linalg.matrix_power(square(a), 3),
    "multi_dot": lambda a: np.linalg.multi_dot([square(a)] * 3),
    "cholesky": lambda a: np.linalg.cholesky(square(a) @ square(a).T),
    # random
    "rng.choice": lambda a: rng().choice(a, 3),
    "rng.choice p": lambda a: rng().choice(12, 3, p=abs(a) / abs(a).sum()),
    "rng.permutation": lambda a: rng().permutation(a),
    "rng.permuted": lambda a: rng().permuted(a),
    "rng.shuffle": lambda a: (rng().shuffle(a), a)[1],
    "rng.normal": lambda a: rng().normal(a, 1),
    "rng.poisson": lambda a: rng().poisson(abs(a)),
    "rng.integers": lambda a: rng().integers(0, abs(a).astype(int) + 1),
    "rng.multinomial": lambda a: rng().multinomial(5, abs(a) / abs(a).sum()),
    "rng.dirichlet": lambda a: rng().dirichlet(abs(a) + 1),
    "rng.multivariate": lambda a: rng().multivariate_normal(a[:2], np.eye(2)),
    "seed": lambda a: np.random.default_rng(abs(a).astype(int)).random(2),
    "legacy seed": lambda a: np.random.RandomState(abs(a).astype(int)).rand(2),
    "legacy normal": lambda a: np.random.RandomState(3).normal(a),
    "legacy shuffle": lambda a: (np.random.RandomState(3).shuffle(a), a)[1],
    # iteration
    "nditer": _nditer,
    "nditer external": lambda a: _nditer(a, ["external_loop"]),
    "nditer buffered": lambda a: _nditer(
        a, ["buffered", "external_loop"], op_dtypes=["f4"], casting="same_kind"
    ),
    "nditer two": lambda a: _nditer([a, a[::-1]]),
    "nditer operands": lambda a: np.nditer(a).operands[0],
    "nditer itviews": lambda a: np.nditer(a).itviews[0],
    "nditer write": lambda a: (
        [item.__setitem__(..., 1) for item in np.nditer(a, op_flags=["readwrite"])],
        a,
    )[1],
    "nested_iters": lambda a: [
        [float(y) for y in j]
        for i, j in [np.nested_iters(a.reshape(3, 4), [[0], [1]])]
        for _ in i
    ],
    "ndindex": lambda a: [a[i] for i in np.ndindex(a.shape)],
    "c iterator": lambda a: [next(a.flat) for _ in range(2)],
    # comparisons and tests
    "==": lambda a: (a == a).tolist(),
    "array_equal": lambda a: np.array_equal(a, a.copy()),
    "allclose": lambda a: np.allclose(a, a + 1e-12),
    "isclose": lambda a: np.isclose(a, a + 1e-12),
    "assert_array_equal": lambda a: np.testing.assert_array_equal(a, a.copy()),
    "assert_allclose": lambda a: np.testing.assert_allclose(a, a + 1e-12),
    "assert_equal fails": lambda a: _assert_raises(
        np.testing.assert_array_equal, a, a + 1
    ),
    "assert_array_less": lambda a: np.testing.assert_array_less(a, a + 1),
    "may_share_memory": lambda a: np.may_share_memory(a, a[2:]),
    "shares_memory": lambda a: np.shares_memory(a, a[2:]),
    "byte_bounds": lambda a: (lambda b: b[1] - b[0])(np.lib.array_utils.byte_bounds(a)),
    "can_cast": lambda a: np.can_cast(a.dtype, "f4"),
    "min_scalar_type": lambda a: np.min_scalar_type(a),
    "result_type": lambda a: np.result_type(a, 1),
    "common_type": lambda a: np.common_type(a),
    "isscalar": np.isscalar,
    "iscomplexobj": np.iscomplexobj,
    "isreal": np.isreal,
    "nan_to_num": np.nan_to_num,
    "real_if_close": np.real_if_close,
    "sizeof": lambda a: a.__sizeof__(),
    "hash": lambda a: hash(a.tobytes()),
    # other array types
    "masked array": lambda a: np.ma.masked_greater(a, 3).filled(-1),
    "masked sum": lambda a: np.ma.array(a, mask=a > 3).sum(),
    "masked from values": lambda a: np.ma.masked_invalid(a).sum(),
    "char": lambda a: np.char.add(a.astype("U4"), "x"),
    "strings": lambda a: np.strings.str_len(a.astype("U8")),
    "StringDType": lambda a: a.astype(np.dtypes.StringDType()).tolist(),
    "datetime": lambda a: np.datetime64("2000-01-01") + abs(a).astype("m8[D]"),
    "packbits": lambda a: np.packbits(a > 3),
    "unpackbits": lambda a: np.unpackbits(abs(a).astype("u1")),
    "unravel_index": lambda a: np.unravel_index(abs(a[:3]).astype(int), (9, 9)),
    "ravel_multi_index": lambda a: np.ravel_multi_index([[1, 2], [0, 1]], (3, 3)),
    "busday": lambda a: np.busday_count(
        "2000-01-03", (np.datetime64("2000-02-01") + abs(a).astype("m8[D]"))
    ),
    "rec.fromarrays": lambda a: np.rec.fromarrays([a, a])["f1"],
    "lookfor base": lambda a: a[2:].base is a,
}


def _single(a):
    return a[:1].reshape(())


#: For arrays of one element; their conversion to Python scalars reads them.
ONE = {
    "bool": bool,
    "if": lambda a: 1 if a else 2,
    "not": operator.not_,
    "item": lambda a: a.item(),
    "float of 0-d": lambda a: float(_single(a)),
    "int of 0-d": lambda a: int(_single(a)),
    "complex of 0-d": lambda a: complex(_single(a)),
    "index of 0-d": lambda a: operator.index(_single(a).astype(int)),
    "round of 0-d": lambda a: round(_single(a)[()]),
    "range": lambda a: list(range(_single(a).astype(int))),
    "string format": lambda a: f"{_single(a):.3f}",
    "percent format": lambda a: "%d" % _single(a),  # noqa: UP031
    "list index": lambda a: [1, 2, 3, 4, 5, 6, 7, 8, 9][_single(a).astype(int)],
    "bytes count": lambda a: bytes(_single(a).astype(int)),
    "divmod": lambda a: divmod(a, 2),
    "pow": lambda a: pow(a, 2),
    "squeeze": lambda a: a.squeeze(),
    "__complex__": lambda a: a.reshape(()).__complex__(),
}

#: What looks at the outside of an array only.
NOT_READERS = {
    "shape": lambda a: a.shape,
    "strides": lambda a: a.strides,
    "dtype": lambda a: a.dtype,
    "size": lambda a: a.size,
    "ndim": lambda a: a.ndim,
    "nbytes": lambda a: a.nbytes,
    "itemsize": lambda a: a.itemsize,
    "len": len,
    "id": lambda a: id(a) == id(a),
    "is": lambda a: a is a,
    "base": lambda a: a.base,
    "flags.deferred": lambda a: a.flags.deferred is not None,
    "flags.deferred_waswriteable": lambda a: a.flags.deferred_waswriteable,
    "flags.c_contiguous": lambda a: a.flags.c_contiguous,
    "np.shape": np.shape,
    "np.ndim": np.ndim,
    "np.result_type": lambda a: np.result_type(a, "f4"),
    "empty_like": lambda a: np.empty_like(a).shape,
    "zeros_like": np.zeros_like,
    "isinstance": lambda a: isinstance(a, np.ndarray),
    "operand": lambda a: (a + 1).shape,
    "iscomplexobj": np.iscomplexobj,
}
