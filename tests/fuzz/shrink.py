"""Make a program that fails smaller, and write it as a script of its own."""

import ast
import inspect
import math
import os
import pickle
import re
import resource
import signal
import time
import traceback
from dataclasses import replace
from pathlib import Path

from fuzz import runtime
from fuzz.grammar import NAMES, QUIET, Block, render
from helpers import reading, values, writing
from helpers.sanitizers import under

#: Bytes that a program may use; one that needs more is not written.
MEMORY = 2**31
#: Seconds of CPU time after which a program hangs; it may wait ten times as long.
PATIENCE = 20


def limit_time():
    """From here on, for this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = math.ceil(usage.ru_utime + usage.ru_stime)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (used + PATIENCE, most))
    signal.alarm(10 * PATIENCE)


def limit_memory():
    """
    From here on, for this process.  What it has counts as well, with the addresses
    that an earlier test left accessible: CPython goes wrong in many ways without.
    """
    status = Path("/proc/self/status").read_text()
    used = int(re.search(r"VmData:\s+(\d+) kB", status)[1]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, used + MEMORY))


def in_child(function, *args):
    """
    What a function returns, called in a child of this process; the name of the
    signal when that kills it.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        status = 1
        try:
            limit_time()
            if not under("asan", "tsan"):  # whose own memory is more
                limit_memory()
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(function(*args), pipe)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        result = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    if status != 0:
        return "exit"
    return pickle.loads(result)


def kinds_of(parts, state):
    """In which ways a program fails."""
    return {found.kind for found in runtime.compare(render(parts), NAMES, state)}


def fails(parts, state):
    """The kinds of failure, in a process of its own, as that may crash."""
    result = in_child(kinds_of, parts, state)
    return {result} if isinstance(result, str) else result


def is_slow(parts):
    """Whether an eager run takes so long that a deferred one might hang."""
    start = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    in_child(eager_run, parts)
    end = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    return end - start > PATIENCE / 4


def eager_run(parts):
    runtime.outcome_of(render(parts), False, NAMES)


class Shrinker:
    """Keeps what fails in the same way, until nothing more can be left out."""

    def __init__(self, parts, state, seconds):
        self.state = state
        self.end = time.monotonic() + seconds
        self.kinds = fails(parts, state)
        self.parts = parts

    def still_fails(self, parts):
        return time.monotonic() < self.end and bool(
            fails(parts, self.state) & self.kinds
        )

    def shrink(self):
        if not self.kinds:
            return self.parts
        before = None
        while self.parts != before:
            before = self.parts
            self.parts = self.shorter(self.parts, lambda parts: parts)
            self.parts = self.simpler(self.parts, lambda parts: parts)
        return self.parts

    def shorter(self, parts, rebuild, mode=QUIET):
        """Leave out statements; `rebuild` makes a program of the list at hand."""
        size = max(len(parts) // 2, 1)
        while size:
            start = 0
            while start < len(parts):
                fewer = parts[:start] + parts[start + size :]
                if self.still_fails(rebuild(fewer)):
                    parts = fewer
                else:
                    start += size
            size //= 2
        for i, part in enumerate(parts):
            if isinstance(part, Block):
                parts = self.shorter_block(parts, i, rebuild, mode)
        return parts

    def shorter_block(self, parts, i, rebuild, mode):
        block = parts[i]

        def with_body(body):
            return [*parts[:i], replace(block, body=body), *parts[i + 1 :]]

        body = self.shorter(
            block.body, lambda body: rebuild(with_body(body)), block.mode
        )
        if mode == QUIET or mode == block.mode:
            without = [*parts[:i], *body, *parts[i + 1 :]]
            if len(body) == 1 and self.still_fails(rebuild(without)):
                return without
        return with_body(body)

    def simpler(self, parts, rebuild):
        """Put parts of expressions in their place."""
        for i, part in enumerate(parts):
            if isinstance(part, Block):
                body = self.simpler(
                    part.body,
                    lambda body, i=i, part=part, parts=parts: rebuild(
                        [*parts[:i], replace(part, body=body), *parts[i + 1 :]]
                    ),
                )
                parts = [*parts[:i], replace(part, body=body), *parts[i + 1 :]]
                continue
            progress = True
            while progress:
                progress = False
                for lines in simplifications(parts[i].lines):
                    other = [*parts[:i], replace(part, lines=lines), *parts[i + 1 :]]
                    if self.still_fails(rebuild(other)):
                        parts = other
                        progress = True
                        break
        return parts


def subexpressions(node):
    """Expressions that may stand for `node`."""
    if isinstance(node, ast.BinOp):
        return [node.left, node.right]
    if isinstance(node, ast.Compare):
        return [node.left, *node.comparators]
    if isinstance(node, ast.UnaryOp):
        return [node.operand]
    if isinstance(node, ast.Subscript):
        return [node.value]
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return [node.value] if node.value.id != "np" else []
    if isinstance(node, ast.Call):
        found = [arg for arg in node.args if not isinstance(arg, ast.Constant)]
        if isinstance(node.func, ast.Attribute):
            value = node.func.value
            if not (isinstance(value, ast.Name) and value.id == "np"):
                found.insert(0, value)
        return found
    return []


class Replace(ast.NodeTransformer):
    """Put the `which`th subexpression in the place of the one it is part of."""

    def __init__(self, which):
        self.which = which

    def visit(self, node):
        for inner in subexpressions(node):
            if self.which == 0:
                self.which -= 1
                return inner
            self.which -= 1
        return self.generic_visit(node)


def simplifications(lines):
    """The statement with one expression replaced by a part of it."""
    source = "\n".join(lines)
    which = 0
    while True:
        tree = ast.parse(source)
        statement = tree.body[0]
        if isinstance(statement, ast.Try):
            statement = statement.body[0]
        if len(tree.body) > 1 or not hasattr(statement, "value"):
            return
        replacing = Replace(which)
        statement.value = replacing.visit(statement.value)
        if replacing.which >= 0:
            return
        which += 1
        yield ast.unparse(tree).split("\n")


SCRIPT = '''\
"""
{about}

Run this with `spin run python`; what differs between eager and deferred
evaluation is printed.
"""

import os

{environment}

PROGRAM = """\\
{program}"""

{definitions}
if __name__ == "__main__":
    found = compare(PROGRAM, NAMES, {state})
    for difference in found:
        print(*difference[:2])
        print("    eager:   ", show(difference.eager))
        print("    deferred:", show(difference.deferred))
    sys.exit(bool(found))
'''


def definitions(program):
    """The source of all that a program needs."""
    parts = []
    if "values(" in program or any(
        name in program for name in ("VECTOR", "WRITERS", "HANDLES")
    ):
        parts.append(inspect.getsource(values))
    for module, names in [
        (reading, ["VECTOR"]),
        (writing, ["WRITERS", "HANDLES"]),
    ]:
        used = [name for name in names if name in program]
        if used:
            # They share names that are private.
            parts.append(f"_names = {{}}\nexec({inspect.getsource(module)!r}, _names)")
            parts += [f"{name} = _names[{name!r}]" for name in used]
    parts.append(inspect.getsource(runtime))
    names = [name for name in NAMES if name not in runtime.NAMES and name in program]
    parts += [f"NAMES[{name!r}] = {name}" for name in names]
    return "\n".join(parts) + "\n"


def script(parts, state, about):
    """A failing program as a script that needs nothing but NumPy."""
    program = render(parts)
    limit = os.environ.get("NUMPY_DEFERRED_MIN_BYTES")
    environment = f'os.environ["NUMPY_DEFERRED_MIN_BYTES"] = "{limit}"'
    return SCRIPT.format(
        about=about,
        environment=environment if limit is not None else "",
        program=program.replace("\\", "\\\\"),
        definitions=definitions(program),
        state=state,
    )
