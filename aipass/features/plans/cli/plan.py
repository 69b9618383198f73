"""The verb `aipass plan`: creates, checks, starts and shows plans, whose phases own parts of the tree."""

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

#: Length of the title in the name of a plan's file.
SLUG_LENGTH = 40
#: The title that is shown for a plan whose file is not valid.
UNFIT = "?"


@click.group("plan")
def command() -> None:
    """Create, check, start and show plans: plans/<id>-<slug>.json."""


@command.command("new")
@click.argument("title")
@click.option(
    "--template",
    default="feature",
    show_default=True,
    help="Template of the new plan; `plan templates` lists them.",
)
def new(title: str, template: str) -> None:
    """Create plans/<id>-<slug>.json for TITLE, for you to edit; print its path."""
    from aipass.config import reading
    from aipass.features.plans import templates
    from aipass.features.plans.model import NUMBERED
    from aipass.supervisor.held import fresh

    if not title.strip():
        raise ConfigError("a plan needs a title; give a few words")
    layout = find_root()
    settings = reading.load(layout.config)
    folder = layout.plans
    phases = templates.make(template, title, list(settings.agents), folder / "templates")
    folder.mkdir(exist_ok=True)
    # One more than the highest number, not the first free one, so that the numbers show the order of creation.
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
    # Only a note: two plans may have the same title, since the number makes the name of the file unique.
    for same in sorted(folder.glob(f"*-{glob.escape(slug)}.json")):
        click.echo(f"note: {same.relative_to(layout.root)} has the same title", err=True)
    path = folder / f"{plan['id']}-{slug}.json"
    # `fresh`: an agent may have put a link or a pipe at this path, and the write would follow it.
    with open(fresh(path), "w", encoding="utf-8") as file:
        file.write(json.dumps(plan, indent=1, ensure_ascii=False) + "\n")
    os.chmod(
        path, 0o644
    )  # `fresh` creates files for the owner only, but a plan is committed like source code
    click.echo(path.relative_to(layout.root))


@command.command("check")
@click.argument("plan", metavar="FILE|ID")
@json_option
def check(plan: str, as_json: bool) -> int:
    """List the problems that prevent a plan from starting. Exit status 1 if there are any.

    Names also a path that two phases could both write while they run in parallel.
    """
    from aipass.config import reading
    from aipass.features.plans import model
    from aipass.features.plans.check import Problem, between, problems, warnings

    layout = find_root()
    path = find(layout, plan)
    found = model.load(path)
    # Also against plans that run now, because `plan start` refuses a plan that overlaps one of them.
    wrong = problems(found, list(reading.load(layout.config).agents)) + between(
        found, _running(layout, found.id)
    )
    notes = warnings(found, _files(layout))
    named = model.NUMBERED.fullmatch(path.name)
    if named is not None and int(named[1]) != int(found.id):
        text = f"the id is {found.id}, but the file is named {named[1]}; the plan can start only if both are the same"
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
        click.echo(f"plan {found.id} can start: {count(len(found.phases), 'phase')}, no conflicts")
    return EXIT_FAILED if wrong else 0


def _running(layout: Layout, number: str) -> list[Plan]:
    """The other plans that are running or paused: their phases own paths that this plan must not overlap."""
    from aipass.features.plans import model
    from aipass.ledger import Ledger

    if not layout.ledger.exists():
        return []
    ledger = Ledger.read(layout.ledger)
    try:
        # The plan as it was started: its file may have been edited since, without effect on the running plan.
        rows = ledger.all("open_plans")
        return [model.taken_over(row["body"], row["file"]) for row in rows if row["id"] != number]
    finally:
        ledger.close()


@command.command("graph")
@click.argument("plan", metavar="FILE|ID")
@click.option("--mermaid", is_flag=True, help="Print a Mermaid flowchart.")
def graph(plan: str, mermaid: bool) -> None:
    """Show the phases of a plan as levels; phases of one level may run in parallel.

    For a started plan, show also the state of each phase.
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
        raise ConfigError(f"`{plan}` is not the id of a plan; `aipass plan status` lists the plans")
    layout = find_root()
    # Checked here as well, so that the user gets an error immediately, with or without an engine.
    # `start` needs a valid file. The other verbs need only the ledger, so they work without the file too.
    number = model.of_id(layout.plans, plan)[2].id if verb == "start" else _known(layout, plan)
    more: dict[str, Any] = {"again": True} if again else {}
    row = ask(layout, "plan", do=verb, id=number, **more)
    if row is not None:
        click.echo(row["message"])


@command.command("start")
@click.option("--again", is_flag=True, help="Run every phase of a finished plan again.")
@click.argument("plan", metavar="ID")
def start(plan: str, again: bool) -> None:
    """Start plan ID. Each phase runs when the phases in its `after` are done.

    Exit status 1 if `plan check` finds problems, 3 if it overlaps with a running plan.
    """
    _steer("start", plan, again=again)


@command.command("pause")
@click.argument("plan", metavar="ID")
def pause(plan: str) -> None:
    """Pause plan ID: start no further phase; live runs continue."""
    _steer("pause", plan)


@command.command("resume")
@click.argument("plan", metavar="ID")
def resume(plan: str) -> None:
    """Continue plan ID after a pause or a stop; after a failure from its failed phases."""
    _steer("resume", plan)


@command.command("stop")
@click.argument("plan", metavar="ID")
def stop(plan: str) -> None:
    """Stop plan ID and end the runs of its phases."""
    _steer("stop", plan)


@command.command("status")
@click.argument("plan", metavar="[ID]", required=False)
@json_option
def status(plan: str | None, as_json: bool) -> None:
    """Show the state of plan ID and of its phases; without ID, list all plans."""
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
        # Below the table: the reason has several words and lines, and would make every row narrow.
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
    """The ids of all plans that have a file or were started, in numeric order."""
    from aipass.features.plans.model import NUMBERED
    from aipass.ledger import Ledger

    found = {match[1] for path in layout.plans.glob("*.json") if (match := NUMBERED.fullmatch(path.name))}
    if layout.ledger.exists():
        ledger = Ledger.read(layout.ledger)
        found |= {row["id"] for row in ledger.all("all_plans")}
        ledger.close()
    # Two files may have equal numbers (`7-a.json`, `0007-b.json`): the second part of the key keeps their order stable.
    return sorted(found, key=lambda number: (int(number), number))


def _known(layout: Layout, plan: str) -> str:
    """The full id (`0007`) of a plan that the user may write short (`7`). Raises AipassError if there is none."""
    found = [number for number in _ids(layout) if plan.isdecimal() and int(number) == int(plan)]
    if not found:
        raise AipassError(f"there is no plan `{plan}`; `aipass plan status` lists them")
    return found[0]


def _status(layout: Layout, number: str) -> dict[str, Any]:
    """The object of `--json` for one plan: from the ledger if it was started, else from its file."""
    from aipass.features.plans import model
    from aipass.ledger import Ledger

    if layout.ledger.exists():
        ledger = Ledger.snapshot(layout.ledger)
        try:
            row = ledger.one("plan", {"id": number})
            if row is not None:
                return _begun(ledger, row)
        finally:
            ledger.close()
    try:
        plan = model.of_id(layout.plans, number)[2]
    except ConfigError as exc:
        # A plan that is not valid is listed with its fault: without a row the user would look for a missing file.
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
    """Simulate a plan in a temporary repository: order, parallelism, hand-overs, longest chain.

    This leaves your tree unchanged, starts none of your agents and runs no checks.
    """
    from aipass.config import reading
    from aipass.features.plans import model
    from aipass.features.plans.check import problems
    from aipass.features.plans.rehearse import rehearse

    layout = find_root()
    found = model.load(find(layout, plan))
    # The simulation expects a valid plan, as `plan start` does.
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
        click.echo(f"\nplan {found.id} would be {told.status}; at most {told.width} in parallel")
        click.echo(f"longest chain: {' -> '.join(told.critical)}")
        for before, after in told.handed:
            click.echo(f"{before} is handed over to {after} while its run continues")
    return 0 if told.status == "done" else EXIT_FAILED


def _after(seconds: Any) -> str:  # noqa: ANN401 - a number, or None
    return "-" if seconds is None else f"{seconds:.1f} s"


@command.command("templates")
@json_option
def templates(as_json: bool) -> None:
    """List the templates for `plan new`; your own templates are plans/templates/<name>.json."""
    from aipass.features.plans import templates

    found = templates.names(find_root().plans / "templates")
    if as_json:
        print_json(found)
    else:
        click.echo("\n".join(found))


def find(layout: Layout, name: str) -> Path:
    """Return the file of a plan, by its path or its id. Raises ConfigError if there is none, or several with that id."""
    if name.isdecimal():
        from aipass.features.plans import model

        return model.find(layout.plans, name)
    # The current folder first, as every program reads a path; then the forms that our own messages print.
    for path in (Path.cwd() / name, layout.root / name, layout.plans / name):
        if path.is_file():
            return path
    raise ConfigError(f"there is no plan file `{name}`")


def _files(layout: Layout) -> list[str]:
    """The files of the tree, without those that git ignores; without git, all files outside .aipass."""
    found = ask(layout.root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if found:
        return found
    return [
        os.path.relpath(os.path.join(top, name), layout.root)
        for top, _, files in os.walk(layout.root)
        if "/.aipass" not in top
        for name in files
    ]
