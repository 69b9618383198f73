"""What the fence costs: per call, per job of a real tool, and with a hundred runs at once. The peer is the same without."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time

import pytest
from fence_kit import NO_FENCE, OTHER_USER, FenceHouse, no_other_user

from benchmarks import kit

pytestmark = [
    pytest.mark.bench,
    pytest.mark.skipif(bool(NO_FENCE), reason=f"there is no fence here: {NO_FENCE}"),
]

CALLS, ROUNDS, RUNS = 5000, 3, 100
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
JOBS = {
    "cp -r of 2,000 files": ("mkdir many; cd many; seq 2000 | xargs touch", "cp -r many copied", 2000),
    "python -m venv": ("true", "python3 -m venv --without-pip env", 0),
    "git clone of a local repository": (
        "git init -q src; cd src; seq 300 | xargs -I% sh -c 'echo % > f%'; git add .; git -c user.name=a -c user.email=a@b commit -qm x",
        "git clone -q src cloned",
        0,
    ),
    "tar x of 2,000 files": (
        "mkdir m; (cd m; seq 2000 | xargs touch); tar cf m.tar m; rm -r m",
        "tar xf m.tar",
        2000,
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


@pytest.mark.parametrize("job", JOBS)
def test_one_job_of_a_real_tool(house, row, job):
    if house.user is None:
        pytest.skip("once is enough")
    prepare, run, _ = JOBS[job]
    fenced, bare = [], []
    for number in range(ROUNDS):
        script = f"cd dir; mkdir r{number}; cd r{number}; ({prepare}) 2>&1; s=$(date +%s%N); {run} || exit 9; e=$(date +%s%N); echo took $((e-s))"
        done = house.sh("a", script)
        assert done.exit == 0, done.err
        fenced.append(int(done.out.split()[-1]) / 1e9)
        folder = house.base / f"bare{number}"
        folder.mkdir(exist_ok=True)
        subprocess.run(prepare, shell=True, cwd=folder, check=True, capture_output=True)
        began = time.perf_counter()
        subprocess.run(run, shell=True, cwd=folder, check=True, capture_output=True)
        bare.append(time.perf_counter() - began)
        shutil.rmtree(folder)
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
