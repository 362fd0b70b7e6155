"""Colours of images changed at random, whole batches at once: what a policy shall not depend on."""

from __future__ import annotations

import torch
from torch import Tensor

DRAWS = 4  # random numbers of an image: brightness, contrast, saturation, hue
_GREY = (0.2989, 0.587, 0.114)  # of red, green and blue in a grey value; torchvision's
_TURN = 1 / 6  # largest turn of the hue at strength 1, of a whole one: red becomes yellow or magenta
_LARGEST = 255.0


def jittered(image: Tensor, draws: Tensor, strength: float) -> Tensor:
    """Images with other brightness, contrast, saturation and hue, in this order, cut to 0 .. 255 after each.

        f_k = 1 + S (2 u_k - 1) for the first three,   turn = S (2 u_4 - 1) / 6
        brightness:  f x                    contrast:  m + f (x - m), m the mean grey of the image
        saturation:  g + f (x - g), g the pixel's grey          hue:  that of HSV is turned, value and chroma stay

    With S = 0 nothing changes but by rounding of hues; callers leave it out.

    Args:
        image: `[N, 3, height, width]` in 0 .. 255, of a floating type.
        draws: u, `[N, 4]` in [0, 1).
        strength: S in [0, 1].
    Returns:
        `[N, 3, height, width]`, of the type of `image`; row i depends on row i of the inputs alone.
    Source: torchvision's `ColorJitter(brightness=S, contrast=S, saturation=S, hue=S / 6)`. By default robomimic's
        `ColorRandomizer` has 0.3 of each, LeRobot's `ImageTransforms` 0.2, 0.2, 0.5 and 0.05.
    Differs: always in this order (torchvision draws one); floats aren't rounded; of hue a sixth, since robomimic's 0.3 makes red
        things green, and colours may be what a task is told by.
    """
    signed = (strength * (2 * draws - 1)).to(image.device, image.dtype)[:, :, None, None, None]
    brightness, contrast, saturation, hue = signed.unbind(1)  # [N, 1, 1, 1] each
    x = (image * (1 + brightness)).clamp(0, _LARGEST)
    mean = _grey(x).mean((-2, -1), keepdim=True)
    x = (mean + (1 + contrast) * (x - mean)).clamp(0, _LARGEST)
    grey = _grey(x)
    x = (grey + (1 + saturation) * (x - grey)).clamp(0, _LARGEST)
    return _turned(x, _TURN * hue)


def _grey(image: Tensor) -> Tensor:
    """`[N, 1, height, width]`."""
    red, green, blue = image.unbind(1)
    return (_GREY[0] * red + _GREY[1] * green + _GREY[2] * blue)[:, None]


def _turned(image: Tensor, turn: Tensor) -> Tensor:
    """Images whose hues are turned by `turn [N, 1, 1, 1]` of a whole turn.

    With h in sixths of a turn, V the largest and C the range of a pixel's three numbers, the new ones are

        V - C clamp(2 - |k - 2|, 0, 1),   k = (n + h) mod 6,   n = 5, 3, 1 for red, green, blue

    Source: Smith 1978, "Color gamut transform pairs", in the form without cases for the way back.
    """
    red, green, blue = image.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    safe = torch.where(chroma == 0, 1.0, chroma)  # greys have no hue, and with chroma 0 none matters
    sixths = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    offset = torch.tensor([5.0, 3.0, 1.0], dtype=image.dtype, device=image.device)[:, None, None]
    k = offset + sixths[:, None] + 6 * turn  # from -1 to 11; below 0 is as 5 to 6, where nothing is taken off
    k = torch.where(k < 6, k, k - 6)  # cheaper than a remainder
    made: Tensor = value[:, None] - chroma[:, None] * (2 - (k - 2).abs()).clamp(0, 1)
    return made
