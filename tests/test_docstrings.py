"""The examples of the docstrings, in a process with the defaults users have."""

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


@pytest.mark.parametrize("name", ["numpy.deferred", "numpy._core._deferredstate"])
def test_examples(name):
    assert output_of(CODE.format(name=name), NUMPY_DEFERRED_MIN_BYTES="") == "0"
