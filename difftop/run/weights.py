"""The checkpoint that acts, and a checkpoint's weights into an agent."""

from __future__ import annotations

from pathlib import Path

from difftop.contract import Agent
from difftop.run.checkpoint import Checkpoint, CheckpointError, load_checkpoint


def load_acting(path: Path | str, agent_name: str | None = None) -> Checkpoint:
    """What acts of a run's folder, its best checkpoint or, where none is marked, its last; or of a checkpoint's.

    Args:
        path: of the folder.
        agent_name: the agent that it must be of.
    Raises:
        CheckpointError: there is no checkpoint, it is spoiled, or of another format or agent.
    """
    best = Path(path) / "checkpoints" / "best"
    return load_checkpoint(best if best.is_dir() else path, agent_name=agent_name, training=False)


def load_weights(agent: Agent, saved: Checkpoint) -> None:
    """Fills the networks of `agent`, which was made from the checkpoint's own options and spec.

    Raises:
        CheckpointError: names or shapes differ: this version's networks are other ones.
    """
    try:
        agent.load_state_dict(saved.model)
    except RuntimeError as error:
        reason = " ".join(str(error).split()).partition(": ")[2]
        raise CheckpointError(
            f"{saved.path}: this version's {saved.agent_name} has other networks than the checkpoint ({reason[:200]}): use the "
            "version that saved it, or train anew under another name=NAME."
        ) from error
