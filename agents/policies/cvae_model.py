"""Networks of DiffTOP for imitation: a conditional VAE whose decoder is an optimizer.

h = encoder(o),   q(w | h, a*) = N(mu, diag sigma^2),   p(w) = N(0, I)
h_{t+1} = d(h_t, w, a_t),   rows phi(h_t, w, a_t),   c_t = 1/2 |phi|^2
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from difftop.losses import full_precision
from difftop.nn.linearize import StateAction, linearize
from difftop.nn.mlp import mlp, orthogonal_
from difftop.options import option
from difftop.planning.model import LatentModel

Pullback = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ILModelConfig:
    """Sizes of the networks."""

    structure: str = option(
        "dynamics",
        "cost of each step along latent dynamics (the paper), or one cost of the flat chunk without dynamics (its code)",
        choices=("dynamics", "chunk"),
    )
    state_dim: int = option(32, "size of h, the encoded observations", low=1)
    latent_dim: int = option(4, "size of w, the CVAE's latent; 0: none, the plan depends on the observations alone", low=0)
    encoder_dims: list[int] = option([256], "widths of the encoder's hidden layers", low=1)
    posterior_dims: list[int] = option([256], "widths of the posterior's hidden layers", low=1)
    dynamics_dims: list[int] = option([96], "widths of the dynamics' hidden layers", low=1)
    cost_dims: list[int] = option([96], "widths of the cost's hidden layers", low=1)
    rows: int = option(6, "entries of phi(z, a): rows of a step's cost, of the chunk's with structure=chunk", low=1)
    row_gain: float = option(
        1.0, "gain of the cost's last layer in the beginning; a small one leaves the plan where it starts", above=0
    )
    discount: float = option(1.0, "gamma of the planner's objective", above=0, high=1)


class Posterior(nn.Module):
    """q(w | h, a*) of chunks `[B, H, A]`; padded steps are zeros that are marked as such.

    Args:
        state_dim: of h.
        horizon, action_dim: of a chunk.
        hidden: widths.
        latent_dim: of w.
    """

    def __init__(self, state_dim: int, horizon: int, action_dim: int, hidden: list[int], latent_dim: int) -> None:
        super().__init__()
        self.net = mlp([state_dim + horizon * (action_dim + 1), *hidden, 2 * latent_dim])

    def forward(self, state: Tensor, actions: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance `[B, W]`.

        Args:
            state: h `[B, S]`.
            actions: `[B, H, A]`.
            known: `[B, H]` bool, False where a step is padding.
        """
        marks = known.to(actions.dtype)
        seen = torch.where(known[..., None], actions, 0.0).flatten(1)
        mean, log_variance = full_precision(self.net(torch.cat([state, seen, marks], -1))).chunk(2, -1)
        return mean, log_variance.clamp(-20, 20)  # keeps exp and its gradient finite


def kl_to_standard(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence of N(mean, diag e^log_variance) from N(0, I), nats.

        1/2 sum_k (mu_k^2 + sigma_k^2 - 1 - log sigma_k^2)

    Args:
        mean, log_variance: `[B, W]`.
    Returns:
        `[B]`.
    Source: Kingma and Welling, arXiv:1312.6114, appendix B.
    """
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1) / 2


class LatentDynamics(nn.Module):
    """d: `((h, w), a) -> (h', w)`; the CVAE's latent passes through, so that a plan keeps its mode."""

    def __init__(self, state_dim: int, latent_dim: int, action_dim: int, hidden: list[int]) -> None:
        super().__init__()
        self.state_dim = state_dim
        self.net = mlp([state_dim + latent_dim + action_dim, *hidden, state_dim])

    def forward(self, z: Tensor, a: Tensor) -> Tensor:
        """Next latents `[B, Z]`."""
        return torch.cat([full_precision(self.net(torch.cat([z, a], -1))), z[:, self.state_dim :]], -1)

    def linearize(self, z: Tensor, a: Tensor) -> tuple[Tensor, Pullback]:
        """Next latents, and their pullback to `(z, a)`."""
        state, pull = linearize(self.net, torch.cat([z, a], -1))
        size = self.state_dim

        def pullback(cotangent: Tensor) -> tuple[Tensor, Tensor]:
            g = full_precision(pull(cotangent[..., :size]))
            kept = g[..., size : z.shape[-1]] + cotangent[..., size:]
            return torch.cat([g[..., :size], kept], -1), g[..., z.shape[-1] :]

        return torch.cat([full_precision(state), z[:, size:]], -1), pullback


class NoDynamics:
    """`(z, a) -> z`, for a chunk that is one action."""

    def __call__(self, z: Tensor, a: Tensor) -> Tensor:
        """z."""
        return z

    def linearize(self, z: Tensor, a: Tensor) -> tuple[Tensor, Pullback]:
        """z and its pullback."""
        return z, lambda cotangent: (cotangent, cotangent.new_zeros(*cotangent.shape[:-1], a.shape[-1]))


class CostModel(nn.Module):
    """What the planner minimizes: latent dynamics and a cost.

    Args:
        config: sizes.
        horizon, action_dim: H and A of a plan.
        objective: of the planner; `cost` has rows, the others a scalar reward, the papers' f.
    Attributes:
        steps, step_dim: the planner's own H and A: of a chunk without dynamics 1 and H A.
    """

    def __init__(self, config: ILModelConfig, horizon: int, action_dim: int, objective: str) -> None:
        super().__init__()
        self.discount, self.squares = config.discount, objective == "cost"
        chunk = config.structure == "chunk"
        self.steps, self.step_dim = (1, horizon * action_dim) if chunk else (horizon, action_dim)
        self.dynamics: LatentDynamics | None = None
        if not chunk:
            self.dynamics = LatentDynamics(config.state_dim, config.latent_dim, action_dim, list(config.dynamics_dims))
        inputs = config.state_dim + config.latent_dim + self.step_dim
        self.cost = mlp([inputs, *config.cost_dims, config.rows if self.squares else 1])
        orthogonal_(self.cost[-1].weight, config.row_gain)  # type: ignore[arg-type]

    def latent_model(self) -> LatentModel:
        """The callables that a planner needs."""
        dynamics = self.dynamics or NoDynamics()
        if self.squares:
            return LatentModel(dynamics, cost=StateAction(self.cost), discount=self.discount)
        return LatentModel(dynamics, reward=StateAction(self.cost, scalar=True), discount=self.discount)
