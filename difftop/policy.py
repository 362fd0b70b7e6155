"""A trained policy, for programs: from a checkpoint's folder to actions."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difftop.contract import Agent
from difftop.data.scaling import unscaled
from difftop.options import ConfigError, still_known
from difftop.poses import executed
from difftop.run.weights import load_acting, load_weights
from difftop.types import EnvSpec

Values = Any  # an observation: one array, or a mapping of arrays by key, NumPy's or torch's

_SEED = 0  # of what acting samples, where nobody says


def load_policy(
    path: Path | str, device: str = "auto", *, seed: int = _SEED, head: str | None = None, capture: str = "false"
) -> Policy:
    """The trained policy in a run's folder (its best checkpoint where one is marked, else the last), or in a checkpoint's.

    Everything comes from that folder: no simulator, no configuration folder and no network are needed.

    Args:
        path: `runs/<env>/<agent>/<name>/seed<k>`, or `.../checkpoints/step_...` in it.
        device: `auto` (CUDA where there is a device), `cpu` or `cuda`.
        seed: of what acting samples. Same seed and observations, same actions.
        head: imitation: none, clip or qp in place of the trained head.
        capture: `auto` records the plans of agents that learned from rewards: after the first 20 (2 on a GPU) one call takes a
            few tenths of a second, later ones a third of the time.
    Raises:
        CheckpointError: there is no checkpoint, it is spoiled, or of another format.
        ConfigError: no such device or head, or a capture that can't be.
    """
    saved = load_acting(path)
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device={device}: must be auto, cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch sees no CUDA device here; use device=cpu, or device=auto.")
    where = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    registry, values = import_module("agents.registry"), saved.config["agent"]
    world = str(values.get("world_model", "auto"))
    known, _ = still_known(registry.config_class(str(values["name"]), world), values)  # another version may have had more options
    agent = registry.make_agent(known | {"world_model": world}, saved.spec, seed=seed, device=where, capture=capture)
    load_weights(agent, saved)
    return Policy(agent, saved.spec, saved.config, steps=saved.step, seed=seed, head=head)


class Policy:
    """A trained agent that acts, without exploration.

    It remembers between calls what acting needs (the last plan, hidden states), for as many environments as the observations
    have rows; call `reset` where an episode begins.

    Attributes:
        spec: what it was trained for: observations by key, action dimension, control period.
        config: all options of its run, plain.
        steps: of its training.
    """

    def __init__(
        self, agent: Agent, spec: EnvSpec, config: Mapping[str, Any], *, steps: int, seed: int = _SEED, head: str | None = None
    ) -> None:
        self.spec, self.config, self.steps = spec, dict(config), steps
        self._agent, self._seed, self._head = agent, seed, head
        self._actor: Any = None
        self._begins = np.ones(0, bool)

    def act(self, obs: Values) -> Any:
        """The next action.

        Args:
            obs: one observation or a batch with N rows; by key, or plain where there is one only. Keys beyond those of `spec` are
                ignored. A batch of another size than before begins new episodes.
        Returns:
            `[A]` or `[N, A]` in [-1, 1], float32, or in the data set's units where `spec` says what -1 and 1 stand for, which are
            positions in m, axis-angle and gripper, 7 an arm, of absolute poses; an array for arrays, a tensor for tensors.
        Raises:
            ValueError: an observation is missing or has another shape; the message names both.
        """
        seen, batched, tensors = self._received(obs)
        rows = len(next(iter(seen.values())))
        if self._actor is None or len(self._begins) != rows:
            self._actor = self._agent.actor(rows, seed=self._seed, explore=False, head=self._head)
            self._begins = np.ones(rows, bool)
        for i in np.flatnonzero(self._begins):
            self._actor.begin(int(i), self._seed + int(i))
        with torch.no_grad():
            actions: Tensor = self._actor.act(seen, torch.from_numpy(self._begins), self.steps).float()
        self._begins = np.zeros(rows, bool)
        if self.spec.action_low:
            bounds = (torch.tensor(bound).to(actions) for bound in (self.spec.action_low, self.spec.action_high))
            actions = unscaled(actions, *bounds)
        if self.spec.poses:
            actions = torch.from_numpy(executed(actions.cpu().numpy())).to(actions)
        found = actions if batched else actions[0]
        return found if tensors else found.cpu().numpy()

    def reset(self, index: int | None = None) -> None:
        """An episode begins: in environment `index` of a batch, or in all."""
        if index is None:
            self._begins = np.ones(len(self._begins), bool)
        else:
            self._begins[index] = True

    def fresh(self) -> Policy:
        """Another one with the same weights and seed, that remembers for itself; both may act in turn."""
        return Policy(self._agent, self.spec, self.config, steps=self.steps, seed=self._seed, head=self._head)

    def plan(self) -> np.ndarray[Any, Any] | None:
        """The plans whose first steps the last actions are, `[N, H, A]`; None for a policy that has none."""
        plans: Tensor | None = getattr(self._actor, "plan", None)
        return None if plans is None else plans.float().cpu().numpy()

    def metrics(self) -> dict[str, float]:
        """Counters since the last call (planner failures, relaxed limits), by tag."""
        return {} if self._actor is None else dict(self._actor.metrics())

    def _received(self, obs: Values) -> tuple[dict[str, Tensor], bool, bool]:
        """Observations by key `[N, *shape]`, whether they came as a batch, and as tensors."""
        if not isinstance(obs, Mapping):
            if len(self.spec.obs) != 1:
                raise ValueError(f"the policy looks at several observations, {self.spec.shapes}: give them by key.")
            obs = {next(iter(self.spec.obs)): obs}
        missing = [key for key in self.spec.obs if key not in obs]
        if missing:
            raise ValueError(f"observation {missing[0]!r} is missing; the policy looks at {self.spec.shapes}.")
        found, batched, tensors = {}, set(), False
        for key, wanted in self.spec.obs.items():
            value = obs[key]
            tensors |= isinstance(value, Tensor)
            x = value if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))
            x = x if wanted.kind == "image" else x.to(torch.float32)
            shape = tuple(x.shape)
            if shape not in (wanted.shape, (shape[0] if shape else 0, *wanted.shape)):
                raise ValueError(
                    f"observation {key!r} has shape {list(shape)}: must be {list(wanted.shape)}, or that with N rows."
                )
            batched.add(len(shape) > len(wanted.shape))
            found[key] = x if len(shape) > len(wanted.shape) else x[None]
        if len(batched) > 1 or len({len(x) for x in found.values()}) > 1:
            raise ValueError(f"observations have different numbers of rows: { {key: len(x) for key, x in found.items()} }.")
        return found, batched.pop(), tensors
