"""A run's whole prompt: what was asked, what it goes on with, who the agent is, and what it was refused before."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from aipass.dispatch import prompt
from aipass.errors import AipassError
from aipass.event import one_line
from aipass.plan import model
from aipass.plan.preamble import preamble
from aipass.supervisor import held
from aipass.supervisor.fence.fenced import DENIED
from aipass.talk.letter import MOST_WAITING
from aipass.template import fill
from aipass.trinity import preface
from aipass.trinity.recall import SOURCES, recall

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aipass.config import Agent, Config
    from aipass.dispatch.driver import Driver
    from aipass.layout import Layout
    from aipass.ledger import Ledger, Row

#: What a model is told about itself; `brief` in aipass.toml names a file that takes its place. Every name stands for text.
BRIEF = """\
You are {agent}{about}, one of several agents that work on this repository at the same time; aipass starts each of them.

- Your last message is your answer and goes to whoever asked: say what you did, and what is left.
- You may write: {owns}. The rest belongs to others: a write there fails with "Permission denied", and the file that
  $AIPASS_DENIED names says whose it is. Do not work around that.
- Git's own files are nobody's to write. `aipass pr open -m "Add login"` hands in what you have changed, for review; the
  working tree stays as it is. `aipass git commit -m "…"` keeps a step on a branch of your own. Reading git is free.
- `aipass send AGENT "…"` gives work to another agent ({others}), with `--wake` you are started again with its answer;
  `aipass message AGENT "…"` only tells it something. `aipass owns PATH` says whose a file is.
- What others tell you comes with your prompt, and while you work as files into the folder $AIPASS_MAIL.
- `aipass recall "…"` finds what you and others have learned and done; `aipass note "…"` keeps what you have learned, `aipass note --todo "…"` what is left to do; both stand
  in {home}/.trinity/local.json, which is yours to edit.
- Nobody reads along while you work. If you cannot go on without an answer, ask (`aipass ask human "…"`, or an agent) and
  end: you are started again with the answer. A last paragraph that begins with QUESTION: does the same.
"""
#: What a brief may name.
NAMES = ("agent", "about", "role", "purpose", "home", "owns", "others", "orchestrator", "driver", "model")
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
    senders = ledger.all("senders", {"dispatch": row["id"]})
    news = _since_the_last_run(ledger, row["id"], senders) if work.goes_on and work.attempt > 1 else []
    said = prompt.compose(prompt.part_of(one) for one in news or senders)
    parts = []
    if work.goes_on and work.attempt > 1 and not news:
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
    parts.append(_preface(ledger, config, row, work.run, briefed=bool(getattr(driver, "briefed", False))))
    whole = prompt.joined(parts)
    before = None if work.run is None else ledger.one("run_before", {"agent": row["agent"], "id": work.run})
    if before is None:
        return whole
    return prompt.with_refusals(whole, before["id"], _end(layout.run(before["id"]) / DENIED))


def _since_the_last_run(ledger: Ledger, dispatch: int, senders: Sequence[Row]) -> list[Row]:
    """Who has said something since the last run ended that went this far: an answer, mostly."""
    ended = [run for run in ledger.all("runs_of", {"dispatch": dispatch}) if run["finished"] is not None]
    if not ended:
        return []
    times = {one["event"]: ledger.one("event", {"id": one["event"]}) for one in senders}
    return [
        one for one in senders if (event := times[one["event"]]) and event["time"] > ended[-1]["finished"]
    ]


def _preface(ledger: Ledger, config: Config, dispatch: Row, run: int | None, *, briefed: bool) -> str:
    """Messages and todos. Without a run, for a look ahead: the messages that the next run would get."""
    limit, agent = config.memory.in_prompt, dispatch["agent"]
    unread = ledger.all("unread", {"recipient": agent, "limit": MOST_WAITING})
    shown = preface.fitting(unread, limit) if run is None else ledger.all("shown_messages", {"run": run})
    known = {row["id"] for row in shown}
    unread = [row for row in unread if row["id"] not in known]
    number = ledger.one("count_unread", {"recipient": agent})
    left = (number["number"] if number else 0) - sum(1 for row in shown if row["read"] is None)
    # The question that this is the work of stands above.
    shown = [row for row in shown if row["work"] != dispatch["id"]]
    todos = [row for row in ledger.all("open_notes", {"agent": agent}) if row["source"] == "todo"]
    hits = _hits(ledger, dispatch, briefed=briefed) if limit else ()
    return preface.preface(shown, unread, left, todos, hits, limit)


#: What a program is told from memory is what somebody chose to keep; a model is told all.
KEPT = ("learning", "observation")
HITS = 5


def _hits(ledger: Ledger, dispatch: Row, *, briefed: bool) -> list[str]:
    """What memory holds on a task, quoted, best first."""
    asked = " ".join(row["text"][:500] for row in ledger.all("senders", {"dispatch": dispatch["id"]})[:3])
    sources = SOURCES if briefed else KEPT
    found = recall(
        ledger, asked, asker=dispatch["agent"], sources=sources, now=dispatch["created"], limit=HITS + 5
    )
    lines = []
    for hit in found:
        row = hit.row
        if row["dispatch"] == dispatch["id"]:
            continue  # it is what this goes on with
        of = f", dispatch {row['dispatch']}" if row["dispatch"] is not None else ""
        lines.append(f"- {row['source']} {row['id']} of {row['agent']}{of}:\n  > {_line(row['text'])}\n")
    return lines[:HITS]


def _line(text: str) -> str:
    return one_line(text)[:300]


def _brief(ledger: Ledger, layout: Layout, config: Config, driver: Driver | None, row: Row) -> str:
    settings = config.agents[row["agent"]]
    if settings.brief is None:
        text = BRIEF if getattr(driver, "briefed", False) else ""
    elif not settings.brief:
        return ""
    else:
        path = layout.root / settings.brief
        try:
            with held.open_regular(path) as file:
                text = file.read(MAX_BRIEF_BYTES).decode("utf-8", "replace")
        except OSError as exc:
            raise AipassError(
                f"agents.{row['agent']}.brief: {settings.brief} cannot be read ({exc.strerror})"
            ) from exc
    others = ", ".join(sorted(config.agents.keys() - {row["agent"]})) or "there is none"
    values = {
        "agent": row["agent"],
        "about": _about(settings),
        "role": settings.role or "",
        "purpose": settings.purpose or "",
        "home": config.home(row["agent"]),
        "owns": _owns(ledger, config, row),
        "others": others,
        "orchestrator": config.orchestrator,
        "driver": settings.driver,
        "model": settings.model or "",
    }
    return fill(text, values)


def _about(settings: Agent) -> str:
    """Behind its name: what it is, and for what."""
    parts = [part for part in (settings.role, settings.purpose) if part]
    return f" ({': '.join(parts)})" if parts else ""


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
    answer = _begin(layout.root / row["answer"]) if row is not None and row["answer"] else ""
    told = [f"This goes on with dispatch {dispatch}. You were asked:", said]
    return "\n\n".join([*told, *(("You answered:", answer) if answer else ())])


def _begin(path: Path) -> str:
    try:
        with held.open_regular(path) as file:
            return file.read(4 * REPEATED_CHARS).decode("utf-8", "replace")[:REPEATED_CHARS]
    except OSError:
        return ""


def _end(path: Path) -> str:
    try:
        return held.read_end(path, MAX_BRIEF_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
