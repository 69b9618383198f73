"""The verb `aipass schema`: the JSON Schema of files that people write and of output that scripts read."""

from __future__ import annotations

from typing import Any

import click

from aipass.terminal.output import print_json
from aipass.workspace.layout import root_or_here

# Events and dispatches are no pydantic models, which would write their schema themselves: it is written here.
_TIME = {"type": ["string", "null"], "format": "date-time"}
_TEXT = {"type": ["string", "null"]}
_NUMBER = {"type": ["integer", "null"]}


@click.command("schema")
@click.argument("what", type=click.Choice(["config", "plan", "event", "dispatch", "request"]))
def command(what: str) -> None:
    """Print the JSON Schema of WHAT: config (aipass.toml), plan (plans/*.json), event, dispatch, or request (a spool file)."""
    print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **_SCHEMAS[what]()})


def _config() -> dict[str, Any]:
    from aipass.config.model import Config

    return {**Config.model_json_schema(), "title": "aipass.toml"}


def _plan() -> dict[str, Any]:
    from aipass.features.plans.model import Plan

    return {**Plan.model_json_schema(), "title": "plan"}


def _event() -> dict[str, Any]:
    from aipass.plugins import Plugins

    # Plugins may add kinds of events, so the schema depends on the root where it is printed.
    plugins = Plugins()
    plugins.load_installed(root_or_here())
    kinds = [{"const": kind, "description": meaning} for kind, meaning in plugins.kinds().items()]
    fields = {
        "id": {"type": "integer"},
        "time": _TIME,
        "kind": {"oneOf": kinds},
        "path": _TEXT,
        "ref": _TEXT,
        "source": {"type": "string"},
        "by": {**_NUMBER, "description": "the run that caused it; null if no run is known"},
        "cause": {**_NUMBER, "description": "the event that led to this one"},
        "detail": {"type": "object"},
    }
    return {"title": "event", "type": "object", "properties": fields, "required": list(fields)}


def _dispatch() -> dict[str, Any]:
    states = ["queued", "running", "succeeded", "failed", "cancelled", "blocked"]
    fields = {
        "id": {"type": "integer"},
        "agent": {"type": "string"},
        "state": {"enum": states},
        "key": {"type": "string"},
        "subject": _TEXT,
        "senders": {"type": "array", "items": {"type": "string"}},
        "plan": _TEXT,
        "phase": _TEXT,
        "attempts": {"type": "integer"},
        "created": _TIME,
        "started": _TIME,
        "finished": _TIME,
        "reason": _TEXT,
    }
    return {"title": "dispatch", "type": "object", "properties": fields, "required": list(fields)}


def _request() -> dict[str, Any]:
    from aipass.app import verbs

    names = {str: "string", int: "integer", bool: "boolean", list: "array"}
    # Only built-in features: a request for a verb of a plugin is not valid by this schema, although the engine takes it.
    options = [
        {
            "type": "object",
            "properties": {
                "verb": {"const": verb},
                **{name: {"type": names[kind]} for name, (kind, _) in fields.items()},
            },
            "required": ["verb", *(name for name, (_, required) in fields.items() if required)],
            # The spool rejects a request with an unknown field, so the schema must as well.
            "additionalProperties": False,
        }
        for verb, fields in verbs().items()
    ]
    return {"title": "request", "oneOf": options}


_SCHEMAS = {"config": _config, "plan": _plan, "event": _event, "dispatch": _dispatch, "request": _request}
