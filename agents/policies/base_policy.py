"""A trained policy inside another one: what it does is the start that the other improves on. It is frozen."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agents.policies.chunks import ChunkPolicy, Predictor, Repeated
from agents.policies.foreseen import Foreseen, foreseen
from agents.policies.noise import Noise
from difftop.data.windows import Episodes
from difftop.options import ConfigError, option
from difftop.run.weights import load_acting
from difftop.types import EnvSpec

BASES = ("bc", "rnn_gmm", "diffusion")
BASE_CHECKPOINT = "run folder (its best checkpoint) or checkpoint of the base; read when training begins, never afterwards"
DRAWS = 8
BASE_DRAWS = (
    "what the base does is worked out before training, with so many chunks of a diffusion base for each observation, of which a "
    "gradient step takes one; 0: anew at every step"
)


@dataclass(frozen=True)
class BaseConfig:
    """Which policy to start from."""

    base: str = option("none", "policy to start from; it is trained in a run of its own", choices=("none", *BASES))
    base_checkpoint: str = option("", BASE_CHECKPOINT)


class BasePolicy(nn.Module):
    """The frozen base, read from its run once, and from then on part of the state dict: evaluation needs no base run.

    A policy with a base calls `read_` in its `fit_normalizer_`, where training begins. A run that is resumed or evaluated gets
    the base by `load_state_dict`, from options that travel as JSON in the buffer `recipe`, and from its weights.

    Args:
        config: which base.
        spec: the task; the base was trained on the same one.
        make: `agents.registry.make_policy`, which knows policies that have a base.
    """

    recipe: Tensor

    def __init__(self, config: BaseConfig, spec: EnvSpec, make: Callable[..., Any]) -> None:
        super().__init__()
        self.config, self.spec, self._make = config, spec, make
        self.register_buffer("recipe", torch.zeros(0, dtype=torch.uint8))
        self.policy: ChunkPolicy | None = None
        self.foreseen: Foreseen | None = None  # of the demonstrations that are trained on; never saved

    def check(self) -> ChunkPolicy:
        """The base; raises `ConfigError` where it was neither read nor restored."""
        if self.policy is None:
            raise ConfigError(
                f"agent.base={self.config.base}: the base was not read yet; call fit_normalizer_ or load_state_dict."
            )
        return self.policy

    def foresee_(self, demonstrations: Episodes, span: int, draws: int, generator: torch.Generator) -> None:
        """Works out what the base does at the observations of demonstrations, for windows that have `rows`; see `foreseen`.

        Args:
            demonstrations, span, generator: of training; see `agents.policies.foreseen.foreseen`.
            draws: likewise; 0: nothing is worked out ahead.
        """
        self.foreseen = foreseen(self.check(), demonstrations, span, draws, generator) if draws else None

    @torch.no_grad()
    def plans(self, obs: Mapping[str, Tensor], noise: Noise, begin: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """What the base does at every step of windows: obs by key `[B, T, *shape]` to `[B, T, T_p, A]`, in [-1, 1].

        `noise` has B rows; T_p is the base's own. Its memory begins with the window, or where `begin` says (`ChunkPolicy.plans`).
        Where it was worked out ahead for observations `rows [B, T]`, steps before `begin` or `lead` have no meaning.
        """
        policy, known = self.check(), self.foreseen
        if known is None or rows is None:
            return policy.plans(obs, noise, begin).clamp(-1, 1)
        kept = known.at(rows, _ages(rows, begin))
        chunks = policy.drawn(kept.flatten(0, 1), Repeated(noise, rows.shape[1]))
        return chunks.view(*rows.shape, *chunks.shape[1:]).clamp(-1, 1)

    @torch.no_grad()
    def latest(self, obs: Mapping[str, Tensor], noise: Noise, begin: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """What the base does at the last step of windows, `[B, T_p, A]`; arguments as those of `plans`."""
        policy, known = self.check(), self.foreseen
        if known is None or rows is None:
            return policy.latest(obs, noise, begin).clamp(-1, 1)
        return policy.drawn(known.at(rows[:, -1], _ages(rows, begin)[:, -1]), noise).clamp(-1, 1)

    def drawn_begin(self, begin: Tensor, steps: int, noise: Noise) -> Tensor:
        """Where the base's memory begins in windows of `steps` observations, for `plans` of their last step.

        A memory that forgets while acting has any of its ages inside an episode; near the beginning it is as old as the episode.

        Args:
            begin: first steps of the episodes `[B]`; 0 for windows that lie inside.
            noise: B rows; drawn from only where the base has such a memory.
        """
        ages = [age for age in self.check().ages() if age < steps]
        if not ages:
            return begin
        number = (noise.uniform() * len(ages)).long().clamp_max(len(ages) - 1)
        drawn = steps - 1 - torch.tensor(ages, device=begin.device)[number]
        return torch.where(begin > 0, begin, drawn)

    def predictor(self, num_envs: int, seed: int) -> Predictor:
        """Predicts chunks `[N, T_p, A]` while acting; see `agents.policies.chunks.Predictor`. Its actions are not clamped."""
        return self.check().predictor(num_envs, seed)

    def train(self, mode: bool = True) -> BasePolicy:
        """Stays in evaluation mode."""
        return super().train(False)

    def read_(self) -> None:
        """Takes options and weights, the averaged ones where there are any, from the base's checkpoint.

        Raises:
            ConfigError: there is no run, its policy is of another kind, or of a task with other observations or actions.
            CheckpointError: there is no checkpoint in it, or it is spoiled.
        """
        if self.config.base == "none" or not self.config.base_checkpoint:
            raise ConfigError(
                f"agent.base={self.config.base}, agent.base_checkpoint={self.config.base_checkpoint!r}: name both, one of "
                f"{', '.join(BASES)} and the folder of its run (python train.py agent={BASES[0]} env=... prints it)."
            )
        if not Path(self.config.base_checkpoint).exists():
            raise ConfigError(
                f"agent.base_checkpoint={self.config.base_checkpoint}: no such folder; train the base first "
                f"(python train.py agent={self.config.base} ...) and give the folder of its run."
            )
        found = load_acting(self.config.base_checkpoint, self.config.base)
        recipe = json.dumps(found.config["agent"])
        policy = self._built(recipe)
        prefix = "average."
        averaged = {key.removeprefix(prefix): value for key, value in found.model.items() if key.startswith(prefix)}
        try:
            policy.load_state_dict(averaged or found.model)
        except RuntimeError as error:
            raise ConfigError(
                f"agent.base_checkpoint={self.config.base_checkpoint}: its weights don't fit the task {self.spec.name}; give a "
                f"base that was trained on it ({str(error).splitlines()[-1].strip()})."
            ) from error
        self._take(recipe, policy)

    def _take(self, recipe: str, policy: ChunkPolicy) -> None:
        data = torch.frombuffer(bytearray(recipe.encode()), dtype=torch.uint8)
        self.recipe = data.to(self.recipe.device)
        self.policy = policy.requires_grad_(False).eval().to(self.recipe.device)
        self.foreseen = None

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Builds the base from the saved recipe; its weights are loaded after it, as those of any submodule."""
        saved = state_dict.get(f"{prefix}recipe")
        if saved is not None and not torch.equal(saved.cpu(), self.recipe.cpu()):
            recipe = bytes(saved.cpu().tolist()).decode()
            self._take(recipe, self._built(recipe))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _built(self, recipe: str) -> ChunkPolicy:
        options, config = json.loads(recipe), self.config
        if options.get("name") != config.base:
            raise ConfigError(
                f"agent.base={config.base}: {config.base_checkpoint} is of agent {options.get('name')}; set agent.base to it."
            )
        policy = self._make(options, self.spec, seed=0)
        assert isinstance(policy, ChunkPolicy), options["name"]
        return policy


def _ages(rows: Tensor, begin: Tensor | None) -> Tensor:
    """Observations `[B, T]` that a memory has of before each of `rows [B, T]`; negative before it begins."""
    place = torch.arange(rows.shape[1], device=rows.device)
    return place.expand_as(rows) if begin is None else place - begin[:, None]
