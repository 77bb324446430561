"""A deployment as its containers' labels describe it. Pure."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

LABEL = "dev.sparkimage.launch"
"""The label with the deployment's name, and the prefix of the others."""


class ServerSpec(BaseModel):
    """A deployment as its containers' labels describe it: all that `status`, `stop` and `restart`
    need to know, so that nothing of it is kept on this machine."""

    model_config = ConfigDict(frozen=True)

    name: str
    variant: str = ""
    digest: str = ""
    profile: str = ""
    nodes: int
    gpus: int = 1
    """Of each node."""
    head: str = ""
    """The head's address for the other ranks."""
    port: int
    """Of the API."""
    nccl: str = ""
    """The version that every rank must load, or nothing."""
    nccl_build: str = ""
    """What tells its build apart: the Build ID, or the sha256."""
    rdma: bool = False
    chat_template: str = ""
    """The sha256 of the profile's chat template, where it has one."""

    @property
    def url(self) -> str:
        """The base URL of the API."""
        host = f"[{self.head}]" if ":" in self.head else self.head
        return f"http://{host}:{self.port}/v1"

    def labels(self, rank: int) -> dict[str, str]:
        """The labels of a rank's container."""
        values = {"rank": rank, **self.model_dump(exclude={"name"}), "rdma": int(self.rdma)}
        known = {f"{LABEL}.{key}": str(value) for key, value in values.items() if value != ""}
        return {LABEL: self.name, **known}
