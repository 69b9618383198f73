"""The verb `aipass git`: installs the hooks that report git operations to the engine, and makes commits for agents."""

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

#: The text of each state in the table, with the remedy.
WORDS = {
    "installed": "installed",
    "missing": "not installed",
    "folder": "a folder has this name; left unchanged, git runs no such hook",
    "other": "not installed; a hook of yours has this name",
    "replaced": "replaced by another hook; `aipass git install` puts ours before it again",
    "lost": "removed together with the hook that it called; `aipass git install` repairs it",
    "changed": "edited since the installation; `aipass git install` repairs it",
}


@click.group("git")
def command() -> None:
    """Install hooks that report git operations to the engine immediately; commit as an agent on its own branch."""


@command.command("install")
@click.option(
    "--guard",
    is_flag=True,
    help="Also pre-commit: refuse a commit of paths that a running phase of a plan writes.",
)
@click.option(
    "--trailers",
    is_flag=True,
    help="Also commit-msg: add the dispatches whose work is committed as trailers.",
)
def install(guard: bool, trailers: bool) -> int:
    """Install the hooks. Existing hooks still run, with the same arguments and stdin; `uninstall` restores them."""
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
    # Tracked hooks (husky, lefthook) would change in the next commit if we wrote into their folder.
    if (theirs := hooks.called(layout.root)) is not None:
        click.echo(
            f"the hooks in {theirs} are tracked by git: they are left unchanged, and our hooks call them "
            "(core.hooksPath names our folder until `aipass git uninstall`)"
        )
    if hooks.is_shared(layout.root):
        click.echo(
            "git uses these hooks in every repository that shares the folder (core.hooksPath); "
            "they report only to the engines of roots where `aipass git install` was run"
        )
    return 0


@command.command("uninstall")
def uninstall() -> int:
    """Remove the hooks; hooks from before `install` are restored byte for byte."""
    if (reason := _refusal("uninstall")) is not None:
        click.echo(reason, err=True)
        return EXIT_REFUSED
    # "missing", "other" and "folder" are the states after a complete removal: none of them is a hook of ours.
    left = hooks.uninstall(_place())
    if any(hook.state not in {"missing", "other", "folder"} for hook in left):
        _show(left)
    else:
        click.echo(f"our hooks are removed from {left[0].path.parent}; earlier hooks are restored")
    if others := hooks.left_over(_place()):
        click.echo(
            f"another tool has written {', '.join(path.name for path in others)} into {others[0].parent}, which git no longer uses; "
            "install the hooks of that tool again",
            err=True,
        )
    if any(hook.state == "installed" for hook in left):
        click.echo("the hooks stay installed: other roots of this repository still use them")
    if kept := [hook for hook in left if hook.state == "replaced"]:
        names = ", ".join(hook.path.name + hooktext.ASIDE for hook in kept)
        raise AipassError(
            f"another hook has replaced ours and is left unchanged; the hooks from before `install` are kept as {names}"
        )
    return 0


@command.command("status")
@json_option
def status(as_json: bool) -> None:
    """Show the state of each hook."""
    found = hooks.status(_place())
    if as_json:
        print_json(
            [{"name": h.name, "path": str(h.path), "state": h.state, "chained": h.chained} for h in found]
        )
    else:
        _show(found)


@command.command("guard", hidden=True)
def guard() -> int:
    """Called by the pre-commit hook: exit status 3 if the commit contains files that an agent is still writing."""
    from aipass.features.git import guard as guarding
    from aipass.features.plans.reserved import reserved

    unfinished = guarding.unfinished(find_root(), reserved)
    if not unfinished:
        return 0
    # On stdout, with the name of the tool: git passes the output of hooks through among that of other hooks.
    click.echo("aipass: not committed, because agents are still writing these files:")
    for path, who in unfinished.items():
        click.echo(f"  {plain(str(printable(path)))}  ({who})")
    click.echo("Commit the other files by name (`git commit -- PATH…`), or wait (`aipass plan status`);")
    click.echo("`git commit --no-verify` skips this check.")
    return EXIT_REFUSED


@command.command("trailers", hidden=True)
@click.argument("file")
def trailers(file: str) -> None:
    """Called by the commit-msg hook: adds to the message in FILE the dispatches whose work is committed."""
    from aipass.features.git import guard as guarding

    guarding.add_trailers(find_root(), file)


@command.command("commit")
@click.option(
    "-m", "--message", "messages", multiple=True, required=True, help="The title; repeat it for paragraphs."
)
@click.option(
    "--include", is_flag=True, help="Include paths that others have changed since, as they are now."
)
@click.argument("paths", nargs=-1)
def commit(messages: tuple[str, ...], include: bool, paths: tuple[str, ...]) -> None:
    """For agents: commit your own changes on your own branch. HEAD, index and files are left unchanged.

    `aipass pr open` opens a PR with the changes.
    """
    if not is_agent():
        raise ConfigError(
            "`aipass git commit` is for agents; people use `git commit`, or `aipass pr open --agent NAME`"
        )
    layout = find_root()
    named = [relative_to_root(layout, path) for path in paths]
    body = "\n\n".join(messages[1:])
    # The engine makes the commit: the sandbox lets no agent write into git's own folder.
    row = ask(layout, "commit", needs_engine=True, title=messages[0], body=body, paths=named, include=include)
    if row is not None:
        click.echo(row["message"])


def _refusal(verb: str) -> str | None:
    """The reason to refuse the verb to an agent; None for a person."""
    # Hooks run outside the sandbox, with the rights of the person who commits: an agent must not change them.
    agent = os.environ.get("AIPASS_AGENT")
    return None if agent is None else f"`git {verb}` is for people, and `{agent}` is an agent"


def _place() -> Path:
    """The root; the current folder if aipass.toml was already removed, so that `uninstall` still works there."""
    try:
        return find_root().root
    except ConfigError:
        # With AIPASS_ROOT the user has named a root: the current folder could be another repository.
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
            # Hooks of earlier versions are listed only while one of them is still installed.
            if h.name not in hooktext.FORMER or h.state not in {"missing", "other", "folder"}
        ),
        flexible=1,
    )


def _words(hook: Hook) -> str:
    if hook.name not in hooktext.HOOKS and hook.state in {"missing", "other"}:
        return f"optional; `aipass git install --{'guard' if hook.name == hooktext.GUARD else 'trailers'}` installs it"
    return WORDS[hook.state] + (", calls the earlier hook" if hook.chained else "")
