"""`aipass plan`: phases that own parts of the tree: made, checked and drawn."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aipass.cli.output import json_option, print_json
from aipass.errors import EXIT_FAILED, ConfigError
from aipass.layout import find_root

if TYPE_CHECKING:
    from aipass.layout import Layout

#: Longer names of files help nobody.
SLUG_LENGTH = 40


@click.group("plan")
def command() -> None:
    """Make, check and draw plans: plans/<id>-<slug>.json."""


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
    from aipass import config
    from aipass.plan import templates
    from aipass.supervisor.wire import fresh

    layout = find_root()
    settings = config.load(layout.config)
    folder = layout.plans
    phases = templates.make(template, title, list(settings.agents), folder / "templates")
    folder.mkdir(exist_ok=True)
    number = max(
        (int(match[1]) for path in folder.glob("*.json") if (match := _NUMBERED.match(path.name))), default=0
    )
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:SLUG_LENGTH].strip("-") or "plan"
    plan = {
        "id": f"{number + 1:04}",
        "title": title,
        "template": template,
        "status": "draft",
        "phases": phases,
    }
    path = folder / f"{plan['id']}-{slug}.json"
    with open(fresh(path), "w", encoding="utf-8") as file:
        file.write(json.dumps(plan, indent=1, ensure_ascii=False) + "\n")
    os.chmod(path, 0o644)
    click.echo(path.relative_to(layout.root))


_NUMBERED = re.compile(r"([0-9]{1,9})(?:-.*)?\.json")


@command.command("check")
@click.argument("plan", metavar="FILE|ID")
@json_option
def check(plan: str, as_json: bool) -> int:
    """Find what keeps a plan from starting; exit status 1 where there is anything.

    Of every two phases that may run at the same time: whether both could write one path, and which.
    """
    from aipass import config
    from aipass.plan import model
    from aipass.plan.check import problems, warnings

    layout = find_root()
    found = model.load(find(layout, plan))
    wrong = problems(found, list(config.load(layout.config).agents))
    notes = warnings(found, _files(layout))
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
        click.echo(f"{click.style('note', fg='yellow')}  {' and '.join(note.phases)}: {note.message}")
    if not wrong:
        click.echo(f"plan {found.id} can start: {len(found.phases)} phases, none in another's way")
    return EXIT_FAILED if wrong else 0


@command.command("graph")
@click.argument("plan", metavar="FILE|ID")
@click.option("--mermaid", is_flag=True, help="As a Mermaid flowchart.")
def graph(plan: str, mermaid: bool) -> None:
    """Draw a plan's order: what stands under one number may run at the same time."""
    from aipass.plan import model
    from aipass.plan.graph import as_mermaid, as_text

    found = model.load(find(find_root(), plan))
    click.echo(as_mermaid(found) if mermaid else as_text(found))


@command.command("templates")
@json_option
def templates(as_json: bool) -> None:
    """List what `plan new` can begin with; your own are plans/templates/<name>.json."""
    from aipass.plan import templates

    found = templates.names(find_root().plans / "templates")
    if as_json:
        print_json(found)
    else:
        click.echo("\n".join(found))


def find(layout: Layout, name: str) -> Path:
    """The file of a plan, by its path or its id; raises ConfigError where there is none, or several."""
    if name.isdecimal():
        fitting = [
            path
            for path in sorted(layout.plans.glob("*.json"))
            if (match := _NUMBERED.fullmatch(path.name)) and int(match[1]) == int(name)
        ]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise ConfigError(
                f"several plans have the id {name}: {', '.join(path.name for path in fitting)}; rename all but one"
            )
        raise ConfigError(f"there is no plan {name} in {layout.plans}; `aipass plan new` makes one")
    for path in (Path.cwd() / name, layout.root / name, layout.plans / name):
        if path.is_file():
            return path
    raise ConfigError(f"there is no plan file `{name}`")


def _files(layout: Layout) -> list[str]:
    """The files of the tree, as git sees them where it does."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=layout.root,
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode == 0:
        return [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]
    return [
        os.path.relpath(os.path.join(top, name), layout.root)
        for top, _, files in os.walk(layout.root)
        if "/.aipass" not in top
        for name in files
    ]
