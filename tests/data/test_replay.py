"""The replay buffer against a list of whole episodes: which slices exist, what they hold, how often they are drawn."""

import itertools
import math
import random

import pytest
import torch

from difftop.data.replay import Episode, ReplayBuffer
from difftop.types import EnvSpec, ObsSpec


def state_spec(episode_steps=12, obs=3, action=2):
    return EnvSpec("test/state", {"state": ObsSpec("vector", (obs,))}, action, episode_steps, 0.02)


def pixel_spec(stack=3, episode_steps=12):
    return EnvSpec("test/pixels", {"pixels": ObsSpec("image", (2 * stack, 4, 5))}, 1, episode_steps, 0.02, 1, stack)


class Oracle:
    """Brute force: every row ever added, in a list, and the rules of the module's docstring."""

    def __init__(self, replay):
        self.replay, self.rows = replay, []

    def add(self, length, generator, terminated=False):
        replay, spec = self.replay, self.replay.spec
        if replay.frame_dtype == torch.uint8:
            obs = torch.randint(0, 256, (length + 1, *replay.frame_shape), generator=generator, dtype=torch.uint8)
        else:
            obs = torch.randn(length + 1, *replay.frame_shape, generator=generator)
        action = torch.rand(length, spec.action_dim, generator=generator) * 2 - 1
        reward = torch.randn(length, generator=generator)
        ends = torch.zeros(length, dtype=torch.bool)
        ends[-1] = terminated
        replay.add(Episode(obs, action, reward, ends))
        number = self.rows[-1][0] + 1 if self.rows else 0
        for t in range(length):
            self.rows.append((number, t, obs[t], action[t], reward[t], ends[t]))
        self.rows.append((number, length, obs[length], None, None, None))

    def alive(self, row):
        return row >= len(self.rows) - self.replay.num_rows

    def starts(self):
        found = set()
        for s, row in enumerate(self.rows[: max(0, len(self.rows) - self.replay.horizon)]):
            needed = [max(s - back, s - row[1]) for back in range(self.replay.spec.frame_stack)] + [s + self.replay.horizon]
            if self.rows[needed[-1]][0] == row[0] and all(self.alive(r) for r in needed):
                found.add(s)
        return found

    def stacked(self, row):
        first = row - self.rows[row][1]
        return torch.cat([self.rows[max(row - back, first)][2] for back in reversed(range(self.replay.spec.frame_stack))])

    def transitions(self):
        return sum(self.alive(r) and row[3] is not None for r, row in enumerate(self.rows))

    def check(self, batch):
        horizon, seen = self.replay.horizon, set()
        for i, start in enumerate(batch.index.tolist()):
            if start in seen:
                continue
            seen.add(start)
            rows = self.rows[start : start + horizon]
            assert torch.equal(batch.obs[i], torch.stack([self.stacked(start + t) for t in range(horizon + 1)]))
            assert torch.equal(batch.action[i], torch.stack([row[3] for row in rows]))
            assert torch.equal(batch.reward[i], torch.stack([row[4] for row in rows]))
            assert torch.equal(batch.terminated[i], torch.stack([row[5] for row in rows]))


@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize(
    "spec, horizon", [(state_spec(), 1), (state_spec(), 4), (pixel_spec(3), 3), (pixel_spec(1), 2), (pixel_spec(4), 1)]
)
def test_slices_and_reachable_starts_equal_the_oracle(spec, horizon, prioritized):
    lengths, generator = random.Random(0), torch.Generator().manual_seed(0)
    replay = ReplayBuffer(spec, capacity=40, horizon=horizon, prioritized=prioritized)
    oracle = Oracle(replay)
    for episode in range(60):  # about ten times around the ring
        oracle.add(lengths.choice([1, 2, 3, 5, 8, 12, 12, 20]), generator, terminated=episode % 3 == 0)
        expected = oracle.starts()
        assert replay.num_starts == len(expected)
        assert len(replay) == oracle.transitions()
        if not expected:
            continue
        batch = replay.sample(600, generator)
        oracle.check(batch)
        assert set(batch.index.tolist()) == expected
        if prioritized:
            replay.update_priorities(batch.index, torch.rand(600, generator=generator) + 0.5)
    assert oracle.rows and not oracle.alive(0)


def test_every_capacity_and_length_fits_its_edge():
    """Episodes that end exactly at, just before and just after the ring's end."""
    for capacity in range(12, 27):
        generator = torch.Generator().manual_seed(capacity)
        oracle = Oracle(ReplayBuffer(pixel_spec(2), capacity=capacity, horizon=2))
        for length in [12, 1, 11, 12, 2, 3, 10]:
            oracle.add(length, generator)
            batch = oracle.replay.sample(200, generator)
            oracle.check(batch)
            assert set(batch.index.tolist()) == oracle.starts()


def test_storage_grows_from_small_without_losing_rows():
    generator = torch.Generator().manual_seed(0)
    replay = ReplayBuffer(state_spec(episode_steps=500), capacity=10_000, horizon=3)
    before, oracle = replay.nbytes, Oracle(replay)
    for _ in range(25):
        oracle.add(500, generator)
        oracle.check(replay.sample(20, generator))
    assert replay.nbytes > 2 * before
    assert len(replay) == oracle.transitions() == 10_000


def test_uniform_sampling_is_uniform():
    generator = torch.Generator().manual_seed(0)
    oracle = Oracle(ReplayBuffer(state_spec(), capacity=60, horizon=3))
    for length in [12, 5, 12, 9, 12, 12]:
        oracle.add(length, generator)
    starts, draws = sorted(oracle.starts()), 200_000
    batch = oracle.replay.sample(draws, generator)
    counts = torch.bincount(batch.index, minlength=len(oracle.rows))[starts].double()
    expected = draws / len(starts)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < (len(starts) - 1) + 5 * math.sqrt(2 * (len(starts) - 1))
    assert torch.equal(batch.weight, torch.ones(draws))


@pytest.mark.parametrize("uniform", [0.0, 0.25, 1.0])
def test_prioritized_sampling_has_the_documented_distribution_and_weights(uniform):
    generator = torch.Generator().manual_seed(0)
    replay = ReplayBuffer(state_spec(), capacity=60, horizon=3, prioritized=True, alpha=0.6, beta=0.4)
    oracle = Oracle(replay)
    for length in [12, 5, 12, 9, 12, 12, 12]:
        oracle.add(length, generator)
    starts = torch.tensor(sorted(oracle.starts()))
    priority = torch.rand(len(starts), generator=generator, dtype=torch.float64) * 3
    priority[::5] = 0.0
    replay.update_priorities(starts, priority)
    share = (priority + 1e-6) ** 0.6
    share = uniform / len(starts) + (1 - uniform) * share / share.sum()
    draws = 400_000
    batch = replay.sample(draws, generator, uniform=uniform)
    counts = torch.bincount(batch.index, minlength=len(oracle.rows))[starts].double()
    common = share * draws > 5
    chi_square = float(((counts - share * draws) ** 2 / (share * draws))[common].sum())
    assert chi_square < int(common.sum()) + 5 * math.sqrt(2 * int(common.sum()))
    position = torch.searchsorted(starts, batch.index)
    weight = (len(starts) * share[position]) ** -0.4
    torch.testing.assert_close(batch.weight.double(), weight / weight.max(), rtol=1e-5, atol=0)
    annealed = replay.sample(100, generator, beta=1.0, uniform=uniform)
    weight = 1 / share[torch.searchsorted(starts, annealed.index)]
    torch.testing.assert_close(annealed.weight.double(), weight / weight.max(), rtol=1e-5, atol=0)


def test_new_episodes_take_the_largest_priority():
    generator = torch.Generator().manual_seed(0)
    replay = ReplayBuffer(state_spec(), capacity=100, horizon=3, prioritized=True, alpha=1.0)
    oracle = Oracle(replay)
    oracle.add(5, generator)
    replay.update_priorities(torch.tensor([0, 1, 2]), torch.tensor([1.0, 4.0, 2.0]))
    oracle.add(4, generator)  # rows 6..10, starts 6 and 7
    index = replay.sample(110_000, generator).index
    shares = torch.bincount(index).double()[[0, 1, 2, 6, 7]] / 110_000
    torch.testing.assert_close(shares, torch.tensor([1.0, 4, 2, 4, 4]).double() / 15, rtol=0, atol=0.006)


def test_priorities_of_dropped_rows_are_ignored_and_equal_starts_take_the_largest():
    generator = torch.Generator().manual_seed(0)
    replay = ReplayBuffer(state_spec(), capacity=24, horizon=3, prioritized=True, alpha=1.0)
    oracle = Oracle(replay)
    for _ in range(2):
        oracle.add(12, generator)
    stale = replay.sample(50, generator).index
    for _ in range(2):
        oracle.add(12, generator)
    before = replay.state_dict()["priorities"]
    replay.update_priorities(stale, torch.full((50,), 100.0))
    assert torch.equal(replay.state_dict()["priorities"], before)
    start = max(oracle.starts())
    for order in ([3.0, 5.0], [5.0, 3.0]):
        replay.update_priorities(torch.tensor([start, start]), torch.tensor(order))
        assert float(replay.state_dict()["priorities"][start - replay.begin]) == 5.0 + 1e-6


def test_same_generator_same_batches():
    batches = []
    for _ in range(2):
        replay = ReplayBuffer(state_spec(), capacity=60, horizon=3, prioritized=True)
        oracle = Oracle(replay)
        for length in (12, 7, 12, 12):
            oracle.add(length, torch.Generator().manual_seed(length))
        batches.append(replay.sample(64, torch.Generator().manual_seed(1)))
    for name in ("obs", "action", "reward", "terminated", "weight", "index"):
        assert torch.equal(getattr(batches[0], name), getattr(batches[1], name))


@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("episodes", [0, 1, 3, 4, 9, 30])
def test_restored_buffer_goes_on_bit_for_bit(episodes, prioritized):
    def new():
        return ReplayBuffer(pixel_spec(3), capacity=40, horizon=3, prioritized=prioritized)

    replay, lengths = new(), random.Random(1)
    oracle, generator = Oracle(replay), torch.Generator().manual_seed(0)
    for _ in range(episodes):
        oracle.add(lengths.choice([1, 4, 12]), generator)
        if replay.num_starts:
            replay.update_priorities(replay.sample(20, generator).index, torch.rand(20, generator=generator))
    bounds = [replay.begin, (replay.begin + replay.end) // 2, replay.end]
    blocks = [(a, replay.read_rows(a, b)) for a, b in itertools.pairwise(bounds) if a < b]
    restored = new()
    restored.load_state_dict(replay.state_dict(), blocks)
    twin = Oracle(restored)
    twin.rows = list(oracle.rows)
    for step in range(8):
        if step or not oracle.starts():
            for one in (oracle, twin):
                one.add(12, torch.Generator().manual_seed(step))
        a, b = (one.replay.sample(40, torch.Generator().manual_seed(step)) for one in (oracle, twin))
        for name in ("obs", "action", "reward", "terminated", "weight", "index"):
            assert torch.equal(getattr(a, name), getattr(b, name))
        for one, batch in ((oracle, a), (twin, b)):
            one.replay.update_priorities(batch.index, batch.reward[:, 0].abs())
        assert len(replay) == len(restored) and replay.num_episodes == restored.num_episodes


def episode(length=6, **changes):
    fields = {
        "obs": torch.zeros(length + 1, 3),
        "action": torch.zeros(length, 2),
        "reward": torch.zeros(length),
        "terminated": torch.zeros(length, dtype=torch.bool),
    }
    return Episode(**(fields | changes))


def with_value(tensor, at, value):
    tensor[at] = value
    return tensor


@pytest.mark.parametrize(
    "bad, message",
    [
        (episode(obs=torch.zeros(6, 3)), r"episode.obs is torch.float32 \(6, 3\) but test/state needs torch.float32 \(7, 3\)"),
        (episode(obs=torch.zeros(7, 3).double()), "episode.obs is torch.float64"),
        (episode(action=torch.zeros(6, 3)), "episode.action is"),
        (episode(terminated=torch.zeros(6)), "episode.terminated is torch.float32"),
        (episode(obs=with_value(torch.zeros(7, 3), (4, 1), math.nan)), "episode.obs is not finite at step 4 of 6"),
        (episode(reward=with_value(torch.zeros(6), 2, math.inf)), "episode.reward is not finite at step 2 of 6"),
        (episode(action=with_value(torch.zeros(6, 2), (3, 0), 1.5)), r"episode.action at step 3 is \[1.5, 0.0\]"),
        (episode(terminated=with_value(torch.zeros(6, dtype=torch.bool), 1, True)), "terminated is True at step 1"),
        (episode(length=0), "at least 1 transition"),
        (episode(length=30), "doesn't fit a replay"),
    ],
)
def test_bad_episodes_are_refused_and_leave_the_buffer_as_it_was(bad, message):
    replay = ReplayBuffer(state_spec(), capacity=24, horizon=3)
    replay.add(episode())
    with pytest.raises(ValueError, match=message):
        replay.add(bad)
    assert (len(replay), replay.end) == (6, 7)


def test_bad_calls_say_what_is_wrong():
    with pytest.raises(ValueError, match="capacity=11 can't hold one episode of test/state"):
        ReplayBuffer(state_spec(), capacity=11, horizon=3)
    with pytest.raises(ValueError, match="horizon=0"):
        ReplayBuffer(state_spec(), capacity=24, horizon=0)
    replay = ReplayBuffer(state_spec(), capacity=24, horizon=3, prioritized=True)
    replay.add(episode(length=2))
    assert (len(replay), replay.num_starts) == (2, 0)
    with pytest.raises(ValueError, match="no slice of 3 transitions yet"):
        replay.sample(1, torch.Generator())
    replay.add(episode())
    for wrong in (math.nan, math.inf, -1.0):
        with pytest.raises(ValueError, match=r"priority .* of sample 1"):
            replay.update_priorities(torch.tensor([3, 4]), torch.tensor([1.0, wrong]))


@pytest.mark.parametrize("change", [{"capacity": 36}, {"horizon": 2}, {"prioritized": False}])
def test_restoring_into_another_layout_is_refused(change):
    options = {"capacity": 24, "horizon": 3, "prioritized": True}
    replay = ReplayBuffer(state_spec(), **options)
    replay.add(episode())
    with pytest.raises(ValueError, match="resume with the same"):
        ReplayBuffer(state_spec(), **(options | change)).load_state_dict(replay.state_dict(), [(0, replay.read_rows(0, 7))])
    with pytest.raises(ValueError, match=r"lacks rows 5\.\.7"):
        ReplayBuffer(state_spec(), **options).load_state_dict(replay.state_dict(), [(0, replay.read_rows(0, 5))])


def test_where_nothing_is_read_a_bad_priority_changes_nothing():
    replay = ReplayBuffer(state_spec(), capacity=20, horizon=2, prioritized=True)
    replay.add(episode())
    replay._reads = False  # as on a GPU
    replay.update_priorities(torch.tensor([0, 1, 2]), torch.tensor([torch.nan, -1.0, 5.0]))
    weights = replay.state_dict()["priorities"][:3]
    assert weights[:2].tolist() == [1.0, 1.0] and weights[2] > 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("prioritized", [False, True])
def test_a_buffer_on_the_gpu_gives_the_batches_of_one_on_the_cpu(prioritized):
    oracles = [
        Oracle(ReplayBuffer(pixel_spec(3), capacity=40, horizon=3, prioritized=prioritized, device=d)) for d in ("cpu", "cuda")
    ]
    for step, length in enumerate([12, 3, 1, 12, 12, 7, 12, 12]):
        for oracle in oracles:
            oracle.add(length, torch.Generator().manual_seed(step))
        a, b = (oracle.replay.sample(64, torch.Generator().manual_seed(step)) for oracle in oracles)
        assert b.obs.is_cuda and torch.equal(a.index, b.index.cpu()) and torch.equal(a.obs, b.obs.cpu())
        torch.testing.assert_close(a.weight, b.weight.cpu())
        for oracle, batch in zip(oracles, (a, b), strict=True):
            oracle.replay.update_priorities(batch.index, batch.reward[:, 0].abs())
