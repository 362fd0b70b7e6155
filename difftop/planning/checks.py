"""Checks of what callers hand to a planner."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from difftop.host import readable


def check_problem(z0: Tensor, prior: Tensor, previous: Tensor | None, action_dim: int) -> None:
    """Raises a ValueError that names the argument where shapes, dtypes or values can't be planned with.

    Values are read on a CPU only: elsewhere the host would wait for them.

    Args:
        z0: `[B, Z]`, finite.
        prior: `[B, H, A]`, finite, H >= 1.
        previous: as `prior`, or None.
        action_dim: A.
    """
    if z0.dim() != 2 or 0 in z0.shape:
        raise ValueError(f"z0: shape {list(z0.shape)}; must be [B, Z] with B, Z >= 1.")
    if z0.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"z0: {z0.dtype}; must be torch.float32 or torch.float64.")
    _check_plan("prior", prior, z0, action_dim)
    if previous is not None:
        _check_plan("previous", previous, z0, action_dim)
        if previous.shape != prior.shape:
            raise ValueError(
                f"previous: shape {list(previous.shape)}; must be prior's {list(prior.shape)} (shift_plan pads and cuts)."
            )
    if readable(z0) and not torch.isfinite(z0).all():
        raise ValueError(f"z0: {_bad_rows(z0)} of {z0.shape[0]} rows are not finite; check the encoder and its input.")


def check_scale(scale: Tensor | float | None, samples: int) -> None:
    """Raises a ValueError where `scale` is not None, a positive finite number, or `[B]` of such numbers."""
    if scale is None:
        return
    if isinstance(scale, Tensor):
        if scale.dim() > 1 or (scale.dim() == 1 and scale.shape[0] not in (1, samples)):
            raise ValueError(f"scale: shape {list(scale.shape)}; must be a number or [B={samples}].")
        if not readable(scale) or bool((torch.isfinite(scale) & (scale > 0)).all()):
            return
    elif math.isfinite(scale) and scale > 0:
        return
    raise ValueError(f"scale={scale}: must be positive and finite.")


def check_damping(damping: Tensor | None, samples: int) -> None:
    """Raises a ValueError where `damping` is not None, or `[B]` of positive finite numbers."""
    if damping is None:
        return
    if damping.shape != (samples,):
        raise ValueError(f"damping: shape {list(damping.shape)}; must be [B={samples}].")
    if readable(damping) and not bool((torch.isfinite(damping) & (damping > 0)).all()):
        raise ValueError(f"damping={damping}: must be positive and finite.")


def _check_plan(name: str, plan: Tensor, z0: Tensor, action_dim: int) -> None:
    if plan.dim() != 3 or plan.shape[0] != z0.shape[0] or plan.shape[1] < 1 or plan.shape[2] != action_dim:
        raise ValueError(f"{name}: shape {list(plan.shape)}; must be [B={z0.shape[0]}, H >= 1, A={action_dim}].")
    if plan.dtype != z0.dtype or plan.device != z0.device:
        raise ValueError(f"{name}: {plan.dtype} on {plan.device}; must be as z0, {z0.dtype} on {z0.device}.")
    if readable(plan) and not torch.isfinite(plan).all():
        raise ValueError(f"{name}: {_bad_rows(plan)} of {plan.shape[0]} rows are not finite; check the policy.")


def _bad_rows(x: Tensor) -> int:
    return int((~torch.isfinite(x.flatten(1)).all(1)).sum())
