"""Named streams of seeds from the one seed of a run.

A stream is named by words and numbers, `stream(seed, "train_env", episode)`: streams of different names are independent, and
no stream depends on how many others were made before it.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def stream(seed: int, *names: str | int) -> int:
    """A seed for the stream `names` of run `seed`, in [0, 2^32): the range that every simulator takes.

    Raises:
        ValueError: the seed or a number among the names is negative.
    """
    return int(_sequence(seed, names).generate_state(1, np.uint32)[0])


def torch_generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for the stream `names` of run `seed`."""
    state = int(_sequence(seed, names).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(state >> 1)  # manual_seed takes 63 bits


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator for the stream `names` of run `seed`."""
    return np.random.default_rng(_sequence(seed, names))


def seed_globals(seed: int) -> None:
    """Seeds the global generators of random, numpy and torch, which network initialization and some libraries use."""
    random.seed(stream(seed, "globals", "random"))
    np.random.seed(stream(seed, "globals", "numpy"))
    torch.manual_seed(stream(seed, "globals", "torch"))


def _sequence(seed: int, names: tuple[str | int, ...]) -> np.random.SeedSequence:
    key: list[int] = []
    for name in names:  # a tag and two 32-bit words each, so that no two lists of names give one key
        if isinstance(name, str):
            digest = hashlib.sha256(name.encode()).digest()
            key += [1, int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")]
        else:
            _check(name, "stream number")
            key += [0, name & 0xFFFFFFFF, (name >> 32) & 0xFFFFFFFF]
    _check(seed, "seed")
    return np.random.SeedSequence(seed, spawn_key=key)


def _check(value: int, what: str) -> None:
    if not 0 <= value < 2**64:
        raise ValueError(f"{what}={value}: must be at least 0 and below 2^64.")
