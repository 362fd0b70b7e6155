"""Options of `mode=serve`, apart from the server, which `--help` doesn't import."""

from __future__ import annotations

from dataclasses import dataclass

from difftop.options import option


@dataclass(frozen=True)
class ServeConfig:
    """Which policy is served, and where."""

    checkpoint: str = option("", "a run folder, or a checkpoint of it")
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0: every network, for everybody who reaches the port")
    port: int = option(8765, "TCP port; 0 takes a free one, and says which", low=0, high=65535)
    device: str = option("auto", "auto takes a CUDA device where there is one", choices=("auto", "cpu", "cuda"))
    head: str = option("", "imitation: act by this head in place of the trained one: none, clip, qp or a package's")
    seed: int = option(0, "of what acting samples", low=0)
