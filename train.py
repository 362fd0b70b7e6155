"""The one entry point: `python train.py [OPTION=VALUE ...]`; `python train.py --help` explains every option.

Here the registries of agents and environments meet the library, and every known error becomes one sentence and an exit status.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def guard_packages() -> None:
    """Exits where `agents` or `envs`, common names, are another package's."""
    for name in ("agents", "envs", "difftop"):
        found = importlib.util.find_spec(name)
        where = Path(found.origin).resolve().parent if found and found.origin else None
        if where != ROOT / name:
            sys.exit(
                f"error: `import {name}` finds {where or 'nothing'} instead of {ROOT / name}: another installed package has this name; "
                "give difftop an environment of its own with `make setup`."
            )


def main(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    from agents.registry import AGENTS, config_class, make_agent
    from difftop.options import ConfigError
    from difftop.run.checkpoint import CheckpointError
    from difftop.run.cli import Registry, composed, help_text, register
    from difftop.run.online import RunError
    from difftop.run.session import Factories, evaluate_checkpoint, train
    from envs import EnvConfig, EnvError, canonical_name, env_spec, list_envs, make_vector_env

    agents = {name: (config_class(name), entry.summary) for name, entry in AGENTS.items()}
    registry = Registry(agents, list_envs(), canonical_name, EnvConfig, ROOT / "configs")
    factories = Factories(make_agent, env_spec, make_vector_env)
    if "--help" in arguments or "-h" in arguments:
        print(help_text(registry), end="")
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if any(argument.startswith("-") for argument in arguments):
        register(registry)
        return multirun()
    try:
        settings = composed(registry, arguments)
        if settings.top.mode == "eval":
            return evaluate_checkpoint(settings, registry, factories, arguments)
        return train(settings, factories)
    except (ConfigError, CheckpointError, RunError, EnvError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def multirun() -> int:
    """Sweeps (`-m`) and hydra's own flags (`--cfg job`): hydra calls `main` for every combination."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig

    @hydra.main(config_path="configs", config_name="config", version_base="1.3")
    def job(_: DictConfig) -> int:
        status = main(list(HydraConfig.get().overrides.task))
        if status:
            raise SystemExit(status)
        return status

    job()
    return 0


if __name__ == "__main__":
    guard_packages()
    sys.exit(main(sys.argv[1:]))
