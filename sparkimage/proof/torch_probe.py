"""What `import torch` brings into a process. Runs in a container of the image, by its Python."""

import ctypes
import json

import torch  # type: ignore[import-not-found, unused-ignore]

maps = sorted({line.split()[-1] for line in open("/proc/self/maps") if "libnccl.so" in line})  # noqa: SIM115
version = ctypes.c_int()
if maps:
    ctypes.CDLL(maps[0]).ncclGetVersion(ctypes.byref(version))
print(json.dumps({"cuda": torch.version.cuda, "maps": maps, "nccl": version.value}))
