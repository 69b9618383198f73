"""The two optional git hooks: one stops a commit of an agent's unfinished work, one adds `Dispatch:` trailers to its message.

Both run in the committing process, without the engine, and read the ledger only.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aipass import programs
from aipass.config.reading import load
from aipass.features.git.pr_open import seal
from aipass.features.ownership.attribution import holders
from aipass.features.ownership.layers import table
from aipass.ledger import Ledger
from aipass.supervisor.fence.territory import Kind, Territory

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from aipass.workspace.layout import Layout

#: Newest events per path that `_last` reads; a bound, because the person who commits waits for the hook.
LOOKED_AT = 20


def staged(layout: Layout) -> list[str]:
    """The paths of the commit that is being made, relative to the root. Call it inside a git hook only."""
    words = ("diff", "--cached", "--name-only", "-z", "--no-renames", "--no-ext-diff", "--relative")
    done = _git(layout, *words, capture_output=True)
    return [os.fsdecode(entry) for entry in done.stdout.split(b"\0") if entry]


def unfinished(
    layout: Layout, reserved: Callable[[Ledger], tuple[list[dict[str, Any]], object]]
) -> dict[str, str]:
    """Paths of the commit that a running phase owns and its run wrote last, each with a description of that run.

    `reserved` returns the paths that phases of running plans own. Without a ledger the result is empty: no engine ever ran here.
    """
    paths = staged(layout)
    if not paths or not layout.ledger.exists():
        return {}
    ledger = Ledger.read(layout.ledger)
    try:
        live = [(row["id"], row["agent"]) for row in ledger.all("live_runs")]
        written = holders(layout, live)
        if not written:
            return {}
        phases = reserved(ledger)[0]
        territory = Territory.of(table(layout, load(layout.config), phases))
        found = {}
        for path in paths:
            owner = territory.owner(path)
            run = written.get(path, (None, ""))[0]
            # A person who changed the file after the run may commit it: then the content is no longer the run's.
            if (
                owner.kind is Kind.PHASE
                and owner.run == run is not None
                and _last(ledger, path) in {run, None}
            ):
                found[path] = f"phase {owner.phase} of plan {owner.plan}, run {run} of {owner.agents[0]}"
        return found
    finally:
        ledger.close()


def _last(ledger: Ledger, path: str) -> int | str | None:
    """The last recorded author of a change of a path: a run's id, `a person`, or None where no change was recorded."""
    for row in ledger.all("events_of_path", {"path": path, "limit": LOOKED_AT}):
        # Other events of the path, such as decisions of handlers, change no content.
        if row["kind"] in {"file.closed", "file.deleted"}:
            return "a person" if row["run"] is None else int(row["run"])
    return None


def add_trailers(layout: Layout, message: str) -> None:
    """Add a `Dispatch:` trailer to a commit message file for each dispatch whose work the commit contains unchanged.

    Idempotent: `git commit --amend` adds no trailer twice.
    """
    paths = staged(layout)
    if not paths or not layout.ledger.exists() or _is_given_up(layout, message):
        return
    ledger = Ledger.read(layout.ledger)
    try:
        found: dict[int, None] = {}
        for path in paths:
            row = ledger.one("work_at", {"path": os.fsencode(path)})
            # Only where the fingerprint matches: a file that a person edited since is not the dispatch's work alone.
            if row is not None and row["seal"] == seal(layout.root / path):
                found[row["dispatch"]] = None
    finally:
        ledger.close()
    if found:
        trailers = [word for dispatch in sorted(found) for word in ("--trailer", f"Dispatch: {dispatch}")]
        how = ("--in-place", "--if-exists", "addIfDifferent")
        _git(layout, "interpret-trailers", *how, *trailers, message)


def _is_given_up(layout: Layout, message: str) -> bool:
    """Whether git will abort the commit, because the message is empty or the unchanged template."""
    # A trailer would make an empty message a valid one, and git would commit what the person wanted to abort.
    said = Path(message).read_bytes()
    said = said[: found.start()] if (found := _SCISSORS.search(said)) else said
    template = _git(
        layout, "config", "--path", "--get", "commit.template", capture_output=True
    ).stdout.strip()
    texts = [said]
    if template and os.path.isfile(template):
        texts.append(Path(os.fsdecode(template)).read_bytes())
    stripped = [
        _git(layout, "stripspace", "--strip-comments", input=text, capture_output=True).stdout
        for text in texts
    ]
    return not stripped[0] or stripped[0] in stripped[1:]


#: The line that `git commit -v` writes above the diff; git drops everything below it.
_SCISSORS = re.compile(rb"^\S+ -+ >8 -+$", re.MULTILINE)


def _git(layout: Layout, *words: str, **how: Any) -> subprocess.CompletedProcess[bytes]:  # noqa: ANN401 - as subprocess takes it
    """Run git with the hook's `GIT_*` variables: `GIT_INDEX_FILE` names the index of the commit that is being made."""
    # Not GIT_EXEC_PATH: it says where git finds its own programs, so a foreign value would run a foreign program.
    # Not core.fsmonitor either: it is a command, and a query must not start one.
    hook = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("GIT_") and name != "GIT_EXEC_PATH"
    }
    return programs.run(layout.root, ["git", "-c", "core.fsmonitor=false", *words], env=hook, **how)
