"""What environments raise: each message is one sentence that names the environment, the step and what is wrong."""

from __future__ import annotations


class EnvError(RuntimeError):
    """An environment that can't go on: simulator missing or failed, non-finite numbers, a bad action, a dead worker."""


class RenderError(EnvError):
    """No image can be made; runs on states can go on without."""


class WorkerDiedError(EnvError):
    """The process of an environment is gone; `index` says which."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index
