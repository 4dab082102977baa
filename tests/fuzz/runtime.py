"""
Run a program eagerly and deferred, and compare all that it can see.

A program is Python source: plain NumPy statements.  Every statement outside
of `try` and functions is guarded: its exception is noted and the program goes
on.  The value of an expression statement is noted too, bit for bit, and at
the end that of every variable.

Deferral moves errors by definition.  What is compared is therefore:

- the sequence of notes and exceptions;
- floating-point errors that are reported (warnings, calls, prints, logs) by
  section, which is what lies between two changes of the error state at the top
  level.  Those of a statement that went on to raise may be missing, and where
  a floating-point error came earlier, there may be more of others.

The generator sees to it that no program is written where that is unsound: see
grammar.py.  This file is part of the scripts that failures are shrunk to: it
imports nothing but NumPy and the standard library.
"""

import ast
import collections
import contextlib
import contextvars
import copy
import gc
import io
import operator
import os
import pickle
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

FILE = "<program>"
FLAGS = ("C_CONTIGUOUS", "F_CONTIGUOUS", "OWNDATA", "WRITEABLE", "ALIGNED")
LONGDOUBLE_BYTES = 10 if np.finfo(np.longdouble).nmant == 63 else None
PLAIN = (type(None), bool, int, float, complex, str, bytes, slice, np.dtype)

#: What differs between two runs: where, and what it was in each.
Difference = collections.namedtuple("Difference", "kind where eager deferred")


class Outcome:
    """All that a run has seen."""

    def __init__(self):
        self.trace = []  # (line, kind, what) in order
        self.reports = []  # (section, position in the program, what) in order
        self.raised = set()  # positions
        self.variables = {}
        self.broken = []  # what must hold and did not


def bits(array):
    """The bytes of the values in C order, without padding."""
    if array.dtype.char not in "gG" or LONGDOUBLE_BYTES is None:
        return array.tobytes()
    native = np.array(array, array.dtype.newbyteorder("="), order="C")
    size = np.dtype(np.longdouble).itemsize
    return (
        native.reshape(-1)
        .view(np.uint8)
        .reshape(-1, size)[:, :LONGDOUBLE_BYTES]
        .tobytes()
    )


def see_array(array):
    layout = (array.dtype, array.shape, array.strides)
    np.deferred.calculate(array)
    if (array.dtype, array.shape, array.strides) != layout:
        layout += ("changed when calculated",)
    flags = tuple(name for name in FLAGS if array.flags[name])
    seen = (type(array).__name__, *map(str, layout), flags, type(array.base).__name__)
    if array.dtype.hasobject or isinstance(array, np.ma.MaskedArray):
        return (*seen, repr(array.tolist()))
    return (*seen, bits(np.asarray(array)))


def see(value, depth=0):
    """A description of a value that later writes do not change."""
    if isinstance(value, np.ndarray):
        return see_array(value)
    if isinstance(value, np.generic):
        if value.dtype.hasobject:
            return (type(value).__name__, repr(value))
        return (type(value).__name__, str(value.dtype), bits(np.asarray(value)))
    if isinstance(value, tuple | list) and depth < 4:
        return (type(value).__name__, *(see(item, depth + 1) for item in value))
    if isinstance(value, BaseException):
        return (type(value).__name__, str(value))
    if isinstance(value, PLAIN):
        return (type(value).__name__, repr(value))
    return (type(value).__name__,)


class Guard(ast.NodeTransformer):
    """Note values and exceptions; without deferral, never switch it on."""

    def __init__(self, deferred):
        self.deferred = deferred
        self.guarding = True

    def call(self, name, node, *args):
        line = ast.Constant(node.lineno)
        call = ast.Call(ast.Name(name, ast.Load()), [line, *args], [])
        return ast.copy_location(ast.Expr(call), node)

    def guarded(self, node):
        visited = self.visit(node)
        handler = ast.ExceptHandler(
            ast.Name("Exception", ast.Load()), None, [self.call("_caught", node)]
        )
        guarded = ast.Try([visited], [handler], [], [])
        return [self.call("_at", node), ast.copy_location(guarded, node)]

    def body(self, nodes):
        if not self.guarding:
            return [self.visit(node) for node in nodes]
        return [part for node in nodes for part in self.guarded(node)]

    def visit_Module(self, module):
        nodes = []
        for node in module.body:
            changes = changes_error_state(node)
            nodes += self.guarded(node)
            if changes:
                nodes.append(self.call("_section", node))
        module.body = nodes
        return ast.fix_missing_locations(module)

    def visit_With(self, node):
        node.items = [self.visit(item) for item in node.items]
        node.body = self.body(node.body)
        return node

    def visit_For(self, node):
        node.body = self.body(node.body)
        return node

    def visit_Try(self, node):
        guarding, self.guarding = self.guarding, False
        node = self.generic_visit(node)
        self.guarding = guarding
        return node

    def visit_FunctionDef(self, node):
        return node

    def visit_Expr(self, node):
        return self.call("_note", node, self.visit(node.value))

    def visit_Call(self, node):
        name = getattr(node.func, "attr", "")
        if name in ("setdeferred", "deferredstate") and not self.deferred:
            node.args = [ast.copy_location(ast.Constant(False), node)]
        return self.generic_visit(node)


def changes_error_state(node):
    names = {getattr(part, "attr", "") for part in ast.walk(node)}
    return bool(names & {"errstate", "seterr", "seterrcall"})


class Stream:
    """Somewhere that error reports are written to."""

    def __init__(self, kind, report):
        self.kind, self.report = kind, report

    def write(self, text):
        if text.strip():
            self.report((self.kind, text.strip()))

    def flush(self):
        pass


class Run:
    """One run of a program."""

    def __init__(self, names):
        self.outcome = Outcome()
        self.position = self.section = 0
        self.stderr = None  # a file, while it goes there
        self.namespace = {
            **names,
            "__name__": "program",
            "_at": self.at,
            "_caught": self.caught,
            "_note": self.note,
            "_section": self.next_section,
            "on_error": lambda kind, flag: self.report(("call", kind, flag)),
            "log": Stream("log", self.report),
        }

    def at(self, line):
        self.read_stderr()
        self.position += 1

    def next_section(self, line):
        self.read_stderr()
        self.section += 1

    def read_stderr(self):
        """What was printed; NumPy prints to the C library's stderr."""
        if self.stderr is not None:
            for line in self.stderr.read().decode().splitlines():
                self.report(("print", line))

    def caught(self, line):
        self.read_stderr()
        kind, error, _ = sys.exc_info()
        self.outcome.raised.add(self.position)
        self.outcome.trace.append((line, "error", (kind.__name__, str(error))))

    def note(self, line, value):
        kind = "value"
        if isinstance(value, BaseException):
            self.read_stderr()
            self.outcome.raised.add(self.position)
            kind = "error"
        self.outcome.trace.append((line, kind, see(value)))

    def report(self, what):
        self.outcome.reports.append((self.section, self.position, what))

    def showwarning(self, message, category, filename, lineno, file=None, line=None):
        # Code of NumPy's own may have written the operation.
        place = lineno if filename == FILE else Path(filename).name
        self.report(("warning", category.__name__, str(message), place))

    def execute(self, code, state):
        np.setdeferred(state)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = self.showwarning
            with np.errstate(all="ignore"):
                exec(code, self.namespace)
            self.read_stderr()
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.look_at_variables()

    def look_at_variables(self):
        variables = {
            name: value
            for name, value in self.namespace.items()
            if name.startswith("v") and name[1:].isdigit()
        }
        ids = {
            id(value): name
            for name, value in variables.items()
            if isinstance(value, np.ndarray)
        }
        outcome = self.outcome
        for name, value in variables.items():
            try:
                outcome.variables[name] = see(value)
            except Exception as error:
                outcome.variables[name] = see(error)
            if isinstance(value, np.ndarray):
                base = ids.get(id(value.base), "")
                outcome.variables[name] += (f"base {base}",)
        try:
            np.deferred.calculate_all()
        except Exception as error:
            outcome.broken.append(f"something raises for ever: {error}")
        for name, value in variables.items():
            if isinstance(value, np.ndarray):
                self.look_at_marks(name, value)

    def look_at_marks(self, name, array):
        """Nothing is pending: no array may be marked."""
        marks = (
            array.flags.deferred,
            array.flags.deferred_waswriteable,
            np.deferred.usage_count(array),
        )
        if any(marks):
            self.outcome.broken.append(
                f"{name} is marked, with nothing pending: {marks}"
            )


@contextlib.contextmanager
def stderr_to_file():
    before = os.dup(2)
    with tempfile.TemporaryFile(buffering=0) as file:
        # Reading must not move where it is written.
        os.dup2(os.open(f"/proc/self/fd/{file.fileno()}", os.O_WRONLY | os.O_APPEND), 2)
        try:
            yield file
        finally:
            os.dup2(before, 2)
            os.close(before)


def outcome_of(program, deferred, names, state=True):
    """Run a program (its source)."""
    tree = Guard(deferred).visit(ast.parse(program, FILE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = compile(tree, FILE, "exec")
    run = Run(names)
    pending = np.deferred.stats()["pending"]
    context = contextvars.copy_context()
    with stderr_to_file() if "'print'" in program else contextlib.nullcontext() as file:
        run.stderr = file
        context.run(run.execute, code, state if deferred else False)
    run.namespace.clear()
    if np.deferred.stats()["pending"] != pending:
        gc.collect()
    left = np.deferred.stats()["pending"] - pending
    if left:
        run.outcome.broken.append(f"{left} nodes are pending at the end")
    return run.outcome


def differences(eager, deferred):
    """What differs between two outcomes."""
    found = [Difference("broken", text, "", "") for text in deferred.broken]
    for one, other in zip(eager.trace, deferred.trace, strict=False):
        if one != other and not differs_by_definition(one, other):
            kind = one[1] if one[1] == other[1] else "error"
            found.append(Difference(kind, f"line {one[0]}", one, other))
            break
    else:
        if len(eager.trace) != len(deferred.trace):
            lengths = len(eager.trace), len(deferred.trace)
            found.append(Difference("trace", "length of the trace", *lengths))
    for name in sorted(eager.variables.keys() | deferred.variables.keys()):
        one, other = eager.variables.get(name), deferred.variables.get(name)
        if one != other:
            found.append(Difference("variable", name, one, other))
    return found + compare_reports(eager, deferred)


def differs_by_definition(eager, deferred):
    """
    Whether a statement's floating-point error did not come because another
    error came first: that the values were never to be used, or that of another
    operation of the statement.
    """
    return (
        eager[:2] == deferred[:2]
        and is_floating_point_error(eager)
        and deferred[2][0] not in ("SystemError", "MemoryError", "RuntimeError")
    )


def is_floating_point_error(entry):
    return entry[1] == "error" and " encountered in " in entry[2][1]


def compare_reports(eager, deferred):
    found = []
    for section in sorted({report[0] for report in eager.reports + deferred.reports}):
        counts = [
            collections.Counter(
                what
                for where, position, what in outcome.reports
                if where == section and position not in skipped
            )
            for outcome, skipped in [
                (eager, ()),
                (eager, eager.raised),
                (deferred, ()),
                (deferred, eager.raised),
            ]
        ]
        most, least, got, got_surely = counts
        for what in most.keys() | got.keys():
            if not (least[what] <= got[what] and got_surely[what] <= most[what]):
                where = f"section {section}: {what}"
                found.append(Difference("report", where, most[what], got[what]))
    return found


def show(value):
    """A difference's side, short enough to read."""
    if isinstance(value, bytes):
        return value.hex() if len(value) < 100 else f"{value[:100].hex()}..."
    if isinstance(value, tuple):
        return "(" + ", ".join(map(show, value)) + ")"
    return str(value)


def compare(program, names, state=True):
    """
    What differs between an eager and a deferred run of a program.

    What differs between two eager runs is not held against deferral.
    """
    eager = outcome_of(program, False, names)
    found = differences(eager, outcome_of(program, True, names, state))
    if found and differences(eager, outcome_of(program, False, names)):
        return []
    return found


NAMES = {
    "np": np,
    "contextlib": contextlib,
    "copy": copy,
    "io": io,
    "operator": operator,
    "pickle": pickle,
    "warnings": warnings,
}
