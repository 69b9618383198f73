"""The verb `aipass lock`: shows and breaks the lease (git lock), which PR operations of one repository take in turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aipass.errors import EXIT_REFUSED, ConfigError
from aipass.event import iso, plain
from aipass.features.git import indexlock, merge_checks
from aipass.features.git.lease import Lease
from aipass.git import hooks
from aipass.git.query import ask, no_repository
from aipass.terminal.asking import is_agent
from aipass.terminal.output import clock, json_option, print_json
from aipass.workspace import engine_lock as engine
from aipass.workspace.layout import find_root


@click.group("lock", invoke_without_command=True)
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Show the holder of the git lease (lock). One process at a time builds or merges PRs; your own git needs no lease."""
    if context.invoked_subcommand is not None:
        return
    # The lease is ours and shared by all worktrees; index.lock is git's own and belongs to one worktree.
    lease, own = _lease()
    tickets, index = lease.tickets(), indexlock.look(own)
    if as_json:
        found: dict[str, Any] = {"held": bool(tickets)}
        first = tickets[0] if tickets else None
        found |= {name: getattr(first, name, None) for name in ("holder", "reason", "pid")}
        found["since"] = iso(first.since) if first is not None else None
        found["waiting"] = [
            {"holder": t.holder, "reason": t.reason, "since": iso(t.since), "pid": t.pid} for t in tickets[1:]
        ]
        found["index_lock"] = None if index is None else {"since": iso(index.since), "held": index.why_held}
        print_json(found)
        return
    if not tickets:
        click.echo("the git lease is free")
    layout = find_root()
    # Without an engine no check is running: the file about it is left over from one that was killed.
    if tested := merge_checks.in_words(layout) if engine.holder(layout) else None:
        # Checks may take long and run in a worktree of their own, so a merge takes the lease only after them.
        click.echo(f"{tested}; this needs no lease")
    for place, ticket in enumerate(tickets):
        word = "waiting since" if place else "held since"
        click.echo(
            f"{word} {clock(ticket.since)} by {plain(ticket.holder)} (process {ticket.pid}): {plain(ticket.reason)}"
        )
    if index is not None:
        click.echo(
            f"git's lock file {index.path} exists since {clock(index.since)}: {index.why_held or 'no process holds it'}"
        )
        if index.why_held is None:
            click.echo("`aipass lock break` removes it")


@command.command("break")
@click.option(
    "--force",
    is_flag=True,
    help="Break the lease of a live process too; its operation fails and changes nothing.",
)
def break_(force: bool) -> int:
    """For people: break the lease, and remove an index.lock that no process holds.

    The lease of a dead process ends without this.
    """
    # An agent could otherwise end the merge of another one, and git's own lock of a person.
    if is_agent():
        click.echo("`lock break` is for people", err=True)
        return EXIT_REFUSED
    lease, own = _lease()
    # Two separate locks: a stale index.lock must be removable also while the lease is free.
    said = False
    if tickets := lease.tickets():
        if not force:
            click.echo(
                f"the lease is held by {plain(tickets[0].told())}, and that process is alive; `--force` breaks the lease",
                err=True,
            )
            return EXIT_REFUSED
        # None if the holder has released it since: then nothing was broken, and nothing is reported.
        broken = lease.break_()
        if broken is not None:
            click.echo(f"lease broken; it was held by {plain(broken.told())}")
            said = True
    if (index := indexlock.look(own)) is not None:
        if index.why_held is not None:
            # Without git's lock a live git and another one would write the index at the same time and damage it.
            click.echo(f"{index.path} is not removed: {index.why_held}", err=True)
            return EXIT_REFUSED
        if indexlock.remove_stale(own):
            click.echo(f"{index.path} is removed: no process held it")
            said = True
    if not said:
        click.echo("the git lease is free")
    return 0


def _lease() -> tuple[Lease, Path]:
    root = find_root().root
    found = ask(root, "rev-parse", "--absolute-git-dir", bare=True)
    if not found:
        raise ConfigError(f"{root}: {no_repository(root)}")
    return Lease(hooks.common(root)), Path(found[0].removesuffix("\n"))
