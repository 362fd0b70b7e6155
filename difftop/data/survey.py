"""A look at a data set of any format: what is in it, without training on it and without reading an image.

A format's `survey` hands every episode to a `Surveyor`, faults and all: nothing here raises because of what an episode holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from difftop.data.demonstrations import Demonstrations, EnvInfo
from difftop.data.faults import BEYOND, CUT_OFF, MISSING, NAN, Array
from difftop.types import is_depth

_LIMIT = 1 + 1e-6


@dataclass(frozen=True)
class Column:
    """What is recorded: shape of one row, type, and whether it is a vector, points, an image or a video."""

    shape: tuple[int, ...]
    dtype: str
    kind: str


@dataclass(frozen=True)
class Survey:
    """What is in a data set.

    Attributes:
        path, format: of it.
        env: what it was recorded in.
        names, lengths: of its E episodes, in steps.
        actions: of each episode `[T, A]`, float32; where they are damaged, what can be read of them.
        columns: observations by key.
        rewards: sum of each episode's rewards `[E]`, NaN where none are recorded; None where they are nowhere.
        successes: 1, 0, or -1 where the data set doesn't say `[E]`.
        filters: episodes by filter key.
        faults: episodes by kind of fault.
        notes: sentences on what is peculiar.
        rate_hz: of control, 0 where it isn't known.
        raw: it has to be converted before anything trains on it.
        options: that a run needs beside the data set's path.
    """

    path: Path
    format: str
    env: EnvInfo
    names: tuple[str, ...]
    lengths: Array
    actions: Sequence[Array]
    columns: Mapping[str, Column]
    rewards: Array | None = None
    successes: Array | None = None
    filters: Mapping[str, int] = field(default_factory=dict)
    faults: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    rate_hz: float = 0.0
    raw: bool = False
    options: tuple[str, ...] = ()


class Surveyor:
    """Gathers a `Survey`, episode by episode."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.lengths: list[int] = []
        self.actions: list[Array] = []
        self.columns: dict[str, Column] = {}
        self.faults: dict[str, list[str]] = {}
        self._rewards: list[float] = []
        self._successes: list[int] = []

    def add(
        self,
        name: str,
        actions: Array | None,
        vectors: Mapping[str, Array],
        images: Mapping[str, tuple[tuple[int, ...], Any]],
        *,
        length: int | None = None,
        extra_rows: int = 0,
        rewards: Array | None = None,
        success: bool | None = None,
        kind: str = "image",
    ) -> None:
        """Counts an episode.

        Args:
            name: of it.
            actions: `[T, A]`, None where there are none.
            vectors: by key `[T + extra_rows, ...]`.
            images: shape and type by key, `(T + extra_rows, height, width, C)`; they aren't read.
            length: T as metadata promise it, None where they don't.
            extra_rows: observations after the last action.
            rewards: `[T]`.
            success: whether the task was solved, None where nothing says so.
            kind: of the images.
        """
        self.names.append(name)
        usable = actions is not None and actions.ndim == 2 and actions.size > 0 and actions.dtype.kind in "fiu"
        rows = np.asarray(actions, np.float32) if usable else np.zeros((0, 0), np.float32)
        self.lengths.append(len(rows))
        if usable and (not self.actions or rows.shape[1] == self.actions[0].shape[1]):
            self.actions.append(rows)
        found = [MISSING] if not usable else []
        with np.errstate(invalid="ignore"):
            low, high = (rows.min(), rows.max()) if rows.size else (np.float32(0), np.float32(0))
        finite = bool(np.isfinite(low) and np.isfinite(high))  # NaN is the smallest and the largest of what it is among
        if not finite and rows.size:
            low, high = np.nanmin(rows), np.nanmax(rows)
        for key, values in vectors.items():
            self._column(key, tuple(values.shape[1:]), values.dtype, "points" if values.ndim == 3 else "vector")
            found += [CUT_OFF] if len(values) != len(rows) + extra_rows else []
            finite &= values.dtype.kind not in "f" or all_finite(values)
        for key, (shape, dtype) in images.items():
            depth = is_depth(key, (shape[-1], *shape[1:-1]))
            self._column(key, tuple(shape[1:]), dtype, "depth" if depth else kind)
            found += [CUT_OFF] if shape[0] != len(rows) + extra_rows else []
        found += [CUT_OFF] if length is not None and length != len(rows) else []
        found += [] if finite else [NAN]
        found += [BEYOND] if max(high, -low) > _LIMIT else []
        for fault in dict.fromkeys(found):
            self.faults.setdefault(fault, []).append(name)
        self._rewards.append(float(np.sum(rewards)) if rewards is not None and len(rewards) else np.nan)
        self._successes.append(-1 if success is None else int(success))

    def _column(self, key: str, shape: tuple[int, ...], dtype: Any, kind: str) -> None:
        self.columns.setdefault(key, Column(shape, str(np.dtype(dtype)), kind))

    def survey(self, path: Path, format: str, env: EnvInfo, *, boxed: bool = True, **more: Any) -> Survey:
        """What was gathered.

        Args:
            path, format, env: of the data set.
            boxed: whether actions must be in [-1, 1]; else they have units of their own, and are scaled by their range.
            more: further fields of `Survey`.
        """
        if not boxed and BEYOND in self.faults:
            del self.faults[BEYOND]
            note = "actions have units of their own: a run scales them to [-1, 1] by their range, and its policy acts in them"
            more["notes"] = (*more.get("notes", ()), note)
        rewards, successes = np.array(self._rewards), np.array(self._successes, np.int64)
        return Survey(
            path=path,
            format=format,
            env=env,
            names=tuple(self.names),
            lengths=np.array(self.lengths, np.int64),
            actions=tuple(self.actions),
            columns=self.columns,
            rewards=None if np.isnan(rewards).all() else rewards,
            successes=None if (successes < 0).all() else successes,
            faults=self.faults,
            rate_hz=more.pop("rate_hz", 0.0) or float(env.kwargs.get("control_freq") or 0.0),
            **more,
        )


def all_finite(values: Array) -> bool:
    """Whether no entry is NaN or infinite. A sum over all of them tells, unless it overflows, in a pass that writes nothing."""
    with np.errstate(invalid="ignore", over="ignore"):
        return bool(np.isfinite(values.sum()) or np.isfinite(values).all())


def survey_of(format: str, made: Demonstrations) -> Survey:
    """Of a format that has no survey of its own: what opening it gives."""
    surveyor = Surveyor()
    for episode in made.episodes():
        surveyor.add(episode.name, episode.actions.numpy(), {key: rows.numpy() for key, rows in episode.obs.items()}, {})
    for key, images in made.images.items():
        dtype, kind = ("float32", "depth") if is_depth(key, images.shape) else ("uint8", "image")
        surveyor.columns[key] = Column((*images.shape[1:], images.shape[0]), dtype, kind)
    return surveyor.survey(made.path, format, made.env, notes=made.notes)
