"""One step of the engine: the moment, the facts that wait to be recorded, and what is to be done after the commit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aipass.notices import Notice

if TYPE_CHECKING:
    from aipass.clock import Instant
    from aipass.config import Config
    from aipass.event import Event, Fact
    from aipass.ledger import Ledger
    from aipass.plan.model import Plan
    from aipass.router import Router

#: Something done in the world; it may be done a second time after a crash.
Effect = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Done:
    """What came of an action in the world: goes back through the engine's queue and is recorded in a later step."""

    action: int
    outcome: str
    failed: bool = False
    #: Who asked for it and hears what came of it; otherwise a failure is a notice.
    request: str | None = None
    dispatch: int | None = None
    answer: str | None = None
    #: A file that was taken out of the inbox: its path and the identity it had.
    taken: tuple[str, str | None] | None = None
    #: What the notice of a failure is about.
    about: str | None = None


@dataclass(frozen=True, slots=True)
class Reloaded:
    """aipass.toml was read again: a configuration to take over, or why not."""

    action: int
    request: str | None
    config: Config | None = None
    router: Router | None = None
    waiting: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class PlanRead:
    """A plan's file was read, to `start`, `resume` or `change` it: what it says, or why it cannot be used."""

    action: int
    request: str | None
    verb: str
    id: str
    file: str = ""
    text: str = ""
    plan: Plan | None = None
    error: str | None = None
    again: bool = False


@dataclass(slots=True)
class Step:
    """What gathers while a step's transaction is open. Thrown away with it where that fails."""

    now: Instant
    facts: deque[Fact] = field(default_factory=deque)
    #: Done first: what a run that starts now cannot do without.
    before: list[Effect] = field(default_factory=list)
    starts: list[Effect] = field(default_factory=list)
    #: All else; nobody waits for it.
    effects: list[Effect] = field(default_factory=list)
    told: list[Event] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    #: Whether the journals of who wrote what have been read in this step.
    journals_read: bool = False
    #: Who owns what has changed; the supervisors hear of it before anything starts.
    changes_territory: bool = False

    def notify(
        self,
        ledger: Ledger,
        text: str,
        event: int | None = None,
        about: str | None = None,
        *,
        agent: str | None = None,
        dispatch: int | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        """Record something that a person must see, and tell it after the commit. `about` and what follows: as `Notice` has it."""
        ledger.run("insert_notice", {"time": self.now.wall, "event": event, "text": text, "about": about})
        told = Notice(text, self.now.wall, about, event, agent=agent, dispatch=dispatch, options=options)
        self.notices.append(told)

    def withdraw(self, ledger: Ledger, about: str) -> None:
        """What notices were about is over."""
        ledger.run("withdraw_notices", {"now": self.now.wall, "about": about})
