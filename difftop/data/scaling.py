"""Data sets whose actions are in units of their own: policies act in [-1, 1], so actions are scaled by their range.

    a' = 2 (a - low) / (high - low) - 1,   low, high: smallest and largest value of each entry over the episodes that are used

A checkpoint keeps low and high in its spec, and `difftop.load_policy` acts in the data set's units. Where all actions are in
[-1, 1] nothing is scaled.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from difftop.data.demonstrations import DemonstrationError, Demonstrations, EnvInfo, joined
from difftop.data.faults import Columns, Faults, checked
from difftop.later import later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = later("torch")

_TOLERANCE = 1e-6


def gathered(path: Path, env: EnvInfo, episodes: Iterable[Columns], faults: Faults, limit: int = 0) -> Demonstrations:
    """Episodes checked, scaled where need be, and end to end.

    Args:
        path, env: the data set, and what it was recorded in.
        episodes: as they are stored; no more of them are read than wanted.
        faults: what is done about faults, and where they are counted.
        limit: use the first so many that have none; 0 for all.
    Raises:
        DemonstrationError: the first fault where `faults` stops, or nothing is left.
    """
    names: list[str] = []
    actions: list[Tensor] = []
    vectors: dict[str, list[Tensor]] = {}
    for columns in episodes:
        if limit and len(names) == limit:
            break
        found = checked(columns, faults, boxed=False)
        if found is None:
            continue
        names.append(columns.name)
        actions.append(found[0])
        for key, rows in found[1].items():
            vectors.setdefault(key, []).append(rows)
    if not names:
        raise faults.nothing_left() if faults.left_out else DemonstrationError(f"{path}: it has no demonstration.")
    made = joined(path, env, names, actions, vectors, notes=faults.lines())
    low, high = made.actions.amin(0), made.actions.amax(0)
    if float(torch.maximum(low.abs(), high.abs()).max()) <= 1 + _TOLERANCE:
        return replace(made, actions=made.actions.clamp(-1, 1))
    return replace(made, actions=scaled(made.actions, low, high), action_low=low, action_high=high)


def scaled(actions: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Actions `[..., A]` in the data set's units to [-1, 1]; an entry that never changes becomes 0."""
    span = high - low
    moving = span > 0
    return torch.where(moving, (2 * (actions - low) / torch.where(moving, span, torch.ones_like(span)) - 1).clamp(-1, 1), 0.0)


def unscaled(actions: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The inverse of `scaled`."""
    return low + (actions + 1) / 2 * (high - low)


def range_of(made: Demonstrations) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Low and high as plain numbers for a spec; both empty where nothing was scaled."""
    if made.action_low is None or made.action_high is None:
        return (), ()
    low, high = (np.asarray(bound, np.float64).tolist() for bound in (made.action_low, made.action_high))
    return tuple(low), tuple(high)
