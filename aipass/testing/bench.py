"""An engine for tests: real ledger and handlers, but a virtual clock, scripted runs and scripted events."""

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

#: Pause between checks whether the threads of the sources are idle.
PAUSE_S = 0.001
#: The environment of the engine: fixed, so that no test depends on the machine.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}


class Bench:
    """An engine that acts only when the test makes it. `root` is an empty folder, `toml` the text of aipass.toml.

    The test makes events with `drop`, `tell` and `ask`, ends runs with `finish`, and lets time pass with `advance`. Each of
    these methods returns when the engine is idle again. `whole`: also start the sources with own threads, for git and PRs
    (`root` must be a repository), state files and mail. `installed`: load the handlers and drivers of aipass.
    `without`: features that are disabled. Call `close` at the end.
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
            # Only ours: entry points of other installed packages would make a test depend on the machine.
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
            # No inotify and no polling: files become events only by `drop` and `see`.
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
        """Write a file, report it to the engine as closed, and return its path. `by`: the run that writes it."""
        target = self.layout.root / path
        if by is not None:
            # The fence (per-file sandbox) writes this journal in a real run; the engine attributes writes by it.
            with (self.layout.run(by) / JOURNAL).open("a") as journal:
                journal.write(json.dumps([Operation.WRITE.value, 1, path]) + "\n")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        self.see(path)
        return target

    def see(self, path: str) -> None:
        """Report a file to the engine as it is now, or as deleted."""
        target = self.layout.root / path
        try:
            found = target.lstat()
        except FileNotFoundError:
            self.engine.tell_now([Gone(path, folder=False)])
        else:
            self.engine.tell_now([Seen(path, identity_of(found), complete=True, type=type_of(found))])
        self.settle()

    def tell(self, kind: str | Fact, **fields: Any) -> Event:  # noqa: ANN401 - fields of a Fact
        """Make an event from a Fact, or from its kind and other fields. Returns the first recorded event of that kind."""
        fact = kind if isinstance(kind, Fact) else Fact(kind, fields.pop("source", "test"), **fields)
        after = self.ledger.last_event
        self.engine.tell_now([fact])
        self.settle()
        return next(event for event in self.events() if event.id > after and event.kind == fact.kind)

    def ask(self, verb: str, *, by: int | None = None, **fields: Any) -> Row:  # noqa: ANN401 - a request's fields
        """Make a request as a person, or as the run `by`; returns the row of the reply (exit, message, dispatch).

        Raises ValueError for a request that the spool would reject: an unknown verb or field.
        """
        fields = {name: value for name, value in fields.items() if value is not None}
        # The same validation as in the spool: a misspelled field must fail the test instead of being ignored.
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
        """End a run, as `ScriptedRunner.finish` does. Raises ValueError if it is not running."""
        self.runner.finish(run, stdout, **how)
        self.settle()

    def advance(self, seconds: float) -> None:
        """Let time pass. Every timer that is due in between fires at its own moment."""
        # In steps, not by one jump: a timer may set another one that is due before the end.
        end = self.clock.now().mono + seconds
        while (due := self.engine.next_due()) is not None and due <= end:
            self.clock.advance(max(0.0, due - self.clock.now().mono))
            self.settle()
        self.clock.advance(end - self.clock.now().mono)
        self.settle()

    def settle(self) -> None:
        """Run the engine until its queue is empty and all sources are idle."""
        while self.engine.step() or not all(one.is_settled() for one in self._working):
            # 0 without threads: only the virtual clock matters then, and a test need not wait.
            time.sleep(PAUSE_S if self._working else 0)

    def restart(self) -> None:
        """Drop the engine as if it had been killed, and start a new one with the same ledger and the same runs."""
        for one in self._working:
            one.stop()  # a killed process takes its threads with it, but here they live on in the process of the test
        self.ledger.close()
        self.ledger = Ledger.open(self.layout.ledger)
        self._make()

    def close(self) -> None:
        """Stop the engine in good order, then close the ledger."""
        self.engine.stop()
        self.ledger.close()

    # -- what came of it -------------------------------------------------------------------------------------------

    def events(self, kind: str | None = None) -> list[Event]:
        """Return the recorded events, oldest first; only those of `kind` if it is given."""
        return [event_of(row) for row in self.ledger.all("events", {"after": 0, "kind": kind})]

    def dispatches(self) -> list[Row]:
        """Return all dispatches, oldest first."""
        return self.ledger.all("list_dispatches")

    def dispatch(self, number: int) -> Row:
        """Return the dispatch with this id; fails the test if there is none."""
        row = self.ledger.one("dispatch", {"id": number})
        assert row is not None, f"there is no dispatch {number}"
        return row

    def actions(self, event: int) -> list[tuple[str, str, str]]:
        """Return the recorded decisions of handlers about an event: (handler, type of action, outcome)."""
        return [
            (row["handler"], row["type"], row["outcome"])
            for row in self.ledger.all("actions_of_event", {"event": event})
        ]

    def answer(self, agent: str, name: str) -> tuple[str, dict[str, Any]]:
        """Return (text, record) of an answer in outbox/; `name` is without suffix, as in `hello.1`."""
        folder = self.layout.outbox / agent
        return (folder / f"{name}.md").read_text(), json.loads((folder / f"{name}.json").read_text())

    def running(self) -> list[int]:
        """Return the ids of the live runs, oldest first."""
        return sorted(self.runner.started)

    def notices(self) -> list[str]:
        """Return the texts of the notices (notifications) to the person, oldest first."""
        return [row["text"] for row in self.ledger.all("notices", {"limit": 1000})][::-1]
