"""Signatures and attestations, made and verified by cosign: https://docs.sigstore.dev/cosign/.

A key file, a key of a KMS and the identity of a CI job differ only in the options of cosign. With a
key it works offline: nothing is written to a transparency log.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
from sparkimage.resolve.skopeo import Repository
from sparkimage.resolve.tools import Tools
from sparkimage.verify import seal

KMS = ("awskms://", "azurekms://", "gcpkms://", "hashivault://", "k8s://", "pkcs11:")
"""Addresses of keys that are no file: https://docs.sigstore.dev/cosign/key_management/overview/."""
ENCRYPTED = b"-----BEGIN ENCRYPTED "
PASSWORD = "COSIGN_PASSWORD"


@dataclass(frozen=True, kw_only=True)
class Signature:
    """A verified signature: the digest that it is over, and the tags that it was made for."""

    digest: str
    tags: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Attestation:
    """An in-toto statement that is attached to an image."""

    statement: Mapping[str, Any]
    verified: bool
    """Whether the trusted key or identity signed it."""

    @property
    def predicate_type(self) -> str:
        return str(self.statement.get("predicateType", ""))

    @property
    def predicate(self) -> Mapping[str, Any]:
        predicate = self.statement.get("predicate")
        return predicate if isinstance(predicate, dict) else {}

    @property
    def subject(self) -> str:
        """The digest that it is about; empty for none, or for several."""
        return seal.subject(self.statement)


@dataclass(frozen=True, kw_only=True)
class Trust:
    """Whose signatures count: those of a public key, or of the identity of a CI job."""

    tools: Tools
    options: tuple[str, ...] = ()
    """The options of cosign that say so. Without any, no signature counts."""
    name: str = "nobody"

    @classmethod
    def of(cls, key: str | None, identity: str | None, issuer: str | None, tools: Tools) -> Trust:
        """By a public key (a PEM file or a KMS address), or by an identity: a regular expression
        for the subject of the certificate, and the URL of its OIDC issuer.

        Raises ``UsageError`` for neither, ``PreflightError`` for a file that is no public key.
        """
        if (identity is None) != (issuer is None):
            raise UsageError(
                "--identity and --issuer belong together",
                hint="the subject of the job's certificate (an expression), and its OIDC issuer",
            )
        if identity is not None:
            options = (
                "--certificate-identity-regexp", identity,
                "--certificate-oidc-issuer", str(issuer),
            )  # fmt: skip
            return cls(tools=tools, options=options, name=identity)
        if key is None:
            raise UsageError(
                "no key to verify signatures with",
                hint="pass --key FILE (the publisher's public key, PEM), or --identity and "
                "--issuer of a CI job",
            )
        if not key.startswith(KMS):
            try:
                if b"-----BEGIN PUBLIC KEY-----" not in Path(key).read_bytes():
                    raise ValueError("it has no PUBLIC KEY block")
            except (OSError, ValueError) as error:
                raise PreflightError(
                    f"{key} is not a public key: {error}",
                    hint="pass a PEM file: openssl pkey -in KEY -pubout, or cosign public-key",
                ) from None
        return cls(tools=tools, options=("--key", key, "--insecure-ignore-tlog"), name=key)

    def signatures(self, repository: Repository, digest: str) -> tuple[Signature, ...] | None:
        """The verified signatures attached to ``digest``; None where no signature is attached.

        A signature may be over another digest. Raises as ``Repository.manifest``.
        """
        if repository.manifest(_attached_tag(digest, "sig")) is None:
            return None
        if not self.options:
            return ()
        output = self._run(
            "verify", repository, digest, "--check-claims=false", "--output=json", check=False
        )
        return tuple(
            Signature(
                digest=str(payload["critical"]["image"]["docker-manifest-digest"]),
                tags=_tags((payload.get("optional") or {}).get("tags")),
            )
            for payload in json.loads(output or "[]")
        )

    def attestations(
        self, repository: Repository, digest: str, verify: Collection[str]
    ) -> tuple[Attestation, ...]:
        """All attestations of ``digest``; those of the predicate types ``verify`` are verified.

        Starts cosign once, and once for each of these types that is there. Raises as
        ``Repository.manifest``, and ``PublishedError`` for attestations that cannot be read.
        """
        if repository.manifest(_attached_tag(digest, "att")) is None:
            return ()
        try:
            output = _run(self.tools, ("download", "attestation"), repository, (), digest)
        except CommandError as error:
            why = "they are corrupt" if "checksum" in error.output else "they cannot be read"
            raise PublishedError(
                f"the attestations of {digest[:19]} are damaged in {repository.place}: {why}",
                hint="publish the image again",
                detail=error.output,
            ) from None
        statements = list(_statements(output.splitlines()))
        types = {str(statement.get("predicateType")) for _, statement in statements}
        verified: set[str] = set()
        for predicate_type in sorted(types & set(verify)) if self.options else ():
            output = self._run(
                "verify-attestation", repository, digest,
                "--check-claims=false", f"--type={predicate_type}", check=False,
            )  # fmt: skip
            verified |= {payload for payload, _ in _statements(output.splitlines())}
        return tuple(
            Attestation(statement=statement, verified=payload in verified)
            for payload, statement in statements
        )

    def verify_envelope(self, envelope: Mapping[str, Any], digest: str) -> Mapping[str, Any]:
        """The test result in an envelope of ``Signer.envelope``. Raises ``GateError``."""
        with TemporaryDirectory(prefix="sparkimage-verify-") as name:
            file = Path(name, "envelope.json")
            file.write_text(json.dumps(envelope))
            argv = [
                *self.tools.cosign, "verify-blob-attestation", *self.options,
                "--check-claims=false", f"--type={seal.TEST_RESULT}", f"--signature={file}",
            ]  # fmt: skip
            process = self.tools.runner.run(argv, check=False)
        statements = [statement for _, statement in _statements([json.dumps(envelope)])]
        if process.returncode != 0 or not statements:
            raise GateError(
                f"the seal of {digest[:19]} is not signed by {self.name}, or was edited",
                hint="pass the public key of whoever saved it, or save it again",
                detail=process.stderr,
            )
        return statements[0]

    def _run(
        self, command: str, repository: Repository, digest: str, *options: str, check: bool
    ) -> str:
        return _run(
            self.tools, (command,), repository, (*self.options, *options), digest, check=check
        )


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Signs with a key or with the identity of a CI job."""

    tools: Tools
    trust: Trust
    """Verifies its own signatures."""
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def sign(self, repository: Repository, digest: str, tags: Iterable[str]) -> None:
        """Sign a digest and the tags that it may have. Raises as ``Repository.manifest``."""
        annotation = f"--annotations=tags={' '.join(sorted(tags))}"
        self._run("sign", repository, digest, (annotation,), "the signature")

    def attest(
        self, repository: Repository, digest: str, statement: Mapping[str, Any], *, replace: bool
    ) -> None:
        """Attach a signed statement to ``digest``; ``replace`` removes those of its type.

        One at a time: cosign rewrites the manifest of all attestations. Raises as
        ``Repository.manifest``.
        """
        more = ["--replace"] if replace else []
        with _predicate(statement) as options:
            what = str(statement["predicateType"])
            self._run("attest", repository, digest, [*options, *more], what)

    def envelope(self, statement: Mapping[str, Any]) -> Mapping[str, Any]:
        """A signed statement for a file, as a DSSE envelope. Raises ``PreflightError``."""
        (subject,) = statement["subject"]
        with _predicate(statement) as options, TemporaryDirectory(prefix="sparkimage-") as name:
            file = Path(name, "envelope.json")
            argv = [
                *self.tools.cosign, "attest-blob", "--yes", *self.options, *options,
                f"--hash={subject['digest']['sha256']}", f"--output-signature={file}",
                str(subject["name"]),
            ]  # fmt: skip
            try:
                self.tools.runner.run(argv, env=self.environment)
            except CommandError as error:
                raise PreflightError(
                    "cosign cannot sign the seal", hint="see its output below",
                    detail=error.output,
                ) from None  # fmt: skip
            envelope: dict[str, Any] = json.loads(file.read_text())
        return envelope

    def _run(
        self, command: str, repository: Repository, digest: str, options: Sequence[str], what: str
    ) -> None:
        options = ("--yes", *self.options, *options)
        try:
            _run(self.tools, (command,), repository, options, digest, env=self.environment)
        except CommandError as error:
            raise repository.error(error.output, what) from None


@contextmanager
def signer(
    key: str | None, identity: str | None, issuer: str | None, tools: Tools
) -> Iterator[Signer]:
    """A signer with a key file (cosign's format, or PEM without a passphrase), a KMS address, or
    the identity of a CI job.

    Raises ``UsageError`` for none of them or for two, ``PreflightError`` for a key that cannot be
    used.
    """
    if key is not None and (identity or issuer):
        raise UsageError("--key and --identity exclude each other", hint="pass one of them")
    if identity is not None or issuer is not None:
        yield Signer(tools=tools, trust=Trust.of(None, identity, issuer, tools))
        return
    if key is None:
        raise UsageError(
            "no key to sign with",
            hint="--key FILE: openssl genpkey -algorithm ed25519 -out FILE creates one; "
            "or --identity and --issuer in a CI job",
        )
    with TemporaryDirectory(prefix="sparkimage-sign-") as name:
        public, environment = Path(name, "key.pub"), dict[str, str]()
        try:
            if not key.startswith(KMS) and ENCRYPTED not in Path(key).read_bytes():
                # cosign signs only with keys in its own format.
                environment = {PASSWORD: secrets.token_hex()}
                argv = ["import-key-pair", "--key", key, f"--output-key-prefix={Path(name, 'key')}"]
                tools.runner.run([*tools.cosign, *argv], env=environment)
                key = str(Path(name, "key.key"))
            else:
                argv = ["public-key", "--key", key, f"--outfile={public}"]
                tools.runner.run([*tools.cosign, *argv], stdin="")
        except (CommandError, OSError) as error:
            raise PreflightError(
                f"{key} cannot be used to sign",
                hint=f"pass a PEM file of ed25519 without a passphrase, cosign's key file with "
                f"{PASSWORD} set to its passphrase, or a KMS address",
                detail=str(getattr(error, "output", error)),
            ) from None
        yield Signer(
            tools=tools, trust=Trust.of(str(public), None, None, tools),
            options=("--key", key, "--tlog-upload=false"), environment=environment,
        )  # fmt: skip


def _attached_tag(digest: str, kind: str) -> str:
    """The tag of the signatures (``sig``) or the attestations (``att``) of ``digest``:
    https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md."""
    return f"{digest.replace(':', '-')}.{kind}"


def _run(
    tools: Tools, command: Sequence[str], repository: Repository, options: Sequence[str],
    digest: str, *, env: Mapping[str, str] | None = None, check: bool = True,
) -> str:  # fmt: skip
    access = repository.access
    argv = [*tools.cosign, *command, *access.cosign, *options, f"{repository.place}@{digest}"]
    environment = {**access.environment, **(env or {})}
    return tools.runner.run(argv, stdin="", env=environment, check=check).stdout


@contextmanager
def _predicate(statement: Mapping[str, Any]) -> Iterator[list[str]]:
    with TemporaryDirectory(prefix="sparkimage-sign-") as name:
        file = Path(name, "predicate.json")
        file.write_text(json.dumps(statement["predicate"]))
        yield [f"--type={statement['predicateType']}", f"--predicate={file}"]


def _statements(lines: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The payload of each envelope, and the statement in it."""
    for line in lines:
        try:
            payload = str(json.loads(line)["payload"])
            statement = json.loads(base64.b64decode(payload))
        except (KeyError, TypeError, ValueError):
            continue
        if isinstance(statement, dict):
            # cosign writes version 0.1 of the statement, whose fields are the same.
            yield payload, {**statement, "_type": seal.STATEMENT}


def _tags(annotation: Any) -> tuple[str, ...]:
    """The tags of a signature; earlier versions signed a list of them."""
    tags = annotation.split() if isinstance(annotation, str) else annotation or ()
    return tuple(str(tag) for tag in tags)
