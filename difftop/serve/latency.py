"""How long actions took."""

from __future__ import annotations

from collections import deque
from threading import Lock

import numpy as np

_KEPT = 100_000  # the last so many


class Latency:
    """Of each action the time from when its observation had arrived to when its answer was ready to be sent, s."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_KEPT)
        self._lock = Lock()  # while one thread adds, another may summarize
        self.count = 0

    def add(self, seconds: float) -> None:
        """Counts an action, or the actions of a batch as one."""
        with self._lock:
            self._seconds.append(seconds)
            self.count += 1

    def summary(self) -> dict[str, float]:
        """`count`, and of the last 100,000 `median_ms` and `p95_ms`, the 95th percentile; 0 where there were none."""
        with self._lock:
            seconds, count = np.array(self._seconds or [0.0]), self.count
        median, high = np.percentile(1000 * seconds, (50, 95))
        return {"count": count, "median_ms": float(median), "p95_ms": float(high)}

    def text(self) -> str:
        """The summary as a line."""
        found = self.summary()
        return f"{found['count']:,} actions: median {found['median_ms']:.2f} ms, 95th percentile {found['p95_ms']:.2f} ms"
