"""What the tests of ManiSkill share; the simulators and demonstrations that are made once are fixtures of conftest.py."""

import dataclasses
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from envs import maniskill
from envs.tasks import TaskConfig

PICK = TaskConfig(name="maniskill/PickCube-v1")
PEG = TaskConfig(name="maniskill/PegInsertionSide-v1")
IMAGE = dataclasses.replace(PICK, obs="image", image_size=32, video_size=32)
POINTS = dataclasses.replace(PICK, obs="pointcloud", image_size=64, video_size=32)


def missing():
    """Why the simulator can't run here, empty where it can. A worker that dies in the driver takes only itself along."""
    if find_spec("mani_skill") is None:
        return f"mani_skill is not installed; {maniskill.INSTALL_LINE}"
    found = subprocess.run(
        [sys.executable, "-c", "import sapien; sapien.render.RenderSystem(sapien.Device('cpu'))"], capture_output=True
    )
    return "" if found.returncode == 0 else f"no Vulkan device; run `{maniskill.VULKAN_LINE}`"


REASON = missing()
simulated = pytest.mark.skipif(bool(REASON), reason=REASON)


def task_of(config):
    return config.name.partition("/")[2]


def actions(count, seed=0, width=7):
    return np.random.default_rng(seed).uniform(-1, 1, (count, width))


def roll(simulator, seed, commands):
    first = simulator.reset(seed)
    return [first, *(simulator.step(command)[0] for command in commands)]


def equal(a, b):
    return all(x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True))
