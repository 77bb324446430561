"""Logins and certificates for registries, as the Docker CLI has them.

https://docs.docker.com/reference/cli/docker/login/#credential-stores and
https://docs.docker.com/engine/security/certificates/. A secret goes into a request's header, and
nowhere else: not into an argument, a message or a file.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from sparkimage.core.errors import RegistryError
from sparkimage.resolve.wheels import ca_bundle

CERTIFICATES = (Path("/etc/docker/certs.d"), Path.home() / ".config" / "docker" / "certs.d")


@dataclass(frozen=True, kw_only=True)
class Login:
    """What a registry is shown; nothing where the user has not logged in."""

    user: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def there(self) -> bool:
        """Whether there is one."""
        return bool(self.user or self.identity_token)


def of(registry: str) -> Login:
    """The login of Docker's credential store for ``registry``. Raises ``RegistryError``."""
    from docker import auth
    from docker.errors import DockerException

    try:
        found = auth.load_config().resolve_authconfig(registry) or {}
    except (DockerException, OSError, ValueError) as error:
        # The helper's own words may hold what it was asked for.
        raise RegistryError(
            f"Docker's credential store gives no login for {registry}: {type(error).__name__}",
            hint=f"docker login {registry}",
        ) from None
    given = {key.lower(): str(value or "") for key, value in found.items()}
    return Login(
        user=given.get("username", ""),
        password=given.get("password", ""),
        identity_token=given.get("identitytoken", ""),
    )


def tls(registry: str) -> tuple[ssl.SSLContext, str]:
    """How to speak TLS to ``registry``, and the CA bundle that it begins with.

    ``certs.d/HOST[:PORT]/*.crt`` are believed too, and ``*.cert`` with its ``*.key`` is shown.
    """
    import certifi

    bundle = ca_bundle() or certifi.where()
    context = ssl.create_default_context(cafile=bundle)
    for folder in CERTIFICATES:
        own = folder / registry
        for file in sorted(own.glob("*.crt")):
            context.load_verify_locations(cafile=str(file))
        for file in sorted(own.glob("*.cert")):
            context.load_cert_chain(file, file.with_suffix(".key"))
    return context, bundle
