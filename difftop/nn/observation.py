"""From a dictionary of observations to one vector of features."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from difftop.nn.colour import jittered
from difftop.nn.pointnet import PointNet
from difftop.nn.pretrained import MEAN, STD, load_pretrained_
from difftop.nn.resnet import DEPTHS, NORMS, ResNet, SpatialSoftmax
from difftop.nn.small_conv import SmallConv
from difftop.options import ConfigError, option
from difftop.types import DEPTH, is_depth

log = logging.getLogger(__name__)

_RGB = 3  # channels
_LITTLE = 0.75  # of a side: a crop below it may miss what matters at the edges


@dataclass(frozen=True)
class EncoderConfig:
    """How images and point clouds become features; low-dimensional observations are used as they are."""

    network: str = option(
        "resnet", "images: a ResNet, or small, three convolutions that one CPU core can train", choices=("resnet", "small")
    )
    norm: str = option(
        "batch",
        "images: normalization in the ResNet; group is safer with averaged weights, frozen takes the pretrained statistics",
        choices=NORMS,
    )
    depth: int = option(18, "images: layers of the ResNet", choices=DEPTHS)
    weights: str = option(
        "", "images: file of pretrained weights in torchvision's names, .pth or .safetensors; empty: begin at random ones"
    )
    crop: float = option(
        0.905,
        "images: share of each side that the crop keeps (76 of 84 pixels, 217 of 240), random in training; above 1: pixels on a "
        "side; 0 or 1 for the whole image",
        low=0,
    )
    evaluation_crop: str = option(
        "center", "images: crop in evaluation; random is what LeTO's runs did by accident", choices=("center", "random")
    )
    colour: float = option(
        0.0,
        "images: strength S of random colours in training, one draw for all frames of a window, each camera its own: "
        "torchvision's ColorJitter(brightness=S, contrast=S, saturation=S, hue=S/6); 0: colours as they are",
        low=0,
        high=1,
    )
    depth_range: float = option(
        3.0, "depth images: what is farther, m, is as far as this; then mean 0 and deviation 1 over the demonstrations", above=0
    )
    keypoints: int = option(32, "images: points of the spatial softmax", low=1)
    features: int = option(64, "features of an image or point cloud", low=1)


class KeyedEncoder(nn.Module):
    """A network for each key of the observations; subclasses fill `nets` and say what becomes of the results.

    Args:
        shapes: shape of one observation by key: `(O,)`, an image `(C, height, width)`, or points `(P, C)`.
        config: options.
    Attributes:
        out: size of the features, or of a token.
        cameras: keys of images, depth images among them.
    """

    out: int

    def __init__(self, shapes: Mapping[str, Sequence[int]], config: EncoderConfig) -> None:
        super().__init__()
        self.config, self.order = config, tuple(shapes)
        self.cameras = tuple(key for key, shape in shapes.items() if len(shape) == 3)
        depths = {key: f"{key.removesuffix(DEPTH)}_image" for key in self.cameras if is_depth(key, shapes[key])}
        seen = {key: depths[key] if depths.get(key) in self.cameras else key for key in self.cameras}
        self._views = {key: list(dict.fromkeys(seen.values())).index(view) for key, view in seen.items()}
        self.clouds = tuple(key for key, shape in shapes.items() if len(shape) == 2)
        self.nets = nn.ModuleDict()

    def encoded(self, obs: Mapping[str, Tensor], crops: Tensor | None, colours: Tensor | None = None) -> list[Tensor]:
        """What the networks make of each key, in the order of `shapes`, `[..., *]`; keys without a network are as they were.

        Args:
            obs: by key `[..., *shape]`; images uint8 or float in 0 .. 255, depths float, already scaled.
            crops: where to crop, numbers in [0, 1) `[..., views, 2]`; None for the centre.
            colours: how to change colours, numbers in [0, 1) `[..., views, 4]`; None for as they are.
        """
        parts = []
        for key in self.order:
            x = obs[key]
            if key not in self.nets:
                parts.append(x)
                continue
            lead = x.shape[: -3 if key in self.cameras else -2 if key in self.clouds else -1]
            flat = x.flatten(0, len(lead) - 1)
            if key in self.cameras:
                drawn = (None if x is None else x[..., self._views[key], :].flatten(0, -2) for x in (crops, colours))
                features = self.nets[key](flat, *drawn)
            else:
                features = self.nets[key](flat)
            parts.append(features.view(*lead, *features.shape[1:]))
        return parts

    @property
    def views(self) -> int:
        """How many crops, or changes of colours, one observation takes: a camera's image and its depths are cropped alike."""
        return len(set(self._views.values()))

    @property
    def crops_randomly(self) -> bool:
        """Whether the next forward pass wants random crops."""
        random = self.training or self.config.evaluation_crop == "random"
        return bool(self.cameras) and self.config.crop not in (0, 1) and random

    @property
    def colours_randomly(self) -> bool:
        """Whether the next forward pass wants random colours; in evaluation none does."""
        return bool(self.cameras) and self.config.colour > 0 and self.training

    def load_pretrained_(self) -> None:
        """Before training: weights of `config.weights` into the ResNet of every image, not of depths; nothing where it is empty.

        A checkpoint has what became of them: where one is loaded, the file isn't needed.

        Raises:
            ConfigError: the file can't be read, or is of another network.
        """
        if self.config.weights:
            for module in self.modules():
                if isinstance(module, CroppedMaps) and isinstance(module.resnet, ResNet) and not module.depth:
                    load_pretrained_(module.resnet, self.config.weights)


class ObservationEncoder(KeyedEncoder):
    """Features of all keys end to end, in the order of `shapes`: vectors as they are, a network for each image and cloud.

        image:  crop -> random colours -> x / 127.5 - 1 -> ResNet or SmallConv -> spatial softmax (K points, 2 K numbers)
                -> linear -> ReLU (the small network: LayerNorm, since points hardly move at the start, and half of the ReLUs
                never wake up)
        depth:  crop -> as an image, in a network of its own; who calls has cut and normalized them
        cloud:  PointNet

    Args:
        shapes, config: see `KeyedEncoder`.
    Source: robomimic's encoders in LeTO's configuration (crop 76 of 84, 32 points, 64 features; a ResNet of its own per camera).
    Differs: crops at evaluation are central (LeTO's are random, by robomimic 0.2's accident); a crop is a share of the image, so
    that 240 pixels give 217 (robomimic and Diffusion Policy name 216 for ToolHang).
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], config: EncoderConfig) -> None:
        super().__init__(shapes, config)
        self.out = 0
        for key, shape in shapes.items():
            if len(shape) == 3:
                self.nets[key] = ImageEncoder(key, shape, config)
            elif len(shape) == 2:
                self.nets[key] = PointNet(shape[-1], config.features)
            self.out += shape[0] if len(shape) == 1 else config.features

    def forward(self, obs: Mapping[str, Tensor], crops: Tensor | None = None, colours: Tensor | None = None) -> Tensor:
        """Features `[..., out]`; see `KeyedEncoder.encoded`."""
        return torch.cat(self.encoded(obs, crops, colours), -1)


class CroppedMaps(nn.Module):
    """One camera's feature maps: `[N, C, height, width]` in 0 .. 255, or depths, cropped, to `[N, out, *cells]`.

    Pretrained networks see images as they were trained on them, (x / 255 - MEAN) / STD by channel; others see x / 127.5 - 1.
    Depths have no pretrained networks: beside some, theirs begins at random weights, and group normalization stands for frozen.

    Attributes:
        out: channels of the maps; 512 of a ResNet (2048 of 50 layers), 64 of the small network.
        cells: rows and columns of the maps.
    Raises:
        ConfigError: the image is smaller than the crop, or the crop too small for the network; pretrained weights are of another
            number of channels, or for the small network; statistics are frozen and not pretrained; random colours of what isn't
            red, green and blue.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, shape: Sequence[int], config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        channels, height, width = shape
        self.depth = is_depth(name, shape)
        self.size = cropped_size(config.crop, height, width)
        if self.size[0] > height or self.size[1] > width:
            raise ConfigError(
                f"encoder.crop={config.crop:g}: images {name} have {height} x {width} pixels; take a share, such as 0.905, fewer "
                "pixels, or 0 for none."
            )
        network = SmallConv if config.network == "small" else ResNet
        if min(self.size) <= network.stride:
            raise ConfigError(
                f"encoder.crop={config.crop:g}: of images {name} only {self.size[0]} x {self.size[1]} pixels are seen; "
                f"encoder.network={config.network} needs more than {network.stride} pixels on a side."
            )
        if self.size[0] < _LITTLE * height or self.size[1] < _LITTLE * width:
            log.warning(
                "encoder.crop=%g: %d x %d of the %d x %d pixels of %s are seen, less than %g%% of a side; what lies at the edges "
                "is never seen at evaluation. A share, such as encoder.crop=0.905, fits any size.",
                *(config.crop, *self.size, height, width, name, 100 * _LITTLE),
            )
        if config.norm == "frozen" and not config.weights:
            raise ConfigError("encoder.norm=frozen: takes the statistics of pretrained weights; set encoder.weights=PATH.")
        if config.weights and config.network == "small":
            raise ConfigError(f"encoder.weights={config.weights}: is for a ResNet; leave it out, or set encoder.network=resnet.")
        if config.weights and channels != len(MEAN) and not self.depth:
            raise ConfigError(
                f"encoder.weights={config.weights}: is for images of {len(MEAN)} channels, and {name} has {channels}; leave it "
                "out."
            )
        if config.colour and channels != _RGB and not self.depth:
            raise ConfigError(
                f"encoder.colour={config.colour:g}: is for images of {_RGB} channels, and {name} has {channels}; leave it out."
            )
        norm = "group" if self.depth and config.norm == "frozen" else config.norm
        self.resnet = SmallConv(channels) if config.network == "small" else ResNet(channels, norm, config.depth)
        self.pretrained = bool(config.weights) and not self.depth
        if self.pretrained:
            self.register_buffer("mean", 255 * torch.tensor(MEAN)[:, None, None], persistent=False)
            self.register_buffer("std", 255 * torch.tensor(STD)[:, None, None], persistent=False)
        self.out = int(self.resnet.out)
        self.cells = math.ceil(self.size[0] / network.stride), math.ceil(self.size[1] / network.stride)

    def maps(self, image: Tensor, corner: Tensor | None = None, colour: Tensor | None = None) -> Tensor:
        """Feature maps.

        Args:
            image: `[N, C, height, width]` in 0 .. 255, or depths, scaled.
            corner: places the crop, `[N, 2]` in [0, 1); None puts it into the centre.
            colour: draws of `difftop.nn.colour.jittered`, `[N, 4]`; None leaves colours as they are.
        """
        cropped = crop(image, self.size, corner)
        seen = cropped.to(next(self.resnet.parameters()).dtype)
        if colour is not None and not self.depth:
            seen = jittered(seen, colour, self.config.colour)
        if not self.depth:
            seen = (seen - self.mean) / self.std if self.pretrained else seen / 127.5 - 1
        made: Tensor = self.resnet(seen)
        return made


class ImageEncoder(CroppedMaps):
    """One camera's network: `[N, C, height, width]` in 0 .. 255 to `[N, features]`; raises as `CroppedMaps`."""

    def __init__(self, name: str, shape: Sequence[int], config: EncoderConfig) -> None:
        super().__init__(name, shape, config)
        self.softmax = SpatialSoftmax(self.out, self.cells, config.keypoints)
        self.linear = nn.Linear(2 * config.keypoints, config.features)
        self.last = nn.LayerNorm(config.features) if config.network == "small" else nn.ReLU()

    def forward(self, image: Tensor, corner: Tensor | None = None, colour: Tensor | None = None) -> Tensor:
        """Features; see `maps`."""
        points = self.softmax(self.maps(image, corner, colour)).flatten(1)
        features: Tensor = self.last(self.linear(points))
        return features


def cropped_size(crop: float, height: int, width: int) -> tuple[int, int]:
    """Rows and columns that `EncoderConfig.crop` keeps of an image; a share is rounded to whole pixels."""
    if crop > 1:
        return round(crop), round(crop)
    share = crop or 1.0
    return round(share * height), round(share * width)


def crop(image: Tensor, size: tuple[int, int], corner: Tensor | None) -> Tensor:
    """Crops each image.

    Args:
        image: `[N, C, height, width]`, any dtype.
        size: rows and columns to keep.
        corner: `[N, 2]` in [0, 1): the first row is floor(u (height - rows + 1)), columns alike; None for the centre.
    Returns:
        `[N, C, *size]`.
    """
    n, channels, height, width = image.shape
    (rows, columns), device = size, image.device
    if corner is None:
        top, left = (height - rows) // 2, (width - columns) // 2
        return image[..., top : top + rows, left : left + columns]
    spare = torch.tensor([height - rows + 1, width - columns + 1], device=device)
    first = (corner.to(device) * spare).long().minimum(spare - 1)
    row = (first[:, :1] + torch.arange(rows, device=device))[:, None, :, None]
    column = (first[:, 1:] + torch.arange(columns, device=device))[:, None, None, :]
    return image[
        torch.arange(n, device=device)[:, None, None, None], torch.arange(channels, device=device)[:, None, None], row, column
    ]
