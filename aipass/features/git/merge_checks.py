"""The note that says which PRs a running merge check tests: a file in the check's folder, read by `status` and `pr merge`."""

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
#: Bytes that `reached` reads at each end of a check's output; the output of a check has no limit.
MAX_READ = 4_000_000


def begin(folder: Path, prs: Sequence[int]) -> None:
    """Make the folder of a check and write the note. Raises FileExistsError where the folder exists."""
    folder.mkdir(parents=True, mode=0o700)
    held.write_atomic(folder / NOTE, json.dumps({"prs": list(prs)}))


def end(folder: Path) -> None:
    """Remove the note: the checks have ended. Idempotent."""
    (folder / NOTE).unlink(missing_ok=True)


def now(layout: Layout) -> tuple[list[int], Path] | None:
    """The PRs that are being tested, and the file with the output of their checks; None where none are.

    Call it only while an engine runs: after a crash the note of the last check is still there.
    """
    try:
        # Merges are tested one at a time, so only the newest check can be running.
        newest = max(int(name) for name in os.listdir(layout.merges) if name.isdecimal())
        folder = layout.run(MERGES + newest)
        return json.loads((folder / NOTE).read_text())["prs"], folder / wire.STDOUT
    except (OSError, ValueError, KeyError, TypeError):
        return None


def in_words(layout: Layout) -> str | None:
    """The result of `now` as a line for people."""
    found = now(layout)
    if found is None:
        return None
    prs, output = found
    which = f"PR {', '.join(map(str, prs))}"
    return f"{which} {'is' if len(prs) == 1 else 'are'} being tested; {output.relative_to(layout.root)} shows the progress"


def reached(output: Path, commands: Sequence[str]) -> str:
    """The last of `commands` that began, as far as the check's output shows; the first one where it shows none."""
    with held.open_regular(output) as file:
        # A check controls its output: it may print terabytes, or make a sparse file of that size. So only the two
        # ends are read.
        said = file.read(MAX_READ)
        file.seek(max(file.tell(), os.fstat(file.fileno()).st_size - MAX_READ))
        lines = iter((said + b"\n" + file.read(MAX_READ)).decode("utf-8", "replace").split("\n"))
        # The check's script prints `$ command` before each command. `in` consumes the iterator, so each search goes on
        # after the last hit: an output that contains such a line by chance cannot move the result backwards.
        begun = [one for one in commands if f"$ {one}".split("\n", 1)[0] in lines]
    return begun[-1] if begun else commands[0]
