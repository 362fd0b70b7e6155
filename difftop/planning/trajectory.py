"""A rollout that knows its structured Jacobian.

Row t of a plan's residuals depends on actions 0..t only, so a row is carried back through the dynamics from its own step, never
from the end: sum_t (H - t) pullbacks instead of H (H + 1), and all rows that pass through step t share one matrix product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from difftop.planning.model import LatentModel, check_shape, linearize_pair, linearize_state, unroll


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
        steps = torch.stack(actions.unbind(1))
        latents, self._pull, self._to_actions = unroll(model.dynamics, z0, steps)
        z, flat_z, flat_a = latents[-1], torch.cat(latents[:-1]), steps.flatten(0, 1)
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
        carried = None if self._terminal_pullback is None else self._terminal_pullback(weights[-1]).unsqueeze(0)
        traces = []
        for t in reversed(range(self._horizon)):
            if carried is None:
                carried = step_z[t : t + 1]
            else:
                gz, trace = self._pull(t, carried, t > 0)
                traces.append(trace)
                carried = gz + step_z[t] if gz is not None and t > 0 else None
        if traces:
            crossing = self._to_actions(torch.cat(traces[::-1]))
            step_a = torch.cat([step_a[: len(traces)] + crossing, step_a[len(traces) :]])
        return step_a.transpose(0, 1).flatten(1)

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
        traces: list[Tensor] = []
        own_z, own_a = step_z.unbind(), step_a.unbind()
        for t in reversed(range(horizon)):
            if carried is None:
                carried = own_z[t]
                continue
            gz, trace = self._pull(t, carried, t > 0)
            traces.append(trace)
            carried = torch.cat([own_z[t], gz]) if gz is not None and t > 0 else None
        # All action parts are one product, and all entries of the Jacobian one copy: column t holds zeros for the rows of earlier
        # steps, those of its own, those that cross it, and zeros for a terminal row that the model does not have.
        crossing: list[Tensor] = []
        if traces:
            sizes = [trace.shape[0] for trace in traces]
            crossing = list(self._to_actions(torch.cat(traces) if len(traces) > 1 else traces[0]).split(sizes))[::-1]  # type: ignore[no-untyped-call]
        zeros = step_a.new_zeros(max(total - count, 1), batch, action_dim)
        entries: list[Tensor] = []
        for t in range(horizon):
            above, below = t * count, total - (t + 1) * count
            if above:
                entries.append(zeros[:above])
            entries.append(own_a[t])
            if t < len(crossing):
                entries.append(crossing[t])
                below -= crossing[t].shape[0]
            if below:
                entries.append(zeros[:below])
        column = torch.cat(entries)
        return column.view(horizon, total, batch, action_dim).permute(2, 1, 0, 3).reshape(batch, total, horizon * action_dim)
