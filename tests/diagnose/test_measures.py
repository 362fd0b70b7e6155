"""Measures against a system whose model, values and returns are known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from difftop.diagnose import LatentView, Played, advice, diagnose, draw, table
from difftop.diagnose.measures import discounted_returns, r_squared

DISCOUNT = 0.9
KEEP = 0.8


def exact_view(**changes: object) -> LatentView:
    """z' = 0.8 z + a, r = z, under a = 0: V(z) = z / (1 - 0.9 * 0.8)."""

    def value(z: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return ((z + DISCOUNT * a / (1 - DISCOUNT * KEEP) + DISCOUNT * KEEP * z / (1 - DISCOUNT * KEEP)).sum(1))[None].expand(
            2, -1
        )

    view = LatentView(
        encode=lambda obs: obs,
        step=lambda z, a: (z.sum(1), KEEP * z + a),
        values=value,
        policy=torch.zeros_like,
        sample=lambda z, generator: torch.zeros_like(z),
        discount=DISCOUNT,
    )
    return replace(view, **changes)


def episodes(noise: float = 0.0, count: int = 6, steps: int = 120) -> list[Played]:
    generator = torch.Generator().manual_seed(0)
    played = []
    for _ in range(count):
        z, obs, actions, rewards = torch.randn(1, generator=generator, dtype=torch.float64), [], [], []
        for _ in range(steps):
            a = noise * torch.randn(1, generator=generator, dtype=torch.float64)
            obs.append(z)
            actions.append(a)
            rewards.append(z.sum())
            z = KEEP * z + a
        played.append(Played(torch.stack([*obs, z]), torch.stack(actions), torch.stack(rewards)))
    return played


def test_a_perfect_model_is_found_perfect() -> None:
    found = diagnose(exact_view(), episodes(), episodes(), steps=4)
    assert found.latent_error == pytest.approx([0] * 4, abs=1e-9)
    assert found.reward_r2 == pytest.approx([1] * 4) and found.value_r2 == pytest.approx([1] * 4)
    assert found.value_correlation == pytest.approx(1) and found.value_error < 1e-4
    assert found.value_mean == pytest.approx(found.return_mean, abs=1e-4)
    assert found.ensemble_spread == 0 and found.prior_saturation == 0
    assert found.own_return == pytest.approx(sum(float(e.reward.sum()) for e in episodes()) / 6)
    assert advice(found, {"prior": 1.0, "lm": 1.2}) == []


def test_a_model_that_stands_still_has_error_one_and_predicts_no_change() -> None:
    found = diagnose(exact_view(step=lambda z, a: (z.sum(1), z)), episodes(noise=0.3), episodes(noise=0.3), steps=3)
    assert found.latent_error == pytest.approx([1, 1, 1])
    assert all(x < 0.05 for x in found.value_r2)
    assert "does not predict how the value changes" in " ".join(advice(found, {}))


def test_what_is_said_of_plans_is_what_they_were_found_to_gain() -> None:
    found = diagnose(exact_view(), episodes(), episodes(), steps=4)
    poor = replace(found, value_r2=[0.5] * 4, value_correlation=0.5)
    for returns in ({}, {"prior": 100.0, "lm": 105.0}, {"prior": -1.0, "lm": 2.0}):
        lines = " ".join(advice(poor, returns))
        assert "no plan that ends in them can be good" in lines and "can add nothing to its prior" in lines
    lines = " ".join(advice(poor, {"prior": 100.0, "lm": 121.0, "mppi": 90.0}))
    assert "plans gain 21% all the same" in lines and "the planner adds 21% all the same" in lines
    assert "can be good" not in lines and "can add nothing" not in lines and "no planner gains" not in lines


def test_values_are_compared_on_the_episodes_that_they_are_of() -> None:
    """Noise brings no exact value down: it is in other episodes."""
    noisy, own = episodes(noise=0.3), episodes()
    found, only_own, only_noisy = (diagnose(exact_view(), a, b, steps=3) for a, b in ((noisy, own), (own, own), (noisy, noisy)))
    assert found.value_error == only_own.value_error < 1e-4 < only_noisy.value_error
    assert found.own_return == only_own.own_return and found.noisy_return == only_noisy.noisy_return != found.own_return
    standing = exact_view(step=lambda z, a: (z.sum(1), z))
    assert diagnose(standing, noisy, own, steps=3).value_r2 == diagnose(standing, noisy, noisy, steps=3).value_r2


def test_bias_spread_and_saturation_are_counted() -> None:
    view = exact_view()
    doubled = replace(view, values=lambda z, a: view.values(z, a) * torch.tensor([[2.0], [3.0]], dtype=z.dtype))
    found = diagnose(doubled, episodes(), episodes(), steps=2)
    plain = diagnose(view, episodes(), episodes(), steps=2)
    # The lowest member: twice where values are positive, three times where they are negative.
    assert found.ensemble_spread > 0 and found.value_error > plain.value_error + 0.1
    saturated = diagnose(replace(view, policy=torch.ones_like), episodes(), episodes(), steps=2)
    assert saturated.prior_saturation == 1.0
    assert any("at the bounds" in line for line in advice(saturated, {}))


def test_only_states_whose_return_was_seen_are_compared() -> None:
    short = [Played(e.obs[:11], e.action[:10], e.reward[:10], terminated=True) for e in episodes()]
    by_hand = torch.cat([discounted_returns(e.reward, DISCOUNT) for e in short]).mean()
    assert diagnose(exact_view(), short, short, steps=2).return_mean == pytest.approx(float(by_hand))
    truncated, view = [replace(e, terminated=False) for e in short], exact_view()
    by_hand = torch.cat(
        [discounted_returns(e.reward, DISCOUNT)[:4] + DISCOUNT ** torch.arange(10, 6, -1) * view.value(e.obs[10:]) for e in short]
    ).mean()
    assert diagnose(view, truncated, truncated, steps=2).return_mean == pytest.approx(float(by_hand))


def test_discounted_returns_and_r_squared_by_hand() -> None:
    assert discounted_returns(torch.tensor([1.0, 2.0, 4.0]), 0.5).tolist() == [3.0, 4.0, 4.0]
    assert discounted_returns(torch.tensor([1.0, 2.0, 4.0]), 0.5, torch.tensor(8.0)).tolist() == [4.0, 6.0, 8.0]
    assert r_squared(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0])) == pytest.approx(-1.0)
    assert math.isnan(r_squared(torch.ones(3), torch.ones(3)))


def test_episodes_must_be_longer_than_the_look_ahead() -> None:
    with pytest.raises(ValueError, match="no episode has more than 200 steps"):
        diagnose(exact_view(), episodes(), episodes(), steps=200)


def test_table_and_picture(tmp_path) -> None:  # type: ignore[no-untyped-def]
    found = diagnose(exact_view(), episodes(noise=0.1), episodes(noise=0.1), steps=3)
    text = table(found, {"prior": 100.0, "lm": 150.0})
    assert "1.50" in text and "R2 of value changes" in text
    draw(found, {"prior": 100.0, "lm": 150.0}, tmp_path / "a" / "diagnosis.png")
    assert (tmp_path / "a" / "diagnosis.png").stat().st_size > 5000
    poor = replace(found, latent_rms=9.0, value_mean=10.0, return_mean=1.0, value_correlation=0.1)
    lines = " ".join(advice(poor, {"prior": 100.0, "lm": 101.0}))
    assert all(word in lines for word in ("overestimated", "grown", "correlation 0.10", "no planner gains"))
