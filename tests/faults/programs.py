"""
Programs that reach every public function and every family of hooks.

Each is given a World and returns what can be compared.
"""

import copy
import io
import pickle
import warnings

import numpy as np

from helpers.unseen import write

PROGRAMS = {}
#: The names of the arrays that a program may change.
WRITES = {}
#: Programs that set context variables: CPython crashes there, or never ends,
#: when one allocation after the other fails.
CONTEXTUAL = set()


def program(*, writes=(), contextual=False):
    def add(function):
        name = function.__name__
        PROGRAMS[name] = function
        WRITES[name] = frozenset(writes)
        if contextual:
            CONTEXTUAL.add(name)
        return function

    return add


# ---- capture ----


@program()
def capture_in_place(w):
    x = w.a * w.b
    x += w.a
    y = x - 1
    x *= y
    z = w.m * w.row
    np.add(z * z, z, out=z)
    return x, y, z


@program()
def capture(w):
    return w.a + w.b, -w.c, w.a < w.d


@program()
def capture_scalars(w):
    return w.a * 2, 2.5 - w.f, w.a + np.float32(3), w.i * np.array(2, np.int8)


@program()
def capture_broadcast(w):
    return w.m * w.row, w.row - w.fortran, w.a[:, np.newaxis] + w.row


@program()
def capture_casts(w):
    return w.f + w.a, w.i + w.f, w.h * w.i, w.i > w.f


@program()
def capture_where(w):
    return (
        np.where(w.a > w.b, w.a * w.b, w.c),
        np.where(w.a, w.f, 2) + np.where(w.i, w.i, np.float32(1)),
        np.where(w.m > 3, w.row, w.fortran),
        np.where(w.a > 3, w.u, True),
    )


@program()
def capture_expression(w):
    return (w.a * w.b + w.c) / (w.a - w.d + 1), w.t * 2 + w.p


@program()
def capture_two_outputs(w):
    q, r = np.divmod(w.p, w.b)
    mantissa, exponent = np.frexp(w.fortran * w.row)
    return q * w.b + r, r, mantissa, exponent + 1, np.modf(w.q)[1], *np.modf(w.f + w.i)


@program(contextual=True)
def capture_two_outputs_and_report(w):
    with np.errstate(all="call", call=lambda *args: None):
        q, r = np.divmod(w.a, w.z)
        return np.signbit(r).sum(), q


@program()
def capture_dtype_and_order(w):
    return np.add(w.a, w.b, dtype="f4"), np.add(w.m, w.fortran, order="F")


@program()
def capture_beyond_the_bounds(w):
    x = w.a
    for _ in range(66):
        x = x * 0.5 + w.b
    return x


@program()
def capture_many_operands(w):
    x = w.d
    for k in range(40):
        x = x + w.wide[k : k + x.size]
    return x


@program()
def decline(w):
    return (
        np.power(w.i, w.i % 3),
        np.add(w.p, w.c, where=w.a > 3, out=w.d.copy()),
        np.modf(w.p, out=(w.d.copy(), None)),
        np.vecdot(w.q, w.b),
    )


@program()
def decline_subclasses(w):
    return w.a.view(np.matrix) + w.q, np.ma.masked_array(w.t).sum()


# ---- calculate ----


@program()
def calculate(w):
    np.deferred.calculate(w.t, w.p)
    return w.t


@program()
def calculate_all(w):
    np.deferred.calculate_all()
    return w.t, w.sums


@program()
def calculate_alone(w):
    return np.negative(w.h)[::2], np.sqrt(w.backwards).sum(), w.halves[0]


@program()
def calculate_iterated(w):
    return (w.u * 2 + w.backwards).sum(), (w.m + w.fortran * w.row).sum()


@program()
def calculate_large(w):
    x = np.ones(40_000)
    y = x * 3 + x
    return y.sum(), y


@program()
def reduce_large(w):
    """In several threads where there are, with a cast, and along an axis."""
    x = np.ones(140_000)
    square = x.reshape(140, 1000)
    return (x * 3 + x).sum(), (x * 2 > 1).sum(), (square * 3 + square).max(axis=0)


@program()
def reduce_twice(w):
    x = w.m * w.row
    return x.mean(axis=0), x.sum(), np.fmax.reduce(w.h * 2, initial=None)


# ---- read ----


@program()
def read_items(w):
    return w.p[0], w.t[3:5], w.q.item(7), w.sums[w.i[:3]], w.p[w.a > 299]


@program()
def read_all(w):
    return w.q.tobytes(), w.few.tolist(), list(w.sums[:2, 0]), bytes(w.halves.data)[:4]


@program()
def read_views(w):
    return w.p.reshape(30, 10), w.sums.T, w.q.view("i8"), w.t.real, w.square.ravel()


@program()
def read_copies(w):
    return w.p.copy(), copy.copy(w.q), w.t.astype("f4"), np.array(w.sums, order="F")


@program()
def read_pickle(w):
    return pickle.loads(pickle.dumps(w.t, 5))


@program()
def read_deepcopy(w):
    return copy.deepcopy(w.sums)


@program()
def read_file(w):
    file = io.BytesIO()
    np.save(file, w.t)
    return file.getvalue()


@program(contextual=True)
def read_text(w):
    return repr(w.few)


@program()
def read_buffer(w):
    return memoryview(w.p).nbytes, np.asarray(w.square), bytes(w.few.data)


@program()
def read_interface(w):
    return w.q.__array_interface__["shape"], w.sums.ctypes.data % 8


@program()
def read_dlpack(w):
    return np.from_dlpack(w.t)


@program()
def read_reductions(w):
    return w.p.sum(), w.sums.mean(axis=0), np.maximum.reduce(w.q), w.t.argmax()


@program()
def read_accumulations(w):
    return (
        np.add.accumulate(w.p),
        np.add.reduceat(w.q, [0, 7]),
        np.multiply.outer(w.t[:3], w.row),
        w.sums.cumsum(axis=1),
    )


@program()
def read_functions(w):
    return (
        np.concatenate([w.p, w.q]),
        np.where(w.a > 3, w.t, w.p),
        np.einsum("ij->j", w.sums),
        w.sums @ w.row,
        np.sort(w.t)[:3],
        np.take(w.square, [1, 2]),
    )


@program()
def read_iterators(w):
    with np.nditer([w.p, w.q, None], ["external_loop", "buffered"]) as it:
        for x, y, z in it:
            np.add(x, y, out=z)
        total = it.operands[2]
    return total, w.t.flat[:2], list(w.few.flat)


@program(contextual=True)
def read_comparison(w):
    return bool((w.t == w.t).all()), np.allclose(w.sums, w.m), np.any(w.p > w.q)


# ---- fuse ----


@program(writes={"d"})
def fuse_out(w):
    return np.add(w.p, w.c, out=w.d)


@program(writes={"f"})
def fuse_out_cast(w):
    return np.add(w.q, w.t, out=w.f, casting="same_kind")


@program(writes={"a"})
def fuse_in_place(w):
    w.a += w.q


@program(writes={"wide"})
def fuse_overlap(w):
    w.wide[1:] += w.wide[:-1] * 2


@program(writes={"d"})
def fuse_assignment(w):
    w.d[...] = w.t


@program(writes={"f", "wide"})
def fuse_assignment_cast(w):
    w.f[...] = w.q
    w.wide[::2] = w.f * 3


@program(writes={"u", "fortran"})
def fuse_assignment_elsewhere(w):
    w.u[...] = w.t
    w.fortran[...] = w.sums


@program(writes={"c", "m"})
def fuse_copyto(w):
    np.copyto(w.c, w.p, where=w.a > 3)
    np.copyto(w.m, w.row * 2)


@program(writes={"d"})
def fuse_half_precision(w):
    w.d[...] = np.sqrt(w.h)[::1] + np.negative(w.h)


# ---- write to operands ----


@program(writes={"a"})
def flush_item(w):
    w.a[0] = 100


@program(writes={"a", "m", "b", "c"})
def flush_methods(w):
    w.a.fill(1)
    w.m.sort(axis=0)
    w.b.put([0, 1], 5)
    np.put(w.c, 3, 2)


@program(writes={"a", "h"})
def flush_through_views(w):
    w.a[1:][::2][0] = 5
    w.h.view(np.uint16)[:4] = 0


@program(writes={"a", "m", "c"})
def flush_by_ufunc(w):
    np.add(w.b, 1, out=w.a)
    np.add.at(w.m, ([0, 1], [1, 2]), 1)
    np.cumsum(w.b, out=w.c)


@program(writes={"b"})
def flush_flags(w):
    w.b.flags.writeable = False
    w.b.setflags(write=True)
    return w.a.flags.writeable, w.p.flags.writeable


@program(writes={"c", "m"})
def flush_metadata(w):
    w.c.shape = (30, 10)
    w.m.dtype = np.int64


@program(writes={"c"})
def flush_resize(w):
    w.c.resize(10, refcheck=False)


@program(writes={"a"})
def expose(w):
    memoryview(w.a)[0] = 7
    address = w.b.__array_interface__["data"][0]
    return w.a + 1, w.b * 2, address > 0


# ---- states ----


@program(contextual=True)
def states(w):
    previous = np.setdeferred(False)
    try:
        x = w.p * w.a
    finally:
        np.setdeferred(previous)
    with np.deferredstate(None), np.errstate(all="ignore"):
        y = w.a * w.b
    return x, y, np.getdeferred() is previous


@program(contextual=True)
def scopes(w):
    np.begin_defer()
    try:
        x = w.a * w.b
    finally:
        np.end_defer()
    with np.deferral():
        y = x + w.c
    return x, y, x.flags.deferred, y.flags.deferred


@program()
def introspection(w):
    np.deferred.stats()
    np.getdeferred()
    return np.deferred.usage_count(w.a) >= 0, w.p.flags.deferred in (True, False)


@program()
def memory_limit(w):
    previous = np.deferred.get_memory_limit()
    np.deferred.set_memory_limit(0)
    try:
        # Nobody else refers to the operands, so the limit has their readers
        # calculated.
        return [w.a.copy() * w.b for _ in range(3)] and None
    finally:
        np.deferred.set_memory_limit(previous)


@program()
def cache_limit(w):
    previous = np.deferred.get_cache_limit()
    np.deferred.set_cache_limit(0)
    try:
        return w.p * 2 + w.q
    finally:
        np.deferred.set_cache_limit(previous)


@program()
def num_threads(w):
    previous = np.deferred.get_num_threads()
    np.deferred.set_num_threads(3)
    try:
        return w.p * 2 + w.q
    finally:
        np.deferred.set_num_threads(previous)


@program()
def explain(w):
    text = str(np.deferred.explain(w.p * 2 + w.q))
    return text and np.deferred.Explanation(w.m + w.row).dot() and None


@program()
def protected(w):
    """Views of one memory are operands, and it is written to unseen."""
    previous = np.deferred.get_protect_limit()
    np.deferred.set_protect_limit(0)
    try:
        a = w.a.copy()
        x, y = a[::2] * a[1::2], a + w.b
        write(a, 0, -1.0)
        return x, y + 1
    finally:
        np.deferred.set_protect_limit(previous)


@program(contextual=True)
def error_state_changes(w):
    x = w.t * 2
    with np.errstate(over="call", call=lambda *_: None):
        y = x + w.p
    return x, y, np.geterr()["over"], np.getbufsize()


# ---- floating-point errors ----


@program(contextual=True)
def errors_ignored(w):
    with np.errstate(all="ignore"):
        return (w.a / w.z).tobytes()


@program()
def profile(w):
    """What the profile cannot note for want of memory it leaves out."""
    with np.deferred.profile() as p:
        x = (w.a + w.b) * w.a
        y = np.add(w.a, 1, out=np.empty_like(w.a))
        x.tobytes()
    assert all(isinstance(event, np.deferred.Calculation) for event in p.events)
    return x, y


@program()
def threads_of_threadpoolctl(w):
    np.deferred.register_threadpoolctl()
    return (w.a + w.b,)


@program()
def progress(w):
    class Log:
        fileno = staticmethod(lambda: 2)

    with np.deferred.progress(1e6, Log()):
        x = (w.a + w.b) * w.a
        x.tobytes()
    return x


@program(contextual=True)
def errors_warn(w):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with np.errstate(all="warn"):
            x = w.a / w.z
            x.tobytes()
    return x, sorted(str(warning.message) for warning in caught)


@program(contextual=True)
def errors_raise(w):
    with np.errstate(all="raise"):
        x = None
        try:
            x = w.a / w.z
            x.tobytes()
        except FloatingPointError as error:
            text = str(error)
        finally:
            # Or the end of the block would raise that instead of a MemoryError.
            del x
    return text


@program(contextual=True)
def errors_call(w):
    seen = []
    with np.errstate(all="call", call=lambda *args: seen.append(args)):
        x = w.a / w.z + 1
        x.tobytes()
    return x, seen


class Log:
    def __init__(self):
        self.lines = []

    def write(self, line):
        self.lines.append(line)


@program(contextual=True)
def errors_log(w):
    log = Log()
    with np.errstate(all="log", call=log):
        x = w.a / w.z
        x.tobytes()
    return x, log.lines


@program(contextual=True)
def errors_of_casts(w):
    with np.errstate(all="call", call=lambda *_: None):
        x = (w.a * 1e300).astype("f4")
        w_f = np.empty(w.a.shape, "f4")
        w_f[...] = w.a * 1e300
    return x, w_f
