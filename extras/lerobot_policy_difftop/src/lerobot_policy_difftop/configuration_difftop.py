"""What LeRobot has to know of the policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode


@PreTrainedConfig.register_subclass("difftop")
@dataclass
class DifftopConfig(PreTrainedConfig):
    """Which checkpoint acts, and how.

    Attributes:
        checkpoint: run folder or checkpoint of `difftop`.
        head: none, clip or qp in place of the trained head; empty for the trained one.
        seed: of what acting samples.
    """

    checkpoint: str = ""
    head: str = ""
    seed: int = 0
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ENV", "ACTION"), NormalizationMode.IDENTITY)
    )

    def validate_features(self) -> None:
        """The checkpoint knows what it looks at."""

    @property
    def observation_delta_indices(self) -> None:
        """One step at a time: the policy remembers."""
        return None

    @property
    def action_delta_indices(self) -> None:
        """Nothing is trained here."""
        return None

    @property
    def reward_delta_indices(self) -> None:
        """Nothing is trained here."""
        return None

    def get_optimizer_preset(self) -> Any:
        """Raises: nothing is trained here."""
        raise NotImplementedError("policy.type=difftop acts only; train with `difftop agent=leto dataset=FOLDER`.")

    def get_scheduler_preset(self) -> None:
        """None."""
        return None
