"""SciPy: Cython, C, C++, Fortran and BLAS that know ordinary arrays only."""

import numpy as np
import pytest

from helpers.compare import assert_same, bits
from helpers.handover import (
    dtypes,
    handed,
    in_threads,
    lengths,
    made,
    operand_of,
    pending,
    positive,
    regular,
    squares,
    view,
)

pytest.importorskip("scipy")
from scipy import (
    cluster,
    fft,
    integrate,
    interpolate,
    linalg,
    ndimage,
    optimize,
    signal,
    sparse,
    spatial,
    special,
    stats,
)
from scipy.linalg import blas, lapack
from scipy.sparse import csgraph
from scipy.sparse import linalg as sparse_linalg


def symmetric(shape, dtype="f8", seed=0):
    n = min(shape)
    a = regular((n, n), dtype, seed=seed)
    return handed(a + a.T.conj())


def definite(shape, dtype="f8", seed=0):
    n = min(shape)
    a, eye = regular((n, n), dtype, seed=seed), np.eye(n, dtype=dtype)
    product = a @ a.T.conj()
    return handed(product + n * eye)


def square(shape, dtype="f8", order="C", seed=0):
    n = min(shape)
    eye = np.eye(n, dtype=dtype)
    return made(lambda a: a + n * eye, (n, n), dtype, order, seed)


MATRIX = {
    "lu": lambda a: linalg.lu(a),
    "lu_factor": lambda a: linalg.lu_factor(a),
    "inv": lambda a: linalg.inv(a),
    "det": lambda a: linalg.det(a),
    "solve": lambda a: linalg.solve(a, handed(a[0] + 1 * a[1])),
    "solve_triangular": lambda a: linalg.solve_triangular(a, regular(len(a))),
    "qr": lambda a: linalg.qr(a, mode="economic"),
    "matmul_toeplitz": lambda a: linalg.matmul_toeplitz(a[0], a),
    "norm": lambda a: linalg.norm(a, 1),
    "bandwidth": lambda a: linalg.bandwidth(a),
    "issymmetric": lambda a: linalg.issymmetric(a),
    "convolve": lambda a: ndimage.uniform_filter(a.real),
}


@squares
@dtypes("f8", "f4", "c16")
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("name", MATRIX)
def test_square_matrix(name, shape, dtype, order):
    if shape[0] > 500 and (dtype != "f8" or order == "F" or name in ("qr", "inv")):
        pytest.skip("slow, and no other than the middle size")
    assert_same(lambda: MATRIX[name](square(shape, dtype, order)))


DECOMPOSITIONS = {
    "svd": lambda shape, t: linalg.svd(pending(shape, t), full_matrices=False),
    "pinv": lambda shape, t: linalg.pinv(pending(shape, t)),
    "lstsq": lambda shape, t: linalg.lstsq(pending(shape, t), pending(shape[0], t)),
    "eig": lambda shape, t: linalg.eig(square(shape, t)),
    "eigh": lambda shape, t: linalg.eigh(symmetric(shape, t)),
    "schur": lambda shape, t: linalg.schur(square(shape, t)),
    "hessenberg": lambda shape, t: linalg.hessenberg(square(shape, t)),
    "cholesky": lambda shape, t: linalg.cholesky(definite(shape, t), lower=True),
    "cho_solve": lambda shape, t: linalg.cho_solve(
        (definite(shape, t), True), pending(min(shape), t)
    ),
    "expm": lambda shape, t: linalg.expm(handed(square(shape, t) / 1000)),
    "sqrtm": lambda shape, t: linalg.sqrtm(definite(shape, t)),
    "solve_sylvester": lambda shape, t: linalg.solve_sylvester(
        square(shape, t), square(shape, t, seed=1), symmetric(shape, t)
    ),
}


@pytest.mark.parametrize("shape", [(8, 9), (90, 91)], ids=["small", "64KiB"])
@dtypes("f8", "f4", "c16")
@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_decomposition(name, shape, dtype):
    assert_same(lambda: DECOMPOSITIONS[name](shape, dtype))


@squares
def test_overwriting(shape):
    """LAPACK works in the memory of its arguments where it may."""

    def work():
        a, b = square(shape, order="F"), pending(min(shape), seed=1)
        x = linalg.solve(a, b, overwrite_a=True, overwrite_b=True)
        c, y = operand_of(lambda c: c * 2 + 1, shape, order="F")
        r = linalg.qr(c, mode="r", overwrite_a=True)
        return a, b, x, *r, c, y

    assert_same(work)


@squares
def test_blas(shape):
    """Wrappers made by f2py, which reads and writes the struct."""
    m, n = shape

    def work():
        a, b = pending((m, n), order="F"), pending((n, m), order="F", seed=1)
        c = regular((m, m), order="F", seed=2)
        d = handed(c - 1)
        # In place: d must keep what c was.
        result = blas.dgemm(1.0, a, b, 1.0, c, overwrite_c=True)
        x, y = pending(n, seed=3), regular(n, seed=4)
        z = y + 1
        return result, c, d, blas.daxpy(x, y), y, z, blas.dnrm2(x)

    assert_same(work)


def test_blas_writes_into_operand():
    """The array itself is changed when it fits, whether it is an operand or not."""

    def work():
        y, z = operand_of(lambda y: y * 3, 8192)
        result = blas.dscal(2.0, y)
        return np.shares_memory(result, y), y, z

    assert_same(work)


def test_lapack():
    def work():
        a, x = operand_of(lambda a: a + 1, (90, 90), order="F")
        lu, piv, info = lapack.dgetrf(a, overwrite_a=True)
        return lu, piv, info, a, x

    assert_same(work)


VECTOR = {
    "fft": fft.fft,
    "rfft": lambda x: fft.rfft(x.real),
    "ifft overwrite": lambda x: (fft.ifft(x, overwrite_x=True),),
    "dct": lambda x: fft.dct(x.real),
    "next": lambda x: fft.fft(x, n=len(x) // 2 + 1),
    "workers": lambda x: fft.fft(x.reshape(4, -1), workers=2),
    "hilbert": lambda x: signal.hilbert(x.real),
    "fftconvolve": lambda x: signal.fftconvolve(x, x[:50]),
    "lfilter": lambda x: signal.lfilter([1.0, 0.5], [1.0, -0.2, 0.1], x),
    "sosfilt": lambda x: signal.sosfilt(signal.butter(4, 0.2, output="sos"), x.real),
    "filtfilt": lambda x: signal.filtfilt(*signal.butter(3, 0.3), x.real),
    "upfirdn": lambda x: signal.upfirdn(np.array([0.5, 1, 0.5], x.dtype), x, 2, 3),
    "resample_poly": lambda x: signal.resample_poly(x.real, 3, 2),
    "welch": lambda x: signal.welch(x.real, nperseg=32),
    "find_peaks": lambda x: signal.find_peaks(x.real)[0],
    "argrelmax": lambda x: signal.argrelmax(x.real),
    "medfilt": lambda x: signal.medfilt(x.real, 5),
    "detrend": lambda x: signal.detrend(x.real),
    "gaussian_filter1d": lambda x: ndimage.gaussian_filter1d(x.real, 2.0),
    "erf": lambda x: special.erf(x.real),
    "gamma": lambda x: special.gamma(handed(np.abs(x) + 1)),
    "jv": lambda x: special.jv(1.5, handed(np.abs(x) + 1)),
    "xlogy": lambda x: special.xlogy(handed(np.abs(x) + 1), 2.0),
    "logsumexp": lambda x: special.logsumexp(x.real),
    "softmax": lambda x: special.softmax(x.real),
    "expit": lambda x: special.expit(x.real),
    "trapezoid": lambda x: integrate.trapezoid(x),
    "simpson": lambda x: integrate.simpson(x.real),
    "cumulative_trapezoid": lambda x: integrate.cumulative_trapezoid(x),
    "interp1d": lambda x: interpolate.interp1d(np.arange(len(x)), x.real)([1.5, 2]),
    "CubicSpline": lambda x: interpolate.CubicSpline(np.arange(len(x)), x.real)(
        handed(np.abs(x.real[:40]) + 3)
    ),
    "splrep": lambda x: interpolate.splrep(np.arange(len(x)), x.real, s=0),
    "make_interp_spline": lambda x: (
        interpolate.make_interp_spline(np.arange(len(x)), x.real).c
    ),
    "PchipInterpolator": lambda x: interpolate.PchipInterpolator(
        np.arange(len(x)), x.real
    )([0.5, 3.25]),
    "rankdata": lambda x: stats.rankdata(x.real),
    "norm.cdf": lambda x: stats.norm.cdf(x.real),
    "ks_1samp": lambda x: tuple(stats.ks_1samp(x.real, stats.norm.cdf)),
    "describe": lambda x: tuple(stats.describe(x.real)),
    "gaussian_kde": lambda x: stats.gaussian_kde(x.real[:200])([0.0, 1.0]),
    "binned_statistic": lambda x: tuple(stats.binned_statistic(x.real, x.real, "mean")),
    "kdtree": lambda x: spatial.cKDTree(x.real.reshape(-1, 4)).query([[0.0] * 4], 3),
}
# What takes seconds for millions of elements.
SLOW = {"jv", "splrep", "rankdata", "kdtree", "ks_1samp", "gaussian_kde", "medfilt"}


@lengths
@dtypes("f8", "f4", "c16")
@pytest.mark.parametrize("name", VECTOR)
def test_vector(name, n, dtype):
    if n > 100_000 and (name in SLOW or dtype != "f8"):
        pytest.skip("slow, and no other than the middle size")
    call = VECTOR[name]

    def work():
        x = pending(n, dtype)
        result = call(x)
        return (*result, x) if isinstance(result, tuple) else (result, x)

    assert_same(work)


IMAGE = {
    "convolve": lambda a: ndimage.convolve(a, [[1, 2, 1], [0, 0, 0], [1, 1, 1]]),
    "gaussian": lambda a: ndimage.gaussian_filter(a, 1.5),
    "median": lambda a: ndimage.median_filter(a, 3),
    "maximum": lambda a: ndimage.maximum_filter(a, 3),
    "rotate": lambda a: ndimage.rotate(a, 30.0, reshape=False),
    "zoom": lambda a: ndimage.zoom(a, 0.5),
    "map_coordinates": lambda a: ndimage.map_coordinates(a, positive((2, 30))),
    "spline": lambda a: ndimage.spline_filter(a),
    "label": lambda a: ndimage.label(handed(a > 0)),
    "distance": lambda a: ndimage.distance_transform_edt(handed(a > 0)),
    "dilation": lambda a: ndimage.grey_dilation(a, (3, 3)),
    "fill": lambda a: ndimage.binary_fill_holes(handed(a > 0)),
    "mean": lambda a: ndimage.mean(a, handed(a > 0), [0, 1]),
    "center": lambda a: ndimage.center_of_mass(a),
    "sobel": lambda a: ndimage.sobel(a),
    "generic": lambda a: ndimage.generic_filter(a[:8, :8], np.sum, 3),
}


@squares
@dtypes("f8", "f4", "i8", "u1")
@pytest.mark.parametrize("name", IMAGE)
def test_image(name, shape, dtype):
    if shape[0] > 500 and dtype != "f8":
        pytest.skip("slow, and no other than the middle size")

    def work():
        a = pending(shape, dtype)
        # The mask of 1 byte an element may be below the bound.
        if a.size < 32768 and name in ("label", "distance", "fill", "mean"):
            return ndimage.label(a > 0)[0], a
        result = IMAGE[name](a)
        return (*result, a) if isinstance(result, tuple) else (result, a)

    assert_same(work)


@squares
def test_image_output(shape):
    """An operand is the output of C code."""

    def work():
        out, x = operand_of(lambda out: out - 1, shape)
        ndimage.uniform_filter(pending(shape, seed=5), 3, output=out)
        return out, x

    assert_same(work)


def sparse_matrix(shape, dtype="f8", seed=0):
    a = regular(shape, dtype, seed=seed)
    a[np.abs(a) < 1.2] = 0
    return handed(a * 2)


SPARSE = {
    "csr": lambda a: sparse.csr_array(a),
    "csc": lambda a: sparse.csc_array(a),
    "coo": lambda a: sparse.coo_array(a),
    "bsr": lambda a: sparse.bsr_array(sparse.csr_array(a)),
    "transpose": lambda a: sparse.csr_array(a).T.tocsr(),
    "product": lambda a: sparse.csr_array(a) @ sparse.csr_array(a).T,
    "scaled": lambda a: sparse.csr_array(a) * 2.5,
}


@squares
@dtypes()
@pytest.mark.parametrize("name", SPARSE)
def test_sparse(name, shape, dtype):
    def work():
        m = SPARSE[name](sparse_matrix(shape, dtype))
        x = pending(m.shape[1], dtype)
        if m.format == "coo":
            return m.row, m.col, m.data, m @ x
        return m.indptr, m.indices, m.data, m @ x, m.sum(axis=0), m.toarray()

    assert_same(work)


@squares
def test_sparse_of_pending_parts(shape):
    """data, indices and indptr themselves are pending."""
    m, n = shape

    def work():
        whole = sparse.random(m, n, 0.2, "csr", rng=np.random.default_rng(0))
        data = handed(np.sqrt(whole.data))
        matrix = sparse.csr_array((data, whole.indices, whole.indptr), shape)
        before = handed(matrix.data * 2)
        matrix.data *= 3
        matrix.sum_duplicates()
        matrix.sort_indices()
        return matrix.data, before, matrix @ pending(n), matrix.T @ pending(m)

    assert_same(work)


@pytest.mark.parametrize("n", [10, 200])
def test_sparse_solvers(n):
    def work():
        diagonals = [pending(n - 1), positive(n) + 9, pending(n - 1, seed=1)]
        m = sparse.diags_array(diagonals, offsets=[-1, 0, 1]).tocsc()
        b = pending(n)
        values = np.sort(sparse_linalg.eigsh(m + m.T, 4, v0=pending(n))[0])
        return (
            sparse_linalg.spsolve(m, b),
            sparse_linalg.splu(m).solve(b),
            sparse_linalg.cg(m + m.T, b)[0],
            sparse_linalg.gmres(m, b)[0],
            values,
            sparse_linalg.expm_multiply(m, b),
        )

    assert_same(work)


def test_graphs():
    def work():
        weights = positive((90, 90))
        return (
            csgraph.shortest_path(weights),
            csgraph.minimum_spanning_tree(weights).toarray(),
            csgraph.connected_components(weights)[1],
            csgraph.dijkstra(sparse.csr_array(weights), indices=0),
        )

    assert_same(work)


OPTIMIZE = {
    "lbfgs": lambda f, x: optimize.minimize(f, x, method="L-BFGS-B").x,
    "bfgs": lambda f, x: optimize.minimize(f, x, method="BFGS").x,
    "slsqp": lambda f, x: optimize.minimize(f, x, method="SLSQP").x,
    "cobyla": lambda f, x: (
        optimize.minimize(f, x[:3], method="COBYLA", options={"maxiter": 100}).x
    ),
    "nelder": lambda f, x: (
        optimize.minimize(f, x[:3], method="Nelder-Mead", options={"maxiter": 100}).x
    ),
    "tnc": lambda f, x: optimize.minimize(f, x, method="TNC").x,
}


@pytest.mark.parametrize("name", OPTIMIZE)
def test_minimize(name):
    """The callback gives pending arrays to the compiled code that called it."""

    def work():
        def cost(x):
            i = np.arange(len(x))
            return ((x - i) ** 2 * (1 + 0.1 * i) + np.cos(x)).sum()

        return OPTIMIZE[name](cost, pending(6) if name != "x" else None)

    assert_same(work)


def test_roots_and_fits():
    def work():
        t = np.linspace(0, 4, 9000)
        y = handed(2.5 * np.exp(-1.3 * t) + 0.5)
        return (
            optimize.curve_fit(lambda t, a, b, c: a * np.exp(-b * t) + c, t, y)[0],
            optimize.least_squares(lambda p: p * t[:3] - y[:3], [1.0, 1.0, 1.0]).x,
            optimize.root(lambda x: x**3 - [1.0, 8.0], handed_small(2)).x,
            optimize.fsolve(lambda x: x * x - 2, [1.0]),
            optimize.nnls(pending((90, 10)), pending(90))[0],
            optimize.linear_sum_assignment(pending((90, 91))),
            optimize.linprog(positive(90), pending((5, 90)), np.ones(5)).x,
        )

    def handed_small(n):
        return np.ones(n) * 1.5 + 0.25

    assert_same(work)


@pytest.mark.parametrize("method", ["RK45", "DOP853", "Radau", "BDF", "LSODA"])
@pytest.mark.parametrize("n", [3, 60])
def test_ode(method, n):
    def work():
        rates = positive(n)

        def derivative(t, y):
            return -rates * y + np.sin(t)

        solution = integrate.solve_ivp(derivative, (0, 2), pending(n), method)
        return solution.y, solution.t

    assert_same(work)


def test_quadrature():
    def work():
        grid = np.linspace(0, 1, 12000)
        return (
            integrate.quad(lambda t: float(np.exp(-(grid * t))[5]), 0, 1)[0],
            integrate.quad_vec(lambda t: np.exp(-grid * t), 0, 1)[0],
            integrate.odeint(lambda y, t: -y * grid[:40], pending(40), grid[:50]),
            integrate.fixed_quad(lambda t: t * np.exp(t), 0, 1)[0],
        )

    assert_same(work)


def test_interpolation():
    def work():
        points, values = pending((400, 2)), pending(400, seed=1)
        wanted = regular((50, 2), seed=2) * 0.2
        grid = (np.arange(90.0), np.arange(91.0))
        surface = pending((90, 91))
        return (
            interpolate.griddata(points, values, wanted, "linear"),
            interpolate.RBFInterpolator(points, values, neighbors=20)(wanted),
            interpolate.RectBivariateSpline(*grid, surface)(grid[0][:9], grid[1][:9]),
            interpolate.RegularGridInterpolator(grid, surface)(positive((3000, 2))),
            interpolate.UnivariateSpline(np.arange(400), values)(1.5),
        )

    assert_same(work)


def test_geometry():
    def work():
        points = pending((1000, 3))
        return (
            spatial.ConvexHull(points).vertices,
            spatial.Delaunay(points).simplices,
            spatial.distance.pdist(points),
            spatial.distance.cdist(points, pending((50, 3), seed=1), "cityblock"),
            spatial.cKDTree(points).query(pending((50, 3), seed=1), k=3),
            cluster.hierarchy.linkage(points[:200]),
            cluster.vq.kmeans2(points, 3, rng=1)[0],
        )

    assert_same(lambda: tuple(np.concatenate([np.ravel(r) for r in work()])[None]))


@pytest.mark.parametrize("m", [16, 180])
@dtypes()
def test_views(m, dtype):
    """A view of a pending array, and one that is both pending and viewed."""

    def work():
        a = view((m, m + 1), dtype)
        x = a + 1
        return (
            ndimage.convolve(x.real, [[1, 2], [3, 4]]),
            linalg.norm(a),
            sparse.csr_array(x).sum(axis=1),
            linalg.svdvals(x.T),
        )

    assert_same(work)


@lengths
def test_ufuncs_take_part(n):
    """Ufuncs of special are deferred themselves, and report as eager ones do."""

    def work():
        x = positive(n)
        y = handed(special.erf(x) + special.expit(x))
        z = handed(special.gammaln(x) * y)
        with special.errstate(all="warn"):
            w = special.log_ndtr(z - 40)
        return y, z, special.loggamma(y + 1j * y), w

    assert_same(work)


@squares
def test_threads(shape):
    """Four threads are the first to read one array, most without the GIL."""

    def work():
        a, b = square(shape), pending(shape, seed=1)

        def job():
            return (
                bits(linalg.lu_factor(a)[0]),
                bits(ndimage.sobel(b)),
                bits(fft.fft(b)),
            )

        results = in_threads(job)
        assert len(set(results)) == 1
        return (*map(np.frombuffer, results[0]), a, b)

    assert_same(work)


def test_many_calls():
    """Small arrays come and go, each at a guard of its own."""

    def work():
        total = 0.0
        for i in range(400):
            x = pending(200 + i, seed=i)
            total += (
                special.expit(x)[i] + linalg.norm(x) + signal.lfilter([1], [2], x)[3]
            )
        return total

    assert_same(work)
