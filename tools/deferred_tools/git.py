"""git, the same for everybody: without the user's and the system's settings."""

import os
import subprocess
from pathlib import Path

from .project import ToolError

IDENTITY = "NumPy deferred"
EMAIL = "upstream@invalid"
DATE = "2000-01-01T00:00:00+0000"


class GitError(ToolError):
    """A git command failed; `stderr` is what it said."""

    def __init__(self, arguments, stderr):
        super().__init__(f"git {' '.join(arguments)}:\n{stderr}")
        self.stderr = stderr


class Git:
    def __init__(self, directory):
        self.directory = directory

    def __call__(self, *arguments, stdin=b"", env=None):
        """Run git; its output, as bytes."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        clean |= {
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": IDENTITY,
            "GIT_AUTHOR_EMAIL": EMAIL,
            "GIT_AUTHOR_DATE": DATE,
            "GIT_COMMITTER_NAME": IDENTITY,
            "GIT_COMMITTER_EMAIL": EMAIL,
            "GIT_COMMITTER_DATE": DATE,
            # Not a repository that the project may happen to lie in.
            "GIT_CEILING_DIRECTORIES": str(Path(self.directory).parent),
            "LC_ALL": "C",
        }
        result = subprocess.run(
            ["git", "-c", "gc.auto=0", "-c", "core.quotePath=false", *arguments],
            cwd=self.directory,
            env=clean | (env or {}),
            input=stdin,
            capture_output=True,
        )
        if result.returncode != 0:
            raise GitError(arguments, result.stderr.decode(errors="replace"))
        return result.stdout

    def text(self, *arguments):
        return self(*arguments).decode().strip()

    def get_config(self, key):
        """A setting of this repository, None where it has none."""
        try:
            return self.text("config", "--local", key)
        except GitError:
            return None
