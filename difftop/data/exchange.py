"""An episode as it is stored, on its way from one format to another: nothing is scaled, cut or rounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from difftop.data.demonstrations import EnvInfo
from difftop.data.faults import Array


@dataclass(frozen=True)
class RawEpisode:
    """One episode.

    Attributes:
        name: in the data set that it is from.
        actions: `[T, A]`, of the type that is stored.
        obs: by key `[T, ...]`, observed before each action; images `[T, height, width, C]` uint8, depths
            `[T, height, width, 1]`, m.
        last_obs: by key `[...]`, after the last action; empty where the format doesn't keep it.
        rewards: `[T]`, None where none are stored.
        success: whether it was solved, None where nothing says so.
        task: what was to be done, in words.
        states: of a simulator `[T, D]`, None where none are stored.
        attributes: strings: the scene of a simulator.
    """

    name: str
    actions: Array
    obs: Mapping[str, Array]
    last_obs: Mapping[str, Array] = field(default_factory=dict)
    rewards: Array | None = None
    success: bool | None = None
    task: str = ""
    states: Array | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


class Reader(Protocol):
    """A data set that can be converted.

    Attributes:
        env: what it was recorded in.
        rate_hz: of control; 0 where it isn't known.
        count: episodes.
        filters: numbers of episodes by filter key.
        notes: sentences to say when all are read.
    """

    env: EnvInfo
    rate_hz: float
    count: int

    @property
    def filters(self) -> Mapping[str, list[int]]:
        """See above."""

    @property
    def notes(self) -> tuple[str, ...]:
        """See above."""

    def episodes(self, start: int = 0) -> Iterator[RawEpisode]:
        """The episodes from number `start` on, one at a time."""
