"""The lab's own proof: the nodes are what the other tests take them for, and faults are faults."""

from __future__ import annotations

import pytest

from tests.lab.fleet import FOUR, Fleet
from tests.lab.node import PASSWORD, Node
from tests.lab.node_image import Release

MAY = {"root": "direct", "worker": "direct", "sudoer": "sudo", "asker": "password", "plain": "no"}


def test_engines_and_stores_are_those_of_the_field(fleet: Fleet) -> None:
    template = "{{.ServerVersion}} {{.Driver}} {{json .DriverStatus}}"
    for name, said in fleet.each(lambda node: node.docker("info", "--format", template)).items():
        version, driver, status = said.split(maxsplit=2)
        spec = FOUR[name]
        major = int(version.split(".")[0])
        assert major == 26 if spec.release is Release.TRIXIE else major >= 28
        assert driver == ("overlayfs" if spec.containerd_store else "overlay2")
        assert ("io.containerd.snapshotter.v1" in status) == spec.containerd_store


@pytest.mark.parametrize("user", MAY)
def test_users_may_what_they_are_said_to(fleet: Fleet, user: str) -> None:
    def granted(node: Node) -> str:
        ask = ("docker", "version")
        to = f"{user}@{node.name}"
        if fleet.ssh(to, *ask).returncode == 0:
            return "direct"
        if fleet.ssh(to, "sudo", "-n", *ask).returncode == 0:
            return "sudo"
        given = f"{PASSWORD}\n".encode()
        if fleet.ssh(to, "sudo", "-S", *ask, given=given).returncode == 0:
            return "password"
        return "no"

    assert set(fleet.each(granted).values()) == {MAY[user]}
