"""Each entry of the actions in numbers, over all steps: by blocks that stay in the processor's cache, for files of a gigabyte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from difftop.data.faults import Array
from difftop.data.survey import all_finite

BINS = 20  # of a histogram of actions
_BLOCK = 2**15  # numbers: temporary arrays stay in the processor's cache
_FOLD = 16  # rows that are reduced as one: along a long row numbers are taken several at a time
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
    return entries, _idle(actions, entries, found)


class _Sums:
    """What one pass tells; arrays have a number for each entry."""

    def __init__(self, actions: Sequence[Array]) -> None:
        width = actions[0].shape[1] if actions else 0
        self.rows = 0
        self.whole = True  # every row is finite, so that nothing has to be looked for again
        self.low, self.high = (np.full(width, end) for end in (np.inf, -np.inf))
        self.at_limit, self.beyond = np.zeros(width, np.int64), np.zeros(width, np.int64)
        first, sums, squares = np.zeros(width), np.zeros(width), np.zeros(width)
        for block in _blocks(actions):
            if not self.rows:
                first = block[0].astype(np.float64)  # what numbers are far from 0 and close together would cancel without
            self.rows += len(block)
            self.low = np.minimum(self.low, _reduced(np.minimum, block))
            self.high = np.maximum(self.high, _reduced(np.maximum, block))
            size = np.abs(block).reshape(-1)
            places = np.flatnonzero(size >= _AT_LIMIT)  # few, or none
            self.at_limit += np.bincount(places % width, minlength=width)
            self.beyond += np.bincount(places[size[places] > _LIMIT] % width, minlength=width)
            moved = block - first
            sums += _reduced(np.add, moved)
            squares += _reduced(np.add, np.square(moved, out=moved))
        self.whole = self.rows == sum(map(len, actions))
        count = max(self.rows, 1)
        self.mean = first + sums / count
        self.std = np.sqrt(np.maximum(squares / count - (sums / count) ** 2, 0))


def _reduced(ufunc: np.ufunc, rows: Array) -> Array:
    """`ufunc.reduce(rows)` over rows `[R, A]`, several of them end to end at a time."""
    whole = len(rows) // _FOLD * _FOLD
    folded = rows[:whole].reshape(whole // _FOLD, _FOLD * rows.shape[1])
    parts = ufunc.reduce(folded).reshape(_FOLD, -1) if whole else rows[:0]
    return np.asarray(ufunc.reduce(np.concatenate([parts, rows[whole:]])))


def _blocks(actions: Sequence[Array], whole: bool = False) -> Iterator[Array]:
    """Finite rows `[R', A]`, end to end; `whole`: all of them are known to be finite."""
    for block in _pieces(actions):
        block = np.ascontiguousarray(block)
        if not whole and not all_finite(block):
            block = block[np.isfinite(block).all(1)]
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
    low, high = _ends(found)
    width, slots = len(low), BINS + 1  # one more for what is at the upper end
    counts, rows = np.zeros(width * slots, np.int64), max(_BLOCK // width, 1)
    # Of every entry once a row: what is written out is faster than a short row over many.
    start, scale, offset = (np.tile(row, (rows, 1)) for row in (low, BINS / (high - low), slots * np.arange(width)))
    place, slot = np.empty((rows, width)), np.empty((rows, width), np.intp)
    for block in _blocks(actions, found.whole):
        for some in (block[k : k + rows] for k in range(0, len(block), rows)):
            n = len(some)
            np.subtract(some, start[:n], out=place[:n])
            np.multiply(place[:n], scale[:n], out=place[:n])
            np.add(place[:n], offset[:n], out=place[:n])
            np.copyto(slot[:n], place[:n], casting="unsafe")
            counts += np.bincount(slot[:n].reshape(-1), minlength=len(counts))
    table = counts.reshape(width, slots)
    table[:, -2] += table[:, -1]
    return table[:, :-1]


def _kind(actions: Sequence[Array], found: _Sums, i: int) -> str:
    few = _few([episode[:, i] for episode in actions])
    if few == 1:
        return "constant"
    largest = max(abs(found.low[i]), abs(found.high[i]))
    switched = few <= _FEW and _smallest(actions, i) > 0.5 * largest  # open or closed, never in between
    return "gripper" if switched else "motion"


def _smallest(actions: Sequence[Array], i: int) -> float:
    """Size of an entry where it is smallest, of the rows that are finite."""
    return min(float(np.abs(block[:, i]).min()) for block in _blocks(actions))


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


def _idle(actions: Sequence[Array], entries: Sequence[ActionSummary], found: _Sums) -> float:
    rows, whole = found.rows, found.whole
    moving = [i for i, action in enumerate(entries) if action.kind == "motion"]
    if not moving or rows < 2:
        return float("nan")
    if not any(entries[i].beyond for i in moving):
        limits = np.full((len(moving), 1), _IDLE, np.float32)
        return sum(_still(block, None, moving, limits) for block in _blocks(actions, whole)) / rows
    spans = np.array([[max(entries[i].high - entries[i].low, 1e-9)] for i in moving])
    last, count = np.zeros((0, len(entries)), np.float32), 0
    for block in _blocks(actions, whole):
        block = np.concatenate([last, block])
        count += _still(block[1:], block[:-1], moving, _IDLE / 10 * spans)
        last = block[-1:]
    return count / (rows - 1)


def _still(rows: Array, before: Array | None, moving: Sequence[int], limits: Array) -> int:
    """In how many rows `[R, A]`, or differences to those `before`, every moving entry is below its limit `[M, 1]`.

    Where one entry is not, the others aren't looked at.
    """
    still = np.arange(len(rows))
    for i, limit in zip(moving, limits, strict=True):
        values = rows[still, i] if before is None else rows[still, i] - before[still, i]
        still = still[np.abs(values) < limit]
        if not len(still):
            break
    return len(still)
