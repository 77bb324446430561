"""Images built wrong on purpose, each with the checks that are meant to refuse it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.lab.conftest import Lab

STACK = ("debian", "python", "cuda", "torch", "vllm", "nccl", "nccl-pip", "serve")
DIST = "/usr/local/lib/python3.13/dist-packages"
PIP = f"{DIST}/nvidia/nccl/lib/libnccl.so.2"


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """A fault: a layer on top of a good image, or other pins; and the checks that must see it."""

    name: str
    checks: tuple[str, ...]
    layer: str = ""
    pins: dict[str, str] = field(default_factory=dict)
    stack: tuple[str, ...] = STACK


WRONG = (
    Wrong(
        name="nccl-2.28.9-under-a-2.30.4-name",
        checks=(
            "nccl-pip/test_version_of_every_copy",
            "nccl-pip/test_version_of_the_preload",
            "nccl-pip/test_mapped_nccl_answers_the_pin",
        ),
        pins={"nccl": "lie"},
    ),
    Wrong(name="torch-for-cpu", checks=("torch/test_cuda_build",), pins={"vllm": "cpu"}),
    Wrong(
        name="preload-file-missing",
        checks=(
            "nccl/test_system_library",
            "nccl-pip/test_preload_file_is_there",
            "nccl-pip/test_preload_is_obeyed",
            "nccl-pip/test_one_physical_copy",
            "nccl-pip/test_soname_and_architecture",
        ),
        layer="RUN rm -f /usr/lib/x86_64-linux-gnu/libnccl.so.2.30.4",
    ),
    Wrong(
        name="preload-path-off-by-one",
        checks=(
            "nccl-pip/test_preload_names_the_library",
            "_every/test_entrypoint_can_be_executed",
        ),
        layer="ENV LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libnccl.so.2.30.5\n"
        "RUN chmod a-x /usr/local/lib/python3.13/dist-packages/bin/vllm",
    ),
    Wrong(
        name="pip-copy-wins",
        checks=(
            "nccl-pip/test_one_physical_copy",
            "nccl-pip/test_no_other_copy_in_the_root",
            "nccl-pip/test_torch_maps_exactly_one_nccl",
        ),
        layer=f"RUN cp --remove-destination /usr/lib/x86_64-linux-gnu/libnccl.so.2.30.4 {PIP}",
    ),
    Wrong(
        name="second-nccl-deleted-again",
        checks=("nccl-pip/test_no_other_copy_in_our_layers",),
        layer="RUN echo 2.28.9 >/opt/libnccl.so.2\nRUN rm /opt/libnccl.so.2",
    ),
    Wrong(
        name="nccl-beside-the-places",
        checks=("nccl-pip/test_places",),
        layer="RUN ln -s libnccl.so.2 /usr/lib/x86_64-linux-gnu/libnccl.so",
    ),
    Wrong(
        name="entrypoint-in-shell-form",
        checks=("_every/test_entrypoint",),
        layer="ENTRYPOINT vllm serve",
    ),
    Wrong(
        name="entrypoint-doubled-and-a-command",
        checks=("_every/test_entrypoint", "_every/test_cmd", "run/entrypoint-answers"),
        layer='ENTRYPOINT ["vllm", "serve", "vllm", "serve"]\nCMD ["vllm", "serve"]',
    ),
    Wrong(
        name="interpreter-of-the-entrypoint-missing",
        checks=("run/entrypoint-answers", "vllm/test_command_is_python"),
        layer=f"RUN sed -i '1s|.*|#!/nowhere/python3|' {DIST}/bin/vllm",
    ),
    # What no other check sees.
    Wrong(
        name="module-of-the-entrypoint-missing",
        checks=("run/entrypoint-answers",),
        layer=f"RUN rm {DIST}/vllm/cli.py",
    ),
    Wrong(
        name="apt-lists-left",
        checks=("_every/test_no_apt_lists_in_any_layer",),
        layer="RUN echo list >/var/lib/apt/lists/left_Packages",
    ),
    Wrong(
        name="deleted-a-layer-later",
        checks=(
            "_every/test_no_apt_lists_in_any_layer",
            "_every/test_no_caches_or_logs_in_any_layer",
            "_every/test_no_certificate_of_the_building_machine",
            "python/test_no_bytecode_in_any_layer",
        ),
        layer="RUN echo list >/var/lib/apt/lists/left_Packages; mkdir -p /root/.cache/pip; "
        "echo wheel >/root/.cache/pip/left; "
        "echo site >/usr/local/share/ca-certificates/site.crt; "
        "python3 -m compileall -q /usr/lib/python3.13/json\n"
        "RUN rm -rf /var/lib/apt/lists/left_Packages /root/.cache "
        "/usr/local/share/ca-certificates/site.crt /usr/lib/python3.13/json/__pycache__",
    ),
    Wrong(
        name="many-faults",
        checks=(
            "_every/test_no_file_stored_twice",
            "debian/test_bundle_holds_debian_certificates_only",
            "debian/test_suite",
            "python/test_compiler_builds_an_extension",
            "python/test_verbs_library_loads",
            "cuda/test_every_wheel_of_the_lock",
            "cuda/test_cuda_home",
            "vllm/test_version",
            "vllm/test_command_is_python",
            "serve/test_environment_for_the_gpu",
            "serve/test_command_starts",
            "run/entrypoint-answers",
        ),
        layer="ENV CUDA_HOME=/nowhere NVIDIA_VISIBLE_DEVICES=none\n"
        "RUN echo '-----BEGIN CERTIFICATE-----' >>/etc/ssl/certs/ca-certificates.crt; "
        "sed -i s/trixie/sid/ /usr/lib/os-release; "
        "rm /usr/bin/gcc /usr/lib/x86_64-linux-gnu/libibverbs.so.1; "
        "cd /usr/local/lib/python3.13/dist-packages; "
        "sed -i 's/^Version: .*/Version: 0.31.0/' vllm-*/METADATA; "
        "echo '(' >bin/vllm",
    ),
)

NEEDS_GPU = Wrong(
    name="needs-a-gpu",
    checks=(),
    layer="ENV STANDIN_WITHOUT_GPU=1",
)
"""Not wrong: it behaves as the real vLLM does where there is no GPU."""


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
