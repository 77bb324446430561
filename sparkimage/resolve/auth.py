"""Logins and certificates of the Docker CLI for a registry, passed to skopeo and cosign.

https://docs.docker.com/reference/cli/docker/login/#credential-stores and
https://docs.docker.com/engine/security/certificates/. A secret is neither in an argument nor on
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
"""The key of Docker Hub in Docker's configuration."""
TIMEOUT_S = 10.0


@dataclass(kw_only=True)
class Access:
    """The options and the environment of skopeo and cosign for the registry of ``place``."""

    place: Place

    @cached_property
    def user(self) -> str:
        """The user of the login; empty without one. Raises ``RegistryError``."""
        return self._login[0]

    @cached_property
    def skopeo(self) -> list[str]:
        """Options of skopeo, without their prefixes ``--src-`` and ``--dest-``."""
        options = [f"--authfile={self._config / 'config.json'}"]
        options += [f"--cert-dir={folder}" for folder in self._certificates[:1]]
        return [*options, "--tls-verify=false"] if self._is_plain else options

    @cached_property
    def cosign(self) -> list[str]:
        """Options of cosign's commands."""
        certs = [cert for folder in self._certificates for cert in sorted(folder.glob("*.cert"))]
        if not certs:
            return []
        key = certs[0].with_suffix(".key")
        return [f"--registry-client-cert={certs[0]}", f"--registry-client-key={key}"]

    @cached_property
    def environment(self) -> dict[str, str]:
        """The environment of both."""
        environment = {"DOCKER_CONFIG": str(self._config)}
        bundle = ca_bundle()
        own = [file for folder in self._certificates for file in sorted(folder.glob("*.crt"))]
        if own:
            # Trusted beside the bundle; SSL_CERT_DIR takes no folder with a colon in its name.
            files = [*([Path(bundle)] if bundle is not None else []), *own]
            merged = self._config / "ca.pem"
            merged.write_bytes(b"\n".join(file.read_bytes() for file in files))
            bundle = str(merged)
        return environment if bundle is None else {**environment, "SSL_CERT_FILE": bundle}

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
            config = auth.load_config().resolve_authconfig(registry) or {}
        except (DockerException, OSError, ValueError) as error:
            # Without the helper's message, which may contain the secret.
            raise RegistryError(
                f"Docker's credential store fails for {registry}: {type(error).__name__}",
                hint=f"docker login {registry}",
            ) from None
        login = {key.lower(): str(value or "") for key, value in config.items()}
        user, token = login.get("username", ""), login.get("identitytoken", "")
        if not user and not token:
            return "", {}
        pair = f"{user or '<token>'}:{login.get('password', '')}"
        entry = {"auth": base64.b64encode(pair.encode()).decode()}
        return user or "the token", {**entry, "identitytoken": token} if token else entry

    @cached_property
    def _config(self) -> Path:
        """A folder for DOCKER_CONFIG; its ``config.json`` is a link to this process's memory."""
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
        """Whether the registry speaks plain HTTP, which is allowed on the loopback only."""
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
