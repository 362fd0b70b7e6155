"""`mode=diagnose`: plays a checkpoint, measures its model, values and planner, and says what to try."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from difftop.diagnose import LatentView, Played, advice, diagnose, draw, table
from difftop.options import ConfigError
from difftop.run.checkpoint import Checkpoint
from difftop.run.cli import Registry, Settings
from difftop.run.rollouts import Environments, roll_out
from difftop.run.seeding import stream
from difftop.run.session import Factories, RunEnd, prepare_torch, with_overrides
from difftop.run.settings import SETTABLE
from difftop.run.weights import load_weights
from difftop.written import write_whole

log = logging.getLogger(__name__)

NOISE = 0.2  # std of what is added to the prior's actions: near what the agent does, and not only what it does
DAMPINGS = (0.1, 10.0)  # of Levenberg-Marquardt, as multiples of the agent's own


def diagnose_checkpoint(
    saved: Checkpoint, settings: Settings, registry: Registry, overrides: Sequence[str], factories: Factories
) -> RunEnd:
    """Writes diagnosis.json and diagnosis.png into `<run>/diagnosis/<checkpoint>/`, and says what they show.

    Raises:
        ConfigError: the agent has no latent model.
    """
    settings = with_overrides(saved, settings, registry, overrides, SETTABLE["diagnose"])
    settings = replace(settings, run=replace(settings.run, video=False))
    device = prepare_torch(settings)
    if "lm" not in settings.agent.get("acting", {}):
        raise ConfigError(f"mode=diagnose: agent={saved.agent_name} has no latent model; it is for agents that plan in one.")
    agent = restored(saved, settings, factories, device, {})
    envs = factories.envs(settings.env, min(settings.run.eval_envs, settings.run.eval_episodes), settings.run.parallel)
    seeds = [stream(settings.top.seed, "diagnose", episode) for episode in range(settings.run.eval_episodes)]
    try:
        view = agent.latent_view()
        noisy, own = (episodes_by(way, envs, view, seeds, settings.top.seed, device) for way in (with_noise(view), view.sample))
        found = diagnose(view, noisy, own)
        returns = {}
        for name, acting in ways_to_act(settings.agent).items():
            acts = partial(restored(saved, settings, factories, device, acting).actor, seed=0, explore=False)
            returns[name] = roll_out(envs, acts, seeds, steps=saved.step, died=factories.died).return_mean
    finally:
        envs.close()
    folder = saved.path.parent.parent / "diagnosis" / saved.path.name
    lines = advice(found, returns)
    write(folder, {"measures": found.plain(), "returns": returns, "advice": lines, "episodes": len(seeds)})
    draw(found, returns, folder / "diagnosis.png")
    for line in [table(found, returns), "", *lines, f"numbers and picture: {folder}"]:
        log.info("%s", line)
    return RunEnd(folder)


def ways_to_act(agent: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Changes of the acting options by name: the prior alone, Levenberg-Marquardt with several dampings, MPPI."""
    damping = float(agent["acting"]["lm"]["damping"])
    ways: dict[str, dict[str, Any]] = {"prior": {"planner": "none"}, "lm": {"planner": "lm"}}
    for factor in DAMPINGS:
        ways[f"lm, damping {damping * factor:g}"] = {"planner": "lm", "lm": {"damping": damping * factor}}
    return ways | {"mppi": {"planner": "mppi"}}


def restored(saved: Checkpoint, settings: Settings, factories: Factories, device: str, acting: Mapping[str, Any]) -> Any:
    """The checkpoint's agent, acting otherwise."""
    options = dict(settings.agent) | {"acting": merged(settings.agent["acting"], acting)}
    agent = factories.agent(
        options, saved.spec, seed=0, device=device, precision=settings.top.precision, capture=settings.top.capture
    )
    load_weights(agent, saved)
    return agent


Way = Callable[[torch.Tensor, torch.Generator], torch.Tensor]  # latents to actions


def with_noise(view: LatentView) -> Way:
    """The prior's actions and `NOISE`."""

    def act(z: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        mean = view.policy(z)
        return (mean + NOISE * torch.randn(mean.shape, generator=generator, device=mean.device)).clamp(-1, 1)

    return act


@torch.no_grad()
def episodes_by(act: Way, envs: Environments, view: LatentView, seeds: Sequence[int], seed: int, device: str) -> list[Played]:
    """One episode per seed; each is a function of its seed."""
    episodes = []
    key = envs.difftop_spec.only_key
    for number, episode_seed in enumerate(seeds):
        generator = torch.Generator(device).manual_seed(stream(seed, "diagnose_noise", number))
        obs = [envs.reset_at(0, episode_seed)[key]]
        actions, rewards = [], []
        terminated = truncated = False
        while not (terminated or truncated):
            action = act(view.encode(torch.from_numpy(obs[-1])[None].to(device)), generator)[0].float().cpu()
            seen, reward, terminated, truncated, _ = envs.step_at(0, action.numpy())
            obs.append(seen[key])
            actions.append(action)
            rewards.append(reward)
        episodes.append(
            Played(
                obs=torch.from_numpy(np.stack(obs)).to(device),
                action=torch.stack(actions).to(device),
                reward=torch.tensor(rewards, dtype=torch.float32, device=device),
                terminated=bool(terminated),
            )
        )
    return episodes


def write(folder: Path, found: Mapping[str, Any]) -> None:
    """diagnosis.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "diagnosis.json", json.dumps(found, indent=2) + "\n")


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options, with others in their place."""
    return dict(old) | {key: merged(old[key], value) if isinstance(value, Mapping) else value for key, value in new.items()}
