"""An engine that idles, and one with a thousand agents at work."""

from __future__ import annotations

import os
import statistics
import time

import pytest

from benchmarks import kit

pytestmark = pytest.mark.bench

# Read here: the fixture that empties the environment takes it away before a test begins.
AGENTS = int(os.environ.get("AIPASS_BENCH_AGENTS", kit.size(1000, 20)))
EXTRA, IDLE_S = 5, kit.size(5, 1)


def test_idle(root, row):
    repo = root(kit.agent("w", ["true"]))
    repo.up()
    time.sleep(2)  # what a start leaves to be done
    engine, supervisor = kit.cpu_share([repo.engine(), repo.supervisor()], IDLE_S)
    total = engine + supervisor
    row(
        "idle, of one core: engine + supervisor",
        f"{total:.3f} % ({engine:.3f} + {supervisor:.3f})",
        goal="<= 0.2 %",
        met=total <= 0.2,
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_thousand_agents(root, stub, row):
    if not stub.compiled:
        row(f"{AGENTS:,} agents", "-", f"gcc: {kit.MISSING}")
        pytest.skip("gcc is not installed")
    names = [*(f"a{n}" for n in range(AGENTS)), *(f"late{n}" for n in range(EXTRA))]
    repo = root("".join(kit.agent(name, stub.command(name, stay=True)) for name in names) + kit.MANY_RUNS)
    repo.up()
    out = repo.stamps
    began = time.time()
    for n in range(AGENTS):
        (repo.layout.inbox / f"a{n}" / "go.md").write_text(f"Do {n}\n")
    kit.wait_for(lambda: len(kit.times(out)) >= AGENTS, "the start of all", timeout=100, pause=0.1)
    took = max(kit.times(out)) - began
    running = "SELECT count(*) FROM runs WHERE state = 'running'"
    kit.wait_for(lambda: repo.ask(running) == AGENTS, "all runs in the ledger", pause=0.1)
    assert len(kit.times(out)) == AGENTS
    time.sleep(2)
    pids = [repo.engine(), repo.supervisor()]
    engine, supervisor = (kit.pss_mb(pid) for pid in pids)
    idle = kit.cpu_share(pids, IDLE_S)
    drops = [
        kit.timed_drop(repo.layout.inbox / f"late{n}", "go.md", out / f"late{n}", 1) for n in range(EXTRA)
    ]
    assert repo.ask("SELECT count(*) FROM dispatches") == AGENTS + EXTRA
    stopping = time.perf_counter()
    repo.aipass("down", "--kill")
    said = time.perf_counter() - stopping
    kit.wait_for(lambda: not any(map(kit.command_line, pids)), "the end of all", timeout=100, pause=0.1)
    stopped = time.perf_counter() - stopping
    row(f"{AGENTS:,} agents: first file -> all run", f"{took:.1f} s ({AGENTS / took:.0f}/s)")
    total = engine + supervisor
    row(
        f"{AGENTS:,} agents: PSS of engine + supervisor",
        f"{total:.0f} MB ({engine:.0f} + {supervisor:.0f})",
        goal="<= 200 MB",
        met=total <= 200,
    )
    row(
        f"{AGENTS:,} agents: idle, of one core",
        f"{sum(idle):.2f} % ({idle[0]:.2f} + {idle[1]:.2f})",
        goal="<= 2 %",
        met=sum(idle) <= 2,
    )
    row(
        f"{AGENTS:,} agents: file closed -> one more, p50 of {EXTRA}",
        f"{kit.ms(statistics.median(drops))} (max {kit.ms(max(drops))})",
    )
    row(f"{AGENTS:,} agents: down --kill -> all gone", f"{stopped:.1f} s (it returned after {said:.1f} s)")
