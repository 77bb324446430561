"""Failures of nodes that do not find each other."""

from __future__ import annotations

from sparkimage.serve.explain.entries import Area, Entry, sign
from sparkimage.serve.explain.table.links import LAUNCH, NCCL, VLLM

ENTRIES = (
    Entry(
        id="port-in-use",
        area=Area.NETWORK,
        title="A port is taken",
        says="The server socket has failed to listen on any local network address. …EADDRINUSE…",
        signs=(
            sign("EADDRINUSE", r"(?:port: (?P<port>\d+).*)?EADDRINUSE"),
            sign("ddress already in use", r"\('[^']*', (?P<port>\d+)\): address already in use"),
            sign("[Errno 98] Address already in use"),
        ),
        cause="Another server, or a worker of an earlier start, still listens there.",
        cure="`python build.py status` and `stop` (zombies too); `ss -ltnp` on the node; "
        "another `port` or `master_port` in the profile.",
        sources=(f"{VLLM}39015", f"{VLLM}11617", f"{VLLM}7514"),
    ),
    Entry(
        id="master-not-reached",
        area=Area.NETWORK,
        title="A worker did not reach the head",
        says="The client socket has timed out after 600000ms while trying to connect to (…).",
        signs=(
            sign(
                "The client socket has timed out after",
                r"connect to \((?P<address>[^,)]+), (?P<port>\d+)\)",
            ),
            sign(
                "The client socket has failed to connect to any network address of",
                r"address of \((?P<address>[^,)]+), (?P<port>\d+)\)",
            ),
        ),
        cause="The head does not run, the address is of another interface, or a firewall is "
        "between.",
        cure="`python build.py status` says whether the head runs. `data` in fleet.yaml must be "
        "the head's address on the network between the nodes; try the master port from the "
        "worker: `nc -vz HEAD PORT`.",
        sources=(f"{VLLM}19670", f"{VLLM}2427"),
    ),
    Entry(
        id="workers-missing",
        area=Area.NETWORK,
        title="The head waited in vain for its workers",
        says="DistStoreError: Timed out after 6 seconds waiting for workers. 1/2 workers joined.",
        signs=(
            sign(
                "Timed out after ",
                r"Timed out after \d+ seconds waiting for \w+\. (?P<joined>\d+/\d+) \w+ joined",
            ),
            sign("DistStoreError: wait timeout after"),
        ),
        cause="A node did not start its container, ended, or cannot reach the head.",
        cure="`python build.py status` names it, `logs --node NAME` says why.",
        sources=("https://github.com/pytorch/pytorch/pull/111805", f"{VLLM}52907"),
    ),
    Entry(
        id="gloo-interface",
        area=Area.NETWORK,
        title="Gloo cannot connect the nodes",
        says="RuntimeError: Gloo connectFullMesh failed with …",
        signs=(sign("Gloo connectFullMesh failed"),),
        cause="Gloo chose an interface that the other nodes cannot reach.",
        cure=f"Set `GLOO_SOCKET_IFNAME` to the data interface on each node, as {LAUNCH} does.",
        sources=(f"{VLLM}5094", "https://github.com/gpustack/gpustack/issues/2125"),
    ),
    Entry(
        id="no-such-interface",
        area=Area.NETWORK,
        title="NCCL_SOCKET_IFNAME names no interface of this node",
        says="Bootstrap : no socket interface found",
        signs=(
            sign("Bootstrap : no socket interface found"),
            sign("is neither AF_INET(2) nor AF_INET6(10)"),
        ),
        cause="The name differs from node to node (enp1s0f0np0, enp1s0f1np1 …), or is misspelt.",
        cure=f"{LAUNCH} finds it by the node's data address; `interface` in fleet.yaml "
        "overrides it.",
        sources=(f"{NCCL}1837", "https://github.com/marin-community/marin/issues/6940"),
    ),
)
