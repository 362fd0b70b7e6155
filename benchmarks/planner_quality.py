"""What planners reach in the model's own return for the time they take, on a short-trained model; docs/planner.md quotes it.

    python benchmarks/planner_quality.py [--quick] [--json PATH]

The model is TD-MPC's, trained on random episodes of cheetah-run. `gap` is (G - G_prior) / (G_best - G_prior), with G_best from
four starts of 120 projected Adam steps: the model's return, NOT the task's. docs/planner.md says why planners must not be
chosen by it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agents.latent.prior import policy_plan
from agents.registry import make_agent
from difftop.data.replay import Episode, ReplayBuffer
from difftop.planning import LatentModel, LMConfig, LMPlanner, MPPIConfig, MPPIPlanner, rollout_return
from envs import EnvConfig, make_env
from tests.oracles import projected_adam

HORIZON = 5


@dataclass(frozen=True)
class Trained:
    """A model, states to plan from, its policy's plans, and what it was trained on."""

    name: str
    model: LatentModel
    states: Callable[[int], tuple[Tensor, Tensor, float]]
    prior: Callable[[Tensor], Tensor]


def trained_model(quick: bool) -> Trained:
    """TD-MPC's model after some hundred updates on random episodes; `states(n)` gives latents, priors and a scale."""
    episodes, updates = (3, 40) if quick else (16, 400)
    env = make_env(EnvConfig(name="dmc/cheetah-run"))
    spec = env.difftop_spec
    agent = make_agent({"name": "tdmpc"}, spec, seed=0)
    buffer = ReplayBuffer(spec, capacity=episodes * spec.episode_steps, horizon=HORIZON)
    for k in range(episodes):
        buffer.add(_episode(env, spec.action_dim, k))
    g = torch.Generator().manual_seed(0)
    for step in range(updates):
        agent.update(buffer.sample(256, g), step)
    model = agent.model.requires_grad_(True)

    def states(count: int) -> tuple[Tensor, Tensor, float]:
        with torch.no_grad():
            z = model.encode(buffer.sample(count, torch.Generator().manual_seed(1)).obs[:, 0])
            return z, policy_plan(model, z, HORIZON, 0.0, None), float(agent.world.step_scale())

    def prior(z: Tensor) -> Tensor:
        return policy_plan(model, z, HORIZON, 0.0, None)

    return Trained(f"cheetah-run, {updates} updates", model.latent_model(0.99), states, prior)


def _episode(env: object, action_dim: int, seed: int) -> Episode:
    random = np.random.default_rng(seed)
    obs, actions, rewards, done = [env.reset(seed=seed)[0]["state"]], [], [], False
    phase, rate = random.uniform(0, 2 * np.pi, action_dim), random.uniform(0.1, 1.0, action_dim)
    while not done:
        wave = np.sin(rate * len(actions) + phase)
        action = random.uniform(-1, 1, action_dim) if seed % 2 else np.clip(wave + 0.3 * random.normal(size=action_dim), -1, 1)
        action = action.astype(np.float32)
        seen, reward, terminated, truncated, _ = env.step(action)
        obs.append(seen["state"])
        actions.append(action)
        rewards.append(reward)
        done = terminated or truncated
    ended = torch.zeros(len(actions), dtype=torch.bool)
    ended[-1] = terminated
    as_tensor = lambda rows: torch.as_tensor(np.stack(rows), dtype=torch.float32)  # noqa: E731
    return Episode(as_tensor(obs), as_tensor(actions), torch.tensor(rewards, dtype=torch.float32), ended)


Planner = Callable[[Tensor, Tensor], Tensor]


def planners(trained: Trained, scale: float) -> dict[str, Planner]:
    """All contestants, as functions of latents and priors."""
    model, a = trained.model, trained.states(1)[1].shape[2]
    g = torch.Generator().manual_seed(0)

    def lm(**options: object) -> Planner:
        planner = LMPlanner(replace(LMConfig(), **options), a)
        return lambda z, prior: planner.plan(model, z, prior, scale=scale, generator=g).actions

    def bf16(**options: object) -> Planner:
        plan = lm(**options)

        def run(z: Tensor, prior: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return plan(z, prior)

        return run

    def mppi(config: MPPIConfig, refine: int = 0) -> Planner:
        planner, polish = MPPIPlanner(config, a), lm(iterations=max(refine, 1), damping=0.1)

        def run(z: Tensor, prior: Tensor) -> Tensor:
            plans = prior.unsqueeze(1).expand(-1, config.prior_samples, -1, -1)
            actions = planner.plan(model, z, plans, generator=g, eval_mode=True).actions
            return polish(z, actions) if refine else actions

        return run

    def adam(steps: int, starts: int = 1) -> Planner:
        def run(z: Tensor, prior: Tensor) -> Tensor:
            random = [torch.rand(prior.shape, generator=g) * 2 - 1 for _ in range(starts - 2)]
            begin = torch.cat([prior, torch.zeros_like(prior), *random][:starts])
            repeated = z.repeat(starts, 1)
            plans = projected_adam(lambda x: rollout_return(model, repeated, x), begin, steps, 0.4)
            best = rollout_return(model, repeated, plans).view(starts, -1).argmax(0)
            return plans.view(starts, *prior.shape)[best, torch.arange(len(z))]

        return run

    light = {"damping": 0.1}
    four = {"start_zeros": True, "start_random": 2}
    return {
        "policy prior": lambda z, prior: prior,
        "LM default (damping 10), K=5": lm(),
        "LM damping 100, K=5": lm(damping=100.0),
        "LM damping 1, K=5": lm(damping=1.0),
        "LM damping 0.1, K=5": lm(**light),
        "LM damping 0.1, K=10": lm(iterations=10, **light),
        "LM damping 0.1, K=5, 4 starts": lm(**light, **four),
        "LM adaptive, K=5": lm(adaptive=True, **light),
        "LM adaptive, K=10": lm(adaptive=True, iterations=10, **light),
        "LM adaptive, K=10, 4 starts": lm(adaptive=True, iterations=10, **light, **four),
        "LM damping 0.1, proximal 1, K=5": lm(proximal=1.0, **light),
        "LM damping 0.1, radius 0.3, K=5": lm(radius=0.3, **light),
        "LM damping 0.1, K=5, bf16": bf16(**light),
        "LM damping 0.1, margin 20, K=5": lm(reward_target=20.0, value_target=20.0, **light),
        "MPPI 6x512": mppi(MPPIConfig()),
        "MPPI 2x128": mppi(MPPIConfig(iterations=2, samples=128)),
        "MPPI 2x128, then LM K=3": mppi(MPPIConfig(iterations=2, samples=128), refine=3),
        "projected Adam, 10 steps": adam(10),
        "projected Adam, 20 steps": adam(20),
        "projected Adam, 5 steps, 4 starts": adam(5, 4),
        "projected Adam, 10 steps, 4 starts": adam(10, 4),
    }


def warm_start(trained: Trained, scale: float, count: int) -> dict[str, float]:
    """Gain of the plan over the policy's in the model's return, mean over 10 consecutive steps in the model, by start and
    iterations. Each setting is in a closed loop of its own, so its gain is over the policy's plan in its own states."""
    z0, prior0, _ = trained.states(count)
    results = {}
    for name, options in {
        "prior, K=3": {"iterations": 3},
        "prior, K=6": {"iterations": 6},
        "prior or shifted previous, K=3": {"iterations": 3, "start_previous": True},
    }.items():
        planner = LMPlanner(replace(LMConfig(), damping=0.1, **options), prior0.shape[2])
        z, previous, gains = z0, torch.zeros_like(prior0), []
        for _ in range(10):
            with torch.no_grad():
                prior = trained.prior(z)
                own = rollout_return(trained.model, z, prior)
            result = planner.plan(trained.model, z, prior, previous=previous, scale=scale)
            gains.append((result.value - own).mean().item())
            previous = torch.cat([result.actions[:, 1:], torch.zeros_like(prior[:, :1])], 1)
            z = trained.model.dynamics(z, result.actions[:, 0]).detach()
        results[name] = sum(gains) / len(gains)
    return results


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hardly trained model and few states: a smoke test")
    parser.add_argument("--json", type=Path, help="also write {planner: [gap, step, ms at B=1, ms at all states]} here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    trained = trained_model(args.quick)
    count = 8 if args.quick else 48
    z, prior, scale = trained.states(count)
    value = lambda actions: rollout_return(trained.model, z, actions).detach()  # noqa: E731
    g = torch.Generator().manual_seed(2)
    starts = [prior, torch.zeros_like(prior), *(torch.rand(prior.shape, generator=g) * 2 - 1 for _ in range(2))]
    best = torch.stack([value(projected_adam(value_with_graph(trained.model, z), s, 120, 0.1)) for s in starts]).amax(0)
    low, table = value(prior), {}
    print(f"{trained.name}; {count} states; scale {scale:.3g}; G prior {low.mean():.3f}, best {best.mean():.3f}\n")
    print(f"{'planner':<36}{'gap':>8}{'step':>8}{'ms B=1':>9}{'x MPPI':>8}{'ms B=48':>9}")
    for name, plan in planners(trained, scale).items():
        actions = plan(z, prior)
        gap = ((value(actions) - low).sum() / (best - low).sum()).item()
        step = (actions - prior).square().mean().sqrt().item()
        table[name] = [gap, step, _milliseconds(plan, z[:1], prior[:1], 3 if args.quick else 9), _milliseconds(plan, z, prior, 1)]
    reference = table["MPPI 6x512"][2]
    for name, (gap, step, ms, batch_ms) in table.items():
        print(f"{name:<36}{gap:>8.2f}{step:>8.2f}{ms:>9.1f}{ms / reference:>8.3f}{batch_ms:>9.0f}")
    print(
        "\nwarm start, gain over the policy's plan in the model's return, mean of 10 steps, damping 0.1:",
        warm_start(trained, scale, count // 2),
    )
    if args.json:
        args.json.write_text(json.dumps(table, indent=1) + "\n")


def value_with_graph(model: LatentModel, z: Tensor) -> Callable[[Tensor], Tensor]:
    """Model return of plans from fixed latents."""
    return lambda actions: rollout_return(model, z, actions)


def _milliseconds(plan: Planner, z: Tensor, prior: Tensor, count: int) -> float:
    plan(z, prior)
    times = []
    for _ in range(count):
        begin = time.process_time()
        plan(z, prior)
        times.append((time.process_time() - begin) * 1e3)
    return sorted(times)[count // 2]


if __name__ == "__main__":
    main()
