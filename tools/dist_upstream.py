"""Run by `meson dist`: put the patched NumPy into our sdist, without its .git."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from deferred_tools import worktree
from deferred_tools.project import HERE

git = worktree.open_repository(HERE)
git("checkout-index", "--all", f"--prefix={os.environ['MESON_DIST_ROOT']}/upstream/")
