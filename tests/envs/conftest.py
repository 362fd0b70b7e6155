"""ManiSkill's simulators and demonstrations, each made once in a file of tests."""

import dataclasses
import json

import pytest

from envs import maniskill
from tests.envs.maniskill_suite import task_of


@pytest.fixture(scope="module")
def made():
    """Simulators by config, each made once."""
    found = {}

    def make(config):
        key = json.dumps(dataclasses.asdict(config))
        if key not in found:
            found[key] = maniskill.load(task_of(config), config)
        return found[key]

    yield make
    for simulator in found.values():
        simulator.close()
        simulator.close()


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Demonstrations by obs, with depths or without, each file made once."""
    folder, found = tmp_path_factory.mktemp("maniskill"), {}

    def make(config, episodes=2):
        name = f"{config.obs}{'-depth' if config.depth else ''}"
        if name not in found:
            found[name] = maniskill.make_demonstrations(task_of(config), episodes, folder / f"{name}.h5", 1, config)
        return found[name]

    return make
