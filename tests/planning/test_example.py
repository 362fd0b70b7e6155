"""The example runs, and plans better than its prior."""

import runpy
from pathlib import Path

from difftop.planning import rollout_return


def test_point_mass_example() -> None:
    names = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "plan_point_mass.py"))
    prior = rollout_return(names["model"], names["z0"], names["prior"])
    assert (names["plan"].value > prior).all() and (names["sampled"].value > prior).all()
