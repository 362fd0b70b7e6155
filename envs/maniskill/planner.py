"""ManiSkill's motion planner in a process of its own, `python -m envs.maniskill.planner JSON`, since mplib may crash or not end.

Writes `planned.h5` and `planned.json` in ManiSkill's raw form (joint positions, no observations) with the episodes that were
solved, and prints one line per attempt: seed, success, and the reason where planning raised.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def plan(task: str, seeds: list[int], folder: str, sensor_size: int) -> None:
    """Solves the episodes of `seeds`; cameras of the converted file will be square, of `sensor_size` pixels."""
    import gymnasium
    from mani_skill.examples.motionplanning.panda.run import MP_SOLUTIONS
    from mani_skill.utils.wrappers.record import RecordEpisode

    env: Any = gymnasium.make(
        task,
        obs_mode="none",
        control_mode="pd_joint_pos",
        render_mode="rgb_array",
        sim_backend="physx_cpu",
        render_backend="cpu",
        sensor_configs={"width": sensor_size, "height": sensor_size},
    )
    recorder: Any = RecordEpisode(
        env,
        output_dir=folder,
        trajectory_name="planned",
        save_video=False,
        record_reward=False,
        save_on_reset=False,
        source_type="motionplanning",
        source_desc="ManiSkill's own motion planning solution",
    )
    for seed in seeds:
        reason = ""
        try:
            result: Any = MP_SOLUTIONS[task](recorder, seed=seed, debug=False, vis=False)
        except Exception as error:  # solutions raise what they like where no grasp or plan is found
            result, reason = -1, f"{type(error).__name__}: {error}"
        last = None if isinstance(result, int) else result[-1]
        success = last is not None and bool(last["success"].item())
        recorder.flush_trajectory(save=success)
        sys.stdout.write(json.dumps({"seed": seed, "success": success, "reason": reason}) + "\n")
        sys.stdout.flush()
    recorder.close()


if __name__ == "__main__":
    plan(**json.loads(sys.argv[1]))
