"""One step of the engine: its time, the facts to record, and the calls to make after the commit."""

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

#: A side effect that is not part of an action and is not recorded. After a crash it is lost, or its feature repeats it.
Call = Callable[[], None]
NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Effect:
    """The side effect of an action, as data: recorded with the action, performed after the commit, repeated after a crash.

    `name`: an effect that was added by `Core.add_effect`. `arguments`: values that JSON can hold.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Applied:
    """The result of applying an action inside the transaction.

    `outcome`: a text for people. `effect`: the action stays pending until the effect has a result. `before_starts`:
    perform the effect before any run starts. `recorded`: called with the id of the action, inside the same transaction.
    """

    outcome: str
    failed: bool = False
    effect: Effect | None = None
    before_starts: bool = False
    recorded: Callable[[int], None] | None = None


@dataclass(frozen=True, slots=True)
class Pending:
    """An effect to perform.

    `action`: the id of its action. `event`: the event that the action answers. `run`: the run that caused that event.
    """

    action: int
    event: int
    run: int | None
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Done:
    """The result of an effect, which is recorded with the action in a later step.

    `request`: the request that gets the result. Without one a failure becomes a notice, whose subject is `about`.
    `detail`: data for the `settled` function of the feature.
    """

    outcome: str
    failed: bool = False
    request: str | None = None
    about: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Again:
    """An effect that cannot be performed now: it is tried again after `after_s` seconds. Its action stays pending."""

    after_s: float


@dataclass(slots=True)
class Step:
    """The facts and calls that are collected while the transaction of a step is open. Discarded if the transaction fails."""

    now: Instant
    facts: deque[Fact] = field(default_factory=deque)
    #: Called first: what a run that starts in this step needs, such as its files.
    before: list[Call] = field(default_factory=list)
    #: Called second: starts of processes.
    starts: list[Call] = field(default_factory=list)
    #: Called last: all other effects.
    effects: list[Call] = field(default_factory=list)
    told: list[Event] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    #: The handler whose action is being applied.
    handler: str = ""

    def before_once(self, call: Call) -> None:
        """Add `call` to those before the starts of runs, unless it is already there."""
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
        """Record a notice for a person, and deliver it after the commit. The other arguments are those of `Notice`."""
        ledger.run("insert_notice", {"time": self.now.wall, "event": event, "text": text, "about": about})
        # Delivered after the commit only: a step that fails would otherwise send a notice that no ledger has.
        told = Notice(text, self.now.wall, about, event, agent=agent, dispatch=dispatch, options=options)
        self.notices.append(told)

    def withdraw(self, ledger: Ledger, about: str) -> None:
        """Withdraw the notices with this subject: it is settled."""
        ledger.run("withdraw_notices", {"now": self.now.wall, "about": about})
