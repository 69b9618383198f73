"""The registry of the core: what features have added to the engine, checked when it is added.

A mistake is therefore reported with the function that contains it, and not when the first event reaches it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from pydantic import BaseModel, ValidationError

from aipass.action import Action, check_fields
from aipass.core.guests import GuestHook, guarded
from aipass.core.requests import answer
from aipass.core.run_hook import RunHook
from aipass.core.step import Again, Applied, Done, Pending, Step
from aipass.core.timers import Timers
from aipass.core.verbs import Authority, Verb
from aipass.errors import ConfigError, PluginError
from aipass.event import Event, Fact
from aipass.signature import check_signature
from aipass.sources import check_source
from aipass.workspace.removal import Remover

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from aipass.clock import Clock, Instant
    from aipass.config.model import Config
    from aipass.core.prompt import PromptWork
    from aipass.core.requests import Fields
    from aipass.core.router import Router
    from aipass.ledger import Ledger
    from aipass.sources import Source
    from aipass.workspace.layout import Layout

A = TypeVar("A", bound=Action)
R = TypeVar("R")
F = TypeVar("F")
A2 = TypeVar("A2", bound=Callable[..., Any])
M = TypeVar("M", bound=BaseModel)
#: Applies an action, inside the transaction.
Apply = Callable[[Step, Event, A], Applied]
#: Performs an effect, after the commit. Returns None if a report will settle the action later.
Do = Callable[[Pending], "Done | Again | None"]
#: Records the result of an effect, inside a later transaction.
Settled = Callable[[Step, Pending, Done], None]
Listen = Callable[[Step, Event], None]
ChangeFact = Callable[[Step, Fact], "Fact | None"]


def _nothing(*_: object) -> None:
    pass


class MissingError(PluginError):
    """A feature needs the interface of another feature that is left out. `face`: the name of that interface."""

    def __init__(self, face: str) -> None:
        super().__init__(f"{face} is needed, and nothing provides it")
        self.face = face


class Feature(Protocol):
    """A part of the engine that can be left out, such as messages or plans.

    It has a `name`. Optional attributes: `policy`, the names of the plugins whose handlers depend on it; `verbs`, its
    request verbs.
    """

    name: str

    def setup(self, core: Core) -> None:
        """Add everything that the feature consists of to `core`.

        Called once, before the engine starts, also for `assemble`, which only reads. It must have no effects outside
        `core`. Raises MissingError if a feature that it needs is left out.
        """
        ...


class Core:
    """The engine's interface for features, passed to `setup`. Features read it, and change state only by actions.

    Not thread-safe: only the engine's thread may use it. Sources and worker threads send items with their `tell`.
    """

    def __init__(
        self,
        layout: Layout,
        ledger: Ledger,
        clock: Clock,
        config: Config,
        environ: Mapping[str, str],
        *,
        observes: bool = True,
        works: bool = True,
    ) -> None:
        """`environ`: the environment that runs inherit. `observes`: whether sources watch the machine.

        `works`: whether features do slow work in threads; tests and `app.assemble` switch it off.
        """
        timers = Timers()
        self.layout, self.ledger, self.timers, self.clock = layout, ledger, timers, clock
        self._config = config
        self._before: Config | None = None
        self.environ, self.observes, self.works = environ, observes, works
        self.remover = Remover(layout)
        # The engine connects these after all features are set up. Until then they raise: `setup` must not use them.
        self._post: Callable[[Iterable[Any]], None] = _nobody
        self._settle: Callable[[Step, int, Done], None] = _nobody
        self._execute: Callable[[Step, Event, Action, str], None] = _nobody
        self._route: Callable[[Router], None] = _nobody
        #: Whether a plugin's `setup` runs, so that its functions must be guarded.
        self._is_guest = False
        self._models: dict[str, type[BaseModel]] = {}
        self.config_checks: list[Callable[[Config], None]] = [self._check_settings]
        self._faces: dict[type, object] = {}
        # All that features add. Lists and dicts keep the order of the features, and the engine calls the functions in it.
        self.actions: dict[type[Action], Apply[Any]] = {}
        self.effects: dict[str, tuple[Do, Settled | None]] = {}
        self.verbs: dict[str, Verb] = {}
        self.reports: dict[type, Callable[[Step, Any], None]] = {}
        self.due: dict[str, Callable[[Step, str], None]] = {}
        self.listeners: list[tuple[tuple[str, ...], Listen]] = []
        self.fact_filters: list[tuple[tuple[str, ...], ChangeFact]] = []
        self.begins: list[Callable[[Step], None]] = []
        self.ends: list[Callable[[Step], None]] = []
        self.loads: list[Callable[[Instant], None]] = []
        self.idle_checks: list[Callable[[], bool]] = []
        self.prunes: list[Callable[[float], int]] = []
        self.views: dict[str, Any] = {}
        self.sources: list[Source] = []
        self.last_sources: list[Source] = []
        self.starts: list[Callable[[Step], None]] = []
        self.ready: list[Callable[[], None]] = []
        self.stops: list[Callable[[], None]] = []
        self.when_locked: list[Callable[[Iterable[Path]], None]] = []
        self.when_gone: list[Callable[[], None]] = []
        self.run_hooks: list[RunHook] = []
        self.status: dict[str, tuple[Callable[[Ledger], Any], Callable[[Any], Sequence[str]]]] = {}
        self.prompt_parts: list[tuple[int, Callable[[PromptWork], str]]] = []
        self.look_agains: list[Callable[[Step], None]] = []
        #: Makes the router of all handlers under a configuration.
        self.router_of: Callable[[Config], Router] = _nobody  # type: ignore[assignment]
        self.reconfigures: list[tuple[Callable[[Step], None], Callable[[Instant], None]]] = []
        self.switch: Switch = NoSwitch()
        #: The implementations of an observing hook: name of the plugin, function, names of the arguments that it declares.
        self.observers: Callable[[str], Iterable[tuple[str, Callable[..., None], Sequence[str]]]] = lambda _: ()

    def config(self) -> Config:
        """The configuration in force. It can change between steps, so do not keep it."""
        return self._config

    def fields(self) -> dict[str, Fields]:
        """The request verbs and the fields of each."""
        return {name: verb.fields for name, verb in self.verbs.items()}

    def settings(self, name: str, model: type[M]) -> M:
        """The settings of `[plugins.<name>]` in force, validated by a pydantic model.

        Call it each time they are needed, because a reload can change them. Raises ConfigError if they are invalid. After
        the first call, a new configuration with invalid settings is rejected. Raises PluginError for a second model.
        """
        # The model is kept: `_check_settings` validates each later configuration with it.
        if self._models.setdefault(name, model) is not model:
            raise PluginError(f"settings: `{name}` has another model already")
        return _checked(name, model, self._config)

    # -- what a feature may do -------------------------------------------------------------------------------------

    def post(self, *items: Any) -> None:  # noqa: ANN401 - facts, and reports of any kind that was added
        """Queue facts or reports for a later step. Only for the engine's thread; sources use `tell`."""
        self._post(items)

    def execute(self, step: Step, event: Event, action: Action, handler: str | None = None) -> None:
        """Record and apply another action of the same event, inside the transaction.

        `handler`: the name under which it is recorded; default: the handler whose action is being applied.
        """
        self._execute(step, event, action, step.handler if handler is None else handler)

    def answer(self, request: str | None, exit_code: int, text: str) -> None:
        """Reply to a request: the command that waits prints `text` and exits with `exit_code`. Does nothing for None."""
        answer(self.ledger, request, exit_code, text)

    def settle(self, step: Step, action: int, done: Done) -> None:
        """Record the result of an effect whose function returned None. Call it inside the transaction, once."""
        self._settle(step, action, done)

    def route(self, router: Router) -> None:
        """Replace the router of handlers, from the next event on."""
        self._route(router)

    def provide(self, *faces: object) -> None:
        """Publish objects that later features find by their class with `need` and `find`: the interface of a feature."""
        for face in faces:
            self._faces[type(face)] = face

    def need(self, face: type[F]) -> F:
        """The object of this class that an earlier feature has provided. Raises MissingError if there is none."""
        found = self.find(face)
        if found is None:
            raise MissingError(str(getattr(face, "name", face.__name__)))
        return found

    def find(self, face: type[F]) -> F | None:
        """Like `need`, but None if there is no such object, for a feature that also works without it."""
        # By `isinstance`, so that an object of a subclass is found as well.
        for known in self._faces.values():
            if isinstance(known, face):
                return known
        return None

    # -- what a feature may add ------------------------------------------------------------------------------------

    def add_action(self, kind: type[A], apply: Apply[A]) -> None:
        """Add an action that handlers can return.

        `apply(step, event, action)` runs inside the transaction and must have no effects outside the ledger and `step`.
        For an effect it returns `Applied(…, effect=Effect(name, arguments))`.
        """
        if not (isinstance(kind, type) and issubclass(kind, Action)):
            raise PluginError(f"add_action: {kind!r} is not a class of actions; derive it from aipass.Action")
        check_fields(kind)
        check_signature(apply, ("step", "event", "action"), f"add_action({kind.__name__})")
        # By name and not by class: the ledger stores the name, and `aipass events` shows it.
        if any(known.__name__ == kind.__name__ for known in self.actions):
            raise PluginError(f"add_action: the action {kind.__name__} already exists; choose another name")
        self.actions[kind] = apply

    def add_effect(self, name: str, do: Do, settled: Settled | None = None) -> None:
        """Add an effect that actions can have outside the ledger.

        `do(pending)` runs in the engine's thread after the commit. It must be idempotent: after a crash it is called
        again for an effect that may be half done. `settled(step, pending, done)` runs inside the later transaction that
        records the result.
        """
        check_signature(do, ("pending",), f"add_effect({name})")
        if settled is not None:
            check_signature(settled, ("step", "pending", "done"), f"add_effect({name}), settled")
        _add(self.effects, name, (do, settled), "effect")

    def add_verb(self, verb: Verb) -> None:
        """Add a request verb: a request that commands and agents can send through the spool. Default authority: people."""
        check_signature(verb.handle, ("request",), f"add_verb({verb.name})")
        if not isinstance(verb.authority, Authority):
            check_signature(verb.authority, ("fields",), f"add_verb({verb.name}), authority")
        _add(self.verbs, verb.name, verb, "verb")

    def add_report(self, kind: type[R], take: Callable[[Step, R], None]) -> None:
        """Add a report: threads and effects send instances of `kind`, and `take(step, report)` gets each inside a transaction."""
        check_signature(take, ("step", "report"), f"add_report({kind.__name__})")
        _add(self.reports, kind, take, "report")

    def add_timer(self, prefix: str, due: Callable[[Step, str], None]) -> None:
        """Add a kind of timer: `due(step, rest)` is called, inside a transaction, when the timer `prefix:rest` is due.

        Timers are not stored. A feature restores its own after a restart (`add_memory`).
        """
        check_signature(due, ("step", "rest"), f"add_timer({prefix})")
        if not prefix.isidentifier():
            raise PluginError(f"add_timer: `{prefix}` is not a name; use letters, digits and `_`")
        _add(self.due, prefix, self._safe(due), "timer")

    def add_listener(self, kinds: Iterable[str], listen: Listen) -> None:
        """Add a function that is called inside the transaction for each event of these kinds, before handlers see it.

        `kinds` can have wildcards, such as `file.*`.
        """
        check_signature(listen, ("step", "event"), "add_listener")
        self.listeners.append((_kinds(kinds), self._safe(listen)))

    def add_fact_filter(self, kinds: Iterable[str], change: ChangeFact) -> None:
        """Add a function that is called before a fact of these kinds is recorded.

        It returns the fact, changed or unchanged, or None to drop it. Filters run in the order in which they were added.
        """
        check_signature(change, ("step", "fact"), "add_fact_filter")
        self.fact_filters.append((_kinds(kinds), self._safe(change, lambda *given: given[1])))

    def add_step(
        self,
        begin: Callable[[Step], None] | None = None,
        end: Callable[[Step], None] | None = None,
    ) -> None:
        """Add functions for every step: `begin` runs before the transaction, `end` inside it, after all items are recorded.

        They run in the order of the features. If an `end` adds facts, these are recorded, and all `end`s run again.
        """
        if begin is not None:
            check_signature(begin, ("step",), "add_step, begin")
            self.begins.append(self._safe(begin))
        if end is not None:
            check_signature(end, ("step",), "add_step, end")
            self.ends.append(self._safe(end))

    def add_source(self, source: Source, *, never_waits: bool = False, last: bool = False) -> None:
        """Add a source of facts, which is started and stopped with the engine.

        `never_waits`: its `tell` never blocks, for a source with few facts that a process waits for. `last`: start it
        after all other sources; `aipass up` reports that the engine is ready when its first scan has finished.
        """
        check_source(source)
        if never_waits:
            source.urgent = True  # type: ignore[attr-defined]
        (self.last_sources if last else self.sources).append(source)

    def add_start(
        self,
        start: Callable[[Step], None] | None = None,
        ready: Callable[[], None] | None = None,
        stop: Callable[[], None] | None = None,
    ) -> None:
        """Add functions that are called once: `start` inside the engine's first transaction, `ready` later, `stop` at the end.

        `ready` runs when the effects of the first step are done and all sources but the `last` ones (the filesystem)
        observe.
        """
        if start is not None:
            check_signature(start, ("step",), "add_start, start")
            self.starts.append(self._safe(start))
        self.ready += [self._safe(ready)] if ready is not None else []
        self.stops += [stop] if stop is not None else []

    def add_run_hook(self, hook: RunHook) -> None:
        """Add an object that takes part in the start and end of runs; its class is derived from `RunHook`."""
        if not isinstance(hook, RunHook):
            raise PluginError(
                f"add_run_hook: {hook!r} is not a RunHook; derive its class from aipass.RunHook"
            )
        self.run_hooks.append(GuestHook(hook, self) if self._is_guest else hook)

    def add_prompt_part(self, order: int, part: Callable[[PromptWork], str]) -> None:
        """Add a part of prompts, which follows the task. A smaller `order` comes first; an empty text is left out."""
        check_signature(part, ("work",), "add_prompt_part")
        self.prompt_parts.append((order, self._safe(part, lambda *_: "")))
        self.prompt_parts.sort(key=lambda one: one[0])

    def look_again(self, step: Step) -> None:
        """Offer files again that no handler took while a handler was disabled. Called when that handler is resumed."""
        for look in self.look_agains:
            look(step)

    def add_view(self, name: str, view: Any) -> None:  # noqa: ANN401 - a function, or an object
        """Add a query that handlers can use as `view.name(…)` or `view["name"]`. It must not change anything."""
        if not name.isidentifier() or name in {"now", "setting"}:
            raise PluginError(f"add_view: `{name}` cannot be the name of a view")
        _add(self.views, name, view, "view")

    def add_config_check(self, check: Callable[[Config], None]) -> None:
        """Add a check that runs before a configuration takes effect. It raises ConfigError to reject the configuration."""
        check_signature(check, ("config",), "add_config_check")
        self.config_checks.append(check)

    def add_reconfigure(
        self,
        during: Callable[[Step], None] | None = None,
        after: Callable[[Instant], None] | None = None,
    ) -> None:
        """Add functions for a new configuration: `during` runs inside the transaction, `after` after the commit."""
        for function, wanted in ((during, ("step",)), (after, ("now",))):
            if function is not None:
                check_signature(function, wanted, "add_reconfigure")
        self.reconfigures.append((self._safe(during or _nothing), self._safe(after or _nothing)))

    def add_memory(self, load: Callable[[Instant], None]) -> None:
        """Add a function that restores the feature's in-memory state from the ledger. It must be idempotent.

        Called at the start, and after a transaction that failed: the ledger is rolled back, the memory is not.
        """
        check_signature(load, ("now",), "add_memory")
        self.loads.append(self._safe(load))

    def add_status(
        self, name: str, gather: Callable[[Ledger], Any], show: Callable[[Any], Sequence[str]]
    ) -> None:
        """Add a part of `aipass status`.

        `gather(ledger)` returns data for `--json` and must only read. `show(data)` returns lines for people. Both run in
        the process of the command, without an engine.
        """
        check_signature(gather, ("ledger",), f"add_status({name}), gather")
        check_signature(show, ("found",), f"add_status({name}), show")
        _add(self.status, name, (gather, show), "part of the status")

    def add_idle_check(self, is_idle: Callable[[], bool]) -> None:
        """Add a function that returns whether the feature has nothing queued, running or due.

        `aipass up --until-idle` ends when all return True.
        """
        check_signature(is_idle, (), "add_idle_check")
        self.idle_checks.append(self._safe(is_idle, lambda: True))

    def add_look_again(self, look: Callable[[Step], None]) -> None:
        """Add a function that offers facts again which no handler took while one was disabled; called in the transaction of its resume."""
        check_signature(look, ("step",), "add_look_again")
        self.look_agains.append(self._safe(look))

    def add_locked(self, free: Callable[[Iterable[Path]], None]) -> None:
        """Add a function that is called when another process keeps the ledger locked, with the ledger's files."""
        check_signature(free, ("files",), "add_locked")
        self.when_locked.append(self._safe(free))

    def add_gone(self, end: Callable[[], None]) -> None:
        """Add a function that is called when the root or the ledger is moved or removed, before the engine ends."""
        check_signature(end, (), "add_gone")
        self.when_gone.append(self._safe(end))

    def add_prune(self, prune: Callable[[float], int]) -> None:
        """Add a function that deletes old data, once a day: everything before a moment in seconds since the epoch.

        It returns how many items it has deleted.
        """
        check_signature(prune, ("before",), "add_prune")
        self.prunes.append(prune)

    def _safe(self, function: A2, otherwise: Callable[..., Any] = _nothing) -> A2:
        """The function with a guard if a plugin adds it; unchanged for a built-in feature."""
        # A bug of ours must fail the step: a guard would record one part of a change and not the other.
        return cast("A2", guarded(function, self, otherwise)) if self._is_guest else function

    def _check_settings(self, config: Config) -> None:
        for name, model in self._models.items():
            _checked(name, model, config)

    # -- the engine's own ------------------------------------------------------------------------------------------

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """For the `setup` of a plugin: guards its functions, and undoes all its `add_…` calls if it raises."""
        self._is_guest = True
        places = [vars(one) for one in (self, self.ledger, *self._faces.values()) if hasattr(one, "__dict__")]
        # Restored in place, because the engine and other features hold references to these lists.
        held = [
            (value, value.copy())
            for place in places
            for value in place.values()
            if isinstance(value, (dict, list, set))
        ]
        single = self.switch, self.observers, self.router_of
        try:
            yield
        except BaseException:
            for value, before in held:
                value.clear()
                value.extend(before) if isinstance(value, list) else value.update(before)
            self.switch, self.observers, self.router_of = single
            raise
        finally:
            self._is_guest = False

    def connect(
        self,
        post: Callable[[Iterable[Any]], None],
        execute: Callable[[Step, Event, Action, str], None],
        settle: Callable[[Step, int, Done], None],
        route: Callable[[Router], None],
    ) -> None:
        """Connect the engine, after `setup` of all features."""
        self._post, self._execute, self._settle, self._route = post, execute, settle, route

    def take_over(self, config: Config) -> None:
        """Put another configuration in force, inside the transaction. `keep` or `take_back` ends the change."""
        # Two changes can come in one transaction: to take back means the configuration before the first one.
        if self._before is None:
            self._before = self._config
        self._config = config

    def keep(self) -> None:
        """Keep the new configuration: the transaction is committed."""
        self._before = None

    def take_back(self) -> None:
        """Restore the previous configuration: the transaction has failed. Does nothing if there is no change."""
        if self._before is not None:
            self._config, self._before = self._before, None


class Switch(Protocol):
    """The interface of the feature that disables handlers (circuit breaker)."""

    def why(self, handler: str) -> str | None:
        """The reason why a handler is disabled; None if it is not."""
        ...

    def disable(self, handler: str, reason: str, now: Instant) -> bool:
        """Disable a handler; returns False if it was disabled already."""
        ...


class NoSwitch:
    """The switch of an engine without that feature: no handler is disabled."""

    def why(self, handler: str) -> str | None:
        """Return None."""
        del handler
        return None

    def disable(self, handler: str, reason: str, now: Instant) -> bool:
        """Do nothing and return False."""
        del handler, reason, now
        return False


def by_kind(entries: Iterable[tuple[tuple[str, ...], R]], kind: str) -> tuple[R, ...]:
    """The entries whose patterns match this kind of event, in order."""
    return tuple(one for kinds, one in entries if any(fnmatchcase(kind, wanted) for wanted in kinds))


def _checked(name: str, model: type[M], config: Config) -> M:
    try:
        return model.model_validate(config.plugins.get(name, {}))
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(["plugins", name, *map(str, first["loc"])])
        raise ConfigError(f"aipass.toml: {where}: {first['msg']}") from exc


def _kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    # A plugin author easily writes ("file.closed"), which is a string: its letters would match nothing.
    return (kinds,) if isinstance(kinds, str) else tuple(kinds)


def _add(known: dict[Any, R], name: Any, value: R, what: str) -> None:  # noqa: ANN401 - a name, or a class
    if name in known:
        raise PluginError(
            f"the {what} `{getattr(name, '__name__', name)}` already exists; choose another name"
        )
    known[name] = value


def _nobody(*_: object) -> None:
    raise RuntimeError("`setup` must only add: the engine does not exist yet")
