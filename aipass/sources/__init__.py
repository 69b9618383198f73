"""The interface of event sources: a source observes and reports facts; it never decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from aipass.errors import PluginError
from aipass.signature import check_signature

#: Passes a batch of facts (`aipass.Fact`) to the engine. Callable from any thread; blocks while the engine is far behind (backpressure).
Tell = Callable[[list[Any]], None]


@runtime_checkable
class Source(Protocol):
    """One origin of events; each of its events has the source's `name`.

    Optional attribute `urgent = True`: for a source with few facts that a person waits for. `tell` never blocks it.
    """

    name: str

    def start(self, tell: Tell) -> None:
        """Begin to observe and return immediately. The engine calls this in its own thread."""
        ...

    def stop(self) -> None:
        """Stop observing and release every thread and file that `start` opened."""
        ...


def check_source(source: object) -> None:
    """Raise PluginError unless `source` has a name, `start(tell)` and `stop()` with these parameters."""
    if not isinstance(source, Source):
        raise PluginError(f"{source!r} is not a source: it needs `name`, `start(tell)` and `stop()`")
    # A Protocol that is checked at run time compares names only, never parameters.
    check_signature(source.start, ("tell",), f"source `{source.name}`, start")
    check_signature(source.stop, (), f"source `{source.name}`, stop")
