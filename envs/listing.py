"""`mode=envs`: all suites and tasks as text, and what each gives."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from envs.registry import Row, table

_WIDTH = 118


def text(rows: Sequence[Row] | None = None) -> str:
    """A paragraph for each suite: what it is, what it offers, and its tasks by what they give."""
    parts = [_suite(row) for row in (table() if rows is None else rows)]
    return "\n\n".join(parts) + "\n"


def _suite(row: Row) -> str:
    missing = "" if row.installed else f"  NOT INSTALLED: pip install 'difftop[{row.extra}]'"
    lines = [f"{row.suite}/  {row.summary}{missing}", f"    env.obs={'|'.join(row.obs)}"]
    for gives, names in _by_gifts(row.tasks).items():
        lines.append(f"    gives {gives}:")
        lines += [" " * 8 + line for line in textwrap.wrap("  ".join(names), _WIDTH - 8, break_on_hyphens=False)]
    return "\n".join([*lines, f"    {row.others}"] if row.others else lines)


def _by_gifts(tasks: Mapping[str, frozenset[str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, gives in tasks.items():
        groups.setdefault(", ".join(sorted(gives)), []).append(name)
    return groups
