"""Policies with an LSTM: a window of observations in training, one observation at a time while acting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agents.policies.chunks import ChunkPolicy, PolicyConfig, Repeated
from agents.policies.noise import EnvironmentNoise, Noise
from difftop.nn.mlp import mlp
from difftop.nn.rnn import Hidden, StepLSTM
from difftop.options import option
from difftop.types import EnvSpec

MEMORIES = ("restart", "overlap")
MEMORY = "while acting, every T_s steps the LSTM forgets; overlap: there are two, half a window apart, and the older one acts"


@dataclass(frozen=True)
class RecurrentConfig(PolicyConfig):
    """Options that every recurrent policy has."""

    memory: str = option("restart", MEMORY, choices=MEMORIES)
    encoder_dims: list[int] = option(
        [], "widths of an MLP between observations and LSTM; empty for none, as in the papers", low=1
    )
    hidden_dim: int = option(400, "width of the LSTM; the papers take 1000 for images", low=1)
    layers: int = option(2, "layers of the LSTM", low=1)


class RecurrentPolicy(ChunkPolicy):
    """An encoder and an LSTM; subclasses add `chunk`, and a `loss` on the outputs.

    Args:
        config, spec: see `ChunkPolicy`.
    """

    config: RecurrentConfig

    def __init__(self, config: RecurrentConfig, spec: EnvSpec) -> None:
        super().__init__(config, spec)
        sizes = [self.observer.out, *config.encoder_dims]
        self.before = mlp(sizes) if config.encoder_dims else torch.nn.Identity()
        self.lstm = StepLSTM(sizes[-1], config.hidden_dim, config.layers)

    def inputs(self, obs: Mapping[str, Tensor], noise: Noise | None) -> Tensor:
        """Inputs of the LSTM `[B, T, *]`; see `outputs`."""
        x: Tensor = self.before(self.observer(obs, noise))
        return x

    def outputs(self, obs: Mapping[str, Tensor], noise: Noise | None, hidden: Hidden | None = None) -> tuple[Tensor, Hidden]:
        """Outputs of the LSTM `[B, T, hidden_dim]` on observations by key `[B, T, *shape]`, and its state after them.

        Args:
            obs: by key.
            noise: B rows, for random crops.
            hidden: before the first step; None for zeros.
        """
        y: tuple[Tensor, Hidden] = self.lstm(self.inputs(obs, noise), hidden)
        return y

    def chunk(self, features: Tensor, noise: Noise) -> Tensor:
        """Wanted actions `[K, T_p, A]` of outputs of the LSTM `[K, hidden_dim]`; `noise` has K rows."""
        raise NotImplementedError

    def plans(self, obs: Mapping[str, Tensor], noise: Noise, begin: Tensor | None = None) -> Tensor:
        """See `ChunkPolicy`; the hidden state is zeroed every T_s steps, as while acting with memory=restart."""
        features = self.features(obs, noise, begin)
        size, steps = features.shape[:2]
        chunks = self.chunk(features.flatten(0, 1), Repeated(noise, steps))
        return chunks.view(size, steps, *chunks.shape[1:])

    def latest(self, obs: Mapping[str, Tensor], noise: Noise, begin: Tensor | None = None) -> Tensor:
        """See `ChunkPolicy`."""
        return self.chunk(self.features(obs, noise, begin)[:, -1], noise)

    def features(self, obs: Mapping[str, Tensor], noise: Noise, begin: Tensor | None = None) -> Tensor:
        """What `chunk` takes, at every step of windows `[B, T, hidden_dim]`; arguments as those of `plans`."""
        if begin is not None:  # the episodes' first steps to the front, and their features back to where they were
            place = torch.arange(next(iter(obs.values())).shape[1], device=begin.device)
            rows, moved = torch.arange(len(begin), device=begin.device)[:, None], place + begin[:, None]
            moved_obs = {key: x[rows, moved.clamp_max(len(place) - 1)] for key, x in obs.items()}
            return self.features(moved_obs, noise)[rows, (place - begin[:, None]).clamp_min(0)]
        steps = next(iter(obs.values())).shape[1]
        parts = [{k: x[:, i : i + self.windows.window] for k, x in obs.items()} for i in range(0, steps, self.windows.window)]
        return torch.cat([self.outputs(part, noise)[0] for part in parts], 1)

    @property
    def recalls(self) -> bool:
        """See `ChunkPolicy`."""
        return True

    def ages(self) -> list[int]:
        """See `ChunkPolicy`; all below T_s, or with memory=overlap those that the older of the two hidden states has."""
        span = self.windows.window
        late = span // 2 if self.config.memory == "overlap" else 0
        return [max(age, (age - late) % span) for age in range(span)]

    def predictor(self, num_envs: int, seed: int) -> RecurrentPredictor:
        """See `ChunkPolicy`."""
        return RecurrentPredictor(self, num_envs, seed)


class RecurrentPredictor:
    """Carries the hidden state of each environment, which begins with zeros where an episode does.

    memory=restart: it is zeroed after every T_s calls, as a window in training begins; source: robomimic's `BC_RNN` and LeTO's
    code. memory=overlap: two of them are carried, zeroed in turn, T_s/2 calls apart, and the one that knows more acts. So no
    action rests on less than the last T_s/2 observations, and none on more than T_s.

    Differs: counted per environment.
    """

    def __init__(self, policy: RecurrentPolicy, num_envs: int, seed: int) -> None:
        self.policy = policy
        self.memories = 2 if policy.config.memory == "overlap" else 1
        self.hidden = policy.lstm.start(self.memories * num_envs)  # memory by memory
        self.calls = torch.zeros(num_envs, dtype=torch.int64, device=policy.device)  # since the episode began
        self.noise = EnvironmentNoise(num_envs, seed, policy.device)

    def predict(self, obs: Mapping[str, Tensor], t0: Tensor, due: Tensor) -> Tensor:
        """See `agents.policies.chunks.Predictor`; the LSTM sees every observation, whether or not a chunk is due."""
        policy, every, span = self.policy, torch.arange(len(due)), self.policy.windows.window
        self.calls = torch.where(t0, 0, self.calls)
        late = torch.arange(self.memories, device=policy.device) * (span // 2)
        age = (self.calls - late[:, None]) % span  # [memories, N]; before its first turn a memory is as old as the episode
        fresh = ((age == 0) | (self.calls == 0)).flatten()[:, None]
        h, c = (torch.where(fresh, 0.0, x) for x in self.hidden)
        seen = {key: x[:, None] for key, x in policy.observer.received(obs, policy.device).items()}
        inputs = policy.inputs(seen, self.noise.of(every)).repeat(self.memories, 1, 1)
        outputs, self.hidden = policy.lstm(inputs, (h, c))
        features = outputs[:, 0].view(self.memories, len(due), -1)[age.argmax(0), every]
        self.calls = self.calls + 1
        wanted = torch.zeros(len(due), policy.windows.horizon, policy.spec.action_dim, device=policy.device)
        rows = due.nonzero()[:, 0]
        if len(rows):
            wanted[rows] = policy.chunk(features[rows], self.noise.of(rows)).to(wanted)
        return wanted

    def begin(self, index: int, seed: int) -> None:
        """See `agents.policies.chunks.Predictor`."""
        self.noise.begin(index, seed)

    def state_dict(self) -> dict[str, Any]:
        """All memory."""
        return {"hidden": list(self.hidden), "calls": self.calls, "noise": self.noise.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`, bit for bit."""
        h, c = (x.to(self.calls.device) for x in state["hidden"])
        self.hidden, self.calls = (h, c), state["calls"].to(self.calls.device)
        self.noise.load_state_dict(state["noise"])
