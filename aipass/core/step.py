"""One step of the engine: the moment, the facts that wait to be recorded, and what is to be done after the commit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from aipass.core.notices import Notice

if TYPE_CHECKING:
    from aipass.clock import Instant
    from aipass.event import Event, Fact
    from aipass.ledger import Ledger

#: Something done in the world that is no part of an action: nobody misses it after a crash, or its feature does it again by itself.
Call = Callable[[], None]
NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Effect:
    """What an action wants of the world, as data: recorded with the action, done after the commit, done again after a crash.

    `name`: one that was added by `Core.add_effect`; `arguments`: what JSON holds.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Applied:
    """What came of an action in the transaction.

    `outcome`: words for people. `effect`: the action stays pending until that has settled; with `before_starts` it is done before any
    run starts. `recorded`: called with the action's id, inside the same transaction.
    """

    outcome: str
    failed: bool = False
    effect: Effect | None = None
    before_starts: bool = False
    recorded: Callable[[int], None] | None = None


@dataclass(frozen=True, slots=True)
class Pending:
    """An effect that is to be done: its action's id, the event that the action answers, the run that is behind that event, and its arguments."""

    action: int
    event: int
    run: int | None
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Done:
    """What came of an effect: recorded with the action in a later step.

    `request`: who asked for it and hears what came of it; otherwise a failure is a notice, which is `about` something. `detail`: for the
    feature's own `settled`.
    """

    outcome: str
    failed: bool = False
    request: str | None = None
    about: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Again:
    """An effect cannot be done now, and is tried again after so many seconds; its action stays pending."""

    after_s: float


@dataclass(slots=True)
class Step:
    """What gathers while a step's transaction is open. Thrown away with it where that fails."""

    now: Instant
    facts: deque[Fact] = field(default_factory=deque)
    #: Done first: what a run that starts now cannot do without.
    before: list[Call] = field(default_factory=list)
    starts: list[Call] = field(default_factory=list)
    #: All else; nobody waits for it.
    effects: list[Call] = field(default_factory=list)
    told: list[Event] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    #: The handler whose action is being applied.
    handler: str = ""

    def before_once(self, call: Call) -> None:
        """Have `call` done before anything starts; once, however often it is asked for in this step."""
        if call not in self.before:
            self.before.append(call)

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
