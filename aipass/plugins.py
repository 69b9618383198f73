"""Plugins found, registered and checked: whatever does not fit its hook is refused with its own signature shown."""

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
#: Our own, by name: handlers are policy, the others adapt to the outside. They are named here, so that an installation whose metadata is
#: damaged, or of another version, has an inbox all the same.
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
#: Where plugins come from that are given as objects, as by the test kit, and those that are in this package.
HERE, OURS = "here", "aipass-engine"


class Plugins:
    """The registered plugins and what they offer. `failed` names those that could not be loaded, with the reason."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager("aipass")
        self._manager.add_hookspecs(hookspecs)
        self.failed: dict[str, str] = {}
        self.origin: dict[str, str] = {}
        self._drivers: dict[str, Driver] | None = None

    @property
    def hook(self) -> Any:  # noqa: ANN401 - pluggy builds the relay's attributes from the specs
        """Calls a hook of every plugin."""
        return self._manager.hook

    def load_installed(self, root: Path | None, only: str | None = None) -> None:
        """Register our own plugins, and whatever else is installed under the entry point group; or `only` what one distribution brings.

        A plugin that cannot be loaded is named in `failed`, with the reason; the others work. So is one whose code lies where agents
        of `root` may write (None: there is no root yet), and nothing is imported from there any more.
        """
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
            if (point.name, point.value) in known or point.value in BUILT_IN.values() or origin == OURS:
                continue  # two distributions that are one, such as before and after a new name; or what an older version of ours has left
            known.add((point.name, point.value))
            self._load(root, point.name, point.module, point.load, origin)

    def _load(
        self, root: Path | None, name: str, module: str, load: Callable[[], object], origin: str
    ) -> None:
        if root is not None and (place := guarded.code_of_agents(module, str(root))) is not None:
            self.failed[name] = (
                f"its code lies in {place}, where agents may write, and is not run; install it as a copy (without `-e`) outside the repository"
            )
            return
        try:
            self.register(load(), name, origin=origin)
        except PluginError as exc:
            self.failed[name] = str(exc)
        except Exception as exc:  # noqa: BLE001 - a third party's module may raise anything; it is shown, the rest works
            self.failed[name] = f"{module} cannot be imported: {type(exc).__name__}: {exc}"

    def register(self, plugin: object, name: str, origin: str = HERE) -> None:
        """Add one plugin.

        Raises PluginError for an unknown hook, a wrong argument or a name that is taken.
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
            if self._manager.get_plugin(name) is plugin:
                self._manager.unregister(plugin)
            raise PluginError(f"plugin `{name}`: {exc}") from exc
        self.origin[name] = origin
        self._drivers = None

    def leave_out(self, *names: str) -> None:
        """Do without these of our own plugins."""
        for name in names:
            if self.origin.get(name) == OURS and self._manager.has_plugin(name):
                self._manager.unregister(name=name)

    def hooks(self) -> list[str]:
        """Names of all hooks."""
        return [name for name, value in vars(hookspecs).items() if hasattr(value, "aipass_spec")]

    def names(self) -> list[str]:
        """Names of the registered plugins."""
        return [name for name, plugin in self._manager.list_name_plugin() if plugin is not None]

    def uses(self, name: str) -> list[str]:
        """Names of the hooks that a plugin implements."""
        return [caller.name for caller in self._manager.get_hookcallers(self._manager.get_plugin(name)) or []]

    def kinds(self) -> dict[str, str]:
        """All kinds of events, the engine's and the plugins'."""
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
                                f"the event kind `{kind}` exists already ({(kinds | new)[kind]}); choose another name"
                            )
                        new[kind] = meaning
                kinds |= new
        return kinds

    def drivers(self) -> dict[str, Driver]:
        """All drivers by name."""
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
        """All drivers of forges by name."""
        forges: dict[str, Forge] = {}
        for name, offers in self._offered("register_forges"):
            with self._left_out_if_unfit(name):
                new: dict[str, Forge] = {}
                for forge in _flat(offers, "register_forges"):
                    if not isinstance(forge, Forge):
                        raise PluginError(
                            f"register_forges returned {forge!r}, which is no driver of a forge: docs/pull-requests.md says what one has"
                        )
                    if forge.name in {*forges, *new, LOCAL}:
                        raise PluginError(
                            f"two drivers of forges are named `{forge.name}`; choose another name"
                        )
                    new[forge.name] = forge
                forges |= new
        return forges

    def find_secrets(self, text: str) -> list[Secret]:
        """What plugins find in a text."""
        return [Secret(*found) for found in _flat(self.hook.find_secrets(text=text), "find_secrets")]

    def meanings(self, config: Config, folder: Path) -> list[SemanticIndex]:
        """The indexes that find by meaning."""
        found: list[SemanticIndex] = []
        for meaning in _flat(self.hook.register_meanings(config=config, folder=folder), "register_meanings"):
            if not isinstance(meaning, SemanticIndex):
                raise PluginError(
                    f"register_meanings returned {meaning!r}, which is no index: docs/memory.md says what one has"
                )
            found.append(meaning)
        return found

    def observers(self, hook: str) -> list[tuple[str, Callable[..., None], Sequence[str]]]:
        """Who implements a hook that observes: the plugin's name, the function, and the arguments that it wants."""
        return [
            (one.plugin_name, one.function, one.argnames)
            for one in getattr(self._manager.hook, hook).get_hookimpls()
        ]

    def set_up(self, core: Core) -> None:
        """Let plugins add features of their own to the engine. What one adds that does not fit is taken back, and it is left out."""
        called = reversed(self._manager.hook.setup.get_hookimpls())
        for one in sorted(called, key=lambda one: self.origin.get(one.plugin_name) != OURS):
            with self._left_out_if_unfit(one.plugin_name), core.all_or_nothing():
                one.function(core)

    def router(self, config: Config, first: Sequence[Handler] = ()) -> Router:
        """A router of all handlers as they are with this configuration, those of `first` before the plugins'."""
        kinds, of = self.kinds(), dict[str, list[Handler]]()
        for name, offers in self._offered("register_handlers", config=config):
            with self._left_out_if_unfit(name):
                new = list(_flat(offers, "register_handlers"))
                for handler in new:
                    if not isinstance(handler, Handler):
                        raise PluginError(
                            f"register_handlers returned {handler!r}; it returns aipass.Handler objects"
                        )
                Router([*first, *(one for handlers in of.values() for one in handlers), *new], kinds)
                of[name] = new
        called = [one.plugin_name for one in reversed(self._manager.hook.register_handlers.get_hookimpls())]
        return Router([*first, *(handler for name in called for handler in of.get(name, ()))], kinds)

    def sources(self, root: Path, config: Config) -> list[Source]:
        """The plugins' own sources."""
        sources: list[Source] = []
        for name, offers in self._offered("register_sources", root=str(root), config=config):
            with self._left_out_if_unfit(name):
                new = list(_flat(offers, "register_sources"))
                for source in new:
                    check_source(source)
                sources += new
        return sources

    def _offered(self, hook: str, **given: object) -> Iterator[tuple[str, list[Any]]]:
        """What each plugin answers to a hook, by its name: ours first, so that a name which is taken is another's fault; then in the order
        in which they are called. One of a third party's that raises is left out.
        """
        called = reversed(getattr(self._manager.hook, hook).get_hookimpls())
        for one in sorted(called, key=lambda one: self.origin.get(one.plugin_name) != OURS):
            answer = None
            with self._left_out_if_unfit(one.plugin_name):
                answer = one.function(*(given[name] for name in one.argnames))
            if answer is not None:
                yield one.plugin_name, [answer]

    @contextmanager
    def _left_out_if_unfit(self, name: str) -> Iterator[None]:
        """Leave a plugin out that does not fit, where it is neither ours nor being tried by its author: the others work."""
        try:
            yield
        except Exception as exc:
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
        if isinstance(result, (str, bytes, dict)) or not hasattr(result, "__iter__"):
            raise PluginError(f"{hook} returned {result!r}; it returns a list")
        yield from result


def _where(thing: object) -> str:
    named = thing if hasattr(thing, "__qualname__") or inspect.ismodule(thing) else type(thing)
    module = getattr(named, "__module__", None)
    name = getattr(named, "__qualname__", getattr(named, "__name__", repr(named)))
    return f"{module}.{name}" if module else name
