"""PyArrow: zero-copy in both directions, on threads of its own."""

import numpy as np
import pytest

from helpers.compare import assert_same
from helpers.handover import (
    dtypes,
    handed,
    in_threads,
    lengths,
    made,
    operand_of,
    pending,
    regular,
)

pa = pytest.importorskip("pyarrow")
pc = pytest.importorskip("pyarrow.compute")


@lengths
@dtypes("f8", "f4", "i8", "i4", "u1", "?", "f2")
def test_array(n, dtype):
    def work():
        x = pending(n, dtype)
        a = pa.array(x)
        y = a.to_numpy(zero_copy_only=False)
        return y, y == y, x

    assert_same(work)


@lengths
def test_zero_copy_result_is_an_operand(n):
    """Memory that Arrow owns, and an expression over it."""

    def work():
        a = pa.array(pending(n))
        y = a.to_numpy() * 2 + 1
        return pc.sum(a).as_py(), pc.add(a, 1.0).to_numpy(), y

    assert_same(work)


@lengths
def test_array_shares_memory_of_an_operand(n):
    """pa.array of a NumPy array takes its memory and does not copy."""

    def work():
        a = regular(n)
        arrow = pa.array(a)
        x = a * 2
        a[1] = 100.0
        return x, arrow.to_numpy(), a

    assert_same(work)


@lengths
def test_buffer(n):
    def work():
        x = pending(n)
        buffer = pa.py_buffer(x)
        array = pa.Array.from_buffers(pa.float64(), n, [None, buffer])
        y = x + 1
        x[0] = 5.0
        return array.to_numpy(), pc.max(array).as_py(), y, x

    assert_same(work)


@lengths
def test_writable_buffer(n):
    """Arrow's stream writes into the memory of an operand."""

    def work():
        a, x = operand_of(lambda a: a * 2, n)
        stream = pa.FixedSizeBufferWriter(pa.py_buffer(a))
        stream.write(np.arange(4.0))
        stream.close()
        return a, x

    assert_same(work)


@lengths
def test_table(n):
    def work():
        order = np.arange(n)
        table = pa.table({"k": made(lambda a: a + 1, n, "i8"), "x": pending(n)})
        sums = table.group_by("k", use_threads=False).aggregate([("x", "sum")])
        taken = table.take(handed(order[::-1] + 0)[: n // 2])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        back = pa.ipc.open_stream(sink.getvalue()).read_all()
        return (
            sums["x"].to_numpy(),
            taken["x"].to_numpy(),
            back["x"].to_numpy() * 2,
            table.sort_by("x")["x"].to_numpy(),
        )

    assert_same(work)


@lengths
def test_tensor(n):
    def work():
        x = pending((n // 4, 4), order="F")
        t = pa.Tensor.from_numpy(x)
        return t.to_numpy() + 1, x

    assert_same(work)


@lengths
def test_parquet(n, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")

    def work():
        pq.write_table(pa.table({"x": pending(n)}), tmp_path / "file")
        return pq.read_table(tmp_path / "file")["x"].to_numpy() * 2

    assert_same(work)


@lengths
def test_threads(n):
    def work():
        x = pending(n)
        a = pa.array(x, from_pandas=False)
        return *in_threads(lambda: pc.sum(a).as_py()), x

    assert_same(work)
