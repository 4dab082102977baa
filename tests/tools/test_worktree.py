"""upstream/: making it, importing, exporting, folding, and losing nothing."""

import pytest

from deferred_tools import series, worktree
from deferred_tools.project import ToolError

pytestmark = pytest.mark.usefixtures("leftovers")
HOOK = "enh-add-a-hook.patch"
LINE = "bld-add-a-files-line.patch"


def test_first_run_makes_upstream(project):
    assert worktree.ensure(project)
    assert (project.upstream / "src" / "code.c").is_file()
    assert project.git.text("log", "--format=%s") == "NumPy 1.0"


def test_every_file_of_the_sdist_is_in_the_repository_as_it_was(project):
    worktree.ensure(project)
    assert (project.upstream / "src" / "dos.c").read_bytes() == b"first\r\nsecond\r\n"
    assert project.git.text("ls-files").split() == [
        ".gitignore",
        "setup.txt",
        "src/code.c",
        "src/dos.c",
    ]


def test_second_run_does_nothing(patched):
    before = patched.state(), patched.upstream.stat().st_mtime_ns
    assert not worktree.ensure(patched)
    assert before == (patched.state(), patched.upstream.stat().st_mtime_ns)


def test_import_then_export_changes_no_byte(patched):
    before = patched.files()
    patched.upstream.rename(patched.root / "old")
    assert worktree.ensure(patched)
    worktree.export(patched)
    assert patched.files() == before
    assert before["series"] == f"{HOOK}\n{LINE}\n".encode()


def test_commits_are_the_same_for_everybody(patched, monkeypatch):
    head = patched.git.text("rev-parse", "HEAD")
    patched.upstream.rename(patched.root / "old")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Somebody Else")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "diff.noprefix")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "true")
    worktree.ensure(patched)
    assert patched.git.text("rev-parse", "HEAD") == head


def test_failing_patch_names_patch_file_and_hunk(patched):
    patched.change_patch(HOOK, b" line 19\n", b" line nineteen\n")
    before = patched.state()
    with pytest.raises(ToolError) as error:
        worktree.ensure(patched)
    message = str(error.value)
    assert f"patches/{HOOK} does not apply" in message
    assert "file: src/code.c" in message
    assert "hunk: @@ -18,6 +18,7 @@" in message
    assert patched.state() == before


def test_failing_patch_on_a_fresh_clone_makes_no_upstream(patched):
    patched.change_patch(LINE, b"-two\n", b"-deux\n")
    patched.upstream.rename(patched.root / "old")
    with pytest.raises(ToolError, match=r"(?s)a-files-line.*file: setup.txt"):
        worktree.ensure(patched)
    assert not patched.upstream.exists()


def test_changed_patches_are_imported_and_other_files_kept(patched):
    other = patched.upstream / "setup.txt"
    date = other.stat().st_mtime_ns
    patched.change_patch(HOOK, b"+hook\n", b"+better hook\n")
    assert worktree.ensure(patched)
    assert "better hook" in (patched.upstream / "src" / "code.c").read_text()
    assert other.stat().st_mtime_ns == date
    assert not worktree.ensure(patched)


def test_dropped_patch_is_taken_back(patched):
    (patched.patches / "series").write_text(f"{LINE}\n")
    assert worktree.ensure(patched)
    assert "hook" not in (patched.upstream / "src" / "code.c").read_text()


def test_uncommitted_edits_survive_changed_patches(patched):
    patched.change_patch(HOOK, b"+hook\n", b"+better hook\n")
    patched.edit(old="line 2\n", new="mine\n")
    before = patched.state()
    with pytest.raises(ToolError, match=r"(?s)uncommitted edits.*src/code.c"):
        worktree.ensure(patched)
    assert patched.state() == before


def test_unexported_commits_survive_changed_patches(patched):
    patched.change_patch(HOOK, b"+hook\n", b"+better hook\n")
    patched.commit("ENH: Another", old="line 2\n", new="mine\n")
    before = patched.state()
    with pytest.raises(ToolError, match=r"(?s)never exported.*ENH: Another"):
        worktree.ensure(patched)
    assert patched.state() == before


def test_uncommitted_edits_do_not_stop_a_build(patched):
    patched.edit(old="line 2\n", new="mine\n")
    assert not worktree.ensure(patched)


def test_new_version_of_numpy(patched):
    (patched.downloads / "numpy-1.0.tar.gz").unlink()
    files = {"setup.txt": "one\ntwo\nthree\n", "src/code.c": "all new\n"}
    patched.make_sdist(files=files, version="2.0")
    (patched.patches / "series").write_text(f"{LINE}\n")
    assert worktree.ensure(patched)
    assert (patched.upstream / "setup.txt").read_text() == "one\n2\nthree\n"
    assert (patched.upstream / "src" / "code.c").read_text() == "all new\n"
    assert not (patched.upstream / "src" / "dos.c").exists()


def test_foreign_upstream_is_left_alone(project):
    project.upstream.mkdir()
    (project.upstream / "precious").touch()
    with pytest.raises(ToolError, match="Move it away"):
        worktree.ensure(project)
    assert (project.upstream / "precious").exists()


def test_unpacked_sdist_of_ours_is_used_as_it_is(project):
    (project.root / "PKG-INFO").touch()
    project.upstream.mkdir()
    assert not worktree.ensure(project)


def test_export_says_what_is_not_committed(patched, capsys):
    patched.edit(old="line 2\n", new="mine\n")
    worktree.export(patched)
    assert "src/code.c" in capsys.readouterr().err


def test_export_removes_files_of_dropped_commits(patched):
    patched.git("reset", "--hard", "HEAD~1")
    worktree.export(patched)
    assert set(patched.files()) == {HOOK, "series"}


@pytest.mark.parametrize(
    ("subject", "edit", "message"),
    [
        ("fixup! ENH: Add a hook", {}, "still to be folded in"),
        ("ENH: Add a hook", {}, "two commits would both be called"),
        ("ENH: Binary", {"new": "\0"}, "changes a binary file"),
    ],
)
def test_export_refuses(patched, subject, edit, message):
    before = patched.files()
    patched.commit(subject, **({"old": "line 2\n", "new": "mine\n"} | edit))
    with pytest.raises(ToolError, match=message):
        worktree.export(patched)
    assert patched.files() == before


def test_export_refuses_an_empty_commit(patched):
    patched.git("commit", "--allow-empty", "--message", "ENH: Nothing")
    with pytest.raises(ToolError, match="`ENH: Nothing` changes nothing"):
        worktree.export(patched)


def test_fold_adds_edits_to_an_earlier_patch(patched):
    patched.edit(old="line 22\n", new="line 22\nfolded\n")
    date = (patched.upstream / "setup.txt").stat().st_mtime_ns
    worktree.fold(patched, HOOK)
    names = [patch.name for patch in worktree.export(patched)]
    assert names == [HOOK, LINE]
    assert b"+folded\n" in patched.files()[HOOK]
    assert patched.git.text("status", "--porcelain") == ""
    assert (patched.upstream / "setup.txt").stat().st_mtime_ns == date


def test_fold_takes_only_what_is_staged(patched):
    patched.edit(old="line 22\n", new="line 22\nfolded\n")
    patched.git("add", "--all")
    patched.edit(name="setup.txt", old="three", new="3")
    worktree.fold(patched, HOOK)
    assert patched.git.text("status", "--porcelain") == "M setup.txt"
    worktree.export(patched)
    assert b"setup.txt" not in patched.files()[HOOK]


def test_fold_that_conflicts_loses_nothing(patched):
    patched.commit("ENH: Change the hook", old="hook\n", new="hooked\n")
    patched.edit(old="hooked\n", new="mine\n")
    with pytest.raises(ToolError, match="last commit of upstream/"):
        worktree.fold(patched, HOOK)
    assert "mine\n" in (patched.upstream / "src" / "code.c").read_text()
    assert patched.git.text("log", "-1", "--format=%s") == "fixup! ENH: Add a hook"


def test_fold_wants_a_known_patch_and_an_edit(patched):
    with pytest.raises(ToolError, match=f"(?s)no commit.*{HOOK}"):
        worktree.fold(patched, "enh-unknown.patch")
    with pytest.raises(ToolError, match="no uncommitted edits"):
        worktree.fold(patched, HOOK)


def test_missing_series_file(project):
    (project.patches / "series").unlink()
    with pytest.raises(ToolError, match="series is missing"):
        worktree.ensure(project)


def test_listed_patch_is_missing(patched):
    (patched.patches / HOOK).unlink()
    with pytest.raises(ToolError, match=f"lists {HOOK}, which is not in patches/"):
        series.read(patched)
