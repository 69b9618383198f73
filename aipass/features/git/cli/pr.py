"""The verb `aipass pr`: opens, lists, shows, merges and closes PRs of agents."""

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
    """Manage PRs (pull requests) of agents. Each PR is one commit of one agent's own changes, on its own branch."""


@command.command("open")
@click.option("-m", "--message", "messages", multiple=True, help="The title; repeat it for paragraphs.")
@click.option("--agent", metavar="NAME", help="For people: the agent whose changes to use.")
@click.option("--dispatch", metavar="ID", help="Use only changes made for this dispatch.")
@click.option(
    "--include", is_flag=True, help="Include paths that others have changed since, as they are now."
)
@click.argument("paths", nargs=-1)
def open_(
    messages: tuple[str, ...], agent: str | None, dispatch: str | None, include: bool, paths: tuple[str, ...]
) -> None:
    """Open a PR with the changes of an agent, or only those in PATHS. The same title again updates the same PR.

    HEAD, index and files are left unchanged.
    """
    if not messages:
        raise ConfigError('a PR needs a title: `aipass pr open -m "Add login"`')
    layout = find_root()
    fields: dict[str, Any] = {"title": messages[0], "agent": agent, "dispatch": dispatch, "include": include}
    fields |= {"body": "\n\n".join(messages[1:]), "paths": [relative_to_root(layout, path) for path in paths]}
    # Without a limit: other processes may hold the lease, and a forge (GitHub, GitLab) may be slow.
    _say(ask(layout, "pr", needs_engine=is_agent(), patience_s=None, do="open", **fields))


@command.command("list")
@click.option("--state", type=click.Choice([*STATES, "all"]), default="all", show_default=True)
@json_option
def list_(state: str, as_json: bool) -> None:
    """List PRs, oldest first."""
    from aipass.features.git import merge_checks

    layout = find_root()
    # One unusable record must not hide the others: its fault is printed after the list.
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
    """Show one PR in detail."""
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
        ("on top of", f"PR {', '.join(map(str, pr.stacked_on))}" if pr.stacked_on else pr.base[:10]),
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
        # Indented: an agent wrote these lines, and none of them must look like a line of ours.
        click.echo("\n" + "\n".join(lines_of(pr.body.strip())))
    click.echo()
    from aipass.features.git.pr_open import started_by_others

    # Files that run code by being there (hooks, build files) need a closer look before a merge.
    why = dict(started_by_others(pr.paths))
    for path in pr.paths:
        note = f"   runs code: {plain(why[path])}" if path in why else ""
        click.echo(f"  {plain(str(printable(path)))}{click.style(note, fg='yellow')}")


@command.command("diff")
@click.argument("number", metavar="ID", type=int)
@click.option("--stat", is_flag=True, help="Show only the number of changed lines per file.")
def diff(number: int, stat: bool) -> int:
    """Show the changes of one PR, as `git diff` prints them."""
    layout = find_root()
    pr = _records(layout).get(number)
    # For an open PR the tip of its branch counts: people may have added commits there.
    found = ask_git(layout.root, "rev-parse", "--verify", "--quiet", "--end-of-options", pr.ref, bare=True)
    stands = "".join(found).strip()
    head = stands if stands and pr.state == "open" else pr.head
    # fsmonitor, external diffs and textconv start programs that files of the tree may name, so an agent could choose them.
    words = ["git", "-c", "core.fsmonitor=false", "diff", "--no-ext-diff", "--no-textconv"]
    words += [*(["--stat"] if stat else []), pr.base, head, "--"]
    sys.stdout.flush()  # git writes to the same descriptor: what we have printed must come first
    if not sys.stdout.isatty():
        return programs.run(layout.root, words).returncode
    # An agent's text may contain control sequences: we escape them and add the colours, instead of git.
    done = programs.run(layout.root, words, capture_output=True)
    for line in inert(done.stdout.decode("utf-8", "replace")).splitlines():
        colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
        click.secho(line, fg=colour, bold=line.startswith(("diff ", "+++", "---")))
    click.echo(done.stderr.decode("utf-8", "replace"), nl=False, err=True)
    return done.returncode


@command.command("merge")
@click.argument("numbers", metavar="ID...", type=int, nargs=-1, required=True)
@click.option(
    "--method",
    type=click.Choice(["merge", "squash", "ff"]),
    help="Merge method (default: the one in aipass.toml).",
)
def merge(numbers: tuple[int, ...], method: str | None) -> None:
    """Merge PRs into the branch that is checked out, if their checks pass. For people and the orchestrator.

    Several PRs are tested together. If that test fails, PRs that fail alone are left out.
    """
    _say(_decide("merge", numbers, method=method))


@command.command("close")
@click.argument("numbers", metavar="ID...", type=int, nargs=-1, required=True)
@click.option("--reason", help="Reason, shown by `aipass pr show`.")
def close(numbers: tuple[int, ...], reason: str | None) -> None:
    """Close PRs without merging them; their commits are kept. For people and the orchestrator."""
    _say(_decide("close", numbers, reason=reason))


def _titled(pr: Pr, failed: Mapping[int, str]) -> str:
    """The title, with facts that a merge depends on."""
    more = []
    if pr.state == "open" and pr.stacked_on:
        more.append(f"on top of PR {', '.join(map(str, pr.stacked_on))}")
    if pr.id in failed:
        more.append("its merge failed")
    return f"{plain(pr.title)} ({'; '.join(more)})" if more else plain(pr.title)


def _failed(layout: Layout, prs: Iterable[Pr]) -> dict[int, str]:
    """The reasons why the last merge of open PRs failed, by id; only for PRs that have not changed since."""
    from aipass.ledger import Ledger

    if not layout.ledger.exists():
        return {}
    ledger, found = Ledger.read(layout.ledger), {}
    for pr in prs:
        if pr.state == "open":
            # Newest first. A change of the PR after the failure makes the reason void.
            told = ledger.all("events_about", {"kind": "pr.failed", "ref": str(pr.id)})
            if told and told[0]["time"] >= datetime.fromisoformat(pr.updated or pr.created).timestamp():
                found[pr.id] = str(json.loads(told[0]["detail"])["reason"])
    ledger.close()
    return found


def _clock(moment: str | None) -> str | None:
    return None if moment is None else clock(datetime.fromisoformat(moment).timestamp())


def _decide(do: str, numbers: tuple[int, ...], **fields: str | None) -> Any:  # noqa: ANN401 - a row, or nothing
    # Without a time limit: the checks of a merge run as long as they need. The label shows which PRs are tested.
    from aipass.features.git import merge_checks

    layout = find_root()
    records = _records(layout)
    for number in numbers:
        records.get(
            number
        )  # raises before the request, so that a wrong number is reported without an engine too
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
    """Return a text of several lines without control characters; line ends are kept."""
    return "\n".join(plain(line) for line in text.split("\n"))


def _records(layout: Layout) -> PrRecords:
    from aipass.features.git.pr_records import PrRecords
    from aipass.git import hooks

    # In git's common folder, so that all worktrees and roots of one repository see the same PRs.
    try:
        return PrRecords(hooks.common(layout.root))
    except AipassError as exc:
        raise ConfigError(str(exc)) from exc


def _listed(pr: Pr) -> dict[str, Any]:
    """A PR as `pr list --json` prints it."""
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
