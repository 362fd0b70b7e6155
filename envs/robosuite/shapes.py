"""Sizes of a compiled MuJoCo model's geoms, changed so that they collide as they look."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from envs.suites import Array


def reshape(model: Any, geom: int, size: Array, position: Array, quaternion: Array) -> None:
    """Gives a geom of a compiled model another size, position and quaternion in its body.

    MuJoCo looks for contacts inside bounding boxes that it made when the model was compiled, of the geom (`geom_aabb`) and, as a
    tree, of its body (`bvh_aabb`): what grew beyond them touches nothing. Boxes that are too large miss nothing, and cost little.

    Args:
        model: `mujoco.MjModel`.
        geom: its number; a primitive, no mesh.
        size: `[3]`, m, as the XML has it.
        position: `[3]`, m.
        quaternion: `[4]`, wxyz.
    """
    model.geom_size[geom], model.geom_pos[geom], model.geom_quat[geom] = size, position, quaternion
    model.geom_sameframe[geom] = 0  # else its place is taken from the body's, whatever is said here
    capsule = model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_CAPSULE
    radius = float(np.sum(size[:2]) if capsule else np.linalg.norm(size))
    model.geom_rbound[geom], model.geom_aabb[geom] = radius, [0, 0, 0, radius, radius, radius]
    body = model.geom_bodyid[geom]
    geoms = slice(model.body_geomadr[body], model.body_geomadr[body] + model.body_geomnum[body])
    nodes = slice(model.body_bvhadr[body], model.body_bvhadr[body] + model.body_bvhnum[body])
    offsets = model.geom_pos[geoms] - model.body_ipos[body]  # the tree's boxes are in the body's inertial frame
    reach = float((np.linalg.norm(offsets, axis=1) + model.geom_rbound[geoms]).max())
    model.bvh_aabb[nodes] = [0, 0, 0, reach, reach, reach]
