"""Slow, plain references that the planners are tested against and timed against; they share no planner code with the library."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from difftop.nn.linearize import PolicyValue, StateAction
from difftop.nn.mlp import EnsembleLinear, EnsembleNorm, ensemble_mlp, mlp
from difftop.planning.model import LatentModel


@dataclass(frozen=True)
class Networks:
    """A TD-MPC-like model: the callables with their fast paths, the same without, and all parameters."""

    fast: LatentModel
    plain: LatentModel
    parameters: list[torch.nn.Parameter]


def networks(
    latent: int, action: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 0, gamma: float = 0.99
) -> Networks:
    """Random networks with the shapes of TD-MPC's; values and rewards of order one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        dynamics, reward, policy = (
            mlp([latent + action, width, width, latent]),
            mlp([latent + action, width, width, 1]),
            mlp([latent, width, width, action]),
        )
        q = ensemble_mlp(2, [latent + action, width, width, 1], zero_last=False)
        for parameter in [p for net in (dynamics, reward, q, policy) for name, p in net.named_parameters() if "bias" in name]:
            torch.nn.init.normal_(parameter, std=0.1)
    nets = [net.to(dtype) for net in (dynamics, reward, q, policy)]
    d, r, v = StateAction(dynamics), StateAction(reward, scalar=True), PolicyValue(q, policy)

    def value(z: Tensor) -> Tensor:
        x = torch.cat([z, torch.tanh(policy(z))], -1)
        return torch.minimum(_member(q, 0, x), _member(q, 1, x)).squeeze(-1)

    plain = LatentModel(lambda z, a: d(z, a), lambda z, a: r(z, a), value, gamma)
    return Networks(LatentModel(d, r, v, gamma), plain, [p for net in nets for p in net.parameters()])


def _member(q: torch.nn.Sequential, i: int, x: Tensor) -> Tensor:
    """One member of an ensemble, layer by layer, as a network of its own (vmap copies the weights of batched products)."""
    for layer in q:
        if isinstance(layer, EnsembleLinear):
            x = F.linear(x, layer.weight[i], layer.bias[i, 0])
        elif isinstance(layer, EnsembleNorm):
            x = F.layer_norm(x, x.shape[-1:], layer.weight[i, 0], layer.bias[i, 0], layer.eps)
        else:
            x = layer(x)
    return x


def point_mass(dtype: torch.dtype = torch.float64, gamma: float = 0.95, scale: float = 1.0) -> LatentModel:
    """Double integrator in the plane: z = (position, velocity), a = acceleration, reward = scale (1 - |position|^2 - 0.1 a^2)."""

    def dynamics(z: Tensor, a: Tensor) -> Tensor:
        position, velocity = z.chunk(2, -1)
        velocity = velocity + 0.3 * a
        return torch.cat([position + 0.3 * velocity, velocity], -1)

    def reward(z: Tensor, a: Tensor) -> Tensor:
        return scale * (1 - z[..., :2].square().sum(-1) - 0.1 * a.square().sum(-1))

    def terminal(z: Tensor) -> Tensor:
        return scale * (3 - 3 * z[..., :2].square().sum(-1) - z[..., 2:].square().sum(-1))

    return LatentModel(dynamics, reward, terminal, gamma)


def outputs(model: LatentModel, z0: Tensor, actions: Tensor) -> Tensor:
    """Rewards and terminal value `[H+1]` of one plan `[H, A]` from one latent `[Z]`, by a plain loop."""
    assert model.reward is not None and model.terminal is not None
    z, values = z0.unsqueeze(0), []
    for a in actions.unsqueeze(1):
        values.append(model.reward(z, a))
        z = model.dynamics(z, a)
    return torch.cat([*values, model.terminal(z)])


def stagewise_rows(x: Tensor, target: Tensor, scale: float | Tensor, gamma: float, tau: float) -> Tensor:
    """`sqrt(2 gamma^t tau softplus((c_t - x_t / s) / tau))` for outputs x `[..., H+1]`."""
    weights = gamma ** torch.arange(x.shape[-1], dtype=x.dtype)
    return (2 * weights * tau * F.softplus((target - x / scale) / tau, threshold=40)).sqrt()


def naive_lm(
    rows: Callable[[Tensor], Tensor], start: Tensor, iterations: int, damping: float, step_size: float = 1.0, box: float = 1.0
) -> Tensor:
    """Levenberg-Marquardt on one problem: dense Jacobian by autograd, primal normal equations, projection, active set.

    Args:
        rows: flat actions `[N]` to residuals `[R]`.
        start: flat actions `[N]`.
        box: half width of the box; infinity for none.
    """
    a = start.clone()
    for _ in range(iterations):
        r, jacobian = rows(a), torch.func.jacrev(rows)(a)
        gradient = jacobian.t() @ r
        free = ~(((a >= box) & (gradient < 0)) | ((a <= -box) & (gradient > 0)))
        j = jacobian[:, free]
        step = torch.zeros_like(a)
        system = j.t() @ j + damping * torch.eye(j.shape[1], dtype=a.dtype)
        step[free] = -torch.linalg.solve(system, j.t() @ r)
        a = (a + step_size * step).clamp(-box, box)
    return a


def projected_adam(objective: Callable[[Tensor], Tensor], start: Tensor, iterations: int, rate: float) -> Tensor:
    """Maximizes `objective: [B, H, A] -> [B]` on the box by Adam steps, projected; returns the best iterate of each sample."""
    a = start.clone()
    first, second = torch.zeros_like(a), torch.zeros_like(a)
    best, best_value = a.clone(), torch.full(a.shape[:1], -math.inf, dtype=a.dtype)
    for k in range(1, iterations + 2):
        a.requires_grad_()
        value = objective(a)
        (gradient,) = torch.autograd.grad(value.sum(), a)
        a, value = a.detach(), value.detach()
        better = value > best_value
        best[better], best_value = a[better], torch.maximum(value, best_value)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient.square()
        a = (a + rate * (first / (1 - 0.9**k)) / ((second / (1 - 0.999**k)).sqrt() + 1e-8)).clamp(-1, 1)
    return best


class AutoDiffTheseus:
    """Theseus as the papers use it: AutoDiff cost (vmap of jacrev), dense Cholesky, TheseusLayer, truncated backward; no box.

    `rows(actions [B, H*A], z0 [B, Z], *constants) -> [B, R]` is the residual; it may close over networks.
    """

    def __init__(
        self,
        rows: Callable[..., Tensor],
        dims: tuple[int, ...],
        count: int,
        dtype: torch.dtype,
        iterations: int,
        damping: float,
        step_size: float = 1.0,
        backward: str = "truncated",
        backward_iterations: int = 5,
    ) -> None:
        """Takes the widths of the actions and of every constant, and the number of rows."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import theseus as th

        widths = [torch.zeros(1, n, dtype=dtype) for n in dims]
        actions = th.Vector(tensor=widths[0], name="actions")
        constants = [th.Variable(w, name=f"constant{i}") for i, w in enumerate(widths[1:])]
        cost = th.AutoDiffCostFunction(
            [actions],
            lambda optim_vars, aux_vars: rows(optim_vars[0].tensor, *(v.tensor for v in aux_vars)),
            count,
            cost_weight=th.ScaleCostWeight(torch.ones(1, 1, dtype=dtype)),
            aux_vars=constants,
        )
        objective = th.Objective(dtype=dtype)
        objective.add(cost)
        optimizer = th.LevenbergMarquardt(
            objective,
            th.CholeskyDenseSolver,
            max_iterations=iterations,
            step_size=step_size,
            abs_err_tolerance=0.0,
            rel_err_tolerance=0.0,
        )
        self._layer = th.TheseusLayer(optimizer)
        self._kwargs = {"damping": damping, "backward_mode": backward}
        if backward == "truncated":
            self._kwargs["backward_num_iterations"] = backward_iterations

    def solve(self, actions: Tensor, *constants: Tensor) -> Tensor:
        """Last iterate `[B, H*A]` from `actions`, with gradient where grad mode is on."""
        inputs = {"actions": actions} | {f"constant{i}": c for i, c in enumerate(constants)}
        values, _ = self._layer.forward(inputs, optimizer_kwargs=dict(self._kwargs))
        result: Tensor = values["actions"]
        return result
