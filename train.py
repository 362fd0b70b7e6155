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
    from agents.registry import AGENTS, config_class
    from difftop.run.cli import Registry
    from envs import EnvConfig, canonical_name, list_envs

    agents = {name: (config_class(name), entry.summary) for name, entry in AGENTS.items()}
    return Registry(agents, list_envs(), canonical_name, EnvConfig, ROOT / "configs")


def main(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    from agents.registry import make_agent
    from difftop.options import ConfigError
    from difftop.plot import CurveError
    from difftop.run.checkpoint import CheckpointError
    from difftop.run.cli import composed, help_text, register
    from difftop.run.logger import CsvError
    from difftop.run.online import RunError
    from difftop.run.session import Factories, evaluate_checkpoint, train
    from envs import EnvError, RenderError, env_spec, make_vector_env

    logging.basicConfig(format="%(message)s")
    logging.getLogger("difftop").setLevel(logging.INFO)
    registry = make_registry()
    if "--help" in arguments or "-h" in arguments:
        print(help_text(registry), end="")
        return 0
    if any(argument.startswith("-") for argument in arguments):
        register(registry)
        return multirun()
    factories = Factories(make_agent, env_spec, make_vector_env, RenderError)
    try:
        settings = composed(registry, arguments)
        if settings.top.mode == "eval":
            return evaluate_checkpoint(settings, registry, factories, arguments)
        return train(settings, factories)
    except (ConfigError, CheckpointError, RunError, EnvError, CurveError, CsvError) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"error: {what}; the last checkpoint is whole: mend this and run the same command again.", file=sys.stderr)
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
