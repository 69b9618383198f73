"""A real repository with a real engine, driven by the commands that a user would type."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

from patience import PATIENCE, until

from aipass.cli import main
from aipass.supervisor import process

#: Verbs that start no process of their own and keep nothing.
AT_ONCE = frozenset(
    [
        "answer",
        "cancel",
        "dispatches",
        "events",
        "forget",
        "init",
        "lock",
        "message",
        "messages",
        "note",
        "owns",
        "plan",
        "pr",
        "questions",
        "recall",
        "reload",
        "resume",
        "retry",
        "send",
        "show",
        "status",
        "trinity",
        "why",
    ]
)
#: Tests of what verbs do as processes: their output, their environment, what they import.
AS_PROCESSES = (
    "cli/test_cli",
    "cli/test_newcomer",
    "tests/terminal/",
    "tests/plugins/",
    "test_guarded",
    "test_deputies",
    "test_adversary",
    "test_agent_fuzz",
    "test_chaos",
)


class Repository:
    """A real repository with a real engine, driven by real commands."""

    def __init__(self, root: Path) -> None:
        self.root = root
        #: The Python whose aipass is used: one with more plugins than ours, for some.
        self.python = sys.executable
        #: Whether verbs that only ask or show run in the process of the test.
        self.at_once = False

    def write(self, path: str, text: str) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def aipass(
        self,
        *words: str,
        check: int | None = 0,
        stdin: str | None = None,
        env: dict[str, str] | None = None,
        timeout: float = PATIENCE,
        yes: bool = True,
    ):
        # Nobody is there to be asked whether to start what a tracked aipass.toml names.
        trusted = ("--yes",) if words[:1] == ("up",) and "--yes" not in words and yes else ()
        here = (
            self.at_once
            and words[0] in AT_ONCE
            and words[:2] != ("pr", "diff")
            and stdin is None
            and env is None
        )
        if here and threading.current_thread() is threading.main_thread():
            done = self._in_this_process(words)
        else:
            done = self._as_a_process((*words, *trusted), stdin, env, timeout)
        if check is not None:
            assert done.returncode == check, (
                f"aipass {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done

    def _in_this_process(self, words):
        """The same verb without the start of a Python, which costs more than most verbs."""
        kept = os.getcwd(), sys.argv, sys.stdin, sys.stdout, sys.stderr
        streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)]
        os.chdir(self.root)
        sys.argv, (sys.stdout, sys.stderr) = ["aipass", *words], streams
        try:
            with open(os.devnull) as sys.stdin:
                code = main.run(list(words))
        finally:
            os.chdir(kept[0])
            sys.argv, sys.stdin, sys.stdout, sys.stderr = kept[1:]
        said = [stream.buffer.getvalue().decode("utf-8", "replace") for stream in streams]
        return subprocess.CompletedProcess(["aipass", *words], code, *said)

    def _as_a_process(self, words, stdin, env, timeout):
        return subprocess.run(
            [self.python, "-m", "aipass", *words],
            cwd=self.root,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=None if env is None else {**os.environ, **env},
            check=False,
            **({"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}),
        )

    def wait_for(self, condition, what: str = "it", timeout: float = PATIENCE):
        """The first true value of `condition()`."""
        return until(condition, lambda: f"{what} (log: {self.trace()})", timeout)

    def answer(self, pattern: str, timeout: float = PATIENCE) -> Path:
        return self.wait_for(
            lambda: next(iter(sorted(self.root.glob(f"outbox/{pattern}"))), None),
            f"outbox/{pattern}",
            timeout,
        )

    def trace(self) -> str:
        log = self.root / ".aipass/log.jsonl"
        return log.read_text()[-3000:] if log.exists() else "(no log)"

    def pids(self) -> list[int]:
        """Every process that carries this root's mark, or serves it."""
        found = []
        for pid in process.table():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
            except OSError:
                continue
            ours = (
                process.environment(pid).get("AIPASS_ROOT") == str(self.root)
                or str(self.root / ".aipass") in words
            )
            if pid != os.getpid() and ours:
                found.append(pid)
        return found


COMMAND_AGENT = """\
[agents.{name}]
driver = "command"
command = ["{python}", "{script}"]
{more}
"""


def agent(name: str, script: str, more: str = "") -> str:
    """An [agents.…] table for a Python script in the root."""
    return COMMAND_AGENT.format(name=name, python=sys.executable, script=script, more=more)
