"""Checkpoints: whole at any moment, and honest about what is wrong with them."""

import errno
import json
import os
import pickle
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from difftop.run import checkpoint as module
from difftop.run.checkpoint import CheckpointError, has_checkpoint, load_checkpoint, restore_replay, save_checkpoint
from tests.run.checkpoints import SPEC, add_episode, assert_same_from_now_on, new_replay, save


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ours runs."""


def test_dying_at_any_file_operation_leaves_a_loadable_checkpoint(tmp_path, monkeypatch):
    """Every save is cut off at its n-th operation on the disk, for every n, and the run goes on from what is there."""
    countdown = [10**9]

    def counted(function):
        def call(*args, **kwargs):
            countdown[0] -= 1
            if countdown[0] < 0:
                raise Killed
            return function(*args, **kwargs)

        return call

    for name in ("rename", "replace", "fsync", "unlink", "mkdir", "symlink", "rmdir"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    replay, twin = new_replay(), new_replay()
    add_episode(replay, 0)
    save(tmp_path, 0, replay)
    step, deaths = 0, 0
    for operations in range(200):
        add_episode(replay, step + 1)
        countdown[0] = operations
        try:
            save(tmp_path, step + 1, replay)
            finished = True
        except Killed:
            finished = False
        countdown[0] = 10**9
        loaded = load_checkpoint(tmp_path, agent_name="tdmpc")
        assert loaded.step in ((step + 1,) if finished else (step, step + 1))
        for path in (tmp_path / "checkpoints").glob("step_*"):
            load_checkpoint(path)  # none is ever seen half written or half removed
        assert float(loaded.model["w"][0, 0]) == loaded.train_state["step"] == loaded.step
        step, replay = loaded.step, new_replay()
        restore_replay(loaded, replay)
        deaths += not finished
        if finished:
            break
    assert finished and deaths > 15
    for number in range(step + 1):
        add_episode(twin, number)
    assert_same_from_now_on(replay, twin)
    save(tmp_path, step + 1, replay)
    save(tmp_path, step + 2, replay)
    assert not [p for p in (tmp_path / "checkpoints").rglob(".*")]


WRITER = """
    import os, random, signal, sys, time
    sys.path.insert(0, sys.argv[2])
    import torch
    torch.set_num_threads(1)
    from tests.run.test_checkpoint import add_episode, load_checkpoint, new_replay, restore_replay, save
    folder, chance, lives, saves = sys.argv[1], random.Random(0), 0, 0
    replay = new_replay(); add_episode(replay, 0); save(folder, 0, replay)
    while lives < 25 or saves < 20:  # a slow machine needs more lives to save that often
        child = os.fork()
        if child == 0:
            loaded = load_checkpoint(folder)
            replay = new_replay(); restore_replay(loaded, replay)
            for step in range(loaded.step + 1, 10**9):
                add_episode(replay, step); save(folder, step, replay)
        time.sleep(chance.uniform(0.0, 0.1)); os.kill(child, signal.SIGKILL); os.waitpid(child, 0)
        lives += 1
        loaded = load_checkpoint(folder)
        replay = new_replay(); restore_replay(loaded, replay)
        assert float(loaded.model["w"][0, 0]) == loaded.train_state["step"] == loaded.step >= saves
        saves = loaded.step
    print(saves)
"""


def test_a_writer_killed_at_random_times_leaves_a_loadable_checkpoint(tmp_path):
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path), root]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=600)
    assert result.returncode == 0, result.stderr
    last = int(result.stdout)
    replay, twin = new_replay(), new_replay()
    restore_replay(load_checkpoint(tmp_path), replay)
    for number in range(last + 1):
        add_episode(twin, number)
    assert_same_from_now_on(replay, twin)


@pytest.mark.parametrize("fatal", range(5))
def test_a_full_disk_keeps_the_last_checkpoint_and_clears_the_unfinished_one(tmp_path, monkeypatch, fatal):
    replay = new_replay()
    add_episode(replay, 0)
    save(tmp_path, 1, replay)
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    add_episode(replay, 1)
    files, write = iter(range(100)), module._write

    def write_until_full(path, data):
        if next(files) == fatal:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", write_until_full)
        with pytest.raises(
            CheckpointError, match=r"can't save a checkpoint in .*No space left on device; .*free some disk space"
        ):
            save(tmp_path, 2, replay)
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before
    assert load_checkpoint(tmp_path).step == 1
    save(tmp_path, 3, replay)
    again = new_replay()
    restore_replay(load_checkpoint(tmp_path), again)
    assert_same_from_now_on(again, replay)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no permission to mount")
    try:
        replay, step = new_replay(capacity=6000), 0
        add_episode(replay, 0)
        with pytest.raises(CheckpointError, match="No space left on device"):
            for step in range(1, 400):
                save(disk, step, replay)
                add_episode(replay, step)
        loaded, again = load_checkpoint(disk), new_replay(capacity=6000)
        assert loaded.step == step - 1 > 1
        restore_replay(loaded, again)
        assert len(again) == 12 * (step - 1)
        assert not [p for p in disk.rglob(".*")]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def damaged(tmp_path, damage):
    replay = new_replay()
    add_episode(replay, 0)
    path = save(tmp_path, 1, replay)
    damage(path)
    restore_replay(load_checkpoint(tmp_path, agent_name="tdmpc"), new_replay())


def truncate(name):
    def damage(path):
        file = next(path.parent.rglob(name))
        file.write_bytes(file.read_bytes()[:-20])

    return damage


def flip(name):
    def damage(path):
        file = next(path.parent.rglob(name))
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data))

    return damage


def remove(name):
    return lambda path: next(path.parent.rglob(name)).unlink()


def edit(**changes):
    """A manifest as another version wrote it, without a checksum of its own."""

    def damage(path):
        manifest = json.loads((path / "manifest.json").read_text())
        del manifest["sha256"]
        (path / "manifest.json").write_text(json.dumps(manifest | changes))

    return damage


@pytest.mark.parametrize(
    "damage, message",
    [
        (truncate("model.safetensors"), r"model.safetensors has \d+ bytes instead of \d+, so it is truncated"),
        (truncate("train_state.pt"), "train_state.pt has .* truncated"),
        (truncate("manifest.json"), "manifest.json is damaged"),
        (truncate("rows_*"), r"rows_0000000000-0000000013_\w+.safetensors has .* truncated"),
        (flip("model.safetensors"), "model.safetensors doesn't match its checksum"),
        (flip("train_state.pt"), "train_state.pt doesn't match its checksum"),
        (flip("rows_*"), "rows_.* doesn't match its checksum"),
        (remove("config.json"), "config.json is missing"),
        (remove("spec.json"), "spec.json is missing"),
        (remove("manifest.json"), "manifest.json is missing"),
        (remove("rows_*"), "rows_.* is missing"),
        (edit(agent="difftop_rl"), "was saved by agent 'difftop_rl', not 'tdmpc': set agent=difftop_rl"),
        (
            edit(format=1, difftop="0.0"),
            r"is of checkpoint format 1, written by difftop 0.0; this is difftop .* which reads format 2: .* train anew",
        ),
        (edit(files={}), "step_000000001 can't be read"),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence_that_names_the_file(tmp_path, damage, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        damaged(tmp_path, damage)
    assert "\n" not in str(caught.value)


def test_no_bit_of_a_manifest_flips_unseen(tmp_path):
    """Its step, or the name of its agent, would else be believed."""
    replay = new_replay()
    add_episode(replay, 0)
    path, chance = save(tmp_path, 1, replay), random.Random(0)
    whole, expected = (path / "manifest.json").read_bytes(), load_checkpoint(tmp_path)
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << chance.randrange(8)
        (path / "manifest.json").write_bytes(bytes(data))
        try:
            found = load_checkpoint(tmp_path)
        except CheckpointError as error:
            assert "manifest.json is damaged" in str(error) and "\n" not in str(error)
        else:  # one kind of space is as good as another
            assert (found.step, found.agent_name, found.rows) == (expected.step, expected.agent_name, expected.rows)
            assert chr(data[place]).isspace()


def test_a_damaged_older_checkpoint_does_not_hinder_saving(tmp_path):
    replay, again = new_replay(), new_replay()
    add_episode(replay, 0)
    truncate("manifest.json")(save(tmp_path, 1, replay))
    add_episode(replay, 1)
    save(tmp_path, 2, replay)
    restore_replay(load_checkpoint(tmp_path), again)
    assert_same_from_now_on(again, replay)


def test_pickled_code_is_never_run(tmp_path):
    path = save(tmp_path, 1)
    torch.save({"run": random.Random(0), "replay": None}, path / "train_state.pt")
    data = (path / "train_state.pt").read_bytes()
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["files"]["train_state.pt"] = {"bytes": len(data), "sha256": module._sha256(data)}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="can't be read") as caught:
        load_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


def test_rows_that_are_something_else_are_one_sentence(tmp_path):
    """With the right checksum: somebody meant it."""
    replay = new_replay()
    add_episode(replay, 0)
    path = save(tmp_path, 1, replay)
    data = pickle.dumps(random.Random(0))
    (rows,) = path.parent.joinpath("replay").iterdir()
    rows.write_bytes(data)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["replay"][0] |= {"bytes": len(data), "sha256": module._sha256(data)}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"its replay can't be restored \(.*\): choose an older checkpoint") as caught:
        restore_replay(load_checkpoint(tmp_path), new_replay())
    assert "\n" not in str(caught.value)


def test_bad_calls_say_what_is_wrong(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint in .*nowhere"):
        load_checkpoint(tmp_path / "nowhere")
    assert not has_checkpoint(tmp_path)
    with pytest.raises(TypeError, match=r"train_state\['a'\]\[1\] is a Random"):
        save_checkpoint(tmp_path, step=0, agent_name="x", config={}, spec=SPEC, model={}, train_state={"a": [1, random.Random()]})
    with pytest.raises(ValueError, match="keep=0"):
        save(tmp_path, 0, keep=0)
    assert not list(tmp_path.iterdir())
    replay = new_replay()
    add_episode(replay, 0)
    save(tmp_path, 0, replay)
    with pytest.raises(CheckpointError, match="saved replay has rows=65 but this run has rows=130: resume with the same"):
        restore_replay(load_checkpoint(tmp_path), new_replay(capacity=120))


def test_loading_changes_nothing_on_disk(tmp_path):
    save(tmp_path, 1, keep=2)
    (tmp_path / "checkpoints" / ".writing_step_000000002").mkdir()
    before = sorted((str(p), p.lstat().st_mtime_ns) for p in tmp_path.rglob("*"))
    load_checkpoint(tmp_path)
    assert sorted((str(p), p.lstat().st_mtime_ns) for p in tmp_path.rglob("*")) == before
    (tmp_path / "checkpoints" / "last").unlink()
    assert load_checkpoint(tmp_path).step == 1
