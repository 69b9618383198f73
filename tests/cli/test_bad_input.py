"""What is wrong on purpose: it is told in words, with the right exit code, and nothing is lost or ended by it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from patience import PATIENCE
from rounds import few

from aipass.config import reading
from aipass.errors import AipassError, ConfigError

ROOT_USER = os.geteuid() == 0
A = '[agents.writer]\ndriver = "command"\ncommand = ["cat"]\n'
R = '[[on]]\nname = "review"\nevent = "file.closed"\ndispatch = "writer"\ntask = "x"\n'
CRON = R.replace('event = "file.closed"', 'cron = "{}"')


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path_factory, monkeypatch):
    """Reports of bugs that find no other place go there."""
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("t")))


def run(
    repository, *words: str | bytes, env: dict[str, str | None] | None = None, cwd: Path | None = None, **more
):
    """A verb with any bytes as arguments, in any folder, with variables set (or, as None, unset)."""
    found = {**os.environ, **(env or {})}
    return subprocess.run(
        [sys.executable, "-m", "aipass", *words],
        cwd=cwd or repository.root,
        env={name: value for name, value in found.items() if value is not None},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=PATIENCE,
        **({"stdin": subprocess.DEVNULL} | more),
    )


def fails(done, code: int, *told: str) -> None:
    """That a verb ended with this code and said this, and not as a bug of ours."""
    said = done.stdout + done.stderr
    assert done.returncode == code, f"exit {done.returncode}, not {code}: {said}"
    assert "Traceback" not in said
    for words in told:
        assert words in said, said


def engine(repository, toml: str = A) -> int:
    """Start an engine; returns its process id."""
    repository.write("aipass.toml", toml)
    repository.aipass("up", "--detach")
    return json.loads(repository.aipass("status", "--json").stdout)["engine"]["pid"]


def is_still_well(repository, pid: int) -> None:
    """That the same engine runs, has reported no bug, and does what it is asked."""
    done = repository.aipass("send", "writer", "are you well", "--wait", "--timeout", "150s")
    assert done.stdout == "are you well"
    found = json.loads(repository.aipass("status", "--json").stdout)
    assert found["engine"]["pid"] == pid
    assert found["pauses"] == []
    crashes = repository.root / ".aipass/crashes"
    assert not crashes.exists(), next(crashes.iterdir()).read_text()


# -- (a) aipass.toml ---------------------------------------------------------------------------------------------------

P = pytest.param
WRONG = [
    # what, text, line, told
    P(
        A + "timeout = 30\n",
        4,
        ["agents.writer.timeout", "needs a unit", '"30s"'],
        id="duration without unit",
    ),
    P(A + 'timeout = "-5s"\n', 4, ['"-5s" is not a duration'], id="duration negative"),
    P(A + "timeout = -5\n", 4, ["a duration"], id="duration negative number"),
    P(A + 'timeout = "soon"\n', 4, ['"soon" is not a duration', '"1h30m"'], id="duration text"),
    P(A + 'timeout = "5 fortnights"\n', 4, ["is not a duration"], id="duration unknown unit"),
    P(A + 'timeout = ""\n', 4, ['"" is not a duration'], id="duration empty"),
    P(A + "timeout = true\n", 4, ["a duration is text"], id="duration bool"),
    P(A + "timeout = [1]\n", 4, ["a duration is text"], id="duration list"),
    P(A + "timeout = nan\n", 4, ["a duration"], id="duration nan"),
    P(A + 'timeout = "999999d"\n', 4, ["longer than a hundred years"], id="duration huge"),
    P(
        A + 'stall = "' + "9" * 5000 + 'd"\n',
        4,
        ["agents.writer.stall", "hundred years"],
        id="duration absurd",
    ),
    P(A + 'retries = "2"\n', 4, ["agents.writer.retries", "integer", "found '2'"], id="wrong type number"),
    P(A + "retries = -1\n", 4, ["greater than or equal to 0", "found -1"], id="number out of range"),
    P(A + "linger = 1\n", 4, ["agents.writer.linger", "boolean"], id="wrong type bool"),
    P(A + "args = [1]\n", 4, ["agents.writer.args.0", "string", "found 1"], id="wrong type in list"),
    P(A + 'command = "cat"\n', 4, ["not valid TOML", "overwrite"], id="key twice"),
    P(A.replace('["cat"]', '"cat"'), 3, ["agents.writer.command", "found 'cat'"], id="command no list"),
    P(A.replace('["cat"]', '[""]'), 1, ["first word is empty"], id="command empty word"),
    P(A.replace('["cat"]', "[]"), 1, ["needs a command"], id="command empty list"),
    P('[agents.w]\ndriver = "command"\n', 1, ["needs a command", "add `command"], id="command missing"),
    P(A.replace('"command"', '"claude"'), 1, ['driver "claude" takes `args`'], id="command of other driver"),
    P('[agents.w]\ncommand = ["x"]\n', 1, ["agents.w.driver", "missing"], id="driver missing"),
    P('[agents.w]\ndriver = ""\n', 2, ["agents.w.driver", "at least 1"], id="driver empty"),
    P(A + 'timout = "1s"\n', 4, ["unknown key", "did you mean `timeout`", "nown here"], id="unknown key"),
    P("\r\n" + (A + "timout = 1\n").replace("\n", "\r\n"), 5, ["`timeout`"], id="unknown key CRLF"),
    P("[limit]\nhops = 1\n", 1, ["did you mean `limits`"], id="unknown table"),
    P("xyzzy = 1\n", 1, ["xyzzy", "unknown key", "agents, inbox"], id="unknown key, nothing near"),
    P('include = "other.toml"\n' + A, 1, ["include", "unknown key"], id="include"),
    P(A + "env = { X = { from_en = 'Y' } }\n", 4, ["did you mean `from_env`"], id="unknown key of env"),
    P(A + "env = { X = 1 }\n", 4, ["agents.writer.env.X", "string", "found 1"], id="env no text"),
    P(A + 'env = { X = "a\\u0000b" }\n', 4, ["cannot hold a NUL"], id="env with NUL"),
    P(A + A, 4, ["not valid TOML", "writer", "twice"], id="agent twice"),
    P(A + A.replace("writer", "Writer"), None, ["`writer` and `Writer` differ only in case"], id="case"),
    P(A.replace("writer", "all"), 1, ["`all` is a reserved name"], id="reserved"),
    P(A.replace("writer", "HUMAN"), 1, ["`HUMAN` is a reserved name"], id="reserved, other case"),
    P(A.replace("writer", '"a b"'), 1, ["a name is letters"], id="name with space"),
    P(A.replace("writer", '"../x"'), 1, ["a name is letters"], id="name as path"),
    P(A.replace("writer", '""'), 1, ["a name is letters"], id="name empty"),
    P(A.replace("writer", "-x"), 1, ["begins with a letter"], id="name with dash first"),
    P(A.replace("writer", "x" * 65), 1, ["at most 64"], id="name long"),
    P("agents = 3\n", 1, ["agents", "found 3"], id="agents no table"),
    P("[agents]\nwriter = 3\n", 2, ["agents.writer", "found 3"], id="agent no table"),
    P('[inbox]\nmax_size = "huge"\n', 2, ["inbox.max_size", '"20MB"'], id="size text"),
    P("[inbox]\nmax_size = -1\n", 2, ["a size is a number"], id="size negative"),
    P("[inbox]\nmax_size = 1.5\n", 2, ["a size is a number"], id="size broken"),
    P(
        '[inbox]\nmax_size = "' + "9" * 400 + 'GB"\n',
        2,
        ["inbox.max_size"],
        id="size absurd",
    ),
    P(
        A + R.replace('event = "file.closed"\n', ""),
        4,
        ["exactly one of `event` and `cron`"],
        id="rule without either",
    ),
    P(A + R + 'cron = "0 9 * * *"\n', 4, ["exactly one of `event` and `cron`"], id="rule with both"),
    P(A + CRON.format("61 9 * * *"), 4, ["61 9 * * *", "not a cron", "0 9 * * 1-5"], id="cron minute"),
    P(A + CRON.format("daily"), 4, ['"daily" is not a cron'], id="cron word"),
    P(A + CRON.format(""), 4, ["is not a cron"], id="cron empty"),
    P(A + CRON.format("0 0 31 2 *"), 4, ["is not a cron"], id="cron never"),
    P(A + R.replace('"writer"', '"wrter"'), None, ["`wrter`", "did you mean `writer`"], id="rule's agent"),
    P(
        A + R.replace('"writer"', '"wrter"'),
        7,
        ["`wrter`"],
        id="rule's agent, line",
    ),
    P(A + R + R, None, ["two rules are named `review`"], id="rule twice"),
    P(
        A + R + R,
        10,
        ["two rules are named `review`"],
        id="rule twice, line",
    ),
    P(A + R.replace('"x"', '"Do {foo}"'), 8, ["{foo} is not a known name", "{path}"], id="template field"),
    P(A + R.replace('"x"', '""'), 8, ["on.0.task", "at least 1"], id="task empty"),
    P(A + R.replace('task = "x"\n', ""), 4, ["on.0.task", "missing"], id="task missing"),
    P(A + R.replace('"review"', '"human"'), 5, ["reserved"], id="rule's name"),
    P(A + R + 'paths = [""]\n', 9, ["on.0.paths.0", "an empty pattern"], id="pattern empty"),
    P(A + R + 'paths = ["ok/", "a\\nb"]\n', 9, ["on.0.paths.1", "one line"], id="pattern newline"),
    P(A + R + 'paths = ["!"]\n', 9, ["on.0.paths.0", "matches nothing"], id="pattern bad"),
    P(A + 'owns = ["\\u0000"]\n', 4, ["agents.writer.owns.0", "NUL"], id="pattern NUL"),
    P(
        A + R + 'paths = ["[z-a]"]\n',
        9,
        ["on.0.paths.0"],
        id="pattern range",
    ),
    P(A + R + "priority = 101\n", 9, ["on.0.priority", "found 101"], id="rule's priority"),
    P(A + R + "per_hour = 0\n", 9, ["on.0.per_hour", "found 0"], id="per_hour"),
    P(A + R + "debonce = 1\n", 9, ["did you mean `debounce`"], id="unknown key of rule"),
    P(A + R + "where = { size = [1] }\n", 9, ["on.0.where.size", "found [1]"], id="where list"),
    P('orchestrator = "wrtr"\n' + A, 1, ["`wrtr`", "did you mean `writer`"], id="orchestrator"),
    P("[limits]\nconcurrency = 0\n", 2, ["limits.concurrency", "found 0"], id="concurrency"),
    P("[limits]\nhops = 1e3\n", 2, ["limits.hops", "integer"], id="float for integer"),
    P('[sandbox]\nfence = "maybe"\n', 2, ["'auto', 'require' or 'off'"], id="choice"),
    P("[agents.writer\n", 1, ["not valid TOML", "']'"], id="TOML header"),
    P(A + "\nx = \n", 5, ["not valid TOML", "Invalid value"], id="TOML value"),
    P('a = "never closed\n', 1, ["not valid TOML"], id="TOML string"),
    P("\0", 1, ["not valid TOML"], id="NUL alone"),
    P(A + 'x = "\0"\n', 4, ["not valid TOML", "\\x00"], id="NUL in text"),
    P("x = " + "[" * 100_000, 1, ["not valid TOML"], id="deep arrays"),
    P("x = " + "{a=" * 50_000, 1, ["not valid TOML"], id="deep tables"),
    P(
        "[limits]\nhops = " + "9" * 5000 + "\n",
        2,
        ["aipass.toml"],
        id="number of 5000 digits",
    ),
    P(
        '"\\u001b[31m" = 1\n',
        1,
        ["unknown key", "x1b"],
        id="terminal codes",
    ),
]


@pytest.mark.parametrize(("text", "line", "told"), WRONG)
def test_a_wrong_configuration_says_where_and_what(text, line, told):
    with pytest.raises(ConfigError) as caught:
        reading.parse(text)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    found = re.match(r"aipass\.toml:(\d+): ", message)
    assert found, message
    assert line is None or int(found[1]) == line, message
    for words in told:
        assert words in message
    assert all(len(one) < 700 for one in message.splitlines())


def test_every_mistake_is_told_at_once():
    with pytest.raises(ConfigError) as caught:
        reading.parse(A + "timout = 1\nretries = -1\n[limits]\nhops = true\n")
    assert sorted(line.split(":")[1] for line in str(caught.value).splitlines()) == ["4", "5", "7"]


@pytest.mark.parametrize(
    "data", [b"", b"\n\n# nothing\n", b"\xef\xbb\xbf" + A.encode(), A.encode() + b"\r\n"]
)
def test_what_only_looks_wrong_is_right(tmp_path, data):
    path = tmp_path / "aipass.toml"
    path.write_bytes(data)
    assert set(reading.load(path).agents) <= {"writer"}


def _write(data: bytes):
    return lambda path: path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        P(lambda path: path.mkdir(), "is not a file", id="folder"),
        P(lambda path: None, "cannot be read (No such file", id="missing"),
        P(lambda path: path.symlink_to(path), "cannot be read (Too many levels", id="symlink loop"),
        P(lambda path: path.symlink_to("nowhere"), "cannot be read (No such file", id="dangling"),
        P(_write(b"# " + b"x" * 10_000_000), "larger than 4 MB", id="10 MB"),
        P(_write(A.encode("utf-16")), "aipass.toml:1: not UTF-8 (byte 0xff)", id="UTF-16 with mark"),
        P(_write(A.encode("utf-16-le")), "aipass.toml:1: not valid TOML", id="UTF-16 without mark"),
        P(_write(A.encode() + b"# \xe9\n"), "aipass.toml:4: not UTF-8 (byte 0xe9)", id="Latin-1"),
        P(_write(b"\xef\xbb\xbf\xef\xbb\xbf" + A.encode()), "aipass.toml:1: not valid TOML", id="two marks"),
        P(lambda path: (path.write_text(A), path.chmod(0)), "cannot be read (Permission", id="unreadable"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path, make, told, request):
    if ROOT_USER and request.node.callspec.id == "unreadable":
        pytest.skip("root reads everything")
    path = tmp_path / "aipass.toml"
    make(path)
    with pytest.raises(ConfigError) as caught:
        reading.load(path)
    assert told in str(caught.value)


def test_a_fifo_in_place_of_the_configuration_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "aipass.toml")
    # In a process of its own, as it cannot be interrupted otherwise.
    code = "import sys; from pathlib import Path; from aipass.config import reading; reading.load(Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "aipass.toml"],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert b"ConfigError" in done.stderr


@pytest.mark.parametrize(
    ("data", "told"),
    few(
        [
            P(
                (A + 'timout = "1s"\n').encode(),
                "aipass.toml:4: agents.writer.timout: unknown key; did you mean",
                id="key",
            ),
            P((A + A).encode(), "aipass.toml:4: not valid TOML", id="agent twice"),
            P(A.encode("utf-16"), "not UTF-8", id="UTF-16"),
            P(b"# " + b"x" * 10_000_000, "larger than 4 MB", id="10 MB"),
            P((A + CRON.format("daily")).encode(), "not a cron expression", id="cron"),
            P(A.encode() + b'x = "\0"', "not valid TOML", id="NUL"),
            P(b"x = " + b"[" * 100_000, "not valid TOML", id="deep"),
            P(
                b'[inbox]\nmax_size = "' + b"9" * 400 + b'GB"\n',
                "inbox.max_size",
                id="size absurd",
            ),
            P(
                (A + R + 'paths = ["[z-a]"]\n').encode(),
                "on.0.paths.0",
                id="pattern range",
            ),
            P(
                b"[limits]\nhops = " + b"9" * 5000 + b"\n",
                "not valid TOML",
                id="digits",
            ),
        ],
        3,
    ),
)
def test_verbs_refuse_a_wrong_configuration_with_2(repository, data, told):
    (repository.root / "aipass.toml").write_bytes(data)
    for verb in (("reload",), ("up", "--until-idle", "--timeout", "150s")):
        fails(run(repository, *verb), 2, told)
    assert (repository.root / "aipass.toml").read_bytes() == data
    assert not (repository.root / ".aipass").exists()


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        P('[agents.w]\ndriver = "clod"\n', 'there is no driver "clod"', id="driver"),
        P(A + '[sandbox]\nwrite = ["/"]\n', "holds this repository", id="write"),
        P(
            A + '[sandbox]\nwrite = ["~/x/.git/"]\n',
            "files of git, or of another aipass root",
            id="write-git",
        ),
        P(A + '[sandbox]\nwrite = ["~"]\n', "far more than", id="write-home"),
        P(A + '[sandbox]\nwrite = ["tree/"]\n', "not an absolute path", id="write-relative"),
        P(A + '[sandbox]\nsockets = ["x/.aipass/*"]\n', "not an absolute path", id="socket-relative"),
        P(A + '[sandbox]\nsockets = ["/x/.aipass/*"]\n', "start runs without the engine", id="socket-own"),
    ],
)
def test_what_is_not_installed_is_told_at_the_start(repository, toml, told):
    repository.write("aipass.toml", toml)
    fails(run(repository, "up", "--until-idle", "--timeout", "150s"), 2, told, "aipass.toml")


def test_status_with_a_broken_configuration_says_so(repository):
    repository.write("aipass.toml", "[agents.writer\n")
    fails(run(repository, "send", "writer", "hi"), 2, "aipass.toml", "not valid TOML")
    fails(run(repository, "status"), 0, "aipass.toml:1", "not valid TOML", "engine")


def test_a_running_engine_keeps_the_old_configuration_when_the_new_one_is_wrong(repository):
    pid = engine(repository)
    wrong = A + 'timout = "1s"\n'
    repository.write("aipass.toml", wrong)
    repository.wait_for(
        lambda: "timout" in repository.aipass("status").stdout, "a note about the wrong configuration"
    )
    repository.aipass("reload", check=2)
    assert (repository.root / "aipass.toml").read_text() == wrong
    is_still_well(repository, pid)


# -- (b) the spool -----------------------------------------------------------------------------------------------------


def request(**fields) -> bytes:
    return json.dumps({"verb": "send", "agent": "writer", "text": "lost?", **fields}).encode()


SPOOL = [
    # what, name (None: a good one), data, told
    ("not JSON", None, b"hello", "not JSON"),
    ("half", None, request()[:-3], "not JSON"),
    ("empty", None, b"", "not JSON"),
    ("array", None, b"[1, 2]", "not a JSON object"),
    ("number", None, b"7", "not a JSON object"),
    ("deep", None, b"[" * 200_000, "not JSON"),
    ("not UTF-8", None, b'{"verb": "\xff"}', "not UTF-8"),
    ("UTF-16", None, request().decode().encode("utf-16"), "not UTF-8"),
    ("no verb", None, b"{}", "`verb` is null"),
    ("unknown verb", None, b'{"verb": "sned"}', "one of send, cancel"),
    ("verb no text", None, b'{"verb": ["send"]}', "`verb` is"),
    ("missing field", None, b'{"verb": "send", "agent": "writer"}', "`text` is missing"),
    ("missing id", None, b'{"verb": "cancel"}', "`id` is missing"),
    ("extra field", None, request(prio=1), "`prio` is not a field of send; its fields are agent"),
    ("extra field of reload", None, b'{"verb": "reload", "x": 1}', "its fields are none"),
    ("text no text", None, request(text=3), "`text` is 3; it must be text"),
    ("agent null", None, request(agent=None), "`agent` is null; it must be text"),
    ("id no text", None, b'{"verb": "cancel", "id": 1}', "`id` is 1; it must be text"),
    ("priority text", None, request(priority="high"), "must be a number"),
    ("priority bool", None, request(priority=True), "must be a number"),
    ("priority broken", None, request(priority=1.5), "must be a number"),
    ("priority large", None, request(priority=101), "from -100 to 100"),
    ("priority small", None, request(priority=-101), "from -100 to 100"),
    ("priority huge", None, request()[:-1] + b', "priority": ' + b"9" * 5000 + b"}", "not JSON"),
    ("over-large", None, request(text="x" * 10_000_001), "larger than 10 MB"),
    ("name without r-", b"hello.json", request(), "`r-<letters and digits>.json`"),
    ("name of another kind", b"r-0000.txt", request(), "`r-<letters and digits>.json`"),
    ("name in capitals", b"r-ABCDEF.json", request(), "`r-<letters and digits>.json`"),
    ("name with spaces", b"r-a b 'c'.json", request(), "`r-<letters and digits>.json`"),
    ("name with newline", b"r-a\nb.json", request(), "`r-<letters and digits>.json`"),
    ("name as emoji", "r-🙂.json".encode(), request(), "`r-<letters and digits>.json`"),
    ("name long", b"r-" + b"a" * 150 + b".json", request(), "`r-<letters and digits>.json`"),
]


def leave(repository, name: bytes, data: bytes, folder: str = "human") -> None:
    """Put a file into the spool as its writers do: by rename."""
    spool = os.fsencode(repository.root / ".aipass/spool" / folder)
    os.makedirs(spool, exist_ok=True)
    half = os.path.join(spool, b".half-%d.tmp" % time.monotonic_ns())
    Path(os.fsdecode(half)).write_bytes(data)
    os.rename(half, os.path.join(spool, name))


def set_aside(repository) -> dict[bytes, tuple[bytes, dict]]:
    """What lies in quarantine: by its name in the spool, the path of what was kept and the note beside it."""
    folder = os.fsencode(repository.root / ".aipass/quarantine/spool")
    found = {}
    for entry in os.listdir(folder) if os.path.isdir(folder) else ():
        path = os.path.join(folder, entry)
        if not entry.endswith(b".rejected.json") and os.path.lexists(path + b".rejected.json"):
            note = json.loads(Path(os.fsdecode(path + b".rejected.json")).read_text())
            found[entry.split(b"-", 1)[1]] = (path, note)
    return found


def test_whatever_lies_in_the_spool_is_set_aside_with_its_reason(repository, tmp_path):
    pid = engine(repository)
    names = {what: name or b"r-%04d.json" % number for number, (what, name, *_) in enumerate(SPOOL)}
    for what, _, data, _ in SPOOL:
        leave(repository, names[what], data)
    outside = tmp_path / "outside.json"
    outside.write_bytes(request())
    spool = repository.root / ".aipass/spool/human"
    (spool / "r-link.json").symlink_to(outside)
    (spool / "r-dangling.json").symlink_to("nowhere")
    for name in ("r-link.json", "r-dangling.json"):  # as `ln -s` would: beside others, which are seen
        assert os.path.lexists(spool / name)
    os.mkfifo(spool / "r-fifo.json")
    leave(repository, b"r-last.json", b"{")
    found = repository.wait_for(
        lambda: (got := set_aside(repository)) and len(got) > len(SPOOL) and got, "the setting aside of all"
    )
    for what, _, data, told in SPOOL:
        path, note = found[names[what]]
        assert told in note["reason"], what
        assert note["file"].startswith("human/")
        assert Path(os.fsdecode(path)).read_bytes() == data, what
        assert not os.path.lexists(os.path.join(os.fsencode(spool), names[what])), what
    assert outside.read_bytes() == request()
    assert list((repository.root / "outbox").glob("**/*.md")) == []
    is_still_well(repository, pid)
    told = repository.aipass("events", "--kind", "request.rejected", "--json").stdout.splitlines()
    assert len(told) >= len(SPOOL)


def test_a_symlink_in_the_spool_is_never_followed(repository, tmp_path):
    pid = engine(repository)
    outside = tmp_path / "outside.json"
    outside.write_bytes(request())
    target = repository.root / ".aipass/spool/human/r-link.json"
    target.symlink_to(outside)
    repository.wait_for(lambda: b"r-link.json" in set_aside(repository), "the setting aside")
    path, note = set_aside(repository)[b"r-link.json"]
    assert "cannot be read" in note["reason"]
    assert os.path.islink(path)
    assert not os.path.lexists(target)
    assert outside.read_bytes() == request()
    is_still_well(repository, pid)


def test_requests_left_without_an_engine_are_looked_at_by_the_next_one(repository):
    repository.write("aipass.toml", A)
    leave(repository, b"r-good.json", request(text="good"))
    leave(repository, b"r-0bad.json", b"bad")
    repository.aipass("up", "--until-idle", "--timeout", "150s")
    assert [path.read_text() for path in (repository.root / "outbox").glob("*/*.md")] == ["good"]
    assert "not JSON" in set_aside(repository)[b"r-0bad.json"][1]["reason"]


#: What it is: the name of its file, what it holds, and the folder of the spool.
ODD_REQUESTS = {
    "name not UTF-8": (b"r-\xff\xfe.json", b"{}", "human"),
    "name of 255 bytes": (b"r-" + b"a" * 248 + b".json", b"{}", "human"),
    "lone surrogate in text": (b"r-aaaa.json", b'{"verb": "send", "agent": "writer", "text": "\\ud800"}', "human"),
    "lone surrogate in key": (b"r-aaaa.json", b'{"verb": "send", "agent": "writer", "text": "x", "key": "\\ud800"}', "human"),
    "lone surrogate in id": (b"r-aaaa.json", b'{"verb": "cancel", "id": "r-\\ud800"}', "human"),
    "lone surrogate in name": (b"r-aaaa.json", b'{"verb": "resume", "name": "\\ud800"}', "human"),
    "lone surrogate in agent": (b"r-aaaa.json", request(agent="\ud800"), "human"),
    "folder of no run": (b"r-aaaa.json", request(), "run-" + "9" * 20),
}  # fmt: skip


def test_odd_requests_are_settled_one_way_or_the_other(repository):
    pid = engine(repository)
    for number, (what, (name, data, folder)) in enumerate(ODD_REQUESTS.items()):
        name = name.replace(b"aaaa.", b"aaa%d." % number)
        known = len(set_aside(repository))
        leave(repository, name, data, folder)
        left = os.path.join(os.fsencode(repository.root / ".aipass/spool" / folder), name)
        is_still_well(repository, pid)
        repository.wait_for(
            lambda left=left: not os.path.lexists(left), f"the end of the request's file: {what}"
        )
        if len(set_aside(repository)) == known:
            ledger = sqlite3.connect(f"file:{repository.root}/.aipass/ledger.db?mode=ro", uri=True)
            rows = ledger.execute("SELECT exit FROM requests WHERE id = ?", (f"r-aaa{number}",)).fetchall()
            ledger.close()
            assert len(rows) == 1, what
            assert rows[0][0] is not None, f"recorded, and never answered: {what}"


# -- (c) the inbox -----------------------------------------------------------------------------------------------------

INBOX = [
    # path, data, told
    ("inbox/writer/empty.md", b"", "it is empty"),
    (b"inbox/writer/empty \xff.md", b"", "it is empty"),
    ("inbox/writer/" + "e" * 247 + ".md", b"", "it is empty"),
    ("inbox/writer/blank.md", b"  \n \n", None),
    ("inbox/writer/big.bin", b"x" * 2001, "2001 bytes, and inbox.max_size is 2000"),
    ("inbox/root.md", b"for whom", "has no recipient"),
    ("inbox/wirter/x.md", b"hello", "there is no agent `wirter`"),
    ("inbox/writer/sub/x.md", b"hello", "a folder inside the inbox"),
    ("inbox/writer/a/b/c.md", b"hello", "a folder inside the inbox"),
    ("inbox/writer/yaml.md", b"---\nsubject: [a\n---\nx", "not valid YAML"),
    ("inbox/writer/toml.md", b"+++\nsubject = \n+++\nx", "not valid TOML"),
    ("inbox/writer/key.md", b"---\nsubjct: a\n---\nx", "did you mean `subject`"),
    ("inbox/writer/priority.md", b"---\npriority: high\n---\nx", "whole number from -100 to 100"),
    ("inbox/writer/range.md", b"---\npriority: 101\n---\nx", "whole number from -100 to 100"),
    ("inbox/writer/words.md", b"---\nkey: {a: b}\n---\nx", "must be text"),
    ("inbox/writer/bomb.md", b"---\na: &a [x,x,x]\nb: &b [*a,*a,*a]\nkey: *b\n---\nx", "must be text"),
    ("inbox/writer/only.md", b"---\nsubject: a\n---\n", "nothing but front matter"),
]
ODD = [
    b"with spaces and 'single' and \"double\" quotes.md",
    b"line\nbreak\ttab.md",
    "ünïcödé 日本語 🙂🙂.md".encode(),
    b"-rf --help.md",
    b"$(touch pwned) `id` ; & | * ?.md",
    b"{path} %s {0} {{.md",
    b"\x1b[31mred\x07.md",
    b"back\\slash.md",
    b"x" * 247 + b".md",
    ("é" * 100).encode() + b".markdown",
    b"no suffix",
    b"many.dots...md",
    b"x.md.json",
]


def drop(repository, path: str | bytes, data: bytes) -> bytes:
    target = os.path.join(os.fsencode(repository.root), os.fsencode(path))
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "wb") as file:
        file.write(data)
    return target


def note_of(target: bytes) -> dict | None:
    """The note beside a rejected file; a long name is cut in the note's own."""
    folder, name = os.path.split(target)
    for entry in os.listdir(folder):
        if entry.endswith(b".rejected.json") and (
            entry == name + b".rejected.json" or (len(name) > 216 and entry[:200] == name[:200])
        ):
            return json.loads(Path(os.fsdecode(os.path.join(folder, entry))).read_text())
    return None


def test_what_cannot_be_used_in_the_inbox_is_told_beside_it_and_stays(repository, tmp_path):
    pid = engine(repository, A + "[inbox]\nmax_size = 2000\n")
    told = {drop(repository, path, data): (data, words) for path, data, words in INBOX if words}
    box = repository.root / "inbox/writer"
    (tmp_path / "secret.md").write_text("secret")
    (box / "link.md").symlink_to(tmp_path / "secret.md")
    (box / "dangling.md").symlink_to("nowhere")
    os.mkfifo(box / "pipe.md")
    for name, words in (("link.md", "symlink"), ("dangling.md", "symlink"), ("pipe.md", "fifo")):
        told[os.fsencode(box / name)] = (None, f"it is a {words}, not a regular file")
    for target, (data, words) in told.items():
        note = repository.wait_for(lambda target=target: note_of(target), f"a note beside {target!r}")
        assert words in note["reason"]
        assert note["remedy"]
        assert os.path.lexists(target)
        if data is not None:
            assert Path(os.fsdecode(target)).read_bytes() == data
    assert list((repository.root / "outbox").glob("*/*")) == []
    told_in_all = json.loads(repository.aipass("status", "--json").stdout)["attention"]
    assert any(text.startswith(f"inbox/ has {len(told)} rejected files") for text in told_in_all), told_in_all
    is_still_well(repository, pid)


@pytest.mark.parametrize(
    "names",
    few([
        P(ODD, id="all that is UTF-8"),
        P([b"\xff\xfe not UTF-8 \xe9.md"], id="not UTF-8"),
        P([b"\xe9.bin"], id="not UTF-8, by path"),
        P([b"x" + "é".encode() * 118 + b".markdown"], id="cut within a letter"),
        P([("x" + "日" * 81).encode() + b".md"], id="cut within a letter of three bytes"),
    ], 3),
)  # fmt: skip
def test_files_of_odd_names_are_answered(repository, names):
    pid = engine(repository)
    wanted = {name: f"file number {number}" for number, name in enumerate(names)}
    for name, text in wanted.items():
        # Text only where the name says so; others are handed over by their path.
        drop(repository, b"inbox/writer/" + name, text.encode())
    outbox = os.fsencode(repository.root / "outbox/writer")

    def answers() -> list[bytes] | None:
        found = [n for n in (os.listdir(outbox) if os.path.isdir(outbox) else []) if not n.startswith(b".")]
        return found if sum(n.endswith(b".md") for n in found) >= len(names) else None

    found = repository.wait_for(answers, "an answer to every file", timeout=PATIENCE)
    said = [Path(os.fsdecode(os.path.join(outbox, n))).read_text() for n in found if n.endswith(b".md")]
    kept = {}
    for folder, _, files in os.walk(os.fsencode(repository.root / ".aipass/dispatches")):
        kept |= {name: os.path.join(folder, name) for name in files}
    for name, text in wanted.items():
        assert Path(os.fsdecode(kept[name])).read_text() == text, name
        assert not os.path.lexists(os.path.join(os.fsencode(repository.root / "inbox/writer"), name))
        if name.endswith((b".md", b".markdown")):
            assert text in said
        stem = (name.rpartition(b".")[0] or name)[:200]
        assert any(answer.startswith(stem) for answer in found), name
    for name in found:
        if name.endswith(b".json"):
            record = json.loads(Path(os.fsdecode(os.path.join(outbox, name))).read_text())
            assert record["state"] == "succeeded"
    assert not (repository.root / "pwned").exists()
    for words in (["dispatches"], ["dispatches", "--json"], ["events"], ["events", "--json"], ["status"]):
        fails(run(repository, *words), 0)
    for number in range(1, len(names) + 1):
        fails(run(repository, "show", str(number)), 0, "succeeded")
        fails(run(repository, "why", str(number)), 0, "file.closed")
        fails(run(repository, "show", str(number)), 0, "answer    outbox/writer/")
    is_still_well(repository, pid)


#: What it is: its path, and what it holds.
ODD_FILES = {
    "blank": ("inbox/writer/blank.md", b"  \n \n"),
    "surrogate": ("inbox/writer/x.md", b'---\nsubject: "\\ud800"\n---\nx'),
    "bool": ("inbox/writer/x.md", b"---\nsubject: !!bool maybe\n---\nx"),
    "timestamp": ("inbox/writer/x.md", b"---\nsubject: !!timestamp maybe\n---\nx"),
    "int": ("inbox/writer/x.md", b'---\npriority: !!int ""\n---\nx'),
    "deep TOML": ("inbox/writer/x.md", b"+++\nx = " + b"[" * 50_000 + b"\n+++\nx"),
    "deep YAML": ("inbox/writer/x.md", b"---\nx: " + b"[" * 50_000 + b"\n---\nx"),
    "long number": ("inbox/writer/x.md", b"---\nkey: 0x" + b"f" * 20_000 + b"\n---\nx"),
    "folder not UTF-8": (b"inbox/\xff/x.md", b"x"),
    "folder long": (b"inbox/" + b"y" * 250 + b"/x.md", b"x"),
    "named like a note": ("inbox/writer/x.md.rejected.json.md", b""),
}  # fmt: skip


def test_odd_files_are_rejected_or_answered(repository):
    pid = engine(repository)
    for number, (what, (path, data)) in enumerate(ODD_FILES.items()):
        named = path.replace("/x.md", f"/x{number}.md") if isinstance(path, str) else path
        # Counted first: the engine may have taken it before anybody looks.
        known = len(list((repository.root / ".aipass/dispatches").glob("*")))
        target = drop(repository, named, data)

        def settled(target=target, number=number) -> bool:
            answers = (repository.root / "outbox").glob(f"*/x{number}.*.md")
            return note_of(target) is not None or bool(list(answers))

        repository.wait_for(settled, f"a note or an answer: {what}")
        made = len(list((repository.root / ".aipass/dispatches").glob("*")))
        assert os.path.lexists(target) or made > known, what
    is_still_well(repository, pid)


def test_five_bad_files_do_not_disable_the_inbox(repository):
    engine(repository)
    for number in range(5):
        drop(repository, f"inbox/writer/{number}.md", b"---\nsubject: !!bool maybe\n---\nx")
    time.sleep(1)
    drop(repository, "inbox/writer/good.md", b"good")
    assert repository.answer("writer/good.*.md", timeout=PATIENCE).read_text() == "good"


# -- (d) the command line ----------------------------------------------------------------------------------------------

COMMANDS = [
    # words, exit, told
    (["sned", "writer", "hi"], 2, ["no verb `sned`", "did you mean `send`"]),
    (["xyzzy"], 2, ["no verb `xyzzy`", "--help"]),
    (["status", "--jsn"], 2, ["--jsn", "--json"]),
    (["-x"], 2, ["-x"]),
    (["send"], 2, ["Missing argument"]),
    (["send", "writr", "hi"], 2, ["no agent `writr`", "did you mean `writer`"]),
    (["send", "zzz", "hi"], 2, ["no agent `zzz`", "the agents are: writer"]),
    (["send", "", "hi"], 2, ["no agent ``"]),
    (["send", b"\xff", "hi"], 2, ["no agent `\\udcff`"]),
    (["send", "writer", ""], 2, ["the text is empty"]),
    (["send", "writer", " \n\t"], 2, ["the text is empty"]),
    (["send", "writer"], 2, ["the text is empty"]),
    (["send", "writer", "--file", "-"], 2, ["the text is empty"]),
    (["send", "writer", b"\xff"], 2, ["not UTF-8", "inbox"]),
    (["send", "writer", "hi", "--file", "aipass.toml"], 2, ["either TEXT or --file"]),
    (["send", "writer", "--file", "nowhere.md"], 2, ["nowhere.md", "No such file"]),
    (["send", "writer", "--file", "."], 2, ["Is a directory"]),
    (["send", "writer", "--file", "nul.md"], 2, ["contains a NUL byte"]),
    (["send", "writer", "hi", "--priority", "101"], 2, ["--priority", "101"]),
    (["send", "writer", "hi", "--priority", "high"], 2, ["--priority", "high"]),
    (["send", "writer", "hi", "there"], 2, ["extra argument", "there"]),
    (["send", "writer", "hi", "--wait", "--timeout", "soon"], 2, ["--timeout", '"soon" is not a duration']),
    (["send", "writer", "hi", "--wait", "--timeout", "-5s"], 2, ["--timeout", "is not a duration"]),
    (["send", "writer", "hi", "--timeout", "5s"], 2, ["--timeout", "add --wait"]),
    (["up", "--timeout", "5"], 2, ["--timeout", '"5" is not a duration']),
    (["up", "--timeout", "9999999d"], 2, ["longer than a hundred years"]),
    (["up", "now"], 2, ["extra argument", "now"]),
    (["events", "--limit", "0"], 2, ["--limit", "0"]),
    (["dispatches", "--state", "done"], 2, ["--state", "succeeded"]),
    (["completion", "tcsh"], 2, ["tcsh", "bash"]),
    (["cancel"], 2, ["Missing argument"]),
    (["cancel", "abc"], 1, ["no dispatch `abc`"]),
    (["retry", "-- -1"], 2, []),
    (["retry", "1.5"], 1, ["no dispatch `1.5`"]),
    (["logs", "1", "--run", "x"], 2, ["--run"]),
]
WITHOUT_ENGINE = [
    (["send", "writer", "hi", "--wait"], 4, ["the engine is not running", "aipass up"]),
    (["events"], 1, ["no ledger yet", "aipass up"]),
    (["show", "1"], 1, ["no ledger yet"]),
    (["logs", "1"], 1, ["no ledger yet"]),
    (["why", "1"], 1, ["no ledger yet"]),
]
UNKNOWN = ["99", "0", "99999999999999999999", "r-nothing"]


def _id(words) -> str:
    return " ".join(word if isinstance(word, str) else repr(word) for word in words)


@pytest.mark.parametrize(
    ("words", "code", "told"), [P(*case, id=_id(case[0])) for case in COMMANDS + WITHOUT_ENGINE]
)
def test_a_wrong_command_line_says_what_is_wrong_and_leaves_nothing(repository, words, code, told):
    repository.write("aipass.toml", A)
    repository.write("nul.md", "a\0b")
    fails(run(repository, *words), code, *told)
    assert list(repository.root.glob(".aipass/spool/*/*")) == []


def test_ids_that_do_not_exist(repository):
    pid = engine(repository)
    for unknown in UNKNOWN:
        for verb in ("show", "cancel", "retry", "logs", "why"):
            fails(run(repository, verb, unknown), 1, unknown)
    for words, told in (
        (["show", ""], "no dispatch ``"),
        (["show", "abc"], "no dispatch `abc`"),
        (["show", "１x"], "no dispatch"),
        (["why", "e99"], "no event"),
        (["why", "nowhere.md"], "the file does not exist"),
        (["why", "/etc/passwd"], "no events for"),
        (["resume", "nobody"], "nothing named `nobody` is paused"),
    ):
        fails(run(repository, *words), 1, told)
    repository.aipass("send", "writer", "hi", "--wait")
    fails(run(repository, "logs", "1", "--run", "99"), 2, "has no run 99")
    is_still_well(repository, pid)


#: Words, and with which code they end.
ODD_WORDS = [
    (["why", "e" + "9" * 30], 1),
    (["why", b"\xff.md"], 1),
    (["show", b"r-\xff"], 1),
    (["cancel", b"r-\xff"], 1),
    (["events", "--kind", b"\xff"], 0),
    (["events", "--limit", "9" * 30], 0),
    (["send", "writer", "hi", "--subject", b"\xff"], 0),
    (["send", "writer", "hi", "--timeout", "soon"], 2),
]


def test_odd_arguments_with_an_engine(repository):
    pid = engine(repository)
    env = {"PYTHONPATH": str(quick_reply(repository))}
    for words, code in ODD_WORDS:
        done = run(repository, *words, env=env)
        fails(done, code)
        assert "did not reply" not in done.stderr, words
    is_still_well(repository, pid)


@pytest.mark.parametrize("running", [True, False])
def test_a_text_that_is_too_large_is_refused_at_once(repository, running):
    if running:
        engine(repository)
    repository.write("aipass.toml", A)
    repository.write("big.md", "x" * 10_000_001)
    env = {"PYTHONPATH": str(quick_reply(repository))}
    fails(run(repository, "send", "writer", "--file", "big.md", env=env), 2, "10 MB")


def quick_reply(repository) -> Path:
    """A sitecustomize that shortens the wait for a reply, so that a test of it takes no minute."""
    folder = repository.root.parent / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import aipass.terminal.asking\naipass.terminal.asking.REPLY_WAIT_S = 20.0\n"
    )
    return folder


@pytest.mark.parametrize("make", ["missing", "file", "empty folder"])
def test_a_root_that_is_named_and_is_none(repository, make):
    repository.write("aipass.toml", A)
    named = repository.root.parent / "named"
    if make == "file":
        named.write_text("x")
    elif make == "empty folder":
        named.mkdir()
    fails(
        run(repository, "status", env={"AIPASS_ROOT": str(named)}),
        2,
        f"AIPASS_ROOT={named}",
        "no aipass.toml",
    )


def test_a_root_that_is_a_symlink_to_itself(repository):
    loop = repository.root.parent / "loop"
    loop.symlink_to(loop)
    fails(run(repository, "status", env={"AIPASS_ROOT": str(loop)}), 2, "AIPASS_ROOT=")


@pytest.mark.parametrize(
    "words", [["status"], ["send", "writer", "x"], ["up"], ["down"], ["reload"], ["why", "1"]]
)
def test_outside_of_any_root(repository, words):
    fails(run(repository, *words), 2, "no aipass.toml", "aipass init")
    assert sorted(path.name for path in repository.root.iterdir()) == [".git"]


def test_a_folder_in_place_of_the_configuration_is_no_root(repository):
    (repository.root / "aipass.toml").mkdir()
    fails(run(repository, "status"), 2, "aipass.toml")


def gone(repository, *words: str, env: dict[str, str] | None = None):
    """A verb in a folder that is removed before it begins."""
    folder = repository.root.parent / "gone"
    folder.mkdir()
    return subprocess.run(
        ["sh", "-c", 'rmdir ../gone && exec "$@"', "sh", sys.executable, "-m", "aipass", *words],
        cwd=folder,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["send", "writer", "x"],
        ["up"],
        P(["init"]),
    ],
)
def test_in_a_folder_that_is_gone(repository, words):
    fails(gone(repository, *words), 2, "folder no longer exists")


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["send", "writer", "x"],
        P(["why", "x.md"]),
    ],
)
def test_in_a_folder_that_is_gone_with_a_root_that_is_named(repository, words):
    repository.write("aipass.toml", A)
    repository.aipass("up", "--until-idle", "--timeout", "150s")
    done = gone(repository, *words, env={"AIPASS_ROOT": str(repository.root)})
    fails(done, 1 if words[0] == "why" else 0)


def test_half_of_a_run_s_environment_is_told(repository):
    engine(repository)
    fails(run(repository, "send", "writer", "x", env={"AIPASS_RUN": "1"}), 2, "AIPASS_SPOOL")


# -- (e) environment and filesystem ------------------------------------------------------------------------------------


def test_without_a_home(repository):
    repository.write("aipass.toml", A)
    drop(repository, "inbox/writer/x.md", b"at home nowhere")
    env = {"HOME": None, "USER": None, "LOGNAME": None}
    fails(run(repository, "up", "--until-idle", "--timeout", "150s", env=env), 0)
    assert repository.answer("writer/x.*.md").read_text() == "at home nowhere"
    for words in (["status"], ["doctor"], ["events"]):
        done = run(repository, *words, env=env)
        assert done.returncode in {0, 1}, done.stderr
        assert "bug in aipass" not in done.stderr


def _as_file(state: Path) -> None:
    state.write_text("mine")


def _as_link(state: Path) -> None:
    (state.parent.parent / "elsewhere").mkdir()
    state.symlink_to(state.parent.parent / "elsewhere")


def _as_dangling(state: Path) -> None:
    state.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("make", "words", "told"),
    [
        P(_as_file, ["up", "--until-idle"], "a file", id="file, up"),
        P(_as_file, ["up", "--detach"], "a file", id="file, up --detach"),
        P(_as_file, ["send", "writer", "x"], "cannot be written there", id="file, send"),
        P(_as_link, ["up", "--until-idle"], "symbolic link", id="symlink, up"),
        P(_as_link, ["up", "--detach"], "symbolic link", id="symlink, up --detach"),
        P(_as_dangling, ["up", "--until-idle"], "move it away", id="dangling, up"),
        P(_as_dangling, ["up", "--detach"], "move it away", id="dangling, up --detach"),
    ],
)  # fmt: skip
def test_a_state_folder_that_is_none(repository, make, words, told):
    repository.write("aipass.toml", A)
    state = repository.root / ".aipass"
    make(state)
    try:
        fails(run(repository, *words), 2, ".aipass", told)
        assert state.is_symlink() or state.read_text() == "mine"
        elsewhere = repository.root.parent / "elsewhere"
        assert not elsewhere.exists() or list(elsewhere.iterdir()) == []
    finally:
        state.unlink()


@pytest.mark.parametrize(
    "name", ["inbox", "inbox/writer", ".aipass/spool", ".aipass/runs", ".aipass/quarantine"]
)
def test_a_file_where_a_folder_must_be(repository, name):
    repository.write("aipass.toml", A)
    repository.write(name, "mine")
    fails(run(repository, "up", "--until-idle", "--timeout", "150s"), 2, name, "move")
    assert (repository.root / name).read_text() == "mine"


def make_ledger(repository) -> Path:
    """A ledger with a dispatch in it, of an engine that ended in good order."""
    repository.write("aipass.toml", A)
    drop(repository, "inbox/writer/x.md", b"before")
    repository.aipass("up", "--until-idle", "--timeout", "150s")
    return repository.root / ".aipass/ledger.db"


def _middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for start in range(4096, len(data), 4096):
        data[start : start + 200] = b"\xa5" * 200
    path.write_bytes(data)


def _pragma(statement: str):
    def change(path: Path) -> None:
        db = sqlite3.connect(path)
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute(statement)
        db.commit()
        db.close()

    return change


def _foreign(version: int):
    def change(path: Path) -> None:
        path.unlink()
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE bookmarks (url TEXT)")
        db.execute("INSERT INTO bookmarks VALUES ('https://example.invalid')")
        db.execute(f"PRAGMA user_version = {version}")
        db.commit()
        db.close()

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    few([
        P(lambda path: path.write_bytes(b"these are my notes\n" * 500), "not a ledger", id="text"),
        P(lambda path: path.write_bytes(b"SQLite"), "not a ledger", id="six bytes"),
        P(lambda path: path.write_bytes(path.read_bytes()[:100] + b"\0" * 20_000), "damaged", id="zeros"),
        P(_middle, "damaged", id="garbage in every page"),
        P(lambda path: os.truncate(path, path.stat().st_size // 2), "damaged", id="half"),
        P(lambda path: os.truncate(path, 100), "damaged", id="header only"),
        P(lambda path: os.truncate(path, 5000), "damaged", id="a page and a bit"),
        P(_pragma("PRAGMA user_version = 999"), "written by a newer aipass (ledger version 999", id="newer"),
        P(_pragma("PRAGMA user_version = -1"), "ledger", id="negative version"),
        P(_foreign(1), "another program", id="another program's"),
        P(_foreign(0), "another program", id="another program's, version 0"),
    ], 5),
)  # fmt: skip
def test_a_ledger_that_cannot_be_used_is_not_touched(repository, change, told):
    ledger = make_ledger(repository)
    change(ledger)
    before = ledger.read_bytes()
    drop(repository, "inbox/writer/y.md", b"waits")
    for words in (["up", "--until-idle", "--timeout", "150s"], ["up", "--detach"]):
        fails(run(repository, *words), 1, "ledger.db", told)
        assert ledger.read_bytes() == before
    assert (repository.root / "inbox/writer/y.md").read_bytes() == b"waits"


def test_after_the_ledger_was_moved_away_as_advised_work_begins_anew(repository):
    ledger = make_ledger(repository)
    ledger.write_bytes(b"these are my notes")
    drop(repository, "inbox/writer/y.md", b"waits")
    fails(run(repository, "up", "--until-idle"), 1, "move it away, then `aipass up` creates a new one")
    ledger.rename(ledger.with_name("old.db"))
    repository.aipass("up", "--until-idle", "--timeout", "150s")
    assert repository.answer("writer/y.*.md").read_text() == "waits"


@pytest.mark.parametrize(
    "words", [["status"], ["events"], ["dispatches"], ["show", "1"], ["why", "1"], ["logs", "1"]]
)
@pytest.mark.parametrize("kind", ["text", "newer", "half", "pages", "foreign"])
def test_readers_of_a_ledger_that_cannot_be_used(repository, words, kind, request):
    repository.write("aipass.toml", A)
    ledger = repository.root / ".aipass/ledger.db"
    ledger.parent.mkdir()
    from aipass.ledger import Ledger

    Ledger.open(ledger).close()
    {
        "text": lambda path: path.write_bytes(b"notes\n" * 500),
        "newer": _pragma("PRAGMA user_version = 999"),
        "half": lambda path: os.truncate(path, path.stat().st_size // 2),
        "pages": _middle,
        "foreign": _foreign(0),
    }[kind](ledger)
    before = ledger.read_bytes()
    done = run(repository, *words)
    fails(done, 1, "ledger.db")
    assert ledger.read_bytes() == before


def test_a_folder_in_place_of_the_ledger(repository):
    repository.write("aipass.toml", A)
    (repository.root / ".aipass/ledger.db").mkdir(parents=True)
    for words in (["up", "--until-idle"], ["events"]):
        fails(run(repository, *words), 1, "ledger.db", "Is a directory")


def has_mounts() -> bool:
    return (
        ROOT_USER
        and shutil.which("unshare") is not None
        and shutil.which("mount") is not None
        and subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
    )


@pytest.mark.parametrize(
    ("words", "code", "told"),
    few([
        P(["up", "--until-idle"], 2, "cannot be written", id="up"),
        P(["send", "writer", "x"], 2, "Read-only file system", id="send"),
        P(["events"], 0, "run.finished", id="events"),
        P(["status"], 0, "1 succeeded", id="status"),
        P(["up", "--detach"], 2, "cannot be written", id="up --detach"),
    ], 3),
)  # fmt: skip
@pytest.mark.skipif(not has_mounts(), reason="needs root and unshare -m, for a read-only mount")
def test_a_state_folder_that_is_read_only(repository, words, code, told):
    ledger = make_ledger(repository)
    before = ledger.read_bytes()
    script = 'mount --bind .aipass .aipass && mount -o remount,ro,bind .aipass && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-m", "aipass", *words],
        cwd=repository.root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    fails(done, code, told)
    assert ledger.read_bytes() == before


def test_a_second_engine_is_refused_and_names_the_first(repository):
    pid = engine(repository)
    for words in (["up"], ["up", "--until-idle"], ["up", "--timeout", "5s"]):
        fails(run(repository, *words), 3, "an engine runs here already", f"process {pid},", "aipass down")
    fails(run(repository, "up", "--detach"), 0, f"process {pid}")
    is_still_well(repository, pid)


def test_an_engine_that_was_killed_a_moment_ago_is_waited_for(repository):
    """The kernel takes a killed process apart in its own time, and the lock is held for as long."""
    repository.write("aipass.toml", A)
    (repository.root / ".aipass").mkdir()
    with (
        open(repository.root / ".aipass/engine.lock", "w+") as lock,
        subprocess.Popen(["sleep", "60"]) as killed,
    ):
        json.dump({"pid": killed.pid, "version": "0", "started": time.time()}, lock)
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        fails(run(repository, "up", "--until-idle"), 3, f"process {killed.pid},")
        killed.kill()  # and not waited for: it is a zombie from here on, and the lock is still held
        letting_go = threading.Timer(1.0, lambda: fcntl.flock(lock, fcntl.LOCK_UN))
        letting_go.start()
        assert run(repository, "up", "--until-idle").returncode == 0
        letting_go.join()


@pytest.mark.parametrize("data", [b"", b"\xff\xfe{", b'{"pid": "x"}', b"[]"])
def test_a_lock_file_of_nonsense_is_no_engine(repository, data):
    repository.write("aipass.toml", A)
    (repository.root / ".aipass").mkdir()
    (repository.root / ".aipass/engine.lock").write_bytes(data)
    fails(run(repository, "status"), 0, "not running")
    fails(run(repository, "down"), 0, "the engine is not running")
    fails(run(repository, "up", "--until-idle", "--timeout", "150s"), 0)


@pytest.fixture
def small_disk(tmp_path):
    """A filesystem of 2 MB, below everything of the test; gone again when all that ran on it is."""
    if not ROOT_USER or shutil.which("mount") is None:
        pytest.skip("needs root, for a small filesystem")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "small", str(tmp_path)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no small filesystem can be mounted: {done.stderr.decode().strip()}")
    yield tmp_path
    for _ in range(50):
        if subprocess.run(["umount", str(tmp_path)], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def fill(path: Path) -> None:
    """Take all that is left of a disk."""
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 512, 1):
            try:
                while file.write(b"x" * size) == size:
                    pass
            except OSError:
                continue


def test_a_full_disk_ends_nothing_and_loses_nothing(small_disk, repository):
    pid = engine(repository)
    is_still_well(repository, pid)
    ready = small_disk / "ready.md"
    ready.write_text("after the flood")
    filler = small_disk / "filler"
    fill(filler)
    ready.rename(repository.root / "inbox/writer/flood.md")
    fails(run(repository, "send", "writer", "x" * 20_000), 2, "cannot be written there", "No space left")
    time.sleep(2.5)
    os.kill(pid, 0)
    assert not list(repository.root.glob("outbox/writer/flood.*.md"))
    filler.unlink()
    assert repository.answer("writer/flood.*.md", timeout=PATIENCE).read_text() == "after the flood"
    assert not [path for path in repository.root.glob("**/.*.tmp") if ".aipass/spool" in str(path)]
    is_still_well(repository, pid)


def test_an_engine_does_not_start_on_a_full_disk_and_says_why(small_disk, repository):
    repository.write("aipass.toml", A)
    repository.write("inbox/writer/x.md", "later")
    filler = small_disk / "filler"
    fill(filler)
    done = run(repository, "up", "--until-idle", "--timeout", "150s")
    assert done.returncode in {1, 2}, done.stderr
    assert "bug in aipass" not in done.stderr
    assert any(words in done.stderr for words in ("No space left", "free space", "disk is full")), done.stderr
    filler.unlink()
    repository.aipass("up", "--until-idle", "--timeout", "150s")
    assert repository.answer("writer/x.*.md").read_text() == "later"


def test_an_engine_that_is_killed_in_the_middle_of_bad_input_goes_on(repository):
    pid = engine(repository)
    for number in range(20):
        leave(repository, b"r-%04d.json" % number, b"bad")
        drop(repository, f"inbox/writer/{number}.md", b"" if number % 2 else f"text {number}".encode())
    os.kill(pid, signal.SIGKILL)
    repository.wait_for(lambda: repository.aipass("status").stdout.startswith("engine   not"), "its end")
    repository.aipass("up", "--until-idle", "--timeout", "150s")
    answers = {path.read_text() for path in repository.root.glob("outbox/writer/*.md")}
    assert answers == {f"text {number}" for number in range(0, 20, 2)}
    assert len(set_aside(repository)) == 20
    for number in range(1, 20, 2):
        assert "empty" in note_of(os.fsencode(repository.root / f"inbox/writer/{number}.md"))["reason"]


def test_no_error_of_ours_has_another_code():
    for kind in AipassError.__subclasses__():
        assert kind.exit_code in {1, 2, 3, 4}
