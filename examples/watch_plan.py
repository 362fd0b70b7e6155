"""A trained policy and its plans, as a GIF: the simulator above; below the actions of the last steps, and those it plans next.

python examples/watch_plan.py runs/dmc-cartpole-swingup/difftop_rl/cpu/seed1 plan.gif
"""

from __future__ import annotations

import argparse

import numpy as np
from PIL import Image, ImageDraw

import difftop

SIZE, PANEL, PAST, COLOURS = 240, 80, 25, ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b")


def panel(past: np.ndarray, plan: np.ndarray) -> Image.Image:
    """Executed actions `[t, A]` left of the line, the plan `[H, A]` right of it; up is +1."""
    image = Image.new("RGB", (SIZE, PANEL), "white")
    draw = ImageDraw.Draw(image)
    step = SIZE / (PAST + len(plan) + 1)
    now, middle = PAST * step, PANEL / 2
    draw.line([(0, middle), (SIZE, middle)], fill="#dddddd")
    draw.line([(now, 0), (now, PANEL)], fill="#999999")
    for a in range(min(plan.shape[1], len(COLOURS))):
        before = [(now + (i - len(past)) * step, middle - 0.45 * PANEL * past[i, a]) for i in range(len(past))]
        after = [(now + i * step, middle - 0.45 * PANEL * plan[i, a]) for i in range(len(plan))]
        if len(before) > 1:
            draw.line([*before, after[0]], fill="#bbbbbb", width=2)
        draw.line(after, fill=COLOURS[a], width=3)
        for x, y in after:
            draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=COLOURS[a])
    return image


def main() -> None:
    """Plays one episode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run's folder, or a checkpoint's")
    parser.add_argument("out", help="the GIF")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=125, help="actions at most")
    options = parser.parse_args()
    policy = difftop.load_policy(options.run, device="cpu")
    settings = policy.config["env"]
    env = difftop.make_env(settings["name"], **{key: settings[key] for key in ("obs", "action_repeat")}, video_size=SIZE)
    obs, _ = env.reset(seed=options.seed)
    frames, actions, total, over = [], [np.zeros(policy.spec.action_dim)], 0.0, False
    while not over and len(frames) < options.steps:
        action = policy.act(obs)
        plans = policy.plan()
        plan = action[None] if plans is None else plans[0]
        frame = Image.new("RGB", (SIZE, SIZE + PANEL))
        frame.paste(Image.fromarray(env.render()), (0, 0))
        frame.paste(panel(np.array(actions[1:][-PAST:]).reshape(-1, policy.spec.action_dim), plan), (0, SIZE))
        frames.append(frame)
        obs, reward, terminated, truncated, _ = env.step(action)
        actions.append(action)
        total, over = total + reward, terminated or truncated
    milliseconds = max(int(1000 * policy.spec.control_dt_s), 20)
    small = [frame.quantize(64) for frame in frames]
    small[0].save(options.out, save_all=True, append_images=small[1:], duration=milliseconds, loop=0, optimize=True)
    print(f"{len(frames)} steps, return {total:.0f}: {options.out}")


if __name__ == "__main__":
    main()
