"""Everything that must hold for patches/, and its size."""

import collections

from . import sdist, series, worktree
from .git import Git
from .project import ToolError


def problems(project):
    """One line for each thing that is wrong; empty when all is well."""
    found = []
    patches = []
    names = series.read_names(project)
    for name, count in collections.Counter(names).items():
        path = project.patches / name
        if count > 1:
            found.append(f"patches/series lists {name} {count} times")
        if not path.is_file():
            found.append(f"patches/series lists {name}, which is not in patches/")
            continue
        try:
            patches.append(series.parse(name, path.read_bytes()))
        except ToolError as error:
            found.append(str(error))
    for path in sorted(project.patches.glob("*.patch")):
        if path.name not in names:
            found.append(f"patches/{path.name} is not listed in patches/series")
    for patch in patches:
        found += header_problems(project, patch)
    # Only a series that can be read is worth applying.
    return found or round_trip_problems(project, patches)


def header_problems(project, patch):
    where = f"patches/{patch.name}:"
    found = []
    if patch.name != series.file_name(patch.subject):
        found.append(
            f"{where} its subject asks for the name {series.file_name(patch.subject)}"
        )
    if len(patch.subject) >= 72:
        found.append(f"{where} the subject has 72 characters or more")
    for field in series.FIELDS:
        if not patch.fields.get(field):
            found.append(f"{where} the header has no `{field}:`, or an empty one")
    if b"\r" in patch.data:
        found.append(
            f"{where} changes a file with CRLF line ends, which .gitattributes turns "
            "into LF in the patch: hook another file"
        )
    counts = line_counts(project, [patch])
    changed = sum(added + removed for added, removed in counts.values())
    if changed > series.MAX_LINES and not patch.fields.get(series.SIZE_FIELD):
        found.append(
            f"{where} changes {changed} lines, over {series.MAX_LINES}: split it, or "
            f"say in a field `{series.SIZE_FIELD}:` why it cannot be smaller"
        )
    return found


def round_trip_problems(project, patches):
    """Import onto the pinned sdist, export, compare every byte."""
    with worktree.temporary_directory(project) as directory:
        git = worktree.create(project, sdist.get(project), directory / "upstream")
        try:
            worktree.apply(git, patches)
        except ToolError as error:
            return [str(error)]
        again = worktree.exported(git)
    return [
        f"patches/{patch.name} is not in the exported form (line numbers that are "
        "off, or edited by hand): spin patches import, then export"
        for patch, other in zip(patches, again, strict=True)
        if patch.data != other.data
    ] + unexported_problems(project, patches)


def unexported_problems(project, patches):
    if not (project.upstream / ".git").is_dir():
        return []
    git = Git(project.upstream)
    if worktree.exported(git) == patches:
        return []
    return ["upstream/ holds other patches than patches/: export or import them"]


def line_counts(project, patches):
    """Lines added and removed, {file: [added, removed]}."""
    counts = {}
    for patch in patches:
        numstat = Git(project.root)("apply", "--numstat", stdin=patch.data)
        for line in numstat.decode().splitlines():
            added, removed, file = line.split("\t")
            total = counts.setdefault(file, [0, 0])
            total[0] += int(added)
            total[1] += int(removed)
    return counts
