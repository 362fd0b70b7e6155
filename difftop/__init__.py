"""difftop: policies that plan, by an optimizer inside the network that losses can be differentiated through.

    import difftop

    end = difftop.train(["env=gym/Pendulum-v1", "preset=cpu"])    what `python train.py` does; the run's folder
    policy = difftop.load_policy(end.folder)                      from the checkpoint alone
    action = policy.act(obs)                                      one observation or a batch, NumPy or torch
    env = difftop.make_env("metaworld/reach", obs="pixels")       Gymnasium's API
    plan = difftop.plan(model, z0, start)                         the planner alone;  difftop.QPHead: LeTO's head alone

Everything is imported when it is first used: `import difftop` alone loads nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from difftop.version import __version__

if TYPE_CHECKING:
    from difftop.api import Trained, make_agent, make_env, train
    from difftop.planning import LatentModel, plan
    from difftop.policy import Policy, load_policy
    from difftop.qp import QPHead
    from difftop.types import EnvSpec


_DOOR = {
    "load_policy": "difftop.policy",
    "Policy": "difftop.policy",
    "make_env": "difftop.api",
    "make_agent": "difftop.api",
    "train": "difftop.api",
    "Trained": "difftop.api",
    "plan": "difftop.planning",
    "LatentModel": "difftop.planning",
    "QPHead": "difftop.qp",
    "EnvSpec": "difftop.types",
}

__all__ = [
    "EnvSpec",
    "LatentModel",
    "Policy",
    "QPHead",
    "Trained",
    "__version__",
    "load_policy",
    "make_agent",
    "make_env",
    "plan",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _DOOR:
        return getattr(import_module(_DOOR[name]), name)
    raise AttributeError(f"module 'difftop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_DOOR])
