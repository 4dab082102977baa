"""Libraries that write arrays to files and pictures: h5py, Pillow, Matplotlib."""

import io

import numpy as np
import pytest

from helpers.compare import assert_same
from helpers.handover import (
    dtypes,
    handed,
    lengths,
    made,
    operand_of,
    pending,
    positive,
    squares,
    view,
)


class TestH5py:
    @pytest.fixture
    def store(self):
        h5py = pytest.importorskip("h5py")
        return lambda: (
            h5py.File.in_memory()
            if hasattr(h5py.File, "in_memory")
            else (h5py.File("x.h5", "w", driver="core", backing_store=False))
        )

    @lengths
    @dtypes("f8", "f4", "c16", "i8", "u1", "?", "f2")
    def test_round_trip(self, store, n, dtype):
        def work():
            x = pending(n, dtype)
            with store() as file:
                file["x"] = x
                data = file.create_dataset(
                    "y", data=handed(x ^ x if dtype == "?" else x * 2)
                )
                return file["x"][:], data[...], x

        assert_same(work)

    @squares
    @pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
    def test_chunks(self, store, shape, compression):
        def work():
            with store() as file:
                options = {"compression": compression, "chunks": True}
                data = file.create_dataset("x", data=pending(shape), **options)
                data[1:3] = handed(pending(shape) * 3)[1:3]
                data[:, 2] = pending((shape[0], 2), order="F")[:, 0]
                return data[:], data[::2, 1:5] * 2

        assert_same(work)

    @squares
    def test_write_and_read_direct(self, store, shape):
        """read_direct fills the memory of an operand."""

        def work():
            with store() as file:
                data = file.create_dataset("x", shape)
                data.write_direct(pending(shape))
                out, x = operand_of(lambda out: out - 1, shape, seed=3)
                data.read_direct(out)
                later = handed(out * 2)
                data.read_direct(later)
                return out, x, later

        assert_same(work)

    def test_attributes(self, store):
        def work():
            with store() as file:
                file.attrs["a"] = pending(60) * 2
                return file.attrs["a"]

        assert_same(work)


class TestPillow:
    @pytest.fixture
    def image(self):
        return pytest.importorskip("PIL.Image")

    @squares
    def test_grey(self, image, shape):
        def work():
            x = (
                made(lambda a: a * 2 + 1, shape, "u1")
                if shape[0] > 500
                else ((np.arange(shape[0] * shape[1], dtype="u1") * 2).reshape(shape))
            )
            picture = image.fromarray(x)
            small = picture.resize((5, 6)).rotate(45)
            return np.asarray(small) + 1, np.array(picture), x

        assert_same(work)

    @pytest.mark.parametrize("n", [8, 120, 600])
    def test_colours(self, image, n):
        def work():
            x = pending((n, n, 3), "u1")
            picture = image.fromarray(x)
            file = io.BytesIO()
            picture.save(file, "PNG")
            again = np.asarray(image.open(io.BytesIO(file.getvalue())))
            y = again * 2
            x[0, 0] = 9
            return again, y, np.asarray(picture.convert("L")), x

        assert_same(work)

    @squares
    def test_float_and_view(self, image, shape):
        def work():
            x = pending(shape, "f4")
            m, n = shape
            return (
                np.asarray(image.fromarray(x).resize((n // 2, m // 2))),
                np.asarray(image.fromarray(view(shape, "f4"))) * 2,
                x,
            )

        assert_same(work)

    def test_frombuffer(self, image):
        """The picture shares the memory of the array, which is changed later."""

        def work():
            x = pending((300, 300), "u1")
            picture = image.frombuffer("L", (300, 300), x, "raw", "L", 0, 1)
            y = x + 1
            x[0] = 200
            return np.asarray(picture), y, x

        assert_same(work)


PAINT = {
    "plot": lambda ax, n: ax.plot(pending(n), pending(n, seed=1)),
    "scatter": lambda ax, n: ax.scatter(
        pending(n), pending(n, seed=1), c=pending(n, seed=2), s=positive(n)
    ),
    "bar": lambda ax, n: ax.bar(np.arange(40), positive(n)[:40]),
    "hist": lambda ax, n: ax.hist(pending(n), bins=20),
    "imshow": lambda ax, n: ax.imshow(pending((n // 20, 20)), aspect="auto"),
    "rgb": lambda ax, n: ax.imshow(pending((n // 20, 20, 3), "u1"), aspect="auto"),
    "contour": lambda ax, n: ax.contourf(pending((60, 80))),
    "mesh": lambda ax, n: ax.pcolormesh(pending((60, 80))),
    "quiver": lambda ax, n: ax.quiver(pending((20, 20)), pending((20, 20), seed=1)),
    "fill": lambda ax, n: ax.fill_between(np.arange(n), pending(n)),
    "triangles": lambda ax, n: ax.tripcolor(
        pending(300), pending(300, seed=1), pending(300, seed=2)
    ),
    "box": lambda ax, n: ax.boxplot(pending((n // 4, 4))),
    "log": lambda ax, n: ax.loglog(positive(n)),
    "text": lambda ax, n: ax.set_title(f"{pending(60)[1]:.3f}"),
}


class TestMatplotlib:
    @pytest.fixture
    def draw(self):
        pytest.importorskip("matplotlib").use("Agg")
        from matplotlib import pyplot

        def pixels(paint):
            figure, axes = pyplot.subplots(figsize=(3, 2), dpi=80)
            try:
                paint(axes)
                figure.canvas.draw()
                return np.array(figure.canvas.buffer_rgba())
            finally:
                pyplot.close(figure)

        return pixels

    @pytest.mark.parametrize("n", [60, 8200])
    @pytest.mark.parametrize("name", PAINT)
    def test_pixels(self, draw, name, n):
        assert_same(lambda: draw(lambda axes: PAINT[name](axes, n)))

    def test_colours(self):
        pytest.importorskip("matplotlib")
        from matplotlib import cm, colors, path, transforms

        def work():
            x = pending((90, 91))
            points = pending((8192, 2))
            shape = path.Path([(0, 0), (1, 0), (1, 1), (0, 0)])
            return (
                cm.viridis(x),
                cm.viridis(colors.Normalize()(x).data, bytes=True),
                transforms.Affine2D().rotate(0.5).transform(points),
                shape.contains_points(points),
            )

        assert_same(work)
