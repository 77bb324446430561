"""A client of OpenAI-compatible servers: what `probe` asks beside the benchmark itself.

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

KEY_VARIABLE = "SPARKIMAGE_API_KEY"
"""Only from the environment: what stands in a command line, everybody on the machine can read."""
CHAT = "/v1/chat/completions"
CONNECT_S = 10.0
HINTS = {
    401: f"give its key in the environment variable {KEY_VARIABLE}",
    403: f"give its key in the environment variable {KEY_VARIABLE}",
    404: "--model names one that it serves; --url is http://HOST:PORT",
    429: "fewer --streams, or wait",
    503: "is it loading still? python build.py status",
}
"""What to do, by the status of a refusal."""
ANSWER_S = 120.0
"""Seconds without an answer until the server counts as hung."""
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
class Granted:
    """Which of our rules a server keeps, as its answer to one request shows."""

    extras: dict[str, Any]
    """What it takes beyond OpenAI's API, to be sent with every request."""
    refused: tuple[str, ...]
    """Names of those that it refuses."""
    thinks: bool
    """Thinking came although it was turned off."""


class RefusalError(ProbeError):
    """The server refuses what was asked, with a status."""

    def __init__(self, url: str, status: int, said: str) -> None:
        self.status, self.said = status, said
        hint = HINTS.get(status, "look into the server's log: python build.py explain FILE")
        super().__init__(f"{url} refuses with status {status}", detail=said[:500], hint=hint)


@dataclass(kw_only=True)
class Server:
    """An OpenAI-compatible server."""

    url: str
    """Its address without `/v1`, as it is shown."""
    socket: Path | None = None
    """A socket of this machine that leads to it; None: it is asked at its address."""
    model: str = ""
    _session: requests.Session = field(default_factory=requests.Session)

    def __post_init__(self) -> None:
        self._session.headers["User-Agent"] = "sparkimage"
        self._session.trust_env = self.socket is None and not is_loopback(self.url)
        if key := api_key():
            self._session.headers["Authorization"] = f"Bearer {key}"
        if self.socket is not None:
            from docker.transport import UnixHTTPAdapter

            self._session.mount(self.url, UnixHTTPAdapter(f"http+unix://{self.socket}"))

    def models(self) -> list[str]:
        """The models that it serves. Raises ``ProbeError``."""
        said = self._json("GET", "/v1/models")
        found = said.get("data")
        if not isinstance(found, list):
            raise self._strange(json.dumps(said))
        names = [str(one.get("id")) for one in found if isinstance(one, dict) and one.get("id")]
        if not names:
            raise ProbeError(f"{self.url} serves no model", hint="wait until it has loaded one")
        return names

    def try_rules(self, prompt: str, tokens: int) -> Granted:
        """What of our rules it keeps: one request, not counted, which warms it up as well.

        Raises ``ProbeError``.
        """
        extras: dict[str, Any] = {"ignore_eos": True, "chat_template_kwargs": NO_THINKING}
        refused: list[str] = []
        while True:
            try:
                said = self._chat(prompt, tokens, extras)
                break
            except RefusalError as refusal:
                named = [name for name in extras if name in refusal.said]
                if refusal.status not in (400, 422) or not named:
                    raise
                refused += named
                extras = {name: value for name, value in extras.items() if name not in named}
        try:
            message = said["choices"][0]["message"]
            thinks = bool(message.get("reasoning_content") or message.get("reasoning"))
        except (KeyError, IndexError, TypeError, AttributeError):
            raise self._strange(json.dumps(said)) from None
        return Granted(extras=extras, refused=tuple(refused), thinks=thinks)

    def prefix_cache(self) -> tuple[float, float] | None:
        """Tokens that vLLM looked up in its prefix cache, and those that were there, up to now;
        None where it does not say (https://docs.vllm.ai/en/latest/usage/metrics.html)."""
        try:
            text = self._send("GET", "/metrics").text
        except ProbeError:
            return None
        found = re.findall(r"(?m)^vllm:prefix_cache_(queries|hits)_total\S* ([\d.e+]+)$", text)
        counts = {"queries": 0.0, "hits": 0.0}
        for name, value in found:
            counts[name] += float(value)
        return (counts["queries"], counts["hits"]) if found else None

    def call_tool(self, extras: Mapping[str, Any]) -> tuple[bool, str]:
        """Whether it calls a tool when asked to, and what was seen."""
        more = {name: value for name, value in extras.items() if name != "ignore_eos"}
        try:
            said = self._chat(TOOL_QUESTION, 512, {**more, "tools": [TOOL], "tool_choice": "auto"})
        except RefusalError as refusal:
            return False, f"refused with {refusal.status}: {refusal.said[:200]}"
        except ProbeError as error:
            # What was measured before stands.
            return False, error.message
        return judge_tool_call(said)

    def _chat(self, prompt: str, tokens: int, more: Mapping[str, Any]) -> dict[str, Any]:
        messages = [{"role": "user", "content": prompt}]
        body = {"model": self.model, "messages": messages, "max_tokens": tokens, "temperature": 0}
        return self._json("POST", CHAT, {**body, **more})

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> requests.Response:
        try:
            answer = self._session.request(
                method,
                f"{self.url}{path}",
                json=body,
                timeout=(CONNECT_S, ANSWER_S),
                auth=_nobody,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            raise self._lost(error) from error
        if answer.status_code != 200:
            raise RefusalError(f"{self.url}{path}", answer.status_code, _said(answer))
        return answer

    def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        answer = self._send(method, path, body)
        try:
            said = answer.json()
        except requests.JSONDecodeError:
            raise self._strange(answer.text) from None
        if not isinstance(said, dict):
            raise self._strange(str(said))
        return said

    def _lost(self, error: requests.RequestException) -> ProbeError:
        what, hint = f"{self.url} cannot be reached, or broke off", "is the server ready?"
        if isinstance(error, requests.exceptions.SSLError):
            what = f"the certificate of {self.url} is not trusted here"
            hint = "REQUESTS_CA_BUNDLE=FILE names the CA to trust;"
        elif isinstance(error, requests.Timeout):
            what, hint = f"{self.url} did not answer within {ANSWER_S:g} s", "does it hang?"
        return ProbeError(what, detail=str(error), hint=f"{hint} python build.py status")

    def _strange(self, text: str) -> ProbeError:
        return ProbeError(
            f"{self.url} does not answer as an OpenAI-compatible server does",
            detail=text[:500],
            hint="--url is the server's address, as http://HOST:8000",
        )


def api_key() -> str:
    """The server's key, of the environment; empty: it needs none."""
    return os.environ.get(KEY_VARIABLE, "")


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


def is_loopback(url: str) -> bool:
    """Whether the address is of this machine alone."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _said(answer: requests.Response) -> str:
    """What a refusal says, as short as it can be had."""
    text = answer.content[:4000].decode("utf-8", "replace").strip()
    try:
        said = json.loads(text)
    except ValueError:
        return text
    error = said.get("error", said) if isinstance(said, dict) else said
    if isinstance(error, dict):
        return str(error.get("message") or error.get("detail") or text)
    return str(error)
