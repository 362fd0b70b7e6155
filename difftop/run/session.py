"""What every run on disk shares: its folder, the machine, the checkpoint it goes on from, and what an evaluation may change."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from difftop.options import ConfigError, defaults, still_known
from difftop.run.checkpoint import Checkpoint, has_checkpoint, load_checkpoint
from difftop.run.cli import Registry, Settings, checked, run_name
from difftop.run.rollouts import Array, Environments
from difftop.run.settings import flat, in_new_names
from difftop.run.video import VideoError, write_video
from difftop.types import EnvSpec

log = logging.getLogger(__name__)

STOPPED = 130  # exit status after Ctrl-C or SIGTERM
_SMOOTHEST_FPS = 60.0
_DRAWN = ("pixels", "image", "pointcloud")  # observations that a simulator renders

# A run may go on with other values of these; any other difference is another run.
_FREE = {
    "top.threads",
    "top.capture",
    "top.mode",
    "top.checkpoint",
    "top.root",
    "top.name",
    "top.swept",
    "top.data",
    "top.head",
    "run.frames",
    "run.video",
    "run.checkpoint_every",
    "run.parallel",
    "run.replay_device",
    "run.loading",
    "run.cache_mb",
}


@dataclass(frozen=True)
class Factories:
    """What the command hands in, because this package knows no agent and no simulator.

    Attributes:
        agent: `(options, spec, seed=, device=, precision=, total_steps=, capture=)` to an agent.
        envs: `(options, n, parallel)` to n environments, each in a process of its own if `parallel`.
        record: `(options, episodes, seed=, folder=, noise=, labels=)` to the path of demonstrations by the task's expert.
        recorded_as: environment options to what a file recorded there says of its environment, simulator version included.
        recorded_name: environment's name to what a file recorded there calls it; needs no simulator.
        render_error: raised where no frame can be drawn.
        died: raised where the process of an environment is gone.
        spawns: whether `run.parallel=auto` may start processes. Each imports the program's main module anew, which a script of a
            user that doesn't expect it must not be put through.
    """

    agent: Callable[..., Any]
    envs: Callable[[Any, int, bool], Environments]
    record: Callable[..., Path]
    recorded_as: Callable[[Any], Mapping[str, Any]]
    recorded_name: Callable[[str], str]
    render_error: type[Exception]
    died: type[Exception]
    spawns: bool = True


@dataclass(frozen=True)
class RunEnd:
    """How a run ended.

    Attributes:
        folder: of the run, or of the evaluation.
        finished: False where it was stopped, and saved.
    """

    folder: Path
    finished: bool = True

    @property
    def status(self) -> int:
        """Exit status of the process."""
        return 0 if self.finished else STOPPED


def run_folder(settings: Settings) -> Path:
    """`<root>/<env>/<agent>/<name>/seed<k>`, a function of the configuration."""
    top, env = settings.top, str(settings.env.name).replace("/", "-")
    return Path(top.root) / env / str(settings.agent["name"]) / run_name(settings) / f"seed{top.seed}"


def prepare_torch(settings: Settings) -> str:
    """Sets the number of threads and chooses the device; returns its name."""
    torch.set_num_threads(settings.top.threads or default_threads(settings))
    cuda = torch.cuda.is_available()
    if settings.top.device == "cuda" and not cuda:
        raise ConfigError("device=cuda: torch sees no CUDA device here; use device=cpu, or device=auto.")
    device = "cuda" if cuda and settings.top.device != "cpu" else "cpu"
    if settings.top.capture == "true" and device == "cpu":
        why = "CUDA graphs need a CUDA device, and this run is on a CPU"
        raise ConfigError(f"capture=true: {why}; use capture=auto, which replays from a tape there.")
    return device


def default_threads(settings: Settings) -> int:
    """CPU threads of `threads=0`: all that this process may use where images are learned from, else 1.

    The networks for vectors are small: a second thread saves little when the machine is idle, and waits for its turn in every
    one of thousands of products when it is not (40 times slower beside other work). A function of the configuration, not of a
    measurement: another number of threads rounds otherwise, and runs go on bit for bit.
    """
    return usable_cores() if settings.env.obs in _DRAWN else 1


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def evaluation_envs(settings: Settings, factories: Factories, count: int) -> Environments:
    """The environments that an imitation policy is evaluated in, each in a process of its own where `run.parallel` says so.

    Episodes are the same either way. auto takes processes where frames are drawn, which dominates an evaluation, and says so.

    Args:
        count: how many there are.
    """
    wanted, cores = settings.run.parallel, usable_cores()
    drawn = settings.env.obs in _DRAWN
    parallel = wanted == "true" or (wanted == "auto" and drawn and count > 1 and cores > 1 and factories.spawns)
    if wanted == "auto":
        where = "each in a process of its own" if parallel else "in this process"
        log.info(
            "evaluation: %d environment%s of obs=%s %s, by run.parallel=auto (cores: %d)",
            *(count, "s" if count > 1 else "", settings.env.obs, where, cores),
        )
    return factories.envs(settings.env, count, parallel)


def can_render(envs: Environments, settings: Settings, factories: Factories) -> bool:
    """Whether videos are wanted and can be drawn; a machine without OpenGL trains all the same, and is told so once."""
    if not settings.run.video:
        return False
    try:
        envs.reset_at(0, 0)
        envs.render_at(0)
    except factories.render_error as error:
        if any(seen.kind == "image" for seen in envs.difftop_spec.obs.values()):
            raise
        log.warning("no videos: %s", error)
        return False
    return True


def save_video(path: Path, frames: Sequence[Array], spec: EnvSpec) -> None:
    """An mp4 of one frame per action, in real time up to 60 frames a second; where it can't be written, says so."""
    try:
        write_video(path, frames, fps=min(1 / spec.control_dt_s, _SMOOTHEST_FPS))
    except VideoError as error:
        log.warning("no video: %s", error)


def last_checkpoint(folder: Path, settings: Settings, free: frozenset[str] = frozenset()) -> Checkpoint | None:
    """The checkpoint that the run goes on from, None for a new run; raises `ConfigError` where the folder holds another run.

    What another version saved is the same run where only options differ that one of the versions hasn't: a new one counts as
    having been at its default, and one that is gone has no effect.
    """
    if not has_checkpoint(folder):
        return None
    checkpoint = load_checkpoint(folder, agent_name=str(settings.agent["name"]))
    old, new = _completed(checkpoint.config, settings), flat(settings.plain())
    differ = [
        key for key in sorted(new) if key not in _FREE | free and not key.startswith("choices.") and old.get(key) != new.get(key)
    ]
    if differ:
        shown = ", ".join(f"{key} was {old.get(key)} and is {new.get(key)}" for key in differ[:3])
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise ConfigError(
            f"{folder} holds a run of another configuration ({shown}{more}): choose another name=NAME, or remove the folder."
        )
    _say_gone(
        [key for key in flat(in_new_names(checkpoint.config)) if key not in new and not key.startswith("choices.")],
        checkpoint.path,
    )
    return checkpoint


def saved_checkpoint(path: str, mode: str = "eval") -> Checkpoint:
    """The checkpoint that `mode=eval` or `mode=diagnose` names."""
    if not path:
        raise ConfigError(f"mode={mode} needs checkpoint=PATH, a checkpoint or a run folder.")
    return load_checkpoint(path)


def evaluation_folder(saved: Checkpoint, settings: Settings, keys: Sequence[str]) -> Path:
    """`<run>/eval/<checkpoint>-seed<k>`, and what of `keys` isn't as it was trained, so that ways to act stay apart."""
    was, now = _completed(saved.config, settings), flat(settings.plain())
    changed = [f"-{key.rpartition('.')[2]}-{now[key]}" for key in keys if now.get(key) != was.get(key)]
    return saved.path.parent.parent / "eval" / "".join([f"{saved.path.name}-seed{settings.top.seed}", *changed])


def _as_known_now(saved: Checkpoint, registry: Registry) -> dict[str, Any]:
    """A checkpoint's configuration without the options that are gone since; the log names them."""
    config, gone = in_new_names(saved.config), []
    for group, kind in registry.kinds(config["agent"]).items():
        config[group], lost = still_known(kind, config[group], group)
        gone += lost
    _say_gone(gone, saved.path)
    return config


def _completed(config: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """A saved configuration by dotted keys, with the defaults of options that its version didn't have."""
    return flat({group: defaults(kind) for group, kind in settings.kinds.items()}) | flat(in_new_names(config))


def _say_gone(keys: Sequence[str], where: Path) -> None:
    if keys:
        log.info("%s: saved by another version, of whose options these are gone, and ignored: %s", where, ", ".join(keys))


_MACHINE = {"device", "threads", "precision", "capture", "mode", "checkpoint", "head"}


def with_overrides(
    saved: Checkpoint, settings: Settings, registry: Registry, overrides: Sequence[str], keys: frozenset[str]
) -> Settings:
    """The checkpoint's settings, with what this command line sets of `keys`, the planner, and the machine.

    Raises:
        ConfigError: the command line sets something that is the checkpoint's own.
    """
    config = _as_known_now(saved, registry)
    plain = dict(config["top"]) | {key: dict(config[key]) for key in ("run", "env", "agent")}
    given = {override.partition("=")[0].lstrip("+") for override in overrides}
    own = sorted(given - keys - _MACHINE - {"seed", "planner", "agent", "env", "root"})
    if own:
        settable = ", ".join(sorted(keys | {"seed", "planner"}))
        raise ConfigError(f"{own[0]}: mode={settings.top.mode} takes it from the checkpoint; a command line may set {settable}.")
    for key, mine in (("agent", saved.agent_name), ("env", str(config["env"]["name"]))):
        asked = settings.agent["name"] if key == "agent" else settings.env.name
        if key in given and asked != mine:
            raise ConfigError(
                f"{key}={asked}: the checkpoint is of {key}={mine}, which mode={settings.top.mode} plays; leave it out."
            )
    if settings.top.head and saved.agent_name not in registry.imitators:
        raise ConfigError(f"head={settings.top.head}: is for agents that imitate.")
    new = flat(settings.plain())
    for key in given & keys:
        group, _, name = key.partition(".")
        plain[group][name] = new[key]
    plain |= {key: getattr(settings.top, key) for key in _MACHINE}
    plain |= {key: getattr(settings.top, key) for key in given & {"seed", "planner"}}
    return replace(checked(registry, plain, config["choices"]), choices=config["choices"])
