"""The benchmarks run, on small arrays, and say what they should."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
#: The directory that NumPy was imported from, for processes that are started.
SITE_PACKAGES = str(Path(np.__file__).parents[1])


def run(name, *arguments):
    env = dict(os.environ, PYTHONPATH=SITE_PACKAGES)
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
