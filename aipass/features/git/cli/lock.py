"""`aipass lock`: the repo-wide git lease."""

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
    """Show who holds the git lease: one at a time builds or merges PRs. People's own git does not need it."""
    if context.invoked_subcommand is not None:
        return
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
        click.echo("nobody holds the git lease")
    layout = find_root()
    if tested := merge_checks.in_words(layout) if engine.holder(layout) else None:
        click.echo(f"{tested}; the lease is not held for it")
    for place, ticket in enumerate(tickets):
        word = "waits since" if place else "held since"
        click.echo(
            f"{word} {clock(ticket.since)} by {plain(ticket.holder)} (process {ticket.pid}): {plain(ticket.reason)}"
        )
    if index is not None:
        click.echo(
            f"git's own {index.path} stands there since {clock(index.since)}: {index.why_held or 'nobody holds it'}"
        )
        if index.why_held is None:
            click.echo("`aipass lock break` removes it")


@command.command("break")
@click.option(
    "--force",
    is_flag=True,
    help="Take it from a process that lives; what that does fails, and changes nothing.",
)
def break_(force: bool) -> int:
    """Take the lease away, and an index.lock that nobody holds. For people.

    A holder that died has lost it already.
    """
    if is_agent():
        click.echo("`lock break` is for people", err=True)
        return EXIT_REFUSED
    lease, own = _lease()
    said = False
    if tickets := lease.tickets():
        if not force:
            click.echo(
                f"it is held by {plain(tickets[0].told())}; that process lives; `--force` takes it away all the same",
                err=True,
            )
            return EXIT_REFUSED
        broken = lease.break_()
        if broken is not None:
            click.echo(f"taken from {plain(broken.told())}")
            said = True
    if (index := indexlock.look(own)) is not None:
        if index.why_held is not None:
            click.echo(f"{index.path} stays: {index.why_held}", err=True)
            return EXIT_REFUSED
        if indexlock.remove_stale(own):
            click.echo(f"{index.path} is removed: nobody held it")
            said = True
    if not said:
        click.echo("nobody holds the git lease")
    return 0


def _lease() -> tuple[Lease, Path]:
    root = find_root().root
    found = ask(root, "rev-parse", "--absolute-git-dir", bare=True)
    if not found:
        raise ConfigError(f"{root}: {no_repository(root)}")
    return Lease(hooks.common(root)), Path(found[0].removesuffix("\n"))
