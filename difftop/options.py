"""Typed options: a frozen dataclass is the one place where an option has its default, its meaning, its unit and its range.

YAML files hold differences from these defaults only. `build` turns a plain mapping into the dataclass, and every mistake
(unknown key, wrong type, value out of range) into a `ConfigError` that names the key, the value and what is allowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, cast, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that can't be used; the message names key, value and what is allowed."""


@dataclass(frozen=True)
class OptionInfo:
    """One row of `--help`."""

    key: str
    default: Any
    help: str


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Collection[Any] | None = None,
) -> Any:
    """A dataclass field with its help text and its range.

    Args:
        default: the value; a dataclass type stands for a nested group, a list or dict is copied for each instance.
        help: one line for `--help`, with the unit.
        low, high: smallest and largest value allowed.
        above: the value must be larger than this.
        choices: the values allowed.
    """
    metadata = {"help": help, "low": low, "high": high, "above": above, "choices": choices}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def build(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Makes the dataclass `cls` from `values`.

    Args:
        cls: frozen dataclass of `option` fields, nested groups allowed.
        values: plain mapping; missing keys take their defaults.
        where: key of the group, to name things in messages (`agent`).
    Raises:
        ConfigError: unknown key, wrong type, or a value out of its range.
    """
    _check_keys(cls, values, where)
    try:
        typed = OmegaConf.structured(cls)
        _unfreeze(typed)
        typed.merge_with(dict(values))
        made = cast(T, OmegaConf.to_object(typed))
    except OmegaConfBaseException as error:
        raise ConfigError(_of_wrong_type(cls, values, where, error)) from error
    check_ranges(made, where)
    return made


def _of_wrong_type(cls: type, values: Mapping[str, Any], where: str, error: OmegaConfBaseException) -> str:
    key = str(error.full_key or error.key or "")
    hint: Any = cls
    given: Any = values
    for part in key.split("."):
        hint = get_type_hints(hint).get(part) if is_dataclass(hint) else None
        given = given.get(part) if isinstance(given, Mapping) else None
    kinds: Mapping[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    if hint in kinds and given is not None:
        return f"{_dotted(where, key)}={given}: must be {kinds[hint]}."
    return f"{_dotted(where, key)}: {str(error).splitlines()[0]}"


def defaults(cls: type) -> dict[str, Any]:
    """All options of `cls` at their defaults, as plain containers."""
    return cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.structured(cls)))


def still_known(cls: type, values: Mapping[str, Any], where: str = "") -> tuple[dict[str, Any], list[str]]:
    """The values that `cls` has options for, nested groups too, and the dotted names of the others.

    For what another version saved: an option that is gone since has no effect any more.
    """
    hints, kept, gone = get_type_hints(cls), {}, []
    for key, value in values.items():
        if key not in hints:
            gone.append(_dotted(where, str(key)))
        elif is_dataclass(hints[key]) and isinstance(value, Mapping):
            kept[key], inner = still_known(cast(type, hints[key]), value, _dotted(where, key))
            gone += inner
        else:
            kept[key] = value
    return kept, gone


def describe(cls: type, where: str = "") -> Iterator[OptionInfo]:
    """All options of `cls`, nested groups flattened to dotted keys, in the order of definition."""
    hints = get_type_hints(cls)
    for f in fields(cls):
        key = _dotted(where, f.name)
        if is_dataclass(hints[f.name]):
            yield from describe(cast(type, hints[f.name]), key)
        else:
            default = f.default if f.default is not MISSING else cast(Any, f.default_factory)()
            yield OptionInfo(key, default, f.metadata.get("help", "") + _allowed(f.metadata, " [{}]"))


def suggest(name: str, names: Sequence[str]) -> str:
    """` Did you mean 'x'?`, or nothing where no name is close."""
    close = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def _unfreeze(config: Any) -> None:
    """OmegaConf marks the nodes of frozen dataclasses read-only, nested ones too; merging has to write to them."""
    OmegaConf.set_readonly(config, False)
    for key in config:
        if OmegaConf.is_dict(config[key]):
            _unfreeze(config[key])


def _dotted(where: str, key: str) -> str:
    return f"{where}.{key}" if where and key else where or key


def _check_keys(cls: type, values: Mapping[str, Any], where: str) -> None:
    hints = get_type_hints(cls)
    for key, value in values.items():
        if key not in hints:
            known = sorted(hints)
            raise ConfigError(
                f"{_dotted(where, str(key))}: unknown option.{suggest(str(key), known)} "
                f"Options of '{where or cls.__name__}': {', '.join(known)}."
            )
        if is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{_dotted(where, key)}={value!r}: a group; set one of its options, {key}.OPTION=VALUE.")
            _check_keys(cast(type, hints[key]), value, _dotted(where, key))


def _allowed(metadata: Mapping[str, Any], form: str) -> str:
    if metadata.get("choices") is not None:
        return form.format(" | ".join(str(c) or "''" for c in metadata["choices"]))
    parts = []
    if metadata.get("low") is not None:
        parts.append(f">= {metadata['low']:g}")
    if metadata.get("above") is not None:
        parts.append(f"> {metadata['above']:g}")
    if metadata.get("high") is not None:
        parts.append(f"<= {metadata['high']:g}")
    return form.format(", ".join(parts)) if parts else ""


def check_ranges(made: Any, where: str) -> None:
    """Raises a ConfigError where an option of a dataclass, or of a group in it, is outside its range; `where` names the group.

    A dataclass whose options must also fit each other has a method `check(where)`, which raises where they don't.
    """
    if hasattr(made, "check"):
        made.check(where)
    for f in fields(made):
        value, key = getattr(made, f.name), _dotted(where, f.name)
        if is_dataclass(value):
            check_ranges(value, key)
            continue
        m = f.metadata
        bad = m.get("choices") is not None and value not in m["choices"]
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool):
                bad |= number != number
                bad |= m.get("low") is not None and number < m["low"]
                bad |= m.get("above") is not None and number <= m["above"]
                bad |= m.get("high") is not None and number > m["high"]
        if bad:
            raise ConfigError(f"{key}={value}: must be {_allowed(m, '{}')} ({m.get('help', '')}).")
