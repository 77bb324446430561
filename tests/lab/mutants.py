"""Faults, each put into a copy of a good image, with the check of the static tier that must refuse
it.

The copy shares the good image's blobs; a fault is a small layer on top, or a change of the config
or the manifest. `make mutants` prints what caught what; IMAGE=NAME takes an image of the store.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from sparkimage.config.lock_items import Wheel
from sparkimage.config.plan import LayerPlan, Plan
from sparkimage.image.layerindex import FACT, STEP, ImageFiles, image_files
from sparkimage.image.linking import Linker, Root
from sparkimage.image.store import Image, Store
from sparkimage.verify import static
from sparkimage.verify.seal import Check
from sparkimage.verify.static import Limits
from sparkimage.verify.static_nccl import system_path
from tests.unit.elf_maker import library, nccl
from tests.unit.good_maker import Files, patch, put_image, put_layer, toolkit

PROJECT = Path(__file__).resolve().parents[2]
OTHER = {"amd64": "arm64", "arm64": "amd64"}
LIMITS = Limits()
LOW = Limits(unpacked=4 << 20)
"""So that a layer need not have gigabytes."""
KEY = (
    b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + b"b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAE" * 2 + b"\n"
    b"-----END OPENSSH PRIVATE KEY-----\n"
)
TOKEN = "ghp_" + "a1B2" * 9
"""Of the form of a token, and none."""


@dataclass
class Copy:
    """A copy of a good image into which a fault is put."""

    store: Store
    plan: Plan
    good: Image
    files: ImageFiles
    config: dict[str, Any] = field(init=False)
    layers: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.config = copy.deepcopy(dict(self.good.config))
        self.layers = copy.deepcopy(list(self.good.manifest["layers"]))

    @property
    def arch(self) -> str:
        return self.plan.arch

    @property
    def system(self) -> str:
        """Where the one NCCL lies, without a leading slash."""
        return system_path(self.plan)

    @property
    def lib(self) -> str:
        return f"usr/lib/{self.plan.triplet}"

    @property
    def dist(self) -> str:
        return f"usr/local/lib/python{self.plan.python}/dist-packages"

    @property
    def settings(self) -> dict[str, Any]:
        """The part of the config that containers get."""
        settings: dict[str, Any] = self.config["config"]
        return settings

    def add(self, files: Files) -> None:
        """Lay a layer of ours on top."""
        layer, diff_id = put_layer(self.store, files)
        self.layers.append(layer)
        self.config["rootfs"]["diff_ids"].append(diff_id)
        self.config["history"].append({"created_by": f"RUN . {STEP}; tidy"})

    def note(self, line: str) -> None:
        """A line of the history."""
        self.config["history"].append({"created_by": line, "empty_layer": True})

    def env(self, name: str, value: str) -> None:
        """Set a variable."""
        rest = [e for e in self.settings.get("Env", ()) if not e.startswith(f"{name}=")]
        self.settings["Env"] = [*rest, f"{name}={value}"]

    def label(self, value: str | None) -> None:
        """Change the label that says the variant; None removes it."""
        labels = self.settings["Labels"]
        labels.pop("dev.sparkimage.variant")
        if value is not None:
            labels["dev.sparkimage.variant"] = value

    def needed_library(self) -> str:
        """A file of the image that another one needs, by its path; not the C library."""
        linker = Linker.of(self.root, self.arch, self.plan.triplet)
        for entry, head in self.root.elves():
            for name in head.needed:
                found = linker.find(name, entry)
                if found and not name.startswith(("libc.", "ld-")) and found.path != self.system:
                    return found.path
        raise AssertionError("nothing needs a library")

    @property
    def root(self) -> Root:
        """What a container of the good image sees."""
        return Root(self.files.final)

    def program(self, name: str) -> str:
        """Where the program ``name`` lies."""
        found = self.root.program(name, self.good.settings.env["PATH"])
        assert found is not None
        return found.path

    def command(self) -> str:
        """The file behind /usr/local/bin/vllm."""
        found = self.root.file("usr/local/bin/vllm")
        assert found is not None
        return found.path

    def unexecutable(self, name: str) -> None:
        """Write a program anew, as a file that cannot be executed."""
        self.add({self.program(name): (0o644, b"#!/usr/bin/python3\n")})

    def some_wheel(self) -> str:
        """The name of a wheel that the plan has."""
        return next(wheel.name for layer in self.plan.layers for wheel in layer.wheels)

    def metadata(self, name: str) -> str:
        """Where the METADATA of the Python package ``name`` lies."""
        return next(
            path
            for path, entry in self.files.final.items()
            if path.startswith(self.dist) and entry.seen.get("wheel", [""])[0] == name
        )

    def preload(self, path: str, files: Files) -> None:
        """Preload ``path`` of a layer with ``files``."""
        self.add(files)
        self.env("LD_PRELOAD", f"/{self.system}:/{path}")

    def image(self) -> Image:
        return put_image(self.store, self.config, self.layers)


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A fault, and the id of the check meant for it, without ``static/``."""

    name: str
    check: str
    make: Callable[[Copy], Any]
    limits: Limits = LIMITS


def removed(path: str) -> str:
    """The whiteout that removes ``path``."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/.wh.{name}"


def _add_and_delete(c: Copy, files: Files) -> None:
    c.add(files)
    c.add({removed(path): b"" for path in files})


def _metadata(name: str, version: str) -> bytes:
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()


def _mix_layers(c: Copy) -> None:
    """Plan two layers, of one wheel and of two, and make one of them."""
    wheels = [
        Wheel(name=f"lab-{n}", version="1", size=1, sha256="0" * 64, file="n.whl") for n in range(3)
    ]
    layers = [
        LayerPlan(name=name, dockerfile="", args={}, wheels=tuple(some))
        for name, some in (("lab-one", wheels[:1]), ("lab-two", wheels[1:]))
    ]
    c.plan = dataclasses.replace(c.plan, layers=(*c.plan.layers, *layers))
    c.add({f"{c.dist}/{w.name}-1.dist-info/METADATA": _metadata(w.name, "1") for w in wheels})


def _patch_target(plan: Plan) -> str:
    return next(iter(plan.patched_files))


MUTANTS = (
    # Programs and libraries
    Mutant(
        name="a library of the other architecture",
        check="architecture",
        make=lambda c: c.add({f"{c.dist}/vllm/_other.so": library(OTHER[c.arch])}),
    ),
    Mutant(
        name="a library of 32 bits",
        check="architecture",
        make=lambda c: c.add({f"{c.lib}/old.so": b"\x7fELF\x01\x01\x01" + bytes(60)}),
    ),
    Mutant(
        name="a library that ends early",
        check="elf-heads",
        make=lambda c: c.add({f"{c.lib}/cut.so": library(c.arch, needed=["libc.so.6"])[:-40]}),
    ),
    Mutant(
        name="NEEDED that nothing provides",
        check="needed",
        make=lambda c: c.add({f"{c.dist}/vllm/_x.so": library(c.arch, needed=["libnone.so.3"])}),
    ),
    Mutant(
        name="an extension for another CUDA",
        check="needed",
        make=lambda c: c.add({f"{c.dist}/vllm/_x.so": library(c.arch, needed=["libcudart.so.12"])}),
    ),
    Mutant(
        name="a NEEDED library deleted",
        check="needed",
        make=lambda c: c.add({removed(c.needed_library()): b""}),
    ),
    Mutant(
        name="a NEEDED library of the other architecture only",
        check="needed",
        make=lambda c: c.add(
            {
                f"{c.dist}/vllm/_x.so": library(c.arch, needed=["libx.so.1"], runpath="$ORIGIN"),
                f"{c.dist}/vllm/libx.so.1": library(OTHER[c.arch], soname="libx.so.1"),
            }
        ),
    ),
    Mutant(
        name="an interpreter that is not there",
        check="needed",
        make=lambda c: c.add({"usr/bin/x": library(c.arch, interpreter="/lib/ld-musl.so.1")}),
    ),
    # NCCL
    Mutant(
        name="a second libnccl, deleted a layer later",
        check="nccl-every-layer",
        make=lambda c: _add_and_delete(c, {"opt/libnccl.so.2": nccl(c.arch, "2.28.9")}),
    ),
    Mutant(
        name="a newer libnccl, replaced by the pinned one",
        check="overlay-order",
        make=lambda c: _add_and_delete(c, {"opt/libnccl.so.2": nccl(c.arch, "9.0.0")}),
    ),
    Mutant(
        name="a second libnccl under another file name",
        check="nccl-root",
        make=lambda c: c.add({"opt/fast.so": nccl(c.arch)}),
    ),
    Mutant(
        name="SONAME renamed",
        check="nccl-version",
        make=lambda c: c.add({c.system: nccl(c.arch, soname="libnccl.so.3")}),
    ),
    Mutant(
        name="2.28.9 bytes under the pinned name",
        check="nccl-version",
        make=lambda c: c.add({c.system: nccl(c.arch, "2.28.9")}),
    ),
    Mutant(
        name="other bytes that say the pinned version",
        check="nccl-bytes",
        make=lambda c: c.add({c.system: nccl(c.arch, c.plan.versions["nccl"]) + b"\0"}),
    ),
    Mutant(
        name="NCCL of the other architecture",
        check="nccl-version",
        make=lambda c: c.add({c.system: nccl(OTHER[c.arch], c.plan.versions["nccl"])}),
    ),
    Mutant(
        name="torch's place a real copy",
        check="nccl-places",
        make=lambda c: c.add({f"{c.dist}/nvidia/nccl/lib/libnccl.so.2": nccl(c.arch, "2.29.7")}),
    ),
    Mutant(
        name="torch's place a link to nowhere",
        check="nccl-places",
        make=lambda c: c.add({f"{c.dist}/nvidia/nccl/lib/libnccl.so.2": "/opt/gone.so"}),
    ),
    Mutant(
        name="torch's place a copy of the pinned library",
        check="nccl-root",
        make=lambda c: c.add(
            {f"{c.dist}/nvidia/nccl/lib/libnccl.so.2": nccl(c.arch, c.plan.versions["nccl"])}
        ),
    ),
    Mutant(
        name="another build that says the pinned version",
        check="nccl-builds",
        make=lambda c: c.add(
            {"opt/libnccl.so.2": nccl(c.arch, c.plan.versions["nccl"], build_id="1f" * 20)}
        ),
    ),
    Mutant(
        name="a name for the library where there must be none",
        check="nccl-places",
        make=lambda c: c.add({f"{c.dist}/torch/lib/libnccl.so.2": f"/{c.system}"}),
    ),
    Mutant(
        name="the library deleted",
        check="nccl-root",
        make=lambda c: c.add({removed(c.system): b""}),
    ),
    # What is preloaded
    Mutant(
        name="preload path off by one",
        check="preload",
        make=lambda c: c.env("LD_PRELOAD", f"/{c.system[:-1]}9"),
    ),
    Mutant(
        name="preload left out",
        check="nccl-pip/test_preload_names_the_library",
        make=lambda c: c.env("LD_PRELOAD", ""),
    ),
    Mutant(
        name="the preloaded library deleted",
        check="preload",
        make=lambda c: c.add({removed(c.system): b""}),
    ),
    Mutant(
        name="preload link to nowhere",
        check="preload",
        make=lambda c: c.preload("opt/p.so", {"opt/p.so": "gone.so"}),
    ),
    Mutant(
        name="preload of the other architecture",
        check="preload",
        make=lambda c: c.preload("opt/p.so", {"opt/p.so": library(OTHER[c.arch])}),
    ),
    Mutant(
        name="ld.so.preload names a missing file",
        check="preload",
        make=lambda c: c.add({"etc/ld.so.preload": b"/usr/lib/libgone.so\n"}),
    ),
    # Config
    Mutant(
        name="ENTRYPOINT in shell form",
        check="exec-form",
        make=lambda c: c.settings.update(Entrypoint=["/bin/sh", "-c", "vllm serve"]),
    ),
    Mutant(
        name="CMD in shell form",
        check="exec-form",
        make=lambda c: c.settings.update(Cmd=["/bin/sh", "-c", "vllm serve"]),
    ),
    Mutant(
        name="ENTRYPOINT doubled",
        check="entrypoint",
        make=lambda c: c.settings.update(Entrypoint=[*c.plan.entrypoint, *c.plan.entrypoint]),
    ),
    Mutant(
        name="a CMD that repeats the ENTRYPOINT",
        check="cmd",
        make=lambda c: c.settings.update(Cmd=list(c.plan.entrypoint)),
    ),
    Mutant(
        name="the ENTRYPOINT's program cannot be executed",
        check="program",
        make=lambda c: c.env("PATH", "/nowhere"),
    ),
    Mutant(
        name="the ENTRYPOINT's program has lost its mode",
        check="program",
        make=lambda c: c.unexecutable(c.plan.entrypoint[0]),
    ),
    Mutant(
        name="the script of the ENTRYPOINT has Windows' line ends",
        check="interpreter",
        make=lambda c: c.add({c.command(): (0o755, b"#!/usr/bin/python3\r\n")}),
    ),
    Mutant(name="USER changed", check="user", make=lambda c: c.settings.update(User="1000")),
    Mutant(name="a label that lies", check="labels", make=lambda c: c.label("other")),
    Mutant(name="a label missing", check="labels", make=lambda c: c.label(None)),
    Mutant(
        name="architecture in the config wrong",
        check="platform",
        make=lambda c: c.config.update(architecture=OTHER[c.arch]),
    ),
    # Secrets
    Mutant(
        name="a private key, deleted a layer later",
        check="secrets",
        make=lambda c: _add_and_delete(c, {"root/.ssh/id_ed25519": KEY}),
    ),
    Mutant(
        name="a docker login",
        check="secrets",
        make=lambda c: c.add(
            {"root/.docker/config.json": b'{"auths": {"ghcr.io": {"auth": "dXNlcjpwYXNz"}}}'}
        ),
    ),
    Mutant(
        name="a login in .netrc",
        check="secrets",
        make=lambda c: c.add({"root/.netrc": b"machine example.org login me password hunter2\n"}),
    ),
    Mutant(
        name="an index's password in pip.conf",
        check="secrets",
        make=lambda c: c.add(
            {"etc/pip.conf": b"[global]\nindex-url = https://me:pw@example.org\n"}
        ),
    ),
    Mutant(
        name="a token in ENV",
        check="env-secrets",
        make=lambda c: c.env("HF_TOKEN", "not-even-of-its-form"),
    ),
    Mutant(
        name="a token in a label",
        check="label-secrets",
        make=lambda c: c.settings["Labels"].update(note=TOKEN),
    ),
    Mutant(
        name="a token in the history",
        check="history-secrets",
        make=lambda c: c.note(f"RUN |1 GITHUB_TOKEN={TOKEN} /bin/sh -c true"),
    ),
    Mutant(
        name="a site's CA added",
        check="site-ca",
        make=lambda c: _add_and_delete(c, {"usr/local/share/ca-certificates/site.crt": b"site"}),
    ),
    Mutant(
        name="a site's CA in the system's bundle",
        check="ca-bundle",
        make=lambda c: c.add(
            {"etc/ssl/certs/ca-certificates.crt": b"-----BEGIN CERTIFICATE-----\n" * 999}
        ),
    ),
    # What is in it
    Mutant(
        name="torch for the CPU",
        check="torch-cuda",
        make=lambda c: c.add(
            {f"{c.dist}/torch/version.py": b"cuda: Optional[str] = None\nhip = None\n"}
        ),
    ),
    Mutant(
        name="a patch with one byte changed",
        check="patches",
        make=lambda c: c.add({_patch_target(c.plan): b"1\n"}),
    ),
    Mutant(
        name="a patched file that is gone",
        check="patches",
        make=lambda c: c.add({removed(_patch_target(c.plan)): b""}),
    ),
    Mutant(
        name="a patched file that is no Python",
        check="patches-parse",
        make=lambda c: c.add({_patch_target(c.plan): b"(\n"}),
    ),
    Mutant(
        name="a wheel in another version",
        check="wheels",
        make=lambda c: c.add({c.metadata(c.some_wheel()): _metadata(c.some_wheel(), "0.31.0")}),
    ),
    Mutant(
        name="a wheel left out",
        check="wheels",
        make=lambda c: c.add({removed(c.metadata(c.some_wheel())): b""}),
    ),
    Mutant(
        name="a wheel in two versions",
        check="wheels",
        make=lambda c: c.add(
            {f"{c.dist}/x-0.dist-info/METADATA": _metadata(c.some_wheel(), "0.31.0")}
        ),
    ),
    Mutant(
        name="a wheel in the layer of others",
        check="wheel-layers",
        make=_mix_layers,
    ),
    Mutant(
        name="the project that names the version left out",
        check="project",
        make=lambda c: c.add({removed(c.metadata("vllm")): b""}),
    ),
    Mutant(
        name="vLLM in another version",
        check="vllm/test_version",
        make=lambda c: c.add({c.metadata("vllm"): _metadata("vllm", "0.31.0")}),
    ),
    Mutant(
        name="vLLM of which no metadata tells",
        check="project",
        make=lambda c: c.add({removed(c.metadata("vllm")): b""}),
    ),
    Mutant(
        name="torch for another CUDA",
        check="torch-cuda",
        make=lambda c: c.add({f"{c.dist}/torch/version.py": b"cuda: Optional[str] = '12.9'\n"}),
    ),
    Mutant(
        name="vLLM beside its place",
        check="vllm-source/test_place",
        make=lambda c: c.add(
            {
                removed(f"{c.dist}/vllm/__init__.py"): b"",
                "usr/lib/python3/dist-packages/vllm/__init__.py": b"",
            }
        ),
    ),
    Mutant(
        name="the command's script is no Python",
        check="vllm/test_command_is_python",
        make=lambda c: c.add({c.command(): (0o755, b"#!/usr/bin/python3\n(\n")}),
    ),
    Mutant(
        name="the command's interpreter is another one",
        check="vllm/test_command_is_python",
        make=lambda c: c.add({c.command(): (0o755, b"#!/nowhere/python3\n")}),
    ),
    Mutant(
        name="a CUDA compiler of another release than its headers",
        check="cuda-compiler",
        make=lambda c: c.add(toolkit(c.arch, "13.5", 13000)),
    ),
    Mutant(
        name="no headers where CUDA_HOME leads",
        check="cuda/test_cuda_home",
        make=lambda c: c.env("CUDA_HOME", "/nowhere"),
    ),
    Mutant(
        name="another CUDA than that of the pinned image",
        check="cuda-base/test_version",
        make=lambda c: c.env("CUDA_VERSION", "12.9.1"),
    ),
    Mutant(
        name="the CUDA folder removed",
        check="cuda-base/test_toolkit_folder",
        make=lambda c: c.add({"usr/local/.wh.cuda": b""}),
    ),
    Mutant(
        name="the GPU hidden from its containers",
        check="serve/test_environment_for_the_gpu",
        make=lambda c: c.env("NVIDIA_VISIBLE_DEVICES", "none"),
    ),
    Mutant(
        name="a program that the overlay needs is missing",
        check="prebuilt/test_tools",
        make=lambda c: c.add({removed(c.program("apt-get")): b""}),
    ),
    Mutant(
        name="a setuid file",
        check="setuid",
        make=lambda c: c.add({"usr/bin/rootme": (0o4755, b"#!/bin/sh\n")}),
    ),
    Mutant(
        name="a file of a foreign distribution",
        check="distribution",
        make=lambda c: c.add({"etc/alpine-release": b"3.22\n"}),
    ),
    Mutant(
        name="another suite",
        check="suite",
        make=lambda c: c.add({"usr/lib/os-release": b"ID=debian\nVERSION_CODENAME=sid\n"}),
    ),
    Mutant(
        name="a package that is not the lock's",
        check="packages",
        make=lambda c: c.add(
            {"var/lib/dpkg/status": b"Package: x\nStatus: install ok installed\nVersion: 1\n"}
        ),
    ),
    # Left behind
    Mutant(
        name="apt lists",
        check="apt-lists",
        make=lambda c: _add_and_delete(c, {"var/lib/apt/lists/x_Packages": b"Package: x\n"}),
    ),
    Mutant(
        name="pip's cache",
        check="caches",
        make=lambda c: _add_and_delete(c, {"root/.cache/pip/http/x": b"wheel"}),
    ),
    Mutant(
        name="a log",
        check="logs",
        make=lambda c: c.add({"var/log/dpkg.log": b"2026-01-01 install\n"}),
    ),
    Mutant(
        name="bytecode, deleted a layer later",
        check="bytecode",
        make=lambda c: _add_and_delete(
            c, {f"{c.dist}/vllm/__pycache__/a.cpython-313.pyc": b"\xf3\r\r\n"}
        ),
    ),
    Mutant(
        name="a file of a layer below, written again",
        check="stored-twice",
        make=lambda c: c.add({c.system: nccl(c.arch, c.plan.versions["nccl"])}),
    ),
    Mutant(
        name="a layer larger than a registry takes",
        check="layer-stored",
        make=lambda c: c.layers[-1].update(size=LIMITS.stored + 1),
    ),
    Mutant(
        name="an oversized layer of ours",
        check="layer-unpacked",
        make=lambda c: c.add({"opt/zeros": bytes(5 << 20)}),
        limits=LOW,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a mutant: the checks that refused it, without ``static/``."""

    mutant: Mutant
    caught_by: tuple[str, ...]

    @property
    def killed(self) -> bool:
        return self.mutant.check in self.caught_by


def share(good: Store, image: Image, folder: Path) -> Store:
    """A store over the blobs of ``image`` and over what is known of its layers; no byte copied."""
    made = Store.open(folder)
    for digest in (image.digest, *(digest for digest, _ in image.blobs())):
        made.path(digest).symlink_to(good.path(digest).resolve())
    for layer in image.layers:
        made.put_fact(FACT, layer.diff_id, good.get_fact(FACT, layer.diff_id))
    return made


def with_patch(plan: Plan, files: ImageFiles) -> Plan:
    """The plan, with a patch where it has none: the file that it made is one of the image's."""
    if any(layer.patches for layer in plan.layers):
        return plan
    path = f"usr/local/lib/python{plan.python}/dist-packages/vllm/__init__.py"
    one = patch(path, files.final[path].seen["sha256"])
    top = dataclasses.replace(plan.layers[-1], patches=(one,))
    return dataclasses.replace(plan, layers=(*plan.layers[:-1], top))


def examined(plan: Plan, image: Image, store: Store, limits: Limits = LIMITS) -> dict[str, Check]:
    """Every check of the static tier, by its id without ``static/``."""
    found = static.examine(plan, image, store, PROJECT, limits=limits)
    return {one.id.removeprefix("static/"): one for one in found}


def run(
    plan: Plan, image: Image, store: Store, work: Path, of: Sequence[Mutant] = MUTANTS
) -> Iterator[Result]:
    """Examine mutants of a good image. Raises ``AssertionError`` when it is not good."""
    files = image_files(store, image)
    plan = with_patch(plan, files)
    good = {limits: examined(plan, image, store, limits) for limits in (LIMITS, LOW)}
    wrong = [name for name, one in good[LIMITS].items() if one.result != "PASSED"]
    assert not wrong, f"the image is not good: {wrong}"
    shared = share(store, image, work)
    for mutant in of:
        # What the plan does not ask for has no check.
        if mutant.check in good[LIMITS]:
            made = Copy(shared, plan, image, files)
            mutant.make(made)
            found = examined(made.plan, made.image(), shared, mutant.limits)
            # Under low limits the good image's own layers may be named too: the fault must be.
            caught = [
                name
                for name, one in found.items()
                if one.result != "PASSED" and one.seen != good[mutant.limits][name].seen
            ]
            yield Result(mutant=mutant, caught_by=tuple(caught))


def report(title: str, results: list[Result], console: Console) -> None:
    """Print the table and the rate."""
    table = Table("fault", "check meant for it", "refused by", title=title)
    for one in results:
        mark = "" if one.killed else "MISSED "
        table.add_row(one.mutant.name, one.mutant.check, mark + ", ".join(one.caught_by))
    console.print(table)
    killed = sum(one.killed for one in results)
    checks = len({one.mutant.check for one in results})
    console.print(
        f"{killed} of {len(results)} mutants refused by the check meant for them "
        f"({100 * killed // len(results)}%), {checks} checks; the good image is refused by none"
    )


def main() -> int:
    """Mutants of an image of the store."""
    from sparkimage.core import paths
    from sparkimage.verify import plan_record

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", required=True, help="REPOSITORY:VARIANT, as `images` lists it")
    parser.add_argument("--store", type=Path, default=None)
    given = parser.parse_args()
    store = Store.open(given.store or paths.store())
    image = store.resolve(given.image)
    plan = plan_record.load(store, image.digest).plan
    console = Console(width=120)
    began = time.monotonic()
    with TemporaryDirectory(prefix="mutants-", dir=store.root.parent) as work:
        results = list(run(plan, image, store, Path(work)))
    report(given.image, results, console)
    console.print(f"{time.monotonic() - began:.0f} s")
    return 0 if all(one.killed for one in results) else 1


if __name__ == "__main__":
    sys.exit(main())
