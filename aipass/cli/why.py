"""`aipass why`: the chain of causes behind a dispatch or a file, or what kept one from starting."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from aipass.cli.events import told
from aipass.cli.waiting import WaitReasons
from aipass.errors import AipassError
from aipass.event import plain
from aipass.terminal.find import open_ledger
from aipass.terminal.output import clock, json_option, print_json
from aipass.workspace.layout import find_root

if TYPE_CHECKING:
    from aipass.event import Event
    from aipass.ledger import Ledger, Row
    from aipass.workspace.layout import Layout

#: Longer chains end with a word that they go on.
MAX_CHAIN = 50
REFUSALS_SHOWN = 3


@click.command("why")
@click.argument("subject", metavar="ID|PATH|RULE|AGENT")
@json_option
def command(subject: str, as_json: bool) -> None:
    """Explain the dispatch ID, the event eN, what happened to PATH, or what RULE or AGENT did last.

    Shows the chain of causes, and each handler and rule that saw the last event with its reason to act or not.
    """
    layout = find_root()
    ledger = open_ledger(layout)
    found = explain(layout, ledger, subject)
    if as_json:
        print_json(found)
        return
    if pause := found.get("paused"):
        click.secho(
            f"{pause['kind']} {subject} is paused: {plain(pause['reason'])}; `aipass resume {subject}` ends that",
            fg="yellow",
        )
    for depth, link in enumerate(found["chain"]):
        click.echo(
            f"{'  ' * depth}{'└ ' if depth else ''}{click.style(link['type'], bold=True)} {link['id']}: {plain(link['text'])}"
        )
    for refusal in found.get("refused", ()):
        times = f", {refusal['count']} times" if (refusal["count"] or 1) > 1 else ""
        click.echo(
            f"refused to run {refusal['run']} of {refusal['agent']}{times}: {plain(str(refusal['reason']))} (e{refusal['event']})"
        )
    if found["decisions"]:
        click.echo("\nwho saw it, and what they said")
        for decision in found["decisions"]:
            click.echo(
                f"  {plain(decision['handler'])}: {decision['outcome']}"
                + (f" ({plain(decision['reason'])})" if decision["reason"] else "")
            )


def explain(layout: Layout, ledger: Ledger, subject: str) -> dict[str, Any]:
    """What `--json` prints: the chain, cause first, and the decisions about its last event."""
    from aipass.features.dispatch.views import resolve

    number = resolve(ledger, subject)
    if number is not None:
        row = ledger.one("dispatch", {"id": number})
        assert row is not None
        return _explain_dispatch(layout, ledger, subject, row)
    if subject.startswith("e") and subject[1:].isdecimal() and len(subject) < 19:
        event = _event(ledger, int(subject[1:]))
        if event is not None:
            return _explain_event(layout, ledger, subject, event)
    elif not subject.isdecimal() and not subject.startswith("r-"):
        if "/" not in subject and subject in _names(layout):
            # Before a file of that name, which an agent may have made: that one is `./NAME`.
            try:
                if (named := _explain_name(layout, ledger, subject)) is not None:
                    return named
            except AipassError:
                if not os.path.lexists(layout.root / subject):
                    raise
        return _explain_path(layout, ledger, subject)
    event_of = f", an event is `e{subject}`" if subject.isdecimal() else ""
    raise AipassError(
        f"`{subject}` is no dispatch here, and no event{event_of}; `aipass dispatches` and `aipass events` list them"
    )


def _explain_dispatch(layout: Layout, ledger: Ledger, subject: str, row: Row) -> dict[str, Any]:
    chain = _causes(ledger, row["cause"])
    text = (
        f"{row['agent']}, {row['state']}"
        + (f": {row['reason']}" if row["reason"] else "")
        + f", asked for by {row['handler']}"
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
    """What came of an event for which a rule set a timer (`debounce`): its tick, and what that started."""
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
    """Names of configured rules and agents."""
    from aipass.config.quick import raw
    from aipass.errors import ConfigError

    try:
        settings = raw(layout)
    except ConfigError:
        return set()
    rules = settings.get("on", [])
    named = (
        {str(one.get("name")) for one in rules if isinstance(one, dict)} if isinstance(rules, list) else set()
    )
    agents = settings.get("agents", {})
    return named | set(agents if isinstance(agents, dict) else ())


def _explain_name(layout: Layout, ledger: Ledger, subject: str) -> dict[str, Any] | None:
    """What a rule or an agent of this name did last; None where there is none."""
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
            f"rule `{subject}` has not met anything yet: it waits for {waits_for}"
            + (f" at {', '.join(map(str, rule['paths']))}" if rule.get("paths") else "")
        )
    row = ledger.one("last_dispatch_of", {"agent": subject})
    if row is not None:
        return _explain_dispatch(layout, ledger, subject, row)
    if subject in settings.get("agents", {}):
        raise AipassError(f"agent `{subject}` was not asked for anything yet")
    return None


def _explain_path(layout: Layout, ledger: Ledger, subject: str) -> dict[str, Any]:
    """The last thing that happened to a path that somebody decided about, else just the last thing."""
    from pathlib import Path

    from aipass.ledger.sqlite import event_of

    path = Path(os.path.normpath(subject))
    absolute = layout.root / path
    if not path.is_absolute() and not absolute.exists():
        try:
            absolute = Path(os.path.normpath(Path.cwd() / path))
        except FileNotFoundError:
            pass  # whoever asks stands in a folder that is gone
    relative = str(absolute.relative_to(layout.root)) if absolute.is_relative_to(layout.root) else subject
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
        raise AipassError(f"nothing is known of `{subject}`: {_unknown_path(layout, relative)}")
    telling = next((event for event in events if ledger.all("actions_of_event", {"event": event.id})), None)
    ends = {"file.closed", "file.deleted", "file.moved"}
    closed = next((event for event in events if event.kind in ends), None)
    found = _explain_event(layout, ledger, subject, closed or telling or events[0])
    found["refused"] = [_refusal(event) for event in events if event.kind == "write.denied"][:REFUSALS_SHOWN]
    return found


def _refusal(event: Event) -> dict[str, Any]:
    """A write that the fence refused, newest first."""
    about = {"event": event.id, "run": event.by, "agent": event.detail.get("agent")}
    return {**about, "reason": event.detail.get("reason"), "count": event.detail.get("count")}


def _unknown_path(layout: Layout, relative: str) -> str:
    from aipass.config import reading
    from aipass.sources.ignore import IgnoreRules

    ignore = IgnoreRules(layout.root, reading.load(layout.config).watch.ignore)
    parts = relative.split("/")
    for depth in range(1, len(parts)):
        if ignore.folder("/".join(parts[:depth])):
            return f"{'/'.join(parts[:depth])}/ is ignored, so nobody watches it"
    if ignore.file(relative):
        return "it is ignored, so nobody watches it"
    if not (layout.root / relative).exists():
        return "there is no such file, none was seen, and no rule or agent has that name"
    return "it has not changed since the engine began to watch"


def _causes(ledger: Ledger, number: int | None) -> list[dict[str, Any]]:
    """The chain of events that led to an event, that one included, first cause first; runs stand between."""
    chain: list[dict[str, Any]] = []
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
    """What every handler said to an event: recorded where it acted, worked out again where it had no reason to."""
    if event is None:
        return []
    said = []
    for row in ledger.all("actions_of_event", {"event": event.id}):
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
    """Pure handlers can be asked again; with the configuration as it is now."""
    from aipass.config import reading
    from aipass.plugins import Plugins

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
