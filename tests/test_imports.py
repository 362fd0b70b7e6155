"""Imports go in one direction, without a circle; what is optional stays optional."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.imports import Import, circles, imports, modules

ROOT = Path(__file__).parents[1]
SIMULATORS = ("dm_control", "mujoco", "metaworld", "robosuite", "mani_skill", "sapien", "gymnasium", "envs")


@pytest.fixture(scope="module")
def ours() -> list[Import]:
    return imports(modules(ROOT, ("difftop", "agents", "envs", "train")))


def room(name: str) -> str:
    return name.partition(".")[0]


def listed(wrong: list[Import]) -> str:
    return "".join(f"\n  {step}" for step in wrong)


def test_there_is_no_circle(ours: list[Import]) -> None:
    found = circles(ours)
    told = "".join(f"\ncircle {i}:{listed(circle)}" for i, circle in enumerate(found, 1))
    assert not found, f"{len(found)} circle(s); a part of one file that the other needs belongs into a third.{told}"


@pytest.mark.parametrize(
    ("importer", "never"),
    [("difftop", ("agents", "envs", "train")), ("agents", ("envs", "train")), ("envs", ("agents", "train"))],
)
def test_imports_go_in_one_direction(ours: list[Import], importer: str, never: tuple[str, ...]) -> None:
    wrong = [step for step in ours if room(step.source) == importer and room(step.target) in never]
    assert not wrong, f"{importer} must not import {' or '.join(never)}:{listed(wrong)}"


def test_one_file_imports_theseus(ours: list[Import]) -> None:
    wrong = [step for step in ours if room(step.target) == "theseus" and step.source != "difftop.planning.theseus_lm"]
    assert not wrong, f"only difftop/planning/theseus_lm.py imports theseus:{listed(wrong)}"
    assert any(room(step.target) == "theseus" for step in ours)


WITHOUT = f"""
import importlib, sys
from importlib.machinery import PathFinder
from pathlib import Path

sys.path.insert(0, {str(ROOT)!r})

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {(*SIMULATORS, "theseus")!r} else super().find_spec(name, path, target)

sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""


def without_simulators(code: str) -> str:
    """What `code` prints where no simulator and no Theseus is installed."""
    done = subprocess.run([sys.executable, "-c", WITHOUT + code], capture_output=True, text=True, timeout=300)
    return done.stdout.strip() or done.stderr


def test_difftop_and_agents_need_no_simulator_and_no_theseus() -> None:
    code = f"""
import difftop, agents
from tests.imports import modules
failed = []
for name in modules(Path({str(ROOT)!r}), ("difftop", "agents")):
    try:
        if name != "difftop.planning.theseus_lm":
            importlib.import_module(name)
    except ImportError as error:
        failed.append(f"{{name}}: {{error}}")
print(failed)
"""
    assert without_simulators(code) == "[]"


def test_only_an_agent_that_is_to_plan_by_theseus_asks_for_it() -> None:
    code = """
import torch
from agents.registry import make_agent
from difftop.options import ConfigError
from difftop.types import EnvSpec, ObsSpec

spec = EnvSpec("toy/reach", {"state": ObsSpec("vector", (4,))}, 2, 25, 0.1, gives=frozenset({"reward", "success"}))
wanted = {"acting": {"lm": {"backend": "theseus"}}}
for name in ("bc", "leto", "tdmpc", "difftop_rl", "theseus"):
    try:
        options = {"name": "difftop_rl", **wanted} if name == "theseus" else {"name": name}
        agent = make_agent(options, spec, seed=0, total_steps=10)
        actor = agent.actor(1, seed=0)
        actor.begin(0, 0)
        print(name, list(actor.act({"state": torch.zeros(1, 4)}, torch.ones(1, dtype=torch.bool), 0).shape))
    except ConfigError as error:
        print(name, "\\n" not in str(error) and "not installed" in str(error) and "docs/install.md" in str(error))
"""
    assert without_simulators(code).splitlines() == [
        "bc [1, 2]",
        "leto [1, 2]",
        "tdmpc [1, 2]",
        "difftop_rl [1, 2]",
        "theseus True",
    ]


def write(root: Path, files: dict[str, str]) -> list[Import]:
    for name, text in files.items():
        (path := root / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return imports(modules(root, ("house", "train")))


def test_circles_are_found_however_they_are_hidden(tmp_path: Path) -> None:
    found = write(
        tmp_path,
        {
            "house/__init__.py": "from house.top import top\n",
            "house/top.py": "import os\nfrom house import left\nfrom house.rooms.deep import thing\n\ndef top():\n    pass\n",
            "house/left.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .right import Right\n",
            "house/right.py": "def late():\n    import house.left\n",
            "house/rooms/__init__.py": "",
            "house/rooms/deep.py": "from .. import alone\nfrom ..ring import a\nthing = 1\n",
            "house/ring.py": "from house.rooms.other import b\n",
            "house/rooms/other.py": "from house.rooms.deep import thing\n",
            "house/alone.py": "import house.rooms\n",
            "train.py": "import house.top\n",
        },
    )
    told = [[(step.source, step.target, step.line, step.how) for step in circle] for circle in circles(found)]
    assert told == [
        [("house.left", "house.right", 3, " for types"), ("house.right", "house.left", 2, " inside a function")],
        [
            ("house.ring", "house.rooms.other", 1, ""),
            ("house.rooms.other", "house.rooms.deep", 1, ""),
            ("house.rooms.deep", "house.ring", 2, ""),
        ],
    ]
    assert "house.right, line 2, imports house.left inside a function" in listed(circles(found)[0])
    assert Import("train", "house.top", 1, "") in found and Import("house.rooms.deep", "house.alone", 1, "") in found


def test_a_package_and_its_own_file_may_be_a_circle_too(tmp_path: Path) -> None:
    found = write(tmp_path, {"house/__init__.py": "from house.a import x\n", "house/a.py": "from house import y\n"})
    assert [[step.source for step in circle] for circle in circles(found)] == [["house", "house.a"]]
