"""Finding, downloading and verifying the sdist."""

import hashlib

import pytest

from deferred_tools import sdist, worktree
from deferred_tools.project import ToolError


def pinned_elsewhere(project, tmp_path):
    """Pin an sdist that lies in a folder of its own; that folder."""
    (project.downloads / "numpy-1.0.tar.gz").unlink()
    elsewhere = tmp_path / "elsewhere"
    project.make_sdist(elsewhere)
    return elsewhere


def test_bad_checksum_names_both_sums(project):
    path = project.downloads / "numpy-1.0.tar.gz"
    path.write_bytes(b"something else")
    with pytest.raises(ToolError) as error:
        worktree.ensure(project)
    assert project.pin["sha256"] in str(error.value)
    assert hashlib.sha256(b"something else").hexdigest() in str(error.value)
    assert str(path) in str(error.value)
    assert not project.upstream.exists()


def test_bad_checksum_of_download_leaves_no_file(project, tmp_path, pip_settings):
    elsewhere = pinned_elsewhere(project, tmp_path)
    (elsewhere / "numpy-1.0.tar.gz").write_bytes(b"something else")
    pip_settings("no-index = true", f"find-links = {elsewhere}")
    with pytest.raises(ToolError, match="sha256 expected"):
        sdist.get(project)
    assert list(project.downloads.iterdir()) == []


def test_downloads_from_find_links(project, tmp_path, pip_settings):
    elsewhere = pinned_elsewhere(project, tmp_path)
    pip_settings("no-index = true", f"find-links = {elsewhere}")
    path = sdist.get(project)
    assert path == project.downloads / "numpy-1.0.tar.gz"
    assert path.read_bytes() == (elsewhere / path.name).read_bytes()


def test_downloads_from_index_in_environment(
    project, tmp_path, pip_settings, monkeypatch
):
    elsewhere = pinned_elsewhere(project, tmp_path)
    page = tmp_path / "index" / "numpy" / "index.html"
    page.parent.mkdir(parents=True)
    (elsewhere / "numpy-1.0.tar.gz").rename(page.parent / "numpy-1.0.tar.gz")
    page.write_text('<a href="numpy-1.0.tar.gz">numpy-1.0.tar.gz</a>')
    pip_settings("index-url = https://not.this.invalid/simple")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "index").as_uri())
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    assert sdist.get(project).is_file()


def test_no_index_says_what_to_do(project, tmp_path, pip_settings):
    pinned_elsewhere(project, tmp_path)
    pip_settings("no-index = true", f"find-links = {tmp_path}")
    with pytest.raises(ToolError) as error:
        worktree.ensure(project)
    message = str(error.value)
    assert "cannot find numpy-1.0.tar.gz" in message
    assert str(tmp_path) in message
    for remedy in ("downloads/", "NUMPY_DEFERRED_SDIST", "PIP_INDEX_URL"):
        assert remedy in message
    assert not project.upstream.exists()


def test_unreachable_index_says_what_to_do(project, tmp_path, pip_settings):
    pinned_elsewhere(project, tmp_path)
    pip_settings(
        "index-url = http://user:secret@127.0.0.1:9/simple",
        "extra-index-url =",
        "find-links =",
    )
    with pytest.raises(ToolError, match="NUMPY_DEFERRED_SDIST") as error:
        sdist.get(project)
    assert "http://127.0.0.1:9/simple" in str(error.value)
    assert "secret" not in str(error.value)


def test_environment_variable_names_the_sdist(project, tmp_path, monkeypatch):
    path = pinned_elsewhere(project, tmp_path) / "numpy-1.0.tar.gz"
    monkeypatch.setenv("NUMPY_DEFERRED_SDIST", str(path))
    assert sdist.get(project) == path


def test_environment_variable_names_no_file(project, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMPY_DEFERRED_SDIST", str(tmp_path / "gone"))
    with pytest.raises(ToolError, match=r"NUMPY_DEFERRED_SDIST names .*gone"):
        sdist.get(project)
