"""What the tests of ManiSkill share; the simulators and demonstrations that are made once are fixtures of conftest.py."""

import dataclasses
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from envs import EnvConfig
from envs.maniskill.package import INSTALL_LINE, VULKAN_LINE

PICK = EnvConfig("maniskill/PickCube-v1", obs="low_dim")
PEG = EnvConfig("maniskill/PegInsertionSide-v1", obs="low_dim")
IMAGE = dataclasses.replace(PICK, obs="image", image_size=32, video_size=32)
POINTS = dataclasses.replace(PICK, obs="pointcloud", image_size=64, video_size=32)


def missing():
    """Why the simulator can't run here, empty where it can. A worker that dies in the driver takes only itself along."""
    if find_spec("mani_skill") is None:
        return f"mani_skill is not installed; {INSTALL_LINE}"
    found = subprocess.run(
        [sys.executable, "-c", "import sapien; sapien.render.RenderSystem(sapien.Device('cpu'))"], capture_output=True
    )
    return "" if found.returncode == 0 else f"no Vulkan device; run `{VULKAN_LINE}`"


REASON = missing()
simulated = pytest.mark.skipif(bool(REASON), reason=REASON)


def task_of(config):
    return config.name.partition("/")[2]


def actions(count, seed=0, width=7):
    return np.random.default_rng(seed).uniform(-1, 1, (count, width))


def roll(simulator, seed, commands):
    simulator.reset(seed)
    rows = [copied(simulator.observe())]
    for command in commands:
        simulator.step(command)
        rows.append(copied(simulator.observe()))
    return rows


def shapes(simulator):
    return {key: seen.shape for key, seen in simulator.obs.items()}


def copied(obs):
    return {key: np.array(value) for key, value in obs.items()}


def equal(a, b):
    return all(x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True))
