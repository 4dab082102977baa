"""Run Python code in a process of its own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path


def path_with_helpers():
    """A PYTHONPATH on which a process finds the helpers, too."""
    tests = str(Path(__file__).resolve().parents[1])
    return os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])


def run_python(code, timeout=120, **environment):
    """
    The finished process; it inherits no NUMPY_DEFERRED variable, but defers the
    smallest arrays, as the tests do.  A variable that is None is not set.
    """
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("NUMPY_DEFERRED")
    }
    env["NUMPY_DEFERRED_MIN_BYTES"] = "0"
    env.update(environment)
    env = {name: value for name, value in env.items() if value is not None}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=env,
        timeout=timeout,
        capture_output=True,
        text=True,
    )


def run_with_helpers(preamble, code, **environment):
    """As run_python, after a preamble, which finds the helpers."""
    environment.setdefault("PYTHONPATH", path_with_helpers())
    return run_python(preamble + textwrap.dedent(code), **environment)


def printed(done):
    """What a finished process printed; it must have nothing to complain of."""
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def output_of(code, **environment):
    """What code prints; it must succeed."""
    done = run_python(code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
