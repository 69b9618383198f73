"""What git did becomes events, each once: by hooks, by other clients, and while no engine ran."""

import json
import os

import pytest

from aipass.event import Fact
from aipass.git.ref_changes import HEAD, REBASED, About, GitSeen, ReflogEntry, RefTracker
from aipass.ledger import Ledger

ZERO = "0" * 40


def sha(number):
    return f"{number:040x}"


def entry(old, new, message, time=None):
    return ReflogEntry(sha(old), sha(new), float(time if time is not None else new), message)


@pytest.fixture
def news(tmp_path):
    ledger = Ledger.open(tmp_path / "l.db")

    def settle(logs, **more):
        with ledger.transaction():
            return RefTracker(ledger).settle(
                GitSeen({ref: tuple(entries) for ref, entries in logs.items()}, **more)
            )

    settle.ledger = ledger
    yield settle
    ledger.close()


MAIN = "refs/heads/main"


def kinds(facts):
    return [(fact.kind, fact.detail["branch"], fact.detail["sha"][-1]) for fact in facts]


def test_what_was_there_at_first_is_no_news_and_what_comes_is_told_once(news):
    log = [entry(0, 1, "commit (initial): a")]
    assert news({MAIN: log, HEAD: log}, tags={"refs/tags/v1": sha(1)}) == []
    log = [*log, entry(1, 2, "commit: b"), entry(2, 3, "commit (amend): b")]
    found = news({MAIN: log, HEAD: log})
    assert kinds(found) == [("git.commit", "main", "2"), ("git.commit", "main", "3")]
    assert [fact.detail["amend"] for fact in found] == [False, True]
    assert news({MAIN: log, HEAD: log}) == []


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("commit: x", "git.commit"),
        ("commit (merge): x", "git.commit"),
        ("cherry-pick: x", "git.commit"),
        ("revert: Revert x", "git.commit"),
        ("am: x", "git.commit"),
        ("merge other: Fast-forward", "git.merge"),
        ("pull --rebase: Fast-forward", "git.merge"),
        ("rebase (finish): refs/heads/main onto 1", "git.ref"),
        ("reset: moving to HEAD~1", "git.ref"),
        ("branch: Created from main", "git.ref"),
        ("commitment to nothing", "git.ref"),
        ("", "git.ref"),
    ],
)
def test_what_an_entry_means_follows_from_its_message(news, message, kind):
    news({MAIN: [entry(0, 1, "commit (initial): a")]})
    found = news({MAIN: [entry(0, 1, "commit (initial): a"), entry(1, 2, message)]})
    assert [fact.kind for fact in found] == [kind]


def test_a_rebase_of_many_is_one_event(news):
    news({MAIN: [entry(0, 1, "commit (initial): a")]})
    picks = [entry(n, n + 1, "rebase (pick): x") for n in range(2, 500)]
    finish = entry(1, 500, "rebase (finish): refs/heads/main onto 2")
    found = news({MAIN: [entry(0, 1, "commit (initial): a"), finish], HEAD: picks}, detached=frozenset())
    assert [(fact.kind, fact.detail["old"], fact.detail["sha"]) for fact in found] == [
        ("git.ref", sha(1), sha(500))
    ]


def test_commits_on_no_branch_are_told_by_head_alone(news):
    first = entry(0, 1, "commit (initial): a")
    news({MAIN: [first], HEAD: [first]})
    head = [first, entry(1, 1, "checkout: moving from main to v1"), entry(1, 2, "commit: loose")]
    found = news({HEAD: head}, detached=frozenset((HEAD,)))
    assert kinds(found) == [("git.checkout", "v1", "1"), ("git.commit", None, "2")]
    # A branch that is made there later tells the same commit not again.
    assert news({"refs/heads/new": [entry(1, 2, "commit: loose")]}) == []


OTHER = "worktrees/other/HEAD"


def test_commits_in_another_worktree_that_is_on_no_branch_are_told(news):
    first = entry(0, 1, "commit (initial): a")
    news({MAIN: [first], HEAD: [first]})
    log = [entry(0, 1, ""), entry(1, 2, "commit: loose")]
    about = {sha(1): About("A", "a", (), "", 1.0), sha(2): About("A", "loose", (), sha(1), 2.0)}
    found = news({OTHER: log}, detached=frozenset((OTHER,)), about=about)
    assert kinds(found) == [("git.commit", None, "2")]
    # One that is on a branch is told by that, and what is checked out there is nobody's news here.
    log = [*log, entry(2, 2, "checkout: moving from 2 to side"), entry(2, 3, "commit: side")]
    found = news(
        {"refs/heads/side": [entry(0, 2, "branch: Created"), entry(2, 3, "commit: side")], OTHER: log}
    )
    assert kinds(found) == [("git.ref", "side", "2"), ("git.commit", "side", "3")]
    assert news({OTHER: log}) == []


def test_commits_on_a_branch_of_ours_tell_nothing_wherever_it_is_checked_out(news):
    first = entry(0, 1, "commit (initial): a")
    news({MAIN: [first], HEAD: [first]})
    head = [
        first,
        entry(1, 1, "checkout: moving from main to aipass/api/1"),
        entry(1, 2, "commit: one"),
        entry(2, 3, "commit: two"),
        entry(3, 1, "checkout: moving from aipass/api/1 to main"),
        entry(1, 4, "commit: mine"),
    ]
    found = news({MAIN: [first, entry(1, 4, "commit: mine")], HEAD: head})
    assert [fact.kind for fact in found] == ["git.commit", "git.checkout", "git.checkout"]
    assert kinds(found)[0] == ("git.commit", "main", "4")


def test_a_log_that_was_cut_tells_what_is_newer(news):
    news({MAIN: [entry(0, 5, "commit: a")]})
    found = news({MAIN: [entry(3, 4, "commit: old"), entry(6, 7, "commit: b"), entry(7, 8, "commit: c")]})
    assert kinds(found) == [("git.commit", "main", "7"), ("git.commit", "main", "8")]


def test_pushes_and_new_tags(news):
    news({"refs/remotes/origin/main": [entry(0, 1, "fetch: x")]}, tags={"refs/tags/v1": sha(1)})
    log = [entry(0, 1, "fetch: x"), entry(1, 2, "update by push"), entry(2, 3, "fetch origin: fast-forward")]
    found = news({"refs/remotes/origin/main": log}, tags={"refs/tags/v1": sha(1), "refs/tags/v2": sha(2)})
    assert [(fact.kind, fact.ref) for fact in found] == [
        ("git.push", sha(2)),
        ("git.ref", "refs/remotes/origin/main"),
        ("git.ref", "refs/tags/v2"),
    ]
    assert (found[0].detail["remote"], found[0].detail["branch"]) == ("origin", "main")
    assert news({}, tags={"refs/tags/v1": sha(1), "refs/tags/v2": sha(2)}) == []


def test_who_and_what_is_told_where_it_is_known(news):
    news({MAIN: [entry(0, 1, "commit (initial): a")]})
    about = {sha(2): About("A B", "Add x", ("x",))}
    (fact,) = news({MAIN: [entry(0, 1, "commit (initial): a"), entry(1, 2, "commit: Add x")]}, about=about)
    detail = {
        "sha": sha(2),
        "old": sha(1),
        "branch": "main",
        "author": "A B",
        "subject": "Add x",
        "paths": ["x"],
        "amend": False,
    }
    assert fact == Fact("git.commit", "git", ref=sha(2), detail=detail)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"{sha(1)} {sha(2)} A <a@b> 1700000000 +0100\tcommit: x".encode(), "commit: x"),
        (f"{sha(1)} {sha(2)} A <a@b> 1700000000 +0100".encode(), ""),
        (f"{sha(1)} {sha(2)} Ä > <a@b> 1700000000 -0800\tx\ty".encode(), "x\ty"),
        (b"", None),
        (b"half a li", None),
    ],
)
def test_a_line_of_a_log(line, expected):
    found = ReflogEntry.of(line)
    assert (None if found is None else found.message) == expected


# -- with the real git ---------------------------------------------------------------------------------------------------


def commit(repository, name, *words):
    repository.write(name, name)
    git(repository, "add", name)
    git(repository, "commit", "-q", "-m", f"Add {name}", *words)


def git(repository, *words):
    import subprocess

    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    words = ("git", "-c", "user.name=A B", "-c", "user.email=a@b.c", *words)
    return subprocess.run(
        words, cwd=repository.root, env=env, check=True, capture_output=True, text=True
    ).stdout


def told(repository, kind="git.*"):
    lines = repository.aipass("events", "--json", "--kind", kind).stdout.splitlines()
    return [json.loads(line) for line in lines]


RULE = (
    '[agents.reviewer]\ndriver = "command"\ncommand = ["cat"]\nowns = []\n'
    '[[on]]\nname = "review"\nevent = "git.commit"\nbranch = "main"\npaths = ["src/"]\n'
    'dispatch = "reviewer"\ntask = "Review {sha}: {subject} by {author}"\n'
)


@pytest.mark.slow
@pytest.mark.parametrize("hooked", [True, False])
def test_a_commit_starts_an_agent_with_hooks_and_without(repository, hooked):
    repository.write("aipass.toml", RULE)
    git(repository, "checkout", "-q", "-B", "main")
    commit(repository, "before.txt")
    repository.aipass("init")
    if hooked:
        assert "post-commit" in repository.aipass("git", "install").stdout
    repository.aipass("up", "--detach")
    repository.wait_for(lambda: repository.aipass("status", "--json"), "the engine")
    commit(repository, "src/x.py")
    answer = repository.answer("reviewer/review.*.md").read_text()
    head = git(repository, "rev-parse", "HEAD").strip()
    assert answer == f"Review {head}: Add src/x.py by A B"
    commit(repository, "docs.txt")
    repository.wait_for(lambda: len(told(repository, "git.commit")) == 2, "the second commit")
    assert [event["detail"]["paths"] for event in told(repository, "git.commit")] == [
        ["src/x.py"],
        ["docs.txt"],
    ]
    dispatches = json.loads(repository.aipass("dispatches", "--json").stdout)
    assert len(dispatches) == 1, "the other is none of its paths"
    if hooked:
        repository.wait_for(
            lambda: not list((repository.root / ".aipass/spool/git").iterdir()), "the hooks' files"
        )


@pytest.mark.slow
def test_no_name_and_no_subject_can_say_what_another_commit_is(repository):
    repository.write("aipass.toml", RULE)
    git(repository, "checkout", "-q", "-B", "main")
    repository.aipass("init")
    repository.aipass("up", "--until-idle")
    commit(repository, "zz\x01\x02\x01q")
    git(repository, "commit", "-q", "--allow-empty", "-m", "x\x01\x02\x01y")
    os.mkfifo(repository.root / ".git/logs/refs/heads/pipe")
    repository.aipass("up", "--until-idle")
    found = [
        (event["detail"]["subject"], event["detail"]["paths"]) for event in told(repository, "git.commit")
    ]
    assert found == [("Add zz\x01\x02\x01q", ["zz\x01\x02\x01q"]), ("x\x01\x02\x01y", [])]


@pytest.mark.slow
def test_what_was_done_while_no_engine_ran_is_told_once(repository):
    repository.write("aipass.toml", RULE)
    git(repository, "checkout", "-q", "-B", "main")
    commit(repository, "before.txt")
    repository.aipass("init")
    repository.aipass("git", "install")
    repository.aipass("up", "--until-idle")
    assert told(repository) == []
    for number in range(3):
        commit(repository, f"src/{number}.py")
    git(repository, "checkout", "-q", "-b", "other")
    commit(repository, "src/other.py")
    git(repository, "checkout", "-q", "main")
    git(repository, "merge", "-q", "other")
    git(repository, "tag", "v1")
    repository.aipass("up", "--until-idle")
    repository.aipass("up", "--until-idle")
    found = [(event["kind"], str(event["detail"]["branch"])) for event in told(repository)]
    assert sorted(found) == sorted(
        [
            *[("git.commit", "main")] * 3,
            ("git.ref", "other"),  # it was made
            ("git.checkout", "other"),
            ("git.commit", "other"),
            ("git.checkout", "main"),
            ("git.merge", "main"),
            ("git.ref", "None"),  # the tag
        ]
    )
    dispatches = json.loads(repository.aipass("dispatches", "--json").stdout)
    assert [one["state"] for one in dispatches] == ["succeeded"] * 3


@pytest.mark.slow
def test_an_agent_installs_no_hooks(repository):
    repository.write("aipass.toml", RULE)
    repository.aipass("init")
    done = repository.aipass("git", "install", check=3, env={"AIPASS_AGENT": "reviewer"})
    assert "`git install` is for people, and `reviewer` is an agent" in done.stderr
    assert "not installed" in repository.aipass("git", "status").stdout


def test_a_branch_that_is_made_anew_in_the_same_second_tells_its_commit(news):
    first = entry(0, 1, "commit (initial): a")
    news({MAIN: [first]})
    news({"refs/heads/b": [entry(0, 1, "branch: Created from main", 50), entry(1, 2, "commit: b", 50)]})
    found = news(
        {"refs/heads/b": [entry(0, 1, "branch: Created from main", 50), entry(1, 3, "commit: c", 50)]}
    )
    assert kinds(found) == [("git.commit", "b", "3")]


def test_a_commit_dated_far_ahead_hides_nothing(news):
    news({MAIN: [entry(0, 1, "commit (initial): a")]}, now=10.0)
    news({MAIN: [entry(1, 2, "commit: ahead", 10**9)]}, now=20.0)
    found = news(
        {MAIN: [entry(1, 3, "merge other: Fast-forward", 30), entry(3, 4, "commit: c", 30)]}, now=30.0
    )
    assert [fact.kind for fact in found] == ["git.merge", "git.commit"]


def test_a_branch_that_is_renamed_or_copied_tells_no_old_merge_again(news):
    log = [
        entry(0, 1, "branch: Created from x"),
        entry(1, 2, "merge y: Fast-forward"),
        entry(2, 3, "commit: c"),
    ]
    news({MAIN: []})
    news({"refs/heads/b": log})
    renamed = [*log, entry(3, 3, "Branch: renamed refs/heads/b to refs/heads/c")]
    assert [(f.kind, f.detail["reason"]) for f in news({"refs/heads/c": renamed})] == [
        ("git.ref", "Branch: renamed refs/heads/b to refs/heads/c")
    ]
    # What was committed under the old name while nobody looked is told all the same.
    later = [*log, entry(3, 4, "commit: d"), entry(4, 4, "Branch: copied refs/heads/b to refs/heads/e")]
    assert [fact.kind for fact in news({"refs/heads/e": later})] == ["git.commit", "git.ref"]


def test_many_refs_that_move_in_one_way_are_one_event(news):
    news({MAIN: []})
    logs = {f"refs/remotes/origin/b{n}": [entry(0, n, "fetch origin: storing head")] for n in range(1, 200)}
    logs["refs/heads/x"] = [entry(0, 1, "branch: Created from main")]
    found = news(logs)
    assert sorted((fact.ref, fact.detail.get("count")) for fact in found if fact.ref) == [
        ("refs/heads/x", None)
    ]
    (folded,) = (fact for fact in found if fact.ref is None)
    assert (folded.detail["count"], len(folded.detail["refs"])) == (199, 199)


@pytest.mark.parametrize(
    ("says", "kind"),
    [("rebase (finish)", "git.ref"), ("rebase -i (finish)", "git.ref"), ("pull --rebase (finish)", "git.merge"), ("pull -q --rebase origin main (finish)", "git.merge"),
     ("pull (finish)", "git.merge"), ("pull -r (finish)", "git.merge")],
)  # fmt: skip
def test_each_commit_of_a_rebase_is_told_to_whom_it_was_asked_for(news, says, kind):
    news({MAIN: [entry(0, 1, "commit (initial): a")]})
    finish = entry(1, 9, f"{says}: refs/heads/main onto " + sha(2))
    assert REBASED.match(finish.message)[1] == sha(2)
    about = {sha(8): About("A B", "eight", ("x",))}
    found = news(
        {MAIN: [entry(0, 1, "commit (initial): a"), finish]}, rebased={sha(9): (sha(8), sha(9))}, about=about
    )
    assert kinds(found) == [
        (kind, "main", "9"),
        ("git.commit", "main", "8"),
        ("git.commit", "main", "9"),
    ]
    assert [fact.detail.get("rebased") for fact in found] == [None, True, True]
    assert found[1].detail["paths"] == ["x"]


EACH = RULE.replace('paths = ["src/"]\n', "rebased = true\n") + (
    '[[on]]\nname = "saved"\nevent = "file.closed"\npaths = ["src/"]\ndispatch = "reviewer"\ntask = "Look at {path}"\n'
)


@pytest.mark.slow
def test_a_rebase_tags_in_folders_and_long_subjects_with_a_real_engine(repository):
    repository.write("aipass.toml", EACH)
    git(repository, "checkout", "-q", "-B", "main")
    commit(repository, "src/base.py")
    repository.aipass("init")
    repository.aipass("up", "--detach")
    git(repository, "checkout", "-q", "-b", "side")
    commit(repository, "src/side.py")
    git(repository, "checkout", "-q", "main")
    for number in range(20):
        commit(repository, f"src/m{number}.py")
    repository.wait_for(lambda: len(told(repository, "git.commit")) == 21, "all commits")
    git(repository, "rebase", "-q", "side")
    repository.wait_for(lambda: len(told(repository, "git.commit")) == 41, "each commit of the rebase")
    rebased = [event for event in told(repository, "git.commit") if event["detail"].get("rebased")]
    shas = git(repository, "rev-list", "--reverse", "side..main").split()
    assert [event["detail"]["sha"] for event in rebased] == shas
    assert [event["detail"]["paths"] for event in rebased] == [[f"src/m{n}.py"] for n in range(20)]
    assert [
        e["detail"]["reason"].split(" onto")[0]
        for e in told(repository, "git.ref")
        if "rebase" in str(e["detail"])
    ] == ["rebase (finish): refs/heads/main"]
    # What git wrote in the tree fires no rule about files.
    files = told(repository, "file.closed")
    assert any(event["detail"].get("git") for event in files)
    by_git = {event["id"] for event in files if event["detail"].get("git")}
    repository.wait_for(
        lambda: json.loads(repository.aipass("status", "--json").stdout)["counts"]["queued"] == 0
    )
    causes = {one["cause"] for one in map(json.loads, shown(repository))}
    assert not causes & by_git
    git(repository, "tag", "v/2")
    repository.wait_for(
        lambda: any(e["detail"].get("tag") == "v/2" for e in told(repository, "git.ref")), "the tag"
    )
    git(repository, "commit", "-q", "--allow-empty", "-m", "x" * 100_000)
    repository.wait_for(lambda: len(told(repository, "git.commit")) == 42, "the commit with a long subject")


def shown(repository):
    for one in json.loads(repository.aipass("dispatches", "--json").stdout):
        yield repository.aipass("show", str(one["id"]), "--json").stdout


@pytest.mark.parametrize(
    ("message", "about", "kind"),
    [
        ("by gitpython", About("A", "by gitpython", ("x",), sha(1), 2.0), "git.commit"),
        ("", About("A", "s", ("x",), sha(1), 2.0), "git.commit"),
        ("anything", About("A", "s", ("x",), sha(7), 2.0), "git.ref"),
        ("anything", About("A", "s", ("x",), sha(1), -58.0), "git.ref"),
        ("reset: moving to HEAD@{1}", About("A", "s", ("x",), sha(1), 2.0), "git.ref"),
        ("branch: Reset to x", About("A", "s", ("x",), sha(1), 2.0), "git.ref"),
        ("anything", None, "git.ref"),
    ],
)
def test_a_commit_is_one_whatever_program_made_it(news, message, about, kind):
    news({MAIN: [entry(0, 1, "commit (initial): a")]})
    abouts = {} if about is None else {sha(2): about}
    (fact,) = news({MAIN: [entry(0, 1, "commit (initial): a"), entry(1, 2, message)]}, about=abouts)
    assert fact.kind == kind
