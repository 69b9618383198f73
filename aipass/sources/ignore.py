"""Which parts of the tree nobody watches: built-in names, every .gitignore, `[watch] ignore`, nested roots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pathspec import PathSpec

from aipass.layout import CONFIG_NAME

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
MAX_GITIGNORE_BYTES = 1_000_000


class Ignore:
    """Decides for paths relative to `root`; `.gitignore` files are read once and again after `forget`."""

    def __init__(self, root: Path, patterns: tuple[str, ...] = ()) -> None:
        self._root = root
        self._own = PathSpec.from_lines("gitignore", patterns) if patterns else None
        self._specs: dict[str, PathSpec[Any] | None] = {}

    def forget(self) -> None:
        """Read every .gitignore anew when it is next needed."""
        self._specs.clear()

    def folder(self, path: str) -> bool:
        """Whether the folder at `path`, and so all below it, is ignored. Its parents are not."""
        name = path.rpartition("/")[2]
        if name in FORBIDDEN_FOLDERS:
            return True
        if path.partition("/")[0] in ALWAYS_WATCHED:
            return False
        if (Path(self._root, path) / CONFIG_NAME).exists():
            return True
        own = self._asked(path + "/")
        if own is not None:
            return own
        return name in IGNORED_FOLDERS or name.endswith(".egg-info") or self._by_git(path, folder=True)

    def file(self, path: str) -> bool:
        """Whether the file at `path`, in a folder that is not ignored, is ignored itself."""
        if path.partition("/")[0] in ALWAYS_WATCHED:
            return False
        own = self._asked(path)
        return self._by_git(path, folder=False) if own is None else own

    def _asked(self, path: str) -> bool | None:
        return None if self._own is None else self._own.check_file(path).include

    def _by_git(self, path: str, *, folder: bool) -> bool:
        """What the nearest .gitignore with an opinion says."""
        above, _, rest = path.rpartition("/")
        while True:
            spec = self._spec(above)
            if spec is not None:
                verdict = spec.check_file(rest + "/" if folder else rest).include
                if verdict is not None:
                    return verdict
            if not above:
                return False
            above, _, name = above.rpartition("/")
            rest = f"{name}/{rest}"

    def _spec(self, folder: str) -> PathSpec[Any] | None:
        if folder not in self._specs:
            self._specs[folder] = _read(self._root / folder / ".gitignore")
        return self._specs[folder]


def _read(path: Path) -> PathSpec[Any] | None:
    try:
        if not path.is_file() or path.stat().st_size > MAX_GITIGNORE_BYTES:
            return None
        lines = path.read_text("utf-8", "surrogateescape").splitlines()
        return PathSpec.from_lines("gitignore", lines)
    except (OSError, ValueError):
        # A .gitignore that cannot be read or parsed ignores nothing; git says so to its author.
        return None
