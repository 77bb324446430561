"""Lines of real logs, with the page that each was taken from, and lines that only look like them.

They are short quotations for tests: what a reader of logs must know, or must not take for it. What
shows in several lines together (mixed-nccl, cold-cache, RDMA that is missing) is put together from
real ones.
"""

from __future__ import annotations

VLLM = "https://github.com/vllm-project/vllm/issues/"
NCCL = "https://github.com/NVIDIA/nccl/issues/"

SOCKETS = """\
<cluster_name>:919:1150 [0] NCCL INFO Channel 00/0 : 0[0] -> 8[0] [receive] via NET/Socket/0
<cluster_name>:919:1150 [0] NCCL INFO Channel 00/0 : 8[0] -> 0[0] [send] via NET/Socket/0
"""

TRUE: dict[str, tuple[tuple[str, str], ...]] = {
    "only-following": (
        (
            "https://github.com/vllm-project/vllm/blob/main/vllm/v1/engine/core.py",
            "RuntimeError: Executor failed.",
        ),
    ),
    "unknown-runtime": (
        (
            "https://github.com/NVIDIA/nvidia-docker/issues/578",
            "docker: Error response from daemon: Unknown runtime specified nvidia.",
        ),
        (
            "https://github.com/NVIDIA/nvidia-container-toolkit/issues/150",
            "docker: Error response from daemon: unknown or invalid runtime name: nvidia.",
        ),
    ),
    "no-gpu-driver": (
        (
            "https://github.com/NVIDIA/nvidia-docker/issues/1034",
            'could not select device driver "" with capabilities: [[gpu]].',
        ),
    ),
    "no-driver-library": (
        (
            "https://github.com/NVIDIA/libnvidia-container/issues/231",
            (
                "nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1: "
                "cannot open shared object file: no such file or directory"
            ),
        ),
    ),
    "driver-too-old": (
        (
            f"{VLLM}5635",
            (
                "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.4, please "
                "update your driver to a newer version, or use an earlier cuda container: unknown."
            ),
        ),
        (
            "https://github.com/ovg-project/kvcached/issues/74",
            "CUDA driver version is insufficient for CUDA runtime version",
        ),
    ),
    "device-missing": (
        (
            "https://github.com/Xilinx/Vitis-AI/issues/1256",
            (
                "Error response from daemon: error gathering device information while adding custom "
                'device "/dev/dri/renderD128": no such file or directory.'
            ),
        ),
    ),
    "name-in-use": (
        (
            "https://github.com/docker/docs/pull/17816",
            (
                'docker: Error response from daemon: Conflict. The container name "/rest-server" is '
                'already in use by container "abc". '
            ),
        ),
    ),
    "unpack-failed": (
        (
            "https://github.com/moby/moby/blob/master/daemon/containerd/image_exporter.go",
            (
                "Error unpacking image docker.io/library/one:latest: content digest sha256:16ab: not "
                "found"
            ),
        ),
    ),
    "layer-record-left": (
        (
            "https://github.com/moby/moby/issues/44909",
            (
                "failed to register layer: rename /var/lib/docker/image/overlay2/layerdb/tmp/write-set"
                "-508278197 /var/lib/docker/image/overlay2/layerdb/sha256/e5e13b0c77cbb769548077189c3d"
                "a2f0a764ceca06af49d8d558e759f5c232bd: file exists"
            ),
        ),
        (
            "https://github.com/idaholab/moose/issues/22746",
            (
                "docker: failed to register layer: rename /var/lib/docker/image/btrfs/layerdb/tmp/"
                "write-set-2670145948 /var/lib/docker/image/btrfs/layerdb/sha256/3cbfecd5b748c8e7a47ca"
                "492d03f26007fe50dc5a5cec360928685d6d074c8b7: file exists."
            ),
        ),
    ),
    "layer-files-gone": (
        (
            "https://github.com/moby/moby/issues/41190",
            (
                "Error response from daemon: stat /var/lib/docker/overlay2/f124d6b53e9f1064e3942d303f9"
                "0723475eca4849013e8ef7007e29997e80beb: no such file or directory"
            ),
        ),
        (
            "https://github.com/containerd/containerd/issues/3369",
            (
                "failed to prepare extraction snapshot: failed to stat parent: stat /var/lib/"
                "containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/112/fs: no such file or "
                "directory"
            ),
        ),
    ),
    "wrong-platform": (
        (
            "https://github.com/sickcodes/dock-droid/issues/16",
            "exec /bin/bash: exec format error",
        ),
        (
            "https://github.com/outofcontrol/mediawiki-to-gfm/issues/37",
            (
                "WARNING: The requested image's platform (linux/arm64/v8) does not match the detected "
                "host platform (linux/amd64/v1) and no specific platform was requested"
            ),
        ),
    ),
    "preload-ignored": (
        (
            "https://github.com/lutris/lutris/issues/5658",
            (
                "ERROR: ld.so: object 'libgamemodeauto.so.0' from LD_PRELOAD cannot be preloaded "
                "(cannot open shared object file): ignored."
            ),
        ),
        (
            "https://github.com/rizsotto/Bear/issues/582",
            (
                "ERROR: ld.so: object '/usr/$LIB/bear/libexec.so' from LD_PRELOAD cannot be preloaded "
                "(cannot open shared object file): ignored."
            ),
        ),
    ),
    "nccl-missing": (
        (
            f"{VLLM}4257",
            (
                "ERROR 04-22 15:53:32 pynccl.py:44] Failed to load NCCL library from libnccl.so.2 .It "
                "is expected if you are not running on NVIDIA/AMD GPUs."
            ),
        ),
    ),
    "torch-without-cuda": (
        (
            "https://github.com/vllm-project/vllm-ascend/issues/780",
            (
                'ERROR 05-07 05:58:46 core.py:291]     raise AssertionError("Torch not compiled with '
                'CUDA enabled")\n'
                "ERROR 05-07 05:58:46 core.py:291] AssertionError: Torch not compiled with CUDA enabled"
            ),
        ),
    ),
    "no-device-type": ((f"{VLLM}13946", "RuntimeError: Failed to infer device type"),),
    "no-kernel-image": (
        (
            f"{VLLM}1936",
            (
                "vllm_1   | RuntimeError: CUDA error: no kernel image is available for execution on "
                "the device"
            ),
        ),
    ),
    "ptxas-unknown-arch": (
        (
            "https://github.com/triton-lang/triton/issues/8539",
            "ptxas fatal   : Value 'sm_121a' is not defined for option 'gpu-name'",
        ),
    ),
    "no-c-compiler": (
        (
            f"{VLLM}2997",
            "RuntimeError: Failed to find C compiler. Please specify via CC environment variable",
        ),
    ),
    "no-libcuda-to-link": (
        (f"{VLLM}12505", "/usr/bin/ld: cannot find -lcuda: No such file or directory"),
        (f"{VLLM}12505", "/usr/bin/ld: cannot find -lcudart: No such file or directory"),
    ),
    "nvcc-headers": (
        (
            (
                "https://github.com/NVIDIA/cccl/blob/main/libcudacxx/include/cuda/std/__cccl/"
                "cuda_toolkit.h"
            ),
            (
                'cuda_toolkit.h:41:8: error: #error "CUDA compiler and CUDA toolkit headers are '
                'incompatible, please check your include paths"'
            ),
        ),
    ),
    "no-nvcc": (
        (
            "https://github.com/keras-team/kinetic/issues/269",
            (
                "RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't "
                "exist"
            ),
        ),
    ),
    "undefined-symbol": (
        (
            f"{VLLM}13608",
            (
                "ImportError: /workspace/vllm-abo/vllm/_C.abi3.so: undefined symbol: "
                "_ZN5torch3jit17parseSchemaOrNameERKSsb"
            ),
        ),
        (
            f"{VLLM}5501",
            (
                "WARNING 06-13 11:42:20 _custom_ops.py:11] Failed to import from vllm._C with "
                "ImportError('/usr/local/lib/python3.8/dist-packages/vllm/_C.abi3.so: undefined "
                "symbol: _ZN5torch7LibraryC1ENS0_4KindESsSt8optionalIN3c1011DispatchKeyEEPKcj')"
            ),
        ),
    ),
    "flashinfer-mixed": (
        (
            f"{VLLM}49804",
            (
                "flashinfer-cubin version (0.6.13) does not match flashinfer version (0.6.14). Please "
                "install the same version of both packages. Set FLASHINFER_DISABLE_VERSION_CHECK=1 to "
                "bypass this check."
            ),
        ),
    ),
    "doubled-entrypoint": (
        (
            f"{VLLM}37133",
            "vllm: error: unrecognized arguments: serve /models/GLM-4.7-Flash-AWQ-4bit",
        ),
    ),
    "unknown-argument": (
        (
            f"{VLLM}42399",
            (
                'vllm: error: unrecognized arguments: --reasoning-config {"reasoning_start_str":'
                '"<think>"}'
            ),
        ),
        (
            "https://github.com/vllm-project/recipes/issues/20",
            "vllm: error: unrecognized arguments: --tool-server demo",
        ),
    ),
    "context-too-long": (
        (
            f"{VLLM}3676",
            (
                "ValueError: User-specified max_model_len (131072) is greater than the derived "
                "max_model_len (None=8192 in model's config.json). This may lead to incorrect model"
            ),
        ),
    ),
    "too-few-gpus": (
        (
            f"{VLLM}15217",
            (
                "RuntimeError: please ensure that world_size (2) is less than than max local gpu "
                "count (1)"
            ),
        ),
        (
            "https://github.com/NVIDIA-NeMo/Skills/issues/1059",
            (
                "Value error, Tensor parallel size (16) cannot be larger than the number of available "
                "GPUs (8)"
            ),
        ),
    ),
    "dspark-too-few": (
        (
            f"{VLLM}50012",
            (
                "Smaller values produce incorrect output. Use "
                "num_speculative_tokens=dspark_block_size or larger (e.g. 7)."
            ),
        ),
    ),
    "unknown-speculation": (
        (f"{VLLM}47825", "ValueError: Unknown speculative decoding method: mlp_speculator"),
        (
            "https://github.com/vllm-project/vllm-ascend/issues/9144",
            "Unsupported speculative method: 'mtp'",
        ),
    ),
    "unknown-tokenizer-mode": (
        (
            f"{VLLM}30933",
            (
                "(APIServer pid=816209) ValueError: No tokenizer registered for "
                "tokenizer_mode='deepseek_v32'. "
            ),
        ),
    ),
    "unknown-tool-parser": (
        (
            "https://github.com/vllm-project/vllm-ascend/issues/8997",
            "invalid tool call parser: deepseek_v4",
        ),
    ),
    "trust-remote-code": (
        (
            f"{VLLM}9531",
            (
                "valueerror: loading internvl2-8b/ requires you to execute the configuration file in "
                "that repo on your local machine. make sure you have read the code there"
            ),
        ),
        (
            "https://github.com/runpod-workers/worker-vllm/issues/43",
            (
                "2024-02-08T08:40:56.161703147Z The repository for TheBloke/Nous-Capybara-34B-AWQ "
                "contains custom code which must be executed to correctly load the model."
            ),
        ),
    ),
    "model-not-there": (
        (
            f"{VLLM}10974",
            (
                "ERROR 12-07 02:10:11 engine.py:366] Repo id must be in the form 'repo_name' or "
                "'namespace/repo_name': '/models/'. Use `repo_type` argument if needed."
            ),
        ),
    ),
    "broken-safetensors": (
        (
            "https://github.com/deepseek-ai/DeepSeek-V3/issues/557",
            "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge",
        ),
    ),
    "gated-model": (
        (
            "https://github.com/h2oai/h2ogpt/issues/1600",
            "OSError: You are trying to access a gated repo.",
        ),
        (
            "https://github.com/zylon-ai/private-gpt/issues/1861",
            (
                "Cannot access gated repo for url "
                "https://huggingface.co/mistralai/Mistral-7B-Instruct-v0.2/resolve/main/config.json."
            ),
        ),
    ),
    "memory-not-free": (
        (
            "https://github.com/pytorch/pytorch/issues/175666",
            (
                "[2026-02-24T20:21:58Z] (EngineCore_DP0 pid=6940) ValueError: Free memory on device "
                "cuda:1 (19.77/22.05 GiB) on startup is less than desired GPU memory utilization (0.9, "
                "19.84 GiB). Decrease GPU memory utilization or reduce GPU memory used by other "
                "processes."
            ),
        ),
    ),
    "cuda-out-of-memory": (
        (
            f"{VLLM}15598",
            (
                "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 MiB. GPU 6 has a "
                "total capacity of 44.53 GiB of which 448.00 KiB is free."
            ),
        ),
        (f"{VLLM}18446", "(VllmWorker rank=7 pid=240) Cuda failure 'out of memory'"),
    ),
    "driver-out-of-memory": (
        (
            "https://github.com/NVIDIA/dgx-spark-playbooks/issues/97",
            "NVRM: nvCheckOkFailedNoLog: Check failed: Out of memory [NV_ERR_NO_MEMORY]",
        ),
    ),
    "kv-cache-too-small": (
        (
            f"{VLLM}34076",
            (
                "(EngineCore_DP0 pid=1094) ValueError: To serve at least one request with the models's "
                "max seq len (262144), (24.0 GiB KV cache is needed, which is larger than the "
                "available KV cache memory (3.18 GiB). Based on the available memory, the estimated "
                "maximum model length is 34736."
            ),
        ),
        (
            f"{VLLM}16118",
            (
                "ERROR 04-05 01:12:55 [core.py:390] ValueError: To serve at least one request with the "
                "models's max seq len (1048576), (24.00 GiB KV cache is needed, which is larger than "
                "the available KV cache memory (9.97 GiB)."
            ),
        ),
        (
            f"{VLLM}2418",
            (
                "ValueError: The model's max seq len (4096) is larger than the maximum number of "
                "tokens that can be stored in KV cache (3664). Try increasing "
                "`gpu_memory_utilization` or decreasing `max_model_len`"
            ),
        ),
    ),
    "no-kv-cache": (
        (
            f"{VLLM}2248",
            (
                "ValueError: No available memory for the cache blocks. Try increasing "
                "`gpu_memory_utilization` when initializing the engine."
            ),
        ),
    ),
    "killed-by-kernel": (
        (
            "https://github.com/LMCache/LMCache/issues/4759",
            (
                "[Thu Aug 27 00:39:44 2026] Out of memory: Killed process 3742074 (lmcache) "
                "total-vm:81306880kB, anon-rss:1058560kB"
            ),
        ),
        ("https://github.com/LMCache/LMCache/issues/4759", "Exited (137)"),
    ),
    "shm-too-small": (
        (
            f"{NCCL}342",
            (
                "include/shm.h:28 NCCL WARN Call to posix_fallocate failed: No space left on device\n"
                "include/shm.h:48 NCCL WARN Error while creating shared memory segment "
                "nccl-shm-recv-250a7cc850ba9298-0-1-3 (size 9637888)"
            ),
        ),
        (
            "https://github.com/pytorch/ci-infra/pull/490",
            (
                "[0] misc/shmutils.cc:132 NCCL WARN Error while creating shared memory segment "
                "/dev/shm/nccl-WU88OE (size 9637888), error: No space left on device (28)"
            ),
        ),
    ),
    "disk-full": (
        (
            f"{VLLM}7025",
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
        ),
    ),
    "cache-not-writable": (
        (
            "https://github.com/odysseus-dev/odysseus/issues/6157",
            "PermissionError: [Errno 13] Permission denied: '/app/.cache/vllm'",
        ),
    ),
    "port-in-use": (
        (
            f"{VLLM}39015",
            (
                "torch.distributed.DistNetworkError: The server socket has failed to listen on any "
                "local network address. port: 29500, useIpv6: false, code: -98, name: EADDRINUSE, "
                "message: address already in use"
            ),
        ),
        (
            f"{VLLM}7514",
            "error while attempting to bind on address ('0.0.0.0', 8000): address already in use",
        ),
        (f"{VLLM}11617", "OSError: [Errno 98] Address already in use"),
    ),
    "master-not-reached": (
        (
            f"{VLLM}19670",
            (
                "torch.distributed.DistNetworkError: The client socket has timed out after 600000ms "
                "while trying to connect to (172.17.0.9, 46229)."
            ),
        ),
        (
            f"{VLLM}2427",
            "[E socket.cpp:719] [c10d] The client socket has failed to connect to any network address of (x.x.x.x, 48247).",
        ),
    ),
    "workers-missing": (
        (
            "https://github.com/pytorch/pytorch/pull/111805",
            (
                "torch.distributed.DistStoreError: Timed out after 6 seconds waiting for workers. 1/2 "
                "workers joined."
            ),
        ),
        (
            f"{VLLM}52907",
            (
                "(Worker pid=2437300) ERROR 08-31 06:22:53 [multiproc_executor.py:944] "
                "torch.distributed.DistStoreError: wait timeout after 1800000ms, keys: "
                "/default_pg/0//2//cpu//0/2"
            ),
        ),
    ),
    "gloo-interface": (
        (
            f"{VLLM}5094",
            (
                "ERROR 05-29 04:08:22 worker_base.py:145] RuntimeError: Gloo connectFullMesh failed "
                "with [../third_party/gloo/gloo/transport/tcp/pair.cc:144] no error"
            ),
        ),
    ),
    "no-such-interface": (
        (
            f"{NCCL}1837",
            (
                "[trainer0|0]:ncclSocketInit: connecting to address  with family 59936 is neither "
                "AF_INET(2) nor AF_INET6(10)"
            ),
        ),
        (
            "https://github.com/marin-community/marin/issues/6940",
            "Bootstrap : no socket interface found",
        ),
    ),
    "mount-missing": (
        (
            "https://github.com/devcontainers/cli/issues/613",
            'docker: Error response from daemon: invalid mount config for type "bind": bind source path does not exist: /app.',
        ),
    ),
    "no-python-headers": (
        (f"{VLLM}27890", "fatal error: Python.h: No such file or directory"),
        (
            "https://github.com/sgl-project/sglang/issues/1117",
            "/tmp/tmps1rkq3y3/main.c:5:10: fatal error: Python.h: No such file or directory",
        ),
    ),
    "deepgemm-arch": (
        (
            f"{VLLM}40778",
            "vllm  | (Worker_TP0_EP0 pid=407) ERROR 04-24 18:37:45 [multiproc_executor.py:971] RuntimeError: Assertion error (/workspace/.deps/deepgemm-src/csrc/apis/hyperconnection.hpp:56): Unsupported architecture",
        ),
    ),
    "unknown-architecture": (
        (
            f"{VLLM}11520",
            "ValueError: Model architectures ['DeepseekV3ForCausalLM'] are not supported for now.",
        ),
    ),
    "missing-shards": (
        (
            "https://github.com/noonghunna/club-3090/issues/1036",
            "Error: Weight files referenced in index but missing:",
        ),
    ),
    "weights-not-in-model": (
        (
            "https://github.com/hiyouga/LlamaFactory/issues/7837",
            "ValueError: Following weights were not initialized from checkpoint: {'visual.blocks.29.mlp.gate_proj.weight'}",
        ),
    ),
    "rpc-timeout": (
        (
            "https://github.com/eugr/spark-vllm-docker/issues/321",
            "EngineCore crashes with TimeoutError: RPC call to sample_tokens timed out",
        ),
    ),
    "socket-fallback": ((f"{NCCL}952", SOCKETS),),
    "no-verbs-device": (
        (
            f"{NCCL}226",
            "ip-172-31-0-11:45384:45384 [0] NCCL INFO NET/IB : No device found.\n" + SOCKETS,
        ),
    ),
    "no-libibverbs": (
        (
            f"{VLLM}6732",
            "h100:841:841 [3] NCCL INFO Failed to open libibverbs.so[.1]\n" + SOCKETS,
        ),
    ),
    "memlock": (
        (
            "https://github.com/NVIDIA/nccl-tests/issues/206",
            (
                "misc/ibvwrap.cc:278 NCCL WARN Call to ibv_reg_mr_iova2 failed with error Cannot "
                "allocate memory"
            ),
        ),
        (
            "https://github.com/NVIDIA/cudf-spark/pull/7632",
            "ERROR mlx5_0: ibv_create_cq() failed: Cannot allocate memory.",
        ),
        (
            "https://github.com/openucx/ucx/issues/6264",
            "UCX ERROR ibv_reg_mr failed: Cannot allocate memory",
        ),
    ),
    "ucx-without-cuda": (
        (
            "https://github.com/LMCache/LMCache/issues/1998",
            (
                "[1754890927.298391] [node-6:270  :0]   ucp_context.c:1100 UCX  WARN  transports "
                "'cuda_ipc','cuda_copy' are not available\n"
                "nixl._bindings.nixlBackendError: NIXL_ERR_BACKEND"
            ),
        ),
    ),
    "rdma-broke": (
        (
            f"{NCCL}1814",
            (
                "hostname-test:984:1357 [4] ib_plugin.c:1615 NCCL WARN NET/IB : Got completion from "
                "peer 172.36.143.59<44206> with status=12 opcode=129 len=65536 vendor err 129 (Recv)"
            ),
        ),
        (
            f"{NCCL}928",
            (
                "H100-2:19989:20082 [1] transport/net_ib.cc:1295 NCCL WARN NET/IB : Got completion "
                "from peer fe80::966d:ae03:8b:df78%ib0<53249> with error 4, opcode 32564, len 32564"
            ),
        ),
    ),
    "mixed-nccl": (
        (
            f"{VLLM}12292",
            (
                "(VllmWorkerProcess pid=24153) INFO 01-21 17:23:12 pynccl.py:63] vLLM is using "
                "nccl==2.20.5\n"
                "NCCL version 2.21.5+cuda12.4"
            ),
        ),
    ),
    "shm-broadcast": (
        (
            f"{VLLM}27313",
            (
                "(EngineCore_DP0 pid=77352) INFO 10-22 09:43:49 [shm_broadcast.py:466] No available "
                "shared memory broadcast block found in 60 seconds. This typically happens when some "
                "processes are hanging or doing some time-consuming work (e.g. compilation)."
            ),
        ),
        (f"{VLLM}10661", "No available block found in 60 second."),
    ),
    "nccl-timeout": (
        (
            f"{VLLM}6042",
            (
                "[rank0]:[E ProcessGroupNCCL.cpp:563] [Rank 0] Watchdog caught collective operation "
                "timeout: WorkNCCL(SeqNum=2, OpType=ALLREDUCE, NumelIn=134217728, NumelOut=134217728, "
                "Timeout(ms)=600000) ran for 600059 milliseconds before timing out."
            ),
        ),
    ),
    "peer-left": (
        (
            f"{NCCL}1232",
            "NCCL WARN socketProgress: Connection closed by remote peer node2<42830>",
        ),
        (
            f"{VLLM}3722",
            (
                "ncclRemoteError: A call failed possibly due to a network error or a remote process "
                "exiting prematurely."
            ),
        ),
    ),
    "cold-cache": (
        (
            f"{VLLM}13144",
            (
                "INFO 02-18 04:51:41 backends.py:577] Using cache directory: "
                "/root/.cache/vllm/torch_compile_cache/800ea12410/rank_0 for vLLM's torch.compile\n"
                "INFO 02-18 04:51:45 backends.py:321] Compiling a graph for general shape takes 30.34 "
                "s\n"
                "INFO 02-18 05:51:41 backends.py:577] Using cache directory: "
                "/root/.cache/vllm/torch_compile_cache/800ea12410/rank_0 for vLLM's torch.compile\n"
                "INFO 02-18 05:51:45 backends.py:321] Compiling a graph for general shape takes 30.34 "
                "s"
            ),
        ),
    ),
    "nccl-unexplained": (
        (
            f"{VLLM}6732",
            (
                "[rank0]: RuntimeError: NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for "
                "details)"
            ),
        ),
    ),
    "worker-died": (
        (
            f"{VLLM}18446",
            (
                "ERROR 05-21 09:27:46 [multiproc_executor.py:123] Worker proc VllmWorker-6 died "
                "unexpectedly, shutting down executor."
            ),
        ),
        (
            f"{VLLM}44411",
            (
                "Exception: WorkerProc initialization failed due to an exception in a background "
                "process. See stack trace for root cause."
            ),
        ),
    ),
    "engine-core-failed": (
        (
            f"{VLLM}18416",
            (
                "RuntimeError: Engine core initialization failed. See root cause above. Failed core "
                "proc(s): {'EngineCore_0': 1}"
            ),
        ),
    ),
}

LOOKS_LIKE: dict[str, tuple[str, ...]] = {
    "only-following": ("KeyboardInterrupt", "asyncio.exceptions.CancelledError"),
    "unknown-runtime": ("Runtimes: io.containerd.runc.v2 nvidia runc", "unknown runtime error"),
    "no-gpu-driver": ('could not select device driver "none" for volume data',),
    "no-driver-library": ("load library failed: libother.so.1: no such file",),
    "driver-too-old": ("NVIDIA_REQUIRE_CUDA=cuda>=12.8 brand=unknown,driver>=470,driver<471",),
    "device-missing": ('adding custom device "/dev/infiniband": operation not permitted',),
    "name-in-use": ("port is already in use by container proxy",),
    "unpack-failed": ("Unpacking image docker.io/library/one:latest", "Error unpacking archive"),
    "layer-record-left": ("rename /tmp/one /srv/layers/two: file exists",),
    "layer-files-gone": (
        "stat /data/overlay2: no such file or directory",
        "failed to stat parent: stat /data/snapshots/3/fs: permission denied",
    ),
    "wrong-platform": ("the format of this exec is an error", "platform (linux/arm64) was asked"),
    "preload-ignored": ("LD_PRELOAD=/usr/lib/aarch64-linux-gnu/libnccl.so.2.30.4",),
    "nccl-missing": ("Found nccl from library libnccl.so.2",),
    "torch-without-cuda": ("Torch was compiled with CUDA 13.0",),
    "no-device-type": ("Automatically detected platform cuda.",),
    "no-kernel-image": ("the kernel image is available", "kernel image loaded on the device"),
    "ptxas-unknown-arch": ("Repro command: ptxas --gpu-name=sm_121a /tmp/one.ptx",),
    "no-c-compiler": ("Found C compiler: /usr/bin/gcc",),
    "no-libcuda-to-link": ("cc -O3 -shared -lcuda -o cuda_utils.so",),
    "nvcc-headers": ("the CUDA compiler and the CUDA toolkit headers were found",),
    "no-nvcc": ("DG_JIT_NVCC_COMPILER=/usr/local/cuda/bin/nvcc",),
    "undefined-symbol": ("undefined symbol: in a template", "symbols are defined in libone.so"),
    "flashinfer-mixed": ("flashinfer version (0.6.14) is used",),
    "doubled-entrypoint": (
        "vllm: error: unrecognized arguments: --served-model-name x",
        "vllm: error: unrecognized arguments: server.py",
        "usage: vllm serve [model_tag] [options]",
    ),
    "unknown-argument": (
        "vllm: error: unrecognized arguments: serve /models/one",
        "non-default args: {'model_tag': '/models/one'}",
    ),
    "context-too-long": ("max_model_len (4096) is the derived max_model_len",),
    "too-few-gpus": ("world_size=2 rank=1 local_rank=0",),
    "dspark-too-few": ("num_speculative_tokens=5 is larger than before",),
    "unknown-speculation": ("speculative_config=SpeculativeConfig(method='deepseek_mtp')",),
    "unknown-tokenizer-mode": ("tokenizer_mode='deepseek_v4', revision=None",),
    "unknown-tool-parser": ("'tool_call_parser': 'deepseek_v4'",),
    "trust-remote-code": ("trust_remote_code=True, dtype=torch.bfloat16",),
    "model-not-there": (
        "Repo id must be in the form 'repo_name' or 'namespace/repo_name': 'one two'.",
    ),
    "broken-safetensors": ("Loading safetensors checkpoint shards: 100% Completed | 3/3",),
    "gated-model": ("the repo was accessed", "gated activation units"),
    "memory-not-free": ("GPU memory utilization 0.9 is desired on startup",),
    "cuda-out-of-memory": ("CUDA memory: 3.18 GiB out of 24", "out of memory budget: none"),
    "kv-cache-too-small": (
        "INFO [gpu_worker.py:358] Available KV cache memory: 18.78 GiB",
        "INFO [kv_cache_utils.py:1305] GPU KV cache size: 175,856 tokens",
    ),
    "no-kv-cache": ("cuda blocks: 7191, CPU blocks: 512",),
    "killed-by-kernel": ("Exited (0) 3 minutes ago", "memory: 137 of 512"),
    "shm-too-small": (
        (
            "NCCL WARN Error while attaching to shared memory segment /dev/shm/nccl- (size "
            "192814336), error: No such file or directory (2)"
        ),
    ),
    "disk-full": (
        "Call to posix_fallocate failed : No space left on device",
        "failed to extend /dev/shm/nccl-WU88OE, error: No space left on device (28)",
    ),
    "cache-not-writable": ("PermissionError: [Errno 13] Permission denied: '/etc/shadow'",),
    "port-in-use": ("Bind address 0.0.0.0, port 8000", "the address is used already"),
    "master-not-reached": ("The client socket connected to (172.17.0.9, 46229).",),
    "workers-missing": ("Waiting for 1 local, 0 remote core engine proc(s) to start.",),
    "gloo-interface": (
        "[Gloo] Rank 0 is connected to 0 peer ranks. Expected number of connected peer ranks is",
    ),
    "no-such-interface": ("NCCL INFO Bootstrap : Using eth0:172.17.0.3<0>",),
    "socket-fallback": (
        "host:1:2 [0] NCCL INFO Channel 00/0 : 0[0] -> 8[0] [receive] via NET/IB/0",
        "host:1:2 [0] NCCL INFO NET/Socket : Using [0]eth0:172.17.0.3<0>",
        "host:1:2 [0] NCCL INFO Using network Socket",
        "host:1:2 [0] NCCL INFO NCCL_IB_DISABLE set by environment to 1.\n" + SOCKETS,
    ),
    "no-verbs-device": (
        "host:1:2 [0] NCCL INFO NET/IB : No device found.",
        "host:1:2 [0] NCCL INFO NET/IB : Using [0]rocep1s0f0:1/RoCE [RO]; OOB enp1s0f0:10.0.0.1",
    ),
    "no-libibverbs": ("host:1:2 [0] NCCL INFO Failed to open libibverbs.so[.1]",),
    "memlock": ("fork: Cannot allocate memory", "ibv_reg_mr took 3 ms"),
    "ucx-without-cuda": (
        # Nothing failed.
        "[1754890927.2] [node-6:270 :0] ucp_context.c:1100 UCX  WARN  transports 'cuda_copy' are not available",
    ),
    "rdma-broke": ("Got completion from the peer", "status=12"),
    "mixed-nccl": (
        "NCCL version 2.30.4+cuda13.2\nvLLM is using nccl==2.30.4",
        "nvidia-nccl-cu12==2.26.2\nNCCL version 2.30.4+cuda13.2",
    ),
    "shm-broadcast": (
        (
            "INFO 04-08 14:26:24 [shm_broadcast.py:264] vLLM message queue communication handle: "
            "Handle(local_reader_ranks=[0, 1])"
        ),
        # Slow work before the server was ready.
        (
            "No available shared memory broadcast block found in 60 seconds.\n"
            "INFO:     Application startup complete."
        ),
    ),
    "mount-missing": ("bind mount of /app is there", "the source path does exist"),
    "no-python-headers": ("#include <Python.h>", "one.h: No such file or directory"),
    "deepgemm-arch": ("Unsupported architecture of the host", "deepgemm-src was built"),
    "unknown-architecture": ("Resolved architecture: DeepseekV3ForCausalLM",),
    "missing-shards": ("Loading weights took 24.84 seconds", "all weight files are in the index"),
    "rpc-timeout": ("RPC call to execute_model took 3 s", "the call timed out"),
    "nccl-timeout": ("the watchdog timeout is 600000 milliseconds",),
    "peer-left": ("Connected all trees", "the connection was closed by the client"),
    "cold-cache": (
        # One start.
        (
            "Using cache directory: /c/800ea12410/rank_0 for vLLM's torch.compile\n"
            "Compiling a graph for dynamic shape takes 13.5 s\n"
            "Compiling a graph for shape 1 takes 3.5 s"
        ),
        # Two starts, the second from the cache.
        (
            "Using cache directory: /c/800ea12410/rank_0 for vLLM's torch.compile\n"
            "Compiling a graph for dynamic shape takes 13.5 s\n"
            "Using cache directory: /c/800ea12410/rank_0 for vLLM's torch.compile\n"
            "Directly load the compiled graph(s) for dynamic shape from the cache, took 1.803 s"
        ),
        # Two ranks, each for itself.
        (
            "one  | Using cache directory: /c/800ea12410/rank_0 for vLLM's torch.compile\n"
            "two  | Using cache directory: /c/800ea12410/rank_1 for vLLM's torch.compile\n"
            "one  | Compiling a graph for dynamic shape takes 13.5 s\n"
            "two  | Compiling a graph for dynamic shape takes 13.5 s"
        ),
    ),
    "nccl-unexplained": ("NCCL_DEBUG=INFO",),
    "worker-died": ("Worker ready; awaiting tasks",),
    "engine-core-failed": (
        "Engine core initialization took 34.11 seconds",
        # Named above: nothing new.
        (
            "RuntimeError: Failed to infer device type\n"
            "RuntimeError: Engine core initialization failed. See root cause above."
        ),
    ),
}

HEALTHY = """\
INFO 06-19 23:04:31 [api_server.py:1289] vLLM API server version 0.9.0.1
INFO 06-19 23:04:40 [pynccl.py:69] vLLM is using nccl==2.30.4
spark-1:101:101 [0] NCCL INFO NCCL version 2.30.4+cuda13.2
spark-1:101:101 [0] NCCL INFO NET/Plugin: Could not find: libnccl-net.so
spark-1:101:101 [0] NCCL INFO NET/IB : Using [0]rocep1s0f0:1/RoCE [RO]; OOB enp1s0f0np0:10.0.0.1<0>
spark-1:101:101 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[0] [send] via NET/IB/0
spark-1:101:101 [0] NCCL INFO Channel 00/0 : 3[0] -> 0[0] [receive] via NET/IB/0
INFO 06-19 23:05:01 [loader.py:447] Loading weights took 0.69 seconds
INFO 06-19 23:05:01 [gpu_model_runner.py:1273] Model loading took 3.4213 GiB and 0.902026 seconds
INFO 06-19 23:05:08 [shm_broadcast.py:466] No available shared memory broadcast block found in 60 \
seconds. This typically happens when some processes are hanging or doing some time-consuming work.
INFO 06-19 23:05:09 [backends.py:416] Using cache directory: \
/root/.cache/vllm/torch_compile_cache/8715b0a56a/rank_0_0 for vLLM's torch.compile
INFO 06-19 23:05:09 [backends.py:426] Dynamo bytecode transform time: 7.51 s
INFO 06-19 23:05:09 [backends.py:115] Directly load the compiled graph for shape None from the cache
INFO 06-19 23:05:18 [monitor.py:33] torch.compile takes 7.51 s in total
INFO 06-19 23:05:18 [kv_cache_utils.py:578] GPU KV cache size: 613,024 tokens
INFO 06-19 23:05:35 [gpu_model_runner.py:1608] Graph capturing finished in 17 secs, took 0.48 GiB
INFO:     Application startup complete.
INFO:     127.0.0.1:56038 - "POST /v1/chat/completions HTTP/1.1" 200 OK
INFO 06-19 23:07:01 [logger.py:39] Received request chatcmpl-1: prompt: 'What does "No available \
shared memory broadcast block found in 60 seconds" mean? And CUDA out of memory. Tried to allocate?'
"""
"""The lines of vLLM's start are those of https://github.com/vllm-project/vllm/issues/20264, with
those of NCCL on a node that uses RDMA around them."""
