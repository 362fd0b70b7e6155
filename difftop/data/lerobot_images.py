"""Images of LeRobot data sets: frames of mp4 files, or PNG files inside Parquet; decoded when they are needed."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from difftop.data.demonstrations import DemonstrationError
from difftop.data.extras import optional
from difftop.data.faults import Array
from difftop.later import later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = later("torch")

_BLOCK_ROWS = 16  # frames are decoded in blocks of this many


@dataclass(frozen=True)
class Clip:
    """One episode of one camera.

    Attributes:
        path: of the mp4 or Parquet file.
        begins_s: where it begins in the video, s.
        episode: its episode_index.
        length: frames.
    """

    path: Path
    begins_s: float
    episode: int
    length: int


@dataclass(frozen=True)
class Stored:
    """Where the images of one camera are: of feature `feature`, videos or PNG, `shape` (C, height, width) at `rate_hz`."""

    feature: str
    video: bool
    shape: tuple[int, int, int]
    rate_hz: float
    clips: tuple[Clip, ...]

    def of(self, numbers: Sequence[int]) -> Stored:
        """Of these episodes only."""
        return replace(self, clips=tuple(self.clips[number] for number in numbers))


class LeRobotImages:
    """Images of one camera of all episodes; see `difftop.data.windows.Images`.

    The most recently used blocks are kept up to a number of bytes. Files are opened when they are first read, once in every
    process that this is sent to. Not for several threads at once.
    """

    def __init__(self, stored: Stored, capacity_bytes: int) -> None:
        self.stored, self.shape, self.capacity_bytes = stored, stored.shape, capacity_bytes
        self.used_bytes, self._process = 0, 0
        self._blocks: OrderedDict[tuple[int, int], Array] = OrderedDict()
        self._open: tuple[Path, Any] | None = None

    @property
    def cached_bytes(self) -> int:
        """See `difftop.data.windows.Images`."""
        return int(np.prod(self.shape))

    def gather(self, episode: Tensor, steps: Tensor) -> Tensor:
        """See `difftop.data.windows.Images`."""
        out = np.empty((*steps.shape, *self.shape), np.uint8)
        for b, (number, rows) in enumerate(zip(episode.tolist(), steps.numpy(), strict=True)):
            blocks = rows // _BLOCK_ROWS
            for block in np.unique(blocks):
                here = blocks == block
                out[b, here] = self._block(number, int(block))[rows[here] % _BLOCK_ROWS]
        return torch.from_numpy(out)

    def episode(self, number: int) -> Array:
        """All images of an episode `[T, height, width, C]`."""
        count = -(-self.stored.clips[number].length // _BLOCK_ROWS)
        return np.ascontiguousarray(np.moveaxis(np.concatenate([self._block(number, k) for k in range(count)]), 1, -1))

    def _block(self, number: int, block: int) -> Array:
        """Frames `16 block` to `16 block + 15` of an episode (fewer at its end), channels first."""
        key = (number, block)
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return self._blocks[key]
        clip = self.stored.clips[number]
        first, last = _BLOCK_ROWS * block, min(_BLOCK_ROWS * (block + 1), clip.length)
        frames = (self._frames if self.stored.video else self._pictures)(clip, first, last)
        if frames.shape[1:3] != self.shape[1:]:
            raise DemonstrationError(f"{clip.path}: images of {frames.shape[1:3]} pixels; meta/info.json says {self.shape[1:]}.")
        made = np.ascontiguousarray(np.moveaxis(frames, -1, 1))
        self._blocks[key] = made
        self.used_bytes += made.nbytes
        while self.used_bytes > self.capacity_bytes and len(self._blocks) > 1:
            self.used_bytes -= self._blocks.popitem(last=False)[1].nbytes
        return made

    def _frames(self, clip: Clip, first: int, last: int) -> Array:
        """Frames of a video: those whose times are nearest to the steps'."""
        av = optional("av", f"{clip.path}: a video")
        container = self._opened(clip.path, lambda path: av.open(str(path)))
        stream, half = container.streams.video[0], 0.5 / self.stored.rate_hz
        wanted = clip.begins_s + np.arange(first, last) / self.stored.rate_hz
        container.seek(max(int((wanted[0] - half) / stream.time_base), 0), stream=stream)
        found: list[Array] = []
        try:
            for frame in container.decode(stream):
                if frame.time is not None and frame.time > wanted[len(found)] - half:
                    found.append(frame.to_ndarray(format="rgb24"))
                if len(found) == len(wanted):
                    return np.stack(found)
        except av.FFmpegError as error:
            raise DemonstrationError(f"{clip.path}: this video can't be decoded ({error}); is a download complete?") from error
        raise DemonstrationError(f"{clip.path}: it ends {len(wanted) - len(found)} frames before episode {clip.episode} does.")

    def _pictures(self, clip: Clip, first: int, last: int) -> Array:
        """Images that are stored as files inside the table."""
        from PIL import Image

        dataset = optional("pyarrow.dataset", f"{clip.path}: a LeRobot data set")
        rows = self._opened(clip.path, lambda path: self._column(dataset, path))[clip.episode]
        pictures = [Image.open(io.BytesIO(rows[step])).convert("RGB") for step in range(first, last)]
        return np.stack([np.asarray(picture) for picture in pictures])

    def _column(self, dataset: Any, path: Path) -> dict[int, list[bytes]]:
        """The compressed images of a file, by episode."""
        table = dataset.dataset(path).to_table(columns=["episode_index", self.stored.feature])
        found: dict[int, list[bytes]] = {}
        images = table[self.stored.feature].to_pylist()
        for episode, image in zip(table["episode_index"].to_pylist(), images, strict=True):
            found.setdefault(episode, []).append(image["bytes"])
        return found

    def _opened(self, path: Path, opener: Any) -> Any:
        """A file of this process; the one before is closed."""
        if self._open is None or self._open[0] != path or self._process != os.getpid():
            if self._open is not None and hasattr(self._open[1], "close") and self._process == os.getpid():
                self._open[1].close()
            try:
                self._open, self._process = (path, opener(path)), os.getpid()
            except OSError as error:
                raise DemonstrationError(f"{path}: can't be read ({error}); is a download complete?") from error
        return self._open[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"stored": self.stored, "capacity_bytes": self.capacity_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["stored"], state["capacity_bytes"])  # type: ignore[misc]
