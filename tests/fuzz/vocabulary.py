"""
What programs are made of: ufuncs, scalars, dtypes, shapes, and templates.

In templates, {0} to {2} are arrays; {e} is an expression of the shape of {0},
{m} a mask of it, {v} an expression of one element, {s} a scalar, {t} a dtype.
"""

import operator

import numpy as np

UFUNCS = {
    name: ufunc
    for name, ufunc in sorted(vars(np).items())
    if isinstance(ufunc, np.ufunc) and ufunc.signature is None
    if ufunc.__name__ == name
}
UNARY = [name for name, ufunc in UFUNCS.items() if (ufunc.nin, ufunc.nout) == (1, 1)]
BINARY = [name for name, ufunc in UFUNCS.items() if (ufunc.nin, ufunc.nout) == (2, 1)]
TWO_RESULTS = [name for name, ufunc in UFUNCS.items() if ufunc.nout == 2]
#: Those that are defined for most dtypes come more often.
COMMON_BINARY = ["add", "subtract", "multiply", "divide", "maximum", "fmin"]
COMMON_UNARY = ["negative", "absolute", "sqrt", "square", "sign", "exp", "floor"]
OPERATORS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
    "<": operator.lt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "&": operator.and_,
    "|": operator.or_,
    "^": operator.xor,
    "<<": operator.lshift,
    ">>": operator.rshift,
}
ELEMENTWISE = [
    "np.where({0} > 0, {1}, {2})",
    "np.where({0}, {1}, {2})",
    "np.clip({0}, -2, 3)",
    "np.clip({0}, {1}, {2})",
    "{0}.clip(0, {1})",
    "{0}.conj()",
    "np.round({0}, 1)",
    "np.nan_to_num({0})",
    "np.isclose({0}, {1})",
    "np.select([{0} > 1, {1} > 1], [{1}, {2}], 0)",
    "np.copy({0})",
    "np.heaviside({0}, {1})",
    "np.real({0})",
    "np.imag({0})",
    "np.sinc({0})",
    "np.positive({0})",
]
SCALARS = [
    *("0", "1", "-1", "2", "3", "7", "0.5", "-3.0", "1e300", "True", "1j", "(2-1j)"),
    *("np.float32(2)", "np.int64(3)", "np.float64(0)", "np.uint8(200)", "np.nan"),
    *("np.int8(-1)", "np.array(1.5)", "np.float16(3)", "np.longdouble(1) / 3"),
    *("np.complex64(1j)", "np.inf", "np.array(2, 'i2')", "-0.0", "np.bool(1)"),
]
DTYPES = list("?bBhHiIlLqQefdgFDG")
ODD_DTYPES = [">f8", ">i4", ">f4", ">c16", ">u2", ">f2", "m8[s]", "M8[s]", "O"]
COMMON_DTYPES = ["d", "d", "d", "f", "f", "e", "l", "i", "?", "D"]
SHAPES = [
    *[(6,), (4, 6), (3, 4), (4, 3), (1,), (12,), (2, 3, 4), (1, 6), (4, 1), (6, 6), ()],
    *[(12,), (6,), (4, 6), (0,), (3, 0), (1, 1), (5,), (2, 1, 6), (4, 1, 6), (130,)],
]
LARGE_SHAPES = [
    *[(9000,), (100, 120), (40000,), (200, 210), (3, 5000), (70000,)],
    *[(1033,), (4099,), (8197,), (2731, 3)],  # the end of a loop is short
]
LAYOUTS = [
    "values({dtype!r}, {n}, {k}).reshape({shape}).copy()",
    "np.array(values({dtype!r}, {n}, {k}).reshape({shape}), order='F')",
    "values({dtype!r}, {n2}, {k})[::2].reshape({shape}).copy()",
    "np.repeat(values({dtype!r}, {n}, {k}), 2)[::2].reshape({shape})",
    "values({dtype!r}, {n}, {k}).reshape({shape})",
    "values({dtype!r}, {n}, {k})[::-1].copy()[::-1].reshape({shape})",
    "values({dtype!r}, {n}, {k}).copy().reshape({reverse}).T",
    "values({dtype!r}, {n}, {k}).reshape({shape}).copy()[..., ::-1]",
    "np.tile(values({dtype!r}, {n}, {k}).reshape({shape}), 2)[..., ::2]",
    "np.tile(values({dtype!r}, {n}, {k}).reshape({shape}), 2)[..., ::-2]",
    "np.concatenate([values({dtype!r}, {n}, {k})] * 2)[1:{n}+1].reshape({shape})",
    (
        "np.frombuffer(b'x' + values({dtype!r}, {n}, {k}).tobytes(), {dtype!r}, "
        "offset=1).reshape({shape})"
    ),
    (
        "np.concatenate([np.zeros(1, 'B'), values({dtype!r}, {n}, {k}).copy()"
        ".view('B')])[1:].view({dtype!r}).reshape({shape})"
    ),
    (
        "values({dtype!r}, {n}, {k}).reshape({shape})"
        ".astype(np.dtype({dtype!r}).newbyteorder())"
    ),
    "np.broadcast_to(values({dtype!r}, {last}, {k}), {shape})",
    "np.broadcast_to(values({dtype!r}, 1, {k}), {shape})",
    (
        "np.lib.stride_tricks.as_strided(values({dtype!r}, {n}, {k}).copy(), "
        "({n} // 2, 2), ({size}, {size}))"
    ),
    "np.frombuffer(bytearray(values({dtype!r}, {n}, {k}).tobytes()), {dtype!r})",
    "np.asfortranarray(values({dtype!r}, {n}, {k}).reshape({shape}))[::-1]",
    # Many NaNs of one sign, or the other.
    (
        "np.where(np.arange({n}) % 5 < 3, [np.nan, -np.nan][{k} % 2], "
        "values({dtype!r}, {n}, {k})).astype({dtype!r}).reshape({shape})"
    ),
]
#: Plain ones are what most operations are about.
LAYOUT_WEIGHTS = [12, 4, 2, 3, 1, 2, 4, 3, 3, 2, 2, 1, 2, 2, 2, 1, 1, 1, 2, 2]
VIEWS = [
    *("{0}[:]", "{0}[::2]", "{0}[::-1]", "{0}[1:]", "{0}[:-1]", "{0}[1:-1]", "{0}.T"),
    *("{0}[..., None]", "{0}[None]", "{0}[..., 0]", "{0}[0]", "{0}[-1]", "{0}[...]"),
    *("{0}[..., ::-2]", "{0}[..., 1:]", "{0}[()]", "{0}.reshape(-1)", "{0}.ravel()"),
    *("{0}.ravel('K')", "{0}.ravel('F')", "{0}.reshape({0}.shape[::-1])", "{0}.view()"),
    *("{0}.swapaxes(0, -1)", "np.broadcast_to({0}, (2, *{0}.shape))", "{0}.real"),
    *("{0}.imag", "{0}.squeeze()", "np.moveaxis({0}, 0, -1)", "{0}.diagonal()"),
    *("np.expand_dims({0}, 0)", "np.einsum('ii->i', {0})", "np.flip({0})"),
    *("np.lib.stride_tricks.sliding_window_view({0}, 2, 0)", "np.split({0}, 2)[1]"),
    *("np.lib.stride_tricks.sliding_window_view({0}, 2, 0, writeable=True)",),
    *("np.rot90({0})", "np.asarray({0})", "np.atleast_2d({0})", "np.require({0})"),
    *("np.broadcast_to({0}[..., :1], {0}.shape)", "{0}[2:5]", "{0}[..., 1:3]"),
    *("{0}.transpose()", "{0}[0:1]", "np.array({0}, copy=None)", "{0}.base[...]"),
    *("{0}.reshape(2, -1)", "{0}.reshape(-1, 1)", "{0}[:, ::2]", "{0}[::2, ::-1]"),
]
#: Not of long doubles, which have padding.
BYTE_VIEWS = [
    *("{0}.view('u1')", "{0}.view('i4')", "{0}.view({0}.dtype.newbyteorder())"),
    *(
        "{0}.view([('x', {0}.dtype)])['x']",
        "np.asarray(memoryview({0}))",
        "{0}.view('l')",
    ),
    *("np.ndarray({0}.shape, {0}.dtype, {0})", "np.from_dlpack({0})", "{0}.view('d')"),
    *("np.frombuffer({0}, {0}.dtype)", "{0}.getfield('u1', 0)", "{0}.view('f')"),
    *("np.frombuffer(bytearray({0}), {0}.dtype)", "{0}.view(np.matrix)"),
    *("np.ma.array({0}, copy=False)", "np.frombuffer({0}.tobytes(), {0}.dtype)"),
    *("memoryview({0})", "{0}.flat", "np.asarray(memoryview({0}).toreadonly())"),
]
COPIES = [
    *(
        "{0}.copy()",
        "{0}.copy('K')",
        "{0}.astype({t!r})",
        "{0}.astype({t!r}, order='F')",
    ),
    *("pickle.loads(pickle.dumps({0}))", "copy.deepcopy({0})", "copy.copy({0})"),
    *("np.array({0})", "np.array({0}, order='F')", "{0}.flatten()", "+{0}"),
    *("np.concatenate([{0}, {0}])", "np.stack([{0}, {0}])", "{0}[[0, -1, 0]]"),
    *("{0}[{0} > 1]", "{0}.repeat(2, 0)", "np.take({0}, [0, 0], 0)", "np.roll({0}, 1)"),
    *("np.sort({0}, None)", "np.tile({0}, 2)", "{0}.astype({t!r}, copy=False)"),
    *(
        "np.pad({0}, 1)",
        "np.diff({0})",
        "np.cumsum({0})",
        "{0}.cumsum(0)",
        "{0}.byteswap()",
    ),
    *(
        "np.dot({0}, {0})",
        "{0} @ {0}.T",
        "np.matmul({0}, {0})",
        "np.einsum('...i->...', {0})",
    ),
    *("np.outer({0}, {0}[:1])", "np.linalg.norm({0})", "np.array({0}.tolist())"),
    *("np.asarray({0}, {t!r})", "np.array({0}, {t!r})", "np.ascontiguousarray({0})"),
    *("np.add.outer({0}[:1], {0})", "np.trapezoid({0})", "np.gradient({0})"),
    *(
        "np.zeros_like({0})",
        "np.ones_like({0})",
        "np.full_like({0}, 3)",
        "np.interp({0}, [0, 1], [1, 2])",
    ),
    *("np.triu({0})", "np.meshgrid({0}, {0})[0]"),
    *(
        "np.vdot({0}, {0})",
        "np.inner({0}, {0})",
        "np.tensordot({0}, {0}, 1)",
        "np.fft.fft({0})",
    ),
    *("np.apply_along_axis(np.sum, 0, {0})", "np.vectorize(lambda x: x + 1)({0})"),
    *("np.frompyfunc(lambda x: x, 1, 1)({0})", "np.unique({0})", "np.append({0}, {0})"),
]
READS = [
    *("{0}.tolist()", "{0}.sum()", "np.sort({0}, axis=None)", "{0}.argmax()", "{0}[0]"),
    *("repr({0})", "str({0})", "{0}.copy()", "{0}.nonzero()", "np.argwhere({0})"),
    *(
        "({0}.shape, {0}.strides, {0}.dtype)",
        "{0}.mean(axis=0)",
        "{0}.max()",
        "{0}.min(0)",
    ),
    *("list({0})", "{0}.item(0)", "{0}.flags.writeable", "np.count_nonzero({0})"),
    *("[x for x in {0}.flat]", "{0}.prod()", "{0}.any()", "{0}.all(0)", "{0}.std()"),
    *("np.median({0})", "np.array_equal({0}, {0})", "{0}.argsort()", "bool({0}.any())"),
    *(
        "float({0}.ravel()[0])",
        "len({0})",
        "{0}.base is None",
        "np.shares_memory({0}, {0})",
    ),
    *(
        "{0}.ptp() if hasattr({0}, 'ptp') else 0",
        "0 in {0}",
        "np.ptp({0})",
        "{0}.searchsorted(1)",
    ),
    *(
        "{0}.flags.c_contiguous, {0}.flags.f_contiguous, {0}.flags.owndata",
        "{0}.nbytes",
    ),
    *("sum({0}.ravel())", "[x.copy() for x in np.nditer({0})]", "np.histogram({0}, 3)"),
    *("[x.copy() for x in np.nditer({0}, ['external_loop', 'buffered'], order='C')]",),
    *(
        "np.array_str({0})",
        "{0}.var()",
        "np.average({0})",
        "{0}.trace()",
        "np.allclose({0}, {0})",
    ),
    *("np.sum({0} > 1)", "np.mean({0} != {0}[::-1])", "np.nansum({0})"),
    *("np.sum({0} < 2, axis=0, dtype='f4')", "np.nanprod({0}, 0)", "np.nanmean({0})"),
]
BYTE_READS = [
    *("{0}.tobytes()", "memoryview({0}).tolist()", "bytes({0})", "{0}.tobytes('F')"),
    *("hash({0}.tobytes())", "{0}.dumps()", "bytearray({0})", "{0}.view('u1').sum()"),
    *("(lambda f: (np.save(f, {0}), f.getvalue()))(io.BytesIO())[1]",),
]
#: Values from the name of a writable array, an index, and an expression.
WRITES = [
    *("{0}.fill({s})", "np.copyto({0}, {e})", "np.copyto({0}, {e}, casting='unsafe')"),
    *("np.copyto({0}, {e}, casting='unsafe', where={m})", "{0}.put([0, -1], {s})"),
    *(
        "np.put({0}, [0, 1], {e})",
        "np.putmask({0}, {m}, {e})",
        "np.place({0}, {m}, {v})",
    ),
    *("{0}.sort()", "{0}.sort(0)", "{0}.partition(1)", "{0}.byteswap(inplace=True)"),
    *(
        "{0}.setfield({s}, 'u1', 0)",
        "{0}.real = {e}",
        "{0}.imag = {s}",
        "{0}.flat = {v}",
    ),
    *("{0}.flat[1] = {s}", "{0}.flat[1:3] = {s}", "{0}.flat[[0, -1]] = {s}"),
    *("np.random.default_rng(3).shuffle({0})", "np.fill_diagonal({0}, {s})"),
    *(
        "np.clip({0}, 0, 2, out={0})",
        "np.round({0}, 1, out={0})",
        "np.cumsum({0}, 0, out={0})",
    ),
    *(
        "np.take({e}, [0], out={0}[:1], mode='clip')",
        "np.choose({m}, [{0}, {e}], out={0})",
    ),
    *(
        "np.add.at({0}, [0, 0], {s})",
        "np.multiply.at({0}, 0, {s})",
        "np.negative.at({0}, [0])",
    ),
    # [:] as stock NumPy 2.4.6 crashes where there is no dimension.
    *("np.add.reduce({e}, 0, out={0}[0])", "np.add.accumulate({e}, 0, out={0}[:])"),
    *("np.maximum.reduce({e}, -1, out={0}[..., 0])", "np.mean({e}, 0, out={0}[0])"),
    *("{0}.resize({0}.size + 2)", "{0}.shape = -1", "{0}.setflags(write=False)"),
    *(
        "np.matmul({e}, {e}.T, out={0})",
        "np.dot({e}, {e}, out={0})",
        "memoryview({0})[0] = {s}",
    ),
    *("np.concatenate([{0}[1:], {0}[:1]], out={0})", "np.nan_to_num({0}, copy=False)"),
    *(
        "np.modf({e}, {0}, np.zeros_like({0}))",
        "np.divmod({e}, 2, out=({0}, {0}.copy()))",
    ),
    *(
        "np.put_along_axis({0}, np.array([0]), {s}, None)",
        "np.einsum('...->...', {e}, out={0})",
    ),
    *(
        "np.frompyfunc(lambda x: x, 1, 1)({0}, out={0}, casting='unsafe')",
        "{0}[...] = {0}[::-1]",
    ),
    *(
        "{0}[1:] = {0}[:-1]",
        "{0}[1:] += {0}[:-1]",
        "{0}[::-1] -= {0}",
        "{0}[...] = {0}.T",
    ),
    *(
        "{0}[1:] = {0}[:-1] * 2 + {0}[1:]",
        "{0}[...] = {0} * 2 + {0}[::-1]",
        "{0} += {0}.T",
    ),
    *(
        "{0}[:-1] = ({0}[1:] + {0}[:-1]) / 2",
        "{0}[::2] = {0}[1::2] * {s}",
        "{0}[0] = {0}[-1] + {0}[1]",
    ),
    *(
        # An expression is fused with an output that overlaps another operand.
        "np.subtract({0}[::-1], {e}, out={0}, casting='unsafe')",
        "np.add({0}[:-1], {e}, out={0}[1:], casting='unsafe')",
        "np.multiply({e}, {0}.T, out={0}, casting='unsafe')",
        "np.maximum({e}, {0}[..., ::-1], out={0}, casting='unsafe')",
    ),
    *(
        "{0}[{0} > 0] = {s}",
        "{0}[{0} != {0}] = {s}",
        "np.copyto({0}, {s}, where={0} < 1)",
        "np.copyto({0}, {0}[::-1] * 2, where={m}, casting='unsafe')",
    ),
    *(
        "{0}.view('u1')[0] = 3",
        "{0}.T[...] = {e}.T",
        "{0}.ravel()[1] = {s}",
        "{0}[...].fill({s})",
    ),
]
NDITER_WRITE = [
    "with np.nditer({0}, {flags}, ['readwrite']) as v_it:",
    "    for v_item in v_it:",
    "        v_item[...] = v_item * 2",
    "del v_it, v_item",
]
