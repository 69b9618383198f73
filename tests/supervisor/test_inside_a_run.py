"""Inside a run the system says what is true: names of sockets, what `access` answers, what is appended, whose environment it is."""

from __future__ import annotations

import json
import sys
from fnmatch import fnmatchcase

import pytest
from fence_kit import NO_FENCE, NO_WALL, OTHER_USER, FenceHouse, no_other_user
from paths import ROOT
from repository import agent

from aipass import environment

pytestmark = pytest.mark.slow
fenced = pytest.mark.skipif(bool(NO_FENCE or NO_WALL), reason=NO_FENCE or NO_WALL or "-")
USERS = [
    None,
    pytest.param(OTHER_USER, marks=pytest.mark.skipif(bool(no_other_user()), reason=no_other_user() or "-")),
]


@pytest.fixture(params=USERS, ids=["as ourselves", "as another user"])
def house(request, monkeypatch):
    made = FenceHouse(monkeypatch, request.param)
    made.territory(a=["/a.txt", "/dir/"], b=["/b.txt", "/bdir/"])
    yield made
    said = made.bugs()
    made.close()
    assert "bug" not in said, said


SOCKETS = """
import json, os, socket
os.makedirs('dir/deep', exist_ok=True)
found = {}
os.chdir(os.environ['TMPDIR']); os.mkdir('sub'); home = os.getcwd()
for name, place in {
    'absolute': home + '/s', 'relative': 'sub/s', 'above': 'sub/../u', 'abstract': b'\\0mine-' + os.environ['AIPASS_RUN'].encode(),
    'as long as may be': 'sub/' + 'x' * 103, 'in the tree': os.environ['AIPASS_ROOT'] + '/dir/s', 'in the tree, relative': os.path.relpath(os.environ['AIPASS_ROOT'] + '/dir/deep/t'),
}.items():
    made = socket.socket(socket.AF_UNIX); made.bind(place); made.listen()
    other = socket.socket(socket.AF_UNIX); other.connect(place); taken, peer = made.accept()
    bound = place if isinstance(place, bytes) else os.fsencode(place)
    if 'tree' in name: bound = os.path.basename(bound)
    told = [os.fsencode(one) for one in (made.getsockname(), other.getpeername(), taken.getsockname())]
    found[name] = [one == bound for one in told]
print(json.dumps(found))
"""


@fenced
def test_a_socket_has_the_name_that_it_was_bound_to(house):
    """In the tree, where a path may be another's a moment later, the last part of it."""
    (house.root / "dir").mkdir(exist_ok=True)
    house.own_all()
    done = house.py("a", SOCKETS)
    assert done.exit == 0, done.err
    told = json.loads(done.out)
    assert len(told) == 7
    assert {name: all(same) for name, same in told.items()} == dict.fromkeys(told, True)


@fenced
def test_programs_that_find_each_other_by_sockets_names_do(house):
    house.write(
        "m.py",
        "import multiprocessing\nif __name__ == '__main__':\n    made = multiprocessing.Manager().list([1]); made.append(2); print(list(made))\n",
    )
    house.own_all()
    done = house.end(house.start("a", house.python, "m.py"))
    assert done.out == "[1, 2]\n", done


@fenced
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/proc/thread-self/fd/1"])
@pytest.mark.parametrize(
    "how",
    [
        "echo {} > $n",
        "echo {} >> $n",
        "echo {} | dd of=$n status=none",
        "python3 -c \"open('$n', 'w').write('{}\\n')\"",
    ],
)
def test_what_is_written_to_ones_own_output_by_name_adds_to_it(house, name, how):
    script = f"n={name}; echo first; {how.format('second')}; {how.format('third')}; echo last"
    done = house.sh("a", script)
    assert done.out == "first\nsecond\nthird\nlast\n", done
    said = house.sh(
        "a",
        script.replace("first", "first >&2")
        .replace("last", "last >&2")
        .replace("/1", "/2")
        .replace("stdout", "stderr"),
    )
    assert said.err.splitlines()[:4] == ["first", "second", "third", "last"], said


ASKED = """
import errno, json, os, sys
places = [os.path.expandvars(one) for one in sys.argv[1:]]
found = []
for place in places:
    says = os.access(place, os.W_OK)
    effective = os.access(place, os.W_OK, effective_ids=True)
    try:
        if os.path.isdir(place):
            os.close(os.open(place + '/aipass-try', os.O_CREAT | os.O_WRONLY)); os.unlink(place + '/aipass-try')
        else:
            os.close(os.open(place, os.O_WRONLY))
        can = True
    except OSError:
        can = False
    found.append([place, says, effective, can])
print(json.dumps(found))
"""


@fenced
def test_access_says_what_a_write_comes_to(house):
    for path in ("a.txt", "b.txt", "c.txt", "dir/own", "bdir/others", "dir/sub/own"):
        house.write(path)
    house.own_all()
    (house.root / "dir/link").symlink_to("../b.txt")
    (house.root / "bdir/link").symlink_to("../dir/own")
    (house.root / "dir/read-only").write_text("x")
    (house.root / "dir/read-only").chmod(0o444)
    outside = house.base / "outside"
    outside.mkdir()
    outside.chmod(0o777)
    places = [
        "a.txt",
        "b.txt",
        "c.txt",
        "dir",
        "bdir",
        "dir/own",
        "bdir/others",
        "dir/link",
        "bdir/link",
        "dir/sub",
        "dir/read-only",
        ".git",
        "$TMPDIR",
        "/tmp",
        "/",
        "/etc/passwd",
        str(outside),
        "/dev/null",
        "nothing/there",
    ]
    done = house.py("a", ASKED, *places)
    assert done.exit == 0, done.err
    told = json.loads(done.out)
    assert len(told) == len(places)
    assert [one for one in told if len(set(one[1:])) != 1 and one[0] != "/tmp"] == []
    assert done.denied is None or all("access" not in one for one in done.denied)


@fenced
def test_the_cache_of_a_test_runner_is_made_beside_and_moved_into_its_place(repository):
    repository.write("aipass.toml", agent("w", "w.py", 'owns = ["src/"]'))
    repository.write(
        "w.py",
        "import os; os.mkdir('pytest-cache-files-ab12cd34'); open('pytest-cache-files-ab12cd34/README.md', 'w').write('x'); os.rename('pytest-cache-files-ab12cd34', '.pytest_cache')",
    )
    repository.aipass("up", "--detach")
    repository.aipass("send", "w", "go", "--wait")
    assert (repository.root / ".pytest_cache/README.md").read_text() == "x"


# -- the environment ---------------------------------------------------------------------------------------------------

LISTED = (*environment.DOORS, *environment.OF_THE_CALLER)


def example(name: str) -> str:
    return name.replace("*", "SOMETHING")


@pytest.mark.parametrize("name", LISTED)
def test_nothing_of_the_callers_own_work_is_inherited_unless_it_is_named(name):
    shell = {example(name): "x", "EDITOR": "vi"}
    assert environment.inherited(shell, None) == {"EDITOR": "vi"}
    if name in environment.OF_THE_CALLER:
        assert environment.inherited(shell, [example(name)]) == {example(name): "x"}
        assert environment.inherited(shell, ["*"]) == {"EDITOR": "vi"}, "a pattern names nothing literally"
    else:
        assert environment.inherited(shell, [example(name), "*"]) == {"EDITOR": "vi"}


def test_a_real_run_has_none_of_them_and_what_people_set_for_their_tools(repository):
    shell = {
        example(name): "x"
        for name in LISTED
        if not name.startswith(("LD_", "DYLD", "PYTHON", "GIT_", "AIPASS", "BASH_FUNC", "PYTEST"))
    }
    shell |= {
        "MAKEFLAGS": "-j4",
        "CLAUDECODE": "1",
        "NODE_OPTIONS": "--max-old-space-size=1",
        "MY_TOKEN": "t",
        "LANG": "C.UTF-8",
    }
    repository.write("aipass.toml", agent("w", "w.py"))
    repository.write("w.py", "import json, os; print(json.dumps(dict(os.environ)))")
    repository.aipass("up", "--detach", env=shell)
    repository.aipass("send", "w", "go", "--wait")
    got = json.loads(next(repository.root.glob("outbox/w/*.md")).read_text())
    assert got["MY_TOKEN"] == "t"
    left = {name for name in got if name in shell and name not in {"MY_TOKEN", "LANG"}}
    assert not left - {"SHLVL"}


def test_the_list_is_documented():
    page = (ROOT / "docs/environment.md").read_text()
    assert [name for name in LISTED if f"`{name}`" not in page] == []
    assert not any(fnmatchcase("PATH", name) for name in LISTED)
    assert sys.executable not in page
