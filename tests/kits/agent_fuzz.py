"""What an agent does that wants to trick, stop or starve the engine, at random, in its own places. Started by test_agent_fuzz.py.

Arguments: a seed, seconds, the folder in which nothing may ever appear.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

SEED, SECONDS, TRIPWIRE = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
ROOT, AGENT = Path(os.environ["AIPASS_ROOT"]), os.environ["AIPASS_AGENT"]
SPOOL = Path(os.environ["AIPASS_SPOOL"]) if "AIPASS_SPOOL" in os.environ else None
dice = random.Random(SEED)
kept: list[object] = []
HOME = ROOT / ".aipass/agents" / AGENT
PLACES = [ROOT / "own", HOME, HOME / ".trinity", Path(os.environ["TMPDIR"])] + ([SPOOL] if SPOOL else [])
RUN = f"touch {TRIPWIRE}/ran-$$"
OUTSIDE = [
    TRIPWIRE,
    "/etc",
    "/",
    str(ROOT),
    str(ROOT / ".git"),
    str(ROOT / ".git/config"),
    str(ROOT / "others"),
    "..",
    "../..",
    "../../.git",
    "/proc/self/fd",
    "/proc/1/root",
    "/dev/zero",
    "/dev/stdin",
    "loop",
    str(ROOT / ".aipass/ledger.db"),
]
NAMES = [
    b"a",
    b"b",
    b"c.md",
    b"local.json",
    b"passport.json",
    b"observations.json",
    b"x.json",
    b"r-0-0.json",
    b".git",
    b"HEAD",
    b"config",
    b"objects",
    b"refs",
    b".gitignore",
    b".gitattributes",
    b"aipass.toml",
    b"new\nline",
    b"esc\x1b[31m",
    b"\xff\xfe",
    "é".encode(),
    b"e\xcc\x81",
    b"n" * 255,
    b" ",
    b"-rf",
    b"--help",
    b"*",
    b"..hidden",
    b".a.md.swp",
    b"a.part",
    b"CON",
    b"loop",
    b"pyproject.toml",
    b".trinity",
]
TEXTS = [
    "",
    "x",
    "{}",
    "[]",
    '{"schema": 1}',
    '{"schema": 1, "todos": "no"}',
    "[" * 50_000,
    '{"a":' * 20_000,
    "9" * 10_000,
    "\0" * 100,
    "---\nsubject: [\n---\nx",
    "+++\n",
    "a" * 2_000_000,
    "(a+)+$\n" * 50,
    "**/" * 3000 + "*\n",
    "!" * 1000 + "\n",
    "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    f'[core]\n\tfsmonitor = "{RUN}"\n\tsshCommand = "{RUN}"\n\tpager = "{RUN}"\n\thooksPath = hooks\n[filter "x"]\n\tclean = "{RUN}"\n\tsmudge = "{RUN}"\n[diff]\n\texternal = "{RUN}"\n[include]\n\tpath = /dev/zero\n',
    "* filter=x diff=x\n",
    "ref: refs/heads/main\n",
    f"gitdir: {ROOT}/.git\n",
    f"{ROOT}/.git/objects\n",
    '[agents.evil]\ndriver = "command"\ncommand = ["sh", "-c", "' + RUN + '"]\n',
    f"#!/bin/sh\n{RUN}\n",
]
VERBS = [
    "send",
    "message",
    "ask",
    "answer",
    "note",
    "forget",
    "cancel",
    "retry",
    "resume",
    "reload",
    "deliver",
    "plan",
    "pr",
    "git",
    "lock",
    "reject",
    "recall",
    "up",
    "",
    "Reload",
    "send\0",
]
FIELDS = {
    "agent": [AGENT, "other", "human", "nobody", 3, None],
    "text": ["x", "y" * 100_000, 3],
    "do": ["open", "merge", "close", "start", "done", "todo", "learning"],
    "id": ["0001", 1],
    "ids": [[1], ["x"], list(range(5000))],
    "dispatch": [1, 2, 2**70, -1],
    "question": [1, "1"],
    "memory": [1],
    "name": [AGENT, "other"],
    "title": ["t"],
    "to": ["other", "human", "all"],
    "paths": [["/etc/passwd"], ["../x"], ["own/a"]],
    "key": ["k"],
    "wake": [True],
    "by": [1],
    "trusted": [True],
    "request": ["r"],
    "priority": [100, 10**9],
}


def place() -> bytes:
    found = os.fsencode(dice.choice(PLACES))
    for _ in range(dice.choice([0, 1, 1, 2, 3])):
        found += b"/" + dice.choice(NAMES)
    return found if dice.random() < 0.1 else found + b"/" + dice.choice(NAMES)


def write() -> None:
    handle = os.open(
        place(),
        os.O_WRONLY
        | os.O_CREAT
        | dice.choice([0, os.O_TRUNC, os.O_APPEND, os.O_EXCL])
        | os.O_NOFOLLOW
        | os.O_NONBLOCK,
        dice.choice([0o644, 0o000, 0o777, 0o4755]),
    )
    try:
        os.write(handle, dice.choice(TEXTS).encode("utf-8", "surrogatepass"))
        if dice.random() < 0.1:
            os.ftruncate(handle, dice.choice([0, 1, 10**12]))
    finally:
        os.close(handle)


def folder() -> None:
    os.makedirs(place(), exist_ok=True)


def deep() -> None:
    top = place()
    for _ in range(dice.randint(1, 150)):
        os.mkdir(top)
        top += b"/d"


def link() -> None:
    os.symlink(dice.choice(OUTSIDE), place())


def hard() -> None:
    os.link(dice.choice([place(), os.fsencode(dice.choice(OUTSIDE))]), place(), follow_symlinks=False)


def rename() -> None:
    os.rename(place(), place())


def swap() -> None:
    """Tricks of time: what is a folder now is a link at once, and a folder again."""
    one = place()
    two = one + b"2"
    for _ in range(dice.randint(1, 30)):
        os.rename(one, two)
        os.symlink(dice.choice(OUTSIDE), one)
        os.unlink(one)
        os.rename(two, one)


def special() -> None:
    os.mknod(place(), dice.choice([stat.S_IFIFO, stat.S_IFSOCK]) | 0o666)


def listen() -> None:
    made = socket.socket(socket.AF_UNIX)
    made.bind(place()[:100])
    kept.append(made)
    del kept[:-20]


def remove() -> None:
    target = place()
    if dice.random() < 0.3:
        shutil.rmtree(target)
    else:
        os.unlink(target)


def mode() -> None:
    os.chmod(place(), dice.choice([0, 0o111, 0o444, 0o755, 0o7777]))


def when() -> None:
    moment = dice.choice([0, 1, -(2**31), 2**33, 2**40, time.time() + 1e6])
    os.utime(place(), (moment, moment), follow_symlinks=False)


def lock() -> None:
    """Everything that can be read can be locked."""
    found = dice.choice(
        [*ROOT.glob(".aipass/*"), *ROOT.glob(".git/*"), *ROOT.glob(".git/aipass/*"), ROOT / "aipass.toml"]
    )
    handle = os.open(found, os.O_RDONLY | os.O_NONBLOCK)
    kept.append(open(handle, "rb", buffering=0))
    del kept[:-20]
    dice.choice(
        [
            lambda: fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB),
            lambda: fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB),
        ]
    )()


def repository() -> None:
    top = os.fsdecode(place())
    os.makedirs(f"{top}/objects", exist_ok=True)
    os.makedirs(f"{top}/refs/heads", exist_ok=True)
    os.makedirs(f"{top}/hooks", exist_ok=True)
    for name, text in (
        ("HEAD", "ref: refs/heads/main\n"),
        ("config", TEXTS[17]),
        ("hooks/post-checkout", f"#!/bin/sh\n{RUN}\n"),
        ("objects/info", ""),
    ):
        Path(top, name).write_text(text)
    os.chmod(f"{top}/hooks/post-checkout", 0o755)


def request() -> None:
    if SPOOL is None:
        return
    name = f"r-{time.time_ns() // 1000:014x}-{dice.randrange(2**32):08x}"
    fields = {one: dice.choice(FIELDS[one]) for one in dice.sample(sorted(FIELDS), dice.randint(0, 6))}
    text = json.dumps({"verb": dice.choice(VERBS), **fields}) if dice.random() < 0.8 else dice.choice(TEXTS)
    (SPOOL / f".{name}.tmp").write_text(text)
    os.rename(SPOOL / f".{name}.tmp", SPOOL / f"{name}.json")


def ask() -> None:
    words = dice.choice(
        [
            ["note", "--learning", "x" * dice.choice([1, 5000])],
            ["send", "other", "go"],
            ["message", "human", "\x1b]0;t\x07"],
            ["pr", "open", "-m", "t\n\nevil: x"],
            ["git", "commit", "-m", "m"],
            ["reload"],
            ["plan", "start", "0001"],
            ["trinity", "check"],
            ["recall", "x"],
            ["owns", "own/a"],
        ]
    )
    subprocess.run(
        [sys.executable, "-m", "aipass", *words], capture_output=True, timeout=150, check=False, cwd=ROOT
    )


def many() -> None:
    top = place()
    os.makedirs(top, exist_ok=True)
    for number in range(dice.randint(50, 500)):
        os.close(os.open(top + b"/m%d" % number, os.O_CREAT | os.O_WRONLY, 0o644))


ACTS = [
    write,
    write,
    write,
    folder,
    deep,
    link,
    link,
    hard,
    rename,
    rename,
    swap,
    special,
    listen,
    remove,
    mode,
    when,
    lock,
    repository,
    request,
    request,
    request,
    many,
]


def _enough(*_: object) -> None:
    raise TimeoutError


def main() -> None:
    signal.signal(signal.SIGALRM, _enough)
    done = 0
    asked = time.monotonic()
    os.makedirs(ROOT / "own", exist_ok=True)
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        act = dice.choice(ACTS)
        if time.monotonic() - asked > 1.5:
            act, asked = ask, time.monotonic()
        try:
            signal.setitimer(signal.ITIMER_REAL, 5)  # it has put a pipe in its own way
            act()
            done += 1
        except (OSError, ValueError, subprocess.SubprocessError, RecursionError):
            pass
    print("acts", done)


main()
