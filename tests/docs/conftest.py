"""The built site, served on this machine, and a browser that reads it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

SITE = Path(__file__).resolve().parents[2] / "out" / "site"
# On GitHub's runners Chrome is kept up to date; their chromium is a snapshot.
BROWSERS = ("google-chrome", "google-chrome-stable", "chromium", "chromium-browser")
INSTALL = ("apt-get", "install", "--yes", "-qq", "--no-install-recommends", "chromium")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Where the site is served."""
    handler = functools.partial(Quiet, directory=str(SITE))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def program() -> str:
    """The machine's own Chromium. Continuous integration installs it where it may."""
    for attempt in range(2):
        if found := next(filter(None, map(shutil.which, BROWSERS)), None):
            return found
        if attempt == 0 and os.environ.get("CI") and os.geteuid() == 0 and shutil.which("apt-get"):
            subprocess.run(["apt-get", "update", "-qq"], check=True)
            subprocess.run(INSTALL, check=True)
    pytest.skip(f"none of {', '.join(BROWSERS)} is installed: apt-get install chromium")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = program()
    with sync_playwright() as playwright:
        # Root has no sandbox, nor has chromium on Ubuntu 24.04; the pages are this project's own.
        browser = playwright.chromium.launch(executable_path=path, chromium_sandbox=False)
        yield browser
        browser.close()
