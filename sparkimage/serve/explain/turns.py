"""Lines at which a reading turns: what quotes others, a request that failed, a server that ends."""

from __future__ import annotations

import re

QUOTED = ("Received request ", "Generated response ")
QUOTES = re.compile(rf"\b(?:{'|'.join(QUOTED)})")
"""vLLM's logs of requests quote users and models: what they say did not happen here.
https://github.com/vllm-project/vllm/blob/main/vllm/entrypoints/logger.py"""
REQUEST = "Exception in ASGI application"
"""What uvicorn writes before the traceback of a request that failed."""
STOPPING = re.compile(
    r"Shutting down|WorkerProc(?: was|:) terminated|"
    r"\[shutdown\] (?:API server: shutdown triggered|\w+: trigger received signal)"
)
"""What a server writes that was told to end, before it tears its processes down:
https://github.com/vllm-project/vllm/blob/main/vllm/entrypoints/launcher.py"""
SAYS_STOPPING = ("INFO", "WARNING")
INTERRUPTED = re.compile(r"KeyboardInterrupt|SystemExit")
ENDED = re.compile(r"KeyboardInterrupt|SystemExit|[Cc]ancelled|Parent process exited")
BARE = re.compile(r"\b(?:(?P<waited>TimeoutError|Empty)|[A-Z]\w*(?:Error|Timeout)):?\s*$")
"""An exception without a message."""
