"""Diffusion Policy's Zarr data sets, read; a folder of chunks, for which NumPy and the codecs of the extra `data` suffice.

    <folder>/meta/episode_ends   [E], row after each episode's last
    <folder>/data/action         [R, A]
    <folder>/data/<key>          [R, ...]: observations; images [R, height, width, 3], uint8 or floats 0 to 255

An array of Zarr version 2 is a folder with `.zarray`, JSON of its shape, chunks, type and codec, and a file per chunk, `0.0`.
Actions that leave [-1, 1] are scaled to it by their range, see `difftop.data.scaling`.
Source: diffusion_policy, `common/replay_buffer.py`; the Zarr storage specification, version 2.
"""

from __future__ import annotations

import json
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difftop.data.demonstrations import DemonstrationError, Demonstrations, EnvInfo, Format
from difftop.data.exchange import RawEpisode
from difftop.data.extras import optional
from difftop.data.faults import Array, Columns, Faults
from difftop.data.hdf5 import pixels
from difftop.data.scaling import gathered
from difftop.data.survey import Survey, Surveyor

_ACTION = "action"


class ZarrArray:
    """One array of a folder; a chunk is read when rows of it are wanted, and the last ones are kept.

    Args:
        folder: of the array.
        keep_bytes: memory for chunks.
    Raises:
        DemonstrationError: no array of Zarr version 2, or one that is stored in a way that isn't known.
    """

    def __init__(self, folder: Path, keep_bytes: int = 2**26) -> None:
        self.folder, self._keep_bytes = folder, keep_bytes
        try:
            about = json.loads((folder / ".zarray").read_text())
            self.shape, self._chunks = tuple(about["shape"]), tuple(about["chunks"])
            self.dtype, self._codec, self._order = np.dtype(about["dtype"]), about["compressor"], about.get("order", "C")
            self._fill, filters = about.get("fill_value"), about.get("filters")
            self._separator = about.get("dimension_separator", ".")
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise DemonstrationError(f"{folder}: no array of Zarr version 2 ({error}).") from error
        if filters:
            raise DemonstrationError(f"{folder}: it is stored with filters {filters}; only compressed chunks are read.")
        self._kept: OrderedDict[tuple[int, ...], Array] = OrderedDict()

    def __len__(self) -> int:
        return int(self.shape[0])

    def rows(self, start: int, stop: int) -> Array:
        """Rows `start` to `stop - 1`."""
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        tall, wide = self._chunks[0], self._chunks[1:]
        others = [range(-(-size // chunk)) for size, chunk in zip(self.shape[1:], wide, strict=True)]
        for first in range(start // tall, -(-stop // tall)):
            low, high = max(start, first * tall), min(stop, (first + 1) * tall)
            for number in product(*others):
                ends = [(i * c, min((i + 1) * c, s)) for i, c, s in zip(number, wide, self.shape[1:], strict=True)]
                places, inside = [slice(a, b) for a, b in ends], [slice(0, b - a) for a, b in ends]
                rows = self._chunk((first, *number))[(slice(low - first * tall, high - first * tall), *inside)]
                out[(slice(low - start, high - start), *places)] = rows
        return out

    def _chunk(self, number: tuple[int, ...]) -> Array:
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        path = self.folder / self._separator.join(map(str, number))
        if path.is_file():
            data = _decoded(path, self._codec)
            chunk: Array = np.frombuffer(data, self.dtype).reshape(self._chunks, order=self._order)
        else:
            chunk = np.full(self._chunks, 0 if self._fill is None else self._fill, self.dtype)
        self._kept[number] = chunk
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self._keep_bytes:
            self._kept.popitem(last=False)
        return chunk


def _decoded(path: Path, codec: Mapping[str, Any] | None) -> bytes:
    data = path.read_bytes()
    if codec is None:
        return data
    if codec["id"] == "zlib":
        return zlib.decompress(data)
    numcodecs = optional("numcodecs", f"{path.parent}, compressed by {codec['id']},")
    try:
        return bytes(numcodecs.get_codec(dict(codec)).decode(data))
    except (ValueError, RuntimeError) as error:
        raise DemonstrationError(f"{path}: this chunk can't be read ({error}); a copy may be incomplete.") from error


class ZarrReader:
    """A whole data set; see `difftop.data.exchange.Reader`."""

    notes: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        """Raises `DemonstrationError`: something is missing."""
        self.path, self.env, self.rate_hz = path, recorded_env(path), 0.0
        if (path / "zarr.json").is_file():
            raise DemonstrationError(f"{path}: Zarr version 3; Diffusion Policy's data sets have version 2, store it as one.")
        ends = ZarrArray(path / "meta" / "episode_ends")
        self.ends = ends.rows(0, len(ends)).astype(np.int64)
        arrays = sorted(folder.parent.name for folder in (path / "data").glob("*/.zarray"))
        self.arrays = {name: ZarrArray(path / "data" / name) for name in arrays}
        if _ACTION not in self.arrays or not len(self.ends):
            what = "data/action is missing" if _ACTION not in self.arrays else "it has no episode"
            raise DemonstrationError(f"{path}: {what}; there are {', '.join(arrays) or 'no arrays'}.")
        self.count, self.filters = len(self.ends), dict[str, list[int]]()
        self.starts = np.concatenate([[0], self.ends[:-1]])
        self.keys = [name for name in arrays if name != _ACTION]

    def name(self, number: int) -> str:
        """Of an episode."""
        return f"episode_{number}"

    def column(self, key: str, number: int) -> Array:
        """What of an array belongs to an episode."""
        array = self.arrays[key]
        return array.rows(int(self.starts[number]), min(int(self.ends[number]), len(array)))

    def is_image(self, key: str) -> bool:
        """Whether an array has images."""
        return len(self.arrays[key].shape) == 4

    def episodes(self, start: int = 0) -> Iterator[RawEpisode]:
        """See `difftop.data.exchange.Reader`."""
        for number in range(start, self.count):
            obs = {
                key_of(key, self.is_image(key)): as_bytes(f"{self.path}: {key}", self.column(key, number))
                if self.is_image(key)
                else self.column(key, number)
                for key in self.keys
            }
            yield RawEpisode(self.name(number), self.column(_ACTION, number), obs)


class ZarrImages:
    """Images of one key of all episodes, in their chunks; see `difftop.data.windows.Images`."""

    def __init__(self, folder: Path, starts: Sequence[int], keep_bytes: int) -> None:
        self.array, self.starts = ZarrArray(folder, keep_bytes), tuple(starts)
        height, width, channels = self.array.shape[1:]
        self.shape = (channels, height, width)

    def gather(self, episode: Tensor, steps: Tensor) -> Tensor:
        """See `difftop.data.windows.Images`."""
        found = []
        for number, rows in zip(episode.tolist(), steps.numpy(), strict=True):
            low, first = int(rows.min()), self.starts[number]
            block = as_bytes(str(self.array.folder), self.array.rows(first + low, first + int(rows.max()) + 1))
            found.append(np.moveaxis(block[rows - low], -1, 1))
        return torch.from_numpy(np.ascontiguousarray(np.stack(found)))


def as_bytes(where: str, stored: Array) -> Array:
    """Images as uint8 where they hold whole numbers from 0 to 255, as Push-T's floats do; else floats in [0, 1] times 255."""
    if stored.dtype.kind == "f" and stored.size and stored.max() > 1:
        whole = stored.astype(np.uint8)
        if stored.min() >= 0 and stored.max() <= 255 and np.array_equal(whole, stored):
            return whole
    return pixels(where, stored)


def key_of(key: str, image: bool) -> str:
    """The observation's name here: images end in `_image`."""
    return key if not image or key.endswith("_image") else f"{key}_image"


def matches(path: Path) -> bool:
    """Whether it is a folder with Diffusion Policy's arrays."""
    return path.is_dir() and (path / "meta" / "episode_ends").is_dir() and (path / "data").is_dir()


def recorded_env(path: Path) -> EnvInfo:
    """The data set doesn't say what it was recorded in."""
    return EnvInfo("")


def open_zarr(
    path: Path,
    *,
    obs_keys: Sequence[str] | None = None,
    filter_key: str = "",
    limit: int = 0,
    cache_bytes: int = 2**30,
    successful_only: bool = True,
    bad: str = "stop",
) -> Demonstrations:
    """See `difftop.data.files.open_demonstrations`; there are no filters, and nothing says which episodes failed."""
    if filter_key:
        raise DemonstrationError(f"{path}: a Zarr data set has no filters; leave dataset.filter={filter_key} out.")
    reader, faults = ZarrReader(path), Faults(path, bad)
    by_key = {key_of(key, reader.is_image(key)): key for key in reader.keys}
    keys = [key for key, stored in by_key.items() if not reader.is_image(stored)] if obs_keys is None else list(obs_keys)
    unknown = [key for key in keys if key not in by_key]
    if unknown:
        raise DemonstrationError(f"{path}: no observation {unknown[0]!r}; it has {', '.join(by_key)}.")
    images = [key for key in keys if reader.is_image(by_key[key])]

    def columns(number: int) -> Columns:
        length = int(reader.ends[number] - reader.starts[number])
        vectors = {key: reader.column(by_key[key], number) for key in keys if key not in images}
        places = {"actions": f"{path}: action of episode {number}"} | {k: f"{path}: {k} of episode {number}" for k in keys}
        return Columns(reader.name(number), reader.column(_ACTION, number), vectors, {}, places, length, "meta/episode_ends")

    made = gathered(path, reader.env, (columns(number) for number in range(reader.count)), faults, limit)
    starts = [int(reader.starts[int(name.rpartition("_")[2])]) for name in made.names]
    keep = cache_bytes // max(len(images), 1)
    return made.with_images({key: ZarrImages(path / "data" / by_key[key], starts, keep) for key in images})


def survey(path: Path) -> Survey:
    """See `difftop.data.survey`."""
    reader, surveyor = ZarrReader(path), Surveyor()
    for number in range(reader.count):
        length = int(reader.ends[number] - reader.starts[number])
        vectors = {key: reader.column(key, number) for key in reader.keys if not reader.is_image(key)}
        images = {
            key_of(key, True): ((length, *reader.arrays[key].shape[1:]), reader.arrays[key].dtype)
            for key in reader.keys
            if reader.is_image(key)
        }
        surveyor.add(reader.name(number), reader.column(_ACTION, number), vectors, images, length=length)
    return surveyor.survey(path, "zarr", reader.env, boxed=False)


FORMAT = Format("Diffusion Policy's Zarr: a folder of data/ and meta/episode_ends", matches, recorded_env, open_zarr, survey)
