"""The tables of a run: what a row looks like, and that a killed and resumed run's equal an uninterrupted one's."""

import csv
import errno
import os
import threading
import tracemalloc

import pytest

from difftop.run.logger import CsvError, CsvLog, RunLogger


def train(logger, episodes, late_tag_from=6):
    """Rows that are a function of the episode; a tag appears for the first time at episode `late_tag_from`."""
    for episode in episodes:
        metrics = {"loss/value": episode / 3, "train/return": 10.0 * episode}
        if episode >= late_tag_from:
            metrics["plan/failures"] = float(episode)
        logger.training(
            env_frames=episode * 8, agent_steps=episode * 4, wall_s=0.5, episode_return=10.0 * episode, metrics=metrics
        )
        if episode % 2 == 0:
            logger.evaluation(
                env_frames=episode * 8,
                agent_steps=episode * 4,
                wall_s=0.5,
                return_mean=episode / 7,
                return_std=1.0,
                success_mean=float("nan"),
                episodes=5,
            )
    logger.sync()


def test_a_long_table_is_not_kept_in_memory(tmp_path):
    log = CsvLog(tmp_path / "a.csv", ("agent_steps",))
    row = {f"loss/{k}": 0.5 for k in range(20)}
    log.write(row | {"agent_steps": 0})
    tracemalloc.start()
    for step in range(1, 2000):
        log.write(row | {"agent_steps": step})
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 50_000 and len(log) == 2000
    log.write({"agent_steps": 2000, "late": 1.0})  # a new column: every row is written again
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [int(row["agent_steps"]) for row in rows] == list(range(2001)) and rows[7]["loss/3"] == "0.5"
    assert (rows[7]["late"], rows[-1]["late"]) == ("", "1")


def tables(folder):
    return (folder / "metrics.csv").read_text(), (folder / "eval.csv").read_text()


def test_rows_are_what_was_logged(tmp_path):
    logger = RunLogger(tmp_path, seed=3, tensorboard=False)
    train(logger, range(1, 8))
    logger.close()
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert list(rows[0])[:5] == ["step", "reward", "seed", "agent_steps", "wall_s"]
    assert rows[1] | {"loss/value": "", "train/return": ""} == {
        "step": "16", "reward": "20", "seed": "3", "agent_steps": "8", "wall_s": "0.5",
        "loss/value": "", "train/return": "", "plan/failures": "",
    }  # fmt: skip
    assert float(rows[1]["loss/value"]) == pytest.approx(2 / 3, rel=1e-7)
    assert rows[6]["plan/failures"] == "7"
    evaluations = (tmp_path / "eval.csv").read_text().splitlines()
    assert evaluations[0] == "env_frames,agent_steps,return_mean,return_std,success_mean,episodes,wall_s"
    assert evaluations[1] == "16,8,0.28571429,1,,5,0.5"


@pytest.mark.parametrize("torn", ["", "88,110", "88,110,1,44,0.5,3.", '"'])
@pytest.mark.parametrize("checkpoint", [0, 1, 3, 6, 9])
def test_resumed_tables_equal_uninterrupted_ones(tmp_path, checkpoint, torn):
    train(RunLogger(tmp_path / "whole", seed=1, tensorboard=False), range(1, 12))
    train(RunLogger(tmp_path / "cut", seed=1, tensorboard=False), range(1, 11))  # written on after the checkpoint, then killed
    for name in ("metrics.csv", "eval.csv"):
        with (tmp_path / "cut" / name).open("a") as file:
            file.write(torn)
    train(RunLogger(tmp_path / "cut", seed=1, resume_at=checkpoint * 4, tensorboard=False), range(checkpoint + 1, 12))
    assert tables(tmp_path / "cut") == tables(tmp_path / "whole")


def test_rows_of_the_checkpoints_own_step_that_came_after_it_are_dropped(tmp_path):
    """Saved at episode 3, before its rows; then stopped, resumed, killed and resumed again."""
    train(RunLogger(tmp_path / "whole", seed=1, tensorboard=False), range(1, 7))
    logger = RunLogger(tmp_path / "cut", seed=1, tensorboard=False)
    train(logger, range(1, 4))
    rows = logger.state_dict()
    assert rows == {"training": 3, "evaluation": 1}
    for last in (5, 7):
        train(RunLogger(tmp_path / "cut", seed=1, resume_at=16, rows=rows, tensorboard=False), range(4, last))
    assert tables(tmp_path / "cut") == tables(tmp_path / "whole")


def test_a_new_run_starts_the_tables_again(tmp_path):
    train(RunLogger(tmp_path, seed=1, tensorboard=False), range(1, 5))
    RunLogger(tmp_path, seed=1, tensorboard=False)
    assert [len(text.splitlines()) for text in tables(tmp_path)] == [1, 1]


def test_tables_that_cannot_be_continued_say_why(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(CsvError, match=r"t.csv has no column agent_steps"):
        CsvLog(path, ("a",), resume_at=0)
    path.write_text("a,agent_steps\n1,2\n1,x\n")
    with pytest.raises(CsvError, match=r"t.csv:3: agent_steps is 'x'"):
        CsvLog(path, ("a",), resume_at=0)
    path.write_text("")
    CsvLog(path, ("a", "agent_steps"), resume_at=0)
    assert path.read_text() == "a,agent_steps\n"


def test_values_with_commas_and_quotes_survive(tmp_path):
    log = CsvLog(tmp_path / "t.csv", ("agent_steps", "note"))
    log.write({"agent_steps": 1, "note": 'a "b", c'})
    CsvLog(tmp_path / "t.csv", ("agent_steps", "note"), resume_at=1)
    assert next(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))["note"] == 'a "b", c'


def test_tensorboard_gets_the_same_numbers_and_forgets_what_was_after_the_checkpoint(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = RunLogger(tmp_path, seed=1)
    train(logger, range(1, 6))
    logger.close()
    logger = RunLogger(tmp_path, seed=1, resume_at=12, resume_frames=24)
    train(logger, [4])
    logger.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/return")] == [(8, 10), (16, 20), (24, 30), (32, 40)]
    assert [e.step for e in events.Scalars("eval/return_mean")] == [16, 32]


def test_a_full_disk_is_one_error_and_no_traceback_of_a_thread(tmp_path, monkeypatch, capsys):
    from tensorboard.summary.writer.record_writer import RecordWriter

    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def broken():
        raise OSError("another thread's")

    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    monkeypatch.setattr(RecordWriter, "write", full)
    with pytest.raises(OSError, match="No space left"):
        for logger in [RunLogger(tmp_path, seed=1) for _ in range(2)]:
            train(logger, range(1, 6))
    assert "Traceback" not in capsys.readouterr().err

    other = threading.Thread(target=broken)
    other.start()
    other.join()
    assert "another thread's" in capsys.readouterr().err
