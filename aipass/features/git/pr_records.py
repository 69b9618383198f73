"""PR records: one JSON file per PR in `<git common dir>/aipass/prs`, shared by all worktrees and outside every commit."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from aipass.errors import AipassError
from aipass.features.git.pr_summaries import FOLDER, SCHEMA, numbers
from aipass.supervisor import held

if TYPE_CHECKING:
    from pathlib import Path

#: The branches of open PRs, for people; and the refs that keep every PR's commits from git's garbage collection, also
#: when the branch is gone.
HEADS, KEPT = "refs/heads/aipass/", "refs/aipass/pr/"
#: The last part of the branch with commits that an agent has not handed in as a PR yet.
DRAFT = "draft"
#: Characters; a branch is also a file name in git's folder, with an agent's name before and a number behind it.
MAX_SLUG = 48


class Pr(BaseModel):
    """One PR. Times are ISO 8601 in UTC; paths are relative to the top of the working tree, not to aipass's root."""

    # Fields of a newer version survive when this version writes the record again.
    model_config = ConfigDict(extra="allow")

    schema_: int = SCHEMA
    id: int
    agent: str
    ref: str
    #: The commit that the PR is based on, and its newest own commit.
    base: str
    head: str
    state: Literal["open", "merged", "closed"]
    title: str
    body: str = ""
    created: str
    dispatch: int | None = None
    plan: str | None = None
    phase: str | None = None
    #: The target branch: the one that was checked out when the PR was made. None: HEAD was detached.
    branch: str | None = None
    paths: tuple[str, ...] = ()
    #: PRs that this one is based on (a stack of PRs).
    stacked_on: tuple[int, ...] = ()
    #: The idempotency key of the newest request: the root that asked, and its number of the request.
    root: str = ""
    asked: str = ""
    updated: str | None = None
    finished: str | None = None
    #: Why the PR was closed; and the commit that contains it. None for a merge on a forge that was not pulled yet.
    reason: str | None = None
    merged: str | None = None
    #: The PR's page on a forge.
    url: str | None = None


class PrRecords:
    """The records of one repository. Only the holder of the git lease writes them; any process may read them at any time."""

    def __init__(self, shared: Path) -> None:
        self._folder = shared / FOLDER

    def all(self, wrong: list[str] | None = None) -> list[Pr]:
        """Every PR, oldest first. Leaves out unusable records, and appends the reason for each to `wrong`."""
        found = []
        for number in self._numbers():
            try:
                found.append(self.get(number))
            except AipassError as exc:
                if wrong is not None:
                    wrong.append(str(exc))
        return found

    def _numbers(self) -> list[int]:
        return numbers(self._folder)

    def open(self) -> list[Pr]:
        """The PRs in state `open`, oldest first."""
        return [pr for pr in self.all() if pr.state == "open"]

    def get(self, number: int) -> Pr:
        """One PR. Raises AipassError where there is no record, or it is unusable."""
        path = self._folder / f"{number}.json"
        try:
            found: Any = json.loads(path.read_text("utf-8"))
            if isinstance(found, dict) and found.get("schema", SCHEMA) != SCHEMA:
                raise AipassError(f"{path}: written by another version of aipass (schema {found['schema']})")
            return Pr.model_validate({"schema_": SCHEMA, **{k: v for k, v in found.items() if k != "schema"}})
        except FileNotFoundError:
            raise AipassError(f"there is no PR {number}; `aipass pr list` lists them") from None
        except (OSError, ValueError, AttributeError, RecursionError) as exc:
            why = str(exc).partition("\n")[0] or type(exc).__name__
            raise AipassError(f"{path}: cannot be used ({why}); correct the file, or move it away") from exc

    def put(self, pr: Pr) -> None:
        """Write or replace one record, atomically."""
        self._folder.mkdir(parents=True, exist_ok=True)
        data = pr.model_dump(mode="json")
        data = {"schema": data.pop("schema_"), **data}
        held.write_atomic(self._folder / f"{pr.id}.json", json.dumps(data, indent=2) + "\n")

    def of_request(self, root: str, asked: str) -> Pr | None:
        """The PR whose newest request this was; None where the request has made none yet."""
        return next((pr for pr in self.all() if pr.root == root and pr.asked == asked), None)

    def last(self) -> int:
        """The highest number of a record; 0 without records."""
        return max(self._numbers(), default=0)


def slug(title: str) -> str:
    """A title as the last part of a branch name: lower-case ASCII words with `-` between. Not unique."""
    # NFKD splits an accented letter into the letter and its accent, so that "é" becomes "e" instead of nothing.
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:MAX_SLUG].strip("-")
    # A title of other scripts has no ASCII letters; and the name of the draft branch is taken.
    return "pr" if words in {"", DRAFT} else words


def folder_of(agent: str) -> str:
    """The prefix of an agent's branches: its name, changed where git does not allow it in a ref. Unique per agent."""
    # git-check-ref-format: no part of a ref contains `..`, or ends with `.` or `.lock`.
    name = re.sub(r"\.lock$", "-lock", re.sub(r"\.{2,}|\.$", "-", agent))
    if name != agent:
        # Another agent may have the changed name as its own.
        name += "-" + hashlib.sha256(agent.encode()).hexdigest()[:6]
    return HEADS + name + "/"


def title_of(text: str) -> str:
    """A title as one line, without unprintable characters, which a commit message cannot contain or a terminal would obey."""
    return " ".join("".join(c for c in text if c.isprintable() or c.isspace()).split())


__all__ = ["DRAFT", "FOLDER", "HEADS", "KEPT", "Pr", "PrRecords", "folder_of", "slug", "title_of"]
