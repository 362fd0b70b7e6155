"""A rollout that knows its structured Jacobian.

Row t of a plan's residuals depends on actions 0..t only, so a row is carried back through the dynamics from its own step, never
from the end: sum_t (H - t) pullbacks instead of H (H + 1), and all rows that pass through step t share one matrix product.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from difftop.planning.model import LatentModel, PairPullback, check_shape, linearize_pair, linearize_state


class Trajectory:
    """Rewards and terminal value of plans, or the rows of their cost, with the means to take Jacobians.

    Attributes:
        outputs: rewards R_0 .. R_{H-1} and the terminal value V, `[H+1, B]`; empty for a cost.
        cost_rows: rows of the cost `[H, B, R]`; None for rewards.
    """

    def __init__(self, model: LatentModel, z0: Tensor, actions: Tensor, cost: bool = False) -> None:
        """Rolls out.

        Args:
            model: callables.
            z0: `[B, Z]`.
            actions: `[B, H, A]`.
            cost: use `model.cost` instead of `model.reward` and `model.terminal`.
        """
        batch, self._horizon, _ = actions.shape
        z, latents = z0, []
        self._dynamics: list[PairPullback] = []
        steps = actions.transpose(0, 1)
        for a in steps.unbind():
            latents.append(z)
            z, pullback = linearize_pair(model.dynamics, z, a)
            check_shape("dynamics", z, tuple(z0.shape))
            self._dynamics.append(pullback)
        flat_z, flat_a = torch.cat(latents), steps.reshape(self._horizon * batch, -1)
        self.outputs = z.new_empty(0)
        self.cost_rows: Tensor | None = None
        if cost:
            if model.cost is None:
                raise ValueError("model.cost is None: objective 'cost' needs LatentModel(cost=...).")
            rows, self._step_pullback = linearize_pair(model.cost, flat_z, flat_a)
            if rows.dim() != 2 or rows.shape[0] != flat_z.shape[0]:
                raise ValueError(f"model.cost returned shape {list(rows.shape)}: must be [{flat_z.shape[0]}, R].")
            self.cost_rows = rows.view(self._horizon, batch, -1).to(z0.dtype)
            return
        if model.reward is None:
            raise ValueError("model.reward is None: objectives 'stagewise' and 'return' need LatentModel(reward=...).")
        rewards, self._step_pullback = linearize_pair(model.reward, flat_z, flat_a)
        check_shape("reward", rewards, (self._horizon * batch,))
        self._terminal_pullback = None
        if model.terminal is None:
            terminal = rewards.new_zeros(batch)
        else:
            terminal, self._terminal_pullback = linearize_state(model.terminal, z)
            check_shape("terminal", terminal, (batch,))
        self.outputs = torch.cat([rewards.view(self._horizon, batch), terminal.unsqueeze(0)]).to(z0.dtype)

    def reward_jacobian(self, weights: Tensor) -> Tensor:
        """Jacobian of the rows `[w_0 R_0, ..., w_{H-1} R_{H-1}, w_H V]` with the weights held.

        Args:
            weights: `[H+1, B]`.
        Returns:
            `[B, H+1, H*A]`.
        """
        step_z, step_a = self._step_cotangents(weights[:-1])
        carried = None if self._terminal_pullback is None else self._terminal_pullback(weights[-1]).unsqueeze(0)
        return self._carry(step_z.unsqueeze(1), step_a.unsqueeze(1), carried)

    def return_gradient(self, weights: Tensor) -> Tensor:
        """Gradient of `sum_{t<H} w_t R_t + w_H V` with the weights held, `[B, H*A]`; `weights [H+1, B]`."""
        step_z, step_a = self._step_cotangents(weights[:-1])
        carried = None if self._terminal_pullback is None else self._terminal_pullback(weights[-1])
        columns = []
        for t in reversed(range(self._horizon)):
            if carried is None:
                columns.append(step_a[t])
                carried = step_z[t]
            else:
                gz, ga = self._dynamics[t](carried)
                columns.append(ga + step_a[t])
                carried = gz + step_z[t]
        return torch.stack(columns[::-1], 1).flatten(1)

    def cost_jacobian(self, weights: Tensor) -> Tensor:
        """Jacobian `[B, H*R, H*A]` of the cost rows, row block t times `weights[t]` of `weights [H, B]`."""
        if self.cost_rows is None:
            raise ValueError("cost_jacobian needs a Trajectory made with cost=True.")
        horizon, batch, count = self.cost_rows.shape
        eye = torch.eye(count, dtype=weights.dtype, device=weights.device)
        cotangents = (eye[:, None, None] * weights[None, :, :, None]).reshape(count, horizon * batch, count)
        gz, ga = self._step_pullback(cotangents)
        step_z = gz.view(count, horizon, batch, -1).transpose(0, 1)
        step_a = ga.view(count, horizon, batch, -1).transpose(0, 1)
        return self._carry(step_z, step_a, None)

    def _step_cotangents(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        gz, ga = self._step_pullback(weights.reshape(-1))
        return gz.view(*weights.shape, -1), ga.view(*weights.shape, -1)

    def _carry(self, step_z: Tensor, step_a: Tensor, carried: Tensor | None) -> Tensor:
        """Carries rows back through the dynamics.

        Args:
            step_z, step_a: cotangents at step t of the row block that starts there, `[H, R, B, Z]` and `[H, R, B, A]`.
            carried: cotangents `[1, B, Z]` of the last latent, or None (then its row is zero).
        Returns:
            `[B, H*R + 1, H*A]`; without the terminal row for costs.
        """
        horizon, count, batch, action_dim = step_a.shape
        total = horizon * count + (1 if self.cost_rows is None else 0)
        columns = []
        for t in reversed(range(horizon)):
            blocks = [step_a[t]]
            if carried is None:
                carried = step_z[t]
            else:
                gz, ga = self._dynamics[t](carried)
                blocks.append(ga)
                carried = torch.cat([step_z[t], gz]) if t else gz
            column = torch.cat(blocks) if len(blocks) > 1 else blocks[0]
            below = total - t * count - column.shape[0]  # a terminal row that the model does not have
            columns.append(F.pad(column, (0, 0, 0, 0, t * count, below)))
        return torch.stack(columns[::-1], 2).permute(1, 0, 2, 3).reshape(batch, total, horizon * action_dim)
