"""What a frozen policy does at the observations of demonstrations, worked out once: training asks for it again in every epoch."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.policies.chunks import ChunkPolicy
from agents.policies.noise import BatchNoise
from difftop.data.windows import Episodes, Windows

log = logging.getLogger(__name__)

_BATCH = 256  # windows that are worked out together
_TELL_S = 20.0  # between two lines of progress: a diffusion base takes a tenth of a second per observation
_MOST_BYTES = 2**31  # of a table. A constant, not what is free here: a run that goes on elsewhere learns from the same numbers


@dataclass(frozen=True)
class Foreseen:
    """What `ChunkPolicy.foresee` tells of R observations.

    Attributes:
        table: `[R, ages, P]`; an age is how many observations the policy's memory has of before. One where that doesn't matter.
    """

    table: Tensor

    def at(self, rows: Tensor, age: Tensor) -> Tensor:
        """Of observations `rows [...]` with memories of `age [...]`: `[..., P]`."""
        return self.table[rows, age.clamp(0, self.table.shape[1] - 1)]


@torch.no_grad()
def foreseen(policy: ChunkPolicy, demonstrations: Episodes, span: int, draws: int, generator: torch.Generator) -> Foreseen | None:
    """Works it out, in an order that depends on nothing but the demonstrations.

    Args:
        policy: in evaluation mode.
        demonstrations: whose rows are meant; those of other episodes in the same tensors stay zeros.
        span: observations of a training window, of which the first may be where a memory begins.
        draws: chunks for each observation, where a chunk is a random number's.
        generator: of these, on the policy's device.
    Returns:
        None where the table would be too large, or the policy crops images at random, which the log says.
    """
    if policy.observer.encoder.crops_randomly:  # what it sees of an image is another part each time
        log.info("what the base does is worked out anew at every step: agent.encoder.evaluation_crop=random")
        return None
    if policy.recalls:
        windows = Windows(demonstrations, span, 1, pad_after=span - 1)  # begins at every observation, and goes on from it
    else:
        windows = Windows(demonstrations, policy.lead + 1, 1, pad_before=policy.lead)  # ends at every observation
    ages, device, table = span if policy.recalls else 1, policy.device, None
    begun = told = time.monotonic()
    for index in torch.split(torch.arange(len(windows)), _BATCH):
        if index[0] and time.monotonic() - told > _TELL_S:
            told = time.monotonic()
            left = (told - begun) * (len(windows) / int(index[0]) - 1)
            log.info("what the base does: %s of %s observations, %.0f s left", f"{int(index[0]):,}", f"{len(windows):,}", left)
        batch = windows.gather(index).to(device)
        kept = policy.foresee(batch.obs, BatchNoise(len(index), generator, device), draws)  # [B, T or 1, P]
        if table is None:
            shape = (len(demonstrations.actions), ages, kept.shape[-1])
            if 4 * shape[0] * shape[1] * shape[2] > _MOST_BYTES:
                log.warning("what the base does takes too much memory to be kept, and is worked out anew at every step")
                return None
            table = torch.zeros(shape, device=device)
        assert batch.rows is not None
        last = kept.shape[1]
        rows, known = batch.rows[:, -last:], batch.mask[:, -last:]
        age = torch.arange(last, device=device).expand_as(rows)
        table[rows[known], age[known]] = kept[known].to(table.dtype)
    assert table is not None
    log.info("what the base does at %s observations is worked out (%.0f MB)", f"{len(windows):,}", table.nbytes / 2**20)
    return Foreseen(table)
