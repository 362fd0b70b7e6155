"""The heads that keep limits on actions, by name; any policy can wear one.

none: no limits. clip: each action is clipped to what velocity and acceleration limits allow. qp: the trajectory inside the limits
that is nearest, with a look ahead. One more is a module with the signature of `QPHead.forward`, and one entry here; in a package
of its own, it is one entry point of the group `difftop.heads`, as docs/extend.md shows.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from difftop.entry_points import Extended
from difftop.options import ConfigError, suggest
from difftop.qp.clip import ClipHead
from difftop.qp.layer import QPHead, SolveInfo
from difftop.qp.trajectory import TrajectoryLimits


class FreeHead(nn.Module):
    """No limits: `y = -e`, with the signature of `QPHead`."""

    def __init__(self, limits: TrajectoryLimits) -> None:
        super().__init__()
        self.limits = limits

    def forward(self, e: Tensor, position: Tensor | None = None, previous: Tensor | None = None) -> tuple[Tensor, SolveInfo]:
        """`-e` as `[B, T_p, A]`; every sample SOLVED."""
        return -e.view(len(e), self.limits.horizon, self.limits.action_dim), SolveInfo.solved(e)


HEADS: Extended[Callable[[TrajectoryLimits], nn.Module]] = Extended(
    {"none": FreeHead, "clip": ClipHead, "qp": QPHead.projection}, "difftop.heads"
)


def make_head(name: str, limits: TrajectoryLimits) -> nn.Module:
    """A head without weights, for a policy whose network wants `-e`.

    Raises:
        ConfigError: unknown name, no action to limit, or limits that the head can't keep.
    """
    if name not in HEADS:
        raise ConfigError(f"head={name}: must be one of {', '.join(HEADS)}.{suggest(name, list(HEADS))}")
    if name != "none" and not limits.selected:
        raise ConfigError(f"head={name}: limits.free leaves no action to limit; set limits.free=[] or head=none.")
    try:
        return HEADS[name](limits)
    except ValueError as error:
        raise ConfigError(f"head={name}: {error}") from error
