"""The outcomes of other projects' test suites, with and without deferral."""

import os
import subprocess
import tomllib
import xml.etree.ElementTree as ElementTree

from .project import ToolError

# These stop the run before a test has had an outcome.
_PYTEST_FAILED = (2, 3, 4, 5)
_KINDS = {"skipped": "skipped", "failure": "failed", "error": "error"}
_WORSE = ["passed", *_KINDS.values()]


def suites(directory):
    """The modules of every project."""
    table = tomllib.loads((directory / "suites.toml").read_text())
    return {name: entry["modules"] for name, entry in table.items()}


def expected(directory):
    """The reasons for tests that have another outcome, by their names."""
    table = tomllib.loads((directory / "expected-differences.toml").read_text())
    return {entry["id"]: entry["reason"] for entry in table.get("test", [])}


def run(python, modules, report, jobs, environment, arguments=()):
    """Run modules of an installed suite; write its outcomes to `report`."""
    command = [
        *(python, "-P", "-m", "pytest", "-q", "--tb=short", "-n", jobs),
        # Ours is not their configuration, and theirs is not installed.
        *("-c", os.devnull, "--rootdir", report.parent, "-p", "no:cacheprovider"),
        *(f"--junitxml={report}", "--timeout=600", *arguments),
        *("--pyargs", *modules),
    ]
    with report.with_suffix(".log").open("w") as log:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=report.parent,
            env=os.environ | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    if done.returncode in _PYTEST_FAILED:
        raise ToolError(f"pytest did not run, see {log.name}")
    return outcomes(report)


def outcomes(report):
    """What became of every test in a JUnit report, by its name."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        kinds = [_KINDS[child.tag] for child in case if child.tag in _KINDS]
        # Names need not be unique, and a test whose teardown fails is there twice.
        found[name] = max([found.get(name, "passed"), *kinds], key=_WORSE.index)
    return found


def entry_of(name, reasons):
    """The name under which a test, or all of its parameters, is listed."""
    return name if name in reasons else name.partition("[")[0]


def compare(eager, deferred, reasons):
    """
    The unexpected differences, one line for each, and the entries of `reasons`
    that were of use.
    """
    lines, used = [], set()
    for name in sorted(eager.keys() | deferred.keys()):
        one, other = eager.get(name, "not there"), deferred.get(name, "not there")
        if one == other:
            continue
        entry = entry_of(name, reasons)
        if entry in reasons:
            used.add(entry)
        else:
            lines.append(f"{name}: eager {one}, deferred {other}")
    return lines, used


def count(found):
    """The outcomes as text, as '3 passed, 1 failed'."""
    kinds = [*found.values()]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))


def unused(reasons, used, seen):
    """The entries whose tests were run and had the same outcome."""
    there = {entry_of(name, reasons) for name in seen}
    return sorted(there.intersection(reasons) - used)
