"""The verb `aipass demo`: a tour in a temporary repository. Every step is a command that a user would type."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aipass import programs
from aipass.errors import AipassError
from aipass.features.ownership.layers import described

if TYPE_CHECKING:
    from collections.abc import Callable

#: The programs of the demo's agents, by file name. Small scripts, so that the tour needs no account and no network.
AGENTS = {
    "writer.py": """\
import sys, time
prompt = sys.stdin.read()
time.sleep(0.3)
open("hello.txt", "w").write("Hello from the writer\\n")
print("I wrote hello.txt, as asked:", prompt.strip())
""",
    "model.py": """\
open("app/model.py", "w").write("class User: pass\\n")
print("the model is there")
""",
    "page.py": """\
import os
try:
    open("app/model.py", "a").write("# let me mend this, too\\n")
except PermissionError as error:
    print("refused:", error)
    print(open(os.environ["AIPASS_DENIED"]).read(), end="")
open("app/page.html", "w").write("<h1>Login</h1>\\n")
""",
    "changes.py": """\
import subprocess, sys
if "was merged" in sys.stdin.read():
    sys.exit()
open("CHANGES.md", "a").write("- There is a page to log in.\\n")
subprocess.run(["aipass", "pr", "open", "-m", "Tell of the login"])
print("git add -A ends with", subprocess.call(["git", "add", "-A"], stderr=subprocess.DEVNULL))
""",
    "store.py": """\
import subprocess, sys
prompt = sys.stdin.read()
if "answers:" in prompt:
    subprocess.run(["aipass", "note", "The users are kept in Postgres, as you decided"])
    print("I went on with Postgres.")
else:
    subprocess.run(["aipass", "ask", "human", "Where do we keep the users?", "--options", "Postgres,SQLite"])
""",
    "reviewer.py": """\
import sys
prompt = sys.stdin.read()
print("Asked:", prompt.strip())
print("Verdict: it has", len(open("hello.txt").read().split()), "words. Well done.")
""",
}
# Only drivers of type "command": the tour must give the same output on every machine.
CONFIG = """\
[agents.writer]
driver  = "command"
command = ["{python}", "writer.py"]

[agents.reviewer]
driver  = "command"
command = ["{python}", "reviewer.py"]

[agents.db]
driver  = "command"
command = ["{python}", "model.py"]

[agents.web]
driver  = "command"
command = ["{python}", "page.py"]

[agents.scribe]
driver  = "command"
command = ["{python}", "changes.py"]
owns    = ["/CHANGES.md"]

[agents.store]
driver  = "command"
command = ["{python}", "store.py"]

[[on]]                      # what the writer writes starts the reviewer
name     = "review"
event    = "file.closed"
paths    = ["/hello.txt"]
dispatch = "reviewer"
task     = "Review {{path}}"
debounce = "200ms"
"""
PLAN = """\
{"id": "0001", "title": "Login", "phases": [
  {"id": "model", "agent": "db", "task": "Write the model",
   "owns": ["/app/model.py"], "delivers": ["/app/model.py"], "checks": ["test -s app/model.py"]},
  {"id": "page", "agent": "web", "task": "Write the page", "after": ["model"],
   "owns": ["/app/*.html"], "delivers": ["/app/*.html"]}]}
"""
#: Longest wait for a step; the tour takes a few seconds on an idle machine.
WAIT_S = 60.0
#: The author of the first commit: git refuses to commit on a machine without a configured identity.
IDENTITY = ("-c", "user.name=You", "-c", "user.email=you@example.invalid")


@click.command("demo")
@click.option("--keep", is_flag=True, help="Keep the repository, to look at it afterwards.")
def command(keep: bool) -> None:
    """Run a tour in a temporary repository: a dropped file, a rule, a question, a plan, a PR, and the reasons."""
    folder = Path(tempfile.mkdtemp(prefix="aipass-demo-")).resolve()
    tour = Tour(folder)
    try:
        tour.walk()
    finally:
        # Also after an error or Ctrl-C: no engine and no run must be left behind, and they write into the folder.
        tour.run("down", "--kill", quiet=True)
        if keep:
            click.echo(f"\nthe repository is kept: cd {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


class Tour:
    """One tour in a repository of its own. `root`: an empty folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        # Without the variables of a run or of git around us: the demo may be started from within either.
        self._env = {
            name: value for name, value in os.environ.items() if not name.startswith(("AIPASS_", "GIT_"))
        }

    def walk(self) -> None:
        """Run every step and print it: the command as typed, then its output. Raises AipassError if a step fails or is late."""
        self._say(
            "A repository with agents. Any program can be an agent; claude, codex and gemini are supported."
        )
        programs.run(self._root, ["git", "init", "-q", str(self._root)], base=self._env)
        for name, text in AGENTS.items():
            (self._root / name).write_text(text)
        (self._root / "CHANGES.md").write_text("# Changes\n")
        self.run("init")
        (self._root / "aipass.toml").write_text(CONFIG.format(python=sys.executable))
        click.echo("(for the next steps, aipass.toml configures a few small programs as agents)")
        for words in (["add", "-A"], ["commit", "-qm", "Begin"]):
            programs.run(self._root, ["git", *IDENTITY, *words], base=self._env)
        self.run("up", "--detach", "--yes")
        self._say("Drop a file in an inbox, and the agent works on it.")
        click.secho("$ echo 'Write hello.txt' > inbox/writer/hello.md", bold=True)
        (self._root / "inbox/writer/hello.md").write_text("Write hello.txt\n")
        answer = self._await("outbox/writer/hello.*.md")
        self._show("cat outbox/writer/hello.*.md", answer)
        self._say("The file that it wrote started the reviewer, by the rule in aipass.toml.")
        review = self._await("outbox/reviewer/review.*.md")
        self._show("cat outbox/reviewer/review.*.md", review)
        self._say("Every start has a reason.")
        self.run("dispatches")
        self.run("why", "2")
        self.run("events", "--kind", "run.*")
        self._talk()
        self._plan()
        self._say("Kill the engine. Your requests are queued, and the next engine performs them.")
        # From the text, as a user would read it: `run` returns what was printed.
        pid = int(self.run("status", "--json", quiet=True).split('"pid": ')[1].split(",")[0])
        click.secho(f"$ kill -9 {pid}", bold=True)
        os.kill(pid, 9)
        time.sleep(0.2)  # until the kernel has released the lock of the killed engine
        self.run("send", "reviewer", "Look at hello.txt once more")
        self.run("up", "--until-idle", "--yes", "--timeout", "30s")
        self._show("cat outbox/reviewer/send.*.md", self._await("outbox/reviewer/send.*.md"))
        self.run("status")
        self._say("That was it. In your own repository: `aipass init`, then `aipass up --detach`.")

    def _talk(self) -> None:
        self._say("An agent that needs a decision asks you and ends. Your answer starts it again.")
        self.run("message", "store", "Expect a million users")
        number = self.run("send", "store", "Choose a database").strip()
        # The question exists before its run has ended. The tour shows it when the dispatch is blocked.
        self._until(lambda: json.loads(self.run("questions", "--json", quiet=True)), "its question")
        self._until(lambda: '"blocked"' in self.run("show", number, "--json", quiet=True), "its end")
        self.run("questions")
        question = str(json.loads(self.run("questions", "--json", quiet=True))[0]["id"])
        self.run("answer", question, "Postgres")
        self._show("cat outbox/store/send.*.md", self._await("outbox/store/send.*.md"))
        self._say("The agent's learnings are in its state file, and every agent can search them.")
        self.run("trinity", "show", "store")
        self.run("recall", "which database for users")

    def _plan(self) -> None:
        self._say("A plan: phases that own files, in an order. A delivered phase starts the next one.")
        (self._root / "plans").mkdir()
        (self._root / "app").mkdir()
        (self._root / "plans/0001-login.json").write_text(PLAN)
        self._show("cat plans/0001-login.json", self._root / "plans/0001-login.json")
        self.run("plan", "check", "1")
        self.run("plan", "start", "1")
        self._await("outbox/web/page.*.md")
        self.run("plan", "status", "1")
        if described(None)["fence"].startswith("none"):
            # Without a fence the page agent's write succeeds, so the steps about the refusal would show nothing.
            self._say("This machine has no fence, so no write was refused; `aipass doctor` says why.")
            return
        self._say(
            "The second agent tried to write a file that it does not own. The kernel refused, and the log shows it."
        )
        self._show("cat outbox/web/page.*.md", self._await("outbox/web/page.*.md"))
        self.run("why", "app/model.py")
        self.run("owns", "app/model.py")
        self._pr()

    def _pr(self) -> None:
        self._say(
            "An agent opens a PR with its changes; your HEAD, your index and your files are left unchanged."
        )
        self.run("send", "scribe", "Tell of the login", "--wait")
        self._show("cat outbox/scribe/send.*.md", self._await("outbox/scribe/send.*.md"))
        self.run("pr", "list")
        self.run("pr", "diff", "1")
        self._say("Only you can merge it, or the agent that you configure as orchestrator.")
        self.run("pr", "merge", "1")
        click.secho("$ git log --oneline --graph", bold=True)
        log = ["git", "--no-pager", "log", "--oneline", "--graph"]
        click.echo(
            programs.run(self._root, log, base=self._env, capture_output=True, text=True).stdout, nl=False
        )

    def run(self, *words: str, quiet: bool = False) -> str:
        """Run a verb as a process, print it unless `quiet`, and return its stdout.

        Raises AipassError if it fails; not with `quiet`, where a failure is only an empty or partial output.
        """
        if not quiet:
            click.secho(f"$ aipass {shlex.join(words)}", bold=True)
        done = subprocess.run(
            programs.aipass(*words),
            cwd=self._root,
            env=self._env,
            capture_output=True,
            text=True,
            check=False,
        )
        if not quiet:
            click.echo(done.stdout + done.stderr, nl=False)
            if done.returncode:
                raise AipassError(
                    f"`aipass {' '.join(words)}` ended with exit status {done.returncode}; file a bug with this output"
                )
        return done.stdout

    def _say(self, text: str) -> None:
        click.secho(f"\n{text}", fg="cyan")

    def _show(self, typed: str, path: Path) -> None:
        click.secho(f"$ {typed}", bold=True)
        click.echo(path.read_text(), nl=False)

    def _await(self, pattern: str) -> Path:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            for path in self._root.glob(pattern):
                return path
            time.sleep(0.02)
        raise self._late(pattern)

    def _until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            if time.monotonic() > deadline:
                raise self._late(what)
            time.sleep(0.05)

    @staticmethod
    def _late(what: str) -> AipassError:
        return AipassError(
            f"{what} did not appear within {WAIT_S:.0f} seconds; `aipass demo --keep` keeps the repository to look at"
        )
