"""What a report must say first: what was left out and what is unequal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LEFT_OUT, UNEQUAL = "left out", "unequal"


@dataclass(frozen=True)
class Note:
    """One thing that was left out or is unequal.

    Attributes:
        kind: `LEFT_OUT` or `UNEQUAL`.
        subject: a file, a seed, a method or a task; of notes with one text, the subjects are listed together.
        text: what and why, to be read after the subject.
    """

    kind: str
    subject: str
    text: str


def grouped(notes: Iterable[Note], kind: str, *, most: int = 8) -> list[tuple[str, str]]:
    """Notes of a kind as (subjects, text), in the order of their first; more than `most` subjects are counted."""
    texts: dict[str, list[str]] = {}
    for note in notes:
        if note.kind == kind and note.subject not in texts.setdefault(note.text, []):
            texts[note.text].append(note.subject)
    return [(listed(subjects, most=most), text) for text, subjects in texts.items()]


def listed(names: Sequence[str], *, most: int = 8) -> str:
    """`a, b and c`, or `a, b, c and 5 more`."""
    names = [name for name in names if name]
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""


def plural(count: int, word: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
