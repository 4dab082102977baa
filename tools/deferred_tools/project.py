"""Where the project's files lie, and what upstream.toml pins."""

import dataclasses
import re
import sys
import tomllib
from pathlib import Path


class ToolError(Exception):
    """Something the person at the keyboard has to put right."""


@dataclasses.dataclass(frozen=True)
class Project:
    root: Path

    @property
    def upstream(self):
        return self.root / "upstream"

    @property
    def patches(self):
        return self.root / "patches"

    @property
    def downloads(self):
        return self.root / "downloads"

    @property
    def pin(self):
        return tomllib.loads((self.root / "upstream.toml").read_text())

    @property
    def is_sdist(self):
        """True in an unpacked sdist of ours, which holds a patched upstream/."""
        return (self.root / "PKG-INFO").exists()


# Of what belongs to one Python: builds, environments. Empty, or "-3.13" in the
# environment of a second Python, which tools/spin has called .venv-3.13.
SUFFIX = "".join(re.findall(r"^\.venv(-\d+\.\d+)$", Path(sys.prefix).name))

HERE = Project(Path(__file__).resolve().parents[2])


def say(text):
    print(text, file=sys.stderr, flush=True)
