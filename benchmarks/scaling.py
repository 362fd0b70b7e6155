"""How many actors one learner can use: frames taken in against updates made, and when the replay is what limits them.

    python benchmarks/scaling.py [--quick] [--json PATH]

Actors are simulated: processes that send whole episodes over TCP, on this machine, as fast as they are taken. The learner is
real: between two updates it takes the episodes that `run.updates_per_step` allows, adds them to its prioritized replay, samples a
batch, updates the agent (TD-MPC, preset=cpu), and sets the priorities. One thread; all times are CPU time of one process, which
another program on the machine changes little. Rows without an agent show where replay and network alone would end, however fast
the updates.
"""

from __future__ import annotations

import math
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agents.registry import make_agent
from benchmarks.command import parse, save
from difftop.data.replay import Episode, ReplayBuffer
from difftop.types import Batch, EnvSpec, ObsSpec
from envs import EnvConfig, make_vector_env

STATE = EnvSpec(
    "dmc/cheetah-run", {"state": ObsSpec("vector", (17,))}, action_dim=6, episode_steps=250, control_dt_s=0.04, action_repeat=4
)
PIXELS = EnvSpec(
    "dmc/cheetah-run",
    {"pixels": ObsSpec("image", (9, 84, 84))},
    action_dim=6,
    episode_steps=250,
    control_dt_s=0.04,
    action_repeat=4,
    frame_stack=3,
)
BATCH, HORIZON, ACTORS, CAPACITY = 256, 5, 4, 20_000
AGENT = {"name": "tdmpc", "model": {"mlp_dim": 256}}
RATIOS = (1.0, 1 / 4, 1 / 16, 1 / 64)  # updates per agent step
PHASES = ("receive", "add", "sample", "update", "priorities")


def encoded(spec: EnvSpec) -> bytes:
    """An episode of noise, as it travels; of stacked frames, each once."""
    rng, steps = np.random.default_rng(0), spec.episode_steps
    seen = spec.obs[spec.only_key]
    shape = (steps + 1, seen.shape[0] // spec.frame_stack, *seen.shape[1:])
    obs = rng.integers(0, 256, shape, np.uint8) if seen.kind == "image" else rng.standard_normal(shape, np.float32)
    action = rng.uniform(-1, 1, (steps, spec.action_dim)).astype(np.float32)
    parts = {"obs": obs, "action": action, "reward": rng.random(steps, np.float32), "terminated": np.zeros(steps, bool)}
    return pickle.dumps(parts, protocol=5)


def send(address: Any, message: bytes) -> None:
    """An actor: the same episode again and again, until the learner is gone."""
    try:
        with Client(address) as learner:
            while True:
                learner.send_bytes(message)
    except OSError:
        return


@contextmanager
def actors(count: int, message: bytes) -> Iterator[list[Connection]]:
    """Connections on which episodes arrive."""
    context = get_context("fork")  # they need nothing that a fork of torch would break
    with Listener(("127.0.0.1", 0)) as listener, ExitStack() as ends:
        senders = [context.Process(target=send, args=(listener.address, message), daemon=True) for _ in range(count)]
        for sender in senders:
            sender.start()
            ends.callback(sender.terminate)
        yield [ends.enter_context(listener.accept()) for _ in senders]


class Learner:
    """What a learner does, each part timed on its own."""

    def __init__(self, spec: EnvSpec, agent: Any | None) -> None:
        self.agent = agent
        self.replay = ReplayBuffer(spec, capacity=CAPACITY, horizon=HORIZON, prioritized=True)
        self.generator = torch.Generator().manual_seed(0)
        self.spent = dict.fromkeys(PHASES, 0.0)

    def take(self, actor: Connection) -> None:
        """An episode from an actor into the replay."""
        parts = self._timed("receive", lambda: pickle.loads(actor.recv_bytes()))
        episode = Episode(**{name: torch.from_numpy(array.copy()) for name, array in parts.items()})
        self._timed("add", lambda: self.replay.add(episode))

    def update(self, number: int) -> None:
        """A gradient step on a batch of the replay; without an agent, random priorities stand for its own."""
        batch: Batch = self._timed("sample", lambda: self.replay.sample(BATCH, self.generator))
        priorities = torch.rand(BATCH, generator=self.generator)
        if self.agent is not None:
            result = self._timed("update", lambda: self.agent.update(batch, 50_000 + number))
            priorities = result.priorities if result.priorities is not None else priorities
        self._timed("priorities", lambda: self.replay.update_priorities(batch.index, priorities))

    def _timed(self, phase: str, work: Callable[[], Any]) -> Any:
        begun = time.process_time()
        result = work()
        self.spent[phase] += time.process_time() - begun
        return result


def fed(spec: EnvSpec, agent: Any | None, ratio: float, updates: int) -> dict[str, float]:
    """A learner that makes `ratio` updates per agent step: rates per second of its CPU time, and where the time went."""
    message, learner, owed, episodes = encoded(spec), Learner(spec, agent), 0.0, 0
    with actors(ACTORS, message) as connections:
        for connection in connections:
            learner.take(connection)
        learner.update(0)  # the first is slower
        learner.spent = dict.fromkeys(PHASES, 0.0)
        for number in range(updates):
            owed += 1 / ratio
            while owed >= spec.episode_steps:
                learner.take(connections[episodes % ACTORS])
                owed -= spec.episode_steps
                episodes += 1
            learner.update(number + 1)
    total, steps = sum(learner.spent.values()), episodes * spec.episode_steps
    rates = {"updates_per_s": updates / total, "steps_per_s": steps / total, "mb_per_s": episodes * len(message) / total / 1e6}
    return rates | {f"share_{phase}": spent / total for phase, spent in learner.spent.items()}


def acting(steps: int) -> dict[str, float]:
    """Agent steps per second of CPU time of one actor on cheetah-run, by a plan and by the policy alone, simulator included."""
    found = {}
    envs = make_vector_env(EnvConfig(name="dmc/cheetah-run"), 1, False)
    try:
        for planner in ("auto", "none"):
            acting = {} if planner == "auto" else {"acting": {"planner": planner}}
            actor = make_agent(AGENT | acting, STATE, seed=0).actor(1, seed=0, explore=True)
            obs = envs.reset_at(0, 0)["state"]
            actor.begin(0, 0)
            begun = time.process_time()
            for step in range(steps):
                action = actor.act({"state": torch.from_numpy(obs[None])}, torch.tensor([step == 0]), 50_000)
                obs = envs.step_at(0, action[0].numpy())[0]["state"]
            found[planner] = steps / (time.process_time() - begun)
    finally:
        envs.close()
    return found


def main() -> None:
    """Prints the tables; writes `{measure: value}` with --json."""
    options = parse(__doc__)
    steps, ratios = (20, RATIOS[-1:]) if options.quick else (60, RATIOS)
    measures = {f"actor_steps_per_s/{planner}": rate for planner, rate in acting(steps).items()}
    for name, rate in measures.items():
        print(f"{name:32s}{rate:10.1f}")
    agent = make_agent(AGENT, STATE, seed=0)
    weights = sum(p.numel() * p.element_size() for p in agent.model.state_dict().values())
    sizes = {"kb_per_step/state": len(encoded(STATE)) / 250e3, "kb_per_step/pixels": len(encoded(PIXELS)) / 250e3}
    sizes |= {"mb_of_weights": weights / 1e6}
    for name, size in sizes.items():
        print(f"{name:32s}{size:10.3f}")
    print(f"\n{'learner':22s}{'updates/step':>13s}{'updates/s':>11s}{'steps/s':>10s}{'MB/s':>8s}  share of {', '.join(PHASES)}")
    learners = {"tdmpc, state": (STATE, agent), "replay alone, state": (STATE, None), "replay alone, pixels": (PIXELS, None)}
    for label, (spec, learns) in learners.items():
        for ratio in ratios:
            longer = 4 if label == "replay alone, state" else 1
            updates = math.ceil(longer * STATE.episode_steps * ratio**0.5)  # of 1, 2, 4, 8 episodes, or four times these
            found = fed(spec, learns, ratio, updates)
            shares = " ".join(f"{found[f'share_{phase}']:5.0%}" for phase in PHASES)
            rates = f"{found['updates_per_s']:11.1f}{found['steps_per_s']:10.0f}{found['mb_per_s']:8.2f}"
            print(f"{label:22s}{ratio:13.4g}{rates}  {shares}", flush=True)
            measures |= {f"{label}/{ratio:g}/{key}": value for key, value in found.items()}
    save(measures | sizes, options.json)


if __name__ == "__main__":
    main()
