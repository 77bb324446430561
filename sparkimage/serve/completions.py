"""A client of OpenAI-compatible servers: asks for tokens, and says when they came and how many.

The answers of vLLM: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
"""

from __future__ import annotations

import ipaddress
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import requests

from sparkimage.core.errors import ProbeError, UsageError

KEY_VARIABLE = "SPARKIMAGE_API_KEY"
"""Only from the environment: what stands in a command line, everybody on the machine can read."""
CONNECT_S = 10.0
EXTRAS = ("ignore_eos", "chat_template_kwargs", "stream_options")
"""What is asked for beyond the first OpenAI API; a server may refuse each."""
NO_THINKING = {"enable_thinking": False, "thinking": False}
"""Both names are in use: Qwen's templates read the first, DeepSeek's the second."""
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city, now.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city's name."}},
            "required": ["city"],
        },
    },
}
TOOL_QUESTION = "What is the weather in Berlin now? Call the tool get_weather."


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One streamed answer. Times are of a clock that only counts (seconds)."""

    asked: float
    """When the request was sent."""
    first: float
    """When the first text came; thinking is text, too."""
    last: float
    """When the last text came."""
    tokens: int | None
    """As the server counts them; None: it does not say."""
    prompt_tokens: int | None
    cached_tokens: int
    """Tokens of the prompt that it took from its prefix cache."""
    chunks: int
    """Pieces that the text came in. Never a count of tokens: one may hold several."""
    thought: bool
    reason: str


@dataclass(kw_only=True)
class Refusal(Exception):  # noqa: N818
    """The server refuses what was asked, with a status."""

    status: int
    said: str


@dataclass(kw_only=True)
class Server:
    """An OpenAI-compatible server. One object may be used by several threads."""

    url: str
    """Without a path's end: `/v1/…` follows."""
    model: str = ""
    patience_s: float = 120.0
    """Seconds without a sign of life before it counts as hung."""
    without: set[str] = field(default_factory=set)
    """Those of EXTRAS that this server was found to refuse."""
    stop: threading.Event = field(default_factory=threading.Event)
    _here: threading.local = field(default_factory=threading.local)

    def models(self) -> list[str]:
        """The models that it serves. Raises ``ProbeError``."""
        try:
            with self._send("GET", "/v1/models") as answer:
                said = self._json(answer)
        except Refusal as refusal:
            raise self._refused(refusal, "/v1/models") from refusal
        found = said.get("data")
        if not isinstance(found, list):
            raise self._strange(json.dumps(said))
        names = [str(one.get("id")) for one in found if isinstance(one, dict) and one.get("id")]
        if not names:
            raise ProbeError(f"{self.url} serves no model", hint="wait until it has loaded one")
        return names

    def ask(self, prompt: str, tokens: int) -> Answer:
        """An answer of ``tokens`` tokens to a prompt, streamed. Raises ``Refusal``, ``ProbeError``.

        What the server is known to refuse is left out; the rest is insisted on.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
            "chat_template_kwargs": NO_THINKING,
        }
        for name in self.without:
            body.pop(name, None)
        asked = time.monotonic()
        with self._send("POST", "/v1/chat/completions", body) as answer:
            if "text/event-stream" not in answer.headers.get("Content-Type", ""):
                raise self._strange(self._text(answer))
            try:
                return self._collect(answer, asked)
            except (AttributeError, TypeError, ValueError) as error:
                # An event of another form than OpenAI's.
                raise self._strange(f"{type(error).__name__}: {error}") from error

    def settle(self, prompt: str, tokens: int) -> Answer:
        """As ``ask``, and learn what the server refuses; raises ``ProbeError`` for all else."""
        while True:
            try:
                return self.ask(prompt, tokens)
            except Refusal as refusal:
                named = [
                    name for name in EXTRAS if name in refusal.said and name not in self.without
                ]
                if refusal.status not in (400, 422) or not named:
                    raise self._refused(refusal, "/v1/chat/completions") from refusal
                self.without.update(named)

    def call_tool(self) -> tuple[bool, str]:
        """Whether it calls a tool when asked to, and what was seen."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": TOOL_QUESTION}],
            "tools": [TOOL],
            "tool_choice": "auto",
            "max_tokens": 512,
            "temperature": 0,
            "chat_template_kwargs": NO_THINKING,
        }
        if "chat_template_kwargs" in self.without:
            del body["chat_template_kwargs"]
        try:
            with self._send("POST", "/v1/chat/completions", body) as answer:
                said = self._json(answer)
        except Refusal as refusal:
            return False, f"refused with {refusal.status}: {refusal.said[:200]}"
        except ProbeError as error:
            # What was measured before stands.
            return False, error.message
        return judge_tool_call(said)

    def explain(self, refusal: Refusal) -> ProbeError:
        """The error to show for a refusal in the middle of a measurement."""
        return self._refused(refusal, "/v1/chat/completions")

    def _collect(self, answer: requests.Response, asked: float) -> Answer:
        first = last = 0.0
        chunks, usage, reason, thought, ended = 0, None, "", False, False
        for data in self._events(answer):
            now = time.monotonic()
            if data is None:
                ended = True
                continue
            if "error" in data:
                raise ProbeError(
                    f"{self.url} broke off an answer with an error",
                    detail=json.dumps(data["error"])[:500],
                    hint="look into its log: python build.py explain FILE",
                )
            usage = data.get("usage") or usage
            for choice in data.get("choices") or ():
                delta = choice.get("delta") or {}
                thinking = delta.get("reasoning_content") or delta.get("reasoning")
                if delta.get("content") or thinking:
                    first, last, chunks = first or now, now, chunks + 1
                    thought = thought or bool(thinking)
                reason = choice.get("finish_reason") or reason
        if not ended:
            raise ProbeError(
                f"{self.url} broke off an answer after {chunks} pieces",
                hint="look into its log: python build.py explain FILE",
            )
        if not chunks:
            raise ProbeError(
                f"{self.url} answered with no text", hint="is this model one that writes text?"
            )
        counts: Mapping[str, Any] = usage if isinstance(usage, dict) else {}
        details = counts.get("prompt_tokens_details") or {}
        return Answer(
            asked=asked,
            first=first,
            last=last,
            tokens=_count(counts.get("completion_tokens")),
            prompt_tokens=_count(counts.get("prompt_tokens")),
            cached_tokens=_count(details.get("cached_tokens")) or 0,
            chunks=chunks,
            thought=thought,
            reason=reason,
        )

    def _events(self, answer: requests.Response) -> Iterator[dict[str, Any] | None]:
        """The events of a stream as they come; None for its proper end.

        It is read to the last byte: so the connection can be used again.
        """
        held, ended = b"", False
        try:
            # None: what has come, at once, in whatever pieces.
            for piece in answer.iter_content(None):
                if self.stop.is_set():
                    raise ProbeError("stopped, for another request failed")
                *lines, held = (held + piece).split(b"\n")
                for line in lines:
                    if not line.startswith(b"data:"):
                        continue
                    data = line[5:].strip()
                    if data == b"[DONE]":
                        ended = True
                        yield None
                        continue
                    try:
                        event = json.loads(data)
                    except ValueError as error:
                        raise self._strange(data.decode("utf-8", "replace")) from error
                    if isinstance(event, dict):
                        yield event
        except requests.RequestException as error:
            if not ended:
                raise self._lost(error) from error

    def _send(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> requests.Response:
        try:
            answer = self._session().request(
                method,
                f"{self.url}{path}",
                json=body,
                stream=True,
                timeout=(CONNECT_S, self.patience_s),
                auth=_nobody,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            raise self._lost(error) from error
        if answer.status_code == 200:
            return answer
        with answer:
            raise Refusal(status=answer.status_code, said=_said(answer))

    def _session(self) -> requests.Session:
        """The connection of this thread, which is kept."""
        held: requests.Session | None = getattr(self._here, "session", None)
        if held is None:
            held = self._here.session = requests.Session()
            held.headers["User-Agent"] = "sparkimage"
            held.headers["Accept-Encoding"] = "identity"
            held.trust_env = not _is_loopback(self.url)
            key = os.environ.get(KEY_VARIABLE, "")
            if key:
                held.headers["Authorization"] = f"Bearer {key}"
        return held

    def _json(self, answer: requests.Response) -> dict[str, Any]:
        try:
            said = answer.json()
        except requests.JSONDecodeError as error:
            raise self._strange(self._text(answer)) from error
        except requests.RequestException as error:
            raise self._lost(error) from error
        if not isinstance(said, dict):
            raise self._strange(str(said))
        return said

    def _text(self, answer: requests.Response) -> str:
        try:
            return answer.text
        except requests.RequestException as error:
            raise self._lost(error) from error

    def _lost(self, error: requests.RequestException) -> ProbeError:
        if isinstance(error, requests.exceptions.SSLError):
            return ProbeError(
                f"the certificate of {self.url} is not trusted here",
                detail=str(error),
                hint="REQUESTS_CA_BUNDLE=FILE names the CA to trust",
            )
        if isinstance(error, requests.Timeout):
            return ProbeError(
                f"{self.url} gave no sign of life for too long",
                detail=str(error),
                hint=f"is it loading still? --patience is {self.patience_s:g} s now",
            )
        return ProbeError(
            f"{self.url} cannot be reached, or broke off",
            detail=str(error),
            hint="is the server ready? python build.py status",
        )

    def _strange(self, text: str) -> ProbeError:
        return ProbeError(
            f"{self.url} does not answer as an OpenAI-compatible server does",
            detail=text[:500],
            hint="--url is the server's address, as http://HOST:8000",
        )

    def _refused(self, refusal: Refusal, path: str) -> ProbeError:
        hints = {
            401: f"give its key in the environment variable {KEY_VARIABLE}",
            403: f"give its key in the environment variable {KEY_VARIABLE}",
            404: "--model names one that it serves; --url is http://HOST:PORT",
            429: "fewer --streams, or wait",
            503: "is it loading still? python build.py status",
        }
        return ProbeError(
            f"{self.url}{path} refuses with status {refusal.status}",
            detail=refusal.said[:500],
            hint=hints.get(
                refusal.status, "look into the server's log: python build.py explain FILE"
            ),
        )


def parse_url(given: str) -> str:
    """A server's address without what follows it (`/v1`). Raises ``UsageError``."""
    try:
        parts = urlsplit(given)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{given!r} is no address: {error}", hint="http://HOST:8000") from error
    del port
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{given!r} is no address of a server", hint="http://HOST:8000")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            "an address here has no login and no `?`",
            hint=f"a key comes from the environment variable {KEY_VARIABLE}",
        )
    path = parts.path.rstrip("/").removesuffix("/v1")
    return f"{parts.scheme}://{parts.netloc}{path}"


def judge_tool_call(said: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether an answer is a proper call of ``TOOL``, and what was seen."""
    try:
        message = said["choices"][0]["message"]
        calls = message.get("tool_calls") or []
    except (KeyError, IndexError, TypeError, AttributeError):
        return False, "the answer has no message"
    if not calls:
        text = str(message.get("content") or "").strip()
        return False, f"text instead of a call: {text[:80]!r}"
    try:
        function = calls[0]["function"]
        name, arguments = function["name"], json.loads(function["arguments"])
    except (KeyError, IndexError, TypeError, ValueError):
        return False, "the call's arguments are no JSON"
    if name != "get_weather":
        return False, f"another tool was called: {str(name)[:80]}"
    if not isinstance(arguments, dict) or not isinstance(arguments.get("city"), str):
        return False, "the call lacks the argument city"
    return True, f"get_weather(city={arguments['city'][:40]!r})"


def _nobody(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Without this, requests takes a login out of ~/.netrc."""
    return request


def _count(held: object) -> int | None:
    return held if isinstance(held, int) else None


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _said(answer: requests.Response) -> str:
    """What a refusal says, as short as it can be had."""
    try:
        text = answer.content[:4000].decode("utf-8", "replace").strip()
    except requests.RequestException:
        return ""
    try:
        said = json.loads(text)
    except ValueError:
        return text
    error = said.get("error", said) if isinstance(said, dict) else said
    if isinstance(error, dict):
        return str(error.get("message") or error.get("detail") or text)
    return str(error)
