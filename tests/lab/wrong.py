"""Images built wrong on purpose, each with the one check that is meant to refuse it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.lab.conftest import Lab

STACK = ("debian", "python", "cuda", "torch", "vllm", "nccl", "serve")
PIP = "/usr/local/lib/python3.13/dist-packages/nvidia/nccl/lib/libnccl.so.2"


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """A fault: a layer on top of a good image, or other pins; and the check that must see it."""

    name: str
    check: str
    layer: str = ""
    pins: dict[str, str] = field(default_factory=dict)
    stack: tuple[str, ...] = STACK


WRONG = (
    Wrong(
        name="nccl-2.28.9-under-a-2.30.4-name",
        check="nccl/test_version_of_every_copy",
        pins={"nccl": "lie"},
    ),
    Wrong(name="torch-for-cpu", check="torch/test_cuda_build", pins={"vllm": "cpu"}),
    Wrong(
        name="preload-file-missing",
        check="nccl/test_preload_file_is_there",
        layer="RUN rm -f /usr/lib/x86_64-linux-gnu/libnccl.so.2.30.4",
    ),
    Wrong(
        name="preload-path-off-by-one",
        check="nccl/test_preload_names_the_library",
        layer="ENV LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libnccl.so.2.30.5",
    ),
    Wrong(
        name="pip-copy-wins",
        check="nccl/test_one_physical_copy",
        layer=f"RUN cp --remove-destination /usr/lib/x86_64-linux-gnu/libnccl.so.2.30.4 {PIP}",
    ),
    Wrong(
        name="second-nccl-deleted-again",
        check="nccl/test_no_other_copy_in_any_layer",
        layer="RUN cp /usr/lib/x86_64-linux-gnu/libnccl.so.2.30.4 /opt/libnccl.so.2\n"
        "RUN rm /opt/libnccl.so.2",
    ),
    Wrong(
        name="entrypoint-in-shell-form",
        check="_every/test_entrypoint",
        layer="ENTRYPOINT vllm serve",
    ),
    Wrong(
        name="entrypoint-doubled",
        check="_every/test_entrypoint",
        layer='ENTRYPOINT ["vllm", "serve", "vllm", "serve"]',
    ),
    Wrong(
        name="entrypoint-not-executable",
        check="_every/test_entrypoint_can_be_executed",
        layer="RUN chmod a-x /usr/local/lib/python3.13/dist-packages/bin/vllm",
    ),
    Wrong(name="command-beside-it", check="_every/test_cmd", layer='CMD ["vllm", "serve"]'),
    Wrong(
        name="apt-lists-left",
        check="_every/test_no_apt_lists_in_any_layer",
        layer="RUN echo list >/var/lib/apt/lists/left_Packages",
    ),
    Wrong(
        name="apt-lists-deleted-a-layer-later",
        check="_every/test_no_apt_lists_in_any_layer",
        layer="RUN echo list >/var/lib/apt/lists/left_Packages\n"
        "RUN rm /var/lib/apt/lists/left_Packages",
    ),
    Wrong(
        name="cache-left",
        check="_every/test_no_caches_or_logs_in_any_layer",
        layer="RUN mkdir -p /root/.cache/pip && echo wheel >/root/.cache/pip/left",
    ),
    Wrong(
        name="ca-of-the-site-left",
        check="_every/test_no_certificate_of_the_building_machine",
        layer="RUN echo site >/usr/local/share/ca-certificates/site.crt",
    ),
    Wrong(
        name="ca-of-the-site-in-the-bundle",
        check="debian/test_bundle_holds_debian_certificates_only",
        layer="RUN echo '-----BEGIN CERTIFICATE-----' >>/etc/ssl/certs/ca-certificates.crt",
    ),
    Wrong(
        name="file-stored-twice",
        check="_every/test_no_file_stored_twice",
        layer="RUN chmod g+w /usr/local/lib/python3.13/dist-packages/vllm/cli.py",
    ),
    Wrong(
        name="bytecode-left",
        check="python/test_no_bytecode_in_any_layer",
        layer="RUN python3 -c 'import json' && python3 -m compileall -q /usr/lib/python3.13/json",
    ),
    Wrong(
        name="label-that-lies",
        check="_every/test_labels",
        layer='LABEL dev.sparkimage.version.nccl="2.30.5"',
    ),
    Wrong(
        name="wheel-of-another-version",
        check="cuda/test_every_wheel_of_the_lock",
        layer="RUN sed -i 's/^Version: .*/Version: 13.0.95/' "
        "/usr/local/lib/python3.13/dist-packages/nvidia_cuda_runtime-*.dist-info/METADATA",
    ),
    Wrong(
        name="no-compiler",
        check="python/test_compiler_builds_an_extension",
        layer="RUN rm /usr/bin/gcc",
    ),
)


def add(lab: Lab, data: dict[str, Any], wrong: Wrong) -> None:
    """Add the variant to the lab's matrix, and its layer to the lab's folders."""
    layers = list(wrong.stack)
    if wrong.layer:
        name = f"wrong-{wrong.name.replace('.', '-')}"
        lab.add_layer(name, f"FROM layer AS {name}\n{wrong.layer}\n")
        data["layers"][name] = {}
        layers.append(name)
    pins = {"debian": "trixie", "vllm": "0.32.0+standin", "nccl": "2.30.4", **wrong.pins}
    data["include"].append(
        {
            "name": f"wrong-{wrong.name}",
            "platform": "linux/amd64",
            "layers": layers,
            "pins": pins,
        }
    )
