"""`aipass git`: hooks that tell the engine what git did, and an agent's own commits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aipass.errors import EXIT_REFUSED, AipassError, ConfigError
from aipass.event import plain, printable
from aipass.git import hooks, hooktext
from aipass.git.query import has_repository
from aipass.terminal.asking import ask, is_agent
from aipass.terminal.output import json_option, print_json, relative_to_root, table
from aipass.workspace.layout import find_root

if TYPE_CHECKING:
    from aipass.git.hooks import Hook

#: What each state means to its reader.
WORDS = {
    "installed": "installed",
    "missing": "not installed",
    "folder": "a folder stands there and is left alone; git runs none",
    "other": "not installed; a hook of yours stands there",
    "replaced": "replaced by another hook; `aipass git install` puts ours before it again",
    "lost": "gone, and with it the one that it called; `aipass git install` mends it",
    "changed": "edited by somebody; `aipass git install` mends it",
}


@click.group("git")
def command() -> None:
    """Hooks that tell the engine at once what git did, and commits of agents on their own branches."""


@command.command("install")
@click.option(
    "--guard", is_flag=True, help="Also pre-commit: keep back what agents are in the middle of writing."
)
@click.option(
    "--trailers", is_flag=True, help="Also commit-msg: name the dispatches whose work is committed."
)
def install(guard: bool, trailers: bool) -> int:
    """Write the hooks. What stood there runs as before, with the same arguments and stdin, and comes back with `uninstall`."""
    if (reason := _refusal("install")) is not None:
        click.echo(reason, err=True)
        return EXIT_REFUSED
    layout = find_root()
    wanted = [
        *hooktext.HOOKS,
        *([hooktext.GUARD] if guard else []),
        *([hooktext.TRAILERS] if trailers else []),
    ]
    _show(hooks.install(layout.root, layout.spool, wanted))
    if (theirs := hooks.called(layout.root)) is not None:
        click.echo(
            f"commits hold the hooks in {theirs}: they stay as they are, and are called by ours "
            "(git's configuration names our folder until `aipass git uninstall`)"
        )
    if hooks.is_shared(layout.root):
        click.echo(
            "git takes these hooks for every repository that shares the folder (core.hooksPath); "
            "they tell the engines of those where `aipass git install` was called"
        )
    return 0


@command.command("uninstall")
def uninstall() -> int:
    """Take the hooks away again; what stood there before comes back byte for byte."""
    if (reason := _refusal("uninstall")) is not None:
        click.echo(reason, err=True)
        return EXIT_REFUSED
    left = hooks.uninstall(_place())
    if any(hook.state not in {"missing", "other", "folder"} for hook in left):
        _show(left)
    else:
        click.echo(f"no hook of ours is left in {left[0].path.parent}; what stood there before is back")
    if others := hooks.left_over(_place()):
        click.echo(
            f"another tool has put {', '.join(path.name for path in others)} into {others[0].parent} while git took its hooks from there; "
            "git runs them no more: have that tool install its hooks again",
            err=True,
        )
    if any(hook.state == "installed" for hook in left):
        click.echo("other roots of this repository still want them")
    if kept := [hook for hook in left if hook.state == "replaced"]:
        names = ", ".join(hook.path.name + hooktext.ASIDE for hook in kept)
        raise AipassError(
            f"another hook had taken the place of ours and stays; what stood there before is kept as {names}"
        )
    return 0


@command.command("status")
@json_option
def status(as_json: bool) -> None:
    """Show each hook."""
    found = hooks.status(_place())
    if as_json:
        print_json(
            [{"name": h.name, "path": str(h.path), "state": h.state, "chained": h.chained} for h in found]
        )
    else:
        _show(found)


@command.command("guard", hidden=True)
def guard() -> int:
    """What the pre-commit hook asks: exit status 3 where the commit holds what an agent is in the middle of writing."""
    from aipass.features.git import guard as guarding
    from aipass.features.plans.reserved import reserved

    unfinished = guarding.unfinished(find_root(), reserved)
    if not unfinished:
        return 0
    click.echo("aipass: not committed, because agents are in the middle of writing this:")
    for path, who in unfinished.items():
        click.echo(f"  {plain(str(printable(path)))}  ({who})")
    click.echo("Commit the rest by name (`git commit -- PATH…`), or wait (`aipass plan status`);")
    click.echo("`git commit --no-verify` commits all the same.")
    return EXIT_REFUSED


@command.command("trailers", hidden=True)
@click.argument("file")
def trailers(file: str) -> None:
    """What the commit-msg hook asks: name in a message whose work is committed."""
    from aipass.features.git import guard as guarding

    guarding.add_trailers(find_root(), file)


@command.command("commit")
@click.option(
    "-m", "--message", "messages", multiple=True, required=True, help="First the title, then paragraphs."
)
@click.option("--include", is_flag=True, help="Take paths as they are now, whoever has changed them since.")
@click.argument("paths", nargs=-1)
def commit(messages: tuple[str, ...], include: bool, paths: tuple[str, ...]) -> None:
    """For agents: commit what you have changed on your own branch. HEAD, index and files stay as they are.

    `aipass pr open` hands it in.
    """
    if not is_agent():
        raise ConfigError(
            "`aipass git commit` is for agents; people use `git commit`, or `aipass pr open --agent NAME`"
        )
    layout = find_root()
    named = [relative_to_root(layout, path) for path in paths]
    body = "\n\n".join(messages[1:])
    row = ask(layout, "commit", needs_engine=True, title=messages[0], body=body, paths=named, include=include)
    if row is not None:
        click.echo(row["message"])


def _refusal(verb: str) -> str | None:
    """Hooks run in people's shells: no agent writes them."""
    agent = os.environ.get("AIPASS_AGENT")
    return None if agent is None else f"`git {verb}` is for people, and `{agent}` is an agent"


def _place() -> Path:
    """The root; the current folder where aipass.toml is gone already, and its hooks are not."""
    try:
        return find_root().root
    except ConfigError:
        if os.environ.get("AIPASS_ROOT") or not has_repository(Path.cwd()):
            raise
        return Path.cwd()


def _show(found: list[Hook]) -> None:
    click.echo(f"hooks in {found[0].path.parent}")
    table(
        ("HOOK", "STATE"),
        (
            (h.name, _words(h))
            for h in found
            if h.name not in hooktext.FORMER or h.state not in {"missing", "other", "folder"}
        ),
        flexible=1,
    )


def _words(hook: Hook) -> str:
    if hook.name not in hooktext.HOOKS and hook.state in {"missing", "other"}:
        return f"not asked for; `aipass git install --{'guard' if hook.name == hooktext.GUARD else 'trailers'}` writes it"
    return WORDS[hook.state] + (", calls the one of before" if hook.chained else "")
