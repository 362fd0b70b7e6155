"""`--help`: one screen of what can be chosen, and `--help TOPIC` for the rest, from the dataclasses and the files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from difftop.compare.config import CompareConfig, StatusConfig
from difftop.datasets.convert import ConvertConfig
from difftop.datasets.look import DataConfig
from difftop.options import ConfigError, describe, suggest
from difftop.run.experiments import experiment_names, first_comment, read_experiment
from difftop.run.serve_options import ServeConfig
from difftop.run.settings import LOOPS, MODES, SETTABLE, SETTABLE_OF_IMITATION, Registry, TopConfig

WIDTH = 120
_INDENT = 13
_WORLD = "world_model"
_MODE_OPTIONS: Mapping[str, type] = {
    "compare": CompareConfig,
    "status": StatusConfig,
    "data": DataConfig,
    "convert": ConvertConfig,
    "serve": ServeConfig,
}
_LOOP_TITLES = {"online": "run, of agents that learn from rewards", "offline": "run, of agents that learn from demonstrations"}
_NOT_IN_FILES = {  # options of groups that have no file, because they set nothing
    "preset": {"standard": "sizes of the papers"},
    _WORLD: {"auto": "the agent's own"},
}
_FIRST = ("state", "pixels", "low_dim")  # of observations, the usual ones
# What people change. Of two loops that have an option of the same name, the help is that of the first.
_USUAL = (
    "seed", "name", "device", "threads", "planner", "dataset.path", "run.frames", "run.grad_steps", "run.demos",
    "env.action_repeat",
)  # fmt: skip


def help_text(registry: Registry, arguments: Sequence[str] = ()) -> str:
    """One screen; or what the topics among `arguments` (`agent=leto`, `run`, `mode=compare`) have.

    Raises:
        ConfigError: an unknown topic.
    """
    words = [text for text in arguments if text not in ("--help", "-h")]
    if not words:
        return "\n".join(_screen(registry)) + "\n"
    world = next((text.partition("=")[2] for text in words if text.startswith(f"{_WORLD}=")), "auto")
    named = [text for text in words if not (text.startswith(f"{_WORLD}=") and any(w.startswith("agent=") for w in words))]
    return "\n".join("\n".join(_topic(registry, text, world)) + "\n" for text in named)


def envs_text(registry: Registry) -> str:
    """All environments by suite, those that give the same together."""
    return "\n".join(_envs(registry)) + "\n"


def _screen(registry: Registry) -> Iterator[str]:
    yield "python train.py [GROUP=CHOICE] [OPTION=VALUE] ...   the same line again continues a stopped run"
    yield "python train.py -m seed=1,2,3 env=dmc/a,dmc/b ...   a sweep; --cfg job prints the configuration instead of running it"
    yield ""
    yield from _rows("mode=", [(name, what) for name, what in MODES.items()])
    yield ""
    agents = [(name, f"{info.summary}{_from(info.learns_from)}") for name, info in registry.agents.items()]
    yield from _rows("agent=", agents)
    yield ""
    yield from _wrapped("env=", [f"{tasks[0]} ({len(tasks)})" for tasks in _suites(registry).values()] + ["(number of tasks)"])
    choices = {group: [name for name, _ in _choices(registry, group)] for group in ("preset", _WORLD)}
    # cpu_image and cpu_pointcloud are what preset=cpu stands for in imitation
    others = [f"{group}= {' '.join(name for name in names if '_' not in name)}" for group, names in choices.items()]
    yield from _wrapped("obs=", [*(name for name, _ in _choices(registry, "obs")), *(f"  {text}" for text in others)])
    yield from _wrapped("experiment=", experiment_names(registry.config_dir))
    yield ""
    of_rewards = [*describe(TopConfig), *describe(LOOPS["online"], "run"), *describe(registry.env_config, "env")]
    known = {info.key: (info, "imitation: ") for info in describe(LOOPS["offline"], "run")}
    known |= {info.key: (info, "") for info in of_rewards}
    for key in _USUAL:
        info, who = known[key]
        yield _cut(f"{f'{key}={_shown(info.default)}':24s}  {who}{info.help.partition(' [')[0]}")
    yield "More, with units and ranges: --help agent=NAME | env | envs | run | options | mode=NAME | experiment | preset | obs"


def _from(learns_from: str) -> str:
    return "" if learns_from == "rewards" else f" (from {learns_from})"


def _topic(registry: Registry, text: str, world: str) -> Iterator[str]:
    group, _, name = text.partition("=")
    topics: dict[str, Callable[[], Iterable[str]]] = {
        "agent": lambda: _agent(registry, name, world) if name else _rows("agent=", _choices(registry, "agent")),
        "env": lambda: _env(registry, name),
        "envs": lambda: _envs(registry),
        "run": lambda: (line for loop, title in _LOOP_TITLES.items() for line in [title, *_options(LOOPS[loop], "run"), ""]),
        "options": lambda: ["outside any group", *_options(TopConfig, "", {"planner": ["auto", *registry.planners]})],
        "mode": lambda: _mode(name),
        "experiment": lambda: _experiment(registry, name) if name else _rows("experiment=", _choices(registry, "experiment")),
    }
    for choices in ("preset", "obs", _WORLD):
        topics[choices] = lambda choices=choices: _rows(f"{choices}=", _choices(registry, choices))  # type: ignore[misc]
    if group not in topics:
        raise ConfigError(f"--help {text}: unknown topic.{suggest(group, list(topics))} Topics: {', '.join(topics)}.")
    yield from topics[group]()


def _agent(registry: Registry, name: str, world: str) -> Iterator[str]:
    config = registry.options({"name": name, "world_model": world})
    yield f"agent={name}: {registry.agents[name].summary}; learns from {registry.agents[name].learns_from}"
    yield from _options(config, "agent")
    worlds = [other for other in registry.agents[name].worlds if other != "auto"]
    if worlds:
        yield f"It can be given another world model: --help agent={name} world_model={'|'.join(worlds)}"


def _env(registry: Registry, name: str) -> Iterator[str]:
    if name:
        env = registry.canonical_env(name)
        yield f"env={env}: gives {', '.join(sorted(registry.gives(env))) or 'nothing to learn from'}"
    yield from ["env, of every suite", *_options(registry.env_config, "env")]
    yield "All environments: --help envs"


def _envs(registry: Registry) -> Iterator[str]:
    for tasks in _suites(registry).values():
        by_gives: dict[str, list[str]] = {}
        for name in tasks:
            by_gives.setdefault(", ".join(sorted(registry.gives(name))) or "nothing to learn from", []).append(name)
        for gives, names in by_gives.items():
            yield f"{names[0].partition('/')[0]}: {len(names)}, each gives {gives}"
            yield from _wrapped("", names, indent=2)


def _mode(name: str) -> Iterator[str]:
    if not name:
        yield from _rows("mode=", list(MODES.items()))
        return
    if name not in MODES:
        raise ConfigError(f"mode={name}: must be {' | '.join(MODES)}.{suggest(name, list(MODES))}")
    yield f"mode={name}: {MODES[name]}"
    if name in _MODE_OPTIONS:
        yield from _options(_MODE_OPTIONS[name], "")
    elif name in SETTABLE:
        yield "Agent, env and their options are those of checkpoint=FOLDER, of a run or of one checkpoint. A command line may set"
        yield from _wrapped("  ", [f"{key}=" for key in ("planner", "seed", "device", *sorted(SETTABLE[name]))])
        if name == "eval":
            yield from _wrapped("  of imitation also ", [f"{key}=" for key in ("head", *sorted(SETTABLE_OF_IMITATION))])
        yield "What they mean: --help options | env | run"
    else:
        yield "Its options: --help options | agent=NAME | env | run"


def _experiment(registry: Registry, name: str) -> Iterator[str]:
    experiment = read_experiment(registry.config_dir, name)
    yield from _told(f"experiment={name}: ", experiment.summary, len(name) + 13)
    yield from _wrapped("  chooses ", [f"{group}={option}" for group, option in experiment.groups.items()])
    width = max((len(pattern) for pattern in experiment.tasks), default=0)
    for pattern, differs in experiment.tasks.items():
        yield from _told(f"  env={pattern}", _flow(differs), width + 8)
    if experiment.tasks:
        yield "  another env: " + ("is refused" if experiment.elsewhere == "refuse" else "the general settings")
    yield f"  configs/experiment/{name}.yaml has the rest"


def _flow(values: Any) -> str:
    if not isinstance(values, Mapping):
        return str(values)
    inner = {key: f"{{{_flow(value)}}}" if isinstance(value, Mapping) else str(value) for key, value in values.items()}
    return ", ".join(f"{key}: {value}" for key, value in inner.items())


def _choices(registry: Registry, group: str) -> list[tuple[str, str]]:
    """Choices of a group and one line about each."""
    if group == "agent":
        return [(name, f"{info.summary}{_from(info.learns_from)}") for name, info in registry.agents.items()]
    chosen = dict(_NOT_IN_FILES.get(group, {}))
    if group == _WORLD:
        own = {name: f"the same, of agent={name}" for info in registry.agents.values() for name in info.worlds if name != "auto"}
        chosen |= own
    chosen |= {path.stem: first_comment(path) for path in sorted((registry.config_dir / group).glob("*.yaml"))}
    return sorted(chosen.items(), key=lambda choice: _FIRST.index(choice[0]) if choice[0] in _FIRST else len(_FIRST))


def _suites(registry: Registry) -> dict[str, list[str]]:
    suites: dict[str, list[str]] = {}
    for name in registry.list_envs():
        suites.setdefault(name.partition("/")[0], []).append(name)
    return suites


def _options(config: type, where: str, choices: Mapping[str, Sequence[str]] | None = None) -> Iterator[str]:
    """All options of a dataclass, with what they are and which values they take."""
    for info in describe(config, where):
        told = info.help + (f" [{' | '.join(choices[info.key])}]" if choices and info.key in choices else "")
        yield from _told(f"  {info.key}={_shown(info.default)}", told)


def _told(key: str, told: str, column: int = 44) -> Iterator[str]:
    """`told` beside `key`, on as many lines as it takes; a range `[>= 0, <= 1]` stays in one."""
    lines = [""]
    for word in re.findall(r"\[[^]]{,40}\]\S*|\S+", told):
        if len(lines[-1]) + len(word) + 1 > WIDTH - column:
            lines.append("")
        lines[-1] += f"{word} "
    if len(key) > column:
        yield key.rstrip()
        key = ""
    for line in lines:
        yield f"{key:{column}s}{line}".rstrip()
        key = ""


def _rows(group: str, rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    width = max(len(name) for name, _ in rows)
    for name, what in rows:
        yield from _told(f"{group:{_INDENT}s}{name:{width}s}  ", what, _INDENT + width + 2)
        group = ""


def _wrapped(group: str, names: Sequence[str], indent: int = _INDENT) -> Iterator[str]:
    line = f"{group:{indent}s}"
    for name in names:
        if len(line) + len(name) > WIDTH:
            yield line.rstrip()
            line = " " * indent
        line += f"{name}  "
    yield line.rstrip()


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 3].rstrip(' ,;:')}..."


def _shown(value: Any) -> str:
    return "true" if value is True else "false" if value is False else str(value)
