"""A policy of difftop as one of LeRobot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from difftop.data.scaling import scaled
from difftop.data.windows import WindowBatch
from difftop.policy import Policy
from difftop.run.weights import load_weights
from lerobot_policy_difftop.configuration_difftop import DifftopConfig
from lerobot_policy_difftop.recipe import Recipe, from_checkpoint, from_data_set


class DifftopPolicy(PreTrainedPolicy):
    """Acts by a checkpoint of difftop, or by what LeRobot trained and saved; trains.

    Buffers:
        updates: gradient steps of its training.
    """

    config_class = DifftopConfig
    name = "difftop"
    updates: Tensor

    def __init__(self, config: DifftopConfig, dataset_meta: Any = None, **_: Any) -> None:
        super().__init__(config)
        device = str(config.device or "cpu")
        saved = demonstrations = None
        if config.recipe:  # LeRobot loads the weights
            recipe = Recipe.read(config.recipe)
        elif config.checkpoint:
            recipe, saved = from_checkpoint(config.checkpoint)
        elif dataset_meta is not None:
            recipe, demonstrations = from_data_set(Path(dataset_meta.root), config.overrides)
        else:
            raise ValueError(
                "policy.checkpoint is empty: give a run folder of difftop, runs/ENV/AGENT/NAME/seed1, or --policy.path=FOLDER of "
                "what lerobot-train saved."
            )
        self.recipe, self.agent = recipe, recipe.make(config.seed, device)
        if saved is not None:
            load_weights(self.agent, saved)
        if demonstrations is not None:
            self.agent.fit_normalizer_(demonstrations)
        used = [name for key, seen in recipe.spec.obs.items() for name in _names(key, seen.kind == "image")]
        config.input_features = {name: what for name, what in (config.input_features or {}).items() if name in used}
        config.recipe, config.checkpoint = recipe.written(), ""  # what LeRobot saves is all that is needed
        self.network = self.agent.policy
        self.average = self.agent.average.policy if self.agent.average else None
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.generator = torch.Generator(device).manual_seed(config.seed)
        steps = saved.step if saved else 0
        self.acting = Policy(self.agent, recipe.spec, {}, steps=steps, seed=config.seed, head=config.head or None)

    def reset(self) -> None:
        """An episode begins, in all environments."""
        self.acting.reset()

    def select_action(self, batch: dict[str, Tensor], **_: Any) -> Tensor:
        """The next action `[N, A]`, in the units of the data set that was learnt from."""
        seen = {key: _found(batch, key, spec.kind == "image") for key, spec in self.recipe.spec.obs.items()}
        action: Tensor = self.acting.act(seen)
        return action

    def predict_action_chunk(self, batch: dict[str, Tensor], **_: Any) -> Tensor:
        """The next action as a chunk of one, `[N, 1, A]`."""
        return self.select_action(batch)[:, None]

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any] | None]:
        """The loss on windows, and metrics by tag.

        Args:
            batch: by LeRobot's names, `[B, T_s, ...]` observations and `[B, T_s + T_p - 1, A]` actions, in the data set's units.
        """
        spec = self.recipe.spec
        obs = {key: _found(batch, key, seen.kind == "image") for key, seen in spec.obs.items()}
        obs = {key: x if spec.obs[key].kind == "image" else x.float() for key, x in obs.items()}
        actions = batch["action"].float()
        if spec.action_low:
            actions = scaled(actions, *(torch.tensor(bound).to(actions) for bound in (spec.action_low, spec.action_high)))
        padded = batch.get("action_is_pad")
        mask = torch.ones(actions.shape[:2], dtype=torch.bool, device=actions.device) if padded is None else ~padded
        loss, metrics = self.network.loss(WindowBatch(obs, actions, mask), self.generator)
        return loss, {tag: float(value) for tag, value in metrics.items() if tag != "loss"}

    def update(self) -> None:
        """After each gradient step, which LeRobot takes: the average of the weights, where there is one."""
        if self.agent.average:
            self.agent.average.update_(self.network, int(self.updates))
        self.updates += 1

    def get_optim_params(self) -> list[Tensor]:
        """The weights that are trained."""
        return [p for p in self.network.parameters() if p.requires_grad]


def _names(key: str, image: bool) -> list[str]:
    """LeRobot's names of an observation of difftop, those of cameras first."""
    names = [f"observation.{key}", f"observation.{key.replace('/', '.')}"]
    return [f"observation.images.{key.removesuffix('_image')}", "observation.image", *names] if image else names


def _found(batch: dict[str, Tensor], key: str, image: bool) -> Tensor:
    """An observation by difftop's name; images in [0, 1] become bytes.

    Raises:
        ValueError: it isn't there; the message says what is.
    """
    names = _names(key, image)
    name = next((name for name in names if name in batch), None)
    if name is None:
        there = ", ".join(key for key in batch if key.startswith("observation"))
        raise ValueError(f"{key!r} is what the policy looks at; {' or '.join(names)} isn't there, but {there}.")
    value = batch[name]
    return (value * 255).round().to(torch.uint8) if image and value.is_floating_point() else value
