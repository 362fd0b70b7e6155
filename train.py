"""The one entry point: `python train.py [OPTION=VALUE ...]`; `python train.py --help` explains every option.

Here the registries of agents and environments meet the library, and every known error becomes one sentence and an exit status.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from difftop.run.cli import Registry

ROOT = Path(__file__).resolve().parent
STOPPED = 130  # exit status after Ctrl-C or SIGTERM
COMPARISONS = ("compare", "status")  # modes that only read what runs have left; their options are their own


def guard_packages() -> None:
    """Exits where `agents` or `envs`, common names, are another package's."""
    for name in ("agents", "envs", "difftop"):
        found = importlib.util.find_spec(name)
        where = Path(found.origin).resolve().parent if found and found.origin else None
        if where != ROOT / name:
            sys.exit(
                f"error: `import {name}` finds {where or 'nothing'} instead of {ROOT / name}: another installed package has "
                "this name; give difftop an environment of its own with `make setup`."
            )


def make_registry() -> Registry:
    """All agents and environments, and the folder of YAML files."""
    from agents.registry import AGENTS, config_class, names, world_models
    from difftop.run.cli import Registry
    from envs import EnvConfig, canonical_env, list_envs
    from envs.tasks import TaskConfig, list_tasks

    agents = {name: (config_class(name), entry.summary) for name, entry in AGENTS.items()}
    worlds = {name: world_models(name) for name in AGENTS}
    envs: dict[str, type] = dict.fromkeys(list_envs(), EnvConfig) | dict.fromkeys(list_tasks(), TaskConfig)
    return Registry(agents, names("il"), envs, list_tasks(), canonical_env, ROOT / "configs", worlds)


def main(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    from difftop.compare.curves import CompareError
    from difftop.data.demonstrations import DemonstrationError
    from difftop.options import ConfigError
    from difftop.plot import CurveError
    from difftop.run.checkpoint import CheckpointError
    from difftop.run.cli import composed, help_text, register
    from difftop.run.logger import CsvError
    from difftop.run.online import RunError
    from difftop.run.overrides import prepared_sweep
    from envs import EnvError

    logging.basicConfig(format="%(message)s")
    logging.getLogger("difftop").setLevel(logging.INFO)
    logging.getLogger("envs").setLevel(logging.INFO)
    registry = make_registry()
    if "--help" in arguments or "-h" in arguments:
        print(help_text(registry), end="")
        return 0
    try:
        if any(argument.startswith("-") for argument in arguments):
            sys.argv[1:], first = prepared_sweep(registry, arguments)
            composed(registry, first)  # a mistake is said before any job begins
            register(registry)
            return multirun()
        return run(registry, arguments)
    except (ConfigError, CheckpointError, RunError, EnvError, CompareError, CurveError, CsvError, DemonstrationError) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        reads_only = any(f"mode={mode}" in arguments for mode in COMPARISONS)
        whole = "" if reads_only else " the last checkpoint is whole:"
        print(f"error: {what};{whole} mend this and run the same command again.", file=sys.stderr)
    return 2


def run(registry: Registry, arguments: Sequence[str]) -> int:
    """What `mode` says; returns the exit status."""
    from agents.registry import make_agent, make_imitation_agent
    from difftop.compare import compare_command, status_command
    from difftop.options import ConfigError
    from difftop.run.cli import composed
    from difftop.run.imitate import (
        TaskFactories,
        as_saved,
        evaluate_imitation,
        record_demonstrations,
        train_imitation,
    )
    from difftop.run.session import Factories, evaluate_checkpoint, saved_checkpoint, train, with_overrides
    from difftop.run.workers import started_by_torchrun
    from envs import RenderError, env_spec, make_vector_env
    from envs.demos import record
    from envs.errors import WorkerDiedError
    from envs.tasks import recorded_as

    online = Factories(make_agent, env_spec, make_vector_env, RenderError)
    offline = TaskFactories(make_imitation_agent, make_vector_env, record, recorded_as, RenderError, WorkerDiedError)
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if given.get("mode") in COMPARISONS:
        return compare_command(arguments) if given["mode"] == "compare" else status_command(arguments)
    if given.get("mode") == "eval":
        saved = saved_checkpoint(given.get("checkpoint", ""))
        agent, env = f"agent={saved.agent_name}", f"env={saved.config['env']['name']}"
        settings = composed(registry, [*([] if "agent" in given else [agent]), *([] if "env" in given else [env]), *arguments])
        if saved.agent_name in registry.imitators:
            settings = as_saved(saved, settings, registry, arguments)
            return evaluate_imitation(saved, settings, offline, settings.top.head)
        return evaluate_checkpoint(saved, with_overrides(saved, settings, registry, arguments), online)
    settings = composed(registry, arguments)
    if started_by_torchrun() and (settings.top.mode != "train" or settings.agent["name"] not in registry.imitators):
        raise ConfigError("torchrun trains imitation agents only, whose workers share batches; use `python train.py` here.")
    if settings.top.mode == "demos":
        return record_demonstrations(settings, offline)
    if settings.agent["name"] in registry.imitators:
        return train_imitation(settings, offline)
    return train(settings, online)


def multirun() -> int:
    """Sweeps (`-m`) and hydra's own flags (`--cfg job`): hydra calls `main` for every combination."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig

    @hydra.main(config_path="configs", config_name="config", version_base="1.3")
    def job(_: DictConfig) -> int:
        status = main(list(HydraConfig.get().overrides.task))
        if status == STOPPED:
            raise SystemExit(status)
        if status:  # SystemExit would end the jobs that come after it too
            raise RuntimeError(f"exit status {status}: this job failed; the same command runs it again, and no finished one")
        return status

    job()
    return 0


if __name__ == "__main__":
    guard_packages()
    sys.exit(main(sys.argv[1:]))
