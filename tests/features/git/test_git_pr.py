"""PRs with a real engine, real agents and real git: made from inside the fence, merged by the orchestrator, through kill -9."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from fence_kit import NO_FENCE
from git_kit import git
from patience import PATIENCE, until
from repository import agent
from rounds import rounds

from aipass.features.git.lease import Lease

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(NO_FENCE), reason=f"there is no fence here: {NO_FENCE}"),
]
JOB = "import os, subprocess, sys\nsys.exit(subprocess.call(['sh', os.environ['AIPASS_AGENT'] + '.sh']))\n"
AIPASS = f"{sys.executable} -m aipass"


def read(repository, *words, check=0):
    return json.loads(repository.aipass(*words, "--json", check=check).stdout)


def events(repository, kind):
    said = repository.aipass("events", "--json", "--kind", kind).stdout
    return [json.loads(line) for line in said.splitlines()]


def build(repository, agents, more="", files=None):
    """A repository with one commit, and its engine. `agents`: name to script and settings."""
    repository.write("job.py", JOB)
    for name, (script, _) in agents.items():
        repository.write(f"{name}.sh", script.replace("aipass ", f"{AIPASS} "))
    tables = "".join(
        agent(name, "job.py", f"retries = 0\n{settings}") for name, (_, settings) in agents.items()
    )
    repository.write("aipass.toml", more + tables)
    for path, text in (files or {"src/one.py": "1\n", "docs/x": "x\n"}).items():
        repository.write(path, text)
    repository.aipass("init")
    git(repository.root, "checkout", "-q", "-b", "main", check=False)
    git(repository.root, "add", "-A")
    git(repository.root, "commit", "-qm", "first")
    repository.aipass("up", "--detach")
    return repository


def output(repository, dispatch):
    """What the last run of a dispatch said."""
    run = read(repository, "show", str(dispatch))["runs"][-1]["id"]
    folder = repository.root / f".aipass/runs/{run}"
    return (folder / "stdout.log").read_text() + (folder / "stderr.log").read_text()


def test_an_agent_opens_a_pr_and_only_the_orchestrator_merges_it(repository):
    build(
        repository,
        {
            "api": (
                """\
echo 11 > src/one.py; echo new > src/new.py
aipass pr open -m 'Add login' -m 'Why.'; echo open $?
aipass pr merge 1; echo merge $?
aipass pr close 1; echo close $?
aipass lock break --force; echo break $?
aipass git install; echo install $?
aipass pr open -m x --agent lead; echo other $?
aipass pr list
""",
                'owns = ["src/"]',
            ),
            "lead": ("aipass pr merge 1; echo merge $?\n", "owns = []"),
        },
        'orchestrator = "lead"\npr = { wake_author = true }\n',
    )
    head, index = git(repository.root, "rev-parse", "HEAD"), (repository.root / ".git/index").read_bytes()
    repository.aipass("send", "api", "go", "--wait")
    said = output(repository, 1)
    assert "PR 1 is opened: 2 paths, aipass/api/add-login\nopen 0\n" in said
    assert [f"{verb} 3" in said for verb in ("merge", "close", "break", "install", "other")] == [True] * 5
    assert git(repository.root, "rev-parse", "HEAD") == head
    assert (repository.root / ".git/index").read_bytes() == index
    (pr,) = read(repository, "pr", "list")
    assert {name: pr[name] for name in ("id", "agent", "ref", "state", "title", "dispatch", "branch")} == {
        "id": 1, "agent": "api", "ref": "refs/heads/aipass/api/add-login", "state": "open", "title": "Add login",
        "dispatch": 1, "branch": "main",
    }  # fmt: skip
    assert pr["base"] == head.strip()
    assert "Dispatch: 1" in git(repository.root, "log", "-1", "--format=%B", pr["head"])
    assert "+new" in repository.aipass("pr", "diff", "1").stdout
    assert "Why." in repository.aipass("pr", "show", "1").stdout
    repository.aipass("send", "lead", "go", "--wait")
    assert "merge 0" in output(repository, 2)
    assert read(repository, "pr", "list")[0]["state"] == "merged"
    assert git(repository.root, "status", "--porcelain") == ""
    # Its author hears of it.
    repository.wait_for(lambda: any(d["subject"] == "PR 1 is merged" for d in read(repository, "dispatches")))
    assert events(repository, "lease.taken")[0]["detail"]["holder"] == "run 1 of api"
    repository.wait_for(
        lambda: len(events(repository, "lease.taken")) == len(events(repository, "lease.released")),
        "the release of each lease",
    )
    assert events(repository, "pr.merged")[0]["detail"]["agent"] == "api"


def test_whatever_an_agent_tries_with_git_itself_is_refused_and_told(repository):
    tries = {
        "commit": "git add -A; git commit -qm x",
        "merge": "git merge -q side",
        "push": "git push -q origin HEAD:evil",
        "hook": "echo x > .git/hooks/post-commit",
        "config": "git config core.fsmonitor ./evil",
        "ref": "git update-ref refs/heads/evil HEAD",
        "raw ref": f"{sys.executable} -c \"open('.git/refs/heads/evil','w').write('x')\"",
        "index": "git rm -q --cached docs/x",
        "stash": "git stash -q",
        "record": "mkdir -p .git/aipass/prs; echo {} > .git/aipass/prs/9.json",
        "lease": "mkdir -p .git/aipass/lease; touch .git/aipass/lease/00000000000000000001",
        "reflog": "git reflog expire --expire=all --all",
        "worktree": "git worktree add -q .aipass/x",
        "gc": "git gc -q --prune=now",
    }
    script = "".join(f"({words}) && echo DONE {name}\n" for name, words in tries.items())
    build(repository, {"api": (f"echo 11 > src/one.py\n{script}true\n", 'owns = ["src/"]')})
    git(repository.root, "branch", "side")
    git(repository.root, "remote", "add", "origin", str(repository.root))

    def state():
        refs = git(repository.root, "for-each-ref")
        own = repository.root / ".git"
        kept = {path.name: path.read_bytes() for path in (own / "index", own / "config", own / "HEAD")}
        return refs, kept, sorted(os.listdir(own / "hooks")), git(repository.root, "reflog", "--all")

    before = state()
    repository.aipass("send", "api", "go", "--wait")
    assert "DONE" not in output(repository, 1), output(repository, 1)
    assert state() == before
    denied = {event["path"] for event in events(repository, "write.denied")}
    assert any(path.startswith(".git/") for path in denied)
    assert "aipass pr open" in events(repository, "write.denied")[0]["detail"]["reason"]


def test_a_phase_ends_with_a_pr_and_the_next_begins_when_it_is_open(repository):
    build(
        repository,
        {
            "db": ("echo model > app/model.py; echo junk > app/other.py\n", ""),
            "api": ("aipass pr list --json > app/seen.json; echo api > app/api.py\n", ""),
        },
        files={"app/keep": "", "person.txt": "p\n"},
    )
    repository.write("person.txt", "a person's\n")
    phases = [
        {
            "id": "model",
            "agent": "db",
            "owns": ["app/model.py", "app/other.py"],
            "delivers": ["app/model.py"],
            "pr": True,
        },
        {
            "id": "api",
            "agent": "api",
            "owns": ["app/api.py", "app/seen.json"],
            "delivers": ["app/api.py"],
            "after": ["model"],
            "pr": True,
        },
    ]
    whole = {
        "id": "0001",
        "title": "Login",
        "phases": [{"task": f"Do {p['id']}", "settle": "100ms", **p} for p in phases],
    }
    repository.write("plans/0001-login.json", json.dumps(whole))
    repository.aipass("plan", "start", "1")
    repository.wait_for(lambda: read(repository, "plan", "status", "1")["status"] == "done", "the plan's end")
    first, second = read(repository, "pr", "list")
    assert (first["title"], first["plan"], first["phase"]) == ("Login: model", "0001", "model")
    assert first["paths"] == ["app/model.py", "app/other.py"]
    assert second["paths"] == ["app/api.py", "app/seen.json"]
    assert [pr["state"] for pr in json.loads((repository.root / "app/seen.json").read_text())] == ["open"]
    said = git(repository.root, "log", "-1", "--format=%B", first["head"])
    assert "Plan: 0001\nPhase: model" in said
    assert repository.aipass("pr", "merge", "1", "2").stdout.count("is merged") == 2
    assert " M person.txt" in git(repository.root, "status", "--porcelain").split("\n")


def test_a_phase_whose_pr_is_refused_fails_and_says_why(repository):
    key = "ghp_" + "a1B2" * 9
    build(repository, {"db": (f"echo 'token = \"{key}\"' > app/model.py\n", "")}, files={"app/keep": ""})
    whole = {
        "id": "0001",
        "title": "Login",
        "phases": [
            {
                "id": "model",
                "agent": "db",
                "task": "t",
                "owns": ["app/"],
                "delivers": ["app/model.py"],
                "pr": True,
                "settle": "100ms",
            }
        ],
    }
    repository.write("plans/0001-login.json", json.dumps(whole))
    repository.aipass("plan", "start", "1")
    repository.wait_for(
        lambda: read(repository, "plan", "status", "1")["status"] == "failed", "the plan's end"
    )
    failed = events(repository, "phase.failed")[0]["detail"]["reason"]
    assert "app/model.py:1: GitHub Token" in failed
    assert key not in repository.aipass("events", "--json").stdout


def test_merges_that_fail_their_checks_are_found_by_halves_and_the_others_merged(repository):
    names = [f"a{n}" for n in range(6)]
    script = 'mkdir -p $AIPASS_AGENT; echo {0} > $AIPASS_AGENT/x; aipass pr open -m "Work of $AIPASS_AGENT"\n'
    agents = {
        name: (script.format("bad" if name == "a3" else "good"), f'owns = ["{name}/"]') for name in names
    }
    build(
        repository,
        agents,
        '[pr]\nchecks = ["echo x >> ../../../src/one.py; ! grep -rq bad a?", "test ! -e .git"]\n',
    )
    for name in names:
        repository.aipass("send", name, "go")
    repository.wait_for(lambda: len(read(repository, "pr", "list")) == 6, "six PRs")
    before = git(repository.root, "rev-parse", "HEAD")
    bad = next(pr["id"] for pr in read(repository, "pr", "list") if pr["agent"] == "a3")
    done = repository.aipass("pr", "merge", *(str(n) for n in range(1, 7)), check=1)
    assert done.stdout == ""
    assert done.stderr.count("is merged as") == 5
    assert (
        f"PR {bad} is not merged: its check `echo x >> ../../../src/one.py; ! grep -rq bad a?` failed (status 1); the output is in .aipass/merges/"
        in done.stderr
    )
    assert [pr["state"] for pr in read(repository, "pr", "list")].count("merged") == 5
    assert "(its merge failed)" in repository.aipass("pr", "list").stdout
    assert "not merged: its check `echo" in repository.aipass("pr", "show", str(bad)).stdout
    assert "being tested" not in repository.aipass("status").stdout
    good = next(pr["id"] for pr in read(repository, "pr", "list") if pr["agent"] == "a1")
    assert f"PR {good} is merged already, as" in repository.aipass("pr", "merge", str(good)).stdout
    assert len(events(repository, "pr.merged")) == 5
    assert git(repository.root, "rev-parse", "HEAD") != before
    assert git(repository.root, "status", "--porcelain").splitlines() == ["?? a3/"]
    assert (
        repository.root / "src/one.py"
    ).read_text() == "1\n"  # the check could write in its own folder only
    assert not list((repository.root / ".aipass/git").iterdir())


def test_a_merge_goes_on_after_the_engine_was_killed_while_its_checks_ran(repository):
    build(
        repository,
        {"api": ("echo 11 > src/one.py; aipass pr open -m one\n", 'owns = ["src/"]')},
        '[pr]\nchecks = ["until [ -e $AIPASS_ROOT/go ]; do sleep 0.1; done"]\n',
    )
    repository.aipass("send", "api", "go", "--wait")
    asking = subprocess.Popen(
        [sys.executable, "-m", "aipass", "pr", "merge", "1"],
        cwd=repository.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    repository.wait_for(lambda: list((repository.root / ".aipass").glob("merges/*/stdout.log")), "the check")
    for verb in (["status"], ["lock"], ["pr", "list"]):
        assert "PR 1 is being tested; .aipass/merges/" in repository.aipass(*verb).stdout
    os.kill(read(repository, "status")["engine"]["pid"], signal.SIGKILL)
    said = asking.communicate(timeout=PATIENCE)[0].decode()
    assert "the engine stopped" in said
    repository.aipass("up", "--detach")
    repository.write("go", "")
    repository.wait_for(lambda: read(repository, "pr", "list")[0]["state"] == "merged", "the merge")
    assert git(repository.root, "status", "--porcelain") == "?? go\n"
    repository.wait_for(lambda: not read(repository, "lock")["held"], "the end of the lease")


FORGE = """\
#!{python}
import json, os, sys
with open({log!r}, "a") as log:
    log.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
if sys.argv[2] == "merge" and os.path.exists({fail!r}):
    sys.exit("conflicts")
print("https://forge.invalid/1")
"""


@pytest.mark.parametrize("forge", ["gh", "glab"])
def test_register_forges_shows_and_merges_prs_through_the_cli_of_a_forge(
    repository, tmp_path, forge, monkeypatch
):
    # Its own record lies where the engine, and what it starts, may write.
    programs, log, fail = tmp_path / "bin", repository.root / ".git/forge.log", tmp_path / "fail"
    programs.mkdir()
    (programs / forge).write_text(FORGE.format(python=sys.executable, log=str(log), fail=str(fail)))
    (programs / forge).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    git(tmp_path, "init", "-q", "--bare", "remote.git")
    build(
        repository,
        {"api": ("echo 11 > src/one.py; aipass pr open -m one -m body\n", 'owns = ["src/"]')},
        f'[pr]\nforge = "{forge}"\n',
    )
    git(repository.root, "remote", "add", "origin", str(tmp_path / "remote.git"))
    # A remote on this machine is one of the places that an engine may write, if it is there when it starts.
    repository.aipass("down")
    repository.aipass("up", "--detach")
    repository.aipass("send", "api", "go", "--wait")
    (pr,) = read(repository, "pr", "list")
    assert pr["url"] == "https://forge.invalid/1"
    assert git(tmp_path / "remote.git", "rev-parse", pr["ref"]).strip() == pr["head"]
    fail.write_text("")
    assert "conflicts" in repository.aipass("pr", "merge", "1", check=1).stderr
    assert read(repository, "pr", "list")[0]["state"] == "open"
    fail.unlink()
    assert "on the forge" in repository.aipass("pr", "merge", "1").stdout
    assert read(repository, "pr", "list")[0]["state"] == "merged"
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    assert [call[2] for call in calls] == ["create", "merge", "merge"]
    assert "one" in calls[0]
    assert pr["head"] in calls[1]


def test_without_a_fence_a_pr_is_what_differs_of_what_the_agent_owns_and_a_person_merges(repository):
    build(
        repository,
        {
            "api": ("echo 11 > src/one.py; echo y > docs/x; aipass pr open -m one\n", 'owns = ["src/"]'),
            "lead": ("aipass pr merge 1; echo merge $?\n", "owns = []"),
        },
        'orchestrator = "lead"\n[sandbox]\nfence = "off"\nwall = "off"\n',
    )
    repository.aipass("send", "api", "go", "--wait")
    assert read(repository, "pr", "list")[0]["paths"] == ["src/one.py"]
    repository.aipass("send", "lead", "go", "--wait")
    assert "merge 3" in output(repository, 2)
    assert "a person must merge" in output(repository, 2)
    repository.aipass("pr", "merge", "1")


def test_a_person_opens_a_pr_of_what_a_dispatch_has_written_also_after_a_restart(repository):
    build(repository, {"api": ("echo 11 > src/one.py; echo n > src/n\n", 'owns = ["src/"]')})
    repository.aipass("send", "api", "go", "--wait")
    repository.aipass("down")
    repository.aipass("up", "--detach")
    repository.aipass("pr", "open", "-m", "x", check=2)
    repository.write("src/n", "a person's\n")
    refused = repository.aipass("pr", "open", "-m", "x", "--dispatch", "1", check=3).stderr
    assert "changed by another author since api wrote it: src/n;" in refused
    repository.aipass("pr", "open", "-m", "x", "--dispatch", "1", "src/one.py")
    assert read(repository, "pr", "list")[0]["paths"] == ["src/one.py"]
    repository.aipass("pr", "open", "-m", "y", "--agent", "api", "--include")
    assert read(repository, "pr", "list")[1]["paths"] == ["src/n"]


@pytest.mark.parametrize("run", ["lives", "ended"])
def test_a_request_that_a_killed_engine_left_is_carried_out_with_what_the_run_had_written(repository, run):
    asks = "aipass pr open -m one\n" if run == "lives" else ""
    build(repository, {"api": (f"echo 11 > src/one.py; echo n > src/n; {asks}", 'owns = ["src/"]')})
    lease = Lease(repository.root / ".git/aipass")
    with lease.hold("test", "nothing is made meanwhile"):
        repository.aipass("send", "api", "go")
        if run == "ended":
            # Sealing waits at the desk behind the PR that waits for the lease.
            repository.wait_for(lambda: (repository.root / "src/n").exists(), "the work")
            words = [sys.executable, "-m", "aipass", "pr", "open", "-m", "one", "--agent", "api"]
            asking = subprocess.Popen(words, cwd=repository.root, stderr=subprocess.DEVNULL)
            repository.wait_for(lambda: len(lease.tickets()) == 2, "the engine at the lease")
            repository.wait_for(lambda: read(repository, "status")["counts"]["succeeded"], "the end")
        repository.wait_for(lambda: len(lease.tickets()) == 2, "the engine at the lease")
        os.kill(read(repository, "status")["engine"]["pid"], signal.SIGKILL)
        if run == "ended":
            asking.kill()
            asking.wait()
            repository.write("src/n", "a person's\n")
        repository.aipass("up", "--detach")
        repository.wait_for(lambda: len(lease.tickets()) == 2, "the new engine at the lease")
    if run == "lives":
        repository.wait_for(lambda: read(repository, "pr", "list"), "the PR")
        assert read(repository, "pr", "list")[0]["paths"] == ["src/n", "src/one.py"]
    else:
        repository.wait_for(lambda: events(repository, "pr.failed"), "the answer")
        (failed,) = events(repository, "pr.failed")
        assert "changed by another author since api wrote it: src/n;" in failed["detail"]["reason"]
        repository.aipass("pr", "open", "-m", "one", "--agent", "api", "src/one.py")
        assert read(repository, "pr", "list")[0]["paths"] == ["src/one.py"]


def test_what_a_person_changed_after_a_run_ended_while_no_engine_ran_is_theirs(repository):
    build(
        repository,
        {"api": ("echo 11 > src/one.py; until [ -e go ]; do sleep 0.05; done\n", 'owns = ["src/"]')},
    )
    repository.aipass("send", "api", "go")
    repository.wait_for(lambda: (repository.root / "src/one.py").read_text() == "11\n", "the work")
    repository.aipass("down")
    repository.write("go", "")
    repository.wait_for(lambda: (repository.root / ".aipass/runs/1/exit").exists(), "the end")
    time.sleep(0.05)  # file times are as coarse as the kernel's tick
    repository.write("src/one.py", "a person's\n")
    repository.aipass("up", "--detach")
    repository.wait_for(lambda: read(repository, "status")["counts"]["succeeded"], "the end")
    refused = repository.aipass("pr", "open", "-m", "x", "--agent", "api", check=3).stderr
    assert "changed by another author since api wrote it: src/one.py;" in refused


def phased(repository, **phase):
    whole = {
        "id": "model", "agent": "db", "task": "t", "owns": ["app/"], "delivers": ["app/model.py"], "settle": "100ms", **phase,
    }  # fmt: skip
    repository.write("plans/0001-login.json", json.dumps({"id": "0001", "title": "Login", "phases": [whole]}))
    repository.aipass("plan", "start", "1")


def status(repository):
    return read(repository, "plan", "status", "1")


def test_no_pr_but_its_own_ends_a_phase(repository):
    """Neither its own agent nor another gets past a failed check by handing something in."""
    db = "echo x > app/model.py; until [ -e app/go ]; do sleep 0.05; done; aipass pr open -m Mine; sleep 1\n"
    eve = "aipass pr open -m Mine --agent eve --dispatch 1\n"
    build(repository, {"db": (db, ""), "eve": (eve, 'owns=["eve/"]')}, files={"app/keep": ""})
    phased(repository, checks=["false"])
    repository.wait_for(lambda: events(repository, "check.finished"), "the check")
    refused = repository.aipass("send", "eve", "go", "--wait", check=1).stdout
    assert "db's work, not eve's" in refused + (repository.root / ".aipass/runs/2/stderr.log").read_text()
    assert status(repository)["status"] == "running"
    repository.write("app/go", "")
    repository.wait_for(lambda: events(repository, "pr.opened"), "its own PR")
    repository.wait_for(lambda: status(repository)["status"] == "failed", "the end")


def test_the_pr_of_a_phase_holds_what_an_earlier_attempt_wrote(repository):
    script = "if [ -e app/other.py ]; then echo x > app/model.py; else echo o > app/other.py; exit 1; fi\n"
    build(repository, {"db": (script, "")}, files={"app/keep": ""})
    phased(repository, pr=True)
    repository.wait_for(lambda: status(repository)["status"] == "failed", "the first attempt")
    repository.aipass("plan", "resume", "1")
    repository.wait_for(lambda: status(repository)["status"] == "done", "the second")
    assert [pr["paths"] for pr in read(repository, "pr", "list")] == [["app/model.py", "app/other.py"]]


def test_who_wrote_last_owns_the_work_also_where_that_run_is_the_older(repository):
    build(
        repository,
        {
            "aa": ("until [ -e go ]; do sleep 0.05; done; echo aa > free/f\n", ""),
            "bb": ("echo bb > free/f\n", ""),
        },
        files={"free/keep": ""},
    )
    repository.aipass("send", "aa", "go")
    repository.wait_for(lambda: read(repository, "status")["counts"]["running"], "the older run")
    repository.aipass("send", "bb", "go", "--wait")
    (repository.root / "free/f").unlink()  # whoever holds it: a person makes way
    repository.write("go", "")
    repository.wait_for(lambda: read(repository, "status")["counts"]["succeeded"] == 2, "both")
    repository.aipass("down")
    repository.aipass("up", "--detach")
    assert "PR 1 is opened" in repository.aipass("pr", "open", "-m", "X", "--agent", "aa").stdout
    assert (
        "has written nothing" in repository.aipass("pr", "open", "-m", "Y", "--agent", "bb", check=1).stderr
    )


def test_an_index_lock_that_was_left_behind_silences_no_rule(repository):
    rule = '[[on]]\nname="r"\nevent="file.closed"\npaths=["src/**"]\ndispatch="rev"\ntask="t {path}"\n'
    build(repository, {"rev": ("echo hi\n", "")}, rule)
    repository.aipass("down")
    lock = repository.root / ".git/index.lock"
    lock.write_text("")
    os.utime(lock, (time.time() - 3600, time.time() - 3600))
    repository.aipass("up", "--detach")
    repository.write("src/new.py", "1\n")
    repository.wait_for(lambda: read(repository, "dispatches"), "the rule")


def test_git_in_a_check_does_not_take_another_repository_for_the_checkouts(repository):
    checks = "git rev-parse --show-toplevel 2>/dev/null || echo no repository"
    build(
        repository,
        {"api": ("echo 11 > src/one.py; aipass pr open -m one\n", 'owns = ["src/"]')},
        f'[pr]\nchecks = ["{checks}"]\n',
    )
    repository.aipass("send", "api", "go", "--wait")
    repository.aipass("pr", "merge", "1")
    (said,) = (repository.root / ".aipass/merges").glob("*/stdout.log")
    assert "no repository" in said.read_text().splitlines()[-1]


def test_closing_several_closes_those_that_are_open_and_says_of_the_others(repository):
    build(
        repository,
        {
            "api": (
                "for n in 1 2 3; do echo $n > src/$n; aipass pr open -m $n src/$n; done\n",
                'owns = ["src/"]',
            )
        },
    )
    repository.aipass("send", "api", "go", "--wait")
    repository.aipass("pr", "close", "2")
    said = repository.aipass("pr", "close", "1", "2", "3").stdout
    assert "PR 1 is closed;" in said
    assert "PR 2 is closed already" in said
    assert "PR 3 is closed;" in said
    assert {event["ref"] for event in events(repository, "pr.closed")} == {"1", "2", "3"}


def test_what_waits_for_the_lease_when_the_engine_stops_is_carried_out_by_the_next(repository):
    build(repository, {"api": ("echo 11 > src/one.py\n", 'owns = ["src/"]')})
    repository.aipass("send", "api", "go", "--wait")
    lease = Lease(repository.root / ".git/aipass")
    with lease.hold("test", "nothing is made meanwhile"):
        words = [sys.executable, "-m", "aipass", "pr", "open", "-m", "one", "--agent", "api"]
        asking = subprocess.Popen(
            words, cwd=repository.root, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        repository.wait_for(lambda: len(lease.tickets()) == 2, "the engine at the lease")
        repository.aipass("down")
        assert asking.wait(timeout=PATIENCE) == 4
    assert not events(repository, "pr.failed")
    repository.aipass("up", "--detach")
    repository.wait_for(lambda: read(repository, "pr", "list"), "the PR")


def test_requests_that_wait_together_are_merged_in_the_order_of_asking(repository):
    """Two are asked for one after the other, while a third is tested."""
    wait = "until [ -e go ]; do sleep 0.05; done"
    build(
        repository,
        {
            "api": ("echo 11 > src/one.py; aipass pr open -m one\n", 'owns = ["src/"]'),
            "web": ("echo w > w; aipass pr open -m w w\n", 'owns = ["w"]'),
            "db": ("echo d > d; aipass pr open -m d d\n", 'owns = ["d"]'),
        },
        f'[pr]\nchecks = ["cd $AIPASS_ROOT; {wait}"]\n',
    )
    for name in ("api", "web", "db"):
        repository.aipass("send", name, "go", "--wait")
    asking = []
    for number in (1, 3, 2):
        words = [sys.executable, "-m", "aipass", "pr", "merge", str(number)]
        asking.append(subprocess.Popen(words, cwd=repository.root, stdout=subprocess.DEVNULL))
        count = len(asking)
        repository.wait_for(
            lambda count=count: (
                len([e for e in events(repository, "request.received") if e["detail"].get("do") == "merge"])
                == count
            ),
            "the request",
        )
        if number == 1:
            repository.wait_for(
                lambda: list((repository.root / ".aipass").glob("merges/*/stdout.log")), "the check"
            )
    repository.write("go", "")
    assert [one.wait(timeout=PATIENCE) for one in asking] == [0, 0, 0]
    assert [event["ref"] for event in events(repository, "pr.merged")] == ["1", "3", "2"]


def test_without_an_engine_a_person_leaves_the_request_and_an_agents_verbs_say_so(repository):
    build(repository, {"api": ("echo 11 > src/one.py; aipass pr open -m one\n", 'owns = ["src/"]')})
    repository.aipass("send", "api", "go", "--wait")
    repository.aipass("down")
    asked = repository.aipass("pr", "merge", "1")
    assert asked.stdout.startswith("r-")
    assert "the engine is not running" in asked.stderr
    assert repository.aipass("pr", "merge", "9", check=1).stderr.startswith("error: there is no PR 9")
    repository.aipass("up", "--detach")
    repository.wait_for(lambda: read(repository, "pr", "list")[0]["state"] == "merged", "the merge")


def test_the_guard_keeps_back_what_a_running_phase_writes_and_the_message_names_whose_work_it_is(repository):
    build(
        repository,
        {
            "db": (
                "echo half > app/model.py; until [ -e go ]; do sleep 0.05; done; echo whole > app/model.py\n",
                "",
            ),
            "api": ("echo by api > src/one.py\n", 'owns = ["src/"]'),
        },
        files={"app/model.py": "old\n", "src/one.py": "1\n", "mine.txt": "m\n"},
    )
    repository.aipass("git", "install", "--guard", "--trailers")
    whole = {
        "id": "0001",
        "title": "Login",
        "phases": [{"id": "model", "agent": "db", "task": "t", "owns": ["app/"], "delivers": ["app/done"]}],
    }
    repository.aipass("send", "api", "go", "--wait")
    repository.write("plans/0001-login.json", json.dumps(whole))
    repository.aipass("plan", "start", "1")
    repository.wait_for(lambda: (repository.root / "app/model.py").read_text() == "half\n", "its first write")
    repository.write("mine.txt", "mine\n")

    def commit(*words):
        return subprocess.run(
            ["git", "commit", "-qm", "Work", *words],
            cwd=repository.root,
            capture_output=True,
            text=True,
            check=False,
        )

    refused = commit("-a")
    assert refused.returncode
    assert "app/model.py  (phase model of plan 0001, run 2 of db)" in refused.stderr
    assert "--no-verify" in refused.stderr
    assert commit("--", "mine.txt", "src/one.py").returncode == 0
    assert git(repository.root, "log", "-1", "--format=%B").strip() == "Work\n\nDispatch: 1"
    # What the person has changed since is theirs.
    repository.write("app/model.py", "a person's\n")
    repository.wait_for(
        lambda: (
            [e for e in events(repository, "file.closed") if e["path"] == "app/model.py"][-1]["by"] is None
        )
    )
    assert commit("-a").returncode == 0
    (repository.root / "go").write_text("")


# -- thirty at once --------------------------------------------------------------------------------------------------

MANY = rounds(8, 30)
WORK = """\
import os, subprocess, sys, time, pathlib
if "was merged" in sys.stdin.read():
    sys.exit()
me = pathlib.Path(os.environ["AIPASS_AGENT"])
(me / "base").write_text(f"changed by {me}\\n")
(me / "new dir").mkdir(exist_ok=True)
(me / "new dir/new").write_text(f"new by {me}\\n")
(me / "gone").unlink(missing_ok=True)
for _ in range(100):
    done = subprocess.run([sys.executable, "-m", "aipass", "pr", "open", "-m", f"Work of {me}"], capture_output=True, text=True)
    print(done.returncode, done.stdout, done.stderr, flush=True)
    if done.returncode == 0 or "already" in done.stderr:
        break
    time.sleep(0.2)
"""


def many(repository, number=MANY):
    names = [f"a{n:02}" for n in range(number)]
    repository.write("work.py", WORK)
    files = {"mine.txt": "".join(f"{n}\n" for n in range(50))}
    for name in names:
        files |= {f"{name}/base": "base\n", f"{name}/gone": "gone\n"}
    tables = "".join(agent(name, "work.py", f'retries = 5\nowns = ["/{name}/"]') for name in names)
    repository.write("aipass.toml", f"[limits]\nconcurrency = {number}\n{tables}")
    for path, text in files.items():
        repository.write(path, text)
    repository.aipass("init")
    git(repository.root, "checkout", "-q", "-b", "main", check=False)
    git(repository.root, "add", "-A")
    git(repository.root, "commit", "-qm", "first")
    repository.aipass("up", "--detach")
    return names


def check_all(repository, names, bases, *, killed=False):
    """Every PR has its own files only, on a commit that the branch once was.

    `killed`: an engine that was killed between a PR's ref and its record leaves the ref, and its number is never given again.
    """
    prs = read(repository, "pr", "list")
    assert sorted(pr["agent"] for pr in prs) == names
    numbers = sorted({pr["id"] for pr in prs})
    assert len(numbers) == len(names)
    assert killed or numbers == list(range(1, len(names) + 1))
    for pr in prs:
        mine = pr["agent"]
        assert pr["paths"] == [f"{mine}/base", f"{mine}/gone", f"{mine}/new dir/new"]
        changed = git(repository.root, "diff", "--name-status", "-z", pr["base"], pr["head"]).split("\0")[:-1]
        assert changed == ["M", f"{mine}/base", "D", f"{mine}/gone", "A", f"{mine}/new dir/new"]
        assert pr["base"] in bases
        assert git(repository.root, "rev-parse", f"{pr['head']}^").strip() == pr["base"]
        assert git(repository.root, "rev-parse", pr["ref"]).strip() == pr["head"]
        assert git(repository.root, "show", f"{pr['head']}:{mine}/base") == f"changed by {mine}\n"
    git(repository.root, "fsck", "--strict")
    left = [
        path
        for path in (repository.root / ".git").rglob("*")
        if path.name.endswith(".lock") or ".aipass" in path.name
    ]
    assert not left
    assert not read(repository, "lock")["held"]
    assert not os.listdir(repository.root / ".aipass/git")
    kept = git(repository.root, "for-each-ref", "--format=%(refname)", "refs/aipass/").split()
    mine = {f"refs/aipass/pr/{pr['id']}" for pr in prs}
    assert set(kept) >= mine if killed else set(kept) == mine


def wait_for_prs(repository, names):
    def done():
        states = read(repository, "status")["counts"]
        return states["running"] == states["queued"] == 0 and len(read(repository, "pr", "list")) == len(
            names
        )

    until(done, lambda: (read(repository, "status"), repository.trace()), 2 * PATIENCE)


def test_many_agents_open_prs_at_once_and_nothing_of_the_users_moves(repository):
    names = many(repository)
    own = repository.root / ".git"
    kept = {
        name: (own / name).read_bytes()
        for name in ("HEAD", "index", "config", "refs/heads/main", "logs/HEAD")
    }
    head = git(repository.root, "rev-parse", "HEAD").strip()
    for name in names:
        repository.aipass("send", name, "go")
    wait_for_prs(repository, names)
    check_all(repository, names, {head})
    assert {name: (own / name).read_bytes() for name in kept} == kept
    done = repository.aipass("pr", "merge", *map(str, range(1, MANY + 1)))
    assert done.stdout.count("is merged as") == MANY
    assert git(repository.root, "status", "--porcelain") == ""


class Person(threading.Thread):
    """Commits, stashes and rebases, all the time; every command must work."""

    def __init__(self, root):
        super().__init__(daemon=True)
        self.root, self.ending, self.failed, self.bases = root, threading.Event(), [], set()

    def git(self, *words):
        done = subprocess.run(["git", *words], cwd=self.root, capture_output=True, text=True, check=False)
        # An agent may have changed a file since it was looked: then git itself refuses a rebase.
        if done.returncode and "You have unstaged changes" not in done.stderr:
            self.failed.append((words, done.stderr))
        tip = subprocess.run(
            ["git", "rev-parse", "refs/heads/main"],
            cwd=self.root,
            capture_output=True,
            text=True,
            check=False,
        )
        self.bases.add(tip.stdout.strip())

    def run(self):
        number = 0
        self.git("status")
        while not self.ending.is_set():
            number += 1
            mine = self.root / "mine.txt"
            mine.write_text(f"{number}\n" + mine.read_text())
            self.git("commit", "-qm", f"mine {number}", "--", "mine.txt")
            mine.write_text("stashed\n" + mine.read_text())
            self.git("stash", "push", "-q", "--", "mine.txt")
            self.git("stash", "pop", "-q")
            self.git("checkout", "-q", "--", "mine.txt")
            if number % 3 == 0:
                self.rebase()

    def rebase(self):
        if self.is_clean():
            self.git("-c", "rebase.autoStash=false", "rebase", "-q", "--force-rebase", "HEAD~1")
        if (self.root / ".git/rebase-merge").exists():
            # An agent wrote in the middle of it, and git stopped there: the person leaves it, with all files as they are.
            self.git("rebase", "--quit")
            self.git("symbolic-ref", "HEAD", "refs/heads/main")
            self.git("checkout", "-q", "HEAD", "--", "mine.txt")

    def is_clean(self):
        said = subprocess.run(
            ["git", "status", "--porcelain", "-uno"],
            cwd=self.root,
            capture_output=True,
            text=True,
            check=False,
        )
        return not said.stdout


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("killing", [False, True])
def test_many_agents_while_a_person_works_and_the_engine_is_killed(repository, killing):
    names = many(repository)
    person = Person(repository.root)
    person.start()
    try:
        kills = work_and_kill(repository, names, killing)
    finally:
        person.ending.set()
        person.join()
    assert not person.failed
    check_all(repository, names, person.bases, killed=True)
    assert bool(kills) == killing
    done = repository.aipass("pr", "merge", *(str(pr["id"]) for pr in read(repository, "pr", "list")))
    assert done.stdout.count("is merged as") == MANY
    assert git(repository.root, "status", "--porcelain", "-uno") == ""


def work_and_kill(repository, names, killing):
    """Have all of them open PRs; meanwhile the engine is killed, up to six times. Returns how often."""
    dice = random.Random(30)
    for name in names:
        repository.aipass("send", name, "go")
    kills = 0
    deadline = time.monotonic() + 60
    while killing and kills < rounds(3, 6) and time.monotonic() < deadline:
        time.sleep(dice.uniform(0.1, 1.2))
        found = read(repository, "status")["engine"]
        if found["pid"]:
            os.kill(found["pid"], signal.SIGKILL)
            kills += 1
        repository.aipass("up", "--detach")
    wait_for_prs(repository, names)
    return kills
