"""Where facts come from. A source observes and tells; it never decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from aipass.errors import PluginError
from aipass.signature import check_signature

#: Hands a batch of facts (`aipass.Fact`) to the engine. May be called from any thread; waits where the engine is far behind.
Tell = Callable[[list[Any]], None]


@runtime_checkable
class Source(Protocol):
    """One origin of events, with a name that the events carry.

    Besides it may have `urgent = True`: what it tells is little, and somebody waits for it, so `tell` never makes it wait.
    """

    name: str

    def start(self, tell: Tell) -> None:
        """Begin to observe; return at once. Called in the engine's thread."""
        ...

    def stop(self) -> None:
        """End all that `start` began."""
        ...


def check_source(source: object) -> None:
    """Raise PluginError unless `source` has what a Source has."""
    if not isinstance(source, Source):
        raise PluginError(f"{source!r} is no source: it needs `name`, `start(tell)` and `stop()`")
    check_signature(source.start, ("tell",), f"source `{source.name}`, start")
    check_signature(source.stop, (), f"source `{source.name}`, stop")
