"""What may be wrong with the episodes of a data set, and what `dataset.bad` does about it: stop, skip them, or clip.

    stop    the first fault is an error that names `dataset.bad`
    skip    an episode with a fault is left out
    clip    actions are clipped to [-1, 1], an episode is cut before its first NaN row and where its shortest column ends, a wrong
            `total` is ignored; an episode of which nothing remains is left out

Whatever is left out or mended is counted by kind, and its episodes are named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from difftop.later import later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = later("torch")

Array = np.ndarray[Any, np.dtype[Any]]

BAD = ("stop", "skip", "clip")
BEYOND, NAN, CUT_OFF, MISSING, TOTAL = "actions beyond the limits", "NaN rows", "cut off", "something missing", "wrong total"
_BOX_TOLERANCE = 1e-6  # rounding of actions stored as float32
_NAMED = 6  # episodes in a line


class DemonstrationError(ValueError):
    """A demonstration file that can't be used."""


class FaultyEpisodeError(DemonstrationError):
    """One episode of a file that can't be used; `kind` is one of the kinds of this file."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass
class Faults:
    """The faults of one file.

    Attributes:
        path: of the file.
        bad: what is done about them, of `BAD`.
        left_out, mended: episodes by kind of fault.
    """

    path: Path
    bad: str = "stop"
    left_out: dict[str, list[str]] = field(default_factory=dict)
    mended: dict[str, list[str]] = field(default_factory=dict)
    first: str = ""

    def leave_out(self, name: str, error: FaultyEpisodeError) -> None:
        """Counts an episode that isn't used; raises where the first fault stops."""
        if self.bad == "stop":
            raise DemonstrationError(f"{error} {_advice()}") from error
        self.first = self.first or str(error)
        self.left_out.setdefault(error.kind, []).append(name)

    def mend(self, name: str, kind: str, message: str) -> None:
        """Counts what is mended in an episode; raises `FaultyEpisodeError` unless faults are mended."""
        if self.bad != "clip":
            raise FaultyEpisodeError(kind, message)
        if name not in self.mended.setdefault(kind, []):
            self.mended[kind].append(name)

    def ignore(self, kind: str, message: str) -> None:
        """Counts a fault of the whole file that no episode suffers from; raises where the first fault stops."""
        if self.bad == "stop":
            raise DemonstrationError(f"{message} {_advice()}")
        self.mended.setdefault(kind, []).append("the file")

    def lines(self) -> tuple[str, ...]:
        """One sentence for each kind of fault that was left out or mended."""
        found = [f"{len(names)} left out, {kind}: {_few(names)}" for kind, names in self.left_out.items()]
        found += [f"{len(names)} mended, {kind}: {_few(names)}" for kind, names in self.mended.items() if kind != TOTAL]
        found += ["its attribute total is wrong, and ignored"] if TOTAL in self.mended else []
        return tuple(found)

    def nothing_left(self) -> DemonstrationError:
        """Where every episode was left out."""
        counted = "; ".join(self.lines())
        first = f" The first: {self.first}" if self.first else ""
        return DemonstrationError(f"{self.path}: no demonstration is left ({counted}).{first}")


@dataclass(frozen=True)
class Columns:
    """One episode as it is stored.

    Attributes:
        name: of the episode.
        actions: `[T, A]`.
        vectors: observations by key that are no images `[T + extra_rows, ...]`.
        rows: number of rows of those that are images, by key.
        places: what to call `actions` and each key in messages: file and place.
        length: T as the file's metadata promise it, None if they don't; `promise` is their name.
        extra_rows: observations beyond T, after the last action; they are not used.
    """

    name: str
    actions: Array
    vectors: Mapping[str, Array]
    rows: Mapping[str, int]
    places: Mapping[str, str]
    length: int | None = None
    promise: str = ""
    extra_rows: int = 0


def checked(columns: Columns, faults: Faults, *, boxed: bool = True) -> tuple[Tensor, dict[str, Tensor]] | None:
    """Actions `[T, A]`, in [-1, 1] where `boxed`, and vectors by key `[T, *shape]`, float32; None where the episode is left out.

    Raises:
        DemonstrationError: the episode has a fault, and `faults` stops at it.
    """
    try:
        return _checked(columns, faults, boxed)
    except FaultyEpisodeError as error:
        faults.leave_out(columns.name, error)
        return None


def _checked(columns: Columns, faults: Faults, boxed: bool) -> tuple[Tensor, dict[str, Tensor]]:
    values, where = columns.actions, columns.places["actions"]
    if values.ndim != 2 or 0 in values.shape:
        raise FaultyEpisodeError(CUT_OFF, f"{where} has shape {list(values.shape)}; it must be [T, A], with at least one step.")
    steps = _common_length(columns, faults)
    actions = numbers(where, values)
    vectors = {key: numbers(columns.places[key], rows) for key, rows in columns.vectors.items()}
    for key, rows in [("actions", actions), *vectors.items()]:
        bad = (~torch.isfinite(rows[:steps]).flatten(1).all(1)).nonzero()
        if len(bad):
            step = int(bad[0])
            message = f"{columns.places[key]} has NaN or infinity at step {step} of {len(rows)}."
            if step == 0:
                raise FaultyEpisodeError(NAN, message)
            faults.mend(columns.name, NAN, message)
            steps = step
    message = beyond(where, actions[:steps]) if boxed else ""
    if message:
        faults.mend(columns.name, BEYOND, message)
    inside = actions[:steps].clamp(-1, 1) if boxed else actions[:steps]
    return inside, {key: rows[:steps] for key, rows in vectors.items()}


def _common_length(columns: Columns, faults: Faults) -> int:
    """The number of steps that all columns have."""
    steps, lengths = len(columns.actions), []
    if columns.length is not None and columns.length != steps:
        faults.mend(
            columns.name,
            CUT_OFF,
            f"{faults.path}: {columns.name} has {steps} actions but {columns.promise} is {columns.length}; the file is damaged "
            "or was edited.",
        )
    after = f" and {columns.extra_rows} after the last" if columns.extra_rows else ""
    for key, rows in [*((key, len(values)) for key, values in columns.vectors.items()), *columns.rows.items()]:
        if rows != steps + columns.extra_rows:
            message = f"{columns.places[key]} has {rows} rows for {steps} actions; it must have one per action{after}."
            if not rows:
                raise FaultyEpisodeError(CUT_OFF, message)
            faults.mend(columns.name, CUT_OFF, message)
        lengths.append(rows)
    return min([steps, *lengths])


def beyond(where: str, actions: Tensor) -> str:
    """What to say of actions `[T, A]` that leave the box; empty where none does."""
    outside = actions.abs().amax(1) > 1 + _BOX_TOLERANCE
    if not bool(outside.any()):
        return ""
    step = int(outside.nonzero()[0])
    return (
        f"{where} step {step} is {[round(x, 4) for x in actions[step].tolist()]} and {int(outside.sum())} steps leave "
        "[-1, 1]; use normalized delta actions (ManiSkill: replay with -c pd_ee_delta_pose)."
    )


def numbers(where: str, values: Array) -> Tensor:
    """Numbers `[T, ...]` as float32, `[T]` as `[T, 1]`; raises `DemonstrationError` where they are none."""
    if values.dtype.kind not in "fiub":
        raise DemonstrationError(f"{where} holds {values.dtype}; it must hold numbers.")
    with np.errstate(over="ignore"):  # what float32 can't hold becomes infinite, and that is found and named
        rows = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    return rows[:, None] if rows.dim() == 1 else rows


def _advice() -> str:
    return "dataset.bad=skip leaves such demonstrations out, dataset.bad=clip mends them; both say which."


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
