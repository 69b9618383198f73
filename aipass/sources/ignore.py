"""Which parts of the tree nobody watches: built-in names, every .gitignore, `[watch] ignore`, nested roots, other worktrees."""

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
#: Folders that tools fill and nobody reviews. `[watch] ignore = ["!build/"]` takes one back.
IGNORED_FOLDERS = frozenset(_NAMES.split())
#: Never watched, whatever a configuration says: it would see itself write.
FORBIDDEN_FOLDERS = frozenset((".git", ".aipass", ".trinity"))
#: Watched even where git ignores them: they are how people talk to the engine.
ALWAYS_WATCHED = frozenset(("inbox", "outbox", "plans", CONFIG_NAME))
#: Agents write .gitignore files, and every file that appears is held against them: so much of one is read, and of it
#: and those of the folders above so many lines. The largest of the collection github.com/github/gitignore has 900 lines and 30 kB.
MAX_GITIGNORE_BYTES = 200_000
MAX_LINES = 2_000
#: What the patterns of one and of those above it may take, in comparisons of a text (about a microsecond): see `weight`.
MAX_WEIGHT = 10_000
#: A name has at most 255 characters, and a path of those that are watched so many parts.
_LONGEST, _DEEPEST = 255, 256
#: So many characters are compared one by one in the time of a comparison of texts.
_CHARACTERS = 100
NAME = ".gitignore"
#: Who hides a file that lies deeper is nobody's business.
_NAMED_DEEP = 50
#: A `.git` file is one line with one path.
MAX_GIT_FILE_BYTES = 5000


class _Rules(NamedTuple):
    """One folder's own patterns, and what they weigh with those of the folders above.

    `above`: the next folder above that has patterns; None where none has.
    """

    globs: Globs | None
    weight: int
    above: str | None = None


class IgnoreRules:
    """Decides for paths relative to `root`; `.gitignore` files are read once and again after `forget`.

    `refused(path, reason)` is told of each that is not used, once as long as it stays so.
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
        #: Those folders that have patterns.
        self._ruled: set[str] = set()
        self._told: dict[str, str] = {}

    def forget(self) -> IgnoreRules:
        """Read every .gitignore anew when it is next needed; returns one that has the rules of until now."""
        before = copy.copy(self)
        self._files, self._ruled = {}, set()
        return before

    def hider(self, path: str) -> str | None:
        """The .gitignore whose pattern ignores the file at `path`, or a folder that it lies in; None where none does, or it lies too deep."""
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
        """Whether the folder at `path`, and so all below it, is ignored. Its parents are not."""
        name = path.rpartition("/")[2]
        if name in FORBIDDEN_FOLDERS:
            return True
        if path.partition("/")[0] in ALWAYS_WATCHED:
            return False
        if os.path.lexists(self._root / path / CONFIG_NAME) or is_worktree(self._root / path):
            return True
        own = self._asked(path + "/")
        if own is not None:
            return own
        if name in IGNORED_FOLDERS or name.endswith(".egg-info") or passing.find_folder(name) is not None:
            return True
        return self._by_git(path, folder=True)

    def file(self, path: str) -> bool:
        """Whether the file at `path`, in a folder that is not ignored, is ignored itself."""
        if path.partition("/")[0] in ALWAYS_WATCHED:
            return False
        own = self._asked(path)
        if own is not None:
            return own
        # What an editor or a download makes for a moment is nobody's task; `.git` as a file is git's own.
        name = path.rpartition("/")[2]
        return name == ".git" or passing.find(name) is not None or self._by_git(path, folder=False)

    def _asked(self, path: str) -> bool | None:
        return None if self._own is None else _verdict(self._own, path)

    def _by_git(self, path: str, *, folder: bool) -> bool:
        """What the nearest .gitignore with an opinion says."""
        _, rule = self._deciding(path, folder=folder)
        return rule is not None and rule.include

    def _deciding(self, path: str, *, folder: bool) -> tuple[str, GlobRule | None]:
        """The pattern of a .gitignore that decides about a path, and the folder that it is of."""
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
        """Whether another .gitignore is in use for a folder than lies there now."""
        found = self._files.get(folder)
        if found is None:
            return False
        try:
            lines = lines_of(self._root, f"{folder}/{NAME}")
        except ValueError:
            return found.globs is not None
        return lines != (() if found.globs is None else found.globs.lines)

    def drop(self, folder: str) -> None:
        """A folder is gone, with nothing in it."""
        self._files.pop(folder, None)
        self._ruled.discard(folder)

    def has_rules(self, folder: str) -> bool:
        """Whether patterns of a .gitignore in a folder, or below it, are in use."""
        return any(name == folder or name.startswith(folder + "/") for name in self._ruled)

    def _file(self, folder: str) -> _Rules:
        """The patterns of a folder's own .gitignore. Those of the folders above are counted before: who writes deeper takes nothing from them."""
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
                    "its patterns, with those of the folders above, take too long to compare with a path"
                )
        except ValueError as exc:
            if self._told.get(path) != str(exc):
                self._told[path] = str(exc)
                self._refused(path, str(exc))
            return above._replace(globs=None)
        self._told.pop(path, None)
        return _Rules(Globs(lines, gitignore=True) if lines else None, heavy)


def weight(line: str) -> int:
    """What a pattern takes at most to be compared with a path, in comparisons of a text; an ordinary one weighs one or two."""
    found = 0
    parts = [part for part in line.split("/") if part]
    for part in parts:
        if is_plain(part):
            found += 1
        elif part.count("*") <= 1:
            found += 2 + len(part) // _CHARACTERS
        else:
            found += 2 + len(part) * _LONGEST // _CHARACTERS
    # Between others `**` stands for any number of folders, and what comes before it may lie anywhere.
    return found * _DEEPEST if "**" in parts[1:-1] else found


def git_folder(folder: Path) -> Path | None:
    """Git's own folder for a tree of its own that begins at `folder`; None where none begins there. Nothing of it is trusted."""
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
    """Whether another worktree begins at `folder`: another branch of some repository, which others work on."""
    if not os.path.lexists(folder / ".git"):
        return False
    found = git_folder(folder)
    return found is not None and found.parent.name == "worktrees"


def _verdict(globs: Globs, path: str) -> bool | None:
    rule = globs.decisive(path)
    return None if rule is None else rule.include


def lines_of(root: Path, path: str) -> tuple[str, ...]:
    """The patterns of a `.gitignore`, its path relative to the root; none where there is none.

    Raises ValueError with the reason where it is not used: no plain file, or too large.
    """
    try:
        data = held.read(root / path, MAX_GITIGNORE_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except held.TooLargeError as exc:
        raise ValueError(f"larger than {MAX_GITIGNORE_BYTES // 1000} kB") from exc
    except OSError as exc:
        # A link as well: git does not follow one there either.
        raise ValueError(f"it cannot be read ({exc.strerror})") from exc
    # As git reads it: a mark at the beginning is none of it, and a line ends at its newline alone, with or without a CR before.
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    found = tuple(line for line in lines if line.strip() and not line.startswith("#"))
    if len(found) > MAX_LINES:
        raise ValueError(f"more than {MAX_LINES} patterns")
    return found
