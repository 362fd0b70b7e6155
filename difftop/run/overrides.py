"""What a command line says, read before hydra sees it: names made canonical, what an experiment sets for its task put in front,
mistakes turned into one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from difftop.data.files import recorded_env
from difftop.options import ConfigError, defaults, suggest
from difftop.run.experiments import TABLE_KEYS, Experiment, as_named_now, experiment_names, read_experiment
from difftop.run.gone import check_not_gone
from difftop.run.settings import DEMONSTRATED_TASK, GROUPS, NO_SIMULATOR, Registry

_PATHS = ("checkpoint", "dataset", "data", "root", "agent.base_checkpoint")  # a path is taken as it is, whatever is in it
_NEW_KEYS = {"dataset": "dataset.path", "run.filter_key": "dataset.filter"}
_CPU_OBS = ("image", "pointcloud")  # of which imitation has a preset cpu_...
_IN_FOLDER = {*GROUPS, "env.name", "planner", "seed", "root", "name", "run"}  # two of these have two folders


def prepared(registry: Registry, overrides: Sequence[str]) -> list[str]:
    """The overrides as hydra takes them: what is usual for imitation, what the experiment sets for the task, what is given.

    Raises:
        ConfigError: one sentence that names the override.
    """
    given = _in_new_names(registry, [_known(registry, _readable(_renamed(text))) for text in overrides])
    words = _words(given)
    experiment = chosen_experiment(registry, words)
    groups = experiment.groups if experiment else {}
    agent = words.get("agent", groups.get("agent", ""))
    _check_agent(registry, experiment, agent)
    demos = words.get("mode") == "demos"
    if demos or agent in registry.imitators:
        obs = words.get("obs", groups.get("obs", "low_dim"))
        given = [_preset_of_imitation(text, obs, "mode=demos" if demos else f"agent={agent}") for text in given]
    elif words.get("preset") in [f"cpu_{seen}" for seen in _CPU_OBS]:
        raise ConfigError(f"preset={words['preset']}: has sizes of agents that imitate; agents that learn from rewards take cpu.")
    check_not_gone(overrides, offline=demos or agent in registry.imitators)
    if demos:
        _check_has_expert(registry, words.get("env", groups.get("env", "")))
    usual = usual_of_imitation(registry, [agent], demos=demos)
    usual |= _usual_of_dataset(registry, words, groups) if agent in registry.imitators and not demos else {}
    usual = {key: value for key, value in usual.items() if key not in words and key not in groups}
    env = words.get("env") or groups.get("env") or usual.get("env") or default_env(registry)
    obs = words.get("obs") or groups.get("obs") or usual.get("obs", "")
    differs = experiment.differences(env, obs) if experiment else []
    differs = [text for text in differs if text.partition("=")[0] not in words]
    return [*(f"{key}={value}" for key, value in usual.items()), *differs, *given]


def prepared_sweep(registry: Registry, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments that hydra itself reads (`-m`, `--cfg job`), and the overrides of the first job, to be checked before any begins.

    Each job of a sweep prepares its own overrides, so here names are made canonical only. Values that hydra expands by functions
    (`seed=range(1,4)`) are left to it, and are not in the first job's overrides.
    """
    if not {"-m", "--multirun"} & set(arguments):
        return _not_run(registry, arguments)
    whole, first = [], []
    values: dict[str, list[str]] = {}
    for text in arguments:
        key, equals, _ = text.partition("=")
        expanded = _expanded(text) if equals and not text.startswith("-") else None
        if expanded is None:
            whole.append(_renamed(text))
            first += [whole[-1]] if key == "dataset" else []
            continue
        jobs = [_known(registry, _readable(_renamed(f"{key}={value}"))) for value in expanded]
        key = jobs[0].partition("=")[0]
        values[key] = [job.partition("=")[2] for job in jobs]
        whole.append(f"{key}={','.join(values[key])}")
        if not key.startswith("hydra"):
            first.append(jobs[0])
    return [*whole, *_usual_of_sweep(registry, values), *_told(arguments)], first


def given_path(arguments: Sequence[str], key: str) -> str:
    """The path that an argument `key=PATH` names, as it is or quoted as hydra's sweeps quote it; empty where there is none."""
    texts = [text for text in arguments if text.partition("=")[0] == key]
    return str(_parsed(_literal(texts[-1]), "=").value() or "") if texts else ""


def usual_of_imitation(registry: Registry, agents: Sequence[str], *, demos: bool) -> dict[str, str]:
    """Choices of groups that all these agents take where none is given; `demos`: no agent is needed, but a task is.

    Raises:
        ConfigError: agents of both kinds.
    """
    imitating = [name in registry.imitators for name in agents]
    if demos:
        return {"run": "offline", "obs": "low_dim", "agent": next(iter(registry.imitators))}
    if not any(imitating):
        return {}
    if not all(imitating):
        raise ConfigError(
            f"agent={','.join(agents)}: some of these imitate and some learn from rewards; sweep over one kind at a time."
        )
    return {"run": "offline", "obs": "low_dim", "env": DEMONSTRATED_TASK}


def chosen_experiment(registry: Registry, words: Mapping[str, str]) -> Experiment | None:
    """The experiment that the words name, None for none."""
    name = words.get("experiment", "null")
    return None if name == "null" else read_experiment(registry.config_dir, name)


def default_env(registry: Registry) -> str:
    """The environment where none is named."""
    return str(defaults(registry.env_config)["name"])


def _not_run(registry: Registry, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Of hydra's own flags that print: arguments with the whole configuration of the run, without the experiment's table."""
    flags = [text for text in arguments if text.startswith(("-", "hydra")) or "=" not in text]
    given = prepared(registry, [text for text in arguments if text not in flags])
    experiment = chosen_experiment(registry, _words(given))
    written = (registry.config_dir / "experiment" / f"{experiment.name}.yaml").read_text() if experiment else ""
    table = [f"~{key}" for key in TABLE_KEYS if re.search(f"^{key}:", written, re.MULTILINE)]
    return [*flags, *given, *table], given


def _usual_of_sweep(registry: Registry, values: Mapping[str, Sequence[str]]) -> list[str]:
    """The loop that all jobs of a sweep run in, without which hydra doesn't know their options."""
    demos = values.get("mode") == ["demos"]
    agents = list(values.get("agent", []))
    if not agents:
        names = [name for name in values.get("experiment", []) if name != "null"]
        now = [_words(as_named_now(name)).get("experiment", name) for name in names]
        experiments = [read_experiment(registry.config_dir, name) for name in now]
        agents = [experiment.groups.get("agent", "") for experiment in experiments]
    usual = usual_of_imitation(registry, agents, demos=demos)
    if usual:
        for preset, obs in product(values.get("preset", []), values.get("obs", ["low_dim"])):
            _preset_of_imitation(f"preset={preset}", obs, "mode=demos" if demos else f"agent={','.join(agents)}")
    return [f"run={usual['run']}"] if usual and "run" not in values else []


def _told(arguments: Sequence[str]) -> list[str]:
    """The override that makes the runs of a sweep differ in name by what is swept; none where folders differ anyway."""
    mode = [text for text in arguments if text.startswith(("mode=", "swept="))]
    keys = [_NEW_KEYS.get(key, key) for key in map(_swept_key, arguments)]
    swept = [key for key in keys if key and key not in _IN_FOLDER and not key.startswith("hydra")]
    return [f"swept=[{','.join(swept)}]"] if swept and mode in ([], ["mode=train"]) else []


def _swept_key(text: str) -> str:
    """The option that an argument gives several values; empty for other arguments."""
    key, equals, _ = text.partition("=")
    if not equals or text.startswith("-"):
        return ""
    values = _expanded(text)
    if values is None:
        try:
            return key.lstrip("+") if OverridesParser.create().parse_override(text).is_sweep_override() else ""
        except HydraException:
            return ""
    return key.lstrip("+") if len(values) > 1 else ""


def _expanded(text: str) -> list[str] | None:
    """The values of an override in a sweep; None where they are left to hydra."""
    key, _, value = text.partition("=")
    if not any(c in value for c in "([{'\""):
        return value.split(",")
    if key not in ("env", "agent", "experiment"):
        return None
    try:
        override = OverridesParser.create().parse_override(text)
        return list(override.sweep_string_iterator()) if override.is_sweep_override() else None
    except HydraException:
        return None


def _in_new_names(registry: Registry, given: Sequence[str]) -> list[str]:
    """The overrides, with what an experiment's name of before stands for in its place."""
    words = _words(given)
    name = words.get("experiment", "null")
    if name == "null" or name in experiment_names(registry.config_dir):
        return list(given)
    now = as_named_now(name)
    if not now:
        return list(given)
    stands_for = _words(now)
    try:
        env = registry.canonical_env(stands_for["env"])
    except ConfigError as error:
        raise ConfigError(f"experiment={name}: a name of before, for {' '.join(now)}; {error}") from error
    if words.get("env", env) != env:
        raise ConfigError(
            f"experiment={name}: is of env={env}, and env={words['env']} is given; write experiment={stands_for['experiment']} "
            f"env={words['env']}."
        )
    stands_for = {key: value for key, value in (stands_for | {"env": env}).items() if key == "experiment" or key not in words}
    return [*(f"{key}={value}" for key, value in stands_for.items()), *(t for t in given if not t.startswith("experiment="))]


def _check_agent(registry: Registry, experiment: Experiment | None, agent: str) -> None:
    own = experiment.groups.get("agent", agent) if experiment else agent
    if experiment and (own in registry.imitators) != (agent in registry.imitators):
        raise ConfigError(f"experiment={experiment.name}: is of agent={own}; leave out agent={agent}.")


def _preset_of_imitation(text: str, obs: str, who: str) -> str:
    """The override; of preset=cpu the preset for what is seen, since images and clouds need other networks than vectors."""
    key, _, preset = text.partition("=")
    if key != "preset" or preset in ("standard", f"cpu_{obs}"):
        return text
    if preset == "cpu" and obs in _CPU_OBS:
        return f"preset=cpu_{obs}"
    raise ConfigError(
        f"{text}: {who} takes preset=cpu with obs={' or obs='.join(_CPU_OBS)} only; its defaults for vectors are sizes for a CPU."
    )


def _check_has_expert(registry: Registry, env: str) -> None:
    if not env:
        raise ConfigError(f"mode=demos: of which task? Add env=TASK, such as env={DEMONSTRATED_TASK}.")
    if "expert" not in registry.gives(env):
        raise ConfigError(
            f"env={env}: has no scripted expert, so no demonstrations; take a task such as env={DEMONSTRATED_TASK}."
        )


def _usual_of_dataset(registry: Registry, words: Mapping[str, str], groups: Mapping[str, str]) -> dict[str, str]:
    """The environment that a data set was recorded in, where none is named; one without a simulator isn't evaluated in."""
    if "dataset.path" not in words or "env" in groups:
        return {}
    name = words.get("env") or _env_of_dataset(registry, words["dataset.path"])
    unseen = {"run.select_episodes": "0", "run.eval_episodes": "0"} if name.startswith(f"{NO_SIMULATOR}/") else {}
    return {"env": name, **unseen}


def _env_of_dataset(registry: Registry, text: str) -> str:
    """Canonical name of the environment of the first of the paths that an override `dataset.path=` has."""
    paths = _parsed(f"dataset.path={text}", "=").value()
    path = Path(str(paths[0] if isinstance(paths, list) else paths)).expanduser()
    return registry.env_of(recorded_env(path), path.stem)


def _renamed(text: str) -> str:
    """The override with the option's name of now, and with `dataset=PATH` or `dataset=[A,B]` as the list that it means."""
    key, equals, value = text.partition("=")
    if not equals or key not in _NEW_KEYS:
        return _literal(text)
    if key != "dataset":
        return _literal(f"{_NEW_KEYS[key]}={value}")
    several = value.startswith("[") and value.endswith("]") and not Path(value).exists()
    paths = value[1:-1].split(",") if several else [value]
    quoted = [_literal(f"dataset={path.strip()}").partition("=")[2] for path in paths if path.strip()]
    return f"dataset.path=[{','.join(quoted)}]"


def _literal(text: str) -> str:
    """The override of a path in quotes, where the path has a character that hydra would read (`=`, `,`, a bracket)."""
    key, _, value = text.partition("=")
    if key not in _PATHS or value[:1] in ("'", '"') or re.fullmatch(r"[\w./+-]*", value):
        return text
    quoted = re.sub(r"(\\*)'", r"\1\1\'", value)
    return f"{key}='{quoted}'"


def _readable(text: str) -> str:
    """The override, with a whole number in place of `1e5`; raises where hydra can't read it, or reads several values."""
    if text.startswith("~"):
        raise ConfigError(f"{text}: nothing can be taken out of the configuration; set an option to another value.")
    key, equals, value = text.partition("=")
    if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE]\+?\d+", value) and float(value).is_integer():
        text = f"{key}={int(float(value))}"
    if _parsed(text, equals).is_sweep_override():
        raise ConfigError(f"{text}: several values are a sweep; add -m.")
    return text


def _parsed(text: str, equals: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        quoted = f" Blanks and brackets need quotes inside the shell's: '{text.partition('=')[0]}=\"{text.partition('=')[2]}\"'."
        raise ConfigError(f"{text}: can't be read; write KEY=VALUE or GROUP=OPTION.{quoted if equals else ''}") from error


def _known(registry: Registry, text: str) -> str:
    """The override, with the canonical name of an environment; hydra's own message for an unknown one lists a folder of files."""
    name, _, value = text.partition("=")
    if name in ("env", "env.name"):
        return f"env={registry.canonical_env(value)}"
    if name == "agent" and value not in registry.agents:
        raise ConfigError(f"agent={value}: unknown.{suggest(value, list(registry.agents))} Known: {', '.join(registry.agents)}.")
    return text


def _words(overrides: Sequence[str]) -> dict[str, str]:
    return {text.partition("=")[0]: text.partition("=")[2] for text in overrides}
