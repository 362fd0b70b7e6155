"""`mode=convert dataset=IN out=OUT`: one data set from another. A conversion that was stopped goes on where it was."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difftop.data import lerobot, zarr
from difftop.data.demonstrations import DemonstrationError, EnvInfo
from difftop.data.exchange import Reader
from difftop.data.files import FORMATS, format_of
from difftop.data.lerobot_write import LeRobotWriter
from difftop.data.parts import ManiSkillParts, RobomimicParts
from difftop.data.read_hdf5 import ManiSkillReader, RobomimicReader
from difftop.key_values import parsed
from difftop.options import ConfigError, build, option
from difftop.written import write_whole

log = logging.getLogger(__name__)

READERS: Mapping[str, Callable[[Path], Reader]] = {
    "robomimic": RobomimicReader,
    "maniskill": ManiSkillReader,
    "lerobot": lerobot.LeRobotReader,
    "zarr": zarr.ZarrReader,
}
_SUFFIXES = {".hdf5": "robomimic", ".h5": "maniskill", "": "lerobot"}
_TELL_EVERY_S = 10.0


@dataclass(frozen=True)
class ConvertConfig:
    """From where to where; what is drawn, where raw teleoperation is played back."""

    dataset: str = option("", "file or folder of demonstrations: raw robosuite, RoboMimic, ManiSkill, LeRobot, Zarr")
    out: str = option("", "what is written: FILE.hdf5 is RoboMimic's, FILE.h5 ManiSkill's, a FOLDER LeRobot's")
    episodes: int = option(0, "convert the first so many; 0 for all", low=0)
    playback: bool = option(False, "RoboMimic: make the observations anew from the recorded states, in the installed robosuite")
    video: bool = option(False, "LeRobot: images as mp4, which changes them a little; false: PNG, which doesn't")
    obs: str = option(
        "low_dim",
        "raw robosuite: what is observed; image: cameras beside the arms' vectors; pointcloud: 1024 points of what can move",
        choices=("low_dim", "image", "pointcloud"),
    )
    cameras: list[str] = option([], "raw robosuite: cameras; empty for the task's usual ones")
    image_size: int = option(
        84, "raw robosuite: height and width of images, and of the depths that points come from, pixels", low=16, high=480
    )
    depth: bool = option(False, "raw robosuite: beside each camera image its depths, m (obs=image)")
    render_quality: str = option("published", "raw robosuite: of images; fast is 3 times faster", choices=("published", "fast"))


Playback = Callable[[Path, ConvertConfig], Reader]


def convert_command(arguments: Sequence[str], playback: Playback) -> Path:
    """Converts, and says what was made.

    Args:
        arguments: `KEY=VALUE`, of `ConvertConfig`.
        playback: reads raw teleoperation by playing it back; handed in because this package knows no simulator.
    Raises:
        ConfigError, DemonstrationError: one sentence.
    """
    values = parsed(arguments)
    if isinstance(values.get("cameras"), str):
        values["cameras"] = [values["cameras"]]
    config = build(ConvertConfig, values)
    source, out, kind = _places(config)
    name = next(name for name, known in FORMATS.items() if known is format_of(source))
    if name != "robosuite" and name not in READERS:
        raise ConfigError(f"dataset={source}: mode=convert reads {', '.join(['robosuite', *READERS])}, not {name}.")
    if config.playback and name not in ("robosuite", "robomimic"):
        raise ConfigError(
            f"playback=true: dataset={source} is {name}'s; states are played back of robosuite and RoboMimic files."
        )
    _begin(config, source, out, kind)
    plays = name == "robosuite" or config.playback
    reader = playback(source, config) if plays else READERS[name](source)
    writer: Any = {"robomimic": RobomimicParts, "maniskill": ManiSkillParts}.get(kind, LeRobotWriter)
    writer = writer(out, reader.rate_hz, video=config.video) if kind == "lerobot" else writer(out)
    count = min(config.episodes or reader.count, reader.count)
    _copy(reader, writer, count, out)
    _about(out).unlink()
    for note in reader.notes:
        log.info("%s: %s", out, note)
    log.info("%s: %d episodes, %s; look at it by: difftop mode=data dataset=%s", out, count, kind, out)
    return out


def _places(config: ConvertConfig) -> tuple[Path, Path, str]:
    if not config.dataset or not config.out:
        raise ConfigError(
            "mode=convert needs dataset=PATH and out=PATH: FILE.hdf5 (RoboMimic), FILE.h5 (ManiSkill), FOLDER (LeRobot)."
        )
    source, out = Path(config.dataset).expanduser(), Path(config.out).expanduser()
    kind = _SUFFIXES.get(out.suffix, "")
    if not kind:
        raise ConfigError(f"out={out}: must end in .hdf5 (RoboMimic) or .h5 (ManiSkill), or be a folder (LeRobot).")
    whole = out / "meta" / "info.json" if kind == "lerobot" else out
    if whole.exists() or (kind == "lerobot" and out.is_dir() and any(out.iterdir()) and not _about(out).is_file()):
        raise ConfigError(f"out={out}: is there already; remove it, or choose another name.")
    out.parent.mkdir(parents=True, exist_ok=True)
    return source, out, kind


def _about(out: Path) -> Path:
    """What a conversion that isn't finished is of."""
    return out.with_name(f"{out.name}.converting.json")


def _begin(config: ConvertConfig, source: Path, out: Path, kind: str) -> None:
    """Notes what is converted; refuses to go on with another conversion's parts."""
    changed = source.stat().st_mtime if source.is_file() else 0.0
    now = {**{key: value for key, value in vars(config).items() if key != "episodes"}, "changed": changed}
    about = _about(out)
    if about.is_file():
        if json.loads(about.read_text()) != now:
            raise ConfigError(f"{about}: another conversion to {out} was not finished; repeat that one, or remove this file.")
        log.info("%s: going on", out)
        return
    for left in (out.with_name(f"{out.name}.parts"), out if kind == "lerobot" else None):
        if left is not None and left.is_dir():
            shutil.rmtree(left)  # of a conversion whose note somebody removed
    write_whole(about, json.dumps(now))


def _copy(reader: Reader, writer: Any, count: int, out: Path) -> None:
    """Writes what isn't yet written, with progress."""
    start = writer.count
    begun = told = time.monotonic()
    for number, episode in zip(range(start, count), reader.episodes(start), strict=False):
        writer.add(episode)
        now = time.monotonic()
        if now - told > _TELL_EVERY_S:
            told, rest = now, (now - begun) / (number + 1 - start) * (count - number - 1)
            log.info("%s: %d of %d episodes, %d:%02d left", out, number + 1, count, rest // 60, rest % 60)
    if not count:
        raise DemonstrationError(f"{out}: there is no episode to convert.")
    env: EnvInfo = reader.env
    args = {**env.raw, "env_name": env.name, "env_kwargs": dict(env.kwargs), "env_version": env.version} if env.name else None
    filters = {key: [k for k in members if k < count] for key, members in reader.filters.items()}
    writer.finish(args, filters)
