"""The plugin registry: finds, loads and checks plugins. One that does not fit its hook is refused, with its signature shown."""

from __future__ import annotations

import importlib.metadata
import inspect
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pluggy

from aipass import hookspecs
from aipass.config.model import LOCAL
from aipass.core.router import Handler, Router
from aipass.errors import PluginError
from aipass.event import KINDS
from aipass.features.dispatch.driver import check_driver
from aipass.features.git.forge import Forge
from aipass.features.memory.index import SemanticIndex
from aipass.features.ownership import guarded
from aipass.sources import check_source
from aipass.text.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from aipass.config.model import Config
    from aipass.core.registry import Core
    from aipass.features.dispatch.driver import Driver
    from aipass.sources import Source

ENTRY_POINT_GROUP = "aipass"
#: Our own plugins: the first group decides policy, the second adapts to other programs. They are listed here and not found
#: by entry points, so that an installation with damaged or old metadata still has its inbox and its rules.
BUILT_IN = {
    **{
        name: f"aipass_handlers.{name}" for name in ("answers", "configuration", "inbox", "plans", "prs", "rules")
    },
    **{
        name: f"aipass_plugins.{name}"
        for name in (
            "claude", "codex", "command", "embeddings", "forges", "gemini", "llm", "opencode", "secrets",
        )
    },
}  # fmt: skip
#: Origin of a plugin that is registered as an object, such as by the test kit, and of those in this package.
HERE, OURS = "here", "aipass-engine"


class Plugins:
    """The registered plugins and what they offer. Not thread-safe but for `find_secrets`.

    `failed`: the plugins that could not be used, by name, with the reason. `origin`: the distribution of each plugin.
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager("aipass")
        self._manager.add_hookspecs(hookspecs)
        self.failed: dict[str, str] = {}
        self.origin: dict[str, str] = {}
        self._drivers: dict[str, Driver] | None = None

    @property
    def hook(self) -> Any:  # noqa: ANN401 - pluggy builds the relay's attributes from the specs
        """pluggy's relay: `hook.<name>(…)` calls that hook of every plugin and returns a list of results."""
        return self._manager.hook

    def load_installed(self, root: Path | None, only: str | None = None) -> None:
        """Register our own plugins and those installed under the entry point group.

        `only`: load only the plugins of this distribution. A plugin that cannot be loaded is named in `failed`, with the
        reason; the others still work. The same happens to a plugin whose code is where agents of `root` can write (None:
        there is no root yet).
        """
        # Before the first import of a plugin: a plugin can import further modules by name, and an agent must not provide them.
        if root is not None:
            guarded.leave_out(str(root))
        if only in {None, OURS}:
            for name, module in BUILT_IN.items():
                self._load(root, name, module, partial(import_module, module), OURS)
        known: set[tuple[str, str]] = set()
        for point in sorted(
            importlib.metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name
        ):
            if only is not None and (point.dist is None or point.dist.name != only):
                continue
            origin = point.dist.name if point.dist else "?"
            # The same plugin from two distributions, such as the old and the new name of one; or the metadata of an older
            # version of ours, which still has entry points for the built-in plugins.
            if (point.name, point.value) in known or point.value in BUILT_IN.values() or origin == OURS:
                continue
            known.add((point.name, point.value))
            self._load(root, point.name, point.module, point.load, origin)

    def _load(
        self, root: Path | None, name: str, module: str, load: Callable[[], object], origin: str
    ) -> None:
        if root is not None and (place := guarded.code_of_agents(module, str(root))) is not None:
            self.failed[name] = (
                f"its code is in {place}, where agents can write, so it is not run; install it as a copy (without `-e`) outside the repository"
            )
            return
        try:
            self.register(load(), name, origin=origin)
        except PluginError as exc:
            self.failed[name] = str(exc)
        except Exception as exc:  # noqa: BLE001 - a third party's module may raise anything; it is shown, the rest works
            self.failed[name] = f"{module} cannot be imported: {type(exc).__name__}: {exc}"

    def register(self, plugin: object, name: str, origin: str = HERE) -> None:
        """Add one plugin, or raise PluginError and add nothing.

        An error is an unknown hook, a parameter that the hook does not pass, no hook at all, or a name that is taken.
        """
        implementations = self._implementations(plugin, name)
        if not implementations:
            raise PluginError(
                f"plugin `{name}`: {_where(plugin)} has no function marked with @hookimpl; hooks are: {', '.join(self.hooks())}"
            )
        try:
            self._manager.register(plugin, name)
            self._manager.check_pending()
        except (ValueError, pluggy.PluginValidationError) as exc:
            # `check_pending` fails after pluggy has registered the plugin. A taken name fails before, and belongs to another.
            if self._manager.get_plugin(name) is plugin:
                self._manager.unregister(plugin)
            raise PluginError(f"plugin `{name}`: {exc}") from exc
        self.origin[name] = origin
        self._drivers = None

    def leave_out(self, *names: str) -> None:
        """Unregister these of our own plugins. Other names, and those that are not registered, are ignored."""
        for name in names:
            if self.origin.get(name) == OURS and self._manager.has_plugin(name):
                self._manager.unregister(name=name)

    def hooks(self) -> list[str]:
        """Names of all hooks, in the order of `hookspecs`."""
        return [name for name, value in vars(hookspecs).items() if hasattr(value, "aipass_spec")]

    def names(self) -> list[str]:
        """Names of the registered plugins."""
        return [name for name, plugin in self._manager.list_name_plugin() if plugin is not None]

    def uses(self, name: str) -> list[str]:
        """Names of the hooks that a plugin implements."""
        return [caller.name for caller in self._manager.get_hookcallers(self._manager.get_plugin(name)) or []]

    def kinds(self) -> dict[str, str]:
        """All kinds of events with their meaning, the engine's and the plugins'. A plugin whose kinds do not fit is left out."""
        kinds = dict(KINDS)
        for name, offers in self._offered("register_kinds"):
            with self._left_out_if_unfit(name):
                new: dict[str, str] = {}
                for offered in offers:
                    if not isinstance(offered, dict):
                        raise PluginError(
                            f"register_kinds returned {offered!r}; it returns a dict of name and meaning"
                        )
                    for kind, meaning in offered.items():
                        if kind in kinds or kind in new:
                            raise PluginError(
                                f"the event kind `{kind}` already exists ({(kinds | new)[kind]}); choose another name"
                            )
                        new[kind] = meaning
                kinds |= new
        return kinds

    def drivers(self) -> dict[str, Driver]:
        """All drivers by name. The hook is called once; the result is kept until the registered plugins change."""
        if self._drivers is None:
            drivers: dict[str, Driver] = {}
            for name, offers in self._offered("register_drivers"):
                with self._left_out_if_unfit(name):
                    new: dict[str, Driver] = {}
                    for driver in _flat(offers, "register_drivers"):
                        check_driver(driver)
                        if (other := drivers.get(driver.name) or new.get(driver.name)) is not None:
                            raise PluginError(
                                f"two drivers are named `{driver.name}`: {_where(other)} and {_where(driver)}"
                            )
                        new[driver.name] = driver
                    drivers |= new
            self._drivers = drivers
        return self._drivers

    def forges(self) -> dict[str, Forge]:
        """All forges by name. The hook is called each time."""
        forges: dict[str, Forge] = {}
        for name, offers in self._offered("register_forges"):
            with self._left_out_if_unfit(name):
                new: dict[str, Forge] = {}
                for forge in _flat(offers, "register_forges"):
                    if not isinstance(forge, Forge):
                        raise PluginError(
                            f"register_forges returned {forge!r}, which is not a forge: docs/pull-requests.md describes the interface"
                        )
                    if forge.name in {*forges, *new, LOCAL}:
                        raise PluginError(f"two forges are named `{forge.name}`; choose another name")
                    new[forge.name] = forge
                forges |= new
        return forges

    def find_secrets(self, text: str) -> list[Secret]:
        """What plugins find in a text. Can be called from any thread."""
        return [Secret(*found) for found in _flat(self.hook.find_secrets(text=text), "find_secrets")]

    def meanings(self, config: Config, folder: Path) -> list[SemanticIndex]:
        """The semantic indexes of plugins; `folder` is where they keep their files.

        Raises PluginError for an object that is not an index.
        """
        found: list[SemanticIndex] = []
        for meaning in _flat(self.hook.register_meanings(config=config, folder=folder), "register_meanings"):
            if not isinstance(meaning, SemanticIndex):
                raise PluginError(
                    f"register_meanings returned {meaning!r}, which is not an index: docs/memory.md describes the interface"
                )
            found.append(meaning)
        return found

    def observers(self, hook: str) -> list[tuple[str, Callable[..., None], Sequence[str]]]:
        """The implementations of an observing hook: name of the plugin, function, names of the arguments that it declares."""
        return [
            (one.plugin_name, one.function, one.argnames)
            for one in getattr(self._manager.hook, hook).get_hookimpls()
        ]

    def set_up(self, core: Core) -> None:
        """Call `setup` of every plugin. If one raises, everything that it added is removed, and the plugin is left out."""
        # pluggy lists the implementation that it calls last first.
        called = reversed(self._manager.hook.setup.get_hookimpls())
        for one in sorted(called, key=lambda one: self.origin.get(one.plugin_name) != OURS):
            with self._left_out_if_unfit(one.plugin_name), core.all_or_nothing():
                one.function(core)

    def router(self, config: Config, first: Sequence[Handler] = ()) -> Router:
        """A router of all handlers under this configuration: those of `first`, then the plugins' in the order of calls."""
        kinds, of = self.kinds(), dict[str, list[Handler]]()
        for name, offers in self._offered("register_handlers", config=config):
            with self._left_out_if_unfit(name):
                new = list(_flat(offers, "register_handlers"))
                for handler in new:
                    if not isinstance(handler, Handler):
                        raise PluginError(
                            f"register_handlers returned {handler!r}; it returns aipass.Handler objects"
                        )
                # Built only to raise here, so that an unknown kind or a taken name is the fault of this one plugin.
                Router([*first, *(one for handlers in of.values() for one in handlers), *new], kinds)
                of[name] = new
        # `_offered` asks our own plugins first. Handlers must run in pluggy's order, which a plugin can choose (`tryfirst`).
        called = [one.plugin_name for one in reversed(self._manager.hook.register_handlers.get_hookimpls())]
        return Router([*first, *(handler for name in called for handler in of.get(name, ()))], kinds)

    def sources(self, root: Path, config: Config) -> list[Source]:
        """The sources of all plugins, checked but not started."""
        sources: list[Source] = []
        for name, offers in self._offered("register_sources", root=str(root), config=config):
            with self._left_out_if_unfit(name):
                new = list(_flat(offers, "register_sources"))
                for source in new:
                    check_source(source)
                sources += new
        return sources

    def _offered(self, hook: str, **given: object) -> Iterator[tuple[str, list[Any]]]:
        """The result of each plugin for a hook, with the plugin's name. A third-party plugin that raises is left out."""
        # Ours first: if two plugins choose one name, the conflict is then reported for the plugin that is not ours.
        called = reversed(getattr(self._manager.hook, hook).get_hookimpls())
        for one in sorted(called, key=lambda one: self.origin.get(one.plugin_name) != OURS):
            answer = None
            with self._left_out_if_unfit(one.plugin_name):
                answer = one.function(*(given[name] for name in one.argnames))
            if answer is not None:
                yield one.plugin_name, [answer]

    @contextmanager
    def _left_out_if_unfit(self, name: str) -> Iterator[None]:
        """Unregister a third-party plugin that raises inside, and name it in `failed`. Errors of all other plugins propagate."""
        try:
            yield
        except Exception as exc:
            # A built-in plugin that fails is a bug of ours. One given as an object is under test, and its author wants to see
            # the error.
            if self.origin.get(name, HERE) in (HERE, OURS):
                raise
            words = str(exc) if isinstance(exc, PluginError) else f"{type(exc).__name__}: {exc}"
            self._manager.unregister(name=name)
            self.failed[name] = f"{words} (package {self.origin[name]})"
            self._drivers = None

    def _implementations(self, plugin: object, name: str) -> list[str]:
        found = []
        for attribute in dir(plugin):
            method = getattr(plugin, attribute, None)
            if not inspect.isroutine(method) or not hasattr(method, "aipass_impl"):
                continue
            spec = getattr(hookspecs, attribute, None)
            shown = f"{_where(method)}{inspect.signature(method)}"
            if spec is None or not hasattr(spec, "aipass_spec"):
                raise PluginError(
                    f"plugin `{name}`: {shown} names no hook; hooks are: {', '.join(self.hooks())}"
                )
            wanted = list(inspect.signature(spec).parameters)
            unknown = [arg for arg in inspect.signature(method).parameters if arg not in wanted]
            if unknown:
                raise PluginError(
                    f"plugin `{name}`: {shown} takes `{unknown[0]}`, which {attribute}({', '.join(wanted)}) does not give"
                )
            found.append(attribute)
        return found


def _flat(results: Iterable[Any], hook: str) -> Iterable[Any]:
    for result in results:
        # A string or a dict can be iterated as well: each letter or key would be reported as a wrong result.
        if isinstance(result, (str, bytes, dict)) or not hasattr(result, "__iter__"):
            raise PluginError(f"{hook} returned {result!r}; it returns a list")
        yield from result


def _where(thing: object) -> str:
    named = thing if hasattr(thing, "__qualname__") or inspect.ismodule(thing) else type(thing)
    module = getattr(named, "__module__", None)
    name = getattr(named, "__qualname__", getattr(named, "__name__", repr(named)))
    return f"{module}.{name}" if module else name
