"""Demonstrations by scripted experts, written once as a RoboMimic-layout file."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from difftop.data.robomimic import Recording, write_demonstrations
from difftop.options import ConfigError
from difftop.run.ownership import in_turn
from difftop.run.seeding import stream
from envs.base import SimulatedEnv
from envs.config import EnvConfig
from envs.errors import EnvError
from envs.registry import find_task, make_env, make_expert, recorded_as
from envs.suites import Array, Expert, Observation

log = logging.getLogger(__name__)

NOISE = 0.1  # of the expert's actions: without any, demonstrations hardly differ, and nothing in them shows how to recover
_HOLD = 5  # actions that a demonstration goes on for after success, so that it shows how to stay there
_ATTEMPTS = 4  # per demonstration that is wanted


def demonstrations_file(
    config: EnvConfig, episodes: int, seed: int, folder: Path | str, noise: float = NOISE, labels: str = "executed"
) -> Path:
    """Where `record` puts such demonstrations: a function of what they are, simulator versions aside."""
    task = find_task(config.name)
    planned = hasattr(task.module, "make_demonstrations")  # by the suite's own planner, which adds no noise
    kind = {"low_dim": "", "state": "-state"}.get(config.obs, f"-{config.obs}{config.image_size}")
    kind += f"x{config.points}" if config.obs == "pointcloud" and config.points != EnvConfig().points else ""
    if config.obs in ("image", "pixels", "pointcloud"):
        kind += "".join(f"-{camera}" for camera in config.cameras)
    if config.obs in ("image", "pixels"):
        kind += "-depth" if config.depth else ""
        kind += f"-{config.render_quality}" if config.render_quality != EnvConfig().render_quality else ""
    kind += f"-stack{config.frame_stack}" if config.obs == "pixels" else ""
    kind += f"-repeat{config.action_repeat}" if config.action_repeat else ""
    kind += f"-steps{config.episode_steps}" if config.episode_steps else ""
    kind += f"-{config.control}" if config.control else ""
    if not planned:
        kind += f"-noise{noise:g}" if noise != NOISE else ""
        kind += f"-{labels}" if labels != "executed" else ""
    return Path(folder) / task.name.replace("/", "-") / f"expert{kind}-{episodes}-seed{seed}{'.h5' if planned else '.hdf5'}"


def record(
    config: EnvConfig, episodes: int, *, seed: int, folder: Path | str, noise: float = NOISE, labels: str = "executed"
) -> Path:
    """Demonstrations by the task's expert; nothing is done where the file is there already, or another process makes it.

    Only episodes that reach success are kept, cut a few steps after it; failures are counted and said.

    Args:
        config: the task, and which observations to keep.
        episodes: how many to keep.
        seed: of the episodes' initial states and of the noise.
        folder: see `demonstrations_file`.
        noise: standard deviation of what is added to the expert's actions when they are executed. Not of ManiSkill's planner.
        labels: the recorded actions are those that were executed, noise included; or those that the expert intended, so that
            each says how to undo the noise before it (Laskey et al. 2017, DART).
    Raises:
        ConfigError: the task has no expert.
        EnvError: the expert fails too often, or the simulator is missing.
    """
    check_expert(config)
    path = demonstrations_file(config, episodes, seed, folder, noise, labels)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with in_turn(path.parent, str(path)):
        if not path.exists():
            _record(config, episodes, seed, path, noise, labels)
    return path


def _record(config: EnvConfig, episodes: int, seed: int, path: Path, noise: float, labels: str) -> None:
    task, config = find_task(config.name), replace(config, reward="sparse")
    if hasattr(task.module, "make_demonstrations"):  # the suite has its own planner and format
        task.module.make_demonstrations(task.task, episodes, path, seed, config)
        return
    env = make_env(config)
    try:
        rng = np.random.default_rng(stream(seed, "expert_noise"))
        expert = Disturbed(make_expert(config, env.simulator, rng), rng, noise, labels)
        write_demonstrations(path, _episodes(env, expert, episodes, seed), recorded_as(config))
    finally:
        env.close()


@dataclass(frozen=True)
class Disturbed:
    """An expert whose actions are executed with noise; see `record`."""

    expert: Expert
    rng: np.random.Generator
    noise: float
    labels: str

    def reset(self) -> None:
        """Before each episode, after the simulator's reset."""
        self.expert.reset()

    def act(self, obs: Observation) -> tuple[Array, Array]:
        """The action to execute and the one to record, in [-1, 1]."""
        intended = np.asarray(self.expert.act(obs), np.float64)
        executed = intended.copy()
        executed[: self.expert.noisy] += self.rng.normal(0.0, self.noise, self.expert.noisy)
        executed = executed.clip(-1, 1)
        return executed, executed if self.labels == "executed" else intended.clip(-1, 1)


def _episodes(env: SimulatedEnv, expert: Disturbed, episodes: int, seed: int) -> Iterator[Recording]:
    """Successful episodes, `episodes` of them."""
    kept = 0
    for attempt in range(_ATTEMPTS * episodes):
        if kept == episodes:
            break
        recording = _play(env, expert, stream(seed, "demonstration", attempt))
        if recording is not None:
            kept += 1
            yield recording
    else:
        attempt = _ATTEMPTS * episodes
    if kept < episodes:
        raise EnvError(
            f"{env.difftop_spec.name}: the expert solved {kept} of {attempt} episodes, {episodes} are wanted; ask for fewer, "
            "less noise, or longer episodes (env.episode_steps)."
        )
    log.info("%s: %d demonstrations, %d of %d attempts failed", env.difftop_spec.name, kept, attempt - kept, attempt)


def _play(env: SimulatedEnv, expert: Disturbed, seed: int) -> Recording | None:
    """One episode, or None where it fails."""
    simulator: Any = env.simulator  # that may know states and scenes too
    obs, _ = env.reset(seed=seed)
    expert.reset()
    rows: list[Observation] = []
    actions: list[Array] = []
    rewards: list[float] = []
    states: list[Array] = []
    solved = 0
    over = False
    while not over and solved <= _HOLD:
        action, label = expert.act(obs)
        rows.append(obs)
        actions.append(label)
        if hasattr(simulator, "states"):
            states.append(np.array(simulator.states()))
        obs, reward, terminated, truncated, info = env.step(action)
        rewards.append(reward)
        solved = solved + 1 if info["success"] or solved else 0
        over = terminated or truncated
    if not solved:
        return None
    columns = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    images = [key for key, seen in env.difftop_spec.obs.items() if len(seen.shape) == 3]
    columns |= {key: np.moveaxis(columns[key], 1, -1) for key in images}  # channels last, as files keep them
    attributes = {"model_file": simulator.model_xml()} if hasattr(simulator, "model_xml") else {}
    return Recording(
        columns, np.stack(actions), np.array(rewards), states=np.stack(states) if states else None, attributes=attributes
    )


def check_expert(config: EnvConfig) -> None:
    """Raises `ConfigError` where demonstrations of the task can't be made here."""
    if "expert" not in find_task(config.name).info.gives:
        raise ConfigError(f"env={config.name}: there is no scripted expert; give demonstrations with dataset=PATH.")
