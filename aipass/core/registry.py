"""What a feature may add to the engine. All of it is checked when it is added: a mistake names the feature, not an event of some later day."""

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
#: Inside the transaction: what an action comes to.
Apply = Callable[[Step, Event, A], Applied]
#: After the commit: do it; None where a report will settle the action later.
Do = Callable[[Pending], "Done | Again | None"]
#: Inside a later transaction: note what came of it.
Settled = Callable[[Step, Pending, Done], None]
Listen = Callable[[Step, Event], None]
ChangeFact = Callable[[Step, Fact], "Fact | None"]


def _nothing(*_: object) -> None:
    pass


class MissingError(PluginError):
    """A feature needs another one that is not there; `face`: its name."""

    def __init__(self, face: str) -> None:
        super().__init__(f"{face} is needed, and nothing provides it")
        self.face = face


class Feature(Protocol):
    """Something that enters the engine. Besides `name` it may have `policy`: names of the plugins whose handlers make no sense without it."""

    name: str

    def setup(self, core: Core) -> None:
        """Add all that it consists of. Called once, before the engine starts; nothing is to be done in the world yet."""
        ...


class Core:
    """Handed to every feature's `setup`. What it holds is the engine's: features read it, and change nothing but by actions."""

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
        """`environ`: what runs inherit; `observes`: whether sources watch the machine; `works`: whether features work in threads of their own."""
        timers = Timers()
        self.layout, self.ledger, self.timers, self.clock = layout, ledger, timers, clock
        self._config = config
        self._before: Config | None = None
        self.environ, self.observes, self.works = environ, observes, works
        self.remover = Remover(layout)
        self._post: Callable[[Iterable[Any]], None] = _nobody
        self._settle: Callable[[Step, int, Done], None] = _nobody
        self._execute: Callable[[Step, Event, Action, str], None] = _nobody
        self._route: Callable[[Router], None] = _nobody
        #: Whether a plugin is adding now.
        self._is_guest = False
        self._models: dict[str, type[BaseModel]] = {}
        self.config_checks: list[Callable[[Config], None]] = [self._check_settings]
        self._faces: dict[type, object] = {}
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
        #: The router of all handlers under a configuration.
        self.router_of: Callable[[Config], Router] = _nobody  # type: ignore[assignment]
        self.reconfigures: list[tuple[Callable[[Step], None], Callable[[Instant], None]]] = []
        self.switch: Switch = NoSwitch()
        #: Implementations of a hook that observes: the plugin's name, the function, and the arguments that it wants.
        self.observers: Callable[[str], Iterable[tuple[str, Callable[..., None], Sequence[str]]]] = lambda _: ()

    def config(self) -> Config:
        """The configuration that is in force."""
        return self._config

    def fields(self) -> dict[str, Fields]:
        """What may be asked for through the spool: verbs, and the fields of each."""
        return {name: verb.fields for name, verb in self.verbs.items()}

    def settings(self, name: str, model: type[M]) -> M:
        """The settings of `[plugins.<name>]` that are in force, checked by a pydantic model. Ask again each time: they may be others by then.

        Raises ConfigError where they do not fit; a configuration that comes later and does not fit is not taken over.
        """
        if self._models.setdefault(name, model) is not model:
            raise PluginError(f"settings: `{name}` has another model already")
        return _checked(name, model, self._config)

    # -- what a feature may do -------------------------------------------------------------------------------------

    def post(self, *items: Any) -> None:  # noqa: ANN401 - facts, and reports of any kind that was added
        """Hand facts or reports to the engine, for a later step. From the engine's thread only; sources `tell`."""
        self._post(items)

    def execute(self, step: Step, event: Event, action: Action, handler: str | None = None) -> None:
        """Record and apply another action of the same event, inside the transaction."""
        self._execute(step, event, action, step.handler if handler is None else handler)

    def answer(self, request: str | None, exit_code: int, text: str) -> None:
        """Reply to a request, where there is one: the command that asked ends with this exit code and these words."""
        answer(self.ledger, request, exit_code, text)

    def settle(self, step: Step, action: int, done: Done) -> None:
        """Record what came of an effect whose function returned None."""
        self._settle(step, action, done)

    def route(self, router: Router) -> None:
        """Ask other handlers from now on."""
        self._route(router)

    def provide(self, *faces: object) -> None:
        """Let features that come later find these by their class: a feature's face, or what the machine around offers."""
        for face in faces:
            self._faces[type(face)] = face

    def need(self, face: type[F]) -> F:
        """The face of another feature. Raises PluginError where it is left out."""
        found = self.find(face)
        if found is None:
            raise MissingError(str(getattr(face, "name", face.__name__)))
        return found

    def find(self, face: type[F]) -> F | None:
        """The same; None where it is left out."""
        for known in self._faces.values():
            if isinstance(known, face):
                return known
        return None

    # -- what a feature may add ------------------------------------------------------------------------------------

    def add_action(self, kind: type[A], apply: Apply[A]) -> None:
        """What a handler may ask for: `apply(step, event, action)` decides inside the transaction what comes of it."""
        if not (isinstance(kind, type) and issubclass(kind, Action)):
            raise PluginError(f"add_action: {kind!r} is no class of actions; derive it from aipass.Action")
        check_fields(kind)
        check_signature(apply, ("step", "event", "action"), f"add_action({kind.__name__})")
        if any(known.__name__ == kind.__name__ for known in self.actions):
            raise PluginError(f"add_action: there is an action {kind.__name__} already; choose another name")
        self.actions[kind] = apply

    def add_effect(self, name: str, do: Do, settled: Settled | None = None) -> None:
        """What an action may want of the world. `do(pending)` may be called a second time after a crash, for something half done."""
        check_signature(do, ("pending",), f"add_effect({name})")
        if settled is not None:
            check_signature(settled, ("step", "pending", "done"), f"add_effect({name}), settled")
        _add(self.effects, name, (do, settled), "effect")

    def add_verb(self, verb: Verb) -> None:
        """What may be asked for through the spool. One that does not say who may ask is for people."""
        check_signature(verb.handle, ("request",), f"add_verb({verb.name})")
        if not isinstance(verb.authority, Authority):
            check_signature(verb.authority, ("fields",), f"add_verb({verb.name}), authority")
        _add(self.verbs, verb.name, verb, "verb")

    def add_report(self, kind: type[R], take: Callable[[Step, R], None]) -> None:
        """What threads and effects tell the engine: instances of `kind` come to `take(step, report)`, inside the transaction."""
        check_signature(take, ("step", "report"), f"add_report({kind.__name__})")
        _add(self.reports, kind, take, "report")

    def add_timer(self, prefix: str, due: Callable[[Step, str], None]) -> None:
        """Timers of the engine's heap whose key begins with `prefix:`: `due(step, rest)` is called when one has come due."""
        check_signature(due, ("step", "rest"), f"add_timer({prefix})")
        if not prefix.isidentifier():
            raise PluginError(f"add_timer: `{prefix}` is no name; letters, digits and `_` make one")
        _add(self.due, prefix, self._safe(due), "timer")

    def add_listener(self, kinds: Iterable[str], listen: Listen) -> None:
        """Called inside the transaction for each event of these kinds (`*` matches any), before handlers see it."""
        check_signature(listen, ("step", "event"), "add_listener")
        self.listeners.append((_kinds(kinds), self._safe(listen)))

    def add_fact_filter(self, kinds: Iterable[str], change: ChangeFact) -> None:
        """Called before a fact of these kinds is recorded: returns it, changed or not, or None where it is not to be recorded."""
        check_signature(change, ("step", "fact"), "add_fact_filter")
        self.fact_filters.append((_kinds(kinds), self._safe(change, lambda *given: given[1])))

    def add_step(
        self,
        begin: Callable[[Step], None] | None = None,
        end: Callable[[Step], None] | None = None,
    ) -> None:
        """Called in every step: `begin` before its transaction, `end` in it when all is recorded, the first feature's first."""
        if begin is not None:
            check_signature(begin, ("step",), "add_step, begin")
            self.begins.append(self._safe(begin))
        if end is not None:
            check_signature(end, ("step",), "add_step, end")
            self.ends.append(self._safe(end))

    def add_source(self, source: Source, *, never_waits: bool = False, last: bool = False) -> None:
        """Something that observes, started with the engine. `never_waits`: what it tells is little, and somebody waits for it. `last`: begun
        when all others have, and waited for until it has looked at all.
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
        """Called once: `start` in the engine's first transaction, `ready` when that is done and all sources but the filesystem observe, `stop` at the end."""
        if start is not None:
            check_signature(start, ("step",), "add_start, start")
            self.starts.append(self._safe(start))
        self.ready += [self._safe(ready)] if ready is not None else []
        self.stops += [stop] if stop is not None else []

    def add_run_hook(self, hook: RunHook) -> None:
        """Have a say when runs start and end: derive from `RunHook`."""
        if not isinstance(hook, RunHook):
            raise PluginError(f"add_run_hook: {hook!r} is no RunHook; derive its class from aipass.RunHook")
        self.run_hooks.append(GuestHook(hook, self) if self._is_guest else hook)

    def add_prompt_part(self, order: int, part: Callable[[PromptWork], str]) -> None:
        """Something that is said in prompts behind what was asked: the smaller `order` first; an empty text says nothing."""
        check_signature(part, ("work",), "add_prompt_part")
        self.prompt_parts.append((order, self._safe(part, lambda *_: "")))
        self.prompt_parts.sort(key=lambda one: one[0])

    def look_again(self, step: Step) -> None:
        """Have what was turned away seen anew: what met a handler that was disabled may be welcome now."""
        for look in self.look_agains:
            look(step)

    def add_view(self, name: str, view: Any) -> None:  # noqa: ANN401 - a function, or an object
        """What handlers may ask: `view.name(…)`, or `view["name"]`. It changes nothing."""
        if not name.isidentifier() or name in {"now", "setting"}:
            raise PluginError(f"add_view: `{name}` cannot be the name of a view")
        _add(self.views, name, view, "view")

    def add_config_check(self, check: Callable[[Config], None]) -> None:
        """Called before a configuration is taken over: raises ConfigError where the feature cannot work with it."""
        check_signature(check, ("config",), "add_config_check")
        self.config_checks.append(check)

    def add_reconfigure(
        self,
        during: Callable[[Step], None] | None = None,
        after: Callable[[Instant], None] | None = None,
    ) -> None:
        """Called when another configuration is taken over: `during` in the transaction, `after` when that is committed."""
        for function, wanted in ((during, ("step",)), (after, ("now",))):
            if function is not None:
                check_signature(function, wanted, "add_reconfigure")
        self.reconfigures.append((self._safe(during or _nothing), self._safe(after or _nothing)))

    def add_memory(self, load: Callable[[Instant], None]) -> None:
        """Called at the start and after a transaction that failed: bring what is kept in memory to what the ledger says."""
        check_signature(load, ("now",), "add_memory")
        self.loads.append(self._safe(load))

    def add_status(
        self, name: str, gather: Callable[[Ledger], Any], show: Callable[[Any], Sequence[str]]
    ) -> None:
        """A part of `aipass status`: `gather(ledger)` what JSON holds, from a ledger that is only read; `show` of that, in lines for people."""
        check_signature(gather, ("ledger",), f"add_status({name}), gather")
        check_signature(show, ("found",), f"add_status({name}), show")
        _add(self.status, name, (gather, show), "part of the status")

    def add_idle_check(self, is_idle: Callable[[], bool]) -> None:
        """Whether nothing of the feature is queued, running or due: `aipass up --until-idle` waits for all."""
        check_signature(is_idle, (), "add_idle_check")
        self.idle_checks.append(self._safe(is_idle, lambda: True))

    def add_prune(self, prune: Callable[[float], int]) -> None:
        """Called once a day with a moment (seconds since the epoch): remove what is older; returns how much was removed."""
        check_signature(prune, ("before",), "add_prune")
        self.prunes.append(prune)

    def _safe(self, function: A2, otherwise: Callable[..., Any] = _nothing) -> A2:
        """A plugin's function, guarded: what it raises keeps nothing else from being done. Ours as it is: its bug is one of the step's."""
        return cast("A2", guarded(function, self, otherwise)) if self._is_guest else function

    def _check_settings(self, config: Config) -> None:
        for name, model in self._models.items():
            _checked(name, model, config)

    # -- the engine's own ------------------------------------------------------------------------------------------

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """For a plugin: take back all that it adds inside by `add_…` where it raises, and guard each function of it."""
        self._is_guest = True
        places = [vars(one) for one in (self, self.ledger, *self._faces.values()) if hasattr(one, "__dict__")]
        # In place: others hold the same lists.
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
        """The engine takes its place."""
        self._post, self._execute, self._settle, self._route = post, execute, settle, route

    def take_over(self, config: Config) -> None:
        """Inside the transaction: another configuration is in force, and stays so when that is committed."""
        if self._before is None:
            self._before = self._config
        self._config = config

    def keep(self) -> None:
        """The transaction is committed."""
        self._before = None

    def take_back(self) -> None:
        """The transaction has failed: what was in force before it is so still."""
        if self._before is not None:
            self._config, self._before = self._before, None


class Switch(Protocol):
    """Who remembers which handlers are disabled."""

    def why(self, handler: str) -> str | None:
        """Why a handler is disabled."""
        ...

    def disable(self, handler: str, reason: str, now: Instant) -> bool:
        """Skip a handler from now on; whether that is news."""
        ...


class NoSwitch:
    """Nothing is ever disabled."""

    def why(self, handler: str) -> str | None:
        """Never."""
        del handler
        return None

    def disable(self, handler: str, reason: str, now: Instant) -> bool:
        """Never."""
        del handler, reason, now
        return False


def by_kind(entries: Iterable[tuple[tuple[str, ...], R]], kind: str) -> tuple[R, ...]:
    """Those of `entries` that want events of this kind, in order."""
    return tuple(one for kinds, one in entries if any(fnmatchcase(kind, wanted) for wanted in kinds))


def _checked(name: str, model: type[M], config: Config) -> M:
    try:
        return model.model_validate(config.plugins.get(name, {}))
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(["plugins", name, *map(str, first["loc"])])
        raise ConfigError(f"aipass.toml: {where}: {first['msg']}") from exc


def _kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    return (kinds,) if isinstance(kinds, str) else tuple(kinds)


def _add(known: dict[Any, R], name: Any, value: R, what: str) -> None:  # noqa: ANN401 - a name, or a class
    if name in known:
        raise PluginError(
            f"there is a {what} `{getattr(name, '__name__', name)}` already; choose another name"
        )
    known[name] = value


def _nobody(*_: object) -> None:
    raise RuntimeError("the engine is not there yet: `setup` only adds")
