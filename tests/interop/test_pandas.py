"""pandas: Cython over the blocks of a frame, which are arrays."""

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
    positive,
    regular,
)

pd = pytest.importorskip("pandas")


def values(frame):
    """The arrays and labels behind a frame or series."""
    if isinstance(frame, pd.Series):
        frame = frame.to_frame("0")
    columns = [np.array(frame[name]) for name in frame.columns]
    return *columns, list(frame.columns), list(frame.index)


def frame_of(n):
    """A frame of pending columns, and of labels to group by."""
    return pd.DataFrame(
        {
            "key": made(lambda a: a * 2 % 7, n, "i8"),
            "x": pending(n),
            "y": pending(n, "f4", seed=1) if n > 100_000 else pending(n, seed=1),
            "z": made(lambda a: a * 3 + 1, n, "i8", seed=2),
        },
        copy=False,
    )


FRAME = {
    "groupby sum": lambda f: f.groupby("key").sum(),
    "groupby mean": lambda f: f.groupby("key").mean(),
    "groupby agg": lambda f: (
        f.groupby("key").agg(["min", "max", "std"]).droplevel(0, 1)
    ),
    "groupby transform": lambda f: f.groupby("key").transform("cumsum"),
    "groupby apply": lambda f: f.groupby("key")[["x", "y"]].apply(
        lambda g: (g * 2 + 1).sum()
    ),
    "groupby rank": lambda f: f.groupby("key").rank(),
    "sort": lambda f: f.sort_values(["key", "x"]),
    "describe": lambda f: f.describe(),
    "corr": lambda f: f.corr(),
    "rolling": lambda f: f.rolling(5).mean(),
    "ewm": lambda f: f.ewm(span=4).mean(),
    "expanding": lambda f: f.expanding().max(),
    "shift": lambda f: f.shift(2) + f,
    "diff": lambda f: f.diff(),
    "fillna": lambda f: f.where(f > 0).fillna(-1.0),
    "interpolate": lambda f: f.where(f > 0).interpolate(),
    "merge": lambda f: f.iloc[:50].merge(f.iloc[25:90], on="key"),
    "join": lambda f: f.join(f * 2 + 1, rsuffix="_2"),
    "concat": lambda f: pd.concat([f, f + 1]),
    "melt": lambda f: f.iloc[:60].melt("key"),
    "stack": lambda f: f.stack(),
    "pivot": lambda f: f.pivot_table(values="x", index="key", aggfunc="sum"),
    "query": lambda f: f.query("x > 0 and y < 1"),
    "eval": lambda f: f.eval("x * y + z"),
    "isin": lambda f: f[f["z"].isin(handed_z(f))],
    "quantile": lambda f: f.quantile([0.25, 0.5]),
    "nlargest": lambda f: f.nlargest(5, "x"),
    "drop_duplicates": lambda f: f.drop_duplicates("key"),
    "cut": lambda f: pd.cut(f["x"], 5).cat.codes,
    "factorize": lambda f: pd.Series(pd.factorize(f["z"])[0]),
    "get_dummies": lambda f: pd.get_dummies(f["key"]),
    "clip": lambda f: f.clip(-1, 1),
    "cumulative": lambda f: f.cumsum() + f.cummax(),
    "arithmetic": lambda f: (f * 2 + 1) / (f.abs() + 1),
    "compare": lambda f: (f > f.mean()) | (f < -1),
    "csv": lambda f: pd.DataFrame({"text": f.iloc[:30].to_csv().splitlines()}),
    "reindex": lambda f: f.reindex(range(-3, 40)),
    "sample": lambda f: f.sample(20, random_state=1),
    "numpy": lambda f: pd.DataFrame(np.sqrt(np.abs(f)) + np.sin(f)),
}
SLOW = {"groupby apply", "describe", "sort", "groupby rank"}


def handed_z(frame):
    return handed(frame["z"].to_numpy() + 3)[:20]


@lengths
@pytest.mark.parametrize("name", FRAME)
def test_frame(name, n):
    if n > 100_000 and name in SLOW:
        pytest.skip("slow")

    def work():
        frame = frame_of(n)
        result = FRAME[name](frame)
        return *values(result)[: -1 if n > 100_000 else None], *values(frame)[:-1]

    assert_same(work)


@lengths
@dtypes("f8", "f4", "i8", "i4", "u1", "?", "c16")
def test_series(n, dtype):
    def work():
        x = pending(n, dtype)
        s = pd.Series(x, copy=False)
        return (
            s.to_numpy(),
            s.sum(),
            (s == s.iloc[0]).to_numpy(),
            s.value_counts().to_numpy(),
            s.duplicated().to_numpy(),
            s.take([1, 2, 3]).to_numpy(),
            x,
        )

    assert_same(work)


@lengths
@pytest.mark.parametrize("order", ["C", "F"])
def test_block(n, order):
    """A frame on one pending array of two dimensions."""

    def work():
        x = pending((n // 4, 4), order=order)
        f = pd.DataFrame(x, columns=list("abcd"), copy=False)
        y = handed(x * 2)
        f.iloc[1, 2] = 100.0
        f.loc[0, :] = 5.0
        f["a"] += 1
        return *values(f)[:-1], x, y, f.T.to_numpy(), f.sum(axis=1).to_numpy()

    assert_same(work)


@lengths
def test_write_into_an_operand(n):
    """Series and frame share the memory of an array that is pending's operand."""

    def work():
        a, x = operand_of(lambda a: a * 2, n)
        s = pd.Series(a, copy=False)
        s.iloc[1] = 100.0
        s.iloc[2:5] *= 3
        y = s.to_numpy() * 1.5
        s.mask(s > 1, 0.0, inplace=True)
        s.sort_values(inplace=True)
        return a, x, y, s.to_numpy()

    assert_same(work)


@lengths
def test_memory_of_the_frame(n):
    """An array that the frame owns is an operand while the frame changes."""

    def work():
        f = frame_of(n)
        a = f["x"].to_numpy()
        x = a * 2 + 1
        f.loc[f.index[1], "x"] = 100.0
        f["x"] = f["x"].where(f["x"] > 0, -1.0)
        f.fillna(0.0, inplace=True)
        return a, x, *values(f)[:-1]

    assert_same(work)


@lengths
def test_apply(n):
    """Functions that give pending arrays back to compiled code."""

    def work():
        f = frame_of(n)[["x", "y"]]
        return (
            f.apply(lambda c: c.to_numpy() * 2 + 1).to_numpy(),
            f.transform(lambda c: np.exp(-np.abs(c))).to_numpy(),
            f.pipe(lambda f: f * 2 - f.mean()).to_numpy(),
            f.iloc[:100].rolling(3).apply(lambda w: (w * 2).sum(), raw=True).to_numpy(),
        )

    assert_same(work)


@lengths
def test_index_and_times(n):
    def work():
        steps, i = regular(n, "i8").cumsum(), np.arange(n)
        index = pd.Index(handed(steps * 2))
        times = pd.to_datetime(handed(i * 3_600_000_000_000 + 1))
        s = pd.Series(pending(n), index=times, copy=False)
        return (
            index.to_numpy(),
            index.get_indexer(handed(i * 2)),
            index.unique().to_numpy(),
            s.resample("D").sum().to_numpy(),
            np.array(times.dayofweek),
            pd.Series(positive(n)).between(1, 2).to_numpy(),
            pd.arrays.IntegerArray(
                made(lambda a: a + 1, n, "i8"), np.zeros(n, bool)
            ).sum(),
        )

    assert_same(work)


@lengths
def test_threads(n):
    def work():
        f = frame_of(n)
        return in_threads(lambda: values(f.groupby("key").sum())[1])

    assert_same(work)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_time_zones(unit):
    """
    Converting keeps the address of the offsets of a zone, which are divided by the
    unit before, and asks NumPy for descriptors between.
    """

    def converted(zone):
        times = pd.date_range("1950-01-01", periods=400, freq="53D").as_unit(unit)
        there = times.tz_localize(zone, ambiguous="NaT", nonexistent="shift_forward")
        return np.array(there.asi8), np.array(there.tz_convert("UTC").hour)

    for zone in ("Asia/Tokyo", "Europe/Berlin", "America/Sao_Paulo"):
        assert_same(lambda zone=zone: converted(zone))
