"""Git hooks in the set-ups that people have: installed, fired by the real git, taken away; git's work always goes on."""

import fcntl
import os
import shlex
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aipass.errors import ConfigError
from aipass.git import hooks, hooktext
from aipass.git.query import no_repository

#: Left out of the inner loop (`make fast`): each test has processes, or waits for the kernel to tell.
pytestmark = pytest.mark.slow

GIT = shutil.which("git") or "git"  # by its path: one test takes PATH away
NEW = '#!/bin/sh\necho "$0 $* $(cat)" >> ran.txt\nexit 0\n'


class Repo:
    """A repository with one commit."""

    def __init__(self, root, *words):
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.git("init", "-q", "-b", "main", *words)
        (root / "aipass.toml").write_text("")

    def git(self, *words, check=True, cwd=None, **env):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        clean |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "EMAIL": "a@b.c", **env}
        return subprocess.run(
            [GIT, "-c", "user.name=A B", *words], cwd=cwd or self.root, env=clean, capture_output=True, text=True, check=check
        )  # fmt: skip

    def commit(self, name="file", **more):
        (self.root / name).write_text(name)
        self.git("add", name)
        return self.git("commit", "-q", "-m", f"Add {name}", **more)

    def put(self, path, text=NEW, mode=0o755):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    @property
    def spool(self):
        return self.root / ".aipass/spool"

    def install(self):
        return hooks.install(self.root, self.spool)

    def told(self, name):
        """Whether a hook has told something since this was asked last."""
        path = self.spool / hooktext.SPOOL / name
        if not path.exists():
            return False
        assert path.read_bytes() == b""
        path.unlink()
        return True


def states(found):
    """Of those that everybody gets."""
    return {hook.state for hook in found if hook.name in hooktext.HOOKS}


def listing(folder):
    """All that is there, exactly."""
    return {
        path.name: (stat.S_IMODE(path.lstat().st_mode), os.readlink(path) if path.is_symlink() else path.read_bytes(), path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }  # fmt: skip


@pytest.fixture
def repo(tmp_path):
    return Repo((tmp_path / "a repo, 'quoted' $HOME").resolve())


def test_each_hook_tells(repo):
    found = {hook.name: hook.state for hook in repo.install()}
    assert {found[name] for name in hooktext.HOOKS} == {"installed"}
    # Git LFS writes its own where none is, and git starts the other ten times a commit.
    assert {found[name] for name in hooktext.FORMER} == {"missing"}
    repo.commit()
    assert repo.told("post-commit")
    repo.git("checkout", "-q", "-b", "other")
    assert repo.told("post-checkout")
    repo.commit("second")
    repo.git("commit", "-q", "--amend", "-m", "Second")
    assert repo.told("post-rewrite")
    repo.git("checkout", "-q", "main")
    repo.git("merge", "-q", "--no-ff", "-m", "Merge", "other")
    assert repo.told("post-merge")
    assert sorted(os.listdir(repo.root / ".git/hooks")) == sorted(
        {*hooktext.HOOKS, *(one for one in os.listdir(repo.root / ".git/hooks") if one.endswith(".sample"))}
    )


@pytest.mark.parametrize("name", hooktext.HOOKS)
def test_the_hook_that_was_there_runs_as_before_and_comes_back_byte_for_byte(repo, name, tmp_path):
    where = repo.root / ".git/hooks"
    repo.put(where / name)
    before = listing(where)
    repo.install()
    there = Repo(tmp_path / "there.git", "--bare")
    repo.commit()
    repo.git("commit", "-q", "--amend", "-m", "x")
    repo.git("checkout", "-q", "-b", "other")
    repo.commit("second")
    repo.git("checkout", "-q", "main")
    repo.git("merge", "-q", "--no-ff", "-m", "Merge", "other")
    repo.git("push", "-q", str(there.root), "main")
    ran = (repo.root / "ran.txt").read_text()
    assert name in ran
    if name == "pre-push":
        assert f"{there.root} {there.root} refs/heads/main" in ran
    assert repo.told(name)
    hooks.uninstall(repo.root)
    assert listing(where) == before
    assert not (repo.root / ".git/aipass/roots").exists()


@pytest.mark.parametrize("name", ["pre-push", "reference-transaction"])
def test_the_status_of_the_hook_that_was_there_is_the_hooks(repo, name, tmp_path):
    there = Repo(tmp_path / "there.git", "--bare")
    repo.commit()
    repo.put(repo.root / ".git/hooks" / name, "#!/bin/sh\necho no >&2\nexit 1\n")
    repo.install()
    if name == "pre-push":
        done = repo.git("push", "-q", str(there.root), "main", check=False)
    else:
        done = repo.git("branch", "x", check=False)
    assert done.returncode != 0
    assert "no" in done.stderr


def test_a_hook_that_git_would_not_run_is_not_run(repo):
    where = repo.root / ".git/hooks"
    repo.put(where / "post-commit", mode=0o644)
    before = listing(where)
    repo.install()
    repo.commit()
    assert not (repo.root / "ran.txt").exists()
    hooks.uninstall(repo.root)
    assert listing(where) == before


def test_a_hook_that_is_a_link_comes_back_as_one(repo):
    real = repo.put(repo.root / "scripts/hook")
    where = repo.root / ".git/hooks"
    (where / "post-commit").symlink_to("../../scripts/hook")
    repo.install()
    repo.commit()
    assert "post-commit" in (repo.root / "ran.txt").read_text()
    hooks.uninstall(repo.root)
    assert os.readlink(where / "post-commit") == "../../scripts/hook"
    assert real.read_text() == NEW


@pytest.mark.parametrize("where", [".husky/_", ".githooks", "/absolute"])
def test_hooks_lie_where_git_looks_for_them(repo, where, tmp_path):
    path = tmp_path / "shared hooks" if where == "/absolute" else repo.root / where
    repo.put(path / "post-commit")
    repo.git("config", "core.hooksPath", str(path) if where == "/absolute" else where)
    repo.install()
    repo.commit()
    assert repo.told("post-commit")
    assert "post-commit" in (repo.root / "ran.txt").read_text()
    hooks.uninstall(repo.root)
    assert sorted(one.name for one in path.iterdir()) == ["post-commit"]


def test_every_worktree_that_is_a_root_is_told(repo, tmp_path):
    repo.commit()
    other = Repo.__new__(Repo)
    other.root = (tmp_path / "other").resolve()
    repo.git("worktree", "add", "-q", str(other.root), "-b", "side")
    repo.install()
    other.install()
    other.commit("there")
    assert repo.told("post-commit")
    assert other.told("post-commit")
    hooks.uninstall(other.root)
    assert states(hooks.status(repo.root)) == {"installed"}, "the first root still wants them"
    hooks.uninstall(repo.root)
    assert states(hooks.status(repo.root)) == {"missing"}


def test_in_a_submodule_and_in_a_bare_repository(repo, tmp_path):
    inner = Repo(tmp_path / "inner")
    inner.commit()
    repo.commit()
    repo.git("-c", "protocol.file.allow=always", "submodule", "add", "-q", str(inner.root), "sub")
    sub = Repo.__new__(Repo)
    sub.root = repo.root / "sub"
    sub.install()
    sub.commit("x")
    assert sub.told("post-commit")
    bare = Repo(tmp_path / "bare.git", "--bare")
    bare.install()
    repo.git("push", "-q", str(bare.root), "main")
    assert bare.git("log", "--format=%s", "main").stdout


HUSKY = '#!/usr/bin/env sh\n. "$(dirname "$0")/h"'
H = 'n=$(basename "$0")\ns=$(dirname "$(dirname "$0")")/$n\n[ ! -f "$s" ] && exit 0\nsh -e "$s" "$@"\nexit $?\n'


def test_huskys_hooks_find_their_own_by_their_name_as_before(repo, tmp_path):
    there = Repo(tmp_path / "there.git", "--bare")
    repo.commit()
    repo.put(repo.root / ".husky/_/h", H, 0o644)
    for name in ("pre-push", "post-commit"):
        repo.put(repo.root / ".husky/_" / name, HUSKY)
    repo.put(repo.root / ".husky/pre-push", "exit 1\n", 0o644)
    repo.put(repo.root / ".husky/post-commit", 'echo "$0 $*" > ran.txt\n', 0o644)
    repo.git("config", "core.hooksPath", ".husky/_")
    repo.install()
    repo.commit("second")
    assert (repo.root / "ran.txt").read_text().startswith(".husky/post-commit")
    assert repo.git("push", "-q", str(there.root), "main", check=False).returncode != 0


@pytest.mark.parametrize("what", ["a pipe", "a link"])
def test_whatever_stands_where_a_note_goes_is_left_alone(repo, what):
    repo.install()
    victim = repo.root / "victim"
    victim.write_text("precious")
    note = repo.spool / "git/post-commit"
    if what == "a pipe":
        os.mkfifo(note)
    else:
        note.symlink_to(victim)
    assert repo.commit().returncode == 0
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("missing", ["spool", "roots", "environment"])
def test_git_works_on_whatever_is_missing(repo, missing):
    repo.install()
    if missing == "spool":
        subprocess.run(["rm", "-rf", repo.root / ".aipass"], check=True)
    elif missing == "roots":
        (repo.root / ".git/aipass/roots").unlink()
    done = repo.commit(
        **({"PATH": "/nonexistent", "HOME": "/nonexistent"} if missing == "environment" else {})
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
    if missing == "environment":
        assert repo.told("post-commit")


def test_what_cannot_be_told_is_no_error_of_gits(repo):
    repo.install()
    (repo.spool / "git").rmdir()
    (repo.spool / "git").write_text("a file in its place")
    done = repo.commit()
    assert (done.returncode, done.stderr) == (0, "")


def test_what_somebody_has_put_in_its_place_is_theirs(repo):
    where = repo.root / ".git/hooks"
    repo.put(where / "post-commit", "#!/bin/sh\n# of before\n")
    repo.install()
    repo.put(where / "post-commit", "#!/bin/sh\n# anew\n")
    (hook,) = [hook for hook in hooks.status(repo.root) if hook.name == "post-commit"]
    assert (hook.state, hook.chained) == ("replaced", True)
    hooks.uninstall(repo.root)
    assert "anew" in (where / "post-commit").read_text()
    assert "of before" in (where / "post-commit.before-aipass").read_text(), "nothing is lost"
    repo.install()
    assert states(hooks.status(repo.root)) == {"installed"}
    assert "anew" in (where / "post-commit.before-aipass").read_text(), (
        "what git would run now is what is called"
    )
    assert "of before" in (where / "post-commit.before-aipass.1").read_text(), "nothing is lost"
    hooks.uninstall(repo.root)
    assert "anew" in (where / "post-commit").read_text()


MANAGED = (
    '#!/bin/sh\n# of a manager\n[ ! -x "$0.legacy" ] || "$0.legacy" "$@" || exit\necho "ran" >> ran.txt\n'
)


def manager(where, *, legacy):
    """What managers of hooks do at each `npm install` or `make setup`: write theirs, and (pre-commit) keep another's as NAME.legacy."""
    for name in hooktext.ALL:
        path = where / name
        if legacy and path.exists() and "of a manager" not in path.read_text():
            path.rename(where / f"{name}.legacy")
        path.write_text(MANAGED)
        path.chmod(0o755)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("again", ["nobody", "us", "both"])
@pytest.mark.slow
def test_a_manager_of_hooks_may_come_before_after_and_between(repo, legacy, again):
    where = repo.root / ".git/hooks"
    manager(where, legacy=legacy)
    before = {name: entry[:2] for name, entry in listing(where).items()}
    hooks.install(repo.root, repo.spool, hooktext.ALL)
    manager(where, legacy=legacy)
    if again != "nobody":
        repo.install()
        assert states(hooks.status(repo.root)) == {"installed"}
    if again == "both":
        manager(where, legacy=legacy)
        repo.install()
    done = repo.commit("two", check=False)
    assert done.returncode == 0, done.stderr
    assert (repo.root / "ran.txt").read_text().count("ran") < 40, "no hook calls itself"
    if again != "nobody":
        assert repo.told("post-commit")
    elif not legacy:
        assert "replaced" in states(hooks.status(repo.root))
    hooks.uninstall(repo.root)
    assert {name: entry[:2] for name, entry in listing(where).items()} == before
    assert repo.commit("three", check=False).returncode == 0


def test_a_hook_that_is_gone_with_what_it_called_is_said_and_mended(repo):
    where = repo.root / ".git/hooks"
    repo.put(where / "post-commit")
    repo.install()
    (where / "post-commit").unlink()
    assert "lost" in states(hooks.status(repo.root))
    repo.install()
    assert states(hooks.status(repo.root)) == {"installed"}
    (where / "post-commit").unlink()
    hooks.uninstall(repo.root)
    assert (where / "post-commit").read_text() == NEW, "what stood there before is back"


def test_a_folder_of_hooks_that_repositories_share_tells_all_of_them(tmp_path):
    shared = tmp_path / "shared"
    one, two = Repo(tmp_path / "one"), Repo(tmp_path / "two")
    for repo in (one, two):
        repo.git("config", "core.hooksPath", str(shared))
        repo.install()
    assert hooks.is_shared(one.root)
    for repo in (one, two):
        assert states(hooks.status(repo.root)) == {"installed"}
        repo.commit()
        assert repo.told("post-commit")
    hooks.uninstall(one.root)
    two.told("post-commit")
    two.commit("more")
    assert two.told("post-commit"), "the other still wants them"
    hooks.uninstall(two.root)
    assert not [path for path in shared.rglob("*") if path.is_file()]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_repository_of_another_owner_is_named_as_such(repo):
    os.chown(repo.root, 12345, 12345)
    os.chown(repo.root / ".git", 12345, 12345)
    said = no_repository(repo.root)
    assert "another user owns it" in said
    assert f"--add safe.directory {shlex.quote(str(repo.root))}" in said
    (repo.root / "inner").mkdir()
    assert no_repository(repo.root / "inner") == said
    assert "git init" not in said


def test_installing_twice_is_installing_once_and_mends_what_was_edited(repo):
    repo.put(repo.root / ".git/hooks/post-commit")
    repo.install()
    before = listing(repo.root / ".git/hooks")
    repo.install()
    assert listing(repo.root / ".git/hooks") == before
    path = repo.root / ".git/hooks/post-merge"
    path.write_text(path.read_text().replace("_aipass_note", "_other"))
    assert [hook.name for hook in hooks.status(repo.root) if hook.state == "changed"] == ["post-merge"]
    repo.install()
    assert states(hooks.status(repo.root)) == {"installed"}


def test_without_a_repository_it_says_so(tmp_path):
    with pytest.raises(ConfigError, match="is not in a git repository"):
        hooks.install(tmp_path, tmp_path / "spool")


def test_a_root_with_a_newline_is_refused(tmp_path):
    repo = Repo(tmp_path / "two\nlines")
    with pytest.raises(ConfigError, match="contains a newline"):
        repo.install()


def test_hooks_that_ask_are_written_only_for_those_who_want_them_and_never_block_without_aipass(
    repo, tmp_path
):
    own = repo.put(repo.root / ".git/hooks/pre-commit", "#!/bin/sh\necho own >> ran.txt\n")
    repo.install()
    assert (repo.root / ".git/hooks/pre-commit").read_bytes() == own.read_bytes()
    hooks.install(repo.root, repo.spool, hooktext.ALL)
    assert states(hooks.status(repo.root)) == {"installed"}
    for name in (hooktext.GUARD, hooktext.TRAILERS):
        path = repo.root / f".git/hooks/{name}"
        text = path.read_text()
        assert "-m aipass git" in text
        # Another Python, without aipass; one that is not there; one that is broken.
        for other in (shutil.which("true"), str(tmp_path / "gone"), shutil.which("false")):
            path.write_text(text.replace(shlex.quote(sys.executable), other))
            repo.commit(f"with-{name}-{os.path.basename(other)}")
        path.write_text(text)
    assert repo.git("log", "--format=%s").stdout.count("Add with-") == 6
    assert (repo.root / "ran.txt").read_text() == "own\n" * 6
    hooks.uninstall(repo.root)
    assert sorted(os.listdir(repo.root / ".git/hooks")) == sorted(
        {*os.listdir(repo.root / ".git/hooks")} - {"commit-msg"}
    )
    assert (repo.root / ".git/hooks/pre-commit").read_text() == "#!/bin/sh\necho own >> ran.txt\n"


def test_a_hook_of_before_that_refuses_is_obeyed_by_those_that_ask(repo):
    repo.put(repo.root / ".git/hooks/pre-commit", "#!/bin/sh\nexit 7\n")
    repo.put(repo.root / ".git/hooks/commit-msg", '#!/bin/sh\ngrep -q Add "$1"\n')
    hooks.install(repo.root, repo.spool, hooktext.ALL)
    (repo.root / "x").write_text("x")
    repo.git("add", "x")
    assert repo.git("commit", "-qm", "Add x", check=False).returncode
    hook = repo.root / ".git/hooks/pre-commit"
    hook.write_text(hook.read_text().replace("exit 7", ""))
    assert repo.git("commit", "-qm", "x", check=False).returncode
    repo.git("commit", "-qm", "Add x")


@pytest.mark.parametrize("name", ["pre-push", hooktext.GUARD, hooktext.TRAILERS])
@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_a_hook_of_before_that_ends_at_its_first_failure_still_refuses(repo, name, shell, tmp_path):
    """`/bin/sh` is bash on Fedora, Arch and macOS: left of `||` it knows no `set -e`."""
    there = shutil.which(shell)
    if there is None:
        pytest.skip(f"there is no {shell} here")
    sh = tmp_path / "sh"
    sh.symlink_to(there)
    before = repo.put(repo.root / ".git/hooks" / name, f"#!{sh}\nset -e\nfalse\necho went on >> ran.txt\n")
    hooks.install(repo.root, repo.spool, hooktext.ALL)
    ours = before.read_text()
    before.write_text(ours.replace("#!/bin/sh", f"#!{sh}", 1))
    done = subprocess.run(
        [str(before), "x"],
        cwd=repo.root,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1, done.stderr
    assert not (repo.root / "ran.txt").exists()


def test_a_program_that_is_several_hooks_knows_by_its_name_which(repo):
    program = repo.put(
        repo.root / "hook.py",
        f"#!{sys.executable}\nimport os, sys\nname = os.path.basename(sys.argv[0])\n"
        "open('names.txt', 'a').write(name + '\\n')\nsys.exit(name not in {'pre-commit', 'post-commit', 'commit-msg'})\n",
    )
    for name in ("pre-commit", "post-commit"):
        (repo.root / ".git/hooks" / name).unlink(missing_ok=True)
        (repo.root / ".git/hooks" / name).symlink_to(program)
    before = listing(repo.root / ".git/hooks")
    hooks.install(repo.root, repo.spool, hooktext.ALL)
    repo.commit("one")
    assert (repo.root / "names.txt").read_text().split() == ["pre-commit", "post-commit"]
    hooks.uninstall(repo.root)
    assert listing(repo.root / ".git/hooks") == before


def test_hooks_that_were_written_before_hooks_path_came_go_as_well(repo):
    before = listing(repo.root / ".git/hooks")
    repo.install()
    (repo.root / "team").mkdir()
    repo.git("config", "core.hooksPath", "team")
    hooks.uninstall(repo.root)
    assert listing(repo.root / ".git/hooks") == before
    assert not list((repo.root / "team").iterdir())


FINDING = {
    "by $0": '#!/bin/sh\n. "$(dirname "$0")/lib.sh"\nsay "$(basename "$0")"\n',
    "by $0, resolved": '#!/bin/sh\n. "$(dirname "$(readlink -f "$0")")/lib.sh"\nsay "$(basename "$0")"\n',
    "by two folders above": '#!/bin/sh\n. "$(dirname "$0")/../../scripts/lib.sh"\nsay "$(basename "$0")"\n',
    "by BASH_SOURCE": '#!/usr/bin/env bash\n. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/lib.sh"\nsay "$(basename "$0")"\n',
    "by the place git tells": '#!/bin/sh\n. "$(git rev-parse --git-path hooks)/lib.sh"\nsay "$(basename "$0")"\n',
    "by __file__": "#!/usr/bin/env python3\nimport os, subprocess, sys\nhere = os.path.dirname(os.path.abspath(__file__))\n"
    "sys.exit(subprocess.call(['sh', '-c', '. \"$1\"/lib.sh; say \"$2\"', 'x', here, sys.argv[0]]))\n",
    "by __file__, resolved": "#!/usr/bin/env python3\nimport pathlib, subprocess, sys\nhere = pathlib.Path(__file__).resolve().parent\n"
    "sys.exit(subprocess.call(['sh', '-c', '. \"$1\"/lib.sh; say \"$2\"', 'x', str(here), sys.argv[0]]))\n",
    "without a shebang": '. "${0%/*}/lib.sh"\nsay "$(basename "$0")"\n',
}


@pytest.mark.parametrize("how", FINDING)
@pytest.mark.parametrize("what", ["a file", "a link"])
def test_a_hook_of_before_finds_its_files_and_its_name_as_before(repo, how, what):
    if "BASH" in how and shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    where, scripts = repo.root / ".git/hooks", repo.root / "scripts"
    lib = 'say() { echo "said ${1##*/}" >> ran.txt; exit 7; }\n'
    for folder in (where, scripts):
        repo.put(folder / "lib.sh", lib)
    if what == "a file":
        repo.put(where / "pre-commit", FINDING[how])
    else:
        repo.put(scripts / "pre-commit", FINDING[how])
        (where / "pre-commit").symlink_to("../../scripts/pre-commit")
    before = listing(where)
    results = []
    for _ in range(2):
        status = repo.commit("one", check=False).returncode
        results.append((status, (repo.root / "ran.txt").read_text()))
        (repo.root / "ran.txt").unlink()
        hooks.install(repo.root, repo.spool, hooktext.ALL)
    assert results == [(1, "said pre-commit\n")] * 2
    assert not [name for name in repo.git("status", "--porcelain").stdout.split() if "before-aipass" in name]
    hooks.uninstall(repo.root)
    assert listing(where) == before
    assert not hooks._mirror(where).exists()


def test_a_check_that_asks_whether_it_is_sourced_is_made(repo):
    text = '#!/bin/bash\n(return 0 2>/dev/null) && sourced=1\n[ -n "$sourced" ] || exit 5\n'
    repo.put(repo.root / ".git/hooks/pre-commit", text)
    repo.put(
        repo.root / ".git/hooks/commit-msg", "#!/bin/sh\n## words\ngrep -c '^## words' \"$0\" >> ran.txt\n"
    )
    hooks.install(repo.root, repo.spool, hooktext.ALL)
    assert repo.commit("one", check=False).returncode == 1
    edited = (repo.root / ".git/hooks/pre-commit").read_text().replace("exit 5", "exit 0")
    (repo.root / ".git/hooks/pre-commit").write_text(edited)
    assert states(hooks.status(repo.root)) == {"installed"}, "theirs is theirs to change"
    repo.commit("two")
    hooks.uninstall(repo.root)
    assert (repo.root / ".git/hooks/pre-commit").read_text() == text.replace("exit 5", "exit 0")
    assert not (repo.root / ".git/hooks/pre-commit.before-aipass").exists()
    assert (repo.root / "ran.txt").read_text() == "1\n", "it reads its own text"


def test_what_is_put_beside_a_hook_later_is_found_and_its_name_is_the_same_resolved(repo):
    where = repo.root / ".git/hooks"
    for name in ("pre-commit", "commit-msg"):
        repo.put(
            where / name,
            '#!/bin/sh\nfor check in "$0".d/* "$(dirname "$0")"/check-*; do [ ! -x "$check" ] || "$check" || exit; done\n'
            'echo "$(basename "$(realpath "$0")")" >> ran.txt\n',
        )
    hooks.install(repo.root, repo.spool, hooktext.ALL)
    repo.commit("one")
    assert (repo.root / "ran.txt").read_text().split() == ["pre-commit", "commit-msg"]
    check = repo.put(where / "pre-commit.d/late", "#!/bin/sh\nexit 6\n")
    assert repo.commit("two", check=False).returncode == 1
    check.rename(where / "check-late")
    assert repo.commit("two", check=False).returncode == 1


READING_ITSELF = {
    "the rest by another shell": '#!/bin/sh\ntail -n +4 "$0" | sh; exit $?\n\nexit 6\n',
    "python, by quotes": "#!/bin/sh\n'''exec' python3 \"$0\" \"$@\"\n' '''\nimport sys\nsys.exit(6)\n",
    "python, by words": '#!/bin/sh\n"exec" "python3" "$0" "$@"\nimport sys\nsys.exit(6)\n',
    "words in it": '#!/bin/sh\n[ "$(grep -c \'^## two\' "$0")" = 1 ] && exit 6\n## two\n',
    "told what is read": "#!/bin/sh -x\nexit 6\n",
    "one line without an end": "#!/bin/sh",
    "an end that is missing": "#!/bin/sh\n# x\nexit 6",
    "nounset": '#!/bin/bash -eu\n[ "${1-none}" = none ] || exit 1\nexit 6\n',
}


@pytest.mark.parametrize("how", READING_ITSELF)
def test_whatever_form_a_hook_has_it_does_what_it_did_and_comes_back(repo, how):
    where = repo.root / ".git/hooks"
    repo.put(where / "pre-commit", READING_ITSELF[how], mode=0o700)
    before, results = listing(where), []
    for number in range(3):
        results.append(repo.commit(f"n{number}", check=False).returncode)
        hooks.install(repo.root, repo.spool, hooktext.ALL)
        assert states(hooks.status(repo.root)) == {"installed"}
    assert len(set(results)) == 1, results
    hooks.uninstall(repo.root)
    hooks.uninstall(repo.root)
    assert listing(where) == before


@pytest.mark.parametrize("verb", ["install", "uninstall"])
def test_a_hook_with_ours_in_it_whose_copy_is_gone_loses_nothing(repo, verb):
    where = repo.root / ".git/hooks"
    mine = "#!/bin/sh\nexit 6\n"
    repo.put(where / "pre-commit", mine)
    hooks.install(repo.root, repo.spool, hooktext.ALL)
    (where / "pre-commit.before-aipass").unlink()
    if verb == "install":
        hooks.install(repo.root, repo.spool, hooktext.ALL)
        assert repo.commit("one", check=False).returncode == 1
    hooks.uninstall(repo.root)
    assert (where / "pre-commit").read_text() == mine
    assert not (where / "pre-commit.before-aipass").exists()


def test_who_only_speaks_of_us_is_no_hook_of_ours_and_lines_in_ours_are_kept(repo):
    where = repo.root / ".git/hooks"
    mine = "#!/bin/sh\n# Made by aipass, no: by me\nexit 6\n"
    repo.put(where / "pre-commit", mine)
    hooks.install(repo.root, repo.spool, hooktext.ALL)
    assert repo.commit("one", check=False).returncode == 1
    hooks.uninstall(repo.root)
    assert (where / "pre-commit").read_text() == mine


@pytest.mark.parametrize("name", ["post-commit", "pre-commit", "commit-msg"])
def test_lines_that_come_behind_ours_run_and_stay(repo, name):
    """As `git lfs update --manual` says, or a person does with `>>`."""
    where = repo.root / ".git/hooks"
    hooks.install(repo.root, repo.spool, hooktext.ALL)
    with (where / name).open("a") as ours:
        ours.write("echo mine >> ran.txt\n" + ("exit 5\n" if name != "post-commit" else ""))
    refused = repo.commit("one", check=False).returncode
    assert (repo.root / "ran.txt").read_text() == "mine\n"
    assert bool(refused) == (name != "post-commit")
    hooks.install(repo.root, repo.spool, hooktext.ALL)
    assert "echo mine" in (where / name).read_text()
    assert {hook.name: hook.state for hook in hooks.status(repo.root)}[name] == "installed"
    hooks.uninstall(repo.root)
    assert (where / name).read_text().startswith("#!/bin/sh\necho mine")
    assert [one for one in os.listdir(where) if "aipass" in one] == []


LINES = ("echo mine", "if [ -f x ]; then exit 1; fi", "for f in *; do echo $f; done", "case x in x) exit 1;; esac", "exit 3", "set -x", "{ echo x; }",
         "(echo x)", "./tools/aipass-notify", "# made by aipass, no: by me")  # fmt: skip


@pytest.mark.parametrize(
    ("line", "kind", "then"),
    [
        *((line, "alone", "both") for line in LINES),
        *(
            ("echo mine", kind, then)
            for kind in ("alone", "a program", "in the tree")
            for then in ("install", "uninstall", "both")
        ),
    ],
)
def test_no_line_that_somebody_puts_into_a_hook_of_ours_is_lost(repo, line, kind, then):
    where = repo.root / ".git/hooks"
    if kind == "a program":
        repo.put(where / "post-commit", f"#!{sys.executable}\n")
    elif kind == "in the tree":
        repo.put(repo.root / ".githooks/other", "#!/bin/sh\n")
        repo.git("config", "core.hooksPath", ".githooks")
        where = repo.root / ".git/aipass/hooks"
    repo.install()
    lines = (where / "post-commit").read_text().splitlines()
    (where / "post-commit").write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    if then != "uninstall":
        repo.install()
    if then != "install":
        hooks.uninstall(repo.root)
    kept = [path.name for path in where.iterdir() if line in path.read_text().splitlines()]
    assert kept == ["post-commit.before-aipass.edited"]


@pytest.mark.parametrize(
    "target", ["post-commit", "./post-commit", "../hooks/post-commit", "{where}/post-commit"]
)
@pytest.mark.parametrize("path", [None, "{root}/../gh", "{root}/../gh/"])
def test_a_link_to_a_program_beside_it_is_started_by_its_own_name(repo, target, path):
    where = repo.root / ".git/hooks"
    if path is not None:
        where = repo.root.parent / "gh"
        repo.git("config", "core.hooksPath", path.format(root=repo.root))
        target = target.replace("../hooks", "../gh")
    program = f"#!{sys.executable}\nimport os, sys\nopen('ran.txt', 'a').write(os.path.basename(sys.argv[0]) + '\\n')\n"
    repo.put(where / "post-commit", program)
    (where / "post-checkout").symlink_to(target.format(where=where))

    def ran():
        (repo.root / "ran.txt").unlink(missing_ok=True)
        repo.git("commit", "-q", "--allow-empty", "-m", "x")
        repo.git("checkout", "-q", "-B", "other")
        return (repo.root / "ran.txt").read_text().split()

    repo.git("commit", "-q", "--allow-empty", "-m", "first")
    before = ran()
    assert set(before) == {"post-commit", "post-checkout"}
    repo.install()
    assert ran() == before
    repo.put(where / "helper.d/one", "x")
    ran()
    assert (where.with_name(where.name + hooktext.ASIDE) / "helper.d/one").exists(), (
        "what has come beside since"
    )
    hooks.uninstall(repo.root)
    assert ran() == before


@pytest.mark.parametrize("mine", ["a program", "a script"])
def test_a_check_of_ones_own_runs_whatever_manager_comes_after_ours(repo, mine):
    """As `pre-commit install` does: what stands there is moved aside, and called."""
    where = repo.root / ".git/hooks"
    first = (
        f"#!{sys.executable}\nopen('ran.txt', 'a').write('mine\\n')\n"
        if mine == "a program"
        else "#!/bin/sh\necho mine >> ran.txt\n"
    )
    repo.put(where / "pre-commit", first)
    tool = '#!/bin/sh\n# ID: hook-impl\necho tool >> ran.txt\n[ ! -x "${0%/*}/pre-commit.legacy" ] || exec "${0%/*}/pre-commit.legacy" "$@"\n'

    def manager():
        if "hook-impl" not in (where / "pre-commit").read_text():
            (where / "pre-commit").rename(where / "pre-commit.legacy")
        repo.put(where / "pre-commit", tool)

    def ran():
        (repo.root / "ran.txt").unlink(missing_ok=True)
        repo.git("commit", "-q", "--allow-empty", "-m", "x")
        return sorted((repo.root / "ran.txt").read_text().split())

    hooks.install(repo.root, repo.spool, hooktext.ALL)
    for step in (
        manager,
        repo.install,
        lambda: hooks.install(repo.root, repo.spool, hooktext.ALL),
        manager,
        lambda: hooks.uninstall(repo.root),
    ):
        step()
        assert ran() == ["mine", "tool"], (
            step,
            sorted(path.name for path in where.iterdir() if "sample" not in path.name),
        )


@pytest.mark.parametrize("kind", ["a link", "a hard link"])
@pytest.mark.parametrize("asks", [hooktext.HOOKS, hooktext.ALL], ids=["tells", "asks"])
def test_hooks_that_are_one_script_are_each_started_as_before(repo, tmp_path, kind, asks):
    where = repo.root / ".git/hooks"
    there = Repo(tmp_path / "there.git", "--bare")
    names = ["post-commit", "post-checkout", "post-merge", "post-rewrite", "pre-push", "pre-commit"]
    script = '#!/bin/sh\necho "${0##*/} $#" >> "$(git rev-parse --show-toplevel)/ran.txt"\n[ "${0##*/}" != pre-push ] || exit 3\n'
    repo.put(where / names[0], script)
    for name in names[1:]:
        if kind == "a link":
            (where / name).symlink_to(names[0])
        else:
            os.link(where / names[0], where / name)

    def ran():
        (repo.root / "ran.txt").unlink(missing_ok=True)
        repo.commit(f"one{len(list(repo.root.iterdir()))}")
        repo.git("commit", "-q", "--amend", "-m", "x")
        repo.git("checkout", "-q", "-B", "other", "HEAD~0")
        repo.commit(f"two{len(list(repo.root.iterdir()))}")
        repo.git("checkout", "-q", "main")
        repo.git("merge", "-q", "--no-ff", "-m", "Merge", "other")
        refused = repo.git("push", "-q", str(there.root), "main", check=False).returncode
        return refused != 0, (repo.root / "ran.txt").read_text().splitlines()

    repo.commit("first")
    before, as_before = listing(where), ran()
    assert {line.split()[0] for line in as_before[1]} == set(names)
    hooks.install(repo.root, repo.spool, asks)
    assert ran() == as_before
    hooks.uninstall(repo.root)
    assert listing(where) == before
    assert ran() == as_before


def test_a_hook_with_a_second_name_is_what_is_written_to_that(repo):
    where = repo.root / ".git/hooks"
    repo.put(repo.root / "scripts/check", "#!/bin/sh\nexit 0\n")
    os.link(repo.root / "scripts/check", where / "pre-commit")
    hooks.install(repo.root, repo.spool, hooktext.ALL)
    repo.commit("one")
    (repo.root / "scripts/check").write_text("#!/bin/sh\nexit 1\n")
    assert repo.commit("two", check=False).returncode == 1


@pytest.mark.parametrize("tracked", [True, False])
def test_git_lfs_has_its_hook_where_ours_are(repo, tmp_path, tracked):
    """It writes its own where none is; where ours must call what may lie elsewhere, they call it."""
    there = Repo(tmp_path / "there.git", "--bare")
    programs = tmp_path / "bin"
    repo.put(
        programs / "git-lfs",
        f'#!/bin/sh\necho "$*" >> {shlex.quote(str(tmp_path))}/lfs.txt\ncat >> {shlex.quote(str(tmp_path))}/lfs.txt\n',
    )
    repo.commit("one")
    if tracked:
        repo.put(repo.root / ".githooks/post-commit", "#!/bin/sh\n")
        repo.git("add", "-A")
        repo.git("commit", "-qm", "hooks")
        repo.git("config", "core.hooksPath", ".githooks")
    hooks.install(repo.root, repo.spool, (*hooktext.HOOKS, hooktext.GUARD, hooktext.TRAILERS))
    if not tracked:
        assert not (repo.root / ".git/hooks/pre-push").exists(), "Git LFS writes its own where none is"
        return
    path = {"PATH": f"{programs}:{os.environ['PATH']}"}
    repo.git("push", "-q", str(there.root), "main", **path)
    assert not (tmp_path / "lfs.txt").exists(), "nothing here is of Git LFS"
    (repo.root / ".git/lfs/objects").mkdir(parents=True)
    repo.commit("two")
    repo.git("push", "-q", str(there.root), "main", **path)
    said = (tmp_path / "lfs.txt").read_text()
    assert said.startswith(f"pre-push {there.root} {there.root}")
    assert "refs/heads/main" in said
    repo.put(repo.root / ".githooks/pre-push", "#!/bin/sh\nexit 4\n")
    repo.commit("three")
    assert repo.git("push", "-q", str(there.root), "main", check=False, **path).returncode != 0


def test_what_another_tool_has_put_aside_comes_back_without_ours(repo):
    """As `pre-commit install` does with a hook that is there."""
    where = repo.root / ".git/hooks"
    mine = "#!/bin/sh\necho mine >> ran.txt\n"
    repo.put(where / "pre-commit", mine)
    hooks.install(repo.root, repo.spool, hooktext.ALL)
    (where / "pre-commit").rename(where / "pre-commit.legacy")
    tool = '#!/bin/sh\n"$0.legacy" "$@" || exit\necho tool >> ran.txt\n'
    repo.put(where / "pre-commit", tool)
    repo.commit("one")
    assert (repo.root / "ran.txt").read_text() == "mine\ntool\n"
    hooks.install(repo.root, repo.spool, hooktext.ALL)
    repo.commit("two")
    assert (repo.root / "ran.txt").read_text() == "mine\ntool\n" * 2
    hooks.uninstall(repo.root)
    assert (where / "pre-commit").read_text() == tool
    assert (where / "pre-commit.legacy").read_text() == mine
    repo.commit("three")
    assert (repo.root / "ran.txt").read_text() == "mine\ntool\n" * 3


def test_hooks_of_a_folder_that_another_repository_holds_stay_as_they_are(repo, tmp_path):
    dotfiles = Repo(tmp_path / "dotfiles")
    dotfiles.put(dotfiles.root / "hooks/pre-commit", "#!/bin/sh\nexit 9\n")
    dotfiles.git("add", "hooks")
    dotfiles.git("commit", "-q", "-m", "Hooks")
    repo.git("config", "core.hooksPath", str(dotfiles.root / "hooks"))
    hooks.install(repo.root, repo.spool, hooktext.ALL)
    assert dotfiles.git("status", "--porcelain", "hooks").stdout == ""
    assert repo.commit("one", check=False).returncode == 1
    hooks.uninstall(repo.root)
    assert repo.git("config", "core.hooksPath").stdout.strip() == str(dotfiles.root / "hooks")


def test_a_folder_of_the_tree_that_is_not_there_yet_gets_nothing(repo):
    repo.git("config", "core.hooksPath", ".githooks")
    hooks.install(repo.root, repo.spool, hooktext.ALL)
    assert not (repo.root / ".githooks").exists()
    assert states(hooks.status(repo.root)) == {"installed"}
    repo.commit("one")
    assert repo.told("post-commit")
    repo.put(repo.root / ".githooks/pre-commit", "#!/bin/sh\nexit 9\n")
    assert repo.commit("two", check=False).returncode == 1


@pytest.mark.parametrize("name", ["a[1]", "a]b", "x*?y", "back\\slash"])
def test_odd_names_of_repositories_leave_nothing_in_its_configuration(tmp_path, name):
    repo = Repo(tmp_path / name)
    repo.git("config", "core.hooksPath", ".githooks")
    before = (repo.root / ".git/config").read_bytes()
    repo.install()
    repo.commit("one")
    assert repo.told("post-commit")
    hooks.uninstall(repo.root)
    assert (repo.root / ".git/config").read_bytes() == before


def test_where_nothing_may_be_made_beside_it_a_hook_of_before_is_called_all_the_same(repo, monkeypatch):
    repo.put(repo.root / ".git/hooks/post-commit")
    monkeypatch.setattr(hooks, "_mirror", lambda where: where / "post-update.sample/no")
    repo.install()
    repo.commit()
    assert "post-commit" in (repo.root / "ran.txt").read_text()


@pytest.mark.parametrize("how", ["relative", "absolute", "for all repositories", "a link in .git"])
def test_hooks_that_commits_hold_stay_as_they_are_and_are_called(repo, how, tmp_path, monkeypatch):
    check = (
        "#!/bin/sh\nif git diff --cached | grep -q '^+SECRET'; then exit 3; fi\necho \"$0\" >> ../ran.txt\n"
    )
    for name in ("pre-commit", "post-commit", "prepare-commit-msg", "push-to-checkout"):
        repo.put(repo.root / ".githooks" / name, check)
    config = {"relative": ".githooks", "absolute": str(repo.root / ".githooks")}
    env = {}
    if how == "a link in .git":
        shutil.rmtree(repo.root / ".git/hooks")
        (repo.root / ".git/hooks").symlink_to("../.githooks")
    elif how == "for all repositories":
        (tmp_path / "config").write_text("[core]\n\thooksPath = .githooks\n")
        env = {"GIT_CONFIG_GLOBAL": str(tmp_path / "config")}
        monkeypatch.setenv(*next(iter(env.items())))
    else:
        repo.git("config", "core.hooksPath", config[how])
    before = (repo.root / ".git/config").read_text()
    repo.git("add", "-A")
    repo.git("commit", "-q", "--no-verify", "-m", "Hooks", **env)
    (tmp_path / "ran.txt").unlink(missing_ok=True)
    hooks.install(repo.root, repo.spool, hooktext.ALL)
    assert states(hooks.status(repo.root)) == {"installed"}
    assert repo.git("status", "--porcelain", **env).stdout == "", "nothing of theirs is changed"
    repo.commit("one", **env)
    assert repo.told("post-commit")
    ran = (tmp_path / "ran.txt").read_text().split("\n")
    assert [line.rpartition("/")[2] for line in ran if line] == [
        "pre-commit",
        "prepare-commit-msg",
        "post-commit",
    ]
    (repo.root / "two").write_text("SECRET\n")
    repo.git("add", "two")
    assert repo.git("commit", "-qm", "x", check=False, **env).returncode == 1
    # What the team adds later is called as well.
    repo.put(repo.root / ".githooks/pre-rebase", "#!/bin/sh\nexit 4\n")
    repo.git("reset", "-q", "--hard")
    assert repo.git("rebase", "--root", "-q", check=False, **env).returncode == 128
    # And without what was not asked for.
    hooks.install(repo.root, repo.spool)
    hooks.uninstall(repo.root)
    assert (repo.root / ".git/config").read_text() == before
    assert not (repo.root / ".git/aipass/hooks").exists()
    assert not hooks.called(repo.root)
    (repo.root / "two").write_text("SECRET\n")
    repo.git("add", "two")
    assert repo.git("commit", "-qm", "x", check=False, **env).returncode == 1


def test_hooks_that_commits_hold_are_found_whatever_becomes_of_the_repository(repo, tmp_path):
    repo.put(repo.root / ".githooks/pre-commit", '#!/bin/sh\necho "$PWD" >> ran.txt\n')
    repo.git("config", "core.hooksPath", ".githooks")
    repo.git("add", "-A")
    repo.git("commit", "-qm", "Hooks")
    repo.install()

    def runs(root):
        (root / "ran.txt").unlink(missing_ok=True)
        repo.git("commit", "-q", "--allow-empty", "-m", "x", cwd=root)
        return (root / "ran.txt").read_text().split("\n") == [str(root), ""]

    # A manager that sets its folder again, as `husky install` does at each `npm install`.
    repo.git("config", "core.hooksPath", ".githooks")
    assert states(hooks.status(repo.root)) == {"installed"}
    assert runs(repo.root)
    assert repo.told("post-commit")
    repo.git("worktree", "add", "-q", str(tmp_path / "a tree [x]"), "-b", "side")
    assert runs(tmp_path / "a tree [x]")
    assert repo.told("post-commit")
    copy = tmp_path / "copy"
    shutil.copytree(repo.root, copy)
    assert runs(copy)
    assert not repo.told("post-commit"), "what happens in a copy is no news here"
    # Another folder of theirs.
    repo.put(repo.root / "other/pre-commit", '#!/bin/sh\necho "$PWD" >> ran.txt\n')
    repo.git("config", "core.hooksPath", "other")
    assert states(hooks.status(repo.root)) == {"installed"}
    shutil.rmtree(repo.root / ".githooks")
    assert runs(repo.root)
    moved = tmp_path / "moved"
    repo.root.rename(moved)
    assert runs(moved)
    shutil.rmtree(moved / ".git/aipass")
    assert runs(moved)


def test_a_script_that_asks_whether_it_was_started_or_read_is_started(repo):
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    text = (
        '#!/usr/bin/env bash\nmain() { echo "$(basename "$0")" >> ran.txt; exit 1; }\n'
        'if [[ "${BASH_SOURCE[0]}" == "${0}" ]]; then main "$@"; fi\n'
    )
    repo.put(repo.root / ".git/hooks/pre-commit", text)
    hooks.install(repo.root, repo.spool, hooktext.ALL)
    assert repo.commit("one", check=False).returncode == 1
    assert (repo.root / "ran.txt").read_text() == "pre-commit\n"


@pytest.mark.parametrize("how", ["as it was", "edited in place", "edited by another file"])
def test_a_program_whose_links_are_resolved_has_its_old_name(repo, how):
    """Node looks at the ending of the file itself; others ask which hook they are."""
    where = repo.root / ".git/hooks"
    text = f"#!{sys.executable}\nimport os\nopen('names.txt', 'a').write('TEXT ' + os.path.basename(os.path.realpath(__file__)) + '\\n')\n"
    repo.put(where / "post-commit", text.replace("TEXT", "one"))
    before = listing(where)
    repo.install()
    aside = where / "post-commit.before-aipass"
    if how == "edited in place":
        aside.write_text(text.replace("TEXT", "two"))
    elif how == "edited by another file":
        repo.put(where / "half", text.replace("TEXT", "two")).replace(aside)
    repo.commit("one")
    assert (repo.root / "names.txt").read_text() == f"{'one' if how == 'as it was' else 'two'} post-commit\n"
    repo.install()
    hooks.uninstall(repo.root)
    assert not (repo.root / ".git/hooks.before-aipass").exists()
    if how == "as it was":
        assert listing(where) == before
    else:
        assert "two" in (where / "post-commit").read_text()


def test_two_installs_at_once_lose_nobodys_hook(repo, monkeypatch):
    where = repo.root / ".git/hooks"
    repo.put(where / "post-commit", "#!/usr/bin/env python3\n# mine\n")
    stale = hooks.status(repo.root)
    repo.install()
    with monkeypatch.context() as patch:
        patch.setattr(hooks, "status", lambda root: stale)
        repo.install()
    assert states(hooks.status(repo.root)) == {"installed"}
    hooks.uninstall(repo.root)
    assert "# mine" in (where / "post-commit").read_text()


def test_what_a_tool_writes_where_git_says_is_called_beside_what_commits_hold(repo):
    say = '#!/bin/sh\necho WHO {0} "$(cat)" >> ran.txt\n'
    for name in ("post-commit", "post-rewrite"):
        repo.put(repo.root / ".githooks" / name, say.format(name).replace("WHO", "team"))
    repo.git("config", "core.hooksPath", ".githooks")
    repo.git("add", "-A")
    repo.git("commit", "-q", "-m", "Hooks")
    repo.install()
    where = Path(repo.git("rev-parse", "--git-path", "hooks").stdout.strip())
    for name in ("post-commit", "post-rewrite", "post-merge"):
        repo.put(repo.root / where / name, say.format(name).replace("WHO", "tool"))
    repo.install()
    assert states(hooks.status(repo.root)) == {"installed"}
    (repo.root / "ran.txt").unlink(missing_ok=True)
    repo.commit("one")
    repo.git("commit", "-q", "--amend", "-m", "other")
    repo.git("merge", "-q", "--no-ff", "HEAD~1", check=False)
    said = [
        " ".join(line.split()[:2])
        for line in (repo.root / "ran.txt").read_text().splitlines()
        if line[:4] in ("team", "tool")
    ]
    assert said[:2] == ["tool post-commit", "team post-commit"]
    assert {"tool post-rewrite", "team post-rewrite"} <= set(said)
    rewritten = [line for line in (repo.root / "ran.txt").read_text().splitlines() if "post-rewrite" in line]
    assert len({line.split(" ", 2)[2] for line in rewritten}) == 1, "both get what git says"
    assert repo.told("post-commit")
    hooks.uninstall(repo.root)
    assert [path.name for path in hooks.left_over(repo.root)] == ["post-commit", "post-merge", "post-rewrite"]


def test_a_repository_that_was_moved_leaves_no_copies_of_ours(repo, tmp_path):
    hooks.install(repo.root, repo.spool, hooktext.ALL)
    moved = tmp_path / "moved"
    repo.root.rename(moved)
    repo.root = moved
    hooks.install(moved, repo.spool, hooktext.ALL)
    hooks.uninstall(moved)
    assert not [name for name in os.listdir(moved / ".git/hooks") if "aipass" in name]


def beside(repo):
    """Hooks in a commit, ours installed; returns the folder that git says and a way to have a tool write into it."""
    for name in ("post-commit", "pre-commit", "commit-msg", "pre-push"):
        repo.put(repo.root / ".githooks" / name, f"#!/bin/sh\necho team {name} >> ran.txt\n")
    repo.git("config", "core.hooksPath", ".githooks")
    repo.git("add", "-A")
    repo.git("commit", "-q", "-m", "Hooks")
    repo.install()
    return repo.root / repo.git("rev-parse", "--git-path", "hooks").stdout.strip()


@pytest.mark.parametrize("calls", ["post-commit.old", "old/post-commit", None])
@pytest.mark.parametrize("code", [0, 1])
def test_a_tool_that_calls_what_it_put_aside_is_called_once(repo, calls, code):
    where = beside(repo)
    (repo.root / "ran.txt").unlink(missing_ok=True)
    call = "" if calls is None else f'"$(dirname "$0")/../hooks/{calls}" "$@"'
    if calls is not None:
        (where / calls).parent.mkdir(exist_ok=True)
        (where / "post-commit").rename(where / calls)
    repo.put(
        where / "post-commit",
        f"#!/bin/sh\necho tool >> ran.txt\n[ $(wc -l < ran.txt) -lt 20 ] || exit 0\n{call}\nexit {code}\n",
    )
    repo.install()
    repo.told("post-commit")
    repo.commit("one")
    ran = (repo.root / "ran.txt").read_text().splitlines()
    assert [line for line in ran if line in {"tool", "team post-commit"}] == ["tool", "team post-commit"]
    assert repo.told("post-commit")


@pytest.mark.parametrize("how", ["another version", "moved"])
def test_what_nobody_asked_for_is_not_installed_by_another_install(repo, tmp_path, how):
    where = beside(repo)
    if how == "moved":
        moved = tmp_path / "moved"
        repo.root.rename(moved)
        repo.root, where = moved, moved / ".git/aipass/hooks"
    else:
        for path in where.iterdir():
            path.write_bytes(path.read_bytes().replace(b"_aipass_beside", b"_aipass_former"))
    repo.install()
    for name in ("pre-commit", "commit-msg", "pre-push"):
        text = (where / name).read_bytes()
        assert hooktext.is_passing(text)
        assert b"_aipass_beside" in text, "it is this version's"
    assert states(hooks.status(repo.root)) == {"installed"}
    hooks.uninstall(repo.root)
    assert not where.exists(), "nothing of ours was taken for somebody's"


def test_installs_take_turns_and_nobody_stops_them(repo, monkeypatch):
    where = repo.root / ".git/hooks"
    where.mkdir(exist_ok=True)
    seen = []
    write_all = hooks._write_all

    def watched(*given):
        other = os.open(where, os.O_RDONLY)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            seen.append("locked")
        os.close(other)
        write_all(*given)

    monkeypatch.setattr(hooks, "_write_all", watched)
    repo.install()
    assert seen == ["locked"]
    monkeypatch.setattr(hooks, "PATIENCE_S", 0.05)
    holder = os.open(where, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    assert states(repo.install()) == {"installed"}
    os.close(holder)


@pytest.mark.parametrize("differ", ["", "before a commit", "before another install"])
def test_a_copy_without_second_names_loses_nothing_and_keeps_nothing_stale(repo, tmp_path, differ):
    where = repo.root / ".git/hooks"
    text = f"#!{sys.executable}\nopen('ran.txt', 'a').write('TEXT\\n')\n"
    repo.put(where / "post-commit", text.replace("TEXT", "one"))
    repo.install()
    subprocess.run(["cp", "-r", str(repo.root), str(tmp_path / "copy")], check=True)
    repo.root = tmp_path / "copy"
    aside = repo.root / ".git/hooks/post-commit.before-aipass"
    if differ:
        os.utime(repo.root / ".git/hooks.before-aipass/post-commit", (1_000_000_000, 1_000_000_000))
        aside.write_text(text.replace("TEXT", "two"))
    now = "two" if differ else "one"
    if differ != "before another install":
        repo.commit("one")
        assert (repo.root / "ran.txt").read_text() == f"{now}\n"
    repo.install()
    repo.commit("two")
    assert set((repo.root / "ran.txt").read_text().split()) == {now}
    hooks.uninstall(repo.root)
    assert not (repo.root / ".git/hooks.before-aipass").exists()
    assert (repo.root / ".git/hooks/post-commit").read_text() == text.replace("TEXT", now)
    kept = aside.with_name(aside.name + ".edited")
    assert kept.exists() is bool(differ)
    if differ:
        assert kept.read_text() == text.replace("TEXT", "one"), (
            "nobody can say that it was not the one that was meant"
        )


def test_an_edit_of_the_second_name_is_the_hooks(repo):
    """What a traceback names is what people mend."""
    where = repo.root / ".git/hooks"
    text = f"#!{sys.executable}\nopen('ran.txt', 'a').write('TEXT\\n')\n"
    repo.put(where / "post-commit", text.replace("TEXT", "one"))
    repo.install()
    second = repo.root / ".git/hooks.before-aipass/post-commit"
    aside = where / "post-commit.before-aipass"
    os.utime(aside, (1_000_000_000, 1_000_000_000))
    repo.put(repo.root / "half", text.replace("TEXT", "two")).replace(second)
    repo.commit("one")
    assert (repo.root / "ran.txt").read_text() == "two\n"
    assert "one" in aside.with_name(aside.name + ".edited").read_text(), (
        "a hook that was restored has an old time, too"
    )
    hooks.uninstall(repo.root)
    assert "two" in (where / "post-commit").read_text()


@pytest.mark.parametrize("said", ["", "a b c d\n", "one two\n\nthree\n"])
def test_both_hooks_are_told_exactly_what_git_says(repo, said):
    """`git push` of what is there already says nothing."""
    where = beside(repo)
    read = "#!/bin/sh\nwc -l >> ran.txt\n"
    repo.put(repo.root / ".githooks/post-rewrite", read)
    repo.put(where / "post-rewrite", read)
    repo.install()
    (repo.root / "ran.txt").unlink(missing_ok=True)
    subprocess.run([where / "post-rewrite", "amend"], cwd=repo.root, input=said, text=True, check=True)
    assert (repo.root / "ran.txt").read_text().split() == [str(said.count("\n"))] * 2


def test_what_another_root_wrote_meanwhile_is_not_taken_away(repo, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    (other / "aipass.toml").write_text("")
    repo.install()
    roots = hooks._listed(repo.root)
    monkeypatch.setattr(hooks, "_is_told_from", lambda *_: True)
    take_away = hooks._take_away

    def later(*given):
        with roots.open("a") as file:
            file.write(f"{other}\n")
        take_away(*given)

    monkeypatch.setattr(hooks, "_take_away", later)
    hooks.uninstall(repo.root)
    assert roots.read_text() == f"{other}\n"
    assert states(hooks.status(repo.root)) == {"installed"}


def test_a_file_that_a_hook_puts_in_the_place_of_a_link_stays_and_the_hook_keeps_its_name(repo):
    where = repo.root / ".git/hooks"
    (where / "state").write_text("0")
    repo.put(
        where / "pre-commit",
        f"#!{sys.executable}\nimport os, sys\nhere = os.path.dirname(sys.argv[0])\nopen('ran.txt', 'a').write(os.path.basename(sys.argv[0]) + '\\n')\n"
        "open(here + '/half', 'w').write('1')\nos.rename(here + '/half', here + '/state')\n",
    )
    hooks.install(repo.root, repo.spool, hooktext.ALL)
    for _ in range(2):
        repo.commit(f"one {time.time_ns()}")
        hooks.install(repo.root, repo.spool, hooktext.ALL)
    assert (repo.root / "ran.txt").read_text().split() == ["pre-commit"] * 2
    assert (repo.root / ".git/hooks.before-aipass/state").read_text() == "1"


def test_a_line_in_a_hook_that_only_called_another_is_kept(repo):
    where = beside(repo)
    edited = where / "pre-commit"
    edited.write_text(edited.read_text().replace("_aipass_before=", "mine here\n_aipass_before=", 1))
    hooks.install(repo.root, repo.spool, hooktext.ALL)
    assert "mine here" in (where / "pre-commit.before-aipass.edited").read_text()


@pytest.mark.parametrize("verb", ["install", "uninstall"])
def test_of_two_names_the_later_is_the_hook_whichever_verb_comes_next(repo, verb):
    where = repo.root / ".git/hooks"
    text = f"#!{sys.executable}\n# TEXT\n"
    repo.put(where / "post-commit", text.replace("TEXT", "one"))
    repo.install()
    aside = where / "post-commit.before-aipass"
    os.utime(aside, (1_000_000_000, 1_000_000_000))
    repo.put(repo.root / "half", text.replace("TEXT", "two")).replace(
        repo.root / ".git/hooks.before-aipass/post-commit"
    )
    if verb == "install":
        repo.install()
        assert "two" in aside.read_text()
    hooks.uninstall(repo.root)
    assert "two" in (where / "post-commit").read_text()
    assert "one" in (where / "post-commit.before-aipass.edited").read_text()
