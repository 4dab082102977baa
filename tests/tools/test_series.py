"""The form of a patch file."""

import pytest

from deferred_tools import series
from deferred_tools.project import ToolError

DIFF = b"""\
diff --git a/x.c b/x.c
index 1234567..89abcde 100644
--- a/x.c
+++ b/x.c
@@ -1,2 +1,2 @@
-index 1..2
+index 3..4
 index 5..6
"""


def test_data_parses_to_the_same_patch():
    patch = series.make("ENH: A thing\n\nWhy: Because.  \n more\nTests: x\n\n\n", DIFF)
    assert series.parse(patch.name, patch.data) == patch
    assert patch.message == "ENH: A thing\n\nWhy: Because.\n more\nTests: x\n"


def test_no_blob_names_but_all_changed_lines():
    diff = series.make("ENH: A thing", DIFF).diff
    assert b"1234567" not in diff
    assert diff.count(b"index") == 3


def test_fields():
    patch = series.make("S\n\nWhy: one\n two: three\nWhy not outside: four\n", DIFF)
    assert patch.fields == {"Why": "one\n two: three", "Why not outside": "four"}


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        ("ENH: Add _a_ hook", "enh-add-a-hook.patch"),
        ("BLD: Use NumPy's tree/", "bld-use-numpys-tree.patch"),
    ],
)
def test_file_name(subject, name):
    assert series.file_name(subject) == name


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"Subject: X\n\nbody\n---\n",
        b"From: X\n\nbody\n---\n" + DIFF,
        b"Subject: X\n\nbody\n" + DIFF,
    ],
)
def test_parse_refuses(data):
    with pytest.raises(ToolError, match=r"patches/x\.patch is no patch of ours"):
        series.parse("x.patch", data)
