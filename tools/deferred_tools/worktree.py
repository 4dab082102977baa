"""upstream/: a throw-away git repository, NumPy's sdist and one commit a patch.

refs/deferred/base is the sdist's commit, refs/deferred/applied the last commit
that patches/ is known to hold, and the setting deferred.fingerprint says of
which patches/. What is newer than that is work, and is never thrown away.
"""

import contextlib
import re
import shutil
import tempfile
from pathlib import Path

from . import sdist, series
from .git import EMAIL, IDENTITY, Git, GitError
from .project import ToolError, say

BASE = "refs/deferred/base"
APPLIED = "refs/deferred/applied"
FINGERPRINT = "deferred.fingerprint"
PINNED = "deferred.sdist"


def ensure(project):
    """Make upstream/ hold the pinned NumPy with patches/ applied.

    Returns True when it had to change anything.
    """
    if project.is_sdist:
        return False
    patches = series.read(project)
    if not project.upstream.exists():
        replace(project, patches)
        return True
    git = open_repository(project)
    if git.get_config(FINGERPRINT) == series.fingerprint(project, patches):
        return False
    if git.get_config(PINNED) == project.pin["sha256"] and patches == exported(git):
        record(project, git, patches)
        return False
    refuse_to_lose_work(git)
    if git.get_config(PINNED) == project.pin["sha256"]:
        update(project, git, patches)
    else:
        replace(project, patches)
    return True


def open_repository(project):
    if not (project.upstream / ".git").is_dir():
        raise ToolError(
            f"{project.upstream} was not made by these tools (it is no git "
            "repository). Move it away and run the command again."
        )
    return Git(project.upstream)


def refuse_to_lose_work(git):
    if changed := git.text("status", "--porcelain"):
        raise ToolError(
            "patches/ has changed, and upstream/ has uncommitted edits:\n"
            f"{changed}\n"
            "Nothing was touched. Commit or stash them in upstream/ and, to keep "
            "them, rebase: see patches/README.md."
        )
    if newer := git.text("log", "--format=  %s", f"{APPLIED}..HEAD"):
        raise ToolError(
            "patches/ has changed, and upstream/ has commits that were never "
            f"exported:\n{newer}\n"
            "Nothing was touched. To keep them, put patches/ back as it was, run "
            "`spin patches export` and merge with git; to drop them, run "
            "`git -C upstream reset --hard refs/deferred/applied`."
        )


def replace(project, patches):
    """Build upstream/ anew, beside it, and swap it in at the end."""
    archive = sdist.get(project)
    with temporary_directory(project) as directory:
        new = directory / "upstream"
        git = create(project, archive, new)
        apply(git, patches)
        record(project, git, patches)
        if project.upstream.exists():
            project.upstream.rename(directory / "old")
        new.rename(project.upstream)


def update(project, git, patches):
    """Apply changed patches in the existing repository.

    Only files that differ are written, so the next build is a short one.
    """
    with checkout(project, git, BASE) as scratch:
        apply(scratch, patches)
        head = scratch.text("rev-parse", "HEAD")
    git("reset", "--hard", head)
    record(project, git, patches)


def create(project, archive, directory):
    """Unpack the sdist into a new repository of one commit."""
    sdist.unpack(archive, directory.parent / "sdist").rename(directory)
    git = Git(directory)
    git("init", "--quiet", "--template=", "--initial-branch=patched")
    git("config", "core.autocrlf", "false")
    # For whoever commits by hand in there and has no identity of their own.
    git("config", "user.name", IDENTITY)
    git("config", "user.email", EMAIL)
    git("config", "commit.template", "../patches/template.txt")
    git("config", PINNED, project.pin["sha256"])
    # Some files of the sdist have CRLF line ends; they stay as they are.
    info = directory / ".git" / "info"
    info.mkdir(exist_ok=True)
    (info / "attributes").write_text("* -text\n")
    # The sdist holds files that its own .gitignore lists.
    git("add", "--all", "--force")
    git("commit", "--quiet", "--message", f"NumPy {project.pin['version']}")
    git("update-ref", BASE, "HEAD")
    return git


def apply(git, patches):
    say(f"applying {len(patches)} patches")
    for patch in patches:
        try:
            git("apply", "--index", "--whitespace=nowarn", stdin=patch.data)
        except GitError as error:
            raise ToolError(explain_failure(patch, error.stderr)) from error
        git(
            "commit",
            "--quiet",
            "--cleanup=verbatim",
            "--file=-",
            stdin=patch.message.encode(),
        )


def explain_failure(patch, stderr):
    """Name the patch, the file and the hunk that git could not apply."""
    lines = [f"patches/{patch.name} does not apply; upstream/ is as it was."]
    for file, start in re.findall(r"error: patch failed: (.*):(\d+)\n", stderr):
        of_file = patch.diff.decode(errors="replace").split(f"\n+++ b/{file}\n", 1)
        hunk = re.search(rf"(?m)^@@ -{start}\b.*$", of_file[-1])
        lines.append(f"  file: {file}")
        lines.append(f"  hunk: {hunk.group() if hunk else 'line ' + start}")
    lines += [f"  git: {line}" for line in stderr.splitlines()]
    return "\n".join(lines)


def exported(git, head="HEAD"):
    """The commits since the sdist's, as patches."""
    patches = []
    for commit in git.text("rev-list", "--reverse", f"{BASE}..{head}").split():
        parents = git.text("rev-list", "--parents", "-1", commit).split()[1:]
        message = git.text("log", "-1", "--format=%B", commit)
        subject = message.partition("\n")[0]
        if len(parents) != 1:
            raise ToolError(f"upstream/: `{subject}` is a merge; rebase it away")
        if re.match(r"(fixup|squash|amend)! ", subject):
            raise ToolError(
                f"upstream/: `{subject}` is still to be folded in: "
                f"git -C upstream rebase -i --autosquash {BASE}"
            )
        patches.append(series.make(message, diff_of(git, parents[0], commit)))
        if not patches[-1].diff:
            raise ToolError(f"upstream/: commit `{subject}` changes nothing")
        if b"\nGIT binary patch\n" in patches[-1].diff:
            raise ToolError(f"upstream/: commit `{subject}` changes a binary file")
    names = [patch.name for patch in patches]
    for name in names:
        if names.count(name) > 1:
            raise ToolError(f"upstream/: two commits would both be called {name}")
    return patches


def diff_of(git, parent, commit):
    return git(
        "diff-tree",
        "--patch",
        "--no-color",
        "--no-ext-diff",
        "--no-textconv",
        "--no-renames",
        "--binary",
        "--unified=3",
        "--diff-algorithm=myers",
        "--indent-heuristic",
        "--src-prefix=a/",
        "--dst-prefix=b/",
        parent,
        commit,
    )


def export(project):
    """Write the commits of upstream/ to patches/. Returns the patches."""
    git = open_repository(project)
    patches = exported(git)
    series.write(project, patches)
    record(project, git, patches)
    if changed := git.text("status", "--porcelain"):
        say(
            f"note: these edits in upstream/ are not committed, so in no patch:\n"
            f"{changed}"
        )
    return patches


def fold(project, name):
    """Make the uncommitted edits of upstream/ part of an existing patch.

    The index is taken when anything is staged, every edit otherwise.
    """
    git = open_repository(project)
    commits = git.text("rev-list", "--reverse", f"{BASE}..HEAD").split()
    names = [patch.name for patch in exported(git)]
    if name not in names:
        raise ToolError(
            f"no commit of upstream/ is called {name}; these are:\n  "
            + "\n  ".join(names)
        )
    if not git.text("diff", "--cached", "--name-only"):
        git("add", "--all")
    if not git.text("diff", "--cached", "--name-only"):
        raise ToolError("upstream/ has no uncommitted edits to fold in")
    git("commit", "--quiet", f"--fixup={commits[names.index(name)]}")
    try:
        with checkout(project, git, "HEAD") as scratch:
            # As they are: neither the list of commits nor a message is edited.
            editors = {"GIT_SEQUENCE_EDITOR": "true", "GIT_EDITOR": "true"}
            scratch("rebase", "--interactive", "--autosquash", BASE, env=editors)
            head = scratch.text("rev-parse", "HEAD")
    except GitError as error:
        raise ToolError(
            f"the edits do not fit into {name} without a conflict. They are now "
            "the last commit of upstream/; settle it there with\n"
            f"  git -C upstream rebase -i --autosquash {BASE}\n{error.stderr}"
        ) from error
    # The tree is the same, only the history differs: no file is touched.
    git("reset", "--quiet", "--soft", head)


def record(project, git, patches):
    git("update-ref", APPLIED, "HEAD")
    git("config", FINGERPRINT, series.fingerprint(project, patches))


@contextlib.contextmanager
def checkout(project, git, revision):
    """A second work tree of the same repository, for as long as needed."""
    with temporary_directory(project) as directory:
        git("worktree", "add", "--quiet", "--detach", str(directory / "tree"), revision)
        try:
            yield Git(directory / "tree")
        finally:
            git("worktree", "remove", "--force", str(directory / "tree"))


@contextlib.contextmanager
def temporary_directory(project):
    """Beside upstream/, so that a rename can swap the result in."""
    directory = Path(tempfile.mkdtemp(prefix=".upstream-", dir=project.root))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
