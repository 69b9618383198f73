"""A run's whole prompt: what was asked, what it goes on with, who the agent is, and what it was refused before."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from aipass.dispatch import prompt
from aipass.errors import AipassError
from aipass.plan import model
from aipass.plan.preamble import preamble
from aipass.supervisor.fence.fenced import DENIED
from aipass.supervisor.wire import open_regular
from aipass.template import fill

if TYPE_CHECKING:
    from pathlib import Path

    from aipass.config import Config
    from aipass.dispatch.driver import Driver
    from aipass.layout import Layout
    from aipass.ledger import Ledger, Row

#: What a model is told about itself; `brief` in aipass.toml names a file that takes its place. Every name stands for text.
BRIEF = """\
You are {agent}, one of several agents that work on this repository at the same time; aipass starts each of them.

- Your last message is your answer and goes to whoever asked: say what you did, and what is left.
- You may write: {owns}. The rest belongs to others: a write there fails with "Permission denied", and the file that
  $AIPASS_DENIED names says whose it is. Do not work around that.
- Git's own files are nobody's to write. `aipass pr open -m "Add login"` hands in what you have changed, for review; the
  working tree stays as it is. `aipass git commit -m "…"` keeps a step on a branch of your own. Reading git is free.
- `aipass send AGENT "…"` gives work to another agent ({others}); `aipass owns PATH` says whose a file is.
- Nobody reads along while you work. If you cannot go on without an answer, end with a paragraph that begins with
  QUESTION: and you will be started again with the answer.
"""
#: What a brief may name.
NAMES = ("agent", "home", "owns", "others", "orchestrator", "driver", "model")
MAX_BRIEF_BYTES = 100_000
#: So much of what it replies to is repeated where the conversation is not known to the CLI.
REPEATED_CHARS = 4000


class Work(NamedTuple):
    """What a prompt is made for: a dispatch, a run (None: none yet), which attempt that is, and whether it goes on with a
    conversation.
    """

    dispatch: Row
    run: int | None
    attempt: int
    goes_on: bool


def whole(ledger: Ledger, layout: Layout, config: Config, driver: Driver | None, work: Work) -> str:
    """The prompt as the CLI gets it.

    Raises AipassError where the agent's `brief` names a file that cannot be read.
    """
    row = work.dispatch
    said = prompt.compose(prompt.part_of(one) for one in ledger.all("senders", {"dispatch": row["id"]}))
    parts = []
    if work.goes_on and work.attempt > 1:
        said = f"Your last attempt ended before it was done. Go on where you were. What was asked:\n\n{said}"
    parts.append(said)
    if row["reply_to"] is not None and not work.goes_on:
        parts.append(_earlier(ledger, layout, row["reply_to"]))
    if not work.goes_on:
        parts.append(_brief(ledger, layout, config, driver, row))
    if row["plan"] is not None:
        parts.append(
            preamble(ledger, layout.root, row["plan"], row["phase"], config.agents[row["agent"]].owns)
        )
    whole = prompt.joined(parts)
    before = None if work.run is None else ledger.one("run_before", {"agent": row["agent"], "id": work.run})
    if before is None:
        return whole
    return prompt.with_refusals(whole, before["id"], _read(layout.run(before["id"]) / DENIED))


def _brief(ledger: Ledger, layout: Layout, config: Config, driver: Driver | None, row: Row) -> str:
    settings = config.agents[row["agent"]]
    if settings.brief is None:
        text = BRIEF if getattr(driver, "briefed", False) else ""
    elif not settings.brief:
        return ""
    else:
        path = layout.root / settings.brief
        try:
            with open_regular(path) as file:
                text = file.read(MAX_BRIEF_BYTES).decode("utf-8", "replace")
        except OSError as exc:
            raise AipassError(
                f"agents.{row['agent']}.brief: {settings.brief} cannot be read ({exc.strerror})"
            ) from exc
    others = ", ".join(sorted(config.agents.keys() - {row["agent"]})) or "there is none"
    values = {
        "agent": row["agent"],
        "home": config.home(row["agent"]),
        "owns": _owns(ledger, config, row),
        "others": others,
        "orchestrator": config.orchestrator,
        "driver": settings.driver,
        "model": settings.model or "",
    }
    return fill(text, values)


def _owns(ledger: Ledger, config: Config, row: Row) -> str:
    patterns = list(config.agents[row["agent"]].owns or ())
    if row["plan"] is not None and (plan := ledger.one("plan", {"id": row["plan"]})) is not None:
        patterns = [*model.taken_over(plan["body"], plan["file"]).phase(row["phase"]).owns, *patterns]
    elif config.agents[row["agent"]].owns is None:
        return "whatever no other agent owns"
    return ", ".join(f"`{pattern}`" for pattern in patterns) or "nothing: you read, and answer"


def _earlier(ledger: Ledger, layout: Layout, dispatch: int) -> str:
    """What a reply goes on with, for a CLI that does not remember it."""
    senders = ledger.all("senders", {"dispatch": dispatch})
    row = ledger.one("dispatch", {"id": dispatch})
    said = prompt.compose(prompt.part_of(one) for one in senders)[:REPEATED_CHARS]
    answer = _read(layout.root / row["answer"])[:REPEATED_CHARS] if row is not None and row["answer"] else ""
    told = [f"This goes on with dispatch {dispatch}. You were asked:", said]
    return "\n\n".join([*told, *(("You answered:", answer) if answer else ())])


def _read(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
