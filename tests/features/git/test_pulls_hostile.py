"""PRs and merges against mishaps and malice: nothing that anybody has written is lost, and no agent's program runs outside the fence."""

import json
import os
import subprocess
from types import SimpleNamespace

import pytest
from git_kit import GitBench, git

from aipass.errors import AipassError, RefusedError
from aipass.features.git import pr_merge as merge
from aipass.features.git import pr_worker as desk
from aipass.features.git import tree
from aipass.features.git.lease import Held, Lease, Ticket
from aipass.features.git.pr_merge import Merger
from aipass.features.git.pr_open import NothingError, WrittenPath, touched
from aipass.features.git.pr_records import PrRecords, folder_of
from aipass.features.git.repo import GitError, Repo
from aipass.features.plans import lifecycle as plans
from aipass.files import exchange
from aipass.workspace.layout import Layout

#: Left out of the inner loop (`make fast`): each test has processes, or waits for the kernel to tell.
pytestmark = pytest.mark.slow


@pytest.fixture
def bench(tmp_path):
    return GitBench(
        tmp_path / "r", {"a.txt": "a\n", "src/one.py": "1\n", "src/two.py": "2\n", "docs/x": "x\n"}
    )


def opened(bench, text="11\n", path="src/one.py", agent="api", **more):
    bench.write(path, text)
    return bench.open(agent, [path], **more)


# -- programs that lie in the tree -------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["reference-transaction", "post-index-change", "post-merge", "post-commit"])
def test_no_hook_that_lies_in_the_tree_is_run(bench, tmp_path, hook):
    bench.git("config", "core.hooksPath", ".githooks")
    bench.write(f".githooks/{hook}", f"#!/bin/sh\ntouch {tmp_path}/ran\n", 0o755)
    opened(bench)
    bench.git("-c", "core.hooksPath=/dev/null", "checkout", "-q", "src/one.py")
    assert not bench.merge(1).refused
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "command",
    ["tools/clean.sh", "sh tools/clean.sh %f", "sh -c 'cd . && tools/clean.sh'", "{top}/tools/clean.sh"],
)
def test_a_filter_that_lies_in_the_tree_is_not_run_and_what_needs_it_is_refused(bench, tmp_path, command):
    bench.git("config", "filter.fx.clean", command.format(top=bench.top))
    bench.write("tools/clean.sh", f"#!/bin/sh\ntouch {tmp_path}/ran\ncat\n", 0o755)
    bench.repo.look_again()
    opened(bench)  # it needs none
    bench.write(".gitattributes", "docs/* filter=fx\n")
    with pytest.raises(GitError, match="fx"):
        opened(bench, "xx\n", "docs/x", title="Other")
    assert not (tmp_path / "ran").exists()
    assert len(bench.records.all()) == 1


def test_a_merge_driver_that_lies_in_the_tree_is_not_run(bench, tmp_path):
    bench.git("config", "merge.mx.driver", "tools/merge.sh %A")
    bench.write("tools/merge.sh", f"#!/bin/sh\ntouch {tmp_path}/ran\n", 0o755)
    bench.write(".gitattributes", "docs/* merge=mx\n")
    bench.git("add", "-A")
    bench.git("commit", "-qm", "driver")
    bench.repo.look_again()
    opened(bench, "agent\n", "docs/x")
    bench.write("docs/x", "person\n")
    bench.git("commit", "-qam", "person")
    assert bench.merge(1).refused[1].startswith("it conflicts with main in docs/x; ")
    assert not (tmp_path / "ran").exists()


# -- what people write meanwhile ---------------------------------------------------------------------------------------


def test_what_a_person_saves_at_the_moment_of_the_merge_is_kept(bench, monkeypatch):
    opened(bench)
    bench.git("checkout", "-q", "src/one.py")
    whole = exchange.exchange

    def with_a_save(folder, one, other_folder, other):
        if other == "one.py" and not getattr(with_a_save, "done", False):
            with_a_save.done = True
            (bench.top / "src/one.py").write_text("a person's\n")
        whole(folder, one, other_folder, other)

    monkeypatch.setattr(exchange, "exchange", with_a_save)
    with pytest.raises(RefusedError, match=r"src/one\.py was changed during the merge"):
        bench.merge(1)
    assert (bench.top / "src/one.py").read_text() == "a person's\n"
    assert bench.git("status", "--porcelain") == " M src/one.py\n"
    bench.whole()


def interrupted(bench, monkeypatch, numbers=(1,)):
    """A merge that ends as by kill -9 just before the branch would move: all files are written."""
    with monkeypatch.context() as patch:
        patch.setattr(Merger, "recover", lambda _: None)
        move = Repo.move
        patch.setattr(
            Repo,
            "move",
            lambda repo, why, *changes: 1 / 0 if why.startswith("merge ") else move(repo, why, *changes),
        )
        patch.setattr(merge.indexlock, "drop", lambda *_: None)
        with pytest.raises(ZeroDivisionError):
            bench.merge(*numbers)


def prepared(bench):
    opened(bench)
    bench.write("src/new.py", "n\n")
    (bench.top / "docs/x").unlink()
    bench.open("web", ["src/new.py", "docs/x"])
    bench.git("checkout", "-q", ".")
    (bench.top / "src/new.py").unlink()


def test_after_a_crash_what_was_there_comes_back(bench, monkeypatch):
    prepared(bench)
    before = bench.working()
    interrupted(bench, monkeypatch, (1, 2))
    assert bench.working() != before
    Merger(bench.repo, bench.records).recover()
    assert bench.working() == before
    bench.whole()


def test_after_a_crash_what_people_have_written_since_stays(bench, monkeypatch):
    prepared(bench)
    interrupted(bench, monkeypatch, (1, 2))
    for path in ("src/one.py", "src/new.py", "docs/x"):
        bench.write(path, "a person's\n")
    Merger(bench.repo, bench.records).recover()
    for path in ("src/one.py", "src/new.py", "docs/x"):
        assert (bench.top / path).read_text() == "a person's\n"
    assert not (bench.top / ".git/index.lock").exists()
    with pytest.raises(RefusedError, match="differs from the PR"):
        bench.merge(1, 2)


def test_after_a_crash_and_a_persons_commit_nothing_is_put_back_over_it(bench, monkeypatch):
    prepared(bench)
    interrupted(bench, monkeypatch, (1, 2))
    (bench.top / ".git/index.lock").unlink()
    bench.git("add", "-A")
    bench.git("commit", "-qm", "a person's")
    before = bench.working()
    Merger(bench.repo, bench.records).recover()
    assert bench.working() == before
    assert bench.git("status", "--porcelain") == ""


def test_another_root_of_the_same_tree_recovers_first(bench, monkeypatch, tmp_path):
    prepared(bench)
    before = bench.working()
    interrupted(bench, monkeypatch, (1, 2))
    Merger(Repo(bench.top / "src", tmp_path / "scratch"), bench.records).recover()
    assert bench.working() == before


def test_a_merge_of_a_process_that_lives_is_left_alone(bench, monkeypatch):
    prepared(bench)
    interrupted(bench, monkeypatch, (1, 2))
    path = bench.repo.own / "aipass/merge.json"
    child = subprocess.Popen(["sleep", "60"])
    alive = Ticket.of("", "")
    from aipass.features.git.lease import born

    told = {**json.loads(path.read_text()), "pid": child.pid, "born": born(child.pid), "boot": alive.boot}
    path.write_text(json.dumps(told))
    working = bench.working()
    with pytest.raises(RefusedError, match=f"process {child.pid} is in the middle of a merge"):
        Merger(bench.repo, bench.records).recover()
    assert bench.working() == working
    child.kill()
    child.wait()
    Merger(bench.repo, bench.records).recover()
    assert bench.working() != working


def test_a_lease_that_is_broken_in_the_middle_undoes_the_merge(bench, monkeypatch):
    prepared(bench)
    before = bench.working()

    def broken(_):
        raise RefusedError("the git lease was broken")

    monkeypatch.setattr(Held, "check", broken)
    with pytest.raises(RefusedError, match="was broken"):
        bench.merge(1, 2)
    assert bench.working() == before
    bench.whole()


@pytest.mark.parametrize("how", ["untracked file", "staged file", "staged below", "link"])
def test_a_file_where_the_pr_has_a_folder_is_not_pushed_away(bench, how):
    if how == "staged below":
        opened(bench, "agent\n", "foo")
        (bench.top / "foo").unlink()
        bench.write("foo/mine", "mine\n")
        bench.git("add", "foo/mine")
        (bench.top / "foo/mine").unlink()
        (bench.top / "foo").rmdir()
    else:
        opened(bench, "agent\n", "foo/bar")
        (bench.top / "foo/bar").unlink()
        (bench.top / "foo").rmdir()
        if how == "link":
            (bench.top / "foo").symlink_to("docs")
        else:
            bench.write("foo", "mine\n")
        if how == "staged file":
            bench.git("add", "foo")
            (bench.top / "foo").unlink()
    before, index = bench.working(), bench.git("ls-files", "-s")
    with pytest.raises(RefusedError, match="foo"):
        bench.merge(1)
    assert bench.working() == before
    assert bench.git("ls-files", "-s") == index
    bench.whole()


def test_a_file_that_the_user_skips_stays_skipped(bench):
    opened(bench)
    bench.git("checkout", "-q", "src/one.py")
    bench.git("update-index", "--skip-worktree", "src/one.py")
    bench.write("src/one.py", "my own, never committed\n")
    assert not bench.merge(1).refused
    assert (bench.top / "src/one.py").read_text() == "my own, never committed\n"
    assert bench.git("ls-files", "-t", "src/one.py") == "S src/one.py\n"
    assert bench.git("status", "--porcelain") == ""


def test_a_folder_that_becomes_a_link_at_the_moment_of_the_merge_leads_nowhere(bench, monkeypatch):
    """An agent that owns `src/` swaps a folder of it for a link into git's hooks, after it was looked at."""
    bench.write("src/sub/keep", "k\n")
    bench.git("add", "-A")
    bench.git("commit", "-qm", "sub")
    opened(bench, "#!/bin/sh\n", "src/sub/post-commit")
    (bench.top / "src/sub/post-commit").unlink()
    staged = Merger._staged

    def swapped(self, changes):
        staged(self, changes)
        os.rename(bench.top / "src/sub", bench.top / "src/gone")
        (bench.top / "src/sub").symlink_to("../.git/hooks")

    monkeypatch.setattr(Merger, "_staged", swapped)
    with pytest.raises(RefusedError, match="src/sub/post-commit"):
        bench.merge(1)
    assert not (bench.top / ".git/hooks/post-commit").exists()


def test_a_pr_that_is_closed_or_changed_after_it_was_tested_is_not_merged_as_it_was(bench):
    opened(bench)
    merger = Merger(bench.repo, bench.records)
    ready = merger.prepare([bench.records.get(1)], "merge", "test")
    before = bench.git("rev-parse", "main")
    bench.write("src/new.py", "n\n")
    bench.open("api", ["src/new.py"])
    with Lease(bench.repo.shared).hold("test", "merge") as held:
        with pytest.raises(merge.StaleError, match="PR 1 was changed since the merge was prepared"):
            merger.apply(ready, held, lambda _: None)
        ready = merger.prepare([bench.records.get(1)], "merge", "test")
        merger.close(bench.records.get(1), "no", held)
        with pytest.raises(merge.StaleError, match="PR 1 was closed since the merge was prepared"):
            merger.apply(ready, held, lambda _: None)
    assert bench.git("rev-parse", "main") == before
    bench.whole()


def test_while_filters_are_looked_for_those_in_the_tree_are_not_started(bench, tmp_path, monkeypatch):
    """Two threads share a repository: what one knows must hold while the other finds out anew."""
    bench.git("config", "filter.fx.clean", "tools/clean.sh")
    bench.write("tools/clean.sh", f"#!/bin/sh\ntouch {tmp_path}/ran\ncat\n", 0o755)
    bench.write(".gitattributes", "docs/* filter=fx\n")
    bench.repo.look_again()
    run, other = Repo.run, []

    def between(self, *words, **how):
        if words[0] == "config" and not other:
            other.append(1)
            bench.write("docs/x", "new\n")
            with pytest.raises(GitError):
                run(self, "add", "docs/x")
        return run(self, *words, **how)

    monkeypatch.setattr(Repo, "run", between)
    bench.repo.look_again()
    assert other
    assert not (tmp_path / "ran").exists()


def test_what_changes_between_the_asking_and_the_making_is_no_agents(bench):
    bench.write("src/one.py", "agent\n")
    claim = WrittenPath(at=touched(bench.top / "src/one.py"))
    bench.write("src/one.py", "a person's\n")
    with pytest.raises(RefusedError, match=r"changed by another author since api wrote it: src/one\.py"):
        bench.open("api", ["src/one.py"], claims={"src/one.py": claim})


def test_a_draft_that_a_person_has_checked_out_is_neither_moved_nor_deleted(bench, tmp_path):
    opened(bench, draft=True)
    draft = f"{folder_of('api')}draft".removeprefix("refs/heads/")
    name = next(line.strip("* ").strip() for line in bench.git("branch", "--list", "aipass/*").splitlines())
    assert name.startswith(draft.rpartition("/")[0])
    bench.git("worktree", "add", "-q", str(tmp_path / "wt"), name)
    with pytest.raises(RefusedError, match="is checked out in"):
        opened(bench, "12\n", draft=True, title="Again")
    opened(bench, "13\n")
    assert git(tmp_path / "wt", "status", "--porcelain") == ""
    assert git(tmp_path / "wt", "rev-parse", "HEAD") == bench.git("rev-parse", name)


def test_a_request_that_is_carried_out_again_moves_nothing_that_people_went_on_with(bench, tmp_path):
    made = opened(bench, asked=77)
    short = made.pr.ref.removeprefix("refs/heads/")
    bench.git("worktree", "add", "-q", str(tmp_path / "wt"), short)
    git(tmp_path / "wt", "commit", "-qm", "a person's", "--allow-empty")
    bench.git("worktree", "remove", "--force", str(tmp_path / "wt"))
    theirs = bench.git("rev-parse", short)
    assert opened(bench, asked=77).pr.id == 1
    assert bench.git("rev-parse", short) == theirs
    bench.git("checkout", "-q", "src/one.py")
    assert not bench.merge(1).refused
    assert bench.git("branch", "--list", short) == ""
    opened(bench, asked=77)
    assert bench.git("branch", "--list", short) == ""


def test_a_merge_whose_commit_git_has_thrown_away_blocks_nothing_and_loses_nothing(bench, monkeypatch):
    prepared(bench)
    interrupted(bench, monkeypatch, (1, 2))
    path = bench.repo.own / "aipass/merge.json"
    stage = json.loads(path.read_text())["stage"]
    assert os.path.isdir(stage)
    path.write_text(json.dumps({**json.loads(path.read_text()), "new": "1" * 40}))
    Merger(bench.repo, bench.records).recover()
    assert not path.exists()
    (kept,) = (bench.repo.own / "aipass").glob("kept-*")
    assert (kept / "src/one.py").read_text() == "1\n"
    assert bench.git("for-each-ref", "refs/aipass/merge") == ""


def test_recovery_takes_away_nothing_that_it_had_not_put_there(bench, monkeypatch):
    """Killed before anything was staged; then a person takes the same file out of the PR's branch."""
    bench.write("src/new.py", "n\n")
    bench.open("web", ["src/new.py"])
    (bench.top / "src/new.py").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Merger, "recover", lambda _: None)
        patch.setattr(Merger, "_exchange", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            bench.merge(1)
    bench.write("src/new.py", "n\n")
    Merger(bench.repo, bench.records).recover()
    assert (bench.top / "src/new.py").read_text() == "n\n"
    bench.whole()


def test_where_nothing_can_be_exchanged_at_once_a_kill_in_the_middle_loses_nothing(bench, monkeypatch):
    prepared(bench)
    before = bench.working()
    monkeypatch.setattr("aipass.supervisor.held.rename", lambda *_: False)
    with monkeypatch.context() as patch:
        patch.setattr(Merger, "recover", lambda _: None)
        real = os.rename

        def rename(old, new, **how):
            if str(old) == "one.py" and not str(new).endswith(exchange.ASIDE):
                raise ZeroDivisionError
            real(old, new, **how)

        patch.setattr(exchange.os, "rename", rename)
        with pytest.raises(ZeroDivisionError):
            bench.merge(1, 2)
    assert bench.working() != before
    Merger(bench.repo, bench.records).recover()
    assert bench.working() == before


def test_what_was_merged_elsewhere_as_another_commit_stands_in_nobodys_way(bench):
    opened(bench)
    bench.git("commit", "-qam", "squashed on a forge")
    pr = bench.records.get(1)
    bench.records.put(pr.model_copy(update={"state": "merged", "merged": None}))
    made = opened(bench, "12\n", agent="web")
    assert made.pr.stacked_on == ()
    assert bench.records.get(1).merged == bench.git("rev-parse", "HEAD").strip()


# -- people who work on a PR's branch ----------------------------------------------------------------------------------


def on_branch(bench, tmp_path, text="fixed by a person\n"):
    made = opened(bench)
    tree = tmp_path / "wt"
    bench.git("worktree", "add", "-q", str(tree), made.pr.ref.removeprefix("refs/heads/"))
    (tree / "src/one.py").write_text(text)
    git(tree, "commit", "-qam", "fix")
    return made, tree, git(tree, "rev-parse", "HEAD").strip()


def test_what_a_person_commits_on_its_branch_is_merged_with_it_and_the_branch_stays_while_it_is_checked_out(
    bench, tmp_path
):
    made, tree, tip = on_branch(bench, tmp_path)
    bench.git("checkout", "-q", "src/one.py")
    assert not bench.merge(1).refused
    assert (bench.top / "src/one.py").read_text() == "fixed by a person\n"
    assert git(tree, "rev-parse", "HEAD").strip() == tip
    assert bench.git("rev-parse", made.pr.ref).strip() == tip


def test_closing_leaves_a_branch_that_a_person_has_moved(bench, tmp_path):
    made, tree, tip = on_branch(bench, tmp_path)
    bench.git("worktree", "remove", "--force", str(tree))
    with Lease(bench.repo.shared).hold("t", "t") as held:
        Merger(bench.repo, bench.records).close(made.pr, "no", held)
    assert bench.git("rev-parse", made.pr.ref).strip() == tip


def test_an_update_goes_on_from_what_a_person_committed_and_moves_no_branch_that_is_checked_out(
    bench, tmp_path
):
    made, tree, tip = on_branch(bench, tmp_path)
    bench.write("src/two.py", "22\n")
    with pytest.raises(
        RefusedError, match=r"is checked out in .* and was not moved; run `git merge refs/aipass/pr/1` there"
    ):
        bench.open("api", ["src/two.py"], made.pr.title)
    assert git(tree, "status", "--porcelain") == ""
    bench.git("worktree", "remove", "--force", str(tree))
    bench.write("src/two.py", "222\n")
    again = bench.open("api", ["src/two.py"], made.pr.title)
    assert bench.tree(again.commit)["src/one.py"][1] == "fixed by a person\n"
    assert bench.repo.is_ancestor(tip, again.commit)


def test_a_pr_is_merged_only_into_the_branch_that_it_was_made_for(bench):
    bench.git("branch", "release")
    opened(bench)
    bench.git("stash", "-q")
    bench.git("checkout", "-q", "release")
    assert bench.merge(1).refused == {1: "it was made for main, but release is checked out here"}
    bench.git("branch", "-m", "main", "trunk")  # a branch of that name is no more
    assert not bench.merge(1).refused


# -- names, titles, records --------------------------------------------------------------------------------------------


def test_titles_that_look_alike_as_branches_are_prs_of_their_own(bench):
    first, second = (
        opened(bench, title="修复登录"),
        opened(bench, "22\n", "src/two.py", title="Добавить тесты"),
    )
    third = opened(bench, "x2\n", "docs/x", title="修复登录 ")
    assert [first.pr.id, second.pr.id, third.pr.id] == [1, 2, 1]
    assert second.pr.ref == first.pr.ref + "-2"


def test_agents_whose_names_git_writes_alike_have_branches_of_their_own(bench):
    assert len({folder_of(name) for name in ("a.lock", "a-lock", "x..y", "x-y", "x.", "x-")}) == 6
    bench.write("src/one.py", "11\n")
    bench.open("a.lock", ["src/one.py"], draft=True)
    bench.write("src/two.py", "22\n")
    assert bench.open("a-lock", ["src/two.py"]).pr.paths == ("src/two.py",)
    for name in ("a.lock", "x..y", "x."):
        bench.git("check-ref-format", folder_of(name) + "x")


def test_a_branch_in_the_way_is_named(bench):
    bench.git("branch", "aipass")
    with pytest.raises(RefusedError, match="the branch `aipass` prevents branches"):
        opened(bench)
    assert not bench.records.all()


def test_a_title_and_body_with_any_characters_make_a_pr_that_can_be_merged(bench):
    opened(bench, title="a\0b\n\nc\x1b[31m", body="x\0y\n\tz")
    assert bench.records.get(1).title == "ab c[31m"
    bench.git("checkout", "-q", ".")
    assert not bench.merge(1).refused


def test_a_record_that_is_nonsense_is_named_and_stops_nothing_else(bench):
    opened(bench)
    folder = bench.repo.shared / "prs"
    for number, text in enumerate(("", "[" * 100_000, '{"schema": 99}', "null", '{"id": 1}'), 2):
        (folder / f"{number}.json").write_text(text)
    wrong: list[str] = []
    assert [pr.id for pr in bench.records.all(wrong)] == [1]
    assert len(wrong) == 5
    assert "written by another version" in wrong[2]
    assert opened(bench, "22\n", "src/two.py", title="Next").pr.id == 7
    with pytest.raises(AipassError, match=r"2\.json: cannot be used"):
        PrRecords(bench.repo.shared).get(2)


def test_a_pr_upon_one_whose_record_is_gone_is_refused_and_others_are_merged(bench):
    opened(bench)
    opened(bench, "111\n", title="Upon it")
    opened(bench, "22\n", "src/two.py", agent="web")
    (bench.repo.shared / "prs/1.json").unlink()
    ready = bench.merge(2, 3)
    assert ready.refused == {2: "it is based on PR 1: there is no PR 1; `aipass pr list` lists them"}
    assert bench.records.get(3).state == "merged"


def test_what_was_merged_and_changed_by_a_person_is_no_reason_to_refuse_the_next_pr(bench):
    opened(bench)
    bench.git("checkout", "-q", ".")
    bench.merge(1)
    bench.write("src/one.py", "a person's\n")
    bench.git("commit", "-qam", "person")
    bench.write("src/two.py", "22\n")
    made = bench.open(
        "api", [], "Next", claims={"src/one.py": WrittenPath("old"), "src/two.py": WrittenPath()}
    )
    assert made.pr.paths == ("src/two.py",)
    assert made.left_out == []  # it was handed in


def test_what_a_person_took_back_is_said(bench):
    bench.write("src/two.py", "22\n")
    made = bench.open(
        "api", [], "Next", claims={"src/one.py": WrittenPath("old"), "src/two.py": WrittenPath()}
    )
    assert made.pr.paths == ("src/two.py",)
    assert made.left_out == [("src/one.py", "it is as the branch has it, not as api wrote it")]


def test_names_that_git_does_not_take_are_left_out_and_said(bench):
    bench.git("config", "core.protectNTFS", "true")
    bench.write("src/git~1", "x\n")
    bench.write("src/one.py", "11\n")
    assert bench.open("api", ["src/git~1", "src/one.py"]).left_out == [
        ("src/git~1", "git does not accept a file of this name")
    ]


def test_below_a_submodule_that_is_not_checked_out_nothing_is_handed_in(bench):
    bench.git("update-index", "--add", "--cacheinfo", "160000", "1" * 40, "sub")
    bench.git("commit", "-qm", "sub")
    bench.write("sub/x", "x\n")
    bench.write("src/one.py", "11\n")
    assert bench.open("api", ["sub/x", "src/one.py"]).left_out == [("sub/x", "sub is a submodule")]


def test_a_draft_that_was_taken_back_is_nothing(bench):
    bench.write("src/new.py", "n\n")
    bench.open("api", ["src/new.py"], draft=True)
    (bench.top / "src/new.py").unlink()
    with pytest.raises(NothingError):
        bench.open("api", ["src/new.py"], "All")


def test_an_update_upon_anothers_pr_names_its_own_paths(bench):
    opened(bench, title="Mine")
    opened(bench, "web\n", "docs/x", agent="web")
    bench.write("docs/x", "web\nand api\n")
    again = bench.open("api", ["docs/x"], "Mine")
    assert again.pr.paths == ("docs/x", "src/one.py")
    assert again.pr.stacked_on == (2,)


def test_a_repository_of_sha_256_is_as_any_other(tmp_path):
    top = tmp_path / "r"
    top.mkdir()
    git(top, "init", "-q", "-b", "main", "--object-format=sha256")
    bench = GitBench(top, {"a": "a\n", "b": "b\n"})
    bench.write("a", "A\n")
    (bench.top / "b").unlink()
    bench.write("c", "c\n")
    bench.open("api", ["a", "b", "c"])
    assert not bench.merge(1).refused
    assert bench.git("status", "--porcelain") == ""


def test_names_that_are_no_utf_8_and_many_paths(bench):
    name = os.fsdecode(b"src/\xff\xfe")
    (bench.top / name).write_text("x\n")
    many = [f"many/{n // 100}/f{n}" for n in range(3000)]
    for path in many:
        bench.write(path, path)
    made = bench.open("api", [name, *many])
    assert set(made.pr.paths) == {name, *many}
    assert PrRecords(bench.repo.shared).get(1).paths == made.pr.paths
    assert not bench.merge(1).refused
    assert bench.git("status", "--porcelain") == ""


def test_a_read_only_git_folder_refuses_in_words(bench):
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    (bench.top / ".git/objects").chmod(0o500)
    try:
        with pytest.raises(GitError, match=r"insufficient permission|Permission denied"):
            opened(bench)
    finally:
        (bench.top / ".git/objects").chmod(0o700)


# -- how much there is agents decide -----------------------------------------------------------------------------------


def sparse(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def test_files_that_hold_very_much_together_are_refused_before_git_reads_them(bench, monkeypatch):
    for number in range(4):
        sparse(bench.top / f"src/big{number}", tree.MOST_BYTES - 1)
    asked = []
    run = Repo.run
    monkeypatch.setattr(
        Repo, "run", lambda self, *words, **how: asked.append(words) or run(self, *words, **how)
    )
    with pytest.raises(RefusedError, match="larger than 1 GB together"):
        bench.open("api", [f"src/big{number}" for number in range(4)])
    assert not [words for words in asked if words[0] == "update-index"]


def test_an_agent_whose_prs_take_long_is_asked_to_wait_and_a_person_is_not(bench, tmp_path, monkeypatch):
    made = desk.PullRequestWorker(Layout(tmp_path), None, {}, dict)
    now = [1000.0]
    monkeypatch.setattr(desk.time, "monotonic", lambda: now[0])

    def takes(job):
        now[0] += 3.0
        return job

    monkeypatch.setattr(made, "_made", takes)

    def asked(agent, by):
        return made._open_one(SimpleNamespace(by=by, wish=SimpleNamespace(agent=agent), refused=refused))

    refused = "too much"
    with pytest.raises(RefusedError, match="too much"):
        asked("a", 1)
    refused = ""
    asked("a", 1)
    asked("a", 2)
    with pytest.raises(RefusedError, match="PRs and commits of a have taken 6 s within a minute"):
        asked("a", 3)
    asked("a", None)
    asked("b", 4)
    now[0] += 61
    asked("a", 5)


def test_of_very_many_deliverables_few_are_opened(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(plans, "open_regular", lambda path: opened.append(path) or path.open("rb"))
    for number in range(plans.MAX_HASHED_FILES + 50):
        (tmp_path / f"f{number}").touch()
    core = SimpleNamespace(layout=SimpleNamespace(root=tmp_path))
    names = [f"f{number}" for number in range(plans.MAX_HASHED_FILES + 50)]
    of = SimpleNamespace(
        _core=core, _authors=SimpleNamespace(count=lambda path: 0), _written=lambda *_: names
    )
    before = plans.Plans.seal(of, "1", "a")
    assert len(opened) == plans.MAX_HASHED_FILES
    assert plans.Plans.seal(of, "1", "a") == before
    (tmp_path / names[-1]).write_text("x")
    assert plans.Plans.seal(of, "1", "a") != before


def test_the_seal_of_a_phase_reads_little_however_much_was_delivered(tmp_path):
    """The engine's thread makes it, once for each step in which something was written."""
    read = 0
    left = plans.MAX_HASHED_BYTES
    for number in range(30):
        sparse(tmp_path / f"f{number}", 1_000_000)
        content, length = plans._content(tmp_path / f"f{number}", left)
        assert content
        left -= length
        read += length
    assert read <= plans.MAX_HASHED_BYTES
    before = plans._content(tmp_path / "f29", 0)
    (tmp_path / "f29").write_bytes(bytes(999_999) + b"y")
    os.utime(tmp_path / "f29", ns=(1, 1))
    assert plans._content(tmp_path / "f29", 0) != before, "no program sets when a file was changed"


def test_what_a_run_has_written_is_read_in_turns_with_what_others_ask(tmp_path, monkeypatch):
    made = desk.PullRequestWorker(Layout(tmp_path), None, {}, dict)
    told, waiting = [], []
    monkeypatch.setattr(made, "_tell", told.extend)
    monkeypatch.setattr(made, "_put", lambda _, job: waiting.append(job))
    monkeypatch.setattr(desk, "SEALING_S", 0.0)
    for number in range(3):
        (tmp_path / f"f{number}").write_text("x")
    made.seal(7, 1e12, [f"f{number}" for number in range(3)])
    turns = 0
    while waiting:
        waiting.pop()()
        turns += 1
    assert turns == 4, "one for each file, and the end"
    assert [(one.run, sorted(one.seals)) for one in told] == [(7, ["f0", "f1", "f2"])]
