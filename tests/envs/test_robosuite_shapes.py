"""Geoms whose size is changed in a compiled model touch what they touch in a model that is compiled with that size."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(find_spec("mujoco") is None, reason="MuJoCo is not installed")

SCENE = """<mujoco><worldbody>
  <body name="hand"><geom name="pad" type="box" size=".05 .05 .05"/><geom type="box" size=".01 .01 .01" pos="0 0 -.1"/></body>
  <body name="hammer" pos="0 0 .12"><freejoint/><geom name="{name}" type="{kind}" size="{size}" pos="{pos}"/>
    <geom type="box" size=".02 .02 .02" pos="0 0 .1"/></body>
</worldbody></mujoco>"""
SHAPES = {
    "box": ("box", [0.02, 0.02, 0.02], [0.08, 0.08, 0.08], [0, 0, 0]),
    "cylinder": ("cylinder", [0.02, 0.02, 0], [0.03, 0.09, 0], [0, 0, 0]),
    "capsule": ("capsule", [0.02, 0.01, 0], [0.03, 0.06, 0], [0, 0, 0]),
    "moved": ("box", [0.02, 0.02, 0.02], [0.02, 0.02, 0.02], [0, 0, -0.06]),
    "smaller": ("box", [0.09, 0.09, 0.09], [0.02, 0.02, 0.02], [0, 0, 0]),
}


def contacts(mujoco, model):
    data = mujoco.MjData(model)
    mujoco.mj_fwdPosition(model, data)
    found = sorted((tuple(sorted((int(c.geom1), int(c.geom2)))), round(float(c.dist), 9)) for c in data.contact[: data.ncon])
    return found


@pytest.mark.parametrize("name", SHAPES)
def test_a_reshaped_geom_touches_what_a_compiled_one_touches(name: str) -> None:
    import mujoco

    from envs.robosuite.shapes import reshape

    kind, small, large, position = SHAPES[name]

    def made(size, pos):
        text = [" ".join(map(str, numbers)) for numbers in (size, pos)]
        return mujoco.MjModel.from_xml_string(SCENE.format(name="handle", kind=kind, size=text[0], pos=text[1]))

    changed, wanted = made(small, [0, 0, 0]), made(large, position)
    before, after = contacts(mujoco, changed), contacts(mujoco, wanted)
    assert before != after and bool(before) == (name == "smaller")
    geom = mujoco.mj_name2id(changed, mujoco.mjtObj.mjOBJ_GEOM, "handle")
    reshape(changed, geom, np.array(large), np.array(position, float), np.array([1.0, 0, 0, 0]))
    assert contacts(mujoco, changed) == after
