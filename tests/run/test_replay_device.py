"""Where replay lives, and what a run says that goes on elsewhere."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from difftop.run.online import RunConfig, RunError
from difftop.run.reinforce import replay_device
from tests.conftest import PIXELS, STATE

GIB = 2**30


@pytest.mark.parametrize(
    ("wanted", "spec", "frames", "card_gib", "device", "expected"),
    [
        ("auto", STATE, 500_000, 8, "cpu", "cpu"),
        ("auto", STATE, 500_000, 8, "cuda", "cuda"),
        ("auto", PIXELS, 100_000, 8, "cuda", "cuda"),  # 50,000 frames of 21 kB: 1 GiB
        ("auto", PIXELS, 1_000_000, 8, "cuda", "cpu"),  # 10 GiB
        ("auto", PIXELS, 1_000_000, 40, "cuda", "cuda"),
        ("cpu", STATE, 500_000, 8, "cuda", "cpu"),
        ("cuda", PIXELS, 1_000_000, 8, "cuda", "cuda"),
    ],
)
def test_auto_is_the_card_where_it_fits(
    monkeypatch: pytest.MonkeyPatch, wanted: str, spec: object, frames: int, card_gib: int, device: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=card_gib * GIB))
    run = RunConfig(replay_device=wanted, frames=frames)
    assert replay_device(run, spec, device) == expected  # type: ignore[arg-type]


def test_random_numbers_of_another_device_are_refused_in_a_sentence() -> None:
    from difftop.run.online import OnlineRun

    run = OnlineRun.__new__(OnlineRun)
    nothing = SimpleNamespace(load_state_dict=lambda state: None)
    run.actor, run.random, run.sampling = nothing, torch.Generator(), torch.Generator()
    run.replay = SimpleNamespace(device=torch.device("cpu"))  # type: ignore[assignment]
    state = {"count": {}, "actor": {}, "random": run.random.get_state(), "sampling": torch.zeros(16, dtype=torch.uint8)}
    with pytest.raises(RunError, match=r"another device than cpu.*: continue it with run.replay_device=cuda\."):
        run.load_state_dict(state)
