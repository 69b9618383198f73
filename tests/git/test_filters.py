"""What our git starts of the filters and merge drivers that people configured: nothing that could run what agents wrote."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from git_kit import git

import aipass
from aipass import programs
from aipass.features.git.repo import GitError, Repo
from aipass.git import filters
from aipass.git.working import ask_of_files

pytestmark = pytest.mark.slow

KNOWN = (
    "git-lfs clean -- %f", "git-lfs smudge -- %f", "git-lfs filter-process", "git lfs smudge --skip -- %f", "git-annex smudge --clean -- %f",
    '"git-crypt" clean', '"/usr/bin/git-crypt" smudge', "git  lfs clean", "git 'lfs' clean", '"/opt/a b"/git-lfs clean',
    "cat", "tr a-z A-Z", "sed 's/$Id[^$]*$/$Id$/'", "sed s/a/b/g", "sed -e s/a/b/ -e s/c/d/", "jq --indent 1 'del(.x)'", "gzip -n | base64",
    "sh -c 'echo pointer; wc -c | tr -d \" \"'", "true", "git merge-file %A %O %B", "mergiraf merge --git %O %A %B -s %S -x %X -y %Y -p %P",
    "sed -E 's/a+/b/g'", "sed -n -e s,a,b,p", "",
)  # fmt: skip
UNKNOWN = (
    "make -s clean", "make -s -C tools clean", "npx --no-install myfilter", "npm exec x", "uv run x", "poetry run x", "just x", "rake x",
    "prettier --stdin-filepath %f", "jupytext --to py", "rustfmt", "sops -e /dev/stdin", "bash -lc make", "sh tools/x.sh", "sh x", "./x",
    "tools/clean.sh", "python clean.py", "python -m tools.clean", "python3 -c 'import x'", "perl x.pl", "perl -Ilib -e 'use X'", "ruby -e 1",
    "perl -e 'do \"x\"'", "perl -pe 'system q(make)'", "awk -f x.awk", "awk '{ system(\"make\") }'", "env make", "nice make", "xargs make",
    "cat; make", "cat && make", "cat | make", "cat $(make)", "cat `make`", "cat \n make", "(make)", "{ make; }", "cat & make",
    "sh -c make", "sh -c 'cat | make'", "sh -c 'sh -c make'", "sh -c '$0' make", "f() { make; }; f", "X=1 make", "cat < x > y", "git x",
    "git -c alias.x=!make x", "'unclosed", "mytool", "docker run x", "node x.js", "deno run x", "$EDITOR", "~/bin/x", "\\make", "cat # x\nmake",
    "perl -pe 's/a/b/'", "awk '{print $1}'", "openssl enc -config x", "sed -f x", "sed -e s/a/b/ -f x", "sed -es/a/b/ x", "sed 's/x/&/e'", "sed 's/x/y/w out'",
    "sed e", "sed 1e", "sed 's/a/b/;e'", "sed --file=x s/a/b/", "sed -fx", "sort --compress-program=x", "gawk '@include \"fmt\"'", "perl -de 1", "head@v1/filter",
    "cat,x/y", "tr+x/y", "gpg --options x", "xxd@x", "git-lfs/x", "sed s/a/b", "sed", "grep -f x",
    "nbstripout", "/usr/local/bin/nbstripout -t", "python -m nbstripout", '"/opt/py/bin/python3" -m nbstripout', "python3 -E -m nbstripout", "venv/bin/nbstripout", "./cat", "tools/git-lfs clean",
    'sed "s|@NAME@|%f|"', "sed 's|@NAME@|%f|'", "sed s/@/%f/", "cat '%f'", 'cat "%f"', "cat x%f", "cat %f%f", "sh -c 'cat %f'", "sed -e 's/%d/x/'",
    "$(git rev-parse --show-toplevel)/x", "eval make", "exec make", ". ./x", "source x", "!make", "command make", "time make",
)  # fmt: skip


@pytest.mark.parametrize("command", KNOWN)
def test_what_takes_no_code_from_the_current_folder_is_started(command):
    assert filters.is_known(command)


@pytest.mark.parametrize("command", UNKNOWN)
def test_what_may_run_what_lies_in_the_tree_is_not_started(command):
    assert not filters.is_known(command)


@pytest.fixture
def repo(tmp_path):
    """A repository whose `.dat` files have a filter, and a `make` that runs what the tree says."""
    top = tmp_path / "r"
    top.mkdir()
    git(top, "init", "-q", ".")
    for name, value in (("user.name", "A"), ("user.email", "a@b.c")):
        git(top, "config", name, value)
    (top / ".gitattributes").write_text("*.dat filter=x\n*.mrg merge=x\n")
    (top / "a.dat").write_text("one\n")
    # Racy: git compares what such a file holds each time.
    os.utime(top / "a.dat", (2_000_000_000, 2_000_000_000))
    git(top, "add", "-A")
    git(top, "commit", "-qm", "first")
    (top / "tools").mkdir()
    for place in ("Makefile", "tools/Makefile"):
        (top / place).write_text(f"clean:\n\t@touch {tmp_path}/ran; cat\n")
    for place in ("clean.sh", "tools/clean.sh"):
        (top / place).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\ncat\n")
        (top / place).chmod(0o755)
    return Repo(top, top / ".git/scratch")


COMMANDS = ("make -s clean", "make -s -C tools clean", "./clean.sh", "tools/clean.sh", "cd tools && ./clean.sh", 'sh "$PWD/clean.sh"',
            '"$(git rev-parse --show-toplevel)"/tools/clean.sh')  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("field", ["clean", "process"])
@pytest.mark.parametrize(
    "words",
    [["diff-files", "-z", "--name-only"], ["diff", "--numstat", "-z", "HEAD"], ["status", "-z"]],
    ids=" ".join,
)
def test_no_question_to_git_starts_what_lies_in_the_tree(repo, tmp_path, command, field, words):
    git(repo.top, "config", f"filter.x.{field}", command)
    git(repo.top, "config", "filter.x.required", "true")
    ask_of_files(repo.root, *words)
    assert not (tmp_path / "ran").exists()
    subprocess.run(["git", *words], cwd=repo.top, capture_output=True, check=False)
    assert (tmp_path / "ran").exists() or field == "process", (
        "a person's git starts it, or this test proves nothing"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_what_needs_it_is_refused_with_the_remedy(repo, tmp_path, command):
    git(repo.top, "config", "filter.x.clean", command)
    for _ in range(3):
        repo.look_again()
        assert repo.unsafe, "what the last look has covered is looked at again"
    with pytest.raises(GitError, match=r"filter\.x .* does not start it"):
        repo.run("add", "a.dat")
    assert not (tmp_path / "ran").exists()


def test_who_trusts_one_names_it_and_nothing_in_the_tree_is_started_all_the_same(repo, tmp_path):
    git(repo.top, "config", "filter.x.clean", f"env PLACE={tmp_path} tee {tmp_path}/used")
    repo.look_again()
    with pytest.raises(GitError, match=r"`\[pr\] filters` in aipass\.toml"):
        repo.run("add", "a.dat")
    repo.look_again(["x"])
    repo.run("add", "a.dat")
    assert (tmp_path / "used").exists()
    git(repo.top, "config", "filter.x.clean", "tools/clean.sh")
    repo.look_again(["x"])
    with pytest.raises(GitError, match=r"filter\.x is a program in the working tree"):
        repo.run("add", "a.dat")


def test_questions_that_read_files_are_asked_by_who_passes_filters_by():
    """`ask` knows of no filter: a word that makes git read the working tree stands in no module that asks by it."""
    reading = {"diff-files", "diff-index", "update-index", "checkout-index", "hash-object", "stash"}
    found = [
        (path.name, node.value)
        for path in sorted((Path(aipass.__file__).parent).rglob("*.py"))
        if re.search(r"^\s*from aipass\.git\.ask import .*\bask\b", path.read_text(), re.MULTILINE)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in reading
    ]
    assert found == []


def test_programs_that_git_lfs_starts_are_judged_as_well(repo, tmp_path):
    git(repo.top, "config", "lfs.extension.x.clean", "tools/clean.sh %f")
    git(repo.top, "config", "lfs.customtransfer.nas.path", "npx")
    git(repo.top, "config", "lfs.url", "https://example.invalid/x")
    repo.look_again()
    assert set(repo.unsafe) == {"lfs.extension.x", "lfs.customtransfer.nas"}
    said = subprocess.run(
        ["git", "config", "lfs.extension.x.clean"],
        cwd=repo.top,
        env={**os.environ, **repo.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "false\n"
    git(repo.top, "config", "lfs.extension.x.clean", "/usr/bin/cat")
    repo.look_again()
    assert set(repo.unsafe) == {"lfs.customtransfer.nas"}
    repo.look_again(["nas"])
    assert not repo.unsafe


@pytest.mark.parametrize(
    "first",
    ["#!{python}\n", "#!/bin/sh\n'''exec' {python} \"$0\" \"$@\"\n' '''\n", "#!/usr/bin/env {python}\n"],
)
@pytest.mark.parametrize("named", [True, False])
def test_a_filter_whose_python_imports_from_the_tree_is_not_started(
    repo, tmp_path, monkeypatch, first, named
):
    (repo.top / "aipass.toml").write_text("")
    packages = tmp_path / "venv/lib/python3.11/site-packages"
    packages.mkdir(parents=True)
    (packages / "x.pth").write_text(
        f"import os\n# {repo.top}\n{repo.top / 'src' if named else tmp_path / 'elsewhere'}\n"
    )
    (tmp_path / "venv/bin").mkdir()
    (tmp_path / "venv/bin/python3").symlink_to(sys.executable)
    script = tmp_path / "venv/bin/nbstripout"
    script.write_text(first.format(python=tmp_path / "venv/bin/python3") + "import sys\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'venv/bin'}:{os.environ['PATH']}")
    git(repo.top, "config", "filter.x.clean", "nbstripout")
    repo.look_again()
    assert repo.unsafe, "a script, which nobody trusts"
    repo.look_again(["x"])
    assert bool(repo.unsafe) is named


def test_who_starts_git_for_us_gets_the_same_restraint(repo, tmp_path):
    """The CLI of a forge asks git what is uncommitted."""
    git(repo.top, "config", "filter.x.clean", "./clean.sh")
    git(repo.top, "config", "core.fsmonitor", "tools/clean.sh")
    repo.look_again()
    subprocess.run(
        ["git", "status", "--porcelain"],
        cwd=repo.top,
        env={**os.environ, **repo.environment},
        capture_output=True,
        check=False,
    )
    assert not (tmp_path / "ran").exists()


def an_environment(tmp_path, *, tree=None, config=""):
    """A virtual environment with a Python, and a `.pth` that names a folder of the tree."""
    packages = tmp_path / "venv/lib/python3.11/site-packages"
    packages.mkdir(parents=True)
    (tmp_path / "venv/pyvenv.cfg").write_text(config)
    if tree is not None:
        (packages / "x.pth").write_text(f"{tree}\n")
    (tmp_path / "venv/bin").mkdir()
    python = tmp_path / "venv/bin/python3"
    python.symlink_to(sys.executable)
    return python


def a_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("command", ["nbstripout", "PYTHON -m nbstripout", "PATH -t"])
def test_links_and_interpreters_lead_to_what_a_filter_imports(repo, tmp_path, monkeypatch, command):
    """pipx, uv and people link a script into a folder of PATH; `nbstripout --install` names the interpreter."""
    (repo.top / "aipass.toml").write_text("")
    python = an_environment(tmp_path, tree=repo.top / "src")
    script = a_program(tmp_path / "venv/bin/nbstripout", f"#!{python}\nimport sys\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/nbstripout").symlink_to(script)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    git(
        repo.top,
        "config",
        "filter.x.clean",
        command.replace("PYTHON", str(python)).replace("PATH", str(script)),
    )
    repo.look_again(["x"])
    assert "imports from there" in repo.unsafe["filter.x"], "not for who trusts it, either"


@pytest.mark.parametrize(
    ("config", "looks_there"), [("", False), ("include-system-site-packages = true\n", True), (None, True)]
)
def test_what_a_person_has_installed_counts_for_a_python_that_looks_there(
    repo, tmp_path, monkeypatch, config, looks_there
):
    (repo.top / "aipass.toml").write_text("")
    python = an_environment(tmp_path, config=config or "")
    if config is None:
        (tmp_path / "venv/pyvenv.cfg").unlink()
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for name in (version, "python2.1"):
        own = Path(os.environ["HOME"]) / f".local/lib/{name}/site-packages"
        own.mkdir(parents=True)
        (own / "x.pth").write_text(f"{repo.top / 'src' if name == version else repo.top / 'old'}\n")
    found = programs.imported_from(str(python), repo.top)
    assert (str(repo.top / "src") in found) is looks_there
    if os.path.basename(os.path.realpath(python)) == version:
        assert str(repo.top / "old") not in found, "another version's"


def test_a_wrapper_of_a_known_name_may_start_anything(repo, tmp_path, monkeypatch):
    for name in ("git-lfs", "nbstripout", "jq"):
        a_program(tmp_path / "bin" / name, "#!/usr/bin/env bash\nexec something else\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for command in (
        "nbstripout",
        "git lfs clean -- %f",
        "git  lfs clean -- %f",
        "git\tlfs clean -- %f",
        "git 'lfs' clean -- %f",
        "/usr/bin/git lfs clean -- %f",
        "sh -c 'git lfs clean'",
        "git-lfs filter-process",
        "cat | jq .",
        f"{tmp_path}/bin/jq .",
        f'"{tmp_path}/bin"/jq .',
        f"'{tmp_path}/bin/jq' .",
    ):
        git(repo.top, "config", "filter.x.clean", command)
        repo.look_again()
        assert "`[pr] filters`" in repo.unsafe["filter.x"], command
        repo.look_again(["x"])
        assert not repo.unsafe
    git(repo.top, "config", "filter.x.clean", "gunzip | cat")
    repo.look_again()
    assert not repo.unsafe, "the system's own scripts are no wrappers"


def test_the_words_of_a_program_of_git_lfs_are_judged_with_it(repo):
    git(repo.top, "config", "lfs.customtransfer.nas.path", "/usr/bin/cat")
    git(repo.top, "config", "lfs.customtransfer.nas.args", "--verbose nas")
    repo.look_again()
    assert not repo.unsafe
    git(repo.top, "config", "lfs.customtransfer.nas.args", "tools/clean.sh")
    repo.look_again()
    assert "program in the working tree" in repo.unsafe["lfs.customtransfer.nas"]


@pytest.mark.parametrize(
    ("content", "is_started"),
    [
        (b"exec something else\n", False),
        (b"\xef\xbb\xbf#!/bin/sh\nexec something\n", False),
        (b"#!/usr/bin/env -S uv run python3\n", False),
        (b"#!/usr/bin/python3\n", False),
        (b"", False),
        (None, True),
    ],
)
def test_only_machine_code_is_known_by_its_name(repo, tmp_path, monkeypatch, content, is_started):
    """Whatever is read by an interpreter, or by nobody can say whom, is for a person to trust."""
    program = a_program(tmp_path / "bin/jq", "")
    program.write_bytes(Path(os.path.realpath("/bin/cat")).read_bytes() if content is None else content)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    git(repo.top, "config", "filter.x.clean", "jq .")
    repo.look_again()
    assert ("filter.x" not in repo.unsafe) is is_started


@pytest.mark.parametrize("where", ["interpreter in the tree", "link to the environment", "link as .pth"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_what_a_trusted_filter_of_python_is_read_by_is_looked_at(repo, tmp_path, where, quote):
    (repo.top / "aipass.toml").write_text("")
    if where == "interpreter in the tree":
        (repo.top / "env/bin").mkdir(parents=True)
        python = repo.top / "env/bin/python3"
        python.symlink_to(sys.executable)
        place = tmp_path / "bin"
    else:
        an_environment(tmp_path, tree=repo.top / "src")
        place = tmp_path / "li nk"
        place.symlink_to(tmp_path / "venv")
        if where == "link as .pth":
            pth = next((tmp_path / "venv").rglob("*.pth"))
            (tmp_path / "real.pth").write_text(pth.read_text())
            pth.unlink()
            pth.symlink_to(tmp_path / "real.pth")
        python, place = place / "bin/python3", place / "bin"
    place.mkdir(exist_ok=True)
    if not quote:
        (tmp_path / "short").symlink_to(place)
        place = tmp_path / "short"
    script = a_program(place / "x", f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n")
    git(repo.top, "config", "filter.x.clean", f"{quote}{script}{quote} -t")
    repo.look_again(["x"])
    assert "imports from there" in repo.unsafe["filter.x"]


@pytest.mark.parametrize("within", [True, False])
def test_an_editable_install_without_src_is_seen_as_well(repo, tmp_path, within):
    """setuptools writes a program then that knows where the packages lie."""
    python = an_environment(tmp_path)
    packages = tmp_path / "venv/lib/python3.11/site-packages"
    place = repo.top / "proj" if within else tmp_path / "elsewhere/proj"
    (packages / "__editable__.proj-0.1.pth").write_text(
        "import __editable___proj_0_1_finder; __editable___proj_0_1_finder.install()\n"
    )
    (packages / "__editable___proj_0_1_finder.py").write_text(
        f"from __future__ import annotations\nMAPPING: dict[str, str] = {{'proj': '{place}'}}\n"
    )
    assert programs.imported_from(str(python), repo.top) == [str(place)]


@pytest.mark.parametrize("folder", ["venv", "a b"])
@pytest.mark.parametrize("quote", ['"', "'"])
def test_a_python_that_is_named_in_quotes_is_found(repo, tmp_path, monkeypatch, folder, quote):
    """pip and uv write it so where the path is long or holds a blank."""
    (repo.top / "aipass.toml").write_text("")
    an_environment(tmp_path, tree=repo.top / "src")
    if folder != "venv":
        (tmp_path / "venv").rename(tmp_path / folder)
    python = tmp_path / folder / "bin/python3"
    a_program(
        tmp_path / "bin/nbstripout",
        f"#!/bin/sh\n'''exec' {quote}{python}{quote} \"$0\" \"$@\"\n' '''\nimport sys\n",
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    git(repo.top, "config", "filter.x.clean", "nbstripout")
    repo.look_again()
    assert "imports from there" in repo.unsafe["filter.x"]
    a_program(
        tmp_path / "bin/nbstripout",
        "#!/bin/sh\n'''exec' \"$(dirname \"$0\")\"/'python3' \"$0\" \"$@\"\n' '''\n",
    )
    repo.look_again()
    assert "`[pr] filters`" in repo.unsafe["filter.x"], "nobody can say which that is"
