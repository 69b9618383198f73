"""The hooks of the plugin API, in the order of an engine's life. There are no others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from aipass.config.model import Config
    from aipass.core.notices import Notice
    from aipass.core.registry import Core
    from aipass.core.router import Handler
    from aipass.event import Event
    from aipass.features.dispatch.driver import Driver
    from aipass.features.git.forge import Forge
    from aipass.features.memory.index import SemanticIndex
    from aipass.sources import Source
    from aipass.text.secret import Secret

hookspec = pluggy.HookspecMarker("aipass")
hookimpl = pluggy.HookimplMarker("aipass")


@hookspec
def register_kinds() -> dict[str, str]:  # type: ignore[empty-body]
    """Event kinds that this plugin's sources or handlers emit: name and one line of meaning.

    Called whenever handlers are registered or the configuration is checked: return the same each time. A kind that already
    exists is an error.
    """


@hookspec
def register_drivers() -> Iterable[Driver]:  # type: ignore[empty-body]
    """Drivers; each one runs one CLI. Called once at start; two drivers with the same name are an error."""


@hookspec
def register_sources(root: str, config: Config) -> Iterable[Source]:  # type: ignore[empty-body]
    """Sources of events. Called at start with the path of the root.

    If a source raises in `start`, the engine reports it as `handler.failed` and works without that source.
    """


@hookspec
def register_forges() -> Iterable[Forge]:  # type: ignore[empty-body]
    """Forges: services that show and merge PRs as well. May be called several times; two forges with the same name are an error."""


@hookspec
def find_secrets(text: str) -> Iterable[Secret]:  # type: ignore[empty-body]
    """The parts of a text that look like keys or passwords.

    Called for each file of a PR in a worker thread, and for messages, questions and notes in the engine's thread. The
    engine waits in the second case, so the time must not grow faster than the length of the text.
    """


@hookspec
def register_meanings(config: Config, folder: Path) -> Iterable[SemanticIndex]:  # type: ignore[empty-body]
    """Semantic indexes: they search memories by meaning, in addition to the search by words.

    Called when an engine starts, and by `aipass recall`. `folder`: a place for the files of the index; each ledger has
    its own.
    """


@hookspec
def setup(core: Core) -> None:
    """Adds a feature of the plugin: actions, request verbs, timers, tables, and everything else that `core.add_…` accepts.

    Called when an engine starts, after the built-in features, and by verbs that only ask (`aipass show`, `aipass status`). It must have no side effects outside `core`: no
    files, no processes. If it raises, the engine reports the error and removes everything that this call added.
    """


@hookspec
def register_handlers(config: Config) -> Iterable[Handler]:  # type: ignore[empty-body]
    """Handlers: pure functions from an event to actions. Called at start and after each change of aipass.toml."""


@hookspec
def after_event(event: Event) -> None:
    """Observes an event after the commit. Runs in the engine's thread, so it must return quickly. Exceptions are logged."""


@hookspec
def after_notice(text: str, notice: Notice) -> None:
    """Delivers a notice (notification) to a person by desktop, phone or chat. Declare `text`, `notice`, or both.

    Called after the commit, in one separate thread, one notice after the other: a slow call delays only other notices.
    Exceptions are logged. `notice.about` is the subject, to filter by.
    """
