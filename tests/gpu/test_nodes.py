"""A node's engine hands out its GPUs; needs no image of ours."""

from __future__ import annotations

from tests.gpu.cluster import Cluster
from tests.lab.test_cdi import IMAGE, put_image


def test_each_node_gives_its_own_gpu(machine_nodes: Cluster) -> None:
    for node, number in zip(machine_nodes.nodes, machine_nodes.shares, strict=True):
        put_image(node)
        said = node.docker(
            "run", "--rm", "--network=none", "--device", "nvidia.com/gpu=all", IMAGE,
            "sh", "-c", "echo /dev/nvidia[0-9]*; ls /usr/lib/*/libcuda*; echo $NCCL_NVLS_ENABLE",
        ).splitlines()  # fmt: skip
        machine_nodes.results.note(**{f"{node.name} container": said})
        assert said[0] == f"/dev/nvidia{number}"
        assert said[-1] == "0"
