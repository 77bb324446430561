"""The probe for what `import torch` loads into a process; runs in a container of the image."""

from __future__ import annotations

import ctypes
import json
from typing import Any


def imported() -> dict[str, Any]:
    """torch.version.cuda, every mapped libnccl, and the ncclGetVersion() of the first of them."""
    import torch  # type: ignore[import-not-found, unused-ignore]

    with open("/proc/self/maps") as maps:
        mapped = sorted({line.split()[-1] for line in maps if "libnccl.so" in line})
    version = ctypes.c_int()
    if mapped:
        ctypes.CDLL(mapped[0]).ncclGetVersion(ctypes.byref(version))
    return {"cuda": torch.version.cuda, "maps": mapped, "nccl": version.value}


if __name__ == "__main__":
    print(json.dumps(imported()))
