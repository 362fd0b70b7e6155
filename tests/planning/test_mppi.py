"""MPPI against a plain loop over one problem with the same noise, and its contract."""

import pytest
import torch

from difftop.planning import LatentModel, MPPIConfig, MPPIPlanner, rollout_return
from difftop.planning.mppi import draw_one
from difftop.types import SolveStatus
from tests.oracles import networks, outputs, point_mass

Z, A, H = 5, 2, 3
SMALL = MPPIConfig(iterations=3, samples=40, elites=8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive(model, z, plans, config, g, previous, low, eval_mode):
    """TD-MPC's loop for one latent, value by value; returns the plan and its mean."""
    gamma = model.discount ** torch.arange(H + 1, dtype=z.dtype)
    mean, std = previous.clone(), torch.full_like(previous, config.max_std)
    for _ in range(config.iterations):
        noise = torch.randn(1, config.samples, H, A, generator=g, dtype=z.dtype)[0]
        candidates = [*(mean + std * noise).clamp(-1, 1), *plans]
        values = torch.stack([outputs(model, z, c) @ gamma for c in candidates])
        order = values.argsort(descending=True)[: config.elites]
        score = torch.exp(config.temperature * (values[order] - values.max()))
        score = score / score.sum()
        elites = torch.stack([candidates[i] for i in order])
        centre = sum(s * e for s, e in zip(score, elites, strict=True))
        variance = sum(s * (e - centre) ** 2 for s, e in zip(score, elites, strict=True))
        std = variance.sqrt().clamp(low, config.max_std)
        mean = config.momentum * mean + (1 - config.momentum) * centre
    actions = elites[torch.multinomial(score.unsqueeze(0), 1, generator=g).item()]
    if not eval_mode:
        actions = (actions + std * torch.randn(1, H, A, generator=g, dtype=z.dtype)[0]).clamp(-1, 1)
    return actions, mean, std


@pytest.mark.parametrize("eval_mode", [False, True])
@pytest.mark.parametrize("count", [1, 6])
def test_one_problem_is_the_plain_loop(eval_mode: bool, count: int) -> None:
    n, g = networks(Z, A, 8), generator(3)
    z = torch.randn(1, Z, generator=g, dtype=torch.float64)
    plans = torch.rand(1, count, H, A, generator=g, dtype=torch.float64) * 2 - 1
    previous = torch.rand(1, H, A, generator=g, dtype=torch.float64) - 0.5
    expected = naive(n.plain, z[0], plans[0], SMALL, generator(), previous[0], 0.3, eval_mode)
    ours = MPPIPlanner(SMALL, A).plan(n.fast, z, plans, previous=previous, std=0.3, generator=generator(), eval_mode=eval_mode)
    for a, b in zip((ours.actions, ours.mean, ours.std), expected, strict=True):
        torch.testing.assert_close(a[0], b, rtol=1e-10, atol=1e-10)
    if eval_mode:
        torch.testing.assert_close(ours.value, rollout_return(n.plain, z, ours.actions))
    assert ours.status.tolist() == [SolveStatus.SOLVED] and ours.iterations.tolist() == [3]


def test_with_a_scale_plans_do_not_depend_on_the_unit_of_reward() -> None:
    n = networks(Z, A, 8)
    z = torch.randn(3, Z, generator=generator(3), dtype=torch.float64)
    prior = torch.zeros(3, H, A, dtype=torch.float64)

    def mean(factor: float, scale: float | None) -> torch.Tensor:
        model = LatentModel(
            n.plain.dynamics, lambda z, a: factor * n.plain.reward(z, a), lambda z: factor * n.plain.terminal(z), n.plain.discount
        )
        return MPPIPlanner(SMALL, A).plan(model, z, prior, scale=scale, generator=generator()).mean

    torch.testing.assert_close(mean(100.0, 100.0), mean(1.0, None), rtol=1e-9, atol=1e-9)
    assert (mean(100.0, None) - mean(1.0, None)).abs().max() > 0.01  # as published: the temperature has the reward's unit


def test_it_improves_on_the_prior_and_stays_in_the_box() -> None:
    model = point_mass()
    z = torch.randn(4, 4, generator=generator(), dtype=torch.float64)
    prior = torch.zeros(4, 5, A, dtype=torch.float64)
    result = MPPIPlanner(MPPIConfig(samples=256), A).plan(model, z, prior, generator=generator(), eval_mode=True)
    assert (result.value > rollout_return(model, z, prior)).all()
    noisy = MPPIPlanner(MPPIConfig(samples=64), A).plan(model, z, 3 * prior + 3, std=2.0, generator=generator())
    assert noisy.actions.abs().max() <= 1 and noisy.actions.shape == (4, 5, A)


def test_rows_do_not_see_each_other_and_runs_repeat() -> None:
    n = networks(Z, A, 8)
    z = torch.randn(4, Z, generator=generator(), dtype=torch.float64)
    prior = torch.zeros(4, H, A, dtype=torch.float64)

    def plan(z):
        return MPPIPlanner(SMALL, A).plan(n.fast, z, prior, generator=generator(1))

    other = z.clone()
    other[1] += 1
    first, second = plan(z), plan(other)
    assert torch.equal(plan(z).actions, first.actions)
    keep = [0, 2, 3]
    assert torch.equal(first.actions[keep], second.actions[keep]) and not torch.equal(first.actions[1], second.actions[1])


def test_a_failed_row_keeps_its_prior_and_is_counted() -> None:
    m = point_mass()
    model = LatentModel(m.dynamics, lambda z, a: m.reward(z, a) / (z[:, 0] < 50).to(z), m.terminal, m.discount)
    z = torch.zeros(3, 4, dtype=torch.float64)
    z[1, 0] = 100.0
    prior = torch.full((3, H, A), 0.25, dtype=torch.float64)
    result = MPPIPlanner(SMALL, A).plan(model, z, prior, generator=generator())
    assert result.status.tolist() == [0, SolveStatus.FAILED, 0]
    assert torch.equal(result.actions[1], prior[1])
    for tensor in (result.actions, result.mean, result.std):
        assert torch.isfinite(tensor).all()


def test_more_elites_than_finite_plans_are_no_elites() -> None:
    """Plans that the model can't value get weight zero, not the prior's place."""
    m = point_mass()
    model = LatentModel(m.dynamics, lambda z, a: torch.where(a[:, 0] > -0.9, torch.nan, m.reward(z, a)), m.terminal)
    z, prior = torch.zeros(1, 4, dtype=torch.float64), torch.full((1, 1, A), -1.0, dtype=torch.float64)
    result = MPPIPlanner(MPPIConfig(samples=64, elites=64), A).plan(model, z, prior, generator=generator(), eval_mode=True)
    assert result.status.item() == SolveStatus.SOLVED and result.actions[0, 0, 0] <= -0.9
    assert torch.isfinite(result.value).all() and torch.isfinite(result.mean).all()


def test_bad_input_is_named() -> None:
    m, z, prior = point_mass(), torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, H, A, dtype=torch.float64)
    planner = MPPIPlanner(SMALL, A)
    with pytest.raises(ValueError, match=r"prior: shape \[2, 3\]"):
        planner.plan(m, z, prior[..., 0])
    with pytest.raises(ValueError, match=r"prior: shape"):
        planner.plan(m, z, prior.unsqueeze(1)[:, :0])
    with pytest.raises(ValueError, match=r"previous: shape"):
        planner.plan(m, z, prior, previous=prior[:, :1])
    with pytest.raises(ValueError, match=r"z0: 2 of 2 rows"):
        planner.plan(m, z * torch.nan, prior)
    with pytest.raises(ValueError, match=r"prior: 2 of 2 rows"):
        planner.plan(m, z, prior.unsqueeze(1) * torch.nan)
    with pytest.raises(ValueError, match=r"std=-1"):
        planner.plan(m, z, prior, std=-1.0)
    with pytest.raises(ValueError, match=r"elites=600: must be at most MPPIConfig.samples=512"):
        MPPIPlanner(MPPIConfig(elites=600), A)
    with pytest.raises(ValueError, match=r"action_dim=0"):
        MPPIPlanner(SMALL, 0)


def test_the_elite_is_drawn_as_torch_draws_it() -> None:
    """`torch.multinomial` of one number, which on a GPU reads two on the host; of weights, rows and zeros of all kinds."""
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        weights = torch.rand(5, 8, generator=g) * (torch.rand(5, 8, generator=g) > 0.3)
        weights[:, 0] = 1.0
        state = g.get_state()
        expected = torch.multinomial(weights, 1, generator=g).squeeze(1)
        g.set_state(state)
        assert torch.equal(draw_one(weights, g), expected)
