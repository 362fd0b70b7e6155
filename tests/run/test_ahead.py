"""Batches made ahead: the same ones, one at a time, and errors where they belong."""

from __future__ import annotations

import threading

import pytest
import torch

from difftop.data.windows import WindowBatch
from difftop.run.ahead import Ahead


class Maker:
    """Makes numbered batches, and knows when and in which thread."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.threads: set[int] = set()
        self.busy = threading.Lock()
        self.begun = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def __call__(self, number: int) -> WindowBatch:
        assert self.busy.acquire(blocking=False), "two batches at once"
        self.begun.set()
        self.go.wait(10)
        self.threads.add(threading.get_ident())
        self.made.append(number)
        self.busy.release()
        if number == 6:
            raise ValueError("the file is broken")
        return WindowBatch({"x": torch.full((2, 3), number)}, torch.zeros(2, 4, 1), torch.ones(2, 4, dtype=torch.bool))


def test_batches_come_in_order_and_none_is_made_that_nobody_asks_for() -> None:
    make = Maker()
    ahead = Ahead(make, 4, pinned=False)
    assert [int(ahead.batch(k).obs["x"][0, 0]) for k in range(4)] == [0, 1, 2, 3]
    ahead.close()
    assert make.made == [0, 1, 2, 3] and len(make.threads) == 1 and threading.get_ident() not in make.threads


def test_the_next_one_is_made_meanwhile_and_rest_waits_for_it() -> None:
    make = Maker()
    ahead = Ahead(make, 9, pinned=False)
    ahead.batch(0)
    make.begun.wait(10)
    ahead.rest()
    assert make.made == [0, 1]
    make.go.clear()
    ahead.batch(1)
    assert make.made == [0, 1]  # 2 is being made
    make.go.set()
    ahead.rest()
    assert make.made == [0, 1, 2]
    assert int(ahead.batch(5).obs["x"][0, 0]) == 5  # another than expected
    ahead.close()


def test_an_error_is_told_when_its_batch_is_asked_for() -> None:
    ahead = Ahead(Maker(), 9, pinned=False)
    ahead.batch(5)
    ahead.rest()
    with pytest.raises(ValueError, match="the file is broken"):
        ahead.batch(6)
    ahead.close()


def test_what_a_gpu_reads_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[tuple[int, ...]] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(tuple(x.shape)) or x)  # type: ignore[func-returns-value]
    ahead = Ahead(Maker(), 1, pinned=True)
    ahead.batch(0)
    ahead.close()
    assert pinned == [(2, 3), (2, 4, 1), (2, 4)]
