"""What the fence costs: per call, per job of a real tool, and with a hundred runs at once. The peer is the same without."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys

import pytest
from fence_kit import NO_FENCE, OTHER_USER, FenceHouse, no_other_user

from benchmarks import kit

pytestmark = [
    pytest.mark.bench,
    pytest.mark.skipif(bool(NO_FENCE), reason=f"there is no fence here: {NO_FENCE}"),
]

CALLS, ROUNDS, RUNS = kit.size(5000, 100), kit.size(3, 1), kit.size(100, 6)
#: Prints the median of many calls in microseconds. C, so that the interpreter is not what is measured.
LOOP = r"""
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e6 + t.tv_nsec / 1e3; }
static int order(const void *a, const void *b) { double x = *(double *)a, y = *(double *)b; return x < y ? -1 : x > y; }
int main(int c, char **v) {
  int n = atoi(v[3]), flags = strcmp(v[2], "read") ? O_WRONLY : O_RDONLY;
  double *took = malloc(n * sizeof *took);
  close(open(v[1], O_WRONLY | O_CREAT, 0644));
  for (int i = 0; i < n; i++) {
    double began = now();
    int f = open(v[1], flags);
    close(f);
    took[i] = now() - began;
    if (f < 0) return 1;
  }
  qsort(took, n, sizeof *took, order);
  printf("%.3f\n", took[n / 2]);
  return 0;
}
"""
#: Where, what is made ready before, what is measured.
JOBS = {
    "cp -r of 5,000 files on tmpfs": (
        "dir",
        "mkdir many; cd many; seq 5000 | xargs touch",
        "cp -r many copied",
    ),
    "python -m venv": ("dir", "true", f"{sys.executable} -m venv --without-pip env"),
    "git clone of a local repository": (
        "$TMPDIR",  # a repository below the root would be another's ground
        "git init -q src; cd src; seq 300 | xargs -I% sh -c 'echo % > f%'; git add .; git -c user.name=a -c user.email=a@b commit -qm x",
        "git clone -q src cloned",
    ),
    "npm install of a small local package": (
        "dir",
        'mkdir -p pkg/lib; cd pkg; seq 50 | xargs -I% sh -c \'echo module.exports=% > lib/f%.js\'; echo \'{"name":"pkg","version":"1.0.0"}\' > package.json',
        "npm install --offline --no-audit --no-fund --install-links --cache npm ./pkg > log 2>&1",
    ),
    "pytest, 200 tests with a file each": (
        "dir",
        'printf \'import pytest\\n@pytest.mark.parametrize("n", range(200))\\ndef test_it(n, tmp_path): (tmp_path / "x").write_text(str(n))\\n\' > test_it.py',
        f"{sys.executable} -m pytest -q -p no:randomly -p no:xdist --rootdir . test_it.py > log 2>&1",
    ),
    "tar x of 2,000 files": (
        "dir",
        "mkdir m; (cd m; seq 2000 | xargs touch); tar cf m.tar m; rm -r m",
        "tar xf m.tar",
    ),
}


@pytest.fixture(
    params=[pytest.param(OTHER_USER, marks=pytest.mark.skipif(bool(no_other_user()), reason="-")), None],
    ids=["user", "self"],
)
def house(request, monkeypatch):
    made = FenceHouse(monkeypatch, request.param)
    made.territory(a=["/dir/"], **{f"w{n}": [f"/w{n}/"] for n in range(RUNS)})
    (made.root / "dir").mkdir()
    made.own_all()
    yield made
    made.close()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no compiler")
def test_one_call(house, row):
    who = "root" if house.user is None else "ordinary user"
    program = str(house.base / "loop")
    subprocess.run(["gcc", "-O2", "-w", "-x", "c", "-", "-o", program], input=LOOP, text=True, check=True)
    bare = {
        what: float(
            subprocess.run(
                [program, str(house.base / "bare"), what, str(CALLS)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for what in ("write", "read")
    }
    for name, path, what, goal in (
        ("opening to write, carried out", "dir/x", "write", 130.0),
        ("opening to write, inside the wall", "$TMPDIR/x", "write", 40.0),
        ("opening to read", "dir/x", "read", None),
    ):
        took = statistics.median(
            float(house.sh("a", f"{program} {path} {what} {CALLS}").out) for _ in range(ROUNDS)
        )
        over = took - bare[what]
        shown = f"<= {goal:.0f} us" if goal else "0 us"
        met = over <= goal if goal else over <= 0.15 * bare[what]
        row(
            f"{name}, {who}",
            f"{took:.1f} us (+{over:.1f})",
            f"{bare[what]:.1f} us",
            took / bare[what],
            shown,
            met=met,
        )


@pytest.mark.parametrize("job", [*JOBS][: kit.size(len(JOBS), 1)])
def test_one_job_of_a_real_tool(monkeypatch, row, job):
    where, prepare, run = JOBS[job]
    if run.split()[0] in {"npm", "git"} and shutil.which(run.split()[0]) is None:
        pytest.skip(f"no {run.split()[0]}")
    house = FenceHouse(monkeypatch, where="/dev/shm" if "tmpfs" in job else "/var/tmp")
    timed = "s=$(date +%s%N); {run} || exit 9; e=$(date +%s%N); echo took $((e-s))"
    fenced, bare = [], []
    try:
        house.territory(a=["/dir/"])
        (house.root / "dir").mkdir()
        env = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        for number in range(ROUNDS):
            script = f"mkdir r{number}; cd r{number}; ({prepare}) 2>&1; {timed.format(run=run)}"
            done = house.sh("a", f"cd {where}; {script}")
            assert done.exit == 0, done.err
            fenced.append(int(done.out.split()[-1]) / 1e9)
            folder = house.base / "bare"
            folder.mkdir(exist_ok=True)
            env |= {"HOME": str(house.base / "home"), "TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
            out = subprocess.run(
                ["sh", "-c", script], cwd=folder, env=env, check=True, capture_output=True, text=True
            ).stdout
            bare.append(int(out.split()[-1]) / 1e9)
    finally:
        house.close()
    ours, peer = statistics.median(fenced), statistics.median(bare)
    row(job, kit.ms(ours), kit.ms(peer), ours / peer)


def test_a_hundred_runs_at_once(house, row):
    if house.user is None:
        pytest.skip("once is enough")
    code = "import os,time\nos.makedirs('{0}', exist_ok=True)\nt=[]\nfor i in range(50):\n s=time.perf_counter(); os.close(os.open('{0}/x', os.O_WRONLY|os.O_CREAT)); t.append(time.perf_counter()-s); time.sleep(.02)\nprint(max(t))\n"
    runs = [house.start(f"w{n}", house.python, "-c", code.format(f"w{n}")) for n in range(RUNS)]
    worst = sorted(float(house.end(run).out) for run in runs)
    row(
        f"{RUNS} runs at once, each 50 writes: the slowest of all",
        kit.ms(worst[-1]),
        kit.ms(worst[len(worst) // 2]) + " (median run)",
        worst[-1] / worst[len(worst) // 2],
    )
