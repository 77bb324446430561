"""What real nodes say to the scripts of `launch`, recorded for the nodes that stand in for them.

`make record` writes recorded/NODE/*.txt; without it the same is compared. Left out is what differs
from one run and machine to the next: ids, times, addresses, sizes, the machine's own name.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence

from sparkimage.nodes import connection, ssh
from tests.lab.fleet import Fleet
from tests.lab.node import Node
from tests.lab.standin_nodes import RECORDED

KEEP: Mapping[str, Mapping[str, Sequence[str]]] = {
    "docker": {
        "": ("ServerVersion", "Driver", "DockerRootDir", "DriverStatus", "SecurityOptions"),
    },
    "images": {
        "": ("Id", "RepoTags", "Os", "Architecture", "RootFS", "Config"),
        "Config": ("Entrypoint", "Env", "Labels"),
    },
    "containers": {
        "": ("Id", "Name", "Image", "RestartCount", "State", "Config", "HostConfig"),
        "Config": ("Image", "Cmd", "Entrypoint", "Labels"),
        "HostConfig": ("CapAdd", "Devices", "IpcMode", "NetworkMode", "ShmSize", "Ulimits"),
    },
}
"""Of the JSON documents of a part the keys that are kept, at the top and below a key."""
DROPPED = {
    "content", "receipts", "disk", "memory", "held", "machine", "clock", "limits", "routes",
    "kernel",
}  # fmt: skip
"""Parts that are the machine's own."""
LINES = {"links": r"(@ )?(lo|eth0) ", "ports": r"0+:0016"}
"""Of other parts the lines that are kept: the container's interface and its sshd."""
PATTERNS = (
    (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
    (r"\b[0-9a-f]{64}\b", "HEX"),
    (r'("Pid": )\d+', r"\g<1>0"),
    (r'(?<="Architecture": ")\w+', "ARCH"),
    (r"(x86_64|aarch64)-linux-gnu", "TRIPLET"),
    (r'(?<="ServerVersion": ")([\d.]+)[^"]*', r"\1"),
    (r"ffff:[0-9a-f]{4}:[0-9a-f]{4}", "ffff:GID"),
    (r"eth0 10000 \d+", "eth0 10000 1500"),
    (r"ADDRESS/\d+", "ADDRESS/16"),
)


def record(fleet: Fleet, model: str, image: str) -> None:
    """Compare what the nodes of a set that runs say with what was recorded, or record it."""
    for name, files in fleet.each(lambda node: _said(fleet, node, model, image)).items():
        folder = RECORDED / name
        for file, text in files.items():
            if os.environ.get("RECORD") == "write":
                folder.mkdir(parents=True, exist_ok=True)
                (folder / file).write_text(text)
            recorded = (folder / file).read_text()
            lines = difflib.unified_diff(recorded.splitlines(), text.splitlines(), lineterm="")
            changed = "\n".join(lines)
            assert recorded == text, f"{name} says something else in {file}: make record\n{changed}"


def _said(fleet: Fleet, node: Node, model: str, image: str) -> dict[str, str]:
    def ask(*words: str) -> tuple[int, str]:
        done = fleet.ssh(node.name, *words)
        return done.returncode, (done.stdout + done.stderr).decode()

    parts = f"{ssh.IMAGES} {ssh.CONTAINERS} {ssh.MACHINE}"
    words = ssh.script("snapshot", "docker", parts, "", "lab", node.name, model)
    answer = f"{node.store}|/var/lib/docker\n".encode()
    said = fleet.ssh(node.name, *words, given=answer).stdout.decode()
    line, _, rest = said.partition("\n")
    assert line.startswith(connection.ASK)
    snapshot = _fixed(fleet, "\n".join([*_engine(node), rest]), image)
    errors = {
        "run": ask("docker", "run", "--detach", "--name", "vllm", image),
        "inspect": ask("docker", "container", "inspect", "--format", "{{.Id}}", "NAME"),
    }
    errors_said = {
        what: (code, _plain(fleet, text).replace("/vllm", "/NAME"))
        for what, (code, text) in errors.items()
    }
    return {"snapshot.txt": snapshot, "errors.json": json.dumps(errors_said, indent=1) + "\n"}


def _engine(node: Node) -> Iterator[str]:
    """What its engine says of itself, its images and its containers."""
    yield from ("@@ docker", node.docker("info", "--format", "{{json .}}"))
    for part, ls, inspect in (
        ("images", ("image", "ls"), ("image", "inspect")),
        ("containers", ("ps", "--all", "--filter", "label=dev.sparkimage.launch"),
         ("container", "inspect")),
    ):  # fmt: skip
        ids = dict.fromkeys(node.docker(*ls, "--quiet", "--no-trunc").split())
        yield f"@@ {part}"
        if ids:
            yield node.docker(*inspect, "--format", "{{json .}}", *ids)


def _plain(fleet: Fleet, text: str) -> str:
    for one in fleet:
        # 10.0.0.1 is no beginning of 10.0.0.14.
        text = re.sub(rf"\b{re.escape(one.inside)}\b", "ADDRESS", text)
    for pattern, to in PATTERNS:
        text = re.sub(pattern, to, text)
    return text


def _fixed(fleet: Fleet, said: str, image: str) -> str:
    lines: list[str] = []
    part = ""
    for line in said.splitlines():
        if line.startswith("@@ "):
            part = line[3:]
            lines += ["", line]
        elif not line or part in DROPPED or not re.match(LINES.get(part, ""), line):
            continue
        elif line.startswith("{"):
            read = json.loads(line)
            if part == "images" and image not in read["RepoTags"]:
                continue
            for below, keys in KEEP[part].items():
                kept = read[below] if below else read
                for key in kept.keys() - {*keys}:
                    del kept[key]
            if "DriverStatus" in read:
                read["DriverStatus"] = [one for one in read["DriverStatus"] if "." in one[1]]
            lines.append(_plain(fleet, json.dumps(read, sort_keys=True)))
        elif "inet6" not in line and "::" not in line:
            lines.append(_plain(fleet, line))
    return "\n".join(lines).lstrip("\n") + "\n"
