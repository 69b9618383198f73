"""The complete prompt of a run: request, earlier conversation, brief about the agent, and the last refused writes."""

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

#: The default text about its role that a model gets; `brief` in aipass.toml names a file that replaces it. Names in
#: braces are filled in.
BRIEF = """\
You are {agent}{about}, one of several agents that work on this repository at the same time; aipass starts each of them.

- Your last message is your answer and goes to the sender of the work: say what you did, and what is left to do.
- You may write: {owns}. The rest belongs to others: a write there fails with "Permission denied", and the file
  $AIPASS_DENIED lists the refused path and its owner. Do not work around that.
- No agent can write git's own files. `aipass pr open -m "Add login"` opens a pull request with your changes, for review; the
  working tree stays as it is. `aipass git commit -m "…"` saves a step on a branch of your own. You may read git freely.
- `aipass send AGENT "…"` gives work to another agent ({others}); with `--wake` you are started again with its answer.
  `aipass message AGENT "…"` only sends it a message. `aipass owns PATH` shows the owner of a file.
- Messages to you come with your prompt; while you work they arrive as files in the folder $AIPASS_MAIL.
- `aipass recall "…"` searches what you and others have learned and done. `aipass note "…"` saves what you have learned, and `aipass note --todo "…"` what is left to do; both are
  stored in {home}/.trinity/local.json, which you may edit.
- No person watches while you work. If you cannot continue without an answer, ask (`aipass ask human "…"`, or an agent) and
  end: you are started again with the answer. A last paragraph that begins with QUESTION: does the same.
"""
#: The names in braces that a brief may use.
NAMES = ("agent", "about", "role", "purpose", "home", "owns", "others", "orchestrator", "driver", "model")
MAX_BRIEF_BYTES = 100_000
#: How much of the earlier request, and of its answer, a reply repeats for a CLI that does not remember the conversation.
REPEATED_CHARS = 4000


def whole(core: Core, hooks: Sequence[DispatchHook], driver: Driver | None, work: PromptWork) -> str:
    """The prompt as the CLI gets it, in this order: request, earlier conversation, brief, parts of features, refused writes.

    A continued conversation gets only what is new in it. Raises AipassError if the file of the agent's `brief` cannot be read.
    """
    ledger, layout, row = core.ledger, core.layout, work.dispatch
    senders = ledger.all("senders", {"dispatch": row["id"]})
    news = _since_the_last_run(ledger, row["id"], senders) if work.goes_on and work.attempt > 1 else []
    said = prompt.compose(prompt.part_of(one) for one in news or senders)
    parts = []
    if work.goes_on and work.attempt > 1 and not news:
        said = f"Your last attempt ended before it was done. Continue where you stopped. You were asked:\n\n{said}"
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
    """The senders that joined after the dispatch's last run had ended: mostly the answer to its question."""
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
    """The agent's role and purpose in parentheses, to follow its name; empty if it has neither."""
    parts = [part for part in (settings.role, settings.purpose) if part]
    return f" ({': '.join(parts)})" if parts else ""


def _owns(config: Config, row: Row, own: Sequence[str] | None) -> str:
    """The paths that the run may write, in words: those of its phase and those of its agent."""
    always = config.agents[row["agent"]].owns
    if own is None and always is None:
        return "every file that no other agent owns"
    patterns = [*(own or ()), *(always or ())]
    return ", ".join(f"`{pattern}`" for pattern in patterns) or "nothing: you read, and answer"


def _earlier(ledger: Ledger, layout: Layout, dispatch: int) -> str:
    """The earlier request and its answer, shortened, for a reply to a CLI that does not remember the conversation."""
    senders = ledger.all("senders", {"dispatch": dispatch})
    row = ledger.one("dispatch", {"id": dispatch})
    said = prompt.compose(prompt.part_of(one) for one in senders)[:REPEATED_CHARS]
    answer = _begin(layout.root / row["answer"]) if row is not None and row["answer"] else ""
    told = [f"This continues dispatch {dispatch}. You were asked:", said]
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
