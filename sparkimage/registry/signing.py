"""Who signs what is published: a key of ours, or one that the program cosign holds.

One thing is asked of either: a signature over these bytes. So what is attached is made and brought
in one way, and cosign reads it whoever signed.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from sparkimage.build.engine.emulation import native_arch
from sparkimage.config.lockfile import Deb
from sparkimage.config.plan import MORE
from sparkimage.core.errors import CommandError, Locked, PreflightError, UsageError
from sparkimage.core.files import take_place
from sparkimage.core.process import Runner
from sparkimage.resolve import apt
from sparkimage.resolve.context import Outside
from sparkimage.verify import dsse
from sparkimage.verify.keys import Keyring

SUITE = "trixie"
KMS = ("awskms://", "azurekms://", "gcpkms://", "hashivault://", "k8s://")
"""Keys that cosign reaches elsewhere: https://docs.sigstore.dev/cosign/key_management/overview/."""
ENCRYPTED = b"-----BEGIN ENCRYPTED "
PASSWORD = "COSIGN_PASSWORD"


class Signer(Protocol):
    """Signs bytes."""

    @property
    def public(self) -> dsse.PublicKey:
        """The key that believes its signatures."""

    def sign(self, data: bytes) -> bytes:
        """The signature over ``data``."""


@dataclass(frozen=True, kw_only=True)
class OwnSigner:
    """Signs with a private key that is at hand."""

    key: dsse.PrivateKey

    @property
    def public(self) -> dsse.PublicKey:
        return self.key.public_key()

    def sign(self, data: bytes) -> bytes:
        return dsse.signature(data, self.key)


@dataclass(frozen=True, kw_only=True)
class CosignSigner:
    """Signs with cosign, offline: nothing is put into a transparency log."""

    key: str
    program: str
    runner: Runner
    public: dsse.PublicKey

    @classmethod
    def of(cls, key: str, program: str, runner: Runner) -> CosignSigner:
        """With the key file or the KMS address ``key``. Raises ``PreflightError``."""
        try:
            said = runner.run([program, "public-key", "--key", key], stdin="").stdout
            public = dsse.public_key(said.encode())
        except (CommandError, ValueError) as error:
            raise PreflightError(
                f"cosign cannot use the key {key}",
                hint=f"see that it is there and that {PASSWORD} is set to its passphrase",
                detail=str(getattr(error, "output", error)),
            ) from None
        return cls(key=key, program=program, runner=runner, public=public)

    def sign(self, data: bytes) -> bytes:
        with TemporaryDirectory(prefix="sparkimage-sign-") as name:
            blob, made = Path(name, "blob"), Path(name, "signature")
            blob.write_bytes(data)
            argv = [
                self.program, "sign-blob", "--yes", "--key", self.key, "--tlog-upload=false",
                "--output-signature", str(made), str(blob),
            ]  # fmt: skip
            self.runner.run(argv, stdin="")
            return base64.b64decode(made.read_bytes())


@dataclass(frozen=True, kw_only=True)
class Keyless:
    """Signs with the identity of a CI job: https://docs.sigstore.dev/cosign/signing/overview/.

    The certificate and the transparency log are cosign's own matter, so that it brings what it
    signs to the registry itself, and is asked whom it believes: ``identity`` is an expression for
    the certificate's subject, ``issuer`` the address that vouches for it.
    """

    identity: str
    issuer: str
    program: str
    runner: Runner

    def attest(self, reference: str, said: Mapping[str, Any], *, replace: bool) -> None:
        """Attach a statement about ``reference`` (with its digest)."""
        with TemporaryDirectory(prefix="sparkimage-sign-") as name:
            predicate = Path(name, "predicate.json")
            predicate.write_text(json.dumps(said["predicate"]))
            more = ["--replace"] if replace else []
            argv = [
                self.program, "attest", "--yes", *more, "--type", str(said["predicateType"]),
                "--predicate", str(predicate), reference,
            ]  # fmt: skip
            self.runner.run(argv)

    def sign(self, reference: str, tags: Sequence[str]) -> None:
        """Sign ``reference`` (with its digest), and the tags that it may have."""
        named = ["--annotations", f"tags={','.join(sorted(tags))}"] if tags else []
        self.runner.run([self.program, "sign", "--yes", *named, reference])

    def signatures(self, reference: str) -> list[Mapping[str, Any]]:
        """What cosign believes of the signatures over ``reference``."""
        done = self.runner.run(
            [self.program, "verify", "--output", "json", *self._who, reference], check=False
        )
        return list(json.loads(done.stdout)) if done.returncode == 0 else []

    def payloads(self, reference: str, kind: str) -> set[str]:
        """The payloads of the attestations of a kind that cosign believes."""
        argv = [self.program, "verify-attestation", "--type", kind, *self._who, reference]
        done = self.runner.run(argv, check=False)
        if done.returncode != 0:
            return set()
        return {str(json.loads(line)["payload"]) for line in done.stdout.splitlines() if line}

    @property
    def _who(self) -> list[str]:
        return [
            "--certificate-identity-regexp", self.identity,
            "--certificate-oidc-issuer", self.issuer,
        ]  # fmt: skip


def keyless(identity: str | None, issuer: str | None, outside: Outside) -> Keyless | None:
    """Whom cosign is to believe without a key; None where neither is said.

    Raises ``UsageError`` where only one is.
    """
    if identity is None and issuer is None:
        return None
    if identity is None or issuer is None:
        raise UsageError(
            "--identity and --issuer belong together",
            hint="the subject of the job's certificate (an expression), and who vouches for it",
        )
    return Keyless(
        identity=identity, issuer=issuer, program=program(outside), runner=outside.runner
    )


def signer(key: str | None, keys: Keyring, outside: Outside) -> Signer:
    """Who signs: ``key``, or without one the key of the seals.

    A PEM file is used as it is; a file of cosign's own kind (its passphrase in
    $COSIGN_PASSWORD) and an address of a KMS go through cosign. Raises ``PreflightError``.
    """
    if key is None:
        return OwnSigner(key=keys.signer())
    if key.startswith(KMS):
        return CosignSigner.of(key, program(outside), outside.runner)
    try:
        data = Path(key).read_bytes()
        if ENCRYPTED in data:
            return CosignSigner.of(key, program(outside), outside.runner)
        return OwnSigner(key=dsse.private_key(data))
    except (OSError, ValueError) as error:
        raise PreflightError(
            f"{key} is no key to sign with: {error}",
            hint="cosign generate-key-pair, or openssl genpkey -algorithm ed25519 -out FILE",
        ) from None


def trusted(key: str | None, keys: Keyring) -> dict[str, dsse.PublicKey]:
    """Whose signatures are believed: the public key ``key``, or those of the keyring.

    Raises ``PreflightError``.
    """
    if key is None:
        return keys.trusted()
    try:
        public = dsse.public_key(Path(key).read_bytes())
    except (OSError, ValueError) as error:
        raise PreflightError(
            f"{key} is no public key: {error}",
            hint="give the PEM file of an ed25519 or ECDSA P-256 public key",
        ) from None
    return {dsse.key_id(public): public}


def envelope(payload: bytes, payload_type: str, by: Signer) -> dict[str, Any]:
    """As ``dsse.sign``, by any signer."""
    made = by.sign(dsse.encoded(payload_type, payload))
    return dsse.envelope(payload, payload_type, made, dsse.key_id(by.public))


def program(outside: Outside) -> str:
    """The program cosign: the machine's own, else Debian's, by its hash, in the home.

    Errors as ``apt.fetch``.
    """
    own = shutil.which("cosign")
    if own is not None:
        return own
    arch = native_arch()
    lines = resources.files("sparkimage").joinpath("data", "cosign.txt").read_text().splitlines()
    _, file, version, sha256 = next(line.split() for line in lines if line.startswith(f"{arch} "))
    folder = outside.home / "tools" / f"cosign-{arch}-{sha256[:12]}"
    found = folder / "cosign"
    if not found.is_file():
        outside.say(f"fetching cosign {version} of Debian {SUITE}")
        deb = Deb(name="cosign", version=version, part=MORE, size=0, sha256=sha256, file=file)
        place = apt.Place(suite=SUITE, repository=None, arch=arch)
        apt.ready(outside.runner, outside.say)
        files = apt.fetch(
            Locked.tool("cosign"), place, [deb], outside.home, outside.runner, outside.mirrors
        )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".cosign-", dir=folder.parent) as name:
            outside.runner.run(["dpkg-deb", "-x", str(files[file]), f"{name}/tree"])
            Path(name, "made").mkdir()
            shutil.copyfile(f"{name}/tree/usr/bin/cosign", f"{name}/made/cosign")
            Path(name, "made", "cosign").chmod(0o755)
            take_place(Path(name, "made"), folder)
    return str(found)
