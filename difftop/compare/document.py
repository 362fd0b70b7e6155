"""A report as data: sections of paragraphs, lists, tables and pictures, which `page` and `tables` write as HTML and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list; an item is a subject, shown strong, and what is said of it."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: what it shows, and in which unit.
        header: names of the columns.
        rows: as many cells each; the first `keys` cells name the row.
        keys: number of leading cells that are row headers.
        bold: (row, column) of cells that stand out.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    keys: int = 1
    bold: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        png: the file's bytes.
        name: of the file, without ending.
        alt: what can be seen, in words and numbers, for who can't see it.
        caption: what it shows and how it was made.
        wide: takes the whole width; the others may stand side by side.
    """

    png: bytes
    name: str
    alt: str
    caption: str
    wide: bool = False


Block = Text | Bullets | Table | Picture


@dataclass(frozen=True)
class Section:
    """A heading and what is under it; `anchor` is its place in links."""

    title: str
    anchor: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A whole report: the title, a line below it, and its sections in order."""

    title: str
    lead: str
    sections: list[Section] = field(default_factory=list)
