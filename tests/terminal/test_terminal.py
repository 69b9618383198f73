"""Nothing of an agent's words or names speaks to a person's terminal."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE
from repository import agent

from aipass.event import inert
from aipass.terminal import screen

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
    said = read_all(ours)
    made.wait(PATIENCE)
    return said


def read_all(ours: int) -> bytes:
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
             "pr show 1", "pr diff 1", "recall note", "owns", "trinity show a", "git status", "plan status", "lock", "doctor", "why 2", "why own", "trinity check", "why e3", "why a", "why b", "ask a what? --wait --timeout 1s", "send a again --wait"]  # fmt: skip
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


@given(st.text())
def test_what_goes_to_a_terminal_has_colours_lines_tabs_and_nothing_that_is_obeyed(text):
    shown = re.sub(r"\x1b\[[0-9;]*m", "", screen.harmless(text))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    assert screen.harmless("näh ✓\n\t\x1b[31mred\x1b[0m") == "näh ✓\n\t\x1b[31mred\x1b[0m"


@given(
    st.lists(st.text("ab`,.'\u4e00", min_size=1, max_size=90), min_size=1, max_size=30),
    st.integers(40, 120),
    st.booleans(),
)
def test_a_folded_line_has_the_same_words_and_breaks_none(words, columns, coloured):
    line = "note     " + " ".join(f"\x1b[33m{word}\x1b[0m" if coloured else word for word in words)
    shown = screen.folded(line, columns).split("\n")
    assert "".join("".join(shown).split()) == "".join(line.split())
    if line.isascii():
        assert " ".join(shown).split() == line.split(), "a path can be copied"
    plainly = [re.sub(r"\x1b\[[0-9;]*m", "", one) for one in shown]
    assert all(len(one) <= columns or " " not in one.strip() or one.startswith("note") for one in plainly)
    assert all(one.startswith(" " * 9) for one in plainly[1:])


@pytest.mark.parametrize(
    ("words", "fits"),
    [
        (["why", "nothing-of-this-name-was-ever-seen-here-by-anybody"], True),
        (["send", "nobody", "x"], True),
        (["status"], True),
        (["pr", "show", "77"], True),
        (["dispatches", "--json"], False),
        (["pr", "diff", "1"], False),
        (["logs", "1"], False),
    ],
)
def test_which_verbs_break_their_lines(words, fits):
    assert screen.is_folded(words) is fits


def test_at_eighty_columns_no_line_breaks_in_a_word_and_the_log_speaks_to_no_terminal(repository):
    repository.write(
        "aipass.toml", agent("a", "a.py", 'owns = ["own/"]') + agent("b", "b.py", 'owns = ["b/"]')
    )
    repository.write("a.py", SAYS)
    repository.write("b.py", "print('b')")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    made = subprocess.Popen(
        [sys.executable, "-m", "aipass", "up", "--yes", "--until-idle"],
        cwd=repository.root, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    repository.aipass("send", "a", "go")
    said = read_all(ours)
    assert made.wait(PATIENCE) == 0
    text = said.decode("utf-8", "replace")
    assert "OWNED" in text, "what the agent said is shown, in letters"
    assert not re.search(r"\x1b\]|\x9b|\x07|\u202e|\x1b\[2J", text)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r", "").split("\n")
    assert all(len(line) <= 80 or " " not in line.strip() for line in lines), max(lines, key=len)


def test_what_is_waited_for_is_shown_in_one_line_that_goes_again(monkeypatch):
    raw = io.BytesIO()
    raw.isatty = lambda: True
    monkeypatch.setattr(
        sys, "stderr", screen.Terminal(io.TextIOWrapper(raw, encoding="utf-8"), folded=True, width=80)
    )
    screen.progress("dispatch 1 is \x1b]0;x\x07running")
    screen.progress("")
    assert raw.getvalue() == b"\r\x1b[Kdispatch 1 is \\x1b]0;x\\x07running\r\x1b[K"


@given(st.text("\u2800\u3164e\u00e9", min_size=100, max_size=400), st.integers(40, 120))
def test_no_word_that_may_hold_blanks_for_the_eye_begins_where_lines_begin(word, columns):
    shown = screen.folded(f"    {word}", columns).split("\n")
    if not word.isascii():
        assert all(one.startswith(" ") for one in shown)
        assert "".join(one.strip() for one in shown) == word
