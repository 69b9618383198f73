"""What an agent saved, merged with what is known of its notes: entry by entry, by the copy that it began with. Pure.

A file says in `updated` what the agent had before it. What the agent could not have seen it cannot have taken out, and what
has changed since it cannot have meant to undo.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aipass.features.memory.model import NoteEntry


@dataclass(frozen=True, slots=True)
class MergedNote:
    """An entry as it is known. Times are seconds, as the file's `updated` has them.

    `since`: the first copy that had it. `changed`: the first copy with this text. `gone`: the first copy without it.
    `earlier`: what it said before.
    """

    id: int
    text: str
    tags: tuple[str, ...] = ()
    since: float = 0.0
    changed: float = 0.0
    gone: float | None = None
    earlier: tuple[str, ...] = ()

    def has_said(self, text: str) -> bool:
        """Whether this is, or was, its text."""
        return text == self.text or text in self.earlier


@dataclass(slots=True)
class Merged:
    """What is to be done, and how the list is then: notes by id, new ones as entries."""

    order: list[int | NoteEntry] = field(default_factory=list)
    changed: list[tuple[int, NoteEntry]] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)


def merge(
    known: Iterable[MergedNote], saved: Sequence[NoteEntry], base: float, *, removes: bool = True
) -> Merged:
    """Merge one list. `base`: `updated` of the copy that the agent began with.

    `removes`: whether what is not in the save was taken out; not where nobody knows what the agent had before it.
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
                done.order.append(entry)  # taken out, and changed here: what is new is kept
        else:
            done.order.append(note.id)
            if note.changed <= base:
                if (entry.text, entry.tags) != (note.text, note.tags):
                    done.changed.append((note.id, entry))
            elif not note.has_said(entry.text):
                done.order.append(entry)  # changed twice: neither is lost
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
    """Which note each entry is, by its place: by its id, or by its text, as it was saved before it had an id."""
    found: dict[int, MergedNote] = {}
    met: set[int] = set()
    for place, entry in enumerate(saved):
        note = notes.get(entry.id) if entry.id is not None and entry.id not in met else None
        # One that is gone since before the copy was made has come back on purpose.
        if note is not None and (note.gone is None or note.gone > base):
            found[place] = note
            met.add(note.id)
    fresh: dict[str, list[MergedNote]] = {}
    for note in notes.values():
        if note.id not in met and note.since > base:
            fresh.setdefault(note.text, []).append(note)
    for place, entry in enumerate(saved):
        if place not in found and entry.id not in notes and fresh.get(entry.text):
            found[place] = fresh[entry.text].pop(0)
    return found
