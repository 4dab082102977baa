"""What was calculated in a block, and why: `numpy.deferred.profile`."""

import dis
import html
import json
import linecache
import os
import threading
from collections import Counter, namedtuple
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns

from numpy._core import _multiarray_umath as _core
from numpy._core._explain import Explanation, _call, _count
from numpy._utils import set_module

#: Operations that ran at once: how many, of which ufunc, why, and where.
AtOnce = namedtuple("AtOnce", "times ufunc reason where")

#: Whose frames are left out: those below the package numpy.
_OWN_FILES = f"{Path(__file__).parents[1]}{os.sep}"

#: What an instruction that needs values does, by the beginning of its name.
_ACTIONS = {
    "BINARY_SUBSCR": "indexing",
    "BINARY_SLICE": "indexing",
    "STORE_SUBSCR": "an item assignment",
    "STORE_SLICE": "an item assignment",
    "CALL": "a call",
    "COMPARE_OP": "a comparison",
    "CONTAINS_OP": "the operator in",
    "BINARY_OP": "an operator",
    "FORMAT": "formatting",
    "CONVERT_VALUE": "formatting",
    "FOR_ITER": "iteration",
    "GET_ITER": "iteration",
    "UNPACK": "iteration",
    "TO_BOOL": "its truth value",
    "POP_JUMP": "its truth value",
    "UNARY_NOT": "its truth value",
    "LOAD_ATTR": "an attribute",
}


def _action(code, instruction):
    while code.co_code[instruction] == dis.opmap["CACHE"]:
        instruction -= 2  # a call to Python code is at its end
    operation, argument = code.co_code[instruction : instruction + 2]
    name = dis.opname[operation]
    if name == "BINARY_OP" and dis._nb_ops[argument][1] == "[]":
        name = "BINARY_SUBSCR"  # from Python 3.14 on
    return next(
        (what for start, what in _ACTIONS.items() if name.startswith(start)), ""
    )


def _place(code, instruction):
    """File and line, and the text of the expression there."""
    positions = list(code.co_positions())
    line, end_line, start, end = positions[instruction // 2]
    if line is None:
        return code.co_filename, ""
    where = f"{code.co_filename}, line {line}"
    text = linecache.getline(code.co_filename, line).encode()  # columns count bytes
    if not text or start is None or end is None:
        return where, ""
    several = end_line != line
    text = text[start : None if several else end].decode(errors="replace").strip()
    return where, f"{text} ..." if several else text


def _infix(explanation):
    """
    The operations as one expression, or as those of several arrays, the newest first;
    what is used repeatedly, and what is an array and used, keeps its name.
    """
    uses = Counter(name for op in explanation.operations for name in op.inputs)
    results = set(explanation.results)
    texts, shared = {}, []
    for op in explanation.operations:
        texts[op.name] = _call(op, [texts.get(name, name) for name in op.inputs])
        if uses[op.name] > (op.name not in results):
            shared.append(f"{op.name} = {texts.pop(op.name)}")
    results = [texts[name] for name in explanation.results if name in texts]
    return "; ".join([*reversed(results), *shared])


@set_module("numpy.deferred")
@dataclass(frozen=True, slots=True)
class Calculation:
    """
    One calculation of a `profile`.

    Attributes
    ----------
    explanation : Explanation
        The operations that ran together, their operands, and the plan (None where
        NumPy ran the operation by itself), as `numpy.deferred.explain` gives them.
    why : str
        What made it necessary.
    where : str
        File and line that needed the values, outside NumPy's own files; empty where
        no Python code was running.
    source : str
        The expression there; empty when the source cannot be had.
    through : tuple of str
        NumPy's own Python functions that were called there.
    start : float
        Seconds since the profile began.
    seconds : float
        How long it took, with calculations inside it.
    own_seconds : float
        Without these.
    thread : int
        The identifier of the thread.
    error : str or None
        The exception that it ended with.

    Examples
    --------
    >>> import numpy as np
    >>> with np.deferredstate(True), np.deferred.profile() as p:
    ...     x = np.ones(10_000) * 2 + 1
    ...     x[0]
    np.float64(3.0)
    >>> calculation = p.events[0]
    >>> calculation.expression, calculation.bytes_written
    ('add(multiply(a0, 2.0), 1.0)', 80000)
    >>> calculation.why, calculation.source
    ('read: indexing', 'x[0]')
    """

    explanation: Explanation
    why: str
    where: str
    source: str
    through: tuple
    start: float
    seconds: float
    own_seconds: float
    thread: int
    error: str | None

    @property
    def expression(self):
        """The operations on one line."""
        return _infix(self.explanation)

    @property
    def written(self):
        """Where the operations were written: files and lines, each once."""
        lines = (operation.where for operation in self.explanation.operations)
        return tuple(dict.fromkeys(line for line in lines if line))

    @property
    def arrays(self):
        """How many arrays were calculated in one sweep over the operands."""
        return len(self.explanation.results)

    @property
    def bytes_read(self):
        """Bytes of the operands, each counted once."""
        return self.explanation.bytes_read

    @property
    def bytes_written(self):
        """Bytes of the results, or of what was reduced without being stored."""
        return self.explanation.bytes_written

    @property
    def bandwidth(self):
        """Bytes read and written in a second."""
        nbytes = self.bytes_read + self.bytes_written
        return nbytes / self.own_seconds if self.own_seconds else 0.0

    @property
    def _key(self):
        """What calculations have in common that are one entry of the table."""
        e = self.explanation
        what = self.expression, e.dtype, e.shape, e.plan, self.error
        return what, self.why, self.where, self.source, self.through, self.written

    @property
    def _how(self):
        plan = self.explanation.plan
        if plan is None:
            return "by NumPy itself"
        return f"{_count(plan.steps, 'step')}, {_count(plan.threads, 'thread')}"

    @property
    def _array(self):
        e = self.explanation
        if self.arrays == 1:
            return f"{e.dtype} {e.shape}"
        operations = {operation.name: operation for operation in e.operations}
        dtypes = dict.fromkeys(str(operations[name].dtype) for name in e.results)
        return f"{self.arrays} x {' and '.join(dtypes)} {e.shape}"

    @property
    def _what(self):
        shape = f"of shape {self.explanation.shape}"
        if self.arrays == 1:
            return f"{self.explanation.dtype} array {shape}"
        return f"{self.arrays} arrays in one sweep, {shape}"

    @property
    def _forced(self):
        where = self.where or "a thread that runs no Python code"
        source = f": {self.source}" if self.source else ""
        through = f" (through {', '.join(self.through)})" if self.through else ""
        return f"{self.why}, in {where}{source}{through}"


def _shorten(text, width=110):
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _relative(where):
    return where.replace(_OWN_FILES, f"numpy{os.sep}")


@set_module("numpy.deferred")
class profile:
    """
    Context manager that lists what is calculated inside, and why.

    While it lasts, every calculation of a deferred array, in whichever thread, is
    noted: the expression, how long it took, and the line that made it necessary;
    and every operation that ran at once although deferral was on.  That is what
    tells why operations did not become one pass.

    Attributes
    ----------
    events : list of Calculation
        In the order in which they began.
    at_once : list of AtOnce
        ``times``, ``ufunc``, ``reason`` and ``where`` of operations that were not
        deferred, the most frequent first.

    See Also
    --------
    explain : what is pending, and how it will be calculated

    Notes
    -----
    Profiles may be nested; each has all that happens inside.  Of operations that
    were written before it began, the lines are known only where their error state
    reports errors.  A profile grows with each calculation, and keeps no array alive.

    Printing an array, assigning it, writing into one of its operands and leaving an
    ``errstate`` block all calculate; see `Calculation` for what is noted of each.

    Examples
    --------
    >>> import numpy as np
    >>> a, b = np.ones(100_000), np.ones(100_000)
    >>> with np.deferredstate(True), np.deferred.profile() as p:
    ...     x = a * b + 1
    ...     b[0] = 7  # x reads b
    ...     y = np.add(x, a, out=None, where=a > 0)
    >>> for event in p.events:
    ...     print(event.expression, "-", event.why)
    add(multiply(a0, a1), 1.0) - an operand is written, or changed: an item assignment
    greater(a0, 0.0) - read: a call
    >>> p.at_once[0].ufunc, p.at_once[0].reason
    ('add', 'where= is given')
    >>> p.totals()["calculations"], p.totals()["operations"]
    (2, 3)

    ``print(p)`` shows all of it, in a notebook ``p`` is a table, and
    ``p.write_chrome_trace("trace.json")`` writes it for Perfetto.
    """

    def __init__(self):
        self._records, self._counts, self._start = [], {}, None

    def __enter__(self):
        if self._start is not None:
            raise TypeError("Cannot enter np.deferred.profile twice.")
        self._start = perf_counter_ns()
        _core._deferred_start_profile(self._records, self._counts, _OWN_FILES)
        return self

    def __exit__(self, *exc_info):
        _core._deferred_stop_profile(self._records)

    @property
    def events(self):
        records = sorted(self._records, key=lambda record: (record[0], -record[1]))
        own = [end - start for start, end, *_ in records]
        around = {}  # by thread: those that the next may be inside of
        for i, (start, end, thread, *_) in enumerate(records):
            stack = around.setdefault(thread, [])
            while stack and records[stack[-1]][1] < end:
                stack.pop()
            if stack:
                own[stack[-1]] -= end - start
            stack.append(i)
        return [
            self._event(*record, each)
            for record, each in zip(records, own, strict=True)
        ]

    def _event(self, start, end, thread, why, frames, described, plan, error, own):
        where, source = _place(*frames[-1]) if frames else ("", "")
        action = _action(*frames[-1]) if frames else ""
        return Calculation(
            explanation=Explanation._of(described, plan),
            why=f"{why}: {action}" if action else why,
            where=where,
            source=source,
            through=tuple(code.co_qualname for code, _ in reversed(frames[:-1])),
            start=(start - self._start) * 1e-9,
            seconds=(end - start) * 1e-9,
            own_seconds=own * 1e-9,
            thread=thread,
            error=error,
        )

    @property
    def at_once(self):
        counts = sorted(self._counts.items(), key=lambda item: -item[1])
        return [
            AtOnce(count, ufunc, reason, f"{file}, line {line}" if file else "")
            for (reason, ufunc, file, line), count in counts
        ]

    def totals(self):
        """
        Sums over everything.

        Returns
        -------
        totals : dict
            ``calculations``, ``operations`` (in them), ``failed`` (calculations),
            ``seconds``, ``bytes_read``, ``bytes_written``, and ``at_once``
            (operations).

        Examples
        --------
        >>> import numpy as np
        >>> with np.deferred.profile() as p:
        ...     pass
        >>> p.totals()["calculations"]
        0
        """
        events = self.events
        return {
            "calculations": len(events),
            "operations": sum(len(each.explanation.operations) for each in events),
            "failed": sum(each.error is not None for each in events),
            "seconds": sum(each.own_seconds for each in events),
            "bytes_read": sum(each.bytes_read for each in events),
            "bytes_written": sum(each.bytes_written for each in events),
            "at_once": sum(self._counts.values()),
        }

    def _head(self):
        totals = self.totals()
        nbytes = totals["bytes_read"] + totals["bytes_written"]
        seconds = totals["seconds"]
        failed = f", {totals['failed']} failed" if totals["failed"] else ""
        rate = f", {nbytes / seconds * 1e-9:.1f} GB/s" if seconds else ""
        return (
            f"{_count(totals['calculations'], 'calculation')} of "
            f"{_count(totals['operations'], 'operation')} in {seconds * 1e3:.3f} ms"
            f"{failed}; {totals['bytes_read']:,} bytes read, "
            f"{totals['bytes_written']:,} written{rate}"
        )

    def _groups(self):
        """Calculations that are alike, those that took longest first."""
        groups = {}
        for event in self.events:
            groups.setdefault(event._key, []).append(event)
        return sorted(
            groups.values(), key=lambda group: -sum(each.own_seconds for each in group)
        )

    @staticmethod
    def _measures(group):
        """Milliseconds, how often, and GB/s."""
        seconds = sum(each.own_seconds for each in group)
        nbytes = sum(each.bytes_read + each.bytes_written for each in group)
        rate = nbytes / seconds * 1e-9 if seconds else 0.0
        return f"{seconds * 1e3:.3f}", len(group), f"{rate:.1f}"

    def __str__(self):
        lines = [self._head()]
        for group in self._groups():
            first = group[0]
            milliseconds, times, rate = self._measures(group)
            often = f" in {times} calculations" if times > 1 else ""
            lines += [
                f"  {milliseconds} ms{often}, {rate} GB/s: {first._what}, {first._how}",
                f"    {_shorten(first.expression)}",
                f"    {_shorten(first._forced)}",
                *(f"    written in {_relative(line)}" for line in first.written),
            ]
            if first.error is not None:
                lines.append(f"    failed: {first.error}")
        at_once = self.at_once
        if at_once:
            n = sum(each.times for each in at_once)
            lines.append(f"{_count(n, 'operation')} ran at once")
        lines += [
            f"  {each.times} {each.ufunc}, in {_relative(each.where)}: {each.reason}"
            for each in at_once
        ]
        return "\n".join(lines)

    def __repr__(self):
        return f"<numpy.deferred.profile: {self._head()}>"

    def _repr_html_(self):
        def row(cells, tag="td"):
            cells = "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells)
            return f"<tr>{cells}</tr>"

        def table(head, rows):
            return f"<table>{row(head, 'th')}{''.join(map(row, rows))}</table>"

        text = f"<p>{html.escape(self._head())}</p>"
        calculated = [
            (
                *self._measures(group),
                group[0].expression,
                group[0]._array,
                group[0]._how,
                group[0]._forced,
                "; ".join(group[0].written),
                group[0].error or "",
            )
            for group in self._groups()
        ]
        if calculated:
            head = ("ms", "times", "GB/s", "expression", "array", "how", "forced")
            text += table((*head, "written", "failed"), calculated)
        if self.at_once:
            text += table(("at once", "ufunc", "reason", "where"), self.at_once)
        return f"<div>{text}</div>"

    def write_chrome_trace(self, path):
        """
        Write the calculations for a viewer of traces.

        Parameters
        ----------
        path : path-like
            A file of JSON, which Perfetto (https://ui.perfetto.dev) and Chrome's
            ``chrome://tracing`` show on a line for each thread.

        Examples
        --------
        >>> import json, os, tempfile
        >>> import numpy as np
        >>> with np.deferredstate(True), np.deferred.profile() as p:
        ...     s = (np.ones(10_000) + 1).sum()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "trace.json")
        ...     p.write_chrome_trace(path)
        ...     with open(path) as file:
        ...         trace = json.load(file)
        >>> [each["name"] for each in trace["traceEvents"] if each["ph"] == "X"]
        ['add']
        """
        pid, events = os.getpid(), self.events
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        trace = [
            {
                "name": "thread_name",
                "ph": "M",
                "pid": pid,
                "tid": thread,
                "args": {"name": names[thread]},
            }
            for thread in sorted({event.thread for event in events} & names.keys())
        ]
        for event in events:
            explanation = event.explanation
            arguments = {
                "expression": event.expression,
                "array": event._array,
                "how": event._how,
                "why": event.why,
                "where": event.where,
                "source": event.source,
                "written": list(event.written),
                "bytes read": event.bytes_read,
                "bytes written": event.bytes_written,
                "GB/s": round(event.bandwidth * 1e-9, 3),
            }
            if event.error is not None:
                arguments["error"] = event.error
            trace.append(
                {
                    "name": explanation.operations[-1].ufunc,
                    "cat": "calculation",
                    "ph": "X",
                    "ts": event.start * 1e6,
                    "dur": event.seconds * 1e6,
                    "pid": pid,
                    "tid": event.thread,
                    "args": arguments,
                }
            )
        at_once = [each._asdict() for each in self.at_once]
        contents = {
            "traceEvents": trace,
            "displayTimeUnit": "ns",
            "otherData": {"at_once": at_once},
        }
        Path(path).write_text(json.dumps(contents, indent=1), encoding="utf-8")
