"""Files whose actions are absolute poses: what they become, from which frame they are seen, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from difftop.data.absolute import (
    HAND,
    as_learned,
    frame_is_told,
    holds_poses,
    largest_gripper,
    range_of_poses,
    says_absolute,
)
from difftop.data.demonstrations import DemonstrationError, EnvInfo
from difftop.data.files import open_demonstrations
from difftop.data.robosuite import absolute_frame
from difftop.data.several import together
from tests.datasets.files import zarr_folder

OSC = {"type": "OSC_POSE", "control_delta": True}
BASE = np.array([-0.56, 0.0, 0.912])


def write(
    path: Path, *, arms: int = 1, seed: int = 0, frame: str = "world", controller: Any = OSC, key: str = "actions_abs"
) -> dict[str, np.ndarray]:
    """Two demonstrations of hands near (0, 0, 1) that point down; goals are a few centimetres ahead of the hand."""
    rng, made = np.random.default_rng(seed), {}
    with h5py.File(path, "w") as file:
        for k, steps in enumerate((9, 14)):
            hand = np.array([0.0, 0, 1]) + rng.uniform(-0.2, 0.2, (steps, arms, 3))
            goal = hand + rng.uniform(-0.05, 0.05, hand.shape) - (BASE if frame == "base" else 0)
            turn = (
                Rotation.from_rotvec([np.pi, 0, 0]) * Rotation.from_rotvec(rng.normal(size=(steps * arms, 3)) / 9)
            ).as_rotvec()
            poses = np.concatenate([goal, turn.reshape(steps, arms, 3), rng.choice([-1.0, 1], (steps, arms, 1))], -1)
            made[f"demo_{k}"] = poses.reshape(steps, -1)
            group = file.create_group(f"data/demo_{k}")
            group.attrs["num_samples"] = steps
            group["actions"] = rng.uniform(-1, 1, (steps, 7 * arms))
            if key in group:
                del group[key]
            group[key] = made[f"demo_{k}"]
            group[f"obs/{HAND}"], group["obs/object"] = hand[:, 0], rng.normal(size=(steps, 10))
        args = {"env_name": "Lift", "type": 1, "env_version": "1.5.2", "env_kwargs": {"controller_configs": controller}}
        file["data"].attrs["env_args"], file["data"].attrs["total"] = json.dumps(args), 23
    return made


def opened(path: Path, keys: list[str] | None = None, key: str = "actions_abs") -> Any:
    return open_demonstrations(path, obs_keys=keys, action_key=key, boxed=False)


@pytest.mark.parametrize("arms", [1, 2])
def test_poses_are_learned_in_the_box_and_executed_as_they_are_in_the_file(tmp_path: Path, arms: int) -> None:
    made = write(tmp_path / "f.hdf5", arms=arms)
    ranged = range_of_poses([opened(tmp_path / "f.hdf5", [HAND])])
    found = as_learned(opened(tmp_path / "f.hdf5"), ranged)
    assert found.actions.shape == (23, 10 * arms) and float(found.actions.abs().max()) <= 1
    per_arm = found.actions.view(23, arms, 10)
    torch.testing.assert_close(per_arm[..., :3].amin(0), -torch.ones(arms, 3))  # positions fill the box
    torch.testing.assert_close(per_arm[..., :3].amax(0), torch.ones(arms, 3))
    stored = np.concatenate(list(made.values())).reshape(-1, arms, 7)
    back = ranged.executed(found.actions.numpy()).reshape(-1, arms, 7)
    np.testing.assert_allclose(back[..., [0, 1, 2, 6]], stored[..., [0, 1, 2, 6]], atol=1e-6)
    ours, theirs = (Rotation.from_rotvec(x[..., 3:6].reshape(-1, 3)) for x in (back, stored))
    assert (ours * theirs.inv()).magnitude().max() < 1e-6  # float32
    columns = theirs.as_matrix()[:, :, :2].swapaxes(1, 2).reshape(23, arms, 6)
    np.testing.assert_allclose(per_arm[..., 3:9].numpy(), columns, atol=1e-6)


def test_the_frame_is_found_by_where_the_hand_was(tmp_path: Path) -> None:
    for frame in ("world", "base"):
        write(tmp_path / f"{frame}.hdf5", frame=frame)
    parts = {frame: opened(tmp_path / f"{frame}.hdf5", [HAND]) for frame in ("world", "base")}
    assert {frame: range_of_poses([part]).frame for frame, part in parts.items()} == {"world": "world", "base": "base"}
    with pytest.raises(DemonstrationError, match=r"different frames: .*world.hdf5 of the world and .*base.hdf5 of the base"):
        range_of_poses(list(parts.values()))
    assert range_of_poses([opened(tmp_path / "base.hdf5", [])]).frame == "world"  # nothing says otherwise
    write(tmp_path / "own.hdf5", frame="base", controller=OSC | {"control_delta": False}, key="actions")
    own = opened(tmp_path / "own.hdf5", [HAND], "actions")
    assert range_of_poses([own]).frame == "world"  # the file's controller, of robosuite 1.4, says so
    with pytest.raises(DemonstrationError, match=r"different frames: .*own.hdf5 of the world and .*base.hdf5 of the base"):
        range_of_poses([own, parts["base"]])


def test_controllers_say_their_frame() -> None:
    def frame(controller: Any) -> str:
        return absolute_frame(EnvInfo("Lift", {"controller_configs": controller}))

    def parts(**said: dict[str, str]) -> dict[str, Any]:
        return {"type": "BASIC", "body_parts": said}

    arm = {"type": "OSC_POSE", "input_type": "absolute"}
    assert frame(OSC | {"control_delta": False}) == "world"
    assert frame(parts(right=arm)) == "base"  # robosuite 1.5's own default
    assert frame(parts(right=arm | {"input_ref_frame": "world"})) == "world"
    assert frame(parts(right=arm, left=arm | {"input_ref_frame": "world"})) == "" and frame(OSC) == ""


def test_robots_with_two_arms_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "f.hdf5", arms=2)
    part = opened(tmp_path / "f.hdf5", [HAND])
    one, two = (replace(part, env=replace(part.env, kwargs={"robots": robots})) for robots in ("Baxter", ["Panda", "Panda"]))
    assert range_of_poses([two]).arms == 2
    with pytest.raises(DemonstrationError, match="actions are of 2 arms and there is 1 robot"):
        range_of_poses([one])


def test_the_largest_command_of_a_gripper(tmp_path: Path) -> None:
    write(tmp_path / "f.hdf5", arms=2)
    part = opened(tmp_path / "f.hdf5", [HAND])
    assert largest_gripper([part]) == 1
    actions = part.actions.clone()
    actions[3, 13] = -1.5
    assert largest_gripper([part, replace(part, actions=actions)]) == 1.5
    assert frame_is_told(part) and not frame_is_told(opened(tmp_path / "f.hdf5", []))


def test_several_files_share_one_range(tmp_path: Path) -> None:
    paths = [tmp_path / "a.hdf5", tmp_path / "b.hdf5"]
    for seed, path in enumerate(paths):
        write(path, seed=seed)
    parts = [opened(path, [HAND]) for path in paths]
    ranged = range_of_poses(parts)
    everything = torch.cat([part.actions[:, :3] for part in parts])
    np.testing.assert_array_equal(ranged.low[:3], everything.amin(0).numpy())
    assert together([as_learned(part, ranged) for part in parts]).actions.shape == (46, 10)


def test_who_says_that_actions_are_poses() -> None:
    def says(controller: Any) -> bool:
        return says_absolute(EnvInfo("Lift", {"controller_configs": controller}))

    by_part = {"type": "BASIC", "body_parts": {"arms": {"right": {"input_type": "absolute"}}}}
    assert (
        says({"control_delta": False}) and says(by_part) and says([OSC, {"control_delta": False}]) and says(json.dumps(by_part))
    )
    joints = {"type": "JOINT_POSITION", "input_type": "absolute"}
    assert not says(joints) and not says({"type": "BASIC", "body_parts": {"right": joints}})  # seven angles are no pose
    assert not says(OSC) and not says(None) and not says({"body_parts": {"right": {"input_type": "delta"}}}) and not says("{")
    delta, absolute = (EnvInfo("Lift", {"controller_configs": {"control_delta": c}}) for c in (True, False))
    assert (
        holds_poses(absolute, "actions", "auto") and holds_poses(delta, "actions_abs", "auto") and holds_poses(delta, "x", "true")
    )
    assert not holds_poses(delta, "actions", "auto") and not holds_poses(absolute, "actions", "false")


def test_what_cannot_be_poses_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "f.hdf5")
    part = opened(tmp_path / "f.hdf5", [HAND])
    with pytest.raises(DemonstrationError, match="actions have 6 entries; absolute poses must have 7 an arm"):
        range_of_poses([replace(part, actions=part.actions[:, :6])])
    with pytest.raises(DemonstrationError, match="demo_0/actions_absolute is missing"):
        opened(tmp_path / "f.hdf5", key="actions_absolute")
    zarr_folder(tmp_path / "z")
    with pytest.raises(DemonstrationError, match=r"can't be taken as absolute poses or by another name .*convert it"):
        opened(tmp_path / "z")
