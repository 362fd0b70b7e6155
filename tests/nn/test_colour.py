"""Random colours: against a pixel at a time in Python with the standard library's HSV, by row, and where they do nothing."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch

from difftop.nn.colour import DRAWS, jittered
from difftop.nn.observation import EncoderConfig, ObservationEncoder
from difftop.options import ConfigError, build

SHAPES = {"camera": (3, 24, 20), "position": (3,), "wrist": (3, 24, 24)}
CONFIG = EncoderConfig(network="small", crop=0.9, keypoints=5, features=7, colour=0.4)


def plain(image: np.ndarray, draws: np.ndarray, strength: float) -> np.ndarray:
    """One image `[3, H, W]`, pixel by pixel, in 0 .. 1 as torchvision's `adjust_*` have it."""
    f = 1 + strength * (2 * draws[:3] - 1)
    turn = strength * (2 * draws[3] - 1) / 6
    x = np.minimum(image / 255 * f[0], 1)
    weights = np.array([0.2989, 0.587, 0.114])
    mean = np.mean([weights @ x[:, i, j] for i in range(x.shape[1]) for j in range(x.shape[2])])
    x = np.clip(f[1] * x + (1 - f[1]) * mean, 0, 1)
    made = np.empty_like(x)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            pixel = np.clip(f[2] * x[:, i, j] + (1 - f[2]) * (weights @ x[:, i, j]), 0, 1)
            h, s, v = colorsys.rgb_to_hsv(*pixel)
            made[:, i, j] = colorsys.hsv_to_rgb((h + turn) % 1, s, v)
    return 255 * made


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_colours_are_those_of_one_pixel_at_a_time(strength: float) -> None:
    g = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (6, 3, 5, 7), generator=g).double()
    image[0, :, 0] = torch.tensor([0.0, 255.0, 17.0])[:, None]  # black, white and grey have no hue
    image[1] = image[1, :1]
    image[2, 1:] = 0
    image[3, 0] = image[3, 1]  # two channels are the largest
    draws = torch.rand(6, DRAWS, generator=g, dtype=torch.float64)
    draws[4], draws[5] = 0.0, 1.0 - 2**-24
    made = jittered(image, draws, strength)
    expected = np.stack([plain(x, u, strength) for x, u in zip(image.numpy(), draws.numpy(), strict=True)])
    np.testing.assert_allclose(made.numpy(), expected, rtol=0, atol=1e-9)
    assert float(made.min()) >= 0 and float(made.max()) <= 255
    assert float((made - image).abs().mean()) > 3  # of 255
    torch.testing.assert_close(jittered(image.float(), draws.float(), strength).double(), made, rtol=0, atol=2e-3)


def test_rows_are_their_own_and_the_middle_changes_nothing() -> None:
    g = torch.Generator().manual_seed(1)
    image, draws = 255 * torch.rand(5, 3, 6, 4, generator=g), torch.rand(5, DRAWS, generator=g)
    made = jittered(image, draws, 0.5)
    assert torch.equal(jittered(image[[3, 0]], draws[[3, 0]], 0.5), made[[3, 0]])
    torch.testing.assert_close(jittered(image, torch.full((5, DRAWS), 0.5), 0.5), image, rtol=0, atol=1e-3)
    for k in range(DRAWS):  # each number does something
        one = torch.full((5, DRAWS), 0.5)
        one[:, k] = 0.9
        assert float((jittered(image, one, 0.5) - image).abs().amax((1, 2, 3)).min()) > 1, k


def test_each_camera_of_an_encoder_has_its_own_colours() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ObservationEncoder(SHAPES, CONFIG)
    assert encoder.colours_randomly and not encoder.eval().colours_randomly
    g = torch.Generator().manual_seed(2)
    obs = {key: torch.randint(0, 256, (1, 1, *shape), generator=g).float() for key, shape in SHAPES.items()}
    obs = {key: x.expand(2, 2, *x.shape[2:]) for key, x in obs.items()}
    colours = torch.full((2, 2, 2, DRAWS), 0.5)
    colours[1, :, 1] = 0.95  # the second window, seen by the second camera
    with torch.no_grad():
        features = encoder(obs, None, colours)
        as_they_are = encoder(obs)
    torch.testing.assert_close(features[0], as_they_are[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(features[1, :, :10], as_they_are[1, :, :10], rtol=0, atol=1e-4)
    assert float((features[1, :, 10:] - as_they_are[1, :, 10:]).abs().amax(-1).min()) > 1e-2
    assert not ObservationEncoder({"position": (3,)}, CONFIG).colours_randomly


def test_what_has_no_colours_and_no_such_strength_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"encoder\.colour=0\.4: is for images of 3 channels, and eye has 1; leave it out\."):
        ObservationEncoder({"eye": (1, 24, 24)}, CONFIG)
    ObservationEncoder({"eye": (1, 24, 24)}, EncoderConfig(network="small"))
    for strength in (-0.1, 1.5):
        with pytest.raises(ConfigError, match=rf"encoder\.colour={strength}.*1"):
            build(EncoderConfig, {"colour": strength}, "agent.encoder")
