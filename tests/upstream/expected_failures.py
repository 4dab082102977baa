"""A pytest plugin for NumPy's own suite: what is known to fail, and f2py's tests.

Each test that expected-failures.toml lists is expected to fail: the run fails
when it passes, when any other test fails, and when it is not there at all.  A
name without parameters stands for the test with each of them.

The tests of f2py get a mark, ``f2py``, as most of them compile and are slow, but
are to be run; and the summary says how many were left out for want of a Fortran
compiler.
"""

import tomllib
from pathlib import Path

import pytest

LIST = Path(__file__).with_name("expected-failures.toml")


def pytest_addoption(parser):
    parser.addoption("--deferral", choices=["off", "on"], default="off")


def pytest_configure(config):
    entries = tomllib.loads(LIST.read_text()).get("test", [])
    mode = config.getoption("deferral")
    config.addinivalue_line("markers", "f2py: the tests of f2py, most of them slow")
    reasons = {e["id"]: e["reason"] for e in entries if e.get("deferral", mode) == mode}
    config.pluginmanager.register(ExpectedFailures(config, reasons))


def wants_fortran(report):
    """Was this test skipped for want of a Fortran compiler?"""
    reason = str(report.longrepr)
    return "No Fortran" in reason or "needs a Fortran compiler" in reason


class ExpectedFailures:
    def __init__(self, config, reasons):
        self.reasons = reasons
        self.seen = set()
        self.whole_suite = config.args == ["numpy"]

    def entry(self, nodeid):
        return nodeid if nodeid in self.reasons else nodeid.partition("[")[0]

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items):
        for item in items:
            if item.nodeid.startswith("numpy/f2py/"):
                item.add_marker("f2py")
            if reason := self.reasons.get(self.entry(item.nodeid)):
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))

    def pytest_runtest_logreport(self, report):
        self.seen.add(self.entry(report.nodeid))

    def pytest_sessionfinish(self, session):
        is_worker = hasattr(session.config, "workerinput")
        self.missing = set()
        if self.whole_suite and not is_worker:
            self.missing = self.reasons.keys() - self.seen
        if self.missing and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        for nodeid in sorted(self.missing):
            terminalreporter.line(f"listed in {LIST.name} but not there: {nodeid}")
        counts = {k: len(v) for k, v in terminalreporter.stats.items()}
        without = sum(map(wants_fortran, terminalreporter.stats.get("skipped", [])))
        if without:
            terminalreporter.line(
                f"{without} tests of f2py were left out: there is no Fortran compiler"
            )
        bad = counts.get("failed", 0) + counts.get("error", 0) + len(self.missing)
        terminalreporter.line(
            f"NumPy's suite: {counts.get('passed', 0)} passed, "
            f"{len(self.reasons)} entries of tests expected to fail, "
            f"{bad} not as expected"
        )
