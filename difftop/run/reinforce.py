"""A run that learns from rewards, on disk: begun or gone on with, and its checkpoints played."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from difftop.contract import Agent
from difftop.data.replay import ReplayBuffer
from difftop.options import ConfigError
from difftop.run.checkpoint import Checkpoint, restore_replay
from difftop.run.cli import Registry, Settings
from difftop.run.episodes import write_episodes
from difftop.run.online import Hooks, OnlineRun, RunConfig
from difftop.run.online_records import OnlineRecords
from difftop.run.ownership import sole_owner
from difftop.run.rollouts import Environments, roll_out
from difftop.run.seeding import stream
from difftop.run.session import (
    Factories,
    RunEnd,
    can_render,
    evaluation_folder,
    last_checkpoint,
    prepare_torch,
    run_folder,
    save_video,
    with_overrides,
)
from difftop.run.settings import SETTABLE
from difftop.run.signals import StopOnSignal
from difftop.run.weights import load_weights
from difftop.types import EnvSpec

log = logging.getLogger(__name__)


def train_online(settings: Settings, factories: Factories) -> RunEnd:
    """Trains, or goes on with a run that was stopped."""
    device, folder = prepare_torch(settings), run_folder(settings)
    with sole_owner(folder):
        checkpoint = last_checkpoint(folder, settings)
        envs, eval_envs = _environments(settings, factories)
        try:
            return _train_in(folder, settings, factories, checkpoint, envs, eval_envs, device)
        finally:
            envs.close()
            eval_envs.close()


def _environments(settings: Settings, factories: Factories) -> tuple[Environments, Environments]:
    """For training and for evaluation."""
    run = settings.run
    envs = factories.envs(settings.env, run.num_envs, run.parallel)
    try:
        return envs, factories.envs(settings.env, min(run.eval_envs, run.eval_episodes), run.parallel)
    except BaseException:
        envs.close()
        raise


def _train_in(
    folder: Path,
    settings: Settings,
    factories: Factories,
    checkpoint: Checkpoint | None,
    envs: Environments,
    eval_envs: Environments,
    device: str,
) -> RunEnd:
    spec, seed = envs.difftop_spec, settings.top.seed
    agent = factories.agent(
        settings.agent,
        spec,
        seed=stream(seed, "agent"),
        device=device,
        precision=settings.top.precision,
        capture=settings.top.capture,
    )
    replay = make_replay(settings, spec, device)
    with StopOnSignal() as stop, OnlineRecords(folder, settings, spec, checkpoint) as records:
        config = replace(settings.run, video=can_render(eval_envs, settings, factories))
        hooks = Hooks(records.on_eval, records.on_metrics, records.save, records.save_batch, stop, factories.died)
        run = OnlineRun(agent, envs, eval_envs, replay, config, seed=seed, hooks=hooks)
        if checkpoint:
            _restore(checkpoint, agent, replay, run)
        records.begin(run, resumed=checkpoint is not None)
        finished = run.run()
        records.end(run, finished)
    return RunEnd(folder, finished)


def make_replay(settings: Settings, spec: EnvSpec, device: str) -> ReplayBuffer:
    """The replay buffer of a run on `device`; raises `ConfigError` where its options don't fit the environment or the machine."""
    if settings.run.replay_device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.replay_device=cuda: torch sees no CUDA device here; use run.replay_device=cpu.")
    try:
        return ReplayBuffer(
            spec,
            capacity=settings.run.capacity,
            horizon=int(settings.agent["loss"]["horizon"]),
            prioritized=settings.run.prioritized,
            device=replay_device(settings.run, spec, device),
        )
    except ValueError as error:
        raise ConfigError(f"run.capacity: {error}") from error


def replay_device(run: RunConfig, spec: EnvSpec, device: str) -> str:
    """`run.replay_device`; auto is the run's GPU where half of its memory holds all rows, which are there twice while they grow.

    A function of the options and the card, not of what else is on it now: a run that goes on chooses the same again.
    """
    if run.replay_device != "auto" or device == "cpu":
        return "cpu" if run.replay_device == "auto" else run.replay_device
    rows = min(run.capacity, run.frames // spec.action_repeat + spec.episode_steps)
    total: int = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return device if rows * _bytes_per_row(spec) <= total // 2 else "cpu"


def _bytes_per_row(spec: EnvSpec) -> int:
    """Memory of one row of a prioritized buffer: one frame, its transition, and its places in the ring of starts and the tree."""
    seen = spec.obs[spec.only_key]
    numbers = math.prod(seen.shape) // spec.frame_stack
    return numbers * (1 if seen.kind == "image" else 4) + 4 * (spec.action_dim + 2) + 1 + 8 + 9


def evaluate_online(
    saved: Checkpoint, settings: Settings, registry: Registry, overrides: Sequence[str], factories: Factories
) -> RunEnd:
    """`mode=eval`: plays a checkpoint with the configuration it was saved with, and records the first episode."""
    settings = with_overrides(saved, settings, registry, overrides, SETTABLE["eval"])
    device, seed, episodes = prepare_torch(settings), settings.top.seed, settings.run.eval_episodes
    agent = factories.agent(
        settings.agent, saved.spec, seed=0, device=device, precision=settings.top.precision, capture=settings.top.capture
    )
    load_weights(agent, saved)
    envs = factories.envs(settings.env, min(settings.run.eval_envs, episodes), settings.run.parallel)
    try:
        found = roll_out(
            envs,
            lambda n: agent.actor(n, seed=stream(seed, "eval_mode_actor"), explore=False),
            [stream(seed, "eval_mode", episode) for episode in range(episodes)],
            steps=saved.step,
            record=can_render(envs, settings, factories),
            died=factories.died,
        )
    finally:
        envs.close()
    folder = evaluation_folder(saved, settings, ("top.planner", "env.render_quality"))
    write_episodes(folder / "episodes.csv", found, range(saved.spec.action_dim))
    if found.frames:
        save_video(folder / "episode0.mp4", found.frames, saved.spec)
    success = f", success {found.success:.0%}" if found.judged else ""
    shown = f"return {found.return_mean:.1f} +- {found.return_std:.1f}{success}"
    log.info("%s: %s over %d episodes; %s", saved.path, shown, episodes, folder)
    return RunEnd(folder)


def _restore(checkpoint: Checkpoint, agent: Agent, replay: ReplayBuffer, run: OnlineRun) -> None:
    load_weights(agent, checkpoint)
    agent.load_train_state(checkpoint.train_state["agent"])
    restore_replay(checkpoint, replay)
    run.load_state_dict(checkpoint.train_state["run"])
