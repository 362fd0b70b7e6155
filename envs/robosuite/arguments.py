"""What robosuite makes an environment with: RoboMimic's settings, or those that a demonstration file names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from difftop.options import ConfigError
from difftop.poses import PoseRange
from envs.config import EnvConfig
from envs.errors import EnvError
from envs.robosuite.tasks import METRES_PER_ACTION, RADIANS_PER_ACTION, TASKS, RobosuiteTask

_ENDLESS = 10**9  # control steps; the time limit is not the simulator's business
_OSC = {  # RoboMimic's controller of one arm
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [METRES_PER_ACTION] * 3 + [RADIANS_PER_ACTION] * 3,
    "output_min": [-METRES_PER_ACTION] * 3 + [-RADIANS_PER_ACTION] * 3,
    "kp": 150,
    "damping_ratio": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_ratio_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "input_type": "delta",
    "interpolation": None,
    "ramp_ratio": 0.2,
}
OURS = {  # arguments that are not a file's to choose
    "has_renderer": False,
    "has_offscreen_renderer": False,
    "use_camera_obs": False,
    "use_object_obs": True,
    "ignore_done": True,
    "hard_reset": True,
    "horizon": _ENDLESS,
}
_CAMERA_ARGUMENTS = ("camera_names", "camera_heights", "camera_widths", "camera_depths", "camera_segmentations")
UNUSED = (*OURS, *_CAMERA_ARGUMENTS, "render_gpu_device_id", "renderer", "renderer_config", "render_camera", "seed")


def env_kwargs(task: str, config: EnvConfig) -> dict[str, Any]:
    """What robosuite makes `task` with: what the demonstration file says (`config.made_with`), or RoboMimic's settings.

    Raises:
        ConfigError: another control mode.
        EnvError: the file's arguments are no JSON object, or want absolute actions where `config.poses` isn't set.
    """
    if config.control not in ("", "OSC_POSE"):
        raise ConfigError(f"robosuite/{task}: env.control={config.control} is not offered; leave it empty, for OSC_POSE.")
    known = TASKS[task]
    named = f"robosuite/{task}: the environment's arguments in the demonstration file"
    try:
        made_with = json.loads(config.made_with or "{}")
    except ValueError as error:
        raise EnvError(f"{named} are no JSON ({error}).") from error
    if not isinstance(made_with, dict):
        raise EnvError(f"{named} are {made_with!r}; they must be an object of names and values.")
    arguments: dict[str, Any] = {
        "robots": ["Panda"] * known.robots,
        "control_freq": 20,
        "reward_shaping": config.reward == "dense" and known.shaped,
        "lite_physics": not made_with,
    }
    arguments |= made_with
    if "env_configuration" in arguments:  # until 1.4 with what robots it is of
        arguments["env_configuration"] = str(arguments["env_configuration"]).removeprefix("single-arm-")
    robots = arguments["robots"]
    count = 1 if isinstance(robots, str) else len(robots)
    poses = PoseRange.read(config.poses) if config.poses else None
    controllers = arguments.get("controller_configs") or _OSC
    each = controllers if isinstance(controllers, list) else [controllers] * count
    arguments["controller_configs"] = [composite_controller(c, named, poses) for c in each]
    if config.obs in ("image", "pointcloud"):
        sizes = image_sizes(known, config, arguments)
        arguments |= {
            "camera_names": list(sizes),
            "camera_heights": [size[0] for size in sizes.values()],
            "camera_widths": [size[1] for size in sizes.values()],
        }
        arguments |= {"camera_depths": True} if config.depth else {}
    return arguments


def composite_controller(controller: Mapping[str, Any], named: str, poses: PoseRange | None = None) -> dict[str, Any]:
    """A controller as robosuite 1.5 wants it, by parts of the body; files of 1.4 and older describe the one arm's only.

    Their displacements are along the axes of the world, which has to be said since 1.5.

    Args:
        controller: of either form.
        named: what to call it in a message.
        poses: it shall take absolute poses, in the frame that they name; None: displacements.
    Raises:
        EnvError: its actions are absolute poses, and displacements are wanted.
    """
    made: dict[str, Any] = json.loads(json.dumps(controller))  # a copy that shares nothing
    if "body_parts" not in made:
        arm = made
        absolute = not arm.pop("control_delta", True)
        for old, new in (("damping", "damping_ratio"), ("damping_limits", "damping_ratio_limits")):
            if old in arm:
                arm[new] = arm.pop(old)
        arm = {**_OSC, "input_type": "absolute" if absolute else "delta", "input_ref_frame": "world", **arm}
        arm["gripper"] = {"type": "GRIP"}
        made = {"type": "BASIC", "body_parts": {"right": arm}}
    parts = made["body_parts"].get("arms", made["body_parts"])
    if poses:
        for part in parts.values():
            if not str(part.get("type", "")).startswith("JOINT"):  # a torso or a base
                part |= {"input_type": "absolute"} | ({"input_ref_frame": poses.frame} if poses.frame else {})
        return made
    if any(part.get("input_type", "delta") != "delta" for part in parts.values()):
        raise EnvError(
            f"{named} want absolute poses as actions, and displacements (delta) are asked for; leave dataset.poses at auto."
        )
    return made


def image_sizes(known: RobosuiteTask, config: EnvConfig, arguments: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Height and width of the images by camera: `config.cameras`, else the demonstration file's, else the task's.

    Pixels are of the first of them, and square.
    """
    named = arguments.get("camera_names") or list(known.cameras)
    named = [named] if isinstance(named, str) else named
    heights, widths = (arguments.get(key, config.image_size) for key in ("camera_heights", "camera_widths"))
    sizes = {
        camera: tuple(int(side[i]) if isinstance(side, list) else int(side) for side in (heights, widths))
        for i, camera in enumerate(named)
    }
    plain = (config.image_size, config.image_size)
    if config.obs == "pixels":
        return {(config.cameras or named)[0]: plain}
    return {camera: sizes.get(camera, plain) for camera in (config.cameras or named)}  # type: ignore[misc]
