"""Makes docs/first-screen.svg, the picture of the README, of a real run: a real repository, a real engine, every command typed.

`make picture` runs it. Times and process ids in it are of that run.
"""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 100
TARGET = Path(__file__).with_name("first-screen.svg")
CONFIG = """\
[agents.api]
driver  = "command"
command = ["sh", "agents/api.sh"]
owns    = ["api/"]

[agents.web]
driver  = "command"
command = ["sh", "agents/web.sh"]
owns    = ["web/"]

[[on]]
name     = "follow"
event    = "file.closed"
paths    = ["api/**"]
dispatch = "web"
task     = "{path} changed: update the page"
"""
#: The agents. The second one also tries to write a file of the first.
AGENTS = {
    "api.sh": "echo 'def greet(): return 1' > api/greet.py && echo 'wrote api/greet.py'\n",
    "web.sh": "echo 'greet = 2' >> api/greet.py; echo '<h1>hello</h1>' > web/page.html && echo 'wrote web/page.html'\n",
}
STEPS = (
    'echo "Write the greeting" > inbox/api/greeting.md',
    "aipass dispatches",
    "cat outbox/api/greeting.1.md",
    "aipass show 2",
    "aipass why web/page.html",
)


def main() -> None:
    """Run the steps in a temporary repository and write the picture."""
    with tempfile.TemporaryDirectory() as base:
        root = Path(base, "shop")
        for folder in ("agents", "api", "web"):
            (root / folder).mkdir(parents=True)
        for name, text in AGENTS.items():
            (root / "agents" / name).write_text(text)
        (root / "aipass.toml").write_text(CONFIG)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "HOME": base}

        def quiet(*words: str) -> None:
            subprocess.run(words, cwd=root, env=env, check=True, capture_output=True)

        quiet("git", "init", "-q")
        quiet("aipass", "init")
        quiet("aipass", "up", "--detach", "--yes")
        try:
            shown = "".join(_typed(step, root, env) for step in STEPS)
        finally:
            quiet("aipass", "down", "--kill")
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    console.print(Text.from_ansi(shown), soft_wrap=True)
    title = "two agents in one tree: one works, the next one starts, a foreign write is refused"
    picture = console.export_svg(title=title, unique_id="aipass")
    # The fonts would come from another machine; every viewer has a monospaced one.
    TARGET.write_text(
        re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL).replace("Fira Code, ", "")
    )
    print(f"{TARGET.name} is written, {shutil.which('aipass', path=path)}")


def _typed(step: str, root: Path, env: dict[str, str]) -> str:
    """The prompt with a command, and what it shows on a terminal; waits until nothing runs."""
    said = bytearray()

    def read(descriptor: int) -> bytes:
        data = os.read(descriptor, 4096)
        said.extend(data)
        return data

    before = os.getcwd()
    os.chdir(root)
    os.environ.update(env)
    try:
        pty.spawn(["sh", "-c", f"stty cols {COLUMNS} rows 40; {step}"], read)
    finally:
        os.chdir(before)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        time.sleep(0.5)
        states = subprocess.run(["aipass", "dispatches"], cwd=root, env=env, check=True, capture_output=True)
        if b"queued" not in states.stdout and b"running" not in states.stdout:
            break
    return f"\x1b[1;32m$\x1b[0m \x1b[1m{step}\x1b[0m\n{said.decode().replace(chr(13), '')}"


if __name__ == "__main__":
    main()
