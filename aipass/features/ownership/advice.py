"""Warnings about a valid configuration that probably does not do what its author wants.

`aipass up`, `aipass doctor` and `aipass reload` show them.
"""

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
    """All warnings about a configuration, one sentence each."""
    return [*owned_twice(config), *_of_agents(layout, config)]


def owned_twice(config: Config) -> list[str]:
    """Warnings about paths that the `owns` of two agents match, one sentence for each pair of agents."""
    owners = [(name, tuple(map(_at_top, agent.owns))) for name, agent in config.agents.items() if agent.owns]
    found, undecided = [], 0
    for place, (name, owns) in enumerate(owners):
        for other, theirs in owners[place + 1 :]:
            try:
                path = common_path(owns, theirs)
            except UndecidedError as exc:
                found.append(f"`owns` of {name} and {other}: {exc}")
                undecided += 1
                # An undecided pair takes the whole search budget, and the number of pairs grows with the square of the
                # agents.
                if undecided == MOST_UNDECIDED:
                    return found
                continue
            if path is not None:
                found.append(
                    f"`owns` of {name} and {other} both name {printable(path)}: the first of them to write such a file holds it "
                    "(write lock) until its run ends, and writes of the other are refused"
                )
    return found


def _at_top(pattern: str) -> str:
    """The pattern, with `lib/` read as `/lib/`.

    As in .gitignore, `lib/` matches at any depth, but its author nearly always means the folder at the top: a warning about
    `src/lib/` would be a false alarm.
    """
    mark, name = ("!", pattern[1:]) if pattern.startswith("!") else ("", pattern)
    return f"{mark}/{name}" if name.endswith("/") and "/" not in name[:-1] else pattern


def _of_agents(layout: Layout, config: Config) -> Iterator[str]:
    root = os.path.realpath(layout.root)
    for name, agent in config.agents.items():
        if agent.command:
            path = environment.path_of(agent, os.environ)
            program = os.path.join(root, programs.for_run(agent.command[0], path, root))
            if not programs.is_program(program):
                yield f"{name} is started with `{agent.command[0]}`, but this program is not installed here"
            if agent.model is not None:
                yield f'{name} has a `model`, which `driver = "command"` does not use: put it into its `command`'
        for pattern in agent.owns or ():
            if pattern.lstrip("!").startswith((f"{root}/", f"{layout.root}/")):
                inner = pattern.lstrip("!")[len(root) :]
                yield f"`owns` of {name} names {printable(pattern)}, which matches nothing: patterns begin at the root, so write {printable(inner)}"
