"""The table of heads: every entry has the one signature, and other packages can add to it."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from difftop.options import ConfigError
from difftop.qp import HEADS, FreeHead, TrajectoryLimits, make_head

LIMITS = TrajectoryLimits(3, 4, (0, 1), velocity_min=-0.6, velocity_max=0.6, acceleration_min=-0.2, acceleration_max=0.2)


def wanted(batch: int = 5) -> torch.Tensor:
    return torch.randn(batch, LIMITS.size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["none", "clip", "qp"])
def test_every_head_has_the_signature(name: str) -> None:
    head, e, previous = make_head(name, LIMITS).eval(), wanted(), torch.zeros(5, 3)
    assert list(head.parameters()) == [] or not any(p.requires_grad for p in head.parameters())
    y, info = head(e, None, previous)
    assert y.shape == (5, 4, 3) and y.dtype == e.dtype and bool(info.certified.all())
    assert info.kkt.shape == info.slack.shape == info.rounds.shape == (5,) and info.kkt.dtype == torch.float64
    torch.testing.assert_close(y[..., 2], -e.view(5, 4, 3)[..., 2])  # isn't limited
    largest, jump = y[..., :2].abs().max(), torch.cat([previous[:, None], y], 1)[..., :2].diff(dim=1).abs().max()
    keeps = largest <= 0.6 + 1e-6 and jump <= 0.2 + 1e-6
    assert keeps == (name != "none")
    again, _ = head(e.flip(0), None, previous)
    torch.testing.assert_close(again.flip(0), y)  # no sample knows of another


def test_the_free_head_is_minus_e() -> None:
    y, info = FreeHead(LIMITS)(e := wanted())
    assert torch.equal(y, -e.view(5, 4, 3)) and info.counts()["solved"] == 5
    assert info.kkt.max() == info.slack.max() == info.rounds.max() == 0


@pytest.mark.parametrize(
    ("name", "limits", "message"),
    [
        ("clips", LIMITS, "head=clips: must be one of none, clip, qp. Did you mean 'clip'"),
        ("qp", TrajectoryLimits(2, 4, ()), "head=qp: limits.free leaves no action to limit"),
        ("clip", TrajectoryLimits(1, 2, position_matrix=[[1.0]], position_max=math.pi), "head=clip: position_matrix is set"),
    ],
)
def test_mistakes(name: str, limits: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_head(name, limits)


def test_no_limits_are_needed_for_no_head() -> None:
    assert isinstance(make_head("none", TrajectoryLimits(2, 4, ())), FreeHead)


def test_a_head_of_another_package(tmp_path: Path) -> None:
    (tmp_path / "halves.py").write_text("class Half:\n    def __init__(self, limits):\n        self.limits = limits\n")
    (about := tmp_path / "halves-1.0.dist-info").mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: halves\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{HEADS.group}]\nhalf = halves:Half\n")
    code = (
        "import sys; from difftop.qp import HEADS, TrajectoryLimits, make_head\n"
        "assert 'qp' in HEADS and 'halves' not in sys.modules\n"  # looked for when needed
        "assert type(make_head('half', TrajectoryLimits(1, 2))).__name__ == 'Half' and list(HEADS)[-1] == 'half'"
    )
    path = f"{tmp_path}:{Path(__file__).parents[2]}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env={"PYTHONPATH": path})
