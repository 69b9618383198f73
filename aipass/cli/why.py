"""The verb `aipass why`: the chain of causes of a dispatch, an event or a file, and the decisions of handlers about it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from aipass.cli.events import told
from aipass.cli.waiting import WaitReasons
from aipass.errors import AipassError
from aipass.event import plain
from aipass.terminal.find import snapshot
from aipass.terminal.output import clock, json_option, print_json
from aipass.workspace.layout import find_root

if TYPE_CHECKING:
    from aipass.event import Event
    from aipass.ledger import Ledger, Row
    from aipass.workspace.layout import Layout

#: Longest chain of causes that is shown; of a longer one the first causes are left out.
MAX_CHAIN = 50
#: Refused writes that are shown for a path; `aipass events --kind write.denied` lists all.
REFUSALS_SHOWN = 3


@click.command("why")
@click.argument("subject", metavar="ID|PATH|RULE|AGENT")
@json_option
def command(subject: str, as_json: bool) -> None:
    """Explain a dispatch ID, an event eN, the last change of PATH, or the last action of RULE or AGENT.

    Shows the chain of causes, then each handler and rule with its decision about the last event and the reason.
    """
    layout = find_root()
    ledger = snapshot(layout)
    found = explain(layout, ledger, subject)
    if as_json:
        print_json(found)
        return
    if pause := found.get("paused"):
        click.secho(
            f"{pause['kind']} {subject} is paused: {plain(pause['reason'])}; `aipass resume {subject}` ends the pause",
            fg="yellow",
        )
    for depth, link in enumerate(found["chain"]):
        click.echo(
            f"{'  ' * depth}{'└ ' if depth else ''}{click.style(link['type'], bold=True)} {link['id']}: {plain(link['text'])}"
        )
    for refusal in found.get("refused", ()):
        times = f", {refusal['count']} times" if (refusal["count"] or 1) > 1 else ""
        click.echo(
            f"write refused to run {refusal['run']} of {refusal['agent']}{times}: {plain(str(refusal['reason']))} (e{refusal['event']})"
        )
    if found["decisions"]:
        click.echo("\nhandlers that saw this event, and their decisions")
        for decision in found["decisions"]:
            click.echo(
                f"  {plain(decision['handler'])}: {decision['outcome']}"
                + (f" ({plain(decision['reason'])})" if decision["reason"] else "")
            )


def explain(layout: Layout, ledger: Ledger, subject: str) -> dict[str, Any]:
    """Return the document of `--json`: the chain, first cause first, and the decisions about its last event.

    The subject is tried in this order: dispatch, event, name of a rule or agent, path. Raises AipassError if it is none of them.
    """
    from aipass.features.dispatch.views import resolve

    # A request id (`r-…`) resolves to the dispatch that it made.
    number = resolve(ledger, subject)
    if number is not None:
        row = ledger.one("dispatch", {"id": number})
        assert row is not None
        return _explain_dispatch(layout, ledger, subject, row)
    if subject.startswith("e") and subject[1:].isdecimal() and len(subject) < 19:
        event = _event(ledger, int(subject[1:]))
        if event is not None:
            return _explain_event(layout, ledger, subject, event)
    # A number or a request id is never a path here: the error names the verbs that list ids instead.
    elif not subject.isdecimal() and not subject.startswith("r-"):
        if "/" not in subject and subject in _names(layout):
            # Names come before files: an agent may have made a file with the name of a rule. `./NAME` is the file.
            try:
                if (named := _explain_name(layout, ledger, subject)) is not None:
                    return named
            except AipassError:
                if not os.path.lexists(layout.root / subject):
                    raise
        return _explain_path(layout, ledger, subject)
    event_of = f" (write an event as `e{subject}`)" if subject.isdecimal() else ""
    raise AipassError(
        f"there is no dispatch and no event `{subject}`{event_of}; `aipass dispatches` and `aipass events` list them"
    )


def _explain_dispatch(layout: Layout, ledger: Ledger, subject: str, row: Row) -> dict[str, Any]:
    chain = _causes(ledger, row["cause"])
    text = (
        f"{row['agent']}, {row['state']}"
        + (f": {row['reason']}" if row["reason"] else "")
        + f", requested by {row['handler']}"
    )
    chain.append({"type": "dispatch", "id": row["id"], "text": text})
    for run in ledger.all("runs_of", {"dispatch": row["id"]}):
        chain.append(
            {
                "type": "run",
                "id": run["id"],
                "text": f"{run['outcome'] or run['state']}, process {run['pid'] or '-'}, {clock(run['started'])}",
            }
        )
    decisions = _decisions(layout, ledger, _event(ledger, row["cause"]))
    reason = WaitReasons(layout, ledger).of(row)
    if reason is not None:
        decisions.append({"handler": "dispatcher", "outcome": "waits", "reason": reason})
    return {"subject": subject, "chain": chain, "decisions": decisions}


def _explain_event(layout: Layout, ledger: Ledger, subject: str, event: Event) -> dict[str, Any]:
    chain = _causes(ledger, event.id)
    chain += _started_by(ledger, event.id) + _after_its_timer(ledger, event)
    return {"subject": subject, "chain": chain, "decisions": _decisions(layout, ledger, event)}


def _started_by(ledger: Ledger, event: int) -> list[dict[str, Any]]:
    return [
        {"type": "dispatch", "id": row["id"], "text": f"{row['agent']}, {row['state']}"}
        for row in ledger.all("dispatches_of_event", {"event": event})
    ]


def _after_its_timer(ledger: Ledger, event: Event) -> list[dict[str, Any]]:
    """For an event that set the timer of a rule (`debounce`): its tick, and the dispatches that the tick started."""
    waiting = {row["key"] for row in ledger.all("timers")}
    found = []
    for handler in dict.fromkeys(
        row["handler"] for row in ledger.all("actions_of_event", {"event": event.id}) if row["type"] == "Wake"
    ):
        tick = ledger.one("tick_after", {"event": event.id, "handler": handler})
        if tick is not None:
            text = f"clock.tick {handler}, {clock(tick['time'])}"
            found.append({"type": "event", "id": tick["id"], "text": text})
            found += _started_by(ledger, tick["id"])
        elif handler in waiting:
            found.append({"type": "timer", "id": handler, "text": "not yet due"})
    return found


def _names(layout: Layout) -> set[str]:
    """Names of configured rules and agents; none if aipass.toml cannot be read."""
    from aipass.config.quick import raw
    from aipass.errors import ConfigError

    try:
        settings = raw(layout)
    except ConfigError:
        return set()
    # `raw` does not validate: every level may have another type than the model says.
    rules = settings.get("on", [])
    named = (
        {str(one.get("name")) for one in rules if isinstance(one, dict)} if isinstance(rules, list) else set()
    )
    agents = settings.get("agents", {})
    return named | set(agents if isinstance(agents, dict) else ())


def _explain_name(layout: Layout, ledger: Ledger, subject: str) -> dict[str, Any] | None:
    """The last action of the rule or agent of this name; None if there is no such rule or agent."""
    from aipass.config.quick import raw

    found = _last_of_name(layout, ledger, subject, raw(layout))
    pause = next(
        (row for row in ledger.all("pauses") if row["name"] == subject and row["kind"] in ("rule", "agent")),
        None,
    )
    if found is not None and pause is not None:
        found["paused"] = {"kind": pause["kind"], "reason": pause["reason"]}
    return found


def _last_of_name(
    layout: Layout, ledger: Ledger, subject: str, settings: dict[str, Any]
) -> dict[str, Any] | None:
    rules = settings.get("on", [])
    rule = next((one for one in rules if isinstance(one, dict) and one.get("name") == subject), None)
    last = ledger.one("last_said", {"handler": f"rule {subject}"})
    event = None if last is None else _event(ledger, last["event"])
    if event is not None:
        return _explain_event(layout, ledger, subject, event)
    if rule is not None:
        waits_for = rule.get("event") or f"the time `{rule.get('cron')}`"
        raise AipassError(
            f"rule `{subject}` has not matched an event yet: it waits for {waits_for}"
            + (f" at {', '.join(map(str, rule['paths']))}" if rule.get("paths") else "")
        )
    row = ledger.one("last_dispatch_of", {"agent": subject})
    if row is not None:
        return _explain_dispatch(layout, ledger, subject, row)
    if subject in settings.get("agents", {}):
        raise AipassError(f"agent `{subject}` has no dispatches yet")
    return None


def _explain_path(layout: Layout, ledger: Ledger, subject: str) -> dict[str, Any]:
    """The last close, deletion or move of a path; else the last event with a decision; else the last event."""
    from pathlib import Path

    from aipass.ledger.sqlite import event_of

    path = Path(os.path.normpath(subject))
    absolute = layout.root / path
    if not path.is_absolute() and not absolute.exists():
        try:
            absolute = Path(os.path.normpath(Path.cwd() / path))
        except FileNotFoundError:
            pass  # the current folder was removed; the path is then relative to the root only
    relative = str(absolute.relative_to(layout.root)) if absolute.is_relative_to(layout.root) else subject
    # aipass writes answers itself, so their dispatch explains them better than the event of the file.
    answered = ledger.one("dispatch_of_answer", {"path": relative})
    if answered is not None:
        row = ledger.one("dispatch", {"id": answered["id"]})
        assert row is not None
        return _explain_dispatch(layout, ledger, subject, row)
    events = [event_of(row) for row in ledger.all("events_of_path", {"path": relative, "limit": 20})]
    if not events:
        named = _explain_name(layout, ledger, subject)
        if named is not None:
            return named
        raise AipassError(f"no events for `{subject}`: {_unknown_path(layout, relative)}")
    telling = next((event for event in events if ledger.all("actions_of_event", {"event": event.id})), None)
    # Rules act on these kinds, so they answer the question; `file.created` and `file.changed` are only steps to them.
    ends = {"file.closed", "file.deleted", "file.moved"}
    closed = next((event for event in events if event.kind in ends), None)
    found = _explain_event(layout, ledger, subject, closed or telling or events[0])
    found["refused"] = [_refusal(event) for event in events if event.kind == "write.denied"][:REFUSALS_SHOWN]
    return found


def _refusal(event: Event) -> dict[str, Any]:
    """The fields of `refused` in the document, from a `write.denied` event."""
    about = {"event": event.id, "run": event.by, "agent": event.detail.get("agent")}
    return {**about, "reason": event.detail.get("reason"), "count": event.detail.get("count")}


def _unknown_path(layout: Layout, relative: str) -> str:
    from aipass.config import reading
    from aipass.sources.ignore import IgnoreRules

    ignore = IgnoreRules(layout.root, reading.load(layout.config).watch.ignore)
    parts = relative.split("/")
    for depth in range(1, len(parts)):
        if ignore.folder("/".join(parts[:depth])):
            return f"the engine ignores {'/'.join(parts[:depth])}/ and does not watch it"
    if ignore.file(relative):
        return "the engine ignores it and does not watch it"
    if not (layout.root / relative).exists():
        return "the file does not exist, and no rule or agent has that name"
    return "it has not changed since the engine began to watch"


def _causes(ledger: Ledger, number: int | None) -> list[dict[str, Any]]:
    """The events that led to an event, with the runs between them: first cause first, the event itself last."""
    chain: list[dict[str, Any]] = []
    # An id that comes back means a damaged ledger; without this the loop would fill the chain with repetitions.
    seen: set[int] = set()
    while number is not None and number not in seen and len(chain) < MAX_CHAIN:
        seen.add(number)
        event = _event(ledger, number)
        if event is None:
            chain.append({"type": "event", "id": number, "text": "pruned"})
            break
        chain.append(
            {
                "type": "event",
                "id": event.id,
                "text": f"{event.kind} {told(event)}, {clock(event.time)}".replace("  ", " "),
            }
        )
        number = event.cause
        # A request and a refused write have their run as origin: the recorded cause alone would leave the run out.
        if event.by is not None and (number is None or event.kind in {"request.received", "write.denied"}):
            run = ledger.one("run", {"id": event.by})
            if run is not None:
                chain.append(
                    {
                        "type": "run",
                        "id": run["id"],
                        "text": f"of {run['agent']}, for dispatch {run['dispatch']}",
                    }
                )
                dispatch = ledger.one("dispatch", {"id": run["dispatch"]})
                number = dispatch["cause"] if dispatch is not None else None
    return chain[::-1]


def _decisions(layout: Layout, ledger: Ledger, event: Event | None) -> list[dict[str, Any]]:
    """The decision of every handler about an event."""
    if event is None:
        return []
    # The ledger has a row only for a handler that acted or gave a reason. "No match" is computed again, so that an event
    # does not cost a row for each handler.
    said = []
    for row in ledger.all("actions_of_event", {"event": event.id}):
        # Rows have the type of an action; the three types that are no action get the word of their outcome.
        outcome = {"IgnoreRules": "ignored", "Failed": "failed", "Skipped": "skipped"}.get(
            row["type"], row["type"].lower()
        )
        said.append({"handler": row["handler"], "outcome": outcome, "reason": row["outcome"]})
    spoke = {decision["handler"] for decision in said}
    for name, reason in _unmatched(layout, event):
        if name not in spoke:
            said.append({"handler": name, "outcome": "no match", "reason": reason.removeprefix("no match: ")})
    return said


def _unmatched(layout: Layout, event: Event) -> list[tuple[str, str]]:
    """The handlers that do not match the event, with their reason, by the configuration as it is now."""
    from aipass.config import reading
    from aipass.plugins import Plugins

    # Handlers are pure, so asking them a second time changes nothing.
    plugins = Plugins()
    plugins.load_installed(layout.root)
    try:
        return plugins.router(reading.load(layout.config)).explain(event)
    except AipassError:
        return []


def _event(ledger: Ledger, number: int | None) -> Event | None:
    from aipass.ledger.sqlite import event_of

    row = None if number is None else ledger.one("event", {"id": number})
    return None if row is None else event_of(row)
