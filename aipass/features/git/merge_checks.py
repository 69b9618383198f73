"""Which PRs are being tested for a merge, for whoever waits: a note in the folder of the checks while they run."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from aipass.supervisor import held, wire
from aipass.workspace.layout import MERGES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aipass.workspace.layout import Layout

NOTE = "testing.json"
MAX_READ = 4_000_000


def begin(folder: Path, prs: Sequence[int]) -> None:
    """Note that the checks of these PRs run, and write what they say into `stdout.log` of this folder."""
    folder.mkdir(parents=True, mode=0o700)
    held.write_atomic(folder / NOTE, json.dumps({"prs": list(prs)}))


def end(folder: Path) -> None:
    """They run no more."""
    (folder / NOTE).unlink(missing_ok=True)


def now(layout: Layout) -> tuple[list[int], Path] | None:
    """PRs that are being tested, and where their checks write. Only true where an engine runs."""
    try:
        newest = max(int(name) for name in os.listdir(layout.merges) if name.isdecimal())
        folder = layout.run(MERGES + newest)
        return json.loads((folder / NOTE).read_text())["prs"], folder / wire.STDOUT
    except (OSError, ValueError, KeyError, TypeError):
        return None


def in_words(layout: Layout) -> str | None:
    """The same for a person."""
    found = now(layout)
    if found is None:
        return None
    prs, output = found
    which = f"PR {', '.join(map(str, prs))}"
    return f"{which} {'is' if len(prs) == 1 else 'are'} being tested; {output.relative_to(layout.root)} says how far"


def reached(output: Path, commands: Sequence[str]) -> str:
    """The last of these commands that was begun: the checks' script writes each out before it runs."""
    with held.open_regular(output) as file:
        # A check may print anything, a hole of terabytes included: of much the begin and the end are looked at.
        said = file.read(MAX_READ)
        file.seek(max(file.tell(), os.fstat(file.fileno()).st_size - MAX_READ))
        lines = iter((said + b"\n" + file.read(MAX_READ)).decode("utf-8", "replace").split("\n"))
        begun = [
            one for one in commands if f"$ {one}".split("\n", 1)[0] in lines
        ]  # each search goes on from the last
    return begun[-1] if begun else commands[0]
