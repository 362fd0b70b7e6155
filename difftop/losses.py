"""Losses of latent world models, and the arithmetic of a gradient step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn


class NonFiniteLossError(RuntimeError):
    """A loss or its gradient is NaN or infinite; raised before the step that would spread it."""


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


def clipped_step(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], max_norm: float, name: str) -> Tensor:
    """Clips the joint gradient norm, steps, forgets the gradients.

    Returns:
        The norm before clipping, a 0-d tensor.
    Raises:
        NonFiniteLossError: the norm of `name` isn't finite (a finite loss can have such a gradient); no weight has moved.
    """
    norm = nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)
    if not torch.isfinite(norm):
        optimizer.zero_grad(set_to_none=True)
        raise NonFiniteLossError(f"the norm of {name} is {norm.item()}")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm.detach()


@torch.no_grad()
def ema_(target: Iterable[Tensor], online: Iterable[Tensor], tau: float) -> None:
    """target <- (1 - tau) target + tau online, in place."""
    torch._foreach_lerp_(list(target), list(online), tau)


class RunningScale(nn.Module):
    """A running scale of numbers: their spread between two percentiles, averaged over updates, or a share of the largest seen.

        S <- (1 - tau) S + tau max(P95(x) - P5(x), floor),     M <- max(M, max |x|),     value = max(S, peak M)

    The second term holds the scale up where most numbers are zero, as rewards are in sparse tasks: there both percentiles are
    zero until the task is solved. Kept as buffers, so that it is saved with the weights. The first batch sets S.

    Source: TD-MPC2, arXiv:2310.16828, appendix A (the scale of its policy loss).  Differs: the peak.
    """

    spread: Tensor
    largest: Tensor
    filled: Tensor

    def __init__(self, tau: float = 0.01, floor: float = 1e-3, peak: float = 0.1) -> None:
        super().__init__()
        self.tau, self.floor, self.peak = tau, floor, peak
        self.register_buffer("spread", torch.ones(()))
        self.register_buffer("largest", torch.zeros(()))
        self.register_buffer("filled", torch.zeros((), dtype=torch.bool))

    @property
    def value(self) -> Tensor:
        """The scale now, 0-d; 1 before the first batch."""
        return torch.maximum(self.spread, self.peak * self.largest)

    @torch.no_grad()
    def update(self, numbers: Tensor) -> None:
        """Takes in a batch, any shape; one with a non-finite number, which the loss will tell, is passed over."""
        values = numbers.to(self.spread.dtype).flatten()
        ends = torch.quantile(values, torch.tensor([0.05, 0.95], device=values.device, dtype=values.dtype))
        spread, largest = (ends[1] - ends[0]).clamp(min=self.floor), values.abs().amax()
        sound = torch.isfinite(largest)
        spread = torch.where(self.filled, torch.lerp(self.spread, spread, self.tau), spread)
        self.spread.copy_(torch.where(sound, spread, self.spread))
        self.largest.copy_(torch.where(sound, torch.maximum(self.largest, largest), self.largest))
        self.filled.logical_or_(sound)


def input_gradient(output: Tensor, inputs: Sequence[nn.Parameter]) -> list[Tensor]:
    """Gradients of the scalar `output` for `inputs` alone: networks on the way get no weight gradients, nor pay for them."""
    return cast("list[Tensor]", list(torch.autograd.grad(output, list(inputs))))
