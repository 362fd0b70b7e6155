"""Normalization against its definition, and its life in a state dict."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from difftop.data.normalize import Affine, Normalizer, leto_mode

ROWS = torch.tensor([[0.0, 5.0, -3.0], [4.0, 5.0, 1.0], [1.0, 5.0, 2.0]])


def fitted(mode: str) -> Affine:
    affine = Affine((3,))
    affine.fit_(ROWS, mode)
    return affine


def test_min_max() -> None:
    y = fitted("min_max")(ROWS)
    assert torch.equal(y, torch.tensor([[-1.0, 0.0, -1.0], [1.0, 0.0, 0.6], [-0.5, 0.0, 1.0]]))


def test_standardize() -> None:
    y = fitted("standardize")(ROWS)
    torch.testing.assert_close(y.mean(0), torch.zeros(3))
    torch.testing.assert_close(y.square().mean(0), torch.tensor([1.0, 0.0, 1.0]))


@pytest.mark.parametrize("mode", ["identity", "min_max", "standardize"])
def test_inverse(mode: str) -> None:
    affine, x = fitted(mode), torch.randn(4, 2, 3)
    torch.testing.assert_close(affine.inverse(affine(x)), x, atol=1e-6, rtol=1e-6)
    assert mode != "identity" or torch.equal(affine(x), x)


def test_numbers_travel_with_the_weights() -> None:
    policy, fresh = (nn.Sequential(Normalizer({"agent/qpos": (3,), "image": (1, 2, 2)})) for _ in range(2))
    policy[0]["agent/qpos"].fit_(ROWS, "min_max")
    assert not any(p.requires_grad for p in policy.parameters())
    fresh.load_state_dict(policy.state_dict())
    x = {"agent/qpos": torch.randn(5, 3), "other": torch.randn(5, 2)}
    assert torch.equal(fresh(x)["agent/qpos"], policy[0]["agent/qpos"](x["agent/qpos"])) and fresh(x)["other"] is x["other"]
    assert not torch.equal(fresh(x)["agent/qpos"], x["agent/qpos"])


def test_letos_modes() -> None:
    modes = {key: leto_mode(key) for key in ("robot0_eef_pos", "robot0_gripper_qpos", "robot0_eef_quat")}
    assert list(modes.values()) == ["min_max", "min_max", "identity"]


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of"):
        fitted("minmax")
    for rows in (ROWS[:0], ROWS[:, :2], ROWS * torch.nan):
        with pytest.raises(ValueError, match="at least one row"):
            Affine((3,)).fit_(rows, "min_max")
