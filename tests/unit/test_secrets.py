"""Secrets are found by their form and their place; what only speaks of them is none."""

from __future__ import annotations

import json

import pytest

from sparkimage.core import secrets

BODY = b"MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7" * 2
HEAD, TAIL = b"-----BEGIN PRIVATE KEY-----", b"-----END PRIVATE KEY-----"

FOUND = {
    "key": ("x.pem", HEAD + b"\n" + BODY + b"\n" + TAIL, "private key"),
    "key with headers": (
        "k",
        b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES,00\n\n" + BODY,
        "private key",
    ),
    "service account": ("a.json", json.dumps(f"{HEAD.decode()}\n{BODY.decode()}").encode(),
                        "private key"),
    "aws": ("s.sh", b"export K=AKIA" + b"B2C3" * 4, "AWS key"),
    "github": ("s.sh", b"ghp_" + b"a1B2" * 9, "GitHub token"),
    "hugging face": ("s.sh", b"hf_" + b"aB" * 17, "Hugging Face token"),
    "docker": ("root/.docker/config.json", b'{"auths":{"x":{"auth":"dTpw"}}}', "registry login"),
    "netrc": ("root/.netrc", b"machine x\nlogin y\npassword z", "login of netrc"),
    "pypirc": ("root/.pypirc", b"[pypi]\npassword = z", "login of pip"),
    "apt": ("etc/apt/sources.list", b"deb https://u:p@example.org x y", "login in an address"),
    "npm": ("root/.npmrc", b"//example.org/:_authToken=abc", "login of npm"),
    "bundle": ("run/x", b"-----BEGIN CERTIFICATE-----", "CA bundle of a site"),
}  # fmt: skip


@pytest.mark.parametrize(("path", "data", "kind"), FOUND.values(), ids=FOUND.keys())
def test_found(path: str, data: bytes, kind: str) -> None:
    assert secrets.in_file(path, data) == [kind]


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("a.py", b"if line.startswith('-----BEGIN PRIVATE KEY-----'): return load(line)"),
        ("a.py", b"AKIAIOSFODNN7EXAMPLE is Amazon's example"),
        ("a.py", b"hf_transformer_with_a_long_name_of_forty_letters"),
        ("a.py", b"https://user:password@example.org in a program's docs"),
        ("config.json", b'{"auths": {}, "model": "x"}'),
        ("root/.netrc", b"machine x login y"),
        ("a.bin", b"\0" + b"ghp_" + b"a1B2" * 9),
    ],
)
def test_not_found(path: str, data: bytes) -> None:
    assert secrets.in_file(path, data) == []


def test_environment_and_text() -> None:
    assert secrets.in_environment(
        ["HF_TOKEN=secret", "PATH=/bin", "TOKENIZERS_PARALLELISM=false"]
    ) == ["HF_TOKEN: by its name"]
    assert secrets.in_environment(["HF_TOKEN=", "API_KEY=EMPTY", "A_TOKEN=/run/secrets/a"]) == []
    assert secrets.in_environment(["PROXY=http://u:p@h/"]) == ["PROXY: login in an address"]
    assert secrets.in_text("RUN |1 NPM_TOKEN=abcdefgh make") == ["by a variable's name"]
    assert secrets.in_text('RUN curl -H "token: $GITHUB_TOKEN"; TOKEN=$(cat /run/secrets/t)') == []
