"""Batches made ahead by a thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from difftop.data.windows import WindowBatch


class Ahead:
    """A thread makes the next batch while this one is learned from.

    What is learned doesn't depend on it: the k-th batch is a function of k. Batches are made one at a time, since files of
    demonstrations are read by one thread at a time; `rest` before anything else reads them.

    Args:
        make: the k-th batch, k from 0.
        end: k of the first batch that nobody will ask for.
        pinned: batches in pinned memory, from where a GPU copies without a wait.
    """

    def __init__(self, make: Callable[[int], WindowBatch], end: int, *, pinned: bool) -> None:
        self._make, self._end, self._pinned = make, end, pinned
        self._thread = ThreadPoolExecutor(1, "batches")
        self._next: tuple[int, Future[WindowBatch]] | None = None

    def batch(self, number: int) -> WindowBatch:
        """The `number`-th batch; the one after it is begun."""
        made = self._next
        if made is None or made[0] != number:
            self.rest()
            made = (number, self._thread.submit(self._made, number))
        self._next = None
        batch = made[1].result()
        if number + 1 < self._end:
            self._next = (number + 1, self._thread.submit(self._made, number + 1))
        return batch

    def rest(self) -> None:
        """Waits until nothing is being made; an error in it is told when the batch is asked for."""
        if self._next is not None:
            self._next[1].exception()

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _made(self, number: int) -> WindowBatch:
        batch = self._make(number)
        return batch.pinned() if self._pinned else batch
