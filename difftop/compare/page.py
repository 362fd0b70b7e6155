"""A report as one HTML page that needs nothing but itself: style inline, pictures as data URIs, no script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from difftop.compare.document import Block, Bullets, Document, Picture, Section, Table, Text

_SHOWN = 15  # items of a list that are shown before the others fold away
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2127; --dim: #59636e; --paper: #ffffff; --panel: #f5f7f9; --line: #d5dbe1;
  --accent: #0b5fae; --warn: #9a5b00; --warn-paper: #fff7e8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e7eb; --dim: #a0abb6; --paper: #14181c; --panel: #1d2328;
  --line: #39424b; --accent: #78b6f2; --warn: #f0b75c; --warn-paper: #2a2213; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .5rem 0 .25rem; }
h2 { font-size: 1.3rem; margin: 2.75rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
p, li { max-width: 60rem; }
a { color: var(--accent); }
.lead { color: var(--dim); margin-top: 0; }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: .5rem; background: var(--panel); padding: .4rem .8rem; }
nav { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .75rem 1.25rem; margin: 1.25rem 0; }
nav h2 { font-size: 1rem; margin: 0 0 .35rem; padding: 0; border: 0; }
nav ol { margin: 0; padding-left: 1.4rem; columns: 20rem 2; }
section.first { background: var(--warn-paper); border-left: 4px solid var(--warn); border-radius: 0 8px 8px 0;
  padding: .1rem 1.25rem 1rem; margin-top: 1.5rem; }
section.first h2 { margin-top: 1rem; border: 0; color: var(--warn); }
ul { padding-left: 1.3rem; }
li { margin: .3rem 0; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--accent); }
.scroll { overflow-x: auto; margin: 1rem 0 1.5rem; }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--dim); padding: 0 0 .5rem; max-width: 60rem; }
th, td { padding: .32rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
thead th { background: var(--panel); vertical-align: bottom; }
th.key { text-align: left; }
tbody th { font-weight: 500; }
tbody tr:hover { background: var(--panel); }
figure { margin: 1rem 0 1.75rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 0 1.25rem;
  align-items: start; }
img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 8px; }
figcaption { color: var(--dim); font-size: .88rem; margin-top: .4rem; max-width: 60rem; }
@media print { nav, .skip { display: none; } body { max-width: none; } figure, tr { break-inside: avoid; } }
"""


def page(document: Document) -> str:
    """The report in HTML.

    A section with the anchor `unequal` is set apart, as what must be read first. Pictures that follow each other stand side by
    side where there is room.
    """
    links = "\n".join(f'<li><a href="#{escape(s.anchor)}">{escape(s.title)}</a></li>' for s in document.sections)
    body = "\n".join(_section(section) for section in document.sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(document.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<h1>{escape(document.title)}</h1>
<p class="lead">{escape(document.lead)}</p>
</header>
<nav aria-labelledby="contents">
<h2 id="contents">Contents</h2>
<ol>
{links}
</ol>
</nav>
<main id="content">
{body}
</main>
</body>
</html>
"""


def _section(section: Section) -> str:
    anchor = escape(section.anchor)
    kind = ' class="first"' if section.anchor == "unequal" else ""
    parts: list[str] = []
    pictures: list[Picture] = []
    for block in [*section.blocks, Text("")]:
        if isinstance(block, Picture) and not block.wide:
            pictures.append(block)
            continue
        if pictures:
            parts.append(_pictures(pictures))
            pictures = []
        parts.append(_block(block))
    body = "\n".join(filter(None, parts))
    title = f'<h2 id="{anchor}-title">{escape(section.title)}</h2>'
    return f'<section id="{anchor}"{kind} aria-labelledby="{anchor}-title">\n{title}\n{body}\n</section>'


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p>{escape(block.text)}</p>" if block.text else ""
    if isinstance(block, Bullets):
        items = [f"<li><strong>{escape(s)}</strong>: {escape(t)}</li>" if s else f"<li>{escape(t)}</li>" for s, t in block.items]
        shown, rest = (items, []) if len(items) <= _SHOWN + 3 else (items[:_SHOWN], items[_SHOWN:])
        more = f"<details><summary>{len(rest)} more</summary>\n{_listed(rest)}\n</details>" if rest else ""
        return f"{_listed(shown)}\n{more}"
    if isinstance(block, Table):
        return _table(block)
    return _pictures([block])


def _listed(items: Sequence[str]) -> str:
    return "<ul>\n" + "\n".join(items) + "\n</ul>"


def _table(table: Table) -> str:
    keys = range(len(table.header))
    head = "".join(f'<th scope="col"{_key(c < table.keys)}>{escape(table.header[c])}</th>' for c in keys)
    rows = "\n".join(f"<tr>{_cells(table, r, row)}</tr>" for r, row in enumerate(table.rows))
    # Wide tables scroll by themselves; the region has a name and takes the focus, so that a keyboard can scroll it.
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.caption)}">\n<table>\n'
        f"<caption>{escape(table.caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>"
    )


def _cells(table: Table, r: int, row: Sequence[str]) -> str:
    cells = []
    for c, cell in enumerate(row):
        text = f"<strong>{escape(cell)}</strong>" if (r, c) in table.bold else escape(cell)
        cells.append(f'<th scope="row"{_key(True)}>{text}</th>' if c < table.keys else f"<td>{text}</td>")
    return "".join(cells)


def _key(is_key: bool) -> str:
    return ' class="key"' if is_key else ""


def _pictures(pictures: Sequence[Picture]) -> str:
    figures = []
    for picture in pictures:
        data = base64.b64encode(picture.png).decode("ascii")
        width, height = (int.from_bytes(picture.png[at : at + 4], "big") for at in (16, 20))  # of the IHDR chunk
        figures.append(
            f'<figure>\n<img alt="{escape(picture.alt)}" width="{width}" height="{height}" src="data:image/png;base64,{data}">\n'
            f"<figcaption>{escape(picture.caption)}</figcaption>\n</figure>"
        )
    return f'<div class="grid">\n{"".join(figures)}\n</div>' if len(figures) > 1 else figures[0]
