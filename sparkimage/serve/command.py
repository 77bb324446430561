"""From an image, a profile and what the nodes are to the exact ``docker run`` of each node. Pure.

One ``Container`` says all; ``docker run``, a compose file and JSON are three ways to write it.
"""

from __future__ import annotations

import csv
import io
import posixpath
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparkimage.config.profiles import Profile
from sparkimage.core.errors import UsageError

LABEL = "dev.sparkimage.launch"
"""The label with the set's name, and the beginning of the other ones."""
CAPABILITIES = ("SYS_PTRACE", "IPC_LOCK")
INFINIBAND = "/dev/infiniband"
SHELLS = ("sh", "bash", "dash", "ash")
Words = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A node as its rank's command needs it. ``image``: the image's id there."""

    node: str
    docker: Words
    address: str
    interface: str
    hcas: Words
    image: str
    caches: str
    """The folder for caches."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be started, the same for all ranks."""

    name: str
    """Of the set, and so of its containers."""
    variant: str
    digest: str
    profile_name: str
    profile: Profile
    model: str
    entrypoint: Words
    """The image's own."""
    preload: str
    """The libnccl that was measured in the image, or nothing: the image's own setting stays."""
    nccl: str
    """The version that every rank must show, or nothing."""
    share_cache: bool = False

    @property
    def rdma(self) -> bool:
        return self.profile.nodes > 1 and self.profile.wants_rdma


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A folder of the node in the container."""

    source: str
    target: str
    readonly: bool = False

    def __str__(self) -> str:
        """As ``--mount`` takes it: comma-separated values, quoted as in CSV.

        Unlike ``--volume`` it refuses a source that does not exist instead of making it, root's.
        https://docs.docker.com/engine/storage/bind-mounts/
        """
        fields = ["type=bind", f"source={self.source}", f"target={self.target}"]
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(
            [*fields, "readonly"] if self.readonly else fields
        )
        return line.getvalue()


@dataclass(frozen=True, kw_only=True)
class Container:
    """One rank: all that Docker is told."""

    node: str
    docker: Words
    rank: int
    name: str
    image: str
    restart: str
    shm_size: str
    devices: Words
    env: Mapping[str, str]
    mounts: tuple[Mount, ...]
    labels: Mapping[str, str]
    arguments: tuple[Words, ...]
    """Behind the image: an option and its values each."""
    caches: Words
    """Folders that must be there before."""

    @property
    def groups(self) -> tuple[Words, ...]:
        """The words of the command, those together that belong together."""
        return (
            (*self.docker, "run", "--detach"),
            ("--name", self.name),
            ("--restart", self.restart),
            ("--gpus", "all"),
            ("--ipc", "host", "--network", "host", "--shm-size", self.shm_size),
            tuple(word for one in CAPABILITIES for word in ("--cap-add", one)),
            ("--ulimit", "memlock=-1:-1"),
            *(("--device", device) for device in self.devices),
            *(("--mount", str(mount)) for mount in self.mounts),
            *(("--env", f"{name}={value}") for name, value in self.env.items()),
            *(("--label", f"{name}={value}") for name, value in self.labels.items()),
            (self.image,),
            *self.arguments,
        )

    @property
    def argv(self) -> list[str]:
        """The command."""
        return [word for group in self.groups for word in group]

    def pasteable(self) -> str:
        """The command as a shell takes it, an option a line; the caches' folders before it."""
        run = " \\\n    ".join(shlex.join(group) for group in self.groups)
        if not self.caches:
            return run
        return f"{shlex.join(['mkdir', '-p', '--', *self.caches])}\n{run}"

    def compose(self) -> str:
        """A compose file of this node.

        https://github.com/compose-spec/compose-spec/blob/main/05-services.md
        """
        import yaml

        def literal(text: str) -> str:
            # A dollar sign would be a variable's.
            return text.replace("$", "$$")

        service = {
            "image": self.image,
            "pull_policy": "never",
            "container_name": self.name,
            "restart": self.restart,
            "network_mode": "host",
            "ipc": "host",
            "shm_size": self.shm_size,
            "cap_add": list(CAPABILITIES),
            "ulimits": {"memlock": {"soft": -1, "hard": -1}},
            "devices": [f"{device}:{device}" for device in self.devices],
            "volumes": [
                {
                    "type": "bind",
                    "source": literal(mount.source),
                    "target": literal(mount.target),
                    "read_only": mount.readonly,
                    "bind": {"create_host_path": not mount.readonly},
                }
                for mount in self.mounts
            ],
            "environment": {name: literal(value) for name, value in self.env.items()},
            "labels": {name: literal(value) for name, value in self.labels.items()},
            "command": [literal(word) for group in self.arguments for word in group],
            "deploy": {
                "resources": {
                    "reservations": {
                        "devices": [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
                    }
                }
            },
        }
        if not self.devices:
            del service["devices"]
        text = yaml.safe_dump(
            {"services": {"vllm": service}}, sort_keys=False, width=10_000, allow_unicode=True
        )
        return str(text)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        said = asdict(self)
        del said["docker"], said["arguments"], said["mounts"]
        return {
            **said,
            "mounts": [asdict(mount) for mount in self.mounts],
            "command": [word for group in self.arguments for word in group],
            "argv": self.argv,
        }


def containers(request: Request, places: Sequence[Place]) -> tuple[Container, ...]:
    """A container for each place; the first one is the head.

    Raises ``UsageError`` where the image's entry point cannot be given arguments.
    """
    return tuple(_container(request, places, rank) for rank in range(len(places)))


def _container(request: Request, places: Sequence[Place], rank: int) -> Container:
    profile, place = request.profile, places[rank]
    key = "shared" if request.share_cache else request.digest.removeprefix("sha256:")[:12]
    caches = {
        posixpath.join(place.caches, "sparkimage", key, name): target
        for name, target in profile.caches.items()
    }
    arguments = (
        *_ranks(request, places, rank),
        *profile.serve.arguments(),
        *_more(profile.serve.more),
    )
    return Container(
        node=place.node,
        docker=place.docker,
        rank=rank,
        name=request.name,
        image=place.image,
        restart=profile.restart,
        shm_size=profile.shm_size,
        devices=(INFINIBAND,) if request.rdma else (),
        env=_env(request, place),
        mounts=(
            Mount(source=request.model, target=request.model, readonly=True),
            *(Mount(source=source, target=target) for source, target in caches.items()),
        ),
        labels=_labels(request, rank, places[0].address),
        arguments=_entered(request, arguments),
        caches=tuple(caches),
    )


def _env(request: Request, place: Place) -> dict[str, str]:
    found: dict[str, str] = {}
    if request.profile.nodes > 1:
        found["VLLM_HOST_IP"] = place.address
        found["NCCL_SOCKET_IFNAME"] = found["GLOO_SOCKET_IFNAME"] = place.interface
        found["NCCL_IB_DISABLE"] = "0" if request.rdma else "1"
        if request.rdma and place.hcas:
            found["NCCL_IB_HCA"] = ",".join(place.hcas)
    if request.preload:
        found["LD_PRELOAD"] = request.preload
    # The proof reads what NCCL says.
    return {**found, "NCCL_DEBUG": "INFO", **request.profile.env}


def _labels(request: Request, rank: int, head: str) -> dict[str, str]:
    """What `status`, `stop` and `restart` need to know: nothing of a set is kept here."""
    return {
        LABEL: request.name,
        f"{LABEL}.variant": request.variant,
        f"{LABEL}.digest": request.digest,
        f"{LABEL}.profile": request.profile_name,
        f"{LABEL}.rank": str(rank),
        f"{LABEL}.nodes": str(request.profile.nodes),
        f"{LABEL}.gpus": str(request.profile.gpus),
        f"{LABEL}.head": head,
        f"{LABEL}.port": str(request.profile.port),
        f"{LABEL}.nccl": request.nccl,
        f"{LABEL}.rdma": "1" if request.rdma else "0",
    }


def _ranks(request: Request, places: Sequence[Place], rank: int) -> Iterator[Words]:
    """Who the rank is among all: the head answers requests, the workers are headless.

    https://docs.vllm.ai/en/latest/serving/parallelism_scaling/
    """
    profile = request.profile
    if profile.nodes > 1:
        yield "--distributed-executor-backend", "mp"
        yield "--nnodes", str(profile.nodes)
        yield "--node-rank", str(rank)
        yield "--master-addr", places[0].address
        yield "--master-port", str(profile.master_port)
    if rank == 0:
        yield "--host", "0.0.0.0"
        yield "--port", str(profile.port)
    else:
        yield ("--headless",)


def _more(words: Sequence[str]) -> list[Words]:
    groups: list[Words] = []
    for word in words:
        if word.startswith("-") or not groups:
            groups.append((word,))
        else:
            groups[-1] = (*groups[-1], word)
    return groups


def lead(entrypoint: Words, command: Sequence[str] | None) -> Words:
    """What stands before MODEL so that the image's entry point becomes ``vllm serve MODEL``.

    Raises ``UsageError`` where that cannot be known.
    """
    if command is not None:
        return tuple(command)
    names = [posixpath.basename(word) for word in entrypoint]
    if any(names[i : i + 2] == ["vllm", "serve"] for i in range(len(names))):
        return ()
    if names[-1:] == ["vllm"] or entrypoint[-2:] in (
        ("-m", "vllm"), ("-m", "vllm.entrypoints.cli.main"),
    ):  # fmt: skip
        return ("serve",)
    if entrypoint[-3:-1] in (("-m", "vllm"), ("-m", "vllm.entrypoints.cli.main")):
        return ()
    if len(names) > 2 and names[0] in SHELLS and "-c" in entrypoint:
        raise UsageError(
            f"the image's ENTRYPOINT is a script of a shell: {shlex.join(entrypoint)}",
            hint="say with `command` of the profile what stands before MODEL: [] when the script "
            "hands its arguments to vllm serve",
        )
    if "vllm.entrypoints.openai.api_server" in entrypoint:
        raise UsageError(
            "the image's ENTRYPOINT is vLLM's API server alone, which knows no --headless",
            hint="build it with ENTRYPOINT [vllm, serve], or say `command` in the profile",
        )
    return ("vllm", "serve")


def _entered(request: Request, arguments: Sequence[Words]) -> tuple[Words, ...]:
    before = lead(request.entrypoint, request.profile.command)
    groups = [(*before, request.model), *arguments]
    names = [posixpath.basename(word) for word in request.entrypoint]
    if len(names) == 2 and names[0] in SHELLS and names[1] == "-c":
        # Such a shell takes one word as its script.
        return ((shlex.join(word for group in groups for word in group),),)
    return tuple(groups)
