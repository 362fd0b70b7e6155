"""Lists out of Parquet's pages: what Arrow reads, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from difftop.data import parquet_lists
from difftop.data.faults import Array
from difftop.data.lerobot import LeRobotReader
from difftop.data.parquet_lists import PlainLists
from tests.datasets.files import episodes

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(700, 7)).astype(np.float32)


def lists(rows: Array, kind: str = "fixed") -> Any:
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    made = pa.ListArray if kind == "variable" else pa.LargeListArray
    offset = pa.int32() if kind == "variable" else pa.int64()
    return made.from_arrays(pa.array(np.arange(len(rows) + 1) * rows.shape[1], offset), pa.array(rows.reshape(-1)))


def read(path: Path, room: Array | None = None, *, checked: bool = False) -> Mapping[str, Array]:
    with pq.ParquetFile(path) as file:
        return PlainLists(pa).columns(path, file, {"action": room}, checked=checked)


@pytest.mark.parametrize("codec", ["none", "snappy", "zstd", "gzip", "lz4"])
@pytest.mark.parametrize("kind", ["fixed", "variable", "large"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "i4"])
def test_numbers_are_arrows(tmp_path: Path, codec: str, kind: str, dtype: str) -> None:
    rows = (ROWS * 100).astype(dtype)
    table = pa.table({"x": np.arange(len(rows)), "action": lists(rows, kind)})
    # Pages end anywhere in a list, row groups at one: what of a list is in an earlier page counts.
    options = {"use_dictionary": False, "row_group_size": 300, "data_page_size": 256, "write_batch_size": 5}
    pq.write_table(table, tmp_path / "f", compression=codec, **options)
    found = read(tmp_path / "f")
    assert set(found) == (set() if codec == "lz4" else {"action"})  # Parquet has two kinds of it
    for values in found.values():
        assert values.dtype == rows.dtype
        np.testing.assert_array_equal(values, rows)


@pytest.mark.parametrize("cut", [(0, 700), (3, 500), (699, 1), (8, 0)])
def test_slices_and_chunks_of_a_table_are_written_as_they_are(tmp_path: Path, cut: tuple[int, int]) -> None:
    whole = pa.chunked_array([lists(ROWS[:5]), lists(ROWS[5:5]), lists(ROWS[5:])])
    pq.write_table(pa.table({"action": whole}).slice(*cut), tmp_path / "f", use_dictionary=False)
    found = read(tmp_path / "f")
    assert ("action" in found) == (cut[1] > 0)
    if found:
        np.testing.assert_array_equal(found["action"], ROWS[cut[0] : cut[0] + cut[1]])


def test_what_is_not_plain_is_left_to_arrow(tmp_path: Path) -> None:
    values = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    kind = pa.list_(pa.float32())
    columns = {
        "a missing list": pa.array([*values[:2], None, [5.0, 6.0]], kind),
        "a missing list, the same numbers in all": pa.array([[1.0, 2.0, 3.0], None, [4.0]], kind),
        "a missing number": pa.array([values[0], [3.0, None]], kind),
        "several sizes": pa.array([[1.0], [2.0, 3.0], [4.0]], kind),
        "several sizes, two on average": pa.array([[1.0], [2.0, 3.0, 4.0]], kind),
        "empty": pa.array([[], []], kind),
        "an empty list": pa.array([[1.0, 2.0, 3.0, 4.0], []], kind),
        "nested": pa.array([values, values], pa.list_(kind)),
        "numbers": pa.array([1.0, 2.0]),
        "texts": pa.array([["a"], ["b"]]),
        "bytes": pa.array([[1, 2]], pa.list_(pa.uint8())),
        "structures": pa.array([[{"element": 1.0}]]),
    }
    for name, column in columns.items():
        pq.write_table(pa.table({"action": column}), tmp_path / "f", use_dictionary=False)
        assert not read(tmp_path / "f"), name
    table = pa.table({"action": lists(ROWS)})
    for options in (
        {},
        {"use_dictionary": False, "data_page_version": "2.0"},
        {"column_encoding": {"action.list.element": "BYTE_STREAM_SPLIT"}},
    ):
        pq.write_table(table, tmp_path / "f", **{"use_dictionary": "column_encoding" not in options, **options})
        assert not read(tmp_path / "f"), options


def test_room_is_used_where_it_fits(tmp_path: Path) -> None:
    pq.write_table(pa.table({"action": lists(ROWS)}), tmp_path / "f", use_dictionary=False)
    for shape, dtype, used in (
        ((700, 7), "f4", True),
        ((900, 7), "f4", True),
        ((700, 6), "f4", False),
        ((699, 7), "f4", False),
        ((700, 7), "f8", False),
    ):
        room = np.zeros(shape, dtype)
        found = read(tmp_path / "f", room)["action"]
        np.testing.assert_array_equal(found, ROWS)
        assert np.shares_memory(found, room) == used


def test_a_damaged_page_is_left_to_arrow(tmp_path: Path) -> None:
    """Each byte of a small file in turn: another number only where no checksum is there to tell."""
    path, rows = tmp_path / "f", ROWS[:6]
    pq.write_table(pa.table({"action": lists(rows)}), path, use_dictionary=False, write_page_checksum=True, compression="none")
    whole = path.read_bytes()
    with pq.ParquetFile(path) as file:
        chunk = file.metadata.row_group(0).column(0)
        for at in range(chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
            for values in PlainLists(pa).columns(path, file, {"action": None}, checked=False).values():
                np.testing.assert_array_equal(values, rows)  # a header has numbers that nothing depends on
        for size in range(0, len(whole) - 1, 7):
            path.write_bytes(whole[:size])
            PlainLists(pa).columns(path, file, {"action": None}, checked=True)  # raises nothing


def test_known_levels_are_a_bounded_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_lists, "_KNOWN", 2)
    pq.write_table(pa.table({"action": lists(ROWS)}), tmp_path / "f", use_dictionary=False, data_page_size=64, write_batch_size=3)
    reader = PlainLists(pa)
    with pq.ParquetFile(tmp_path / "f") as file:
        np.testing.assert_array_equal(reader.columns(tmp_path / "f", file, {"action": None}, checked=True)["action"], ROWS)
    assert len(reader._known) <= 2


def test_a_column_of_one_number_is_known_by_its_statistics(tmp_path: Path) -> None:
    same, some = np.full(9, 2**53 + 1), np.arange(9)
    for numbers, found in ((same, True), (some, False), (np.array([1.0] * 9), False), (np.array([3] * 9, "M8[s]"), False)):
        pq.write_table(pa.table({"action": numbers}), tmp_path / "f")
        assert not read(tmp_path / "f") and bool(read(tmp_path / "f", checked=True)) == found
        if found:
            np.testing.assert_array_equal(read(tmp_path / "f", checked=True)["action"], numbers)
    pq.write_table(pa.table({"action": pa.array([4, None, 4])}), tmp_path / "f")
    assert not read(tmp_path / "f", checked=True)


def test_a_data_set_is_read_the_same_by_arrow_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from difftop.data.lerobot_write import LeRobotWriter

    writer = LeRobotWriter(tmp_path / "set", 10.0)
    for episode in episodes():
        writer.add(episode)
    writer.finish(None, {})
    ours = list(LeRobotReader(tmp_path / "set").episodes())
    monkeypatch.setattr(PlainLists, "columns", lambda *_, **__: {})
    for one, other in zip(ours, LeRobotReader(tmp_path / "set").episodes(), strict=True):
        vectors = {key: rows for key, rows in one.obs.items() if rows.ndim < 4}
        for mine, arrows in ((one.actions, other.actions), *((rows, other.obs[key]) for key, rows in vectors.items())):
            assert (mine.dtype, mine.shape) == (arrows.dtype, arrows.shape)
            np.testing.assert_array_equal(mine, arrows)
