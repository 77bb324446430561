"""What --help shows below the options of a command: examples that can be pasted, and the page that
says more. A test holds every example against the program's own commands and options."""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "init": ("sparkimage init", "sparkimage init spark1 spark2 --dry-run"),
    "init project": ("sparkimage init project my-images",),
    "schema": ("sparkimage schema fleet > fleet.schema.json",),
    "engine": ("sparkimage engine status",),
    "engine up": ("sparkimage engine up",),
    "engine down": ("sparkimage engine down", "sparkimage engine down --purge"),
    "engine status": ("sparkimage engine status",),
    "image": (
        "sparkimage image",
        "sparkimage image default --print table",
        "sparkimage --matrix --only '*-arm64'",
    ),
    "lock": ("sparkimage lock", "sparkimage lock --check", "sparkimage lock --update nccl==2.30.7"),
    "verify": ("sparkimage verify default", "sparkimage verify default --tier static,run,node"),
    "report": ("sparkimage report default -o report.html",),
    "patches": ("sparkimage patches",),
    "patches export": ("sparkimage patches export patched --variant NAME",),
    "images": ("sparkimage images", "sparkimage images --json"),
    "inspect": ("sparkimage inspect default", "sparkimage inspect ghcr.io/you/vllm:latest"),
    "save": ("sparkimage save default -o image.tar",),
    "load": ("sparkimage load image.tar",),
    "store": ("sparkimage store check",),
    "store check": ("sparkimage store check",),
    "store gc": ("sparkimage store gc",),
    "publish": ("sparkimage publish default --to ghcr.io/you/vllm --key cosign.key",),
    "verify-published": ("sparkimage verify-published ghcr.io/you/vllm:latest --key cosign.pub",),
    "doctor": ("sparkimage doctor", "sparkimage doctor --local", "sparkimage doctor --json"),
    "distribute": (
        "sparkimage distribute default",
        "sparkimage distribute default --nodes spark1,spark2 --dry-run",
    ),
    "nodes": ("sparkimage nodes", "sparkimage nodes default --json"),
    "rollback": ("sparkimage rollback default",),
    "gc": ("sparkimage gc --dry-run", "sparkimage gc --keep 1"),
    "receipts": ("sparkimage receipts", "sparkimage receipts --nodes fleet.yaml"),
    "model": ("sparkimage model push /models/NAME",),
    "model push": ("sparkimage model push /models/NAME --limit 500",),
    "model status": ("sparkimage model status",),
    "model verify": ("sparkimage model verify /models/NAME",),
    "model gc": ("sparkimage model gc --dry-run",),
    "caches": ("sparkimage caches --nodes fleet.yaml",),
    "launch": (
        "sparkimage launch default --model /models/NAME",
        "sparkimage launch default --model /models/NAME --dry-run",
    ),
    "status": ("sparkimage status", "sparkimage status --watch"),
    "logs": ("sparkimage logs --follow", "sparkimage logs --rank 0 --tail 100"),
    "stop": ("sparkimage stop",),
    "restart": ("sparkimage restart",),
    "explain": (
        "docker logs NAME 2>&1 | sparkimage explain -",
        "sparkimage explain node1.log node2.log",
    ),
    "probe": (
        "sparkimage probe --nodes fleet.yaml",
        "sparkimage probe --url http://spark1:8000 --image IMAGE",
    ),
}
PAGES: Mapping[str, str] = {
    "init": "four-sparks", "engine": "engine", "image": "quickstart", "lock": "lock",
    "schema": "matrix", "verify": "verify", "report": "verify", "patches": "lock",
    "images": "one-spark", "inspect": "publish", "save": "air-gap", "load": "air-gap",
    "store": "one-spark", "publish": "publish", "verify-published": "publish", "doctor": "doctor",
    "distribute": "distribute", "nodes": "distribute", "rollback": "distribute",
    "gc": "distribute", "receipts": "distribute", "model": "model", "caches": "caches",
    "launch": "launch", "status": "launch", "logs": "launch", "stop": "launch",
    "restart": "launch", "explain": "troubleshooting", "probe": "probe",
}  # fmt: skip
"""The page of docs/ of each command, and of those below it."""


def epilog(command: str) -> str:
    """The end of a command's help."""
    lines = [*(f"  {line}" for line in EXAMPLES.get(command, ()))]
    page = PAGES.get(command.partition(" ")[0])
    more = [f"More: docs/{page}.md"] if page else []
    examples = ["\b", "Examples:", *lines, ""] if lines else []
    return "\n".join([*examples, *more])
