"""Names of tasks as a report writes them, whoever wrote them."""

from __future__ import annotations

FAMILIES = ("dmc", "gym", "metaworld", "maniskill", "robomimic", "robosuite", "toy")
ALIASES = {"ball-in-cup-catch": "cup-catch"}


def task_names(raw: set[str]) -> dict[str, str]:
    """Tasks without the simulator's prefix (`dmc-walker-walk` is `walker-walk`), unless two simulators have one of that name."""
    families: dict[str, set[str]] = {}
    for name in raw:
        family, task = _family(name)
        families.setdefault(task, set()).update([family] if family else [])
    names = {}
    for name in raw:
        family, task = _family(name)
        names[name] = f"{family}-{task}" if family and len(families[task]) > 1 else task
    return names


def bare_task(name: str) -> str:
    """`cup-catch`, of `dmc-ball_in_cup-catch`."""
    return _family(name)[1]


def _family(name: str) -> tuple[str, str]:
    """Simulator, empty where unknown, and task."""
    hyphens = name.lower().replace("_", "-").replace("/", "-")
    family, _, task = hyphens.partition("-")
    family, task = (family, task) if family in FAMILIES and task else ("", hyphens)
    return family, ALIASES.get(task, task)
