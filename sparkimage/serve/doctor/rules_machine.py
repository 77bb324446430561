"""The doctor's rules of each machine: reach, Docker, GPU, memory, disk, clock. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from sparkimage.core.units import human
from sparkimage.nodes.session import MIN_MAJOR
from sparkimage.serve.doctor.diagnosis import Case, Finding, grouped, in_words, odd, version
from sparkimage.serve.doctor.facts import UNLIMITED, Facts
from sparkimage.serve.doctor.severity import Severity

CUDA = (13, 0)
"""The CUDA of our images; a driver that takes none of this major version runs none of them.
https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html"""
FULL = 1_000_000_000
"""Bytes free below which Docker cannot be counted on: containers, logs and caches need some."""
ROOM = 50_000_000_000
"""Bytes free that a next image of about 25 GB takes with its blobs on containerd's store."""
APART_S = 2.0
"""Seconds between two clocks from which on logs cannot be laid beside each other."""
WRONG_S = 60.0
"""Seconds from our clock from which on certificates and signatures may be refused."""
UNEVEN = 0.9
"""A machine with less than this part of the largest one's memory is a smaller one."""
TOOLKIT = (
    "there: sudo apt-get install nvidia-container-toolkit && sudo nvidia-ctk runtime configure "
    "--runtime=docker && sudo systemctl restart docker"
)
FLUSH = "there: sudo sh -c 'sync; echo 3 > /proc/sys/vm/drop_caches'"


def _say(name: str, severity: Severity, what: str, mend: str = "") -> Finding:
    return Finding(nodes=(name,), severity=severity, what=what, mend=mend)


def reach(case: Case) -> Iterator[Finding]:
    """A machine that cannot be asked; the others are examined all the same."""
    for one in case.patients:
        if one.error is not None:
            what = one.error.message.removeprefix(one.name).lstrip(": ")
            yield _say(one.name, Severity.FAIL, what, one.error.hint)


def distinct(case: Case) -> Iterator[Finding]:
    """Two names of one machine."""
    groups = grouped((one.name, f"{facts.host} {facts.boot}") for one, facts in case.known)
    for machine, names in groups.items():
        if len(names) > 1 and machine.strip() and not machine.endswith(" "):
            yield Finding(
                nodes=tuple(names), severity=Severity.FAIL,
                what=f"they are one machine, {machine.split()[0]}",
                mend="correct `control` of these nodes in the fleet file",
            )  # fmt: skip


def arch(case: Case) -> Iterator[Finding]:
    """Machines of several architectures."""
    groups = grouped((one.name, facts.arch) for one, facts in case.known)
    if len(groups) > 1:
        yield Finding(
            nodes=odd(groups), severity=Severity.FAIL,
            what=f"not of one architecture: {in_words(groups)}",
            mend="leave the odd ones out of --nodes",
        )  # fmt: skip


def system(case: Case) -> Iterator[Finding]:
    """Machines with several systems or kernels."""
    for what, groups in (
        ("systems", grouped((one.name, facts.os) for one, facts in case.known)),
        ("kernels", grouped((one.name, facts.kernel) for one, facts in case.known)),
    ):
        if len(groups) > 1:
            yield Finding(
                nodes=odd(groups), severity=Severity.INFO,
                what=f"several {what}: {in_words(groups)}",
                mend="there: sudo apt-get update && sudo apt-get dist-upgrade",
            )  # fmt: skip


# Docker


def docker(case: Case) -> Iterator[Finding]:
    """A Docker that cannot be used."""
    for one, facts in case.known:
        engine = facts.docker
        if engine.denied and one.node.sudo:
            yield _say(
                one.name, Severity.FAIL,
                f"{facts.user} may not call docker through sudo without a password",
                "there: a NOPASSWD rule for docker in sudoers; or "
                f"`sudo usermod -aG docker {facts.user}` and no `sudo: true` in the fleet file",
            )  # fmt: skip
        elif engine.denied:
            yield _say(
                one.name, Severity.FAIL, f"{facts.user} may not talk to its Docker",
                f"there: sudo usermod -aG docker {facts.user}; or `sudo: true` in the fleet file",
            )  # fmt: skip
        elif engine.missing:
            yield _say(
                one.name, Severity.FAIL, "it has no docker command",
                "install Docker there: https://docs.docker.com/engine/install/",
            )  # fmt: skip
        elif engine.late and not engine.version:
            yield _say(
                one.name, Severity.FAIL, "its Docker gives no answer: it hangs",
                "there: sudo systemctl restart docker; journalctl -u docker",
            )  # fmt: skip
        elif not engine.version:
            yield _say(
                one.name, Severity.FAIL,
                f"its Docker does not answer: {engine.error.splitlines()[-1]}",
                "there: sudo systemctl restart docker; journalctl -u docker",
            )  # fmt: skip
        elif version(engine.version) < MIN_MAJOR:
            yield _say(
                one.name, Severity.FAIL, f"its Docker {engine.version} is too old",
                "install 20.10 or newer: https://docs.docker.com/engine/install/",
            )  # fmt: skip


def engines(case: Case) -> Iterator[Finding]:
    """Engines that differ."""
    groups = grouped((one.name, facts.docker.version) for one, facts in case.known)
    if len(groups) > 1:
        yield Finding(
            nodes=odd(groups), severity=Severity.INFO,
            what=f"several versions of Docker: {in_words(groups)}",
            mend="there: sudo apt-get install --only-upgrade docker-ce docker.io",
        )  # fmt: skip
    stores = grouped((one.name, store(facts)) for one, facts in case.known)
    if len(stores) > 1:
        yield Finding(
            nodes=odd(stores), severity=Severity.INFO,
            what=f"several image stores: {in_words(stores)}",
        )  # fmt: skip


def store(facts: Facts) -> str:
    """The engine's image store."""
    return "containerd" if facts.docker.containerd else "overlay2"


def memlock(case: Case) -> Iterator[Finding]:
    """Memory that RDMA cannot pin."""
    for one, facts in case.known:
        if facts.docker.rootless and facts.memlock != UNLIMITED:
            yield _say(
                one.name, Severity.FAIL,
                f"its Docker is rootless, and its user may lock {limit(facts.memlock)} only",
                "there: printf '* - memlock unlimited\\n' | sudo tee "
                "/etc/security/limits.d/memlock.conf, then log in again",
            )  # fmt: skip
        elif facts.docker_memlock not in (None, UNLIMITED):
            yield _say(
                one.name, Severity.INFO,
                f"a container may lock {limit(facts.docker_memlock)} unless it is told otherwise",
                "docker run --ulimit memlock=-1:-1 …",
            )  # fmt: skip


def limit(count: int | None) -> str:
    """A limit in words."""
    if count is None:
        return "?"
    return "no limit" if count == UNLIMITED else human(count)


# GPU


def gpu(case: Case) -> Iterator[Finding]:
    """No GPU, or not those that are meant to be there."""
    for one, facts in case.known:
        wanted, found = one.node.gpus, len(facts.gpus)
        if wanted == 0 and not found:
            continue
        complaint = facts.smi_error.splitlines()[0] if facts.smi_error else ""
        if "version mismatch" in complaint:
            yield _say(
                one.name, Severity.FAIL,
                "the driver was upgraded, and the kernel still runs the old one"
                + (f" ({facts.module})" if facts.module else ""),
                "there: sudo reboot",
            )  # fmt: skip
        elif not facts.smi:
            yield _say(
                one.name, Severity.FAIL, "it has no nvidia-smi: there is no driver",
                "install it there: https://docs.nvidia.com/datacenter/tesla/"
                "driver-installation-guide/; on a DGX Spark: sudo apt-get install "
                "nvidia-driver-580-open; or leave the node out",
            )  # fmt: skip
        elif not found:
            yield _say(
                one.name, Severity.FAIL,
                f"nvidia-smi finds no GPU: {complaint or 'it says nothing'}",
                "there: sudo dmesg | grep -i nvrm; sudo reboot",
            )  # fmt: skip
        elif wanted is not None and found != wanted:
            yield _say(
                one.name, Severity.FAIL,
                f"nvidia-smi finds {found} GPUs, the fleet file says {wanted}",
                "correct `gpus` in the fleet file; there: nvidia-smi -L",
            )  # fmt: skip


def gpu_free(case: Case) -> Iterator[Finding]:
    """Something else computes on the GPU."""
    for one, facts in case.known:
        if facts.processes:
            more = f" and {len(facts.processes) - 1} more" if len(facts.processes) > 1 else ""
            pid, _, name = facts.processes[0].partition(", ")
            yield _say(
                one.name, Severity.WARN, f"{name} (process {pid}){more} computes on it",
                "there: docker ps, and docker stop what is not needed",
            )  # fmt: skip


def gpus_equal(case: Case) -> Iterator[Finding]:
    """Machines with other GPUs than the others have."""
    groups = grouped((one.name, models(facts)) for one, facts in case.known)
    if len(groups) > 1:
        same = len({len(facts.gpus) for _, facts in case.known}) == 1
        yield Finding(
            nodes=odd(groups), severity=Severity.WARN if same else Severity.FAIL,
            what=f"not the same GPUs everywhere: {in_words(groups)}",
            mend="leave the odd ones out of --nodes",
        )  # fmt: skip


def models(facts: Facts) -> str:
    """The names of the GPUs."""
    groups = grouped((str(one.index), one.name) for one in facts.gpus)
    return ", ".join(f"{len(all_)} x {name}" for name, all_ in groups.items())


def driver(case: Case) -> Iterator[Finding]:
    """A driver that is too old for our images."""
    for one, facts in case.known:
        if facts.cuda and version(facts.cuda) < CUDA:
            yield _say(
                one.name, Severity.FAIL,
                f"its driver {facts.driver} takes CUDA {facts.cuda}, our images need "
                f"{CUDA[0]}.{CUDA[1]}",
                "there: sudo apt-get install nvidia-driver-580-open && sudo reboot",
            )  # fmt: skip


def drivers_equal(case: Case) -> Iterator[Finding]:
    """Several drivers."""
    groups = grouped((one.name, facts.driver) for one, facts in case.known)
    if len(groups) > 1:
        yield Finding(
            nodes=odd(groups), severity=Severity.WARN,
            what=f"not the same driver everywhere: {in_words(groups)}",
            mend="there: sudo apt-get update && sudo apt-get dist-upgrade && sudo reboot",
        )  # fmt: skip


def gpus_flag(case: Case) -> Iterator[Finding]:
    """``--gpus all`` that cannot work."""
    for one, facts in case.known:
        if facts.gpus_flag:
            continue
        other = "; `--device nvidia.com/gpu=all` would do" if facts.has_cdi else ""
        yield _say(
            one.name, Severity.FAIL,
            f"`--gpus all` fails there: dockerd finds no nvidia-container-runtime-hook{other}",
            TOOLKIT,
        )  # fmt: skip


def nvidia_runtime(case: Case) -> Iterator[Finding]:
    """``--runtime nvidia`` that cannot work; nothing of ours needs it."""
    for one, facts in case.known:
        if not facts.nvidia_runtime:
            yield _say(
                one.name, Severity.INFO,
                "`--runtime nvidia` fails there: Docker has no such runtime; "
                + ("`--gpus all` does it" if facts.gpus_flag else "see `--gpus all`"),
                "there: sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl "
                "restart docker; or leave --runtime nvidia out",
            )  # fmt: skip


def cdi(case: Case) -> Iterator[Finding]:
    """Specifications that were made for another driver."""
    for one, facts in case.known:
        for spec in facts.cdi:
            if spec.driver and facts.driver and spec.driver != facts.driver:
                yield _say(
                    one.name, Severity.WARN,
                    f"{spec.file} was made for driver {spec.driver}, there is {facts.driver}",
                    f"there: sudo nvidia-ctk cdi generate --output={spec.file}",
                )  # fmt: skip


# Memory, disk, clock, packages


def memory(case: Case) -> Iterator[Finding]:
    """Too little memory, or less than the other machines have."""
    largest = max((facts.memory or 0 for _, facts in case.known), default=0)
    for one, facts in case.known:
        total, available = facts.memory or 0, facts.available or 0
        if total < UNEVEN * largest:
            yield _say(
                one.name, Severity.WARN,
                f"it has {human(total)} of memory, the largest {human(largest)}: the smallest "
                "one decides for all",
                "leave it out of --nodes, or lower --gpu-memory-utilization",
            )  # fmt: skip
        if facts.unified and available < case.utilization * total:
            yield _say(
                one.name, Severity.FAIL,
                f"{human(available)} of {human(total)} are available, vLLM wants "
                f"{case.utilization:.0%} of it: something else runs there",
                "there: docker ps; ps aux --sort=-rss | head",
            )  # fmt: skip


def share(part: int | None, whole: int | None) -> str:
    """A part of the memory in words."""
    return f"{(part or 0) / whole:.0%} of {human(whole)}" if whole else "?"


def page_cache(case: Case) -> Iterator[Finding]:
    """Memory of a unified machine that the page cache holds: CUDA does not count it as free."""
    for one, facts in case.known:
        total, free, available = facts.memory or 0, facts.free or 0, facts.available or 0
        if free < case.utilization * total <= available:
            yield _say(
                one.name, Severity.WARN,
                f"{human(free)} of {human(total)} are free and {human(available - free)} are in "
                f"the page cache; vLLM wants {case.utilization:.0%} free",
                FLUSH,
            )  # fmt: skip


def swap(case: Case) -> Iterator[Finding]:
    """Swap on a unified machine."""
    for one, facts in case.known:
        if facts.swap:
            yield _say(
                one.name, Severity.WARN, f"it has {human(facts.swap)} of swap",
                "there: sudo swapoff -a (until the next boot; for good: its line in /etc/fstab)",
            )  # fmt: skip


def disk(case: Case) -> Iterator[Finding]:
    """A disk with no room where Docker writes."""
    for one, facts in case.known:
        for of in ("docker", "containerd") if facts.docker.containerd else ("docker",):
            found = facts.disk(of)
            if found is None or found.free >= ROOM:
                continue
            yield _say(
                one.name, Severity.FAIL if found.free < FULL else Severity.WARN,
                f"{found.at}, where Docker keeps its images, has {human(found.free)} free of "
                f"{human(found.total)}",
                "python build.py gc; there: docker system df",
            )  # fmt: skip


def clock(case: Case) -> Iterator[Finding]:
    """Clocks that are wrong, or apart."""
    skews = {one.name: facts.skew_s for one, facts in case.known if facts.skew_s is not None}
    mend = "there: timedatectl; sudo timedatectl set-ntp true"
    wrong = [name for name, skew in skews.items() if abs(skew) > WRONG_S]
    for name in wrong:
        yield _say(
            name, Severity.FAIL, f"its clock is {skews[name]:+.0f} s off this machine's", mend
        )
    # This machine's counts as one of them.
    rest = sorted([0.0, *(skew for name, skew in skews.items() if name not in wrong)])
    middle = rest[len(rest) // 2]
    for name, skew in skews.items():
        if name not in wrong and abs(skew - middle) > APART_S:
            yield _say(
                name, Severity.WARN, f"its clock is {skew - middle:+.1f} s off the others'", mend
            )


def ntp(case: Case) -> Iterator[Finding]:
    """A clock that nobody keeps."""
    for one, facts in case.known:
        if facts.synced is False:
            yield _say(
                one.name, Severity.WARN, "its clock is not kept by NTP",
                "there: sudo timedatectl set-ntp true",
            )  # fmt: skip


MATTERS = ("nvidia", "cuda", "docker", "containerd", "linux-", "libnccl", "runc")
"""How the names of packages begin that a server of models stands on."""


def held(case: Case) -> Iterator[Finding]:
    """Packages that apt leaves as they are."""
    groups: dict[str, str] = {}
    for one, facts in case.known:
        groups[one.name] = ", ".join(kept(facts))
    differ = len(set(groups.values())) > 1
    for name, names in groups.items():
        if names:
            first = names.split(", ")[0]
            yield _say(
                name, Severity.WARN if differ else Severity.INFO,
                f"held back from upgrades{', and not so everywhere' if differ else ''}: {names}",
                f"there: sudo apt-mark unhold {first}; or hold it on every node",
            )  # fmt: skip


def kept(facts: Facts) -> list[str]:
    """Those of the held packages that matter here."""
    return [
        name
        for name in facts.held
        if name.startswith(MATTERS) or (name.startswith("lib") and "nvidia" in name)
    ]


def ports(case: Case) -> Iterator[Finding]:
    """Something else listens where the head is to listen."""
    for one, facts in case.known:
        if one.name != case.head.name:
            continue
        for port, what in ((case.port, "API"), (case.master_port, "ranks' meeting")):
            at = facts.listens(port)
            if at:
                option = "--port" if what == "API" else "--master-port"
                yield _say(
                    one.name, Severity.FAIL,
                    f"port {port}, of the {what}, is taken: something listens on {', '.join(at)}",
                    f"there: sudo ss -ltnp 'sport = :{port}'; or another {option}",
                )  # fmt: skip
