"""What ManiSkill makes an environment with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from difftop.options import ConfigError
from envs.config import EnvConfig
from envs.errors import EnvError
from envs.maniskill.tasks import CONTROL, obs_mode

_OWN_ARGUMENTS = (  # of a file's environment; the others are passed on
    "obs_mode",
    "reward_mode",
    "render_mode",
    "control_mode",
    "sim_backend",
    "render_backend",
    "num_envs",
    "shader_dir",
    "sensor_configs",
    "human_render_camera_configs",
    "viewer_camera_configs",
)


def recorded_arguments(name: str, text: str) -> dict[str, Any]:
    """Arguments of a file's environment."""
    try:
        found: dict[str, Any] = json.loads(text or "{}")
        found = found.get("env_kwargs", found)
        backend = str(found.get("sim_backend", "physx_cpu"))
    except (ValueError, AttributeError) as error:
        raise EnvError(f"{name}: env.made_with is not the JSON of an environment's arguments ({error}).") from error
    if backend not in ("physx_cpu", "cpu", "auto"):
        raise EnvError(
            f"{name}: the demonstrations come from sim_backend={backend}, whose contacts differ from physx_cpu's, the only one "
            "here; play them again with `python -m mani_skill.trajectory.replay_trajectory --traj-path FILE -b physx_cpu "
            "--use-first-env-state --save-traj`."
        )
    return found


def arguments(name: str, config: EnvConfig, made_with: Mapping[str, Any]) -> dict[str, Any]:
    """What ManiSkill's environment is made with; sizes and shaders of cameras are the file's, where there is a file."""
    recorded = made_with.get("control_mode")
    if config.control and recorded and config.control != recorded:
        raise ConfigError(
            f"{name}: env.control={config.control}, but the demonstrations were recorded with {recorded}; leave it empty."
        )
    kwargs = {
        key: tuple(value) if isinstance(value, list) else value for key, value in made_with.items() if key not in _OWN_ARGUMENTS
    }
    size, video = config.image_size, config.video_size
    sensors = made_with.get("sensor_configs", {}) if made_with else {"width": size, "height": size}
    return kwargs | {
        "obs_mode": obs_mode(config),
        "control_mode": config.control or recorded or CONTROL,
        "render_mode": "rgb_array",
        "sim_backend": "physx_cpu",
        "render_backend": "cpu",
        "num_envs": 1,
        "sensor_configs": sensors,
        "human_render_camera_configs": {"width": video, "height": video},
    }
