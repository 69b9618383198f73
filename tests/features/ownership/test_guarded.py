"""Nothing that agents can write is ever started, or imported, outside the fence."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
from git_kit import git
from paths import ROOT
from patience import PATIENCE, until
from repository import agent

from aipass import isolation, programs
from aipass.config import reading
from aipass.features.ownership import guarded, layers
from aipass.git import hooks, hooktext
from aipass.plugins import Plugins
from aipass.sources.filesystem import Filesystem
from aipass.sources.observation import Configured, ScanEnd
from aipass.supervisor.fence import gitfolder, runs_code
from aipass.supervisor.fence.territory import Kind, Territory
from aipass.workspace.layout import Layout

pytestmark = pytest.mark.slow

TOP = ROOT
#: Who may start processes by other means than `programs.run`, and what they start.
STARTERS = {
    "aipass/programs.py": "everything that is started by name",
    "aipass/cli/up.py": "the engine itself, by programs.aipass",
    "aipass/cli/demo.py": "aipass itself, by programs.aipass",
    "aipass/features/plans/rehearse.py": "aipass itself, by programs.aipass",
    "aipass/features/dispatch/supervisors.py": "the supervisor, with an isolated Python; itself once more, to start those",
    "aipass/features/ownership/confine.py": "itself once more, to try the enclosure",
    "aipass/supervisor/spawn.py": "runs without a fence, as the engine has found their program",
    "aipass/supervisor/fence/start.py": "runs behind the fence",
    "aipass/supervisor/process.py": "the system's own `ps` where there is no /proc",
}
_STARTING = {"subprocess", "pty", "multiprocessing"}
_OF_OS = ("exec", "spawn", "posix_spawn", "system", "popen", "startfile", "fork")


def sources():
    for folder in ("aipass", "handlers", "plugins"):
        yield from (path for path in (TOP / folder).rglob("*.py") if "testing" not in path.parts)


def starts(path: Path) -> list[str]:
    """What in a file starts a program, or looks one up on PATH."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name, called = node.value.id, node.attr
            if name in _STARTING and called in {
                "run",
                "Popen",
                "call",
                "check_call",
                "check_output",
                "spawn",
            }:
                found.append(f"{name}.{called}")
            if name == "os" and called.startswith(_OF_OS):
                found.append(f"os.{called}")
            if (name, called) == ("shutil", "which"):
                found.append("shutil.which")
    return found


def test_programs_are_started_in_one_place_only():
    starting = {str(path.relative_to(TOP)): starts(path) for path in sources()}
    assert {name for name, found in starting.items() if found} <= set(STARTERS)
    assert all(starting[name] for name in STARTERS if name != "aipass/features/dispatch/supervisors.py")
    assert "shutil.which" not in starting["aipass/programs.py"]


def test_every_python_of_ours_is_isolated():
    """`-m aipass` without -P would take what lies in the current folder for aipass; so would a hook's."""
    for path in sources():
        for line in path.read_text().splitlines():
            if ("sys.executable" in line and "-m" in line) or ("-m aipass" in line and "python}" in line):
                assert "-P" in line, f"{path}: {line}"


# -- what is found ---------------------------------------------------------------------------------------------------


def program(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\nexit 0\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A root, another root and a folder outside, each with a program `tool`; and PATH with the unsafe ones first."""
    root, other, outside = tmp_path / "root", tmp_path / "other", tmp_path / "outside/bin"
    for one in (root, other):
        one.mkdir()
        (one / "aipass.toml").write_text("")
    program(root / ".venv/bin/tool")
    program(other / "node_modules/.bin/tool")
    program(root / "tool")
    safe = program(outside / "tool")
    link = tmp_path / "links"
    link.symlink_to(root / ".venv/bin")
    mine = Path(f"/tmp/aipass-{os.geteuid()}/test-{os.getpid()}")
    program(mine / "tool")
    unsafe = [
        str(root / ".venv/bin"),
        str(other / "node_modules/.bin"),
        str(link),
        str(mine),
        "",
        ".",
        "bin",
        "/tmp",
        "node_modules/.bin",
    ]
    monkeypatch.setenv("PATH", ":".join([*unsafe, str(outside), "/usr/bin", "/bin"]))
    monkeypatch.chdir(root)
    yield root, safe, outside
    shutil.rmtree(mine)


def test_a_program_is_found_outside_all_that_agents_can_write(places):
    root, safe, outside = places
    here = programs.of(root)
    assert here.find("tool") == safe
    assert here.path.split(":") == [str(outside), "/usr/bin", "/bin"]
    assert here.hidden("tool") == str(root / ".venv/bin/tool")


def test_a_program_that_lies_only_in_the_tree_is_not_started_and_named(places):
    root, safe, _ = places
    os.unlink(safe)
    assert programs.of(root).find("tool") is None
    with pytest.raises(
        programs.ProgramMissingError, match=r"\.venv/bin/tool is not started, because agents can write there"
    ):
        programs.run(root, ["tool"])


def test_a_link_outside_that_leads_into_the_tree_is_passed_over(places):
    root, safe, outside = places
    os.unlink(safe)
    (outside / "tool").symlink_to(root / "tool")
    assert programs.of(root).find("tool") is None


def test_what_is_found_once_stays_the_same(places, tmp_path):
    root, safe, _ = places
    here = programs.of(root)
    assert here.find("tool") == safe
    program(root / "bin/tool")
    assert here.find("tool") == safe


def test_the_environment_of_a_program_loads_no_code(places, monkeypatch):
    root, _, _ = places
    bad = ["PYTHONPATH", "PYTHONSTARTUP", "PERL5LIB", "PERL5OPT", "RUBYOPT", "NODE_OPTIONS", "LD_PRELOAD", "LD_LIBRARY_PATH", "BASH_ENV",
           "ENV", "GIT_DIR", "GIT_INDEX_FILE", "GIT_EXTERNAL_DIFF", "GIT_EXEC_PATH", "GIT_PAGER", "GIT_CONFIG_COUNT", "PAGER", "EDITOR"]  # fmt: skip
    for name in bad:
        monkeypatch.setenv(name, str(root))
    monkeypatch.setenv("ENVIRONMENT", "kept")
    env = programs.environment(root)
    assert not set(bad) & set(env)
    assert env["ENVIRONMENT"] == "kept"


def test_a_run_starts_what_lies_outside_where_it_can_and_else_what_it_names(places):
    root, safe, _ = places
    path = os.environ["PATH"]
    assert programs.for_run("tool", path, root) == safe
    assert programs.for_run("./tool", path, root) == "./tool"
    os.unlink(safe)
    assert programs.for_run("tool", path, root) == str(root / ".venv/bin/tool")
    assert programs.for_run("nowhere", path, root) == "nowhere"


# -- what is guarded -------------------------------------------------------------------------------------------------


def territory(root: Path, text: str) -> Territory:
    (root / "aipass.toml").write_text(text)
    return Territory.of(layers.table(Layout(root), reading.load(root / "aipass.toml")))


def agent_table(name: str, command: str, more: str = "") -> str:
    return f'[agents.{name}]\ndriver = "command"\ncommand = {command}\n{more}\n'


@pytest.mark.parametrize(
    ("command", "guards"),
    [
        ('["python3", "tools/api.py"]', ["tools/api.py"]),
        ('["python3", "./tools/../tools/api.py", "--x"]', ["tools/api.py"]),
        ('["tools/run"]', ["tools/run"]),
        ('["sh", "-c", "exec python3 tools/api.py >log"]', ["tools/api.py"]),
        ('["python3", "-m", "tools.api"]', ["tools/api.py", "tools/__init__.py", "tools/api/__main__.py"]),
        ('["node", "--require=./tools/hook.js", "x"]', ["tools/hook.js"]),
        ('["python3", "tools"]', ["tools/__main__.py"]),
        ('["python3", "new.py"]', ["new.py"]),
        ('["python3", "tools/link.py"]', ["tools/link.py", "tools/api.py"]),
        ('["bash", "tools/it\'s here.sh"]', ["tools/it's here.sh"]),
    ],
)
def test_what_an_agent_is_started_with_is_nobodys_to_write(tmp_path, command, guards):
    for name in ("api.py", "run", "hook.js", "__main__.py", "it's here.sh"):
        program(tmp_path / "tools" / name)
    (tmp_path / "tools/link.py").symlink_to("api.py")
    (tmp_path / "src").mkdir()
    free = agent_table("free", '["true"]')
    found = territory(
        tmp_path,
        agent_table("api", command) + free + agent_table("wide", '["true"]', 'owns = ["**", "tools/"]'),
    )
    for path in guards:
        assert found.owner(path).kind is Kind.NEVER, path
        assert "is started with it" in found.owner(path).why
    assert found.owner("src/a.py").agents == ("wide",)
    given = territory(
        tmp_path, agent_table("api", command) + agent_table("wide", '["true"]', f'owns = ["/{guards[0]}"]')
    )
    assert given.owner(guards[0]).agents == ("wide",)


@pytest.mark.parametrize(
    ("line", "guarded_too"),
    [
        ("rm data; echo 1 > data", False),
        ("cat data | wc -l", False),
        ("sh data", True),
        ("cd . && bash -eu data", True),
        (". data", True),
        ("source 'data'", True),
        ("data arg", True),
        ("true; data", True),
    ],
)
def test_a_line_for_a_shell_guards_what_it_starts_and_not_its_data(tmp_path, line, guarded_too):
    (tmp_path / "data").write_text("1")
    found = territory(tmp_path, agent_table("w", f'["sh", "-c", "{line}"]', 'owns = ["**"]'))
    assert (found.owner("data").kind is Kind.NEVER) == guarded_too


def test_the_virtual_environment_that_runs_us_is_nobodys(tmp_path, monkeypatch):
    venv = tmp_path / ".venv"
    program(venv / "bin/python3")
    (venv / "pyvenv.cfg").write_text("")
    monkeypatch.setattr(sys, "prefix", str(venv))
    monkeypatch.setattr(sys, "executable", str(venv / "bin/python3"))
    found = territory(tmp_path, agent_table("free", '["true"]'))
    for path in (
        "bin/aipass",
        "lib/python3.11/site-packages/zz.pth",
        "lib/python3.11/site-packages/click/core.py",
    ):
        assert found.owner(f".venv/{path}").kind is Kind.NEVER
    text = agent_table("free", '["true"]', 'owns = [".venv/"]')
    (tmp_path / "aipass.toml").write_text(text)
    told = guarded.warnings(Layout(tmp_path), reading.parse(text), fenced=True)
    assert any("aipass itself runs from it" in line and "`owns` of free" in line for line in told)
    told = guarded.warnings(Layout(tmp_path), reading.parse(agent_table("free", '["true"]')), fenced=False)
    assert any("without a fence nothing guards it" in line for line in told)


def chain(root: Path, first: str) -> list[str]:
    """A way of four links, one of them a folder's, from `first` to a script in the tree; every name on it."""
    script = root / "real/deep/impl.py"
    program(script)
    for folder in ("tools", "more", Path(first).parent):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "tools/there").symlink_to("../real/deep")
    (root / "tools/second").symlink_to("there/impl.py")
    (root / "more/middle").symlink_to(root / "tools/second")
    (root / first).symlink_to(os.path.relpath(root / "more/middle", (root / first).parent))
    return [first, "more/middle", "tools/second", "tools/there", "real/deep/impl.py"]


@pytest.mark.parametrize("kind", ["command", "hook", "hook in the tree", "filter"])
def test_every_link_on_the_way_to_what_is_started_is_nobodys(tmp_path, kind):
    git(tmp_path, "init", "-q")
    command = '["true"]'
    if kind == "command":
        names = chain(tmp_path, "run.py")
        command = '["python3", "run.py"]'
    elif kind == "filter":
        names = chain(tmp_path, "clean.sh")
        git(tmp_path, "config", "filter.x.clean", "./clean.sh")
    else:
        folder = ".git/hooks" if kind == "hook" else "ci/hooks"
        git(tmp_path, "config", "core.hooksPath", folder)
        names = chain(tmp_path, f"{folder}/pre-commit")
    found = territory(tmp_path, agent_table("w", command, 'owns = ["**"]'))
    for name in names:
        assert found.owner(name).kind is Kind.NEVER, name
    assert found.owner("tools/other").agents == ("w",)


def test_links_in_a_circle_and_links_to_nothing_lead_to_an_end(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c.py").symlink_to("tools/gone.py")
    text = agent_table("w", '["python3", "a"]') + agent_table("v", '["python3", "c.py"]', 'owns = ["**"]')
    found = territory(tmp_path, text)
    assert found.owner("tools/gone.py").kind is Kind.NEVER


@pytest.mark.parametrize("inner", ["worktree", "repository", "submodule"])
def test_what_git_starts_in_worktrees_and_repositories_inside_is_nobodys(tmp_path, inner):
    git(tmp_path, "init", "-q")
    git(tmp_path, "config", "user.name", "A")
    git(tmp_path, "config", "user.email", "a@b.c")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "x")
    (tmp_path / ".git/hooks").mkdir(exist_ok=True)
    if inner == "worktree":
        git(tmp_path, "worktree", "add", "-q", "sub/in")
        git(tmp_path, "config", "core.hooksPath", "ci/hooks")
        git(tmp_path, "config", "filter.x.clean", "tools/clean.sh")
    else:
        git(tmp_path, "init", "-q", "sub/in")
        git(tmp_path / "sub/in", "config", "core.hooksPath", "ci/hooks")
        git(tmp_path / "sub/in", "config", "filter.x.clean", "tools/clean.sh")
        if inner == "submodule":
            git(
                tmp_path / "sub/in",
                "-c",
                "user.name=A",
                "-c",
                "user.email=a@b.c",
                "commit",
                "-q",
                "--allow-empty",
                "-m",
                "x",
            )
            git(tmp_path, "-c", "protocol.file.allow=always", "add", "sub/in")
    (tmp_path / "sub/in/ci").mkdir()
    (tmp_path / "sub/in/tools").mkdir()
    (tmp_path / "aipass.toml").write_text(agent_table("w", '["true"]', 'owns = ["sub/"]'))
    layout = Layout(tmp_path)
    found = Territory.of(layers.table(layout, reading.load(layout.config), inner=["sub/in"]))
    for path in ("sub/in/ci/hooks/pre-commit", "sub/in/tools/clean.sh"):
        assert found.owner(path).kind is Kind.NEVER, path
    assert found.owner("sub/in/a.py").agents == ("w",)


@pytest.mark.parametrize(
    "line",
    ["import yaml", "import os; import yaml", "try: import yaml\nexcept ImportError: pass", "if True: from yaml import *", "import os, \\\n  yaml",
     "    from yaml.loader import Loader", "import yaml as y, sys", "from yaml import (\n  x,\n)"],
)  # fmt: skip
def test_a_module_that_would_come_before_an_installed_one_is_nobodys(tmp_path, line):
    (tmp_path / "agent.py").write_text(f"{line}\n")
    (tmp_path / "app").mkdir()
    (tmp_path / "app/__init__.py").write_text("")
    found = territory(tmp_path, agent_table("w", '["python3", "agent.py"]', 'owns = ["**"]'))
    for name in (
        "yaml.py",
        "yaml.pyc",
        "_compression.py",
        "yaml/__init__.py",
        "yaml/__init__.pyc",
        f"yaml{EXTENSION_SUFFIXES[0]}",
        "json/__init__.py",
        "json.py",
        "re.abi3.so",
    ):
        assert found.owner(name).kind is Kind.NEVER, name
    for name in ("app/model.py", "app/__init__.py", "other.py", "json/data.txt"):
        assert found.owner(name).agents == ("w",), name


@pytest.mark.parametrize(
    "command", ['["python3", "-m", "tool"]', '["python3", "-c", "import helper, json, gone"]']
)
def test_what_a_module_or_a_text_imports_from_the_root_is_nobodys(tmp_path, command):
    (tmp_path / "tool.py").write_text("import json, helper, gone\n")
    (tmp_path / "helper.py").write_text("import deeper\n")
    (tmp_path / "deeper.py").write_text("")
    found = territory(tmp_path, agent_table("w", command, 'owns = ["**"]'))
    for name in ("json.py", "helper.py", "deeper.py", "gone.py", "gone/__init__.py"):
        assert found.owner(name).kind is Kind.NEVER, name
    assert found.owner("other.py").agents == ("w",)


def test_a_folder_that_an_agent_makes_takes_no_guard_away(tmp_path):
    (tmp_path / "agent.py").write_text("import helper, gone\n")
    (tmp_path / "helper.py").write_text("")
    text = agent_table("w", '["python3", "agent.py"]', 'owns = ["**"]')
    names = ("helper.py", "helper/__init__.py", "gone.py", "gone/__init__.py")
    before = territory(tmp_path, text)
    assert [before.owner(name).kind for name in names] == [Kind.NEVER] * 4
    for name in ("helper", "gone"):
        assert before.owner(name, folder=True).agents == ("w",), "a folder may be made"
        (tmp_path / name).mkdir()
    after = territory(tmp_path, text)
    assert [after.owner(name).kind for name in names] == [Kind.NEVER] * 4


def test_no_link_takes_the_place_of_a_folder_above_what_is_guarded(tmp_path):
    git(tmp_path, "init", "-q")
    git(tmp_path, "config", "core.hooksPath", "ci/deep/hooks")
    (tmp_path / "agent.py").write_text("import json\n")
    text = agent_table("w", '["python3", "agent.py"]', 'owns = ["**"]') + agent_table(
        "v", '["sh", "scripts/run.sh"]'
    )
    found = territory(tmp_path, text)
    for name in ("ci", "ci/deep", "json", "scripts"):
        assert found.owner(name).kind is Kind.NEVER, name
        assert "may be made a folder, and nothing else" in found.owner(name).why
        assert found.owner(name, folder=True).agents == ("w",)
    assert found.owner("json/data.txt").agents == ("w",)


def test_ordinary_values_of_gits_settings_guard_nothing(tmp_path):
    git(tmp_path, "init", "-q")
    for name, value in (
        ("init.defaultBranch", "main"),
        ("merge.tool", "vim"),
        ("user.name", "src"),
        ("pull.rebase", "true"),
        ("core.editor", "vim"),
        ("remote.origin.url", "../src"),
        ("branch.main.merge", "refs/heads/main"),
        ("color.ui", "auto"),
        ("push.default", "simple"),
    ):
        git(tmp_path, "config", name, value)
    for name in ("main", "vim", "src", "true", "simple"):
        (tmp_path / name).write_text("")
    found = territory(tmp_path, agent_table("w", '["true"]', 'owns = ["**"]'))
    for name in ("main", "vim", "src", "simple"):
        assert found.owner(name).agents == ("w",), name


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("cd tools && ./run", "tools/run"),
        ("make -C tools go", "tools/Makefile"),
        ("make go", "Makefile"),
        ("just go", "justfile"),
        ("cd tools; python3 x.py", "tools/x.py"),
        ("npm run go", "package.json"),
    ],
)
def test_what_a_line_for_a_shell_starts_elsewhere_is_nobodys(tmp_path, line, path):
    for name in ("tools/run", "tools/x.py"):
        program(tmp_path / name)
    found = territory(tmp_path, agent_table("w", f'["sh", "-c", "{line}"]', 'owns = ["**"]'))
    assert found.owner(path).kind is Kind.NEVER


SPELLINGS = {
    '["python3", "-um", "w_um"]': "w_um.py",
    '["python3", "-mw_mj"]': "w_mj.py",
    '["python3", "-W", "ignore", "-Xutf8", "-m", "w_x"]': "w_x.py",
    '["bash", "-c", "exec python3 -um w_sh"]': "w_sh.py",
    '["bash", "-c", "cd tools && python3 -m mod"]': "tools/mod.py",
    '["bash", "-c", "exec \\"$AIPASS_ROOT/tools/run\\""]': "tools/run",
    '["bash", "-c", "exec \\"${PWD}/tools/run\\""]': "tools/run",
    '["bash", "-c", "exec $(git rev-parse --show-toplevel)/tools/run"]': "tools/run",
    '["python3", "LINK/tools/x.py"]': "tools/x.py",
    '["OUTSIDE"]': "tools/run",
    '["python3", "tools/worker"]': "tools/json.py",
    '["env", "-i", "python3", "-u", "tools/worker", "data/in.txt"]': "tools/json.py",
    '["python3", "-c", "import helper"]': "helper.py",
    '["coverage", "run", "-m", "w_um"]': "w_um.py",
    '["sh", "-c", "python3 -Ic \'import helper\'"]': "helper.py",
}


@pytest.mark.parametrize("command", SPELLINGS)
def test_however_a_command_spells_it_what_it_starts_is_nobodys(tmp_path, command):
    root = tmp_path / "real" / "repo"
    for name in (
        "w_um.py",
        "w_mj.py",
        "w_x.py",
        "w_sh.py",
        "helper.py",
        "tools/mod.py",
        "tools/run",
        "tools/x.py",
        "tools/worker",
        "data/in.txt",
    ):
        program(root / name)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "run").symlink_to("real/repo/tools/run")
    spelled = command.replace("LINK", str(tmp_path / "link/repo")).replace("OUTSIDE", str(tmp_path / "run"))
    found = territory(root, agent_table("w", spelled, 'owns = ["**"]'))
    assert found.owner(SPELLINGS[command]).kind is Kind.NEVER
    assert found.owner("data/json.py").agents == ("w",), "what lies beside data is not imported"


def test_modules_of_other_systems_are_nobodys_where_our_python_would_find_them(tmp_path, monkeypatch):
    (tmp_path / "src").mkdir()
    monkeypatch.setattr(isolation, "left_out", [str(tmp_path / "src"), str(tmp_path)])
    found = territory(tmp_path, agent_table("w", '["true"]', 'owns = ["**"]'))
    for name in ("src/nt.py", "src/_winapi/__init__.py", "src/org/__init__.py", "src/msvcrt.pyc"):
        assert found.owner(name).kind is Kind.NEVER, name
    for name in (
        "src/proj/__init__.py",
        "src/org/x.txt",
        "lib/nt.py",
        "src/queue.py",
        "src/email/__init__.py",
    ):
        assert found.owner(name).agents == ("w",), (
            f"{name}: what is behind Python's own comes in nobody's place"
        )


def test_what_an_agents_python_imports_from_an_editable_install_is_nobodys(tmp_path):
    packages = tmp_path / "venv/lib/python3.11/site-packages"
    packages.mkdir(parents=True)
    root = tmp_path / "repo"
    (packages / "x.pth").write_text(f"{root / 'src'}\n")
    (tmp_path / "venv/pyvenv.cfg").write_text("")
    (tmp_path / "venv/bin").mkdir()
    (tmp_path / "venv/bin/python3").symlink_to(sys.executable)
    (root / "src").mkdir(parents=True)
    (root / "worker.py").write_text("import copy\n")
    program(tmp_path / "venv/bin/bot")
    (tmp_path / "venv/bin/bot").write_text(f"#!{tmp_path}/venv/bin/python3\nimport copy\n")
    for command in (f'["{tmp_path}/venv/bin/python3", "worker.py"]', f'["{tmp_path}/venv/bin/bot"]'):
        found = territory(root, agent_table("w", command, 'owns = ["**"]'))
        assert found.owner("src/org/__init__.py").kind is Kind.NEVER, command
        assert found.owner("src/proj.py").agents == ("w",)


@pytest.mark.parametrize(
    ("words", "is_ours"),
    [
        (["-E", "-P", "-m", "aipass", "status"], True),
        (["-EPm", "aipass"], True),
        (["-maipass"], True),
        (["-X", "utf8", "-W", "ignore", "/x/bin/aipass", "up"], True),
        (["/x/bin/pytest", "-m", "aipass"], False),
        (["-m", "pytest", "-m", "aipass"], False),
        (["-c", "import aipass", "-m", "aipass"], False),
        (["-"], False),
        ([], False),
    ],
)
def test_only_a_process_that_runs_a_verb_is_isolated(monkeypatch, words, is_ours):
    """`-m aipass` may be a marker of another program's."""
    monkeypatch.setattr(sys, "orig_argv", ["python3", *words])
    assert isolation.is_program() is is_ours


def test_modules_that_pythonpath_puts_before_others_are_nobodys(tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text("import helper\n")
    (tmp_path / "lib").mkdir()
    text = agent_table(
        "w", '["python3", "worker.py"]', 'env = { PYTHONPATH = "lib:$PWD/more" }\nowns = ["**"]'
    )
    (tmp_path / "more").mkdir()
    found = territory(tmp_path, text)
    for name in ("lib/helper.py", "lib/json/__init__.py", "more/helper.py", "helper.py"):
        assert found.owner(name).kind is Kind.NEVER, name
    assert found.owner("src/re.py").agents == ("w",)
    # The person's own: Python reads it before any line of ours.
    (tmp_path / "src").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "src"))
    found = territory(tmp_path, text)
    assert found.owner("src/re.py").kind is Kind.NEVER
    assert found.owner("src/encodings/__init__.py").kind is Kind.NEVER
    assert found.owner("src/mine.py").agents == ("w",)
    assert found.owner("re.py").kind is Kind.NEVER, "beside the worker's script"
    monkeypatch.setenv("PYTHONPATH", ".")
    assert (
        territory(tmp_path, agent_table("w", '["true"]', 'owns = ["**"]')).owner("re.py").kind is Kind.NEVER
    )


@pytest.mark.parametrize("name", ["sitecustomize", "usercustomize"])
@pytest.mark.parametrize(
    "form", ["{}.py", "{}/__init__.py", "{}.pyc", "{}.cpython-311-x86_64-linux-gnu.so", "{}/x"]
)
def test_what_python_imports_at_its_start_is_nobodys_in_any_form(tmp_path, name, form):
    found = territory(tmp_path, agent_table("w", '["true"]', 'owns = ["src/"]'))
    assert found.owner(f"src/{form.format(name)}").kind is Kind.NEVER


#: What modules of the standard library, and of ours, try to import where it is not there; Python's own of another system are guarded besides.
NOT_THERE = ("org", "java", "vms_lib", "rich", "colorama", "better_exceptions", "twisted")


@pytest.mark.parametrize("inside", [False, True])
def test_nothing_that_an_editable_install_names_in_the_tree_is_imported(tmp_path, inside):
    """`pip install -e .` of a project with `src/` writes its path into a file of the environment that aipass lies in, too."""
    root = tmp_path / "repo"
    venv = root / ".venv" if inside else tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    packages = next(venv.glob("lib/python*/site-packages"))
    ours = [str(Path(one).resolve()) for one in sys.path if one.endswith("site-packages")]
    ours += [
        str(Path(importlib.util.find_spec(name).origin).parent.parent)
        for name in ("aipass", "aipass_plugins", "aipass_handlers")
    ]
    (packages / "a.pth").write_text("".join(f"import site; site.addsitedir({one!r})\n" for one in ours))
    (packages / "__editable__.x.pth").write_text(f"{root / 'src'}\n")
    (root / "src").mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    (root / "aipass.toml").write_text(agent_table("w", '["true"]'))
    for name in NOT_THERE:
        (root / "src" / name).mkdir()
        (root / "src" / name / "__init__.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r} + ' ')"
        )
    script = venv / "bin/aipass"
    script.write_text(
        f"#!{venv}/bin/python3\nimport re, sys\nfrom aipass.__main__ import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    for words in ([str(script)], [str(venv / "bin/python3"), "-E", "-P", "-m", "aipass"]):
        for verb in (["status"], ["plan", "status"], ["plugins"]):
            done = subprocess.run([*words, *verb], cwd=root, capture_output=True, text=True, check=False)
            assert done.returncode in (0, 4), done.stderr
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()


@pytest.mark.parametrize("name", [".githooks", "scripts/hooks", "a b/hooks"])
def test_the_real_hooks_folder_and_included_configuration_are_nobodys(tmp_path, name):
    git(tmp_path, "init", "-q")
    git(tmp_path, "config", "core.hooksPath", name)
    git(tmp_path, "config", "include.path", "../team.gitcfg")
    git(tmp_path, "config", "core.attributesFile", "team.attributes")
    (tmp_path / "team.gitcfg").write_text("[include]\n\tpath = deeper/more.cfg\n")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper/more.cfg").write_text("[user]\n\tname = x\n")
    found = territory(tmp_path, agent_table("free", '["true"]'))
    for path in (f"{name}/pre-commit", name, "team.gitcfg", "deeper/more.cfg", "team.attributes"):
        assert found.owner(path).kind is Kind.NEVER, path
    assert found.owner("scripts/build.sh").kind is Kind.FREE


def test_hooks_that_ours_start_are_nobodys_wherever_they_lie(tmp_path):
    git(tmp_path, "init", "-q")
    for folder in ("tracked", "not/tracked"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "pre-commit").write_text("#!/bin/sh\n")
        (tmp_path / folder / "pre-commit").chmod(0o755)
    git(tmp_path, "add", "tracked")
    for folder in ("tracked", "not/tracked"):
        git(tmp_path, "config", "core.hooksPath", folder)
        hooks.install(tmp_path, tmp_path / ".aipass/spool", hooktext.ALL)
        found = territory(tmp_path, agent_table("free", '["true"]'))
        started = [f"{folder}/pre-commit", f"{folder}/new"]
        if folder == "not/tracked":
            started += ["not/tracked.before-aipass/pre-commit", "not/tracked.before-aipass"]
        for path in started:
            assert found.owner(path).kind is Kind.NEVER, path


def test_what_runs_us_is_frozen_outside_the_tree_where_a_run_could_write_it(tmp_path, monkeypatch):
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setenv("PATH", f"/tmp/not-there-{os.getpid()}/bin:{tmp_path}/opened/bin:/usr/bin")
    (tmp_path / "opened").mkdir()
    text = agent_table("a", '["true"]') + f'[sandbox]\nwrite = ["{tmp_path}/opened/"]\n'
    found = territory(root, text)
    assert f"/tmp/not-there-{os.getpid()}" in found.frozen
    assert f"{tmp_path}/opened/bin" in found.frozen
    assert "/usr/bin" not in found.frozen


def test_a_plugin_whose_code_lies_in_the_tree_is_left_out_in_words(tmp_path, monkeypatch):
    (tmp_path / "aipass.toml").write_text("")
    package, info = tmp_path / "tools/mine", tmp_path.parent / f"{tmp_path.name}-site/mine-1.dist-info"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: mine\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[aipass]\nmine = mine\n")
    monkeypatch.setattr(
        sys, "path", [*sys.path, str(tmp_path / "tools"), str(tmp_path.parent), str(info.parent)]
    )
    monkeypatch.setattr(guarded, "leave_out", lambda root: None)
    plugins = Plugins()
    plugins.load_installed(tmp_path)
    assert not (tmp_path / "ran").exists()
    assert f"its code is in {tmp_path / 'tools/mine'}, where agents can write" in plugins.failed["mine"]
    assert plugins.drivers()["command"]


def test_nothing_is_imported_from_the_tree_any_more(tmp_path, monkeypatch):
    (tmp_path / "aipass.toml").write_text("")
    (tmp_path / "tools").mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "tools")])
    Plugins().load_installed(tmp_path)
    assert str(tmp_path / "tools") not in sys.path


# -- names that run code, and git folders ------------------------------------------------------------------------------


def test_the_list_of_names_that_run_code_is_whole():
    entries = runs_code.entries()
    patterns = [entry.pattern for entry in entries]
    assert len(patterns) == len(set(patterns))
    assert all(all(entry) or entry.guarded is False for entry in entries), (
        "every entry has what runs it, and a source"
    )
    assert {entry.kind.partition(":")[0].partition(" ")[0] for entry in entries} >= {
        "shell", "editors", "coding", "git", "interpreters", "debuggers", "package", "build", "test", "continuous", "containers"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "guard"),
    [
        (".envrc", ".envrc"), ("a/b/.vscode/tasks.json", ".vscode"), ("mise.local.toml", "mise.local.toml"),
        ("x/.github/workflows/ci.yml", ".github/workflows"), (".github/ISSUE.md", None), ("lefthook.yaml", "lefthook.yaml"),
        ("pkg/__pycache__/a.pyc", "__pycache__"), ("src/a.py", None), ("package.json", None), ("sub/mise/x", None),
    ],
)  # fmt: skip
def test_a_name_that_runs_code_takes_an_owns_that_names_it(path, guard):
    def owner(owns):
        agents = {"a": {"home": ".aipass/agents/a", "owns": owns}}
        return Territory.of({"agents": agents}).owner(path)

    assert (owner(None).kind is Kind.NEVER) is (guard is not None)
    if guard is not None:
        assert owner(["**"]).kind is Kind.NEVER
        assert owner([f"**/{guard}/"] if "/" in path else [f"/{guard}"]).agents == ("a",)


def test_a_git_folder_is_recognised_by_what_lies_in_it(tmp_path):
    subprocess.run(["git", "init", "-q", "--bare", str(tmp_path / "deep/er/store")], check=True)
    assert gitfolder.around(str(tmp_path), "deep/er/store/config") == "deep/er/store"
    assert gitfolder.around(str(tmp_path), "deep/er/store/hooks/post-commit") == "deep/er/store"
    assert gitfolder.around(str(tmp_path), "deep/er/store/config.lock") == "deep/er/store"
    assert gitfolder.around(str(tmp_path), "deep/er/other/config") is None
    assert not gitfolder.is_one(str(tmp_path), ["HEAD", "refs"])
    assert gitfolder.is_one(str(tmp_path), ["HEAD", "refs", "objects"])
    assert gitfolder.is_one(str(tmp_path), ["HEAD", "commondir"])


# -- the real thing: doubles of all that is started, everywhere ---------------------------------------------------------

DOUBLES = [
    *programs.STARTED, "python3", "python", "aipass", "ssh", "gpg", "gpg2", "git-lfs", "less", "more", "pager", "vi", "vim", "nano",
    "editor", "ps", "env", "cat", "id", "uname", "sed", "sort", "mytool", "askpass", "xdg-open", "bash",
]  # fmt: skip
#: Says who started it, outside the fence or in it, then does what its name promises.
DOUBLE = """#!/bin/sh
while read -r name value; do [ "$name" = Seccomp: ] && printf '%s %s %s\\n' "$value" "${{0##*/}}" "$(tr '\\0' ' ' < /proc/$PPID/cmdline)" >> {log}; done < /proc/self/status
PATH=/usr/bin:/bin exec "${{0##*/}}" "$@"
"""


def test_no_double_of_a_program_is_started_outside_the_fence(repository, tmp_path, monkeypatch):
    """Planted on PATH before everything, in the current folder, in the root: as an agent could."""
    root = repository.root
    # Where both a run and everybody else may write.
    log = root / "src/log/doubles.log"
    log.parent.mkdir(parents=True)
    repository.write("src/.gitignore", "log\n")
    for folder in (root / ".venv/bin", root / "node_modules/.bin", root):
        folder.mkdir(parents=True, exist_ok=True)
        for name in DOUBLES if folder != root else set(DOUBLES) - {"aipass"}:
            (folder / name).write_text(DOUBLE.format(log=log))
            (folder / name).chmod(0o755)
    for module in ("yaml", "click", "structlog", "sitecustomize", "numpy", "json", "aipass_extra"):
        repository.write(f"{module}.py", f"open({str(log)!r}, 'a').write('module {module}\\n')\n")
    repository.write("aipass/__init__.py", f"open({str(log)!r}, 'a').write('module aipass\\n')\n")
    real = shutil.which("git")
    monkeypatch.setenv("PATH", f"{root}/.venv/bin:node_modules/.bin:.::{os.environ['PATH']}")
    for name in ("EDITOR", "VISUAL", "PAGER", "GIT_PAGER", "GIT_EDITOR", "GIT_EXTERNAL_DIFF"):
        monkeypatch.setenv(name, str(root / "editor"))
    repository.write(".gitattributes", "*.txt filter=mine diff=mine merge=mine\n")
    for key in ("filter.mine.clean", "diff.mine.textconv", "merge.mine.driver", "diff.external", "core.fsmonitor", "core.pager",
                "gpg.program", "core.askPass"):  # fmt: skip
        subprocess.run([real, "config", key, "mytool"], cwd=root, check=True)
    repository.write(".gitignore", "/*\n!/src\n!/.gitignore\n")
    repository.write(
        "aipass.toml",
        f'[agents.a]\ndriver = "command"\ncommand = ["{sys.executable}", "-I", "{root}/agent.py"]\nowns = ["src/"]\n'
        '[pr]\nchecks = ["test -d src"]\nwake_author = false\n',
    )
    repository.write(
        "agent.py",
        "import subprocess\nopen('src/a.dat','w').write('2')\nsubprocess.run(['sh', '-c', 'mytool; sort /dev/null'])\nprint(subprocess.run(['aipass','pr','open','-m','x']).returncode)\n",
    )
    repository.write("src/a.dat", "1\n")
    quiet = ["-c", "core.fsmonitor=false", "-c", "filter.mine.clean=cat"]
    for words in (["add", "-f", "src", ".gitignore"], ["commit", "-qm", "first"]):
        subprocess.run(
            [real, *quiet, *words], cwd=root, check=True, env={**os.environ, "PATH": "/usr/bin:/bin"}
        )
    said = script(repository, "init").stdout
    script(repository, "git", "install", "--guard", "--trailers")
    script(repository, "up", "--detach", "--yes")
    script(repository, "send", "a", "go", "--wait")
    subprocess.run(
        [real, *quiet, "commit", "-q", "--allow-empty", "-m", "by me"],
        cwd=root,
        check=True,
        env={**os.environ, "PATH": "/usr/bin:/bin"},
    )
    for words in (
        ["pr", "diff", "1"],
        ["pr", "show", "1"],
        ["plan", "new", "X"],
        ["doctor"],
        ["owns", "src/a.dat"],
        ["pr", "merge", "1"],
    ):
        script(repository, *words, check=None)
    assert '"state": "merged"' in script(repository, "pr", "list", "--json").stdout, said
    script(repository, "down")
    started = log.read_text().splitlines() if log.exists() else []
    assert [line for line in started if not line.startswith("2 ")] == []
    assert started, "inside the fence the doubles are the run's own affair, and prove that they work"


def script(repository, *words, check: int | None = 0):
    """The installed command, as a person types it: not `python -m`, which would be the person's own trust in the folder."""
    command = str(Path(sys.executable).with_name("aipass"))
    done = subprocess.run(
        [command, *words],
        cwd=repository.root,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE,
    )
    assert check is None or done.returncode == check, f"{words}: {done.stdout}{done.stderr}"
    return done


@pytest.mark.parametrize("kind", ["a folder", "a hook"])
def test_hooks_that_are_links_into_the_tree_are_nobodys(tmp_path, kind):
    git(tmp_path, "init", "-q")
    (tmp_path / "scripts").mkdir()
    if kind == "a folder":
        shutil.rmtree(tmp_path / ".git/hooks", ignore_errors=True)
        (tmp_path / ".git/hooks").symlink_to("../scripts")
    else:
        (tmp_path / ".git/hooks").mkdir(exist_ok=True)
        (tmp_path / ".git/hooks/pre-commit").symlink_to("../../scripts/check")
    found = territory(tmp_path, agent_table("free", '["true"]'))
    assert found.owner("scripts/check").kind is Kind.NEVER
    assert (found.owner("scripts/other").kind is Kind.FREE) == (kind == "a hook")


def test_what_a_script_imports_from_beside_it_is_nobodys(tmp_path):
    (tmp_path / "tools/package").mkdir(parents=True)
    (tmp_path / "tools/agent.py").write_text("import sys, helper\nfrom package import x\n")
    (tmp_path / "tools/helper.py").write_text("    import deeper as d\n")
    for name in ("deeper.py", "other.py", "package/__init__.py"):
        (tmp_path / "tools" / name).write_text("")
    found = territory(tmp_path, agent_table("free", '["python3", "tools/agent.py"]'))
    for path in ("tools/helper.py", "tools/deeper.py", "tools/json.py", "tools/re.py"):
        assert found.owner(path).kind is Kind.NEVER, path
    for path in ("tools/other.py", "tools/test.py", "tools/package/__init__.py", "json.py"):
        assert found.owner(path).kind is Kind.FREE, path


def test_scripts_that_import_very_much_are_read_in_a_moment(tmp_path):
    (tmp_path / "agent.py").write_text("import m0\n")
    for number in range(50):
        (tmp_path / f"m{number}.py").write_text(f"import m{number + 1}\n" + "import x,y,z\n" * 40_000)
    found = territory(tmp_path, agent_table("free", '["python3", "agent.py"]'))
    assert found.owner("m0.py").kind is Kind.NEVER
    asked = []
    real = os.path.isfile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os.path, "isfile", lambda path: (asked.append(path), real(path))[1])
        list(guarded._imported(str(tmp_path), str(tmp_path / "agent.py"), ""))
        assert len(asked) < 250, "each name once"
        (tmp_path / "agent.py").write_text("".join(f"import n{n}\n" for n in range(20_000)))
        list(guarded._imported(str(tmp_path), str(tmp_path / "agent.py"), ""))
    assert len(asked) <= 3 * guarded.MOST_NAMES


def test_a_hooks_folder_that_is_named_while_the_engine_runs_is_nobodys_from_then_on(repository):
    repository.write("aipass.toml", agent("w", "w.py"))
    repository.write(
        "w.py",
        "try: open('late/post-commit', 'w').write('x')\nexcept PermissionError: print('refused')\nelse: print('written')\n",
    )
    (repository.root / "late").mkdir()
    repository.aipass("init")
    repository.aipass("up", "--detach")
    assert "written" in repository.aipass("send", "w", "one", "--wait").stdout
    (repository.root / "late/post-commit").unlink()
    git(repository.root, "config", "core.hooksPath", "late")
    number = iter(range(2, 100))
    repository.wait_for(
        lambda: "refused" in repository.aipass("send", "w", f"try {next(number)}", "--wait").stdout,
        "the guard",
    )


@pytest.mark.parametrize(
    "where",
    [
        "own",
        "own, a link",
        "XDG, not there yet",
        "included",
        "included by the repository",
        "named by the environment",
    ],
)
def test_a_hooks_folder_that_the_persons_configuration_names_later_is_told(tmp_path, monkeypatch, where):
    home, root = Path(os.environ["HOME"]), tmp_path / "repo"
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    file = home / ".gitconfig"
    if where == "own, a link":
        (home / "dotfiles").mkdir()
        (home / "dotfiles/gitconfig").write_text("")
        file.symlink_to("dotfiles/gitconfig")
        file = home / "dotfiles/gitconfig"
    elif where == "XDG, not there yet":
        file = home / ".config/git/config"
    elif where == "included":
        file.write_text("[include]\n\tpath = work.inc\n")
        file = home / "work.inc"
        file.write_text("")
    elif where == "included by the repository":
        git(root, "config", "include.path", "../team.inc")
        file = root / "team.inc"
        file.write_text("")
    elif where == "named by the environment":
        file = tmp_path / "global"
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(file))
    told = []
    source = Filesystem(root, baseline=True)
    source.start(told.extend)
    try:
        until(lambda: any(isinstance(one, ScanEnd) for one in told))
        told.clear()
        file.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "config", "--file", str(file), "core.hooksPath", "hk"], check=True)
        until(lambda: any(isinstance(one, Configured) for one in told))
    finally:
        source.stop()
