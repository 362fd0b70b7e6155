"""Data sets that were written here: no byte of them may change unseen, and everybody can still read and edit them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from difftop.data.demonstrations import DemonstrationError
from difftop.data.exchange import RawEpisode
from difftop.data.files import open_demonstrations, survey
from difftop.data.lerobot_write import LeRobotWriter
from difftop.data.robomimic import Recording, write_demonstrations

ENV = {"env_name": "Lift", "type": 1, "env_kwargs": {}, "env_version": "1.5.2"}
STEPS = 7


def recording(number: int) -> Recording:
    rng = np.random.default_rng(number)
    return Recording({"object": rng.uniform(-1, 1, (STEPS, 3))}, rng.uniform(-1, 1, (STEPS, 2)), np.zeros(STEPS))


def hdf5(folder: Path) -> Path:
    write_demonstrations(folder / "a.hdf5", [recording(0), recording(1)], ENV, {"train": [0]})
    return folder / "a.hdf5"


def lerobot(folder: Path) -> Path:
    pytest.importorskip("pyarrow")
    writer = LeRobotWriter(folder / "set", 20.0)
    for number in range(2):
        made = recording(number)
        obs = {"object": np.asarray(made.obs["object"], np.float32)}
        writer.add(RawEpisode(f"e{number}", np.asarray(made.actions, np.float32), obs))
    writer.finish(ENV, {})
    return folder / "set"


def flipped(file: Path, place: int, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1 << bit
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("write", [hdf5, lerobot])
def test_a_bit_that_flips_anywhere_is_one_sentence(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    (tmp_path / "whole").mkdir()
    whole = write(tmp_path / "whole")
    assert len(open_demonstrations(whole)) == 2 and survey(whole).names
    files = [whole] if whole.is_file() else sorted(path for path in whole.rglob("*") if path.is_file())
    chance = random.Random(0)
    for file in files:
        size = file.stat().st_size
        for place in {0, size - 1, *(chance.randrange(size) for _ in range(12))}:
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
            shutil.copytree(tmp_path / "whole", tmp_path / "copy")
            damaged = tmp_path / "copy" / file.relative_to(tmp_path / "whole")
            flipped(damaged, place, chance.randrange(8))
            with pytest.raises(DemonstrationError) as caught:
                open_demonstrations(tmp_path / "copy" / whole.name)
            assert str(tmp_path / "copy") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", [1, 10, 64, 69, 79, 80, 81, 2000])
def test_an_end_that_is_missing_is_one_sentence(tmp_path: Path, missing: int) -> None:
    """80 bytes are the seal; without all of it, or nearly, the file is like everybody else's, and whole."""
    path = hdf5(tmp_path)
    expected = open_demonstrations(path)
    path.write_bytes(path.read_bytes()[:-missing])
    if missing in (79, 80):
        assert torch.equal(open_demonstrations(path).actions, expected.actions)
        return
    with pytest.raises(DemonstrationError, match=r"checksum|not a whole HDF5 file"):
        open_demonstrations(path)


def test_a_sealed_file_can_be_edited_and_then_has_no_seal(tmp_path: Path) -> None:
    path = hdf5(tmp_path)
    assert b"difftop sha256" in path.read_bytes()[-80:]
    with h5py.File(path, "r+") as file:
        file["data/demo_0/actions"][0] = 0.5
    assert open_demonstrations(path).actions[0].tolist() == [0.5, 0.5]
    with h5py.File(path, "a") as file:
        file["data/demo_1/more"] = np.zeros(4000)
    assert len(open_demonstrations(path)) == 2


def test_the_message_says_what_to_do(tmp_path: Path) -> None:
    path = hdf5(tmp_path)
    flipped(path, path.stat().st_size // 2, 3)
    with pytest.raises(DemonstrationError, match=r"a.hdf5: it doesn't match the checksum .* damaged: copy or record it again"):
        open_demonstrations(path)
    folder = lerobot(tmp_path)
    file = folder / "data" / "chunk-000" / "file-001.parquet"
    flipped(file, 40, 3)
    with pytest.raises(DemonstrationError, match=r"file-001.parquet: .* checksum in .*difftop.json, .* convert it again"):
        open_demonstrations(folder)


def test_data_sets_of_before_have_no_checksums_and_are_read(tmp_path: Path) -> None:
    folder = lerobot(tmp_path)
    ours = json.loads((folder / "meta" / "difftop.json").read_text())
    (folder / "meta" / "difftop.json").write_text(json.dumps({key: ours[key] for key in ("env_args", "filters", "keys")}))
    assert len(open_demonstrations(folder)) == 2


def test_a_page_that_others_wrote_with_a_checksum_is_checked(tmp_path: Path) -> None:
    folder = lerobot(tmp_path)
    (folder / "meta" / "difftop.json").unlink()
    file = folder / "data" / "chunk-000" / "file-000.parquet"
    needle = np.asarray(recording(0).actions, np.float32)[3].tobytes()
    place = file.read_bytes().find(needle)
    if place < 0:  # compressed: some byte of the first page
        place = 60
    flipped(file, place, 0)
    with pytest.raises(DemonstrationError, match=r"file-000.parquet: not a whole Parquet file"):
        open_demonstrations(folder)


def test_a_column_by_another_name_is_one_sentence(tmp_path: Path) -> None:
    """A bit that flips in the name of a column, in a data set of others, which has no checksums."""
    folder = lerobot(tmp_path)
    (folder / "meta" / "difftop.json").unlink()
    file = next((folder / "data").rglob("*.parquet"))
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(file)
    names = ["observation.objecu" if name == "observation.object" else name for name in table.column_names]
    assert names != table.column_names
    parquet.write_table(table.rename_columns(names), file)
    told = r"^\S*file-00\d\.parquet: no column 'observation\.object', which meta/info\.json names; it has .*observation\.objecu"
    for read in (open_demonstrations, survey):
        with pytest.raises(DemonstrationError, match=told):
            read(folder)
