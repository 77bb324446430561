"""What the run tier must refuse: faults in a container of a good image, and images built wrong.

Faults that bytes show are mutants (mutants.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.lab.conftest import Lab

STACK = ("debian", "python", "cuda", "torch", "vllm", "nccl", "nccl-pip", "serve")
DIST = "/usr/local/lib/python3.13/dist-packages"
LIB = "/usr/lib/x86_64-linux-gnu"
SYSTEM = f"{LIB}/libnccl.so.2.30.4"
ANSWER = "run/entrypoint-answers"


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A container of a good image, and the only checks that a command in it makes fail."""

    name: str
    command: str
    checks: tuple[str, ...]


BROKEN = (
    # Each of these spoils what one check sees.
    Broken(
        name="system-spoiled",
        command="rm /usr/bin/gcc; "
        f"rm {LIB}/libibverbs.so.1; "
        "sed -i '/^Package: libc6$/,/^$/s/ok installed/ok half-configured/' /var/lib/dpkg/status; "
        "rm /etc/ld.so.cache; "
        f"echo 'cuda = None' >{DIST}/torch/version.py",
        checks=(
            "_every/test_package_database",
            "python/test_compiler_builds_an_extension",
            "python/test_verbs_library_loads",
            "nccl-pip/test_linker_cache_knows_it",
            "torch/test_cuda_of_the_torch_that_python_imports",
        ),
    ),
    Broken(
        name="library-missing",
        command=f"rm {SYSTEM}",
        checks=(
            "nccl-pip/test_preload_is_obeyed",
            "nccl-pip/test_version_of_every_copy",
            "nccl-pip/test_version_of_the_preload",
            # torch cannot be imported.
            "nccl-pip/test_torch_maps_exactly_one_nccl",
            "nccl-pip/test_mapped_nccl_answers_the_pin",
            "torch/test_cuda_of_the_torch_that_python_imports",
        ),
    ),
    Broken(
        name="pip-copy-wins",
        command=f"cp --remove-destination {SYSTEM} {DIST}/nvidia/nccl/lib/libnccl.so.2",
        checks=("nccl-pip/test_torch_maps_exactly_one_nccl",),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Silent:
    """An image whose ENTRYPOINT does not answer as it should, and what is seen instead."""

    name: str
    seen: str
    command: str = "true"
    change: str = "LABEL a=b"
    """An instruction of a Dockerfile."""


SILENT = (
    Silent(
        name="interpreter-missing",
        command=f"sed -i '1s|.*|#!/nowhere/python3|' {DIST}/bin/vllm",
        seen="exit code 1: exec /usr/local/bin/vllm: no such file or directory",
    ),
    # What no other check sees.
    Silent(
        name="module-missing",
        command=f"rm {DIST}/vllm/cli.py",
        seen="ModuleNotFoundError: No module named 'vllm.cli'",
    ),
    Silent(name="no-python", command=f"echo '(' >{DIST}/bin/vllm", seen="exit code "),
    Silent(
        name="entrypoint-doubled",
        change='ENTRYPOINT ["vllm", "serve", "vllm", "serve"]',
        seen="exit code 0: ",
    ),
    Silent(
        name="needs-a-gpu",
        change="ENV STANDIN_WITHOUT_GPU=1",
        seen="not run: it answers only with a GPU (exit code 1: RuntimeError",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """An image that is built wrong: a layer on top of a good one, or other pins; and the checks
    that must see it."""

    name: str
    checks: tuple[str, ...]
    layer: str = ""
    pins: dict[str, str] = field(default_factory=dict)
    stack: tuple[str, ...] = STACK


WRONG = (
    Wrong(
        name="nccl-2.28.9-under-a-2.30.4-name",
        checks=(
            "static/nccl-version",
            "nccl-pip/test_version_of_every_copy",
            "nccl-pip/test_version_of_the_preload",
            "nccl-pip/test_mapped_nccl_answers_the_pin",
        ),
        pins={"nccl": "lie"},
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
