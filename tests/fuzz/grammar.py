"""
Random programs, written while they run: the generator executes every statement
(eagerly), so that it knows which arrays there are, and what can be done to them.

A program is a tree of statements; the source is what it means.  What is sound
depends on the error state that a statement is written under, its *mode*:

quiet    Floating-point errors are ignored.  Everything goes.
report   Errors are warned of, printed, logged, or passed to a handler.  Nothing
         may be dropped before it is calculated, as it would report nothing: names
         are bound once, and not deleted.
raise    Errors are exceptions.  An operation is followed by a read, and the
         name is bound to None where either fails.
"""

import contextlib
import dataclasses
import math
import warnings

import numpy as np

from fuzz import runtime
from fuzz.vocabulary import (
    BINARY,
    BYTE_READS,
    BYTE_VIEWS,
    COMMON_BINARY,
    COMMON_DTYPES,
    COMMON_UNARY,
    COPIES,
    DTYPES,
    ELEMENTWISE,
    LARGE_SHAPES,
    LAYOUT_WEIGHTS,
    LAYOUTS,
    NDITER_WRITE,
    ODD_DTYPES,
    OPERATORS,
    READS,
    SCALARS,
    SHAPES,
    TWO_RESULTS,
    UFUNCS,
    UNARY,
    VIEWS,
    WRITES,
)
from helpers.reading import VECTOR
from helpers.values import values
from helpers.writing import HANDLES, WRITERS

QUIET, REPORT, RAISE = "quiet", "report", "raise"

#: What programs can name beside NumPy; where it comes from is for shrink.py.
NAMES = {
    **runtime.NAMES,
    "values": values,
    "VECTOR": VECTOR,
    "WRITERS": WRITERS,
    "HANDLES": HANDLES,
}


#: What OpenBLAS may compute for ever, of extreme values.
ENDLESS = ["svd", "eigh", "lstsq", "polyfit", "rng.multivariate"]


@dataclasses.dataclass
class Statement:
    """Lines that belong together."""

    lines: list
    mode: str = QUIET

    def render(self, indent=""):
        return [indent + line for line in self.lines]


@dataclasses.dataclass
class Block:
    """Lines around statements."""

    head: list
    body: list
    tail: list = ()
    mode: str = QUIET  # of the body
    first: list = ()
    last: list = ()

    def render(self, indent=""):
        deeper = indent + "    "
        lines = [indent + line for line in self.head]
        lines += [deeper + line for line in self.first]
        for part in self.body:
            lines += part.render(deeper)
        lines += [deeper + line for line in self.last]
        if not (self.body or self.first or self.last):
            lines.append(deeper + "pass")
        return lines + [indent + line for line in self.tail]


def render(parts):
    """The source of a program."""
    return "".join(line + "\n" for part in parts for line in part.render())


#: What an operation may end in.
FAILURES = (
    *(ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
    MemoryError,
    SyntaxError,  # of a number with a method
)


class Rejected(Exception):
    """The statement at hand is not worth having."""


class Generator:
    """Writes one program; `rng` is a random.Random."""

    #: Names of methods that are left out.
    without = frozenset()

    def __init__(self, rng, large=False):
        self.rng = rng
        self.large = large
        self.limit = 150_000 if large else 800
        self.namespace = {**NAMES, "on_error": lambda *args: None}
        self.namespace["log"] = runtime.Stream("log", lambda what: None)
        self.mode = QUIET
        self.strict = False  # warnings are errors
        self.number = 0
        self.count = 0
        self.depth = 0

    # ---- choices ----

    def chance(self, probability):
        return self.rng.random() < probability

    def choose(self, options):
        return options[self.rng.randrange(len(options))]

    def names(self, wanted=None):
        return [
            name
            for name, value in self.namespace.items()
            if type(value) is np.ndarray and (wanted is None or wanted(value))
        ]

    def array(self, wanted=None):
        """The name of an array, more often than not a new one."""
        names = self.names(wanted)
        if not names:
            raise Rejected
        return self.choose(names[-8:] if self.chance(0.5) else names)

    def writable(self):
        return self.array(lambda a: a.flags.writeable or self.chance(0.1))

    def scalar(self):
        return self.choose(SCALARS)

    def dtype(self):
        if self.chance(0.5):
            return self.choose(COMMON_DTYPES)
        return self.choose(DTYPES if self.chance(0.9) else ODD_DTYPES)

    def fresh(self):
        """A name to bind: new, or one whose array is dropped."""
        if self.mode == QUIET and self.chance(0.12):
            names = self.names()
            if names:
                return self.choose(names)
        self.number += 1
        return f"v{self.number}"

    # ---- expressions: (source, value) ----

    def leaf(self, shape):
        def fits(array):
            if array.dtype.kind not in "?biufc" and not self.chance(0.05):
                return False
            return broadcasts(array.shape, shape)

        if self.chance(0.12):
            source = self.scalar()
            return source, eval(source, self.namespace)
        names = self.names(fits)
        if not names:
            n = math.prod(shape)
            source = f"values({self.dtype()!r}, {n}, 1).reshape({shape})"
            try:
                return source, eval(source, self.namespace)
            except (TypeError, ValueError, KeyError):
                raise Rejected from None
        name = self.choose(names[-6:] if self.chance(0.5) else names)
        value = self.namespace[name]
        if value.ndim and self.chance(0.12):
            return f"{name}[::-1]", value[::-1]
        return name, value

    def expression(self, shape, depth=None):
        """An elementwise expression whose shape broadcasts to `shape`."""
        if depth is None:
            depth = self.choose([1, 1, 1, 2, 2, 3, 3, 4])
        if depth == 0:
            return self.leaf(shape)
        for _ in range(6):
            source, function, count = self.operation()
            inner = [
                self.expression(shape, self.rng.randrange(depth)) for _ in range(count)
            ]
            sources, operands = zip(*inner, strict=True)
            if "astype" in source and not isinstance(operands[0], np.ndarray):
                continue
            try:
                value = function(*operands)
            except FAILURES:
                if self.chance(0.97):
                    continue
                value = operands[0]
            if getattr(value, "size", 1) <= self.limit:
                return source.format(*sources), value
        return self.leaf(shape)

    def operation(self):
        """(template, function, number of operands)."""
        kind = self.rng.random()
        if kind < 0.35:
            symbol = self.choose([*OPERATORS, "+", "-", "*", "/", "+", "*"])
            return f"({{}} {symbol} {{}})", OPERATORS[symbol], 2
        if kind < 0.6:
            name = self.choose(COMMON_BINARY if self.chance(0.4) else BINARY)
            return self.with_keywords(f"np.{name}({{}}, {{}}", UFUNCS[name], 2)
        if kind < 0.85:
            name = self.choose(COMMON_UNARY if self.chance(0.4) else UNARY)
            return self.with_keywords(f"np.{name}({{}}", UFUNCS[name], 1)
        if kind < 0.9:
            dtype = self.dtype()
            return f"{{}}.astype({dtype!r})", lambda a: a.astype(dtype), 1
        source = self.choose(ELEMENTWISE)
        if "imag" in source and self.mode != QUIET:
            source = ELEMENTWISE[0]  # does not read what is real
        count = 1 + max(i for i in range(3) if f"{{{i}}}" in source)
        code = f"lambda a, b=0, c=0: {source.format('a', 'b', 'c')}"
        return source, eval(code, {"np": np}), count

    def with_keywords(self, source, ufunc, count):
        if self.chance(0.88):
            return source + ")", ufunc, count
        keywords = self.choose(
            [
                {"dtype": self.dtype()},
                {"dtype": self.dtype(), "casting": "unsafe"},
                {"order": self.choose("CFAK")},
                {
                    "casting": self.choose(
                        ["same_kind", "unsafe", "safe", "no", "equiv"]
                    )
                },
                {"subok": False},
            ]
        )
        text = "".join(f", {name}={value!r}" for name, value in keywords.items())
        return f"{source}{text})", lambda *args: ufunc(*args, **keywords), count

    def shape(self):
        return self.namespace[self.array()].shape

    def mask(self, shape):
        names = self.names(lambda a: a.dtype == bool and broadcasts(a.shape, shape))
        if names and self.chance(0.5):
            return self.choose(names)
        source, _ = self.expression(shape, 0)
        return f"({source} > 1)"

    def index(self, array):
        """Source of an index for an array of this kind."""
        if array.ndim == 0:
            return self.choose(["...", "()"])
        parts = []
        for length in array.shape[: self.rng.randint(1, array.ndim)]:
            n = max(length, 1)
            start, stop = sorted([self.rng.randrange(n), self.rng.randrange(n + 1)])
            step = self.choose(["", "", "", ":1", ":2", ":3"])
            parts.append(
                self.choose(
                    [
                        *(f"{start}:{stop}{step}", f"{start}:{stop}{step}", ":"),
                        *(f"{start}:", f":{stop or n}", "::-1", f"{start}", "::2"),
                        *("[0, -1]", f"[{start}]", f"{start}:{stop}"),
                    ]
                )
            )
        if self.chance(0.15):
            parts.insert(0, "...")
        if self.chance(0.05):
            parts.insert(0, "None")
        return ", ".join(parts)

    # ---- statements: lists of lines ----

    def binding(self, source, count=1):
        """Bind a name to what an expression gives; or several names."""
        names = [self.fresh() for _ in range(count)]
        targets = ", ".join(names)
        if self.mode == RAISE:
            name = self.choose(names)
            read = self.choose(
                [f"np.deferred.calculate({name})", f"{name}.tolist()", f"{name}.copy()"]
            )
            return [
                "try:",
                f"    {targets} = {source}",
                f"    {read}",
                "except Exception as error:",
                "    error",
                f"    {' = '.join(names)} = None",
            ]
        return [f"{targets} = {source}"]

    def new_array(self):
        dtype = self.dtype()
        large = self.large and self.chance(0.6)
        shape = self.choose(LARGE_SHAPES if large else SHAPES)
        n = math.prod(shape)
        if np.dtype(dtype).char not in DTYPES or dtype[0] == ">":
            kind = {"M": "l", "m": "l", "O": "i"}.get(dtype[0], dtype[1:])
            return self.binding(
                f"values({kind!r}, {n}).reshape({shape}).astype({dtype!r})"
            )
        if self.chance(0.02):
            return self.binding(f"np.zeros({shape}, [('x', 'f8'), ('y', 'i4')])")
        layout = self.rng.choices(LAYOUTS, LAYOUT_WEIGHTS)[0]
        if np.dtype(dtype).char in "gG" and ("bytes" in layout or "view" in layout):
            layout = LAYOUTS[0]
        source = layout.format(
            dtype=dtype,
            n=n,
            n2=2 * n,
            k=self.rng.randrange(4),
            shape=shape,
            reverse=shape[::-1],
            last=shape[-1] if shape else 1,
            size=np.dtype(dtype).itemsize,
        )
        return self.binding(source)

    def calculation(self):
        return self.binding(self.expression(self.shape())[0])

    def where(self):
        shape = self.shape()
        condition = self.mask(shape)
        if self.chance(0.3):
            condition, _ = self.expression(shape, self.choose([0, 1]))
        x, y = (
            self.scalar()
            if self.chance(0.2)
            else self.expression(shape, self.choose([0, 0, 1, 2]))[0]
            for _ in range(2)
        )
        return self.binding(f"np.where({condition}, {x}, {y})")

    def view(self):
        name = self.array()
        text = self.choose(VIEWS)
        if "einsum" in text and self.namespace[name].size == 0:
            raise Rejected  # NumPy looks at what lies behind it
        return self.binding(text.format(name))

    def byte_view(self):
        name = self.array(lambda a: a.dtype.char not in "gGOV")
        return self.binding(self.choose(BYTE_VIEWS).format(name))

    def item(self):
        name = self.array()
        return self.binding(f"{name}[{self.index(self.namespace[name])}]")

    def copying(self):
        name = self.array(lambda a: a.size < 5000)
        text = self.choose(COPIES)
        if shows_padding(text, self.namespace[name]):
            raise Rejected
        return self.binding(text.format(name, t=self.dtype()))

    def in_place(self):
        name = self.writable()
        source, _ = self.expression(self.namespace[name].shape)
        symbol = self.choose([*"+-*/", "//", "%", "**", "&", "|", "^", "<<", ">>"])
        return [f"{name} {symbol}= {source}"]

    def assignment(self):
        name = self.writable()
        array = self.namespace[name]
        index = self.choose(["...", ":", self.index(array), self.index(array)])
        if self.chance(0.15):
            index = self.mask(array.shape)
        target = eval(f"{name}[{index}]", self.namespace)
        if self.chance(0.25):
            source = self.scalar()
        else:
            source, _ = self.expression(np.shape(target))
        symbol = "" if self.chance(0.75) else self.choose("+-*/")
        return [f"{name}[{index}] {symbol}= {source}"]

    def ufunc_out(self):
        name = self.writable()
        shape = self.namespace[name].shape
        count = self.choose([1, 2, 2])
        ufunc = self.choose(
            COMMON_BINARY
            if count == 2 and self.chance(0.5)
            else BINARY
            if count == 2
            else UNARY
        )
        operands = [
            self.expression(shape, self.choose([0, 1, 2]))[0] for _ in range(count)
        ]
        keywords = [f"out={name}"]
        if self.chance(0.6):
            keywords.append("casting='unsafe'")
        if self.chance(0.3):
            # Not None, where an exception was caught: the rest would be garbage.
            keywords[0] = f"out={name}[...]"
            keywords.append(f"where={self.mask(shape)}")
        if self.chance(0.2):
            keywords.append(f"dtype={self.dtype()!r}")
        return [f"np.{ufunc}({', '.join(operands + keywords)})"]

    def two_results(self):
        source, _ = self.expression(self.shape(), self.choose([0, 1]))
        name = self.choose(TWO_RESULTS)
        second = f", {self.scalar()}" if UFUNCS[name].nin == 2 else ""
        if UFUNCS[name].nin == 2 and self.chance(0.5):
            second = f", {self.expression(self.shape(), self.choose([0, 1]))[0]}"
        keywords = f", order={self.choose('CFAK')!r}" if self.chance(0.1) else ""
        call = f"np.{name}({source}{second}{keywords})"
        if self.chance(0.6):
            return self.binding(call, 2)
        return self.binding(f"{call}[{self.choose([0, 1])}]")

    def method(self):
        source, value = self.expression(self.shape(), self.choose([0, 1, 2]))
        if not np.ndim(value):
            raise Rejected
        axis = self.choose(["None", "0", "-1", "(0, -1)", "()"])
        name = self.choose(COMMON_BINARY if self.chance(0.6) else BINARY)
        extra = self.choose(
            ["", "", "", ", keepdims=True", f", dtype={self.dtype()!r}"]
        )
        initial = self.choose(["", "", ", initial=2", ", initial=None"])
        return self.binding(
            self.choose(
                [
                    f"np.{name}.reduce({source}, {axis}{extra})",
                    f"np.{name}.reduce({source}, {axis}{extra}{initial})",
                    f"np.{name}.accumulate({source}, 0)",
                    f"np.{name}.reduceat({source}, [0, 1])",
                    f"np.{name}.outer({source}, {self.array(lambda a: a.size < 9)})",
                    f"{source}.sum({axis}{extra})",
                    f"{source}.cumsum()",
                    f"{source}.max({axis}{initial})",
                    f"{source}.mean({axis})",
                    f"{source}.any({axis})",
                ]
            )
        )

    def write(self):
        name = self.writable()
        array = self.namespace[name]
        text = self.choose(WRITES)
        if shows_padding(text, array):
            raise Rejected
        if ".at(" in text and not array.flags.writeable:
            raise Rejected  # NumPy writes all the same, to what programs share
        if self.chance(0.08):
            text = "\n".join(NDITER_WRITE)
        lines = text.format(
            name,
            s=self.scalar(),
            e=self.expression(array.shape)[0] if "{e}" in text else "",
            m=self.mask(array.shape) if "{m}" in text else "",
            v=self.expression((1,))[0] if "{v}" in text else "",
            flags=self.choose(["[]", "['external_loop']", "['buffered']"]),
        )
        return lines.split("\n")

    def double_vector(self):
        return self.array(
            lambda a: (
                a.dtype == float
                and a.ndim == 1
                and 8 <= a.size <= 100
                and a.flags.c_contiguous
                and a.flags.aligned
                and a.flags.writeable
            )
        )

    def table_write(self):
        name = self.double_vector()
        return [f"WRITERS[{self.choose(list(WRITERS))!r}]({name})"]

    def table_read(self):
        name = self.double_vector()
        reader = self.choose([key for key in VECTOR if key not in ENDLESS])
        return [f"VECTOR[{reader!r}]({name})"]

    def take_handle(self):
        name = self.double_vector()
        self.number += 1
        # Some know an address only: the array must live as long.
        handle = f"HANDLES[{self.choose(list(HANDLES))!r}]({name})"
        return [f"h{self.number} = {handle}, {name}"]

    def use_handle(self):
        names = [
            name for name in self.namespace if name[0] == "h" and name[1:].isdigit()
        ]
        if not names:
            raise Rejected
        return [f"{self.choose(names)}[0]()"]

    def read(self):
        name = self.array()
        plain = self.namespace[name].dtype.char not in "gGO"
        texts = BYTE_READS if plain and self.chance(0.25) else READS
        return [self.choose(texts).format(name)]

    def read_expression(self):
        source, value = self.expression(self.shape(), self.choose([1, 2]))
        if self.mode != QUIET or not isinstance(value, np.ndarray):
            return [source]
        return [self.choose(READS).format(source)]

    def delete(self):
        if self.mode != QUIET:
            raise Rejected
        return [f"del {self.array()}"]

    def toggle(self):
        name = self.array()
        return [f"{name}.flags.writeable = {self.choose([True, False, True])}"]

    def calculate(self):
        """All, one, or several, which may come out of one sweep."""
        if self.chance(0.3):
            return ["np.deferred.calculate_all()"]
        n = self.choose([1, 2, 3, 4, 9])
        names = ", ".join(self.array() for _ in range(n))
        return [f"np.deferred.calculate({names})"]

    def state(self):
        return [
            f"state = np.setdeferred({self.choose([True, True, True, False, None])})"
        ]

    def buffer_size(self):
        return [f"np.setbufsize({self.choose([16, 64, 1024, 8192, 8192])})"]

    def function(self):
        """A function with temporaries and arguments that it rebinds."""
        self.number += 1
        name = f"f{self.number}"
        body = self.choose(
            [
                ["t = x * y", "t = t + x", "return t - y"],
                ["x += y", "return x * 2"],
                ["def inner():", "    return x - y", "return inner() * x"],
                ["x, y = y, x * y", "return x + y"],
                ["t = [x + i for i in range(3)]", "return t[0] * t[1] * t[2]"],
                ["for i in range(5):", "    x = x * 0.5 + y", "return x"],
                ["x[...] = y * 2 + x", "return x[::-1] + y"],
                ["t = x * y", "x[...] = t", "return t + x"],
                ["t = x + y", "t *= x", "return t"],
                ["return (lambda t: t * t)(x + y)"],
                ["t = np.zeros_like(x)", "np.multiply(x, y, out=t)", "return t + x"],
            ]
        )
        if self.mode == RAISE:
            raise Rejected
        shape = self.shape()
        arguments = ", ".join(self.expression(shape, 0)[0] for _ in range(2))
        return [
            f"def {name}(x, y):",
            *["    " + line for line in body],
            *self.binding(f"{name}({arguments})"),
        ]

    def chain(self):
        """One array updated many times, as loops do."""
        if self.mode != QUIET:
            raise Rejected
        name, source = self.array(), self.expression(self.shape(), 1)[0]
        count = self.choose([3, 10, 70])
        step = self.choose(
            [f"{name} = {name} * 0.5 + {source}", f"{name} = {source} - {name}"]
        )
        return [f"for i in range({count}):", f"    {step}"]

    # ---- blocks ----

    ERRORS = ("divide", "over", "under", "invalid")

    def error_state(self, mode):
        """Arguments of errstate or seterr."""
        if mode == QUIET:
            return "all='ignore'"
        how = ["raise"] if mode == RAISE else ["warn", "warn", "call", "print", "log"]
        how = self.choose(how)
        extra = {"call": ", call=on_error", "log": ", call=log"}.get(how, "")
        if self.chance(0.6):
            return f"all={how!r}{extra}"
        kinds = [kind for kind in self.ERRORS if self.chance(0.6)] or ["invalid"]
        rest = ", ".join(f"{kind}={how!r}" for kind in kinds)
        return f"all='ignore', {rest}{extra}"

    @contextlib.contextmanager
    def inside(self, mode):
        before, self.mode = self.mode, mode
        self.depth += 1
        yield
        self.mode = before
        self.depth -= 1

    def error_block(self, length):
        mode = self.choose([QUIET, REPORT, REPORT, RAISE, RAISE])
        if self.strict and mode == REPORT:
            mode = RAISE
        arguments = self.error_state(mode)
        # What is printed is nothing that a program could see.
        state = arguments.replace("'print'", "'ignore'")
        how = eval(f"dict({state})", self.namespace)
        with np.errstate(**how), self.inside(mode):
            body = self.parts(length)
        return Block([f"with np.errstate({arguments}):"], body, mode=mode)

    def strict_block(self, length):
        """Warnings are errors: as in mode raise, but by the warning filter."""
        arguments = self.choose(["all='warn'", "divide='warn', invalid='warn'"])
        before, self.strict = self.strict, True
        with np.errstate(all="warn"), self.inside(RAISE):
            body = self.parts(length)
        self.strict = before
        return Block(
            [f"with np.errstate({arguments}), warnings.catch_warnings():"],
            body,
            mode=RAISE,
            first=["warnings.simplefilter('error')"],
            last=["np.deferred.calculate_all()"],
        )

    def state_block(self, length):
        state = self.choose([True, False, None])
        with self.inside(self.mode):
            body = self.parts(length)
        return Block([f"with np.deferredstate({state}):"], body, mode=self.mode)

    def loop_block(self, length):
        if self.mode != QUIET:
            raise Rejected
        with self.inside(self.mode):
            body = self.parts(min(length, 5))
        return Block([f"for i in range({self.choose([1, 2, 3])}):"], body)

    def try_block(self, length):
        """The first exception ends the block."""
        if self.mode == RAISE:
            raise Rejected
        with self.inside(self.mode):
            body = self.parts(min(length, 6))
        return Block(
            ["try:"], body, ["except Exception as error:", "    error"], mode=self.mode
        )

    STATEMENTS = (
        *[(calculation, 30), (view, 12), (item, 5), (in_place, 9), (assignment, 12)],
        *[(ufunc_out, 5), (method, 6), (write, 10), (copying, 6), (byte_view, 2)],
        *[(read, 5), (read_expression, 2), (delete, 5), (toggle, 2), (calculate, 3)],
        *[(state, 1), (function, 2), (chain, 1), (two_results, 4), (new_array, 5)],
        *[(where, 3)],
        *[(table_write, 2), (table_read, 2), (take_handle, 1), (use_handle, 1)],
        *[(buffer_size, 0.3)],
    )
    BLOCKS = (
        (error_block, 5),
        (strict_block, 1),
        (state_block, 2),
        (loop_block, 1),
        (try_block, 1),
    )

    def parts(self, length):
        """About this many statements."""
        end = self.count + length
        parts = []
        tries = 0
        while self.count < end and tries < 4 * length + 20:
            tries += 1
            try:
                if self.depth < 3 and end - self.count > 3 and self.chance(0.06):
                    block = self.weighted(self.BLOCKS)
                    parts.append(
                        block(self, self.rng.randint(2, min(end - self.count, 20)))
                    )
                else:
                    parts.append(self.statement())
                    self.count += 1
            except Rejected:
                continue
        return parts

    def weighted(self, table):
        table = [row for row in table if row[0].__name__ not in self.without]
        functions, weights = zip(*table, strict=True)
        return self.rng.choices(functions, weights)[0]

    def statement(self):
        with np.errstate(all="ignore"):
            write = self.weighted(self.STATEMENTS)
            try:
                lines = write(self)
            except FAILURES:
                raise Rejected from None
            if self.names(lambda a: a.dtype.hasobject):
                # Python's integers would grow without end.
                text = "".join(lines)
                if any(word in text for word in ("<<", "**", "shift", "power")):
                    raise Rejected
        self.run(lines)
        return Statement(lines, self.mode)

    def run(self, lines):
        """Do it; statements that fail, or make something huge, are rare."""
        if "setdeferred" in lines[0]:
            return
        before = dict(self.namespace)
        sizes = {
            name: value.size
            for name, value in before.items()
            if name[0] == "v" and isinstance(value, np.ndarray)
        }
        try:
            exec("\n".join(lines), self.namespace)
        except Exception as error:
            useless = isinstance(error, SyntaxError | MemoryError)
            # Eager NumPy writes back a buffer that it has not filled then.
            if "negative integer powers" in str(error):
                useless = any("**=" in line or "out=" in line for line in lines)
            if useless or self.chance(0.85):
                self.namespace.clear()
                self.namespace.update(before)
                raise Rejected from None
        for name, value in list(self.namespace.items()):
            if name in ("error", "v_it", "v_item", "i"):
                del self.namespace[name]
            elif (
                isinstance(value, np.ndarray)
                and sizes.get(name) != value.size
                and (value.size > self.limit or value.ndim > 5)
            ):
                self.namespace.clear()
                self.namespace.update(before)
                raise Rejected

    def program(self, length):
        quiet = warnings.catch_warnings(action="ignore")
        with quiet, np.deferredstate(False), np.errstate(all="ignore"):
            parts = []
            while len(parts) < 5:
                with contextlib.suppress(Rejected):
                    lines = self.new_array()
                    self.run(lines)
                    parts.append(Statement(lines))
            return parts + self.parts(length)


def broadcasts(shape, target):
    """Whether an array of this shape broadcasts to the target's."""
    if len(shape) > len(target):
        return False
    return all(a in (1, b) for a, b in zip(shape[::-1], target[::-1], strict=False))


def shows_padding(text, array):
    """Whether code might see those bytes of long doubles that have no meaning."""
    words = ("view", "setfield", "byteswap")
    return array.dtype.char in "gG" and any(word in text for word in words)


def generate(rng, large=0.12):
    """
    A program, as a list of parts, and the deferred state it starts with.
    `large` is how likely large arrays are.
    """
    large = rng.random() < large
    longest = 30 if large else rng.choice([20, 60, 60, 200])
    generator = Generator(rng, large)
    parts = generator.program(rng.randint(10, longest))
    return parts, rng.choice([True, True, True, None])
