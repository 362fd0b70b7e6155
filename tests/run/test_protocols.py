"""Protocols play the lengths that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from difftop.command import make_registry
from difftop.run import imitate
from difftop.run.cli import composed
from difftop.run.protocols import PROTOCOLS
from envs import list_envs, recorded_as, recorded_name
from envs.metaworld import TASKS


def test_difftori_plays_200_actions_on_every_task() -> None:
    tasks = [name for name in list_envs() if name.startswith("metaworld/")]
    assert len(tasks) == 50 and {PROTOCOLS["difftori"].steps(name) for name in tasks} == {200}
    assert PROTOCOLS["difftori"].steps("maniskill/PickCube-v1") == 0  # the task's own


def test_the_usual_protocol_plays_the_task_s_own_length() -> None:
    assert {PROTOCOLS["difftop"].steps(name) for name in list_envs()} == {0}
    own = {"basketball": 400, "peg-insert-side": 400, "stick-pull": 300, "handle-pull-side": 300, "reach": 200}
    assert {task: TASKS[task].episode_steps for task in own} == own


@pytest.mark.parametrize(
    ("protocol", "env", "steps"),
    [
        ("leto_ph", "robomimic/can", 500),
        ("leto_ph", "robosuite/PickPlaceCan", 500),
        ("robomimic_mh", "robomimic/transport", 1100),
        ("diffusion_policy_ph", "robomimic/tool_hang", 700),
    ],
)
def test_lengths_by_task(protocol: str, env: str, steps: int) -> None:
    assert PROTOCOLS[protocol].steps(env) == steps


@pytest.mark.parametrize(("protocol", "steps"), [("difftori", 200), ("difftop", 0)])
def test_a_run_takes_the_length_of_its_protocol(
    protocol: str, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = composed(make_registry(), ["agent=bc", "env=metaworld/basketball", f"run.protocol={protocol}"])
    asked: list[Any] = []

    class Factories:
        recorded_as = staticmethod(recorded_as)
        recorded_name = staticmethod(recorded_name)

        @staticmethod
        def record(env: Any, *args: Any, **how: Any) -> Path:
            asked.append(env)
            return tmp_path

    info = type("Info", (), {"kwargs": {}, "name": "basketball-v3", "same_version": lambda *args: True})()
    monkeypatch.setattr(imitate, "recorded_env", lambda path: info)
    _, played = imitate._dataset(settings, Factories())  # type: ignore[arg-type]
    assert played.env.episode_steps == steps and asked[0].episode_steps == 0  # demonstrations are as long as the expert needs
