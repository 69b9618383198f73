"""PR records: one JSON file for each in `<git common dir>/aipass/prs`, shared by all worktrees; no commit can hold them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from aipass.errors import AipassError
from aipass.supervisor import held

if TYPE_CHECKING:
    from pathlib import Path

FOLDER, SCHEMA = "prs", 1
#: Branches that people look at, one for each open PR; and what keeps every PR's commits, whatever becomes of its branch.
HEADS, KEPT = "refs/heads/aipass/", "refs/aipass/pr/"
#: The branch of what an agent has committed and not yet handed in.
DRAFT = "draft"
MAX_SLUG = 48


class Pr(BaseModel):
    """One PR. Times are ISO 8601 in UTC; paths are those of the repository, not of a root below it."""

    model_config = ConfigDict(extra="allow")

    schema_: int = SCHEMA
    id: int
    agent: str
    ref: str
    #: The commit that it is built upon, and its own.
    base: str
    head: str
    state: Literal["open", "merged", "closed"]
    title: str
    body: str = ""
    created: str
    dispatch: int | None = None
    plan: str | None = None
    phase: str | None = None
    #: The branch it was made for.
    branch: str | None = None
    paths: tuple[str, ...] = ()
    #: Open PRs whose changes it goes on from.
    stacked_on: tuple[int, ...] = ()
    #: The root that asked, and its mark of the request: the same request is carried out once.
    root: str = ""
    asked: str = ""
    updated: str | None = None
    finished: str | None = None
    #: Why it was closed, or the commit that holds it.
    reason: str | None = None
    merged: str | None = None
    #: Where a forge shows it.
    url: str | None = None


class PrRecords:
    """The records of one repository. Written by whoever holds the git lease, read by anybody."""

    def __init__(self, shared: Path) -> None:
        self._folder = shared / FOLDER

    def all(self, wrong: list[str] | None = None) -> list[Pr]:
        """Every PR, oldest first. One whose record cannot be used is left out, and said in `wrong`."""
        found = []
        for number in self._numbers():
            try:
                found.append(self.get(number))
            except AipassError as exc:
                if wrong is not None:
                    wrong.append(str(exc))
        return found

    def _numbers(self) -> list[int]:
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        return sorted(int(name[:-5]) for name in names if re.fullmatch(r"[0-9]{1,15}\.json", name))

    def open(self) -> list[Pr]:
        """Those that are neither merged nor closed."""
        return [pr for pr in self.all() if pr.state == "open"]

    def get(self, number: int) -> Pr:
        """One PR. Raises AipassError where there is none, or its record is not as it must be."""
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
            raise AipassError(f"{path}: cannot be used ({why}); put it right, or move it away") from exc

    def put(self, pr: Pr) -> None:
        """Write one, whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        data = pr.model_dump(mode="json")
        data = {"schema": data.pop("schema_"), **data}
        held.write_atomic(self._folder / f"{pr.id}.json", json.dumps(data, indent=2) + "\n")

    def of_request(self, root: str, asked: str) -> Pr | None:
        """The PR that a request has led to."""
        return next((pr for pr in self.all() if pr.root == root and pr.asked == asked), None)

    def last(self) -> int:
        """The highest number that was ever used here."""
        return max(self._numbers(), default=0)


def slug(title: str) -> str:
    """A title as a part of a branch's name: lower-case words of ASCII letters and digits with `-` between."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:MAX_SLUG].strip("-")
    return "pr" if words in {"", DRAFT} else words


def folder_of(agent: str) -> str:
    """Where an agent's branches are: its name, as far as git takes it."""
    name = re.sub(r"\.lock$", "-lock", re.sub(r"\.{2,}|\.$", "-", agent))
    if name != agent:
        # Another agent may be called as this one is written.
        name += "-" + hashlib.sha256(agent.encode()).hexdigest()[:6]
    return HEADS + name + "/"


def title_of(text: str) -> str:
    """A title in one line, without characters that no commit can hold."""
    return " ".join("".join(c for c in text if c.isprintable() or c.isspace()).split())


__all__ = ["DRAFT", "FOLDER", "HEADS", "KEPT", "Pr", "PrRecords", "folder_of", "slug", "title_of"]
