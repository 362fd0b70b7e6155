"""Weighted sampling in logarithmic time, for whole batches at once."""

from __future__ import annotations

import torch
from torch import Tensor

_WIDTH = 32  # children of a node: few levels keep the number of torch calls low, narrow blocks keep their cost low
_ROOT_WIDTH = 1024  # nodes of the top level, which is searched once for the whole batch
_BELOW_ONE = 1.0 - 2.0**-53


class SumTree:
    """Nonnegative weights `w [n]` that are sampled with probability `w_i / sum w`.

    A wide tree of float64 partial sums: setting and sampling cost O(log n) per element. A node is always the running sum of its
    children, so the sums depend on the weights only, not on the history of changes, and never drift.

    Args:
        size: n, at least 1.
        device: where the tree lives.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self._levels: list[Tensor] = []  # leaves first; each padded with zeros to whole blocks of _WIDTH; the last is the root
        count = size
        while True:
            blocks = -(-count // _WIDTH)
            self._levels.append(torch.zeros(blocks * _WIDTH, dtype=torch.float64, device=device))
            if count <= _ROOT_WIDTH:
                break
            count = blocks

    @property
    def total(self) -> Tensor:
        """Sum of all weights, 0-d float64."""
        return self._levels[-1].cumsum(0)[-1]

    @property
    def nbytes(self) -> int:
        """Bytes of all levels."""
        return sum(level.nbytes for level in self._levels)

    def max(self) -> Tensor:
        """Largest weight, 0-d float64; scans all leaves."""
        return self._levels[0].max()

    def get(self, index: Tensor) -> Tensor:
        """Weights of leaves `index [m]`, float64 `[m]`."""
        return self._levels[0][index]

    def set(self, index: Tensor, weight: Tensor) -> None:
        """Sets leaves `index [m]` (int64) to `weight [m]`; of several weights for one leaf the largest is taken."""
        self._levels[0].scatter_reduce_(0, index, weight.to(torch.float64), "amax", include_self=False)
        for children, parents in zip(self._levels[:-1], self._levels[1:], strict=True):
            index = index.div(_WIDTH, rounding_mode="floor")
            parents[index] = children.view(-1, _WIDTH)[index].cumsum(1)[:, -1]

    def find(self, u: Tensor) -> Tensor:
        """The leaf whose share of [0, 1) contains each `u`; never a leaf of weight zero.

        Args:
            u: float64 `[m]` in [0, 1).
        Returns:
            leaves, int64 `[m]`. The total must be positive.
        """
        running = self._levels[-1].cumsum(0)
        rest = (u * running[-1]).minimum(running[-1] * _BELOW_ONE)
        node = torch.searchsorted(running, rest, right=True)
        rest = rest - running[(node - 1).clamp_(min=0)] * (node > 0)
        for level in reversed(self._levels[:-1]):
            running = level.view(-1, _WIDTH)[node].cumsum(1)  # [m, _WIDTH]
            rest = rest.minimum(
                running[:, -1] * _BELOW_ONE
            )  # rounding may have left it at the sum; below it, a child has a weight
            child = torch.searchsorted(running, rest[:, None], right=True)
            before = running.gather(1, (child - 1).clamp_(min=0)) * (child > 0)
            rest = rest - before.squeeze(1)
            node = node * _WIDTH + child.squeeze(1)
        return node
