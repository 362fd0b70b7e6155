"""Agents reach the known optimum of the toy environment, end to end through the loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agents.registry import make_agent
from difftop.data.replay import ReplayBuffer
from difftop.options import build
from difftop.run.online import Hooks, OnlineRun, RunConfig
from difftop.run.rollouts import roll_out
from envs import EnvConfig, env_spec, make_vector_env
from envs.toy.point_mass import optimal_return

TOY = EnvConfig(name="toy/point-mass")


class Never:
    stopped = False


@pytest.mark.parametrize(
    "agent",
    [
        "difftop_rl",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("tdmpc", "tdmpc2", "difftop_rl on tdmpc", "difftop_rl on tdmpc2")
        ),
    ],
)
def test_learns_the_toy_environment_to_its_optimum(agent: str) -> None:
    spec = env_spec(TOY)
    # Classified rewards are known less finely than regressed ones, and a gradient of them even less so: after 1,500 frames one
    # of two seeds has not got there yet, by rounding.
    frames, short = (2500, 0.15) if agent == "difftop_rl on tdmpc2" else (900, 0.05)
    run_options = {
        "frames": frames, "seed_steps": 300, "batch_size": 64, "eval_every": 10_000, "eval_episodes": 1, "video": False,
    }  # fmt: skip
    run_options["updates_per_step"] = 4 if agent == "difftop_rl on scaled" else 1  # as it comes
    acting = {"horizon": 3, "horizon_start": 3, "std_steps": 600, "mppi": {"samples": 64, "elites": 8, "iterations": 3}}
    model = {"mlp_dim": 64, "encoder_dim": 32, "latent_dim": 16}
    loss = {"learning_rate": 1e-3 if agent == "tdmpc2" else 2e-3, "target_rate": 0.05}
    name, _, world = agent.partition(" on ")
    choice = {"name": name} | ({"world_model": world} if world else {})
    model |= {"members": 2} if "tdmpc2" in agent else {}
    made = make_agent({**choice, "acting": acting, "model": model, "loss": loss, "discount": 0.9}, spec, seed=1)
    config = build(RunConfig, run_options)
    replay = ReplayBuffer(spec, capacity=frames + 100, horizon=made.config.loss.horizon, prioritized=False)
    hooks = Hooks(lambda run, result: None, lambda run, metrics: None, lambda run: None, lambda batch: Path(), Never())
    OnlineRun(made, make_vector_env(TOY, 1), make_vector_env(TOY, 1), replay, config, seed=1, hooks=hooks).run()

    seeds, envs = list(range(100, 110)), make_vector_env(TOY, 10)
    best = np.mean([optimal_return(envs.reset_at(0, seed)["state"])[0] for seed in seeds])
    result = roll_out(envs, lambda n: made.actor(n, seed=0, explore=False), seeds, steps=frames)
    still = roll_out(envs, lambda n: Still(), seeds).return_mean
    assert best > still + 5  # there is something to learn
    assert result.return_mean > best - short * (best - still), (result.return_mean, best, still)


class Still:
    """Does nothing."""

    def begin(self, index: int, seed: int | None) -> None:
        """Nothing to remember."""

    def act(self, obs, t0, steps):  # type: ignore[no-untyped-def]
        return obs["state"].new_zeros(len(t0), 2)

    def metrics(self) -> dict[str, float]:
        return {}
