"""Protocols of evaluation: how many episodes, how long, from which seeds. The protocol's name is part of every result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Protocol:
    """How a paper evaluates.

    Attributes:
        text: one line about it.
        episodes: that are reported.
        first_seed: the seeds of the initial states are this and the following ones; None for a stream of the run's own seed.
        episode_steps: actions in an episode by task, or by a pattern such as `metaworld/*`; the task's own where none fits.
    """

    text: str
    episodes: int
    first_seed: int | None = None
    episode_steps: Mapping[str, int] = field(default_factory=dict)

    def steps(self, env: str) -> int:
        """Actions in an episode of the environment `env`, 0 for its own number."""
        return next((steps for pattern, steps in self.episode_steps.items() if fnmatchcase(env, pattern)), 0)


def _robosuite(short: int, long: int) -> dict[str, int]:
    """By task, under the names of both suites."""
    tasks = {"lift": "Lift", "can": "PickPlaceCan", "square": "NutAssemblySquare"}
    longer = {"tool_hang": "ToolHang", "transport": "TwoArmTransport"}
    steps = {f"robomimic/{name}": short for name in tasks} | {f"robosuite/{name}": short for name in tasks.values()}
    return steps | {f"robomimic/{name}": long for name in longer} | {f"robosuite/{name}": long for name in longer.values()}


PROTOCOLS: Mapping[str, Protocol] = {
    "difftop": Protocol("50 episodes of the task's own length, seeds of the run's own stream", 50),
    "difftori": Protocol("DiffTORI on Meta-World: 50 episodes of 200 actions", 50, None, {"metaworld/*": 200}),
    "robomimic_ph": Protocol(
        "robomimic, proficient-human data: 50 episodes of 400 actions (700 for long tasks)", 50, None, _robosuite(400, 700)
    ),
    "robomimic_mh": Protocol(
        "robomimic, multi-human data: 50 episodes of 500 actions (1,100 for long tasks)", 50, None, _robosuite(500, 1100)
    ),
    "diffusion_policy_ph": Protocol(
        "Diffusion Policy, ph: 50 episodes of 400 actions (700), seeds from 100000", 50, 100_000, _robosuite(400, 700)
    ),
    "diffusion_policy_mh": Protocol(
        "Diffusion Policy, mh: 50 episodes of 500 actions (700), seeds from 100000", 50, 100_000, _robosuite(500, 700)
    ),
    "leto_ph": Protocol("LeTO, ph: 25 episodes of 500 actions, seeds from 100", 25, 100, _robosuite(500, 800)),
    "leto_mh": Protocol("LeTO, mh: 25 episodes of 600 actions, seeds from 100", 25, 100, _robosuite(600, 800)),
}
