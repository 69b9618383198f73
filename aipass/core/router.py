"""Which handlers want an event: compiled once, asked for each event. Pure, and calls nobody."""

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
    """A dispatch as handlers see it."""

    id: int
    agent: str
    key: str
    state: str
    subject: str | None
    attempts: int


class View(Protocol):
    """What a handler may know besides its event. Read-only, and true for the moment of the event."""

    @property
    def now(self) -> Instant:
        """The moment of this step; handlers never ask the clock themselves."""
        ...

    def agents(self) -> Sequence[str]:
        """Names of the configured agents."""
        ...

    def agent(self, name: str) -> Agent | None:
        """One agent's configuration."""
        ...

    def dispatches(
        self, agent: str | None = None, state: str | None = None, key: str | None = None
    ) -> list[DispatchView]:
        """Dispatches, oldest first, that are all that is asked for."""
        ...

    def agent_of_run(self, run: int | None) -> str | None:
        """The agent of a run: who did it, for an event's `by`."""
        ...

    def dispatch_of_run(self, run: int | None) -> int | None:
        """The dispatch that a run works on."""
        ...

    def agent_of_dispatch(self, dispatch: int) -> str | None:
        """The agent of a dispatch."""
        ...

    def fired(self, handler: str) -> int:
        """How many dispatches this handler has asked for within the last hour."""
        ...

    def paused(self, kind: str, name: str) -> str | None:
        """Why an `agent`, a `rule` or a `driver` is paused; None where it is not."""
        ...

    def resolve(self, id_or_request: str) -> int | None:
        """The dispatch that an id or a request's id (`r-…`) means; None where there is none."""
        ...

    def plans(self) -> Sequence[Any]:
        """The running plans."""
        ...

    def owner(self, path: str) -> str | None:
        """The agent whose `owns` names the path; None where nobody's does, or several'."""
        ...

    def setting(self, name: str) -> Any:  # noqa: ANN401 - a setting has its own type
        """A value of aipass.toml by its dotted name, such as `limits.hops`."""
        ...


@dataclass(frozen=True, slots=True)
class Handler:
    """A pure function from event to actions, and the events that it wants.

    `kinds` may hold wildcards (`file.*`); `paths` are gitignore patterns, none means every path.
    """

    name: str
    kinds: tuple[str, ...]
    handle: Callable[[Event, View], Iterable[Action]]
    paths: tuple[str, ...] = ()
    #: More conditions than kind and path; says why not, or None. Pure, and used by `aipass why` as well.
    unless: Callable[[Event], str | None] | None = field(default=None)

    def __post_init__(self) -> None:
        # Authors write lists; the router needs something that cannot change.
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
    """Handlers by the kinds and paths that they want, in the order of registration."""

    def __init__(self, handlers: Iterable[Handler], kinds: Iterable[str]) -> None:
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
                        f"handler `{handler.name}` wants events of kind `{kind}`, and there is no such kind; `aipass schema event` lists them"
                    )
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
        """For each handler of this kind of event that does not want this one: its name and why."""
        reasons: list[tuple[str, str]] = []
        for route in self._by_kind.get(event.kind, ()):
            name = route.handler.name
            if route.patterns is not None and (event.path is None or not route.patterns.match(event.path)):
                reasons.append((name, f"no match: the path is none of {', '.join(route.handler.paths)}"))
            elif route.handler.unless is not None and (why := route.handler.unless(event)) is not None:
                reasons.append((name, f"no match: {why}"))
        return reasons
