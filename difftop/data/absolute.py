"""Data sets whose actions are absolute poses, read as the poses that policies learn; see `difftop.poses`.

`actions_abs` of RoboMimic's files holds them, and `actions` where the file's controller says so (`control_delta` false,
`input_type` absolute) or somebody replaced them, as Diffusion Policy's `..._abs.hdf5`, which doesn't say it.

Source: diffusion_policy, `robomimic_dataset_conversion.py`; robomimic, `robosuite_add_absolute_actions.py`, which differs in that
its poses are seen from the arm's base. Nothing in a file tells which of the two wrote it, but where the hand was does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from difftop.data.demonstrations import DemonstrationError, Demonstrations, EnvInfo
from difftop.data.robosuite import HAND as HAND
from difftop.data.robosuite import NEAR_M, absolute_frame
from difftop.data.robosuite import says_absolute as says_absolute
from difftop.data.scaling import scaled
from difftop.poses import EXECUTED, LEARNED, PoseRange, learned

CHOICES = ("auto", "true", "false")


def holds_poses(info: EnvInfo, action_key: str, choice: str) -> bool:
    """Whether actions are absolute poses: `choice` of `CHOICES`, auto by what the file says and how they are called."""
    if choice != "auto":
        return choice == "true"
    return action_key.endswith("_abs") or (action_key == "actions" and says_absolute(info))


def range_of_poses(parts: Sequence[Demonstrations]) -> PoseRange:
    """The range of the positions in several data sets, and the frame that they are in.

    Args:
        parts: with executed poses as actions, and with `HAND` where it is known.
    Raises:
        DemonstrationError: actions are none of 7 numbers an arm, not all in one frame, or of a robot with two arms.
    """
    for part in parts:
        if part.actions.shape[1] % EXECUTED:
            raise DemonstrationError(
                f"{part.path}: actions have {part.actions.shape[1]} entries; absolute poses must have {EXECUTED} an arm: "
                "position in m, axis-angle in rad, gripper."
            )
        arms, robots = part.actions.shape[1] // EXECUTED, part.env.kwargs.get("robots", ())
        count = 1 if isinstance(robots, str) else len(robots)
        if count and count != arms:
            raise DemonstrationError(
                f"{part.path}: actions are of {arms} arms and there is {count} robot; absolute poses of robots with several "
                "arms, whose grippers come after all arms, are not offered."
            )
    frames = {frame: part for part, frame in ((part, _frame(part)) for part in parts) if frame}
    if len(frames) > 1:
        said = " and ".join(f"{part.path} of the {frame}" for frame, part in frames.items())
        raise DemonstrationError(f"absolute poses are seen from different frames: {said}; train on one of them.")
    low, high = (np.stack([_ends(part, end) for part in parts]) for end in ("min", "max"))
    return PoseRange(tuple(low.min(0).tolist()), tuple(high.max(0).tolist()), next(iter(frames), ""))


def as_learned(made: Demonstrations, ranged: PoseRange) -> Demonstrations:
    """A data set with executed poses as actions, with learned ones in [-1, 1]."""
    low, high = torch.tensor(ranged.low), torch.tensor(ranged.high)
    six = torch.from_numpy(learned(made.actions.numpy())).to(low)
    return replace(made, actions=scaled(six, low, high), action_low=low, action_high=high)


def largest_gripper(parts: Sequence[Demonstrations]) -> float:
    """The largest size of a gripper's command in executed poses; beyond 1 `as_learned` clips it."""
    return max(float(part.actions.view(len(part.actions), -1, EXECUTED)[..., EXECUTED - 1].abs().max()) for part in parts)


def frame_is_told(part: Demonstrations) -> bool:
    """Whether the controller or where the hand was tells which frame poses are in; else the world is a guess."""
    return says_absolute(part.env) or HAND in part.low_dim


def _ends(part: Demonstrations, end: str) -> Any:
    """The least or the largest of each entry of the learned poses; of all but positions -1 and 1."""
    arms = part.actions.numpy().reshape(len(part.actions), -1, EXECUTED)
    found = np.full((arms.shape[1], LEARNED), -1.0 if end == "min" else 1.0)
    found[:, :3] = getattr(arms[..., :3], end)(0)
    return found.reshape(-1)


def _frame(part: Demonstrations) -> str:
    """Where poses are seen from: as the file's controller where that takes poses, else by where the hand was, else world."""
    if says_absolute(part.env):
        return absolute_frame(part.env)
    if HAND not in part.low_dim:
        return "world"
    distance = (part.actions[:, :3] - part.low_dim[HAND]).norm(dim=1).median()
    return "world" if float(distance) < NEAR_M else "base"
