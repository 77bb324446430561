"""What Docker 29.2.1 with containerd 2.2.1 and its store says, as a node of the lab printed it
(`LAB_ENGINES`), shortened; and the same image in the form of older engines.

The digest among the tags and the empty ``Identity`` are of images that were pulled by digest.
"""

from __future__ import annotations

from typing import Any

MANIFEST = "sha256:7d928ec8b67046ef07950cffa475eb8abd086c596c4fe752f8dd16bac41a2f3d"
CONFIG = "sha256:0a1c3f77d7b1e4b5a1cc2c7d5f1f0f4f3f1b0d9c8b7a69584736251403f2e1d0"
LAYERS = [
    "sha256:bc9a15394d1f89fd725e56cd7898e56f12045da547a8ac478e98b586d8bbcd89",
    "sha256:d70135975037ac9e9e5100949ec0710c518a76baed8752d024da399a58c30ec6",
    "sha256:683987ced57be2ee75e4e544af73fc8c4b41ba9422bd1bf577773238e1899a77",
]
SAID = {
    "Env": ["PATH=/bin", "PAYLOAD=1"],
    "Entrypoint": ["/bin/sh", "-c"],
    "Cmd": ["echo it runs"],
    "Labels": {"dev.sparkimage.variant": "payload"},
}
IMAGE: dict[str, Any] = {
    "Id": MANIFEST,
    "RepoTags": ["r:payload", f"r@{MANIFEST}"],
    "RepoDigests": [f"r@{MANIFEST}"],
    "Created": "2000-01-01T00:00:00Z",
    "Config": SAID,
    "Architecture": "amd64",
    "Os": "linux",
    "Size": 7534583,
    "RootFS": {"Type": "layers", "Layers": LAYERS},
    "Metadata": {"LastTagTime": "2026-11-30T05:11:10.938208723Z"},
    "Descriptor": {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": MANIFEST,
        "size": 749,
        "annotations": {"org.opencontainers.image.ref.name": "sparkimage-staging:7d928ec8b670"},
    },
    "Identity": {},
}
OLDER: dict[str, Any] = {
    "Id": CONFIG,
    "RepoTags": ["r:payload"],
    "RepoDigests": [],
    "Parent": "",
    "Comment": "",
    "Created": "2000-01-01T00:00:00Z",
    "DockerVersion": "",
    "Author": "",
    "Config": {
        "Hostname": "", "Domainname": "", "User": "", "AttachStdin": False, "AttachStdout": False,
        "AttachStderr": False, "Tty": False, "OpenStdin": False, "StdinOnce": False, "Image": "",
        "Volumes": None, "WorkingDir": "", "OnBuild": None, **SAID,
    },
    "Architecture": "amd64",
    "Os": "linux",
    "Size": 14680064,
    "GraphDriver": {"Name": "overlay2", "Data": {"UpperDir": "/var/lib/docker/overlay2/5/diff"}},
    "RootFS": {"Type": "layers", "Layers": LAYERS},
    "Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"},
}  # fmt: skip
INFO: dict[str, Any] = {
    "ContainersStopped": 0,
    "Driver": "overlayfs",
    "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
    "DockerRootDir": "/var/lib/docker",
    "ServerVersion": "29.2.1",
    "Runtimes": {
        "io.containerd.runc.v2": {"path": "runc", "status": {"x": "{}"}}, "runc": {"path": "runc"},
    },
    "DefaultRuntime": "runc",
    "SecurityOptions": ["name=seccomp,profile=builtin"],
    "FirewallBackend": {"Driver": "iptables"},
    "CDISpecDirs": ["/etc/cdi", "/var/run/cdi"],
    "Containerd": {
        "Address": "/run/containerd/containerd.sock",
        "Namespaces": {"Containers": "moby", "Plugins": "plugins.moby"},
    },
    "ClientInfo": {"Version": "29.2.1", "DefaultAPIVersion": "1.53", "Context": "default"},
}  # fmt: skip
