"""Packages that only some formats need; where one is missing, a sentence says what to install."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from difftop.data.faults import DemonstrationError


def optional(package: str, what: str) -> ModuleType:
    """A package of the extra `data`.

    Args:
        package: as it is imported.
        what: needs it, for the message.
    Raises:
        DemonstrationError: it isn't installed.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise DemonstrationError(f"{what} needs the package {error.name}: pip install 'difftop[data]'.") from error
