"""Failures of what is in an image."""

from __future__ import annotations

from sparkimage.serve.explain.entries import Area, Entry, sign
from sparkimage.serve.explain.table.links import DOCTOR, LAUNCH, VLLM

ENTRIES = (
    Entry(
        id="preload-ignored",
        area=Area.IMAGE,
        title="LD_PRELOAD names a file that is not in the image; it was ignored",
        says="ERROR: ld.so: object '…' from LD_PRELOAD cannot be preloaded (…): ignored.",
        signs=(
            sign(
                "from LD_PRELOAD cannot be preloaded", r"object '(?P<file>[^']*)' from LD_PRELOAD"
            ),
        ),
        cause="glibc prints this one line and goes on with the library that the image has "
        "otherwise.",
        cure=f"{LAUNCH} preloads the file that the seal found in this image. By hand: `python "
        "build.py verify VARIANT` names every libnccl and where it lies.",
        sources=(
            "https://github.com/lutris/lutris/issues/5658",
            "https://github.com/rizsotto/Bear/issues/582",
        ),
        tells_nccl=True,
    ),
    Entry(
        id="nccl-missing",
        area=Area.IMAGE,
        title="vLLM finds no NCCL",
        says="Failed to load NCCL library from libnccl.so.2",
        signs=(sign("Failed to load NCCL library from", r"from (?P<file>\S+)"),),
        cause="libnccl.so.2 is not in the image, or the loader does not know where (ldconfig).",
        cure="`python build.py verify VARIANT`: the checks of the nccl layers say what is missing.",
        sources=(f"{VLLM}4257",),
    ),
    Entry(
        id="torch-without-cuda",
        area=Area.IMAGE,
        title="torch in this image was built without CUDA",
        says="AssertionError: Torch not compiled with CUDA enabled",
        signs=(sign("Torch not compiled with CUDA enabled"),),
        cause="A late `pip install` replaced the CUDA build by the CPU one.",
        cure="Build the image again: the torch layer's check asserts `torch.version.cuda` "
        "(`python build.py verify VARIANT`).",
        sources=("https://github.com/vllm-project/vllm-ascend/issues/780",),
    ),
    Entry(
        id="no-device-type",
        area=Area.IMAGE,
        title="vLLM sees no GPU",
        says="RuntimeError: Failed to infer device type",
        signs=(sign("Failed to infer device type"),),
        cause="The container was started without `--gpus`, the driver does not fit, or torch "
        "or vLLM in the image is a CPU build.",
        cure=f"Start it with {LAUNCH}, which gives `--gpus all`; {DOCTOR}; `python build.py "
        "verify VARIANT --tier node` on a machine with a GPU.",
        sources=(f"{VLLM}13946", "https://github.com/vllm-project/vllm/pull/14200"),
    ),
    Entry(
        id="no-kernel-image",
        area=Area.IMAGE,
        title="The image has no kernels for this GPU",
        says="CUDA error: no kernel image is available for execution on the device",
        signs=(sign("no kernel image is available for execution on the device"),),
        cause="vLLM, torch or an extension was compiled for other architectures "
        "(TORCH_CUDA_ARCH_LIST).",
        cure="A GB10 is sm_121: build with `12.1a` (or `12.0`) in the variant's arch list, and "
        "verify.",
        sources=(f"{VLLM}1936", f"{VLLM}4187"),
    ),
    Entry(
        id="ptxas-unknown-arch",
        area=Area.IMAGE,
        title="Triton's own ptxas does not know this GPU",
        says="ptxas fatal   : Value 'sm_121a' is not defined for option 'gpu-name'",
        signs=(
            sign(
                "is not defined for option 'gpu-name'",
                r"Value '(?P<arch>[^']+)' is not defined",
            ),
        ),
        cause="The ptxas in Triton's wheel is older than the GPU.",
        cure="Set `TRITON_PTXAS_PATH=/usr/local/cuda/bin/ptxas` (CUDA 13's) in the profile's "
        "`env`.",
        sources=(
            "https://github.com/triton-lang/triton/issues/8539",
            "https://github.com/vllm-project/vllm/pull/31338",
        ),
    ),
    Entry(
        id="no-c-compiler",
        area=Area.IMAGE,
        title="Triton needs a C compiler, and the image has none",
        says="RuntimeError: Failed to find C compiler. Please specify via CC environment variable",
        signs=(sign("Failed to find C compiler"),),
        cause="Triton compiles a launcher for each kernel at run time.",
        cure="Put gcc and libc6-dev into the image, as the python layer here does, and verify.",
        sources=(f"{VLLM}2997", "https://github.com/sgl-project/sglang/issues/1067"),
    ),
    Entry(
        id="no-libcuda-to-link",
        area=Area.IMAGE,
        title="A kernel cannot be linked: no libcuda in the container",
        says="/usr/bin/ld: cannot find -lcuda: No such file or directory",
        signs=(sign("cannot find -lcuda"),),
        cause="The driver's libcuda.so is not where the linker looks.",
        cure=f"Start with `--gpus all` ({LAUNCH} does), and see that the toolkit on the node is "
        f"whole: {DOCTOR}.",
        sources=(f"{VLLM}12505",),
    ),
    Entry(
        id="no-nvcc",
        area=Area.IMAGE,
        title="A kernel is to be compiled, and there is no nvcc",
        says="RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' "
        "doesn't exist",
        signs=(sign("Could not find nvcc and default cuda_home"),),
        cause="FlashInfer compiles kernels at run time; the image has CUDA's runtime alone.",
        cure="Take a variant whose base has the toolkit, or one with precompiled kernels.",
        sources=("https://github.com/keras-team/kinetic/issues/269",),
    ),
    Entry(
        id="undefined-symbol",
        area=Area.IMAGE,
        title="Two libraries in the image do not fit together",
        says="ImportError: …/vllm/_C.abi3.so: undefined symbol: "
        "_ZN5torch3jit17parseSchemaOrNameERKSsb",
        signs=(
            sign(
                "undefined symbol: ",
                r"(?P<library>[^\s'\"(]+\.so[\w.]*): undefined symbol: (?P<symbol>\w+)",
            ),
        ),
        cause="An extension was compiled against another torch (or NCCL) than the one "
        "installed now.",
        cure="Lock both together and build again: `python build.py lock`, then `image VARIANT`.",
        sources=(f"{VLLM}13608", f"{VLLM}5501"),
    ),
    Entry(
        id="flashinfer-mixed",
        area=Area.IMAGE,
        title="FlashInfer's packages are of different versions",
        says="flashinfer-cubin version (0.6.13) does not match flashinfer version (0.6.14). …",
        signs=(
            sign(
                "does not match flashinfer version",
                r"(?P<package>flashinfer-[\w-]+) version \((?P<has>[^)]+)\) does not match "
                r"flashinfer version \((?P<wants>[^)]+)\)",
            ),
        ),
        cause="flashinfer-python and its cubin or jit-cache package were installed apart.",
        cure="Lock equal versions. `FLASHINFER_DISABLE_VERSION_CHECK=1` in the profile's `env` "
        "passes over it; the GA fork is run so.",
        sources=(f"{VLLM}49804",),
    ),
    Entry(
        id="no-python-headers",
        area=Area.IMAGE,
        title="Triton needs Python's headers, and the image has none",
        says="fatal error: Python.h: No such file or directory",
        signs=(sign("Python.h: No such file or directory"),),
        cause="Triton compiles a module for Python at run time.",
        cure="Put python3-dev into the image, as the python layer here does, and verify.",
        sources=(f"{VLLM}27890", "https://github.com/sgl-project/sglang/issues/1117"),
    ),
    Entry(
        id="deepgemm-arch",
        area=Area.IMAGE,
        title="DeepGEMM does not know this GPU",
        says="RuntimeError: Assertion error (/…deepgemm…): Unsupported architecture",
        signs=(
            sign(
                "Unsupported architecture",
                r"Assertion error \((?P<file>\S*deepgemm\S*?)(?::\d+)?\): Unsupported "
                r"architecture",
            ),
        ),
        cause="This vLLM has DeepSeek V4's kernels for other GPUs alone; a GB10 is sm_121.",
        cure="Use a variant of the fork (`ds4-flash`: with the sm12x patch; `ds4-flash-ga`: "
        "without "
        "need of it).",
        sources=(f"{VLLM}40778", "https://github.com/vllm-project/vllm/pull/41834"),
    ),
    Entry(
        id="unknown-architecture",
        area=Area.IMAGE,
        title="This vLLM does not know the model's architecture",
        says="ValueError: Model architectures ['…'] are not supported for now.",
        signs=(
            sign(
                "are not supported for now",
                r"Model architectures \[(?P<architecture>[^\]]+)\] are not supported for now",
            ),
        ),
        cause="The model is newer than this vLLM, or of a fork.",
        cure="Choose a variant with a newer vLLM, or with the fork.",
        sources=(f"{VLLM}11520", f"{VLLM}6986"),
    ),
)
