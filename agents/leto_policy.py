"""LeTO: a recurrent policy whose last layer optimizes the trajectory that it predicts.

    o_t -> encoder -> LSTM -> linear -> x_t,  e_t = -tanh(x_t) -> QP head -> y_t = (a_t, ..., a_{t+T_p-1})

Source: LeTO, arXiv:2401.17500, and its code ZhengtongXu/LeTO@d5a1dd5.
Differs: L stays triangular (the code trains its upper triangle too), any action dimension, limits are options, hidden states are
counted per environment (one counter for all in the code).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from difftop.data.demonstrations import Demonstrations
from difftop.data.normalize import Normalizer, leto_mode
from difftop.data.windows import WindowBatch, overlapping
from difftop.nn.mlp import mlp
from difftop.options import ConfigError, option
from difftop.qp import ClipHead, QPHead, SolveInfo, TrajectoryLimits
from difftop.qp.trajectory import TrajectoryRows
from difftop.types import SolveStatus

HEADS = ("none", "clip", "qp")


@dataclass(frozen=True)
class LimitsConfig:
    """What actions have to satisfy; action units are those of the normalized action, [-1, 1]."""

    free: list[int] = option([-1], "actions without limits and smoothing (a gripper); negative ones count from the end")
    dt: float = option(1.0, "time between actions, s; 1 makes the acceleration limit one per step", above=0)
    velocity: float = option(1.0, "largest |action|, action units", above=0, high=1)
    acceleration: float = option(0.1, "largest |change of an action| / dt, action units per s", above=0)
    position_key: str = option("", "observation that holds the position, m; empty for no position limits")
    position_axes: list[int] = option([], "actions whose position is limited; also the entries of position_key", low=0)
    position_min: list[float] = option([], "lowest position, m, one per axis; -.inf for none")
    position_max: list[float] = option([], "highest position, m, one per axis; .inf for none")
    metres_per_action: float = option(0.05, "how far action 1 moves in one step, m (robosuite 0.05, ManiSkill 0.1)", above=0)

    def make(self, action_dim: int, horizon: int) -> TrajectoryLimits:
        """The limits of trajectories `[horizon, action_dim]`; positions in action units times s, see `position_scale`."""
        free = {i + action_dim if i < 0 else i for i in self.free}
        if not free <= set(range(action_dim)):
            raise ConfigError(f"limits.free={self.free}: there are {action_dim} actions, numbered from 0, or from -1 backwards.")
        constrained = [i for i in range(action_dim) if i not in free]
        axes, low, high = self.position_axes, self.position_min, self.position_max
        if not len(axes) == len(low) == len(high) or bool(axes) != bool(self.position_key) or not set(axes) <= set(constrained):
            raise ConfigError(
                f"limits: position_key={self.position_key!r}, position_axes={axes}, position_min={low}, position_max={high}: "
                f"give all or none, one minimum and one maximum per axis, and axes among the limited actions {constrained}."
            )
        return TrajectoryLimits(
            action_dim,
            horizon,
            constrained,
            dt=self.dt,
            velocity_min=-self.velocity,
            velocity_max=self.velocity,
            acceleration_min=-self.acceleration,
            acceleration_max=self.acceleration,
            position_matrix=[[float(i == axis) for i in constrained] for axis in axes] or None,
            position_min=[x * self.position_scale for x in low] if axes else -torch.inf,
            position_max=[x * self.position_scale for x in high] if axes else torch.inf,
        )

    @property
    def position_scale(self) -> float:
        """The head's positions are sums of dt times actions: this many of them in a metre."""
        return self.dt / self.metres_per_action


@dataclass(frozen=True)
class LetoConfig:
    """Options of LeTO; the defaults are the paper's, for low-dimensional observations."""

    window: int = option(12, "T_s: steps the LSTM is unrolled for in training, and after which it forgets at deployment", low=1)
    horizon: int = option(6, "T_p: actions of one prediction", low=1)
    encoder_dims: list[int] = option([], "widths of an MLP between observations and LSTM; empty for none, as in the paper", low=1)
    hidden_dim: int = option(1000, "width of the LSTM", low=1)
    layers: int = option(2, "layers of the LSTM", low=1)
    normalization: str = option(
        "leto", "of observations; leto: positions by range", choices=("leto", "identity", "min_max", "standardize")
    )
    squash: bool = option(True, "e = -tanh(x), as in LeTO's code; False: e = -x, as in the paper's text")
    head: str = option("qp", "what keeps the limits", choices=HEADS)
    alpha: float = option(1.0, "head=qp: weight of the accelerations", low=0)
    eps: float = option(1e-4, "head=qp: added to the diagonal of L L^T", low=0)
    init: str = option("uniform", "head=qp: L at the start; uniform is LeTO's", choices=("uniform", "identity"))
    limits: LimitsConfig = option(LimitsConfig, "limits of velocity, acceleration and position")


class FreeHead(nn.Module):
    """No limits: `y = -e`, with the signature of `QPHead`."""

    def __init__(self, limits: TrajectoryLimits) -> None:
        super().__init__()
        self.limits = limits

    def forward(self, e: Tensor, position: Tensor | None = None, previous: Tensor | None = None) -> tuple[Tensor, SolveInfo]:
        """`-e` as `[B, T_p, A]`; every sample SOLVED."""
        zero = e.new_zeros(len(e), dtype=torch.float64)
        status = torch.full_like(zero, int(SolveStatus.SOLVED), dtype=torch.int64)
        return -e.view(len(e), self.limits.horizon, self.limits.action_dim), SolveInfo(status, zero, zero, status)


class LowDimEncoder(nn.Module):
    """Normalized observations end to end, in the order of `shapes`, and an MLP where there is one.

    Args:
        shapes: `(O,)` by key.
        dims: widths of the MLP's layers, none for no MLP.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dims: list[int]) -> None:
        super().__init__()
        inputs = sum(shape[0] for shape in shapes.values())
        self.order, self.out = tuple(shapes), dims[-1] if dims else inputs
        self.normalizer = Normalizer(shapes)
        self.net = mlp([inputs, *dims]) if dims else nn.Identity()

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Features `[..., out]` of observations `[..., O]` by key."""
        features: Tensor = self.net(torch.cat([self.normalizer[key](obs[key]) for key in self.order], -1))
        return features


class LetoPolicy(nn.Module):
    """The network, its loss, and the making of its actors.

    Args:
        config: options.
        shapes: observations by key, `(O,)` each; `Demonstrations.shapes`.
        action_dim: A.
        seed: of the initial weights.
    """

    def __init__(self, config: LetoConfig, shapes: Mapping[str, tuple[int, ...]], action_dim: int, *, seed: int) -> None:
        super().__init__()
        self.config, self.limits = config, config.limits.make(action_dim, config.horizon)
        key, axes = config.limits.position_key, config.limits.position_axes
        if key and (key not in shapes or max(axes) >= shapes[key][0]):
            raise ConfigError(f"limits.position_key={key}, position_axes={axes}: no such observations; there are {dict(shapes)}.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = LowDimEncoder(shapes, list(config.encoder_dims))
            self.lstm = nn.LSTM(self.encoder.out, config.hidden_dim, config.layers, batch_first=True)
            self.linear = nn.Linear(config.hidden_dim, self.limits.size)
            self.head = self._make_head(config.head)

    def fit_normalizer_(self, demonstrations: Demonstrations) -> None:
        """Takes the numbers of the normalization from demonstrations; they are part of the state dict."""
        for key in self.encoder.order:
            mode = leto_mode(key) if self.config.normalization == "leto" else self.config.normalization
            self.encoder.normalizer[key].fit_(demonstrations.rows(key), mode)

    def forward(
        self, obs: Mapping[str, Tensor], hidden: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Linear terms of the head.

        Args:
            obs: by key `[B, T, O]`.
            hidden: h and c of the LSTM, `[layers, B, hidden_dim]`; None for zeros.
        Returns:
            e `[B, T, T_p A]`, and h and c after the last step.
        """
        features = self.encoder(obs)
        if hidden is not None and features.shape[1] == 1:
            features, hidden = self._step(features, hidden)
        else:
            features, hidden = self.lstm(features, hidden)
        x = self.linear(features)
        return -(torch.tanh(x) if self.config.squash else x), hidden

    def _step(self, features: Tensor, hidden: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One step of the LSTM, layer by layer: `nn.LSTM` repacks its weights in every call, ten times the work on a CPU."""
        y, states = features[:, 0], []
        for layer, (h, c) in enumerate(zip(*hidden, strict=True)):
            weights = [getattr(self.lstm, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            y, c = torch.lstm_cell(y, (h, c), *weights)
            states.append((y, c))
        h, c = (torch.stack(x) for x in zip(*states, strict=True))
        return y[:, None], (h, c)

    def predict(self, obs: Mapping[str, Tensor]) -> tuple[Tensor, SolveInfo]:
        """Trajectories `[B, T, T_p, A]` from a zero hidden state, without a previous action; `SolveInfo` of B T samples."""
        e, _ = self(obs)
        y, info = self.head(e.flatten(0, 1), self.positions(obs))
        return y.unflatten(0, e.shape[:2]), info

    def loss(self, batch: WindowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error against the T_s overlapping targets of T_p actions, over what is neither padding nor unsolved:

            mean_{b, i, j, k} (y_bijk - a_{b, i+j, k})^2

        Returns:
            the loss, and metrics by tag: `loss`, `qp/uncertified` (share of samples without an action), `qp/kkt`
                (worst residual of the others).
        Source: LeTO, arXiv:2401.17500, section III-A; the mean over all entries, gripper included, is its code's.
        """
        y, info = self.predict(batch.obs)
        error = (y - overlapping(batch.actions, self.config.horizon)).square().mean(-1)  # [B, T_s, T_p]
        weight = overlapping(batch.mask, self.config.horizon).to(error.dtype)
        counted = info.mean(weight.mean(-1).flatten())
        loss = info.mean((error * weight).mean(-1).flatten()) / counted.clamp_min(torch.finfo(counted.dtype).tiny)
        certified = info.certified
        kkt = torch.where(certified, info.kkt, 0.0).max()
        return loss, {"loss": loss.detach(), "qp/uncertified": 1 - certified.double().mean(), "qp/kkt": kkt}

    def positions(self, obs: Mapping[str, Tensor]) -> Tensor | None:
        """Positions of the limited actions `[B T, c]` in the head's unit, zero where there is no limit; None without limits."""
        limits = self.config.limits
        if not limits.position_key:
            return None
        measured = obs[limits.position_key].flatten(0, 1)
        positions = measured.new_zeros(len(measured), len(self.limits.selected))
        for axis in limits.position_axes:
            positions[:, self.limits.selected.index(axis)] = measured[:, axis] * limits.position_scale
        return positions

    def actor(self, num_envs: int, head: str | None = None) -> LetoActor:
        """Acts in N environments, by the trained head or, at deployment only, by another one."""
        return LetoActor(self, num_envs, self.config.head if head is None else head)

    def deployed_head(self, name: str) -> nn.Module:
        """The trained head, or a new one: `none`, `clip`, or `qp`, the nearest trajectory inside the limits."""
        if name not in HEADS:
            raise ConfigError(f"head={name}: must be one of {', '.join(HEADS)}.")
        if name == self.config.head:
            return self.head
        made = QPHead.projection(self.limits) if name == "qp" else self._make_head(name)
        return made.to(self.linear.weight.device)

    def unlimited(self, e: Tensor) -> Tensor:
        """e `[B, T_p A]` for another head: minus the trajectory that the trained head would give without limits."""
        if not isinstance(self.head, QPHead):
            return e
        wanted: Tensor = torch.linalg.solve(self.head.hessian(), e.double().mT).mT
        return wanted.to(e.dtype)

    def _make_head(self, name: str) -> nn.Module:
        if name == "qp":
            return QPHead(self.limits, alpha=self.config.alpha, eps=self.config.eps, init=self.config.init)
        return ClipHead(self.limits) if name == "clip" else FreeHead(self.limits)


class LetoActor:
    """Executes the first action of each prediction; see `agents.base.Actor`, with observations by key.

    An environment's hidden state is zeroed where an episode begins and after every T_s calls, as in training. The last executed
    action, zero at the start, goes into the head (continuity, equation 11). Where the head has no certified action, the limited
    actions brake as hard as the acceleration limit allows, and the others stay as they are; it is counted.
    """

    def __init__(self, policy: LetoPolicy, num_envs: int, head: str) -> None:
        self.policy, self.head, self.own = policy, policy.deployed_head(head), head == policy.config.head
        weight, config = policy.linear.weight, policy.config
        self.rows = TrajectoryRows(policy.limits).to(weight.device)
        zeros = weight.new_zeros(config.layers, num_envs, config.hidden_dim)
        self.hidden = (zeros, zeros)
        self.calls = torch.zeros(num_envs, dtype=torch.int64, device=weight.device)  # since the episode began
        self.previous = weight.new_zeros(num_envs, policy.limits.action_dim)
        self._counters = torch.zeros(3, dtype=torch.float64)  # actions, braked, relaxed

    @torch.no_grad()
    def act(self, obs: Mapping[str, Tensor], t0: Tensor, agent_steps: int = 0) -> Tensor:
        """Actions `[N, A]` in [-1, 1] of observations by key `[N, O]`; `t0 [N]` is True where an episode begins."""
        policy, t0 = self.policy, t0.to(self.calls.device)
        seen = {key: obs[key].to(self.previous)[:, None] for key in policy.encoder.order}
        self.calls = torch.where(t0, 0, self.calls)
        self.previous = torch.where(t0[:, None], 0.0, self.previous)
        fresh = (self.calls % policy.config.window == 0)[:, None]
        h, c = (torch.where(fresh, 0.0, x) for x in self.hidden)
        e, self.hidden = policy(seen, (h, c))
        y, info = self._solve(e[:, 0] if self.own else policy.unlimited(e[:, 0]), policy.positions(seen))
        action = torch.where(info.certified[:, None], y[:, 0], self._brake()).clamp(-1, 1)
        self.calls, self.previous = self.calls + 1, action
        relaxed = info.status == int(SolveStatus.RELAXED)
        self._counters += torch.stack([torch.ones_like(relaxed).sum(), (~info.certified).sum(), relaxed.sum()]).cpu()
        return action.float()

    def _solve(self, e: Tensor, position: Tensor | None) -> tuple[Tensor, SolveInfo]:
        """The head in evaluation mode, in which it may relax position limits, whatever mode the policy is in."""
        training = self.head.training
        self.head.eval()
        y, info = self.head(e, position, self.previous)
        self.head.train(training)
        return y, info

    def _brake(self) -> Tensor:
        """The last action, moved towards zero by what the acceleration limit allows."""
        chosen = self.rows.chosen
        last = self.previous[:, chosen].double()
        slowed = torch.zeros_like(last).clamp(last + self.rows.jump_min, last + self.rows.jump_max)
        return self.previous.index_copy(1, chosen, slowed.to(self.previous))

    def metrics(self) -> dict[str, float]:
        """Shares of actions that were braked and that were relaxed, since the last call."""
        actions, braked, relaxed = self._counters.tolist()
        self._counters.zero_()
        return {"qp/braked": braked / max(actions, 1), "qp/relaxed": relaxed / max(actions, 1)}

    def state_dict(self) -> dict[str, Any]:
        """All memory."""
        return {
            "hidden": list(self.hidden),
            "calls": self.calls,
            "previous": self.previous,
            "counters": self._counters.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`, bit for bit."""
        h, c = (x.to(self.previous.device) for x in state["hidden"])
        self.hidden = (h, c)
        self.calls, self.previous = state["calls"].to(self.calls.device), state["previous"].to(self.previous.device)
        self._counters = state["counters"].clone()
