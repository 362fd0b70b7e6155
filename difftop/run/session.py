"""A run on disk: its folder, what it writes there, and how it goes on after a stop."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from difftop.data.replay import ReplayBuffer
from difftop.options import ConfigError
from difftop.run.checkpoint import Checkpoint, has_checkpoint, load_checkpoint, restore_replay, save_checkpoint
from difftop.run.cli import Registry, Settings, checked, run_name
from difftop.run.evaluate import Array, EvalResult, VectorEnvironment, evaluate
from difftop.run.logger import RunLogger
from difftop.run.online import Hooks, OnlineRun
from difftop.run.ownership import sole_owner
from difftop.run.progress import Progress
from difftop.run.seeding import stream
from difftop.run.signals import StopOnSignal
from difftop.run.video import VideoError, write_video
from difftop.types import Batch, EnvSpec

log = logging.getLogger(__name__)

# A run may go on with other values of these; any other difference is another run.
_FREE = {
    "top.threads",
    "top.mode",
    "top.checkpoint",
    "top.root",
    "top.name",
    "top.data",
    "top.episodes",
    "top.head",
    "run.frames",
    "run.video",
    "run.checkpoint_every",
    "run.parallel",
    "run.cache_mb",
}


@dataclass(frozen=True)
class Factories:
    """What train.py hands in, because this package knows no agent and no simulator.

    Attributes:
        agent: `(options, spec, seed=, device=, precision=)` to an agent.
        spec: environment options to their spec.
        envs: `(options, n, parallel)` to n environments, each in a process of its own if `parallel`.
        render_error: raised where no frame can be drawn.
    """

    agent: Callable[..., Any]
    spec: Callable[[Any], EnvSpec]
    envs: Callable[[Any, int, bool], VectorEnvironment]
    render_error: type[Exception]


def run_folder(settings: Settings, spec: EnvSpec) -> Path:
    """`<root>/<env>/<agent>/<name>/seed<k>`, a function of the configuration."""
    top = settings.top
    return Path(top.root) / spec.name.replace("/", "-") / str(settings.agent["name"]) / run_name(settings) / f"seed{top.seed}"


def train(settings: Settings, factories: Factories) -> int:
    """Trains, or goes on with a run that was stopped. Returns the exit status: 0 at the end, 130 after a stop."""
    device = prepare_torch(settings)
    spec = factories.spec(settings.env)
    folder = run_folder(settings, spec)
    with sole_owner(folder):
        return _train_in(folder, settings, factories, spec, device)


def _train_in(folder: Path, settings: Settings, factories: Factories, spec: EnvSpec, device: str) -> int:
    checkpoint = last_checkpoint(folder, settings)
    seed, precision = stream(settings.top.seed, "agent"), settings.top.precision
    agent = factories.agent(settings.agent, spec, seed=seed, device=device, precision=precision)
    replay = make_replay(settings, spec)
    envs = factories.envs(settings.env, settings.run.num_envs, settings.run.parallel)
    eval_envs = factories.envs(settings.env, min(settings.run.eval_envs, settings.run.eval_episodes), settings.run.parallel)
    try:
        with StopOnSignal() as stop:
            records = RunRecords(folder, settings, spec, checkpoint)
            config = settings.run if _can_render(eval_envs, settings, factories) else replace(settings.run, video=False)
            hooks = Hooks(records.on_eval, records.on_metrics, records.save, records.save_batch, stop)
            run = OnlineRun(agent, spec, envs, eval_envs, replay, config, seed=settings.top.seed, hooks=hooks)
            if checkpoint:
                _restore(checkpoint, agent, replay, run)
            records.begin(run, resumed=checkpoint is not None)
            finished = run.run()
            records.end(run, finished)
            return 0 if finished else 130
    finally:
        envs.close()
        eval_envs.close()


def make_replay(settings: Settings, spec: EnvSpec) -> ReplayBuffer:
    """The replay buffer; raises `ConfigError` where its options don't fit the environment or the machine."""
    if settings.run.replay_device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.replay_device=cuda: torch sees no CUDA device here; use run.replay_device=cpu.")
    try:
        return ReplayBuffer(
            spec,
            capacity=settings.run.capacity,
            horizon=int(settings.agent["loss"]["horizon"]),
            prioritized=settings.run.prioritized,
            alpha=settings.run.priority_alpha,
            beta=settings.run.priority_beta,
            device=settings.run.replay_device,
        )
    except ValueError as error:
        raise ConfigError(f"run.capacity: {error}") from error


def saved_checkpoint(path: str) -> Checkpoint:
    """The checkpoint that `mode=eval` names."""
    if not path:
        raise ConfigError("mode=eval needs checkpoint=PATH, a checkpoint or a run folder.")
    return load_checkpoint(path)


def evaluate_checkpoint(saved: Checkpoint, settings: Settings, factories: Factories) -> int:
    """`mode=eval`: plays a checkpoint with the configuration it was saved with, and records the first episode."""
    device = prepare_torch(settings)
    spec = factories.spec(settings.env)
    agent = factories.agent(settings.agent, spec, seed=0, device=device, precision=settings.top.precision)
    agent.load_state_dict(saved.model)
    episodes = settings.run.eval_episodes
    envs = factories.envs(settings.env, min(settings.run.eval_envs, episodes), settings.run.parallel)
    try:
        seeds = [stream(settings.top.seed, "eval_mode", episode) for episode in range(episodes)]
        result = evaluate(
            envs,
            lambda n: agent.actor(n, seed=stream(settings.top.seed, "eval_mode_actor"), explore=False),
            seeds,
            agent_steps=saved.step,
            record=_can_render(envs, settings, factories),
        )
    finally:
        envs.close()
    folder = evaluation_folder(saved, settings, ("top.planner", "env.render_quality"))
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(
        f"{i},{seeds[i]},{result.returns[i]:.8g},{result.successes[i]:.8g},{result.lengths[i]}\n" for i in range(episodes)
    )
    (folder / "episodes.csv").write_text("episode,env_seed,return,success,agent_steps\n" + rows)
    if result.frames:
        save_video(folder / "episode0.mp4", result.frames, spec)
    log.info("%s: return %.1f +- %.1f over %d episodes; %s", saved.path, result.return_mean, result.return_std, episodes, folder)
    return 0


def evaluation_folder(saved: Checkpoint, settings: Settings, keys: Sequence[str]) -> Path:
    """`<run>/eval/<checkpoint>-seed<k>`, and what of `keys` isn't as it was trained, so that ways to act stay apart."""
    was, now = _flat(saved.config), _flat(settings.plain())
    changed = [f"-{key.rpartition('.')[2]}-{now[key]}" for key in keys if now.get(key) != was.get(key)]
    return saved.path.parent.parent / "eval" / "".join([f"{saved.path.name}-seed{settings.top.seed}", *changed])


def _can_render(envs: VectorEnvironment, settings: Settings, factories: Factories) -> bool:
    """Whether videos can be drawn; a machine without OpenGL trains all the same, and is told once what is missing."""
    if not settings.run.video:
        return False
    try:
        envs.reset_at(0, 0)
        envs.render_at(0)
    except factories.render_error as error:
        if settings.env.obs == "pixels":
            raise
        log.warning("no videos: %s", error)
        return False
    return True


def prepare_torch(settings: Settings) -> str:
    """Sets the number of threads and chooses the device; returns its name."""
    if settings.top.threads:
        torch.set_num_threads(settings.top.threads)
    cuda = torch.cuda.is_available()
    if settings.top.device == "cuda" and not cuda:
        raise ConfigError("device=cuda: torch sees no CUDA device here; use device=cpu, or device=auto.")
    return "cuda" if cuda and settings.top.device != "cpu" else "cpu"


class RunRecords:
    """What a run writes: tables, TensorBoard events, videos, its curve, checkpoints, and the progress line."""

    def __init__(self, folder: Path, settings: Settings, spec: EnvSpec, checkpoint: Checkpoint | None) -> None:
        self.folder, self.settings, self.spec = folder, settings, spec
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(settings.plain(), indent=2) + "\n")
        step = checkpoint.step if checkpoint else None
        rows = checkpoint.train_state["logger"] if checkpoint else None
        frames = (step or 0) * spec.action_repeat
        self.logger = RunLogger(folder, seed=settings.top.seed, resume_at=step, resume_frames=frames, rows=rows)
        self.progress = Progress(settings.run.frames, frames=frames)
        self.failures = 0.0
        self.last_return: float | None = None

    def begin(self, run: OnlineRun, resumed: bool) -> None:
        """Says what is run, and where."""
        verb = f"continues at {run.frames:,} of" if resumed else "runs for"
        log.info("%s %s %s frames in %s", run_name(self.settings), verb, f"{self.settings.run.frames:,}", self.folder)

    def end(self, run: OnlineRun, finished: bool) -> None:
        """Closes the records and says how it ended."""
        self.progress.close()
        self.logger.close()
        state = "finished" if finished else "stopped and saved; the same command goes on"
        log.info("%s at %s frames after %.0f s: %s", state, f"{run.frames:,}", run.count.wall_s, self.folder)

    def on_eval(self, run: OnlineRun, result: EvalResult) -> None:
        """A row of eval.csv, the video, and the curve drawn anew."""
        self.last_return = result.return_mean
        self.logger.evaluation(
            env_frames=run.frames,
            agent_steps=run.count.agent_steps,
            wall_s=run.count.wall_s,
            return_mean=result.return_mean,
            return_std=result.return_std,
            success_mean=result.success_mean,
            episodes=len(result.returns),
            metrics={f"eval/{tag}": value for tag, value in result.metrics.items()},
        )
        self.progress.message(f"{run.frames:,} frames: return {result.return_mean:.1f} +- {result.return_std:.1f}")
        if result.frames:
            save_video(self.folder / "videos" / f"eval_{run.frames:09d}.mp4", result.frames, self.spec)
        from difftop.plot import plot_run

        plot_run(self.folder)

    def on_metrics(self, run: OnlineRun, metrics: Mapping[str, float]) -> None:
        """A row of metrics.csv and the progress line."""
        self.failures += metrics.get("plan/failures", 0.0)
        self.logger.training(
            env_frames=run.frames,
            agent_steps=run.count.agent_steps,
            wall_s=run.count.wall_s,
            episode_return=metrics.get("train/return"),
            metrics=metrics,
        )
        self.progress.update(run.frames, last_return=self.last_return, failures=int(self.failures))

    def save(self, run: OnlineRun) -> None:
        """A checkpoint that `train` goes on from."""
        self.logger.sync()
        save_checkpoint(
            self.folder,
            step=run.count.agent_steps,
            agent_name=str(self.settings.agent["name"]),
            config=self.settings.plain(),
            model=run.agent.state_dict(),
            train_state={"agent": run.agent.train_state(), "run": run.state_dict(), "logger": self.logger.state_dict()},
            replay=run.replay,
        )

    def save_batch(self, batch: Batch) -> Path:
        """The batch that made a loss non-finite."""
        path = self.folder / "nonfinite_batch.safetensors"
        save_file({key: value.contiguous() for key, value in vars(batch).items()}, path)
        return path


def save_video(path: Path, frames: Sequence[Array], spec: EnvSpec) -> None:
    """An mp4 of one frame per agent step, about real time for simulator steps of 0.02 s; where it can't be written, says so."""
    try:
        write_video(path, frames, fps=max(50 // spec.action_repeat, 5))
    except VideoError as error:
        log.warning("no video: %s", error)


def last_checkpoint(folder: Path, settings: Settings, free: frozenset[str] = frozenset()) -> Checkpoint | None:
    """The checkpoint that the run goes on from, None for a new run; raises `ConfigError` where the folder holds another run."""
    if not has_checkpoint(folder):
        return None
    checkpoint = load_checkpoint(folder, agent_name=str(settings.agent["name"]))
    old, new = _flat(checkpoint.config), _flat(settings.plain())
    differ = [
        key
        for key in sorted(old.keys() | new.keys())
        if key not in _FREE | free and not key.startswith("choices.") and old.get(key) != new.get(key)
    ]
    if differ:
        shown = ", ".join(f"{key} was {old.get(key)} and is {new.get(key)}" for key in differ[:3])
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise ConfigError(
            f"{folder} holds a run of another configuration ({shown}{more}): choose another name=NAME, or remove the folder."
        )
    return checkpoint


def _restore(checkpoint: Checkpoint, agent: Any, replay: ReplayBuffer, run: OnlineRun) -> None:
    agent.load_state_dict(checkpoint.model)
    agent.load_train_state(checkpoint.train_state["agent"])
    restore_replay(checkpoint, replay)
    run.load_state_dict(checkpoint.train_state["run"])


_MACHINE = {"device", "threads", "precision", "mode", "checkpoint", "head"}
_EVALUATION = {"run.eval_episodes", "run.eval_envs", "run.video", "env.render_quality", "env.video_size"}


def with_overrides(
    saved: Checkpoint, settings: Settings, registry: Registry, overrides: Sequence[str], keys: set[str] = _EVALUATION
) -> Settings:
    """The checkpoint's settings, with what this command line sets of `keys`, the planner, and the machine.

    Raises:
        ConfigError: the command line sets something that is the checkpoint's own.
    """
    config = saved.config
    plain = dict(config["top"]) | {key: dict(config[key]) for key in ("run", "env", "agent")}
    given = {override.partition("=")[0].lstrip("+") for override in overrides}
    own = sorted(given - keys - _MACHINE - {"seed", "planner", "agent", "env", "root"})
    if own:
        settable = ", ".join(sorted(keys | {"seed", "planner"}))
        raise ConfigError(f"{own[0]}: mode=eval takes it from the checkpoint; a command line may set {settable}.")
    for key, mine in (("agent", saved.agent_name), ("env", str(config["env"]["name"]))):
        asked = settings.agent["name"] if key == "agent" else settings.env.name
        if key in given and asked != mine:
            raise ConfigError(f"{key}={asked}: the checkpoint is of {key}={mine}, which mode=eval plays; leave it out.")
    if settings.top.head and saved.agent_name not in registry.imitators:
        raise ConfigError(f"head={settings.top.head}: is for agents that imitate.")
    new = _flat(settings.plain())
    for key in given & keys:
        group, _, name = key.partition(".")
        plain[group][name] = new[key]
    plain |= {key: getattr(settings.top, key) for key in _MACHINE}
    plain |= {key: getattr(settings.top, key) for key in given & {"seed", "planner"}}
    return replace(checked(registry, plain, config["choices"]), choices=config["choices"])


def _flat(plain: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        name = f"{where}.{key}" if where else str(key)
        flat |= _flat(value, name) if isinstance(value, Mapping) else {name: value}
    return flat
