"""Options of an environment."""

from __future__ import annotations

from dataclasses import dataclass

from difftop.options import option


@dataclass(frozen=True)
class EnvConfig:
    """Which environment, and what the agent sees of it."""

    name: str = option(
        "dmc/cartpole-swingup", "environment, dmc/<domain>-<task> or toy/point-mass (docs/environments.md lists all)"
    )
    obs: str = option("state", "observation: a float32 vector, or stacked uint8 camera frames", choices=["state", "pixels"])
    action_repeat: int = option(0, "simulator steps per action, rewards summed; 0 takes the task's own", low=0, high=100)
    frame_stack: int = option(3, "frames in one observation (pixels only)", low=1, high=16)
    image_size: int = option(84, "height and width of a frame in pixels (pixels only)", low=16, high=480)
    render_quality: str = option(
        "published",
        "published: dm_control's own visuals; fast: smaller shadow map and no anti-aliasing, about 3 times faster on a CPU",
        choices=["published", "fast"],
    )
    video_size: int = option(256, "height and width of video frames in pixels", low=16, high=480)
