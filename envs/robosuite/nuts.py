"""`robosuite/NutAssemblySingle`: one of two nuts, which one is drawn from the episode's seed.

robosuite draws it from a set of strings, whose order changes from one process to the next.
"""

from __future__ import annotations

from typing import Any

from robosuite.environments.manipulation.nut_assembly import NutAssembly

_DRAWN, _GIVEN = 1, 2  # robosuite's `single_object_mode`


class NutAssemblyDrawn(NutAssembly):  # type: ignore[misc]
    """robosuite's NutAssemblySingle, but for how the nut is drawn."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(single_object_mode=_DRAWN, **arguments)

    def _reset_internal(self) -> None:
        self.nut_id = int(self.rng.integers(len(self.nuts)))
        self.single_object_mode = _GIVEN
        super()._reset_internal()
        self.single_object_mode = _DRAWN
