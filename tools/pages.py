"""Pages of the documentation that hold tables which a tool writes: kept in step, or checked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def line(cells: Sequence[str]) -> str:
    """A row of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def keep_in_step(pages: Sequence[Path], in_step: Callable[[str, str], str], command: str, *, check: bool) -> int:
    """Writes every page as `in_step(text, name)` has it; with `check` only says which differ from that. Returns how many do."""
    late = 0
    for path in pages:
        text, name = path.read_text(), str(path.relative_to(ROOT))
        new = in_step(text, name)
        if check:
            late += new != text
            sys.stdout.write(f"{name} is in step.\n" if new == text else f"{name}: run `{command}`.\n")
        else:
            path.write_text(new)
    return late
