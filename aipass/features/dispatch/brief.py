"""A run's whole prompt: what was asked, what it goes on with, who the agent is, and what it was refused before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass.errors import AipassError
from aipass.features.dispatch import prompt
from aipass.supervisor import held
from aipass.supervisor.fence.fenced import DENIED
from aipass.text.template import fill

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aipass.config.model import Agent, Config
    from aipass.core.prompt import PromptWork
    from aipass.core.registry import Core
    from aipass.features.dispatch.driver import Driver
    from aipass.features.dispatch.hook import DispatchHook
    from aipass.ledger import Ledger, Row
    from aipass.workspace.layout import Layout

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


def whole(core: Core, hooks: Sequence[DispatchHook], driver: Driver | None, work: PromptWork) -> str:
    """The prompt as the CLI gets it: what was asked, what it goes on with, the brief, the parts of features, and what was refused before.

    Raises AipassError where the agent's `brief` names a file that cannot be read.
    """
    ledger, layout, row = core.ledger, core.layout, work.dispatch
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
        own = next((found for hook in hooks if (found := hook.owns(row)) is not None), None)
        parts.append(_brief(layout, core.config(), driver, row, own))
    parts += [part(work) for _, part in core.prompt_parts]
    text = prompt.joined(parts)
    before = None if work.run is None else ledger.one("run_before", {"agent": row["agent"], "id": work.run})
    if before is None:
        return text
    return prompt.with_refusals(text, before["id"], _end(layout.run(before["id"]) / DENIED))


def _since_the_last_run(ledger: Ledger, dispatch: int, senders: Sequence[Row]) -> list[Row]:
    """Who has said something since the last run ended that went this far: an answer, mostly."""
    ended = [run for run in ledger.all("runs_of", {"dispatch": dispatch}) if run["finished"] is not None]
    if not ended:
        return []
    times = {one["event"]: ledger.one("event", {"id": one["event"]}) for one in senders}
    return [
        one for one in senders if (event := times[one["event"]]) and event["time"] > ended[-1]["finished"]
    ]


def _brief(layout: Layout, config: Config, driver: Driver | None, row: Row, own: Sequence[str] | None) -> str:
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
        "owns": _owns(config, row, own),
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


def _owns(config: Config, row: Row, own: Sequence[str] | None) -> str:
    """What it may write: what its work owns, and what its agent does."""
    always = config.agents[row["agent"]].owns
    if own is None and always is None:
        return "whatever no other agent owns"
    patterns = [*(own or ()), *(always or ())]
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
