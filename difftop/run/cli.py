"""The command line: composes the configuration, explains it (`--help`), and turns every mistake into one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from difftop.compare.config import CompareConfig, StatusConfig
from difftop.options import ConfigError, build, defaults, describe, option, suggest
from difftop.run.offline import OfflineConfig
from difftop.run.online import RunConfig
from difftop.run.overrides import prepared


@dataclass(frozen=True)
class TopConfig:
    """Options outside any group."""

    mode: str = option(
        "train",
        "train; eval plays and records a checkpoint; demos writes demonstrations by the task's scripted expert; compare makes a "
        "report of runs, status a table of a sweep (both have options of their own)",
        choices=("train", "eval", "demos", "compare", "status"),
    )
    seed: int = option(1, "of every random stream of the run", low=0)
    name: str = option("auto", "name of the run; auto tells obs, preset, planner and experiment where they aren't the defaults")
    planner: str = option("auto", "optimizer of the action; auto is the agent's own", choices=("auto", "lm", "mppi", "none"))
    device: str = option("auto", "auto takes a CUDA device where there is one", choices=("auto", "cpu", "cuda"))
    precision: str = option("fp32", "of matrix products; bf16 is faster on GPUs and on CPUs with AMX", choices=("fp32", "bf16"))
    threads: int = option(0, "CPU threads; 0 takes every core", low=0)
    checkpoint: str = option("", "mode=eval: a checkpoint or a run folder")
    head: str = option(
        "", "mode=eval, imitation: act by this head in place of the trained one", choices=("", "none", "clip", "qp")
    )
    dataset: str = option(
        "", "imitation: file of demonstrations, RoboMimic's or ManiSkill's; empty makes them by the task's expert"
    )
    episodes: int = option(0, "mode=demos: demonstrations to write; 0 for 50", low=0)
    data: str = option("data", "folder of the demonstrations that are made")
    root: str = option("runs", "folder of all runs")


@dataclass(frozen=True)
class Registry:
    """What can be chosen, handed in because this package knows no agent and no simulator.

    Attributes:
        agents: agent name to its options class and one line about it.
        imitators: the agents that learn from demonstrations; the others learn from rewards.
        envs: environment name to its options class.
        tasks: the environments that imitators act in.
        canonical_env: any accepted spelling of an environment's name to the one in `envs`; `ConfigError` for an unknown one.
        config_dir: folder of the YAML files.
        worlds: agent name to its options class on each world model it can be given; `agents` has the one on its own.
    """

    agents: Mapping[str, tuple[type, str]]
    imitators: Sequence[str]
    envs: Mapping[str, type]
    tasks: Sequence[str]
    canonical_env: Callable[[str], str]
    config_dir: Path
    worlds: Mapping[str, Mapping[str, type]] = field(default_factory=dict)

    def options(self, agent: Mapping[str, Any]) -> type:
        """Options class of an agent given as a plain mapping."""
        return self.worlds.get(agent["name"], {}).get(agent.get("world_model", ""), self.agents[agent["name"]][0])


@dataclass(frozen=True)
class Settings:
    """A composed configuration, checked.

    Attributes:
        top: options outside any group.
        run: of the loop, `RunConfig` or, for imitation, `OfflineConfig`.
        agent: plain mapping, for the agent registry (which checks it).
        env: instance of the environment's class in `Registry.envs`.
        choices: option chosen in each group (`preset`: `cpu`).
    """

    top: TopConfig
    run: Any
    agent: dict[str, Any]
    env: Any
    choices: dict[str, str]

    def plain(self) -> dict[str, Any]:
        """All of it as plain containers, as it is saved."""
        plain = {key: OmegaConf.to_container(OmegaConf.structured(getattr(self, key))) for key in ("top", "run", "env")}
        return plain | {"agent": self.agent, "choices": self.choices}


LOOPS: Mapping[str, type] = {"online": RunConfig, "offline": OfflineConfig}
GROUPS = ("agent", "world_model", "env", "obs", "preset", "experiment")


def register(registry: Registry) -> None:
    """Puts the dataclasses' defaults, and one `env` option per environment, into hydra's store."""
    store = ConfigStore.instance()
    store.store(group="top", name="schema", node=defaults(TopConfig), package="_global_")
    for name, loop in LOOPS.items():
        store.store(group="run", name=name, node=defaults(loop), package="run")
    for name, (config, _) in registry.agents.items():
        store.store(group="agent", name=f"schema_{name}", node=defaults(config), package="agent")
        for world, on_world in registry.worlds.get(name, {}).items():
            store.store(group="agent/schema", name=f"{name}_{world}", node=defaults(on_world), package="agent")
    nodes = {config: defaults(config) for config in dict.fromkeys(registry.envs.values())}  # once, not for each of 170 names
    for name, config in registry.envs.items():
        group, _, task = name.partition("/")
        store.store(group=f"env/{group}", name=task, node=nodes[config] | {"name": name}, package="env")


def composed(registry: Registry, overrides: Sequence[str]) -> Settings:
    """The configuration of `overrides` (`key=value`, `group=option`).

    Raises:
        ConfigError: one sentence that names the override, and what is allowed.
    """
    overrides = prepared(registry, overrides)
    register(registry)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(registry.config_dir), version_base="1.3"):
        try:
            config = compose("config", list(overrides), return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise _explained(registry, error) from error
    choices = {group: str(config.hydra.runtime.choices.get(group)) for group in GROUPS}
    with_hydra = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=False))
    try:
        return checked(registry, {key: value for key, value in with_hydra.items() if key != "hydra"}, choices)
    except ConfigError as error:
        named = [text for text in overrides if text.startswith("agent=")]
        if choices["experiment"] != "None" and named and "unknown option" in str(error):
            what = f"experiment={choices['experiment']}: sets options that {named[0]} hasn't; leave out {named[0]}."
            raise ConfigError(what) from error
        raise


def checked(registry: Registry, plain: Mapping[str, Any], choices: Mapping[str, str]) -> Settings:
    """Settings from plain containers (`top`-level keys beside `run`, `agent`, `env`); raises `ConfigError`."""
    top = build(TopConfig, {key: value for key, value in plain.items() if key not in ("run", "agent", "env")})
    agent = dict(plain["agent"])
    _check_mode(top, imitates=agent["name"] in registry.imitators)
    if top.planner != "auto":
        agent["acting"] = dict(agent["acting"]) | {"planner": top.planner}
    world, known = choices.get("world_model", "auto"), registry.worlds.get(agent["name"], {})
    if world != "auto" and world not in known:
        choosers = ", ".join(name for name, worlds in registry.worlds.items() if worlds)
        raise ConfigError(f"world_model={world}: agent={agent['name']} has its own; one can be chosen for {choosers}.")
    build(registry.options(agent), agent, "agent")
    env = plain["env"]["name"]
    if top.mode != "demos":
        _check_pair(registry, agent["name"], env)
    loop = OfflineConfig if agent["name"] in registry.imitators or top.mode == "demos" else RunConfig
    return Settings(top, build(loop, plain["run"], "run"), agent, build(registry.envs[env], plain["env"], "env"), dict(choices))


def _check_mode(top: TopConfig, *, imitates: bool) -> None:
    """Raises where an option is of another mode, or of the other kind of agents, and would be without effect."""
    if top.mode == "train" and top.checkpoint:
        raise ConfigError(
            f"checkpoint={top.checkpoint}: is for mode=eval; training goes on by the same command line, from its own folder."
        )
    if top.mode == "train" and top.head:
        raise ConfigError(f"head={top.head}: is for mode=eval; in training it is agent.head.")
    if top.mode == "train" and top.dataset and not imitates:
        raise ConfigError(f"dataset={top.dataset}: is for agents that imitate, such as agent=leto.")
    if top.mode == "train" and top.episodes:
        raise ConfigError(f"episodes={top.episodes}: is for mode=demos; training takes run.demos.")


def _check_pair(registry: Registry, agent: str, env: str) -> None:
    """Raises where an agent that imitates meets an environment without demonstrations, or the other way round."""
    if agent in registry.imitators and env not in registry.tasks:
        raise ConfigError(
            f"agent={agent} imitates demonstrations, and env={env} has none: take a task like env=metaworld/button-press-topdown."
        )
    if agent not in registry.imitators and env in registry.tasks:
        raise ConfigError(
            f"agent={agent} learns from rewards, and env={env} is a task of imitation: take agent={'|'.join(registry.imitators)}."
        )


def run_name(settings: Settings) -> str:
    """`top.name`, or a name that tells the groups that aren't at their defaults."""
    if settings.top.name != "auto":
        return settings.top.name
    chosen = settings.choices
    usual = {"obs": ("state", "low_dim"), "preset": ("standard",)}
    parts = [chosen[group] for group in usual if chosen[group] not in usual[group]]
    if chosen["experiment"] != "None":
        parts.append(without_task(chosen["experiment"], str(settings.env.name)))
    if chosen.get("world_model", "auto") != "auto":
        parts.append(f"world_model-{chosen['world_model']}")
    if settings.top.planner != "auto":
        parts.append(f"planner-{settings.top.planner}")
    return "-".join(parts).replace("/", "-") or "default"


def without_task(experiment: str, env: str) -> str:
    """`leto_ph` of `leto_can_ph` on `robomimic/can`: the folder above names the task, and with it in the run's name too a method
    would be another one on each task."""
    family, _, task = env.partition("/")
    words = experiment.split("_")
    ends = [(i, j) for i in range(len(words)) for j in range(i + 1, len(words) + 1) if _plain(words[i:j]) == _plain([task])]
    if not ends:
        return experiment
    i, j = ends[0]
    return "_".join(word for word in words[:i] + words[j:] if word != family) or experiment


def _plain(words: Sequence[str]) -> str:
    return "".join(c for c in "".join(words).lower() if c.isalnum())


def help_text(registry: Registry) -> str:
    """Every group and option, from the dataclasses."""
    families = sorted({name.split("/")[0] for name in registry.envs})
    groups = [("agent", [f"{name:34s} {summary}" for name, (_, summary) in registry.agents.items()])]
    listed = [line for family in families for line in _wrapped(name for name in registry.envs if name.startswith(f"{family}/"))]
    groups.append(("env", listed))
    for group in ("world_model", "obs", "preset", "experiment"):
        groups.append(
            (group, [f"{path.stem:34s} {_comment(path)}" for path in sorted((registry.config_dir / group).glob("*.yaml"))])
        )
    lines = [
        "python train.py [GROUP=OPTION] [KEY=VALUE] ...     one run; the same line again continues it",
        "python train.py -m seed=1,2,3 env=dmc/a,dmc/b      a sweep; hydra/launcher=joblib|submitit_slurm|ray beside",
        "python train.py mode=eval checkpoint=RUN           plays and records a checkpoint",
        "python train.py mode=demos env=SUITE/TASK          demonstrations by the task's scripted expert",
        "python train.py mode=compare runs=RUNS             a report of runs beside published curves",
        "python train.py mode=status root=RUNS              what of a sweep is finished, stopped or missing",
        "python train.py --cfg job                          prints the configuration",
        "",
        "Groups",
    ]
    for group, options in groups:
        lines += [f"  {group}=", *[f"    {line}" for line in options]]
    lines += ["", "Keys"]
    sections: list[tuple[type, str]] = [(TopConfig, ""), *((loop, "run") for loop in LOOPS.values())]
    sections += [(config, "env") for config in dict.fromkeys(registry.envs.values())]
    sections += [(config, "agent") for config, _ in registry.agents.values()]
    sections += [(CompareConfig, ""), (StatusConfig, "")]
    for config, where in sections:
        title = f"agent={build(config, {}).name}" if where == "agent" else _TITLES.get(config.__name__, "top level")
        lines += ["", f"  {title}"]
        lines += [f"    {info.key}={_shown(info.default):<10s} {info.help}" for info in describe(config, where)]
    return "\n".join(lines) + "\n"


_TITLES = {
    "RunConfig": "run, of agents that learn from rewards",
    "OfflineConfig": "run, of agents that imitate",
    "EnvConfig": "env, of agents that learn from rewards",
    "TaskConfig": "env, of agents that imitate",
    "CompareConfig": "mode=compare",
    "StatusConfig": "mode=status",
}


def _shown(value: Any) -> str:
    return "true" if value is True else "false" if value is False else str(value)


def _wrapped(names: Iterable[str], width: int = 120) -> list[str]:
    lines = [""]
    for name in names:
        if len(lines[-1]) + len(name) + 2 > width:
            lines.append("")
        lines[-1] += f"{name}  "
    return lines


def _comment(path: Path) -> str:
    """The YAML file's first comment that isn't a hydra directive."""
    for line in path.read_text().splitlines():
        if line.startswith("# ") and "@package" not in line:
            return line[2:]
    return ""


def _explained(registry: Registry, error: Exception) -> ConfigError:
    """Hydra's and OmegaConf's errors in one sentence."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).partition("/")
        options = sorted(str(o) for o in error.options or [])
        return ConfigError(f"{group}={name}: unknown.{suggest(name, options)} Known: {', '.join(options)}.")
    key = re.search(r"(?:Could not override|Error merging override) '?([^'=\s]+)", text)
    if key:
        known = [info.key for info in _all_keys(registry)]
        return ConfigError(f"{key.group(1)}: unknown option.{suggest(key.group(1), known)} `python train.py --help` lists all.")
    return ConfigError(f"{text.splitlines()[0]}; write KEY=VALUE or GROUP=OPTION. `python train.py --help` lists all.")


def _all_keys(registry: Registry) -> Iterable[Any]:
    yield from describe(TopConfig)
    for loop in LOOPS.values():
        yield from describe(loop, "run")
    for config in dict.fromkeys(registry.envs.values()):
        yield from describe(config, "env")
    for config, _ in registry.agents.values():
        yield from describe(config, "agent")
