"""The router: selects the handlers for an event. Compiled once for a configuration; pure, and calls no handler."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Protocol

from aipass.errors import PluginError
from aipass.signature import check_signature
from aipass.text.patterns import Patterns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aipass.action import Action
    from aipass.clock import Instant
    from aipass.config.model import Agent
    from aipass.event import Event


@dataclass(frozen=True, slots=True)
class DispatchView:
    """The part of a dispatch that handlers can read."""

    id: int
    agent: str
    key: str
    state: str
    subject: str | None
    attempts: int


class View(Protocol):
    """The queries that a handler can use. Read-only; the answers are those of the moment at which the event is handled."""

    @property
    def now(self) -> Instant:
        """The time of this step. Handlers must not read a clock, so that they are deterministic."""
        ...

    def agents(self) -> Sequence[str]:
        """Names of the configured agents."""
        ...

    def agent(self, name: str) -> Agent | None:
        """The configuration of an agent; None if there is no such agent."""
        ...

    def dispatches(
        self, agent: str | None = None, state: str | None = None, key: str | None = None
    ) -> list[DispatchView]:
        """The dispatches that match all given arguments, oldest first."""
        ...

    def agent_of_run(self, run: int | None) -> str | None:
        """The agent of a run, for the `by` of an event; None if it is unknown."""
        ...

    def dispatch_of_run(self, run: int | None) -> int | None:
        """The dispatch that a run works on; None if it is unknown."""
        ...

    def agent_of_dispatch(self, dispatch: int) -> str | None:
        """The agent of a dispatch; None if there is no such dispatch."""
        ...

    def fired(self, handler: str) -> int:
        """How many dispatches this handler has created within the last hour."""
        ...

    def paused(self, kind: str, name: str) -> str | None:
        """Why an `agent`, a `rule` or a `driver` is paused; None if it is not."""
        ...

    def resolve(self, id_or_request: str) -> int | None:
        """The dispatch with this id, or of this request id (`r-…`); None if there is none."""
        ...

    def plans(self) -> Sequence[Any]:
        """The running plans."""
        ...

    def owner(self, path: str) -> str | None:
        """The agent whose `owns` matches the path; None if no agent or several match."""
        ...

    def setting(self, name: str) -> Any:  # noqa: ANN401 - a setting has its own type
        """A value of aipass.toml by its dotted name, such as `limits.hops`."""
        ...


@dataclass(frozen=True, slots=True)
class Handler:
    """A pure function from an event to actions, with the filter for its events.

    `kinds` can contain wildcards (`file.*`). `paths` are gitignore patterns; an empty tuple accepts every event, also one
    without a path.
    """

    name: str
    kinds: tuple[str, ...]
    handle: Callable[[Event, View], Iterable[Action]]
    paths: tuple[str, ...] = ()
    #: An additional filter: returns the reason to skip an event, or None. Pure, because `aipass why` calls it as well.
    unless: Callable[[Event], str | None] | None = field(default=None)

    def __post_init__(self) -> None:
        # Authors write lists and single strings. The router compiles these once, so they must not change later.
        object.__setattr__(self, "kinds", (self.kinds,) if isinstance(self.kinds, str) else tuple(self.kinds))
        object.__setattr__(self, "paths", tuple(self.paths))
        check_signature(self.handle, ("event", "view"), f"handler `{self.name}`")


class _Route:
    """One handler with its compiled patterns."""

    __slots__ = ("handler", "patterns")

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.patterns = Patterns(handler.paths) if handler.paths else None


class Router:
    """The handlers, indexed by the kinds of events, in the order of registration."""

    def __init__(self, handlers: Iterable[Handler], kinds: Iterable[str]) -> None:
        """`kinds`: all kinds of events. Raises PluginError for a name that is taken or a kind that does not exist."""
        self.handlers = tuple(handlers)
        known = set(kinds)
        self._by_kind: dict[str, tuple[_Route, ...]] = {}
        routes = [_Route(handler) for handler in self.handlers]
        names: set[str] = set()
        for handler in self.handlers:
            if handler.name in names:
                raise PluginError(f"two handlers are named `{handler.name}`; names are unique")
            names.add(handler.name)
            for kind in handler.kinds:
                if not any(fnmatchcase(name, kind) for name in known):
                    raise PluginError(
                        f"handler `{handler.name}` wants events of kind `{kind}`, but there is no such kind; `aipass schema event` lists them"
                    )
        # Wildcards are resolved here, once, and not for each event.
        for kind in known:
            self._by_kind[kind] = tuple(
                r for r in routes if any(fnmatchcase(kind, wanted) for wanted in r.handler.kinds)
            )

    def match(self, event: Event) -> list[Handler]:
        """The handlers that want this event, in order."""
        routes = self._by_kind.get(event.kind)
        if not routes:
            return []
        path = event.path
        return [
            route.handler
            for route in routes
            if (route.patterns is None or (path is not None and route.patterns.match(path)))
            and (route.handler.unless is None or route.handler.unless(event) is None)
        ]

    def explain(self, event: Event) -> list[tuple[str, str]]:
        """The handlers for this kind of event that skip this event: name and reason, for `aipass why`."""
        reasons: list[tuple[str, str]] = []
        for route in self._by_kind.get(event.kind, ()):
            name = route.handler.name
            if route.patterns is not None and (event.path is None or not route.patterns.match(event.path)):
                reasons.append((name, f"no match: the path is none of {', '.join(route.handler.paths)}"))
            elif route.handler.unless is not None and (why := route.handler.unless(event)) is not None:
                reasons.append((name, f"no match: {why}"))
        return reasons
