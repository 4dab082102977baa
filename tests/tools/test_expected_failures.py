"""The plugin that knows which tests of NumPy's own suite fail, on a small suite."""

import os
import shutil
import subprocess
import sys

import pytest

SUITE = """
def test_good():
    pass

def test_bad():
    assert False
"""

PARAMETERS = """
import pytest

@pytest.mark.parametrize("x", [1, 2])
def test_each(x):
    assert x == {}
"""


@pytest.fixture
def suite(tmp_path, real):
    """Run a suite that stands for NumPy's: suite(names of expected failures)."""
    shutil.copy(real.root / "tests" / "upstream" / "expected_failures.py", tmp_path)
    package = tmp_path / "numpy"
    package.mkdir()
    (package / "__init__.py").touch()

    def run(*expected, deferral="off", only=None, source=SUITE):
        (package / "test_it.py").write_text(source)
        lines = []
        for name in expected:
            lines += ["[[test]]", f'id = "numpy/test_it.py::{name}"', 'reason = "x"']
            lines += [f'deferral = "{only}"'] if only else []
        (tmp_path / "expected-failures.toml").write_text("\n".join(lines))
        command = [sys.executable, "-m", "pytest", "-p", "expected_failures"]
        command += [f"--rootdir={tmp_path}", "-c", os.devnull, "-n", "1"]
        command += ["--deferral", deferral, "--pyargs", "numpy"]
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )

    return run


def test_listed_failure_passes(suite):
    result = suite("test_bad")
    assert result.returncode == 0, result.stdout
    assert (
        "1 passed, 1 entries of tests expected to fail, 0 not as expected"
        in result.stdout
    )


def test_unlisted_failure_fails(suite):
    result = suite()
    assert result.returncode == 1
    assert (
        "1 passed, 0 entries of tests expected to fail, 1 not as expected"
        in result.stdout
    )


def test_listed_test_that_passes_fails(suite):
    result = suite("test_bad", "test_good")
    assert result.returncode == 1
    assert (
        "0 passed, 2 entries of tests expected to fail, 1 not as expected"
        in result.stdout
    )


def test_listed_test_that_is_gone_fails(suite):
    result = suite("test_bad", "test_gone")
    assert result.returncode == 1
    assert "not there: numpy/test_it.py::test_gone" in result.stdout


def test_entry_for_deferral_on_counts_only_then(suite):
    assert suite("test_bad", only="on", deferral="on").returncode == 0
    assert suite("test_bad", only="on", deferral="off").returncode == 1


def test_entry_covers_all_parameters(suite):
    result = suite("test_each", source=PARAMETERS.format(3))
    assert result.returncode == 0, result.stdout
    # With one of them passing it has to be an entry for the other one.
    assert suite("test_each", source=PARAMETERS.format(1)).returncode == 1
    assert suite("test_each[2]", source=PARAMETERS.format(1)).returncode == 0
