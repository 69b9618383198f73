"""`aipass plan`: phases that own parts of the tree: made, checked, drawn, started and followed."""

from __future__ import annotations

import glob
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aipass.errors import EXIT_FAILED, AipassError, ConfigError
from aipass.event import one_line, plain
from aipass.git.query import ask
from aipass.terminal.output import json_option, lines_of, print_json, table
from aipass.text.units import count
from aipass.workspace.layout import find_root

if TYPE_CHECKING:
    from aipass.features.plans.model import Phase, Plan
    from aipass.ledger import Ledger, Row
    from aipass.workspace.layout import Layout

#: Longer names of files help nobody.
SLUG_LENGTH = 40
#: The title of a plan whose file is not valid.
UNFIT = "?"


@click.group("plan")
def command() -> None:
    """Make, check, start and follow plans: plans/<id>-<slug>.json."""


@command.command("new")
@click.argument("title")
@click.option(
    "--template",
    default="feature",
    show_default=True,
    help="What to begin with; `plan templates` lists them.",
)
def new(title: str, template: str) -> None:
    """Write plans/<id>-<slug>.json for TITLE, to be edited; prints its path."""
    from aipass.config import reading
    from aipass.features.plans import templates
    from aipass.features.plans.model import NUMBERED
    from aipass.supervisor.held import fresh

    if not title.strip():
        raise ConfigError("a plan needs a title; say in a few words what it is for")
    layout = find_root()
    settings = reading.load(layout.config)
    folder = layout.plans
    phases = templates.make(template, title, list(settings.agents), folder / "templates")
    folder.mkdir(exist_ok=True)
    number = max(
        (int(match[1]) for path in folder.glob("*.json") if (match := NUMBERED.match(path.name))), default=0
    )
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:SLUG_LENGTH].strip("-") or "plan"
    plan = {
        "id": f"{number + 1:04}",
        "title": title,
        "template": template,
        "status": "draft",
        "phases": phases,
    }
    for same in sorted(folder.glob(f"*-{glob.escape(slug)}.json")):
        click.echo(f"note: {same.relative_to(layout.root)} has the same title", err=True)
    path = folder / f"{plan['id']}-{slug}.json"
    with open(fresh(path), "w", encoding="utf-8") as file:
        file.write(json.dumps(plan, indent=1, ensure_ascii=False) + "\n")
    os.chmod(path, 0o644)
    click.echo(path.relative_to(layout.root))


@command.command("check")
@click.argument("plan", metavar="FILE|ID")
@json_option
def check(plan: str, as_json: bool) -> int:
    """Find what keeps a plan from starting; exit status 1 where there is anything.

    Of every two phases that may run at the same time: whether both could write one path, and which.
    """
    from aipass.config import reading
    from aipass.features.plans import model
    from aipass.features.plans.check import Problem, between, problems, warnings

    layout = find_root()
    path = find(layout, plan)
    found = model.load(path)
    wrong = problems(found, list(reading.load(layout.config).agents)) + between(
        found, _running(layout, found.id)
    )
    notes = warnings(found, _files(layout))
    named = model.NUMBERED.fullmatch(path.name)
    if named is not None and int(named[1]) != int(found.id):
        text = (
            f"its id is {found.id} and its file is named {named[1]}; it cannot be started before they are one"
        )
        notes.append(Problem("other-id", (), text))
    if as_json:
        print_json(
            {
                "ok": not wrong,
                "problems": [p.as_json() for p in wrong],
                "warnings": [w.as_json() for w in notes],
            }
        )
        return EXIT_FAILED if wrong else 0
    for problem in wrong:
        click.echo(
            f"{click.style(problem.kind, fg='red')}  {' and '.join(problem.phases)}: {problem.message}"
        )
    for note in notes:
        of = f"{' and '.join(note.phases)}: " if note.phases else ""
        click.echo(f"{click.style('note', fg='yellow')}  {of}{note.message}")
    if not wrong and not any(note.kind == "other-id" for note in notes):
        click.echo(f"plan {found.id} can start: {count(len(found.phases), 'phase')}, none in another's way")
    return EXIT_FAILED if wrong else 0


def _running(layout: Layout, number: str) -> list[Plan]:
    """The other plans that run or are paused."""
    from aipass.features.plans import model
    from aipass.ledger import Ledger

    if not layout.ledger.exists():
        return []
    ledger = Ledger.read(layout.ledger)
    try:
        rows = ledger.all("open_plans")
        return [model.taken_over(row["body"], row["file"]) for row in rows if row["id"] != number]
    finally:
        ledger.close()


@command.command("graph")
@click.argument("plan", metavar="FILE|ID")
@click.option("--mermaid", is_flag=True, help="As a Mermaid flowchart.")
def graph(plan: str, mermaid: bool) -> None:
    """Draw a plan's order: what stands under one number may run at the same time.

    For a plan that was started, show the state of each phase.
    """
    from aipass.features.plans import model
    from aipass.features.plans.graph import as_mermaid, as_text
    from aipass.ledger import Ledger

    layout = find_root()
    found = model.load(find(layout, plan))
    states: dict[str, str] = {}
    if layout.ledger.exists():
        ledger = Ledger.read(layout.ledger)
        try:
            states = {row["id"]: row["state"] for row in ledger.all("phases_of", {"plan": found.id})}
        finally:
            ledger.close()
    click.echo(as_mermaid(found, states) if mermaid else as_text(found, states))


def _steer(verb: str, plan: str, *, again: bool = False) -> None:
    from aipass.features.plans import model
    from aipass.terminal.asking import ask

    if not plan.isdecimal():
        raise ConfigError(f"`{plan}` is no plan's id; `aipass plan status` lists them")
    layout = find_root()
    # Checked here as well, so that what is wrong is said at once, whether an engine runs or not.
    number = model.of_id(layout.plans, plan)[2].id if verb == "start" else _known(layout, plan)
    more: dict[str, Any] = {"again": True} if again else {}
    row = ask(layout, "plan", do=verb, id=number, **more)
    if row is not None:
        click.echo(row["message"])


@command.command("start")
@click.option("--again", is_flag=True, help="Though it is done: every phase once more.")
@click.argument("plan", metavar="ID")
def start(plan: str, again: bool) -> None:
    """Start plan ID: its phases run as what they wait for is done.

    Exit status 1 where `plan check` finds problems, 3 where it overlaps a running plan.
    """
    _steer("start", plan, again=again)


@command.command("pause")
@click.argument("plan", metavar="ID")
def pause(plan: str) -> None:
    """Begin no further phase of plan ID; what runs goes on."""
    _steer("pause", plan)


@command.command("resume")
@click.argument("plan", metavar="ID")
def resume(plan: str) -> None:
    """Go on with plan ID, which was paused or stopped, or failed: from its failed phases."""
    _steer("resume", plan)


@command.command("stop")
@click.argument("plan", metavar="ID")
def stop(plan: str) -> None:
    """End plan ID, and the runs of its phases."""
    _steer("stop", plan)


@command.command("status")
@click.argument("plan", metavar="[ID]", required=False)
@json_option
def status(plan: str | None, as_json: bool) -> None:
    """Show where plan ID stands; without ID, every plan."""
    layout = find_root()
    if plan is not None:
        found = _status(layout, _known(layout, plan))
        if as_json:
            print_json(found)
        else:
            _show(found)
        return
    every = [_status(layout, number) for number in _ids(layout)]
    if as_json:
        print_json(every)
    else:
        rows = ((p["id"], p["title"], p["status"], _progress(p)) for p in every)
        table(("ID", "TITLE", "STATUS", "DONE"), rows, flexible=1)
        for unfit in (p for p in every if p["title"] == UNFIT):
            click.echo("\n".join(lines_of(f"plan {unfit['id']} cannot be used: {unfit['reason']}", "")))


def _progress(plan: dict[str, Any]) -> str:
    return f"{sum(phase['status'] == 'done' for phase in plan['phases'])} of {len(plan['phases'])}"


def _show(plan: dict[str, Any]) -> None:
    click.echo(
        f"plan {plan['id']}  {plain(plan['title'])}  {plan['status']}"
        + (f": {plan['reason']}" if plan["reason"] else "")
    )
    click.echo()
    rows = (
        (
            p["id"],
            p["agent"],
            p["status"],
            p["dispatch"] or "-",
            one_line(p["reason"] or " ".join(p["delivered"])) + (f" (PR {p['pr']})" if p.get("pr") else "")
            or "-",
        )
        for p in plan["phases"]
    )
    table(("PHASE", "AGENT", "STATUS", "DISPATCH", "WHAT"), rows, flexible=4, wraps=True)


def _ids(layout: Layout) -> list[str]:
    """Every plan that has a file, or has begun."""
    from aipass.features.plans.model import NUMBERED
    from aipass.ledger import Ledger

    found = {match[1] for path in layout.plans.glob("*.json") if (match := NUMBERED.fullmatch(path.name))}
    if layout.ledger.exists():
        ledger = Ledger.read(layout.ledger)
        found |= {row["id"] for row in ledger.all("all_plans")}
        ledger.close()
    return sorted(found, key=lambda number: (int(number), number))


def _known(layout: Layout, plan: str) -> str:
    """The id of a plan as it is written; raises AipassError where there is none."""
    found = [number for number in _ids(layout) if plan.isdecimal() and int(number) == int(plan)]
    if not found:
        raise AipassError(f"there is no plan `{plan}`; `aipass plan status` lists them")
    return found[0]


def _status(layout: Layout, number: str) -> dict[str, Any]:
    """What `--json` prints of one plan."""
    from aipass.features.plans import model
    from aipass.ledger import Ledger

    if layout.ledger.exists():
        ledger = Ledger.read(layout.ledger)
        try:
            row = ledger.one("plan", {"id": number})
            if row is not None:
                return _begun(ledger, row)
        finally:
            ledger.close()
    try:
        plan = model.of_id(layout.plans, number)[2]
    except ConfigError as exc:
        return {"id": number, "title": UNFIT, "status": "draft", "reason": str(exc), "phases": []}
    phases = [_phase(p, "waiting", None, [], None) for p in plan.phases]
    return {"id": plan.id, "title": plan.title, "status": "draft", "reason": None, "phases": phases}


def _begun(ledger: Ledger, row: Row) -> dict[str, Any]:
    from aipass.features.plans import model

    plan = model.parse(row["body"], row["file"])
    phases = []
    for r in ledger.all("phases_of", {"plan": row["id"]}):
        written = [w["path"] for w in ledger.all("written_of", {"plan": row["id"], "phase": r["id"]})]
        about = _phase(plan.phase(r["id"]), r["state"], r["dispatch"], written, r["reason"])
        phases.append(about | {"pr": r["pr"]})
    return {
        "id": row["id"],
        "title": row["title"],
        "status": row["state"],
        "reason": row["reason"],
        "phases": phases,
    }


def _phase(
    spec: Phase, state: str, dispatch: int | None, written: list[str], reason: str | None
) -> dict[str, Any]:
    return {
        "id": spec.id,
        "agent": spec.agent,
        "status": state,
        "owns": list(spec.owns),
        "delivered": written,
        "dispatch": dispatch,
        "reason": reason,
        "pr": None,
    }


@command.command("rehearse")
@click.argument("plan", metavar="FILE|ID")
@json_option
def rehearse(plan: str, as_json: bool) -> int:
    """Go through a plan with stand-ins, in a scratch repository: order, width, hand-overs, longest chain.

    Your tree is not touched, your agents are not started, checks are not run.
    """
    from aipass.config import reading
    from aipass.features.plans import model
    from aipass.features.plans.check import problems
    from aipass.features.plans.rehearse import rehearse

    layout = find_root()
    found = model.load(find(layout, plan))
    if wrong := problems(found, list(reading.load(layout.config).agents)):
        raise AipassError(
            f"plan {found.id} cannot start: {wrong[0].message}; `aipass plan check {found.id}` lists all"
        )
    told = rehearse(found)
    phases = [dict(zip(("id", "status", "started", "done"), phase, strict=True)) for phase in told.phases]
    if as_json:
        about = {"id": found.id, "status": told.status, "width": told.width, "critical": list(told.critical)}
        print_json({**about, "handed_over": [list(pair) for pair in told.handed], "phases": phases})
    else:
        rows = ((p["id"], p["status"], _after(p["started"]), _after(p["done"])) for p in phases)
        table(("PHASE", "STATUS", "STARTED", "DONE"), rows, flexible=0)
        click.echo(f"\nplan {found.id} would be {told.status}; at most {told.width} at once")
        click.echo(f"longest chain: {' -> '.join(told.critical)}")
        for before, after in told.handed:
            click.echo(f"{before} is handed over to {after} while its run lives on")
    return 0 if told.status == "done" else EXIT_FAILED


def _after(seconds: Any) -> str:  # noqa: ANN401 - a number, or None
    return "-" if seconds is None else f"{seconds:.1f} s"


@command.command("templates")
@json_option
def templates(as_json: bool) -> None:
    """List what `plan new` can begin with; your own are plans/templates/<name>.json."""
    from aipass.features.plans import templates

    found = templates.names(find_root().plans / "templates")
    if as_json:
        print_json(found)
    else:
        click.echo("\n".join(found))


def find(layout: Layout, name: str) -> Path:
    """The file of a plan, by its path or its id; raises ConfigError where there is none, or several."""
    if name.isdecimal():
        from aipass.features.plans import model

        return model.find(layout.plans, name)
    for path in (Path.cwd() / name, layout.root / name, layout.plans / name):
        if path.is_file():
            return path
    raise ConfigError(f"there is no plan file `{name}`")


def _files(layout: Layout) -> list[str]:
    """The files of the tree, as git sees them where it does."""
    found = ask(layout.root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if found:
        return found
    return [
        os.path.relpath(os.path.join(top, name), layout.root)
        for top, _, files in os.walk(layout.root)
        if "/.aipass" not in top
        for name in files
    ]
