"""What a command line is made into: options outside any group, what can be chosen, and the checked whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from difftop.capture import MODES as MODES_OF_CAPTURE
from difftop.data.absolute import CHOICES as POSES
from difftop.data.demonstrations import EnvInfo
from difftop.data.faults import BAD
from difftop.options import ConfigError, build, option, suggest
from difftop.qp.heads import HEADS
from difftop.run.config_folder import config_folder
from difftop.run.experiments import experiment_names, read_experiment
from difftop.run.offline import OfflineConfig
from difftop.run.online import RunConfig

MODES: Mapping[str, str] = {
    "train": "train, or continue a stopped run",
    "eval": "play and record a checkpoint: mode=eval checkpoint=RUN",
    "demos": "write demonstrations by the task's scripted expert: mode=demos env=SUITE/TASK",
    "data": "look at a data set of any format: mode=data dataset=PATH",
    "convert": "another format, or observations from raw teleoperation: mode=convert dataset=IN out=OUT",
    "compare": "report of runs beside published curves: mode=compare runs=RUNS",
    "status": "what of a sweep is finished, stopped or missing: mode=status root=RUNS",
    "diagnose": "is a checkpoint's world model worth planning with: mode=diagnose checkpoint=RUN",
    "serve": "a trained policy for a robot, over a socket: mode=serve checkpoint=RUN port=8765",
    "envs": "table of all environments, and what each gives",
}
# What a command line may set of a checkpoint's own configuration, beside seed, planner and the machine.
SETTABLE: Mapping[str, frozenset[str]] = {
    "eval": frozenset({"run.eval_episodes", "run.eval_envs", "run.video", "env.render_quality", "env.video_size"}),
    "diagnose": frozenset({"run.eval_episodes", "run.eval_envs"}),
}
SETTABLE_OF_IMITATION = frozenset({"run.parallel", "run.protocol", "env.episode_steps", "agent.execute", "agent.samples"})
DEMONSTRATED_TASK = "metaworld/button-press-topdown"  # of imitation, where none is named
NO_SIMULATOR = "data"  # suite of the environments that are known from demonstrations only
LOOPS: Mapping[str, type] = {"online": RunConfig, "offline": OfflineConfig}
GROUPS = ("agent", "world_model", "env", "obs", "preset", "experiment")
REWARD_OBS = ("state", "pixels")  # what agents that learn from rewards see; imitation has the others


@dataclass(frozen=True)
class DatasetConfig:
    """Which demonstrations, and which of them."""

    path: list[str] = option([], "files or folders of demonstrations; dataset=PATH and dataset=[A,B] set it")
    weights: list[float] = option([], "share of each path in the batches; empty: each window counts the same", above=0)
    filter: str = option("", "use a filter of the file, where the format has filters: train, valid, better, 20_percent, ...")
    successful_only: bool = option(True, "leave out episodes that the file calls failed (ManiSkill)")
    bad: str = option(
        "stop",
        "NaN rows, actions beyond [-1, 1], episodes that are cut off: stop; skip: leave such episodes out; clip: mend them",
        choices=BAD,
    )
    actions: str = option("actions", "RoboMimic: name of the actions in the file; actions_abs holds absolute poses")
    poses: str = option(
        "auto",
        "actions are absolute poses (position, axis-angle, gripper), learned with rotations of six numbers; auto: where they are "
        "called ..._abs, or the file's controller says so",
        choices=POSES,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "poses", str(self.poses).lower())  # true and false arrive as words for a boolean

    @property
    def named(self) -> str:
        """As the command line says it."""
        return f"dataset={self.path[0]}" if len(self.path) == 1 else f"dataset=[{','.join(self.path)}]"

    def check(self, where: str) -> None:
        """Raises `ConfigError` where the weights aren't those of the paths."""
        if self.weights and len(self.weights) != len(self.path):
            raise ConfigError(f"{where}.weights={self.weights}: one is needed for each of the {len(self.path)} paths.")


@dataclass(frozen=True)
class TopConfig:
    """Options outside any group."""

    mode: str = option("train", "what to do", choices=tuple(MODES))
    seed: int = option(1, "of every random stream of the run", low=0)
    name: str = option("auto", "name of the run; auto tells obs, preset, planner and experiment where they aren't the defaults")
    swept: list[str] = option([], "options whose values the run's name tells; a sweep (-m) sets it to what it sweeps over")
    planner: str = option("auto", "optimizer of the action; auto is the agent's own")  # choices: Registry.planners
    device: str = option("auto", "auto takes a CUDA device where there is one", choices=("auto", "cpu", "cuda"))
    precision: str = option(
        "auto", "of matrix products; auto: bf16 in convolutions of images on CPUs that have it", choices=("auto", "fp32", "bf16")
    )
    capture: str = option(
        "auto", "replay updates and plans: auto by CUDA graphs, on a CPU from a tape; true needs a GPU", choices=MODES_OF_CAPTURE
    )
    threads: int = option(0, "CPU threads; 0 takes one for vectors, every core for images", low=0)
    checkpoint: str = option("", "mode=eval and mode=diagnose: a checkpoint or a run folder")
    head: str = option("", "mode=eval, imitation: act by this head in place of the trained one: none, clip, qp or a package's")
    dataset: DatasetConfig = option(DatasetConfig, "imitation: demonstrations; none makes them by the task's scripted expert")
    data: str = option("data", "folder of the demonstrations that are made")
    root: str = option("runs", "folder of all runs")

    def __post_init__(self) -> None:
        object.__setattr__(self, "capture", str(self.capture).lower())  # true and false arrive as words for a boolean


@dataclass(frozen=True)
class AgentInfo:
    """What the command line knows of an agent.

    Attributes:
        config: its options class.
        summary: one line about it.
        learns_from: `rewards` or `demonstrations`.
        worlds: its options class on each world model it can be given (`auto`: its own); empty where it has no choice.
    """

    config: type
    summary: str
    learns_from: str
    worlds: Mapping[str, type] = field(default_factory=dict)


@dataclass(frozen=True)
class Registry:
    """What can be chosen, handed in because this package knows no agent and no simulator.

    Attributes:
        agents: by name.
        env_config: options class of every environment.
        list_envs: all canonical names that are known ahead.
        canonical_env: any accepted spelling of an environment's name to the canonical one; `ConfigError` for an unknown one.
        gives: what an environment gives, of `reward`, `success`, `expert` and `states`.
        env_of: canonical name of the environment that a data set was recorded in; `data/NAME`, without a simulator, for another.
        planners: names of the planners.
        config_dir: folder of the YAML files.
    """

    agents: Mapping[str, AgentInfo]
    env_config: type
    list_envs: Callable[[], list[str]]
    canonical_env: Callable[[str], str]
    gives: Callable[[str], frozenset[str]]
    env_of: Callable[[EnvInfo, str], str]
    planners: Sequence[str]
    config_dir: Path

    @property
    def imitators(self) -> list[str]:
        """The agents that learn from demonstrations."""
        return [name for name, info in self.agents.items() if info.learns_from == "demonstrations"]

    def options(self, agent: Mapping[str, Any]) -> type:
        """Options class of an agent given as a plain mapping; raises `ConfigError` for an unknown one."""
        name = str(agent.get("name"))
        if name not in self.agents:
            raise ConfigError(f"agent={name}: unknown.{suggest(name, list(self.agents))} Known: {', '.join(self.agents)}.")
        info = self.agents[name]
        return info.worlds.get(str(agent.get("world_model", "")), info.config)

    def kinds(self, agent: Mapping[str, Any], *, demos: bool = False) -> dict[str, type]:
        """Classes that hold the options of `top`, `run`, `agent` and `env` for an agent given as a plain mapping."""
        loop = OfflineConfig if demos or agent["name"] in self.imitators else RunConfig
        return {"top": TopConfig, "run": loop, "agent": self.options(agent), "env": self.env_config}


@dataclass(frozen=True)
class Settings:
    """A composed configuration, checked.

    Attributes:
        top: options outside any group.
        run: of the loop, `RunConfig` or, for imitation, `OfflineConfig`.
        agent: plain mapping, for the agent registry (which checks it).
        env: instance of `Registry.env_config`.
        choices: option chosen in each group (`preset`: `cpu`).
        kinds: the classes that hold the options of `top`, `run`, `agent` and `env`.
    """

    top: TopConfig
    run: Any
    agent: dict[str, Any]
    env: Any
    choices: dict[str, str]
    kinds: dict[str, type] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """All of it as plain containers, as it is saved."""
        plain = {key: OmegaConf.to_container(OmegaConf.structured(getattr(self, key))) for key in ("top", "run", "env")}
        return plain | {"agent": self.agent, "choices": self.choices}


def checked(registry: Registry, plain: Mapping[str, Any], choices: Mapping[str, str]) -> Settings:
    """Settings from plain containers (`top`-level keys beside `run`, `agent`, `env`); raises `ConfigError`."""
    top = build(TopConfig, {key: value for key, value in plain.items() if key not in ("run", "agent", "env")})
    agent = dict(plain["agent"])
    options = registry.options(agent)
    _check_mode(top, imitates=agent["name"] in registry.imitators)
    if top.planner != "auto":
        _check_planner(registry, top.planner, agent)
        agent["acting"] = dict(agent["acting"]) | {"planner": top.planner}
    _check_world_model(registry, agent["name"], choices.get("world_model", "auto"))
    env: Any = build(registry.env_config, plain["env"], "env")
    if top.mode == "train":
        _check_obs(registry, agent["name"], env.obs)
        _check_pair(registry, agent["name"], env.name, bool(top.dataset.path))
    build(options, agent, "agent")
    kinds = registry.kinds(agent, demos=top.mode == "demos")
    return Settings(top, build(kinds["run"], plain["run"], "run"), agent, env, dict(choices), kinds)


def in_new_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A saved configuration, with what its version called otherwise: one `dataset`, and its filter `run.filter_key`."""
    top, run = dict(config["top"]), dict(config["run"])
    if isinstance(top.get("dataset"), str):
        plain = OmegaConf.to_container(OmegaConf.structured(DatasetConfig))
        path = [top["dataset"]] if top["dataset"] else []
        top["dataset"] = {**dict(plain), "path": path, "filter": run.pop("filter_key", "")}  # type: ignore[arg-type]
    return {**config, "top": top, "run": run}


def run_name(settings: Settings) -> str:
    """`top.name`, or a name that tells the groups that aren't at their defaults; and what is swept, so that no two jobs share it.

    `cpu+agent.loss.learning_rate=3e-4+run.batch_size=128`
    """
    values = flat(settings.plain())
    unknown = [key for key in settings.top.swept if key not in values and f"top.{key}" not in values]
    if unknown:
        raise ConfigError(f"swept={unknown[0]}: unknown option; `python train.py --help` lists all.")
    swept = [f"{key}={_short(values.get(key, values.get(f'top.{key}')))}" for key in settings.top.swept]
    base = settings.top.name if settings.top.name != "auto" else _name_of_groups(settings)
    return "+".join([*([base] if base or not swept else []), *swept]) or "default"


def flat(plain: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Nested options by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in plain.items():
        name = f"{where}.{key}" if where else str(key)
        found |= flat(value, name) if isinstance(value, Mapping) else {name: value}
    return found


def _name_of_groups(settings: Settings) -> str:
    """The groups that aren't at their defaults; empty where all are."""
    chosen = settings.choices
    usual = {"obs": ("state", "low_dim"), "preset": ("standard",), "experiment": ("None",)}
    parts = [chosen[group] for group in usual if chosen[group] not in usual[group]]
    if chosen.get("world_model", "auto") not in ("auto", _world_of(chosen["experiment"])):
        parts.append(f"world_model-{chosen['world_model']}")
    if settings.top.planner != "auto":
        parts.append(f"planner-{settings.top.planner}")
    return "-".join(parts).replace("/", "-")


def _world_of(experiment: str) -> str:
    """The world model that an experiment chooses, auto where it leaves it."""
    folder = config_folder()
    return (
        read_experiment(folder, experiment).groups.get("world_model", "auto")
        if experiment in experiment_names(folder)
        else "auto"
    )


def _short(value: Any) -> str:
    """A value as it stands in the name of a folder: `3e-4`, `0.5`, `true`, `64_64`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        plain = repr(value)
        digits = next((text for text in (f"{value:.{n}e}" for n in range(17)) if float(text) == value), plain)
        short = re.sub(r"e([+-])0*(\d+)$", lambda m: f"e{m[1].strip('+')}{m[2]}", digits)
        return short if len(short) < len(plain) else plain
    return re.sub(r"[^\w.-]+", "_", "_".join(map(str, value)) if isinstance(value, list) else str(value))


def _check_mode(top: TopConfig, *, imitates: bool) -> None:
    """Raises where an option is of another mode, or of the other kind of agents, and would be without effect."""
    if top.head and top.head not in HEADS:
        raise ConfigError(f"head={top.head}: must be one of {', '.join(HEADS)}.{suggest(top.head, list(HEADS))}")
    if top.mode != "train":
        return
    if top.checkpoint:
        raise ConfigError(
            f"checkpoint={top.checkpoint}: is for mode=eval; training goes on by the same command line, from its own folder."
        )
    if top.head:
        raise ConfigError(f"head={top.head}: is for mode=eval; in training it is agent.head.")
    if top.dataset != DatasetConfig() and not imitates:
        raise ConfigError(f"{top.dataset.named}: is for agents that imitate, such as agent=leto.")


def _check_planner(registry: Registry, planner: str, agent: Mapping[str, Any]) -> None:
    known = ["auto", *registry.planners]
    if planner not in known:
        raise ConfigError(f"planner={planner}: must be {' | '.join(known)}.{suggest(planner, known)}")
    if not isinstance(agent.get("acting"), Mapping):
        raise ConfigError(f"planner={planner}: agent={agent['name']} has no planner to choose; leave it out.")


def _check_world_model(registry: Registry, agent: str, world: str) -> None:
    if world != "auto" and world not in registry.agents[agent].worlds:
        choosers = ", ".join(name for name, info in registry.agents.items() if info.worlds)
        raise ConfigError(f"world_model={world}: agent={agent} has its own; one can be chosen for {choosers}.")


def _check_obs(registry: Registry, agent: str, obs: str) -> None:
    """Raises where an environment is shown in the other kind of agents' way."""
    if agent in registry.imitators and obs in REWARD_OBS:
        raise ConfigError(f"obs={obs}: agent={agent} imitates, from obs=low_dim, image or pointcloud.")
    if agent not in registry.imitators and obs not in REWARD_OBS:
        raise ConfigError(f"obs={obs}: agent={agent} learns from rewards, from obs={' or '.join(REWARD_OBS)}.")


def _check_pair(registry: Registry, agent: str, env: str, dataset: bool) -> None:
    """Raises where an environment doesn't give what an agent learns from."""
    gives = registry.gives(env)
    there = f"(it gives {', '.join(sorted(gives)) or 'nothing to learn from'})"
    if agent not in registry.imitators and "reward" not in gives:
        raise ConfigError(
            f"agent={agent} learns from rewards; {env} gives none {there}: "
            f"take {rewarding(registry, env)}, or an agent that imitates, such as {registry.imitators[0]}."
        )
    if agent in registry.imitators and "expert" not in gives and not dataset:
        raise ConfigError(
            f"agent={agent} learns from demonstrations; {env} has no scripted expert that makes them {there}: "
            f"give dataset=PATH, or take {DEMONSTRATED_TASK}."
        )


def rewarding(registry: Registry, env: str) -> str:
    """An environment with rewards: the one most like `env` whose task has its task's name in it, else an easy one."""
    task = _letters(env.rpartition("/")[2])
    named = [
        name for name in registry.list_envs() if task in _letters(name.partition("/")[2]) and "reward" in registry.gives(name)
    ]
    shared = {name: sum(1 for a, b in zip(name, env, strict=False) if a == b) for name in named}
    return max(named, key=shared.__getitem__) if named else "dmc/walker-walk"


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
