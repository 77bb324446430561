"""Logins and certificates for a registry, as the Docker CLI has them, for skopeo and for cosign.

https://docs.docker.com/reference/cli/docker/login/#credential-stores and
https://docs.docker.com/engine/security/certificates/. A secret is neither in an argument nor on a
disk: the programs read it from this process's memory.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from sparkimage.config.address import DEFAULT_REGISTRY, Place
from sparkimage.core.errors import RegistryError
from sparkimage.resolve.wheels import ca_bundle

CERTIFICATES = (Path("/etc/docker/certs.d"), Path.home() / ".config" / "docker" / "certs.d")
HUB = "https://index.docker.io/v1/"
"""What Docker's configuration calls its own registry."""
TIMEOUT_S = 10.0


@dataclass(kw_only=True)
class Access:
    """What the programs are given to reach the registry of ``place``."""

    place: Place

    @cached_property
    def user(self) -> str:
        """Who is logged in; empty for nobody. Raises ``RegistryError``."""
        return self._login[0]

    @cached_property
    def skopeo(self) -> list[str]:
        """Options of skopeo, but for their ``--src-`` and ``--dest-``."""
        words = [f"--authfile={self._config / 'config.json'}"]
        words += [f"--cert-dir={folder}" for folder in self._certificates[:1]]
        return [*words, "--tls-verify=false"] if self._is_plain else words

    @cached_property
    def cosign(self) -> list[str]:
        """Options of cosign's commands."""
        pairs = [pair for folder in self._certificates for pair in sorted(folder.glob("*.cert"))]
        return [
            word for cert in pairs[:1] for word in (
                f"--registry-client-cert={cert}",
                f"--registry-client-key={cert.with_suffix('.key')}",
            )
        ]  # fmt: skip

    @cached_property
    def environment(self) -> dict[str, str]:
        """The environment of both."""
        made = {"DOCKER_CONFIG": str(self._config)}
        bundle = ca_bundle()
        own = [file for folder in self._certificates for file in sorted(folder.glob("*.crt"))]
        if own:
            # Believed beside the bundle; SSL_CERT_DIR takes no folder with a colon in its name.
            files = [*([Path(bundle)] if bundle is not None else []), *own]
            joint = self._config / "ca.pem"
            joint.write_bytes(b"\n".join(file.read_bytes() for file in files))
            bundle = str(joint)
        return {**made, "SSL_CERT_FILE": bundle} if bundle is not None else made

    @property
    def _certificates(self) -> list[Path]:
        """The folders ``certs.d/HOST[:PORT]`` of this registry."""
        own = [folder / self.place.registry for folder in CERTIFICATES]
        return [folder for folder in own if folder.is_dir()]

    @cached_property
    def _login(self) -> tuple[str, dict[str, str]]:
        from docker import auth
        from docker.errors import DockerException

        registry = self.place.registry
        try:
            found = auth.load_config().resolve_authconfig(registry) or {}
        except (DockerException, OSError, ValueError) as error:
            # The helper's own words may hold what it was asked for.
            raise RegistryError(
                f"Docker's credential store gives no login for {registry}: {type(error).__name__}",
                hint=f"docker login {registry}",
            ) from None
        given = {key.lower(): str(value or "") for key, value in found.items()}
        user, token = given.get("username", ""), given.get("identitytoken", "")
        if not user and not token:
            return "", {}
        pair = f"{user or '<token>'}:{given.get('password', '')}"
        entry = {"auth": base64.b64encode(pair.encode()).decode()}
        return user or "the token", {**entry, "identitytoken": token} if token else entry

    @cached_property
    def _config(self) -> Path:
        """A folder as DOCKER_CONFIG wants it; the login in it is a link into memory."""
        registry = self.place.registry
        _, entry = self._login
        key = HUB if registry == DEFAULT_REGISTRY else registry
        memory = os.memfd_create("registry-login")
        weakref.finalize(self, os.close, memory)
        os.write(memory, json.dumps({"auths": {key: entry} if entry else {}}).encode())
        folder = TemporaryDirectory(prefix="sparkimage-login-")
        weakref.finalize(self, folder.cleanup)
        Path(folder.name, "config.json").symlink_to(f"/proc/{os.getpid()}/fd/{memory}")
        return Path(folder.name)

    @cached_property
    def _is_plain(self) -> bool:
        """Whether plain HTTP is spoken there, which only this machine itself may."""
        if not self.place.is_loopback:
            return False
        host, _, port = self.place.registry.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_S) as raw:
                ssl.create_default_context().wrap_socket(raw, server_hostname=host).close()
        except ssl.SSLCertVerificationError:
            return False
        except ssl.SSLError:
            return True
        except (OSError, ValueError):
            return False
        return False
