"""The doctor's checks, and its diagnosis of machines before anything is started. Pure."""

from __future__ import annotations

from importlib import resources

from sparkimage.core.units import human
from sparkimage.serve.doctor import rules_machine as machine
from sparkimage.serve.doctor import rules_model as model
from sparkimage.serve.doctor import rules_network as network
from sparkimage.serve.doctor.diagnosis import Case, Check, Diagnosis, Patient
from sparkimage.serve.doctor.facts import Facts
from sparkimage.serve.doctor.severity import Severity

UNIFIED = "https://github.com/vllm-project/vllm/issues/35313"
CDI = "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/cdi-support.html"
SPARKS = "https://github.com/eugr/spark-vllm-docker/blob/main/docs/NETWORKING.md"


def _engine(_patient: Patient, facts: Facts) -> bool:
    return bool(facts.docker.version)


def _gpus(_patient: Patient, facts: Facts) -> bool:
    return bool(facts.gpus)


def _engine_and_gpus(patient: Patient, facts: Facts) -> bool:
    return _engine(patient, facts) and _gpus(patient, facts)


def _unified(_patient: Patient, facts: Facts) -> bool:
    return facts.unified


def _link(patient: Patient, _facts: Facts) -> bool:
    return patient.link is not None


def _folder(_patient: Patient, facts: Facts) -> bool:
    return facts.model.state == "folder" and not facts.model.late and bool(facts.model.files)


def _cluster(case: Case) -> bool:
    return case.cluster


def _by_rdma(case: Case) -> bool:
    return case.cluster and case.rdma


def _with_model(case: Case) -> bool:
    return bool(case.model)


def _models_everywhere(case: Case) -> bool:
    return case.cluster and bool(case.model)


CHECKS: tuple[Check, ...] = (
    Check(
        id="reach",
        title="it answers",
        why="A node that cannot be asked cannot be given a server either. Host keys are always "
        "checked and no password is ever asked for, so both must be settled by hand, once.",
        rule=machine.reach,
        seen=lambda _patient, facts: f"as {facts.user}",
    ),
    Check(
        id="distinct",
        title="it is a machine of its own",
        why="Two ranks on one machine fight for its GPU and its ports.",
        rule=machine.distinct,
        seen=lambda _patient, _facts: "",
        applies=_cluster,
        knows=lambda _patient, facts: bool(facts.host and facts.boot),
    ),
    Check(
        id="arch",
        title="one architecture",
        why="One image by one digest runs on all nodes.",
        rule=machine.arch,
        seen=lambda _patient, facts: facts.arch,
        applies=_cluster,
    ),
    Check(
        id="system",
        title="one system",
        why="What works on one node and not on the other is found sooner where both run the same "
        "system and kernel.",
        rule=machine.system,
        seen=lambda _patient, facts: f"{facts.os}, {facts.kernel}",
        applies=_cluster,
        worst=Severity.INFO,
    ),
    Check(
        id="docker",
        title="Docker can be used",
        why="Everything runs in it.",
        rule=machine.docker,
        seen=lambda _patient, facts: facts.docker.version or "no answer",
    ),
    Check(
        id="engines",
        title="one Docker everywhere",
        why="Nothing of ours needs it; `docker load`, `--gpus` and image ids differ between "
        "versions and stores, which costs time when something else is wrong.",
        rule=machine.engines,
        seen=lambda _patient, facts: f"{facts.docker.version} {machine.store(facts)}",
        applies=_cluster,
        knows=_engine,
        worst=Severity.INFO,
    ),
    Check(
        id="gpu",
        title="the GPUs are there",
        why="A server without its GPU ends after minutes of loading, or loads a CPU build.",
        rule=machine.gpu,
        seen=lambda _patient, facts: machine.models(facts) or "none",
    ),
    Check(
        id="gpu-free",
        title="nothing else is on the GPUs",
        why="A second server finds too little memory, or is found too slow. On a unified machine "
        "it takes the memory of the system, too.",
        rule=machine.gpu_free,
        seen=lambda _patient, facts: f"{len(facts.processes)} processes",
        knows=_gpus,
        worst=Severity.WARN,
    ),
    Check(
        id="gpus-equal",
        title="the same GPUs everywhere",
        why="Tensor parallelism cuts every layer into equal parts: the smallest GPU decides, and "
        "kernels are compiled for one architecture.",
        rule=machine.gpus_equal,
        seen=lambda _patient, facts: machine.models(facts),
        applies=_cluster,
        knows=_gpus,
    ),
    Check(
        id="driver",
        title="the driver takes CUDA 13",
        why="An image of CUDA 13 needs a driver of that major version: with an older one the "
        "container starts and its first CUDA call fails.",
        rule=machine.driver,
        seen=lambda _patient, facts: f"{facts.driver}, CUDA {facts.cuda}",
        knows=lambda _patient, facts: bool(facts.gpus and facts.cuda),
        sources=(
            "https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html",
        ),
    ),
    Check(
        id="drivers-equal",
        title="one driver everywhere",
        why="Ranks with different drivers may compile different kernels and fail in different "
        "ways.",
        rule=machine.drivers_equal,
        seen=lambda _patient, facts: facts.driver,
        applies=_cluster,
        knows=lambda _patient, facts: bool(facts.driver),
        worst=Severity.WARN,
    ),
    Check(
        id="gpus-flag",
        title="`--gpus all` works",
        why="dockerd takes the flag only when it finds nvidia-container-runtime-hook in its PATH "
        "as it starts; from 29 on also with nvidia-cdi-hook and a CDI specification.",
        rule=machine.gpus_flag,
        seen=lambda _patient, facts: (
            "hook" if facts.has_hook else "CDI" if facts.gpus_flag else "no"
        ),
        knows=_engine_and_gpus,
        sources=(
            "https://github.com/moby/moby/blob/master/daemon/nvidia_linux.go",
            "https://github.com/moby/moby/pull/50228",
        ),
    ),
    Check(
        id="nvidia-runtime",
        title="the nvidia runtime",
        why="Many recipes write it; where the runtime is not registered Docker refuses the whole "
        "command (`unknown or invalid runtime name: nvidia`). Our commands use `--gpus all`, "
        "which does not need it.",
        rule=machine.nvidia_runtime,
        seen=lambda _patient, facts: "registered" if facts.nvidia_runtime else "not registered",
        knows=_engine_and_gpus,
        worst=Severity.INFO,
    ),
    Check(
        id="cdi",
        title="CDI fits the driver",
        why="A CDI specification names every library of one driver. After an upgrade it names "
        "files that are gone, and containers do not start.",
        rule=machine.cdi,
        seen=lambda _patient, facts: (
            ", ".join(f"{one.kind} {one.driver}".strip() for one in facts.cdi) or "none"
        ),
        knows=_engine_and_gpus,
        worst=Severity.WARN,
        sources=(CDI,),
    ),
    Check(
        id="rdma",
        title="RDMA on the data interface",
        why="Without it NCCL falls back to sockets without a word (`via NET/Socket`), at a "
        "fraction of the speed. `--no-rdma` where that is what you want.",
        rule=network.rdma,
        seen=lambda _patient, facts: (
            ", ".join(port.device for port in facts.rdma if port.active) or "none"
        ),
        applies=_by_rdma,
    ),
    Check(
        id="verbs",
        title="/dev/infiniband is there",
        why="A container reaches RDMA through its verbs devices (uverbs0, …). Where the folder is "
        "missing, Docker refuses the container.",
        rule=network.verbs,
        seen=lambda _patient, facts: ", ".join(facts.verbs) or "none",
        applies=_by_rdma,
    ),
    Check(
        id="hca",
        title="its RDMA devices",
        why="NCCL passes over a device of NCCL_IB_HCA that is not there. A DGX Spark shows each "
        "of its plugs as two devices, each good for half of the rate: NCCL needs both.",
        rule=network.hca,
        seen=lambda patient, _facts: ", ".join(patient.hcas),
        applies=_by_rdma,
        knows=lambda patient, _facts: bool(patient.hcas),
        sources=(SPARKS,),
    ),
    Check(
        id="interface",
        title="the data interface",
        why="NCCL and GLOO are told its name (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME); with a "
        "wrong one the ranks never find each other.",
        rule=network.interface,
        seen=lambda patient, _facts: patient.link.name if patient.link is not None else "none",
        applies=_cluster,
    ),
    Check(
        id="network",
        title="one network",
        why="Ranks that reach each other through a router have its speed and no RDMA; most often "
        "it is a wrong address.",
        rule=network.one_network,
        seen=lambda patient, _facts: patient.network,
        applies=_cluster,
        knows=_link,
        worst=Severity.WARN,
    ),
    Check(
        id="subnets",
        title="one interface a network",
        why="With two interfaces in one network the kernel answers over either of them: what "
        "comes in by the fast one goes out by the other. The two interfaces of one plug of a DGX "
        "Spark need a network each.",
        rule=network.subnets,
        seen=lambda _patient, _facts: "",
        applies=_cluster,
        worst=Severity.WARN,
        sources=(SPARKS,),
    ),
    Check(
        id="speed",
        title="its speed",
        why="Every token crosses the network once per layer: over the management interface "
        "several machines are slower than one.",
        rule=network.speed,
        seen=lambda patient, _facts: network.rate(patient.link),
        applies=_cluster,
        knows=_link,
        worst=Severity.WARN,
        sources=(SPARKS,),
    ),
    Check(
        id="mtu",
        title="its MTU",
        why="With frames of 1500 bytes a network of 100 Gbit/s and more keeps the processor "
        "busy; with frames of several sizes large messages vanish while pings pass.",
        rule=network.mtu,
        seen=lambda patient, _facts: network.packet(patient),
        applies=_cluster,
        knows=_link,
        worst=Severity.WARN,
        sources=(SPARKS,),
    ),
    Check(
        id="memlock",
        title="memory can be locked",
        why="RDMA pins its buffers. Our commands say `--ulimit memlock=-1:-1`, which a rootless "
        "Docker may not grant; a command written by hand needs it too.",
        rule=machine.memlock,
        seen=lambda _patient, facts: machine.limit(
            facts.memlock if facts.docker_memlock is None else facts.docker_memlock
        ),
        knows=_engine,
    ),
    Check(
        id="memory",
        title="memory is available",
        why="vLLM takes a share of all memory as it starts (`--gpu-memory-utilization`) and "
        "refuses to start when less is free. On a unified machine that is the same memory in "
        "which everything else runs.",
        rule=machine.memory,
        seen=lambda _patient, facts: machine.share(facts.available, facts.memory),
        knows=lambda _patient, facts: facts.memory is not None and facts.available is not None,
        sources=(UNIFIED,),
    ),
    Check(
        id="page-cache",
        title="the page cache is small",
        why="On a unified machine CUDA does not count as free what the page cache holds, though "
        "the kernel would give it back. After a copy of the model that is most of the memory.",
        rule=machine.page_cache,
        seen=lambda _patient, facts: f"{machine.share(facts.free, facts.memory)} free",
        knows=lambda _patient, facts: facts.unified and facts.free is not None,
        worst=Severity.WARN,
        sources=(UNIFIED, "https://build.nvidia.com/spark/nemotron/troubleshooting"),
    ),
    Check(
        id="swap",
        title="no swap",
        why="A unified machine that is out of memory swaps for minutes, in which ssh does not "
        "answer either, where without swap one process ends.",
        rule=machine.swap,
        seen=lambda _patient, facts: human(facts.swap) if facts.swap else "none",
        knows=_unified,
        worst=Severity.WARN,
    ),
    Check(
        id="disk",
        title="room where Docker writes",
        why="Containers, logs and compiled kernels need some; a next image of 25 GB needs twice "
        "that on containerd's store.",
        rule=machine.disk,
        seen=lambda _patient, facts: (
            f"{human(found.free)} free" if (found := facts.disk("docker")) else "?"
        ),
        knows=lambda _patient, facts: facts.disk("docker") is not None,
    ),
    Check(
        id="model",
        title="the model's folder",
        why="Every rank reads its part of the weights from its own disk. Docker makes a folder "
        "that is missing, empty and owned by root.",
        rule=model.folder,
        seen=lambda _patient, facts: model.described(facts),
        applies=_with_model,
    ),
    Check(
        id="shards",
        title="the model is whole",
        why="A download that was broken off looks like a model until the rank that needs the "
        "missing file ends, minutes later.",
        rule=model.shards,
        seen=lambda _patient, facts: (
            f"{len(facts.model.named)} files of its index" if facts.model.named else "no index"
        ),
        applies=_with_model,
        knows=_folder,
    ),
    Check(
        id="model-equal",
        title="the same model everywhere",
        why="Ranks with different weights or a different config answer nonsense, or wait for each "
        "other for ever. Names and sizes are compared, not contents.",
        rule=model.equal,
        seen=lambda _patient, facts: facts.model.checksum,
        applies=_models_everywhere,
        knows=_folder,
    ),
    Check(
        id="fit",
        title="the model fits into memory",
        why="The weights of all ranks must find room in the GPUs' memory, and the KV cache beside "
        "them.",
        rule=model.fit,
        seen=lambda _patient, facts: f"{human(facts.model.size)}, {human(model.capacity(facts))}",
        applies=_with_model,
        knows=lambda patient, facts: _folder(patient, facts) and model.capacity(facts) > 0,
    ),
    Check(
        id="clock",
        title="the clocks agree",
        why="The logs of the ranks are laid beside each other by their time; with a clock that is "
        "far off certificates and signatures are refused.",
        rule=machine.clock,
        seen=lambda _patient, facts: f"{round(facts.skew_s or 0, 1) + 0.0:+.1f} s",
        knows=lambda _patient, facts: facts.skew_s is not None,
    ),
    Check(
        id="ntp",
        title="the clock is kept",
        why="A clock that nobody keeps drifts by seconds a day.",
        rule=machine.ntp,
        seen=lambda _patient, facts: "kept" if facts.synced else "not kept",
        knows=lambda _patient, facts: facts.synced is not None,
        worst=Severity.WARN,
    ),
    Check(
        id="held",
        title="no package is held back",
        why="Held packages of the driver, of Docker or of the kernel make nodes drift apart with "
        "every upgrade, and let an upgrade of one of them break the other.",
        rule=machine.held,
        seen=lambda _patient, facts: ", ".join(machine.kept(facts)) or "none",
        worst=Severity.WARN,
    ),
    Check(
        id="ports",
        title="the head's ports are free",
        why="With `--network host` the server ends when its port is taken; and the ranks would "
        "meet whatever else listens there.",
        rule=machine.ports,
        seen=lambda _patient, _facts: "",
    ),
)


def examine(case: Case) -> Diagnosis:
    """Everything that can be said of these machines. Pure."""
    return Diagnosis(case=case, results=tuple(check.examine(case) for check in CHECKS))


def page() -> str:
    """docs/doctor.md: its text, with the table of the checks, made of ``CHECKS``."""
    rows = ["| check | what is true | at worst | why it matters |", "| --- | --- | --- | --- |"]
    for check in CHECKS:
        links = "".join(f" [[{number}]]({link})" for number, link in enumerate(check.sources, 1))
        rows.append(f"| `{check.id}` | {check.title} | {check.worst} | {check.why}{links} |")
    text = resources.files("sparkimage").joinpath("data", "doctor.md").read_text()
    return text.replace("@checks", "\n".join(rows))
