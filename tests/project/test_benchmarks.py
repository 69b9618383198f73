"""A small run of every benchmark: one that cannot run measures nothing, and hides what it was there to find."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from paths import TESTS

FILES = sorted(path.name for path in (TESTS / "benchmarks").glob("test_*.py"))


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("file", FILES)
def test_every_benchmark_runs_in_small(file, tmp_path):
    words = ["-q", f"benchmarks/{file}", "-m", "bench", "-p", "no:randomly", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, f"--basetemp={tmp_path / 't'}"],
        cwd=TESTS,
        env={**os.environ, "AIPASS_BENCH_SMALL": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "benchmarks (medians; peers of the same run)" in done.stdout
