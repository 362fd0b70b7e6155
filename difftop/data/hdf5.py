"""Demonstrations out of an HDF5 file, of whatever layout: vectors are read at once, images when they are needed.

A format says where its file keeps things (`Source`); `read_demonstrations` checks all of it and loads it.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from difftop.data.demonstrations import Array, DemonstrationError, Demonstrations, EnvInfo, check_actions, check_values, joined

_BLOCK_ROWS = 16  # images are read in blocks of this many steps: a window of 12 touches one or two


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
    """Images of one key of all episodes, on disk; see `difftop.data.windows.Images`.

    Args:
        cache: of the file.
        datasets: one per episode, `[T, H, W, C]`.
        first: the first of them.
    """

    def __init__(self, cache: BlockCache, datasets: Sequence[str], first: Any) -> None:
        height, width, channels = first.shape[1:]
        self.cache, self.datasets, self.shape, self.dtype = cache, tuple(datasets), (channels, height, width), first.dtype

    def gather(self, episode: Tensor, steps: Tensor) -> Tensor:
        """See `difftop.data.windows.Images`."""
        out = np.empty((*steps.shape, *self.shape), dtype=self.dtype)
        for b, (number, rows) in enumerate(zip(episode.tolist(), steps.numpy(), strict=True)):
            blocks = rows // _BLOCK_ROWS
            for block in np.unique(blocks):
                here = blocks == block
                out[b, here] = self.cache.block(self.datasets[number], int(block))[rows[here] % _BLOCK_ROWS]
        return torch.from_numpy(out)


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5 files do, or is called so."""
    if not path.is_file() or path.suffix in (".h5", ".hdf5"):
        return path.is_file()
    with path.open("rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


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
    actions, cache = [], BlockCache(path, cache_bytes)
    low_dim: dict[str, list[Tensor]] = {key: [] for key in keys}
    images: dict[str, list[str]] = {}
    for source in sources:
        action = check_actions(f"{path}: {source.actions}", _dataset(path, file, source.actions)[()])
        if source.length is not None and source.length != len(action):
            raise DemonstrationError(
                f"{path}: {source.name} has {len(action)} actions but {source.promise} is {source.length}; the file is damaged "
                "or was edited."
            )
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
    lazy = {key: ImageRows(cache, datasets, file[datasets[0]]) for key, datasets in images.items()}
    names = [source.name for source in sources]
    return joined(path, env, names, actions, {key: rows for key, rows in low_dim.items() if rows}, lazy)


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
