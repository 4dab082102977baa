"""np.deferred.explain: what is pending, without calculating it."""

import re
import sys
import types

import numpy as np
import pytest

from helpers.markup import text_of

N = 10_000


@pytest.fixture
def deferred():
    with np.deferredstate(True), np.errstate(all="warn"):
        yield


def memory(*shape, dtype=float):
    a = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    np.deferred.calculate(a)
    return a


def test_operations_and_operands(deferred):
    a, b = memory(N), memory(N)
    x = (a * b + 2) / a
    before = np.deferred.stats()
    e = np.deferred.explain(x)
    assert np.deferred.stats() == before
    assert x.flags.deferred
    assert (e.shape, e.dtype) == ((N,), np.float64)
    assert [op.ufunc for op in e.operations] == ["multiply", "add", "divide"]
    names = {operand.name for operand in e.operands}
    assert names == {"a0", "a1"}
    product, total, quotient = e.operations
    assert set(product.inputs) == names
    assert total.inputs == ("t0", "2.0")
    assert quotient.inputs[0] == "t1"
    assert quotient.inputs[1] in names
    for operation in e.operations:
        assert operation.where == f"{__file__}, line {LINE}"
        assert operation.dtype == np.float64
        assert operation.shape == (N,)
    assert [(o.shape, o.strides, o.nbytes) for o in e.operands] == [
        ((N,), (8,), 8 * N)
    ] * 2
    assert (e.bytes_read, e.bytes_written, e.bytes_avoided) == (16 * N, 8 * N, 16 * N)


LINE = test_operations_and_operands.__code__.co_firstlineno + 2


def test_shared_parts_are_one_operation(deferred):
    a = memory(N)
    x = a + 1
    e = np.deferred.explain(x * x)
    assert [op.inputs for op in e.operations] == [("a0", "1.0"), ("t0", "t0")]


def test_plan(deferred, num_threads):
    num_threads(1)
    a, b = memory(N), memory(N, dtype="f4")
    plan = np.deferred.explain(a * a).plan
    assert plan == (1, 0, 1, None, 1, True)
    plan = np.deferred.explain(a * b + a).plan
    assert (plan.steps, plan.casts, plan.loops, plan.direct) == (3, 1, 1, True)
    assert plan.block % 64 == 0
    square = memory(100, 100)
    plan = np.deferred.explain(square * square.T + 1).plan
    assert not plan.direct


def test_threads(deferred, num_threads):
    a = memory(1_000_000)
    for n in (1, 3):
        num_threads(n)
        assert np.deferred.explain(a * 2 + 1).plan.threads == n
    assert np.deferred.explain(a[:100] * 2 + 1).plan.threads == 1


def test_parts_of_another_size(deferred):
    row, square = memory(100), memory(100, 100)
    e = np.deferred.explain(np.sin(row) * square)
    assert e.plan is None
    assert e.bytes_avoided == 0
    text = str(e)
    assert "calculated first" in text
    assert "not in one pass" in text


def test_regular_array():
    e = np.deferred.explain(memory(3))
    assert (e.operations, e.operands, e.plan) == ([], [], None)
    assert str(e) == "float64 array of shape (3,): not deferred"
    assert "<table>" not in e._repr_html_()


def test_text(deferred, num_threads):
    num_threads(1)
    a = memory(N)
    lines = str(np.deferred.explain(a * 2 + 1)).splitlines()
    assert (
        lines[0] == "float64 array of shape (10000,): 2 operations pending on 1 operand"
    )
    assert re.fullmatch(
        r"  t0  multiply\(a0, 2.0\)  float64  \(10000,\)  .*, line \d+", lines[2]
    )
    assert re.fullmatch(
        r"2 steps in 1 loop in blocks of [\d,]+ elements, along memory, 1 thread",
        lines[-2],
    )
    assert lines[-1].startswith("80,000 bytes read, 80,000 written, 80,000 of temp")
    # One operation needs no blocks.
    assert "1 step in 1 loop at once" in repr(np.deferred.explain(a * 2))


def test_html(deferred):
    """Well-formed, and file names cannot be markup."""
    source = compile("x = a * 2 + 1", "<b>.py", "exec")
    namespace = {"a": memory(N)}
    exec(source, namespace)
    text = np.deferred.explain(namespace["x"])._repr_html_()
    seen = text_of(text)
    assert "<b>.py, line 1" in seen


def test_graph(deferred):
    a, b = memory(N), memory(N)
    source = np.deferred.explain(a * b + 2.5).dot()
    assert source.startswith("digraph")
    edges = set(re.findall(r"(\w+) -> (\w+);", source))
    assert edges == {("a0", "t0"), ("a1", "t0"), ("t0", "t1"), ("t1s1", "t1")}
    declared = set(re.findall(r"^  (\w+) \[", source, re.MULTILINE))
    assert declared == {name for edge in edges for name in edge}


def test_picture(deferred, monkeypatch):
    e = np.deferred.explain(memory(N) + 1)

    class Source:
        def __init__(self, source):
            self.source = source

        def pipe(self, form):
            return f"<{form}>{self.source}</{form}>".encode()

    monkeypatch.setitem(sys.modules, "graphviz", types.SimpleNamespace(Source=Source))
    assert e.svg() == f"<svg>{e.dot()}</svg>"
    monkeypatch.setitem(sys.modules, "graphviz", None)
    with pytest.raises(ImportError, match="graphviz, which is not installed"):
        e.svg()


@pytest.mark.parametrize("wrong", [None, 1.0, [1.0], "x"])
def test_not_an_array(wrong):
    with pytest.raises(TypeError, match="expected an ndarray"):
        np.deferred.explain(wrong)


def test_largest_expression(deferred):
    """As many operations as an expression may have."""
    a = memory(10)
    x = a
    for _ in range(64):
        x = x + a
    e = np.deferred.explain(x)
    assert x.flags.deferred
    assert 0 < len(e.operations) <= 64
    assert str(e)
