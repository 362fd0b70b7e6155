"""Experiments: one file per method of a paper, with what differs by task as a table in it, and the names of before.

A file `configs/experiment/<method>.yaml` is a hydra file with two keys more:

    tasks:               environment's name, or a pattern such as metaworld/*, to what differs there; `{env}` in a value is the
      dmc/cup-catch:     environment's name with a hyphen for the slash, as folders of runs have it; a pattern that ends in
        env: {action_repeat: 2}    @low_dim, or another obs=, is for that only; the first one that fits is taken
    elsewhere: refuse    (default: general) an environment that the table hasn't is an error
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from difftop.options import ConfigError, suggest

log = logging.getLogger(__name__)

TABLE_KEYS = ("tasks", "elsewhere")  # of an experiment's file, not of the configuration

# Names that had the task in them, to the words that say the same now.
_FORMER: tuple[tuple[str, str], ...] = (
    (r"(tdmpc2?|difftop_rl|difftori)_([a-z]+-.+)", r"experiment=\1 env=dmc/\2"),
    (r"leto_(can|square)_((?:ph|mh)(?:_low_dim)?)", r"experiment=leto_\2 env=robomimic/\1"),
    (
        r"leto_square_ph_acc_(\d+\.\d+)",
        r"experiment=leto_ph env=robomimic/square agent.limits.acceleration=\1 name=image-leto_ph_acc_\1",
    ),
    (r"difftop_il_(metaworld|maniskill)_(.+)", r"experiment=difftop_il env=\1/\2"),
    (r"difftop_il_(square|transport|tool_hang)_(rnn_gmm|diffusion)", r"experiment=difftop_il_\2 env=robomimic/\1"),
)


@dataclass(frozen=True)
class Experiment:
    """One method's file.

    Attributes:
        groups: what it chooses of other groups (`agent`: `difftop_rl`).
        tasks: environment's name or pattern, perhaps with `@` and an observation, to nested options, and choices of groups, that
            differ there.
        elsewhere: `general` or `refuse`, for an environment that `tasks` hasn't.
        summary: its first comment.
    """

    name: str
    groups: Mapping[str, str]
    tasks: Mapping[str, Mapping[str, Any]]
    elsewhere: str
    summary: str

    def differences(self, env: str, obs: str = "") -> list[str]:
        """Overrides of `tasks` for the environment `env` shown as `obs`; raises `ConfigError` where the method isn't for it."""
        if not self.tasks:
            return []
        named = [(pattern.partition("@"), differs) for pattern, differs in self.tasks.items()]
        found = [differs for (name, _, shown), differs in named if fnmatchcase(env, name) and shown in ("", obs)]
        if found:
            return [*_overrides(found[0], env.replace("/", "-"))]
        if self.elsewhere == "refuse":
            raise ConfigError(f"experiment={self.name}: is for env={' | '.join(self.tasks)}; env={env} isn't one of them.")
        log.info("experiment=%s has no settings of its own for %s: its general ones are used", self.name, env)
        return []


def experiment_names(config_dir: Path) -> list[str]:
    """All experiments there are."""
    return sorted(path.stem for path in (config_dir / "experiment").glob("*.yaml"))


def read_experiment(config_dir: Path, name: str) -> Experiment:
    """The file of an experiment; raises `ConfigError` for an unknown one."""
    known = experiment_names(config_dir)
    if name not in known:
        raise ConfigError(f"experiment={name}: unknown.{suggest(name, known)} Known: {', '.join(known)}.")
    path = config_dir / "experiment" / f"{name}.yaml"
    plain = cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(path)))
    groups: dict[str, str] = {}
    for entry in plain.get("defaults", []):
        if isinstance(entry, dict):
            groups |= {key.removeprefix("override /"): str(value) for key, value in entry.items() if key.startswith("override /")}
    tasks = {key: value or {} for key, value in (plain.get("tasks") or {}).items()}
    return Experiment(name, groups, tasks, str(plain.get("elsewhere", "general")), first_comment(path))


def as_named_now(name: str) -> list[str]:
    """Words for a name of before (`difftori_walker-walk`: `experiment=difftori`, `env=dmc/walker-walk`), [] for another."""
    for pattern, words in _FORMER:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(words).split()
    return []


def first_comment(path: Path) -> str:
    """The YAML file's first comment that isn't a hydra directive."""
    for line in path.read_text().splitlines():
        if line.startswith("# ") and "@package" not in line:
            return line[2:]
    return ""


def _overrides(values: Mapping[str, Any], env: str, where: str = "") -> Iterator[str]:
    for key, value in values.items():
        name = f"{where}.{key}" if where else str(key)
        if isinstance(value, Mapping):
            yield from _overrides(value, env, name)
        elif isinstance(value, str):
            text = value.replace("{env}", env)
            yield f"{name}={text}" if re.fullmatch(r"[\w-]+", text) else f"{name}='{text}'"
        else:
            yield f"{name}={str(value).lower() if isinstance(value, bool) else value}"
