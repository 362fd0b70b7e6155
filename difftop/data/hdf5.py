"""Demonstrations out of an HDF5 file, of whatever layout: vectors are read at once, images when they are needed.

A format says where its file keeps things (`Source`); `read_demonstrations` checks all of it and loads it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from difftop.data.demonstrations import Array, DemonstrationError, Demonstrations, EnvInfo, joined, missing_key, other_shape
from difftop.data.faults import CUT_OFF, MISSING, Columns, Faults, FaultyEpisodeError, checked
from difftop.data.seal import check_seal, seal
from difftop.later import later
from difftop.types import is_depth

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = later("torch")

_HELD_BACK = 1 << 20  # bytes of a disk that stay free: what a file that is being written wants for its closing
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
        fault: what is wrong with the episode at first sight, empty for nothing; `promise` and the lengths then don't matter.
    """

    name: str
    actions: str
    obs: Mapping[str, str]
    length: int | None
    promise: str
    extra_rows: int = 0
    fault: str = ""


class BlockCache:
    """Blocks of rows of a file's datasets, the most recently used of them kept up to a number of bytes.

    The file is opened when it is first read, once in every process that the cache is sent to. Not for several threads at once.
    """

    def __init__(self, path: Path, capacity_bytes: int) -> None:
        self.path, self.capacity_bytes, self.used_bytes = path, capacity_bytes, 0
        self._blocks: OrderedDict[tuple[str, int], Array] = OrderedDict()
        self._file: Any = None
        self._process = 0

    def block(self, dataset: str, number: int, *, depth: bool = False) -> Array:
        """Rows `16 number` to `16 number + 15` of a dataset `[T, H, W, C]` (fewer at its end), channels first.

        Args:
            dataset, number: see above.
            depth: whether they are depths.
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
        block = np.ascontiguousarray(np.moveaxis((depths if depth else pixels)(f"{self.path}: {dataset}", stored), -1, 1))
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
        key: what they are called; see `difftop.types.is_depth`.
    """

    def __init__(self, cache: BlockCache, datasets: Sequence[str], first: Any, key: str) -> None:
        height, width, channels = first.shape[1:]
        self.cache, self.datasets, self.shape = cache, tuple(datasets), (channels, height, width)
        self.depth = is_depth(key, self.shape)
        self.dtype = np.dtype(np.uint8 if first.dtype == np.uint8 and not self.depth else np.float32)

    @property
    def cached_bytes(self) -> int:
        """See `difftop.data.windows.Images`."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def gather(self, episode: Tensor, steps: Tensor) -> Tensor:
        """See `difftop.data.windows.Images`."""
        out = np.empty((*steps.shape, *self.shape), dtype=self.dtype)
        for b, (number, rows) in enumerate(zip(episode.tolist(), steps.numpy(), strict=True)):
            blocks = rows // _BLOCK_ROWS
            for block in np.unique(blocks):
                here = blocks == block
                out[b, here] = self._block(number, int(block))[rows[here] % _BLOCK_ROWS]
        return torch.from_numpy(out)

    def _block(self, episode: int, number: int) -> Array:
        return self.cache.block(self.datasets[episode], number, depth=self.depth)


def depths(where: str, stored: Array) -> Array:
    """Depth images as float32, m: floats are metres, integers of 16 bits millimetres, as depth cameras and ManiSkill have them.

    Raises:
        DemonstrationError: another type, NaN, infinity, or below 0.
    """
    metres = stored.dtype.kind == "f"
    if not metres and stored.dtype not in (np.uint16, np.int16):
        raise DemonstrationError(
            f"{where} has depths of {stored.dtype}; they must be floats, m, or integers of 16 bits, mm: store them anew so."
        )
    if stored.size and not (stored.min() >= 0 and np.isfinite(stored.max())):  # written so that NaN fails too
        raise DemonstrationError(
            f"{where} has depths from {stored.min():g} to {stored.max():g}; they must be finite, and 0 where nothing was seen."
        )
    return stored.astype(np.float32) if metres else np.divide(stored, 1000, dtype=np.float32)


def pixels(where: str, stored: Array) -> Array:
    """Images as networks take them, 0 to 255: uint8 as they are; floats in [0, 1] as float32 times 255, not rounded.

    Raises:
        DemonstrationError: another type, or floats beyond [0, 1].
    """
    if stored.dtype == np.uint8:
        return stored
    if stored.dtype.kind != "f":
        raise DemonstrationError(f"{where} has images of {stored.dtype}; they must be uint8, or floats in [0, 1].")
    if stored.size and not (stored.min() >= 0 and stored.max() <= 1):
        raise DemonstrationError(
            f"{where} has images of {stored.dtype} from {stored.min():g} to {stored.max():g}; floats must be in [0, 1], "
            "bytes (0 to 255) uint8: store them anew as one of these."
        )
    return np.multiply(stored, 255, dtype=np.float32)


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
        check_seal(path)
        with h5py.File(path, "r") as file:
            yield file
    except Exception as error:
        if isinstance(error, DemonstrationError) or not (isinstance(error, OSError) or _of_h5py(error)):
            raise  # an environment's, say, while a file is played back
        if isinstance(error, BlockingIOError) or "unable to lock file" in str(error):
            raise DemonstrationError(
                f"{path}: open in another program, which writes to it; close it there, or read a copy."
            ) from error
        if isinstance(error, PermissionError):
            raise DemonstrationError(f"{path}: you may not read it ({error.strerror}).") from error
        raise DemonstrationError(
            f"{path}: not a whole HDF5 file ({_line(error)}); a download or a copy may be incomplete."
        ) from error


def ensure_room(path: Path, count: int) -> None:
    """Refuses what the disk has no room for: HDF5 prints pages, and may crash, where a write of its own fails.

    Args:
        path: the file.
        count: bytes that come next; HDF5's own, and those that it holds back until the file is closed, are added.
    Raises:
        OSError: ENOSPC.
    """
    if shutil.disk_usage(path.parent).free < count + _HELD_BACK:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@contextmanager
def new_hdf5(path: Path, *, sealed: bool = False) -> Iterator[Any]:
    """An HDF5 file to write, with a seal where it is a whole data set.

    Raises:
        OSError: it can't be written, with one line that says why; of a full disk h5py makes an OSError of many lines, or
            a RuntimeError.
    """
    try:
        with h5py.File(path, "w") as file:
            yield file
    except Exception as error:
        if not _of_h5py(error):
            raise
        full = "No space left on device" in str(error)
        code = errno.ENOSPC if full else getattr(error, "errno", None) or errno.EIO
        raise OSError(code, os.strerror(code) if full else _line(error), str(path)) from error
    if sealed:
        seal(path)


def looked_into(path: Path, question: Callable[[Any], bool]) -> bool | None:
    """What is answered of a file; None where it is too damaged to tell, which opening it will say."""
    try:
        with h5py.File(path, "r") as file:
            return question(file)
    except Exception as error:
        if not (isinstance(error, OSError) or _of_h5py(error)):
            raise
        return None


def _of_h5py(error: BaseException) -> bool:
    """Whether h5py raised it: of a damaged file it raises KeyError, ValueError, TypeError, whatever comes first."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "h5py" in Path(trace.tb_frame.f_code.co_filename).parts


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def read_demonstrations(
    path: Path,
    file: Any,
    sources: Iterable[Source],
    env: EnvInfo,
    keys: Sequence[str] | None,
    cache_bytes: int,
    faults: Faults | None = None,
    limit: int = 0,
    *,
    boxed: bool = True,
) -> Demonstrations:
    """Checks and loads episodes.

    Args:
        path, file: the file, and it opened.
        sources: its episodes, in order; no more of them are read than wanted.
        env: what it was recorded in.
        keys: observations to use, in this order; None for all that are no images.
        cache_bytes: memory for images.
        faults: what is done about faults, and where they are counted.
        limit: use the first so many that have none; 0 for all.
        boxed: whether actions must be in [-1, 1].
    Raises:
        DemonstrationError: anything that is missing, has the wrong length or shape, is not finite, or is outside of the box.
    """
    faults = faults or Faults(path)
    reading = _Reading(path, file, keys, faults, boxed)
    for source in sources:
        if limit and len(reading.names) == limit:
            break
        reading.add(source)
    if not reading.names:
        raise faults.nothing_left() if faults.left_out else DemonstrationError(f"{path}: it has no demonstration.")
    cache = BlockCache(path, cache_bytes)
    lazy = {key: ImageRows(cache, datasets, file[datasets[0]], key) for key, datasets in reading.images.items()}
    return joined(path, env, reading.names, reading.actions, reading.vectors, lazy, faults.lines())


class _Reading:
    """The episodes of a file that have been read."""

    def __init__(self, path: Path, file: Any, keys: Sequence[str] | None, faults: Faults, boxed: bool) -> None:
        self.path, self.file, self.keys, self.faults, self.boxed = path, file, keys, faults, boxed
        self.names: list[str] = []
        self.actions: list[Tensor] = []
        self.vectors: dict[str, list[Tensor]] = {}
        self.images: dict[str, list[str]] = {}
        self._rows: dict[str, tuple[int, ...]] = {}  # shape of one observation by key

    def add(self, source: Source) -> None:
        """Reads an episode, unless it is left out."""
        try:
            columns, images = self._columns(source)
        except FaultyEpisodeError as error:
            self.faults.leave_out(source.name, error)
            return
        found = checked(columns, self.faults, boxed=self.boxed)
        if found is None:
            return
        self.names.append(source.name)
        self.actions.append(found[0])
        for key, rows in found[1].items():
            self.vectors.setdefault(key, []).append(rows)
        for key, dataset in images.items():
            self.images.setdefault(key, []).append(dataset)

    def _columns(self, source: Source) -> tuple[Columns, dict[str, str]]:
        """The columns of an episode, and the datasets of its images; raises `FaultyEpisodeError`."""
        if source.fault and (self.faults.bad != "clip" or not source.obs):
            raise FaultyEpisodeError(CUT_OFF if source.obs else MISSING, source.fault)
        if source.fault:
            self.faults.mend(source.name, CUT_OFF, source.fault)
        actions = self._dataset(source.actions)
        if self.keys is None:
            self.keys = [key for key, dataset in source.obs.items() if len(self._dataset(dataset).shape) < 4]
        vectors, images, rows = {}, {}, {}
        for key in self.keys:
            if key not in source.obs:
                raise missing_key(self.path, source.name, key, source.obs)
            dataset = self._dataset(source.obs[key])
            where = f"{self.path}: {source.obs[key]}"
            if dataset.shape[1:] != self._rows.setdefault(key, dataset.shape[1:]):
                raise other_shape(where, dataset.shape[1:], self._rows[key])
            if len(dataset.shape) >= 4:
                first = dataset[:1]
                (depths if is_depth(key, np.moveaxis(first, -1, 1).shape[1:]) else pixels)(where, first)
                images[key], rows[key] = source.obs[key], dataset.shape[0]
            else:
                vectors[key] = dataset[()] if dataset.shape else np.zeros(0)
        places = {"actions": f"{self.path}: {source.actions}"} | {k: f"{self.path}: {source.obs[k]}" for k in self.keys}
        length = None if source.fault else source.length
        return Columns(source.name, actions[()], vectors, rows, places, length, source.promise, source.extra_rows), images

    def _dataset(self, name: str) -> Any:
        found = self.file.get(name)
        if not isinstance(found, h5py.Dataset):
            what = "missing" if found is None else "a group"
            raise FaultyEpisodeError(MISSING, f"{self.path}: {name} is {what}; it must be a dataset.")
        return found
