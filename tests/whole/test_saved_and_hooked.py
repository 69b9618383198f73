"""What was found by using files, git and hooks as people and their tools do: half a drop, a hidden edit, a hook that asks for its name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
from patience import PATIENCE, until
from repository import Repository, agent
from rounds import NIGHTLY, few

from aipass.errors import ConfigError
from aipass.git import hooks
from aipass.ledger import Ledger
from aipass.supervisor import held

linux = pytest.mark.skipif(sys.platform != "linux", reason="it is about Linux")
SAYS = "import sys; print(repr(sys.stdin.read()))"


def rule(paths):
    return f'[[on]]\nname = "r"\nevent = "file.closed"\npaths = ["{paths}"]\ndispatch = "w"\ntask = "{{path}}"\nper_hour = 1000\n'


def closed(repository, path):
    return [
        line
        for line in repository.aipass("events", "--kind", "file.closed").stdout.splitlines()
        if f"  {path}" in line
    ]


@pytest.fixture
def saving(repository):
    repository.write("aipass.toml", agent("w", "w.py") + rule("src/*"))
    repository.write("w.py", SAYS)
    repository.write("src/a.py", "before\n")
    repository.aipass("up", "--detach")
    return repository


@linux
@pytest.mark.parametrize("how", ["touched meanwhile", "touched first", "two writers"])
def test_no_drop_is_taken_while_anybody_writes_it(repository, how):
    repository.write("aipass.toml", agent("w", "w.py"))
    repository.write("w.py", SAYS)
    repository.aipass("up", "--detach")
    place = repository.root / "inbox/w/x.md"
    if how == "touched first":
        place.touch()
    with place.open("a") as writer:
        writer.write("first half ")
        writer.flush()
        if how == "touched meanwhile":
            subprocess.run(["touch", str(place)], check=True)
        if how == "two writers":
            with place.open("a") as other:
                other.write("of another ")
        time.sleep(0.7)
        assert not list(repository.root.glob("outbox/w/*.md"))
        writer.write("second half")
    said = repository.answer("w/x.*.md").read_text()
    assert "first half" in said
    assert "second half" in said
    assert len(list(repository.root.glob("outbox/w/*.md"))) == 1


def same_size(path, text, how):
    old = path.stat()
    match how:
        case "cp -p":
            new = path.with_name("new")
            new.write_text(text)
            os.utime(new, (1_600_000_000, 1_600_000_000))
            subprocess.run(["cp", "-p", str(new), str(path)], check=True)
        case "mode before the close":
            with path.open("r+") as file:
                file.write(text)
                file.flush()
                os.fchmod(file.fileno(), 0o640)
        case "time put back":
            with path.open("r+") as file:
                file.write(text)
            os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
        case "time put back before the close":
            with path.open("r+") as file:
                file.write(text)
                file.flush()
                os.utime(file.fileno(), ns=(old.st_atime_ns, old.st_mtime_ns))


@linux
@pytest.mark.parametrize(
    "how", few(["cp -p", "mode before the close", "time put back", "time put back before the close"], 3)
)
def test_an_edit_that_keeps_size_or_time_is_told_once(saving, how):
    same_size(saving.root / "src/a.py", "after.\n", how)
    saving.wait_for(lambda: closed(saving, "src/a.py"), "the event")
    time.sleep(0.5)
    assert len(closed(saving, "src/a.py")) == 1
    (saving.root / "src/a.py").chmod(0o600)
    os.utime(saving.root / "src/a.py")
    time.sleep(0.5)
    assert len(closed(saving, "src/a.py")) == 1, "a mode and a time are no save"


def test_what_is_saved_when_up_has_returned_is_news(repository):
    repository.write("aipass.toml", agent("w", "w.py") + rule("src/*"))
    repository.write("w.py", SAYS)
    for number in range(300):
        repository.write(f"d{number}/x", "x")
    repository.write("src/a.py", "1")
    repository.aipass("up", "--detach")
    repository.write("src/a.py", "22")
    repository.answer("w/r.*.md")


def test_a_file_that_is_removed_made_and_removed_again_is_gone(saving):
    place = saving.root / "src/a.py"
    for _ in range(5):
        place.unlink()
        place.write_text("x")
    place.unlink()
    saving.wait_for(lambda: "src/a.py" in saving.aipass("events", "--kind", "file.deleted").stdout, "its end")


@linux
def test_who_saves_by_renaming_over_what_a_run_has_open_is_its_author(repository):
    repository.write(
        "aipass.toml", agent("w", "w.py") + agent("v", "v.py") + rule("src/*").replace('"w"', '"v"')
    )
    repository.write("v.py", "")
    repository.write(
        "w.py",
        "import os, time\nos.makedirs('src', exist_ok=True)\nf = open('src/a.py', 'w'); f.write('mine'); f.flush(); print('made', flush=True)\nfor _ in range(300):\n    if os.path.exists('go'): break\n    time.sleep(.05)\n",
    )
    repository.aipass("up", "--detach")
    repository.aipass("send", "w", "go")
    repository.wait_for(
        lambda: "src/a.py" in repository.aipass("events", "--kind", "file.created").stdout, "its file"
    )
    repository.write("src/.new", "a person's")
    (repository.root / "src/.new").rename(repository.root / "src/a.py")
    line = repository.wait_for(lambda: closed(repository, "src/a.py"), "the save")[0]
    assert line.split()[3] == "-", line
    repository.write("go", "")


def test_a_copy_with_hard_links_has_a_ledger_of_its_own(repository, tmp_path):
    repository.write("aipass.toml", agent("w", "w.py"))
    repository.write("w.py", SAYS)
    repository.aipass("up", "--detach")
    repository.aipass("send", "w", "before", "--wait")
    there = type(repository)(tmp_path / "copy")
    subprocess.run(["cp", "-al", str(repository.root), str(there.root)], check=True)
    assert (there.root / ".aipass/ledger.db").stat().st_nlink == 2
    there.aipass("up", "--detach")
    try:
        assert (there.root / ".aipass/ledger.db").stat().st_nlink == 1
        for one in (there, repository, there, repository):
            assert one.aipass("send", "w", "after", "--wait").stdout == "'after'\n"
        assert len(there.aipass("dispatches").stdout.splitlines()) == len(
            repository.aipass("dispatches").stdout.splitlines()
        )
    finally:
        there.aipass("down", "--kill")
    for one in (there, repository):
        Ledger.read(one.root / ".aipass/ledger.db").close()
    shutil.rmtree(there.root)


# -- hooks --------------------------------------------------------------------------------------------------------------


def git(root, *words, check=True, env=None):
    return subprocess.run(
        ["git", *words],
        cwd=root,
        check=check,
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
    )


@pytest.mark.parametrize(
    "first",
    few(
        [
            "#!/bin/sh",
            "#! /bin/sh",
            "#!/bin/sh -e",
            "#!/bin/bash",
            "#!/usr/bin/env bash",
            "#!/usr/bin/bash -eu",
        ],
        3,
    ),
)
@pytest.mark.parametrize("name", ["post-commit", "pre-push", "pre-commit"] if NIGHTLY else ["pre-push"])
def test_a_hook_of_before_has_its_name_its_files_and_its_words(repository, first, name):
    if "bash" in first and shutil.which("bash") is None:
        pytest.skip("no bash")
    root = repository.root
    repository.write("aipass.toml", agent("w", "w.py"))
    repository.write(".git/hooks/lib.sh", "said=lib\n")
    hook = repository.write(
        f".git/hooks/{name}",
        f'{first}\n. "$(dirname "$0")/lib.sh"\necho "$(basename "$0") $said $# ${{name-}} ${{first-}} $(cat | wc -l)" >> {root}/told\n',
    )
    hook.chmod(0o755)
    repository.aipass("init")
    repository.aipass("git", "install", "--guard")
    git(root, "init", "-q", "--bare", str(root / "remote"))
    git(root, "remote", "add", "here", str(root / "remote"))
    env = {"name": "mine", "first": "too"}
    git(root, "commit", "-q", "--allow-empty", "-m", "x", env=env)
    git(root, "push", "-q", "here", "HEAD", env=env)
    words, lines = (2, 1) if name == "pre-push" else (0, 0)
    assert (root / "told").read_text() == f"{name} lib {words} mine too {lines}\n"
    hook.write_text(hook.read_text() + "exit 7\n")
    if name != "post-commit":
        failed = git(
            root,
            *(
                ("push", "here", "HEAD~0:refs/heads/other")
                if name == "pre-push"
                else ("commit", "--allow-empty", "-m", "y")
            ),
            check=False,
        )
        assert failed.returncode != 0


@pytest.mark.parametrize("how", few(["empty", "comments", "scissors", "template"], 2))
def test_a_commit_that_was_given_up_stays_given_up(repository, how):
    root = repository.root
    repository.write("aipass.toml", agent("w", "w.py"))
    repository.write("w.py", "open('made', 'w').write('x')")
    repository.aipass("init")
    repository.aipass("up", "--detach")
    repository.aipass("send", "w", "go", "--wait")
    repository.aipass("git", "install", "--trailers")
    git(root, "add", "made")
    if how == "template":
        repository.write("template", "Why:\n")
        git(root, "config", "commit.template", str(root / "template"))
    else:
        git(root, "config", "commit.verbose", "true" if how == "scissors" else "false")
    editor = "true" if how in {"comments", "template", "scissors"} else "truncate -s 0"
    done = git(root, "commit", check=False, env={"GIT_EDITOR": editor})
    assert done.returncode != 0, done.stdout
    git(root, "commit", "-m", "meant")
    assert "Dispatch: 1" in git(root, "log", "-1", "--format=%B").stdout


def test_a_hooks_path_that_is_no_folder_is_told(repository):
    repository.write("aipass.toml", agent("w", "w.py"))
    git(repository.root, "config", "core.hooksPath", "/dev/null")
    for verb in ("install", "uninstall"):
        done = repository.aipass("git", verb, check=None)
        assert "bug" not in done.stderr
        assert done.returncode in {0, 2}
    assert "is not a folder" in repository.aipass("git", "install", check=2).stderr
    git(repository.root, "config", "core.hooksPath", "")
    with pytest.raises(ConfigError, match=r"core\.hooksPath` is empty"):
        hooks.folder(repository.root)


def test_a_folder_in_a_hooks_place_and_a_pipe_as_the_list_are_left_alone(repository):
    root = repository.root
    repository.write("aipass.toml", agent("w", "w.py"))
    (root / ".git/hooks/post-commit").mkdir(parents=True)
    repository.aipass("init")
    assert "a folder has this name" in repository.aipass("git", "install").stdout
    git(root, "commit", "-q", "--allow-empty", "-m", "x")
    repository.aipass("git", "uninstall")
    assert (root / ".git/hooks/post-commit").is_dir()
    shared = root.parent / "shared"
    shared.mkdir()
    git(root, "config", "core.hooksPath", str(shared))
    repository.aipass("git", "install")
    (shared / hooks.SHARED_ROOTS).unlink()
    os.mkfifo(shared / hooks.SHARED_ROOTS)
    done = threading.Thread(target=lambda: git(root, "commit", "-q", "--allow-empty", "-m", "y"), daemon=True)
    done.start()
    done.join(PATIENCE)
    assert not done.is_alive()
    assert list(hooks._roots(shared / hooks.SHARED_ROOTS)) == []


def test_hooks_of_a_copy_are_taken_away_there(repository, tmp_path):
    repository.write("aipass.toml", agent("w", "w.py"))
    repository.aipass("init")
    repository.aipass("git", "install")
    there = type(repository)(tmp_path / "copy")
    shutil.copytree(repository.root, there.root)
    there.aipass("git", "uninstall")
    assert not (there.root / ".git/hooks/post-commit").exists()
    assert (repository.root / ".git/hooks/post-commit").exists()
    held.remove_at(there.root)


def on_commits(repository):
    """An engine that starts an agent on each commit."""
    rule = '[[on]]\nname = "r"\nevent = "git.commit"\ndispatch = "w"\ntask = "{subject}"\n'
    repository.write("aipass.toml", agent("w", "w.py") + rule)
    repository.write("w.py", SAYS)
    repository.aipass("up", "--detach")


@pytest.mark.parametrize("before", ["none", "another"])
@pytest.mark.slow
def test_a_repository_that_comes_under_a_living_engine_tells_its_commits(tmp_path, own_home, before):
    root = tmp_path / "tree"
    root.mkdir()
    repository = Repository(root)
    if before == "another":
        git(root, "init", "-q", "-b", "main")
        git(root, "commit", "-qm", "long ago", "--allow-empty")
    on_commits(repository)
    try:
        if before == "another":
            (root / ".git").rename(tmp_path / "away")
        git(root, "init", "-q", "-b", "main")
        git(root, "commit", "-qm", "of the new one", "--allow-empty")
        repository.answer("w/*.md")
        said = repository.aipass("events", "--kind", "git.commit", "--json").stdout
        assert "of the new one" in said
        assert "long ago" not in said
    finally:
        repository.aipass("down", "--kill")


@pytest.mark.parametrize("way", ["checkout", "save"])
def test_what_git_did_while_no_engine_ran_starts_nobody_and_a_save_does(saving, way):
    root = saving.root
    git(root, "add", "src")
    git(root, "commit", "-qm", "one")
    git(root, "checkout", "-q", "-b", "side")
    saving.write("src/a.py", "side\n")
    git(root, "commit", "-qam", "two")
    git(root, "checkout", "-q", "-")
    saving.aipass("down")
    saving.aipass("up", "--until-idle")
    told = len(closed(saving, "src/a.py"))
    before = saving.aipass("status", "--json").stdout
    if way == "checkout":
        git(root, "checkout", "-q", "side")
    else:
        saving.write("src/a.py", "mine\n")
    saving.aipass("up", "--until-idle")
    assert len(closed(saving, "src/a.py")) == told + 1
    counts = [
        json.loads(one)["counts"]["succeeded"] for one in (before, saving.aipass("status", "--json").stdout)
    ]
    assert counts[1] - counts[0] == (way == "save")


def test_a_repository_that_is_replaced_keeps_our_folders_out_of_commits(saving):
    shutil.rmtree(saving.root / ".git")
    git(saving.root, "init", "-q")
    excluded = saving.root / ".git/info/exclude"
    until(lambda: excluded.exists() and "/.aipass/" in excluded.read_text())
    git(saving.root, "add", "-A")
    assert ".aipass" not in git(saving.root, "ls-files").stdout


@pytest.mark.parametrize("way", ["made anew", "put in its place"])
@pytest.mark.slow
def test_a_root_deeper_in_a_repository_sees_what_comes_in_the_place_of_its_git(tmp_path, own_home, way):
    top = tmp_path / "top"
    (top / "deep").mkdir(parents=True)
    git(top, "init", "-q", "-b", "main")
    git(top, "commit", "-qm", "long ago", "--allow-empty")
    shutil.copytree(top / ".git", tmp_path / "other")
    repository = Repository(top / "deep")
    on_commits(repository)
    try:
        if way == "made anew":
            shutil.rmtree(top / ".git")
            git(top, "init", "-q", "-b", "main")
        else:
            (top / ".git").rename(tmp_path / "away")
            (tmp_path / "other").rename(top / ".git")
        for number in range(3):
            git(top, "commit", "-qm", f"commit {number}", "--allow-empty")
            repository.wait_for(
                lambda number=number: f"commit {number}" in repository.aipass("events", "--json").stdout
            )
    finally:
        repository.aipass("down", "--kill")


def test_a_save_beside_a_new_gitignore_is_told(saving):
    for number in range(5):
        names = [f"src/n{number}.py", ".gitignore"]
        for name in names if number % 2 else reversed(names):
            with (saving.root / name).open("a") as out:
                out.write(f"x{number}\n")
    (saving.root / "made").mkdir()
    saving.write("made/.gitignore", "*.o\n")
    saving.write("made/a.py", "new\n")
    for path in (*(f"src/n{number}.py" for number in range(5)), "made/a.py"):
        until(lambda path=path: closed(saving, path), path)


@pytest.mark.parametrize("below", ["", "deep/er"])
def test_hooks_can_be_taken_away_when_the_configuration_is_gone_already(repository, below):
    (repository.root / below).mkdir(parents=True, exist_ok=True)
    before = sorted(os.listdir(repository.root / ".git/hooks"))
    repository.aipass("init")
    repository.aipass("git", "install")
    (repository.root / "aipass.toml").unlink()
    there = Repository(repository.root / below)
    assert "installed" in there.aipass("git", "status").stdout
    done = there.aipass("git", "uninstall")
    assert "other roots" not in done.stdout
    assert sorted(os.listdir(repository.root / ".git/hooks")) == before


def test_where_there_is_no_repository_the_configuration_is_asked_for(tmp_path):
    done = Repository(tmp_path).aipass("git", "uninstall", check=2)
    assert "no aipass.toml" in done.stderr
