"""The docs are true: reference pages are the code's own, every example runs, every link leads somewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from paths import ROOT
from patience import PATIENCE

from aipass import hookspecs
from aipass.config import reading
from aipass.config.model import Config
from aipass.features.plans import check, model
from aipass.plugins import Plugins

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDES = [page for page in PAGES if "written by docs/generate.py" not in page.read_text()]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def examples(language: str):
    return [
        pytest.param(text, id=f"{page.stem}-{n}")
        for page in GUIDES
        for n, text in enumerate(blocks(page, language))
    ]


def test_reference_pages_are_as_the_code_says():
    done = subprocess.run([sys.executable, ROOT / "docs/generate.py", "--check"], check=False)
    assert done.returncode == 0, "run `make fix`"


def test_every_hook_has_a_test_named_after_it():
    hooks = [name for name, value in vars(hookspecs).items() if hasattr(value, "aipass_spec")]
    assert hooks
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for hook in hooks:
        assert re.search(rf"def test_{hook}\b|def test_{hook}_", tests), f"no test is named after {hook}"


@pytest.mark.parametrize("text", examples("toml"))
def test_toml_examples_are_valid(text):
    reading.parse(text)


PLANS = [
    *(text for page in GUIDES for text in blocks(page, "json") if '"phases"' in text),
    *(
        path.read_text()
        for path in sorted((ROOT / "examples").rglob("*.json"))
        if '"phases"' in path.read_text()
    ),
]


@pytest.mark.parametrize("text", PLANS)
def test_plans_in_the_docs_can_start(text):
    plan = model.parse(text)
    assert check.problems(plan, {phase.agent for phase in plan.phases}) == []


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        *(
            (Config, text)
            for page in GUIDES
            for text in blocks(page, "toml")
            if "[agents." in text or "[[on]]" in text
        ),
        *((model.Plan, text) for text in PLANS),
    ],
)
def test_what_is_valid_is_so_by_its_json_schema(schema, text):
    read = tomllib.loads if schema is Config else json.loads
    whole = schema.model_json_schema()
    assert faults(read(text), whole, whole) == []


def test_the_json_schema_refuses_what_is_not_valid():
    whole = Config.model_json_schema()
    for text in (
        "[agents.a]\ndriver = 3\n",
        "[agents.a]\ndriver = 'command'\ntimeout = 5\n",
        "[[on]]\nnmae = 'x'\n",
        "agents = []\n",
    ):
        assert faults(tomllib.loads(text), whole, whole)


TYPES = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}


def faults(value, schema, whole):
    """What is wrong with a value by a JSON Schema, as far as ours go."""
    if "$ref" in schema:
        return faults(value, whole["$defs"][schema["$ref"].rpartition("/")[2]], whole)
    if "anyOf" in schema:
        found = [faults(value, one, whole) for one in schema["anyOf"]]
        return [] if any(not one for one in found) else found
    if "const" in schema or "enum" in schema:
        return [] if value in schema.get("enum", [schema.get("const")]) else [f"{value!r} is none of them"]
    if "type" in schema and (
        not isinstance(value, TYPES[schema["type"]])
        or (isinstance(value, bool) and schema["type"] != "boolean")
    ):
        return [f"{value!r} is no {schema['type']}"]
    if isinstance(value, list):
        return [one for item in value for one in faults(item, schema.get("items", {}), whole)]
    if isinstance(value, dict):
        more, known = schema.get("additionalProperties", True), schema.get("properties", {})
        missing = [f"{name} is missing" for name in schema.get("required", ()) if name not in value]
        unknown = [f"{name} is unknown" for name in value if name not in known and more is False]
        below = [
            (item, known.get(name, more if isinstance(more, dict) else {})) for name, item in value.items()
        ]
        return [*missing, *unknown, *(one for item, inner in below for one in faults(item, inner, whole))]
    return []


@pytest.mark.parametrize("text", examples("python"))
def test_python_examples_run(text, pytester):
    if "def test_" in text:
        pytester.makepyfile(text)
        pytester.runpytest("-p", "no:randomly").assert_outcomes(passed=1)
        return
    if "DriverContract" in text:
        pytester.makepyfile(mycli=blocks(ROOT / "docs/drivers.md", "python")[0], test_mycli=text)
        pytester.syspathinsert()
        assert pytester.runpytest("-p", "no:randomly").ret == 0
        return
    module = type(sys)("example")
    exec(compile(text, "example", "exec"), module.__dict__)
    plugins = Plugins()
    plugins.register(module, "example")
    plugins.kinds()
    plugins.drivers()
    plugins.router(reading.parse(""))


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_shell_examples_run(page, repository):
    scripts = blocks(page, "sh")
    if not scripts:
        pytest.skip("no shell examples on this page")
    repository.write("agent.py", "import sys; print('I was asked:', sys.stdin.read())")
    writer = f'[agents.writer]\ndriver = "command"\ncommand = ["{sys.executable}", "agent.py"]\n'
    if page.name == "rules.md":
        writer = blocks(page, "toml")[0]
    if page.name != "README.md":
        repository.write("aipass.toml", writer)
        repository.aipass("init")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for script in scripts:
        done = subprocess.run(
            ["bash", "-ec", script],
            cwd=repository.root,
            env=env,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_no_page_is_unknown_to_the_readme():
    text = (ROOT / "README.md").read_text()
    assert [page.name for page in PAGES[1:] if f"docs/{page.name}" not in text] == []


def test_what_is_installed_holds_every_package_of_the_tree():
    """An editable installation has them all anyway, a wheel only those that are named."""
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "aipass").rglob("*.py")}
    assert found == {name for name in named if name.split(".")[0] == "aipass"}
