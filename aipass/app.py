"""The composition root: builds an engine from the built-in features, in their order, and those of plugins."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING

from aipass.clock import SystemClock
from aipass.config import model, reading
from aipass.core.accepting import Requests
from aipass.core.actions import Actions
from aipass.core.alarms import Alarms
from aipass.core.engine import Engine
from aipass.core.registry import Core, MissingError
from aipass.core.verbs import handlers
from aipass.errors import ConfigError
from aipass.features.dispatch.drivers import Drivers
from aipass.features.dispatch.feature import DispatchFeature
from aipass.features.dispatch.launcher import NoRunner
from aipass.features.filesystem.feature import FilesystemFeature
from aipass.features.git.feature import GitFeature
from aipass.features.git.forge import Forges
from aipass.features.inbox.feature import InboxFeature
from aipass.features.memory.feature import MemoryFeature
from aipass.features.memory.index import Indexes
from aipass.features.memory.indexer import memory_id
from aipass.features.messages.feature import MessagesFeature
from aipass.features.ownership.feature import OwnershipFeature
from aipass.features.plans.feature import PlansFeature
from aipass.features.reload.feature import ReloadFeature
from aipass.features.rules.feature import RulesFeature
from aipass.features.secrets.feature import SecretsFeature
from aipass.sources.home import Home
from aipass.text.secret import Mask, Secrets
from aipass.text.suggestion import nearest

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from aipass.clock import Clock
    from aipass.config.model import Config
    from aipass.core.registry import Feature
    from aipass.core.requests import Fields
    from aipass.features.dispatch.launcher import Runner
    from aipass.features.memory.index import SemanticIndex
    from aipass.ledger import Ledger
    from aipass.plugins import Plugins
    from aipass.workspace.layout import Layout

#: Key in the ledger's `meta` table: names of the plugins' parts of `aipass status`.
STATUS_PARTS = "status.parts"
#: The order of `setup`: the features of the core first, then each one after the features that it needs.
FEATURES: tuple[type[Feature], ...] = (
    Actions,
    Alarms,
    Requests,
    SecretsFeature,
    OwnershipFeature,
    DispatchFeature,
    FilesystemFeature,
    InboxFeature,
    RulesFeature,
    GitFeature,
    MemoryFeature,
    MessagesFeature,
    PlansFeature,
    ReloadFeature,
)


#: Features that `--without` refuses: without them the engine cannot work, or runs would not be sandboxed.
ALWAYS = frozenset(("actions", "alarms", "requests", "secrets", "ownership", "dispatch", "filesystem"))


def verbs() -> dict[str, Fields]:
    """The request verbs of the built-in features, with their fields, for `aipass schema`. Loads no plugin."""
    return {verb.name: verb.fields for feature in FEATURES for verb in getattr(feature, "verbs", ())}


def build(
    layout: Layout,
    ledger: Ledger,
    plugins: Plugins,
    config: Config,
    clock: Clock,
    runner: Runner,
    environ: Mapping[str, str],
    *,
    observes: bool = True,
    works: bool = True,
    without: Collection[str] = (),
) -> Engine:
    """An engine that is ready for `start`.

    `runner` starts processes. `environ` is what runs inherit. `observes`: whether sources watch the machine. `works`:
    whether slow work runs in threads. `without`: names of features to leave out, with the handlers that depend on them.
    Raises ConfigError if another feature needs one of them, or if the configuration names a driver, forge or event that
    no plugin provides.
    """
    core = _with_features(
        Core(layout, ledger, clock, config, environ, observes=observes, works=works),
        plugins,
        runner,
        plugins.meanings(config, layout.meaning(memory_id(ledger))),
        without,
    )
    if observes:
        core.add_source(Home(layout))
    for source in plugins.sources(layout.root, config):
        core.add_source(source)
    # Plugins after all features, so that a name or a verb that is already taken is the plugin's error, not ours.
    ours = set(core.status)
    plugins.set_up(core)
    for wrong in core.config_checks:
        wrong(config)
    with ledger.transaction():
        # `aipass status` loads plugins, which is slow, only if this says that one of them has a part in it.
        ledger.run("set_meta", {"key": STATUS_PARTS, "value": " ".join(core.status.keys() - ours)})
    return Engine(core, core.router_of(config))


def assemble(layout: Layout, ledger: Ledger, plugins: Plugins, config: Config) -> Core:
    """All features over a ledger that is only read, for questions about them. Starts no process, thread or source."""
    core = Core(layout, ledger, SystemClock(), config, {}, observes=False, works=False)
    _with_features(core, plugins, NoRunner(), ())
    plugins.set_up(core)
    return core


def _with_features(
    core: Core,
    plugins: Plugins,
    runner: Runner,
    meanings: Sequence[SemanticIndex],
    without: Collection[str] = (),
) -> Core:
    known = [feature.name for feature in FEATURES]
    for name in without:
        if name in ALWAYS:
            raise ConfigError(
                f"`{name}` cannot be left out; these can: {', '.join(sorted({*known} - ALWAYS))}"
            )
        if name not in known:
            near = nearest(name, known)
            raise ConfigError(f"there is no feature `{name}`{near}; the features are: {', '.join(known)}")
    find = plugins.find_secrets
    core.provide(Drivers(plugins.drivers(), runner), Forges(plugins.forges()), Secrets(find, Mask(find)))
    core.provide(Indexes(meanings))
    core.observers = plugins.observers
    # The core must not import the plugin manager. It gets the router and the check of a configuration as functions.
    core.router_of = lambda new: plugins.router(new, handlers(core.verbs))
    core.add_config_check(partial(check, plugins, core.layout))
    for feature in FEATURES:
        if feature.name in without:
            plugins.leave_out(*getattr(feature, "policy", ()))
            continue
        try:
            feature().setup(core)
        except MissingError as exc:
            left = ", ".join(without)
            raise ConfigError(
                f"{feature.name} needs {exc.face}, which is left out (--without {left})"
            ) from exc
    return core


def check(plugins: Plugins, layout: Layout, config: Config) -> None:
    """Raise ConfigError if no plugin provides the driver of an agent, the forge, or the event of a rule."""
    path, names = layout.config, sorted(plugins.drivers())
    for name, agent in config.agents.items():
        if agent.driver not in names:
            place = reading.place(path, "agents", name, "driver")
            near = nearest(agent.driver, names)
            raise ConfigError(
                f'{place}there is no driver "{agent.driver}"{near}; installed are: {", ".join(names)}'
            )
    known = [model.LOCAL, *sorted(plugins.forges())]
    if config.pr.forge not in known:
        place = reading.place(path, "pr", "forge")
        near = nearest(config.pr.forge, known)
        raise ConfigError(
            f'{place}there is no driver for the forge "{config.pr.forge}"{near}; installed are: {", ".join(known)}'
        )
    kinds = plugins.kinds()
    for number, rule in enumerate(config.on):
        if rule.event is not None and not any(fnmatchcase(kind, rule.event) for kind in kinds):
            place = reading.place(path, "on", number, "event")
            near = nearest(rule.event, kinds)
            there = near or f"; there are: {', '.join(sorted(kinds))}"
            raise ConfigError(f"{place}there is no event `{rule.event}`{there}")
