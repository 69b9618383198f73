"""Many agents that write to each other and read what they get, while engine and supervisor are killed."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import sys
import time
from collections import Counter
from pathlib import Path

from patience import PATIENCE

from aipass.core import requests as request
from aipass.workspace import engine_lock
from aipass.workspace.layout import Layout

#: Writes requests as `aipass message` does, without the start of a Python for each; notes what it sent and what it read.
TALKER = """\
import os, random, time
from pathlib import Path
from aipass.core import requests as request

me, run = os.environ["AIPASS_AGENT"], os.environ["AIPASS_RUN"]
spool, mail = Path(os.environ["AIPASS_SPOOL"]), Path(os.environ["AIPASS_MAIL"])
others = [name for name in NAMES if name != me]
end, number, seen = Path("end"), 0, set()
with open(f"said-{me}", "a", buffering=1) as said, open(f"read-{me}", "a", buffering=1) as read:
    while not end.exists():
        to = random.choice(others)
        name = request.write(spool, "message", to=to, text=f"{me} {run} {number}")
        said.write(f"{name} {to} {run} {number}\\n")
        number += 1
        for path in sorted(mail.glob("*.md"), key=lambda path: int(path.stem))[:3]:
            if path.stem not in seen:
                seen.add(path.stem)
                path.read_text()
                read.write(path.stem + "\\n")
        time.sleep(PAUSE)
"""


def talk(repository, *, agents, seconds, kills, pause, least=0):
    """Let so many agents talk, with so many kills in between; returns figures of what was said.

    They talk for `seconds`, and for as long as it takes that `least` messages were sent and a fifth as many were read.
    """
    names = [f"a{number}" for number in range(agents)]
    repository.write("talk.py", TALKER.replace("NAMES", repr(names)).replace("PAUSE", str(pause)))
    tables = "".join(
        f'[agents.{name}]\ndriver = "command"\ncommand = ["{sys.executable}", "talk.py"]\nretries = 9\n'
        for name in names
    )
    repository.write("aipass.toml", f"[limits]\nconcurrency = {agents + 5}\nruns_per_hour = 1000\n{tables}")
    repository.aipass("init")
    repository.aipass("up", "--detach")
    spool = Layout(repository.root).human_spool()
    spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in names:
        request.write(spool, "send", agent=name, text="talk")
    dice, began = random.Random(agents), time.monotonic()
    for number in range(kills):
        time.sleep(seconds / (kills + 2) * dice.uniform(0.5, 1.2))
        engine = engine_lock.holder(Layout(repository.root))
        whom = supervisors(repository) if number % 3 == 1 else [engine.pid] if engine else []
        assert whom
        for pid in whom:
            os.kill(pid, signal.SIGKILL)
        repository.aipass("up", "--detach")
    repository.wait_for(
        lambda: (
            time.monotonic() > began + seconds
            and _count(repository, "said") >= least
            and _count(repository, "read") >= least / 5
        ),
        "enough talk",
        seconds + PATIENCE,
    )
    repository.write("end", "")
    repository.aipass("down")
    repository.aipass("up", "--until-idle", timeout=2 * PATIENCE)
    return _check(repository, names)


def supervisors(repository):
    found = []
    for pid in repository.pids():
        try:
            if b"supervisor" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


def _count(repository, what):
    return sum(len(_lines(path)) for path in repository.root.glob(f"{what}-*"))


def _lines(path):
    """Whole lines: the last may have been cut off by a kill."""
    return [line for line in path.read_text().split("\n")[:-1] if line] if path.exists() else []


def _check(repository, names):
    """Each message is there once, to whom it was sent, in the order in which its run said it; who read it was its reader."""
    db = sqlite3.connect(f"file:{repository.root}/.aipass/ledger.db?mode=ro", uri=True)
    messages = db.execute("SELECT id, sender, recipient, text, read FROM messages ORDER BY id").fetchall()
    # Known by who asked as well: an id is only the asker's own.
    replies = {
        name.partition("@")[0]: said
        for name, said in db.execute("SELECT id, message FROM requests WHERE exit = 0")
    }
    db.close()
    by_text = Counter(text for _, _, _, text, _ in messages)
    assert max(by_text.values()) == 1, "none twice"
    by_id = {number: (sender, recipient, text) for number, sender, recipient, text, _ in messages}
    said = read = 0
    for name in names:
        for line in _lines(repository.root / f"said-{name}"):
            name_, to, run, number = line.split()
            assert by_id[int(replies[name_])] == (name, to, f"{name} {run} {number}"), "none lost"
            said += 1
        for line in _lines(repository.root / f"read-{name}"):
            assert by_id[int(line)][1] == name, "by the right reader"
            read += 1
    order = {}
    for _, sender, recipient, text, _ in messages:
        _, run, place = text.split()
        order.setdefault((sender, recipient, run), []).append(int(place))
    assert all(places == sorted(places) for places in order.values()), "in order"
    noticed = sum(one[4] is not None for one in messages)
    return {
        "messages": len(messages),
        "said": said,
        "read": read,
        "noticed": noticed,
        "runs": len({key[2] for key in order}),
    }
