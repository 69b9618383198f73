"""The rules of aipass.toml: each `[[on]]` is one handler that starts an agent on an event, without any Python. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aipass import Dispatch, Handler, Ignore, Notify, Pause, Wake, hookimpl
from aipass.text.patterns import Patterns
from aipass.text.template import render, values_of
from aipass.text.units import show_duration

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aipass import Action, Event, View
    from aipass.config.model import Config, Rule

PREFIX = "rule "


@hookimpl
def register_handlers(config: Config) -> list[Handler]:
    """Return one handler for each rule."""
    return [_Rule(rule).handler() for rule in config.on]


class _Rule:
    """A rule with its path patterns compiled: they are matched against every event of its kind."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.name = PREFIX + rule.name
        self._paths = Patterns(rule.paths) if rule.paths else None

    def handler(self) -> Handler:
        kind = self.rule.event or "clock.cron"
        return Handler(
            self.name,
            (kind, "clock.tick") if self.rule.debounce else (kind,),
            self.on_event,
            unless=self.why_not,
        )

    def why_not(self, event: Event) -> str | None:
        """Return the first condition that the event does not meet; None if it meets all. `aipass why` shows it."""
        rule = self.rule
        if event.kind == "clock.tick" and rule.event != "clock.tick":
            return None if event.ref == self.name else "that timer belongs to another rule or handler"
        if rule.cron is not None and event.ref != rule.name:
            return "that cron time belongs to another rule"
        paths = [event.path] if event.path is not None else event.detail.get("paths", [])
        if self._paths is not None and not any(map(self._paths.match, paths)):
            return f"the path is none of {', '.join(rule.paths)}"
        if rule.branch is not None and event.detail.get("branch") != rule.branch:
            return f"the branch is {event.detail.get('branch')}, not {rule.branch}"
        if not rule.git and event.detail.get("git"):
            return "git itself made the change (git = false)"
        if not rule.rebased and event.detail.get("rebased"):
            return "a rebase made the commit (rebased = false)"
        values = values_of(event)
        for name, wanted in rule.where.items():
            found = event.detail.get(name.removeprefix("detail."), values.get(name))
            if found != wanted:
                return f"{name} is {found!r}, not {wanted!r}"
        return None

    def on_event(self, event: Event, view: View) -> Iterable[Action]:
        """Dispatch the rule's agent now, or after `debounce` without another event; or ignore the event with the reason.

        At `per_hour` dispatches the rule pauses itself and notifies the person.
        """
        rule = self.rule
        is_own_tick = event.kind == "clock.tick" and event.ref == self.name
        paused = view.paused("rule", rule.name)
        if paused is not None:
            return [Ignore(f"the rule is paused: {paused}; `aipass resume {rule.name}` ends that")]
        # An agent that triggers its own rule would run without end.
        if (
            not rule.self
            and not is_own_tick
            and event.by is not None
            and view.agent_of_run(event.by) == rule.dispatch
        ):
            return [Ignore(f"`{rule.dispatch}`, the rule's own agent, did it (self = false)")]
        if rule.debounce and not is_own_tick:
            return [
                Wake(self.name, rule.debounce, {"values": values_of(event)}),
                Ignore(
                    f"debounced: the rule fires after {show_duration(rule.debounce)} without another event"
                ),
            ]
        if view.fired(self.name) >= rule.per_hour:
            reason = f"it fired {rule.per_hour} times within an hour (per_hour)"
            return [
                Pause("rule", rule.name, reason),
                Notify(
                    f"rule `{rule.name}` is paused: {reason}; `aipass resume {rule.name}` ends that",
                    f"rule {rule.name}",
                ),
                Ignore(reason),
            ]
        return [self._dispatch(self._values(event))]

    def _values(self, event: Event) -> dict[str, Any]:
        # The tick of the debounce timer itself has no path or branch; `Wake` stored those of the event that it delayed.
        if event.kind == "clock.tick" and event.ref == self.name:
            return {**event.detail["values"], "count": event.detail["count"]}
        return values_of(event)

    def _dispatch(self, values: dict[str, Any]) -> Dispatch:
        rule = self.rule
        return Dispatch(
            rule.dispatch, render(rule.task, values), priority=rule.priority, sender=rule.name, stem=rule.name
        )
