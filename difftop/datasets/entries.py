"""Each entry of the actions in numbers, over all steps: by blocks that stay in the processor's cache, for files of a gigabyte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from difftop.data.faults import Array

BINS = 20  # of a histogram of actions
_BLOCK = 2**16  # numbers: temporary arrays are then too small to be fetched from the system every time
_LIMIT = 1 + 1e-6
_IDLE = 0.02  # of an action's range: below it nothing moves
_AT_LIMIT = 0.999
_FEW = 3  # values that a gripper's command takes


@dataclass(frozen=True)
class ActionSummary:
    """One entry of the actions.

    Attributes:
        low, high, mean, std: over all steps.
        at_limit, beyond: shares of the steps at -1 or 1, and outside of [-1, 1].
        kind: `gripper` where it takes a few values only, `constant`, else `motion`.
        edges, counts: histogram, `BINS` bins.
    """

    low: float
    high: float
    mean: float
    std: float
    at_limit: float
    beyond: float
    kind: str
    edges: Sequence[float]
    counts: Sequence[int]


def summarize_actions(actions: Sequence[Array]) -> tuple[list[ActionSummary], float]:
    """A summary of each entry, and the share of idle steps.

    Args:
        actions: of each episode `[T, A]`; rows that aren't finite are left out.
    Returns:
        one summary for each entry, none where no row is finite; the share of the steps without motion: small displacements, or,
        where actions leave [-1, 1], hardly another target. NaN if unknown.
    """
    found = _Sums(actions)
    if not found.rows:
        return [], float("nan")
    edges = [np.linspace(*ends, BINS + 1) for ends in zip(*_ends(found), strict=True)]
    counts = _histograms(actions, found)
    entries = [
        ActionSummary(
            low=float(found.low[i]),
            high=float(found.high[i]),
            mean=float(found.mean[i]),
            std=float(found.std[i]),
            at_limit=float((found.at_limit[i] - found.beyond[i]) / found.rows),
            beyond=float(found.beyond[i] / found.rows),
            kind=_kind(actions, found, i),
            edges=edges[i].tolist(),
            counts=counts[i].tolist(),
        )
        for i in range(len(found.low))
    ]
    return entries, _idle(actions, entries, found.rows)


class _Sums:
    """What one pass tells; arrays have a number for each entry."""

    def __init__(self, actions: Sequence[Array]) -> None:
        width = actions[0].shape[1] if actions else 0
        self.rows = 0
        self.low, self.high, self.smallest = (np.full(width, end) for end in (np.inf, -np.inf, np.inf))
        self.at_limit, self.beyond = np.zeros(width, np.int64), np.zeros(width, np.int64)
        first, sums, squares = np.zeros((width, 1)), np.zeros(width), np.zeros(width)
        for block in _blocks(actions):
            if not self.rows:
                first = block[:, :1].astype(np.float64)  # what numbers are far from 0 and close together would cancel without
            self.rows += block.shape[1]
            self.low, self.high = np.minimum(self.low, block.min(1)), np.maximum(self.high, block.max(1))
            size = np.abs(block)
            self.smallest = np.minimum(self.smallest, size.min(1))
            self.at_limit += np.count_nonzero(size >= _AT_LIMIT, axis=1)
            self.beyond += np.count_nonzero(size > _LIMIT, axis=1)
            moved = block - first
            sums += moved.sum(1)
            squares += np.einsum("ij,ij->i", moved, moved)
        count = max(self.rows, 1)
        self.mean = first[:, 0] + sums / count
        self.std = np.sqrt(np.maximum(squares / count - (sums / count) ** 2, 0))


def _blocks(actions: Sequence[Array]) -> Iterator[Array]:
    """Finite rows, transposed `[A, R']`: along an entry numbers are next to each other."""
    for block in _pieces(actions):
        block = np.ascontiguousarray(block.T)
        finite = np.isfinite(block)
        if not finite.all():
            block = block[:, finite.all(0)]
        if block.size:
            yield block


def _pieces(actions: Sequence[Array]) -> Iterator[Array]:
    """Rows by about `_BLOCK` numbers: parts of long episodes, and short ones together."""
    short: list[Array] = []
    for episode in actions:
        rows = max(_BLOCK // max(episode.shape[1], 1), 1)
        if len(episode) >= rows:
            yield from (episode[start : start + rows] for start in range(0, len(episode), rows))
            continue
        short.append(episode)
        if sum(map(len, short)) >= rows:
            yield np.concatenate(short)
            short = []
    if short:
        yield np.concatenate(short)


def _ends(found: _Sums) -> tuple[Array, Array]:
    """Of the histograms, as `np.histogram` has them: around a constant there is 0.5 to both sides."""
    constant = found.low == found.high
    return np.where(constant, found.low - 0.5, found.low), np.where(constant, found.high + 0.5, found.high)


def _histograms(actions: Sequence[Array], found: _Sums) -> Array:
    """`[A, BINS]`."""
    low, high = (end[:, None] for end in _ends(found))
    width, slots = len(low), BINS + 1  # one more for what is at the upper end
    counts, offset, scale = np.zeros(width * slots, np.int64), (slots * np.arange(width))[:, None], BINS / (high - low)
    for block in _blocks(actions):
        place = block - low
        place *= scale
        place += offset
        counts += np.bincount(place.astype(np.int64).reshape(-1), minlength=len(counts))
    table = counts.reshape(width, slots)
    table[:, -2] += table[:, -1]
    return table[:, :-1]


def _kind(actions: Sequence[Array], found: _Sums, i: int) -> str:
    few = _few([episode[:, i] for episode in actions])
    if few == 1:
        return "constant"
    largest = max(abs(found.low[i]), abs(found.high[i]))
    switched = few <= _FEW and found.smallest[i] > 0.5 * largest  # open or closed, never in between
    return "gripper" if switched else "motion"


def _few(values: Sequence[Array]) -> int:
    """How many values there are, to three decimals, or more than `_FEW`."""
    known = np.zeros(0, np.float32)
    for part in values:
        rest = np.round(part, 3)
        rest = rest[np.isfinite(rest)]
        for value in known:
            rest = rest[rest != value]
        known = np.concatenate([known, np.unique(rest)])
        if len(known) > _FEW:  # more can only come to them
            break
    return len(known)


def _idle(actions: Sequence[Array], entries: Sequence[ActionSummary], rows: int) -> float:
    moving = [i for i, action in enumerate(entries) if action.kind == "motion"]
    if not moving or rows < 2:
        return float("nan")
    if not any(entries[i].beyond for i in moving):
        return sum(int((np.abs(block[moving]) < _IDLE).all(0).sum()) for block in _blocks(actions)) / rows
    span = np.array([[max(entries[i].high - entries[i].low, 1e-9)] for i in moving])
    before, count = np.zeros((len(moving), 0), np.float32), 0
    for block in _blocks(actions):
        values = np.concatenate([before, block[moving]], 1)
        count += int((np.abs(np.diff(values, axis=1)) < _IDLE / 10 * span).all(0).sum())
        before = values[:, -1:]
    return count / (rows - 1)
