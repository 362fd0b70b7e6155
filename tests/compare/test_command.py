"""The command lines of the comparison and of the status, and those in the documentation."""

from __future__ import annotations

import logging
import re
import shlex
from pathlib import Path

import pytest

from difftop.compare import compare_command, compare_config, status_command, status_config
from difftop.key_values import parsed
from difftop.options import ConfigError
from tests.compare.folders import make_run

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = re.findall(r"python train\.py mode=(compare|status)((?: [^\s`#]+)*)", (ROOT / "docs" / "compare.md").read_text())


def test_compare_writes_and_says_where(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_run(tmp_path / "runs")
    with caplog.at_level(logging.INFO):
        assert compare_command(["mode=compare", f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'out'}", "frames=2e2"]) == 0
    assert f"1 curve on 1 task; 0 notes on what was left out: {tmp_path}/out/report.html" in caplog.text


def test_status_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path)
    assert status_command(["mode=status", f"root={tmp_path}", "seeds=[1,2]"]) == 0
    assert ": 2 runs: 1 finished, 1 missing" in capsys.readouterr().out


def test_single_values_stand_for_lists() -> None:
    config = compare_config(parsed(["mode=compare", "runs=a", "references=[b,c]", "frames=1e5", "scale=2"]))
    assert (config.runs, config.references, config.frames, config.scale) == (["a"], ["b", "c"], [100_000], 2.0)
    assert status_config(parsed(["seeds=[1,2]", "agents=tdmpc"])).seeds == [1, 2]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("runs", r"runs: write KEY=VALUE"),
        ("=3", r"=3: write KEY=VALUE"),
        ("runs=[a", r"runs=\[a: can't be read"),
        ("frame=3", r"frame: unknown option. Did you mean 'frames'"),
        ("frames=2.5", r"frames"),
        ("min_coverage=2", r"min_coverage=2.0: must be >= 0, <= 1"),
    ],
)
def test_mistakes_are_one_sentence(argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare_config(parsed([argument]))


@pytest.mark.parametrize(("mode", "words"), COMMANDS)
def test_the_commands_of_the_page_are_understood(mode: str, words: str) -> None:
    values = parsed(shlex.split(words))
    assert values and (compare_config if mode == "compare" else status_config)(values)


def test_the_page_tells_every_option() -> None:
    text = (ROOT / "docs" / "compare.md").read_text()
    assert {mode for mode, _ in COMMANDS} == {"compare", "status"}
    keys = [*vars(compare_config({})), *vars(status_config({}))]
    assert [key for key in keys if f"`{key}`" not in text] == []
