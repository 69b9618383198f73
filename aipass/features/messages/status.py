"""Messages in `aipass status`: open questions, and what a person has not read."""

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
    """`questions` that are open, and the number `unread` of the person's other messages."""
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
    # Questions are shown by themselves.
    asked = sum(1 for question in questions if question["to"] == "human")
    return {
        "questions": questions,
        "unread": max(0, (unread["number"] if unread is not None else 0) - asked),
    }


def show(found: dict[str, Any]) -> list[str]:
    """A line for each question, one for all messages."""
    lines = [click.style(_asks(question), fg="magenta") for question in found["questions"]]
    if found["unread"]:
        lines.append(f"mail     {count(found['unread'], 'unread message')}; `aipass messages`")
    return lines


def _asks(question: dict[str, Any]) -> str:
    whom = "you" if question["to"] == "human" else question["to"]
    asks = f"{question['from']}{' waits and' if question['state'] == 'waiting' else ''} asks {whom}"
    return labelled("asks", f'{asks}: {one_line(question["text"])}; `aipass answer {question["id"]} "…"`')


def state_of(ledger: Ledger, question: Row) -> str | None:
    """The state of the dispatch that asked, or `waiting` where its run only waits for the answer; None where a person asked."""
    number = question["dispatch"]
    dispatch = None if number is None else ledger.one("dispatch", {"id": number})
    if dispatch is None:
        return None
    waits = question["waits"] is not None and question["waits"] > time.time()
    return "waiting" if waits and dispatch["state"] == "running" else str(dispatch["state"])
