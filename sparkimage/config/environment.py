"""Environment variables of the server that people write: in a profile for all ranks, in the fleet
file for one node. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import Field

from sparkimage.config.validation import Finding
from sparkimage.core import secrets

Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""The name of an environment variable."""
Environment = dict[Variable, str]
LONGEST_WORD = 11
"""Characters of a value that is no secret, unless its name says so."""
SENSITIVE = re.compile(r"key|token|pass|secret", re.IGNORECASE)
DERIVED = (
    "VLLM_HOST_IP", "LD_PRELOAD", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "NCCL_IB_HCA",
    "NCCL_IB_DISABLE",
)  # fmt: skip
GID_INDEX = "NCCL_IB_GID_INDEX"


def secret(name: str, value: str) -> str:
    """The kinds of secret in a value that a file has; empty for none, a path, `1`, EMPTY."""
    # Most values need no patterns, which take long to read.
    if value.startswith("/") or (len(value) <= LONGEST_WORD and not SENSITIVE.search(name)):
        return ""
    # Nothing would expand `$NAME`.
    return ", ".join(secrets.in_variable(name, value.removeprefix("$")))


def instead(name: str) -> str:
    """What to do with a variable whose value is a secret."""
    return f"export {name} for `launch` instead, and write `secrets: [{name}]` in the profile"


def problems(env: Mapping[str, str]) -> Iterator[Finding]:
    """What is wrong with variables for all ranks, by their key below ``env``."""
    for name, value in env.items():
        if name == GID_INDEX:
            # https://github.com/MiaAI-Lab/GLM-5.3-Flash-EXL3-2x-DGX-Sparks/issues/16
            what = (
                f"{name} is an index into the table of one RDMA device: it differs from node to "
                "node, and changes with the addresses there"
            )
            todo = (
                "remove it: NCCL finds the RoCE v2 IPv4 GID itself (from 2.21 on); if a node needs "
                "one, set `env` of that node in fleet.yaml"
            )
            yield ("env", name), what, todo
        else:
            yield from _problems(name, value)


def problems_of_node(env: Mapping[str, str]) -> Iterator[Finding]:
    """What is wrong with variables for one node, by their key below ``env``."""
    for name, value in env.items():
        if name == GID_INDEX and not value.removeprefix("-").isdecimal():
            # NCCL reads an empty or other word as 0, which is mostly the link-local GID.
            what = f"{name} is {value!r}: NCCL would read 0"
            yield ("env", name), what, "write the number of an entry, or remove it"
        else:
            yield from _problems(name, value)


def _problems(name: str, value: str) -> Iterator[Finding]:
    key = ("env", name)
    if name == "LD_PRELOAD":
        yield key, "LD_PRELOAD is derived from the library in the image", "remove it"
    elif name in DERIVED:
        todo = "remove it, and set `interface` and `hca` of a node instead"
        yield key, f"{name} is derived from the fleet and its nodes", todo
    elif name == "NCCL_DEBUG" and value.upper() not in ("INFO", "TRACE"):
        what = f"with NCCL_DEBUG {value} the logs do not show which NCCL runs"
        yield key, what, "use INFO, the default"
    elif name == "NCCL_DEBUG_FILE" and value not in ("/dev/stdout", "/dev/stderr"):
        yield key, f"with {name} the log does not have what NCCL says, which is proven", "remove it"
    elif name == "PYTHONUNBUFFERED" and not value:
        what = f"without {name} NCCL's last lines stay in the process, and the proof waits for them"
        yield key, what, "remove it"
    if kind := secret(name, value):
        yield key, f"the value of {name} is a secret ({kind})", instead(name)
    if "\0" in value or "\n" in value:
        yield key, f"{name} has more than one line", "write it in one"
