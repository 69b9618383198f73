"""Nothing of an agent's words or names speaks to a person's terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest
from conftest import agent
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE

from aipass.event import inert

ESCAPES = "\x1b]0;OWNED\x07\x1b[31mRED\x1b[2J\x9b31m\u202eRTL\x1b]52;c;b3du\x07"
SAYS = f"""\
import os, subprocess, sys
E = {ESCAPES!r}
print("out", E); print("err", E, file=sys.stderr)
for path in ("b/" + E, ".git/" + E):
    try: open(path, "w")
    except OSError: pass
os.makedirs("own/" + E, exist_ok=True)
open("own/" + E + "/file", "w").write("x" + E + "\\n")
for words in (["message", "human", E + " hi"], ["note", E + "note"], ["note", "--todo", E], ["ask", "human", E + "?", "--options", E + "a,b"],
              ["pr", "open", "-m", E + "title"], ["send", "b", E + "task", "--subject", E], ["send", "b", "--key", E, "x"]):
    subprocess.run(["aipass", *words])
"""


def on_a_terminal(repository, *words: str) -> bytes:
    """What a verb writes to a real terminal."""
    ours, theirs = pty.openpty()
    made = subprocess.Popen(
        [sys.executable, "-m", "aipass", *words],
        cwd=repository.root,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:
            break
        if not piece:
            break
        said += piece
    os.close(ours)
    made.wait(PATIENCE)
    return said


def test_no_verb_lets_an_agents_escapes_through(repository):
    subprocess.run(["git", "commit", "-q", "--allow-empty", "-m", "x"], cwd=repository.root, check=True)
    repository.write("a.py", SAYS)
    repository.write("b.py", "print('b')")
    repository.write(
        "aipass.toml", agent("a", "a.py", 'owns = ["own/"]') + agent("b", "b.py", 'owns = ["b/"]')
    )
    repository.aipass("up", "--detach")
    repository.aipass("send", "a", "go", "--wait", check=None)
    verbs = ["status", "dispatches", "show 1", "show 2", "show 1 --prompt", "logs 1", "logs 1 --stderr", "logs -f 1", "events", "messages", "messages b", "questions", "pr list",
             "pr show 1", "pr diff 1", "recall note", "owns", "trinity show a", "git status", "plan status", "lock", "doctor", "why 2", "why own", "send a again --wait"]  # fmt: skip
    for words in verbs:
        said = on_a_terminal(repository, *words.split())
        for escape in (
            b"\x1b]",
            b"\x9b",
            b"\x07",
            b"\x1b[31mRED",
            b"\x1b[2J",
            "\u202e".encode(),
            "\x9b".encode(),
        ):
            assert escape not in said, f"aipass {words}: {said!r}"
    assert b"OWNED" in on_a_terminal(repository, "logs", "1"), "it is shown, in letters"
    denied = (repository.root / ".aipass/runs/1/denied.md").read_text()
    assert "\x1b" not in denied
    assert "OWNED" in denied


@given(st.text())
def test_inert_text_has_nothing_that_a_terminal_obeys(text):
    shown = inert(text)
    assert all(letter.isprintable() or letter in "\n\t" for letter in shown)
    assert shown.count("\n") >= text.count("\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain\n\ttabbed\n", "plain\n\ttabbed\n"), ("\x1b[1;31mred\x1b[0m", "red"), ("a\r\nb", "a\nb"), ("a\rb", "a\\rb"), ("\x1b]0;x\x07", "\\x1b]0;x\\x07"), ("näh ✓", "näh ✓")],
)  # fmt: skip
def test_what_becomes_of_a_text_for_a_terminal(text, shown):
    assert inert(text) == shown
