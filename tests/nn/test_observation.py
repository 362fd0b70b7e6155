"""Encoders: crops against slices, sizes against the published networks, points against sums, clouds in any order."""

from __future__ import annotations

import pytest
import torch

from difftop.nn.observation import EncoderConfig, ObservationEncoder, crop, cropped_size
from difftop.nn.pointnet import PointNet
from difftop.nn.resnet import ResNet, SpatialSoftmax
from difftop.nn.rnn import StepLSTM
from difftop.nn.small_conv import SmallConv
from difftop.options import ConfigError

SHAPES = {"camera": (3, 80, 72), "position": (3,), "cloud": (20, 3), "wrist": (3, 68, 68)}
CONFIG = EncoderConfig(crop=64, keypoints=5, features=7)


def observations(*lead: int, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        key: torch.randint(0, 256, (*lead, *shape), generator=g, dtype=torch.uint8)
        if len(shape) == 3
        else torch.randn(*lead, *shape, generator=g)
        for key, shape in SHAPES.items()
    }


def test_crops_are_slices() -> None:
    image = torch.randint(0, 256, (50, 2, 9, 12), dtype=torch.uint8)
    corner = torch.rand(50, 2)
    cropped = crop(image, (6, 8), corner)
    assert cropped.shape == (50, 2, 6, 8) and cropped.dtype == torch.uint8
    seen = set()
    for i in range(50):
        top, left = int(corner[i, 0] * 4), int(corner[i, 1] * 5)
        seen.add((top, left))
        assert torch.equal(cropped[i], image[i, :, top : top + 6, left : left + 8])
    assert {t for t, _ in seen} == {0, 1, 2, 3} and {left for _, left in seen} == {0, 1, 2, 3, 4}
    edge = crop(image, (6, 8), torch.full((50, 2), 1 - 2**-24))
    assert torch.equal(edge, image[:, :, 3:, 4:])
    assert torch.equal(crop(image, (6, 8), None), image[:, :, 1:7, 2:10])


def test_resnet_has_the_published_size() -> None:
    net = ResNet().eval()
    assert sum(p.numel() for p in net.parameters()) == 11_689_512 - 513_000  # torchvision's, without its last layer
    with torch.no_grad():
        assert net(torch.randn(2, 3, 76, 76)).shape == (2, 512, 3, 3)
    grouped = ResNet(norm="group")
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in grouped.modules())
    assert len(list(grouped.buffers())) == 0


@pytest.mark.parametrize("size", [(58, 58), (64, 64), (76, 61), (9, 17)])
def test_the_small_network_has_an_eighth_of_the_pixels(size: tuple[int, int]) -> None:
    net = SmallConv()
    image = torch.randn(3, 3, *size)
    maps = net(image)
    assert maps.shape == (3, 64, -(-size[0] // 8), -(-size[1] // 8))
    torch.testing.assert_close(net(image[1:2]), maps[1:2], rtol=1e-4, atol=1e-5)  # nothing depends on the batch
    assert sum(p.numel() for p in net.parameters()) == 3 * 32 * 49 + 32 + 32 * 32 * 9 + 32 + 32 * 64 * 9 + 64
    maps.square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in net.parameters())


def test_the_small_network_learns_where_a_thing_is() -> None:
    """A bright square on noise, found to a pixel after 150 updates: gradients go through crop, maps and spatial softmax."""
    g = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ObservationEncoder({"eye": (3, 32, 32)}, EncoderConfig(network="small", crop=0, features=32))
        net = torch.nn.Sequential(encoder.nets["eye"], torch.nn.Linear(32, 2))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)

    def scenes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = torch.randint(0, 60, (count, 3, 32, 32), generator=g, dtype=torch.uint8)
        corner = torch.randint(4, 24, (count, 2), generator=g)
        for k, (row, column) in enumerate(corner.tolist()):
            image[k, :, row : row + 4, column : column + 4] = 255
        return image, corner / 10 - 1.4

    for _ in range(150):
        image, place = scenes(32)
        optimizer.zero_grad()
        (net(image) - place).square().mean().backward()
        optimizer.step()
    image, place = scenes(64)
    with torch.no_grad():
        error_px = 10 * (net(image) - place).abs().mean()
    assert float(error_px) < 1.0


def test_points_are_expected_positions() -> None:
    layer = SpatialSoftmax(2, (3, 4), 2).double()
    with torch.no_grad():
        layer.maps.weight.copy_(torch.eye(2)[:, :, None, None])
        layer.maps.bias.zero_()
    x = torch.randn(5, 2, 3, 4).double()
    points = layer(x)
    for n in range(5):
        for k in range(2):
            weight = x[n, k].exp() / x[n, k].exp().sum()
            expected = [
                sum(weight[i, j] * (-1 + 2 * j / 3) for i in range(3) for j in range(4)),
                sum(weight[i, j] * (-1 + i) for i in range(3) for j in range(4)),
            ]
            torch.testing.assert_close(points[n, k], torch.stack(expected))


def test_clouds_have_no_order() -> None:
    net = PointNet(6, 10)
    cloud = torch.randn(4, 30, 6)
    features = net(cloud)
    assert features.shape == (4, 10)
    torch.testing.assert_close(net(cloud[:, torch.randperm(30)]), features)
    torch.testing.assert_close(net(torch.cat([cloud, cloud[:, :5]], 1)), features)
    assert not torch.allclose(net(cloud + 1), features)


def test_features_of_all_keys() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ObservationEncoder(SHAPES, CONFIG).eval()
    obs = observations(2, 3)
    with torch.no_grad():
        features = encoder(obs)
        assert features.shape == (2, 3, encoder.out) and encoder.out == 7 + 3 + 7 + 7
        assert torch.equal(features[..., 7:10], obs["position"])
        one = encoder({key: x[1:2, 2:3] for key, x in obs.items()})
        torch.testing.assert_close(one[0, 0], features[1, 2])
        centred = encoder.nets["camera"](obs["camera"].flatten(0, 1))
        torch.testing.assert_close(features[..., :7].flatten(0, 1), centred)
        upside_down = {**obs, "camera": obs["camera"].flip(-2) // 2}
        changed = (encoder(upside_down) - features).abs().amax((0, 1)) > 1e-4
    assert bool(changed[:7].any()) and not bool(changed[7:].any())
    assert (encoder.nets["camera"].resnet.stem.weight != encoder.nets["wrist"].resnet.stem.weight).any()


def test_each_frame_of_each_camera_has_its_own_crop() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of some seeds no feature is awake
        encoder = ObservationEncoder(SHAPES, CONFIG).eval()
    obs = observations(1, 1)
    obs = {key: x.expand(2, 2, *x.shape[2:]) for key, x in obs.items()}
    assert not encoder.crops_randomly and encoder.train().crops_randomly
    encoder.eval()
    crops = torch.zeros(2, 2, 2, 2)
    crops[0, 1, 0] = 0.9  # the second frame of the first row, seen by the first camera
    with torch.no_grad():
        features = encoder(obs, crops)
    torch.testing.assert_close(features[1], features[0, :1].expand(2, -1), rtol=0, atol=1e-5)
    assert float((features[0, 1, :7] - features[0, 0, :7]).abs().max()) > 1e-3
    torch.testing.assert_close(features[0, 1, 7:], features[0, 0, 7:])
    assert ObservationEncoder(SHAPES, EncoderConfig(crop=64, evaluation_crop="random")).eval().crops_randomly
    assert not ObservationEncoder({"position": (3,)}, CONFIG).train().crops_randomly


def test_an_image_below_the_crop_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"encoder.crop=76: images camera have 40 x 36 pixels"):
        ObservationEncoder({"camera": (3, 40, 36)}, EncoderConfig(crop=76))
    with pytest.raises(ConfigError, match="more than 32 pixels"):
        ObservationEncoder({"camera": (3, 40, 36)}, EncoderConfig(crop=32))
    assert ObservationEncoder({"camera": (3, 64, 48)}, EncoderConfig(crop=0)).nets["camera"].size == (64, 48)
    assert ObservationEncoder({"camera": (3, 40, 36)}, EncoderConfig(crop=32, network="small")).nets["camera"].cells == (4, 4)
    with pytest.raises(ConfigError, match=r"encoder\.network=small needs more than 8 pixels"):
        ObservationEncoder({"camera": (3, 40, 36)}, EncoderConfig(crop=8, network="small"))


def test_a_crop_keeps_the_same_share_of_every_image(caplog: pytest.LogCaptureFixture) -> None:
    share = EncoderConfig().crop
    sizes = {84: 76, 128: 116, 240: 217}  # 84 to 76 is robomimic's; theirs of 240, 216, is within a pixel
    assert {side: cropped_size(share, side, side)[0] for side in sizes} == sizes
    assert cropped_size(share, 84, 240) == (76, 217) and cropped_size(1.0, 84, 64) == cropped_size(0.0, 84, 64) == (84, 64)
    for side, kept in sizes.items():
        assert ObservationEncoder({"camera": (3, side, side)}, EncoderConfig()).nets["camera"].size == (kept, kept)
    assert not caplog.records and ObservationEncoder({"camera": (3, 84, 84)}, EncoderConfig()).train().crops_randomly
    assert not ObservationEncoder({"camera": (3, 84, 84)}, EncoderConfig(crop=1.0)).train().crops_randomly
    ObservationEncoder({"camera": (3, 240, 240)}, EncoderConfig(crop=76))  # in pixels, as before
    assert "76 x 76 of the 240 x 240 pixels of camera are seen, less than 75% of a side" in caplog.text


def test_single_steps_of_the_lstm_are_its_sequence() -> None:
    lstm = StepLSTM(4, 6, 3).double()
    x = torch.randn(2, 5, 4).double()
    whole, (h, c) = lstm(x)
    hidden, steps = lstm.start(2), []
    for t in range(5):
        y, hidden = lstm(x[:, t : t + 1], hidden)
        steps.append(y)
    torch.testing.assert_close((torch.cat(steps, 1), *hidden), (whole, h, c))
