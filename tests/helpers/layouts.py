"""The ways in which operands lie in memory and meet each other."""

import math

import numpy as np

from helpers.values import values


def contiguous(data, shape):
    return data.reshape(shape).copy()


def strided(data, shape):
    room = np.zeros(tuple(2 * n for n in shape), data.dtype)
    view = room[(slice(None, None, 2),) * len(shape)]
    view[...] = data.reshape(shape)
    return view


def negative(data, shape):
    flip = (slice(None, None, -1),) * len(shape)
    return data.reshape(shape)[flip].copy()[flip]


def fortran(data, shape):
    return np.array(data.reshape(shape), order="F")


def transposed(data, shape):
    """A permutation of axes that is neither C nor Fortran order."""
    axes = (*range(1, len(shape)), 0) if len(shape) != 2 else (1, 0)
    return data.reshape(shape).transpose(np.argsort(axes)).copy().transpose(axes)


def partly_negative(data, shape):
    flip = (slice(None, None, -1),) + (slice(None),) * (len(shape) - 1)
    return data.reshape(shape)[flip].copy()[flip]


def repeated(data, shape):
    """Stride zero along the first axis."""
    return np.broadcast_to(
        data[: math.prod(shape[1:])].reshape(shape[1:]).copy(), shape
    )


def unaligned(data, shape):
    room = np.zeros(data.nbytes + 1, np.uint8)
    view = room[1:].view(data.dtype).reshape(shape)
    view[...] = data.reshape(shape)
    return view


def swapped(data, shape):
    return data.reshape(shape).astype(data.dtype.newbyteorder())


LAYOUTS = (
    contiguous,
    strided,
    negative,
    fortran,
    transposed,
    partly_negative,
    repeated,
    unaligned,
    swapped,
)

#: Around the sizes of SIMD registers and of the blocks of plans.
LENGTHS = (1, 2, 7, 63, 64, 65, 1023, 1024, 1025, 4097, 10000)


def operand(char, shape, position=0, layout=contiguous):
    return layout(values(char, math.prod(shape), position), shape)


def _uniform(chars, layout, shape):
    return [operand(char, shape, i, layout) for i, char in enumerate(chars)]


def arrangements(chars, lengths=LENGTHS):
    """
    Generate (name, operands) for inputs with these type codes: all operands
    alike, each layout beside contiguous ones, and every kind of broadcasting.
    """
    for n in lengths:
        yield f"contiguous-{n}", _uniform(chars, contiguous, (n,))
    for layout in LAYOUTS[1:]:
        for shape in [(130,), (9, 17), (3, 5, 7), (1, 6), (4, 1, 3)]:
            name = f"{layout.__name__}-{shape}"
            yield name, _uniform(chars, layout, shape)
    if len(chars) > 1:
        yield from _mixed_arrangements(chars)


def _mixed_arrangements(chars):
    for layout in LAYOUTS[1:]:
        for odd in range(len(chars)):
            yield (
                f"{layout.__name__}-only-{odd}",
                [
                    operand(char, (6, 5, 4), i, layout if i == odd else contiguous)
                    for i, char in enumerate(chars)
                ],
            )
    pairs = {
        "column-row": [(40, 1), (1, 33)],
        "row-column": [(1, 33), (40, 1)],
        "vector-matrix": [(33,), (5, 33)],
        "matrix-vector": [(5, 33), (33,)],
        "three-axes": [(4, 1, 6), (5, 1)],
        "one-element": [(1,), (70,)],
        "zero-d-left": [(), (70,)],
        "zero-d-right": [(70,), ()],
    }
    for name, shapes in pairs.items():
        yield (
            name,
            [
                operand(char, shape, i)
                # A third operand is like the first.
                for i, (char, shape) in enumerate(zip(chars, 2 * shapes, strict=False))
            ],
        )
    for odd in range(len(chars)):
        for value in (0, 3, True, 0.5, -1.0, 2j):
            operands = _uniform(chars, contiguous, (70,))
            operands[odd] = value
            yield f"scalar-{odd}-{value!r}", operands
