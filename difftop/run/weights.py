"""A checkpoint's weights, into an agent."""

from __future__ import annotations

from typing import Any

from difftop.run.checkpoint import Checkpoint, CheckpointError


def load_weights(agent: Any, saved: Checkpoint) -> None:
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
