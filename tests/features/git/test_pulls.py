"""PRs: base + what one agent owns and changed, exactly, whatever kind of file; and all of them merged are the working tree."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from git_kit import GitBench, git
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from paths import KITS
from rounds import rounds

from aipass.errors import RefusedError
from aipass.features.git.lease import Lease
from aipass.features.git.pr_open import NothingError, WrittenPath, seal
from aipass.features.git.pr_records import slug
from aipass.text.secret import Secret

AGENTS = ("api", "web", "db")
NAMES = ("a", "b c", "d\ne", 'q"x', "ü", "x/y", "x/z w", "m/n/o", "-f", ":(top)p", "*", "sub/a")
#: A file's owner follows from its name, as it would from `owns`.
OWNER = {name: AGENTS[place % 3] for place, name in enumerate(NAMES)}
contents = st.sampled_from(["", "one\n", "two\nlines\n", "no end", "bin\x00ary"])
states = st.one_of(
    st.none(),
    st.tuples(st.sampled_from(["100644", "100755"]), contents),
    st.tuples(st.just("120000"), st.sampled_from(["a", "../x", "nowhere"])),
)
trees = st.dictionaries(st.sampled_from(NAMES), states, max_size=len(NAMES))


def put(top: Path, path: str, state) -> None:
    target = top / path
    if os.path.lexists(target):
        target.unlink()
    if state is None:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    mode, content = state
    if mode == "120000":
        target.symlink_to(content)
    else:
        target.write_text(content)
        target.chmod(0o755 if mode == "100755" else 0o644)


@pytest.mark.slow
@settings(max_examples=rounds(12, 100), deadline=None, suppress_health_check=list(HealthCheck))
@given(before=trees, edits=trees, method=st.sampled_from(["merge", "squash", "ff"]))
@example(
    before={"x/y": ("120000", "nowhere")},
    edits={"-f": ("120000", "nowhere"), "x/z w": ("120000", "a"), "x/y": None},
    method="merge",
)
def test_a_pr_is_its_base_and_the_owned_edits_and_all_merged_are_the_working_tree(
    tmp_path_factory, before, edits, method
):
    bench = GitBench(tmp_path_factory.mktemp("repo") / "r", {"keep": "me\n"})
    for path, state in before.items():
        put(bench.top, path, state)
    bench.git("add", "-A")
    bench.git("commit", "-qm", "base", "--allow-empty")
    base = bench.tree("HEAD")
    for path, state in edits.items():
        put(bench.top, path, state)
    untouched = bench.untouched()
    opened = []
    for agent in AGENTS:
        own = [path for path in edits if OWNER[path] == agent]
        model = dict(base)
        for path in own:
            model.pop(path, None)
            if edits[path] is not None:
                model[path] = edits[path]
        if model == base:
            with pytest.raises(NothingError):
                bench.open(agent, own)
            continue
        made = bench.open(agent, own)
        assert bench.tree(made.commit) == model
        assert set(made.pr.paths) == {p for p in {*model, *base} if model.get(p) != base.get(p)}
        assert made.pr.base == bench.git("rev-parse", "HEAD").strip()
        opened.append(made.pr.id)
    assert bench.untouched() == untouched
    bench.whole()
    if opened:
        ready = bench.merge(*opened, method=method)
        assert not ready.refused
        assert bench.tree("HEAD") == bench.working()
        assert bench.git("status", "--porcelain", "-z") == ""
        assert {pr.state for pr in bench.records.all()} == {"merged"}
        assert bench.git("for-each-ref", "refs/heads/aipass/") == ""
    bench.whole()
    bench.remove()


@pytest.fixture
def bench(tmp_path):
    return GitBench(
        tmp_path / "a repo", {"a.txt": "a\n", "src/one.py": "1\n", "src/two.py": "2\n", "docs/x": "x\n"}
    )


def test_who_made_it_and_for_what_is_in_the_commit(bench):
    bench.write("src/one.py", "11\n")
    made = bench.open(
        "api", ["src/one.py"], "Add login", body="Why.\n", dispatch=12, plan="0007", phase="model"
    )
    said = bench.git("log", "-1", "--format=%an <%ae>|%cn|%B", made.commit)
    assert (
        said.strip()
        == "api <api@aipass>|Tess Ter|Add login\n\nWhy.\n\nDispatch: 12\nPlan: 0007\nPhase: model"
    )
    assert made.pr.ref == "refs/heads/aipass/api/add-login"
    assert bench.git("rev-parse", made.pr.ref).strip() == made.commit
    assert made.pr.branch == "refs/heads/main"


def test_what_others_changed_in_the_same_tree_stays_out(bench):
    bench.write("src/one.py", "11\n")
    bench.write("src/two.py", "a person's\n")
    bench.write("docs/new", "nobody's\n")
    bench.git("add", "docs/new")
    untouched = bench.untouched()
    made = bench.open("api", ["src/one.py"])
    assert bench.git("diff", "--name-only", "HEAD", made.commit).split() == ["src/one.py"]
    assert bench.untouched() == untouched


def test_a_path_that_a_person_has_changed_is_refused_by_name_unless_included(bench):
    bench.write("src/one.py", "11\n")
    bench.write("src/two.py", "22\n")
    claims = {path: WrittenPath(seal(bench.top / path)) for path in ("src/one.py", "src/two.py")}
    bench.write("src/two.py", "a person's\n")
    with pytest.raises(RefusedError, match=r"since api wrote it: src/two\.py; .*--include"):
        bench.open("api", [], claims=claims)
    assert not bench.records.all()
    assert bench.open("api", [], claims=claims, only=("src/one.py",)).pr.paths == ("src/one.py",)
    assert (
        bench.tree(bench.open("api", [], claims=claims, include=True).commit)["src/two.py"][1]
        == "a person's\n"
    )


def test_what_an_earlier_work_wrote_and_a_person_changed_is_left_out_and_said(bench):
    bench.write("src/one.py", "11\n")
    bench.write("docs/x", "a person's\n")
    claims = {
        "src/one.py": WrittenPath(seal(bench.top / "src/one.py")),
        "docs/x": WrittenPath("old", now=False),
    }
    made = bench.open("api", [], claims=claims)
    assert made.pr.paths == ("src/one.py",)
    assert made.left_out == [("docs/x", "another author has changed it since")]


def test_the_same_title_again_goes_on_with_the_same_pr(bench):
    bench.write("src/one.py", "11\n")
    first = bench.open("api", ["src/one.py"], "Add login")
    bench.write("src/one.py", "111\n")
    bench.write("src/two.py", "22\n")
    second = bench.open("api", ["src/one.py", "src/two.py"], "Add login")
    assert (second.pr.id, second.new) == (first.pr.id, False)
    assert second.pr.base == first.pr.base
    assert second.pr.paths == ("src/one.py", "src/two.py")
    assert bench.git("log", "--format=%H", f"{first.pr.base}..{second.pr.ref}").split() == [
        second.commit,
        first.commit,
    ]
    with pytest.raises(NothingError):
        bench.open("api", ["src/one.py"], "Add login")


def test_another_title_goes_on_from_the_agents_own_open_pr(bench):
    bench.write("src/one.py", "11\n")
    first = bench.open("api", ["src/one.py"], "First")
    bench.write("src/one.py", "11\n22\n")
    bench.write("src/two.py", "22\n")
    second = bench.open("api", ["src/one.py", "src/two.py"], "Second")
    assert second.pr.stacked_on == (first.pr.id,)
    assert second.pr.base == first.commit
    assert set(second.pr.paths) == {"src/one.py", "src/two.py"}
    assert (
        bench.merge(second.pr.id).refused[second.pr.id].startswith("it is based on PR 1, which is not merged")
    )
    assert not bench.merge(1, 2).refused
    assert bench.git("status", "--porcelain") == ""


def test_a_path_of_anothers_open_pr_is_stacked_on_it(bench):
    bench.write("docs/x", "by web\n")
    first = bench.open("web", ["docs/x"])
    bench.write("docs/x", "by web\nand api\n")
    bench.write("src/one.py", "11\n")
    second = bench.open("api", ["docs/x", "src/one.py"])
    assert second.pr.stacked_on == (first.pr.id,)
    assert second.pr.base == first.commit
    assert second.told().endswith(", on top of PR 1")
    assert bench.tree(second.commit)["docs/x"][1] == "by web\nand api\n"


def test_what_another_has_handed_in_as_it_is_now_is_not_handed_in_twice(bench):
    bench.write("docs/x", "by web\n")
    bench.write("src/one.py", "11\n")
    bench.open("web", ["docs/x"])
    second = bench.open("api", ["docs/x", "src/one.py"])
    assert second.pr.paths == ("src/one.py",)
    assert second.pr.stacked_on == ()
    assert second.left_out == [("docs/x", "PR 1 of web has the same contents")]


def test_on_top_of_two_others_it_holds_both(bench):
    bench.write("docs/x", "by web\n")
    bench.open("web", ["docs/x"])
    bench.write("src/two.py", "by db\n")
    bench.open("db", ["src/two.py"])
    bench.write("docs/x", "by web\napi\n")
    bench.write("src/two.py", "by db\napi\n")
    third = bench.open("api", ["docs/x", "src/two.py"])
    assert third.pr.stacked_on == (1, 2)
    assert not bench.merge(1, 2, 3).refused
    assert bench.git("status", "--porcelain") == ""
    assert bench.tree("HEAD") == bench.working()


def test_an_agents_commits_are_on_its_own_branch_and_handed_in_together(bench):
    untouched = bench.untouched()
    bench.write("src/one.py", "11\n")
    first = bench.open("api", ["src/one.py"], "Step one", draft=True)
    assert first.ref == "refs/heads/aipass/api/draft"
    bench.write("src/two.py", "22\n")
    second = bench.open("api", ["src/one.py", "src/two.py"], "Step two", draft=True)
    assert bench.git("log", "--format=%s", "main..aipass/api/draft").split("\n")[:2] == [
        "Step two",
        "Step one",
    ]
    assert not bench.records.all()
    made = bench.open("api", ["src/one.py", "src/two.py"], "Both steps")
    assert made.commit == second.commit
    assert made.pr.paths == ("src/one.py", "src/two.py")
    assert bench.git("for-each-ref", "--format=%(refname)", "refs/heads/aipass/").split() == [made.pr.ref]
    assert bench.untouched() == untouched
    bench.whole()


@pytest.mark.parametrize(
    "config", [("core.autocrlf", "true"), ("core.autocrlf", "input"), ("core.autocrlf", "false")]
)
def test_line_ends_are_kept_as_git_add_keeps_them(bench, config):
    bench.git("config", *config)
    bench.write(".gitattributes", "*.bat eol=crlf\n*.bin -text\n")
    bench.git("add", "-A")
    bench.git("commit", "-qm", "attributes")
    bench.write("src/crlf.py", "a\r\nb\r\n")
    bench.write("x.bat", "a\r\nb\r\n")
    bench.write("x.bin", "a\r\nb\r\n")
    paths = ["src/crlf.py", "x.bat", "x.bin"]
    made = bench.tree(bench.open("api", paths).commit)
    bench.git("add", "-A")
    expected = {path: bench.git("cat-file", "blob", f":{path}") for path in paths}
    assert {path: made[path][1] for path in paths} == expected


def test_a_filter_makes_a_pointer_of_a_large_file(bench):
    bench.git("config", "filter.lfs.clean", "sh -c 'echo version pointer; wc -c | tr -d \" \"'")
    bench.git("config", "filter.lfs.smudge", "cat")
    bench.write(".gitattributes", "*.bin filter=lfs\n")
    bench.git("add", "-A")
    bench.git("commit", "-qm", "lfs")
    bench.write("big.bin", "x" * 1000)
    assert bench.tree(bench.open("api", ["big.bin"]).commit)["big.bin"][1] == "version pointer\n1000\n"


def test_a_file_takes_the_place_of_a_folder_and_the_other_way_round(bench):
    (bench.top / "src/one.py").unlink()
    (bench.top / "src/two.py").unlink()
    (bench.top / "src").rmdir()
    bench.write("src", "a file\n")
    (bench.top / "a.txt").unlink()
    bench.write("a.txt/inside", "x\n")
    made = bench.open("api", ["src/one.py", "src/two.py", "src", "a.txt", "a.txt/inside"])
    assert set(bench.tree(made.commit)) == {"src", "a.txt/inside", "docs/x"}
    assert not bench.merge(1).refused
    assert bench.git("status", "--porcelain") == ""


def test_a_file_where_others_have_a_folder_is_refused(bench):
    (bench.top / "src/one.py").unlink()
    (bench.top / "src/two.py").unlink()
    (bench.top / "src").rmdir()
    bench.write("src", "a file\n")
    with pytest.raises(RefusedError, match="src has the path of another author's folder"):
        bench.open("api", ["src"])


def test_what_no_commit_can_hold_is_left_out_and_said(bench):
    bench.write(".git/info/exclude", "build/\n")
    bench.write("build/x", "x\n")
    os.mkfifo(bench.top / "pipe")
    (bench.top / "linked").symlink_to(bench.top / "docs")
    inner = bench.top / "vendor"
    inner.mkdir()
    git(inner, "init", "-q")
    bench.write("vendor/x", "x\n")
    bench.write("src/one.py", "11\n")
    made = bench.open("api", ["build/x", "pipe", "linked/y", "vendor/x", "src/one.py"])
    assert made.pr.paths == ("src/one.py",)
    assert made.left_out == [
        ("linked/y", "linked is a symbolic link"),
        ("pipe", "it is neither a file nor a link"),
        ("vendor/x", "vendor is a repository of its own"),
    ]


def test_a_submodule_stays_as_it_is(bench, tmp_path):
    other = GitBench(tmp_path / "other")
    bench.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other.top), "sub")
    bench.git("commit", "-qm", "sub")
    before = bench.tree("HEAD")["sub"]
    bench.write("sub/a.txt", "changed\n")
    bench.write("src/one.py", "11\n")
    made = bench.open("api", ["sub/a.txt", "src/one.py"])
    assert bench.tree(made.commit)["sub"] == before
    assert made.pr.paths == ("src/one.py",)
    assert not bench.merge(1).refused


def test_in_a_sparse_checkout_what_is_not_there_stays_in_the_tree(bench):
    bench.git("sparse-checkout", "set", "--cone", "src")
    assert not (bench.top / "docs").exists()
    bench.write("src/one.py", "11\n")
    made = bench.open("api", ["src/one.py"])
    assert set(bench.tree(made.commit)) == {"a.txt", "docs/x", "src/one.py", "src/two.py"}
    bench.git("branch", "other", made.commit)
    assert not bench.merge(1).refused
    assert bench.git("status", "--porcelain") == ""
    assert not (bench.top / "docs").exists()


def test_a_merge_of_paths_that_are_not_checked_out_leaves_them_so(bench):
    bench.write("docs/x", "new\n")
    bench.open("api", ["docs/x"])
    bench.git("checkout", "-q", "docs/x")
    bench.git("sparse-checkout", "set", "--cone", "src")
    assert not bench.merge(1).refused
    assert bench.git("status", "--porcelain") == ""
    assert not (bench.top / "docs").exists()
    assert bench.tree("HEAD")["docs/x"][1] == "new\n"


def test_a_root_below_the_top_and_a_linked_worktree(tmp_path):
    bench = GitBench(tmp_path / "r", {"app/src/x": "1\n", "y": "y\n"}, root="app")
    bench.write("app/src/x", "2\n")
    made = bench.open("api", ["src/x"], only=("src",))
    assert made.pr.paths == ("app/src/x",)
    bench.git("worktree", "add", "-q", "-b", "other", str(tmp_path / "wt"))
    linked = GitBench.__new__(GitBench)
    linked.top = linked.root = tmp_path / "wt"
    from aipass.features.git.pr_records import PrRecords
    from aipass.features.git.repo import Repo

    linked.repo, linked.asked = Repo(linked.root, tmp_path / "scratch"), 100
    linked.records = PrRecords(linked.repo.shared)
    (linked.top / "y").write_text("yy\n")
    second = linked.open("web", ["y"])
    assert second.pr.id == 2
    assert second.pr.branch == "refs/heads/other"
    assert not linked.merge(2).refused
    assert git(linked.top, "status", "--porcelain") == ""
    assert git(bench.top, "log", "-1", "--format=%s").strip() == "first"


def test_while_a_branch_is_rebased_the_base_is_where_it_stood(bench):
    bench.git("checkout", "-q", "-b", "side")
    bench.write("docs/x", "side\n")
    bench.git("commit", "-qam", "side")
    bench.git("checkout", "-q", "main")
    bench.write("docs/x", "main\n")
    bench.git("commit", "-qam", "main")
    bench.git("checkout", "-q", "side")
    tip = bench.git("rev-parse", "side").strip()
    bench.git("rebase", "-q", "main", check=False)
    bench.write("src/one.py", "11\n")
    made = bench.open("api", ["src/one.py"])
    assert (made.pr.base, made.pr.branch) == (tip, "refs/heads/side")
    with pytest.raises(RefusedError, match="a rebase is in progress"):
        bench.merge(1)


def test_a_secret_on_a_new_line_is_refused_and_shown_to_nobody(bench):
    from aipass_plugins.secrets import find_secrets

    key = "ghp_" + "a1B2" * 9
    bench.write("src/one.py", f"1\ntoken = '{key}'\n")
    with pytest.raises(RefusedError, match=r"src/one\.py:2: GitHub Token") as caught:
        bench.open("api", ["src/one.py"], find_secrets=find_secrets)
    assert key not in str(caught.value)
    assert not bench.records.all()
    assert bench.open(
        "api", ["src/one.py"], find_secrets=find_secrets, searched=lambda path: path != "src/one.py"
    )
    bench.write("docs/x", "other\n")
    with pytest.raises(RefusedError, match="the PR's title or body: GitHub Token"):
        bench.open("api", ["docs/x"], f"Use {key}", find_secrets=find_secrets)
    bench.git("checkout", "-q", "docs/x")
    bench.merge(1)
    # What is there already is no news.
    bench.write("src/one.py", f"1\n\ntoken = '{key}'\nmore\n")
    assert bench.open("api", ["src/one.py"], find_secrets=find_secrets)


@pytest.mark.parametrize("join", [" ", "\n"], ids=["one line", "many lines"])
def test_in_a_file_that_is_full_of_what_looks_like_secrets_only_what_is_new_is_refused(bench, join):
    from aipass_plugins.secrets import find_secrets

    crowded = join.join(f"https://user:pass{number}@host/" for number in range(600))
    bench.write("src/one.py", crowded)
    bench.git("commit", "-qam", "There already")
    bench.write("src/one.py", "plain\n" + crowded)
    assert bench.open("api", ["src/one.py"], find_secrets=find_secrets)
    bench.write("src/one.py", crowded + "\nhttps://user:new@host/\n")
    with pytest.raises(RefusedError, match=r"src/one\.py"):
        bench.open("api", ["src/one.py"], find_secrets=find_secrets)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("AKIAIOSFODNN7EXAMPLE", "AWS Access Key"),
        ("-----BEGIN " + "RSA PRIVATE KEY-----", "Private Key"),
        ("sk-ant-" + "a1B2" * 10, "Anthropic or OpenAI key"),
        ("AIza" + "a1B2c" * 7, "Google API key"),
        ("https://user:hunter2secret@example.com/x", "Basic Auth Credentials"),
    ],
)
def test_find_secrets_knows_the_common_forms(text, kind):
    from aipass_plugins.secrets import find_secrets

    found = find_secrets(f"x\n  {text}\n")
    assert (2, kind) in {(one.line, one.kind) for one in found}
    assert all(isinstance(one, Secret) for one in found)


def test_find_secrets_takes_no_hash_for_a_key():
    from aipass_plugins.secrets import find_secrets

    text = (
        '"integrity": "sha512-'
        + "Ab3+" * 20
        + '",\nsha = "'
        + "0123456789abcdef" * 4
        + '"\npassword = input()\n'
    )
    assert find_secrets(text) == []


# -- merging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["merge", "squash", "ff"])
def test_a_merge_leaves_everything_else_as_it_is(bench, method):
    bench.write("src/one.py", "11\n")
    bench.write("src/new.py", "n\n", 0o755)
    (bench.top / "src/two.py").unlink()
    made = bench.open("api", ["src/one.py", "src/new.py", "src/two.py"])
    bench.write("a.txt", "a person is writing\n")
    bench.write("docs/staged", "staged\n")
    bench.git("add", "docs/staged")
    bench.write("docs/untracked", "u\n")
    assert not bench.merge(1, method=method).refused
    assert bench.git("status", "--porcelain").splitlines() == [
        " M a.txt",
        "A  docs/staged",
        "?? docs/untracked",
    ]
    parents = bench.git("log", "-1", "--format=%P").split()
    assert len(parents) == (2 if method == "merge" else 1)
    assert (bench.git("rev-parse", "HEAD").strip() == made.commit) is (method == "ff")
    assert bench.git("log", "-1", "--format=%an").strip() == ("Tess Ter" if method == "merge" else "api")
    assert bench.git("rev-parse", "refs/aipass/pr/1").strip() == made.commit
    bench.whole()


def test_working_files_that_were_put_back_are_written_by_the_merge(bench):
    bench.write("src/one.py", "11\n")
    bench.write("src/deep/er/new.py", "n\n")
    (bench.top / "docs/x").unlink()
    bench.open("api", ["src/one.py", "src/deep/er/new.py", "docs/x"])
    bench.git("stash", "-qu")
    assert not bench.merge(1).refused
    assert bench.git("status", "--porcelain") == ""
    assert bench.tree("HEAD") == bench.working()
    assert not (bench.top / "docs").exists()


@pytest.mark.parametrize("how", ["changed", "staged", "moved", "busy", "folder"])
def test_a_merge_refuses_where_somebody_has_changed_a_path_and_changes_nothing(bench, how):
    bench.write("src/one.py", "11\n")
    bench.write("src/two.py", "22\n")
    bench.open("api", ["src/one.py", "src/two.py"])
    busy = {}
    if how == "changed":
        bench.write("src/two.py", "a person's\n")
    elif how == "staged":
        bench.write("src/two.py", "staged\n")
        bench.git("add", "src/two.py")
        bench.write("src/two.py", "22\n")
    elif how == "busy":
        bench.git("checkout", "-q", "src/two.py")
        busy = {"src/two.py": "run 9 of web is writing it"}
    elif how == "folder":
        (bench.top / "src/two.py").unlink()
        bench.write("src/two.py/x", "x\n")
    before, working = bench.untouched(), bench.working()
    if how == "moved":
        from aipass.features.git.pr_merge import Merger

        merger = Merger(bench.repo, bench.records)
        ready = merger.prepare([bench.records.get(1)], "merge", "test")
        bench.git("commit", "-q", "--allow-empty", "-m", "between")
        before = bench.untouched()
        with (
            Lease(bench.repo.shared).hold("t", "t") as held,
            pytest.raises(RefusedError, match="main has moved"),
        ):
            merger.apply(ready, held, busy.get)
    else:
        with pytest.raises(RefusedError, match=r"src/two\.py"):
            bench.merge(1, busy=busy.get)
    assert bench.untouched() == before
    assert bench.working() == working
    assert bench.records.get(1).state == "open"
    bench.whole()


def test_conflicts_are_refused_with_the_paths_and_the_others_merged(bench):
    bench.write("src/one.py", "by api\n")
    bench.open("api", ["src/one.py"])
    bench.write("docs/x", "by web\n")
    bench.open("web", ["docs/x"])
    bench.write("src/one.py", "by a person\n")
    bench.git("commit", "-qm", "person", "src/one.py")
    ready = bench.merge(1, 2)
    assert ready.refused[1].startswith("it conflicts with main in src/one.py; ")
    assert [pr.state for pr in bench.records.all()] == ["open", "merged"]
    assert bench.git("status", "--porcelain") == ""


def test_nothing_is_merged_into_no_branch(bench):
    bench.write("src/one.py", "11\n")
    bench.open("api", ["src/one.py"])
    bench.git("checkout", "-q", "--detach")
    with pytest.raises(RefusedError, match="HEAD is on no branch"):
        bench.merge(1)


def test_a_merge_waits_for_the_index_and_says_who_has_it(bench, monkeypatch):
    from aipass.features.git import indexlock

    monkeypatch.setattr(indexlock, "WAIT_S", 0.1)
    bench.write("src/one.py", "11\n")
    bench.open("api", ["src/one.py"])
    lock = bench.top / ".git/index.lock"
    lock.write_text("")
    with pytest.raises(RefusedError, match="another git command is running"):
        bench.merge(1)
    assert lock.exists()
    assert bench.records.get(1).state == "open"


KILLED = """
import os, sys
sys.path[:0] = {path!r}
from aipass.features.git import tree
from aipass.features.git import pr_merge as merge
from aipass.features.git import indexlock
from aipass.features.git.repo import Repo
from git_kit import GitBench
from pathlib import Path
step = int(sys.argv[1])
count = 0
def die_at(work):
    def wrapped(*args, **kwargs):
        global count
        count += 1
        if count == step:
            os.kill(os.getpid(), 9)
        return work(*args, **kwargs)
    return wrapped
bench = GitBench.__new__(GitBench)
bench.top = bench.root = Path({top!r})
bench.repo = Repo(bench.root, bench.top / ".git/test-scratch")
from aipass.features.git.pr_records import PrRecords
bench.records = PrRecords(bench.repo.shared)
os.rename, os.replace, os.unlink = die_at(os.rename), die_at(os.replace), die_at(os.unlink)
Repo.run = die_at(Repo.run)
bench.merge(1, 2)
print("done", count)
"""


@pytest.mark.slow
def test_a_merge_that_is_killed_at_any_step_is_finished_or_undone(tmp_path):
    here = str(KITS)
    # Every third step, from another one each time; all of them in `make nightly`.
    stride = rounds(3, 1)
    step, seen = random.randrange(stride) - stride + 1, set()
    while True:
        step += stride
        bench = GitBench(tmp_path / f"r{step}", {"a": "a\n", "b": "b\n", "c": "c\n"})
        bench.write("a", "A\n")
        bench.write("new/n", "n\n")
        bench.open("api", ["a", "new/n"])
        bench.write("b", "B\n")
        (bench.top / "c").unlink()
        bench.open("web", ["b", "c"])
        bench.git("checkout", "-q", "a")
        before, working = bench.tree("HEAD"), bench.working()
        code = KILLED.format(path=[here], top=str(bench.top))
        done = subprocess.run(
            [sys.executable, "-c", code, str(step)], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
        from aipass.features.git.pr_merge import Merger

        Merger(bench.repo, bench.records).recover()
        for left in bench.repo.scratch.glob("index-*"):
            left.unlink()
        states = {pr.state for pr in bench.records.all()}
        assert len(states) == 1
        seen |= states
        if states == {"merged"}:
            assert bench.git("status", "--porcelain") == "", step
            assert bench.tree("HEAD") == bench.working()
        else:
            assert bench.tree("HEAD") == before
            assert bench.working() == working, step
            assert not bench.merge(1, 2).refused
            assert bench.git("status", "--porcelain") == ""
        bench.whole()
    assert seen == {"open", "merged"}
    assert step > 10


def test_a_request_that_is_carried_out_again_makes_no_second_pr(bench):
    bench.write("src/one.py", "11\n")
    first = bench.open("api", ["src/one.py"], asked=7)
    bench.git("update-ref", "-d", first.pr.ref)  # as if it had been killed before
    again = bench.open("api", ["src/one.py"], asked=7)
    assert again.pr.id == first.pr.id
    assert bench.git("rev-parse", first.pr.ref).strip() == first.commit
    assert len(bench.records.all()) == 1


def test_a_closed_pr_keeps_its_commits(bench):
    from aipass.features.git.pr_merge import Merger

    bench.write("src/one.py", "11\n")
    made = bench.open("api", ["src/one.py"])
    with Lease(bench.repo.shared).hold("t", "t") as held:
        Merger(bench.repo, bench.records).close(made.pr, "not wanted", held)
    assert bench.records.get(1).state == "closed"
    assert bench.git("rev-parse", "refs/aipass/pr/1").strip() == made.commit
    assert bench.git("for-each-ref", "refs/heads/aipass") == ""
    assert bench.open("api", ["src/one.py"]).pr.id == 2


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Add login", "add-login"),
        ("  Füge ‘Login’ hinzu!  ", "fuge-login-hinzu"),
        ("日本語", "pr"),
        ("draft", "pr"),
        ("x" * 100, "x" * 48),
        ("../../evil.lock", "evil-lock"),
    ],
)
def test_a_title_becomes_a_branch_name(title, name):
    assert slug(title) == name


def test_a_pr_says_which_of_its_files_other_programs_run_code_out_of(tmp_path):
    bench = GitBench(tmp_path / "r")
    for path in (".vscode/tasks.json", "package.json", "src/plain.txt"):
        bench.write(path, "{}\n")
    opened = bench.open("api", [".vscode/tasks.json", "package.json", "src/plain.txt"])
    told = opened.told()
    assert "runs code: .vscode/tasks.json: " in told
    assert "runs code: package.json: " in told
    assert "plain.txt" not in told
