"""
What a program under fault injection works on, and what must always hold of it.

A World has operands of all kinds and, with deferral on, pending arrays over
them.  Whatever fails, an array of PENDING is either still pending and counted
as a reader of its operands, or it has its values.
"""

import numpy as np

#: More elements than fit NumPy's caches of small blocks.
N = 300
#: Each pending array: the ufunc, and the names of its operands.
PENDING = {
    "p": (np.multiply, "a", "b"),
    "q": (np.add, "p", "c"),
    "s": (np.multiply, "q", "a"),
    "t": (np.subtract, "s", "q"),
    "sums": (np.add, "m", "row"),
    "halves": (np.sqrt, "h"),
    "square": (np.multiply, "m", "m"),
    "few": (np.add, "row", "row"),
}


def unaligned(values):
    room = np.zeros(values.nbytes + 1, np.uint8)
    view = room[1:].view(values.dtype)
    view[...] = values
    return view


class World:
    """Arrays as attributes; those of PENDING are deferred where deferral is on."""

    def __init__(self):
        with np.deferredstate(False):
            self.a = np.arange(1.0, N + 1)
            self.b = np.linspace(2, 3, N)
            self.c = np.full(N, 0.25)
            self.d = np.zeros(N)
            self.f = np.arange(N, dtype=np.float32)
            self.h = np.arange(N).astype(np.float16)
            self.i = np.arange(N)
            self.z = np.arange(N) % 3 - 1.0
            self.u = unaligned(self.a)
            self.wide = np.arange(2.0 * N)
            self.backwards = np.arange(2.0 * N)[::-2]
            self.m = np.arange(N * 4.0).reshape(N, 4).copy()
            self.fortran = np.asfortranarray(self.m)
            self.row = np.arange(4.0)
        self._writeable = {name: x.flags.writeable for name, x in self.arrays()}
        for name, (ufunc, *operands) in PENDING.items():
            setattr(self, name, ufunc(*(getattr(self, x) for x in operands)))
        self._before = self.seen()

    def arrays(self):
        return [(name, x) for name, x in vars(self).items() if name[0] != "_"]

    def seen(self):
        """What can be seen of the regular arrays; calculates nothing."""
        return {
            name: (x.dtype, x.shape, x.strides, x.tobytes())
            for name, x in self.arrays()
            if not x.flags.deferred
        }

    def problems(self, written, after):
        """
        What is not as it was; `written` names the arrays that the program may
        have changed, to what they are in `after`.
        """
        pending = {name for name, x in self.arrays() if x.flags.deferred}
        if np.deferred.stats()["pending"] != len(pending):
            yield f"{np.deferred.stats()['pending']} pending, not {sorted(pending)}"
        readers = [x for name in pending for x in PENDING[name][1:]]
        for name, x in self.arrays():
            count = np.deferred.usage_count(x)
            if count != readers.count(name):
                yield f"{name} is used {count} times, not {readers.count(name)}"
            writeable = self._writeable.get(name, True)
            if x.flags.deferred_waswriteable != (count > 0 and writeable):
                yield f"{name} has WASWRITEABLE {x.flags.deferred_waswriteable}"
        for name, seen in self.seen().items():
            allowed = [after[name]] if name in PENDING else [self._before[name]]
            if name in written:
                allowed.append(after[name])
            if seen not in allowed:
                yield f"{name} has changed"
