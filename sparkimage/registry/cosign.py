"""Signatures and signed statements, made and verified by cosign.

https://docs.sigstore.dev/cosign/. A key file, a key of a KMS and the identity of a CI job differ in
the words that cosign is given, and in nothing else. With a key it works offline: nothing goes into
a transparency log.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sparkimage.core.errors import (
    CommandError,
    GateError,
    PreflightError,
    PublishedError,
    UsageError,
)
from sparkimage.registry.skopeo import Repository
from sparkimage.registry.tools import Tools
from sparkimage.verify.seal import STATEMENT, TEST_RESULT

KMS = ("awskms://", "azurekms://", "gcpkms://", "hashivault://", "k8s://", "pkcs11:")
"""Keys that cosign reaches elsewhere: https://docs.sigstore.dev/cosign/key_management/overview/."""
ENCRYPTED = b"-----BEGIN ENCRYPTED "
PASSWORD = "COSIGN_PASSWORD"
SIGNATURES, ATTESTATIONS = "sig", "att"


@dataclass(frozen=True, kw_only=True)
class Signature:
    """A signature that the trusted key or identity made: over a digest, and the tags for it."""

    digest: str
    tags: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Statement:
    """An in-toto statement that is attached to an image."""

    content: Mapping[str, Any]
    verified: bool
    """Whether the trusted key or identity signed exactly this."""

    @property
    def kind(self) -> str:
        return str(self.content.get("predicateType", ""))

    @property
    def predicate(self) -> Mapping[str, Any]:
        found = self.content.get("predicate")
        return found if isinstance(found, dict) else {}

    @property
    def subject(self) -> str:
        """The digest that it is about."""
        try:
            (subject,) = self.content["subject"]
            return f"sha256:{subject['digest']['sha256']}"
        except (KeyError, TypeError, ValueError):
            return ""


@dataclass(frozen=True, kw_only=True)
class Trust:
    """Whose signatures count: a public key, or the identity of a CI job.

    ``identity`` is an expression for the subject of the job's certificate, ``issuer`` the address
    that vouches for it.
    """

    tools: Tools
    words: tuple[str, ...] = ()
    """Without any, nobody's signatures count."""
    name: str = "nobody"

    @classmethod
    def of(cls, key: str | None, identity: str | None, issuer: str | None, tools: Tools) -> Trust:
        """By a public key (a PEM file or a KMS address), or by an identity.

        Raises ``UsageError`` for neither, ``PreflightError`` for a file that is no public key.
        """
        if (identity is None) != (issuer is None):
            raise UsageError(
                "--identity and --issuer belong together",
                hint="the subject of the job's certificate (an expression), and who vouches for it",
            )
        if identity is not None:
            words = (
                "--certificate-identity-regexp", identity,
                "--certificate-oidc-issuer", str(issuer),
            )  # fmt: skip
            return cls(tools=tools, words=words, name=identity)
        if key is None:
            raise UsageError(
                "whose signature is to be trusted?",
                hint="--key FILE names the publisher's public key (PEM); or --identity and "
                "--issuer a CI job's",
            )
        if not key.startswith(KMS):
            try:
                if b"-----BEGIN PUBLIC KEY-----" not in Path(key).read_bytes():
                    raise ValueError("it holds no PUBLIC KEY")
            except (OSError, ValueError) as error:
                raise PreflightError(
                    f"{key} is no public key: {error}",
                    hint="give its PEM file: openssl pkey -in KEY -pubout, or cosign public-key",
                ) from None
        return cls(tools=tools, words=("--key", key, "--insecure-ignore-tlog"), name=key)

    def signatures(self, repository: Repository, digest: str) -> tuple[Signature, ...] | None:
        """Those over ``digest`` that count, whatever they are of; None where there is none at all.

        Errors as ``Repository.manifest``.
        """
        if repository.manifest(tag_of(digest, SIGNATURES)) is None:
            return None
        if not self.words:
            return ()
        done = _run(
            self.tools, "verify", repository,
            [*self.words, "--check-claims=false", "--output=json"], digest, check=False,
        )  # fmt: skip
        # Nothing where it verifies none.
        listed = json.loads(done or "[]")
        return tuple(
            Signature(
                digest=str(one["critical"]["image"]["docker-manifest-digest"]),
                tags=_tags((one.get("optional") or {}).get("tags")),
            )
            for one in listed
        )

    def statements(self, repository: Repository, digest: str) -> tuple[Statement, ...]:
        """What is attached to ``digest``. Errors as ``Repository.manifest``, and
        ``PublishedError`` where it cannot be read."""
        if repository.manifest(tag_of(digest, ATTESTATIONS)) is None:
            return ()
        try:
            said = _run(self.tools, "download", repository, (), digest, "attestation")
        except CommandError as error:
            why = "is corrupt" if "checksum" in error.output else "cannot be read"
            raise PublishedError(
                f"what is attached to {digest[:19]} is damaged in {repository.place}: it {why}",
                hint="publish the image again",
                detail=error.output,
            ) from None
        payloads = list(_payloads(said.splitlines()))
        verified: set[str] = set()
        kinds = {str(content.get("predicateType")) for _, content in payloads}
        for kind in sorted(kinds) if self.words else ():
            done = _run(
                self.tools, "verify-attestation", repository,
                [*self.words, "--check-claims=false", f"--type={kind}"], digest, check=False,
            )  # fmt: skip
            verified |= {payload for payload, _ in _payloads(done.splitlines())}
        return tuple(
            Statement(content=content, verified=payload in verified)
            for payload, content in payloads
        )

    def blob_statement(self, envelope: Mapping[str, Any], digest: str) -> Mapping[str, Any]:
        """The statement of an envelope that ``Signer.envelope`` made. Raises ``GateError``."""
        with TemporaryDirectory(prefix="sparkimage-verify-") as name:
            file = Path(name, "envelope.json")
            file.write_text(json.dumps(envelope))
            argv = [
                *self.tools.cosign, "verify-blob-attestation", *self.words,
                "--check-claims=false", f"--type={TEST_RESULT}", f"--signature={file}",
            ]  # fmt: skip
            done = self.tools.runner.run(argv, check=False)
        statements = [content for _, content in _payloads([json.dumps(envelope)])]
        if done.returncode != 0 or not statements:
            raise GateError(
                f"the seal of {digest[:19]} is not signed by {self.name}, or was edited",
                hint="give the public key of who saved it, or have it saved again",
                detail=done.stderr,
            )
        return statements[0]


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Signs with a key or with the identity of a CI job."""

    tools: Tools
    trust: Trust
    """What its own signatures are verified with."""
    words: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def sign(self, repository: Repository, digest: str, tags: Iterable[str]) -> None:
        """Sign a digest, and the tags that it may have. Errors as ``Repository.manifest``."""
        words = [*self.words, f"--annotations=tags={' '.join(sorted(tags))}"]
        self._do(repository, "sign", digest, words, "the signature")

    def attest(
        self, repository: Repository, digest: str, statement: Mapping[str, Any], *, replace: bool
    ) -> None:
        """Attach a signed statement about ``digest``; with ``replace`` in place of those of its
        kind. Errors as ``Repository.manifest``."""
        with _predicate(statement) as words:
            more = ["--replace"] if replace else []
            self._do(
                repository, "attest", digest, [*self.words, *words, *more],
                str(statement["predicateType"]),
            )  # fmt: skip

    def envelope(self, statement: Mapping[str, Any]) -> Mapping[str, Any]:
        """A signed statement for a file, as a DSSE envelope. Raises ``PreflightError``."""
        (subject,) = statement["subject"]
        with _predicate(statement) as words, TemporaryDirectory(prefix="sparkimage-sign-") as name:
            made = Path(name, "envelope.json")
            argv = [
                *self.tools.cosign, "attest-blob", "--yes", *self.words, *words,
                f"--hash={subject['digest']['sha256']}", f"--output-signature={made}",
                str(subject["name"]),
            ]  # fmt: skip
            try:
                self.tools.runner.run(argv, env=self.environment)
            except CommandError as error:
                raise PreflightError(
                    "cosign cannot sign the seal", hint="look at what it says below",
                    detail=error.output,
                ) from None  # fmt: skip
            read: dict[str, Any] = json.loads(made.read_text())
        return read

    def _do(
        self, repository: Repository, verb: str, digest: str, words: Sequence[str], what: str
    ) -> None:
        try:
            _run(self.tools, verb, repository, ["--yes", *words], digest, env=self.environment)
        except CommandError as error:
            raise repository.failure(error.output, what) from None


@contextmanager
def signer(
    key: str | None, identity: str | None, issuer: str | None, tools: Tools
) -> Iterator[Signer]:
    """Who signs: a key file (cosign's own, or a PEM one without a passphrase), a KMS address, or a
    CI job's identity.

    Raises ``UsageError`` for none of them or for two, ``PreflightError`` for a key that cannot be
    used.
    """
    if key is not None and (identity or issuer):
        raise UsageError("--key signs with a key, --identity without one", hint="choose one")
    if identity is not None or issuer is not None:
        yield Signer(tools=tools, trust=Trust.of(None, identity, issuer, tools))
        return
    if key is None:
        raise UsageError(
            "nothing to sign with",
            hint="--key FILE: openssl genpkey -algorithm ed25519 -out FILE makes one; "
            "or --identity and --issuer in a CI job",
        )
    cosign = tools.cosign
    with TemporaryDirectory(prefix="sparkimage-sign-") as name:
        environment: dict[str, str] = {}
        try:
            if not key.startswith(KMS) and ENCRYPTED not in Path(key).read_bytes():
                # cosign signs with keys of its own form alone.
                environment = {PASSWORD: secrets.token_hex()}
                prefix = str(Path(name, "own"))
                tools.runner.run(
                    [*cosign, "import-key-pair", "--key", key, "--output-key-prefix", prefix],
                    env=environment,
                )
                key = f"{prefix}.key"
            public = tools.runner.run(
                [*cosign, "public-key", "--key", key], stdin="", env=environment
            ).stdout
        except (CommandError, OSError) as error:
            raise PreflightError(
                f"{key} is no key to sign with",
                hint=f"a PEM file of ed25519 without a passphrase, cosign's key file with "
                f"{PASSWORD} set to its passphrase, or a KMS address",
                detail=str(getattr(error, "output", error)),
            ) from None
        file = Path(name, "public.pem")
        file.write_text(public)
        yield Signer(
            tools=tools, trust=Trust.of(str(file), None, None, tools),
            words=("--key", key, "--tlog-upload=false"), environment=environment,
        )  # fmt: skip


def tag_of(digest: str, kind: str) -> str:
    """Where the signatures or the attestations of ``digest`` are:
    https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md."""
    return f"{digest.replace(':', '-')}.{kind}"


def _run(
    tools: Tools, verb: str, repository: Repository, words: Sequence[str], digest: str,
    *more: str, env: Mapping[str, str] | None = None, check: bool = True,
) -> str:  # fmt: skip
    access = repository.access
    argv = [
        *tools.cosign, verb, *more, *access.cosign, *words,
        f"{repository.place}@{digest}",
    ]  # fmt: skip
    environment = {**access.environment, **(env or {})}
    return tools.runner.run(argv, stdin="", env=environment, check=check).stdout


@contextmanager
def _predicate(statement: Mapping[str, Any]) -> Iterator[list[str]]:
    with TemporaryDirectory(prefix="sparkimage-sign-") as name:
        file = Path(name, "predicate.json")
        file.write_text(json.dumps(statement["predicate"]))
        yield [f"--type={statement['predicateType']}", f"--predicate={file}"]


def _payloads(lines: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The payload of each envelope, and the statement in it."""
    for line in lines:
        try:
            payload = str(json.loads(line)["payload"])
            content = json.loads(base64.b64decode(payload))
        except (KeyError, TypeError, ValueError):
            continue
        if isinstance(content, dict):
            # cosign writes version 0.1 of the statement, whose fields are the same.
            yield payload, {**content, "_type": STATEMENT}


def _tags(given: Any) -> tuple[str, ...]:
    """The tags of a signature: earlier versions signed a list of them."""
    return tuple(given.split() if isinstance(given, str) else (str(tag) for tag in given or ()))
