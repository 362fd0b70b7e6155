"""Acting by planning in a latent world: one actor for every agent with a world model and every planner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents.latent.exploration import EpisodeNoise
from agents.latent.planners import planner_option
from agents.latent.planning import Decision, Planner, PlanSettings, Situation
from agents.latent.world import World
from difftop.capture import Graphs, Input
from difftop.losses import full_precision
from difftop.planning import shift_plan
from difftop.products import wide_products
from difftop.types import SolveStatus


@dataclass(frozen=True)
class ActingConfig(PlanSettings):
    """`PlanSettings`, and the planner."""

    planner: str = planner_option("mppi")


class Visited(NamedTuple):
    """What plans were made from: `obs [K, *shape]`, `start [K, H, A]` and the shifted previous plans `[K, H, A]`."""

    obs: Tensor
    start: Tensor
    previous: Tensor


class _Decided(NamedTuple):
    """Of K environments: actions `[K, A]`, memories `[K, horizon, A]`, and plans, starts and shifted last plans `[K, H, A]`."""

    action: Tensor
    kept: Tensor | None
    plan: Tensor | None
    start: Tensor | None
    previous: Tensor


class PlanningActor:
    """Acts in N environments by one batched plan per step; remembers the last plan of each environment as a start.

    Environments that idle (`begin(index, None)`) get no plan; their actions are zeros.

    Args:
        world: encodes, and knows how rare rewards are; the shares of an episode that explore fall with it.
        planner: chooses.
        settings: schedules.
        num_envs: N.
        generator: of all that is drawn, on the world's device.
        autocast: makes the context for matrix products in the run's precision.
        explore: whether actions explore.
        keep_visited: keep what plans were made from in `visited`.
        raw: world and planner in place of these in a share of the episodes, and in all while rewards are rare; None: never.
        graphs: by which planning is captured where the planner can be; None: it isn't.
    Attributes:
        plan: what the last actions are the first steps of, `[N, H, A]`, zeros where an environment idles; None without a plan.
    """

    def __init__(
        self,
        world: World,
        planner: Planner,
        settings: PlanSettings,
        num_envs: int,
        generator: torch.Generator,
        *,
        autocast: Callable[[], AbstractContextManager[object]],
        explore: bool,
        keep_visited: bool = False,
        raw: tuple[World, Planner] | None = None,
        graphs: Graphs | None = None,
    ) -> None:
        self.world, self.planner, self.settings, self.generator = world, planner, settings, generator
        self.raw = raw
        self.autocast, self.explore, self.keep_visited = autocast, explore, keep_visited
        self.key = world.spec.only_key
        device = generator.device
        can = graphs is not None and getattr(planner, "capturable", False)
        self.graphs = graphs if graphs is not None and can else Graphs(device, "false")
        self._told = 0  # of its captures
        self.previous = torch.zeros(num_envs, settings.horizon, world.spec.action_dim, device=device)
        self.plan: Tensor | None = None
        self.playing = [True] * num_envs
        self._groups: dict[tuple[int, ...], Tensor | slice] = {}  # of environments that plan in one batch, now, as an index
        self._coloured = explore and settings.noise_colour == "mixed"
        noisy = self._coloured or (explore and settings.random_share + settings.bold_share + settings.raw_episodes > 0)
        self._noise = [EpisodeNoise(generator.initial_seed() + i, world.spec) for i in range(num_envs if noisy else 0)]
        self.visited: list[Visited] = []
        # Plans, failures, iterations, step lengths; on the device, where nothing waits for them.
        self._counters = torch.zeros(4, dtype=torch.float64, device=device)

    def begin(self, index: int, seed: int | None) -> None:
        """Environment `index` begins an episode, or idles where `seed` is None."""
        self.playing[index] = seed is not None
        self._groups.clear()
        if self._noise and seed is not None:
            self._noise[index].begin(seed, self.world.spec)

    def tells(self, index: int) -> bool:
        """See `difftop.contract.OnlineActor`: an episode without random and bold parts, or any where all have them."""
        share = self.settings.exploring_episodes
        return share == 1 or not self._among(index, share)

    def _among(self, index: int, share: float) -> bool:
        """Whether this episode of environment `index` is among that share; those of a smaller share are among a larger one's."""
        return bool(self._noise) and self._noise[index].explores(share)

    @torch.no_grad()
    def act(self, obs: Mapping[str, Tensor], t0: Tensor, steps: int) -> Tensor:
        """Actions `[N, A]`; see `difftop.contract.Actor`."""
        actions = torch.zeros(self.previous.shape[::2], device=self.previous.device)
        self.plan = None
        playing = [i for i, plays in enumerate(self.playing) if plays]
        rare, share = self.world.rare > 0, self.settings.raw_episodes
        raw = [i for i in playing if self.raw is not None and (rare or self._among(i, share))]
        seen = obs[self.key]
        if 0 < len(raw) < len(self.playing) or len(playing) < len(self.playing):  # rows are chosen there, from one copy
            seen, t0 = seen.to(actions.device, non_blocking=True), t0.to(actions.device, non_blocking=True)
        for world, planner, group in (
            (self.world, self.planner, [i for i in playing if i not in raw]),
            (*(self.raw or (self.world, self.planner)), raw),
        ):
            if group:
                self._act(world, planner, group, seen, t0, steps, actions)
        return actions

    def _act(
        self, world: World, planner: Planner, group: list[int], seen: Tensor, t0: Tensor, steps: int, actions: Tensor
    ) -> None:
        """Writes the actions of the environments `group`, which plan in one batch, into those of all, `actions [N, A]`."""
        device, rows = self.previous.device, self._index(group)
        if isinstance(rows, Tensor):
            seen, t0 = seen[rows], t0[rows]
        noise, alone, bold = self._explored(group)
        if self.graphs.active and device.type == "cpu" and seen.is_floating_point() and not torch.isfinite(seen).all():
            raise ValueError(f"{self.key}: some of the observed numbers are not finite.")  # a replay would not look
        horizon, settings = self.settings.plan_length(steps), self.settings
        spread = settings.mppi_std(steps, explore=self.explore)
        inputs: list[Input] = [seen, t0, self.previous[rows], noise, settings.std(steps), spread, alone, bold]
        with wide_products(len(seen) * getattr(planner, "rollouts", 1), world.sizes.mlp_dim):
            decide = partial(self._decide, world, planner, steps, horizon)
            decided: _Decided = self.graphs("a plan", decide, inputs, (horizon, world is self.world))
        if decided.kept is not None and decided.plan is not None:
            self.previous[rows] = decided.kept
            if self.plan is None:
                self.plan = torch.zeros_like(self.previous[:, :horizon])
            self.plan[rows] = decided.plan
            if self.keep_visited and decided.start is not None:
                self.visited.append(Visited(seen.cpu(), decided.start.cpu(), decided.previous.cpu()))
        actions[rows] = decided.action

    def _index(self, group: list[int]) -> Tensor | slice:
        """Of these among the N environments; kept, as copies to a device cost time."""
        if len(group) == len(self.playing):
            return slice(None)
        known = tuple(group)
        if known not in self._groups:
            self._groups[known] = torch.tensor(group, dtype=torch.int64).to(self.previous.device)
        return self._groups[known]

    def _explored(self, group: list[int]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of the K environments `group`: noise `[K, A]` that has a memory, where it acts alone `[K]`, and where plans are bold
        `[K]`; None: no such.
        """
        if not self._noise:
            return None, None, None
        playing, settings = [self._noise[i] for i in group], self.settings
        rare = [self.world.rare * self._among(i, settings.exploring_episodes) for i in group]
        alone = torch.tensor([noise.alone(settings.random_share * r) for noise, r in zip(playing, rare, strict=True)])
        bold = torch.tensor([noise.bold(settings.bold_share * r) for noise, r in zip(playing, rare, strict=True)])
        drawn = torch.stack([noise.draw() for noise in playing])
        return drawn if self._coloured else None, alone if settings.random_share else None, bold if settings.bold_share else None

    def _decide(
        self,
        world: World,
        planner: Planner,
        steps: int,
        horizon: int,
        seen: Tensor,
        t0: Tensor,
        plans: Tensor,
        noise: Tensor | None,
        std: Tensor | float,
        mppi_std: Tensor | float,
        alone: Tensor | None,
        bold: Tensor | None,
    ) -> _Decided:
        """For the K environments that play, on the device, and nothing read from there."""
        device = plans.device
        seen, t0 = seen.to(device, non_blocking=True), t0.to(device, non_blocking=True)
        with self.autocast():
            z = full_precision(world.model.encode(seen))
        previous = torch.where(t0[:, None, None], 0.0, shift_plan(plans, horizon))
        noise = None if noise is None else noise.to(device, non_blocking=True)
        alone = None if alone is None else alone.to(device, non_blocking=True)
        bold = None if bold is None else bold.to(device, non_blocking=True)
        asked = Situation(z, previous, steps, self.explore, self.generator, self.autocast, noise, std, mppi_std, alone, bold)
        decision = planner.decide(asked)
        kept = None if decision.plan is None else self._kept(decision, plans)
        plan = None if decision.plan is None else decision.plan.actions
        return _Decided(decision.action.to(torch.float32), kept, plan, decision.start, previous)

    def _kept(self, decision: Decision, plans: Tensor) -> Tensor:
        """The plans to remember, as long as `plans`; counts them."""
        plan = decision.plan
        assert plan is not None
        kept = plan.actions if decision.memory is None else decision.memory
        whole = torch.zeros_like(plans)
        whole[:, : kept.shape[1]] = kept
        counters, count = self._counters, len(kept)
        counters[0] += count
        counters[1] += (plan.status == int(SolveStatus.FAILED)).sum()
        counters[2] += plan.iterations.sum()
        if decision.start is not None:
            counters[3] += (kept - decision.start).square().mean().sqrt() * count
        return whole

    def metrics(self) -> dict[str, float]:
        """Planner failures and captures (counts), iterations and step length from the prior (means), since the last call."""
        fresh, self._told = self.graphs.captured - self._told, self.graphs.captured
        captures = {"plan/captures": float(fresh)} if self.graphs.loud else {}
        plans, failures, iterations, moved = self._counters.tolist()
        self._counters.zero_()
        if not plans:
            return captures
        return captures | {
            "plan/failures": failures,
            "plan/failure_rate": failures / plans,
            "plan/iterations": iterations / plans,
            "plan/step_from_prior": moved / plans,
        }

    def state_dict(self) -> dict[str, Any]:
        """Plans, generator, visited states, counters, and which environments idle."""
        return {
            "previous": self.previous.clone(),
            "playing": torch.tensor(self.playing),
            "generator": self.generator.get_state(),
            "visited": [list(plan) for plan in self.visited],
            "counters": self._counters.clone(),
            "rare": self.world.rare,
            "noise": [[noise.seed, noise.drawn] for noise in self._noise],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`."""
        self.previous.copy_(state["previous"])
        self.playing = state["playing"].tolist()
        self.generator.set_state(state["generator"].cpu())
        self.visited = [Visited(*plan) for plan in state["visited"]]
        self._counters.copy_(state["counters"])
        if self.explore:
            self.world.set_rare(state.get("rare", 1.0))
        for noise, (seed, drawn) in zip(self._noise, state.get("noise", []), strict=False):
            noise.begin(seed, self.world.spec)
            noise.drawn = drawn
