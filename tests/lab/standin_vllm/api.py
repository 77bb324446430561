"""A stand-in for the HTTP API of vLLM's server: it answers as vLLM does, and makes up the words.

It needs nothing but Python's own library, so that it can be copied into an image. It is true to
vLLM in requests and answers of `/health`, `/metrics`, `/v1/models`, `/v1/completions` and
`/v1/chat/completions`: streams, usage, `ignore_eos`, tool calls and thinking; a time to the first
token that a prefix cache shortens; chunks that hold several tokens, as with speculative decoding.

    python api.py --port 8000 --rate 50 --ttft 0.2
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REFUSALS = {
    "429": "Too many requests",
    "500": "EngineCore encountered an issue. See stack trace (above) for the root cause.",
    "503": "The server is not ready yet",
}
COUNTERS = (
    "generation_tokens", "prompt_tokens", "prefix_cache_queries", "prefix_cache_hits",
    "spec_decode_num_drafts", "spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens",
)  # fmt: skip
STEP_S = 0.05
"""Seconds between two steps of the engine for one request."""
NO_TOOLS = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'


class EngineDeadError(Exception):
    """What answers every request when a worker has died."""


@dataclass(kw_only=True)
class Behaviour:
    """What the server is like; may be changed while it runs."""

    model: str = "standin"
    rate: float = 2000.0
    """Tokens a second of one stream."""
    ttft_s: float = 0.0
    """Seconds to the first token of a prompt that was not seen before."""
    prefix_cache: bool = True
    """A prompt that was seen before costs a tenth of that."""
    burst: int = 1
    """Tokens in one chunk of a stream, as with speculative decoding."""
    first: int = 1
    """Tokens in the first chunk: more where a proxy holds them back."""
    natural_stop: int = 12
    """Tokens after which the model ends by itself, where `ignore_eos` does not hold."""
    thinks: bool = True
    """Half of an answer is thinking, unless the request turns that off."""
    usage: bool = True
    """Whether a stream ends with the counts, when asked to."""
    knows_ignore_eos: bool = True
    """False: a server that passes over `ignore_eos`, and ends early all the same."""
    refuses: tuple[str, ...] = ()
    """Names in a request that are refused, as servers do that know OpenAI's alone."""
    tools: bool = True
    api_key: str = ""
    healthy: bool = True
    faults: list[str] = field(default_factory=list)
    """What happens to the next requests for tokens, one each: a key of REFUSALS, or `cut` (the
    stream breaks off), `error` (an error within the stream), `garbage`, `raw`, `hang`."""
    raw: bytes = b""
    """What a stream consists of, for the fault `raw`."""
    always: str = ""
    """What happens to each one, when no other fault is left."""


class Server(ThreadingHTTPServer):
    """The server; `with Server(behaviour) as server:` serves until the block ends."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, behaviour: Behaviour | None = None, *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.behaviour = behaviour or Behaviour()
        self.asked: list[dict[str, Any]] = []
        """The bodies of all requests for tokens, as they came; `path` added."""
        self.chunks = 0
        """How many chunks with text went out."""
        self.released = threading.Event()
        self.counters = dict.fromkeys(COUNTERS, 0)
        """Of vLLM's metrics, by their names."""
        self.max_model_len = 4096
        self.engine: Callable[[int, int], None] = lambda _running, _words: None
        """Takes one step for so many requests, of which one has a prompt of so many words; as long
        as it hangs, no token comes."""
        self.gate: Callable[[], None] = lambda: None
        """Waits while this process is stopped."""
        self._running = self._shown = 0
        """Requests, now and at the engine's last step: so vLLM's gauge has them."""
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        super().__init__((host, port), Handler)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Server:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Of a request; a client that is gone is none."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def note(self, path: str, body: dict[str, Any], prompt: str) -> tuple[bool, str]:
        """Take a request in: whether its prompt is known, and what is to go wrong."""
        with self._lock:
            self.asked.append({**body, "path": path})
            known = self.behaviour.prefix_cache and prompt in self._seen
            self._seen.add(prompt)
            fault = self.behaviour.faults.pop(0) if self.behaviour.faults else self.behaviour.always
        return known, fault

    @contextmanager
    def request(self) -> Iterator[None]:
        """A request that is answered."""
        with self._lock:
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                self._shown = min(self._shown, self._running)

    def step(self, *, prompt: int = 0, tokens: int = 0) -> None:
        """A step of the engine: of so many words of a prompt, which ends with so many tokens."""
        self.engine(self._running, prompt)
        with self._lock:
            self._shown = self._running
            self.counters["prompt_tokens"] += prompt
            self.counters["generation_tokens"] += tokens

    def metrics(self) -> str:
        """As vLLM writes them."""
        drafting = self.behaviour.burst > 1
        labels = f'engine="0",model_name="{self.behaviour.model}"'
        counters = [
            f"vllm:{name}_total{{{labels}}} {float(count)}"
            for name, count in self.counters.items()
            if drafting or not name.startswith("spec_decode")
        ]
        gauge = f"vllm:num_requests_running{{{labels}}} {float(self._shown)}"
        return "\n".join(["# TYPE vllm:num_requests_running gauge", gauge, *counters]) + "\n"

    def sent(self, tokens: int) -> None:
        """One more chunk with text went out, of so many tokens."""
        with self._lock:
            self.chunks += 1
            self.counters["spec_decode_num_drafts"] += 1
            self.counters["spec_decode_num_draft_tokens"] += 2 * (self.behaviour.burst - 1)
            self.counters["spec_decode_num_accepted_tokens"] += tokens - 1

    def looked_up(self, tokens: int, hits: int) -> None:
        """A prompt of so many tokens, of which some were in the prefix cache."""
        with self._lock:
            self.counters["prefix_cache_queries"] += tokens
            self.counters["prefix_cache_hits"] += hits


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing: an access log is of no use here."""

    def do_GET(self) -> None:
        self.server.gate()
        behaviour = self.server.behaviour
        if self.path == "/health":
            self._answer(200 if behaviour.healthy else 503, b"", "text/plain")
        elif self.path == "/v1/models":
            if self._allowed():
                model = {"id": behaviour.model, "object": "model", "owned_by": "vllm"}
                length = {"max_model_len": self.server.max_model_len}
                self._json({"object": "list", "data": [{**model, **length}]})
        elif self.path == "/metrics":
            text = self.server.metrics()
            self._answer(200, text.encode(), "text/plain; version=0.0.4")
        else:
            self._json({"detail": "Not Found"}, 404)

    def do_POST(self) -> None:
        self.server.gate()
        raw = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if not self._allowed():
            return
        if self.path not in ("/v1/completions", "/v1/chat/completions"):
            self._json({"detail": "Not Found"}, 404)
            return
        try:
            body = json.loads(raw)
        except ValueError:
            self._refuse(400, "not JSON")
            return
        try:
            self._generate(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _allowed(self) -> bool:
        key = self.server.behaviour.api_key
        if not key or self.headers.get("Authorization") == f"Bearer {key}":
            return True
        self._json({"error": "Unauthorized"}, 401)
        return False

    def _generate(self, body: dict[str, Any]) -> None:
        behaviour, chat = self.server.behaviour, self.path.endswith("/chat/completions")
        prompt = json.dumps(body.get("messages")) if chat else str(body.get("prompt"))
        known, fault = self.server.note(self.path, body, prompt)
        refused = [name for name in behaviour.refuses if name in body]
        if fault in REFUSALS:
            self._refuse(int(fault), REFUSALS[fault])
        elif fault == "hang":
            self.server.released.wait()
            self.close_connection = True
        elif fault == "garbage":
            self._answer(200, b"<html>a proxy's page</html>", "text/html")
        elif fault == "raw":
            self._answer(200, behaviour.raw, "text/event-stream")
        elif refused:
            self._refuse(400, f"Unrecognized request argument supplied: {refused[0]}")
        elif body.get("model") != behaviour.model:
            self._refuse(404, f"The model `{body.get('model')}` does not exist.")
        elif chat and body.get("tools") and body.get("tool_choice", "auto") != "none":
            self._call_a_tool(body)
        else:
            with self.server.request():
                try:
                    self._write(body, chat=chat, prompt=prompt, known=known, fault=fault)
                except EngineDeadError:
                    self._refuse(500, REFUSALS["500"])

    def _call_a_tool(self, body: dict[str, Any]) -> None:
        if not self.server.behaviour.tools:
            self._refuse(400, NO_TOOLS)
            return
        functions = {tool["function"]["name"]: tool["function"] for tool in body["tools"]}
        choice = body.get("tool_choice", "auto")
        wanted = choice["function"]["name"] if isinstance(choice, dict) else next(iter(functions))
        asked = functions[wanted].get("parameters", {}).get("properties", {})
        call = {
            "id": "call_1",
            "type": "function",
            "function": {"name": wanted, "arguments": json.dumps(dict.fromkeys(asked, "Berlin"))},
        }
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choices = [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
        self._json(self._whole("chat.completion", choices, _usage(20, 10, 0)))

    def _write(
        self, body: dict[str, Any], *, chat: bool, prompt: str, known: bool, fault: str
    ) -> None:
        behaviour = self.server.behaviour
        limit = int(body.get("max_completion_tokens") or body.get("max_tokens") or 16)
        count, reason = self._length(body, limit)
        options = body.get("chat_template_kwargs") or {}
        off = options.get("enable_thinking") is False or options.get("thinking") is False
        thought = count // 2 if chat and behaviour.thinks and not off else 0
        asked = len(prompt.split())
        usage = _usage(asked, count, asked if known else 0)
        self.server.looked_up(asked, asked if known else 0)
        wait = behaviour.ttft_s / 10 if known else behaviour.ttft_s
        if not body.get("stream"):
            for _ in self._paced(count, thought, wait, asked):
                pass
            text = "".join(f" w{number}" for number in range(thought, count))
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if thought:
                message["reasoning_content"] = "".join(f" t{number}" for number in range(thought))
            choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
            choice |= {"message": message} if chat else {"text": text}
            kind = "chat.completion" if chat else "text_completion"
            self._json(self._whole(kind, [choice], usage))
            return
        kind = "chat.completion.chunk" if chat else "text_completion"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        before = 0
        for done, piece in self._paced(count, thought, wait, asked):
            if chat and not before:
                # As vLLM does: the role comes in a chunk of its own, with the first token.
                role = {"role": "assistant", "content": ""}
                self._event(self._part(kind, [{"index": 0, "delta": role, "finish_reason": None}]))
            if fault == "cut" and done > count // 2:
                self.wfile.flush()
                self.close_connection = True
                return
            if fault == "error" and done > count // 2:
                self._event({"error": {"message": REFUSALS["500"], "code": 500}})
                break
            name, text = piece
            choice = {"index": 0, "finish_reason": reason if done == count else None}
            choice |= {"delta": {name: text}} if chat else {"text": text}
            self._event(self._part(kind, [choice]))
            self.server.sent(done - before)
            before = done
        else:
            if (body.get("stream_options") or {}).get("include_usage") and behaviour.usage:
                self._event({**self._part(kind, []), "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _length(self, body: dict[str, Any], limit: int) -> tuple[int, str]:
        """How many tokens come, and why it ends."""
        behaviour = self.server.behaviour
        if body.get("ignore_eos") and behaviour.knows_ignore_eos:
            return limit, "length"
        natural = max(behaviour.natural_stop, int(body.get("min_tokens") or 0))
        return (natural, "stop") if natural < limit else (limit, "length")

    def _paced(
        self, count: int, thought: int, wait: float, words: int
    ) -> Iterator[tuple[int, tuple[str, str]]]:
        """Pieces of text when they are due, with the count of tokens up to there."""
        behaviour = self.server.behaviour
        self.server.step(prompt=words)
        began, done = time.monotonic() + wait, 0
        stepped, before = began, 0
        while done < count:
            # The first token comes of the prompt, alone; drafts begin after it.
            step = behaviour.burst if done else behaviour.first
            end = min(count, done + step, thought if done < thought else count)
            due = began + (end - 1) / behaviour.rate
            time.sleep(max(0.0, due - time.monotonic()))
            if time.monotonic() - stepped > STEP_S:
                self.server.step(tokens=done - before)
                stepped, before = time.monotonic(), done
            thinking = done < thought
            letter = "t" if thinking else "w"
            text = "".join(f" {letter}{number}" for number in range(done, end))
            done = end
            if done == count:
                self.server.step(tokens=done - before)
            yield done, ("reasoning_content" if thinking else "content", text)

    def _whole(
        self, kind: str, choices: Sequence[dict[str, Any]], usage: dict[str, Any]
    ) -> dict[str, Any]:
        return {**self._part(kind, choices), "usage": usage}

    def _part(self, kind: str, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        model = self.server.behaviour.model
        return {"id": "one", "object": kind, "created": 0, "model": model, "choices": list(choices)}

    def _event(self, data: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(data).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _refuse(self, status: int, message: str) -> None:
        self._json({"error": {"message": message, "type": "Error", "code": status}}, status)

    def _json(self, data: dict[str, Any], status: int = 200) -> None:
        self._answer(status, json.dumps(data).encode(), "application/json")

    def _answer(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _usage(asked: int, made: int, cached: int) -> dict[str, Any]:
    return {
        "prompt_tokens": asked,
        "completion_tokens": made,
        "total_tokens": asked + made,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def main() -> None:
    """Serve until it is ended."""
    parser = argparse.ArgumentParser(description="A stand-in for vLLM's HTTP API.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", default=Behaviour.model)
    parser.add_argument("--rate", type=float, default=50.0, help="tokens a second of a stream")
    parser.add_argument("--ttft", type=float, default=0.2, help="seconds to the first token")
    parser.add_argument("--burst", type=int, default=1, help="tokens in a chunk")
    given = parser.parse_args()
    behaviour = Behaviour(
        model=given.model, rate=given.rate, ttft_s=given.ttft, burst=given.burst
    )  # fmt: skip
    server = Server(behaviour, host=given.host, port=given.port)
    print(f"answering at {server.url}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
