"""Windows of demonstrations: T_s observations and the actions of T_s overlapping predictions of T_p steps each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from difftop.later import later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = later("torch")


class Images(Protocol):
    """Images of one key of all episodes, wherever they are kept."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(C, H, W)` of one image."""

    @property
    def cached_bytes(self) -> int:
        """Of one image in a cache; 0 where there is none, because all are in memory."""

    def gather(self, episode: Tensor, steps: Tensor) -> Tensor:
        """Images `[B, T, C, H, W]` of steps `[B, T]` of episodes `[B]`, numbered as they were read."""


class Episodes(Protocol):
    """What windows are cut from; the attributes are those of `difftop.data.demonstrations.Demonstrations`."""

    @property
    def path(self) -> Path:
        """Of the file, for messages."""

    @property
    def first(self) -> Tensor:
        """First row of each episode `[E]`."""

    @property
    def length(self) -> Tensor:
        """Steps of each episode `[E]`."""

    @property
    def source(self) -> Tensor:
        """Number of each episode in the file `[E]`."""

    @property
    def part(self) -> Tensor | None:
        """Number of the data set that each episode is of `[E]`; None where there is one."""

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each data set in the batches; empty where every window counts the same."""

    @property
    def actions(self) -> Tensor:
        """`[R, A]`."""

    @property
    def low_dim(self) -> Mapping[str, Tensor]:
        """By key `[R, *shape]`."""

    @property
    def images(self) -> Mapping[str, Images]:
        """By key."""


@dataclass(frozen=True)
class WindowBatch:
    """B windows; step i of a window is observed at i, and predicts actions i .. i + T_p - 1.

    Attributes:
        obs: by key `[B, T_s, *shape]`; float32, or images as stored, channels first.
        actions: `[B, T_s + T_p - 1, A]`, float32.
        mask: `[B, T_s + T_p - 1]` bool, False where a step is padding: the first or last of the episode, repeated.
        rows: `[B, T_s]`, row of each observation in the demonstrations' tensors; None where nothing is known of these rows.
    """

    obs: dict[str, Tensor]
    actions: Tensor
    mask: Tensor
    rows: Tensor | None = None

    def to(self, device: torch.device) -> WindowBatch:
        """The same windows on another device; a GPU's copies of pinned ones are waited for by its own work only."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pinned(self) -> WindowBatch:
        """The same windows in pinned memory."""
        return self._each(lambda x: x.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> WindowBatch:
        rows = None if self.rows is None else change(self.rows)
        return WindowBatch({key: change(x) for key, x in self.obs.items()}, change(self.actions), change(self.mask), rows)


def overlapping(steps: Tensor, horizon: int) -> Tensor:
    """Targets of the predictions: `[B, T_s + T_p - 1, ...]` to `[B, T_s, T_p, ...]`, entry i, j being step i + j; a view.

    Source: LeTO, arXiv:2401.17500, section III-A.
    """
    return steps.unfold(1, horizon, 1).movedim(-1, 2)


def window_starts(lengths: Tensor, span: int, pad_before: int = 0, pad_after: int = 0) -> tuple[Tensor, Tensor]:
    """All windows of `span` steps that begin at most `pad_before` steps early and end at most `pad_after` steps late.

        start = -pad_before .. T - span + pad_after   for an episode of T steps

    Args:
        lengths: T `[E]`, int64.
        span, pad_before, pad_after: steps.
    Returns:
        episode `[W]` and start `[W]`, in the order of the episodes. Without padding an episode has max(0, T - span + 1) windows.
    Source: LeTO's and Diffusion Policy's sampler (`create_indices`).
    """
    count = (lengths - span + pad_before + pad_after + 1).clamp_min(0)
    episode = torch.repeat_interleave(torch.arange(len(lengths)), count)
    number = torch.arange(len(episode)) - (count.cumsum(0) - count)[episode]
    return episode, number - pad_before


class Windows:
    """The windows of a set of demonstrations, numbered from 0; a loop draws numbers and gathers batches.

    Args:
        demonstrations: where they come from.
        window: T_s, observations in a window.
        horizon: T_p, actions of a prediction.
        pad_before, pad_after: how many steps of padding a window may begin and end with; the papers' LeTO uses none, so that the
            last T_p - 1 observations of a demonstration are never inputs.
    Raises:
        ValueError: sizes below 1, padding of a whole window, or no window at all.
    """

    def __init__(self, demonstrations: Episodes, window: int, horizon: int, *, pad_before: int = 0, pad_after: int = 0) -> None:
        self.demonstrations, self.window, self.span = demonstrations, window, window + horizon - 1
        if window < 1 or horizon < 1 or not (0 <= pad_before < self.span and 0 <= pad_after < self.span):
            raise ValueError(
                f"window={window}, horizon={horizon}, pad_before={pad_before}, pad_after={pad_after}: sizes must be at least 1, "
                "and padding from 0 to window + horizon - 2."
            )
        lengths = demonstrations.length
        self.episode, self.start = window_starts(lengths, self.span, pad_before, pad_after)
        if not len(self.start):
            raise ValueError(
                f"{demonstrations.path}: no window of {self.span} steps fits the {len(lengths)} demonstrations, the longest has "
                f"{int(lengths.max())} steps; shorten the window or allow padding."
            )

    def __len__(self) -> int:
        return len(self.start)

    @property
    def weights(self) -> Tensor | None:
        """How often each window is drawn `[W]`, as the data sets' shares say; None for all alike."""
        part, shares = self.demonstrations.part, self.demonstrations.shares
        if part is None or not shares:
            return None
        number = part[self.episode]
        counts = torch.bincount(number, minlength=len(shares)).clamp_min(1)
        return (torch.tensor(shares, dtype=torch.float64) / counts)[number]

    def gather(self, index: Tensor) -> WindowBatch:
        """The windows `index [B]`, int64."""
        demonstrations, episode = self.demonstrations, self.episode[index]
        steps = self.start[index, None] + torch.arange(self.span)  # [B, span]
        last = demonstrations.length[episode, None] - 1
        inside = torch.minimum(steps.clamp_min(0), last)
        rows = demonstrations.first[episode, None] + inside
        seen, observed = inside[:, : self.window], rows[:, : self.window]
        obs = {key: values[observed] for key, values in demonstrations.low_dim.items()}
        obs |= {key: images.gather(demonstrations.source[episode], seen) for key, images in demonstrations.images.items()}
        return WindowBatch(obs, demonstrations.actions[rows], inside == steps, observed)
