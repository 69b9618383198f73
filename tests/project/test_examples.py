"""The examples, as they are, with a program in the place of the models."""

from __future__ import annotations

import json
import sys

import pytest
from fence_kit import NO_FENCE
from git_kit import git
from paths import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(NO_FENCE), reason=f"there is no fence here: {NO_FENCE}"),
]
EXAMPLES = ROOT / "examples"
STAND_IN = """\
import os, pathlib, subprocess, sys
prompt = sys.stdin.read()
print(prompt)
if os.environ["AIPASS_AGENT"] == "writer":
    changes = pathlib.Path("CHANGELOG.md")
    changes.write_text("## new\\n" + changes.read_text())
    title = prompt.split('-m "')[1].split('"')[0]
    sys.exit(subprocess.call([sys.executable, "-m", "aipass", "pr", "open", "-m", title]))
"""


@pytest.fixture
def example(repository):
    def build(name):
        text = (EXAMPLES / name / "aipass.toml").read_text()
        model = f'driver = "command"\ncommand = ["{sys.executable}", ".stand-in.py"]'
        repository.write("aipass.toml", text.replace('driver = "claude"', model))
        repository.write(".stand-in.py", STAND_IN)
        repository.write("CHANGELOG.md", "## old\n")
        repository.write("src/x.py", "1\n")
        repository.write("Makefile", "test:\n\t! grep -q broken src/x.py\n")
        repository.aipass("init")
        git(repository.root, "checkout", "-q", "-b", "main", check=False)
        git(repository.root, "add", "-A")
        git(repository.root, "commit", "-qm", "first")
        repository.aipass("up", "--detach")
        return repository

    return build


def commit(repository, text, subject):
    repository.write("src/x.py", text)
    git(repository.root, "commit", "-qam", subject)


def test_every_commit_is_reviewed(example):
    repository = example("review-commits")
    commit(repository, "2\n", "Change x")
    said = repository.answer("reviewer/review.*.md").read_text()
    assert "Change x, by Tess Ter" in said
    assert git(repository.root, "rev-parse", "HEAD").strip() in said


def test_what_is_pushed_is_tested_and_a_failure_looked_into(example, tmp_path):
    repository = example("test-on-push")
    git(tmp_path, "init", "-q", "--bare", "remote.git")
    git(repository.root, "remote", "add", "origin", str(tmp_path / "remote.git"))
    git(repository.root, "push", "-q", "origin", "main")
    assert '"succeeded"' in repository.answer("tester/test.*.json").read_text()
    commit(repository, "broken\n", "Break x")
    git(repository.root, "push", "-q", "origin", "main")
    assert "Dispatch 2 says how" in repository.answer("finder/find.*.md").read_text()


def test_a_tag_has_its_notes_written_and_handed_in(example):
    repository = example("release-notes")
    git(repository.root, "tag", "v1.2.0")
    repository.answer("writer/notes.*.md")
    (pr,) = json.loads(repository.aipass("pr", "list", "--json").stdout)
    assert (pr["title"], pr["paths"]) == ("Release notes of v1.2.0", ["CHANGELOG.md"])


def test_two_agents_talk_and_a_person_answers(repository):
    folder = EXAMPLES / "talk"
    for path in folder.iterdir():
        repository.write(path.name, path.read_text())
    repository.aipass("init")
    repository.aipass("up", "--detach")
    repository.aipass("send", "lead", "Build the store")
    repository.wait_for(
        lambda: json.loads(repository.aipass("status", "--json").stdout)["counts"]["blocked"], "the question"
    )
    assert "Postgres or SQLite?" in repository.aipass("questions").stdout
    assert "dispatch 1 of lead goes on" in repository.aipass("answer", "1", "Postgres").stdout
    woken = repository.answer("lead/woken-2.*.md").read_text()
    assert woken == "The store is built:\n> store/kind says Postgres\n"
    assert "the store is kept in Postgres" in repository.aipass("trinity", "show", "lead").stdout
    assert (repository.root / "store/kind").read_text() == "Postgres\n"
