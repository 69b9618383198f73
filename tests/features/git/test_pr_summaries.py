"""Open PRs in short: as in the whole records, whatever lies there, and without the library that validates them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from aipass.features.git.pr_records import Pr, PrRecords
from aipass.features.git.pr_summaries import FOLDER, summaries


def pr(number, state="open", **more):
    words = {
        "id": number,
        "agent": f"a{number}",
        "ref": f"refs/heads/aipass/a{number}",
        "base": "1" * 40,
        "head": "2" * 40,
    }
    return Pr(**words, state=state, title=f"Work {number}", created="2026-01-01T00:00:00Z", **more)  # fmt: skip


def test_open_prs_are_those_of_the_records(tmp_path):
    assert summaries(tmp_path) == []
    records = PrRecords(tmp_path)
    for number, state in enumerate(("open", "merged", "open", "closed"), start=1):
        records.put(pr(number, state, new_field=[1]))
    folder = tmp_path / FOLDER
    for name, text in {
        "5.json": "{",
        "6.json": "[]",
        "7.json": json.dumps({"state": "open", "id": "7", "agent": "x", "title": "t"}),
        "8.json": json.dumps({"schema": 99, "state": "open", "id": 8, "agent": "x", "title": "t"}),
        "9.json": "[" * 100_000,
        "x.json": "{}",
    }.items():
        (folder / name).write_text(text)
    os.mkfifo(folder / "10.json")
    (folder / "11.json").symlink_to(folder / "1.json")
    found = summaries(tmp_path)
    assert found == [{"id": 1, "agent": "a1", "title": "Work 1"}, {"id": 3, "agent": "a3", "title": "Work 3"}]
    (folder / "10.json").unlink()
    (folder / "11.json").unlink()
    assert found == [{"id": one.id, "agent": one.agent, "title": one.title} for one in records.open()]


def test_status_starts_without_the_library_that_validates(tmp_path):
    """It takes longer to start than all else that `aipass status` does."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "aipass.toml").write_text(
        '[agents.w]\ndriver = "command"\ncommand = ["true"]\n[sandbox]\nwall = "off"\n'
    )
    PrRecords(tmp_path / ".git/aipass").put(pr(1))
    code = "import sys; from aipass.cli import main; code = main.run(['status', '--json']); print(code, 'pydantic' in sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stderr.split() == ["0", "False"]
    found = json.loads(done.stdout)
    assert found["layers"]["wall"] == "off"
    assert [one["id"] for one in found["prs"]] == [1]
