"""The known failures. docs/troubleshooting.md is made from this table (``make troubleshooting``).

The words of every message are those of the sources named beside it.
"""

from __future__ import annotations

from collections.abc import Iterable

from sparkimage.launching.entries import Area, Entry, Tally, sign
from sparkimage.launching.logfacts import Facts

WEDGES = ("2.28.9",)
"""Releases of NCCL with which long generations over four nodes were seen to wedge."""


def judge_nccl(releases: Iterable[str]) -> str:
    """What is known of these releases of NCCL; empty: nothing."""
    bad = [release for release in releases if release in WEDGES]
    return f" ({', '.join(bad)} is known to wedge long generations at TP=4)" if bad else ""


def _not_while_starting(tally: Tally, facts: Facts) -> bool:
    return not facts.ready_line or tally.last_number > facts.ready_line


def _sockets_used(_tally: Tally, facts: Facts) -> bool:
    return facts.via.get("NET/Socket", 0) > 0 and not facts.ib_off


VLLM = "https://github.com/vllm-project/vllm/issues/"
NCCL = "https://github.com/NVIDIA/nccl/issues/"
DOCTOR = "`python build.py doctor --nodes fleet.yaml`"
LAUNCH = "`python build.py launch`"

_DOCKER = (
    Entry(
        id="unknown-runtime",
        area=Area.DOCKER,
        title="Docker has no runtime called nvidia",
        says="unknown or invalid runtime name: nvidia",
        signs=(
            sign("untime", r"(?i)unknown runtime specified (?P<runtime>[\w.-]+)"),
            sign("untime", r"(?i)unknown or invalid runtime name: (?P<runtime>[\w.-]+)"),
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
        sources=("https://github.com/moby/moby/issues/25932",),
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
        sources=("https://github.com/moby/moby/pull/48293",),
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
)

_IMAGE = (
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
)

_ARGUMENTS = (
    Entry(
        id="doubled-entrypoint",
        area=Area.ARGUMENTS,
        title="`vllm serve` stands twice: the image's ENTRYPOINT has it already",
        says="vllm: error: unrecognized arguments: serve …",
        signs=(
            sign("unrecognized arguments: ", r"error: unrecognized arguments: (vllm )?serve\b"),
        ),
        cause="The command after the image's name began with `vllm serve` (or `serve`); it "
        "follows the ENTRYPOINT, it does not replace it.",
        cure=f"Give the arguments alone: `docker run … IMAGE MODEL --port …`. {LAUNCH} reads "
        "the ENTRYPOINT from the image.",
        sources=(f"{VLLM}37133", f"{VLLM}22072"),
    ),
    Entry(
        id="unknown-argument",
        area=Area.ARGUMENTS,
        title="This vLLM does not know an argument",
        says="vllm: error: unrecognized arguments: --…",
        signs=(
            sign(
                "unrecognized arguments: ",
                r"error: unrecognized arguments: (?P<argument>--?[\w-]+)",
            ),
        ),
        cause="The argument is of another version of vLLM, or misspelt.",
        cure="Take it out of the profile, or choose a variant whose vLLM has it: `docker run "
        "--rm IMAGE --help=all`.",
        sources=(f"{VLLM}42399", "https://github.com/vllm-project/recipes/issues/20"),
    ),
    Entry(
        id="context-too-long",
        area=Area.ARGUMENTS,
        title="--max-model-len is more than the model was made for",
        says="User-specified max_model_len (131072) is greater than the derived max_model_len (…)",
        signs=(
            sign(
                "is greater than the derived max_model_len",
                r"max_model_len \((?P<asked>\d+)\) is greater",
            ),
        ),
        cause="The model's config.json names a shorter context.",
        cure="Lower `max_model_len` in the profile. `VLLM_ALLOW_LONG_MAX_MODEL_LEN=1` goes "
        "over it, for models that are known to bear it (DeepSeek-V4-Flash is run so).",
        sources=(f"{VLLM}3676", "https://github.com/vllm-project/vllm/pull/20904"),
    ),
    Entry(
        id="too-few-gpus",
        area=Area.ARGUMENTS,
        title="More GPUs are asked for than there are",
        says="please ensure that world_size (2) is less than than max local gpu count (1)",
        signs=(
            sign(
                "is less than than max local gpu count",
                r"world_size \((?P<asked>\d+)\) .* gpu count \((?P<has>\d+)\)",
            ),
            sign(
                "cannot be larger than the number of available GPUs",
                r"size \((?P<asked>\d+)\) cannot be larger .*GPUs \((?P<has>\d+)\)",
            ),
        ),
        cause="tensor x pipeline parallel size is more than nodes x GPUs, or `--nnodes`, "
        "`--node-rank` and `--master-addr` are missing, so that vLLM counts one node alone.",
        cure=f"{LAUNCH} derives them from the fleet and checks tensor x pipeline = nodes x GPUs.",
        sources=(f"{VLLM}15217", "https://github.com/NVIDIA-NeMo/Skills/issues/1059"),
    ),
    Entry(
        id="dspark-too-few",
        area=Area.ARGUMENTS,
        title="DSpark wants at least as many speculative tokens as its block has",
        says="Smaller values produce incorrect output. Use num_speculative_tokens=… or larger",
        signs=(
            sign(
                "Smaller values produce incorrect output",
                r"num_speculative_tokens=(?P<wants>\w+)",
            ),
        ),
        cause="`num_speculative_tokens` in the speculative config is below the checkpoint's "
        "`dspark_block_size`.",
        cure="Set it to 5 for DeepSeek-V4-Flash-0731; profiles here refuse less. More than the "
        "block has starts, but hardly any draft is accepted.",
        sources=(f"{VLLM}50012", "https://github.com/vllm-project/vllm/pull/41834"),
    ),
    Entry(
        id="unknown-speculation",
        area=Area.ARGUMENTS,
        title="This vLLM does not know the speculative method",
        says="ValueError: Unknown speculative decoding method: …",
        signs=(
            sign("speculative", r"Unknown speculative decoding method: (?P<method>[\w-]+)"),
            sign("speculative", r"Unsupported speculative method: '(?P<method>[^']+)'"),
        ),
        cause="`method` in `--speculative-config` is of another version (`dspark` came with "
        "the GA fork, `deepseek_mtp` before it).",
        cure="Use the profile of this variant, or set its method.",
        sources=(f"{VLLM}47825", "https://github.com/vllm-project/vllm-ascend/issues/9144"),
    ),
    Entry(
        id="unknown-tokenizer-mode",
        area=Area.ARGUMENTS,
        title="This vLLM does not know the tokenizer mode",
        says="ValueError: No tokenizer registered for tokenizer_mode='…'.",
        signs=(sign("No tokenizer registered", r"tokenizer_mode='(?P<mode>[^']+)'"),),
        cause="`--tokenizer-mode` names one of a newer vLLM or of a fork.",
        cure="Choose a variant that has it; `deepseek_v4` needs the fork's or a later vLLM.",
        sources=(f"{VLLM}30933",),
    ),
    Entry(
        id="unknown-tool-parser",
        area=Area.ARGUMENTS,
        title="This vLLM does not know the tool call parser",
        says="invalid tool call parser: …",
        signs=(sign("invalid tool call parser", r"parser: (?P<parser>[\w.-]+)"),),
        cause="`--tool-call-parser` names one that this version does not have.",
        cure="Use the profile of this variant, or the parser's name of this version.",
        sources=("https://github.com/vllm-project/vllm-ascend/issues/8997",),
    ),
    Entry(
        id="trust-remote-code",
        area=Area.ARGUMENTS,
        title="The model brings code of its own, which was not allowed",
        says="… contains custom code which must be executed to correctly load the model.",
        signs=(
            sign("contains custom code which must be executed to correctly load the model"),
            sign("to execute the configuration file in that repo on your local machine"),
        ),
        cause="The model's folder holds Python that vLLM runs only when told to.",
        cure="Read that code, then give `--trust-remote-code` (a flag of the profile).",
        sources=(
            f"{VLLM}9531",
            "https://github.com/runpod-workers/worker-vllm/issues/43",
        ),
    ),
)

_MODEL = (
    Entry(
        id="model-not-there",
        area=Area.MODEL,
        title="The model's folder is not in the container",
        says="Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/…'.",
        signs=(sign("Repo id must be in the form", r"namespace/repo_name': '(?P<path>/[^']*)'"),),
        cause="vLLM takes a path that does not exist for a name on Hugging Face: the folder is "
        "not mounted, or is empty on this node.",
        cure=f"{LAUNCH} with `--model DIR` mounts it at the same path and first sees that every "
        f"node has it; {DOCTOR} compares sizes.",
        sources=(f"{VLLM}10974", "https://github.com/gpustack/gpustack/issues/1268"),
    ),
    Entry(
        id="broken-safetensors",
        area=Area.MODEL,
        title="A file of weights is broken or a mere pointer",
        says="SafetensorError: Error while deserializing header: HeaderTooLarge",
        signs=(
            sign(
                "Error while deserializing header: ",
                r"deserializing header: (?P<reason>\w+)",
                unless=r"deserializing header: header too large",
            ),
        ),
        cause="The download broke off, or git fetched Git LFS pointers instead of the files.",
        cure="`ls -lh` the model's folder on every node: a pointer has about 130 bytes. Fetch "
        f"it again (`git lfs pull`, `hf download`); {DOCTOR} compares sizes over the nodes.",
        sources=(
            "https://github.com/deepseek-ai/DeepSeek-V3/issues/557",
            "https://github.com/microsoft/OmniParser/issues/34",
        ),
    ),
    Entry(
        id="gated-model",
        area=Area.MODEL,
        title="Hugging Face wants a login for this model",
        says="OSError: You are trying to access a gated repo.",
        signs=(
            sign("You are trying to access a gated repo"),
            sign("Cannot access gated repo for url", r"for url (?P<url>\S+)"),
        ),
        cause="The model is fetched at start, without a token that was granted access.",
        cure="Download it once (with `HF_TOKEN` in the environment), bring it to the nodes, "
        f"and give its folder: {LAUNCH} with `--model DIR`.",
        sources=(
            "https://github.com/h2oai/h2ogpt/issues/1600",
            "https://github.com/zylon-ai/private-gpt/issues/1861",
        ),
    ),
)

_MEMORY = (
    Entry(
        id="memory-not-free",
        area=Area.MEMORY,
        title="Something else holds the GPU's memory at start",
        says="ValueError: Free memory on device cuda:0 (…) on startup is less than desired GPU …",
        signs=(
            sign(
                "on startup is less than desired GPU memory utilization",
                r"Free memory on device (?P<device>\S+) \((?P<free>[\d.]+)/(?P<total>[\d.]+) "
                r"GiB\)"
                r".*utilization \((?P<wanted>[\d.]+)",
            ),
        ),
        cause="On unified memory (a Spark) page cache, a desktop and an earlier container "
        "count, too: vLLM wants its share free at once.",
        cure="`python build.py stop` what runs; as root on the node `sync; echo 3 > "
        "/proc/sys/vm/drop_caches`; else a lower `gpu_memory_utilization` in the profile (0.80 "
        "in the recipe).",
        sources=(
            "https://github.com/pytorch/pytorch/issues/175666",
            "https://github.com/MiaAI-Lab/GLM-5.3-Flash-EXL3-2x-DGX-Sparks/issues/47",
        ),
    ),
    Entry(
        id="cuda-out-of-memory",
        area=Area.MEMORY,
        title="The GPU's memory is used up",
        says="torch.OutOfMemoryError: CUDA out of memory. Tried to allocate …",
        signs=(
            sign("CUDA out of memory", r"Tried to allocate (?P<asked>[\d.]+ [KMG]iB)"),
            sign("Cuda failure 'out of memory'"),
            sign("NV_ERR_NO_MEMORY"),
        ),
        cause="Weights, KV cache, graphs and drafts together want more than there is; on "
        "unified memory the system's share counts, too.",
        cure="Lower `gpu_memory_utilization`, `max_num_seqs`, `max_num_batched_tokens` or "
        "`max_model_len` in the profile; `PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True`.",
        sources=(
            f"{VLLM}15598",
            "https://github.com/NVIDIA/dgx-spark-playbooks/issues/97",
        ),
    ),
    Entry(
        id="kv-cache-too-small",
        area=Area.MEMORY,
        title="The context does not fit into what is left for the KV cache",
        says="… KV cache is needed, which is larger than the available KV cache memory (…).",
        signs=(
            sign(
                "larger than the available KV cache memory",
                r"max seq len \((?P<asked>\d+)\)(?:.*estimated maximum model length is "
                r"(?P<possible>\d+))?",
            ),
            sign(
                "is larger than the maximum number of tokens that can be stored in KV cache",
                r"max seq len \((?P<asked>\d+)\).*KV cache \((?P<possible>\d+)\)",
            ),
        ),
        cause="`max_model_len` wants more KV cache than weights and graphs leave.",
        cure="Lower `max_model_len` (newer vLLM says how far), or raise "
        "`gpu_memory_utilization`, or `kv_cache_dtype: fp8`.",
        sources=(f"{VLLM}34076", f"{VLLM}16118", f"{VLLM}2418"),
    ),
    Entry(
        id="no-kv-cache",
        area=Area.MEMORY,
        title="Nothing at all is left for the KV cache",
        says="ValueError: No available memory for the cache blocks.",
        signs=(sign("No available memory for the cache blocks"),),
        cause="The weights alone take what `gpu_memory_utilization` allows.",
        cure="Raise `gpu_memory_utilization`, or spread the model over more nodes.",
        sources=(f"{VLLM}27508", f"{VLLM}2248"),
    ),
    Entry(
        id="killed-by-kernel",
        area=Area.MEMORY,
        title="The kernel ended a process: the node's memory was used up",
        says="Out of memory: Killed process …",
        signs=(
            sign("Out of memory: Killed process", r"Killed process \d+ \((?P<process>[^)]+)\)"),
            sign("oom-kill:constraint="),
            sign("xited (137)"),
        ),
        cause="On unified memory loading weights and their page cache compete; exit code 137 "
        "without a trace in the log is this.",
        cure="`dmesg -T | grep -i oom` on the node; a lower `gpu_memory_utilization`; drop the "
        "page cache before the start; nothing else on the node.",
        sources=(
            "https://github.com/LMCache/LMCache/issues/4759",
            "https://github.com/tonyd2wild/GLM-5.3-Flash-NVFP4-DFlash2-2x-DGX-Spark/issues/6",
        ),
    ),
    Entry(
        id="shm-too-small",
        area=Area.MEMORY,
        title="/dev/shm in the container is too small",
        says="NCCL WARN Error while creating shared memory segment /dev/shm/nccl-… (size 9637888)",
        signs=(
            sign("Error while creating shared memory segment", unless=r"No such file"),
            sign("Call to posix_fallocate failed"),
        ),
        cause="Docker gives 64 MB; NCCL and vLLM's workers want more.",
        cure=f"`--ipc host` (and `--shm-size 16g`): {LAUNCH} gives both.",
        sources=(f"{NCCL}290", f"{NCCL}342"),
    ),
    Entry(
        id="disk-full",
        area=Area.MEMORY,
        title="A disk is full",
        says="No space left on device",
        signs=(sign("No space left on device", unless=r"/dev/shm|posix_fallocate"),),
        cause="Images that were replaced, caches and models fill the node's disk.",
        cure=f"`python build.py gc` removes old images from the nodes; `df -h`; {DOCTOR}.",
        sources=(f"{NCCL}525",),
    ),
    Entry(
        id="cache-not-writable",
        area=Area.MEMORY,
        title="A cache folder cannot be written",
        says="PermissionError: [Errno 13] Permission denied: '/….cache/vllm'",
        signs=(
            sign(
                "Permission denied: '",
                r"Permission denied: '(?P<folder>[^']*/\.(?:cache|triton)\b[^']*)'",
            ),
        ),
        cause="Docker made the mounted folder as root, and the container runs as somebody else.",
        cure=f"{LAUNCH} makes the folders first. By hand: `chown` them to the container's user.",
        sources=("https://github.com/odysseus-dev/odysseus/issues/6157", f"{VLLM}20127"),
    ),
)

_NETWORK = (
    Entry(
        id="port-in-use",
        area=Area.NETWORK,
        title="A port is taken",
        says="The server socket has failed to listen on any local network address. …EADDRINUSE…",
        signs=(
            sign("EADDRINUSE", r"(?:port: (?P<port>\d+).*)?EADDRINUSE"),
            sign("ddress already in use", r"\('[^']*', (?P<port>\d+)\): address already in use"),
            sign("[Errno 98] Address already in use"),
        ),
        cause="Another server, or a worker of an earlier start, still listens there.",
        cure="`python build.py status` and `stop` (zombies too); `ss -ltnp` on the node; "
        "another `port` or `master_port` in the profile.",
        sources=(f"{VLLM}39015", f"{VLLM}11617", f"{VLLM}7514"),
    ),
    Entry(
        id="master-not-reached",
        area=Area.NETWORK,
        title="A worker did not reach the head",
        says="The client socket has timed out after 600000ms while trying to connect to (…).",
        signs=(
            sign(
                "The client socket has timed out after",
                r"connect to \((?P<address>[^,)]+), (?P<port>\d+)\)",
            ),
        ),
        cause="The head does not run, the address is of another interface, or a firewall is "
        "between.",
        cure=f"{DOCTOR} tries the ports between the nodes. `data` in fleet.yaml must be the "
        "address on the network between them.",
        sources=(f"{VLLM}19670", f"{VLLM}15744"),
    ),
    Entry(
        id="workers-missing",
        area=Area.NETWORK,
        title="The head waited in vain for its workers",
        says="DistStoreError: Timed out after 6 seconds waiting for workers. 1/2 workers joined.",
        signs=(
            sign(
                "Timed out after ",
                r"Timed out after \d+ seconds waiting for \w+\. (?P<joined>\d+/\d+) \w+ joined",
            ),
            sign("DistStoreError: wait timeout after"),
        ),
        cause="A node did not start its container, ended, or cannot reach the head.",
        cure="`python build.py status` names it, `logs --node NAME` says why.",
        sources=("https://github.com/pytorch/pytorch/pull/111805", f"{VLLM}52907"),
    ),
    Entry(
        id="gloo-interface",
        area=Area.NETWORK,
        title="Gloo cannot connect the nodes",
        says="RuntimeError: Gloo connectFullMesh failed with …",
        signs=(sign("Gloo connectFullMesh failed"),),
        cause="Gloo chose an interface that the other nodes cannot reach.",
        cure=f"Set `GLOO_SOCKET_IFNAME` to the data interface on each node, as {LAUNCH} does.",
        sources=(f"{VLLM}5094", "https://github.com/gpustack/gpustack/issues/2125"),
    ),
    Entry(
        id="no-such-interface",
        area=Area.NETWORK,
        title="NCCL_SOCKET_IFNAME names no interface of this node",
        says="Bootstrap : no socket interface found",
        signs=(
            sign("Bootstrap : no socket interface found"),
            sign("is neither AF_INET(2) nor AF_INET6(10)"),
        ),
        cause="The name differs from node to node (enp1s0f0np0, enp1s0f1np1 …), or is misspelt.",
        cure=f"{LAUNCH} finds it by the node's data address; `interface` in fleet.yaml "
        "overrides it.",
        sources=(f"{NCCL}1837", "https://github.com/marin-community/marin/issues/6940"),
    ),
)

_NCCL = (
    Entry(
        id="socket-fallback",
        area=Area.NCCL,
        title="NCCL goes over TCP instead of RDMA",
        says="NCCL INFO Channel 00/0 : 0[0] -> 8[0] [receive] via NET/Socket/0",
        signs=(sign("via NET/Socket"),),
        holds=lambda _tally, facts: not facts.ib_off,
        why_not="with NCCL_IB_DISABLE=1 that is what was asked for",
        cause="NCCL found no usable RDMA device: none in the container, none of that name "
        "(`NCCL_IB_HCA`), or its link is down. It works, at a fraction of the speed.",
        cure=f"{LAUNCH} hands in /dev/infiniband and names the HCA of the data interface, and "
        f"its proof refuses NET/Socket; {DOCTOR} says what the node lacks.",
        sources=(f"{NCCL}952",),
    ),
    Entry(
        id="no-verbs-device",
        area=Area.NCCL,
        title="NCCL sees no RDMA device",
        says="NCCL INFO NET/IB : No device found.",
        signs=(sign("NET/IB : No device found"),),
        holds=_sockets_used,
        why_not="without traffic over TCP between nodes that is no failure",
        cause="/dev/infiniband is not in the container, or `NCCL_IB_HCA` matches none of the "
        "devices.",
        cure="`--device=/dev/infiniband` and the right HCA (`ibdev2netdev`, `rdma link`); "
        f"{LAUNCH} does both.",
        sources=(f"{NCCL}952", f"{NCCL}226"),
    ),
    Entry(
        id="no-libibverbs",
        area=Area.NCCL,
        title="The image has no libibverbs",
        says="NCCL INFO Failed to open libibverbs.so[.1]",
        signs=(sign("Failed to open libibverbs.so"),),
        holds=_sockets_used,
        why_not="without traffic over TCP between nodes that is no failure",
        cause="NCCL loads it at run time; without it there is no RDMA.",
        cure="Put rdma-core's libibverbs1 and its providers (ibverbs-providers) into the image.",
        sources=(f"{VLLM}6732",),
    ),
    Entry(
        id="memlock",
        area=Area.NCCL,
        title="RDMA may not lock memory",
        says="NCCL WARN Call to ibv_reg_mr_iova2 failed with error Cannot allocate memory",
        signs=(
            sign(
                "Cannot allocate memory",
                r"(?P<call>ibv_(?:reg_mr\w*|create_cq|create_qp))\b.{0,40}Cannot allocate memory",
            ),
        ),
        cause="The container's limit of locked memory is low (8 MB by default).",
        cure=f"`--ulimit memlock=-1:-1` and `--cap-add=IPC_LOCK`: {LAUNCH} gives both; {DOCTOR} "
        "shows the node's limit.",
        sources=(
            "https://github.com/NVIDIA/nccl-tests/issues/206",
            "https://github.com/NVIDIA/cudf-spark/pull/7632",
            "https://github.com/openucx/ucx/issues/6264",
        ),
    ),
    Entry(
        id="rdma-broke",
        area=Area.NCCL,
        title="An RDMA connection broke or never worked",
        says="NCCL WARN NET/IB : Got completion from peer … with status=12 …",
        signs=(
            sign(
                "Got completion from peer",
                r"from peer (?P<peer>[^\s<]+)<\d+> with (?:status=|error )(?P<status>\d+)",
            ),
        ),
        cause="Packets do not arrive: the wrong GID, MTUs that differ, a cable, or a peer that "
        "died. Status 12 is a retry that was exceeded, 5 follows from another one.",
        cure=f"{DOCTOR} compares links and MTUs; `NCCL_IB_GID_INDEX` for RoCE v2 in the "
        "profile's `env`; look into the peer's log first.",
        sources=(f"{NCCL}1664", f"{NCCL}1814"),
    ),
    Entry(
        id="mixed-nccl",
        area=Area.NCCL,
        title="The ranks have different releases of NCCL",
        says="NCCL version 2.28.9+cuda13.0 … NCCL version 2.30.4+cuda13.2",
        signs=(),
        cause="Nodes run different images, a preload was ignored on some, or one process maps "
        "two libraries.",
        cure="`python build.py nodes` shows who has which image, `distribute` makes them "
        f"equal; {LAUNCH} proves the banner of every rank.",
        sources=(f"{NCCL}286",),
    ),
)

_RUNNING = (
    Entry(
        id="shm-broadcast",
        area=Area.RUNNING,
        title="The workers do not answer any more (shm_broadcast)",
        says="No available shared memory broadcast block found in 60 seconds.",
        signs=(
            sign(
                "No available shared memory broadcast block found",
                r"found in (?P<seconds>\d+) seconds",
            ),
        ),
        holds=_not_while_starting,
        why_not="before the server was ready it was slow work: compiling, loading",
        cause="A rank hangs. With NCCL 2.28.9 over four nodes that comes with every long "
        "generation; else a worker died, or work takes long (compilation, a first long "
        "prompt).",
        cure="See which NCCL every rank loaded: it must be the pinned one, 2.30.4 or later for "
        f"TP=4. {LAUNCH} preloads it and proves it; then `python build.py restart`.",
        sources=(f"{VLLM}27313", "https://github.com/local-inference-lab/rtx6kpro/issues/24"),
        tells_nccl=True,
    ),
    Entry(
        id="nccl-timeout",
        area=Area.RUNNING,
        title="A collective operation of NCCL never ended",
        says="Watchdog caught collective operation timeout: WorkNCCL(…)",
        signs=(
            sign(
                "Watchdog caught collective operation timeout",
                r"OpType=(?P<operation>\w+).*ran for (?P<ms>\d+) milliseconds",
            ),
        ),
        cause="One rank hangs, died or is not where the others are; the others wait until the "
        "watchdog ends them.",
        cure="The first rank that fell silent has the reason: `python build.py logs` shows all "
        "nodes as one. Look at the NCCL release and the transport above.",
        sources=(f"{VLLM}6042", "https://github.com/pytorch/pytorch/issues/118369"),
        tells_nccl=True,
    ),
    Entry(
        id="peer-left",
        area=Area.RUNNING,
        title="Another rank closed the connection",
        says="NCCL WARN socketProgress: Connection closed by remote peer …",
        signs=(
            sign(
                "Connection closed by remote peer",
                r"remote peer (?P<peer>[^\s<]+)",
            ),
            sign(
                "A call failed possibly due to a network error or a remote process exiting "
                "prematurely"
            ),
        ),
        cause="That rank ended, or its node is gone. This log is of one that noticed.",
        cure="`python build.py status`; explain the log of that node.",
        sources=(f"{NCCL}1232", f"{VLLM}3722"),
    ),
    Entry(
        id="cold-cache",
        area=Area.RUNNING,
        title="Each start compiles anew: the cache is not kept",
        says="Using cache directory: …/torch_compile_cache/… then Compiling a graph for …, again",
        signs=(),
        cause="The same compiled graph was made more than once: the cache folders are not "
        "mounted, or are of the container and went with it.",
        cure=f"Mount `/root/.cache/vllm` and `/root/.triton/cache` (and flashinfer's): {LAUNCH} "
        "makes and mounts them, keyed by the image's digest.",
        sources=(f"{VLLM}20264", f"{VLLM}13144"),
    ),
    Entry(
        id="nccl-unexplained",
        area=Area.RUNNING,
        title="NCCL failed, and does not say why",
        says="NCCL error … (run with NCCL_DEBUG=INFO for details)",
        signs=(sign("run with NCCL_DEBUG=INFO for details"),),
        cause="NCCL's own lines are missing from this log.",
        cure=f"Set `NCCL_DEBUG=INFO` ({LAUNCH} does), start again, and explain that log.",
        sources=(f"{VLLM}6732",),
        generic=True,
        tells_nccl=True,
    ),
    Entry(
        id="worker-died",
        area=Area.RUNNING,
        title="A worker process died",
        says="Worker proc … died unexpectedly",
        signs=(
            sign("died unexpectedly", r"Worker proc (?P<worker>\S+) died unexpectedly"),
            sign("WorkerProc initialization failed due to an exception in a background process"),
        ),
        cause="The reason stands before this line, or in another node's log; where nothing is, "
        "the kernel may have ended it (`dmesg`).",
        cure="Explain the logs of all nodes together: `python build.py explain FILE FILE …`.",
        sources=(f"{VLLM}18446", f"{VLLM}44411"),
        generic=True,
    ),
    Entry(
        id="engine-core-failed",
        area=Area.RUNNING,
        title="The engine did not start",
        says="RuntimeError: Engine core initialization failed. See root cause above.",
        signs=(sign("Engine core initialization failed. See root cause above"),),
        cause="The root cause stands above in the log, and is none that is known here.",
        cure="Read the first ERROR line above it.",
        sources=(f"{VLLM}19002", f"{VLLM}18416"),
        generic=True,
    ),
)

TABLE: tuple[Entry, ...] = (
    *_DOCKER, *_IMAGE, *_ARGUMENTS, *_MODEL, *_MEMORY, *_NETWORK, *_NCCL, *_RUNNING,
)  # fmt: skip

BY_ID = {entry.id: entry for entry in TABLE}
MIXED_NCCL = BY_ID["mixed-nccl"]
COLD_CACHE = BY_ID["cold-cache"]
