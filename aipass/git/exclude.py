"""The block of lines in `.git/info/exclude` that keeps aipass's own folders out of commits."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from aipass.git.query import ask
from aipass.workspace.layout import CONFIG_NAME

if TYPE_CHECKING:
    from aipass.workspace.layout import Layout

EXCLUDED = ("inbox/", "outbox/", ".aipass/", ".trinity/")
_BEGIN, _END = "# aipass: begin", "# aipass: end"


def exclude(layout: Layout) -> Path | None:
    """Write the block for this root and return the file; None where there is no repository. Idempotent; replaces the file atomically.

    Lines that people wrote stay. The block has lines for every root of this repository that still exists.
    """
    words = ("rev-parse", "--path-format=absolute", "--show-toplevel", "--git-path", "info/exclude")
    found = ask(layout.root, *words)
    lines = found[0].removesuffix("\n").split("\n") if found else []
    if len(lines) != 2:
        # No repository, or a path with a newline, which this output cannot tell from two paths.
        return None
    top, path = map(Path, lines)
    before = path.read_text("utf-8", "surrogateescape").splitlines() if path.exists() else []
    kept, block = _apart(before)
    ours = _excluded(layout.root, top.resolve())
    # All worktrees share this file, so other roots have their lines here too.
    others = [line for line in block if line not in ours and _is_root_still(line, top)]
    after = [*kept, _BEGIN, *dict.fromkeys((*others, *ours)), _END]
    if after != before:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, after)
    return path


def _excluded(root: Path, top: Path) -> list[str]:
    prefix = root.relative_to(top).as_posix()
    start = "/" if prefix == "." else f"/{_escaped(prefix)}/"
    # `.trinity/` without a folder: every agent has one in its home, anywhere in the tree.
    return [f"{start}{name}" if name != ".trinity/" else name for name in EXCLUDED]


def _escaped(path: str) -> str:
    return re.sub(r"([*?\[\\])", r"\\\1", path)


def _is_root_still(line: str, top: Path) -> bool:
    """Whether a line of our block belongs to a root that still has its aipass.toml."""
    folder = re.sub(r"\\(.)", r"\1", line.strip("/").rpartition("/")[0])
    return line.startswith("/") and (top / folder / CONFIG_NAME).is_file()


def _apart(lines: list[str]) -> tuple[list[str], list[str]]:
    """The lines that people wrote, and the lines of our block."""
    kept: list[str] = []
    block: list[str] = []
    inside = False
    for line in lines:
        if line == _BEGIN:
            inside = True
        elif line == _END and inside:
            inside = False
        else:
            (block if inside else kept).append(line)
    return kept, block


def _replace(path: Path, lines: list[str]) -> None:
    # Atomic: git may read the file at the same moment.
    half = path.with_name(f".{path.name}.{os.getpid()}")
    half.write_text("".join(f"{line}\n" for line in lines), "utf-8", "surrogateescape")
    half.replace(path)
