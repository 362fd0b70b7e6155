"""Zarr of both versions, in folders and ZIP files."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from difftop.data.demonstrations import DemonstrationError
from difftop.data.files import open_demonstrations, recorded_env, survey
from difftop.data.zarr_arrays import Store, ZarrArray
from tests.datasets.files import zarr_folder

CODECS: dict[str, list[dict[str, Any]]] = {
    "plain": [],
    "gzip": [{"name": "gzip", "configuration": {"level": 1}}],
    "zstd": [{"name": "zstd", "configuration": {"level": 0, "checksum": False}}],
    "blosc": [
        {"name": "blosc", "configuration": {"cname": "lz4", "clevel": 5, "shuffle": "shuffle", "typesize": 4, "blocksize": 0}}
    ],
    "gzip and a sum": [{"name": "gzip", "configuration": {"level": 1}}, {"name": "crc32c"}],
}


def encoded(data: bytes, codecs: list[dict[str, Any]]) -> bytes:
    for codec in codecs:
        if codec["name"] == "gzip":
            data = gzip.compress(data)
        elif codec["name"] == "crc32c":
            data += struct.pack("<I", 0)
        else:
            import numcodecs

            data = bytes((numcodecs.Zstd() if codec["name"] == "zstd" else numcodecs.Blosc(typesize=4)).encode(data))
    return data


def array3(
    folder: Path,
    values: np.ndarray,
    chunks: tuple[int, ...],
    codecs: list[dict[str, Any]],
    endian: str = "little",
    order: Any = None,
    v2: bool = False,
) -> None:
    """As the specification of version 3 has it, chunk by chunk; nothing of the reader is used."""
    dtype = values.dtype.newbyteorder(">" if endian == "big" else "<")
    turned = [{"name": "transpose", "configuration": {"order": order}}] if order else []
    about = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": values.shape,
        "data_type": str(values.dtype),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "v2"} if v2 else {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [*turned, {"name": "bytes", "configuration": {"endian": endian}}, *codecs],
        "fill_value": 0,
    }
    folder.mkdir(parents=True)
    (folder / "zarr.json").write_text(json.dumps(about))
    for number in np.ndindex(*(-(-size // chunk) for size, chunk in zip(values.shape, chunks, strict=True))):
        part = values[tuple(slice(i * c, (i + 1) * c) for i, c in zip(number, chunks, strict=True))]
        whole = np.zeros(chunks, dtype)
        whole[tuple(slice(0, size) for size in part.shape)] = part
        stored = np.ascontiguousarray(whole.transpose(order) if order else whole)
        file = folder / ".".join(map(str, number)) if v2 else folder.joinpath("c", *map(str, number))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(stored.tobytes(), codecs))


def folder3(path: Path, codecs: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """A data set of version 3, with what `zarr_folder` has."""
    made = zarr_folder(path.with_name("version2"))
    for key, values in made.items():
        array3(path / "data" / key, values, (8, *values.shape[1:]), codecs)
    array3(path / "meta/episode_ends", np.array([11, 18, 32]), (2,), codecs)
    for group in ("", "data", "meta"):
        (path / group / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    return made


def zipped(folder: Path, path: Path, inside: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for entry in sorted(folder.rglob("*")):
            if entry.is_file():
                file.write(entry, f"{inside}{entry.relative_to(folder)}")
    return path


def same(path: Path, made: dict[str, np.ndarray]) -> None:
    found = open_demonstrations(path, obs_keys=["state", "img_image"])
    assert found.length.tolist() == [11, 7, 14]
    np.testing.assert_array_equal(found.low_dim["state"].numpy(), made["state"])
    low, high = made["action"].min(0), made["action"].max(0)
    np.testing.assert_allclose(found.actions.numpy(), 2 * (made["action"] - low) / (high - low) - 1, atol=1e-5)
    shown = [episode.obs["img_image"].numpy() for episode in found.episodes(images=True)]
    np.testing.assert_array_equal(np.concatenate(shown), made["img"].transpose(0, 3, 1, 2))
    again = pickle.loads(pickle.dumps(found.images["img_image"]))  # as it is sent to a process that loads
    np.testing.assert_array_equal(again.array.rows(5, 20), made["img"][5:20])
    assert len(survey(path).names) == 3 and recorded_env(path).name == ""


@pytest.mark.parametrize("codecs", CODECS)
def test_version_3(tmp_path: Path, codecs: str) -> None:
    if codecs in ("zstd", "blosc"):
        pytest.importorskip("numcodecs")
    same(tmp_path / "set.zarr", folder3(tmp_path / "set.zarr", CODECS[codecs]))


@pytest.mark.parametrize("inside", ["", "replay.zarr/"])
@pytest.mark.parametrize("version", [2, 3])
def test_zip_files(tmp_path: Path, version: int, inside: str) -> None:
    folder = tmp_path / "set.zarr"
    made = zarr_folder(folder) if version == 2 else folder3(folder, CODECS["gzip"])
    same(zipped(folder, tmp_path / "set.zarr.zip", inside), made)


@pytest.mark.parametrize("dtype", ["bool", "int16", "uint8", "uint64", "float16", "float32", "float64"])
@pytest.mark.parametrize(("endian", "order", "v2"), [("little", None, False), ("big", None, True), ("little", [2, 0, 1], False)])
def test_every_layout_of_numbers(tmp_path: Path, dtype: str, endian: str, order: Any, v2: bool) -> None:
    values = (np.random.default_rng(0).uniform(0, 100, (13, 5, 7)) // 1).astype(dtype)
    array3(tmp_path / "x", values, (4, 2, 7), [], endian, order, v2)
    array = ZarrArray(Store(tmp_path), "x", keep_bytes=1)
    for start, stop in ((0, 13), (3, 9), (12, 13), (5, 5)):
        np.testing.assert_array_equal(array.rows(start, stop), values[start:stop])


def test_chunks_that_are_missing_are_filled(tmp_path: Path) -> None:
    array3(tmp_path / "x", np.ones((4, 2), np.float32), (2, 2), [])
    about = json.loads((tmp_path / "x/zarr.json").read_text())
    (tmp_path / "x/zarr.json").write_text(json.dumps(about | {"fill_value": "NaN"}))
    (tmp_path / "x/c/1/0").unlink()
    rows = ZarrArray(Store(tmp_path), "x").rows(0, 4)
    assert (rows[:2] == 1).all() and np.isnan(rows[2:]).all()


def test_what_is_not_read_is_one_sentence(tmp_path: Path) -> None:
    folder3(tmp_path / "a", [])
    about = json.loads((tmp_path / "a/data/state/zarr.json").read_text())
    for change, message in (
        ({"codecs": [{"name": "sharding_indexed"}]}, "stored by the codec sharding_indexed; bytes, transpose, gzip"),
        ({"data_type": "complex64"}, "it has complex64 in chunks regular; numbers in regular chunks are read"),
        ({"shape": None}, "no array of Zarr version 2 or 3"),
    ):
        (tmp_path / "a/data/state/zarr.json").write_text(json.dumps(about | change))
        with pytest.raises(DemonstrationError, match=message):
            open_demonstrations(tmp_path / "a")
    (tmp_path / "a/data/state/zarr.json").write_text(json.dumps(about))
    (tmp_path / "a/data/state/c/1/0").write_bytes(b"1234")
    with pytest.raises(DemonstrationError, match=r"c/1/0: this chunk has 1 numbers for \[8, 5\]; a copy may be incomplete"):
        open_demonstrations(tmp_path / "a")
    (tmp_path / "broken.zarr.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DemonstrationError, match=r"broken\.zarr\.zip: not a whole ZIP file"):
        open_demonstrations(tmp_path / "broken.zarr.zip")
