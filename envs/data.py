"""`data/<name>`: tasks that are known from demonstrations only, a robot of one's own for example. There is no simulator of them.

Agents that imitate train on them (`run.select_episodes=0 run.eval_episodes=0`, which is set where nothing is said), and
`difftop.load_policy` acts wherever the task is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from envs.config import EnvConfig
from envs.errors import EnvError
from envs.suites import Simulator, TaskInfo

TASKS: Mapping[str, TaskInfo] = {}
OBS = ("low_dim", "image", "pointcloud")
OTHERS = "any name; taken where dataset= was recorded in none of the others"


def canonical(given: str) -> str | None:
    """The name as it is; None where it can't name a folder."""
    return given if re.fullmatch(r"[\w.+-]+", given) else None


def info(task: str) -> TaskInfo:
    """It gives nothing but what is recorded."""
    return TaskInfo(1, gives=frozenset())


def load(task: str, config: EnvConfig) -> Simulator:
    """Raises `EnvError`: there is no simulator."""
    raise EnvError(
        f"data/{task}: no simulator of it is known, so nothing can be evaluated in it; train with run.select_episodes=0 "
        "run.eval_episodes=0, and act by difftop.load_policy."
    )
