"""Evaluated episodes: what is read, and the paper's tables from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from difftop.compare.document import Table
from difftop.compare.imitation import imitation_blocks, read_evaluations
from difftop.stats import wilson
from tests.compare.folders import table

HEADER = "episode,env_seed,success,success_end,success_step,steps,return,acc_mean,contact_max_n"
ACC = {f"acc_{s}_{g}": 0.01 for s in ("mean", "max", "std", "peak") for g in ("lin", "rot")}


def make_evaluation(
    root: Path,
    successes: list[int],
    *,
    agent: str = "leto",
    seed: int = 1,
    where: str = "evaluation",
    metrics: dict[str, float] | None = None,
    protocol: str = "leto_mh",
    first: int = 100,
) -> Path:
    folder = root / "robomimic-can" / agent / "default" / f"seed{seed}" / where
    rows = [f"{i},{first + i},{s},{int(s and i % 2)},{i if s else -1},40,{s},0.02," for i, s in enumerate(successes)]
    path = table(folder / "episodes.csv", "\n".join([HEADER, *rows]) + "\n")
    if metrics is not None:
        (folder / "summary.json").write_text(json.dumps({"protocol": protocol, "metrics": {"success": 0.5} | metrics}))
    return path


def outside(steps: float, worst: float) -> dict[str, float]:
    return {"violations_velocity": steps, "excess_velocity": worst}


def tables(evaluations: list) -> list[Table]:
    return [block for block in imitation_blocks(evaluations) if isinstance(block, Table)]


def test_success_is_that_of_all_episodes_with_its_wilson_interval(tmp_path: Path) -> None:
    paths = [make_evaluation(tmp_path, [1, 1, 0, 1], seed=s) for s in (1, 2)] + [make_evaluation(tmp_path, [0] * 8, agent="bc")]
    evaluations, notes = read_evaluations(paths)
    (success,) = tables(evaluations)
    rows = {row[1]: row for row in success.rows}
    low, high = (100 * x for x in (wilson(6, 8).low, wilson(6, 8).high))
    assert rows["leto"] == ("robomimic-can".removeprefix("robomimic-"), "leto", "2", "8", f"75.0 [{low:.1f}, {high:.1f}]",
                            rows["leto"][5], "75.0 to 75.0")  # fmt: skip
    assert rows["leto"][5].startswith("50.0 [") and rows["bc"][4].startswith("0.0 [0.0, ") and rows["bc"][6] == "one seed"
    assert {note.subject: note.text for note in notes} == {
        "Initial states on can": "not the same environment seeds for every method"
    }


def test_tables_two_three_and_five(tmp_path: Path) -> None:
    contact = {"contact_avg_max": 13.2, "contact_peak": 27.3}
    late = {f"{k}_to_success": 2 * v for k, v in ACC.items()}
    paths = [
        make_evaluation(tmp_path, [1, 0], seed=1, metrics=ACC | late | contact | outside(3.0, 0.2)),
        make_evaluation(
            tmp_path, [1, 1], seed=2, metrics={k: 3 * v for k, v in ACC.items()} | late | contact | outside(1.0, 0.5)
        ),
        make_evaluation(tmp_path, [1, 1], agent="bc", metrics=ACC | {"acc_mean_lin": 0.0215} | late),
    ]
    evaluations, _ = read_evaluations(paths)
    _, whole, until, limits, contacts = tables(evaluations)
    assert whole.header == ("method", "avg-mean-lin", "avg-max-lin", "avg-std-lin", "avg-mean-rot", "avg-max-rot", "avg-std-rot",
                            "num-of-opt")  # fmt: skip
    rows = {row[0]: row[1:] for row in whole.rows}
    assert rows["leto"][:2] == ("2.00 ± 1.41", "2.00 ± 1.41") and rows["bc"][:2] == ("2.15", "1.00")
    assert rows["leto"][-1] == "1" and rows["bc"][-1] == "6"  # 2.15 is within 1.1 times 2.00, 2.00 is not within 1.1 times 1.00
    assert {c for r, c in whole.bold if whole.rows[r][0] == "leto"} == {1}
    assert "whole episodes" in whole.caption and "without the steps after success" in until.caption
    assert limits.rows == [("leto", "4", "0.5")]
    assert contacts.rows == [("leto", "13.20 ± 0.00", "27.3", "3/4")]


def test_the_reported_evaluation_counts_and_another_head_is_another_method(tmp_path: Path) -> None:
    paths = [
        make_evaluation(tmp_path, [1, 1]),
        make_evaluation(tmp_path, [0, 0], where="eval/step_000000100-seed1"),
        make_evaluation(tmp_path, [0, 1], where="eval/step_000000100-seed1-head-clip"),
        make_evaluation(tmp_path, [0, 0, 1], where="eval/step_000000900-seed1-execute-4"),
        make_evaluation(tmp_path, [1, 0], agent="bc", where="eval/step_000000100-seed1"),
        make_evaluation(tmp_path, [1, 1], agent="bc", where="eval/step_000000200-seed1"),
    ]
    evaluations, notes = read_evaluations(paths)
    assert {e.label: sum(x.success for x in e.episodes) for e in evaluations} == {
        "leto": 2,
        "leto, head clip": 1,
        "leto, execute 4": 1,
        "bc": 2,
    }
    said = {(note.subject, note.text) for note in notes}
    twice = "was evaluated more than once; {} counts, and not step_000000100-seed1"
    assert ("leto on can, seed 1", twice.format("evaluation")) in said
    assert ("bc on can, seed 1", twice.format("step_000000200-seed1")) in said
    text = "reported nothing itself; the evaluation step_000000200-seed1 of a checkpoint counts"
    assert ("bc on can, seed 1", text) in said and ("leto on can, seed 1", text) not in said


def test_one_run_in_two_roots_counts_once_and_a_run_without_episodes_is_said(tmp_path: Path) -> None:
    first, second = make_evaluation(tmp_path / "a", [1, 1]), make_evaluation(tmp_path / "b", [0, 0])
    training = tmp_path / "a" / "robomimic-can" / "leto" / "default" / "seed2"
    evaluations, notes = read_evaluations([first, second], [first.parent.parent, training])
    assert [sum(x.success for x in e.episodes) for e in evaluations] == [2]
    assert {note.subject: note.text for note in notes} == {
        str(second): f"the same method, task, seed and evaluation are in {first}",
        str(training): "has no evaluated episodes yet",
    }


def test_tasks_of_two_simulators_are_not_pooled(tmp_path: Path) -> None:
    other = make_evaluation(tmp_path / "x", [0, 0])
    moved = tmp_path / "robosuite-Can" / "leto" / "default" / "seed1" / "evaluation"
    moved.parent.mkdir(parents=True)
    other.parent.rename(moved)
    evaluations, _ = read_evaluations([make_evaluation(tmp_path, [1, 1]), moved / "episodes.csv"])
    assert {e.task: sum(x.success for x in e.episodes) for e in evaluations} == {"robomimic-can": 2, "robosuite-can": 0}


def test_protocols_and_numbers_of_episodes_that_differ_are_said(tmp_path: Path) -> None:
    paths = [
        make_evaluation(tmp_path, [1, 1], metrics=ACC),
        make_evaluation(tmp_path, [1, 1, 1], agent="bc", metrics=ACC, protocol="difftop"),
    ]
    said = {note.subject: note.text for note in read_evaluations(paths)[1]}
    assert said["Protocol on can"] == "bc: difftop; leto: leto_mh"
    assert said["Evaluated episodes on can"] == "bc 3; leto 2"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("episode,env_seed\n0,1\n", "has no column success"),
        ("", "has no column success"),
        ("episode,success\n", "holds no episode"),
        ("episode,success\n0,1\n1,perhaps\n2,7\n", "2 rows left out; the first: line 3: success is 'perhaps'"),
        ("episode,env_seed,success\n0,5,1\n1,5,1\n", "1 episode of an environment seed that is there already, not counted again"),
    ],
)
def test_bad_episodes_are_said(tmp_path: Path, text: str, problem: str) -> None:
    path = table(tmp_path / "can" / "leto" / "episodes.csv", text)
    evaluations, notes = read_evaluations([path])
    assert [note.text for note in notes] == [problem]
    assert [len(e.episodes) for e in evaluations] == ([1] if "row" in problem or "already" in problem else [])


def test_episodes_without_known_success_are_passed_over_and_columns_stand_in_for_a_summary(tmp_path: Path) -> None:
    nothing = table(tmp_path / "a" / "episodes.csv", "episode,env_seed,return,success,agent_steps\n0,1,5,nan,10\n")
    assert read_evaluations([nothing]) == ([], [])
    columns = "success,steps,acc_mean_lin,acc_peak_lin,violations_velocity\nTrue,5,0.1,0.5,2\nfalse,7,0.3,0.2,1\n"
    (found,) = read_evaluations([table(tmp_path / "leto" / "can" / "episodes.csv", columns)])[0]
    assert (found.task, found.label, [e.steps for e in found.episodes]) == ("can", "leto", [5, 7])
    assert found.metrics == {"acc_mean_lin": pytest.approx(0.2), "acc_peak_lin": 0.5, "violations_velocity": 3}


def test_a_bad_summary_is_said(tmp_path: Path) -> None:
    path = make_evaluation(tmp_path, [1], metrics=ACC)
    path.with_name("summary.json").write_text("[]")
    evaluations, notes = read_evaluations([path])
    assert len(evaluations) == 1 and "is no summary of an evaluation" in notes[0].text
