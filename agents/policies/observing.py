"""Observations by key to features, normalization included: what all imitation policies begin with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from agents.policies.noise import Noise
from difftop.data.demonstrations import Demonstrations
from difftop.data.normalize import Normalizer, leto_mode
from difftop.nn.colour import DRAWS
from difftop.nn.observation import EncoderConfig, KeyedEncoder, ObservationEncoder
from difftop.options import ConfigError, suggest
from difftop.types import is_depth

NORMALIZATIONS = ("min_max", "standardize", "leto", "identity")
_DEPTH_EPISODES, _DEPTH_STEPS = 20, 8  # that the numbers for depths are taken from: 160 images tell a mean and a deviation
MakeEncoder = Callable[[Mapping[str, Sequence[int]], EncoderConfig], KeyedEncoder]


class Observer(nn.Module):
    """Chosen observations, normalized and encoded.

    Args:
        shapes: what the task offers; `EnvSpec.shapes`.
        keys: which of them to use, in this order; none for all, in alphabetical order, since a file and a simulator order them
            each in its own way.
        normalization: of vectors entry by entry, and of points coordinate by coordinate; see `difftop.data.normalize`.
            `leto`: positions by range, the rest as it is. Depths are always cut and standardized, all pixels alike: a camera on
            a hand sees 0.2 to 0.4 m, one on a wall 1 to 80 m.
        config: of the networks for images and clouds.
        encoder: makes of shapes and config what turns normalized observations into features.
    Raises:
        ConfigError: an unknown key.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        keys: Sequence[str],
        normalization: str,
        config: EncoderConfig,
        encoder: MakeEncoder = ObservationEncoder,
    ) -> None:
        super().__init__()
        for key in keys:
            if key not in shapes:
                raise ConfigError(f"obs_keys: the task has no {key!r}.{suggest(key, list(shapes))} It has {', '.join(shapes)}.")
        for key in keys or shapes:
            if "." in key or hasattr(nn.ModuleDict(), key):  # parts of the network are named after keys
                raise ConfigError(f"observation {key!r}: a name can't have a dot or be {key!r}; leave it out by agent.obs_keys.")
        self.shapes = {key: tuple(shapes[key]) for key in (keys or sorted(shapes))}
        self.normalization = normalization
        self.depths = tuple(key for key, shape in self.shapes.items() if is_depth(key, shape))
        rows = {key: shape[-1:] for key, shape in self.shapes.items() if len(shape) < 3}
        self.normalizer = Normalizer(rows | dict.fromkeys(self.depths, (1,)))
        self.encoder = encoder(self.shapes, config)

    @property
    def out(self) -> int:
        """Number of features."""
        return self.encoder.out

    def forward(self, obs: Mapping[str, Tensor], noise: Noise | None = None) -> Tensor:
        """Features `[K, T, out]`, or what else the encoder makes.

        Args:
            obs: by key `[K, T, *shape]`; keys that aren't used may be among them.
            noise: K rows, for random crops, each frame's own, and for random colours, which stay along the T frames: light
                doesn't change from one to the next.
        """
        encoder = self.encoder
        far = encoder.config.depth_range
        seen = self.normalizer({key: obs[key].clamp(max=far) if key in self.depths else obs[key] for key in encoder.order})
        crops = colours = None
        steps, views = obs[encoder.order[0]].shape[1], encoder.views
        if encoder.crops_randomly and noise is not None:
            crops = noise.uniform(steps, views, 2)
        if encoder.colours_randomly and noise is not None:
            colours = noise.uniform(views, DRAWS)[:, None].expand(-1, steps, -1, -1)
        features: Tensor = encoder(seen, crops, colours)
        return features

    def fit_(self, demonstrations: Demonstrations) -> None:
        """Takes the numbers of the normalization from demonstrations, and pretrained weights; they are in the state dict."""
        self.encoder.load_pretrained_()
        for key, shape in self.shapes.items():
            if key in self.depths:
                self.normalizer[key].fit_(self._some_depths(demonstrations, key)[:, None], "standardize")
            if len(shape) == 3:
                continue
            mode = leto_mode(key) if self.normalization == "leto" else self.normalization
            self.normalizer[key].fit_(demonstrations.rows(key).reshape(-1, shape[-1]), mode)

    def _some_depths(self, demonstrations: Demonstrations, key: str) -> Tensor:
        """Depths `[R]`, cut, of images that are spread evenly over demonstrations that are spread evenly."""
        found = []
        for episode in sorted(set(torch.linspace(0, len(demonstrations) - 1, _DEPTH_EPISODES).long().tolist())):
            steps = torch.linspace(0, int(demonstrations.length[episode]) - 1, _DEPTH_STEPS).long()
            source = demonstrations.source[episode : episode + 1]
            found.append(demonstrations.images[key].gather(source, steps[None]).flatten())
        return torch.cat(found).clamp(max=self.encoder.config.depth_range)

    def received(self, obs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """The chosen observations on the device: images as they come, everything else float32."""
        return {
            key: obs[key].to(device) if len(shape) == 3 else obs[key].to(device, torch.float32)
            for key, shape in self.shapes.items()
        }
