"""The ignore rules of the watched tree: built-in names, every .gitignore, `[watch] ignore`, nested roots, other worktrees."""

from __future__ import annotations

import copy
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from aipass.sources import passing
from aipass.supervisor import held
from aipass.supervisor.fence.glob import GlobRule, Globs, is_plain
from aipass.workspace.layout import CONFIG_NAME

if TYPE_CHECKING:
    from collections.abc import Callable

_NAMES = (
    ".git .aipass .hg .svn .jj node_modules __pycache__ .venv venv .tox .nox .mypy_cache .ruff_cache .pytest_cache "
    ".hypothesis .cache .gradle .next .nuxt .svelte-kit .turbo .parcel-cache .terraform build dist target htmlcov "
    ".eggs .idea"
)
#: Folders with the output of tools, which no person reviews. `[watch] ignore = ["!build/"]` makes one watched again.
IGNORED_FOLDERS = frozenset(_NAMES.split())
#: Never watched, and no configuration can change that: the engine would react to its own writes.
FORBIDDEN_FOLDERS = frozenset((".git", ".aipass", ".trinity"))
#: Watched even where git ignores them: people give the engine work through them.
ALWAYS_WATCHED = frozenset(("inbox", "outbox", "plans", CONFIG_NAME))
#: Limits for one .gitignore: agents write these files, and every new file is compared with each pattern. The largest one of the collection
#: github.com/github/gitignore has 900 lines and 30 kB.
MAX_GITIGNORE_BYTES = 200_000
MAX_LINES = 2_000
#: The most that the patterns of one .gitignore and of those above it may cost per path. Unit: comparisons of a text, about a microsecond each;
#: see `weight`.
MAX_WEIGHT = 10_000
#: The longest name, in characters, and the deepest watched path, in parts (`WatchContext.depth`).
_LONGEST, _DEEPEST = 255, 256
#: Comparing this many single characters takes as long as one comparison of texts.
_CHARACTERS = 100
NAME = ".gitignore"
#: For a deeper file `hider` names no .gitignore: the search asks about every folder on the way.
_NAMED_DEEP = 50
#: A `.git` file is one line with one path.
MAX_GIT_FILE_BYTES = 5000


class _Rules(NamedTuple):
    """The patterns of one folder's own .gitignore, and their weight together with those of the folders above.

    `above`: the nearest folder above that has patterns; None where no folder has any.
    """

    globs: Globs | None
    weight: int
    above: str | None = None


class IgnoreRules:
    """Decides whether paths relative to `root` are ignored. Reads each `.gitignore` once, and again after `forget`.

    Calls `refused(path, reason)` for each `.gitignore` that it does not use, once while the reason stays the same.
    """

    def __init__(
        self,
        root: Path,
        patterns: tuple[str, ...] = (),
        refused: Callable[[str, str], None] = lambda path, reason: None,  # noqa: ARG005 - named for callers
    ) -> None:
        self._root, self._refused = root, refused
        self._own = Globs(patterns, gitignore=True) if patterns else None
        self._files: dict[str, _Rules] = {}
        #: The folders that have patterns.
        self._ruled: set[str] = set()
        self._told: dict[str, str] = {}

    def forget(self) -> IgnoreRules:
        """Make every .gitignore be read again when it is next needed; returns a copy with the rules up to now."""
        before = copy.copy(self)
        self._files, self._ruled = {}, set()
        return before

    def hider(self, path: str) -> str | None:
        """Return the path of the .gitignore that ignores the file at `path` or a folder above it; None where none does, or the file is too deep."""
        parts = path.split("/")
        if len(parts) > _NAMED_DEEP:
            return None
        places = [*("/".join(parts[:depth]) for depth in range(1, len(parts))), path]
        for place in places:
            folder, rule = self._deciding(place, folder=place != path)
            if rule is not None and rule.include:
                return f"{folder}/{NAME}" if folder else NAME
        return None

    def folder(self, path: str) -> bool:
        """Return whether the folder at `path`, and so all below it, is ignored. The caller has asked about its parents before."""
        name = path.rpartition("/")[2]
        if name in FORBIDDEN_FOLDERS:
            return True
        if path.partition("/")[0] in ALWAYS_WATCHED:
            return False
        # A nested root and another worktree are roots of their own: their files are not this engine's work.
        if os.path.lexists(self._root / path / CONFIG_NAME) or is_worktree(self._root / path):
            return True
        own = self._asked(path + "/")
        if own is not None:
            return own
        if name in IGNORED_FOLDERS or name.endswith(".egg-info") or passing.find_folder(name) is not None:
            return True
        return self._by_git(path, folder=True)

    def file(self, path: str) -> bool:
        """Return whether the file at `path` is ignored itself; its folder must not be ignored."""
        if path.partition("/")[0] in ALWAYS_WATCHED:
            return False
        own = self._asked(path)
        if own is not None:
            return own
        # A temporary file of an editor or a download is not a task. `.git` as a file belongs to git: in a submodule or a worktree.
        name = path.rpartition("/")[2]
        return name == ".git" or passing.find(name) is not None or self._by_git(path, folder=False)

    def _asked(self, path: str) -> bool | None:
        return None if self._own is None else _verdict(self._own, path)

    def _by_git(self, path: str, *, folder: bool) -> bool:
        """Whether a .gitignore ignores the path: the nearest one with a matching pattern decides, as in git."""
        _, rule = self._deciding(path, folder=folder)
        return rule is not None and rule.include

    def _deciding(self, path: str, *, folder: bool) -> tuple[str, GlobRule | None]:
        """The pattern that decides about a path, with the folder of its .gitignore; None where no pattern matches."""
        above: str | None = path.rpartition("/")[0]
        while above is not None:
            rules = self._file(above)
            if rules.globs is not None:
                rest = path[len(above) + 1 :] if above else path
                rule = rules.globs.naming(rest + "/" if folder else rest)
                if rule is not None:
                    return above, rule
            above = rules.above
        return "", None

    def is_old(self, folder: str) -> bool:
        """Return whether the patterns in use for a folder differ from its .gitignore on disk."""
        found = self._files.get(folder)
        if found is None:
            return False
        try:
            lines = lines_of(self._root, f"{folder}/{NAME}")
        except ValueError:
            return found.globs is not None
        return lines != (() if found.globs is None else found.globs.lines)

    def drop(self, folder: str) -> None:
        """Forget the patterns of a removed folder."""
        self._files.pop(folder, None)
        self._ruled.discard(folder)

    def has_rules(self, folder: str) -> bool:
        """Return whether patterns of a .gitignore in a folder, or below it, are in use."""
        return any(name == folder or name.startswith(folder + "/") for name in self._ruled)

    def _file(self, folder: str) -> _Rules:
        """The patterns of a folder's own .gitignore, after those of the folders above."""
        # From the top down, so that a heavy .gitignore deep in the tree never makes one above it exceed the limit.
        missing = []
        while folder not in self._files:
            missing.append(folder)
            if not folder:
                break
            folder = folder.rpartition("/")[0]
        found = self._files.get(folder, _Rules(None, 0))
        for name in reversed(missing):
            above = folder if found.globs is not None else found.above
            found = self._files[name] = self._read(name, found)._replace(above=above)
            if found.globs is not None:
                self._ruled.add(name)
            folder = name
        return found

    def _read(self, folder: str, above: _Rules) -> _Rules:
        path = f"{folder}/{NAME}" if folder else NAME
        try:
            lines = lines_of(self._root, path)
            heavy = above.weight + sum(map(weight, lines))
            if heavy > MAX_WEIGHT:
                raise ValueError(
                    "its patterns, with those of the folders above, take too long to compare with a path; simplify or remove some"
                )
        except ValueError as exc:
            # Every forgetting reads the same file again; one notice is enough.
            if self._told.get(path) != str(exc):
                self._told[path] = str(exc)
                self._refused(path, str(exc))
            return above._replace(globs=None)
        self._told.pop(path, None)
        return _Rules(Globs(lines, gitignore=True) if lines else None, heavy)


def weight(line: str) -> int:
    """Return the highest cost of comparing a pattern with a path, in comparisons of a text; an ordinary pattern costs one or two."""
    found = 0
    parts = [part for part in line.split("/") if part]
    for part in parts:
        if is_plain(part):
            found += 1
        elif part.count("*") <= 1:
            found += 2 + len(part) // _CHARACTERS
        else:
            # The text between two `*` is searched for at every position of the name.
            found += 2 + len(part) * _LONGEST // _CHARACTERS
    # `**` between other parts matches any number of folders, so the rest is tried at each depth.
    return found * _DEEPEST if "**" in parts[1:-1] else found


def git_folder(folder: Path) -> Path | None:
    """Return git's own folder of the working tree that begins at `folder`; None where none begins there. Agents may have written it: do not trust it."""
    inner = folder / ".git"
    try:
        if stat.S_ISDIR(os.lstat(inner).st_mode):
            return inner
        data = held.read(inner, MAX_GIT_FILE_BYTES)
    except OSError:
        return None
    word, _, path = data.partition(b": ")
    path = path.rstrip(b"\r\n")
    if word != b"gitdir" or not path or b"\0" in path:
        return None
    return Path(os.path.normpath(folder / os.fsdecode(path)))


def is_worktree(folder: Path) -> bool:
    """Return whether `folder` is a linked worktree, that is, another branch of some repository."""
    if not os.path.lexists(folder / ".git"):
        return False
    found = git_folder(folder)
    return found is not None and found.parent.name == "worktrees"


def _verdict(globs: Globs, path: str) -> bool | None:
    rule = globs.decisive(path)
    return None if rule is None else rule.include


def lines_of(root: Path, path: str) -> tuple[str, ...]:
    """Return the patterns of the `.gitignore` at `path`, which is relative to the root; none where there is no such file.

    Raises ValueError with the reason where aipass does not use it: it is not a plain file, or too large.
    """
    try:
        data = held.read(root / path, MAX_GITIGNORE_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except held.TooLargeError as exc:
        raise ValueError(f"larger than {MAX_GITIGNORE_BYTES // 1000} kB") from exc
    except OSError as exc:
        # Also for a symbolic link: git does not follow one as a .gitignore in the tree either.
        raise ValueError(f"it cannot be read ({exc.strerror})") from exc
    # As git reads it: a byte order mark is no part of the first pattern, and only LF ends a line, with or without a CR before it.
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    found = tuple(line for line in lines if line.strip() and not line.startswith("#"))
    if len(found) > MAX_LINES:
        raise ValueError(f"more than {MAX_LINES} patterns")
    return found
