"""A real repository for tests of what aipass does with git, and everything in it that must not move."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from aipass.features.git.lease import Lease
from aipass.features.git.pr_merge import Merger
from aipass.features.git.pr_open import PrRequest, Pulls, WrittenPath, seal
from aipass.features.git.pr_records import PrRecords
from aipass.features.git.repo import Repo


def git(folder: Path, *words: str, check: bool = True, stdin: bytes | None = None) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, check=False, input=stdin or b"")
    assert not check or done.returncode == 0, f"git {' '.join(words)}: {done.stderr.decode()}"
    return done.stdout.decode("utf-8", "surrogateescape")


class GitBench:
    """One repository, and the ways to make and merge PRs in it without an engine."""

    def __init__(self, top: Path, files: dict[str, str] | None = None, root: str = "") -> None:
        self.top = top
        top.mkdir(parents=True, exist_ok=True)
        git(top, "init", "-q", "-b", "main")
        for path, text in (files if files is not None else {"a.txt": "a\n"}).items():
            self.write(path, text)
        git(top, "add", "-A")
        git(top, "commit", "-qm", "first", "--allow-empty")
        self.root = top / root
        self.repo = Repo(self.root, top / ".git/test-scratch")
        self.records = PrRecords(self.repo.shared)
        self.asked = 0

    def write(self, path: str, text: str | bytes, mode: int = 0o644) -> None:
        target = self.top / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text.encode() if isinstance(text, str) else text)
        target.chmod(mode)

    def git(self, *words: str, **how) -> str:
        return git(self.top, *words, **how)

    def open(self, agent: str, paths: list[str], title: str | None = None, find_secrets=None, **more):
        """A PR of these paths, as a run that wrote them and ended would have it."""
        self.asked += 1
        claims = more.pop("claims", None) or {path: WrittenPath(seal(self.root / path)) for path in paths}
        wish = PrRequest(
            str(self.root),
            str(more.pop("asked", self.asked)),
            agent,
            title or f"Work of {agent}",
            claims=claims,
            **more,
        )
        with Lease(self.repo.shared).hold(agent, "test") as held:
            return Pulls(self.repo, self.records, find_secrets).open(wish, held)

    def merge(self, *numbers: int, method: str = "merge", busy=lambda _: None):
        merger = Merger(self.repo, self.records)
        ready = merger.prepare([self.records.get(number) for number in numbers], method, "test")
        if ready.prs:
            with Lease(self.repo.shared).hold("test", "merge") as held:
                merger.apply(ready, held, busy)
        return ready

    def tree(self, commit: str) -> dict[str, tuple[str, str]]:
        """What a commit holds: mode and content by path."""
        lines = [line for line in self.git("ls-tree", "-r", "-z", commit).split("\0") if line]
        entries = [(line.partition("\t")[2], *line.partition("\t")[0].split(" ")) for line in lines]
        wanted = "".join(f"{sha}\n" for _, _, kind, sha in entries if kind == "blob").encode()
        said = subprocess.run(
            ["git", "cat-file", "--batch"], cwd=self.top, input=wanted, capture_output=True, check=True
        ).stdout
        found = {}
        for path, mode, kind, sha in entries:
            if kind == "commit":
                found[path] = mode, sha
                continue
            head, _, said = said.partition(b"\n")
            size = int(head.split(b" ")[2])
            found[path], said = (mode, said[:size].decode("utf-8", "surrogateescape")), said[size + 1 :]
        return found

    def working(self) -> dict[str, tuple[str, str]]:
        """What the working tree holds, in the same form."""
        found = {}
        for folder, folders, names in os.walk(self.top):
            if ".git" in folders:
                folders.remove(".git")
            for name in [*names, *(one for one in folders if Path(folder, one).is_symlink())]:
                path = Path(folder, name)
                relative = str(path.relative_to(self.top))
                if path.is_symlink():
                    found[relative] = "120000", os.readlink(path)
                else:
                    mode = "100755" if path.stat().st_mode & 0o100 else "100644"
                    found[relative] = mode, path.read_bytes().decode("utf-8", "surrogateescape")
        return found

    def untouched(self) -> dict[str, bytes]:
        """Everything of the user's that must stay as it is, byte for byte."""
        own = self.top / ".git"
        found = {}
        for path in [
            own / "HEAD",
            own / "index",
            own / "config",
            *(own / "hooks").glob("*"),
            *(own / "refs").rglob("*"),
        ]:
            if path.is_file() and "aipass" not in path.parts:
                found[str(path)] = path.read_bytes()
        return found

    def whole(self) -> None:
        """Git finds nothing wrong, and nothing of ours is left lying about."""
        said = subprocess.run(
            ["git", "fsck", "--strict"], cwd=self.top, capture_output=True, text=True, check=False
        )
        assert said.returncode == 0, said.stderr
        assert not list((self.top / ".git").rglob("*.lock"))
        scratch = self.repo.scratch
        assert not scratch.exists() or not os.listdir(scratch), os.listdir(scratch)
        assert not Lease(self.repo.shared).tickets()

    def remove(self) -> None:
        shutil.rmtree(self.top)
