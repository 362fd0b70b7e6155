"""What LeRobot has to know of the policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode
from lerobot.optim.optimizers import AdamWConfig
from lerobot.optim.schedulers import ConstantWithWarmupSchedulerConfig, CosineAnnealingWithWarmupSchedulerConfig

from lerobot_policy_difftop.recipe import Recipe, agent_options


@PreTrainedConfig.register_subclass("difftop")
@dataclass
class DifftopConfig(PreTrainedConfig):
    """Which policy: of a checkpoint, of a folder that LeRobot saved, or a new one to train.

    Attributes:
        checkpoint: run folder or checkpoint of `difftop`, to act by.
        agent: what `lerobot-train` trains: leto, difftop_il, diffusion, act, rnn_gmm, bc or ibc.
        options: of the agent and the data, as `difftop` takes them: `["agent.horizon=10", "preset=cpu"]`.
        head: none, clip or qp in place of the trained head, while acting; empty for the trained one.
        seed: of first weights, and of what training and acting sample.
        recipe: options and task in JSON, all that the network is built from; written where a policy is saved, never given.
    """

    checkpoint: str = ""
    agent: str = "leto"
    options: list[str] = field(default_factory=list)
    head: str = ""
    seed: int = 0
    recipe: str = ""
    push_to_hub: bool = False
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ENV", "ACTION"), NormalizationMode.IDENTITY)
    )

    @property
    def overrides(self) -> list[str]:
        """What a command of difftop that trains the same would say."""
        return [f"agent={self.agent}", *self.options]

    @cached_property
    def built(self) -> Any:
        """Options of the agent, as its dataclass."""
        return Recipe.read(self.recipe).config if self.recipe else agent_options(self.overrides)

    def validate_features(self) -> None:
        """The policy knows what it looks at."""

    @property
    def observation_delta_indices(self) -> list[int]:
        """Steps of the window that is trained on, from that of the sample; before an episode's first and after its last, LeRobot
        repeats it, as we do."""
        shape = self.built.windows
        return list(range(-shape.pad_before, shape.window - shape.pad_before))

    @property
    def action_delta_indices(self) -> list[int]:
        """Steps of the actions that the window's predictions have together, from that of the sample."""
        shape = self.built.windows
        return list(range(-shape.pad_before, shape.window + shape.horizon - 1 - shape.pad_before))

    @property
    def drop_n_last_frames(self) -> int:
        """Samples at the end of an episode with which no window begins.

        Where there are more windows than samples (residual pads on both sides), those that begin latest aren't trained on.
        """
        shape = self.built.windows
        return max(0, shape.window + shape.horizon - 2 - shape.pad_before - shape.pad_after)

    @property
    def reward_delta_indices(self) -> None:
        """None are used."""
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        """That of the agent's options."""
        training = self.built.training
        return AdamWConfig(
            lr=training.learning_rate,
            betas=(training.beta1, 0.999),
            weight_decay=training.weight_decay,
            grad_clip_norm=training.clip,
        )

    def get_scheduler_preset(self) -> Any:
        """That of the agent's options; None where the learning rate stays as it is."""
        training = self.built.training
        if training.schedule == "cosine":
            return CosineAnnealingWithWarmupSchedulerConfig(num_warmup_steps=training.warmup_steps)
        if training.warmup_steps:
            return ConstantWithWarmupSchedulerConfig(num_warmup_steps=training.warmup_steps)
        return None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and processes of their own work the options out anew."""
        return {key: value for key, value in vars(self).items() if key != "built"}
