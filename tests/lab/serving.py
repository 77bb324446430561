"""A project whose images start the stand-in for vLLM (standin_vllm/), and four nodes for it: the
lab's own, with real engines and a small Debian in the images, or those of standin_nodes.py."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sparkimage.build.engine.engine import Engine
from sparkimage.cli import app, base
from sparkimage.core.arch import ARCHES
from sparkimage.core.errors import ProbeError
from sparkimage.image.store import Image
from sparkimage.serve import liveness, waiting
from sparkimage.serve.openai_api import Server as Client
from tests.lab import fleet as fleets
from tests.lab import node_image
from tests.lab.fleet import Fleet
from tests.lab.node import Node, put, wait
from tests.lab.node_image import Release
from tests.lab.project import Project
from tests.lab.spark_standin import SMI, WITH_RDMA
from tests.lab.standin_nodes import Held, Nodes
from tests.lab.standin_nodes import Node as StandinNode
from tests.lab.standin_vllm import nccl, server
from tests.unit import good_maker
from tests.unit import project_maker as maker

PIN, OLD = "2.30.4", "2.28.9"
RDMA = "rocep1s0f0"
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
ASKING = """
import json, urllib.request
body = {{"model": "{model}", "prompt": "one", "max_tokens": {tokens}, "ignore_eos": True}}
urllib.request.urlopen("http://{address}:8000/v1/completions", json.dumps(body).encode()).read()
"""
"""Asks the head for tokens, in Python."""
METRICS = """
import urllib.request
print(urllib.request.urlopen("http://{address}:8000/metrics").read().decode())
"""
ENTRY = b'#!/bin/sh\nexec "$@"\n'
WATCHED = b'#!/bin/sh\nps -eo args >>/run/seen\nexec /usr/bin/docker "$@"\n'
"""A docker that writes down all that runs on the node when it is called."""
LOSES = b'#!/bin/sh\nexport LD_PRELOAD=/usr/lib/nowhere/libnccl.so.2.30.4\nexec "$@"\n'
FOUR = {name: replace(spec, spark=True, older_cli=False) for name, spec in fleets.FOUR.items()}
"""With the client of each engine: `docker run` words its errors in another way from 28 on."""
ENTRYPOINTS: Mapping[str, Sequence[str]] = {
    "good": ["vllm", "serve"],
    "entry": ["/entry.sh"],
    "none": [],
    "shell": ["/bin/sh", "-c"],
    "loses": ["/loses.sh"],
    "conf": ["vllm", "serve"],
    "away": ["vllm", "serve"],
}
"""Variants by name; ``away`` is never distributed, ``conf`` has NCCL's settings in a file."""
CONF = "# of the author's machine\nNCCL_IB_GID_INDEX=9\n"
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
    """The files of a small Debian with Python, dash, tar and a busybox."""
    words = [
        "--variant=extract", "--include=python3-minimal,libpython3-stdlib,busybox-static,dash,tar",
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
    applets = ("cat", "find", "grep", "head", "kill", "ls", "mkdir", "mktemp", "mv", "rm",
               "sha256sum", "sleep")  # fmt: skip
    for applet in applets:
        found[f"usr/bin/{applet}"] = "busybox"
    found |= {"bin": "usr/bin", "sbin": "usr/sbin", "tmp": None, "root": None}
    found["usr/bin/sh"] = "dash"
    found["usr/bin/env"] = "busybox"
    return found


def _standin() -> dict[str, good_maker.Content]:
    """The files of the stand-in for vLLM."""
    return {
        **{
            f"opt/standin_vllm/{name}.py": (STANDIN / f"{name}.py").read_bytes()
            for name in ("__init__", "api", "bench", "server")
        },
        "usr/local/bin/vllm": (0o755, PROGRAM),
    }


def measuring_image(arch: str) -> bytes:
    """A root with the stand-in for vLLM, as `docker import` takes it."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        files = {**_python(arch), **_standin()}
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            if content is None:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            elif isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
            data = b""
            if isinstance(content, tuple):
                entry.mode, data = content
            elif isinstance(content, bytes):
                data = content
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return made.getvalue()


NODES = ("node1", "node2", "node3", "node4")


@dataclass(frozen=True, kw_only=True)
class Serving(Project):
    """The project in ``folder``, and four nodes that have its images."""

    arch: str
    limits_s: ClassVar[Sequence[int]]
    """Seconds in which the stand-in for vLLM is ready, or never; on a busy machine the next."""

    def matrix(self, profiles: Mapping[str, Any]) -> None:
        """Write the matrix with these profiles, and its lock."""
        platform = f"linux/{self.arch}"
        data = maker.document(
            {"os": {"trixie": maker.OS}, "nccl": {PIN: maker.NCCL}},
            {"os": {"base": "os"}, "nccl": {"debs": "nccl", "expect": {"nccl": "nccl"}}},
            [
                maker.include(name, "os", "nccl", platform=platform, os="trixie", nccl=PIN)
                for name in ENTRYPOINTS
            ],
        )
        data["profiles"] = profiles
        self.write_matrix(data)

    def nodes(self, *names: str, **more: Mapping[str, Any]) -> None:
        """Write fleet.yaml, of these nodes or of all; ``more``: of a node what is otherwise."""
        found = {"interface": "eth0", "hca": [RDMA], "gpus": 1}
        nodes = {
            name: {**self.reached(name), **found, **more.get(name, {})} for name in names or NODES
        }
        next(iter(nodes.values()))["role"] = "head"
        (self.folder / "fleet.yaml").write_text(json.dumps({"version": 1, "nodes": nodes}))

    @property
    def preload(self) -> str:
        """The pinned NCCL in the images."""
        return f"/usr/lib/{ARCHES[self.arch].triplet}/libnccl.so.{PIN}"

    def image(self, variant: str, *below: good_maker.Files) -> Image:
        """The variant's image with these layers below, and a seal that the gate takes."""
        store = self.store
        pinned = self.preload.removeprefix("/")
        files: list[good_maker.Files] = [
            *below,
            {
                pinned: nccl.library(self.arch, PIN),
                pinned.replace(PIN, "2"): f"libnccl.so.{PIN}",
                server.PIP.removeprefix("/"): nccl.library(self.arch, OLD),
            },
            {
                **_standin(),
                "entry.sh": (0o755, ENTRY),
                "loses.sh": (0o755, LOSES),
                **({"etc/nccl.conf": CONF.encode()} if variant == "conf" else {}),
            },
        ]
        layers = [good_maker.put_layer(store, one) for one in files]
        config = {
            "os": "linux",
            "architecture": self.arch,
            "created": "2000-01-01T00:00:00Z",
            "config": {
                "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", f"LD_PRELOAD={self.preload}"],
                **({"Entrypoint": list(ENTRYPOINTS[variant])} if ENTRYPOINTS[variant] else {}),
                "Labels": {"dev.sparkimage.variant": variant},
            },
            "rootfs": {"type": "layers", "diff_ids": [id for _, id in layers]},
        }  # fmt: skip
        made = good_maker.put_image(store, config, [one for one, _ in layers])
        return self.seal_image(made, variant)

    def launch(
        self, *words: str, variant: str = "good", **more: str
    ) -> subprocess.CompletedProcess[str]:
        """``launch`` of a variant, to its end; ``more``: variables of its environment."""
        return self.run(*self.launching(*words, variant=variant), **more)

    def launching(self, *words: str, variant: str = "good") -> list[str]:
        """The words of ``launch``, for an image that is there; without a warm-up, which takes its
        time, unless they say so."""
        self.bring(variant)
        # There is more than one profile for it on four nodes.
        which = [] if variant != "good" or "--profile" in words else ["--profile", "four"]
        quick = [] if "--warm-up" in words else ["--no-warm-up"]
        return ["launch", variant, "--model", MODEL, *which, *quick, *words]

    @abstractmethod
    def bring(self, variant: str) -> None:
        """Make a variant's image, and distribute it, where that was not done yet."""

    @abstractmethod
    def reached(self, node: str) -> dict[str, Any]:
        """How a fleet.yaml says that a node is reached."""

    @abstractmethod
    def during(
        self, words: Sequence[str], ready: Callable[[], bool], act: Callable[[], None]
    ) -> subprocess.CompletedProcess[str]:
        """The command line, to its end, with what happens to the nodes as soon as they are
        ``ready``."""

    @abstractmethod
    def interrupted(
        self, words: Sequence[str], ready: Callable[[], bool]
    ) -> subprocess.CompletedProcess[str]:
        """The command line, interrupted as soon as the nodes are ``ready``."""

    @abstractmethod
    def model(self, node: str, **faults: Any) -> None:
        """A node's model folder, with what is to go wrong there."""

    @abstractmethod
    def remove(self, node: str, path: str) -> None:
        """Remove a file or folder of a node."""

    @abstractmethod
    def rename(self, node: str, path: str, to: str) -> None:
        """Give a file or folder of a node another name."""

    @abstractmethod
    def listed(self, node: str, folder: str) -> list[str]:
        """What is in a node's folder."""

    @abstractmethod
    def write(self, node: str, path: str, content: bytes) -> None:
        """Write a file of a node."""

    @abstractmethod
    def damaged(self, node: str, path: str) -> AbstractContextManager[None]:
        """A node's images have another file at ``path`` meanwhile."""

    @abstractmethod
    def docker(self, node: str, *words: str) -> str:
        """What a node's docker says."""

    @abstractmethod
    def occupy(self, node: str, port: int) -> None:
        """Something else listens on a node's port."""

    @abstractmethod
    def gpu_free(self, node: str, size: int) -> None:
        """So many MiB of a node's GPU are free."""

    @abstractmethod
    def cut(self, node: str) -> None:
        """Nobody reaches a node, and who was connected is cut off."""

    @abstractmethod
    def join(self, node: str) -> None:
        """Undo ``cut``."""

    @abstractmethod
    def watched(self) -> AbstractContextManager[list[str]]:
        """The command lines on the nodes meanwhile."""

    @abstractmethod
    def readers(self) -> int:
        """How many nodes have somebody who follows a container's log."""

    def waits(self) -> bool:
        """A launch has started all containers, and follows what they say."""
        return self.readers() == len(NODES) and all(
            self.docker(node, "logs", "vllm") for node in NODES
        )

    @abstractmethod
    def request(self, tokens: int) -> None:
        """Somebody asks the head for so many tokens, and is waiting."""

    @abstractmethod
    def metrics(self) -> str:
        """The head's metrics."""

    @abstractmethod
    def address(self, node: str) -> str:
        """A node's address among the nodes."""

    @abstractmethod
    def containers(self) -> dict[str, list[str]]:
        """Names and states of the containers on each node."""

    @abstractmethod
    def restore(self) -> None:
        """Every image is on all nodes again, under its own name."""

    def inspect(self, node: str, name: str = "vllm") -> dict[str, Any]:
        """A container of a node."""
        (found,) = json.loads(self.docker(node, "container", "inspect", name))
        assert isinstance(found, dict)
        return found

    def clean(self) -> None:
        """No container, no cache, no fault, wires whole, all nodes in the fleet file."""
        self.matrix(PROFILES)
        self.nodes()


@dataclass(frozen=True, kw_only=True)
class OnNodes(Serving):
    """With real nodes."""

    fleet: Fleet
    brought: set[str] = field(default_factory=set)
    """The variants whose images are made, and on the nodes."""
    limits_s = (6, 30, 120)

    def bring(self, variant: str) -> None:
        if variant in self.brought:
            return
        self.image(variant, _python(self.arch))
        if variant != "away":
            done = self.run("distribute", variant)
            assert done.returncode == 0, done.stderr
        self.brought.add(variant)

    def environment(self, **more: str) -> dict[str, str]:
        return super().environment(**{**self.fleet.environment, **more})

    def reached(self, node: str) -> dict[str, Any]:
        found: dict[str, Any] = self.fleet.data("root", node)["nodes"][node]
        return found

    @contextmanager
    def begun(self, words: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
        """The command line, which goes on."""
        with subprocess.Popen(
            self.argv(*words), env=self.environment(), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.kill()

    def _until(
        self,
        words: Sequence[str],
        ready: Callable[[], bool],
        act: Callable[[subprocess.Popen[str]], None],
    ) -> subprocess.CompletedProcess[str]:
        with self.begun(words) as process:
            # One that ends too early says why.
            wait(lambda: ready() or process.poll() is not None, "the nodes are not ready for it")
            act(process)
            out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def during(
        self, words: Sequence[str], ready: Callable[[], bool], act: Callable[[], None]
    ) -> subprocess.CompletedProcess[str]:
        return self._until(words, ready, lambda _: act())

    def interrupted(
        self, words: Sequence[str], ready: Callable[[], bool]
    ) -> subprocess.CompletedProcess[str]:
        return self._until(words, ready, lambda process: process.send_signal(signal.SIGINT))

    def model(self, node: str, **faults: Any) -> None:
        put(self.fleet[node], {
            f"{MODEL}/config.json": (0o644, b"{}"),
            f"{MODEL}/standin.json": (0o644, json.dumps(faults).encode()),
        })  # fmt: skip

    def remove(self, node: str, path: str) -> None:
        self.fleet[node].exec("rm", "-r", path)

    def rename(self, node: str, path: str, to: str) -> None:
        self.fleet[node].exec("mv", path, to)

    def listed(self, node: str, folder: str) -> list[str]:
        return sorted(self.fleet[node].exec("ls", folder).split())

    def write(self, node: str, path: str, content: bytes) -> None:
        put(self.fleet[node], {path: (0o644, content)})

    @contextmanager
    def damaged(self, node: str, path: str) -> Iterator[None]:
        folders = "/var/lib/docker", "/var/lib/containerd"
        files = self.fleet[node].exec("find", *folders, "-type", "f", "-path", f"*{path}").split()
        assert files
        self.fleet[node].exec("truncate", "--size=+1", *files)
        yield
        self.fleet[node].exec("truncate", "--size=-1", *files)

    def docker(self, node: str, *words: str) -> str:
        return self.fleet[node].docker(*words)

    def occupy(self, node: str, port: int) -> None:
        listening = f"import socket; s=socket.socket(); s.bind(('',{port})); s.listen(); s.accept()"
        self.docker(
            node, "run", "--detach", "--name", "other", "--network", "host", "--entrypoint",
            "python3", "r:good", "-c", listening,
        )  # fmt: skip
        # 0A: it listens; connections that have ended are listed, too.
        row = f":{port:04X} 00000000:0000 0A"
        wait(lambda: row in self.fleet[node].exec("cat", "/proc/net/tcp"), "nobody listens")

    def gpu_free(self, node: str, size: int) -> None:
        put(self.fleet[node], {"/run/gpu-free": (0o644, str(size).encode())})

    def cut(self, node: str) -> None:
        for wire in self.fleet[node].wires:
            wire.cut()

    def join(self, node: str) -> None:
        for wire in self.fleet[node].wires:
            wire.restore()

    @contextmanager
    def watched(self) -> Iterator[list[str]]:
        found: list[str] = []
        files = {"/usr/local/bin/docker": (0o755, WATCHED), "/run/seen": (0o666, b"")}
        self.fleet.each(lambda node: put(node, files))
        yield found
        found += self.fleet.each(lambda node: node.exec("cat", "/run/seen")).values()
        self.fleet.each(lambda node: node.exec("rm", *files))

    def readers(self) -> int:
        said = self.fleet.each(lambda node: node.exec("ps", "-eo", "args"))
        return sum("logs --follow" in one for one in said.values())

    def request(self, tokens: int) -> None:
        code = ASKING.format(address="127.0.0.1", model=MODEL, tokens=tokens)
        self.docker("node1", "exec", "--detach", "vllm", "python3", "-c", code)

    def metrics(self) -> str:
        code = METRICS.format(address="127.0.0.1")
        return self.docker("node1", "exec", "vllm", "python3", "-c", code)

    def address(self, node: str) -> str:
        return self.fleet[node].inside

    def containers(self) -> dict[str, list[str]]:
        return self.fleet.each(
            lambda node: node.docker(
                "ps", "--all", "--format", "{{.Names}} {{.State}}"
            ).splitlines()
        )  # fmt: skip

    def restore(self) -> None:
        done = self.run("distribute", "good")
        assert done.returncode == 0, done.stderr

    def clean(self) -> None:
        super().clean()
        self.bring("good")
        model = shlex.quote(MODEL)
        script = (
            "ids=$(docker ps --all --quiet); "
            '[ -z "$ids" ] || docker rm --force $ids >/dev/null; '
            f"rm -rf /root/.cache/sparkimage /run/gpu-free {model}; mkdir -p {model}; cd {model}; "
            "echo '{}' | tee config.json >standin.json"
        )

        def one(node: Node) -> None:
            for wire in node.wires:
                wire.restore()
            node.exec("sh", "-euc", script)

        self.fleet.each(one)


@dataclass(frozen=True, kw_only=True)
class OnStandins(Serving):
    """With nodes that answer in this process, as the command line does here."""

    there: Nodes
    limits_s = (2, 10, 60)

    def bring(self, variant: str) -> None:
        assert variant in ENTRYPOINTS

    def reached(self, node: str) -> dict[str, Any]:
        return {"control": node, "user": "root"}

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return self._run(words, more)

    def _run(
        self, words: Sequence[str], more: Mapping[str, str], last: Callable[[], None] = lambda: None
    ) -> subprocess.CompletedProcess[str]:
        """``last`` is called where an interrupt is the command's for the last time."""
        out, err = io.StringIO(), io.StringIO()
        code = 0
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with pytest.MonkeyPatch.context() as patch, self.there.called():
            patch.setenv("SPARKIMAGE_HOME", str(self.folder / "home"))
            # What ends an interrupted command at once would end the tests.
            patch.setattr(os, "_exit", sys.exit)
            # It lasts as long as the process.
            patch.setattr(base.Settings, "debug", False)
            # No word is on its way for long.
            patch.setattr(waiting, "SETTLE_S", 0.2)
            if self._is_deaf():
                # Else one that answers has its time, however busy this machine is.
                patch.setattr(liveness, "LIMIT_S", 1.0)
            patch.setattr(waiting, "LOOK_S", 0.3)
            for name, value in more.items():
                patch.setenv(name, value)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    app.main(self.words(*words))
                except SystemExit as ended:
                    code = int(ended.code or 0)
                finally:
                    last()
                    for number, handler in handlers.items():
                        signal.signal(number, handler)
        wrong = [error for node in self.there.nodes.values() for error in node.wrong]
        if wrong:
            raise ExceptionGroup("the stand-in does not know this", wrong)
        return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())

    def during(
        self, words: Sequence[str], ready: Callable[[], bool], act: Callable[[], None]
    ) -> subprocess.CompletedProcess[str]:
        acting, over = threading.Lock(), threading.Event()

        def watch() -> None:
            # One that ends too early says why.
            wait(lambda: over.is_set() or ready(), "the nodes are not ready for it")
            with acting:
                if not over.is_set():
                    act()

        def ended() -> None:
            with acting:
                over.set()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            return self._run(words, {}, ended)
        finally:
            over.set()
            thread.join()

    def interrupted(
        self, words: Sequence[str], ready: Callable[[], bool]
    ) -> subprocess.CompletedProcess[str]:
        return self.during(words, ready, lambda: os.kill(os.getpid(), signal.SIGINT))

    def _path(self, node: str, path: str) -> Path:
        return self.there.nodes[node].path(path)

    def _is_deaf(self) -> bool:
        """A rank takes no step any more."""
        files = (self._path(node, f"{MODEL}/standin.json") for node in NODES)
        return any(file.is_file() and "deaf" in file.read_text() for file in files)

    def model(self, node: str, **faults: Any) -> None:
        folder = self._path(node, MODEL)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")
        (folder / "standin.json").write_text(json.dumps(faults))

    def remove(self, node: str, path: str) -> None:
        at = self._path(node, path)
        if at.is_dir():
            for one in at.iterdir():
                one.unlink()
            at.rmdir()
        else:
            at.unlink()

    def rename(self, node: str, path: str, to: str) -> None:
        self._path(node, path).rename(self._path(node, to))

    def listed(self, node: str, folder: str) -> list[str]:
        return sorted(one.name for one in self._path(node, folder).iterdir())

    def write(self, node: str, path: str, content: bytes) -> None:
        file = self._path(node, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    @contextmanager
    def damaged(self, node: str, path: str) -> Iterator[None]:
        self.there.nodes[node].damaged[path] = b"\0"
        yield
        self.there.nodes[node].damaged.clear()

    def docker(self, node: str, *words: str) -> str:
        code, out, err = self.there.nodes[node].docker(*words)
        assert code == 0, err
        return out

    def occupy(self, node: str, port: int) -> None:
        self.there.nodes[node].listening.add(port)

    def gpu_free(self, node: str, size: int) -> None:
        self.there.nodes[node].gpu_free = size

    def cut(self, node: str) -> None:
        self.there.nodes[node].cut()

    def join(self, node: str) -> None:
        self.there.nodes[node].is_cut = False

    @contextmanager
    def watched(self) -> Iterator[list[str]]:
        found: list[str] = []
        before = len(self.there.commands)
        yield found
        found += self.there.commands[before:]

    def readers(self) -> int:
        return sum(node.followed() for node in self.there.nodes.values())

    def request(self, tokens: int) -> None:
        head = Client(url=f"http://{self.address('node1')}:8000", model=MODEL)

        def ask() -> None:
            # The nodes are reset while it waits.
            with contextlib.suppress(ProbeError):
                head.complete("one", tokens, ignore_eos=True)

        threading.Thread(target=ask, daemon=True).start()

    def metrics(self) -> str:
        argv = [sys.executable, "-c", METRICS.format(address=self.address("node1"))]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    def address(self, node: str) -> str:
        return self.there.nodes[node].address

    def containers(self) -> dict[str, list[str]]:
        return {
            name: [f"{one.name} {one.state}" for one in node.containers]
            for name, node in self.there.nodes.items()
        }

    def restore(self) -> None:
        for node in self.there.nodes.values():
            node.images.clear()
            node.images.update(self._held())

    def _held(self) -> dict[str, Held]:
        found = {}
        for variant in ENTRYPOINTS:
            image = self.store.resolve(f"r:{variant}")
            if variant != "away":
                found[f"r:{variant}"] = Held(
                    digest=image.digest,
                    config=image.manifest["config"]["digest"],
                    diff_ids=tuple(layer.diff_id for layer in image.layers),
                    entrypoint=tuple(ENTRYPOINTS[variant]),
                    env=image.settings.env,
                    architecture=self.arch,
                    libraries={
                        self.preload: nccl.library(self.arch, PIN),
                        server.PIP: nccl.library(self.arch, OLD),
                    },
                )
        return found

    def clean(self) -> None:
        super().clean()
        for node in self.there.nodes.values():
            node.reset()
            self.model(node.name)


def equip(node: Node) -> None:
    """Give a node a GPU, and an RDMA device, to whoever looks at it."""
    put(node, {"/usr/local/bin/nvidia-smi": (0o755, SMI.encode())})
    words = "sh", "-eus", "--", RDMA, "eth0", node.inside
    node.exec(*words, given=WITH_RDMA.encode())


@contextmanager
def serving(engine: Engine, folder: Path) -> Iterator[OnNodes]:
    """Four real nodes, and a project for them."""
    (folder / "nodes").mkdir(parents=True)
    (folder / "project").mkdir()
    with fleets.fleet(engine, folder / "nodes", FOUR) as fleet:
        fleet.each(equip)
        made = OnNodes(folder=folder / "project", fleet=fleet, arch=engine.arch)
        made.matrix(PROFILES)
        made.nodes()
        yield made


def standing_in(folder: Path) -> OnStandins:
    """The same on nodes that answer in this process."""
    (folder / "project").mkdir()
    # No other process of the tests has these addresses.
    network = f"127.{100 + os.getpid() // 250 % 100}.{os.getpid() % 250}"
    there = Nodes(
        nodes={
            name: StandinNode(
                name=name, address=f"{network}.{place}", root=folder / name, images={}
            )
            for place, name in enumerate(NODES, 1)
        }
    )
    made = OnStandins(folder=folder / "project", there=there, arch="amd64")
    made.matrix(PROFILES)
    made.nodes()
    for variant in ENTRYPOINTS:
        made.image(variant)
    made.restore()
    return made
