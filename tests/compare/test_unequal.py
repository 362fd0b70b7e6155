"""Which settings are said to differ between the runs of a comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from difftop.compare.curves import read
from difftop.compare.unequal import unequal
from tests.compare.folders import make_run


def said(root: Path, first: dict[str, Any], second: dict[str, Any], **of_second: Any) -> dict[str, str]:
    """The notes on two runs, which have these settings beside those of `make_run`, by their subjects."""
    runs = [make_run(root, **{"seed": 1}), make_run(root, **{"seed": 1} | of_second)]
    for folder, settings in zip(runs, (first, second), strict=True):
        config = json.loads((folder / "config.json").read_text())
        for group, options in settings.items():
            config[group] |= options
        (folder / "config.json").write_text(json.dumps(config))
    return {note.subject: note.text for note in unequal(read([root], []), {}, [])}


@pytest.mark.parametrize(
    ("obs", "precisions", "differ"),
    [("state", ("fp32", "auto"), False), ("state", ("bf16", "auto"), True), ("pixels", ("fp32", "auto"), True)],
)
def test_the_automatic_precision_is_what_it_comes_to(tmp_path: Path, obs: str, precisions: tuple[str, str], differ: bool) -> None:
    first, second = ({"env": {"obs": obs}, "top": {"precision": precision}} for precision in precisions)
    assert ("top.precision on walker-walk" in said(tmp_path / "methods", first, second, agent="difftop_rl")) == differ
    notes = said(tmp_path / "seeds", first, second, seed=2)
    assert ("its seeds ran with different settings: top.precision" in notes.values()) == differ


def test_settings_that_differ_are_said_with_their_values(tmp_path: Path) -> None:
    notes = said(tmp_path, {"run": {"batch_size": 64}}, {"run": {"batch_size": 256}}, agent="difftop_rl")
    assert notes["run.batch_size on walker-walk"] == "difftop_rl: 256; tdmpc: 64"
