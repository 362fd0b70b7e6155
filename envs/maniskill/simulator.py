"""One ManiSkill environment: stepped, looked at and drawn."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np

from difftop.types import ObsSpec
from envs.config import EnvConfig
from envs.errors import EnvError
from envs.maniskill.arguments import arguments, recorded_arguments
from envs.maniskill.observations import chosen_points, metres, vectors
from envs.maniskill.package import make, registered
from envs.maniskill.tasks import TASKS
from envs.suites import Array, Observation, Outcome

# In these the hand keeps something of the episode before (0.03 in the first observation), unless the scene is built anew.
_CARRIES_OVER = ("RotateSingleObjectInHand",)


class ManiSkillSimulator:
    """One task.

    Attributes:
        base: ManiSkill's own environment, for those who need more than observations.
    """

    def __init__(self, task: str, config: EnvConfig) -> None:
        """Makes a task of `TASKS`, or any other that the package registers.

        Raises:
            EnvError: package, Vulkan device or assets are missing; the file's environment or the control mode can't be had; or
                the task reports no success.
        """
        self._name = f"maniskill/{task}"
        made_with = recorded_arguments(self._name, config.made_with)
        entry = registered(self._name, task)
        kwargs = arguments(self._name, config, made_with)
        offered = entry.cls.SUPPORTED_REWARD_MODES
        self._dense = config.reward == "dense" and "normalized_dense" in offered
        mode = "normalized_dense" if self._dense else "sparse"
        kwargs |= {"reward_mode": mode} if mode in offered else {}
        self.base = make(self._name, entry, kwargs, asked=bool(config.control or "control_mode" in made_with))
        self._cameras = self._chosen_cameras(config) if config.obs in ("image", "pixels") else ()
        self._measured = self._cameras if config.depth else ()
        self._obs = config.obs
        self._hand: set[str] = set()
        self._raw: Any = None
        self._built_anew = task.startswith(_CARRIES_OVER)
        self.reset(0)
        if "success" not in self.base.get_info():
            raise EnvError(f"{self._name} reports no success, so that there is nothing to evaluate; take another task.")
        self.obs = {key: ObsSpec.of(value.shape, key) for key, value in self.observe().items()}
        self.action_dim = int(self._space().shape[0])
        self.control_dt_s = 1.0 / float(self.base.control_freq)
        self.episode_steps = int(TASKS[task].episode_steps if task in TASKS else entry.max_episode_steps)
        self._largest_force = 0.0
        after_step = self.base._after_simulation_step

        def measured() -> None:  # ManiSkill's own recorder hooks in here too
            after_step()
            self._largest_force = max(self._largest_force, self._hand_force())

        self.base._after_simulation_step = measured

    def reset(self, seed: int) -> None:
        """Builds the scene anew where the task has random parts (pegs), and places everything."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its own loggers, while it builds a scene
            self._raw, _ = self.base.reset(seed=seed, options={"reconfigure": True} if self._built_anew else {})
        for unused in set(self.base.scene.sensors) - set(self._cameras) if self._cameras else ():
            del self.base.scene.sensors[unused]  # a camera is half of a step's time
        robot = getattr(self.base.agent, "robot", None)
        names = [] if robot is None else [link.name for link in robot.links]
        self._hand = {name for name in names if "hand" in name or "finger" in name}

    def step(self, action: Array) -> Outcome:
        """One action.

        The contact force is the net one of hand and fingers: both sides of a grasped object cancel, pushing on a table doesn't.
        Friction is not in it: PhysX doesn't report it.
        """
        self._largest_force = 0.0
        self._raw, reward, _, _, info = self.base.step(self._packed(action))
        force = self._largest_force if self._hand else float("nan")
        success = bool(info["success"][0])
        return Outcome(float(reward[0]) if self._dense else float(success), success=success, contact_force_n=force)

    def observe(self) -> Observation:
        """As `env.obs` says; the same keys and numbers as in ManiSkill's files."""
        raw = self._raw
        if self._obs in ("state", "low_dim"):
            return {"state": raw[0].numpy()}
        images = {f"{name}_image": raw["sensor_data"][name]["rgb"][0].numpy().transpose(2, 0, 1) for name in self._cameras}
        if self._obs == "pixels":
            return {"pixels": next(iter(images.values()))}
        images |= {f"{name}_depth": metres(raw["sensor_data"][name]["depth"][0].numpy()) for name in self._measured}
        found: Observation = {key: np.atleast_1d(value[0].numpy()).astype(np.float32) for key, value in vectors(raw)} | images
        if self._obs == "pointcloud":
            found["pointcloud"] = chosen_points(raw["pointcloud"]["xyzw"][0].numpy())
        return found

    def render(self, height: int, width: int) -> Array:
        """The task's camera for people."""
        image: Array = self.base.render_rgb_array()[0].numpy()
        if image.shape[:2] != (height, width):  # made for config.video_size; others get the nearest pixels
            rows, columns = (np.arange(n) * m // n for n, m in zip((height, width), image.shape[:2], strict=True))
            image = image[rows[:, None], columns]
        return image

    def states(self) -> Array:
        """ManiSkill's flat state of the simulation; the controllers' targets are not in it."""
        state: Array = self.base.get_state()[0].numpy().astype(np.float64)
        return state

    def close(self) -> None:
        """Frees the scene."""
        if self.base is not None:
            self.base.close()
        self.base = None

    def _chosen_cameras(self, config: EnvConfig) -> tuple[str, ...]:
        offered = list(self.base.scene.sensors)
        unknown = [name for name in config.cameras if name not in offered]
        if unknown:
            raise EnvError(f"{self._name}: env.cameras={unknown[0]} is not there; it has {', '.join(offered)}.")
        return tuple((config.cameras or offered)[: 1 if config.obs == "pixels" else None])

    def _space(self) -> Any:
        space = self.base.single_action_space
        if not hasattr(space, "spaces"):
            return space
        parts = list(space.spaces.values())
        return gymnasium.spaces.Box(np.concatenate([p.low for p in parts]), np.concatenate([p.high for p in parts]))

    def _packed(self, action: Array) -> Any:
        """The action as ManiSkill wants it: a dictionary where there are several robots."""
        space, flat = self.base.single_action_space, action.astype(np.float32)
        if not hasattr(space, "spaces"):
            return flat
        ends = np.cumsum([part.shape[0] for part in space.spaces.values()])
        return dict(zip(space.spaces, np.split(flat, ends[:-1]), strict=True))

    def _hand_force(self) -> float:
        """Norm of the sum of the contact forces on hand and fingers in the last simulation step, N."""
        if not self._hand:
            return 0.0
        total = np.zeros(3)
        for contact in self.base.scene.get_contacts():
            first, second = (body.entity.name in self._hand for body in contact.bodies)
            if first != second:
                total += (1 if first else -1) * sum((point.impulse for point in contact.points), np.zeros(3))
        return float(np.linalg.norm(total) / self.base.sim_timestep)
