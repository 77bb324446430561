"""docs/troubleshooting.md, made of the table of known failures."""

from __future__ import annotations

from sparkimage.serve.explain import failures

_HEAD = """\
# Known failures

Made from the table that `explain` reads logs with (`make schema`); do not edit it here.

```
docker logs vllm-ds4 2>&1 | python build.py explain -
python build.py explain head.log worker1.log worker2.log   # of several nodes, side by side
```

It names what follows with the line that shows it, and says what else the log tells: which vLLM,
which NCCL each rank loaded, over what NCCL's channels go, which phase of the start was reached.
Colours, timestamps and JSON of Docker and the names that compose puts before lines are no
hindrance. `--json` says the same to machines. The exit code is 0 whatever was found; with `--check`
it is 21 when a known failure was.
"""


def markdown() -> str:
    """The page."""
    lines = [_HEAD]
    for area, entries in failures.known().areas.items():
        lines.append(f"## {area}\n")
        for entry in entries:
            lines += [
                f"### {entry.title}",
                f"`{entry.id}`\n",
                f"```\n{entry.says}\n```",
                entry.cause,
            ]
            if entry.when:
                lines.append(f"Not reported when {failures.CONDITIONS[entry.when].otherwise}.")
            lines += [f"\n**Fix:** {entry.fix}\n"]
            lines.append(f"Seen in: {', '.join(f'<{url}>' for url in entry.sources)}\n")
    return "\n".join(lines).rstrip()
