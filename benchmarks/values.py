"""What a setting makes of values, in minutes: an agent goes on learning from a finished run's replay, and nothing is played.

    python benchmarks/values.py RUN [--updates 6000] [--try agent.loss.n_step=3 agent.discount=0.97 ...]

RUN is a run of an agent with a latent model, with its replay. From its last checkpoint it learns on, as it was and with each
change that is tried (several at once: joined by commas). Values, min_j Q_j(z, pi(z)), are told of two kinds of replayed states:
those after which no reward came in their episode, and the others; and beside them the discounted return that came. An agent that
has not learned the task can't know of more than came, but for luck: values far above it, in states from which nothing follows,
are overrated, and so are values above the largest reward / (1 - gamma).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agents.registry import make_agent
from difftop.data.replay import ReplayBuffer
from difftop.diagnose.measures import discounted_returns
from difftop.run.checkpoint import Checkpoint, CheckpointError, load_checkpoint, restore_replay
from difftop.run.diagnose import merged
from difftop.run.online import Counters

STATES = 2_000  # whose values are told
PARTS = 4  # values are told so often on the way


@dataclass(frozen=True)
class States:
    """Replayed observations `[N, *shape]`, and the discounted return that came after each `[N]`."""

    obs: Tensor
    followed: Tensor

    @property
    def barren(self) -> Tensor:
        """After which nothing came."""
        return self.followed == 0


def states_of(replay: ReplayBuffer, discount: float, count: int) -> States:
    """Some of the replay's states, the same ones for each setting."""
    rows = replay.read_rows(replay.begin, replay.end)
    first = (rows["offset"] == 0).nonzero().flatten().tolist()
    ends = [*first[1:], len(rows["offset"])]
    followed = torch.full((len(rows["reward"]),), torch.nan)
    for begin, end in zip(first, ends, strict=True):
        followed[begin : end - 1] = discounted_returns(rows["reward"][begin : end - 1], discount)  # the last row is an end
    known = followed.isfinite().nonzero().flatten()
    chosen = known[torch.randint(len(known), (count,), generator=torch.Generator().manual_seed(0))]
    return States(rows["obs"][chosen], followed[chosen])


def learned(
    saved: Checkpoint, changes: Mapping[str, Any], updates: int, parts: int = PARTS
) -> Iterator[tuple[int, Tensor, States]]:
    """Goes on from a checkpoint with other options, rewards as rare as they were then; gives values of the states `[N]` after 0,
    1 / parts, .. of the updates.
    """
    options = merged(saved.config["agent"], changes)
    agent = make_agent(options, saved.spec, seed=0)
    agent.load_state_dict(saved.model)
    run, rare = saved.config["run"], Counters(**saved.train_state["run"]["count"]).rare
    agent.world.set_rare(rare)
    evenly = 1 - rare if run.get("prioritized_while_rare") else 0.0
    replay = ReplayBuffer(
        saved.spec, capacity=run["capacity"], horizon=options["loss"]["horizon"], prioritized=run["prioritized"]
    )
    restore_replay(saved, replay)
    states, generator = states_of(replay, float(options["discount"]), STATES), torch.Generator().manual_seed(0)
    for done in range(updates + 1):
        if done % max(updates // parts, 1) == 0:
            with torch.no_grad():
                yield done, agent.latent_view().value(agent.model.encode(states.obs)), states
        if done < updates:
            batch = replay.sample(run["batch_size"], generator, uniform=evenly)
            result = agent.update(batch, saved.step)
            if result.priorities is not None and run["prioritized"]:
                replay.update_priorities(batch.index, result.priorities)


def parsed(words: str) -> dict[str, Any]:
    """`agent.loss.n_step=3,agent.discount=0.97` as nested options of the agent."""
    found: dict[str, Any] = {}
    for word in filter(None, words.split(",")):
        key, equals, value = word.partition("=")
        names = key.split(".")
        if not equals or names[0] != "agent" or len(names) < 2:
            raise SystemExit(f"--try {word}: must be an option of the agent and its value, such as agent.loss.n_step=3.")
        place = found
        for name in names[1:-1]:
            place = place.setdefault(name, {})
        place[names[-1]] = yaml.safe_load(value)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line for each setting; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="a run's folder, or one of its checkpoints")
    parser.add_argument("--updates", type=int, default=6_000, help="of each setting (6000)")
    parser.add_argument("--try", dest="tried", metavar="CHANGES", nargs="*", default=[], help="agent.option=value,..")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    changes = {words: parsed(words) for words in ("", *options.tried)}
    try:
        saved = load_checkpoint(Path(options.run))
        if "lm" not in saved.config["agent"].get("acting", {}):
            raise ValueError(f"{options.run}: agent={saved.agent_name} has no latent model; this is for agents that plan in one.")
        if saved.spec.frame_stack > 1:
            raise ValueError(f"{options.run}: it sees stacked frames; this is for runs from vectors.")
        for words, change in changes.items():
            began, told = time.process_time(), []
            for done, values, states in learned(saved, change, options.updates):
                barren, rich = (values[chosen].mean().item() for chosen in (states.barren, ~states.barren))
                told.append(f"{done:,}: {barren:.1f} {rich:.1f}")
            print(words or "as it was")
            print(f"    came after them   {0.0:.1f} {states.followed[~states.barren].mean().item():.1f}")
            print(f"    values after updates   {'   '.join(told)}   ({time.process_time() - began:.0f} s)", flush=True)
    except (CheckpointError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
