"""The contract of demonstrations: what every format becomes, and what a format is.

Every mistake in a file is one `DemonstrationError` that names the file, the place, what is there and what should be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from difftop.data.faults import MISSING, Columns, Faults, FaultyEpisodeError, beyond, checked, numbers
from difftop.data.faults import Array as Array
from difftop.data.faults import DemonstrationError as DemonstrationError
from difftop.data.windows import Images, Windows
from difftop.later import later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = later("torch")


@dataclass(frozen=True)
class EnvInfo:
    """The environment that a file was recorded in.

    Attributes:
        name: as its suite calls it: `Lift`, `PickCube-v1`.
        kwargs: what it was made with.
        version: of its suite, None where the file doesn't say.
        raw: everything that the file says of it.
    """

    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    version: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)

    def same_version(self, installed: str) -> bool:
        """Whether it was recorded with the installed version of its simulator, the first two numbers being equal.

        In another one features and controllers changed, and a policy may silently score 0; where the file names none, that isn't
        known.
        """
        return self.version is not None and self.version.split(".")[:2] == installed.split(".")[:2]


@dataclass(frozen=True)
class Demonstration:
    """One demonstration.

    Attributes:
        name: for messages.
        actions: `[T, A]`, in [-1, 1].
        obs: by key `[T, *shape]`, observed before each action: vectors, points, and images, channels first.
    """

    name: str
    actions: Tensor
    obs: dict[str, Tensor]


class Opener(Protocol):
    """Opens, checks and loads a file."""

    def __call__(
        self,
        path: Path,
        *,
        obs_keys: Sequence[str] | None,
        filter_key: str,
        limit: int,
        cache_bytes: int,
        successful_only: bool,
        bad: str,
    ) -> Demonstrations:
        """See `difftop.data.files.open_demonstrations`."""


@dataclass(frozen=True)
class Format:
    """A layout of files; `difftop.data.files` lists all.

    Attributes:
        layout: a few words for messages: what such a file is.
        matches: whether a path that exists is one of these. It looks at names, or at little of the contents, and raises nothing.
        recorded_env: the environment that a file was recorded in; raises `DemonstrationError`.
        open: see `Opener`; raises `DemonstrationError`.
        survey: a path to its `difftop.data.survey.Survey`, which reads no image; None: what `open` gives.
        units: whether `open` also takes `action_key`, the name of the actions that are wanted, and `boxed`, whether they must be
            in [-1, 1]: files may hold absolute poses.
    """

    layout: str
    matches: Callable[[Path], bool]
    recorded_env: Callable[[Path], EnvInfo]
    open: Opener
    survey: Callable[[Path], Any] | None = None
    units: bool = False


class ImagesInMemory:
    """Images of one key as one tensor `[T, C, H, W]` per episode."""

    def __init__(self, episodes: Sequence[Tensor]) -> None:
        self.episodes, self.shape, self.cached_bytes = tuple(episodes), tuple(episodes[0].shape[1:]), 0

    def gather(self, episode: Tensor, steps: Tensor) -> Tensor:
        """See `difftop.data.windows.Images`."""
        return torch.stack([self.episodes[number][rows] for number, rows in zip(episode.tolist(), steps, strict=True)])


@dataclass(frozen=True)
class Demonstrations:
    """Episodes of one file, end to end in tensors of R rows.

    Attributes:
        path: the file.
        env: what it was recorded in.
        names: of the E episodes, in numeric order.
        first, length: first row and number of steps of each episode `[E]`, int64.
        source: number of each episode among those that were read `[E]`.
        actions: `[R, A]`, float32, in [-1, 1].
        low_dim: by key `[R, *shape]`, float32.
        images: by key; they may stay in the file until they are needed.
        notes: sentences on what was left out or mended.
        part: number of the data set that each episode is of `[E]`, where there are several.
        shares: of each data set in the batches, empty where every window counts the same.
        action_low, action_high: what -1 and 1 stand for `[A]`, where actions were scaled; see `difftop.data.scaling`.
    """

    path: Path
    env: EnvInfo
    names: tuple[str, ...]
    first: Tensor
    length: Tensor
    source: Tensor
    actions: Tensor
    low_dim: Mapping[str, Tensor]
    images: Mapping[str, Images] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    part: Tensor | None = None
    shares: tuple[float, ...] = ()
    action_low: Tensor | None = None
    action_high: Tensor | None = None

    @classmethod
    def of(
        cls,
        path: Path,
        env: EnvInfo,
        episodes: Iterable[Demonstration],
        *,
        obs_keys: Sequence[str] | None = None,
        limit: int = 0,
        bad: str = "stop",
    ) -> Demonstrations:
        """Checks episodes and keeps them in memory.

        Args:
            path, env: the file, and what it was recorded in.
            episodes: at least one; read as they come, and no more of them than needed.
            obs_keys: observations to use, in this order; None for all that are no images.
            limit: use the first so many; 0 for all.
            bad: what is done about an episode with a fault, see `difftop.data.faults`.
        Raises:
            DemonstrationError: anything that is missing, has the wrong length or shape, is not finite, or is outside of the box.
        """
        faults = Faults(path, bad)
        names: list[str] = []
        actions: list[Tensor] = []
        obs: dict[str, list[Tensor]] = {}
        for episode in episodes:
            if limit and len(names) == limit:
                break
            if not obs:
                keys = [key for key, values in episode.obs.items() if values.dim() < 4] if obs_keys is None else obs_keys
            found = _checked(path, episode, keys, {key: rows[0] for key, rows in obs.items()}, faults)
            if found is not None:
                names.append(episode.name)
                actions.append(found[0])
                for key, rows in found[1].items():
                    obs.setdefault(key, []).append(rows)
        if not names:
            raise faults.nothing_left() if faults.left_out else DemonstrationError(f"{path}: it has no demonstration.")
        return joined(path, env, names, actions, obs, notes=faults.lines())

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one observation by key; images channels first."""
        return {key: tuple(rows.shape[1:]) for key, rows in self.low_dim.items()} | {k: i.shape for k, i in self.images.items()}

    def episodes(self, images: bool = False) -> Iterator[Demonstration]:
        """All episodes, with their images only where asked for."""
        for i, name in enumerate(self.names):
            rows = slice(int(self.first[i]), int(self.first[i] + self.length[i]))
            obs = {key: values[rows] for key, values in self.low_dim.items()}
            if images:
                steps = torch.arange(int(self.length[i]))[None]
                obs |= {key: lazy.gather(self.source[i : i + 1], steps)[0] for key, lazy in self.images.items()}
            yield Demonstration(name, self.actions[rows], obs)

    def with_images(self, images: Mapping[str, Images]) -> Demonstrations:
        """The same with images too, which are numbered as these episodes are."""
        return replace(self, images={**self.images, **images}, source=torch.arange(len(self)))

    def only(self, index: Sequence[int]) -> Demonstrations:
        """The episodes `index`, for a split into training and validation; tensors and cache are shared."""
        chosen = torch.tensor(list(index), dtype=torch.int64)
        return replace(
            self,
            names=tuple(self.names[i] for i in chosen.tolist()),
            first=self.first[chosen],
            length=self.length[chosen],
            source=self.source[chosen],
            part=None if self.part is None else self.part[chosen],
        )

    def rows(self, key: str) -> Tensor:
        """All rows of `actions` or of a low-dimensional key, of these episodes only; to fit a normalizer to."""
        values = self.actions if key == "actions" else self.low_dim[key]
        return torch.cat([values[f : f + n] for f, n in zip(self.first.tolist(), self.length.tolist(), strict=True)])

    def windows(self, window: int, horizon: int, *, pad_before: int = 0, pad_after: int = 0) -> Windows:
        """Windows of T_s = `window` observations with predictions of T_p = `horizon` actions; see `Windows`."""
        return Windows(self, window, horizon, pad_before=pad_before, pad_after=pad_after)


def joined(
    path: Path,
    env: EnvInfo,
    names: Sequence[str],
    actions: Sequence[Tensor],
    obs: Mapping[str, Sequence[Tensor]],
    images: Mapping[str, Images] | None = None,
    notes: tuple[str, ...] = (),
) -> Demonstrations:
    """Episodes that were checked, end to end.

    Args:
        path, env: the file, and what it was recorded in.
        names, actions: of E episodes, `[T, A]` each.
        obs: by key, one tensor `[T, *shape]` per episode; those of 4 axes are images.
        images: further keys, which are kept elsewhere.
        notes: sentences on what was left out or mended.
    Raises:
        DemonstrationError: the number of entries of an action is not the same everywhere.
    """
    widths = sorted({rows.shape[1] for rows in actions})
    if len(widths) > 1:
        raise DemonstrationError(f"{path}: episodes have actions of {widths} entries; all must agree.")
    length = torch.tensor([len(rows) for rows in actions])
    return Demonstrations(
        path=path,
        env=env,
        names=tuple(names),
        first=length.cumsum(0) - length,
        length=length,
        source=torch.arange(len(names)),
        actions=torch.cat(list(actions)),
        low_dim={key: torch.cat(list(rows)) for key, rows in obs.items() if rows[0].dim() < 4},
        images=dict(images or {}) | {key: ImagesInMemory(rows) for key, rows in obs.items() if rows[0].dim() >= 4},
        notes=notes,
    )


def check_actions(where: str, values: Array) -> Tensor:
    """Actions `[T, A]`, float32, in [-1, 1].

    Raises:
        DemonstrationError: another shape, no step, NaN, or an action outside of the box.
    """
    if values.ndim != 2 or 0 in values.shape:
        raise DemonstrationError(f"{where} has shape {list(values.shape)}; it must be [T, A], with at least one step.")
    actions = check_values(where, values)
    message = beyond(where, actions)
    if message:
        raise DemonstrationError(message)
    return actions.clamp(-1, 1)


def check_values(where: str, values: Array) -> Tensor:
    """Numbers `[T, ...]` as float32, `[T]` as `[T, 1]`.

    Raises:
        DemonstrationError: not numbers, or not finite.
    """
    rows = numbers(where, values)
    finite = np.isfinite(values)
    if not finite.all():
        step = int(np.argwhere(~finite)[0][0])
        raise DemonstrationError(f"{where} has NaN or infinity at step {step} of {len(values)}; leave this demonstration out.")
    return rows


def _checked(
    path: Path, episode: Demonstration, keys: Sequence[str], first: Mapping[str, Tensor], faults: Faults
) -> tuple[Tensor, dict[str, Tensor]] | None:
    """Actions and observations of an episode, whose rows must have the shape of the first one's; None where it is left out."""
    try:
        for key in keys:
            if key not in episode.obs:
                raise missing_key(path, episode.name, key, episode.obs)
            if key in first and episode.obs[key].shape[1:] != first[key].shape[1:]:
                raise other_shape(f"{path}: {episode.name}, {key}", episode.obs[key].shape[1:], first[key].shape[1:])
    except FaultyEpisodeError as error:
        faults.leave_out(episode.name, error)
        return None
    images = {key: episode.obs[key] for key in keys if episode.obs[key].dim() >= 4}
    columns = Columns(
        name=episode.name,
        actions=episode.actions.numpy(),
        vectors={key: episode.obs[key].numpy() for key in keys if key not in images},
        rows={key: len(rows) for key, rows in images.items()},
        places={key: f"{path}: {episode.name}, {key}" for key in ("actions", *keys)},
    )
    found = checked(columns, faults)
    if found is None:
        return None
    actions, vectors = found
    shown = {key: rows[: len(actions)] for key, rows in images.items()}
    return actions, {key: shown[key] if key in shown else vectors[key] for key in keys}


def missing_key(path: Path, episode: str, key: str, there: Iterable[str]) -> FaultyEpisodeError:
    """Of an episode without an observation that is wanted."""
    return FaultyEpisodeError(MISSING, f"{path}: {episode} has no observation {key!r}; it has {', '.join(there)}.")


def other_shape(where: str, shape: Sequence[int], first: Sequence[int]) -> FaultyEpisodeError:
    """Of an episode whose rows aren't like those of the first."""
    return FaultyEpisodeError(MISSING, f"{where} has rows of shape {list(shape)}, the first episode's are {list(first)}.")
