"""State files on the bench: what stands in one, and an agent that saves it."""

from __future__ import annotations

import json

from aipass.features.memory.document import render
from aipass.features.memory.model import LOCAL, OBSERVATIONS, parse
from aipass.features.memory.state_files import StateSaved


def body(bench, agent="api", file=LOCAL):
    return json.loads(bench.ledger.one("state", {"agent": agent, "file": file})["body"])


def save(bench, document, agent="api", file=LOCAL, masked=()):
    data = document if isinstance(document, bytes) else render(document)
    saved = parse(file, data, bench.engine.config.state)
    bench.engine.tell_now([StateSaved(agent, file, saved, masked)])
    bench.settle()


def texts(bench, key="learnings", agent="api"):
    file = OBSERVATIONS if key == "observations" else LOCAL
    return [entry["text"] for entry in body(bench, agent, file)[key]]


def note(bench, kind, text, by=None, **more):
    return bench.ask("note", do=kind, text=text, by=by, **({"agent": "api"} if by is None else {}), **more)
