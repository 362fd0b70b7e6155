"""Checkpoints that a kill can't spoil: written beside, flushed to disk, renamed.

    <run>/checkpoints/
        step_000012500/         model.safetensors   weights
                                spec.json           the environment's `EnvSpec`: with config.json, all that acting needs
                                config.json         the run's configuration
                                train_state.pt      optimizers, generators, counters (loaded with weights_only=True)
                                manifest.json       format, agent, versions, size and sha256 of each file and of itself, rows
        replay/rows_<first>-<end>_<sha>.safetensors   replayed rows, shared by checkpoints, never changed once written
        last -> step_000012500      best -> ...

Only rows added since the previous checkpoint are written. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from difftop.data.replay import ReplayBuffer, RowsFile
from difftop.run.plain_state import check_plain
from difftop.types import EnvSpec
from difftop.version import __version__

FORMAT = 2  # 1 had no spec.json, and other names of weights
_ROWS_FILE_BYTES = 256 * 2**20
_STEP_NAME = re.compile(r"step_(\d+)(?:_(\d+))?")
_TEMPORARY = ".writing_"
_SEAL = "sha256"  # of the rest of the manifest
_KEYS = {"format", "difftop", "agent", "step", "files", "replay"}


class CheckpointError(RuntimeError):
    """A checkpoint that can't be saved or loaded; the message names the file and says what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What `load_checkpoint` read.

    Attributes:
        path: folder of the checkpoint.
        step: agent steps when it was saved.
        agent_name: registry name of the agent.
        config: the run's configuration.
        spec: of the environment that it was trained for.
        model: tensors of the model, on the CPU.
        train_state: what `save_checkpoint` was given.
        replay_state: of the replay, without its rows; None where none was saved. `restore_replay` reads both.
        rows: files that hold the replay's rows, in rising order.
    """

    path: Path
    step: int
    agent_name: str
    config: dict[str, Any]
    spec: EnvSpec
    model: dict[str, Tensor]
    train_state: dict[str, Any]
    replay_state: dict[str, Any] | None
    rows: tuple[RowsFile, ...]


def save_checkpoint(
    folder: Path | str,
    *,
    step: int,
    agent_name: str,
    config: Mapping[str, Any],
    spec: EnvSpec,
    model: Mapping[str, Tensor],
    train_state: Mapping[str, Any],
    replay: ReplayBuffer | None = None,
    keep: int = 2,
    best: bool = False,
) -> Path:
    """Saves a checkpoint of a run, and then removes what no kept checkpoint needs; returns the checkpoint's folder.

    Kept are the newest `keep`, and the latest with `best`. Checkpoints of a later step are of a future that was given up
    when an older checkpoint was resumed; they are removed too.

    Args:
        folder: the run's folder; one process writes to it at a time.
        step: agent steps.
        agent_name: registry name.
        config: JSON types only.
        spec: of the environment.
        model: tensors on any device.
        train_state: tensors, numbers, strings, None, lists, tuples and dicts.
        replay: saved incrementally.
        keep: at least 1.
        best: make it the run's best: it is kept however old, and `checkpoints/best` leads to it.
    Raises:
        CheckpointError: the disk is full or can't be written; nothing saved before is lost.
        TypeError: `train_state` holds something that `weights_only` loading would refuse.
    """
    if keep < 1:
        raise ValueError(f"keep={keep}: at least 1 checkpoint must be kept.")
    check_plain(train_state, "train_state")
    home = Path(folder) / "checkpoints"
    unfinished: list[Path] = []
    try:
        (home / "replay").mkdir(parents=True, exist_ok=True)
        rows = () if replay is None else _save_rows(home, replay, unfinished)
        state = {"run": dict(train_state), "replay": None if replay is None else replay.state_dict()}
        files = {
            "model.safetensors": save_tensors({name: value.detach().cpu().contiguous().clone() for name, value in model.items()}),
            "config.json": json.dumps(config, indent=2).encode(),
            "spec.json": json.dumps(spec.plain(), indent=2).encode(),
            "train_state.pt": _to_bytes(state),
        }
        manifest = {
            "format": FORMAT,
            "difftop": __version__,
            "agent": agent_name,
            "step": step,
            "files": {name: {"bytes": len(data), "sha256": _sha256(data)} for name, data in files.items()},
            "replay": [vars(file) for file in rows],
        }
        files["manifest.json"] = json.dumps(manifest | {_SEAL: _sealed(manifest)}, indent=2).encode()
        path = home / _free_name(home, step)
        unfinished.insert(0, path)
        _save_folder(path, files)
        unfinished.clear()
        if replay is not None:
            replay.files = rows
        if best:  # before `last`: a run that is killed in between goes on from a checkpoint that doesn't count it as saved
            _point(home / "best", path)
        _point(home / "last", path)
        _prune(home, step, keep)
    except OSError as error:
        _discard(home, unfinished)
        raise CheckpointError(
            f"can't save a checkpoint in {home}: {error.strerror or error}; what was saved before is whole: free some disk "
            "space, or fix the folder's permissions, and run the same command again to continue."
        ) from error
    return path


def load_checkpoint(path: Path | str, *, agent_name: str | None = None, training: bool = True) -> Checkpoint:
    """Reads a checkpoint; changes nothing on disk.

    Args:
        path: a checkpoint's folder, or a run's folder for its last checkpoint.
        agent_name: the agent that will take the weights; None to take what comes.
        training: read what only training needs, too.
    Raises:
        CheckpointError: there is none, a file is missing, truncated or changed, or it is of another agent or format.
    """
    folder = _resolve(Path(path))
    manifest = _read_manifest(folder)
    if agent_name is not None and manifest["agent"] != agent_name:
        raise CheckpointError(
            f"{folder} was saved by agent '{manifest['agent']}', not '{agent_name}': set agent={manifest['agent']} or choose "
            "another checkpoint."
        )
    files = {name: entry for name, entry in manifest["files"].items() if training or name != "train_state.pt"}
    data = {name: _read(folder / name, entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    try:
        saved = data.get("train_state.pt") or _to_bytes({"run": {}, "replay": None})
        state = torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)
        return Checkpoint(
            path=folder,
            step=manifest["step"],
            agent_name=manifest["agent"],
            config=json.loads(data["config.json"]),
            spec=EnvSpec.from_plain(json.loads(data["spec.json"])),
            model=load_tensors(data["model.safetensors"]),
            train_state=state["run"],
            replay_state=state["replay"],
            rows=tuple(RowsFile(**entry) for entry in manifest["replay"]),
        )
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]  # torch goes on with how to load what it refused
        raise CheckpointError(f"{folder} can't be read ({reason}): {_OTHER}") from error


def has_checkpoint(folder: Path | str) -> bool:
    """Whether the run in `folder` has saved a checkpoint."""
    return bool(_saved(Path(folder) / "checkpoints"))


def restore_replay(checkpoint: Checkpoint, replay: ReplayBuffer) -> None:
    """Fills an empty `replay`, bit for bit as it was saved.

    Raises:
        CheckpointError: rows are missing or changed, none were saved, or the buffer has another layout.
    """
    if checkpoint.replay_state is None:
        raise CheckpointError(f"{checkpoint.path} holds no replay: it can be evaluated but not resumed.")

    def blocks() -> Iterator[tuple[int, dict[str, Tensor]]]:
        for file in checkpoint.rows:
            yield file.begin, load_tensors(_read(checkpoint.path.parent / "replay" / file.name, file.bytes, file.sha256))

    try:
        replay.load_state_dict(checkpoint.replay_state, blocks())
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error
    except (KeyError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint.path}: its replay can't be restored ({error}): {_OTHER}") from error
    replay.files = checkpoint.rows


_OTHER = "choose an older checkpoint with checkpoint=PATH, or remove the run's folder to start again."


def _save_rows(home: Path, replay: ReplayBuffer, unfinished: list[Path]) -> tuple[RowsFile, ...]:
    """Writes the rows that no file holds yet; returns all files that the replay needs."""
    files = [file for file in replay.files if file.end > replay.begin]
    if not all(_has_size(home / "replay" / file.name, file.bytes) for file in files):
        files = []  # saved to another folder, or cleared away
    begin = files[-1].end if files else replay.begin
    if begin == replay.end:
        return tuple(files)
    row_bytes = sum(column.nbytes for column in replay.read_rows(begin, begin + 1).values())
    # Small files join the new one, so that n saves leave O(log n) small files and a row is written O(log n) times.
    while files and files[-1].begin >= replay.begin and files[-1].end - files[-1].begin <= replay.end - begin:
        if (replay.end - files[-1].begin) * row_bytes > _ROWS_FILE_BYTES:
            break
        begin = files.pop().begin
    per_file = max(1, _ROWS_FILE_BYTES // row_bytes)
    for first in range(begin, replay.end, per_file):
        end = min(first + per_file, replay.end)
        data = save_tensors(replay.read_rows(first, end))
        digest = _sha256(data)
        target = home / "replay" / f"rows_{first:010d}-{end:010d}_{digest[:12]}.safetensors"
        if not _has_size(target, len(data)):
            temporary = target.with_name(_TEMPORARY + target.name)
            unfinished += [temporary, target]
            _write(temporary, data)
            os.replace(temporary, target)
        files.append(RowsFile(target.name, first, end, len(data), digest))
    _sync_folder(home / "replay")
    return tuple(files)


def _has_size(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def _save_folder(path: Path, files: Mapping[str, bytes]) -> None:
    temporary = path.with_name(_TEMPORARY + path.name)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for file, data in files.items():
        _write(temporary / file, data)
    _sync_folder(temporary)
    os.rename(temporary, path)
    _sync_folder(path.parent)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _point(link: Path, target: Path) -> None:
    """Makes `link` a relative link to its neighbour `target`, in one step."""
    temporary = link.with_name(_TEMPORARY + link.name)
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    if link.is_dir() and not link.is_symlink():  # a copy of what it led to, made by a program that follows links
        os.replace(link, link.with_name(f"{_TEMPORARY}copied_{link.name}"))
    os.replace(temporary, link)
    _sync_folder(link.parent)


def _discard(home: Path, unfinished: list[Path]) -> None:
    for path in unfinished:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    for temporary in home.glob(_TEMPORARY + "*"):
        shutil.rmtree(temporary, ignore_errors=True)


def _prune(home: Path, step: int, keep: int) -> None:
    """Removes checkpoints, chunks and unfinished writes that nothing kept needs. A kill in between leaves only spare files."""
    saved = _saved(home)
    newest = {at: path for at, _, path in saved if at <= step}  # of one step the latest revision
    kept = {newest[at] for at in sorted(newest)[-keep:]}
    kept |= {(home / link).resolve() for link in ("last", "best") if (home / link).exists()}
    for _, _, path in saved:
        if path not in kept:
            os.rename(path, path.with_name(_TEMPORARY + path.name))  # so that a checkpoint is never seen half removed
    needed = set()
    for path in kept:
        with contextlib.suppress(CheckpointError):  # one that can't be read needs nothing
            needed |= {entry["name"] for entry in _read_manifest(path)["replay"]}
    for file in (home / "replay").iterdir():
        if file.name not in needed:
            file.unlink()
    _discard(home, [])


def _saved(home: Path) -> list[tuple[int, int, Path]]:
    """(step, revision, folder) of all finished checkpoints, oldest first."""
    found = []
    for path in home.glob("step_*"):
        match = _STEP_NAME.fullmatch(path.name)
        if match and path.is_dir():
            found.append((int(match[1]), int(match[2] or 0), path.resolve()))
    return sorted(found)


def _free_name(home: Path, step: int) -> str:
    """Folder name for `step`; a step that is saved again gets a revision, because a folder can't be replaced in one step."""
    taken = [revision for at, revision, _ in _saved(home) if at == step]
    return f"step_{step:09d}" + (f"_{max(taken) + 1}" if taken else "")


def _resolve(path: Path) -> Path:
    """The checkpoint folder that `path` (checkpoint, checkpoints folder or run folder) stands for."""
    if (path / "manifest.json").is_file() or _STEP_NAME.fullmatch(path.name):
        return path.resolve()
    home = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if (home / "last").is_dir():
        return (home / "last").resolve()
    saved = _saved(home)  # killed before the link was made
    if not saved:
        where = f"{path}" if path.exists() else f"{path}, which doesn't exist"
        raise CheckpointError(f"there is no checkpoint in {where}: give the folder of a run or of a checkpoint.")
    return saved[-1][2]


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / "manifest.json"
    try:
        manifest = json.loads(file.read_bytes())
        said = manifest.pop(_SEAL, None)  # checkpoints of before have none
        if said != _sealed(manifest) if said is not None else not manifest.keys() <= _KEYS:
            raise ValueError("it doesn't match its checksum")
        version, agent, step, files, replay = (manifest[key] for key in ("format", "agent", "step", "files", "replay"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing: {_OTHER}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged ({error}): {_OTHER}") from error
    if version != FORMAT:
        raise CheckpointError(
            f"{folder} is of checkpoint format {version}, written by difftop {manifest.get('difftop')}; this is difftop "
            f"{__version__}, which reads format {FORMAT}: use that version, or train anew under another name=NAME."
        )
    return {"agent": agent, "step": step, "files": files, "replay": replay}


def _read(file: Path, size: int, sha256: str) -> bytes:
    try:
        data = file.read_bytes()
    except OSError as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"can't be read ({error.strerror})"
        raise CheckpointError(f"{file} {what}: {_OTHER}") from error
    if len(data) != size:
        raise CheckpointError(f"{file} has {len(data)} bytes instead of {size}, so it is truncated or changed: {_OTHER}")
    if _sha256(data) != sha256:
        raise CheckpointError(f"{file} doesn't match its checksum, so it is damaged: {_OTHER}")
    return data


def _sealed(manifest: Mapping[str, Any]) -> str:
    """Checksum of a manifest's contents: a step or a name in which a bit has flipped would else be believed."""
    return _sha256(json.dumps(manifest, sort_keys=True).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _to_bytes(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
