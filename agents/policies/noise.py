"""Random numbers for acting, one stream per environment, so that what an environment does never depends on its neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from difftop.run.seeding import stream

_STRIDE = 1_000_003  # between the seeds of neighbouring environments


class Noise(Protocol):
    """Random numbers for K rows."""

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers `[K, *shape]`, float32."""

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1), `[K, *shape]`, float32."""


class BatchNoise:
    """K rows from one generator, for training.

    Args:
        rows: K.
        generator: on the device of the numbers; None for torch's own.
        device: of the numbers.
    """

    def __init__(self, rows: int, generator: torch.Generator | None, device: torch.device) -> None:
        self.rows, self.generator, self.device = rows, generator, device

    def normal(self, *shape: int) -> Tensor:
        """See `Noise`."""
        return torch.randn(self.rows, *shape, generator=self.generator, device=self.device)

    def uniform(self, *shape: int) -> Tensor:
        """See `Noise`."""
        return torch.rand(self.rows, *shape, generator=self.generator, device=self.device)


class EnvironmentNoise:
    """N streams, made on the CPU: the same numbers on every device.

    Args:
        num_envs: N.
        seed: of all of them.
        device: where the numbers go.
    """

    def __init__(self, num_envs: int, seed: int, device: torch.device) -> None:
        self.generators = [torch.Generator().manual_seed((seed * _STRIDE + i) % 2**63) for i in range(num_envs)]
        self.seed, self.device = seed, device

    def begin(self, index: int, episode: int) -> None:
        """The stream of environment `index` begins anew, as that of the episode with this seed."""
        self.generators[index].manual_seed(stream(self.seed, "episode", episode))

    def of(self, rows: Tensor) -> Noise:
        """The streams of the environments `rows [K]`, int64."""
        return _Rows([self.generators[i] for i in rows.tolist()], self.device)

    def state_dict(self) -> dict[str, Any]:
        """Where each stream is."""
        return {"generators": [g.get_state() for g in self.generators]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`."""
        for generator, value in zip(self.generators, state["generators"], strict=True):
            generator.set_state(value)


class _Rows:
    def __init__(self, generators: Sequence[torch.Generator], device: torch.device) -> None:
        self.generators, self.device = generators, device

    def normal(self, *shape: int) -> Tensor:
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators]).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.stack([torch.rand(shape, generator=g) for g in self.generators]).to(self.device)
