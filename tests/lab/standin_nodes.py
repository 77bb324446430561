"""Nodes that answer in this process: what stands for `ssh`, and behind it for four Docker engines.

They say what real nodes were recorded to say (recorded/, made by `make record`), know the commands
that `launch` and its kin give, and no other ones: what was not recorded fails the test. Their
containers run the stand-in for vLLM itself, a thread each, with real sockets. Every test on them
runs on the lab's real nodes, too (`make test-all`): that is the proof that they are true.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import csv
import datetime as dt
import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from sparkimage.core.process import Completed
from sparkimage.nodes import ssh
from sparkimage.nodes.reading import parts_of
from sparkimage.serve import launch, secrets
from tests.lab.node import READY_S
from tests.lab.standin_vllm import nccl, server
from tests.lab.standin_vllm.api import Server

BENCH = Path(__file__).with_name("standin_vllm") / "bin"
"""With a program `vllm` that runs the stand-in on this machine."""
RECORDED = Path(__file__).with_name("recorded")
TRANSPORT = 255
KILLED, TERMINATED = 137, 0
NEVER = "0001-01-01T00:00:00Z"
PRELOAD_IGNORED = (
    "ERROR: ld.so: object '{}' from LD_PRELOAD cannot be preloaded (cannot open shared object "
    "file): ignored."
)
FLAGS = {"--detach", "--force", "--all"}
VALUES = {
    "--name", "--restart", "--gpus", "--ipc", "--network", "--shm-size", "--cap-add", "--ulimit",
    "--device", "--mount", "--env", "--label", "--entrypoint", "--time", "--format", "--signal",
}  # fmt: skip
Said = tuple[int, str, str]
"""A command's exit code, and what it said on both streams."""


class NotRecordedError(AssertionError):
    """A command came that real nodes were never recorded to answer."""


def now() -> str:
    """As Docker writes it."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")


@dataclass(frozen=True, kw_only=True, eq=False)
class Held:
    """An image that a node has."""

    digest: str
    config: str
    """The digest of its config."""
    diff_ids: tuple[str, ...]
    entrypoint: tuple[str, ...]
    env: Mapping[str, str]
    architecture: str
    libraries: Mapping[str, bytes]
    """The copies of NCCL in it."""


class Rank(server.Container):
    """A container, and the process in it."""

    def __init__(self, node: Node, id: str, name: str, image: Held, given: Options) -> None:
        self.node, self.id, self.name, self.image, self.given = node, id, name, image, given
        self.variables = {**image.env, **given.pairs("--env")}
        self.env = self.variables
        self.state, self.code, self.restarts = "created", 0, 0
        self.started = self.ended = NEVER
        self.lines: list[tuple[str, str]] = []
        self.changed = threading.Condition()
        self._process: threading.Thread | None = None
        self._over = threading.Event()
        """Its process is ended, or has come to its end."""
        self.goes_on = threading.Event()
        """Not set while its process is stopped."""
        self.goes_on.set()
        self._open: list[socket.socket | Server] = []
        self._ending = threading.Lock()
        """Held to change ``_over`` and ``_open``."""

    # As its process sees it

    def say(self, text: str) -> None:
        with self.changed:
            if self._over.is_set():
                # Who was killed says nothing of it.
                return
            self.lines += [(now(), line) for line in text.splitlines()]
            self.changed.notify_all()

    def path(self, path: str | Path) -> Path:
        at = Path(path)
        for mount in self.given.all("--mount"):
            words = dict(word.partition("=")[::2] for word in next(csv.reader([mount])))
            if at.is_relative_to(words["target"]):
                return self.node.path(words["source"]) / at.relative_to(words["target"])
        of_node = ("/sys", *self.given.all("--device"))
        shared = any(at.is_relative_to(one) for one in of_node)
        return self.node.path(at) if shared else self.node.path(f"/containers/{self.id}{at}")

    def hostname(self) -> str:
        return self.node.name

    def host(self, _host: str) -> str:
        return self.node.address

    def nccl(self, path: str) -> int:
        preload = self.env.get("LD_PRELOAD", "")
        if preload and not self.library(preload):
            self.say(PRELOAD_IGNORED.format(preload))
            preload = ""
        return nccl.number(self.library(path or preload or server.PIP))

    def library(self, path: str) -> bytes:
        """A libnccl as the container sees it; nothing where there is none."""
        at = self.path(path)
        if at.parent.is_dir():
            # In a mount.
            return at.read_bytes() if at.is_file() else b""
        return self.image.libraries.get(path, b"") + self.node.damaged.get(path, b"")

    def wait(self, seconds: float | None = None) -> None:
        if self._over.wait(seconds):
            raise SystemExit(KILLED)

    def gate(self) -> None:
        self.goes_on.wait()

    def opened(self, thing: socket.socket | Server) -> None:
        with self._ending:
            if not self._over.is_set():
                self._open.append(thing)
                return
        # It was ended while this was opened.
        (thing.server_close if isinstance(thing, Server) else thing.close)()
        raise SystemExit(KILLED)

    # As Docker sees it

    def start(self) -> None:
        """Start its process."""
        self._join()
        self._over.clear()
        self.goes_on.set()
        self.state, self.started = "running", now()
        self._process = threading.Thread(target=self._run, daemon=True)
        self._process.start()

    def _run(self) -> None:
        code = 0
        try:
            words = self._words()
            if words[0] != "vllm":
                raise NotRecordedError(f"a container that runs {words}")
            server.serve(words[1:], self)
        except SystemExit as error:
            code = int(error.code or 0)
        except OSError:
            # Its sockets were closed.
            code = 1
        again = self.given.one("--restart", "no") != "no"
        self._end(code, state="restarting" if again and code else "exited")

    def _words(self) -> list[str]:
        """What its entry point comes to, with what that does to the environment."""
        entrypoint, command = self.image.entrypoint, self.given.command
        if entrypoint == ("/bin/sh", "-c"):
            return shlex.split(command[0])
        if entrypoint == ("/loses.sh",):
            self.variables["LD_PRELOAD"] = "/usr/lib/nowhere/libnccl.so.2.30.4"
        return [*(word for word in entrypoint if not word.endswith(".sh")), *command]

    def pause(self, *, paused: bool) -> None:
        """Freeze what runs in it, or let it go on."""
        (self.goes_on.clear if paused else self.goes_on.set)()
        self.state = "paused" if paused else "running"

    def end(self, code: int) -> None:
        """End its process, if it runs: nothing is left of it then, as of a real one."""
        if self.state in ("running", "paused"):
            self._end(code)
        self._join()
        if self.state == "restarting":
            self.state = "exited"

    def _join(self) -> None:
        if self._process is not None:
            self._process.join(READY_S)
            assert not self._process.is_alive(), f"the process of {self.name} does not end"

    def _end(self, code: int, state: str = "exited") -> None:
        with self._ending:
            if self._over.is_set():
                # It was killed, or had come to its end before that.
                return
            self._over.set()
            left, self._open = self._open, []
        self.goes_on.set()
        for thing in left:
            if isinstance(thing, Server):
                thing.shutdown()
                thing.server_close()
            else:
                with contextlib.suppress(OSError):
                    thing.shutdown(socket.SHUT_RDWR)
                thing.close()
        with self.changed:
            self.state, self.code, self.ended = state, code, now()
            self.restarts += state == "restarting"
            self.changed.notify_all()

    def top(self) -> str:
        """As `docker top` says it with `-eo pid,stat,args`."""
        state = "Ssl" if self.goes_on.is_set() else "Tsl"
        return f"PID    STAT   COMMAND\n4711   {state}    {shlex.join(self._words())}\n"

    def inspected(self) -> dict[str, Any]:
        """As `docker container inspect` says it of a real one."""
        said = copy.deepcopy(self.node.container)
        said |= {"Id": self.id, "Name": f"/{self.name}", "Image": self.node.id(self.image)}
        said["RestartCount"] = self.restarts
        said["State"] |= {
            "Status": self.state, "ExitCode": self.code, "OOMKilled": False,
            "StartedAt": self.started, "FinishedAt": self.ended,
        }  # fmt: skip
        said["Config"] |= {
            "Labels": self.given.pairs("--label"), "Cmd": list(self.given.command),
            "Env": [f"{name}={value}" for name, value in self.variables.items()],
        }  # fmt: skip
        said["HostConfig"]["Devices"] = [
            {"PathOnHost": device} for device in self.given.all("--device")
        ]
        return said


class Options:
    """The words of a docker command."""

    def __init__(self, words: Sequence[str]) -> None:
        self.found: list[tuple[str, str]] = []
        left = list(words)
        while left and left[0].startswith("-"):
            word = left.pop(0)
            if word not in FLAGS | VALUES:
                raise NotRecordedError(f"docker … {word} …")
            self.found.append((word, left.pop(0) if word in VALUES else ""))
        self.words = left

    def all(self, option: str) -> list[str]:
        return [value for name, value in self.found if name == option]

    def one(self, option: str, default: str = "") -> str:
        return [default, *self.all(option)][-1]

    def pairs(self, option: str) -> dict[str, str]:
        """Of NAME=VALUE each."""
        return {name: value for name, _, value in (one.partition("=") for one in self.all(option))}

    @property
    def command(self) -> list[str]:
        """What stands behind the image."""
        return self.words[1:]


class Process:
    """A command that goes on, as ``start_bytes`` gives it."""

    def __init__(self, node: Node, work: Callable[[Process], Said]) -> None:
        self.node = node
        self.returncode: int | None = None
        self.over = threading.Event()
        self.follows = False
        """It has said what a log holds, and waits for more."""
        self.stdin: Process | None = self
        self._lock = threading.Lock()
        self._out, self._err = os.pipe(), os.pipe()
        self.stdout: BinaryIO = os.fdopen(self._out[0], "rb")
        self.stderr: BinaryIO = os.fdopen(self._err[0], "rb")
        node.processes.append(self)
        threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def _run(self, work: Callable[[Process], Said]) -> None:
        code, out, err = work(self)
        self.say(out)
        self._end(code, err)

    def say(self, text: str) -> None:
        """Something on its standard output."""
        with self._lock:
            if self.returncode is None and text:
                os.write(self._out[1], text.encode())

    def _end(self, code: int, err: str = "") -> None:
        with self._lock:
            if self.returncode is not None:
                return
            os.write(self._err[1], err.encode())
            self.returncode = code
            os.close(self._out[1])
            os.close(self._err[1])
        self.over.set()

    def cut(self) -> None:
        """Its connection ends."""
        self._end(TRANSPORT, f"Connection to {self.node.address} closed by remote host.\n")

    # As Popen

    def kill(self) -> None:
        self._end(-9)

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self.over.wait(timeout):
            raise subprocess.TimeoutExpired("ssh", timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def communicate(self) -> tuple[bytes, bytes]:
        self.wait()
        # As of a real process, they are closed then.
        with self.stdout, self.stderr:
            return self.stdout.read(), self.stderr.read()

    # As its standard input

    def write(self, _data: bytes) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        """Its input ends: so does whatever holds a connection."""
        self._end(0)


@dataclass(kw_only=True)
class Node:
    """A node: its recorded words, its files, its containers."""

    name: str
    address: str
    root: Path
    images: dict[str, Held]
    """What it has, by name."""
    containers: list[Rank] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    forwards: list[socket.socket] = field(default_factory=list)
    listening: set[int] = field(default_factory=set)
    """Ports that are in use for nothing of ours."""
    is_cut: bool = False
    is_behind: bool = False
    """Who follows a log of its containers gets nothing of it; who reads one gets it all."""
    gpu_free: int = 122_000
    """MiB of its GPU's memory."""
    damaged: dict[str, bytes] = field(default_factory=dict)
    """What is behind files of its images that is not theirs."""
    wrong: list[Exception] = field(default_factory=list)
    """What it was asked and does not know."""
    _made: int = 0

    def __post_init__(self) -> None:
        folder = RECORDED / self.name
        text = (folder / "snapshot.txt").read_text()
        gid = socket.inet_aton(self.address).hex(":", 2)
        for mark, value in (("ADDRESS", self.address), ("ARCH", "x86_64"), ("GID", gid)):
            text = text.replace(mark, value)
        self.said = parts_of(text)
        self.container: dict[str, Any] = json.loads(self.said["containers"][0])
        self.image: dict[str, Any] = json.loads(self.said["images"][0])
        self.errors: dict[str, Any] = json.loads((folder / "errors.json").read_text())
        self.is_containerd = "snapshotter" in "".join(self.said["docker"])

    def path(self, path: str | Path) -> Path:
        """Where its ``path`` is here."""
        return self.root / str(path).lstrip("/")

    def id(self, image: Held) -> str:
        return image.digest if self.is_containerd else image.config

    # ssh

    def answer(self, words: Sequence[str], process: Process | None = None) -> Said:
        """What it says to a command; ``process``: the one that waits for it."""
        try:
            return self._answer(words, process)
        except Exception as error:  # noqa: BLE001 the test is told of it, not the product
            self.wrong.append(error)
            return 99, "", f"{type(error).__name__}: {error}\n"

    def bench(self, words: Sequence[str], given: str) -> Said:
        """What `bench.sh` says in a container of it, whose `vllm bench serve` is the stand-in."""
        _, exec_, _, id, *shell = words
        text = (resources.files("sparkimage") / "data" / "bench.sh").read_text()
        if exec_ != "exec" or shell[:4] != ["sh", "-c", text, "bench.sh"] or self._find(id) is None:
            raise NotRecordedError(shlex.join(words)[-200:])
        address = self.address
        options = [word.replace("127.0.0.1", address) for word in shell[4:]]
        done = subprocess.run(
            ["sh", "-c", text, "bench.sh", *options], input=given, capture_output=True, text=True,
            check=False, env={**os.environ, "PATH": f"{BENCH}:{os.environ['PATH']}"},
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    def _answer(self, words: Sequence[str], process: Process | None) -> Said:
        if list(words[:2]) == ["sh", "-c"] and len(words) > 3:
            _, _, text, name, docker, *more = words
            act = {"snapshot": self._snapshot, "end": self._stop_and_remove,
                   "logs": self._logs, "reach": self._reach, "nccl": self._nccl,
                   }.get(name)  # fmt: skip
            if act is not None and text == ssh.text(name) and docker == "docker":
                return act(more, process)
        elif list(words[:3]) == ["mkdir", "-p", "--"]:
            for folder in words[3:]:
                self.path(folder).mkdir(parents=True, exist_ok=True)
            return 0, "", ""
        elif words[0] == "docker":
            return self.docker(*words[1:])
        raise NotRecordedError(shlex.join(words)[-200:])

    def _snapshot(self, more: Sequence[str], process: Process | None) -> Said:
        parts, _, _, _, model = more
        ours = [json.dumps(one.inspected()) for one in self.containers if one.given.all("--label")]
        taken = [f"00000000:{port:04X}" for port in sorted(self._ports())]
        wanted = {
            "images": {"images": [json.dumps(one) for one in self._inspected()]},
            "containers": {"cache": self.said["cache"], "containers": ours},
            "machine": {
                "names": self.said["names"],
                "gpus": [re.sub(r"122000$", str(self.gpu_free), one) for one in self.said["gpus"]],
                "hooks": self.said["hooks"],
                "rdma": self.said["rdma"] if self.path("/sys/class/infiniband").is_dir() else [],
                "infiniband": sorted(one.name for one in self.path("/dev/infiniband").glob("*")),
                "ports": [*self.said["ports"], *taken],
                "model": list(self._model(self.path(model))) if model else [],
            },
        }
        text = _text(
            {
                "machine": ["user=root"], "docker": self.said["docker"],
                "links": self.said["links"],
                **{key: lines for part in parts.split() for key, lines in wanted[part].items()},
                "clock": [f"now={time.time():.6f}"], "end": [],
            }
        )  # fmt: skip
        if process is None:
            return 0, text, ""
        process.say(text)
        process.over.wait()
        return 0, "", ""

    def _reach(self, more: Sequence[str], process: Process | None) -> Said:
        """All of these nodes reach each other."""
        if process is None:
            raise NotRecordedError("reach without an input")
        process.say("".join(f"port {port}\n" for port in more[2:]) + "ready\ntried\n")
        process.over.wait()
        return 0, "", ""

    def _nccl(self, more: Sequence[str], _process: Process | None) -> Said:
        id, *paths = more
        one = self._find(id)
        if one is None:
            return self._error("inspect", id)
        words = f"{one.env.get('LD_PRELOAD', '')}:{one.env.get('VLLM_NCCL_SO_PATH', '')}"
        named = [word for word in re.split("[ :]", words) if "/libnccl" in word]
        said, errors = "", ""
        for path in sorted(set(named)) or paths:
            data = one.library(path)
            if not data:
                errors += f"Error response from daemon: Could not find the file {path}\n"
            beginning = base64.b64encode(data[:65536]).decode()
            said += f"@@ {path}\n{hashlib.sha256(data).hexdigest()}  -\n{beginning}\n"
        return 0, said, errors

    def _inspected(self) -> Iterator[dict[str, Any]]:
        for image in dict.fromkeys(self.images.values()):
            said = copy.deepcopy(self.image)
            said |= {"Id": self.id(image), "Architecture": image.architecture}
            said["RepoTags"] = [name for name, one in self.images.items() if one is image]
            said["RootFS"]["Layers"] = list(image.diff_ids)
            yield said

    def _ports(self) -> Iterator[int]:
        yield from self.listening
        for one in self.containers:
            if one.state == "running":
                words = one.given.command
                for option in ("--port", "--master-port"):
                    if option in words and one.given.one("--label") and "--headless" not in words:
                        yield int(words[words.index(option) + 1])

    def _model(self, folder: Path) -> Iterator[str]:
        if not folder.exists():
            yield "@missing"
            return
        yield "@folder"
        for file in sorted(folder.iterdir()):
            yield f"{file.stat().st_size} ./{file.name}"

    def _stop_and_remove(self, more: Sequence[str], _process: Process | None) -> Said:
        for id in more[1:]:
            for one in [one for one in self.containers if one.id == id]:
                one.end(TERMINATED)
                self.containers.remove(one)
        return 0, "", ""

    def _logs(self, more: Sequence[str], process: Process | None) -> Said:
        id, *words = more
        one = self._find(id)
        if one is None:
            return self._error("inspect", id)
        follow, stamps = "--follow" in words, "--timestamps" in words
        if follow and process is not None and self.is_behind:
            process.follows = True
            process.over.wait()
            return 0, "", ""
        tail = words[words.index("--tail") + 1] if "--tail" in words else "all"
        since = words[words.index("--since") + 1] if "--since" in words else ""
        shown = 0 if tail == "all" else max(0, len(one.lines) - int(tail))
        while True:
            with one.changed:
                new, shown = one.lines[shown:], len(one.lines)
                running = one.state == "running"
            text = "".join(
                f"{stamp} {line}\n" if stamps else f"{line}\n"
                for stamp, line in new
                if stamp >= since
            )
            if process is None or not follow:
                return 0, text, ""
            process.say(text)
            process.follows = True
            if not running and shown == len(one.lines):
                return 0, "", ""
            with one.changed:
                one.changed.wait_for(
                    lambda: (
                        len(one.lines) > shown  # noqa: B023
                        or one.state != "running"
                        or process.over.is_set()
                    ),
                    0.2,
                )
            if process.over.is_set():
                return 0, "", ""

    # docker

    def docker(self, *words: str) -> Said:
        """What its docker says."""
        name = " ".join(words[:2]) if words[0] == "container" else words[0]
        given = Options(words[2 if words[0] == "container" else 1 :])
        if name in ("run", "create"):
            return self._run(given, start=name == "run")
        if name == "container inspect":
            return self._inspect(given)
        if name == "logs":
            return self._logs(given.words, None)
        if name == "top":
            id, *columns = given.words
            one = self._find(id)
            if columns != ["-eo", "pid,stat,args"]:
                raise NotRecordedError(f"docker top … {columns}")
            if one is None or one.state not in ("running", "paused"):
                return self._error("inspect", id)
            return 0, one.top(), ""
        if name in ("tag", "rmi"):
            image = self.images[given.words[0]]
            if name == "rmi":
                del self.images[given.words[0]]
            else:
                self.images[given.words[1]] = image
            return 0, "", ""
        if name not in ("stop", "kill", "start", "rm", "pause", "unpause"):
            raise NotRecordedError(f"docker {shlex.join(words)}")
        for word in given.words:
            one = self._find(word)
            if one is None:
                return self._error("inspect", word)
            if name == "start":
                one.start()
            elif name in ("pause", "unpause"):
                one.pause(paused=name == "pause")
            elif given.one("--signal"):
                {"STOP": one.goes_on.clear, "CONT": one.goes_on.set}[given.one("--signal")]()
            else:
                one.end(TERMINATED if name == "stop" else KILLED)
            if name == "rm":
                self.containers.remove(one)
        return 0, "".join(f"{word}\n" for word in given.words), ""

    def _find(self, word: str) -> Rank | None:
        return next((one for one in self.containers if word in (one.id, one.name)), None)

    def _error(self, what: str, word: str, id: str = "") -> Said:
        code, said = self.errors[what]
        return code, "", said.replace("NAME", word).replace("HEX", id)

    def _run(self, given: Options, *, start: bool) -> Said:
        name, image = given.one("--name"), given.words[0]
        there = self._find(name)
        if there is not None:
            return self._error("run", name, there.id)
        held = next(
            one for tag, one in self.images.items() if image in (tag, one.digest, one.config)
        )
        self._made += 1
        id = hashlib.sha256(f"{self.name} {self._made} {now()}".encode()).hexdigest()
        made = Rank(self, id, name, held, given)
        self.containers.append(made)
        if start:
            made.start()
        return 0, f"{id}\n", ""

    def _inspect(self, given: Options) -> Said:
        one = self._find(given.words[0])
        if one is None:
            return self._error("inspect", given.words[0])
        said = one.inspected()
        state = said["State"]
        forms = {
            "": json.dumps([said]),
            "{{.State.StartedAt}}": state["StartedAt"],
            "{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}} "
            "{{json .State.FinishedAt}}": (
                f'{state["Status"]} {state["ExitCode"]} false "{state["FinishedAt"]}"'
            ),
        }
        form = given.one("--format")
        if form not in forms:
            raise NotRecordedError(f"docker container inspect --format {form}")
        return 0, f"{forms[form]}\n", ""

    # Of the tests

    def followed(self) -> bool:
        """Somebody follows a log of its containers."""
        return any(one.follows and one.poll() is None for one in self.processes)

    def cut(self) -> None:
        """It cannot be reached any more, and what was connected is cut off."""
        self.is_cut = True
        for process in self.processes:
            process.cut()

    def reset(self) -> None:
        """As it began, but for its images."""
        for one in self.containers:
            one.end(KILLED)
        self.containers.clear()
        self.processes.clear()
        for listener in self.forwards:
            listener.shutdown(socket.SHUT_RDWR)
        self.forwards.clear()
        self.listening.clear()
        self.is_cut = self.is_behind = False
        self.gpu_free = 122_000
        self.wrong.clear()
        self.damaged.clear()
        shutil.rmtree(self.root, ignore_errors=True)
        for path in ("/dev/infiniband/uverbs0", "/sys/class/net/eth0"):
            self.path(path).parent.mkdir(parents=True)
            self.path(path).touch()
        self.path("/sys/class/infiniband").mkdir()


def _text(parts: Mapping[str, Sequence[str]]) -> str:
    return "".join(f"\n@@ {name}\n" + "".join(f"{line}\n" for line in lines)
                   for name, lines in parts.items())  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """What stands for `ssh`: the nodes by the name that is called."""

    nodes: Mapping[str, Node]
    commands: list[str] = field(default_factory=list)
    """All that were called."""

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        timeout_s: float | None = None,
        check: bool = True,
    ) -> Completed:
        """As ``Local.run``."""
        del timeout_s
        assert argv[0] == "ssh"
        self.commands.append(" ".join(argv))
        place = argv.index("--")
        node, words = self.nodes[argv[place + 1]], argv[place + 2 :]
        if "-G" in argv:
            said = 0, f"hostname {node.name}\nport 22\nciphers chacha20-poly1305@openssh.com\n", ""
        elif node.is_cut:
            said = TRANSPORT, "", f"ssh: connect to host {node.name} port 22: Connection refused\n"
        elif "forward" in argv:
            here, _, there = argv[argv.index("-L") + 1].partition(":")
            _lead(node, Path(here), int(there.rpartition(":")[2]))
            said = 0, "", ""
        elif stdin is not None and launch.WRITE in words[0]:
            node.path(shlex.split(words[0])[-1]).write_text(stdin)
            said = 0, "", ""
        elif stdin is not None and secrets.PIPED in words[0]:
            given = [word for line in stdin.splitlines() for word in ("--env", line)]
            _, _, _, _, *create = shlex.split(words[0])
            place = create.index("--env-file")
            assert create[place + 1] == "/dev/stdin"
            said = node.answer([*create[:place], *given, *create[place + 2 :]])
        elif stdin is not None:
            said = node.bench(shlex.split(words[0]), stdin)
        else:
            said = node.answer(shlex.split(words[0]))
        done = Completed(argv=tuple(argv), returncode=said[0], stdout=said[1], stderr=said[2])
        assert not check or done.returncode == 0, done
        return done

    def start(self, argv: Sequence[str], **_: None) -> Process:
        """As ``start_bytes``."""
        self.commands.append(" ".join(argv))
        place = argv.index("--")
        node, words = self.nodes[argv[place + 1]], shlex.split(argv[place + 2])
        if node.is_cut:
            refused = f"ssh: connect to host {node.name} port 22: Connection refused\n"
            return Process(node, lambda _: (TRANSPORT, "", refused))
        return Process(node, lambda process: node.answer(words, process))

    @contextlib.contextmanager
    def called(self) -> Iterator[None]:
        """The product reaches these nodes, and no other ones."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ssh, "Local", lambda: self)
            patch.setattr(ssh, "start_bytes", self.start)
            yield


def _lead(node: Node, here: Path, port: int) -> None:
    """A socket here that leads to a port of the node."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(here))
    listener.listen()
    node.forwards.append(listener)

    def pump(a: socket.socket, b: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := a.recv(1 << 16):
                b.sendall(data)
        for one in (a, b):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def lead(one: socket.socket) -> None:
        with one, socket.socket() as other:
            if other.connect_ex((node.address, port)) == 0:
                thread = threading.Thread(target=pump, args=(other, one), daemon=True)
                thread.start()
                pump(one, other)
                thread.join()

    def serve() -> None:
        with listener, contextlib.suppress(OSError):
            # Until the listener is shut down.
            while True:
                one, _ = listener.accept()
                threading.Thread(target=lead, args=(one,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
