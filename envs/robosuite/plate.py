"""`robosuite/LiftPlate`: robosuite's Lift with a plate of 16 mm in place of the cube.

A stand-in for the chopsticks experiment of LeTO (arXiv:2401.17500, Table V), whose robot, code and data are not public: to grasp
the plate, the fingers must come within millimetres of the table, but should not press on it. The hand has to stay above a
height (a position limit on `robot0_eef_pos[2]`), and the largest contact force is what is reported.
"""

from __future__ import annotations

from typing import Any

from robosuite.environments.manipulation.lift import Lift

HALF_HEIGHT_M = 0.008


class LiftPlate(Lift):  # type: ignore[misc]
    """Lift of a plate; success as in Lift, 4 cm above the table."""

    def _load_model(self) -> None:
        super()._load_model()
        size: Any = self.cube.size
        size[2] = HALF_HEIGHT_M  # the sampler of poses reads it too
        for geom in self.model.worldbody.iter("geom"):
            if geom.get("name") in ("cube_g0", "cube_g0_vis"):
                geom.set("size", " ".join(str(half) for half in size))
