"""Finds the Docker Engine to build with, and describes it.

A reachable engine of the user's (DOCKER_HOST and contexts hold) is used as it is; else the
private one of the home, when it answers. $SPARKIMAGE_ENGINE=private|system|auto forces a choice.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from sparkimage.core.arch import arch_name
from sparkimage.core.errors import (
    CommandError,
    EngineError,
    EnginePermissionError,
    PreflightError,
    UsageError,
)
from sparkimage.core.paths import EnginePlace
from sparkimage.core.process import Runner
from sparkimage.core.program import program

if TYPE_CHECKING:
    import python_on_whales as whales
    from docker import DockerClient

MIN_MAJOR = 23
"""The first engine whose default builder is BuildKit: https://docs.docker.com/engine/release-notes/23.0/."""
ANSWER_S = 15.0
"""Seconds that an engine has for one answer; one that pulls at full speed may be slow."""
UP = f"{program()} engine up"
OWNER = "dev.sparkimage.verify"
"""Label of a container that verifies an image; its value is the process: ``locks.owner()``."""


class Choice(StrEnum):
    """Which engine the user wants."""

    AUTO = "auto"
    SYSTEM = "system"
    PRIVATE = "private"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A Docker Engine that answers and can build."""

    host: str
    docker: tuple[str, ...]
    """The first arguments of its CLI."""
    version: str
    buildx: str
    arch: str
    """The architecture of its machine: "amd64" or "arm64"."""
    private: bool
    containerd_store: bool
    data_root: str
    bin: Path | None
    """A folder with nothing but the engine's ``docker``, to go first in PATH for programs that
    call it by name; None when the one in PATH is right."""

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables for programs that call ``docker``."""
        variables = {"DOCKER_HOST": self.host}
        if self.private:
            variables["DOCKER_CONFIG"] = self.docker[self.docker.index("--config") + 1]
        if self.bin is not None:
            variables["PATH"] = f"{self.bin}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return variables

    @contextmanager
    def cli(self) -> Iterator[whales.DockerClient]:
        """Its CLI, for commands without a time limit. Raises ``CommandError`` where one fails."""
        import python_on_whales as whales
        from python_on_whales.exceptions import DockerException

        try:
            yield whales.DockerClient(client_call=list(self.docker))
        except DockerException as error:
            raise CommandError(
                error.docker_command, error.return_code, error.stderr or error.stdout or ""
            ) from None


def find(home: Path, runner: Runner) -> Engine:
    """The engine to use now.

    Raises ``EngineError`` when none answers, ``EnginePermissionError`` when this user has no access
    to the one there is, ``UsageError`` for a wrong $SPARKIMAGE_ENGINE.
    """
    return find_with_reason(home, runner)[0]


def find_with_reason(home: Path, runner: Runner) -> tuple[Engine, str]:
    """As ``find``, with the reason for the choice."""
    wanted = choice()
    refusals: list[EngineError] = []
    if wanted is not Choice.PRIVATE:
        try:
            return system_engine(runner), "it is this machine's own and answers"
        except EngineError as error:
            if wanted is Choice.SYSTEM:
                raise
            refusals.append(error)
    try:
        engine = private(home, runner)
    except EnginePermissionError:
        raise
    except EngineError as error:
        refusals.append(error)
        if isinstance(refusals[0], EnginePermissionError):
            raise refusals[0] from None
        reasons = "; ".join(refusal.message for refusal in refusals)
        raise EngineError(f"no Docker engine answers: {reasons}", hint=UP) from None
    return engine, refusals[0].message if refusals else "SPARKIMAGE_ENGINE=private"


def choice() -> Choice:
    """The value of $SPARKIMAGE_ENGINE. Raises ``UsageError`` for an unknown one."""
    value = os.environ.get("SPARKIMAGE_ENGINE", "") or Choice.AUTO
    try:
        return Choice(value)
    except ValueError:
        raise UsageError(
            f"SPARKIMAGE_ENGINE is {value!r}; it can be auto, system or private",
            hint="unset SPARKIMAGE_ENGINE",
        ) from None


def system_engine(runner: Runner) -> Engine:
    """The engine that the user's own ``docker`` talks to.

    Raises ``EngineError`` (with the reason) when it cannot be used, ``EnginePermissionError``
    when this user has no access to it.
    """
    program = shutil.which("docker")
    if program is None:
        raise EngineError("this machine has no docker program", hint=UP)
    try:
        # By DOCKER_HOST, DOCKER_CONTEXT or the current context of the user's configuration.
        output = runner.run((program, "context", "inspect"), timeout_s=ANSWER_S).stdout
        context = json.loads(output)[0]
        name, host = str(context["Name"]), str(context["Endpoints"]["docker"]["Host"])
    except (CommandError, PreflightError, ValueError, LookupError, TypeError) as error:
        raise EngineError(
            f"`docker context inspect` shows no endpoint: {str(error).splitlines()[0]}",
            hint="docker context ls",
        ) from None
    # With DOCKER_HOST set, the default context is that host; else name the context, so that a build
    # goes on with it when the user switches to another.
    prefix = (program, "--host", host) if name == "default" else (program, "--context", name)
    return describe(host, prefix, runner, is_private=False, folder=None)


def private(home: Path, runner: Runner) -> Engine:
    """The private engine of ``home``, when it runs. Errors as ``system_engine``."""
    place = EnginePlace.of(home)
    prefix = (
        str(place.root / "usr" / "bin" / "docker"),
        "--config", str(place.cli), "--host", place.host,
    )  # fmt: skip
    return describe(place.host, prefix, runner, is_private=True, folder=place.cli / "bin")


def describe(
    host: str, prefix: tuple[str, ...], runner: Runner, *, is_private: bool, folder: Path | None
) -> Engine:
    """Describe the engine at ``host``; the CLI's arguments begin with ``prefix``.

    Raises ``EngineError`` when it does not answer, is too old or has no buildx;
    ``EnginePermissionError`` when this user has no access to it.
    """
    from docker.errors import DockerException

    with closing(docker_client(host, ANSWER_S)) as client:
        try:
            version, info = client.version(), client.info()
        except (DockerException, OSError) as error:
            raise EngineError(
                f"the Docker engine at {host} answers with an error: {error}",
                hint="look at its log: journalctl -u docker",
            ) from None
    number = str(version.get("Version", ""))
    components = [str(part.get("Name", "")) for part in version.get("Components") or ()]
    if "Podman Engine" in components:
        raise EngineError(f"{host} is Podman {number}, not Docker Engine", hint=UP)
    if not usable(number):
        raise EngineError(
            f"the engine at {host} has version {number or 'unknown'}; {MIN_MAJOR} is needed",
            hint=f"upgrade it, or `{UP}` for a private one",
        )
    try:
        buildx = runner.run((*prefix, "buildx", "version"), timeout_s=ANSWER_S).stdout
    except (CommandError, PreflightError) as error:
        raise EngineError(
            f"the docker program for {host} has no buildx: {error.message}",
            hint=f"sudo apt-get install docker-buildx, or `{UP}` for a private engine",
        ) from None
    return Engine(
        host=host,
        docker=prefix,
        version=number,
        buildx=parse_buildx(buildx),
        arch=arch_name(str(info.get("Architecture", ""))),
        private=is_private,
        containerd_store=["driver-type", "io.containerd.snapshotter.v1"]
        in [list(pair) for pair in info.get("DriverStatus") or ()],
        data_root=str(info.get("DockerRootDir", "")),
        bin=folder,
    )


def usable(version: str) -> bool:
    """Whether an engine of this version can be used. Pure."""
    match = re.match(r"(\d+)\.", version)
    return match is not None and int(match[1]) >= MIN_MAJOR


def parse_buildx(output: str) -> str:
    """The version in the output of ``docker buildx version`` ("… v0.13.1 …"). Pure."""
    match = re.search(r"\bv?(\d+\.\d+\.\d+\S*)", output)
    return match[1] if match else output.strip()


def docker_client(host: str, timeout_s: float = 600.0) -> DockerClient:
    """A client of the SDK for the engine at ``host``; the caller closes it.

    ``timeout_s`` is how long one answer may be silent. Raises ``EngineError`` when none comes.
    """
    import docker
    from docker.errors import DockerException
    from docker.utils import kwargs_from_env

    try:
        # The SDK reports the reasons alike, and the socket's own errors tell them apart.
        if host.startswith("unix://"):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(timeout_s)
                probe.connect(host.removeprefix("unix://"))
        return docker.DockerClient(
            base_url=host,
            version="auto",
            timeout=int(timeout_s),
            tls=kwargs_from_env().get("tls", False) if host.startswith("tcp://") else False,
            use_ssh_client=host.startswith("ssh://"),
        )
    except PermissionError:
        raise EnginePermissionError(
            f"a Docker engine is at {host}, but this user (id {os.geteuid()}) has no access to it",
            hint='sudo usermod -aG docker "$USER" and log in again; or run this with sudo; or '
            "SPARKIMAGE_ENGINE=private for an engine of your own",
        ) from None
    except FileNotFoundError:
        raise EngineError(f"no Docker engine is at {host}", hint=UP) from None
    except ConnectionRefusedError:
        raise EngineError(
            f"no Docker engine listens at {host}, though its socket is there (it has died)",
            hint=UP,
        ) from None
    except (DockerException, OSError) as error:
        raise EngineError(
            f"no Docker engine answers at {host}: {error}", hint=f"docker info, or `{UP}`"
        ) from None
