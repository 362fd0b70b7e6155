"""A policy that imitates is evaluated on images that are drawn as those of its demonstrations were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from difftop.command import make_factories, make_registry
from difftop.data.robomimic import Recording, write_demonstrations
from difftop.run.cli import composed
from difftop.run.imitate import train_imitation
from envs import EnvConfig, recorded_as

pytest.importorskip("metaworld", reason="metaworld is not installed; run `make sims`")


class MadeError(Exception):
    """Ends a run where its environments are made, and has what they are made of."""

    def __init__(self, config: EnvConfig) -> None:
        self.config = config
        super().__init__()


def file(path: Path, quality: str | None) -> Path:
    """Demonstrations in images of Meta-World whose file says how they were drawn, or doesn't."""
    told = recorded_as(EnvConfig("metaworld/reach", obs="image", render_quality=quality or "fast"))
    if quality is None:
        del told["render_quality"]
    obs = {"corner2_image": np.zeros((9, 84, 84, 3), np.uint8), "hand_pos": np.zeros((9, 3)), "gripper": np.zeros((9, 1))}
    recording = Recording(obs, np.zeros((9, 4)), np.zeros(9))
    write_demonstrations(path, [recording, recording], told)
    return path


@pytest.mark.parametrize("asked", ["fast", "published"])
@pytest.mark.parametrize("recorded", ["fast", "published", None])
def test_evaluated_is_as_recorded(recorded: str | None, asked: str, tmp_path: Path) -> None:
    path = file(tmp_path / "made.hdf5", recorded)
    words = ["agent=bc", "env=metaworld/reach", "obs=image", f"dataset={path}", f"root={tmp_path}", "device=cpu"]

    def envs(config: Any, n: int, parallel: bool) -> Any:
        raise MadeError(config)

    settings = composed(make_registry(), [*words, f"env.render_quality={asked}"])
    with pytest.raises(MadeError) as made:
        train_imitation(settings, replace(make_factories(), envs=envs))
    assert made.value.config.render_quality == (recorded or "published")
    assert made.value.config.obs == "image"
