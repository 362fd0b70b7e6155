"""The notebook of the documentation: its code cells run, one after the other, and what they train acts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = json.loads((Path(__file__).resolve().parents[1] / "docs" / "quickstart.ipynb").read_text())
CELLS = {cell["id"]: "".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"}


def test_the_notebook_is_clean_nbformat_4() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["metadata"]["kernelspec"]["name"]) == (4, "python3")
    cells = NOTEBOOK["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    names: dict[str, Any] = {}
    for cell, source in CELLS.items():
        exec(compile(source, f"quickstart.ipynb:{cell}", "exec"), names)
    plt.close("all")
    run, policy = names["run"], names["policy"]
    assert run.finished and Path(run.folder).resolve().is_relative_to(tmp_path)
    assert run.evaluation["return_mean"] > 15  # the optimum is about 23, doing nothing about 7
    assert names["action"].shape == (policy.spec.action_dim,) and (abs(names["action"]) <= 1).all()
    assert len(names["frames"]) == 5
