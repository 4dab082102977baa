"""A small NumPy of our own making: an sdist of four files and its project."""

import hashlib
import io
import subprocess
import sys
import tarfile

import pytest

from deferred_tools import series, worktree
from deferred_tools.git import Git
from deferred_tools.project import HERE, Project

FILES = {
    "setup.txt": "one\ntwo\nthree\n",
    "src/code.c": "".join(f"line {n}\n" for n in range(1, 41)),
    "src/dos.c": "first\r\nsecond\r\n",
    ".gitignore": "*.txt\n",
}
HEADER = """\
Why: Because.
Hook: A call,
 on two lines.
Why not outside: No room.
Remove when: Never.
Tests: tests/test_code.py"""


class SmallProject(Project):
    """A project in a temporary directory, with helpers to change it."""

    def make_sdist(self, directory=None, files=None, version="1.0"):
        """Write an sdist and pin it in upstream.toml; its path."""
        directory = directory or self.downloads
        directory.mkdir(exist_ok=True)
        path = directory / f"numpy-{version}.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            for name, text in (files or FILES).items():
                info = tarfile.TarInfo(f"numpy-{version}/{name}")
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text.encode()))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        (self.root / "upstream.toml").write_text(
            f'version = "{version}"\nsdist = "{path.name}"\nsha256 = "{digest}"\n'
        )
        return path

    @property
    def git(self):
        return Git(self.upstream)

    def edit(self, name="src/code.c", old="line 20\n", new="line 20\nhook\n"):
        path = self.upstream / name
        text = path.read_bytes()
        assert old.encode() in text
        path.write_bytes(text.replace(old.encode(), new.encode(), 1))

    def commit(self, subject="ENH: Add a hook", body=HEADER, **edit):
        self.edit(**edit)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--file=-", stdin=f"{subject}\n\n{body}".encode())

    def files(self):
        """Names and contents of patches/."""
        return {path.name: path.read_bytes() for path in self.patches.iterdir()}

    def state(self):
        """What must not change when something goes wrong."""
        tree = {
            str(path): path.read_bytes()
            for path in sorted(self.upstream.rglob("*"))
            if path.is_file() and ".git" not in path.parts
        }
        return self.git.text("rev-parse", "HEAD"), tree

    def change_patch(self, name, old, new):
        path = self.patches / name
        data = path.read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose sdist is downloaded, with no patches and no upstream/."""
    monkeypatch.delenv("NUMPY_DEFERRED_SDIST", raising=False)
    project = SmallProject(tmp_path)
    project.patches.mkdir()
    series.write(project, [])
    project.make_sdist()
    return project


@pytest.fixture
def patched(project):
    """The same with upstream/ and two patches."""
    worktree.ensure(project)
    project.commit()
    project.commit("BLD: Add a file's line", name="setup.txt", old="two", new="2")
    worktree.export(project)
    return project


@pytest.fixture
def real():
    """This project itself, as cloned."""
    if HERE.is_sdist:
        pytest.skip("an sdist has no patches to import")
    return HERE


@pytest.fixture
def pip_settings(tmp_path, monkeypatch):
    """Make pip know only the settings given: pip_settings("key = value", ...)."""
    for name in ("INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS", "NO_INDEX"):
        monkeypatch.delenv(f"PIP_{name}", raising=False)
    path = tmp_path / "pip.conf"
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")

    def write(*lines):
        path.write_text("[global]\n" + "\n".join(lines) + "\n")
        # PIP_CONFIG_FILE adds to the other files; a setting here wins over them.
        monkeypatch.setenv("PIP_CONFIG_FILE", str(path))

    return write


@pytest.fixture
def leftovers(tmp_path):
    """After the test: no temporary directory may have stayed behind."""
    yield
    assert list(tmp_path.glob(".upstream-*")) == []


@pytest.fixture
def python():
    """Run code in a new Python; what it prints."""

    def run(*arguments, **options):
        return subprocess.run(
            [sys.executable, "-P", *arguments],
            check=True,
            capture_output=True,
            text=True,
            **options,
        ).stdout

    return run
