"""
Who is compared: a class each, that makes of a task a function to be timed.

The function is called with the number of times it is to calculate, and returns
the last result.  The number of threads comes from the environment (THREADS), as
not every peer can be told later.
"""

import ctypes
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from .expressions import CLAIMS, EXPRESSIONS, source

LIMIT_SOURCE = Path(__file__).resolve().parents[1] / "limit" / "loops.c"


def environment(threads):
    """What tells everybody how many threads there are, and to sleep soon."""
    names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NPROC")
    return dict.fromkeys((*names, "NUMEXPR_MAX_THREADS"), str(threads)) | {
        "GOMP_SPINCOUNT": "10000",
        "JAX_ENABLE_X64": "1",
        "JAX_PLATFORMS": "cpu",
    }


class Missing(Exception):
    """A contender is not installed; the text says what is."""


class Contender:
    name = ""
    #: The state of deferral in which it is timed.
    deferred = False
    #: Whether its results must have eager NumPy's bits.
    exact = False
    peer = True

    def __init__(self, directory):
        """May leave compiled code there; raises Missing."""

    def prepare(self, task, out):
        """The function, with a new result or into `out`; None when it has none."""
        raise NotImplementedError


def repeated(once):
    def call(calls):
        for _ in range(calls - 1):
            once()
        return once()

    return call


class Eager(Contender):
    name = "eager"
    exact = True
    peer = False

    def prepare(self, task, out):
        function, operands = task.expression.function(np), task.arguments

        def assign():
            out[...] = function(*operands)
            return out

        return repeated(assign if out is not None else lambda: function(*operands))


class Ours(Eager):
    name = "ours"
    deferred = True

    def prepare(self, task, out):
        function, operands = task.expression.function(np), task.arguments
        if out is not None:
            return super().prepare(task, out)

        def fresh():
            result = function(*operands)
            if isinstance(result, np.ndarray):
                np.deferred.calculate(result)
            elif isinstance(result, tuple):
                np.deferred.calculate(*result)
            return result

        return repeated(fresh)


class Numexpr(Contender):
    name = "numexpr"

    def __init__(self, directory):
        self.module = imported("numexpr")

    def prepare(self, task, out):
        expression = task.expression
        if expression.numexpr is None:
            return None
        text, operands = expression.numexpr or expression.inlined(), task.operands
        if task.dtype == "f4" and isinstance(text, str):
            text, constants = named_decimals(text, task.dtype)
            operands = operands | constants
        evaluate = self.module.evaluate
        into = {} if out is None else {"out": out, "casting": "same_kind"}

        def once(text):
            return evaluate(text, local_dict=operands, global_dict={}, **into)

        if isinstance(text, tuple):
            return repeated(lambda: tuple(map(once, text)))
        return repeated(lambda: once(text))


class Numba(Contender):
    name = "numba"

    def __init__(self, directory):
        self.numba = imported("numba")
        self.directory = directory
        self.functions = {}
        self.modules = {}

    def module(self, dtype):
        """A module of all functions, so that numba can keep what it compiles.

        In it T(2) is written for 2: a float32 array times a whole number would be
        float64.
        """
        if dtype not in self.modules:
            name = f"numba_{dtype}"
            text = "from numpy import *\n" + f"T = {np.dtype(dtype)}\n"
            for expression in EXPRESSIONS + CLAIMS:
                text += self.source(expression)
            write_if_changed(self.directory / f"{name}.py", text)
            sys.path.insert(0, str(self.directory))
            try:
                self.modules[dtype] = importlib.import_module(name)
            finally:
                sys.path.pop(0)
        return self.modules[dtype]

    def source(self, expression):
        if expression.numba is None:
            return ""
        lines = [expression.numba] if expression.numba else expression.lines
        if not expression.numba and "f4" in expression.dtypes:
            lines = typed(lines)
        names, python_name = expression.names(), expression.identifier
        text = source(python_name, names, lines)
        if expression.out is not None:
            text += source(f"{python_name}_into", ["out", *names], lines, "out[...] = ")
        return text

    def prepare(self, task, out):
        if task.expression.numba is None:
            return None
        name = task.expression.identifier + ("_into" if out is not None else "")
        key = task.dtype, name
        if key not in self.functions:
            compiler = self.numba.njit(
                parallel=not task.expression.broadcast, cache=True
            )
            self.functions[key] = compiler(getattr(self.module(task.dtype), name))
        compiled, operands = self.functions[key], task.arguments

        def into():
            compiled(out, *operands)
            return out

        return repeated(into if out is not None else lambda: compiled(*operands))


class Jax(Contender):
    name = "jax"

    def __init__(self, directory):
        self.jax = imported("jax")
        self.functions = {}

    def prepare(self, task, out):
        if out is not None:
            return None
        name = task.expression.name
        if name not in self.functions:
            function = task.expression.function(self.jax.numpy)
            self.functions[name] = self.jax.jit(function)
        # Not NumPy's memory: it would count as exposed, and ours not defer.
        operands = [self.jax.numpy.array(np.array(x)) for x in task.arguments]
        compiled = self.functions[name]
        if isinstance(task.expected, tuple):
            wait = self.jax.block_until_ready
            return repeated(lambda: wait(compiled(*operands)))
        return repeated(lambda: compiled(*operands).block_until_ready())


class Limit(Contender):
    """A loop in C for each expression.  Its result is in warm memory always."""

    name = "limit"
    peer = False
    OPTIONS = shlex.split("-std=gnu11 -O3 -march=native -fopenmp -ffast-math -fPIC")

    def __init__(self, directory):
        compiler = shutil.which("cc")
        if compiler is None:
            raise Missing("no C compiler, cc")
        try:
            self.libraries = {
                dtype: self.build(compiler, directory, dtype, types)
                for dtype, types in {
                    "f8": ["-DT=double", "-DINTEGER=int64_t"],
                    "f4": ["-DT=float", "-DINTEGER=int32_t"],
                }.items()
            }
        except (subprocess.CalledProcessError, OSError) as error:
            raise Missing(f"{compiler} cannot build limit/loops.c: {error}") from error

    def build(self, compiler, directory, dtype, types):
        compiled = directory / f"limit_{dtype}.o"
        library = compiled.with_suffix(".so")
        if not library.exists() or newer(LIMIT_SOURCE, library):
            command = [compiler, *self.OPTIONS, *types, "-c", LIMIT_SOURCE]
            subprocess.run([*command, "-o", compiled], check=True)
            # Linked with -ffast-math, it would switch denormals off for everybody.
            command = [compiler, "-shared", "-fopenmp", compiled, "-o", library]
            subprocess.run([*command, "-lmvec", "-lm"], check=True)
        return ctypes.CDLL(str(library))

    def prepare(self, task, out):
        # Without a library of its dtype, neither is there a function.
        library = self.libraries.get(task.dtype)
        function = getattr(library, task.expression.identifier, None)
        if function is None:
            return None
        # Copies, as for JAX, of the same layout.
        operands = list(task.expression.make(task.dtype, task.n).values())
        result = task.new_out()
        addresses = (ctypes.c_void_p * 5)(*(x.ctypes.data for x in operands))
        shape = np.broadcast_shapes(*(x.shape for x in operands))
        shape = (ctypes.c_ssize_t * len(shape))(*shape)
        arguments = function, addresses, ctypes.c_void_p(result.ctypes.data), shape

        def call(calls):
            # It is here that the operands are kept alive.
            assert operands
            library.limit_repeat(*arguments, ctypes.c_long(calls))
            return result

        return call


CONTENDERS = [Ours, Eager, Numexpr, Numba, Jax, Limit]


def imported(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Missing(f"{name} cannot be imported: {error}") from error


DECIMAL = r"\b\d+\.\d+\b"


def typed(lines):
    """Numbers as T, but for exponents that are whole numbers."""
    number = re.compile(DECIMAL + r"|(?<![*\w]{2})\b\d+\b")
    return [number.sub(r"T(\g<0>)", line) for line in lines]


def named_decimals(text, dtype):
    """Names for the decimals of a text, and these as scalars.

    numexpr takes what is written with a decimal point for float64.
    """
    decimals = sorted(set(re.findall(DECIMAL, text)))
    names = {decimal: f"decimal_{i}" for i, decimal in enumerate(decimals)}
    text = re.sub(DECIMAL, lambda decimal: names[decimal[0]], text)
    return text, {name: np.dtype(dtype).type(x) for x, name in names.items()}


def newer(path, than):
    return path.stat().st_mtime > than.stat().st_mtime


def write_if_changed(path, text):
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
