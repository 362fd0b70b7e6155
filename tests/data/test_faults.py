"""`dataset.bad`: every kind of fault stops by default, is skipped, or is mended; each is counted and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from difftop.data.demonstrations import Demonstration, DemonstrationError, Demonstrations, EnvInfo
from difftop.data.files import format_of, open_demonstrations
from difftop.data.robomimic import open_robomimic
from tests.data.test_maniskill import write_file as write_maniskill
from tests.data.test_robomimic import LENGTHS, spoil, values, write_file

NAMES = ("demo_0", "demo_1", "demo_2", "demo_10", "demo_11")


def put(name: str, index: Any, value: float) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        file[name][index] = value

    return change


def shortened(file: Any) -> None:
    """The last episode's observations end early, as a recording that was interrupted leaves them."""
    rows = file["data/demo_11/obs/object"][:4]
    del file["data/demo_11/obs/object"]
    file["data/demo_11/obs/object"] = rows


def unfinished(file: Any) -> None:
    file["data"].attrs.pop("total")
    file["data/demo_11"].attrs.pop("num_samples")


CASES: dict[str, tuple[Callable[[Any], None], str, str, dict[str, int]]] = {
    # change, what stop says, kind, lengths that clip leaves
    "actions": (put("data/demo_2/actions", (4, 2), 1.3), r"1 steps leave \[-1, 1\]", "actions beyond the limits", {}),
    "NaN in observations": (
        put("data/demo_2/obs/object", (3, 1), np.nan),
        "NaN or infinity at step 3",
        "NaN rows",
        {"demo_2": 3},
    ),
    "NaN in actions": (put("data/demo_0/actions", (7, 0), np.inf), "NaN or infinity at step 7", "NaN rows", {"demo_0": 7}),
    "short": (shortened, "has 4 rows for 6 actions", "cut off", {"demo_11": 4}),
    "unfinished": (unfinished, "has no attribute num_samples", "cut off", {}),
}


@pytest.mark.parametrize("name", CASES)
def test_each_kind_stops_is_skipped_or_is_mended(tmp_path: Path, name: str) -> None:
    change, message, kind, cut = CASES[name]
    path = write_file(tmp_path / "f.hdf5")
    spoil(change)(path)
    with pytest.raises(DemonstrationError, match=f"{message}.*dataset.bad=skip.*dataset.bad=clip") as caught:
        open_robomimic(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    bad = next((n for n in cut), "demo_11" if name == "unfinished" else "demo_2")
    skipped = open_robomimic(path, bad="skip")
    assert skipped.names == tuple(n for n in NAMES if n != bad)
    assert skipped.notes == (f"1 left out, {kind}: {bad}",)
    mended = open_robomimic(path, bad="clip")
    lengths = {f"demo_{k}": steps for k, steps in LENGTHS.items()} | cut
    assert mended.names == NAMES and mended.length.tolist() == [lengths[n] for n in NAMES]
    assert mended.notes == (f"1 mended, {kind}: {bad}",)
    assert torch.isfinite(mended.actions).all() and mended.actions.abs().max() <= 1
    assert all(len(rows) == sum(lengths.values()) for rows in mended.low_dim.values())


def test_a_wrong_total_stops_or_is_ignored(tmp_path: Path) -> None:
    path = write_file(tmp_path / "f.hdf5")
    spoil(lambda file: file["data"].attrs.modify("total", 99))(path)
    with pytest.raises(DemonstrationError, match=r"total is 99.*dataset\.bad=skip"):
        open_robomimic(path)
    for bad in ("skip", "clip"):
        made = open_robomimic(path, bad=bad)
        assert len(made) == 5 and made.notes == ("its attribute total is wrong, and ignored",)


def test_what_cant_be_mended_is_left_out_and_nothing_left_is_an_error(tmp_path: Path) -> None:
    path = write_file(tmp_path / "f.hdf5")
    spoil(put("data/demo_2/actions", 0, np.nan))(path)
    assert open_robomimic(path, bad="clip").notes == ("1 left out, NaN rows: demo_2",)
    for k in LENGTHS:
        spoil(put(f"data/demo_{k}/actions", 0, np.nan))(path)
    with pytest.raises(DemonstrationError, match=r"no demonstration is left \(5 left out, NaN rows: demo_0, .*The first: "):
        open_robomimic(path, bad="skip")


def test_the_limit_counts_those_that_are_used(tmp_path: Path) -> None:
    path = write_file(tmp_path / "f.hdf5")
    spoil(put("data/demo_0/actions", (0, 0), 1.3))(path)
    assert open_robomimic(path, bad="skip", limit=2).names == ("demo_1", "demo_2")


def test_images_of_a_cut_episode_end_with_it(tmp_path: Path) -> None:
    path = write_file(tmp_path / "f.hdf5")
    spoil(put("data/demo_2/actions", (9, 0), np.nan))(path)
    made = open_robomimic(path, bad="clip", obs_keys=["agentview_image"])
    assert [len(e.obs["agentview_image"]) for e in made.episodes(images=True)] == [19, 5, 9, 40, 6]


def test_episodes_in_memory_have_the_same_rules(tmp_path: Path) -> None:
    good = Demonstration("a", torch.zeros(4, 2), {"state": torch.zeros(4, 3)})
    wild = Demonstration("b", torch.full((4, 2), 1.5), {"state": torch.zeros(4, 3)})
    with pytest.raises(DemonstrationError, match=r"dataset\.bad=skip"):
        Demonstrations.of(tmp_path, EnvInfo("toy"), [good, wild])
    made = Demonstrations.of(tmp_path, EnvInfo("toy"), [good, wild], bad="skip")
    assert made.names == ("a",) and made.notes == ("1 left out, actions beyond the limits: b",)
    assert Demonstrations.of(tmp_path, EnvInfo("toy"), [good, wild], bad="clip").actions.max() == 1


def float_images(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            stored = change(demo["obs/agentview_image"][()])
            del demo["obs/agentview_image"]
            demo["obs/agentview_image"] = stored
    return path


def test_float_images_in_0_1_are_seen_as_bytes_are_and_others_are_refused(tmp_path: Path) -> None:
    keys = ["agentview_image"]
    plain = open_robomimic(write_file(tmp_path / "a.hdf5"), obs_keys=keys)
    floats = float_images(write_file(tmp_path / "b.hdf5"), lambda stored: stored.astype(np.float32) / 255)
    made = open_robomimic(floats, obs_keys=keys)
    for a, b in zip(plain.episodes(images=True), made.episodes(images=True), strict=True):
        assert b.obs[keys[0]].dtype == torch.float32
        assert torch.allclose(b.obs[keys[0]], a.obs[keys[0]].float(), atol=1e-3)
    for name, change, message in (
        ("c", lambda stored: stored.astype(np.float32), r"from .* to 2.*; floats must be in \[0, 1\]"),
        ("d", lambda stored: stored.astype(np.int64), "images of int64; they must be uint8"),
    ):
        with pytest.raises(DemonstrationError, match=message):
            open_robomimic(float_images(write_file(tmp_path / f"{name}.hdf5"), change), obs_keys=keys)


def test_a_json_beside_a_robomimic_file_doesnt_make_it_maniskills(tmp_path: Path) -> None:
    path = write_file(tmp_path / "f.hdf5")
    path.with_suffix(".json").write_text(json.dumps({"note": "mine"}))
    assert len(open_demonstrations(path)) == 5
    path.with_suffix(".json").write_text(json.dumps({"env_info": {"env_id": "PickCube-v1"}, "episodes": []}))
    assert len(open_demonstrations(path)) == 5
    trajectory = write_maniskill(tmp_path / "t.h5")
    assert format_of(trajectory).layout.startswith("ManiSkill")


def test_a_locked_file_is_open_elsewhere_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_file(tmp_path / "f.hdf5")

    def locked(*arguments: Any, **options: Any) -> Any:
        raise BlockingIOError(11, "unable to lock file, errno = 11, error message = 'Resource temporarily unavailable'")

    monkeypatch.setattr(h5py, "File", locked)
    with pytest.raises(DemonstrationError, match="open in another program") as caught:
        open_demonstrations(path)
    assert "damaged" not in str(caught.value) and "whole" not in str(caught.value)


def test_robomimics_conversion_leaves_the_environments_name_inside_its_arguments(tmp_path: Path) -> None:
    kwargs = {"env_name": "Lift", "robots": ["Panda"]}
    for k, args in enumerate(({"env_name": "Lift", "type": 1, "env_kwargs": kwargs}, {"type": 1, "env_kwargs": kwargs})):
        made = open_robomimic(write_file(tmp_path / f"{k}.hdf5", args))
        assert made.env.name == "Lift" and made.env.kwargs == {"robots": ["Panda"]}


def test_the_observations_after_an_action_can_be_read_too(tmp_path: Path) -> None:
    made = open_robomimic(write_file(tmp_path / "f.hdf5"), obs_keys=["object", "next_obs/object"])
    assert made.shapes == {"object": (10,), "next_obs/object": (10,)}
    np.testing.assert_array_equal(next(made.episodes()).obs["next_obs/object"].numpy(), values(200, (19, 10)).astype(np.float32))
