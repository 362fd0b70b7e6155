"""A table of ours that packages of others add to, by entry points."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)


class Extended(Mapping[str, T]):
    """What is built in, and after it what installed packages add under the entry point group `group`, by name.

    Packages are looked for when somebody first asks for a name that isn't built in, or for all names. One that can't be imported,
    or whose name is taken, is left out with a warning: it must not stop commands that have no need of it.

    Args:
        builtin: the table.
        group: `difftop.agents`, for example; each entry point resolves to a value of the table.
    """

    def __init__(self, builtin: Mapping[str, T], group: str) -> None:
        self.builtin, self.group = builtin, group
        self._added: dict[str, T] | None = None

    def __getitem__(self, name: str) -> T:
        return self.builtin[name] if name in self.builtin else self._more()[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.builtin
        yield from self._more()

    def __len__(self) -> int:
        return len(self.builtin) + len(self._more())

    def reread(self) -> None:
        """Looks for packages again, when it is next asked."""
        self._added = None

    def _more(self) -> Mapping[str, T]:
        if self._added is None:
            self._added = {}
            for found in entry_points(group=self.group):
                package = found.dist.name if found.dist else "a package"
                if found.name in self.builtin or found.name in self._added:
                    log.warning("%s: %s of %s is left out; the name is taken.", self.group, found.name, package)
                    continue
                try:
                    self._added[found.name] = found.load()
                except Exception as error:  # whatever another package's module raises
                    log.warning("%s: %s of %s is left out: %s.", self.group, found.name, package, error)
        return self._added
