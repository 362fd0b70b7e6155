"""Policies that predict chunks of actions, and the one actor that executes them within limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from agents.policies.limits import LimitsConfig, brake
from agents.policies.noise import BatchNoise, EnvironmentNoise, Noise
from agents.policies.observing import NORMALIZATIONS, MakeEncoder, Observer
from agents.policies.training import TrainingConfig, WindowShape
from difftop.data.demonstrations import Demonstrations
from difftop.data.windows import WindowBatch
from difftop.nn.observation import EncoderConfig, ObservationEncoder
from difftop.options import ConfigError, option
from difftop.qp.heads import HEADS, FreeHead, make_head
from difftop.qp.trajectory import TrajectoryRows
from difftop.types import EnvSpec, SolveStatus


@dataclass(frozen=True)
class PolicyConfig:
    """Options that every policy of chunks has."""

    training: TrainingConfig = option(TrainingConfig, "optimizer")
    obs_keys: list[str] = option([], "observations to use, by key; empty for all that the task offers")
    normalization: str = option("min_max", "of observations; leto: positions by range, the rest as it is", choices=NORMALIZATIONS)
    encoder: EncoderConfig = option(EncoderConfig, "networks for images and point clouds")
    execute: int = option(1, "T_a: actions of a prediction that are executed before the next one", low=1)
    head: str = option("none", "what keeps the limits; none only clamps to [-1, 1]", choices=HEADS)
    limits: LimitsConfig = option(LimitsConfig, "limits of velocity, acceleration and position, for head=clip and head=qp")

    @property
    def windows(self) -> WindowShape:
        """What is trained on, whatever the task; a chunk has `windows.horizon` actions. Here one observation and one action."""
        return WindowShape(1, 1)


class Predictor(Protocol):
    """Predicts chunks in N environments, and owns what it remembers of them."""

    def predict(self, obs: Mapping[str, Tensor], t0: Tensor, due: Tensor) -> Tensor:
        """Called at every step.

        Args:
            obs: by key `[N, *shape]`, on the policy's device.
            t0: `[N]` bool, where an episode begins: its memory is forgotten.
            due: `[N]` bool, where a chunk is wanted.
        Returns:
            wanted actions `[N, T_p, A]`, first the one of now; zeros where none was due.
        """

    def begin(self, index: int, seed: int) -> None:
        """From now on the random numbers of environment `index` are those of the episode `seed`."""

    def state_dict(self) -> dict[str, Any]:
        """All memory."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`."""


class ChunkPolicy(nn.Module):
    """What policies of chunks share; they add `loss`, `plans` and `predictor`.

    Args:
        config: options.
        spec: the task.
        encoder: makes the network of the observations.
    Attributes:
        windows: see `PolicyConfig`.
        limits: of a chunk, in action units per step; `limits.selected` are the limited actions.
    """

    config: PolicyConfig

    def __init__(self, config: PolicyConfig, spec: EnvSpec, encoder: MakeEncoder = ObservationEncoder) -> None:
        super().__init__()
        self.spec, self.config, self.windows = spec, config, config.windows
        self.limits = config.limits.make(spec, self.windows.horizon)
        self._check_head(config.head)
        make_head(config.head, self.limits)  # mistakes are told now
        if config.execute > self.windows.horizon:
            raise ConfigError(
                f"agent.execute={config.execute}: a prediction has {self.windows.horizon} actions from now on; "
                "lower it, or raise agent.horizon."
            )
        self.observer = Observer(spec.shapes, config.obs_keys, config.normalization, config.encoder, encoder)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def fit_normalizer_(self, demonstrations: Demonstrations) -> None:
        """See `agents.policies.training.Policy`."""
        self.observer.fit_(demonstrations)

    def loss(self, batch: WindowBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """See `agents.policies.training.Policy`."""
        raise NotImplementedError

    def plans(self, obs: Mapping[str, Tensor], noise: Noise, begin: Tensor | None = None) -> Tensor:
        """What the policy would do at every step of windows that begin without memory.

        Args:
            obs: by key `[B, T, *shape]`, on the policy's device.
            noise: B rows.
            begin: first steps of the episodes `[B]`, where windows begin earlier with copies of what is observed there; None for
                0. No memory goes back beyond it, and what is returned before it has no meaning.
        Returns:
            wanted actions `[B, T, T_p, A]`.
        """
        raise NotImplementedError

    def latest(self, obs: Mapping[str, Tensor], noise: Noise, begin: Tensor | None = None) -> Tensor:
        """What `plans` returns for the last step of windows, `[B, T_p, A]`, with nothing worked out for the others."""
        return self.plans(obs, noise, begin)[:, -1]

    def foresee(self, obs: Mapping[str, Tensor], noise: Noise, draws: int) -> Tensor:
        """What can be kept of `plans`, for policies that are a base: `drawn` makes chunks of it, with random numbers of its own.

        Args:
            obs: by key `[B, T, *shape]`; where nothing is recalled, T = `lead + 1`.
            noise: B rows.
            draws: how many chunks are drawn for a step, where a distribution can't be told otherwise.
        Returns:
            `[B, T, P]` where memories are recalled, they begin with the windows; else `[B, 1, P]` of the last step.
        """
        raise NotImplementedError

    def drawn(self, kept: Tensor, noise: Noise) -> Tensor:
        """Wanted actions `[K, T_p, A]` of what `foresee` told `[K, P]`; `noise` has K rows."""
        raise NotImplementedError

    @property
    def recalls(self) -> bool:
        """Whether what is done depends on when a memory began, and not on the last `lead + 1` observations alone."""
        return False

    @property
    def lead(self) -> int:
        """First steps of windows from inside an episode at which `plans` lacks observations that acting would have."""
        return 0

    def ages(self) -> list[int]:
        """How many observations before the present one are remembered inside an episode, each as often; [] if always as many."""
        return []

    def predictor(self, num_envs: int, seed: int) -> Predictor:
        """Predicts in N environments, without limits; random numbers come from `seed`."""
        raise NotImplementedError

    def actor(self, num_envs: int, *, seed: int, head: str | None = None) -> ChunkActor:
        """See `agents.policies.training.Policy`."""
        return ChunkActor(self, num_envs, seed, self.deployed_head(self.config.head if head is None else head))

    def deployed_head(self, name: str) -> nn.Module:
        """The head that keeps the limits while acting."""
        self._check_head(name)
        return make_head(name, self.limits).to(self.device)

    def _check_head(self, name: str) -> None:
        """Raises where limits on displacements would be put on poses."""
        if self.spec.poses and name != "none":
            raise ConfigError(
                f"head={name}: its limits are of displacements per step, and actions are absolute poses; set agent.head=none, "
                "or train on displacements (dataset.actions=actions)."
            )

    def batch_noise(self, rows: int, generator: torch.Generator | None) -> BatchNoise:
        """Random numbers for a loss on `rows` windows."""
        return BatchNoise(rows, generator, self.device)


class WindowPolicy(ChunkPolicy):
    """A policy without memory beyond a window of T_s observations; they add `loss` and `chunk`."""

    def chunk(self, obs: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """Wanted actions `[K, T_p, A]` from the last of T_s observations on, by key `[K, T_s, *shape]`."""
        raise NotImplementedError

    @property
    def lead(self) -> int:
        """See `ChunkPolicy`: a window's first observation stands for those before it."""
        return self.windows.window - 1

    def plans(self, obs: Mapping[str, Tensor], noise: Noise, begin: Tensor | None = None) -> Tensor:
        """See `ChunkPolicy`; before the first observation there was the first observation, whatever `begin` is."""
        size, steps = next(iter(obs.values())).shape[:2]
        chunks = self.chunk(self._windows_at(obs, torch.arange(steps)), Repeated(noise, steps))
        return chunks.view(size, steps, *chunks.shape[1:])

    def latest(self, obs: Mapping[str, Tensor], noise: Noise, begin: Tensor | None = None) -> Tensor:
        """See `ChunkPolicy`."""
        steps = next(iter(obs.values())).shape[1]
        return self.chunk(self._windows_at(obs, torch.tensor([steps - 1])), noise)

    def _windows_at(self, obs: Mapping[str, Tensor], steps: Tensor) -> dict[str, Tensor]:
        """The T_s observations up to each of `steps [S]`, by key `[B S, T_s, *shape]`."""
        index = (steps[:, None] + torch.arange(1 - self.windows.window, 1)).clamp_min(0)
        return {key: x[:, index.to(x.device)].flatten(0, 1) for key, x in obs.items()}

    def predictor(self, num_envs: int, seed: int) -> WindowPredictor:
        """See `ChunkPolicy`."""
        return WindowPredictor(self, num_envs, seed)


class Repeated:
    """Random numbers for K rows of T steps each, step by step inside a row."""

    def __init__(self, noise: Noise, steps: int) -> None:
        self.noise, self.steps = noise, steps

    def normal(self, *shape: int) -> Tensor:
        """See `agents.policies.noise.Noise`."""
        return self.noise.normal(self.steps, *shape).flatten(0, 1)

    def uniform(self, *shape: int) -> Tensor:
        """See `agents.policies.noise.Noise`."""
        return self.noise.uniform(self.steps, *shape).flatten(0, 1)


class WindowPredictor:
    """Remembers the last T_s observations of each environment; the first one of an episode stands for those before it."""

    def __init__(self, policy: WindowPolicy, num_envs: int, seed: int) -> None:
        self.policy = policy
        self.noise = EnvironmentNoise(num_envs, seed, policy.device)
        self.seen: dict[str, Tensor] = {}

    def predict(self, obs: Mapping[str, Tensor], t0: Tensor, due: Tensor) -> Tensor:
        """See `Predictor`."""
        policy = self.policy
        now = policy.observer.received(obs, policy.device)
        for key, x in now.items():
            repeated = x[:, None].expand(-1, policy.windows.window, *x.shape[1:])
            old = self.seen.get(key, repeated)
            moved = torch.cat([old[:, 1:], x[:, None]], 1)
            self.seen[key] = torch.where(t0.view(-1, *[1] * x.dim()), repeated, moved)
        rows = due.nonzero()[:, 0]
        wanted = torch.zeros(len(due), policy.windows.horizon, policy.spec.action_dim, device=policy.device)
        if len(rows):
            wanted[rows] = policy.chunk({key: x[rows] for key, x in self.seen.items()}, self.noise.of(rows)).to(wanted)
        return wanted

    def begin(self, index: int, seed: int) -> None:
        """See `Predictor`."""
        self.noise.begin(index, seed)

    def state_dict(self) -> dict[str, Any]:
        """All memory."""
        return {"seen": dict(self.seen), "noise": self.noise.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`, bit for bit."""
        self.seen = {key: x.to(self.policy.device) for key, x in state["seen"].items()}
        self.noise.load_state_dict(state["noise"])


class ChunkActor:
    """Executes the first T_a actions of each chunk; see `difftop.contract.Actor`.

    The head gets the wanted chunk and the last executed action, zero where an episode begins, so that limits hold along the
    whole episode, also from one chunk to the next. Where the head has no certified chunk, the limited actions brake for one step
    as hard as the acceleration limit allows, the others stay as they are, and the next step predicts a new chunk; it is counted.

    Args:
        policy: predicts.
        num_envs: N.
        seed: of the predictor.
        head: with the signature of `QPHead`; it minimizes the distance to, or something like it, of minus its argument.
    Source: LeTO, arXiv:2401.17500, equation 11 and its runner.
    Differs: chunks of any length; counters per environment (one for all in LeTO's code).
    """

    def __init__(self, policy: ChunkPolicy, num_envs: int, seed: int, head: nn.Module) -> None:
        self.policy, self.head = policy, head
        device, size = policy.device, policy.limits.action_dim
        self.execute = policy.config.execute
        self.rows = TrajectoryRows(policy.limits).to(device)
        self.predictor = policy.predictor(num_envs, seed)
        self.previous = torch.zeros(num_envs, size, device=device)
        self.chunk = torch.zeros(num_envs, self.execute, size, device=device)  # the next action is the first
        self.left = torch.zeros(num_envs, dtype=torch.int64, device=device)  # actions of the chunk to execute
        self._counters = torch.zeros(3, dtype=torch.float64)  # chunks, braked, relaxed
        self.playing = torch.ones(num_envs, dtype=torch.bool, device=device)

    def begin(self, index: int, seed: int | None) -> None:
        """Environment `index` begins the episode `seed`, on which its random numbers depend from now on; None: it is idle.

        Idle environments get no predictions and are not counted.
        """
        self.playing[index] = seed is not None
        if seed is not None:
            self.predictor.begin(index, seed)

    @torch.no_grad()
    def act(self, obs: Mapping[str, Tensor], t0: Tensor, steps: int = 0) -> Tensor:
        """Actions `[N, A]` in [-1, 1] of observations by key `[N, *shape]`; `t0 [N]` is True where an episode begins."""
        t0 = t0.to(self.left.device)
        self.left = torch.where(t0, 0, self.left)
        self.previous = torch.where(t0[:, None], 0.0, self.previous)
        due = (self.left == 0) & self.playing
        seen = {key: x.to(self.left.device) for key, x in obs.items()}  # all of them: a base may look at others than the policy
        with _evaluating(self.policy):
            wanted = self.predictor.predict(seen, t0, due)
        if bool(due.any()):
            self._limit(wanted, obs, due.nonzero()[:, 0])
        action = self.chunk[:, 0]
        self.chunk, self.left, self.previous = self.chunk.roll(-1, 1), self.left - 1, action
        return action.clone()

    def _limit(self, wanted: Tensor, obs: Mapping[str, Tensor], rows: Tensor) -> None:
        """New chunks for the environments `rows`."""
        policy, previous = self.policy, self.previous[rows]
        key = policy.config.limits.position_key
        measured = {key: obs[key].to(self.left.device, torch.float32)[rows]} if key else {}
        with _evaluating(self.head):  # in which it may relax position limits
            y, info = self.head(-wanted[rows].flatten(1), policy.config.limits.positions(measured, policy.limits), previous)
        stopped = brake(self.rows, previous)[:, None].expand(-1, self.execute, -1)
        sure = info.certified
        self.chunk[rows] = torch.where(sure[:, None, None], y[:, : self.execute].to(stopped), stopped).clamp(-1, 1)
        self.left[rows] = torch.where(sure, self.execute, 1)
        relaxed = info.status == int(SolveStatus.RELAXED)
        self._counters += torch.stack([torch.ones_like(relaxed).sum(), (~sure).sum(), relaxed.sum()]).cpu()

    def metrics(self) -> dict[str, float]:
        """Shares of chunks that were braked and that were relaxed, since the last call; nothing without a head."""
        chunks, braked, relaxed = self._counters.tolist()
        self._counters.zero_()
        if isinstance(self.head, FreeHead):
            return {}
        return {"head/braked": braked / max(chunks, 1), "head/relaxed": relaxed / max(chunks, 1)}

    def state_dict(self) -> dict[str, Any]:
        """All memory."""
        return {
            "predictor": self.predictor.state_dict(),
            "previous": self.previous,
            "chunk": self.chunk,
            "left": self.left,
            "counters": self._counters.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`, bit for bit."""
        self.predictor.load_state_dict(state["predictor"])
        for name in ("previous", "chunk", "left"):
            setattr(self, name, state[name].to(self.left.device, copy=True))
        self._counters = state["counters"].clone()


class _evaluating:
    """Puts a module into evaluation mode, and back."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.modes = module, [(m, m.training) for m in module.modules()] if module.training else []

    def __enter__(self) -> None:
        self.module.eval()

    def __exit__(self, *_: object) -> None:
        for module, training in self.modes:
            module.training = training
