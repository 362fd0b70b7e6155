"""Diffusion Policy's Zarr data sets, read: of versions 2 and 3, a folder or a ZIP file (`x.zarr.zip`).

    <folder>/meta/episode_ends   [E], row after each episode's last
    <folder>/data/action         [R, A]
    <folder>/data/<key>          [R, ...]: observations; images [R, height, width, 3], uint8 or floats 0 to 255

See `difftop.data.zarr_arrays` for the arrays; Push-T's are recognized, see `difftop.data.pusht`. Actions that leave [-1, 1] are
scaled to it by their range, see `difftop.data.scaling`.
Source: diffusion_policy, `common/replay_buffer.py`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from difftop.data import pusht
from difftop.data.demonstrations import DemonstrationError, Demonstrations, EnvInfo, Format
from difftop.data.exchange import RawEpisode
from difftop.data.faults import Array, Columns, Faults
from difftop.data.hdf5 import depths, pixels
from difftop.data.scaling import gathered
from difftop.data.survey import Survey, Surveyor
from difftop.data.zarr_arrays import Store, ZarrArray
from difftop.later import later
from difftop.types import DEPTH, is_depth

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = later("torch")

_ACTION = "action"


class ZarrReader:
    """A whole data set; see `difftop.data.exchange.Reader`."""

    notes: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        """Raises `DemonstrationError`: something is missing."""
        self.path, self.env, self.rate_hz = path, EnvInfo(""), 0.0  # it doesn't say what it was recorded in
        store = self.store = opened(path)
        ends = ZarrArray(store, "meta/episode_ends")
        self.ends = ends.rows(0, len(ends)).astype(np.int64)
        arrays = store.arrays("data")
        self.arrays = {name: ZarrArray(store, f"data/{name}") for name in arrays}
        if _ACTION not in self.arrays or not len(self.ends):
            what = "data/action is missing" if _ACTION not in self.arrays else "it has no episode"
            raise DemonstrationError(f"{path}: {what}; there are {', '.join(arrays) or 'no arrays'}.")
        self.count, self.filters = len(self.ends), dict[str, list[int]]()
        self.starts = np.concatenate([[0], self.ends[:-1]])
        self.keys = [name for name in arrays if name != _ACTION]
        self._is_pusht = False
        points = pusht.keypoints({key: a.shape for key, a in self.arrays.items()}, lambda key, n: self.arrays[key].rows(0, n))
        if points is not None:
            sides = [self.arrays[key].shape[1] for key in self.keys if self.is_image(key)]
            self._is_pusht, self.env, self.rate_hz = True, pusht.recorded_env(points, *sides[:1]), pusht.RATE_HZ
            self.keys.append(pusht.AGENT_POS)

    def name(self, number: int) -> str:
        """Of an episode."""
        return f"episode_{number}"

    def column(self, key: str, number: int) -> Array:
        """What of an array belongs to an episode."""
        array = self.arrays[pusht.STATE if self._is_pusht and key == pusht.AGENT_POS else key]
        rows = array.rows(int(self.starts[number]), min(int(self.ends[number]), len(array)))
        return pusht.as_shown(key, rows) if self._is_pusht else rows

    def is_image(self, key: str) -> bool:
        """Whether an array has images."""
        return key in self.arrays and len(self.arrays[key].shape) == 4

    def episodes(self, start: int = 0) -> Iterator[RawEpisode]:
        """See `difftop.data.exchange.Reader`."""
        for number in range(start, self.count):
            obs = {
                key_of(key, self.is_image(key)): as_shown(key, f"{self.path}: {key}", self.column(key, number))
                if self.is_image(key)
                else self.column(key, number)
                for key in self.keys
            }
            yield RawEpisode(self.name(number), self.column(_ACTION, number), obs)


class ZarrImages:
    """Images of one key of all episodes, in their chunks; see `difftop.data.windows.Images`."""

    def __init__(self, store: Store, name: str, starts: Sequence[int], keep_bytes: int) -> None:
        self.array, self.starts, self.key = ZarrArray(store, name, keep_bytes), tuple(starts), name.rpartition("/")[2]
        height, width, channels = self.array.shape[1:]
        self.shape = (channels, height, width)

    @property
    def cached_bytes(self) -> int:
        """See `difftop.data.windows.Images`; chunks are kept as they are stored."""
        return int(np.prod(self.shape)) * int(self.array.dtype.itemsize)

    def gather(self, episode: Tensor, steps: Tensor) -> Tensor:
        """See `difftop.data.windows.Images`."""
        found = []
        for number, rows in zip(episode.tolist(), steps.numpy(), strict=True):
            low, first = int(rows.min()), self.starts[number]
            block = as_shown(self.key, self.array.where, self.array.rows(first + low, first + int(rows.max()) + 1))
            found.append(np.moveaxis(block[rows - low], -1, 1))
        return torch.from_numpy(np.ascontiguousarray(np.stack(found)))


def as_shown(key: str, where: str, stored: Array) -> Array:
    """Images `[T, height, width, C]` of the array `key` as networks take them: depths in m, others as `as_bytes` has them."""
    return depths(where, stored) if is_depth(key, (stored.shape[-1], *stored.shape[1:3])) else as_bytes(where, stored)


def as_bytes(where: str, stored: Array) -> Array:
    """Images as uint8 where they hold whole numbers from 0 to 255, as Push-T's floats do; else floats in [0, 1] times 255."""
    if stored.dtype.kind == "f" and stored.size and stored.max() > 1:
        whole = stored.astype(np.uint8)
        if stored.min() >= 0 and stored.max() <= 255 and np.array_equal(whole, stored):
            return whole
    return pixels(where, stored)


def key_of(key: str, image: bool) -> str:
    """The observation's name here: images end in `_image`, or in `_depth`."""
    return key if not image or key.endswith(("_image", DEPTH)) else f"{key}_image"


def matches(path: Path) -> bool:
    """Whether it is a folder with Diffusion Policy's arrays, or a ZIP file of one, or one too damaged to tell."""
    if path.is_dir():
        return (path / "meta" / "episode_ends").is_dir() and (path / "data").is_dir()
    if not path.is_file() or not path.name.endswith(".zip"):
        return False
    if not zipfile.is_zipfile(path):
        return path.name.endswith(".zarr.zip")  # opening it says what is wrong
    with zipfile.ZipFile(path) as file:
        return any("meta/episode_ends/" in name for name in file.namelist())


def opened(path: Path) -> Store:
    """The files of a data set; raises `DemonstrationError`."""
    try:
        return Store(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DemonstrationError(f"{path}: not a whole ZIP file ({error}); a download or a copy may be incomplete.") from error


def recorded_env(path: Path) -> EnvInfo:
    """Push-T where its arrays are those; no other data set says what it was recorded in."""
    return ZarrReader(path).env


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
    return made.with_images({key: ZarrImages(reader.store, f"data/{by_key[key]}", starts, keep) for key in images})


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


FORMAT = Format(
    "Diffusion Policy's Zarr: a folder or .zarr.zip of data/ and meta/episode_ends", matches, recorded_env, open_zarr, survey
)
