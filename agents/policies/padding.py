"""What is to be done after the end of a demonstration: to stay, or nothing that counts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from difftop.data.demonstrations import Demonstrations
from difftop.data.windows import WindowBatch
from difftop.options import ConfigError, option


def pad_option(default: str) -> Any:
    """The option `pad`, with an agent's own default."""
    help_ = (
        "after the end of a demonstration; hold: no motion, actions in limits.free (a gripper) as they were; mask: doesn't count"
    )
    return option(default, help_, choices=("hold", "mask"))


def motions(selected: Sequence[int], actions: int) -> Tensor:
    """Which of so many actions are displacements, whose rest is 0: those that limits are for. `[A]` bool."""
    return torch.tensor([i in selected for i in range(actions)])


def held_targets(batch: WindowBatch, moves: Tensor, pad: str) -> tuple[Tensor, Tensor]:
    """Actions `[B, T, A]` to learn, and which of them count `[B, T]`; what the demonstrations end before is `pad`'s.

    Args:
        batch: of windows.
        moves: `[A]` bool, see `motions`.
        pad: hold or mask.
    """
    actions, known = repeated(batch.actions, batch.mask), batch.mask
    if pad == "mask":
        return actions, known
    after = (known.int().cumsum(1) == known.sum(1, keepdim=True)) & ~known & known.any(1, keepdim=True)
    return torch.where(after[..., None] & moves, 0.0, actions), known | after


def repeated(actions: Tensor, mask: Tensor) -> Tensor:
    """Actions `[B, T, A]` whose padded steps repeat the first or last that is none: what the network sees there is no target."""
    steps = torch.arange(mask.shape[1], device=mask.device)
    first = mask.int().argmax(1, keepdim=True)
    last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1, keepdim=True)
    index = torch.minimum(torch.maximum(steps, first), last)
    return actions.gather(1, index[..., None].expand_as(actions))


def check_rest(pad: str, demonstrations: Demonstrations) -> None:
    """Raises a `ConfigError` for pad=hold where actions are positions, of which 0 is no rest."""
    kwargs = demonstrations.env.kwargs
    if pad == "hold" and _are_positions(kwargs):
        raise ConfigError(
            "agent.pad=hold: actions of these demonstrations are positions, of which 0 is no rest "
            f"(control_mode={kwargs.get('control_mode')}); set agent.pad=mask."
        )


def _are_positions(kwargs: Mapping[str, Any]) -> bool:
    """Whether an environment's arguments, as a file tells them, make actions positions rather than displacements."""
    mode, told = str(kwargs.get("control_mode") or "delta"), json.dumps(dict(kwargs), default=str)
    said = '"control_delta": false' in told or '"input_type": "absolute"' in told  # robosuite's controllers
    return said or not ("delta" in mode or "vel" in mode)
