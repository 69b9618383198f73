"""What git costs with aipass: a commit with its hooks, and a PR beside the usual way, a worktree and a commit there."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time

import pytest
from git_kit import GitBench

from aipass.git import hooks
from benchmarks import kit

pytestmark = pytest.mark.bench

COMMITS, ROUNDS = kit.size(60, 4), kit.size(5, 1)


def test_a_commit_with_and_without_hooks(row, tmp_path):
    bench = GitBench(tmp_path / "r")
    took: dict[str, list[float]] = {"without": [], "with": []}
    for number in range(COMMITS):
        for name, values in took.items():
            if name == "with":
                hooks.install(bench.root, bench.root / ".aipass/spool")
            else:
                hooks.uninstall(bench.root)
            bench.write("a.txt", f"{name} {number}\n")
            began = time.perf_counter()
            bench.git("commit", "-qam", "x")
            values.append(time.perf_counter() - began)
    without, with_them = (statistics.median(took[name]) for name in ("without", "with"))
    row(
        "git commit with hooks, over none",
        f"{kit.ms(with_them)} (+{kit.ms(with_them - without)})",
        kit.ms(without),
        with_them / without,
        "<= 5 ms over none",
        met=with_them - without <= 0.005,
    )


@pytest.mark.parametrize("number", [4000] if kit.SMALL else [10_000, 100_000])
def test_a_pr_beside_a_worktree_and_a_commit_there(row, tmp_path, number):
    files = {f"d{n // 1000}/e{n // 100 % 10}/f{n}": f"{n}\n" for n in range(number)}
    bench = GitBench(tmp_path / "r", files)
    ours, theirs = [], []
    for turn in range(ROUNDS):
        path = f"d3/e4/f{3400 + turn}"
        bench.write(path, f"changed {turn}\n")
        began = time.perf_counter()
        made = bench.open("api", [path], f"Change {turn}")
        ours.append(time.perf_counter() - began)
        assert made.pr.paths == (path,)
        tree = tmp_path / f"wt{turn}"
        began = time.perf_counter()
        bench.git("worktree", "add", "-q", "-b", f"wt{turn}", str(tree))
        shutil.copyfile(bench.top / path, tree / path)
        subprocess.run(["git", "commit", "-qam", "x"], cwd=tree, check=True)
        theirs.append(time.perf_counter() - began)
        bench.git("worktree", "remove", "--force", str(tree))
    bench.git("checkout", "-q", "--", ".")
    merged = []
    for pr in bench.records.open():
        began = time.perf_counter()
        assert not bench.merge(pr.id).refused
        merged.append(time.perf_counter() - began)
    mine, peer = statistics.median(ours), statistics.median(theirs)
    row(
        f"pr open, {number:,} files (peer: git worktree add + commit)",
        kit.ms(mine),
        kit.ms(peer),
        mine / peer,
    )
    row(f"pr merge, {number:,} files, without checks", kit.ms(statistics.median(merged)))
