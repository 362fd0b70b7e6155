"""What the items of `endurance.py` share: what they are given, what they hand back, and processes that may die."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Setting:
    """How an item is measured.

    Attributes:
        folder: an empty one for what it writes.
        quick: small sizes.
        seed: of random moments, bytes and problems.
        minutes: of the item `memory`; 0 for the usual.
    """

    folder: Path
    quick: bool
    seed: int
    minutes: float = 0.0

    def size(self, full: int, quick: int) -> int:
        """The number that is tried."""
        return quick if self.quick else full

    def random(self, *words: Any) -> random.Random:
        """A source of its own for every purpose, so that one item's draws don't depend on another's."""
        return random.Random("/".join(str(word) for word in (self.seed, *words)))


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        what: was done.
        tried: how many times.
        promise: what has to come of each.
        short: how many fell short of that.
        note: what else was counted.
        shown: what stands in the table in place of the number of those that kept the promise.
    """

    what: str
    tried: int
    promise: str
    short: int
    note: str = ""
    shown: str = ""


def forked() -> ForkServerContext:
    """Processes that begin with the library imported, so that a life costs what it does and not three seconds of imports.

    They are forked from a server that has run nothing yet: no thread, no generator that has drawn.
    """
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in paths if path))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.endurance_life"])
    return context


def started(context: ForkServerContext, function: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """A process that calls a function of `endurance_life`."""
    process = context.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def table(rows: Sequence[Row]) -> str:
    """As Markdown."""
    lines = ["| what was done | times | what each has to come to | as it should be | fell short |", "|---|---|---|---|---|"]
    for row in rows:
        kept = row.shown or f"{row.tried - row.short:,}"
        note = f" ({row.note})" if row.note else ""
        lines.append(f"| {row.what} | {row.tried:,} | {row.promise} | {kept}{note} | {row.short:,} |")
    return "\n".join(lines) + "\n"


def say(text: str) -> None:
    """Progress, on stderr: the table alone is on stdout."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
