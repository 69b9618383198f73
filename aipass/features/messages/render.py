"""The text of a message for its recipient: quoted, under the sender's name. Pure.

A quoted text cannot pose as an order of the user (prompt injection).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from aipass.event import iso, one_line, plain

if TYPE_CHECKING:
    from aipass.ledger import Row

#: The most unread messages in a run's mail folder; the next ones follow when these are read. No prompt has room for as many.
MOST_WAITING = 100


def whole(row: Row) -> str:
    """Return a message as Markdown."""
    lines = [f"# Message {row['id']} from {row['sender']}", "", f"- sent: {iso(row['sent'])}"]
    if row["subject"]:
        lines.append(f"- subject, as the sender wrote it: {titled(row['subject'])}")
    if row["reply_to"] is not None:
        lines.append(f"- in reply to: message {row['reply_to']}")
    lines += [f"- attached file: {titled(path)}" for path in json.loads(row["files"])]
    if row["asks"]:
        lines += [
            "- it is a question that must be answered",
            *(f"- possible answer: {plain(one)[:200]}" for one in json.loads(row["options"])),
        ]
        lines.append(f'- answer: `aipass answer {row["id"]} "…"`')
    elif (row["sender"] != "aipass" and row["run"] is not None) or row["sender"] == "human":
        lines.append(f'- answer: `aipass message {row["sender"]} --reply-to {row["id"]} "…"`')
    return "\n".join([*lines, "", quoted(row["text"])]) + "\n"


def titled(text: str) -> str:
    """Return foreign text for use inside a line: one line, at most 200 characters, in quotes that it cannot close."""
    return '"' + one_line(text)[:200].replace('"', "'").replace("`", "'") + '"'


def quoted(text: str) -> str:
    """Return foreign text as a Markdown quote."""
    # `splitlines` also splits at U+2028 and the like, where some programs begin a new line without the mark.
    return "\n".join(f"> {plain(line)}".rstrip() for line in text.splitlines()) or ">"
