"""Observations for teleoperated robosuite files that have none: `demo.hdf5` of its collection script, raw RoboMimic files.

The recorded states are put into the simulator one by one and looked at. Actions are never executed again: a controller's memory
isn't in the states, and a replay drifts off within seconds. So files of older robosuite versions become usable too.

Source: robosuite 1.5.2 `collect_human_demonstrations.py`; robomimic 0.3.0 `dataset_states_to_obs.py`.
Differs: no last action is executed to see what follows it; its reward is that of the last state.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from difftop.data.demonstrations import DemonstrationError
from difftop.data.hdf5 import open_hdf5
from difftop.data.robomimic import Recording, write_demonstrations
from envs.config import EnvConfig
from envs.registry import recorded_as
from envs.robosuite.simulator import RobosuiteSimulator
from envs.robosuite.tasks import TASKS
from envs.suites import Array, Observation

_WIDTHS = {"free": (7, 6), "ball": (4, 3), "slide": (1, 1), "hinge": (1, 1)}  # positions and velocities of a joint


@dataclass(frozen=True)
class Converted:
    """What `convert_raw` did.

    Attributes:
        episodes: written.
        successes: of them, episodes that reach success; the file's mask `success` names them.
        steps: of all episodes.
    """

    episodes: int
    successes: int
    steps: int


class RecordedScene:
    """Puts a simulator into recorded states, whatever version of robosuite recorded them.

    Where the recorded scene has the joints of the installed robosuite's, it is loaded as it is. Older scenes name the gripper's
    parts differently and lack what robosuite refers to: then states are carried over joint by joint, and with them the sizes of
    the objects.

    Attributes:
        width: length of a recorded state.
    """

    def __init__(self, simulator: RobosuiteSimulator, model_xml: str, where: str) -> None:
        """Loads the scene.

        Raises:
            DemonstrationError: no XML, or it has other joints than the task.
        """
        self._simulator = simulator
        try:
            root = ElementTree.fromstring(model_xml)
        except ElementTree.ParseError as error:
            raise DemonstrationError(f"{where}: attribute model_file is no XML ({error}).") from error
        simulator.reset(0)
        recorded, own = _joints(root), _joints(ElementTree.fromstring(simulator.model_xml()))
        self.width = 1 + sum(sum(_WIDTHS[kind]) for kind in recorded.values())
        self._columns = np.arange(self.width)
        if list(recorded.items()) == list(own.items()):
            simulator.load_scene(model_xml)
            return
        renamed = {_current_name(name): kind for name, kind in recorded.items()}
        if renamed != own:
            other = sorted(set(renamed) ^ set(own)) or ["the kinds of joints"]
            raise DemonstrationError(
                f"{where}: its scene is not that of {simulator.name} in the installed robosuite; they differ in "
                f"{', '.join(other[:4])}."
            )
        self._columns = _columns(renamed, list(own))
        simulator.resize(_object_shapes(root, simulator.env.sim.model.geom_names))

    def states(self, recorded: Array) -> Array:
        """Recorded states `[T, width]` in the order of the installed robosuite."""
        rows: Array = recorded[:, self._columns]
        return rows


def convert_raw(path: str | Path, out: str | Path, *, config: EnvConfig | None = None, limit: int | None = None) -> Converted:
    """Writes a RoboMimic file with observations, rewards and success from a file with states, actions and scenes only.

    Args:
        path: the raw file: `data` with attributes `env` and `env_info` (robosuite) or `env_args` (RoboMimic), and demonstrations
            with `states`, `actions` and the attribute `model_file`.
        out: the file to write, in the installed robosuite's version; filters (`mask`) are kept, and `success` is added.
        config: `obs`, `cameras`, `image_size` and `render_quality` of the observations; None for low-dimensional ones.
        limit: convert the first so many demonstrations.
    Raises:
        DemonstrationError: the first thing that is wrong with the file.
        EnvError: robosuite is missing, or can't make the environment.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        name, kwargs = _environment(path, file)
        names = _numbered(path, file)[:limit]
        masks: dict[str, list[int]] = _masks(file, names) | {"success": []}
    task = replace(config or EnvConfig(obs="low_dim"), name=f"robosuite/{name}", reward="sparse", made_with=json.dumps(kwargs))
    steps: list[int] = []

    def episodes(simulator: RobosuiteSimulator) -> Iterator[Recording]:
        for k, demo in enumerate(names):
            episode, solved = _play(simulator, *_read(path, demo), f"{path}: {demo}")
            steps.append(len(episode.actions))
            if solved:
                masks["success"].append(k)  # masks are written after the last episode
            yield episode

    with closing(RobosuiteSimulator(task.name, name, task)) as simulator:
        write_demonstrations(out, episodes(simulator), recorded_as(task), masks)
    return Converted(len(steps), len(masks["success"]), sum(steps))


def _read(path: Path, demo: str) -> tuple[Array, Array, str]:
    """States, actions and scene of a demonstration."""
    with open_hdf5(path) as file:
        group, where = file["data"][demo], f"{path}: {demo}"
        for need in ("states", "actions"):
            if need not in group:
                raise DemonstrationError(f"{where} has no {need}, only {', '.join(group) or 'nothing'}; it can't be played back.")
        if "model_file" not in group.attrs:
            raise DemonstrationError(f"{where} has no attribute model_file; the scene that its states belong to is not known.")
        states, actions = (np.asarray(group[key][()], np.float64) for key in ("states", "actions"))
        return states, actions, _text(group.attrs["model_file"])


def _play(simulator: RobosuiteSimulator, recorded: Array, actions: Array, xml: str, where: str) -> tuple[Recording, bool]:
    """Looks at each recorded state; also whether the task is solved in one of them."""
    scene = RecordedScene(simulator, xml, where)
    _check(recorded, actions, (scene.width, simulator.action_dim), where)
    states = scene.states(recorded)
    simulator.set_state(states[0])  # what robosuite computes from the look before is then right in the first row
    seen: list[Observation] = []
    judged: list[tuple[float, bool]] = []
    for state in states:
        simulator.set_state(state)
        seen.append(simulator.observe())
        judged.append(simulator.judge())
    reward, success = (np.array(column) for column in zip(*judged, strict=True))
    after = np.minimum(np.arange(len(states)) + 1, len(states) - 1)
    episode = Recording(
        obs={key: _rows([obs[key] for obs in seen]) for key in simulator.obs},
        actions=actions.clip(-1, 1),  # as the controller clips them
        rewards=reward[after],
        dones=success[after] | (np.arange(len(states)) == len(states) - 1),
        states=states,
        attributes={"model_file": simulator.model_xml()},
    )
    return episode, bool(success.any())


def _check(states: Array, actions: Array, widths: tuple[int, int], where: str) -> None:
    """Raises DemonstrationError unless both have as many rows, of the scene's and the robot's width, and all is finite."""
    for name, rows, width in (("states", states, widths[0]), ("actions", actions, widths[1])):
        if rows.ndim != 2 or rows.shape[1] != width or len(rows) != len(states) or not len(rows):
            raise DemonstrationError(
                f"{where}/{name} has shape {list(rows.shape)}; it must be [T, {width}], with as many rows as states and actions."
            )
        if not np.isfinite(rows).all():
            raise DemonstrationError(f"{where}/{name} has NaN or infinity; leave this demonstration out.")


def _rows(values: Sequence[Array]) -> Array:
    """One row per step; images channels last, as files keep them, numbers as float32, as environments show them."""
    stacked = np.stack(values)
    return np.moveaxis(stacked, 1, -1) if stacked.ndim == 4 else stacked.astype(np.float32)


def _environment(path: Path, file: Any) -> tuple[str, dict[str, Any]]:
    """robosuite's name of the environment, and its arguments."""
    attributes = file["data"].attrs if "data" in file else {}
    try:
        if "env_args" in attributes:
            info = json.loads(_text(attributes["env_args"]))
            name, kwargs = str(info["env_name"]), dict(info["env_kwargs"])
        else:
            kwargs = dict(json.loads(_text(attributes["env_info"])))
            name = str(kwargs.pop("env_name", None) or _text(attributes["env"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DemonstrationError(
            f"{path}: this is no robosuite file: data has neither env_args nor env and env_info, or they are no JSON ({error!r})."
        ) from error
    if name not in TASKS:
        raise DemonstrationError(f"{path}: it was recorded in {name}; there are {', '.join(TASKS)}.")
    if "states" not in TASKS[name].gives:
        raise DemonstrationError(f"{path}: it was recorded in {name}, whose states don't tell all of it and aren't played back.")
    return name, kwargs


def _numbered(path: Path, file: Any) -> list[str]:
    names = sorted((n for n in file["data"] if re.fullmatch(r"demo_\d+", n)), key=lambda n: int(n.removeprefix("demo_")))
    if not names:
        raise DemonstrationError(f"{path}: it has no demonstrations; they must be called demo_0, demo_1, ...")
    return names


def _masks(file: Any, names: Sequence[str]) -> dict[str, list[int]]:
    """The file's filters, by the numbers that its demonstrations get."""
    return {
        key: [names.index(name) for name in map(_text, members[()]) if name in names]
        for key, members in file.get("mask", {}).items()
    }


def _joints(root: ElementTree.Element) -> dict[str, str]:
    """Kind of each joint by name, in the order of the state."""
    joints: dict[str, str] = {}
    for element in root.findall("./worldbody//"):
        if element.tag in ("joint", "freejoint"):
            kind = "free" if element.tag == "freejoint" else element.get("type", "hinge")
            joints[element.get("name", f"unnamed {len(joints)}")] = kind
    return joints


def _columns(recorded: Mapping[str, str], wanted: Sequence[str]) -> Array:
    """Where time, positions and velocities of the joints `wanted` are in a state of the joints `recorded`."""
    kinds = list(recorded.values())
    first = [np.cumsum([0, *(_WIDTHS[kind][part] for kind in kinds)]) for part in (0, 1)]
    order = [list(recorded).index(name) for name in wanted]
    offsets = (1, 1 + first[0][-1])
    parts = [np.arange(first[p][i], first[p][i + 1]) + offsets[p] for p in (0, 1) for i in order]
    columns: Array = np.concatenate([[0], *parts]).astype(np.int64)
    return columns


def _object_shapes(root: ElementTree.Element, known: Sequence[str]) -> dict[str, tuple[Array, Array, Array]]:
    """Size, position and quaternion of the geoms of things that move freely, meshes left out."""
    shapes = {}
    for body in root.findall("./worldbody/body"):
        if not any(e.tag == "freejoint" or (e.tag == "joint" and e.get("type") == "free") for e in body):
            continue
        for geom in body.iter("geom"):
            name, size = geom.get("name", ""), geom.get("size")
            if name in known and size is not None and geom.get("mesh") is None:
                plain = {"pos": "0 0 0", "quat": "1 0 0 0"} | dict(geom.items())
                numbers = np.array(size.split(), float)
                shapes[name] = (
                    np.pad(numbers, (0, 3 - len(numbers))),
                    np.array(plain["pos"].split(), float),
                    np.array(plain["quat"].split(), float),
                )
    return shapes


def _current_name(joint: str) -> str:
    """Since robosuite 1.5 a gripper's parts say which arm they are at."""
    return re.sub(r"^(gripper\d+)_(?!right_|left_)", r"\1_right_", joint)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
