"""Checkpoints: bit-exact, and only as many as are needed."""

import json
import os

import pytest
import torch

from difftop.run import checkpoint as module
from difftop.run.checkpoint import CheckpointError, has_checkpoint, load_checkpoint, restore_replay, save_checkpoint
from tests.run.checkpoints import SPEC, add_episode, assert_same_from_now_on, new_replay, save


def test_everything_comes_back_bit_for_bit(tmp_path):
    weights = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(weights.parameters())
    weights(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    generator = torch.Generator().manual_seed(3)
    state = {
        "optimizer": optimizer.state_dict(),
        "generator": generator.get_state(),
        "big": 2**127 + 1,
        "mixed": [1, 2.5, None, True, "x", (b"y", {"z": torch.tensor(float("nan"))})],
    }
    model = {name: value.detach() for name, value in weights.state_dict().items()} | {"half": torch.ones(2, dtype=torch.bfloat16)}
    model["tied"] = model["weight"]
    named = {"agent_name": "tdmpc", "config": {"lr": 1e-3, "n": [1]}, "spec": SPEC}
    path = save_checkpoint(tmp_path, step=7, **named, model=model, train_state=state)
    assert path.name == "step_000000007" and has_checkpoint(tmp_path)
    for source in (tmp_path, path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "last"):
        loaded = load_checkpoint(source, agent_name="tdmpc")
    assert (loaded.step, loaded.agent_name, loaded.config, loaded.spec) == (7, "tdmpc", {"lr": 1e-3, "n": [1]}, SPEC)
    acting = load_checkpoint(tmp_path, training=False)
    assert acting.train_state == {} and acting.spec == SPEC and acting.model.keys() == model.keys()
    assert loaded.model.keys() == model.keys()
    assert all(
        torch.equal(loaded.model[name], value) and loaded.model[name].dtype == value.dtype for name, value in model.items()
    )
    assert loaded.train_state["big"] == state["big"] and loaded.train_state["mixed"][:5] == state["mixed"][:5]
    assert torch.equal(loaded.train_state["generator"], generator.get_state())
    moments = loaded.train_state["optimizer"]["state"]
    assert torch.equal(moments[0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    with pytest.raises(CheckpointError, match="holds no replay"):
        restore_replay(loaded, new_replay())


def test_replay_resumes_bit_for_bit_after_many_incremental_saves(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ROWS_FILE_BYTES", 2000)
    replay, twin = new_replay(), new_replay()
    for number in range(25):  # five times around the ring, resumed at every fourth episode
        add_episode(replay, number)
        add_episode(twin, number)
        save(tmp_path, number, replay)
        if number % 4 == 3:
            replay = new_replay()
            restore_replay(load_checkpoint(tmp_path), replay)
    assert_same_from_now_on(replay, twin)


def test_only_new_rows_are_written_and_old_files_go(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ROWS_FILE_BYTES", 10_000)
    written = []
    monkeypatch.setattr(
        module, "_write", lambda path, data, write=module._write: (written.append((path, len(data))), write(path, data))
    )
    replay = new_replay(capacity=1200)
    for number in range(160):
        add_episode(replay, number)
        if number % 3 == 0:
            save(tmp_path, number, replay)
            needed = load_checkpoint(tmp_path).rows
            assert needed[0].end > replay.begin and needed[-1].end == replay.end
            assert len(needed) < 20
    total = 160 * 13 * sum(column.nbytes for column in replay.read_rows(replay.begin, replay.begin + 1).values())
    rows_bytes = sum(size for path, size in written if "rows_" in path.name)
    assert rows_bytes < 6 * total  # each row is written O(log) times, not once per checkpoint (which would be about 30 times)
    held = {file for path in (tmp_path / "checkpoints").glob("step_*") for file in names(path)}
    assert {file.name for file in (tmp_path / "checkpoints" / "replay").iterdir()} == held


def names(path):
    return [entry["name"] for entry in json.loads((path / "manifest.json").read_text())["replay"]]


def test_keeps_the_newest_and_the_best(tmp_path):
    for step in range(5):
        save(tmp_path, step, keep=2, best=step == 1)
    home = tmp_path / "checkpoints"
    assert sorted(p.name for p in home.glob("step_*")) == ["step_000000001", "step_000000003", "step_000000004"]
    assert os.readlink(home / "last") == "step_000000004" and os.readlink(home / "best") == "step_000000001"
    assert load_checkpoint(home / "best").step == 1
    save(tmp_path, 4, keep=2, best=True)
    save(tmp_path, 5, keep=1)
    assert [p.name[:14] for p in sorted(home.glob("step_*"))] == ["step_000000004", "step_000000005"]
    assert load_checkpoint(home / "best").step == 4


def test_the_best_is_marked_before_the_run_goes_on_from_it(tmp_path, monkeypatch):
    save(tmp_path, 1, best=True)
    point = module._point

    def killed(link, target):
        if link.name == "last":
            raise KeyboardInterrupt
        point(link, target)

    monkeypatch.setattr(module, "_point", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2, best=True)
    assert load_checkpoint(tmp_path).step == 1 and load_checkpoint(tmp_path / "checkpoints" / "best").step == 2


def test_a_step_saved_again_replaces_the_earlier_one(tmp_path):
    save(tmp_path, 3, config={"life": 1})
    save(tmp_path, 3, config={"life": 2})
    save(tmp_path, 3, config={"life": 3})
    assert load_checkpoint(tmp_path).config == {"life": 3}
    assert len(list((tmp_path / "checkpoints").glob("step_*"))) == 1


def test_going_on_from_an_older_checkpoint_gives_up_the_later_ones(tmp_path):
    """Rows of the abandoned future must not come back, though their numbers are used again."""
    replay = new_replay()
    for number in range(2):
        add_episode(replay, number)
    older = save(tmp_path, 1, replay)
    for number in range(2, 4):
        add_episode(replay, number)
    save(tmp_path, 2, replay)
    resumed, twin = new_replay(), new_replay()
    restore_replay(load_checkpoint(older), resumed)
    for number in (0, 1, 20, 21, 22):
        add_episode(twin, number)
    for number in (20, 21, 22):
        add_episode(resumed, number)
    save(tmp_path, 1, resumed)
    again = new_replay()
    restore_replay(load_checkpoint(tmp_path), again)
    assert_same_from_now_on(again, twin)
    assert [load_checkpoint(p).step for p in (tmp_path / "checkpoints").glob("step_*")] == [1]


def test_saving_to_another_folder_saves_all_rows(tmp_path):
    replay, again = new_replay(), new_replay()
    add_episode(replay, 0)
    save(tmp_path / "a", 1, replay)
    add_episode(replay, 1)
    save(tmp_path / "b", 1, replay)
    restore_replay(load_checkpoint(tmp_path / "b"), again)
    assert_same_from_now_on(again, replay)
