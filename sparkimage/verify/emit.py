"""A plan as a config of container-structure-test, for a look with foreign eyes.

https://github.com/GoogleContainerTools/container-structure-test#readme
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

import yaml

from sparkimage.config.plan import Plan
from sparkimage.image.settings import Settings


def structure_test(plan: Plan, config: Mapping[str, Any]) -> str:
    """The YAML text. ``config`` is the image's: its ENV is what the image says of itself."""
    layers = [layer.name for layer in plan.layers]
    files, commands = [], []
    if plan.python is not None:
        commands.append(
            {
                "name": "Python of the plan",
                "command": "python3",
                "args": ["--version"],
                "expectedOutput": [f"Python {plan.python}\\."],
            }
        )
    if "nccl-pip" in layers:
        library = f"/usr/lib/{plan.triplet}/libnccl.so.{plan.versions['nccl']}"
        place = f"/usr/local/lib/python{plan.python}/dist-packages/nvidia/nccl/lib/libnccl.so.2"
        links = (place, f"{posixpath.dirname(library)}/libnccl.so.2")
        files = [
            {"name": f"NCCL {plan.versions['nccl']}", "path": library, "shouldExist": True},
            *({"name": f"link {link}", "path": link, "shouldExist": True} for link in links),
        ]
        commands += [
            {
                "name": f"where {link} leads",
                "command": "readlink",
                "args": ["-f", link],
                "expectedOutput": [library],
            }
            for link in links
        ]
    env = Settings.of(config).env
    if "nccl-pip" in layers:
        env["LD_PRELOAD"] = library
    document = {
        "schemaVersion": "2.0.0",
        "metadataTest": {
            "entrypoint": list(plan.entrypoint),
            "cmd": list(plan.cmd),
            "envVars": [{"key": key, "value": value} for key, value in env.items()],
            "labels": [{"key": key, "value": value} for key, value in plan.labels.items()],
        },
        "fileExistenceTests": files,
        "commandTests": commands,
    }
    return yaml.safe_dump(document, sort_keys=False, width=1000)
