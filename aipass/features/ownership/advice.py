"""What a valid configuration says that will not do what it seems to say: told at the start, by `aipass doctor` and at a reload."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from aipass import environment, programs
from aipass.event import printable
from aipass.text.overlap import MOST_UNDECIDED, UndecidedError, common_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aipass.config.model import Config
    from aipass.workspace.layout import Layout


def of(layout: Layout, config: Config) -> list[str]:
    """A sentence each."""
    return [*owned_twice(config), *_of_agents(layout, config)]


def owned_twice(config: Config) -> list[str]:
    """Paths that the `owns` of two agents name, so that one is refused while the other holds them. A sentence each."""
    owners = [(name, tuple(map(_at_top, agent.owns))) for name, agent in config.agents.items() if agent.owns]
    found, undecided = [], 0
    for place, (name, owns) in enumerate(owners):
        for other, theirs in owners[place + 1 :]:
            try:
                path = common_path(owns, theirs)
            except UndecidedError as exc:
                found.append(f"`owns` of {name} and {other}: {exc}")
                undecided += 1
                if undecided == MOST_UNDECIDED:
                    return found
                continue
            if path is not None:
                found.append(
                    f"`owns` of {name} and {other} both name {printable(path)}: whichever writes such a file first holds it "
                    "until its run ends, and the other is refused"
                )
    return found


def _at_top(pattern: str) -> str:
    """`lib/` means any folder of that name, and nearly always the one at the top: nobody is warned of `src/lib/`."""
    mark, name = ("!", pattern[1:]) if pattern.startswith("!") else ("", pattern)
    return f"{mark}/{name}" if name.endswith("/") and "/" not in name[:-1] else pattern


def _of_agents(layout: Layout, config: Config) -> Iterator[str]:
    root = os.path.realpath(layout.root)
    for name, agent in config.agents.items():
        if agent.command:
            path = environment.path_of(agent, os.environ)
            program = os.path.join(root, programs.for_run(agent.command[0], path, root))
            if not programs.is_program(program):
                yield f"{name} is started with `{agent.command[0]}`, and there is no such program here"
            if agent.model is not None:
                yield f'{name} has a `model`, which `driver = "command"` does not use: say it in its `command`'
        for pattern in agent.owns or ():
            if pattern.lstrip("!").startswith((f"{root}/", f"{layout.root}/")):
                inner = pattern.lstrip("!")[len(root) :]
                yield f"`owns` of {name} names {printable(pattern)}, which is nothing: patterns begin at the root, so write {printable(inner)}"
