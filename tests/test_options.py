"""Every mistake in an option becomes one sentence that names key, value and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from difftop.options import ConfigError, build, defaults, describe, option, suggest


@dataclass(frozen=True)
class Inner:
    """A nested group."""

    damping: float = option(10.0, "damping", above=0)
    objective: str = option("stagewise", "rows", choices=("stagewise", "return"))
    std: list[float] = option([0.5, 0.05], "schedule", low=0, high=1)


@dataclass(frozen=True)
class Outer:
    """A group."""

    count: int = option(3, "how many", low=1)
    flag: bool = option(True, "on or off")
    inner: Inner = option(Inner, "planner")


def test_build_takes_differences_from_the_defaults() -> None:
    made = build(Outer, {"count": 4, "inner": {"damping": 1, "std": [0.1, 0]}})
    assert made == Outer(4, True, Inner(1.0, "stagewise", [0.1, 0.0]))
    assert isinstance(made.inner.damping, float)
    assert build(Outer, defaults(Outer)) == Outer()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cuont": 1}, r"^agent\.cuont: unknown option\. Did you mean 'count'\? Options of 'agent': count, flag, inner\.$"),
        ({"inner": {"dampng": 1}}, r"^agent\.inner\.dampng: unknown option\. Did you mean 'damping'\?"),
        ({"count": "many"}, r"^agent\.count=many: must be a whole number\.$"),
        ({"count": 1.5}, r"^agent\.count=1\.5: must be a whole number\.$"),
        ({"count": None}, r"^agent\.count: "),
        ({"count": 0}, r"^agent\.count=0: must be >= 1 \(how many\)\.$"),
        ({"flag": "maybe"}, r"^agent\.flag=maybe: must be true or false\.$"),
        ({"inner": {"damping": 0}}, r"^agent\.inner\.damping=0\.0: must be > 0"),
        ({"inner": {"damping": float("nan")}}, r"^agent\.inner\.damping=nan: must be > 0"),
        ({"inner": {"objective": "retrun"}}, r"^agent\.inner\.objective=retrun: must be stagewise \| return"),
        ({"inner": {"std": [2.0]}}, r"^agent\.inner\.std=\[2\.0\]: must be >= 0, <= 1"),
        ({"inner": 3}, r"^agent\.inner=3: a group"),
    ],
)
def test_mistakes(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Outer, values, "agent")


def test_describe_flattens_groups_and_shows_ranges() -> None:
    rows = {info.key: info for info in describe(Outer, "agent")}
    assert list(rows) == ["agent.count", "agent.flag", "agent.inner.damping", "agent.inner.objective", "agent.inner.std"]
    assert rows["agent.count"].help == "how many [>= 1]"
    assert rows["agent.inner.objective"].help == "rows [stagewise | return]"
    assert rows["agent.inner.std"].default == [0.5, 0.05]


def test_suggest() -> None:
    assert suggest("walkr", ["walker", "cheetah"]) == " Did you mean 'walker'?"
    assert suggest("zzz", ["walker"]) == ""
