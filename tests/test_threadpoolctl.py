"""Our threads among those that threadpoolctl lists and limits."""

from pathlib import Path

import numpy as np
import numpy._core._multiarray_umath as core
import pytest
import threadpoolctl

from helpers.process import run_python


@pytest.fixture(autouse=True)
def threads():
    """Four, and known to threadpoolctl."""
    np.deferred.register_threadpoolctl()
    previous = np.deferred.set_num_threads(4)
    yield
    assert np.deferred.set_num_threads(previous) == 4


def ours():
    return [
        info
        for info in threadpoolctl.threadpool_info()
        if info["user_api"] == "numpy_deferred"
    ]


def test_info():
    for _ in range(2):
        (info,) = ours()
        assert info["num_threads"] == 4
        assert info["internal_api"] == "numpy_deferred"
        assert info["version"] == np.deferred.__version__
        assert Path(info["filepath"]).samefile(core.__file__)
        np.deferred.register_threadpoolctl()  # a second time does nothing


@pytest.mark.parametrize("limits", [{"limits": 1, "user_api": "numpy_deferred"}, None])
def test_limit(limits):
    a = np.ones(1_000_000)
    with threadpoolctl.threadpool_limits(**(limits or {"limits": 1})):
        assert np.deferred.get_num_threads() == 1
        with np.deferredstate(True):
            x = a * 2 + 1
            assert np.deferred.explain(x).plan.threads == 1
            with threadpoolctl.threadpool_limits({"numpy_deferred": 3}):
                assert np.deferred.explain(x).plan.threads == 3
    assert np.deferred.get_num_threads() == 4


def test_limits_of_others_leave_it():
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        assert np.deferred.get_num_threads() == 4


def test_controller():
    controller = threadpoolctl.ThreadpoolController().select(user_api="numpy_deferred")
    assert len(controller) == 1

    @controller.wrap(limits=2)
    def work():
        return np.deferred.get_num_threads()

    assert work() == 2


def test_only_when_asked():
    """NumPy neither imports threadpoolctl nor needs it."""
    code = """
    import sys
    import numpy as np
    assert "threadpoolctl" not in sys.modules
    import threadpoolctl
    apis = lambda: {each["user_api"] for each in threadpoolctl.threadpool_info()}
    assert "numpy_deferred" not in apis()
    np.deferred.register_threadpoolctl()  # also after it has looked
    assert "numpy_deferred" in apis()
    """
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_not_installed():
    code = """
    import sys
    sys.modules["threadpoolctl"] = None
    import numpy as np
    try:
        np.deferred.register_threadpoolctl()
    except ImportError as error:
        print(error.name)
    """
    assert run_python(code).stdout.strip() == "threadpoolctl"
