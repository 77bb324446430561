"""What a value of the wrong form was meant to be."""

from __future__ import annotations

import re
from collections.abc import Callable

from sparkimage.config.address import without_login

GUESSES: tuple[Callable[[str], str], ...] = (
    lambda text: re.sub(r"\s+", "-", text) if re.fullmatch(r"[\w .-]+", text) else text,
    lambda text: re.sub(r"\s+", "", text),
    # git's and ssh's short form: https://git-scm.com/docs/git-clone#_git_urls
    lambda text: re.sub(r"^([^@/\s]+@[^:/\s]+):/?", r"ssh://\1/", text),
    without_login,
    lambda text: re.sub(r"^(https?|docker|oci)://", "", text),
    lambda text: f"https://{text}" if re.match(r"[^/:@]+\.[^/:@]+/", text) else text,
    lambda text: text.removeprefix("sha256:"),
    lambda text: text.strip("/"),
    lambda text: text.removeprefix("./").rstrip("/"),
    # A requirement that is not exact: https://peps.python.org/pep-0440/#version-specifiers
    lambda text: re.sub(r"\s*(?:[<>~!]=|={1,3}|[<>])\s*", "==", text, count=1),
    lambda text: re.sub(r"^(\d+\.\d+)\.\d+$", r"\1", text),
    lambda text: text.removeprefix("v"),
    lambda text: re.sub(r"^(\d{4})-(\d\d)-(\d\d).*", r"\1\2\3T000000Z", text),
    lambda text: f"{text}B",
    lambda text: text.lower(),
    lambda text: text.rpartition(":")[0],
    lambda text: re.sub(r"[ _.]+", "-", text.lower()) if re.fullmatch(r"[\w .-]+", text) else text,
)
"""Ways to write the same in another form, the likeliest first."""


def meant(text: str, pattern: str) -> str | None:
    """The likeliest other way to write ``text`` that has the form of ``pattern``."""
    if len(text) > 300:
        return None
    bare = without_login(text)
    for guess in GUESSES if text == bare else (without_login,):
        other = guess(text)
        if other and other != text and re.search(pattern, other):
            return other
    return None
