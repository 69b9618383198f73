"""The three-way merge of a saved list: the save, the rows, and the copy that the agent edited. Pure.

`updated` of the save identifies that copy. An agent cannot have removed an entry that its copy did not have, and cannot have
meant to undo a change that came later.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aipass.features.memory.model import NoteEntry


@dataclass(frozen=True, slots=True)
class MergedNote:
    """An entry as the ledger has it. Times are in the unit of the file's `updated`.

    `since`: the first copy with it. `changed`: the first copy with this text. `gone`: the first copy without it.
    `earlier`: its earlier texts.
    """

    id: int
    text: str
    tags: tuple[str, ...] = ()
    since: float = 0.0
    changed: float = 0.0
    gone: float | None = None
    earlier: tuple[str, ...] = ()

    def has_said(self, text: str) -> bool:
        """Return whether `text` is, or was, its text."""
        return text == self.text or text in self.earlier


@dataclass(slots=True)
class Merged:
    """The result of a merge. `order`: the whole list, known notes by id and new ones as entries."""

    order: list[int | NoteEntry] = field(default_factory=list)
    changed: list[tuple[int, NoteEntry]] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)


def merge(
    known: Iterable[MergedNote], saved: Sequence[NoteEntry], base: float, *, removes: bool = True
) -> Merged:
    """Merge one list; loses no text of either side. `base`: `updated` of the copy that the agent edited.

    `removes`: whether a missing entry counts as removed. False where that copy is unknown.
    """
    notes = {note.id: note for note in known}
    of = _matched(notes, saved, base)
    done = Merged()
    for place, entry in enumerate(saved):
        note = of.get(place)
        if note is None:
            done.order.append(entry)
        elif note.gone is not None:
            if not note.has_said(entry.text):
                done.order.append(entry)  # conflict: removed elsewhere, changed here; the new text is kept
        else:
            done.order.append(note.id)
            if note.changed <= base:
                if (entry.text, entry.tags) != (note.text, note.tags):
                    done.changed.append((note.id, entry))
            elif not note.has_said(entry.text):
                done.order.append(entry)  # conflict: changed on both sides; both texts are kept
    met = {note.id for note in of.values()}
    for note in notes.values():
        if note.gone is not None or note.id in met:
            continue
        if removes and note.since <= base:
            done.removed.append(note.id)
        else:
            done.order.append(note.id)
    return done


def _matched(notes: dict[int, MergedNote], saved: Sequence[NoteEntry], base: float) -> dict[int, MergedNote]:
    """Return the note of each entry, by the entry's index: matched by id, or by text where it has no id yet."""
    found: dict[int, MergedNote] = {}
    met: set[int] = set()
    for place, entry in enumerate(saved):
        note = notes.get(entry.id) if entry.id is not None and entry.id not in met else None
        # If the note was gone before the copy, the agent wrote it again on purpose: a new note.
        if note is not None and (note.gone is None or note.gone > base):
            found[place] = note
            met.add(note.id)
    # An agent saves a new entry, and saves again before it has read the id: the second save must add no second note.
    fresh: dict[str, list[MergedNote]] = {}
    for note in notes.values():
        if note.id not in met and note.since > base:
            fresh.setdefault(note.text, []).append(note)
    for place, entry in enumerate(saved):
        if place not in found and entry.id not in notes and fresh.get(entry.text):
            found[place] = fresh[entry.text].pop(0)
    return found
