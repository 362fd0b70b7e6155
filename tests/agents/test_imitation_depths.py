"""Depths in imitation: cut and standardized over the demonstrations, cropped as their camera's picture, learned from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.policies.observing import Observer
from agents.registry import make_agent
from difftop.data.demonstrations import Demonstration, Demonstrations, EnvInfo
from difftop.nn.observation import EncoderConfig, ObservationEncoder
from difftop.nn.resnet import ResNet
from difftop.types import EnvSpec, ObsSpec
from tests.agents.imitators import CASES, rolled
from tests.agents.test_imitation_images import ENCODER, made

SHAPES = {"camera_depth": (1, 32, 32), "camera_image": (3, 32, 32), "eef_pos": (3,)}
SPEC = EnvSpec("test/depths", {key: ObsSpec.of(shape, key) for key, shape in SHAPES.items()}, 4, 10, 0.05)
SMALL = EncoderConfig(**ENCODER)


def demonstrations(count: int = 3, steps: int = 9) -> Demonstrations:
    """Depths of 0.2 to 0.4 m before a wall at 50 m, which every other column shows."""
    g = torch.Generator().manual_seed(0)

    def episode(k: int) -> Demonstration:
        depth = 0.2 + 0.2 * torch.rand(steps, 1, 32, 32, generator=g)
        depth[..., ::2] = 50
        picture = torch.randint(0, 256, (steps, 3, 32, 32), generator=g, dtype=torch.uint8)
        obs = {"camera_depth": depth, "camera_image": picture, "eef_pos": torch.randn(steps, 3, generator=g)}
        return Demonstration(f"demo_{k}", torch.rand(steps, 4, generator=g), obs)

    env = EnvInfo("depths")
    return Demonstrations.of(Path("made"), env, (episode(k) for k in range(count)), obs_keys=list(SHAPES))


def test_depths_are_cut_and_standardized_and_the_numbers_are_saved() -> None:
    observer = Observer(SHAPES, [], "min_max", replace(SMALL, crop=0, depth_range=1.0)).eval()
    made = demonstrations()
    observer.fit_(made)
    shown: list[Tensor] = []
    observer.encoder.nets["camera_depth"].resnet.register_forward_pre_hook(lambda _, x: shown.append(x[0]))
    (first, *_) = made.episodes(images=True)
    observer({key: x[None] for key, x in first.obs.items()})
    everything = torch.cat([episode.obs["camera_depth"] for episode in made.episodes(images=True)]).clamp(max=1.0).double()
    mean, deviation = everything.mean(), everything.std()
    expected = (first.obs["camera_depth"].clamp(max=1.0).double() - mean) / deviation
    torch.testing.assert_close(shown[0].double(), expected, rtol=0.02, atol=0.02)  # 8 of 9 images are looked at
    assert len(shown[0][..., ::2].unique()) == 1  # the wall
    other = Observer(SHAPES, [], "min_max", replace(SMALL, crop=0, depth_range=1.0)).eval()
    other.load_state_dict(observer.state_dict())
    assert torch.equal(*(it({key: x[None] for key, x in first.obs.items()}) for it in (observer, other)))


def test_a_camera_s_picture_and_depths_are_cropped_alike() -> None:
    shapes = SHAPES | {"other_depth": (1, 32, 32), "odd_depth": (3, 32, 32)}
    encoder = ObservationEncoder(shapes, SMALL)
    assert encoder.cameras == ("camera_depth", "camera_image", "other_depth", "odd_depth") and encoder.views == 3
    assert not encoder.nets["odd_depth"].depth and encoder.nets["other_depth"].depth  # of three channels: a picture of that name
    shown: dict[str, Tensor] = {}
    for key in encoder.cameras:
        encoder.nets[key].resnet.register_forward_pre_hook(lambda _, x, key=key: shown.update({key: x[0]}))
    ramp = torch.arange(32.0)[:, None] * 4 + torch.arange(32.0) / 16
    obs = {key: ramp.expand(5, 2, *shape) for key, shape in shapes.items() if len(shape) == 3} | {"eef_pos": torch.zeros(5, 2, 3)}
    encoder(obs, torch.rand(5, 2, 3, 2))
    cut, picture = shown["camera_depth"], shown["camera_image"]
    torch.testing.assert_close(cut, 127.5 * (picture[:, :1] + 1), rtol=0, atol=1e-3)
    assert not torch.allclose(cut, shown["other_depth"])


def test_depths_have_no_colours_and_no_pretrained_weights(tmp_path: Path) -> None:
    torch.save(ResNet(3, "batch", 18).state_dict(), tmp_path / "weights.pth")  # in torchvision's names or not, it isn't read
    config = EncoderConfig(crop=0, norm="frozen", weights=str(tmp_path / "weights.pth"), colour=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ObservationEncoder({"camera_depth": (1, 40, 40)}, config).eval()
    before = {key: x.clone() for key, x in encoder.state_dict().items()}
    encoder.load_pretrained_()
    assert all(torch.equal(x, before[key]) for key, x in encoder.state_dict().items())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in encoder.modules())  # nothing frozen at random numbers
    depth = torch.randn(2, 1, 1, 40, 40)
    with torch.no_grad():
        assert torch.equal(encoder({"camera_depth": depth}, None, torch.rand(2, 1, 1, 4)), encoder({"camera_depth": depth}))


@pytest.mark.parametrize("name", (*CASES, "difftop_il"))
def test_every_policy_learns_from_depths_and_acts_on_them(name: str, tmp_path: Path) -> None:
    spec = replace(SPEC, obs={key: seen for key, seen in SPEC.obs.items() if key != "camera_image"})
    more: dict[str, Any] = {"encoder": ENCODER | {"colour": 0.3}}
    if name == "difftop_il":
        agent = make_agent({"name": name, **more}, spec, seed=0, total_steps=10)
    else:
        agent = made(name, tmp_path, spec=spec, **more)
    agent.fit_normalizer_(demonstrations())
    windows = demonstrations().windows(agent.windows.window, agent.windows.horizon, pad_before=agent.windows.pad_before)
    batch = windows.gather(torch.arange(4))
    for k in range(2):
        agent.update(batch, k)
    agent.policy.train().zero_grad()
    agent.policy.loss(batch, torch.Generator().manual_seed(0))[0].backward()
    net = agent.policy.observer.encoder.nets["camera_depth"].resnet
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in net.parameters() if p.requires_grad)
    obs = {key: batch.obs[key] for key in spec.obs}
    near = obs["camera_depth"].clone()
    near[..., :16], near[..., 16:] = 0.01, 3.0
    turned = obs | {"camera_depth": near}
    losses = [float(agent.validate(replace(batch, obs=seen), seed=0)["valid/loss"]) for seen in (obs, turned)]
    assert losses[0] != losses[1]
    assert not torch.equal(rolled(agent.actor(4, seed=0), obs), rolled(agent.actor(4, seed=0), turned))
