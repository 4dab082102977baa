"""`spin patches check` finds what is wrong with a series."""

import pytest

from deferred_tools import check, series, worktree

pytestmark = pytest.mark.usefixtures("leftovers")
HOOK = "enh-add-a-hook.patch"
LINE = "bld-add-a-files-line.patch"


def only_problem(project):
    (problem,) = check.problems(project)
    return problem


def test_good_series_has_none(patched):
    assert check.problems(patched) == []


def test_real_series_has_none(real):
    assert check.problems(real) == []


def test_orphan(patched):
    (patched.patches / "enh-orphan.patch").write_bytes(b"")
    assert only_problem(patched) == (
        "patches/enh-orphan.patch is not listed in patches/series"
    )


def test_duplicate(patched):
    (patched.patches / "series").write_text(f"{HOOK}\n{LINE}\n{HOOK}\n")
    assert only_problem(patched) == f"patches/series lists {HOOK} 2 times"


def test_missing_file(patched):
    (patched.patches / LINE).unlink()
    assert f"lists {LINE}, which is not in patches/" in only_problem(patched)


def test_no_patch_at_all(patched):
    (patched.patches / LINE).write_bytes(b"rubbish")
    assert f"patches/{LINE} is no patch of ours" in only_problem(patched)


@pytest.mark.parametrize("field", series.FIELDS)
def test_missing_header_field(patched, field):
    patched.change_patch(HOOK, f"\n{field}:".encode(), b"\nMore:")
    assert f"no `{field}:`" in only_problem(patched)


def test_empty_header_field(patched):
    patched.change_patch(HOOK, b"Remove when: Never.", b"Remove when:")
    assert "no `Remove when:`, or an empty one" in only_problem(patched)


def test_name_that_is_not_from_the_subject(patched):
    patched.change_patch(HOOK, b"ENH: Add a hook", b"ENH: Add a hoop")
    assert "asks for the name enh-add-a-hoop.patch" in only_problem(patched)


def test_long_subject(patched):
    patched.commit("ENH: " + "a" * 67, old="line 2\n", new="mine\n")
    worktree.export(patched)
    assert "72 characters or more" in only_problem(patched)


def test_size_and_its_allowance(patched):
    many = "hook\n" * (series.MAX_LINES + 1)
    patched.commit("ENH: Much", old="line 2\n", new="line 2\n" + many)
    worktree.export(patched)
    assert "changes 61 lines, over 60" in only_problem(patched)
    body = patched.git.text("log", "-1", "--format=%B") + "\nSize: One list.\n"
    patched.git("commit", "--quiet", "--amend", "--file=-", stdin=body.encode())
    worktree.export(patched)
    assert check.problems(patched) == []


def test_file_with_crlf(patched):
    patched.commit("ENH: DOS", name="src/dos.c", old="second", new="last")
    worktree.export(patched)
    assert "CRLF" in only_problem(patched)


def test_does_not_apply(patched):
    patched.change_patch(HOOK, b" line 19\n", b" line nineteen\n")
    assert "hunk: @@ -18,6 +18,7 @@" in only_problem(patched)


def test_order_that_does_not_apply(patched):
    patched.commit("ENH: On top", old="hook\n", new="hooks\n")
    worktree.export(patched)
    (patched.patches / "series").write_text(f"enh-on-top.patch\n{HOOK}\n{LINE}\n")
    assert "patches/enh-on-top.patch does not apply" in only_problem(patched)


def test_line_numbers_that_are_off(patched):
    patched.change_patch(HOOK, b"@@ -18,6 +18,7 @@", b"@@ -17,6 +17,7 @@")
    problems = check.problems(patched)
    assert f"patches/{HOOK} is not in the exported form" in problems[0]


def test_edited_by_hand(patched):
    patched.change_patch(HOOK, b"Why: Because.\n", b"Why: Because.  \n")
    assert "not in the exported form" in check.problems(patched)[0]


def test_unexported_commit(patched):
    patched.commit("ENH: More", old="line 2\n", new="mine\n")
    assert "upstream/ holds other patches" in only_problem(patched)


def test_line_counts(patched):
    patched.commit("ENH: Second", old="line 2\n", new="mine\n")
    worktree.export(patched)
    assert check.line_counts(patched, series.read(patched)) == {
        "src/code.c": [2, 1],
        "setup.txt": [1, 1],
    }


def test_nothing_is_changed(patched):
    before = patched.state(), patched.files()
    check.problems(patched)
    assert (patched.state(), patched.files()) == before
