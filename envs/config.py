"""Options of an environment: one set for every suite; a suite refuses in one sentence what it doesn't offer."""

from __future__ import annotations

from dataclasses import dataclass

from difftop.options import ConfigError, option


@dataclass(frozen=True)
class EnvConfig:
    """Which environment, and what an agent sees of it."""

    name: str = option("dmc/cartpole-swingup", "environment, SUITE/TASK; `python train.py mode=envs` lists all")
    obs: str = option(
        "state",
        "state: one vector; pixels: stacked frames of one camera; and by key, as imitation has them: low_dim: vectors; image: "
        "camera images beside the robot's vectors; pointcloud: points beside them",
        choices=("state", "pixels", "low_dim", "image", "pointcloud"),
    )
    action_repeat: int = option(0, "simulator steps per action, rewards summed; 0 takes the task's own", low=0, high=100)
    episode_steps: int = option(0, "actions until the time limit truncates an episode; 0 takes the task's own", low=0)
    reward: str = option("dense", "dense: shaped, where the suite has one; sparse: of success alone", choices=("dense", "sparse"))
    frame_stack: int = option(3, "frames in one observation (obs=pixels only)", low=1, high=16)
    image_size: int = option(84, "height and width of camera images, pixels", low=16, high=480)
    depth: bool = option(False, "beside each camera image its depths, <camera>_depth, m (obs=image)")
    points: int = option(1024, "points of a cloud, chosen to cover it evenly (obs=pointcloud)", low=16, high=16_384)
    cameras: list[str] = option([], "cameras by the suite's names; empty for the suite's usual ones")
    control: str = option("", "control mode by the suite's name; empty for that of the demonstrations, or the suite's usual one")
    render_quality: str = option(
        "published",
        "published: the suite's own visuals; fast: smaller shadow map and no anti-aliasing, about 3 times faster on a CPU",
        choices=("published", "fast"),
    )
    video_size: int = option(256, "height and width of video frames, pixels", low=16, high=480)
    made_with: str = option("", "JSON of the arguments that a demonstration file's environment was made with; set from the file")
    poses: str = option("", "JSON of the range of absolute poses, where actions are such; set from the file, see dataset.poses")


def refuse(config: EnvConfig, *keys: str) -> None:
    """Raises `ConfigError` where one of `keys`, options that a task has no use for, was set."""
    for key in keys:
        value = getattr(config, key)
        if value != getattr(EnvConfig(), key):
            raise ConfigError(f"{config.name}: env.{key}={value} is not offered; leave it out.")
