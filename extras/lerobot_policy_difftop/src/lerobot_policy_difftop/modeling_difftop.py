"""A checkpoint of difftop as a policy of LeRobot."""

from __future__ import annotations

from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from difftop import load_policy
from lerobot_policy_difftop.configuration_difftop import DifftopConfig

_TRAINED = "policy.type=difftop acts only; train with `difftop agent=leto dataset=FOLDER`."


class DifftopPolicy(PreTrainedPolicy):
    """Acts by the checkpoint that the configuration names."""

    config_class = DifftopConfig
    name = "difftop"

    def __init__(self, config: DifftopConfig, *_: Any, **__: Any) -> None:
        super().__init__(config)
        if not config.checkpoint:
            raise ValueError("policy.checkpoint is empty: give a run folder of difftop, runs/ENV/AGENT/NAME/seed1.")
        device = "cuda" if str(config.device).startswith("cuda") else "cpu"
        self.policy = load_policy(config.checkpoint, device, seed=config.seed, head=config.head or None)

    def reset(self) -> None:
        """An episode begins, in all environments."""
        self.policy.reset()

    def select_action(self, batch: dict[str, Tensor], **_: Any) -> Tensor:
        """The next action `[N, A]`, in the units of the data set that was learnt from."""
        seen = {key: _found(batch, key, spec.kind == "image") for key, spec in self.policy.spec.obs.items()}
        action: Tensor = self.policy.act(seen)
        return action

    def predict_action_chunk(self, batch: dict[str, Tensor], **_: Any) -> Tensor:
        """The next action as a chunk of one, `[N, 1, A]`."""
        return self.select_action(batch)[:, None]

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any] | None]:
        """Raises: nothing is trained here."""
        raise NotImplementedError(_TRAINED)

    def get_optim_params(self) -> dict[str, Any]:
        """Raises: nothing is trained here."""
        raise NotImplementedError(_TRAINED)


def _found(batch: dict[str, Tensor], key: str, image: bool) -> Tensor:
    """An observation by difftop's name; images in [0, 1] become bytes.

    Raises:
        ValueError: it isn't there; the message says what is.
    """
    names = [f"observation.{key}", f"observation.{key.replace('/', '.')}"]
    if image:
        names = [f"observation.images.{key.removesuffix('_image')}", "observation.image", *names]
    name = next((name for name in names if name in batch), None)
    if name is None:
        there = ", ".join(key for key in batch if key.startswith("observation"))
        raise ValueError(f"{key!r} is what the policy looks at; {' or '.join(names)} isn't there, but {there}.")
    value = batch[name]
    if image and value.is_floating_point():
        return (value * 255).round().to(torch.uint8)
    return value
