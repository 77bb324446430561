"""A project whose images start: the stand-in for vLLM (standin_vllm/) on a small Debian, sealed and
distributed, and four nodes to start it on."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from sparkimage import origin
from sparkimage.engines.engine import Engine
from sparkimage.plans import lock, matrix, planning
from sparkimage.plans.plan import TRIPLETS
from sparkimage.proof import demands
from sparkimage.proof.keys import Keyring
from sparkimage.run import Local
from sparkimage.storage.store import Image
from tests.lab import fleet as fleets
from tests.lab import node_image
from tests.lab.fleet import Fleet
from tests.lab.node import Node, put
from tests.lab.node_image import Release
from tests.lab.payload import sealed
from tests.lab.project import Project
from tests.lab.standin_vllm import nccl
from tests.unit import good_maker
from tests.unit import project_maker as maker

PIN, OLD = "2.30.4", "2.28.9"
MODEL = "/models/tiny one"
"""With a space: what is pasted must be quoted."""
STANDIN = Path(__file__).with_name("standin_vllm")
LEFT_OUT = ("dev/", "run/", "usr/share/", "usr/lib/python3.13/test/", "usr/lib/python3.13/idlelib/")
PROGRAM = b"""#!/usr/bin/python3 -B
import sys
sys.path.insert(0, "/opt")
from standin_vllm import server
server.main(sys.argv[1:])
"""
ENTRY = b'#!/bin/sh\nexec "$@"\n'
LOSES = b'#!/bin/sh\nexport LD_PRELOAD=/usr/lib/nowhere/libnccl.so.2.30.4\nexec "$@"\n'
FOUR = {name: replace(spec, spark=True) for name, spec in fleets.FOUR.items()}
ENTRYPOINTS: Mapping[str, Sequence[str]] = {
    "good": ["vllm", "serve"],
    "entry": ["/entry.sh"],
    "none": [],
    "shell": ["/bin/sh", "-c"],
    "loses": ["/loses.sh"],
    "away": ["vllm", "serve"],
}
"""Variants by name; ``away`` is never distributed."""
SERVE = {
    "tensor_parallel": 4,
    "max_model_len": 4096,
    "max_num_seqs": 8,
    "prefix_caching": True,
    "kv_cache_dtype": "fp8",
    "gpu_memory_utilization": 0.8,
    "compilation": {"cudagraph_mode": "FULL_AND_PIECEWISE", "custom_ops": ["all"]},
    "speculative": {"method": "deepseek_mtp", "num_speculative_tokens": 2},
    "tool_call_parser": "deepseek_v4",
    "trust_remote_code": True,
}
CACHES = {"vllm": "/root/.cache/vllm", "triton": "/root/.triton/cache"}
PROFILES: dict[str, Any] = {
    "four": {
        "variants": ["*"], "nodes": 4, "serve": SERVE, "caches": CACHES,
        "env": {"VLLM_SAYS": "it's \"$HOME\" here"},
    },
    "uncached": {"variants": ["good"], "nodes": 4, "serve": SERVE},
    "two": {"variants": ["*"], "nodes": 2, "serve": {**SERVE, "tensor_parallel": 2},
            "port": 8100, "master_port": 29600},
    "single": {"variants": ["*"], "serve": {"max_model_len": 4096}, "port": 8200},
    "again": {"variants": ["good"], "nodes": 4, "serve": SERVE, "restart": "unless-stopped"},
}  # fmt: skip


@cache
def _python(arch: str) -> dict[str, good_maker.Content]:
    """The files of a small Debian with Python and a busybox."""
    words = [
        "--variant=extract", "--include=python3-minimal,libpython3-stdlib,busybox-static",
        f"--architectures={arch}",
    ]  # fmt: skip
    folder = node_image.made("python-root", words, Release.TRIXIE, "root.tar")
    found: dict[str, good_maker.Content] = {"lib": "usr/lib", "lib64": "usr/lib64"}
    with tarfile.open(folder / "root.tar") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if not name or f"{name}/".startswith(LEFT_OUT) or "/gconv/" in name or name in found:
                continue
            if member.isreg() or member.islnk():
                file = archive.extractfile(member)
                assert file is not None
                found[name] = (member.mode, file.read())
            elif member.issym():
                found[name] = member.linkname
            elif member.isdir():
                found[name] = None
    for applet in ("sh", "cat", "ls", "sleep"):
        found[f"usr/bin/{applet}"] = "busybox"
    found |= {"bin": "usr/bin", "sbin": "usr/sbin", "tmp": None, "root": None}
    found["usr/bin/env"] = "busybox"
    return found


@dataclass(frozen=True, kw_only=True)
class Serving(Project):
    """The project in ``folder``, for the nodes of ``fleet``."""

    fleet: Fleet
    arch: str

    @classmethod
    def make(cls, folder: Path, fleet: Fleet, arch: str) -> Serving:
        made = cls(folder=folder, fleet=fleet, arch=arch)
        made.matrix(PROFILES)
        made.nodes()
        return made

    def matrix(self, profiles: Mapping[str, Any]) -> None:
        """Write the matrix with these profiles, and its lock."""
        platform = f"linux/{self.arch}"
        data = maker.document(
            {"os": {"trixie": maker.OS}, "nccl": {PIN: maker.NCCL}},
            {"os": {"base": "os"}, "nccl": {"debs": "nccl"}},
            [
                maker.include(name, "os", "nccl", platform=platform, os="trixie", nccl=PIN)
                for name in ENTRYPOINTS
            ],
        )
        data["profiles"] = profiles
        read = maker.write(self.folder, data)
        (self.folder / "matrix.lock").write_text(lock.dump(maker.locked(read)))

    def nodes(self, *names: str, **more: Mapping[str, Any]) -> None:
        """Write fleet.yaml, of these nodes or of all; ``more``: of a node what is otherwise."""
        data = self.fleet.data("root", *names)
        for place, (name, spec) in enumerate(data["nodes"].items()):
            head = {"role": "head"} if not place else {}
            found = {"interface": "eth0", "hca": ["rocep1s0f0"], "gpus": 1}
            data["nodes"][name] = {**spec, **found, **head, **more.get(name, {})}
        (self.folder / "fleet.yaml").write_text(json.dumps(data, indent=1))

    def image(self, variant: str) -> Image:
        """The variant's image, with a seal that the gate takes."""
        store, triplet = self.store, TRIPLETS[self.arch]
        lib = f"usr/lib/{triplet}"
        files: list[good_maker.Files] = [
            _python(self.arch),
            {
                f"{lib}/libnccl.so.{PIN}": nccl.library(self.arch, PIN),
                f"{lib}/libnccl.so.2": f"libnccl.so.{PIN}",
                # What torch's wheel brings: it is loaded unless another one is preloaded.
                "usr/local/lib/python3.13/dist-packages/nvidia/nccl/lib/libnccl.so.2": (
                    nccl.library(self.arch, OLD)
                ),
            },
            {
                **{
                    f"opt/standin_vllm/{name}.py": (STANDIN / f"{name}.py").read_bytes()
                    for name in ("__init__", "api", "server")
                },
                "usr/local/bin/vllm": (0o755, PROGRAM),
                "entry.sh": (0o755, ENTRY),
                "loses.sh": (0o755, LOSES),
            },
        ]
        layers = [good_maker.put_layer(store, one) for one in files]
        config = {
            "os": "linux",
            "architecture": self.arch,
            "created": "2000-01-01T00:00:00Z",
            "config": {
                "Env": [
                    "PATH=/usr/local/bin:/usr/bin:/bin", f"LD_PRELOAD=/{lib}/libnccl.so.{PIN}",
                ],
                **({"Entrypoint": list(ENTRYPOINTS[variant])} if ENTRYPOINTS[variant] else {}),
                "Labels": {"dev.sparkimage.variant": variant},
            },
            "rootfs": {"type": "layers", "diff_ids": [id for _, id in layers]},
        }  # fmt: skip
        return self.seal(variant, good_maker.put_image(store, config, [one for one, _ in layers]))

    def seal(self, variant: str, image: Image) -> Image:
        """An image of the store as the variant's, with a seal that the gate takes."""
        read = matrix.load(self.folder / "matrix.yaml")
        held = lock.load(self.folder / "matrix.lock")
        (one,) = matrix.select(read, names=[variant])
        plan = planning.make(read, one, held, origin.of(self.folder, None, Local()))
        return sealed(
            self.store, image, plan.image, record=demands.record(plan, self.folder),
            keys=Keyring(folder=self.folder / "home" / "keys"), lock=plan.lock_checksum,
        )  # fmt: skip

    def environment(self, **more: str) -> dict[str, str]:
        return super().environment(**{**self.fleet.environment, **more})

    def launch(self, *words: str, variant: str = "good") -> subprocess.CompletedProcess[str]:
        """``launch`` of a variant, to its end."""
        # There is more than one profile for it on four nodes.
        which = [] if variant != "good" or "--profile" in words else ["--profile", "four"]
        return self.run("launch", variant, "--model", MODEL, *which, *words)

    def model(self, node: str, **faults: Any) -> None:
        """A node's model folder, with what is to go wrong there."""
        put(self.fleet[node], {
            f"{MODEL}/config.json": (0o644, b"{}"),
            f"{MODEL}/standin.json": (0o644, json.dumps(faults).encode()),
        })  # fmt: skip

    def containers(self) -> dict[str, list[str]]:
        """Names and states of the containers on each node."""
        return self.fleet.each(
            lambda node: node.docker(
                "ps", "--all", "--format", "{{.Names}} {{.State}}"
            ).splitlines()
        )  # fmt: skip

    def clean(self) -> None:
        """No container, no cache, no fault, wires whole, all nodes in the fleet file."""
        self.matrix(PROFILES)
        self.nodes()

        def one(node: Node) -> None:
            for wire in node.wires:
                wire.restore()
            ids = node.docker("ps", "--all", "--quiet").split()
            if ids:
                node.docker("rm", "--force", *ids)
            node.exec("rm", "-rf", "/root/.cache/sparkimage", MODEL)
            self.model(node.name)

        self.fleet.each(one)


@contextmanager
def serving(
    engine: Engine, folder: Path, variants: Sequence[str] = tuple(ENTRYPOINTS)
) -> Iterator[Serving]:
    """Four nodes that have the images of these variants, and the project of these."""
    (folder / "nodes").mkdir(parents=True)
    (folder / "project").mkdir()
    with fleets.fleet(engine, folder / "nodes", FOUR) as fleet:
        made = Serving.make(folder / "project", fleet, engine.arch)
        for variant in variants:
            made.image(variant)
            if variant != "away":
                done = made.run("distribute", variant)
                assert done.returncode == 0, done.stderr
        yield made
