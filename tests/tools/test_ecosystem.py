"""The comparison of other projects' suites, on a small suite."""

import sys

import pytest

from deferred_tools import ecosystem
from deferred_tools.project import ToolError

SUITE = """
import os
import pytest

ON = os.environ["NUMPY_DEFERRED"] == "1"

class TestIt:
    @pytest.mark.parametrize("x", [1, 2])
    def test_each(self, x):
        assert not ON

def test_fixed():
    assert ON

def test_same():
    pass

def test_bad():
    assert False

def test_skipped():
    if ON:
        pytest.skip("")

@pytest.fixture
def broken():
    yield
    assert not ON

def test_teardown(broken):
    pass

if ON:
    def test_new():
        pass
"""


@pytest.fixture
def found(tmp_path):
    """The outcomes of the suite, eagerly and deferred."""
    (tmp_path / "suite.py").write_text(SUITE)

    def run(mode, state):
        environment = {"NUMPY_DEFERRED": state, "PYTHONPATH": str(tmp_path)}
        report = tmp_path / f"{mode}.xml"
        return ecosystem.run(sys.executable, ["suite"], report, 1, environment)

    return run("eager", "0"), run("deferred", "1")


def test_compare(found):
    lines, used = ecosystem.compare(*found, {})
    assert not used
    assert lines == [
        "suite.TestIt::test_each[1]: eager passed, deferred failed",
        "suite.TestIt::test_each[2]: eager passed, deferred failed",
        "suite::test_fixed: eager failed, deferred passed",
        "suite::test_new: eager not there, deferred passed",
        "suite::test_skipped: eager passed, deferred skipped",
        "suite::test_teardown: eager passed, deferred error",
    ]
    assert ecosystem.count(found[0]) == "2 failed, 5 passed"


def test_listed(found):
    reasons = {
        "suite.TestIt::test_each": "every one",
        "suite::test_same": "is the same",
        "other::test_x": "of a suite that was not run",
    }
    lines, used = ecosystem.compare(*found, reasons)
    assert len(lines) == 4
    assert used == {"suite.TestIt::test_each"}
    assert ecosystem.unused(reasons, used, found[0]) == ["suite::test_same"]


def test_not_run(tmp_path):
    with pytest.raises(ToolError, match=r"x\.log"):
        ecosystem.run(sys.executable, ["no_such_suite"], tmp_path / "x.xml", 1, {})


def test_worst_of_a_name(tmp_path):
    cases = ["<skipped/>", "<failure/>", "", "<system-out/>"]
    text = "".join(f'<testcase classname="a" name="b">{c}</testcase>' for c in cases)
    (tmp_path / "x.xml").write_text(f"<testsuite>{text}</testsuite>")
    assert ecosystem.outcomes(tmp_path / "x.xml") == {"a::b": "failed"}


def test_own_files(real):
    """What is listed can be read, and names modules of the suites."""
    directory = real.root / "tests" / "ecosystem"
    modules = [m for suite in ecosystem.suites(directory).values() for m in suite]
    assert len(modules) == len(set(modules)) > 30
    for name, reason in ecosystem.expected(directory).items():
        assert any(name.startswith(module) for module in modules), name
        assert reason
