"""Snooze: give an agent work later. One file with an action, a verb, a timer, a table, a setting, a prompt part, a status line."""

from __future__ import annotations

from dataclasses import dataclass

import click
from pydantic import BaseModel

import aipass
from aipass import Action, Applied, Authority, Dispatch, Done, Effect, Fact, Reply, Verb, hookimpl

MIGRATIONS = ["CREATE TABLE snooze_later (id INTEGER PRIMARY KEY, agent TEXT, text TEXT, due REAL);"]
SQL = """
-- name: insert_snooze_later
-- Something to be given to an agent later.
INSERT INTO snooze_later (agent, text, due) VALUES (:agent, :text, :due)
-- name: snooze_all
-- What waits, the first to come due first.
SELECT * FROM snooze_later ORDER BY due
-- name: snooze_drop
-- It is given to its agent.
DELETE FROM snooze_later WHERE id = :id
"""
FIELDS = {"agent": (str, True), "text": (str, True), "seconds": (int, True)}


class Settings(BaseModel, extra="forbid"):
    longest_s: float = 86_400.0


@dataclass(frozen=True, slots=True)
class Snooze(Action):
    agent: str
    text: str
    seconds: float


class Feature:
    def __init__(self, core):
        self.core, self.ledger, self.timers = core, core.ledger, core.timers
        core.ledger.extend("snooze", MIGRATIONS, SQL)
        core.settings("snooze", Settings)
        core.add_action(Snooze, self.snooze)
        core.add_effect("snooze.note", self.note)
        core.add_verb(Verb("snooze", self.asked, FIELDS, Authority.ORCHESTRATOR))
        core.add_timer("snooze", self.due)
        core.add_listener(("snooze.over",), self.over)
        core.add_memory(self.load)
        core.add_prompt_part(50, self.prompt)
        core.add_status("snooze", self.gather, lambda found: [f"snoozed for {one['agent']}" for one in found])

    def asked(self, request):
        agent, seconds = request.fields["agent"], request.fields["seconds"]
        if request.view.agent(agent) is None:
            return request.no_agent(agent)
        if seconds > self.core.settings("snooze", Settings).longest_s:
            return request.refuse("that is longer than plugins.snooze.longest_s allows", 2)
        return [Snooze(agent, request.fields["text"], float(seconds)), Reply(request.id, "snoozed")]

    def snooze(self, step, event, action: Snooze) -> Applied:
        about = {"agent": action.agent, "text": action.text, "due": step.now.wall + action.seconds}
        number = self.ledger.run("insert_snooze_later", about)
        self.timers.set(f"snooze:{number}", step.now.mono + action.seconds)
        return Applied(f"snoozed as {number}", effect=Effect("snooze.note", {"number": number}))

    def note(self, pending) -> Done:  # after the commit, and once more after a crash: the same then
        (self.core.layout.state / f"snoozed-{pending.arguments['number']}").touch()
        return Done(f"snoozed as {pending.arguments['number']}, and noted")

    def due(self, step, rest: str) -> None:
        step.facts.append(Fact("snooze.over", "snooze", ref=rest))

    def over(self, step, event) -> None:
        for row in self.ledger.all("snooze_all"):
            if str(row["id"]) == event.ref and self.ledger.run("snooze_drop", {"id": row["id"]}):
                self.core.execute(step, event, Dispatch(row["agent"], row["text"], sender="snooze"), "snooze")

    def load(self, now) -> None:
        for row in self.ledger.all("snooze_all"):
            self.timers.set(f"snooze:{row['id']}", now.mono + max(0.0, row["due"] - now.wall))

    def prompt(self, work) -> str:
        waiting = sum(row["agent"] == work.dispatch["agent"] for row in self.ledger.all("snooze_all"))
        return f"Snoozed for you: {waiting}." if waiting else ""

    def gather(self, ledger) -> list[dict]:
        return [dict(row) for row in ledger.all("snooze_all")]


@hookimpl
def setup(core) -> None:
    Feature(core)


@hookimpl
def register_kinds() -> dict[str, str]:
    return {"snooze.over": "what was snoozed is due"}


@click.command("snooze")
@click.argument("agent")
@click.argument("text")
@click.option("--seconds", default=3600)
def command(agent: str, text: str, seconds: int) -> None:
    """Give an agent work later."""
    reply = aipass.ask(aipass.find_root(), "snooze", agent=agent, text=text, seconds=seconds)
    click.echo(reply["message"] if reply else "")
