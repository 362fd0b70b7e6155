"""Absolute poses as actions: axis-angle, as files and controllers have them, and six numbers of a rotation, which policies learn.

    executed, 7 an arm    position [3], m;  axis-angle [3], rad;           gripper [1]
    learned, 10 an arm    position [3], m;  first two columns of R [6];    gripper [1]

Axis-angle jumps at pi, about which a hand that points down is turned; two columns of the rotation matrix don't jump anywhere. Of
six numbers that a network says, the nearest rotation is found by Gram-Schmidt:

    b_1 = a_1 / |a_1|,   b_2 = (a_2 - (b_1 . a_2) b_1) / |...|,   b_3 = b_1 x b_2,   R = [b_1 b_2 b_3]

Source: Zhou et al. 2019, arXiv:1812.07035, section 4.2, eq. 15; pytorch3d, and with it Diffusion Policy, take rows for columns.
Only NumPy: processes of environments import this file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

EXECUTED, LEARNED = 7, 10  # numbers an arm
FRAMES = ("", "world", "base")
_TINY = 1e-8


@dataclass(frozen=True)
class PoseRange:
    """What -1 and 1 stand for in learned poses, and in whose axes they are.

    Attributes:
        low, high: 10 numbers an arm: the range of the positions, m; -1 and 1 for the others.
        frame: `world`, or `base` of the arm; empty for what the file's controller says.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    frame: str = ""

    def __post_init__(self) -> None:
        if not self.low or len(self.low) != len(self.high) or len(self.low) % LEARNED or self.frame not in FRAMES:
            raise ValueError(
                f"low has {len(self.low)} numbers, high {len(self.high)}, frame={self.frame!r}: there must be {LEARNED} an arm "
                f"in both, and a frame of {FRAMES}."
            )

    @property
    def arms(self) -> int:
        """How many arms there are."""
        return len(self.low) // LEARNED

    def executed(self, actions: Array) -> Array:
        """Actions `[..., 10 k]` in [-1, 1] as what a controller takes `[..., 7 k]`, float64."""
        low, high = np.array(self.low), np.array(self.high)
        return executed(low + (np.asarray(actions, np.float64) + 1) / 2 * (high - low))

    def text(self) -> str:
        """As JSON; `read` takes it."""
        return json.dumps(vars(self))

    @staticmethod
    def read(text: str) -> PoseRange:
        """What `text` wrote; raises `ValueError` for anything else."""
        try:
            values = json.loads(text)
            return PoseRange(tuple(values["low"]), tuple(values["high"]), str(values["frame"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{text!r} is no range of poses ({error!r}).") from error


def learned(actions: Array) -> Array:
    """Executed actions `[..., 7 k]` as learned ones `[..., 10 k]`, float64."""
    arms = np.asarray(actions, np.float64).reshape(*actions.shape[:-1], -1, EXECUTED)
    six = six_of(matrix_of(arms[..., 3:6]))
    made: Array = np.concatenate([arms[..., :3], six, arms[..., 6:]], -1).reshape(*actions.shape[:-1], -1)
    return made


def executed(actions: Array) -> Array:
    """Learned actions `[..., 10 k]` as executed ones `[..., 7 k]`, float64."""
    arms = np.asarray(actions, np.float64).reshape(*actions.shape[:-1], -1, LEARNED)
    turn = vector_of(matrix_of_six(arms[..., 3:9]))
    made: Array = np.concatenate([arms[..., :3], turn, arms[..., 9:]], -1).reshape(*actions.shape[:-1], -1)
    return made


def matrix_of(vector: Array) -> Array:
    """Rotation matrices `[..., 3, 3]` of axis-angle `[..., 3]`, rad: R = I + sin(t)/t K + (1 - cos(t))/t^2 K^2 (Rodrigues)."""
    v = np.asarray(vector, np.float64)
    angle = np.linalg.norm(v, axis=-1)[..., None, None]
    x, y, z, none = v[..., 0], v[..., 1], v[..., 2], np.zeros(v.shape[:-1])
    cross = np.stack([none, -z, y, z, none, -x, -y, x, none], -1).reshape(*v.shape[:-1], 3, 3)
    first = np.sinc(angle / np.pi)
    second = np.sinc(angle / (2 * np.pi)) ** 2 / 2  # without the cancellation of 1 - cos
    made: Array = np.eye(3) + first * cross + second * (cross @ cross)
    return made


def vector_of(matrix: Array) -> Array:
    """Axis-angle `[..., 3]`, of angles from 0 to pi, of rotation matrices `[..., 3, 3]`.

    By the quaternion, computed from the largest of its entries, which is exact near 0 and near pi (Shepperd 1978). At pi both
    directions of the axis are right, and one is chosen.
    """
    m = np.asarray(matrix, np.float64)
    a, b, c = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    squares = np.stack([1 + a + b + c, 1 + a - b - c, 1 - a + b - c, 1 - a - b + c], -1)  # 4 w^2, 4 x^2, 4 y^2, 4 z^2
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    products = [  # 4 times each entry, times the largest
        np.stack([squares[..., 0], wx, wy, wz], -1),
        np.stack([wx, squares[..., 1], xy, xz], -1),
        np.stack([wy, xy, squares[..., 2], yz], -1),
        np.stack([wz, xz, yz, squares[..., 3]], -1),
    ]
    largest = squares.argmax(-1)[..., None, None]
    quaternion = np.take_along_axis(np.stack(products, -2), largest, -2)[..., 0, :]
    quaternion = quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True)
    quaternion = np.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    size = np.linalg.norm(quaternion[..., 1:], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(size, quaternion[..., :1])
    tiny = size < _TINY  # where the angle is twice the sine of its half
    found: Array = quaternion[..., 1:] * np.where(tiny, 2.0, angle / np.where(tiny, 1.0, size))
    return found


def six_of(matrix: Array) -> Array:
    """The first two columns of rotation matrices `[..., 3, 3]`, one after the other `[..., 6]`."""
    return np.concatenate([matrix[..., :, 0], matrix[..., :, 1]], -1)


def matrix_of_six(six: Array) -> Array:
    """Rotation matrices `[..., 3, 3]` of any six numbers `[..., 6]`: see the top of this file.

    Where they have no direction (zeros, or both columns along one line), axes of the frame stand in for what is missing: a
    network that was hardly trained may say so, and a robot must not get NaN.
    """
    six = np.asarray(six, np.float64)
    first = _directed(six[..., :3], np.broadcast_to([1.0, 0.0, 0.0], six[..., :3].shape))
    smallest = np.eye(3)[np.abs(first).argmin(-1)]  # the axis that is farthest from the first column
    instead = _directed(smallest - (first * smallest).sum(-1, keepdims=True) * first, smallest)
    second = six[..., 3:] - (first * six[..., 3:]).sum(-1, keepdims=True) * first
    second = _directed(second, instead)
    return np.stack([first, second, np.cross(first, second)], -1)


def _directed(vector: Array, instead: Array) -> Array:
    """Vectors of length 1; `instead` of those that have hardly any."""
    size = np.linalg.norm(vector, axis=-1, keepdims=True)
    small = size < _TINY
    return np.where(small, instead, vector / np.where(small, 1.0, size))
