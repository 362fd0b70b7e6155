"""One line that says how far a run is."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

_WINDOW_S = 60.0  # the rate is over the last minute: updates make it change during a run


class Progress:
    """A line with frames, rate, time left, last evaluation and planner failures.

    On a terminal the line is redrawn in place; elsewhere (a log file, a batch queue) it is printed anew now and then.

    Args:
        total_frames: length of the run, in environment frames.
        frames: where it begins (not 0 when resumed).
        stream: where to write; None is standard error.
        every_s: seconds between lines where the stream is no terminal; on a terminal ten lines a second at most.
        clock: seconds, monotonic.
        unit: what is counted.
        samples: that one of them learns from; the line has samples/s where there are any.
    """

    def __init__(
        self,
        total_frames: int,
        *,
        frames: int = 0,
        stream: TextIO | None = None,
        every_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        unit: str = "frames",
        samples: int = 0,
    ) -> None:
        self.total_frames, self._unit, self.samples = total_frames, unit, samples
        self._stream = stream if stream is not None else sys.stderr
        self._terminal = self._stream.isatty()
        self._every_s = 0.1 if self._terminal else every_s
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque([(clock(), frames)])
        self._drawn_at = -float("inf")

    def update(self, frames: int, *, last_return: float | None = None, failures: int = 0, note: str = "") -> None:
        """Moves the line on.

        Args:
            frames: environment frames so far.
            last_return: mean return of the last evaluation, if there was one.
            failures: planner failures so far.
            note: put at the end.
        """
        now = self._clock()
        if now - self._drawn_at < self._every_s and frames < self.total_frames:
            return
        self._marks.append((now, frames))
        while len(self._marks) > 2 and self._marks[1][0] < now - _WINDOW_S:
            self._marks.popleft()
        self._drawn_at = now
        line = self._line(frames, last_return, failures)
        self._write(f"{line}  {note}" if note else line)

    def message(self, text: str) -> None:
        """A line of its own, above the progress line."""
        self._stream.write(f"\r\x1b[K{text}\n" if self._terminal else f"{text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Leaves the last line standing."""
        if self._terminal and self._drawn_at > -float("inf"):
            self._stream.write("\n")
            self._stream.flush()

    def _line(self, frames: int, last_return: float | None, failures: int) -> str:
        (begun, first), (now, _) = self._marks[0], self._marks[-1]
        rate = (frames - first) / (now - begun) if now > begun else 0.0
        parts = [f"{frames:,}/{self.total_frames:,} {self._unit} ({frames / max(1, self.total_frames):.0%})"]
        parts.append(f"{_number(rate)} {'frames' if self._unit == 'frames' else 'steps'}/s")
        if self.samples:
            parts.append(f"{_number(rate * self.samples)} samples/s")
        if frames < self.total_frames:
            parts.append(f"{_duration((self.total_frames - frames) / rate) if rate > 0 else '?'} left")
        if last_return is not None:
            parts.append(f"return {last_return:.1f}")
        if failures:
            parts.append(f"{failures:,} planner failures")
        return "  ".join(parts)

    def _write(self, line: str) -> None:
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r\x1b[K{line[:width]}")
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


def _number(rate: float) -> str:
    """`12,345`, `4.2` or `0.034`."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _duration(seconds: float) -> str:
    """`3d 04h`, `2h 05m`, `4m 10s` or `9s`."""
    s = round(seconds)
    for size, unit, small, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if s >= size:
            return f"{s // size}{unit} {s % size // small:02d}{small_unit}"
    return f"{s}s"
