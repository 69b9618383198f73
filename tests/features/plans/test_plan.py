"""Plans: what a file may say, what keeps one from starting, and overlap decided exactly."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT
from pattern_strategies import is_pattern

from aipass.cli.main import main
from aipass.errors import ConfigError
from aipass.features.plans import check, graph, model, templates
from aipass.supervisor.fence.glob import Globs
from aipass.text import overlap
from aipass.text.overlap import common_path, path_outside

# -- overlap -------------------------------------------------------------------------------------------------------------

SMALL = st.builds(
    lambda negated, lead, parts, trail: negated + lead + "/".join(parts) + trail,
    st.sampled_from(["", "", "!"]),
    st.sampled_from(["", "/"]),
    st.lists(
        st.sampled_from(["a", "b", "*", "**", "a*", "*b", "?", "[ab]", "[!a]", "a?", ".", "ab", "a*b"]),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(["", "/"]),
).filter(is_pattern)
_NAMES = [
    name
    for n in (1, 2, 3)
    for c in itertools.product("ab.x", repeat=n)
    if (name := "".join(c)) not in (".", "..")
]
_SHORT = [name for name in _NAMES if len(name) < 3]
EVERY_PATH = [
    *_NAMES,
    *map("/".join, itertools.product(_SHORT, repeat=2)),
    *map("/".join, itertools.product(["a", "b", "x", "ab", "ax"], repeat=3)),
    *map("/".join, itertools.product(["a", "b", "x"], repeat=4)),
]


@settings(max_examples=400, deadline=None)
@given(st.lists(SMALL, min_size=1, max_size=3), st.lists(SMALL, min_size=1, max_size=3))
@pytest.mark.slow
def test_overlap_agrees_with_trying_every_path(one, other):
    mine, theirs = Globs(one), Globs(other)
    witness = common_path(one, other)
    if witness is not None:
        assert mine.match(witness)
        assert theirs.match(witness)
    else:
        assert [path for path in EVERY_PATH if mine.match(path) and theirs.match(path)] == []
    outside = path_outside(one, other)
    if outside is not None:
        assert mine.match(outside)
        assert not theirs.match(outside)
    else:
        assert [path for path in EVERY_PATH if mine.match(path) and not theirs.match(path)] == []


@pytest.mark.parametrize(
    ("one", "other", "witness"),
    [
        (["app/"], ["app/models.py"], "app/models.py"),
        (["/src/**/*.py"], ["**/test_*.py"], "src/test_x.py"),
        (["/src/"], ["/tests/"], None),
        (["*.py"], ["*.ts"], None),
        (["*.py", "!test_*.py"], ["test_*.py"], None),
        (["*.py", "!test_*.py", "test_a.py"], ["test_*.py"], "test_a.py"),
        (["/a[0-4]"], ["/a[5-9]"], None),
        (["/a[0-5]"], ["/a[5-9]"], "a5"),
        (["/docs/*"], ["/docs/a/b"], None),
        ([], ["**"], None),
    ],
)
def test_overlap_by_example(one, other, witness):
    assert common_path(one, other) == witness
    assert (common_path(other, one) is None) is (witness is None)


# -- the file ------------------------------------------------------------------------------------------------------------

PLAN = """{"id": "0007", "title": "Add login", "template": "feature", "status": "draft",
 "phases": [
   {"id": "model", "agent": "db", "task": "Add the User model",
    "owns": ["app/models.py", "migrations/"], "delivers": ["app/models.py"], "checks": ["pytest -q tests/models"]},
   {"id": "api", "agent": "api", "after": ["model"], "task": "x",
    "owns": ["app/api/"], "delivers": ["app/api/login.py", {"path": "app/api/test_*.py", "least": 2}], "handoff": "write"}
 ]}"""


def test_a_plan_reads_as_it_is_written():
    plan = model.parse(PLAN)
    assert plan.phase("model").delivers[0].least == 1
    assert plan.phase("api").delivers[1] == model.Deliverable(path="app/api/test_*.py", least=2)
    assert plan.phase("api").settle == 0.5
    assert check.problems(plan, ["db", "api"]) == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            '"handoff": "write"',
            '"handof": "write"',
            "plan:6: phases.1.handof: unknown key; did you mean `handoff`?",
        ),
        ('"id": "0007"', '"id": "x7"', 'plan:1: id: an id is a number in quotes, such as "0007"'),
        ('"id": "0007"', '"id": 7', "plan:1: id: input should be a valid string, found 7"),
        ('"id": "api"', '"id": "a b"', "plan:5: phases.1.id: a name is letters"),
        ('"task": "x"', '"task": ""', "plan:5: phases.1.task:"),
        ('"agent": "db", ', "", "plan:3: phases.0.agent: missing"),
        ('"least": 2', '"least": 0', "plan:6: phases.1.delivers.1.least:"),
        ('"owns": ["app/api/"]', '"owns": [""]', "plan:6: phases.1.owns.0: an empty pattern"),
        ('"handoff": "write"', '"handoff": "now"', "plan:6: phases.1.handoff:"),
        ('"handoff": "write"', '"settle": 3', 'plan:6: phases.1.settle: a duration needs a unit; write "3s"'),
        ('"title": "Add login"', '"title": "Add login", "title": "twice"', 'the key "title" appears twice'),
        (" ]}", " ]", "plan:7: not valid JSON"),
        (PLAN, "[]", "plan:1: "),
        (PLAN, '{"id": "1", "title": "t", "phases": []}', "plan:1: phases: "),
    ],
)
def test_what_is_wrong_in_a_plan_is_told_with_its_line_and_field(old, new, told):
    assert old in PLAN
    with pytest.raises(ConfigError) as raised:
        model.parse(PLAN.replace(old, new, 1))
    assert told in str(raised.value)


def plan(*phases):
    return model.parse(
        json.dumps(
            {"id": "1", "title": "t", "phases": [{"task": "t", "agent": p["id"], **p} for p in phases]}
        )
    )


@pytest.mark.parametrize(
    ("phases", "kind", "named", "witness"),
    [
        ([{"id": "a", "owns": ["x/"]}, {"id": "b", "owns": ["x/y"]}], "overlap", ("a", "b"), "x/y"),
        ([{"id": "a", "after": ["b"]}, {"id": "b", "after": ["a"]}], "cycle", ("a", "b"), None),
        ([{"id": "a", "after": ["a"]}], "cycle", ("a",), None),
        ([{"id": "a", "agent": "nobody"}], "unknown-agent", ("a",), None),
        ([{"id": "a", "owns": ["x"], "delivers": ["y"]}], "not-owned", ("a",), "y"),
        ([{"id": "a", "owns": ["x/*.py"], "delivers": ["x/*"]}], "not-owned", ("a",), "x/x"),
        ([{"id": "a"}, {"id": "b", "agent": "a"}], "agent-twice", ("a", "b"), None),
        ([{"id": "a", "after": ["nowhere"]}], "missing-after", ("a",), None),
        ([{"id": "a"}, {"id": "a", "agent": "b"}], "missing-after", ("a",), None),
    ],
)
def test_each_kind_of_problem_is_found_and_named(phases, kind, named, witness):
    found = check.problems(plan(*phases), ["a", "b", "c"])
    assert (kind, named, witness) in [(p.kind, p.phases, p.witness) for p in found]
    assert all(p.message for p in found)


def test_phases_in_an_order_may_own_the_same():
    phases = [
        {"id": "a", "owns": ["x/"]},
        {"id": "b", "owns": ["x/"], "after": ["a"]},
        {"id": "c", "owns": ["x/"], "after": ["b"]},
    ]
    assert check.problems(plan(*phases), ["a", "b", "c"]) == []


def test_a_plan_of_two_hundred_phases_is_checked_to_its_end():
    wide = plan(*[{"id": f"p{i}", "owns": [f"svc{i}/mod{j}/**/*.py" for j in range(20)]} for i in range(200)])
    agents = [f"p{i}" for i in range(200)]
    assert check.problems(wide, agents) == []
    clash = plan(
        *[{"id": f"p{i}", "owns": [f"svc{i % 199}/mod{j}/**/*.py" for j in range(20)]} for i in range(200)]
    )
    assert [(p.kind, p.phases) for p in check.problems(clash, agents)] == [("overlap", ("p0", "p199"))]


def test_plans_that_run_side_by_side_are_compared_as_well():
    one, other = plan({"id": "a", "owns": ["x/"]}), plan({"id": "b", "owns": ["**/y"]})
    assert [(p.phases, p.witness) for p in check.between(one, [other])] == [(("a", "b"), "x/y")]


def test_the_order_is_drawn_as_text_and_as_mermaid():
    drawn = model.parse(PLAN)
    assert graph.as_text(drawn, {"api": "running"}).splitlines() == [
        "0007 Add login",
        "1. model (db)  owns app/models.py migrations/",
        "2. api (api) [running]  after model  owns app/api/",
    ]
    assert graph.as_mermaid(drawn).splitlines()[-1] == "  p0 --> p1"


def test_a_circle_is_drawn_as_what_it_is():
    drawn = plan(
        {"id": "a", "owns": ["a"]},
        {"id": "b", "owns": ["b"], "after": ["c"]},
        {"id": "c", "owns": ["c"], "after": ["b"]},
    )
    assert graph.as_text(drawn).splitlines()[1:] == [
        "1. a (a)  owns a",
        "?  b (b)  never runs: part of a cycle, or after one; after c",
        "?  c (c)  never runs: part of a cycle, or after one; after b",
    ]


@pytest.mark.parametrize("template", templates.BUILT_IN)
@pytest.mark.parametrize("agents", [["one"], ["one", "two"], ["one", "two", "three"]], ids=len)
def test_every_template_makes_a_plan_that_can_start(tmp_path, template, agents):
    phases = templates.make(template, "a thing", agents, tmp_path)
    made = model.parse(json.dumps({"id": "1", "title": "a thing", "phases": phases}))
    assert check.problems(made, agents) == []


# -- the verbs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path, monkeypatch):
    agents = "".join(
        f'[agents.{name}]\ndriver = "command"\ncommand = ["true"]\n' for name in ("db", "api", "lead")
    )
    (tmp_path / "aipass.toml").write_text(agents)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def aipass(capfd, *words):
    try:
        code = main(list(words))
    except SystemExit as exc:
        code = exc.code
    out = capfd.readouterr()
    return code or 0, out.out, out.err


def test_a_plan_is_made_checked_and_drawn(root, capfd):
    assert aipass(capfd, "plan", "new", "Add Login!")[1] == "plans/0001-add-login.json\n"
    assert aipass(capfd, "plan", "new", "Again", "--template", "bugfix")[1] == "plans/0002-again.json\n"
    code, out, _ = aipass(capfd, "plan", "check", "1", "--json")
    assert (code, json.loads(out)["ok"], json.loads(out)["problems"]) == (0, True, [])
    assert {w["kind"] for w in json.loads(out)["warnings"]} == {"no-match"}
    assert "1. design (lead)" in aipass(capfd, "plan", "graph", "0001")[1]
    assert aipass(capfd, "plan", "graph", "plans/0002-again.json", "--mermaid")[1].startswith("flowchart LR")


def test_a_plan_with_problems_exits_1_and_a_broken_one_2(root, capfd):
    (root / "plans").mkdir()
    file = root / "plans/0003-x.json"
    file.write_text(PLAN.replace('"after": ["model"], ', "").replace('"app/api/"', '"app/"'))
    code, out, _ = aipass(capfd, "plan", "check", "3", "--json")
    found = json.loads(out)
    assert (code, found["ok"]) == (1, False)
    assert found["problems"][0] == {
        "kind": "overlap",
        "phases": ["model", "api"],
        "witness": "app/models.py",
        "message": found["problems"][0]["message"],
    }
    file.write_text("{")
    code, _, err = aipass(capfd, "plan", "check", "3")
    assert code == 2
    assert "plans/0003-x.json:1: not valid JSON" in err
    assert aipass(capfd, "plan", "check", "99")[0] == 2


def test_a_template_of_ones_own_is_listed_and_used(root, capfd):
    folder = root / "plans/templates"
    folder.mkdir(parents=True)
    (folder / "mine.json").write_text(
        json.dumps([{"id": "a", "agent": "db", "task": "Do {title}", "owns": ["/x"]}])
    )
    (folder / "broken.json").write_text("{")
    assert "mine" in aipass(capfd, "plan", "templates")[1].split()
    path = aipass(capfd, "plan", "new", "that", "--template", "mine")[1].strip()
    assert json.loads((root / path).read_text())["phases"][0]["task"] == "Do that"
    assert aipass(capfd, "plan", "new", "x", "--template", "broken")[0] == 2
    assert "templates: feature" in aipass(capfd, "plan", "new", "x", "--template", "none")[2]


def test_the_example_plan_can_start():
    path = ROOT / "examples/plan/0001-login.json"
    assert check.problems(model.load(path), ["db", "web", "lead"]) == []


def test_a_rehearsal_in_which_a_run_writes_on_after_its_end_is_told():
    from aipass.features.plans import rehearse

    made = plan({"id": "a", "owns": ["a"]})
    at = "2026-01-01T00:00:0{}Z"
    events = [
        {"kind": kind, "time": at.format(second), "detail": detail}
        for second, (kind, detail) in enumerate(
            [
                ("plan.started", {}),
                ("phase.started", {"phase": "a"}),
                ("phase.written", {}),
                ("phase.done", {"phase": "a"}),
            ]
        )
    ]
    told = rehearse._told(
        made, {"phases": [{"id": "a", "status": "done", "dispatch": None}], "status": "done"}, events
    )
    assert told.phases == (("a", "done", 1.0, 3.0),)


UUID = "*-????????-????-????-????-????????????"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((f"/out/{UUID}",), ("/out/",)),
        ((f"/out/{UUID}",), (f"out/{UUID}",)),
        (("/out/*-?????????????????.json",), ("/out/*.json",)),
        (("reports/*-??????????????????????.md",), ("reports/*_???????????????????????.md",)),
    ],
)
def test_many_wildcards_in_one_name_are_compared_at_once(one, other, monkeypatch):
    monkeypatch.setattr(overlap, "MOST_STEPS", 200_000)
    if not one[0].startswith("reports"):
        assert path_outside(one, other) is None
    common = common_path(one, other)
    assert common is not None
    assert Globs(one).match(common)
    assert Globs(other).match(common)


def test_what_takes_too_long_to_compare_is_said(monkeypatch):
    monkeypatch.setattr(overlap, "MOST_STEPS", 200_000)
    hard = tuple(f"/out/*{letter}{'?' * 24}" for letter in "abc")
    with pytest.raises(overlap.UndecidedError, match=r"can match in too many ways .* use fewer"):
        path_outside(("/out/*c?????????????????????????x",), hard)
    made = plan({"id": "a", "owns": list(hard), "delivers": ["/out/*c?????????????????????????x"]})
    assert [(p.kind, "too many ways" in p.message) for p in check.problems(made, ["a"])] == [
        ("not-owned", True)
    ]


def test_a_comparison_takes_so_many_steps_whatever_the_alphabet(monkeypatch):
    steps = []
    step = overlap._Pattern.step
    monkeypatch.setattr(overlap._Pattern, "step", lambda *given: steps.append(1) or step(*given))
    monkeypatch.setattr(overlap, "MOST_STEPS", 10_000)
    letters = "".join(map(chr, range(0x4E00, 0x4E00 + 150)))
    with pytest.raises(overlap.UndecidedError):
        path_outside(
            (f"/out/*{letters}{'?' * 25}",),
            (f"/out/*{letters[:20]}{'?' * 24}", f"/out/*{letters[9]}{'?' * 24}"),
        )
    assert len(steps) <= 3 * overlap.MOST_STEPS + 3 * 200


def test_after_a_few_that_cannot_be_compared_no_more_are(monkeypatch):
    monkeypatch.setattr(overlap, "MOST_STEPS", 1_000)
    hard = [f"/out/*{letter}{'?' * 24}" for letter in "abc"]
    phase = {"id": "a", "owns": hard, "delivers": [f"/out/*c{'?' * 25}{n}" for n in range(40)]}
    assert len(check.problems(plan(phase), ["a"])) == check.MOST_UNDECIDED
