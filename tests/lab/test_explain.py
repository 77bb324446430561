"""`explain` reads what real engines and a real loader say when they fail."""

from __future__ import annotations

import io
import shlex
import tarfile
from collections.abc import Sequence

from sparkimage.serve.explain import knowledge
from sparkimage.serve.explain.found import Match
from tests.lab.fleet import Fleet
from tests.lab.node import Node

IMAGE = "lab/explain:one"
"""An image with one file that is no program of this machine."""


def image() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        entry = tarfile.TarInfo("program")
        entry.mode, entry.size = 0o755, 4
        archive.addfile(entry, io.BytesIO(b"none"))
    return made.getvalue()


def said(node: Node, *words: str) -> list[Match]:
    """The known failures in what a command says that must fail, its output as it is."""
    lines = node.exec("sh", "-c", f"if {shlex.join(words)} 2>&1; then echo WELL; fi").splitlines()
    assert "WELL" not in lines, lines
    return knowledge.read(lines)


CASES: dict[str, tuple[Sequence[str], dict[str, str]]] = {
    "unknown-runtime": (("--runtime", "nvidia"), {"runtime": "nvidia"}),
    "no-gpu-driver": (("--gpus", "all"), {}),
    "device-missing": (("--device", "/dev/lab-none"), {"device": "/dev/lab-none"}),
    "mount-missing": (
        ("--mount", "type=bind,source=/lab/none,target=/model"), {"folder": "/lab/none"},
    ),
    "name-in-use": (("--name", "lab-taken"), {"name": "lab-taken"}),
    "wrong-platform": ((), {}),
}  # fmt: skip


def test_what_each_engine_says_of_a_wrong_start_is_known(fleet: Fleet) -> None:
    def work(node: Node) -> dict[str, tuple[str, dict[str, str]]]:
        node.docker("import", "-", IMAGE, given=image())
        node.docker("create", "--name", "lab-taken", IMAGE, "/program")
        try:
            found = {
                id_: said(node, "docker", "run", "--rm", *words, IMAGE, "/program")
                for id_, (words, _) in CASES.items()
            }
        finally:
            node.docker("rm", "--force", "lab-taken")
            node.docker("image", "rm", IMAGE)
        return {
            id_: (matches[0].entry.id, matches[0].captured) if len(matches) == 1 else ("", {})
            for id_, matches in found.items()
        }

    for name, found in fleet.each(work).items():
        for id_, (_, captured) in CASES.items():
            assert found[id_] == (id_, captured), name


def test_what_the_loader_says_of_a_missing_preload_is_known(four: Fleet) -> None:
    file = "/usr/lib/aarch64-linux-gnu/libnccl.so.2.30.4"
    lines = four["node1"].exec("sh", "-c", f"LD_PRELOAD={file} /bin/true 2>&1").splitlines()
    (match,) = knowledge.read(lines)
    assert match.entry.id == "preload-ignored"
    assert match.captured["file"] == file


def test_what_a_full_disk_says_is_known(four: Fleet) -> None:
    lines = four["node1"].exec("sh", "-c", "dd if=/dev/zero of=/dev/full 2>&1; true").splitlines()
    assert [match.entry.id for match in knowledge.read(lines)] == ["disk-full"]
