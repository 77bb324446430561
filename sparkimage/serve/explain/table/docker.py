"""Failures of Docker and its runtimes, before anything of the image runs."""

from __future__ import annotations

from sparkimage.serve.explain.entries import Area, Entry, sign
from sparkimage.serve.explain.table.links import DOCTOR, LAUNCH, VLLM

ENTRIES = (
    Entry(
        id="unknown-runtime",
        area=Area.DOCKER,
        title="Docker has no runtime called nvidia",
        says="unknown or invalid runtime name: nvidia",
        signs=(
            sign("untime", r"(?i)unknown runtime specified (?P<runtime>\w[\w-]*(?:\.\w+)*)"),
            sign("untime", r"(?i)unknown or invalid runtime name: (?P<runtime>\w[\w-]*(?:\.\w+)*)"),
        ),
        cause="`--runtime nvidia` (or `default-runtime`) names a runtime that is not "
        "registered with this daemon.",
        cure=f"Leave `--runtime nvidia` out: `--gpus all` needs none, and {LAUNCH} gives that. "
        "Or register it: `sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl "
        f"restart docker`. {DOCTOR} says which runtimes each node has.",
        sources=(
            "https://github.com/NVIDIA/nvidia-docker/issues/578",
            "https://github.com/NVIDIA/nvidia-container-toolkit/issues/150",
        ),
    ),
    Entry(
        id="no-gpu-driver",
        area=Area.DOCKER,
        title="Docker cannot hand out GPUs: the NVIDIA container toolkit is missing",
        says='could not select device driver "" with capabilities: [[gpu]]',
        signs=(sign("could not select device driver", r"capabilities: \[\[gpu"),),
        cause="`--gpus` needs `nvidia-container-runtime-hook` on the daemon's PATH; it is not "
        "there, or the daemon was not restarted since.",
        cure=f"Install nvidia-container-toolkit on the node and restart Docker; then {DOCTOR} "
        "shows it.",
        sources=("https://github.com/NVIDIA/nvidia-docker/issues/1034",),
    ),
    Entry(
        id="no-driver-library",
        area=Area.DOCKER,
        title="The NVIDIA driver is not installed on the node",
        says="nvidia-container-cli: initialization error: load library failed: "
        "libnvidia-ml.so.1: …",
        signs=(sign("load library failed: libnvidia-ml.so"),),
        cause="The toolkit is there, but it finds no driver library on the host.",
        cure=f"Install the driver (or mend its packages) and check with `nvidia-smi`; {DOCTOR}.",
        sources=("https://github.com/NVIDIA/libnvidia-container/issues/231",),
    ),
    Entry(
        id="driver-too-old",
        area=Area.DOCKER,
        title="The node's driver is too old for the image's CUDA",
        says="nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.4, …",
        signs=(
            sign("unsatisfied condition: cuda", r"condition: (?P<condition>cuda ?>= ?[\d.]+\d)"),
            sign("CUDA driver version is insufficient for CUDA runtime version"),
        ),
        cause="The image was built with a newer CUDA than the driver supports.",
        cure="Update the driver on that node, or choose a variant of the matrix with an older "
        "CUDA.",
        sources=(f"{VLLM}5635", "https://github.com/ovg-project/kvcached/issues/74"),
    ),
    Entry(
        id="device-missing",
        area=Area.DOCKER,
        title="A device that the container is to have is not on the node",
        says='error gathering device information while adding custom device "/dev/…": no such …',
        signs=(
            sign(
                "error gathering device information",
                r'custom device "(?P<device>[^"]+)": no such file',
            ),
        ),
        cause="`--device` names a path that does not exist there. For /dev/infiniband: the "
        "RDMA modules are not loaded, or the adapter is off.",
        cure="`ls /dev/infiniband` and `rdma link` on that node; `sudo modprobe ib_uverbs`; "
        f"{DOCTOR}.",
        sources=("https://github.com/Xilinx/Vitis-AI/issues/1256",),
    ),
    Entry(
        id="name-in-use",
        area=Area.DOCKER,
        title="A container of that name is there already",
        says='Conflict. The container name "/…" is already in use by container "…".',
        signs=(
            sign(
                "is already in use by container",
                r'container name "?/?(?P<name>[\w.-]+)"? is already in use',
            ),
        ),
        cause="An earlier start left its container, running or stopped.",
        cure=f"`python build.py status`, then `python build.py stop`; or {LAUNCH} with "
        "`--replace`.",
        sources=(
            "https://github.com/docker/docs/pull/17816",
            "https://github.com/moby/moby/issues/25932",
        ),
    ),
    Entry(
        id="unpack-failed",
        area=Area.DOCKER,
        title="`docker load` said it was done, but the image was not unpacked",
        says="Error unpacking image …",
        signs=(sign("Error unpacking image"),),
        cause="With the containerd store a failed unpacking is only printed: the command "
        "succeeds and the name has moved already.",
        cure="Bring it with `python build.py distribute`: it reads that output, proves a "
        "container of the image and moves the name last. Check the node's disk.",
        sources=(
            "https://github.com/moby/moby/blob/master/daemon/containerd/image_exporter.go",
            "https://github.com/moby/moby/pull/48293",
        ),
    ),
    Entry(
        id="layer-record-left",
        area=Area.DOCKER,
        title="A full disk has left the record of a layer, and Docker refuses that layer",
        says="rename …/layerdb/tmp/write-set-… …/layerdb/sha256/…: file exists",
        signs=(
            sign("/layerdb/tmp/write-set-", r"(?P<record>/\S+/layerdb/sha256/\w+): file exists"),
        ),
        cause="When it removes a layer, Docker renames the layer's record first; where the disk "
        "has no block left for that it goes on without a word. It knows the layer no more, and "
        "its record is in the way of the same layer for good.",
        cure="`python build.py distribute` removes the record where it may, and brings the image. "
        "By hand: `sudo rm -r` the folder after the last blank of that line.",
        sources=(
            "https://github.com/moby/moby/issues/44909",
            "https://github.com/idaholab/moose/issues/22746",
        ),
    ),
    Entry(
        id="layer-files-gone",
        area=Area.DOCKER,
        title="Files of an image's layer are gone from the node",
        says="stat …/overlay2/…: no such file or directory",
        signs=(
            sign(
                "no such file or directory", r"(?:stat|open|mount to) (?P<path>/\S+/overlay2/\S+):"
            ),
            sign("failed to stat parent", r"stat (?P<path>/\S+/snapshots/\d+/fs): no such file"),
        ),
        cause="A crash, a damaged disk or somebody's `rm` took them; the engine's records still "
        "list the layer, so it is neither brought again nor can it be used.",
        cure="Remove every image on that node that has the layer, and bring it again: `python "
        "build.py distribute` does both for what its own runs left. If it stays, check the disk.",
        sources=(
            "https://github.com/moby/moby/issues/41190",
            "https://github.com/moby/moby/issues/30531",
            "https://github.com/containerd/containerd/issues/3369",
        ),
    ),
    Entry(
        id="wrong-platform",
        area=Area.DOCKER,
        title="The image is of another processor architecture",
        says="exec /…: exec format error",
        signs=(
            sign("exec format error"),
            sign("Exec format error"),
            sign(
                "does not match the detected host platform",
                r"platform \((?P<image>[\w/]+)\) does not match .*\((?P<host>[\w/]+)\)",
            ),
        ),
        cause="An amd64 image on an arm64 node (a Spark is arm64), or the reverse.",
        cure="Choose the variant of that platform (`python build.py --matrix --print table` "
        "shows each one's); `distribute` refuses a wrong one.",
        sources=(
            "https://github.com/sickcodes/dock-droid/issues/16",
            "https://github.com/outofcontrol/mediawiki-to-gfm/issues/37",
        ),
    ),
    Entry(
        id="mount-missing",
        area=Area.DOCKER,
        title="A folder that is to be mounted is not on the node",
        says='invalid mount config for type "bind": bind source path does not exist: /…',
        signs=(
            sign("bind source path does not exist", r"does not exist: (?P<folder>\S+?)[.]?(\s|$)"),
        ),
        cause="The model's folder or a cache is not there, on this node at least.",
        cure=f"{LAUNCH} makes the caches' folders first and looks for the model on every node. A "
        f"Docker "
        "of snap sees the home folder alone.",
        sources=(
            "https://github.com/devcontainers/cli/issues/613",
            "https://github.com/tribut/homeassistant-docker-venv/issues/35",
        ),
    ),
)
