"""The doctor's checks of each node: reach, Docker, GPU, memory, disk, clock. Pure."""

from __future__ import annotations

from sparkimage.core.units import human
from sparkimage.nodes.snapshot import MIN_CUDA, SKEW_S, UNLIMITED, NodeSnapshot, version
from sparkimage.serve.doctor.checks import (
    FAIL,
    INFO,
    WARN,
    ClusterReport,
    Finding,
    Findings,
    check,
    differing,
    each,
    found,
    grouped,
    several,
)

FULL = 1_000_000_000
"""Bytes free below which Docker cannot be counted on: containers, logs and caches need some."""
ROOM = 50_000_000_000
"""Bytes free that a next image of about 25 GB takes with its blobs on containerd's store."""
APART_S = 2.0
"""Seconds between two clocks from which on logs cannot be laid beside each other."""
UNEVEN = 0.9
"""A node with less than this part of the largest one's memory is a smaller one."""
TOOLKIT = (
    "there: sudo apt-get install nvidia-container-toolkit && sudo nvidia-ctk runtime configure "
    "--runtime=docker && sudo systemctl restart docker"
)
FLUSH = "there: sudo sh -c 'sync; echo 3 > /proc/sys/vm/drop_caches'"
UPGRADE = "there: sudo apt-get update && sudo apt-get dist-upgrade"
LEAVE_OUT = "leave the odd ones out of --nodes"


def has_docker(node: NodeSnapshot) -> bool:
    """Its Docker answered."""
    return bool(node.docker.version)


def has_docker_and_gpus(node: NodeSnapshot) -> bool:
    """Both answered."""
    return has_docker(node) and bool(node.gpus)


def models(node: NodeSnapshot) -> str:
    """The names of the GPUs."""
    groups = grouped((str(one.index), one.name) for one in node.gpus)
    return ", ".join(f"{len(all_)} x {name}" for name, all_ in groups.items())


@check("reach", seen=lambda node: f"as {node.user}")
def reach(cluster: ClusterReport) -> Findings:
    """A node that cannot be asked; the others are examined all the same."""
    for one in cluster.nodes:
        if one.error is not None:
            what = one.error.message.removeprefix(one.name).lstrip(": ")
            yield Finding(nodes=(one.name,), severity=FAIL, what=what, fix=one.error.hint)


@check("distinct", applies=several, knows=lambda node: node.host and node.boot)
def distinct(cluster: ClusterReport) -> Findings:
    """Two names of one machine."""
    for machine, names in grouped((n.name, f"{n.host} {n.boot}") for n in cluster.known).items():
        if len(names) > 1:
            yield Finding(
                nodes=tuple(names), severity=FAIL,
                what=f"they are one machine, {machine.split()[0]}",
                fix="correct `control` of these nodes in the fleet file",
            )  # fmt: skip


@check("arch", seen=lambda node: node.arch, applies=several)
def arch(cluster: ClusterReport) -> Findings:
    """Nodes of several architectures."""
    yield from differing(cluster, lambda n: n.arch, FAIL, "not of one architecture", LEAVE_OUT)


@check("system", seen=lambda node: f"{node.os}, {node.kernel}", applies=several)
def system(cluster: ClusterReport) -> Findings:
    """Nodes with several systems or kernels."""
    yield from differing(cluster, lambda node: node.os, INFO, "several systems", UPGRADE)
    yield from differing(cluster, lambda node: node.kernel, INFO, "several kernels", UPGRADE)


# Docker


@check("docker", seen=lambda node: node.docker.version or "no answer")
@each
def docker(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """A Docker that cannot be used."""
    error = node.docker_error()
    if error is not None:
        yield found(FAIL, error.message.removeprefix(f"{node.name}: "), error.hint)


@check(
    "engines",
    seen=lambda node: f"{node.docker.version} {node.docker.store}",
    applies=several,
    knows=has_docker,
)
def engines(cluster: ClusterReport) -> Findings:
    """Engines that differ."""
    fix = "there: sudo apt-get install --only-upgrade docker-ce docker.io"
    what = "several versions of Docker"
    yield from differing(cluster, lambda node: node.docker.version, INFO, what, fix)
    yield from differing(cluster, lambda node: node.docker.store, INFO, "several image stores")


@check(
    "memlock",
    seen=lambda node: limit(node.memlock if node.docker_memlock is None else node.docker_memlock),
    knows=has_docker,
)
@each
def memlock(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """Memory that RDMA cannot pin."""
    if node.docker.rootless and node.memlock != UNLIMITED:
        yield found(
            FAIL, f"its Docker is rootless, and its user may lock {limit(node.memlock)} only",
            "there: printf '* - memlock unlimited\\n' | sudo tee "
            "/etc/security/limits.d/memlock.conf, then log in again",
        )  # fmt: skip
    elif node.docker_memlock not in (None, UNLIMITED):
        yield found(
            INFO,
            f"a container may lock {limit(node.docker_memlock)} unless it is told otherwise",
            "docker run --ulimit memlock=-1:-1 …",
        )


def limit(count: int | None) -> str:
    """A limit in words."""
    if count is None:
        return "?"
    return "no limit" if count == UNLIMITED else human(count)


# GPU


@check("gpu", seen=lambda node: models(node) or "none")
@each
def gpu(cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """No GPU, or not those that are meant to be there."""
    wanted, count = node.node.gpus, len(node.gpus)
    complaint = node.smi_error.partition("\n")[0]
    if wanted == 0 and not count and not cluster.gpus:
        return
    if "version mismatch" in complaint:
        module = f" ({node.module})" if node.module else ""
        yield found(
            FAIL, f"the driver was upgraded, and the kernel still runs the old one{module}",
            "there: sudo reboot",
        )  # fmt: skip
    elif not node.smi:
        yield found(
            FAIL, "it has no nvidia-smi: there is no driver",
            "install it there: https://docs.nvidia.com/datacenter/tesla/"
            "driver-installation-guide/; on a DGX Spark: sudo apt-get install "
            "nvidia-driver-580-open; or leave the node out",
        )  # fmt: skip
    elif not count:
        yield found(
            FAIL, f"nvidia-smi finds no GPU: {complaint or 'it says nothing'}",
            "there: sudo dmesg | grep -i nvrm; sudo reboot",
        )  # fmt: skip
    elif wanted is not None and count != wanted:
        yield found(
            FAIL, f"nvidia-smi finds {count} GPUs, the fleet file says {wanted}",
            "correct `gpus` in the fleet file; there: nvidia-smi -L",
        )  # fmt: skip
    elif count < cluster.gpus:
        yield found(
            FAIL, f"nvidia-smi finds {count} GPUs, the profile wants {cluster.gpus}",
            "take another profile, or other nodes",
        )  # fmt: skip


@check(
    "gpu-free", seen=lambda node: f"{len(node.processes)} processes", knows=lambda node: node.gpus
)
@each
def gpu_free(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """Something else computes on the GPU."""
    if node.processes:
        more = f" and {len(node.processes) - 1} more" if len(node.processes) > 1 else ""
        pid, _, name = node.processes[0].partition(", ")
        yield found(
            WARN, f"{name} (process {pid}){more} computes on it",
            "there: docker ps, and docker stop what is not needed",
        )  # fmt: skip


@check("gpus-equal", seen=models, applies=several, knows=lambda node: node.gpus)
def gpus_equal(cluster: ClusterReport) -> Findings:
    """Nodes with other GPUs than the others have."""
    same = len({len(node.gpus) for node in cluster.known}) == 1
    what = "not the same GPUs everywhere"
    yield from differing(cluster, models, WARN if same else FAIL, what, LEAVE_OUT)


@check(
    "driver",
    seen=lambda node: f"{node.driver}, CUDA {node.cuda}",
    knows=lambda node: node.gpus and node.cuda,
)
@each
def driver(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """A driver that is too old for our images."""
    if version(node.cuda) < MIN_CUDA:
        needed = ".".join(map(str, MIN_CUDA))
        yield found(
            FAIL, f"its driver {node.driver} takes CUDA {node.cuda}, our images need {needed}",
            "there: sudo apt-get install nvidia-driver-580-open && sudo reboot",
        )  # fmt: skip


@check(
    "drivers-equal", seen=lambda node: node.driver, applies=several, knows=lambda node: node.driver
)
def drivers_equal(cluster: ClusterReport) -> Findings:
    """Several drivers."""
    what, fix = "not the same driver everywhere", f"{UPGRADE} && sudo reboot"
    yield from differing(cluster, lambda node: node.driver, WARN, what, fix)


@check(
    "gpus-flag",
    seen=lambda node: "hook" if node.has_hook else "CDI" if node.gpus_flag else "no",
    knows=has_docker_and_gpus,
)
@each
def gpus_flag(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """``--gpus all`` that cannot work."""
    if not node.gpus_flag:
        other = "; `--device nvidia.com/gpu=all` would do" if node.has_cdi else ""
        what = f"`--gpus all` fails there: dockerd finds no nvidia-container-runtime-hook{other}"
        yield found(FAIL, what, TOOLKIT)


@check(
    "nvidia-runtime",
    seen=lambda node: "registered" if "nvidia" in node.docker.runtimes else "not registered",
    knows=has_docker_and_gpus,
)
@each
def nvidia_runtime(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """``--runtime nvidia`` that cannot work; nothing of ours needs it."""
    if "nvidia" not in node.docker.runtimes:
        other = "`--gpus all` does it" if node.gpus_flag else "see `--gpus all`"
        yield found(
            INFO, f"`--runtime nvidia` fails there: Docker has no such runtime; {other}",
            "there: sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart "
            "docker; or leave --runtime nvidia out",
        )  # fmt: skip


@check(
    "cdi",
    seen=lambda node: ", ".join(f"{one.kind} {one.driver}".strip() for one in node.cdi) or "none",
    knows=has_docker_and_gpus,
)
@each
def cdi(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """Specifications that were made for another driver."""
    for spec in node.cdi:
        if spec.driver and node.driver and spec.driver != node.driver:
            yield found(
                WARN, f"{spec.file} was made for driver {spec.driver}, there is {node.driver}",
                f"there: sudo nvidia-ctk cdi generate --output={spec.file}",
            )  # fmt: skip


# Memory, disk, clock, packages


@check(
    "memory",
    seen=lambda node: share(node.available, node.memory),
    knows=lambda node: node.memory is not None and node.available is not None,
)
@each
def memory(cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """Too little memory, or less than the other nodes have."""
    largest = max(one.memory or 0 for one in cluster.known)
    total, available = node.memory or 0, node.available or 0
    if total < UNEVEN * largest:
        yield found(
            WARN,
            f"it has {human(total)} of memory, the largest {human(largest)}: the smallest one "
            "decides for all",
            "leave it out of --nodes, or lower --gpu-memory-utilization",
        )
    if node.unified and available < cluster.utilization * total:
        yield found(
            FAIL,
            f"{human(available)} of {human(total)} are available, vLLM wants "
            f"{cluster.utilization:.0%} of it: something else runs there",
            "there: docker ps; ps aux --sort=-rss | head",
        )


def share(part: int | None, whole: int | None) -> str:
    """A part of the memory in words."""
    return f"{(part or 0) / whole:.0%} of {human(whole)}" if whole else "?"


@check(
    "page-cache",
    seen=lambda node: f"{share(node.free, node.memory)} free",
    knows=lambda node: node.unified and node.free is not None,
)
@each
def page_cache(cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """Memory of a unified machine that the page cache holds: CUDA does not count it as free."""
    total, free, available = node.memory or 0, node.free or 0, node.available or 0
    if free < cluster.utilization * total <= available:
        yield found(
            WARN,
            f"{human(free)} of {human(total)} are free and {human(available - free)} are in the "
            f"page cache; vLLM wants {cluster.utilization:.0%} free",
            FLUSH,
        )


@check(
    "swap",
    seen=lambda node: human(node.swap) if node.swap else "none",
    knows=lambda node: node.unified,
)
@each
def swap(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """Swap on a unified machine."""
    if node.swap:
        yield found(
            WARN, f"it has {human(node.swap)} of swap",
            "there: sudo swapoff -a (until the next boot; for good: its line in /etc/fstab)",
        )  # fmt: skip


@check(
    "disk",
    seen=lambda node: f"{human(node.image_disks[0].free)} free",
    knows=lambda node: node.disk("docker") is not None,
)
@each
def disk(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """A disk with no room where Docker writes."""
    for one in node.image_disks:
        if one.free < ROOM:
            yield found(
                FAIL if one.free < FULL else WARN,
                f"{one.at}, where Docker keeps its images, has {human(one.free)} free of "
                f"{human(one.total)}",
                "python build.py gc; there: docker system df",
            )


@check(
    "clock",
    seen=lambda node: f"{round(node.skew_s or 0, 1) + 0.0:+.1f} s",
    knows=lambda node: node.skew_s is not None,
)
@each
def clock(cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """Clocks that are wrong, or apart."""
    fix = "there: timedatectl; sudo timedatectl set-ntp true"
    skew = node.skew_s or 0.0
    # This machine's counts as one of them.
    right = sorted([0.0, *(s for one in cluster.known if abs(s := one.skew_s or 0.0) <= SKEW_S)])
    middle = right[len(right) // 2]
    if abs(skew) > SKEW_S:
        yield found(FAIL, f"its clock is {skew:+.0f} s off this machine's", fix)
    elif abs(skew - middle) > APART_S:
        yield found(WARN, f"its clock is {skew - middle:+.1f} s off the others'", fix)


@check(
    "ntp",
    seen=lambda node: "kept" if node.synced else "not kept",
    knows=lambda node: node.synced is not None,
)
@each
def ntp(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """A clock that nobody keeps."""
    if node.synced is False:
        yield found(WARN, "its clock is not kept by NTP", "there: sudo timedatectl set-ntp true")


MATTERS = ("nvidia", "cuda", "docker", "containerd", "linux-", "libnccl", "runc")
"""How the names of packages begin that a server of models stands on."""


@check("held", seen=lambda node: kept(node) or "none")
@each
def held(cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """Packages that apt leaves as they are."""
    differ = len({kept(one) for one in cluster.known}) > 1
    if names := kept(node):
        first = names.split(", ")[0]
        yield found(
            WARN if differ else INFO,
            f"held back from upgrades{', and not so everywhere' if differ else ''}: {names}",
            f"there: sudo apt-mark unhold {first}; or hold it on every node",
        )


def kept(node: NodeSnapshot) -> str:
    """Those of the held packages that matter here."""
    return ", ".join(
        name
        for name in node.held
        if name.startswith(MATTERS) or (name.startswith("lib") and "nvidia" in name)
    )


@check("ports")
@each
def ports(cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """Something else listens where the head is to listen."""
    wanted = [(cluster.port, "API", "--port")]
    if cluster.several:
        wanted.append((cluster.master_port, "ranks' meeting", "--master-port"))
    for port, what, option in wanted if node.name == cluster.head else ():
        if at := node.listens(port):
            yield found(
                FAIL,
                f"port {port}, of the {what}, is taken: something listens on {', '.join(at)}",
                f"there: sudo ss -ltnp 'sport = :{port}'; or another {option}",
            )
