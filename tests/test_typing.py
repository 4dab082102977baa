"""The type stubs of the build under test, seen by mypy and by pyright."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy._core._deferredstate as state_module
import pytest

FOLDER = Path(__file__).parent / "typing"
USES, WRONG = FOLDER / "uses_all.py", FOLDER / "wrong_uses.py"


def run(cwd, *command):
    """Output of a Python tool; PYTHONPATH leads it to the same NumPy as this."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", *map(str, command)],
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def mypy(folder):
    """The errors that mypy reports for both files: file name, line, message."""
    cache = f"--cache-dir={folder}"
    output = run(folder, "mypy", "--strict", "--no-pretty", cache, USES, WRONG)
    assert re.search(r"checked 2 source files", output), output
    found = re.findall(r"^(.+?):(\d+): error: (.*)$", output, re.MULTILINE)
    return [(Path(file).name, int(line), text) for file, line, text in found]


def pyright(folder):
    """As `mypy`, from pyright in its strict mode."""
    config = {"typeCheckingMode": "strict", "include": [str(USES), str(WRONG)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    options = ["--outputjson", "--pythonpath", sys.executable]
    output = json.loads(run(folder, "basedpyright", *options, "-p", folder))
    assert output["summary"]["filesAnalyzed"] == 2
    return [
        (Path(item["file"]).name, item["range"]["start"]["line"] + 1, item["message"])
        for item in output["generalDiagnostics"]
        if item["severity"] == "error"
    ]


@pytest.fixture(scope="module", params=[mypy, pyright], ids=lambda f: f.__name__)
def errors(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp(request.param.__name__))


def test_right_uses(errors):
    assert [error for error in errors if error[0] == USES.name] == []


def test_wrong_uses(errors):
    """Each marked line is reported, and no other."""
    lines = WRONG.read_text().splitlines()
    marked = {i for i, line in enumerate(lines, 1) if line.endswith("# error")}
    assert len(marked) > 30
    assert {line for file, line, _ in errors if file == WRONG.name} == marked


def test_uses_all_is_true(capsys):
    """It runs, and it uses all."""
    runpy.run_path(str(USES), run_name="__main__")
    text = USES.read_text()
    names = [f"np.{name}" for name in state_module.__all__]
    names += [f"np.deferred.{name}" for name in np.deferred.__all__]
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []


def test_stubs_describe_the_modules(tmp_path):
    """Names, signatures and slots, as mypy's stubtest compares them."""
    output = run(tmp_path, "mypy.stubtest", "numpy.deferred", state_module.__name__)
    assert "Success: no issues found in 2 modules" in output, output
