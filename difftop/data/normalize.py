"""Normalization of observations and actions, key by key; its numbers are buffers, so that they travel with an agent's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

MODES = ("identity", "min_max", "standardize")
_FLAT = 1e-4  # what varies less than this is only shifted: a simulator's jitter in a constant isn't blown up to [-1, 1]


class Affine(nn.Module):
    """`y = (x - shift) / scale`, entry by entry; starts as the identity.

    Args:
        shape: of one row.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Normalized `[..., *shape]`."""
        return (x - self.shift) / self.scale

    def inverse(self, y: Tensor) -> Tensor:
        """What `forward` made y from."""
        return y * self.scale + self.shift

    def fit_(self, rows: Tensor, mode: str) -> None:
        """Takes shift and scale from data.

            identity:     y = x
            min_max:      y in [-1, 1], from the smallest and largest value of each entry
            standardize:  y of mean 0 and standard deviation 1 (of the population)

        Entries that don't vary are shifted to 0 and not scaled.

        Args:
            rows: `[R, *shape]`, R at least 1.
            mode: one of the three.
        Raises:
            ValueError: another mode, the wrong shape, no rows, or NaN.
        """
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: must be one of {', '.join(MODES)}.")
        if rows.shape[1:] != self.shift.shape or not len(rows) or not bool(torch.isfinite(rows).all()):
            raise ValueError(f"rows {list(rows.shape)} must be at least one row of {list(self.shift.shape)}, all finite.")
        x = rows.double()
        shift, scale = torch.zeros_like(x[0]), torch.ones_like(x[0])
        if mode == "min_max":
            low, high = x.amin(0), x.amax(0)
            shift, scale = (low + high) / 2, (high - low) / 2
        elif mode == "standardize":
            shift, scale = x.mean(0), x.std(0, correction=0)
        scale = torch.where(scale < _FLAT, 1.0, scale)
        self.shift.copy_(shift)
        self.scale.copy_(scale)


class Normalizer(nn.Module):
    """One `Affine` per key.

    Args:
        shapes: shape of one row by key, without '.' in a key.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.keys = nn.ModuleDict({key: Affine(shape) for key, shape in shapes.items()})

    def __getitem__(self, key: str) -> Affine:
        module = self.keys[key]
        assert isinstance(module, Affine)
        return module

    def forward(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Normalizes the keys that it knows and passes the others on."""
        return {key: self[key](value) if key in self.keys else value for key, value in values.items()}


def leto_mode(key: str) -> str:
    """How LeTO normalizes a low-dimensional observation of RoboMimic: `..pos` by range (and `..qpos`), the rest not at all.

    Source: LeTO's dataset class, which is Diffusion Policy's.  Differs: there other keys are an error.
    """
    return "min_max" if key.endswith("pos") else "identity"
