"""Lists of one size in Parquet, taken from the pages that they are stored in.

Parquet stores with every number of a list at which depth a list begins and whether something is missing, its levels, and Arrow
builds its lists anew from them, number by number: for a robot's vectors more work than all the rest of reading them. Where every
list has the same size and nothing is missing, the numbers are in their pages one after another, and only have to be copied.

    column chunk    one page after another: header (Thrift, compact), then its bytes, compressed as a whole
    bytes           levels of repetition, levels of definition (each: 4 bytes of length, then runs), numbers, little-endian

Anything else (dictionaries, pages of version 2, missing or empty lists, sizes that differ, damage) is left to Arrow, which also
says what is wrong. Levels are compared, not trusted: those that were found to be regular are known by their bytes, which most
pages of a column share.
Source: the Parquet format's README and Encodings.md; Thrift's thrift-compact-protocol.md.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from difftop.data.faults import Array

_CODECS = {"UNCOMPRESSED": "", "SNAPPY": "snappy", "ZSTD": "zstd", "GZIP": "gzip"}
_TYPES = {"FLOAT": "<f4", "DOUBLE": "<f8", "INT32": "<i4", "INT64": "<i8"}
_DATA_PAGE, _PLAIN, _RUNS = 0, 0, 3  # of Parquet's enumerations PageType and Encoding
_MOST_BYTES = 2**26  # of a column chunk that is read as a whole
_KNOWN = 64  # columns of 1 MB pages that end anywhere in a list have as many as a list has numbers


class PlainLists:
    """Reads columns; knows the levels of those that it read before.

    Args:
        arrow: the module pyarrow.
    """

    def __init__(self, arrow: Any) -> None:
        self._arrow = arrow
        self._known: dict[tuple[bytes, int, int, int, int], bool] = {}
        self._schema: Any = None  # of the last file, and its leaves by the name of a column
        self._leaves: dict[str, tuple[int, Any]] = {}

    def columns(self, path: Path, file: Any, wanted: Mapping[str, Array | None], *, checked: bool) -> dict[str, Array]:
        """Columns `[R, size]` of a file, those that can be read; the others are left to Arrow.

        Of a file that is checked also columns of one number `[R]`, where its statistics tell that all are the same.

        Args:
            path, file: of it, and as a `pyarrow.parquet.ParquetFile`.
            wanted: by name, room that may be used: `[R' >= R, ...]`.
            checked: the file has been compared with a checksum; else pages are compared with theirs, where they have one.
        """
        metadata, found = file.metadata, dict[str, Array]()
        if self._schema is None or not metadata.schema.equals(self._schema):
            self._schema = metadata.schema
            self._leaves = {leaf.path.rpartition(".list.")[0] or leaf.path: (i, leaf) for i, leaf in enumerate(self._schema)}
        with path.open("rb") as stream:
            for name, room in wanted.items():
                rows = None
                index, leaf = self._leaves.get(name, (0, None))
                if leaf is not None and leaf.max_repetition_level:
                    rows = self._column(stream, metadata, index, leaf, room, checked) if _is_list(leaf) else None
                elif leaf is not None and checked:
                    rows = _constant(metadata, index, leaf)
                if rows is not None:
                    found[name] = rows
        return found

    def _column(self, stream: Any, metadata: Any, index: int, leaf: Any, room: Array | None, checked: bool) -> Array | None:
        chunks = [(g.num_rows, g.column(index)) for g in map(metadata.row_group, range(metadata.num_row_groups)) if g.num_rows]
        if not chunks:
            return None
        rows, size, kind = metadata.num_rows, chunks[0][1].num_values // chunks[0][0], np.dtype(_TYPES[leaf.physical_type])
        for count, chunk in chunks:
            plain = not chunk.has_dictionary_page and chunk.total_compressed_size <= _MOST_BYTES
            if not plain or not size or chunk.num_values != count * size:
                return None
        fits = room is not None and room.dtype == kind and room[:1].size == size and len(room) >= rows
        found = room[:rows].reshape(rows, size) if room is not None and fits else np.empty((rows, size), kind)
        flat, at = found.reshape(-1), 0
        try:
            for _, chunk in chunks:
                for numbers in self._pages(stream, chunk, size, kind, leaf.max_definition_level, checked):
                    flat[at : at + len(numbers)] = numbers
                    at += len(numbers)
        except (ValueError, IndexError, OSError, KeyError, OverflowError, self._arrow.ArrowException):  # Arrow says it better
            return None
        return found if at == flat.size else None

    def _pages(self, stream: Any, chunk: Any, size: int, kind: np.dtype[Any], most: int, checked: bool) -> Iterator[Array]:
        """The numbers of each page; raises one of `_column`'s exceptions where there is more to it than that."""
        stream.seek(chunk.data_page_offset)
        stored, place, read = memoryview(stream.read(chunk.total_compressed_size)), 0, 0
        while read < chunk.num_values:
            header, place = _thrift(stored, place)
            about, packed = header[5], stored[place : place + header[3]]
            place += header[3]
            count = about[1]
            if (header[1], about[2], about[3], about[4]) != (_DATA_PAGE, _PLAIN, _RUNS, _RUNS) or len(packed) != header[3]:
                raise ValueError("another kind of page")
            if not checked and 4 in header and zlib.crc32(packed) != header[4] % 2**32:
                raise ValueError("it doesn't match its checksum")
            if header[2] > chunk.total_uncompressed_size:
                raise ValueError("more than there is")
            codec = _CODECS[chunk.compression]
            page = memoryview(self._arrow.decompress(packed, header[2], codec)) if codec else packed
            first = len(page) - count * kind.itemsize
            if first < 0 or not self._regular(bytes(page[:first]), count, size, read % size, most):
                raise ValueError("lists of several sizes, or something is missing")
            yield np.frombuffer(page, kind, count, first)
            read += count

    def _regular(self, levels: bytes, count: int, size: int, begun: int, most: int) -> bool:
        """Whether levels are those of `count` numbers of lists of one size, of which the first has `begun` before them."""
        key = (levels, count, size, begun, most)
        if key not in self._known:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            end = 4 + int.from_bytes(levels[:4], "little")
            exact = len(levels) == end + 4 + int.from_bytes(levels[end : end + 4], "little")
            repetition = (np.arange(begun, begun + count) % size > 0).astype(np.int64)
            self._known[key] = (
                exact
                and np.array_equal(_levels(levels[4:end], 1, count), repetition)
                and np.array_equal(_levels(levels[end + 4 :], most.bit_length(), count), np.full(count, most))
            )
        return self._known[key]


def _constant(metadata: Any, index: int, leaf: Any) -> Array | None:
    """A column of whole numbers `[R]` of which the file's statistics say that there is one only, like the episode's."""
    if leaf.physical_type != "INT64" or leaf.logical_type.type != "NONE" or metadata.num_row_groups != 1:
        return None
    said = metadata.row_group(0).column(index).statistics
    if said is None or not said.has_min_max or not said.has_null_count or said.null_count or said.min != said.max:
        return None
    return np.full(metadata.num_rows, said.min, np.int64)


def _is_list(leaf: Any) -> bool:
    """Whether a column of a schema is of lists of numbers, none of them in another."""
    numbers = leaf.physical_type in _TYPES and leaf.logical_type.type == "NONE"
    _, within, element = leaf.path.rpartition(".list.")
    return bool(numbers and leaf.max_repetition_level == 1 and within and "." not in element)


def _levels(runs: bytes, bits: int, count: int) -> Array:
    """Levels of `bits` bits `[count]`, which are stored as runs of one level, or packed eight by eight."""
    found: list[Array] = [np.zeros(0, np.int64)]
    place = known = 0
    while place < len(runs) and known < count:
        length, place = _varint(runs, place)
        if length & 1:
            packed = np.frombuffer(runs, np.uint8, (length >> 1) * bits, place)
            found.append(np.unpackbits(packed, bitorder="little").reshape(-1, bits) @ (1 << np.arange(bits)))
            place += len(packed)
        else:  # a level has less than 8 bits, so a byte
            found.append(np.full(min(length >> 1, count), runs[place], np.int64))
            place += 1
        known += len(found[-1])
    return np.concatenate(found)[:count]


def _varint(data: bytes | memoryview, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the place after it."""
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7


def _thrift(data: memoryview, place: int) -> tuple[dict[int, Any], int]:
    """Fields of a structure by their number, and the place after it; a binary field is its size."""
    found: dict[int, Any] = {}
    last = 0
    while head := data[place]:
        place += 1
        step, kind = head >> 4, head & 15
        if not step:
            step, place = _varint(data, place)
            step = (step >> 1) - last  # a number of its own, of 16 bits, zigzag; a page's fields are positive
        last += step
        if kind in (1, 2):
            found[last] = kind == 1
        elif kind in (4, 5, 6):
            value, place = _varint(data, place)
            found[last] = (value >> 1) ^ -(value & 1)
        elif kind == 8:
            found[last], place = _varint(data, place)
            place += found[last]
        elif kind == 12:
            found[last], place = _thrift(data, place)
        else:
            raise ValueError("a field that page headers don't have")
    return found, place + 1
