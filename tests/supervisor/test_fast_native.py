"""The fast path's C under sanitizers: with calls that nobody would make, and behind real programs."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from fence_kit import NO_FENCE, FenceHouse
from paths import ROOT
from rounds import NIGHTLY, rounds

FENCE = ROOT / "aipass/supervisor/fence"
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def compiled(target: Path, *words: str) -> Path:
    if (compiler := shutil.which("gcc")) is None:
        pytest.skip("no C compiler")
    argv = [compiler, "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Werror", *words, "-pthread", "-o", str(target)]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if "cannot find" in done.stderr and "san" in done.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert done.returncode == 0, done.stderr
    return target


def fuzzed(folder: Path, source: Path, count: int) -> subprocess.CompletedProcess:
    program = compiled(folder / "fuzz", "-Wno-unused-function", *SANITIZE, str(source))
    (folder / "root").mkdir()
    seed = str(secrets.randbits(60))
    done = subprocess.run(
        [program, folder / "root", str(count), seed], capture_output=True, text=True, check=False
    )
    done.args = seed
    return done


@pytest.mark.skipif(bool(NO_FENCE), reason=f"there is no fence here: {NO_FENCE}")
def test_calls_that_nobody_would_make_change_nothing_of_others(tmp_path):
    done = fuzzed(tmp_path, ROOT / "tests/native/fast_fuzz.c", rounds(30_000, 3_000_000))
    assert done.returncode == 0, (done.args, done.stderr[-3000:])
    answered = int(done.stdout.split()[0])
    assert answered > rounds(30_000, 3_000_000) // 10


@pytest.mark.slow
@pytest.mark.skipif(bool(NO_FENCE), reason=f"there is no fence here: {NO_FENCE}")
@pytest.mark.parametrize(
    ("line", "broken"),
    [
        ("S_ISREG(status->stx_mode) && status->stx_nlink == 1", "S_ISREG(status->stx_mode)"),
        ("place->handle = open_path(call, place->folder, place->name, O_NOFOLLOW, 0);", "place->handle = open_path(call, place->folder, place->name, 0, 0);"),
        ("int found = slot && slot->value == run ? 0 : -1;", "int found = slot ? 0 : -1;"),
    ],
)  # fmt: skip
def test_such_calls_find_what_is_broken(tmp_path, line, broken):
    """A test that cannot fail would say nothing."""
    copy = tmp_path / "copy"
    (copy / "tests/native").mkdir(parents=True)
    shutil.copytree(
        FENCE, copy / "aipass/supervisor/fence", ignore=shutil.ignore_patterns("__pycache__", "*.so")
    )
    source = Path(shutil.copy(ROOT / "tests/native/fast_fuzz.c", copy / "tests/native"))
    code = copy / "aipass/supervisor/fence/_fast.c"
    assert code.read_text().count(line) == 1
    code.write_text(code.read_text().replace(line, broken))
    assert fuzzed(tmp_path, source, 200_000).returncode != 0


@pytest.mark.slow
@pytest.mark.skipif(not NIGHTLY, reason="make nightly runs the fence under sanitizers")
@pytest.mark.skipif(bool(NO_FENCE), reason=f"there is no fence here: {NO_FENCE}")
def test_real_programs_behind_a_sanitized_fast_path(tmp_path, monkeypatch):
    from test_fence import check_random_programs, foreign

    library = compiled(
        tmp_path / "_fast.abi3.so", *SANITIZE, "-fPIC", "-shared", f"-I{sysconfig.get_path('include')}", str(FENCE / "_fast.c"), str(FENCE / "_fast_python.c"),
    )  # fmt: skip
    house = FenceHouse(monkeypatch, sanitized=library)
    try:
        house.territory(a=["/a.txt", "/dir/"], b=["/b.txt", "/bdir/"])
        check_random_programs(house, [path for path in foreign(house) if path.name != "core"], 1000)
        assert "ERROR: AddressSanitizer" not in house.bugs()
        assert "runtime error" not in house.bugs()
    finally:
        house.close()
