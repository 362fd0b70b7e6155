"""Pretrained ResNets against a forward pass in plain functions, in torchvision's names, without torchvision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from difftop.nn.observation import EncoderConfig, ObservationEncoder
from difftop.nn.pretrained import MEAN, STD, load_pretrained_, names
from difftop.nn.resnet import FrozenBatchNorm, ResNet
from difftop.options import ConfigError

LEVELS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
PARAMETERS = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032}  # torchvision's own numbers, classifiers included


def state_of(depth: int, seed: int = 0) -> dict[str, Tensor]:
    """Random numbers in the layout of torchvision's `resnet18().state_dict()` and so on."""
    g = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def convolution(name: str, inputs: int, outputs: int, size: int) -> None:
        state[f"{name}.weight"] = torch.randn(outputs, inputs, size, size, generator=g) * (2 / (outputs * size**2)) ** 0.5

    def norm(name: str, channels: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = (torch.rand(channels, generator=g) - shift for shift in (-0.5, 0.5))
        state[f"{name}.running_mean"] = torch.randn(channels, generator=g) / 5
        state[f"{name}.running_var"] = torch.rand(channels, generator=g) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    convolution("conv1", 3, 64, 7)
    norm("bn1", 64)
    inputs = 64
    for level, (count, size) in enumerate(zip(LEVELS[depth], (64, 128, 256, 512), strict=True), start=1):
        outputs = size * (4 if depth == 50 else 1)
        for i in range(count):
            name = f"layer{level}.{i}"
            shapes = [(inputs, size, 3), (size, size, 3)]
            if depth == 50:
                shapes = [(inputs, size, 1), (size, size, 3), (size, outputs, 1)]
            for k, shape in enumerate(shapes, start=1):
                convolution(f"{name}.conv{k}", *shape)
                norm(f"{name}.bn{k}", shape[1])
            if i == 0 and (level > 1 or depth == 50):
                convolution(f"{name}.downsample.0", inputs, outputs, 1)
                norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    state["fc.weight"], state["fc.bias"] = torch.randn(1000, inputs, generator=g), torch.zeros(1000)
    return state


def reference(state: dict[str, Tensor], depth: int, x: Tensor) -> Tensor:
    """The feature maps, by torchvision's names."""

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var, scale, shift = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]

    x = F.conv2d(x, state["conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(F.relu(norm("bn1", x)), 3, 2, 1)
    for level, count in enumerate(LEVELS[depth], start=1):
        for i in range(count):
            name, stride = f"layer{level}.{i}", 2 if level > 1 and i == 0 else 1
            h, last = x, 3 if depth == 50 else 2
            strided = 2 if depth == 50 else 1
            for k in range(1, last + 1):
                weight = state[f"{name}.conv{k}.weight"]
                h = F.conv2d(h, weight, stride=stride if k == strided else 1, padding=weight.shape[-1] // 2)
                h = norm(f"{name}.bn{k}", h)
                h = F.relu(h) if k < last else h
            if f"{name}.downsample.0.weight" in state:
                x = norm(f"{name}.downsample.1", F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride))
            x = F.relu(h + x)
    return x


@pytest.mark.parametrize("depth", LEVELS)
def test_names_are_all_that_torchvision_has_and_sizes_are_the_published(depth: int) -> None:
    state, net = state_of(depth), ResNet(depth=depth)
    assert sum(x.numel() for key, x in state.items() if "running" not in key and "tracked" not in key) == PARAMETERS[depth]
    known = names(net)
    assert set(known) == {key for key in state if not key.startswith("fc.") and not key.endswith("num_batches_tracked")}
    assert set(known.values()) == {key for key in net.state_dict() if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize("norm", ["batch", "frozen"])
@pytest.mark.parametrize("depth", LEVELS)
def test_features_are_those_of_the_reference(tmp_path: Path, depth: int, norm: str) -> None:
    state, net = state_of(depth), ResNet(norm=norm, depth=depth).eval()
    torch.save(state, tmp_path / "net.pth")
    load_pretrained_(net, str(tmp_path / "net.pth"))
    x = torch.randn(2, 3, 70, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = net(x), reference(state, depth, x)
    assert found.shape == (2, net.out, 3, 2) and float(expected.abs().mean()) > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    net.train()
    again = net(x)
    assert torch.equal(again.detach(), found) == (norm == "frozen")


def test_group_norm_takes_the_convolutions_alone(tmp_path: Path) -> None:
    state, net = state_of(18), ResNet(norm="group")
    torch.save(state, tmp_path / "net.pth")
    load_pretrained_(net, str(tmp_path / "net.pth"))
    ours = {ours: theirs for theirs, ours in names(net).items()}
    for key, value in net.state_dict().items():
        if value.dim() == 4:
            assert torch.equal(value, state[ours[key]])
        else:
            assert torch.equal(value, torch.full_like(value, float(key.endswith("weight"))))


def test_an_encoder_sees_images_as_they_were_trained_on_and_begins_at_the_file_s_weights(tmp_path: Path) -> None:
    state = state_of(18)
    save_file(state, tmp_path / "net.safetensors")
    path = str(tmp_path / "net.safetensors")
    config = EncoderConfig(crop=0, weights=path, norm="frozen", keypoints=4, features=6)
    encoder = ObservationEncoder({"a_image": (3, 48, 40), "b_image": (3, 48, 40), "x": (2,)}, config)
    encoder.load_pretrained_()
    image = torch.randint(0, 256, (2, 3, 48, 40), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    with torch.no_grad():
        expected = reference(state, 18, (image / 255 - mean) / std)
        for key in ("a_image", "b_image"):
            found = encoder.nets[key].maps(image)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert sum(isinstance(module, FrozenBatchNorm) for module in encoder.modules()) == 2 * 20
    trained = {key for key, value in encoder.named_parameters() if value.requires_grad}
    assert "nets.a_image.resnet.stem.weight" in trained and not any(".norm" in key for key in trained)


def test_a_prefix_is_fine(tmp_path: Path) -> None:
    state = state_of(18)
    torch.save({f"module.convnet.{key}": value for key, value in state.items()}, tmp_path / "net.pt")
    net = ResNet()
    load_pretrained_(net, str(tmp_path / "net.pt"))
    assert torch.equal(net.stem.weight, state["conv1.weight"])


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    net = ResNet()
    before = {key: value.clone() for key, value in net.state_dict().items()}

    def wrong(stored: object, message: str) -> None:
        torch.save(stored, path)
        with pytest.raises(ConfigError, match=rf"^encoder\.weights=.*{message}") as caught:
            load_pretrained_(net, str(path))
        assert "\n" not in str(caught.value)

    state = state_of(18)
    wrong(state_of(34), r"it is a ResNet34, and encoder\.depth=18; depths are 18, 34 and 50: set encoder\.depth=34")
    wrong({key: value for key, value in state.items() if "bn2" not in key}, r"layer1\.0\.bn2\.weight and 31 others are missing")
    wrong(state | {"layer2.0.conv1.weight": torch.zeros(128, 64, 1, 1)}, r"layer2\.0\.conv1\.weight has shape \[128, 64, 1, 1\]")
    wrong({"blocks.0.weight": torch.zeros(3)}, "no conv1.weight")
    wrong([1, 2], "it holds a list")
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigError, match="no state dict can be read"):
        load_pretrained_(net, str(path))
    with pytest.raises(ConfigError, match="no such file"):
        load_pretrained_(net, str(tmp_path / "nowhere.pth"))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    with pytest.raises(ConfigError, match=r"norm=frozen: takes the statistics of pretrained weights"):
        ObservationEncoder({"a_image": (3, 48, 48)}, EncoderConfig(norm="frozen"))
    with pytest.raises(ConfigError, match=r"of 3 channels, and a_image has 9"):
        ObservationEncoder({"a_image": (9, 48, 48)}, EncoderConfig(weights="net.pth"))
