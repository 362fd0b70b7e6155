"""Losses of latent world models, and the arithmetic of a gradient step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn


class NonFiniteLossError(RuntimeError):
    """A loss is NaN or infinite; raised before any weight changes."""


def td_target(reward: Tensor, terminated: Tensor, next_value: Tensor, discount: float) -> Tensor:
    """One-step targets y = r + gamma (1 - terminated) V(s'); a time limit is not a termination and is bootstrapped.

    Args:
        reward, terminated, next_value: the same shape; `terminated` bool.
        discount: gamma in [0, 1].
    """
    return reward + discount * torch.where(terminated, 0.0, next_value)


def decayed_sum(errors: Tensor, rho: float, bound: float = 1e4) -> Tensor:
    """sum_t rho^t e_t per sample, bounded above so that one broken sample can't drown the batch.

    Args:
        errors: `[T, B]`, non-negative.
        rho: decay in [0, 1].
    Returns:
        `[B]`.
    Source: TD-MPC, arXiv:2203.04955, equation 7; the bound is the official code's.
    """
    weights = rho ** torch.arange(errors.shape[0], device=errors.device, dtype=errors.dtype)
    return (weights @ errors).clamp(max=bound)


def full_precision(x: Tensor) -> Tensor:
    """float32 where autocast made it bfloat16; anything else as it is."""
    return x.float() if x.dtype == torch.bfloat16 else x


def check_finite(loss: Tensor, name: str) -> None:
    """Raises `NonFiniteLossError` where `loss` (a scalar) is NaN or infinite."""
    if not torch.isfinite(loss):
        raise NonFiniteLossError(f"{name} is {loss.item()}")


def clipped_step(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Clips the joint gradient norm, steps, forgets the gradients.

    Returns:
        The norm before clipping, a 0-d tensor.
    """
    norm = nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm.detach()


@torch.no_grad()
def ema_(target: Iterable[Tensor], online: Iterable[Tensor], tau: float) -> None:
    """target <- (1 - tau) target + tau online, in place."""
    torch._foreach_lerp_(list(target), list(online), tau)


class RunningScale(nn.Module):
    """A running scale of returns: the spread of a batch's targets between two percentiles, averaged over updates.

        S <- (1 - tau) S + tau max(P95(y) - P5(y), floor)

    Kept as buffers, so that it is saved with the weights. The first batch sets it.

    Source: TD-MPC2, arXiv:2310.16828, appendix A (the scale of its policy loss).
    """

    value: Tensor
    filled: Tensor

    def __init__(self, tau: float = 0.01, floor: float = 1e-3) -> None:
        super().__init__()
        self.tau, self.floor = tau, floor
        self.register_buffer("value", torch.ones(()))
        self.register_buffer("filled", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def update(self, targets: Tensor) -> None:
        """Takes in a batch of targets, any shape."""
        values = targets.to(self.value.dtype).flatten()
        ends = torch.quantile(values, torch.tensor([0.05, 0.95], device=values.device, dtype=values.dtype))
        spread = (ends[1] - ends[0]).clamp(min=self.floor)
        self.value.copy_(torch.where(self.filled, torch.lerp(self.value, spread, self.tau), spread))
        self.filled.fill_(True)


def input_gradient(output: Tensor, inputs: Sequence[nn.Parameter]) -> list[Tensor]:
    """Gradients of the scalar `output` for `inputs` alone: networks on the way get no weight gradients, nor pay for them."""
    return cast("list[Tensor]", list(torch.autograd.grad(output, list(inputs))))
