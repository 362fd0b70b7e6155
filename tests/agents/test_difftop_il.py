"""DiffTOP for imitation: its loss by hand, its gradients, its starts, and what it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.bc import BC, BCConfig
from agents.difftop_il import DiffTOPIL, DiffTOPILConfig
from agents.policies.cvae_model import CostModel, ILModelConfig, LatentDynamics, NoDynamics, kl_to_standard
from agents.policies.noise import BatchNoise
from agents.policies.training import ImitationAgent
from agents.rnn_gmm import RnnGmm, RnnGmmConfig
from difftop.data.windows import WindowBatch
from difftop.options import ConfigError, build, defaults
from difftop.planning.rollout import rollout_cost
from difftop.run.checkpoint import save_checkpoint
from tests.conftest import task_spec

SPEC = task_spec("toy/made", {"hand": (2,), "goal": (2,)}, action_dim=2, episode_steps=20, control_dt_s=0.1)
WIDTHS = {"encoder_dims": [16], "posterior_dims": [16], "dynamics_dims": [16], "cost_dims": [16], "state_dim": 8, "rows": 4}


def policy(seed: int = 0, model: dict[str, Any] | None = None, **values: Any) -> DiffTOPIL:
    config = build(DiffTOPILConfig, {"horizon": 3, "model": WIDTHS | {"latent_dim": 2} | (model or {})} | values)
    return DiffTOPIL(config, SPEC, seed=seed)


def random_batch(size: int, steps: int = 1, horizon: int = 3, seed: int = 0, padded: int = 0) -> WindowBatch:
    g = torch.Generator().manual_seed(seed)
    obs = {key: torch.rand(size, steps, *shape, generator=g) * 2 - 1 for key, shape in SPEC.shapes.items()}
    span = steps + horizon - 1
    mask = torch.ones(size, span, dtype=torch.bool)
    mask[: size // 2, span - padded :] = False
    return WindowBatch(obs, 0.8 * (torch.rand(size, span, 2, generator=g) * 2 - 1), mask)


def doubled(made: DiffTOPIL, batch: WindowBatch) -> tuple[DiffTOPIL, WindowBatch]:
    obs = {key: x.double() for key, x in batch.obs.items()}
    return made.double(), WindowBatch(obs, batch.actions.double(), batch.mask)


def noise(rows: int, seed: int = 0) -> BatchNoise:
    return BatchNoise(rows, torch.Generator().manual_seed(seed), torch.device("cpu"))


def train(made: Any, batches: Any, steps: int, learning_rate: float = 3e-3) -> list[float]:
    """Losses of `steps` updates; `batches` gives the k-th batch."""
    training = build(type(made.config.training), {"learning_rate": learning_rate, "schedule": "cosine"})
    agent = ImitationAgent(made, training, total_steps=steps, seed=0, device=torch.device("cpu"))
    return [float(agent.update(batches(k), k).metrics["train/loss"]) for k in range(steps)]


def test_kl_divergence_is_the_closed_form() -> None:
    mean, log_variance = torch.tensor([[0.0, 1.0], [2.0, 0.0]]).double(), torch.tensor([[0.0, 0.0], [0.0, 1.0]]).double()
    torch.testing.assert_close(kl_to_standard(mean, log_variance), torch.tensor([0.5, 2 + (torch.e - 2) / 2]).double())
    g = torch.Generator().manual_seed(0)
    mean, log_variance = (torch.randn(5, 4, generator=g).double() for _ in range(2))
    q = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(kl_to_standard(mean, log_variance), expected)


def plain_plan(made: DiffTOPIL, state: Tensor, w: Tensor) -> Tensor:
    """The planner by the book: Gauss-Newton on all rows at once, Jacobian by autograd, box by projection; sample by sample."""
    config, plans = made.config.planner, []
    for h, latent in zip(state.unbind(), w.unbind(), strict=True):

        def rows(flat: Tensor, h: Tensor = h, latent: Tensor = latent) -> Tensor:
            collected = []
            for a in flat.view(-1, SPEC.action_dim).unbind():
                collected.append(made.cost_model.cost(torch.cat([h, latent, a])))
                assert made.cost_model.dynamics is not None
                h = made.cost_model.dynamics.net(torch.cat([h, latent, a]))
            return torch.cat([*collected, config.proximal**0.5 * flat])  # from zeros

        actions = torch.zeros(made.config.horizon * SPEC.action_dim, dtype=state.dtype)
        for _ in range(config.iterations):
            r, jacobian = rows(actions), torch.autograd.functional.jacobian(rows, actions)
            assert isinstance(jacobian, Tensor)
            descent = -jacobian.mT @ r
            free = ~(((actions == 1) & (descent > 0)) | ((actions == -1) & (descent < 0)))
            j = jacobian * free
            step = torch.linalg.solve(j.mT @ j + config.damping * torch.eye(len(actions), dtype=j.dtype), -j.mT @ r)
            actions = (actions + step).clamp(-1, 1)
        plans.append(actions.view(-1, SPEC.action_dim))
    return torch.stack(plans)


def test_loss_by_hand() -> None:
    made, batch = doubled(policy(weight=3.0, beta=0.2, window=2), random_batch(6, steps=2, padded=2))
    with torch.no_grad():
        h = made.encoder(
            torch.cat([batch.obs["goal"][:, 0], batch.obs["hand"][:, 0], batch.obs["goal"][:, 1], batch.obs["hand"][:, 1]], 1)
        )
        target, known = batch.actions[:, 1:], batch.mask[:, 1:]
        assert made.posterior is not None
        seen = torch.cat([h, (target * known[..., None]).flatten(1), known.double()], 1)
        mu, log_variance = made.posterior.net(seen).chunk(2, 1)
        eps = torch.randn(6, 2, generator=torch.Generator().manual_seed(4)).double()
        plan = plain_plan(made, h, mu + (log_variance / 2).exp() * eps)
        squares = [(plan[b, t] - target[b, t]).square().mean() for b in range(6) for t in range(3) if known[b, t]]
        assert len(squares) == 12
        expected = 3 * sum(squares) / 12 + 0.2 * kl_to_standard(mu, log_variance).mean()
    loss, metrics = made.loss(batch, torch.Generator().manual_seed(4))
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-9, atol=0)
    assert torch.equal(metrics["loss"], loss.detach()) and metrics["plan/failure_rate"] == 0


def check_gradient(loss: Any, parameters: dict[str, Tensor]) -> None:
    """Every parameter's gradient along a random direction, against central differences."""
    gradients = torch.autograd.grad(loss(), list(parameters.values()))
    g, eps = torch.Generator().manual_seed(2), 1e-6
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=g).double()
        slope = float((gradient * direction).sum())
        with torch.no_grad():
            parameter += eps * direction
            up = float(loss())
            parameter -= 2 * eps * direction
            down = float(loss())
            parameter += eps * direction
        assert slope != 0 and abs((up - down) / (2 * eps) - slope) < 1e-6 * max(abs(slope), 1e-2), (name, slope)


@pytest.mark.parametrize(("structure", "iterations"), [("dynamics", 3), ("dynamics", 1), ("chunk", 3)])
def test_gradient_through_the_planner_agrees_with_finite_differences(structure: str, iterations: int) -> None:
    planner = {"iterations": iterations, "backward": "unroll"}
    made, batch = doubled(policy(model={"structure": structure}, planner=planner), random_batch(4, padded=1))
    check_gradient(lambda: made.loss(batch, torch.Generator().manual_seed(1))[0], dict(made.named_parameters()))


def test_the_papers_objective_and_its_gradient() -> None:
    values = {
        "proximal": 0.0,
        "objective": "return",
        "iterations": 4,
        "backward": "unroll",
        "damping": 0.01,
        "step_size": 1e-4,
        "bounds": "clamp",
    }
    made, batch = doubled(policy(model={"structure": "chunk"}, planner=values), random_batch(4))
    state, w, _ = problem(made, batch)
    plan = made.plan(state, w, torch.zeros(4, 3, 2).double()).actions
    for b in range(4):  # a <- a + alpha r g / (|g|^2 + lambda), r = 1000 - f, one problem per sample
        a = torch.zeros(6).double()
        for _ in range(4):
            a.requires_grad_()
            f = made.cost_model.cost(torch.cat([state[b], w[b], a.clamp(-1, 1)]))
            (slope,) = torch.autograd.grad(f, a)
            a = a.detach() + 1e-4 * (1000 - f.item()) * slope / (slope.square().sum() + 0.01)
        assert 1e-3 < float(a.abs().max()) < 1
        torch.testing.assert_close(plan[b].flatten(), a, rtol=1e-8, atol=1e-12)
    names = {name: p for name, p in made.named_parameters() if name != "cost_model.cost.2.bias"}  # 1000 - f hardly sees it
    check_gradient(lambda: made.loss(batch, torch.Generator().manual_seed(1))[0], names)


def test_parts_of_the_model_are_differentiated_by_hand_as_by_autograd() -> None:
    g = torch.Generator().manual_seed(0)
    z, a, c = (torch.randn(5, n, generator=g).double() for n in (6, 2, 6))
    for function in (LatentDynamics(4, 2, 2, [7]).double(), NoDynamics()):
        z.requires_grad_()
        a.requires_grad_()
        y, pullback = function.linearize(z, a)
        torch.testing.assert_close(y, function(z, a))
        expected = torch.autograd.grad(function(z, a), (z, a), c, materialize_grads=True, allow_unused=True)
        torch.testing.assert_close(pullback(c), expected)
        torch.testing.assert_close(torch.stack(pullback(torch.stack([c, 2 * c]))[1].unbind())[1], 2 * expected[1])


def problem(made: DiffTOPIL, batch: WindowBatch, seed: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """h, a latent and a start for each sample."""
    numbers = noise(len(batch.actions), seed)
    state = made.encoded(batch.obs, numbers).detach()
    return state, numbers.normal(made.config.model.latent_dim).to(state), made.starts(batch.obs, numbers)


def test_a_sample_does_not_know_its_batch() -> None:
    made, batch = doubled(policy(), random_batch(5))
    state, w, starts = problem(made, batch)
    order = torch.tensor([3, 0, 4, 2, 1])
    whole = made.plan(state, w, starts)
    mixed = made.plan(state[order], w[order], starts[order])
    torch.testing.assert_close(mixed.actions, whole.actions[order], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mixed.value, whole.value[order], rtol=1e-12, atol=1e-12)
    single = made.plan(state[2:3], w[2:3], starts[2:3])
    torch.testing.assert_close(single.actions, whole.actions[2:3], rtol=1e-12, atol=1e-12)
    state[1] = 1e30  # trouble stays where it is
    broken = made.plan(state, w, starts)
    torch.testing.assert_close(broken.actions[[0, 2, 3, 4]], whole.actions[[0, 2, 3, 4]], rtol=1e-12, atol=1e-12)
    cost = rollout_cost(made.cost_model.latent_model(), torch.cat([state, w], 1)[2:], whole.actions[2:])
    torch.testing.assert_close(cost, -whole.value[2:])


def test_padding_is_excluded() -> None:
    made, batch = policy(), random_batch(6, padded=2)
    other = WindowBatch(batch.obs, torch.where(batch.mask[..., None], batch.actions, 0.77), batch.mask)
    results = []
    for seen in (batch, other):
        made.zero_grad()
        loss, _ = made.loss(seen, torch.Generator().manual_seed(0))
        loss.backward()  # type: ignore[no-untyped-call]
        results.append([loss.detach(), *(p.grad.clone() for p in made.parameters() if p.grad is not None)])
    assert len(results[0]) == 1 + len(list(made.parameters()))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


@pytest.mark.parametrize("model", [{}, {"structure": "chunk", "rows": 8}, {"latent_dim": 0}])
def test_overfits_one_batch(model: dict[str, Any]) -> None:
    made, batch = policy(model=model, beta=1e-4), random_batch(8, padded=1)
    losses = train(made, lambda k: batch, 80, 2e-2)
    assert losses[-1] < 0.03 < 0.1 < losses[0]


def two_modes(size: int, seed: int) -> tuple[WindowBatch, Tensor, Tensor]:
    """Left or right around an obstacle, by a coin that observations don't show; and the two chunks `[B, H, A]` that are right."""
    batch = random_batch(size, seed=seed)
    time = torch.arange(1, 4)[None] / 3
    ahead, side = 0.5 * batch.obs["goal"][:, 0, :1] * time, (0.5 + 0.2 * batch.obs["hand"][:, 0, :1]) * torch.ones_like(time)
    left, right = torch.stack([ahead, side], -1), torch.stack([ahead, -side], -1)
    coin = torch.rand(size, generator=torch.Generator().manual_seed(seed + 1)) < 0.5
    return WindowBatch(batch.obs, torch.where(coin[:, None, None], left, right), batch.mask), left, right


def test_two_modes_are_both_reproduced_where_regression_averages() -> None:
    made = policy(seed=1, samples=1, model={"rows": 6})
    regression = BC(build(BCConfig, {"horizon": 3, "distribution": "deterministic", "hidden_dims": [64]}), SPEC, seed=0)
    batches = [two_modes(64, 10 * k)[0] for k in range(20)]
    for learner in (made, regression):
        train(learner, lambda k: batches[k % 20], 250, 1e-2)
    test, left, right = two_modes(200, 999)
    with torch.no_grad():
        acted, averaged = made.chunk(test.obs, noise(200)), regression.chunk(test.obs, noise(200))
        state, _, starts = problem(made, test)
        assert made.posterior is not None
        for mode in (left, right):  # a mode's latent gives the mode back
            plan = made.plan(state, made.posterior(state, mode, test.mask)[0], starts).actions
            assert float((plan - mode).square().mean()) < 0.005
    # Latents from the prior give both, and some plans in between; the average of both lies 0.11 from either.
    (to_left, to_right), between = ([(y - mode).square().mean((1, 2)) for mode in (left, right)] for y in (acted, averaged))
    assert float((to_left < 0.05).double().mean()) > 0.2 < float((to_right < 0.05).double().mean())
    assert float((torch.minimum(*between) < 0.05).double().mean()) < 0.2 and float(torch.minimum(*between).mean()) > 0.1


def test_without_a_cost_the_plan_is_the_bases_and_the_base_is_never_read_again(tmp_path: Path) -> None:
    options = defaults(BCConfig) | {"horizon": 2, "hidden_dims": [8], "distribution": "deterministic", "window": 2}
    base = BC(build(BCConfig, options), SPEC, seed=3)
    save_checkpoint(
        tmp_path / "base",
        step=1,
        agent_name="bc",
        config={"agent": options},
        spec=SPEC,
        model=base.state_dict(),
        train_state={},
    )
    made = policy(base="bc", base_checkpoint=str(tmp_path / "base"), base_window=2, execute=3)
    assert made.base is not None
    made.base.read_()
    batch = random_batch(4, steps=2)
    with torch.no_grad():
        wanted = base.chunk(batch.obs, noise(4)).clamp(-1, 1)
        wanted = torch.cat([wanted, wanted[:, -1:]], 1)
        moved = made.chunk(batch.obs, noise(4))
        for p in made.cost_model.cost.parameters():
            p *= 1e-6
        torch.testing.assert_close(made.chunk(batch.obs, noise(4)), wanted, rtol=0, atol=1e-6)
    assert float((moved - wanted).abs().max()) > 0.01
    before = [p.clone() for p in base.parameters()]
    train(made, lambda k: batch, 3)
    assert made.base.policy is not None
    assert all(torch.equal(x, y) for x, y in zip(before, made.base.policy.parameters(), strict=True))
    fresh = policy(seed=5, base="bc", base_checkpoint="/nowhere", base_window=2, execute=3)
    fresh.load_state_dict(made.state_dict())
    t0 = torch.tensor([True, True])
    obs = [{key: x[:2, k] for key, x in batch.obs.items()} for k in range(2)]
    actors = [m.actor(2, seed=1) for m in (made, fresh)]
    for k in range(2):
        first, second = (actor.act(obs[k], t0 & (k == 0)) for actor in actors)
        assert torch.equal(first, second)


@pytest.mark.parametrize(("memory", "ages"), [("restart", range(10)), ("overlap", range(5, 10))])
def test_a_recurrent_base_has_all_its_ages_in_training(tmp_path: Path, memory: str, ages: range) -> None:
    """As while acting, where the LSTM forgets: not only that of a whole window."""
    options = defaults(RnnGmmConfig) | {"hidden_dim": 4, "layers": 1, "memory": memory}
    base = RnnGmm(build(RnnGmmConfig, options), SPEC, seed=3)
    named = {"agent_name": "rnn_gmm", "config": {"agent": options}, "spec": SPEC}
    save_checkpoint(tmp_path / "base", step=1, **named, model=base.state_dict(), train_state={})
    made = policy(base="rnn_gmm", base_checkpoint=str(tmp_path / "base"))
    assert made.base is not None
    made.base.read_()
    begins: list[Tensor] = []
    latest = made.base.latest
    made.base.latest = lambda obs, noise, begin, rows: begins.append(begin) or latest(obs, noise, begin, rows)  # type: ignore
    batch = random_batch(400, steps=10)
    batch.mask[:100, :6] = False  # episodes that are four steps old
    made.loss(batch, torch.Generator().manual_seed(0))
    found = 9 - begins[0]
    assert bool((found[:100] == 3).all())
    counts = torch.bincount(found[100:], minlength=10)
    assert all(int(counts[age]) > 300 / len(ages) / 2 if age in ages else not int(counts[age]) for age in range(10)), counts


def test_the_cheapest_of_several_latents_is_kept() -> None:
    made, batch = policy(samples=6), random_batch(5)
    with torch.no_grad():
        state, _, starts = problem(made, batch)
        acted = made.acted(state, starts, noise(5, 7)).actions
        w = noise(5, 7).normal(6, 2)
        for b in range(5):
            found = [made.plan(state[b : b + 1], w[b, k : k + 1], starts[:1]) for k in range(6)]
            best = max(found, key=lambda result: float(result.value))
            torch.testing.assert_close(acted[b], best.actions[0])
            assert len({round(float(result.value), 4) for result in found}) == 6
        certain = policy(samples=0)
        plan = certain.plan(certain.encoded(batch.obs, noise(5)), torch.zeros(5, 2), starts)
        assert torch.equal(certain.chunk(batch.obs, noise(5)), plan.actions)


def test_failed_plans_are_counted_and_give_no_gradient() -> None:
    made, batch = policy(model={"latent_dim": 0}), random_batch(4)
    plain = made.plan

    def breaking(state: Tensor, *args: Any, **values: Any) -> Any:
        return plain(torch.cat([state[:1] + 1e38, state[1:]]), *args, **values)

    made.plan = breaking  # type: ignore[method-assign]
    loss, metrics = made.loss(batch)
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss) and metrics["plan/failure_rate"] == 0.25
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in made.parameters())
    rest = WindowBatch({key: x[1:] for key, x in batch.obs.items()}, batch.actions[1:], batch.mask[1:])
    made.plan = plain  # type: ignore[method-assign]
    torch.testing.assert_close(loss, made.loss(rest)[0])


def test_same_seed_same_actions_and_memory_survives_saving() -> None:
    made, fresh, other = policy(samples=3, execute=2, window=2), policy(seed=4, samples=3, execute=2, window=2), policy(seed=4)
    train(made, lambda k: random_batch(8, steps=2, seed=k), 3)
    fresh.load_state_dict(made.state_dict())
    assert any(not torch.equal(x, y) for x, y in zip(made.parameters(), other.parameters(), strict=False) if x.shape == y.shape)
    g = torch.Generator().manual_seed(0)
    obs = [{key: torch.randn(3, *shape, generator=g) for key, shape in SPEC.shapes.items()} for _ in range(6)]
    first, second, third = made.actor(3, seed=2), fresh.actor(3, seed=2), made.actor(3, seed=3)
    for k, seen in enumerate(obs):
        t0 = torch.full((3,), k == 0)
        if k == 3:
            second = made.actor(3, seed=8)
            second.load_state_dict(first.state_dict())
        actions = first.act(seen, t0)
        assert torch.equal(actions, second.act(seen, t0)) and bool((actions.abs() <= 1).all())
        assert not torch.equal(actions, third.act(seen, t0))
    assert first.metrics() == {"plan/failure_rate": 0.0} and first.state_dict()["predictor"]["counters"].tolist() == [0, 0]


def test_a_failed_plan_while_acting_is_counted_and_what_it_started_from_is_done() -> None:
    made = policy(samples=2)
    with torch.no_grad():
        made.cost_model.cost[-1].weight.fill_(torch.nan)  # type: ignore[union-attr]
    actor = made.actor(2, seed=0)
    obs = {key: torch.zeros(2, *shape) for key, shape in SPEC.shapes.items()}
    assert torch.equal(actor.act(obs, torch.tensor([True, True])), torch.zeros(2, 2))
    assert actor.metrics() == {"plan/failure_rate": 1.0} and actor.metrics() == {"plan/failure_rate": 0.0}


def test_evaluation_tells_the_error_of_acting() -> None:
    made, batch = policy(samples=4), random_batch(6, padded=1)
    agent = ImitationAgent(made, made.config.training, total_steps=1, seed=0, device=torch.device("cpu"))
    found = agent.validate(batch, seed=5)
    assert {"valid/loss", "valid/error", "valid/kl", "valid/acting_error"} <= set(found)
    with torch.no_grad():
        numbers = noise(6, 5)
        numbers.normal(2)  # the posterior's
        acted = made.acted(made.encoded(batch.obs, numbers), torch.zeros(6, 3, 2), numbers).actions
        expected = ((acted - batch.actions).square().mean(-1) * batch.mask).sum() / batch.mask.sum()
    torch.testing.assert_close(found["valid/acting_error"], expected)


def test_mistakes_are_told() -> None:
    with pytest.raises(ConfigError, match="execute=4: a prediction has 3"):
        policy(execute=4)
    with pytest.raises(ConfigError, match="base_checkpoint"):
        policy(base="bc").base.read_()  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="structure=flat"):
        policy(model={"structure": "flat"})
    model = CostModel(ILModelConfig(structure="chunk"), 3, 2, "return")
    assert (model.steps, model.step_dim) == (1, 6)
