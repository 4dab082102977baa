"""
Kernels that two suites of benchmarks for NumPy have, written from their mathematics.

They are what a user of NumPy writes, and know nothing of deferral.  The sizes are
those of NPBench's presets S and M, and of serge-sans-paille's numpy-benchmarks.
`loops` are three that look at each step of an iteration, of which both have few.
What changes its arguments returns them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Kernel(NamedTuple):
    function: Callable
    make: Callable  # (*sizes) -> arguments by name
    presets: dict  # suite and preset -> sizes

    @property
    def name(self):
        return self.function.__name__


def random(names, *shape, dtype=float):
    """Arrays of values from 0 to 1."""
    rng = np.random.default_rng(11)
    return {name: rng.random(shape).astype(dtype) for name in names.split()}


# Functions of vectors.


def arc_distance(t0, p0, t1, p1):
    """Angles between points of a sphere."""
    h = np.sin((t1 - t0) / 2) ** 2 + np.cos(t0) * np.cos(t1) * (
        np.sin((p1 - p0) / 2) ** 2
    )
    return 2 * np.arctan2(np.sqrt(h), np.sqrt(1 - h))


def compute(x, y, a, b, c):
    return np.clip(x, 2, 10) * a + y * b + c


def whole_numbers(rows, columns):
    rng = np.random.default_rng(11)
    x, y = rng.integers(0, 1000, (2, rows, columns))
    return {"x": x, "y": y, "a": 4, "b": 3, "c": 9}


def rosen(x):
    """Rosenbrock's function."""
    return np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def vibr_energy(a, b, i):
    """Of an oscillator that is not quite harmonic."""
    return np.exp(-a * i - b * i**2)


def log_likelihood(x, mean, sigma):
    """Of a normal distribution, by way of its density."""
    density = np.exp(-((x - mean) ** 2) / (2 * sigma**2))
    density /= np.sqrt(2 * np.pi) * sigma
    return np.sum(np.log(density))


def normalize_complex(z):
    """Mean 0 and variance 1."""
    z = z - np.mean(z)
    return z / np.sqrt(np.mean(z.real**2 + z.imag**2))


def complex_numbers(n):
    real, imaginary = random("x y", n).values()
    return {"z": real + 1j * imaginary}


# Rows, pairs and sums.


def l2norm(x):
    return np.sqrt(np.sum(np.abs(x) ** 2, axis=1))


def l1norm(x, y):
    return np.sum(np.abs(x[:, np.newaxis] - y), axis=-1)


def wdist(a, b, w):
    """Weighted distances of columns, one by one."""
    distances = np.empty((a.shape[1], b.shape[1]))
    for i, j in np.ndindex(*distances.shape):
        distances[i, j] = np.sqrt(np.sum(((a[:, i] - b[:, j]) / w[:, i]) ** 2))
    return distances


def cronbach(items):
    """Cronbach's alpha of a matrix of people by items."""
    k = items.shape[1]
    parts = np.sum(np.var(items, axis=0, ddof=1))
    return k / (k - 1) * (1 - parts / np.var(np.sum(items, axis=1), ddof=1))


def periodic_dist(x, y, z, length):
    """Distances of all particles in a box whose sides are joined."""
    offsets = []
    for axis in (x, y, z):
        offset = axis[:, np.newaxis] - axis
        offset[offset > length / 2] -= length
        offset[offset < -length / 2] += length
        offsets.append(offset)
    dx, dy, dz = offsets
    return np.sqrt(dx**2 + dy**2 + dz**2)


def softmax(x):
    """Along the last axis."""
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def azimint_naive(radius, data, bins):
    """Means of what lies in rings, a mask a ring."""
    edges = np.linspace(0, radius.max(), bins + 1)
    means = np.zeros(bins)
    for i in range(bins):
        inside = (edges[i] <= radius) & (radius < edges[i + 1])
        if inside.any():
            means[i] = data[inside].mean()
    return means


def nbody(mass, position, velocity, steps):
    """Leapfrog steps under softened gravity, and the kinetic energy of each."""
    step, softening = 0.01, 0.1
    energies = np.zeros(steps)
    for i in range(steps):
        offset = position - position[:, np.newaxis]
        square = np.sum(offset**2, axis=-1) + softening**2
        pull = offset * (mass / square**1.5)[:, :, np.newaxis]
        velocity += step * np.sum(pull, axis=1)
        position += step * velocity
        energies[i] = 0.5 * np.sum(mass[:, np.newaxis] * velocity**2)
    return position, velocity, energies


def bodies(n, steps):
    position, velocity = random("p v", n, 3).values()
    return {
        "mass": np.full(n, 20 / n),
        "position": position,
        "velocity": velocity,
        "steps": steps,
    }


# Masks.


def plane(columns, rows):
    x, y = np.linspace(-2, 0.5, columns), np.linspace(-1.25, 1.25, rows)
    return x + 1j * y[:, np.newaxis]


def mandelbrot1(c, iterations):
    """Steps until a point leaves; those that have left are masked."""
    z, count = np.zeros_like(c), np.zeros(c.shape, int)
    for i in range(iterations):
        inside = np.abs(z) < 2
        count[inside] = i
        z[inside] = z[inside] ** 2 + c[inside]
    return z, count


def mandelbrot2(c, iterations):
    """The same; those that have left are dropped."""
    count = np.full(c.size, iterations)
    index, c = np.arange(c.size), c.ravel()
    z = c.copy()
    for i in range(iterations):
        left = np.abs(z) > 2
        count[index[left]] = i
        index, z, c = index[~left], z[~left], c[~left]
        z = z * z + c
    return count


def points(columns, rows, iterations):
    return {"c": plane(columns, rows), "iterations": iterations}


# Iterations, of which something is read at each step.


def newton(a):
    """Square roots, each step for all while one is not good enough."""
    x = a
    while (np.abs(x * x - a) > 1e-12 * a).any():
        x = (x + a / x) / 2
    return x


def of_many_sizes(n):
    return {"a": 10 ** (12 * random("a", n)["a"])}


def escape_counts(c, iterations):
    """Mandelbrot's set without masks."""
    z, count = c, np.zeros(c.shape, int)
    with np.errstate(all="ignore"):
        for _ in range(iterations):
            count += np.abs(z) < 2
            z = z * z + c
    return count


def logistic_map(x, steps):
    """Values of one place over time."""
    seen = np.zeros(steps)
    for i in range(steps):
        seen[i] = x[x.size // 2]
        x = 3.7 * x * (1 - x)
    return x, seen


# Images.


def harris(image):
    """Scores of corners."""
    dx = (image[1:] - image[:-1])[:, 1:]
    dy = (image[:, 1:] - image[:, :-1])[1:]
    xx, yy, xy = dx * dx, dy * dy, dx * dy
    return xx * yy - xy * xy - 0.05 * (xx + yy) ** 2


def laplacien(image):
    """How far each pixel is from its neighbours, to a maximum of 1."""
    inner = image[1:-1, 1:-1]
    around = image[:-2, 1:-1] + image[2:, 1:-1] + image[1:-1, :-2] + image[1:-1, 2:]
    difference = np.abs(4 * inner - around)
    return difference / difference.max()


def specialconvolve(image):
    """A cross of ones, by rows and then by columns."""
    rows = image[:-2] + image[1:-1] + image[2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] - image[1:-1, 1:-1]


def counted(side):
    return {"image": np.arange(side * side, dtype=np.uint32).reshape(side, side)}


# Grids in time.


def evolve(grid, step):
    """Heat in a torus, one step."""
    around = sum(np.roll(grid, shift, axis) for shift in (1, -1) for axis in (0, 1))
    return grid + step * (around - 4 * grid)


def block_of_heat(side):
    grid = np.zeros((side, side))
    grid[2 * side // 5 : side // 2, 2 * side // 5 : side // 2] = 0.005
    return {"grid": grid, "step": 0.1}


def diffusion(u, steps):
    """Heat in a square whose edges stay as they are."""
    v = u.copy()
    for _ in range(steps):
        v[1:-1, 1:-1] = u[1:-1, 1:-1] + 0.1 * (
            (u[2:, 1:-1] - 2 * u[1:-1, 1:-1] + u[:-2, 1:-1])
            + (u[1:-1, 2:] - 2 * u[1:-1, 1:-1] + u[1:-1, :-2])
        )
        u, v = v, u
    return u


def jacobi_1d(a, b, steps):
    for _ in range(steps):
        b[1:-1] = (a[:-2] + a[1:-1] + a[2:]) / 3
        a[1:-1] = (b[:-2] + b[1:-1] + b[2:]) / 3
    return a, b


def jacobi_2d(a, b, steps):
    for _ in range(steps):
        for x, y in ((a, b), (b, a)):
            y[1:-1, 1:-1] = 0.2 * (
                x[1:-1, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:] + x[2:, 1:-1] + x[:-2, 1:-1]
            )
    return a, b


def heat_3d(a, b, steps):
    inner = slice(1, -1)
    for _ in range(steps):
        for x, y in ((a, b), (b, a)):
            centre = x[1:-1, 1:-1, 1:-1]
            y[1:-1, 1:-1, 1:-1] = (
                0.125 * (x[2:, inner, inner] - 2 * centre + x[:-2, inner, inner])
                + 0.125 * (x[inner, 2:, inner] - 2 * centre + x[inner, :-2, inner])
                + 0.125 * (x[inner, inner, 2:] - 2 * centre + x[inner, inner, :-2])
                + centre
            )
    return a, b


def fdtd_2d(ex, ey, hz, steps):
    """Maxwell's equations in a plane, with a source on an edge."""
    for t in range(steps):
        ey[0] = t
        ey[1:] -= 0.5 * (hz[1:] - hz[:-1])
        ex[:, 1:] -= 0.5 * (hz[:, 1:] - hz[:, :-1])
        hz[:-1, :-1] -= 0.7 * (ex[:-1, 1:] - ex[:-1, :-1] + ey[1:, :-1] - ey[:-1, :-1])
    return ex, ey, hz


def laplacian(grid):
    return (
        grid[:-2, 1:-1]
        + grid[2:, 1:-1]
        + grid[1:-1, :-2]
        + grid[1:-1, 2:]
        - 4 * grid[1:-1, 1:-1]
    )


def grayscott(u, v, steps):
    """Two chemicals that diffuse and react."""
    x, y = u[1:-1, 1:-1], v[1:-1, 1:-1]
    for _ in range(steps):
        du, dv = 0.16 * laplacian(u), 0.08 * laplacian(v)
        reaction = x * y * y
        x += du - reaction + 0.04 * (1 - x)
        y += dv + reaction - 0.1 * y
    return u, v


def chemicals(side, steps):
    u, v = (0.15 * x for x in random("u v", side + 2, side + 2, dtype="f4").values())
    middle = slice(side // 2 - 20, side // 2 + 20)
    u += 0.85
    u[middle, middle], v[middle, middle] = 0.5, 0.25
    return {"u": u, "v": v, "steps": steps}


def hdiff(u, factor):
    """Diffusion of fourth order in horizontal planes, against slopes only."""
    inner = u[1:-1, 1:-1]
    curvature = 4 * inner - u[2:, 1:-1] - u[:-2, 1:-1] - u[1:-1, 2:] - u[1:-1, :-2]
    flow = curvature[1:, 1:-1] - curvature[:-1, 1:-1]
    slope = inner[1:, 1:-1] - inner[:-1, 1:-1]
    along = np.where(flow * slope > 0, 0, flow)
    flow = curvature[1:-1, 1:] - curvature[1:-1, :-1]
    slope = inner[1:-1, 1:] - inner[1:-1, :-1]
    across = np.where(flow * slope > 0, 0, flow)
    return u[2:-2, 2:-2] - factor * (
        along[1:] - along[:-1] + across[:, 1:] - across[:, :-1]
    )


def field(rows, columns, levels):
    u = random("u", rows + 4, columns + 4, levels)["u"]
    return {"u": u, "factor": random("factor", rows, columns, levels)["factor"]}


def vadv(lower, diagonal, upper, right):
    """Thomas's algorithm along the last axis of a grid, all columns at a time."""
    levels = right.shape[-1]
    factor, result = np.empty_like(right), np.empty_like(right)
    factor[..., 0] = upper[..., 0] / diagonal[..., 0]
    result[..., 0] = right[..., 0] / diagonal[..., 0]
    for k in range(1, levels):
        pivot = 1 / (diagonal[..., k] - lower[..., k] * factor[..., k - 1])
        factor[..., k] = upper[..., k] * pivot
        result[..., k] = (right[..., k] - lower[..., k] * result[..., k - 1]) * pivot
    for k in range(levels - 2, -1, -1):
        result[..., k] -= factor[..., k] * result[..., k + 1]
    return result


def columns_of_equations(*shape):
    arguments = random("lower diagonal upper right", *shape)
    arguments["diagonal"] += 3
    return arguments


def cavity_flow(u, v, p, steps, corrections):
    """Water in a box whose lid moves: momentum, and pressure by relaxation."""
    step, viscosity = 0.0005, 0.1
    width = 2 / (u.shape[0] - 1)
    for _ in range(steps):
        du_dx = (u[1:-1, 2:] - u[1:-1, :-2]) / (2 * width)
        du_dy = (u[2:, 1:-1] - u[:-2, 1:-1]) / (2 * width)
        dv_dx = (v[1:-1, 2:] - v[1:-1, :-2]) / (2 * width)
        dv_dy = (v[2:, 1:-1] - v[:-2, 1:-1]) / (2 * width)
        source = (du_dx + dv_dy) / step - du_dx**2 - 2 * du_dy * dv_dx - dv_dy**2
        for _ in range(corrections):
            p[1:-1, 1:-1] = (
                p[1:-1, 2:] + p[1:-1, :-2] + p[2:, 1:-1] + p[:-2, 1:-1]
            ) / 4 - width**2 / 4 * source
            p[:, -1], p[0], p[:, 0], p[-1] = p[:, -2], p[1], p[:, 1], 0
        old_u, old_v = u.copy(), v.copy()
        x, y = old_u[1:-1, 1:-1], old_v[1:-1, 1:-1]
        for new, old, slope in (
            (u, old_u, p[1:-1, 2:] - p[1:-1, :-2]),
            (v, old_v, p[2:, 1:-1] - p[:-2, 1:-1]),
        ):
            new[1:-1, 1:-1] = (
                old[1:-1, 1:-1]
                - x * step / width * (old[1:-1, 1:-1] - old[1:-1, :-2])
                - y * step / width * (old[1:-1, 1:-1] - old[:-2, 1:-1])
                - step / (2 * width) * slope
                + viscosity * step / width**2 * laplacian(old)
            )
            new[0] = new[:, 0] = new[:, -1] = new[-1] = 0
        u[-1] = 1
    return u, v, p


def still_water(side, steps, corrections):
    grids = {name: np.zeros((side, side)) for name in "uvp"}
    return grids | {"steps": steps, "corrections": corrections}


def with_steps(names):
    """Arrays of all sizes but the last, which is a number of steps."""
    return lambda *sizes: random(names, *sizes[:-1]) | {"steps": sizes[-1]}


NPBENCH_S, NPBENCH_M = "NPBench S", "NPBench M"
SERGE, LOOPS = "numpy-benchmarks", "loops"
PRESETS = [NPBENCH_S, NPBENCH_M, SERGE, LOOPS]


def both(small, medium):
    return {NPBENCH_S: small, NPBENCH_M: medium}


def serge(*sizes):
    return {SERGE: sizes}


#: Without M where that takes more than a second or two.
KERNELS = [
    Kernel(
        arc_distance,
        lambda n: random("t0 p0 t1 p1", n),
        both((100_000,), (1_000_000,)) | serge(10_000),
    ),
    Kernel(compute, whole_numbers, both((2000, 2000), (5000, 5000))),
    Kernel(hdiff, field, both((64, 64, 60), (128, 128, 160))),
    Kernel(vadv, columns_of_equations, both((60, 60, 40), (112, 112, 80))),
    Kernel(
        heat_3d,
        lambda n, steps: with_steps("a b")(n, n, n, steps),
        both((25, 25), (40, 50)),
    ),
    Kernel(jacobi_1d, with_steps("a b"), both((3200, 800), (12_000, 3000))),
    Kernel(jacobi_2d, with_steps("a b"), both((150, 150, 50), (350, 350, 80))),
    Kernel(fdtd_2d, with_steps("ex ey hz"), both((200, 220, 20), (400, 450, 60))),
    Kernel(cavity_flow, still_water, both((61, 25, 5), (121, 50, 10))),
    Kernel(mandelbrot1, points, both((125, 125, 60), (250, 250, 150))),
    Kernel(mandelbrot2, points, both((200, 200, 40), (500, 500, 80))),
    Kernel(nbody, bodies, both((25, 40), (50, 250))),
    Kernel(
        softmax,
        lambda *shape: random("x", *shape, dtype="f4"),
        both((16, 16, 128, 128), (32, 8, 256, 256)),
    ),
    Kernel(
        azimint_naive,
        lambda n, bins: random("radius data", n) | {"bins": bins},
        {NPBENCH_S: (400_000, 1000)},
    ),
    Kernel(rosen, lambda n: {"x": np.arange(n, dtype=float)}, serge(1_000_000)),
    Kernel(vibr_energy, lambda n: random("a b i", n), serge(100_000)),
    Kernel(
        log_likelihood,
        lambda n: random("x", n) | {"mean": 0.1, "sigma": 1.1},
        serge(100_000),
    ),
    Kernel(normalize_complex, complex_numbers, serge(10_000)),
    Kernel(l2norm, lambda n: random("x", n, n), serge(1000)),
    Kernel(l1norm, lambda n: random("x y", n, n), serge(80)),
    Kernel(wdist, lambda n: random("a b w", n, n), serge(70)),
    Kernel(cronbach, lambda n: random("items", n, n), serge(600)),
    Kernel(
        periodic_dist,
        lambda n: random("x y z", n) | {"length": 0.2},
        serge(200),
    ),
    Kernel(harris, lambda n: random("image", n, n), serge(512)),
    Kernel(laplacien, lambda n: random("image", n, n, 3), serge(500)),
    Kernel(specialconvolve, counted, serge(1000)),
    Kernel(evolve, block_of_heat, serge(512)),
    Kernel(diffusion, with_steps("u"), serge(128, 128, 100)),
    Kernel(grayscott, chemicals, serge(280, 40)),
    Kernel(newton, of_many_sizes, {LOOPS: (100_000,)}),
    Kernel(escape_counts, points, {LOOPS: (400, 400, 40)}),
    Kernel(logistic_map, with_steps("x"), {LOOPS: (100_000, 50)}),
]
