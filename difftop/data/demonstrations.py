"""Demonstrations in memory: what every file format becomes. Low-dimensional values are read at once, images when they are needed.

A reader says where its file keeps things (`Source`); `read_demonstrations` checks all of it and loads it. Every mistake in a file
is one `DemonstrationError` that names the file, the place, what is there and what should be.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from difftop.data.windows import Windows

Array = np.ndarray[Any, np.dtype[Any]]

_BLOCK_ROWS = 16  # images are read in blocks of this many steps: a window of 12 touches one or two
_BOX_TOLERANCE = 1e-6  # rounding of actions stored as float32


class DemonstrationError(ValueError):
    """A demonstration file that can't be used."""


@dataclass(frozen=True)
class EnvInfo:
    """The environment that a file was recorded in.

    Attributes:
        name: as its suite calls it: `Lift`, `PickCube-v1`.
        kwargs: what it was made with.
        version: of its suite, None where the file doesn't say.
        raw: everything that the file says of it.
    """

    name: str
    kwargs: Mapping[str, Any]
    version: str | None
    raw: Mapping[str, Any]

    def check_version(self, installed: str, where: str = "the demonstrations") -> None:
        """Refuses demonstrations of another simulator version: features and controllers changed, and a policy silently scores 0.

        Raises:
            DemonstrationError: the first two numbers of the versions differ, or the file names none.
        """
        if self.version is None or self.version.split(".")[:2] != installed.split(".")[:2]:
            recorded = self.version or "(unknown)"
            raise DemonstrationError(
                f"{where}: {self.name} was recorded with version {recorded} of its simulator, but {installed} is installed; "
                "install the recorded version, or make the observations anew from the recorded states."
            )


@dataclass(frozen=True)
class Source:
    """Where a file keeps one episode.

    Attributes:
        name: of the episode, for messages.
        actions: dataset of actions `[T, A]`.
        obs: dataset by key, `[T + extra_rows, ...]`.
        length: T as the file's metadata promise it, None if they don't.
        promise: what to call that promise in a message.
        extra_rows: observations beyond T, after the last action; they are not used.
    """

    name: str
    actions: str
    obs: Mapping[str, str]
    length: int | None
    promise: str
    extra_rows: int = 0


@dataclass(frozen=True)
class Demonstration:
    """One demonstration: `actions [T, A]`, and `obs` by key `[T, *shape]`, observed before each action."""

    name: str
    actions: Tensor
    obs: dict[str, Tensor]


@dataclass(frozen=True)
class Demonstrations:
    """Episodes of one file, end to end in tensors of R rows.

    Attributes:
        path: the file.
        env: what it was recorded in.
        names: of the E episodes, in numeric order.
        first, length: first row and number of steps of each episode `[E]`, int64.
        source: number of each episode among those that were read `[E]`.
        actions: `[R, A]`, float32, in [-1, 1].
        low_dim: by key `[R, *shape]`, float32.
        images: by key, read from the file when they are needed.
    """

    path: Path
    env: EnvInfo
    names: tuple[str, ...]
    first: Tensor
    length: Tensor
    source: Tensor
    actions: Tensor
    low_dim: Mapping[str, Tensor]
    images: Mapping[str, ImageRows] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one observation by key; images channels first."""
        return {key: tuple(rows.shape[1:]) for key, rows in self.low_dim.items()} | {k: i.shape for k, i in self.images.items()}

    def episodes(self, images: bool = False) -> Iterator[Demonstration]:
        """All episodes, with their images only where asked for."""
        for i, name in enumerate(self.names):
            rows = slice(int(self.first[i]), int(self.first[i] + self.length[i]))
            obs = {key: values[rows] for key, values in self.low_dim.items()}
            if images:
                steps = torch.arange(int(self.length[i]))[None]
                obs |= {key: lazy.gather(self.source[i : i + 1], steps)[0] for key, lazy in self.images.items()}
            yield Demonstration(name, self.actions[rows], obs)

    def only(self, index: Sequence[int]) -> Demonstrations:
        """The episodes `index`, for a split into training and validation; tensors and cache are shared."""
        chosen = torch.tensor(list(index), dtype=torch.int64)
        return replace(
            self,
            names=tuple(self.names[i] for i in chosen.tolist()),
            first=self.first[chosen],
            length=self.length[chosen],
            source=self.source[chosen],
        )

    def rows(self, key: str) -> Tensor:
        """All rows of `actions` or of a low-dimensional key, of these episodes only; to fit a normalizer to."""
        values = self.actions if key == "actions" else self.low_dim[key]
        return torch.cat([values[f : f + n] for f, n in zip(self.first.tolist(), self.length.tolist(), strict=True)])

    def windows(self, window: int, horizon: int, *, pad_before: int = 0, pad_after: int = 0) -> Windows:
        """Windows of T_s = `window` observations with predictions of T_p = `horizon` actions; see `Windows`."""
        return Windows(self, window, horizon, pad_before=pad_before, pad_after=pad_after)


class BlockCache:
    """Blocks of rows of a file's datasets, the most recently used of them kept up to a number of bytes.

    The file is opened when it is first read, once in every process that the cache is sent to. Not for several threads at once.
    """

    def __init__(self, path: Path, capacity_bytes: int) -> None:
        self.path, self.capacity_bytes, self.used_bytes = path, capacity_bytes, 0
        self._blocks: OrderedDict[tuple[str, int], Array] = OrderedDict()
        self._file: Any = None
        self._process = 0

    def block(self, dataset: str, number: int) -> Array:
        """Rows `16 number` to `16 number + 15` of a dataset `[T, H, W, C]` (fewer at its end), channels first.

        Raises:
            DemonstrationError: the file can't be read any more.
        """
        key = (dataset, number)
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return self._blocks[key]
        try:
            if self._file is None or self._process != os.getpid():
                self._file, self._process = h5py.File(self.path, "r"), os.getpid()
            stored = self._file[dataset][_BLOCK_ROWS * number : _BLOCK_ROWS * (number + 1)]
        except (OSError, KeyError) as error:
            raise DemonstrationError(f"{self.path}: {dataset} can't be read ({error}); is the file damaged or gone?") from error
        block = np.ascontiguousarray(np.moveaxis(stored, -1, 1))
        self._blocks[key] = block
        self.used_bytes += block.nbytes
        while self.used_bytes > self.capacity_bytes:
            self.used_bytes -= self._blocks.popitem(last=False)[1].nbytes
        return block

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "capacity_bytes": self.capacity_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["capacity_bytes"])  # type: ignore[misc]


class ImageRows:
    """Images of one key of all episodes, on disk.

    Attributes:
        shape: `(C, H, W)` of one image.
    """

    def __init__(self, cache: BlockCache, datasets: Sequence[str], shape: tuple[int, ...], dtype: Any) -> None:
        self.cache, self.datasets, self.shape, self.dtype = cache, tuple(datasets), shape, dtype

    def gather(self, episode: Tensor, steps: Tensor) -> Tensor:
        """Images `[B, T, C, H, W]` of steps `[B, T]` of episodes `[B]`."""
        out = np.empty((*steps.shape, *self.shape), dtype=self.dtype)
        for b, (number, rows) in enumerate(zip(episode.tolist(), steps.numpy(), strict=True)):
            blocks = rows // _BLOCK_ROWS
            for block in np.unique(blocks):
                here = blocks == block
                out[b, here] = self.cache.block(self.datasets[number], int(block))[rows[here] % _BLOCK_ROWS]
        return torch.from_numpy(out)


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """An HDF5 file to read.

    Raises:
        DemonstrationError: it does not exist, is no HDF5 file, or is truncated; also if reading fails later on.
    """
    if not path.is_file():
        raise DemonstrationError(f"{path}: no such file.")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and type(error) is not RuntimeError:
            raise  # not h5py's: an environment's, say, while a file is played back
        raise DemonstrationError(f"{path}: not a whole HDF5 file ({error}); a download or a copy may be incomplete.") from error


def read_demonstrations(
    path: Path, file: Any, sources: Sequence[Source], env: EnvInfo, keys: Sequence[str] | None, cache_bytes: int
) -> Demonstrations:
    """Checks and loads episodes.

    Args:
        path, file: the file, and it opened.
        sources: its episodes, at least one, in order.
        env: what it was recorded in.
        keys: observations to use, in this order; None for all that are no images.
        cache_bytes: memory for images.
    Raises:
        DemonstrationError: anything that is missing, has the wrong length or shape, is not finite, or is outside of the box.
    """
    if keys is None:
        keys = [key for key, dataset in sources[0].obs.items() if len(_dataset(path, file, dataset).shape) < 4]
    lengths, actions = [], []
    low_dim: dict[str, list[Tensor]] = {key: [] for key in keys}
    images: dict[str, list[str]] = {}
    for source in sources:
        action = check_actions(f"{path}: {source.actions}", _dataset(path, file, source.actions)[()])
        if source.length is not None and source.length != len(action):
            raise DemonstrationError(
                f"{path}: {source.name} has {len(action)} actions but {source.promise} is {source.length}; the file is damaged "
                "or was edited."
            )
        lengths.append(len(action))
        actions.append(action)
        for key in keys:
            if key not in source.obs:
                raise DemonstrationError(f"{path}: {source.name} has no observation {key!r}; it has {', '.join(source.obs)}.")
            dataset = _dataset(path, file, source.obs[key])
            _check_shape(path, source, key, dataset, len(action), file[sources[0].obs[key]].shape[1:])
            if len(dataset.shape) >= 4:
                images.setdefault(key, []).append(source.obs[key])
            else:
                low_dim[key].append(check_values(f"{path}: {source.obs[key]}", dataset[: len(action)]))
    if len({a.shape[1] for a in actions}) > 1:
        raise DemonstrationError(
            f"{path}: episodes have actions of {sorted({a.shape[1] for a in actions})} entries; all must agree."
        )
    length, cache = torch.tensor(lengths), BlockCache(path, cache_bytes)
    return Demonstrations(
        path=path,
        env=env,
        names=tuple(source.name for source in sources),
        first=length.cumsum(0) - length,
        length=length,
        source=torch.arange(len(lengths)),
        actions=torch.cat(actions),
        low_dim={key: torch.cat(rows) for key, rows in low_dim.items() if rows},
        images={key: _lazy(cache, file, datasets) for key, datasets in images.items()},
    )


def check_actions(where: str, values: Array) -> Tensor:
    """Actions `[T, A]`, float32, in [-1, 1].

    Raises:
        DemonstrationError: another shape, no step, NaN, or an action outside of the box.
    """
    if values.ndim != 2 or 0 in values.shape:
        raise DemonstrationError(f"{where} has shape {list(values.shape)}; it must be [T, A], with at least one step.")
    actions = check_values(where, values)
    outside = actions.abs().amax(1) > 1 + _BOX_TOLERANCE
    if bool(outside.any()):
        step = int(outside.nonzero()[0])
        raise DemonstrationError(
            f"{where} step {step} is {[round(x, 4) for x in actions[step].tolist()]} and {int(outside.sum())} steps leave "
            "[-1, 1]; use normalized delta actions (ManiSkill: replay with -c pd_ee_delta_pose)."
        )
    return actions.clamp(-1, 1)


def check_values(where: str, values: Array) -> Tensor:
    """Numbers `[T, ...]` as float32, `[T]` as `[T, 1]`.

    Raises:
        DemonstrationError: not numbers, or not finite.
    """
    if values.dtype.kind not in "fiub":
        raise DemonstrationError(f"{where} holds {values.dtype}; it must hold numbers.")
    finite = np.isfinite(values)
    if not finite.all():
        step = int(np.argwhere(~finite)[0][0])
        raise DemonstrationError(f"{where} has NaN or infinity at step {step} of {len(values)}; leave this demonstration out.")
    numbers = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    return numbers[:, None] if numbers.dim() == 1 else numbers


def _dataset(path: Path, file: Any, name: str) -> Any:
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise DemonstrationError(f"{path}: {name} is {'missing' if found is None else 'a group'}; it must be a dataset.")
    return found


def _check_shape(path: Path, source: Source, key: str, dataset: Any, steps: int, row: tuple[int, ...]) -> None:
    """Raises DemonstrationError unless the dataset has the right number of rows, each of the first episode's shape."""
    rows = dataset.shape[0] if dataset.shape else 0
    if rows != steps + source.extra_rows:
        after = f" and {source.extra_rows} after the last" if source.extra_rows else ""
        raise DemonstrationError(
            f"{path}: {source.obs[key]} has {rows} rows for {steps} actions; it must have one per action{after}."
        )
    if dataset.shape[1:] != row:
        raise DemonstrationError(
            f"{path}: {source.obs[key]} has rows of shape {list(dataset.shape[1:])}, the first episode's are {list(row)}."
        )


def _lazy(cache: BlockCache, file: Any, datasets: Sequence[str]) -> ImageRows:
    height, width, channels = file[datasets[0]].shape[1:]
    return ImageRows(cache, datasets, (channels, height, width), file[datasets[0]].dtype)
