"""
What is measured: one table, an expression an entry.

The text is what a user of NumPy writes, the last line the result, or several with
commas.  NumPy, Numba and JAX run it as it stands, numexpr with its names put in, and
C has a loop of that name in limit/loops.c.  Numbers in it never make float64 of what
was float32: the contenders see to that.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

WIDER = {"f8": "c16", "f4": "c8"}
INTEGER = {"f8": "i8", "f4": "i4"}


@dataclass(frozen=True)
class Expression:
    name: str
    text: str
    make: Any  # (dtype, n) -> the operands, by name
    #: Its own text for a peer that cannot run ours; None when it has none.  numexpr
    #: has a tuple of them for several results.
    numexpr: str | tuple | None = ""
    numba: str | None = ""
    #: Numba's parallel mode refuses operands of several shapes.
    broadcast: bool = False
    dtypes: tuple = ("f8", "f4")
    #: None for a result that nobody keeps an array for.
    out: Any = np.zeros_like  # expected result -> an array for it
    #: Who was said to be how many times faster than NumPy, on how many elements.
    claimed: str = ""
    n: int = 0

    @property
    def identifier(self):
        return "f_" + self.name.replace(" ", "_")

    @property
    def lines(self):
        return [line.strip() for line in self.text.strip().splitlines()]

    def function(self, module):
        """A function of the operands, in order, on the functions of a module."""
        return define(self.identifier, self.names(), self.lines, vars(module))

    def names(self):
        return list(self.make("f8", 100))

    def inlined(self):
        """The text as one line, for numexpr, which finds what is there twice."""
        known = {}
        for line in self.lines[:-1]:
            name, value = line.split(" = ")
            known[name] = f"({substitute(value, known)})"
        return substitute(self.lines[-1], known)


def substitute(text, known):
    return re.sub(r"\b[a-z]\w*\b", lambda word: known.get(word[0], word[0]), text)


def source(name, names, lines, result="return "):
    """A function's source; `out[...] = ` instead of `return ` fills an array."""
    body = [*lines[:-1], result + lines[-1]]
    return f"def {name}({', '.join(names)}):\n    " + "\n    ".join(body) + "\n"


def define(name, names, lines, namespace):
    namespace = dict(namespace)
    exec(source(name, names, lines), namespace)
    return namespace[name]


# Operands.  The values are the same each time; 0.5 to 1.5 suits every function.


def values(names, dtype, shapes):
    """Arrays by name; they repeat some random values, as making them takes long."""
    rng = np.random.default_rng(11)
    if not isinstance(shapes, list):
        shapes = [shapes] * len(names)
    return {
        name: np.array(np.resize((rng.random(99_991) + 0.5).astype(dtype), shape))
        for name, shape in zip(names, shapes, strict=True)
    }


def vectors(names):
    return lambda dtype, n: values(names, dtype, n)


def complex_vectors(names):
    def make(dtype, n):
        real, imaginary = (values(names, dtype, n) for _ in range(2))
        return {
            name: (real[name] + 1j * imaginary[name][::-1]).astype(WIDER[dtype])
            for name in names
        }

    return make


def integer_vectors(names):
    return lambda dtype, n: {
        name: (array * 1000).astype(INTEGER[dtype])
        for name, array in values(names, "f8", n).items()
    }


def mixed_vectors(dtype, n):
    i, a, b = values("iab", "f8", n).values()
    return {"i": (i * 1000).astype("i4"), "a": a, "b": b.astype("f4")}


def nep10(dtype, n):
    k = max(round((n / 10) ** (1 / 3)), 1)
    return values("abc", dtype, [(k, k, k, 10), (k, k, 1, 10), (k, k, k, 1)])


def open_grid(dtype, n):
    k = max(round(n ** (1 / 3)), 1)
    return values("ijk", dtype, [(k, 1, 1), (1, k, 1), (1, 1, k)])


def row_and_column(dtype, n):
    k = max(round(n**0.5), 1)
    return values("xy", dtype, [(1, k), (k, 1)])


def projected(dtype, n):
    points = values("v", dtype, (n // 3, 3))["v"]
    return {"v": points, "w": points[:, 2:3]}


def strided(dtype, n):
    return {k: a[::2] for k, a in values("abc", dtype, 2 * n).items()}


def matrix(names):
    def make(dtype, n):
        k = max(round(n**0.5), 1)
        return values(names, dtype, (k, k))

    return make


def transposed(dtype, n):
    operands = matrix("abc")(dtype, n)
    return operands | {"b": operands["b"].T}


def neighbours(dtype, n):
    u = next(iter(matrix("u")(dtype, n).values()))
    return {
        "c": u[1:-1, 1:-1],
        "n": u[:-2, 1:-1],
        "s": u[2:, 1:-1],
        "w": u[1:-1, :-2],
        "e": u[1:-1, 2:],
    }


def interior(expected):
    """The inner part of another grid, as a solver that swaps two has it."""
    rows, columns = expected.shape
    return np.zeros((rows + 2, columns + 2), expected.dtype)[1:-1, 1:-1]


def horner(degree):
    text = str(degree + 1)
    for k in range(degree, 0, -1):
        text = f"({text})*x + {k}"
    return text


BLACK_SCHOLES = """
    d = (log(s/k) + (r + v*v/2)*t) / (v*sqrt(t))
    e = d - v*sqrt(t)
    s*(1 + tanh(d))/2 - k*exp(-r*t)*(1 + tanh(e))/2
"""

EXPRESSIONS = [
    Expression("products", "a*b + c*d", vectors("abcd")),
    Expression("sum of 4", "a + b + c + d", vectors("abcd")),
    Expression("square", "x**2 - 3*x + 4", vectors("x")),
    Expression("linear", "2*a + 3*b", vectors("ab")),
    Expression("exp log sqrt", "exp(-a*a)*log(b) + sqrt(a*b)", vectors("ab")),
    Expression("sin cos", "sin(a)**2 + cos(b)**2", vectors("ab")),
    Expression("horner 10", horner(10), vectors("x")),
    Expression("pricing", BLACK_SCHOLES, vectors("skrvt")),
    Expression("logic", "(a > b) & (c < d) | (a < c)", vectors("abcd")),
    Expression("integer", "(a + b)*c - (a - c)*b", integer_vectors("abc")),
    Expression("mixed", "i*a + b", mixed_vectors, dtypes=("f8",)),
    Expression("complex product", "a*b + c", complex_vectors("abc")),
    Expression("broadcast", "3*a + b - (a/c)", nep10, broadcast=True),
    Expression("open grid", "sqrt(i**2 + j**2 + k**2)", open_grid, broadcast=True),
    Expression("row column", "sin(x**2) + cos(y**2)", row_and_column, broadcast=True),
    Expression("projection", "v / w", projected, broadcast=True),
    Expression("strided", "a*b + c", strided),
    Expression("transposed", "a*b + c", transposed),
    Expression("stencil", "(c + n + s + w + e) / 5", neighbours, out=interior),
    Expression("sum squares", "sum((a - b)**2)", vectors("ab"), out=None),
    Expression("max abs", "max(abs(a - b))", vectors("ab"), out=None),
    Expression(
        "mean of rows",
        "mean(a*b, axis=1)",
        matrix("ab"),
        numexpr=None,
        numba="sum(a*b, 1) / a.shape[1]",
        out=None,
    ),
    Expression(
        "variance",
        "var(a, axis=0)",
        matrix("a"),
        numexpr=None,
        numba="sum((a - sum(a, 0) / a.shape[0])**2, 0) / a.shape[0]",
        out=None,
    ),
]


# Operands of what was published.


def unaligned(dtype, n):
    """As the fields of packed structures."""
    a, b = np.zeros((2, n), "b1,f8")["f1"]
    a[...], b[...] = values("ab", "f8", n).values()
    return {"a": a, "b": b}


def counting(dtype, n):
    return {"x": np.arange(n, dtype=dtype)}


def cubes(names, axes):
    def make(dtype, n):
        k = max(round(n ** (1 / axes)), 1)
        return values(names, dtype, (k,) * axes)

    return make


def turned(make):
    """The transposes of other operands."""
    return lambda dtype, n: {k: a.T for k, a in make(dtype, n).items()}


def composite(layout):
    """Two images of three colours and their opacities, in arrays of their own."""

    def make(dtype, n):
        k = max(round((n / (9 * 16 * 3)) ** 0.5), 1)
        shape = 9 * k, 16 * k
        colours, opacities = (*shape, 3), (*shape, 1)
        if layout in ("repeated", "flat"):
            opacities = colours
        shapes = [colours, colours, opacities, opacities]
        operands = values("uvpq", dtype, shapes)
        if layout == "swapped":
            return {k: a.swapaxes(0, 1) for k, a in operands.items()}
        if layout == "flat":
            return {k: a.ravel() for k, a in operands.items()}
        return operands

    return make


def composite_in_one(dtype, n):
    """Two images of four channels, the last the opacity, with swapped axes."""
    k = max(round((n / (9 * 16 * 4)) ** 0.5), 1)
    u, v = values("uv", dtype, (9 * k, 16 * k, 4)).values()
    u, v = u.swapaxes(0, 1), v.swapaxes(0, 1)
    return {"u": u, "v": v, "p": u[:, :, -1:]}


def matrices_and_row(dtype, n):
    k = max(round(n**0.5), 1)
    return values("abc", dtype, [(k, k), (k, k), (k,)])


def small_integers(names):
    """From 0 to 19, as matrices."""
    return lambda dtype, n: {
        name: (array * 20 - 10).astype(dtype)
        for name, array in matrix(names)("f8", n).items()
    }


COMPOSITE = "u + (1 - p)*v, p + (1 - p)*q"

# Of a great circle from a point, given in radians, to others.
HAVERSINE = """
    d = sin((u - 0.71)/2)
    e = sin((v - 1.29)/2)
    12742*arcsin(sqrt(d**2 + 0.7584*cos(u)*e**2))
"""

# With a rate of 0.1 and a volatility of 0.2; tanh stands for erf, which NumPy lacks.
OPTIONS = """
    d = (log(s/k) + 0.12*t) / (0.2*sqrt(t))
    e = d - 0.2*sqrt(t)
    s*(1 + tanh(d))/2 - k*exp(-0.1*t)*(1 + tanh(e))/2
"""

ROOFLINE = (
    "exp(sqrt((sin(a)**2 + (cos(b) + arctan(c))**3)*(1 + sin(b)**2 + cos(c)**2)))"
)


def claim(name, claimed, text, make, n=10**6, dtype="f8", **options):
    return Expression(
        name, text, make, dtypes=(dtype,), claimed=claimed, n=n, **options
    )


#: What was published, each on its own machine; `spin bench peers -- --claims`.
#:
#: In the dtype and size that were published, but for arrays of more than 16,777,216
#: elements, which have ten million here.  What NEP 10 and elision speak of is NumPy
#: itself, before and after.  Not here: what needs functions that NumPy lacks (MLX's
#: gelu, with erf), and whole programs (Weld's and Veros's, Bohrium's heat equation,
#: n-body and shallow water; `spin bench kernels` has some of that kind).
CLAIMS = [
    claim("docs linear", "numexpr 3.2", "2*a + 3*b", vectors("ab")),
    claim("docs power", "numexpr 20", "2*a + b**10", vectors("ab")),
    claim("docs unaligned", "numexpr 4", "2*a + 3*b", unaligned),
    claim("readme one", "numexpr 0.95", "a + 1", vectors("a")),
    claim("readme test", "numexpr 4", "a*b - 4.1*a > 2.5*b", vectors("ab")),
    claim(
        "readme arcsinh", "numexpr, no figure", "sin(a) + arcsinh(a/b)", vectors("ab")
    ),
    claim("large sum", "numexpr 4.85", "a + b*c", vectors("abc"), 10**7),
    claim(
        "large cosine",
        "numexpr 10.94",
        "a**2 + b**2 - 2*a*b*cos(c)",
        vectors("abc"),
        10**7,
    ),
    claim(
        "large log", "numexpr 7.03", "sin(a) + log(b)*sqrt(c)", vectors("abc"), 10**7
    ),
    claim(
        "large tan", "numexpr 2.38", "exp(a) + tan(b) - sinh(c)", vectors("abc"), 10**7
    ),
    claim("plus one", "numexpr 2.5, Numba 0.45", "x + 1", vectors("x"), 10**7, "f4"),
    claim(
        "square of sum",
        "numexpr 9.5, Numba 13",
        "x**2 + y**2 + 2*x*y + 1",
        vectors("xy"),
        10**7,
        "f4",
    ),
    claim(
        "sines",
        "numexpr 11.7, Numba 30",
        "sin(x)**3 + cos(y)**2 + cos(x)*sin(y) + z",
        vectors("xyz"),
        10**7,
        "f4",
    ),
    claim(
        "roofline low", "Blosc2, no figure", "a + b + c", vectors("abc"), 10**7, "f4"
    ),
    claim(
        "roofline medium",
        "Blosc2, no figure",
        "sqrt(a + 2*b + (c/2))**1.2",
        vectors("abc"),
        10**7,
        "f4",
    ),
    claim("roofline high", "Blosc2, no figure", ROOFLINE, vectors("abc"), 10**7, "f4"),
    claim(
        "polynomial",
        "Blosc2, no figure",
        "2*a**2 - 3*b + c + 1.2",
        vectors("abc"),
        10**7,
        "f4",
    ),
    claim(
        "logic and row",
        "Blosc2, no figure",
        "((a**3 + sin(a*2)) < c) & (b > 0)",
        matrices_and_row,
        10**7,
        "f4",
        broadcast=True,
    ),
    claim("unity", "Numba 5.2", "cos(x)**2 + sin(x)**2", counting, 10**7),
    claim("20 additions", "Weld 10", "a" + 20 * " + b", vectors("ab"), 10**7),
    claim("haversine", "split annotations 11", HAVERSINE, vectors("uv"), 10**7),
    claim("option prices", "dask 1.22", OPTIONS, vectors("skt"), 2**24),
    claim("normal", "PyTensor 1.25, JAX 1.8", "-((x - m)**2)/2", vectors("xm")),
    claim(
        "compute",
        "Cython 1.3",
        "clip(a, 2, 10)*4 + b*3 + 9",
        small_integers("ab"),
        2000**2,
        "i8",
        numexpr="where(a < 2, 2, where(a > 10, 10, a))*4 + b*3 + 9",
    ),
    claim("one addition", "pnumpy 1", "a + b", vectors("ab"), dtype="f4"),
    claim("elision in cache", "NumPy 4 to 6", "a + b + b", vectors("ab"), 10**5),
    claim("elision in memory", "NumPy 1.5", "a + b + b", vectors("ab"), 10**7),
    claim("NEP 10", "NEP 10 2.27", "3*a + b - (a/c)", nep10, 1_250_000, broadcast=True),
    claim(
        "six axes", "NEP 10, no figure", "a + b + c + d", cubes("abcd", 6), dtype="f4"
    ),
    claim(
        "six axes turned",
        "NEP 10 8.3",
        "a + b + c + d",
        turned(cubes("abcd", 6)),
        dtype="f4",
    ),
    claim(
        "chain of add",
        "NEP 10 3.4",
        "add(add(add(a, b), c), a)",
        turned(cubes("abc", 3)),
        dtype="f4",
        numexpr="a + b + c + a",
    ),
    *(
        claim(
            f"composite {layout}",
            claimed,
            COMPOSITE,
            composite(layout),
            1080 * 1920 * 3,
            "f4",
            numexpr=tuple(COMPOSITE.split(", ")),
            broadcast=layout in ("swapped", "C"),
            out=None,
        )
        for layout, claimed in {
            "swapped": "fused C 23.4",
            "C": "fused C 3.9",
            "repeated": "fused C 2.1",
            "flat": "fused C 2.1",
        }.items()
    ),
    claim(
        "composite in one",
        "numexpr 15",
        "u + (1 - p)*v",
        composite_in_one,
        1080 * 1920 * 4,
        "f4",
        broadcast=True,
    ),
]
