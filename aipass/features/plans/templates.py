"""The templates of `plan new`: built-in ones for common kinds of work, and a user's own in `plans/templates/`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from aipass.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: Phases as (id, role, task, owns, delivers, after). Roles are given to the configured agents in their order.
_Phase = tuple[str, str, str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]
BUILT_IN: dict[str, tuple[_Phase, ...]] = {
    "feature": (
        (
            "design",
            "lead",
            "Describe in docs/design.md how {title} will work.",
            ("docs/design.md",),
            ("docs/design.md",),
            (),
        ),
        (
            "build",
            "builder",
            "Build {title} as docs/design.md describes.",
            ("/src/",),
            ("/src/**",),
            ("design",),
        ),
        ("test", "tester", "Write tests for {title}.", ("/tests/",), ("/tests/**",), ("design",)),
        (
            "review",
            "lead",
            "Review the code and tests of {title}; list the problems.",
            (),
            (),
            ("build", "test"),
        ),
    ),
    "bugfix": (
        (
            "reproduce",
            "tester",
            "Write a test that fails because of this bug: {title}.",
            ("/tests/",),
            ("/tests/**",),
            (),
        ),
        (
            "fix",
            "builder",
            "Fix this bug: {title}. The new test must pass.",
            ("/src/",),
            ("/src/**",),
            ("reproduce",),
        ),
    ),
    "refactor": (
        (
            "cover",
            "tester",
            "Make sure that tests cover the code that will change in: {title}.",
            ("/tests/",),
            (),
            (),
        ),
        ("change", "builder", "{title}. Do not change the behaviour.", ("/src/",), ("/src/**",), ("cover",)),
    ),
    "review": (
        ("read", "lead", "Review: {title}. List the problems with file and line.", (), (), ()),
        ("mend", "builder", "Fix the problems that the review of {title} found.", ("/src/",), (), ("read",)),
    ),
    "migrate": (
        (
            "map",
            "lead",
            "List in docs/migration.md everything that {title} affects.",
            ("docs/migration.md",),
            ("docs/migration.md",),
            (),
        ),
        ("move", "builder", "{title}, as docs/migration.md describes.", ("/src/",), ("/src/**",), ("map",)),
        ("verify", "tester", "Check that {title} is complete.", ("/tests/",), (), ("move",)),
    ),
    "docs": (
        ("write", "builder", "Write docs: {title}.", ("/docs/",), ("/docs/**",), ()),
        (
            "proof",
            "lead",
            "Read the docs of {title} as a newcomer; list what is unclear.",
            (),
            (),
            ("write",),
        ),
    ),
}
ROLES = ("builder", "tester", "lead")


def names(folder: Path) -> list[str]:
    """The names of all templates: the built-in ones, then each `<name>.json` in the user's folder."""
    own = sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []
    return [*BUILT_IN, *(name for name in own if name not in BUILT_IN)]


def make(name: str, title: str, agents: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """The phases of a new plan. A user's template replaces a built-in one of the same name.

    Raises ConfigError where there is no such template, or it is unusable.
    """
    path = folder / f"{name}.json"
    if path.is_file():
        return _own(path, title)
    if name not in BUILT_IN:
        raise ConfigError(f"there is no template `{name}`; templates: {', '.join(names(folder))}")
    if not agents:
        raise ConfigError("there are no agents for the phases; add some to aipass.toml first")
    given = {role: agents[min(place, len(agents) - 1)] for place, role in enumerate(ROLES)}
    phases: list[dict[str, Any]] = []
    before: dict[str, set[str]] = {}
    for id_, role, task, owns, delivers, after in BUILT_IN[name]:
        known = {one for name in after for one in (name, *before[name])}
        # An agent has one run at a time. With fewer agents than roles an agent has several phases, and without an order
        # between them the plan would not pass its check (`agent-twice`).
        same = [one["id"] for one in phases if one["agent"] == given[role] and one["id"] not in known]
        before[id_] = known.union(same, *(before[one] for one in same))
        phases.append(_phase(id_, given[role], task.format(title=title), owns, delivers, (*after, *same)))
    return phases


def _phase(
    id_: str, agent: str, task: str, owns: Sequence[str], delivers: Sequence[str], after: Sequence[str]
) -> dict[str, Any]:
    found: dict[str, Any] = {"id": id_, "agent": agent}
    if after:
        found["after"] = list(after)
    found["task"] = task
    found["owns"] = list(owns)
    if delivers:
        found["delivers"] = list(delivers)
    return found


def _own(path: Path, title: str) -> list[dict[str, Any]]:
    # `replace` and not `format`: a person's task may contain other braces, such as code.
    try:
        found = json.loads(path.read_text("utf-8"))
        phases: list[Mapping[str, Any]] = found["phases"] if isinstance(found, dict) else found
        return [{**phase, "task": str(phase.get("task", "")).replace("{title}", title)} for phase in phases]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ConfigError(
            f"plans/templates/{path.name}: cannot be used ({exc!r}); it must be a plan or a list of phases, as JSON"
        ) from exc
