"""Arrays of Zarr, versions 2 and 3, in a folder or a ZIP file; NumPy and the codecs of the extra `data` suffice.

    version 2   <array>/.zarray     JSON of shape, chunks, dtype, compressor;  a file per chunk, `0.0`
    version 3   <array>/zarr.json   JSON of shape, data_type, chunk_grid, codecs;  a file per chunk, `c/0/0`

Source: the Zarr storage specifications, versions 2 and 3.0; its codecs bytes, transpose, gzip, zstd, blosc and crc32c are read
(sums aren't compared), shards aren't.
"""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from difftop.data.extras import optional
from difftop.data.faults import Array, DemonstrationError

_NUMBERS = ("bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float16", "float32", "float64")
_CRC_BYTES = 4
_MARK = "meta/episode_ends"  # every data set has it
_ENDS = (f"/{_MARK}/.zarray", f"/{_MARK}/zarr.json")


class Store:
    """Files by name, in a folder or a ZIP file; a ZIP file may have all of it in one folder.

    Args:
        path: of the folder or file; it is opened when it is first read, once in every process that the store is sent to.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._zip, self._inside = path, None if path.is_dir() else zipfile.ZipFile(path), ""
        if self._zip is not None:
            self._files = set(self._zip.namelist())
            found = next((name for name in self._files if f"/{name}".endswith(_ENDS)), "")
            self._inside = found[: found.rindex(_MARK)] if found else ""

    def read(self, name: str) -> bytes | None:
        """A file's contents, None where there is none."""
        if self._zip is None:
            file = self.path / name
            return file.read_bytes() if file.is_file() else None
        return self._zip.read(self._inside + name) if self._inside + name in self._files else None

    def arrays(self, group: str) -> list[str]:
        """Names of the arrays in a group, in order."""
        if self._zip is None:
            names = {folder.name for folder in (self.path / group).glob("*") if folder.is_dir()}
        else:
            start = f"{self._inside}{group}/"
            names = {name[len(start) :].partition("/")[0] for name in self._files if name.startswith(start)}
        return sorted(name for name in names if self.read(f"{group}/{name}/.zarray") or self._is_array(f"{group}/{name}"))

    def _is_array(self, name: str) -> bool:
        about = self.read(f"{name}/zarr.json")
        return about is not None and json.loads(about).get("node_type") == "array"

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]


@dataclass(frozen=True)
class _Layout:
    """How an array is stored: see the top of this file. `codecs`: names and settings, in the order in which they decode."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    codecs: Sequence[tuple[str, Mapping[str, Any]]]
    fill: Any
    prefix: str
    separator: str
    axes: tuple[int, ...]  # of the stored chunk in the array's


class ZarrArray:
    """One array; a chunk is read when rows of it are wanted, and the last ones are kept.

    Args:
        store: it is in.
        name: of it, `data/action`.
        keep_bytes: memory for chunks.
    Raises:
        DemonstrationError: no array of Zarr, or one that is stored in a way that isn't known.
    """

    def __init__(self, store: Store, name: str, keep_bytes: int = 2**26) -> None:
        self.store, self.name, self._keep_bytes = store, name, keep_bytes
        self.where = str(store.path / name)
        second, third = store.read(f"{name}/.zarray"), store.read(f"{name}/zarr.json")
        try:
            if second is not None:
                self._layout = _second(json.loads(second), self.where)
            else:
                self._layout = _third(json.loads(third or b"null"), self.where)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DemonstrationError):
                raise
            raise DemonstrationError(f"{self.where}: no array of Zarr version 2 or 3 ({error!r}).") from error
        self.shape, self.dtype = self._layout.shape, self._layout.dtype
        self._kept: OrderedDict[tuple[int, ...], Array] = OrderedDict()
        self._kept_bytes = 0

    def __len__(self) -> int:
        return int(self.shape[0])

    def rows(self, start: int, stop: int) -> Array:
        """Rows `start` to `stop - 1`."""
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        tall, wide = self._layout.chunks[0], self._layout.chunks[1:]
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
        layout = self._layout
        file = f"{self.name}/{layout.prefix}{layout.separator.join(map(str, number))}"
        data = self.store.read(file)
        if data is None:
            chunk = np.full(layout.chunks, layout.fill, self.dtype)
        else:
            stored = tuple(layout.chunks[axis] for axis in layout.axes)
            flat = np.frombuffer(_decoded(data, layout.codecs, str(self.store.path / file)), self.dtype)
            if flat.size != int(np.prod(stored)):
                raise DemonstrationError(
                    f"{self.store.path / file}: this chunk has {flat.size} numbers for {list(stored)}; a copy may be incomplete."
                )
            chunk = flat.reshape(stored).transpose(np.argsort(layout.axes))
        self._kept[number] = chunk
        self._kept_bytes += chunk.nbytes
        while len(self._kept) > 1 and self._kept_bytes > self._keep_bytes:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return chunk


def _second(about: Mapping[str, Any], where: str) -> _Layout:
    """The layout that `.zarray` describes."""
    if about.get("filters"):
        raise DemonstrationError(f"{where}: it is stored with filters {about['filters']}; only compressed chunks are read.")
    shape, chunks, codec = tuple(about["shape"]), tuple(about["chunks"]), about["compressor"]
    axes = tuple(range(len(shape)))
    return _Layout(
        shape=shape,
        chunks=chunks,
        dtype=np.dtype(about["dtype"]),
        codecs=[(str(codec["id"]), codec)] if codec else [],
        fill=0 if about.get("fill_value") is None else about["fill_value"],
        prefix="",
        separator=about.get("dimension_separator", "."),
        axes=axes[::-1] if about.get("order", "C") == "F" else axes,
    )


def _third(about: Mapping[str, Any], where: str) -> _Layout:
    """The layout that `zarr.json` describes."""
    shape, kind, grid = tuple(about["shape"]), about["data_type"], about["chunk_grid"]
    if kind not in _NUMBERS or grid["name"] != "regular":
        raise DemonstrationError(f"{where}: it has {kind} in chunks {grid['name']}; numbers in regular chunks are read.")
    dtype, axes = np.dtype(kind), tuple(range(len(shape)))
    codecs: list[tuple[str, Mapping[str, Any]]] = []
    for codec in about["codecs"]:
        name, settings = codec["name"], codec.get("configuration", {})
        if name == "transpose":
            axes = tuple(axes[axis] for axis in settings["order"])
        elif name == "bytes":
            dtype = dtype.newbyteorder(">" if settings.get("endian") == "big" else "<")
        elif name in ("gzip", "zstd", "blosc", "crc32c"):
            codecs.insert(0, (name, settings))
        else:
            raise DemonstrationError(f"{where}: it is stored by the codec {name}; bytes, transpose, gzip, zstd, blosc are read.")
    encoding = about.get("chunk_key_encoding", {"name": "default"})
    plain = encoding["name"] == "default"
    separator = encoding.get("configuration", {}).get("separator", "/" if plain else ".")
    chunks = tuple(grid["configuration"]["chunk_shape"])
    fill = np.float64(about["fill_value"]) if isinstance(about.get("fill_value"), str) else about.get("fill_value") or 0
    return _Layout(shape, chunks, dtype, codecs, fill, f"c{separator}" if plain else "", separator, axes)


def _decoded(data: bytes, codecs: Sequence[tuple[str, Mapping[str, Any]]], where: str) -> bytes:
    for name, settings in codecs:
        try:
            if name == "crc32c":
                data = data[:-_CRC_BYTES]
            elif name == "zlib":
                data = zlib.decompress(data)
            elif name == "gzip":
                data = gzip.decompress(data)
            else:
                data = bytes(_codec(name, settings, where).decode(data))
        except DemonstrationError:
            raise
        except (ValueError, RuntimeError, OSError, EOFError, zlib.error) as error:
            raise DemonstrationError(f"{where}: this chunk can't be read ({error}); a copy may be incomplete.") from error
    return data


def _codec(name: str, settings: Mapping[str, Any], where: str) -> Any:
    numcodecs = optional("numcodecs", f"{where}, compressed by {name},")
    try:  # what was compressed how is in the data; version 3's settings have other words than numcodecs'
        return numcodecs.get_codec(dict(settings) if "id" in settings else {"id": name})
    except ValueError as error:
        raise DemonstrationError(f"{where}: it is compressed by {name}, which numcodecs doesn't know ({error}).") from error
