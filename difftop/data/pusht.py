"""Push-T's published data set inside Diffusion Policy's Zarr (`pusht_cchi_v7_replay.zarr`), recognized by its arrays.

    data/action      [R, 2]       where the disc was sent, pixels: 0 and 512 become -1 and 1, as env=pusht/push-t has them
    data/state       [R, 5]       disc's x and y, T's x and y (pixels), T's angle (rad)
    data/keypoint    [R, K, 2]    points of the T on the board, pixels: `keypoint [2 K]`
    data/img         [R, 96, 96, 3]: `img_image`
    data/n_contacts  [R, 1]

Beside them there is `agent_pos [2]`, the disc's part of `state`. Where on the T the points are isn't written anywhere: it follows
from any row, and the environment's arguments say it, so that an evaluation shows the same points.
Source: diffusion_policy, `dataset/pusht_dataset.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from difftop.data.demonstrations import EnvInfo
from difftop.data.faults import Array

AGENT_POS, KEYPOINT, STATE = "agent_pos", "keypoint", "state"
RATE_HZ = 10.0
_TASK = "push-t"
_SIDE = 512.0  # of the board, pixels
_VERSION = "0.1"  # of gym-pusht, which plays the same task
_ROWS = 64  # that the points are found from
_APART = 1.0  # pixels by which they may differ between rows


def keypoints(shapes: Mapping[str, tuple[int, ...]], rows: Callable[[str, int], Array]) -> Array | None:
    """The points in the T's own frame `[K, 2]`; None where a data set isn't Push-T's.

    Args:
        shapes: of its arrays by name.
        rows: the first so many rows of an array.
    """
    points, state = shapes.get(KEYPOINT, ()), shapes.get(STATE, ())
    if state[1:] != (5,) or shapes.get("action", ())[1:] != (2,) or len(points) != 3 or points[2] != 2 or not points[0]:
        return None
    count = min(_ROWS, points[0], state[0])
    pose, seen = rows(STATE, count)[:, 2:].astype(np.float64), rows(KEYPOINT, count).astype(np.float64)
    c, s = np.cos(pose[:, 2]), np.sin(pose[:, 2])
    turned = np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)  # [rows, 2, 2], from the T's frame to the board's
    local = np.einsum("nki,nij->nkj", seen - pose[:, None, :2], turned)
    found: Array = np.median(local, axis=0)
    return found if bool((np.abs(local - found) < _APART).all()) else None  # NaN is not below


def recorded_env(points: Array, image_size: int = 0) -> EnvInfo:
    """The environment that shows the same; `image_size` is 0 where there are no images."""
    kwargs = {"suite": "pusht", "control_mode": "position", "control_freq": RATE_HZ, "keypoints": np.round(points, 3).tolist()}
    kwargs |= {"image_size": image_size} if image_size else {}
    said = {"env_name": _TASK, "type": 2, "env_version": _VERSION, "env_kwargs": kwargs}  # as RoboMimic's files do
    return EnvInfo(_TASK, kwargs, _VERSION, said)


def as_shown(key: str, rows: Array) -> Array:
    """What is shown of an episode's stored rows of the array `key`, of `state` where that is `agent_pos`.

    Places that the disc was sent to become actions in [-1, 1]; beyond the board, which it can't leave, they are clipped to it.
    """
    if key == "action":
        return (2 * rows.astype(np.float64) / _SIDE - 1).clip(-1, 1).astype(np.float32)
    if key == AGENT_POS:
        return rows[:, :2]
    return rows.reshape(len(rows), -1) if key == KEYPOINT else rows
