"""What is free, and whether a data set's images fit in it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

import difftop.run.opening as opening
from difftop.command import make_registry
from difftop.data.robomimic import Recording, write_demonstrations
from difftop.run.cli import composed
from difftop.run.memory import available_bytes, image_cache_bytes
from envs import EnvConfig, recorded_as

GB = 2**30


def system(root: Path, groups: dict[str, str], own: str, free_kb: int = 8 * 2**20) -> tuple[Path, Path]:
    """Files as Linux shows them: 8 GB free, and control groups by path."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemFree: 12 kB\nMemAvailable:   {free_kb} kB\n")
    (root / "proc/self/cgroup").write_text(own)
    for name, text in groups.items():
        (root / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "groups" / name).write_text(text)
    return root / "proc", root / "groups"


def test_the_machine_s_where_nothing_limits_it(tmp_path: Path) -> None:
    none = {"memory.max": "max\n", "memory.current": "1\n", "memory.stat": "inactive_file 0\n"}
    assert available_bytes(*system(tmp_path / "a", none, "0::/\n")) == 8 * GB
    assert available_bytes(*system(tmp_path / "b", {}, "0::/nowhere\n")) == 8 * GB
    unlimited = {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "5"}
    unlimited["memory/memory.stat"] = "total_inactive_file 0\n"
    assert available_bytes(*system(tmp_path / "c", unlimited, "4:cpu,memory:/x\n0::/\n")) == 8 * GB
    assert available_bytes(tmp_path, tmp_path) > 0  # no such files at all
    assert available_bytes() > 0


@pytest.mark.parametrize("inside", ["/", "/job/step"])
def test_what_the_tightest_control_group_has_left(inside: str, tmp_path: Path) -> None:
    """In a container the limit is at the root, under Slurm at a parent; files that were read and aren't used give way."""
    limited = {"memory.max": f"{4 * GB}\n", "memory.current": f"{3 * GB}\n", "memory.stat": f"anon 5\ninactive_file {GB // 2}\n"}
    place = "job/" if inside != "/" else ""
    two = system(tmp_path / "two", {place + name: text for name, text in limited.items()}, f"0::{inside}\n")
    assert available_bytes(*two) == 3 * GB // 2
    one = {
        f"memory/{place}memory.limit_in_bytes": f"{4 * GB}",
        f"memory/{place}memory.usage_in_bytes": f"{3 * GB}",
        f"memory/{place}memory.stat": f"inactive_file 0\ntotal_inactive_file {GB // 2}\n",
    }
    assert available_bytes(*system(tmp_path / "one", one, f"9:cpu:/\n4:memory:{inside}\n0::/\n")) == 3 * GB // 2
    over = dict(limited) | {"memory.current": f"{9 * GB}"}
    assert available_bytes(*system(tmp_path / "over", over, "0::/\n")) == 0


def test_a_share_of_it_is_for_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("difftop.run.memory.available_bytes", lambda: 12 * GB)
    assert image_cache_bytes(0) == 6 * GB and image_cache_bytes(300) == 300 * 2**20
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert image_cache_bytes(0) == 6 * GB // 4 and image_cache_bytes(300) == 300 * 2**20


@pytest.mark.parametrize("paths", [1, 2])
def test_images_that_do_not_fit_are_told_once(
    paths: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 60 // paths
    obs = {"corner2_image": np.zeros((steps, 84, 84, 3), np.uint8), "hand_pos": np.zeros((steps, 3))}
    files = [tmp_path / f"{number}.hdf5" for number in range(paths)]
    for path in files:
        write_demonstrations(
            path, [Recording(obs, np.zeros((steps, 4)), np.zeros(steps))], recorded_as(EnvConfig("metaworld/reach", obs="image"))
        )

    def warned(*words: str) -> list[str]:
        caplog.clear()
        keys = "agent.obs_keys=[corner2_image,hand_pos]"
        named = f"dataset=[{','.join(map(str, files))}]"
        settings = composed(make_registry(), ["agent=bc", "env=metaworld/reach", "obs=image", named, keys, *words])
        with caplog.at_level(logging.WARNING):
            made = opening.opened(files, settings, None, evaluated=False)
        assert made.images["corner2_image"].shape == (3, 84, 84)
        return [record.getMessage() for record in caplog.records]

    assert warned("run.cache_mb=2") == [] == warned()  # 1.2 MB
    (said,) = warned("run.cache_mb=1")
    share = "1.2 MB, and there is room for 1.0 MB" if paths == 1 else "0.6 MB, and there is room for 0.5 MB"
    assert f"{share} (run.cache_mb=1)" in said and said.endswith("set run.cache_mb=2")
    monkeypatch.setattr("difftop.run.memory.available_bytes", lambda: 2**21)
    assert "(half of what is free)" in warned()[0]
