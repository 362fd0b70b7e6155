"""LeTO: a recurrent policy whose last layer optimizes the trajectory that it predicts.

    o_t -> encoder -> LSTM -> linear -> x_t,  e_t = -tanh(x_t) -> QP head -> y_t = (a_t, ..., a_{t+T_p-1})

Source: LeTO, arXiv:2401.17500, and its code ZhengtongXu/LeTO@d5a1dd5; experiment/leto_* are its settings.
Differs: L stays triangular (the code trains its upper triangle too; `head_triangular`), the last steps of a demonstration are
inputs too (`pad`), image crops at evaluation are central (`encoder.evaluation_crop`), any action dimension, limits are options,
hidden states are counted per environment (one counter for all in the code) and overlap (`memory`), L starts as the identity
(`init`). The LSTM has 400 units where the paper has 1000.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents.policies.noise import Noise
from agents.policies.recurrent import MEMORIES, MEMORY, RecurrentConfig, RecurrentPolicy
from agents.policies.training import WindowShape
from difftop.data.demonstrations import Demonstrations
from difftop.data.windows import WindowBatch, overlapping
from difftop.losses import full_precision
from difftop.nn.rnn import Hidden
from difftop.options import option
from difftop.qp import QPHead, SolveInfo
from difftop.qp.heads import HEADS, make_head
from difftop.types import EnvSpec


@dataclass(frozen=True)
class LetoConfig(RecurrentConfig):
    """Options of LeTO."""

    name: str = option("leto", "LeTO: recurrent policy with a constrained trajectory head", choices=("leto",))
    window: int = option(12, "T_s: steps the LSTM is unrolled for in training, and the longest it remembers while acting", low=1)
    horizon: int = option(6, "T_p: actions of one prediction", low=1)
    memory: str = option("overlap", MEMORY + " (the paper: restart)", choices=MEMORIES)
    pad: bool = option(
        True, "windows begin at every step, what goes beyond the end doesn't count; False: whole windows only, as in the paper"
    )
    squash: bool = option(True, "e = -tanh(x), as in LeTO's code; False: e = -x, as in the paper's text")
    head: str = option("qp", "what keeps the limits, in training too", choices=HEADS)
    alpha: float = option(1.0, "head=qp: weight of the accelerations", low=0)
    init: str = option(
        "identity", "head=qp: L at the start; uniform is LeTO's, under which most limits bind", choices=("identity", "uniform")
    )
    head_triangular: bool = option(True, "head=qp: L is lower triangular; False: dense once trained, as in LeTO's code")
    previous_in_training: bool = option(
        False,
        "head=qp: the demonstrated previous action limits the next one in training too, as the executed one does while acting",
    )

    @property
    def windows(self) -> WindowShape:
        """See `PolicyConfig`."""
        return WindowShape(self.window, self.horizon, 0, self.window + self.horizon - 2 if self.pad else 0)


class DenseQPHead(QPHead):
    """`QPHead` whose L starts triangular and is trained as a whole.  Source: LeTO's code."""

    def hessian(self) -> Tensor:
        """Qbar `[n, n]`, float64, differentiable in all of L."""
        factor = self.L.double()
        smooth = self.constraints.difference @ self.constraints.selection
        eye = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        return factor @ factor.mT + self.eps * eye + self.alpha * smooth.mT @ smooth


class Leto(RecurrentPolicy):
    """The network, its loss, and the making of its actors.

    Args:
        config: options.
        spec: the task.
        seed: of the initial weights.
    """

    config: LetoConfig

    def __init__(self, config: LetoConfig, spec: EnvSpec, *, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(config, spec)
            self.linear = nn.Linear(config.hidden_dim, self.limits.size)
            self.head = make_head(config.head, self.limits) if config.head != "qp" else self._qp(config)

    def fit_normalizer_(self, demonstrations: Demonstrations) -> None:
        """See `agents.policies.training.Policy`; refuses demonstrations that hardly ever keep the position limits of head=qp."""
        super().fit_normalizer_(demonstrations)
        if self.config.head == "qp":
            self.config.limits.check_demonstrations(demonstrations, self.limits)

    def forward(
        self, obs: Mapping[str, Tensor], noise: Noise | None = None, hidden: Hidden | None = None
    ) -> tuple[Tensor, Hidden]:
        """Linear terms of the head.

        Args:
            obs: by key `[B, T, *shape]`.
            noise: B rows, for random crops of images.
            hidden: h and c of the LSTM, `[layers, B, hidden_dim]`; None for zeros.
        Returns:
            e `[B, T, T_p A]`, and h and c after the last step.
        """
        features, hidden = self.outputs(obs, noise, hidden)
        return self._linear_terms(features), hidden

    def predict(
        self, obs: Mapping[str, Tensor], noise: Noise | None = None, previous: Tensor | None = None
    ) -> tuple[Tensor, SolveInfo]:
        """Trajectories from a zero hidden state.

        Args:
            obs: by key `[B, T, *shape]`.
            noise: B rows, for random crops of images.
            previous: actions before steps 1 .. T-1 `[B, T-1, A]`, which then limit these steps; None for no such limits.
        Returns:
            `[B, T, T_p, A]`, and `SolveInfo` of B T samples.
        """
        e, _ = self(obs, noise)
        positions = self.config.limits.positions({key: x.flatten(0, 1) for key, x in obs.items()}, self.limits)
        if previous is None or e.shape[1] == 1:
            y, info = self.head(e.flatten(0, 1), positions)
            return y.view(*e.shape[:2], *y.shape[1:]), info
        later = torch.arange(e.shape[1], device=e.device).expand(e.shape[:2]).flatten() > 0
        parts = [(~later, None), (later, previous.flatten(0, 1))]
        solved = [self.head(e.flatten(0, 1)[i], None if positions is None else positions[i], before) for i, before in parts]
        order = torch.cat([i.nonzero()[:, 0] for i, _ in parts]).argsort()
        y = torch.cat([y for y, _ in solved])[order]
        merged = (torch.cat([getattr(info, name) for _, info in solved])[order] for name in ("status", "kkt", "slack", "rounds"))
        return y.view(*e.shape[:2], *y.shape[1:]), SolveInfo(*merged)

    def loss(self, batch: WindowBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error against the T_s overlapping targets of T_p actions, over what is neither padding nor unsolved:

            mean_{b, i, j, k} (y_bijk - a_{b, i+j, k})^2

        Returns:
            the loss, and metrics by tag: `loss`, `qp/uncertified` (share of samples without an action), `qp/kkt`
                (worst residual of the others).
        Source: LeTO, arXiv:2401.17500, section III-A; the mean over all entries, gripper included, is its code's.
        """
        steps, horizon = self.config.window, self.config.horizon
        previous = batch.actions[:, : steps - 1] if self.config.previous_in_training else None
        y, info = self.predict(batch.obs, self.batch_noise(len(batch.actions), generator), previous)
        error = (y - overlapping(batch.actions, horizon)).square().mean(-1)  # [B, T_s, T_p]
        weight = overlapping(batch.mask, horizon).to(error.dtype)
        error = torch.where(weight > 0, error, 0.0)
        counted = info.mean(weight.mean(-1).flatten())
        loss = info.mean(error.mean(-1).flatten()) / counted.clamp_min(torch.finfo(counted.dtype).tiny)
        certified = info.certified
        kkt = torch.where(certified, info.kkt, 0.0).max()
        return loss, {"loss": loss.detach(), "qp/uncertified": 1 - certified.double().mean(), "qp/kkt": kkt}

    def chunk(self, features: Tensor, noise: Noise) -> Tensor:
        """What the network wants of the head, `-e` as `[K, T_p, A]`."""
        return -self._linear_terms(features).view(len(features), self.config.horizon, -1)

    def plans(self, obs: Mapping[str, Tensor], noise: Noise, begin: Tensor | None = None) -> Tensor:
        """See `ChunkPolicy`; without limits."""
        wanted = super().plans(obs, noise, begin)
        return -self.unlimited(-wanted.flatten(0, 1).flatten(1)).view_as(wanted)

    def deployed_head(self, name: str) -> nn.Module:
        """The trained head; or another one, on what the trained one would do without limits."""
        if name == self.config.head:
            return self.head
        made = super().deployed_head(name)
        return _Unlimited(self, made) if isinstance(self.head, QPHead) else made

    def unlimited(self, e: Tensor) -> Tensor:
        """e `[B, T_p A]` for another head: minus the trajectory that the trained head would give without limits."""
        if not isinstance(self.head, QPHead):
            return e
        wanted: Tensor = torch.linalg.solve(self.head.hessian(), e.double().mT).mT
        return wanted.to(e.dtype)

    def _linear_terms(self, features: Tensor) -> Tensor:
        x = full_precision(self.linear(features))
        return -(torch.tanh(x) if self.config.squash else x)

    def _qp(self, config: LetoConfig) -> nn.Module:
        kind = QPHead if config.head_triangular else DenseQPHead
        return kind(self.limits, alpha=config.alpha, init=config.init)


class _Unlimited(nn.Module):
    """Another head in place of LeTO's trained one."""

    def __init__(self, policy: Leto, head: nn.Module) -> None:
        super().__init__()
        self.unlimited, self.head = policy.unlimited, head

    def forward(self, e: Tensor, position: Tensor | None = None, previous: Tensor | None = None) -> tuple[Tensor, SolveInfo]:
        """See `QPHead`."""
        solved: tuple[Tensor, SolveInfo] = self.head(self.unlimited(e), position, previous)
        return solved
