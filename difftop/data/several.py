"""Several data sets as one, with a share of the batches for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from difftop.data.demonstrations import DemonstrationError, Demonstrations
from difftop.data.scaling import range_of
from difftop.data.windows import Images


class ImagesOfSeveral:
    """Images of one key of several data sets; episodes are numbered through.

    Args:
        parts: images of each.
        counts: episodes of each.
    """

    def __init__(self, parts: Sequence[Images], counts: Sequence[int]) -> None:
        self.parts, self.shape = tuple(parts), tuple(parts[0].shape)
        self.first = torch.tensor([0, *counts]).cumsum(0)
        self.cached_bytes = max(part.cached_bytes for part in parts)

    def gather(self, episode: Tensor, steps: Tensor) -> Tensor:
        """See `difftop.data.windows.Images`."""
        part = torch.searchsorted(self.first, episode, right=True) - 1
        out: Tensor | None = None
        for number in sorted(set(part.tolist())):
            here = (part == number).nonzero().flatten()
            found = self.parts[number].gather(episode[here] - self.first[number], steps[here])
            if out is None:
                out = torch.empty(*steps.shape, *self.shape, dtype=found.dtype)
            if found.dtype != out.dtype:  # bytes in one data set, floats in another: both 0 to 255
                out, found = out.float(), found.float()
            out[here] = found
        return torch.empty(*steps.shape, *self.shape, dtype=torch.uint8) if out is None else out


def together(parts: Sequence[Demonstrations], shares: Sequence[float] = ()) -> Demonstrations:
    """All episodes of several data sets, in order.

    Args:
        parts: at least one.
        shares: of each in the batches; empty: every window counts the same.
    Raises:
        DemonstrationError: they show other things, or have other actions.
    """
    first = parts[0]
    for other in parts[1:]:
        differ = [key for key in {**first.shapes, **other.shapes} if first.shapes.get(key) != other.shapes.get(key)]
        if differ or first.actions.shape[1] != other.actions.shape[1]:
            what = f"{differ[0]} {other.shapes.get(differ[0])} for {first.shapes.get(differ[0])}" if differ else "actions"
            raise DemonstrationError(f"{other.path}: it has other observations or actions than {first.path} ({what}).")
        if range_of(first) != range_of(other):
            raise DemonstrationError(
                f"{other.path}: its actions have another range than those of {first.path}, by which they are scaled to [-1, 1]; "
                "convert both to one data set, or scale them yourself."
            )
    if len(parts) == 1:
        return first
    rows = torch.tensor([0, *(len(part.actions) for part in parts)]).cumsum(0)
    episodes = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
    counts = [len(part) for part in parts]
    return replace(
        first,
        path=first.path.with_name(f"{first.path.name} and {len(parts) - 1} more"),
        names=tuple(f"{part.path.name}: {name}" for part in parts for name in part.names),
        first=torch.cat([part.first + rows[i] for i, part in enumerate(parts)]),
        length=torch.cat([part.length for part in parts]),
        source=torch.cat([part.source + episodes[i] for i, part in enumerate(parts)]),
        actions=torch.cat([part.actions for part in parts]),
        low_dim={key: torch.cat([part.low_dim[key] for part in parts]) for key in first.low_dim},
        images={key: ImagesOfSeveral([part.images[key] for part in parts], counts) for key in first.images},
        notes=tuple(f"{part.path.name}: {note}" for part in parts for note in part.notes),
        part=torch.cat([torch.full((len(part),), i) for i, part in enumerate(parts)]),
        shares=tuple(shares),
    )
