"""The command line: `difftop ...` where it is installed, `python train.py ...` in a checkout; `--help` explains it.

Here the registries of agents and environments meet the library, and every known error becomes one sentence and an exit status.
`agents` and `envs` are imported by name, when they are needed: nothing in `difftop` depends on them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from difftop.data.exchange import Reader
    from difftop.datasets.convert import ConvertConfig
    from difftop.run.cli import Registry
    from difftop.run.session import Factories, RunEnd

# What `pip install .` brings, by the names that are imported.
REQUIRED = {
    "torch",
    "numpy",
    "gymnasium",
    "hydra",
    "omegaconf",
    "tensorboard",
    "matplotlib",
    "imageio_ffmpeg",
    "safetensors",
    "h5py",
}
_READERS = ("compare", "status", "envs", "data", "convert", "serve")  # modes that only read; their options are their own


def run_command() -> None:
    """Entry point of the `difftop` command and of train.py; says in one sentence where this Python lacks a required package."""
    try:
        status = main(sys.argv[1:])
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in REQUIRED:
            raise
        sys.stderr.write(
            f"error: {sys.executable} has no package '{package}', which difftop needs: `make setup` makes an environment with "
            "all of them (then `. .venv/bin/activate`), `pip install .` adds them to this one; docs/install.md has the rest.\n"
        )
        status = 2
    sys.exit(status)


def make_registry() -> Registry:
    """All agents and environments, and the folder of YAML files."""
    from difftop.run.config_folder import config_folder
    from difftop.run.settings import AgentInfo, Registry

    agents, envs = import_module("agents.registry"), import_module("envs")
    known = {
        name: AgentInfo(agents.config_class(name), entry.summary, entry.learns_from, agents.world_models(name))
        for name, entry in agents.AGENTS.items()
    }
    return Registry(
        agents=known,
        env_config=envs.EnvConfig,
        list_envs=envs.list_envs,
        canonical_env=envs.canonical_name,
        gives=envs.gives,
        env_of=envs.env_of,
        planners=tuple(import_module("agents.latent.planners").PLANNERS),
        config_dir=config_folder(),
    )


def make_factories(*, spawns: bool = True) -> Factories:
    """What the loops make agents and environments by; `spawns` is theirs."""
    from difftop.run.session import Factories

    agents, envs = import_module("agents.registry"), import_module("envs")
    return Factories(
        agent=agents.make_agent,
        envs=envs.make_vector_env,
        record=envs.record,
        recorded_as=envs.recorded_as,
        recorded_name=envs.recorded_name,
        render_error=envs.RenderError,
        died=envs.WorkerDiedError,
        spawns=spawns,
    )


def known_errors() -> tuple[type[Exception], ...]:
    """Errors whose message is all that a user needs."""
    from difftop.capture import CaptureError
    from difftop.compare.curves import CompareError
    from difftop.data.demonstrations import DemonstrationError
    from difftop.options import ConfigError
    from difftop.plot import CurveError
    from difftop.run.checkpoint import CheckpointError
    from difftop.run.logger import CsvError
    from difftop.run.online import RunError
    from difftop.run.workers import WorkerLostError

    env_error: type[Exception] = import_module("envs").EnvError
    of_runs = (CheckpointError, RunError, WorkerLostError, CsvError, DemonstrationError)
    return (ConfigError, CaptureError, CompareError, CurveError, *of_runs, env_error)


def main(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("difftop").setLevel(logging.INFO)
    logging.getLogger("envs").setLevel(logging.INFO)
    try:
        mode = dict(argument.partition("=")[::2] for argument in arguments).get("mode", "")
        if mode in _READERS and not {"--help", "-h", "-m", "--multirun"} & set(arguments):
            _read(mode, arguments)  # which needs no registry, nor torch, and may have flags of its own
            return 0
        from difftop.run.cli import composed, register
        from difftop.run.help import help_text
        from difftop.run.overrides import prepared_sweep

        registry = make_registry()
        if "--help" in arguments or "-h" in arguments:
            sys.stdout.write(help_text(registry, arguments))
            return 0
        if any(argument.startswith("-") for argument in arguments):
            sys.argv[1:], first = prepared_sweep(registry, arguments)
            composed(registry, first)  # a mistake is said before any job begins
            register(registry, sys.argv[1:])
            return _multirun(registry)
        return run(arguments, registry).status
    except known_errors() as error:
        sys.stderr.write(f"error: {error}\n")
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        reads_only = any(f"mode={mode}" in arguments for mode in _READERS)
        whole = "" if reads_only else " the last checkpoint is whole:"
        sys.stderr.write(f"error: {what};{whole} mend this and run the same command again.\n")
    except KeyboardInterrupt:  # before a run could listen, or the second one
        sys.stderr.write("stopped at once: what was saved before is whole, and the same command goes on from there.\n")
        stopped: int = import_module("difftop.run.session").STOPPED
        return stopped
    return 2


def run(arguments: Sequence[str], registry: Registry | None = None, *, spawns: bool = True) -> RunEnd:
    """What `mode` says; returns how it ended, and where.

    Args:
        arguments: of the command line.
        registry: what can be chosen, where it is made already.
        spawns: see `difftop.run.session.Factories`.
    Raises:
        ConfigError and the others of `known_errors`: one sentence each.
    """
    given = dict(argument.partition("=")[::2] for argument in arguments)
    from difftop.options import ConfigError
    from difftop.run.cli import composed
    from difftop.run.imitate import record_demonstrations, train_imitation
    from difftop.run.reinforce import train_online
    from difftop.run.session import RunEnd
    from difftop.run.workers import started_by_torchrun

    if given.get("mode") in _READERS:
        return RunEnd(_read(given["mode"], arguments))

    registry = registry or make_registry()
    if given.get("mode") in ("eval", "diagnose"):
        return _evaluate(registry, given, arguments, make_factories(spawns=spawns))
    settings, factories = composed(registry, arguments), make_factories(spawns=spawns)
    imitates = settings.agent["name"] in registry.imitators
    if started_by_torchrun() and (settings.top.mode != "train" or not imitates):
        raise ConfigError("torchrun trains imitation agents only, whose workers share batches; use `python train.py` here.")
    if settings.top.mode == "demos":
        return record_demonstrations(settings, factories)
    return train_imitation(settings, factories) if imitates else train_online(settings, factories)


def _evaluate(registry: Registry, given: dict[str, str], arguments: Sequence[str], factories: Factories) -> RunEnd:
    """`mode=eval` and `mode=diagnose`: the checkpoint names agent and environment."""
    from difftop.run.cli import composed
    from difftop.run.diagnose import diagnose_checkpoint
    from difftop.run.imitate import evaluate_imitation
    from difftop.run.overrides import given_path
    from difftop.run.reinforce import evaluate_online
    from difftop.run.session import saved_checkpoint

    saved = saved_checkpoint(given_path(arguments, "checkpoint"), given["mode"])
    named = {"agent": saved.agent_name, "env": saved.config["env"]["name"]}
    settings = composed(registry, [*(f"{key}={value}" for key, value in named.items() if key not in given), *arguments])
    play: Any = evaluate_imitation if saved.agent_name in registry.imitators else evaluate_online
    if given["mode"] == "diagnose":
        play = diagnose_checkpoint
    end: RunEnd = play(saved, settings, registry, arguments, factories)
    return end


def _read(mode: str, arguments: Sequence[str]) -> Path:
    """The modes that only read; returns what a conversion made."""
    if mode == "data":
        from difftop.datasets import data_command
        from difftop.datasets.look import Known

        envs = import_module("envs")
        data_command(arguments, Known(envs.env_of, envs.installed_version))
    elif mode == "convert":
        from difftop.datasets import convert_command

        return convert_command(arguments, _playback)
    elif mode == "serve":
        from difftop.serve.server import serve_command

        serve_command(arguments)
    elif mode == "envs":
        sys.stdout.write(import_module("envs.listing").text())
    else:
        from difftop.compare.command import compare_command, status_command

        (compare_command if mode == "compare" else status_command)(arguments)
    return Path()


def _playback(path: Path, config: ConvertConfig) -> Reader:
    """Reads raw teleoperation by playing it back."""
    envs = import_module("envs")
    shown = {key: getattr(config, key) for key in ("obs", "cameras", "image_size", "render_quality", "depth")}
    reader: Reader = import_module("envs.robosuite.playback").PlaybackReader(path, envs.EnvConfig(**shown))
    return reader


def _multirun(registry: Registry) -> int:
    """Sweeps (`-m`) and hydra's own flags (`--cfg job`): hydra calls `main` for every combination."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig

    from difftop.run.session import STOPPED

    @hydra.main(  # type: ignore[untyped-decorator]
        config_path=str(registry.config_dir.resolve()), config_name="config", version_base="1.3"
    )
    def job(_: DictConfig) -> int:
        status = main(list(HydraConfig.get().overrides.task))
        if status == STOPPED:
            raise SystemExit(status)
        if status:  # SystemExit would end the jobs that come after it too
            raise RuntimeError(f"exit status {status}: this job failed; the same command runs it again, and no finished one")
        return status

    job()
    return 0
