"""Whether Python may look at a tensor's numbers: not where it would wait for a GPU, nor while operations are recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_recording = [False]


def readable(x: Tensor) -> bool:
    """Whether looking at a number of `x` costs nothing and breaks no capture: the next call would not look again."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not _recording[0]


@contextmanager
def recording() -> Iterator[None]:
    """Inside, nothing is readable."""
    before, _recording[0] = _recording[0], True
    try:
        yield
    finally:
        _recording[0] = before
