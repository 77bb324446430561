"""A client of OpenAI-compatible servers: what `probe` asks besides the benchmark.

The answers of vLLM: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from sparkimage.core.errors import ProbeError, UsageError
from sparkimage.core.program import program

KEY_VARIABLE = "SPARKIMAGE_API_KEY"
"""Only from the environment: every user of the machine can read a command line."""
CHAT = "/v1/chat/completions"
CONNECT_S, HEALTH_S = 10.0, 5.0
HINTS = {
    401: f"set its key in the environment variable {KEY_VARIABLE}",
    403: f"set its key in the environment variable {KEY_VARIABLE}",
    404: "pass a --model that it serves; --url is http://HOST:PORT",
    429: "fewer --streams, or wait",
    503: f"is it still loading? {program()} status",
}
"""What to do, by HTTP status."""
ANSWER_S = 120.0
"""Seconds without an answer after which the server counts as hung."""
NO_THINKING = {"enable_thinking": False, "thinking": False}
"""Qwen's chat templates read the first name, DeepSeek's the second."""
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
Json = Mapping[str, Any] | None
TOOL_QUESTION = "What is the weather in Berlin now? Call the tool get_weather."


@dataclass(frozen=True, kw_only=True)
class Granted:
    """Which of the rules a server supports, as its answer to one request shows."""

    extras: dict[str, Any]
    """Parameters beyond OpenAI's API that it accepts, for every request."""
    refused: tuple[str, ...]
    """Names of those that it rejects."""
    thinks: bool
    """It thinks although thinking is turned off."""


SAMPLE = re.compile(r"(?m)^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
"""https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format"""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One value of the metrics."""

    name: str
    labels: Mapping[str, str]
    value: float


class RefusalError(ProbeError):
    """The server rejects a request."""

    def __init__(self, url: str, status: int, text: str) -> None:
        self.status, self.text = status, text
        hint = HINTS.get(status, f"see the server's log: {program()} explain FILE")
        super().__init__(f"{url} answers with HTTP status {status}", detail=text[:500], hint=hint)


@dataclass(kw_only=True)
class Server:
    """An OpenAI-compatible server."""

    url: str
    """Its address without `/v1`."""
    socket: Path | None = None
    """A Unix socket that is forwarded to it; None: it is reached at its address."""
    model: str = ""
    answer_s: float = ANSWER_S
    """Seconds without an answer after which it counts as hung."""
    key: str = field(default="", repr=False)
    """Of its API, where the environment has none."""
    _session: requests.Session = field(default_factory=requests.Session)

    def __post_init__(self) -> None:
        self._session.headers["User-Agent"] = "sparkimage"
        self._session.trust_env = self.socket is None and not is_loopback(self.url)
        if key := api_key() or self.key:
            self._session.headers["Authorization"] = f"Bearer {key}"
        if self.socket is not None:
            from docker.transport import UnixHTTPAdapter

            self._session.mount(self.url, UnixHTTPAdapter(f"http+unix://{self.socket}"))

    def health(self) -> int | None:
        """The status of ``/health``; None without an answer within ``HEALTH_S``."""
        try:
            return self._request("/health", None, HEALTH_S).status_code
        except requests.RequestException:
            return None

    def models(self) -> list[str]:
        """The models that it serves. Raises ``ProbeError``."""
        return [str(card["id"]) for card in self.cards()]

    def cards(self) -> list[dict[str, Any]]:
        """What it says of each model that it serves, with its ``id``. Raises ``ProbeError``."""
        answer = self._json("/v1/models")
        data = answer.get("data")
        if not isinstance(data, list):
            raise self._incompatible(json.dumps(answer))
        cards = [model for model in data if isinstance(model, dict) and model.get("id")]
        if not cards:
            raise ProbeError(f"{self.url} serves no model", hint="wait until it has loaded one")
        return cards

    def try_rules(self, prompt: str, tokens: int) -> Granted:
        """The rules that it supports: one request that is not measured, which also warms it up.

        Raises ``ProbeError``.
        """
        extras: dict[str, Any] = {"ignore_eos": True, "chat_template_kwargs": NO_THINKING}
        refused: list[str] = []
        while True:
            try:
                answer = self._chat(prompt, tokens, extras)
                break
            except RefusalError as refusal:
                named = [name for name in extras if name in refusal.text]
                if refusal.status not in (400, 422) or not named:
                    raise
                refused += named
                extras = {name: value for name, value in extras.items() if name not in named}
        try:
            message = answer["choices"][0]["message"]
            thinks = bool(message.get("reasoning_content") or message.get("reasoning"))
        except (KeyError, IndexError, TypeError, AttributeError):
            raise self._incompatible(json.dumps(answer)) from None
        return Granted(extras=extras, refused=tuple(refused), thinks=thinks)

    def metrics(self) -> list[Sample]:
        """Its metrics; none where it has none, or does not answer."""
        try:
            text = self._send("/metrics").text
        except ProbeError:
            return []
        return [
            Sample(name=name, labels=dict(LABEL.findall(labels)), value=float(value))
            for name, labels, value in SAMPLE.findall(text)
            if re.fullmatch(r"-?[\d.]+(?:e[+-]?\d+)?", value)
        ]

    def prefix_cache(self) -> tuple[float, float] | None:
        """The tokens that vLLM has looked up in its prefix cache, and the hits; None without such
        metrics (https://docs.vllm.ai/en/latest/usage/metrics.html)."""
        samples = self.metrics()
        queries, hits = (
            [one.value for one in samples if one.name == f"vllm:prefix_cache_{what}_total"]
            for what in ("queries", "hits")
        )
        return (sum(queries), sum(hits)) if queries else None

    def complete(self, prompt: str, tokens: int, **more: object) -> None:
        """Let it generate so many tokens after a prompt. Raises ``ProbeError``."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": tokens, **more}
        self._json("/v1/completions", body)

    def call_tool(self, extras: Mapping[str, Any]) -> tuple[bool, str]:
        """Whether it calls a tool when asked to, and what it answered."""
        more = {name: value for name, value in extras.items() if name != "ignore_eos"}
        try:
            more |= {"tools": [TOOL], "tool_choice": "auto"}
            answer = self._chat(TOOL_QUESTION, 512, more)
        except RefusalError as refusal:
            return False, f"HTTP status {refusal.status}: {refusal.text[:200]}"
        except ProbeError as error:
            # What was measured before is still valid.
            return False, error.message
        return judge_tool_call(answer)

    def _chat(self, prompt: str, tokens: int, more: Mapping[str, Any]) -> dict[str, Any]:
        messages = [{"role": "user", "content": prompt}]
        body = {"model": self.model, "messages": messages, "max_tokens": tokens, "temperature": 0}
        return self._json(CHAT, {**body, **more})

    def _send(self, path: str, body: Json = None) -> requests.Response:
        try:
            answer = self._request(path, body, self.answer_s)
        except requests.RequestException as error:
            raise self._lost(error) from error
        if answer.status_code != 200:
            raise RefusalError(f"{self.url}{path}", answer.status_code, _error_text(answer))
        return answer

    def _request(self, path: str, body: Json, timeout_s: float) -> requests.Response:
        return self._session.request(
            "GET" if body is None else "POST", f"{self.url}{path}", json=body,
            timeout=(min(CONNECT_S, timeout_s), timeout_s), auth=_no_login, allow_redirects=False,
        )  # fmt: skip

    def _json(self, path: str, body: Json = None) -> dict[str, Any]:
        response = self._send(path, body)
        try:
            answer = response.json()
        except requests.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise self._incompatible(response.text)
        return answer

    def _lost(self, error: requests.RequestException) -> ProbeError:
        what, hint = (
            f"{self.url} cannot be reached, or closed the connection",
            "is the server ready?",
        )
        if isinstance(error, requests.exceptions.SSLError):
            what = f"the certificate of {self.url} is not trusted"
            hint = "REQUESTS_CA_BUNDLE=FILE names the CA to trust;"
        elif isinstance(error, requests.Timeout):
            what, hint = f"{self.url} did not answer within {self.answer_s:g} s", "does it hang?"
        return ProbeError(what, detail=_reason(error), hint=f"{hint} {program()} status")

    def _incompatible(self, text: str) -> ProbeError:
        return ProbeError(
            f"{self.url} does not answer as an OpenAI-compatible server does",
            detail=text[:500],
            hint="--url is the server's address, as http://HOST:8000",
        )


def _reason(error: BaseException) -> str:
    """What the system says: the libraries in between say the same at length."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return getattr(error, "strerror", None) or str(error)


def api_key() -> str:
    """The server's key from the environment; empty: it needs none."""
    return os.environ.get(KEY_VARIABLE, "")


def parse_url(url: str) -> str:
    """A server's address without `/v1`. Raises ``UsageError``."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"{url!r} is not a URL: {error}", hint="http://HOST:8000") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{url!r} is not the URL of a server", hint="http://HOST:8000")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            "the URL of a server has no login and no query",
            hint=f"set the key in the environment variable {KEY_VARIABLE}",
        )
    path = parts.path.rstrip("/").removesuffix("/v1")
    return f"{parts.scheme}://{parts.netloc}{path}"


def judge_tool_call(answer: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether an answer is a correct call of ``TOOL``, and what it is."""
    try:
        message = answer["choices"][0]["message"]
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
        return False, "the call's arguments are not JSON"
    if name != "get_weather":
        return False, f"another tool was called: {str(name)[:80]}"
    if not isinstance(arguments, dict) or not isinstance(arguments.get("city"), str):
        return False, "the call lacks the argument city"
    return True, f"get_weather(city={arguments['city'][:40]!r})"


def _no_login(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keeps requests from taking a login out of ~/.netrc."""
    return request


def is_loopback(url: str) -> bool:
    """Whether the address is the loopback of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _error_text(response: requests.Response) -> str:
    """The message of an error, as short as possible."""
    text = response.content[:4000].decode("utf-8", "replace").strip()
    try:
        body = json.loads(text)
    except ValueError:
        return text
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        return str(error.get("message") or error.get("detail") or text)
    return str(error)
