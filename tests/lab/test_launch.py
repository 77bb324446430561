"""`launch` and what goes with it, on four nodes with a stand-in for vLLM.

Each test runs on nodes that answer in this process (standin_nodes.py) and on real ones: the core's
in `make test`, the others' in `make test-all`.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from sparkimage.build.engine.engine import Engine
from sparkimage.core import paths
from sparkimage.nodes import model_store
from sparkimage.nodes.model_manifest import Entry, Manifest
from sparkimage.serve.command import CHAT_TEMPLATE
from tests.lab.node import wait
from tests.lab.recording import record
from tests.lab.serving import (
    MODEL,
    NODES,
    OLD,
    PIN,
    PROFILES,
    RDMA,
    SERVE,
    OnNodes,
    OnStandins,
    Serving,
    serving,
    standing_in,
)  # fmt: skip
from tests.lab.standin_nodes import NotRecordedError
from tests.lab.standin_vllm import nccl, server

USAGE, LACKING, NOT_GIVEN, NODE_FAILED, MIXED, LAUNCH_FAILED = 2, 5, 9, 13, 15, 18
PROBE_FAILED, INTERRUPTED = 20, 130
WHOLE = {node: ["vllm running"] for node in NODES}
NOTHING: dict[str, list[str]] = {node: [] for node in NODES}
STOPPED = "what was started has been stopped"
STANDINS = "standins"
on_both = pytest.mark.parametrize("ready", [STANDINS, "nodes"], indirect=True)
"""The core, which real nodes prove in `make test`, too."""


@pytest.fixture(scope="module")
def real(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnNodes]:
    with serving(engine, tmp_path_factory.mktemp("serving")) as made:
        yield made


@pytest.fixture(scope="module")
def standins(tmp_path_factory: pytest.TempPathFactory) -> OnStandins:
    return standing_in(tmp_path_factory.mktemp("standing-in"))


@pytest.fixture(params=[STANDINS, pytest.param("nodes", marks=pytest.mark.thorough)])
def ready(request: pytest.FixtureRequest) -> Serving:
    """The nodes with a model, and nothing that runs."""
    made: Serving = request.getfixturevalue("real" if request.param == "nodes" else "standins")
    made.clean()
    return made


@pytest.fixture
def nodes(real: OnNodes) -> OnNodes:
    """The same, real ones alone."""
    real.clean()
    return real


def ok(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> str:
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    return done.stderr


def essence(found: dict[str, Any]) -> dict[str, Any]:
    """What a container is, without what each one has for itself."""
    config = {key: found["Config"][key] for key in ("Image", "Cmd", "Entrypoint", "Labels")}
    host = {key: value for key, value in found["HostConfig"].items() if key != "ContainerIDFile"}
    return {"config": config, "env": sorted(found["Config"]["Env"]), "host": host}


def ids(ready: Serving) -> dict[str, str]:
    return {node: ready.inspect(node)["Id"] for node in NODES}


def test_a_command_that_was_not_recorded_fails_the_test(standins: OnStandins) -> None:
    standins.clean()
    standins.there.nodes["node3"].answer(["docker", "system", "prune"])
    with pytest.raises(ExceptionGroup) as caught:
        standins.run("status")
    assert caught.group_contains(NotRecordedError, match="docker system prune")


# Start


@on_both
def test_four_nodes_serve_and_are_proven(ready: Serving) -> None:
    planned = json.loads(ok(ready.launch("--dry-run", "--json")))
    pasteable = ok(ready.launch("--dry-run"))
    assert ready.containers() == NOTHING

    done = ready.launch()
    said = ok(done)
    assert ready.containers() == WHOLE
    rows = [line.split() for line in said.splitlines() if line.startswith("✓")]
    for rank, node in enumerate(NODES):
        assert ["✓", str(rank), node, "NCCL", PIN, f"{PIN}+cuda13.2"] in rows
        # One of its two lines is enough to be ready: how many were seen by then is the race's.
        (rdma,) = [row for row in rows if row[:5] == ["✓", str(rank), node, "via", "NET/IB"]]
        assert rdma[5] in ("1", "2")
        assert ["✓", str(rank), node, "no", "NET/Socket", "none"] in rows
    for phase in ("ranks joined", "weights", "compile", "graph capture", "ready"):
        assert done.stderr.count(f": {phase}\n") == 4, phase

    # Nobody is left there to read the logs.
    wait(lambda: ready.readers() == 0, "somebody reads on")

    # What was shown is what runs, on either image store.
    for rank, (name, one) in enumerate(zip(NODES, planned, strict=True)):
        found = ready.inspect(name)
        assert one["node"] == name
        assert found["Config"]["Cmd"] == one["command"]
        assert one["argv"][-len(one["command"]) - 1] == found["Image"]
        assert one["labels"].items() <= found["Config"]["Labels"].items()
        assert one["command"][0] == MODEL
        assert one["command"].count("serve") == 0
        assert ("--headless" in one["command"]) == (rank > 0)
        assert one["env"]["VLLM_HOST_IP"] == ready.address(name)
        assert one["env"]["NCCL_SOCKET_IFNAME"] == one["env"]["GLOO_SOCKET_IFNAME"] == "eth0"
    (there,) = json.loads(ok(ready.run("status", "--json")))["sets"]
    assert [one["rank"] for one in there["members"]] == [0, 1, 2, 3]
    assert (there["health"], there["problems"]) == ("ok", [])
    if isinstance(ready, OnNodes):
        as_real_docker_has_it(ready, planned, pasteable)


def as_real_docker_has_it(nodes: OnNodes, planned: list[dict[str, Any]], pasteable: str) -> None:
    """The containers, and those that the printed commands make in a shell of their node."""
    record(nodes.fleet, MODEL, "r:good")
    asking = "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v1/models').read()"
    nodes.docker("node1", "exec", "vllm", "python3", "-c", asking)
    launched = {}
    for name, one in zip(NODES, planned, strict=True):
        found = nodes.inspect(name)
        assert found["Config"]["Image"] == found["Image"]
        assert one["env"].items() <= dict(e.split("=", 1) for e in found["Config"]["Env"]).items()
        host = found["HostConfig"]
        assert host["NetworkMode"] == host["IpcMode"] == "host"
        assert {"Name": "memlock", "Hard": -1, "Soft": -1} in host["Ulimits"]
        assert host["DeviceRequests"][0]["Count"] == -1
        assert host["Devices"][0]["PathOnHost"] == "/dev/infiniband"
        assert sorted(cap.removeprefix("CAP_") for cap in host["CapAdd"]) == [
            "IPC_LOCK", "SYS_PTRACE",
        ]  # fmt: skip
        assert "NVIDIA" not in host["Runtime"]
        model = next(m for m in found["Mounts"] if m["Destination"] == MODEL)
        assert (model["Source"], model["RW"]) == (MODEL, False)
        launched[name] = essence(found)
    ok(nodes.run("stop"))
    assert nodes.containers() == NOTHING
    parts = dict(zip(NODES, pasteable.strip().split("\n\n"), strict=True))
    nodes.fleet.each(lambda node: node.exec("sh", "-ec", parts[node.name]))
    assert {name: essence(nodes.inspect(name)) for name in NODES} == launched


def test_json_says_what_was_proven(ready: Serving) -> None:
    facts = json.loads(ok(ready.launch("--json")))
    assert [one["node"] for one in facts["ranks"]] == list(NODES)
    assert {one["ok"] for one in facts["proof"]} == {True}
    assert len(facts["proof"]) == 12
    assert facts["url"] == f"http://{ready.address('node1')}:8000/v1"


def test_a_log_that_arrives_late_is_read_to_its_end(standins: OnStandins) -> None:
    standins.clean()
    standins.there.nodes["node3"].is_behind = True
    done = standins.launch()
    assert "✓\t2\tnode3\tNCCL" in ok(done)
    for phase in ("ranks joined", "weights", "compile", "graph capture", "ready"):
        assert f"node3 (rank 2): {phase}\n" in done.stderr


@pytest.mark.parametrize("variant", ["entry", "none", "shell"])
def test_images_with_another_entry_point(ready: Serving, variant: str) -> None:
    ok(ready.launch(variant=variant))
    found = ready.inspect("node2")["Config"]["Cmd"]
    words = shlex.split(found[0]) if variant == "shell" else found
    assert words[:3] == ["vllm", "serve", MODEL]
    assert len(found) == (1 if variant == "shell" else len(words))


def test_a_doubled_entry_point_takes_an_order(ready: Serving) -> None:
    profile = {"variants": ["good"], "nodes": 4, "serve": SERVE, "command": ["vllm", "serve"]}
    ready.matrix({"four": profile})
    said = refused(ready.launch(), LAUNCH_FAILED, f"unrecognized arguments: serve {MODEL}", STOPPED)
    assert "known:" in said
    assert "doubl" in said or "twice" in said
    assert ready.containers() == NOTHING


def test_one_node_alone(ready: Serving) -> None:
    with ready.watched() as commands:
        said = ok(ready.launch("--profile", "single"))
    assert said.splitlines()[-1] == f"http://{ready.address('node1')}:8200/v1"
    # The others are not even connected to.
    assert commands
    assert not any("node2" in command for command in commands)
    assert ready.containers() == {**NOTHING, "node1": ["vllm running"]}
    command = ready.inspect("node1")["Config"]["Cmd"]
    assert "--nnodes" not in command
    assert "--headless" not in command
    assert ready.inspect("node1")["HostConfig"]["Devices"] in (None, [])


def test_a_compose_file_for_each_node(ready: Serving) -> None:
    import yaml

    made = list(yaml.safe_load_all(ok(ready.launch("--print", "compose"))))
    planned = json.loads(ok(ready.launch("--dry-run", "--json")))
    assert len(made) == 4
    for one, plan in zip(made, planned, strict=True):
        service = one["services"]["vllm"]
        assert service["command"] == [word.replace("$", "$$") for word in plan["command"]]
        assert service["environment"]["VLLM_SAYS"] == 'it\'s "$$HOME" here'
        assert service["image"] == plan["image"]
    assert ready.containers() == NOTHING


# Caches


def kernels(ready: Serving) -> list[str]:
    """Whether each rank compiled anew or took what was there."""
    said = ok(ready.run("logs"))
    return [
        "cached" if "Directly load" in line else "compiled"
        for line in said.splitlines()
        if "Directly load" in line or "Compiling a graph" in line
    ]


@on_both
def test_kernels_outlive_a_container(ready: Serving) -> None:
    digest = json.loads(ok(ready.launch("--json")))["digest"]
    assert kernels(ready) == ["compiled"] * 4
    folder = f"/root/.cache/sparkimage/{digest[7:19]}"
    assert ready.listed("node3", folder) == ["triton", "vllm"]
    ok(ready.launch("--replace"))
    assert kernels(ready) == ["cached"] * 4


def test_no_image_runs_on_the_kernels_of_another_one_unless_it_is_told_to(ready: Serving) -> None:
    ok(ready.launch())
    ok(ready.launch("--replace", variant="entry"))
    assert kernels(ready) == ["compiled"] * 4
    ok(ready.launch("--replace", "--share-cache"))
    ok(ready.launch("--replace", "--share-cache", variant="entry"))
    assert kernels(ready) == ["cached"] * 4


def test_no_cache_is_pointed_out(ready: Serving) -> None:
    first = ready.launch("--profile", "uncached")
    ok(first)
    assert "warning: profile uncached has no cache for vllm, triton" in first.stderr
    ok(ready.launch("--profile", "uncached", "--replace"))
    assert kernels(ready) == ["compiled"] * 4


# A chat template


def test_a_chat_template_is_brought_to_the_nodes(ready: Serving) -> None:
    ready.matrix({"four": {**PROFILES["four"], "chat_template": "chat.jinja"}})
    file = ready.folder / "chat.jinja"
    file.unlink(missing_ok=True)
    refused(ready.launch(), USAGE, "the chat template of profile four cannot be read", "chat.jinja")
    text = "{% for m in messages %}'$HOME' {{ m.content }}\n{% endfor %}"
    file.write_text(text)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    at = f"/root/.cache/sparkimage/chat-template-{sha256[:12]}.jinja"
    assert f"# write the profile's chat template first: {at}" in ok(ready.launch("--dry-run"))
    ok(ready.launch())
    for node in NODES:
        assert at.rpartition("/")[2] in ready.listed(node, "/root/.cache/sparkimage")
        found = ready.inspect(node)
        assert found["Config"]["Labels"]["dev.sparkimage.launch.chat_template"] == sha256
        command = found["Config"]["Cmd"]
        assert command[command.index("--chat-template") + 1] == CHAT_TEMPLATE


# Secrets

KEY = "k3y-'\"$HOME\\#="


@on_both
def test_a_secret_is_in_the_servers_environment_and_nowhere_else(ready: Serving) -> None:
    ready.matrix({"four": {**PROFILES["four"], "secrets": ["VLLM_API_KEY"]}})
    if isinstance(ready, OnNodes):
        ready.nodes(
            node2={"user": "sudoer", "sudo": True}, node3={"user": "worker"},
            node4={"user": "sudoer", "sudo": True},
        )  # fmt: skip
    refused(
        ready.launch(), NOT_GIVEN, "not in the environment: VLLM_API_KEY", "export VLLM_API_KEY="
    )
    refused(ready.launch(VLLM_API_KEY="a\nb"), NOT_GIVEN, "not one line of printable text")
    assert ready.containers() == NOTHING
    dry = [ready.launch(*words, VLLM_API_KEY=KEY) for words in (
        ["--dry-run"], ["--dry-run", "--json"], ["--print", "compose"],
    )]  # fmt: skip
    assert all("VLLM_API_KEY" in ok(one) for one in dry)
    pasteable = ok(ready.launch("--dry-run"))
    assert pasteable == dry[0].stdout

    with ready.watched() as watched:
        done = ready.launch("--json", "--debug", VLLM_API_KEY=KEY)
        facts = json.loads(ok(done))
    # Its own requests were answered.
    assert facts["warm_up"]["requests"] > 0
    commands = "\n".join(watched)
    assert commands.count("--env-file /dev/stdin") >= len(NODES)
    found = {node: ready.inspect(node) for node in NODES}
    for one in found.values():
        assert f"VLLM_API_KEY={KEY}" in one["Config"]["Env"]
        one["Config"]["Env"] = [word for word in one["Config"]["Env"] if KEY not in word]
    said = [*dry, done, ready.run("status", "--json"), ready.run("logs")]
    assert [one.returncode for one in said] == [0] * len(said)
    kept = [file.read_bytes() for file in ready.folder.rglob("*") if file.is_file()]
    texts = [json.dumps(found), commands, *(one.stdout + one.stderr for one in said)]
    for part in (KEY[:4], KEY[-5:]):
        assert not any(part in text for text in texts)
        assert not any(part.encode() in content for content in kept)

    # Whoever asks the server has the key in the environment, too.
    (there,) = json.loads(ok(ready.run("status", "--json", SPARKIMAGE_API_KEY=KEY)))["sets"]
    assert (there["health"], there["problems"]) == ("ok", [])
    words = ("probe", "--nodes", "fleet.yaml", "--tokens", "8", "--streams", "1", "--json")
    refused(ready.run(*words), PROBE_FAILED, "401", "SPARKIMAGE_API_KEY")
    assert json.loads(ok(ready.run(*words, SPARKIMAGE_API_KEY=KEY)))["marks"] == []
    again = json.loads(ok(ready.run("restart", "--json", "--no-warm-up", SPARKIMAGE_API_KEY=KEY)))
    assert again["warm_up"]["unfinished"] == ""

    # Another value is another server.
    refused(ready.launch(VLLM_API_KEY="another"), LAUNCH_FAILED, "runs already", "--replace")
    ok(ready.run("stop"))
    if isinstance(ready, OnNodes):
        parts = dict(zip(NODES, pasteable.strip().split("\n\n"), strict=True))
        with pytest.raises(RuntimeError, match="VLLM_API_KEY"):
            ready.fleet["node2"].exec("sh", "-ec", parts["node2"])
        for name in ("node1", "node2"):
            ready.fleet[name].exec("env", f"VLLM_API_KEY={KEY}", "sh", "-ec", parts[name])
            assert f"VLLM_API_KEY={KEY}" in ready.inspect(name)["Config"]["Env"]


def test_an_error_hides_a_secret_that_the_server_logs(ready: Serving) -> None:
    ready.matrix({"four": {**PROFILES["four"], "secrets": ["HF_TOKEN"]}})
    ready.model("node3", die="weights", words=f"cannot log in with {KEY}")
    said = refused(ready.launch(HF_TOKEN=KEY), LAUNCH_FAILED, "node3 | cannot log in with ***")
    assert KEY not in said


# What is refused before anything starts


def test_images_that_are_not_the_same_everywhere(ready: Serving) -> None:
    ready.bring("entry")
    try:
        for node in ("node2", "node3"):
            ready.docker(node, "rmi", "r:good")
        ready.docker("node2", "tag", "r:entry", "r:good")
        said = refused(
            ready.launch(), MIXED, "is not on 2 of 4 nodes; nothing was started",
            "✗ node2 has another image as r:good", "✗ node3 does not have it",
            "sparkimage distribute good",
        )  # fmt: skip
        assert "node1" not in said
        assert ready.containers() == NOTHING
    finally:
        ready.restore()
    ok(ready.launch())


def test_an_image_that_is_nowhere(ready: Serving) -> None:
    refused(ready.launch(variant="away"), LACKING, "is not on 4 of 4 nodes", "distribute away")


def test_what_is_not_sealed_does_not_start(ready: Serving) -> None:
    ready.bring("away")
    (name,) = [name for name in ready.store.names() if name.endswith(":away")]
    image = ready.store.resolve(name)
    ready.store.forget_fact("seal", image.digest)
    refused(ready.launch(variant="away"), 14, "has no seal")
    ready.seal_image(image, "away")


@pytest.mark.thorough
def test_a_model_that_is_not_what_was_pushed(nodes: OnNodes) -> None:
    """By the nodes' records, which these do not have."""
    home, pushed = nodes.folder / "home", Manifest(entries=(Entry(path="a", size=1, sha256="5"),))
    model_store.keep(home, MODEL, pushed, source=MODEL, by="", nodes=["node2", "node3"])
    try:
        said = refused(
            nodes.launch(), LAUNCH_FAILED, "2 of 4 nodes cannot run it; nothing was started",
            "not the model that was pushed: a is missing", "(model-pushed)",
        )  # fmt: skip
        assert "node1" not in said
    finally:
        shutil.rmtree(home / paths.MODELS)


def test_all_that_is_wrong_with_the_nodes_at_once(ready: Serving) -> None:
    ready.remove("node2", MODEL)
    ready.remove("node3", f"{MODEL}/config.json")
    ready.remove("node3", f"{MODEL}/standin.json")
    ready.rename("node4", "/dev/infiniband", "/dev/infini")
    ready.occupy("node1", 8000)
    before = ready.containers()
    try:
        said = refused(
            ready.launch(), LAUNCH_FAILED, "4 of 4 nodes cannot run it; nothing was started",
            "node1: port 8000 (API) is in use: something listens on 0.0.0.0 (ports)",
            f"node2: {MODEL} does not exist (model)",
            f"node3: {MODEL} is empty (model)",
            "node4: there is no /dev/infiniband",
            "    → there: sudo modprobe -a ib_uverbs",
        )  # fmt: skip
        assert "sparkimage doctor" in said
        ready.nodes(node1={"gpus": 2})
        refused(ready.launch(), LAUNCH_FAILED, "nvidia-smi finds 1 GPUs, the fleet file says 2")
        serve = {**SERVE, "tensor_parallel": 8}
        profile = {"variants": ["good"], "nodes": 4, "gpus": 2, "serve": serve}
        ready.nodes(**{node: {"gpus": None} for node in NODES})
        ready.matrix({"four": profile})
        refused(ready.launch(), LAUNCH_FAILED, "nvidia-smi finds 1 GPUs, the profile wants 2")
        ready.nodes(node3={"interface": "eth7"})
        refused(ready.launch("--dry-run"), LAUNCH_FAILED, "node3: there is no interface eth7")
    finally:
        ready.rename("node4", "/dev/infini", "/dev/infiniband")
    assert ready.containers() == before


def test_rdma_that_a_node_does_not_have_is_told_before_the_start(ready: Serving) -> None:
    ready.rename("node4", "/sys/class/infiniband", "/sys/class/infini")
    try:
        said = refused(
            ready.launch(), LAUNCH_FAILED, "1 of 4 nodes cannot run it; nothing was started",
            "✗ node4: it has no RDMA device (rdma)", "modprobe mlx5_ib",
        )  # fmt: skip
        assert said.count("✗") == 1
        # Nobody misses it where it was not asked for.
        ready.matrix({"four": {**PROFILES["four"], "rdma": False}})
        ok(ready.launch())
        ok(ready.run("stop"))
    finally:
        ready.rename("node4", "/sys/class/infini", "/sys/class/infiniband")
    assert ready.containers() == NOTHING


def test_settings_of_nccl_in_a_file_of_the_image_count(ready: Serving) -> None:
    words = "warning: NCCL reads /etc/nccl.conf of the image, where launch sets nothing else: "
    said = refused(
        ready.launch(variant="conf"), LAUNCH_FAILED, f"{words}NCCL_IB_GID_INDEX=9",
        f"NCCL_IB_GID_INDEX is 9, and that GID of {RDMA} is empty; the RoCE v2 IPv4 GID is 3 (gid)",
    )  # fmt: skip
    assert "node1, node2, node3, node4: NCCL_IB_GID_INDEX" in said
    # What is set for a node wins.
    ready.nodes(**{node: {"env": {"NCCL_IB_GID_INDEX": "3"}} for node in NODES})
    assert words in ready.launch("--dry-run", variant="conf").stderr
    ok(ready.launch(variant="conf"))


def test_memory_that_is_not_free_is_told_before_the_start(ready: Serving) -> None:
    ready.gpu_free("node2", 90_000)
    ready.gpu_free("node4", 1000)
    said = refused(
        ready.launch(), LAUNCH_FAILED, "2 of 4 nodes lack memory; nothing was started",
        "✗ node2: GPU 0: 94.4 GB of 128.5 GB are free, and vLLM takes 102.8 GB "
        "(gpu_memory_utilization 0.8)", "or gpu_memory_utilization 0.73 in the profile",
        "✗ node4: GPU 0: ",
    )  # fmt: skip
    assert "node1" not in said
    assert ready.containers() == NOTHING
    profile = {**PROFILES["four"], "serve": {**SERVE, "gpu_memory_utilization": 0.7}}
    ready.matrix({"four": profile})
    ready.gpu_free("node4", 90_000)
    ok(ready.launch())


def test_a_set_that_runs_gives_way_only_when_asked(ready: Serving) -> None:
    ok(ready.launch())
    before = ids(ready)
    refused(ready.launch(), LAUNCH_FAILED, "vllm runs already (on node1, node2, node3, node4)",
            "--replace")  # fmt: skip
    assert ids(ready) == before
    ok(ready.launch("--replace"))
    assert ready.containers() == WHOLE
    assert not ids(ready).items() & before.items()


def test_a_foreign_container_of_that_name_stays(ready: Serving) -> None:
    ready.docker("node3", "create", "--name", "vllm", "--entrypoint", "sh", "r:good")
    refused(ready.launch(), LAUNCH_FAILED, "node3 (rank 2): docker create failed",
            'The container name "/vllm" is already in use', "nothing was started")  # fmt: skip
    assert ready.containers() == {**NOTHING, "node3": ["vllm created"]}


def test_wrong_words(ready: Serving) -> None:
    refused(ready.run("launch", "good", "--model", "models"), USAGE, "is not an absolute path")
    refused(ready.launch("--profile", "fuor"), USAGE, "did you mean 'four'?")
    refused(ready.launch("--profile", "uncached", variant="entry"), USAGE, "is not for entry")
    refused(ready.run("launch", "good", "--model", MODEL), USAGE, "3 profiles are for good")
    ready.nodes("node1", "node2")
    refused(ready.launch(), USAGE, "the profile is for 4 nodes, fleet.yaml has 2")
    refused(ready.launch("--name", "a b"), USAGE, "is not a valid container name")


OTHER = "/root/.cache/vllm/libnccl.so.2"
"""In the folder of a cache, which the node has."""


def test_another_build_of_nccl_on_one_node_is_refused_before_the_start(ready: Serving) -> None:
    """Of the same version: only its Build ID tells."""
    at = "/root/.cache/sparkimage/shared/vllm/libnccl.so.2"
    ready.nodes(node3={"env": {"VLLM_NCCL_SO_PATH": OTHER}})
    ready.write("node3", at, nccl.library(ready.arch, PIN, "other"))
    said = refused(
        ready.launch("--share-cache"), LAUNCH_FAILED,
        "1 of 4 ranks would load another NCCL: it hangs without a word; nothing was started",
        f"✗ node3 (rank 2): would load {OTHER}\n      seen: "
        f"Build ID {nccl.build_id(PIN, 'other')}, ",
        f"expected: NCCL {PIN}, Build ID {nccl.build_id(PIN)}, ",
        "→ correct VLLM_NCCL_SO_PATH",
    )  # fmt: skip
    assert said.count("✗") == 1
    assert ready.containers() == NOTHING
    # The same build from another place is the same; `restart` looks again.
    ready.write("node3", at, nccl.library(ready.arch, PIN))
    ok(ready.launch("--share-cache"))
    ready.write("node3", at, nccl.library(ready.arch, PIN, "other"))
    refused(
        ready.run("restart"), LAUNCH_FAILED, "1 of 4 ranks would load another NCCL",
        f"expected: NCCL {PIN}, Build ID {nccl.build_id(PIN)} ",
    )  # fmt: skip
    assert ready.containers() == {node: ["vllm exited"] for node in NODES}


def test_a_libnccl_that_is_not_what_was_distributed_is_refused(ready: Serving) -> None:
    with ready.damaged("node2", ready.preload), ready.damaged("node4", ready.preload):
        said = refused(
            ready.launch(), LAUNCH_FAILED, "nothing was started",
            f"✗ node2 (rank 1): {ready.preload} is not the file of the image: damaged there",
            f"seen: Build ID {nccl.build_id(PIN)}, sha256 ", "✗ node4 (rank 3): ",
        )  # fmt: skip
        assert said.count("✗") == 2
    assert ready.containers() == NOTHING
    ok(ready.launch())


def test_variables_that_name_another_nccl_are_refused(ready: Serving) -> None:
    ready.nodes(node4={"env": {"VLLM_NCCL_SO_PATH": "/gone/libnccl.so.2"}})
    refused(ready.launch(), LAUNCH_FAILED, "✗ node4 (rank 3): /gone/libnccl.so.2 is not in its ")
    ready.nodes()
    # Beside the preloaded one, vLLM loads it for itself.
    env = {"VLLM_NCCL_SO_PATH": server.PIP}
    ready.matrix({"four": {**PROFILES["four"], "env": env}})
    said = refused(ready.launch(), LAUNCH_FAILED, f"would load {server.PIP}\n")
    assert said.count("✗") == 4
    # A cache over the folder of the library hides it.
    folder = posixpath.dirname(ready.preload)
    ready.matrix({"four": {**PROFILES["four"], "caches": {"hides": folder}}})
    refused(ready.launch(), LAUNCH_FAILED, f"{ready.preload} is not in its container")
    assert ready.containers() == NOTHING


# What goes wrong while it starts


WORDS = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."


@on_both
def test_a_rank_that_dies_ends_it_for_all(ready: Serving) -> None:
    ready.model("node3", die="weights", words=WORDS)
    said = refused(
        ready.launch(), LAUNCH_FAILED,
        "node3 (rank 2) exited with code 1 in phase ranks joined; ", STOPPED,
        f"node3 | {WORDS}", "known:", "(node3)",
    )  # fmt: skip
    assert "→" in said
    assert ready.containers() == NOTHING


def test_what_failed_is_kept_to_look_at(ready: Serving) -> None:
    ready.model("node3", die="weights", words=WORDS)
    refused(ready.launch("--keep"), LAUNCH_FAILED, "what was started keeps running")
    assert ready.containers()["node3"] == ["vllm exited"]
    assert ready.containers()["node2"] == ["vllm running"]
    assert WORDS in ok(ready.run("logs", "--node", "node3"))
    ok(ready.run("stop"))
    assert ready.containers() == NOTHING


def test_one_that_docker_starts_again_is_not_waited_for(ready: Serving) -> None:
    ready.model("node2", die="compile")
    refused(ready.launch("--profile", "again"), LAUNCH_FAILED, "node2 (rank 1)", STOPPED)
    assert ready.containers() == NOTHING


def given_up(ready: Serving, *said: str) -> None:
    """A launch is not ready in its time, in which the ranks have come as far as they do."""
    for limit_s in ready.limits_s:
        done = ready.launch("--timeout", f"{limit_s}")
        if all(words in done.stderr for words in said):
            break
    refused(done, LAUNCH_FAILED, f"not ready after {limit_s} s", *said)
    assert ready.containers() == NOTHING


def test_a_time_limit_names_the_phase(ready: Serving) -> None:
    ready.model("node3", hang="compile")
    given_up(
        ready, STOPPED, "node3 (rank 2): weights", "node4 (rank 3): graph capture",
        "--timeout SECONDS",
    )  # fmt: skip


def test_both_the_log_and_the_answer_count(ready: Serving) -> None:
    ready.model("node1", sick=True)
    given_up(ready, "the head is at health: HTTP 503")
    ready.model("node1", silent=True)
    given_up(ready, "the head is at graph capture")


def test_a_rank_that_is_stopped_while_it_starts_is_named(ready: Serving) -> None:
    ready.model("node2", hang="weights")

    def stop() -> None:
        ready.docker("node3", "kill", "--signal", "STOP", "vllm")

    done = ready.during(ready.launching(), ready.waits, stop)
    refused(done, LAUNCH_FAILED, "node3 (rank 2) is stopped: ", "is in state T", STOPPED)
    assert ready.containers() == NOTHING


@on_both
def test_an_interrupt_stops_what_was_started(ready: Serving) -> None:
    ready.model("node2", hang="weights")
    done = ready.interrupted(ready.launching(), ready.waits)
    assert done.returncode == INTERRUPTED, done.stderr
    assert f"interrupted: {STOPPED}" in done.stderr
    assert ready.containers() == NOTHING


@pytest.mark.thorough
def test_what_a_killed_launch_has_left_is_found(nodes: OnNodes) -> None:
    nodes.model("node2", hang="weights")
    with nodes.begun(nodes.launching()) as process:
        wait(nodes.waits, "the containers did not come")
        process.kill()
    left_behind(nodes)


def test_what_a_launch_has_left_that_was_given_up_is_found(ready: Serving) -> None:
    ready.model("node2", hang="weights")
    done = ready.interrupted(ready.launching("--keep"), ready.waits)
    assert done.returncode == INTERRUPTED, done.stderr
    assert "what was started keeps running" in done.stderr
    left_behind(ready)


def left_behind(ready: Serving) -> None:
    (one,) = json.loads(ok(ready.run("status", "--json")))["sets"]
    assert [member["node"] for member in one["members"]] == list(NODES)
    assert one["health"] == "no answer"
    assert "node1, node2, node3, node4" in ok(ready.run("stop"))
    assert ready.containers() == NOTHING


def test_a_node_that_is_lost(ready: Serving) -> None:
    ready.model("node3", hang="compile")
    done = ready.during(ready.launching(), ready.waits, lambda: ready.cut("node3"))
    refused(
        done, LAUNCH_FAILED, "node3 (rank 2) was lost",
        "may still run on node3: sparkimage stop",
    )  # fmt: skip
    assert ready.containers() == {**NOTHING, "node3": ["vllm running"]}
    gone = ready.run("stop", "--patience", "5")
    refused(
        gone,
        NODE_FAILED,
        "could not reach 1 of 4 nodes, where it may still run",
        "node3 cannot be reached",
    )
    ready.join("node3")
    refused(ready.run("status"), LAUNCH_FAILED, "the head is gone: zombie workers on node3")
    ok(ready.run("stop"))
    assert ready.containers() == NOTHING


# What was started and is not what it must be


def test_a_preload_of_nothing_is_caught(ready: Serving) -> None:
    done = ready.launch(variant="loses")
    said = refused(
        done, LAUNCH_FAILED, "the proof failed", STOPPED,
        "looked for: LD_PRELOAD is loaded; seen: ignored: no /usr/lib/nowhere/libnccl.so.2.30.4",
        f"node4 (rank 3): looked for: NCCL {PIN}; seen: {OLD}+cuda13.2", "known:",
    )  # fmt: skip
    assert said.count("✗ node") == 8
    assert done.stdout.count("✗") == 8
    assert ready.containers() == NOTHING


def test_another_nccl_on_one_rank_is_caught(ready: Serving) -> None:
    ready.model("node3", nccl=server.PIP)
    done = ready.launch("--json")
    said = refused(done, LAUNCH_FAILED, "the proof failed: 1 of 12 findings")
    assert f"✗ node3 (rank 2): looked for: NCCL {PIN}; seen: {OLD}+cuda13.2" in said
    wrong = [one for one in json.loads(done.stdout)["proof"] if not one["ok"]]
    assert [(one["rank"], one["node"]) for one in wrong] == [(2, "node3")]
    # It is known long before it would serve.
    ready.model("node1", hang="compile")
    done = ready.launch("--keep")
    refused(done, LAUNCH_FAILED, "the proof failed: 1 of 12 findings", "keeps running")
    assert ready.containers() == WHOLE


def test_sockets_in_place_of_rdma_are_caught(ready: Serving) -> None:
    ready.model("node2", transport="Socket")
    said = refused(ready.launch(), LAUNCH_FAILED, "the proof failed: 2 of 12 findings")
    assert "✗ node2 (rank 1): looked for: via NET/IB; seen: none" in said
    assert "✗ node2 (rank 1): looked for: no NET/Socket; seen: 3 lines" in said
    # Where RDMA was not asked for they are right.
    profile = {"variants": ["good"], "nodes": 4, "serve": SERVE, "rdma": False}
    ready.matrix({"four": profile})
    said = ok(ready.launch())
    assert "NET/IB" not in said
    assert ready.inspect("node1")["HostConfig"]["Devices"] in (None, [])


# Warm-up


COMPILES = "JIT compilation during inference"


def compiled(ready: Serving) -> int:
    """How many kernels the ranks say that they compiled while they serve."""
    return ok(ready.run("logs")).count(COMPILES)


def test_a_server_is_warm_when_launch_returns(ready: Serving) -> None:
    done = ready.launch("--warm-up", "300")
    said = ok(done)
    assert "warmed up: " in said
    assert "node1 (rank 0): warm-up 1/7\n" in done.stderr
    found = compiled(ready)
    assert f"{found} kernels compiled in " in said
    assert found >= 4
    # What is asked then has its kernels already.
    ready.request(64)
    ok(ready.run("status"))
    assert compiled(ready) == found
    facts = json.loads(ok(ready.run("restart", "--json", "--warm-up", "300")))["warm_up"]
    # How many requests meet in one step differs from time to time, and with it the kernels.
    assert (facts["unfinished"], facts["compiled"] >= 4) == ("", True)
    assert facts["requests"] > 16


def test_a_server_need_not_be_warmed_up(ready: Serving) -> None:
    done = ready.launch()
    assert "warmed up" not in ok(done)
    assert "warning" not in done.stderr
    few = compiled(ready)
    # That tokens come is proven all the same.
    assert few > 0
    ok(ready.launch("--replace", "--warm-up", "300"))
    assert compiled(ready) > few
    ready.model("node3", deaf=True)
    refused(ready.launch("--replace", "--warm-up", "1"), LAUNCH_FAILED,
            "ready, but no request was answered in 1 s", STOPPED)  # fmt: skip
    assert ready.containers() == NOTHING


def test_a_warm_up_ends_in_time(ready: Serving) -> None:
    ready.model("node1", compiles=True)
    done = ready.launch("--warm-up", "2")
    ok(done)
    assert "warning: not warm yet after 2 s: the first users may wait" in done.stderr
    assert ready.containers() == WHOLE


def test_a_rank_that_is_stopped_in_the_warm_up_ends_it(ready: Serving) -> None:
    ready.model("node1", compiles=True)

    def warms_up() -> bool:
        return COMPILES in ready.docker("node2", "logs", "vllm")

    def stop() -> None:
        ready.docker("node2", "kill", "--signal", "STOP", "vllm")

    words = ready.launching("--warm-up", "300")
    done = ready.during(words, lambda: ready.waits() and warms_up(), stop)
    refused(done, LAUNCH_FAILED, "node2 (rank 1) is stopped: ", "is in state T", STOPPED)
    assert ready.containers() == NOTHING


def test_a_request_that_fails_in_the_warm_up_ends_it(ready: Serving) -> None:
    ready.model("node1", fails=True)
    refused(
        ready.launch("--warm-up", "300"), LAUNCH_FAILED, "ready, but a request failed: ",
        "HTTP status 500", "EngineCore encountered an issue", STOPPED,
    )  # fmt: skip
    assert ready.containers() == NOTHING


# What runs


def test_a_dead_worker(ready: Serving) -> None:
    ok(ready.launch())
    ready.docker("node4", "kill", "vllm")

    def sick() -> bool:
        return "HTTP 503" in ready.run("status").stderr

    wait(sick, "the head does not notice")
    done = ready.run("status")
    refused(done, LAUNCH_FAILED, "rank 3 on node4 is exited (137)", "the head answers HTTP 503",
            "sparkimage restart")  # fmt: skip
    (row,) = [line for line in done.stdout.splitlines() if "node4" in line]
    assert row.split()[:5] == ["✗", "node4", "3", "worker", "exited"]
    ok(ready.run("restart"))
    ok(ready.run("status"))
    assert ready.containers() == WHOLE


def test_a_rank_whose_process_is_stopped_is_named(ready: Serving) -> None:
    ok(ready.launch())
    ok(ready.run("status"))
    ready.docker("node3", "kill", "--signal", "STOP", "vllm")
    done = ready.run("status")
    refused(done, LAUNCH_FAILED, "rank 2 on node3 is stopped: ", "is in state T",
            "sparkimage restart")  # fmt: skip
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(("✓", "✗"))]
    assert [row[0] for row in rows] == ["✓", "✓", "✗", "✓"]
    assert rows[2][1:6] == ["node3", "2", "worker", "running,", "stopped"]
    # What /health says all that time.
    assert "health: ok" in done.stdout
    ready.docker("node3", "kill", "--signal", "CONT", "vllm")
    ok(ready.run("status"))


def test_a_rank_whose_container_is_paused_is_named(ready: Serving) -> None:
    ok(ready.launch())
    ready.docker("node2", "pause", "vllm")
    refused(ready.run("status"), LAUNCH_FAILED, "rank 1 on node2 is paused")
    ready.docker("node2", "unpause", "vllm")
    ok(ready.run("status"))


def test_tokens_that_do_not_come_are_seen_although_health_is_ok(ready: Serving) -> None:
    """A rank that runs and takes no step: no process of it is stopped."""
    profile = {**PROFILES["four"], "env": {"VLLM_RINGBUFFER_WARNING_INTERVAL": "1"}}
    ready.matrix({"four": profile})
    ok(ready.launch())
    ready.request(1_000_000)
    wait(lambda: re.search(r"num_requests_running.* 1\.0", ready.metrics()) is not None, "idle")
    ok(ready.run("status"))
    ready.model("node3", deaf=True)
    wait(lambda: "No available shared" in ok(ready.run("logs", "--rank", "0")), "it waits for none")
    done = ready.run("status", "--json")
    refused(done, LAUNCH_FAILED, "no token came for ", " s, with 1 request to answer",
            "rank 0 on node1 waits for the others (shm_broadcast, ")  # fmt: skip
    (found,) = json.loads(done.stdout)["sets"]
    assert found["health"] == "no tokens"


def test_an_idle_server_is_asked_for_one_token(ready: Serving) -> None:
    ok(ready.launch())
    ready.model("node4", deaf=True)
    done = ready.run("status")
    refused(done, LAUNCH_FAILED, "a request for one token got no answer in ")
    assert "health: no tokens" in done.stdout


@on_both
def test_a_dead_heads_zombies_are_found_and_stopped(ready: Serving) -> None:
    ok(ready.launch())
    ready.docker("node1", "kill", "vllm")
    done = ready.run("status")
    refused(
        done, LAUNCH_FAILED, "the head on node1 is exited (137): zombie workers on node2, node3, "
        "node4 hold their GPUs", "sparkimage stop",
    )  # fmt: skip
    assert done.stdout.count("running, zombie") == 3
    # Gone altogether, they are found just the same.
    ready.docker("node1", "rm", "vllm")
    said = ok(ready.run("stop"))
    assert said.count("zombie worker") == 3
    assert ready.containers() == NOTHING


def test_zombies_give_way_only_when_asked(ready: Serving) -> None:
    ok(ready.launch())
    ready.docker("node1", "kill", "vllm")
    facts = json.loads(ready.run("status", "--json").stdout)
    assert facts["sets"][0]["members"][0]["state"] == "exited"
    refused(ready.launch(), LAUNCH_FAILED, "exists, and is broken", "zombie workers")
    ready.docker("node1", "rm", "vllm")
    refused(ready.run("status"), LAUNCH_FAILED, "the head is gone: zombie workers")
    refused(ready.run("restart"), LAUNCH_FAILED, "is incomplete", "--replace")
    ok(ready.run("stop"))
    assert "nothing to stop" in ok(ready.run("stop"))
    assert "nothing runs" in ok(ready.run("status"))


def test_status_hides_nobody(ready: Serving) -> None:
    ok(ready.launch())
    ready.cut("node3")
    done = ready.run("status", "--patience", "5")
    refused(done, NODE_FAILED, "could not reach 1 of 4 nodes", "node3 cannot be reached")
    assert "node4" in done.stdout
    # What is there is not called missing.
    assert "no node has rank" not in done.stderr


def test_logs_of_all_as_one(ready: Serving) -> None:
    ok(ready.launch())
    said = ok(ready.run("logs")).splitlines()
    assert {line.split(" | ")[0].strip() for line in said} == {*NODES}
    assert sum("Application startup complete" in line for line in said) == 1
    joined = [place for place, line in enumerate(said) if "is assigned as" in line]
    # By time, not node after node. A busy node's Docker stamps a line when it comes to read it,
    # which may be after the head has said that all is ready.
    others = [place for place in joined if not said[place].startswith("node1")]
    assert said.index(next(li for li in said if "startup complete" in li)) > min(others)
    only = ok(ready.run("logs", "--rank", "2", "--tail", "2")).splitlines()
    assert len(only) == 2
    assert all(line.startswith("node3 | ") for line in only)
    refused(ready.run("logs", "--node", "node9"), LAUNCH_FAILED, "no such logs", "node1 (rank 0)")


def test_logs_are_followed_until_their_containers_end(ready: Serving) -> None:
    ok(ready.launch())

    def end() -> None:
        for node in NODES:
            ready.docker(node, "kill", "vllm")

    followed = ("logs", "--follow", "--tail", "1")
    said = ok(ready.during(followed, lambda: ready.readers() == 4, end)).splitlines()
    for node in NODES:
        first, *_, last = [line for line in said if line.startswith(f"{node} | ")]
        assert first != last
        assert last.endswith("(end of the log)")


@on_both
def test_a_deployment_is_measured_in_its_heads_container(ready: Serving) -> None:
    words = ("probe", "--nodes", "fleet.yaml", "--tokens", "8", "--streams", "2", "--json")
    refused(ready.run(*words), LAUNCH_FAILED, "nothing runs on the nodes", "status")
    ok(ready.launch())
    said = json.loads(ok(ready.run(*words)))
    (row,) = said["rows"]
    assert (row["streams"], row["requests"], row["tokens"]) == (2, 9, 72)
    assert said["url"] == f"http://{ready.address('node1')}:8000"
    assert said["marks"] == []
    assert said["tool_call"]["works"]
    ready.docker("node1", "kill", "vllm")
    refused(ready.run(*words), LAUNCH_FAILED, "the head of vllm does not run")
    ok(ready.run("stop"))


@pytest.mark.thorough
def test_an_interrupt_ends_what_measures_on_the_node(nodes: OnNodes) -> None:
    ok(nodes.launch())

    def measures() -> bool:
        return "bench serve" in nodes.docker("node1", "top", "vllm", "-eo", "pid,args")

    words = ("probe", "--nodes", "fleet.yaml", "--tokens", "100000", "--streams", "1")
    done = nodes.interrupted(words, measures)
    assert "interrupted: no measurement was completed" in done.stderr
    wait(lambda: not measures(), "vllm bench serve runs on")
    ok(nodes.run("status"))
    ok(nodes.run("stop"))


@on_both
def test_restart_is_the_same_again(ready: Serving) -> None:
    refused(ready.run("restart"), LAUNCH_FAILED, "no such deployment")
    ok(ready.launch())
    before = {node: ready.inspect(node) for node in NODES}
    facts = json.loads(ok(ready.run("restart", "--json")))
    assert len(facts["proof"]) == 12
    for node in NODES:
        found = ready.inspect(node)
        assert found["Id"] == before[node]["Id"]
        assert essence(found) == essence(before[node])
        assert found["State"]["StartedAt"] > before[node]["State"]["StartedAt"]


def test_a_restart_that_fails_leaves_its_containers(ready: Serving) -> None:
    ok(ready.launch())
    # One that fails now ends, and stays to be looked at.
    ready.model("node2", nccl=server.PIP)
    refused(
        ready.run("restart"),
        LAUNCH_FAILED,
        "the proof failed",
        "its containers were stopped and kept",
    )
    assert ready.containers() == {node: ["vllm exited"] for node in NODES}
    # What is dead gives way by itself.
    ready.model("node2")
    ok(ready.launch())


def test_several_sets(ready: Serving) -> None:
    ready.nodes("node1")
    ok(ready.launch("--profile", "single", "--name", "small"))
    ready.nodes("node3", "node4")
    said = ok(ready.launch("--profile", "two", "--name", "pair"))
    assert said.count("NCCL 2.30.4") == 2
    ready.nodes()
    status = ok(ready.run("status"))
    assert "pair: good, two; health: ok" in status
    assert "small: good, single; health: ok" in status
    refused(ready.run("stop"), USAGE, "there are 2 deployments: pair, small", "--name NAME")
    ok(ready.run("stop", "--name", "pair"))
    assert ready.containers() == {**NOTHING, "node1": ["small running"]}
    ok(ready.run("stop"))
    assert ready.containers() == NOTHING
