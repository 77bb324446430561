"""Finds what must never lie in an image: keys, tokens, logins.

A finding says which kind, never the value. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

SECRET_NAMES = r"(?:TOKEN|PASSWORD|PASSWD|SECRET|SECRET_KEY|API_?KEY|ACCESS_KEY)"

# A header alone stands in every program that reads keys; a key has its base64 behind it, on a line
# of its own or escaped as in JSON.
_GAP = rb"(?:\s|\\n|\\r|[\"'+])*"
_TOKENS: tuple[tuple[str, bytes, bytes], ...] = (
    (
        "private key",
        b"PRIVATE KEY",
        rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
        + _GAP
        + rb"(?:[A-Za-z-]+: [^\n]*\n\s*)*[A-Za-z0-9+/=]{40}",
    ),
    *(
        # Amazon's documents use one that ends so.
        ("AWS key", b, rb"(?<![A-Za-z0-9/+])" + b + rb"(?!\w{9}EXAMPLE)[A-Z2-7]{16}(?![\w/+=])")
        for b in (b"AKIA", b"ASIA")
    ),
    ("GitHub token", b"github_pat_", rb"github_pat_[A-Za-z0-9_]{60}"),
    *(
        ("GitHub token", prefix, rb"(?<![A-Za-z0-9_])" + prefix + rb"[A-Za-z0-9]{36}")
        for prefix in (b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_")
    ),
    ("GitLab token", b"glpat-", rb"(?<![A-Za-z0-9_])glpat-[A-Za-z0-9_-]{20}"),
    (
        "Hugging Face token",
        b"hf_",
        rb"(?<!\w)hf_(?=[a-z0-9]*[A-Z])(?=[A-Z0-9]*[a-z])[A-Za-z0-9]{34}(?!\w)",
    ),
    ("Docker token", b"dckr_", rb"dckr_[po]at_[A-Za-z0-9_-]{27}"),
    ("NVIDIA token", b"nvapi-", rb"nvapi-[A-Za-z0-9_-]{60}"),
    ("PyPI token", b"pypi-AgE", rb"pypi-AgE[A-Za-z0-9_-]{50}"),
    ("Slack token", b"xox", rb"(?<![A-Za-z0-9])xox[baprs]-[0-9]{8,}-[0-9A-Za-z-]{10}"),
)
_PATTERNS = tuple((kind, literal, re.compile(pattern)) for kind, literal, pattern in _TOKENS)
_URL_LOGIN = re.compile(rb"[a-z][a-z0-9+.-]*://[^\s/:@\"'<>{}$]+:[^\s/@\"'<>{}$]+@[A-Za-z0-9\[]")
_SETTING = re.compile(
    rb"(?i)(?:^|[^A-Z0-9])(?:[A-Z0-9]+_)*" + SECRET_NAMES.encode() + rb"=[\"']?([^\s\"'$<>|;]{6,})"
)

_BY_NAME: tuple[tuple[str, re.Pattern[str], re.Pattern[bytes]], ...] = (
    (
        "registry login",
        re.compile(r"config\.json|auth\.json|\.dockercfg|\.dockerconfigjson"),
        re.compile(rb'"(?:auth|identitytoken|registrytoken)"\s*:\s*"[^"]{4,}"'),
    ),
    ("login of netrc", re.compile(r"[._]netrc"), re.compile(rb"(?m)\bpassword\s+\S+")),
    (
        "login of pip",
        re.compile(r"\.pypirc|pip\.conf|uv\.toml"),
        re.compile(rb"(?m)^\s*password\s*[:=]\s*\S+"),
    ),
    (
        "login of npm",
        re.compile(r"\.npmrc"),
        re.compile(rb"_(?:authToken|auth|password)\s*=\s*[^\s$]+"),
    ),
    (
        "login in an address",
        re.compile(
            r"pip\.conf|uv\.toml|\.git-credentials|\.gitconfig|\.npmrc|\.wgetrc|\.curlrc"
            r"|\.condarc|apt\.conf|[^/]+\.(list|sources)"
        ),
        _URL_LOGIN,
    ),
)
"""By a file's name: what programs keep logins in."""
_BUNDLE = re.compile(r"^(usr/local/share/ca-certificates/.+|run/.+)$")
"""Where a site's own certificates lie; a distribution's lie elsewhere."""


def in_file(path: str, data: bytes) -> list[str]:
    """The kinds of secret in a file of a layer; ``path`` without a leading slash."""
    found = []
    if b"\0" not in data[:8192]:
        found += _tokens(data)
        name = path.rpartition("/")[2]
        for kind, names, pattern in _BY_NAME:
            if names.fullmatch(name) and pattern.search(data):
                found.append(kind)
    if _BUNDLE.match(path) and b"-----BEGIN CERTIFICATE" in data:
        found.append("CA bundle of a site")
    return sorted(set(found))


def in_environment(environment: Iterable[str]) -> list[str]:
    """The variables (NAME=VALUE) of an image's config that hold a secret, with its kind."""
    found = []
    for one in environment:
        name, _, value = one.partition("=")
        kinds = in_text(value)
        if value and re.search(rf"(^|_){SECRET_NAMES}$", name, re.IGNORECASE):
            kinds.append("by its name")
        found += [f"{name}: {kind}" for kind in sorted(set(kinds))]
    return found


def in_text(text: str) -> list[str]:
    """The kinds of secret in a label or in a line of the history."""
    data = text.encode(errors="replace")
    found = _tokens(data)
    if _URL_LOGIN.search(data):
        found.append("login in an address")
    if _SETTING.search(data):
        found.append("by a variable's name")
    return sorted(set(found))


def _tokens(data: bytes) -> list[str]:
    # A literal is found a hundred times faster than an expression.
    return [kind for kind, text, pattern in _PATTERNS if text in data and pattern.search(data)]
