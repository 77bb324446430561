"""Warms a server up, so that its first user does not wait for kernels to be compiled.

VLLM compiles many kernels when a request of their shape first comes, and says so in its log
(https://github.com/vllm-project/vllm/issues/49349): requests of growing length and number are sent
until a round of them brings no such line.
"""

from __future__ import annotations

import itertools
import random
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparkimage.core.errors import LaunchError, ProbeError
from sparkimage.core.program import program
from sparkimage.core.units import plural
from sparkimage.serve.openai_api import RefusalError, Server

LIMIT_S = 600.0
"""Default of the seconds that it may take."""
TOKENS = 32
"""Of each answer."""
SAMPLINGS: tuple[Mapping[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0.7, "top_p": 0.95, "top_k": 40},
)
"""Each has kernels of its own."""
WORDS = (
    "the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "are", "as", "with",
    "his", "they", "at", "be", "this", "from",
)  # fmt: skip
"""Most tokenizers have a token for each."""
KEY, SERVER_ERROR = (401, 403), 500
CONTEXT = 2048
"""Tokens of a prompt and its answer, for a server that does not say how many it takes."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """Requests that are sent at once. ``words``: of each prompt."""

    requests: int
    words: int

    def prompt(self) -> str:
        """A prompt that no cache knows."""
        words = random.choices(WORDS, k=self.words)
        return " ".join([secrets.token_hex(4), *words])

    def __str__(self) -> str:
        return f"{plural(self.requests, 'request')} of {plural(self.words, 'word')}"


PROOF = (Round(requests=1, words=1),)
"""Shows that the server generates tokens, and warms up as good as nothing."""
PLAN = tuple(
    Round(requests=requests, words=words)
    for requests, words in (
        (1, 8), (1, 128), (1, 1024), (1, 4096), (2, 128), (4, 512), (8, 128), (16, 256),
    )
)  # fmt: skip


def fitting(plan: Sequence[Round], context: int) -> Sequence[Round]:
    """The rounds for a server that takes so many tokens, of which a word has two at most. Pure."""
    return [one for one in plan if 2 * one.words + TOKENS <= context] or plan[:1]


class _LateError(ProbeError):
    """The time of the warm-up is over."""


@dataclass(frozen=True, kw_only=True)
class WarmedUp:
    """What a warm-up did."""

    seconds: float
    rounds: int
    requests: int
    """That were answered."""
    compiled: int
    """Lines about compiled kernels in the ranks' logs."""
    unfinished: str
    """Why it ended before nothing was compiled any more, or nothing."""

    def __str__(self) -> str:
        done = f"{plural(self.requests, 'request')}, {plural(self.compiled, 'kernel')} compiled"
        return f"warmed up: {done}" if not self.unfinished else f"{self.unfinished} ({done})"


@dataclass(kw_only=True)
class WarmUp:
    """The warm-up of one server."""

    connect: Callable[[], Server]
    """A client of the server, for one thread each."""
    plan: Sequence[Round]
    limit_s: float
    wait: Callable[[], None]
    """Handles the next thing that happens, if it comes soon; raises where that ends all."""
    wake: Callable[[], None]
    """Ends such a wait."""
    compiled: Callable[[], int]
    """The lines about compiled kernels in the logs as they are now."""
    show: Callable[[str, str], None]
    """Shows the state of the server, and how far it is."""
    _done: int = 0
    """Rounds."""
    _answered: int = 0

    def run(self) -> WarmedUp:
        """Send the plan's rounds, and the last one again until it brings nothing new.

        Raises ``LaunchError`` where nothing is answered, ``ProbeError`` for a failing server.
        """
        began, first, unfinished = time.monotonic(), self.compiled(), ""
        try:
            card = self.connect().cards()[0]
            context = card.get("max_model_len")
            plan = fitting(self.plan, context if isinstance(context, int) else CONTEXT)
            self._rounds(str(card["id"]), plan, began + self.limit_s)
        except _LateError:
            if not self._answered:
                raise LaunchError(
                    f"ready, but no request was answered in {self.limit_s:g} s: a rank hangs, or "
                    "kernels are compiled for longer",
                    hint="allow more time: --warm-up SECONDS; or leave it running with --keep, and "
                    f"see {program()} status",
                ) from None
            unfinished = f"not warm yet after {self.limit_s:g} s: the first users may wait"
        except RefusalError as refusal:
            if refusal.status >= SERVER_ERROR:
                raise
            # It wants a key, or does not complete text.
            reason = refusal.hint if refusal.status in KEY else refusal.text[:200]
            unfinished = f"not warmed up, a request gets HTTP {refusal.status}: {reason}"
        return WarmedUp(
            seconds=time.monotonic() - began, rounds=self._done, requests=self._answered,
            compiled=self.compiled() - first, unfinished=unfinished,
        )  # fmt: skip

    def _rounds(self, model: str, plan: Sequence[Round], until: float) -> None:
        for number, one in enumerate(plan[:-1], 1):
            self.show(f"warm-up {number}/{len(plan)}", str(one))
            self._send(model, one, until)
        for number in itertools.count(len(plan)):
            before = self.compiled()
            self.show(f"warm-up {number}/{number}", str(plan[-1]))
            self._send(model, plan[-1], until)
            if self.plan is PROOF or self.compiled() == before:
                return

    def _send(self, model: str, one: Round, until: float) -> None:
        """Send a round's requests; a single one twice, once with each sampling."""
        if one.requests == 1:
            prompt = one.prompt()
            for sampling in SAMPLINGS:
                self._at_once(model, [(prompt, sampling)], until)
        else:
            pairs = zip(range(one.requests), itertools.cycle(SAMPLINGS), strict=False)
            self._at_once(model, [(one.prompt(), sampling) for _, sampling in pairs], until)
        self._done += 1

    def _at_once(
        self, model: str, requests: Sequence[tuple[str, Mapping[str, Any]]], until: float
    ) -> None:
        answers: list[ProbeError | None] = []

        def ask(prompt: str, sampling: Mapping[str, Any]) -> None:
            server = self.connect()
            server.model = model
            error = None
            try:
                server.complete(prompt, TOKENS, ignore_eos=True, **sampling)
            except ProbeError as failed:
                error = failed
            answers.append(error)
            self.wake()

        for one in requests:
            threading.Thread(target=ask, args=one, daemon=True).start()
        while len(answers) < len(requests):
            if time.monotonic() > until:
                raise _LateError("late")
            self.wait()
        if failed := [error for error in answers if error is not None]:
            raise failed[0]
        self._answered += len(requests)
