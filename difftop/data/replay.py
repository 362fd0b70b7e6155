"""Replay of episodes as fixed-length slices, uniform or prioritized, for states and stacked pixel frames.

Rows are numbered from 0 over the whole run, one row per observation: an episode of T transitions takes T + 1 rows, and row r
lives in slot r mod R of a ring of R rows. A slice of H transitions starts at row s if rows s .. s + H, and the frames that s
stacks, all belong to one episode and are all still in the ring.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from difftop.data.sum_tree import SumTree
from difftop.types import Batch, EnvSpec

_FIRST_ROWS = 1024  # rows allocated at first; storage doubles until the ring is whole
_PRIORITY_FLOOR = 1e-6  # keeps every start reachable


@dataclass(frozen=True)
class Episode:
    """One whole episode of T >= 1 transitions.

    Attributes:
        obs: `[T+1, *frame_shape]`: float32 states, or single uint8 frames (unstacked; the buffer stacks when it samples).
        action: `[T, A]` float32 in [-1, 1]; action t leads from obs t to obs t+1.
        reward: `[T]` float32.
        terminated: `[T]` bool; only the last may be True. An episode that the time limit truncated has none.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor


@dataclass(frozen=True)
class RowsFile:
    """A file that holds rows `begin <= r < end`; it is never changed once written."""

    name: str
    begin: int
    end: int
    bytes: int
    sha256: str


class ReplayBuffer:
    """The newest episodes of a run, sampled as slices of `horizon` transitions.

    Prioritized: a start of priority p is drawn with probability P = p^alpha / sum p^alpha and weighted by (N P)^-beta over the
    batch's largest such weight, which is (min P / P)^beta. New starts take the largest priority present (1 in an empty buffer).

    Args:
        spec: of the environment whose episodes are stored; it has one observation, a vector or an image.
        capacity: transitions kept, of episodes of `spec.episode_steps` (each episode takes one row more, which is added to the
            ring; if episodes end early there are more of them, and that many transitions fewer).
        horizon: H, transitions of a slice.
        prioritized: sample by priority instead of uniformly.
        alpha, beta: exponents of the priorities and of the importance weights.
        device: where rows are stored and batches are made.
    Raises:
        ValueError: the capacity can't hold one episode, the horizon is less than 1, or the spec has several observations.
    Attributes:
        files: where rows have been saved already, oldest first; kept up to date by `difftop.run.checkpoint`, which saves only
            new rows.
    Source: Prioritized experience replay, arXiv:1511.05952, eqs. 1 and 2.  Differs: starts are drawn independently, not one
        from each of B equal ranges.
    """

    def __init__(
        self,
        spec: EnvSpec,
        *,
        capacity: int,
        horizon: int,
        prioritized: bool = False,
        alpha: float = 0.6,
        beta: float = 0.4,
        device: torch.device | str = "cpu",
    ) -> None:
        if horizon < 1:
            raise ValueError(f"horizon={horizon}: a slice needs at least 1 transition.")
        if capacity < max(spec.episode_steps, horizon):
            raise ValueError(
                f"replay capacity={capacity} can't hold one episode of {spec.name} ({spec.episode_steps} transitions) "
                f"and one slice ({horizon}): raise the capacity."
            )
        self.spec, self.horizon, self.alpha, self.beta = spec, horizon, alpha, beta
        self.device = torch.device(device)
        self._reads = self.device.type == "cpu"  # numbers on the host; a GPU would be waited for
        self.num_rows = capacity + -(-capacity // spec.episode_steps)
        seen = spec.obs[spec.only_key]
        self.frame_shape = (seen.shape[0] // spec.frame_stack, *seen.shape[1:])
        self.frame_dtype = torch.uint8 if seen.kind == "image" else torch.float32
        self._columns: dict[str, Tensor] = self._allocate(min(_FIRST_ROWS, self.num_rows))
        self._tree = SumTree(self.num_rows, self.device) if prioritized else None
        self._starts = torch.zeros(self.num_rows, dtype=torch.int64, device=self.device)  # ring of valid start rows, oldest first
        self._starts_end = 0
        self._num_starts = 0
        self._episodes: deque[tuple[int, int]] = deque()  # (first row, last row), oldest first; only the oldest may be partial
        self._begin = 0
        self._end = 0
        self.files: tuple[RowsFile, ...] = ()

    def __len__(self) -> int:
        """Transitions stored."""
        return self._end - self._begin - len(self._episodes)

    @property
    def num_starts(self) -> int:
        """Slices that can be drawn."""
        return self._num_starts

    @property
    def num_episodes(self) -> int:
        """Episodes stored, the oldest perhaps in part."""
        return len(self._episodes)

    @property
    def begin(self) -> int:
        """Number of the oldest row stored."""
        return self._begin

    @property
    def end(self) -> int:
        """Number that the next row will get."""
        return self._end

    @property
    def nbytes(self) -> int:
        """Bytes allocated now."""
        tree = 0 if self._tree is None else self._tree.nbytes
        return sum(column.nbytes for column in self._columns.values()) + self._starts.nbytes + tree

    def add(self, episode: Episode) -> None:
        """Appends a whole episode and drops the oldest rows that it displaces.

        An episode shorter than the horizon is stored but gives no start.

        Raises:
            ValueError: a tensor has a wrong shape, dtype or value, or the episode is longer than the ring.
        """
        self._check(episode)
        length = len(episode.reward)
        begin, end = self._end, self._end + length + 1
        largest = self._tree.max() if self._tree is not None and self._num_starts else torch.ones((), device=self.device)
        self._grow(min(end, self.num_rows))
        self._drop_before(max(0, end - self.num_rows))
        slots = torch.arange(begin, end, device=self.device) % self.num_rows
        last = {name: torch.zeros_like(column[:1]) for name, column in self._columns.items()}
        self._columns["obs"][slots] = episode.obs.to(self.device)
        for name in ("action", "reward", "terminated"):
            self._columns[name][slots] = torch.cat([getattr(episode, name).to(self.device), last[name]])
        self._columns["offset"][slots] = torch.arange(length + 1, dtype=torch.int32, device=self.device)
        self._end = end
        self._episodes.append((begin, end - 1))
        starts = self._append_starts(begin, end - 1)
        if self._tree is not None and len(starts):
            self._tree.set(starts % self.num_rows, largest.expand(len(starts)))

    def sample(self, batch_size: int, generator: torch.Generator, beta: float | None = None, uniform: float = 0.0) -> Batch:
        """Draws slices, with replacement.

        Args:
            batch_size: B.
            generator: source of randomness, on any device.
            beta: exponent of the importance weights; None takes the buffer's own.
            uniform: share of the slices that are drawn uniformly all the same, in [0, 1]; weights are of both parts together.
        Returns:
            a batch on the buffer's device, T = horizon. Stacked frames are oldest first along the channels; their `obs` is a
            view into frames gathered once, so write to a copy.
        Raises:
            ValueError: there is no slice to draw yet.
        """
        if self._num_starts == 0:
            raise ValueError(
                f"replay has no slice of {self.horizon} transitions yet ({len(self)} transitions in {self.num_episodes} "
                "episodes): add an episode at least as long as the horizon before sampling."
            )
        evenly = batch_size if self._tree is None else round(uniform * batch_size)
        drawn = torch.randint(self._num_starts, (evenly,), generator=generator, device=generator.device).to(self.device)
        rows = self._starts[(self._starts_end - self._num_starts + drawn) % self.num_rows]
        if self._tree is None or evenly == batch_size:
            return self._slices(rows, torch.ones(batch_size, device=self.device))
        u = torch.rand(batch_size - evenly, generator=generator, device=generator.device, dtype=torch.float64).to(self.device)
        slots = torch.cat([rows % self.num_rows, self._tree.find(u)])
        rows = self._begin + (slots - self._begin) % self.num_rows
        part = evenly / batch_size
        share = part / self._num_starts + (1 - part) * self._tree.get(slots) / self._tree.total
        weight = ((share.min() / share) ** (self.beta if beta is None else beta)).float()
        return self._slices(rows, weight)

    def update_priorities(self, index: Tensor, priorities: Tensor) -> None:
        """Sets the priorities of sampled starts; starts dropped since are left alone, of equal starts the largest counts.

        Args:
            index: `Batch.index` `[B]`.
            priorities: `[B]`, nonnegative; 1e-6 is added.
        Raises:
            ValueError: a priority is negative or not finite; on a GPU, where nothing is read, such a one changes nothing.
        """
        if self._tree is None:
            return
        priorities = priorities.detach().to(self.device, torch.float64)
        good = torch.isfinite(priorities) & (priorities >= 0)
        if self._reads and not bool(good.all()):
            row = int((~good).nonzero()[0])
            raise ValueError(
                f"priority {float(priorities[row])} of sample {row} must be finite and at least 0: the loss that it comes "
                "from has diverged."
            )
        index = index.to(self.device)
        slots = index % self.num_rows
        old = self._tree.get(slots)
        present = good & (index >= self._begin) & (old > 0)
        self._tree.set(slots, torch.where(present, (priorities + _PRIORITY_FLOOR) ** self.alpha, old))

    def read_rows(self, begin: int, end: int) -> dict[str, Tensor]:
        """Rows `begin <= r < end` by column, on the CPU, for saving; all of them must still be stored."""
        if not self._begin <= begin < end <= self._end:
            raise ValueError(f"rows {begin}..{end} are not all stored; the buffer holds {self._begin}..{self._end}.")
        slots = torch.arange(begin, end, device=self.device) % self.num_rows
        return {name: column[slots].cpu() for name, column in self._columns.items()}

    def state_dict(self) -> dict[str, Any]:
        """All but the rows: which rows are stored, and their priorities."""
        state: dict[str, Any] = {"layout": self._layout(), "begin": self._begin, "end": self._end, "priorities": None}
        if self._tree is not None:
            slots = torch.arange(self._begin, self._end, device=self.device) % self.num_rows
            state["priorities"] = self._tree.get(slots).cpu()
        return state

    def load_state_dict(self, state: Mapping[str, Any], rows: Iterable[tuple[int, Mapping[str, Tensor]]]) -> None:
        """Restores an empty buffer bit for bit.

        Args:
            state: what `state_dict` returned.
            rows: blocks of `read_rows` in rising order, each with the number of its first row; older rows are ignored.
        Raises:
            ValueError: the state is of a buffer of another layout, or rows are missing.
        """
        if self._end:
            raise ValueError(f"replay already holds rows up to {self._end}: restore into a new buffer.")
        for key, mine in self._layout().items():
            if state["layout"].get(key) != mine:
                raise ValueError(
                    f"saved replay has {key}={state['layout'].get(key)} but this run has {key}={mine}: resume with the same."
                )
        begin, end = state["begin"], state["end"]
        self._grow(min(end, self.num_rows))
        ready = begin
        for first, block in rows:
            skip, stop = max(0, ready - first), first + len(block["reward"])
            if first > ready or stop <= ready:
                continue
            slots = torch.arange(ready, stop, device=self.device) % self.num_rows
            for name, column in self._columns.items():
                column[slots] = block[name][skip:].to(self.device)
            ready = stop
        if ready != end:
            raise ValueError(f"saved replay lacks rows {ready}..{end}.")
        self._begin, self._end = begin, end
        self._rebuild(state["priorities"])

    def _allocate(self, rows: int) -> dict[str, Tensor]:
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "obs": (self.frame_shape, self.frame_dtype),
            "action": ((self.spec.action_dim,), torch.float32),
            "reward": ((), torch.float32),
            "terminated": ((), torch.bool),
            "offset": ((), torch.int32),  # row number within the episode
        }
        return {name: torch.empty((rows, *shape), dtype=dtype, device=self.device) for name, (shape, dtype) in shapes.items()}

    def _grow(self, rows: int) -> None:
        present = len(self._columns["reward"])
        if rows <= present:
            return
        while present < rows:
            present = min(2 * present, self.num_rows)
        used = min(self._end, self.num_rows)
        for name, bigger in self._allocate(present).items():
            bigger[:used] = self._columns[name][:used]
            self._columns[name] = bigger

    def _drop_before(self, begin: int) -> None:
        """Forgets rows before `begin`, and the starts that need them."""
        starts = 0
        while self._episodes and self._episodes[0][1] < begin:
            starts += len(self._start_rows(*self._episodes.popleft()))
        partial = self._episodes[0] if self._episodes else (0, 0)
        starts += len(self._start_rows(*partial))
        self._begin = begin
        starts -= len(self._start_rows(*partial))
        if self._tree is not None and starts:
            oldest = self._starts_end - self._num_starts
            ring = torch.arange(oldest, oldest + starts, device=self.device) % self.num_rows
            dropped = self._starts[ring] % self.num_rows
            self._tree.set(dropped, torch.zeros(starts, dtype=torch.float64, device=self.device))
        self._num_starts -= starts

    def _start_rows(self, first: int, last: int) -> range:
        """Valid starts of the episode in rows `first..last`, given that rows before `_begin` are gone."""
        # A start looks back frame_stack - 1 rows, but not beyond the first row of its episode.
        oldest = first if first >= self._begin else self._begin + self.spec.frame_stack - 1
        return range(oldest, max(oldest, last - self.horizon + 1))

    def _append_starts(self, first: int, last: int) -> Tensor:
        rows = self._start_rows(first, last)
        starts = torch.arange(rows.start, rows.stop, device=self.device)
        self._starts[(self._starts_end + torch.arange(len(rows), device=self.device)) % self.num_rows] = starts
        self._starts_end += len(rows)
        self._num_starts += len(rows)
        return starts

    def _slices(self, rows: Tensor, weight: Tensor) -> Batch:
        horizon, stack = self.horizon, self.spec.frame_stack
        slots = (rows[:, None] + torch.arange(horizon, device=self.device)) % self.num_rows  # [B, H]
        first = rows - self._columns["offset"][rows % self.num_rows]
        around = rows[:, None] + torch.arange(1 - stack, horizon + 1, device=self.device)  # [B, stack - 1 + H + 1]
        frame_slots = torch.maximum(around, first[:, None]) % self.num_rows  # before an episode its first frame is repeated
        obs = self._columns["obs"].index_select(0, frame_slots.flatten()).view(*frame_slots.shape, *self.frame_shape)
        if stack > 1:  # windows of `stack` consecutive frames, joined along the channels: a view, nothing is copied
            channels = self.frame_shape[0]
            obs = obs.flatten(1, 2).unfold(1, stack * channels, channels).movedim(-1, 2)
        action, reward, terminated = (
            self._columns[name].index_select(0, slots.flatten()).view(*slots.shape, *self._columns[name].shape[1:])
            for name in ("action", "reward", "terminated")
        )
        return Batch(obs=obs, action=action, reward=reward, terminated=terminated, weight=weight, index=rows)

    def _layout(self) -> dict[str, Any]:
        return {
            "obs_shape": list(self.spec.obs[self.spec.only_key].shape),
            "frame_stack": self.spec.frame_stack,
            "action_dim": self.spec.action_dim,
            "rows": self.num_rows,
            "horizon": self.horizon,
            "prioritized": self._tree is not None,
        }

    def _rebuild(self, priorities: Tensor | None) -> None:
        """Episodes, starts and tree from the rows' offsets."""
        rows = torch.arange(self._begin, self._end, device=self.device)
        if not len(rows):
            return
        offset = self._columns["offset"][rows % self.num_rows]
        firsts = rows[offset == 0].tolist()
        if int(offset[0]) > 0:
            firsts.insert(0, self._begin - int(offset[0]))
        for first, following in zip(firsts, [*firsts[1:], self._end], strict=True):
            self._episodes.append((first, following - 1))
            self._append_starts(first, following - 1)
        if self._tree is not None and priorities is not None:
            self._tree.set(rows % self.num_rows, priorities.to(self.device))

    def _check(self, episode: Episode) -> None:
        length = len(episode.reward) if episode.reward.dim() else 0
        if length < 1:
            shape = tuple(episode.reward.shape)
            raise ValueError(f"episode.reward has shape {shape}: an episode needs at least 1 transition, [T].")
        if length + 1 > self.num_rows:
            raise ValueError(f"episode of {length} transitions doesn't fit a replay of {self.num_rows - 1}: raise the capacity.")
        expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "obs": ((length + 1, *self.frame_shape), self.frame_dtype),
            "action": ((length, self.spec.action_dim), torch.float32),
            "reward": ((length,), torch.float32),
            "terminated": ((length,), torch.bool),
        }
        for name, (shape, dtype) in expected.items():
            value = getattr(episode, name)
            if tuple(value.shape) != shape or value.dtype != dtype:
                raise ValueError(
                    f"episode.{name} is {value.dtype} {tuple(value.shape)} but {self.spec.name} needs {dtype} {shape}."
                )
            if dtype == torch.float32 and not bool(torch.isfinite(value).all()):
                row, who = _first_row(~torch.isfinite(value)), "agent" if name == "action" else "environment"
                raise ValueError(f"episode.{name} is not finite at step {row} of {length}: look at the {who}.")
        if bool((episode.action.abs() > 1).any()):
            row = _first_row(episode.action.abs() > 1)
            raise ValueError(
                f"episode.action at step {row} is {episode.action[row].tolist()}: actions must lie in [-1, 1]; clip them before "
                "the environment sees them."
            )
        if bool(episode.terminated[:-1].any()):
            raise ValueError(
                f"episode.terminated is True at step {_first_row(episode.terminated)} of {length}: only the last may be."
            )


def _first_row(wrong: Tensor) -> int:
    """The first row of `wrong [T, ...]` that holds a True."""
    return int(wrong.flatten(1).any(1).nonzero()[0]) if wrong.dim() > 1 else int(wrong.nonzero()[0])
