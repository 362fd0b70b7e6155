"""A convolutional network for small images that one CPU core can train."""

from __future__ import annotations

from torch import Tensor, nn


class SmallConv(nn.Module):
    """Three convolutions: `[N, C, height, width]` to `[N, 64, ceil(height / 8), ceil(width / 8)]`.

        7x7, 32, stride 4 -> 3x3, 32, stride 2 -> 3x3, 64,   ReLU after each

    33,000 weights and 3 million products for 58 pixels; a ResNet18 has 11 million weights and 150 million products. There is no
    normalization: nothing depends on the batch, so averaged weights act as they are.

    Args:
        channels: C.
    Source: the network of DQN, Nature 518 (2015), with padding, so that maps are as large as a spatial softmax needs.
    """

    out, stride = 64, 8

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for outputs, kernel, stride in ((32, 7, 4), (32, 3, 2), (64, 3, 1)):
            layers += [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), nn.ReLU()]
            inputs = outputs
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Feature maps."""
        maps: Tensor = self.layers(image)
        return maps
