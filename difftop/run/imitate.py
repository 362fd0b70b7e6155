"""An imitation run on disk: demonstrations found or made, its folder, its checkpoints, and the evaluation that is reported."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from difftop.data.demonstrations import Demonstrations, EnvInfo
from difftop.data.files import open_demonstrations, recorded_env
from difftop.data.scaling import range_of
from difftop.options import ConfigError
from difftop.poses import PoseRange
from difftop.run.checkpoint import Checkpoint, load_checkpoint
from difftop.run.cli import Registry, Settings, composed
from difftop.run.imitation_records import ImitationRecords
from difftop.run.imitation_report import write_report
from difftop.run.offline import OfflineConfig, OfflineHooks, OfflineRun, split
from difftop.run.opening import opened, poses_of
from difftop.run.ownership import sole_owner
from difftop.run.protocols import PROTOCOLS
from difftop.run.records import nonfinite_batch
from difftop.run.rollouts import Environments, Rollouts, roll_out
from difftop.run.seeding import stream
from difftop.run.session import (
    Factories,
    RunEnd,
    can_render,
    evaluation_envs,
    evaluation_folder,
    last_checkpoint,
    prepare_torch,
    run_folder,
    with_overrides,
)
from difftop.run.settings import NO_SIMULATOR, SETTABLE, SETTABLE_OF_IMITATION
from difftop.run.signals import StopOnSignal
from difftop.run.weights import load_weights
from difftop.run.workers import Workers, joined
from difftop.types import EnvSpec, ObsSpec

log = logging.getLogger(__name__)

EXPERT_DEMOS = 50  # where `run.demos` leaves it open
_ACTS_OTHERWISE = ("top.head", "agent.execute", "agent.samples", "run.protocol", "env.episode_steps", "env.render_quality")


def record_demonstrations(settings: Settings, factories: Factories) -> RunEnd:
    """`mode=demos`: writes demonstrations by the task's expert, to a file in the folder of the result."""
    top, count = settings.top, settings.run.demos or EXPERT_DEMOS
    how = {"noise": settings.run.expert_noise, "labels": settings.run.expert_labels}
    path = factories.record(settings.env, count, seed=top.seed, folder=top.data, **how)
    demonstrations = open_demonstrations(path)
    steps = int(demonstrations.length.sum())
    log.info("%s: %d demonstrations, %d steps, checked", path, len(demonstrations), steps)
    log.info("train on them: python train.py agent=leto env=%s dataset=%s", settings.env.name, path)
    return RunEnd(path.parent)


def train_imitation(settings: Settings, factories: Factories) -> RunEnd:
    """Trains, or goes on with a run that was stopped, and reports.

    Under torchrun several processes train together; the first one does all that isn't training.
    """
    with joined(prepare_torch(settings)) as workers:
        if not workers.leads:
            logging.getLogger("difftop").setLevel(logging.ERROR)
        wanted = settings.run.simulates
        paths, settings = workers.lead_first(lambda: _dataset(settings, factories))
        run: OfflineConfig = settings.run
        most = max(run.select_episodes, run.reported_episodes, 1)
        envs = evaluation_envs(settings, factories, min(run.eval_envs, most)) if wanted and workers.leads else None
        try:
            spec = workers.told(None if envs is None else envs.difftop_spec)
            return _train(settings, factories, workers, paths, envs if run.simulates else None, spec)
        finally:
            if envs is not None:
                envs.close()


def _train(
    settings: Settings,
    factories: Factories,
    workers: Workers,
    paths: Sequence[Path],
    envs: Environments | None,
    simulated: EnvSpec | None,
) -> RunEnd:
    """The run on the demonstrations at `paths`; `simulated` is the task as its simulator has it, None without one."""
    demonstrations = opened(paths, settings, simulated, evaluated=settings.run.simulates)
    spec = simulated if simulated and settings.run.simulates else _recorded_spec(settings, demonstrations)
    folder = run_folder(settings)
    with sole_owner(folder) if workers.leads else nullcontext():
        return _train_in(folder, settings, factories, workers, demonstrations, envs, spec)


def _train_in(
    folder: Path,
    settings: Settings,
    factories: Factories,
    workers: Workers,
    demonstrations: Demonstrations,
    envs: Environments | None,
    spec: EnvSpec,
) -> RunEnd:
    run: OfflineConfig = settings.run
    longer = settings.agent["training"]["schedule"] == "constant"  # any other schedule depends on the length of the run
    checkpoint = last_checkpoint(folder, settings, frozenset({"run.grad_steps"} if longer else ()))
    workers.wait()  # until all have read it
    agent = _agent(settings, factories, spec, workers.device)
    agent.workers = workers
    training, held_out = split(demonstrations, run.valid_fraction, stream(settings.top.seed, "split"))
    if checkpoint is None:  # which holds all that was taken from them
        agent.fit_normalizer_(training)
    with StopOnSignal() as stop, ExitStack() as written:
        records = written.enter_context(ImitationRecords(folder, settings, spec, checkpoint)) if workers.leads else None
        others = OfflineHooks(stop, lambda _: nonfinite_batch(folder))
        hooks = _hooks(records, stop, envs, factories, settings) if records else others
        loop = OfflineRun(agent, training, held_out, run, seed=settings.top.seed, hooks=hooks, workers=workers)
        if checkpoint:
            load_weights(agent, checkpoint)
            agent.load_train_state(checkpoint.train_state["agent"])
            loop.load_state_dict(checkpoint.train_state["run"])
        if records:
            records.begin(loop, demonstrations, training, held_out, resumed=checkpoint is not None)
        finished = loop.run()
        if records:
            records.end(loop, finished)
    if not finished:
        return RunEnd(folder, finished=False)
    if envs is not None and run.reported_episodes:
        best = load_checkpoint(folder / "checkpoints" / "best") if run.select_episodes else load_checkpoint(folder)
        if _reported(folder / "evaluation", best.step):
            log.info("reported already: %s", folder / "evaluation")
            return RunEnd(folder)
        load_weights(agent, best)
        report(agent, envs, factories, settings, best.step, folder / "evaluation")
    return RunEnd(folder)


def _hooks(
    records: ImitationRecords,
    stop: StopOnSignal,
    envs: Environments | None,
    factories: Factories,
    settings: Settings,
) -> OfflineHooks:
    return OfflineHooks(
        stop,
        records.save_batch,
        select=lambda run: _selection(run, envs, factories, settings),
        on_metrics=records.on_metrics,
        on_select=records.on_select,
        save=records.save,
    )


def recorded_task(
    path: Path, overrides: Sequence[str], registry: Registry, factories: Factories
) -> tuple[Demonstrations, EnvSpec]:
    """The demonstrations at `path`, and the task as they show it, no simulator asked: for programs with a loop of their own.

    Args:
        path: of the file or folder.
        overrides: `agent=NAME` and whatever else a command would say of the data and the policy.
        registry, factories: of `difftop.command`.
    Raises:
        ConfigError, DemonstrationError: as training would.
    """
    settings = composed(registry, [*overrides, f"dataset={path}", "run.eval_episodes=0", "run.select_episodes=0"])
    paths, settings = _dataset(settings, factories)
    demonstrations = opened(paths, settings, None, evaluated=False)
    return demonstrations, _recorded_spec(settings, demonstrations)


def evaluate_imitation(
    saved: Checkpoint, settings: Settings, registry: Registry, overrides: Sequence[str], factories: Factories
) -> RunEnd:
    """`mode=eval`: plays a checkpoint with the configuration it was saved with, with another head if one is named."""
    settings = as_saved(saved, settings, registry, overrides)
    run, device = settings.run, prepare_torch(settings)
    if not run.reported_episodes:
        raise ConfigError("run.eval_episodes=0: mode=eval plays at least one episode; give a number, or -1 for the protocol's.")
    envs = evaluation_envs(settings, factories, min(run.eval_envs, run.reported_episodes))
    try:
        _check_spec(saved, envs.difftop_spec)
        agent = _agent(settings, factories, saved.spec, device)
        load_weights(agent, saved)
        folder = evaluation_folder(saved, settings, _ACTS_OTHERWISE)
        report(agent, envs, factories, settings, saved.step, folder, settings.top.head or None)
    finally:
        envs.close()
    return RunEnd(folder)


def _check_spec(saved: Checkpoint, spec: EnvSpec) -> None:
    """Raises where a policy that was trained without the simulator, on what its file has, looks at what isn't there."""
    wanted = saved.config["agent"].get("obs_keys") or list(saved.spec.obs)
    missing = [key for key in wanted if saved.spec.shapes.get(key) != spec.shapes.get(key)]
    if missing or saved.spec.action_dim != spec.action_dim:
        raise ConfigError(
            f"checkpoint={saved.path}: it was trained on other observations than {spec.name} has here, {', '.join(spec.obs)} "
            f"(differs: {', '.join(missing) or 'the action'}); train with agent.obs_keys naming some of these."
        )


def report(
    agent: Any,
    envs: Environments,
    factories: Factories,
    settings: Settings,
    step: int,
    folder: Path,
    head: str | None = None,
) -> None:
    """Plays the episodes that are reported, and writes and says what they show."""
    run, seed = settings.run, settings.top.seed
    protocol = PROTOCOLS[run.protocol]
    first = protocol.first_seed
    numbers = range(run.reported_episodes)
    seeds = [stream(seed, "report_env", k) if first is None else first + k for k in numbers]
    key = agent.policy.config.limits.position_key if hasattr(agent.policy.config, "limits") else ""
    rollouts = roll_out(
        envs,
        lambda n: agent.actor(n, seed=stream(seed, "report_actor"), head=head),
        seeds,
        steps=step,
        record=can_render(envs, settings, factories),
        keep=key,
        died=factories.died,
    )
    lines = write_report(folder, rollouts, agent.policy, envs.difftop_spec, run.protocol, step, head)
    for line in lines:
        log.info("%s", line)


def _reported(folder: Path, step: int) -> bool:
    """Whether the report of that checkpoint is there."""
    summary = folder / "summary.json"
    return summary.is_file() and json.loads(summary.read_text())["grad_steps"] == step


def _dataset(settings: Settings, factories: Factories) -> tuple[list[Path], Settings]:
    """The demonstrations, made if need be, and the settings with what they name: the environment's arguments, and whether it can
    be evaluated in."""
    run, top, env = settings.run, settings.top, settings.env
    paths = [Path(path).expanduser() for path in top.dataset.path]
    for path in paths:
        if not path.exists():
            raise ConfigError(f"dataset={path}: no such file or folder.")
    if not paths:
        how = {"noise": run.expert_noise, "labels": run.expert_labels}
        paths = [factories.record(env, run.demos or EXPERT_DEMOS, seed=0, folder=top.data, **how)]
    if not env.episode_steps:
        env = replace(env, episode_steps=PROTOCOLS[run.protocol].steps(env.name))
    infos = [recorded_env(path) for path in paths]
    for path, found in zip(paths, infos, strict=True):
        _check_env(path, found, settings, factories)
    info, env = infos[0], replace(env, poses=poses_of(paths, infos, settings))
    if env.obs != "low_dim":
        env = _seen_as_recorded(env, info, paths[0])
    if not run.simulates:
        return paths, replace(settings, env=env)
    env = replace(env, made_with=json.dumps(dict(info.kwargs)))
    installed = str(factories.recorded_as(env)["env_version"])
    wrong = next(((path, found) for path, found in zip(paths, infos, strict=True) if not found.same_version(installed)), None)
    if wrong:
        log.warning("%s", _unevaluated(*wrong, installed))
        run = replace(run, select_episodes=0, eval_episodes=0)
    return paths, replace(settings, env=env, run=run)


def _check_env(path: Path, info: EnvInfo, settings: Settings, factories: Factories) -> None:
    """Raises where a data set that names its environment was recorded in another one than `env=`."""
    name = settings.env.name
    if info.name and not name.startswith(f"{NO_SIMULATOR}/") and factories.recorded_name(name) != info.name:
        raise ConfigError(
            f"dataset={path} was recorded in {info.name}, but env={name} is {factories.recorded_name(name)}: give that of the "
            "file, or leave env= out."
        )


def _unevaluated(path: Path, info: EnvInfo, installed: str) -> str:
    """What to say where a policy can be trained on a data set, and not be evaluated here."""
    anew = f"make its observations anew: mode=convert playback=true dataset={path} out=FILE"
    if info.raw.get("type", info.raw.get("env_type")) != 1:  # no robosuite
        anew = "record the demonstrations anew there"
    return (
        f"{path}: {info.name} was recorded with version {info.version or '(unknown)'} of its simulator, and {installed} is "
        "installed: it is trained on and not evaluated, since a policy may silently score 0 there. To evaluate, install the "
        f"recorded version, or {anew}."
    )


def _seen_as_recorded(env: Any, info: EnvInfo, path: Path) -> Any:
    """The environment that draws its images as those of the demonstrations were drawn; published where the file doesn't say."""
    recorded = str(info.raw.get("render_quality", "published"))
    if recorded != env.render_quality:
        log.info("env.render_quality=%s, as the images of %s", recorded, path)
    return replace(env, render_quality=recorded)


def _recorded_spec(settings: Settings, demonstrations: Demonstrations) -> EnvSpec:
    """Without a simulator: what the demonstrations say of the task; their control period is robosuite's where they don't."""
    rate = float(demonstrations.env.kwargs.get("control_freq") or demonstrations.env.raw.get("fps") or 20.0)
    steps, action_dim = int(demonstrations.length.max()), int(demonstrations.actions.shape[1])
    obs = {key: ObsSpec.of(shape, key) for key, shape in demonstrations.shapes.items()}
    low, high = range_of(demonstrations)
    arms = PoseRange.read(settings.env.poses).arms if settings.env.poses else 0
    return EnvSpec(settings.env.name, obs, action_dim, steps, 1 / rate, action_low=low, action_high=high, poses=arms)


def _agent(settings: Settings, factories: Factories, spec: EnvSpec, device: str) -> Any:
    seed, steps = stream(settings.top.seed, "agent"), settings.run.grad_steps
    return factories.agent(
        settings.agent,
        spec,
        seed=seed,
        device=device,
        precision=settings.top.precision,
        capture=settings.top.capture,
        total_steps=steps,
    )


def _selection(run: OfflineRun, envs: Environments | None, factories: Factories, settings: Settings) -> Rollouts | None:
    """Episodes that choose the best checkpoint: the same ones at every evaluation, none of those that are reported.

    They end with success, which is all that is counted of them.
    """
    if envs is None or not run.config.select_episodes:
        return None
    seeds = [stream(run.seed, "select_env", episode) for episode in range(run.config.select_episodes)]
    actor_seed = stream(run.seed, "select_actor")
    return roll_out(
        envs,
        lambda n: run.agent.actor(n, seed=actor_seed),
        seeds,
        steps=run.count.grad_steps,
        until_success=True,
        died=factories.died,
    )


def as_saved(saved: Checkpoint, settings: Settings, registry: Registry, overrides: Sequence[str]) -> Settings:
    """The checkpoint's settings, with what this command line sets of its evaluation."""
    keys = SETTABLE["eval"] | SETTABLE_OF_IMITATION
    keys -= {"agent.samples"} - {f"agent.{key}" for key in saved.config["agent"]}
    found = with_overrides(saved, settings, registry, overrides, keys)
    given = {override.partition("=")[0] for override in overrides}
    if "run.protocol" in given and "env.episode_steps" not in given:
        steps = PROTOCOLS[found.run.protocol].steps(found.env.name)
        found = replace(found, env=replace(found.env, episode_steps=steps))
    return found
