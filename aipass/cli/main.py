"""`aipass`: finds the verb's file, and turns what went wrong into words and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module
from typing import Any

import click

from aipass import __version__
from aipass.errors import EXIT_BUG, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, AipassError
from aipass.event import inert, plain
from aipass.terminal import screen

#: Verbs in the order of a first day, with what they do.
VERBS: dict[str, str] = {
    "init": "Make this folder a root: aipass.toml, folders, git excludes.",
    "up": "Run the engine.",
    "down": "Stop the engine; runs go on unless --kill.",
    "status": "Show the engine, its agents and the queue.",
    "send": "Give an agent work.",
    "dispatches": "List dispatches (jobs): the queue and its history.",
    "show": "Show one dispatch in detail.",
    "logs": "Show the output of a dispatch.",
    "cancel": "End a dispatch.",
    "retry": "Queue a finished dispatch again.",
    "resume": "End the pause of an agent, a rule, a driver or a handler.",
    "reload": "Reload the configuration.",
    "events": "Show the event log.",
    "why": "Show why something started, or did not.",
    "plan": "Create, check and run multi-phase plans.",
    "deliver": "For agents: mark my phase as delivered.",
    "owns": "Show who may write a path now.",
    "git": "Install git hooks; commits of agents.",
    "pr": "Open, list, review, merge and close pull requests made by agents.",
    "lock": "Show or break the git lock.",
    "note": "Add a note to an agent's state file.",
    "trinity": "Show and import agents' state files.",
    "recall": "Search the shared memory.",
    "forget": "Remove something from the shared memory.",
    "message": "Send a message to an agent, to all or to the person.",
    "messages": "List messages to an agent, or to you.",
    "ask": "Ask the person, or an agent, a question that must be answered.",
    "questions": "List open questions.",
    "answer": "Answer a question.",
    "plugins": "List installed plugins.",
    "schema": "Print the JSON Schema of files, events and output.",
    "doctor": "Check this machine and this repository for problems.",
    "demo": "Run a tour in a temporary repository.",
    "completion": "Print the shell completion script.",
    "help": "Explain the verbs, one verb, or all settings.",
}


#: Verbs that have their file beside their feature, `aipass.features.<feature>.cli.<verb>`; the others: `aipass.cli.<verb>`.
BESIDE: dict[str, tuple[str, ...]] = {
    "dispatch": ("send", "cancel", "retry", "resume"),
    "git": ("pr", "lock"),
    "memory": ("note", "trinity", "forget"),
    "messages": ("message", "messages", "ask", "questions", "answer"),
    "plans": ("plan", "deliver"),
    "reload": ("reload",),
}


#: The verbs by what one is about to do; each once.
GROUPS: dict[str, tuple[str, ...]] = {
    "Begin": ("init", "up", "down", "status", "doctor", "demo"),
    "Work": ("send", "dispatches", "show", "logs", "cancel", "retry", "resume", "reload"),
    "Find out": ("events", "why", "owns", "plugins", "schema", "help", "completion"),
    "Plans and git": ("plan", "deliver", "git", "pr", "lock"),
    "Talk and memory": (
        "message",
        "messages",
        "ask",
        "questions",
        "answer",
        "note",
        "trinity",
        "recall",
        "forget",
    ),
}
#: What other tools call it.
SYNONYMS: dict[str, list[str]] = {
    "start": ["up"],
    "serve": ["up"],
    "watch": ["up"],
    "stop": ["down"],
    "quit": ["down"],
    "kill": ["cancel"],
    "ps": ["status"],
    "agents": ["status"],
    "top": ["status"],
    "ls": ["dispatches"],
    "list": ["dispatches"],
    "queue": ["dispatches"],
    "jobs": ["dispatches"],
    "tasks": ["dispatches"],
    "history": ["dispatches"],
    "run": ["send"],
    "task": ["send"],
    "prompt": ["send"],
    "add": ["send"],
    "new": ["init"],
    "setup": ["init"],
    "install": ["init"],
    "log": ["logs"],
    "tail": ["logs"],
    "notices": ["status"],
    "chat": ["message"],
    "tell": ["message"],
    "memory": ["recall"],
    "check": ["doctor"],
    "config": ["schema"],
    "hooks": ["git"],
    "merge": ["pr"],
    "explain": ["why"],
    "version": ["--version"],
}


#: What a disk, a quota or a permission says; none of them is a bug of ours.
SURROUNDINGS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.EPIPE,
}


class Verbs(click.Group):
    """Loads a verb's file when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in their order."""
        del ctx
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One verb, ours or an installed package's."""
        del ctx
        if cmd_name not in VERBS:
            from aipass.cli import others

            return others.command(cmd_name)
        feature = next((feature for feature, verbs in BESIDE.items() if cmd_name in verbs), None)
        folder = "aipass.cli" if feature is None else f"aipass.features.{feature}.cli"
        command: click.Command = import_module(f"{folder}.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of verbs, without loading any."""
        del ctx
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, VERBS[name]) for name in names])
        from aipass.cli import others

        if found := others.shown():
            with formatter.section("Of plugins"):
                formatter.write_dl(found)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest verb for one that is unknown."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from aipass.cli import others

            if others.has(args[0]):
                return super().resolve_command(ctx, args)
            import difflib

            near = SYNONYMS.get(args[0].lower()) or difflib.get_close_matches(args[0], VERBS, 1)
            ctx.fail(
                f"there is no verb `{args[0]}`"
                + (f"; did you mean `{near[0]}`?" if near else "; `aipass --help` lists them")
            )
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="aipass")
def cli() -> None:
    """Runs several coding agents on one repository: files and git start them, and every start has a reason.

    Exit status: 0 done, 1 failed, 2 wrong usage or configuration, 3 refused by a rule, 4 no engine runs.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run one verb and exit with its code."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit code, with everything said on the way."""
    _allow_any_text()
    screen.take_over(folded=screen.is_folded(sys.argv[1:] if arguments is None else arguments))
    try:
        colour = False if os.environ.get("NO_COLOR") else None  # https://no-color.org
        result: Any = cli.main(args=arguments, prog_name="aipass", standalone_mode=False, color=colour)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except click.ClickException as exc:
        exc.show()
        return EXIT_USAGE
    except AipassError as exc:
        # What went wrong may be named by a file, or in the words, of an agent's.
        click.echo(f"{click.style('error:', fg='red')} {inert(str(exc))}", err=True)
        return exc.exit_code
    except OSError as exc:
        if exc.errno not in SURROUNDINGS:
            return _report_bug(exc)
        if isinstance(exc, BrokenPipeError):
            # Whoever read our output has seen enough, as in `aipass events | head`.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        click.echo(
            f"{click.style('error:', fg='red')} {exc.filename or 'this machine'}: {exc.strerror}", err=True
        )
        return EXIT_FAILED
    except Exception as exc:  # noqa: BLE001 - the last boundary: a bug becomes a report
        return _report_bug(exc)
    return result if isinstance(result, int) else 0


def _report_bug(exc: Exception) -> int:
    from pathlib import Path

    from aipass.workspace.crash_report import write_report
    from aipass.workspace.layout import find_root

    try:
        folder = find_root().crashes
    except Exception:  # noqa: BLE001 - nothing may stop the report of a bug
        folder = Path.home() / ".cache" / "aipass" if os.environ.get("HOME") else Path("/nonexistent")
    report = write_report(folder, exc, "aipass " + " ".join(sys.argv[1:]))
    click.echo(
        f"{click.style('bug in aipass:', fg='red')} {type(exc).__name__}: {plain(str(exc).split(chr(10), maxsplit=1)[0])}",
        err=True,
    )
    click.echo(f"a report that you can file is in {report}", err=True)
    return EXIT_BUG


def _allow_any_text() -> None:
    """File names need not be UTF-8; what cannot be shown is shown escaped, never the reason of a crash."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
