"""Packages that take seconds to import, for files of which some users don't need them: loaded at their first use.

    if TYPE_CHECKING:
        import torch
    else:
        torch = later("torch")

A look at a data set (`mode=data`) needs no network, and torch is half of what it would import.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Later:
    """Stands in for a package."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)


def later(name: str) -> Any:
    """What a package's attributes can be asked of; the first question imports it."""
    return Later(name)
