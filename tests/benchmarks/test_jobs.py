"""Whole jobs of real tools, by agents of a real engine in watched folders; the peer is the same job without aipass."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from fence_kit import NO_FENCE

from benchmarks import kit

pytestmark = [
    pytest.mark.bench,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(NO_FENCE), reason=f"there is no fence here: {NO_FENCE}"),
]

ROUNDS = kit.size(3, 1)
#: Jobs that are nothing but calls, and those that also work; with the goals for one agent, and for four at once.
CALLS, WORK = (2.0, 2.5), (1.2, 1.3)
NPM = {
    "npm_config_offline": "true",
    "npm_config_audit": "false",
    "npm_config_fund": "false",
    "npm_config_loglevel": "error",
}
#: What is measured: the program that it needs, what is made ready before, the job, the goals.
JOBS = {
    "cp -r of 5,000 files": ("cp", "mkdir many; (cd many; seq 5000 | xargs touch)", "rm -rf out; cp -r many out", CALLS),
    "tar x of 1,500 files": ("tar", "mkdir m; (cd m; seq 1500 | xargs touch); tar cf m.tar m", "rm -rf m; tar xf m.tar", CALLS),
    "SQLite, 3,000 commits": (
        "sh",
        "true",
        (f"rm -f a.db; {sys.executable} -c \"import sqlite3; d = sqlite3.connect('a.db', isolation_level=None); d.execute('create table t(x)'); "
        "d.execute('pragma synchronous=off'); [d.execute('insert into t values(?)', (i,)) for i in range(3000)]\""),
        CALLS,
    ),
    "git init, add, commit of 2,000 files": (
        "git",
        "mkdir src; for i in $(seq 2000); do echo $i > src/f$i; done",
        "rm -rf $TMPDIR/g; mkdir $TMPDIR/g; cp -r src $TMPDIR/g; (cd $TMPDIR/g; git init -q; git add .; git -c user.name=a -c user.email=a@b commit -qm x)",
        WORK,
    ),
    "pytest, 300 tests with a file each": (
        "sh",
        'printf \'import pytest\\n@pytest.mark.parametrize("n", range(300))\\ndef test_it(n, tmp_path): (tmp_path / "x").write_text(str(n))\\n\' > test_it.py',
        f"{sys.executable} -m pytest -q -p no:randomly -p no:xdist -p no:cacheprovider --rootdir . test_it.py",
        WORK,
    ),
    "pip install of a local package with 300 modules": (
        "sh",
        ("mkdir -p p/many; touch p/many/__init__.py; for i in $(seq 300); do echo x=$i > p/many/m$i.py; done; "
        "printf '[build-system]\\nrequires = [\"setuptools\"]\\nbuild-backend = \"setuptools.build_meta\"\\n[project]\\nname = \"many\"\\nversion = \"1\"\\n' > p/pyproject.toml; "
        f"printf '[tool.setuptools]\\npackages = [\"many\"]\\n' >> p/pyproject.toml; {sys.executable} -m pip wheel -q --no-build-isolation --no-deps -w w ./p"),
        f"{sys.executable} -m pip install -q --no-index --no-deps --upgrade --target t w/*.whl",
        WORK,
    ),
    "npm install of a local package with 300 modules": (
        "npm",
        ('mkdir -p pkg/lib; for i in $(seq 300); do echo "module.exports=$i" > pkg/lib/f$i.js; done; echo \'{"name":"pkg","version":"1.0.0"}\' > pkg/package.json; '
        'echo \'{"name":"top","version":"1.0.0"}\' > package.json'),
        "rm -rf node_modules package-lock.json; npm install --install-links ./pkg",
        WORK,
    ),
    "make -j2 of a C project with 60 files": (
        "gcc",
        ("mkdir c; for i in $(seq 60); do echo \"int f$i(int x) { return x * $i; }\" > c/f$i.c; done; "
        "printf 'OBJ := $(patsubst %%.c,%%.o,$(wildcard c/*.c))\\nlib.a: $(OBJ)\\n\\tar rc $@ $^\\n' > Makefile"),
        "rm -f c/*.o lib.a; make -s -j2",
        WORK,
    ),
    "cargo build of a small crate": (
        "cargo",
        ("mkdir src; for i in $(seq 20); do echo \"pub fn f$i(x: u64) -> u64 { x * $i }\" > src/m$i.rs; echo \"pub mod m$i;\" >> src/lib.rs; done; "
        "printf '[package]\\nname = \"small\"\\nversion = \"0.1.0\"\\nedition = \"2021\"\\n' > Cargo.toml"),
        "rm -rf target Cargo.lock; cargo build -q --offline",
        WORK,
    ),
}  # fmt: skip
SMALL = ("cp -r of 5,000 files",)


def environment(folder: Path) -> dict[str, str]:
    """The environment of the peer, close to that of a run."""
    kept = {
        name: os.environ[name] for name in ("PATH", "LANG", "CARGO_HOME", "RUSTUP_HOME") if name in os.environ
    }
    rust = {"CARGO_HOME": str(Path.home() / ".cargo"), "RUSTUP_HOME": str(Path.home() / ".rustup")}
    return {**rust, **kept, **NPM, "HOME": str(folder), "TMPDIR": str(folder)}  # fmt: skip


def timed(job: str) -> str:
    return f"for i in {' '.join('x' * ROUNDS)}; do s=$(date +%s%N); ({job}) > log 2>&1 || exit 9; e=$(date +%s%N); echo took $((e-s)); done"


def spans(out: str) -> list[float]:
    return [int(line.split()[1]) / 1e9 for line in out.splitlines() if line.startswith("took ")]


def bare(folder: Path, prepare: str, job: str, agents: int) -> float:
    """Seconds of the job without aipass: the median of all who do it at once."""
    folders = [folder / f"bare{n}" for n in range(agents)]
    for one in folders:
        one.mkdir()
        subprocess.run(["sh", "-c", prepare], cwd=one, env=environment(one), check=True, capture_output=True)
    started = [
        subprocess.Popen(["sh", "-c", timed(job)], cwd=one, env=environment(one), stdout=subprocess.PIPE, text=True)
        for one in folders
    ]  # fmt: skip
    outs = [process.communicate()[0] for process in started]
    assert not any(process.returncode for process in started), outs
    return statistics.median([span for out in outs for span in spans(out)])


def fenced(root, prepare: str, job: str, agents: int) -> float:
    """The same by agents, each in a folder of its own."""
    names = [f"w{n}" for n in range(agents)]
    env = environment(Path.home())
    given = "".join(
        f'{name} = "{value}"\n'
        for name, value in env.items()
        if name in NPM or name.startswith(("CARGO", "RUST"))
    )
    tables = "".join(
        f'{kit.agent(name, ["sh", "job.sh", name])}owns = ["/{name}/"]\ntimeout = "15m"\n[agents.{name}.env]\n{given}'
        for name in names
    )  # fmt: skip
    house = root(f"[limits]\nconcurrency = 8\nruns_per_hour = 1000\n{tables}")
    (house.layout.root / "job.sh").write_text(
        f"cd $1 || exit 8\n({prepare}) > log 2>&1 || exit 7\ntouch ready\nuntil [ -e ../go ]; do sleep 0.05; done\n{timed(job)}\n"
    )
    for name in names:
        (house.layout.root / name).mkdir()
        (house.layout.root / name / ".keep").touch()
    house.up()
    for name in names:
        house.aipass("send", name, "go")
    kit.wait_for(
        lambda: all((house.layout.root / name / "ready").exists() for name in names), "preparation", 300
    )
    (house.layout.root / "go").touch()
    kit.wait_for(
        lambda: house.ask("SELECT count(*) FROM dispatches WHERE state NOT IN ('queued', 'running')") == agents,
        "the jobs",
        900,
        0.1,
    )  # fmt: skip
    found = []
    for number in range(1, agents + 1):
        out = (house.layout.run(number) / "stdout.log").read_text()
        found += spans(out)
        logs = [path.read_text()[-500:] for path in house.layout.root.glob("w*/log")]
        assert len(spans(out)) == ROUNDS, (out, (house.layout.run(number) / "stderr.log").read_text(), logs)
    return statistics.median(found)


@pytest.mark.parametrize("agents", [1] if kit.SMALL else [1, 4])
@pytest.mark.parametrize("job", SMALL if kit.SMALL else [*JOBS])
def test_a_job_in_a_watched_folder(root, row, tmp_path, job, agents):
    needs, prepare, run, goals = JOBS[job]
    if shutil.which(needs) is None:
        pytest.skip(f"no {needs}")
    if kit.SMALL:
        prepare = prepare.replace("5000", "50")
    peer = bare(tmp_path, prepare, run, agents)
    ours = fenced(root, prepare, run, agents)
    goal = goals[agents > 1]
    who = "one agent" if agents == 1 else f"{agents} agents at once"
    row(f"{job}, {who}", kit.ms(ours), kit.ms(peer), ours / peer, f"<= {goal} x", met=ours <= goal * peer)
