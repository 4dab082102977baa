"""Readable accounts of pending expressions: what `numpy.deferred.explain` returns."""

from collections import namedtuple
from math import prod

from numpy._core import _multiarray_umath as _core
from numpy._utils import set_module

#: One pending operation; `inputs` are names of operations and operands, or scalars,
#: `output` is which of two outputs it is, or None.
Operation = namedtuple("Operation", "name ufunc inputs dtype shape where output")
#: An array that is read.
Operand = namedtuple("Operand", "name dtype shape strides nbytes")
#: How the operations are run: `block` is None where they need no blocks.
Plan = namedtuple("Plan", "steps casts loops block threads direct")

_PREFIX = {"operation": "t", "operand": "a"}


def _name(kind, what):
    return f"{_PREFIX[kind]}{what}" if kind in _PREFIX else str(what)


def _call(operation, inputs):
    """The operation, as one would write it, of what is given."""
    output = "" if operation.output is None else f"[{operation.output}]"
    return f"{operation.ufunc}({', '.join(inputs)}){output}"


def _count(n, what):
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


@set_module("numpy.deferred")
class Explanation:
    """
    What is pending behind an array; see `numpy.deferred.explain`.

    Attributes
    ----------
    shape : tuple of int
    dtype : dtype
        Of the array.
    operations : list of Operation
        ``name``, ``ufunc``, ``inputs``, ``dtype``, ``shape``, ``where`` (file
        and line, or None where that is not known) and ``output`` (which of two
        outputs of a ufunc, or None), the oldest first.  Empty when the array is not
        deferred.
    results : tuple of str
        Names of the operations whose values become arrays, the oldest first: the
        last one, and the other output of the same call where that is pending too; in
        a `profile`, also others that were calculated together with it.
    operands : list of Operand
        ``name``, ``dtype``, ``shape``, ``strides`` (bytes) and ``nbytes`` of the
        arrays that are read.
    plan : Plan or None
        ``steps``, ``casts`` (how many of them are casts or copies), ``loops``
        (over each block: steps that run together in registers are one), ``block``
        (elements, or None for no blocks), ``threads``, and ``direct`` (whether
        everything lies side by side, so that no iterator is needed).  None where
        the expression does not run in one pass.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.ones(10_000)
    >>> with np.deferredstate(True):
    ...     x = a * 2 + 1
    >>> explanation = np.deferred.explain(x)
    >>> [operation.ufunc for operation in explanation.operations]
    ['multiply', 'add']
    >>> explanation.plan.steps, explanation.plan.direct, explanation.bytes_avoided
    (2, True, 80000)
    """

    def __init__(self, array):
        self._fill(*_core._deferred_explain(array))

    @classmethod
    def _of(cls, described, plan):
        """What the C core has described."""
        explanation = cls.__new__(cls)
        explanation._fill(described, plan)
        return explanation

    def _fill(self, described, plan):
        operations, operands, kept, self.dtype, self.shape, self._nbytes = described
        self.operations = [
            Operation(f"t{i}", ufunc, tuple(_name(*each) for each in inputs), *rest)
            for i, (ufunc, inputs, *rest) in enumerate(operations)
        ]
        self.operands = [Operand(f"a{i}", *each) for i, each in enumerate(operands)]
        last = [len(operations) - 1] if operations else []
        self.results = tuple(f"t{i}" for i in sorted(kept) + last)
        self.plan = None
        if plan is not None:
            steps, casts, loops, block, threads, direct = plan
            self.plan = Plan(steps, casts, loops, block or None, threads, direct)

    @property
    def bytes_read(self):
        """Bytes of the operands, each counted once."""
        return sum(operand.nbytes for operand in self.operands)

    @property
    def bytes_written(self):
        """Bytes of the results."""
        return self._nbytes if self.operations else 0

    @property
    def bytes_avoided(self):
        """Bytes of the temporary arrays that are not made."""
        return sum(
            operation.dtype.itemsize * prod(operation.shape)
            for operation in self.operations
            if operation.name not in self.results and not self._apart(operation)
        )

    def _apart(self, operation):
        """Whether it is calculated first: once, not for each element."""
        return prod(operation.shape) != prod(self.shape)

    def _head(self):
        head = f"{self.dtype} array of shape {self.shape}"
        if not self.operations:
            return f"{head}: not deferred"
        return (
            f"{head}: {_count(len(self.operations), 'operation')} pending on "
            f"{_count(len(self.operands), 'operand')}"
        )

    def _rows(self):
        """Name, what it is, dtype, shape and a remark."""
        for operand in self.operands:
            remark = f"strides {operand.strides}"
            yield operand.name, "operand", operand.dtype, operand.shape, remark
        for operation in self.operations:
            what = _call(operation, operation.inputs)
            remark = operation.where or ""
            if self._apart(operation):
                remark = f"calculated first; {remark}".rstrip("; ")
            yield operation.name, what, operation.dtype, operation.shape, remark

    def _notes(self):
        if not self.operations:
            return
        plan = self.plan
        if plan is None:
            yield "not in one pass: parts are calculated first, or one by one"
        else:
            how = "along memory" if plan.direct else "by an iterator"
            blocks = (
                f"in blocks of {plan.block:,} elements" if plan.block else "at once"
            )
            casts = f" ({_count(plan.casts, 'cast')})" if plan.casts else ""
            yield (
                f"{_count(plan.steps, 'step')}{casts} in "
                f"{_count(plan.loops, 'loop')} {blocks}, {how}, "
                f"{_count(plan.threads, 'thread')}"
            )
        yield (
            f"{self.bytes_read:,} bytes read, {self.bytes_written:,} written, "
            f"{self.bytes_avoided:,} of temporary arrays avoided"
        )

    def __str__(self):
        rows = [tuple(map(str, row)) for row in self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [self._head()]
        for name, what, dtype, shape, remark in rows:
            cells = (name, what, dtype, shape)
            text = "  ".join(
                cell.ljust(n) for cell, n in zip(cells, widths, strict=False)
            )
            lines.append(f"  {text}  {remark}".rstrip())
        lines.extend(self._notes())
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self):
        import html  # few need it, and it is not small

        def row(cells, tag="td"):
            cells = "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells)
            return f"<tr>{cells}</tr>"

        head = ("", "operation", "dtype", "shape", "where")
        rows = "".join(map(row, self._rows()))
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self._notes())
        table = f"<table>{row(head, 'th')}{rows}</table>" if rows else ""
        return f"<div><p>{html.escape(self._head())}</p>{table}{notes}</div>"

    def dot(self):
        """
        The expression as a graph, in the language of Graphviz.

        Returns
        -------
        source : str
        """
        lines = ["digraph deferred {", "  rankdir=BT;"]
        for operand in self.operands:
            label = f"{operand.name}\\n{operand.dtype} {operand.shape}"
            lines.append(f'  {operand.name} [shape=box, label="{label}"];')
        for operation in self.operations:
            output = "" if operation.output is None else f"[{operation.output}]"
            label = f"{operation.ufunc}{output}\\n{operation.dtype} {operation.shape}"
            lines.append(f'  {operation.name} [label="{label}"];')
            for i, each in enumerate(operation.inputs):
                source = each
                if each[0] not in "at":
                    source = f"{operation.name}s{i}"
                    lines.append(f'  {source} [shape=plaintext, label="{each}"];')
                lines.append(f"  {source} -> {operation.name};")
        return "\n".join([*lines, "}"])

    def svg(self):
        """
        The graph as a picture.

        Returns
        -------
        picture : str
            SVG.

        Raises
        ------
        ImportError
            If the package ``graphviz`` is not installed.
        """
        try:
            import graphviz
        except ImportError:
            raise ImportError(
                "the picture is drawn by the package graphviz, which is not "
                "installed; dot() gives the graph as text"
            ) from None
        return graphviz.Source(self.dot()).pipe("svg").decode()
