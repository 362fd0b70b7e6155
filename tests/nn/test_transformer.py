"""Transformer layers: waves by hand, own weights, dropout from a generator; the denoiser looks at the past alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from difftop.nn.denoising_transformer import DenoisingTransformer
from difftop.nn.observation import EncoderConfig
from difftop.nn.tokens import ObservationTokens
from difftop.nn.transformer import (
    SeededDropout,
    drawing_from,
    grid_sinusoids,
    sinusoids,
    transformer_decoder,
    transformer_encoder,
)


def test_places_are_waves() -> None:
    made = sinusoids(torch.tensor([0, 3, 50]), 6)
    for row, p in enumerate((0, 3, 50)):
        for k in range(3):
            angle = p / 10_000 ** (2 * k / 6)
            assert made[row, 2 * k : 2 * k + 2].tolist() == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-6)
    grid = grid_sinusoids(2, 3, 8)
    assert grid.shape == (6, 8)
    torch.testing.assert_close(grid[4], torch.cat([sinusoids(torch.tensor(1), 4)] * 2))  # row 1, column 1
    assert len({tuple(cell) for cell in grid.tolist()}) == 6


@pytest.mark.parametrize("make", [transformer_encoder, transformer_decoder])
def test_every_layer_has_weights_of_its_own(make: object) -> None:
    net = make(2, 8, 2, 16, 0.3)  # type: ignore[operator]
    first, second = (layer.linear1.weight for layer in net.layers)
    assert not torch.equal(first, second)
    assert not [m for m in net.modules() if isinstance(m, nn.Dropout) or (isinstance(m, nn.MultiheadAttention) and m.dropout)]
    assert (
        len([m for m in net.modules() if isinstance(m, SeededDropout) and m.p == 0.3]) == (3 + (make is transformer_decoder)) * 2
    )


def test_dropout_is_the_generators_alone() -> None:
    net, x = transformer_encoder(1, 8, 2, 16, 0.5), torch.randn(4, 3, 8)

    def drawn(seed: int) -> torch.Tensor:
        with drawing_from(net, torch.Generator().manual_seed(seed)):
            return net(x)  # type: ignore[no-any-return]

    state = torch.get_rng_state()
    one = drawn(1)
    torch.manual_seed(99)
    assert torch.equal(drawn(1), one) and not torch.equal(drawn(2), one)
    torch.set_rng_state(state)
    plain = net(x)
    assert torch.equal(net(x), plain) and not torch.equal(plain, one)  # outside of `drawing_from` nothing is left out
    net.eval()
    torch.testing.assert_close(drawn(1), plain)
    assert all(m.generator is None for m in net.modules() if isinstance(m, SeededDropout))


def test_tokens_of_every_kind_of_observation() -> None:
    shapes = {"eye": (3, 80, 48), "hand": (3,), "cloud": (20, 3)}
    net = ObservationTokens(shapes, EncoderConfig(crop=0, norm="group", features=7), dim=8).eval()
    obs = {"eye": torch.randint(0, 256, (2, 1, 3, 80, 48), dtype=torch.uint8), "hand": torch.randn(2, 1, 3)}
    obs["cloud"] = torch.randn(2, 1, 20, 3)
    tokens = net(obs)
    assert tokens.shape == (2, 1, net.count, 8) and net.count == 3 * 2 + 1 + 1
    torch.testing.assert_close(net({key: x[1:] for key, x in obs.items()}), tokens[1:], rtol=1e-4, atol=1e-5)
    for key, places in (("eye", slice(0, 6)), ("hand", slice(6, 7)), ("cloud", slice(7, 8))):
        changed = (net(obs | {key: obs[key].flip(0)}) - tokens).detach().abs().amax((0, 1, 3)) > 1e-4
        assert bool(changed[places].all()) and int(changed.sum()) == changed[places].numel(), key
    shuffled = net(obs | {"cloud": obs["cloud"].flip(2)})
    torch.testing.assert_close(shuffled, tokens)


def test_tokens_of_the_small_network_are_its_cells() -> None:
    net = ObservationTokens({"eye": (3, 64, 48)}, EncoderConfig(crop=0, network="small"), dim=8)
    image = torch.randint(0, 256, (2, 1, 3, 64, 48), dtype=torch.uint8)
    tokens = net({"eye": image})
    assert tokens.shape == (2, 1, 8 * 6, 8) and net.count == 8 * 6
    image[:, :, :, :8, :8] = 255 - image[:, :, :, :8, :8]
    changed = (net({"eye": image}) - tokens).detach().abs().amax((0, 1, 3)).view(8, 6) > 1e-4
    assert bool(changed[0, 0]) and not bool(changed[4:].any() or changed[:, 4:].any())  # the corner's tokens alone


def test_the_denoiser_attends_to_the_past_alone() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = DenoisingTransformer(3, 5, 6, 2, layers=2, dim=8, heads=2, dropout=0.0)
    x, step, c = torch.randn(4, 6, 3), torch.tensor([0, 3, 50, 99]), torch.randn(4, 10)
    out = net(x, step, c)
    assert out.shape == x.shape
    torch.testing.assert_close(net(x[2:3], step[2:3], c[2:3]), out[2:3])

    def moved(*changed: torch.Tensor) -> list[bool]:
        return ((net(*changed) - out).detach().abs().amax(2).amin(0) > 1e-5).tolist()  # in every sample

    later = x.clone()
    later[:, 3:] += 1
    assert moved(later, step, c) == [False] * 3 + [True] * 3
    assert moved(x, step + 1, c) == [True] * 6
    assert moved(x, step, torch.cat([c[:, :5] + 1, c[:, 5:]], 1)) == [True] * 6
    assert moved(x, step, torch.cat([c[:, :5], c[:, 5:] + 1], 1)) == [False] + [True] * 5  # seen with the second action
    out.square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in net.parameters())


def test_the_denoiser_has_the_papers_size() -> None:
    """The code's `TransformerForDiffusion` for 10 actions of 7 and two observations of 23 numbers, counted by its layers."""
    net = DenoisingTransformer(7, 23, 10, 2, layers=8, dim=256, heads=4, dropout=0.3)
    d = 256
    attention, norm = 4 * d * d + 4 * d, 2 * d
    layer = 2 * attention + (d * 4 * d + 4 * d) + (4 * d * d + d) + 3 * norm
    memory = (d * 4 * d + 4 * d) + (4 * d * d + d)
    expected = 8 * layer + norm + memory + (7 * d + d) + (23 * d + d) + (d * 7 + 7) + (10 + 3) * d
    assert sum(p.numel() for p in net.parameters()) == expected
