"""A study: settings x tasks x seeds x frames in a YAML file, as runs of train.py. `docs/results/README.md` explains the file."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from difftop.command import make_registry
from difftop.options import ConfigError, build, option, suggest
from difftop.run.cli import composed
from difftop.run.session import run_folder
from difftop.run.settings import Settings
from envs.registry import find_task

ROOT = Path(__file__).resolve().parent.parent
OWN = (
    "mode",
    "seed",
    "name",
    "root",
    "env",
    "threads",
    "swept",
    "run.frames",
    "run.eval_every",
    "run.eval_episodes",
    "run.video",
)
_MOST_EVALUATIONS = 200


@dataclass(frozen=True)
class Round:
    """One round of successive halving."""

    frames: int = option(0, "length of its runs, environment frames; a run of the round before goes on", low=1)
    seeds: list[int] = option([1], "of its runs", low=0)
    keep: float = option(0.5, "share of the settings of the round before that go on, the best", above=0, high=1)


@dataclass(frozen=True)
class StudyConfig:
    """What a study's file may hold."""

    about: str = option("", "one or two sentences for the report")
    settings: dict[str, list[str]] = option({}, "overrides of train.py, by name of the setting")
    tasks: list[str] = option([], "environments")
    seeds: list[int] = option([1], "in the order in which they are run", low=0)
    frames: int = option(100_000, "length of each run, environment frames", low=1)
    rounds: list[Any] = option([], "successive halving, in place of seeds and frames: a list of frames, seeds and keep")
    marks: list[int] = option([], "frames at which runs are evaluated; the last frame is always one", low=1)
    episodes: int = option(20, "of each evaluation", low=1)
    common: list[str] = option([], "overrides of all settings")
    diagnose: bool = option(False, "mode=diagnose of the checkpoint at the end of each run")
    diagnose_episodes: int = option(5, "of the diagnosis", low=1)
    order: str = option("seed", "seed: all runs of a seed before the next seed, the cheapest first; cost: the cheapest first")


class Cell(NamedTuple):
    """One training run, whatever its length."""

    setting: str
    task: str
    seed: int

    def __str__(self) -> str:
        return f"{self.setting} {self.task} seed {self.seed}"


@dataclass(frozen=True)
class Kind:
    """What the configuration of a setting on a task says.

    Attributes:
        agent, task, obs: as the tidy table has them.
        folder: of its runs, below the root, without the seed.
        steps_per_frame: agent steps.
        updates_per_step: gradient steps per agent step.
    """

    agent: str
    task: str
    obs: str
    folder: Path
    steps_per_frame: float
    updates_per_step: float

    def work(self, frames: float) -> float:
        """Units of the cost model: agent steps x (1 + updates per agent step)."""
        return frames * self.steps_per_frame * (1 + self.updates_per_step)


@dataclass(frozen=True)
class Study:
    """A checked study.

    Attributes:
        name: of its file.
        config: as it stands in the file, but for the settings, tasks and seeds that were left out on the command line.
        rounds: at least one; without successive halving, the whole study.
        eval_every: frames between evaluations, so that all marks are among them.
        kinds: by setting and task.
    """

    name: str
    config: StudyConfig
    rounds: tuple[Round, ...]
    eval_every: int
    kinds: Mapping[tuple[str, str], Kind] = field(default_factory=dict)

    @property
    def halving(self) -> bool:
        """Whether settings drop out."""
        return len(self.rounds) > 1

    @cached_property
    def marks(self) -> list[int]:
        """Frames that are reported."""
        return sorted({*self.config.marks, *(r.frames for r in self.rounds)})

    @property
    def seeds(self) -> list[int]:
        """Of all rounds, in order."""
        return list(dict.fromkeys(seed for r in self.rounds for seed in r.seeds))

    def cells(self, settings: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
        """All runs of these."""
        return [Cell(setting, task, seed) for seed in seeds for setting in settings for task in self.config.tasks]

    def kind(self, cell: Cell) -> Kind:
        """Of a run."""
        return self.kinds[cell.setting, cell.task]

    def folder(self, cell: Cell, root: Path) -> Path:
        """Where a run is."""
        return root / self.kind(cell).folder / f"seed{cell.seed}"

    def train(self, cell: Cell, frames: int, root: Path) -> list[str]:
        """Command of a run; the same one goes on with it."""
        return [
            sys.executable,
            "train.py",
            *overrides(self, cell.setting, cell.task, frames),
            f"seed={cell.seed}",
            f"root={root}",
        ]

    def diagnosis(self, cell: Cell, root: Path) -> list[str]:
        """Command of its diagnosis."""
        episodes = f"run.eval_episodes={self.config.diagnose_episodes}"
        return [sys.executable, "train.py", "mode=diagnose", f"checkpoint={self.folder(cell, root)}", episodes, "threads=1"]


def read_study(path: Path, *, only: Sequence[str] = (), tasks: Sequence[str] = (), seeds: Sequence[int] = ()) -> Study:
    """The study of a file, or of a part of its settings, tasks and seeds.

    Raises:
        ConfigError: one sentence that names the file, the key, the value and what is allowed.
    """
    try:
        read = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read ({getattr(error, 'strerror', None) or 'it is not text'}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}.") from error
    try:
        return _checked(path.stem, read, only, tasks, seeds)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def overrides(study: Study, setting: str, task: str, frames: int) -> list[str]:
    """Of train.py; a setting's take the place of common ones of the same option."""
    chosen = {word.partition("=")[0]: word for word in [*study.config.common, *study.config.settings[setting]]}
    sizes = [f"run.frames={frames}", f"run.eval_every={study.eval_every}", f"run.eval_episodes={study.config.episodes}"]
    return [*chosen.values(), f"env={task}", f"name={setting}", *sizes, "run.video=false", "threads=1"]


def _checked(name: str, read: Any, only: Sequence[str], tasks: Sequence[str], seeds: Sequence[int]) -> Study:
    if not isinstance(read, Mapping):
        raise ConfigError("must hold settings and tasks by name, as in benchmarks/studies.")
    settings = read.get("settings")
    if isinstance(settings, Mapping):
        read = {**read, "settings": {str(key): value or [] for key, value in settings.items()}}
    config = build(StudyConfig, read)
    _check_names(config)
    config = replace(
        config,
        settings={setting: config.settings[setting] for setting in _part("--only", only, config.settings)},
        tasks=_part("--tasks", tasks, config.tasks),
    )
    rounds = _rounds(config, read)
    known = list(dict.fromkeys(seed for r in rounds for seed in r.seeds))
    chosen = _part("--seeds", seeds, known)
    rounds = tuple(replace(r, seeds=[seed for seed in r.seeds if seed in chosen]) for r in rounds)
    if not all(r.seeds for r in rounds):
        raise ConfigError(
            f"--seeds {','.join(map(str, chosen))}: leaves a round without seeds, and nothing to choose settings by."
        )
    every = _eval_every(config, rounds)
    study = Study(name, config, rounds, every)
    return replace(study, kinds=_kinds(study))


def _check_names(config: StudyConfig) -> None:
    for key in ("settings", "tasks", "seeds"):
        if not getattr(config, key):
            raise ConfigError(f"{key}: there is none; name at least one.")
    if config.order not in ("seed", "cost"):
        raise ConfigError(f"order={config.order}: must be seed or cost.")
    for key in ("tasks", "seeds", "marks"):
        twice = [value for value in getattr(config, key) if getattr(config, key).count(value) > 1]
        if twice:
            raise ConfigError(f"{key}: {twice[0]} is there twice.")
    for setting, words in [("common", config.common), *config.settings.items()]:
        if not re.fullmatch(r"[\w.+-]+", setting):
            raise ConfigError(f"settings: '{setting}' names folders: take letters, digits and _ . + - only.")
        for word in words:
            key, equals, _ = word.partition("=")
            if not equals:
                raise ConfigError(f"{setting}: '{word}' is no override; write OPTION=VALUE.")
            if key in OWN:
                raise ConfigError(f"{setting}: {word} is set by the study itself; leave it out.")


def _part(flag: str, wanted: Sequence[Any], known: Any) -> list[Any]:
    for value in wanted:
        if value not in known:
            hint = suggest(str(value), [str(k) for k in known])
            raise ConfigError(f"{flag} {value}: not in the study.{hint} There are: {', '.join(map(str, known))}.")
    return [value for value in known if not wanted or value in wanted]


def _rounds(config: StudyConfig, read: Mapping[str, Any]) -> tuple[Round, ...]:
    if not config.rounds:
        return (Round(config.frames, config.seeds, 1.0),)
    both = [key for key in ("frames", "seeds") if key in read]
    if both:
        raise ConfigError(f"{both[0]}: stands in each of the rounds; leave it out beside them.")
    rounds = []
    for k, values in enumerate(config.rounds):
        if not isinstance(values, Mapping):
            raise ConfigError(f"rounds[{k}]={values}: must hold frames, seeds and keep by name.")
        rounds.append(build(Round, values, f"rounds[{k}]"))
        if not rounds[-1].seeds:
            raise ConfigError(f"rounds[{k}].seeds: there is none; name at least one.")
        if k and rounds[k].frames < rounds[k - 1].frames:
            raise ConfigError(f"rounds[{k}].frames={rounds[k].frames}: must not be below that of the round before.")
    return tuple(rounds)


def _eval_every(config: StudyConfig, rounds: Sequence[Round]) -> int:
    last = rounds[-1].frames
    late = [mark for mark in config.marks if mark > last]
    if late:
        raise ConfigError(f"marks: {late[0]} is beyond the last frame, {last}.")
    marks = sorted({*config.marks, *(r.frames for r in rounds)})
    every = math.gcd(*marks)
    if last // every > _MOST_EVALUATIONS:
        raise ConfigError(
            f"marks: {', '.join(map(str, marks))} are multiples of {every} only, which makes {last // every} evaluations a run; "
            "take rounder numbers."
        )
    return every


def _kinds(study: Study) -> dict[tuple[str, str], Kind]:
    """Composes every setting, on every task where an experiment has a table of tasks: mistakes are said before any run begins."""
    registry, found = make_registry(), {}
    for setting in study.config.settings:
        words = [*study.config.common, *study.config.settings[setting]]
        alike = not any(word.startswith("experiment=") for word in words)
        settings = None
        for task in study.config.tasks:
            if settings is None or not alike:
                settings = composed(registry, [*overrides(study, setting, task, study.rounds[-1].frames), "root=."])
            found[setting, task] = _kind(replace(settings, env=replace(settings.env, name=find_task(task).name)))
    return found


def _kind(settings: Settings) -> Kind:
    env = settings.env
    return Kind(
        agent=str(settings.agent["name"]),
        task=env.name.removeprefix("dmc/"),
        obs=env.obs,
        folder=run_folder(settings).parent,
        steps_per_frame=1 / (env.action_repeat or find_task(env.name).info.action_repeat),
        updates_per_step=float(getattr(settings.run, "updates_per_step", 0.0)),
    )
