"""`KEY=VALUE` words of the modes that only read, apart from what these modes import: a look at a file begins sooner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from difftop.options import ConfigError


def parsed(arguments: Sequence[str]) -> dict[str, Any]:
    """Values of `KEY=VALUE` words (`runs=[a,b]`, `frames=1e5`), without `mode`; raises `ConfigError` for another form."""
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[index,call-overload]
        except (OmegaConfBaseException, YAMLError) as error:
            raise ConfigError(f"{argument}: can't be read; write KEY=VALUE or KEY=[VALUE,VALUE].") from error
        if not equals or not key:
            raise ConfigError(f"{argument}: write KEY=VALUE or KEY=[VALUE,VALUE].")
        if key != "mode":
            values[key] = value
    return values
