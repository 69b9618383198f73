"""`aipass pr`: what agents hand in."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from aipass import programs
from aipass.errors import AipassError, ConfigError
from aipass.event import inert, plain, printable
from aipass.git.query import ask as ask_git
from aipass.terminal.asking import ask, is_agent
from aipass.terminal.output import clock, json_option, lines_of, print_json, relative_to_root, table
from aipass.workspace import engine_lock
from aipass.workspace.layout import find_root

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aipass.features.git.pr_records import Pr, PrRecords
    from aipass.workspace.layout import Layout

STATES = ("open", "merged", "closed")


@click.group("pr")
def command() -> None:
    """What agents hand in: each PR is a commit of one agent's own changes, on a branch of its own."""


@command.command("open")
@click.option("-m", "--message", "messages", multiple=True, help="First the title, then paragraphs.")
@click.option("--agent", metavar="NAME", help="For people: whose work it is.")
@click.option("--dispatch", metavar="ID", help="Only what was written for this dispatch.")
@click.option("--include", is_flag=True, help="Take paths as they are now, whoever has changed them since.")
@click.argument("paths", nargs=-1)
def open_(
    messages: tuple[str, ...], agent: str | None, dispatch: str | None, include: bool, paths: tuple[str, ...]
) -> None:
    """Hand in what an agent has changed; with PATHS only that. The same title again goes on with the same PR.

    Nobody's HEAD, index or files change.
    """
    if not messages:
        raise ConfigError('a PR needs a title: `aipass pr open -m "Add login"`')
    layout = find_root()
    fields: dict[str, Any] = {"title": messages[0], "agent": agent, "dispatch": dispatch, "include": include}
    fields |= {"body": "\n\n".join(messages[1:]), "paths": [relative_to_root(layout, path) for path in paths]}
    # As long as it takes: others may hold the lease, and a forge may be slow.
    _say(ask(layout, "pr", needs_engine=is_agent(), patience_s=None, do="open", **fields))


@command.command("list")
@click.option("--state", type=click.Choice([*STATES, "all"]), default="all", show_default=True)
@json_option
def list_(state: str, as_json: bool) -> None:
    """All PRs, oldest first."""
    from aipass.features.git import merge_checks

    layout = find_root()
    wrong: list[str] = []
    found = [pr for pr in _records(layout).all(wrong) if state in {"all", pr.state}]
    if as_json:
        print_json([_listed(pr) for pr in found])
    elif not found:
        click.echo("no PRs" if state == "all" else f"no PR is {state}")
    else:
        failed = _failed(layout, found)
        rows = ((pr.id, pr.state, pr.agent, len(pr.paths), _titled(pr, failed)) for pr in found)
        table(("ID", "STATE", "AGENT", "PATHS", "TITLE"), rows)
        if tested := merge_checks.in_words(layout) if engine_lock.holder(layout) else None:
            click.echo(tested)
    for text in wrong:
        click.echo(f"warning: {text}", err=True)


@command.command("show")
@click.argument("number", metavar="ID", type=int)
@json_option
def show(number: int, as_json: bool) -> None:
    """One PR, whole."""
    layout = find_root()
    pr = _records(layout).get(number)
    failed = _failed(layout, [pr]).get(number)
    if as_json:
        about = pr.model_dump(mode="json", exclude={"schema_", "root", "asked"})
        print_json(about | {"paths": [printable(path) for path in pr.paths], "failed": failed})
        return
    click.secho(f"PR {pr.id}: {plain(pr.title)}", bold=True)
    for name, value in (
        ("state", pr.state + (f": {plain(pr.reason)}" if pr.reason else "")),
        ("agent", pr.agent),
        ("dispatch", pr.dispatch),
        ("plan", f"{pr.plan}, phase {pr.phase}" if pr.plan else None),
        ("branch", pr.ref.removeprefix("refs/heads/") if pr.state == "open" else f"refs/aipass/pr/{pr.id}"),
        ("for", (pr.branch or "").removeprefix("refs/heads/") or None),
        ("upon", f"PR {', '.join(map(str, pr.stacked_on))}" if pr.stacked_on else pr.base[:10]),
        ("commit", pr.head[:10]),
        ("merged in", pr.merged[:10] if pr.merged else None),
        ("opened", _clock(pr.created)),
        ("updated", _clock(pr.updated)),
        ("ended", _clock(pr.finished)),
        ("address", pr.url),
        ("not merged", failed and plain(failed)),
    ):
        if value is not None:
            click.echo(f"{name + ':':<12}{value}")
    if pr.body:
        # Indented: its lines are the agent's, and none may pass for one of ours.
        click.echo("\n" + "\n".join(lines_of(pr.body.strip())))
    click.echo()
    from aipass.features.git.pr_open import started_by_others

    why = dict(started_by_others(pr.paths))
    for path in pr.paths:
        note = f"   runs code: {plain(why[path])}" if path in why else ""
        click.echo(f"  {plain(str(printable(path)))}{click.style(note, fg='yellow')}")


@command.command("diff")
@click.argument("number", metavar="ID", type=int)
@click.option("--stat", is_flag=True, help="Only how much changes in which file.")
def diff(number: int, stat: bool) -> int:
    """What one PR changes, as `git diff` shows it."""
    layout = find_root()
    pr = _records(layout).get(number)
    # An open one is as its branch is: people may have gone on there.
    found = ask_git(layout.root, "rev-parse", "--verify", "--quiet", "--end-of-options", pr.ref, bare=True)
    stands = "".join(found).strip()
    head = stands if stands and pr.state == "open" else pr.head
    words = ["git", "-c", "core.fsmonitor=false", "diff", "--no-ext-diff", "--no-textconv"]
    words += [*(["--stat"] if stat else []), pr.base, head, "--"]
    sys.stdout.flush()
    if not sys.stdout.isatty():
        return programs.run(layout.root, words).returncode
    # An agent's text may hold what a terminal obeys: it is shown by us, in our colours.
    done = programs.run(layout.root, words, capture_output=True)
    for line in inert(done.stdout.decode("utf-8", "replace")).splitlines():
        colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
        click.secho(line, fg=colour, bold=line.startswith(("diff ", "+++", "---")))
    click.echo(done.stderr.decode("utf-8", "replace"), nl=False, err=True)
    return done.returncode


@command.command("merge")
@click.argument("numbers", metavar="ID...", type=int, nargs=-1, required=True)
@click.option(
    "--method", type=click.Choice(["merge", "squash", "ff"]), help="Instead of what aipass.toml says."
)
def merge(numbers: tuple[int, ...], method: str | None) -> None:
    """Merge PRs into the branch that is checked out, if their checks pass. For people and the orchestrator.

    Several are tested together; where that fails, those that fail alone are found and left out.
    """
    _say(_decide("merge", numbers, method=method))


@command.command("close")
@click.argument("numbers", metavar="ID...", type=int, nargs=-1, required=True)
@click.option("--reason", help="Why.")
def close(numbers: tuple[int, ...], reason: str | None) -> None:
    """Close PRs without merging them; their commits stay. For people and the orchestrator."""
    _say(_decide("close", numbers, reason=reason))


def _titled(pr: Pr, failed: Mapping[int, str]) -> str:
    """A title, and what matters for the next step."""
    more = []
    if pr.state == "open" and pr.stacked_on:
        more.append(f"upon PR {', '.join(map(str, pr.stacked_on))}")
    if pr.id in failed:
        more.append("its merge failed")
    return f"{plain(pr.title)} ({'; '.join(more)})" if more else plain(pr.title)


def _failed(layout: Layout, prs: Iterable[Pr]) -> dict[int, str]:
    """Why open ones were not merged when that was asked for last, as far as they have not changed since."""
    from aipass.ledger import Ledger

    if not layout.ledger.exists():
        return {}
    ledger, found = Ledger.read(layout.ledger), {}
    for pr in prs:
        if pr.state == "open":
            told = ledger.all("events_about", {"kind": "pr.failed", "ref": str(pr.id)})
            if told and told[0]["time"] >= datetime.fromisoformat(pr.updated or pr.created).timestamp():
                found[pr.id] = str(json.loads(told[0]["detail"])["reason"])
    ledger.close()
    return found


def _clock(moment: str | None) -> str | None:
    return None if moment is None else clock(datetime.fromisoformat(moment).timestamp())


def _decide(do: str, numbers: tuple[int, ...], **fields: str | None) -> Any:  # noqa: ANN401 - a row, or nothing
    from aipass.features.git import merge_checks

    layout = find_root()
    records = _records(layout)
    for number in numbers:
        records.get(number)  # said here at once where there is none
    return ask(
        layout,
        "pr",
        needs_engine=is_agent(),
        patience_s=None,
        label=lambda: merge_checks.in_words(layout) or "",
        do=do,
        ids=list(numbers),
        **fields,
    )


def _say(row: Any) -> None:  # noqa: ANN401 - a row, or nothing
    if row is not None:
        click.echo(plain_lines(row["message"]))


def plain_lines(text: str) -> str:
    """Several lines without control characters."""
    return "\n".join(plain(line) for line in text.split("\n"))


def _records(layout: Layout) -> PrRecords:
    from aipass.features.git.pr_records import PrRecords
    from aipass.git import hooks

    try:
        return PrRecords(hooks.common(layout.root))
    except AipassError as exc:
        raise ConfigError(str(exc)) from exc


def _listed(pr: Pr) -> dict[str, Any]:
    """A PR as scripts see it."""
    return {
        "id": pr.id,
        "agent": pr.agent,
        "ref": pr.ref,
        "base": pr.base,
        "state": pr.state,
        "title": pr.title,
        "created": pr.created,
        "dispatch": pr.dispatch,
        "head": pr.head,
        "branch": (pr.branch or "").removeprefix("refs/heads/") or None,
        "paths": [printable(path) for path in pr.paths],
        "stacked_on": list(pr.stacked_on),
        "plan": pr.plan,
        "phase": pr.phase,
        "merged": pr.merged,
        "url": pr.url,
    }
