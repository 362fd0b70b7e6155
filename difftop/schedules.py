"""Schedules over agent steps."""

from __future__ import annotations


def linear(start: float, end: float, steps: int, at: int) -> float:
    """Linear from `start` (at 0) to `end` (at `steps` and after); `steps` 0 gives `end`."""
    if steps <= 0 or at >= steps:
        return end
    return start + (end - start) * at / steps
