"""The examples of the documentation, in a process with the defaults users have."""

from pathlib import Path

import pytest

from helpers.process import output_of

CODE = """
import doctest, importlib
module = importlib.import_module({name!r})
runner = doctest.DocTestRunner()
for name in module.__all__:
    examples = doctest.DocTestFinder().find(getattr(module, name), name, module=False)
    for test in examples:
        runner.run(test)
    assert any(test.examples for test in examples), name
print(runner.failures)
"""


PAGE = """
import doctest
result = doctest.testfile({path!r}, module_relative=False, optionflags=doctest.ELLIPSIS)
assert result.attempted > 0
print(result.failed)
"""


@pytest.mark.parametrize("name", ["numpy.deferred", "numpy._core._deferredstate"])
def test_examples(name):
    assert output_of(CODE.format(name=name), NUMPY_DEFERRED_MIN_BYTES="") == "0"


@pytest.mark.parametrize("name", ["guide.rst"])
def test_pages(name):
    path = Path(__file__).parents[1] / "doc" / name
    code = PAGE.format(path=str(path))
    assert output_of(code, NUMPY_DEFERRED_MIN_BYTES="") == "0"
