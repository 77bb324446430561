"""The keys of seals: one to sign with, made on first use, and those whose seals are believed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sparkimage.core import paths
from sparkimage.core.errors import PreflightError
from sparkimage.core.files import unnamed
from sparkimage.verify import dsse

VARIABLE = "SPARKIMAGE_KEY"


@dataclass(frozen=True, kw_only=True)
class Keyring:
    """The folder ``keys`` of a home, and the key that $SPARKIMAGE_KEY names."""

    folder: Path
    named: Path | None = None

    @classmethod
    def of(cls, home: Path) -> Keyring:
        """The keys of ``home``."""
        own = os.environ.get(VARIABLE)
        return cls(folder=home / "keys", named=Path(own).absolute() if own else None)

    @classmethod
    def user(cls) -> Keyring:
        """The keys of the user's home."""
        return cls.of(paths.home())

    @property
    def file(self) -> Path:
        """The private key in use."""
        return self.named or self.folder / "seal"

    @property
    def trusted_folder(self) -> Path:
        """Public keys (PEM) of others whose seals are believed here."""
        return self.folder / "trusted"

    def signer(self) -> dsse.PrivateKey:
        """The key to sign with, made where there is none. Raises ``PreflightError``."""
        if self.named is None and not self.file.exists():
            self._make()
        return self._private()

    def trusted(self) -> dict[str, dsse.PublicKey]:
        """Every key whose seals are believed, by its id; makes none. Raises ``PreflightError``."""
        found = []
        if self.named is not None or self.file.exists():
            found.append(self._private().public_key())
        for path in sorted(self.trusted_folder.glob("*.pem")):
            try:
                found.append(dsse.public_key(path.read_bytes()))
            except (OSError, ValueError) as error:
                raise PreflightError(
                    f"{path} is no public key: {error}",
                    hint="it must be the PEM file of an ed25519 or ECDSA P-256 public key",
                ) from None
        return {dsse.key_id(key): key for key in found}

    def _private(self) -> dsse.PrivateKey:
        try:
            return dsse.private_key(self.file.read_bytes())
        except (OSError, ValueError) as error:
            raise PreflightError(
                f"{self.file} is no key to sign with: {error}",
                hint="openssl genpkey -algorithm ed25519 -out FILE makes one; "
                f"{VARIABLE}=FILE names it",
            ) from None

    def _make(self) -> None:
        """Whole or not at all, and the first one of two at once: a link replaces nothing."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        with unnamed(self.folder) as file:
            file.sink.write(private)
            try:
                file.name(self.file, mode=0o600, fresh=True)
            except FileExistsError:
                return
        self.trusted_folder.mkdir(mode=0o700, exist_ok=True)
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        # To be given to others, who put it into their keys/trusted/.
        self.folder.joinpath("seal.pub.pem").write_bytes(public)
