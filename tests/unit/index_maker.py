"""Makes small real package indexes (PEP 503), which a real uv reads over HTTP."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.lab import servers, standins

USER, PASSWORD = "team", "only-for-this-test"


@dataclass(frozen=True, kw_only=True)
class Index:
    """A folder of wheels and sdists, by project."""

    folder: Path

    def add(self, name: str, version: str, *requires: str, platform: str = "any") -> Path:
        """A wheel; ``requires`` as in Requires-Dist, and ``extra EXTRA: …`` for an extra's."""
        metadata = []
        for line in requires:
            extra, colon, project = line.removeprefix("extra ").rpartition(": ")
            if colon:
                metadata.append(f"Provides-Extra: {extra}")
                project = f'{project} ; extra == "{extra}"'
            metadata.append(f"Requires-Dist: {project}")
        module = name.replace("-", "_").lower()
        return self._list(
            standins.wheel(
                self.folder / name.lower(), module, version, {f"{module}.py": f"v = '{version}'\n"},
                platform=platform, metadata=metadata,
            )
        )  # fmt: skip

    def add_sdist(self, name: str, version: str) -> Path:
        """The name of an sdist: uv asks for no more where it may build none."""
        file = self.folder / name / f"{name}-{version}.tar.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
        return self._list(file)

    def _list(self, made: Path) -> Path:
        files = [path.name for path in made.parent.iterdir() if path.name != "index.html"]
        page = "".join(f'<a href="{file}">{file}</a>\n' for file in sorted(files))
        (made.parent / "index.html").write_text(page)
        return made


@contextmanager
def serve(folder: Path) -> Iterator[tuple[Index, str]]:
    """An index in ``folder``, and its address."""
    folder.mkdir(parents=True, exist_ok=True)
    with servers.http_folder(folder) as web:
        yield Index(folder=folder), web.url


@contextmanager
def serve_with_login(folder: Path) -> Iterator[tuple[Index, str]]:
    """The same, for who has the login; its address is without it."""
    folder.mkdir(parents=True, exist_ok=True)
    with servers.answering(partial(_Private, directory=str(folder))) as port:
        yield Index(folder=folder), f"http://{servers.LOOPBACK}:{port}"


class _Private(SimpleHTTPRequestHandler):
    def send_head(self) -> Any:
        login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") == f"Basic {login}":
            return super().send_head()
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="lab"')
        self.end_headers()
        return None

    def log_message(self, format: str, *args: Any) -> None:
        pass
