"""A whole engine on a test's bench: real ledger, real handlers, a virtual clock, scripted runs and scripted events."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from aipass import DISTRIBUTION, app
from aipass.config import reading
from aipass.core import requests as request
from aipass.core import state_folder
from aipass.event import Event, Fact
from aipass.features.inbox.feature import make_inboxes
from aipass.ledger import Ledger
from aipass.ledger.sqlite import event_of
from aipass.plugins import Plugins
from aipass.sources.observation import Gone, Seen, identity_of, type_of
from aipass.supervisor.fence.decide import Operation
from aipass.supervisor.fence.fenced import JOURNAL
from aipass.testing.clock import VirtualClock
from aipass.testing.runner import ScriptedRunner
from aipass.workspace.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from aipass.core.engine import Engine
    from aipass.ledger import Row

#: Between looks at what works in a thread of its own.
PAUSE_S = 0.001
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}


class Bench:
    """An engine that does nothing by itself. `root` is an empty folder, `toml` the text of aipass.toml.

    Events come in by `drop`, `tell` and `ask`; runs end by `finish`; time passes by `advance`. `whole`: with what works in
    threads of its own as well, git and PRs (`root` is a repository then), state files and mail; `settle` waits for it.
    `installed`: with the handlers and drivers that come with aipass. `without`: features that are left out.
    """

    def __init__(
        self,
        root: Path,
        toml: str,
        *plugins: object,
        environ: Mapping[str, str] | None = None,
        installed: bool = True,
        whole: bool = False,
        without: Collection[str] = (),
    ) -> None:
        self.layout = Layout(root.resolve())
        self.layout.config.write_text(toml)
        self._given, self._installed, self._whole, self._without = plugins, installed, whole, without
        self._environ = dict(ENVIRONMENT if environ is None else environ)
        self._working: list[Any] = []
        self.clock = VirtualClock()
        self.runner = ScriptedRunner()
        state_folder.make(self.layout)
        self.ledger = Ledger.open(self.layout.ledger)
        self.engine = self._make()

    def _make(self) -> Engine:
        settings = reading.load(self.layout.config)
        loaded = Plugins()
        if self._installed:
            loaded.load_installed(None, only=DISTRIBUTION)
        for number, plugin in enumerate(self._given, 1):
            loaded.register(plugin, getattr(plugin, "__name__", f"plugin-{number}"))
        make_inboxes(self.layout, settings)
        engine = app.build(
            self.layout,
            self.ledger,
            loaded,
            settings,
            self.clock,
            self.runner,
            self._environ,
            observes=False,
            works=self._whole,
            without=self._without,
        )
        self._working = [one for one in engine.core.sources if self._whole and hasattr(one, "is_settled")]
        engine.start()
        self.engine = engine  # `settle` steps it
        self.settle()
        return engine

    # -- what happens ----------------------------------------------------------------------------------------------

    def drop(self, path: str, content: str | bytes = "Do it\n", *, by: int | None = None) -> Path:
        """Write a file, and let the engine see that it was closed. `by`: the run that writes it, as behind the fence."""
        target = self.layout.root / path
        if by is not None:
            with (self.layout.run(by) / JOURNAL).open("a") as journal:
                journal.write(json.dumps([Operation.WRITE.value, 1, path]) + "\n")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        self.see(path)
        return target

    def see(self, path: str) -> None:
        """Let the engine see a file as it is now, or that it is gone."""
        target = self.layout.root / path
        try:
            found = target.lstat()
        except FileNotFoundError:
            self.engine.tell_now([Gone(path, folder=False)])
        else:
            self.engine.tell_now([Seen(path, identity_of(found), complete=True, type=type_of(found))])
        self.settle()

    def tell(self, kind: str | Fact, **fields: Any) -> Event:  # noqa: ANN401 - fields of a Fact
        """Let an event happen: a Fact, or its kind and the other fields of one. Returns it as recorded."""
        fact = kind if isinstance(kind, Fact) else Fact(kind, fields.pop("source", "test"), **fields)
        after = self.ledger.last_event
        self.engine.tell_now([fact])
        self.settle()
        return next(event for event in self.events() if event.id > after and event.kind == fact.kind)

    def ask(self, verb: str, *, by: int | None = None, **fields: Any) -> Row:  # noqa: ANN401 - a request's fields
        """Ask through the spool, as a person or as a run; returns the reply's row (exit, message, dispatch).

        Raises ValueError for what the spool would not take: an unknown verb or field.
        """
        fields = {name: value for name, value in fields.items() if value is not None}
        request.parse(json.dumps({"verb": verb, **fields}).encode(), self.engine.core.fields())
        name = request.new_id()
        self.engine.tell(
            [Fact("request.received", "spool", ref=name, by=by, detail={"verb": verb, **fields})]
        )
        self.settle()
        reply = self.ledger.one("request", {"id": request.known_as(name, by)})
        assert reply is not None
        return reply

    def finish(self, run: int, stdout: str = "", **how: Any) -> None:  # noqa: ANN401 - see ScriptedRunner.finish
        """End a run."""
        self.runner.finish(run, stdout, **how)
        self.settle()

    def advance(self, seconds: float) -> None:
        """Let time pass; every timer on the way comes due at its own moment."""
        end = self.clock.now().mono + seconds
        while (due := self.engine.next_due()) is not None and due <= end:
            self.clock.advance(max(0.0, due - self.clock.now().mono))
            self.settle()
        self.clock.advance(end - self.clock.now().mono)
        self.settle()

    def settle(self) -> None:
        """Step until nothing waits, and no thread works."""
        while self.engine.step() or not all(one.is_settled() for one in self._working):
            time.sleep(PAUSE_S if self._working else 0)

    def restart(self) -> None:
        """Forget the engine as if it had been killed, and start another one on the same ledger and the same runs."""
        for one in self._working:
            one.stop()  # what was asked of its threads is done: a process that is killed takes its own with it
        self.ledger.close()
        self.ledger = Ledger.open(self.layout.ledger)
        self._make()

    def close(self) -> None:
        """Stop the engine and close the ledger."""
        self.engine.stop()
        self.ledger.close()

    # -- what came of it -------------------------------------------------------------------------------------------

    def events(self, kind: str | None = None) -> list[Event]:
        """Recorded events, oldest first."""
        return [event_of(row) for row in self.ledger.all("events", {"after": 0, "kind": kind})]

    def dispatches(self) -> list[Row]:
        """All dispatches, oldest first."""
        return self.ledger.all("list_dispatches")

    def dispatch(self, number: int) -> Row:
        """One dispatch."""
        row = self.ledger.one("dispatch", {"id": number})
        assert row is not None, f"there is no dispatch {number}"
        return row

    def actions(self, event: int) -> list[tuple[str, str, str]]:
        """What handlers said to an event: handler, type of action, outcome."""
        return [
            (row["handler"], row["type"], row["outcome"])
            for row in self.ledger.all("actions_of_event", {"event": event})
        ]

    def answer(self, agent: str, name: str) -> tuple[str, dict[str, Any]]:
        """An answer's text and its record; `name` without suffix, as in `hello.1`."""
        folder = self.layout.outbox / agent
        return (folder / f"{name}.md").read_text(), json.loads((folder / f"{name}.json").read_text())

    def running(self) -> list[int]:
        """Live runs that were started, oldest first."""
        return sorted(self.runner.started)

    def notices(self) -> list[str]:
        """What a person was told, oldest first."""
        return [row["text"] for row in self.ledger.all("notices", {"limit": 1000})][::-1]
