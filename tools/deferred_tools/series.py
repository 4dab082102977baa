"""Patch files and patches/series.

A patch file has one form, so that the same change is the same bytes for
everybody: `Subject:`, the fields below, `---`, then git's diff without the
`index` lines, which name blobs. No author, no date, no commit.
"""

import dataclasses
import hashlib
import re

from .project import ToolError

FIELDS = ("Why", "Hook", "Why not outside", "Remove when", "Tests")
# A patch may exceed MAX_LINES when this field says why.
SIZE_FIELD = "Size"
MAX_LINES = 60


@dataclasses.dataclass(frozen=True)
class Patch:
    name: str
    subject: str
    body: str
    diff: bytes

    @property
    def message(self):
        return f"{self.subject}\n\n{self.body}\n"

    @property
    def data(self):
        header = f"Subject: {self.subject}\n\n{self.body}\n---\n"
        return header.encode() + self.diff

    @property
    def fields(self):
        """Field name -> text, of the fields that the header has."""
        names = "|".join((*FIELDS, SIZE_FIELD))
        parts = re.split(rf"(?m)^({names}):", self.body)
        return {k: v.strip() for k, v in zip(parts[1::2], parts[2::2], strict=True)}


def file_name(subject):
    """The name of the patch that has this subject."""
    words = re.findall(r"[a-z0-9]+", subject.lower().replace("'", ""))
    return "-".join(words) + ".patch"


def make(message, diff):
    """A Patch from a commit's message and git's diff."""
    subject, _, body = message.strip().partition("\n")
    body = "\n".join(line.rstrip() for line in body.strip().splitlines())
    # Lines of the changed files begin with a blank, + or -, never with "index".
    diff = re.sub(rb"(?m)^index [0-9a-f]+\.\.[0-9a-f]+.*\n", b"", diff)
    return Patch(file_name(subject), subject, body, diff)


def parse(name, data):
    header, separator, diff = data.partition(b"\n---\ndiff --git ")
    if not (separator and header.startswith(b"Subject: ")):
        raise ToolError(
            f"patches/{name} is no patch of ours: it must begin with `Subject: `, "
            "and have a line `---` before the first `diff --git`.\n"
            "Make patches with `spin patches export`."
        )
    subject, _, body = header.decode().removeprefix("Subject: ").partition("\n")
    return Patch(name, subject, body.strip("\n"), b"diff --git " + diff)


def read_names(project):
    path = project.patches / "series"
    if not path.is_file():
        raise ToolError(f"{path} is missing: it lists the patches in their order")
    return path.read_text().split()


def read(project):
    """The patches, in order."""
    patches = []
    for name in read_names(project):
        path = project.patches / name
        if not path.is_file():
            raise ToolError(f"patches/series lists {name}, which is not in patches/")
        patches.append(parse(name, path.read_bytes()))
    return patches


def write(project, patches):
    """Make patches/ hold exactly these; only files that differ are written."""
    series = "".join(f"{patch.name}\n" for patch in patches).encode()
    wanted = {patch.name: patch.data for patch in patches} | {"series": series}
    for path in project.patches.glob("*.patch"):
        if path.name not in wanted:
            path.unlink()
    for name, data in wanted.items():
        path = project.patches / name
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)


def fingerprint(project, patches):
    """Changes when the pinned sdist or any patch does."""
    digest = hashlib.sha256(project.pin["sha256"].encode())
    for patch in patches:
        digest.update(patch.name.encode() + b"\0" + patch.data + b"\0")
    return digest.hexdigest()
