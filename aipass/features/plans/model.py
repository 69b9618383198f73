"""The plan file `plans/<id>-<slug>.json`: its schema, and reading it with errors that name line and field.

People write the file; aipass writes it on `plan new` only. The state of a plan is in the ledger.
"""

from __future__ import annotations

import difflib
import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError

from aipass.config.model import Duration, Model, Name, Pattern, Word
from aipass.errors import ConfigError
from aipass.supervisor.held import open_regular

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic_core import ErrorDetails

#: A larger file is not a plan. The limit keeps a wrong file from filling the engine's memory.
MAX_PLAN_BYTES = 5_000_000
ID = re.compile(r"[0-9]{1,9}")
NUMBERED = re.compile(r"([0-9]{1,9})(?:-.*)?\.json")

PhaseState = Literal["waiting", "ready", "running", "delivered", "done", "failed", "stopped"]
PlanState = Literal["draft", "running", "paused", "done", "failed", "stopped"]


def _plan_id(value: str) -> str:
    if not ID.fullmatch(value):
        raise ValueError('an id is a number in quotes, such as "0007"')
    return value


class Deliverable(Model):
    """A deliverable of a phase: a path or a pattern, and the least number of files that must match it."""

    path: Pattern = Field(description="A path, or a pattern")
    least: Annotated[int, Field(ge=1)] = Field(1, description="The least number of matching files")


def _deliverable(value: object) -> object:
    return {"path": value} if isinstance(value, str) else value


class Phase(Model):
    """One unit of work: an agent, its task, the paths that it owns while the phase runs, and its deliverables."""

    id: Name = Field(description="The phase's id, unique within the plan")
    agent: str = Field(description="The agent that does the work")
    task: Annotated[str, Field(min_length=1)] = Field(description="The agent's prompt")
    owns: tuple[Pattern, ...] = Field(
        (), description="Paths that only this phase may write while it runs", strict=False
    )
    delivers: tuple[
        Annotated[Deliverable, BeforeValidator(_deliverable, json_schema_input_type=str | Deliverable)], ...
    ] = Field(
        (), description="Paths that the run must write; empty: done when the run succeeds", strict=False
    )
    checks: tuple[Word, ...] = Field(
        (), description="Commands that must succeed after the delivery", strict=False
    )
    after: tuple[str, ...] = Field((), description="Phases that must be done before this one", strict=False)
    handoff: Literal["write", "exit"] | None = Field(
        None,
        description="Hand over when everything is written, or when the run ends; default: the driver's choice",
    )
    settle: Duration = Field(0.5, description="Time without writes after which a delivery is complete")
    pr: bool = Field(False, description="End the phase with a pull request of what it owns and changed")


class Plan(Model):
    """A plan: phases with an order, each of which owns a part of the tree while it runs."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: Annotated[str, AfterValidator(_plan_id)] = Field(description="A number, such as 0007")
    title: Annotated[str, Field(min_length=1, max_length=200)] = Field(description="The plan's title")
    template: str | None = Field(None, description="The template that the plan was made from")
    status: PlanState = Field(
        "draft", description="The state before the first start; later the ledger has the state"
    )
    phases: Annotated[tuple[Phase, ...], Field(min_length=1, strict=False)] = Field(
        description="The phases, in any order; `after` defines the order of work"
    )

    def phase(self, name: str) -> Phase:
        """The phase with this id, which must exist."""
        return next(phase for phase in self.phases if phase.id == name)


def find(folder: Path, number: str) -> Path:
    """The file of a plan by its id; leading zeros do not matter. Raises ConfigError where there is none, or several."""
    fitting = [
        path
        for path in sorted(folder.glob("*.json"))
        if (match := NUMBERED.fullmatch(path.name)) and ID.fullmatch(number) and int(match[1]) == int(number)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ConfigError(
            f"several plans have the id {number}: {', '.join(p.name for p in fitting)}; rename all but one"
        )
    raise ConfigError(f"there is no plan {number} in {folder}; `aipass plan new` makes one")


def load(path: Path) -> Plan:
    """The plan in a file. Raises ConfigError with one line per mistake."""
    return read(path)[1]


def read(path: Path) -> tuple[str, Plan]:
    """The text of a file and the plan in it. Raises ConfigError with one line per mistake."""
    name = f"plans/{path.name}"
    try:
        # The path may be a named pipe or a device: a plain `open` would hang the engine, and a read might never end.
        with open_regular(path) as file:
            data = file.read(MAX_PLAN_BYTES + 1)
        if len(data) > MAX_PLAN_BYTES:
            raise ConfigError(f"{name}: larger than {MAX_PLAN_BYTES // 1_000_000} MB; is this a plan?")
    except OSError as exc:
        raise ConfigError(
            f"{name}: cannot be read ({exc.strerror}); `aipass plan status` lists the plans"
        ) from exc
    try:
        # Editors on Windows begin a file with a byte order mark, which is not valid JSON.
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise ConfigError(
            f"{name}:{line}: not UTF-8 (byte 0x{data[exc.start]:02x}); save the file as UTF-8"
        ) from exc
    return text, parse(text, name)


def of_id(folder: Path, number: str) -> tuple[Path, str, Plan]:
    """The file of a plan by its id, its text, and the plan in it. Raises ConfigError where there is no usable file."""
    path = find(folder, number)
    text, plan = read(path)
    named = NUMBERED.fullmatch(path.name)
    if named is not None and plan.id != named[1]:
        line = _lines(text)["id",]
        raise ConfigError(
            f'plans/{path.name}:{line}: id: found "{plan.id}" in a file that is named {named[1]}; use the same number for both'
        )
    return path, text, plan


@lru_cache(maxsize=64)
def taken_over(body: str, file: str) -> Plan:
    """The plan that the ledger has stored; its text was validated before. Cached, because every event asks for the open plans."""
    return parse(body, file)


def parse(text: str, name: str = "plan") -> Plan:
    """The plan in a JSON text. Raises ConfigError with one line per mistake; `name` is the file's name in them."""
    try:
        raw = json.loads(text, object_pairs_hook=_no_twice)
    except json.JSONDecodeError as exc:
        raise ConfigError(f"{name}:{exc.lineno}: not valid JSON: {exc.msg.lower()}") from exc
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{name}:1: not valid JSON: {exc or 'nested too deeply'}") from exc
    try:
        return Plan.model_validate(raw)
    except ValidationError as exc:
        lines = _lines(text)
        raise ConfigError(
            "\n".join(dict.fromkeys(_explain(error, lines, name) for error in exc.errors()))
        ) from exc


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # `json` keeps the last of two equal keys silently, so half of what a person wrote would not count.
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'the key "{twice}" appears twice in one object')
    return found


def _explain(error: ErrorDetails, lines: dict[tuple[str | int, ...], int], name: str) -> str:
    # Pydantic puts the names of validators into the location; they are no keys of the file.
    loc = tuple(part for part in error["loc"] if not str(part).startswith("function-"))
    place = loc
    while place not in lines and place:
        place = place[:-1]
    field = ".".join(map(str, loc))
    where = f"{name}:{lines.get(place, 1)}: " + (f"{field}: " if field else "")
    if error["type"] == "extra_forbidden":
        model = Plan if len(loc) == 1 else Deliverable if "delivers" in loc else Phase
        known = sorted(model.model_fields)
        near = difflib.get_close_matches(str(loc[-1]), known, 1, 0.6)
        return f"{where}unknown key{f'; did you mean `{near[0]}`?' if near else '.'} Known here: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{where}missing; it is required"
    text = (
        error["msg"]
        .removeprefix("Value error, ")
        .replace("valid tuple", "list")
        .replace("valid dictionary or instance of Plan", "object")
        .replace("valid dictionary", "object")
        .replace("tuple should", "the list should")
    )
    shown = (
        ""
        if isinstance(error["input"], dict) or error["type"] == "value_error"
        else f", found {error['input']!r:.60}"
    )
    return f"{where}{text[0].lower()}{text[1:]}{shown}"


_TOKEN = re.compile(r'\s*(?:([{}\[\],:])|"((?:[^"\\]|\\.)*)"|([^\s{}\[\],:"]+))')


def _lines(text: str) -> dict[tuple[str | int, ...], int]:
    """The line of every value of a valid JSON text, by its keys and indices."""
    # Python's `json` gives no positions of values, and an error without a line is hard to find in a long plan.
    found: dict[tuple[str | int, ...], int] = {}
    at = 0
    path: list[str | int] = []
    kinds: list[str] = []
    is_key = False

    def here() -> None:
        found.setdefault(tuple(path), text.count("\n", 0, at) + 1)

    while match := _TOKEN.match(text, at):
        at = match.start(1) if match[1] else match.start(2) - 1 if match[2] is not None else match.start(3)
        sign, word = match[1], match[2]
        if sign == "{" or sign == "[":
            here()
            kinds.append(sign)
            path.append("" if sign == "{" else 0)
            is_key = sign == "{"
        elif sign == "}" or sign == "]":
            kinds.pop()
            path.pop()
            is_key = False
        elif sign == ",":
            if kinds[-1] == "[":
                path[-1] = int(path[-1]) + 1
            is_key = kinds[-1] == "{"
        elif sign == ":":
            is_key = False
        elif is_key and word is not None:
            path[-1] = json.loads(f'"{word}"')
            here()
        else:
            here()
        at = match.end()
    return found
