"""How policies learn from demonstrations: the contract of a policy, and the one agent that trains any of them.

A `Policy` is a network with a loss on windows of demonstrations, and a maker of actors. `ImitationAgent` adds what every training
needs: optimizer, learning rate schedule, clipping, and an exponential average of the weights where the method has one.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from difftop.contract import Actor, UpdateResult, restore_generator
from difftop.data.demonstrations import Demonstrations
from difftop.data.windows import WindowBatch, Windows
from difftop.losses import FiniteWatch, average_
from difftop.options import option
from difftop.run.seeding import stream
from difftop.run.workers import ALONE

log = logging.getLogger(__name__)


def schedule_option(default: str) -> Any:
    """The option `schedule`; which schedules there are is written here, and followed in `Trainer`."""
    return option(default, "of the learning rate, over the length of the run", choices=("constant", "cosine"))


@dataclass(frozen=True)
class TrainingConfig:
    """How a policy's weights are trained."""

    learning_rate: float = option(1e-3, "of Adam; the papers' 1e-4 wants about ten times the gradient steps", above=0)
    weight_decay: float = option(0.0, "decoupled; 0 is plain Adam", low=0)
    schedule: str = schedule_option("constant")
    warmup_steps: int = option(0, "gradient steps over which the learning rate rises from 0", low=0)
    beta1: float = option(0.9, "Adam's decay of the gradient's mean", low=0, high=0.9999)
    clip: float = option(0.0, "largest norm of the gradient; 0 for none", low=0)
    ema: float = option(
        0.0, "largest decay of the averaged weights that act, 1 - (1 + k)^-3/4 after k steps; 0: no average", low=0, high=1
    )


@dataclass(frozen=True)
class WindowShape:
    """The windows that a policy trains on; see `difftop.data.windows.Windows`.

    Attributes:
        window: T_s, observations.
        horizon: T_p, actions of one prediction.
        pad_before, pad_after: steps of padding that a window may begin and end with.
    """

    window: int
    horizon: int
    pad_before: int = 0
    pad_after: int = 0


class Policy(Protocol):
    """A network that imitates; an `nn.Module`.

    Its constructor takes `(config, spec: EnvSpec, *, seed: int)`.
    """

    windows: WindowShape

    def fit_normalizer_(self, demonstrations: Demonstrations) -> None:
        """Takes the numbers of the normalization from demonstrations; they are part of the state dict."""

    def loss(self, batch: WindowBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss on B windows, and metrics by tag (0-d, detached; `loss` among them).

        Padded steps (`batch.mask`) don't count. `generator` is for what the loss samples; on the batch's device.
        """

    def actor(self, num_envs: int, *, seed: int, head: str | None = None) -> Actor:
        """A fresh actor for N environments, observations by key `[N, *shape]`.

        Args:
            num_envs: N.
            seed: of whatever acting samples. Same seed and observations, same actions.
            head: none, clip or qp in place of the trained one, at deployment only.
        """


class ImitationAgent:
    """A policy and its training.

    Args:
        policy: see `Policy`.
        training: how.
        total_steps: length of the run in gradient steps, for the schedule.
        seed: of the generator that losses draw from.
        device, bf16: where and in which precision matrix products run.
    """

    def __init__(
        self, policy: Any, training: TrainingConfig, *, total_steps: int, seed: int, device: torch.device, bf16: bool = False
    ) -> None:
        self.policy, self.training, self.device, self.bf16 = policy.to(device), training, device, bf16
        self.total_steps = total_steps
        self.average = _Average(policy, training.ema) if training.ema else None
        if self.average and any(isinstance(module, nn.BatchNorm2d) for module in policy.modules()):
            log.warning(
                "agent.training.ema=%g with batch normalization: the averaged weights act with the statistics of others; "
                "set agent.encoder.norm=group.",
                training.ema,
            )
        trained = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trained, lr=training.learning_rate, betas=(training.beta1, 0.999), weight_decay=training.weight_decay, fused=True
        )
        self.finite = FiniteWatch(device)
        self.generator, self.seed = torch.Generator(device).manual_seed(seed), seed
        self.workers = ALONE

    @property
    def windows(self) -> WindowShape:
        """The windows that `update` wants."""
        shape: WindowShape = self.policy.windows
        return shape

    def fit_normalizer_(self, demonstrations: Demonstrations) -> None:
        """Before the first update; see `Policy.fit_normalizer_`."""
        self.policy.fit_normalizer_(demonstrations)
        if self.average:
            self.average.copy_(self.policy)

    def prepare_(self, windows: Windows) -> None:
        """Before the first update of a run, also of one that goes on: what a policy works out ahead for what it is trained on.

        Policies that do so have `prepare_(demonstrations, generator)`. It is a function of the demonstrations, the seed and saved
        weights, and is never saved itself.
        """
        prepare = getattr(self.policy, "prepare_", None)
        if prepare is not None:
            prepare(windows.demonstrations, torch.Generator(self.device).manual_seed(stream(self.seed, "prepare")))

    def update(self, batch: WindowBatch, grad_steps: int) -> UpdateResult:
        """One gradient step, the `grad_steps`-th from 0, together with the other `workers` where there are any.

        Raises:
            NonFiniteLossError: the loss or its gradient is not finite; the weights are as before (see `difftop.contract.Agent`).
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(grad_steps)
        self.policy.train()
        if self.workers.count > 1:  # each draws its own numbers, and has no state of its own to save
            self.generator.manual_seed(stream(self.seed, "worker", self.workers.rank, grad_steps))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss, metrics = self.policy.loss(batch.to(self.device), self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = self.optimizer.param_groups[0]["params"]
        self.workers.mean_([*(p.grad for p in parameters if p.grad is not None), loss, *metrics.values()])
        self.finite.check(loss, "the loss")
        norm = self.finite.clipped_step(self.optimizer, parameters, self.training.clip or math.inf, "the loss's gradient")
        if self.average:
            self.average.update_(self.policy, grad_steps)
        return UpdateResult({f"train/{tag}": value for tag, value in metrics.items()} | {"train/gradient_norm": norm}, None)

    def check_finite(self) -> None:
        """See `difftop.contract.Agent`."""
        self.finite.raise_found()

    @torch.no_grad()
    def validate(self, batch: WindowBatch, seed: int) -> dict[str, Tensor]:
        """The loss on windows that are not trained on, by the weights that act; leaves no trace in training."""
        acting = self.acting
        acting.eval()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            generator = torch.Generator(self.device).manual_seed(seed)
            _, metrics = acting.loss(replace(batch, rows=None).to(self.device), generator)  # nothing is known of these ahead
        return {f"valid/{tag}": value for tag, value in metrics.items()}

    def learning_rate(self, grad_steps: int) -> float:
        """Of the `grad_steps`-th gradient step, from 0."""
        config = self.training
        warm = min(1.0, (grad_steps + 1) / (config.warmup_steps + 1))
        done = max(grad_steps - config.warmup_steps, 0) / max(self.total_steps - config.warmup_steps, 1)
        fall = 0.5 * (1 + math.cos(math.pi * min(done, 1.0))) if config.schedule == "cosine" else 1.0
        return config.learning_rate * warm * fall

    @property
    def acting(self) -> Any:
        """The policy that acts: the averaged one where there is one."""
        return self.average.policy if self.average else self.policy

    def actor(self, num_envs: int, *, seed: int, explore: bool = False, head: str | None = None) -> Actor:
        """A fresh actor; see `Policy.actor`. There is nothing to explore."""
        policy = self.acting
        policy.eval()
        made: Actor = policy.actor(num_envs, seed=seed, head=head)
        return made

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors of the policy, and of the averaged one under `average.`."""
        state = dict(self.policy.state_dict())
        if self.average:
            state |= {f"average.{key}": value for key, value in self.average.policy.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores `state_dict`."""
        self.policy.load_state_dict({key: value for key, value in state.items() if not key.startswith("average.")})
        if self.average:
            prefix = "average."
            averaged = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            self.average.policy.load_state_dict(averaged)

    def train_state(self) -> dict[str, Any]:
        """Optimizer and generator."""
        return {"optimizer": self.optimizer.state_dict(), "generator": self.generator.get_state()}

    def load_train_state(self, state: Mapping[str, Any]) -> None:
        """Restores `train_state`, bit for bit."""
        self.optimizer.load_state_dict(state["optimizer"])
        restore_generator(self.generator, state["generator"])


class _Average:
    """Exponential average of a policy's weights; buffers (normalization, batch statistics) are copied.

    decay_k = min(1 - (1 + k)^(-3/4), largest)

    Source: Diffusion Policy's `EMAModel`, power 0.75.
    """

    def __init__(self, policy: nn.Module, largest: float) -> None:
        self.policy, self.largest = copy.deepcopy(policy).requires_grad_(False), largest

    def copy_(self, policy: nn.Module) -> None:
        self.policy.load_state_dict(policy.state_dict())

    def update_(self, policy: nn.Module, steps: int) -> None:
        average_(self.policy, policy, 1 - min(1 - (1 + steps) ** -0.75, self.largest))
