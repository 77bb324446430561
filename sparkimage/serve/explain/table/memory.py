"""Failures of memory and disks."""

from __future__ import annotations

from sparkimage.serve.explain.entries import Area, Entry, sign
from sparkimage.serve.explain.table.links import DOCTOR, LAUNCH, NCCL, VLLM

ENTRIES = (
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
        cause="On unified memory loading weights and their page cache compete. An exit code 137 "
        "without a reason in the log is this, unless somebody killed the container.",
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
        signs=(sign("o space left on device", unless=r"/dev/shm|posix_fallocate"),),
        cause="Images that were replaced, caches and models fill the node's disk.",
        cure=f"`python build.py gc` removes old images from the nodes; `df -h`; {DOCTOR}.",
        sources=(f"{VLLM}7025",),
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
