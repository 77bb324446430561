"""The doctor's checks of each node: reach, Docker, GPU, memory, disk, clock. Pure."""

from __future__ import annotations

from sparkimage.core.program import as_called
from sparkimage.core.units import human
from sparkimage.nodes.snapshot import SKEW_S, UNLIMITED, NodeSnapshot, version
from sparkimage.serve.doctor.checks import (
    FAIL,
    INFO,
    WARN,
    ClusterReport,
    Findings,
    check,
    differing,
    finding,
    grouped,
    node_check,
    several,
)  # fmt: skip

FULL = 1_000_000_000
"""Bytes free below which Docker does not work reliably: containers, logs and caches need some."""
ROOM = 50_000_000_000
"""Bytes free that the next image of about 25 GB takes with its blobs on the containerd store."""
APART_S = 2.0
"""Seconds between two clocks from which on their logs cannot be merged."""
UNEVEN = 0.9
"""A node with less than this part of the largest one's memory is a smaller one."""


def has_docker(node: NodeSnapshot) -> bool:
    """Its Docker answered."""
    return bool(node.docker.version)


def has_docker_and_gpus(node: NodeSnapshot) -> bool:
    """Its Docker answered, and nvidia-smi listed GPUs."""
    return has_docker(node) and bool(node.gpus)


def models(node: NodeSnapshot) -> str:
    """The models of the GPUs with their numbers."""
    groups = grouped((str(gpu.index), gpu.name) for gpu in node.gpus)
    return ", ".join(f"{len(indexes)} x {name}" for name, indexes in groups.items())


@check("reach", seen=lambda node: f"as {node.user}")
def reach(cluster: ClusterReport) -> Findings:
    """A node that cannot be reached; the others are examined all the same."""
    for node in cluster.nodes:
        if node.error is not None:
            what = node.error.message.removeprefix(node.name).lstrip(": ")
            yield finding("reach", node.name, what=what, fix=node.error.hint)


@check("distinct", applies=several, knows=lambda node: node.host and node.boot)
def distinct(cluster: ClusterReport) -> Findings:
    """Two names of one machine."""
    for machine, names in grouped((n.name, f"{n.host} {n.boot}") for n in cluster.known).items():
        if len(names) > 1:
            yield finding("distinct", *names, machine=machine.split()[0])


@check("arch", seen=lambda node: node.arch, applies=several)
def arch(cluster: ClusterReport) -> Findings:
    """Different architectures."""
    yield from differing("arch", cluster, lambda node: node.arch)


@check("system", seen=lambda node: f"{node.os}, {node.kernel}", applies=several)
def system(cluster: ClusterReport) -> Findings:
    """Different systems or kernels."""
    yield from differing("system/os", cluster, lambda node: node.os)
    yield from differing("system/kernel", cluster, lambda node: node.kernel)


def keeps_no_memory(node: NodeSnapshot) -> bool:
    """Its kernel is known to keep no memory for kexec; see the check ``cma``."""
    return node.cma_free is not None and node.cma_free <= (node.cma_total or 0)


@node_check("combinations", seen=lambda node: node.kernel)
def combinations(cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """A kernel, or the image's NCCL, that is known to fail on such nodes."""
    from sparkimage.serve.explain import failures

    for subject, what in (
        (f"kernel {node.kernel}", {"kernel": node.kernel}),
        (f"NCCL {cluster.nccl}", {"nccl": cluster.nccl or None}),
    ):
        gpus = [gpu.name for gpu in node.gpus] or None
        for one in failures.known().known_of(**what, gpus=gpus, nodes=len(cluster.nodes)):
            # What such a kernel does is not seen where nothing was kept from RDMA.
            warn = one.warn and not (one.kernel and keeps_no_memory(node))
            yield finding(
                "combinations", severity=WARN if warn else INFO,
                subject=subject, known=one.known, fix=as_called(one.fix), source=one.sources[0],
            )  # fmt: skip


# Docker


@node_check("docker", seen=lambda node: node.docker.version or "no answer")
def docker(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """A Docker that cannot be used."""
    if (error := node.docker_error()) is not None:
        yield finding("docker", what=error.message.removeprefix(f"{node.name}: "), fix=error.hint)


@check(
    "engines",
    seen=lambda node: f"{node.docker.version} {node.docker.store}",
    applies=several,
    knows=has_docker,
)
def engines(cluster: ClusterReport) -> Findings:
    """Different engines."""
    yield from differing("engines/version", cluster, lambda node: node.docker.version)
    yield from differing("engines/store", cluster, lambda node: node.docker.store)


@node_check(
    "memlock",
    seen=lambda node: limit(node.memlock if node.docker_memlock is None else node.docker_memlock),
    knows=has_docker,
)
def memlock(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """Memory that RDMA cannot pin."""
    if node.docker.rootless and node.memlock != UNLIMITED:
        yield finding("memlock/rootless", limit=limit(node.memlock))
    elif node.docker_memlock not in (None, UNLIMITED):
        yield finding("memlock/container", limit=limit(node.docker_memlock))


def limit(count: int | None) -> str:
    """A memlock limit for people."""
    if count is None:
        return "?"
    return "no limit" if count == UNLIMITED else human(count)


# GPU


@node_check("gpu", seen=lambda node: models(node) or "none")
def gpu(cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """No GPU, or another number of them than expected."""
    wanted, count = node.node.gpus, len(node.gpus)
    error = node.smi_error.partition("\n")[0]
    if wanted == 0 and not count and not cluster.gpus:
        return
    if "version mismatch" in error:
        yield finding("gpu/mismatch", module=f" ({node.module})" if node.module else "")
    elif not node.smi:
        yield finding("gpu/no-driver")
    elif not count:
        yield finding("gpu/none", error=error or "it prints nothing")
    elif wanted is not None and count != wanted:
        yield finding("gpu/fleet", count=count, wanted=wanted)
    elif count < cluster.gpus:
        yield finding("gpu/profile", count=count, wanted=cluster.gpus)


@node_check(
    "gpu-free", seen=lambda node: f"{len(node.processes)} processes", knows=lambda node: node.gpus
)
def gpu_free(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """Another process on the GPU."""
    if node.processes:
        more = f" and {len(node.processes) - 1} more" if len(node.processes) > 1 else ""
        pid, _, name = node.processes[0].partition(", ")
        yield finding("gpu-free", name=name, pid=pid, more=more)


@check("gpus-equal", seen=models, applies=several, knows=lambda node: node.gpus)
def gpus_equal(cluster: ClusterReport) -> Findings:
    """Different GPUs, or different numbers of them."""
    same_number = len({len(node.gpus) for node in cluster.known}) == 1
    yield from differing("gpus-equal", cluster, models, severity=WARN if same_number else FAIL)


@node_check(
    "driver",
    seen=lambda node: f"{node.driver}, CUDA {node.cuda}",
    knows=lambda node: node.gpus and node.cuda,
)
def driver(cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """A driver that is too old for our images: one of their major version runs them.

    https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
    """
    if version(node.cuda)[:1] < version(cluster.cuda)[:1]:
        yield finding("driver", node=node, needed=cluster.cuda)


@check(
    "drivers-equal", seen=lambda node: node.driver, applies=several, knows=lambda node: node.driver
)
def drivers_equal(cluster: ClusterReport) -> Findings:
    """Different drivers."""
    yield from differing("drivers-equal", cluster, lambda node: node.driver)


@node_check(
    "gpus-flag",
    seen=lambda node: "hook" if node.has_hook else "CDI" if node.has_cdi else "no",
    knows=has_docker_and_gpus,
)
def gpus_flag(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """An engine that can give its GPUs to no container."""
    if not node.gives_gpus:
        other = [name for name in node.docker.cdi_devices if name.startswith("nvidia.com/gpu=")]
        yield finding("gpus-flag", other=f"; it has only {', '.join(other)}" if other else "")


@node_check(
    "nvidia-runtime",
    seen=lambda node: "registered" if "nvidia" in node.docker.runtimes else "not registered",
    knows=has_docker_and_gpus,
)
def nvidia_runtime(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """``--runtime nvidia`` that cannot work; our commands do not need it."""
    if "nvidia" not in node.docker.runtimes:
        works = f"`{' '.join(node.gpu_options)}` works"
        other = works if node.gives_gpus else "see `gpus-flag`"
        yield finding("nvidia-runtime", other=other)


@node_check(
    "cdi",
    seen=lambda node: (
        ", ".join(f"{spec.kind} {spec.driver}".strip() for spec in node.cdi) or "none"
    ),
    knows=has_docker_and_gpus,
)
def cdi(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """CDI specifications for another driver."""
    for spec in node.cdi:
        if spec.driver and node.driver and spec.driver != node.driver:
            yield finding("cdi", spec=spec, node=node)


# Memory, disk, clock, packages


@node_check(
    "memory",
    seen=lambda node: share(node.available, node.memory),
    knows=lambda node: node.memory is not None and node.available is not None,
)
def memory(cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """Too little memory, or less than the other nodes have."""
    largest = max(other.memory or 0 for other in cluster.known)
    total, available = node.memory or 0, node.available or 0
    if total < UNEVEN * largest:
        yield finding("memory/smaller", total=human(total), largest=human(largest))
    if node.unified and available < cluster.utilization * total:
        yield finding(
            "memory/used", available=human(available), total=human(total),
            utilization=cluster.utilization,
        )  # fmt: skip


def share(part: int | None, whole: int | None) -> str:
    """A part of the memory for people."""
    return f"{(part or 0) / whole:.0%} of {human(whole)}" if whole else "?"


@node_check(
    "page-cache",
    seen=lambda node: f"{share(node.free, node.memory)} free",
    knows=lambda node: node.unified and node.free is not None,
)
def page_cache(cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """Memory of a unified machine in the page cache: CUDA does not count it as free."""
    total, free, available = node.memory or 0, node.free or 0, node.available or 0
    if free < cluster.utilization * total <= available:
        yield finding(
            "page-cache", free=human(free), total=human(total), cached=human(available - free),
            utilization=cluster.utilization,
        )  # fmt: skip


@node_check(
    "swap",
    seen=lambda node: human(node.swap) if node.swap else "none",
    knows=lambda node: node.unified,
)
def swap(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """Swap on a unified machine."""
    if node.swap:
        yield finding("swap", swap=human(node.swap))


@node_check(
    "disk",
    seen=lambda node: f"{human(node.image_disks[0].free)} free",
    knows=lambda node: node.disk("docker") is not None,
)
def disk(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """Too little space where Docker writes."""
    for one in node.image_disks:
        if one.free < ROOM:
            case = "full" if one.free < FULL else "low"
            yield finding(f"disk/{case}", at=one.at, free=human(one.free), total=human(one.total))


@node_check(
    "clock",
    seen=lambda node: f"{round(node.skew_s or 0, 1) + 0.0:+.1f} s",
    knows=lambda node: node.skew_s is not None,
)
def clock(cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """Clocks that are wrong, or apart."""
    skew = node.skew_s or 0.0
    # This machine's clock is one of them.
    right = sorted([0.0, *(s for one in cluster.known if abs(s := one.skew_s or 0.0) <= SKEW_S)])
    middle = right[len(right) // 2]
    if abs(skew) > SKEW_S:
        yield finding("clock/wrong", skew=skew)
    elif abs(skew - middle) > APART_S:
        yield finding("clock/apart", skew=skew - middle)


@node_check(
    "ntp",
    seen=lambda node: "synchronised" if node.synced else "not synchronised",
    knows=lambda node: node.synced is not None,
)
def ntp(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """A clock without NTP."""
    if node.synced is False:
        yield finding("ntp")


RELEVANT = ("nvidia", "cuda", "docker", "containerd", "linux-", "libnccl", "runc")
"""Prefixes of the packages that a model server depends on."""


@node_check("held", seen=lambda node: held_packages(node) or "none")
def held(cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """Packages that apt holds back."""
    differs = len({held_packages(other) for other in cluster.known}) > 1
    if names := held_packages(node):
        first = names.partition(", ")[0]
        yield finding("held/differs" if differs else "held/same", names=names, first=first)


def held_packages(node: NodeSnapshot) -> str:
    """The held packages that matter here."""
    return ", ".join(
        name
        for name in node.held
        if name.startswith(RELEVANT) or (name.startswith("lib") and "nvidia" in name)
    )


@node_check("ports")
def ports(cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """A port of the head that is in use."""
    wanted = [(cluster.port, "API", "--port")]
    if cluster.several:
        wanted.append((cluster.master_port, "ranks", "--master-port"))
    for port, what, option in wanted if node.name == cluster.head else ():
        if addresses := node.listens(port):
            yield finding(
                "ports", port=port, what=what, addresses=", ".join(addresses), option=option
            )
