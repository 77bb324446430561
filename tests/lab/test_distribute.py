"""Images on four real nodes, over SSH: all of them, or none."""

from __future__ import annotations

import json
import re
import shlex
import subprocess

from sparkimage.verify import plan_record
from tests.lab.payload import Payload
from tests.lab.shipment import (
    MB,
    NAME,
    NODES,
    PAYLOAD,
    PREVIOUS,
    VARIANT,
    Shipment,
    everywhere,
    layers,
    ok,
    put,
    standing,
)

GATE_REFUSED = 14


def test_first_run_second_run_and_a_changed_layer(shipment: Shipment) -> None:
    payload = Payload.of(6 * MB, 4 * MB, 1 * MB)
    first = shipment.image(payload)
    done = shipment.distribute("--json")
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    assert {one["state"] for one in output["nodes"]} == {"moved"}
    assert everywhere(shipment, first)

    again = json.loads(shipment.distribute("--json").stdout)
    assert {one["state"] for one in again["nodes"]} == {"unchanged"}
    assert {one["sent"] for one in again["nodes"]} == {0}

    second = shipment.image(payload.changed(-1))
    changed = json.loads(shipment.distribute("--json").stdout)
    assert {one["layers_sent"] for one in changed["nodes"]} == {1}
    assert all(one["sent"] < second.layers[-1].size + 65536 for one in changed["nodes"])
    assert everywhere(shipment, second)
    for node in shipment.fleet:
        assert "+".join(node.diff_ids(PREVIOUS)) == layers(first)
        assert node.docker("run", "--rm", NAME) == "it runs"
        assert not [tag for tag in node.images() if "staging" in tag]


def test_names_of_ssh_config_and_users(shipment: Shipment) -> None:
    image = shipment.image(PAYLOAD)
    planned = json.loads(
        ok(shipment.distribute("--nodes", "node1,worker@node2", "--dry-run", "--json"))
    )
    assert [(one["node"], one["state"], one["layers_sent"]) for one in planned["nodes"]] == [
        ("node1", "planned", 4), ("node2", "planned", 4),
    ]  # fmt: skip
    assert {one["sent"] for one in planned["nodes"]} == {sum(one.size for one in image.layers)}
    assert set(standing(shipment).values()) == {None}
    assert "to send, " in ok(shipment.distribute("--nodes", "node1", "--dry-run"))
    ok(shipment.distribute("--nodes", "node1,worker@node2"))
    found = standing(shipment)
    assert [node for node in NODES if found[node] is not None] == ["node1", "node2"]
    # A receipt is of the user that brought it, and of none else.
    (receipt,) = (
        shipment.fleet["node2"]
        .exec(
            "find",
            "/root",
            "/home",
            "-path",
            "*/sparkimage/receipts/*.json",
            "-printf",
            "%p %u %m\n",
        )
        .splitlines()
    )
    assert receipt.startswith("/home/worker/.local/state/")
    assert receipt.endswith(" worker 600")
    again = json.loads(ok(shipment.distribute("--dry-run", "--json")))
    assert [one["state"] for one in again["nodes"]] == ["unchanged"] * 2 + ["planned"] * 2
    wrong = shipment.distribute("--nodes", "node1,node1")
    assert wrong.returncode == 2


# A terminal


def terminal(shipment: Shipment, columns: int, *words: str) -> str:
    """What a command shows on a terminal, without its colours."""
    command = f"stty cols {columns} rows 40; exec {shlex.join(shipment.argv(*words))}"
    done = subprocess.run(
        ["script", "--quiet", "--return", "--command", command, "/dev/null"],
        env=shipment.environment(TERM="xterm-256color"), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", done.stdout).replace("\r", "\n")


def test_terminal_shows_a_progress_bar_for_each_node_and_one_for_all(
    small_shipment: Shipment,
) -> None:
    shipment, fleet = small_shipment, small_shipment.fleet
    put(shipment, PAYLOAD)
    image = shipment.image(Payload.of(3 * MB, 8 * MB, 1 * MB))
    for node in fleet:
        node.data.rate(2 * MB)
    shown = terminal(shipment, 80, "distribute", VARIANT)
    assert everywhere(shipment, image)
    for line in shown.splitlines():
        assert len(line.rstrip()) <= 80, line
    for name in (*fleet.nodes, "all"):
        row = re.compile(rf"{name} +[━─]{{12}} +\d+\.\d / \d+\.\d MB +[\d.]+ [kM]B/s +[\d.]+ s ")
        assert row.search(shown), name
    # overlay2 lacks the layers above a changed one as well, containerd's store has them.
    assert "2 of 4 layers are there" in shown
    assert "3 of 4 layers are there" in shown
    assert "2 of 2 proven" in shown
    tables = terminal(shipment, 80, "nodes") + terminal(shipment, 80, "receipts")
    assert image.digest[7:19] in tables
    for line in tables.splitlines():
        assert len(line.rstrip()) <= 80, line


def test_unverified_image_is_refused(small_shipment: Shipment) -> None:
    """The nodes are called before the image is judged: none is kept waiting or locked."""
    shipment = small_shipment
    put(shipment, PAYLOAD)
    before, control = standing(shipment), next(iter(shipment.fleet)).control
    image = PAYLOAD.changed(-1, seed=41).put(shipment.store, NAME)
    record = plan_record.record(shipment.plan(VARIANT), shipment.folder)
    plan_record.save(shipment.store, image.digest, record)
    control.hang()
    done = shipment.distribute()
    assert done.returncode == GATE_REFUSED
    assert "has no seal" in done.stderr
    control.restore()
    assert standing(shipment) == before
    shipment.fleet.quiet()
    put(shipment, PAYLOAD.changed(-1, seed=42))
