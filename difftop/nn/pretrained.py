"""Weights of a ResNet that torchvision, or what is built on it, has trained, from a local file.

    torchvision           here
    conv1, bn1            stem, norm
    layerL.i.convK        first, second, third of a block; blocks are numbered through all four levels
    layerL.i.bnK          norms.(K - 1)
    layerL.i.downsample   side
    fc                    left out

With `norm=batch` and `frozen` everything is taken. With `norm=group` the convolutions are: a batch norm's scale and shift belong
to its recorded statistics, which a group norm hasn't, so that these begin at 1 and 0, as in Diffusion Policy's pretrained ones.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from difftop.nn.resnet import ResNet
from difftop.options import ConfigError

log = logging.getLogger(__name__)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's images in [0, 1], by channel
_CONVOLUTIONS = ("first", "second", "third")
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
_STEM, _FIRST = "conv1.weight", "layer1.0.conv1.weight"


def load_pretrained_(net: ResNet, path: str) -> None:
    """Takes the weights of a file.

    Args:
        net: changed in place.
        path: a state dict in torchvision's names, `.safetensors`, or as `torch.save` writes it; a prefix before all names
            (`module.convnet.`) is fine.
    Raises:
        ConfigError: the file isn't there, can't be read, or is of another network.
    """
    stored = _network(_read(path), path)
    batch = not any(isinstance(module, nn.GroupNorm) for module in net.modules())
    wanted = {ours: theirs for theirs, ours in names(net).items() if batch or _is_convolution(theirs)}
    _check_depth(net, stored, path)
    missing = [theirs for theirs in wanted.values() if theirs not in stored]
    if missing:
        raise ConfigError(
            f"encoder.weights={path}: {missing[0]} and {len(missing) - 1} others are missing; give a ResNet's state dict."
        )
    have = net.state_dict()
    for ours, theirs in wanted.items():
        if stored[theirs].shape != have[ours].shape:
            raise ConfigError(
                f"encoder.weights={path}: {theirs} has shape {list(stored[theirs].shape)}, the network's is "
                f"{list(have[ours].shape)}; give weights of torchvision's ResNet."
            )
    with torch.no_grad():
        for ours, theirs in wanted.items():
            have[ours].copy_(stored[theirs])
    kept = "" if batch else "; convolutions only, since normalization is by group"
    log.info("encoder.weights=%s: %d tensors taken%s", path, len(wanted), kept)


def names(net: ResNet) -> dict[str, str]:
    """torchvision's name of each tensor to its name here; counters of batches are left out."""
    found = {_STEM: "stem.weight"} | {f"bn1.{part}": f"norm.{part}" for part in _BATCH_NORM}
    number = 0
    for level, count in enumerate(net.levels, start=1):
        for i in range(count):
            theirs, ours, block = f"layer{level}.{i}", f"blocks.{number}", net.blocks[number]
            for k, name in enumerate(_CONVOLUTIONS, start=1):
                if hasattr(block, name):
                    found[f"{theirs}.conv{k}.weight"] = f"{ours}.{name}.weight"
                    found |= {f"{theirs}.bn{k}.{part}": f"{ours}.norms.{k - 1}.{part}" for part in _BATCH_NORM}
            if not isinstance(block.side, nn.Identity):
                found[f"{theirs}.downsample.0.weight"] = f"{ours}.side.0.weight"
                found |= {f"{theirs}.downsample.1.{part}": f"{ours}.side.1.{part}" for part in _BATCH_NORM}
            number += 1
    return found


def _is_convolution(theirs: str) -> bool:
    return "conv" in theirs or ".downsample.0." in theirs


def _read(path: str) -> Mapping[str, Any]:
    """A file's state dict; nothing in it is executed."""
    where = Path(path).expanduser()
    if not where.is_file():
        raise ConfigError(f"encoder.weights={path}: no such file.")
    try:
        stored = load_file(where) if where.suffix == ".safetensors" else torch.load(where, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        said = " ".join(str(error).split())[:120]
        raise ConfigError(f"encoder.weights={path}: no state dict can be read from it ({said}).") from error
    if not isinstance(stored, Mapping):
        raise ConfigError(f"encoder.weights={path}: it holds a {type(stored).__name__}; save the network's state_dict().")
    return stored


def _network(stored: Mapping[str, Any], path: str) -> dict[str, Tensor]:
    """The tensors of the one ResNet in a state dict, without a prefix."""
    prefixes = [key.removesuffix(_FIRST) for key in stored if str(key).endswith(_FIRST)]
    prefixes = [prefix for prefix in prefixes if prefix + _STEM in stored]
    if len(prefixes) != 1:
        what = f"{len(prefixes)} networks" if prefixes else f"no {_STEM} and {_FIRST}"
        raise ConfigError(f"encoder.weights={path}: it has {what}; give the state dict of one ResNet in torchvision's names.")
    return {
        key.removeprefix(prefixes[0]): x for key, x in stored.items() if key.startswith(prefixes[0]) and isinstance(x, Tensor)
    }


def _check_depth(net: ResNet, stored: Mapping[str, Tensor], path: str) -> None:
    """Raises where the file's network has another number of layers."""
    blocks = len({found[0] for key in stored if (found := re.match(r"layer\d+\.\d+\.", key))})
    convolutions = 3 if "layer1.0.conv3.weight" in stored else 2
    theirs, ours = blocks * convolutions + 2, len(net.blocks) * (3 if hasattr(net.blocks[0], "third") else 2) + 2
    if theirs != ours:
        raise ConfigError(
            f"encoder.weights={path}: it is a ResNet{theirs}, and encoder.depth={ours}; depths are 18, 34 and 50: set "
            f"encoder.depth={theirs}, or take another file."
        )
