"""Derives each node's exact ``docker run`` from the image, the profile and the node. Pure.

A ``Container`` is written as ``docker run``, as a compose file or as JSON.
"""

from __future__ import annotations

import csv
import hashlib
import io
import posixpath
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sparkimage.config.profiles import Profile
from sparkimage.serve.entrypoints import serve_prefix, takes_one_word
from sparkimage.serve.spec import ServerSpec

if TYPE_CHECKING:
    from sparkimage.serve.nccl import Library

CAPABILITIES = ("SYS_PTRACE", "IPC_LOCK")
INFINIBAND = "/dev/infiniband"
CHAT_TEMPLATE = "/run/sparkimage/chat-template.jinja"
"""Where a rank's container has the profile's chat template."""
Words = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Host:
    """A node as its rank's command needs it. ``image``: the image's id there."""

    node: str
    docker: Words
    address: str
    interface: str
    hcas: Words
    image: str
    caches: str
    """The folder for caches."""
    fabric: Mapping[str, str] = field(default_factory=dict)
    """Variables of NCCL that the network and the GPUs need; those of the profile win."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables of this node alone; they win over those of the profile."""
    gpus: Words = ("--gpus", "all")
    """The options that give a container its GPUs."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to start, the same for all ranks."""

    name: str
    """Of the deployment and its containers."""
    variant: str
    digest: str
    profile_name: str
    profile: Profile
    model: str
    entrypoint: Words
    """The image's ENTRYPOINT."""
    libraries: tuple[Library, ...] = ()
    """Every libnccl that was measured in the image."""
    nccl: Library | None = None
    """That of them that every rank must load; None: the image's own setting stays."""
    share_cache: bool = False
    chat_template: str = ""
    """The text of the profile's chat template, where it has one."""

    @property
    def template_sha256(self) -> str:
        """Of the chat template, where there is one."""
        text = self.chat_template
        return hashlib.sha256(text.encode()).hexdigest() if text else ""

    @property
    def rdma(self) -> bool:
        return self.profile.nodes > 1 and self.profile.wants_rdma

    def spec(self, head: str) -> ServerSpec:
        """The deployment whose head has this address."""
        profile = self.profile
        return ServerSpec(
            name=self.name, variant=self.variant, digest=self.digest, profile=self.profile_name,
            nodes=profile.nodes, gpus=profile.gpus, head=head, port=profile.port,
            nccl=self.nccl.version if self.nccl else "",
            nccl_build=self.nccl.build if self.nccl else "",
            rdma=self.rdma, chat_template=self.template_sha256,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A bind mount."""

    source: str
    target: str
    readonly: bool = False

    def __str__(self) -> str:
        """The value of ``--mount``: comma-separated, quoted as in CSV.

        It refuses a source that does not exist, which ``--volume`` would create as root.
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
    """The container of one rank, with all of its options."""

    node: str
    docker: Words
    rank: int
    name: str
    image: str
    restart: str
    shm_size: str
    gpus: Words
    """Options of ``docker run``."""
    devices: Words
    env: Mapping[str, str]
    secrets: Words
    """Variables whose values no command has."""
    mounts: tuple[Mount, ...]
    labels: Mapping[str, str]
    arguments: tuple[Words, ...]
    """After the image: an option with its values each."""
    caches: Words
    """Folders of the node to create first."""
    chat_template: str = ""
    """File of the node to write first, with the profile's chat template."""

    @property
    def groups(self) -> tuple[Words, ...]:
        """The command's arguments; an option stands with its values. Docker takes the secrets out
        of its own environment."""
        docker = self.docker
        if self.secrets and docker[0] == "sudo":
            docker = (*docker[:-1], f"--preserve-env={','.join(self.secrets)}", docker[-1])
        return (
            (*docker, "run", "--detach"),
            *self._options(*(("--env", name) for name in self.secrets)),
        )

    def _options(self, *secrets: Words) -> tuple[Words, ...]:
        return (
            ("--name", self.name),
            ("--restart", self.restart),
            self.gpus,
            ("--ipc", "host", "--network", "host", "--shm-size", self.shm_size),
            tuple(word for name in CAPABILITIES for word in ("--cap-add", name)),
            ("--ulimit", "memlock=-1:-1"),
            *(("--device", device) for device in self.devices),
            *(("--mount", str(mount)) for mount in self.mounts),
            *(("--env", f"{name}={value}") for name, value in self.env.items()),
            *secrets,
            *(("--label", f"{name}={value}") for name, value in self.labels.items()),
            (self.image,),
            *self.arguments,
        )

    @property
    def argv(self) -> list[str]:
        """The command."""
        return [word for group in self.groups for word in group]

    @property
    def create_argv(self) -> list[str]:
        """The command that creates the same container, and starts nothing. Its input is a file with
        the secrets, if there are any."""
        groups = self._options(*([("--env-file", "/dev/stdin")] if self.secrets else []))
        return [*self.docker, "create", *(word for group in groups for word in group)]

    def pasteable(self) -> str:
        """The command for a shell, one option a line, after the one that creates the caches."""
        run = " \\\n    ".join(shlex.join(group) for group in self.groups)
        for name in self.secrets:
            # Docker leaves out a variable that is not set, and the server would be open to all.
            run = f'export {name}="${{{name}:?}}" && \\\n{run}'
        if self.chat_template:
            run = f"# write the profile's chat template first: {self.chat_template}\n{run}"
        if not self.caches:
            return run
        return f"{shlex.join(['mkdir', '-p', '--', *self.caches])}\n{run}"

    def compose(self) -> str:
        """A compose file of this node.

        https://github.com/compose-spec/compose-spec/blob/main/05-services.md
        """
        import yaml

        def literal(text: str) -> str:
            # Compose expands variables.
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
            "environment": {
                **{name: literal(value) for name, value in self.env.items()},
                **{name: f"${{{name}:?}}" for name in self.secrets},
            },
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
        option, value = self.gpus
        if option == "--device":
            # https://github.com/compose-spec/compose-spec/blob/main/05-services.md#devices
            service["devices"] = [value, *service["devices"]]
            del service["deploy"]
        if not service["devices"]:
            del service["devices"]
        services = {"services": {"vllm": service}}
        return str(yaml.safe_dump(services, sort_keys=False, width=10_000, allow_unicode=True))

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        fields = asdict(self)
        del fields["docker"]
        command = [word for group in fields.pop("arguments") for word in group]
        return {**fields, "command": command, "argv": self.argv}


def containers(request: Request, hosts: Sequence[Host]) -> tuple[Container, ...]:
    """The container of each host; the first one is the head.

    Raises ``UsageError`` where the image's ENTRYPOINT cannot take arguments.
    """
    return tuple(_container(request, hosts, rank) for rank in range(len(hosts)))


def cache_folder(caches: str, digest: str) -> str:
    """The folder of an image's compiled caches, in a node's folder for caches."""
    return posixpath.join(caches, "sparkimage", digest.removeprefix("sha256:")[:12])


def _container(request: Request, hosts: Sequence[Host], rank: int) -> Container:
    profile, host = request.profile, hosts[rank]
    folder = cache_folder(host.caches, "shared" if request.share_cache else request.digest)
    caches = {posixpath.join(folder, name): target for name, target in profile.caches.items()}
    template = ""
    if request.chat_template:
        name = f"chat-template-{request.template_sha256[:12]}.jinja"
        template = posixpath.join(host.caches, "sparkimage", name)
    arguments = (
        *_rank_arguments(request, hosts, rank),
        *profile.serve.arguments(),
        *([("--chat-template", CHAT_TEMPLATE)] if template else []),
        *_grouped(profile.serve.more),
    )
    env = _env(request, host)
    return Container(
        node=host.node,
        docker=host.docker,
        rank=rank,
        name=request.name,
        image=host.image,
        restart=profile.restart,
        shm_size=profile.shm_size,
        gpus=host.gpus,
        devices=(INFINIBAND,) if request.rdma else (),
        env=env,
        secrets=tuple(name for name in profile.secrets if name not in env),
        mounts=(
            Mount(source=request.model, target=request.model, readonly=True),
            *(Mount(source=source, target=target) for source, target in caches.items()),
            *([Mount(source=template, target=CHAT_TEMPLATE, readonly=True)] if template else []),
        ),
        labels=request.spec(hosts[0].address).labels(rank),
        arguments=_command(request, arguments),
        caches=tuple(caches),
        chat_template=template,
    )


def _env(request: Request, host: Host) -> dict[str, str]:
    env: dict[str, str] = {}
    if request.profile.nodes > 1:
        env["VLLM_HOST_IP"] = host.address
        env["NCCL_SOCKET_IFNAME"] = env["GLOO_SOCKET_IFNAME"] = host.interface
        env["NCCL_IB_DISABLE"] = "0" if request.rdma else "1"
        if request.rdma and host.hcas:
            env["NCCL_IB_HCA"] = ",".join(host.hcas)
    if request.nccl:
        env["LD_PRELOAD"] = request.nccl.path
    # The proof reads NCCL's banner and channels from the log. NCCL prints them to C's stdout, whose
    # last 4 KB stay in the process where it is a pipe, unless Python has it without a buffer:
    # https://docs.python.org/3/using/cmdline.html#cmdoption-u
    logging = {"NCCL_DEBUG": "INFO", "PYTHONUNBUFFERED": "1"}
    return {**env, **logging, **host.fabric, **request.profile.env, **host.env}


def _rank_arguments(request: Request, hosts: Sequence[Host], rank: int) -> Iterator[Words]:
    """Which rank of how many: the head serves the API, the workers are headless.

    https://docs.vllm.ai/en/latest/serving/parallelism_scaling/
    """
    profile = request.profile
    if profile.nodes > 1:
        yield "--distributed-executor-backend", "mp"
        yield "--nnodes", str(profile.nodes)
        yield "--node-rank", str(rank)
        yield "--master-addr", hosts[0].address
        yield "--master-port", str(profile.master_port)
    if rank == 0:
        yield "--host", "0.0.0.0"
        yield "--port", str(profile.port)
    else:
        yield ("--headless",)


def _grouped(words: Sequence[str]) -> list[Words]:
    groups: list[Words] = []
    for word in words:
        if word.startswith("-") or not groups:
            groups.append((word,))
        else:
            groups[-1] = (*groups[-1], word)
    return groups


def _command(request: Request, arguments: Sequence[Words]) -> tuple[Words, ...]:
    prefix = serve_prefix(request.entrypoint, request.profile.command)
    groups = [(*prefix, request.model), *arguments]
    if takes_one_word(request.entrypoint):
        return ((shlex.join(word for group in groups for word in group),),)
    return tuple(groups)
