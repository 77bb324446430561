"""Builders of buildx beside the engine's own: remote, several nodes, kubernetes, a context."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sparkimage.build.engine.engine import Engine
from sparkimage.core.errors import CommandError, EngineError
from sparkimage.core.process import Runner

NODE = r"(?s)\nEndpoint:\s+(\S+)\n.*\nPlatforms:\s+linux/([a-z0-9]+)"


@dataclass(frozen=True, kw_only=True)
class Builder:
    """Where BuildKit runs, and how ``docker buildx`` is called for it."""

    buildx: tuple[str, ...]
    """The arguments before buildx's own command."""
    options: tuple[str, ...]
    """What follows that command."""
    environment: Mapping[str, str]
    remote: bool
    arches: tuple[str, ...]
    """Native architectures of its nodes."""
    endpoints: tuple[str, ...] = ()
    """Where the nodes are: an address, or the name of a Docker context; in the same order."""

    def native(self, wanted: str) -> str:
        """The architecture of the node that builds for ``wanted`` ("arm64")."""
        return wanted if wanted in self.arches else self.arches[0]


def own(engine: Engine) -> Builder:
    """The engine's own BuildKit."""
    return Builder(
        buildx=(*engine.docker, "buildx"),
        options=(),
        environment=engine.environment,
        remote=False,
        arches=(engine.arch,),
    )


def named(name: str, engine: Engine, runner: Runner) -> Builder:
    """The builder, or the Docker context, that the user calls ``name``.

    Raises ``EngineError`` when there is none, or when it does not answer.
    """
    docker = engine.docker[0]
    buildx: tuple[str, ...] = (docker, "buildx")
    if engine.private:
        # Its CLI has a configuration of its own; buildx by itself reads the user's.
        plugins = Path(engine.docker[engine.docker.index("--config") + 1], "cli-plugins")
        buildx = (str(plugins / "docker-buildx"),)
    contexts = runner.run([docker, "context", "ls", "--format", "{{.Name}}"], check=False).stdout
    options: tuple[str, ...] = ("--builder", name)
    environment: dict[str, str] = {}
    if name in contexts.split() and name != "default":
        # buildx refuses a context as --builder: make it the current one.
        options, environment = (), {"DOCKER_CONTEXT": name, "DOCKER_HOST": ""}
    argv = [*buildx, "inspect", "--bootstrap", *options[1:]]
    try:
        output = runner.run(argv, timeout_s=120, env=environment).stdout
    except CommandError as error:
        raise EngineError(
            f"the builder {name!r} cannot be used",
            detail=error.output.strip(),
            hint="docker buildx ls; docker context ls",
        ) from None
    endpoints, arches = parse(output)
    if not arches:
        raise EngineError(
            f"no node of the builder {name!r} reports its platforms",
            detail=output,
            hint=f"docker buildx inspect --bootstrap {name}",
        )
    return Builder(
        buildx=buildx,
        options=options,
        environment=environment,
        remote=True,
        arches=arches,
        endpoints=endpoints,
    )


def parse(output: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The endpoint and the native architecture of each node that runs, from the output of
    ``docker buildx inspect``. Pure.

    A node lists its own platform first: "Platforms: linux/arm64, linux/amd64 …".
    """
    nodes = (re.search(NODE, part) for part in re.split(r"(?m)^Name:", output))
    found = [(node[1], node[2]) for node in nodes if node is not None]
    return tuple(endpoint for endpoint, _ in found), tuple(arch for _, arch in found)
