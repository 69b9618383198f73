"""Writes the reference pages of docs/ from the code itself; `make fix` runs it, a test says when it was forgotten."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aipass import action, errors, event, hookspecs
from aipass.cli.help import settings
from aipass.cli.main import VERBS, cli
from aipass.environment import DOORS, OF_THE_CALLER
from aipass.supervisor.fence.calls import CALLS, LET_THROUGH, WITHOUT_WALL, explain

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent


def commands() -> str:
    """One heading for each verb, with its usage line and its help."""
    parts = [
        "# The command line\n",
        "Verbs that only show something need no engine. They take `--json`, except those whose output is a text: `logs`, `pr diff`, `plan graph`, `schema`, `help`, `completion`.\n",
    ]
    for verb in VERBS:
        command = cli.get_command(click.Context(cli), verb)
        assert command is not None
        parts += _command(command, f"aipass {verb}")
    return "\n".join(parts)


def _command(command: click.Command, name: str) -> Iterator[str]:
    """One verb, and those below it."""
    context = click.Context(command, info_name=name, max_content_width=90, terminal_width=90)
    usage = command.get_usage(context).removeprefix("Usage: ").strip()
    text = command.get_help(context).split("\n", 2)[2].rstrip()
    yield f"## `{' '.join(usage.split())}`\n\n```text\n{text}\n```\n"
    if isinstance(command, click.Group):
        for below, one in command.commands.items():
            yield from _command(one, f"{name} {below}")


def events() -> str:
    """One heading for each kind of event."""
    parts = [
        "# Events\n",
        "An event is an observed fact. It is recorded once and never changed. `aipass schema event` has all fields.\n",
    ]
    parts += [f"## `{kind}`\n\n{meaning[0].upper()}{meaning[1:]}.\n" for kind, meaning in event.KINDS.items()]
    return "\n".join(parts)


def actions() -> str:
    """One heading for each action, with its exact signature."""
    parts = [
        "# Actions\n",
        "An action is what a handler returns: data. The engine records it with the event and performs its effect after the commit.\n",
    ]
    for thing in vars(action).values():
        if inspect.isclass(thing) and issubclass(thing, action.Action) and thing is not action.Action:
            parts.append(f"## `{signature(thing)}`\n\n{inspect.getdoc(thing)}\n")
    return "\n".join(parts)


def signature(thing: type) -> str:
    """A dataclass's constructor as a person would write it."""
    shown = []
    for field in fields(thing):
        default = (
            "" if field.default is MISSING and field.default_factory is MISSING else f" = {field.default!r}"
        )
        if field.default_factory is not MISSING:
            default = f" = {field.default_factory()!r}"
        shown.append(f"{field.name}: {field.type}{default}")
    return f"{thing.__name__}({', '.join(shown)})"


def hooks() -> str:
    """One heading for each hook, with its exact signature."""
    parts = ["# Hooks\n", "The extension points of plugins, in the order of an engine's life.\n"]
    for name, spec in vars(hookspecs).items():
        if hasattr(spec, "aipass_spec"):
            signature = str(inspect.signature(spec)).replace("'", "")
            parts.append(f"## `{name}{signature}`\n\n{inspect.getdoc(spec)}\n")
    return "\n".join(parts)


def exit_codes() -> str:
    """One heading for each exit code."""
    text = Path(errors.__file__).read_text()
    meanings = {
        "DONE": "Done.",
        "FAILED": "The request failed: an unknown id, a dispatch that did not succeed, a damaged ledger.",
        "USAGE": "Wrong usage or configuration; also an unknown agent, and an empty text.",
        "REFUSED": "Refused by a rule: role, limit, or an engine that runs already; also a dispatch that is blocked by a question, and a wait that timed out.",
        "NO_ENGINE": "The verb needs an engine, and none is running.",
        "BUG": "A bug in aipass: two lines on stderr, and the path of a bug report in Markdown.",
        "INTERRUPTED": "Interrupted by Ctrl-C.",
    }
    parts = ["# Exit codes\n"]
    for name, code in re.findall(r"^EXIT_(\w+) = (\d+)$", text, re.MULTILINE):
        parts.append(f"## `{code}`\n\n{meanings[name]}\n")
    return "\n".join(parts)


def calls() -> str:
    """The table of system calls: which is treated how, and why."""
    parts = [
        "# System calls behind the fence\n",
        (
            "The treatment of each system call of a fenced run ([how the fence works](fence.md)). A call without a"
            " row is from a later kernel; for an agent it does not exist (`ENOSYS`).\n"
        ),
        "| call | x86_64 | aarch64 | treatment | why |\n|---|---|---|---|---|",
    ]
    for call in CALLS:
        numbers = " | ".join("-" if n is None else str(n) for n in (call.x86_64, call.aarch64))
        parts.append(f"| `{call.name}` | {numbers} | {explain(call)} | {call.why} |")
    parts.append(
        "\nWithout a wall also:\n\n| call | x86_64 | aarch64 | treatment | why |\n|---|---|---|---|---|"
    )
    for call in WITHOUT_WALL:
        parts.append(f"| `{call.name}` | {call.x86_64} | {call.aarch64} | {explain(call)} | {call.why} |")
    parts.append("\n## Let through\n")
    for why, names in LET_THROUGH.items():
        parts.append(f"{why[0].upper()}{why[1:]}: {', '.join(f'`{name}`' for name in names.split())}.\n")
    return "\n".join(parts)


def environment() -> str:
    """The variables that a run does not inherit."""
    parts = [
        "# The environment of a run\n",
        (
            "A run inherits the environment of the shell that started `aipass up`, without the variables below. Its driver, the agent's `env` and "
            "aipass add their own. `[sandbox] env` narrows it to the names that it lists. `*` matches the rest of a name.\n"
        ),
        "## Never inherited\n",
        "Addresses of other programs of yours, which would act for any caller: terminals, sign-in agents, buses, containers; and aipass's own variables.\n",
        ", ".join(f"`{name}`" for name in DOORS) + ".\n",
        "## Inherited only where `[sandbox] env` names them literally\n",
        (
            "State of the program that ran `aipass up`: a git hook's repository, options of make, another agent's session, and "
            "variables that make interpreters load code.\n"
        ),
        ", ".join(f"`{name}`" for name in OF_THE_CALLER) + ".\n",
        'To give one agent such a variable, set it in its `env`: `env = { NODE_OPTIONS = "--max-old-space-size=4096" }`.\n',
    ]
    return "\n".join(parts)


PAGES = {
    "commands.md": commands,
    "events.md": events,
    "actions.md": actions,
    "hooks.md": hooks,
    "settings.md": settings,
    "exit-codes.md": exit_codes,
    "calls.md": calls,
    "environment.md": environment,
}


def main() -> int:
    """Write every page; exit status 1 where `--check` finds one that is not as it must be."""
    stale = 0
    for name, make in PAGES.items():
        text = "<!-- written by docs/generate.py -->\n\n" + make()
        path = HERE / name
        if "--check" in sys.argv:
            stale += not path.exists() or path.read_text() != text
        else:
            path.write_text(text)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
