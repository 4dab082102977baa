"""The benchmarks run, on small arrays, and say what they should."""

import importlib
import json
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
#: The directory that NumPy was imported from, for processes that are started.
SITE_PACKAGES = str(Path(np.__file__).parents[1])


def run(name, *arguments, path=()):
    """Run a benchmark; folders of `path` come before those of NumPy."""
    pythonpath = os.pathsep.join([*map(str, path), SITE_PACKAGES])
    env = dict(os.environ, PYTHONPATH=pythonpath)
    env.pop("NUMPY_STOCK", None)
    return subprocess.run(
        [sys.executable, BENCHMARKS / name, *map(str, arguments)],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_demo():
    done = run("demo.py", "-n", 20_000, "--side", 20, "--repeats", 2)
    assert done.returncode == 0, done.stderr
    assert "Every bit is the same." in done.stdout
    assert "DIFFER" not in done.stdout
    for text in ("d is deferred", "a = b*c + d*e", "R, ogrid 20x20x20", "a += b*i"):
        assert text in done.stdout


def test_fresh_needs_no_temporary():
    # Large, as pages of code that are read for the first time count too.
    done = run("bench_fresh.py", "-n", 4_000_000, "--repeats", 3, "--json")
    figures = json.loads(done.stdout)
    assert figures["deferred"]["peak_ratio"] <= 1.1
    assert figures["eager"]["peak_ratio"] > 1.8


def test_guard():
    done = run("bench_guard.py", "--seconds", 0.01, "--repeats", 1, "-n", 10, 200_000)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["80", "1,600,000"]
    assert all(float(cell) > 0 for row in rows for cell in row[1:] if cell != "-")


def test_overhead_against_itself(tmp_path):
    """The limit must be met by a build compared with itself, and can be missed."""
    report = tmp_path / "report.json"
    arguments = [
        "--stock",
        SITE_PACKAGES,
        "--pairs",
        1,
        "--rounds",
        3,
        "--json",
        report,
    ]
    done = run("bench_overhead.py", *arguments, "--limit", 1.5)
    assert done.returncode == 0, done.stderr + done.stdout
    figures = json.loads(report.read_text())
    assert len(figures["rows"]) == 15
    assert 0.6 < figures["median"] < 1.5
    assert run("bench_overhead.py", *arguments, "--limit", 0.1).returncode == 1


@pytest.mark.parametrize("site", ["", "/nowhere"])
def test_overhead_without_stock(site):
    done = run("bench_overhead.py", *(["--stock", site] if site else []))
    assert done.returncode != 0
    assert done.stderr


def shown_rows(text):
    """The cells of the tables that a benchmark has printed, by two spaces."""
    return [re.split(r"  +", line) for line in text.splitlines() if "  " in line]


def test_targets(tmp_path):
    """Every row is there, in both heaps, with the bits of eager NumPy."""
    path = tmp_path / "targets.json"
    done = run(
        *("bench_targets.py", "-n", 50_000, "--small", 5000),
        *("--repeats", 1, "--json", path),
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(path.read_text())
    rows = [*figures["times"], *figures["memory"]]
    assert all(row["same"] for row in rows)
    both = {1, np.deferred.get_num_threads()}
    names = {row["target"] for row in figures["times"]}
    assert len(names) == 4 + 2 * 3 + 2
    heaps = {(row["target"], row["heap"]) for row in figures["times"]}
    assert heaps == set(product(names, ("default", "warm")))
    for row in figures["times"]:
        assert row["ratio"] == row["eager_min"] / row["ours_min"]
        assert row["met"] == (row["ratio"] >= row["limit"])
    kinds = {(row["target"], row["threads"]) for row in figures["memory"]}
    expressions = ("a*b + c*d", "d[:] = a*b*c", "(a*b + c*d).sum()")
    assert kinds == set(product(expressions, both))
    verdicts = [row[-1] for row in shown_rows(done.stdout) if row[-1] in VERDICTS]
    assert verdicts.count("met") == sum(row["met"] for row in rows)
    assert len(verdicts) == len(rows)
    assert f"{verdicts.count('met')} of {len(rows)} targets are met." in done.stdout


VERDICTS = ("met", "MISSED", "BITS DIFFER")


@pytest.fixture
def bench(monkeypatch, num_threads):
    """Imports a benchmark, in this process."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module
    for name in ("bench_targets", "bench_kernels", "kernels", "demo", "measuring"):
        sys.modules.pop(name, None)


def test_targets_that_are_missed(bench, capsys):
    """They are said to be, and bits that differ are said first."""
    module = bench("bench_targets")
    slow = module.Target("slow", 1e9, "x = a + a", ("x = 2*a",), module.random("a", 10))
    row = module.measure_time(slow, 1, "default", 1)
    wrong = module.Target("no", 0, "x = a + a", ("x = 3*a",), module.random("a", 10))
    wrong = module.measure_time(wrong, 1, "default", 1)
    module.show([row, wrong], [], False)
    shown = capsys.readouterr().out
    verdicts = {row[0]: row[-1] for row in shown_rows(shown)}
    assert verdicts["slow"] == "MISSED"
    assert verdicts["no"] == "BITS DIFFER"
    assert "1 of 2 targets are met." in shown


def test_kernels(tmp_path):
    """All kernels have eager NumPy's bits; with tests' sizes all is deferred."""
    path = tmp_path / "kernels.json"
    done = run(
        *("bench_kernels.py", "--repeats", 1, "--seconds", 0, "--json", path),
        *("--presets", "NPBench S", "numpy-benchmarks", "loops", "--rst"),
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    rows = json.loads(path.read_text())["rows"]
    assert all(row["same"] for row in rows)
    assert len({row["kernel"] for row in rows}) >= 30
    behind = sum(row["speedup"] < 1 for row in rows)
    assert f"Behind eager NumPy in {behind} of {len(rows)}" in done.stdout
    for text in ("Geometric mean of", "Every bit is the same.", "\n====="):
        assert text in done.stdout


def test_kernels_that_differ(bench, monkeypatch, capsys):
    """It is found, and ends in failure."""
    module = bench("bench_kernels")

    def undecided(a):
        return a + np.getdeferred()

    kernels = module.kernels
    kernel = kernels.Kernel(
        undecided, lambda n: kernels.random("a", n), {"loops": (9,)}
    )
    monkeypatch.setattr(kernels, "KERNELS", [kernel])
    arguments = ["--repeats", "1", "--seconds", "0", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["bench_kernels.py", *arguments])
    assert module.main() == 1
    shown = capsys.readouterr().out
    assert "DIFFER" in shown_rows(shown)[2]
    assert "BITS DIFFER." in shown


def test_kernels_do_not_share_what_they_change(bench):
    """Called twice with copies, a kernel gives the same."""
    module, kernels = bench("bench_kernels"), bench("kernels")
    kernel = next(x for x in kernels.KERNELS if x.name == "fdtd_2d")
    arguments = kernel.make(20, 20, 3)
    before = {name: np.copy(value) for name, value in arguments.items()}
    module.call(kernel, arguments, False)
    for name, value in before.items():
        np.testing.assert_array_equal(arguments[name], value)


def bench_peers(directory, *arguments, **options):
    return run("bench_peers.py", "--directory", directory, *arguments, **options)


def peers_cells(tmp_path, contenders, *arguments):
    """What was measured, in which all must be right, and what was said."""
    own = ["--repeats", 1, "--contenders", ",".join(contenders)]
    done = bench_peers(tmp_path, *own, *arguments)
    assert done.returncode == 0, done.stderr + done.stdout
    cells = json.loads((tmp_path / "results.json").read_text())["cells"]
    for cell in cells:
        assert [row["contender"] for row in cell["rows"]] == contenders
        assert all(0 < row["min"] <= row["median"] for row in cell["rows"])
    wrong = [cell for cell in cells for row in cell["rows"] if not row["ok"]]
    assert not wrong
    return cells, done.stdout


def test_peers(tmp_path):
    """Every expression, without peers; our bits are eager NumPy's, C's are close."""
    options = ["--sizes", "1e4", "--threads", 1, "--regimes", "default"]
    cells, _ = peers_cells(tmp_path, ["ours", "eager", "limit"], *options)
    assert len({cell["expression"] for cell in cells}) >= 20
    kinds = {(cell["dtype"], cell["into"]) for cell in cells}
    assert kinds == set(product(("f8", "f4"), (False, True)))


def test_peers_circumstances(tmp_path):
    """One expression on one and two threads, with each heap."""
    options = ["--only", "products", "--dtypes", "f8", "--sizes", "1e5"]
    cells, shown = peers_cells(tmp_path, ["ours", "eager"], *options)
    kinds = [(cell["threads"], cell["regime"], cell["into"]) for cell in cells]
    regimes = ("default", "mapped", "warm")
    assert kinds == list(product((1, 2), regimes, (False, True)))
    faults = {cell["regime"]: cell["rows"][1]["faults"] for cell in cells}
    assert faults["mapped"] > faults["warm"]
    for text in ("2 thread(s), warm heap, into, f8", "Behind eager NumPy in"):
        assert text in shown


def test_peers_that_are_missing(tmp_path):
    """They are named, and left out; it is ours that must be there."""
    (tmp_path / "numexpr.py").write_text("raise ImportError('not here')")
    done = bench_peers(
        *(tmp_path, "--sizes", 100, "--repeats", 1, "--only", "products"),
        *("--threads", 1, "--regimes", "default", "--contenders", "ours,numexpr"),
        path=[tmp_path],
    )
    assert done.returncode == 0, done.stderr
    assert "numexpr is left out: numexpr cannot be imported: not here" in done.stderr
    cells = json.loads((tmp_path / "results.json").read_text())["cells"]
    assert {row["contender"] for cell in cells for row in cell["rows"]} == {"ours"}


def test_peers_claims(tmp_path, monkeypatch):
    """All that was published, each in the dtype that it was published for."""
    done = bench_peers(
        *(tmp_path, "--claims", "--sizes", "1e4", "--repeats", 1, "--threads", 1),
        *("--contenders", "ours,eager", "--regimes", "default"),
    )
    assert done.returncode == 0, done.stderr
    cells = json.loads((tmp_path / "claims.json").read_text())["cells"]
    assert all(row["ok"] for cell in cells for row in cell["rows"])
    assert all(cell["claimed"] and cell["n"] == 10_000 for cell in cells)
    monkeypatch.syspath_prepend(BENCHMARKS)
    from peers.expressions import CLAIMS

    measured = {(cell["expression"], cell["dtype"]) for cell in cells}
    assert measured == {(x.name, *x.dtypes) for x in CLAIMS}
    assert {("square of sum", "f4"), ("compute", "i8"), ("unity", "f8")} < measured
    for text in ("docs linear", "numexpr 3.2", "20 additions", "Weld 10"):
        assert text in done.stdout
    shown = bench_peers(tmp_path, "--show", tmp_path / "claims.json", "--rst")
    assert "docs linear, ``2*a + 3*b``" in shown.stdout
    rules = [line for line in shown.stdout.splitlines() if line.startswith("====")]
    assert len(rules) == 3 * 2


def test_peers_claims_are_of_their_size(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from peers.expressions import CLAIMS

    shapes = {
        "large sum": (10**7,),
        "option prices": (2**24,),
        "compute": (2000, 2000),
        "six axes turned": (10,) * 6,
        "chain of add": (100,) * 3,
        "composite C": (1080, 1920, 3),
        "composite swapped": (1920, 1080, 3),
        "composite in one": (1920, 1080, 4),
    }
    for claim in CLAIMS:
        if claim.name in shapes:
            (dtype,) = claim.dtypes
            operand = next(iter(claim.make(dtype, claim.n).values()))
            assert operand.shape == shapes.pop(claim.name)
            assert operand.dtype == dtype
    assert not shapes


def peers_results(times, wrong=()):
    cell = {"expression": "x", "claimed": "", "dtype": "f8", "n": 10**5, "threads": 1}
    rows = [
        {
            "contender": name,
            "ok": name not in wrong,
            "min": seconds,
            "median": seconds,
            "faults": 0,
        }
        for name, seconds in times.items()
    ]
    return {
        "when": "",
        "processor": "",
        "processors": 1,
        "load_before": [0],
        "load_after": [0],
        "versions": {},
        "cells": [cell | {"regime": "default", "into": False, "rows": rows}],
    }


@pytest.mark.parametrize(
    ("wrong", "status", "lines"),
    [
        ((), 0, ["Behind numexpr in 0 of 1", "Behind the best peer in 1 of 1", "0.50"]),
        # What is wrong may be as fast as it likes.
        (("numba",), 0, ["Behind the best peer in 0 of 1", "numba: 1 thread(s)"]),
        (("ours",), 1, ["Behind numexpr in 0 of 0", "Wrong results, not counted: 1"]),
    ],
)
def test_peers_summary(tmp_path, wrong, status, lines):
    times = {"ours": 2e-5, "eager": 4e-5, "numexpr": 6e-5, "numba": 1e-5}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(peers_results(times, wrong)))
    done = bench_peers(tmp_path, "--show", path)
    assert done.returncode == status, done.stderr
    for line in lines:
        assert line in done.stdout


def test_peers_means_of_several_runs(tmp_path):
    """The table of the documentation."""
    paths = []
    for i, ours in enumerate((2e-5, 0.5e-5)):
        paths.append(tmp_path / f"results-{i}.json")
        times = {"ours": ours, "eager": 4e-5, "numexpr": 6e-5}
        paths[-1].write_text(json.dumps(peers_results(times, ())))
    done = bench_peers(tmp_path, "--show", *paths, "--rst")
    assert done.returncode == 0, done.stderr
    (row,) = (x for x in shown_rows(done.stdout) if x[0] == "all")
    assert row[2:5] == ["2", "4.00", "6.00"]


def test_peers_expressions(monkeypatch):
    """What numexpr is given says the same as what NumPy is given."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from peers.expressions import CLAIMS, EXPRESSIONS

    table = EXPRESSIONS + CLAIMS
    assert len({expression.name for expression in table}) == len(table)
    for expression in table:
        for dtype in expression.dtypes:
            operands = expression.make(dtype, 1000)
            names = vars(np) | operands
            expected = expression.function(np)(*operands.values())
            if isinstance(expression.numexpr, tuple):
                given = [eval(text, names) for text in expression.numexpr]
            else:
                given = eval(expression.numexpr or expression.inlined(), names)
            if not isinstance(expected, tuple):
                given, expected = [given], [expected]
            for result, wanted in zip(given, expected, strict=True):
                np.testing.assert_array_equal(result, wanted, strict=True)


def test_peers_numbers(monkeypatch):
    """Literals are of the operands' dtype, for those who would make them float64."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from peers.contenders import named_decimals, typed

    line = "sqrt(a + 2*b1)**1.2 - c**3 + 1.2*c"
    assert typed([line]) == ["sqrt(a + T(2)*b1)**T(1.2) - c**3 + T(1.2)*c"]
    text, constants = named_decimals(line, "f4")
    assert text == "sqrt(a + 2*b1)**decimal_0 - c**3 + decimal_0*c"
    assert constants == {"decimal_0": np.float32(1.2)}
    assert constants["decimal_0"].dtype == np.float32
