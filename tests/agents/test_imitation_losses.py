"""The losses of the imitation policies, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributions

from agents.bc import BC
from agents.diffusion import Diffusion
from agents.ibc import IBC
from agents.leto import Leto
from agents.policies.noise import BatchNoise
from agents.policies.padding import held_targets
from agents.residual import Residual
from agents.rnn_gmm import RnnGmm
from difftop.data.demonstrations import Demonstration, Demonstrations, EnvInfo
from difftop.options import ConfigError
from tests.agents.imitators import SPEC, base_run, make, observations, padded_batch, random_batch, rolled
from tests.conftest import task_spec
from tests.data.test_windows import demonstrations


def made_demonstrations(actions: Tensor) -> Demonstrations:
    """One demonstration of `SPEC`."""
    obs = observations(len(actions))
    return Demonstrations.of(Path("made.hdf5"), EnvInfo("made"), [Demonstration("demo_0", actions, obs)])


def test_gmm_loss_is_the_mean_log_likelihood_of_torch() -> None:
    agent = make("bc", window=1, horizon=1)
    policy: BC = agent.policy
    batch = random_batch(agent)
    made = policy.mixture(policy.body(policy.observer(batch.obs).flatten(1)))
    components = distributions.Independent(distributions.Normal(made.mean, made.std), 1)
    torchs = distributions.MixtureSameFamily(distributions.Categorical(logits=made.logits), components)
    torch.testing.assert_close(policy.loss(batch)[0], -torchs.log_prob(batch.actions[:, 0]).mean())


def test_squared_error_by_hand() -> None:
    agent = make("bc", distribution="deterministic")
    policy: BC = agent.policy
    batch = padded_batch(agent)
    predicted = policy.linear(policy.body(policy.observer(batch.obs).flatten(1))).tanh().view(6, 3, 4)
    errors = [
        (predicted[b, j] - batch.actions[b, j + 1]).square().mean() for b in range(6) for j in range(3) if batch.mask[b, j + 1]
    ]
    assert len(errors) < 18
    torch.testing.assert_close(policy.loss(batch)[0], torch.stack(errors).mean())


def test_recurrent_loss_counts_what_is_no_padding() -> None:
    agent = make("rnn_gmm")
    policy: RnnGmm = agent.policy
    batch = padded_batch(agent)
    features, _ = policy.lstm(torch.cat([batch.obs["eef_pos"], batch.obs["object"]], -1))
    made, total = policy.mixture(features), torch.zeros(())
    for b in range(6):
        for i in range(4):
            count = int(batch.mask[b, i : i + 3].sum())  # padding is at the end
            if count:
                mean, std = made.mean[b, i, :, : 4 * count], made.std[b, i, :, : 4 * count]
                density = distributions.Normal(mean, std).log_prob(batch.actions[b, i : i + count].flatten()).sum(-1)
                total = total - torch.logsumexp(made.logits[b, i].log_softmax(-1) + density, -1)
    known = batch.mask.unfold(1, 3, 1).sum()
    torch.testing.assert_close(policy.loss(batch)[0], total / known)


def test_ibc_loss_is_a_classification() -> None:
    agent = make("ibc", dropout=0.0)
    policy: IBC = agent.policy
    policy.low.fill_(-0.5), policy.high.fill_(0.8), policy.scaling.scale.fill_(0.6)
    batch = random_batch(agent)
    batch = replace(batch, mask=batch.mask.index_put((torch.tensor([2]), torch.tensor([1])), torch.tensor(False)))
    loss, metrics = policy.loss(batch, torch.Generator().manual_seed(5))
    noise = BatchNoise(6, torch.Generator().manual_seed(5), torch.device("cpu"))
    features = policy.observer(batch.obs).flatten(1)
    positive = batch.actions[:, 1] + 0.6e-4 * noise.normal(1, 4)[:, 0]
    negatives = -0.5 + 1.3 * noise.uniform(32, 4)
    losses, right = [], 0
    for b in (0, 1, 3, 4, 5):  # the label of window 2 is padding
        f = policy.energies(features[b : b + 1], torch.cat([positive[b : b + 1], negatives[b]])[None])[0]
        losses.append(-f[0] + f.exp().sum().log())
        right += bool(f[0] == f.max())
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    assert float(metrics["accuracy"]) == pytest.approx(right / 5)


def test_energies_are_those_of_a_plain_network() -> None:
    policy: IBC = make("ibc").policy
    features, actions = torch.randn(3, 14), torch.randn(3, 5, 4)
    weight = torch.cat([policy.from_obs.weight, policy.from_action.weight], 1)
    policy.scaling.shift.copy_(torch.tensor([0.0, 0.1, -0.2, 0.3])), policy.scaling.scale.fill_(0.5)
    scaled = 2 * (actions - torch.tensor([0.0, 0.1, -0.2, 0.3]))
    h = torch.cat([features[:, None].expand(-1, 5, -1), scaled], -1) @ weight.mT + policy.from_obs.bias
    for layer in policy.layers:
        h = torch.relu(h) @ layer.weight.mT + layer.bias
    torch.testing.assert_close(policy.energies(features, actions), h[..., 0])


def test_ibc_finds_the_top_of_a_known_energy() -> None:
    agent = make("ibc", samples=256)
    policy: IBC = agent.policy
    goal = torch.tensor([0.3, -0.6, 0.9, 0.0])
    policy.energies = lambda features, actions: -200 * (actions - goal).square().sum(-1)  # type: ignore[method-assign]
    actions = rolled(agent.actor(4, seed=0), observations(4, 3))
    assert float((actions - goal).abs().max()) < 0.06
    policy.high.copy_(torch.tensor([1.0, 1.0, 0.5, 1.0]))
    assert float(rolled(agent.actor(4, seed=0), observations(4, 3))[..., 2].max()) <= 0.5


def test_ibc_searches_every_action_by_its_range() -> None:
    """Under an ideal energy, errors are the same share of each action's range; the gripper's is fifty times a turn's."""
    policy: IBC = (agent := make("ibc", samples=1024)).policy
    half, shift = torch.tensor([1.0, 0.1, 0.05, 0.02]), torch.tensor([0.0, 0.3, 0.0, -0.5])
    g = torch.Generator().manual_seed(0)
    policy.fit_normalizer_(made_demonstrations(half * (2 * torch.rand(500, 4, generator=g) - 1) + shift))
    goals = half * (1.6 * torch.rand(64, 4, generator=g) - 0.8) + shift
    policy.energies = lambda features, a: -200 * ((a - goals[:, None]) / half).square().sum(-1)  # type: ignore[method-assign]
    error = ((agent.actor(64, seed=0).act(observations(64), torch.ones(64, dtype=torch.bool)) - goals) / half).abs().mean(0)
    assert float(error.max()) < 0.06 and float(error.max() / error.min()) < 1.3, error


def test_ibc_reads_weights_of_before_its_scaling() -> None:
    fresh, policy = make("ibc", seed=1).policy, make("ibc").policy
    fresh.scaling.scale.fill_(0.5)
    fresh.load_state_dict({key: value for key, value in policy.state_dict().items() if "scaling" not in key})
    features, actions = torch.randn(3, 14), torch.randn(3, 5, 4)
    assert torch.equal(fresh.energies(features, actions), policy.energies(features, actions))


@pytest.mark.parametrize("pad", ["mask", "hold"])
def test_diffusion_loss_is_the_error_of_the_noise(pad: str) -> None:
    agent = make("diffusion", pad=pad)
    policy: Diffusion = agent.policy
    batch = padded_batch(agent)
    loss, _ = policy.loss(batch, torch.Generator().manual_seed(5))
    noise = BatchNoise(6, torch.Generator().manual_seed(5), torch.device("cpu"))
    k, eps = (noise.uniform() * 20).long(), noise.normal(4, 4)
    repeated, counted = batch.actions.clone(), batch.mask.clone()
    for b in range(6):
        real = batch.mask[b].nonzero()[:, 0]
        repeated[b, : int(real[0])] = batch.actions[b, real[0]]
        repeated[b, int(real[-1]) :] = batch.actions[b, real[-1]]
        if pad == "hold":
            repeated[b, int(real[-1]) + 1 :, :3] = 0  # no motion; the gripper stays
            counted[b, int(real[-1]) + 1 :] = True
    assert not bool(counted.all()) and bool((counted != batch.mask).any()) == (pad == "hold")
    abar = policy.denoising.abar[k].float()[:, None, None]
    condition = torch.cat([batch.obs["eef_pos"], batch.obs["object"]], -1).flatten(1)
    predicted = policy.net(abar.sqrt() * repeated + (1 - abar).sqrt() * eps, k, condition)
    errors = (predicted - eps).square().mean(-1)[counted]
    assert k.unique().numel() > 2
    torch.testing.assert_close(loss, errors.mean())


def test_a_chunk_begins_now() -> None:
    """The U-Net's first action belongs to the first observation of the window, the executed one to the last."""
    agent = make("diffusion", window=3, horizon=4, execute=2, training={"ema": 0.0})
    policy: Diffusion = agent.policy
    assert (policy.windows.window, policy.windows.horizon) == (3, 2)
    assert (policy.windows.pad_before, policy.windows.pad_after) == (2, 1)
    ramp = torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None].expand(4, 4)

    def net(x: torch.Tensor, step: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        abar = policy.denoising.abar[step].float()[:, None, None]
        return (x - abar.sqrt() * ramp) / (1 - abar).sqrt()

    for sampler in ("ddim", "ddpm"):
        object.__setattr__(policy.config, "sampler", sampler)
        policy.net.forward = net  # type: ignore[method-assign]
        actions = rolled(agent.actor(2, seed=0), observations(2, 4))
        expected = torch.tensor([0.3, 0.4, 0.3, 0.4])[:, None].expand(2, 4, 4)
        torch.testing.assert_close(actions, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("execute", [1, 4, 8])
def test_diffusion_sees_the_end_of_every_demonstration(execute: int) -> None:
    """Every observation is once the last of a window, the one that acting begins a chunk with."""
    agent = make("diffusion", window=2, horizon=16, execute=execute)
    lengths, shape = [20, 9], agent.windows
    made = demonstrations(lengths)
    windows = made.windows(shape.window, shape.horizon, pad_before=shape.pad_before, pad_after=shape.pad_after)
    batch = windows.gather(torch.arange(len(windows)))
    assert sorted(batch.obs["time"][:, -1, 0].tolist()) == list(range(sum(lengths)))
    at_the_end = batch.obs["time"][:, -1, 0] == 19
    policy = agent.policy
    targets, counted = held_targets(replace(batch, actions=batch.actions.repeat(1, 1, 2)), policy.moves, policy.config.pad)
    last = made.actions[19]
    assert bool(counted[at_the_end].all()) and torch.equal(targets[at_the_end][0, 1], last.repeat(2))
    still = torch.stack([torch.zeros(()), torch.zeros(()), torch.zeros(()), last[1]])
    assert torch.equal(targets[at_the_end][0, 2:], still.expand(14, 4))


@pytest.mark.parametrize(
    "kwargs",
    [{"control_mode": "pd_joint_pos"}, {"controller_configs": {"control_delta": False}}, {"c": [{"input_type": "absolute"}]}],
)
def test_positions_are_not_held_by_zeros(kwargs: dict[str, object]) -> None:
    made = replace(made_demonstrations(torch.rand(9, 4)), env=EnvInfo("made", kwargs))
    with pytest.raises(ConfigError, match=r"agent.pad=hold: actions of these demonstrations are positions.*set agent.pad=mask"):
        make("diffusion").fit_normalizer_(made)
    with pytest.raises(ConfigError, match=r"agent.pad=hold: .*set agent.pad=mask"):
        make("act", pad="hold").fit_normalizer_(made)
    make("diffusion", pad="mask").fit_normalizer_(made)
    for mode in ("pd_ee_delta_pose", "pd_joint_vel"):
        make("diffusion").fit_normalizer_(replace(made, env=EnvInfo("made", {"control_mode": mode})))


def test_residual_begins_as_its_base(tmp_path: Path) -> None:
    agent = make("residual", home=tmp_path)
    policy: Residual = agent.policy
    batch = padded_batch(agent)
    loss, metrics = policy.loss(batch, torch.Generator().manual_seed(5))
    begin = batch.mask.int().argmax(1)
    assert begin.tolist() == [0, 1, 2, 3, 0, 1]
    base = policy.base.plans(batch.obs, BatchNoise(6, torch.Generator().manual_seed(5), torch.device("cpu")), begin)
    errors = [
        (base[b, i, j] - batch.actions[b, i + j]).square().mean()
        for b in range(6)
        for i in range(4)
        for j in range(3)
        if batch.mask[b, i] and batch.mask[b, i + j]
    ]
    torch.testing.assert_close(loss, torch.stack(errors).mean())
    assert torch.equal(loss, metrics["base_loss"])
    with torch.no_grad():
        policy.net[-1].bias.fill_(0.2)
    obs = observations(2, 5)
    own, plain = rolled(agent.actor(2, seed=3), obs), rolled(policy.base.check().actor(2, seed=3), obs)
    torch.testing.assert_close(own, (plain + math.tanh(0.2)).clamp(-1, 1))


def test_averaged_weights_see_images_without_the_statistics_of_others(caplog: pytest.LogCaptureFixture) -> None:
    spec = task_spec("test/images", {"camera": (3, 48, 48)}, 4, episode_steps=10, control_dt_s=0.05)
    policy = make("diffusion", spec=spec).policy
    kinds = {type(module).__name__ for module in policy.observer.modules()}
    assert "GroupNorm" in kinds and "BatchNorm2d" not in kinds and not caplog.records
    assert "BatchNorm2d" in {type(module).__name__ for module in make("bc", spec=spec).policy.observer.modules()}
    assert not caplog.records
    make("bc", spec=spec, training={"ema": 0.99}), make("diffusion", spec=spec, encoder={"norm": "batch"})
    assert len(caplog.records) == 2 and "set agent.encoder.norm=group" in caplog.text
    make("bc", spec=spec, training={"ema": 0.99}, encoder={"norm": "group"})
    assert len(caplog.records) == 2


@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_residual_corrects_what_its_base_does_in_an_episode(window: int, tmp_path: Path) -> None:
    """A base that tells its oldest and newest observation: no step counts at which it saw others than while acting."""
    folder = base_run(tmp_path, "diffusion", window=window, execute=1)
    agent = make("residual", base="diffusion", base_checkpoint=str(folder), window=4, horizon=1)
    agent.policy.base.read_()
    base, shape = agent.policy.base.check(), agent.windows
    base.chunk = lambda obs, noise: (obs["eef_pos"][:, -1, :1] + 3 * obs["eef_pos"][:, 0, :1])[:, None].expand(-1, 2, 4)
    position = torch.linspace(-0.2, 0.2, 9) ** 2 * 5
    before = position[(torch.arange(9) - window + 1).clamp_min(0)]
    made = made_demonstrations((position + 3 * before)[:, None].expand(-1, 4).contiguous())
    made.low_dim["eef_pos"].copy_(position[:, None].expand(-1, 3))

    def base_loss(demonstrated: Demonstrations) -> float:
        windows = demonstrated.windows(shape.window, shape.horizon, pad_before=shape.pad_before, pad_after=shape.pad_after)
        return float(agent.policy.loss(windows.gather(torch.arange(len(windows))))[1]["base_loss"])

    assert base_loss(made) < 1e-12
    for step in range(9):  # all of them count
        other = made.actions.clone()
        other[step] += 0.1
        assert base_loss(replace(made, actions=other)) > 1e-4, step


def test_a_residual_window_holds_what_its_base_looks_at(tmp_path: Path) -> None:
    folder = base_run(tmp_path, "diffusion", window=3, execute=1)
    agent = make("residual", base="diffusion", base_checkpoint=str(folder), window=2, horizon=1)
    with pytest.raises(ConfigError, match=r"agent\.window=2: diffusion looks at 3 observations; take at least as many"):
        agent.policy.fit_normalizer_(made_demonstrations(torch.zeros(9, 4)))


def test_leto_limits_training_by_the_demonstrated_action() -> None:
    agent = make("leto", previous_in_training=True, limits={"acceleration": 0.05})
    policy: Leto = agent.policy
    batch = random_batch(agent)
    with torch.no_grad():
        y, info = policy.predict(batch.obs, None, batch.actions[:, :3])
        free, _ = policy.predict(batch.obs)
        loss, _ = policy.loss(batch)
    jump = (y[:, 1:, 0, :3] - batch.actions[:, :3, :3]).abs()
    assert bool(info.certified.all()) and 0.05 - 1e-6 < float(jump.max()) <= 0.05 + 1e-6
    torch.testing.assert_close(y[:, 0], free[:, 0])
    for b in range(6):  # one sample at a time, in the order of the batch
        e, _ = policy({key: x[b : b + 1] for key, x in batch.obs.items()})
        for i in range(1, 4):
            alone, _ = policy.head(e[:, i], None, batch.actions[b, i - 1 : i])
            torch.testing.assert_close(y[b, i], alone[0])
    torch.testing.assert_close(loss, (y - batch.actions.unfold(1, 3, 1).mT).square().mean())


def test_leto_s_dense_factor() -> None:
    dense, triangular = (make("leto", head_triangular=flag, init="uniform") for flag in (False, True))
    assert torch.equal(dense.policy.head.hessian(), triangular.policy.head.hessian())
    batch = random_batch(dense)
    for agent, trained in ((dense, True), (triangular, False)):
        agent.update(batch, 0)
        above = agent.policy.head.L.detach().triu(1)
        assert bool((above != 0).any()) == trained
    factor = dense.policy.head.L.detach().double()
    smooth = dense.policy.head.constraints.difference @ dense.policy.head.constraints.selection
    expected = factor @ factor.mT + 1e-4 * torch.eye(12).double() + smooth.mT @ smooth
    torch.testing.assert_close(dense.policy.head.hessian().detach(), expected)


def test_leto_sees_images() -> None:
    shapes = {"agentview": (3, 48, 44), "eef_pos": (3,)}
    spec = task_spec("test/images", shapes, 4, episode_steps=10, control_dt_s=0.05)
    agent = make("leto", spec=spec, training={"learning_rate": 1e-4}, encoder={"crop": 40, "keypoints": 4, "features": 5})
    batch = random_batch(agent, 2, spec=spec)
    batch = replace(batch, obs=batch.obs | {"agentview": torch.randint(0, 256, (2, 4, 3, 48, 44), dtype=torch.uint8)})
    agent.policy.train()
    first, again, other = (agent.policy.loss(batch, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)  # random crops are the generator's
    agent.update(batch, 0)
    agent.policy.eval()
    assert torch.equal(*(agent.policy.loss(batch, torch.Generator().manual_seed(seed))[0] for seed in (1, 2)))
    actions = rolled(agent.actor(2, seed=0), batch.obs)
    with torch.no_grad():
        y, _ = agent.policy.predict(batch.obs)
    torch.testing.assert_close(actions[:, 0, 3], y[:, 0, 0, 3].clamp(-1, 1), rtol=1e-4, atol=1e-5)
    assert SPEC.action_dim == 4
