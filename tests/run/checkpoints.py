"""What the tests of checkpoints share."""

import torch

from difftop.data.replay import Episode, ReplayBuffer
from difftop.run.checkpoint import save_checkpoint
from difftop.types import EnvSpec, ObsSpec

SPEC = EnvSpec("test/state", {"state": ObsSpec("vector", (3,))}, 2, 12, 0.02)


def new_replay(capacity=60):
    return ReplayBuffer(SPEC, capacity=capacity, horizon=3, prioritized=True)


def add_episode(replay, number):
    """Episode `number` is a function of `number`."""
    generator = torch.Generator().manual_seed(number)
    replay.add(
        Episode(
            obs=torch.randn(13, 3, generator=generator),
            action=torch.rand(12, 2, generator=generator),
            reward=torch.randn(12, generator=generator),
            terminated=torch.zeros(12, dtype=torch.bool),
        )
    )
    index = replay.sample(8, generator).index
    replay.update_priorities(index, torch.rand(8, generator=generator))


def save(folder, step, replay=None, **changes):
    """The model and the state are functions of `step`."""
    options = {"agent_name": "tdmpc", "config": {"a": 1}, "spec": SPEC, "model": {"w": torch.full((4, 3), float(step))}}
    return save_checkpoint(folder, step=step, train_state={"step": step}, replay=replay, **(options | changes))


def assert_same_from_now_on(a, b):
    for number in range(1000, 1004):
        batches = [replay.sample(32, torch.Generator().manual_seed(number)) for replay in (a, b)]
        for name in ("obs", "action", "reward", "terminated", "weight", "index"):
            assert torch.equal(*(getattr(batch, name) for batch in batches))
        for replay in (a, b):
            add_episode(replay, number)
