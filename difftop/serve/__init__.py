"""A policy for a robot whose computer has no torch: a server, and a client that acts as `load_policy` does.

    python train.py mode=serve checkpoint=RUN port=8765

    from difftop.serve import Client            needs NumPy and safetensors only

    policy = Client("localhost", 8765)
    action = policy.act(obs)

HTTP/1.1 over one connection that stays open, arrays as safetensors: the standard library does the transport and a package that
difftop has anyway does the encoding, so nothing is to be installed; any language has both, and no byte that is received is ever
executed (`multiprocessing.connection` unpickles what it gets, whoever sent it). WebSockets with msgpack would do as well; they'd
be two more packages, and msgpack has no arrays. There is no password: the server listens on this machine only unless `host` says
otherwise, and then everybody who reaches the port can ask for actions.

    GET  /spec       JSON, what the policy was trained for
    POST /act        safetensors, observations by key; answer: safetensors, `action`
    POST /reset      ?index=I: where an episode begins
    GET  /latency    JSON, see `difftop.serve.latency`
    status 400 and 413 are mistakes of the sender: JSON {"error": one sentence}

A connection is a robot, or a batch of robots in rows: what the policy remembers (last plan, hidden state) belongs to it, and ends
with it.
"""

from __future__ import annotations

from difftop.serve.client import Client, ServeError

__all__ = ["Client", "ServeError"]
