"""From image, profile and nodes to each rank's command: nothing doubles, nothing is lost to a
shell."""

from __future__ import annotations

import csv
import io
import shlex
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkimage.config.inventory import Fleet, Node
from sparkimage.config.profiles import Profile, Serve
from sparkimage.core.errors import UsageError
from sparkimage.serve import choices, command, entrypoints
from sparkimage.serve.command import Container, Host, Mount, Request
from sparkimage.serve.nccl import Library

NCCL = Library(path="/l.so", version="2.30.4", build_id="76ab")
WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)


def profile(**values: Any) -> Profile:
    return Profile(**{"variants": ["v"], "nodes": 2, "serve": Serve(tensor_parallel=2), **values})


def request(**values: Any) -> Request:
    return Request(
        **{
            "name": "vllm", "variant": "v", "digest": f"sha256:{'a' * 64}", "profile_name": "p",
            "profile": profile(), "model": "/m", "entrypoint": ("vllm", "serve"),
            "nccl": NCCL, **values,
        }
    )  # fmt: skip


def host(node: str, **values: Any) -> Host:
    return Host(
        **{
            "node": node, "docker": ("docker",), "address": f"10.0.0.{node[-1]}",
            "interface": "eth0", "hcas": ("h0",), "image": "sha256:b", "caches": "/c", **values,
        }
    )  # fmt: skip


HOSTS = (host("n1"), host("n2"))


def made(**values: Any) -> tuple[Container, ...]:
    return command.containers(request(**values), HOSTS)


@pytest.mark.parametrize(
    ("entrypoint", "before"),
    [
        (("vllm", "serve"), ()),
        (("/opt/venv/bin/vllm", "serve"), ()),
        (("/usr/bin/tini", "--", "vllm", "serve"), ()),
        (("vllm", "serve", "--seed", "1"), ()),
        (("vllm",), ("serve",)),
        (("/usr/bin/tini", "--", "/venv/bin/vllm"), ("serve",)),
        (("python3", "-m", "vllm.entrypoints.cli.main", "serve"), ()),
        (("python3", "-m", "vllm.entrypoints.cli.main"), ("serve",)),
        (("/entry.sh",), ("vllm", "serve")),
        (("/opt/nvidia/nvidia_entrypoint.sh",), ("vllm", "serve")),
        (("tini", "-s", "--", "/docker-entrypoint"), ("vllm", "serve")),
        (("tini", "--"), ("vllm", "serve")),
        ((), ("vllm", "serve")),
        (("/bin/sh", "-c"), ("vllm", "serve")),
    ],
)
def test_what_stands_before_the_model(entrypoint: tuple[str, ...], before: tuple[str, ...]) -> None:
    assert entrypoints.serve_prefix(entrypoint, None) == before
    (first, _) = made(entrypoint=entrypoint)
    words = [word for group in first.arguments for word in group]
    if entrypoint == ("/bin/sh", "-c"):
        (one,) = words
        words = shlex.split(one)
    assert words[: len(before) + 1] == [*before, "/m"]


@pytest.mark.parametrize(
    "entrypoint",
    [("sh", "-c", 'exec vllm serve "$@"', "x"),
     ("python3", "-m", "vllm.entrypoints.openai.api_server")],
)  # fmt: skip
def test_what_cannot_be_known_is_asked_for(entrypoint: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        entrypoints.serve_prefix(entrypoint, None)
    assert "`command`" in caught.value.hint
    assert entrypoints.serve_prefix(entrypoint, []) == ()
    assert entrypoints.serve_prefix(entrypoint, ["a", "b"]) == ("a", "b")


@pytest.mark.parametrize(
    ("entrypoint", "engine"),
    [
        (("/app/llama-server",), "llama-server"),
        (("tini", "--", "/opt/bin/llama-server", "--metrics"), "llama-server"),
        (("python3", "-m", "sglang.launch_server"), "sglang.launch_server"),
        (("/usr/bin/python3.12", "/app/serve.py"), "/app/serve.py"),
        (("python3",), "python3"),
        (("sglang", "serve"), "sglang"),
    ],
)
def test_another_engine_is_named_with_what_can_be_done(
    entrypoint: tuple[str, ...], engine: str
) -> None:
    with pytest.raises(UsageError) as error:
        made(entrypoint=entrypoint)
    assert error.value.message == (
        f"the image's ENTRYPOINT starts {engine}, and launch derives the arguments of "
        f"`vllm serve`: {' '.join(entrypoint)}"
    )
    assert "docker run" in error.value.hint
    assert "`command: [vllm, serve]`" in error.value.hint
    assert entrypoints.serve_prefix(entrypoint, ["vllm", "serve"]) == ("vllm", "serve")


def test_head_and_worker() -> None:
    head, worker = ([w for group in one.arguments for w in group] for one in made())
    for words, rank in ((head, "0"), (worker, "1")):
        assert words[words.index("--node-rank") + 1] == rank
        assert words[words.index("--master-addr") + 1] == "10.0.0.1"
        assert words[words.index("--nnodes") + 1] == "2"
    assert head[head.index("--port") + 1] == "8000"
    assert "--headless" not in head
    assert "--headless" in worker
    assert "--host" not in worker


def test_what_is_of_one_node_wins_over_the_profile_and_that_over_the_network() -> None:
    fabric = {"NCCL_IB_MERGE_NICS": "0", "NCCL_NET_PLUGIN": "none"}
    hosts = (host("n1", fabric=fabric, env={"NCCL_IB_GID_INDEX": "4"}), host("n2", fabric=fabric))
    wanted = request(profile=profile(env={"NCCL_NET_PLUGIN": "x"}))
    first, second = command.containers(wanted, hosts)
    assert first.env["NCCL_IB_GID_INDEX"] == "4"
    assert "NCCL_IB_GID_INDEX" not in second.env
    assert (second.env["NCCL_IB_MERGE_NICS"], second.env["NCCL_NET_PLUGIN"]) == ("0", "x")
    assert "--env NCCL_IB_GID_INDEX=4" in first.pasteable()


def test_what_the_environment_follows_from() -> None:
    head, worker = made()
    assert worker.env == {
        "VLLM_HOST_IP": "10.0.0.2",
        "NCCL_SOCKET_IFNAME": "eth0",
        "GLOO_SOCKET_IFNAME": "eth0",
        "NCCL_IB_DISABLE": "0",
        "NCCL_IB_HCA": "h0",
        "LD_PRELOAD": "/l.so",
        "NCCL_DEBUG": "INFO",
        "PYTHONUNBUFFERED": "1",
    }
    assert head.devices == ("/dev/infiniband",)
    (plain, _) = made(profile=profile(rdma=False, env={"NCCL_DEBUG": "TRACE"}), nccl=None)
    assert plain.env["NCCL_IB_DISABLE"] == "1"
    assert plain.env["NCCL_DEBUG"] == "TRACE"
    assert "LD_PRELOAD" not in plain.env
    assert plain.devices == ()
    alone = request(profile=profile(nodes=1, rdma=True, serve=Serve()))
    (one,) = command.containers(alone, HOSTS[:1])
    assert one.devices == ()
    assert "VLLM_HOST_IP" not in one.env
    assert "--nnodes" not in one.argv


def test_caches_are_those_of_the_digest() -> None:
    caching = profile(caches={"vllm": "/root/.cache/vllm"})
    (one, _) = made(profile=caching)
    assert one.caches == ("/c/sparkimage/aaaaaaaaaaaa/vllm",)
    assert Mount(source=one.caches[0], target="/root/.cache/vllm") in one.mounts
    assert one.mounts[0] == Mount(source="/m", target="/m", readonly=True)
    (shared, _) = made(profile=caching, share_cache=True)
    assert shared.caches == ("/c/sparkimage/shared/vllm",)


@settings(max_examples=40)
@given(
    model=WORDS, env=st.dictionaries(st.sampled_from("ABC"), WORDS), more=st.lists(WORDS),
    entrypoint=st.sampled_from([("vllm", "serve"), ("vllm",), ("/e.sh",), (), ("sh", "-c")]),
)  # fmt: skip
def test_what_is_shown_is_what_runs(
    model: str, env: dict[str, str], more: list[str], entrypoint: tuple[str, ...]
) -> None:
    serving = Serve.model_construct(
        **{**Serve(tensor_parallel=2).__dict__, "more": [f"--x={word}" for word in more]}
    )
    wanted = profile(env=env).model_copy(update={"serve": serving})
    for one in command.containers(
        request(profile=wanted, model=f"/{model}", entrypoint=entrypoint), HOSTS
    ):
        assert shlex.split(one.pasteable().replace(" \\\n    ", " ")) == one.argv
        read = yaml.safe_load(one.compose())["services"]["vllm"]
        tail = one.argv[one.argv.index(one.image) + 1 :]
        assert [word.replace("$$", "$") for word in read["command"]] == tail
        assert {k: v.replace("$$", "$") for k, v in read["environment"].items()} == one.env
        words = shlex.split(tail[0]) if entrypoint == ("sh", "-c") else tail
        whole = [*(entrypoint if entrypoint != ("sh", "-c") else ()), *words]
        at = whole.index("serve")
        assert whole[at - 1 : at + 2] == ["vllm", "serve", f"/{model}"]
        assert [word for word in whole if word == "serve"] == ["serve"]
        for name in ("--tensor-parallel-size", "--nnodes", "--node-rank", "--master-addr"):
            assert words.count(name) == 1


def test_secrets_stand_by_their_names() -> None:
    wanted = profile(secrets=["HF_TOKEN", "VLLM_API_KEY"])
    hosts = (host("n1"), host("n2", docker=("sudo", "-n", "docker"), env={"HF_TOKEN": "EMPTY"}))
    one, other = command.containers(request(profile=wanted), hosts)
    for name in wanted.secrets:
        assert ("--env", name) in one.groups
    shown = one.pasteable()
    assert 'export HF_TOKEN="${HF_TOKEN:?}" && \\\n' in shown
    assert shown.index("export ") < shown.index("docker run")
    assert yaml.safe_load(one.compose())["services"]["vllm"]["environment"] == {
        **one.env, "HF_TOKEN": "${HF_TOKEN:?}", "VLLM_API_KEY": "${VLLM_API_KEY:?}",
    }  # fmt: skip
    # What a node has of its own wins.
    assert other.secrets == ("VLLM_API_KEY",)
    assert other.env["HF_TOKEN"] == "EMPTY"
    assert other.groups[0] == ("sudo", "-n", "--preserve-env=VLLM_API_KEY", "docker", "run",
                               "--detach")  # fmt: skip
    assert other.create_argv[:4] == ["sudo", "-n", "docker", "create"]
    assert "--env-file" in other.create_argv
    assert "--env-file" not in command.containers(request(), HOSTS)[0].create_argv


def test_gpus_by_cdi() -> None:
    device = "nvidia.com/gpu=all"
    one, other = command.containers(request(), (host("n1", gpus=("--device", device)), host("n2")))
    assert ("--device", device) in one.groups
    assert "--gpus" not in one.argv
    assert ("--gpus", "all") in other.groups
    first, second = (yaml.safe_load(made.compose())["services"]["vllm"] for made in (one, other))
    assert first["devices"] == [device, "/dev/infiniband:/dev/infiniband"]
    assert "deploy" not in first
    assert second["devices"] == ["/dev/infiniband:/dev/infiniband"]
    assert second["deploy"]["resources"]["reservations"]["devices"][0]["count"] == "all"


@given(source=WORDS, target=WORDS)
def test_a_mount_survives_its_commas_and_quotes(source: str, target: str) -> None:
    text = str(Mount(source=f"/{source}", target=f"/{target}", readonly=True))
    (fields,) = csv.reader(io.StringIO(text, newline=""))
    assert fields == ["type=bind", f"source=/{source}", f"target=/{target}", "readonly"]


# Who and where


def test_the_head_is_first() -> None:
    nodes = [Node(name=n, control=n, role="head" if n == "c" else None) for n in "abcd"]
    fleet = Fleet(nodes=tuple(nodes))
    assert [node.name for node in fleet.ranks(4)] == ["c", "a", "b", "d"]
    assert [node.name for node in fleet.ranks(2)] == ["c", "a"]
    assert Fleet(nodes=tuple(nodes[:2])).ranks(1)[0].name == "a"
    with pytest.raises(UsageError, match="for 5 nodes"):
        fleet.ranks(5)


def on(count: int, *, gpus: int | None = None) -> Fleet:
    nodes = [Node(name=f"n{number}", control=f"n{number}", gpus=gpus) for number in range(count)]
    return Fleet(nodes=tuple(nodes))


def test_the_profile_for_so_many_nodes() -> None:
    known = {
        "four": profile(variants=["a*"], nodes=4),
        "one": profile(variants=["*"], nodes=1),
        "uno": profile(variants=["b"], nodes=1),
    }
    assert choices.pick(known, "a1", None, on(4))[0] == "four"
    assert choices.pick(known, "a1", None, on(1))[0] == "one"
    assert choices.pick(known, "b", "uno", on(4)) == ("uno", known["uno"])
    for variant, wanted, nodes, words in (
        ("b", None, 1, "2 profiles are for b on 1 node"),
        ("a1", None, 3, "no profiles are for a1 on 3 nodes"),
        ("b", "four", 4, "is not for b"),
        ("b", "fuor", 4, "no profile 'fuor'"),
    ):
        with pytest.raises(UsageError, match=words):
            choices.pick(known, variant, wanted, on(nodes))


@pytest.mark.parametrize(
    ("nodes", "gpus", "tensor", "pipeline"),
    [
        (1, 1, 1, 1),
        (2, 1, 2, 1),
        (3, 1, 1, 3),
        (4, 1, 4, 1),
        (6, 1, 2, 3),
        (2, 8, 16, 1),
        (3, 2, 2, 3),
    ],
)
def test_a_profile_that_follows_from_the_nodes(
    nodes: int, gpus: int, tensor: int, pipeline: int
) -> None:
    given = gpus if gpus > 1 else None
    name, found = choices.pick({}, "a", None, on(nodes, gpus=given))
    assert (name, found.nodes, found.gpus) == ("auto", nodes, gpus)
    assert (found.serve.tensor_parallel, found.serve.pipeline_parallel) == (tensor, pipeline)
    # A profile that is for all variants does not hide it, one that is for this one does.
    wide = {"one": profile(variants=["*"], nodes=nodes + 1)}
    assert choices.pick(wide, "a", None, on(nodes))[0] == "auto"
    own = {"one": profile(variants=["a"], nodes=nodes + 1)}
    with pytest.raises(UsageError, match=f"no profiles are for a on {nodes} node") as caught:
        choices.pick(own, "a", None, on(nodes))
    assert caught.value.hint.endswith(f"auto (1 node or more), one ({nodes + 1} nodes)")
    assert choices.pick(own, "a", "auto", on(nodes))[0] == "auto"
    assert choices.pick({"auto": own["one"]}, "a", None, on(nodes + 1))[1] == own["one"]


@pytest.mark.parametrize(
    ("entrypoint", "command", "caches", "missing"),
    [
        (("vllm", "serve"), None, {}, ["vllm", "triton"]),
        (("vllm", "serve"), None, {"a": "/root/.cache/vllm", "b": "/root/.triton/cache"}, []),
        # A user who is not root has another home.
        (("vllm", "serve"), None, {"a": "/home/app/.cache/vllm"}, ["triton"]),
        (("/start.sh",), None, {}, ["vllm", "triton"]),
        (("/start.sh",), ["sglang"], {}, []),
        (("python3", "-m", "vllm", "serve"), [], {}, ["vllm", "triton"]),
    ],
)
def test_caches_that_vllm_needs_are_named(
    entrypoint: tuple[str, ...],
    command: list[str] | None,
    caches: dict[str, str],
    missing: list[str],
) -> None:
    profile = Profile(variants=["*"], caches=caches, command=command)
    assert choices.uncached(entrypoint, profile) == missing
