"""Proof that recorded states mean in the installed robosuite what they meant where they were recorded.

The recorded scene is compiled by itself, without meshes and textures, which are looked for on the disk of whoever recorded it and
move nothing: its kinematics alone give the pose of every body in every recorded state. They must be those of the simulator that
is looked at: of the objects, of the hands, and of the shapes that objects are made of.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

import numpy as np

from difftop.data.demonstrations import DemonstrationError
from envs.suites import Array

_METRES, _RADIANS = 1e-4, 1e-3  # what poses may differ by
_SECTIONS = ("actuator", "sensor", "contact", "equality", "tendon", "keyframe", "statistic", "visual", "size", "custom")


class RecordedKinematics:
    """Poses of the recorded scene's bodies.

    Args:
        root: the recorded MJCF.
        current: name of a body or geom of the recorded scene to its name in the installed robosuite.
        where: of the recording, for messages.
    Raises:
        DemonstrationError: MuJoCo can't compile it.
    """

    def __init__(self, root: ElementTree.Element, current: Callable[[str], str], where: str) -> None:
        import mujoco

        self.where, self.largest_m = where, 0.0
        try:
            self._model = mujoco.MjModel.from_xml_string(ElementTree.tostring(bare(root), encoding="unicode"))
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise DemonstrationError(
                f"{where}: its scene can't be compiled by the installed MuJoCo ({reason}), so nothing proves that its states "
                "mean the same here; play it back in the version that recorded it."
            ) from error
        self._data = mujoco.MjData(self._model)
        self._bodies, self._geoms = self._moving(current)

    def _moving(self, current: Callable[[str], str]) -> tuple[dict[str, int], dict[str, int]]:
        """Bodies that move, and geoms of those that move freely, by their present names."""
        import mujoco

        model, bodies, geoms = self._model, {}, {}
        free = {model.jnt_bodyid[j] for j in range(model.njnt) if model.jnt_type[j] == mujoco.mjtJoint.mjJNT_FREE}
        for number in range(1, model.nbody):
            if model.body_weldid[number]:
                bodies[current(model.body(number).name)] = number
        for number in range(model.ngeom):
            if model.body_rootid[model.geom_bodyid[number]] in free and model.geom(number).name:
                geoms[current(model.geom(number).name)] = number
        return bodies, geoms

    @property
    def width(self) -> int:
        """Of a recorded state: time, positions, velocities."""
        return int(1 + self._model.nq + self._model.nv)

    def check(self, state: Array, step: int, model: Any, data: Any) -> None:
        """Raises `DemonstrationError` where a pose in the simulator (`model`, `data`) isn't that of the recorded `state`."""
        import mujoco

        self._data.qpos[:] = state[1 : 1 + self._model.nq]
        mujoco.mj_kinematics(self._model, self._data)
        compared = 0
        for kind, named in (("body", self._bodies), ("geom", self._geoms)):
            for name, number in named.items():
                there = mujoco.mj_name2id(model, getattr(mujoco.mjtObj, f"mjOBJ_{kind.upper()}"), name)
                if there < 0:
                    continue
                compared += 1
                here, seen = self._pose(kind, number), _pose(data, kind, there)
                metres, radians = _difference(here, seen)
                self.largest_m = max(self.largest_m, metres)
                if metres > _METRES or radians > _RADIANS:
                    raise DemonstrationError(
                        f"{self.where}: played back, {kind} {name} is {metres:.3g} m and {radians:.3g} rad from where it was "
                        f"recorded at step {step}; its states mean something else here, so it isn't converted."
                    )
        if not compared:
            raise DemonstrationError(
                f"{self.where}: no body of its scene is known to the installed robosuite; it isn't converted."
            )

    def _pose(self, kind: str, number: int) -> tuple[Array, Array]:
        return _pose(self._data, kind, number)


def bare(root: ElementTree.Element) -> ElementTree.Element:
    """The scene without whatever needs a file, or doesn't matter to where things are."""
    copy = ElementTree.fromstring(ElementTree.tostring(root))
    for section in _SECTIONS:
        for element in copy.findall(section):
            copy.remove(element)
    for asset in copy.findall("asset"):
        copy.remove(asset)
    for parent in list(copy.iter()):
        for geom in [e for e in parent if e.tag == "geom" and (e.get("mesh") or e.get("type") in ("mesh", "hfield"))]:
            parent.remove(geom)
        for element in parent:
            element.attrib.pop("material", None)
    for compiler in copy.findall("compiler"):
        for key in ("meshdir", "texturedir", "assetdir"):
            compiler.attrib.pop(key, None)
        compiler.attrib |= {"boundmass": "1e-6", "boundinertia": "1e-9", "balanceinertia": "true"}
    return copy


def _pose(data: Any, kind: str, number: int) -> tuple[Array, Array]:
    position, rotation = (data.xpos, data.xmat) if kind == "body" else (data.geom_xpos, data.geom_xmat)
    return np.array(position[number]), np.array(rotation[number]).reshape(3, 3)


def _difference(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[float, float]:
    """Distance, m, and angle, rad; of a rotation R the sine of half the angle is |R - I| / sqrt(8)."""
    turned = np.linalg.norm(one[1].T @ other[1] - np.eye(3)) / np.sqrt(8)
    return float(np.linalg.norm(one[0] - other[0])), float(2 * np.arcsin(min(turned, 1.0)))
