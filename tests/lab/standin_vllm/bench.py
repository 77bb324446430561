"""A stand-in for `vllm bench serve`: its options as `probe` gives them, its requests, its result.

Requests and the result's fields are those of vLLM 0.32.0 (vllm/benchmarks/serve.py and
lib/endpoint_request_func.py), as far as they are used here; an option that is not known is refused.
It needs nothing but Python's own library, so that it can be copied into an image.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import statistics
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


def parser() -> argparse.ArgumentParser:
    """vLLM's options, as far as they are known here."""
    made = argparse.ArgumentParser(prog="vllm bench serve", allow_abbrev=False)
    made.add_argument("--backend", choices=["openai-chat"], required=True)
    made.add_argument("--dataset-name", choices=["custom_image"], required=True)
    for name in ("base-url", "endpoint", "model", "dataset-path", "result-dir", "result-filename"):
        made.add_argument(f"--{name}", required=True)
    for name in ("num-prompts", "max-concurrency", "custom-output-len"):
        made.add_argument(f"--{name}", type=int, required=True)
    for name in ("ready-check-timeout-sec", "num-warmups"):
        made.add_argument(f"--{name}", type=int, choices=[0], required=True)
    made.add_argument("--temperature", type=float)
    made.add_argument("--extra-body", type=json.loads, default={})
    for name in (
        "skip-tokenizer-init", "disable-shuffle", "no-oversample", "ignore-eos", "disable-tqdm",
        "save-result", "save-detailed",
    ):  # fmt: skip
        made.add_argument(f"--{name}", action="store_true")
    return made


def request(given: argparse.Namespace, content: Any) -> dict[str, Any]:
    """Send a prompt, and say what came when, as `async_request_openai_chat_completions` does."""
    body = {
        "model": given.model,
        "messages": [{"role": "user", "content": content}],
        "max_completion_tokens": given.custom_output_len,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"ignore_eos": True} if given.ignore_eos else {}),
        "temperature": given.temperature,
        **given.extra_body,
    }
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    made: dict[str, Any] = {"tokens": 0, "ttft": 0.0, "itl": [], "text": "", "error": ""}
    parts = urlsplit(given.base_url)
    last = made["start"] = time.perf_counter()
    with contextlib.closing(
        http.client.HTTPConnection(parts.hostname or "", parts.port)
    ) as connection:
        try:
            connection.request("POST", given.endpoint, json.dumps(body), headers)
            answer = connection.getresponse()
            if answer.status != http.client.OK:
                return {**made, "error": answer.reason}
            ended = False
            for line in answer:
                ended = ended or line.strip() == b"data: [DONE]"
                if not line.startswith(b"data: ") or ended:
                    continue
                now, data = time.perf_counter(), json.loads(line[6:])
                if choices := data.get("choices"):
                    if made["ttft"]:
                        made["itl"].append(now - last)
                    else:
                        made["ttft"] = now - made["start"]
                    made["text"] += choices[0]["delta"].get("content") or ""
                    last = now
                elif usage := data.get("usage"):
                    made["tokens"] = usage.get("completion_tokens")
            if not made["ttft"]:
                made["error"] = "Never received a valid chunk to calculate TTFT."
            elif not ended:
                made["error"] = "Traceback …\nClientPayloadError: the server broke off"
        except (OSError, http.client.HTTPException, ValueError) as error:
            made["error"] = f"Traceback …\n{type(error).__name__}: {error}"
    return made


def drafts(given: argparse.Namespace) -> list[float]:
    """The server's counters of drafts, drafted and accepted tokens; none: it does not draft."""
    with urllib.request.urlopen(f"{given.base_url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return [float(one.split()[-1]) for one in lines if one.startswith("vllm:spec_decode_num_")]


def main(words: Sequence[str]) -> None:
    """Measure, and write the result."""
    given = parser().parse_args(words)
    rows = [json.loads(line) for line in Path(given.dataset_path).read_text().splitlines()]
    made: list[dict[str, Any]] = [{} for _ in rows[: given.num_prompts]]
    slots, before = threading.Semaphore(given.max_concurrency), drafts(given)

    def work(number: int) -> None:
        with slots:
            made[number] = request(given, rows[number]["content"])

    began = time.perf_counter()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(made))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    well = [one for one in made if not one["error"]]
    # Without a tokenizer, what the server did not count is taken for one token.
    lengths = [0 if one["error"] else one["tokens"] or 1 for one in made]
    result = {
        "backend": given.backend,
        "model_id": given.model,
        "num_prompts": given.num_prompts,
        "max_concurrency": given.max_concurrency,
        "duration": seconds,
        "completed": len(well),
        "failed": len(made) - len(well),
        "total_output_tokens": sum(lengths),
        "output_throughput": sum(lengths) / seconds,
        "output_lens": lengths,
        "ttfts": [one["ttft"] for one in made],
        "itls": [one["itl"] for one in made],
        "start_times": [one["start"] for one in made],
        "generated_texts": [one["text"] for one in made],
        "errors": [one["error"] for one in made],
        "median_ttft_ms": 1000 * statistics.median([one["ttft"] for one in well] or [0]),
    }
    if before:
        count, drafted, accepted = (b - a for a, b in zip(before, drafts(given), strict=True))
        result |= {
            "spec_decode_acceptance_rate": 100 * accepted / drafted,
            "spec_decode_acceptance_length": 1 + accepted / count,
        }
    (Path(given.result_dir) / given.result_filename).write_text(json.dumps(result))
