"""What a command line says, read before hydra sees it: names made canonical, mistakes turned into one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from difftop.options import ConfigError, suggest

if TYPE_CHECKING:
    from difftop.run.cli import Registry

_TASK = "metaworld/button-press-topdown"  # of imitation, where none is named


def prepared(registry: Registry, overrides: Sequence[str]) -> list[str]:
    """The overrides with canonical names, whole numbers as such, and imitation's loop in front where it is wanted.

    Raises:
        ConfigError: one sentence that names the override.
    """
    return [_known(registry, _readable(text)) for text in for_imitation(registry, overrides)]


def prepared_sweep(registry: Registry, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments of a sweep with canonical names, and the overrides of its first job, to be checked before any job begins.

    Values that hydra expands by functions (`seed=range(1,4)`) are left to it, and are not in the first job's overrides.
    """
    whole, first = [], []
    for text in for_imitation(registry, arguments):
        key, equals, value = text.partition("=")
        if text.startswith("-") or not equals or any(c in value for c in "([{'\""):  # hydra's own flags and their values, too
            whole.append(text)
            continue
        jobs = [_known(registry, _readable(f"{key}={v}")) for v in value.split(",")]
        whole.append(f"{key}={','.join(job.partition('=')[2] for job in jobs)}")
        if not key.startswith("hydra"):
            first.append(jobs[0])
    return whole, first


def for_imitation(registry: Registry, overrides: Sequence[str]) -> list[str]:
    """The overrides, with the loop of imitation, low-dimensional observations and a task in front where all agents imitate.

    Raises:
        ConfigError: agents of both kinds in one sweep, a preset, whose sizes are those of the other agents, or `mode=demos`
            without a task that has an expert.
    """
    given = {override.partition("=")[0]: override.partition("=")[2] for override in overrides}
    chosen = given.get("agent", "").split(",")
    imitating = [name in registry.imitators for name in chosen]
    preset, demos = given.get("preset", "standard"), given.get("mode") == "demos"
    if preset != "standard" and (demos or all(imitating)):
        who = "mode=demos" if demos else f"agent={given['agent']}"
        raise ConfigError(f"preset={preset}: has sizes of agents that learn from rewards; {who} takes none.")
    if not any(imitating):
        if demos:
            _check_has_expert(registry, given)
        usual = {"run": "offline", "obs": "low_dim"} if demos else {}  # no agent is needed
        return [*(f"{key}={value}" for key, value in usual.items() if key not in given), *overrides]
    if not all(imitating):
        raise ConfigError(
            f"agent={given['agent']}: some of these imitate and some learn from rewards; sweep over one kind at a time."
        )
    usual = {"run": "offline", "obs": "low_dim", "env": _TASK}
    return [*(f"{key}={value}" for key, value in usual.items() if key not in given), *overrides]


def _check_has_expert(registry: Registry, given: Mapping[str, str]) -> None:
    if "experiment" in given:  # which names a task
        return
    for env in given.get("env", "").split(","):
        if not env:
            raise ConfigError(f"mode=demos: of which task? Add env=TASK, such as env={_TASK}.")
        name = registry.canonical_env(env)
        if name not in registry.tasks:
            raise ConfigError(f"env={name}: has no scripted expert, so no demonstrations; take a task such as env={_TASK}.")


def _readable(text: str) -> str:
    """The override, with a whole number in place of `1e5`; raises where hydra can't read it, or reads several values."""
    if text.startswith("~"):
        raise ConfigError(f"{text}: nothing can be taken out of the configuration; set an option to another value.")
    key, equals, value = text.partition("=")
    if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE]\+?\d+", value) and float(value).is_integer():
        text = f"{key}={int(float(value))}"
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        quoted = f" Blanks and brackets need quotes inside the shell's: '{key}=\"{value}\"'." if equals else ""
        raise ConfigError(f"{text}: can't be read; write KEY=VALUE or GROUP=OPTION.{quoted}") from error
    if override.is_sweep_override():
        raise ConfigError(f"{text}: several values are a sweep; add -m.")
    return text


def _known(registry: Registry, text: str) -> str:
    """The override, with the canonical name of an environment; hydra's own message for an unknown one lists a folder of files."""
    name, _, value = text.partition("=")
    if name == "env":
        return f"env={registry.canonical_env(value)}"
    if name == "agent" and value not in registry.agents:
        raise ConfigError(f"agent={value}: unknown.{suggest(value, list(registry.agents))} Known: {', '.join(registry.agents)}.")
    return text
