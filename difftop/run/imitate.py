"""An imitation run on disk: demonstrations found or made, its folder, its checkpoints, and the evaluation that is reported."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from difftop.data.demonstrations import Demonstrations
from difftop.data.files import open_demonstrations, recorded_env
from difftop.options import ConfigError
from difftop.run.checkpoint import Checkpoint, load_checkpoint
from difftop.run.cli import Settings, run_name
from difftop.run.imitation_records import ImitationRecords
from difftop.run.imitation_report import write_report
from difftop.run.offline import OfflineConfig, OfflineHooks, OfflineRun, split
from difftop.run.ownership import sole_owner
from difftop.run.protocols import PROTOCOLS
from difftop.run.rollouts import Rollouts, TaskEnvironments, roll_out
from difftop.run.seeding import stream
from difftop.run.session import evaluation_folder, last_checkpoint, prepare_torch, with_overrides
from difftop.run.signals import StopOnSignal
from difftop.run.workers import Workers, joined
from difftop.types import TaskSpec

log = logging.getLogger(__name__)

_ACTS_OTHERWISE = ("top.head", "agent.execute", "agent.samples", "run.protocol", "env.episode_steps", "env.render_quality")


@dataclass(frozen=True)
class TaskFactories:
    """What train.py hands in, because this package knows no agent and no simulator.

    Attributes:
        agent: `(options, spec, seed=, device=, precision=, total_steps=)` to an imitation agent.
        envs: `(options, n, parallel)` to n environments.
        record: `(options, episodes, seed=, folder=, noise=)` to the path of demonstrations by the task's expert.
        env_args: task options to what a file recorded in that task says of its environment, simulator version included.
        render_error: raised where no frame can be drawn.
        died: raised where the process of an environment is gone.
    """

    agent: Callable[..., Any]
    envs: Callable[[Any, int, bool], TaskEnvironments]
    record: Callable[..., Path]
    env_args: Callable[[Any], Mapping[str, Any]]
    render_error: type[Exception]
    died: type[Exception]


def record_demonstrations(settings: Settings, factories: TaskFactories) -> int:
    """`mode=demos`: writes demonstrations by the task's expert. Returns the exit status."""
    top = settings.top
    how = {"noise": settings.run.expert_noise, "labels": settings.run.expert_labels}
    path = factories.record(settings.env, top.episodes or 50, seed=top.seed, folder=top.data, **how)
    demonstrations = open_demonstrations(path)
    steps = int(demonstrations.length.sum())
    log.info("%s: %d demonstrations, %d steps, checked", path, len(demonstrations), steps)
    log.info("train on them: python train.py agent=leto env=%s dataset=%s", settings.env.name, path)
    return 0


def train_imitation(settings: Settings, factories: TaskFactories) -> int:
    """Trains, or goes on with a run that was stopped, and reports. Returns the exit status: 0 at the end, 130 after a stop.

    Under torchrun several processes train together; the first one does all that isn't training.
    """
    with joined(prepare_torch(settings)) as workers:
        if not workers.leads:
            logging.getLogger("difftop").setLevel(logging.ERROR)
        run: OfflineConfig = settings.run
        path, env_config = workers.lead_first(lambda: _dataset(settings, factories))
        most = max(run.select_episodes, run.reported_episodes)
        settings = replace(settings, env=env_config)  # as the file says: evaluating the checkpoint needs no file
        envs = factories.envs(env_config, min(run.eval_envs, most), run.parallel) if run.simulates and workers.leads else None
        try:
            spec = workers.told(None if envs is None else envs.difftop_spec)
            return _train(settings, factories, workers, path, envs, spec)
        finally:
            if envs is not None:
                envs.close()


def _train(
    settings: Settings,
    factories: TaskFactories,
    workers: Workers,
    path: Path,
    envs: TaskEnvironments | None,
    simulated: TaskSpec | None,
) -> int:
    """The run on the demonstrations at `path`; `simulated` is the task as its simulator has it, None without one."""
    demonstrations = _opened(path, settings, simulated)
    spec = simulated or _recorded_spec(settings, demonstrations)
    folder = imitation_folder(settings, spec)
    with sole_owner(folder) if workers.leads else nullcontext():
        return _train_in(folder, settings, factories, workers, path, demonstrations, envs, spec)


def _train_in(
    folder: Path,
    settings: Settings,
    factories: TaskFactories,
    workers: Workers,
    path: Path,
    demonstrations: Demonstrations,
    envs: TaskEnvironments | None,
    spec: TaskSpec,
) -> int:
    run: OfflineConfig = settings.run
    longer = settings.agent["training"]["schedule"] == "constant"  # any other schedule depends on the length of the run
    checkpoint = last_checkpoint(folder, settings, frozenset({"run.grad_steps"} if longer else ()))
    workers.wait()  # until all have read it
    agent = _agent(settings, factories, spec, workers.device)
    agent.workers = workers
    training, held_out = split(demonstrations, run.valid_fraction, stream(settings.top.seed, "split"))
    if checkpoint is None:  # which holds all that was taken from them
        agent.fit_normalizer_(training)
    with StopOnSignal() as stop:
        records = ImitationRecords(folder, settings, spec, checkpoint) if workers.leads else None
        others = OfflineHooks(stop, lambda _: ImitationRecords.nonfinite_batch(folder))
        hooks = _hooks(records, stop, envs, factories, settings) if records else others
        loop = OfflineRun(agent, training, held_out, run, seed=settings.top.seed, hooks=hooks, workers=workers)
        if checkpoint:
            agent.load_state_dict(checkpoint.model)
            agent.load_train_state(checkpoint.train_state["agent"])
            loop.load_state_dict(checkpoint.train_state["run"])
        if records:
            records.begin(loop, len(training), path, resumed=checkpoint is not None)
        finished = loop.run()
        if records:
            records.end(loop, finished)
    if not finished:
        return 130
    if envs is not None and run.reported_episodes:
        best = load_checkpoint(folder / "checkpoints" / "best") if run.select_episodes else load_checkpoint(folder)
        if _reported(folder / "evaluation", best.step):
            log.info("reported already: %s", folder / "evaluation")
            return 0
        agent.load_state_dict(best.model)
        report(agent, envs, factories, settings, best.step, folder / "evaluation")
    return 0


def _hooks(
    records: ImitationRecords,
    stop: StopOnSignal,
    envs: TaskEnvironments | None,
    factories: TaskFactories,
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


def evaluate_imitation(saved: Checkpoint, settings: Settings, factories: TaskFactories, head: str) -> int:
    """`mode=eval`: plays a checkpoint with the configuration it was saved with, with another head if one is named."""
    run, device = settings.run, prepare_torch(settings)
    if not run.reported_episodes:
        raise ConfigError("run.eval_episodes=0: mode=eval plays at least one episode; give a number, or -1 for the protocol's.")
    envs = factories.envs(settings.env, min(run.eval_envs, run.reported_episodes), run.parallel)
    try:
        agent = _agent(settings, factories, envs.difftop_spec, device)
        _load_weights(agent, saved, envs.difftop_spec)
        folder = evaluation_folder(saved, settings, _ACTS_OTHERWISE)
        report(agent, envs, factories, settings, saved.step, folder, head or None)
    finally:
        envs.close()
    return 0


def _load_weights(agent: Any, saved: Checkpoint, spec: TaskSpec) -> None:
    try:
        agent.load_state_dict(saved.model)
    except RuntimeError as error:  # trained without the simulator, on what its file has
        raise ConfigError(
            f"checkpoint={saved.path}: it was trained on other observations than {spec.name} has here, {', '.join(spec.shapes)} "
            f"({str(error).splitlines()[-1].strip()}); train with agent.obs_keys naming some of these."
        ) from error


def report(
    agent: Any,
    envs: TaskEnvironments,
    factories: TaskFactories,
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
        record=_can_render(envs, run, factories),
        keep=key,
        died=factories.died,
    )
    lines = write_report(folder, rollouts, agent.policy, envs.difftop_spec, run.protocol, step, head)
    for line in lines:
        log.info("%s", line)


def imitation_folder(settings: Settings, spec: TaskSpec) -> Path:
    """`<root>/<task>/<agent>/<name>/seed<k>`, a function of the configuration."""
    top = settings.top
    return Path(top.root) / spec.name.replace("/", "-") / str(settings.agent["name"]) / run_name(settings) / f"seed{top.seed}"


def _reported(folder: Path, step: int) -> bool:
    """Whether the report of that checkpoint is there."""
    summary = folder / "summary.json"
    return summary.is_file() and json.loads(summary.read_text())["grad_steps"] == step


def _dataset(settings: Settings, factories: TaskFactories) -> tuple[Path, Any]:
    """The demonstrations' file, made if need be, and the environment with the arguments that the file names."""
    run, top, env = settings.run, settings.top, settings.env
    if top.dataset:
        path = Path(top.dataset).expanduser()
        if not path.exists():
            raise ConfigError(f"dataset={top.dataset}: no such file; give a RoboMimic .hdf5 or a ManiSkill .h5 beside its .json.")
    else:
        if env.name.startswith("robomimic/"):
            raise ConfigError(f"env={env.name} needs dataset=PATH, a RoboMimic file; robosuite/Lift and others have an expert.")
        how = {"noise": run.expert_noise, "labels": run.expert_labels}
        path = factories.record(env, run.demos or 50, seed=0, folder=top.data, **how)
    if not env.episode_steps:
        env = replace(env, episode_steps=PROTOCOLS[run.protocol].episode_steps.get(env.name, 0))
    info = recorded_env(path)
    if not run.simulates:
        return path, env
    made = replace(env, made_with=json.dumps(dict(info.kwargs)))
    installed = factories.env_args(made)
    if str(installed["env_name"]) != info.name:
        raise ConfigError(
            f"dataset={path} was recorded in {info.name}, but env={env.name} is {installed['env_name']}: give that of the file."
        )
    info.check_version(str(installed["env_version"]), str(path))
    return path, made


def _opened(path: Path, settings: Settings, spec: TaskSpec | None) -> Demonstrations:
    run = settings.run

    def opened(keys: list[str] | None) -> Demonstrations:
        return open_demonstrations(
            path, obs_keys=keys, filter_key=run.filter_key, limit=run.demos, cache_bytes=run.cache_mb * 2**20
        )

    if spec is None:
        return _opened_alone(opened, settings)
    demonstrations = opened(list(spec.shapes))
    shapes, actions = demonstrations.shapes, demonstrations.actions.shape[1]
    wrong = [f"{key} {shapes[key]} for {tuple(shape)}" for key, shape in spec.shapes.items() if shapes[key] != tuple(shape)]
    if wrong or actions != spec.action_dim:
        what = ", ".join([*wrong, *([f"{actions} actions for {spec.action_dim}"] if actions != spec.action_dim else [])])
        raise ConfigError(f"dataset={path} doesn't fit env={spec.name}: {what}; take the observations and control of the file.")
    return demonstrations


def _opened_alone(opened: Callable[[list[str] | None], Demonstrations], settings: Settings) -> Demonstrations:
    """Without a simulator to say what it shows: all vectors of the file, and what else `agent.obs_keys` names."""
    demonstrations, named = opened(None), list(settings.agent.get("obs_keys", ()))
    if more := [key for key in named if key not in demonstrations.shapes]:
        return opened([*demonstrations.shapes, *more])
    if settings.env.obs != "low_dim":
        raise ConfigError(
            f"env.obs={settings.env.obs}: without a simulator (run.select_episodes=0 run.eval_episodes=0) agent.obs_keys "
            "must name what to look at, images too."
        )
    return demonstrations


def _recorded_spec(settings: Settings, demonstrations: Demonstrations) -> TaskSpec:
    """Without a simulator: what the demonstrations say of the task; their control period is robosuite's where they don't."""
    rate = float(demonstrations.env.kwargs.get("control_freq") or 20.0)
    steps, action_dim = int(demonstrations.length.max()), int(demonstrations.actions.shape[1])
    return TaskSpec(settings.env.name, demonstrations.shapes, action_dim, steps, 1 / rate)


def _agent(settings: Settings, factories: TaskFactories, spec: TaskSpec, device: str) -> Any:
    seed, steps = stream(settings.top.seed, "agent"), settings.run.grad_steps
    return factories.agent(settings.agent, spec, seed=seed, device=device, precision=settings.top.precision, total_steps=steps)


def _selection(run: OfflineRun, envs: TaskEnvironments | None, factories: TaskFactories, settings: Settings) -> Rollouts | None:
    """Episodes that choose the best checkpoint: the same ones at every evaluation, none of those that are reported."""
    if envs is None or not run.config.select_episodes:
        return None
    seeds = [stream(run.seed, "select_env", episode) for episode in range(run.config.select_episodes)]
    actor_seed = stream(run.seed, "select_actor")
    return roll_out(envs, lambda n: run.agent.actor(n, seed=actor_seed), seeds, steps=run.count.grad_steps, died=factories.died)


def _can_render(envs: TaskEnvironments, run: OfflineConfig, factories: TaskFactories) -> bool:
    if not run.video:
        return False
    try:
        envs.reset_at(0, 0)
        envs.render_at(0)
    except factories.render_error as error:
        log.warning("no videos: %s", error)
        return False
    return True


def as_saved(saved: Checkpoint, settings: Settings, registry: Any, overrides: Sequence[str]) -> Settings:
    """The checkpoint's settings, with what this command line sets of its evaluation."""
    keys = {f"run.{name}" for name in ("eval_episodes", "eval_envs", "parallel", "video", "protocol")}
    keys |= {"env.render_quality", "env.video_size", "env.episode_steps", "agent.execute"}
    keys |= {"agent.samples"} & {f"agent.{key}" for key in saved.config["agent"]}
    found = with_overrides(saved, settings, registry, overrides, keys)
    given = {override.partition("=")[0] for override in overrides}
    if "run.protocol" in given and "env.episode_steps" not in given:
        steps = PROTOCOLS[found.run.protocol].episode_steps.get(found.env.name, 0)
        found = replace(found, env=replace(found.env, episode_steps=steps))
    return found
