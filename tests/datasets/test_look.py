"""`mode=data`: a right summary of every format, and a command that trains on it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from difftop.command import main
from tests.data.test_absolute import write as write_poses
from tests.data.test_maniskill import write_file as write_maniskill
from tests.data.test_robomimic import spoil, write_file
from tests.datasets.files import episodes, raw_robosuite, zarr_folder


def looked(path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    assert main(["mode=data", f"dataset={path}", "picture=none", "--json", *more]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_robomimic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_file(tmp_path / "people.hdf5")

    def change(file: Any) -> None:
        file["data/demo_2/actions"][3, 1] = 1.3
        file["data/demo_10/obs/object"][5, 0] = np.nan
        file["data/demo_0/rewards"][-1] = 1

    spoil(change)(path)
    found = looked(path, capsys)
    assert (found["format"], found["environment"], found["environment_version"]) == ("robomimic", "Lift", "1.4.1")
    assert found["episodes"] == 5 and found["steps"] == 87 and found["lengths"] == {"min": 5, "median": 17.0, "max": 40}
    assert found["observations"]["agentview_image"] == {"shape": [4, 6, 3], "dtype": "uint8", "kind": "image"}
    assert found["observations"]["object"] == {"shape": [10], "dtype": "float64", "kind": "vector"}
    assert found["faults"] == {"actions beyond the limits": ["demo_2"], "NaN rows": ["demo_10"]}
    assert found["filters"] == {"train": 3, "valid": 2} and found["successes"] == 1
    assert found["used"] + found["held_out"] == 3 and len(found["actions"]) == 7
    assert sum(found["actions"][1]["counts"]) == 87 and found["actions"][1]["beyond"] == pytest.approx(1 / 87)
    assert found["command"].startswith(f"difftop agent=leto env=robomimic/lift dataset={path} dataset.bad=skip")


def test_the_table_and_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = raw_robosuite(tmp_path / "demo.hdf5")
    assert main(["mode=data", f"dataset={path}", "--json", "all.json"]) == 0
    said = capsys.readouterr().out
    assert "format                      robosuite" in said and "episodes                    4, of 20 to 20 steps" in said
    assert "idle steps                  75.0%" in said and "75% of the steps are idle" in said
    assert f"difftop mode=convert dataset={path} out={tmp_path / 'demo-obs.hdf5'}" in said
    assert "6 (constant)" in said and "states                      32" in said
    assert (tmp_path / "demo.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "all.json").read_text())["idle_share"] == 0.75


def test_maniskill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = looked(write_maniskill(tmp_path / "trajectory.h5", nested=True), capsys)
    assert found["format"] == "maniskill" and found["successes"] == 2 and found["used"] == 2
    assert found["observations"]["base_camera_image"]["shape"] == [4, 6, 3] and not found["faults"]
    assert any("1 failed episodes are left out" in text for text in found["warnings"])
    assert "env=maniskill/PickCube-v1" in found["command"]


def test_zarr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = zarr_folder(tmp_path / "pusht.zarr")
    found = looked(tmp_path / "pusht.zarr", capsys)
    assert found["format"] == "zarr" and found["episodes"] == 3 and found["steps"] == 32
    assert found["observations"]["img_image"] == {"shape": [12, 16, 3], "dtype": "float32", "kind": "image"}
    assert found["actions"][0]["high"] == pytest.approx(float(made["action"][:, 0].max()))
    assert not found["faults"] and "env=data/pusht " in found["command"]


def test_lerobot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    from difftop.data.lerobot_write import LeRobotWriter

    writer = LeRobotWriter(tmp_path / "set", 10.0)
    for episode in episodes():
        writer.add(episode)
    writer.finish(None, {"better": [0, 2]})
    found = looked(tmp_path / "set", capsys)
    assert found["format"] == "lerobot" and found["episodes"] == 3 and found["steps"] == 34 and found["rate_hz"] == 10
    assert found["observations"]["top_image"] == {"shape": [16, 24, 3], "dtype": "uint8", "kind": "image"}
    assert found["successes"] == 2 and found["filters"] == {"better": 2} and "tasks: stack" in found["notes"]


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for words, message in (
        (["mode=data"], "mode=data needs dataset=PATH"),
        (["mode=data", f"dataset={tmp_path / 'empty'}"], "no format knows this folder; there are maniskill"),
        (["mode=data", f"dataset={tmp_path / 'gone'}"], "no such file or folder"),
        (["mode=data", "datset=x"], "datset: unknown option. Did you mean 'dataset'?"),
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, said


def test_images_are_never_read(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_file(tmp_path / "people.hdf5")
    read = h5py.Dataset.__getitem__

    def watched(self: Any, *index: Any, **options: Any) -> Any:
        assert len(self.shape) < 4, f"{self.name} is read"
        return read(self, *index, **options)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", watched)
    assert looked(path, capsys)["episodes"] == 5


def test_absolute_poses_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_poses(tmp_path / "beside.hdf5")
    found = looked(tmp_path / "beside.hdf5", capsys)
    assert "absolute poses: dataset.actions=actions_abs trains on them" in found["notes"] and not found["faults"]
    write_poses(tmp_path / "own.hdf5", controller={"control_delta": False}, key="actions")
    found = looked(tmp_path / "own.hdf5", capsys)
    assert not found["faults"] and any("as the file's controller says" in note for note in found["notes"])
    assert found["used"] + found["held_out"] == 2 and "dataset.poses" not in found["command"]


def test_poses_that_nothing_but_the_hand_tells_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in the files of Diffusion Policy's conversion; the command that is named trains on them."""
    path = tmp_path / "image_abs.hdf5"
    write_poses(path, key="actions")
    found = looked(path, capsys)
    assert not found["faults"] and any("by where the hand was" in note for note in found["notes"])
    assert f"dataset={path} dataset.poses=true" in found["command"]
    write_poses(tmp_path / "base.hdf5", key="actions", frame="base")  # may be anything
    assert "dataset.bad=skip" in looked(tmp_path / "base.hdf5", capsys)["command"]


def test_a_look_imports_no_network(tmp_path: Path) -> None:
    """torch would be half of the time that it takes."""
    write_file(tmp_path / "people.hdf5")
    words = ["mode=data", f"dataset={tmp_path / 'people.hdf5'}", f"picture={tmp_path / 'p.png'}"]
    code = f"import sys; from difftop.command import main; assert main({words!r}) == 0; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=Path(__file__).parents[2])
