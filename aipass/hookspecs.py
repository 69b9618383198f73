"""Every place where a plugin can join in, in the order of an engine's life. The only file of its kind."""

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
    """Event kinds that this plugin's source or handlers tell: name and one line of meaning.

    Called once, before anything else. A kind that exists already is an error.
    """


@hookspec
def register_drivers() -> Iterable[Driver]:  # type: ignore[empty-body]
    """Drivers: how one CLI is run. Called once at start; two of one name are an error."""


@hookspec
def register_sources(root: str, config: Config) -> Iterable[Source]:  # type: ignore[empty-body]
    """Sources of events. Called at start with the root's path; a source that raises in `start` is told and left out."""


@hookspec
def register_forges() -> Iterable[Forge]:  # type: ignore[empty-body]
    """Where PRs are shown and merged besides here. Called once at start; two of one name are an error."""


@hookspec
def find_secrets(text: str) -> Iterable[Secret]:  # type: ignore[empty-body]
    """What in a text looks like a key or a password. Called for each file of a PR, in a thread beside the engine's."""


@hookspec
def register_meanings(config: Config, folder: Path) -> Iterable[SemanticIndex]:  # type: ignore[empty-body]
    """Indexes that find by meaning what is remembered, besides the search by words.

    Called when an engine starts, and by `aipass recall`. `folder`: where to keep what they make of texts; a new ledger has another.
    """


@hookspec
def setup(core: Core) -> None:
    """A feature of the plugin's own: actions, request verbs, timers, tables, and whatever else `core.add_…` takes.

    Called once when an engine starts, after the built-in features. Nothing is to be done in the world yet. What it raises is told, and all
    that it has added is taken back.
    """


@hookspec
def register_handlers(config: Config) -> Iterable[Handler]:  # type: ignore[empty-body]
    """Handlers: pure functions from event to actions. Called at start and after each change of aipass.toml."""


@hookspec
def after_event(event: Event) -> None:
    """Observes an event after it was committed, in the engine's thread: be quick. What it raises is logged."""


@hookspec
def after_notice(text: str, notice: Notice) -> None:
    """Delivers a notice to a person (desktop, phone, chat); name `text`, `notice`, or both.

    Called after it was committed, in a thread of its own: one after the other, and slow ones keep only other notices waiting. What it
    raises is logged. `notice.about` says what it is about, to filter by.
    """
