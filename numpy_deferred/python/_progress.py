"""A line or bar that shows how far a calculation is: `numpy.deferred.progress`."""

import importlib.util
import json
import os
import sys
from pathlib import Path

from numpy._core import _multiarray_umath as _core
from numpy._utils import set_module


@set_module("numpy.deferred")
class progress:
    """
    Context manager that shows how far long calculations are.

    While it lasts, a calculation that takes longer than a while, in whichever
    thread, writes a line that says which part of the elements is done, and how many
    are done in a second.  On a terminal the line moves; other files get one every
    five seconds.  On Linux, and where tqdm is installed, it is tqdm's bar.

    Parameters
    ----------
    delay : float, optional
        Seconds before the line is shown, 2 by default.
    file : file object, optional
        Where it goes: anything with a ``fileno()`` that gives a descriptor.  By
        default `sys.stderr` where that has one, else the descriptor 2.

    Raises
    ------
    ValueError
        If `delay` is negative or not a number, or `file` is closed.

    See Also
    --------
    profile : what was calculated, and how long it took

    Notes
    -----
    A calculation holds the interpreter's lock, so that no Python code can draw a bar
    meanwhile: the line goes straight to the descriptor, past Python's buffers, and
    tqdm runs in another process, which is started when there is something to show.
    In a notebook it appears where the server's own messages do, or when the cell has
    ended.
    Operations that NumPy has to run one by one, and those that run at once, show
    nothing, and nothing is shown on Windows.

    Examples
    --------
    >>> import numpy as np
    >>> with np.deferredstate(True), np.deferred.progress(delay=5):
    ...     x = np.sin(np.ones(10_000)).sum()  # too short to be shown
    """

    def __init__(self, delay=2.0, file=None):
        delay = float(delay)
        if not 0 <= delay < 1e9:
            raise ValueError(f"the delay must be a number of seconds, not {delay!r}")
        self._settings = _descriptor(file), int(delay * 1e9), _helper()
        self._file = file  # a file that is dropped is closed
        self._before = None

    def __enter__(self):
        if self._before is not None:
            raise TypeError("Cannot enter `np.deferred.progress` twice.")
        self._before = _core._deferred_set_progress(*self._settings)
        return self

    def __exit__(self, *exc_info):
        _core._deferred_set_progress(*self._before)


def _descriptor(file):
    if file is not None:
        return file.fileno()
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return 2  # there is none, or it is not a file


def _helper():
    """The arguments of the process that draws with tqdm, or None."""
    try:
        found = importlib.util.find_spec("tqdm")
    except (ImportError, ValueError):
        found = None  # it is half imported, or not to be
    if found is None or not sys.executable or not sys.platform.startswith("linux"):
        return None
    script = Path(__file__).with_name("_progress_bar.py")
    path = json.dumps([each for each in sys.path if isinstance(each, str)])
    return tuple(map(os.fsencode, (sys.executable, "-IS", script, path)))
