"""Classes of failures in the wordings of several versions of vLLM, NCCL, torch, Docker and others.

The messages are those that the projects' sources format, with other names and addresses.
"""

from __future__ import annotations

import pytest

from sparkimage.serve.explain import knowledge

LINES: tuple[tuple[str, str, str], ...] = (
    (
        "ERROR:    [Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address already in use",
        "port-in-use",
        "",
    ),
    ("zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:5555')", "port-in-use", ""),
    (
        "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. port: 29501, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use",
        "port-in-use",
        "",
    ),
    (
        "Error response from daemon: failed to set up container networking: driver failed programming external connectivity on endpoint x (abc): failed to bind host port for 0.0.0.0:8000:172.17.0.2:8000/tcp: address already in use",
        "port-in-use",
        "",
    ),
    (
        "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:144] Connection refused [127.0.1.1]:36289",
        "not-reached",
        "",
    ),
    (
        "torch.distributed.DistStoreError: Timed out after 601 seconds waiting for clients. 1/2 clients joined.",
        "workers-missing",
        "",
    ),
    (
        "[rank1]:[E1129 17:20:46.896772212 socket.cpp:1019] [c10d] The client socket has timed out after 600000ms while trying to connect to (192.168.100.10, 29501).",
        "master-not-reached",
        "",
    ),
    ("socket.gaierror: [Errno -2] Name or service not known", "host-not-found", ""),
    (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 121.69 GiB of which 1.2 GiB is free.",
        "cuda-out-of-memory",
        "",
    ),
    (
        "huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1) Cannot access gated repo for url https://huggingface.co/meta-llama/x/resolve/main/config.json.",
        "gated-model",
        "",
    ),
    (
        "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. (Request ID: R)\n\nRepository Not Found for url: https://huggingface.co/api/models/x/y.",
        "no-such-repo",
        "",
    ),
    (
        "Value error, The checkpoint you are trying to load has model type `deepseek_v41` but Transformers does not recognize this architecture. This could be because",
        "transformers-too-old",
        "",
    ),
    (
        "safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata, file not fully covered",
        "broken-safetensors",
        "",
    ),
    (
        "OSError: Unable to load weights from pytorch checkpoint file for '/m/model.safetensors'",
        "broken-safetensors",
        "",
    ),
    (
        "[rank0]:[E1129 17:20:46.1 ProcessGroupNCCL.cpp:1984] [PG ID 0 PG GUID 0 Rank 0] Process group watchdog thread terminated with exception: CUDA error: an illegal memory access was encountered",
        "cuda-fault",
        "A kernel read or wrote where nothing is (CUDA error 700)",
    ),
    (
        "node1:1:2 [0] enqueue.cc:1000 NCCL WARN Cuda failure 700 'an illegal memory access was encountered'",
        "cuda-fault",
        "A kernel read or wrote where nothing is (CUDA error 700)",
    ),
    (
        "node1:1:2 [0] include/alloc.h:228 NCCL WARN Cuda failure 2 'out of memory'",
        "cuda-out-of-memory",
        "A call to CUDA found no memory",
    ),
    (
        "node1:1:2 [0] init.cc:400 NCCL WARN Cuda failure 'no kernel image is available for execution on the device'",
        "no-kernel-image",
        "",
    ),
    (
        "NVRM: GPU at PCI:0000:01:00: GPU-1\nNVRM: Xid (PCI:0000:01:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
        "gpu-fault",
        "The GPU has fallen off the bus (Xid 79)",
    ),
    (
        "NVRM: nvCheckOkFailedNoLog: Check failed: Out of memory [NV_ERR_NO_MEMORY] (0x00000051) returned from _memdescAllocInternal(pMemDesc) @ mem_desc.c:1359",
        "driver-out-of-memory",
        "The GPU's driver could get no memory (NV_ERR_NO_MEMORY)",
    ),
    (
        "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore_DP0': -9}",
        "process-ended",
        "A process was killed (signal 9): mostly by the kernel, for memory",
    ),
    (
        "(EngineCore pid=9) ERROR 11-29 17:26:09 [multiproc_executor.py:284] Worker proc VllmWorker-1 died unexpectedly, shutting down executor.",
        "worker-died",
        "",
    ),
    (
        "spark1:1:2 [0] ibvwrap.cc:262 NCCL WARN Call to ibv_modify_qp failed with 110 Connection timed out, on dev rocep1s0f0:1, curr state INIT, next state RTR, local GID index 3, local GID ::ffff:192.168.10.1, remote GID ::ffff:192.168.21.2",
        "rdma-connect",
        "The other node's RDMA device does not answer (errno 110)",
    ),
    (
        "misc/ibvwrap.cc:206 NCCL WARN Call to ibv_modify_qp failed with error No such device errno 19",
        "rdma-connect",
        "The RDMA device or its GID is gone (errno 19)",
    ),
    (
        "spark1:1:2 [0] ibvwrap.cc:262 NCCL WARN Call to ibv_modify_qp failed with 110 Connection timed out, on dev rocep1s0f0:1, curr state INIT, next state RTR, local GID index 1, local GID fe80::5e25:73ff:fe00:1, remote GID fe80::1",
        "rdma-connect",
        "The RDMA device has only a link-local GID (its interface has no IPv4)",
    ),
    (
        "spark1:1:2 [0] transport/net_ib.cc:2300 NCCL WARN NET/IB: Got completion from peer 192.168.100.2<4055> with status=12 opcode=0 len=0 vendor err 129 (Send) localGid ::ffff:192.168.100.1 remoteGids::ffff:192.168.100.2 hca rocep1s0f1",
        "rdma-broke",
        "RDMA packets to a peer were not answered (status 12)",
    ),
    (
        "spark1:1:2 [0] transport/net_ib.cc:2300 NCCL WARN NET/IB: Got completion from peer 192.168.100.2<4055> with status=IBV_WC_WR_FLUSH_ERR(5) opcode=IBV_WC_SEND(0) vendor_err=249 hca rocep1s0f1",
        "rdma-broke",
        "An RDMA connection was given up after an earlier error (status 5)",
    ),
    (
        "spark1:1:2 [0] transport/net_ib.cc:90 NCCL WARN NET/IB : rocep1s0f1:1 Got async event : port error",
        "rdma-port",
        "",
    ),
    (
        "spark1:1:2 [0] misc/socket.cc:484 NCCL WARN socketPollConnect: connect returned Connection refused, exceeded error retry count (35)",
        "nccl-socket",
        "",
    ),
    (
        "spark1:1:2 [0] misc/socket.cc:538 NCCL WARN socketStartConnect: Connect to 10.0.0.2<41709> failed : No route to host",
        "nccl-socket",
        "",
    ),
    (
        "spark1:1:2 [0] include/socket.h:403 NCCL WARN Connect to 10.0.0.2<41709> failed : Connection timed out",
        "nccl-socket",
        "",
    ),
    (
        "spark1:1:2 [0] misc/ibvwrap.cc:200 NCCL WARN Call to ibv_reg_mr_iova2 failed with error Cannot allocate memory",
        "memlock",
        "",
    ),
    (
        "ray.exceptions.RayTaskError(ValueError): ray::foo()\nValueError: something odd",
        "first-fault",
        "",
    ),
    (
        "ImportError: cannot import name 'GenerationMixin' from 'transformers.generation' (/usr/x.py)",
        "packages-do-not-fit",
        "",
    ),
    (
        "ImportError: /lib/aarch64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found (required by /usr/local/lib/python3.12/dist-packages/vllm/_C.abi3.so)",
        "glibc-too-old",
        "",
    ),
    (
        "AttributeError: '_OpNamespace' '_C' object has no attribute 'rms_norm'",
        "packages-do-not-fit",
        "",
    ),
    ("nvcc fatal   : Unsupported gpu architecture 'compute_121a'", "nvcc-arch", ""),
    (
        "RuntimeError: PassManager::run failed",
        "triton-compile",
        "Triton's compiler failed on a kernel",
    ),
    (
        "RuntimeError: FlashAttention only supports Ampere GPUs or newer.",
        "backend-of-other-gpu",
        "",
    ),
    (
        "vllm serve: error: argument --speculative-config/-sc: Value {method:mtp} cannot be converted to <function loads at 0x7f>.",
        "unknown-value",
        "",
    ),
    ("vllm: error: unrecognized arguments: --foo-bar 3", "unknown-argument", ""),
    (
        "  Value error, Total number of attention heads (28) must be divisible by tensor parallel size (3). [type=value_error, input_value=..]",
        "heads-not-divisible",
        "",
    ),
    (
        "  Value error, Quantization method specified in the model config (modelopt) does not match the quantization method specified in the `quantization` argument (fp8). [type=v]",
        "quantization-mismatch",
        "",
    ),
    (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for SpeculativeConfig\nfoo\n  Unexpected keyword argument [type=unexpected_keyword_argument, input_value=1, input_type=int]",
        "config-refused",
        "",
    ),
    (
        'permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock: Get "http://x": dial unix /var/run/docker.sock: connect: permission denied',
        "no-daemon",
        "",
    ),
    (
        'docker: Error response from daemon: could not select device driver "cdi" with capabilities: []',
        "no-cdi-device",
        "",
    ),
    (
        "docker: Error response from daemon: failed to create task for container: failed to create shim task: OCI runtime create failed: could not apply required modification to OCI specification: error modifying OCI spec: failed to inject CDI devices: unresolvable CDI devices nvidia.com/gpu=all: unknown",
        "no-cdi-device",
        "",
    ),
    (
        "Error response from daemon: manifest for vllm/vllm-openai:foo not found: manifest unknown: manifest unknown",
        "no-image",
        "",
    ),
    (
        "Error response from daemon: client version 1.41 is too old. Minimum supported API version is 1.44, please upgrade your client to a newer version",
        "docker-api",
        "",
    ),
    ("docker: invalid reference format", "docker-argument", ""),
    ("unknown flag: --gpuss", "docker-argument", ""),
    (
        'docker: Error response from daemon: failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: error during container init: error mounting "/opt/x" to rootfs at "/x": not a directory: unknown',
        "container-start",
        "",
    ),
    (
        "docker: failed to register layer: write /usr/lib/libcublas.so: no space left on device",
        "disk-full",
        "",
    ),
    (
        "ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared memory (shm).",
        "shm-too-small",
        "",
    ),
    ("torch_shm_manager: error while loading shared libraries", "first-fault", ""),
    (
        "*** SIGSEGV received at time=1764436000 on cpu 3 ***",
        "process-ended",
        "A process ended with a segmentation fault (signal 11)",
    ),
    (
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuda-out-of-memory",
        "A call to CUDA found no memory",
    ),
    (
        "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul`",
        "cuda-fault",
        "A library of CUDA has no kernel for these shapes on this GPU",
    ),
    (
        "RuntimeError: Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() that might have already set an error? Error 802: system not yet initialized",
        "cuda-fault",
        "The GPUs are not ready (CUDA error 802)",
    ),
    (
        "RuntimeError: CUDA unknown error - this may be due to an incorrectly set up environment, e.g. changing env variable CUDA_VISIBLE_DEVICES after program start. Setting the available devices to be zero.",
        "cuda-fault",
        "The driver answers with an unknown error (CUDA error 999)",
    ),
    (
        "OSError: Can't load tokenizer for '/models/x'. If you were trying to load it from",
        "no-tokenizer",
        "",
    ),
    (
        "(APIServer pid=1) ERROR 11-29 17:20:45 [repo_utils.py:47] Error retrieving safetensors: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/models/ds4'. Use `repo_type` argument if needed., retrying 1 of 2",
        "",
        "",
    ),
    (
        "(APIServer pid=1) WARNING 11-29 17:20:45 [system_utils.py:299] Found ulimit of 20000 and failed to automatically increase with error current limit exceeds maximum limit. This can cause fd limit errors like `OSError: [Errno 24] Too many open files`. Consider",
        "",
        "",
    ),
    (
        "ImportError: libcudnn.so.9: cannot open shared object file: No such file or directory",
        "wrong-cuda-library",
        "",
    ),
    (
        "RuntimeError: Error in memory profiling. Initial free memory 79.1 GiB, current free memory 80.2 GiB.",
        "profiling-grew",
        "",
    ),
    (
        "(APIServer pid=1) ERROR 08-01 [async_llm.py:704] vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.",
        "worker-died",
        "",
    ),
    (
        "ValueError: As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if the tokenizer does not define one.",
        "no-chat-template",
        "",
    ),
    (
        "PermissionError: [Errno 13] Permission denied: '/models/ds4/config.json'",
        "no-permission",
        "",
    ),
    (
        "FileNotFoundError: [Errno 2] No such file or directory: '/models/ds4/model-00001-of-00046.safetensors'",
        "no-weights",
        "",
    ),
)
"""Lines, the failure that they show (empty: none), and its title where a value decides on it."""


@pytest.mark.parametrize(("text", "id_", "title"), LINES)
def test_a_class_is_known_in_each_wording(text: str, id_: str, title: str) -> None:
    matches = knowledge.read(text.splitlines())
    assert [match.entry.id for match in matches] == ([id_] if id_ else [])
    assert not title or matches[0].title == title


@pytest.mark.parametrize(("text", "id_", "title"), [line for line in LINES if line[1]])
def test_what_came_before_ready_is_a_remark(text: str, id_: str, title: str) -> None:
    del title
    reading = knowledge.Reading()
    for line in [*text.splitlines(), "INFO:     Application startup complete."]:
        reading.take(line)
    assert reading.matches() == []
    assert id_ == "first-fault" or id_ in [match.entry.id for match in reading.remarks()]


SERVING = (
    "(APIServer pid=1) INFO:     Application startup complete.\n(APIServer pid=1) INFO:     Shutting down\n(EngineCore pid=2) INFO 11-29 17:26:09 [core.py:1] Shutdown initiated\nspark1:1:2 [0] misc/socket.cc:49 NCCL WARN socketProgress: Connection closed by remote peer node3<41109>\n",
    '(APIServer pid=1) INFO:     Application startup complete.\nERROR:    Traceback (most recent call last):\n  File "/x.py", line 1, in y\n    z()\nasyncio.exceptions.CancelledError\n\nDuring handling of the above exception, another exception occurred:\n\nTraceback (most recent call last):\n  File "/a", line 1, in b\n    c\nKeyboardInterrupt\n',
    "(APIServer pid=1) INFO:     Application startup complete.\n(APIServer pid=1) INFO:     Shutting down\n(APIServer pid=1) ERROR 11-29 17:26:09 [core_client.py:1] Engine core proc EngineCore died unexpectedly, shutting down client.\n",
    '(APIServer pid=1) INFO:     Application startup complete.\n(APIServer pid=1) ERROR 11-29 17:26:09 [serving_chat.py:1] Error in preprocessing prompt inputs\n(APIServer pid=1) ERROR 11-29 17:26:09 [serving_chat.py:1] Traceback (most recent call last):\n(APIServer pid=1) ERROR 11-29 17:26:09 [serving_chat.py:1]   File "/a", line 1, in b\n(APIServer pid=1) ERROR 11-29 17:26:09 [serving_chat.py:1]     c\n(APIServer pid=1) ERROR 11-29 17:26:09 [serving_chat.py:1] ValueError: This model\'s maximum context length is 8192\n',
    "INFO:     Application startup complete.\nERROR 11-29 17:26:09 [serving_chat.py:1] ValueError: This model's maximum context length is 8192\n",
    "(APIServer pid=1) INFO:     Application startup complete.\n(APIServer pid=1) ERROR 11-29 17:26:09 [serving_chat.py:1] jinja2.exceptions.TemplateError: Conversation roles must alternate user/assistant\n",
    "(APIServer pid=1) INFO:     Application startup complete.\n(APIServer pid=1) ERROR 11-29 17:26:09 [hermes_tool_parser.py:1] json.decoder.JSONDecodeError: Expecting value: line 1 column 1\n",
    "(APIServer pid=1) INFO:     Application startup complete.\n(APIServer pid=1) ERROR 11-29 17:26:09 [x.py:1] aiohttp.client_exceptions.ClientConnectorError: Cannot connect to host example.com:443 Connection refused\n",
)
"""A server that is ready, and then fails a request, or is told to end."""


@pytest.mark.parametrize("text", SERVING)
def test_a_request_that_fails_and_an_ordered_end_are_no_failures(text: str) -> None:
    assert knowledge.read(text.splitlines()) == []
