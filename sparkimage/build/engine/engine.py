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
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    import python_on_whales as whales
    from docker import DockerClient

MIN_MAJOR = 23
"""The first engine whose default builder is BuildKit: https://docs.docker.com/engine/release-notes/23.0/."""
ANSWER_S = 15.0
"""Seconds that an engine has for one answer; one that pulls at full speed may be slow."""
UP = "python build.py engine up"


OWNER = "dev.sparkimage.verify"
"""The label of a container that one of our commands made to verify an image: ``locks.owner()``."""


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
    """The arguments that its CLI begins with."""
    version: str
    buildx: str
    arch: str
    """Of the engine's machine: "amd64" or "arm64"."""
    private: bool
    containerd_store: bool
    data_root: str
    bin: Path | None
    """A folder with nothing but the engine's ``docker``, to go first in PATH for programs that
    call it by name; None when the one in PATH is right."""

    @property
    def environment(self) -> dict[str, str]:
        """What programs that call ``docker`` themselves need in their environment."""
        found = {"DOCKER_HOST": self.host}
        if self.private:
            found["DOCKER_CONFIG"] = self.docker[self.docker.index("--config") + 1]
        if self.bin is not None:
            found["PATH"] = f"{self.bin}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return found

    @contextmanager
    def cli(self) -> Iterator[whales.DockerClient]:
        """Its CLI, for commands that end by themselves. Raises ``CommandError`` where one fails."""
        import python_on_whales as whales
        from python_on_whales.exceptions import DockerException

        try:
            yield whales.DockerClient(client_call=list(self.docker))
        except DockerException as error:
            raise CommandError(
                error.docker_command, error.return_code, error.stderr or error.stdout or ""
            ) from None


@dataclass(frozen=True, kw_only=True)
class Found:
    """The engine to use, and why it is this one."""

    engine: Engine
    why: str


def find(home: Path, runner: Runner) -> Engine:
    """The engine to use now.

    Raises ``EngineError`` when none answers, ``EnginePermissionError`` when one is there and this
    user may not talk to it, ``UsageError`` for a wrong $SPARKIMAGE_ENGINE.
    """
    return look(home, runner).engine


def look(home: Path, runner: Runner) -> Found:
    """As ``find``, with the reason for the choice."""
    wanted = choice()
    refusal: EngineError | None = None
    if wanted is not Choice.PRIVATE:
        try:
            return Found(engine=system_engine(runner), why="it is this machine's own and answers")
        except EngineError as error:
            if wanted is Choice.SYSTEM:
                raise
            refusal = error
    try:
        engine = private(home, runner)
    except EnginePermissionError:
        raise
    except EngineError as error:
        if isinstance(refusal, EnginePermissionError):
            raise refusal from None
        reasons = [e.message for e in (refusal, error) if e is not None]
        raise EngineError("no Docker engine answers: " + "; ".join(reasons), hint=UP) from None
    why = "SPARKIMAGE_ENGINE=private" if refusal is None else refusal.message
    return Found(engine=engine, why=why)


def choice() -> Choice:
    """What $SPARKIMAGE_ENGINE says. Raises ``UsageError`` when that is no choice."""
    said = os.environ.get("SPARKIMAGE_ENGINE", "") or Choice.AUTO
    try:
        return Choice(said)
    except ValueError:
        raise UsageError(
            f"SPARKIMAGE_ENGINE is {said!r}; it can be auto, system or private",
            hint="unset SPARKIMAGE_ENGINE",
        ) from None


def system_engine(runner: Runner) -> Engine:
    """The engine that the user's own ``docker`` talks to.

    Raises ``EngineError`` (with the reason) when it cannot be used, ``EnginePermissionError``
    when only the permission lacks.
    """
    program = shutil.which("docker")
    if program is None:
        raise EngineError("this machine has no docker program", hint=UP)
    try:
        # Knows DOCKER_HOST, DOCKER_CONTEXT and the current context of the user's configuration.
        said = runner.run((program, "context", "inspect"), timeout_s=ANSWER_S).stdout
        context = json.loads(said)[0]
        name, host = str(context["Name"]), str(context["Endpoints"]["docker"]["Host"])
    except (CommandError, PreflightError, ValueError, LookupError, TypeError) as error:
        raise EngineError(
            f"`docker context inspect` gives no endpoint: {str(error).splitlines()[0]}",
            hint="docker context ls",
        ) from None
    # With DOCKER_HOST set, the default context is what DOCKER_HOST says; else name it, so that a
    # change of the current context in the middle of a build changes nothing.
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
    """Ask the engine at ``host`` what it is; ``prefix`` begins the CLI's arguments.

    Raises ``EngineError`` when it does not answer, is too old or has no buildx;
    ``EnginePermissionError`` when this user may not talk to it.
    """
    version, info = _ask(host)
    number = str(version.get("Version", ""))
    components = [str(part.get("Name", "")) for part in version.get("Components") or ()]
    if "Podman Engine" in components:
        raise EngineError(f"{host} is Podman {number}, not Docker Engine", hint=UP)
    if not usable(number):
        raise EngineError(
            f"the engine at {host} is version {number or 'unknown'}, and {MIN_MAJOR} is needed",
            hint=f"upgrade it, or `{UP}` for a private one",
        )
    try:
        said = runner.run((*prefix, "buildx", "version"), timeout_s=ANSWER_S).stdout
    except (CommandError, PreflightError) as error:
        raise EngineError(
            f"the docker program for {host} has no buildx: {error.message}",
            hint=f"sudo apt-get install docker-buildx, or `{UP}` for a private engine",
        ) from None
    machine = str(info.get("Architecture", ""))
    return Engine(
        host=host,
        docker=prefix,
        version=number,
        buildx=parse_buildx(said),
        arch=arch_name(machine),
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


def parse_buildx(said: str) -> str:
    """The version in what ``docker buildx version`` prints ("… v0.13.1 …"). Pure."""
    match = re.search(r"\bv?(\d+\.\d+\.\d+\S*)", said)
    return match[1] if match else said.strip()


def docker_client(host: str, timeout_s: float = 600.0) -> DockerClient:
    """A client of the SDK for the engine at ``host``; the caller closes it.

    ``timeout_s`` is how long one answer may be silent. Raises ``EngineError`` when none comes.
    """
    import docker
    from docker.errors import DockerException
    from docker.utils import kwargs_from_env

    try:
        return docker.DockerClient(
            base_url=host,
            version="auto",
            timeout=int(timeout_s),
            tls=kwargs_from_env().get("tls", False) if host.startswith("tcp://") else False,
            use_ssh_client=host.startswith("ssh://"),
        )
    except (DockerException, OSError) as error:
        raise EngineError(
            f"no Docker engine answers at {host}: {error}", hint=f"docker info, or `{UP}`"
        ) from None


def _ask(host: str) -> tuple[dict[str, Any], dict[str, Any]]:
    _knock(host)
    from docker.errors import DockerException

    answering = docker_client(host, ANSWER_S)
    try:
        return answering.version(), answering.info()
    except (DockerException, OSError) as error:
        raise EngineError(
            f"the Docker engine at {host} answers with an error: {error}",
            hint="look at its log: journalctl -u docker",
        ) from None
    finally:
        answering.close()


def _knock(host: str) -> None:
    """Tell the reasons apart, which the SDK reports alike, by opening the socket ourselves."""
    if not host.startswith("unix://"):
        return
    path = host.removeprefix("unix://")
    knocking = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    knocking.settimeout(ANSWER_S)
    try:
        knocking.connect(path)
    except PermissionError:
        raise EnginePermissionError(
            f"a Docker engine is at {host}, but this user (id {os.geteuid()}) may not talk to it",
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
    except OSError as error:
        raise EngineError(f"{host} cannot be reached: {error}", hint=UP) from None
    finally:
        knocking.close()
