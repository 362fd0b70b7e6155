"""Observations for teleoperated robosuite files that have none: `demo.hdf5` of its collection script, raw RoboMimic files.

The recorded states are put into the simulator one by one and looked at. Actions are never executed again: a controller's memory
isn't in the states, and a replay drifts off within seconds. So files of older robosuite versions become usable too.

Source: robosuite 1.5.2 `collect_human_demonstrations.py`; robomimic 0.3.0 `dataset_states_to_obs.py`.
Differs: no last action is executed to see what follows it; its reward is that of the last state. Poses are proved to be the
recorded ones, see `envs.robosuite.proof`.
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

from difftop.data.demonstrations import DemonstrationError, EnvInfo
from difftop.data.exchange import RawEpisode
from difftop.data.hdf5 import open_hdf5
from difftop.data.robomimic import Recording, write_demonstrations
from difftop.data.robosuite import demonstrations, read_env, text
from envs.config import EnvConfig
from envs.registry import recorded_as
from envs.robosuite.proof import RecordedKinematics
from envs.robosuite.simulator import RobosuiteSimulator, import_robosuite
from envs.robosuite.tasks import TASKS
from envs.suites import Array, Observation

_CLIPPED = 1.2  # a displacement beyond 1 is clipped, as the controller does; most of them aren't beyond this
_WIDTHS = {"free": (7, 6), "ball": (4, 3), "slide": (1, 1), "hinge": (1, 1)}  # positions and velocities of a joint


@dataclass(frozen=True)
class Converted:
    """What `convert_raw` did.

    Attributes:
        episodes: written.
        successes: of them, episodes that reach success; the file's mask `success` names them.
        steps: of all episodes.
        largest_m: that a body's position in a replayed state differs by from where the recorded scene has it, m.
    """

    episodes: int
    successes: int
    steps: int
    largest_m: float = 0.0


class RecordedScene:
    """Puts a simulator into recorded states, whatever version of robosuite recorded them.

    Where the recorded scene has the joints of the installed robosuite's, it is loaded as it is. Older scenes name the gripper's
    parts differently and lack what robosuite refers to: then states are carried over joint by joint, and with them the sizes of
    the objects.

    Attributes:
        width: length of a recorded state.
        kinematics: of the recorded scene, to compare with.
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
        self.kinematics = RecordedKinematics(root, _current_name, where)
        simulator.reset(0)
        recorded, own = _joints(root), _joints(ElementTree.fromstring(simulator.model_xml()))
        self.width = 1 + sum(sum(_WIDTHS[kind]) for kind in recorded.values())
        self._columns = np.arange(self.width)
        if list(recorded.items()) == list(own.items()) and _files_are_here(root):
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
        shapes = _object_shapes(root, simulator.env.sim.model.geom_names)
        simulator.resize(shapes)
        _remember_sizes(simulator.env, shapes)

    def states(self, recorded: Array) -> Array:
        """Recorded states `[T, width]` in the order of the installed robosuite."""
        rows: Array = recorded[:, self._columns]
        return rows


class PlaybackReader:
    """A raw file whose observations are made by playing it back; see `difftop.data.exchange.Reader`.

    Attributes:
        env: of what is made, in the installed robosuite's version.
        largest_m: see `Converted`; so far.
    """

    def __init__(self, path: Path, config: EnvConfig | None = None) -> None:
        """Looks at the file.

        Args:
            path: the raw file: `data` with attributes `env` and `env_info` (robosuite) or `env_args` (RoboMimic), and
                demonstrations with `states`, `actions` and the attribute `model_file`.
            config: `obs`, `cameras`, `image_size`, `depth` and `render_quality` of the observations; None for vectors alone.
        Raises:
            DemonstrationError: the first thing that is wrong with the file.
            EnvError: robosuite is missing, or can't make the environment.
        """
        self.path, self.largest_m = path, 0.0
        with open_hdf5(path) as file:
            info = read_env(path, file)
            if not info.kwargs:
                raise DemonstrationError(
                    f"{path}: data has no env_info; which robot and controller its actions are of isn't known."
                )
            if info.name not in TASKS:
                raise DemonstrationError(f"{path}: it was recorded in {info.name}; there are {', '.join(TASKS)}.")
            if "states" not in TASKS[info.name].gives:
                kept = "whose states don't tell all of it and aren't played back"
                raise DemonstrationError(f"{path}: it was recorded in {info.name}, {kept}.")
            self.names = demonstrations(path, file)
            self.filters: dict[str, list[int]] = _masks(file, self.names)
        base = config or EnvConfig(obs="low_dim")
        made_with = json.dumps(dict(info.kwargs))
        self.task = replace(base, name=f"robosuite/{info.name}", reward="sparse", made_with=made_with)
        args = recorded_as(self.task)
        self.env = EnvInfo(info.name, args["env_kwargs"], args["env_version"], args)
        self.count, self.rate_hz = len(self.names), float(args["env_kwargs"].get("control_freq") or 20.0)

    @property
    def notes(self) -> tuple[str, ...]:
        """How well what is played back is proved to be what was recorded."""
        return (f"proved: bodies are where the recorded scenes have them in every state, to {self.largest_m:.1e} m",)

    def episodes(self, start: int = 0) -> Iterator[RawEpisode]:
        """See `difftop.data.exchange.Reader`."""
        with closing(RobosuiteSimulator(self.task.name, self.env.name, self.task)) as simulator:
            for demo in self.names[start:]:
                episode, largest = _play(simulator, *_read(self.path, demo), f"{self.path}: {demo}", demo)
                self.largest_m = max(self.largest_m, largest)
                yield episode


def convert_raw(path: str | Path, out: str | Path, *, config: EnvConfig | None = None, limit: int | None = None) -> Converted:
    """Writes a RoboMimic file with observations, rewards and success from a file with states, actions and scenes only.

    Args:
        path, config: see `PlaybackReader`.
        out: the file to write, in the installed robosuite's version; filters (`mask`) are kept, and `success` is added.
        limit: convert the first so many demonstrations.
    Raises:
        DemonstrationError: the first thing that is wrong with the file, or its states mean something else here.
        EnvError: robosuite is missing, or can't make the environment.
    """
    reader = PlaybackReader(Path(path), config)
    count = min(limit or reader.count, reader.count)
    masks = {key: [k for k in members if k < count] for key, members in reader.filters.items()} | {"success": []}
    steps: list[int] = []

    def episodes() -> Iterator[Recording]:
        for k, made in zip(range(count), reader.episodes(), strict=False):
            steps.append(len(made.actions))
            if made.success:
                masks["success"].append(k)  # masks are written after the last episode
            assert made.rewards is not None, made.name
            yield Recording(made.obs, made.actions, made.rewards, states=made.states, attributes=made.attributes)

    write_demonstrations(out, episodes(), reader.env.raw, masks)
    return Converted(len(steps), len(masks["success"]), sum(steps), reader.largest_m)


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
        return states, actions, _scene(path, text(group.attrs["model_file"]), where)


def _scene(path: Path, named: str, where: str) -> str:
    """The MJCF, which robosuite 1.0 keeps in files under models/ beside the HDF5."""
    if "<" in named:
        return named
    places = [path.parent / "models" / named, path.parent / named]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise DemonstrationError(
            f"{where}: its scene {named} is neither in {places[0].parent} nor beside the file; copy it there."
        )
    return found.read_text()


def _play(
    simulator: RobosuiteSimulator, recorded: Array, actions: Array, xml: str, where: str, name: str
) -> tuple[RawEpisode, float]:
    """Looks at each recorded state; also the largest difference from the recorded positions, m."""
    scene = RecordedScene(simulator, xml, where)
    _check(recorded, actions, (scene.width, simulator.action_dim), where)
    states = scene.states(recorded)
    simulator.set_state(states[0])  # what robosuite computes from the look before is then right in the first row
    seen: list[Observation] = []
    judged: list[tuple[float, bool]] = []
    for step, state in enumerate(states):
        simulator.set_state(state)
        scene.kinematics.check(recorded[step], step, simulator.env.sim.model._model, simulator.env.sim.data._data)
        seen.append(simulator.observe())
        judged.append(simulator.judge())
    reward, success = (np.array(column) for column in zip(*judged, strict=True))
    after = np.minimum(np.arange(len(states)) + 1, len(states) - 1)
    episode = RawEpisode(
        name,
        actions.clip(-1, 1),  # as the controller clips them
        {key: _rows([obs[key] for obs in seen]) for key in simulator.obs},
        rewards=reward[after],
        success=bool(success.any()),
        task=simulator.name,
        states=states,
        attributes={"model_file": simulator.model_xml()},
    )
    return episode, scene.kinematics.largest_m


def _check(states: Array, actions: Array, widths: tuple[int, int], where: str) -> None:
    """Raises DemonstrationError unless both have as many rows, of the scene's and the robot's width, and all is finite."""
    for name, rows, width in (("states", states, widths[0]), ("actions", actions, widths[1])):
        if rows.ndim != 2 or rows.shape[1] != width or len(rows) != len(states) or not len(rows):
            raise DemonstrationError(
                f"{where}/{name} has shape {list(rows.shape)}; it must be [T, {width}], with as many rows as states and actions."
            )
        if not np.isfinite(rows).all():
            raise DemonstrationError(f"{where}/{name} has NaN or infinity; leave this demonstration out.")
    beyond = float((np.abs(actions) > _CLIPPED).any(1).mean())
    if beyond > 0.5:
        raise DemonstrationError(
            f"{where}/actions: {beyond:.0%} of the steps leave [-1, 1] by far, as absolute poses do; poses aren't played back."
        )


def _rows(values: Sequence[Array]) -> Array:
    """One row per step; images channels last, as files keep them, numbers as float32, as environments show them."""
    stacked = np.stack(values)
    return np.moveaxis(stacked, 1, -1) if stacked.ndim == 4 else stacked.astype(np.float32)


def _masks(file: Any, names: Sequence[str]) -> dict[str, list[int]]:
    """The file's filters, by the numbers that its demonstrations get."""
    return {
        key: [names.index(name) for name in map(text, members[()]) if name in names]
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


def _files_are_here(root: ElementTree.Element) -> bool:
    """Whether every mesh and texture of a scene is in the installed robosuite, where it will be looked for, or in its place."""
    here = Path(str(import_robosuite().__file__)).parent
    for element in root.findall("./asset/"):
        path = Path(element.get("file", "."))
        names = path.parts
        if "robosuite" in names:
            path = here.joinpath(*names[len(names) - names[::-1].index("robosuite") :])
        if not path.exists():
            return False
    return True


def _remember_sizes(env: Any, shapes: Mapping[str, tuple[Array, Array, Array]]) -> None:
    """What robosuite computes success from beside the scene: the hammer's measures, drawn anew at every reset."""
    if hasattr(env, "hammer") and "hammer_handle" in shapes and "hammer_head" in shapes:
        env.hammer.handle_length = 2 * float(shapes["hammer_handle"][0][2])
        env.hammer.head_halfsize = float(shapes["hammer_head"][0][1])


def _current_name(joint: str) -> str:
    """Since robosuite 1.5 a gripper's parts say which arm they are at."""
    return re.sub(r"^(gripper\d+)_(?!right_|left_)", r"\1_right_", joint)
