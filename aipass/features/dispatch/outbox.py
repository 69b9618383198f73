"""The outbox: writes the answer of a dispatch as a file for each of its senders."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from aipass.core.step import Again, Done
from aipass.errors import AipassError
from aipass.event import iso, printable
from aipass.features.dispatch.results import MAX_ANSWER_BYTES, result_of
from aipass.files.names import fitting
from aipass.sources.observation import FileVersion, identity_of
from aipass.supervisor import held

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aipass.core.registry import Core
    from aipass.core.step import Pending, Step
    from aipass.ledger import Row

logger = structlog.get_logger("aipass")

#: The pause before another try to write an answer, for example on a full disk.
AGAIN_S = 5.0
# How much of a failed run's output is put into its answer, where a person looks for the error.
SHOWN_BYTES = 20_000
#: How many written answers are remembered; the filesystem source reports each within moments, so old ones are not needed.
MOST_ANSWERS = 2000


class Outbox:
    """Writes `outbox/<agent>/<stem>.<dispatch>.md` with the answer, and a `.json` record with its metadata beside it."""

    def __init__(self, core: Core) -> None:
        self._layout, self._ledger = core.layout, core.ledger
        #: By path of an answer: its run, and the identity of the file as written; a file with another identity is not
        #: the answer.
        self._answers: dict[str, tuple[int, FileVersion]] = {}
        #: Called inside the transaction with the row of a dispatch whose answer was written, and the answer's path.
        self.listeners: list[Callable[[Step, Row, str], None]] = []

    def deliver(self, pending: Pending) -> Done | Again:
        """Write the answer; returns its path, or `Again` after an OSError: a full disk or a read-only folder may be temporary.

        Idempotent: after a crash the same files are written again.
        """
        dispatch = pending.arguments["dispatch"]
        try:
            path = self._write(dispatch)
        except OSError as exc:
            logger.error("an answer cannot be written yet", dispatch=dispatch, error=str(exc))
            return Again(AGAIN_S)
        return Done(f"answered in {path}", detail={"answer": path, "dispatch": dispatch})

    def delivered(self, step: Step, pending: Pending, done: Done) -> None:
        """Record the answer's path in the ledger and call the listeners, inside the transaction."""
        del pending
        if done.detail.get("answer") is None:
            return
        dispatch, path = done.detail["dispatch"], done.detail["answer"]
        self._ledger.run("dispatch_answer", {"id": dispatch, "answer": path})
        if (row := self._ledger.one("dispatch", {"id": dispatch})) is not None:
            for listen in self.listeners:
                listen(step, row, path)

    def _write(self, dispatch: int) -> str | None:
        """Write one answer per file stem of the senders; returns the first path, relative to the root."""
        row = self._ledger.one("dispatch", {"id": dispatch})
        if row is None:
            raise AipassError(f"there is no dispatch {dispatch} to answer")
        senders = self._ledger.all("senders", {"dispatch": dispatch})
        runs = self._ledger.all("runs_of", {"dispatch": dispatch})
        # A dispatch that was cancelled after `aipass retry`, before a new run, must not show the output of an earlier
        # attempt.
        result = result_of(self._layout, runs[-1]["id"]) if runs and row["tries"] else {}
        folder = self._layout.outbox / row["agent"]
        held.make_folders(folder, self._layout.root, mode=0o777)
        first = None
        for stem in dict.fromkeys(sender["stem"] for sender in senders):
            answer = folder / fitting(stem, f".{dispatch}.md")
            relative = str(answer.relative_to(self._layout.root))
            record = {
                "dispatch": dispatch,
                "agent": row["agent"],
                "state": row["state"],
                "subject": row["subject"],
                "senders": [sender["sender"] for sender in senders],
                "started": iso(row["started"]),
                "finished": iso(row["finished"]),
                "exit": row["exit"],
                "answer": printable(relative),
                "reason": row["reason"],
                "usage": json.loads(row["usage"]) if row["usage"] else None,
            }
            # The record first: a program that waits for the answer's file can then read the record.
            beside = answer.with_name(answer.name.removesuffix(".md") + ".json")
            _put(beside, (json.dumps(record, indent=2) + "\n").encode())
            self._put_answer(answer, row, result)
            if runs:
                self._remember(runs[-1]["id"], beside, answer)
            first = first or relative
        return first

    def _remember(self, run: int, *paths: Path) -> None:
        for path in paths:
            self._answers[str(path.relative_to(self._layout.root))] = run, identity_of(os.lstat(path))
        while len(self._answers) > MOST_ANSWERS:
            self._answers.pop(next(iter(self._answers)))

    def answered(self, path: str) -> int | None:
        """The run whose answer a file of the outbox is; None if it is no answer, or was changed since.

        Rules on the outbox continue that run's chain of causes, so an endless loop of agents meets `limits.hops`.
        """
        run, identity = self._answers.get(path, (None, None))
        try:
            return (
                run
                if run is not None and identity_of(os.lstat(self._layout.root / path)) == identity
                else None
            )
        except OSError:
            return run  # removed since: the event is still about the answer

    def _put_answer(self, path: Path, row: Row, result: Mapping[str, Any]) -> None:
        answer = result.get("answer") or ""
        if row["state"] != "succeeded":
            said = (
                _read_end(Path(answer["file"]))
                if isinstance(answer, dict)
                else answer.encode("utf-8", "replace")
            )
            _put(
                path,
                f"# {row['state'].capitalize()}\n\n{row['reason'] or 'No reason is known.'}\n".encode(
                    "utf-8", "replace"
                )
                + (b"\n---\n\n" + said if said.strip() else b""),
            )
        elif isinstance(answer, dict):
            _put_copy(path, Path(answer["file"]))
        else:
            _put(path, answer.encode("utf-8", "replace"))


def _read_end(path: Path) -> bytes:
    try:
        return held.read_end(path, SHOWN_BYTES)
    except OSError:
        return b""


def _put(path: Path, data: bytes) -> None:
    """Write a file atomically (by rename) and durably (fsync)."""
    with held.replacing(path) as file:
        file.write(data)


def _put_copy(path: Path, source: Path) -> None:
    with held.replacing(path) as file:
        try:
            content = held.open_regular(source)
        except OSError:
            # The output was removed, or replaced by a link: the answer stays empty, and its record still has the outcome.
            return
        with content:
            if not held.copy(content, file, MAX_ANSWER_BYTES):
                file.write(
                    f"\n\n[cut at {MAX_ANSWER_BYTES // 1_000_000} MB; the complete output is in {source}]\n".encode()
                )
