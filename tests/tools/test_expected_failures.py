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

F2PY = """
import pytest

pytestmark = pytest.mark.slow

def test_good():
    pass

@pytest.mark.parametrize("compiler", [" 77", " 90", ""])
def test_compiled(compiler):
    pytest.skip(f"No Fortran{compiler} compiler available")

def test_command():
    pytest.skip("CLI command needs a Fortran compiler")

def test_other():
    pytest.skip("another reason")
"""


@pytest.fixture
def suite(tmp_path, real):
    """Run a suite that stands for NumPy's: suite(names of expected failures)."""
    shutil.copy(real.root / "tests" / "upstream" / "expected_failures.py", tmp_path)
    package = tmp_path / "numpy"
    package.mkdir()
    (package / "__init__.py").touch()

    def run(*expected, deferral="off", only=None, source=SUITE, f2py=None):
        if f2py is not None:
            (package / "f2py").mkdir()
            (package / "f2py" / "test_f2py.py").write_text(f2py)
        (package / "test_it.py").write_text(source)
        lines = []
        for name in expected:
            lines += ["[[test]]", f'id = "numpy/test_it.py::{name}"', 'reason = "x"']
            lines += [f'deferral = "{only}"'] if only else []
        (tmp_path / "expected-failures.toml").write_text("\n".join(lines))
        command = [sys.executable, "-m", "pytest", "-p", "expected_failures"]
        command += [f"--rootdir={tmp_path}", "-c", os.devnull, "-n", "1"]
        command += ["-m", "not slow or f2py", "-rs"]
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


def test_slow_tests_of_f2py_are_run(suite):
    slow = SUITE.replace("def test_bad", "@pytest.mark.slow\ndef test_bad")
    slow = "import pytest\n" + slow
    result = suite(source=slow, f2py=F2PY.partition("@")[0])
    assert result.returncode == 0, result.stdout
    assert "NumPy's suite: 2 passed" in result.stdout
    assert "left out" not in result.stdout


def test_tests_of_f2py_without_a_compiler_are_counted(suite):
    result = suite("test_bad", f2py=F2PY)
    assert result.returncode == 0, result.stdout
    assert "4 tests of f2py were left out: there is no Fortran" in result.stdout
