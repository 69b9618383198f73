"""The messages part of `aipass status`: open questions, and the number of the person's unread messages."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from aipass.event import one_line
from aipass.terminal.output import labelled
from aipass.text.units import count

if TYPE_CHECKING:
    from aipass.ledger import Ledger, Row
    from aipass.workspace.layout import Layout


def gather(layout: Layout, ledger: Ledger | None) -> dict[str, Any]:
    """Return the open `questions`, and `unread`: the number of the person's other unread messages."""
    del layout
    if ledger is None:
        return {"questions": [], "unread": 0}
    questions = [
        {
            "id": row["id"],
            "from": row["sender"],
            "to": row["recipient"],
            "dispatch": row["dispatch"],
            "state": state_of(ledger, row),
            "text": row["text"],
        }
        for row in ledger.all("questions", {"all": 0})
    ]
    unread = ledger.one("count_unread", {"recipient": "human"})
    # An unread question is a message as well: it must not be counted twice.
    asked = sum(1 for question in questions if question["to"] == "human")
    return {
        "questions": questions,
        "unread": max(0, (unread["number"] if unread is not None else 0) - asked),
    }


def show(found: dict[str, Any]) -> list[str]:
    """Return one line for each question, and one for all unread messages."""
    lines = [click.style(_asks(question), fg="magenta") for question in found["questions"]]
    if found["unread"]:
        lines.append(f"mail     {count(found['unread'], 'unread message')}; `aipass messages`")
    return lines


def _asks(question: dict[str, Any]) -> str:
    whom = "you" if question["to"] == "human" else question["to"]
    asks = f"{question['from']}{' waits and' if question['state'] == 'waiting' else ''} asks {whom}"
    return labelled("asks", f'{asks}: {one_line(question["text"])}; `aipass answer {question["id"]} "…"`')


def state_of(ledger: Ledger, question: Row) -> str | None:
    """Return the state of the dispatch that asked, or `waiting` while its run waits for the answer; None if a person asked."""
    number = question["dispatch"]
    dispatch = None if number is None else ledger.one("dispatch", {"id": number})
    if dispatch is None:
        return None
    # `waits` is the end of the wait as a time, so a wait that timed out counts no longer.
    waits = question["waits"] is not None and question["waits"] > time.time()
    return "waiting" if waits and dispatch["state"] == "running" else str(dispatch["state"])
