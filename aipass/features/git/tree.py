"""Git trees: the entries of a commit at some paths, the entries that working files would get, and new commits from both.

Private indexes (`GIT_INDEX_FILE`) contain only the wanted paths, and `git fast-import` writes the commits. So the cost depends on
the number of paths and not on the size of the repository, and the user's index and HEAD stay unchanged.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from aipass.errors import RefusedError
from aipass.event import iso, printable
from aipass.features.git.repo import GitError, batches, records
from aipass.sources.ignore import MAX_GITIGNORE_BYTES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from aipass.features.git.repo import Repo

FOLDER_MODE, MODULE_MODE = "040000", "160000"
IS_FOLDER = "it is a folder"
#: Files that git reads in each folder on the way to a path.
_PASSED = (".gitignore", ".gitattributes")
#: Timeout of a command that reads names and no contents; it needs less in a tree of any size.
QUICK_S = 30.0
#: Limit of all files of one PR; forges accept a tenth of that for one file. And the timeout of the command that reads
#: them: all other PRs wait for the lease at that time.
MOST_BYTES, READ_S = 1 << 30, 20.0


class TreeEntry(NamedTuple):
    """One entry of a tree: git's mode (`100644 100755 120000 160000`, folders `040000`) and the object's id."""

    mode: str
    sha: str


#: Paths with their entries; None: there is nothing at the path.
Entries = dict[str, TreeEntry | None]


def at(repo: Repo, commit: str, paths: Iterable[str]) -> Entries:
    """The entries of a commit at these paths; each path is in the result. Raises GitError."""
    wanted = sorted(set(paths))
    found: Entries = dict.fromkeys(wanted)
    for batch in batches(wanted):
        for line in records(
            repo.run("--literal-pathspecs", "ls-tree", "-z", "--full-tree", commit, "--", *batch)
        ):
            about, _, path = line.partition("\t")
            mode, _, sha = about.split(" ")
            if path in found:
                found[path] = TreeEntry(mode, sha)
    return found


def between(repo: Repo, old: str, new: str) -> dict[str, tuple[TreeEntry | None, TreeEntry | None]]:
    """The paths in which two commits or trees differ, each with its entry in the old and in the new one."""
    # Without renames: a rename is a removed and an added path, and ownership is decided per path.
    words = records(repo.run("diff-tree", "-r", "-z", "--no-renames", "--raw", "--no-abbrev", old, new))
    found = {}
    for about, path in zip(words[::2], words[1::2], strict=True):
        old_mode, new_mode, old_sha, new_sha, _ = about.removeprefix(":").split(" ")
        before = None if old_mode == "000000" else TreeEntry(old_mode, old_sha)
        after = None if new_mode == "000000" else TreeEntry(new_mode, new_sha)
        found[path] = before, after
    return found


#: Deeper paths are left out of PRs: git is asked about each folder above a path while other PRs wait, and an agent can
#: make a chain of folders of any length.
MOST_PARTS = 200


def unusable(repo: Repo, path: str) -> str | None:
    """The reason why a commit cannot contain the working file at a path; None where it can, or where there is no file."""
    parts = path.split("/")
    if len(parts) > MOST_PARTS:
        return f"it is more than {MOST_PARTS} folders deep"
    for depth in range(1, len(parts)):
        folder = repo.top.joinpath(*parts[:depth])
        try:
            # Git never follows a link on the way to a path; and a link could lead to a file outside the repository.
            if stat.S_ISLNK(folder.lstat().st_mode):
                return f"{'/'.join(parts[:depth])} is a symbolic link"
        except OSError:
            return None
        if (folder / ".git").exists():
            return f"{'/'.join(parts[:depth])} is a repository of its own"
    try:
        found = (repo.top / path).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        return str(exc.strerror)
    if stat.S_ISDIR(found.st_mode):
        return IS_FOLDER
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISLNK(found.st_mode):
        return "it is neither a file nor a link"
    if stat.S_ISREG(found.st_mode) and not os.access(repo.top / path, os.R_OK):
        return "it cannot be read"
    if stat.S_ISREG(found.st_mode) and found.st_size > MOST_BYTES:
        return f"it is larger than {MOST_BYTES >> 30} GB, too large for a commit"
    return None


@contextmanager
def private_index(repo: Repo) -> Iterator[dict[str, str]]:
    """A private index for the time of a block, empty at first; yields the environment with which git uses it."""
    repo.scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = repo.scratch / f"index-{os.getpid()}-{time.monotonic_ns()}"
    try:
        yield {"GIT_INDEX_FILE": str(path), "GIT_WORK_TREE": str(repo.top), "GIT_DIR": str(repo.own)}
    finally:
        for name in (path, path.with_name(path.name + ".lock")):
            name.unlink(missing_ok=True)


def now(repo: Repo, base: Entries, most: int = 2 * MOST_BYTES) -> Entries:
    """The entries that `git add` would make of the working files at the paths of `base`, with their modes, filters and line ends.

    `base`: the present entries. Writes the objects to the repository. Raises GitError, and RefusedError where the files
    together are larger than `most` bytes.
    """
    if not base:
        return {}
    _check_size(repo, base, most)
    before = b"".join(
        b"%s %s\t%s\0" % (entry.mode.encode(), entry.sha.encode(), os.fsencode(path))
        for path, entry in base.items()
        if entry is not None and entry.mode != FOLDER_MODE
    )
    with private_index(repo) as env:
        # The present entries first: line-end conversion depends on them (a file with CRLF in the index keeps CRLF).
        repo.run("update-index", "-z", "--index-info", stdin=before, env=env)
        names = b"".join(os.fsencode(path) + b"\0" for path in base)
        # With a timeout besides the size check: a file may have grown in between.
        words = ("update-index", "--add", "--remove", "--replace", "-z", "--stdin")
        repo.run(*words, stdin=names, env=env, timeout=READ_S)
        said = records(repo.run("ls-files", "-z", "--stage", "--full-name", env=env))
    found: Entries = dict.fromkeys(base)
    for line in said:
        about, _, path = line.partition("\t")
        mode, sha, _ = about.split(" ")
        if path in found:
            found[path] = TreeEntry(mode, sha)
    return found


def _check_size(repo: Repo, paths: Iterable[str], most: int) -> None:
    """Raises RefusedError where the files are too large together. Checked before git reads them under the lease."""
    left = most
    for path in paths:
        try:
            found = (repo.top / path).lstat()
        except OSError:
            continue
        left -= found.st_size if stat.S_ISREG(found.st_mode) else 0
    if left < 0:
        raise RefusedError(
            f"these files are larger than {most >> 30} GB together; nothing was changed; name fewer files, or make them smaller"
        )


def in_submodules(repo: Repo, commit: str, paths: Iterable[str]) -> dict[str, str]:
    """The paths that are inside a submodule, checked out or not, each with the submodule's path."""
    above = {
        path: ["/".join(path.split("/")[:depth]) for depth in range(1, path.count("/") + 1)] for path in paths
    }
    entries = at(repo, commit, {one for folders in above.values() for one in folders})
    modules = {path for path, entry in entries.items() if entry is not None and entry.mode == MODULE_MODE}
    return {path: one for path, folders in above.items() for one in folders if one in modules}


def ignored(repo: Repo, paths: Collection[str]) -> set[str]:
    """The paths that git ignores. A tracked path is never ignored. Raises RefusedError where git could hang or read too much."""
    if not paths:
        return set()
    _check_passed(repo, paths)
    # `check-ignore` reads pathspecs, in which a leading `:` is magic; `./` before each name prevents that.
    names = b"".join(b"./" + os.fsencode(path) + b"\0" for path in paths)
    said = records(repo.run("check-ignore", "-z", "--stdin", stdin=names, fine=(0, 1), timeout=QUICK_S))
    return {path.removeprefix("./") for path in said}


def _check_passed(repo: Repo, paths: Iterable[str]) -> None:
    """Raises RefusedError where a file that git reads on the way to these paths is too large or no regular file."""
    # An agent can put a named pipe or an endless file there. Git would never finish reading it, while other PRs wait.
    folders = {path[: at + 1] for path in paths for at, letter in enumerate(path) if letter == "/"} | {""}
    for place in (repo.top / f"{folder}{name}" for folder in folders for name in _PASSED):
        try:
            found = place.lstat()
        except OSError:
            continue
        if (
            not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode))
            or found.st_size > MAX_GITIGNORE_BYTES
        ):
            where = printable(str(place.relative_to(repo.top)))
            raise RefusedError(
                f"{where} is no file, or larger than {MAX_GITIGNORE_BYTES // 1000} kB, and git must read it; make it smaller, or remove it"
            )


def commit(
    repo: Repo,
    ref: str,
    parents: Sequence[str],
    changes: Mapping[str, TreeEntry | None],
    message: str,
    author: str,
) -> str:
    """Make a commit of the first parent's tree with these changes, move `ref` to it, and return its id.

    `author` is `Name <address>`. Overwrites `ref`, so it must be one that only aipass moves. Raises GitError.
    """
    when = f"{int(time.time())} {time.strftime('%z')}"
    lines = [f"commit {ref}", "mark :1", f"author {author} {when}", f"committer {repo.signer()} {when}"]
    data = message.encode("utf-8", "replace")
    stream = [_lines(*lines, f"data {len(data)}"), data, _lines("", *_parents(parents))]
    for path, entry in sorted(changes.items(), key=lambda change: change[1] is not None):
        # Deletions come first, because a file may take the place of a deleted folder.
        words = b"D " if entry is None else f"M {entry.mode} {entry.sha} ".encode()
        stream.append(words + _quoted(path) + b"\n")
    stream.append(_lines("", "get-mark :1", "done"))
    said = (
        repo.run("fast-import", "--quiet", "--done", "--force", "--date-format=raw", stdin=b"".join(stream))
        .decode()
        .strip()
    )
    if not said:
        raise GitError("`git fast-import` made no commit and gave no reason")
    return said


def _lines(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


def _parents(parents: Sequence[str]) -> Iterator[str]:
    for place, parent in enumerate(parents):
        yield f"{'merge' if place else 'from'} {parent}"


_ESCAPED = {ord("\\"): b"\\\\", ord('"'): b'\\"', ord("\n"): b"\\n"}


def _quoted(path: str) -> bytes:
    """A path in the C-style quotes of fast-import, so that it may contain any byte."""
    return b'"' + b"".join(_ESCAPED.get(byte, bytes((byte,))) for byte in os.fsencode(path)) + b'"'


def merged(repo: Repo, ours: str, theirs: str) -> tuple[str, list[str]]:
    """The tree that results from a merge of two commits, and the paths in conflict (none: an empty list). Writes no commit."""
    # Without detection of renamed folders: a new file stays in the folder that its author may write, also where
    # another author has moved the rest of that folder.
    words = (
        "-c",
        "merge.directoryRenames=false",
        "merge-tree",
        "--write-tree",
        "-z",
        "--no-messages",
        "--name-only",
        ours,
        theirs,
    )
    said = records(repo.run(*words, fine=(0, 1)))
    return said[0], said[1:]


def join(repo: Repo, made: str, parents: Sequence[str], message: str, author: str | None = None) -> str:
    """Make a commit of an existing tree and return its id; moves no ref. `author` is `Name <address>`, by default the user."""
    env: dict[str, str] = {}
    for role, who in (("AUTHOR", author or repo.signer()), ("COMMITTER", repo.signer())):
        name, _, address = who.rpartition(" <")
        env |= {f"GIT_{role}_NAME": name or "aipass", f"GIT_{role}_EMAIL": address.removesuffix(">")}
    upon = [word for parent in parents for word in ("-p", parent)]
    said = repo.run("commit-tree", made, *upon, "-F", "-", stdin=message.encode("utf-8", "replace"), env=env)
    return said.decode().strip()


def staged(repo: Repo, paths: Iterable[str]) -> Entries:
    """The entries of the user's index at these paths; each path is in the result."""
    wanted = sorted(set(paths))
    found: Entries = dict.fromkeys(wanted)
    for batch in batches(wanted):
        for line in records(
            repo.run("--literal-pathspecs", "ls-files", "-z", "--stage", "--full-name", "--", *batch)
        ):
            about, _, path = line.partition("\t")
            mode, sha, _ = about.split(" ")
            if path in found:
                found[path] = TreeEntry(mode, sha)
    return found


def today() -> str:
    """The present time as PR records store it: ISO 8601 in UTC."""
    return iso(time.time()) or ""
