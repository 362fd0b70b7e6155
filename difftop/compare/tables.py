"""A report in Markdown, with its pictures as files beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from difftop.compare.document import Block, Bullets, Document, Picture, Table, Text


def markdown(document: Document, pictures: str = "pictures") -> str:
    """The report in Markdown.

    Args:
        document: the report.
        pictures: folder of the pictures, relative to the file.
    """
    lines = [f"# {_plain(document.title)}", "", _plain(document.lead), ""]
    for section in document.sections:
        lines += [f"## {_plain(section.title)}", ""]
        for block in section.blocks:
            lines += [*_block(block, pictures), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _block(block: Block, pictures: str) -> list[str]:
    if isinstance(block, Text):
        return [_plain(block.text)]
    if isinstance(block, Bullets):
        return [f"- **{_plain(subject)}**: {_plain(text)}" if subject else f"- {_plain(text)}" for subject, text in block.items]
    if isinstance(block, Picture):
        alt = _plain(block.alt.replace("[", "(").replace("]", ")").replace("\n", " "))
        return [f"![{alt}]({pictures}/{block.name}.png)", "", f"*{_plain(block.caption)}*"]
    return _table(block)


def _table(table: Table) -> list[str]:
    rows = [
        [f"**{_cell(cell)}**" if (r, c) in table.bold else _cell(cell) for c, cell in enumerate(row)]
        for r, row in enumerate(table.rows)
    ]
    rule = ["---" if column < table.keys else "---:" for column in range(len(table.header))]
    return [f"*{_plain(table.caption)}*", "", _row([_cell(name) for name in table.header]), _row(rule), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|").replace("\n", " ")


def _plain(text: str) -> str:
    """Text in which nothing is markup: file names with stars or underscores stay as they are."""
    return re.sub(r"([\\`*<>]|(?<!\w)_|_(?!\w)|\](?=[(\[:]))", r"\\\1", text)
