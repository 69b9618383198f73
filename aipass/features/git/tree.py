"""Trees as git keeps them: what lies at some paths in a commit, what git would keep of a working file now, and commits made of both.

Everything goes through an index of its own (`GIT_INDEX_FILE`) that holds the asked paths only, and `git fast-import`, so that
the cost is that of the paths, whatever the size of the repository, and nobody's index or HEAD is touched.
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
#: What git reads in each folder on its way to a path.
_PASSED = (".gitignore", ".gitattributes")
#: A question that git answers from names alone takes no longer, in however large a tree.
QUICK_S = 30.0
#: Of all files of a PR; forges take a tenth of that of one. Git reads them while others wait for the lease, and is waited for so long.
MOST_BYTES, READ_S = 1 << 30, 20.0


class TreeEntry(NamedTuple):
    """One path in a tree: git's mode (`100644 100755 120000 160000`) and the object."""

    mode: str
    sha: str


#: Paths with what is there; None: nothing.
Entries = dict[str, TreeEntry | None]


def at(repo: Repo, commit: str, paths: Iterable[str]) -> Entries:
    """What a commit holds at these paths; folders as entries of mode 040000."""
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
    """The paths in which two commits or trees differ, with what is there in each."""
    words = records(repo.run("diff-tree", "-r", "-z", "--no-renames", "--raw", "--no-abbrev", old, new))
    found = {}
    for about, path in zip(words[::2], words[1::2], strict=True):
        old_mode, new_mode, old_sha, new_sha, _ = about.removeprefix(":").split(" ")
        before = None if old_mode == "000000" else TreeEntry(old_mode, old_sha)
        after = None if new_mode == "000000" else TreeEntry(new_mode, new_sha)
        found[path] = before, after
    return found


#: Of a path with more parts nothing is kept: what is asked of each folder above it makes everybody wait.
MOST_PARTS = 200


def unusable(repo: Repo, path: str) -> str | None:
    """Why git cannot keep what lies at a path now; None where it can, also where nothing is there."""
    parts = path.split("/")
    if len(parts) > MOST_PARTS:
        return f"it lies more than {MOST_PARTS} folders deep"
    for depth in range(1, len(parts)):
        folder = repo.top.joinpath(*parts[:depth])
        try:
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
        return f"it is larger than {MOST_BYTES >> 30} GB, and a commit would hold all of it"
    return None


@contextmanager
def private_index(repo: Repo) -> Iterator[dict[str, str]]:
    """An index of our own; the environment that makes git use it."""
    repo.scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = repo.scratch / f"index-{os.getpid()}-{time.monotonic_ns()}"
    try:
        yield {"GIT_INDEX_FILE": str(path), "GIT_WORK_TREE": str(repo.top), "GIT_DIR": str(repo.own)}
    finally:
        for name in (path, path.with_name(path.name + ".lock")):
            name.unlink(missing_ok=True)


def now(repo: Repo, base: Entries, most: int = 2 * MOST_BYTES) -> Entries:
    """What git would keep of the working files at the paths of `base`, which is what it has there.

    Modes, links, filters, line ends as `git add` has them; the objects are written. Raises GitError, and RefusedError where
    the files hold more than `most` bytes together.
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
        repo.run("update-index", "-z", "--index-info", stdin=before, env=env)
        names = b"".join(os.fsencode(path) + b"\0" for path in base)
        # A file may have grown since it was looked at.
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
    """Raises RefusedError where git would read very much."""
    left = most
    for path in paths:
        try:
            found = (repo.top / path).lstat()
        except OSError:
            continue
        left -= found.st_size if stat.S_ISREG(found.st_mode) else 0
    if left < 0:
        raise RefusedError(
            f"these files hold more than {most >> 30} GB together; nothing was changed; name fewer of them, or make them smaller"
        )


def in_submodules(repo: Repo, commit: str, paths: Iterable[str]) -> dict[str, str]:
    """Those of the paths that lie in a submodule, checked out or not, with its own path."""
    above = {
        path: ["/".join(path.split("/")[:depth]) for depth in range(1, path.count("/") + 1)] for path in paths
    }
    entries = at(repo, commit, {one for folders in above.values() for one in folders})
    modules = {path for path, entry in entries.items() if entry is not None and entry.mode == MODULE_MODE}
    return {path: one for path, folders in above.items() for one in folders if one in modules}


def ignored(repo: Repo, paths: Collection[str]) -> set[str]:
    """Those of the paths that git ignores, tracked ones left out."""
    if not paths:
        return set()
    _check_passed(repo, paths)
    # A name that begins with `:` means something else to it.
    names = b"".join(b"./" + os.fsencode(path) + b"\0" for path in paths)
    said = records(repo.run("check-ignore", "-z", "--stdin", stdin=names, fine=(0, 1), timeout=QUICK_S))
    return {path.removeprefix("./") for path in said}


def _check_passed(repo: Repo, paths: Iterable[str]) -> None:
    """Look at what git reads on its way to these paths before it does: raises RefusedError where that is no file, or no end of one."""
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
                f"{where} is no file, or larger than {MAX_GITIGNORE_BYTES // 1000} kB, and git reads it on its way: make it smaller, or remove it"
            )


def commit(
    repo: Repo,
    ref: str,
    parents: Sequence[str],
    changes: Mapping[str, TreeEntry | None],
    message: str,
    author: str,
) -> str:
    """A commit of the first parent's tree with these changes, as the new value of `ref`; returns its id.

    `author` is `Name <address>`. Raises GitError.
    """
    when = f"{int(time.time())} {time.strftime('%z')}"
    lines = [f"commit {ref}", "mark :1", f"author {author} {when}", f"committer {repo.signer()} {when}"]
    data = message.encode("utf-8", "replace")
    stream = [_lines(*lines, f"data {len(data)}"), data, _lines("", *_parents(parents))]
    for path, entry in sorted(changes.items(), key=lambda change: change[1] is not None):
        # What goes away goes first: a file may take the place of a folder.
        words = b"D " if entry is None else f"M {entry.mode} {entry.sha} ".encode()
        stream.append(words + _quoted(path) + b"\n")
    stream.append(_lines("", "get-mark :1", "done"))
    said = (
        repo.run("fast-import", "--quiet", "--done", "--force", "--date-format=raw", stdin=b"".join(stream))
        .decode()
        .strip()
    )
    if not said:
        raise GitError("`git fast-import` made no commit and does not say why")
    return said


def _lines(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


def _parents(parents: Sequence[str]) -> Iterator[str]:
    for place, parent in enumerate(parents):
        yield f"{'merge' if place else 'from'} {parent}"


_ESCAPED = {ord("\\"): b"\\\\", ord('"'): b'\\"', ord("\n"): b"\\n"}


def _quoted(path: str) -> bytes:
    """A path as fast-import reads it."""
    return b'"' + b"".join(_ESCAPED.get(byte, bytes((byte,))) for byte in os.fsencode(path)) + b'"'


def merged(repo: Repo, ours: str, theirs: str) -> tuple[str, list[str]]:
    """The tree that a merge of two commits comes to, and the paths in conflict; no conflict: an empty list."""
    # A new file stays in the folder that its author chose, also where another moved the rest of that folder away.
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
    """A commit of a tree that is there already. `author` is `Name <address>`; left out: the user."""
    env: dict[str, str] = {}
    for role, who in (("AUTHOR", author or repo.signer()), ("COMMITTER", repo.signer())):
        name, _, address = who.rpartition(" <")
        env |= {f"GIT_{role}_NAME": name or "aipass", f"GIT_{role}_EMAIL": address.removesuffix(">")}
    upon = [word for parent in parents for word in ("-p", parent)]
    said = repo.run("commit-tree", made, *upon, "-F", "-", stdin=message.encode("utf-8", "replace"), env=env)
    return said.decode().strip()


def staged(repo: Repo, paths: Iterable[str]) -> Entries:
    """What the user's index has at these paths."""
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
    """This moment as records have it."""
    return iso(time.time()) or ""
