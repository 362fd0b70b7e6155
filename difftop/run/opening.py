"""Demonstrations as a run asks for them: which files, which of their episodes, which observations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from difftop.data.absolute import HAND, as_learned, frame_is_told, holds_poses, largest_gripper, range_of_poses
from difftop.data.demonstrations import DemonstrationError, Demonstrations, EnvInfo
from difftop.data.files import open_demonstrations
from difftop.data.several import together
from difftop.options import ConfigError
from difftop.poses import PoseRange
from difftop.run.cli import Settings
from difftop.run.memory import image_cache_bytes
from difftop.types import EnvSpec

log = logging.getLogger(__name__)

Opened = Callable[[list[str] | None], Demonstrations]


def opened(paths: Sequence[Path], settings: Settings, spec: EnvSpec | None, *, evaluated: bool) -> Demonstrations:
    """The demonstrations that a run trains on; what was left out of them is said.

    Args:
        paths: of them.
        settings: of the run.
        spec: the task as its simulator has it, None without one.
        evaluated: whether it is evaluated there, so that it must show what is trained on.
    Raises:
        DemonstrationError: the first thing that is wrong with a file.
        ConfigError: they don't fit the task, or observations have to be named.
    """
    ranged, room = PoseRange.read(settings.env.poses) if settings.env.poses else None, image_cache_bytes(settings.run.cache_mb)

    def open_with(keys: list[str] | None) -> Demonstrations:
        parts = _parts(paths, settings, keys, boxed=ranged is None, room=room)
        _say_what_fits(parts, room, settings)
        return together([as_learned(part, ranged) for part in parts] if ranged else parts, settings.top.dataset.weights)

    if spec is None:
        demonstrations = _alone(open_with, settings)
    else:
        try:
            demonstrations = open_with(list(spec.shapes))
        except DemonstrationError:
            if evaluated:
                raise
            demonstrations = _alone(open_with, settings)  # another version of the simulator shows other things
        if evaluated:
            _check_fits(paths, demonstrations, spec)
    for note in demonstrations.notes:
        log.warning("%s: %s", demonstrations.path, note)
    return demonstrations


def poses_of(paths: Sequence[Path], infos: Sequence[EnvInfo], settings: Settings) -> str:
    """What `env.poses` is for some data sets: the range of their absolute poses, empty where actions are none.

    Raises:
        ConfigError: of some data sets they are, of others they aren't.
        DemonstrationError: the first thing that is wrong with a file.
    """
    dataset = settings.top.dataset
    which = [holds_poses(info, dataset.actions, dataset.poses) for info in infos]
    if not any(which):
        return ""
    if not all(which):
        raise ConfigError(
            f"{dataset.named}: the actions of {paths[which.index(True)]} are absolute poses, those of "
            f"{paths[which.index(False)]} aren't; train on one kind, or say dataset.poses=true or false."
        )
    try:
        parts = _parts(paths, settings, [HAND], boxed=False)
    except DemonstrationError:  # not everybody keeps it
        parts = _parts(paths, settings, [], boxed=False)
    ranged = range_of_poses(parts)
    _check_grippers(parts, settings)
    for part in parts:
        if not frame_is_told(part):
            log.warning("%s: without %s nothing tells where its poses are seen from; taken as the world", part.path, HAND)
    log.info(
        "%s: actions are absolute poses of %d arm%s%s; rotations are learned as six numbers",
        dataset.named,
        ranged.arms,
        "s" if ranged.arms > 1 else "",
        f", seen from the {ranged.frame}" if ranged.frame else "",
    )
    return ranged.text()


def _check_grippers(parts: Sequence[Demonstrations], settings: Settings) -> None:
    """Of a pose the gripper alone has limits; beyond them it is clipped, unless `dataset.bad` stops."""
    worst, dataset = largest_gripper(parts), settings.top.dataset
    if worst <= 1 + 1e-6:
        return
    if dataset.bad == "stop":
        raise DemonstrationError(
            f"{dataset.named}: a gripper's action is {worst:g} in size; it must be in [-1, 1]; dataset.bad=clip clips it."
        )
    log.warning("%s: grippers' actions of up to %g are clipped to [-1, 1]", dataset.named, worst)


def _say_what_fits(parts: Sequence[Demonstrations], room: int, settings: Settings) -> None:
    """Warns where images don't fit in the memory for them, of which each data set has the same part."""
    sizes = [int(part.length.sum()) * sum(images.cached_bytes for images in part.images.values()) for part in parts]
    if max(sizes) * len(parts) <= room:
        return
    how = "half of what is free" if not settings.run.cache_mb else f"run.cache_mb={settings.run.cache_mb}"
    log.warning(
        "%s: its images take %s, and there is room for %s (%s), so that they are read from the file again and again; where there "
        "is enough memory, set run.cache_mb=%d",
        parts[sizes.index(max(sizes))].path,
        *(_size(max(sizes)), _size(room // len(parts)), how, -(-max(sizes) * len(parts) // 2**20)),
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.1f} MB"


def _parts(
    paths: Sequence[Path], settings: Settings, keys: list[str] | None, *, boxed: bool, room: int = 2**20
) -> list[Demonstrations]:
    """The data sets, with memory for images of `room` bytes in all."""
    run, dataset = settings.run, settings.top.dataset
    return [
        open_demonstrations(
            path,
            obs_keys=keys,
            filter_key=dataset.filter,
            limit=run.demos,
            cache_bytes=room // len(paths),
            successful_only=dataset.successful_only,
            bad=dataset.bad,
            action_key=dataset.actions,
            boxed=boxed,
        )
        for path in paths
    ]


def _check_fits(paths: Sequence[Path], demonstrations: Demonstrations, spec: EnvSpec) -> None:
    """Raises `ConfigError` where observations or actions aren't those of the task."""
    shapes, actions = demonstrations.shapes, demonstrations.actions.shape[1]
    wrong = [f"{key} {shapes[key]} for {tuple(shape)}" for key, shape in spec.shapes.items() if shapes[key] != tuple(shape)]
    if wrong or actions != spec.action_dim:
        what = ", ".join([*wrong, *([f"{actions} actions for {spec.action_dim}"] if actions != spec.action_dim else [])])
        raise ConfigError(
            f"dataset={paths[0]} doesn't fit env={spec.name}: {what}; take the observations and control of the file."
        )


def _alone(open_with: Opened, settings: Settings) -> Demonstrations:
    """Without a simulator to say what it shows: all vectors of the file, and what else `agent.obs_keys` names."""
    demonstrations, named = open_with(None), list(settings.agent.get("obs_keys", ()))
    if more := [key for key in named if key not in demonstrations.shapes]:
        return open_with([*demonstrations.shapes, *more])
    if settings.env.obs != "low_dim":
        raise ConfigError(
            f"env.obs={settings.env.obs}: without a simulator (run.select_episodes=0 run.eval_episodes=0) agent.obs_keys "
            "must name what to look at, images too."
        )
    return demonstrations
