"""A plugin in one file: a handler, an event source with a kind of its own, and a driver."""

from __future__ import annotations

import threading

from aipass import Command, Dispatch, Fact, Handler, Ignore, Outcome, hookimpl

# -- a handler: a file saved as todo/<anything>.<agent> starts that agent ----------------------------------------------


def on_saved(event, view):
    """Pure: it reads the event and the view, and returns what it wants done."""
    agent = event.path.rpartition(".")[2]
    if view.agent(agent) is None:
        return [Ignore(f"there is no agent `{agent}`")]
    return [Dispatch(agent, f"Work on {event.path}", key=event.path, sender="todo", stem="todo")]


@hookimpl
def register_handlers():
    return [Handler("todo", ["file.closed"], on_saved, paths=["/todo/"])]


# -- a source: a beat that a rule can wait for: [[on]] event = "todo.beat" ---------------------------------------------


class Beat:
    name = "todo"

    def start(self, tell):
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(tell,), daemon=True)
        self._thread.start()

    def stop(self):
        self._ended.set()
        self._thread.join()

    def _run(self, tell):
        if not self._ended.wait(0.1):
            tell([Fact("todo.beat", self.name, ref="first", detail={"subject": "the first beat"})])


@hookimpl
def register_kinds():
    return {"todo.beat": "the example's source has begun to beat"}


@hookimpl
def register_sources():
    return [Beat()]


# -- a driver: an "agent" that says the prompt backwards ---------------------------------------------------------------


class Backwards:
    name = "backwards"

    def command(self, job):
        return Command(["rev"])

    def outcome(self, job, end):
        return Outcome("succeeded" if end.code == 0 else "failed", end.stdout)


@hookimpl
def register_drivers():
    return [Backwards()]
