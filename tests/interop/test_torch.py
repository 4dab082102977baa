"""PyTorch: tensors share the memory of arrays, in both directions."""

import numpy as np
import pytest

from helpers.compare import assert_same
from helpers.handover import (
    dtypes,
    in_threads,
    lengths,
    operand_of,
    pending,
    positive,
    regular,
    squares,
)

torch = pytest.importorskip("torch")

WAYS_IN = {
    "from_numpy": torch.from_numpy,
    "as_tensor": torch.as_tensor,
    "tensor": torch.tensor,
    "Tensor": lambda a: torch.Tensor(a),
    "from_dlpack": torch.from_dlpack,
    "frombuffer": lambda a: torch.frombuffer(a, dtype=torch.float64),
    "asarray": torch.asarray,
}


@lengths
@pytest.mark.parametrize("way", WAYS_IN)
def test_in(way, n):
    def work():
        x = pending(n)
        t = WAYS_IN[way](x)
        y = (t * 2 + 1).numpy()
        return y, float(t.sum()), x

    assert_same(work)


@lengths
@dtypes("f8", "f4", "c16", "c8", "i8", "i4", "u1", "?", "f2")
def test_dtypes(n, dtype):
    def work():
        x = pending(n, dtype)
        t = torch.from_numpy(x)
        return (t == t).numpy(), t.clone().numpy(), x

    assert_same(work)


@squares
@pytest.mark.parametrize("order", ["C", "F"])
def test_layouts(shape, order):
    def work():
        x = pending(shape, order=order)
        t = torch.from_numpy(x)
        return t.numpy(), (t.T @ t).numpy(), torch.from_numpy(x.T)[::2].numpy(), x

    assert_same(work)


@lengths
def test_tensor_writes_into_a_pending_array(n):
    def work():
        x = pending(n)
        t = torch.from_numpy(x)
        t += 1
        y = x * 2
        return y.sum(), x, t.numpy()

    assert_same(work)


@lengths
def test_tensor_writes_into_what_was_pending(n):
    def work():
        x = pending(n)
        t = torch.from_numpy(x)
        t += 1
        y = x * 2
        t[1] = 100.0
        return x, y, t.numpy()

    assert_same(work)


@lengths
def test_tensor_of_an_operand(n):
    """It is writable, there is no warning, and the old values count."""

    def work():
        a, x = operand_of(lambda a: a * 2, n)
        t = torch.from_numpy(a)
        t.fill_(7.0)
        return a, x

    assert_same(work)


@pytest.mark.parametrize(
    "way",
    [
        "from_numpy",
        "as_tensor",
        "asarray",
        # It asks NumPy for the address.
        "from_dlpack",
    ],
)
@lengths
def test_tensor_from_before(way, n):
    """The array becomes an operand after the tensor was made."""

    def work():
        a = regular(n)
        t = WAYS_IN[way](a)
        x = a * 2
        t.fill_(7.0)
        y = a + 1
        t[0] = 9.0
        return x, y, a

    assert_same(work)


@lengths
def test_out_and_back(n):
    """An array on a tensor's memory: who owns it is not NumPy."""

    def work():
        t = torch.from_numpy(regular(n)).clone()
        a = t.numpy()
        x = a * 2 + 1
        t.add_(5)
        y = np.asarray(t) + 1
        t.zero_()
        a += x
        return x, y, t.numpy()

    assert_same(work)


@lengths
def test_array_interface_and_dlpack_out(n):
    def work():
        t = torch.from_numpy(regular(n)).clone()
        a = np.from_dlpack(t)
        x = a * 2
        t.zero_()
        return x, np.asarray(t)

    assert_same(work)


@lengths
def test_ufunc_with_a_tensor(n):
    def work():
        x = pending(n)
        t = torch.from_numpy(regular(n))
        return np.asarray(x + t), np.add(x, t.numpy()), np.sqrt(t.abs())

    assert_same(work)


@squares
def test_network(shape):
    """A step of training on pending arrays."""

    def work():
        torch.manual_seed(0)
        x = torch.from_numpy(pending(shape, "f4") if shape[0] > 80 else pending(shape))
        x = x.float()
        y = torch.from_numpy(positive(100 * shape[0], seed=1))
        model = torch.nn.Linear(shape[1], 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        loss = ((model(x)[:, 0] - y[::100].float()) ** 2).mean()
        loss.backward()
        optimizer.step()
        return model.weight.detach().numpy(), float(loss.detach())

    assert_same(work)


@lengths
def test_threads(n):
    """PyTorch's own threads, and Python's, are the first to touch it."""

    def work():
        x = pending(n)
        t = torch.from_numpy(x)
        return in_threads(lambda: t.exp().numpy())

    assert_same(work)


@lengths
def test_data_loader(n):
    def work():
        data = torch.utils.data.TensorDataset(torch.from_numpy(pending((n // 4, 4))))
        loader = torch.utils.data.DataLoader(data, batch_size=max(n // 8, 4))
        return tuple(batch.numpy() for (batch,) in loader)

    assert_same(work)


def test_fft_and_linalg():
    def work():
        x = pending((90, 91))
        t = torch.from_numpy(x)
        return (
            torch.fft.fft2(t).numpy(),
            torch.linalg.svdvals(t).numpy(),
            torch.linalg.solve(t[:, :90], torch.from_numpy(pending(8192)[:90])).numpy(),
        )

    assert_same(work)
