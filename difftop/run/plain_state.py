"""What a checkpoint's train state may hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import Parameter


def check_plain(value: Any, where: str) -> None:
    """Refuses at saving what `weights_only` would refuse at loading, when it is too late.

    Raises:
        TypeError: names the place, `where[...]`, and what is there.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_plain(key, f"{where} key")
            check_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for i, item in enumerate(value):
            check_plain(item, f"{where}[{i}]")
    elif type(value) not in (int, float, bool, str, bytes, type(None), Tensor, Parameter):
        raise TypeError(
            f"{where} is a {type(value).__name__}: a checkpoint takes tensors, numbers, strings, None, lists, tuples and dicts."
        )
