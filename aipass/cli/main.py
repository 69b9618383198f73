"""The command `aipass`: finds the module of a verb, and turns exceptions into a message and an exit code."""

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

#: Verbs with their one-line help, in the order in which a new user needs them.
# A static table: importing the modules of all verbs for `aipass --help` would take 0.6 s more.
VERBS: dict[str, str] = {
    "init": "Set up this folder as a root: aipass.toml, folders, git excludes.",
    "up": "Run the engine.",
    "down": "Stop the engine; runs continue unless --kill.",
    "status": "Show the engine, its agents and the queue.",
    "send": "Give work to an agent.",
    "dispatches": "List dispatches (jobs): the queue and its history.",
    "show": "Show one dispatch in detail.",
    "logs": "Show the output of a dispatch.",
    "cancel": "Cancel a dispatch.",
    "retry": "Queue a finished dispatch again.",
    "resume": "End the pause of an agent, a rule, a driver or a handler.",
    "reload": "Reload the configuration.",
    "events": "Show the event log.",
    "why": "Explain why something started or did not start.",
    "plan": "Create, check and run multi-phase plans.",
    "deliver": "For agents: mark the phase of this run as delivered.",
    "owns": "Show which agent may write a path now.",
    "git": "Install git hooks; commit as an agent.",
    "pr": "Open, list, review, merge and close pull requests made by agents.",
    "lock": "Show or break the git lock.",
    "note": "Add a note to an agent's state file.",
    "trinity": "Show and import agents' state files.",
    "recall": "Search the shared memory.",
    "forget": "Remove something from the shared memory.",
    "message": "Send a message to an agent, to all agents or to the person.",
    "messages": "List the messages to an agent or to you.",
    "ask": "Ask the person or an agent a question.",
    "questions": "List open questions.",
    "answer": "Answer a question.",
    "plugins": "List installed plugins.",
    "schema": "Print the JSON Schema of a file, an event or an output.",
    "doctor": "Check this machine and this repository for problems.",
    "demo": "Run a tour in a temporary repository.",
    "completion": "Print the shell completion script.",
    "help": "Explain the verbs, one verb, or all settings.",
}


#: Verbs whose module is `aipass.features.<feature>.cli.<verb>`; every other verb is `aipass.cli.<verb>`.
BESIDE: dict[str, tuple[str, ...]] = {
    "dispatch": ("send", "cancel", "retry", "resume"),
    "git": ("pr", "lock"),
    "memory": ("note", "trinity", "forget"),
    "messages": ("message", "messages", "ask", "questions", "answer"),
    "plans": ("plan", "deliver"),
    "reload": ("reload",),
}


#: The verbs by task, as `aipass --help` lists them; each verb is in exactly one group.
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
#: Names that other tools use for the same task; a guess from habit gets the right suggestion.
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


#: Errors of a disk, a quota, a permission or a limit. They are no bugs of ours, so they get no bug report.
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
    """The group of all verbs; imports the module of a verb only when that verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of our verbs in the order of VERBS; verbs of packages are not included."""
        del ctx
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of our verb or of a package's verb; None if there is none. Raises PluginError."""
        del ctx
        if cmd_name not in VERBS:
            from aipass.cli import others

            return others.command(cmd_name)
        feature = next((feature for feature, verbs in BESIDE.items() if cmd_name in verbs), None)
        folder = "aipass.cli" if feature is None else f"aipass.features.{feature}.cli"
        command: click.Command = import_module(f"{folder}.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs by group, then those of packages; imports none of them."""
        del ctx
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, VERBS[name]) for name in names])
        from aipass.cli import others

        if found := others.shown():
            with formatter.section("From plugins"):
                formatter.write_dl(found)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the verb that the arguments name. An unknown verb is a usage error that suggests a synonym, else the nearest name."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from aipass.cli import others

            # Our own verbs were tried before: a package cannot replace one of them.
            if others.has(args[0]):
                return super().resolve_command(ctx, args)
            import difflib

            # A synonym first: by spelling alone, `start` would suggest `status` instead of `up`.
            near = SYNONYMS.get(args[0].lower()) or difflib.get_close_matches(args[0], VERBS, 1)
            ctx.fail(
                f"there is no verb `{args[0]}`"
                + (f"; did you mean `{near[0]}`?" if near else "; `aipass --help` lists them")
            )
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="aipass")
def cli() -> None:
    """Run several coding agents on one repository. Files and git events start them; aipass records the reason of every start.

    Exit status: 0 done, 1 failed, 2 wrong usage or configuration, 3 refused by a rule, 4 the engine is not running.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run one verb and end the process with its exit code. The entry point of the installed program."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run one verb and return its exit code. Prints every error; raises nothing but SystemExit of a verb."""
    _allow_any_text()
    screen.take_over(folded=screen.is_folded(sys.argv[1:] if arguments is None else arguments))
    try:
        colour = False if os.environ.get("NO_COLOR") else None  # https://no-color.org
        result: Any = cli.main(args=arguments, prog_name="aipass", standalone_mode=False, color=colour)
    # `standalone_mode=False` leaves all exceptions to this function, because click's exit codes differ from ours.
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
        # The message may quote a file name or a text of an agent: `inert` keeps it from sending commands to the terminal.
        click.echo(f"{click.style('error:', fg='red')} {inert(str(exc))}", err=True)
        return exc.exit_code
    except OSError as exc:
        if exc.errno not in SURROUNDINGS:
            return _report_bug(exc)
        if isinstance(exc, BrokenPipeError):
            # The reader has closed the pipe, as in `aipass events | head`. Without this, Python reports a second error
            # when it flushes stdout at its end.
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
    except Exception:  # noqa: BLE001 - nothing must stop the report of a bug
        # `write_report` falls back to the folder for temporary files if this folder cannot be written.
        folder = Path.home() / ".cache" / "aipass" if os.environ.get("HOME") else Path("/nonexistent")
    report = write_report(folder, exc, "aipass " + " ".join(sys.argv[1:]))
    click.echo(
        f"{click.style('bug in aipass:', fg='red')} {type(exc).__name__}: {plain(str(exc).split(chr(10), maxsplit=1)[0])}",
        err=True,
    )
    click.echo(f"a bug report that you can file is in {report}", err=True)
    return EXIT_BUG


def _allow_any_text() -> None:
    # File names need not be UTF-8: print such bytes escaped instead of ending with a UnicodeEncodeError.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
