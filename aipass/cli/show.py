"""The verb `aipass show`: one dispatch in detail."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from aipass.cli.waiting import WaitReasons
from aipass.errors import AipassError
from aipass.event import inert, iso, plain, printable
from aipass.supervisor import held
from aipass.terminal.find import find_dispatch, snapshot
from aipass.terminal.output import clock, coloured_state, dispatch_json, json_option, print_json, senders_of
from aipass.workspace.layout import find_root

if TYPE_CHECKING:
    from aipass.ledger import Ledger, Row
    from aipass.workspace.layout import Layout


#: Prefix of a key that is a digest of the text; it is shortened for people.
DIGEST = "sha256:"
#: The part of an answer that is shown; the whole answer is a file in outbox/.
SHOWN_BYTES, SHOWN_LINES, SHOWN_COLUMNS = 20_000, 20, 200


@click.command("show")
@click.argument("dispatch_id", metavar="ID")
@json_option
@click.option(
    "--prompt", is_flag=True, help="Print only the prompt of the last run, or of the next one if none began."
)
def command(dispatch_id: str, as_json: bool, prompt: bool) -> None:
    """Show the dispatch ID in detail: senders, runs, refused writes, answer."""
    layout = find_root()
    ledger = snapshot(layout)
    row = find_dispatch(ledger, dispatch_id)
    if prompt:
        click.echo(_prompt(layout, ledger, row), nl=False)
        return
    found: dict[str, Any] = dispatch_json(row, senders_of(ledger, row["id"]))
    found["runs"] = [
        {
            "id": run["id"],
            "pid": run["pid"],
            "started": iso(run["started"]),
            "finished": iso(run["finished"]),
            "exit": run["exit"],
            "signal": run["signal"],
            "outcome": run["outcome"],
        }
        for run in ledger.all("runs_of", {"dispatch": row["id"]})
    ]
    found |= {
        "answer": printable(row["answer"]),
        "cause": row["cause"],
        "priority": row["priority"],
        "hops": row["hops"],
    }
    found |= {
        "exit": row["exit"],
        "usage": json.loads(row["usage"]) if row["usage"] else None,
        "session": row["session"],
    }
    if as_json:
        print_json(found)
        return
    # Below here texts of agents and senders are printed: each goes through `plain`, which escapes control characters.
    click.echo(
        f"dispatch {found['id']} for {found['agent']}: {coloured_state(found['state'])}"
        + (f", {plain(found['reason'])}" if found["reason"] else "")
    )
    if waits := WaitReasons(layout, ledger).of(row):
        click.echo(f"  waiting   {plain(waits)}")
    for name in ("subject", "key", "priority", "hops"):
        if found[name]:
            click.echo(f"  {name:<9} {_short(plain(str(found[name])))}")
    click.echo(f"  senders   {plain(', '.join(found['senders']))}")
    click.echo(
        f"  created   {clock(row['created'])}   started {clock(row['started'])}   finished {clock(row['finished'])}"
    )
    for run in found["runs"]:
        how = run["outcome"] or "running"
        ended = (
            f", exit status {run['exit']}"
            if run["exit"] is not None
            else f", signal {run['signal']}"
            if run["signal"] is not None
            else ""
        )
        click.echo(f"  run {run['id']:<5} {how}{ended}, process {run['pid'] or '-'}")
    for refused in ledger.all("refused_of", {"dispatch": row["id"]}):
        reason = json.loads(refused["detail"])["reason"]
        click.echo(f"  refused   {plain(str(printable(refused['path'])))}: {plain(reason)}")
    if used := _used(found["usage"] or {}):
        click.echo(f"  used      {used}")
    click.echo(f"  answer    {found['answer'] or '-'}")
    for line in _begin(layout, found["answer"]):
        click.echo(f"    {line}")
    click.echo(
        f"more: `aipass logs {found['id']}`, `aipass why {found['id']}`, `aipass show {found['id']} --prompt`"
    )


def _short(value: str) -> str:
    """A digest is cut after 12 digits; `--json` has all of it."""
    return value[: len(DIGEST) + 12] + "…" if value.startswith(DIGEST) and len(value) > 30 else value


def _begin(layout: Layout, answer: str | None) -> list[str]:
    """The first lines of an answer, without control characters."""
    if answer is None:
        return []
    try:
        # `held` follows no links: an agent may have put one in the place of its answer.
        text = held.read_begin(layout.root / answer, SHOWN_BYTES).decode("utf-8", "replace")
    except OSError:
        return []
    lines = [plain(line)[:SHOWN_COLUMNS] for line in text.splitlines()]
    more = (
        [f"… the whole answer is in {answer}"] if len(lines) > SHOWN_LINES or len(text) >= SHOWN_BYTES else []
    )
    return lines[:SHOWN_LINES] + more


def _used(usage: dict[str, Any]) -> str:
    """Tokens and cost in words, as far as the driver reports them."""
    told = (
        ("input_tokens", "{:,.0f} tokens in"),
        ("output_tokens", "{:,.0f} out"),
        ("cost_usd", "{:.4f} US dollars"),
    )
    return ", ".join(text.format(usage[name]) for name, text in told if usage.get(name) is not None)


def _prompt(layout: Layout, ledger: Ledger, row: Row) -> str:
    """The prompt of the last run; for a queued dispatch the prompt that it would get now."""
    from aipass.app import assemble
    from aipass.config import reading
    from aipass.features.dispatch.feature import DispatchFeature
    from aipass.plugins import Plugins
    from aipass.supervisor.wire import PROMPT

    runs = [run["id"] for run in ledger.all("runs_of", {"dispatch": row["id"]})]
    if runs and row["state"] != "queued":
        try:
            text = (layout.run(runs[-1]) / PROMPT).read_text("utf-8", "replace")
            # To a file or a pipe the exact bytes; on a terminal nothing in it must act as a control sequence.
            return inert(text) if sys.stdout.isatty() else text
        except OSError:
            pass  # the run's folder was pruned: compute the prompt again below
    settings = reading.load(layout.config)
    if row["agent"] not in settings.agents:
        raise AipassError(
            f"the prompt was pruned and cannot be computed: agent `{row['agent']}` is no longer configured"
        )
    plugins = Plugins()
    plugins.load_installed(layout.root)
    session = row["session"]
    # A reply continues the conversation of the dispatch that it replies to; later attempts have their own session.
    if row["attempts"] == 0 and row["reply_to"] is not None:
        before = ledger.one("dispatch", {"id": row["reply_to"]})
        session = None if before is None else before["session"]
    launcher = assemble(layout, ledger, plugins, settings).need(DispatchFeature).launcher
    return launcher.prompt(row, None, row["attempts"] + 1, goes_on=session is not None)
