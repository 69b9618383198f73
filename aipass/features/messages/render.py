"""A message as its recipient reads it: quoted, under who says so, so that it is nobody's order. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from aipass.event import iso, one_line, plain

if TYPE_CHECKING:
    from aipass.ledger import Row

#: More than any prompt has room for, and than lie in a run's mail at once: the next come as those are read.
MOST_WAITING = 100


def whole(row: Row) -> str:
    """A message of the ledger as Markdown."""
    lines = [f"# Message {row['id']} from {row['sender']}", "", f"- sent: {iso(row['sent'])}"]
    if row["subject"]:
        lines.append(f"- subject, in its words: {titled(row['subject'])}")
    if row["reply_to"] is not None:
        lines.append(f"- in reply to: message {row['reply_to']}")
    lines += [f"- with the file {titled(path)}" for path in json.loads(row["files"])]
    if row["asks"]:
        lines += [
            "- it is a question that must be answered",
            *(f"- it may be: {plain(one)[:200]}" for one in json.loads(row["options"])),
        ]
        lines.append(f'- answer: `aipass answer {row["id"]} "…"`')
    elif (row["sender"] != "aipass" and row["run"] is not None) or row["sender"] == "human":
        lines.append(f'- answer: `aipass message {row["sender"]} --reply-to {row["id"]} "…"`')
    return "\n".join([*lines, "", quoted(row["text"])]) + "\n"


def titled(text: str) -> str:
    """A few words of somebody else's within a line: in quotes, which they cannot end."""
    return '"' + one_line(text)[:200].replace('"', "'").replace("`", "'") + '"'


def quoted(text: str) -> str:
    """A text of somebody else's, each line of it marked as such."""
    return "\n".join(f"> {plain(line)}".rstrip() for line in text.splitlines()) or ">"
