"""The house holds: import contracts that fail where they must, a core that names no feature, parts that stay small."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from paths import ROOT

CORE = ROOT / "aipass/core"
#: The nouns of features; the core has none of them in its code.
NOUNS = re.compile(
    r"\b(?:Plans?|PlanView|Dispatcher|Ownership|Inbox|Memory|Messages?|Questions?|PullRequest\w*|Reload|Keeper|Shelf|Mailbox)\b"
)
WRONG = {
    "core imports a feature": ("aipass/core/step.py", "from aipass.features.plans import model"),
    "core imports the assembly": ("aipass/core/timers.py", "from aipass import app"),
    "a feature imports one above it": ("aipass/features/ownership/advice.py", "from aipass.features.plans import model"),
    "a source imports the core": ("aipass/sources/cron.py", "from aipass.core import step"),
    "the supervisor imports ours": ("aipass/supervisor/hold.py", "from aipass import errors"),
    "ours imports a handler": ("aipass/app.py", "import aipass_handlers.inbox"),
    "a feature is entered by its inside": ("aipass/features/plans/control.py", "from aipass.features.git import pr_merge"),
    "a verb enters a feature by its inside": ("aipass/cli/status.py", "from aipass.features.messages import mailbox"),
    "a room that has no place": ("aipass/cellar.py", ""),
    "a feature that has no place": ("aipass/features/attic/__init__.py", ""),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_import_breaks_a_contract(tmp_path, what):
    path, line = WRONG[what]
    for name, place in (("aipass", "aipass"), ("handlers", "aipass_handlers"), ("plugins", "aipass_plugins")):
        shutil.copytree(ROOT / name, tmp_path / place, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    target = tmp_path / path
    target.parent.mkdir(exist_ok=True)
    old = target.read_text() if target.exists() else '"""New."""\n\nfrom __future__ import annotations\n'
    target.write_text(
        old.replace(
            "from __future__ import annotations\n", f"from __future__ import annotations\n{line}\n", 1
        )
    )
    code = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout or "not listed" in done.stdout or "Missing" in done.stdout, done.stdout


def imported_from_outside() -> set[str]:
    """Modules of features that something outside their feature imports."""
    found = set()
    for path in [*ROOT.glob("aipass/**/*.py"), *ROOT.glob("handlers/*.py"), *ROOT.glob("plugins/*.py")]:
        own = ".".join(path.relative_to(ROOT).parts[:3])
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aipass.features."):
                names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                found |= {name for name in names if not name.startswith(own + ".")}
    return found


def test_what_nobody_outside_imports_is_protected():
    """The face of a feature is what others import; a new module belongs to its inside until somebody needs it."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    protected = {name for one in contracts for name in one.get("protected_modules", ())}
    outside = imported_from_outside()
    inside = set()
    for path in (ROOT / "aipass/features").glob("*/*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.stem not in {"__init__", "feature", "status"} and name not in outside:
            inside.add(name)
    assert protected == inside


def test_the_core_names_no_feature():
    found = []
    for path in CORE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = (
                node.id
                if isinstance(node, ast.Name)
                else node.attr
                if isinstance(node, ast.Attribute)
                else None
            )
            if name is not None and NOUNS.fullmatch(name):
                found.append(f"{path.name}:{node.lineno} {name}")
    assert not found


def test_the_engine_imports_little():
    imports = [
        node
        for node in ast.walk(ast.parse((CORE / "engine.py").read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    ours = {
        node.module
        for node in imports
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aipass")
    }
    assert len(ours) <= 20


def test_functions_stay_short():
    """Code lines: without docstring, blanks and comments."""
    long = []
    for path in [*ROOT.glob("aipass/**/*.py"), *ROOT.glob("handlers/*.py"), *ROOT.glob("plugins/*.py")]:
        text = path.read_text()
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                begin = node.body[0].end_lineno if ast.get_docstring(node) else node.lineno
                body = [line.strip() for line in lines[begin : node.end_lineno]]
                count = sum(1 for line in body if line and not line.startswith("#"))
                if count > 50:
                    long.append((count, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"))
    assert len(long) <= 9, sorted(long)
    assert all(count <= 100 for count, _ in long)
