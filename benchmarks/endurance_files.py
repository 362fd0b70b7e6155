"""Files in which a bit flips, or whose end is missing: what the library makes of them.

Every case damages a fresh copy. What comes of reading it is one of

    error      one sentence that names the file: what is promised
    equal      it is read, and what is read is what was written: the damage hit nothing that is used
    changed    it is read, and is something else, and nobody is told: a silent fault
    traceback  another exception, of which a user would see a traceback
    crash, hang, executed    the process died, didn't end, or something in the file began to run
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from benchmarks import endurance_life as life
from benchmarks.endurance_rows import Row, Setting, forked, say, started
from difftop.data.demonstrations import DemonstrationError
from difftop.data.exchange import RawEpisode
from difftop.data.files import open_demonstrations
from difftop.data.lerobot_write import LeRobotWriter
from difftop.data.replay import Episode, ReplayBuffer
from difftop.data.robomimic import Recording, write_demonstrations
from difftop.run.checkpoint import CheckpointError, load_checkpoint, restore_replay, save_checkpoint
from difftop.types import EnvSpec, ObsSpec

EXECUTED = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class", "ctypes.dlopen"}
SPEC = EnvSpec("endurance/state", {"state": ObsSpec("vector", (3,))}, 2, 12, 0.02)
ENV = {"env_name": "endurance", "type": 2, "env_kwargs": {"rate": 20}, "env_version": "1"}
_EPISODES, _STEPS = 6, 30
_HANG_S = 60.0
_GOOD = ("error", "equal")

Case = tuple[str, int, str, int, int]  # kind, number, file, place, bit


@dataclass(frozen=True)
class Target:
    """Files of one kind.

    Attributes:
        what: for the table.
        write: writes them into a folder.
        read: reads all of them, as tensors and plain values.
        pattern: of the paths of those that are damaged.
        ours: whether we write them, so that nothing may pass unseen; else only what the format protects can be seen.
    """

    what: str
    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    pattern: str
    ours: bool = True


def _write_checkpoint(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    replay = ReplayBuffer(SPEC, capacity=60, horizon=3, prioritized=True)
    for _ in range(4):
        obs, action = torch.randn(13, 3, generator=generator), torch.rand(12, 2, generator=generator)
        replay.add(Episode(obs, action, torch.randn(12, generator=generator), torch.zeros(12, dtype=torch.bool)))
    model = {name: torch.randn(24, 16, generator=generator) for name in ("encoder.weight", "policy.weight")}
    moments = [torch.randn(24, 16, generator=generator) for _ in range(4)]
    state = {"adam": moments, "count": 48, "rng": generator.get_state()}
    what: dict[str, Any] = {"agent_name": "tdmpc", "config": {"run": {"frames": 96}}, "spec": SPEC}
    save_checkpoint(folder, step=48, model=model, train_state=state, replay=replay, **what)


def _read_checkpoint(folder: Path) -> Any:
    checkpoint = load_checkpoint(folder, agent_name="tdmpc")
    replay = ReplayBuffer(SPEC, capacity=60, horizon=3, prioritized=True)
    restore_replay(checkpoint, replay)
    held = (checkpoint.step, checkpoint.config, checkpoint.spec.plain(), checkpoint.model, checkpoint.train_state)
    return [*held, replay.state_dict(), replay.read_rows(replay.begin, replay.end)]


def _recordings() -> list[Recording]:
    rng = np.random.default_rng(0)
    shapes = {"eef_pos": (3,), "object": (10,)}
    return [
        Recording(
            {key: rng.uniform(-1, 1, (_STEPS, *shape)) for key, shape in shapes.items()},
            rng.uniform(-1, 1, (_STEPS, 4)),
            (np.arange(_STEPS) == _STEPS - 1).astype(float),
        )
        for _ in range(_EPISODES)
    ]


def _write_hdf5(folder: Path) -> None:
    write_demonstrations(folder / "demos.hdf5", _recordings(), ENV, {"train": range(_EPISODES - 1)})


def _write_others_hdf5(folder: Path) -> None:
    """As robomimic writes it: no checksums."""
    with h5py.File(folder / "demos.hdf5", "w") as file:
        data = file.create_group("data")
        for number, made in enumerate(_recordings()):
            demo = data.create_group(f"demo_{number}")
            demo["actions"], demo["rewards"], demo["dones"] = made.actions, made.rewards, np.arange(_STEPS) == _STEPS - 1
            for key, rows in made.obs.items():
                demo[f"obs/{key}"] = rows
            demo.attrs["num_samples"] = _STEPS
        data.attrs["total"], data.attrs["env_args"] = _EPISODES * _STEPS, json.dumps(ENV)
        file["mask/train"] = np.array([f"demo_{k}".encode() for k in range(_EPISODES - 1)])


def _read_demonstrations(path: Path) -> Any:
    found = open_demonstrations(path)
    low_dim = {key: found.low_dim[key] for key in sorted(found.low_dim)}
    return [found.env.name, dict(found.env.kwargs), found.names, found.first, found.length, found.actions, low_dim]


def _write_parquet(folder: Path) -> None:
    writer = LeRobotWriter(folder / "data_set", 20.0)
    for number, made in enumerate(_recordings()):
        columns = {key: rows.astype(np.float32) for key, rows in made.obs.items()}
        actions = np.asarray(made.actions, np.float32)
        writer.add(RawEpisode(f"episode_{number}", actions, columns, rewards=np.asarray(made.rewards, np.float32), success=True))
    writer.finish(ENV, {})


def _write_others_parquet(folder: Path) -> None:
    """As LeRobot writes it: no checksum of a page, nor of a file."""
    from pyarrow import parquet

    _write_parquet(folder)
    (folder / "data_set" / "meta" / "difftop.json").unlink()
    for path in (folder / "data_set").rglob("*.parquet"):
        parquet.write_table(parquet.ParquetFile(path).read(), path)


TARGETS = {
    "checkpoint": Target(
        "checkpoint (weights, configuration, manifest)",
        _write_checkpoint,
        _read_checkpoint,
        r"checkpoints/step_\d+/(?!train_state).*",
    ),
    "train_state": Target("train state", _write_checkpoint, _read_checkpoint, r".*/train_state\.pt"),
    "replay": Target("replay", _write_checkpoint, _read_checkpoint, r".*/rows_.*"),
    "hdf5": Target("HDF5 that was written here", _write_hdf5, lambda f: _read_demonstrations(f / "demos.hdf5"), ".*"),
    "parquet": Target(
        "LeRobot data set that was written here (Parquet, JSON)",
        _write_parquet,
        lambda f: _read_demonstrations(f / "data_set"),
        ".*",
    ),
    "others_hdf5": Target(
        "HDF5 of others, without checksums", _write_others_hdf5, lambda f: _read_demonstrations(f / "demos.hdf5"), ".*", False
    ),
    "others_parquet": Target(
        "Parquet of others, without checksums",
        _write_others_parquet,
        lambda f: _read_demonstrations(f / "data_set"),
        r".*\.parquet",
        False,
    ),
}


def files_of(target: str, whole: Path) -> list[Path]:
    """The files that are damaged, below the folder `whole`."""
    found = [path for path in sorted(whole.rglob("*")) if path.is_file() and "last" not in path.parts]  # a link to the same files
    return [path for path in found if re.fullmatch(TARGETS[target].pattern, path.relative_to(whole).as_posix())]


def cases(target: str, whole: Path, setting: Setting) -> list[Case]:
    """Flips and truncations, by the seed: every byte of the files is as likely."""
    files = files_of(target, whole)
    sizes = [path.stat().st_size for path in files]
    found: list[Case] = []
    for kind, count in (("flip", setting.size(300, 12)), ("truncation", setting.size(50, 4))):
        for number in range(count):
            chance = setting.random("damage", target, kind, number)
            (file,) = chance.choices(files, sizes)
            place = chance.randrange(file.stat().st_size)
            found.append((kind, number, str(file.relative_to(whole)), place, chance.randrange(8)))
    return found


def outcome(target: str, home: Path, case: Case, expected: Any) -> tuple[str, str]:
    """Damages a copy and reads it: what came of it, and what was said."""
    kind, _, name, place, bit = case
    copy = home / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(home / "whole", copy, symlinks=True)
    data = bytearray((copy / name).read_bytes())
    if kind == "flip":
        data[place] ^= 1 << bit
    else:
        del data[place:]
    (copy / name).write_bytes(bytes(data))
    return _read_into_outcome(target, copy, expected)


def _read_into_outcome(target: str, copy: Path, expected: Any) -> tuple[str, str]:
    try:
        found = TARGETS[target].read(copy)
    except (CheckpointError, DemonstrationError) as error:
        clear = str(copy) in str(error) and "\n" not in str(error)
        return ("error" if clear else "traceback"), str(error)
    except Exception as error:  # whatever it is, a user would see it
        return "traceback", f"{type(error).__name__}: {error}"
    return ("equal" if same(found, expected) else "changed"), ""


def same(a: Any, b: Any) -> bool:
    """Whether two readings are equal to the bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def damage(setting: Setting) -> Iterator[Row]:
    """All targets, each in a process of its own, which is started again where a file kills it."""
    for name, target in TARGETS.items():
        home = setting.folder / name
        (home / "whole").mkdir(parents=True)
        target.write(home / "whole")
        found = _run(name, home, cases(name, home / "whole", setting))
        for kind in ("flip", "truncation"):
            mine = {number: result for (what, number), result in found.items() if what == kind}
            counts = Counter(result["outcome"] for result in mine.values())
            _tell(name, mine)
            bad = sum(counts.values()) - sum(counts[good] for good in _GOOD)
            note = ", ".join(f"{counts[key]} {text}" for key, text in _NOTES.items() if counts[key])
            short, promise = bad, "an error in one sentence"
            if not target.ours:
                short, promise = bad - counts["changed"], "no crash, no traceback; the format protects no number"
            what = "a bit that flips in" if kind == "flip" else "an end that is missing of"
            yield Row(f"{what} a {target.what}", len(mine), promise, short, note, str(sum(counts[good] for good in _GOOD)))
    yield attacks(setting)


_NOTES = {"error": "errors", "equal": "read as they were written", "changed": "read with other values", "traceback": "tracebacks",
          "crash": "crashes", "hang": "hangs", "executed": "executed"}  # fmt: skip


def _tell(name: str, mine: dict[int, dict[str, Any]]) -> None:
    for result in mine.values():
        if result["outcome"] not in _GOOD and (TARGETS[name].ours or result["outcome"] != "changed"):
            say(f"  {name}: {result['case']}: {result['outcome']} {result['said'][:160]}")


def _run(target: str, home: Path, todo: list[Case]) -> dict[tuple[str, int], dict[str, Any]]:
    """Results by kind and number."""
    results = home / "results.jsonl"
    found: dict[tuple[str, int], dict[str, Any]] = {}
    while todo:
        process = started(forked(), life.read_damaged, target, str(home), todo, str(results))
        seen, since = -1, 0.0
        while process.is_alive():
            process.join(1.0)
            size, used = results.stat().st_size if results.exists() else 0, _cpu_s(process.pid)
            if size != seen:
                seen, since = size, used
            elif used - since > _HANG_S:  # of its own time: the machine may have other things to do
                process.kill()
        lines = [json.loads(line) for line in results.read_text().splitlines()]
        found |= {(line["case"][0], line["case"][1]): line for line in lines if "case" in line}
        begun = [tuple(line["begins"]) for line in lines if "begins" in line]
        last = begun[-1] if begun else None
        if last is not None and last not in found:
            (case,) = (case for case in todo if case[:2] == last)
            word = "hang" if process.exitcode == -9 else "crash"
            found[last] = {"case": case, "outcome": word, "said": f"exit status {process.exitcode}"}
        elif process.exitcode:
            raise RuntimeError(
                f"{target}: the process that reads files ended with status {process.exitcode} before its first one."
            )
        todo = [case for case in todo if case[:2] not in found]
    return found


def _cpu_s(pid: int | None) -> float:
    """Seconds of a processor that a process has used."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class _Canary:
    """What a file would do if it were unpickled: it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def attacks(setting: Setting) -> Row:
    """Files that would run something if they were unpickled, in the place of each file of ours; their checksums are right."""
    short, tried = 0, 0
    for name in ("train_state.pt", "model.safetensors", "rows", "demos.hdf5", "data_set/data/chunk-000/file-000.parquet"):
        home = setting.folder / "attacks" / name.replace("/", "-")
        home.mkdir(parents=True)
        canary, target = home / "canary", "hdf5" if "hdf5" in name else "parquet" if "parquet" in name else "checkpoint"
        TARGETS[target].write(home)
        poison = pickle.dumps(_Canary(canary))
        place = next(home.rglob("rows_*")) if name == "rows" else next(home.rglob(name.rpartition("/")[2]))
        if name == "train_state.pt":
            torch.save(_Canary(canary), place)
        else:
            place.write_bytes(poison)
        _with_right_sums(home, place)
        result, said = _read_into_outcome(target, home, None)
        tried += 1
        wrong = canary.exists() or result != "error"
        short += wrong
        if wrong:
            say(f"  attack by {name}: {result} {said[:160]}")
    return Row("a pickle that runs something, in place of a file", tried, "an error, and nothing is run", short)


def _with_right_sums(home: Path, place: Path) -> None:
    """Manifests that know the file as it is now: checksums protect from accidents, not from an attacker."""
    import hashlib

    digest, size = hashlib.sha256(place.read_bytes()).hexdigest(), place.stat().st_size
    for file in home.rglob("manifest.json"):
        manifest = json.loads(file.read_text())
        manifest.pop("sha256", None)
        if place.name in manifest["files"]:
            manifest["files"][place.name] = {"bytes": size, "sha256": digest}
        for rows in manifest["replay"]:
            if rows["name"] == place.name:
                rows |= {"bytes": size, "sha256": digest}
        file.write_text(json.dumps(manifest))
    for file in home.rglob("difftop.json"):
        file.unlink()
