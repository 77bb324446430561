"""What `launch --dry-run` and `--print compose` say for the profiles of the real matrix."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkimage.config import matrix
from sparkimage.serve import command
from sparkimage.serve.command import Container, Host, Request
from sparkimage.serve.nccl import Library

PROJECT = Path(__file__).resolve().parents[2]
Golden = Callable[[str, str], None]


def made(name: str, variant: str) -> tuple[Container, ...]:
    profile = matrix.load(PROJECT / "matrix.yaml").profiles[name]
    request = Request(
        name="vllm",
        variant=variant,
        digest=f"sha256:{'0123456789abcdef' * 4}",
        profile_name=name,
        profile=profile,
        model="/models/DeepSeek-V4-Flash",
        entrypoint=("vllm", "serve"),
        nccl=Library(
            path="/usr/lib/aarch64-linux-gnu/libnccl.so.2.30.4", version="2.30.4", build_id="76ab"
        ),
    )
    hosts = [
        Host(
            node=f"spark{n + 1}",
            docker=("docker",) if n else ("sudo", "-n", "docker"),
            address=f"192.168.100.{n + 1}",
            interface="enp1s0f0np0",
            hcas=("rocep1s0f0",),
            image=f"sha256:{'fedcba9876543210' * 4}",
            caches="/home/nv/.cache",
        )
        for n in range(profile.nodes)
    ]
    return command.containers(request, hosts)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("ds4-mtp", "ds4-flash"),
        ("ds4-dspark", "ds4-flash-ga"),
        ("ds41", "vllm0.33.0-nccl2.30.7-arm64"),
        ("glm53-2", "vllm0.33.0-nccl2.30.7-arm64"),
        ("single", "any"),
    ],
)
def test_the_real_profiles(name: str, variant: str, golden: Golden) -> None:
    ranks = made(name, variant)
    golden(f"launch-{name}.txt", "".join(f"{one.pasteable()}\n\n" for one in ranks[:2]))


def test_a_compose_file_and_json(golden: Golden) -> None:
    head = made("ds4-mtp", "ds4-flash")[0]
    golden("launch-compose.yaml", head.compose())
    golden("launch.json", json.dumps(head.to_dict(), indent=1) + "\n")
