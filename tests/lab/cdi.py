"""CDI devices of a node's engine."""

from __future__ import annotations

import json

from tests.lab.node import Node, put

CONFIG, SPEC = "/etc/docker/daemon.json", "/etc/cdi/gpus.json"


def give_devices(node: Node, spec: bytes) -> None:
    """The node's Docker has CDI on, and this specification."""
    put(node, {SPEC: (0o644, spec)})
    config = json.loads(node.exec("cat", CONFIG))
    if not config["features"].get("cdi"):
        config["features"]["cdi"] = True
        _restart(node, json.dumps(config))


def take_devices(node: Node) -> None:
    """Undo ``give_devices``."""
    node.exec("rm", "-f", SPEC)
    config = json.loads(node.exec("cat", CONFIG))
    if config["features"].pop("cdi", None):
        _restart(node, json.dumps(config))


def _restart(node: Node, config: str) -> None:
    put(node, {CONFIG: (0o644, config.encode())})
    node.stop_dockerd()
    node.start_dockerd()
