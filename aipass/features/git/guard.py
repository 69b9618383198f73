"""What two hooks ask that people may want: whether a commit holds an agent's unfinished work, and whose work it holds."""

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

#: So many of the last events of a path are looked at.
LOOKED_AT = 20


def staged(layout: Layout) -> list[str]:
    """The paths of the commit that is being made, relative to the root. In a hook's own environment, index and all."""
    words = ("diff", "--cached", "--name-only", "-z", "--no-renames", "--no-ext-diff", "--relative")
    done = _git(layout, *words, capture_output=True)
    return [os.fsdecode(entry) for entry in done.stdout.split(b"\0") if entry]


def unfinished(
    layout: Layout, reserved: Callable[[Ledger], tuple[list[dict[str, Any]], object]]
) -> dict[str, str]:
    """Paths of the commit that a running phase owns and its run wrote last, with that run in words. `reserved`: what phases own now."""
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
    """Who changed a path last, as far as it was seen: a run, `a person`, or nobody (it was never seen)."""
    for row in ledger.all("events_of_path", {"path": path, "limit": LOOKED_AT}):
        if row["kind"] in {"file.closed", "file.deleted"}:
            return "a person" if row["run"] is None else int(row["run"])
    return None


def add_trailers(layout: Layout, message: str) -> None:
    """Name in a commit's message the dispatches whose work it holds as they left it."""
    paths = staged(layout)
    if not paths or not layout.ledger.exists() or _is_given_up(layout, message):
        return
    ledger = Ledger.read(layout.ledger)
    try:
        found: dict[int, None] = {}
        for path in paths:
            row = ledger.one("work_at", {"path": os.fsencode(path)})
            if row is not None and row["seal"] == seal(layout.root / path):
                found[row["dispatch"]] = None
    finally:
        ledger.close()
    if found:
        trailers = [word for dispatch in sorted(found) for word in ("--trailer", f"Dispatch: {dispatch}")]
        how = ("--in-place", "--if-exists", "addIfDifferent")
        _git(layout, "interpret-trailers", *how, *trailers, message)


def _is_given_up(layout: Layout, message: str) -> bool:
    """Whether git will not commit with this message: it is empty, or the template as it was."""
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


#: Below this line git throws away what it has shown (`git commit -v`).
_SCISSORS = re.compile(rb"^\S+ -+ >8 -+$", re.MULTILINE)


def _git(layout: Layout, *words: str, **how: Any) -> subprocess.CompletedProcess[bytes]:  # noqa: ANN401 - as subprocess takes it
    """Git in the hook's own environment: the index of the commit that is being made is named there."""
    hook = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("GIT_") and name != "GIT_EXEC_PATH"
    }
    return programs.run(layout.root, ["git", "-c", "core.fsmonitor=false", *words], env=hook, **how)
