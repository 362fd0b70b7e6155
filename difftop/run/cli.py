"""The command line: composes the configuration, and turns every mistake into one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from difftop.options import ConfigError, defaults, describe, suggest
from difftop.run.experiments import TABLE_KEYS, as_named_now, experiment_names, read_experiment
from difftop.run.overrides import default_env, prepared
from difftop.run.settings import GROUPS, LOOPS, AgentInfo, Registry, Settings, TopConfig, checked, run_name

__all__ = ["AgentInfo", "Registry", "Settings", "TopConfig", "checked", "composed", "register", "run_name"]


def composed(registry: Registry, overrides: Sequence[str]) -> Settings:
    """The configuration of `overrides` (`key=value`, `group=option`).

    Raises:
        ConfigError: one sentence that names the override, and what is allowed.
    """
    given, overrides = overrides, prepared(registry, overrides)
    register(registry, overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(registry.config_dir.resolve()), version_base="1.3"):
            config = compose("config", list(overrides), return_hydra_config=True)
        choices = {group: str(config.hydra.runtime.choices.get(group)) for group in GROUPS}
        whole = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=False))
        return checked(registry, {key: value for key, value in whole.items() if key not in ("hydra", *TABLE_KEYS)}, choices)
    except (HydraException, OmegaConfBaseException) as error:
        explained = _explained(registry, error, overrides)
        raise _of_experiment(explained, given) from error
    except ConfigError as error:
        raise _of_experiment(error, given) from error


def register(registry: Registry, arguments: Sequence[str] = ()) -> None:
    """Puts the dataclasses' defaults into hydra's store, and the environments and the experiments' former names that `arguments`
    name: what environments there are is not all known ahead."""
    store = ConfigStore.instance()
    store.store(group="top", name="schema", node=_node(TopConfig), package="_global_")
    for name, loop in LOOPS.items():
        store.store(group="run", name=name, node=_node(loop), package="run")
    _unless_file(registry, store, "preset", "standard", {}, "_global_")
    values = {key: text.split(",") for key, equals, text in (word.partition("=") for word in arguments) if equals}
    of_experiments = _register_experiments(registry, store, values.get("experiment", []))
    _register_agents(registry, store)
    node = _node(registry.env_config)
    envs = [default_env(registry), *values.get("env", []), *(groups.get("env") for groups in of_experiments)]
    for env in [env for env in dict.fromkeys(envs) if env]:
        suite, _, task = env.rpartition("/")
        store.store(group=f"env/{suite}" if suite else "env", name=task, node=node | {"name": env}, package="env")


_node = cache(defaults)  # hydra's store copies what it is given


def _register_agents(registry: Registry, store: ConfigStore) -> None:
    """Each agent's options as `agent/NAME`, unless a file of that name holds differences from them (`agent/schema/NAME`)."""
    for name, info in registry.agents.items():  # all: before the first job of a sweep, hydra composes the defaults
        store.store(group="agent/schema", name=name, node=_node(info.config), package="agent")
        node: dict[str, Any] = {"defaults": [f"schema/{name}"]}
        if info.worlds:
            node = {"defaults": [{"schema@_here_": f"{name}_${{world_model}}"}]}
        _unless_file(registry, store, "agent", name, node, "agent")
        for world, on_world in info.worlds.items():
            store.store(group="agent/schema", name=f"{name}_{world}", node=_node(on_world), package="agent")
    for world in {"auto", *(world for info in registry.agents.values() for world in info.worlds)}:
        _unless_file(registry, store, "world_model", world, {}, "_global_")


def _unless_file(registry: Registry, store: ConfigStore, group: str, name: str, node: dict[str, Any], package: str) -> None:
    """Registers a choice of which the folder has no file, because there is nothing to be said of it but its name."""
    if not (registry.config_dir / group / f"{name}.yaml").exists():
        store.store(group=group, name=name, node=node, package=package)


def _register_experiments(registry: Registry, store: ConfigStore, names: Iterable[str]) -> list[Mapping[str, str]]:
    """In a sweep, former names of experiments as what they choose now; each job reads them anew. Returns what they all choose."""
    known = experiment_names(registry.config_dir)
    chosen = []
    for name in names:
        now = as_named_now(name) if name not in known else []
        new = next((word.partition("=")[2] for word in now if word.startswith("experiment=")), name)
        if new not in known:
            continue
        groups = read_experiment(registry.config_dir, new).groups
        chosen.append(groups)
        if now:
            choices = [{f"override /{group}": option} for group, option in groups.items()]
            store.store(group="experiment", name=name, node={"defaults": choices}, package="_global_")
    return chosen


def _of_experiment(error: ConfigError, given: Sequence[str]) -> ConfigError:
    """The error; or, where an agent is named beside an experiment whose options it hasn't, one that says so."""
    words = {text.partition("=")[0]: text for text in given}
    key = str(error).partition(":")[0]
    foreign = "unknown option" in str(error) or "has its own" in str(error)
    if "experiment" in words and "agent" in words and foreign and key.partition("=")[0] not in words:
        return ConfigError(f"{words['experiment']}: sets options that {words['agent']} hasn't; leave out {words['agent']}.")
    return error


def _explained(registry: Registry, error: Exception, overrides: Sequence[str]) -> ConfigError:
    """Hydra's and OmegaConf's errors in one sentence."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).partition("/")
        options = sorted(str(o) for o in error.options or [])
        return ConfigError(f"{group}={name}: unknown.{suggest(name, options)} Known: {', '.join(options)}.")
    key = re.search(r"(?:Could not override|Error merging override) '?([^'=\s]+)", text)
    if key:
        words = {word.partition("=")[0]: word.partition("=")[2] for word in overrides}
        known = [info.key for info in _all_keys(registry, words.get("agent", ""))]
        topic = key.group(1).partition(".")[0]
        more = f"agent={words.get('agent', 'NAME')}" if topic == "agent" else topic if topic in ("run", "env") else "options"
        if key.group(1) in known:
            return ConfigError(f"{key.group(1)}: is an option of {_owners(registry, key.group(1))}; leave it out, or set agent=.")
        hint = suggest(key.group(1), known)
        return ConfigError(f"{key.group(1)}: unknown option.{hint} `python train.py --help {more}` lists all.")
    return ConfigError(f"{text.splitlines()[0]}; write KEY=VALUE or GROUP=OPTION. `python train.py --help` explains.")


def _owners(registry: Registry, key: str) -> str:
    """Whose option a known key is, where it isn't the run's."""
    kinds = {"online": "agents that learn from rewards", "offline": "agents that imitate"}
    loops = [kinds[name] for name, loop in LOOPS.items() if key in [info.key for info in describe(loop, "run")]]
    agents = [name for name, info in registry.agents.items() if key in [option.key for option in describe(info.config, "agent")]]
    return ", ".join(loops or [f"agent={name}" for name in agents])


def _all_keys(registry: Registry, agent: str) -> Iterable[Any]:
    """Options of every group; of one agent where it is named."""
    yield from describe(TopConfig)
    for loop in LOOPS.values():
        yield from describe(loop, "run")
    yield from describe(registry.env_config, "env")
    for info in [registry.agents[agent]] if agent in registry.agents else registry.agents.values():
        yield from describe(info.config, "agent")
