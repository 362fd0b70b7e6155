"""The model that a planner plans with: callables, and how their Jacobians are taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PairPullback = Callable[[Tensor], tuple[Tensor, Tensor]]
StatePullback = Callable[[Tensor], Tensor]
StepPullback = Callable[[int, Tensor, bool], tuple[Tensor | None, Tensor]]
Unrolled = tuple[list[Tensor], StepPullback, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class LatentModel:
    """A latent model as callables. A planner knows no agent and no network, only these.

    Every callable works row by row: row i of its output depends on row i of its inputs only. B is any number of rows; planners
    call `reward` and `cost` on all steps of all plans at once.

    A callable may own a fast path, a method `linearize(z, a)` (`linearize(z)` for `terminal`) that returns `(output, pullback)`;
    `pullback` maps cotangents `[*N, *output.shape]` to cotangents of the inputs, `[*N, B, Z]` and `[*N, B, A]`, by operations
    that autograd can differentiate again. `difftop.nn.linearize` builds it for networks. Without it autograd takes the Jacobian:
    same numbers, slower. `dynamics` may also own `unroll(z0, actions)`, all steps of a plan in one call; `unroll` below says what
    it returns.

    Attributes:
        dynamics: `(z [B, Z], a [B, A]) -> z' [B, Z]`.
        reward: `(z [B, Z], a [B, A]) -> [B]`, reward of one agent step; None for objective `cost`.
        terminal: `z [B, Z] -> [B]`, value of the last latent; None where there is none.
        discount: gamma in (0, 1].
        cost: `(z [B, Z], a [B, A]) -> rows [B, R]` of the step cost `c = 1/2 |rows|^2`; None except for objective `cost`.
    """

    dynamics: Callable[[Tensor, Tensor], Tensor]
    reward: Callable[[Tensor, Tensor], Tensor] | None = None
    terminal: Callable[[Tensor], Tensor] | None = None
    discount: float = 0.99
    cost: Callable[[Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.discount <= 1.0:
            raise ValueError(f"LatentModel.discount={self.discount}: must be in (0, 1].")

    @property
    def needs_autograd(self) -> bool:
        """Whether a Jacobian may need autograd: false where every callable says so by an attribute of this name."""
        callables = (self.dynamics, self.reward, self.terminal, self.cost)
        return any(getattr(function, "needs_autograd", True) for function in callables if function is not None)


def linearize_pair(function: Callable[[Tensor, Tensor], Tensor], z: Tensor, a: Tensor) -> tuple[Tensor, PairPullback]:
    """`function(z, a)` and its pullback, by the function's own fast path where it has one, else by autograd."""
    fast: Any = getattr(function, "linearize", None)
    if fast is not None:
        result: tuple[Tensor, PairPullback] = fast(z, a)
        return result
    output, pullback = _by_autograd(lambda inputs: function(*inputs), (z, a))

    def pair(cotangent: Tensor) -> tuple[Tensor, Tensor]:
        gradients = pullback(cotangent)
        return gradients[0], gradients[1]

    return output, pair


def unroll(dynamics: Callable[[Tensor, Tensor], Tensor], z0: Tensor, actions: Tensor) -> Unrolled:
    """Latents along plans, and how cotangents are carried back.

    Args:
        dynamics: `(z [B, Z], a [B, A]) -> z' [B, Z]`; its own method `unroll` is used where it has one.
        z0: `[B, Z]`.
        actions: `[H, B, A]`.
    Returns:
        latents: H + 1 tensors `[B, Z]`.
        pull: `(t, cotangents [*N, B, Z] of latent t + 1, wanted) -> (cotangents of latent t, trace [*N, B, W])`; the first may be
            None where it isn't wanted.
        to_actions: traces `[*N, B, W]`, of any steps together, to cotangents of the actions `[*N, B, A]`.
    """
    own: Any = getattr(dynamics, "unroll", None)
    if own is not None:
        result: Unrolled = own(z0, actions)
        check_shape("dynamics", result[0][-1], tuple(z0.shape))
        return result
    latents, pullbacks = [z0], []
    for a in actions.unbind():
        z, pullback = linearize_pair(dynamics, latents[-1], a)
        latents.append(check_shape("dynamics", z, tuple(z0.shape)))
        pullbacks.append(pullback)
    return latents, lambda t, cotangent, wanted: pullbacks[t](cotangent), lambda trace: trace


def linearize_state(function: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, StatePullback]:
    """`function(z)` and its pullback, by the function's own fast path where it has one, else by autograd."""
    fast: Any = getattr(function, "linearize", None)
    if fast is not None:
        result: tuple[Tensor, StatePullback] = fast(z)
        return result
    output, pullback = _by_autograd(lambda inputs: function(*inputs), (z,))
    return output, lambda cotangent: pullback(cotangent)[0]


def _by_autograd(
    function: Callable[[tuple[Tensor, ...]], Tensor], inputs: tuple[Tensor, ...]
) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    differentiable = torch.is_grad_enabled()
    points = tuple(x if differentiable and x.requires_grad else x.detach().requires_grad_() for x in inputs)
    with torch.enable_grad():
        # A view gives each input its own node, so that two inputs that share history are told apart.
        points = tuple(x.view_as(x) for x in points)
        output = function(points)

    def pullback(cotangent: Tensor) -> list[Tensor]:
        lead = cotangent.shape[: cotangent.dim() - output.dim()]
        rows = cotangent.reshape(-1, *output.shape).unbind()
        gradients = [_gradients(output, points, row, differentiable) for row in rows]
        stacked = (torch.stack(column) for column in zip(*gradients, strict=True))
        return [g.reshape(*lead, *g.shape[1:]) for g in stacked]

    return (output if differentiable else output.detach()), pullback


def _gradients(output: Tensor, points: tuple[Tensor, ...], cotangent: Tensor, differentiable: bool) -> list[Tensor]:
    if not output.requires_grad:
        return [torch.zeros_like(x) for x in points]
    gradients = torch.autograd.grad(
        output, points, cotangent, retain_graph=True, create_graph=differentiable, allow_unused=True, materialize_grads=True
    )
    return list(gradients)


def check_shape(name: str, output: Tensor, expected: tuple[int, ...]) -> Tensor:
    """`output`, or a ValueError that names the callable where its shape is wrong."""
    if output.shape != expected:
        raise ValueError(f"model.{name} returned shape {list(output.shape)}: must be {list(expected)}.")
    return output
